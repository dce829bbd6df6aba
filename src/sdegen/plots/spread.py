"""Laws of one number over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.plots.inputs import (
    Law,
    Times,
    around,
    check_law,
    check_tensor,
    level_of,
    log_density,
    numbers_of,
    span_of,
    times_of,
)
from sdegen.plots.style import COLOURS, figure, headed, look, plain, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = (0.02, 0.06, 0.18, 0.54)  # of the largest density


def marginals(
    states: Tensor,
    times: Times,
    ax: Axes | None = None,
    *,
    law: Law | None = None,
    span: Sequence[float] | None = None,
    bins: int = 80,
    title: str = "",
) -> Axes:
    """Densities of numbers `[steps, n]` or `[steps, n, 1]` over `times` `[steps]`, as an image: a histogram per time.

    Darkness is the root of the density, so that both the wide laws at noise and the narrow ones at data are seen; time
    runs as the run does, from left to right. law: an exact score, or a function `log_prob(x [n, 1], t)`, whose density
    is drawn as lines, at 2, 6, 18 and 54% of its largest value. span: (low, high), by default around all but 0.2% of
    the states; those that are not finite count as samples that are nowhere.

    Raises InvalidTypeError unless states are a floating tensor, and on a law without a density at a time;
    InvalidArgumentError on states of another shape, times that are not one per state, less than two bins.
    """
    check_tensor(states)
    if states.ndim not in (2, 3) or states.shape[2:] not in ((), (1,)) or 0 in states.shape or len(states) < 2:
        raise InvalidArgumentError(
            f"states must be numbers [steps, n] or [steps, n, 1] at two times or more, got {list(states.shape)}"
        )
    if not isinstance(bins, int):
        raise InvalidTypeError(f"bins must be a whole number, got {bins!r}")
    if bins < 2:
        raise InvalidArgumentError(f"bins must be 2 or more, got {bins}")
    if law is not None:
        check_law(law, timed=True)
    values = numbers_of(states).reshape(len(states), -1)
    t = times_of(times, len(values))
    low, high = span_of(span)[:2] if span is not None else _bulk(values)
    edges = np.linspace(low, high, bins + 1)
    share = np.stack([np.histogram(row[np.isfinite(row)], edges)[0] for row in values], 1) / values.shape[1]
    ax = ax or figure(7.6, 4.2).add_subplot()
    _image(ax, _between(t), edges, share / (edges[1] - edges[0]))
    if law is not None:
        _exact(ax, law, t, low, high)
    plain(ax, "time t", "x", grid="")
    ax.set(xlim=(t[0], t[-1]), ylim=(low, high))
    ax.locator_params(axis="x", nbins=8 if look(ax).wide else 5)
    headed(ax, title, ["lines: the exact density"] if law is not None else [])
    return ax


def _bulk(values: np.ndarray) -> tuple[float, float]:
    """A span around all but the outermost thousandth of the finite states on either side."""
    finite = values[np.isfinite(values)]
    return around(np.quantile(finite, (0.001, 0.999)) if finite.size else finite)


def _between(t: np.ndarray) -> np.ndarray:
    """Edges of columns that meet half-way between the times `[steps + 1]`."""
    middle = (t[1:] + t[:-1]) / 2
    return np.concatenate([t[:1], middle, t[-1:]])


def _image(ax: Axes, t: np.ndarray, x: np.ndarray, density: np.ndarray) -> None:
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5, 0.0, max(float(density.max()), 1e-300))
    ax.pcolormesh(t, x, density, cmap=shades(), norm=norm, rasterized=True, zorder=1)


def _exact(ax: Axes, law: Law, t: np.ndarray, low: float, high: float) -> None:
    x = torch.linspace(low, high, 241, dtype=torch.float64)
    exact = np.stack([np.exp(log_density(law, x[:, None], level_of(law, float(now)))) for now in t], 1)
    levels = [line * float(exact.max()) for line in _LINES]
    ax.contour(t, x.numpy(), exact, levels=levels, colors=COLOURS[0], linewidths=0.9, zorder=2)
