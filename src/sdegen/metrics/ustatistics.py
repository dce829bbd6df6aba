r"""Means of a kernel over pairs of different samples, with their variance, a tile of pairs at a time.

With `h1`, `h2` the parts of a kernel in the Hoeffding decomposition, `V1 = 4 var h1/n` and `V2 = 2 var h2/(n (n - 1))`
for one sample; two samples have a quadratic part for each of `xx`, `yy` and `xy` (4/(nm) there). The jackknife
variance, from row sums, expects `V1 + 2 V2`; the variance of `h2` is that of the doubly centred kernel. Source:
Hoeffding (1948), sec. 5; Efron and Stein (1981), sec. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.metrics.intervals import Spread
from sdegen.metrics.target import F64

Kernel = Callable[[Tensor, Tensor], Tensor]  # [a, F], [b, F] -> [a, b]
_TILE = 1 << 20


class Estimated(NamedTuple):
    """An unbiased mean over pairs, and its spread; the bias is what the pairs of a sample with itself would add."""

    value: float
    spread: Spread


class PairSums(NamedTuple):
    """Sums of a kernel over rows `[n]` and columns `[m]`, and of its squares; for one set, without the diagonal."""

    rows: Tensor
    columns: Tensor
    squares: float
    diagonal: float = 0.0

    @property
    def offset(self) -> float:
        """How much larger than the mean over different rows that over all pairs is expected to be."""
        n = len(self.rows)
        return (self.diagonal / n - float(self.rows.sum()) / (n * (n - 1))) / n

    def residue(self, pairs: int) -> float:
        """The variance of the doubly centred kernel over so many pairs."""
        n, m = len(self.rows), len(self.columns)
        mean = float(self.rows.sum()) / pairs
        linear = sum(float((v * len(v) / pairs).square().mean()) for v in (self.rows, self.columns))
        return max(0.0, self.squares / pairs - linear + mean * mean) if n > 1 and m > 1 else 0.0


def pair_sums(kernel: Kernel, x: Tensor, y: Tensor | None = None) -> PairSums:
    """The sums of a kernel over all pairs of x `[n, F]` and y `[m, F]`, or of different rows of x."""
    other = x if y is None else y
    rows, columns, squares, diagonal = [], torch.zeros(len(other), dtype=F64, device=x.device), 0.0, 0.0
    step = max(1, _TILE // len(other))
    for i in range(0, len(x), step):
        tile = kernel(x[i : i + step], other)
        if y is None:
            diagonal += float(tile.diagonal(i).sum())
            tile.diagonal(i).zero_()
        rows.append(tile.sum(1))
        columns += tile.sum(0)
        squares += float(torch.linalg.vector_norm(tile)) ** 2
    return PairSums(torch.cat(rows), columns, squares, diagonal)


def one_sample(own: PairSums) -> Estimated:
    """`1/(n (n - 1)) sum_(i != j) k(x_i, x_j)` of a symmetric kernel."""
    n = len(own.rows)
    pairs = n * (n - 1)
    linear = 4 * _variance(own.rows / (n - 1)) / n
    quadratic = 2 * own.residue(pairs) / pairs
    return Estimated(float(own.rows.sum()) / pairs, Spread(linear, quadratic, own.offset))


def two_samples(xx: PairSums, yy: PairSums, xy: PairSums) -> Estimated:
    """`mean_(i != j) k(x_i, x_j) + mean_(i != j) k(y_i, y_j) - 2 mean k(x_i, y_j)` of a symmetric kernel."""
    n, m = len(xx.rows), len(yy.rows)
    a, b = n * (n - 1), m * (m - 1)
    value = float(xx.rows.sum()) / a + float(yy.rows.sum()) / b - 2 * float(xy.rows.sum()) / (n * m)
    linear = 4 * _variance(xx.rows / (n - 1) - xy.rows / m) / n + 4 * _variance(yy.rows / (m - 1) - xy.columns / n) / m
    quadratic = 2 * xx.residue(a) / a + 2 * yy.residue(b) / b + 4 * xy.residue(n * m) / (n * m)
    return Estimated(value, Spread(linear, quadratic, xx.offset + yy.offset))


def _variance(v: Tensor) -> float:
    return float(v.var()) if len(v) > 1 else 0.0


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances `[n, m]` of `[n, F]` and `[m, F]`, by a matrix product (1e-16 of the squared norms is lost)."""
    inner = a @ b.T
    return inner.mul_(-2).add_(a.square().sum(1)[:, None]).add_(b.square().sum(1)).clamp_(min=0)
