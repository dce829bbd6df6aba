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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdegen.level import ENDLESS, Level, placed
from sdegen.solvers.eta import Eta, EtaFunction, LevelEta, eta_of_step, is_zero
from sdegen.solvers.frame import Frame
from sdegen.tensors import readable

FAR = 1e20
NEAREST = 0.02
_SERIES = 26
_NEAR = 1.5
_TOP = 8
_INVERSE_FACTORIALS = torch.tensor(
    [[1 / math.factorial(n + k) for k in range(1, _TOP + 1)] for n in range(_SERIES + 1)],
    dtype=torch.float64,
    device="cpu",
)
_SAME = torch.eye(_TOP, dtype=torch.bool, device="cpu")
_LATER = torch.ones(_TOP, _TOP, dtype=torch.bool, device="cpu").triu()
_GAUSS = tuple(torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24))  # points and masses on [-1, 1]


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
    if is_zero(a):
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
    if us.shape[-1] == 1:
        return integrals, integrals
    terms = _terms(integrals, us)
    return terms.sum(-1), terms[..., -1]


def _terms(integrals: Tensor, us: Tensor) -> Tensor:
    """The weights `[..., j, k]` of node j in the k-th Newton term."""
    m = us.shape[-1]
    same, later = _SAME[:m, :m].to(us.device), _LATER[:m, :m].to(us.device)
    gaps = us[..., :, None] - us[..., None, :]
    products = torch.cumprod(torch.where(same, 1.0, gaps), -1)  # [j, k] = prod_{i<=k, i!=j} (u_j - u_i)
    return torch.where(later, integrals[..., None, :] / products, 0.0)


