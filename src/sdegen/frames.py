r"""Frames: changes of variables `Y = x / scale`, `tau = clock`, in which the reverse process is `dY/dtau = rate Y + N`.

With `y = x/alpha`, `s = sigma/alpha = exp(-lam)` every process has the same reverse family,
`dy = (1 + eta^2) noise ds + eta sqrt(2 s) dw`, and the frames follow from it by the chain rule:

    frame   scale                     clock      rate          N
    DATA    alpha                     lam        -(1+eta^2)    (1+eta^2) data
    NOISE   sigma                     lam        +1            -(1+eta^2) noise
    SIGMA   alpha                     s          0             (1+eta^2) noise
    ANGLE   hypot(alpha sd, sigma)    atan(s/sd) 0             sd/n noise - s/(n sd) data + eta^2 n/sd noise
    FLOW    alpha + sigma             s/(1+s)    0             noise - data + eta^2 (1+s) noise
    TIME    1                         t          0             reverse drift

where `n^2 = s^2 + sd^2`. `spread` is the standard deviation, in x, of the Ito integral over a step, which is exact in
every frame but TIME (there it is Euler-Maruyama's `eta g sqrt(dt)`). docs/mathematics.md derives the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.process import Process
from sdegen.sde import SDE, Level, Model, ReverseSDE
from sdegen.tensors import softplus

if TYPE_CHECKING:
    from typing_extensions import Self

Eta = float | Tensor
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Frame:
    """A frame of the table above; calling one returns it with other options, `ANGLE(sigma_data=0.5)`.

    `variable`, a function of lam, is what N is interpolated in, where that is not the clock: `lambda lam: lam` for
    polynomials in log-SNR, `lambda lam: torch.exp(-lam / 7)` for `(sigma/alpha)^(1/7)`.
    """

    variable: Callable[[Tensor], Tensor] | None = None
    weak_order: ClassVar[int] = 2
    """The weak order that one normal per step allows with the frame's `spread`."""
    exact: ClassVar[tuple[str, ...]] = ()
    """Data on which N is constant along the probability flow: 'point', or 'gaussian' for `N(0, sigma_data^2)`."""

    def __call__(self, **options: Any) -> Self:
        return replace(self, **options)

    def rate(self, eta: Eta) -> Eta:
        """The linear rate of the reverse process."""
        return 0.0

    def scale(self, level: Level) -> Tensor:
        """`x = scale Y`."""
        raise NotImplementedError

    def clock(self, level: Level) -> Tensor:
        """`tau` at a level."""
        return self.tau(level.lam)

    def tau(self, lam: Tensor) -> Tensor:
        """`tau` as a function of lam."""
        raise NotImplementedError

    def pace(self, lam: Tensor) -> Tensor:
        """`dtau/dlam`."""
        raise NotImplementedError

    def lam(self, tau: Tensor) -> Tensor:
        """lam as a function of tau."""
        raise NotImplementedError

    def level(self, process: SDE, tau: Tensor) -> Level:
        """The level of `process` at clock tau."""
        return _linear(process, self).at(self.lam(tau))

    def coordinate(self, level: Level) -> Tensor:
        """Where a node at `level` sits for interpolation: its clock, or `variable(lam)`."""
        return self.clock(level) if self.variable is None else self.variable(level.lam)

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        """`N` as a pair (p, q) of the (data, noise) plane."""
        raise NotImplementedError

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        """The standard deviation, in x at `next`, of the noise gathered from now to next."""
        raise NotImplementedError

    def field(self, model: Model | ReverseSDE, x: Tensor, level: Level, eta: Eta) -> Tensor:
        """`N` at x `[B, *S]`."""
        if isinstance(model, ReverseSDE):
            raise InvalidTypeError(
                f"frame {self} asks for predictions, and a ReverseSDE gives only drift and diffusion: pass the "
                "ScoreModel itself, or use a solver in frame TIME (euler_maruyama(), RungeKutta(..., frame=sd.TIME))"
            )
        return model(x, level, self.want(_linear(model.process, self), level, eta))

    def __repr__(self) -> str:
        chosen = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        options = ", ".join(f"{name}={getattr(value, '__name__', repr(value))}" for name, value in chosen)
        return type(self).__name__.strip("_").upper() + (f"({options})" if options else "")


def check_frame(frame: object) -> None:
    """Raises InvalidTypeError unless `frame` is a Frame."""
    if not isinstance(frame, Frame):
        raise InvalidTypeError(f"frame must be one of sd.DATA, NOISE, SIGMA, ANGLE, FLOW, TIME, got {frame!r}")


def _linear(process: SDE, frame: Frame) -> Process:
    if not isinstance(process, Process):
        raise InvalidTypeError(f"frame {frame} needs a Process with alpha and sigma; {process} has only frame TIME")
    return process


def _half_variance(now: Level, next: Level) -> Tensor:
    """`(s_now^2 - s_next^2) / s_next^2`."""
    return torch.expm1(2 * (next.lam - now.lam))


@dataclass(frozen=True, repr=False)
class _Lam(Frame):
    def clock(self, level: Level) -> Tensor:
        return level.lam

    def tau(self, lam: Tensor) -> Tensor:
        return lam

    def pace(self, lam: Tensor) -> Tensor:
        return torch.ones_like(lam)

    def lam(self, tau: Tensor) -> Tensor:
        return tau


