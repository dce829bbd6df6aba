"""A mixture's exact denoiser as two matrix products, for benchmarks that call it a hundred thousand times.

The library's own keeps a sample's bits whatever its batch, which costs it the large products; this one does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen.processes.process import Process
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import ScoreModel


class Denoiser:
    """`E[data | x]` of components `m_k + U_k diag(e_k)^(1/2) z + floor z'`, U_k `[D, R]` orthonormal, e_k `[R]`."""

    def __init__(self, process: Process, law: GaussianMixture, bases: Tensor, e: Tensor, floor: float) -> None:
        self.process, self.e, self.full = process, e, bases.shape[1] == bases.shape[2]
        self.means, self.log_weights, self.floor = law.means.flatten(1), law.weights.log(), floor * floor
        self.stack = bases.transpose(0, 1).flatten(1).contiguous()  # [D, K R]
        self.back = self.stack.T.contiguous()
        self.inner = (self.means[:, None] @ bases).squeeze(1)  # [K, R]: U_k^T m_k
        self.norms = self.means.square().sum(1)

    def model(self) -> ScoreModel:
        """The score model that asks this denoiser."""
        return ScoreModel(self.process, self, "data")

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """The data's mean given x `[B, D]` at times `[B]`."""
        if bool((time == time[:1]).all()):
            time = time[:1]  # one level for all rows: what depends on it alone is worked out once
        level = self.process.level(time[:, None])
        y, s2 = x / level.alpha, (level.sigma / level.alpha).square()  # [B, D], [B, 1]
        c = (y @ self.stack).reshape(-1, *self.e.shape) - self.inner  # [B, K, R]
        variance = self.e + self.floor + s2[:, :, None]
        logits = self.log_weights - (c.square() / variance + variance.log()).sum(2) / 2
        rest, gain = torch.zeros_like(s2), (self.e + self.floor) / variance
        if not self.full:
            outside = y.square().sum(1, keepdim=True) - 2 * y @ self.means.T + self.norms - c.square().sum(2)
            logits = logits - outside / (self.floor + s2) / 2
            rest = self.floor / (self.floor + s2)
        w = logits.softmax(1)
        centre = w @ self.means
        inside = w[:, :, None] * (gain - rest[:, :, None]) * c
        result: Tensor = centre + rest * (y - centre) + inside.flatten(1) @ self.back
        return result
