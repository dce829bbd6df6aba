"""Things to test with, each with a repr that makes it again.

The reprs read after `import torch, sdegen as sd` and `from sdegen.testing.recipes import *`. What shrinks number by
number holds its numbers; what is large holds a seed, and its numbers come from `sdegen.noise`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from sdegen import noise
from sdegen.errors import InvalidArgumentError
from sdegen.level import check_span
from sdegen.processes.sde import SDE
from sdegen.testing.calls import Sparse, recipe

__all__ = [
    "EXPLICIT_KINDS",
    "KINDS",
    "LAYOUTS",
    "SPACINGS",
    "WEIGHTS",
    "MonotoneProcess",
    "Observation",
    "Root",
    "Spacing",
    "State",
    "discrete_vp",
    "laid_out",
    "log_snr",
    "pair",
    "random_gaussian",
    "random_mixture",
]

EXPLICIT_KINDS = ("isotropic", "diagonal", "points")
KINDS = (*EXPLICIT_KINDS, "full", "degenerate", "low-rank", "low-rank+diagonal")
WEIGHTS = ("equal", "skewed", "tiny")
SPACINGS = ("by_time", "by_snr", "karras", "natural", "graded", "clumps", "uneven")
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")

_F64 = torch.float64
# As the high word of a float64 time it is a NaN: these numbers share no counter with the noise of a step.
_STREAM = 16, 0xFFFFFFFF, 0, 0


def _numbers(seed: int, *shape: int) -> Tensor:
    """Unit normals of a shape from a seed."""
    drawn = noise.normals(torch.tensor([seed]), (math.prod(shape),), _STREAM, dtype=_F64)
    return drawn[0].reshape(shape)


@dataclass(frozen=True, repr=False)
class MonotoneProcess(Sparse, sd.Process):
    """A process as users write them, by alpha and sigma alone: `alpha = exp(n) sqrt(sigmoid(2 lam))`, sigma with -lam.

    With u from 0 at t_min to 1 at t_max, lam falls from lam_max to lam_min as `u + sum_k bends_k u^(k+2)` grows, bends
    not negative, and `n = sum_k norms_k u^k` is `log hypot(alpha, sigma)`. Rates and times are `Process`'s own.
    Raises InvalidArgumentError on a span or lams that do not run the right way, and on negative bends.
    """

    lam_max: float = 4.0
    lam_min: float = -4.0
    bends: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_span(self.t_min, self.t_max)
        if not self.lam_max > self.lam_min or min(self.bends, default=0.0) < 0:
            raise InvalidArgumentError(f"lam must fall: lam_max > lam_min and bends >= 0 are needed, got {self}")

    def _half(self, t: Tensor, sign: float) -> Tensor:
        u = (t - self.t_min) / (self.t_max - self.t_min)
        fall = _polynomial((0.0, 1.0, *self.bends), u) / (1 + sum(self.bends))
        lam = self.lam_max - (self.lam_max - self.lam_min) * fall
        # log sqrt(sigmoid(2 lam)) without cancellation in either tail
        return torch.exp(_polynomial(self.norms, u) - torch.logaddexp(torch.zeros_like(u), -2 * sign * lam) / 2)

    def alpha(self, t: Tensor) -> Tensor:
        return self._half(t, 1.0)

    def sigma(self, t: Tensor) -> Tensor:
        return self._half(t, -1.0)


def _polynomial(coefficients: tuple[float, ...], u: Tensor) -> Tensor:
    total = torch.zeros_like(u)
    for c in reversed(coefficients):
        total = total * u + c
    return total


@recipe
def discrete_vp(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> sd.DiscreteVP:
    """A `DiscreteVP` of any number of steps with VP's linear beta: `beta_i = 1 - exp(-beta((i + 1/2)/T)/T)`."""
    middle = (torch.arange(steps, dtype=_F64) + 0.5) / steps
    return sd.DiscreteVP(-torch.expm1(-(beta_min + (beta_max - beta_min) * middle) / steps))


def log_snr(lam: Tensor) -> Tensor:
    """lam itself, for `Frame(variable=log_snr)`."""
    return lam


@dataclass(frozen=True, repr=False)
class Root(Sparse):
    """`(sigma/alpha)^(1/rho) = exp(-lam/rho)`, for `Frame(variable=Root(7.0))`."""

    rho: float = 7.0

    def __call__(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam / self.rho)


@recipe
def pair(p: float, q: float) -> tuple[Tensor, Tensor]:
    """The prediction `p data + q noise`, as a score model is asked for it."""
    return torch.tensor(p, dtype=_F64), torch.tensor(q, dtype=_F64)


