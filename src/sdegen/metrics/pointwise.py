"""Metrics that are means of one number per sample: the terminal error, the log-likelihood gap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.intervals import Interval, median, skewed
from sdegen.metrics.sums import Summed, Sums
from sdegen.metrics.target import F64, Target, checked, chunks, pair

STATISTICS = ("rms", "mean", "median")
_ROWS = 1 << 14


def sample_errors(x: Tensor, ends: Tensor) -> Tensor:
    """The root mean square over elements of `x - ends` `[n]` in float64, of samples `[n, *S]` that belong together."""
    return (x.to(F64) - ends.to(x.device, F64)).reshape(len(x), -1).square().mean(1).sqrt()


def rmse(x: Tensor, ends: Tensor) -> float:
    """The root mean square error `sqrt(mean_i mean_elements (x_i - ends_i)^2)` of samples `[n, *S]` of the same noise.

    Raises InvalidArgumentError and InvalidTypeError on wrong samples, and unless there is an end for every sample.
    """
    pair(x, ends)
    _check_rows(x, ends)
    return float(sample_errors(x, ends).square().mean().sqrt())


def _check_rows(x: Tensor, ends: Tensor) -> None:
    if len(x) != len(ends):
        raise InvalidArgumentError(
            f"rmse compares row by row: got {len(x)} samples and {len(ends)} ends; they must come from the same noise"
        )


@dataclass(frozen=True)
class RMSE(Summed):
    """The terminal error against a tight solve of the same noise, row by row: `e_i = rms over elements`, then `rmse`.

    statistic: "rms" `sqrt(mean e_i^2)`, "mean" or "median" of the e_i. The floor is that of the target's `ends_spare`.
    The interval of "rms" and "mean" is Hall's for skewed numbers: 95 % intervals of "rms" cover in 95 % of cases where
    `e^2` is lognormal of shape 1 and n = 1000 (skewness 6), in 92 % at shape 1.5 (33), in 89 % at shape 2 (414), in
    90 % for each of the three at n = 100: where few samples make up the error, there is no honest interval for "rms",
    and "median", whose interval is exact for every law, is the number to report.
    """

    statistic: Literal["rms", "mean", "median"] = "rms"
    name = "rmse"

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise InvalidArgumentError(f"statistic must be one of {', '.join(STATISTICS)}, got {self.statistic!r}")

    def phi(self, x: Tensor, target: Target) -> Tensor:
        """The errors, or their squares for "rms", `[n, 1]`."""
        ends = target.need("ends", self.name)
        _check_rows(x, ends)
        errors = sample_errors(x, ends)[:, None]
        return errors.square() if self.statistic == "rms" else errors

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        return math.sqrt(float(sums.mean)) if self.statistic == "rms" else float(sums.mean)

    def value(self, x: Tensor, target: Target) -> float:
        """The metric of samples that have been checked."""
        if self.statistic == "median":
            return median(self.phi(x, target).flatten(), 0.5).value
        return super().value(x, target)

    def _interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
        values = self.phi(x, target).flatten()
        if self.statistic == "median":
            return median(values, level)
        return skewed(values, level, power=2 if self.statistic == "rms" else 1)

    def floor(self, target: Target, n: int) -> float:
        """The metric of the first n of the less tight ends; NaN without any."""
        if target.ends is None or target.ends_spare is None:
            return math.nan
        if not 1 <= n <= min(len(target.ends), len(target.ends_spare)):
            raise InvalidArgumentError(
                f"a floor at n={n} needs n >= 1 and n rows of ends and of ends_spare, got {len(target.ends)} and "
                f"{len(target.ends_spare)}"
            )
        return self(target.ends_spare[:n], replace(target, ends=target.ends[:n]))


@dataclass(frozen=True)
class LogLikelihoodGap(Summed):
    """The mean log-density of samples less that of exact ones, `mean_i log p(x_i) - E log p`: zero for exact samples.

    Negative where samples lie too far out, positive where they lie too near the modes; one number, so zero is no proof.
    The expectation is a mean over `draws` exact samples drawn from `seed`, whose variance is in the interval (Hall's,
    for skewed numbers). Samples that are not finite give -inf. Raises InvalidArgumentError on a law without density.
    """

    draws: int = 50_000
    seed: int = 0
    name = "loglik"
    failed: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InvalidArgumentError(f"draws must be at least 2, got {self.draws}")

    def phi(self, x: Tensor, target: Target) -> Tensor:
        """`log p(x)` `[n, 1]`."""
        law = target.need("law", self.name)
        checked("x", x, law.shape)
        return torch.cat([law.log_prob(part) for part in chunks(x, _ROWS)])[:, None]

    def _expected(self, target: Target) -> tuple[float, float]:
        """E log p, and the variance of what stands for it."""

        def make() -> tuple[float, float]:
            logs = self.phi(target.need("law", self.name).sample(self.draws, seed=self.seed), target)
            return float(logs.mean()), float(logs.var()) / self.draws

        return target.keep(self, make)

    def finish(self, sums: Sums, target: Target, other: Sums | None = None) -> float:
        """From the sums."""
        return float(sums.mean) - self._expected(target)[0]

    def _interval(self, x: Tensor, target: Target, level: float, resamples: int, seed: int) -> Interval:
        expected, variance = self._expected(target)
        return skewed(self.phi(x, target).flatten() - expected, level, variance)
