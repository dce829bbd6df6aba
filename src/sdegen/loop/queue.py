"""Adaptive solves: samples leave the network's batch when they are done, and others take their places.

Every sample carries its own level, step, order, history and status, and all arithmetic is row by row, so a sample is
what it would be alone, whatever shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.loop.advance import Rules, State, advance
from sdegen.loop.dense import Dense, Event, EventFinder, Piece
from sdegen.loop.pace import RUNNING, Adaptive
from sdegen.loop.solution import Observer, Progress, Solution, Status, guard, observed
from sdegen.processes.sde import SDE
from sdegen.progress import progress_bar
from sdegen.scores.maps import PreviewModel
from sdegen.solvers.base import Solver
from sdegen.tensors import cat_rows, home, take_rows

_SPREAD = 0.7
"""The error at the end over the root of the sum of squares of the steps' estimates: measured, docs/adaptive.md."""
_PARKED = -1
_IDLE = 8
"""Finished samples leave the batch when they are one in so many, so that it is not copied for each of them."""


class Source(NamedTuple):
    """Where samples come from: how many there are, and the model, states and noise of those with given indices."""

    total: int
    model: Callable[[Tensor], Any]
    start: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Any]


class Batch(NamedTuple):
    """The samples that the network sees now: which ones `[B]`, on the host (-1 for none), and their state."""

    which: Tensor
    state: State

    @property
    def running(self) -> Tensor:
        """Which of them go on `[B]`, on the host: where it waits for the device, once."""
        running: Tensor = self.state.control.status.cpu() == RUNNING
        return running

    def take(self, index: Tensor) -> Batch:
        """Some of the rows."""
        return take_rows(self, index)

    def parked(self) -> Batch:
        """The same rows, standing still and nobody's."""
        status = torch.full_like(self.state.control.status, int(Status.OK))
        state = self.state._replace(control=self.state.control._replace(status=status), next=self.state.now)
        return Batch(torch.full_like(self.which, _PARKED), state)


def adapted(
    source: Source,
    size: int,
    process: SDE,
    control: Adaptive,
    solver: Solver,
    dense: bool = False,
    event: Event | None = None,
    observe: Observer | None = None,
    progress: bool | None = False,
) -> Solution:
    """The samples of a source, at most `size` of them in the network's batch at a time, failed ones with status."""
    return Queue(source, size, process, control, solver, dense, event, observe).solve(progress)


def rules_alone(
    process: SDE, model: Any, solver: Solver, noise: Any, control: Adaptive, event: EventFinder | None = None
) -> Rules:
    """What does not change in attempts whose controller keeps each row's fate."""
    watch = not torch.is_inference_mode_enabled()
    return Rules(process, model, solver, noise, control, event=event, alone=True, watch=watch)


def blank_state(process: SDE, control: Adaptive, solver: Solver, model: Any, x: Tensor) -> State | None:
    """The state before the first attempt, which is one of no length; None for a solver that has to be asked first."""
    now, next, pace = control.init(process, x)
    # with a blank past the first evaluation is an attempt of no length, in one batch with the others' attempts
    carry = solver.blank(model, x, now) if len(x) else ()
    return None if carry is None else State(x, carry, now, next, pace, 0, 0, None)


def asked_state(process: SDE, control: Adaptive, solver: Solver, model: Any, x: Tensor) -> tuple[State, int]:
    """The state before the first attempt, its length chosen by the solver; evaluations made beyond its `init_evals`."""
    now, _, pace = control.init(process, x)
    carry = solver.init(model, x, now)
    step, evals = None, 0
    if control.settings.first_step is None:
        last = Level(*(v.to(home(x.device)) for v in control.last))
        step, evals = solver.first_step(model, x, now, last, carry, control.norm)
    next, pace = control.leaving(process, now, pace, step)
    return State(x, carry, now, next, pace, 0, 0, None), evals


