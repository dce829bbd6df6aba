"""Metrics of class probabilities: the masses of a mixture's modes, and the Inception Score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import Features, Parts, Split, features
from sdegen.metrics.extrapolation import PARTS, check_parts, extrapolated
from sdegen.metrics.intervals import Interval, Spread, quadratic
from sdegen.metrics.sums import Summed, SummedSplit, Sums
from sdegen.metrics.target import F64, Target, checked, chunks, failures, flat
from sdegen.scores.covariances import Weights
from sdegen.scores.mixtures import GaussianMixture


def responsibilities(x: Tensor, law: GaussianMixture) -> Tensor:
    """`P(component k | x)` `[n, K]` in float64, of samples `[n, *S]`; raises InvalidArgumentError without a density."""
    if bool(law.covariances.singular):
        raise InvalidArgumentError(f"{law!r} has no density: a covariance is singular; take its marginal() at a level")
    law = law.to(x.device)
    means, logits, one = law.means.reshape(len(law), -1), law.weights.log(), torch.ones((), dtype=F64)
    at = Weights(one, 0 * one, one, 0 * one)
    step = max(1, (1 << 20) // law.covariances.width(means.shape[1], at))
    parts = [law.covariances.log_density(flat(rows).contiguous(), means, at)[0] for rows in chunks(x, step)]
    return (torch.cat(parts) + logits).softmax(-1)


@dataclass(frozen=True)
class ModeMasses(Summed):
    r"""Chi-square of the masses of a mixture's K modes, over what exact samples expect: 1 is what they show.

    `n sum_k (r_k - pi_k)^2/pi_k / sum_k var(r_k(x))/pi_k`, `r_k` the mean over samples of `P(component k | x)`, whose
    expectation is exactly the weight pi_k, however much modes overlap; where they are apart, the divisor is the K - 1
    of Pearson's test. The variances are those of `draws` exact samples drawn from `seed`. Raises InvalidArgumentError
    on a law of one component, or without density.
    """

    draws: int = 20_000
    seed: int = 0
    name = "modes"

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InvalidArgumentError(f"draws must be at least 2, got {self.draws}")

    def phi(self, x: Tensor, target: Target) -> Tensor:
        """`(P(component k | x) - pi_k)/sqrt(pi_k)` `[n, K]`."""
        law: GaussianMixture = target.need("law", self.name)
        if len(law) == 1:
            raise InvalidArgumentError(f"{law!r} has one mode, whose mass is always 1; take another metric")
        weights = law.weights.to(x.device)
        return (responsibilities(x, law) - weights) / weights.sqrt()

    def _expected(self, target: Target) -> float:
        """`sum_k var(r_k)/pi_k`."""
        law = target.need("law", self.name)
        return target.keep(
            self, lambda: float(self.phi(law.sample(self.draws, seed=self.seed), target).square().mean(0).sum())
        )

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        return sums.n * float(sums.mean.square().sum()) / self._expected(target)

    def _interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
        sums = Sums.of(self.phi(x, target), True)
        value, n, scale = self.finish(sums, target), sums.n, sums.n / self._expected(target)
        if n < 8:
            return Interval(value, math.nan, math.nan)
        jackknife = 4 * float(sums.mean @ sums.cov @ sums.mean) / n
        second, bias = 2 * float(sums.cov.square().sum()) / n**2, float(sums.cov.trace()) / n
        spread = Spread(scale**2 * jackknife, scale**2 * second, scale * bias)
        return Interval(value, *quadratic(value, spread, level))


def inception_score(probabilities: Tensor) -> float:
    """The Inception Score `exp(mean_i KL(p_i || mean p))` of class probabilities `[n, K]`: 1 (worst) to K.

    It is biased downwards, by about c/n. Source: Salimans et al. (2016), sec. 4. Raises InvalidArgumentError unless
    the rows are probabilities.
    """
    p = checked("probabilities", probabilities)
    if p.ndim != 2 or failures(p) or bool((p < 0).any()) or bool(((p.to(F64).sum(1) - 1).abs() > 1e-2).any()):
        raise InvalidArgumentError("probabilities must be [n, K], not negative, and add up to 1 in each row")
    return _score(Sums.of(_entropies(flat(p)), False))


def _entropies(p: Tensor) -> Tensor:
    """Probabilities and their `sum p log p`, `[n, K + 1]`."""
    return torch.cat((p, torch.special.xlogy(p, p).sum(1, keepdim=True)), 1)


def _score(sums: Sums) -> float:
    p = sums.mean[:-1]
    return math.exp(float(sums.mean[-1] - torch.special.xlogy(p, p).sum()))


@dataclass(frozen=True)
class InceptionScore(SummedSplit):
    """`inception_score` of a classifier (callable `[n, *S] -> logits [n, K]`); larger is better, so failures give -inf.

    Without a classifier, the classes are the law's components and their probabilities exact.
    """

    classifier: Features | None = None
    name = "is"
    failed: ClassVar[float] = -math.inf

    def phi(self, x: Tensor, target: Target) -> Tensor:
        """Probabilities and their negative entropies."""
        if self.classifier is None:
            return _entropies(responsibilities(x, target.need("law", "`is` without a classifier")))
        return _entropies(features(self.classifier, x).softmax(1))

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        return _score(sums)


@dataclass(frozen=True)
class InceptionScoreInfinity(Split):
    """`InceptionScore` extrapolated to infinitely many samples, as `FrechetInfinity` (Chong and Forsyth 2020)."""

    classifier: Features | None = None
    divisions: tuple[int, ...] = PARTS
    seed: int = 0
    name = "is_inf"
    failed: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        check_parts(self.divisions)

    def parts(self, x: Tensor, target: Target) -> Parts:
        """Probabilities once, extrapolated on parts."""
        return extrapolated(InceptionScore(self.classifier), x, target, self.divisions, self.seed)
