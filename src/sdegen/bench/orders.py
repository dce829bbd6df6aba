"""The order at which a solver's error falls on a problem: errors at doubled steps, against a tight solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sdegen.bench.contenders import Contender, Ours, drawn
from sdegen.bench.problems import Problem
from sdegen.bench.runs import Settings, fingerprint, made_in
from sdegen.bench.store import Place, Store
from sdegen.bench.tables import named
from sdegen.bench.targets import solved, tightest

STEPS = (20, 40, 80, 160)
SAMPLES = 48
TIGHT = 1e-10
"""The tolerance of the reference."""


class Fall(NamedTuple):
    """Errors (steps, error) of a contender, the order that its solver declares, and the error that rounding hides."""

    points: list[tuple[float, float]]
    declared: float | None
    floor: float


def falls(problem: Problem, contenders: Sequence[Contender], seed: int, batch_size: int | None) -> dict[str, Fall]:
    """The mean terminal errors of our deterministic contenders on grids, by name."""
    wanted = _wanted(contenders)
    if not wanted:
        return {}
    tight = tightest(problem, TIGHT)
    exact = solved(problem, SAMPLES, seed, batch_size, tight)
    found = {}
    for c in wanted:
        points = []
        for steps in STEPS:
            x = drawn(problem, SAMPLES, seed, batch_size, solver=c.solver, grid=c.times, steps=steps).x
            points.append((float(steps), float((x - exact).flatten(1).square().mean(1).sqrt().mean())))
        order = getattr(c.solver, "convergence", None)
        found[str(named(c))] = Fall(points, None if order is None else float(order), 3 * tight * problem.scale)
    return found


def kept_falls(problem: Problem, contenders: Sequence[Contender], settings: Settings, store: Store) -> dict[str, Fall]:
    """`falls`, made once and read from the store from then on."""
    wanted, place = _wanted(contenders), Place()
    if store.folder is not None:
        marks = [store.mark(problem, fingerprint), *(store.mark(c, made_in) for c in wanted)]
        place = store.place("orders", *marks, f"{settings.seed} {settings.batch_size}")

    def read(found: Any) -> dict[str, Fall]:
        made = {
            name: Fall([(float(x), float(y)) for x, y in points], declared, float(floor))
            for name, (points, declared, floor) in found.items()
        }
        if list(made) != [str(named(c)) for c in wanted]:
            raise ValueError("orders of others")
        return made

    return store.made(place, read, lambda: falls(problem, contenders, settings.seed, settings.batch_size), dict)


def _wanted(contenders: Sequence[Contender]) -> list[Ours]:
    """Those whose errors have an order: our deterministic ones on grids."""
    return [c for c in contenders if isinstance(c, Ours) and not c.stochastic and not c.adaptive]
