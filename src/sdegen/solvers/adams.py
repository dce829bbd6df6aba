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
from sdegen.solvers.base import Norm, Reverse, Solver, Step, check_reverse
from sdegen.solvers.frame import Frame, ask, check_frame, refuse_grouped
from sdegen.solvers.frames import ANGLE, log_snr
from sdegen.solvers.quadrature import FAR, newton
from sdegen.solvers.starting import starting_step
from sdegen.solvers.table import Leg, Past, needed, run
from sdegen.tensors import combine, power, readable, widen

_ANGLE = ANGLE(variable=log_snr)


class Nodes(NamedTuple):
    """Past values of N, newest first: where they sit `[..., m]`, the values, how many there are, the order in use.

    For levels `[...]`: `[]` on a grid, `[B]` under `sd.PI`.
    """

    at: Tensor
    values: tuple[Tensor, ...]
    known: Tensor
    order: Tensor


class _Inner(NamedTuple):
    """What the polynomial of a step needs: where it began, its nodes, and up to which Newton term it goes."""

    x: Tensor
    at: Tensor
    values: tuple[Tensor, ...]
    order: Tensor


@strict_keywords
@dataclass(frozen=True)
class Adams(Solver):
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

    def __post_init__(self) -> None:
        if type(self.order) is not int or not 1 <= self.order <= 7:
            raise InvalidArgumentError(f"order must be a whole number from 1 to 7, got {self.order!r}")
        check_eta(self.eta)
        check_frame(self.frame)
        refuse_grouped(self, self.frame)

    @property
    def init_evals(self) -> int:
        """One network evaluation before the first step."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero."""
        return self.eta > 0

    @property
    def memory(self) -> int:
        """The number of past evaluations carried."""
        return self.order

    @property
    def adaptive(self) -> bool:
        """A step has an error estimate."""
        return True

    @property
    def dense(self) -> bool:
        """By the step's own polynomial, without noise."""
        return not self.stochastic

    @property
    def clock_frame(self) -> Frame:
        """The frame."""
        return self.frame

    @property
    def safety(self) -> float:
        """Below it, attempts that fail cost more than long steps save."""
        return 0.6

    @property
    def tol_share(self) -> float:
        """What a step's error may be of a tolerance for the error at the end; measured, docs/adaptive.md."""
        return self.frame.tol_share

    @property
    def noise_end(self) -> bool:
        """The frame's; with noise where its linear part holds that."""
        return self.frame.noise_end and (self.frame.lawful or not self.stochastic)

    @property
    def data_end(self) -> bool:
        """The frame's: the second evaluation lies at the end of the step."""
        return self.frame.data_end

    @property
    def convergence(self) -> int:
        """`order + 1`; of the law, at most 2, for eta > 0."""
        return min(self.order + 1, self.frame.weak_order) if self.stochastic else self.order + 1

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those of the frame, for eta > 0 where its linear part holds the noise."""
        return self.frame.exact if not self.stochastic or self.frame.lawful else ()

    def with_norm(self, norm: Norm) -> Adams:
        """The same method, choosing its order by the sizes of errors that `norm` says."""
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
        decay, terms = newton(frame, self.eta, now, next, past.at, unit=True)
        count = torch.arange(terms.shape[-1] + 1, device=past.at.device)
        ahead = (terms * (count[:-1] < past.order[..., None])[..., None, :]).sum(-1)
        # a row that stands still would have two nodes in one place
        here = torch.where(still, frame.coordinate(now) + 1, frame.coordinate(next))
        at = torch.cat([here[..., None], past.at], -1)
        terms = newton(frame, self.eta, now, next, at, unit=True)[1]
        terms = torch.where(still[..., None, None], 0.0, terms)
        weights = (terms * (count <= past.order[..., None])[..., None, :]).sum(-1)
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
        if carry.values[0].shape != x.shape:
            raise InvalidArgumentError(
                f"the history holds values of shape {list(carry.values[0].shape)} and x has {list(x.shape)}: "
                "start anew with init() when the batch changes"
            )
        used = self._used(carry.order)
        recent = carry._replace(at=carry.at[..., :used], values=carry.values[:used])
        legs, at, terms = self._legs(model, now, next, recent)
        out, values, _, _ = run(legs, model, x, Past(None, recent.values), needed(noise, self), next)
        known = torch.clamp(carry.known + 1, max=self.order)
        moved = torch.cat([self.frame.coordinate(next)[..., None], carry.at[..., :-1]], -1)
        past = Nodes(moved, (values[0], *carry.values[:-1]), known, known.clone())
        answer = Step(out.to(x.dtype), past, inner=_Inner(x, at, values, carry.order))
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
        if self.norm is None:
            error = _term(terms, values, carry.order)
            return step._replace(error=error, order=self._power(carry.order))
        norm, order = self.norm, carry.order
        error = _term(terms, values, order)
        more = (order < self.order) & (carry.known > order)
        lower = _term(terms, values, order - 1)
        higher = _term(terms, values, torch.where(more, order + 1, order))
        reach = [
            torch.where(allowed, power(norm(e, x, step.x, next).clamp(min=1e-30), -1 / self._power(k)), 0.0)
            for e, k, allowed in (
                (lower, order - 1, order > 1),
                (error, order, order > 0),
                (higher, order + 1, more),
            )
        ]
        down, up = reach[0] > reach[1], reach[2] > torch.maximum(reach[0], reach[1])
        after = torch.where(up, order + 1, torch.where(down, order - 1, order))
        after = torch.minimum(after.clamp(min=1), known)
        growth = torch.maximum(torch.maximum(reach[0], reach[1]), reach[2])
        past = step.carry._replace(order=after)
        again = carry._replace(order=torch.where(down & (order > 1), order - 1, order))
        return step._replace(carry=past, error=error, order=self._power(order), retry=again, growth=growth)

    def _power(self, order: Tensor) -> Tensor:
        """With which power of the step the term of an order falls; values of N have noise of half a power in them."""
        return order.to(torch.float64) + (0.5 if self.stochastic else 1.0)

    def inside(self, process: SDE, now: Level, next: Level, inner: _Inner, at: Level) -> Tensor:
        """x at a level inside of a step, by the step's own polynomial. Raises InvalidArgumentError for eta > 0."""
        if self.stochastic:
            raise InvalidArgumentError(
                f"{self} draws noise, and a path with noise has no polynomial inside of its steps"
            )
        decay, terms = newton(self.frame, 0.0, now, at, inner.at, unit=True)
        count = torch.arange(terms.shape[-1], device=terms.device)
        weights = (terms * (count <= inner.order[..., None])[..., None, :]).sum(-1)
        return combine((decay, inner.x), *zip(weights.unbind(-1), inner.values)).to(inner.x.dtype)

    def first_step(
        self, model: Reverse, x: Tensor, now: Level, end: Level, carry: Nodes, norm: Norm
    ) -> tuple[Tensor | None, int]:
        """On a general SDE `starting_step`; on a process None, where the controller's bound on a step serves."""
        if model.process.gaussian:
            return None, 0
        slope = carry.values[0]
        step = starting_step(
            self.frame,
            lambda y, level: self.frame.field(model, y, level, self.eta),
            model.process,
            x,
            now,
            end,
            slope,
            norm,
            1,
        )
        return step, 1


def _term(terms: Tensor, values: tuple[Tensor, ...], k: Tensor) -> Tensor:
    """The k-th Newton term `[B, *S]`, k `[B]`."""
    index = k.clamp(min=0)[..., None, None].expand(*terms.shape[:-1], 1)
    return combine(*zip(terms.gather(-1, index)[..., 0].unbind(-1), values))
