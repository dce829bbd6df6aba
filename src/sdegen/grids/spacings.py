"""Grids that are uniform in something: time, log-SNR, a power of the noise scale, an angle, a distribution.

Each is one formula for the places in t, or in `lam = log(alpha/sigma)`, between those of the time `start` (t_max unless
given) and of `end` (t_min unless given). All raise InvalidArgumentError on parameters that are not positive and finite
and on times outside of the span; those in lam raise InvalidTypeError on an SDE that has no alpha and sigma.
"""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, check_positive
from sdegen.level import EDGE, placed
from sdegen.processes.process import check_levels, linear_gaussian
from sdegen.processes.sde import SDE
from sdegen.tensors import as_tensor, readable

Grid = Callable[[SDE, int], Tensor]


class Ending(ABC):
    """A grid that says how a call on it ends, where the call does not: with the predicted data at its last level?"""

    @property
    @abstractmethod
    def denoise(self) -> bool:
        """Whether the call ends with the predicted data, and not with the state."""

    @abstractmethod
    def __call__(self, process: Any, n: int) -> Any:
        """The grid of n steps."""


Time = float | None
Place = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_time(process: SDE, n: int, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps, uniform in t."""
    return in_time(process, n, start, end, _line)


def by_snr(process: SDE, n: int, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps, uniform in `lam = log(alpha/sigma)` (Lu et al. 2022, sec. 3.4)."""
    return _in_lam(process, n, start, end, _line)


def karras(process: SDE, n: int, rho: float = 7.0, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps, uniform in `(sigma/alpha)^(1/rho)` (Karras et al. 2022, eq. 5)."""
    check_positive(rho=rho)
    return _in_lam(process, n, start, end, lambda part, a, b: karras_lams(part, a, b, rho))


def karras_lams(part: Tensor, first: Tensor, last: Tensor, rho: float = 7.0) -> Tensor:
    """The log-SNRs at shares `part` `[n]` of the way between two, uniform in `(sigma/alpha)^(1/rho)`."""
    return -rho * torch.log(_line(part, torch.exp(-first / rho), torch.exp(-last / rho)))


def exponential(process: SDE, n: int, rho: float = 1.0, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps, `log(sigma/alpha)` falling as the power rho of the share left; rho = 1 is `by_snr`.

    k-diffusion's exponential and polyexponential schedules.
    """
    check_positive(rho=rho)
    return _in_lam(process, n, start, end, lambda part, a, b: b + (1 - part).pow(rho) * (a - b))


def angular(
    process: SDE, n: int, rho: float = 4.0, center: float = 1.0, *, start: Time = None, end: Time = None
) -> Tensor:
    """n steps, uniform in `atan((s/center)^(1/rho))`, `s = sigma/alpha`: densest at s = center, where data take shape.

    The density in lam is `1 / cosh((lam + log center)/rho)`: large rho is `by_snr`, rho = 1 and center = 1 is `cosine`.
    The grid of `default()`; docs/accuracy.md has how its parameters were chosen.
    """
    check_positive(rho=rho, center=center)

    def place(part: Tensor, *ends: Tensor) -> Tensor:
        first, last = (torch.atan(torch.exp(-(lam + math.log(center)) / rho)) for lam in ends)
        return -rho * torch.log(torch.tan(_line(part, first, last))) - math.log(center)

    return _in_lam(process, n, start, end, place)


def cosine(process: SDE, n: int, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps, uniform in the angle `atan(sigma/alpha)`: the cosine schedule's (Nichol & Dhariwal 2021, eq. 17)."""
    return angular(process, n, rho=1.0, start=start, end=end)


def quadratic(process: SDE, n: int, rho: float = 2.0, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps, uniform in `t^(1/rho)`: DDIM's quadratic spacing (Song, Meng & Ermon 2021, app. D.2), DEIS's t^2.

    Raises InvalidArgumentError where times are negative.
    """
    check_positive(rho=rho)
    if (process.t_min if end is None else end) < 0:
        raise InvalidArgumentError(f"quadratic takes roots of times, and {process} has t_min={process.t_min:g}")
    return in_time(process, n, start, end, lambda part, a, b: _line(part, a.pow(1 / rho), b.pow(1 / rho)).pow(rho))


def beta(process: SDE, n: int, a: float = 0.6, b: float = 0.6, *, start: Time = None, end: Time = None) -> Tensor:
    """n steps at the quantiles of a Beta(a, b) distribution over time, dense at both ends (Lee et al. 2024).

    diffusers' and ComfyUI's beta schedules, which take quantiles of sigma and of t. Raises ModuleNotFoundError without
    scipy, which has the quantiles.
    """
    check_positive(a=a, b=b)
    from scipy.special import betaincinv

    def place(part: Tensor, first: Tensor, last: Tensor) -> Tensor:
        return _line(torch.from_numpy(betaincinv(a, b, part.numpy())), first, last)

    return in_time(process, n, start, end, place)


def sgm_uniform(process: SDE, n: int) -> Tensor:
    """n of n + 1 uniform steps in t: the last one, to t_min, is left to the denoising at the end of `sample`.

    ComfyUI's sgm_uniform with n + 1 steps, which ends with the predicted data at the last of its times.
    """
    return check_times(by_time(process, check_steps(n) + 1)[:-1], process)


def natural(process: SDE, n: int, *, start: Time = None, end: Time = None) -> Tensor:
    """`by_time`, or `karras` where time says little: where its first half holds less than a fifth of the log-SNR.

    So it is on EDM, whose time is sigma: uniform steps would all but miss the data.
    """
    middle = process.level((process.t_min + process.t_max) / 2)
    grid = karras if float(process.share(middle, (process.t_max, process.t_min))) < 0.2 else by_time
    return grid(process, n, start=start, end=end)


def graded(process: SDE, n: int, grid: Grid = by_snr, halvings: int = 20) -> Tensor:
    """`grid`, its first step cut into `halvings + 1` steps that double: n + halvings steps in all.

    A multistep method starts on it with a first step `2^-halvings` as long, so that its order holds from the start.
    """
    times = grid(process, n)
    part = torch.exp2(-torch.arange(check_steps(halvings, "halvings"), 0, -1, dtype=torch.float64, device="cpu"))
    return check_times(torch.cat([times[:1], _line(part, times[0], times[1]), times[1:]]), process)


def _line(part: Tensor, first: Tensor, last: Tensor) -> Tensor:
    return first + part * (last - first)


def _in_lam(process: SDE, n: int, start: Time, end: Time, place: Place) -> Tensor:
    """n + 1 times, those of the log-SNRs `place(part, first, last)` at equal shares `part` of the way."""
    linear = with_levels(process)

    def at(part: Tensor, *ends: Tensor) -> Tensor:
        levels = linear.level(torch.stack(ends))
        check_levels(linear, levels)
        # an end without signal or noise is infinitely far: one step leads from it, or to it
        return linear.at(place(part, *placed(levels.lam, EDGE))).t

    return in_time(process, n, start, end, at)


def in_time(process: SDE, n: int, start: Time, end: Time, place: Place) -> Tensor:
    """n + 1 times, `place(part, first, last)` at equal shares `part` of the way; the ends exact."""
    first, last = process.t_max if start is None else start, process.t_min if end is None else end
    if not first > last:
        raise InvalidArgumentError(f"a grid runs down in time: start={first:g} must be above end={last:g}")
    ends = check_times([first, last], process)
    times = place(torch.linspace(0.0, 1.0, check_steps(n) + 1, dtype=torch.float64, device="cpu"), *ends)
    return check_times(torch.cat([ends[:1], times[1:-1], ends[1:]]), process)


def check_steps(n: int, name: str = "steps") -> int:
    """n as an int, or an error unless it is a whole number >= 1."""
    try:
        count = operator.index(n)
    except TypeError:
        count = None
    if count is None or type(n) is bool:
        raise InvalidTypeError(f"{name} must be a whole number >= 1, got {n!r}")
    if count < 1:
        raise InvalidArgumentError(f"{name} must be >= 1, got {n}")
    return count


def check_times(times: Any, sde: SDE | None = None) -> Tensor:
    """Times `[n + 1]` as float64 on the host, or an error unless finite, strictly monotone and inside the span."""
    try:
        given = as_tensor(times)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"times must be numbers, [n + 1], got {times!r}") from error
    if given.requires_grad:
        raise InvalidArgumentError("times that require gradients are not followed by the loop; detach them")
    if given.dtype == torch.bool or given.is_complex():
        raise InvalidTypeError(f"times must be real numbers, got dtype {given.dtype}")
    values = given.detach().to("cpu", torch.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InvalidArgumentError(f"times must be one dimension of at least two, got shape {list(values.shape)}")
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
    return in_span(values, float(values.min()), float(values.max()), sde, rounding(given))


with_levels = functools.partial(linear_gaussian, what="a grid of noise levels", advice="; use grids.by_time")
"""The process, or an error where it has no alpha and sigma."""


def rounding(times: object) -> float:
    """The relative rounding that times bring along from their dtype."""
    dtype = as_tensor(times).dtype
    return 4 * torch.finfo(dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float64).eps


def in_span(times: Tensor, low: float, high: float, sde: SDE, slack: float) -> Tensor:
    """The times from low to high, those that rounding put outside of the span set back; an error beyond rounding."""
    if low < sde.t_min - slack * abs(sde.t_min) or high > sde.t_max + slack * abs(sde.t_max):
        raise InvalidArgumentError(
            f"times must lie in the span [{sde.t_min:g}, {sde.t_max:g}] of {sde}, got {low:.9g} to {high:.9g}"
        )
    return times.clamp(sde.t_min, sde.t_max)