class Queue:
    """The mutable side of an adaptive solve: who is in the batch, who is done, and what was passed."""

    def __init__(
        self,
        source: Source,
        size: int,
        process: SDE,
        control: Adaptive,
        solver: Solver,
        dense: bool,
        event: Event | None,
        observe: Observer | None,
    ) -> None:
        self.source, self.size, self.process, self.control = source, size, process, control
        self.solver = solver.with_norm(control.norm)
        self.observe, self.fixed = observe, control.settings.fixed_shapes or observe is not None
        self.event = None if event is None else EventFinder(event, self.solver, process)
        self.wants_dense = dense
        self.dense: Dense | None = None
        self.ended: list[Batch] = []
        self.path: list[Any] = []
        self.taken = self.attempts = 0
        self.init_evals: list[Tensor] = []
        self.batch: Any = None

    def solve(self, progress: bool | None) -> Solution:
        """Run until every sample is done; each one is after `max_attempts` attempts at the latest."""
        with (
            guard(self._where, lambda: self.solution(self.batch)),
            progress_bar(self.source.total, "sample", progress) as bar,
        ):
            self.batch = self._started()
            x = self.batch.state.x
            chunk = self.control.settings.chunk or (1 if x.device.type == "cpu" else 8)
            if self.wants_dense:
                self.dense = Dense(self.solver, self.process, x, self.batch.state.now)
            while len(self.batch.which):
                left = self._served(chunk)
                if bar is not None:
                    bar(left)
        return self.solution()

    def _served(self, chunk: int) -> int:
        """Attempts of the batch as it is, until samples leave it or enter; how many left."""
        rules = self.rules(self.batch.which)
        known, gone = self.batch.which, 0
        while self.batch.which is known and not gone:
            for _ in range(chunk):
                before = self.batch.state
                state = advance(rules, before, self.attempts)
                if self.dense is not None:
                    self.dense.add(self._piece(known, before, state))
                self.batch = Batch(known, state._replace(moved=None, inner=None))
                self.attempts += 1
            stop = self.observe is not None and self._observed(self.observe, rules.model)
            self.batch, gone = self._turned_over(self.batch, stop)
        return gone

    def rules(self, which: Tensor) -> Rules:
        """What does not change while these samples are the batch."""
        index = which.clamp(min=0)
        model = self.source.model(index)
        if self.observe is not None and model.answers:
            model = PreviewModel(model)
        return rules_alone(self.process, model, self.solver, self.source.noise(index), self.control, self.event)

    def _where(self) -> str:
        if self.batch is None:
            return "before the first attempt"
        t = self.batch.state.now.t
        return f"in attempt {self.attempts + 1}, samples at t from {float(t.max()):.6g} to {float(t.min()):.6g}"

    def _started(self) -> Batch:
        """The first batch; with fixed shapes it is filled up with rows that stand still."""
        count = min(self.size, self.source.total)
        batch = self._entered(count)
        missing = self.size - count if self.fixed and count else 0
        if not missing:
            return batch
        return cat_rows(batch, batch.take(torch.zeros(missing, dtype=torch.int64, device="cpu")).parked())

    def _entered(self, count: int) -> Batch:
        """The next samples of the source, at the start."""
        index = torch.arange(self.taken, self.taken + count, device="cpu")
        self.taken += count
        x, model = self.source.start(index), self.source.model(index)
        state, evals = blank_state(self.process, self.control, self.solver, model, x), self.solver.init_evals
        if state is None:
            if self.fixed:  # the network sees as many as ever
                index = torch.cat([index, index[:1].expand(self.size - count)])
                x, model = self.source.start(index), self.source.model(index)
            state, more = asked_state(self.process, self.control, self.solver, model, x)
            evals += more
        self.init_evals.append(torch.full((count,), evals, dtype=torch.int32, device=state.control.tries.device))
        entered = Batch(index, state)
        return entered if len(index) == count else entered.take(torch.arange(count, device="cpu"))

    def _piece(self, which: Tensor, before: State, after: State) -> Piece:
        """The steps that were taken in an attempt, for dense output."""
        longer = before.now.t != before.next.t
        took = (longer if after.moved is None else longer & after.moved).nonzero().flatten()
        passed = take_rows((before.now, before.next, after.inner, after.now.t), took)
        return Piece(take_rows(which, took).to(after.x.device), *passed)

    def _turned_over(self, batch: Batch, stop: bool) -> tuple[Batch, int]:
        """The batch without samples that are done, new ones in their places; how many were done."""
        if stop:
            pace = batch.state.control
            stopped = torch.where(pace.status == RUNNING, int(Status.STOPPED), pace.status).to(torch.int8)
            batch = Batch(batch.which, batch.state._replace(control=pace._replace(status=stopped)))
        running = batch.running
        done = (~running & (batch.which != _PARKED)).nonzero().flatten()
        if not len(done):
            return batch, 0
        self.ended.append(batch.take(done))
        going = running.nonzero().flatten()
        room = min(self.size - len(going), self.source.total - self.taken)
        if room > 0:
            idle = (~running).nonzero().flatten()[: self.size - len(going) - room]
            fresh = cat_rows(batch.take(going), self._entered(room))
            return (cat_rows(fresh, batch.take(idle).parked()) if self.fixed and len(idle) else fresh), len(done)
        if not len(going) or (not self.fixed and (len(batch.which) - len(going)) * _IDLE >= len(batch.which)):
            return batch.take(going), len(done)
        return Batch(torch.where(running, batch.which, _PARKED), batch.state), len(done)

    def _observed(self, observe: Observer, model: Any) -> bool:
        """Show the attempt to the observer; whether it asks to stop."""
        state = self.batch.state
        first = int(self.init_evals[0].max()) if len(self.init_evals[0]) else 0
        shown = Progress(self.attempts, None, state.x, state.now, self.attempts * self.solver.evals + first)
        shown = shown._replace(preview=model.preview) if model.answers else shown
        return observed(observe, shown, self.path)

    def solution(self, rest: Batch | None = None) -> Solution:
        """The finished samples in input order, plus those of the unfinished batch after an exception."""
        parts = [_bare(part) for part in self.ended]
        if rest is not None:
            alive = (rest.running & (rest.which != _PARKED)).nonzero().flatten()
            pace = rest.state.control
            pace = pace._replace(status=torch.full_like(pace.status, int(Status.STOPPED)))
            parts.append(_bare(Batch(rest.which, rest.state._replace(control=pace)).take(alive)))
        whole = parts[0] if parts else _bare(self._entered(0))
        for part in parts[1:]:
            whole = cat_rows(whole, part)
        which, state = whole.take(whole.which.argsort())
        pace = state.control
        first = take_rows(torch.cat(self.init_evals), which)
        nfe = (first + pace.tries * self.solver.evals).to(torch.int32)
        error = _SPREAD * max(self.control.rtol, self.control.atol) * pace.total.sqrt()
        found = Solution(
            state.x,
            state.now,
            nfe,
            pace.accepted,
            pace.tries - pace.accepted,
            pace.status,
            self.path,
            error,
            dense=self.dense,
        )
        return found._replace(error=torch.where(found.ok, error, torch.inf))  # what a failed sample is worth


def _bare(batch: Batch) -> Batch:
    """The batch without its carry."""
    return Batch(batch.which, batch.state._replace(carry=()))
