"""Wasserstein-2 distances between two sets of samples: along directions, and exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.metrics.base import Parts, Split, take
from sdegen.metrics.intervals import Kind, Rows
from sdegen.metrics.projections import chosen, project
from sdegen.metrics.target import F64, Target, flat, pair
from sdegen.metrics.ustatistics import squares

LIMIT = 2000


def sliced_wasserstein(x: Tensor, y: Tensor, *, directions: int | Tensor = 128, seed: int = 0) -> float:
    r"""The sliced Wasserstein-2 distance of two sets of samples, `sqrt(mean_u int_0^1 (F_u^-1 - G_u^-1)^2)`.

    `F_u^-1`, `G_u^-1` are the quantiles of `u.x` and `u.y`; x `[n, *S]`, y `[m, *S]`, any n and m. directions: how many
    uniform on the sphere (drawn from `seed`, after the axes where these are no more), or `[P, D]` of your own. Source:
    Bonneel et al. (2015), sec. 2. Raises InvalidArgumentError and InvalidTypeError on wrong samples and directions.
    """
    a, b = pair(x, y)
    along = chosen(directions, seed, a)
    return math.sqrt(sorted_cost(project(a, along).sort(1).values, project(b, along).sort(1).values))


def sorted_cost(a: Tensor, b: Tensor) -> float:
    """`int (F^-1 - G^-1)^2`, averaged over rows, of sorted numbers `[P, n]` and `[P, m]`."""
    n, m = a.shape[1], b.shape[1]
    if n == m:
        return float((a - b).square().mean())
    # both quantile functions are constant between multiples of 1/n and 1/m; in units of 1/(n m) these are whole
    index = torch.arange(1, max(n, m) + 1, device=a.device)
    edges = torch.cat((index[:n] * m, index[:m] * n)).sort().values
    width = edges.diff(prepend=edges.new_zeros(1)).to(F64) / (n * m)
    i, j = (edges - 1) // m, (edges - 1) // n
    return float(((a[:, i] - b[:, j]).square() @ width).mean())


def wasserstein(x: Tensor, y: Tensor, *, limit: int = LIMIT) -> float:
    """The exact Wasserstein-2 distance of two sets of as many samples, `sqrt(min_p mean_i |x_i - y_p(i)|^2)`.

    x, y `[n, *S]`. The best assignment p takes n^2 memory and about n^3 time (scipy.optimize.linear_sum_assignment), so
    more than `limit` samples are refused: give the first `limit` of both, or take `sliced_wasserstein`. Raises
    InvalidArgumentError on that, on sets of different sizes, and without scipy; and on wrong samples as the others.
    """
    a, b = pair(x, y)
    if len(a) != len(b) or len(a) > limit:
        raise InvalidArgumentError(
            f"wasserstein takes as many samples of both, at most {limit}, got {len(a)} and {len(b)}; give the first "
            "of both, raise the limit, or take sliced_wasserstein"
        )
    return math.sqrt(assignment_cost(squares(a - b.mean(0), b - b.mean(0))))


def assignment_cost(costs: Tensor) -> float:
    """The mean cost of the best assignment, costs `[n, n]`."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise InvalidArgumentError("exact Wasserstein distances need scipy: pip install 'sdegen[grids]'") from None
    table = costs.cpu().numpy()
    return float(table[linear_sum_assignment(table)].mean())


@dataclass(frozen=True)
class SlicedWasserstein(Split):
    """`sliced_wasserstein` from the target's samples, along the same random directions for all."""

    directions: int = 128
    seed: int = 0
    name = "sw2"
    kind: ClassVar[Kind] = "root"

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise InvalidArgumentError(f"at least one direction is needed, got {self.directions}")

    def parts(self, x: Tensor, target: Target) -> Parts:
        """Both sets sorted along the directions; a part of a sorted set is sorted."""
        y = target.need("samples", self.name).to(x.device)
        along = chosen(self.directions, self.seed, x)
        a = project(x, along).sort(1)
        b = target.keep(("sorted", self, x.device), lambda: project(y, along).sort(1))

        def pick(whole: torch.return_types.sort, rows: Rows) -> Tensor:
            if rows is None:
                return whole.values
            inside = torch.zeros(whole.values.shape[1], dtype=torch.bool, device=x.device)
            inside[rows.to(x.device)] = True
            return whole.values[inside[whole.indices]].reshape(-1, len(rows))

        return Parts(len(x), len(y), lambda i, j: math.sqrt(sorted_cost(pick(a, i), pick(b, j))))


@dataclass(frozen=True)
class Wasserstein(Split):
    """`wasserstein` from the target's samples: of the first `min(n, m, limit)` of both."""

    limit: int = LIMIT
    name = "w2"
    kind: ClassVar[Kind] = "root"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InvalidArgumentError(f"limit must be at least 1, got {self.limit}")

    def parts(self, x: Tensor, target: Target) -> Parts:
        """The table of squared distances, of which parts are taken."""
        y = target.need("samples", self.name)
        n = min(len(x), len(y), self.limit)
        b = flat(y[:n]).to(x.device)
        costs = squares(flat(x[:n]) - b.mean(0), b - b.mean(0)).cpu()

        def value(i: Rows, j: Rows) -> float:
            return math.sqrt(assignment_cost(take(take(costs, i).T, j).T))

        return Parts(n, n, value)
