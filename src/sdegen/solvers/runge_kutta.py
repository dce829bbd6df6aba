"""Runge-Kutta methods on the probability flow, in any frame; a method is a tableau."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.grids import Grid, karras
from sdegen.level import Level
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Norm, Reverse, Step, between, check_reverse
from sdegen.solvers.eta import is_zero
from sdegen.solvers.frame import Frame, ask, check_one_clock
from sdegen.solvers.frames import SIGMA
from sdegen.solvers.table import Leg, Past, Ran, Table
from sdegen.solvers.tableaus import HEUN, Tableau
from sdegen.tensors import check_type, combine, like, mean_square, power, widen

Slope = Callable[[Tensor, Level], Tensor]


@strict_keywords
@dataclass(frozen=True)
class RungeKutta(Table):
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
        check_type(self.tableau, Tableau, "tableau must be a Tableau such as sd.tableaus.RK4")
        check_one_clock(self, self.frame)

    @property
    def data_end(self) -> bool:
        """The frame's: a stage lies at the end of the step."""
        return self.frame.data_end

    @property
    def evals(self) -> int:
        """One network evaluation per stage, but for a slope that is carried."""
        return len(self.tableau.b) - self.tableau.fsal

    @property
    def init_evals(self) -> int:
        return int(self.tableau.fsal)

    @property
    def memory(self) -> int:
        return int(self.tableau.fsal)

    @property
    def adaptive(self) -> bool:
        return bool(self.tableau.error)

    @property
    def dense(self) -> bool:
        return self.tableau.inner(torch.ones((), dtype=torch.float64, device="cpu")) is not None

    @property
    def max_jump(self) -> float:
        return self.evals / 2  # a step sees what lies at its stages

    @property
    def convergence(self) -> int:
        return self.tableau.order

    @property
    def exact(self) -> tuple[str, ...]:
        """Those of the frame, where it has no linear part to integrate."""
        return self.frame.exact if self.frame.rate(0.0) == 0.0 else ()

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        """The slope at now, where it is carried."""
        check_reverse(self, model, 0.0)
        return Past(None, (widen(self._slope(model, x, now)),) if self.tableau.fsal else ())

    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """A leg to every stage and one to the end; a carried slope is not asked for, that of the end is."""
        legs = self._stages(model, now, next)
        if self.tableau.fsal:  # the last stage is the slope at the end, where x is already
            legs[0], legs[-1] = legs[0]._replace(want=None), legs[-1]._replace(on_x=None, on=())
        return legs

    def first_legs(self, model: Any, now: Level, next: Level) -> list[Leg]:
        """The legs of a step that carries nothing and asks for N at first, where others ask for `rate Y + N` itself."""
        legs = self._stages(model, now, next)
        if self.tableau.fsal:
            legs = legs[:-1]
        want, rate = self.frame.unit_asked(model, now, 0.0), self.frame.rate(0.0)
        if not is_zero(rate):
            more = rate / self.frame.scale(now)
            legs = [leg._replace(on_x=leg.on_x + leg.on[-1] * more) for leg in legs]
        return [legs[0]._replace(want=want), *legs[1:]]

    def _stages(self, model: Any, now: Level, next: Level) -> list[Leg]:
        """A leg from every stage, the slope asked for at its beginning."""
        frame, tableau = self.frame, self.tableau
        start, into = frame.clock(now), 1 / frame.scale(now)
        h = frame.clock(next) - start
        shares = [sum(row) for row in tableau.a]
        levels = [self._stage(model.process, now, next, start + min(1.0, c) * h, c) for c in shares]
        legs = []
        for level, there, row in zip(levels, [*levels[1:], next], [*tableau.a[1:], tableau.b]):
            scale = frame.scale(there)
            on = tuple(scale * weight * h if weight else 0.0 for weight in reversed(row))
            legs.append(Leg(level, frame.slope_asked(model, level), scale * into, on))
        return legs

    def judged(self, model: Any, x: Tensor, now: Level, next: Level, at: Any, ran: Ran, step: Step) -> Step:
        """The step with its embedded error, and the slopes for dense output."""
        frame, tableau = self.frame, self.tableau
        slopes = ran[1][: len(tableau.b)][::-1]
        error = None
        if tableau.error:
            scale = frame.scale(next) * (frame.clock(next) - frame.clock(now))
            error = combine(*((scale * weight, k) for weight, k in zip(tableau.error, slopes) if weight))
            if tableau.second:
                other = combine(*((scale * weight, k) for weight, k in zip(tableau.second, slopes) if weight))
                size, second = mean_square(error), mean_square(other)
                whole = size + 0.01 * second
                error = error * like(torch.sqrt(size / torch.where(whole > 0, whole, 1.0)), error)
        return step._replace(error=error, order=float(tableau.order_error), inner=(x, *slopes))

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
        self, model: Reverse, x: Tensor, now: Level, end: Level, carry: Past, norm: Norm
    ) -> tuple[Tensor, int]:
        """The clock's first step, `[]` or `[B]`, from the slope and its change over a small step (`starting_step`)."""
        first = carry.values[0] if carry.values else self._slope(model, x, now)
        slope = functools.partial(self._slope, model)
        step = starting_step(self.frame, slope, model.process, x, now, end, first, norm, self.tableau.order)
        return step, 2 - len(carry.values)

    def _slope(self, model: Any, x: Tensor, level: Level) -> Tensor:
        """`rate Y + N` at x."""
        return ask(model, x, level, self.frame.slope_asked(model, level))

    def _stage(self, process: SDE, now: Level, next: Level, tau: Tensor, c: float) -> Level:
        """The level of the stage at the share c of the step, at the clock tau."""
        if c == 0.0 or abs(c - 1) < 1e-12:
            return next if c else now
        return between(process, self.frame.level(process, tau).t, now, next)


def starting_step(
    frame: Frame, slope: Slope, process: SDE, x: Tensor, now: Level, end: Level, first: Tensor, norm: Norm, order: int
) -> Tensor:
    """The first step in the frame's clock, positive, `[B]`, from the slope `first` at now and one more of a small step.

    `h0 = d0/(100 d1)`, `h = (1/(100 max(d1, d2)))^(1/(order + 1))` and at most 100 h0, with d0, d1, d2 the sizes of Y,
    its slope, and its second derivative (Hairer, Norsett & Wanner 1993, sec. II.4); never beyond `end`.
    """
    start = frame.clock(now)
    whole = (frame.clock(end) - start).abs()
    scale = frame.scale(now)
    d0 = norm(x, x, x, now)
    d1 = norm(combine((scale, first)), x, x, now)
    known = (d0 > 1e-5) & (d1 > 1e-5)
    h0 = torch.where(known, 0.01 * d0 / torch.where(known, d1, 1.0), 1e-6 * whole)
    h0 = torch.minimum(h0, whole)
    ahead = start + torch.sign(frame.clock(end) - start) * h0
    level = frame.level(process, ahead)
    y = combine((frame.scale(level) / scale, x), (frame.scale(level) * (ahead - start), first)).to(x.dtype)
    change = slope(y, level) - first
    d2 = norm(combine((scale, change)), x, x, now) / h0
    most = torch.maximum(d1, d2)
    h1 = torch.where(most > 1e-15, power(0.01 / most.clamp(min=1e-15), 1 / (order + 1)), h0 * 1e3)
    chosen = torch.minimum(torch.minimum(100 * h0, h1), whole)
    return torch.where(chosen.isfinite() & (chosen > 0), chosen, 1e-3 * whole)
