"""Exponential Adams methods in any frame: predictor of order p, optionally a corrector of order p + 1 for free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, strict_keywords
from sdegen.grids import Grid, by_snr
from sdegen.level import Level
from sdegen.processes.sde import SDE, check_eta
from sdegen.solvers.base import Reverse, Step, check_reverse
from sdegen.solvers.eta import eta_of_step
from sdegen.solvers.frame import Frame, check_frame
from sdegen.solvers.frames import DATA
from sdegen.solvers.quadrature import FAR, Weights, assemble, weights
from sdegen.solvers.table import Leg, Past, Ran, Table


@strict_keywords
@dataclass(frozen=True, repr=False)
class Multistep(Table):
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

    def __post_init__(self) -> None:
        if type(self.order) is not int or not 1 <= self.order <= 5:
            raise InvalidArgumentError(f"order must be 1, 2, 3, 4 or 5, got {self.order!r}")
        check_frame(self.frame)
        if type(self.correct) not in (bool, int):
            raise InvalidTypeError(f"correct must be True, False or a number of nodes, got {self.correct!r}")
        if type(self.correct) is int and not 2 <= self.correct <= self.order + 1:
            raise InvalidArgumentError(
                f"correct must be True, False, or a number of nodes from 2 to order + 1 = {self.order + 1}, got "
                f"{self.correct}"
            )
        if self.pair not in ("exact", "midpoint", "flat"):
            raise InvalidArgumentError(f"pair must be 'exact', 'midpoint' or 'flat', got {self.pair!r}")
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
        """Whether there is a corrector."""
        return bool(self.correct)

    @property
    def dense(self) -> bool:
        """By the predictor's polynomial, without noise."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero."""
        return callable(self.eta) or self.eta > 0

    @property
    def memory(self) -> int:
        """The number of past evaluations carried."""
        return max(self.order, self.nodes) - 1

    @property
    def convergence(self) -> int:
        """The order at which errors fall with the step: of the path for eta = 0, of the law (weak) for eta > 0."""
        order = min(self.order + 1, self.nodes) if self.nodes else self.order
        order = min(order, 1) if self.even else order
        if not self.stochastic:
            return order
        return min(order, self.frame.weak_order)

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those of the frame, for eta > 0 where its linear part holds the noise."""
        return self.frame.exact if not self.stochastic or self.frame.lawful else ()

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        """A history of nodes so far away that they have no weight."""
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
        out, _ = assemble(self.frame, step, now, at, start, values)
        return out.to(start.dtype)

    def _weights(self, now: Level, next: Level, at: Tensor, newest: int) -> Weights:
        """The weights of steps through the nodes `at`, the newest one at now (0) or next (1)."""
        if self.even:
            start, h = self.frame.clock(now), self.frame.clock(next) - self.frame.clock(now)
            far = at.abs() >= FAR / 2
            steps = newest - torch.arange(at.shape[-1], dtype=at.dtype, device=at.device)
            at = torch.where(far, at, start[..., None] + h[..., None] * steps)
        return weights(self.frame, self.eta, now, next, at, unit=True, pair=self.pair)
