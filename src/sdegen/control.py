"""Controllers: which step next, and was the last one good?"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sdegen.errors import readable
from sdegen.grids import check_times, in_span, rounding
from sdegen.process import Process, check_levels
from sdegen.sde import SDE, Level
from sdegen.solvers.base import Step


class Controller(Protocol):
    """Chooses the levels of a solve. Its state is a value, so one controller serves any number of solves.

    `init` gives the first step's ends and the state; `running` whether there is another step; `update` judges a step:
    whether it is accepted (True, or per sample `[B]`), and the ends of the next.
    """

    def init(self, process: SDE, x: Tensor) -> tuple[Level, Level, Any]: ...
    def running(self, state: Any) -> bool: ...
    def update(
        self, process: SDE, state: Any, x: Tensor, now: Level, next: Level, step: Step
    ) -> tuple[bool | Tensor, Level, Level, Any]: ...


class _OnGrid(NamedTuple):
    levels: tuple[Level, ...]
    k: int


class Fixed:
    """A fixed grid: exactly the steps between `times` `[n + 1]`, strictly monotone, the last point exact.

    Raises InvalidArgumentError unless the times are finite, strictly monotone, inside the span of the process and,
    on a `Process`, at positive alpha and sigma. Everything is read on the host before the first step.
    """

    def __init__(self, times: Any) -> None:
        self.times = check_times(times)
        self.steps = len(self.times) - 1
        first, last = float(self.times[0]), float(self.times[-1])
        self._ends = min(first, last), max(first, last)
        self.towards_data = first > last
        self._rounding = rounding(times)

    def __repr__(self) -> str:
        return f"Fixed({self.steps} steps)"

    def init(self, process: SDE, x: Tensor) -> tuple[Level, Level, _OnGrid]:
        """The first step and the levels of all."""
        level = process.level(in_span(self.times, *self._ends, process, self._rounding))
        if isinstance(process, Process) and readable(level.alpha):
            check_levels(process, level)
        levels = tuple(Level(*point) for point in zip(*(part.unbind() for part in level)))
        return levels[0], levels[1], _OnGrid(levels, 0)

    def running(self, state: _OnGrid) -> bool:
        """Whether a step is left."""
        return state.k < len(state.levels) - 1

    def update(
        self, process: SDE, state: _OnGrid, x: Tensor, now: Level, next: Level, step: Step
    ) -> tuple[bool, Level, Level, _OnGrid]:
        """The following step; every step is accepted."""
        k = state.k + 1
        after = state.levels[min(k + 1, len(state.levels) - 1)]
        return True, next, after, _OnGrid(state.levels, k)
