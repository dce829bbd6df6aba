r"""Pilots: a few exact paths of the probability flow, and what can be read off them without further evaluations.

In `ANGLE(sigma_data)` a state is `z = y / n`, `n = hypot(s, sigma_data)`, and `dz/dtheta = F`. A path is kept as z and
F at its levels; between them z is the integral of the cubic through the four nearest F, and so every state of the path
is a linear form in what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.calibration.plan import Plan
from sdegen.errors import ScoreError
from sdegen.level import Level
from sdegen.processes.process import Process, linear_gaussian
from sdegen.processes.schedules import EDM
from sdegen.scores.model import convert, plane
from sdegen.solvers.frame import Frame
from sdegen.solvers.frames import ANGLE, log_snr
from sdegen.solvers.multistep import Multistep
from sdegen.tensors import finite_rows, length

F64 = torch.float64
_GAUSS = tuple(torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
_NODES = 4
ELEMENTS = 1 << 14
_STREAM = 1 << 40
_PLANE = EDM()
"""Where y is x, and a level is known by its noise scale alone."""


def angle(scale: float) -> Frame:
    """The frame of pilots and plans."""
    return ANGLE(sigma_data=scale, variable=log_snr)


def levels(lams: Tensor) -> Level:
    """The levels at log-SNRs in `y = x/alpha`: alpha is 1."""
    s = torch.exp(-lams)
    return Level(s, torch.ones_like(s), s)


def norms(lams: Tensor, scale: float) -> Tensor:
    """`n = hypot(s, scale)`, with `y = n z`."""
    return length(torch.exp(-lams), scale)


@dataclass
class Probe:
    """The network, asked in float64 and counted: `spent` is the number of evaluations of single samples.

    elements: at most this many of a sample's elements are kept in paths and fitted; all of them are stepped.
    """

    model: Any
    shape: tuple[int, ...]
    seed: int
    dtype: torch.dtype
    device: torch.device
    batch_size: int | None
    spent: int = 0
    kept: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        if size > ELEMENTS:
            order = noises.normals(noises.seeds(self.seed, 1, _STREAM), (size,), (0, 0, 0, 1), dtype=F64)[0]
            self.kept = order.argsort()[:ELEMENTS].sort().values.to(self.device)

    def start(self, first: int, count: int, lam: Tensor) -> Tensor:
        """y `[count, *S]` of noise alone at a level: pilots number `first` and on, apart from all samples' seeds."""
        seeds = noises.seeds(self.seed, count, _STREAM + first, device=self.device)
        z = noises.normals(seeds, self.shape, (0, 0, 0, 0), dtype=F64, device=self.device)
        return z * torch.exp(-lam).to(self.device)

    def __call__(self, y: Tensor, lam: Tensor, scale: float, first: int = 0) -> Tensor:
        """F of `angle(scale)` at y `[B, *S]` of the pilots from number `first` on. Raises ScoreError if not finite."""
        level = self.model.process.at(lam)
        want = angle(scale).want(self.model.process, level, 0.0)
        x = (y * level.alpha.to(y.device)).to(self.dtype)
        size = self.batch_size or len(x)
        chunks = zip(range(first, first + len(x), size), torch.split(x, size))
        out = torch.cat([self._rows(start, len(part))(part, level, want) for start, part in chunks]).to(F64)
        self.spent += len(y)
        if not bool(finite_rows(out).all()):
            raise ScoreError(
                f"the pilot met NaN or Inf: the score at log-SNR {float(lam):.3g} is not finite for {len(y)} states "
                f"of size up to {float(x.abs().max()):.3g}; try sd.sample(model, ..., steps=50) to see where it fails"
            )
        return out

    def _rows(self, start: int, count: int) -> Any:
        """The model for rows from `start` on, the conditions of single samples used in turn."""
        samples = self.model.row_count
        return (
            self.model
            if samples is None
            else self.model.rows(torch.arange(start, start + count, device="cpu") % samples)
        )

    def keep(self, values: Tensor) -> Tensor:
        """The elements that are fitted, `[B, E]`, on the host."""
        flat = values.flatten(1)
        return (flat if self.kept is None else flat[:, self.kept]).to("cpu", F64)


