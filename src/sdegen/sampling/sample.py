"""The calls people use: `sample` and `draw` from noise to data, `edit` data by noising them, `encode` data to noise."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeAlias

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief, check_call, check_numbers, strict_keywords
from sdegen.grids import Grid, check_steps
from sdegen.grids.spacings import Ending
from sdegen.loop.arguments import check_ends, check_maker, check_model, check_solver
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import solve
from sdegen.loop.solution import Observer, Solution, ended
from sdegen.loop.tolerance import PI
from sdegen.processes.sde import SDE
from sdegen.progress import watched
from sdegen.sampling.batches import Batches, check_shape, path_noise
from sdegen.sampling.options import (
    check_cost,
    check_own_error,
    closed,
    controlled,
    inside,
    on_grid,
    own,
    steps_of,
)
from sdegen.sampling.prior import (
    Law,
    Seed,
    add_notes,
    add_seed,
    as_law,
    check_start,
    own_seeds,
    representable,
    states_kind,
)
from sdegen.scores.model import Model, warn_if_training
from sdegen.solvers.base import Reverse, Solver
from sdegen.solvers.methods import euler_maruyama
from sdegen.solvers.stochastic import ExactTransition
from sdegen.tensors import as_time, check_state, check_type

P = ParamSpec("P")
_LOG = logging.getLogger("sdegen")
Times: TypeAlias = Grid | Callable[[Any, int], Fixed] | Tensor | Sequence[float]
"""A grid, as `sd.grids.karras`, one with steps of its own, as a `Restart`, or times `[n + 1]`."""
_EDIT = (1, 0, 0, 0)  # words that no time and no prior has: noise of its own for `edit`


@strict_keywords
def draw(
    model: Reverse,
    shape: Sequence[int],
    *,
    nfe: int | None = None,
    steps: int | None = None,
    solver: Solver | None = None,
    grid: Times | None = None,
    tol: float | PI | None = None,
    x: Tensor | None = None,
    start: float | None = None,
    end: float | None = None,
    seed: Seed = None,
    batch_size: int | None = None,
    prior: Law | tuple[Any, Any] | None = None,
    denoise: bool | None = None,
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
        A `Solution`, its x the samples `[n, *S]`, its `seed` what makes them again.

    Raises:
        InvalidArgumentError, InvalidTypeError: a mistake in the arguments, before the first evaluation.
        SolveError: samples became NaN or Inf; all others are in its `partial`.
    """
    with torch.no_grad():
        n, event = check_shape(shape)
        check_model(model)
        check_numbers(optional=True, start=start, end=end)
        if noise is not None:
            check_maker(noise)
        if denoise is None:
            denoise = not isinstance(grid, Ending) or grid.denoise
        elif denoise not in (True, False):
            raise InvalidTypeError(f"denoise must be True, False or None, got {brief(denoise)}")
        adaptive = tol is not None and (solver is None or solver.own_steps is None)
        if solver is None:
            solver = own(model, adaptive)
        check_solver(solver, observe)
        if any(model.process.open_ends):
            start, end = closed(model, solver, start, end)
        if adaptive:
            off = {"nfe": nfe, "steps": steps, "grid": grid, "observe": observe, "path": path}
            control: Any = controlled(tol, start, end, batch_size is not None, **off)
        else:
            if tol is not None:
                check_own_error(solver, tol)
            steps = steps if nfe is None else steps_of(model, solver, nfe, steps, denoise)
            control = on_grid(model, solver, grid, steps, start, end)
            if nfe is not None:
                check_cost(control, solver, nfe, denoise and model.answers)
        if control.runs_down(model.process) is False:
            raise InvalidArgumentError("sample runs from noise to data: times must decrease (sd.encode runs them up)")
        prior = model.prior if prior is None else prior
        law = None if prior is None else as_law(prior, event, model.process)
        net = model.module
        dtype, device = states_kind(net, x, [n, *event], law, dtype, device, model.device)
        whole = model.sized(n)
        warn_if_training(net)
        if adaptive:
            control = control.bind(solver, model.process, dtype)
            check_ends(model, solver, control.first, control.last)
            noise = path_noise(model.process, solver) if noise is None else noise
        first = control.first if adaptive else model.process.level(control.times[0])
        if x is None and law is None:
            check_start(model.process, first)
        needed = solver.stochastic or control.draws
        chosen, seeds = own_seeds(seed, n, device)
        _LOG.info("sample: seed=%s", chosen)
        batches = Batches(
            whole,
            seeds,
            event,
            dtype,
            device,
            first,
            None if x is None else x.to(device, dtype),
            law,
            (noises.White if noise is None else noise) if needed else None,
            n if batch_size is None else check_steps(batch_size, "batch_size"),
        )
        shown = progress if progress is not None else (None if watched() else False)
        try:
            if adaptive:
                found = batches.to_tolerance(control, solver, denoise, shown)
            else:
                found = batches.on_grid(control, solver, denoise, observe, shown, path)
            return ended(found._replace(seed=chosen), "raise")
        except Exception as error:
            add_notes(error, net, chosen, dtype, device)
            raise


