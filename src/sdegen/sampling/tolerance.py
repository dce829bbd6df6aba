"""Samples to a tolerance: the network's batch is kept full from a queue of seeds, each sample with its own steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.loop.checks import check_solve
from sdegen.loop.queue import Feed, Run
from sdegen.loop.solution import Solution, guard
from sdegen.loop.tolerance import PI
from sdegen.noise.brownian import Brownian
from sdegen.processes.process import Process
from sdegen.processes.sde import ReverseSDE
from sdegen.sampling.starts import begin_at, denoised
from sdegen.solvers.base import Solver
from sdegen.solvers.frames import TIME
from sdegen.solvers.methods import adams, adaptive_heun, tsit5
from sdegen.tensors import picked


def adaptive_default(model: Any) -> Solver:
    """The adaptive solver for a model where none is given."""
    if not isinstance(model, ReverseSDE):
        return adams()
    return adaptive_heun(model.eta) if model.eta else tsit5(frame=TIME)


def controlled(tol: Any, start: float | None, end: float | None, padded: bool = False, **others: Any) -> PI:
    """The controller that `sample(tol=...)` asks for. Raises InvalidArgumentError for what does not go with it."""
    for name, value in others.items():
        if value is not None and value is not False:
            raise InvalidArgumentError(
                f"{name} does not go with tol, which chooses each sample's own steps: leave one of them out"
                + (" (sd.solve with sd.PI takes both)" if name in ("observe", "return_path") else "")
            )
    if not isinstance(tol, PI):
        return PI(tol=tol, start=start, end=end, fixed_shapes=padded)
    if tol.start is tol.end is None:
        return replace(tol, start=start, end=end)
    if start is not None or end is not None:
        raise InvalidArgumentError("give start and end once, to the PI or to the call")
    return tol


def to_tolerance(
    model: Any,
    event: tuple[int, ...],
    control: PI,
    solver: Any,
    seeds: Tensor,
    x: Tensor | None,
    dtype: torch.dtype,
    size: int,
    noise: Callable[[Tensor], Any] | None,
    denoise: bool,
    progress: bool | None,
) -> Solution:
    """One sample per seed `[n]`, at most `size` of them in the network's batch; failed ones with their status."""
    process, device = model.process, seeds.device
    bound = control.bind(solver, process, dtype)
    if not bound.towards_data:
        raise InvalidArgumentError("sample runs from noise to data: start must be above end (sd.encode runs them up)")
    make = noise or (lambda own: brownian(own, process, solver))

    def start(index: Tensor) -> Tensor:
        index = index.to(device)
        return begin_at(model, seeds[index], event, dtype, bound.first.t) if x is None else x[index]

    def rows(index: Tensor) -> Any:
        return picked(model, index.to(device))

    def source(index: Tensor) -> Any:
        return make(seeds[index.to(device)]) if solver.stochastic else None

    count = len(seeds)
    first = torch.arange(min(1, count))
    check_solve(rows(first), start(first), control, solver, source(first), "return", None)
    feed = Feed(count, rows, start, source)
    whole = Run(feed, min(size, count) if not control.fixed_shapes else size, process, bound, solver).solve(progress)
    if not denoise or isinstance(model, ReverseSDE) or not count:
        return whole
    parts = []
    with guard(lambda: "in the last denoising; `partial` has the states before it", lambda: whole):
        for begin in range(0, count, size):
            index = torch.arange(begin, begin + size, device=device).clamp(max=count - 1)
            part = whole.rows_at(index)
            parts.append(denoised(rows(index), part, part.level).rows(min(size, count - begin)))
    return Solution.join(parts)


def brownian(seeds: Tensor, process: Any, solver: Any) -> Brownian:
    """A path in the clock in which the solver's own noise is Brownian, where it says which."""
    clock = solver.clock(process) if isinstance(process, Process) and hasattr(solver, "clock") else None
    return Brownian(seeds, process, clock=clock)
