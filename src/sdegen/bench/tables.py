"""Rows as tables: for a terminal, for Markdown, and the answers that they give."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sdegen.bench.contenders import Contender
from sdegen.bench.rows import Rows

Row = dict[str, Any]
LARGER = frozenset({"precision", "recall", "coverage"})
"""Metrics of which more is better."""
NEAR = frozenset({"is", "is_inf", "density"})
"""Metrics that should be what exact samples show, and may miss it to either side."""
SIGNED = frozenset({"loglik"})
"""Metrics that should be zero, and may miss it to either side."""
SQUARED = frozenset({"mmd", "energy", "ksd", "kid", "frechet", "frechet_inf"})
"""Squares of distances."""


class Entry(NamedTuple):
    """A contender's place in a table, and how people call it."""

    library: str
    solver: str
    grid: str

    def __str__(self) -> str:
        name = self.solver if self.library == "sdegen" else f"{self.library} {self.solver}"
        return name if self.grid == "own" else f"{name}, {self.grid}"

    @property
    def ours(self) -> bool:
        """Whether it is of this library."""
        return self.library == "sdegen"


def entry(row: Row) -> Entry:
    """The contender of a row."""
    return Entry(row["library"], row["solver"], row["grid"])


def named(contender: Contender) -> Entry:
    """The place of a contender."""
    return Entry(contender.library, contender.name, contender.grid)


def short(value: float) -> str:
    """A number in three digits."""
    if math.isnan(value):
        return "—"
    return "failed" if math.isinf(value) else f"{value:.3g}"


def budget(value: float) -> str:
    """A budget as a heading."""
    return f"tol {value:g}" if value < 1 else f"{value:g}"


def loss(row: Row) -> float:
    """How far a row is from the best there can be: what rows of one metric are ranked by."""
    value, floor = float(row["value"]), float(row["floor"])
    if not math.isfinite(value):
        return math.inf
    if row["metric"] in NEAR and math.isfinite(floor):
        return abs(value - floor)
    return -value if row["metric"] in LARGER | NEAR else abs(value) if row["metric"] in SIGNED else value


def at_floor(row: Row) -> bool:
    """Whether exact samples could well show as much: the interval reaches the floor; of rmse, the value does."""
    value, low, high, floor = (float(row[key]) for key in ("value", "low", "high", "floor"))
    if not math.isfinite(floor):
        return False
    if row["metric"] == "rmse" or math.isnan(low):
        low = high = value
    if row["metric"] in LARGER:
        return high >= floor
    return low <= floor and (row["metric"] not in SIGNED | NEAR or high >= (floor if row["metric"] in NEAR else -floor))


def ranked(rows: Rows) -> list[Entry]:
    """The contenders of one model and metric, best first, those with a tolerance after all others.

    By the geometric mean over the budgets that all have, if there are such; of metrics that may be zero or negative,
    by the mean rank, the share of the others that are nearer.
    """
    order: list[Entry] = []
    for adaptive in (False, True):
        part = Rows(row for row in rows if (row["budget"] < 1) == adaptive)
        order += [e for e in _ranked(part) if e not in order]
    return order


def _ranked(rows: Rows) -> list[Entry]:
    found = {e: {row["budget"]: loss(row) for row in rows if entry(row) == e} for e in dict.fromkeys(map(entry, rows))}
    shared = set.intersection(*(set(losses) for losses in found.values())) if found else set()

    values = [v for losses in found.values() for v in losses.values() if math.isfinite(v)]
    distances = bool(values) and min(values) > 0

    def place(e: Entry, b: float) -> float:
        own, others = found[e][b], [losses[b] for other, losses in found.items() if other != e and b in losses]
        if math.isinf(own):
            return math.inf
        return math.log(own) if distances else sum(v < own for v in others) / max(1, len(others))

    def rank(e: Entry) -> tuple[int, float]:
        places = [place(e, b) for b in shared or found[e].keys()]
        good = [p for p in places if math.isfinite(p)]
        return len(places) - len(good), math.fsum(good) / max(1, len(good))

    return sorted(found, key=rank)


class Line(NamedTuple):
    """A contender, and what a table says of it at each budget; None where it has none."""

    entry: Entry
    cells: list[Any]


class Sheet(NamedTuple):
    """A table: what it is of, its headings, and its lines."""

    title: str
    head: list[str]
    lines: list[Line]

    @property
    def texts(self) -> list[list[str]]:
        """The lines of a table whose cells are texts, with the names of the contenders."""
        return [[str(line.entry), *(cell or "" for cell in line.cells)] for line in self.lines]


Cell = Callable[[Row], Any]


def plain(row: Row) -> str:
    """A value with its floor, a star where it is as good as exact samples."""
    tail = f" @ {row['nfe']:.3g}" if row["budget"] < 1 else ""
    return f"{short(row['value'])} ({short(row['floor'])}){'*' if at_floor(row) else ''}{tail}"


def full(row: Row) -> str:
    """A value with its interval, its floor, and, of an adaptive solver, its evaluations."""
    span = "" if math.isnan(row["low"]) else f" [{short(row['low'])}, {short(row['high'])}]"
    tail = f", {row['nfe']:.3g} evaluations" if row["budget"] < 1 else ""
    return f"{short(row['value'])}{span}, floor {short(row['floor'])}{tail}"


