"""Exponential moving averages of a network's weights: what is sampled from after training."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import dataclass

import numpy as np
import torch

from sdegen.errors import InvalidArgumentError, check_numbers, strict_keywords
from sdegen.processes.callables import module_behind
from sdegen.scores import weights
from sdegen.scores.model import ScoreModel
from sdegen.tensors import check_type, check_whole, named, widen

_LONGEST = 0.28


@strict_keywords
@dataclass(frozen=True)
class EMA:
    """How much of the average of a network's weights stays at each step.

    By length, as by default: `beta_n = (1 - 1/n)^(gamma + 1)` at step n, so that the weights of the average are of a
    power of the step, with a standard deviation of `length` times the steps so far; it needs no warm-up. By decay:
    `beta_n = min(decay, (1 + n)/(10 + n))`.

    Args:
        length: in (0, 0.28], 0.1 unless a decay is given; 0.05 to 0.15 is usual.
        decay: in [0, 1), as 0.9999.

    Raises:
        InvalidArgumentError: they are out of range, or both are given.
        InvalidTypeError: they are no numbers.

    Source: Karras et al. (2024), arXiv 2312.02696, eq. 121-126.
    """

    length: float | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        check_numbers(optional=True, length=self.length, decay=self.decay)
        if self.length is not None and self.decay is not None:
            raise InvalidArgumentError(f"give a length or a decay, got {self.length} and {self.decay}")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise InvalidArgumentError(f"decay must be in [0, 1), got {self.decay}")
        if self.length is not None and not 0 < self.length <= _LONGEST:
            raise InvalidArgumentError(
                f"length is a share of the training, in (0, {_LONGEST}], got {self.length}; a decay is EMA(decay=0.999)"
            )

    def rate(self, step: int) -> float:
        """The share `beta_n` of the average so far that stays at step n = 1, 2, ..."""
        if self.decay is not None:
            return min(self.decay, (1 + step) / (10 + step))
        return float((1 - 1 / step) ** (_gamma(self.length or 0.1) + 1))

    def of(self, model: ScoreModel) -> Average:
        """The average of a model's weights, which begins as they are.

        Raises InvalidTypeError where no `torch.nn.Module` is behind the model.
        """
        check_type(model, ScoreModel, "an average is of a ScoreModel(process, net, predicts)")
        return Average(self, model)


def _copied(model: ScoreModel) -> ScoreModel:
    """A copy with a network of its own. Raises InvalidArgumentError where there is none to be had."""
    try:
        return copy.deepcopy(model)
    except pickle.PicklingError as error:
        raise InvalidArgumentError(
            f"an average needs a copy of {named(model.net)}: {error}; or give the torch.nn.Module itself, or ema=None"
        ) from None


@functools.cache
def _gamma(length: float) -> float:
    """The power gamma for which a density u^gamma on [0, 1] has this standard deviation: the root of a cubic."""
    t = length**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class Average:
    """The averaged weights of a model that is being trained, for loops of your own; made by `EMA.of`.

    `model` is a score model with a copy of the network, in evaluation mode, in float32 where the weights are half; it
    changes with every `update`: deepcopy it to keep it.
    """

    def __init__(self, ema: EMA, model: ScoreModel) -> None:
        self.ema, self._source = ema, weights.found(model)
        self.model = copy.copy(model)
        if model.module is model.net:  # without what compiles it or spreads it over devices
            self.model.net, self.model._module = copy.deepcopy(self._source), None
        else:
            self.model = _copied(model)
        self._own = weights.found(self.model)
        own = {id(p) for p in self._source.parameters()}
        behind = module_behind(self.model.net)
        if any(id(p) in own for net in (self._own, behind) if net is not None for p in net.parameters()):
            raise InvalidArgumentError(
                f"{named(model.net)} reaches its network by a global name, so no copy of it can have averaged weights: "
                "give the torch.nn.Module itself, or a lambda around it, or train with ema=None"
            )
        self._own.eval().requires_grad_(False)
        for part in (*self._own.parameters(), *self._own.buffers()):
            part.data = widen(part.data)
        self._weights = list(zip(self._own.parameters(), self._source.parameters()))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step n = 1, 2, ...: parameters are averaged, buffers are copied."""
        check_whole("step", step)
        rate = self.ema.rate(step)
        for mean, new in self._weights:
            mean.lerp_(new.to(mean), 1 - rate)
        for kept, buffer in zip(self._own.buffers(), self._source.buffers()):
            kept.copy_(buffer)
