"""The adaptive default: an exponential Adams method whose step and order both vary, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.grids import Grid, angular
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import SDE, check_eta
from sdegen.solvers.base import Norm, Reverse, Step, check_reverse, given
from sdegen.solvers.frame import Frame, ask, check_one_clock
from sdegen.solvers.frames import ANGLE, log_snr
from sdegen.solvers.quadrature import FAR, NEAREST, apart, newton
from sdegen.solvers.runge_kutta import starting_step
from sdegen.solvers.table import Exponential, Leg, Past, check_history, run
from sdegen.tensors import check_whole, combine, power, readable, widen

_ANGLE = ANGLE(variable=log_snr)
_SAME = 1e-9
"""The share of a step below which two nodes are in one place."""


class Nodes(NamedTuple):
    """Past values of N, newest first: where they sit `[..., m]`, the values, how many there are, the order in use.

    For levels `[...]`: `[]` on a grid, `[B]` under `sd.PI`.
    """

    at: Tensor
    values: tuple[Tensor, ...]
    known: Tensor
    order: Tensor


@strict_keywords
@dataclass(frozen=True)
class Adams(Exponential):
    r"""Exponential Adams predictor-corrector of variable step and order, one evaluation per attempt (PEC).

    From now to next the predictor of order q goes through the last q values of N; N is evaluated there, once, and the
    corrector C_{q+1}, through it and those q, is the result. In Newton form C_{q+1} - C_q is one term, and it is the
    error estimate, as are the neighbouring terms for the orders q - 1 and q + 1: the order whose step could be longest
    is the next one, up to `order`. The first step needs no past: its order is 1.

    Under `sd.PI` each sample has its own step and order. On a fixed grid it takes the highest order that its past
    allows, and is the `Multistep(order, correct=True)` that evaluates ahead. In frame TIME it runs on any
    `probability_flow`. eta > 0 adds the noise of the step, which needs an `sd.Brownian` where steps may be rejected.

    Order `order + 1` on the path for eta = 0; for eta > 0 that of the law, at most 2 (1 in TIME). Nordsieck 1962 and
    Gear 1971 for the variable order, Hochbruck & Ostermann 2010, sec. 2.5, for exponential Adams methods. Raises
    InvalidArgumentError for an order outside 1..7, a bad eta, and frames with several clocks.
    """

    order: int = 6
    frame: Frame = _ANGLE
    eta: float = 0.0
    grid: Grid = field(default=angular, repr=False)
    norm: Norm | None = field(default=None, repr=False)
    init_evals = 1
    adaptive = True
    safety = 0.6  # above it, attempts that fail cost more than long steps save

    def __post_init__(self) -> None:
        check_whole("order", self.order, 7)
        check_eta(self.eta)
        check_one_clock(self, self.frame)

    @property
    def memory(self) -> int:
        return self.order

    @property
    def clock_frame(self) -> Frame:
        return self.frame

    @property
    def dense(self) -> bool:
        """By the step's own polynomial, without noise."""
        return not self.stochastic

    @property
    def tol_share(self) -> float:
        """What a step's error may be of a tolerance for the error at the end; measured, docs/adaptive.md."""
        return self.frame.tol_share

    @property
    def data_end(self) -> bool:
        """The frame's: the second evaluation lies at the end of the step."""
        return self.frame.data_end

    @property
    def convergence(self) -> int:
        """`order + 1`; of the law, at most 2, for eta > 0."""
        return min(self.order + 1, self.frame.weak_order) if self.stochastic else self.order + 1

    def with_norm(self, norm: Norm) -> Adams:
        return replace(self, norm=norm)

    def noise_clock(self, process: Any) -> Callable[[Level], Tensor] | None:
        """The clock in which the noise gathered from t_max on is a Brownian motion, None for that of time.

        Over a step Y gathers `int e^{a (tau_next - tau)} g dw`, so `int e^{-a tau} g dw` has no memory of the step, and
        its variance up to a level is `(spread(first, level) e^{-a tau(level)} / scale(level))^2`.
        """
        if self.frame.timed:
            return None
        frame, eta, first = self.frame, self.eta, process.level(process.t_max)

        def variance(level: Level) -> Tensor:
            start = Level(*(v.to(level.t.device) for v in first))
            gathered = frame.spread(process, start, level, eta) / frame.scale(level)
            return (gathered * torch.exp(-frame.rate(eta) * frame.clock(level))).square()

        return variance

    def blank(self, model: Reverse, x: Tensor, now: Level) -> Nodes | None:
        """A past without values, for x `[B, *S]`; a step of no length then only evaluates N."""
        return self._empty(model, x, now) if model.process.gaussian else None

    def _empty(self, model: Reverse, x: Tensor, now: Level) -> Nodes:
        check_reverse(self, model, self.eta)
        far = FAR * torch.arange(1, self.order + 1, dtype=torch.float64, device=now.t.device)
        none = torch.zeros_like(now.t, dtype=torch.int64)
        values = tuple(torch.zeros_like(widen(x)) for _ in range(self.order))
        return Nodes(far.expand(*now.t.shape, -1).clone(), values, none, none.clone())

    def init(self, model: Reverse, x: Tensor, now: Level) -> Nodes:
        """N at now, and nothing before it."""
        empty = self._empty(model, x, now)
        value = widen(ask(model, x, now, self.frame.unit_asked(model, now, self.eta)))
        at = torch.cat([self.frame.coordinate(now)[..., None], empty.at[..., 1:]], -1)
        return Nodes(at, (value, *empty.values[1:]), empty.known + 1, empty.order + 1)

    def _legs(self, model: Any, now: Level, next: Level, past: Nodes) -> tuple[list[Leg], Tensor, Tensor]:
        """The legs, the corrector's nodes, and its weights term by term."""
        frame, still = self.frame, now.t == next.t
        # steps that are judged by their errors grow fast from a short first one, and want all nodes
        nearest = NEAREST if self.norm is None else _SAME
        behind = apart(past.at, frame.coordinate(next) - frame.coordinate(now), nearest)
        decay, terms = newton(frame, self.eta, now, next, behind)
        ahead = _up_to(terms, past.order - 1)
        # a row that stands still would have two nodes in one place, as would a step where all is noise
        here = frame.coordinate(next)
        here = torch.where(still | (here == past.at[..., 0]), frame.coordinate(now) + 1, here)
        at = torch.cat([here[..., None], behind], -1)
        terms = newton(frame, self.eta, now, next, at)[1]
        terms = torch.where(still[..., None, None], 0.0, terms)
        weights = _up_to(terms, past.order)
        spread: Any = 0.0
        if self.stochastic:
            spread = torch.where(still, 0.0, frame.spread(model.process, now, next, self.eta))
        want = frame.unit_asked(model, next, self.eta)
        legs = [
            Leg(now, None, decay, ahead.unbind(-1), (), 1.0, spread, self.stochastic),
            Leg(next, want, decay, weights.unbind(-1)),
        ]
        return legs, at, terms

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Nodes, noise: NoiseSource | None) -> Step:
        """Predict x at `next`, evaluate N there, correct x with it."""
        check_history(carry.values, x)
        used = self._used(carry.order)
        recent = carry._replace(at=carry.at[..., :used], values=carry.values[:used])
        legs, at, terms = self._legs(model, now, next, recent)
        source = given(noise) if self.stochastic else None
        out, values, _, _ = run(legs, model, x, Past(None, recent.values), source, next)
        known = torch.clamp(carry.known + 1, max=self.order)
        moved = torch.cat([self.frame.coordinate(next)[..., None], carry.at[..., :-1]], -1)
        past = Nodes(moved, (values[0], *carry.values[:-1]), known, known.clone())
        answer = Step(out.to(x.dtype), past, inner=(x, at, values, carry.order))
        return self._judged(answer, x, next, terms, values, carry, known)

    def _used(self, order: Tensor) -> int:
        """How many past values any row needs now: all, where that cannot be read without waiting."""
        if order.device.type != "cpu" or not readable(order) or not order.numel():
            return self.order
        return min(self.order, int(order.max()) + 1)

    def _judged(
        self, step: Step, x: Tensor, next: Level, terms: Tensor, values: tuple[Tensor, ...], carry: Nodes, known: Tensor
    ) -> Step:
        """The step with its error, and the order of the next one, or of another attempt."""
        order = carry.order
        if self.norm is None:
            return step._replace(error=_term(terms, values, order), order=self._power(order))
        tried = (order - 1, order > 1), (order, order > 0), (order + 1, (order < self.order) & (carry.known > order))
        errors = [_term(terms, values, k) for k, _ in tried]
        reach = [
            torch.where(allowed, power(self.norm(e, x, step.x, next).clamp(min=1e-30), -1 / self._power(k)), 0.0)
            for e, (k, allowed) in zip(errors, tried)
        ]
        down, up = reach[0] > reach[1], reach[2] > torch.maximum(reach[0], reach[1])
        after = torch.where(up, order + 1, torch.where(down, order - 1, order))
        after = torch.minimum(after.clamp(min=1), known)
        growth = torch.maximum(torch.maximum(reach[0], reach[1]), reach[2])
        past = step.carry._replace(order=after)
        again = carry._replace(order=torch.where(down & (order > 1), order - 1, order))
        return step._replace(carry=past, error=errors[1], order=self._power(order), retry=again, growth=growth)

    def _power(self, order: Tensor) -> Tensor:
        """With which power of the step the term of an order falls; values of N have noise of half a power in them."""
        return order.to(torch.float64) + (0.5 if self.stochastic else 1.0)

    def inside(self, process: SDE, now: Level, next: Level, inner: tuple[Any, ...], at: Level) -> Tensor:
        """x at a level inside of a step, by the step's own polynomial. Raises InvalidArgumentError for eta > 0."""
        if self.stochastic:
            raise InvalidArgumentError(f"{self} draws noise, and a path with noise has no polynomial inside of steps")
        x, nodes, values, order = inner
        decay, terms = newton(self.frame, 0.0, now, at, nodes)
        return combine((decay, x), *zip(_up_to(terms, order).unbind(-1), values)).to(x.dtype)

    def first_step(
        self, model: Reverse, x: Tensor, now: Level, end: Level, carry: Nodes, norm: Norm
    ) -> tuple[Tensor | None, int]:
        """On a general SDE `starting_step`; on a process None, where the controller's bound on a step serves."""
        if model.process.gaussian:
            return None, 0

        def slope(y: Tensor, level: Level) -> Tensor:
            return self.frame.field(model, y, level, self.eta)

        return starting_step(self.frame, slope, model.process, x, now, end, carry.values[0], norm, 1), 1


def _up_to(terms: Tensor, k: Tensor) -> Tensor:
    """The weights `[..., j]` of the nodes in the Newton terms 0 to k `[...]`."""
    return (terms * (torch.arange(terms.shape[-1], device=terms.device) <= k[..., None])[..., None, :]).sum(-1)


def _term(terms: Tensor, values: tuple[Tensor, ...], k: Tensor) -> Tensor:
    """The k-th Newton term `[B, *S]`, k `[B]`."""
    index = k.clamp(0, terms.shape[-1] - 1)[..., None, None].expand(*terms.shape[:-1], 1)
    return combine(*zip(terms.gather(-1, index)[..., 0].unbind(-1), values))
