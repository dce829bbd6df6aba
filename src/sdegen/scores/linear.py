"""The exact score of a Gaussian mixture under a linear SDE."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdegen.processes.linear import LinearSDE, Series
from sdegen.processes.sde import ExactScore
from sdegen.tensors import as_time

if TYPE_CHECKING:
    from sdegen.scores.mixtures import GaussianMixture


class LinearScore(ExactScore):
    """The exact score `(x [B, *S], t [] or [B]) -> [B, *S]` of a mixture's law under a `LinearSDE`, and its density.

    Mixtures of isotropic components, or of variances that differ from block to block only, cost D0 x D0 matrices, all
    others D x D. Float64 inside. Raises InvalidArgumentError for mixtures of samples that A does not fit.
    """

    def __init__(self, sde: LinearSDE, mixture: GaussianMixture) -> None:
        self.sde, self.mixture = sde, mixture
        # blocks of A's size where every covariance is C (x) I_n with a diagonal C, full matrices otherwise
        count, n, self._covs, self._series = len(mixture), sde.blocks(mixture.means), mixture.dense(), sde.series
        flat = self._covs.diagonal(dim1=-2, dim2=-1).reshape(count, -1, n)
        if mixture.covariances.aligned and bool((flat == flat[..., :1]).all()):
            self._covs = torch.diag_embed(flat[..., 0])
        elif n > 1:
            A, B = (sde.wide(matrix, mixture.means) for matrix in (sde.A, sde.B))
            self._series, n = Series.of(A, B @ B.mT, float(sde.clock(as_time(sde.t_max)))), 1
        self._means = mixture.means.reshape(count, -1, n)

    @property
    def device(self) -> torch.device:
        """Where the mixture lies."""
        return self.mixture.means.device

    def __repr__(self) -> str:
        return f"LinearScore({self.mixture!r})"

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """`-sum_k w_k C_k^-1 (x - m_k)`, in x's dtype."""
        logits, root, away = self._seen(x, t)
        pull = torch.linalg.solve_triangular(root.mT, away, upper=True)
        mean: Tensor = (logits.softmax(1)[..., None, None] * pull).sum(1)
        return -mean.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """`log p(x, t)` `[B]`, float64."""
        return self._seen(x, t)[0].logsumexp(1)

    def _seen(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weight and density of each component `[B, K]`, roots of its covariances, `L^-1 (x - m_k)`."""
        step, spread = (part[..., None, :, :] for part in self._series(self.sde.clock(as_time(t))))
        covs = (step @ self._covs.to(step) @ step.mT + spread).to(x.device)
        means = (step @ self._means.to(step)).to(x.device)
        count, size, n = means.shape[-3:]
        gap = x.reshape(len(x), 1, size, n).to(torch.float64) - means
        root = torch.linalg.cholesky_ex(covs)[0].expand(len(x), count, size, size)
        away = torch.linalg.solve_triangular(root, gap, upper=False)
        volume = 2 * n * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        logits = -(away.square().sum((-2, -1)) + volume + size * n * math.log(2 * math.pi)) / 2
        return self.mixture.weights.log().to(x.device) + logits, root, away
