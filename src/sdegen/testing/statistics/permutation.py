r"""Energy distance and MMD with permutation p-values, which are exact for every statistic, law and number of samples.

Both statistics are a quadratic form in the signed weights w of the pooled samples z `[N, D]`, N = n + m, w = 1/n on the
samples and -1/m on the target's:

    energy^2 = -w^T |z_i - z_j| w = 2 E|x - y| - E|x - x'| - E|y - y'|,      MMD^2 = w^T k(z_i, z_j) w.

Under the null hypothesis the labels are exchangeable, so the rank r of the statistic among itself and B random
relabellings, ties counted against it, has `P(r <= j) <= j/(B + 1)`: p = r/(B + 1) (Phipson and Smyth 2010). The least
p-value is 1/(B + 1); `sequential` reaches any level by multiplying the evidence of independent batches.

Memory is N (B + 1) numbers and one tile of the N x N matrix. Sources: Szekely and Rizzo (2013); Gretton et al. (2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError
from sdegen.testing.statistics.bounds import Result, forgiven, within
from sdegen.testing.statistics.projections import F64, checked, distances, rounding

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)
_LABELS = 0x6C61626C
_TILE = 1 << 22


@dataclass(frozen=True, eq=False)
class _Relabelled:
    """Statistics `[B]` of the relabelled samples, in decreasing order; `bounded` for a kernel in [0, 1] fixed before.

    For such a kernel, `phi` its feature map, changing one sample moves the statistic by at most `sqrt 2/n`: McDiarmid's
    inequality gives the proxy, and Jensen's that the statistic's mean is at least the true distance. A relabelled
    statistic is `(1/n + 1/m) |sum_A (phi - mean)|` over a random subset A of `least = min(n, m)`; its exponential
    moments are at most those for draws with replacement (Hoeffding 1963, thm 4, whose proof by conditional means holds
    for vectors), so that it exceeds `(1/n + 1/m) sqrt(least) (1 + sqrt(log 1/a))` with probability at most a.
    """

    n: int
    m: int
    others: Tensor
    bounded: bool

    @property
    def ranks(self) -> int:
        return len(self.others) + 1

    @property
    def proxy(self) -> float:
        return (1 / self.n + 1 / self.m) / 2 if self.bounded else math.inf

    def critical(self, false_fail: float) -> float:
        beaten = math.floor(false_fail * self.ranks * (1 + 1e-12))
        return math.inf if beaten < 1 else float(self.others[beaten - 1])

    def detectable(self, false_pass: float, false_fail: float) -> float:
        return self.topped(false_pass) if false_fail * self.ranks >= 1 - 1e-12 else math.inf

    def topped(self, false_pass: float) -> float:
        """A distance whose statistic is above all relabelled ones but for a probability of at most `false_pass`."""
        unit = (1 / self.n + 1 / self.m) * math.sqrt(min(self.n, self.m))
        others = unit * (1 + math.sqrt(math.log(2 * len(self.others) / false_pass)))
        return within(others + math.sqrt(2 * self.proxy * math.log(2 / false_pass)), math.sqrt(2))


@dataclass(frozen=True)
class _Embedded:
    """`P(MMD >= slack + sqrt(1/n + 1/m) + e) <= exp(-e^2/(2 proxy))` where the laws' distance is at most `slack`."""

    n: int
    m: int
    slack: float
    ranks: int = 0

    @property
    def proxy(self) -> float:
        return (1 / self.n + 1 / self.m) / 2

    def _floor(self) -> float:
        return self.slack + math.sqrt(1 / self.n + 1 / self.m)

    def p_value(self, d: float) -> float:
        return math.exp(-(max(0.0, d - self._floor()) ** 2) / (2 * self.proxy))

    def critical(self, false_fail: float) -> float:
        return within(self._floor() + math.sqrt(2 * self.proxy * math.log(1 / false_fail)), math.sqrt(2))

    def detectable(self, false_pass: float, false_fail: float) -> float:
        miss = math.sqrt(2 * self.proxy * math.log(1 / false_pass))
        return within(self.critical(false_fail) + miss, math.sqrt(2))


def energy_test(x: Tensor, target: Tensor, *, permutations: int = 399, seed: int = 0) -> Result:
    """The energy distance `sqrt(2 E|x - y| - E|x - x'| - E|y - y'|)`, zero only between equal laws.

    x `[n, *S]`, target `[m, *S]`; the p-value is the rank among `permutations` relabellings drawn from `seed`. The
    kernel is unbounded: `detectable` is infinite, no distance is found with a guarantee that holds for every law.
    Source: Szekely and Rizzo (2013), eq. 2.5. Raises InvalidArgumentError and InvalidTypeError as `ks_test`.
    """
    x, y, blur = _pair(x, target, permutations)

    def matrix(a: Tensor, b: Tensor) -> Tensor:
        return -distances(a, b)

    observed, others, rank = _ranked(x, y, matrix, blur, permutations, seed)
    return Result(observed, rank / (permutations + 1), len(x), _Unbounded(len(x), len(y), others, False))


