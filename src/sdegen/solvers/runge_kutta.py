"""Runge-Kutta methods on the probability flow, in any frame; a method is a tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import Grid, karras
from sdegen.level import Level, points
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.solvers.base import OneStep, Reverse, Solver, Step, between, check_reverse
from sdegen.solvers.frames import SIGMA, Frame, check_frame, refuse_grouped
from sdegen.solvers.starting import Norm, starting_step
from sdegen.solvers.table import Ask, Known, asked, ends, numbers
from sdegen.solvers.tableaus import HEUN, Tableau
from sdegen.tensors import combine, like, mean_square


@dataclass(frozen=True)
class RungeKutta(OneStep):
    """An explicit Runge-Kutta method on `dY/dtau = rate Y + N` of a frame, one evaluation per stage.

    Deterministic, of the tableau's order; in frame TIME it also runs on a general `sde.probability_flow(score)`. A
    tableau with an embedded error runs adaptively under `sd.PI`; where its last stage is the next step's first (FSAL),
    that slope is carried, and costs one evaluation before the first step. Point-mass data are exact in SIGMA. Raises
    InvalidArgumentError for a `ReverseSDE` with eta > 0.
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
        """One network evaluation per stage, but for a slope that is carried."""
        return len(self.tableau.b) - self.tableau.fsal

    @property
    def primes(self) -> int:
        """Network evaluations before the first step."""
        return int(self.tableau.fsal)

    @property
    def memory(self) -> int:
        """Whether the slope at the end of a step is carried."""
        return int(self.tableau.fsal)

    @property
    def adaptive(self) -> bool:
        """Whether a step has an error estimate."""
        return bool(self.tableau.error)

    @property
    def jump(self) -> float:
        """How far an adaptive step may go in log-SNR: a step sees what lies at its stages."""
        return self.evals / 2

    @property
    def convergence(self) -> int:
        """The tableau's order."""
        return self.tableau.order

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those of the frame, where it has no linear part to integrate."""
        return self.frame.exact if self.frame.rate(0.0) == 0.0 else ()

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[Tensor, ...]:
        """The slope at now, where it is carried."""
        check_reverse(self, model, 0.0)
        return (self._slope(model, x, now),) if self.tableau.fsal else ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[Tensor, ...], noise: NoiseSource | None
    ) -> Step:
        """All stages from now to next."""
        frame, tableau = self.frame, self.tableau
        if carry and carry[0].shape != x.shape:
            raise InvalidArgumentError(
                f"the carry holds a slope of shape {list(carry[0].shape)} and x has {list(x.shape)}: start anew with "
                "init() when the batch changes"
            )
        h, slopes, out = self._stages(model, x, now, next, *carry)
        error = None
        if tableau.error:
            scale = frame.scale(next) * h
            error = combine(*((scale * weight, k) for weight, k in zip(tableau.error, slopes) if weight))
            if tableau.second:
                other = combine(*((scale * weight, k) for weight, k in zip(tableau.second, slopes) if weight))
                size, second = mean_square(error), mean_square(other)
                whole = size + 0.01 * second
                error = error * like(torch.sqrt(size / torch.where(whole > 0, whole, 1.0)), error)
        after = (slopes[-1],) if tableau.fsal else ()
        return Step(out, after, error, float(tableau.order_error), inner=(x, *slopes))

    def through(self, model: Reverse, x: Tensor, now: Level, next: Level, first: Tensor | None = None) -> Tensor:
        """x at `next` by all stages; `first` is N at now, where it is known already."""
        rate = self.frame.rate(0.0)
        if first is not None and rate:
            first = combine((rate / self.frame.scale(now), x), (torch.ones_like(now.t), first))
        return self._stages(model, x, now, next, first)[2]

    def inside(self, process: SDE, now: Level, next: Level, inner: tuple[Tensor, ...], at: Level) -> Tensor:
        """x at a level inside of a step, by the tableau's dense weights. Raises InvalidArgumentError without them."""
        frame, (x, *slopes) = self.frame, inner
        start = frame.clock(now)
        h = frame.clock(next) - start
        weights = self.tableau.inner((frame.clock(at) - start) / torch.where(h == 0, 1.0, h))
        if weights is None:
            raise InvalidArgumentError(f"the tableau {self.tableau} has no dense output: give its `dense` weights")
        scale = frame.scale(at)
        terms = [(scale * h * weight, k) for weight, k in zip(weights, slopes)]
        return combine((scale / frame.scale(now), x), *terms).to(x.dtype)

    def first_step(
        self, model: Reverse, x: Tensor, now: Level, end: Level, carry: tuple[Tensor, ...], norm: Norm
    ) -> tuple[Tensor, int]:
        """The clock's first step, `[]` or `[B]`, from the slope and its change over a small step (`starting_step`)."""
        slope = carry[0] if carry else self._slope(model, x, now)
        return starting_step(
            self.frame,
            lambda y, level: self._slope(model, y, level),
            model.process,
            x,
            now,
            end,
            slope,
            norm,
            self.tableau.order,
        ), 2 - len(carry)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """A solver per step of the grid with levels `[n + 1]`, in frames without a linear part; the same method."""
        frame = self.frame
        if isinstance(model, ReverseSDE) or frame.rate(0.0) != 0.0 or self.tableau.fsal:
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

    def _slope(self, model: Reverse, x: Tensor, level: Level) -> Tensor:
        """`rate Y + N` at x."""
        n, rate = self.frame.field(model, x, level, 0.0), self.frame.rate(0.0)
        if not rate:
            return n
        return combine((rate / self.frame.scale(level), x), (torch.ones_like(level.t), n))

    def _stages(
        self, model: Reverse, x: Tensor, now: Level, next: Level, first: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The clock's step, the slopes of Y at all stages (`first`: the one at now, where it is known), x at next."""
        frame, start = self.frame, self.frame.clock(now)
        h = frame.clock(next) - start
        into, fsal = 1 / frame.scale(now), self.tableau.fsal
        slopes = [self._slope(model, x, now) if first is None else first]
        at = x
        for row in self.tableau.a[1:]:
            c = min(1.0, sum(row))
            level = self._stage(model, now, next, start + c * h, c)
            scale = frame.scale(level)
            terms = [(scale * weight * h, k) for weight, k in zip(row, slopes) if weight]
            at = combine((scale * into, x), *terms).to(x.dtype)
            slopes.append(self._slope(model, at, level))
        if fsal:
            return h, slopes, at
        scale = frame.scale(next)
        terms = [(scale * weight * h, k) for weight, k in zip(self.tableau.b, slopes) if weight]
        return h, slopes, combine((scale * into, x), *terms).to(x.dtype)

    def _stage(self, model: Reverse, now: Level, next: Level, tau: Tensor, c: float) -> Level:
        """The level of the stage at the share c of the step, at the clock tau."""
        if c == 0.0 or abs(c - 1) < 1e-12:
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