def _samples(solution: Callable[P, Solution]) -> Callable[P, Tensor]:
    """The same call, answering with the samples alone; the options are typed once."""
    signature = inspect.signature(solution)
    by_name = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    @functools.wraps(solution)
    def sample(*args: P.args, **options: P.kwargs) -> Tensor:
        for name in ("path", "return_path", "return_solution"):
            if options.get(name):
                raise InvalidArgumentError(
                    f"sample returns the samples alone, got {name}=True: draw(...) returns a Solution, with path=True "
                    "all states and previews too"
                )
        if len(args) != 2 or not options.keys() <= by_name:
            check_call("sample", solution, args, options)
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
        nfe: how many network evaluations, those of the solver and the last denoising in all; rounded down where a
            step takes several.
        steps: instead, how many steps; 20 where neither is given, a plan's own.
        solver: None for `default()`, or Euler-Maruyama or Heun on a `ReverseSDE`.
        grid: None for the method's own, a callable `grid(process, n) -> times`, or times `[n + 1]`, which run down.
        tol: instead of steps and a grid, the error at the end relative to the scale of the data, to which every sample
            is taken by steps of its own; or an `sd.PI`. A plan takes its own steps, and a tolerance below its error is
            refused.
        x: states `[n, *S]` to go on from at the grid's first time (`edit` starts from data).
        start, end: the first and the last time, from t_max to t_min if None.
        seed: None for fresh samples at every call; a number makes the same ones again, sample i from the seed
            `sd.noise.seeds(seed, n)[i]`; a `torch.Generator` gives its next number; or int64 seeds `[n]`, to make
            single samples again (with `model.rows(index)` where conditions are per sample). `Solution.seed` and the
            log (`sdegen`, at level INFO) say which it was.
        batch_size: how many samples the network sees at once: always that many, the last batch filled up, so that a
            sample's bits do not depend on n. With tol, samples that are done leave the batch and others enter.
        prior: what is known of the data, for a start that holds a share of them: `(mean, std)`, each a number or
            `[*S]`, `sd.Gaussian(mean, cov=cov)`, or any law with `sample` and `log_prob` at a level; None for what the
            model knows. States start from its law at the first time, instead of from noise alone.
        denoise: end with the predicted data at the last level, one evaluation more, instead of the state there (a
            `ReverseSDE` ends with the state). None: yes, unless the grid has an end of its own.
        noise: makes the source from a batch's seeds `[B]`: `White` if None, `Brownian` with tol.
        dtype, device: of the states; those of x or the network if None, else float32 on the CPU.
        observe: called with a `Progress` after each step; `STOP` ends its batch, which is denoised where it stands.
        progress: show a bar of evaluations; None: on terminals and in notebooks.

    Returns:
        The samples `[n, *S]`.

    Raises:
        InvalidArgumentError, InvalidTypeError: a mistake in the arguments, before the first evaluation.
        SolveError: samples became NaN or Inf; all others are in its `partial`.
    """


@torch.no_grad()
def edit(model: Model, data: Tensor, start: float, *, seed: Seed = None, **options: Any) -> Tensor:
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
        InvalidArgumentError: `start` is not one time inside of the process's span.

    Source: Meng et al. 2022, alg. 1.
    """
    check_state(data)
    check_type(model, Model, "edit needs a ScoreModel on a Process, whose noise it adds")
    check_model(model)
    process = model.process
    start = inside(start, process)
    seed, seeds = own_seeds(seed, data.shape[0], data.device)
    noise = noises.normals(seeds, tuple(data.shape[1:]), _EDIT, dtype=data.dtype, device=data.device)
    level = process.level(start)
    x = representable(process.perturb(data, level, noise), level)
    return sample(model, tuple(data.shape), x=x, start=start, seed=seed, **options)


