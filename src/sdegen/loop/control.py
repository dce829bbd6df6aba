"""Which step next, and was the last one good? Fixed grids here, `PI` in `tolerance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.grids import check_times, in_span, rounding
from sdegen.level import Level, points
from sdegen.processes.process import check_levels
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Reverse, Solver, Step
from sdegen.tensors import check_type, is_row, readable


class Control:
    """What a solve is controlled by: a `Controller`, or `sd.PI`, which makes one for a solver."""

    adaptive: ClassVar[bool] = False
    """Whether steps are judged by their errors, sample by sample."""

    @property
    def steps(self) -> int | None:
        """The number of steps, where it is known before the first one."""
        return None

    @property
    def draws(self) -> bool:
        """Whether it draws noise of its own."""
        return False

    @property
    def repeatable(self) -> bool:
        """Whether its steps can be computed again from a state between them."""
        return False

    def runs_down(self, process: SDE) -> bool | None:
        """Whether time runs down, towards data; None where that is not known."""
        return None

    def bind(self, solver: Solver, process: Any, dtype: torch.dtype) -> Any:
        """What judges this solver's steps sample by sample, states of this dtype; None where nothing does."""
        return None

    def cost(self, solver: Solver) -> int | None:
        """The network evaluations that a solver makes; None where that is not known before."""
        return None if self.steps is None else solver.cost(self.steps)


class Controller(Control, ABC):
    """Chooses the levels of a solve. Its state is a value, so one controller serves any number of solves."""

    @abstractmethod
    def init(self, process: SDE, x: Tensor) -> tuple[Level, Level, Any]:
        """The first step's ends, and the state."""

    @abstractmethod
    def running(self, state: Any) -> bool:
        """Whether there is another step."""

    @abstractmethod
    def update(
        self, process: SDE, state: Any, x: Tensor, now: Level, next: Level, step: Step
    ) -> tuple[bool | Tensor, Level, Level, Any]:
        """Judge a step: whether it is accepted (True, or per sample `[B]`), the ends of the next, and the state."""

    def levels(self, state: Any) -> tuple[Level, ...]:
        """All levels of the solve, where they are known and every step is accepted; else none."""
        return ()

    def parts(self, solver: Solver, model: Reverse, state: Any) -> Sequence[Solver]:
        """The solvers of single steps, where a known grid has them; else none."""
        return ()


class OnGrid(NamedTuple):
    """The state of a fixed grid: all levels `[n + 1]`, the same one by one, and the step that is next."""

    grid: Level
    levels: tuple[Level, ...]
    k: int


class Fixed(Controller):
    """A fixed grid: exactly the steps between `times` `[n + 1]`, strictly monotone, the last point exact.

    Raises InvalidArgumentError unless the times are finite, strictly monotone, inside the span of the process and,
    on a `Process`, at positive alpha and sigma. Everything is read on the host before the first step.
    """

    def __init__(self, times: Any) -> None:
        self.times = check_times(times)
        first, last = float(self.times[0]), float(self.times[-1])
        self._ends = min(first, last), max(first, last)
        self.towards_data = first > last
        self._rounding = rounding(times)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.times) - 1

    @property
    def repeatable(self) -> bool:
        """Yes: the levels are known."""
        return True

    def runs_down(self, process: SDE) -> bool:
        """Whether the times decrease."""
        return self.towards_data

    def __repr__(self) -> str:
        return f"Fixed({self.steps} steps)"

    def init(self, process: SDE, x: Tensor) -> tuple[Level, Level, OnGrid]:
        """The first step and the levels of all."""
        level = process.level(in_span(self.times, *self._ends, process, self._rounding))
        if process.gaussian and readable(level.alpha):
            self._check(process, level)
        levels = tuple(points(level))
        return levels[0], levels[1], OnGrid(level, levels, 0)

    def since(self, place: int) -> Fixed:
        """What is left of the grid from step `place` on."""
        return Fixed(self.times[place:])

    def levels(self, state: OnGrid) -> tuple[Level, ...]:
        """All levels."""
        return state.levels

    def parts(self, solver: Solver, model: Reverse, state: OnGrid) -> Sequence[Solver]:
        """What the solver makes of the grid, where its levels can be read on the host."""
        if not readable(state.grid.alpha) or state.grid.alpha.requires_grad:
            return ()
        return solver.on(model, state.grid)

    def _check(self, process: Any, level: Level) -> None:
        check_levels(process, level)

    def running(self, state: OnGrid) -> bool:
        """Whether a step is left."""
        return state.k < len(state.levels) - 1

    def update(
        self, process: SDE, state: OnGrid, x: Tensor, now: Level, next: Level, step: Step
    ) -> tuple[bool, Level, Level, OnGrid]:
        """The following step; every step is accepted."""
        k = state.k + 1
        after = state.levels[min(k + 1, len(state.levels) - 1)]
        return True, next, after, state._replace(k=k)


class OnLevels(Fixed):
    """A grid whose levels are given too, where they are not quite those that the process has at its times.

    times `[n + 1]`: where the process has these levels; level: the same with the times that the network is to be told,
    fields `[n + 1]`. Raises InvalidArgumentError unless alpha/sigma rises.
    """

    def __init__(self, times: Tensor, level: Level) -> None:
        if len(times) > 1:
            super().__init__(times)
        self.times, self.level, self.towards_data = times, level, True
        if bool((level.lam.diff() <= 0).any()):
            raise InvalidArgumentError(f"the log-SNRs of a grid must rise towards data, got {level.lam.tolist()}")

    def __repr__(self) -> str:
        return f"OnLevels({self.steps} steps)"

    def init(self, process: SDE, x: Tensor) -> tuple[Level, Level, OnGrid]:
        """The first step and the levels of all."""
        levels = tuple(points(self.level))
        return levels[0], levels[min(1, len(levels) - 1)], OnGrid(self.level, levels, 0)

    def since(self, place: int) -> OnLevels:
        """What is left of the grid from step `place` on."""
        return OnLevels(self.times[place:], Level(*(v[place:] for v in self.level)))


def as_controller(control: Any) -> Any:
    """A controller from one, or from times. Raises InvalidTypeError for anything else."""
    if is_row(control):
        return Fixed(control)
    advice = "; a grid is called: sd.grids.karras(process, n)"
    check_type(control, Control, "control must be a Controller or times", advice)
    return control
