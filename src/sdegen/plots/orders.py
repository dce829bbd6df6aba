"""Errors against steps, and the orders seen in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdegen.plots.logs import Point, positive, ticks
from sdegen.plots.style import COLOURS, DASHES, MARKERS, figure, headed, look, outside, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLAT = 0.3


def convergence(
    curves: Mapping[str, Sequence[Point]],
    ax: Axes | None = None,
    *,
    declared: Mapping[str, float] | None = None,
    title: str = "",
    floor: float = 0.0,
    error: str = "error",
    label: str = "steps",
) -> Axes:
    """Errors (steps, error) of each method on logarithmic axes, the order that is seen in its name.

    The order is minus the least-squares slope through the last three points before a rounding floor. Points are such a
    floor, drawn hollow, from the first one on from which at least two errors fall no longer: their own fitted order is
    below half of that of the points before, and below 0.3 or a fifth of it; and from the first error at or below
    `floor`, where it is known. declared: orders by name; each is a thin dotted line through the last point that counts.
    Points at or below zero or not finite are left out, and counted in a note.

    Raises InvalidArgumentError without any point to draw, InvalidTypeError unless curves are a dict.
    """
    kept = positive(curves, "(steps, error)", (2,))
    ax = ax or figure(7.6, 4.8 + 0.1 * max(0, len(kept.curves) - 6)).add_subplot()
    plain(ax, label, error, "both")
    ax.set(xscale="log", yscale="log")
    notes, known = kept.notes, dict(declared or {})
    drawn = {name: points for name, points in kept.curves.items() if points}
    _limits(ax, [point for points in drawn.values() for point in points])
    for i, (name, points) in enumerate(drawn.items()):
        falls = before_floor(points, floor)
        order = slope(points[:falls][-3:])
        words = name if math.isnan(order) else f"{name}: {order:.2f}"
        words += f" ({known[name]:g})" if name in known else ""
        turn, colour = i // (len(COLOURS) - 1), COLOURS[1 + i % (len(COLOURS) - 1)]
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "ms": 4.5, "lw": 1.4}
        ax.plot(*zip(*points), ls=DASHES[turn % len(DASHES)], label=words, zorder=3, **style)
        if falls < len(points):
            hollow = {**style, "mfc": "white", "ls": "none", "zorder": 4}
            ax.plot(*zip(*points[falls:]), **hollow)
            notes = [*(note for note in notes if note[0] != "h"), "hollow: a rounding floor, not in the order"]
        if name in known and falls:
            _reference(ax, points[:falls], known[name], colour)
    lines = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    taken = outside(ax, lines, head="order seen" + " (declared)" * bool(known))
    _ticks(ax, [point for points in drawn.values() for point in points], taken)
    headed(ax, title, [*notes, "dotted: the declared orders"] if known and look(ax).wide else notes)
    return ax


def slope(points: Sequence[Point]) -> float:
    """The order of points (steps, error): minus their least-squares slope in logarithms; NaN below two of them."""
    x, y = (np.log([point[i] for point in points]) for i in range(2))
    away = x - x.mean() if len(x) else x
    return float(-(away @ y) / (away @ away)) if len(x) > 1 and away.any() else math.nan


def before_floor(points: Sequence[Point], floor: float = 0.0) -> int:
    """How many points, by steps, come before a rounding floor: all, where there is none."""
    end = next((i for i, point in enumerate(points) if point[1] <= floor), len(points))
    for i in range(2, end - 1):
        before = slope(points[:i])
        if slope(points[i:end]) < min(before / 2, max(_FLAT, before / 5)):
            return i
    return end


def _reference(ax: Axes, points: Sequence[Point], order: float, colour: str) -> None:
    """A line of that order through the last point, over all of the steps."""
    last, steps = points[-1], np.array([points[0][0], points[-1][0]])
    ax.plot(steps, last[1] * (steps / last[0]) ** -order, color=colour, lw=0.9, ls=(0, (1, 2)), zorder=2, label="_")


def _limits(ax: Axes, points: Sequence[Point]) -> None:
    (x0, x1), (y0, y1) = ((min(p[i] for p in points), max(p[i] for p in points)) for i in range(2))
    wide, high = max(x1 / x0, 1.5), max(y1 / y0, 2.0)
    ax.set(xlim=(x0 * wide**-0.05, x1 * wide**0.05), ylim=(y0 * high**-0.06, y1 * high**0.06))


def _ticks(ax: Axes, points: Sequence[Point], taken: float) -> None:
    size = look(ax)
    ticks(ax, "x", [p[0] for p in points], size.width, size.small)
    ticks(ax, "y", [p[1] for p in points], size.height - taken, size.small)
