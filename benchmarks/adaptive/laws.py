"""Adaptive steps with noise, judged by the law of their samples, beside fixed grids of as many evaluations."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.accuracy.page import Table
from benchmarks.accuracy.problems import PROBLEMS

F64 = torch.float64
TOLS = (0.3, 0.1, 0.03)


class Law(NamedTuple):
    """A mixture of well separated, isotropic components, and the scale of its elements."""

    name: str
    mixture: sd.GaussianMixture
    means: Tensor
    stds: Tensor

    @property
    def scale(self) -> float:
        """The root mean square of the elements."""
        second = (self.mixture.weights[:, None] * (self.means.square() + self.stds[:, None].square())).sum(0)
        return float(second.mean().sqrt())


def laws() -> list[Law]:
    """Two components of unlike widths, and the ring of the accuracy benchmark."""
    means, stds = torch.tensor([[-1.5, 0.5], [1.2, -0.4]], dtype=F64), torch.tensor([0.3, 0.1], dtype=F64)
    two = sd.GaussianMixture(means, stds=stds, weights=[0.4, 0.6])
    ring = PROBLEMS["ring"].mixture
    assert ring is not None
    return [Law("two", two, means, stds), Law("ring", ring, ring.means, torch.full((12,), 0.15, dtype=F64))]


class Judged(NamedTuple):
    """Relative errors of within-component variances, pooled, and worst over components in standard errors; mass."""

    pooled: float
    error: float
    worst: float
    mass: float


def judged(law: Law, process: sd.Process, x: Tensor) -> Judged:
    """Samples at t_min against the law there."""
    level = process.level(process.t_min)
    means, variance = level.alpha * law.means, (level.alpha * law.stds).square() + level.sigma.square()
    distance = (x[:, None] - means).square().sum(2)
    owner = (distance / variance + 2 * variance.log() - 2 * law.mixture.weights.log()).argmin(1)
    size = x.shape[1]
    counts = torch.bincount(owner, minlength=len(means))
    # about the known means, so that an offset counts too
    ratio = distance[torch.arange(len(x)), owner] / variance[owner] / size
    sums = torch.zeros(len(means), dtype=F64).index_add(0, owner, ratio)
    seen = counts > 20
    sigmas = (sums[seen] / counts[seen] - 1) / (2 / (size * counts[seen])).sqrt()
    mass = (counts / len(x) - law.mixture.weights).abs().sum() / 2
    return Judged(float(ratio.mean()) - 1, math.sqrt(2 / (size * len(x))), float(sigmas.abs().max()), float(mass))


def expected_mass(law: Law, count: int) -> float:
    """The mean total variation of component frequencies of `count` exact samples."""
    w = law.mixture.weights
    return float((w * (1 - w) / count).sqrt().sum() * math.sqrt(2 / math.pi) / 2)


def solvers(scale: float) -> dict[str, sd.Solver]:
    """The adaptive methods with noise."""
    return {
        "Adams(1, WIENER, 1.0)": sd.solvers.Adams(1, sd.WIENER(sigma_data=scale), 1.0),
        "adams(eta=1.0)": sd.adams(eta=1.0, sigma_data=scale),
        "Adams(1, DATA, 1.0)": sd.solvers.Adams(1, sd.DATA, 1.0),
        "Adams(2, DATA, 1.0)": sd.solvers.Adams(2, sd.DATA, 1.0),
        "adaptive_heun(1.0)": sd.adaptive_heun(1.0),
    }


FIXED = {"sa_solver(2)": sd.sa_solver(2), "ancestral()": sd.ancestral()}


def adaptive(law: Law, process: sd.Process, solver: sd.Solver, tol: float, count: int) -> tuple[float, Tensor, float]:
    """Mean evaluations, ends at t_min, and the share of samples that failed."""
    seeds = sd.noise.seeds(5, count)
    clock = solver.clock(process) if hasattr(solver, "clock") else None
    path = sd.Brownian(seeds, process, clock=clock)
    control = sd.PI(tol=tol, sigma_data=law.scale, max_attempts=1000)
    x = process.prior(seeds, (2,), F64)
    found = sd.solve(law.mixture.score(process), x, control, solver, noise=path, on_failure="return")
    return float(found.nfe.double().mean()), found.x, float((~found.ok).double().mean())


def fixed(law: Law, process: sd.Process, solver: sd.Solver, evaluations: float, count: int) -> Tensor:
    """Ends of a fixed grid of so many evaluations."""
    seeds = sd.noise.seeds(5, count)
    steps = max(2, round(evaluations / solver.evals))
    times = sd.grids.karras(process, steps)
    x = process.prior(seeds, (2,), F64)
    return sd.solve(law.mixture.score(process), x, times, solver, noise=sd.White(seeds)).x


def section(count: int) -> str:
    """A table per law, under VP and EDM."""
    parts = [
        f"### Noise\n\n{count} samples of reverse SDEs (eta = 1) per row, by their law at t_min: the relative error "
        "of the variance within components about their true means, pooled (standard error "
        f"{math.sqrt(1 / count):.3f}), the worst component's in its standard errors, and the total variation of "
        "component frequencies. The fixed grids (Karras) take as many evaluations as the adaptive solve did on average."
    ]
    for law in laws():
        for process in (sd.VP(), sd.EDM()):
            table = Table(["adaptive", "tol", "evaluations, mean", "adaptive", *(f"`{name}`" for name in FIXED)])
            for name, solver in solvers(law.scale).items():
                for tol in TOLS:
                    table.add(f"`{name}`", f"{tol:g}", *_row(law, process, solver, tol, count))
            name = f"`{law.name}` under {type(process).__name__}"
            parts.append(
                f"{name}; exact samples would have a total variation of {expected_mass(law, count):.3f}.\n\n{table}"
            )
    return "\n\n".join(parts)


def _row(law: Law, process: sd.Process, solver: sd.Solver, tol: float, count: int) -> list[str]:
    with torch.no_grad():
        spent, x, failed = adaptive(law, process, solver, tol, count)
        own = _cell(judged(law, process, x[x.isfinite().all(1)]))
        if failed:
            own += f"; {failed:.1%} failed"
        others = [_cell(judged(law, process, fixed(law, process, other, spent, count))) for other in FIXED.values()]
    return [f"{spent:.0f}", own, *others]


def _cell(one: Judged) -> str:
    return f"{one.pooled:+.3f}, {one.worst:.1f}, {one.mass:.3f}"
