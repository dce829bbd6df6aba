r"""Intervals for the expectation of a metric, from one set of samples and one of the target's.

A metric T of n samples and m of the target's, or its square, behaves as a U-statistic: its variance is `V1 + V2` with
a linear part V1 ~ 1/n and a quadratic part V2 ~ 1/n^2, the latter alone at the null (the samples' law is the target's),
the former alone far from it. The jackknife answers `V1 + 2 V2` (Efron and Stein 1981), the bootstrap `V1 + 3 V2`, and
both are misled by ties: neither is right in both places. Here

- `split` takes random halves of both sets. With values a and b of the two halves, `((a - b)/2)^2` expects `V1 + 2 V2`,
  the linear part of the difference being that of the whole, and `(a + b)/2`, which has the linear part of the whole in
  every split, varies over splits by `V2`: any metric, no ties. Metrics that are no distances keep the jackknife's;
- means over pairs know both in closed form (`ustatistics`);
- `quadratic`: the linear part of a squared length grows with it, so the interval holds all lengths from which the
  observed one is no further than their own standard deviation allows, not the observed one's;
- `skewed` is for means of heavy-tailed numbers: Hall's transformation takes the skewness out of the t-statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist, fmean, variance
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.target import F64, chunks

Rows: TypeAlias = Tensor | None  # indices of rows; None: all of them
Kind: TypeAlias = Literal["plain", "square", "root"]


class Interval(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def check(level: float, resamples: int) -> None:
    """Raises InvalidArgumentError on a level outside of (0, 1) and on fewer than 20 resamples."""
    if not 0 < level < 1:
        raise InvalidArgumentError(f"level must be in (0, 1), got {level}; 0.95 for instance")
    if resamples < 20:
        raise InvalidArgumentError(f"resamples must be at least 20, got {resamples}; 200 for instance")


def quantile(level: float, freedom: float = math.inf) -> float:
    """The t-quantile of a two-sided interval (Cornish and Fisher's first term; Hill 1970, eq. 1)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    return z + (z**3 + z) / (4 * freedom)


def symmetric(value: float, variance: float, level: float, freedom: float = math.inf) -> Interval:
    """`value -+ t sqrt(variance)`."""
    half = quantile(level, freedom) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


class Spread(NamedTuple):
    """What is known of how a squared length varies: `V1 + 2 V2`, `V2`, and the part of its mean that noise adds."""

    jackknife: float
    second: float
    bias: float


def quadratic(total: float, spread: Spread, level: float, freedom: float = math.inf) -> tuple[float, float]:
    """The ends of an interval for the mean of a squared length `total = |d + noise|^2`, whose variance depends on it.

    Where the mean is `v + bias`, the variance is `4 c v + V2` with c the noise's variance along d, which is
    `(V1 + 2 V2)/(4 total)`. The ends solve `(total - bias - v)^2 = t^2 (4 c v + V2)`, with the total itself inside.
    """
    if not math.isfinite(sum(spread)):
        return math.nan, math.nan
    v, t2 = total - spread.bias, quantile(level, freedom) ** 2
    c = spread.jackknife / (4 * total) if total > 0 else 0.0
    half = math.sqrt(max(0.0, 4 * c * t2 * (v + c * t2) + t2 * spread.second))
    return min(total, total + 2 * c * t2 - half), total + 2 * c * t2 + half


def split(
    value: Callable[[Rows, Rows], float],
    n: int,
    m: int | None,
    level: float,
    resamples: int,
    seed: int,
    kind: Kind = "plain",
) -> Interval:
    """The interval of this module's head for `value(None, None)`, from `resamples` random halves.

    `value(i, j)` is the metric on the rows i of the samples and j of the target's (m None: the target has no rows).
    kind: "plain", or a "square" `|d + noise|^2`, or the "root" of one. The ends are NaN with fewer than 8 rows of
    either, and where a half has no finite value.
    """
    whole = value(None, None)
    if n < 8 or (m is not None and m < 8):
        return Interval(whole, math.nan, math.nan)
    generator, times, power = torch.Generator().manual_seed(seed), resamples // 2, 2 if kind == "root" else 1
    differences, means = [], []
    for _ in range(times):
        order = [None if size is None else torch.randperm(size, generator=generator) for size in (n, m)]
        halves = [[None, None] if o is None else chunks(o, len(o) // 2)[:2] for o in order]
        a, b = (value(i, j) ** power for i, j in zip(*halves))
        if not math.isfinite(a + b):
            return Interval(whole, math.nan, math.nan)
        differences.append((a - b) ** 2 / 4)
        means.append((a + b) / 2)
    spread = Spread(fmean(differences), variance(means), fmean(means) - whole**power)
    if kind == "plain":
        return symmetric(whole, spread.jackknife, level, times)
    low, high = quadratic(whole**power, spread, level, times)
    if kind == "root":
        return Interval(whole, min(whole, math.sqrt(max(0.0, low))), math.sqrt(max(0.0, high)))
    return Interval(whole, low, high)


def skewed(values: Tensor, level: float, extra: float = 0.0, power: int = 1) -> Interval:
    """For the mean of independent numbers `[n]` (less a known one, of variance `extra`), and its root.

    With `c = sum (v - mean)^3/(n s)^3`, `s` the mean's standard error, `t` is replaced by `t + c t^2/3 + c^2 t^3/27 +
    c/6`, which is normal to the next order (Hall 1992, eq. 2.2). The ends are NaN with fewer than 8 numbers.
    """
    n, mean = len(values), float(values.mean())
    root = max(0.0, mean) ** (1 / power) if power > 1 else mean
    if n < 8:
        return Interval(root, math.nan, math.nan)
    away = values - mean
    error = math.sqrt(float(away.square().sum()) / (n * (n - 1)) + extra)
    if error == 0:
        return Interval(root, root, root)
    c = float(away.pow(3).sum()) / (n * error) ** 3
    z = quantile(level, n - 1)
    low, high = (mean - error * _unskewed(v, c) for v in (z, -z))
    if power == 1:
        return Interval(root, low, high)
    return Interval(root, max(0.0, low) ** (1 / power), max(0.0, high) ** (1 / power))


def _unskewed(t: float, c: float) -> float:
    """The t whose transform is t: `3/c (cbrt(1 + c (t - c/6)) - 1)`."""
    if abs(c) < 1e-6:
        return t
    inner = 1 + c * (t - c / 6)
    return 3 / c * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def median(values: Tensor, level: float) -> Interval:
    """The median, and the order statistics that cover it with at least the level, whatever the law (exact)."""
    n, order = len(values), values.sort().values
    k = torch.arange(n + 1, dtype=F64)
    logs = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) - n * math.log(2)
    below = int((logs.exp().cumsum(0) <= (1 - level) / 2).sum())  # P(fewer than `below` are under the median)
    middle = float((order[(n - 1) // 2] + order[n // 2]) / 2)
    if below == 0:
        return Interval(middle, math.nan, math.nan)
    return Interval(middle, float(order[below - 1]), float(order[n - below]))
