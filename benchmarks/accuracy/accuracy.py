"""Error per network evaluation, ours and the peers': `python -m benchmarks.accuracy.accuracy [--quick] [--write]`.

Prints markdown tables; `--write` puts them between the markers of docs/accuracy.md. References, the trained network and
the peers' results are kept in `$SDEGEN_BENCHMARKS` (~/.cache/sdegen-benchmarks): the first run makes them, which takes
about half an hour more.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

import sdegen as sd
from benchmarks.page import arguments, publish

from . import guidance, ours, summary
from .page import PAGE, Table
from .peers import distinct, versions
from .problems import PROBLEMS, PROCESSES
from .runs import BUDGETS, Row, of_peers, of_rival

BEGIN = "<!-- begin: benchmarks.accuracy.accuracy -->"
QUICK = ("ring", "grid", "stiff"), (5, 10, 20)


def work(task: tuple[str, str, tuple[int, ...]]) -> tuple[dict[str, Row], dict[tuple[str, str], Row], Row]:
    """Our rows, the peers', and DPM-Solver++ 2M's at larger budgets, on one problem under one process."""
    name, process, budgets = task
    torch.set_num_threads(1)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    began = time.perf_counter()
    peers = of_peers(PROBLEMS[name], PROCESSES[process], budgets)
    long = of_rival(PROBLEMS[name], PROCESSES[process])
    half = time.perf_counter()
    rows = ours.rows(PROBLEMS[name], PROCESSES[process], budgets)
    print(f"{name}, {process}: peers {half - began:.0f} s, ours {time.perf_counter() - half:.0f} s", file=sys.stderr)
    return rows, peers, long


def report(names: tuple[str, ...], budgets: tuple[int, ...], workers: int) -> str:
    """All of it."""
    began = time.perf_counter()
    tasks = [(name, process, budgets) for name in names for process in PROCESSES]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        done = list(pool.map(work, tasks))
    results = {(name, process): pair for (name, process, _), pair in zip(tasks, done)}
    head = (
        f"Written by `python -m benchmarks.accuracy.accuracy --write` with sdegen {sd.__version__}, "
        f"{', '.join(versions())}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"in {time.perf_counter() - began:.0f} s."
    )
    parts = [head, *summary.sections(results, budgets)]
    if names == tuple(PROBLEMS):
        parts.append(guidance.section())
    parts.append(same())
    for (name, process), (rows, peers, _) in results.items():
        parts.append(f"### `{name}` under {process}\n\n{PROBLEMS[name].statement}; {PROBLEMS[name].samples} samples.")
        parts.append(table(rows, peers, budgets))
    return "\n\n".join(parts) + "\n"


def same() -> str:
    """Which samplers ended the same and were run once."""
    lines = [
        f"- `{peer.name}`: also {', '.join(f'`{name}`' for name in peer.same)}" for peer in distinct(False) if peer.same
    ]
    return "\n".join(["### Samplers that do the same, and are in the tables once", "", *lines])


def table(rows: dict[str, Row], peers: dict[tuple[str, str], Row], budgets: tuple[int, ...]) -> str:
    """Our rows, then every peer's with the best of its grids at every budget; the least mean of a column is bold."""
    best: dict[str, Row] = {}
    for (name, _), row in peers.items():
        kept = best.setdefault(name, {})
        for n, cell in row.items():
            if n not in kept or cell.mean < kept[n].mean:
                kept[n] = cell
    out = Table(["method", *(str(n) for n in budgets)])
    both = [(f"**`{name}`**", row) for name, row in rows.items()] + [(f"{name}", row) for name, row in best.items()]
    least = {n: min((row[n].mean for _, row in both if n in row), default=0.0) for n in budgets}
    for name, row in both:
        out.add(name, *(summary.cell(row.get(n), bold=n in row and row[n].mean == least[n]) for n in budgets))
    return str(out)


def main() -> None:
    """Prints the report; `--write` puts it into the page."""
    given = arguments(__doc__, "three small problems at 5, 10 and 20 evaluations", workers=True)
    names, budgets = QUICK if given.quick else (tuple(PROBLEMS), BUDGETS)
    for name in names:  # before there are workers, which would make them twice
        PROBLEMS[name].source  # noqa: B018 - builds it
    text = report(names, budgets, given.workers)
    publish(PAGE, BEGIN, text, given.write)


if __name__ == "__main__":
    main()
