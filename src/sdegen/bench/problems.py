"""Problems of the benchmark: a model, the law or the data that its samples should have, and a picture of a sample.

Built in are five Gaussian mixtures with exact scores, under any process; a user's own model is a `Problem` as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.bench.denoiser import Denoiser
from sdegen.bench.robustness import perturbed, reduced
from sdegen.errors import InvalidArgumentError, InvalidTypeError, hint
from sdegen.processes.process import Process
from sdegen.processes.schedules import EDM, VE, VP, Flow
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import ScoreModel
from sdegen.training import data as sets

F64 = torch.float64
PROCESSES: Mapping[str, Callable[[], Process]] = {"VP": VP, "VE": VE, "EDM": EDM, "Flow": partial(Flow, t_max=0.999)}


@dataclass(frozen=True)
class Problem:
    """A model and what its samples should be.

    name: as in tables. model: a `ScoreModel` on its process. shape: of one sample, `*S`. law: the exact law of the
    data, where the score is exact: samples are then compared with its marginal at t_min. data: samples of it `[N, *S]`,
    where there is no law: samples are then denoised once more and compared with these. image: the shape `(H, W)` or
    `(3, H, W)` under which a sample is shown. dtype: of states; the model's own unless given. statement: what a page
    says of it. sources: a hash of the files that it was made in, where it is known.

    Raises InvalidTypeError and InvalidArgumentError on parts that do not fit each other.
    """

    name: str
    model: Any
    shape: tuple[int, ...]
    law: GaussianMixture | None = None
    data: Tensor | None = None
    image: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    statement: str = ""
    sources: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not callable(self.model) or not isinstance(getattr(self.model, "process", None), Process):
            raise InvalidTypeError(
                "a problem needs a ScoreModel, which knows its process and what its network predicts; "
                f"got {self.model!r}"
            )
        for given, what in ((self.data, "data"), (None if self.law is None else self.law.means, "the law's means")):
            if given is not None and given.shape[1:] != self.shape:
                raise InvalidArgumentError(
                    f"{what} of {self.name!r} are of shape {list(given.shape[1:])}, its samples of {list(self.shape)}"
                )
        if self.image is not None and math.prod(self.image) != math.prod(self.shape):
            raise InvalidArgumentError(
                f"a sample of shape {list(self.shape)} cannot be shown as an image of shape {list(self.image)}"
            )

    @property
    def process(self) -> Process:
        """The process of the model."""
        process: Process = self.model.process
        return process

    @property
    def denoises(self) -> bool:
        """Whether samples end with the predicted data (one evaluation more) instead of the state at t_min."""
        return self.law is None

    @property
    def scale(self) -> float:
        """The standard deviation of the data; 1 where nothing is known of them."""
        if self.law is not None:
            return math.sqrt(float(self.law.cov().diagonal().mean()))
        return 1.0 if self.data is None else float(self.data.std())

    def perturbed(self, size: float, where: str = "all", seed: int = 0) -> Problem:
        """The same with an error of relative size `size` in the score, see `bench.perturbed`."""
        model = perturbed(self.model, size, where, seed=seed, scale=self.scale)
        statement = f"{self.statement}; an error of {size:.3g} in its score, at {where} noise"
        return replace(self, name=f"{self.name}+{size:g}{where}", model=model, statement=statement)

    def reduced(self, dtype: torch.dtype) -> Problem:
        """The same with its score in reduced precision, see `bench.reduced`."""
        name = str(dtype).removeprefix("torch.")
        statement = f"{self.statement}; its score in {name}"
        return replace(self, name=f"{self.name}+{name}", model=reduced(self.model, dtype), statement=statement)


@dataclass(frozen=True)
class Built:
    """A mixture by name. eigen: eigenvectors `[K, D, R]`, variances `[K, R]` and the floor's standard deviation of its
    components, where a denoiser made of them is worth while."""

    name: str
    statement: str
    law: Callable[[], GaussianMixture]
    eigen: Callable[[], tuple[Tensor, Tensor, float]] | None = None
    image: tuple[int, ...] | None = None

    def model(self, process: Process) -> ScoreModel:
        """The exact score under a process."""
        law = self.law()
        return law.score(process) if self.eigen is None else Denoiser(process, law, *self.eigen()).model()

    def problem(self, process: str) -> Problem:
        """The problem `name-process`."""
        on = PROCESSES[process]()
        law = self.law()
        shape = tuple(law.means.shape[1:])
        where = f"{self.statement}; {process}"
        return Problem(f"{self.name}-{process}", self.model(on), shape, law, None, self.image, F64, where)


def problem(name: str, process: str = "VP") -> Problem:
    """A built-in problem by name, one of `PROBLEMS`, under a process, one of `PROCESSES`.

    Raises InvalidArgumentError for another name, and where `digits` has no scikit-learn to fit it with.
    """
    for given, known, what in ((name, PROBLEMS, "problem"), (process, PROCESSES, "process")):
        if given not in known:
            raise InvalidArgumentError(f"unknown {what} {given!r}: {hint(given, list(known), 'there are')}")
    return PROBLEMS[name].problem(process)


def grid() -> GaussianMixture:
    """25 narrow modes on [-1, 1]^2, of uneven weights."""
    side = torch.linspace(-1.0, 1.0, 5, dtype=F64)
    weights = torch.arange(25, dtype=F64).mul(7).remainder(25) + 5  # from 5 to 29, scattered over the grid
    return GaussianMixture(torch.cartesian_prod(side, side), stds=0.05, weights=weights)


def ring() -> GaussianMixture:
    """12 modes on a circle, of weights 1 to 12."""
    angle = torch.arange(12, dtype=F64) * (2 * math.pi / 12)
    weights = 1.0 + torch.arange(12, dtype=F64).mul(5).remainder(12)
    return GaussianMixture(3 * torch.stack([angle.cos(), angle.sin()], 1), stds=0.15, weights=weights)


def rings() -> GaussianMixture:
    """`ring` with a second one inside, of half its radius and six modes; weights 1 to 18, scattered."""
    parts = [(1.5, 6), (3.0, 12)]
    angles = [torch.arange(k, dtype=F64) * (2 * math.pi / k) for _, k in parts]
    means = torch.cat([r * torch.stack([a.cos(), a.sin()], 1) for (r, _), a in zip(parts, angles)])
    weights = 1.0 + torch.arange(18, dtype=F64).mul(5).remainder(18)
    return GaussianMixture(means, stds=0.15, weights=weights)


def stiff() -> GaussianMixture:
    """Six components in eight dimensions; every one has all widths from 0.002 to 2, each along other axes."""
    widths = 0.002 * 1000 ** (torch.arange(8, dtype=F64) / 7)
    stds = torch.stack([widths.roll(3 * k) for k in range(6)])
    means = noises.normals(noises.seeds(21, 6), (8,), (0, 0, 0, 0), dtype=F64)
    return GaussianMixture(means, stds=stds, weights=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def handwritten() -> Tensor:
    """scikit-learn's 1,797 images of 8x8, standardised as one: mean 0, standard deviation 1, `[1797, 64]`."""
    data = ((sets.digits()[0] + 1) * 8).flatten(1)
    return (data - data.mean()) / data.std()


