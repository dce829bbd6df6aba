"""Properties of a solver's results: orders, laws, exactness, symmetries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.mixtures import Gaussian, GaussianMixture
from sdegen.process import Process
from sdegen.sde import Level
from sdegen.testing.checks.claims import F64, SOLVER, Claim, deterministic, mixture_of, noisy
from sdegen.testing.densities import exact_law_1d
from sdegen.testing.laws import NoLawError, exact_law, path_error
from sdegen.testing.problems import by_lam, off_knots, reference, slope, uneven
from sdegen.testing.report import Inapplicable, Measure, holds

EPS = torch.finfo(F64).eps


def _declared(name: str) -> Any:
    return lambda subject: None if getattr(subject, name) is not None else f"no {name}= was given"


def _limit(errors: list[float]) -> float:
    """The order that two slopes in a row tend to: their error is proportional to the step, and halves."""
    first, last = (slope(list(pair)) for pair in itertools.pairwise(errors))
    return 2 * last - first


@SOLVER.states("|x_n - x(t_min)| = O(h^p) along the probability flow of a mixture", applies=_declared("order"))
def order(subject: Claim) -> Iterator[Measure]:
    p = subject.order or 0
    x, exact = reference(subject.process, "three", 1000 if p < 6 else 3000)
    # order 6 shows later: at 160 and 320 steps its slope is still 5.4 to 5.9, and rises
    ns = (80, 160) if p < 3 else (160, 320) if p < 6 else (400, 600)
    errors = [float((subject.solve(x, uneven(subject.process, n)).x - exact).abs().mean()) for n in ns]
    seen = slope(errors, ns[1] / ns[0])
    # either way the neighbouring orders are excluded; from order 4 on slopes settle late
    reach = 0.25 if p < 4 else 0.5
    yield Measure(f"slope at {ns[0]} and {ns[1]} steps{_seems(seen, p)}", seen, p + reach, p - reach)


def _seems(seen: float, p: int) -> str:
    """What a slope that is not p looks like."""
    if abs(seen - p) < 0.5:
        return ""
    return f" (as of order {round(seen)})" if seen > 0.5 else " (it does not tend to the flow)"


@SOLVER.states("law_n - law = O(h^p), mean and covariance on Gaussian data, computed", applies=_declared("weak_order"))
def weak_order(subject: Claim) -> Iterator[Measure]:
    p, data, process = subject.weak_order or 0, mixture_of("widths"), subject.process
    target = data.marginal(process.level(by_lam(process, 1)[-1]))
    # the leading term of a method with memory may be small: it takes finer grids to stand out
    ns = (160, 320, 640) if subject.solver.memory else (40, 80, 160)
    try:
        gaps = [exact_law(subject.solver, process, data, by_lam(process, n)).gap(target) for n in ns]
    except NoLawError as error:
        raise Inapplicable(str(error)) from None
    except InvalidArgumentError as error:
        yield holds(str(error), False)
        return
    # 2^(p+1) g_2n - g_n has the leading term of g_n alone, the next power of the step taken out
    rid = [2 ** (p + 1) * fine - coarse for coarse, fine in itertools.pairwise(gaps)]
    seen = slope([float(gap.norm()) for gap in rid])
    yield Measure(f"order of the law, from {ns[0]}, {ns[1]} and {ns[2]} steps", seen, p + 0.05, p - 0.05)


@SOLVER.states("E|x_n - x_2n|^2 = O(h^2p) on one Brownian path, computed", applies=_declared("strong_order"))
def strong_order(subject: Claim) -> Iterator[Measure]:
    p = subject.strong_order or 0
    data, process, ns = mixture_of("widths"), subject.process, (40, 80, 160) if subject.solver.memory else (20, 40, 80)
    try:
        errors = [path_error(subject.solver, process, data, by_lam(process, n)) for n in ns]
    except NoLawError as error:
        raise Inapplicable(str(error)) from None
    seen = f"order, extrapolated from {ns[0]}, {ns[1]} and {ns[2]} steps"
    yield Measure(seen, _limit(errors), p + 0.1, p - 0.1)


def _chain(subject: Claim) -> str | None:
    remembers = "it carries past evaluations" if subject.solver.memory else None
    return noisy(subject) or _declared("weak_order")(subject) or remembers


@SOLVER.states("total variation and KL between law_n and the law of a mixture on a line fall with h", applies=_chain)
def density(subject: Claim) -> Iterator[Measure]:
    p, data, process = subject.weak_order or 0, mixture_of("line"), subject.process
    distances = []
    for n in (10, 20):
        times = by_lam(process, n)
        try:
            law = exact_law_1d(subject.solver, process, data, times)
        except InvalidArgumentError as error:
            raise Inapplicable(str(error)) from None
        target = data.marginal(process.level(times[-1]))
        yield Measure(f"mass lost in {n} steps", abs(law.mass - 1), 1e-10)
        distances.append((law.total_variation(target), law.kl(target)))
    (tv, kl), (finer_tv, finer_kl) = distances
    yield Measure("order of total variation", slope([tv, finer_tv]), math.inf, p - 0.25)
    yield Measure("order of KL", slope([kl, finer_kl]), math.inf, 2 * p - 0.5)


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


@SOLVER.states("from data to noise and back returns, to the order of the method", applies=deterministic)
def time_reversal(subject: Claim) -> Iterator[Measure]:
    data, process = mixture_of("three"), subject.process
    x = data.sample(8, level=process.level(by_lam(process, 1)[-1]))
    gaps = []
    for n in (40, 80):
        times = by_lam(process, n)
        up = subject.solve(x, times.flip(0)).x
        gaps.append(float((subject.solve(up, times).x - x).abs().mean()))
    # a method with memory starts each way at order 1: its round trip shows order 2 at most
    p = subject.order or 1
    p = min(p, 2) if subject.solver.memory else p
    yield Measure("distance to the start, 80 steps each way", gaps[1], 0.1)
    yield Measure("order of the round trip", math.inf if gaps[1] < 1e-10 else slope(gaps), math.inf, p - 0.5)


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
    p = subject.order or 1
    p = min(p, 2) if subject.solver.memory else p
    yield Measure("mean gap at 40 steps", gaps[1], 0.5)
    yield Measure("order of the gap", math.inf if gaps[1] < 1e-10 else slope(gaps), math.inf, p - 0.5)


@SOLVER.states("on Gaussian data a solve is affine in its start and its normals, row by row", applies=noisy)
def affine(subject: Claim) -> Iterator[Measure]:
    times = by_lam(subject.process, 4)
    try:
        law = exact_law(subject.solver, subject.process, mixture_of("widths"), times)
    except InvalidArgumentError as error:
        # a corrector with a rule of its own, or clipping, may mean to: then this is an expected failure
        yield holds(str(error), False)
        return
    yield Measure("non-finite moments", float((~law.cov.isfinite()).sum() + (~law.mean.isfinite()).sum()))


def _claims_eta(subject: Claim) -> str | None:
    return noisy(subject) or (None if subject.eta is not None else "no eta is claimed")


@SOLVER.states("a short step adds noise of variance eta^2 g^2 |dt|", applies=_claims_eta)
def noise_rate(subject: Claim) -> Iterator[Measure]:
    process, model = subject.process, subject.model("widths")
    x = mixture_of("widths").mean().repeat(5, 1)
    for share in (0.1, 0.5, 0.9):
        ratios = []
        for h in (4e-4, 2e-4):
            start = torch.tensor(process.t_min + share * (process.t_max - process.t_min), dtype=F64)
            now = process.level(off_knots(process, start))
            next = process.level(now.t - h * (process.t_max - process.t_min))
            kick = _kicks(subject.solver, model, x, now, next)
            ratios.append(float(kick.square().sum() / x.shape[1] / (process.variance_rate(now.t) * (now.t - next.t))))
        seen, eta = 2 * ratios[1] - ratios[0], subject.eta or 0.0
        # what is left after extrapolation is of second order in a step of 4e-4
        slack = 1e-3 * max(eta**2, 1e-4)
        yield Measure(f"variance over g^2 |dt| at {share:g} of the span", seen, eta**2 + slack, eta**2 - slack)


def _kicks(solver: Any, model: Any, x: Tensor, now: Level, next: Level) -> Tensor:
    """What each normal that a step draws does to x: rows, one after another, of as many as there are."""

    def out(unit: _Unit) -> Tensor:
        moved: Tensor = solver.step(model, x, now, next, solver.init(model, x, now), unit).x
        return moved

    quiet = _Unit(-1)
    base = out(quiet)
    return torch.cat([out(_Unit(k))[1:] - base[1:] for k in range(quiet.calls)])


def _corrects(subject: Claim) -> str | None:
    found = subject.solver if getattr(subject.solver, "corrects", False) else getattr(subject.solver, "corrector", None)
    return None if found is not None else "it does not correct"


@SOLVER.states(
    "a corrector contracts, and its noise makes up for its pull: A C A^T + B B^T = C + O((1 - A)^2 C)",
    applies=_corrects,
)
def corrector_balance(subject: Claim) -> Iterator[Measure]:
    corrector: Any = subject.solver if getattr(subject.solver, "corrects", False) else subject.solver.corrector  # type: ignore[attr-defined]
    data, process = mixture_of("widths"), subject.process
    for share in (0.02, 0.3, 0.9):
        level = process.level(process.t_min + share * (process.t_max - process.t_min))
        law = data.marginal(level)
        pull, kick = _linear_part(corrector, subject.model("widths"), law.mean(), level)
        cov = law.cov()
        after = pull @ cov @ pull.mT + kick @ kick.mT
        moved = torch.eye(len(cov), dtype=F64) - pull
        size = float(torch.linalg.matrix_norm(moved, 2))
        yield Measure(
            f"largest eigenvalue at {share:g} of the span", float(torch.linalg.eigvals(pull).abs().max()), 1.0
        )
        allowed = 2 * size * float(torch.linalg.matrix_norm(moved @ cov, 2))
        yield Measure(
            f"change of the law at {share:g} of the span", float(torch.linalg.matrix_norm(after - cov, 2)), allowed
        )
        snr = getattr(corrector, "snr", None)
        if snr is not None:
            # steps pulls of at most e/C each, e = 2 (snr sigma)^2, on the narrowest coordinate
            most = corrector.evals * 2 * float((snr * level.sigma) ** 2 / cov.diagonal().min())
            yield Measure("pull over that of its snr", size / most, 1.0 + 1e-9)


def _linear_part(corrector: Any, model: Any, mean: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """A and B of `x -> A x + B z + c`, the corrector at a level, by unit responses."""
    size, kicks = len(mean), [_Unit(k) for k in range(corrector.evals)]
    x = mean.repeat(1 + size, 1)
    x[1:] += torch.eye(size, dtype=F64)
    plain = corrector.step(model, x, level, level, corrector.init(model, x, level), _Unit(-1)).x
    pull = (plain[1:] - plain[0]).mT
    columns = []
    for kick in kicks:
        out = corrector.step(model, mean.repeat(1 + size, 1), level, level, corrector.init(model, x, level), kick).x
        columns.append((out[1:] - out[0]).mT)
    return pull, torch.cat(columns, 1)


class _Unit:
    """At draw k row i + 1 gets a one in element i; nothing else is drawn but zeros."""

    def __init__(self, k: int) -> None:
        self.k, self.calls = k, 0

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        z = torch.zeros_like(x)
        if self.calls == self.k:
            z[1:] = torch.eye(x.shape[1], dtype=x.dtype)
        self.calls += 1
        return z
