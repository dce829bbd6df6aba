"""A biased metric's limit of infinitely many samples (Chong and Forsyth 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, linear_regression

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import Parts, take
from sdegen.metrics.intervals import Rows
from sdegen.metrics.sums import SummedSplit, Sums
from sdegen.metrics.target import Target, chunks

PARTS = (1, 2, 4, 8)


def check_parts(parts: Sequence[int]) -> None:
    """Raises InvalidArgumentError unless a line can be drawn through parts of these numbers."""
    if len(set(parts)) < 2 or min(parts) < 1:
        raise InvalidArgumentError(f"give at least two different numbers of parts, of 1 or more each, got {parts}")


def extrapolated(metric: SummedSplit, x: Tensor, target: Target, parts: Sequence[int], seed: int) -> Parts:
    """The intercept of a metric's line in 1/n, ready to be taken on parts itself."""
    rows, others, known = metric.phi(x, target), metric.reference(target, x), metric.known(target, x)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)
    rows = rows[order]

    def value(i: Rows, j: Rows) -> float:
        some = take(rows, i)
        other = known if others is None or j is None else Sums.of(take(others, j), metric.second)
        sizes, means = [], []
        for p in parts:
            size = len(some) // p
            if size < metric.least:
                return math.nan
            pieces = chunks(some[: size * p], size)
            sizes.append(1 / size)
            means.append(fmean(metric.finish(Sums.of(piece, metric.second), target, other) for piece in pieces))
        return linear_regression(sizes, means).intercept

    return Parts(len(rows), None if others is None else len(others), value)
