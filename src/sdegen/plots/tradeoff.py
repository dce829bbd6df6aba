"""Cost against quality: evaluations or seconds, and the distance that they buy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sdegen.errors import InvalidArgumentError
from sdegen.plots.logs import Name, Point, name_lines, positive, ticks
from sdegen.plots.style import COLOURS, DASHES, INK, MARKERS, MUTED, extent, figure, headed, look, outside, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_LINES = 8  # names that stand beside their lines; more go into a legend
GREY = "#9a9a9a"


class Curve(NamedTuple):
    """A curve to draw: its points by x, and its style."""

    name: str
    points: list[tuple[float, ...]]
    style: dict[str, Any]


def quality(
    curves: Mapping[str, Sequence[Point]],
    floor: float | Mapping[str, float] | None = None,
    ax: Axes | None = None,
    *,
    noise: float = 0.0,
    title: str = "",
    distance: str = "distance to the exact law",
    label: str = "network evaluations (NFE)",
    emphasis: str = "",
    muted: Collection[str] = (),
    bands: bool = False,
    pareto: bool = False,
) -> Axes:
    """Points (x, y) of each method, its cost and its distance, as a line on logarithmic axes.

    A point may be (x, y, low, high): its interval is a bar, or with `bands` all of a curve's make a band. Up to 8
    curves on wide axes are named where they start; more, or on narrow axes, in a legend outside. Points at or below
    zero or not finite are left out, and counted in a note.

    floor: the distance of exact samples, drawn dashed, in a band of +- noise; or one per curve, {name: floor}.
    label: of the x axis, such as "seconds". emphasis: the curve drawn boldest. muted: those drawn in grey, as context.
    pareto: ring the points that are not beaten: no other is as good in both x and y and better in one.

    Raises InvalidArgumentError without any point to draw, on points of other lengths, an interval that misses its
    point and floors that are not positive; InvalidTypeError unless curves are a dict.
    """
    kept = positive(curves, "(x, y) or (x, y, low, high)", (2, 4))
    floors = _floors(floor)
    drawn = [curve for curve in _styled(kept.curves, emphasis, muted) if curve.points]
    ax = ax or figure(7.6, 4.8).add_subplot()
    plain(ax, label, distance)
    ax.set(xscale="log", yscale="log")
    points = [point for curve in drawn for point in curve.points]
    inside = _named_inside(ax, drawn)
    right = _limits(ax, points, list(floors.values()), [curve.name for curve in drawn] if inside else [])
    for curve in drawn:
        _draw(ax, curve, bands)
    notes = kept.notes
    if floors:
        _draw_floors(ax, floors, noise, drawn)
        if "" not in floors or not look(ax).wide:
            notes = [*notes, "dashed: the floor, exact samples"]
    if pareto:
        best = _front(points)
        ax.plot(*zip(*best), "o", ms=11 if look(ax).wide else 8.5, mfc="none", mec=INK, mew=1.1, zorder=6)
        notes = [*notes, "ringed: no point is better in both"]
    taken = 0.0
    if inside:
        name_lines(ax, [_name(curve, curve.name == emphasis) for curve in drawn], right)
    else:
        lines: list[Any] = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
        # beside the axes the names stand in the order in which their lines end
        if look(ax).wide:
            lines.sort(key=lambda line: -float(line.get_ydata()[-1]))
        taken = outside(ax, lines)
    _ticks(ax, points, 1 - right, taken)
    headed(ax, title, notes)
    return ax


def _floors(floor: float | Mapping[str, float] | None) -> dict[str, float]:
    """Floors by the name of their curve; one for all has the name ""."""
    floors = dict(floor) if isinstance(floor, Mapping) else {} if floor is None else {"": floor}
    if not all(0 < value < math.inf for value in floors.values()):
        raise InvalidArgumentError(f"floors must be positive and finite, got {floor}")
    return floors


def _styled(curves: Mapping[str, list[tuple[float, ...]]], emphasis: str, muted: Collection[str]) -> Iterator[Curve]:
    """Curves with their styles: the colours in turn, then again dashed and dotted; grey ones thin."""
    looks = ((k, m, d) for d in DASHES for k, m in zip(COLOURS[1:], MARKERS[1:]))
    others, greys = itertools.cycle(looks), itertools.cycle(itertools.product(DASHES, MARKERS))
    for name, points in curves.items():
        if name == emphasis:
            # the bold line lies under the thin ones, so that where they meet both are seen
            style = {"color": COLOURS[0], "marker": MARKERS[0], "ls": "-", "lw": 4.2, "ms": 8, "zorder": 3.0}
        elif name in muted:
            dash, marker = next(greys)
            style = {"color": GREY, "marker": marker, "ls": dash, "lw": 1.0, "ms": 3.5, "zorder": 2.5}
        else:
            colour, marker, dash = next(others)
            style = {"color": colour, "marker": marker, "ls": dash, "lw": 1.4, "ms": 4.5, "zorder": 4.0}
        yield Curve(name, points, style)


def _draw(ax: Axes, curve: Curve, bands: bool) -> None:
    xs, ys = ([point[i] for point in curve.points] for i in range(2))
    slim = {} if look(ax).wide else {"lw": 0.7 * curve.style["lw"], "ms": 0.8 * curve.style["ms"]}
    ax.plot(xs, ys, label=curve.name, **{**curve.style, **slim})
    bottom, top = ax.get_ylim()
    known = [p for p in curve.points if len(p) == 4 and not math.isnan(p[2] + p[3])]
    if not known:
        return
    at, lows, highs = [p[0] for p in known], [max(p[2], bottom) for p in known], [min(p[3], top) for p in known]
    if bands:
        ax.fill_between(at, lows, highs, color=curve.style["color"], alpha=0.16, lw=0, zorder=2.2)
    else:
        ax.vlines(at, lows, highs, color=curve.style["color"], lw=1.3, alpha=0.75, zorder=curve.style["zorder"])


def _name(curve: Curve, bold: bool) -> Name:
    x, y = curve.points[0][:2]
    colour = str(curve.style["color"])
    return Name(curve.name, x, y, MUTED if colour == GREY else colour, bold)


def _named_inside(ax: Axes, curves: Sequence[Curve]) -> bool:
    size = look(ax)
    return len(curves) <= AT_LINES and size.wide and _names_width(ax, [c.name for c in curves]) < 0.42 * size.width


def _names_width(ax: Axes, names: Sequence[str]) -> float:
    return max((extent(name, look(ax).small * 1.04) for name in names), default=0.0)


def _limits(ax: Axes, points: Sequence[Point], floors: Sequence[float], names: Sequence[str]) -> float:
    """Sets the limits and ticks, with room on the left for names; the share of the width where those end."""
    size = look(ax)
    xs, ys = [p[0] for p in points], [*(p[1] for p in points), *floors]
    ends = [v for p in points for v in p[2:] if 0 < v < math.inf]
    lows = [v for v in ends if v > min(ys) / 10]  # an interval that nears zero must not flatten all the rest
    width = max(max(xs) / min(xs), 1.5)
    room = 0.05 if not names else (_names_width(ax, names) + 0.25) / (0.93 * size.width)
    ax.set_xlim(min(xs) * width ** (-room / (0.93 - room)), max(xs) * width**0.07)
    low, high = min([*ys, *lows]), max([*ys, *(v for v in ends if v < 10 * max(ys))])
    slack = max(high / low, 2.0)
    ax.set_ylim(low * min(0.72, slack**-0.06), high * max(1.2, slack**0.05))
    return room - 0.18 / size.width


def _ticks(ax: Axes, points: Sequence[Point], share: float, taken: float) -> None:
    """Ticks on that share of the width, and on the height without what a legend has taken."""
    size = look(ax)
    ticks(ax, "x", [p[0] for p in points], share * size.width, size.small)
    ticks(ax, "y", [p[1] for p in points], size.height - taken, size.small)


def _draw_floors(ax: Axes, floors: Mapping[str, float], noise: float, curves: Sequence[Curve]) -> None:
    size = look(ax)
    for curve in curves:
        if curve.name in floors:
            ends = curve.points[0][0], curve.points[-1][0]
            ax.hlines(floors[curve.name], *ends, color=curve.style["color"], lw=1.0, ls=(0, (5, 3)), zorder=2)
    if "" not in floors:
        return
    floor = floors[""]
    ax.axhline(floor, color=MUTED, lw=1.2, ls=(0, (5, 3)), zorder=2)
    ax.axhspan(max(floor - noise, floor / 10), floor + noise, color="#ececec", lw=0, zorder=0.5)
    if size.wide:  # on narrow axes a note says it
        small: dict[str, Any] = {"textcoords": "offset points", "va": "top", "color": MUTED, "fontsize": size.small}
        ax.annotate("floor: exact samples", (ax.get_xlim()[0], floor), (2, -4), **small)


def _front(points: Sequence[Point]) -> list[tuple[float, float]]:
    """The points that no other one beats, by x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted({(p[0], p[1]) for p in points}):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best
