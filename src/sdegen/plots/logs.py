"""Points on logarithmic axes: which can be drawn, their ticks, and names beside lines that do not touch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.plots.style import extent, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Point = Sequence[float]


class Kept(NamedTuple):
    """The points of each curve that can be drawn, by x, and what to say of those that cannot."""

    curves: dict[str, list[tuple[float, ...]]]
    notes: list[str]


def positive(curves: Mapping[str, Sequence[Point]], what: str, lengths: tuple[int, ...]) -> Kept:
    """The points whose x and y are finite and above zero, and a note that counts the others.

    Raises InvalidTypeError unless curves are a dict, InvalidArgumentError on points of other lengths than `lengths`,
    intervals that miss their point, and where no point can be drawn.
    """
    if not isinstance(curves, Mapping):
        raise InvalidTypeError(f"curves must be a dict of names to lists of {what}, got {type(curves).__name__}")
    kept: dict[str, list[tuple[float, ...]]] = {}
    for name, curve in curves.items():
        for given in curve:
            if not hasattr(given, "__len__") or len(given) not in lengths:
                raise InvalidArgumentError(f"{name}: a point must be {what}, got {given}")
        points = [tuple(float(v) for v in point) for point in curve]
        for point in points:
            if len(point) == 4 and (point[2] > point[1] or point[3] < point[1]):
                raise InvalidArgumentError(f"{name}: an interval must hold its point, low <= y <= high, got {point}")
        kept[name] = sorted(point for point in points if all(0 < v < math.inf for v in point[:2]))
    if not any(kept.values()):
        raise InvalidArgumentError(f"there is no {what} with finite x and y above zero, to draw on logarithmic axes")
    return Kept(kept, _left_out(curves))


def _left_out(curves: Mapping[str, Sequence[Point]]) -> list[str]:
    points = [(float(p[0]), float(p[1])) for curve in curves.values() for p in curve]
    strange = sum(not all(map(math.isfinite, p)) for p in points)
    low = sum(all(map(math.isfinite, p)) and min(p) <= 0 for p in points)
    counted = ((strange, "not finite"), (low, "not above zero"))
    words = [f"{n} point{'s are' if n > 1 else ' is'} {reason}" for n, reason in counted if n]
    return [" and ".join(words) + ": left out"] if words else []


def ticks(ax: Axes, name: Literal["x", "y"], values: Sequence[float], inches: float, letters: float) -> None:
    """Ticks of a logarithmic axis of that length: at whole numbers that are few, else 1-2-5, decades, or even."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

    axis: Axis = ax.xaxis if name == "x" else ax.yaxis
    low, high = min(values), max(values)
    decades = max(math.log10(high / low), 1e-9)
    # from 1 to 2 are 0.3 decades
    need = (max(extent(f"{v:.1g}", letters) for v in (low, high)) if name == "x" else letters / 72) + 0.08
    xs = sorted(set(values))
    where: Locator
    if name == "x" and all(x == int(x) for x in xs):
        # as far apart as their numbers are wide: 49 and 50 are one tick
        room = [decades / inches * (extent(f"{x:g}", letters) + 0.08) for x in xs]
        chosen: list[float] = []
        for x, need in zip(reversed(xs), reversed(room)):
            if not chosen or math.log10(chosen[-1] / x) > max(need, math.log10(1.15)):
                chosen.append(x)
        where = FixedLocator(chosen[::-1])
    elif decades < 0.7:
        where = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    elif need < 0.3 * inches / decades:
        where = LogLocator(subs=(1.0, 2.0, 5.0))
    else:
        where = LogLocator(numticks=max(3, int(inches / (1.3 * need))))
    axis.set(major_locator=where, minor_locator=NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places nearest to those wanted (least squares) that are `gap` apart, inside [low, high] where all fit.

    Isotonic regression of `wanted_i - i gap`, by merging neighbours (pool adjacent violators; Ayer et al. 1955).
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        blocks.append((wanted[i] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = (blocks[-1][0] + total, blocks[-1][1] + count)
    means = [total / count for total, count in blocks for _ in range(count)]
    top = max(low, high - (len(wanted) - 1) * gap)
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = min(max(means[rank], low), top) + rank * gap
    return placed


class Name(NamedTuple):
    """A name at the point where its line starts."""

    text: str
    x: float
    y: float
    colour: str
    bold: bool


def name_lines(ax: Axes, names: Sequence[Name], right: float) -> None:
    """The names in a column that ends at `right` (a share of the axes' width), each with a thin line to its own."""
    size = look(ax)
    low, high = (math.log10(v) for v in ax.get_ylim())
    wanted = [(math.log10(name.y) - low) / (high - low) for name in names]
    gap = 1.45 * size.small / 72 / (0.85 * size.height)  # a layout may take some of the height yet
    for name, place in zip(names, apart(wanted, gap, gap / 2, 1 - gap / 2)):
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": size.small, "color": name.colour}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a floor may pass behind
        leader = {"arrowstyle": "-", "color": name.colour, "lw": 0.6, "alpha": 0.7, "shrinkA": 1, "shrinkB": 4}
        ax.annotate(
            name.text,
            (name.x, name.y),
            (right, place),
            textcoords="axes fraction",
            fontweight="bold" if name.bold else "normal",
            arrowprops=leader,
            zorder=5,
            **style,
        )
