"""docs/benchmarks.md, made of `sdegen bench`: `python -m benchmarks.tables [--quick] [--write]`.

Every table is what the command beside it prints, but for seconds. Runs are kept in `$SDEGEN_BENCHMARKS`, so that an
interrupted one goes on; the first takes about half an hour on two cores.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from benchmarks.accuracy.cache import folder
from benchmarks.page import arguments, publish
from sdegen.bench.machine import about
from sdegen.bench.rows import Rows
from sdegen.bench.tables import answers, entry, markdown
from sdegen.cli import main as sdegen

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN = "<!-- begin: benchmarks.tables -->"
OURS = "default,plan1000,dpmpp2,unipc3,sa_solver3,er_sde2,ddpm,pc,adams"
COMMANDS = {
    "Handwritten digits": f"--problem digits-VP --solvers {OURS} --nfe 5,10,20,50 --metrics sw2,rmse --peers",
    "Two rings": f"--problem rings-EDM --solvers {OURS} --nfe 5,10,20,50 --metrics sw2,modes,rmse --peers",
    "Widths from 0.002 to 2": f"--problem stiff-VP --solvers {OURS} --nfe 10,20,50 --metrics covariance,rmse --peers",
    "An error in the score": "--problem rings-VP --solvers default,plan1000,dpmpp2,unipc3,ddim,heun --nfe 10,20,50 "
    "--metrics sw2,rmse --score-error 0.05:low,0.05:high,0.05:all",
}
"""What is run, by the title of its section; `--out` comes on top."""


def read(path: Path) -> Rows:
    """The rows of a CSV file that the command wrote."""
    import csv

    numbers = {"budget", "nfe", "value", "low", "high", "floor", "seconds", "memory"}
    with path.open() as file:
        return Rows({k: float(v) if k in numbers else v for k, v in row.items()} for row in csv.DictReader(file))


def section(title: str, options: str) -> str:
    """One command, what it says in a few lines, and its tables."""
    out = folder() / ("bench-" + "".join(c if c.isalnum() else "-" for c in title.lower()))
    argv = ["bench", *shlex.split(options)]
    began = time.perf_counter()
    status = sdegen([*argv, "--out", str(out), "--quiet"])
    if status:
        raise SystemExit(status)
    print(f"{title}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    rows = read(out / "results.csv")
    parts = [f"### {title}", "```console\n" + shlex.join(["sdegen", *argv, "--out", "report/"]) + "\n```"]
    best = answers(rows)
    if any(a.peer for a in best):
        head = "| model, metric | NFE | sdegen's best | value, floor | the others' best | value, floor | nearer |"
        lines = [head, "|---|---|---|---|---|---|---|"]
        for a in best:
            if a.ours is not None and a.peer is not None:
                cells = [f"{a.model}, {a.metric}", f"{a.budget:g}"]
                for row in (a.ours, a.peer):
                    cells += [str(entry(row)), f"{row['value']:.3g}, {row['floor']:.3g}"]
                lines.append("| " + " | ".join([*cells, a.verdict]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, markdown(rows, "####").strip()])


def main() -> None:
    """Prints the tables; `--write` puts them into the page."""
    given = arguments(__doc__, quick="the first section, with 100 samples")
    chosen = dict(list(COMMANDS.items())[:1]) if given.quick else COMMANDS
    more = " --samples 100" if given.quick else ""
    parts = [section(title, options + more) for title, options in chosen.items()]
    versions = ", ".join(f"{name} {words}" for name, words in about(_peers()))
    publish(
        PAGE,
        BEGIN,
        f"Written by `python -m benchmarks.tables --write` with {versions}.\n\n" + "\n\n".join(parts) + "\n",
        given.write,
    )


def _peers() -> dict[str, str]:
    from sdegen.bench.names import peer_versions

    return peer_versions()


if __name__ == "__main__":
    main()
