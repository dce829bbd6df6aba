"""Problems with exact probability flows: where a start must end, to ten digits, for mixtures and one small network.

In `y = x/alpha`, `s = sigma/alpha` the flow is the same for every process; a process gives the range of s and the grid.
References come from the sixth-order multistep method in ANGLE at two resolutions, which must agree; they are cached.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sdegen as sd
from sdegen import noise as noises
from sdegen.bench.denoiser import Denoiser
from sdegen.bench.problems import clusters, digits, digits_eigen, grid, images, images_eigen, ring, stiff
from sdegen.grids import by_snr, graded
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run
from sdegen.scores.model import log_sigma_time

from . import network
from .cache import kept

F64 = torch.float64
PILOT = 1 << 40
"""Added to a problem's seed for pilot runs, so that they share no noise with the tests."""


@dataclass(frozen=True)
class Problem:
    """Data with an exact flow; `build` makes the mixture, or the network in float64 where there is one.

    samples: how many test starts. steps: of the reference's finer resolution. scale: sigma_data of the reference's
    frame. agree: how closely its two resolutions must agree. eigen: eigenvectors `[K, D, R]`, their variances and the
    floor's standard deviation, where the components are worth a denoiser made of large products.
    """

    name: str
    statement: str
    build: Callable[[], sd.GaussianMixture | torch.nn.Module]
    shape: tuple[int, ...]
    samples: int
    seed: int
    steps: int = 2000
    scale: float = 0.7
    agree: float = 1e-10
    eigen: Callable[[], tuple[Tensor, Tensor, float]] | None = None

    @functools.cached_property
    def source(self) -> sd.GaussianMixture | torch.nn.Module:
        """The mixture or the network, built on first use."""
        return self.build()

    @property
    def mixture(self) -> sd.GaussianMixture | None:
        """The law of the data, where the score is exact."""
        return self.source if isinstance(self.source, sd.GaussianMixture) else None

    def model(self, process: sd.Process) -> sd.ScoreModel:
        """The score under a process."""
        if self.eigen is not None and self.mixture is not None:
            return sd.ScoreModel(process, Denoiser(process, self.mixture, *self._bases), "data")
        if isinstance(self.source, sd.GaussianMixture):
            return self.source.score(process)
        return sd.ScoreModel(process, self.source, "edm", sigma_data=network.SCALE, time=log_sigma_time)

    @functools.cached_property
    def _bases(self) -> tuple[Tensor, Tensor, float]:
        assert self.eigen is not None
        return self.eigen()

    def start(self, process: sd.Process, count: int | None = None, *, pilot: bool = False) -> Tensor:
        """States `[count, *S]` at t_max, float64; those of `pilot` are other ones. count: `samples` by default."""
        seeds = noises.seeds(self.seed + (PILOT if pilot else 0), self.samples if count is None else count)
        return process.prior(seeds, self.shape, F64)

    def reference(self, process: sd.Process, *, pilot: bool = False, count: int | None = None) -> Tensor:
        """Where the exact flow takes `start` at t_min, `[count, *S]`; cached on disk.

        Raises RuntimeError where the two resolutions do not agree.
        """
        x, model = self.start(process, count, pilot=pilot), self.model(process)
        key = self._fingerprint(model, x)
        found: Tensor = kept(f"{self.name}-{type(process).__name__}-{key}", lambda: self._solve(model, x))
        return found

    def _fingerprint(self, model: sd.ScoreModel, x: Tensor) -> str:
        """A hash that changes with the data, the process, the starts and how a reference is made."""
        process = model.process
        level = process.level((process.t_min + process.t_max) / 2)
        seen = model(x[:2] * (level.sigma / process.sigma(torch.tensor(process.t_max, dtype=F64))), level, "data")
        text = [f"{v:.6e}" for v in (*x[:, :2].flatten().tolist(), *seen.flatten()[:64].tolist())]
        return hashlib.sha256(f"{process} {self.steps} {self.scale} {self.agree} {text}".encode()).hexdigest()[:16]

    def _solve(self, model: sd.ScoreModel, x: Tensor) -> Tensor:
        coarse, fine = (self.solved(model, x, steps) for steps in (self.steps * 3 // 4, self.steps))
        apart = float((coarse - fine).abs().max())
        if not apart < self.agree:
            raise RuntimeError(f"{self.name} under {model.process}: references differ by {apart:.1e}; raise `steps`")
        return fine

    def solved(self, model: sd.ScoreModel, x: Tensor, steps: int) -> Tensor:
        """The end at t_min of the sixth-order method with `steps` steps in log-SNR, the first one graded."""
        solver = sd.Multistep(5, sd.ANGLE(sigma_data=self.scale, variable=lam), correct=True)
        control = Fixed(graded(model.process, steps, by_snr, 12))
        with torch.no_grad():
            return run(model, x, control, solver).x

    def owner(self, x: Tensor) -> Tensor:
        """The most responsible component `[B]` of data x `[B, *S]`. Raises ValueError for the network."""
        law = self.mixture
        if law is None:
            raise ValueError("the network has no components")
        small = sd.EDM().level(torch.tensor(sd.EDM().t_min, dtype=F64))
        parts = [sd.GaussianMixture.log_prob(law._only(k), x, small) for k in range(len(law))]
        return (torch.stack(parts, 1) + law.weights.log()).argmax(1)

    def flipped(self, x: Tensor, exact: Tensor) -> Tensor:
        """Which ends `[B]` went to another mode: another component, or further away than half a typical distance."""
        if self.mixture is None:
            typical = torch.pdist(network.digits(network.SCALE)[:200]).median() / math.sqrt(64)
            return error(x, exact) > typical / 2
        return self.owner(x) != self.owner(exact)


class Guided(Problem):
    """`digits` under classifier-free guidance of weight 2.5 towards five of its components: no law, only a flow."""

    def model(self, process: sd.Process) -> sd.ScoreModel:
        """`D + 2.5 (D_class - D)`, D the denoiser of all components."""
        law, (u, e, floor) = self.mixture, self._bases
        assert law is not None
        own = slice(0, 20, 4)
        part = sd.GaussianMixture(law.means[own], covs=clusters()[1][own], weights=law.weights[own])
        every, some = Denoiser(process, law, u, e, floor), Denoiser(process, part, u[own], e[own], floor)
        return sd.ScoreModel(process, lambda x, time: torch.lerp(every(x, time), some(x, time), 2.5), "data")


def lam(value: Tensor) -> Tensor:
    """Interpolation in log-SNR."""
    return value


def error(x: Tensor, exact: Tensor) -> Tensor:
    """The root mean square error of each sample, `[B]`."""
    return (x - exact).flatten(1).square().mean(1).sqrt()


_ALL = (
    Problem("ring", "2-D, 12 modes on a circle of radius 3, std 0.15, weights 1 to 12", ring, (2,), 256, 101, 4000),
    Problem(
        "digits",
        "64-D, 20 full covariances fitted to handwritten digits, scale 1",
        digits,
        (64,),
        96,
        102,
        eigen=digits_eigen,
    ),
    Problem("stiff", "8-D, 6 components with widths from 0.002 to 2", stiff, (8,), 192, 103, 4000),
    Problem("grid", "2-D, 25 modes of std 0.05 on [-1, 1]^2, uneven weights", grid, (2,), 256, 104, 4000),
    Problem(
        "images",
        "3072-D, 10 components of rank 160 with power-law spectrum, means and eigenvectors of power 1/f^2",
        images,
        (3072,),
        12,
        105,
        1500,
        eigen=images_eigen,
    ),
    Problem(
        "net",
        "64-D, a small network trained on handwritten digits of scale 0.5",
        network.trained,
        (64,),
        96,
        106,
        1500,
        agree=1e-9,
    ),
)
PROBLEMS = {problem.name: problem for problem in _ALL}
GUIDED = Guided(
    "guided", "`digits` under guidance of weight 2.5", digits, (64,), 96, 107, 4000, agree=1e-9, eigen=digits_eigen
)
PROCESSES: dict[str, sd.Process] = {"VP": sd.VP(), "EDM": sd.EDM()}
