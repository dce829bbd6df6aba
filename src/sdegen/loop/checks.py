"""Every mistake of a call that can be seen before the first evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.loop.control import Fixed
from sdegen.loop.tolerance import PI
from sdegen.noise.brownian import Brownian
from sdegen.processes.sde import SDE, ForwardSDE, ReverseSDE
from sdegen.tensors import check_state


def check_parts(model: Any, solver: Any, observe: Any) -> None:
    """Raises unless model, solver and observer are what `solve` and `sample` take."""
    if not hasattr(model, "process") or not (isinstance(model, ReverseSDE) or callable(model)):
        raise InvalidTypeError(
            f"model must be a ScoreModel or a ReverseSDE, got {model!r}; wrap a callable as ScoreModel(process, net)"
            + ("; an SDE runs as sde.as_forward(), or back as sde.reverse(score)" if isinstance(model, SDE) else "")
        )
    missing = [name for name in ("init", "step", "evals", "stochastic", "memory") if not hasattr(solver, name)]
    if isinstance(solver, type) or missing:
        hint = f"it lacks {', '.join(missing)}: derive from sd.OneStep" if missing else f"make one: {solver}()"
        if len(missing) == 5:
            hint = "methods are functions that make one, sd.dpmpp(2)"
        raise InvalidTypeError(f"solver must be a solver such as sd.ddim(), got {solver!r}; {hint}")
    if observe is not None and not callable(observe):
        raise InvalidTypeError(f"observe must be a callable that takes a Progress, got {observe!r}")


def check_solve(model: Any, x: Any, control: Any, solver: Any, noise: Any, on_failure: str, observe: Any) -> None:
    """Raises on any mistake in the arguments of `solve`."""
    check_parts(model, solver, observe)
    adaptive = isinstance(control, PI)
    if not (adaptive or all(hasattr(control, name) for name in ("init", "running", "update"))):
        raise InvalidTypeError(
            f"control must be a controller or times, got {control!r}; a grid is called: sd.grids.karras(process, n)"
        )
    if on_failure not in ("raise", "return"):
        raise InvalidArgumentError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    check_state(x)
    if hasattr(model, "check_batch"):
        model.check_batch(x.shape[0])
    _check_direction(model, control, solver)
    restarts = getattr(control, "passes", 1) > 1
    if not (solver.stochastic or restarts):
        return
    if noise is None:
        raise InvalidArgumentError(
            f"{'a Restart' if restarts else solver} draws noise: give "
            f"noise=sd.{'Brownian(seeds, process)' if adaptive else 'White(seeds)'}, with "
            f"seeds=sd.noise.seeds(0, {x.shape[0]})"
        )
    if adaptive and not isinstance(noise, Brownian):
        raise InvalidArgumentError(
            f"adaptive steps with noise need a Brownian path, sd.Brownian(seeds, process), got {type(noise).__name__}: "
            "a step that is rejected for the noise it met, and tried again with fresh noise, would bias the law of the "
            "samples"
        )
    seeds = getattr(noise, "seeds", None)
    if isinstance(noise, type) or (isinstance(seeds, Tensor) and len(seeds) != x.shape[0]):
        got = f"{len(seeds)} seeds" if isinstance(seeds, Tensor) else repr(noise)
        raise InvalidArgumentError(f"noise must be a source with one seed per row of x, {x.shape[0]}; got {got}")


def _check_direction(model: Any, control: Any, solver: Any) -> None:
    """Raises where noise, or a forward SDE, would run the wrong way in time."""
    forward = isinstance(model, ForwardSDE)
    if isinstance(control, PI):
        towards_data = control.towards_data(model.process)
    elif isinstance(control, Fixed):
        towards_data = control.towards_data
    else:
        return
    if forward != towards_data:
        return
    if forward:
        raise InvalidArgumentError("a forward SDE runs from data to noise: times must increase; see sde.reverse(score)")
    if solver.stochastic:
        raise InvalidArgumentError(
            f"{solver} is stochastic and runs only towards data: times must decrease (sde.as_forward() is the forward "
            "SDE, whose times increase)"
        )
