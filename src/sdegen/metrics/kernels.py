"""Distances whose squares are means of a kernel: MMD, energy distance, KID, kernel Stein discrepancy."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import Base, Features, features, positive, target_features
from sdegen.metrics.intervals import Interval, quadratic
from sdegen.metrics.target import Target, pair
from sdegen.metrics.ustatistics import Estimated, Kernel, PairSums, pair_sums, squares, two_samples

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
KERNELS = ("gaussian", "rational_quadratic")
_MEDIAN_OF = 2000


def two_sample_estimate(kernel: Kernel, x: Tensor, y: Tensor, own: PairSums | None = None) -> Estimated:
    """The unbiased squared distance of x `[n, F]` and y `[m, F]`; `own`: the sums of y's own pairs, where known."""
    return two_samples(pair_sums(kernel, x), own or pair_sums(kernel, y), pair_sums(kernel, x, y))


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    scale: float | None = None,
    bandwidths: Sequence[float] = BANDWIDTHS,
    kernel: str = "gaussian",
) -> float:
    r"""The squared maximum mean discrepancy, unbiased (it may be negative).

    `mean_(i != j) k(x_i, x_j) + mean_(i != j) k(y_i, y_j) - 2 mean k(x_i, y_j)` with the mean over bandwidths b of
    `exp(-r^2/(2 b^2 scale^2))`, or of `1/(1 + r^2/(2 b^2 scale^2))` for "rational_quadratic"; scale is by default the
    median distance of y's first 2000 samples. x `[n, *S]`, y `[m, *S]`, two of each or more; memory is `n + m` and a
    tile. Source: Gretton et al. (2012), eq. 3. Raises InvalidArgumentError and InvalidTypeError on wrong samples,
    kernels, and lengths that are not positive.
    """
    _check_mixture(kernel, scale, bandwidths)
    a, b = _centred(*pair(x, y, least=2))
    length = median_distance(b) if scale is None else scale
    return two_sample_estimate(mixture_kernel(kernel, length, tuple(bandwidths)), a, b).value


def energy_distance(x: Tensor, y: Tensor) -> float:
    """The energy distance `2 E|x - y| - E|x - x'| - E|y - y'|`, unbiased (it may be negative; the root is not taken).

    x `[n, *S]`, y `[m, *S]`, two of each or more. Source: Szekely and Rizzo (2013), eq. 2.5, over different samples.
    Raises InvalidArgumentError and InvalidTypeError on wrong samples.
    """
    return two_sample_estimate(energy_kernel, *_centred(*pair(x, y, least=2))).value


def kernel_distance(fx: Tensor, fy: Tensor, *, degree: int = 3) -> float:
    """The kernel inception distance: unbiased squared MMD with `(1 + f.g/F)^degree` of features `[n, F]`, `[m, F]`.

    Source: Binkowski et al. (2018), sec. 4. Raises as `mmd`.
    """
    return two_sample_estimate(polynomial_kernel(degree), *pair(fx, fy, least=2)).value


def median_distance(y: Tensor) -> float:
    """The median distance of the first 2000 samples `[m, D]`; raises InvalidArgumentError where it is zero."""
    some = y[:_MEDIAN_OF]
    i, j = torch.triu_indices(len(some), len(some), 1, device=y.device)
    length = float(squares(some, some)[i, j].median().sqrt())
    if not length > 0:
        raise InvalidArgumentError("the median distance of the target's samples is zero; give a scale of your own")
    return length


@functools.lru_cache(maxsize=64)
def mixture_kernel(kernel: str, length: float, bandwidths: tuple[float, ...]) -> Kernel:
    """The mean of Gaussian or rational-quadratic kernels."""

    def gaussian(a: Tensor, b: Tensor) -> Tensor:
        r = squares(a, b)
        return sum((torch.exp(r * f) for f in factors), torch.zeros_like(r)) / len(factors)

    def rational(a: Tensor, b: Tensor) -> Tensor:
        r = squares(a, b)
        return sum((1 / (1 - r * f) for f in factors), torch.zeros_like(r)) / len(factors)

    factors = [-0.5 / (b * length) ** 2 for b in bandwidths]
    return gaussian if kernel == "gaussian" else rational


def energy_kernel(a: Tensor, b: Tensor) -> Tensor:
    """`-|x - y|`."""
    return squares(a, b).sqrt_().neg_()


