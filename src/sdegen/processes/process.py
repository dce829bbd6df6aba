r"""Linear-Gaussian processes: two functions give `x_t = alpha(t) data + sigma(t) noise`, and all else follows.

    f = (alpha'/alpha) x,   g^2 = 2 sigma^2 (sigma'/sigma - alpha'/alpha) = -2 sigma^2 dlam/dt,  lam = log(alpha/sigma)

(Song et al. 2021, eq. 29; Lu et al. 2022, sec. 2.1; Karras et al. 2022, app. B).
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import EDGE, END, Level, check_level, check_span, is_end, placed
from sdegen.processes.sde import SDE
from sdegen.tensors import as_time, check_type, combine, like, readable

_LEAST = 1e-150
"""Below it the square of a scale is no number."""


class Process(SDE):
    """A linear-Gaussian SDE, given by `alpha(t)` and `sigma(t)`; a new process writes these two functions alone.

    Both take and return float64 tensors `[]` or `[B]`; alpha, sigma > 0 and `alpha/sigma` falls from t_min to t_max.
    alpha may be zero at t_max, and sigma at t_min: such an end is a level like others, and solvers go from it or to it.
    """

    t_min: float = 1e-3
    noise_type = "diagonal"
    gaussian = True
    exact_transitions = True
    proven = False

    @property
    def open_ends(self) -> tuple[bool, bool]:
        """Whether alpha is zero at t_max, and whether sigma is zero at t_min."""
        if self.proven:
            return False, False
        return is_end(self.level(self.t_max))[0], is_end(self.level(self.t_min))[1]

    @property
    def edges(self) -> Tensor:
        """The log-SNRs `[2]` at t_max and t_min, or next to such ends, where methods that take none begin or stop."""
        return placed(self.level(as_time([self.t_max, self.t_min])).lam, EDGE)

    @property
    def steps(self) -> int | None:
        """The number of discrete steps that it was made of, None where there are none."""
        return None

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The signal scale at t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The noise scale at t."""

    def level(self, t: Tensor | float) -> Level:
        """The level at time t `[]` or `[B]`, in `[t_min, t_max]`; index i of T training steps is the time `(i + 1)/T`.

        Raises InvalidArgumentError for whole numbers beyond the span: indices are no times.
        """
        if type(t) is Tensor and not t.is_floating_point():
            _check_times(self, t)
        t = as_time(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        if type(alpha) is not Tensor or type(sigma) is not Tensor:
            _check_tensors(alpha, sigma)
        # zero has no logarithm; the law moves by less than the rounding of a float32 state
        least, faint = (END * sigma).to(alpha.dtype), (END * alpha).to(sigma.dtype)
        return Level(t, torch.where(alpha == 0, least, alpha), torch.where(sigma == 0, faint, sigma))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(alpha', sigma')` at t, by forward-mode automatic differentiation unless a process knows better."""
        t = as_time(t).clone()  # forward-mode AD refuses expanded tensors
        one = torch.ones_like(t)
        alpha, sigma = (torch.func.jvp(f, (t,), (one,))[1] for f in (self.alpha, self.sigma))
        return alpha, sigma

    def time(self, lam: Tensor) -> Tensor:
        """The time at which `log(alpha/sigma) = lam`; by bisection on the span unless a process knows better."""
        low, high = torch.full_like(lam, self.t_min), torch.full_like(lam, self.t_max)
        for _ in range(64):
            middle = (low + high) / 2
            before = self.level(middle).lam > lam
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        found = (low + high) / 2
        own = self.level(found).lam
        if not (torch.is_grad_enabled() and (own.requires_grad or lam.requires_grad)):
            return found
        # a step of Newton's method, of no length but with the derivatives that halving has not
        level, (d_alpha, d_sigma) = self.level(found), self.rates(found)
        slope = (d_alpha / level.alpha - d_sigma / level.sigma).detach()
        return found.detach() - (self.level(found.detach()).lam - lam) / slope

    def at(self, lam: Tensor | float) -> Level:
        """The level at which `log(alpha/sigma) = lam`, lam `[]` or `[B]`."""
        return self.level(self.time(as_time(lam)))

    def share(self, level: Level, span: tuple[float, float]) -> Tensor:
        """Where a level lies between two times, 0 at the first and 1 at the last, in log-SNR."""
        low, high = self._noisiness(span)
        share: Tensor = (-placed(level.lam) - low) / (high - low)
        return share

    def at_share(self, share: Tensor, span: tuple[float, float]) -> Level:
        """The level at a share `[n]` of the way between two times, in log-SNR."""
        low, high = self._noisiness(span)
        return self.at(-(low + share * (high - low)))

    def _noisiness(self, span: tuple[float, float]) -> Tensor:
        """`-lam` at two times, `[2]`."""
        return -placed(self.level(torch.tensor(span, dtype=torch.float64, device="cpu")).lam)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """`(alpha'/alpha) x`."""
        t = as_time(t)
        return like(self.rates(t)[0] / self.alpha(t), x) * x

    def variance_rate(self, t: Tensor) -> Tensor:
        """`g(t)^2 = 2 sigma (sigma' - sigma alpha'/alpha)`, `[]` or `[B]`."""
        t = as_time(t)
        level, (d_alpha, d_sigma) = self.level(t), self.rates(t)
        return 2 * level.sigma * (d_sigma - level.sigma * d_alpha / level.alpha)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """`g(t)`, `[]` or `[B]`, in x's dtype."""
        return self.variance_rate(t).sqrt().to(x.dtype)

    def divergence(self, x: Tensor, t: Tensor) -> None:
        """None: g does not depend on x."""

    def prior(self, seeds: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """`sigma(t_max) noise`, `[B, *S]`: the law at t_max but for the data's part, alpha(t_max) of its scale."""
        z = noises.normals(seeds, tuple(shape), (0, 0, 0, 0), dtype=dtype)
        return like(self.sigma(as_time(self.t_max)), z) * z

    def perturb(self, data: Tensor, level: Level, noise: Tensor) -> Tensor:
        """`x_t = alpha data + sigma noise`, all `[B, *S]`. Raises where shapes or dtypes differ."""
        check_level(level)
        if data.shape != noise.shape or data.dtype != noise.dtype or not data.is_floating_point():
            raise InvalidArgumentError(
                f"data and noise must be floating, of one shape and dtype; got {list(data.shape)} of {data.dtype} and "
                f"{list(noise.shape)} of {noise.dtype}"
            )
        return combine((level.alpha, data), (level.sigma, noise)).to(data.dtype)

    def transition(self, now: Level, next: Level) -> tuple[Tensor, Tensor]:
        """`(a, s)` of the forward kernel `x_next = a x_now + s noise`, each `[]` or `[B]`.

        `a = alpha_next/alpha_now`, `s^2 = sigma_next^2 - a^2 sigma_now^2`, without its cancellation.

        Raises:
            InvalidArgumentError: next is before now.
            InvalidTypeError: now or next is no Level.

        Source: Kingma et al. (2021), app. A.
        """
        check_level(now)
        check_level(next)
        if readable(now.t) and readable(next.t) and bool((next.t < now.t).any()):
            raise InvalidArgumentError(
                f"the forward kernel runs from data to noise: now.t={now.t.tolist()} must not be after "
                f"next.t={next.t.tolist()}; swap the levels"
            )
        return self.kernel(now, next)

    def kernel(self, now: Level, next: Level) -> tuple[Tensor, Tensor]:
        """`transition` without its check, for the inside of loops."""
        return next.alpha / now.alpha, next.sigma * torch.sqrt(-torch.expm1(2 * (next.lam - now.lam)))

    def transit(self, x: Tensor, now: Level, next: Level, z: Tensor) -> Tensor:
        """`a x + s z` by the forward kernel."""
        a, s = self.kernel(now, next)
        return like(a, x) * x + like(s, x) * z

    @staticmethod
    def from_functions(  # type: ignore[override]
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> Process:
        """A process from its two functions of t; rates and levels are derived (automatic differentiation, bisection).

        Args:
            alpha, sigma: functions of t `[...] -> [...]`, of torch's functions.
            t_min, t_max: the span; data are at t_min.

        Raises:
            InvalidArgumentError: alpha or sigma is not positive, or `alpha/sigma` does not fall with t.
            InvalidTypeError: alpha or sigma does not return a tensor.
        """
        process = _FunctionProcess(alpha, sigma, t_min, t_max)
        check_process(process)
        return process


@dataclass(frozen=True)
class _FunctionProcess(Process):
    a: Callable[[Tensor], Tensor]
    s: Callable[[Tensor], Tensor]
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        check_span(self.t_min, self.t_max)

    def alpha(self, t: Tensor) -> Tensor:
        return self.a(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.s(t)


def linear_gaussian(process: SDE, what: object, advice: str = "") -> Process:
    """The process, or InvalidTypeError unless it has the alpha and sigma that `what` needs."""
    if not process.gaussian:
        raise InvalidTypeError(f"{what} needs a Process with alpha and sigma, got {process}{advice}")
    return process  # type: ignore[return-value]


def _check_tensors(alpha: object, sigma: object) -> None:
    """Raises InvalidTypeError unless the two functions of t returned tensors."""
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        check_type(value, Tensor, f"{name}(t) must return a tensor like t", "; use torch's functions of t")


def check_process(process: Any) -> None:
    """Raises InvalidArgumentError unless, over its span, alpha and sigma are positive and alpha/sigma falls."""
    with torch.no_grad():
        t = torch.linspace(process.t_min, process.t_max, 129, dtype=torch.float64, device="cpu")
        own = {"alpha": process.alpha(t), "sigma": process.sigma(t)}
        _check_tensors(**own)
        for name, value in own.items():
            if value.shape not in ((), t.shape):
                raise InvalidArgumentError(
                    f"{name}(t) must have t's shape, {list(t.shape)}, got {list(value.shape)}; a constant is "
                    "torch.full_like(t, c)"
                )
        level = process.level(t)
    if readable(level.alpha) and readable(level.sigma):
        with contextlib.suppress(RuntimeError):  # of a function that forward-mode differentiation cannot trace
            _check_rates(process, t, own)
        for name, value in own.items():
            negative = value.expand_as(t) < 0
            if bool(negative.any()):
                raise _unfit(process, name, t, value.expand_as(t), negative)
        check_levels(process, level)


def _check_rates(process: Any, t: Tensor, values: Mapping[str, Tensor]) -> None:
    """Raises InvalidArgumentError where a function changes with t and has no rate: a look-up, or detached."""
    for (name, value), rate in zip(values.items(), process.rates(t)):
        if bool((value != value.flatten()[:1]).any()) and not bool(rate.any()):
            raise InvalidArgumentError(
                f"{name}(t) changes with t, and its derivative is 0: it looks values up in a table, rounds t, or is "
                "detached; interpolate, or for a table of betas use sd.DiscreteVP(betas)"
            )


def _check_times(process: Process, t: Tensor) -> None:
    """Raises InvalidArgumentError unless whole numbers, if they can be read, are times of the process."""
    if readable(t) and bool(((t < process.t_min) | (t > process.t_max)).any()):
        raise InvalidArgumentError(
            f"times of {process} are in [{process.t_min:g}, {process.t_max:g}], got whole numbers up to "
            f"{int(t.max())}: index i of T training steps is the time (i + 1)/T"
        )


def check_levels(process: Process, level: Level) -> None:
    """Raises InvalidArgumentError unless alpha and sigma are positive and alpha/sigma falls with t, level `[n]`."""
    for name, values in (("alpha", level.alpha), ("sigma", level.sigma)):
        bad = ~(values > _LEAST) | ~(values < 1 / _LEAST)
        if bool(bad.any()):
            raise _unfit(process, name, level.t, values, bad)
    order = level.t.argsort()
    if bool((level.lam[order].diff() >= 0).any()):
        raise InvalidArgumentError(f"{process}: alpha(t)/sigma(t) must fall strictly as t grows; it does not")


def _unfit(process: Process, name: str, t: Tensor, values: Tensor, bad: Tensor) -> InvalidArgumentError:
    """The error for values `[n]` of alpha or sigma of which some are bad."""
    return InvalidArgumentError(
        f"{process} has {name}({float(t[bad][0]):g}) = {float(values[bad][0]):g}; it must be positive and finite (its "
        "square too) on the levels used: choose t_min and t_max inside (the last denoising step is taken in one go)"
    )
