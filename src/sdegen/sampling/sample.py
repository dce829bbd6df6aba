"""The calls people use: `sample` from noise to data, `edit` data by noising them, `encode` from data to noise."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, strict_keywords
from sdegen.grids import Grid, by_time, check_steps, check_times
from sdegen.level import Level
from sdegen.loop.checks import check_parts, check_solve
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run, solve
from sdegen.loop.progress import progress_bar
from sdegen.loop.solution import STOP, Observer, Progress, Solution, ended
from sdegen.loop.tolerance import PI
from sdegen.processes.process import Process
from sdegen.processes.sde import ReverseSDE
from sdegen.sampling.starts import begin_at, check_shape, denoised, own_seeds
from sdegen.sampling.tolerance import adaptive_default, controlled, to_tolerance
from sdegen.sampling.trajectory import Recorder, Trajectory, joined
from sdegen.scores.model import Model, place, warn_if_training
from sdegen.solvers.base import Reverse, Solver
from sdegen.solvers.frames import TIME
from sdegen.solvers.methods import default, euler_maruyama
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.tableaus import HEUN
from sdegen.tensors import check_state, picked

_EDIT = (1, 0, 0, 0)  # words that no time and no prior has: noise of its own for `edit`


@overload
def sample(
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
    return_path: Literal[False] = False,
    return_solution: Literal[False] = False,
    progress: bool | None = None,
) -> Tensor: ...
@overload
def sample(
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
    return_path: Literal[True],
    return_solution: Literal[False] = False,
    progress: bool | None = None,
) -> Trajectory: ...
@overload
def sample(
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
    return_path: Literal[False] = False,
    return_solution: Literal[True],
    progress: bool | None = None,
) -> Solution: ...
@strict_keywords
@torch.no_grad()
def sample(
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
    return_path: bool = False,
    return_solution: bool = False,
    progress: bool | None = None,
) -> Tensor | Trajectory | Solution:
    """n samples `[n, *S]`, each a function of its own seed alone; `shape` is `(n, *S)`.

    tol: instead of steps and a grid, the error at the end relative to the scale of the data, to which every sample is
    taken by steps of its own (`sd.PI`, which may stand here itself); with `batch_size`, samples that are done leave the
    network's batch and others enter. A plan takes its own steps, and a tolerance below its error is refused. steps: how
    many, 20 if None (a plan's own). solver: None for `default()`, or Euler-Maruyama or Heun on a `ReverseSDE`. grid:
    None for the method's own, a callable `grid(process, n) -> times`, or times `[n + 1]` (then `steps` is not used); it
    must run down, and starts at t_max or where alpha/sigma is small, as the start is noise alone. x: states `[n, *S]`
    to go on from at the grid's first time, as from an earlier run (`edit` starts from data). start, end: the first and
    the last time, where the grid is a callable that takes them, as those of `sd.grids` do. seed: one number, which
    gives sample i the seed `sd.noise.seeds(seed, n)[i]`, or the seeds `[n]` themselves, to make single samples again
    (with `model.rows(index)` where conditions are per sample). batch_size: how many samples the network sees at once;
    always that many, the last batch padded, so that a sample's bits do not depend on n. denoise: end with the predicted
    data at the last level, one evaluation more, instead of the state there (a `ReverseSDE` has no such prediction and
    ends with the state). noise: makes the source from a batch's seeds `[B]`,
    `White` unless given, `Brownian` with a tolerance. dtype, device: those of x or the network
    by default, else float32 on the CPU. observe: see `solve`; what it returns is not kept, and `STOP` ends its batch
    (which is denoised at the level reached). return_path: return a `Trajectory`, with all states and previews.
    progress: None shows a bar on terminals.

    Keeps no gradients. Raises InvalidArgumentError and InvalidTypeError before the first evaluation, and SolveError at
    the end if samples became NaN or Inf, with all others in its `partial`.
    """
    n, event = check_shape(shape)
    planned = solver is not None and hasattr(solver, "planned")
    adaptive = tol is not None and not planned
    if tol is not None and planned:
        _check_planned(solver, tol)
    if solver is None:
        solver = adaptive_default(model) if adaptive else _own(model)
    check_parts(model, solver, observe)
    if adaptive:
        control: Any = controlled(
            tol, start, end, batch_size is not None, steps=steps, grid=grid, observe=observe, return_path=return_path
        )
    else:
        control = _control(model, solver, grid, steps, start, end)
        if not control.towards_data:
            raise InvalidArgumentError("sample runs from noise to data: times must decrease (sd.encode runs them up)")
    dtype, device = place(model, dtype, device)
    if x is not None:
        check_state(x)
        if x.shape != (n, *event):
            raise InvalidArgumentError(f"x must have the shape asked for, {[n, *event]}; got {list(x.shape)}")
        dtype, device = x.dtype, x.device
    seeds = own_seeds(seed, n, device)
    if hasattr(model, "check_batch"):
        model.check_batch(n)
    warn_if_training(model)
    size = n if batch_size is None else check_steps(batch_size, "batch_size")
    chunks = math.ceil(n / size) if n else 0
    shown = progress if progress is not None else (None if sys.stderr.isatty() else False)
    if adaptive:
        whole = to_tolerance(model, event, control, solver, seeds, x, dtype, size, noise, denoise, shown)
        ended(whole, "raise")
        return whole if return_solution else whole.x
    parts: list[Solution] = []
    paths: list[Recorder] = []
    with _keeping(parts, n), progress_bar(chunks * control.steps, shown) as bar:
        for k in range(chunks):
            first, real = k * size, min(size, n - k * size)
            index = torch.arange(first, first + size, device=device).clamp(max=n - 1)
            here, own = picked(model, index), seeds[index]
            begin = begin_at(here, own, event, dtype, control.times[0]) if x is None else x[index]
            source = (noise or noises.White)(own) if solver.stochastic or control.passes > 1 else None
            record = Recorder(begin[:real], here.process.level(control.times[0])) if return_path else None
            paths += [record] if record else []
            watch = _Watch(observe, bar, real, record)
            check_solve(here, begin, control, solver, source, "return", watch)
            part = run(here, begin, control, solver, source, watch, False)
            parts.append(part.rows(real))
            if denoise and not isinstance(here, ReverseSDE):
                parts[-1] = denoised(here, part, watch.level).rows(real)
    empty = torch.empty(0, *event, dtype=dtype, device=device)
    found = ended(Solution.join(parts), "raise") if parts else _nothing(empty, model.process.level(control.times[0]))
    result = found.x
    if return_solution:
        return found
    if not return_path:
        return result
    return joined(result, paths or [Recorder(empty, model.process.level(control.times[0]))])


def _check_planned(plan: Any, tol: Any) -> None:
    """Raises InvalidArgumentError where a plan's own estimate of its error is above the tolerance."""
    if not hasattr(plan, "error"):
        raise InvalidArgumentError(f"{plan} has tolerances of its own: give them to it, and leave tol out")
    wanted = tol.tol if isinstance(tol, PI) else tol
    share = plan.error / getattr(plan, "scale", 1.0)
    if wanted is not None and not share <= wanted:
        raise InvalidArgumentError(
            f"this plan's own estimate of its error is {share:.1e} of the data's scale, above tol={wanted:g}: "
            "calibrate one with calibrate(model, shape, tol=...), or leave the plan out for adaptive steps"
        )


def _nothing(empty: Tensor, level: Level) -> Solution:
    """The solution for no samples."""
    none = torch.zeros(0, dtype=torch.int32, device=empty.device)
    return Solution(empty, Level(*(v.expand(0) for v in level)), none, none, none, none.to(torch.int8), [])


@contextlib.contextmanager
def _keeping(parts: list[Solution], n: int) -> Iterator[None]:
    """Add the finished batches to the `partial` of an exception that ends the run."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # what cannot be kept must not hide the error
            last = getattr(error, "partial", None)
            whole = Solution.join([*parts, *([last] if last is not None else [])])
            error.partial = whole.rows(n)  # type: ignore[attr-defined]
        raise


@torch.no_grad()
def edit(model: Model, data: Tensor, start: float, *, seed: int | Tensor = 0, **options: Any) -> Any:
    """Samples near `data` `[n, *S]`: noised to the level at time `start`, and sampled from there (SDEdit).

    `x = alpha data + sigma noise` at `start`, whose noise is a function of each sample's seed, then `sample` with x and
    start; a later start keeps less of the data (Meng et al. 2022, alg. 1; image-to-image with diffusers' strength).
    options: those of `sample`. Raises InvalidArgumentError for a start outside of the process's span.
    """
    check_state(data)
    source: object = model
    process = getattr(model, "process", None)
    if isinstance(source, ReverseSDE) or not isinstance(process, Process):
        raise InvalidTypeError(f"edit needs a ScoreModel on a Process, whose noise it adds; got {model!r}")
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
    """The state at t_max `[B, *S]` that a deterministic solver carries to x at t_min: `sample`'s path, backwards.

    x `[B, *S]` is taken as the state at t_min. steps, solver, grid as in `sample` (times in either direction); tol: the
    error there instead, as by `sd.PI`. Raises InvalidArgumentError for a stochastic solver.
    """
    if solver is None:
        solver = _own(model) if tol is None else adaptive_default(model)
    check_parts(model, solver, None)
    if solver.stochastic:
        raise InvalidArgumentError(f"{solver} draws noise, and only a deterministic solver encodes; use sd.ddim()")
    if tol is not None:
        upwards = controlled(tol, model.process.t_min, model.process.t_max, steps=steps, grid=grid)
        return solve(model, x, upwards, solver, progress=progress).x
    control = _control(model, solver, grid, steps)
    return solve(model, x, Fixed(control.times.sort().values), solver, progress=progress).x


def _own(model: Any) -> Solver:
    """The solver for a model where none is given: a ReverseSDE has only its drift and diffusion."""
    if not isinstance(model, ReverseSDE):
        return default()
    return euler_maruyama(model.eta) if model.eta else RungeKutta(HEUN, TIME)


def _control(
    model: Any, solver: Any, grid: Any, steps: int | None, start: float | None = None, end: float | None = None
) -> Fixed:
    """The grid as a controller; everything about it is checked here."""
    if grid is None:
        grid = getattr(solver, "grid", by_time) if isinstance(model.process, Process) else by_time
    if isinstance(grid, str) or not (callable(grid) or isinstance(grid, Sequence) or hasattr(grid, "dtype")):
        raise InvalidTypeError(
            f"grid must be a callable grid(process, n) such as sd.grids.karras, or times; got {grid!r}"
        )
    if steps is None:
        steps = getattr(solver, "planned", 20)
    bounds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
    takes = callable(grid) and bounds.keys() <= inspect.signature(grid).parameters.keys()
    made = grid(model.process, check_steps(steps), **(bounds if takes else {})) if callable(grid) else grid
    if bounds and not takes:
        made = _cut(made, solver, start, end)
    return made if isinstance(made, Fixed) else Fixed(made)


def _cut(times: Any, solver: Any, start: float | None, end: float | None) -> Tensor:
    """The times strictly between start and end, and these two: of a grid that cannot be told where to begin."""
    if isinstance(times, Fixed) or hasattr(solver, "planned"):
        raise InvalidArgumentError(
            f"{'this plan or backend' if hasattr(solver, 'planned') else 'a Restart'} has levels of its own and takes "
            "no start or end; give a grid that has them"
        )
    known = check_times(times)
    first, last = float(known[0]) if start is None else start, float(known[-1]) if end is None else end
    if not first > last:
        raise InvalidArgumentError(f"a grid runs down in time: start={first:g} must be above end={last:g}")
    inside = known[(known < first) & (known > last)]
    return torch.cat([known.new_tensor([first]), inside, known.new_tensor([last])])


class _Watch:
    """The observer of one batch: moves the bar, remembers the level, hides the padded rows from the user's own."""

    def __init__(
        self, observe: Observer | None, bar: Callable[[int], None], real: int, record: Recorder | None
    ) -> None:
        self.observe, self.bar, self.real, self.record = observe, bar, real, record
        self.previews = observe is not None or record is not None
        self.spent = 0

    def __call__(self, progress: Progress) -> Any:
        self.level = progress.level
        self.bar(progress.nfe - self.spent)
        self.spent = progress.nfe
        if not self.previews:
            return None

        def preview() -> Tensor | None:
            data = progress.preview()
            return None if data is None else data[: self.real]

        shown = progress._replace(x=progress.x[: self.real], preview=preview)
        if self.record is not None:
            self.record(shown)
        return STOP if self.observe is not None and self.observe(shown) is STOP else None
