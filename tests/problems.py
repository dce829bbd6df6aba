"""Exact problems for the suite: Gaussian and mixture data, laws per coordinate."""

from __future__ import annotations

import torch
from torch import Tensor

import sdegen as sd

F64 = torch.float64
MIXTURE = dict(
    means=torch.tensor([[-1.0, 0.5], [0.7, -0.4], [0.1, 1.0]], dtype=F64),
    stds=torch.tensor([0.3, 0.4, 0.35], dtype=F64),
    weights=torch.tensor([0.2, 0.5, 0.3], dtype=F64),
)
# one coordinate per width: everything stays a product, so one unit response serves all of them
MEANS = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=F64)
WIDTHS = torch.tensor([0.05, 0.5, 1.0, 2.0], dtype=F64)

PROCESSES = {
    "VP": sd.VP(),
    "SubVP": sd.SubVP(),
    "VE": sd.VE(),
    "EDM": sd.EDM(),
    "Cosine": sd.Cosine(),
    "Flow": sd.Flow(t_max=0.999),  # where every method may start; test_solve has the ends
    "DiscreteVP": sd.DiscreteVP(),
}
FRAMES = {
    "DATA": sd.DATA,
    "NOISE": sd.NOISE,
    "SIGMA": sd.SIGMA,
    "ANGLE": sd.ANGLE(sigma_data=0.5),
    "FLOW": sd.FLOW,
    "TIME": sd.TIME,
    "SIGMA in lam": sd.SIGMA(variable=lambda lam: lam),
    "ANGLE in s^(1/7)": sd.ANGLE(variable=lambda lam: torch.exp(-lam / 7)),
}


def mixture(process: sd.Process) -> sd.ScoreModel:
    """The exact model of the 2-D mixture."""
    return sd.GaussianMixture(**MIXTURE).score(process)


def gaussian(process: sd.Process, means: Tensor = MEANS, widths: Tensor = WIDTHS) -> sd.ScoreModel:
    """The exact model of independent Gaussian coordinates."""
    return sd.Gaussian(means, std=widths).score(process)


def lam_grid(process: sd.Process, lams: Tensor) -> Tensor:
    """Times at the given log-SNRs."""
    return process.at(lams).t


class UnitResponse:
    """A noise source that gives draw k to row k + 2 alone, as ones: row 0 gets no noise, row 1 another start."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, x: Tensor, now: sd.Level, next: sd.Level, tag: int = 0) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + self.draws] = 1.0
        self.draws += 1
        return z


def exact_law(
    process: sd.Process, solver: sd.Solver, times: Tensor, draws: int = 1, model: sd.ScoreModel | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a solver's result per coordinate, no sampling: on Gaussian data a solver is affine.

    Starts from the exact law at times[0]; `draws` normals per step.
    """
    start = process.level(times[0])
    mean, std = start.alpha * MEANS, torch.sqrt(start.alpha**2 * WIDTHS**2 + start.sigma**2)
    x = mean.repeat(2 + draws * (len(times) - 1), 1)
    x[1] += std
    noise = UnitResponse() if solver.stochastic else None
    out = sd.solve(model or gaussian(process), x, times, solver, noise=noise).x
    return out[0], ((out[1:] - out[0]) ** 2).sum(0)
