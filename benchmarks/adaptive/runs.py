"""Solves over a range of tolerances: errors, evaluations, what was reported."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.accuracy.cache import kept

from . import peers
from .problems import HEAVY, SAMPLES, Case, Counted, Tally

HALVES = tuple(10 ** (-k / 2) for k in range(19))
"""1 to 1e-9 in half decades; a sweep ends earlier where the error is small enough."""


@dataclass(frozen=True)
class Outcome:
    """One solve: every sample's error `[n]`, network calls, rows per sample, calls outside of the interval.

    own: evaluations per sample that were its own, before rows of finished samples; said: whether it reported success;
    estimate: the solver's own of the errors `[n]`.
    """

    tol: float
    errors: Tensor
    calls: int
    rows: float
    own: float
    outside: int
    said: bool
    estimate: Tensor | None = None

    @property
    def mean(self) -> float:
        """The mean error, infinite where failure was reported."""
        return float(self.errors.mean()) if self.said else math.inf

    @property
    def rmse(self) -> float:
        """The root mean square over all samples."""
        return float(self.errors.square().mean().sqrt()) if self.said else math.inf

    def plain(self) -> dict[str, Any]:
        """As tensors and numbers, to be kept on disk."""
        return dict(vars(self))


Sweep = list[Outcome]


@dataclass(frozen=True)
class Method:
    """A name, whether it is ours, and a run `(case, tol) -> Outcome`.

    full: the sweep goes down to 1e-7, in half decades, in any case; only: the problems it is run on; tols: the
    tolerances, if not all.
    """

    name: str
    ours: bool
    run: Callable[[Case, float], Outcome]
    full: bool = False
    only: tuple[str, ...] = tuple(SAMPLES)
    tols: tuple[float, ...] = HALVES


def with_sdegen(make: Callable[[float], sd.Solver]) -> Callable[[Case, float], Outcome]:
    """`solve` under `sd.PI(tol)`, the solver made for the data's scale."""

    def run(case: Case, tol: float) -> Outcome:
        tally = Tally(case.process.t_min, case.process.t_max)
        x: Any = case.start
        found = sd.solve(Counted(case.model, tally), x, sd.PI(tol=tol), make(case.scale), on_failure="return")
        own = float(found.nfe.double().mean())
        rows, said = tally.rows / len(x), bool(found.ok.all())
        return Outcome(tol, case.errors(found.x), tally.calls, rows, own, tally.outside, said, found.error)

    return run


def with_peer(form: str, solve: Callable[[peers.Flow, float], Tensor]) -> Callable[[Case, float], Outcome]:
    """A peer on one form of the flow."""

    def run(case: Case, tol: float) -> Outcome:
        flow = peers.flow(case, form)
        alpha = 1.0 if form == "t" else float(case.process.level(case.process.t_min).alpha)
        said, x = True, torch.full_like(flow.start, math.nan)
        try:
            x = alpha * solve(flow, tol)
        except peers.Failed:
            said = False
        tally, count = flow.tally, len(x)
        calls = tally.calls if count == len(flow.start) else math.ceil(tally.calls / count)
        rows = tally.rows / count
        return Outcome(tol, case.errors(x), calls, rows, rows, tally.outside, said)

    return run


SIMPLE = ("ring", "grid", "stiff")
ADAMS, BASE_SIGMA, BASE_LOG = "sdegen adams()", "torchdiffeq dopri5, sigma", "torchdiffeq dopri5, log-sigma"


def _methods() -> dict[str, Method]:
    ours = {
        ADAMS: lambda s: sd.adams(sigma_data=s),
        "sdegen dopri5()": lambda s: sd.dopri5(sd.ANGLE(sigma_data=s)),
        "sdegen tsit5()": lambda s: sd.tsit5(sd.ANGLE(sigma_data=s)),
        "sdegen dopri8()": lambda s: sd.dopri8(sd.ANGLE(sigma_data=s)),
    }
    found = [Method(name, True, with_sdegen(make), name == ADAMS) for name, make in ours.items()]
    forms = {"sigma": "sigma", "log-sigma": "log"}
    for method in ("dopri5", "dopri8"):
        for name, form in forms.items():
            run = with_peer(form, peers.with_torchdiffeq(method))
            found.append(Method(f"torchdiffeq {method}, {name}", False, run))
    for method in ("dopri5", "tsit5"):
        for name, form in forms.items():
            found.append(Method(f"torchode {method}, {name}", False, with_peer(form, peers.with_torchode(method))))
    found.append(Method("scipy RK45, log-sigma", False, with_peer("log", peers.with_scipy)))
    alone = with_peer("log", peers.with_scipy_alone)
    found.append(Method(f"scipy RK45, log-sigma, {peers.FEW} one by one", False, alone, only=("ring", "stiff")))
    return {method.name: method for method in found}


METHODS = _methods()
IN_TIME = Method(
    "torchdiffeq dopri5, VP in t", False, with_peer("t", peers.with_torchdiffeq("dopri5")), tols=HALVES[:7:2]
)


def sweep(method: Method, case: Case) -> Sweep:
    """Looser to tighter tolerances, until the mean error is below the least wanted; peers' are kept on disk."""
    if method.ours:
        return _sweep(method, case)
    mark = f"{peers.versions()} {torch.__version__} {method.name} {float(case.exact.sum()):.9e} {case.scale} 1"
    key = hashlib.sha256(mark.encode()).hexdigest()[:16]
    name = f"adaptive-{case.name}-{case.process_name}-{key}"
    return [Outcome(**part) for part in kept(name, lambda: [one.plain() for one in _sweep(method, case)])]


def _sweep(method: Method, case: Case) -> Sweep:
    stride = 2 if case.name in HEAVY and not method.full else 1
    found: Sweep = []
    for tol in method.tols[:: stride if len(method.tols) > 4 else 1]:
        with torch.no_grad():
            found.append(method.run(case, tol))
        enough = found[-1].mean < case.least and tol < 2e-3
        if enough and not (method.full and tol > 1.5e-7):
            break
    return found


def evaluations(found: Sweep, wanted: float, count: str = "rows", measure: str = "mean") -> float:
    """Evaluations to an error, log-log between tolerances: after the last one above it, nan if never reached.

    count: "rows", evaluated rows per sample, or "calls" of the network. measure: "mean" or "rmse".
    """
    errors = [getattr(one, measure) for one in found]
    spent = [float(getattr(one, count)) for one in found]
    above = [i for i, e in enumerate(errors) if not e <= wanted]
    if not above:
        return spent[0]
    last = above[-1]
    if last + 1 == len(found):
        return math.nan
    e0, e1, n0, n1 = errors[last], errors[last + 1], spent[last], spent[last + 1]
    if not (math.isfinite(e0) and e0 > e1 > 0 and n0 > 0):
        return n1
    share = math.log(e0 / wanted) / math.log(e0 / e1)
    return math.exp(math.log(n0) + share * (math.log(n1) - math.log(n0)))
