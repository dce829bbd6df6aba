"""The calls that turn a metric into an estimate: `measure` and `floor`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from sdegen.errors import InvalidTypeError
from sdegen.metrics import intervals
from sdegen.metrics.base import Base, spare_floor, take
from sdegen.metrics.intervals import Interval, Rows
from sdegen.metrics.kernels import KID, MMD, Energy
from sdegen.metrics.masses import InceptionScore, InceptionScoreInfinity, ModeMasses
from sdegen.metrics.moments import CovarianceError, Frechet, FrechetInfinity, MeanError
from sdegen.metrics.neighbours import Coverage, Density, Precision, Recall
from sdegen.metrics.pointwise import RMSE, LogLikelihoodGap
from sdegen.metrics.stein import KernelStein
from sdegen.metrics.target import Estimate, Metric, Target, checked, failures
from sdegen.metrics.transport import SlicedWasserstein, Wasserstein

_ALL: tuple[Callable[[], Base], ...] = (
    RMSE,
    SlicedWasserstein,
    Wasserstein,
    MMD,
    Energy,
    KernelStein,
    MeanError,
    CovarianceError,
    ModeMasses,
    LogLikelihoodGap,
    Frechet,
    FrechetInfinity,
    InceptionScore,
    InceptionScoreInfinity,
    KID,
    Precision,
    Recall,
    Density,
    Coverage,
)
NAMES: MappingProxyType[str, Callable[[], Metric]] = MappingProxyType({made().name: made for made in _ALL})


def measure(
    metric: Metric,
    x: Tensor,
    target: Target,
    *,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    floor: float | None = None,
) -> Estimate:
    """A metric of samples `[n, *S]`, its interval at this level, and its floor (worked out here unless it is given).

    The interval covers the metric's expectation over draws of the n samples and of the target's m samples, at these n
    and m: it says what another such experiment would show, its own bias included, and is to be read against the floor.
    (Of sw2, w2, mean, covariance and rmse, the root of the expected square.) In simulations at n = 200, 95 % intervals
    covered in 92 to 97 % of cases, both for exact samples and for others; those of frechet_inf are wider than
    they need be for exact samples. See `RMSE` for errors with heavy tails. Samples of one experiment must be
    independent. resamples: how many halves of the samples are measured for it, where there is no closed form; any
    callable with a name is measured so, on halves of its samples, of the target's `samples`, and of its `ends`, where
    there is one for each sample.

    Samples of which any is NaN or Inf make the value `failed` (inf where smaller is better, -inf where larger is, and
    for loglik), and the ends NaN: a metric of the others would hide it. `failures(x)` says how many there are.

    Raises InvalidArgumentError where the target lacks what the metric needs, on samples of another shape, a level
    outside of (0, 1) and fewer than 20 resamples; InvalidTypeError on what is no metric and no floating samples.
    """
    intervals.check(level, resamples)
    _check_metric(metric)
    if not isinstance(target, Target):
        raise InvalidTypeError(f"target must be a Target, got {type(target).__name__}: metrics.Target(samples) is one")
    x = checked("x", x, target.shape)
    least = _floor(metric, target, len(x)) if floor is None else floor
    if failures(x):
        return Estimate(getattr(metric, "failed", math.inf), math.nan, math.nan, least)
    if isinstance(metric, Base):
        return Estimate(*metric.interval(x, target, level, resamples, seed), least)
    return Estimate(*_custom(metric, x, target, level, resamples, seed), least)


def _custom(metric: Metric, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
    paired = target.ends is not None and len(target.ends) == len(x)

    def value(i: Rows, j: Rows) -> float:
        if i is None:
            return float(metric(x, target))
        samples = None if target.samples is None else take(target.samples, j)
        ends = take(target.ends, i) if paired and target.ends is not None else target.ends
        return float(metric(take(x, i), replace(target, samples=samples, ends=ends)))

    m = None if target.samples is None else len(target.samples)
    return intervals.split(value, len(x), m, level, resamples, seed, getattr(metric, "kind", "plain"))


def floor(metric: Metric, target: Target, n: int) -> float:
    """What exact samples show: the root mean square of a metric over the target's spare sets of n samples.

    For rmse, the value of the target's `ends_spare`. NaN where the target has none of these. Raises InvalidTypeError on
    what is no metric, InvalidArgumentError where there are spare samples but fewer than n.
    """
    _check_metric(metric)
    return metric.floor(target, n) if isinstance(metric, Base) else spare_floor(metric, target, n)


_floor = floor


def _check_metric(metric: object) -> None:
    if not callable(metric) or not isinstance(getattr(metric, "name", None), str) or isinstance(metric, type):
        raise InvalidTypeError(
            f"a metric is a callable (samples, target) -> float with a name, got {metric!r}; one of "
            "sdegen.metrics.NAMES[...](), for instance"
        )
