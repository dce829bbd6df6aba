"""The loop of adaptive solves: samples leave the network's batch when they are done, and others take their places.

Every sample carries its own level, step, order, history and status, and all arithmetic is row by row, so that a sample
is what it would be alone, whatever shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.loop.dense import Dense, Event, Piece, Watch
from sdegen.loop.pace import RUNNING, Adaptive, Pace
from sdegen.loop.progress import progress_bar
from sdegen.loop.solution import Observer, Progress, Solution, Status, guard, observed
from sdegen.processes.process import Process
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.previews import Watched
from sdegen.solvers.base import Step, check_step
from sdegen.tensors import finite_rows, joined, keep, readable, rows

_SPREAD = 0.7
"""The error at the end over the root of the sum of squares of the steps' estimates: measured, docs/adaptive.md."""
_PARKED = -1
_IDLE = 8
"""Finished samples leave the batch when they are one in so many, so that it is not copied for each of them."""


class Feed(NamedTuple):
    """Where samples come from: how many there are, and the model, states and noise of those with given indices."""

    total: int
    model: Callable[[Tensor], Any]
    start: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Any]


class Batch(NamedTuple):
    """The samples that the network sees now, `[B]` each: which ones (on the host; -1 for none), how far they are."""

    which: Tensor
    x: Tensor
    carry: Any
    now: Level
    next: Level
    pace: Pace


