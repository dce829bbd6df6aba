"""What the metrics have in common: failed samples, values, intervals, floors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.metrics.intervals import Interval, Kind, Rows, split
from sdegen.metrics.target import Metric, Target, checked, chunks, failures, flat

Features = Callable[[Tensor], Tensor]


class Parts(NamedTuple):
    """A metric ready to be taken on parts of both sets: numbers of rows, and `value(rows, target rows)`."""

    n: int
    m: int | None
    value: Callable[[Rows, Rows], float]


class Base(ABC):
    """A metric whose samples are checked first: any that is NaN or Inf makes it `failed`."""

    name: str
    failed: ClassVar[float] = math.inf
    kind: ClassVar[Kind] = "plain"
    least: ClassVar[int] = 1

    def __call__(self, x: Tensor, target: Target) -> float:
        """The metric of samples `[n, *S]`; `failed` where any of them is not finite."""
        x = self._entered(x, target)
        return self.failed if failures(x) else self.value(x, target)

    def interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
        """The metric of finite samples, and the interval that `Estimate` describes."""
        return self._interval(self._entered(x, target), target, level, resamples, seed)

    def _entered(self, x: Tensor, target: Target) -> Tensor:
        return checked("x", x, target.shape, self.least)

    @abstractmethod
    def value(self, x: Tensor, target: Target) -> float:
        """The metric of samples that have been checked."""

    @abstractmethod
    def _interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval: ...

    def floor(self, target: Target, n: int) -> float:
        """The root mean square of the metric over the target's spare sets of n samples; NaN without any."""
        return spare_floor(self, target, n)


class Split(Base):
    """A metric whose interval comes from parts of both sets, whatever it is."""

    @abstractmethod
    def parts(self, x: Tensor, target: Target) -> Parts:
        """All that is worked out once, and the metric on parts."""

    def value(self, x: Tensor, target: Target) -> float:
        """The metric of samples that have been checked."""
        return self.parts(x, target).value(None, None)

    def _interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
        n, m, value = self.parts(x, target)
        return split(value, n, m, level, resamples, seed, self.kind)


def spare_floor(metric: Metric, target: Target, n: int) -> float:
    """The root mean square of a metric over the target's spare sets of n samples; NaN without any.

    Raises InvalidArgumentError where there are spare samples and fewer than n.
    """
    if target.spare is None:
        return math.nan
    if not 1 <= n <= len(target.spare):
        raise InvalidArgumentError(
            f"a floor at n={n} needs n >= 1 and at least n spare samples, the target has {len(target.spare)}; "
            "give it more, or none"
        )
    sets = chunks(target.spare, n)[: len(target.spare) // n]
    return math.sqrt(math.fsum(metric(x, target) ** 2 for x in sets) / len(sets))


def take(x: Tensor, rows: Rows) -> Tensor:
    """The rows, or all."""
    return x if rows is None else x[rows.to(x.device)]


def features(extract: Features | None, x: Tensor) -> Tensor:
    """`extract(x)` as `[n, F]` float64, or x itself, flattened. Raises InvalidTypeError, InvalidArgumentError."""
    if extract is None:
        return flat(x)
    out = extract(x)
    if not isinstance(out, Tensor):
        raise InvalidTypeError(f"features must return a tensor [n, F], got {type(out).__name__}")
    if out.ndim != 2 or len(out) != len(x):
        raise InvalidArgumentError(f"features must return [n, F] with n = {len(x)} rows, got shape {list(out.shape)}")
    return flat(out)


def target_features(extract: Features | None, target: Target, metric: str, like: Tensor) -> Tensor:
    """The features of the target's samples `[m, F]`, worked out once, on the device of `like`."""
    samples = target.need("samples", metric).to(like.device)
    return target.keep(("features", extract, like.device), lambda: features(extract, samples))


def positive(what: str, value: float) -> None:
    """Raises InvalidArgumentError unless a number is positive and finite."""
    if not 0 < value < math.inf:
        raise InvalidArgumentError(f"{what} must be positive and finite, got {value}")
