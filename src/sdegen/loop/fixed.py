"""The loop that runs any solver under any controller: `solve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.level import Level
from sdegen.loop.advance import Rules, State, advance, solution
from sdegen.loop.arguments import check_ends, check_solve
from sdegen.loop.control import Controller, as_controller
from sdegen.loop.dense import Dense, Event, EventFinder, Piece
from sdegen.loop.queue import Source, adapted
from sdegen.loop.solution import Observer, Progress, Solution, SolveError, ended, guard, observed
from sdegen.loop.tolerance import PI
from sdegen.noise import NoiseSource
from sdegen.progress import progress_bar
from sdegen.scores.maps import PreviewModel
from sdegen.scores.model import warn_if_training
from sdegen.solvers.base import Reverse, Solver
from sdegen.tensors import check_whole, expand_rows, home, readable, where_rows, widen


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
    """Run `solver` on `model` from x over the levels that `control` chooses.

    Gradients flow if they are enabled; a sample that fails poisons those of parameters that all samples share.
    Half-precision states are stepped in float32 arithmetic.

    Args:
        model: a `ScoreModel` (or another `Model`), a `ReverseSDE`, or an SDE's `as_forward()`.
        x: the states to start from `[B, *S]`.
        control: a controller, or times `[n + 1]`: decreasing towards data; increasing ones take a deterministic solver,
            or a forward SDE, from data to noise. `sd.PI(tol=...)` adapts the steps of each sample to a tolerance.
        solver: a solver such as `sd.dpmpp(2)`.
        noise: what a stochastic solver draws from: `White(seeds)`, under `PI` `Brownian(seeds, process)`.
        observe: called with a `Progress` after each step; what it returns is kept in `Solution.path`, and `STOP` ends
            the solve.
        on_failure: 'raise' a `SolveError` at the end if samples became NaN or Inf, or 'return' the solution with its
            status.
        progress: show a bar.
        dense: keep the path, as `Solution.dense`.
        event: a function `(x [B, *S], level) -> [B]` whose change of sign ends a sample, inside of the step.
        checkpoint: keep, for gradients, only the states at every so many steps, and compute the steps between again.

    Returns:
        A `Solution`, its stats and status per sample.

    Raises:
        InvalidArgumentError, InvalidTypeError: a mistake in the arguments, before the first evaluation.
        SolveError: samples failed; its `partial` is the solution with all others finished. An exception in the score
            passes as it is, with a note of step and time and, as its attribute `partial`, the solution so far.
    """
    controller = as_controller(control)
    check_solve(model, x, controller, solver, noise, on_failure, observe, dense, event)
    if checkpoint is not None:
        _check_checkpoint(checkpoint, controller, observe=observe, dense=dense, event=event)
    warn_if_training(model.module)
    try:
        bound = controller.bind(solver, model.process, x.dtype)
        if bound is not None:
            whole_model = model.sized(len(x))
            source = Source(
                len(x),
                lambda index: whole_model.rows(index.to(x.device)),
                lambda index: x[index.to(x.device)],
                lambda index: None if noise is None else noise.rows(index.to(x.device)),  # type: ignore[attr-defined]
            )
            check_ends(model, solver, bound.first, bound.last)
            whole = adapted(source, len(x), model.process, bound, solver, dense, event, observe, progress)
        else:
            whole = run_to(model, x, controller, solver, noise, observe, progress, dense, event, checkpoint)[0]
    except SolveError as error:  # a backend's own, of all samples at once
        if on_failure != "return" or not isinstance(error.partial, Solution):
            raise
        whole = error.partial
    return ended(whole, on_failure)


def run(
    model: Reverse,
    x: Tensor,
    controller: Any,
    solver: Solver,
    noise: NoiseSource | None = None,
    observe: Observer | None = None,
) -> Solution:
    """`solve` without its checks, failed rows returned with their status."""
    return run_to(model, x, controller, solver, noise, observe)[0]


def run_to(
    model: Reverse,
    x: Tensor,
    controller: Any,
    solver: Solver,
    noise: NoiseSource | None,
    observe: Observer | None = None,
    progress: bool | None = False,
    dense: bool = False,
    event: Event | None = None,
    checkpoint: int | None = None,
    previews: bool = True,
) -> tuple[Solution, Level]:
    """The loop of `solve`, its arguments checked: failed rows with their status, and the level that was reached."""
    now, next, control = controller.init(model.process, x)
    x = x.clone(memory_format=torch.contiguous_format)
    watched = PreviewModel(model) if observe is not None and previews and model.answers else None  # type: ignore[arg-type]
    rules = rules_for(watched or model, x, controller, control, solver, noise, dense or event is not None)
    state = State(x, (), now, next, control, 0, 0, None)
    path: list[Any] = []
    steps = len(rules.levels) - 1 if rules.levels else None
    if len(x) == 0:
        return solution(rules, state, False, path), now
    kept = Dense(rules.solver, rules.process, x, expand_rows(now, len(x), home(x.device))) if dense else None
    done = False
    if event is not None:
        rules = Rules(**{**vars(rules), "event": EventFinder(event, rules.solver, rules.process)})

    def where() -> str:
        t = state.now.t
        when = f"t={float(t):.6g}" if t.ndim == 0 else f"t in {t.tolist()}"
        return f"in step {state.steps + 1}, at {when}, after {state.nfe} evaluations"

    total = None if progress is False else controller.cost(solver)
    with guard(where, lambda: solution(rules, state, done, path)), progress_bar(total, "evaluation", progress) as bar:
        first = rules.parts[0] if rules.parts else rules.solver
        state = state._replace(carry=first.init(rules.model, x, now), nfe=first.init_evals)
        if bar is not None:
            bar(state.nfe)
        k = 0
        while k < steps if steps is not None else controller.running(state.control):
            before = state
            if checkpoint is None:
                state = advance(rules, state, k)
                k += 1
            else:
                state, k = _kept_at(rules, state, k, checkpoint)
            if kept is not None:
                kept.add(_piece(before, state))
            if bar is not None:
                bar(state.nfe - before.nfe)
            if observe is not None:
                shown = Progress(state.steps, steps, state.x, state.now, state.nfe)
                shown = shown if watched is None else shown._replace(preview=watched.preview)
                if observed(observe, shown, path):
                    break
        else:
            done = True
    return solution(rules, state, done, path, kept), state.now


def rules_for(model: Any, x: Tensor, controller: Any, control: Any, solver: Solver, noise: Any, between: bool) -> Rules:
    """What does not change in the solve; the steps of a known grid have solvers of their own."""
    levels: tuple[Level, ...] = controller.levels(control)
    parts = () if between else controller.parts(solver, model, control)
    if levels and not parts:
        solver = solver.for_steps(len(levels) - 1)
    if levels and any(model.process.open_ends) and readable(levels[0].t):
        check_ends(model, solver, levels[0], levels[-1])
    cheap = x.device.type == "cpu" and readable(x)
    watch = not torch.compiler.is_compiling() and not x.is_inference()
    width = widen(x[:0]).dtype
    source = _silent if noise is None else noise
    return Rules(model.process, model, solver, source, controller, levels, parts, cheap=cheap, watch=watch, dtype=width)


def _silent(x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
    raise InvalidArgumentError("this solver draws noise and its `stochastic` says that it does not: make it True")


def _kept_at(rules: Rules, state: State, k: int, every: int) -> tuple[State, int]:
    """The state some steps on, which alone is kept for gradients: the steps between are computed again.

    Memory for gradients is that of `n/every` states and carries and of `every` steps, smallest at `every = sqrt(n)`,
    for one more evaluation per step (Chen et al. 2016, sec. 3).
    """
    end = min(k + every, len(rules.levels) - 1)

    def steps(state: State) -> State:
        for j in range(k, end):
            state = advance(rules, state, j)
        return state

    return recomputed(steps, state, use_reentrant=False), end


def _check_checkpoint(every: Any, control: Any, **others: Any) -> None:
    """Raises InvalidArgumentError for what steps that are computed again cannot do."""
    check_whole("checkpoint", every)
    if not control.repeatable:
        raise InvalidArgumentError(
            f"checkpoint=k needs a fixed grid of times, got {control!r}; leave it out, or give times"
        )
    for name, value in others.items():
        if value:
            raise InvalidArgumentError(f"{name} does not go with checkpoint, which computes steps twice: leave one out")


def _piece(before: State, state: State) -> Piece:
    """The last step, for dense output."""
    count, device = len(state.x), home(state.x.device)
    now, next = expand_rows(before.now, count, device), expand_rows(before.next, count, device)
    fate = state.fate
    reached = next.t if fate is None else where_rows(fate.stopped, fate.t, next.t)
    return Piece(torch.arange(count, device=state.x.device), now, next, state.inner, reached, state.moved)
