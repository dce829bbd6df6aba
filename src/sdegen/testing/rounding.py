"""How far rounding may move an exact answer: first-order forward bounds, not tolerances chosen by taste."""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.scores.mixtures import GaussianMixture

F64 = torch.float64
UNIT = 2.0**-53


def covariances(mixture: GaussianMixture) -> Tensor:
    """The components' covariances `[K, D, D]`."""
    eye, dim = torch.eye(len(mixture), dtype=F64), mixture.means[0].numel()
    return torch.stack([mixture.covariances.average(row, dim) for row in eye])


def mixture_error(mixture: GaussianMixture, x: Tensor, level: Level, p: float, q: float) -> tuple[Tensor, Tensor]:
    r"""Bounds `[B]` of the float64 errors of `E[p data + q noise | x]` (norm over a sample) and of `log p(x)`.

    x `[B, *S]`, level `[]`. With `C = alpha^2 Sigma + sigma^2`, `y = C^-1 r`, `A = (p alpha Sigma + q sigma) C^-1`,
    `v = p m + A r` and c = 8 (D + K + 8) roundings of each operation, the errors of one component are those of

    - its inputs: r to `rho = c (|x| + |alpha m| + |C y|)`: `|y| rho` in the exponent, `|A| rho` in v;
    - its covariance, as decomposed: `|dSigma| <= c |Sigma|`: `alpha^2 (|y|^2 + tr C^-1) |dSigma|` in the exponent,
      `alpha |p - alpha A| |dSigma| |y|` in v;
    - its sums: `c (|r.y| + sum |log eig C| + D)` in the exponent, `c (|p m| + |A| |x| + |p - alpha A| |m|)` in v;

    and the mixture's are `sum_k w_k (|dv_k| + 2 |dexponent_k| |v_k - v|)` and `sum_k w_k |dexponent_k|`, first order in
    the rounding (Higham 2002, ch. 3, for the calculus of such bounds).
    """
    flat, (count, dim) = x.reshape(x.shape[0], -1).to(F64), (len(mixture), mixture.means[0].numel())
    a, s = (v.reshape(()).to(F64) for v in (level.alpha, level.sigma))
    c = 8 * (dim + count + 8) * UNIT
    e, basis = torch.linalg.eigh(covariances(mixture))
    e = e.clamp(min=0)
    m = mixture.means.reshape(count, 1, dim)
    own = (a * a * e + s * s)[:, None]
    e = e[:, None]
    gain = (p * a * e + q * s) / own
    left = p - a * gain
    r = (flat - a * m) @ basis
    y = r / own
    size, lefts = (v.abs().amax(-1) for v in (gain, left))
    rho = c * (flat.norm(dim=-1) + (a * m).norm(dim=-1) + (own * y).norm(dim=-1))
    shift = c * e.amax(-1)
    length = y.norm(dim=-1)
    logits = torch.stack([mixture._only(k).log_prob(x, level) for k in range(count)])
    w = (logits + mixture.weights.log()[:, None]).softmax(0)
    exponent = c * logits.abs() + length * rho + a * a * shift * (length**2 + (1 / own).sum(-1))
    exponent = exponent + c * ((r * y).sum(-1).abs() + own.log().abs().sum(-1) + dim)
    norm = m.norm(dim=-1)
    value = size * rho + a * lefts * shift * length + c * (abs(p) * norm + size * flat.norm(dim=-1) + lefts * norm)
    v = p * m + (gain * r) @ basis.mT
    away = (v - (w[..., None] * v).sum(0)).norm(dim=-1)
    # one point at the origin is known without error: a bound of 0 would divide what is compared with it
    return (w * (value + 2 * exponent * away)).sum(0) + 1e-300, (w * exponent).sum(0) + 1e-300
