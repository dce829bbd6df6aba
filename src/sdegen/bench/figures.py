"""The pictures of a report, each drawn for a desk and for a phone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sdegen import plots
from sdegen.bench.orders import Fall
from sdegen.bench.problems import Problem
from sdegen.bench.rows import Rows
from sdegen.bench.tables import SIGNED, Entry, Row, entry, ranked
from sdegen.errors import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 7.6, 3.6
"""Inches."""
CURVES = 8
"""Curves of this library in one picture, and other libraries' beside them: the best sampler of each."""
POINTS, LETTERS = 400, 30
FAR = 20.0


class Picture(NamedTuple):
    """The same as an SVG for wide and for narrow screens, as data URIs, and what it shows in words."""

    wide: str
    narrow: str
    words: str


def picture(draw: Callable[[float], Figure], words: str) -> Picture:
    """A drawing at both widths."""
    return Picture(_uri(literal(draw(WIDE))), _uri(literal(draw(NARROW))), words)


def literal(figure: Figure) -> Figure:
    """The figure, its texts shown letter by letter: a dollar in a name is a dollar, and no TeX."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            text.set_usetex(False)
    return figure


def _uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def shown(rows: Rows) -> list[Entry]:
    """The contenders of a picture: ours, the best `CURVES`, and the best of every other library."""
    order = ranked(rows)
    libraries = list(dict.fromkeys(e.library for e in order if not e.ours))
    return [e for e in order if e.ours][:CURVES] + [next(e for e in order if e.library == x) for x in libraries]


def label_of(name: object) -> str:
    """A name as a label: what begins with an underscore would be in no legend."""
    text = str(name)
    return f" {text}" if text.startswith("_") else text


def quality(rows: Rows, cost: str) -> Picture:
    """A metric over evaluations (`nfe`) or `seconds`, with intervals and the floor; rows of one model and metric."""
    entries = shown(rows)
    metric, label = rows[0]["metric"], {"nfe": "network evaluations (NFE)", "seconds": "seconds"}[cost]
    least = min(v for v in map(drawn_value, rows) if v > 0)
    curves = {label_of(e): [_point(row, cost, least / 1.5) for row in rows if entry(row) == e] for e in entries}
    # one far below all values would squeeze them; it stands in the table
    known = [row["floor"] for row in rows if metric != "rmse" and least / FAR < row["floor"] < math.inf]
    budget = min((row["budget"] for row in rows if row["budget"] >= 1), default=max(row["budget"] for row in rows))
    # what is far off at the fewest evaluations would squeeze all others; it stands in the table
    first = [drawn_value(row) for row in rows if row["budget"] == budget and drawn_value(row) > 0]
    ours = [drawn_value(row) for row in rows if entry(row).ours and math.isfinite(row["value"])]
    top = max([1.5 * FAR * min(first, default=math.inf), *(1.2 * v for v in ours)])
    best = next((label_of(e) for e in entries if e.solver == "default"), "")

    def draw(width: float) -> Figure:
        whole = plots.figure(width, 4.9 if width == WIDE else 5.4)
        ax = whole.add_subplot()
        plots.quality(
            curves,
            known[0] if known else None,
            ax,
            distance=metric,
            label=label,
            emphasis=best,
            muted=[label_of(e) for e in entries if not e.ours],
            pareto=cost == "nfe",
        )
        if ax.get_ylim()[1] > top:
            ax.set_ylim(top=top)
        return whole

    return picture(draw, f"{metric} of {', '.join(curves)} against {label}")


def drawn_value(row: Row) -> float:
    """What a picture shows of a row: metrics that may miss to either side without their sign."""
    return abs(float(row["value"])) if row["metric"] in SIGNED else float(row["value"])


def _point(row: Row, cost: str, least: float) -> tuple[float, ...]:
    value, low, high = row["value"], row["low"], row["high"]
    # of the budget and not of what a solver took of it: one evaluation less is no merit
    x = row["budget"] if cost == "nfe" and row["budget"] >= 1 else row[cost]
    if row["metric"] in SIGNED or not (low <= value <= high < math.inf and value > 0):
        return x, drawn_value(row)
    return x, value, max(low, min(least, value)), high


def orders(found: Mapping[str, Fall]) -> Picture:
    """Errors over steps, with the slopes seen and declared."""
    declared = {label_of(name): fall.declared for name, fall in found.items() if fall.declared is not None}

    def draw(width: float) -> Figure:
        whole = plots.figure(width, 4.9 if width == WIDE else 5.4)
        curves = {label_of(name): fall.points for name, fall in found.items()}
        floor = max(fall.floor for fall in found.values())
        plots.convergence(curves, whole.add_subplot(), declared=declared, error="mean terminal error", floor=floor)
        return whole

    return picture(draw, f"errors of {', '.join(found)} over the number of steps")


def grids(problem: Problem, times: Mapping[str, Tensor]) -> Picture:
    """Where the levels of the solvers' grids are."""

    def draw(width: float) -> Figure:
        whole = plots.figure(width, 0.5 * len(times) + 0.9)
        plots.time_grids(times, problem.process, whole.add_subplot())
        return whole

    return picture(draw, f"levels of the grids {', '.join(times)}")


def samples(problem: Problem, drawn: Mapping[str, Tensor], exact: Tensor | None) -> Picture:
    """What every contender drew, from the same noise, and exact samples or data; images, or points in the plane."""
    sets = {**({} if exact is None else {"exact" if problem.law is not None else "data": exact}), **drawn}
    if problem.image is not None:
        return picture(lambda width: _images(problem.image or (), sets, width), f"samples of {', '.join(sets)}")
    if math.prod(problem.shape) < 2:
        raise InvalidArgumentError("samples of one number have no picture")
    return picture(lambda width: _points(sets, exact, width), f"samples of {', '.join(sets)} in the plane")


def _images(shape: Sequence[int], sets: Mapping[str, Tensor], width: float) -> Figure:
    count = 12 if width == WIDE else 6
    count = min(count, *(len(x) for x in sets.values()))
    flat = torch.cat([x[:count].reshape(count, *shape).float().cpu() for x in sets.values()])
    known = flat[:count].nan_to_num().flatten()[: 1 << 22]
    span = float(known.quantile(0.005)), float(known.quantile(0.995))
    names = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in sets]
    if width == NARROW:  # names above their rows would not fit; they are in the order of the words below
        names = [str(i + 1) for i in range(len(names))]
    whole = plots.figure(width, width / (count + 3) * len(sets) + 0.6)
    plots.image_grid(flat, count, whole.add_subplot(), row_labels=names, span=span)
    return whole


def _points(sets: Mapping[str, Tensor], exact: Tensor | None, width: float) -> Figure:
    columns = 4 if width == WIDE else 2
    rows = -(-len(sets) // columns)
    whole = plots.figure(width, (width / columns + 0.25) * rows)
    axes = whole.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    ground = next(iter(sets.values())) if exact is None else exact
    low, high = (ground.flatten(1)[:, :2].amin(), ground.flatten(1)[:, :2].amax())
    room = 0.15 * float(high - low)
    for ax in axes.flat[len(sets) :]:
        ax.set_axis_off()
    for ax, (name, x) in zip(axes.flat, sets.items()):
        points = x.flatten(1)[:POINTS, :2].float().cpu()
        ax.scatter(points[:, 0], points[:, 1], s=2, lw=0, color=plots.COLOURS[1], rasterized=True)
        ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal", xticks=[], yticks=[])
        ax.set_title(name, fontsize=8, loc="left", color=plots.INK)
        ax.spines[:].set_color("#cccccc")
    return whole
