r"""Frames: changes of variables `Y = x / scale`, `tau = clock`, in which the reverse process is `dY/dtau = rate Y + N`.

With `y = x/alpha`, `s = sigma/alpha = exp(-lam)` every process has the same reverse family,
`dy = (1 + eta^2) noise ds + eta sqrt(2 s) dw`, and the frames follow from it by the chain rule:

    frame   scale                     clock      rate          N
    DATA    alpha                     lam        -(1+eta^2)    (1+eta^2) data
    NOISE   sigma                     lam        +1            -(1+eta^2) noise
    SIGMA   alpha                     s          0             (1+eta^2) noise
    ANGLE   hypot(alpha sd, sigma)    atan(s/sd) 0             sd/n noise - s/(n sd) data + eta^2 n/sd noise
    FLOW    alpha + sigma             s/(1+s)    0             noise - data + eta^2 (1+s) noise
    WIENER  alpha                     -log n     -(1+eta^2)    (1+eta^2) (data - sd^2/s noise)
    TIME    1                         t          0             reverse drift

where `n^2 = s^2 + sd^2`. WIENER's linear part is the exact reverse process, flow and law, of `N(0, sd^2)` data, on
which its N vanishes for every eta; at sd = 0 it is DATA. `spread` is the standard deviation, in x, of the Ito integral
over a step, which is exact in every frame but TIME (there it is Euler-Maruyama's `eta g sqrt(dt)`).
docs/mathematics.md derives the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, check_positive
from sdegen.level import Level
from sdegen.processes.process import Process, linear_gaussian
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import Model
from sdegen.solvers.eta import Eta
from sdegen.solvers.frame import Frame, Pair, drift_of
from sdegen.tensors import length, softplus


def seventh_root(lam: Tensor) -> Tensor:
    """`(sigma/alpha)^(1/7)`, a variable to interpolate N in: Karras et al.'s, in which N varies evenly."""
    return torch.exp(-lam / 7)


def log_snr(lam: Tensor) -> Tensor:
    """lam itself, a variable to interpolate N in where the clock squeezes small levels together."""
    return lam


def _half_variance(now: Level, next: Level) -> Tensor:
    """`(s_now^2 - s_next^2) / s_next^2`."""
    return torch.expm1(2 * (next.lam - now.lam))


@dataclass(frozen=True, repr=False)
class Pulled(Frame):
    """What DATA, WIENER and `Moments` share: `y = x/alpha` is pulled towards what the linear part knows of the data."""

    lawful = scaled = True

    def rate(self, eta: Eta) -> Eta:
        return -(1 + eta * eta)

    def scale(self, level: Level) -> Tensor:
        return level.alpha


@dataclass(frozen=True, repr=False)
class _Lam(Frame):
    endless = True

    def clock(self, level: Level) -> Tensor:
        return level.lam

    def tau(self, lam: Tensor) -> Tensor:
        return lam

    def pace(self, lam: Tensor) -> Tensor:
        return torch.ones_like(lam)

    def lam(self, tau: Tensor) -> Tensor:
        return tau


@dataclass(frozen=True, repr=False)
class _Data(Pulled, _Lam):
    exact = ("point",)
    follows_eta = data_end = True

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        zero = torch.zeros_like(level.t)
        return zero + (1 + eta * eta), zero

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        return next.sigma * torch.sqrt(-torch.expm1(-2 * eta * eta * (next.lam - now.lam)))


@dataclass(frozen=True, repr=False)
class _Noise(_Lam):
    exact = ("point",)
    scaled = True
    noise_end = False

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
    scaled = True
    noise_end = False
    spread = _Noise.spread

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


@dataclass(frozen=True, repr=False)
class _OfWidth(Frame):
    exact = ("gaussian",)
    sigma_data: float = 1.0

    @property
    def data_scale(self) -> float:
        return self.sigma_data

    def __post_init__(self) -> None:
        check_positive(sigma_data=self.sigma_data)


@dataclass(frozen=True, repr=False)
class _Angle(_OfWidth):
    @property
    def tol_share(self) -> float:
        return 0.1 if self.variable is None else 0.8

    def scale(self, level: Level) -> Tensor:
        return length(level.alpha * self.sigma_data, level.sigma)

    def clock(self, level: Level) -> Tensor:
        return torch.atan(level.sigma / (level.alpha * self.sigma_data))

    def tau(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam) / self.sigma_data)

    def pace(self, lam: Tensor) -> Tensor:
        s = torch.exp(-lam) / self.sigma_data
        return -s / (1 + s * s)

    def lam(self, tau: Tensor) -> Tensor:
        return -torch.log(self.sigma_data * torch.tan(tau))

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        s = level.sigma / level.alpha
        n = length(s, self.sigma_data)
        return -s / (n * self.sigma_data), self.sigma_data / n + eta * eta * n / self.sigma_data

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        share = (next.sigma / self.scale(next)) ** 2
        return self.scale(next) * eta * torch.sqrt(torch.log1p(share * _half_variance(now, next)))


@dataclass(frozen=True, repr=False)
class _Wiener(Pulled, _OfWidth):
    endless = True

    def tau(self, lam: Tensor) -> Tensor:
        # log n = log sd + log(1 + (s/sd)^2) / 2
        return -math.log(self.sigma_data) - softplus(-2 * (lam + math.log(self.sigma_data))) / 2

    def pace(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-2 * (lam + math.log(self.sigma_data)))

    def lam(self, tau: Tensor) -> Tensor:
        return -(torch.log(torch.expm1(-2 * (tau + math.log(self.sigma_data)))) / 2 + math.log(self.sigma_data))

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        gain = torch.zeros_like(level.t) + (1 + eta * eta)
        return gain, -gain * self.sigma_data**2 * level.alpha / level.sigma

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        s = next.sigma / next.alpha
        n = length(s, self.sigma_data)
        return next.alpha * n * torch.sqrt(-torch.expm1(-2 * eta * eta * (self.clock(next) - self.clock(now))))


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
    timed = True

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
        d_alpha, d_sigma = linear_gaussian(process, self).rates(level.t)
        # -(eta^2/2) g^2 score = (eta^2/2) g^2/sigma noise
        return d_alpha, d_sigma + eta * eta * (d_sigma - level.sigma * d_alpha / level.alpha)

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        return eta * torch.sqrt(linear_gaussian(process, self).variance_rate(now.t) * (now.t - next.t))

    def asked(self, model: Model | ReverseSDE, level: Level, pair: Callable[[Process], Pair]) -> Any:
        return super().asked(model, level, pair) if model.answers else drift_of


DATA = _Data()
NOISE = _Noise()
SIGMA = _Sigma()
ANGLE = _Angle()
FLOW = _Flow()
WIENER = _Wiener()
TIME = _Time()
