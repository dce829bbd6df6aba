"""Pictures: sheets of images, denoising trajectories, evaluations against quality, plans.

Each function draws on the axes it is given, or on those of a new figure, and returns them: `ax.figure.savefig(...)`.
Figures are made without pyplot, so nothing is global: they work without a display and from any thread.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sdegen.plan import Plan

INK, MUTED = "#222222", "#6b6b6b"
# After Okabe and Ito (2008), told apart by all common kinds of colour vision; the light ones darker, for text.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#aa3377", "#c98a00", "#222222", "#3d9fdc", "#8c6d46")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; raises InvalidArgumentError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidArgumentError("pictures need matplotlib: pip install 'sdegen[plots]'") from None
    whole = Figure(figsize=(width, height), layout="constrained")
    whole.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return whole


def image_grid(
    images: Tensor,
    columns: int = 10,
    ax: Axes | None = None,
    *,
    title: str = "",
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    span: tuple[float, float] = (-1.0, 1.0),
) -> Axes:
    """A sheet of images `[n, H, W]` or `[n, 3, H, W]`, row by row; an image of NaN leaves its place empty.

    Grey images are drawn as ink: span[0] is paper, span[1] is black. Values outside the span are clipped.
    Raises InvalidArgumentError on images of another shape and on columns < 1.
    """
    sheet, rows, cell = _tiled(images, columns, span)
    ax = ax or figure(0.6 * columns + 0.4, 0.6 * rows + 0.5).add_subplot()
    ax.imshow(sheet.numpy(), cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_axis_off()
    small: dict[str, Any] = {"color": MUTED, "fontsize": 9}
    for i, label in enumerate(row_labels[:rows]):
        ax.text(-0.1 * cell[1], (i + 0.47) * cell[0], label, ha="right", va="center", **small)
    for j, label in enumerate(column_labels[:columns]):
        ax.text((j + 0.47) * cell[1], -0.15 * cell[0], label, ha="center", va="bottom", **small)
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=11, pad=18 if column_labels else 8)
    return ax


def trajectories(
    states: Tensor,
    labels: Sequence[str] = (),
    ax: Axes | None = None,
    *,
    title: str = "",
    span: tuple[float, float] = (-1.0, 1.0),
) -> Axes:
    """Images along the steps, `[steps, n, H, W]` or `[steps, n, 3, H, W]`: a row per sample, a column per step.

    labels: one per step. Raises InvalidArgumentError on states of another shape.
    """
    if states.ndim not in (4, 5) or 0 in states.shape:
        raise InvalidArgumentError(f"states must be [steps, n, H, W] or [steps, n, 3, H, W], got {list(states.shape)}")
    rows = states.transpose(0, 1).flatten(0, 1)
    return image_grid(rows, len(states), ax, title=title, column_labels=labels, span=span)


def quality(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    floor: float | None = None,
    ax: Axes | None = None,
    *,
    noise: float = 0.0,
    title: str = "",
    distance: str = "distance to the exact law",
    emphasis: str = "",
) -> Axes:
    """Points (NFE, distance) of each method as a line on logarithmic axes, named where it starts.

    floor: the distance of exact samples, drawn dashed, in a band of +- noise. emphasis: the method drawn boldest.
    Raises InvalidArgumentError without any point, or on numbers that are not positive.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points or not all(0 < value < math.inf for point in points for value in point):
        raise InvalidArgumentError("quality needs positive, finite (NFE, distance) points, to draw them on log axes")
    ax = ax or figure(7.6, 4.8).add_subplot()
    ax.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)", ylabel=distance)
    others = itertools.cycle(zip(COLOURS[1:], MARKERS[1:]))
    ends = []
    for name, curve in curves.items():
        bold = name == emphasis
        colour, marker = (COLOURS[0], MARKERS[0]) if bold else next(others)
        xs, ys = zip(*sorted(curve))
        # the bold line lies under the thin ones, so that where they meet both are seen
        style: dict[str, Any] = {"lw": 4.2 if bold else 1.4, "ms": 8 if bold else 4.5, "zorder": 3 if bold else 4}
        ax.plot(xs, ys, color=colour, marker=marker, **style)
        ends.append((math.log10(ys[0]), name, colour, "bold" if bold else "normal"))
    _frame(ax, points, floor, noise)
    _name_lines(ax, min(x for x, _ in points), ends)
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=11, pad=8)
    return ax


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
    ax.set_title(f"A plan of {plan.steps} steps", loc="left", fontsize=11, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", axis="y", color="#e6e6e6", linewidth=0.6)
    ax.tick_params(colors=MUTED)
    ax.legend(frameon=False, labelcolor=INK)
    return ax


def _tiled(images: Tensor, columns: int, span: tuple[float, float]) -> tuple[Tensor, int, tuple[int, int]]:
    """The images in one array with empty gaps between them, values in [0, 1]; the rows; a cell's size."""
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.movedim(1, -1)
    elif images.ndim != 3:
        raise InvalidArgumentError(f"images must be [n, H, W] or [n, 3, H, W], got shape {list(images.shape)}")
    if 0 in images.shape or columns < 1:
        raise InvalidArgumentError(
            f"a sheet needs images and columns, got shape {list(images.shape)}, {columns} columns"
        )
    n, height, width = images.shape[:3]
    gap, rows = max(1, height // 8), -(-n // columns)
    cells = torch.full((rows * columns, height + gap, width + gap, *images.shape[3:]), math.nan)
    cells[:n, :height, :width] = ((images.detach().cpu().float() - span[0]) / (span[1] - span[0])).clamp(0.0, 1.0)
    apart = cells.reshape(rows, columns, *cells.shape[1:])
    sheet = apart.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-gap, :-gap]
    return (sheet if images.ndim == 3 else sheet.nan_to_num(1.0)), rows, (height + gap, width + gap)


def _frame(ax: Axes, points: Sequence[tuple[float, float]], floor: float | None, noise: float) -> None:
    """Plain axes: a tick at each NFE, few grid lines, room on the left for the names of the lines."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    xs = sorted({x for x, _ in points})
    ticks = [x for i, x in enumerate(xs) if i + 1 == len(xs) or xs[i + 1] > 1.3 * x]  # 49 and 50 are one tick
    lows = [y for _, y in points] + ([] if floor is None else [floor])
    width = max(xs[-1] / xs[0], 1.5)
    # the names take the left quarter of the axes
    ax.set_xlim(xs[0] * width**-0.35, xs[-1] * width**0.07)
    ax.set_ylim(min(lows) * 0.72, max(y for _, y in points) * 1.4)
    ax.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
    ax.yaxis.set(major_locator=LogLocator(subs=(1.0, 2.0, 5.0)), minor_locator=NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.tick_params(length=0, colors=MUTED, labelsize=9)
    ax.grid(axis="y", color="#e6e6e6", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color("#bbbbbb")
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, fontsize=10)
    if floor is not None:
        ax.axhline(floor, color=MUTED, lw=1.2, ls=(0, (5, 3)), zorder=2)
        ax.axhspan(max(floor - noise, floor / 10), floor + noise, color="#ececec", lw=0, zorder=0.5)
        below = (ax.get_xlim()[0], floor)
        ax.annotate(
            "floor: exact samples", below, (2, -4), textcoords="offset points", va="top", color=MUTED, fontsize=9
        )


def _name_lines(ax: Axes, left: float, ends: Sequence[tuple[float, str, str, str]]) -> None:
    """The names at x = left, each at its line's first point (log10 y, name, colour, weight), moved where they touch."""
    low, high = (math.log10(v) for v in ax.get_ylim())
    gap, above = 0.055 * (high - low), math.inf
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 9.5, "zorder": 5}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    for y, name, colour, weight in sorted(ends, reverse=True):
        above = min(y, above - gap)
        ax.annotate(name, (left, 10**above), (-11, 0), color=colour, fontweight=weight, **style)
