"""States along the steps of a run: rows of images, lines in the plane, lines over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.loop.solution import Solution
from sdegen.plots.images import image_grid
from sdegen.plots.inputs import Times, around, check_tensor, numbers_of, span_of, times_of
from sdegen.plots.style import COLOURS, INK, figure, headed, look, outside, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHAPES = "[steps, n, H, W], [steps, n, 3, H, W], [steps, n, 2], [steps, n] or [steps, n, 1]"


def trajectories(
    states: Tensor | Solution,
    labels: Sequence[str] = (),
    ax: Axes | None = None,
    *,
    times: Times | None = None,
    title: str = "",
    span: Sequence[float] | None = None,
) -> Axes:
    """States along the steps of a run, of samples that are images, points in the plane or numbers.

    - images `[steps, n, H, W]` or `[steps, n, 3, H, W]`: a row per sample, a column per step, under its label;
      span: the values of paper and of ink, (-1, 1) by default;
    - points `[steps, n, 2]`: a line per sample in the plane, a ring at its start and a dot at its end;
      span: (low, high) of both axes, or (left, right, bottom, top);
    - numbers `[steps, n]` or `[steps, n, 1]`: a line per sample over `times` `[steps]`, as the run goes from left to
      right; or over the count of steps; span: (low, high).

    states may be what `draw(path=True)` returns, whose path and times are shown. A state that is not finite leaves a
    gap in its line. Raises InvalidTypeError unless states are a floating tensor, InvalidArgumentError on states of
    another shape, labels of points or numbers, times of images or points, a solution without a path.
    """
    if isinstance(states, Solution):
        if not isinstance(states.path, Tensor):
            raise InvalidArgumentError("this solution has no path of states: draw(..., path=True) keeps one")
        if times is None and states.levels is not None and _kind(states.path) == "numbers":
            times = states.levels.t
        states = states.path
    kind = _kind(states)
    if times is not None and kind != "numbers":
        raise InvalidArgumentError(f"times are the x of numbers [steps, n]; {kind} have none: give labels= or title=")
    if kind == "images":
        low, high = span or (-1.0, 1.0)
        rows = states.transpose(0, 1).flatten(0, 1)
        return image_grid(rows, len(states), ax, title=title, column_labels=labels, span=(low, high))
    if labels:
        raise InvalidArgumentError("labels stand over the columns of images; lines have none: give title= or times=")
    values = numbers_of(states)
    if kind == "points":
        return _in_plane(values, ax, title, span)
    return _over_time(values.reshape(len(values), -1), times, ax, title, span)


def _kind(states: Tensor) -> str:
    """Images, points or numbers, by the shape of the states."""
    check_tensor(states)
    shape = states.shape
    if 0 not in shape and (len(shape) == 4 or (len(shape) == 5 and shape[2] == 3)):
        return "images"
    if 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 2))):
        return "points" if len(shape) == 3 and shape[2] == 2 else "numbers"
    raise InvalidArgumentError(f"states must be {_SHAPES}, no size 0, got {list(shape)}")


def _lines(ax: Axes, paths: np.ndarray, strength: float) -> list[str]:
    """Lines `[n, steps, 2]` in one collection: each in its colour up to 8 of them, else thin and see-through."""
    from matplotlib.collections import LineCollection

    few = len(paths) <= len(COLOURS)
    colours = list(COLOURS[: len(paths)]) if few else [COLOURS[1]]
    alpha = 0.9 if few else float(np.clip(strength / len(paths) ** 0.5, 0.05, 0.6))
    lines = LineCollection(list(paths), colors=colours, linewidths=1.3 if few else 0.7, alpha=alpha, zorder=3)
    ax.add_collection(lines)
    return colours


def _in_plane(values: np.ndarray, ax: Axes | None, title: str, span: Sequence[float] | None) -> Axes:
    x, y = around(values[..., 0]), around(values[..., 1])
    left, right, bottom, top = (*x, *y) if span is None else span_of(span)
    ax = ax or figure(5.6, 5.2).add_subplot()
    colours = _lines(ax, values.transpose(1, 0, 2), 4.0)
    few = values.shape[1] <= len(COLOURS)
    area = (26.0 if few else float(np.clip(2000 / values.shape[1], 3, 14))) * (1.0 if look(ax).wide else 0.6)
    ring: dict[str, Any] = {"facecolors": "white", "edgecolors": colours if few else INK}
    start = ax.scatter(
        values[0, :, 0], values[0, :, 1], s=area, linewidths=1.2 if few else 0.5, zorder=4, label="start", **ring
    )
    end = ax.scatter(
        values[-1, :, 0], values[-1, :, 1], s=area, c=colours if few else COLOURS[0], lw=0, zorder=5, label="end"
    )
    plain(ax, "", "", grid="")
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    outside(ax, [start, end], gap=20)
    headed(ax, title)
    return ax


def _over_time(
    values: np.ndarray, times: Times | None, ax: Axes | None, title: str, span: Sequence[float] | None
) -> Axes:
    x = np.arange(len(values)) if times is None else times_of(times, len(values))
    low, high = around(values) if span is None else span_of(span)[:2]
    ax = ax or figure(7.6, 4.2).add_subplot()
    _lines(ax, np.stack([np.broadcast_to(x[:, None], values.shape), values], -1).transpose(1, 0, 2), 2.0)
    plain(ax, "steps" if times is None else "time t", "x", "y")
    ends = (x[0], x[-1]) if len(x) > 1 else (x[0] - 0.5, x[0] + 0.5)
    ax.set(xlim=ends, ylim=(low, high))  # from left to right as the run goes, towards data
    ax.locator_params(axis="x", nbins=8 if look(ax).wide else 5)
    headed(ax, title)
    return ax
