"""Exponential Adams methods in any frame; with a start at full order; and several of them, by the number of steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, check_known, strict_keywords
from sdegen.grids import Grid, by_snr, natural
from sdegen.level import Level
from sdegen.processes.sde import SDE, check_eta
from sdegen.solvers.base import Reverse, Solver, Step, check_reverse
from sdegen.solvers.compose import Wrapper
from sdegen.solvers.eta import eta_of_step
from sdegen.solvers.frame import Frame, check_frame
from sdegen.solvers.frames import DATA, SIGMA
from sdegen.solvers.quadrature import FAR, Weights, weights
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.table import Exponential, Leg, Past, Ran, Table, ends, plain
from sdegen.solvers.tableaus import HEUN
from sdegen.tensors import check_type, check_whole, readable

_FINE = 4096


@strict_keywords
@dataclass(frozen=True, repr=False)
class Multistep(Exponential, Table):
    """One evaluation a step: the polynomial through this one and the `order - 1` before it, integrated exactly.

    With `correct=True` each evaluation, made at the predicted x, also corrects that x through `order + 1` nodes, itself
    the newest (PEC), so the order becomes `order + 1` at no cost; the end of the grid is left predicted. `correct=k`
    takes k nodes instead. `eta` is constant, or a function `(now, next) -> eta` of the step's levels: `WindowEta`,
    `DDIMEta` of `sd.solvers.eta`, or your own; with memory only in
    DATA, NOISE, SIGMA and WIENER, where past values serve every eta.

    pair: how a polynomial through two nodes counts, 'exact' by its integral, or by one of two shortcuts of the same
    order and another constant: 'midpoint' by its value in the middle of the step (DPM-Solver++ 2M, UniPC-2 with B2),
    'flat' by its slope without the kernel (UniPC-2 with B1, SA-Solver). even: nodes count as if all steps were as long
    as this one, which makes the weights those of classical Adams methods, and the order 1 where steps change length (2
    where they change slowly).

    Order (`convergence`): `order`, or with a corrector the smaller of its nodes and `order + 1`; for eta > 0 that of
    the law, at most 2 (1 in TIME). The first step knows no past and has order 1, an error in proportion to N's
    derivative at the first level, which vanishes with the data's share of x there; `grids.graded` starts a solve at
    full order where that is not enough. With eta = 0 one step is exact for point-mass data in DATA, NOISE, SIGMA and
    FLOW (in DATA for any eta), and for N(0, sigma_data^2) data in ANGLE(sigma_data), in WIENER(sigma_data) for any eta.

    Adams 1883; Hochbruck & Ostermann 2010, sec. 2.5; Zhao et al. 2023 (UniPC) for reusing the corrector's evaluation.

    Raises InvalidArgumentError for an order outside 1..5, a corrector of more than order + 1 nodes, a bad eta, or an
    eta that changes where past values do not allow it.
    """

    order: int = 2
    frame: Frame = DATA
    eta: float | Callable[[Level, Level], Tensor] = 0.0
    correct: bool | int = False
    pair: str = "exact"
    even: bool = False
    grid: Grid = by_snr
    estimate: bool = False
    dense = True

    def __post_init__(self) -> None:
        check_whole("order", self.order, 5)
        check_frame(self.frame)
        if type(self.correct) not in (bool, int):
            raise InvalidTypeError(f"correct must be True, False or a number of nodes, got {self.correct!r}")
        if type(self.correct) is int and not 2 <= self.correct <= self.order + 1:
            raise InvalidArgumentError(
                f"correct must be True, False, or nodes from 2 to order + 1 = {self.order + 1}, got {self.correct}"
            )
        check_known("pair", self.pair, ("exact", "midpoint", "flat"))
        if self.even and self.frame.variable is not None:
            raise InvalidArgumentError("even=True counts nodes in steps; leave the frame's variable out")
        if not callable(self.eta):
            check_eta(self.eta)
        elif self.memory and not self.frame.scaled:
            raise InvalidArgumentError(
                f"in frame {self.frame} an eta that varies from step to step needs order=1 and correct=False: past "
                "values of N hold the eta they were made with; use sd.DATA, NOISE, SIGMA or WIENER"
            )

    def __repr__(self) -> str:
        rest = (f", pair={self.pair!r}" if self.pair != "exact" else "") + (", even=True" if self.even else "")
        return f"Multistep(order={self.order}, frame={self.frame}, eta={self.eta}, correct={self.correct}{rest})"

    @property
    def nodes(self) -> int:
        """How many nodes the corrector takes, 0 without one."""
        return self.order + 1 if self.correct is True else int(self.correct)

    @property
    def remembers_start(self) -> bool:
        return bool(self.correct)

    @property
    def memory(self) -> int:
        return max(self.order, self.nodes) - 1

    @property
    def convergence(self) -> int:
        """The order at which errors fall with the step: of the path for eta = 0, of the law (weak) for eta > 0."""
        order = min(self.order + 1, self.nodes) if self.nodes else self.order
        order = min(order, 1) if self.even else order
        return min(order, self.frame.weak_order) if self.stochastic else order

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        check_reverse(self, model, self.eta)
        return super().init(model, x, now)

    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """Ask at now, correct x with it, predict x at `next`."""
        frame, at = self.frame, past.at
        eta = eta_of_step(self.eta, now, next)
        ahead = self._weights(now, next, at[..., : self.order], 0)  # type: ignore[index]
        again: tuple[Any, ...] = ()
        if self.nodes and past.level is not None:
            behind = self._weights(past.level, now, at[..., : self.nodes], 1)  # type: ignore[index]
            again = (0.0, behind.decay, *behind.nodes.unbind(-1))
        spread = frame.spread(model.process, now, next, eta) if self.stochastic else 0.0
        want = frame.unit_asked(model, now, eta)
        return [Leg(now, want, ahead.decay, ahead.nodes.unbind(-1), again, 1.0, spread, self.stochastic)]

    def judged(self, model: Any, x: Tensor, now: Level, next: Level, at: Any, ran: Ran, step: Step) -> Step:
        """The step with its last Newton term as the error, if asked for, and the predictor's nodes."""
        nodes, values = at[..., : self.order], ran[1][: self.order]
        error = None
        if self.estimate and len(values) > 1:
            error = self.frame.total(*zip(self._weights(now, next, nodes, 0).last.unbind(-1), values))
        return step._replace(error=error, order=self.order, inner=(ran[2], nodes, values))

    def inside(self, process: SDE, now: Level, next: Level, inner: tuple[Any, ...], at: Level) -> Tensor:
        """x at a level inside of a step, by the predictor's polynomial, eta = 0."""
        start, nodes, values = inner
        step = self._weights(now, at, nodes.expand(*at.t.shape, nodes.shape[-1]), 0)
        out = self.frame.join(now, at, (step.decay, start), *zip(step.nodes.unbind(-1), values))
        return out.to(start.dtype)

    def _weights(self, now: Level, next: Level, at: Tensor, newest: int) -> Weights:
        """The weights of steps through the nodes `at`, the newest one at now (0) or next (1)."""
        if self.even:
            start, h = self.frame.clock(now), self.frame.clock(next) - self.frame.clock(now)
            far = at.abs() >= FAR / 2
            steps = newest - torch.arange(at.shape[-1], dtype=at.dtype, device=at.device)
            at = torch.where(far, at, start[..., None] + h[..., None] * steps)
        return weights(self.frame, self.eta, now, next, at, pair=self.pair)


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
            raise InvalidArgumentError(f"Started takes a Multistep without noise and corrector, got {self.solver}")
        if self.start.frame != self.solver.frame:
            raise InvalidArgumentError(f"the start must be in the method's frame {self.solver.frame}, got {self.start}")
        if self.steps is not None and self.steps < 1:
            raise InvalidArgumentError(f"steps must be >= 1 or None, got {self.steps}")

    @property
    def exact(self) -> tuple[str, ...]:
        return tuple(data for data in self.solver.exact if data in self.start.exact)

    @property
    def frame(self) -> Frame:  # type: ignore[override]
        return self.solver.frame

    @property
    def starting(self) -> int:
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
class ByLength(Exponential, Table):
    """One of several multistep methods, by the number of steps: `methods` are pairs (from how many steps, method).

    Few steps want a low order and many a high one. Where the number is not known, in a step by hand, it is how often
    the step fits into its own grid at this place. Raises InvalidArgumentError unless the first pair is for one step,
    the numbers rise, and all methods have one frame and one eta.
    """

    methods: tuple[tuple[int, Multistep], ...] = ((1, Multistep(1)), (6, Multistep(2)))
    grid: Grid = field(default=natural, repr=False)

    def __post_init__(self) -> None:
        lengths = [n for n, _ in self.methods]
        for _, method in self.methods:
            check_type(method, Multistep, "methods must be pairs (from how many steps, Multistep)")
        if len({(repr(method.frame), method.eta) for _, method in self.methods}) > 1:
            raise InvalidArgumentError(f"methods must have one frame and one eta, got {self.methods}")
        if lengths[:1] != [1] or lengths != sorted(set(lengths)):
            raise InvalidArgumentError(f"methods must be for rising numbers of steps, the first for 1; got {lengths}")

    def for_steps(self, n: int) -> Multistep:
        return [method for least, method in self.methods if least <= n][-1]

    @property
    def memory(self) -> int:
        return max(method.memory for _, method in self.methods)

    @property
    def eta(self) -> Any:
        return self.methods[0][1].eta

    @property
    def frame(self) -> Frame:  # type: ignore[override]
        return self.methods[0][1].frame

    @property
    def convergence(self) -> int:
        return self.methods[-1][1].convergence

    @property
    def remembers_start(self) -> bool:
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
        share = torch.as_tensor(np.abs(place[0] - place[1]), device="cpu") / _FINE
        return (1 / share.clamp(min=1e-9)).round().to(now.t.device)


def _either(where: Tensor, one: Leg, other: Leg) -> Leg:
    """The first leg in the rows `where` `[B]`, the second in the others: alike but for their weights."""

    def chosen(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        zero = torch.zeros_like(where, dtype=torch.float64)
        return tuple(torch.where(where, zero + x, zero + y) for x, y in itertools.zip_longest(a, b, fillvalue=0.0))

    again = chosen(one.again or (1.0,), other.again or (1.0,)) if one.again or other.again else ()
    return one._replace(on_x=torch.where(where, one.on_x, other.on_x), on=chosen(one.on, other.on), again=again)
