"""Time grids: `grid(process, n) -> times [n + 1]`, float64, strictly decreasing, exactly from t_max to t_min.

A grid with a parameter is given by `functools.partial(karras, rho=5.0)`; any decreasing tensor of times is one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, readable
from sdegen.process import SDE, Process, check_levels
from sdegen.tensors import as_time

Grid = Callable[[SDE, int], Tensor]


def by_time(process: SDE, n: int) -> Tensor:
    """n steps, uniform in t."""
    return _spaced(process, n, as_time(process.t_max), as_time(process.t_min), lambda u: u)


def by_snr(process: SDE, n: int) -> Tensor:
    """n steps, uniform in `lam = log(alpha/sigma)` (Lu et al. 2022, sec. 3.4)."""
    start, end = _ends(process, "by_snr")
    return _spaced(process, n, start, end, lambda lam: _process(process, "by_snr").at(lam).t)


def karras(process: SDE, n: int, rho: float = 7.0) -> Tensor:
    """n steps, uniform in `(sigma/alpha)^(1/rho)` (Karras et al. 2022, eq. 5)."""
    if not 0 < rho < float("inf"):
        raise InvalidArgumentError(f"rho must be positive and finite, got {rho}")
    start, end = (torch.exp(-lam / rho) for lam in _ends(process, "karras"))
    return _spaced(process, n, start, end, lambda u: _process(process, "karras").at(-rho * torch.log(u)).t)


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


def check_times(times: Tensor | Sequence[float], sde: SDE | None = None) -> Tensor:
    """Times `[n + 1]` as float64 on the host, or an error unless finite, strictly monotone and inside the span."""
    values = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
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
    if sde is not None:
        check_span(float(values.min()), float(values.max()), sde)
    return values


def check_span(low: float, high: float, sde: SDE) -> None:
    """Raises InvalidArgumentError unless the times from low to high lie in the span of the SDE."""
    if low < sde.t_min or high > sde.t_max:
        raise InvalidArgumentError(
            f"times must lie in the span [{sde.t_min:g}, {sde.t_max:g}] of {sde}, got {low:.17g} to {high:.17g}"
        )


def _process(process: SDE, grid: str) -> Process:
    if not isinstance(process, Process):
        raise InvalidTypeError(f"grid {grid} needs a Process with alpha and sigma, got {process}; use grids.by_time")
    return process


def _ends(process: SDE, grid: str) -> tuple[Tensor, Tensor]:
    process = _process(process, grid)
    ends = process.level(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    check_levels(process, ends)
    return ends.lam[0], ends.lam[1]


def _spaced(process: SDE, n: int, start: Tensor, end: Tensor, time: Callable[[Tensor], Tensor]) -> Tensor:
    n = check_steps(n)
    part = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
    times = time(start + part * (end - start))
    times = torch.cat([as_time(process.t_max)[None], times[1:-1], as_time(process.t_min)[None]])
    return check_times(times, process)
