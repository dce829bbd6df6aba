"""Runge-Kutta methods on the probability flow, in any frame; a method is a tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.frames import SIGMA, Frame, check_frame, refuse_grouped
from sdegen.grids import Grid, karras
from sdegen.noise import NoiseSource
from sdegen.sde import Level, ReverseSDE, points
from sdegen.solvers.base import OneStep, Reverse, Solver, Step, between, check_reverse
from sdegen.solvers.fused import Ask, Known, asked, ends, numbers
from sdegen.tensors import combine


@dataclass(frozen=True, repr=False)
class Tableau:
    """An explicit Runge-Kutta method (Butcher 1964): stage i at `c_i` from `sum_j a_ij k_j`, result `sum_i b_i k_i`."""

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise InvalidArgumentError(f"tableau {self.name}: row i of a needs i entries, and b one per stage")
        if abs(sum(self.b) - 1) > 1e-12:
            raise InvalidArgumentError(f"tableau {self.name}: b must sum to 1, got {sum(self.b)}")

    def __repr__(self) -> str:
        return self.name.upper()


EULER = Tableau("euler", 1, ((),), (1.0,))
MIDPOINT = Tableau("midpoint", 2, ((), (1 / 2,)), (0.0, 1.0))
HEUN = Tableau("heun", 2, ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau("rk4", 4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class RungeKutta(OneStep):
    """An explicit Runge-Kutta method on `dY/dtau = rate Y + N` of a frame, one evaluation per stage.

    Deterministic, of the tableau's order; in frame TIME it also runs on a general `sde.probability_flow(score)`.
    Point-mass data are exact in SIGMA. Raises InvalidArgumentError for a `ReverseSDE` with eta > 0.
    """

    tableau: Tableau = HEUN
    frame: Frame = SIGMA
    grid: Grid = field(default=karras, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.tableau, Tableau):
            raise InvalidTypeError(f"tableau must be a Tableau such as sd.RK4, got {self.tableau!r}")
        check_frame(self.frame)
        refuse_grouped(self, self.frame)

    @property
    def evals(self) -> int:
        """One network evaluation per stage."""
        return len(self.tableau.b)

    @property
    def convergence(self) -> int:
        """The tableau's order."""
        return self.tableau.order

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those of the frame, where it has no linear part to integrate."""
        return self.frame.exact if self.frame.rate(0.0) == 0.0 else ()

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        check_reverse(self, model, 0.0)
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """All stages from now to next."""
        return Step(self.through(model, x, now, next), carry)

    def through(self, model: Reverse, x: Tensor, now: Level, next: Level, first: Tensor | None = None) -> Tensor:
        """x at `next` by all stages; `first` is N at now, where it is known already."""
        frame, start = self.frame, self.frame.clock(now)
        h = frame.clock(next) - start
        into, zero = 1 / frame.scale(now), torch.zeros_like(h)
        slopes: list[Tensor] = []
        for row in self.tableau.a:
            c = sum(row)
            level = self._stage(model, now, next, start + c * h, c)
            terms = [(weight * h, k) for weight, k in zip(row, slopes) if weight]
            y = combine((into, x), *terms)
            at = x if not slopes else combine((frame.scale(level), y)).to(x.dtype)
            n = first if first is not None and not slopes else frame.field(model, at, level, 0.0)
            rate = frame.rate(0.0)
            slopes.append(combine((zero + rate, y), (zero + 1.0, n)) if rate else n)
        scale = frame.scale(next)
        terms = [(scale * weight * h, k) for weight, k in zip(self.tableau.b, slopes) if weight]
        return combine((scale * into, x), *terms).to(x.dtype)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """A solver per step of the grid with levels `[n + 1]`, in frames without a linear part; the same method."""
        frame = self.frame
        if isinstance(model, ReverseSDE) or frame.rate(0.0) != 0.0:
            return ()
        now, next = ends(levels)
        start = frame.clock(now)
        h, into = frame.clock(next) - start, 1 / frame.scale(now)
        here = [self._stage(model, now, next, start + sum(row) * h, sum(row)) for row in self.tableau.a]
        asks = [asked(model, level, frame.want(model.process, level, 0.0)) for level in here]
        rows = []
        for level, row in zip([*here, next], [*self.tableau.a, self.tableau.b]):
            scale = frame.scale(level)
            rows.append(numbers(torch.stack([scale * into, *(scale * weight * h for weight in row)], -1)))
        return [_Known(self, *parts) for parts in zip(zip(*map(points, here)), zip(*asks), zip(*rows))]

    def _stage(self, model: Reverse, now: Level, next: Level, tau: Tensor, c: float) -> Level:
        """The level of the stage at the share c of the step, at the clock tau."""
        if c in (0.0, 1.0):
            return next if c else now
        return between(model.process, self.frame.level(model.process, tau).t, now, next)


@dataclass(frozen=True)
class _Known(Known):
    """One step on a known grid: the levels of the stages, and the weights of x and the slopes, row by row."""

    levels: tuple[Level, ...]
    asks: tuple[Ask, ...]
    rows: tuple[list[float], ...]

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        slopes: list[Tensor] = []
        at = x
        for level, ask, row in zip(self.levels, self.asks, self.rows[1:]):
            slopes.append(ask(model, at, level))
            terms = [(weight, k) for weight, k in zip(row[1:], slopes) if weight]
            at = combine((row[0], x), *terms).to(x.dtype)
        return Step(at, carry)
