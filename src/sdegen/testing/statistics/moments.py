r"""Means and variances of samples against a Gaussian mixture's, with Cramer's transform instead of a central limit.

Along a unit vector u the target's `z = u.(x - mu)/sd` is a mixture of `N(a_k, s_k^2)`, so the cumulant functions

    log E exp(l z)             = log sum_k pi_k exp(l a_k + l^2 s_k^2/2),
    log E exp(l (z^2 - 1))     = -l + log sum_k pi_k (1 - 2 l s_k^2)^(-1/2) exp(l a_k^2/(1 - 2 l s_k^2)),

the second for `2 l s_k^2 < 1`, are exact, and so is Chernoff's bound for a mean of n: `P(mean >= e) <= exp(-n I(e))`,
`I(e) = sup_l [l e - log E exp(l z)]` (Cramer 1938; Boucheron, Lugosi and Massart 2013, sec. 2.2). It holds for every
n, e and l, so neither rounding nor a bracket for l can make it too small, and its exponent cannot be improved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.statistics.bounds import Result, bisect, forgiven
from sdegen.testing.statistics.projections import Marginals, checked, chosen, marginals, project, rounding

_STEEPEST = 64.0


@dataclass(frozen=True, eq=False)
class Cumulants:
    """The cumulant functions of z, or of `z^2 - 1` (`squares`), along P directions; weights `[K]`, a and s `[P, K]`."""

    weights: Tensor
    a: Tensor
    s: Tensor
    squares: bool

    def tilt(self, l: Tensor) -> tuple[Tensor, Tensor]:
        """The cumulant function and its derivative at l `[P]`."""
        l, log = l[:, None], self.weights.log()
        if self.squares:
            room = 1 - 2 * l * self.s.square()
            logits = log - room.log() / 2 + l * self.a.square() / room
            slopes = self.s.square() / room + (self.a / room).square()
        else:
            logits = log + l * self.a + l.square() * self.s.square() / 2
            slopes = self.a + l * self.s.square()
        shift = float(self.squares)
        return logits.logsumexp(1) - shift * l[:, 0], (logits.softmax(1) * slopes).sum(1) - shift

    def end(self, side: float) -> Tensor:
        """How far l is looked for, above 0 (`side` 1) or below (-1), `[P]`."""
        far = torch.full_like(self.a[:, 0], side * _STEEPEST)
        if not self.squares or side < 0:
            return far
        return torch.minimum(far, (1 - 1e-9) / (2 * self.s.square().amax(1).clamp(min=1e-12)))

    def rate(self, e: Tensor) -> Tensor:
        """`I(e)` `[P]`."""
        side = torch.where(e >= 0, 1.0, -1.0).to(e)
        end = torch.where(e >= 0, self.end(1.0), self.end(-1.0))
        l = bisect(lambda l: side * (self.tilt(l)[1] - e) >= 0, torch.zeros_like(e), end)
        return (l * e - self.tilt(l)[0]).clamp(min=0)

    def quantile(self, c: float, side: float) -> Tensor:
        """The e `[P]` with `I(e) = c` on one side: `(c + log E exp(l z))/l` at the l where the tangent's rate is c."""

        def beyond(l: Tensor) -> Tensor:
            value, slope = self.tilt(l)
            return l * slope - value >= c

        l = bisect(beyond, torch.zeros_like(self.a[:, 0]), self.end(side))
        return (c + self.tilt(l)[0]) / l


