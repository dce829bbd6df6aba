"""The loop that runs any solver under any controller."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.checks import check_solve, warn_if_training
from sdegen.control import Controller, Fixed
from sdegen.errors import InvalidArgumentError, InvalidTypeError, readable, strict_keywords
from sdegen.noise import NoiseSource
from sdegen.previews import Watched
from sdegen.progress import progress_bar
from sdegen.sde import SDE, Level, ReverseSDE
from sdegen.solution import STOP, Observer, Progress, Solution, Status, ended
from sdegen.solvers.base import Reverse, Solver, Step, draw
from sdegen.tensors import combine, finite_rows, widen


@strict_keywords
def solve(
    model: Reverse,
    x: Tensor,
    control: Controller | Tensor | Sequence[float],
    solver: Solver,
    *,
    noise: NoiseSource | None = None,
    observe: Observer | None = None,
    on_failure: str = "raise",
    progress: bool = False,
) -> Solution:
    """Run `solver` on `model` from x `[B, *S]` over the levels that `control` chooses.

    model: a `ScoreModel` (or what answers like one), or a `ReverseSDE`. control: a controller, or times `[n + 1]`,
    decreasing towards data (increasing ones take a deterministic solver from data to noise). noise: needed by
    stochastic solvers, `White(seeds)`. observe: called with a `Progress` after each step; what it returns is kept in
    `Solution.path`, and `STOP` ends the solve. on_failure: "raise" a `SolveError` at the end if a sample became NaN or
    Inf (its `partial` is the solution with every other sample finished), or "return" the solution with its status.

    Gradients flow if they are enabled (a sample that fails poisons those of parameters that all samples share).
    Half-precision states are stepped in float32 arithmetic. Everything is checked before the first evaluation
    (`InvalidArgumentError`, `InvalidTypeError`); an exception in the score passes as it is, with a note of step and
    time and, as its attribute `partial`, the solution so far.
    """
    is_times = isinstance(control, (Tensor, Sequence)) or hasattr(control, "dtype")
    controller: Any = Fixed(control) if is_times else control
    check_solve(model, x, controller, solver, noise, on_failure, observe)
    warn_if_training(model)
    return ended(run(model, x, controller, solver, noise, observe, progress), on_failure)


def run(
    model: Reverse,
    x: Tensor,
    controller: Controller,
    solver: Solver,
    noise: NoiseSource | None,
    observe: Observer | None,
    progress: bool,
) -> Solution:
    """The loop of `solve`, its arguments checked, failed rows returned with their status."""
    now, next, state = controller.init(model.process, x)
    x = x.clone(memory_format=torch.contiguous_format)
    rows = _Rows(model.process, x, now)
    if x.shape[0] == 0:
        return rows.solution()
    steps = getattr(controller, "steps", None)
    passes = controller.passes if isinstance(controller, Fixed) else 1
    source: Any = _silent if noise is None else Again(noise, 0, passes) if passes > 1 else noise
    shown = observe is not None and getattr(observe, "previews", True)
    watched = Watched(model) if shown and not isinstance(model, ReverseSDE) else None
    model = model if watched is None else watched
    with _guard(rows), progress_bar(steps, progress) as bar:
        own = controller.bind(solver, model, state) if isinstance(controller, Fixed) else ()
        part = own[0] if own else solver
        carry = part.init(model, x, now)
        while controller.running(state):
            part = own[rows.steps] if own else solver
            rows.trying = now
            evals = part.evals
            if isinstance(controller, Fixed) and controller.leap(state):
                source, evals = Again(noise, rows.visits, controller.passes), 0
                rows.visits += 1
                step = _leap(model, rows.x, now, next, part, source)
            else:
                step = _checked(part.step(model, rows.x, now, next, carry, source), rows.x, part)
            accept, after, beyond, state = controller.update(model.process, state, rows.x, now, next, step)
            rows.take(step, next, accept, evals)
            carry = keep(accept, step.carry, carry)
            now, next = after, beyond
            bar(evals)
            if observe is not None and _observed(observe, rows, steps, watched):
                break
        else:
            rows.done = True
    return rows.solution()


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


def _checked(step: Any, x: Tensor, solver: Solver) -> Step:
    """A solver's step, or an error where it is not one on x's shape and dtype."""
    if not isinstance(step, Step):
        raise InvalidTypeError(f"{solver}.step returned {type(step).__name__}; it must return sd.Step(x, carry)")
    if step.x.shape != x.shape or step.x.dtype != x.dtype:
        raise InvalidArgumentError(
            f"{solver}.step returned x of shape {list(step.x.shape)} and {step.x.dtype}; it must keep "
            f"{list(x.shape)} and {x.dtype}"
        )
    return step


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
        self.accepted = self.x.new_full((batch,), self.steps, dtype=torch.int32)
        self.tried = self.accepted.clone()
        self.nfe = self.x.new_full((batch,), self.spent, dtype=torch.int32)

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

    def solution(self) -> Solution:
        if self.together:
            self._apart()
        ended = int(Status.OK if self.done else Status.STOPPED)
        status = torch.where(self.alive, ended, int(Status.NONFINITE)).to(torch.int8)
        # of what a failed row tried, its last step was neither accepted nor rejected
        rejected = self.tried - self.accepted - (~self.alive).to(torch.int32)
        return Solution(self.x, self.process.level(self.t), self.nfe, self.accepted, rejected, status, self.path)


def _all_finite(x: Tensor) -> bool:
    """Whether every value is finite, by one sum: it is not finite if one of them is not. Huge values may say False."""
    return math.isfinite(float(widen(x.detach()).sum()))


def keep(accept: bool | Tensor, new: Any, old: Any) -> Any:
    """`new` in the rows where `accept` `[B]`, `old` in the others, leaf by leaf."""
    if isinstance(accept, bool):
        return new if accept else old
    if isinstance(new, Tensor):
        return torch.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old) if new.ndim else new
    if isinstance(new, tuple):
        leaves = [keep(accept, n, o) for n, o in zip(new, old)]
        return type(new)(*leaves) if hasattr(new, "_fields") else tuple(leaves)
    return new


def _no_preview() -> None:
    return None


def _observed(observe: Observer, rows: _Rows, steps: int | None, watched: Watched | None) -> bool:
    """Show the step to the observer, keep its answer; whether it asks to stop."""
    version = None if rows.x.is_inference() else rows.x._version
    preview = _no_preview if watched is None else watched.preview
    answer = observe(Progress(rows.steps, steps, rows.x, rows.level, rows.spent, preview))
    if version is not None and rows.x._version != version:
        raise InvalidArgumentError("the observer edited progress.x in place, which is the solver's own: edit a copy")
    if answer is STOP:
        return True
    if answer is not None:
        rows.path.append(answer)
    return False


@contextlib.contextmanager
def _guard(rows: _Rows) -> Iterator[None]:
    """Let exceptions pass unchanged, with a note of where, and the solution so far as `partial`."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # a note that cannot be made must not hide the error
            when = f"t={float(rows.trying.t):.6g}" if rows.trying.t.ndim == 0 else f"t in {rows.trying.t.tolist()}"
            note = f"sdegen: in step {rows.steps + 1}, at {when}, after {rows.spent} evaluations"
            error.__notes__ = [*getattr(error, "__notes__", []), note]
            if not hasattr(error, "partial"):
                error.partial = rows.solution()  # type: ignore[attr-defined]
        raise
