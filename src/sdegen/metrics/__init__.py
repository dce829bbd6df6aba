r"""Distances between samples and what they should be, each with an interval and with what exact samples show.

Functions take two sets of samples, `[n, *S]` and `[m, *S]`; metrics take samples and a `Target`, and are measured:

    target = Target.of(law, 5000)
    measure(NAMES["energy"](), x, target)        # Estimate(value, low, high, floor)

| name | what | needs | exact samples show |
|---|---|---|---|
| `rmse` | distance to a tight solve of the same noise | `ends` | that of a less tight solve |
| `sw2`, `w2` | Wasserstein-2, along directions, and exact | `samples` | a bias that falls with n |
| `mmd`, `energy`, `kid` | unbiased squared distances of kernels | `samples` | 0 on average |
| `ksd` | kernel Stein discrepancy, squared, unbiased | `law` | 0 on average |
| `mean`, `covariance` | relative errors | `law`, or `samples` | about `n^-1/2` |
| `modes` | chi-square of mode masses per degree of freedom | `law` | 1 on average |
| `loglik` | mean log-density less that of exact samples | `law` | 0 on average |
| `frechet`, `frechet_inf` | Frechet distance; at infinite n | `law` or `samples` | about c/n; about 0 |
| `is`, `is_inf` | Inception Score; at infinite n | a classifier, or `law` | the law's own |
| `precision`, `recall`, `density`, `coverage` | nearest neighbours | `samples` | less than 1; density about 1 |

Samples are taken in any floating dtype, on any device; sums are float64. Pairs are taken a tile at a time: memory is
n + m. What is random is a function of a seed. Samples that are NaN or Inf make a metric infinite (`measure`).
"""

from __future__ import annotations

from sdegen.metrics.kernels import KID, MMD, Energy, energy_distance, kernel_distance, mmd
from sdegen.metrics.masses import InceptionScore, InceptionScoreInfinity, ModeMasses, inception_score, responsibilities
from sdegen.metrics.measuring import NAMES, floor, measure
from sdegen.metrics.moments import CovarianceError, Frechet, FrechetInfinity, MeanError, frechet
from sdegen.metrics.neighbours import Coverage, Density, Precision, Recall, coverage, density, precision, recall
from sdegen.metrics.pointwise import RMSE, LogLikelihoodGap, rmse, sample_errors
from sdegen.metrics.projections import directions
from sdegen.metrics.stein import KernelStein, kernel_stein
from sdegen.metrics.sums import Stream, Sums, stream
from sdegen.metrics.target import Estimate, Metric, Target, failures
from sdegen.metrics.transport import SlicedWasserstein, Wasserstein, sliced_wasserstein, wasserstein

__all__ = [
    "KID",
    "MMD",
    "NAMES",
    "RMSE",
    "CovarianceError",
    "Coverage",
    "Density",
    "Energy",
    "Estimate",
    "Frechet",
    "FrechetInfinity",
    "InceptionScore",
    "InceptionScoreInfinity",
    "KernelStein",
    "LogLikelihoodGap",
    "MeanError",
    "Metric",
    "ModeMasses",
    "Precision",
    "Recall",
    "SlicedWasserstein",
    "Stream",
    "Sums",
    "Target",
    "Wasserstein",
    "coverage",
    "density",
    "directions",
    "energy_distance",
    "failures",
    "floor",
    "frechet",
    "inception_score",
    "kernel_distance",
    "kernel_stein",
    "measure",
    "mmd",
    "precision",
    "recall",
    "responsibilities",
    "rmse",
    "sample_errors",
    "sliced_wasserstein",
    "stream",
    "wasserstein",
]
