"""What a benchmark compares: solvers with their grids, and calibrated plans; others.py has those of other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.bench.problems import Problem
from sdegen.calibration.calibrate import calibrate
from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid
from sdegen.loop.solution import FAILED, Solution, SolveError
from sdegen.sampling.sample import draw
from sdegen.scores.model import ScoreModel
from sdegen.solvers.base import Solver

LEAST, MOST = 16, 64
"""Evaluations of a pilot, and steps of a plan."""


class Drawn(NamedTuple):
    """Samples `[n, *S]`, and the network evaluations that one of them took, in the mean."""

    x: Tensor
    nfe: float


class Contender(Protocol):
    """A sampler in a benchmark.

    name, grid and library: as in tables; stochastic: whether it draws noise beyond the start, so that it has no exact
    end to be compared with. least: the smallest number of evaluations it can run with, beside a last denoising.
    `draw` makes n samples of a problem from a seed: start i is that of `sdegen.sample` with the seed, by at most
    `budget` evaluations, the last denoising included where the problem has one, or, where it is below 1, to the
    tolerance `budget`. `ready` does what is done once before that, and is not timed.
    """

    @property
    def name(self) -> str: ...
    @property
    def grid(self) -> str: ...
    @property
    def library(self) -> str: ...
    @property
    def stochastic(self) -> bool: ...
    @property
    def adaptive(self) -> bool: ...
    @property
    def least(self) -> int: ...
    def ready(self, problem: Problem, budget: float, seed: int, batch_size: int | None) -> Contender: ...
    def draw(self, problem: Problem, n: int, budget: float, seed: int, batch_size: int | None) -> Drawn: ...


@dataclass(frozen=True)
class Ours:
    """A solver of this library; `times` None is the solver's own grid; sources: a hash of the files it is made in."""

    name: str
    solver: Solver
    grid: str = "own"
    times: Grid | None = None
    library: str = "sdegen"
    steps: int | None = None
    sources: str = ""

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return self.solver.stochastic

    @property
    def adaptive(self) -> bool:
        """Whether it runs to a tolerance: on a grid that is named it does not."""
        return self.times is None and bool(getattr(self.solver, "adaptive", False))

    @property
    def least(self) -> int:
        """One step."""
        return self.solver.evals

    def ready(self, problem: Problem, budget: float, seed: int, batch_size: int | None) -> Ours:
        """With the steps that the budget allows."""
        if budget < 1:
            return self

        def cost(steps: int) -> float:
            return drawn(idle(problem), 1, 0, None, solver=self.solver, grid=self.times, steps=steps).nfe

        return replace(self, steps=affordable(cost, budget, int(budget) - problem.denoises, self.solver.evals))

    def draw(self, problem: Problem, n: int, budget: float, seed: int, batch_size: int | None) -> Drawn:
        """See `Contender`."""
        if budget < 1:
            return drawn(problem, n, seed, batch_size, solver=self.solver, tol=budget)
        steps = self.ready(problem, budget, seed, batch_size).steps if self.steps is None else self.steps
        return drawn(problem, n, seed, batch_size, solver=self.solver, grid=self.times, steps=steps)


@dataclass(frozen=True)
class Calibrated:
    """A plan, made anew for every problem and budget from `pilot` evaluations, which are in no count and no time.

    Raises InvalidArgumentError on a pilot that is too short to be one.
    """

    pilot: int = 1000
    library: str = "sdegen"
    grid: str = "own"
    stochastic: bool = False
    adaptive: bool = False
    least: int = 1

    def __post_init__(self) -> None:
        if 0 < self.pilot < LEAST:
            raise InvalidArgumentError(
                f"a plan needs a pilot of at least {LEAST} evaluations, or none; got {self.pilot}"
            )

    @property
    def name(self) -> str:
        """The evaluations spent once, before sampling, are part of the name."""
        return f"plan{self.pilot}"

    def ready(self, problem: Problem, budget: float, seed: int, batch_size: int | None) -> Ours:
        """The plan for this problem and budget, of `MOST` steps at most."""
        plan = calibrate(
            problem.model,
            problem.shape,
            nfe=min(int(budget), MOST + problem.denoises),
            pilot=self.pilot,
            denoise=problem.denoises,
            seed=int(noises.seeds(seed, 3)[2]),
            dtype=problem.dtype,
            batch_size=batch_size,
        )
        return Ours(self.name, plan, steps=plan.steps)

    def draw(self, problem: Problem, n: int, budget: float, seed: int, batch_size: int | None) -> Drawn:
        """See `Contender`."""
        return self.ready(problem, budget, seed, batch_size).draw(problem, n, budget, seed, batch_size)


def idle(problem: Problem) -> Problem:
    """The same problem with a model that costs nothing, to count evaluations with."""
    model = ScoreModel(problem.process, lambda x, time: torch.zeros_like(x), "data")
    return replace(problem, model=model, dtype=torch.float64)


def affordable(cost: Callable[[int], float], budget: float, guess: int, evals: int) -> int:
    """The most steps whose evaluations are within a budget, as counted; 0 where even one step's are not."""
    steps = guess // evals
    while steps > 0 and cost(steps) > budget:
        steps -= 1
    return steps


def drawn(problem: Problem, n: int, seed: int, batch_size: int | None, **options: Any) -> Drawn:
    """Samples of a problem by `sdegen.sample`; those that failed are NaN."""
    given: dict[str, Any] = {"batch_size": batch_size, "dtype": problem.dtype, "denoise": problem.denoises}
    try:
        shape = (n, *problem.shape)
        found = draw(problem.model, shape, seed=seed, progress=False, **given, **options)
    except SolveError as error:  # of samples that are not finite: the others are as good as ever
        partial: object = error.partial
        if not isinstance(partial, Solution) or len(partial.x) != n:
            raise
        found = partial
    failed = torch.isin(found.status, torch.tensor([int(s) for s in FAILED], device=found.status.device))
    x = found.x.masked_fill(failed.reshape(-1, *(1,) * len(problem.shape)), math.nan)
    return Drawn(x, float(found.nfe.double().mean()))
