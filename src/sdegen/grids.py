"""Time grids: `grid(process, n) -> times [n + 1]`, float64, strictly decreasing, exactly from t_max to t_min.

A grid with a parameter is given by `functools.partial(karras, rho=5.0)`; any decreasing tensor of times is one too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, readable
from sdegen.process import Process, check_levels
from sdegen.sde import SDE
from sdegen.tensors import as_time

Grid = Callable[[SDE, int], Tensor]


def by_time(process: SDE, n: int, *, start: float | None = None, end: float | None = None) -> Tensor:
    """n steps, uniform in t, from `start` (t_max unless given) to `end` (t_min unless given)."""
    ends = _ends(process, start, end)
    return _spaced(process, n, ends, ends, lambda t: t)


def by_snr(process: SDE, n: int, *, start: float | None = None, end: float | None = None) -> Tensor:
    """n steps, uniform in `lam = log(alpha/sigma)` (Lu et al. 2022, sec. 3.4); start, end as in `by_time`."""
    linear, ends = _process(process, "by_snr"), _ends(process, start, end)
    return _spaced(process, n, ends, _lams(linear, ends), lambda lam: linear.at(lam).t)


def karras(process: SDE, n: int, rho: float = 7.0, *, start: float | None = None, end: float | None = None) -> Tensor:
    """n steps, uniform in `(sigma/alpha)^(1/rho)` (Karras et al. 2022, eq. 5); start, end as in `by_time`."""
    if not 0 < rho < float("inf"):
        raise InvalidArgumentError(f"rho must be positive and finite, got {rho}")
    linear, ends = _process(process, "karras"), _ends(process, start, end)
    roots = torch.exp(-_lams(linear, ends) / rho)
    return _spaced(process, n, ends, roots, lambda u: linear.at(-rho * torch.log(u)).t)


def natural(process: SDE, n: int) -> Tensor:
    """`by_time`, or `karras` where time says little: where its first half holds less than a fifth of the log-SNR.

    So it is on EDM, whose time is sigma: uniform steps would all but miss the data.
    """
    if not isinstance(process, Process):
        return by_time(process, n)
    middle = (process.t_min + process.t_max) / 2
    first, half, last = _lams(process, as_time([process.t_max, middle, process.t_min]))
    return karras(process, n) if float((half - first) / (last - first)) < 0.2 else by_time(process, n)


def graded(process: SDE, n: int, grid: Grid = by_snr, halvings: int = 20) -> Tensor:
    """`grid`, its first step cut into `halvings + 1` steps that double: n + halvings steps in all.

    A multistep method starts on it with a first step `2^-halvings` as long, so that its order holds from the start.
    """
    times = grid(process, n)
    part = torch.exp2(-torch.arange(check_steps(halvings, "halvings"), 0, -1, dtype=torch.float64))
    return check_times(torch.cat([times[:1], times[0] + part * (times[1] - times[0]), times[1:]]), process)


def check_steps(n: int, name: str = "steps") -> int:
    """n as an int, or an error unless it is a whole number >= 1."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise InvalidTypeError(f"{name} must be a whole number >= 1, got {n!r}")
    if n.__index__() < 1:
        raise InvalidArgumentError(f"{name} must be >= 1, got {n}")
    return n.__index__()


def check_times(times: Any, sde: SDE | None = None) -> Tensor:
    """Times `[n + 1]` as float64 on the host, or an error unless finite, strictly monotone and inside the span."""
    values = torch.as_tensor(times, dtype=None if hasattr(times, "dtype") else torch.float64)
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


def rounding(times: object) -> float:
    """The relative rounding that times bring along from their dtype."""
    dtype = getattr(times, "dtype", None)
    return 4 * torch.finfo(dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float64).eps


def in_span(times: Tensor, low: float, high: float, sde: SDE, slack: float) -> Tensor:
    """The times from low to high, those that rounding put outside of the span set back; an error beyond rounding."""
    if low < sde.t_min - slack * abs(sde.t_min) or high > sde.t_max + slack * abs(sde.t_max):
        raise InvalidArgumentError(
            f"times must lie in the span [{sde.t_min:g}, {sde.t_max:g}] of {sde}, got {low:.9g} to {high:.9g}"
        )
    return times.clamp(sde.t_min, sde.t_max)


def _process(process: SDE, grid: str) -> Process:
    if not isinstance(process, Process):
        raise InvalidTypeError(f"grid {grid} needs a Process with alpha and sigma, got {process}; use grids.by_time")
    return process


def _ends(process: SDE, start: float | None, end: float | None) -> Tensor:
    """The first and the last time, `[2]`."""
    first = process.t_max if start is None else start
    last = process.t_min if end is None else end
    if not first > last:
        raise InvalidArgumentError(f"a grid runs down in time: start={first:g} must be above end={last:g}")
    return check_times([first, last], process)


def _lams(process: Process, times: Tensor) -> Tensor:
    levels = process.level(times)
    check_levels(process, levels)
    return levels.lam


def _spaced(process: SDE, n: int, ends: Tensor, variable: Tensor, time: Callable[[Tensor], Tensor]) -> Tensor:
    """n + 1 times, uniform between the two values of `variable`, with exact ends."""
    n = check_steps(n)
    part = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
    times = time(variable[0] + part * (variable[1] - variable[0]))
    return check_times(torch.cat([ends[:1], times[1:-1], ends[1:]]), process)
