"""Properties of a solver's results: exactness, and what must not depend on process, axes or direction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.mixtures import Gaussian, GaussianMixture
from sdegen.testing.checks.claims import F64, SOLVER, Claim, deterministic, mixture_of
from sdegen.testing.laws import exact_law
from sdegen.testing.problems import by_lam, slope
from sdegen.testing.report import Measure

EPS = torch.finfo(F64).eps


def _exact_cases(subject: Claim) -> Any:
    import hypothesis.strategies as hs

    from sdegen.testing import strategies as st

    ends = hs.lists(hs.integers(0, 20), min_size=2, max_size=4, unique=True)
    shares = ends.map(lambda numbers: [n / 20 for n in sorted(numbers, reverse=True)])
    return hs.builds(Steps, st.processes(), shares, hs.sampled_from(subject.exact))


class Steps(NamedTuple):
    """Data of a kind under a process, and times as shares of its span."""

    process: Process
    shares: list[float]
    data: str


def _claimed_exact(subject: Claim) -> str | None:
    return None if subject.exact else "none is claimed: exact="


@SOLVER.states("exact in one step on one point, or on N(0, sigma_data^2)", applies=_claimed_exact, given=_exact_cases)
def exactness(subject: Claim, case: Steps) -> Iterator[Measure]:
    process, ends, kind = case
    width = getattr(getattr(subject.solver, "frame", None), "sigma_data", 1.0) if kind == "gaussian" else 0.0
    data = Gaussian([0.0, 0.0] if width else [0.7, -2.0], std=width)
    times = process.t_min + (process.t_max - process.t_min) * torch.tensor(ends, dtype=F64)
    first, last = process.level(times[0]), process.level(times[-1])
    if subject.stochastic:
        law = exact_law(subject.solver, process, data, times)
        yield Measure(f"error of the law, {kind}", law.error(data.marginal(last)), 1e-9)
        return
    x = torch.tensor([[1.0, -1.0], [0.3, 2.0], [0.0, 0.0]], dtype=F64) * torch.hypot(first.alpha, first.sigma)
    ours = subject.solve(x, times, model=data.score(process)).x
    exact = data.flow(x, first, last)
    # x, the point and the noise enter with weights of at most these sizes. A prediction near the end of a step has its
    # state's rounding divided by the sigma there, and is multiplied by the step: hence the ratio
    size = (first.sigma + first.alpha) * (last.sigma / first.sigma) + last.alpha * 3 + exact.abs().max()
    size = (size + last.alpha / first.alpha * x.abs().max()) * (1 + torch.exp(last.lam - first.lam))
    yield Measure(
        f"distance to the exact flow, {kind}, in roundings", float((ours - exact).abs().max() / (EPS * size)), 64.0
    )


def _same_grid(subject: Claim) -> Any:
    import hypothesis.strategies as hs

    from sdegen.testing import strategies as st

    share = hs.floats(0.0, 1.0)
    return hs.builds(Two, st.processes(), st.processes(), hs.integers(1, 6), share, hs.floats(0.2, 1.0))


class Two(NamedTuple):
    """Two processes and a grid in lam: steps, and place and share of the range that both reach."""

    one: Process
    two: Process
    steps: int
    place: float
    share: float


def _invariant(subject: Claim) -> str | None:
    return None if subject.invariant else "none is claimed: invariant=True"


@SOLVER.states("x/alpha is the same under every process on one grid in lam", applies=_invariant, given=_same_grid)
def process_invariance(subject: Claim, case: Two) -> Iterator[Measure]:
    one, two, n, place, share = case
    tops = [float(p.level(p.t_min).lam) for p in (one, two)]
    lows = [float(p.level(p.t_max).lam) for p in (one, two)]
    low, high = max(*lows, -6.0), min(*tops, 6.0)
    if high - low < 0.5:
        return  # too short a range in common: such a case says nothing
    length = share * (high - low)
    low = low + place * (high - low - length)
    lams = torch.linspace(low, low + length, n + 1, dtype=F64)
    results = []
    for process in (one, two):
        levels = process.at(lams)
        x = subject.start(3) * levels.alpha[0] * math.exp(-low)
        noise = _Numbered()
        got = subject.solve(
            x, levels.t, model=subject.model(process=process), noise=noise if subject.stochastic else None
        )
        results.append(got.x / levels.alpha[-1])
    # lam is found to within its condition in t: a few thousand roundings where alpha/sigma is flat
    gap = float((results[0] - results[1]).abs().max() / (1 + results[0].abs().max()))
    yield Measure("distance in x/alpha", gap, 1e-9)


class _Numbered:
    """Numbers in place of normals that depend on the count of the draw alone, which all processes share."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        self.calls += 1
        index = torch.arange(x.numel(), dtype=F64).reshape(x.shape)
        return torch.sin(1.7 * index + 2.3 * self.calls).to(x.dtype)


