"""Metrics of means over samples: what they sum, and streams that sum it a batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.metrics.base import Base, Parts, Split, take
from sdegen.metrics.intervals import Rows
from sdegen.metrics.target import Metric, Target, checked, failures


class Sums(NamedTuple):
    """Count, mean `[F]` and (where needed) sum of products of deviations `[F, F]` of rows, in float64.

    Merged by the pairwise update of Chan, Golub and LeVeque (1983), eq. 2.1, which loses no digits to the mean.
    """

    n: int
    mean: Tensor
    scatter: Tensor | None = None

    @staticmethod
    def of(rows: Tensor, second: bool) -> Sums:
        """The sums of rows `[n, F]`."""
        mean = rows.mean(0)
        away = rows - mean
        return Sums(len(rows), mean, away.T @ away if second else None)

    def merged(self, other: Sums) -> Sums:
        """The sums of both sets of rows."""
        n = self.n + other.n
        step = other.mean - self.mean
        mean = self.mean + step * (other.n / n)
        if self.scatter is None or other.scatter is None:
            return Sums(n, mean)
        between = torch.outer(step, step) * (self.n * other.n / n)
        return Sums(n, mean, self.scatter + other.scatter + between)

    @property
    def cov(self) -> Tensor:
        """The covariance `[F, F]`, unbiased."""
        if self.scatter is None or self.n < 2:
            raise InvalidArgumentError(f"a covariance needs at least 2 samples, got {self.n}")
        return self.scatter / (self.n - 1)


class Summed(Base):
    """A metric that is a function of `Sums` of some features of each sample alone."""

    second: ClassVar[bool] = False

    @abstractmethod
    def phi(self, x: Tensor, target: Target) -> Tensor:
        """The features `[n, F]` that are summed."""

    @abstractmethod
    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """The metric; `other`: the same sums of the target's samples, where the metric uses them."""

    def reference(self, target: Target, like: Tensor) -> Tensor | None:
        """The features `[m, F]` of the target's samples, or None where these are not used."""
        return None

    def known(self, target: Target, like: Tensor) -> Sums | None:
        """The sums of the target's features, worked out once."""
        rows = self.reference(target, like)
        if rows is None:
            return None
        return target.keep(("sums", self, like.device), lambda: Sums.of(rows, self.second))

    def value(self, x: Tensor, target: Target) -> float:
        """The metric of samples that have been checked."""
        return self.finish(Sums.of(self.phi(x, target), self.second), target, self.known(target, x))


class SummedSplit(Summed, Split):
    """One of these whose interval comes from parts."""

    def parts(self, x: Tensor, target: Target) -> Parts:
        """Features, worked out once; sums of parts."""
        rows, others, known = self.phi(x, target), self.reference(target, x), self.known(target, x)

        def value(i: Rows, j: Rows) -> float:
            other = known if others is None or j is None else Sums.of(take(others, j), self.second)
            return self.finish(Sums.of(take(rows, i), self.second), target, other)

        return Parts(len(rows), None if others is None else len(others), value)


class Stream:
    """A metric of samples that come in batches: `update` with each, `merge` with other streams, `compute` at any time.

    For rmse (but its median), mean, covariance, frechet, is, modes and loglik; equal to the metric of all samples at
    once to rounding, however they are split. `count` samples have come, of which `failed` are not finite (and make
    the metric what it is for such samples). Raises InvalidTypeError for other metrics.
    """

    def __init__(self, metric: Metric, target: Target) -> None:
        if not isinstance(metric, Summed) or getattr(metric, "statistic", None) == "median":
            raise InvalidTypeError(f"{metric!r} cannot be summed over batches; give it all samples at once")
        self.metric, self.target = metric, target
        self.count = self.failed = 0
        self._sums: Sums | None = None

    def update(self, x: Tensor, ends: Tensor | None = None) -> None:
        """Takes samples `[n, *S]`; for rmse, with the `ends` `[n, *S]` that belong to them."""
        target = self.target if ends is None else Target(ends=ends)
        x = checked("x", x, target.shape)
        bad = failures(x)
        self.count, self.failed = self.count + len(x), self.failed + bad
        if not bad:
            self._add(Sums.of(self.metric.phi(x, target), self.metric.second))

    def merge(self, other: Stream) -> None:
        """Takes what another stream of the same metric and target has seen, which stays as it is."""
        if other.metric != self.metric or other.target is not self.target:
            raise InvalidArgumentError("streams merge when their metric and target are the same; these are not")
        self.count, self.failed = self.count + other.count, self.failed + other.failed
        if other._sums is not None:
            self._add(other._sums)

    def compute(self) -> float:
        """The metric of all samples so far; raises InvalidArgumentError before the first."""
        if self.failed:
            return self.metric.failed
        if self._sums is None:
            raise InvalidArgumentError("this stream has seen no samples; update() it first")
        return self.metric.finish(self._sums, self.target, self.metric.known(self.target, self._sums.mean))

    def _add(self, sums: Sums) -> None:
        self._sums = sums if self._sums is None else self._sums.merged(sums)


def stream(metric: Metric, target: Target, batches: Iterable[Tensor] = ()) -> Stream:
    """A `Stream` of a metric that has taken these batches."""
    made = Stream(metric, target)
    for batch in batches:
        made.update(batch)
    return made
