"""Which generic method is best without a pilot: `python -m benchmarks.accuracy.defaults [--quick] [--write]`.

Frame x variable x order x corrector x grid, selected on three problems by the geometric mean of the mean errors under
VP and EDM, and confirmed on the three others, which take no part in the selection.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.page import arguments, publish
from sdegen.grids import Grid, angular, by_snr, karras

from .page import PAGE, Table
from .problems import PROBLEMS, PROCESSES, Problem, lam
from .runs import of_peers, ours
from .summary import Results, geometric, short, singles

BEGIN = "<!-- begin: benchmarks.accuracy.defaults -->"
BUDGETS = 5, 10, 20, 50
SELECTION, CONFIRMATION = ("ring", "digits", "stiff"), ("grid", "images", "net")


def seventh(value: Tensor) -> Tensor:
    """Interpolation in `(sigma/alpha)^(1/7)`."""
    return torch.exp(-value / 7)


class Choice(NamedTuple):
    """A candidate."""

    frame: str
    order: int
    correct: bool
    grid: str

    def __str__(self) -> str:
        return f"order {self.order}{' corrected' if self.correct else ''}, {self.frame}, {self.grid}"


BEFORE = Choice("NOISE", 3, False, "Karras 7")
"""The default before this study."""

FRAMES: dict[str, sd.Frame] = {
    "DATA": sd.DATA,
    "NOISE": sd.NOISE,
    "ANGLE(0.5) in s^(1/7)": sd.ANGLE(sigma_data=0.5, variable=seventh),
    "ANGLE(1) in lam": sd.ANGLE(variable=lam),
    "ANGLE(1) in s^(1/7)": sd.ANGLE(variable=seventh),
    "FLOW in s^(1/7)": sd.FLOW(variable=seventh),
}
GRIDS: dict[str, Grid] = {
    "Karras 7": karras,
    "log-SNR": by_snr,
    **{
        f"angle({rho}, {center})": partial(angular, rho=rho, center=center)
        for rho, center in ((3.0, 0.5), (4.0, 1.0), (5.0, 1.0))
    },
}
ORDERS = ((2, False), (3, False), (4, False), (3, True), (4, True))


def score(choice: Choice, names: Iterable[str], n: int) -> float:
    """The geometric mean of the mean errors over problems and processes."""
    solver = sd.Multistep(choice.order, FRAMES[choice.frame], correct=choice.correct)
    return geometric(
        ours(solver, PROBLEMS[name], process, GRIDS[choice.grid], n).mean
        for name in names
        for process in PROCESSES.values()
    )


def select(names: tuple[str, ...], budgets: tuple[int, ...]) -> dict[int, list[tuple[float, Choice]]]:
    """All candidates per number of evaluations, best first."""
    choices = [Choice(f, p, c, g) for f in FRAMES for p, c in ORDERS for g in GRIDS]
    found: dict[int, list[tuple[float, Choice]]] = {}
    for n in budgets:
        began = time.perf_counter()
        found[n] = sorted((score(choice, names, n), choice) for choice in choices)
        print(f"{n} evaluations: {len(choices)} candidates, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return found


def peers(names: tuple[str, ...]) -> Results:
    """The peers' rows, in the form of `summary`."""
    return {(n, p): ({}, of_peers(PROBLEMS[n], process), {}) for n in names for p, process in PROCESSES.items()}


def of_default(names: tuple[str, ...], n: int) -> float:
    """`default()` itself, on its own grid."""
    solver = sd.default()
    pairs: list[tuple[Problem, sd.Process]] = [(PROBLEMS[name], p) for name in names for p in PROCESSES.values()]
    return geometric(ours(solver, problem, process, solver.grid, n).mean for problem, process in pairs)


def report(budgets: tuple[int, ...], top: int) -> str:
    """The tables."""
    found = select(SELECTION, budgets)
    first, second = (singles(peers(names)) for names in (SELECTION, CONFIRMATION))
    best = Table(["NFE", "candidate", f"error on {', '.join(SELECTION)}", f"error on {', '.join(CONFIRMATION)}"])
    for n in budgets:
        row = min(
            first, key=lambda choice: geometric(r[n].mean if n in r else math.inf for r in first[choice].values())
        )
        errors = (geometric(r[n].mean for r in side[row].values()) for side in (first, second))
        best.add(str(n), f"*{', '.join(row)}: the best single peer on the selection*", *(short(e) for e in errors))
        best.add(str(n), f"*{BEFORE}*", *(short(score(BEFORE, s, n)) for s in (SELECTION, CONFIRMATION)))
        best.add(str(n), "**`default()`**", *(short(of_default(names, n)) for names in (SELECTION, CONFIRMATION)))
        for value, choice in found[n][:top]:
            best.add(str(n), str(choice), short(value), short(score(choice, CONFIRMATION, n)))
    return f"{len(found[budgets[0]])} candidates.\n\n{best}\n"


def main() -> None:
    """Prints the tables; `--write` puts them into the page."""
    given = arguments(__doc__, "10 and 20 evaluations")
    torch.set_num_threads(1)
    text = report((10, 20) if given.quick else BUDGETS, 3)
    publish(PAGE, BEGIN, text, given.write)


if __name__ == "__main__":
    main()
