"""The demo: real handwritten digits, an exact score fitted to them, every method measured against the exact law."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sdegen import plots
from sdegen.demo.digits import fit
from sdegen.demo.measurements import BUDGETS, METHODS, SAMPLES, Report, Row, check, measure, sliced_distance
from sdegen.demo.report import FILES, draw, overview, table, write_csv

__all__ = [
    "BUDGETS",
    "FILES",
    "METHODS",
    "SAMPLES",
    "Report",
    "Row",
    "check",
    "fit",
    "measure",
    "overview",
    "run",
    "sliced_distance",
    "table",
]


def run(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    methods: Sequence[str] = tuple(METHODS),
    budgets: Sequence[int] = BUDGETS,
    quiet: bool = False,
) -> Report:
    """Sample with every method at every NFE budget; write `FILES` into the folder `out` and print the table.

    The same seed gives the same numbers, seconds excepted. Raises InvalidArgumentError on unknown methods, budgets too
    small for a step and the last denoising, and missing packages; OSError if `out` cannot be written.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    check(methods, budgets, samples)
    plots.figure(1.0, 1.0)  # what cannot be drawn or written is told now, not after a minute of sampling
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied", str(folder))
    digits = fit(seed)
    say(
        f"A mixture of {len(digits.mixture)} Gaussians is fitted to {len(digits.images):,} handwritten digits of 8x8; "
        f"its score is exact.\n{len(methods)} methods draw {samples:,} samples each, within budgets of "
        f"{', '.join(map(str, budgets))} evaluations."
    )
    report = measure(digits, seed, samples, methods, budgets, quiet)
    say("\n" + table(report) + "\n")
    write_csv(report, folder / "results.csv")
    draw(digits, report, seed, folder)
    say(f"Written to {folder}: {', '.join(FILES)}")
    return report
