"""The loop that runs any solver under any controller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.level import Level
from sdegen.loop.checkpointing import check_checkpoint, checkpointed
from sdegen.loop.checks import check_solve
from sdegen.loop.control import Controller, Fixed
from sdegen.loop.dense import Dense, Event, Piece, Watch, check_dense
from sdegen.loop.progress import progress_bar
from sdegen.loop.queue import Feed, Run
from sdegen.loop.solution import Observer, Progress, Solution, SolveError, Status, ended, guard, observed
from sdegen.loop.tolerance import PI
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import warn_if_training
from sdegen.scores.previews import Watched
from sdegen.solvers.base import Reverse, Solver, Step, check_step, draw
from sdegen.tensors import combine, finite_rows, keep, picked, readable, spread, widen


@strict_keywords
def solve(
    model: Reverse,
    x: Tensor,
    control: Controller | PI | Tensor | Sequence[float],
    solver: Solver,
    *,
    noise: NoiseSource | None = None,
    observe: Observer | None = None,
    on_failure: str = "raise",
    progress: bool = False,
    dense: bool = False,
    event: Event | None = None,
    checkpoint: int | None = None,
) -> Solution:
    """Run `solver` on `model` from x `[B, *S]` over the levels that `control` chooses.

    model: a `ScoreModel` (or what answers like one), or a `ReverseSDE`. control: a controller, or times `[n + 1]`,
    decreasing towards data (increasing ones take a deterministic solver from data to noise); `sd.PI(tol=...)` adapts
    the steps of each sample to a tolerance. noise: needed by stochastic solvers, `White(seeds)`, or under `PI`
    `Brownian(seeds, process)`. dense: keep the path, as `Solution.dense`. event: a function `(x [B, *S], level) -> [B]`
    whose change of sign ends a sample, there, inside of the step. observe: called with a `Progress` after each step;
    what it returns is kept in `Solution.path`, and `STOP` ends the solve. on_failure: "raise" a `SolveError` at the end
    if a sample became NaN or Inf (its `partial` is the solution with every other sample finished), or "return" the
    solution with its status.

    checkpoint: of gradients, keep only the states at every so many steps and compute the steps between again.

    Gradients flow if they are enabled (a sample that fails poisons those of parameters that all samples share).
    Half-precision states are stepped in float32 arithmetic. Everything is checked before the first evaluation
    (`InvalidArgumentError`, `InvalidTypeError`); an exception in the score passes as it is, with a note of step and
    time and, as its attribute `partial`, the solution so far.
    """
    is_times = isinstance(control, (Tensor, Sequence)) or hasattr(control, "dtype")
    controller: Any = Fixed(control) if is_times else control
    check_solve(model, x, controller, solver, noise, on_failure, observe)
    for wanted, what in ((dense, "dense=True"), (event, "an event")):
        if wanted:
            check_dense(solver, what)
    warn_if_training(model)
    if checkpoint is not None:
        check_checkpoint(checkpoint, controller, observe=observe, dense=dense, event=event)
    try:
        if checkpoint is not None and len(x):
            whole = checkpointed(model, x, controller, solver, noise, checkpoint)
        elif isinstance(controller, PI):
            whole = _adapted(model, x, controller, solver, noise, observe, progress, dense, event)
        else:
            whole = run(model, x, controller, solver, noise, observe, progress, dense, event)
    except SolveError as error:  # a backend's own, of all samples at once
        if on_failure != "return" or not isinstance(error.partial, Solution):
            raise
        whole = error.partial
    return ended(whole, on_failure)


def _adapted(
    model: Any,
    x: Tensor,
    control: PI,
    solver: Solver,
    noise: Any,
    observe: Observer | None,
    progress: bool,
    dense: bool,
    event: Event | None,
) -> Solution:
    """Each sample with its own steps; all start together."""
    process = model.process
    # picking rows makes copies, so that the caller's x is never the solver's
    feed = Feed(
        len(x),
        lambda index: picked(model, index),
        lambda index: x[index.to(x.device)],
        lambda index: picked(noise, index),
    )
    bound = control.bind(solver, process, x.dtype)
    return Run(feed, len(x), process, bound, solver, dense=dense, event=event, observe=observe).solve(progress)


def run(
    model: Reverse,
    x: Tensor,
    controller: Controller,
    solver: Solver,
    noise: NoiseSource | None,
    observe: Observer | None,
    progress: bool,
    dense: bool = False,
    event: Event | None = None,
) -> Solution:
    """The loop of `solve`, its arguments checked, failed rows returned with their status."""
    now, next, state = controller.init(model.process, x)
    x = x.clone(memory_format=torch.contiguous_format)
    rows = _Rows(model.process, x, now)
    inner = _Between(solver, rows, x, now, dense, event) if dense or event is not None else None
    if x.shape[0] == 0:
        return rows.solution()
    steps = getattr(controller, "steps", None)
    passes = controller.passes if isinstance(controller, Fixed) else 1
    source: Any = _silent if noise is None else Again(noise, 0, passes) if passes > 1 else noise
    seen = observe is not None and getattr(observe, "previews", True)
    watched = Watched(model) if seen and not isinstance(model, ReverseSDE) else None
    model = model if watched is None else watched
    with guard(rows.where, rows.solution), progress_bar(steps, progress) as bar:
        own = controller.bind(solver, model, state) if isinstance(controller, Fixed) and inner is None else ()
        part = own[0] if own else solver
        carry = part.init(model, x, now)
        rows.prime(getattr(part, "primes", 0))
        while controller.running(state):
            part = own[rows.steps] if own else solver
            rows.trying = now
            evals = part.evals
            if isinstance(controller, Fixed) and controller.leap(state):
                source, evals = Again(noise, rows.visits, controller.passes), 0
                rows.visits += 1
                step = _leap(model, rows.x, now, next, part, source)
            else:
                step = check_step(part.step(model, rows.x, now, next, carry, source), rows.x, part)
                evals = evals if step.evals is None else step.evals
            accept, after, beyond, state = controller.update(model.process, state, rows.x, now, next, step)
            if inner is not None:
                step = inner.passed(step, now, next)
            rows.take(step, next, accept, evals)
            if inner is not None:
                inner.stop()
            carry = keep(accept, step.carry, carry)
            now, next = after, beyond
            bar(evals)
            if observe is not None and _observed(observe, rows, steps, watched):
                break
        else:
            rows.done = True
    whole = rows.solution()
    return whole if inner is None else whole._replace(dense=inner.dense)


class Again(NamedTuple):
    """A noise source for the next visit to levels that were passed before: every visit has tags of its own."""

    noise: Any
    visit: int
    visits: int

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        drawn: Tensor = self.noise(x, now, next, tag * self.visits + self.visit)
        return drawn


def _leap(model: Any, x: Tensor, now: Level, next: Level, part: Solver, noise: NoiseSource) -> Step:
    """Back to noise by the forward transition; the solver starts anew from there."""
    a, s = model.process.kernel(now, next)
    out = combine((a, x), (s, draw(noise, x, now, next))).to(x.dtype)
    return Step(out, part.init(model, out, next))


def _silent(x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
    raise InvalidArgumentError("this solver draws noise and its `stochastic` says that it does not: make it True")


class _Rows:
    """The mutable side of one solve: the state, where each row stands and how it fares.

    While every row is seen to fare well, which is known for free where x can be read on the host, numbers of the whole
    batch serve for all rows; `_apart` turns them into numbers per row.
    """

    def __init__(self, process: SDE, x: Tensor, now: Level) -> None:
        self.process = process
        self.x = x
        self.together = x.device.type == "cpu" and readable(x)
        self.steps = self.spent = 0
        self.visits = 1
        self.done = False
        self.level = self.trying = now
        self.path: list[Any] = []
        self._apart()

    def _apart(self) -> None:
        batch = self.x.shape[0]
        self.t = self.x.new_zeros(batch, dtype=torch.float64) + self.level.t
        self.alive = self.x.new_ones(batch, dtype=torch.bool)
        self.stopped = ~self.alive
        self.accepted = self.x.new_full((batch,), self.steps, dtype=torch.int32)
        self.tried = self.accepted.clone()
        self.nfe = self.x.new_full((batch,), self.spent, dtype=torch.int32)

    def prime(self, evals: int) -> None:
        """Count the evaluations made before the first step."""
        self.spent += evals
        self.nfe = self.nfe + evals

    def take(self, step: Step, next: Level, accept: bool | Tensor, evals: int) -> None:
        """Move the rows whose step is accepted and finite; freeze for good those that are not finite."""
        if self.together:
            if accept is True and readable(step.x) and _all_finite(step.x):
                self.x, self.level = step.x, next
                self.steps += 1
                self.spent += evals
                return
            self.together = False
            self._apart()
        self.tried = self.tried + self.alive
        self.nfe = self.nfe + evals * self.alive
        self.alive = self.alive & finite_rows(step.x)
        moved = self.alive if accept is True else self.alive & accept
        self.x = keep(moved, step.x, self.x)
        self.t = torch.where(moved, next.t, self.t)
        self.accepted = self.accepted + moved
        self.level = next
        self.steps += 1
        self.spent += evals

    def stop(self, where: Tensor, t: Tensor) -> None:
        """End the rows `where` `[B]` at their times t: their events happened."""
        if self.together:
            self.together = False
            self._apart()
        where = where & self.alive
        self.t = torch.where(where, t, self.t)
        self.stopped = self.stopped | where
        self.alive = self.alive & ~where

    def where(self) -> str:
        t = self.trying.t
        when = f"t={float(t):.6g}" if t.ndim == 0 else f"t in {t.tolist()}"
        return f"in step {self.steps + 1}, at {when}, after {self.spent} evaluations"

    def solution(self) -> Solution:
        if self.together:
            self._apart()
        ended = int(Status.OK if self.done else Status.STOPPED)
        status = torch.where(self.alive, ended, int(Status.NONFINITE))
        status = torch.where(self.stopped, int(Status.EVENT), status).to(torch.int8)
        # of what a failed row tried, its last step was neither accepted nor rejected
        rejected = self.tried - self.accepted - (~self.alive & ~self.stopped).to(torch.int32)
        return Solution(self.x, self.process.level(self.t), self.nfe, self.accepted, rejected, status, self.path)


class _Between:
    """What happens inside of the steps of a fixed grid: the path is kept, and events end samples."""

    def __init__(self, solver: Any, rows: _Rows, x: Tensor, first: Level, dense: bool, event: Event | None) -> None:
        self.rows = rows
        self.index = torch.arange(len(x), device=x.device)
        self.dense = Dense(solver, rows.process, x, self._each(first)) if dense else None
        self.watch = None if event is None else Watch(event, solver, rows.process)
        self.hit: tuple[Tensor, Tensor] | None = None

    def _each(self, level: Level) -> Level:
        return spread(level, len(self.index), self.index.device)

    def passed(self, step: Step, now: Level, next: Level) -> Step:
        """The step, ended inside for samples whose event happens in it."""
        now, next = self._each(now), self._each(next)
        self.moving, self.hit = self.rows.alive, None
        if self.watch is not None:
            found = self.watch.located(self.rows.x, now, next, step.x, step.inner)
            if found is not None:
                where, x, level = found
                step, self.hit = step._replace(x=keep(where, x, step.x)), (where, level.t)
        self.last = now, next, step.inner
        return step

    def stop(self) -> None:
        """Keep what the last step passed, and end the samples whose event happened in it."""
        now, next, inner = self.last
        reached = next.t
        if self.hit is not None:
            where, t = self.hit
            self.rows.stop(where, t)
            reached = torch.where(where, t, reached)
        if self.dense is not None:
            moving = None if self.rows.together else self.moving & (self.rows.alive | self.rows.stopped)
            self.dense.add(Piece(self.index, now, next, inner, reached, moving))


def _all_finite(x: Tensor) -> bool:
    """Whether every value is finite, by one sum: it is not finite if one of them is not. Huge values may say False."""
    return math.isfinite(float(widen(x.detach()).sum()))


def _no_preview() -> None:
    return None


def _observed(observe: Observer, rows: _Rows, steps: int | None, watched: Watched | None) -> bool:
    """Show the step to the observer, keep its answer; whether it asks to stop."""
    preview = _no_preview if watched is None else watched.preview
    return observed(observe, Progress(rows.steps, steps, rows.x, rows.level, rows.spent, preview), rows.path)
