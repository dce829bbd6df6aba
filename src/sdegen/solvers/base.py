"""How to write a solver: a frozen dataclass with `evals`, `init` and a pure `step` between two levels.

`OneStep` supplies everything but `step` for a solver without memory; see the guide for one in a dozen lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import Model
from sdegen.tensors import expect_like, widen

Carry = Any
Reverse = Model | ReverseSDE


def check_reverse(solver: object, model: Reverse, eta: object) -> None:
    """Raises InvalidArgumentError for a ReverseSDE whose eta is not the solver's: its drift would not fit the noise."""
    if isinstance(model, ReverseSDE) and model.eta != eta:
        raise InvalidArgumentError(
            f"this ReverseSDE has eta={model.eta:g} and {solver} has {eta}: a drift made for one amount of noise needs "
            "that amount. Use sde.probability_flow(score) for a flow solver, euler_maruyama(eta) for the others"
        )


def check_score_model(solver: object, model: Reverse) -> Model:
    """The model, or InvalidTypeError unless it is a score model on a Process: the solver needs alpha and sigma."""
    if isinstance(model, ReverseSDE) or not isinstance(model.process, Process):
        raise InvalidTypeError(f"{solver} needs a ScoreModel on a Process; on a ReverseSDE use euler_maruyama()")
    return model


def draw(noise: NoiseSource | None, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
    """Normals like x from the source, checked; in working precision. Raises InvalidArgumentError without a source."""
    if noise is None:
        raise InvalidArgumentError("this solver draws noise: give a noise source, sd.White(sd.noise.seeds(0, B))")
    return widen(expect_like(noise(x, now, next, tag), x, "the noise source must return normals"))


def between(process: SDE, t: Tensor, now: Level, next: Level) -> Level:
    """The level of a stage at t, which is clamped into the step so that rounding never leaves the span."""
    return process.level(t.clamp(torch.minimum(now.t, next.t), torch.maximum(now.t, next.t)))


class Step(NamedTuple):
    """What a step returns: x at `next` `[B, *S]`, the carry for the next step, a local error `[B, *S]` or None.

    For adaptive control: order: the power of the step with which the error falls, a number or `[B]`; retry: the carry
    for another attempt from `now` if this one is rejected (None: the one it had). evals: network evaluations made,
    where that differs from the solver's own number. growth: by how much the next step could be longer at the same
    error, `[B]`, where the solver knows better than error and order say. inner: what `inside` needs for dense output.
    """

    x: Tensor
    carry: Carry
    error: Tensor | None = None
    order: float | Tensor = 1.0
    retry: Carry = None
    evals: int | None = None
    growth: Tensor | None = None
    inner: Any = None


def check_step(step: Any, x: Tensor, solver: object) -> Step:
    """A solver's step, or an error where it is not one on x's shape and dtype."""
    if not isinstance(step, Step):
        raise InvalidTypeError(f"{solver}.step returned {type(step).__name__}; it must return sd.Step(x, carry)")
    if step.x.shape != x.shape or step.x.dtype != x.dtype:
        raise InvalidArgumentError(
            f"{solver}.step returned x of shape {list(step.x.shape)} and {step.x.dtype}; it must keep "
            f"{list(x.shape)} and {x.dtype}"
        )
    return step


class Solver(Protocol):
    """A pure step between two levels; immutable, so that one solver serves any number of solves and threads.

    `evals`: network evaluations per step. `stochastic`: whether it draws noise (and so runs only towards data).
    `memory`: how many past evaluations it carries; a jump of x between steps would make them wrong.
    `grid`: the method's own grid. `init` returns the carry, of one structure from the first step to the last.

    A solver may also have `on(model, levels) -> Sequence[Solver]`: one solver per step of a grid with levels `[n + 1]`,
    asked for once before the first step of a solve on a fixed grid (an empty answer: step as usual). The carry is then
    the first one's, passed from each to the next, whatever its structure. There all weights can be worked out at once,
    steps can know where in the grid they are, and each counts its own `evals`.
    """

    @property
    def evals(self) -> int: ...
    @property
    def stochastic(self) -> bool: ...
    @property
    def memory(self) -> int: ...
    @property
    def grid(self) -> Grid: ...
    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry: ...
    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None
    ) -> Step: ...


class OneStep:
    """Defaults for a solver without memory: one evaluation, no noise, the natural grid, an empty carry."""

    @property
    def evals(self) -> int:
        """Network evaluations per step."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return False

    @property
    def memory(self) -> int:
        """How many past evaluations the solver carries."""
        return 0

    @property
    def corrects(self) -> bool:
        """Whether a step stays at `next`, given an x there, so that it can be a PC's corrector."""
        return False

    @property
    def grid(self) -> Grid:
        """The method's own grid."""
        return natural

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        """An empty carry."""
        return ()
