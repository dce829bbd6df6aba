"""What the samples of a problem are compared with: its exact law, held-out data, and ends of a tight solve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.bench.answers import check_same
from sdegen.bench.contenders import drawn
from sdegen.bench.problems import Problem
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.metrics import NAMES, Metric, Target
from sdegen.sampling.options import own
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import place
from sdegen.tensors import widen

TIGHT, ROUNDINGS = 1e-7, 200.0
"""The tolerance of the reference, or so many roundings of a narrower dtype."""
LOOSER = 10.0
MANY = 20_000
"""Exact samples are four times as many as those measured, up to this number or theirs."""


def metric(given: str | Metric) -> Metric:
    """A metric by its short name, or as it is. Raises InvalidArgumentError for a name that there is none of."""
    if not isinstance(given, str):
        if not isinstance(getattr(given, "name", None), str):
            raise InvalidTypeError(f"a metric is a name, or a callable (x, target) with a name, got {given!r}")
        return given
    if given not in NAMES:
        raise InvalidArgumentError(f"unknown metric {given!r}: there are {', '.join(NAMES)}")
    return NAMES[given]()


def most(problem: Problem, n: int) -> int:
    """How many samples are measured: n, or as many as the half of the data that floors are made of has."""
    return n if problem.data is None else min(n, len(problem.data) - len(problem.data) // 2)


def check(problem: Problem, metrics: Sequence[Metric]) -> None:
    """Raises InvalidArgumentError for a metric that this problem has not what it needs for, before anything is run."""
    samples, spare = exact(problem, 8, 0, sets=1)
    x = torch.zeros(16, *problem.shape, dtype=torch.float64) if samples is None else samples[:16]
    few = Target(None if samples is None else x, None if spare is None else spare[:16], _law(problem), x, x)
    for m in metrics:
        m(x, few)
    check_same(problem)


def target(problem: Problem, metrics: Sequence[Metric], n: int, seed: int, batch_size: int | None) -> Target:
    """All that these metrics of n samples need; the reference is solved only where one of them does.

    Exact samples are of the law at t_min; held-out data are one half of the data, and floors are made of the other.
    Raises InvalidArgumentError where the reference has samples that are not finite.
    """
    ends = references(problem, n, seed, batch_size) if any(m.name == "rmse" for m in metrics) else ()
    others = any(m.name != "rmse" for m in metrics)
    samples, spare = exact(problem, n, seed) if others else (None, None)
    return Target(samples, spare, _law(problem), *ends)


def references(problem: Problem, n: int, seed: int, batch_size: int | None) -> tuple[Tensor, Tensor]:
    """Where a tight and a less tight solve take the noise of `seed`, `[n, *S]` each."""
    tight = tightest(problem, TIGHT)
    ends = [solved(problem, n, seed, batch_size, tol) for tol in (tight, LOOSER * tight)]
    if not all(bool(x.isfinite().all()) for x in ends):
        raise InvalidArgumentError(
            f"{problem.name}: the reference for rmse, a solve to {tight:g}, has samples that are not finite; look at "
            "the model with sdegen.testing.audit, or leave rmse out"
        )
    return ends[0], ends[1]


def tightest(problem: Problem, tol: float) -> float:
    """A tolerance, or so many roundings of the problem's states if that is more."""
    dtype = place(problem.model.module, problem.dtype, None, problem.model.device)[0]
    return max(tol, ROUNDINGS * torch.finfo(widen(torch.empty(0, dtype=dtype)).dtype).eps)


def solved(problem: Problem, n: int, seed: int, batch_size: int | None, tol: float) -> Tensor:
    """Where adaptive steps to a tolerance take the noise of `seed`, `[n, *S]`."""
    return drawn(problem, n, seed, batch_size, solver=own(problem.model, adaptive=True), tol=tol).x


def exact(problem: Problem, n: int, seed: int, sets: int = 8) -> tuple[Tensor | None, Tensor | None]:
    """Samples of what the problem's should be, up to `[4 n, *S]`, or half of the data; and others, for floors."""
    law = _law(problem)
    if law is not None:
        first, second = noises.seeds(seed, 2).tolist()
        return law.sample(min(4 * n, max(n, MANY)), seed=first), law.sample(sets * n, seed=second)
    if problem.data is None:
        return None, None
    order = torch.randperm(len(problem.data), generator=torch.Generator().manual_seed(seed)).to(problem.data.device)
    half = len(order) // 2
    return problem.data[order[:half]], problem.data[order[half:]]


def _law(problem: Problem) -> GaussianMixture | None:
    """The exact law at t_min."""
    return None if problem.law is None else problem.law.marginal(problem.process.level(problem.process.t_min))
