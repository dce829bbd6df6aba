"""The demo: real handwritten digits; an exact score fitted to them, on which every method is measured; a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sdegen import plots
from sdegen.demo import network
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
    quick: bool = False,
    steps: int = network.STEPS,
    quiet: bool = False,
) -> Report:
    """Sample an exact mixture with every method at every budget; train a network; write `FILES`, print the tables.

    quick: the mixture alone; steps: those of the training. The folder `out` gets `network.FILES` too, if there is one.

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
    files: tuple[str, ...] = FILES
    if not quick:
        say("A network is trained on the digits, with a score that is learned; --quick leaves it out.")
        done = network.train(folder, seed, steps=steps, quiet=quiet)
        say("\n" + network.table(done) + "\n\n" + str(done.audit) + "\n")
        network.write(done, folder)
        files += network.FILES
    say(f"Written to {folder}: {', '.join(files)}")
    return report
