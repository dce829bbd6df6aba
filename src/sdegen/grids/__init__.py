"""Time grids: `grid(process, n) -> times [n + 1]`, float64, strictly decreasing, from t_max to t_min unless it says so.

A grid with a parameter is given by `functools.partial(karras, rho=5.0)`; any decreasing tensor of times is one too.
"""

from sdegen.grids.published import (
    AYS_DEEPFLOYD,
    AYS_SD15,
    AYS_SDXL,
    AYS_SVD,
    from_sigmas,
    leading,
    linspace,
    timesteps,
    trailing,
)
from sdegen.grids.spacings import (
    Grid,
    angular,
    beta,
    by_snr,
    by_time,
    check_steps,
    check_times,
    cosine,
    exponential,
    graded,
    in_span,
    karras,
    natural,
    quadratic,
    rounding,
    sgm_uniform,
)

__all__ = [
    "AYS_DEEPFLOYD",
    "AYS_SD15",
    "AYS_SDXL",
    "AYS_SVD",
    "Grid",
    "angular",
    "beta",
    "by_snr",
    "by_time",
    "check_steps",
    "check_times",
    "cosine",
    "exponential",
    "from_sigmas",
    "graded",
    "in_span",
    "karras",
    "leading",
    "linspace",
    "natural",
    "quadratic",
    "rounding",
    "sgm_uniform",
    "timesteps",
    "trailing",
]
