"""Adaptive solves beside torchdiffeq, torchode and scipy: `python -m benchmarks.adaptive [--quick] [--write]`.

Prints markdown tables; `--write` puts them between the markers of docs/adaptive.md. References, the trained network and
the peers' sweeps are kept in `$SDEGEN_BENCHMARKS` (~/.cache/sdegen-benchmarks): the first run makes them.
"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from pathlib import Path

import torch

import sdegen as sd
from benchmarks.page import arguments, publish

from . import cost, laws, page, peers, queue
from .problems import SAMPLES, cases
from .runs import IN_TIME, METHODS, sweep

PAGE = Path(__file__).parents[2] / "docs" / "adaptive.md"
BEGIN = "<!-- begin: benchmarks.adaptive -->"
QUICK = ("ring", "grid")


def report(names: tuple[str, ...], quick: bool) -> str:
    """All tables."""
    began = time.perf_counter()
    every = cases(names)
    results: page.Results = {}
    in_time = {}
    for case in every:
        key, before = (case.name, case.process_name), time.perf_counter()
        results[key] = {m.name: sweep(m, case) for m in METHODS.values() if case.name in m.only}
        if isinstance(case.process, sd.VP):
            in_time[key] = sweep(IN_TIME, case)
        print(f"{case.name}, {case.process_name}: {time.perf_counter() - before:.0f} s", file=sys.stderr, flush=True)
    parts = [
        page.ratios(results),
        page.overview(results),
        page.missed(results),
        page.promise(results),
        page.estimates(results),
        page.hazards(results, in_time),
    ]
    for section in (
        lambda: cost.section(3 if quick else 5),
        lambda: queue.section(1 if quick else 3),
        lambda: laws.section(500 if quick else 3000),
    ):
        before = time.perf_counter()
        parts.append(section())
        print(f"{parts[-1].splitlines()[0]}: {time.perf_counter() - before:.0f} s", file=sys.stderr, flush=True)
    head = (
        f"Written by `python -m benchmarks.adaptive --write` with sdegen {sd.__version__}, {peers.versions()}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, in {time.perf_counter() - began:.0f} s."
    )
    return "\n\n".join([head, *parts, page.details(results, every)]) + "\n"


def main() -> None:
    """Prints the report; `--write` puts it into the page."""
    given = arguments(__doc__, quick="two problems, fewer samples and rounds")
    warnings.simplefilter("ignore")  # peers' deprecations
    torch.set_num_threads(1)
    publish(PAGE, BEGIN, report(QUICK if given.quick else tuple(SAMPLES), given.quick), given.write)


if __name__ == "__main__":
    main()
