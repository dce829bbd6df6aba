"""The masses of a mixture's modes, by responsibilities: their expectations are exactly the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError
from sdegen.scores.covariances import Weights
from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.statistics.bounds import Result, escaped, forgiven, kl, unlikely
from sdegen.testing.statistics.projections import F64, checked

# A stream of normals that no process, solver or mixture draws from.
_SMOOTH = (0x736D6F6F, 0xFFFFFFFF, 0, 0)


@dataclass(frozen=True, eq=False)
class _Masses:
    """Means of responsibilities, expected within `[low, high]` `[K]`; `worst` and `side` are the statistic's."""

    n: int
    low: Tensor
    high: Tensor
    weights: Tensor
    worst: int
    side: float
    proxy: float = math.inf
    ranks: int = 0

    def _edge(self, false_fail: float, side: float) -> Tensor:
        c = math.log(2 * len(self.weights) / false_fail) / self.n
        return unlikely(self.high if side else self.low, c, side)

    def critical(self, false_fail: float) -> float:
        edge = float((self._edge(false_fail, self.side) - self.weights)[self.worst].abs())
        return math.inf if math.isnan(edge) else edge

    def detectable(self, false_pass: float, false_fail: float) -> float:
        c, found = math.log(1 / false_pass) / self.n, []
        for side in (0.0, 1.0):
            edge = self._edge(false_fail, side)
            kept = ~edge.isnan()
            found += (escaped(edge[kept], c, side) - self.weights[kept]).abs().tolist()
        return max(found, default=math.inf)


def mode_test(x: Tensor, target: GaussianMixture, *, seed: int = 0, slack: float = 0.0) -> Result:
    """The masses of a mixture's K modes: `max_k |mean_i r_k(x_i) - pi_k|`, `r_k(x) = P(component k | x)`.

    Under the target `E r_k = pi_k` exactly, however much the modes overlap (counts of nearest modes have other
    expectations), and r_k is in [0, 1]: p-value `2 K exp(-n max_k kl(mean r_k, pi_k))` (Hoeffding 1963, thm 1). x
    `[n, *S]`; slack: a mass that any mode may have too much or too little. A law without density (a singular
    covariance) is tested after adding normals of 1 % of its spread, drawn from `seed`, to x and to the law.
    `detectable` is a change of mean responsibility: of mass, where modes are apart; down only where a mode is heavy
    enough to be missed. Raises InvalidArgumentError for a single component, and as `ks_test`.
    """
    slack, x = forgiven(slack), checked("x", x, target)
    if len(target) == 1:
        raise InvalidArgumentError(f"{target!r} has one mode, whose mass is always 1; use the other tests")
    seen, weights = _responsibilities(x, target.to(x.device), seed), target.to(x.device).weights
    low, high = (weights - slack).clamp(min=0), (weights + slack).clamp(max=1)
    rates = kl(seen, torch.minimum(torch.maximum(seen, low), high))
    worst = int(rates.argmax())
    n, side = len(x), float(seen[worst] >= weights[worst])
    p = min(1.0, 2 * len(weights) * math.exp(-n * float(rates[worst])))
    bound = _Masses(n, low, high, weights, worst, side)
    return Result(float((seen - weights)[worst].abs()), p, n, bound, f"mode {worst}")


def _responsibilities(x: Tensor, law: GaussianMixture, seed: int) -> Tensor:
    """The means of `P(component k | x)` `[K]`, some rows at a time."""
    means, logits = law.means.reshape(len(law), -1), law.weights.log()
    one = means.new_ones(())
    width = 0.01 * law.cov().diagonal().mean().sqrt() if bool(law.covariances.singular) else 0 * one
    at = Weights(one, width, one, width)
    step = max(1, (1 << 20) // law.covariances.width(means.shape[1], at))
    seeds, total = noises.seeds(seed, len(x), device=x.device), torch.zeros_like(logits)
    for i in range(0, len(x), step):
        part = x[i : i + step].reshape(-1, means.shape[1]).to(F64)
        if width > 0:
            part = part + width * noises.normals(seeds[i : i + step], part.shape[1:], _SMOOTH, dtype=F64)
        density, _ = law.covariances.log_density(part.contiguous(), means, at)
        total += (logits + density).softmax(-1).sum(0)
    return (total / len(x)).clamp(max=1.0)
