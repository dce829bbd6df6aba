"""The order at which a solver's error falls on a problem: errors at doubled steps, against a tight solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sdegen.bench.contenders import Contender, Drawn, Ours, drawn
from sdegen.bench.problems import Problem
from sdegen.tolerance import adaptive_default

STEPS = (20, 40, 80, 160)
SAMPLES = 48
TIGHT = 1e-10


class Fall(NamedTuple):
    """Errors (steps, error) of a contender, and the order that its solver declares, where it does."""

    points: list[tuple[float, float]]
    declared: float | None


def falls(problem: Problem, contenders: Sequence[Contender], seed: int, batch_size: int | None) -> dict[str, Fall]:
    """The mean terminal errors of the deterministic contenders on grids, by name, in float64 problems; else nothing."""
    if problem.dtype != torch.float64:
        return {}
    wanted = [c for c in contenders if not c.stochastic and not c.adaptive and isinstance(c, Ours)]
    solver: Any = adaptive_default(problem.model)
    if not wanted:
        return {}
    exact = drawn(problem, SAMPLES, seed, batch_size, solver=solver, tol=TIGHT).x
    found = {}
    for c in wanted:
        points = []
        for steps in STEPS:
            made: Drawn = c.draw(problem, SAMPLES, steps * c.least + problem.denoises, seed, batch_size)
            error = (made.x - exact).flatten(1).square().mean(1).sqrt().mean()
            points.append((float(steps), float(error)))
        order = getattr(c.solver, "convergence", None)
        label = c.name if c.grid == "own" else f"{c.name}, {c.grid}"
        found[label] = Fall(points, None if order is None else float(order))
    return found
