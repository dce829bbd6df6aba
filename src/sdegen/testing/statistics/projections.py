"""Samples and mixtures along directions: `u.x` of a Gaussian mixture is a one-dimensional mixture with an exact CDF."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.metrics.projections import chosen, directions, project
from sdegen.scores.covariances import Diagonal, Isotropic
from sdegen.scores.low_rank import FactorDiagonal, Spectral
from sdegen.scores.mixtures import GaussianMixture

F64 = torch.float64
_BUDGET = 1 << 22

__all__ = ["F64", "Marginals", "checked", "chosen", "directions", "distances", "marginals", "project", "rounding"]


def checked(name: str, x: Any, like: Tensor | GaussianMixture | None = None) -> Tensor:
    """Samples `[n, *S]`: finite, floating, at least one, of the sample shape of `like`.

    Raises InvalidTypeError on what is no floating tensor, InvalidArgumentError on the rest.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InvalidTypeError(f"{name} must be a floating tensor [n, *S], got {got}")
    if x.ndim == 0 or x.numel() == 0:
        raise InvalidArgumentError(f"{name} must be [n, *S] with at least one sample, got shape {list(x.shape)}")
    shape = None if like is None else like.shape[1:] if isinstance(like, Tensor) else like.shape
    if shape is not None and x.shape[1:] != shape:
        raise InvalidArgumentError(
            f"{name} has samples of shape {list(x.shape[1:])}, the target's are {list(shape)}; reshape one of them"
        )
    bad = int((~x.detach().reshape(len(x), -1).isfinite().all(1)).sum())
    if bad:
        raise InvalidArgumentError(f"{name} must be finite: {bad} of its {len(x)} samples are not; test those that are")
    return x.detach()


def rounding(x: Tensor) -> float:
    """How far rounding may have moved `u.x`, never 0: 16 units in the last place of x, and the error of the product.

    One unit for half precision, which stores samples but does not compute them.
    """
    flat = x.reshape(len(x), -1)
    size = float(torch.linalg.vector_norm(flat, dim=1, dtype=F64 if x.dtype == F64 else torch.float32).max())
    unit = torch.finfo(x.dtype).eps
    return max(1e-300, size * ((16 if unit < 1e-6 else 1) * unit + flat.shape[1] * torch.finfo(F64).eps))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances `[n, m]` of `[n, D]` and `[m, D]`, from differences, which keep the digits of small ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class Marginals(NamedTuple):
    """The laws of `u.x` along P directions: weights `[K]`, means and stds `[P, K]` of their components."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    @property
    def mean(self) -> Tensor:
        """The means `[P]`."""
        return self.means @ self.weights

    @property
    def std(self) -> Tensor:
        """The standard deviations `[P]`."""
        away = self.means - self.mean[:, None]
        return ((away.square() + self.stds.square()) @ self.weights).sqrt()

    def cdf(self, p: int, t: Tensor) -> Tensor:
        """`sum_k pi_k Phi((t - m_k)/s_k)` `[n]` along direction p at t `[n]`; a component without width is a jump."""
        m, s = self.means[p], self.stds[p]
        step = max(1, _BUDGET // len(m))
        parts = []
        for i in range(0, len(t), step):
            r = t[i : i + step, None] - m
            z = torch.where(s > 0, r / s.clamp(min=torch.finfo(F64).tiny), torch.where(r >= 0, math.inf, -math.inf))
            parts.append(torch.special.ndtr(z) @ self.weights)
        return torch.cat(parts).clamp(max=1.0)


def marginals(law: GaussianMixture, along: Tensor) -> Marginals:
    """The laws of `u.x`, x from the mixture, for unit vectors u `[P, D]`: `N(u.m_k, u^T Sigma_k u)`, weighted."""
    law = law.to(along.device)
    means = law.means.reshape(len(law), -1)
    return Marginals(law.weights, along @ means.T, _variances(law, along).clamp(min=0).sqrt())


def _variances(law: GaussianMixture, along: Tensor) -> Tensor:
    """`u^T Sigma_k u` `[P, K]`."""
    squares = along.square()
    match law.covariances:
        case Isotropic(e=e):
            return squares.sum(1, keepdim=True) * e
        case Diagonal(e=e):
            return squares @ e.T
        case FactorDiagonal(F=F, d=d):
            return (along @ F).square().sum(-1).T + squares @ d.T
        case Spectral(U=U, e=e, s=s):
            seen = along @ U
            rest = 0.0 if U.shape[1] == U.shape[2] else (along - seen @ U.mT).square().sum(-1) * s[:, None]
            return ((seen.square() * e[:, None]).sum(-1) + rest).T
    one = torch.eye(len(law), dtype=F64, device=along.device)
    return torch.stack([((along @ law.covariances.average(w, along.shape[1])) * along).sum(1) for w in one], 1)
