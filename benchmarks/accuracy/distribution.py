"""How far the law of the samples is from the data's: `python -m benchmarks.accuracy.distribution [--quick] [--write]`.

Sliced Wasserstein-2 distance, total variation of the modes' masses and error of the variance within modes, against the
exact law at t_min and beside the sampling floor: what exact samples, as many, show of each.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.page import arguments, publish
from sdegen import noise as noises
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run as solve
from sdegen.testing.statistics.projections import directions

from . import ours
from .cache import kept
from .page import PAGE, Table
from .peers import GRIDS, Peer, denoiser, distinct, levels, ran, versions, white
from .problems import PROBLEMS, Problem
from .summary import short

BEGIN = "<!-- begin: benchmarks.accuracy.distribution -->"
F64 = torch.float64
EDM = sd.EDM()
BUDGETS = (10, 20, 50, 100)
SAMPLES = {"grid": 4096, "ring": 4096, "digits": 1024}
DIRECTIONS, FLOORS = 128, 8
SCATTER = 1.3
"""Multiples of the floor up to which exact samples themselves come by chance."""
MEASURES = ("sliced W2", "mode masses", "variance within modes")


class Law(NamedTuple):
    """Distances of samples from the data: sliced W2, total variation of masses, relative error of the variance."""

    sliced: float
    masses: float
    variance: float


class Judge:
    """A problem's exact law at t_min, and the distances of samples y `[n, *S]` from it."""

    def __init__(self, problem: Problem) -> None:
        law = problem.mixture
        assert law is not None
        level = EDM.level(torch.tensor(EDM.t_min, dtype=F64))
        self.problem, self.law, self.level = problem, law.marginal(level), level
        self.count = SAMPLES[problem.name]
        self.means = law.means.flatten(1)
        self.traces = torch.stack([self.law._only(k).cov().diagonal().sum() for k in range(len(law))])
        self.along = directions(0, DIRECTIONS, self.means.shape[1])
        many = self.law.sample(16 * self.count, seed=77).flatten(1) @ self.along.T
        self.quantiles = many.sort(0).values.reshape(self.count, 16, -1).mean(1)

    def __call__(self, y: Tensor) -> Law:
        """The three distances; infinite where a sample is not finite."""
        if not bool(y.isfinite().all()):
            return Law(math.inf, math.inf, math.inf)
        sliced = ((y.flatten(1) @ self.along.T).sort(0).values - self.quantiles).square().mean().sqrt()
        owner = self.problem.owner(y)
        masses = owner.bincount(minlength=len(self.means)) / len(y)
        away = (y.flatten(1) - self.means[owner]).square().sum()
        variance = away / self.traces[owner].sum() - 1
        return Law(float(sliced), float((masses - self.law.weights).abs().sum() / 2), float(variance))

    def floor(self) -> Law:
        """The root mean square of each distance over exact sets of samples."""
        found = [self(self.law.sample(self.count, seed=1000 + i)) for i in range(FLOORS)]
        return Law(*(math.sqrt(sum(v * v for v in column) / FLOORS) for column in zip(*found)))


class Path:
    """One Brownian path per sample over the levels s: draws are unit increments, whatever order they are asked in."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.at: list[float] = []
        self.values: list[Tensor] = []

    def __call__(self, x: Tensor, now: Any = None, next: Any = None) -> Tensor:
        a, b = float(now), float(next)
        return (self._value(a, x) - self._value(b, x)) / math.sqrt(abs(a - b)) * (1 if a < b else -1)

    def _value(self, s: float, x: Tensor) -> Tensor:
        k = bisect.bisect_left(self.at, s)
        near = next(
            (i for i in (k - 1, k) if 0 <= i < len(self.at) and math.isclose(self.at[i], s, rel_tol=1e-9)), None
        )
        if near is not None:
            return self.values[near]
        z = torch.randn(x.shape, generator=self.random, dtype=x.dtype)
        if not self.at:
            value = torch.zeros_like(x)
        elif k in (0, len(self.at)):
            end = 0 if k == 0 else -1
            value = self.values[end] + math.sqrt(abs(s - self.at[end])) * z
        else:
            low, high = self.at[k - 1], self.at[k]
            part = (s - low) / (high - low)
            value = torch.lerp(self.values[k - 1], self.values[k], part) + math.sqrt(part * (high - s)) * z
        self.at.insert(k, s)
        self.values.insert(k, value)
        return value


def of_peer(peer: Peer, problem: Problem, judge: Judge, grid: str, budgets: tuple[int, ...]) -> dict[int, Law]:
    """A peer's row on a grid."""
    denoise, row = denoiser(problem), {}
    for n in budgets:
        times = GRIDS[grid](EDM, peer.steps(n))
        noise = Path(5) if peer.sampler.brownian else white(5)
        torch.manual_seed(5)
        row[n] = judge(ran(peer.sampler.run, denoise, problem.start(EDM, judge.count), levels(EDM, times), noise))
    return row