@dataclass(frozen=True, repr=False)
class _Data(_Lam):
    exact = ("point",)

    def rate(self, eta: Eta) -> Eta:
        return -(1 + eta * eta)

    def scale(self, level: Level) -> Tensor:
        return level.alpha

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        zero = torch.zeros_like(level.t)
        return zero + (1 + eta * eta), zero

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        return next.sigma * torch.sqrt(-torch.expm1(-2 * eta * eta * (next.lam - now.lam)))


@dataclass(frozen=True, repr=False)
class _Noise(_Lam):
    exact = ("point",)

    def rate(self, eta: Eta) -> Eta:
        return 1.0

    def scale(self, level: Level) -> Tensor:
        return level.sigma

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        zero = torch.zeros_like(level.t)
        return zero, zero - (1 + eta * eta)

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        return next.sigma * eta * torch.sqrt(_half_variance(now, next))


@dataclass(frozen=True, repr=False)
class _Sigma(Frame):
    exact = ("point",)

    def scale(self, level: Level) -> Tensor:
        return level.alpha

    def clock(self, level: Level) -> Tensor:
        return level.sigma / level.alpha

    def tau(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    def pace(self, lam: Tensor) -> Tensor:
        return -torch.exp(-lam)

    def lam(self, tau: Tensor) -> Tensor:
        return -torch.log(tau)

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        zero = torch.zeros_like(level.t)
        return zero, zero + (1 + eta * eta)

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        return next.sigma * eta * torch.sqrt(_half_variance(now, next))


@dataclass(frozen=True, repr=False)
class _Angle(Frame):
    exact = ("gaussian",)
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < float("inf"):
            raise InvalidArgumentError(f"sigma_data must be positive and finite, got {self.sigma_data}")

    def scale(self, level: Level) -> Tensor:
        return torch.hypot(level.alpha * self.sigma_data, level.sigma)

    def clock(self, level: Level) -> Tensor:
        return torch.atan2(level.sigma, level.alpha * self.sigma_data)

    def tau(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam) / self.sigma_data)

    def pace(self, lam: Tensor) -> Tensor:
        s = torch.exp(-lam) / self.sigma_data
        return -s / (1 + s * s)

    def lam(self, tau: Tensor) -> Tensor:
        return -torch.log(self.sigma_data * torch.tan(tau))

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        s = level.sigma / level.alpha
        n = torch.hypot(s, torch.full_like(s, self.sigma_data))
        return -s / (n * self.sigma_data), self.sigma_data / n + eta * eta * n / self.sigma_data

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        share = (next.sigma / self.scale(next)) ** 2
        return self.scale(next) * eta * torch.sqrt(torch.log1p(share * _half_variance(now, next)))


@dataclass(frozen=True, repr=False)
class _Flow(Frame):
    exact = ("point",)

    def scale(self, level: Level) -> Tensor:
        return level.alpha + level.sigma

    def clock(self, level: Level) -> Tensor:
        return level.sigma / (level.alpha + level.sigma)

    def tau(self, lam: Tensor) -> Tensor:
        return torch.exp(-softplus(lam))

    def pace(self, lam: Tensor) -> Tensor:
        return -torch.exp(-softplus(lam) - softplus(-lam))

    def lam(self, tau: Tensor) -> Tensor:
        return torch.log1p(-tau) - torch.log(tau)

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        one = torch.ones_like(level.t)
        return -one, one + eta * eta * (1 + level.sigma / level.alpha)

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        # int 2 s ds / (1 + s)^2 with r the relative change of 1 + s, so that a short step keeps its digits
        s_now, s_next = now.sigma / now.alpha, next.sigma / next.alpha
        change = s_next * s_next * _half_variance(now, next) / (s_now + s_next)
        r = change / (1 + s_next)
        variance = 2 * (torch.log1p(r) - change / ((1 + s_now) * (1 + s_next)))
        return self.scale(next) * eta * torch.sqrt(variance)


@dataclass(frozen=True, repr=False)
class _Time(Frame):
    weak_order = 1

    def __post_init__(self) -> None:
        if self.variable is not None:
            raise InvalidArgumentError("frame TIME interpolates in its own clock, t; leave variable out")

    def scale(self, level: Level) -> Tensor:
        return torch.ones_like(level.t)

    def clock(self, level: Level) -> Tensor:
        return level.t

    def level(self, process: SDE, tau: Tensor) -> Level:
        return process.level(tau)

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        process = _linear(process, self)
        d_alpha, d_sigma = process.rates(level.t)
        # -(eta^2/2) g^2 score = (eta^2/2) g^2/sigma noise
        return d_alpha, d_sigma + eta * eta * (d_sigma - level.sigma * d_alpha / level.alpha)

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        return eta * torch.sqrt(_linear(process, self).variance_rate(now.t) * (now.t - next.t))

    def field(self, model: Model | ReverseSDE, x: Tensor, level: Level, eta: Eta) -> Tensor:
        return model.drift(x, level.t) if isinstance(model, ReverseSDE) else super().field(model, x, level, eta)


DATA = _Data()
NOISE = _Noise()
SIGMA = _Sigma()
ANGLE = _Angle()
FLOW = _Flow()
TIME = _Time()
