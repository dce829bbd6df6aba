"""Scores with an error of a known size: smooth, reproducible, and where one wants it. Networks have such errors.

A solver that wins on exact scores need not win where the score is a little wrong: `perturbed` says how it fares there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, hint
from sdegen.guidance.thresholds import EditedModel
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.tensors import like

WHERE: Mapping[str, int] = {"all": 0, "low": 1, "high": -1}
"""At which noise the error is: everywhere, below the data's scale, or above it."""
FEATURES = 64


@dataclass(frozen=True)
class Disturbance:
    """A smooth random function of the state and the level, `[B, *S]`, of root mean square about 1.

    `sqrt(2/F) sum_f a_f cos(w_f . u + v_f lam + b_f)` with F = 64 random features (Rahimi and Recht 2007, sec. 3): a
    draw of a Gaussian process. `u = x / hypot(scale alpha, sigma)`, whose entries are of size 1; it varies over
    `length` of the norm of u, and over 2 in log-SNR. Which function it is depends on `seed` alone.
    """

    seed: int = 0
    length: float = 0.5
    scale: float = 1.0

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Its value at states `[B, *S]` at a level `[]` or `[B]`."""
        u = (x / like(torch.hypot(self.scale * level.alpha, level.sigma), x)).flatten(1).double()
        w, v, b, a = _features(self.seed, u.shape[1], str(u.device))
        lam = level.lam.to(u.device).reshape(-1, 1)
        waves = torch.cos(u @ w.T / self.length + lam * v + b)
        return (waves @ a * math.sqrt(2 / FEATURES)).reshape(x.shape).to(x.dtype)


@functools.lru_cache(maxsize=8)
def _features(seed: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Directions `[F, D]`, and `[F]`, `[F]`, amplitudes `[F, D]`."""
    z = noises.normals(noises.seeds(seed, FEATURES), (2 * size + 2,), (0, 0, 0, 0), dtype=torch.float64).to(device)
    return z[:, :size] / math.sqrt(size), z[:, -2] / 2, z[:, -1] * math.pi, z[:, size : 2 * size]


class Disturbed(EditedModel):
    """A model with an error of a known size in its predictions; made by `perturbed`."""

    def __init__(self, model: Any, size: float, side: int, error: Disturbance, name: str) -> None:
        super().__init__(model, lambda data, x, level: data, name)
        self.size, self.side, self.error = size, side, error

    def predicted(self, x: Tensor, level: Level) -> Tensor:
        """The data that the model predicts, and the error."""
        s = level.sigma / (level.alpha * self.error.scale)
        window = 1 / (1 + s ** (2 * self.side)) if self.side else torch.ones_like(s)
        # of v, which is off by as much at all levels: with a deviation of 1, data = cos x - sin v, tan = s
        weight = self.size * self.error.scale * window * s / torch.sqrt(1 + s * s)
        data: Tensor = self.models[0](x, level, "data")
        return data + like(weight, data) * self.error(x, level)


class Reduced(EditedModel):
    """A model that sees and says numbers of few digits; made by `reduced`."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__(model, lambda data, x, level: data.to(dtype).to(data.dtype), f"reduced to {dtype}")
        self.dtype = dtype

    def predicted(self, x: Tensor, level: Level) -> Tensor:
        """The rounded prediction at the rounded state."""
        return super().predicted(x.to(self.dtype).to(x.dtype), level)


def perturbed(
    model: Any, size: float, where: str = "all", *, seed: int = 0, length: float = 0.5, scale: float = 1.0
) -> Disturbed:
    """`model` with a smooth, reproducible error of a known size in all of its predictions.

    The error of `v`, the prediction that is off by as much at all levels, has the root mean square `size scale w(s)`,
    `s = sigma/(alpha scale)`: `w = 1` for where="all", `1/(1 + s^2)` for "low" noise, `s^2/(1 + s^2)` for "high". At
    low noise the data are then off by `size sigma/alpha`, at high noise by `size scale`, as those of trained networks
    are. It varies smoothly, see `Disturbance`. scale: the standard deviation of the data.

    Raises InvalidArgumentError unless size >= 0, length > 0, scale > 0 and where is one of `WHERE`; InvalidTypeError on
    what is no model on a Process.
    """
    if not (0 <= size < math.inf and 0 < length < math.inf and 0 < scale < math.inf):
        raise InvalidArgumentError(
            f"size must be >= 0, length and scale positive, got size={size}, length={length}, scale={scale}"
        )
    if where not in WHERE:
        raise InvalidArgumentError(f"unknown where={where!r}: {hint(where, list(WHERE), 'there are')}")
    _check(model, "perturbed")
    side = WHERE[where]
    return Disturbed(model, size, side, Disturbance(seed, length, scale), f"perturbed({size:g}, {where})")


def reduced(model: Any, dtype: torch.dtype = torch.bfloat16) -> Reduced:
    """`model` with its state and its predicted data rounded to a narrower dtype, as a network in half precision has.

    Raises InvalidArgumentError on a dtype that is not floating, InvalidTypeError on what is no model on a Process.
    """
    if not dtype.is_floating_point:
        raise InvalidArgumentError(f"dtype must be floating, such as torch.bfloat16, got {dtype}")
    _check(model, "reduced")
    return Reduced(model, dtype)


def _check(model: Any, name: str) -> None:
    if not isinstance(getattr(model, "process", None), Process):
        raise InvalidTypeError(f"{name} takes a ScoreModel on a Process, whose predictions it changes; got {model!r}")