@functools.cache
def clusters() -> tuple[Tensor, Tensor, Tensor]:
    """Means `[20, 64]`, covariances + 1e-4 I, and sizes of 20 clusters of the digits."""
    data = handwritten()
    from sklearn.cluster import KMeans

    label = torch.as_tensor(KMeans(20, n_init=4, random_state=0).fit_predict(data.numpy()))
    parts = [data[label == k] for k in range(20)]
    covs = torch.stack([torch.cov(c.T, correction=0) + 1e-4 * torch.eye(64, dtype=F64) for c in parts])
    return torch.stack([c.mean(0) for c in parts]), covs, torch.tensor([float(len(c)) for c in parts])


def digits() -> GaussianMixture:
    """20 full covariances fitted to handwritten digits."""
    means, covs, sizes = clusters()
    return GaussianMixture(means, covs=covs, weights=sizes)


def digits_eigen() -> tuple[Tensor, Tensor, float]:
    """The components' eigenvectors, variances, and no floor."""
    e, u = torch.linalg.eigh(clusters()[1])
    return u, e, 0.0


def _smooth(seed: int, count: int, side: int = 32) -> Tensor:
    """Random images `[count, 3 side^2]` whose power falls as 1/f^2, of unit norm."""
    white = noises.normals(noises.seeds(seed, count), (3, side, side), (0, 0, 0, 0), dtype=F64)
    f = torch.fft.fftfreq(side, 1 / side, dtype=F64)
    amplitude = 1 / torch.hypot(f[:, None], f[None, :]).clamp(min=1.0)
    return torch.nn.functional.normalize(torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real.flatten(1))


@functools.cache
def images_eigen() -> tuple[Tensor, Tensor, float]:
    """10 times 160 orthonormal images of power 1/f^2, standard deviations 8/j along them, and 0.02 along all others."""
    u = torch.stack([torch.linalg.qr(_smooth(10 + k, 160).T).Q for k in range(10)])
    return u, (8 / torch.arange(1, 161, dtype=F64)).square().expand(10, 160), 0.02


def images() -> GaussianMixture:
    """10 components of rank 160 in 3072 dimensions, of power 1/f^2."""
    u, e, floor = images_eigen()
    means = _smooth(9, 10) * (0.45 * math.sqrt(3072))
    weights = torch.arange(5.0, 15.0, dtype=F64)
    return GaussianMixture(means, factors=u * e.sqrt()[:, None], stds=floor, weights=weights)


_ALL = (
    Built("grid", "2-D, 25 modes of std 0.05 on [-1, 1]^2, uneven weights", grid),
    Built("rings", "2-D, 18 modes of std 0.15 on two circles, weights 1 to 18", rings),
    Built("digits", "64-D, 20 full covariances fitted to handwritten digits", digits, digits_eigen, (8, 8)),
    Built("images", "3072-D, 10 components of rank 160, power 1/f^2", images, images_eigen, (3, 32, 32)),
    Built("stiff", "8-D, 6 components with widths from 0.002 to 2", stiff),
)
PROBLEMS: Mapping[str, Built] = {built.name: built for built in _ALL}
