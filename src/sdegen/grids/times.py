"""What a grid is, and what every tensor of times must be."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.processes.process import Process
from sdegen.processes.sde import SDE
from sdegen.tensors import as_tensor, has_dtype, readable

Grid = Callable[[SDE, int], Tensor]


def check_steps(n: int, name: str = "steps") -> int:
    """n as an int, or an error unless it is a whole number >= 1."""
    try:
        count = operator.index(n)
    except TypeError:
        count = None
    if count is None or isinstance(n, bool):
        raise InvalidTypeError(f"{name} must be a whole number >= 1, got {n!r}")
    if count < 1:
        raise InvalidArgumentError(f"{name} must be >= 1, got {n}")
    return count


def check_times(times: Any, sde: SDE | None = None) -> Tensor:
    """Times `[n + 1]` as float64 on the host, or an error unless finite, strictly monotone and inside the span."""
    values = as_tensor(times)
    if values.requires_grad:
        raise InvalidArgumentError("times that require gradients are not followed by the loop; detach them")
    if values.dtype == torch.bool or values.is_complex():
        raise InvalidTypeError(f"times must be real numbers, got dtype {values.dtype}")
    values = values.detach().to("cpu", torch.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InvalidArgumentError(
            f"times must be one dimension of at least two levels, got shape {list(values.shape)}"
        )
    if not readable(values):
        return values
    steps = values.diff()
    if not bool(values.isfinite().all()):
        raise InvalidArgumentError(f"times must be finite, got {values.tolist()}")
    if not (bool((steps < 0).all()) or bool((steps > 0).all())):
        bad = int((steps * steps[0].sign() <= 0).nonzero()[0]) if steps[0] != 0 else 0
        raise InvalidArgumentError(
            f"times must be strictly monotone (decreasing: towards data), but times[{bad}]={values[bad].item():g} is "
            f"followed by {values[bad + 1].item():g}"
        )
    if sde is None:
        return values
    return in_span(values, float(values.min()), float(values.max()), sde, rounding(times))


def with_levels(process: SDE) -> Process:
    """The process, or an error where it has no alpha and sigma."""
    if not isinstance(process, Process):
        raise InvalidTypeError(
            f"a grid of noise levels needs a Process with alpha and sigma, got {process}; use grids.by_time"
        )
    return process


def rounding(times: object) -> float:
    """The relative rounding that times bring along from their dtype."""
    dtype = as_tensor(times).dtype if has_dtype(times) else None
    return 4 * torch.finfo(dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float64).eps


def in_span(times: Tensor, low: float, high: float, sde: SDE, slack: float) -> Tensor:
    """The times from low to high, those that rounding put outside of the span set back; an error beyond rounding."""
    if low < sde.t_min - slack * abs(sde.t_min) or high > sde.t_max + slack * abs(sde.t_max):
        raise InvalidArgumentError(
            f"times must lie in the span [{sde.t_min:g}, {sde.t_max:g}] of {sde}, got {low:.9g} to {high:.9g}"
        )
    return times.clamp(sde.t_min, sde.t_max)
