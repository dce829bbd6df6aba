r"""Exact laws of samplers, without sampling.

With Gaussian data every score is affine, so a fixed-grid solver is an affine map of its start and of the normals it
draws. Started from the mean, from the mean plus each column of a root of the start's covariance, and with each normal
set to one in turn, its outputs are that map, and its law is

    m = x(0),   P = sum_i (x(e_i) - x(0)) (x(e_i) - x(0))^T

(`exact_law`). In one dimension a sampler of any mixture is a Markov chain whose density is propagated by quadrature,

    p_next(y) = int N(y; m(x), s(x)^2) p_now(x) dx,   m(x) = step(x, 0),   s(x) = step(x, 1) - step(x, 0)

(`exact_law_1d`): for smooth integrands the trapezoidal sum converges faster than any power of its spacing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run
from sdegen.noise.brownian import Clock
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import Model
from sdegen.solvers.base import Solver

F64 = torch.float64
_AFFINE = 1e-6


class NoLawError(InvalidArgumentError):
    """The law of a solver is not given by unit responses: it is not affine, or couples its batch."""


class Law(NamedTuple):
    """The Gaussian law of a sampler's output: mean `[D]` and covariance `[D, D]`, elements in row-major order."""

    mean: Tensor
    cov: Tensor

    def gap(self, target: GaussianMixture | Law) -> Tensor:
        r"""The difference to a Gaussian target, in its units: `(C^-1/2 (m - m'), C^-1/2 P C^-1/2 - 1)` `[D + D^2]`."""
        mean, cov = (target.mean, target.cov) if isinstance(target, Law) else (target.mean().flatten(), target.cov())
        root = torch.linalg.cholesky(cov)
        shift = torch.linalg.solve_triangular(root, (self.mean - mean)[:, None], upper=False)
        half = torch.linalg.solve_triangular(root, self.cov, upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        return torch.cat([shift.flatten(), (white - torch.eye(len(mean), dtype=F64)).flatten()])

    def error(self, target: GaussianMixture | Law) -> float:
        """The length of `gap`. Mean and covariance together: either alone can change sign, and fake an order."""
        return float(self.gap(target).norm())


class _Units:
    """Noise for `exact_law`: each normal drawn gets D rows, in which it is one in one element and zero in all others.

    The last row gets all of them at once, by -1/2: on an affine map it is as much of the sum of all others. (By +1 a
    clipped coordinate would agree, where each has one row of its own.)
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.draws: dict[tuple[float, float, int], int] = {}

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        key = (float(now.t), float(next.t), tag)
        index = self.draws.setdefault(key, len(self.draws))
        flat = x.new_zeros(x.shape[0], x[0].numel())
        size = flat.shape[1]
        start = self.first + index * size
        if start + size < len(flat):
            flat[start : start + size] = torch.eye(size, dtype=x.dtype)
        flat[-1] = -0.5
        return flat.reshape(x.shape)


def _gaussian(data: GaussianMixture) -> GaussianMixture:
    if len(data) != 1:
        raise InvalidTypeError(f"exact_law needs one Gaussian, sd.Gaussian(mean, ...), got {data!r}")
    return data


def responses(model: Model, solver: Solver, times: Tensor, x: Tensor, noise: NoiseSource | None) -> Tensor:
    """The solver's outputs `[B, *S]`, all rows finite or InvalidArgumentError."""
    solution = run(model, x, Fixed(times), solver, noise if solver.stochastic else None)
    if not bool(solution.ok.all()):
        raise InvalidArgumentError(f"{solver} gave NaN or Inf on Gaussian data; take a finer grid")
    return solution.x


def exact_law(
    solver: Solver,
    process: Process,
    data: GaussianMixture,
    times: Tensor | Sequence[float],
    *,
    start: Law | None = None,
    model: Model | None = None,
) -> Law:
    """Mean and covariance of what `solver` makes of `times` `[n + 1]` on Gaussian data, computed, not sampled.

    start: the law at times[0]; the exact one by default. model: the score model that runs, the exact one by default; it
    must be affine in x. Costs one solve of `1 + D + n draws D` rows.

    Raises InvalidTypeError unless `data` is one Gaussian, InvalidArgumentError where the solver is not affine on it
    (clipping, adaptive steps, batch-wide norms): `exact_law_1d` takes some of those.
    """
    times = Fixed(times).times
    first = process.level(times[0])
    if start is None:
        law = _gaussian(data).marginal(first)
        start = Law(law.mean().flatten(), law.cov())
    model = model or data.score(process)
    draws = _count(model, solver, times, start.mean.reshape(1, *data.shape))
    return _law(model, solver, times, start, data.shape, draws)


def exact_laws(solver: Solver, process: Process, data: GaussianMixture, grids: Sequence[Tensor]) -> Iterator[Law]:
    """`exact_law` on each of some grids, finer and finer: that the samples are not coupled is seen on the first one."""
    model, per_step = data.score(process), 0.0
    for k, times in enumerate(grids):
        first = _gaussian(data).marginal(process.level(times[0]))
        if k == 0:
            per_step = _count(model, solver, times, first.mean()[None]) / (len(times) - 1)
        start = Law(first.mean().flatten(), first.cov())
        yield _law(model, solver, times, start, data.shape, round(per_step * (len(times) - 1)))


def _law(model: Model, solver: Solver, times: Tensor, start: Law, shape: torch.Size, draws: int) -> Law:
    """The law from the start's at times[0], of a solver that is expected to draw so many normals."""
    size, root = len(start.mean), _root(start.cov)
    x = start.mean.repeat(2 + size + draws * size, 1)
    x[1 : 1 + size] += root.mT
    x[-1] -= root.sum(1) / 2
    units = _Units(1 + size)
    out = responses(model, solver, times, x.reshape(-1, *shape), units).flatten(1)
    if len(units.draws) != draws:
        return _law(model, solver, times, start, shape, len(units.draws))
    moved = out[1:-1] - out[0]
    _check_affine(solver, out, moved)
    return Law(out[0], moved.mT @ moved)


def _root(cov: Tensor) -> Tensor:
    """A root of a covariance that may be singular, by its eigenvectors."""
    e, basis = torch.linalg.eigh(cov)
    root: Tensor = basis * e.clamp(min=0).sqrt()
    return root


class _Ones:
    """Every normal one; `draws` counts the different ones."""

    def __init__(self) -> None:
        self.draws: set[tuple[float, float, int]] = set()

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        self.draws.add((float(now.t), float(next.t), tag))
        return torch.ones_like(x)


def _count(model: Model, solver: Solver, times: Tensor, x: Tensor) -> int:
    """How many normals a solve draws; raises unless a row's result is its own, whatever its batch-mate is."""
    ones = _Ones()
    wild = torch.cat([x, 1e3 * (1 + x.abs())])
    alone, beside = (responses(model, solver, times, pair, ones)[0] for pair in (torch.cat([x, x]), wild))
    if not bool(((alone - beside).abs() <= 1e-9 * (1 + alone.abs())).all()):
        raise NoLawError(f"{solver} couples the samples of a batch: a sample has no law of its own")
    return len(ones.draws)


def _check_affine(solver: Solver, out: Tensor, moved: Tensor) -> None:
    gap = float((out[-1] - out[0] + moved.sum(0) / 2).abs().max())
    size = float(out[0].abs().max() + moved.abs().sum(0).max())
    if not gap <= _AFFINE * size:
        raise NoLawError(
            f"{solver} is not affine on Gaussian data (off by {gap / size:.1e}): its law there is not given by unit "
            "responses; use exact_law_1d, or a statistical test"
        )


def path_error(
    solver: Solver,
    process: Process,
    data: GaussianMixture,
    times: Tensor,
    refine: int = 2,
    clock: Clock | None = None,
) -> float:
    """Root mean square distance between a solver's outputs on `times` and on a grid `refine` times as fine.

    Both are driven by one Brownian path in the clock (t, or a function of the level as for `Brownian`),
    `z = (W(next) - W(now)) / sqrt(|c(next) - c(now)|)`, and exact on Gaussian data: the difference is linear in the
    start and the fine increments. Its slope is the strong order.
    """
    times = Fixed(times).times
    part = torch.linspace(0.0, 1.0, refine + 1, dtype=F64)[:-1]
    fine = torch.cat([(times[:-1, None] + part * times.diff()[:, None]).flatten(), times[-1:]])
    law = _gaussian(data).marginal(process.level(times[0]))
    size, count = law.mean().numel(), len(fine) - 1
    x = law.mean().flatten().repeat(1 + size + count * size, 1)
    x[1 : 1 + size] += _root(law.cov()).mT
    x = x.reshape(-1, *data.shape)
    steps = (fine if clock is None else clock(process.level(fine))).diff().abs()
    model, path = data.score(process), _Path(fine, steps, 1 + size)
    gap = (responses(model, solver, times, x, path) - responses(model, solver, fine, x, path)).flatten(1)
    return float((gap[0].square().sum() + (gap[1:] - gap[0]).square().sum()).sqrt())


class _Path:
    """Increments of one Brownian path, unit responses to those of a fine grid."""

    def __init__(self, fine: Tensor, steps: Tensor, first: int) -> None:
        self.fine, self.steps, self.first = fine, steps, first

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        if tag:
            raise NoLawError("a strong order is that of a method driven by one Brownian path, with tag 0 alone")
        flat = x.new_zeros(x.shape[0], x[0].numel())
        size, total = flat.shape[1], abs(float(next.t - now.t))
        inside = (self.fine[:-1] <= now.t) & (self.fine[1:] >= next.t)
        covered = float((self.fine[:-1] - self.fine[1:])[inside].sum())
        if abs(covered - total) > 1e-9 * total:
            raise NoLawError("a strong order is measured for draws over whole steps of the grid, not parts")
        for k in inside.nonzero().flatten().tolist():
            share = math.sqrt(float(self.steps[k] / self.steps[inside].sum()))
            start = self.first + k * size
            flat[start : start + size] = share * torch.eye(size, dtype=x.dtype)
        return flat.reshape(x.shape)
