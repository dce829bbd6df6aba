"""Grids that were published as numbers: DDPM's integer time steps in their three spacings, and Align Your Steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.grids.spacings import check_steps, check_times, with_levels
from sdegen.processes.sde import SDE
from sdegen.tensors import as_time

AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""Align Your Steps for Stable Diffusion 1.5, sigma/alpha (Sabour, Fidler & Kreis 2024, table 3)."""
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""The same for SDXL."""
AYS_DEEPFLOYD = (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006)
"""The same for DeepFloyd-IF, stage 1."""
AYS_SVD = (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""The same for Stable Video Diffusion."""

_ROUNDED = 0.02


def from_sigmas(process: SDE, n: int, sigmas: Sequence[float] = AYS_SD15) -> Tensor:
    """n steps through published levels `sigma/alpha`, falling; log-linear between them where n is another number.

    Align Your Steps is `functools.partial(from_sigmas, sigmas=AYS_SDXL)`; with n = len(sigmas) - 1 it is exactly the
    levels given. Levels beyond an end of the process by less than 2 % are set to it, as published ones are rounded.

    Raises InvalidArgumentError for sigmas that do not fall, are not positive, or lie outside of the process's span,
    InvalidTypeError for an SDE without alpha and sigma.
    """
    linear = with_levels(process)
    n, lams = check_steps(n), -torch.log(as_time(sigmas))
    if lams.ndim != 1 or len(lams) < 2 or not bool((lams.diff() > 0).all()) or not bool(lams.isfinite().all()):
        raise InvalidArgumentError(f"sigmas must be positive, finite and fall, got {list(sigmas)}")
    first, last = (linear.level(t).lam for t in (process.t_max, process.t_min))
    if float(lams[0]) < float(first) - _ROUNDED or float(lams[-1]) > float(last) + _ROUNDED:
        raise InvalidArgumentError(
            f"sigmas run from {float(sigmas[0]):g} to {float(sigmas[-1]):g}, beyond the levels of {process}, "
            f"{float(torch.exp(-first)):g} to {float(torch.exp(-last)):g}: leave out those beyond, or widen the process"
        )
    place = torch.linspace(0.0, len(lams) - 1, n + 1, dtype=torch.float64, device="cpu")
    k = place.floor().long().clamp(max=len(lams) - 2)
    part = place - k
    inside = ((1 - part) * lams[k] + part * lams[k + 1]).clamp(first, last)
    return check_times(linear.at(inside).t, process)


def timesteps(n: int, spacing: str = "leading", steps: int = 1000, offset: int = 0) -> Tensor:
    """The n integer time steps `[n]`, falling, at which a DDPM of `steps` steps is evaluated.

    spacing: 'leading', `offset + i (steps // n)`; 'trailing', `round(steps - i steps/n) - 1`; 'linspace', n uniform
    ones from steps - 1 to 0, rounded. offset: of 'leading' alone. Raises InvalidArgumentError for another spacing,
    n > steps, an offset that leads outside of 0 to steps - 1. Source: Lin et al. (2024), table 2.
    """
    if check_steps(n) > check_steps(steps):
        raise InvalidArgumentError(f"{n} time steps cannot be chosen from {steps}")
    if spacing == "leading":
        found = np.arange(float(n))[::-1] * (steps // n) + offset
    elif spacing == "trailing":
        found = np.arange(steps, 0, -steps / n)[:n].round() - 1  # numpy's sums, as ties are rounded by their last bit
    elif spacing == "linspace":
        found = np.linspace(0, steps - 1, n).round()[::-1]
    else:
        raise InvalidArgumentError(f"spacing must be 'leading', 'trailing' or 'linspace', got {spacing!r}")
    if found.max() > steps - 1 or found.min() < 0:
        raise InvalidArgumentError(f"offset={offset} puts time steps outside of 0 to {steps - 1}")
    return torch.from_numpy(found.astype(np.int64))


def leading(process: SDE, n: int, offset: int = 0) -> Tensor:
    """n steps between the n + 1 time steps of DDPM's 'leading' spacing; offset 1 is that of Stable Diffusion."""
    return _discrete(process, n, "leading", offset)


def trailing(process: SDE, n: int) -> Tensor:
    """n steps between the n + 1 time steps of the 'trailing' spacing, which starts at the last one."""
    return _discrete(process, n, "trailing")


def linspace(process: SDE, n: int) -> Tensor:
    """n steps between the n + 1 time steps of the 'linspace' spacing, from the last to the first."""
    return _discrete(process, n, "linspace")


def _discrete(process: SDE, n: int, spacing: str, offset: int = 0) -> Tensor:
    n, steps = check_steps(n), _steps(process)
    if n >= steps:
        raise InvalidArgumentError(
            f"{n} steps go through {n + 1} time steps, and {process} has {steps}: steps={steps - 1} at most (the last "
            f"denoising is evaluation {steps}, nfe={steps})"
        )
    return check_times((timesteps(n + 1, spacing, steps, offset) + 1).double() / steps, process)


def _steps(process: SDE) -> int:
    """How many discrete steps the process has: a DiscreteVP's own, 1000 on another that ends at t = 1."""
    steps = with_levels(process).steps
    if steps is not None:
        return steps
    if process.t_max != 1.0 or process.t_min > 1e-3:
        raise InvalidArgumentError(
            f"DDPM's time steps are those of a span that ends at 1, not of {process}: use by_time"
        )
    return 1000
