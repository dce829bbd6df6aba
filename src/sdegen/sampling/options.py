"""What the options of a sampling call stand for: the solver, the controller, the grid and its number of steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief, check_numbers
from sdegen.grids import by_time, check_steps
from sdegen.loop.control import Fixed
from sdegen.loop.tolerance import PI
from sdegen.solvers.base import Solver
from sdegen.solvers.frames import TIME
from sdegen.solvers.methods import adams, adaptive_heun, default, euler_maruyama, tsit5
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.tableaus import HEUN
from sdegen.tensors import as_tensor, has_dtype, is_row, named

_STEEP, _FARTHER = 20.0, 0.05
"""From which change of alpha over the whole span on steps in t start farther inside, and at which alpha/sigma."""


def inside(start: Any, process: Any) -> float:
    """The time to start from. Raises unless it is one time inside of the process's span."""
    if has_dtype(start) and as_tensor(start).numel() != 1:
        raise InvalidArgumentError(f"edit takes one start for all samples, got {start}; call it once for each start")
    check_numbers(optional=True, start=start)
    if start is None or not process.t_min < start <= process.t_max:
        raise InvalidArgumentError(f"start must be a time in ({process.t_min:g}, {process.t_max:g}], got {start}")
    return float(start)


def own(model: Any, adaptive: bool) -> Solver:
    """The solver for a model where none is given: a ReverseSDE has only its drift and diffusion."""
    if model.answers:
        return adams() if adaptive else default()
    if model.eta:
        return adaptive_heun(model.eta) if adaptive else euler_maruyama(model.eta)
    return tsit5(frame=TIME) if adaptive else RungeKutta(HEUN, TIME)


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
    if solver.own_error is None:
        raise InvalidArgumentError(f"{solver} has tolerances of its own: give them to it, and leave tol out")
    wanted = tol.tol if isinstance(tol, PI) else tol
    if wanted is not None and not solver.own_error <= wanted:
        raise InvalidArgumentError(
            f"this plan's own estimate of its error is {solver.own_error:.1e} of the data's scale, above "
            f"tol={wanted:g}: calibrate one with calibrate(model, shape, tol=...), or leave the plan out for adaptive "
            "steps"
        )


def steps_of(model: Any, solver: Solver, nfe: Any, steps: Any, denoise: bool) -> int:
    """How many steps a solver makes with so many evaluations, the last denoising counted.

    Raises InvalidArgumentError where they are too few, where steps are given too, or where the solver has its own.
    """
    if steps is not None:
        raise InvalidArgumentError(f"give nfe or steps, one of the two; got nfe={nfe} and steps={steps}")
    rest = check_steps(nfe, "nfe") - bool(denoise and model.answers)
    if solver.own_steps is not None:
        own_cost = solver.cost(solver.own_steps) + nfe - rest
        if solver.own_error is None or own_cost != nfe:
            raise InvalidArgumentError(
                f"{brief(solver)} has steps of its own, of {own_cost} evaluations: leave nfe out"
                if solver.own_error is not None
                else f"{brief(solver)} chooses its number of evaluations itself: nfe does not go with it"
            )
        return solver.own_steps
    most = rest
    while most and solver.cost(most) > rest:
        most -= 1
    if not most:
        raise InvalidArgumentError(
            f"nfe={nfe} leaves no step: one of {brief(solver)} takes {solver.cost(1)}"
            + (", and the last denoising 1" if rest < nfe else "")
            + f". Give nfe={solver.cost(1) + nfe - rest} or more"
            + (", or denoise=False" if rest < nfe and solver.cost(1) <= nfe else "")
        )
    return most


