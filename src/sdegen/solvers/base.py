"""How to write a solver: a frozen dataclass with `evals`, `init` and a pure `step` between two levels.

`OneStep` supplies everything but `step` for a solver without memory; see the guide for one in a dozen lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid, by_time
from sdegen.noise import NoiseSource
from sdegen.process import Level, Model, ReverseSDE

Carry = Any
Reverse = Model | ReverseSDE


def check_flow(solver: object, model: Reverse) -> None:
    """Raises InvalidArgumentError for a ReverseSDE that is not a probability flow: only Euler-Maruyama takes those."""
    if isinstance(model, ReverseSDE) and model.eta != 0:
        raise InvalidArgumentError(
            f"{solver} would drop the noise of this ReverseSDE with eta={model.eta}: use sde.probability_flow(score), "
            "or euler_maruyama()"
        )


class Step(NamedTuple):
    """What a step returns: x at `next` `[B, *S]`, the carry for the next step, a local error `[B, *S]` or None."""

    x: Tensor
    carry: Carry
    error: Tensor | None = None


class Solver(Protocol):
    """A pure step between two levels; immutable, so that one solver serves any number of solves and threads.

    `evals`: network evaluations per step. `stochastic`: whether it draws noise (and so runs only towards data).
    `memory`: how many past evaluations it carries; a jump of x between steps would make them wrong.
    `grid`: the method's own grid. `init` returns the carry, of one structure from the first step to the last.
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
    """Defaults for a solver without memory: one evaluation, no noise, a uniform grid in t, an empty carry."""

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
    def grid(self) -> Grid:
        """The method's own grid."""
        return by_time

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        """An empty carry."""
        return ()