def of_ours(solver: sd.Solver, problem: Problem, judge: Judge, grid: Any, budgets: tuple[int, ...]) -> dict[int, Law]:
    """Our row, with the solver's own grid or another."""
    row, model = {}, problem.model(EDM)
    seeds = noises.seeds(problem.seed, judge.count)
    for n in budgets:
        times = (grid or solver.grid)(EDM, n // solver.evals)
        noise = sd.White(seeds) if solver.stochastic else None
        with torch.no_grad():
            x = solve(model, problem.start(EDM, judge.count), Fixed(times), solver, noise).x
        row[n] = judge(x)
    return row


def of_plan(pilot: int, problem: Problem, judge: Judge, budgets: tuple[int, ...]) -> dict[int, Law]:
    """The row of plans that may spend `pilot` evaluations, one plan per number of evaluations, of 64 at most."""
    row: dict[int, Law] = {}
    for n in budgets:
        plan = ours.planned(problem.model(EDM), problem, min(n, 64), pilot)
        row[n] = of_ours(plan, problem, judge, plan.grid, (plan.steps,))[plan.steps]
    return row


def work(task: tuple[str, tuple[int, ...]]) -> tuple[Law, dict[str, dict[int, Law]], dict[str, dict[int, Law]]]:
    """The floor, our rows and the peers' on one problem; the peers' are kept on disk."""
    name, budgets = task
    torch.set_num_threads(1)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    problem, began = PROBLEMS[name], time.perf_counter()
    judge = Judge(problem)
    floor = judge.floor()
    mark = f"{versions()} {budgets} {SAMPLES} {[f'{v:.6e}' for v in floor]}"
    key = hashlib.sha256(mark.encode()).hexdigest()[:16]

    def make() -> dict[str, dict[int, list[float]]]:
        return {
            f"{peer.name}, {grid}": {n: list(law) for n, law in of_peer(peer, problem, judge, grid, budgets).items()}
            for peer in distinct(True)
            for grid in peer.grids(EDM)
        }

    peers = {who: {n: Law(*law) for n, law in row.items()} for who, row in kept(f"laws-{name}-{key}", make).items()}
    half = time.perf_counter()
    rows = {who: of_ours(make(), problem, judge, grid, budgets) for who, (make, grid) in ours.STOCHASTIC.items()}
    rows |= {f"plan, pilot {pilot} (no noise)": of_plan(pilot, problem, judge, budgets) for pilot in ours.PILOTS}
    print(f"{name}: peers {half - began:.0f} s, ours {time.perf_counter() - half:.0f} s", file=sys.stderr)
    return floor, rows, peers


def table(
    floor: Law, rows: dict[str, dict[int, Law]], peers: dict[str, dict[int, Law]], budgets: tuple[int, ...]
) -> str:
    """One row per method, three numbers per number of evaluations; the least of each kind is bold."""
    both = [(f"**`{name}`**", row) for name, row in rows.items()] + list(peers.items())
    least = {(n, i): min(abs(row[n][i]) for _, row in both) for n in budgets for i in range(3)}
    out = Table(["method", *(str(n) for n in budgets)])
    out.add("*exact samples*", *(" / ".join(short(v) for v in floor) for _ in budgets))
    for name, row in both:
        cells = []
        for n in budgets:
            texts = [short(row[n][0]), short(row[n][1]), f"{row[n][2]:+.2f}" if math.isfinite(row[n][2]) else "—"]
            cells.append(" / ".join(f"**{t}**" if abs(row[n][i]) == least[n, i] else t for i, t in enumerate(texts)))
        out.add(name, *cells)
    return str(out)


def verdicts(results: dict[str, Any], budgets: tuple[int, ...]) -> str:
    """The best of ours and of the peers per problem, measure and number of evaluations, as multiples of the floor."""
    out = Table(["problem", "measure", *(f"{n}: ours / peers" for n in budgets)])
    for name, (floor, rows, peers) in results.items():
        for i, measure in enumerate(MEASURES):
            pairs = (
                [min(abs(row[n][i]) for row in group.values()) / floor[i] for group in (rows, peers)] for n in budgets
            )
            out.add(
                f"`{name}`",
                measure,
                *(f"{a:.2f} / {b:.2f}" + (" (peer)" if b < a and a > SCATTER else "") for a, b in pairs),
            )
    return str(out)


def single(results: dict[str, Any], budgets: tuple[int, ...]) -> str:
    """The one method of ours, and of the peers, whose largest multiple of the floor over all measures is least."""

    def worst(rows: dict[str, dict[int, Law]], floor: Law, name: str, n: int) -> float:
        return max(abs(v) / f for v, f in zip(rows[name][n], floor))

    out = Table(
        ["NFE", "our most even method", "its largest multiple of the floor", "the peers'", "its largest multiple"]
    )
    for n in budgets:
        cells: list[str] = []
        for side in (1, 2):
            names = list(next(iter(results.values()))[side])
            scores = {name: max(worst(r[side], r[0], name, n) for r in results.values()) for name in names}
            best = min(names, key=scores.__getitem__)
            cells += [best, f"{scores[best]:.2f}"]
        out.add(str(n), *cells)
    return str(out)


def report(names: tuple[str, ...], budgets: tuple[int, ...], workers: int) -> str:
    """All of it."""
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        results = dict(zip(names, pool.map(work, [(name, budgets) for name in names])))
    head = (
        f"Written by `python -m benchmarks.accuracy.distribution --write` with sdegen {sd.__version__}, "
        f"{', '.join(versions())}, in {time.perf_counter() - began:.0f} s; EDM's range of levels."
    )
    parts = [head, "### Best of each side, as multiples of the sampling floor", verdicts(results, budgets)]
    parts += ["### One method for all problems and measures", single(results, budgets)]
    for name, (floor, rows, peers) in results.items():
        parts.append(f"### The law on `{name}`\n\n{' / '.join(MEASURES)}; {SAMPLES[name]} samples.")
        parts.append(table(floor, rows, peers, budgets))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prints the report; `--write` puts it into the page."""
    given = arguments(__doc__, "two problems in the plane at 10 and 20 evaluations", workers=True)
    names, budgets = (("grid", "ring"), (10, 20)) if given.quick else (tuple(SAMPLES), BUDGETS)
    text = report(names, budgets, given.workers)
    publish(PAGE, BEGIN, text, given.write)


if __name__ == "__main__":
    main()
