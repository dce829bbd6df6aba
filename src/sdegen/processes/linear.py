r"""Linear SDEs with matrices, `dx = beta(t) A x dt + sqrt(beta(t)) B dw`: exact transitions, marginals and scores.

With the clock `b = int beta dt` the state at b' > b is `Phi x + N(0, Q)`, with

    Phi(h) = exp(A h),   Q(h) = int_0^h exp(A u) B B^T exp(A u)^T du,   h = b' - b.

Both are summed as Taylor series at `h / 2^k` and doubled k times, `Q(2 h) = Q + Phi Q Phi^T`: a sum of positive parts,
where Van Loan's block exponential holds a growing and a shrinking one. A Gaussian mixture stays one:
`m -> Phi m`, `C -> Phi C Phi^T + Q`, so its density and score are known at every time.

A is `[D0, D0]` and acts on samples of `D = D0 n` elements as `A (x) I_n`: on the first axis of a sample `[D0, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, check_numbers, check_positive, strict_keywords
from sdegen.level import Level, check_span
from sdegen.processes.sde import SDE
from sdegen.tensors import as_time, check_type, like, numbers, readable

if TYPE_CHECKING:
    from sdegen.scores.mixtures import GaussianMixture

Rate = float | Callable[[Tensor], Tensor]
_TERMS = 16  # the series at |A| h <= 1/4: what is left is below 1e-20
_POINTS, _MASSES = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(32))
_GAUSS = ((_POINTS + 1) / 2, _MASSES / 2)  # on [0, 1]


@strict_keywords
@dataclass(frozen=True, eq=False)
class LinearSDE(SDE):
    """`dx = beta(t) A x dt + sqrt(beta(t)) B dw` on samples of D0 n elements, A `[D0, D0]`, B `[D0, M0]`.

    A and B act on blocks of n elements, as `A (x) I_n`: a sample of D0 elements is one of n = 1, and the first axis of
    a sample `[D0, ...]` is that of A. Wrong numbers of elements are an InvalidArgumentError when they are met.

    Args:
        A: [D0, D0], any matrix; decay has a negative sign, as in the drift.
        B: [D0, M0], of any rank.
        beta: a number, or a function of t `[...] -> [...]`, positive and smooth; its integral is taken by quadrature.
        t_min, t_max: the span; data are at t_min.
        data_cov: [D0, D0], the covariance at t_min of data of mean zero, from which the prior is `N(0, cov(t_max))`.
            Without it the prior is the stationary law, which exists where every eigenvalue of A has a negative real
            part.

    Raises:
        InvalidArgumentError: shapes that do not fit, numbers that are not finite, an empty span, a beta that is not
            positive; in `prior` where there is no stationary law and no data_cov.

    Source: Van Loan (1978) for Q; Särkkä and Solin (2019), sec. 6.1-6.2.
    """

    exact_transitions = True
    A: Any
    B: Any
    beta: Rate = 1.0
    t_min: float = 0.0
    t_max: float = 1.0
    data_cov: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_span(self.t_min, self.t_max)
        if not callable(self.beta):
            check_numbers(" or a function of t", beta=self.beta)
        A, B = numbers("A", self.A), numbers("B", self.B)
        if A.ndim != 2 or A.shape[0] != A.shape[1] or B.ndim != 2 or len(B) != len(A) or not A.numel() * B.numel():
            raise InvalidArgumentError(
                f"A must be [D0, D0] and B [D0, M0], got {list(A.shape)} and {list(B.shape)}; one number is [[value]]"
            )
        cov = None if self.data_cov is None else numbers("data_cov", self.data_cov)
        if cov is not None and cov.shape != A.shape:
            raise InvalidArgumentError(f"data_cov must be {list(A.shape)}, as A, got {list(cov.shape)}")
        for name, value in (("A", A), ("B", B), ("data_cov", cov)):
            object.__setattr__(self, name, value)
        ends = torch.linspace(self.t_min, self.t_max, 33, dtype=torch.float64, device="cpu")
        if not bool((self.rate(ends) > 0).all()):
            raise InvalidArgumentError(f"beta must be positive on [{self.t_min:g}, {self.t_max:g}]")

    @cached_property
    def series(self) -> Series:
        return Series.of(self.A, self.B @ self.B.mT, float(self.clock(as_time(self.t_max))))

    def rate(self, t: Tensor) -> Tensor:
        """beta(t), like t, float64."""
        t = as_time(t)
        if not callable(self.beta):
            return torch.full_like(t, self.beta)
        value = self.beta(t)
        if type(value) is not Tensor:
            check_type(value, Tensor, "beta(t) must return a tensor like t")
        return value.to(t.dtype).expand_as(t)

    def clock(self, t: Tensor, start: Tensor | None = None) -> Tensor:
        """`int beta` from `start` (t_min) to t, both `[]` or `[B]`: by Gauss-Legendre where beta is a function."""
        t = as_time(t)
        length = t - (self.t_min if start is None else as_time(start))
        if not callable(self.beta):
            return self.beta * length
        nodes, weights = (v.to(t.device) for v in _GAUSS)
        inside = t[..., None] - length[..., None] * (1 - nodes)
        return length * (self.rate(inside) * weights).sum(-1)

    def transition(self, now: Tensor | float, next: Tensor | float) -> tuple[Tensor, Tensor]:
        """`(Phi, Q)` `[..., D0, D0]` of `x_next = Phi x_now + N(0, Q)` for times `[]` or `[B]`, next not before now."""
        now, next = as_time(now), as_time(next)
        if readable(now) and readable(next) and bool((next < now).any()):
            raise InvalidArgumentError("the transition runs from data to noise: now must not be after next; swap them")
        return self.series(self.clock(next, now))

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """`beta(t) A x`."""
        return like(self.rate(t), x) * self._act(self.A, x)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """`sqrt(beta(t)) B`: a diagonal `[B, *S]` where B is one, else `[B, *S, M0 n]`."""
        n, B, shape = self.blocks(x), self.B.to(x), x.shape[1:]
        root = like(self.rate(t).sqrt(), x)
        if self._diagonal:
            g: Tensor = root * B.diagonal().repeat_interleave(n).reshape(shape).expand(x.shape)
            return g
        wide = torch.kron(B, torch.eye(n, dtype=x.dtype, device=x.device)).reshape(*shape, -1)
        return (root[..., None] if root.ndim else root) * wide.expand(len(x), *wide.shape)

    @cached_property
    def _diagonal(self) -> bool:
        square = self.B.shape[0] == self.B.shape[1]
        return square and bool((torch.diag(self.B.diagonal()) == self.B).all())

    def divergence(self, x: Tensor, t: Tensor) -> None:
        """None: B does not depend on x."""

    @cached_property
    def stationary(self) -> Tensor | None:
        """The covariance P `[D0, D0]` of the stationary law, `A P + P A^T + B B^T = 0`, or None where there is none."""
        if bool((torch.linalg.eigvals(self.A).real >= 0).any()):
            return None
        step, P = self.series(torch.tensor(1.0, dtype=torch.float64, device="cpu"))
        for _ in range(64):
            P, step = P + step @ P @ step.mT, step @ step
        return P

    def prior(self, seeds: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Samples `[B, *S]` of the stationary law, or of the marginal at t_max that `data_cov` gives."""
        cov = self.stationary
        if self.data_cov is not None:
            step, Q = self.transition(self.t_min, self.t_max)
            cov = step @ self.data_cov @ step.mT + Q
        if cov is None:
            raise InvalidArgumentError(
                "there is no stationary law (an eigenvalue of A has a real part >= 0): give data_cov or an x"
            )
        z = noises.normals(seeds, tuple(shape), (0, 0, 0, 0), dtype=dtype)
        return self._act(_root(cov), z)

    def transit(self, x: Tensor, now: Level, next: Level, z: Tensor) -> Tensor:
        """`Phi x + Q^(1/2) z`."""
        step, Q = self.series(self.clock(next.t, now.t))
        return self._act(step, x) + self._act(_root(Q), z)

    def marginal(self, mixture: GaussianMixture, t: Tensor | float) -> GaussianMixture:
        """The law at one time t `[]` of what the mixture is at t_min, itself a mixture, with full covariances."""
        step, Q = (self.wide(part, mixture.means) for part in self.transition(self.t_min, t))
        return mixture.through(step, Q)

    def wide(self, matrix: Tensor, x: Tensor) -> Tensor:
        """`matrix (x) I_n` `[D, D]` for samples like those of x `[B, *S]`."""
        return torch.kron(matrix, torch.eye(self.blocks(x), dtype=torch.float64, device="cpu"))

    def _act(self, matrix: Tensor, x: Tensor) -> Tensor:
        """`matrix (x) I_n` on x `[B, *S]`, matrix `[D0, D0]` or `[B, D0, D0]`: column by column, alike in any batch."""
        matrix, parts = matrix.to(x), x.reshape(len(x), len(self.A), self.blocks(x))
        terms = (matrix[..., j, None] * parts[:, j : j + 1] for j in range(len(self.A)))
        return sum(terms, torch.zeros_like(parts)).reshape(x.shape)

    def blocks(self, x: Tensor) -> int:
        """n, of samples with D0 n elements."""
        n, rest = divmod(math.prod(x.shape[1:]), len(self.A))
        if rest or not n:
            raise InvalidArgumentError(
                f"a sample must have a multiple of {len(self.A)} elements, as A has rows; got shape {list(x.shape[1:])}"
            )
        return n


