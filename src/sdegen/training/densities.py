"""At which noise a network is trained, and how often: densities of levels, and data noised to levels of one.

A density is its quantile function: the level below which a share u of the training lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, check_numbers, check_positive, strict_keywords
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.model import Model
from sdegen.tensors import as_time, check_state, check_type, check_whole

_LEAST = 1e-9  # of a density, within a span: less has no digits left
# Streams of noise, which no step of a solver and no law has: their second word makes a NaN of the time.
_NOISE, _TIMES = (3, 0xFFFFFFFF, 0, 0), (4, 0xFFFFFFFF, 0, 0)


class Density(Protocol):
    """A quantile function of levels."""

    def __call__(self, process: Process, u: Tensor) -> Level:
        """The levels `[B]` of a process at uniform numbers u `[B]` in [0, 1), float64."""
        ...


@strict_keywords
@dataclass(frozen=True)
class Uniform:
    """Uniform times in `[t_min, t_max]`; on a process of T discrete steps, its T times `(i + 1)/T`."""

    def __call__(self, process: Process, u: Tensor) -> Level:
        """The levels `[B]` at u `[B]`."""
        if process.steps is not None:
            return process.level(((u * process.steps).floor() + 1) / process.steps)
        return process.level(process.t_min + u * (process.t_max - process.t_min))


@strict_keywords
@dataclass(frozen=True)
class UniformLogSNR:
    """Uniform `lam = log(alpha/sigma)`, from that at t_max to that at t_min (next to an end that has no noise)."""

    def __call__(self, process: Process, u: Tensor) -> Level:
        """The levels `[B]` at u `[B]`."""
        low, high = process.edges
        return process.at(low + u * (high - low))


@strict_keywords
@dataclass(frozen=True)
class Ladder:
    """A geometric ladder: n levels, `sigma/alpha` falling by one factor from that at t_max to that at t_min.

    Args:
        n: how many; 10 of them span a factor 100 in Song & Ermon (2019), sec. 4.4.

    Raises:
        InvalidArgumentError: n is no whole number above 1.
    """

    n: int = 10

    def __post_init__(self) -> None:
        check_whole("n", self.n)
        if self.n < 2:
            raise InvalidArgumentError(f"a ladder has at least 2 levels, got n={self.n}; one Level is levels=level")

    def __call__(self, process: Process, u: Tensor) -> Level:
        """The levels `[B]` at u `[B]`."""
        low, high = process.edges
        return process.at(low + (u * self.n).floor() / (self.n - 1) * (high - low))


@strict_keywords
@dataclass(frozen=True)
class LogNormal:
    """Log-normal `s = sigma/alpha`, within the process's span: `log s = mean + std z`.

    EDM's is (-1.2, 1.2). As `log s = logit t` on a `Flow`, the logit-normal times of Esser et al. (2024), eq. 19, are
    `LogNormal(mean, std)` with their numbers, (0, 1) by default there.

    Args:
        mean, std: of log s.

    Raises:
        InvalidTypeError: they are no numbers.
        InvalidArgumentError: std is not positive.

    Source: Karras et al. (2022), table 1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(mean=self.mean, std=self.std)
        check_positive(std=self.std)

    def __call__(self, process: Process, u: Tensor) -> Level:
        """The levels `[B]` at u `[B]`."""
        span = torch.special.ndtr((-process.edges - self.mean) / self.std)
        high, low = as_time(span)
        if not float(high - low) > _LEAST:
            raise InvalidArgumentError(f"{self} has no level within the span of {process}: choose another mean")
        z = torch.special.ndtri(low + u * (high - low))
        return process.at(-(self.mean + self.std * z))


def noised(
    model: Model, data: Tensor, levels: Density | Level, seed: int, lattice: bool = True
) -> tuple[Level, Tensor, Tensor]:
    """Levels, `x = alpha data + sigma noise` and the noise `[B, *S]`: a function of (seed, sample)."""
    check_type(model, Model, "model must be a ScoreModel, or a map of one")
    check_state(data, "data", "")
    seeds = noises.seeds(seed, data.shape[0], device=data.device)
    level = drawn(model, levels, data.shape[0], seed, lattice)
    if level.t.ndim and level.t.shape != data.shape[:1]:
        raise InvalidArgumentError(
            f"levels must be one, or one for each of {data.shape[0]} samples; got {list(level.t.shape)}"
        )
    noise = noises.normals(seeds, tuple(data.shape[1:]), _NOISE, dtype=data.dtype)
    return level, model.process.perturb(data, level, noise), noise


def drawn(model: Model, levels: Density | Level, count: int, seed: int, lattice: bool) -> Level:
    """The levels of a batch: those given, or quantiles of the density at uniform numbers."""
    if isinstance(levels, Level):
        return levels
    if lattice:
        first = (noises.philox(noises.halves(seed), _TIMES)[0] + 0.5) * 2.0**-32
        u = (first + torch.arange(count, dtype=torch.float64, device="cpu") / max(1, count)) % 1.0
    else:
        u = (noises.philox(noises.halves(noises.seeds(seed, count)), _TIMES)[0].double() + 0.5) * 2.0**-32
    return levels(model.process, u)
