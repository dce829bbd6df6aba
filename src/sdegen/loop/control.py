"""The protocol of a controller, and fixed grids."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import check_steps, check_times, in_span, karras, rounding
from sdegen.level import Level, points
from sdegen.processes.process import Process, check_levels
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Reverse, Solver, Step
from sdegen.solvers.table import LearnedError
from sdegen.tensors import readable


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


class OnGrid(NamedTuple):
    """The state of a fixed grid: all levels `[n + 1]`, the same one by one, and the step that is next."""

    grid: Level
    levels: tuple[Level, ...]
    k: int


class Fixed:
    """A fixed grid: exactly the steps between `times` `[n + 1]`, strictly monotone, the last point exact.

    Raises InvalidArgumentError unless the times are finite, strictly monotone, inside the span of the process and,
    on a `Process`, at positive alpha and sigma. Everything is read on the host before the first step.
    """

    passes = 1
    """How often a level may be visited: more than once only where a `Restart` goes back to noise."""

    def __init__(self, times: Any) -> None:
        self.times = check_times(times)
        self.steps = len(self.times) - 1
        first, last = float(self.times[0]), float(self.times[-1])
        self._ends = min(first, last), max(first, last)
        self.towards_data = first > last
        self._rounding = rounding(times)

    def leap(self, state: OnGrid) -> bool:
        """Whether the next step goes back to noise."""
        return False

    def __repr__(self) -> str:
        return f"Fixed({self.steps} steps)"

    def init(self, process: SDE, x: Tensor) -> tuple[Level, Level, OnGrid]:
        """The first step and the levels of all."""
        level = process.level(in_span(self.times, *self._ends, process, self._rounding))
        if isinstance(process, Process) and readable(level.alpha):
            self._check(process, level)
        levels = tuple(points(level))
        return levels[0], levels[1], OnGrid(level, levels, 0)

    def bind(self, solver: Solver, model: Reverse, state: OnGrid) -> Sequence[Solver]:
        """The solver of every step, where a solver's `on` makes them and the levels can be read on the host."""
        on = getattr(solver, "on", None)
        if on is None or not readable(state.grid.alpha) or state.grid.alpha.requires_grad:
            return ()
        try:
            steps: Sequence[Solver] = on(model, state.grid)
        except LearnedError:
            return ()
        return steps

    def _check(self, process: Process, level: Level) -> None:
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


@dataclass(frozen=True)
class Restart:
    """A grid that goes back: where `sigma/alpha` first falls to `low`, `times` times up to `high` and down again.

    Up by the forward SDE's own transition, which forgets errors made so far, down by `steps` more steps of the solver
    (a Karras grid of its own). A callable `(process, n)`, to be given to `sample(grid=...)`, with any solver: `grid`
    has n steps, the repeats come on top. Several windows are a Restart whose `grid` is another.

    Xu et al. 2023, alg. 2. Raises InvalidArgumentError unless 0 < low < high, steps and times >= 1, and the window lies
    inside the levels of the grid.
    """

    low: float = 0.05
    high: float = 0.5
    steps: int = 3
    times: int = 2
    grid: Callable[[SDE, int], Any] = karras

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise InvalidArgumentError(f"a restart needs 0 < low < high, got low={self.low}, high={self.high}")
        check_steps(self.steps)
        check_steps(self.times, "times")

    def __call__(self, process: SDE, n: int) -> Restarted:
        """The grid with its repeats, on `process`."""
        if not isinstance(process, Process):
            raise InvalidTypeError(f"a restart needs a Process, whose forward transition it draws from; got {process}")
        inner = self.grid(process, n)
        known = inner.times if isinstance(inner, Fixed) else check_times(inner, process)
        below = process.level(known).lam >= -math.log(self.low) - 1e-9
        top = process.at(-math.log(self.high)).t.clamp(max=process.t_max)
        if not bool(below.any()) or bool(below[0]) or float(process.level(top).lam) > 1e-9 - math.log(self.high):
            raise InvalidArgumentError(
                f"a restart from sigma/alpha = {self.low:g} up to {self.high:g} lies outside of the grid, whose levels "
                f"run from {math.exp(-float(process.level(known[0]).lam)):g} to "
                f"{math.exp(-float(process.level(known[-1]).lam)):g}"
            )
        k = int(below.nonzero()[0])
        again = karras(process, self.steps, start=float(top), end=float(known[k]))
        return Restarted(torch.cat([known[: k + 1], *[again] * self.times, known[k + 1 :]]))


class Restarted(Fixed):
    """A grid that goes down in runs; between them the loop goes up by the forward transition, see `Restart`."""

    def __init__(self, times: Tensor) -> None:
        self.times = times
        self.steps = len(times) - 1
        self._ends = float(times.min()), float(times.max())
        self.towards_data = True
        self._rounding = rounding(times)
        self._up = (times.diff() > 0).tolist()
        self.passes = 1 + sum(self._up)

    def _check(self, process: Process, level: Level) -> None:
        check_levels(process, process.level(torch.unique(level.t)))

    def leap(self, state: OnGrid) -> bool:
        """Whether the next step goes back to noise."""
        return bool(self._up[state.k])

    def bind(self, solver: Solver, model: Reverse, state: OnGrid) -> Sequence[Solver]:
        """Each run's own solvers, and the next run's first one in the place of a step up."""
        cuts = [0, *(k + 1 for k, up in enumerate(self._up) if up), len(self._up) + 1]
        found: list[Solver] = []
        for a, b in itertools.pairwise(cuts):
            run = super().bind(solver, model, state._replace(grid=Level(*(v[a:b] for v in state.grid))))
            if b > a + 1 and not run:
                return ()
            found += [*run[:1], *run] if found else run
        return found
