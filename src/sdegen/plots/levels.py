"""Where grids put their levels, and what a plan expects at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import check_times
from sdegen.plots.inputs import Times
from sdegen.plots.logs import ticks
from sdegen.plots.style import COLOURS, INK, MUTED, figure, headed, look, plain
from sdegen.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sdegen.calibration.plan import Plan


def plan(plan: Plan, ax: Axes | None = None) -> Axes:
    """A plan's levels, `sigma/alpha` after every evaluation, and, where it is known, the error expected there."""
    ax = ax or figure(6.0, 3.6).add_subplot()
    count = torch.arange(plan.steps + 1)
    ax.semilogy(count, torch.exp(-plan.lams), color=COLOURS[1], marker="o", markersize=4, label="level, sigma/alpha")
    known = plan.errors.isfinite()
    if bool(known.any()):
        ends = count[1:][known], plan.errors[known]
        ax.semilogy(*ends, color=COLOURS[0], marker="s", markersize=4, label="expected error")
    ax.set_xlabel("network evaluations", color=INK)
    ax.locator_params(axis="x", integer=True)
    ax.set_title(f"A plan of {plan.steps} steps", loc="left", fontsize=11, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", axis="y", color="#e6e6e6", linewidth=0.6)
    ax.tick_params(colors=MUTED)
    ax.legend(frameon=False, labelcolor=INK)
    return ax


def time_grids(grids: Mapping[str, Times], process: Process, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Where each grid of times `[n + 1]` puts its levels: a row per grid, noise on the left and data on the right.

    The axis is `sigma/alpha`, logarithmic: equal distances are equal steps of the log-SNR `lam = log(alpha/sigma)`.
    Raises InvalidTypeError unless process is a `Process`, InvalidArgumentError without grids and on times that are not
    strictly monotone inside the process's span.
    """
    if not isinstance(process, Process):
        raise InvalidTypeError(f"levels need a Process (VP(), EDM(), ...), got {process!r}")
    if not isinstance(grids, Mapping):
        raise InvalidTypeError(f"grids must be a dict of names to times, got {type(grids).__name__}")
    if not grids:
        raise InvalidArgumentError("time_grids needs at least one grid, {name: times}")
    ax = ax or figure(7.6, 0.5 * len(grids) + 0.9).add_subplot()
    size = look(ax)
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": size.small, "va": "bottom"}
    for row, (name, times) in enumerate(grids.items()):
        values = check_times(times, process)
        noise = torch.exp(-process.level(values).lam).numpy()
        colour = COLOURS[1 + row % (len(COLOURS) - 1)]
        ax.plot(noise, [-row] * len(noise), color=colour, lw=0.6, marker="|", ms=9, mew=1.1 if size.wide else 0.8)
        words = f"{name}: {len(noise) - 1} steps"
        ax.annotate(words, (0, -row), (1, 6), xycoords=ax.get_yaxis_transform(), color=colour, **small)
    plain(ax, "noise level σ/α, from noise to data", "", "x")
    ax.set(xscale="log", yticks=[], ylim=(0.5 - len(grids), 0.75))
    ticks(ax, "x", [float(v) for line in ax.lines for v in np.asarray(line.get_xdata())], size.width, size.small)
    ax.xaxis.set_inverted(True)
    headed(ax, title)
    return ax
