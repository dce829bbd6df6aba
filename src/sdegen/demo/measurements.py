"""Every method of the demo at every budget of network evaluations (NFE), against exact samples of the mixture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.demo.digits import Digits
from sdegen.errors import InvalidArgumentError, hint
from sdegen.loop.solution import Progress
from sdegen.processes.schedules import VP
from sdegen.progress import told_bar
from sdegen.sampling.sample import sample
from sdegen.scores.model import ScoreModel
from sdegen.solvers.base import Solver
from sdegen.solvers.methods import ddim, default, dpmpp, euler_maruyama, pc, unipc

BUDGETS = (5, 10, 20, 50, 100)
SAMPLES = 2000
PROJECTIONS = 256
EXACT_SETS = 16


class Method(NamedTuple):
    """A solver, and the name it is shown under."""

    label: str
    solver: Solver


METHODS: Mapping[str, Method] = {
    "euler_maruyama": Method("Euler-Maruyama", euler_maruyama()),
    "pc": Method("Predictor-corrector", pc()),
    "ddim": Method("DDIM", ddim()),
    "dpmpp": Method("DPM-Solver++(2)", dpmpp(2)),
    "unipc": Method("UniPC(3)", unipc(3)),
    "default": Method("sdegen default", default()),
}


class Row(NamedTuple):
    """One method at one budget: evaluations used, distance to the exact law, seconds of sampling."""

    method: str
    budget: int
    nfe: int
    distance: float
    seconds: float


class Report(NamedTuple):
    """What was measured.

    floor, noise: mean and standard deviation of the distance between two sets of exact samples; spread: the standard
    deviation of the data in one direction; samples: how many in each set.
    """

    rows: list[Row]
    floor: float
    noise: float
    spread: float
    samples: int

    def exact(self, row: Row) -> bool:
        """Whether exact samples could well have been as far: at most two standard deviations over the floor."""
        return row.distance <= self.floor + 2 * self.noise

    def of(self, method: str) -> list[Row]:
        """The rows of one method."""
        return [row for row in self.rows if row.method == method]

    @property
    def methods(self) -> list[str]:
        """The methods, each once, in the order of the rows."""
        return list(dict.fromkeys(row.method for row in self.rows))


def check(methods: Sequence[str], budgets: Sequence[int], samples: int) -> None:
    """Raises InvalidArgumentError unless every method is known and can take a step at every budget."""
    if not methods or not budgets:
        raise InvalidArgumentError("give at least one method and one NFE budget")
    if samples < 2:
        raise InvalidArgumentError(f"samples must be at least 2, got {samples}")
    for name in methods:
        if name not in METHODS:
            raise InvalidArgumentError(f"unknown method {name!r}: {hint(name, list(METHODS), 'there are')}")
        least = METHODS[name].solver.evals + 1
        if min(budgets) < least:
            raise InvalidArgumentError(
                f"{name} needs an NFE of at least {least} (one step and the last denoising), got {min(budgets)}"
            )


def directions(seed: int, count: int, dim: int) -> Tensor:
    """Unit vectors `[count, dim]`, uniform on the sphere."""
    v = noises.normals(noises.seeds(seed, count), (dim,), (0, 0, 0, 0), dtype=torch.float64)
    return torch.nn.functional.normalize(v)


def sliced_distance(a: Tensor, b: Tensor, along: Tensor) -> float:
    """The sliced Wasserstein-2 distance of two sets of samples `[n, *S]`, over the directions `[P, D]`.

    `sqrt(mean over directions and ranks of (sorted(a along) - sorted(b along))^2)` (Bonneel et al. 2015, sec. 2).
    """
    p, q = ((v.double().flatten(1) @ along.T).sort(0).values for v in (a, b))
    return float((p - q).square().mean().sqrt())


def measure(
    digits: Digits, seed: int, samples: int, methods: Sequence[str], budgets: Sequence[int], quiet: bool = True
) -> Report:
    """Every method at every budget from the same sample seeds, against one set of exact samples."""
    law, model = digits.mixture, digits.mixture.score(VP())
    sampling, slicing, *sets = noises.seeds(seed, EXACT_SETS + 3).tolist()
    along = directions(slicing, PROJECTIONS, 64)
    truth, *others = (law.sample(samples, seed=s) for s in sets)
    floors = torch.tensor([sliced_distance(truth, other, along) for other in others])
    sample(model, (samples, 8, 8), steps=1, progress=False)  # the first call of all is slow, whatever the method
    jobs = [(name, budget) for name in methods for budget in budgets]
    rows = []
    with told_bar(sum(budget for _, budget in jobs), False if quiet else None) as bar:
        for name, budget in jobs:
            bar.set_description_str(f"{METHODS[name].label}, NFE {budget}")
            x, nfe, seconds = timed(model, METHODS[name].solver, budget, samples, sampling, bar)
            rows.append(Row(name, budget, nfe, sliced_distance(x, truth, along), seconds))
            bar.update(budget - nfe + 1)
    spread = float((law.cov().trace() / 64).sqrt())
    return Report(rows, float(floors.mean()), float(floors.std()), spread, samples)


def timed(model: ScoreModel, solver: Solver, budget: int, n: int, seed: int, bar: Any) -> tuple[Tensor, int, float]:
    """n samples by at most `budget` evaluations, of which the last denoises; how many were used; the seconds."""
    used = 1

    def observe(progress: Progress) -> None:
        nonlocal used
        used = progress.nfe + 1
        bar.update(solver.evals)

    begin = time.perf_counter()
    steps = (budget - 1) // solver.evals
    x = sample(model, (n, 8, 8), steps=steps, solver=solver, seed=seed, observe=observe, progress=False)
    return x, used, time.perf_counter() - begin
