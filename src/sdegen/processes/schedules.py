"""The processes people use, each two functions of t, their rates and the inverse of lam, in closed form.

Every one is the same process in `y = x/alpha`, `s = sigma/alpha`; they differ in the range of s and in the clock.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, check_numbers, strict_keywords
from sdegen.level import END
from sdegen.processes.process import Process
from sdegen.tensors import as_time, length, softplus, tensor

_BETAS = "; betas [T] of discrete steps are sd.DiscreteVP(betas)"


def _check_range(name: str, low: float, high: float, top: float = math.inf) -> None:
    if not 0.0 < low < high < top:
        bound = "finite" if math.isinf(top) else f"below {top:g}"
        raise InvalidArgumentError(f"{name} needs 0 < minimum < maximum, {bound}; got {low} and {high}")


class _ByLogAlpha(Process):
    """Given by log alpha and its derivative; variance preserving, `alpha^2 + sigma^2 = 1`, unless sigma says more."""

    proven = True
    open_ends = (False, False)

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def log_alpha_rate(self, t: Tensor) -> Tensor: ...

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        alpha, d_log = self.alpha(t), self.log_alpha_rate(t)
        return alpha * d_log, -alpha * alpha * d_log / self.sigma(t)


@dataclass(frozen=True)
class _LinearBeta(_ByLogAlpha):
    """`log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2` (Song et al. 2021, eq. 33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(_BETAS, beta_min=self.beta_min, beta_max=self.beta_max, t_min=self.t_min, t_max=self.t_max)
        _check_range("beta", self.beta_min, self.beta_max)
        _check_range("the span of t", self.t_min, self.t_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -t * ((self.beta_max - self.beta_min) * t / 4 + self.beta_min / 2)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        return -((self.beta_max - self.beta_min) * t + self.beta_min) / 2

    def _time_of(self, log_alpha: Tensor) -> Tensor:
        root = torch.sqrt(self.beta_min**2 - 4 * (self.beta_max - self.beta_min) * log_alpha)
        return -4 * log_alpha / (root + self.beta_min)


@strict_keywords
@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving with linear beta: `beta(t) = beta_min + t (beta_max - beta_min)`, `g^2 = beta`.

    `alpha = exp(-1/2 int beta)`, `sigma^2 = 1 - alpha^2` (Song et al. 2021, eq. 11 and 32-33).
    """

    def time(self, lam: Tensor) -> Tensor:
        return self._time_of(-softplus(-2 * lam) / 2)


@strict_keywords
@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP: VP's drift and alpha, `sigma = 1 - alpha^2`, so less noise everywhere (Song et al. 2021, eq. 12)."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        alpha, d_log = self.alpha(t), self.log_alpha_rate(t)
        return alpha * d_log, -2 * alpha * alpha * d_log

    def time(self, lam: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = exp(lam), solved through asinh so that both tails keep their digits
        return self._time_of(-torch.asinh(torch.exp(-lam) / 2))


@strict_keywords
@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: `alpha = 1`, `sigma = sigma_min (sigma_max/sigma_min)^t` (Song et al. 2021, eq. 31)."""

    proven = True
    open_ends = (False, False)

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min = 0.0
    t_max = 1.0

    def __post_init__(self) -> None:
        check_numbers(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _check_range("sigma", self.sigma_min, self.sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return torch.zeros_like(t), self.sigma(t) * self._log_ratio

    def time(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self._log_ratio


@strict_keywords
@dataclass(frozen=True)
class EDM(Process):
    """`alpha = 1`, `sigma = t` (Karras et al. 2022, table 1)."""

    proven = True
    open_ends = (False, False)

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_numbers(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _check_range("sigma", self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@strict_keywords
@dataclass(frozen=True)
class Cosine(_ByLogAlpha):
    """`alpha = cos(u)/cos(u_0)`, `u = (pi/2) (t + s)/(1 + s)` (Nichol & Dhariwal 2021, eq. 17), variance preserving.

    t_max stops short of 1, where alpha is zero (0.9946, as DPM-Solver does: Lu et al. 2022, app. D.4).
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        check_numbers(s=self.s, t_min=self.t_min, t_max=self.t_max)
        _check_range("the span of t", self.t_min, self.t_max, 1.0)
        if not 0.0 <= self.s < 1.0:
            raise InvalidArgumentError(f"the offset s must be in [0, 1), got {self.s}")

    @property
    def _scale(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def log_alpha(self, t: Tensor) -> Tensor:
        # cos(u)/cos(u0) = 1 - 2 sin((u+u0)/2) sin((u-u0)/2)/cos(u0): keeps sigma's digits near t = 0
        u, start = (t + self.s) * self._scale, self.s * self._scale
        return torch.log1p(-2 * torch.sin((u + start) / 2) * torch.sin((u - start) / 2) / math.cos(start))

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        return -self._scale * torch.tan((t + self.s) * self._scale)

    def time(self, lam: Tensor) -> Tensor:
        # sin(u) from 1 - cos^2(u0) alpha^2 = sigma^2 + sin^2(u0) alpha^2, so that small angles keep their digits
        log_alpha, log_sigma = -softplus(-2 * lam) / 2, -softplus(2 * lam) / 2
        start = self.s * self._scale
        alpha = log_alpha.exp()
        u = torch.atan(length(log_sigma.exp(), math.sin(start) * alpha) / (math.cos(start) * alpha))
        return u / self._scale - self.s


@strict_keywords
@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow: `alpha = 1 - t`, `sigma = t` (Liu et al. 2022; Lipman et al. 2022, eq. 22 with t reversed)."""

    proven = True

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(t_min=self.t_min, t_max=self.t_max)
        if not 0.0 <= self.t_min < self.t_max <= 1.0:
            raise InvalidArgumentError(f"the span of t needs 0 <= t_min < t_max <= 1, got {self.t_min}, {self.t_max}")

    @property
    def open_ends(self) -> tuple[bool, bool]:
        """t = 1 and t = 0."""
        return self.t_max == 1.0, self.t_min == 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-softplus(lam))


@strict_keywords
@dataclass(frozen=True, eq=False)
class DiscreteVP(_ByLogAlpha):
    """A DDPM's T discrete betas as a continuous process: `alpha_i^2 = prod_{j<=i} (1 - beta_j)` at `t = (i + 1)/T`.

    Between its T points lam is linear in t. A network trained on the index i = 0..T-1 takes
    `time=sd.model.index_time(T)`.

    Args:
        betas: `[T]`; 1e-4 to 0.02 in a line over T = 1000 unless given.
        zero_snr: whether the last beta is 1, so that no signal is left at t = 1 (Lin et al. 2024, sec. 3.1). The
            network must predict data or v there. In the last cell alpha/sigma is linear in t, as lam ends at -inf.

    Raises:
        InvalidArgumentError: betas that are not in (0, 1), or look like alphas_cumprod.
        InvalidTypeError: betas that are no numbers, as the scheduler of a library.

    Source: Ho et al. (2020), sec. 4.
    """

    betas: Tensor | None = None
    zero_snr: bool = False
    lams: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given: Any = self.betas
        if given is None:
            given = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")
        tensor("betas", given)  # refuses what is none; gradients flow from the betas themselves
        betas = as_time(given)
        inner = betas[:-1] if self.zero_snr and betas.ndim == 1 else betas
        if betas.ndim != 1 or len(betas) < 2 or not bool(((inner > 0) & (inner < 1)).all()):
            raise InvalidArgumentError(
                "betas must be one dimension of at least two numbers in (0, 1) (DiscreteVP() has a thousand); where "
                "the last one is 1 (zero terminal SNR) there is no signal left: say zero_snr=True for a network that "
                "predicts v or data, or set it below 1, as 0.9999. Got "
                f"{list(betas.shape)}" + (f" from {betas.min():g} to {betas.max():g}" if betas.numel() else "")
            )
        if self.zero_snr and float(betas[-1]) != 1.0:
            raise InvalidArgumentError(f"zero_snr=True needs a last beta of 1, got {float(betas[-1]):g}: leave it out")
        if float(betas[0]) > max(0.5, float(betas[-1])):
            raise InvalidArgumentError(
                f"betas fall from {float(betas[0]):g} to {float(betas[-1]):g}, which looks like alphas_cumprod: betas "
                "are 1 - alphas_cumprod[i] / alphas_cumprod[i - 1]"
            )
        object.__setattr__(self, "betas", betas.detach().cpu().clone())
        log_alpha = torch.cumsum(torch.log1p(-betas), 0).cpu() / 2
        lams = log_alpha - torch.log(-torch.expm1(2 * log_alpha)) / 2
        object.__setattr__(self, "lams", lams.clamp(min=math.log(END)) if self.zero_snr else lams)

    def __repr__(self) -> str:
        return f"DiscreteVP({self.steps} betas{', zero_snr=True' if self.zero_snr else ''})"

    @property
    def open_ends(self) -> tuple[bool, bool]:  # type: ignore[override]
        """Whether there is no signal at t = 1; there is noise at t = 1/T."""
        return self.zero_snr, False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiscreteVP) and torch.equal(self.lams, other.lams)

    def __hash__(self) -> int:
        return hash((self.steps, float(self.lams[0]), float(self.lams[-1])))

    @property
    def steps(self) -> int:
        """T, the number of discrete steps."""
        return len(self.lams)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    def _cell(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The lam at the left knot of cell `index`, and its rise over the cell."""
        table = self.lams.to(index.device)
        left = torch.take(table, index)  # indexing by a scalar tensor would read it on the host
        return left, torch.take(table, index + 1) - left

    def _split(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t * self.steps - 1
        index = position.detach().floor().long().clamp(0, self.steps - 2)
        return index, position - index

    def lam(self, t: Tensor) -> Tensor:
        """`log(alpha/sigma)` at t, linear between the T points."""
        index, part = self._split(t)
        left, rise = self._cell(index)
        if not self.zero_snr:
            return left + part * rise
        last = torch.log1p(-part.clamp(max=1.0)).clamp(min=math.log(END) - left)
        return left + torch.where(index == self.steps - 2, last, part * rise)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -softplus(-2 * self.lam(t)) / 2

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(-softplus(2 * self.lam(t)) / 2)

    def log_alpha_rate(self, t: Tensor) -> Tensor:
        index, part = self._split(t)
        rise = self._cell(index)[1]
        if self.zero_snr:
            rise = torch.where(index == self.steps - 2, -1 / (1 - part).clamp(min=END), rise)
        return rise * self.steps * torch.exp(-softplus(2 * self.lam(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if not self.zero_snr:
            return super().rates(t)
        t = as_time(t)
        index, _ = self._split(t)
        fall = -self.steps * self._cell(index)[0].exp() * self.sigma(t) ** 3  # finite where alpha is 0, as lam' is not
        d_alpha = torch.where(index == self.steps - 2, fall, self.alpha(t) * self.log_alpha_rate(t))
        return d_alpha, -self.alpha(t) * d_alpha / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        falling = -self.lams.to(lam.device)
        index = torch.searchsorted(falling, -lam.detach().contiguous()).sub(1).clamp(0, self.steps - 2)
        left, rise = self._cell(index)
        part = (lam - left) / rise
        if self.zero_snr:
            part = torch.where(index == self.steps - 2, -torch.expm1((lam - left).clamp(max=0.0)), part)
        return (index + part + 1) / self.steps
