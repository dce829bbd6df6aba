"""Every mistake of a call that can be seen before the first evaluation."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from sdegen.control import Fixed
from sdegen.errors import InvalidArgumentError, InvalidTypeError, readable
from sdegen.sde import ReverseSDE
from sdegen.tensors import finite_rows


def check_parts(model: Any, solver: Any, observe: Any) -> None:
    """Raises unless model, solver and observer are what `solve` and `sample` take."""
    if not hasattr(model, "process") or not (isinstance(model, ReverseSDE) or callable(model)):
        raise InvalidTypeError(
            f"model must be a ScoreModel or a ReverseSDE, got {model!r}; wrap a callable as ScoreModel(process, net)"
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
    if not all(hasattr(control, name) for name in ("init", "running", "update")):
        raise InvalidTypeError(
            f"control must be a controller or times, got {control!r}; a grid is called: sd.grids.karras(process, n)"
        )
    if on_failure not in ("raise", "return"):
        raise InvalidArgumentError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    check_state(x)
    if hasattr(model, "check_batch"):
        model.check_batch(x.shape[0])
    restarts = getattr(control, "passes", 1) > 1
    if not (solver.stochastic or restarts):
        return
    if noise is None:
        raise InvalidArgumentError(
            f"{'a Restart' if restarts else solver} draws noise: give noise=sd.White(seeds), with "
            f"seeds=sd.noise.seeds(0, {x.shape[0]})"
        )
    seeds = getattr(noise, "seeds", None)
    if isinstance(noise, type) or (isinstance(seeds, Tensor) and len(seeds) != x.shape[0]):
        got = f"{len(seeds)} seeds" if isinstance(seeds, Tensor) else repr(noise)
        raise InvalidArgumentError(f"noise must be a source with one seed per row of x, {x.shape[0]}; got {got}")
    if isinstance(control, Fixed) and not control.towards_data:
        raise InvalidArgumentError(f"{solver} is stochastic and runs only towards data: times must decrease")


def check_state(x: Any) -> None:
    """Raises unless x is a finite floating tensor `[B, *S]` with at least one sample dimension."""
    if not isinstance(x, Tensor):
        raise InvalidTypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise InvalidTypeError(f"x must be floating point, got {x.dtype}; convert it, x.float()")
    if x.ndim < 2:
        raise InvalidArgumentError(
            f"x must be [B, *S], a batch and at least one sample dimension, got shape {list(x.shape)}; "
            "one sample of D numbers is x[None], B samples of one number are x[:, None]"
        )
    if readable(x):
        bad = (~finite_rows(x)).nonzero().flatten().tolist()
        if bad:
            raise InvalidArgumentError(f"x is NaN or Inf in rows {bad[:8]} of {x.shape[0]}, before the first step")


def warn_if_training(model: Any) -> None:
    """One warning for a network in training mode: dropout and batch norm would make the samples noisy and coupled."""
    net = network(model)
    if net is not None and any(part.training for part in net.modules()):
        warn_caller(
            f"the network {type(net).__name__} is in training mode, so dropout and batch norm are active; "
            "call net.eval() before sampling"
        )


def network(model: Any) -> torch.nn.Module | None:
    """The module behind a score model or the score of a ReverseSDE, if there is one."""
    source = getattr(model, "score", model)
    found = source if isinstance(source, torch.nn.Module) else getattr(source, "module", None)
    return found if isinstance(found, torch.nn.Module) else None


def warn_caller(message: str) -> None:
    """A warning at the line that called the library, however many of its functions and decorators lie between."""
    inside = (os.path.dirname(__file__), os.path.dirname(torch.__file__))
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(inside):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth + 1)