@dataclass(frozen=True, eq=False)
class Path:
    """Exact paths from `starts` `[P, *S]`: z and F `[m, P, E]` of P pilots, from number `first` on, at log-SNRs `[m]`.

    `defect` `[P]` estimates their own error.
    """

    starts: Tensor
    lams: Tensor
    z: Tensor
    F: Tensor
    scale: float
    defect: Tensor
    first: int = 0

    def forms(self, lams: Tensor) -> tuple[Tensor, Tensor]:
        """z and F at any log-SNRs `[q]` as linear forms in the path's own z and F: two matrices `[q, 2 m]`."""
        m, rows = len(self.lams), torch.arange(len(lams), device="cpu")
        left = (torch.searchsorted(self.lams, lams + 1e-12, right=True) - 1).clamp(0, m - 1)
        near = _nearest(left, m)
        of_f, of_z = lams.new_zeros(len(lams), 2 * m), lams.new_zeros(len(lams), 2 * m)
        of_f.scatter_(1, m + near, _lagrange(lams[:, None], self.lams[near])[:, 0])
        of_z.scatter_(1, m + near, _integral(self.lams[left], lams, self.lams[near], self.scale))
        of_z[rows, left] = 1.0
        return of_z, of_f

    def at(self, lams: Tensor) -> Tensor:
        """z `[q, P, E]` at any log-SNRs `[q]`."""
        return torch.einsum("qm,mpe->qpe", self.forms(lams)[0], torch.cat([self.z, self.F]))

    def part(self, rows: slice) -> Path:
        """Some of the pilots."""
        first = self.first + (rows.start or 0)
        starts, z, F = self.starts[rows], self.z[:, rows], self.F[:, rows]
        return replace(self, starts=starts, z=z, F=F, defect=self.defect[rows], first=first)

    def rescaled(self, scale: float) -> Path:
        """The same paths in the frame with another sigma_data."""
        level = levels(self.lams)
        known, wanted = (angle(s).want(_PLANE, level, 0.0) for s in (self.scale, scale))
        on_y, on_f = (v[:, None, None] for v in convert(level, known, wanted))
        before, after = (norms(self.lams, s)[:, None, None] for s in (self.scale, scale))
        y = self.z * before
        return replace(self, z=y / after, F=on_y * y + on_f * self.F, scale=scale)

    def data(self) -> Tensor:
        """The predicted data `[m, P, E]`."""
        level = levels(self.lams)
        known = angle(self.scale).want(_PLANE, level, 0.0)
        on_y, on_f = (v[:, None, None] for v in convert(level, known, plane(_PLANE, level, "data")))
        return on_y * norms(self.lams, self.scale)[:, None, None] * self.z + on_f * self.F


def _nearest(left: Tensor, count: int) -> Tensor:
    """The four of `count` levels around the interval right of each level `left` `[q]`: `[q, 4]`."""
    return (left - _NODES // 2 + 1).clamp(0, count - _NODES)[:, None] + torch.arange(_NODES, device="cpu")


def _lagrange(at: Tensor, nodes: Tensor) -> Tensor:
    """The Lagrange polynomials through `nodes` `[q, w]` at points `[q, g]`: `[q, g, w]`."""
    w = nodes.shape[-1]
    same = torch.eye(w, dtype=torch.bool, device="cpu")
    above = torch.where(same, 1.0, at[..., None, None] - nodes[:, None, None, :])
    below = torch.where(same, 1.0, nodes[:, :, None] - nodes[:, None, :])
    return above.prod(-1) / below.prod(-1)[:, None, :]


def _integral(start: Tensor, end: Tensor, nodes: Tensor, scale: float) -> Tensor:
    """`int L_j(lam) (dtheta/dlam) dlam` from start to end `[q]`, the L_j through nodes `[q, w]`: `[q, w]`."""
    points, masses = _GAUSS
    half = (end - start)[:, None] / 2
    at = start[:, None] + half * (1 + points)
    return ((half * masses * angle(scale).pace(at))[..., None] * _lagrange(at, nodes)).sum(1)


def adams(lams: Tensor, scale: float, order: int) -> Plan:
    """The plan of the exponential Adams method of an order, with its corrector, on log-SNRs `[n + 1]`."""
    return Plan.of(Multistep(order, angle(scale), correct=True), _PLANE, torch.exp(-lams))


def follow(
    probe: Probe, plan: Plan, y: Tensor, scale: float, recent: int | None = None, first: int = 0
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What is kept of the states at all levels and of F at all but the last, and the last state whole.

    recent: only so many of the latest F have a weight in the plan, so no more of them are held. first: the number of
    the first pilot, whose conditions the rows have.
    """
    states, kept, values = [probe.keep(y)], [], []
    for k, row in enumerate(plan.weights.tolist()):
        values.append(probe(y, plan.lams[k], scale, first))
        kept.append(probe.keep(values[-1]))
        values = values if recent is None else values[-recent:]
        y = combined([row[0], *row[k + 2 - len(values) : k + 2]], y, values)
        states.append(probe.keep(y))
    return states, kept, y


def combined(row: Sequence[float], y: Tensor, values: Sequence[Tensor]) -> Tensor:
    """One step of a plan in y."""
    out = row[0] * y
    for weight, value in zip(row[1:], values):
        out.add_(value, alpha=weight)
    return out


def trace(probe: Probe, y: Tensor, lams: Tensor, scale: float) -> Path:
    """Fine paths from y `[P, *S]` through log-SNRs `[m]`, m evaluations each, third-order Adams with its corrector.

    The states are then integrated anew through the F on both sides; how far that moves the ends is the `defect`.
    """
    # the predictor takes three nodes, the corrector of the step before it four
    states, values, end = follow(probe, adams(lams, scale, 3), y, scale, recent=4)
    n = norms(lams, scale)
    F = torch.stack([*values, probe.keep(probe(end, lams[-1], scale))])
    z = [states[0] / n[0]]
    m = len(lams)
    near = _nearest(torch.arange(m - 1, device="cpu"), m)
    for row, nodes in zip(_integral(lams[:-1], lams[1:], lams[near], scale), near):
        z.append(z[-1] + torch.einsum("w,wpe->pe", row, F[nodes]))
    defect = (z[-1] * n[-1] - states[-1]).square().mean(1).sqrt()
    return Path(y, lams, torch.stack(z), F, scale, defect)


def span(process: Process) -> Tensor:
    """The log-SNRs `[2]` at t_max and t_min, or next to ends without signal or noise.

    Raises InvalidTypeError for what is no Process.
    """
    return linear_gaussian(process, "calibrate").edges