@dataclass(frozen=True, eq=False)
class _Moment:
    """Means of n values of the cumulants' law along each direction; `worst` and `side` are those of the statistic."""

    cumulants: Cumulants
    n: int
    slack: float
    blur: Tensor
    worst: int
    side: float
    proxy: float = math.inf
    ranks: int = 0

    def _quantile(self, chance: float, side: float) -> Tensor:
        return self.cumulants.quantile(math.log(1 / chance) / self.n, side)

    def widened(self, e: Tensor, side: float) -> Tensor:
        """A deviation of the target as the furthest that the slack and rounding make of it."""
        if self.cumulants.squares:
            return (1 + e) * (1 + side * self.slack) - 1 + side * self.blur
        return e + side * (self.slack + self.blur)

    def narrowed(self, e: Tensor) -> Tensor:
        """The inverse of `widened`: what of deviations e `[P]` remains, 0 within the slack."""
        side = torch.where(e >= 0, 1.0, -1.0).to(e)
        least = self.widened(torch.zeros_like(e), 1.0) * (e >= 0) + self.widened(torch.zeros_like(e), -1.0) * (e < 0)
        if self.cumulants.squares:
            left = (1 + e - side * self.blur) / (1 + side * self.slack).clamp(min=1e-12) - 1
        else:
            left = e - least
        return torch.where(side * (e - least) > 0, left, torch.zeros_like(e))

    def critical(self, false_fail: float) -> float:
        e = self._quantile(false_fail / (2 * len(self.blur)), self.side)
        return abs(float(self.widened(e, self.side)[self.worst]))

    def detectable(self, false_pass: float, false_fail: float) -> float:
        high, low = (self.widened(self._quantile(false_fail / (2 * len(self.blur)), s), s) for s in (1.0, -1.0))
        over, under = (self._quantile(false_pass, s) for s in (1.0, -1.0))
        if not self.cumulants.squares:
            return float(torch.maximum(high - under, over - low).max())
        # the target stretched by c about its mean has c^2 times the squares; a variance cannot be found below none
        grown = torch.where(under > -1, (1 + high) / (1 + under) - 1, math.inf)
        shrunk = torch.where(low > -1, 1 - (1 + low) / (1 + over), math.inf)
        return float(torch.maximum(grown, shrunk).max())


def mean_test(
    x: Tensor, target: GaussianMixture, *, along: int | Tensor = 16, seed: int = 0, slack: float = 0.0
) -> Result:
    """The shift of the mean, `max_u |mean_i u.x_i - u.mu| / sd_u`, in the target's standard deviations along u.

    P-value over P directions `2 P exp(-n max_u I_u)`, with Cramer's transform of this module's head. x `[n, *S]`;
    along, seed: directions, as in `ks_test`. slack: a shift of the whole target, in standard deviations, that is
    allowed. `detectable` is for shifts of the whole target. Where the target has no spread the unit is what rounding
    may do. Raises InvalidArgumentError and InvalidTypeError as `ks_test`.
    """
    x, u, law = _enter(x, target, along, seed)
    sd = law.std.clamp(min=max(1e-300, rounding(x)))
    e = (project(x, u) - law.mean[:, None]).mean(1) / sd
    return _decide(_moment(x, law, sd, False, forgiven(slack)), e)


def spread_test(
    x: Tensor, target: GaussianMixture, *, along: int | Tensor = 16, seed: int = 0, slack: float = 0.0
) -> Result:
    """The covariance by its quadratic forms, `max_u |mean_i (u.(x_i - mu))^2 / sd_u^2 - 1|`.

    Second moments are about the target's mean. P-value, x, along and seed as in `mean_test`; slack: a relative change
    of all variances, by stretching the target about its mean, that is allowed, and `detectable` is one that is found.
    Directions along which the target has no spread are left out. Raises InvalidArgumentError if all are, and as
    `ks_test`.
    """
    x, u, law = _enter(x, target, along, seed)
    kept = law.std > rounding(x)
    if not bool(kept.any()):
        raise InvalidArgumentError(f"{target!r} has no spread along these directions; test its mean alone")
    u, law = u[kept], Marginals(law.weights, law.means[kept], law.stds[kept])
    e = ((project(x, u) - law.mean[:, None]) / law.std[:, None]).square().mean(1) - 1
    return _decide(_moment(x, law, law.std, True, forgiven(slack)), e)


def _enter(x: Tensor, target: GaussianMixture, along: int | Tensor, seed: int) -> tuple[Tensor, Tensor, Marginals]:
    x = checked("x", x, target)
    u = chosen(along, seed, x)
    return x, u, marginals(target, u)


def _moment(x: Tensor, law: Marginals, sd: Tensor, squares: bool, slack: float) -> _Moment:
    a, s = (law.means - law.mean[:, None]) / sd[:, None], law.stds / sd[:, None]
    blur = rounding(x) / sd
    return _Moment(
        Cumulants(law.weights, a, s, squares), len(x), slack, 2 * blur + blur**2 if squares else blur, 0, 1.0
    )


def _decide(bound: _Moment, e: Tensor) -> Result:
    rates = bound.cumulants.rate(bound.narrowed(e))
    worst = int(rates.argmax())
    p = min(1.0, 2 * len(e) * math.exp(-bound.n * float(rates[worst])))
    bound = replace(bound, worst=worst, side=1.0 if e[worst] >= 0 else -1.0)
    return Result(float(e[worst].abs()), p, bound.n, bound, f"direction {worst}")