def on_grid(
    model: Any, solver: Solver, grid: Any, steps: int | None, start: float | None = None, end: float | None = None
) -> Fixed:
    """The grid as a controller; everything about it is checked here."""
    if grid is None:
        grid = solver.grid if model.process.gaussian else by_time
    if not (callable(grid) or is_row(grid)):
        raise InvalidTypeError(
            f"grid must be a callable grid(process, n) such as sd.grids.karras, or times; got {brief(grid)}"
        )
    if not callable(grid):
        made, takes = grid, False
        if steps is not None and len(made) != steps + 1:
            raise InvalidArgumentError(
                f"the grid has {len(made)} times, {len(made) - 1} steps, and {steps} were asked for: leave steps or "
                "nfe out"
            )
    else:
        count = check_steps(solver.own_steps or 20 if steps is None else steps)
        bounds: dict[str, float] = {}
        if not start is end is None:
            bounds = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
        takes = not bounds or bounds.keys() <= inspect.signature(grid).parameters.keys()
        made = _called(grid, model.process, count, bounds if takes else {})
        if made is None:
            raise InvalidTypeError(f"the grid {named(grid)} returned None: it must return times [n + 1]")
    control = made if isinstance(made, Fixed) else Fixed(made)
    if takes or start is end is None:
        return control
    return _cut(control, solver, start, end, named(grid) if callable(grid) else "the grid")


def check_cost(control: Fixed, solver: Solver, nfe: int, last: bool) -> None:
    """Raises InvalidArgumentError where a grid makes more of its steps than so many evaluations, as a Restart's."""
    cost = (control.cost(solver) or 0) + last
    if cost > nfe:
        raise InvalidArgumentError(
            f"the grid adds steps of its own and takes {cost} evaluations, more than nfe={nfe}: say its number of "
            "steps instead, steps=n"
        )


def closed(model: Any, solver: Solver, start: float | None, end: float | None) -> tuple[float | None, float | None]:
    """Where to start and stop on a span whose ends lack signal or noise: inside, where the solver takes no such end."""
    process = model.process
    no_signal, no_noise = process.open_ends
    if no_signal and start is None:
        steep = _is_steep(process, solver)
        if steep or not (solver.noise_end and model.answers):
            near = process.edges[0]
            start = float(process.at(torch.full_like(near, math.log(_FARTHER)) if steep else near).t)
    if no_noise and end is None and not solver.data_end and not model.says(process.level(process.t_min))[1]:
        end = float(process.at(process.edges[1]).t)
    return start, end


def _is_steep(process: Any, solver: Solver) -> bool:
    """Whether a solver takes steps in t where alpha leaves 0 with an infinite rate."""
    if solver.clock_frame is not None and not solver.clock_frame.timed:
        return False
    rate = float(process.rates(process.at(process.edges[0]).t)[0])
    return abs(rate * float(process.t_max - process.t_min)) > _STEEP


def _called(grid: Callable[..., Any], process: Any, n: int, bounds: dict[str, float]) -> Any:
    """What a grid returns. Raises InvalidTypeError unless it takes a process and a number of steps."""
    try:
        return grid(process, n, **bounds)
    except TypeError as error:
        try:
            inspect.signature(grid).bind(process, n, **bounds)
        except TypeError:
            got = inspect.signature(grid)
            raise InvalidTypeError(f"a grid is called as grid(process, n), and {named(grid)} takes {got}") from error
        raise


def _cut(control: Fixed, solver: Solver, start: float | None, end: float | None, name: str) -> Fixed:
    """The times strictly between start and end, and these two: of a grid that cannot be told where to begin."""
    if control.draws or solver.own_steps is not None:
        raise InvalidArgumentError(
            f"{'a Restart' if solver.own_steps is None else 'this plan or backend'} has levels of its own and takes "
            "no start or end; give a grid that has them"
        )
    known = control.times
    first, last = float(known[0]) if start is None else start, float(known[-1]) if end is None else end
    if not first > last:
        raise InvalidArgumentError(
            f"{name} stops at t={last:g} with {len(known) - 1} steps, and the start is t={first:g}: give more steps, "
            "or an end below the start"
        )
    between = known[(known < first) & (known > last)]
    return Fixed(torch.cat([known.new_tensor([first]), between, known.new_tensor([last])]))
