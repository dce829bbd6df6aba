"""What a solver is, and what one may say of itself.

How to write one:

1. Derive from `OneStep` and write `step`, a pure function of its arguments: it runs on any grid, in any batch.
2. Draw noise with `draw(noise, x, now, next)` and set `stochastic`: `sample` gives it a source.
3. Carry past evaluations in a pytree of tuples and tensors: derive from `Solver`, write `init`, and set `memory`.
4. Write `legs` of a `sdegen.solvers.table.Table` instead of `step`, where a step is linear combinations of the
   network's answers: on a known grid its weights become plain numbers, which makes steps several times cheaper.
5. Return `Step(..., error=...)` and set `adaptive` and `frame`: `sample(tol=...)` adapts its steps.
6. Write `inside` and set `dense`: `solve(dense=True)` and events work.
7. Set `convergence` and `exact`: `sdegen.testing.check_solver` proves them.

Every capability below has a default; nothing is looked for on a solver that is not declared here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.noise import NoiseSource
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import Model
from sdegen.tensors import check_type, expect_like, widen

if TYPE_CHECKING:
    from sdegen.solvers.frame import Frame

Carry = Any
Reverse = Model | ReverseSDE
Norm = Callable[[Tensor, Tensor, Tensor, Level], Tensor]
"""`norm(error, x_now, x_next, level) -> [B]`: the size of an error `[B, *S]` in units of what is allowed there."""


class Step(NamedTuple):
    """What a step returns: x at `next` `[B, *S]`, the carry for the next step, a local error `[B, *S]` or None.

    The rest is for adaptive control. order: the power of the step with which the error falls, a number or `[B]`.
    retry: the carry for another attempt from `now` if this one is rejected (None: the one it had). evals: network
    evaluations made, where that differs from the solver's own number. growth: by how much the next step could be longer
    at the same error, `[B]`, where the solver knows better than error and order say. inner: what `inside` needs.
    """

    x: Tensor
    carry: Carry
    error: Tensor | None = None
    order: float | Tensor = 1.0
    retry: Carry = None
    evals: int | None = None
    growth: Tensor | None = None
    inner: Any = None


class Solver(ABC):
    """A pure step between two levels with an explicit carry; immutable, so one solver serves any number of solves."""

    corrects: bool = False
    """Whether a step stays at `next`, given an x there, so that it can be a PC's corrector."""
    safety: float = 0.9
    """The factor on an adaptive step."""

    @property
    def learned_variance(self) -> bool:
        """Whether its noise has the variance that a network learned beside its prediction."""
        return False

    @property
    def evals(self) -> int:
        """The network evaluations per step."""
        return 1

    @property
    def init_evals(self) -> int:
        """The network evaluations that `init` makes."""
        return 0

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise, and so runs only towards data."""
        return False

    @property
    def memory(self) -> int:
        """The number of past evaluations carried; a jump of x between steps would make them wrong."""
        return 0

    @property
    def starting(self) -> int:
        """The number of first steps that are not like the others."""
        return 0

    @property
    def couples(self) -> bool:
        """Whether a sample's result depends on its batch-mates."""
        return False

    @property
    def grid(self) -> Grid:
        """The method's own grid."""
        return natural

    @property
    def convergence(self) -> int | None:
        """The order at which errors fall with the step: of the path, or of the law for a stochastic solver."""
        return None

    @property
    def exact(self) -> tuple[str, ...]:
        """The data on which one step is exact: 'point', or 'gaussian' for `N(0, sigma_data^2)`."""
        return ()

    @property
    def own_steps(self) -> int | None:
        """The number of steps it takes on its own grid, where the caller does not choose: of a plan or a backend."""
        return None

    @property
    def own_error(self) -> float | None:
        """Its own estimate of the error at the end relative to the data's scale, where it has levels of its own."""
        return None

    @property
    def adaptive(self) -> bool:
        """Whether a step has an error estimate, so that `sd.PI` can adapt its steps."""
        return False

    @property
    def clock_frame(self) -> Frame | None:
        """The frame in whose clock adaptive steps are measured; None for t."""
        return None

    @property
    def tol_share(self) -> float:
        """What one step's error may be, as a share of a tolerance for the error at the end."""
        return 0.5

    @property
    def max_jump(self) -> float:
        """How far an adaptive step may go in log-SNR."""
        return 1.0

    @property
    def dense(self) -> bool:
        """Whether `inside` knows x inside of a step."""
        return False

    @property
    def noise_end(self) -> bool:
        """Whether it may start where there is no signal, alpha = 0.

        In a frame where that allows it, with noise where the frame's linear part holds the noise.
        """
        frame = self.clock_frame
        return frame is None or (frame.noise_end and (frame.lawful or not self.stochastic))

    @property
    def data_end(self) -> bool:
        """Whether it may stop where there is no noise, sigma = 0, on a network that predicts the data alone."""
        return True

    @abstractmethod
    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        """The carry before the first step, of one structure from the first step to the last."""

    def cost(self, n: int) -> int:
        """The network evaluations of n steps, with those of `init`."""
        return self.init_evals + n * self.evals

    @abstractmethod
    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """One step from now to next, x `[B, *S]`, levels `[]` or `[B]`."""

    def for_steps(self, n: int) -> Solver:
        """The solver to take for a grid of n steps; itself, unless it is a choice of several."""
        return self

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """One solver per step of a known grid with levels `[n + 1]`, or none: step as usual.

        It is asked for once, before the first step. The carry is the first one's, passed from each to the next.
        """
        return ()

    def inside(self, process: SDE, now: Level, next: Level, inner: Any, at: Level) -> Tensor:
        """x `[B, *S]` at a level inside of a step, from the step's `inner`."""
        raise InvalidArgumentError(f"{self} has no dense output")

    def with_norm(self, norm: Norm) -> Solver:
        """The same method, choosing its order by the sizes of errors that `norm` says; itself if it has one order."""
        return self

    def blank(self, model: Reverse, x: Tensor, now: Level) -> Carry | None:
        """A past without values, after which a step of no length makes the first evaluation; None: call `init`."""
        return None

    def first_step(
        self, model: Reverse, x: Tensor, now: Level, end: Level, carry: Carry, norm: Norm
    ) -> tuple[Tensor | None, int]:
        """The first adaptive step in the clock, `[]` or `[B]`, and evaluations made; None: the controller's bound."""
        return None, 0

    def noise_clock(self, process: SDE) -> Callable[[Level], Tensor] | None:
        """The clock in which its noise is one Brownian motion, None for t."""
        return None


