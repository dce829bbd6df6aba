"""Kernel Stein discrepancy: samples against the score of a law, without samples of the law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import positive
from sdegen.metrics.kernels import UMetric
from sdegen.metrics.target import Target, checked, chunks, failures, flat
from sdegen.metrics.ustatistics import Estimated, Kernel, one_sample, pair_sums, squares
from sdegen.scores.mixtures import GaussianMixture

_ROWS = 1 << 12


def kernel_stein(x: Tensor, score: Callable[[Tensor], Tensor], *, length: float = 1.0, exponent: float = -0.5) -> float:
    r"""The squared kernel Stein discrepancy of samples from the law with this score, unbiased (it may be negative).

    `mean_(i != j) u(x_i, x_j)`, `u = s.s' k + s.grad' k + s'.grad k + div grad' k`, `s = score(x)`, with the inverse
    multiquadric `k = (length^2 + |x - x'|^2)^exponent`. x `[n, *S]`, n >= 2, score `[n, *S] -> [n, *S]`; exponent in
    (-1, 0), for which it sees every kind of divergence. Sources: Liu, Lee and Jordan (2016), eq. 8; Gorham and Mackey
    (2017), thm 8. Raises InvalidArgumentError and InvalidTypeError on wrong samples, scores and numbers.
    """
    _check(length, exponent)
    x = checked("x", x, least=2)
    if failures(x):
        raise InvalidArgumentError(f"x must be finite: {failures(x)} of its {len(x)} samples are not")
    s = score(x)
    if s.shape != x.shape:
        raise InvalidArgumentError(f"the score must return the shape of x, {list(x.shape)}, got {list(s.shape)}")
    return one_sample(pair_sums(stein_kernel(length, exponent), torch.cat((flat(x), flat(s)), 1))).value


def stein_kernel(length: float, exponent: float) -> Kernel:
    """u of rows `(x, score)` `[n, 2 D]`."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        (x, s), (y, t) = a.chunk(2, 1), b.chunk(2, 1)
        r = squares(x, y)
        base = r + length * length
        slope = 2 * exponent * base.pow(exponent - 1)  # grad k = slope (x - y), grad' k = -slope (x - y)
        curve = 4 * exponent * (exponent - 1) * r * base.pow(exponent - 2)
        return (s @ t.T) * base.pow(exponent) + slope * (_inner(x, s, y, t) - x.shape[1]) - curve

    return kernel


def _inner(x: Tensor, s: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """`(t - s).(x - y)` of all pairs."""
    return x @ t.T - (y * t).sum(1) - (x * s).sum(1)[:, None] + s @ y.T


def mixture_score(law: GaussianMixture, x: Tensor) -> Tensor:
    """The exact score `[n, *S]` of a mixture at samples, some rows at a time."""
    parts = []
    with torch.enable_grad():
        for rows in chunks(x, _ROWS):
            rows = rows.detach().double().requires_grad_()
            parts.append(torch.autograd.grad(law.log_prob(rows).sum(), rows)[0])
    return torch.cat(parts)


def _check(length: float, exponent: float) -> None:
    positive("length", length)
    if not -1 < exponent < 0:
        raise InvalidArgumentError(f"exponent must be in (-1, 0), got {exponent}; -0.5 for instance")


@dataclass(frozen=True)
class KernelStein(UMetric):
    """`kernel_stein` under the target's law: squared, unbiased.

    length: by default the root mean square distance of two exact samples, `sqrt(2 tr Sigma)`. Samples and score are
    taken in units of it, so that the value does not depend on the samples' unit. Raises InvalidArgumentError on a law
    without density.
    """

    length: float | None = None
    exponent: float = -0.5
    name = "ksd"

    def __post_init__(self) -> None:
        _check(1.0 if self.length is None else self.length, self.exponent)

    def estimate(self, x: Tensor, target: Target) -> Estimated:
        """The value and its variance."""
        law: GaussianMixture = target.need("law", self.name)
        wide = target.keep("spread", lambda: math.sqrt(2 * float(law.cov().trace())))
        length = wide if self.length is None else self.length
        centre = law.mean().to(x.device).reshape(-1)
        # in units of `length`: x/length has the score length s
        rows = torch.cat(((flat(x) - centre) / length, flat(mixture_score(law, x)) * length), 1)
        return one_sample(pair_sums(stein_kernel(1.0, self.exponent), rows))
