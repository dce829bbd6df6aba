"""The calls people use: `sample` from noise to data, `encode` from data to noise."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.control import Fixed
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import Grid, by_time, check_steps
from sdegen.methods import default
from sdegen.process import Level, Process, ReverseSDE
from sdegen.solve import (
    STOP,
    Observer,
    Progress,
    Solution,
    Status,
    check_observer,
    ended,
    progress_bar,
    solve,
    strict_keywords,
)
from sdegen.solvers.base import Reverse, Solver


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

    steps: how many. solver: None for `default()`. grid: None for the method's own, a callable
    `grid(process, n) -> times`, or times `[n + 1]` (then `steps` is not used). seed: one number, which gives sample i
    the seed `sd.noise.seeds(seed, n)[i]`, or the seeds `[n]` themselves, to make single samples again.
    batch_size: how many samples the network sees at once; always that many, the last batch padded, so that a sample's
    bits do not depend on n. denoise: end with the predicted data at t_min, one evaluation more, instead of the state
    there (a general SDE has no such prediction and ends at t_min). dtype, device: the network's by default, else
    float32 on the CPU. observe: see `solve`; what it returns, save `STOP`, is not kept. progress: None shows a bar on
    terminals.

    Keeps no gradients. Raises InvalidArgumentError and InvalidTypeError before the first evaluation, and SolveError at
    the end if samples became NaN or Inf, with all others in its `partial`.
    """
    n, event = _check_shape(shape)
    check_observer(observe)
    solver = solver or default()
    control = _control(model, solver, grid, steps)
    dtype, device = _place(model, dtype, device)
    seeds = _seeds(seed, n, device)
    size = n if batch_size is None else check_steps(batch_size, "batch_size")
    chunks = math.ceil(n / size) if n else 0
    if progress is None:
        shown: bool | None = None if sys.stderr.isatty() else False
    else:
        shown = progress
    parts = []
    with progress_bar(chunks * control.steps, shown) as bar:
        for k in range(chunks):
            start, real = k * size, min(size, n - k * size)
            index = torch.arange(start, start + size, device=device).clamp(max=n - 1)
            here, chunk_seeds = _rows(model, index), seeds[index]
            x = _start(here, chunk_seeds, event, dtype, control)
            source = noise(chunk_seeds) if solver.stochastic else None
            watch = _Watch(observe, bar, real, solver.evals)
            part = solve(here, x, control, solver, noise=source, observe=watch, on_failure="return")
            if denoise and not isinstance(here, ReverseSDE):
                part = _denoised(here, part, watch.level)
            parts.append(_first(part, real))
    if not parts:
        return torch.empty(0, *event, dtype=dtype, device=device)
    whole = _joined(parts)
    return ended(whole, "raise").x


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
    solver = solver or default()
    if solver.stochastic:
        raise InvalidArgumentError(f"{solver} draws noise, and only a deterministic solver encodes; use sd.ddim()")
    control = _control(model, solver, grid, steps)
    return solve(model, x, Fixed(control.times.sort().values), solver, progress=progress).x


def _control(model: Any, solver: Any, grid: Any, steps: int) -> Fixed:
    """The grid as a controller; everything about it is checked here."""
    if not hasattr(model, "process"):
        raise InvalidTypeError(
            f"model must be a ScoreModel or a ReverseSDE, got {model!r}; wrap a callable as ScoreModel(process, net)"
        )
    if isinstance(solver, type) or not hasattr(solver, "step"):
        raise InvalidTypeError(f"solver must be a solver such as sd.ddim(), got {solver!r}")
    if isinstance(grid, (Tensor, Sequence)) and not isinstance(grid, str):
        return Fixed(grid)
    grid = getattr(solver, "grid", by_time) if grid is None else grid
    if not callable(grid):
        raise InvalidTypeError(
            f"grid must be a callable grid(process, n) such as sd.grids.karras, or times; got {grid!r}"
        )
    return Fixed(grid(model.process, check_steps(steps)))


def _check_shape(shape: Any) -> tuple[int, tuple[int, ...]]:
    """`(n, *S)` taken apart."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) < 2 or not all(isinstance(v, int) and v >= 0 for v in sizes):
        raise InvalidArgumentError(
            f"shape must be (n, *S), a number of samples and at least one sample dimension, got {shape!r}"
        )
    return sizes[0], sizes[1:]


def _place(
    model: Any, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    """Where and in what precision the states live: the caller's word, else the network's parameters."""
    net = getattr(getattr(model, "score", model), "module", None)
    weights = [] if net is None else [p for p in net.parameters() if p.is_floating_point()][:1]
    own_dtype, own_device = (weights[0].dtype, weights[0].device) if weights else (torch.float32, torch.device("cpu"))
    dtype = own_dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise InvalidTypeError(f"dtype must be a floating dtype, got {dtype}")
    return dtype, own_device if device is None else torch.device(device)


def _seeds(seed: Any, n: int, device: torch.device) -> Tensor:
    if not isinstance(seed, Tensor):
        return noises.seeds(seed, n, device=device)
    if seed.dtype != torch.int64 or seed.shape != (n,):
        raise InvalidArgumentError(
            f"seed must be one number or int64 seeds of shape [{n}], got {seed.dtype} of shape {list(seed.shape)}"
        )
    return seed.to(device)


def _rows(model: Any, index: Tensor) -> Any:
    """The model for these samples: one with per-sample conditions takes its rows."""
    return model.rows(index) if hasattr(model, "rows") else model


def _start(model: Any, seeds: Tensor, event: tuple[int, ...], dtype: torch.dtype, control: Fixed) -> Tensor:
    """The prior at the grid's first level."""
    process, first = model.process, control.times[0]
    x: Tensor = process.prior(seeds, event, dtype)
    if first == process.t_max:
        return x
    if not isinstance(process, Process):
        raise InvalidArgumentError(f"the prior of {process} is at t={process.t_max}; times must start there")
    return x * (process.sigma(first) / process.sigma(torch.full_like(first, process.t_max))).to(dtype)


def _denoised(model: Any, part: Solution, level: Level) -> Solution:
    """The predicted data in place of the state; a row that is not finite stays the state and says so."""
    clean = model(part.x, level, "data").to(part.x.dtype)
    fine = clean.flatten(1).isfinite().all(1) & part.ok
    status = torch.where(fine, part.status, int(Status.NONFINITE))
    clean = torch.where(fine.reshape(-1, *(1,) * (clean.ndim - 1)), clean, part.x)
    return part._replace(x=clean, status=status, nfe=part.nfe + part.ok)


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


def _first(part: Solution, n: int) -> Solution:
    """The first n rows."""
    level = Level(*(v[:n] for v in part.level))
    nfe, accepted, rejected, status = (v[:n] for v in part[2:6])
    return Solution(part.x[:n], level, nfe, accepted, rejected, status, part.path)


def _joined(parts: list[Solution]) -> Solution:
    """The batches as one."""
    level = Level(*(torch.cat(v) for v in zip(*(part.level for part in parts))))
    nfe, accepted, rejected, status = (torch.cat(v) for v in zip(*(part[2:6] for part in parts)))
    return Solution(torch.cat([p.x for p in parts]), level, nfe, accepted, rejected, status, [])