def sheets(rows: Rows, cell: Cell) -> list[Sheet]:
    """A table per model and metric, those of adaptive solvers apart: contenders below each other, budgets beside."""
    found = []
    for model in rows.each("model"):
        for metric in rows.each("metric"):
            own = rows.where(model=model, metric=metric)
            for adaptive in (False, True):
                part = Rows(row for row in own if (row["budget"] < 1) == adaptive)
                if part:
                    found.append(_sheet(f"{model}, {metric}", part, cell))
    return found


def _sheet(title: str, rows: Rows, cell: Cell) -> Sheet:
    budgets = sorted(rows.each("budget"), reverse=min(rows.each("budget")) < 1)
    place = {(entry(row), row["budget"]): row for row in rows}
    lines = [Line(e, [cell(place[e, b]) if (e, b) in place else None for b in budgets]) for e in ranked(rows)]
    return Sheet(title, ["solver", *(budget(b) if b < 1 else f"NFE {b:g}" for b in budgets)], lines)


def text(rows: Rows) -> str:
    """All tables for a terminal: a value, in parentheses its floor, and a star where exact samples show as much."""
    parts = []
    for sheet in sheets(rows, plain):
        lines = sheet.texts
        widths = [max(len(line[i]) for line in [sheet.head, *lines]) for i in range(len(sheet.head))]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        parts.append(
            "\n".join([sheet.title, rule, _line(sheet.head, widths), rule, *(_line(x, widths) for x in lines)])
        )
    if not parts:
        return "no rows"
    legend = "value (floor: what exact samples show), best first over all columns; * the interval reaches the floor"
    legend += "; @ evaluations taken" if any(row["budget"] < 1 for row in rows) else ""
    legend += "\nrmse: distance to a tight solve, of deterministic solvers" if "rmse" in rows.each("metric") else ""
    return "\n\n".join([*parts, legend])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))
    )
    return "  ".join([first, *rest]).rstrip()


def escaped(text: str) -> str:
    """A text that Markdown shows as it is: no HTML, no cell of a table, no mark-up, no TeX.

    Args:
        text: A name. Line breaks in it become spaces.

    Returns:
        It, with `&`, `<` and `>` as entities and a backslash before what Markdown reads.
    """
    words = html.escape(" ".join(text.split()), quote=False)
    words = re.sub(r"([\\`*\[\]|$~])", r"\\\1", words)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", words)  # one inside of a word is no mark-up


def markdown(rows: Rows, level: str = "###") -> str:
    """All tables as Markdown under headings of a level, with intervals; names are shown as they are."""
    parts = []
    for sheet in sheets(rows, full):
        texts = [[escaped(name), *cells] for name, *cells in sheet.texts]
        lines = [sheet.head, ["---"] * len(sheet.head), *texts]
        table = ["| " + " | ".join(line) + " |" for line in lines]
        parts.append("\n".join([f"{level} {escaped(sheet.title)}", "", *table]))
    return "\n\n".join([*parts, ""])


class Answer(NamedTuple):
    """At one budget the best of ours, others of ours that may be as good, and the best of other libraries."""

    model: str
    metric: str
    budget: float
    ours: Row | None
    peer: Row | None
    tied: tuple[str, ...] = ()

    @property
    def better(self) -> float:
        """The others' least distance over ours: above 1 ours is nearer; NaN of metrics that are no distances."""
        if self.ours is None or self.peer is None or self.metric in LARGER | SIGNED | NEAR | {"modes"}:
            return math.nan
        ours, theirs = float(self.ours["value"]), float(self.peer["value"])
        ratio = theirs / ours if ours > 0 and theirs > 0 else math.nan
        return math.sqrt(ratio) if self.metric in SQUARED else ratio

    @property
    def verdict(self) -> str:
        """In words."""
        if self.ours is None or self.peer is None:
            return ""
        if at_floor(self.ours) and at_floor(self.peer):
            return "both at the floor"
        who = "sdegen" if loss(self.ours) <= loss(self.peer) else str(self.peer["library"])
        overlap = self.ours["low"] <= self.peer["high"] and self.peer["low"] <= self.ours["high"]
        how = "" if math.isnan(self.better) else f" {max(self.better, 1 / self.better):.2g} times nearer"
        unknown = any(math.isnan(row["low"]) for row in (self.ours, self.peer))
        return who + how + (", no intervals" if unknown else ", within the intervals" if overlap else "")


def answers(rows: Rows) -> list[Answer]:
    """The best at every budget of evaluations, by model and metric."""
    found = []
    for model in rows.each("model"):
        for metric in rows.each("metric"):
            own = rows.where(model=model, metric=metric)
            for b in sorted(x for x in own.each("budget") if x >= 1):
                here = own.where(budget=b)
                both = [
                    Rows(r for r in here if entry(r).ours == ours and math.isfinite(r["value"]))
                    for ours in (True, False)
                ]
                best = [min(part, key=loss, default=None) for part in both]
                tied = (
                    ()
                    if best[0] is None
                    else tuple(
                        str(entry(row)) for row in both[0] if row is not best[0] and row["low"] <= best[0]["value"]
                    )
                )
                found.append(Answer(model, metric, b, best[0], best[1], tied))
    return found


def enough(rows: Rows) -> str:
    """Of one model and metric: the fewest evaluations at which samples are as good as exact ones, in a sentence."""
    good = [row for row in rows if row["budget"] >= 1 and row["metric"] != "rmse" and at_floor(row)]
    if not good:
        return ""
    least = min(row["budget"] for row in good)
    names = [str(entry(row)) for row in good if row["budget"] == least]
    return f"No difference to exact samples can be seen from NFE {least:g} on: {', '.join(names)}."