@SOLVER.states("turning the data and the start turns the result")
def rotation(subject: Claim) -> Iterator[Measure]:
    data = mixture_of("three")
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s], [s, c]], dtype=F64)
    covariance = torch.eye(2, dtype=F64) * torch.tensor([0.3, 0.4, 0.35], dtype=F64)[:, None, None] ** 2
    turned = GaussianMixture(data.means @ turn.T, covs=covariance, weights=data.weights)
    x = subject.start(4)
    noise = _Numbered()
    ours = subject.solve(x, 5, noise=noise if subject.stochastic else None).x @ turn.T

    again = _Numbered()

    def other(x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        return again(x, now, next, tag) @ turn.T

    model = turned.score(subject.process)
    theirs = subject.solve(x @ turn.T, 5, model=model, noise=other if subject.stochastic else None).x
    yield Measure("distance", float((ours - theirs).abs().max()), 1e-10)


def _shown(subject: Claim) -> int:
    """The order that shows without a graded start: 2 at most with memory, whose first step has order 1."""
    p = subject.order or 1
    return min(p, 2) if subject.solver.memory else p


@SOLVER.states("from data to noise and back returns, to the order of the method", applies=deterministic)
def time_reversal(subject: Claim) -> Iterator[Measure]:
    data, process = mixture_of("three"), subject.process
    x = data.sample(8, level=process.level(by_lam(process, 1)[-1]))
    gaps = []
    for n in (40, 80):
        times = by_lam(process, n)
        up = subject.solve(x, times.flip(0)).x
        gaps.append(float((subject.solve(up, times).x - x).abs().mean()))
    yield Measure("distance to the start, 80 steps each way", gaps[1], 0.1)
    yield Measure(
        "order of the round trip", math.inf if gaps[1] < 1e-10 else slope(gaps), math.inf, _shown(subject) - 0.5
    )


@SOLVER.states("log p(x_n) + log|det dx_n/dx_0| - log p(x_0) = O(h^p): Liouville", applies=deterministic)
def liouville(subject: Claim) -> Iterator[Measure]:
    data, process = mixture_of("three"), subject.process
    gaps = []
    for n in (20, 40):
        times = by_lam(process, n)
        first, last = process.level(times[0]), process.level(times[-1])
        x = data.sample(8, level=first)
        # rows do not see each other: both columns of the Jacobian in one pass
        both, directions = x.repeat(2, 1), torch.eye(2, dtype=F64).repeat_interleave(8, 0)
        moved, columns = torch.func.jvp(lambda y: subject.solve(y, times).x, (both,), (directions,))[:2]  # noqa: B023
        volume = torch.linalg.slogdet(torch.stack([columns[:8], columns[8:]], -1)).logabsdet
        gap = data.log_prob(moved[:8], last) + volume - data.log_prob(x, first)
        gaps.append(float(gap.abs().mean()))
    yield Measure("mean gap at 40 steps", gaps[1], 0.5)
    yield Measure("order of the gap", math.inf if gaps[1] < 1e-10 else slope(gaps), math.inf, _shown(subject) - 0.5)
