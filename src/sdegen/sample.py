"""The calls people use: `sample` from noise to data, `encode` from data to noise."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.checks import check_parts, check_solve, network, warn_caller, warn_if_training
from sdegen.control import Fixed
from sdegen.errors import InvalidArgumentError, InvalidTypeError, readable, strict_keywords
from sdegen.frames import TIME
from sdegen.grids import Grid, by_time, check_steps
from sdegen.methods import default, euler_maruyama
from sdegen.process import Process
from sdegen.progress import progress_bar
from sdegen.sde import Level, ReverseSDE
from sdegen.solution import STOP, Observer, Progress, Solution, Status, ended
from sdegen.solve import keep, run, solve
from sdegen.solvers.base import Reverse, Solver
from sdegen.solvers.runge_kutta import HEUN, RungeKutta
from sdegen.tensors import finite_rows

_PURE = 0.15


@strict_keywords
@torch.no_grad()
def sample(
    model: Reverse,
    shape: Sequence[int],
    *,
    steps: int = 20,
    solver: Solver | None = None,
    grid: Grid | Tensor | Sequence[float] | None = None,
    seed: int | Tensor = 0,
    batch_size: int | None = None,
    denoise: bool = True,
    noise: Callable[[Tensor], noises.NoiseSource] = noises.White,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    observe: Observer | None = None,
    progress: bool | None = None,
) -> Tensor:
    """n samples `[n, *S]`, each a function of its own seed alone; `shape` is `(n, *S)`.

    steps: how many. solver: None for `default()`, or Euler-Maruyama or Heun on a `ReverseSDE`. grid: None for the
    method's own, a callable `grid(process, n) -> times`, or times `[n + 1]` (then `steps` is not used); it must run
    down, and starts at t_max or where alpha/sigma is small: the start is noise alone. seed: one number, which gives
    sample i the seed `sd.noise.seeds(seed, n)[i]`, or the seeds `[n]` themselves, to make single samples again (with
    `model.rows(index)` where conditions are per sample). batch_size: how many samples the network sees at once; always
    that many, the last batch padded, so that a sample's bits do not depend on n. denoise: end with the predicted data
    at the last level, one evaluation more, instead of the state there (a `ReverseSDE` has no such prediction and ends
    with the state). noise: makes the source from a batch's seeds `[B]`. dtype, device: the network's by default, else
    float32 on the CPU. observe: see `solve`; what it returns is not kept, and `STOP` ends its batch (which is denoised
    at the level reached). progress: None shows a bar on terminals.

    Keeps no gradients. Raises InvalidArgumentError and InvalidTypeError before the first evaluation, and SolveError at
    the end if samples became NaN or Inf, with all others in its `partial`.
    """
    n, event = _check_shape(shape)
    solver = _own(model) if solver is None else solver
    check_parts(model, solver, observe)
    control = _control(model, solver, grid, steps)
    if not control.towards_data:
        raise InvalidArgumentError("sample runs from noise to data: times must decrease (sd.encode runs them up)")
    dtype, device = _place(model, dtype, device)
    seeds = _seeds(seed, n, device)
    if hasattr(model, "check_batch"):
        model.check_batch(n)
    warn_if_training(model)
    size = n if batch_size is None else check_steps(batch_size, "batch_size")
    chunks = math.ceil(n / size) if n else 0
    shown = progress if progress is not None else (None if sys.stderr.isatty() else False)
    parts: list[Solution] = []
    with _keeping(parts, n), progress_bar(chunks * control.steps, shown) as bar:
        for k in range(chunks):
            start, real = k * size, min(size, n - k * size)
            index = torch.arange(start, start + size, device=device).clamp(max=n - 1)
            here, own = model.rows(index) if hasattr(model, "rows") else model, seeds[index]
            x = _start(here, own, event, dtype, control)
            source = noise(own) if solver.stochastic else None
            watch = _Watch(observe, bar, real, solver.evals)
            check_solve(here, x, control, solver, source, "return", watch)
            part = run(here, x, control, solver, source, watch, False)
            parts.append(part.rows(real))
            if denoise and not isinstance(here, ReverseSDE):
                parts[-1] = _denoised(here, part, watch.level).rows(real)
    if not parts:
        return torch.empty(0, *event, dtype=dtype, device=device)
    return ended(Solution.join(parts), "raise").x


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


@strict_keywords
@torch.no_grad()
def encode(
    model: Reverse,
    x: Tensor,
    *,
    steps: int = 20,
    solver: Solver | None = None,
    grid: Grid | Tensor | Sequence[float] | None = None,
    progress: bool = False,
) -> Tensor:
    """The state at t_max `[B, *S]` that a deterministic solver carries to x at t_min: `sample`'s path, backwards.

    x `[B, *S]` is taken as the state at t_min. steps, solver, grid as in `sample` (times in either direction).
    Raises InvalidArgumentError for a stochastic solver.
    """
    solver = _own(model) if solver is None else solver
    check_parts(model, solver, None)
    if solver.stochastic:
        raise InvalidArgumentError(f"{solver} draws noise, and only a deterministic solver encodes; use sd.ddim()")
    control = _control(model, solver, grid, steps)
    return solve(model, x, Fixed(control.times.sort().values), solver, progress=progress).x


def _own(model: Any) -> Solver:
    """The solver for a model where none is given: a ReverseSDE has only its drift and diffusion."""
    if not isinstance(model, ReverseSDE):
        return default()
    return euler_maruyama(model.eta) if model.eta else RungeKutta(HEUN, TIME)


def _control(model: Any, solver: Any, grid: Any, steps: int) -> Fixed:
    """The grid as a controller; everything about it is checked here."""
    if grid is None:
        grid = getattr(solver, "grid", by_time) if isinstance(model.process, Process) else by_time
    if isinstance(grid, str) or not (callable(grid) or isinstance(grid, Sequence) or hasattr(grid, "dtype")):
        raise InvalidTypeError(
            f"grid must be a callable grid(process, n) such as sd.grids.karras, or times; got {grid!r}"
        )
    return Fixed(grid(model.process, check_steps(steps)) if callable(grid) else grid)


def _check_shape(shape: Any) -> tuple[int, tuple[int, ...]]:
    """`(n, *S)` taken apart."""
    try:
        sizes = tuple(operator.index(v) for v in shape)
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 0:
        raise InvalidArgumentError(
            f"shape must be (n, *S), a number of samples and at least one sample dimension, got {shape!r}"
        )
    return sizes[0], sizes[1:]


def _place(model: Any, dtype: Any, device: torch.device | str | None) -> tuple[torch.dtype, torch.device]:
    """Where and in what precision the states live: the caller's word, else the network's parameters."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidTypeError(f"dtype must be a floating torch.dtype such as torch.float32, got {dtype!r}")
    net = network(model)
    weights = [] if net is None else [p for p in net.parameters() if p.is_floating_point()][:1]
    if weights:
        own_dtype, own_device = weights[0].dtype, weights[0].device
    else:
        mixture = getattr(getattr(model, "score", model), "mixture", None)
        own_dtype, own_device = torch.float32, torch.device("cpu") if mixture is None else mixture.means.device
    return dtype or own_dtype, own_device if device is None else torch.device(device)


