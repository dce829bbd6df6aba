"""Every mistake of a call that can be seen before the first evaluation."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level, is_end
from sdegen.loop.control import Control
from sdegen.loop.dense import check_dense
from sdegen.noise import Brownian, White
from sdegen.processes.diffusions import check_diffusion
from sdegen.processes.process import check_process
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import Model
from sdegen.solvers.base import Solver
from sdegen.tensors import as_time, check_state, check_type, named, readable


def check_model(model: Any) -> None:
    """Raises InvalidTypeError unless the model is what `solve` and `sample` take."""
    advice = (
        "; wrap a callable as ScoreModel(process, net), derive a class of your own from sd.model.Model; an SDE runs as "
        "sde.as_forward(), or back as sde.reverse(score)"
    )
    check_type(model, Model | ReverseSDE, "model must be a ScoreModel or a ReverseSDE", advice)
    if not model.process.proven:
        check_process(model.process)


def check_solver(solver: Any, observe: Any) -> None:
    """Raises InvalidTypeError unless solver and observer are what `solve` and `sample` take."""
    if not isinstance(solver, Solver):
        check_type(solver, Solver, "solver must be a solver such as sd.ddim()", f"; {_instead(solver)}")
    if observe is not None:
        check_type(observe, Callable, "observe must be a callable that takes a Progress")


def _instead(solver: Any) -> str:
    """Where to give what is no solver, or how to make one."""
    if isinstance(solver, Control):
        named_so = "tol=... of sample and draw" if solver.adaptive else "grid=... of sample and draw"
        return f"this chooses the steps: give it as {named_so}, or as the control of solve"
    if not callable(solver):
        return "derive a class of your own from sd.OneStep or sd.Solver"
    with contextlib.suppress(TypeError, ValueError):  # of what has no signature
        if list(inspect.signature(solver).parameters)[:2] == ["process", "n"]:
            return "this is a grid: give it as grid=..., beside a solver"
    return f"a class, or a function as sd.dpmpp(2), makes one: {named(solver)}()"


def check_solve(
    model: Any,
    x: Any,
    control: Any,
    solver: Any,
    noise: Any,
    on_failure: str,
    observe: Any,
    dense: bool = False,
    event: Any = None,
) -> None:
    """Raises on any mistake in the arguments of `solve`."""
    check_model(model)
    check_solver(solver, observe)
    if on_failure not in ("raise", "return"):
        raise InvalidArgumentError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    check_state(x)
    model.check_batch(x.shape[0])
    if model.process.noise_type == "general":
        _check_noise_shape(model.process, x)
    _check_direction(model, control, solver)
    check_noise(control, solver, noise, x.shape[0])
    for wanted, what in ((dense, "dense=True"), (event, "an event")):
        if wanted:
            check_dense(solver, what)
            if control.draws:
                raise InvalidArgumentError(
                    f"{what} needs levels that are passed once, and a Restart goes back to noise"
                )


def check_ends(model: Any, solver: Solver, first: Level, last: Level) -> None:
    """Raises InvalidArgumentError where a solve begins or stops at a level that solver or network cannot be asked."""
    for level, here in ((first, True), (last, False)):
        no_signal, no_noise = is_end(level)
        if not (no_signal or no_noise):
            continue
        data, noise = model.says(level)
        if no_signal and not data and not model.answers:
            raise InvalidArgumentError(
                f"alpha is 0 at t={float(level.t):g}, where the drift is a difference of infinities: begin below "
                f"{float(level.t):g}, or solve the ScoreModel itself"
            )
        if no_signal and not data and (here or not solver.data_end):
            raise InvalidArgumentError(
                f"alpha is 0 at t={float(level.t):g}, where noise or a score says nothing of the data: predict 'data', "
                f"'v' or, if alpha has a finite rate there, 'velocity', or choose t_max below {float(level.t):g}"
            )
        if no_signal and here and not solver.noise_end:
            raise InvalidArgumentError(
                f"alpha is 0 at t={float(level.t):g}, and {solver} works on the noise, or with a drift, which are no "
                "start there: use a method on the data (default(), dpmpp(), unipc(), ddim()), or a first time below"
            )
        if no_noise and not noise and (here or not solver.data_end):
            raise InvalidArgumentError(
                f"sigma is 0 at t={float(level.t):g}, where predicted data say nothing of the noise, and {solver} asks "
                "for it there: predict 'v', 'velocity' or 'noise', or end above (the last denoising goes on to 0)"
            )


def _check_noise_shape(sde: SDE, x: Tensor) -> None:
    """Raises InvalidArgumentError unless the diffusion has a row for each sample, whatever the batch.

    A constant `[D]` or `[D, D]` fits a batch of D samples by chance, and would be read as one scale for each.
    """
    if not len(x) or not readable(x):
        return
    count = max(1, *x.shape[1:]) + 1
    probe = x[:1].detach().expand(count, *x.shape[1:]).clone()
    check_diffusion(sde.diffusion(probe, as_time((sde.t_min + sde.t_max) / 2)), probe)


def check_noise(control: Any, solver: Any, noise: Any, count: int) -> None:
    """Raises unless there is a noise source of `count` seeds where one is needed, for adaptive steps a path."""
    if noise is not None:
        check_type(noise, Callable, "noise must be a source, such as sd.White(seeds)")
    adaptive = control.adaptive
    if not (solver.stochastic or control.draws):
        return
    if noise is None:
        raise InvalidArgumentError(
            f"{'a Restart' if control.draws else solver} draws noise: give "
            f"noise=sd.{'Brownian(seeds, process)' if adaptive else 'White(seeds)'}, with "
            f"seeds=sd.noise.seeds(0, {count})"
        )
    if adaptive and not isinstance(noise, Brownian):
        raise InvalidArgumentError(
            f"adaptive steps with noise need a Brownian path, sd.Brownian(seeds, process), got {type(noise).__name__}: "
            "a step that is rejected for the noise it met, and tried again with fresh noise, would bias the law of the "
            "samples"
        )
    seeds = getattr(noise, "seeds", None)
    known = len(seeds) if torch.is_tensor(seeds) else count
    if isinstance(noise, type) or known != count:
        got = repr(noise) if known == count else f"{known} seeds"
        raise InvalidArgumentError(f"noise must be a source with one seed per row of x, {count}; got {got}")


def check_maker(noise: Any) -> None:
    """Raises InvalidTypeError unless the noise of a sampling call makes a source from seeds."""
    if not callable(noise) or type(noise) in (White, Brownian):
        raise InvalidTypeError(
            "noise must be a function that makes a source from a batch's seeds, such as sd.White or "
            f"lambda seeds: sd.Brownian(seeds, process); got {type(noise).__name__}"
        )


def _check_direction(model: Any, control: Any, solver: Any) -> None:
    """Raises where noise, or a forward SDE, would run the wrong way in time."""
    down = control.runs_down(model.process)
    if down and model.runs_forward:
        raise InvalidArgumentError(
            "a forward SDE runs from data to noise: times must increase"
            + (f" (sd.PI(..., start={model.process.t_min:g}, end={model.process.t_max:g}))" if control.adaptive else "")
            + "; see sde.reverse(score)"
        )
    if down is False and solver.stochastic and not model.runs_forward:
        raise InvalidArgumentError(
            f"{solver} is stochastic and runs only towards data: times must decrease (sde.as_forward() is the forward "
            "SDE, whose times increase)"
        )
