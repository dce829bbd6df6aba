"""Properties of a solver's results: orders of paths, of laws, on one Brownian path, of densities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from sdegen.errors import InvalidArgumentError
from sdegen.testing.checks.claims import SOLVER, Claim, mixture_of, noisy
from sdegen.testing.densities import exact_law_1d
from sdegen.testing.laws import NoLawError, exact_laws, path_error
from sdegen.testing.problems import by_lam, reference, slope, uneven
from sdegen.testing.report import Inapplicable, Measure, holds


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
    # one-step methods of high order have so small a leading term that those after it show until rounding does: their
    # slope is at least p, and that it is p is a matter of their coefficients' order conditions
    early = p > 4 and subject.solver.memory < 2
    ns = (10, 40) if early else ns
    errors = [float((subject.solve(x, uneven(subject.process, n)).x - exact).abs().mean()) for n in ns]
    seen = slope(errors, ns[1] / ns[0])
    # either way the neighbouring orders are excluded; from order 4 on slopes settle late
    reach = 0.25 if p < 4 else 0.5
    top = p + 2.0 if early or p > 6 else p + reach  # beyond order 6 rounding is near as well
    yield Measure(f"slope at {ns[0]} and {ns[1]} steps{_seems(seen, p)}", seen, top, p - reach)


def _seems(seen: float, p: int) -> str:
    """What a slope that is not p looks like."""
    if abs(seen - p) < 0.5:
        return ""
    return f" (as of order {round(seen)})" if seen > 0.5 else " (it does not tend to the flow)"


@SOLVER.states("law_n - law = O(h^p), mean and covariance on Gaussian data, computed", applies=_declared("weak_order"))
def weak_order(subject: Claim) -> Iterator[Measure]:
    p, data, process = subject.weak_order or 0, mixture_of("widths"), subject.process
    target = data.marginal(process.level(by_lam(process, 1)[-1]))
    # the leading term of a method with memory, stages or another solver inside may be small: it takes finer grids
    plain = not subject.solver.memory and subject.solver.evals == 1 and not hasattr(subject.solver, "solver")
    ns = (40, 80, 160) if plain else (160, 320, 640)
    if subject.primes and subject.solver.memory > 2:
        ns = (320, 640, 1280)  # as it does for four nodes of a method that evaluates ahead
    try:
        grids = [by_lam(process, n) for n in ns]
        gaps = [law.gap(target) for law in exact_laws(subject.solver, process, data, grids)]
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
