"""Samples and mixtures along directions: `u.x` of a Gaussian mixture is a one-dimensional mixture with an exact CDF."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.covariances import Diagonal, Isotropic
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.mixtures import GaussianMixture
from sdegen.spectra import FactorDiagonal, Spectral

F64 = torch.float64
# A stream of normals that no process, solver or mixture draws from.
_DIRECTIONS = (0x64697273, 0xFFFFFFFF, 0, 0)
_BUDGET = 1 << 22


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


def directions(seed: int, count: int, dim: int) -> Tensor:
    """Unit vectors `[P, dim]`: `count` uniform on the sphere, after the axes if these are at most `count`."""
    if count < 1:
        raise InvalidArgumentError(f"at least one direction is needed, got {count}")
    if dim == 1:
        return torch.ones(1, 1, dtype=F64)
    v = noises.normals(noises.seeds(seed, count), (dim,), _DIRECTIONS, dtype=F64)
    random = v / v.square().sum(1, keepdim=True).sqrt()
    return torch.cat((torch.eye(dim, dtype=F64), random)) if dim <= count else random


def chosen(along: int | Tensor, seed: int, x: Tensor) -> Tensor:
    """The directions `[P, D]` for samples x: unit vectors along those given, or so many random ones."""
    dim = x[0].numel()
    if not isinstance(along, Tensor):
        return directions(seed, along, dim).to(x.device)
    if along.ndim != 2 or along.shape[1] != dim or not bool((along != 0).any(1).all()):
        raise InvalidArgumentError(f"directions must be [P, {dim}] and not zero, got shape {list(along.shape)}")
    return torch.nn.functional.normalize(along.to(x.device, F64))


def project(x: Tensor, along: Tensor) -> Tensor:
    """`u.x` in float64, `[P, n]`, of samples `[n, *S]` along `[P, D]`; x is widened a part at a time."""
    flat = x.reshape(len(x), -1)
    step = max(1, _BUDGET // flat.shape[1])
    return torch.cat([along @ flat[i : i + step].to(F64).T for i in range(0, len(flat), step)], 1)


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