@strict_keywords
@torch.no_grad()
def encode(
    model: Reverse,
    x: Tensor,
    *,
    steps: int | None = None,
    solver: Solver | None = None,
    grid: Times | None = None,
    tol: float | PI | None = None,
    prior: Law | tuple[Any, Any] | None = None,
    progress: bool = False,
) -> Tensor:
    """The state at t_max that a deterministic solver carries to x at t_min: `sample`'s path, backwards.

    Args:
        model: as in `sample`.
        x: the states at t_min `[B, *S]`.
        steps, solver, grid: as in `sample`; times in either direction.
        tol: the error at t_max instead, as by `sd.PI`.
        prior: the law that `sample` is to start from, checked as there; the flow to t_max does not depend on it.
        progress: show a bar.

    Returns:
        The states at t_max `[B, *S]`.

    Raises:
        InvalidArgumentError: the solver draws noise.
    """
    check_model(model)
    if solver is None:
        solver = own(model, tol is not None)
    check_solver(solver, None)
    check_state(x)
    if prior is not None:
        as_law(prior, tuple(x.shape[1:]), model.process)
    if solver.stochastic:
        raise InvalidArgumentError(f"{solver} draws noise, and only a deterministic solver encodes; use sd.ddim()")
    start, end = closed(model, solver, None, None) if any(model.process.open_ends) else (None, None)
    if tol is not None:
        first = model.process.t_min if end is None else end
        last = model.process.t_max if start is None else start
        upwards = controlled(tol, first, last, steps=steps, grid=grid)
        return solve(model, x, upwards, solver, progress=progress).x
    control = on_grid(model, solver, grid, steps, start, end)
    return solve(model, x, Fixed(control.times.sort().values), solver, progress=progress).x


@strict_keywords
@torch.no_grad()
def forward(
    sde: SDE,
    x: Tensor,
    times: Tensor | Sequence[float],
    *,
    seed: Seed = None,
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
    check_type(sde, SDE, "forward takes an SDE")
    known = as_time(times)
    low, high = float(known.min()), float(known.max())
    if known.ndim != 1 or not bool((known.diff() > 0).all()) or low < sde.t_min or high > sde.t_max:
        raise InvalidArgumentError(
            f"times must increase strictly inside the span [{sde.t_min:g}, {sde.t_max:g}], got {known.tolist()}"
        )
    check_state(x)
    solver = solver or (ExactTransition() if sde.exact_transitions else euler_maruyama())
    chosen, seeds = own_seeds(seed, x.shape[0], x.device)
    if noise is None:
        _LOG.info("forward: seed=%s", chosen)
    try:
        found = solve(
            sde.as_forward(),
            x,
            known,
            solver,
            noise=noises.White(seeds) if noise is None else noise,
            observe=lambda progress: progress.x.clone(),
        )
    except Exception as error:
        if noise is None:
            add_seed(error, chosen)
        raise
    return torch.stack([x, *found.path])