@dataclass(frozen=True, repr=False)
class Spacing(Sparse):
    """A time grid: `times(process)` `[steps + 1]`, from t_max to t_min; as a grid of its own, `(process, n) -> times`.

    kind: a grid of `sd.grids` (`karras` with rho; `graded` with up to 20 halvings among its n steps), or in lam
    'uneven', steps `ratio^u` with u uniform from the seed, so that neighbours differ by up to `ratio`, or 'clumps', n/2
    equal steps at each end and one that is `ratio` times as long between.
    """

    kind: str = "by_time"
    steps: int = 1
    rho: float = 7.0
    ratio: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SPACINGS:
            raise InvalidArgumentError(f"kind must be one of {', '.join(SPACINGS)}, got {self.kind!r}")
        if not 1.0 <= self.ratio < math.inf:
            raise InvalidArgumentError(f"ratio must be finite and >= 1, got {self.ratio}")

    def times(self, process: SDE) -> Tensor:
        """The times `[steps + 1]` on a process."""
        return self(process, self.steps)

    def __call__(self, process: Any, n: int) -> Tensor:
        n = sd.grids.check_steps(n)
        if self.kind == "karras":
            return sd.grids.karras(process, n, self.rho)
        if self.kind == "graded" and n > 1:
            return sd.grids.graded(process, n - min(20, n - 1), halvings=min(20, n - 1))
        if self.kind in ("uneven", "clumps"):
            return self._weighted(process, n)
        grid: sd.grids.Grid = getattr(sd.grids, "by_snr" if self.kind == "graded" else self.kind)
        return grid(process, n)

    def _weighted(self, process: sd.Process, n: int) -> Tensor:
        if self.kind == "uneven":
            weights = self.ratio ** torch.special.ndtr(_numbers(self.seed, n))
        else:
            weights = torch.ones(n, dtype=_F64)
            weights[n // 2] = self.ratio
        part = weights.cumsum(0)[:-1] / weights.sum()
        ends = process.level(sd.grids.by_snr(process, 1))
        inner = process.at(ends.lam[0] + part * (ends.lam[1] - ends.lam[0])).t
        return sd.grids.check_times(torch.cat([ends.t[:1], inner, ends.t[1:]]), process)


@recipe
def random_mixture(
    kind: str,
    components: int,
    shape: tuple[int, ...],
    *,
    apart: float = 2.0,
    width: float = 1.0,
    condition: float = 10.0,
    weights: str = "equal",
    seed: int = 0,
) -> sd.GaussianMixture:
    """A mixture of K components on samples of a shape (D elements), of a kind of `KINDS`, from a seed.

    Means are normal, two of them `apart` from each other in each coordinate (root mean square); `apart=0` makes all
    components equal. Variances run from `width^2` to `width^2 / condition`: along randomly turned axes ('full'; in
    'degenerate' the smallest is zero), along the coordinates ('diagonal'), or from component to component
    ('isotropic'); 'points' have none. Two random directions of variance `width^2` are added to the smallest
    ('low-rank') or to the diagonal ones ('low-rank+diagonal'). weights: 'equal', 'skewed' (`10^-k`) or 'tiny' (the
    last 1e-300).
    """
    means, covariance = _law(kind, components, shape, width, condition, seed)
    means = apart * means
    if apart == 0:
        covariance = {name: v[:1].expand_as(v) if v.ndim else v for name, v in covariance.items()}
    return sd.GaussianMixture(means, **covariance, weights=_weights(weights, components))


@recipe
def random_gaussian(
    kind: str,
    shape: tuple[int, ...],
    *,
    away: float = 2.0,
    width: float = 1.0,
    condition: float = 10.0,
    seed: int = 0,
) -> sd.Gaussian:
    """One component of `random_mixture`, its mean `away/sqrt(2)` from zero in each coordinate (root mean square)."""
    means, covariance = _law(kind, 1, shape, width, condition, seed)
    one = {name.removesuffix("s"): v[0] if v.ndim else v for name, v in covariance.items()}
    return sd.Gaussian(away * means[0], **one)


def _law(
    kind: str, count: int, shape: tuple[int, ...], width: float, condition: float, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Means `[K, *S]` for `apart=1`, and the arguments that give a mixture its covariances."""
    dim = math.prod(shape)
    rank = min(2, dim)
    columns = {"full": dim, "degenerate": dim, "low-rank": rank, "low-rank+diagonal": rank}.get(kind, 0)
    drawn = _numbers(seed, count, dim * (1 + columns))  # all from one stream: a call costs more than its numbers
    means = drawn[:, :dim].reshape(count, *shape) / math.sqrt(2)
    return means, _covariance(kind, drawn[:, dim:].reshape(count, dim, columns), means.shape, width, condition)


def _covariance(kind: str, turns: Tensor, shape: torch.Size, width: float, condition: float) -> dict[str, Tensor]:
    count, dim, columns = turns.shape
    stds = width * _falling(dim, condition)
    # another order of the coordinates for each component
    mixed = torch.stack([stds.roll(k) for k in range(count)]).reshape(shape)
    axes = torch.linalg.qr(turns)[0] if columns else turns
    match kind:
        case "points":
            return {"stds": torch.zeros((), dtype=_F64)}
        case "isotropic":
            return {"stds": width * _falling(count, condition)}
        case "diagonal":
            return {"stds": mixed}
        case "low-rank":
            return {"factors": width * axes, "stds": stds[-1:].expand(count)}
        case "low-rank+diagonal":
            return {"factors": width * axes, "stds": mixed}
        case "full" | "degenerate":
            root = axes * (stds if kind == "full" else _without_last(stds))
            covs = root @ root.mT
            return {"covs": (covs + covs.mT) / 2}
    raise InvalidArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def _falling(count: int, condition: float) -> Tensor:
    """Standard deviations from 1 down to `condition^(-1/2)`, equally spaced in their logarithms `[count]`."""
    return torch.exp(torch.linspace(0.0, -0.5 * math.log(condition), count, dtype=_F64))


def _without_last(stds: Tensor) -> Tensor:
    return torch.cat([stds[:-1], torch.zeros_like(stds[-1:])])


def _weights(kind: str, count: int) -> Tensor | None:
    match kind:
        case "equal":
            return None
        case "skewed":
            return 10.0 ** -torch.arange(count, dtype=_F64)
        case "tiny":
            return torch.tensor([1.0] * (count - 1) + [1e-300], dtype=_F64)
    raise InvalidArgumentError(f"weights must be one of {', '.join(WEIGHTS)}, got {kind!r}")


@dataclass(frozen=True, repr=False)
class State(Sparse):
    """A state `tensor()` `[B, *S]` in a dtype and a layout: `scale` times its numbers.

    numbers: themselves, row by row, or the seed of unit normals. In the layout 'expanded' all rows are the first.
    """

    shape: tuple[int, ...] = (1, 1)
    numbers: tuple[float, ...] | int = (0.0,)
    scale: float = 1.0
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"

    def tensor(self) -> Tensor:
        """The state itself, made anew at each call."""
        if isinstance(self.numbers, int):
            x = _numbers(self.numbers, *self.shape)
        else:
            x = torch.tensor(self.numbers, dtype=_F64).reshape(self.shape)
        x = (self.scale * x).to(self.dtype)
        return laid_out(x[:1].expand_as(x) if self.layout == "expanded" else x, self.layout)


def laid_out(x: Tensor, layout: str = "contiguous") -> Tensor:
    """x `[B, *S]` with the same values in a new memory of a layout.

    'transposed' has its last dimension outermost, 'strided' leaves a gap after each element, 'expanded' repeats one row
    in place (only where all rows are equal; it is 'contiguous' elsewhere). Raises InvalidArgumentError on other names.
    """
    match layout:
        case "contiguous":
            return x.clone(memory_format=torch.contiguous_format)
        case "transposed":
            return x.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)
        case "strided":
            return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
        case "expanded":
            same = len(x) > 0 and torch.equal(x, x[:1].expand_as(x))
            return x[:1].clone().expand_as(x) if same else laid_out(x)
    raise InvalidArgumentError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


@dataclass(frozen=True, repr=False)
class Observation(Sparse):
    """`y = A data + noise_std noise`, A `[M, D]` given by its rows, or `(M, D)` and a seed: normals over sqrt(D)."""

    rows: tuple[tuple[float, ...], ...] | tuple[int, int] = ((1.0,),)
    noise_std: float = 1.0
    seed: int = 0

    @property
    def matrix(self) -> Tensor:
        """A `[M, D]`, float64."""
        rows: Any = self.rows
        if isinstance(rows[0], int):
            return _numbers(self.seed, *rows) / math.sqrt(rows[1])
        return torch.tensor(rows, dtype=_F64)

    def apply(self, x: Tensor) -> Tensor:
        """`A x` `[B, M]` of x `[B, *S]`, in x's dtype."""
        return x.flatten(1) @ self.matrix.to(x).mT
