"""Restarts: a grid that goes back to noise, by jumps among its steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.grids import check_steps, check_times, karras, rounding
from sdegen.level import Level
from sdegen.loop.control import Fixed, OnGrid
from sdegen.noise import NoiseSource
from sdegen.processes.process import check_levels, linear_gaussian
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Carry, Reverse, Solver, Step, draw
from sdegen.solvers.compose import Branch, Wrapper
from sdegen.tensors import combine


@strict_keywords
@dataclass(frozen=True)
class Restart:
    """A grid that goes back: where `sigma/alpha` first falls to `low`, `times` times up to `high` and down again.

    Up by the forward SDE's own transition, which forgets errors made so far, down by `steps` more steps of the solver
    (a Karras grid of its own). A callable `(process, n)`, to be given to `sample(grid=...)`, with any solver: `grid`
    has n steps, the repeats come on top. Several windows are a Restart whose `grid` is another.

    Raises InvalidArgumentError unless 0 < low < high, steps and times >= 1, and the window lies inside the levels of
    the grid. Source: Xu et al. 2023, alg. 2.
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

    def __call__(self, process: Any, n: int) -> Restarted:
        """The grid with its repeats, on `process`."""
        linear_gaussian(process, "a restart, which draws from the forward transition,")
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
    """A grid that goes down in runs, and between them up by the forward transition; see `Restart`."""

    def __init__(self, times: Tensor) -> None:
        self.times = times
        self._ends = float(times.min()), float(times.max())
        self.towards_data = True
        self._rounding = rounding(times)
        self._up = (times.diff() > 0).tolist()

    @property
    def passes(self) -> int:
        """How often a level may be visited."""
        return int(1 + sum(self._up))

    def cost(self, solver: Solver) -> int:
        """Those of every run, each with a start of its own."""
        cuts = [-1, *(k for k, up in enumerate(self._up) if up), len(self._up)]
        return sum(solver.cost(b - a - 1) for a, b in itertools.pairwise(cuts))

    @property
    def draws(self) -> bool:
        """Yes: the way up is noise."""
        return True

    @property
    def repeatable(self) -> bool:
        """No: levels are passed more than once."""
        return False

    def _check(self, process: Any, level: Level) -> None:
        check_levels(process, process.level(torch.unique(level.t)))

    def parts(self, solver: Solver, model: Reverse, state: OnGrid) -> Sequence[Solver]:
        """The steps of every run, with noise of its own, and a leap before each but the first."""
        cuts = [0, *(k + 1 for k, up in enumerate(self._up) if up), len(self._up) + 1]
        found: list[Solver] = []
        for visit, (a, b) in enumerate(itertools.pairwise(cuts)):
            grid = state._replace(grid=Level(*(v[a:b] for v in state.grid)))
            run = super().parts(solver, model, grid) or [solver.for_steps(b - a - 1)] * (b - a - 1)
            leap = [Leap(run[0] if run else solver, visit, self.passes)] if found else []
            found += [*leap, *(Visit(part, visit, self.passes) for part in run)]
        return found


@dataclass(frozen=True)
class Visit(Wrapper):
    """A solver whose noise is that of one visit to its levels."""

    solver: Solver
    visit: int
    visits: int

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """The solver's step."""
        return self.solver.step(model, x, now, next, carry, Branch(noise, self.visit, self.visits))


@dataclass(frozen=True)
class Leap(Visit):
    """Back to noise by the forward transition; the solver starts anew from there."""

    @property
    def evals(self) -> int:
        """Those of the solver's start."""
        return self.solver.init_evals

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """`x_next = a x_now + s z`."""
        process: Any = model.process
        a, s = process.kernel(now, next)
        z = draw(Branch(noise, self.visit, self.visits), x, now, next)
        out = combine((a, x), (s, z)).to(x.dtype)
        return Step(out, self.solver.init(model, out, next))
