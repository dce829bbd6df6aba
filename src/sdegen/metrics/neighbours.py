"""Precision, recall, density and coverage: whether samples lie where the target's do, by nearest neighbours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import Features, Parts, Split, features, take, target_features
from sdegen.metrics.target import F64, Target, pair
from sdegen.metrics.ustatistics import squares

_TILE = 1 << 20


def precision(fx: Tensor, fy: Tensor, *, k: int = 3) -> float:
    """The fraction of x within some ball of y, each as wide as the distance to its k-th neighbour in y.

    fx `[n, F]`, fy `[m, F]` features (samples are flattened), m > k. Source: Kynkaanniemi et al. (2019), eq. 2. Raises
    InvalidArgumentError and InvalidTypeError on wrong samples and k.
    """
    return _inside(*pair(fx, fy), k)


def recall(fx: Tensor, fy: Tensor, *, k: int = 3) -> float:
    """The fraction of y within some ball of x: `precision(fy, fx)`. Source: Kynkaanniemi et al. (2019), eq. 2."""
    return precision(fy, fx, k=k)


def density(fx: Tensor, fy: Tensor, *, k: int = 5) -> float:
    """The mean number of balls of y that a sample of x lies in, over k: about 1 for exact samples.

    Arguments and errors as `precision`. Source: Naeem et al. (2020), eq. 3.
    """
    return _crowding(*pair(fx, fy), k)


def coverage(fx: Tensor, fy: Tensor, *, k: int = 5) -> float:
    """The fraction of y whose ball holds some x: for as many exact samples about `1 - 2^-k`.

    Arguments and errors as `precision`. Source: Naeem et al. (2020), eq. 4.
    """
    return _covered(*pair(fx, fy), k)


def radii(y: Tensor, k: int) -> Tensor:
    """Squared distances `[m]` to the k-th nearest other row of y `[m, F]`."""
    if not 1 <= k < len(y):
        raise InvalidArgumentError(f"k must be in 1 .. {len(y) - 1} for {len(y)} samples, got {k}")
    found, step = [], max(1, _TILE // len(y))
    for i in range(0, len(y), step):
        tile = squares(y[i : i + step], y)
        tile.diagonal(i).fill_(torch.inf)
        found.append(tile.kthvalue(k, dim=1).values)
    return torch.cat(found)


def _inside(x: Tensor, y: Tensor, k: int) -> float:
    return _fold(x, y, radii(y, k), lambda within: within.any(1)) / len(x)


def _crowding(x: Tensor, y: Tensor, k: int) -> float:
    return _fold(x, y, radii(y, k), lambda within: within.sum(1)) / (k * len(x))


def _covered(x: Tensor, y: Tensor, k: int) -> float:
    wide = radii(y, k)
    covered, step = torch.zeros(len(y), dtype=torch.bool, device=y.device), max(1, _TILE // len(y))
    for i in range(0, len(x), step):
        covered |= (squares(x[i : i + step], y) <= wide).any(0)
    return float(covered.to(F64).mean())


def _recalled(x: Tensor, y: Tensor, k: int) -> float:
    return _inside(y, x, k)


def _fold(x: Tensor, y: Tensor, wide: Tensor, count: Callable[[Tensor], Tensor]) -> float:
    """The sum over x of what `count` makes of `[rows, m]` truths: within a ball of y or not."""
    step = max(1, _TILE // len(y))
    return sum(float(count(squares(x[i : i + step], y) <= wide).sum()) for i in range(0, len(x), step))


@dataclass(frozen=True)
class _Neighbours(Split):
    """A fraction, which larger is better: failures give -inf."""

    features: Features | None = None
    failed: ClassVar[float] = -torch.inf

    @property
    @abstractmethod
    def _k(self) -> int: ...

    @staticmethod
    @abstractmethod
    def _measured(x: Tensor, y: Tensor, k: int) -> float: ...

    def parts(self, x: Tensor, target: Target) -> Parts:
        """Features once, and neighbours among parts of them."""
        y = target_features(self.features, target, self.name, x)
        centre = y.mean(0)
        a, b = features(self.features, x) - centre, y - centre
        return Parts(len(a), len(b), lambda i, j: self._measured(take(a, i), take(b, j), self._k))


@dataclass(frozen=True)
class Precision(_Neighbours):
    """`precision` of features (callable `[n, *S] -> [n, F]`, by default the flattened samples)."""

    k: int = 3
    name = "precision"
    _measured = staticmethod(_inside)

    @property
    def _k(self) -> int:
        return self.k


@dataclass(frozen=True)
class Recall(_Neighbours):
    """`recall` of features (callable `[n, *S] -> [n, F]`, by default the flattened samples)."""

    k: int = 3
    name = "recall"
    _measured = staticmethod(_recalled)

    @property
    def _k(self) -> int:
        return self.k


@dataclass(frozen=True)
class Density(_Neighbours):
    """`density` of features (callable `[n, *S] -> [n, F]`, by default the flattened samples)."""

    k: int = 5
    name = "density"
    _measured = staticmethod(_crowding)

    @property
    def _k(self) -> int:
        return self.k


@dataclass(frozen=True)
class Coverage(_Neighbours):
    """`coverage` of features (callable `[n, *S] -> [n, F]`, by default the flattened samples)."""

    k: int = 5
    name = "coverage"
    _measured = staticmethod(_covered)

    @property
    def _k(self) -> int:
        return self.k
