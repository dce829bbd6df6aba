r"""Covariances of mixture components, stored so that no level of noise costs a D x D decomposition.

At a level, component k is `N(alpha m_k, C_k)` with `C_k = alpha^2 Sigma_k + sigma^2 I`; write `r_k = x - alpha m_k`.
Every kind answers two questions about all K components at once,

    log N(x; alpha m_k, C_k)     and     sum_k w_k [p m_k + (p alpha Sigma_k + q sigma I) C_k^-1 r_k],

the second being the weighted mean of `p data + q noise` given x and the component. On an eigenvector of variance e it
is `p m + c r` with `c = (p alpha e + q sigma)/(alpha^2 e + sigma^2)`, or `d m + c x` with
`d = sigma (p sigma - q alpha)/(alpha^2 e + sigma^2)`: no difference of large numbers at either end of the levels.

A row's bits never depend on its batch: arithmetic is elementwise, sums run over a contiguous last dimension, and
matrix products are taken on tiles of a fixed number of rows, since their rounding changes with the shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdegen.tensors import uncast

TILE = 32
LINE = 8  # float64 numbers in a cache line
LOG_2PI = math.log(2 * math.pi)


class Weights(NamedTuple):
    """The scalars of a prediction `p data + q noise` at a level, each `[]` or `[B]`, float64."""

    alpha: Tensor
    sigma: Tensor
    p: Tensor
    q: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """With `function` applied to those that are `[B]`; a `[]` stays as it is, and may live on another device."""
        return Weights(*(function(v) if v.ndim else v for v in self))

    def rows(self, start: int, stop: int) -> Weights:
        """Those of the rows `start .. stop`."""
        return self.map(lambda v: v[start:stop] if v.shape[0] != 1 else v)

    def columns(self, dims: int) -> Weights:
        """Shaped `[B, 1, ...]`, with `dims` ones."""
        return self.map(lambda v: v.reshape(-1, *(1,) * dims))

    def variance(self, e: Tensor) -> Tensor:
        """The variance at the level along an eigenvector of variance e."""
        return self.alpha * self.alpha * e + self.sigma * self.sigma

    def gain(self, e: Tensor) -> Tensor:
        """c of this module's head."""
        return (self.p * self.alpha * e + self.q * self.sigma) / self.variance(e)

    def pull(self, e: Tensor) -> Tensor:
        """d of this module's head."""
        return self.sigma * (self.p * self.sigma - self.q * self.alpha) / self.variance(e)

    def stretch(self, e: Tensor, next: Weights) -> Tensor:
        """The ratio of the standard deviations at the next level and here."""
        return torch.sqrt(next.variance(e) / self.variance(e))


def budget(x: Tensor) -> int:
    """How many numbers a temporary may hold: what stays in a core's cache on a CPU, 128 MiB elsewhere."""
    return 1 << 18 if x.device.type == "cpu" and not torch.compiler.is_compiling() else 1 << 24