class _Unbounded(_Relabelled):
    def topped(self, false_pass: float) -> float:
        return math.inf


def mmd_test(
    x: Tensor,
    target: Tensor,
    *,
    scale: float | None = None,
    bandwidths: Sequence[float] = BANDWIDTHS,
    permutations: int = 399,
    seed: int = 0,
    slack: float = 0.0,
) -> Result:
    """The maximum mean discrepancy `sup_(|f| <= 1) E f(x) - E f(y)` in the space of a bounded kernel.

    `k(x, y) = mean_b exp(-|x - y|^2/(2 b^2 scale^2))` over the bandwidths b; `scale` is a length fixed beforehand, as
    the root of the target's total variance, or by default that of the pooled samples (which no relabelling changes; but
    then `detectable` is infinite). The p-value is the rank among `permutations` relabellings drawn from `seed`; with
    slack, a distance that is allowed, it is McDiarmid's, `exp(-(d - slack - r)^2/r^2)` with `r^2 = 1/n + 1/m` (after
    Gretton et al. 2012, thm 7). Laws within t of each other in total variation have an MMD of at most `sqrt 2 t`.
    Raises InvalidArgumentError and InvalidTypeError as `ks_test`, and for lengths that are not positive.
    """
    x, y, blur = _pair(x, target, permutations)
    slack, n, m = forgiven(slack), len(x), len(y)
    length = float(torch.cat((x, y)).var(0, correction=0).sum().sqrt()) if scale is None else scale
    if not all(0 < v < math.inf for v in (*bandwidths, length if scale is not None else 1.0)) or not bandwidths:
        raise InvalidArgumentError(f"scale and bandwidths must be positive, got {scale} and {list(bandwidths)}")
    factors = [-0.5 / (b * length) ** 2 if length > 0 else 0.0 for b in bandwidths]

    def matrix(a: Tensor, b: Tensor) -> Tensor:
        squares = distances(a, b).square_()
        return torch.stack([(squares * f).exp_() for f in factors]).mean(0)

    # a kernel exp(-r^2/2h^2) changes by at most exp(-1/2)/h per unit of r
    blur *= sum(math.sqrt(-2 * f / math.e) for f in factors) / len(factors)
    observed, others, rank = _ranked(x, y, matrix, blur, 0 if slack > 0 else permutations, seed)
    if slack > 0:
        embedded = _Embedded(n, m, slack)
        return Result(observed, embedded.p_value(observed), n, embedded)
    kind = _Relabelled if scale is not None else _Unbounded
    return Result(observed, rank / (permutations + 1), n, kind(n, m, others, scale is not None))


def _pair(x: Tensor, target: Tensor, permutations: int) -> tuple[Tensor, Tensor, float]:
    """Both samples as `[n, D]` in float64, and how far rounding may have moved their distances."""
    x = checked("x", x)
    y = checked("target", target, x).to(x.device)
    if permutations < 1:
        raise InvalidArgumentError(f"permutations must be at least 1, got {permutations}; 399 for instance")
    return x.reshape(len(x), -1).to(F64), y.reshape(len(y), -1).to(F64), rounding(x) + rounding(y)


def _ranked(
    x: Tensor, y: Tensor, matrix: Callable[[Tensor, Tensor], Tensor], blur: float, permutations: int, seed: int
) -> tuple[float, Tensor, int]:
    """The root of the quadratic form, those of the relabelled samples in decreasing order, and its rank among them.

    blur: by how much rounding of the samples may have changed an entry of the matrix.
    """
    z, w = torch.cat((x, y)), labels(len(x), len(y), permutations, seed).to(x.device)
    total, largest = torch.zeros(permutations + 1, dtype=F64, device=x.device), 0.0
    step = max(1, _TILE // len(z))
    for i in range(0, len(z), step):
        part = matrix(z[i : i + step], z)
        largest = max(largest, float(part.abs().max()))
        total += (w[i : i + step] * (part @ w)).sum(0)
    # ties that rounding breaks are ties: sum |w| = 2, so each of two forms errs by 4 times what an entry does
    error = 8 * (len(z) * torch.finfo(F64).eps * largest + blur)
    rank = 1 + int((total[1:] >= total[0] - error).sum())
    roots = total.clamp(min=0).sqrt()
    return float(roots[0]), roots[1:].sort(descending=True).values, rank


def labels(n: int, m: int, permutations: int, seed: int) -> Tensor:
    """Weights `[n + m, permutations + 1]`, 1/n on n samples and -1/m on m: the given labels, then random ones."""
    one = torch.cat((torch.full((n,), 1 / n, dtype=F64), torch.full((m,), -1 / m, dtype=F64)))
    key = noises.halves(noises.seeds(seed, permutations)[:, None])
    words = noises.philox(key, (torch.arange(n + m), _LABELS, 0, 0))
    order = (words[0] << 31 | words[1] >> 1).argsort(1)
    return torch.cat((one[:, None], one[order].T), 1)