def _seeds(seed: Any, n: int, device: torch.device) -> Tensor:
    if not isinstance(seed, Tensor):
        try:
            return noises.seeds(seed, n, device=device)
        except InvalidTypeError as error:
            raise InvalidTypeError(f"{error}, or int64 seeds of shape [{n}]") from None
    if seed.dtype != torch.int64 or seed.shape != (n,):
        raise InvalidArgumentError(
            f"seed must be one number or int64 seeds of shape [{n}], got {seed.dtype} of shape {list(seed.shape)}"
        )
    return seed.to(device)


def _start(model: Any, seeds: Tensor, event: tuple[int, ...], dtype: torch.dtype, control: Fixed) -> Tensor:
    """The prior at the grid's first level."""
    process, first = model.process, control.times[0]
    if not isinstance(process, Process):
        if float(first) != process.t_max:
            raise InvalidArgumentError(f"the prior of {process} is at t={process.t_max}; times must start there")
        drawn: Tensor = process.prior(seeds, event)
        return drawn.to(dtype)
    x = process.prior(seeds, event, dtype)
    if not readable(first) or float(first) == process.t_max:
        return x
    level = process.level(first)
    share = float(level.alpha / level.sigma)
    if share > _PURE:
        warn_caller(
            f"the grid starts at t={float(first):g}, where x still holds alpha/sigma = {share:.2g} of the data, and "
            "the start is noise alone; start at t_max, or run sd.solve from process.perturb(data, level, noise)"
        )
    return x * (level.sigma / process.sigma(torch.full_like(first, process.t_max))).to(dtype)


def _denoised(model: Any, part: Solution, level: Level) -> Solution:
    """The predicted data in place of the state; a row that is not finite stays the state and says so."""
    clean = model(part.x, level, "data").to(part.x.dtype)
    fine = finite_rows(clean) & part.ok
    status = torch.where(fine, part.status, int(Status.NONFINITE))
    return part._replace(x=keep(fine, clean, part.x), status=status, nfe=part.nfe + part.ok)


class _Watch:
    """The observer of one batch: moves the bar, remembers the level, hides the padded rows from the user's own."""

    def __init__(self, observe: Observer | None, bar: Callable[[int], None], real: int, evals: int) -> None:
        self.observe, self.bar, self.real, self.evals = observe, bar, real, evals

    def __call__(self, progress: Progress) -> Any:
        self.level = progress.level
        self.bar(self.evals)
        if self.observe is None:
            return None
        return STOP if self.observe(progress._replace(x=progress.x[: self.real])) is STOP else None
