"""The adaptive controller of one solve: whether a step was good enough, and where the next one goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level, placed
from sdegen.loop.control import Controller
from sdegen.loop.solution import Status
from sdegen.solvers.base import Step
from sdegen.solvers.frame import Frame
from sdegen.tensors import expand_rows, finite_rows, home, length, mean_square, power, where_rows

RUNNING = -1
_PATIENCE = 12
_REJECTIONS = 50
_SMALL = 1e-12


class Pace(NamedTuple):
    """How each sample fares, `[B]`.

    step: the next one in the clock; error, earlier: those of the last two accepted steps; total: the sum of the
    squares of all; tries, accepted: counts; broken: attempts that were NaN or Inf, of which a sample has twelve; again:
    how many attempts in a row were rejected, of which it has fifty; status: RUNNING, or how the sample ended; fresh:
    whether the next attempt is the first evaluation, which stands still.
    """

    step: Tensor
    error: Tensor
    earlier: Tensor
    total: Tensor
    tries: Tensor
    accepted: Tensor
    broken: Tensor
    again: Tensor
    status: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Adaptive(Controller):
    """`PI` on one process with one solver; a `Controller` whose levels are per sample, fields `[B]`.

    first, last: the ends of the solve, fields `[]`. rtol, atol: what is allowed per step; scale: sigma_data where that
    is relative to `hypot(alpha sigma_data, sigma)`, else None.
    """

    settings: Any
    frame: Frame
    first: Level
    last: Level
    rtol: float
    atol: float
    scale: float | None

    def runs_down(self, process: Any) -> bool:
        """Whether time runs down."""
        return float(self.first.t) > float(self.last.t)

    def norm(self, error: Tensor, x_now: Tensor, x_next: Tensor, level: Level) -> Tensor:
        """The size of a local error `[B, *S]` in units of what is allowed, `[B]`."""
        if self.scale is None:
            allowed = self.atol + self.rtol * torch.maximum(x_now.detach().abs(), x_next.detach().abs())
            return mean_square(error.detach() / allowed).sqrt()
        return mean_square(error.detach()).sqrt() / (self.rtol * length(level.alpha * self.scale, level.sigma))

    def init(self, process: Any, x: Tensor) -> tuple[Level, Level, Pace]:
        """The start, where every sample first stands still, and the state of `count` samples."""
        count, device = x.shape[0], home(x.device)
        now = expand_rows(self.first, count, device)
        whole = self._clock(self.last).to(device) - self._clock(now)
        step = whole.abs()
        if self.settings.first_step is not None:
            step = torch.full_like(step, self.settings.first_step)
        elif process.gaussian:
            step = torch.minimum(self._jump(process, now, self.settings.max_jump / 2), step)
        none = torch.zeros(count, dtype=torch.int32, device=device)
        one = torch.ones_like(step)
        status = torch.full_like(none, RUNNING, dtype=torch.int8)
        pace = Pace(step, one, one, torch.zeros_like(step), none, none, none, none, status, ~none.bool())
        return now, now, pace

    def leaving(self, process: Any, now: Level, pace: Pace, step: Tensor | None) -> tuple[Level, Pace]:
        """The end of the first step from the start, no longer than `step` `[B]` where that is given."""
        if step is not None and self.settings.first_step is None:
            pace = pace._replace(step=step.expand_as(pace.step))
        return self._ahead(process, now, pace.step), pace._replace(fresh=torch.zeros_like(pace.fresh))

    def running(self, state: Pace) -> bool:
        """Whether any sample has further to go; waits for the device."""
        return bool((state.status == RUNNING).any())

    def update(
        self, process: Any, state: Pace, x: Tensor, now: Level, next: Level, step: Step
    ) -> tuple[Tensor, Level, Level, Pace]:
        """Accept or reject each sample's step and choose its next; a step of no length counts for nothing."""
        live, still = state.status == RUNNING, state.fresh
        finite = finite_rows(step.x).to(live.device)
        if step.error is None:
            raise TypeError("an adaptive step must return an error")
        size = self.norm(step.error, x, step.x, next)
        finite = finite & (size.isfinite() | still)
        accept = live & finite & ((size <= 1) | still)
        tried = (self._clock(next) - self._clock(now)).abs()
        factor = self._factor(state, size, step)
        bounds = self.settings
        most = torch.where(state.again > 0, torch.ones_like(tried), bounds.max_factor)
        longer = torch.minimum(factor.clamp(min=bounds.min_factor), most)
        shorter = torch.where(finite, factor.clamp(bounds.min_factor, 0.9), bounds.min_factor)
        chosen = torch.where(still, state.step, tried * torch.where(accept, longer, shorter))
        moved = accept & ~still
        counted = (live & ~still).to(torch.int32)
        # good steps make up for none: at the edge of a region of NaN they alternate
        broken = state.broken + (live & ~finite).to(torch.int32)
        tries = state.tries + counted
        again = torch.where(live & ~still, torch.where(accept, 0, state.again + 1), state.again)
        # a step below the rounding of its time, or no end of rejections, as where sigma jumps
        stuck = (live & ~still & (now.t == next.t)) | (again >= _REJECTIONS)
        status = self._status(state, live, accept, chosen, next, tries, broken, stuck)
        pace = Pace(
            torch.where(live, chosen, state.step),
            torch.where(moved, size.clamp(min=1e-10), state.error),
            torch.where(moved, state.error, state.earlier),
            state.total + torch.where(moved, size * size, 0.0),
            tries,
            state.accepted + moved.to(torch.int32),
            broken,
            again,
            status,
            torch.zeros_like(still),
        )
        now = where_rows(accept, next, now)
        return accept, now, self._ahead(process, now, pace.step, status != RUNNING), pace

    def _status(
        self,
        state: Pace,
        live: Tensor,
        accept: Tensor,
        chosen: Tensor,
        next: Level,
        tries: Tensor,
        broken: Tensor,
        stuck: Tensor,
    ) -> Tensor:
        """How samples that are done ended."""
        span = (self._clock(self.last) - self._clock(self.first)).abs().to(chosen.device)
        small = stuck | (chosen < _SMALL * span)
        ended = torch.full_like(state.status, RUNNING)
        for which, value in (
            (tries >= self.settings.max_attempts, Status.MAX_STEPS),
            (small, Status.STEP_TOO_SMALL),
            ((broken >= _PATIENCE) | (small & (broken > 0)), Status.NONFINITE),
            (accept & (next.t == self.last.t.to(next.t.device)), Status.OK),
        ):
            ended = torch.where(which, int(value), ended)
        return torch.where(live, ended, state.status).to(torch.int8)

    def _factor(self, state: Pace, size: Tensor, step: Step) -> Tensor:
        """By how much the next step may be longer."""
        s = self.settings
        if step.growth is not None:
            longer: Tensor = s.safety * step.growth
            return longer
        q = step.order
        now = power(size.clamp(min=1e-10), -(s.pcoeff + s.icoeff + s.dcoeff) / q)
        before = power(state.error, (s.pcoeff + 2 * s.dcoeff) / q)
        earlier = power(state.earlier, -s.dcoeff / q)
        factor: Tensor = s.safety * now * before * earlier
        return factor

    def _ahead(self, process: Any, now: Level, step: Tensor, ended: Tensor | None = None) -> Level:
        """The end of a step from now: never beyond the last level, that one exactly, and leaving no tiny step to it."""
        clock, last = self._clock(now), self._clock(self.last).to(now.t.device)
        left = (last - clock).abs()
        bound = self.settings.max_step
        most = left
        if process.gaussian:
            most = torch.minimum(most, self._jump(process, now, self.settings.max_jump))
        elif bound is None:
            most = torch.minimum(most, (last - self._clock(self.first).to(last.device)).abs() / 8)
        if bound is not None:
            most = most.clamp(max=bound)
        step = torch.minimum(step, most)
        final = step >= left * (1 - 1e-9)
        step = torch.where(step > left / 2, left / 2, step)
        there = self.frame.level(process, clock + torch.sign(last - clock) * step)
        next = Level(*(torch.where(final, b.to(a.device), a) for a, b in zip(there, self.last)))
        if ended is None:
            return next
        return where_rows(ended, now, next)

    def _jump(self, process: Any, now: Level, jump: float) -> Tensor:
        """How far the clock goes over a log-SNR of `jump`."""
        lam, end = placed(now.lam), placed(self.last.lam).to(now.t.device)
        far = torch.where(end > lam, torch.minimum(lam + jump, end), torch.maximum(lam - jump, end))
        there = process.time(far) if self.frame.timed else self.frame.tau(far)
        # an end without signal or noise lies beyond the place that stands for it
        return torch.where(far == end, torch.inf, (there - self._clock(now)).abs())

    def _clock(self, level: Level) -> Tensor:
        return self.frame.clock(level)
