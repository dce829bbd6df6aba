"""One point of a process."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError


class Level(NamedTuple):
    """One point of a process: time, signal scale and noise scale, each `[]` or `[B]`, float64."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """Half the log signal-to-noise ratio, `lam = log(alpha / sigma)`."""
        return torch.log(self.alpha / self.sigma)


def points(levels: Level) -> list[Level]:
    """The single levels of one with fields `[n]`."""
    t, alpha, sigma = levels
    return list(map(Level, t.unbind(), alpha.unbind(), sigma.unbind()))


def check_level(level: object) -> None:
    """Raises InvalidTypeError unless `level` is a Level."""
    if not isinstance(level, Level):
        raise InvalidTypeError(f"level must be a Level, got {level!r}: write process.level(t), or process.at(lam)")


def check_span(t_min: float, t_max: float) -> None:
    if not -float("inf") < t_min < t_max < float("inf"):
        raise InvalidArgumentError(f"the span needs finite t_min < t_max, got t_min={t_min}, t_max={t_max}")