class Run:
    """One adaptive solve of all samples of a feed, at most `size` of them in the network's batch at a time."""

    def __init__(
        self,
        feed: Feed,
        size: int,
        process: SDE,
        control: Adaptive,
        solver: Any,
        *,
        dense: bool = False,
        event: Event | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.feed, self.size, self.process, self.control = feed, size, process, control
        self.solver = solver.measured(control.norm) if hasattr(solver, "measured") else solver
        self.observe, self.fixed = observe, control.settings.fixed_shapes or observe is not None
        self.watch = None if event is None else Watch(event, self.solver, process)
        self._blank = hasattr(self.solver, "blank") and isinstance(process, Process)
        self.wants_dense = dense
        self.dense: Dense | None = None
        self.ended: list[Batch] = []
        self.path: list[Any] = []
        self.taken = self.attempts = 0
        self.primed: list[Tensor] = []
        self.batch: Any = None

    def solve(self, progress: bool | None = False) -> Solution:
        """Run until every sample is done; each one is after `max_attempts` attempts at the latest."""
        with guard(self._where, lambda: self.solution(self.batch)), progress_bar(self.feed.total, progress) as bar:
            self.batch = self._started()
            chunk = self.control.settings.chunk or (1 if self.batch.x.device.type == "cpu" else 8)
            if self.wants_dense:
                self.dense = Dense(self.solver, self.process, self.batch.x, self.batch.now)
            while len(self.batch.which):
                self._serve(self.batch)
                known, done = self.batch.which, False
                while self.batch.which is known and not done:
                    for _ in range(chunk):
                        self.batch = self._attempt(self.batch)
                    done = self.observe is not None and self._observed(self.observe, self.batch)
                    self.batch, left = self._turned_over(self.batch, done)
                    bar(left)
        return self.solution()

    def _where(self) -> str:
        if self.batch is None:
            return "before the first attempt"
        times = self.batch.now.t
        return f"in attempt {self.attempts + 1}, samples at t from {float(times.max()):.6g} to {float(times.min()):.6g}"

    def _started(self) -> Batch:
        """The first batch; with fixed shapes it is filled up with rows that stand still."""
        count = min(self.size, self.feed.total)
        batch = self._entered(count)
        missing = self.size - count if self.fixed and count else 0
        if missing:
            extra = rows(batch, torch.zeros(missing, dtype=torch.int64))
            batch = joined(batch, _parked(extra))
        return batch

    def _entered(self, count: int) -> Batch:
        """The next samples of the feed, at the start."""
        index = torch.arange(self.taken, self.taken + count)
        self.taken += count
        if self.fixed and count and not self._blank:
            index = torch.cat([index, index[:1].expand(self.size - count)])  # the network sees as many as ever
        x = self.feed.start(index)
        model = self.feed.model(index)
        now, next, pace = self.control.init(self.process, x)
        evals = getattr(self.solver, "primes", 0)
        if not count:
            carry: Any = ()
        elif self._blank:
            # the first evaluation then is an attempt of no length, in one batch with the others' attempts
            carry = self.solver.blank(model, x, now)
        else:
            carry, step = self.solver.init(model, x, now), None
            if hasattr(self.solver, "first_step") and self.control.settings.first_step is None:
                last = Level(*(v.to(x.device) for v in self.control.last))
                step, more = self.solver.first_step(model, x, now, last, carry, self.control.norm)
                evals += more
            next, pace = self.control.leaving(self.process, now, pace, step)
        self.primed.append(torch.full((count,), evals, dtype=torch.int32, device=x.device))
        entered = Batch(index, x, carry, now, next, pace)
        return entered if len(index) == count else rows(entered, torch.arange(count))

    def _serve(self, batch: Batch) -> None:
        """The model and the noise of the samples in the batch."""
        index = batch.which.clamp(min=0)
        model = self.feed.model(index)
        self.watched = Watched(model) if self.observe is not None and not isinstance(model, ReverseSDE) else None
        self.model, self.noise = model if self.watched is None else self.watched, self.feed.noise(index)

    def _attempt(self, batch: Batch) -> Batch:
        """One step of every sample, kept where it was good enough."""
        index, x, carry, now, next, pace = batch
        step = check_step(self.solver.step(self.model, x, now, next, carry, self.noise), x, self.solver)
        if step.x.requires_grad and not bool(finite_rows(step.x).all()):
            step = self._harmless(batch, step)
        accept, after, beyond, pace = self.control.update(self.process, pace, x, now, next, step)
        moved = step.x
        found = None if self.watch is None else self.watch.located(x, now, next, moved, step.inner)
        if found is not None:
            hit = found[0] & accept
            moved, after = keep(hit, found[1], moved), keep(hit, found[2], after)
            beyond = keep(hit, found[2], beyond)
            pace = pace._replace(status=torch.where(hit, int(Status.EVENT), pace.status).to(torch.int8))
        if self.dense is not None:
            picked = (accept & (now.t != next.t)).nonzero().flatten()
            passed = rows((now, next, step.inner, after.t), picked)
            self.dense.add(Piece(rows(index, picked).to(x.device), *passed))
        self.attempts += 1
        everyone: bool | Tensor = accept
        if accept.device.type == "cpu" and readable(accept) and bool(accept.all()):
            everyone = True
        retry = carry if step.retry is None else step.retry
        return Batch(index, keep(everyone, moved, x), keep(everyone, step.carry, retry), after, beyond, pace)

    def _harmless(self, batch: Batch, step: Step) -> Step:
        """The attempt again, those that were NaN or Inf without length: their gradients would be NaN times zero."""
        bad = ~finite_rows(step.x)
        next = keep(bad, batch.now, batch.next)
        again: Step = self.solver.step(self.model, batch.x, batch.now, next, batch.carry, self.noise)
        error = torch.zeros_like(again.x) if again.error is None else again.error.detach()
        return again._replace(error=keep(bad, torch.full_like(error, torch.nan), error))

    def _turned_over(self, batch: Batch, stop: bool) -> tuple[Batch, int]:
        """The batch without samples that are done, new ones in their places; how many were done."""
        if stop:
            running = batch.pace.status == RUNNING
            stopped = torch.where(running, int(Status.STOPPED), batch.pace.status).to(torch.int8)
            batch = batch._replace(pace=batch.pace._replace(status=stopped))
        running = batch.pace.status.cpu() == RUNNING  # where the host waits for the device, once
        done = (~running & (batch.which != _PARKED)).nonzero().flatten()
        left = len(done)
        if not left:
            return batch, 0
        self.ended.append(rows(batch._replace(carry=()), done))
        going = running.nonzero().flatten()
        room = min(self.size - len(going), self.feed.total - self.taken)
        if room > 0:
            idle = (~running).nonzero().flatten()[: self.size - len(going) - room]
            fresh = joined(rows(batch, going), self._entered(room))
            return joined(fresh, _parked(rows(batch, idle))) if self.fixed and len(idle) else fresh, left
        if not len(going) or (not self.fixed and (len(batch.which) - len(going)) * _IDLE >= len(batch.which)):
            return rows(batch, going), left
        return batch._replace(which=torch.where(running, batch.which, _PARKED)), left

    def _observed(self, observe: Observer, batch: Batch) -> bool:
        """Show the attempt to the observer; whether it asks to stop."""
        preview = (lambda: None) if self.watched is None else self.watched.preview
        nfe = self.attempts * self.solver.evals + (0 if self._blank else getattr(self.solver, "primes", 0))
        return observed(observe, Progress(self.attempts, None, batch.x, batch.now, nfe, preview), self.path)

    def solution(self, rest: Batch | None = None) -> Solution:
        """What is done, in the order of the feed, and, of a run that broke off, `rest` as it stands."""
        parts = list(self.ended)
        if rest is not None:
            alive = ((rest.pace.status.cpu() == RUNNING) & (rest.which != _PARKED)).nonzero().flatten()
            pace = rest.pace._replace(status=torch.full_like(rest.pace.status, int(Status.STOPPED)))
            parts.append(rows(rest._replace(carry=(), pace=pace), alive))
        whole = parts[0] if parts else self._entered(0)._replace(carry=())
        for part in parts[1:]:
            whole = joined(whole, part)
        which, x, _, now, _, pace = rows(whole, whole.which.argsort())
        primed = rows(torch.cat(self.primed), which)
        nfe = (primed + pace.tries * self.solver.evals).to(torch.int32)
        error = _SPREAD * max(self.control.rtol, self.control.atol) * pace.total.sqrt()
        found = Solution(
            x, now, nfe, pace.accepted, pace.tries - pace.accepted, pace.status, self.path, error, self.dense
        )
        return found._replace(error=torch.where(found.ok, error, torch.inf))  # what a failed sample is worth


def _parked(batch: Batch) -> Batch:
    """Rows that stand still and are nobody's."""
    pace = batch.pace._replace(status=torch.full_like(batch.pace.status, int(Status.OK)))
    return batch._replace(which=torch.full_like(batch.which, _PARKED), pace=pace, next=batch.now)
