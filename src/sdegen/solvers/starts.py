"""Multistep methods that start with another, and that are chosen by the number of steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, strict_keywords
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Reverse, Solver, Step
from sdegen.solvers.compose import Wrapper
from sdegen.solvers.frame import Frame
from sdegen.solvers.frames import SIGMA
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.table import Leg, Past, Ran, Table, ends, plain
from sdegen.solvers.tableaus import HEUN
from sdegen.tensors import readable

_FINE = 4096


@strict_keywords
@dataclass(frozen=True)
class Started(Wrapper, Table):
    """A multistep method whose first steps are a Runge-Kutta method's, so that it starts at its full order.

    `steps` of them (the history's length if None), in the method's own frame; what they evaluate at the beginning of a
    step is the method's past.

    PNDM starts like this (Liu et al. 2022, sec. 3.3). Raises InvalidArgumentError for a method with noise or corrector,
    a start in another frame, or steps < 1.
    """

    solver: Multistep = field(default_factory=lambda: Multistep(frame=SIGMA))
    start: RungeKutta = field(default_factory=lambda: RungeKutta(HEUN))
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.solver.stochastic or self.solver.correct:
            raise InvalidArgumentError(
                f"Started takes a multistep method without noise and corrector, got {self.solver}"
            )
        if self.start.frame != self.solver.frame:
            raise InvalidArgumentError(
                f"the start must be in the method's frame {self.solver.frame}, whose past it makes; got {self.start}"
            )
        if self.steps is not None and self.steps < 1:
            raise InvalidArgumentError(f"steps must be >= 1 or None, got {self.steps}")

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those that are so for both parts."""
        return tuple(data for data in self.solver.exact if data in self.start.exact)

    @property
    def frame(self) -> Frame:  # type: ignore[override]
        """The method's frame."""
        return self.solver.frame

    @property
    def starting(self) -> int:
        """The number of steps that the start makes."""
        return self.solver.memory if self.steps is None else self.steps

    def cost(self, n: int) -> int:
        """Those of the first steps, and one for each of the others."""
        return n + min(n, self.starting) * (self.start.evals - 1)

    def skipped(self, count: int) -> int:
        """The slopes of a first step, but for the first one."""
        return self.start.evals - 1 if count < self.starting else 0

    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """The start's legs in the first steps, the method's in the others."""
        if past.taken >= self.starting:
            return self.solver.legs(model, now, next, past)
        return self.start.first_legs(model, now, next)

    def judged(self, model: Any, x: Tensor, now: Level, next: Level, at: Any, ran: Ran, step: Step) -> Step:
        """The step, counting what a first one evaluates."""
        return step._replace(evals=len(ran[1]) - self.memory)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """The first steps by `start`, the others by the method."""
        rows = list(self.solver.on(model, levels))
        count = min(self.starting, len(rows))
        if not count:
            return rows
        now, next = (Level(*(v[:count] for v in end)) for end in ends(levels))
        first = plain(self.legs(model, now, next, Past(None, ())), model, count)
        if first is None:
            return ()
        return [*self.rows(first, self.skipped(0)), *rows[count:]]


@strict_keywords
@dataclass(frozen=True)
class ByLength(Table):
    """One of several multistep methods, by the number of steps: `methods` are pairs (from how many steps, method).

    Few steps want a low order and many a high one. Where the number is not known, in a step by hand, it is how often
    the step fits into its own grid at this place. Raises InvalidArgumentError unless the first pair is for one step,
    the numbers rise, and all methods have one frame and one eta.
    """

    methods: tuple[tuple[int, Multistep], ...] = ((1, Multistep(1)), (6, Multistep(2)))
    grid: Grid = field(default=natural, repr=False)

    def __post_init__(self) -> None:
        lengths = [n for n, _ in self.methods]
        if not all(isinstance(method, Multistep) for _, method in self.methods):
            raise InvalidTypeError(f"methods must be pairs (from how many steps, Multistep), got {self.methods}")
        if len({(repr(method.frame), method.eta) for _, method in self.methods}) > 1:
            raise InvalidArgumentError(f"methods must have one frame and one eta, got {self.methods}")
        if lengths[:1] != [1] or lengths != sorted(set(lengths)):
            raise InvalidArgumentError(f"methods must be for rising numbers of steps, the first for 1; got {lengths}")

    def for_steps(self, n: int) -> Multistep:
        """The method for n steps."""
        return [method for least, method in self.methods if least <= n][-1]

    @property
    def stochastic(self) -> bool:
        """Whether one of the methods draws noise."""
        return any(method.stochastic for _, method in self.methods)

    @property
    def memory(self) -> int:
        """The most that one of the methods carries."""
        return max(method.memory for _, method in self.methods)

    @property
    def eta(self) -> Any:
        """The methods' eta."""
        return self.methods[0][1].eta

    @property
    def frame(self) -> Frame:  # type: ignore[override]
        """The methods' frame."""
        return self.methods[0][1].frame

    @property
    def convergence(self) -> int:
        """The order of the method for the most steps."""
        return self.methods[-1][1].convergence

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact."""
        return self.methods[0][1].exact

    @property
    def remembers_start(self) -> bool:
        """Whether one of the methods has a corrector."""
        return any(method.remembers_start for _, method in self.methods)

    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """Those of the method for steps as long as this one, row by row."""
        counts = self._fitting(model.process, now, next)
        legs = self.methods[0][1].legs(model, now, next, past)
        for least, method in self.methods[1:]:
            longer = counts >= least
            if bool(longer.all()):
                legs = method.legs(model, now, next, past)
            elif bool(longer.any()):
                legs = [_either(longer, *method.legs(model, now, next, past), *legs)]
        return legs

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """The steps of the method for this many."""
        return self.for_steps(len(levels.t) - 1).on(model, levels)

    def _fitting(self, process: SDE, now: Level, next: Level) -> Tensor:
        """How many steps like those from now to next the own grid would have, of the levels' shape."""
        if not (readable(now.t) and readable(next.t)):
            raise InvalidArgumentError(
                "a step by hand takes the method for as many steps as are like it, and here its levels cannot be read "
                "(while tracing or compiling): take one, solver.for_steps(n)"
            )
        times = self.grid(process, _FINE).flip(0).numpy()
        place = np.interp(torch.stack([now.t, next.t]).detach().cpu().numpy(), times, np.arange(_FINE + 1))
        share = torch.from_numpy(np.abs(place[0] - place[1])) / _FINE
        return (1 / share.clamp(min=1e-9)).round().to(now.t.device)


def _either(where: Tensor, one: Leg, other: Leg) -> Leg:
    """The first leg in the rows `where` `[B]`, the second in the others: alike but for their weights."""

    def chosen(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        zero = torch.zeros_like(where, dtype=torch.float64)
        return tuple(torch.where(where, zero + x, zero + y) for x, y in itertools.zip_longest(a, b, fillvalue=0.0))

    again = chosen(one.again or (1.0,), other.again or (1.0,)) if one.again or other.again else ()
    return one._replace(on_x=torch.where(where, one.on_x, other.on_x), on=chosen(one.on, other.on), again=again)
