"""Properties of a solver as a program: its evaluations, its draws, and what its bits may depend on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.level import Level
from sdegen.scores.model import Model
from sdegen.solvers.compose import Churn
from sdegen.testing.checks.claims import F64, SOLVER, Claim, network, noisy
from sdegen.testing.guards import differing
from sdegen.testing.report import Measure, holds


def same(what: str, a: Tensor, b: Tensor) -> Measure:
    """The measure of two tensors that must have the same bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return holds(f"{what}: {list(a.shape)} of {a.dtype}, not {list(b.shape)} of {b.dtype}", False)
    return Measure(f"{what}: elements that differ", float(differing(a, b)))


class Run(NamedTuple):
    """A small solve: its number of steps, its batch, the seed of its starts and its noise."""

    steps: int
    batch: int
    seed: int


def _runs(subject: Claim) -> Any:
    import hypothesis.strategies as hs

    return hs.builds(Run, hs.integers(1, 5), hs.integers(1, 9), hs.integers(0, 2**31))


def _start(subject: Claim, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    seeds = noises.seeds(seed, batch)
    level = subject.process.level(subject.times(1)[0])
    return level.sigma * noises.normals(seeds, (2,), (1, 0, 0, 0), dtype=F64), seeds


@SOLVER.states("n steps make n evals evaluations, all inside [t_min, t_max]", given=_runs, examples=10)
def evaluations(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    times, exact = [], subject.model()

    class Watch(Model):
        process = subject.process

        def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
            times.append(level.t)
            return exact(x, level, want)

    x, seeds = _start(subject, batch, seed)
    solution = subject.solve(x, n, model=Watch(), seeds=seeds)
    declared = subject.primes + sum(subject.evals(n))
    yield Measure("evaluations not declared", abs(len(times) - declared))
    yield Measure("NFE off", float((solution.nfe - declared).abs().max()))
    yield Measure("steps off", float((solution.accepted - n).abs().max()))
    low, high = float(torch.stack(times).min()), float(torch.stack(times).max())
    span = subject.times(n)
    # churn goes up before it steps down, as far as the process goes
    top = subject.process.t_max if isinstance(subject.solver, Churn) else float(span[0])
    yield Measure("beyond the grid", max(float(span[-1]) - low, high - top))
    yield Measure("distance of the last time to the grid's end", float((solution.level.t - span[-1]).abs().max()))


@SOLVER.states("a stochastic solver draws noise, each normal once; any other draws none", given=_runs, examples=10)
def fresh_noise(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case.steps + 4, case.batch, case.seed
    drawn = []
    x, seeds = _start(subject, batch, seed)
    white, times = noises.White(seeds), subject.times(n)

    def watch(x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        drawn.append((float(now.t), float(next.t), tag))
        return white(x, now, next, tag)

    subject.solve(x, times, noise=watch)
    yield Measure("normals drawn again", float(len(drawn) - len(set(drawn))))
    yield holds("draws of a solver that says it is deterministic", subject.stochastic or not drawn)
    yield holds("no noise in a solver that says it is stochastic", not subject.stochastic or drawn)
    inside = [any(a >= now > next >= b for a, b in zip(times, times[1:])) for now, next, _ in drawn]
    yield Measure("draws that are not from a level of their step down to another", float(inside.count(False)))


@SOLVER.states("a row alone, in another order or beside a wild one has the same bits", given=_runs, examples=15)
def batch_independence(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    x, seeds = _start(subject, batch, seed)
    whole = subject.solve(x, n, seeds=seeds).x
    order = torch.argsort(noises.seeds(seed + 1, batch))
    yield same("rows in another order", subject.solve(x[order], n, seeds=seeds[order]).x, whole[order])
    row = seed % batch
    yield same("a row alone", subject.solve(x[row : row + 1], n, seeds=seeds[row : row + 1]).x, whole[row : row + 1])
    wild = x.clone()
    wild[row] *= 1e6
    others = torch.arange(batch) != row
    yield same("rows beside a wild one", subject.solve(wild, n, seeds=seeds).x[others], whole[others])


@SOLVER.states("two micro-batches together have the bits of the whole batch", given=_runs, examples=10)
def micro_batches(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    x, seeds = _start(subject, batch, seed)
    cut = seed % (batch + 1)
    parts = [subject.solve(x[part], n, seeds=seeds[part]).x for part in (slice(None, cut), slice(cut, None))]
    yield same("micro-batches", torch.cat(parts), subject.solve(x, n, seeds=seeds).x)


@SOLVER.states("the same seeds give the same bits, other seeds other samples", applies=noisy, given=_runs, examples=10)
def seeds(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    x, own = _start(subject, batch, seed)
    first = subject.solve(x, n, seeds=own).x
    yield same("a second run", subject.solve(x, n, seeds=own).x, first)
    other = subject.solve(x, n, seeds=noises.seeds(seed + 1, batch)).x
    yield Measure("rows that other seeds leave as they are", float((other == first).all(1).sum()))
    shared = subject.solve(x[:1].expand(batch, 2), n, seeds=own[:1].expand(batch)).x
    yield same("rows of one start and one seed", shared, shared[:1].expand(batch, 2).contiguous())


@SOLVER.states("the layout of x in memory changes no bit")
def layout(subject: Claim) -> Iterator[Measure]:
    x = subject.start(5)
    whole = subject.solve(x, 4).x
    transposed = torch.empty(2, 5, dtype=F64).t().copy_(x)
    strided = torch.zeros(5, 6, dtype=F64)[:, ::3].copy_(x)
    yield same("transposed", subject.solve(transposed, 4).x, whole)
    yield same("strided", subject.solve(strided, 4).x, whole)


@SOLVER.states("the shape of a sample changes no bit: [B, 4], [B, 2, 2] and [B, 1, 4, 1] are one")
def sample_shape(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3, "widths")
    model = network(subject.process, 4)

    def shaped(shape: tuple[int, ...]) -> Tensor:
        class Shaped(Model):
            process = subject.process

            def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
                return model(x.flatten(1), level, want).reshape(x.shape)

        return subject.solve(x.reshape(3, *shape), 4, model=Shaped()).x.reshape(3, 4)

    flat = shaped((4,))
    for shape in ((2, 2), (1, 4, 1)):
        yield same(f"shape {shape}", shaped(shape), flat)
