r"""Exact laws on a line: the density of a sampler's output, propagated by quadrature.

A one-step sampler of one-dimensional data is a Markov chain. With one normal a step its kernel is `N(m(x), s(x)^2)`,

    p_next(y) = int N(y; m(x), s(x)^2) p_now(x) dx,   m(x) = step(x, 0),   s(x) = step(x, 1) - step(x, 0),

and a deterministic step carries the density along, `p_next(m(x)) m'(x) = p_now(x)`. The integral is a trapezoidal sum,
which for a Gaussian kernel of width s on a spacing d errs by `2 exp(-2 pi^2 s^2 / d^2)` (Trefethen & Weideman 2014): by
9e-13 at s = 1.2 d, the least that is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.loop.control import Fixed
from sdegen.processes.process import Process
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import Model
from sdegen.solvers.base import Solver

F64 = torch.float64
_RESOLVED = 1.2
_TAIL = 9.0


class Density(NamedTuple):
    """A density on a line: its values at points x `[n]`, increasing."""

    x: Tensor
    density: Tensor

    def integral(self, values: Tensor) -> float:
        """`int values dx` by the trapezoidal rule."""
        return float(torch.trapezoid(values, self.x))

    @property
    def mass(self) -> float:
        """`int p dx`, 1 but for what was lost."""
        return self.integral(self.density)

    @property
    def mean(self) -> float:
        """`int x p dx`."""
        return self.integral(self.x * self.density)

    @property
    def variance(self) -> float:
        """`int (x - mean)^2 p dx`."""
        return self.integral((self.x - self.mean).square() * self.density)

    def total_variation(self, target: GaussianMixture) -> float:
        """`1/2 int |p - q| dx` to a mixture q."""
        return self.integral((self.density - target.log_prob(self.x[:, None]).exp()).abs()) / 2

    def kl(self, target: GaussianMixture) -> float:
        """`int p log(p/q) dx` from a mixture q."""
        log_q = target.log_prob(self.x[:, None])
        p = self.density.clamp(min=1e-300)
        return self.integral(torch.where(self.density > 1e-290, p * (p.log() - log_q), 0.0))


def exact_law_1d(
    solver: Solver,
    process: Process,
    data: GaussianMixture,
    times: Tensor | Sequence[float],
    *,
    points: int | None = None,
    model: Model | None = None,
) -> Density:
    """The density of what a one-step `solver` makes of `times` `[n + 1]` on data of one dimension, not sampled.

    Starts from the exact law at times[0]. points: how many, by default as many as the narrowest step needs, 1,024 to
    8,192. model: the score model that runs, the exact one by default. Costs n steps of 3 `points` rows, and for
    stochastic solvers a `points` x `points` kernel each.

    Raises InvalidArgumentError for data of more dimensions, a solver with memory, one that draws more than one normal a
    step or uses it other than linearly, and steps whose noise is narrower than the spacing of the points.
    """
    if data.means[0].numel() != 1:
        raise InvalidArgumentError(f"exact_law_1d takes data of one dimension, got {data!r}")
    if solver.memory:
        raise InvalidArgumentError(f"{solver} carries {solver.memory} past evaluations: it is not a Markov chain in x")
    levels = [process.level(t) for t in Fixed(times).times]
    model = model or data.score(process)
    for count in (points,) if points else (1024, 2048, 4096):
        try:
            return _march(solver, model, data, levels, count)
        except _UnresolvedError:
            continue
    return _march(solver, model, data, levels, points or 8192)


class _UnresolvedError(InvalidArgumentError):
    """The points are too few for a step's noise."""


def _march(solver: Solver, model: Model, data: GaussianMixture, levels: list[Level], points: int) -> Density:
    x = _points(data, levels[0], points)
    law = Density(x, data.log_prob(x.reshape(-1, *data.shape), levels[0]).exp())
    for now, next in zip(levels, levels[1:]):
        if solver.stochastic:
            law = _spread(law, _points(data, next, points), solver, model, data.shape, now, next)
        else:
            law = _carried(law, solver, model, data.shape, now, next)
    return law


def _points(data: GaussianMixture, level: Level, count: int) -> Tensor:
    """Evenly spaced, over all components at the level and 9 standard deviations on."""
    law = data.marginal(level)
    means = law.means.flatten()
    width = _TAIL * max(float(law._only(k).cov()) for k in range(len(law))) ** 0.5
    return torch.linspace(float(means.min()) - width, float(means.max()) + width, count, dtype=F64)


class _Constant:
    """Every normal the same number; counts the draws."""

    def __init__(self, value: float) -> None:
        self.value, self.draws = value, 0

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        self.draws += 1
        return torch.full_like(x, self.value)


def _move(solver: Solver, model: Model, x: Tensor, now: Level, next: Level, z: float) -> Tensor:
    noise = _Constant(z)
    moved = solver.step(model, x, now, next, solver.init(model, x, now), noise).x
    if noise.draws > 1:
        raise InvalidArgumentError(f"{solver} draws {noise.draws} normals a step; exact_law_1d takes one")
    return moved


def _spread(
    law: Density, y: Tensor, solver: Solver, model: Model, shape: torch.Size, now: Level, next: Level
) -> Density:
    start = law.x.reshape(-1, *shape)
    mean, one, two = (_move(solver, model, start, now, next, z).flatten() for z in (0.0, 1.0, 2.0))
    std = one - mean
    if not bool(((two - one - std).abs() <= 1e-9 * (1 + two.abs())).all()):
        raise InvalidArgumentError(f"{solver} does not use its normal linearly; exact_law_1d needs x = m + s z")
    std = std.abs()
    spacing = float(y[1] - y[0])
    relevant = law.density > 1e-12 * law.density.max()
    if float(std[relevant].min()) < _RESOLVED * max(spacing, float(law.x[1] - law.x[0])):
        raise _UnresolvedError(
            f"a step's noise, {float(std[relevant].min()):.2g}, is narrower than the points are apart, {spacing:.2g}: "
            "give more points or larger steps"
        )
    weight = law.density * (law.x[1] - law.x[0]) / (std * math.sqrt(2 * math.pi))
    parts = []
    for part in torch.split(y, 256):
        # a Gaussian is below 3e-18 of its height from nine widths on
        near = (mean > part[0] - _TAIL * std) & (mean < part[-1] + _TAIL * std)
        parts.append(torch.exp(-((part[:, None] - mean[near]) / std[near]).square() / 2) @ weight[near])
    return Density(y, torch.cat(parts))


def _carried(law: Density, solver: Solver, model: Model, shape: torch.Size, now: Level, next: Level) -> Density:
    def step(x: Tensor) -> Tensor:
        return _move(solver, model, x.reshape(-1, *shape), now, next, 0.0).flatten()

    x = law.x.clone()
    moved, slope = torch.func.jvp(step, (x,), (torch.ones_like(x),))[:2]
    if not bool((moved.diff() > 0).all()):
        raise InvalidArgumentError(f"{solver} folds the line in one step; take a finer grid")
    return Density(moved, law.density / slope)
