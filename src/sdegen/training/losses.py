r"""What a network is trained by: one loss of denoising score matching, and those that need no noise.

With `x = alpha data + sigma noise`, a network's own output predicts `p data + q noise`. The error of any prediction is
its own times one number (the 2x2 solve of `scores/plane.py`), so every objective of the field is

    w |noise_hat - noise|^2 / D,   at levels of some density,

and is named by the density and by w: a function of the level, or the prediction whose plain error it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, check_known, check_positive, strict_keywords
from sdegen.level import Level
from sdegen.scores.model import Model
from sdegen.scores.plane import Want, convert, edm_pair, plane
from sdegen.tensors import combine, like, widen
from sdegen.training.densities import Density, Ladder, LogNormal, Uniform, UniformLogSNR, drawn, noised
from sdegen.training.implicit import finite_difference, fisher, implicit, sliced

__all__ = [
    "Ladder",
    "LogNormal",
    "Objective",
    "Uniform",
    "UniformLogSNR",
    "edm",
    "finite_difference",
    "fisher",
    "flow",
    "implicit",
    "likelihood",
    "matching",
    "min_snr",
    "ncsn",
    "simple",
    "sliced",
    "v",
]

Weight: TypeAlias = float | str | Callable[[Level], Tensor]
_WEIGHTS = ("data", "edm", "noise", "score", "v", "velocity")


@strict_keywords
@dataclass(frozen=True, eq=False)
class Objective:
    """A loss by name: `w |noise_hat - noise|^2 / D` at levels of a density; `sd.train(loss=...)` takes it.

    Args:
        levels: the density of levels; one `Level` for all.
        weight: w, a number or a function of a `Level`; or the name of a prediction, whose plain error it then is.
        lattice: whether a batch's times are a shifted lattice, as for `matching`.

    Raises:
        InvalidArgumentError: an unknown prediction, or a number that is not positive.
        InvalidTypeError: levels of another kind.
    """

    levels: Density | Level
    weight: Weight = 1.0
    lattice: bool = True

    def __post_init__(self) -> None:
        check_levels_and_weight(self.levels, self.weight)

    def __call__(self, model: Model, data: Tensor, *, seed: int = 0) -> Tensor:
        """The loss of each sample of data `[B, *S]`, `[B]`; see `matching`."""
        return matching(model, data, levels=self.levels, weight=self.weight, seed=seed, lattice=self.lattice)

    def at(self, model: Model, count: int, seed: int) -> Level:
        """The levels `[B]` at which the samples of a call are noised."""
        return drawn(model, self.levels, count, seed, self.lattice)


@strict_keywords
def matching(
    model: Model,
    data: Tensor,
    *,
    levels: Density | Level,
    weight: Weight = 1.0,
    seed: int = 0,
    lattice: bool = True,
) -> Tensor:
    """The denoising loss of each sample, `w |noise_hat - noise|^2 / D`, computed in the network's own output.

    Noise and times are keyed: it is a function of (seed, sample), and, where times are a lattice, of B. Its mean over
    data is least at the exact score.

    Args:
        model: a score model, or a map of models.
        data: `[B, *S]`, floating, clean.
        levels: the density of levels, or one `Level` `[]` or `[B]`.
        weight: w, a number or a function of a `Level`; or the name of a prediction, whose plain error it then is.
        seed: of noise and times: another at every step, and on every machine.
        lattice: whether the times of a batch are `u + i/B` modulo 1 under one random u, whose mean has less variance
            than that of independent ones.

    Returns:
        `[B]`, in float32, for data in float64 in float64.

    Raises:
        InvalidTypeError: data that are not floating; a model or levels of another kind.
        InvalidArgumentError: data without a sample dimension, or with NaN; an unknown weight.

    Source: Vincent (2011), eq. 11; Ho et al. (2020), eq. 14; Kingma et al. (2021), app. I.1 for the lattice.
    """
    check_levels_and_weight(levels, weight)
    level, x, noise = noised(model, data, levels, seed, lattice)
    if model.linear:
        made: Any = model
        known, answer = made.pair(level), made.raw(x, level)
    else:
        known = plane(model.process, level, "noise")
        answer = model(x, level, known)
    target = combine((known[0], data), (known[1], noise))
    error = (widen(answer) - target).square().flatten(1).mean(1)
    return like(_factor(model, level, known, weight), error) * error


def _factor(model: Model, level: Level, known: tuple[Tensor, Tensor], weight: Weight) -> Tensor:
    """What turns the squared error of a prediction `known` into the loss, of the level's shape."""
    want: Want = weight if isinstance(weight, str) else "noise"
    pair = edm_pair(level, model.sigma_data) if want == "edm" else plane(model.process, level, want)
    factor = convert(level, known, pair)[1].square()
    if isinstance(weight, str):
        return factor
    own = weight(level) if callable(weight) else weight
    if torch.is_tensor(own) and own.shape not in ((), level.t.shape):
        raise InvalidArgumentError(
            f"the weight must be one number for each level {list(level.t.shape)}, got {list(own.shape)}"
        )
    return factor * own


def check_levels_and_weight(levels: object, weight: object) -> None:
    """Raises unless they are what `matching` takes."""
    if not callable(levels) and not isinstance(levels, Level):
        raise InvalidTypeError(
            f"levels must be a density as sd.losses.Uniform(), or a Level, process.level(t); got {levels!r}"
        )
    if isinstance(weight, str):
        check_known("weight", weight, _WEIGHTS)
    elif not callable(weight):
        check_positive(weight=weight)


@dataclass(frozen=True)
class _MinSNR:
    """`min(snr, gamma)/snr`, with `snr = alpha^2/sigma^2`."""

    gamma: float

    def __call__(self, level: Level) -> Tensor:
        return (self.gamma * torch.exp(-2 * level.lam)).clamp(max=1.0)


def min_snr(gamma: float = 5.0) -> Objective:
    """Uniform times, the noise error weighed by `min(snr, gamma)/snr`: that of the data by `min(snr, gamma)`.

    Args:
        gamma: where the weight of the data's error is cut, 5 as published.

    Raises:
        InvalidArgumentError: gamma is not positive.

    Source: Hang et al. (2023), sec. 3.3.
    """
    check_positive(gamma=gamma)
    return Objective(Uniform(), _MinSNR(float(gamma)))


simple = Objective(Uniform())
"""Uniform times, the plain error of the noise (Ho et al. 2020, eq. 14)."""
ncsn = Objective(Ladder())
"""A geometric ladder, sigma^2 times the error of the score: the plain one of the noise (Song & Ermon 2019, eq. 6)."""
v = Objective(Uniform(), "v")
"""Uniform times, the plain error of v (Salimans & Ho 2022, app. D)."""
flow = Objective(Uniform(), "velocity")
"""Uniform times, the plain error of the velocity (Lipman et al. 2023, eq. 9); see `LogNormal` for logit-normal ones."""
edm = Objective(LogNormal(-1.2, 1.2), "edm")
"""Log-normal s, `(s^2 + sd^2)/(s sd)^2` times the data's error: F's plain one (Karras et al. 2022, table 1)."""
likelihood = Objective(UniformLogSNR())
"""Uniform log-SNR, the noise error: its mean times D and the range of lam is a constant less the ELBO.

Source: Kingma et al. (2021), eq. 13-18; Song et al. (2021), "Maximum likelihood training of score-based models".
"""
