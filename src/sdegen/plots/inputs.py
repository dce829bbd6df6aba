"""What a user gives to a picture, checked: states, times, spans and laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import check_times
from sdegen.level import Level, check_level
from sdegen.scores.linear import LinearScore
from sdegen.scores.mixtures import GaussianMixture, MixtureScore
from sdegen.scores.model import ScoreModel

Times: TypeAlias = Tensor | Sequence[float]
Law: TypeAlias = GaussianMixture | ScoreModel | LinearScore | Callable[..., Tensor]
"""A mixture, an exact score (of a mixture under a process or a linear SDE), or a function that gives `log p`."""


def check_tensor(states: Any) -> None:
    """Raises InvalidTypeError unless states are a tensor."""
    if not isinstance(states, Tensor):
        raise InvalidTypeError(f"states must be a tensor, got {type(states).__name__}: torch.stack a list of states")


def numbers_of(states: Tensor) -> np.ndarray:
    """States as float64 numbers on the host; raises InvalidTypeError unless they are a floating tensor."""
    check_tensor(states)
    if not states.is_floating_point():
        raise InvalidTypeError(f"states must be of a floating dtype, got {states.dtype}: convert them, states.float()")
    return states.detach().to("cpu", torch.float64).numpy()


def times_of(times: Times, steps: int) -> np.ndarray:
    """The times `[steps]` of states, strictly monotone."""
    values = check_times(times)
    if len(values) != steps:
        raise InvalidArgumentError(f"times must be one per state, {steps}, got {len(values)}")
    return values.numpy()


def check_text(name: str, labels: Sequence[str], steps: int) -> None:
    """Raises InvalidArgumentError unless labels are none or one per step."""
    if labels and len(labels) != steps:
        raise InvalidArgumentError(f"{name} must be one per step, {steps}, got {len(labels)}")


def span_of(span: Sequence[float]) -> tuple[float, float, float, float]:
    """`(left, right, bottom, top)` of `(low, high)` for both axes, or of itself."""
    values = tuple(float(v) for v in span)
    whole = values * 2 if len(values) == 2 else values
    if len(whole) != 4 or not all(map(math.isfinite, whole)) or whole[0] >= whole[1] or whole[2] >= whole[3]:
        raise InvalidArgumentError(
            f"span must be (low, high) or (left, right, bottom, top), finite and increasing, got {span}"
        )
    return whole[0], whole[1], whole[2], whole[3]


def around(values: np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """From the least to the largest of the finite values, and a margin."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InvalidArgumentError("no state is finite: there is nothing to draw")
    low, high = float(finite.min()), float(finite.max())
    margin = share * (high - low) or 1.0
    return low - margin, high + margin


def mesh(span: tuple[float, float, float, float], n: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """n values of x and of y over a span, and the points `[n n, 2]` at them, row by row of y."""
    x, y = torch.linspace(*span[:2], n, dtype=torch.float64), torch.linspace(*span[2:], n, dtype=torch.float64)
    points = torch.stack([x.repeat(n), y.repeat_interleave(n)], 1)
    return x.numpy(), y.numpy(), points


def check_law(law: Any, timed: bool) -> None:
    """Raises InvalidTypeError on what has no density, or where `timed`, none at a time."""
    if isinstance(law, ScoreModel) and not isinstance(law, MixtureScore):
        raise InvalidTypeError(f"{law!r} has no density: give a mixture's, mixture.score(process), or a log_prob")
    if timed and isinstance(law, GaussianMixture):
        raise InvalidTypeError(f"{law!r} alone has no time: give law=mixture.score(process)")
    if not isinstance(law, GaussianMixture) and not callable(law):
        raise InvalidTypeError(f"a law is a GaussianMixture, an exact score or a function log_prob, got {law!r}")


def level_of(law: Law, t: float) -> Level:
    """The level of a law at a time; a function log_prob(x, t) is asked at t itself."""
    if isinstance(law, ScoreModel):
        return law.process.level(t)
    if isinstance(law, LinearScore):
        return law.sde.level(t)
    time = torch.tensor(t, dtype=torch.float64)
    return Level(time, time * math.nan, time * math.nan)


def log_density(law: Law, x: Tensor, level: Level | None) -> np.ndarray:
    """`log p(x)` `[n]` of x `[n, *S]`, of a mixture of as many elements in whatever shape.

    Raises InvalidArgumentError where log p has another shape, is NaN or +inf, or -inf everywhere.
    """
    if level is not None:
        check_level(level)
    elif isinstance(law, (MixtureScore, LinearScore)):
        raise InvalidArgumentError(f"{law!r} is a law at every level: give level=process.level(t)")
    if isinstance(law, (GaussianMixture, MixtureScore)):
        mixture = law if isinstance(law, GaussianMixture) else law.mixture
        fits = mixture.shape.numel() == x[0].numel()
        value: Any = mixture.log_prob(x.reshape(-1, *mixture.shape) if fits else x, level)
    elif isinstance(law, LinearScore) and level is not None:
        value = law.log_prob(x, level.t)
    else:
        ask: Any = law
        value = ask(x) if level is None else ask(x, level.t)
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidArgumentError(f"log_prob must return a tensor [{len(x)}] for x {list(x.shape)}, got {got}")
    if bool((value.isnan() | (value == math.inf)).any()) or not bool(value.isfinite().any()):
        raise InvalidArgumentError("log_prob must be finite or -inf, and finite somewhere in the span; it is not")
    return value.detach().to("cpu", torch.float64).numpy()
