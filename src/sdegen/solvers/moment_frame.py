r"""The frame whose linear part is the exact reverse process of Gaussian data, direction by direction.

For data `N(m, C)`, `C = V diag(c_1..c_R) V^T + rest^2 (I - V V^T)`, every principal direction of `y = x/alpha` is
WIENER's equation with its own `sigma_data^2 = c_i`:

    dY/dtau_i = -(1+eta^2) Y + (1+eta^2) N_i,   tau_i = -log sqrt(c_i + s^2),   Y = y - m,
    N = data - m - C/s noise,

and N vanishes on such data, for every eta: one step is exact, in flow and law. On other data N is what the moments do
not say. (The Wiener filter `C (C + s^2)^-1` is the denoiser of the data's Gaussian.)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.covariances import tiled
from sdegen.scores.model import Model
from sdegen.solvers.base import check_score_model
from sdegen.solvers.eta import Eta
from sdegen.solvers.frames import Pulled
from sdegen.tensors import check_state, combine, like, softplus, widen

_FEW = 16


@dataclass(frozen=True, repr=False, eq=False)
class Moments(Pulled):
    """A frame for `Multistep` made of the data's mean `[*S]` and covariance, see this module's head.

    basis `[*S, R]` orthonormal, stds `[R]` along it, `rest` in all other directions; `Moments.of(samples)` finds them.
    Weights are worked out per direction, R projections per value and step. Levels `[]` only. Raises
    InvalidArgumentError unless shapes fit, the basis is orthonormal and widths are positive.
    """

    grouped = True
    mean: Tensor | None = None
    basis: Tensor | None = None
    stds: Tensor | None = None
    rest: float = 1.0

    def __post_init__(self) -> None:
        if self.mean is None or self.basis is None or self.stds is None:
            raise InvalidArgumentError("Moments takes mean, basis and stds; Moments.of(samples) finds them")
        rank = len(self.stds)
        if self.basis.shape != (*self.mean.shape, rank) or self.stds.ndim != 1:
            raise InvalidArgumentError(
                f"basis must be [*S, R] = {[*self.mean.shape, rank]}, as mean and stds; got {list(self.basis.shape)}"
            )
        flat = self.basis.detach().double().reshape(-1, rank)
        if not torch.allclose(flat.T @ flat, torch.eye(rank, dtype=flat.dtype, device=flat.device), atol=1e-5):
            raise InvalidArgumentError("the columns of basis must be orthonormal: torch.linalg.qr(basis).Q is")
        if not (bool((self.stds > 0).all()) and 0 < self.rest < math.inf):
            raise InvalidArgumentError("stds and rest must be positive and finite")

    @staticmethod
    def of(samples: Tensor, rank: int = 8, floor: float = 1e-3) -> Moments:
        """The moments of samples `[n, *S]`: their mean, the `rank` widest directions, the mean width of the others.

        Widths are at least `floor` times the widest. Raises InvalidArgumentError unless 0 < rank < n.
        """
        check_state(samples)
        n = samples.shape[0]
        if not 0 < rank < n:
            raise InvalidArgumentError(f"{n} samples show at most {n - 1} directions, got rank={rank}")
        mean = samples.double().mean(0)
        spread = (samples.double() - mean).flatten(1) / math.sqrt(n - 1)
        _, widths, turn = torch.linalg.svd(spread, full_matrices=False)
        rank = min(rank, spread.shape[1])
        others = max(spread.shape[1] - rank, 1)
        low = floor * float(widths[0])
        rest = math.sqrt(float(widths[rank:].square().sum()) / others)
        basis = turn[:rank].T.reshape(*samples.shape[1:], rank)
        return Moments(None, mean, basis, widths[:rank].clamp(min=low), max(rest, low))

    @functools.cached_property
    def _widths(self) -> Tensor:
        """The widths of all groups, those of the basis and then the rest, `[G]`."""
        stds: Tensor = self.stds  # type: ignore[assignment]
        return torch.cat([stds.detach().double().cpu(), torch.tensor([self.rest], dtype=torch.float64, device="cpu")])

    def _by_group(self, lam: Tensor) -> Tensor:
        """`lam + log sd`, `[G, *lam.shape]`."""
        return torch.log(self._widths).reshape(-1, *(1,) * lam.ndim) + lam

    def tau(self, lam: Tensor) -> Tensor:
        """`-log sqrt(c_i + s^2)` `[G, ...]`."""
        shifted = self._by_group(lam)
        return lam - softplus(2 * shifted) / 2

    def pace(self, lam: Tensor) -> Tensor:
        """`dtau/dlam = s^2 / (c_i + s^2)` `[G, ...]`."""
        return torch.sigmoid(-2 * self._by_group(lam))

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        """Per group, `[G]`."""
        n = torch.exp(-self.tau(next.lam))
        return next.alpha * n * torch.sqrt(-torch.expm1(-2 * eta * eta * (self.tau(next.lam) - self.tau(now.lam))))

    def asked(self, model: Model | ReverseSDE, level: Level, pair: Any) -> Any:
        """N has no pair: it is asked for direction by direction."""
        check_score_model(f"frame {self}", model)
        return self._value

    def _value(self, model: Model, x: Tensor, level: Level) -> Tensor:
        """`data - m - C/s noise` `[B, *S]`, N without its gain."""
        if level.t.ndim:
            raise InvalidArgumentError(f"{self} has weights per direction, and takes one level for all rows")
        data = widen(model(x, level, "data"))
        noise = combine((1 / level.sigma, x), (-level.alpha / level.sigma, data))
        ratio = level.alpha / level.sigma
        return data - self._mean(data) - self.total((ratio * self._widths.square(), noise))

    def join(self, now: Level, next: Level, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """The weighted sum, direction by direction; the first term is x, whose mean is left out and put back."""
        (decay, x), *rest = terms
        centred = combine((torch.ones_like(now.alpha), x), (-now.alpha, self._mean(x)))
        return self.total((decay, centred), *rest) + like(next.alpha, centred) * self._mean(centred)

    def kick(self, spread: Tensor, z: Tensor) -> Tensor:
        return self.total((spread, z))

    def _mean(self, x: Tensor) -> Tensor:
        mean: Tensor = self.mean  # type: ignore[assignment]
        return mean.to(x.device, widen(x).dtype).expand_as(x)

    def total(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """`sum_j (w_rest v + V ((w_i - w_rest) (V^T v)))` over weights `[G]` and states `[B, *S]`."""
        total = combine(*((weight[-1], v) for weight, v in terms))
        basis = self.basis.to(total.device, total.dtype).reshape(-1, len(self._widths) - 1)  # type: ignore[union-attr]
        part = total.new_zeros(total.shape[0], basis.shape[1])
        for weight, v in terms:
            extra = (weight[:-1] - weight[-1]).to(total.device, total.dtype)
            part = part + extra * tiled(widen(v).flatten(1), basis)
        if basis.shape[1] > _FEW:
            return total + tiled(part, basis.T).reshape(total.shape)
        # a matrix product would be padded to tiles, so that no row depends on its batch-mates; sums need none
        for r, column in enumerate(basis.T):
            total = total + part[:, r].reshape(-1, *(1,) * (total.ndim - 1)) * column.reshape(total.shape[1:])
        return total

    def __repr__(self) -> str:
        return f"Moments({len(self._widths) - 1} directions, rest={self.rest:.3g})"
