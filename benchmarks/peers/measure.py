"""Orders and laws of whole-run samplers: peers' samplers and our solvers, on one grid and one exact model.

A sampler is a function of a start, a grid and a noise source. All run in `y = x / alpha`, `s = sigma / alpha`, where
every process is one; an adapter changes variables for a peer that works in others.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import sdegen as sd
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run as solve
from sdegen.testing.laws import Law, exact_law
from sdegen.testing.problems import PROBLEMS, by_lam, reference, slope, uneven

from .responses import law

F64 = torch.float64
EDM = sd.EDM()
"""`alpha = 1`, `sigma = t`: its times are the levels s, and its state is y."""
SLOPES = 168, 336
"""Step counts of a slope: multiples of 6, so that groups of 2 and 3 steps come out even."""
WEAK = {False: (36, 72, 144), True: (72, 144, 288)}
"""Step counts of a weak order, by whether the sampler remembers: it starts at order 1 and settles later."""

Denoise = Callable[[Tensor, Any], Tensor]


class Noise(Protocol):
    """Normals like x for the step from level `now` to `next`; None where the peer does not say which step it is."""

    def __call__(self, x: Tensor, now: Any = None, next: Any = None) -> Tensor: ...


class Run(Protocol):
    """y at grid[-1] from y at grid[0] `[B, D]`, grid `[n + 1]` levels s, falling; noise None is the peer's own."""

    def __call__(self, denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor: ...


@dataclass(frozen=True)
class Sampler:
    """A peer's sampler, what is declared of it and where, and our solver of the same kind.

    declared: the order that its name, documentation or paper gives it, None where they give none. memory: it remembers
    earlier steps. brownian: its draws are increments of one Brownian path over the levels s. even_only: it makes, or is
    made for, equal steps. evals: evaluations a step. steps: step counts in place of WEAK. note: what its source shows
    where it falls short. same: where ours is the same method, how far the two may be apart (rounding).
    """

    name: str
    run: Run
    declared: float | None
    ours: sd.Solver | None
    stochastic: bool = False
    memory: bool = False
    brownian: bool = False
    even_only: bool = False
    evals: int = 1
    steps: tuple[int, ...] | None = None
    note: str = ""
    same: float | None = None


@dataclass(frozen=True)
class Seen:
    """Orders on the even and the uneven grid; the error on the finest even grid, and what it tends to (Aitken)."""

    even: float
    uneven: float | None
    error: float
    limit: float = 0.0


class Stand:
    """A module, or anything, with some of its attributes replaced."""

    def __init__(self, real: Any, **instead: Any) -> None:
        self.__dict__.update(instead)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextlib.contextmanager
def replaced(module: Any, **names: Any) -> Iterator[None]:
    """Some global names of a module, replaced; names that it does not have are left alone."""
    old = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name in old:
        setattr(module, name, names[name])
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(module, name, value)


def exact_denoiser(problem: str) -> Denoise:
    """`E[data | y]` of a problem's data at level s; s is a number, or one number repeated for every row."""
    model = PROBLEMS[problem].data.score(EDM)

    def denoise(y: Tensor, s: Any) -> Tensor:
        level = torch.as_tensor(s, dtype=F64).flatten()[0]
        return model(y, EDM.level(level), "data")

    return denoise


GRIDS: dict[str, Callable[[int], Tensor]] = {
    "even": lambda n: by_lam(EDM, n),
    "uneven": lambda n: uneven(EDM, n),
}
"""Even in log-SNR; and with steps of lengths 1 and 1.5 in turn, the first one graded."""


def error_of(sampler: Run, grid: Tensor) -> float:
    """Mean distance to the exact flow of three overlapping modes."""
    x, exact = reference(EDM, "three", 3000)
    return float((sampler(exact_denoiser("three"), x.clone(), grid, None) - exact).abs().mean())


def law_of(sampler: Run, grid: Tensor, brownian: bool = False, problem: str = "widths") -> Law:
    """The law of the sampler's output on Gaussian data."""
    denoise = exact_denoiser(problem)
    start = PROBLEMS[problem].data.marginal(EDM.level(grid[0]))
    return law(lambda x, noise: sampler(denoise, x, grid, noise), start, brownian)


def _target(problem: str = "widths") -> Any:
    return PROBLEMS[problem].data.marginal(EDM.level(by_lam(EDM, 1)[-1]))


def _extrapolated(errors: list[float]) -> tuple[float, float]:
    """The order that two slopes in a row tend to, and Aitken's limit of the errors."""
    first, last = (slope(list(pair)) for pair in itertools.pairwise(errors))
    one, two = errors[1] - errors[0], errors[2] - errors[1]
    return 2 * last - first, errors[2] - two * two / (two - one)


def _orders(made: Callable[[Tensor], Law], steps: tuple[int, ...]) -> Seen:
    found = {}
    for name, grid in GRIDS.items():
        errors = [made(grid(n)).error(_target()) for n in steps]
        found[name] = (*_extrapolated(errors), errors[-1])
    return Seen(found["even"][0], found["uneven"][0], found["even"][2], found["even"][1])


def _slopes(error: Callable[[Tensor], float], steps: tuple[int, ...] = SLOPES, even_only: bool = False) -> Seen:
    even = [error(GRIDS["even"](n)) for n in steps]
    rough = None if even_only else slope([error(GRIDS["uneven"](n)) for n in steps])
    return Seen(slope(even), rough, even[-1])


def seen(sampler: Sampler) -> Seen:
    """What is seen of a peer's sampler."""
    if sampler.stochastic:
        steps = sampler.steps or WEAK[sampler.memory]
        return _orders(lambda grid: law_of(sampler.run, grid, sampler.brownian), steps)
    return _slopes(lambda grid: error_of(sampler.run, grid), even_only=sampler.even_only)


def seen_of_ours(sampler: Sampler) -> Seen | None:
    """The same of our counterpart, by the library's own checks, with as many evaluations."""
    if sampler.ours is None:
        return None
    steps = sampler.steps or WEAK[sampler.memory] if sampler.stochastic else SLOPES
    return _seen_of_ours(sampler.ours, tuple(n * sampler.evals // sampler.ours.evals for n in steps))


@functools.cache
def _seen_of_ours(solver: sd.Solver, steps: tuple[int, ...]) -> Seen:
    if solver.stochastic:
        data = PROBLEMS["widths"].data
        return _orders(lambda grid: exact_law(solver, EDM, data, grid), steps)
    x, exact = reference(EDM, "three", 3000)
    model = PROBLEMS["three"].data.score(EDM)

    def error(grid: Tensor) -> float:
        return float((solve(model, x, Fixed(grid), solver).x - exact).abs().mean())

    return _slopes(error, steps)


@dataclass(frozen=True)
class Habits:
    """moves: a run moves torch's global generator. alone: under one seed, a sample is the same alone and in a batch."""

    moves: bool
    alone: bool


def habits(sampler: Sampler) -> Habits:
    """Of runs with the peer's own noise, one seed per sample where it takes them, and the global generator reseeded."""
    denoise, grid = exact_denoiser("three"), by_lam(EDM, 6)
    y = reference(EDM, "three", 3000)[0]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    many = sampler.run(denoise, y.clone(), grid, None)
    moves = not torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    one = sampler.run(denoise, y[:1].clone(), grid, None)
    return Habits(moves, torch.equal(many[:1], one))
