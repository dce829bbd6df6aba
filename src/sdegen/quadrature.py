r"""The one formula: integrate exactly, against an exponential kernel, the polynomial through a chosen set of nodes.

In a frame `dY/dtau = a Y + N`, so `Y(h) = e^{ah} Y(0) + int_0^h e^{a(h-u)} N(u) du`. With N the polynomial through
nodes `(u_j, N_j)`, in Newton form `N(u) = sum_k N[u_0..u_k] prod_{i<k} (u - u_i)`,

    int = sum_k N[u_0..u_k] I_k = sum_j w_j N_j,   I_k = int_0^h e^{a(h-u)} prod_{i<k} (u - u_i) du,
    w_j = sum_{k>=j} I_k / prod_{i<=k, i!=j} (u_j - u_i),

and the last term, k = m - 1, is the difference to the polynomial of one degree less: the local error estimate.
The I_k come from the moments `int e^{a(h-u)} u^n du = n! h^{n+1} phi_{n+1}(a h)` (Hochbruck & Ostermann 2010, eq. 2.10
and sec. 2.5). A node far away has no weight: history that does not exist yet is a node at `FAR`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdegen.frames import Eta, Frame
from sdegen.sde import Level
from sdegen.tensors import combine

FAR = 1e20
_SERIES = 26
_NEAR = 1.5
_TOP = 8
_INVERSE_FACTORIALS = torch.tensor(
    [[1 / math.factorial(n + k) for k in range(1, _TOP + 1)] for n in range(_SERIES + 1)], dtype=torch.float64
)
_SAME = torch.eye(_TOP, dtype=torch.bool)
_LATER = torch.ones(_TOP, _TOP, dtype=torch.bool).triu()
_GAUSS = tuple(torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24))  # points and masses on [-1, 1]


class Node(NamedTuple):
    """A value of N `[B, *S]`, and where it sits for interpolation (`Frame.coordinate`), `[]` or `[B]`."""

    at: Tensor
    value: Tensor


def phi(z: Tensor, count: int) -> Tensor:
    """`phi_1(z)..phi_count(z)` `[..., count]`, `phi_0 = e^z`, `phi_{k+1} = (phi_k - 1/k!)/z`.

    The series for `|z| < 1.5`, where the recursion cancels; the recursion elsewhere. No branch.
    """
    near = z.abs() < _NEAR
    small, large = torch.where(near, z, 0.0), torch.where(near, 1.0, z)
    terms = torch.cat([torch.ones_like(z)[..., None], small[..., None].expand(*z.shape, _SERIES)], -1)
    powers, table = torch.cumprod(terms, -1), _INVERSE_FACTORIALS[:, :count].to(z.device)
    series = (powers[..., None] * table).sum(-2)
    # phi_1 and then the recursion, whose rounding error of eps/|z|^k is harmless out here
    chain = [torch.expm1(large) / large]
    for k in range(1, count):
        chain.append((chain[-1] - 1 / math.factorial(k)) / large)
    return torch.where(near[..., None], series, torch.stack(chain, -1))


def _moments(a: Eta, h: Tensor, count: int) -> list[Tensor]:
    """`int_0^h e^{a(h-u)} u^n du`, n = 0..count-1, each `[]` or `[B]`."""
    if count == 1 and isinstance(a, float) and abs(a) > 1e-6:
        return [torch.expm1(a * h) / a]
    if isinstance(a, float) and a == 0.0:
        powers = [h]
        for _ in range(1, count):
            powers.append(powers[-1] * h)
        return [p / (n + 1) for n, p in enumerate(powers)]
    phis = phi(a * h, count)
    moments, factor = [], h
    for n in range(count):
        moments.append(factor * phis[..., n])
        factor = factor * h * (n + 1)
    return moments


def _newton(moments: list[Tensor], us: Tensor) -> list[Tensor]:
    """`I_k` from the moments: multiplying by `u - u_k` takes one moment less each time."""
    row, integrals = moments, [moments[0]]
    for k in range(len(moments) - 1):
        u = us[..., k]
        row = [higher - u * lower for higher, lower in zip(row[1:], row[:-1])]
        integrals.append(row[0])
    return integrals


def _weights(integrals: Tensor, us: Tensor) -> tuple[Tensor, Tensor]:
    """Node weights `[..., m]` from the I_k `[..., m]`, and the part of the last Newton term."""
    m = us.shape[-1]
    if m == 1:
        return integrals, integrals
    same, later = _SAME[:m, :m].to(us.device), _LATER[:m, :m].to(us.device)
    gaps = us[..., :, None] - us[..., None, :]
    products = torch.cumprod(torch.where(same, 1.0, gaps), -1)  # [j, k] = prod_{i<=k, i!=j} (u_j - u_i)
    terms = torch.where(later, integrals[..., None, :] / products, 0.0)
    return terms.sum(-1), terms[..., -1]


def quadrature(a: Eta, h: Tensor, us: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[..., m]` of `int_0^h e^{a(h-u)} N(u) du` for nodes at `us` `[..., m]`; the last Newton term's.

    a: rate, h: step `[...]`; nodes distinct, in any order. Exact for N a polynomial of degree below m.
    """
    m = us.shape[-1]
    return _weights(torch.stack(_newton(_moments(a, h, m), us), -1), us)


def _in_variable(
    a: Eta, frame: Frame, variable: Callable[[Tensor], Tensor], now: Level, next: Level, vs: Tensor
) -> tuple[Tensor, Tensor]:
    """The same weights for a polynomial in `frame.variable`: Gauss-Legendre in lam, nodes at `vs` `[..., m]`."""
    points, masses = (v.to(vs.device) for v in _GAUSS)
    start, end = now.lam[..., None], next.lam[..., None]
    lams = start + (end - start) * (1 + points) / 2
    kernel = (end - start) / 2 * masses * frame.pace(lams)
    if not (isinstance(a, float) and a == 0.0):
        a = a[..., None] if isinstance(a, Tensor) else a
        kernel = kernel * torch.exp(a * (frame.tau(end) - frame.tau(lams)))
    here = variable(lams)
    integrals, basis = [], kernel
    for k in range(vs.shape[-1]):
        integrals.append(basis.sum(-1))
        basis = basis * (here - vs[..., k, None])
    return _weights(torch.stack(integrals, -1), vs)


def integrate(
    frame: Frame, eta: Eta, x: Tensor, now: Level, next: Level, nodes: Sequence[Node], estimate: bool = False
) -> tuple[Tensor, Tensor | None]:
    """x `[B, *S]` carried from now to next through the polynomial of the nodes, and the last Newton term as its error.

    Deterministic part only; in working precision (float32 for half-precision states). The error costs a second pass
    over the nodes, so it is computed only for `estimate=True` and two or more nodes; None otherwise.
    """
    a, start = frame.rate(eta), frame.clock(now)
    h = frame.clock(next) - start
    us = torch.stack([node.at.expand_as(start) for node in nodes], -1)
    if frame.variable is None:
        weights, last = quadrature(a, h, us - start[..., None])
    else:
        weights, last = _in_variable(a, frame, frame.variable, now, next, us)
    scale = frame.scale(next)
    decay = scale / frame.scale(now)
    if not (isinstance(a, float) and a == 0.0):
        decay = decay * torch.exp(a * h)
    out = combine((decay, x), *((scale * weights[..., j], node.value) for j, node in enumerate(nodes)))
    if not estimate or len(nodes) < 2:
        return out, None
    return out, combine(*((scale * last[..., j], node.value) for j, node in enumerate(nodes)))
