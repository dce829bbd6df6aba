r"""Testing by betting: evidence from fresh batches is multiplied, and more is drawn only while in doubt.

An e-value is a number `e >= 0` with `E e <= 1` under the null hypothesis: the fair return of a bet against it. The
returns on independent batches multiply to a wealth with `P(wealth ever >= 1/a) <= a` (Ville 1939), so one may stop at
any time (Vovk and Wang 2021; Shekhar and Ramdas 2021; Waudby-Smith and Ramdas 2024). False passes are bounded apart:
the discrepancies d_t of the batches, each of mean at least the true one and variance proxy v_t (`Bound.proxy`), give

    sum_t (d_t/v_t)/W + sqrt(2 log(batches/false_pass)/W),   W = sum_t 1/v_t,

above the true discrepancy after every one of at most `batches` batches but for a probability of `false_pass`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError
from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.statistics.bounds import Result, rate

Sampler = Callable[[int, int], Tensor]
REJECTED, ACCEPTED, UNDECIDED = "rejected", "accepted", "undecided"


def bet(p: float, ranks: int = 0) -> float:
    """The e-value of a p-value: a decreasing f with `E f(p) <= 1` whenever `P(p <= a) <= a` for every a.

    Where p is anything, `f(p) = int_0^1 k p^(k-1) dk = (1 - p + p log p)/(p log^2 p)`, whose integral is 1 (Vovk and
    Wang 2021, sec. 2). Where p = r/R has one of R = `ranks` ranks r, a mixture of bets on the top rank, on low ranks
    and on nothing,

        f(r) = (R/2) [r = 1] + (R/4)/(r H_R) + 1/4,   H_R = sum_(r <= R) 1/r,

    which reaches 1e9 in four batches of 399 permutations and never loses more than three quarters. It is fair: f
    falls, so by summation by parts, with `P(rank <= r) <= r/R`,

        E f = f(R) + sum_(r < R) (f(r) - f(r + 1)) P(rank <= r) <= (1/R) sum_r f(r) = 1/2 + 1/4 + 1/4 = 1,

    the equality because `f(R) + sum_(r < R) (f(r) - f(r + 1)) r/R` telescopes to the mean of f.
    Raises InvalidArgumentError unless p is in [0, 1], and one of the ranks if there are any.
    """
    rank = round(p * ranks)
    if not 0.0 <= p <= 1.0 or (ranks and not (rank >= 1 and abs(p * ranks - rank) < 1e-6)):
        of = f" and a multiple of 1/{ranks}" if ranks else ""
        raise InvalidArgumentError(f"a p-value must be in [0, 1]{of}, got {p}")
    if ranks:
        harmonic = math.fsum(1 / r for r in range(1, ranks + 1))
        return (ranks / 2 if rank == 1 else 0.0) + ranks / (4 * rank * harmonic) + 0.25
    if p == 0.0:
        return math.inf
    log = math.log(p)
    if log > -1e-2:  # the series of (e^(-l) - 1 + l)/l^2 at l = log p, whose terms beyond are below 1e-10
        return math.fsum((-log) ** i / math.factorial(i + 2) for i in range(4))
    return (1 - p + p * log) / (p * log * log)


class Verdict(NamedTuple):
    """How a sequential test ended: `verdict` is 'rejected', 'accepted' or 'undecided'.

    log_wealth: the largest logarithm of the wealth that was reached; statistic: the weighted mean discrepancy; upper:
    the true one is below it but for a probability of false_pass; detectable: a discrepancy, above the resolution, that
    is rejected with probability at least 1 - false_pass (infinite where there is no guarantee); n: samples drawn;
    results: of the batches.
    """

    verdict: str
    log_wealth: float
    statistic: float
    upper: float
    detectable: float
    n: int
    results: tuple[Result, ...]

    @property
    def p_value(self) -> float:
        """`min(1, 1/wealth)` at its largest: a p-value although the number of batches depends on the data (Ville)."""
        return math.exp(-max(0.0, self.log_wealth))

    @property
    def batches(self) -> int:
        """How many batches were drawn."""
        return len(self.results)


def sequential(
    draw_batch: Sampler,
    target_batch: Sampler | GaussianMixture,
    test: Callable[..., Result],
    *,
    false_fail: float = 1e-9,
    false_pass: float = 1e-6,
    resolution: float = 0.0,
    batch: int = 500,
    growth: float = 1.0,
    max_batches: int = 16,
    seed: int = 0,
) -> Verdict:
    """Test batch after batch until the law is rejected, accepted, or `max_batches` are drawn, which is undecided.

    draw_batch `(n, seed) -> x [n, *S]`; target_batch the same, or a mixture, which the test gets as it is; test
    `(x, target, seed=...) -> Result`. Every batch has seeds of its own; batch t has `batch * growth^t` samples.
    Rejected: the product of the batches' e-values (`bet`) reaches 1/false_fail. Accepted: the discrepancy is below
    `resolution` but for a probability of `false_pass`; only those tests whose bound has a `proxy` can (KS, and MMD at a
    given scale). Raises InvalidArgumentError on rates, sizes and batches that cannot be, and what the test raises.
    """
    threshold = -math.log(rate(false_fail, "false_fail"))
    margin = math.log(max(1, max_batches) / rate(false_pass, "false_pass"))
    if batch < 1 or max_batches < 1 or not 1.0 <= growth < math.inf:
        got = f"batch={batch}, max_batches={max_batches}, growth={growth}"
        raise InvalidArgumentError(f"batch, max_batches and growth must be at least 1, got {got}")
    seeds = streams(seed, 3 * max_batches)
    wealth, best = 0.0, -math.inf
    weight = weighted = 0.0
    results: list[Result] = []
    verdict, upper = UNDECIDED, math.inf
    for t in range(max_batches):
        size, own = round(batch * growth**t), seeds[3 * t : 3 * t + 3]
        target: Any = target_batch if isinstance(target_batch, GaussianMixture) else target_batch(size, own[1])
        result = test(draw_batch(size, own[0]), target, seed=own[2])
        results.append(result)
        e = bet(result.p_value, result.bound.ranks)
        wealth += math.log(e) if e < math.inf else math.inf
        best = max(best, wealth)
        if result.bound.proxy < math.inf:
            weight, weighted = weight + 1 / result.bound.proxy, weighted + result.statistic / result.bound.proxy
            upper = min(upper, weighted / weight + math.sqrt(2 * margin / weight))
        if wealth >= threshold or upper <= resolution:
            verdict = REJECTED if wealth >= threshold else ACCEPTED
            break
    mean = weighted / weight if weight else math.fsum(r.statistic for r in results) / len(results)
    found = max(resolution, _detectable(results[0], threshold, false_pass, max_batches))
    return Verdict(verdict, best, mean, upper, found, sum(r.n for r in results), tuple(results))


def _detectable(first: Result, threshold: float, false_pass: float, batches: int) -> float:
    """The discrepancy that fills the first so many batches with the same p-value, each with its part of false_pass."""
    ranks = first.bound.ranks
    if ranks:
        needed = math.ceil(threshold / math.log(bet(1 / ranks, ranks)))
        return first.detectable(false_pass / needed, 1 / ranks) if needed <= batches else math.inf
    found = math.inf
    for needed in range(1, batches + 1):
        p = float(_inverse(threshold / needed))
        found = min(found, first.detectable(false_pass / needed, p))
    return found


def _inverse(log_e: float) -> float:
    """The largest p with `log bet(p) >= log_e`."""
    low, high = -700.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.log(bet(math.exp(middle))) >= log_e else (low, middle)
    return math.exp(low)


def streams(seed: int, count: int) -> list[int]:
    """Seeds of independent streams, below 2^31 so that any generator takes them."""
    values: list[int] = torch.bitwise_and(noises.seeds(seed, count), 0x7FFFFFFF).tolist()
    return values