def quadrature(a: Eta, h: Tensor, us: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[..., m]` of `int_0^h e^{a(h-u)} N(u) du` for nodes at `us` `[..., m]`; the last Newton term's.

    a: rate, h: step `[...]`; nodes distinct, in any order. Exact for N a polynomial of degree below m.
    """
    m = us.shape[-1]
    return _weights(torch.stack(_newton(_moments(a, h, m), us), -1), us)


class Weights(NamedTuple):
    """A step in x: `x_next = decay x + sum_j nodes[..., j] N_j`; `last` is the part of the last Newton term.

    decay `[...]`, nodes and last `[..., m]`, for levels of shape `[...]`.
    """

    decay: Tensor
    nodes: Tensor
    last: Tensor


def weights(
    frame: Frame, eta: Eta | EtaFunction, now: Level, next: Level, at: Tensor, *, pair: str = "exact"
) -> Weights:
    """The weights of steps from now to next through nodes at coordinates `at` `[..., m]`, for levels `[...]`.

    The nodes hold N without its factor `frame.gain`. eta: constant over each step, or a function of the step; one that
    is `LevelEta` changes inside of it, in DATA. pair: how a polynomial through two nodes counts, whether there are two
    or the others are far: 'exact' by its integral; 'midpoint' by its value in the middle of the step times I_0; 'flat'
    by its value at now times I_0 and, without the kernel, its slope times h^2/2. All agree to h^3.
    """
    if at.shape[-1] > 1:
        at = apart(at, frame.coordinate(next) - frame.coordinate(now))
    integrals = _integrals(frame, eta, now, next, at, pair)
    nodes, last = _weights(integrals, at)
    decay, scale = _outside(frame, eta, now, next)
    return Weights(decay, scale[..., None] * nodes, scale[..., None] * last)


def apart(at: Tensor, h: Tensor, nearest: float = NEAREST) -> Tensor:
    """The nodes without those that all but meet a newer one: `FAR` in place of what is nearer than a share of h.

    Values differ by more than N does, as each is that of an inexact x; over a small gap that is a wild slope.
    """
    m = at.shape[-1]
    if m == 1:
        return at
    near = (at[..., :, None] - at[..., None, :]).abs() < nearest * h.abs()[..., None, None]
    met = (near & ~_LATER[:m, :m].to(at.device)).any(-1)
    far = FAR * (1.5 + torch.arange(m, dtype=at.dtype, device=at.device))
    return torch.where(met, far, at)


def newton(frame: Frame, eta: Eta | EtaFunction, now: Level, next: Level, at: Tensor) -> tuple[Tensor, Tensor]:
    """The decay `[...]` of `weights`, and its node weights term by term: `[..., j, k]`, of node j in Newton term k.

    The sum over k < n is the step through the first n nodes, and term n its difference to the one through n + 1.
    """
    decay, scale = _outside(frame, eta, now, next)
    return decay, scale[..., None, None] * _terms(_integrals(frame, eta, now, next, at, "exact"), at)


def _outside(frame: Frame, eta: Eta | EtaFunction, now: Level, next: Level) -> tuple[Tensor, Tensor]:
    """What a step multiplies x and the integral with."""
    step_eta = eta_of_step(eta, now, next)
    a, scale = frame.rate(step_eta), frame.scale(next)
    decay = scale / frame.scale(now)
    if not is_zero(a):
        decay = decay * torch.exp(a * (frame.clock(next) - frame.clock(now)))
    if inner_eta(eta, frame) is None:
        scale = scale * frame.gain(step_eta)
    return decay, scale


def inner_eta(eta: Eta | EtaFunction, frame: Frame) -> LevelEta | None:
    """An eta that changes inside of a step, in a frame that can follow it."""
    return eta if frame.follows_eta and isinstance(eta, LevelEta) else None


def _integrals(frame: Frame, eta: Eta | EtaFunction, now: Level, next: Level, at: Tensor, pair: str) -> Tensor:
    """The I_k `[..., m]`, the second one as `pair` says."""
    step_eta = eta_of_step(eta, now, next)
    inner = inner_eta(eta, frame)
    a, start = frame.rate(step_eta), frame.clock(now)
    h = frame.clock(next) - start
    several = at.shape[-1] > 1
    opened = several and frame.endless and _may_be_open(now, next)
    if frame.variable is None and inner is None:
        integrals = torch.stack(_newton(_moments(a, h, at.shape[-1]), at - start[..., None]), -1)
        if opened:
            integrals = torch.where(_open(now, next)[..., None], _within_reach(a, frame, now, next, at), integrals)
        middle = start + h / 2
    else:
        integrals = _by_gauss(a, frame, now, next, at, inner)
        middle = _coordinate(frame, (now.lam + next.lam) / 2)
    if pair != "exact" and several:
        size, begin = integrals[..., 0], frame.coordinate(now)
        first = size * (begin - at[..., 0]) + (size if pair == "midpoint" else h) * (middle - begin)
        if at.shape[-1] > 2:
            first = torch.where(at[..., 2].abs() >= FAR / 2, first, integrals[..., 1])
        if opened:
            first = torch.where(_open(now, next), integrals[..., 1], first)
        integrals = torch.cat([integrals[..., :1], first[..., None], integrals[..., 2:]], -1)
    return integrals


def _open(now: Level, next: Level) -> Tensor:
    """Whether steps begin or end where there is no noise."""
    return torch.maximum(now.lam, next.lam) > ENDLESS


def _may_be_open(now: Level, next: Level) -> bool:
    """Whether one of the steps may be open: not where the host sees that none is."""
    there = now.lam.device.type == "cpu" and readable(now.lam) and readable(next.lam)
    return not there or bool(_open(now, next).any())


def _within_reach(a: Eta, frame: Frame, now: Level, next: Level, at: Tensor) -> Tensor:
    """The I_k `[..., m]` of a step to or from where there is no noise: the polynomial is constant beyond its reach.

    It reaches to the place that stands for such an end, and no farther from its newest node than the one before it is,
    as over a usual step: what lies beyond is many steps away.
    """
    start, end = frame.clock(now), frame.clock(next)
    places = [frame.tau(placed(level.lam)) for level in (now, next)]
    gap = (at[..., 0] - at[..., 1]).abs()
    first, last = (torch.clamp(place, at[..., 0] - gap, at[..., 0] + gap) for place in places)
    first = torch.where(now.lam > ENDLESS, first, start)
    last = torch.where(next.lam > ENDLESS, last, end)
    inside = torch.stack(_newton(_moments(a, last - first, at.shape[-1]), at - first[..., None]), -1)

    def still(place: Tensor, length: Tensor) -> Tensor:
        gaps = (place[..., None] - at[..., :-1]).cumprod(-1)
        values = torch.cat([torch.ones_like(gaps[..., :1]), gaps], -1)
        return values * _moments(a, length, 1)[0][..., None]

    before, after = still(first, first - start), still(last, end - last)
    return _decay(a, end - first) * before + _decay(a, end - last) * inside + after


def _decay(a: Eta, length: Tensor) -> Tensor:
    return torch.exp(a * length)[..., None]


def _coordinate(frame: Frame, lam: Tensor) -> Tensor:
    return frame.tau(lam) if frame.variable is None else frame.variable(lam)


def _by_gauss(a: Eta, frame: Frame, now: Level, next: Level, at: Tensor, inner: LevelEta | None) -> Tensor:
    """The I_k `[..., m]` for a polynomial in `frame.variable` or an eta that changes inside: Gauss-Legendre in lam."""
    points, masses = (v.to(at.device) for v in _GAUSS)
    start, end = now.lam[..., None], next.lam[..., None]
    lams = start + (end - start) * (1 + points) / 2
    kernel = (end - start) / 2 * masses * frame.pace(lams)
    if inner is not None:
        kernel = kernel * inner.gain(lams) * torch.exp(inner.integral(lams) - inner.integral(end))
    elif not is_zero(a):
        a = a[..., None] if torch.is_tensor(a) and a.ndim else a
        kernel = kernel * torch.exp(a * (frame.tau(end) - frame.tau(lams)))
    here = _coordinate(frame, lams)
    integrals, basis = [], kernel
    for k in range(at.shape[-1]):
        integrals.append(basis.sum(-1))
        basis = basis * (here - at[..., k, None])
    return torch.stack(integrals, -1)
