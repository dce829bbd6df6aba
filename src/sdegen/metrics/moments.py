"""Errors of mean and covariance, and the Frechet distance with its limit of infinitely many samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import Features, Parts, Split, features, target_features
from sdegen.metrics.extrapolation import PARTS, check_parts, extrapolated
from sdegen.metrics.intervals import Kind
from sdegen.metrics.sums import SummedSplit, Sums
from sdegen.metrics.target import Target, flat, pair


def frechet(fx: Tensor, fy: Tensor) -> float:
    r"""The Frechet distance of Gaussians with the moments of features `[n, F]` and `[m, F]` (samples are flattened).

    `|a - b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`, squared as usual, of means a, b and unbiased covariances A,
    B; it is biased upwards, by about c/n. Sources: Dowson and Landau (1982), eq. 4; Heusel et al. (2017). Raises
    InvalidArgumentError and InvalidTypeError on wrong samples and fewer than 2 of them.
    """
    a, b = (Sums.of(v, True) for v in pair(fx, fy, least=2))
    return frechet_moments(a.mean, a.cov, b.mean, b.cov)


def frechet_moments(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """`frechet` of means `[F]` and covariances `[F, F]`."""
    e, v = torch.linalg.eigh(cov)
    root = (v * e.clamp(min=0).sqrt()) @ v.T
    cross = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * cross)


class _Moments(SummedSplit):
    """A function of the samples' mean and covariance, and of the law's where it is known, or else the target's."""

    second: ClassVar[bool] = True
    least: ClassVar[int] = 2

    @property
    def extract(self) -> Features | None:
        return None

    def _exact(self, target: Target) -> bool:
        return self.extract is None and target.law is not None

    def phi(self, x: Tensor, target: Target) -> Tensor:
        """The features."""
        return features(self.extract, x)

    def reference(self, target: Target, like: Tensor) -> Tensor | None:
        """The target's features, unless its law is known exactly."""
        return None if self._exact(target) else target_features(self.extract, target, self.name, like)

    def _other(self, sums: Sums, target: Target, other: Sums | None) -> tuple[Tensor, Tensor]:
        """Mean and covariance to compare with."""
        if other is not None:
            return other.mean, other.cov
        law = target.need("law", self.name)
        mean, cov = target.keep(("moments", sums.mean.device), lambda: _law_moments(law, sums.mean))
        return mean, cov


def _law_moments(law: object, like: Tensor) -> tuple[Tensor, Tensor]:
    return flat(law.mean()[None])[0].to(like.device), law.cov().to(like.device)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class MeanError(_Moments):
    """The error of the mean in units of the whole spread, `|mean - m|/sqrt(tr Sigma)`.

    m and Sigma are the law's, or those of the target's samples without one. Exact samples show about `1/sqrt(n)`.
    """

    name = "mean"
    kind: ClassVar[Kind] = "root"

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        mean, cov = self._other(sums, target, other)
        return math.sqrt(float((sums.mean - mean).square().sum() / _nonzero(cov.trace())))


@dataclass(frozen=True)
class CovarianceError(_Moments):
    """The relative error of the covariance, `|C - Sigma|_F/|Sigma|_F` with C unbiased.

    Sigma is the law's, or that of the target's samples without one. It costs D x D memory.
    """

    name = "covariance"
    kind: ClassVar[Kind] = "root"

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        _, cov = self._other(sums, target, other)
        size = _nonzero(torch.linalg.matrix_norm(cov))
        return float(torch.linalg.matrix_norm(sums.cov - cov) / size)


def _nonzero(size: Tensor) -> Tensor:
    if not float(size) > 0:
        raise InvalidArgumentError("relative errors need a target with some spread; this one's covariance is zero")
    return size


@dataclass(frozen=True)
class Frechet(_Moments):
    """`frechet` of features (callable `[n, *S] -> [n, F]`; by default the flattened samples).

    Without features, and where the target has a law, against the law's exact mean and covariance; else against its
    samples, whose number then adds its own part to the bias.
    """

    features: Features | None = None
    name = "frechet"
    kind: ClassVar[Kind] = "square"

    @property
    def extract(self) -> Features | None:
        """The features."""
        return self.features

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        return frechet_moments(sums.mean, sums.cov, *self._other(sums, target, other))


@dataclass(frozen=True)
class FrechetInfinity(Split):
    """`Frechet` extrapolated to infinitely many samples: the intercept of its line in 1/n.

    The line is that of least squares through the means over p disjoint parts of n/p samples (in an order drawn from
    `seed`), p in `divisions`. The target stays as it is: without an exact law the bias from its own number of samples
    remains. Source: Chong and Forsyth (2020), sec. 3, whose random subsets are here disjoint parts. The bias is linear
    in 1/n only where the smallest part has many more samples than features.
    """

    features: Features | None = None
    divisions: tuple[int, ...] = PARTS
    seed: int = 0
    name = "frechet_inf"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_parts(self.divisions)

    def parts(self, x: Tensor, target: Target) -> Parts:
        """Features once, extrapolated on parts."""
        return extrapolated(Frechet(self.features), x, target, self.divisions, self.seed)
