"""One point of a process."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, check_numbers


class Level(NamedTuple):
    """One point of a process: time, signal scale and noise scale, each `[]` or `[B]`, float64."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """Half the log signal-to-noise ratio, `lam = log(alpha / sigma)`."""
        return torch.log(self.alpha / self.sigma)


END = 1e-9
"""What stands for a scale that is zero beside the other: a process may begin without signal and end without noise."""
ENDLESS, _PLACE = 18.0, 8.0
EDGE = math.log(1000)
"""The log-SNR next to an end without signal or noise, where methods that take no such end begin or stop."""


def placed(lam: Tensor, place: float = _PLACE) -> Tensor:
    """lam as a place among others: where there is no signal, or no noise, no farther than where neither changes."""
    return torch.where(lam.abs() > ENDLESS, torch.sign(lam) * place, lam)


def is_end(level: Level) -> tuple[bool, bool]:
    """Whether one level `[]`, readable on the host, is without signal, and whether it is without noise."""
    alpha, sigma = float(level.alpha.detach()), float(level.sigma.detach())
    return alpha <= 2 * END * sigma, sigma <= 2 * END * alpha


def points(levels: Level) -> list[Level]:
    """The single levels of one with fields `[n]`."""
    t, alpha, sigma = levels
    return list(map(Level, t.unbind(), alpha.unbind(), sigma.unbind()))


def check_level(level: object) -> None:
    """Raises InvalidTypeError unless `level` is a Level."""
    if not isinstance(level, Level):
        raise InvalidTypeError(f"level must be a Level, got {level!r}: write process.level(t), or process.at(lam)")


def check_span(t_min: float, t_max: float) -> None:
    check_numbers(t_min=t_min, t_max=t_max)
    if not -float("inf") < t_min < t_max < float("inf"):
        raise InvalidArgumentError(f"the span needs finite t_min < t_max, got t_min={t_min}, t_max={t_max}")
