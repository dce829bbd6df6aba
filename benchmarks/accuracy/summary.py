"""What the tables come to: the default against the best peer, plans against 2M, evaluations to an error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping

from .page import Table
from .runs import LONG, RIVAL, Cell, Row

Key = tuple[str, str]
Results = Mapping[Key, tuple[dict[str, Row], dict[tuple[str, str], Row], Row]]
"""By problem and process: our rows, the peers', and DPM-Solver++ 2M's at larger budgets."""
DEFAULT = "default()"
ERRORS = 1e-2, 1e-3
WORSE = 1.005


def cell(found: Cell | None, bold: bool = False) -> str:
    """`mean / median`, and the share of flips where there are any."""
    if found is None:
        return "—"
    if not math.isfinite(found.mean):
        return "not finite"
    mean = f"**{short(found.mean)}**" if bold else short(found.mean)
    flips = f" ({found.flips:.1%})" if found.flips else ""
    return f"{mean} / {short(found.median)}{flips}"


def short(value: float) -> str:
    """Two digits: 0.012 is 1.2e-2."""
    if not math.isfinite(value):
        return "—"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def geometric(values: Iterable[float]) -> float:
    """The geometric mean; infinite where one of them is."""
    logs = [math.log(v) if v < math.inf else math.inf for v in values]
    return math.exp(sum(logs) / len(logs)) if logs and max(logs) < 700 else math.inf


def singles(results: Results) -> dict[tuple[str, str], dict[Key, Row]]:
    """Rows of single choices (peer, grid) by problem; the grid `own` is `time` on VP and Karras on EDM."""
    found: dict[tuple[str, str], dict[Key, Row]] = {}
    for key, (_, peers, _) in results.items():
        for (name, grid), row in peers.items():
            if grid != "time":
                found.setdefault((name, grid), {})[key] = row
            if grid == "time" or (grid == "karras" and key[1] != "VP" and not name.startswith("k-diffusion")):
                found.setdefault((name, "own"), {})[key] = row
    return {choice: rows for choice, rows in found.items() if len(rows) == len(results)}


def best_single(results: Results, n: int) -> tuple[tuple[str, str], float]:
    """The peer's method and grid of least geometric mean of mean errors over all problems, and that mean."""
    scores = {
        choice: geometric(row[n].mean if n in row else math.inf for row in rows.values())
        for choice, rows in singles(results).items()
    }
    choice = min(scores, key=lambda c: scores[c])
    return choice, scores[choice]


def best_peer(results: Results, key: Key, n: int) -> tuple[float, str]:
    """The least mean error of any peer on any grid on one problem, and whose it is."""
    return min((row[n].mean, f"{name}, {grid}") for (name, grid), row in results[key][1].items() if n in row)


def against_single(results: Results, budgets: tuple[int, ...], name: str) -> str:
    """One of our methods against the best single peer method and grid over all problems."""
    out = Table(["NFE", "best single peer and grid", "its error", name, "ratio", "problems where the peer is better"])
    for n in budgets:
        choice, theirs = best_single(results, n)
        rows = singles(results)[choice]
        own = geometric(pair[0][name][n].mean for pair in results.values())
        worse = [
            f"`{key[0]}` {key[1]} ({ratio:.2f} times)"
            for key, (mine, _, _) in results.items()
            if (ratio := mine[name][n].mean / rows[key][n].mean) > WORSE
        ]
        out.add(str(n), ", ".join(choice), short(theirs), short(own), f"{own / theirs:.2f}", ", ".join(worse) or "none")
    return str(out)


def against_best(results: Results, n: int, names: list[str]) -> str:
    """Our error at n evaluations as a part of that of DPM-Solver++ 2M (Karras), and of the best peer, per problem."""
    out = Table(["problem", "best peer", *(f"{name}: 2M / best" for name in names)])
    totals: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for key, (mine, peers, _) in results.items():
        rival, (theirs, whose) = peers[RIVAL][n].mean, best_peer(results, key, n)
        for name in names:
            totals[name].append((rival / mine[name][n].mean, theirs / mine[name][n].mean))
        parts = (f"{totals[name][-1][0]:.1f} / {totals[name][-1][1]:.2f}" for name in names)
        out.add(f"`{key[0]}` {key[1]}", f"{whose}: {short(theirs)}", *parts)
    means = (" / ".join(f"{geometric(side):.2f}" for side in zip(*totals[name])) for name in names)
    out.add("geometric mean", "", *means)
    return str(out)


def needed(row: Row, target: float) -> float:
    """Evaluations to a mean error, interpolated in the logarithms of both; infinite where it is not reached."""
    points = [(n, row[n].mean) for n in sorted(row) if 0 < row[n].mean < math.inf]
    if not points or points[0][1] <= target:
        return float(points[0][0]) if points else math.inf
    for (n, high), (m, low) in itertools.pairwise(points):
        if low <= target:
            part = (math.log(high) - math.log(target)) / (math.log(high) - math.log(low))
            return math.exp(math.log(n) + part * (math.log(m) - math.log(n)))
    return math.inf


def to_errors(results: Results, budgets: tuple[int, ...], names: list[str]) -> str:
    """Evaluations to a mean error of ERRORS: DPM-Solver++ 2M (Karras), the best peer, ours."""
    out = Table(["problem", "dpmpp_2m, Karras", "best peer", *names])
    ratios: dict[str, list[list[float]]] = {name: [[] for _ in ERRORS] for name in names}
    for key, (mine, peers, long) in results.items():
        rival = {**peers[RIVAL], **long}
        columns = [[rival], [*peers.values(), rival], *([mine[name]] for name in names)]
        counts = [[min(needed(row, e) for row in rows) for e in ERRORS] for rows in columns]
        out.add(f"`{key[0]}` {key[1]}", *(" / ".join(_count(v, max(budgets)) for v in count) for count in counts))
        for name, count in zip(names, counts[2:]):
            for side, (theirs, own) in zip(ratios[name], zip(counts[0], count)):
                side.append(min(theirs, float(max(LONG))) / own)
    cells = (" / ".join(_fewer(side) for side in ratios[name]) for name in names)
    out.add("geometric mean of dpmpp_2m's over ours", "", "", *cells)
    return str(out)


def _fewer(ratios: list[float]) -> str:
    missed = sum(ratio == 0 for ratio in ratios)
    return f"not reached on {missed}" if missed else f"{geometric(ratios):.1f} times fewer"


def _count(value: float, top: int) -> str:
    return f"{value:.1f}" if value < math.inf else f"> {top}"


def sections(results: Results, budgets: tuple[int, ...]) -> list[str]:
    """The summary's parts, in markdown."""
    mine = list(next(iter(results.values()))[0])
    names = [DEFAULT, *(name for name in mine if name.startswith("plan"))]
    parts = [
        "### The default and the best single peer\n\nErrors are geometric means, over all problems and both "
        "processes, of the mean error. At every number of evaluations the peer's method and grid are the best there.",
        against_single(results, budgets, DEFAULT),
    ]
    for n in (10, 20):
        parts.append(
            f"### Ratios at {n} evaluations\n\nThe error of DPM-Solver++ 2M on the Karras grid, and that of the best "
            "of all peers and grids on the problem, divided by ours: above 1 ours is smaller."
        )
        parts.append(against_best(results, n, names))
    parts.append(
        "### Evaluations to a mean error of 1e-2 / 1e-3\n\nInterpolated between the tables' numbers of evaluations, in "
        "the logarithms of both; DPM-Solver++ 2M was run with up to 300, which is what it counts as "
        "in the geometric means where that was not enough."
    )
    parts.append(to_errors(results, budgets, names))
    return parts
