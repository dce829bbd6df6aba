"""Kolmogorov-Smirnov tests on projections, with bounds that hold for every number of samples and every level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.statistics.bounds import Result, forgiven, within
from sdegen.testing.statistics.projections import F64, Marginals, checked, chosen, marginals, project, rounding

_BLOCK = 64


@dataclass(frozen=True)
class _Supremum:
    """`P(sup |F_n - F| > d) <= factor exp(-2 size d^2)`, the distance of the laws being at most `slack`.

    At one point, where the laws are furthest apart, the statistic falls short of their distance by e with probability
    at most `exp(-2 e^2/spread)` (Hoeffding 1963, thm 1); changing one sample changes it by 1/n.
    """

    factor: float
    size: float
    spread: float
    slack: float
    ranks: int = 0

    @property
    def proxy(self) -> float:
        return self.spread / 4

    def p_value(self, d: float) -> float:
        return min(1.0, self.factor * math.exp(-2 * self.size * max(0.0, d - self.slack) ** 2))

    def critical(self, false_fail: float) -> float:
        return within(self.slack + math.sqrt(math.log(self.factor / false_fail) / (2 * self.size)), 1.0)

    def detectable(self, false_pass: float, false_fail: float) -> float:
        return within(self.critical(false_fail) + math.sqrt(math.log(1 / false_pass) * self.spread / 2), 1.0)


@dataclass(frozen=True)
class _Walk:
    """`P(sup |F_n - G_n| >= k/n) <= 2 C(2n, n - k)/C(2n, n)` for two samples of n from one law, on each direction.

    In the pooled order the two samples are a walk of 2n steps that ends at 0; by reflection one side has exactly half
    this probability (Gnedenko and Korolyuk 1951). Ties only lower the supremum.
    """

    n: int
    count: int
    ranks: int = 0

    @property
    def proxy(self) -> float:
        return 1 / (2 * self.n)

    def _log_tails(self) -> Tensor:
        """The logarithm of the bound at k = 0 ... n over all directions."""
        i = torch.arange(self.n, dtype=F64)
        ratios = torch.log1p(-(2 * i + 1) / (self.n + 1 + i)).cumsum(0)
        return math.log(2 * self.count) + torch.cat((ratios.new_zeros(1), ratios))

    def p_value(self, d: float) -> float:
        return min(1.0, math.exp(float(self._log_tails()[round(d * self.n)])))

    def critical(self, false_fail: float) -> float:
        below = (self._log_tails() <= math.log(false_fail)).nonzero()
        return int(below[0]) / self.n if len(below) else math.inf

    def detectable(self, false_pass: float, false_fail: float) -> float:
        return within(self.critical(false_fail) + math.sqrt(math.log(1 / false_pass) / self.n), 1.0)


def ks_test(
    x: Tensor, target: GaussianMixture | Tensor, *, along: int | Tensor = 16, seed: int = 0, slack: float = 0.0
) -> Result:
    """Kolmogorov-Smirnov distance `max_u sup_t |P(u.x <= t) - P(u.y <= t)|` over directions u.

    x `[n, *S]`; target a mixture, whose projections have exact CDFs, or samples `[m, *S]`; along: how many random
    directions (drawn from `seed`; the axes are added where they are no more), or directions `[P, D]` of your own.
    P-value, over P directions: `2 P exp(-2 n d^2)` against a mixture (Massart 1990, cor. 1); against as many samples
    `2 P C(2n, n - nd)/C(2n, n)` (Gnedenko and Korolyuk 1951); otherwise, and with slack, Massart for each sample and
    the triangle inequality, `4 P exp(-2 r d^2)` with `r = nm/(sqrt n + sqrt m)^2`. slack: a KS distance that is
    allowed. Raises InvalidArgumentError, InvalidTypeError on samples of other shapes, not finite or not floating.
    """
    slack, x = forgiven(slack), checked("x", x, target)
    u = chosen(along, seed, x)
    t, n = project(x, u).sort(1).values, len(x)
    if isinstance(target, GaussianMixture):
        law, blur = marginals(target, u), rounding(x)
        d, p = max((_gap(t[p], law, p, blur), p) for p in range(len(u)))
        bound = _Supremum(2.0 * len(u), n, 1 / n, slack)
        return Result(d, bound.p_value(d), n, bound, f"direction {p}")
    y = checked("target", target, x).to(x.device)
    other, m = project(y, u).sort(1).values, len(y)
    blur = rounding(x) + rounding(y)
    d, p = max((max(_ahead(t[p], other[p], blur), _ahead(other[p], t[p], blur)), p) for p in range(len(u)))
    if n == m and slack == 0:
        walk = _Walk(n, len(u))
        return Result(d, walk.p_value(d), n, walk, f"direction {p}")
    bound = _Supremum(4.0 * len(u), n * m / (math.sqrt(n) + math.sqrt(m)) ** 2, 1 / n + 1 / m, slack)
    return Result(d, bound.p_value(d), n, bound, f"direction {p}")


def _gap(t: Tensor, law: Marginals, p: int, blur: float) -> float:
    """`sup |F_n - F|` of sorted values t, or what is left of it if they are moved by `blur`."""
    n = len(t)
    first = torch.arange(0, n, _BLOCK, device=t.device)
    last = (first + _BLOCK - 1).clamp(max=n - 1)

    def over(i: Tensor, j: Tensor) -> Tensor:  # at least (k + 1)/n - F(t_k) for i <= k <= j, and this for i = j
        return (j + 1).to(F64) / n - law.cdf(p, t[i] + blur)

    def under(i: Tensor, j: Tensor) -> Tensor:  # the same of F(t_k) - k/n
        return law.cdf(p, t[j] - blur) - i.to(F64) / n

    best = torch.maximum(over(last, last).max(), under(first, first).max())
    # F is only evaluated where it can matter: within the blocks whose bound is above what has been seen
    open_blocks = torch.maximum(over(first, last), under(first, last)) > best
    inside = (first[open_blocks, None] + torch.arange(_BLOCK, device=t.device)).flatten().clamp(max=n - 1)
    if len(inside):
        best = torch.maximum(best, torch.maximum(over(inside, inside), under(inside, inside)).max())
    return max(0.0, float(best))


def _ahead(a: Tensor, b: Tensor, blur: float) -> float:
    """`sup_t F_a(t) - F_b(t + blur)` of sorted values a and b."""
    f = torch.arange(1, len(a) + 1, dtype=F64, device=a.device) / len(a)
    g = torch.searchsorted(b, a + blur, right=True).to(F64) / len(b)
    return max(0.0, float((f - g).max()))