@strict_keywords
@dataclass(frozen=True, eq=False)
class CLD(LinearSDE):
    """Critically damped Langevin dynamics: positions and velocities, noise on the velocities alone.

    `dx = beta v/M dt`, `dv = -beta (x + Gamma v/M) dt + sqrt(2 Gamma beta) dw`, on samples `[2, *S0]` of positions and
    velocities; the prior is the stationary law, `N(0, 1) x N(0, M)`. `lift` makes their law from one of positions.

    Args:
        mass: M.
        friction: Gamma; the critical `2 sqrt(M)` if left out.
        gamma: velocities start as `N(0, gamma M)`.
        beta: a number, or a function of t.

    Raises:
        InvalidArgumentError: mass, friction or gamma are not positive and finite.

    Source: Dockhorn, Vahdat and Kreis (2022), eq. 5; their values are the defaults.
    """

    A: Any = field(init=False, repr=False, default=None)
    B: Any = field(init=False, repr=False, default=None)
    beta: Rate = 4.0
    mass: float = 0.25
    friction: float | None = None
    gamma: float = 0.04

    def __post_init__(self) -> None:
        check_numbers(mass=self.mass)
        friction = 2 * math.sqrt(max(self.mass, 0.0)) if self.friction is None else self.friction
        check_positive(mass=self.mass, friction=friction, gamma=self.gamma)
        object.__setattr__(self, "A", [[0.0, 1 / self.mass], [-1.0, -friction / self.mass]])
        object.__setattr__(self, "B", [[0.0, 0.0], [0.0, math.sqrt(2 * friction)]])
        super().__post_init__()

    def lift(self, mixture: GaussianMixture) -> GaussianMixture:
        """The law at t_min of positions from `mixture` `[*S0]` and velocities `N(0, gamma M)`: samples `[2, *S0]`."""
        return mixture.beside(self.gamma * self.mass)


