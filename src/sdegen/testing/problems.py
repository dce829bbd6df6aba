"""Problems with exact answers: data whose score, law and flow are known at every level of every process."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.grids import graded
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run
from sdegen.processes.process import Process
from sdegen.processes.schedules import DiscreteVP
from sdegen.processes.sde import SDE
from sdegen.scores.mixtures import Gaussian, GaussianMixture
from sdegen.solvers.frames import ANGLE
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.tableaus import RK4

F64 = torch.float64
LOW, HIGH = -3.0, 3.0
"""The log-SNRs between which orders are measured: from almost noise to almost data of unit size."""


@dataclass(frozen=True)
class Problem:
    """Data with an exact law; `data` is built on first use. `statement` says what makes the problem worth having."""

    name: str
    statement: str
    build: Callable[[], GaussianMixture]

    @functools.cached_property
    def data(self) -> GaussianMixture:
        """The law of the data; its `score(process)` is exact."""
        return self.build()

    def __repr__(self) -> str:
        return f"PROBLEMS[{self.name!r}]"


def _tensor(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def _random(seed: int, *shape: int) -> Tensor:
    return noises.normals(noises.seeds(seed, shape[0]), tuple(shape[1:]), (0, 0, 0, 0), dtype=F64)


def _three() -> GaussianMixture:
    means = _tensor([-1.0, 0.5], [0.7, -0.4], [0.1, 1.0])
    return GaussianMixture(means, stds=[0.3, 0.4, 0.35], weights=[0.2, 0.5, 0.3])


def _line() -> GaussianMixture:
    return GaussianMixture(_tensor([-1.0], [0.4], [1.3]), stds=[0.3, 0.25, 0.5], weights=[0.3, 0.5, 0.2])


def _widths() -> Gaussian:
    return Gaussian(torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=F64), std=torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=F64))


def _turned() -> Gaussian:
    basis = torch.linalg.qr(_random(1, 3, 3)).Q
    return Gaussian(
        torch.tensor([0.3, -0.5, 1.0], dtype=F64), cov=basis @ torch.diag(_tensor([1e-4, 0.2, 1.0])[0]) @ basis.T
    )


def _thin() -> Gaussian:
    return Gaussian(_random(2, 16, 1)[:, 0] / 2, std=0.1, factor=_random(3, 16, 3) / 4)


def _grid() -> GaussianMixture:
    side = torch.linspace(-1.0, 1.0, 5, dtype=F64)
    return GaussianMixture(torch.cartesian_prod(side, side), stds=0.08)


def _rings() -> GaussianMixture:
    angle = torch.arange(12, dtype=F64) * (2 * math.pi / 12)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    means = torch.cat([0.5 * ring, 1.5 * ring])
    return GaussianMixture(means, stds=[0.05] * 12 + [0.1] * 12, weights=[1.0] * 12 + [4.0] * 12)


def _images() -> GaussianMixture:
    return GaussianMixture(_random(4, 6, 1, 8, 8) / 2, stds=(_random(5, 6, 1, 8, 8) / 4).abs() + 0.05)


_ALL = (
    Problem("normal", "N(0, 1): the flow is a rotation", lambda: Gaussian([0.0], std=1.0)),
    Problem("widths", "one coordinate per width, 0.2 to 2", _widths),
    Problem("turned", "correlated coordinates, condition 1e4", _turned),
    Problem("thin", "low rank plus isotropic in 16 dimensions", _thin),
    Problem("point", "one point: every denoiser is constant", lambda: GaussianMixture.empirical(_tensor([0.7, -2.0]))),
    Problem(
        "points", "two points: the flow decides", lambda: GaussianMixture.empirical(_tensor([1.0, 0.0], [-1.0, 0.3]))
    ),
    Problem("line", "three modes on a line, for densities by quadrature", _line),
    Problem("three", "three overlapping modes in the plane", _three),
    Problem("grid", "25 narrow modes", _grid),
    Problem("rings", "two rings, the outer four times as heavy", _rings),
    Problem("apart", "two modes 100 apart", lambda: GaussianMixture(_tensor([-50.0, 0.0], [50.0, 1.0]), stds=0.5)),
    Problem("images", "six modes of shape [1, 8, 8], each pixel its own width", _images),
)
PROBLEMS = {problem.name: problem for problem in _ALL}


def by_lam(process: Process, n: int, low: float = LOW, high: float = HIGH) -> Tensor:
    """n steps, uniform in lam from `low` to `high`, or as far as the process reaches, times `[n + 1]`."""
    low, high = reach(process, low, high)
    return process.at(torch.linspace(low, high, n + 1, dtype=F64)).t


def reach(process: Process, low: float = LOW, high: float = HIGH) -> tuple[float, float]:
    """Those of the log-SNRs from low to high that the process has."""
    first, last = process.edges.tolist()
    return max(low, first), min(high, last)


def uneven(process: Process, n: int, ratio: float = 1.5) -> Tensor:
    """`by_lam` with steps of two lengths in turn, and the first one graded: what orders are measured on.

    Weights made for equal steps have the wrong order here, and from a graded start multistep methods have theirs.
    """

    def in_turn(sde: SDE, steps: int) -> Tensor:
        lengths = torch.where(torch.arange(steps) % 2 == 0, 1.0, ratio).to(F64).cumsum(0)
        share = torch.cat([lengths.new_zeros(1), lengths / lengths[-1]])
        low, high = reach(process)
        return process.at(low + (high - low) * share).t

    return graded(process, n, in_turn)


def off_knots(process: SDE, t: Tensor) -> Tensor:
    """Times moved to the middle of their cells on a tabulated process, whose rates jump at its knots."""
    steps = process.steps if isinstance(process, DiscreteVP) else None
    return ((t * steps).floor().clamp(1, steps - 1) + 0.5) / steps if steps else t


def starts(process: SDE, count: int, shape: Sequence[int], first: Tensor) -> Tensor:
    """States `[count, *shape]` at the time `first`, from the prior, scaled to that level."""
    x = process.prior(noises.seeds(0, count), tuple(shape)).to(F64)
    if not isinstance(process, Process):
        return x
    return x * (process.sigma(first) / process.sigma(torch.as_tensor(process.t_max, dtype=F64)))


def reference(process: Process, problem: str = "three", steps: int = 1000, count: int = 8) -> tuple[Tensor, Tensor]:
    """Starts `[count, *S]` at lam = LOW and where the exact probability flow takes them at HIGH.

    RK4 in ANGLE with `steps` steps; on 'three' it errs by 1.1e-12 at 1,000 steps, judged by 4,000. Kept for processes
    that can be hashed.
    """
    try:
        hash(process)
    except TypeError:
        return _solved(process, problem, steps, count)
    return _kept(process, problem, steps, count)


@functools.lru_cache(maxsize=64)
def _kept(process: Process, problem: str, steps: int, count: int) -> tuple[Tensor, Tensor]:
    return _solved(process, problem, steps, count)


def _solved(process: Process, problem: str, steps: int, count: int) -> tuple[Tensor, Tensor]:
    data = PROBLEMS[problem].data
    times = by_lam(process, steps)
    x = starts(process, count, data.shape, times[0])
    solver = RungeKutta(RK4, ANGLE(sigma_data=0.5))
    return x, run(data.score(process), x, Fixed(times), solver).x


def slope(errors: Sequence[float], ratio: float = 2.0) -> float:
    """The order seen between the last two errors of a sequence in which the step shrinks by `ratio`."""
    if min(errors[-2:]) <= 0:
        return math.inf
    return math.log(errors[-2] / errors[-1]) / math.log(ratio)