class OneStep(Solver):
    """A solver without memory: a subclass writes `step`, and declares what differs from one evaluation and no noise."""

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        """An empty carry."""
        return ()


def check_reverse(solver: object, model: Reverse, eta: object) -> None:
    """Raises InvalidArgumentError for a ReverseSDE whose eta is not the solver's: its drift would not fit the noise."""
    if not model.answers and model.eta != eta:
        raise InvalidArgumentError(
            f"this ReverseSDE has eta={model.eta:g} and {solver} has {eta}: a drift made for one amount of noise needs "
            "that amount. Use sde.probability_flow(score) for a flow solver, euler_maruyama(eta) for the others"
        )


def check_score_model(solver: object, model: Reverse) -> Any:
    """The model, or InvalidTypeError unless it is a score model on a Process: the solver needs alpha and sigma."""
    if not model.answers or not model.process.gaussian:
        raise InvalidTypeError(
            f"{solver} needs a ScoreModel on a Process: give the ScoreModel itself, or, for a ReverseSDE's drift and "
            "diffusion, a solver in frame TIME (euler_maruyama(), RungeKutta(..., frame=sd.TIME))"
        )
    return model


def given(noise: NoiseSource | None) -> NoiseSource:
    """The source, or InvalidArgumentError where a solver that draws has none."""
    if noise is None:
        raise InvalidArgumentError("this solver draws noise: give a noise source, sd.White(sd.noise.seeds(0, B))")
    return noise


def draw(noise: NoiseSource | None, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
    """Normals like x from the source, checked; in working precision. Raises InvalidArgumentError without a source."""
    return widen(expect_like(given(noise)(x, now, next, tag), x, "the noise source must return normals"))


def between(process: SDE, t: Tensor, now: Level, next: Level) -> Level:
    """The level of a stage at t, which is clamped into the step so that rounding never leaves the span."""
    return process.level(t.clamp(torch.minimum(now.t, next.t), torch.maximum(now.t, next.t)))


def check_step(step: Step, x: Tensor, solver: object) -> Step:
    """A solver's step, or an error where it is not one on x's shape and dtype."""
    check_type(step, Step, f"{solver}.step must return sd.Step(x, carry)")
    if step.x.shape != x.shape or step.x.dtype != x.dtype:
        raise InvalidArgumentError(
            f"{solver}.step returned x of shape {list(step.x.shape)} and {step.x.dtype}; it must keep "
            f"{list(x.shape)} and {x.dtype}"
        )
    return step