@strict_keywords
def OU(
    rate: float = 1.0,
    noise: float = math.sqrt(2.0),
    *,
    beta: Rate = 1.0,
    t_min: float = 0.0,
    t_max: float = 1.0,
    data_cov: Any = None,
) -> LinearSDE:
    """The Ornstein-Uhlenbeck process `dx = -rate x dt + noise dw`, on samples of any shape; the rest as `LinearSDE`."""
    check_numbers(rate=rate, noise=noise)
    return LinearSDE([[-float(rate)]], [[float(noise)]], beta, t_min, t_max, data_cov)


@dataclass(frozen=True, eq=False)
class Series:
    """`Phi(h)` and `Q(h)`: coefficients `[n, D, D]` of their Taylor series, and how often these are doubled."""

    step: Tensor
    spread: Tensor
    doublings: int

    @staticmethod
    def of(A: Tensor, noise: Tensor, longest: float) -> Series:
        """For lengths up to `longest`; noise is `B B^T`."""
        power, part = torch.eye(len(A), dtype=torch.float64, device="cpu"), noise
        steps, spreads = [], []
        for k in range(_TERMS):
            steps.append(power)
            spreads.append(part / (k + 1))
            # of exp(A u) B B^T exp(A u)^T the next derivative, over its factorial
            power, part = power @ A / (k + 1), (A @ part + part @ A.mT) / (k + 1)
        size = float(torch.linalg.matrix_norm(A, 2)) * longest
        return Series(torch.stack(steps), torch.stack(spreads), max(0, math.ceil(math.log2(max(4 * size, 1.0)))))

    def __call__(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """`(Phi, Q)` `[..., D, D]` for lengths `[...]`."""
        h = (length * 0.5**self.doublings)[..., None, None]
        step, spread = (torch.zeros_like(self.step[0]).to(h) for _ in range(2))
        for a, q in zip(self.step.flip(0).to(h.device), self.spread.flip(0).to(h.device)):
            step, spread = step * h + a, spread * h + q
        spread = spread * h
        for _ in range(self.doublings):
            step, spread = step @ step, spread + step @ spread @ step.mT
        return step, (spread + spread.mT) / 2


def _root(cov: Tensor) -> Tensor:
    """A root of covariances `[..., D, D]` that may be singular; scaled first, so that small variances keep digits."""
    scale = cov.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    e, basis = torch.linalg.eigh(cov / (scale[..., :, None] * scale[..., None, :]))
    root: Tensor = scale[..., None] * basis * e.clamp(min=0.0).sqrt()[..., None, :]
    return root
