r"""Covariances that need a rotation: any matrix by its eigenvectors, and low rank plus diagonal; and conditioning.

Eigenvectors are found once, when a mixture is built; a level only changes the eigenvalues (see `covariances`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdegen.errors import InvalidArgumentError
from sdegen.scores.covariances import LINE, LOG_2PI, Covariances, Weights, combine_isotropic, residuals, tiled

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Spectral(Covariances):
    """`Sigma_k = U_k diag(e_k) U_k^T + s_k (I - U_k U_k^T)`, U `[K, D, R]` orthonormal, e `[K, R]`, s `[K]`.

    R = D is any covariance, R < D low rank plus isotropic.
    """

    U: Tensor
    e: Tensor
    s: Tensor

    @staticmethod
    def of_dense(covs: Tensor) -> Spectral:
        """From positive semi-definite matrices `[K, D, D]`; eigenvalues at the level of rounding are zero."""
        e, basis = torch.linalg.eigh(covs)
        floor = covs.shape[-1] * _EPS * e[:, -1:].clamp(min=0)
        return Spectral(basis, torch.where(e > floor, e, 0.0), e.new_zeros(len(e)))

    @staticmethod
    def of_factors(factors: Tensor, s: Tensor) -> Spectral:
        """`F_k F_k^T + s_k I`, factors `[K, D, R]`, s `[K]`."""
        basis, root, _ = torch.linalg.svd(factors, full_matrices=False)
        return Spectral(basis, root * root + s[:, None], s)

    def eigen(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.U, self.e, self.s

    @property
    def full(self) -> bool:
        """Whether the eigenvectors span the space."""
        return self.U.shape[1] == self.U.shape[2]

    def width(self, dim: int, at: Weights) -> int:
        return len(self.e) * dim

    def log_density(self, x: Tensor, means: Tensor, at: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        r = residuals(x, means, at)
        u = tiled(r, self.U)
        seen = u.transpose(0, 1).contiguous()
        variance = at.columns(2).variance(self.e)
        total = (seen * seen / variance).sum(-1) + variance.log().sum(-1)
        if not self.full:
            rest = r - tiled(u, self.U.mT)
            s = at.columns(1).variance(self.s)
            total = total + (rest * rest).sum(-1).T.contiguous() / s + (x.shape[1] - self.e.shape[1]) * s.log()
        return -(total + x.shape[1] * LOG_2PI) / 2, (seen,)

    def combine(self, seen: tuple[Tensor, ...], x: Tensor, means: Tensor, w: Tensor, at: Weights) -> Tensor:
        gain = at.columns(2).gain(self.e)
        if self.full:
            total = at.columns(1).p * tiled(w, means)
        else:
            total = combine_isotropic(self.s, x, means, w, at)
            gain = gain - at.columns(2).gain(self.s[:, None])
        along = (w[..., None] * gain * seen[0]).flatten(1)
        return total + tiled(along, self.U.transpose(1, 2).flatten(0, 1))

    def draw(self, index: Tensor, z: Tensor) -> Tensor:
        out = torch.empty_like(z)
        for k, (basis, e, s) in enumerate(zip(self.U, self.e.sqrt(), self.s.sqrt(), strict=True)):
            rows = (index == k).nonzero()[:, 0]
            part = z[rows]
            if self.full:
                out[rows] = tiled(e * part, basis.T)
            else:
                out[rows] = s * part + tiled((e - s) * tiled(part, basis), basis.T)
        return out

    def average(self, w: Tensor, dim: int) -> Tensor:
        s = torch.zeros_like(self.s) if self.full else self.s
        basis = self.U.transpose(0, 1).flatten(1)
        total = (basis * (w[:, None] * (self.e - s[:, None])).flatten()) @ basis.T
        return total + (w * s).sum() * torch.eye(dim, dtype=w.dtype, device=w.device)

    def marginal(self, alpha: Tensor, sigma: Tensor) -> Spectral:
        return Spectral(self.U, *(alpha * alpha * v + sigma * sigma for v in (self.e, self.s)))

    def transport(self, r: Tensor, now: Weights, next: Weights) -> Tensor:
        u = tiled(r, self.U[0])
        now, next = now.columns(1), next.columns(1)
        along = tiled(now.stretch(self.e, next) * u, self.U[0].T)
        return along if self.full else along + now.stretch(self.s, next) * (r - tiled(u, self.U[0].T))

    @property
    def singular(self) -> Tensor:
        values = self.e if self.full else torch.cat((self.e, self.s[:, None]), 1)
        # roots, not variances, carry the rounding: those of a posterior come from a factor
        return (values.amin(1) <= (self.U.shape[1] * _EPS) ** 2 * values.amax(1)).any()


@dataclass(frozen=True, eq=False)
class FactorDiagonal(Covariances):
    """`Sigma_k = F_k F_k^T + diag(d_k)`, F `[K, D, R]`, d `[K, D]`: R columns are factorised anew at each level.

    With `N = alpha^2 d + sigma^2`, `G = alpha N^(-1/2) F` and `[G; I] = [Q1; Q2] T` (QR), `z = N^(-1/2) r` gives

        y = C^-1 r = N^(-1/2) (z - Q1 Q1^T z),   h = alpha F^T y = Q2 Q1^T z,
        r^T C^-1 r = y^T N y + |h|^2,            log det C = log det N + 2 log |det T|:

    Woodbury's identity by orthogonal matrices, as its normal equations lose half the digits (Bjorck 1996). Rows of G
    of very different size cost QR the digits of the small ones; two steps of iterative refinement bring them back (one
    is not enough: Higham 2002, ch. 12 and 19).
    """

    F: Tensor
    d: Tensor

    def width(self, dim: int, at: Weights) -> int:
        rank = self.F.shape[-1]
        return len(self.d) * (dim if at.alpha.ndim == at.sigma.ndim == 0 else (dim + rank) * rank)

    def log_density(self, x: Tensor, means: Tensor, at: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        dim, rank = self.F.shape[1:]
        scale, alpha = at.columns(2).variance(self.d), at.columns(2).alpha
        root = scale.sqrt()
        tall = at.columns(3).alpha * self.F / root[..., None]
        eye = torch.eye(rank, dtype=x.dtype, device=x.device).expand(*tall.shape[:-2], rank, rank)
        tall = pad(torch.cat((tall, eye), -2), (0, 0, 0, -(dim + rank) % LINE))  # each matrix starts on a cache line
        orthogonal, triangle = torch.linalg.qr(tall)
        upper, lower = orthogonal[..., :dim, :], orthogonal[..., dim : dim + rank, :]
        logdet = scale.log().sum(-1) + 2 * triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        r = residuals(x, means, at).transpose(0, 1).contiguous()
        along = _project(r / root, upper)
        y = (r / root - _project(along, upper.mT)) / root
        h = _project(along, lower.mT)
        for _ in range(2):
            miss = r - scale * y - alpha * alpha * _project(_project(y, self.F), self.F.mT)
            y = y + (miss / root - _project(_project(miss / root, upper), upper.mT)) / root
        return -((scale * y * y).sum(-1) + (h * h).sum(-1) + logdet + dim * LOG_2PI) / 2, (y, h)

    def combine(self, seen: tuple[Tensor, ...], x: Tensor, means: Tensor, w: Tensor, at: Weights) -> Tensor:
        y, h = seen
        wide, p = at.columns(2), at.columns(1).p
        own = w[..., None] * (wide.p * wide.alpha * self.d + wide.q * wide.sigma) * y
        shared = tiled((w[..., None] * h).flatten(1), self.F.transpose(1, 2).flatten(0, 1))
        return own.transpose(1, 2).contiguous().sum(-1) + p * (shared + tiled(w, means))

    def draw(self, index: Tensor, z: Tensor) -> Tensor:
        dim = self.F.shape[1]
        out = self.d.sqrt()[index] * z[:, :dim]
        for k in range(len(self.d)):
            rows = (index == k).nonzero()[:, 0]
            out[rows] += tiled(z[rows, dim:], self.F[k].T)
        return out

    def noises(self, dim: int) -> int:
        return dim + self.F.shape[-1]

    def average(self, w: Tensor, dim: int) -> Tensor:
        factors = self.F.transpose(0, 1).flatten(1)
        spread = (w[:, None].expand(-1, self.F.shape[-1])).flatten()
        return (factors * spread) @ factors.T + torch.diag((w[:, None] * self.d).sum(0))

    def marginal(self, alpha: Tensor, sigma: Tensor) -> FactorDiagonal:
        return FactorDiagonal(alpha * self.F, alpha * alpha * self.d + sigma * sigma)

    def transport(self, r: Tensor, now: Weights, next: Weights) -> Tensor:
        return Spectral(*self.eigen(r.shape[1])).transport(r, now, next)

    def eigen(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        found = Spectral.of_dense(self.F @ self.F.mT + torch.diag_embed(self.d))
        return found.U, found.e, found.s

    @property
    def singular(self) -> Tensor:
        return (self.d == 0).any()


def _project(z: Tensor, matrix: Tensor) -> Tensor:
    """`z @ matrix` `[B, K, R]` for z `[B, K, D]`; matrix `[K, D, R]`, or one per row, `[B, K, D, R]`."""
    if matrix.ndim == 3:
        return tiled(z.transpose(0, 1), matrix).transpose(0, 1).contiguous()
    return (z[..., None, :] * matrix.mT.contiguous()).sum(-1)


def condition(prior: Spectral, v: Tensor, A: Tensor, unit: float) -> tuple[Tensor, Spectral, Tensor]:
    """Given innovations v `[K, M]` of `A data + unit * noise`: moves `[K, D]`, covariances, log evidence `[K]` + const.

    In an orthonormal basis W of the prior's eigenvectors and the rows of A, `Sigma = W diag(roots^2) W^T` and
    `A W diag(roots) = U s V^T`: the gain is `W diag(roots) V diag(s/(s^2 + unit)) U^T`, and
    `W diag(roots) V diag(sqrt(unit/(s^2 + unit)))` a root of the posterior's covariance; unit is 1, or 0 if exact.
    Raises InvalidArgumentError where an exact observation has no density.
    """
    basis, roots = _joint_basis(prior, A)
    left, s, right = torch.linalg.svd((A @ basis) * roots[:, None], full_matrices=True)
    small = s.shape[1]
    total = pad(s, (0, len(A) - small)).square() + unit
    floor = torch.zeros_like(s[:, :1]) if unit else (max(len(A), roots.shape[1]) * _EPS * s[:, :1]).square()
    if bool((total <= floor).any()):
        raise InvalidArgumentError(
            "noise_std is 0 where A Sigma_k A^T is singular (redundant rows of A, or a component without width): the "
            "observation has no density there; give a positive noise_std, or drop the redundant rows"
        )
    t = (v[:, None] @ left)[:, 0]
    evidence = -(t * t / total + total.log()).sum(-1) / 2
    kick = (t[:, :small] * s / total[:, :small])[:, None] @ right[:, :small]
    shrink = torch.ones_like(roots)
    shrink[:, :small] = (unit / total[:, :small]).sqrt()
    turn, root, _ = torch.linalg.svd(roots[:, :, None] * right.mT * shrink[:, None])
    move = (basis @ (kick[:, 0] * roots)[..., None])[..., 0]
    return move, Spectral(basis @ turn, root * root, prior.s), evidence


def _joint_basis(prior: Spectral, A: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns `[K, D, E]`: eigenvectors, then what A needs beyond them; and the prior's stds along them."""
    count, dim, rank = prior.U.shape
    if prior.full:
        return prior.U, prior.e.sqrt()
    inner = min(dim, rank + len(A))
    tall = torch.cat((prior.U, A.T.expand(count, dim, len(A))), 2)
    beyond = torch.linalg.qr(tall, mode="complete" if inner == dim else "reduced")[0][:, :, rank:]
    roots = torch.cat((prior.e, prior.s[:, None].expand(count, inner - rank)), 1).sqrt()
    return torch.cat((prior.U, beyond), 2), roots
