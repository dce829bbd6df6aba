"""Steps whose weights are known before the first one: a network call and a linear combination with plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from sdegen.grids import Grid
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.scores.model import ScoreModel
from sdegen.scores.previews import Watched
from sdegen.solvers.base import Reverse, Solver, Step, check_reverse, draw
from sdegen.solvers.quadrature import Weights
from sdegen.tensors import combine, widen

Pair = tuple[Tensor, Tensor]


def ends(levels: Level) -> tuple[Level, Level]:
    """Where the steps between levels `[n + 1]` begin and end, `[n]` each."""
    return Level(*(v[:-1] for v in levels)), Level(*(v[1:] for v in levels))


def vectorised(eta: Any, now: Level, next: Level) -> bool:
    """Whether eta, where it is a function, takes all steps at once; one that does not is asked step by step."""
    if not callable(eta):
        return True
    try:
        value = eta(now, next)
    except (TypeError, ValueError, RuntimeError):  # as of a comparison of one level, written for a single step
        return False
    return isinstance(value, Tensor) and value.shape == now.t.shape


def plain(model: object) -> TypeGuard[ScoreModel]:
    """Whether a model's predictions are those of `ScoreModel`, linear in x and its raw output, watched or not."""
    return type(model.model if isinstance(model, Watched) else model) is ScoreModel


class LearnedError(Exception):
    """A weight that gradients flow through cannot become a number: the steps are made one by one then."""


def numbers(weights: Tensor) -> list[Any]:
    """Weights as plain numbers. Raises LearnedError where that would cut a gradient."""
    if weights.requires_grad:
        raise LearnedError
    listed: list[Any] = weights.tolist()
    return listed


class Ask(NamedTuple):
    """One prediction at one level, with the numbers that turn the network's output into it worked out."""

    want: Pair
    on_x: float
    on_raw: float

    def __call__(self, model: Any, x: Tensor, level: Level) -> Tensor:
        """The prediction `[B, *S]`."""
        if not plain(model):
            answer: Tensor = model(x, level, self.want)
            return answer
        raw = model.raw(x, level)
        if self.on_x == 0.0 and self.on_raw == 1.0:
            return raw.clone()  # kept as a past value, and a network may write its next output into the same memory
        return combine((self.on_x, x), (self.on_raw, raw)) if self.on_x else self.on_raw * widen(raw)


def asked(model: Reverse, levels: Level, want: Pair) -> list[Ask]:
    """The prediction `want`, its parts `[n]`, at each of the levels `[n]`."""
    p, q = (v.expand_as(levels.t) for v in want)
    pairs = list(zip(p.unbind(), q.unbind()))
    if not plain(model):
        return [Ask(pair, 0.0, 1.0) for pair in pairs]
    on_x, on_raw = (numbers(v.expand_as(levels.t)) for v in model.coefficients(levels, (p, q)))
    return [Ask(*part) for part in zip(pairs, on_x, on_raw)]


class Past(NamedTuple):
    """What a fused step carries: past values, newest first, and for a corrector the last x and kick."""

    values: tuple[Tensor, ...]
    x: Tensor | None
    kick: Tensor | None


def fused(
    method: Any, model: Any, want: Pair, predict: Weights, correct: Weights | None, spread: Tensor | None, now: Level
) -> list[Solver]:
    """The steps of `method` at the levels `now` `[n]`, the weights of correctors starting with the second step."""
    asks = asked(model, now, want)
    ahead = _rows(predict)
    behind = [(), *_rows(correct)] if correct is not None else [()] * len(asks)
    known = torch.zeros_like(now.t) if spread is None else spread.expand_as(now.t)
    steps = enumerate(zip(asks, ahead, behind, numbers(known)))
    return [
        Fused(method, ask, first[: k + 2], second[: k + 2], None if spread is None else kick)
        for k, (ask, first, second, kick) in steps
    ]


def _rows(steps: Weights) -> list[tuple[float, ...]]:
    """The weight of x and those of the nodes, step by step."""
    table = torch.cat([steps.decay[..., None].expand(*steps.nodes.shape[:-1], 1), steps.nodes], -1)
    return [tuple(row) for row in numbers(table)]


@dataclass(frozen=True)
class Known:
    """One step of `method` on a known grid: what it does not say for itself is the method's."""

    method: Any

    @property
    def evals(self) -> int:
        """Network evaluations in the step."""
        evals: int = self.method.evals
        return evals

    @property
    def stochastic(self) -> bool:
        """Whether the step draws noise."""
        stochastic: bool = self.method.stochastic
        return stochastic

    @property
    def memory(self) -> int:
        """The number of past evaluations carried."""
        memory: int = self.method.memory
        return memory

    @property
    def grid(self) -> Grid:
        """The method's own grid."""
        grid: Grid = self.method.grid
        return grid

    def init(self, model: Reverse, x: Tensor, now: Level) -> Any:
        """The method's carry."""
        return self.method.init(model, x, now)


@dataclass(frozen=True)
class Fused(Known):
    """One step of a multistep method on a known grid.

    predict and correct: the weight of x and those of the values, newest first; values that do not exist yet have none.
    """

    ask: Ask
    predict: tuple[float, ...]
    correct: tuple[float, ...]
    spread: float | None

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        """No past."""
        check_reverse(self.method, model, self.method.eta)
        return Past((), None, None)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Past, noise: NoiseSource | None) -> Step:
        """Evaluate at x, correct x with it, predict x at `next`."""
        if not self.method.memory and plain(model):
            # nothing is kept: the network's output goes into the step without the prediction made of it
            on_x, on_value = self.predict
            raw = (on_value * self.ask.on_raw, model.raw(x, now))
            out = combine((on_x + on_value * self.ask.on_x, x), raw)
            if self.spread is not None:
                out = out + draw(noise, x, now, next) * self.spread
            return Step(out.to(x.dtype), carry)
        values = (self.ask(model, x, now), *carry.values)
        start = x
        if self.correct and carry.x is not None:
            start = combine(*zip(self.correct, (carry.x, *values)))
            start = start if carry.kick is None else start.add_(carry.kick)
        out, kick = combine(*zip(self.predict, (start, *values))), None
        if self.spread is not None:
            kick = draw(noise, x, now, next) * self.spread
            out = out + kick
        past = Past(values[: self.method.memory], *((widen(start), kick) if self.method.correct else (None, None)))
        return Step(out.to(x.dtype), past)
