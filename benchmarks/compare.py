"""What got slower since a stored run: `python -m benchmarks.compare [OLD.json] [NEW.json]`.

Ratios are compared, not seconds: each is a benchmark's time divided by its reference's in the same rounds, so that a
run of another machine still says something. A change counts where it is larger than the threshold and the
quartiles of the two runs' ratios are apart. Exit status 1 where something got slower, 2 where nothing can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from benchmarks.page import publish

HERE = Path(__file__).parent
BASELINE, LATEST = HERE / "baseline.json", HERE.parent / ".benchmarks" / "latest.json"
PAGE, BEGIN = HERE.parent / "docs" / "speed.md", "<!-- begin: benchmarks.compare -->"
THRESHOLD = 0.15


class Unreadable(ValueError):  # noqa: N818 - of a file
    """A file that holds no run; the message is one line."""


@dataclass(frozen=True)
class Row:
    """A benchmark: median and interquartile range in seconds, and the median and quartiles of its ratio.

    The ratio is to `reference`, the benchmark of the group that is 1, measured in turns with this one.
    """

    group: str
    name: str
    reference: str
    median: float
    iqr: float
    rounds: int
    ratio: float
    low: float
    high: float

    def __post_init__(self) -> None:
        numbers = (self.median, self.iqr, self.rounds, self.ratio, self.low, self.high)
        if not all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in numbers):
            raise TypeError("its numbers are not all finite and positive")
        if not 0 < self.low <= self.ratio <= self.high or not self.median > 0:
            raise TypeError("its ratio is not positive and between its quartiles")


class Run(NamedTuple):
    """A run of the suite: versions and processor, and the benchmarks by group and name."""

    about: dict[str, str]
    rows: dict[tuple[str, str], Row]


class Change(NamedTuple):
    """What is to be said of one benchmark, `kind` being one of `KINDS`; a row that a run lacks is None."""

    kind: str
    old: Row | None
    new: Row | None

    def __str__(self) -> str:
        row = self.new or self.old
        assert row is not None
        words = f"{self.kind:<9} {row.group}: {row.name}"
        if self.old is None or self.new is None:
            return f"{words}, {_digits(row.ratio)} x {row.reference}"
        if self.kind == "other":
            return f"{words}, the reference was {self.old.reference} and is {self.new.reference}"
        by = self.new.ratio / self.old.ratio - 1
        return f"{words}, {_digits(self.old.ratio)} -> {_digits(self.new.ratio)} x {row.reference} ({by:+.0%})"


KINDS = ("slower", "faster", "other", "new", "missing", "same")


def read(path: Path) -> Run:
    """The run in a file; raises Unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in found["benchmarks"]]
        about = {str(name): str(words) for name, words in found["about"].items()}
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}; make bench and make bench-save write runs") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise Unreadable(f"{path}: not a run that make bench or make bench-save wrote ({said})") from error
    if not rows:
        raise Unreadable(f"{path}: a run without benchmarks")
    return Run(about, {(row.group, row.name): row for row in rows})


def write(path: Path, about: dict[str, str], rows: Iterable[Row]) -> None:
    """A run as JSON, a line for each benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps({k: _short(v) for k, v in asdict(row).items()}) for row in rows)
    path.write_text(f'{{"about": {json.dumps(about)},\n "benchmarks": [\n  {lines}\n]}}\n', encoding="utf-8")


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def compare(old: Run, new: Run, threshold: float = THRESHOLD) -> list[Change]:
    """Every benchmark of either run, in the order of `KINDS`."""
    found = [_change(old.rows.get(key), new.rows.get(key), threshold) for key in {**old.rows, **new.rows}]
    return sorted(found, key=lambda change: KINDS.index(change.kind))


def _change(old: Row | None, new: Row | None, threshold: float) -> Change:
    if old is None or new is None:
        return Change("new" if old is None else "missing", old, new)
    if old.reference != new.reference:
        return Change("other", old, new)
    if new.ratio > old.ratio * (1 + threshold) and new.low > old.high:
        return Change("slower", old, new)
    if old.ratio > new.ratio * (1 + threshold) and old.low > new.high:
        return Change("faster", old, new)
    return Change("same", old, new)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of text, group by group: name, median, and ratio with its quartiles."""
    width = max((len(row.name) for row in rows), default=0)
    for group in dict.fromkeys(row.group for row in rows):
        yield group
        for row in rows:
            if row.group == group:
                yield f"  {row.name:<{width}} {time(row.median):>9} {_ratio(row)}"


def markdown(run: Run) -> str:
    """A table for each group, and what it was measured with."""
    parts = ["Measured with " + ", ".join(f"{name} {words}" for name, words in run.about.items()) + "."]
    rows = list(run.rows.values())
    for group in dict.fromkeys(row.group for row in rows):
        cells = [f"| {r.name} | {time(r.median)} | {_ratio(r).strip()} |" for r in rows if r.group == group]
        parts.append("\n".join([f"### {group}", "", "| | median | ratio (quartiles) |", "|---|---|---|", *cells]))
    return "\n\n".join(parts) + "\n"


def _ratio(row: Row) -> str:
    if row.name == row.reference:
        return f"{1:>8}"
    return f"{_digits(row.ratio):>8} ({_digits(row.low)} to {_digits(row.high)})"


def time(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    return f"{_digits(seconds / size)} {unit}"


def _digits(value: float) -> str:
    """Three of them."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    parser = _Parser(prog="python -m benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("old", nargs="?", type=Path, default=BASELINE, help="by default the stored baseline")
    parser.add_argument("new", nargs="?", type=Path, default=LATEST, help="by default the latest `make bench`")
    parser.add_argument("--threshold", type=_threshold, default=THRESHOLD, help="the least change that counts, of 1")
    parser.add_argument("--write", action="store_true", help="write the tables of OLD into docs/speed.md instead")
    given = parser.parse_args(argv)
    try:
        old = read(given.old)
        if given.write:
            publish(PAGE, BEGIN, markdown(old), True)
            return 0
        new = read(given.new)
    except Unreadable as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    for name in {**old.about, **new.about}:
        if old.about.get(name) != new.about.get(name):
            print(f"{name}: {old.about.get(name, 'none')} -> {new.about.get(name, 'none')}")
    changes = compare(old, new, given.threshold)
    for change in changes:
        if change.kind != "same":
            print(change)
    count = {kind: sum(change.kind == kind for change in changes) for kind in KINDS}
    print(", ".join(f"{number} {kind}" for kind, number in count.items() if number or kind in ("slower", "same")))
    return int(count["slower"] > 0)


if __name__ == "__main__":
    sys.exit(main())
