"""Maps from a model to a model: what is done to the predicted data before a solver sees it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.scores.conditions import Conditions
from sdegen.scores.maps import ModelMap
from sdegen.scores.model import Model
from sdegen.scores.plane import Want, convert, plane
from sdegen.tensors import check_type, combine, expect_like, widen

Edit = Callable[..., Tensor]
"""`edit(data, x, level, **condition) -> data`: the predicted data `[B, *S]`, at x and a level `[]` or `[B]`."""


class EditedModel(ModelMap):
    """A model whose predicted data are `edit(data, x, level)`; every other prediction follows from x and those.

    `want = c_x x + c_data data`, by the 2x2 solve of `sdegen.scores.model`; made by `map_data`.
    """

    def __init__(self, model: Model, edit: Edit, name: str, **condition: Any) -> None:
        super().__init__(model)
        self.edit = edit
        self.name = name
        self._conditions = Conditions.of(condition)

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The prediction `want` `[B, *S]` that goes with the edited data, at x `[B, *S]` and a level `[]` or `[B]`."""
        edited = self.predicted(x, level)
        if want == "data":
            return edited
        c_x, c_data = convert(level, plane(self.process, level, "data"), plane(self.process, level, want))
        return combine((c_x, x), (c_data, edited))

    def predicted(self, x: Tensor, level: Level) -> Tensor:
        """The edited prediction of the data."""
        data = self.models[0](x, level, "data")
        condition = self._conditions.given(x.shape[0]) if self._conditions else {}
        return expect_like(self.edit(data, x, level, **condition), data, f"{self.name} must return data")

    def __repr__(self) -> str:
        return f"{self.name}({self.models[0]!r})"


def map_data(model: Model, edit: Edit, name: str = "map_data", **condition: Any) -> EditedModel:
    """The model with its predicted data `[B, *S]` replaced by `edit(data, x, level, **condition)`, like them.

    The edit is part of the score from then on, so a solver's order holds where it is smooth.

    Args:
        model: a score model, or a map of one.
        edit: a function of the predicted data `[B, *S]`, the state x `[B, *S]` and the level `[]` or `[B]`.
        name: what its repr and errors call it.
        condition: what the edit takes by name, per sample as a `ScoreModel`'s: `mask=mask` `[B, *S]` has each
            sample's own in every batch.

    Raises:
        InvalidTypeError: `model` is not a `Model` on a `Process`, or `edit` cannot be called.
    """
    check_type(model, Model, f"{name} takes a ScoreModel, whose data prediction it edits")
    check_type(edit, Callable, "edit must be a function (data, x, level) -> data")
    return EditedModel(model, edit, name, **condition)


def static_threshold(model: Model, low: float = -1.0, high: float = 1.0) -> EditedModel:
    """The model with its predicted data clipped to [low, high] (Ho et al. 2020; Saharia et al. 2022, sec. 2.3).

    diffusers' clip_sample. Raises InvalidArgumentError unless low < high.
    """
    try:
        right = low < high
    except TypeError:
        raise InvalidTypeError(f"thresholds must be numbers, got {low!r} and {high!r}") from None
    if not right:
        raise InvalidArgumentError(f"thresholds must be low < high, got {low} and {high}")
    return map_data(model, functools.partial(_clipped, low=low, high=high), "static_threshold")


def _clipped(data: Tensor, x: Tensor, level: Level, low: float, high: float) -> Tensor:
    return data.clamp(low, high)


def dynamic_threshold(
    model: Model, quantile: float = 0.995, bound: float = 1.0, limit: float = math.inf
) -> EditedModel:
    """The model with each sample's predicted data clipped to its own quantile q of `|data|`, and scaled by `bound / q`.

    `clip(data, -q, q) bound / q` where q is above `bound`; below it data stay as they are, but clipped to the bound
    (Saharia et al. 2022, sec. 2.3). q is no more than `limit`: diffusers' thresholding=True, sample_max_value=limit.
    Raises InvalidArgumentError unless 0 < quantile <= 1 and 0 < bound <= limit.
    """
    try:
        right = 0 < quantile <= 1 and 0 < bound <= limit
    except TypeError:
        raise InvalidTypeError(f"quantile and bound must be numbers, got {quantile!r} and {bound!r}") from None
    if not right:
        raise InvalidArgumentError(
            f"quantile must be in (0, 1] and bound positive, no more than limit, got {quantile}, {bound} and {limit}"
        )
    edit = functools.partial(_scaled, quantile=quantile, bound=bound, limit=limit)
    return map_data(model, edit, "dynamic_threshold")


def _scaled(data: Tensor, x: Tensor, level: Level, quantile: float, bound: float, limit: float) -> Tensor:
    wide = widen(data)
    size = _quantile(wide.flatten(1).abs(), quantile).clamp(min=bound, max=limit)
    size = size.reshape(-1, *(1,) * (data.ndim - 1))
    return (torch.maximum(torch.minimum(wide, size), -size) * (bound / size)).to(data.dtype)


def _quantile(values: Tensor, q: float) -> Tensor:
    """The linearly interpolated quantile of each row, `[B]`; torch.quantile refuses rows of more than 2^24 numbers."""
    place = q * (values.shape[1] - 1)
    k = int(place)
    ordered = values.sort(dim=1).values
    return torch.lerp(ordered[:, k], ordered[:, min(k + 1, values.shape[1] - 1)], place - k)
