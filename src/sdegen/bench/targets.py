"""What the samples of a problem are compared with: its exact law, held-out data, and ends of a tight solve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.bench.contenders import drawn
from sdegen.bench.problems import Problem
from sdegen.errors import InvalidArgumentError
from sdegen.metrics import NAMES, Metric, Target
from sdegen.starts import place
from sdegen.tensors import widen
from sdegen.tolerance import adaptive_default

TIGHT, ROUNDINGS = 1e-7, 200.0
"""The tolerance of the reference, or so many roundings of a narrower dtype."""
LOOSER = 10.0


def metric(given: str | Metric) -> Metric:
    """A metric by its short name, or as it is. Raises InvalidArgumentError for a name that there is none of."""
    if not isinstance(given, str):
        return given
    if given not in NAMES:
        raise InvalidArgumentError(f"unknown metric {given!r}: there are {', '.join(NAMES)}")
    return NAMES[given]()


def target(problem: Problem, metrics: Sequence[Metric], n: int, seed: int, batch_size: int | None) -> Target:
    """All that these metrics of n samples need; the reference is solved only where one of them does.

    Exact samples are of the law at t_min; held-out data are one half of the data, and floors are made of the other.
    Raises InvalidArgumentError where the reference has samples that are not finite.
    """
    samples, spare = exact(problem, n, seed)
    law = None if problem.law is None else problem.law.marginal(problem.process.level(problem.process.t_min))
    ends: list[Tensor] = []
    if any(m.name == "rmse" for m in metrics):
        dtype = place(problem.model, problem.dtype, None)[0]
        tight = max(TIGHT, ROUNDINGS * torch.finfo(widen(torch.empty(0, dtype=dtype)).dtype).eps)
        solver = adaptive_default(problem.model)
        for tol in (tight, LOOSER * tight):
            x = drawn(problem, n, seed, batch_size, solver=solver, tol=tol).x
            if not bool(x.isfinite().all()):
                raise InvalidArgumentError(
                    f"{problem.name}: the reference for rmse, a solve to {tol:g}, has samples that are not finite; "
                    "look at the model with sdegen.testing.audit, or leave rmse out"
                )
            ends.append(x)
    return Target(samples, spare, law, *ends)


def exact(problem: Problem, n: int, seed: int, sets: int = 8) -> tuple[Tensor | None, Tensor | None]:
    """Samples of what the problem's should be, `[4 n, *S]` or half of the data, and others for floors."""
    if problem.law is not None:
        level = problem.process.level(problem.process.t_min)
        first, second = noises.seeds(seed, 2).tolist()
        made = problem.law.marginal(level)
        return made.sample(4 * n, seed=first), made.sample(sets * n, seed=second)
    if problem.data is None:
        return None, None
    order = torch.randperm(len(problem.data), generator=torch.Generator().manual_seed(seed))
    half = len(order) // 2
    return problem.data[order[:half]], problem.data[order[half:]]
