r"""How much noise a step adds: eta as a number, or as a function of the step, `eta(now, next)`.

In the data frame the reverse family is `dY/dlam = -(1 + eta^2)(Y - data)` and noise, so a step knows eta only through

    Lambda(next) - Lambda(now) = int (1 + eta^2) dlam,

and the constant eta with the same integral has the same linear part and the same noise. A function of the level thus
enters a step as its root mean square over the step, exactly; what is left of its shape is how it weighs the change of
N inside of the step, for which `LevelEta` gives Lambda itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, check_positive, strict_keywords
from sdegen.level import Level, points
from sdegen.processes.sde import check_eta
from sdegen.tensors import readable

Eta = float | Tensor
EtaFunction = Callable[[Level, Level], Tensor]


class StepEta(ABC):
    """An eta of the step, `eta(now, next)`, that takes levels `[]`, `[B]`, or all steps of a grid at once, `[n]`."""

    @abstractmethod
    def __call__(self, now: Level, next: Level) -> Tensor:
        """eta, of the levels' shape."""


class LevelEta(StepEta):
    """An eta that changes inside of a step: Lambda and its derivative `1 + eta^2`, as functions of lam."""

    @abstractmethod
    def integral(self, lam: Tensor) -> Tensor:
        """`Lambda`, up to a constant."""

    @abstractmethod
    def gain(self, lam: Tensor) -> Tensor:
        """`1 + eta^2`."""


@dataclass(frozen=True)
class EachStep(StepEta):
    """A user's function of one step, asked step by step where there are several."""

    eta: EtaFunction

    def __call__(self, now: Level, next: Level) -> Tensor:
        values: list[Any] = [self.eta(*step) for step in zip(points(now), points(next))]
        for value in values:
            if not torch.is_tensor(value):
                check_eta(value)
            elif value.ndim == 0 and readable(value):
                check_eta(float(value.detach()))
        return torch.stack([torch.as_tensor(value, dtype=now.t.dtype, device=now.t.device) for value in values])


def check_posterior_eta(eta: float) -> None:
    """Raises InvalidArgumentError unless eta is in [0, 1]."""
    check_eta(eta)
    if eta > 1:
        raise InvalidArgumentError(f"this eta must be in [0, 1], got {eta}: more noise than the posterior has")


def check_window(low: float, high: float) -> None:
    """Raises InvalidArgumentError unless `0 <= low < high`."""
    if not 0 <= low < high:
        raise InvalidArgumentError(f"a window needs 0 <= low < high, got low={low}, high={high}")


def is_zero(rate: Eta) -> bool:
    """Whether a rate or an eta is the number 0, which needs no tensor to be seen."""
    return isinstance(rate, float) and rate == 0.0


def eta_of_step(eta: Eta | EtaFunction, now: Level, next: Level) -> Eta:
    """eta of the step from now to next, whether it is a number or a function of the step."""
    return eta(now, next) if callable(eta) else eta


def _length(now: Level, next: Level) -> Tensor:
    """The step in lam, 1 for a step of no length, in which eta means nothing."""
    h = next.lam - now.lam
    return torch.where(h == 0, 1.0, h)


@strict_keywords
@dataclass(frozen=True)
class DDIMEta(StepEta):
    """DDIM's own eta as a step's eta: noise of `eta` times the posterior's std (Song, Meng & Ermon 2021, eq. 16).

    `1 - exp(-2 e^2 h) = eta^2 (1 - exp(-2 h))` solved for e; the two agree at 0 and 1.
    """

    eta: float

    def __post_init__(self) -> None:
        check_posterior_eta(self.eta)

    def __call__(self, now: Level, next: Level) -> Tensor:
        h = _length(now, next)
        if self.eta == 1.0:
            return torch.ones_like(h)  # of a long step the formula would take the logarithm of 0
        return torch.sqrt(-torch.log1p(self.eta**2 * torch.expm1(-2 * h)) / (2 * h))


@strict_keywords
@dataclass(frozen=True)
class WindowEta(StepEta):
    """`eta` in steps whose middle, in lam, has `low <= sigma/alpha <= high`, 0 in the others.

    SA-Solver's piecewise constant tau (Xue et al. 2023, sec. 6.1). Every eta has the same marginals, so no step needs
    to be cut where the window ends.
    """

    eta: float = 1.0
    low: float = 0.05
    high: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_window(self.low, self.high)

    def __call__(self, now: Level, next: Level) -> Tensor:
        s = torch.exp(-(now.lam + next.lam) / 2)
        return self.eta * ((s >= self.low) & (s <= self.high)).to(s.dtype)


@strict_keywords
@dataclass(frozen=True)
class ERSDEEta(LevelEta):
    """The noise of ER-SDE's fifth scale, `phi(s) = s (exp(s^power) + shift)`, by `1 + eta^2 = dlog phi/dlog s`.

    `eta^2 = power s^power e^{s^power} / (e^{s^power} + shift)`: most noise where s is large, next to none at the end.
    The defaults are those of Cui et al. 2023 (ER SDE 5).
    """

    power: float = 0.3
    shift: float = 10.0

    def __post_init__(self) -> None:
        check_positive(power=self.power)
        if not 0 <= self.shift < float("inf"):
            raise InvalidArgumentError(f"shift must be finite and >= 0, got {self.shift}")

    def __call__(self, now: Level, next: Level) -> Tensor:
        h = _length(now, next)
        return torch.sqrt(((self.integral(next.lam) - self.integral(now.lam)) / h - 1).clamp(min=0.0))

    def integral(self, lam: Tensor) -> Tensor:
        """`Lambda = -log phi` (phi falls as lam grows), without overflow for large s."""
        u = torch.exp(-self.power * lam)
        return lam - u - torch.log1p(self.shift * torch.exp(-u))

    def gain(self, lam: Tensor) -> Tensor:
        """`1 + eta^2`."""
        u = torch.exp(-self.power * lam)
        return 1 + self.power * u / (1 + self.shift * torch.exp(-u))


def sigma_clock(level: Level) -> Tensor:
    """`(sigma/alpha)^2`, in which a step's exact Ito integral in the frames SIGMA and NOISE is Brownian, at any eta."""
    return torch.exp(-2 * level.lam)


def data_clock(level: Level, eta: float | LevelEta = 1.0) -> Tensor:
    """`(alpha/sigma)^(2 eta^2)`, in which a step's exact Ito integral in the frame DATA is Brownian.

    eta is a number, or a function of the level with its integral, `ERSDEEta()`: `exp(2 int eta^2 dlam)`.
    """
    lam = level.lam
    return torch.exp(2 * ((eta.integral(lam) - lam) if callable(eta) else eta * eta * lam))
