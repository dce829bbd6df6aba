"""Runs of a sweep: each is measured once and kept, with the first of its samples."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import metrics as measures
from sdegen.bench.answers import answer, questions
from sdegen.bench.contenders import Contender, Drawn
from sdegen.bench.identity import Seen, seen
from sdegen.bench.problems import Problem
from sdegen.bench.rows import COLUMNS, Rows
from sdegen.bench.store import Place, Store
from sdegen.bench.tables import Entry, named
from sdegen.bench.targets import most, target
from sdegen.grids import check_steps
from sdegen.metrics import Metric, Target
from sdegen.progress import told_bar
from sdegen.scores.model import place as home
from sdegen.testing.guards import peak_memory

SHOWN = 6400
"""Elements of the first samples that are kept for pictures; of 16 samples at least and 400 at most."""
FEW = 16
"""How many samples the memory is measured with."""
RUNS, SECONDS = 5, 0.5
"""A run is timed anew until there are so many, or they took so long."""


class Job(NamedTuple):
    """One run: a problem, a contender and a budget."""

    problem: Problem
    contender: Contender
    budget: float


class Shot(NamedTuple):
    """What one run left: its rows and its first samples `[k, *S]`."""

    rows: Rows
    shown: Tensor


class Sweep(NamedTuple):
    """A sweep with pictures in view: its rows, and the first samples of every run by (model, contender, budget)."""

    rows: Rows
    shown: dict[tuple[str, Entry, float], Tensor]


class Settings(NamedTuple):
    """What all runs of a sweep share."""

    metrics: tuple[Metric, ...]
    samples: int
    seed: int
    level: float = 0.95
    resamples: int = 40
    batch_size: int | None = None


def collect(
    jobs: Sequence[Job], settings: Settings, store: Store, progress: bool | None = None, done: Sweep | None = None
) -> Sweep:
    """The rows of all jobs, of those that are kept without running them again; added to `done` one by one.

    An exception that ends it, an interrupt as well, has as `partial` what is done.
    """
    check_steps(settings.samples, "samples")
    done = Sweep(Rows(), {}) if done is None else done
    places = [place(store, job, settings) for job in jobs]  # before the first run, which may change what it runs
    total = sum(40 if job.budget < 1 else int(job.budget) for job in jobs)
    try:
        with told_bar(total, progress) as bar:
            for problem, own in itertools.groupby(zip(jobs, places), key=lambda pair: pair[0].problem):
                bench = Bench(problem, settings)
                for job, where in own:
                    c = job.contender
                    bar.set_description_str(f"{problem.name}: {c.name}, {job.budget:g}")
                    shot = store.made(where, partial(read, job, settings), partial(bench.shot, job), content)
                    done.rows.extend(shot.rows)
                    done.shown[problem.name, named(c), job.budget] = shot.shown
                    bar.update(40 if job.budget < 1 else int(job.budget))
    except BaseException as error:
        error.partial = done  # type: ignore[attr-defined]
        raise
    return done


def place(store: Store, job: Job, settings: Settings) -> Place:
    """Where a run is kept."""
    if store.folder is None:
        return Place()
    return store.place(
        store.mark(job.problem, fingerprint),
        store.mark(job.contender, made_in),
        store.mark(settings, seen),
        repr(job.budget),
    )


class Bench:
    """One problem with its target and floors, which are made when the first run needs them."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem = problem
        count = most(problem, settings.samples)
        self.settings = settings._replace(samples=count)
        self._target: Target | None = None
        self._floors: dict[int, float] = {}

    @property
    def target(self) -> Target:
        """What samples are compared with."""
        if self._target is None:
            s = self.settings
            self._target = target(self.problem, s.metrics, s.samples, s.seed, s.batch_size)
        return self._target

    def floor(self, k: int) -> float:
        """The k-th metric's value for as many exact samples."""
        if k not in self._floors:
            self._floors[k] = measures.floor(self.settings.metrics[k], self.target, self.settings.samples)
        return self._floors[k]

    def shot(self, job: Job) -> Shot:
        """One run, measured."""
        c, p, s = job.contender, self.problem, self.settings
        target = self.target  # not within the time of the first run
        ready = c.ready(p, job.budget, s.seed, s.batch_size)
        if getattr(ready, "steps", None) == 0:  # not one step is within the budget
            return Shot(Rows(), torch.empty(0, *p.shape))

        def draw(n: int) -> Drawn:
            return ready.draw(p, n, job.budget, s.seed, s.batch_size)

        memory = _memory(draw, p, min(s.samples, FEW))
        (x, nfe), seconds = _timed(lambda: draw(s.samples))
        failed = int((~x.flatten(1).isfinite().all(1)).sum())
        about = {"model": p.name, "solver": c.name, "grid": c.grid, "budget": job.budget}
        cost = {"seconds": seconds, "memory": memory, "failed": failed}
        source = {"samples": s.samples, "seed": s.seed, "library": c.library}
        rows = Rows()
        for k, m in enumerate(s.metrics):
            if m.name == "rmse" and c.stochastic:
                continue
            floor = self.floor(k)
            found = measures.measure(m, x, target, level=s.level, resamples=s.resamples, seed=s.seed, floor=floor)
            rows.append({**about, "nfe": nfe, "metric": m.name, **found._asdict(), **cost, **source})
        some = min(max(SHOWN // math.prod(p.shape), 16), 400)
        return Shot(rows, x[:some].cpu())


def _timed(draw: Callable[[], Drawn]) -> tuple[Drawn, float]:
    """What was drawn, and the seconds of the fastest run: others are slower for what else the machine does."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < RUNS and sum(seconds) < SECONDS):
        began = time.perf_counter()
        found = draw()
        if found.x.is_cuda:
            torch.cuda.synchronize(found.x.device)
        seconds.append(time.perf_counter() - began)
    return found, min(seconds)


def _memory(draw: Any, problem: Problem, few: int) -> float:
    """The most bytes of tensors alive at once in a run of few samples, per sample; the GPU's for a model on one."""
    device = home(problem.model.module, None, None, problem.model.device)[1]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        draw(few)
        return float(torch.cuda.max_memory_allocated(device) - before) / few
    return peak_memory(lambda: draw(few)) / few


def fingerprint(problem: Problem) -> Seen:
    """What a problem is: its model, law and data, the files it was made in, and what the model answers."""
    return made_in(replace(problem, statement=""), [answer(problem, x, level) for x, level in questions(problem)])


def made_in(thing: Any, *more: Any) -> Seen:
    """What a thing is; one that was made in a user's file rests on that file, whatever it is made of."""
    found = seen(thing, *more)
    return found._replace(own=(*found.own, "a file")) if getattr(thing, "sources", "") else found


def content(shot: Shot) -> Any:
    """A run as JSON can hold it."""
    return {"rows": list(shot.rows), "shown": shot.shown.double().round(decimals=4).tolist()}


def read(job: Job, settings: Settings, found: Any) -> Shot:
    """A run from what JSON held. Raises an error of any kind on what is no run of this job."""
    rows = Rows(found["rows"])
    c, names = job.contender, [m.name for m in settings.metrics]
    about = {"model": job.problem.name, "solver": c.name, "grid": c.grid, "budget": job.budget, "library": c.library}
    if not all(tuple(row) == COLUMNS and row["metric"] in names and about.items() <= row.items() for row in rows):
        raise ValueError("rows of another run")
    return Shot(rows, torch.tensor(found["shown"]).reshape(-1, *job.problem.shape))
