"""Samplers of other libraries as contenders: what they ask a model, and how they are run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.bench.contenders import Drawn, affordable, idle
from sdegen.bench.problems import Problem
from sdegen.grids import Grid
from sdegen.level import Level
from sdegen.scores.model import place
from sdegen.testing.guards import seeded


class View:
    """A problem's model as other libraries' samplers ask for it; it counts the rows that it is asked for.

    failed: the first error that the model itself raised.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.process, self.rows = problem, problem.process, 0
        self.dtype = place(problem.model.module, problem.dtype, None, problem.model.device)[0]
        self.failed: Exception | None = None
        self._levels: dict[float, Level] = {}

    def denoise(self, y: Tensor, s: Any) -> Tensor:
        """`E[data | y]` of `y = x/alpha` at the level `s = sigma/alpha`, a number, or `[B]` of one value."""
        value = float(torch.as_tensor(s).flatten()[0])
        if value not in self._levels:
            self._levels[value] = self.process.at(-torch.tensor(value, dtype=torch.float64).log())
        level = self._levels[value]
        return self.ask(y * level.alpha, level, "data")

    def score(self, x: Tensor, t: Any) -> Tensor:
        """The score of x at the time t."""
        return self.ask(x, self.process.level(torch.as_tensor(t, dtype=torch.float64)), "score")

    def ask(self, x: Tensor, level: Level, want: str = "data") -> Tensor:
        """A prediction of x at a level `[]` or `[B]`."""
        self.rows += len(x)
        try:
            # libraries take levels in float64, and so the state
            answer: Tensor = self.problem.model(x.to(self.dtype), level, want)
        except Exception as error:
            self.failed = self.failed or error
            raise
        return answer.to(x.dtype)

    def end(self, x: Tensor) -> Tensor:
        """x at t_min, denoised where the problem's samples are."""
        level = self.process.level(self.process.t_min)
        return self.ask(x, level, "data") if self.problem.denoises else x


def bounded(process: Any) -> Any:
    """The process without an end that has no signal, where the levels of other libraries, sigma/alpha, are infinite."""
    if not process.open_ends[0]:
        return process
    return replace(process, t_max=float(process.at(process.edges[0]).t))


@dataclass(frozen=True)
class Peer:
    """A sampler of another library.

    run: `(view, x [n, *S], times [steps + 1], tol) -> x` at the last time; an adaptive one gets the two ends and a
    tolerance, the others None. times: the grid, called `grid`. evals: evaluations a step. version: the library's.
    """

    name: str
    library: str
    run: Callable[[View, Tensor, Tensor, float | None], Tensor]
    grid: str
    times: Grid
    stochastic: bool = False
    adaptive: bool = False
    evals: int = 1
    version: str = ""
    steps: int | None = None

    @property
    def least(self) -> int:
        """One step."""
        return self.evals

    def ready(self, problem: Problem, budget: float, seed: int, batch_size: int | None) -> Peer:
        """With the steps that the budget allows."""
        if budget < 1:
            return self

        def cost(steps: int) -> float:
            return replace(self, steps=steps).draw(idle(problem), 1, budget, 0, None).nfe

        return replace(self, steps=affordable(cost, budget, int(budget) - problem.denoises, self.evals))

    def draw(self, problem: Problem, n: int, budget: float, seed: int, batch_size: int | None) -> Drawn:
        """See `Contender`; torch's global generator, which libraries draw from, is seeded and put back.

        What the library raises leaves samples that are NaN; what the model raises passes.
        """
        ready = self if budget < 1 or self.steps is not None else self.ready(problem, budget, seed, batch_size)
        steps = 1 if ready.steps is None else ready.steps
        process = bounded(problem.process)
        times, view = self.times(process, steps), View(problem)
        dtype, device = place(problem.model.module, problem.dtype, None, problem.model.device)
        x = process.prior(noises.seeds(seed, n, device=device), problem.shape, dtype)
        ends = []
        with seeded(seed, device), torch.no_grad():
            for part in torch.split(x, batch_size or n):
                try:
                    end = self.run(view, part.clone(), times, budget if budget < 1 else None)
                except Exception:
                    if view.failed is not None:
                        raise view.failed from None
                    end = torch.full_like(part, math.nan)
                ends.append(view.end(end.to(part)))
        return Drawn(torch.cat(ends), view.rows / n)
