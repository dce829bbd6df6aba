"""Every solver at every budget on every model, measured: `sweep`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sdegen.bench.contenders import Contender, Ours
from sdegen.bench.names import contender
from sdegen.bench.problems import Problem
from sdegen.bench.rows import Rows
from sdegen.bench.runs import Job, Settings, collect
from sdegen.bench.store import Store
from sdegen.bench.targets import check, metric
from sdegen.errors import InvalidArgumentError, warn_caller
from sdegen.grids import check_steps
from sdegen.metrics import Metric
from sdegen.solvers.base import Solver


def sweep(
    models: Problem | Sequence[Problem],
    solvers: Mapping[str, Solver] | Sequence[str | Contender],
    budgets: Sequence[int],
    metrics: Sequence[str | Metric] = ("sw2",),
    *,
    tols: Sequence[float] = (1e-2, 1e-3),
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 40,
    batch_size: int | None = None,
    keep: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Rows:
    """Rows `(model, solver, grid, budget, metric)` with the quality, its interval, its floor, seconds and memory.

    models: problems, such as `bench.problem("digits")` or a `Problem` of your own. solvers: by name (`"dpmpp2"`, with a
    grid `"dpmpp2@karras"`; `"plan1000"` is a plan calibrated with so many evaluations), as a mapping from names to
    solvers, or contenders. budgets: network evaluations per sample, a last denoising included; those that a solver
    cannot take a step with are left out, and adaptive solvers run to the tolerances `tols` instead. metrics: by name or
    as objects (`sdegen.metrics`); `rmse` is of deterministic solvers alone. samples: how many are drawn, by `seed`.
    level, resamples: of the intervals. batch_size: how many the network sees at once. keep: a folder in which every run
    is kept when it is done. Runs of what is this library's or an installed package's alone are read from there when
    they are asked for again. resume: read those of your own code as well, so that an interrupted sweep goes on: where
    its functions, classes, closures, globals and numbers are the same. What it reads besides, such as files, is not
    looked at. progress: None shows a bar on terminals.

    Raises InvalidArgumentError before the first evaluation on arguments that cannot work, and WriteError where a run
    cannot be kept. Warns of kept runs that are damaged, which are made again, and of those that were not read.
    """
    check_steps(samples, "samples")
    settings = Settings(tuple(metric(m) for m in metrics), samples, seed, level, resamples, batch_size)
    jobs = plan(models, solvers, budgets, tols, settings.metrics)
    store = Store(keep, resume, warn_caller)
    rows = collect(jobs, settings, store, progress).rows
    if store.advice():
        warn_caller(f"{store.advice()}; give resume=True to take such runs from {keep}")
    return rows


def plan(
    models: Problem | Sequence[Problem],
    solvers: Mapping[str, Solver] | Sequence[str | Contender],
    budgets: Sequence[int],
    tols: Sequence[float],
    metrics: Sequence[Metric],
) -> list[Job]:
    """All runs of a sweep. Raises InvalidArgumentError where there are none, and on all that can be seen before one."""
    problems = [models] if isinstance(models, Problem) else list(models)
    if isinstance(solvers, Mapping):
        found: list[Contender] = [Ours(name, solver) for name, solver in solvers.items()]
    else:
        found = [contender(s) if isinstance(s, str) else s for s in solvers]
    for n in budgets:
        check_steps(n, "a budget")
    for tol in tols:
        if not 0 < tol < 1:
            raise InvalidArgumentError(f"a tolerance must be between 0 and 1, got {tol}")
    called: dict[str, list[Any]] = {
        "model": [p.name for p in problems],
        "solver": [(c.library, c.name, c.grid) for c in found],
        "metric": [m.name for m in metrics],
    }
    for what, names in called.items():
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InvalidArgumentError(f"two {what}s are called {twice[0]!r}: give them names of their own")
    jobs = [
        Job(p, c, budget)
        for p, c in itertools.product(problems, found)
        for budget in (tols if c.adaptive else budgets)
        if budget < 1 or budget >= c.least + p.denoises
    ]
    if all(m.name == "rmse" for m in metrics):  # which a stochastic solver has none of
        jobs = [job for job in jobs if metrics and not job.contender.stochastic]
    if not jobs:
        raise InvalidArgumentError(
            "there is nothing to measure: give at least one model, one metric, one solver (for rmse a deterministic "
            f"one), and a budget that is enough for a step ({', '.join(f'{c.name}: {c.least}' for c in found[:6])})"
        )
    for p in problems:
        net = p.model.module
        if net is not None and any(part.training for part in net.modules()):
            raise InvalidArgumentError(f"the network of {p.name} is in training mode: call its eval() first")
        check(p, metrics)
    return jobs
