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
from sdegen.control import Fixed
from sdegen.grids import by_snr, graded
from sdegen.model import log_sigma_time
from sdegen.solve import run

from . import network
from .cache import kept
from .quick import Denoiser

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
            return run(model, x, control, solver, None, None, False).x

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
        part = sd.GaussianMixture(law.means[own], covs=_clusters()[1][own], weights=law.weights[own])
        every, some = Denoiser(process, law, u, e, floor), Denoiser(process, part, u[own], e[own], floor)
        return sd.ScoreModel(process, lambda x, time: torch.lerp(every(x, time), some(x, time), 2.5), "data")


def lam(value: Tensor) -> Tensor:
    """Interpolation in log-SNR."""
    return value


def error(x: Tensor, exact: Tensor) -> Tensor:
    """The root mean square error of each sample, `[B]`."""
    return (x - exact).flatten(1).square().mean(1).sqrt()


def _grid() -> sd.GaussianMixture:
    side = torch.linspace(-1.0, 1.0, 5, dtype=F64)
    weights = torch.arange(25, dtype=F64).mul(7).remainder(25) + 5  # from 5 to 29, scattered over the grid
    return sd.GaussianMixture(torch.cartesian_prod(side, side), stds=0.05, weights=weights)


def _ring() -> sd.GaussianMixture:
    angle = torch.arange(12, dtype=F64) * (2 * math.pi / 12)
    weights = 1.0 + torch.arange(12, dtype=F64).mul(5).remainder(12)  # 1 to 12
    return sd.GaussianMixture(3 * torch.stack([angle.cos(), angle.sin()], 1), stds=0.15, weights=weights)


@functools.cache
def _clusters() -> tuple[Tensor, Tensor, Tensor]:
    """Means, covariances + 1e-4 I, and sizes of 20 clusters of the digits."""
    from sklearn.cluster import KMeans

    data = network.digits(1.0)
    label = torch.as_tensor(KMeans(20, n_init=4, random_state=0).fit_predict(data.numpy()))
    clusters = [data[label == k] for k in range(20)]
    covs = torch.stack([torch.cov(c.T, correction=0) + 1e-4 * torch.eye(64, dtype=F64) for c in clusters])
    return torch.stack([c.mean(0) for c in clusters]), covs, torch.tensor([float(len(c)) for c in clusters])


def _digits() -> sd.GaussianMixture:
    means, covs, sizes = _clusters()
    return sd.GaussianMixture(means, covs=covs, weights=sizes)


def _digits_eigen() -> tuple[Tensor, Tensor, float]:
    e, u = torch.linalg.eigh(_clusters()[1])
    return u, e, 0.0


def _smooth(seed: int, count: int, side: int = 32) -> Tensor:
    """Random images `[count, 3 side^2]` whose power falls as 1/f^2, of unit norm."""
    white = noises.normals(noises.seeds(seed, count), (3, side, side), (0, 0, 0, 0), dtype=F64)
    f = torch.fft.fftfreq(side, 1 / side, dtype=F64)
    amplitude = 1 / torch.hypot(f[:, None], f[None, :]).clamp(min=1.0)
    return torch.nn.functional.normalize(torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real.flatten(1))


@functools.cache
def _images_eigen() -> tuple[Tensor, Tensor, float]:
    u = torch.stack([torch.linalg.qr(_smooth(10 + k, 160).T).Q for k in range(10)])
    return u, (8 / torch.arange(1, 161, dtype=F64)).square().expand(10, 160), 0.02


def _images() -> sd.GaussianMixture:
    """10 components of rank 160 in 3072 dimensions, standard deviations 8/j along images of power 1/f^2, floor 0.02."""
    u, e, floor = _images_eigen()
    means = _smooth(9, 10) * (0.45 * math.sqrt(3072))
    weights = torch.arange(5.0, 15.0, dtype=F64)
    return sd.GaussianMixture(means, factors=u * e.sqrt()[:, None], stds=floor, weights=weights)


def _stiff() -> sd.GaussianMixture:
    """Six components in eight dimensions; every one has all widths from 0.002 to 2, each along other axes."""
    widths = 0.002 * 1000 ** (torch.arange(8, dtype=F64) / 7)
    stds = torch.stack([widths.roll(3 * k) for k in range(6)])
    means = noises.normals(noises.seeds(21, 6), (8,), (0, 0, 0, 0), dtype=F64)
    return sd.GaussianMixture(means, stds=stds, weights=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


_ALL = (
    Problem("ring", "2-D, 12 modes on a circle of radius 3, std 0.15, weights 1 to 12", _ring, (2,), 256, 101, 4000),
    Problem(
        "digits",
        "64-D, 20 full covariances fitted to handwritten digits, scale 1",
        _digits,
        (64,),
        96,
        102,
        eigen=_digits_eigen,
    ),
    Problem("stiff", "8-D, 6 components with widths from 0.002 to 2", _stiff, (8,), 192, 103, 4000),
    Problem("grid", "2-D, 25 modes of std 0.05 on [-1, 1]^2, uneven weights", _grid, (2,), 256, 104, 4000),
    Problem(
        "images",
        "3072-D, 10 components of rank 160 with power-law spectrum, means and eigenvectors of power 1/f^2",
        _images,
        (3072,),
        12,
        105,
        1500,
        eigen=_images_eigen,
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
    "guided", "`digits` under guidance of weight 2.5", _digits, (64,), 96, 107, 4000, agree=1e-9, eigen=_digits_eigen
)
PROCESSES: dict[str, sd.Process] = {"VP": sd.VP(), "EDM": sd.EDM()}
