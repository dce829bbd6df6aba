"""The table of methods: what each is made of, and its measured orders under VP, VE, EDM and Flow.

`python -m benchmarks.methods` prints it, `--write` puts it into docs/methods.md. The orders are those of
`sdegen.testing.check_solver`, which fails where one is not the declared order.
"""

from __future__ import annotations

import inspect
import platform
import time
from pathlib import Path
from typing import Any

import torch

import sdegen as sd
from benchmarks.page import arguments, publish
from sdegen.solvers import methods
from sdegen.testing import check_solver
from sdegen.testing.catalogue import public, variants

PROCESSES = {"VP": sd.VP(), "VE": sd.VE(), "EDM": sd.EDM(), "Flow": sd.Flow(t_max=0.999)}
PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN = "<!-- begin: benchmarks.methods -->"
STRONG = ("sd.euler_maruyama()", "sd.reverse_diffusion()", "sd.ddpm()", "sd.dpmpp_sde(order=1)", "sd.dpmpp_sde()")
"""Methods of one normal a step, whose order on one Brownian path is measured too: 1, as additive noise allows."""


def shipped() -> list[Any]:
    """Every named method in every order; other options as they are, and those that stand for another method."""
    found = [s for f in public(methods) for s in variants(f, inspect.signature(f), {"order": range(1, 6)})]
    found += [sd.dpm(2, singlestep=False), sd.dpmpp(2, singlestep=True), sd.dpmpp(3, singlestep=True)]
    found += [sd.dpmpp_sde(2, singlestep=True), sd.edm(churn=40.0), sd.edm(1, churn=40.0)]
    found += [sd.ddim(0.5), sd.ddpm("large")]
    return [solver for k, solver in enumerate(found) if solver not in found[:k]]


def orders(solver: Any, name: str, **options: Any) -> list[str]:
    """One measured order per process; a failed check is marked."""
    cells = []
    for process in PROCESSES.values():
        outcome = check_solver(solver, process=process, only=[name], raise_on_fail=False, **options).outcomes
        seen = next(o for o in outcome if o.prop.name == name)
        value = "—" if seen.worst is None else f"{seen.worst.value:.2f}"
        cells.append(value if not seen.bad else f"**{value}**")
    return cells


def row(solver: Any) -> str:
    """A line of the table."""
    declared = getattr(solver, "convergence", None)
    kind = "weak" if solver.stochastic else "path"
    cells = ["—"] * 4 if declared is None else orders(solver, "weak_order" if solver.stochastic else "order")
    strong = "—"
    if repr(solver) in STRONG:
        strong = ", ".join(orders(solver, "strong_order", strong_order=1))
    exact = ", ".join(getattr(solver, "exact", ())) or "—"
    plain = type(solver).__mro__[1] if hasattr(solver, "_call") else type(solver)
    parts = [f"`{solver!r}`", plain.__name__, f"{solver.evals}", f"{declared or '—'} ({kind})", *cells, strong, exact]
    return "| " + " | ".join(parts) + " |"


def report() -> str:
    """The whole table."""
    began = time.perf_counter()
    rows = [row(solver) for solver in shipped()]
    head = (
        "| method | made of | evals | declared | "
        + " | ".join(PROCESSES)
        + " | strong (VP, VE, EDM, Flow) | exact for |"
    )
    line = "|---" * 10 + "|"
    versions = f"sdegen {sd.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    first = (
        f"Written by `python -m benchmarks.methods --write` with {versions}, in {time.perf_counter() - began:.0f} s."
    )
    return "\n".join([first, "", head, line, *rows]) + "\n"


def main() -> None:
    """Prints the table; `--write` puts it into the page."""
    write = arguments(__doc__).write
    publish(PAGE, BEGIN, report(), write)


if __name__ == "__main__":
    main()
