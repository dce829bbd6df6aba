"""The calls people use: `sample` and `draw` from noise to data, `edit` data by noising them, `encode` data to noise."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, strict_keywords, unknown_keywords
from sdegen.grids import Grid, by_time, check_steps, check_times
from sdegen.loop.arguments import check_model, check_parts
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import solve
from sdegen.loop.solution import Observer, Solution, ended
from sdegen.loop.tolerance import PI
from sdegen.processes.sde import SDE
from sdegen.sampling.batches import Batches, check_shape, own_seeds, path_noise
from sdegen.scores.model import Model, place, warn_if_training
from sdegen.solvers.base import Reverse, Solver
from sdegen.solvers.frames import TIME
from sdegen.solvers.methods import adams, adaptive_heun, default, euler_maruyama, tsit5
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.stochastic import ExactTransition
from sdegen.solvers.tableaus import HEUN
from sdegen.tensors import as_time, check_state, has_dtype

P = ParamSpec("P")
_EDIT = (1, 0, 0, 0)  # words that no time and no prior has: noise of its own for `edit`


@strict_keywords
def draw(
    model: Reverse,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    solver: Solver | None = None,
    grid: Grid | Tensor | Sequence[float] | None = None,
    tol: float | PI | None = None,
    x: Tensor | None = None,
    start: float | None = None,
    end: float | None = None,
    seed: int | Tensor = 0,
    batch_size: int | None = None,
    denoise: bool = True,
    noise: Callable[[Tensor], noises.NoiseSource] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    observe: Observer | None = None,
    path: bool = False,
    progress: bool | None = None,
) -> Solution:
    """n samples with all that is known of them: levels, network evaluations, steps, status, the path if asked for.

    Args:
        model, shape and the other options: as in `sample`.
        path: keep all states, as `Solution.path` `[m + 1, n, *S]` at the levels `Solution.levels`, and the data that
            each step's last evaluation predicted, as `Solution.previews` `[m, n, *S]`, at no further evaluation.

    Returns:
        A `Solution`, its x the samples `[n, *S]`.

    Raises:
        InvalidArgumentError, InvalidTypeError: a mistake in the arguments, before the first evaluation.
        SolveError: samples became NaN or Inf; all others are in its `partial`.
    """
    with torch.no_grad():
        n, event = check_shape(shape)
        check_model(model)
        adaptive = tol is not None and (solver is None or solver.own_steps is None)
        if solver is None:
            solver = adaptive_default(model) if adaptive else own(model)
        check_parts(model, solver, observe)
        if adaptive:
            control: Any = controlled(
                tol, start, end, batch_size is not None, steps=steps, grid=grid, observe=observe, path=path
            )
        else:
            check_own_error(solver, tol)
            control = on_grid(model, solver, grid, steps, start, end)
        if control.runs_down(model.process) is False:
            raise InvalidArgumentError("sample runs from noise to data: times must decrease (sd.encode runs them up)")
        net = model.module
        dtype, device = place(net, dtype, device, model.device)
        if x is not None:
            check_state(x)
            if x.shape != (n, *event):
                raise InvalidArgumentError(f"x must have the shape asked for, {[n, *event]}; got {list(x.shape)}")
            dtype, device = x.dtype, x.device
        model.check_batch(n)
        warn_if_training(net)
        if adaptive:
            control = control.bind(solver, model.process, dtype)
            noise = noise or path_noise(model.process, solver)
        needed = solver.stochastic or control.draws
        batches = Batches(
            model,
            own_seeds(seed, n, device),
            event,
            dtype,
            control.first.t if adaptive else control.times[0],
            x,
            (noise or noises.White) if needed else None,
            n if batch_size is None else check_steps(batch_size, "batch_size"),
        )
        shown = progress if progress is not None else (None if sys.stderr.isatty() else False)
        if adaptive:
            return ended(batches.to_tolerance(control, solver, denoise, shown), "raise")
        return ended(batches.on_grid(control, solver, denoise, observe, shown, path), "raise")


def _samples(solution: Callable[P, Solution]) -> Callable[P, Tensor]:
    """The same call, answering with the samples alone; the options are typed once."""
    signature = inspect.signature(solution)
    known = signature.parameters.keys()

    @functools.wraps(solution)
    def sample(*args: P.args, **options: P.kwargs) -> Tensor:
        for name in ("path", "return_path", "return_solution"):
            if options.get(name):
                raise InvalidArgumentError(
                    f"sample returns the samples alone, got {name}=True: draw(...) returns a Solution, with path=True "
                    "all states and previews too"
                )
        if not options.keys() <= known:
            raise unknown_keywords("sample", options.keys() - known, known)
        return solution(*args, **options).x

    sample.__name__ = sample.__qualname__ = "sample"
    own = [p for name, p in signature.parameters.items() if name != "path"]
    sample.__signature__ = signature.replace(parameters=own, return_annotation="Tensor")  # type: ignore[attr-defined]
    return sample


sample = _samples(draw)
sample.__doc__ = """n samples `[n, *S]` from noise, each a function of its own seed alone.

    Keeps no gradients. `draw` takes the same options and returns a `Solution`.

    Args:
        model: a `ScoreModel`, a map of one, or a `ReverseSDE`.
        shape: `(n, *S)`, the number of samples and the shape of one.
        steps: how many, 20 if None; a plan's own.
        solver: None for `default()`, or Euler-Maruyama or Heun on a `ReverseSDE`.
        grid: None for the method's own, a callable `grid(process, n) -> times`, or times `[n + 1]`, which run down.
        tol: instead of steps and a grid, the error at the end relative to the scale of the data, to which every sample
            is taken by steps of its own; or an `sd.PI`. A plan takes its own steps, and a tolerance below its error is
            refused.
        x: states `[n, *S]` to go on from at the grid's first time (`edit` starts from data).
        start, end: the first and the last time, from t_max to t_min if None.
        seed: one number, which gives sample i the seed `sd.noise.seeds(seed, n)[i]`, or int64 seeds `[n]`, to make
            single samples again (with `model.rows(index)` where conditions are per sample).
        batch_size: how many samples the network sees at once: always that many, the last batch filled up, so that a
            sample's bits do not depend on n. With tol, samples that are done leave the batch and others enter.
        denoise: end with the predicted data at the last level, one evaluation more, instead of the state there (a
            `ReverseSDE` ends with the state).
        noise: makes the source from a batch's seeds `[B]`: `White` if None, `Brownian` with tol.
        dtype, device: those of x or the network if None, else float32 on the CPU.
        observe: called with a `Progress` after each step; `STOP` ends its batch, which is denoised where it stands.
        progress: show a bar; None: on terminals.

    Returns:
        The samples `[n, *S]`.

    Raises:
        InvalidArgumentError, InvalidTypeError: a mistake in the arguments, before the first evaluation.
        SolveError: samples became NaN or Inf; all others are in its `partial`.
    """


@torch.no_grad()
def edit(model: Model, data: Tensor, start: float, *, seed: int | Tensor = 0, **options: Any) -> Tensor:
    """Samples near `data`: noised to the level at time `start`, and sampled from there (SDEdit).

    `x = alpha data + sigma noise` at `start`, whose noise is a function of each sample's seed, then `sample` with x and
    start; a later start keeps less of the data (image-to-image with diffusers' strength).

    Args:
        model: a `ScoreModel`, or a map of one.
        data: `[n, *S]`.
        start: a time in (t_min, t_max].
        seed: as in `sample`.
        options: those of `sample`.

    Returns:
        The samples `[n, *S]`.

    Raises:
        InvalidArgumentError: `start` lies outside of the process's span.

    Source: Meng et al. 2022, alg. 1.
    """
    check_state(data)
    if not isinstance(model, Model):
        raise InvalidTypeError(f"edit needs a ScoreModel on a Process, whose noise it adds; got {model!r}")
    process = model.process
    if not process.t_min < start <= process.t_max:
        raise InvalidArgumentError(f"start must be a time in ({process.t_min:g}, {process.t_max:g}], got {start}")
    seeds = own_seeds(seed, data.shape[0], data.device)
    noise = noises.normals(seeds, tuple(data.shape[1:]), _EDIT, dtype=data.dtype)
    x = process.perturb(data, process.level(start), noise)
    return sample(model, tuple(data.shape), x=x, start=start, seed=seed, **options)


@strict_keywords
@torch.no_grad()
def encode(
    model: Reverse,
    x: Tensor,
    *,
    steps: int | None = None,
    solver: Solver | None = None,
    grid: Grid | Tensor | Sequence[float] | None = None,
    tol: float | PI | None = None,
    progress: bool = False,
) -> Tensor:
    """The state at t_max that a deterministic solver carries to x at t_min: `sample`'s path, backwards.

    Args:
        model: as in `sample`.
        x: the states at t_min `[B, *S]`.
        steps, solver, grid: as in `sample`; times in either direction.
        tol: the error at t_max instead, as by `sd.PI`.
        progress: show a bar.

    Returns:
        The states at t_max `[B, *S]`.

    Raises:
        InvalidArgumentError: the solver draws noise.
    """
    check_model(model)
    if solver is None:
        solver = own(model) if tol is None else adaptive_default(model)
    check_parts(model, solver, None)
    if solver.stochastic:
        raise InvalidArgumentError(f"{solver} draws noise, and only a deterministic solver encodes; use sd.ddim()")
    if tol is not None:
        upwards = controlled(tol, model.process.t_min, model.process.t_max, steps=steps, grid=grid)
        return solve(model, x, upwards, solver, progress=progress).x
    control = on_grid(model, solver, grid, steps)
    return solve(model, x, Fixed(control.times.sort().values), solver, progress=progress).x


@strict_keywords
@torch.no_grad()
def forward(
    sde: SDE,
    x: Tensor,
    times: Tensor | Sequence[float],
    *,
    seed: int | Tensor = 0,
    noise: noises.NoiseSource | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """A path of the forward SDE through increasing times.

    Args:
        sde: any SDE or process.
        x: the states at `times[0]` `[B, *S]`.
        times: `[n + 1]`, increasing inside the span.
        seed: as in `sample`, for noise per sample.
        noise: a source instead.
        solver: one that steps in t, such as `milstein()`; None for the exact transitions where the SDE has them, as a
            `Process` and a `LinearSDE`, else Euler-Maruyama.

    Returns:
        The states at all times `[n + 1, B, *S]`.

    Raises:
        InvalidArgumentError: the times do not increase inside the span.
    """
    if not isinstance(sde, SDE):
        raise InvalidTypeError(f"forward takes an SDE, got {sde!r}")
    known = as_time(times)
    low, high = float(known.min()), float(known.max())
    if known.ndim != 1 or not bool((known.diff() > 0).all()) or low < sde.t_min or high > sde.t_max:
        raise InvalidArgumentError(
            f"times must increase strictly inside the span [{sde.t_min:g}, {sde.t_max:g}], got {known.tolist()}"
        )
    source = noise or noises.White(own_seeds(seed, x.shape[0], x.device))
    solver = solver or (ExactTransition() if sde.exact_transitions else euler_maruyama())
    found = solve(sde.as_forward(), x, known, solver, noise=source, observe=lambda progress: progress.x.clone())
    return torch.stack([x, *found.path])


def own(model: Any) -> Solver:
    """The solver for a model where none is given: a ReverseSDE has only its drift and diffusion."""
    if model.answers:
        return default()
    return euler_maruyama(model.eta) if model.eta else RungeKutta(HEUN, TIME)


def adaptive_default(model: Any) -> Solver:
    """The adaptive solver for a model where none is given."""
    if model.answers:
        return adams()
    return adaptive_heun(model.eta) if model.eta else tsit5(frame=TIME)


def controlled(tol: Any, start: float | None, end: float | None, padded: bool = False, **others: Any) -> PI:
    """The controller that `sample(tol=...)` asks for. Raises InvalidArgumentError for what does not go with it."""
    for name, value in others.items():
        if value is not None and value is not False:
            raise InvalidArgumentError(
                f"{name} does not go with tol, which chooses each sample's own steps: leave one of them out"
                + (" (sd.solve with sd.PI takes both)" if name in ("observe", "path") else "")
            )
    if not isinstance(tol, PI):
        return PI(tol=tol, start=start, end=end, fixed_shapes=padded)
    if tol.start is tol.end is None:
        return replace(tol, start=start, end=end)
    if start is not None or end is not None:
        raise InvalidArgumentError("give start and end once, to the PI or to the call")
    return tol


def check_own_error(solver: Solver, tol: Any) -> None:
    """Raises InvalidArgumentError where a plan's own estimate of its error is above the tolerance."""
    if tol is None:
        return
    if solver.own_error is None:
        raise InvalidArgumentError(f"{solver} has tolerances of its own: give them to it, and leave tol out")
    wanted = tol.tol if isinstance(tol, PI) else tol
    if wanted is not None and not solver.own_error <= wanted:
        raise InvalidArgumentError(
            f"this plan's own estimate of its error is {solver.own_error:.1e} of the data's scale, above "
            f"tol={wanted:g}: calibrate one with calibrate(model, shape, tol=...), or leave the plan out for adaptive "
            "steps"
        )


def on_grid(
    model: Any, solver: Solver, grid: Any, steps: int | None, start: float | None = None, end: float | None = None
) -> Fixed:
    """The grid as a controller; everything about it is checked here."""
    if grid is None:
        grid = solver.grid if model.process.gaussian else by_time
    if isinstance(grid, str) or not (callable(grid) or isinstance(grid, Sequence) or has_dtype(grid)):
        raise InvalidTypeError(
            f"grid must be a callable grid(process, n) such as sd.grids.karras, or times; got {grid!r}"
        )
    if not callable(grid):
        made, takes = grid, False
    else:
        count = check_steps(solver.own_steps or 20 if steps is None else steps)
        if start is end is None:
            made, takes = grid(model.process, count), True
        else:
            bounds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
            takes = bounds.keys() <= inspect.signature(grid).parameters.keys()
            made = grid(model.process, count, **(bounds if takes else {}))
    if not takes and not (start is end is None):
        made = _cut(made, solver, start, end)
    return made if isinstance(made, Fixed) else Fixed(made)


def _cut(times: Any, solver: Solver, start: float | None, end: float | None) -> Tensor:
    """The times strictly between start and end, and these two: of a grid that cannot be told where to begin."""
    if isinstance(times, Fixed) or solver.own_steps is not None:
        raise InvalidArgumentError(
            f"{'a Restart' if solver.own_steps is None else 'this plan or backend'} has levels of its own and takes "
            "no start or end; give a grid that has them"
        )
    known = check_times(times)
    first, last = float(known[0]) if start is None else start, float(known[-1]) if end is None else end
    if not first > last:
        raise InvalidArgumentError(f"a grid runs down in time: start={first:g} must be above end={last:g}")
    inside = known[(known < first) & (known > last)]
    return torch.cat([known.new_tensor([first]), inside, known.new_tensor([last])])