@functools.lru_cache(maxsize=8)
def polynomial_kernel(degree: int) -> Kernel:
    """`(1 + f.g/F)^degree`."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).div_(a.shape[1]).add_(1).pow_(degree)

    return kernel


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the mean of y, which saves the digits of distances."""
    centre = y.mean(0)
    return x - centre, y - centre


def _check_mixture(kernel: str, scale: float | None, bandwidths: Sequence[float]) -> None:
    if kernel not in KERNELS:
        raise InvalidArgumentError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if not bandwidths:
        raise InvalidArgumentError("give at least one bandwidth")
    for b in bandwidths:
        positive("a bandwidth", b)
    if scale is not None:
        positive("scale", scale)


class UMetric(Base):
    """A metric that is an unbiased mean over pairs, with its variance in closed form."""

    least: ClassVar[int] = 2

    @abstractmethod
    def estimate(self, x: Tensor, target: Target) -> Estimated:
        """The value and its variance."""

    def value(self, x: Tensor, target: Target) -> float:
        """The metric of samples that have been checked."""
        return self.estimate(x, target).value

    def _interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
        value, spread = self.estimate(x, target)
        if len(x) < 8:
            return Interval(value, math.nan, math.nan)
        low, high = quadratic(value + spread.bias, spread, level)
        return Interval(value, low - spread.bias, high - spread.bias)


class TwoSamples(UMetric):
    """One of these against the target's samples, whose own pairs are summed once."""

    @property
    def extract(self) -> Features | None:
        """The features in which the kernel is taken."""
        return None

    @abstractmethod
    def kernel_for(self, y: Tensor, keep: Callable[[Hashable, Callable[[], float]], float]) -> Kernel:
        """The kernel, for the target's features; `keep` remembers what was worked out from them."""

    def estimate(self, x: Tensor, target: Target) -> Estimated:
        """The value and its variance."""
        y = target_features(self.extract, target, self.name, x)
        if len(y) < 2:
            raise InvalidArgumentError(f"{self.name} needs at least 2 samples in the target, got {len(y)}")
        centre = y.mean(0) if self.extract is None else 0.0
        y, fx = y - centre, features(self.extract, x) - centre
        kernel = self.kernel_for(y, target.keep)
        own = target.keep(("pairs", self, x.device), lambda: pair_sums(kernel, y))
        return two_sample_estimate(kernel, fx, y, own)


@dataclass(frozen=True)
class MMD(TwoSamples):
    """`mmd` against the target's samples: squared, unbiased, in units of the kernel's 1.

    By default the scale is the median distance of the target's first 2000 samples; it counts as fixed in the interval.
    Raises InvalidArgumentError as `mmd`.
    """

    scale: float | None = None
    bandwidths: tuple[float, ...] = BANDWIDTHS
    kernel: str = "gaussian"
    name = "mmd"

    def __post_init__(self) -> None:
        _check_mixture(self.kernel, self.scale, self.bandwidths)

    def kernel_for(self, y: Tensor, keep: Callable[[Hashable, Callable[[], float]], float]) -> Kernel:
        """The mixture of kernels at the target's scale."""
        length = self.scale if self.scale is not None else keep("median distance", lambda: median_distance(y))
        return mixture_kernel(self.kernel, length, tuple(self.bandwidths))


@dataclass(frozen=True)
class Energy(TwoSamples):
    """`energy_distance` against the target's samples: unbiased, in the samples' unit, no root taken."""

    name = "energy"

    def kernel_for(self, y: Tensor, keep: Callable[[Hashable, Callable[[], float]], float]) -> Kernel:
        """`-|x - y|`."""
        return energy_kernel


@dataclass(frozen=True)
class KID(TwoSamples):
    """`kernel_distance` of features (callable `[n, *S] -> [n, F]`, by default the flattened samples): unbiased."""

    features: Features | None = None
    degree: int = 3
    name = "kid"

    def __post_init__(self) -> None:
        positive("degree", self.degree)

    @property
    def extract(self) -> Features | None:
        """The features in which the kernel is taken."""
        return self.features

    def kernel_for(self, y: Tensor, keep: Callable[[Hashable, Callable[[], float]], float]) -> Kernel:
        """The polynomial kernel."""
        return polynomial_kernel(self.degree)