def tiled(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix`, x `[..., B, D]`, by tiles of `TILE` rows: every product has one shape, whatever B is.

    Rows start on cache lines (sizes padded to multiples of 8), or else a row's bits depend on its place in the tile.
    """
    (rows, inner), outer = x.shape[-2:], matrix.shape[-1]
    padded, square = pad(x, (0, -inner % LINE, 0, -rows % TILE)), pad(matrix, (0, -outer % LINE, 0, -inner % LINE))
    with uncast(x.device):
        parts = [padded[..., i : i + TILE, :].contiguous() @ square for i in range(0, rows, TILE)]
        return torch.cat(parts, -2)[..., :rows, :outer] if parts else x @ matrix


def residuals(x: Tensor, means: Tensor, at: Weights) -> Tensor:
    """`r_k` `[K, B, D]`."""
    return x - at.columns(1).alpha * means[:, None]


class Covariances(ABC):
    """K covariances of D dimensions; a kind is a frozen dataclass of float64 tensors whose first dimension is K."""

    aligned: ClassVar[bool] = False
    """Whether all matrices are diagonal."""

    @abstractmethod
    def width(self, dim: int, at: Weights) -> int:
        """How many numbers `log_density` holds per row of x."""

    @abstractmethod
    def log_density(self, x: Tensor, means: Tensor, at: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`log N(x; alpha m_k, C_k)` `[B, K]` for x `[B, D]`, means `[K, D]`; and what `combine` takes as `seen`."""

    @abstractmethod
    def combine(self, seen: tuple[Tensor, ...], x: Tensor, means: Tensor, w: Tensor, at: Weights) -> Tensor:
        """`sum_k w_k [p m_k + (p alpha Sigma_k + q sigma I) C_k^-1 r_k]` `[B, D]`, w `[B, K]`."""

    @abstractmethod
    def draw(self, index: Tensor, z: Tensor) -> Tensor:
        """Deviations `[n, D]` of covariance `Sigma_index` from unit normals z `[n, noises]`, index `[n]`."""

    @abstractmethod
    def average(self, w: Tensor, dim: int) -> Tensor:
        """`sum_k w_k Sigma_k` `[D, D]`, w `[K]`."""

    @abstractmethod
    def marginal(self, alpha: Tensor, sigma: Tensor) -> Covariances:
        """`alpha^2 Sigma_k + sigma^2 I`, alpha and sigma `[]`."""

    @abstractmethod
    def transport(self, r: Tensor, now: Weights, next: Weights) -> Tensor:
        """`C_next^(1/2) C_now^(-1/2) r` `[B, D]`, for K = 1."""

    @property
    @abstractmethod
    def singular(self) -> Tensor:
        """Whether some covariance is singular, as far as rounding lets one tell, `[]`."""

    @abstractmethod
    def eigen(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """`U [K, D, R]`, `e [K, R]`, `s [K]` with `Sigma_k = U_k diag(e_k) U_k^T + s_k (I - U_k U_k^T)`."""

    @property
    def points(self) -> bool:
        """Whether the components are known to be points, without width."""
        return False

    def dense(self, count: int, dim: int) -> Tensor:
        """All K = count of them as matrices `[K, D, D]`."""
        return torch.stack([self.average(w, dim) for w in torch.eye(count, dtype=torch.float64, device="cpu")])

    def by_chunks(self, x: Tensor, at: Weights, work: Callable[[Tensor, Weights], Tensor]) -> Tensor:
        """`work` on some rows of x `[B, D]` at a time, as memory allows; no row's result depends on the others."""
        fit = budget(x) // max(1, self.width(x.shape[1], at))
        step = max(1, fit if fit < TILE or at.alpha.ndim else fit // TILE * TILE)
        return torch.cat([work(x[i : i + step], at.rows(i, i + step)) for i in range(0, max(1, len(x)), step)])

    def noises(self, dim: int) -> int:
        """How many unit normals `draw` takes per sample."""
        return dim

    def map(self, function: Callable[[Tensor], Tensor]) -> Covariances:
        """The same kind with `function` applied to its tensors."""
        return replace(self, **{f.name: function(vars(self)[f.name]) for f in fields(self)})  # type: ignore[type-var,arg-type]


def _blocks(x: Tensor, count: int) -> tuple[int, int]:
    """How many rows and components one B x K x D temporary may take; the components do not depend on the batch."""
    dim, limit = max(1, x.shape[1]), budget(x)
    components = max(1, min(count, limit // dim))
    return max(1, limit // (components * dim)), components


def _squares(x: Tensor, means: Tensor, at: Weights, e: Tensor | None = None) -> Tensor:
    """`|r_k|^2` `[B, K]`, or `sum_i r_ki^2/var_ki + log var_ki` with e `[K, D]`: by blocks, from differences."""
    rows, components = _blocks(x, len(means))
    lines = []
    for i in range(0, max(1, len(x)), rows):
        here, line = at.rows(i, i + rows).columns(2), []
        for k in range(0, len(means), components):
            r = x[i : i + rows, None] - here.alpha * means[k : k + components]
            if e is None:
                line.append((r * r).sum(-1))
            else:
                variance = here.variance(e[k : k + components])
                line.append((r * r / variance).sum(-1) + variance.log().sum(-1))
        lines.append(torch.cat(line, 1))
    return torch.cat(lines)


def combine_isotropic(e: Tensor, x: Tensor, means: Tensor, w: Tensor, at: Weights) -> Tensor:
    """`combine` for `Sigma_k = e_k I`, without a B x K x D temporary."""
    at = at.columns(1)
    return (w * at.gain(e)).sum(-1, keepdim=True) * x + tiled(w * at.pull(e), means)


@dataclass(frozen=True, eq=False)
class _Aligned(Covariances):
    """Covariances without rotation: variances e `[K]` or `[K, D]` along the axes."""

    aligned = True
    e: Tensor

    def width(self, dim: int, at: Weights) -> int:
        return len(self.e)

    def marginal(self, alpha: Tensor, sigma: Tensor) -> Covariances:
        return type(self)(alpha * alpha * self.e + sigma * sigma)

    def transport(self, r: Tensor, now: Weights, next: Weights) -> Tensor:
        return now.columns(1).stretch(self.e, next.columns(1)) * r

    @property
    def singular(self) -> Tensor:
        return (self.e == 0).any()


@dataclass(frozen=True, eq=False)
class Isotropic(_Aligned):
    """`Sigma_k = e_k I`, e `[K]`; e = 0 for data points."""

    def log_density(self, x: Tensor, means: Tensor, at: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        variance = at.columns(1).variance(self.e)
        return -(_squares(x, means, at) / variance + x.shape[1] * (variance.log() + LOG_2PI)) / 2, ()

    def combine(self, seen: tuple[Tensor, ...], x: Tensor, means: Tensor, w: Tensor, at: Weights) -> Tensor:
        return combine_isotropic(self.e, x, means, w, at)

    def draw(self, index: Tensor, z: Tensor) -> Tensor:
        return self.e.sqrt()[index, None] * z

    def eigen(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        count = len(self.e)
        return self.e.new_zeros(count, dim, 0), self.e.new_zeros(count, 0), self.e

    @property
    def points(self) -> bool:
        return not bool(self.e.any())

    def average(self, w: Tensor, dim: int) -> Tensor:
        return (w * self.e).sum() * torch.eye(dim, dtype=w.dtype, device=w.device)


@dataclass(frozen=True, eq=False)
class Diagonal(_Aligned):
    """`Sigma_k = diag(e_k)`, e `[K, D]`."""

    def log_density(self, x: Tensor, means: Tensor, at: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        return -(_squares(x, means, at, self.e) + x.shape[1] * LOG_2PI) / 2, ()

    def combine(self, seen: tuple[Tensor, ...], x: Tensor, means: Tensor, w: Tensor, at: Weights) -> Tensor:
        rows, components = _blocks(x, len(means))
        # K comes last, where a sum's order does not depend on the other dimensions
        e, means = self.e.T.contiguous(), means.T.contiguous()
        parts = []
        for i in range(0, max(1, len(x)), rows):
            here, y = at.rows(i, i + rows).columns(2), x[i : i + rows, :, None]
            total = torch.zeros_like(x[i : i + rows])
            for k in range(0, means.shape[1], components):
                block = slice(k, k + components)
                terms = here.gain(e[:, block]) * y + here.pull(e[:, block]) * means[:, block]
                total = total + (w[i : i + rows, None, block] * terms).sum(-1)
            parts.append(total)
        return torch.cat(parts)

    def draw(self, index: Tensor, z: Tensor) -> Tensor:
        return self.e.sqrt()[index] * z

    def eigen(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        count, basis = len(self.e), torch.eye(dim, dtype=self.e.dtype, device=self.e.device)
        return basis.expand(count, dim, dim), self.e, self.e.new_zeros(count)

    def average(self, w: Tensor, dim: int) -> Tensor:
        return torch.diag((w[:, None] * self.e).sum(0))
