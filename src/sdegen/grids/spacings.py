"""Grids that are uniform in something: time, log-SNR, a power of the noise scale, an angle, a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids.times import Grid, check_steps, check_times
from sdegen.processes.process import Process, check_levels
from sdegen.processes.sde import SDE
from sdegen.tensors import as_time


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
    _positive(rho, "rho")
    linear, ends = _process(process, "karras"), _ends(process, start, end)
    roots = torch.exp(-_lams(linear, ends) / rho)
    return _spaced(process, n, ends, roots, lambda u: linear.at(-rho * torch.log(u)).t)


def exponential(
    process: SDE, n: int, rho: float = 1.0, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """n steps, `log(sigma/alpha)` falling as the power rho of the share left; rho = 1 is `by_snr`.

    k-diffusion's exponential and polyexponential schedules; start, end as in `by_time`.
    """
    _positive(rho, "rho")
    linear, ends = _process(process, "exponential"), _ends(process, start, end)
    lams = _lams(linear, ends)
    share = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return _spaced(process, n, ends, share, lambda u: linear.at(lams[1] + u.pow(rho) * (lams[0] - lams[1])).t)


def angular(
    process: SDE,
    n: int,
    rho: float = 4.0,
    center: float = 1.0,
    *,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """n steps, uniform in `atan((s/center)^(1/rho))`, `s = sigma/alpha`: densest at s = center, where data take shape.

    The density in `lam = log(alpha/sigma)` is `1 / cosh((lam + log center)/rho)`: large rho is `by_snr`, rho = 1 and
    center = 1 is `cosine`. The grid of `default()`; docs/accuracy.md has how its parameters were chosen. Start, end as
    in `by_time`.
    """
    _positive(rho, "rho")
    _positive(center, "center")
    linear, ends = _process(process, "angular"), _ends(process, start, end)
    angles = torch.atan(torch.exp(-(_lams(linear, ends) + math.log(center)) / rho))
    return _spaced(process, n, ends, angles, lambda u: linear.at(-rho * torch.log(torch.tan(u)) - math.log(center)).t)


def cosine(process: SDE, n: int, *, start: float | None = None, end: float | None = None) -> Tensor:
    """n steps, uniform in the angle `atan(sigma/alpha)`: those of the cosine schedule (Nichol & Dhariwal 2021, eq. 17).

    Start, end as in `by_time`.
    """
    return angular(process, n, rho=1.0, start=start, end=end)


def quadratic(
    process: SDE, n: int, rho: float = 2.0, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """n steps, uniform in `t^(1/rho)`: DDIM's quadratic spacing (Song, Meng & Ermon 2021, app. D.2), DEIS's t^2.

    Start, end as in `by_time`. Raises InvalidArgumentError where times are negative.
    """
    _positive(rho, "rho")
    ends = _ends(process, start, end)
    if float(ends.min()) < 0:
        raise InvalidArgumentError(f"quadratic takes roots of times, and {process} has t_min={process.t_min:g}")
    return _spaced(process, n, ends, ends.pow(1 / rho), lambda u: u.pow(rho))


def beta(
    process: SDE, n: int, a: float = 0.6, b: float = 0.6, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """n steps at the quantiles of a Beta(a, b) distribution over time, dense at both ends (Lee et al. 2024).

    diffusers' and ComfyUI's beta schedules, which take quantiles of sigma and of t. Start, end as in `by_time`. Needs
    scipy, which has the quantiles; raises ModuleNotFoundError without it.
    """
    _positive(a, "a")
    _positive(b, "b")
    from scipy.special import betaincinv

    ends = _ends(process, start, end)
    quantile = torch.from_numpy(betaincinv(a, b, torch.linspace(0.0, 1.0, check_steps(n) + 1).double().numpy()))
    times = ends[0] + quantile * (ends[1] - ends[0])
    return check_times(torch.cat([ends[:1], times[1:-1], ends[1:]]), process)


def sgm_uniform(process: SDE, n: int) -> Tensor:
    """n of n + 1 uniform steps in t: the last one, to t_min, is left to the denoising at the end of `sample`.

    ComfyUI's sgm_uniform with n + 1 steps, which ends with the predicted data at the last of its times.
    """
    return check_times(by_time(process, check_steps(n) + 1)[:-1], process)


def natural(process: SDE, n: int, *, start: float | None = None, end: float | None = None) -> Tensor:
    """`by_time`, or `karras` where time says little: where its first half holds less than a fifth of the log-SNR.

    So it is on EDM, whose time is sigma: uniform steps would all but miss the data. Start, end as in `by_time`.
    """
    if not isinstance(process, Process):
        return by_time(process, n, start=start, end=end)
    middle = (process.t_min + process.t_max) / 2
    first, half, last = _lams(process, as_time([process.t_max, middle, process.t_min]))
    even = karras if float((half - first) / (last - first)) < 0.2 else by_time
    return even(process, n, start=start, end=end)


def graded(process: SDE, n: int, grid: Grid = by_snr, halvings: int = 20) -> Tensor:
    """`grid`, its first step cut into `halvings + 1` steps that double: n + halvings steps in all.

    A multistep method starts on it with a first step `2^-halvings` as long, so that its order holds from the start.
    """
    times = grid(process, n)
    part = torch.exp2(-torch.arange(check_steps(halvings, "halvings"), 0, -1, dtype=torch.float64))
    return check_times(torch.cat([times[:1], times[0] + part * (times[1] - times[0]), times[1:]]), process)


def _process(process: SDE, grid: str) -> Process:
    if not isinstance(process, Process):
        raise InvalidTypeError(f"grid {grid} needs a Process with alpha and sigma, got {process}; use grids.by_time")
    return process


def _positive(value: float, name: str) -> None:
    if not 0 < value < math.inf:
        raise InvalidArgumentError(f"{name} must be positive and finite, got {value}")


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
