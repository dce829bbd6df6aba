"""Metrics of two sets of samples, beside numpy and scipy as one would write them, POT and torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sdegen import metrics

D, DIRECTIONS = 64, 128
Make = Callable[[], Callable[[], Any]]
Value = Callable[[], float]


def samples(n: int, seed: int) -> torch.Tensor:
    """Normals `[n, D]`, one set shifted from another."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1 * seed


X, Y = samples(2000, 0), samples(2000, 1)
FEW = 500
ALONG = metrics.directions(0, DIRECTIONS, D)


def numpy_sliced() -> float:
    """Sorted projections."""
    a, b = (np.sort(v.numpy() @ ALONG.numpy().T, 0) for v in (X, Y))
    return math.sqrt(((a - b) ** 2).mean())


def pot_sliced() -> Value:
    """POT, along the same directions."""
    import ot

    x, y, along = X.numpy(), Y.numpy(), ALONG.numpy().T.copy()
    return lambda: float(ot.sliced_wasserstein_distance(x, y, projections=along, p=2))


def scipy_exact() -> Value:
    """A table of distances and an assignment."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    def run() -> float:
        costs = cdist(X[:FEW].numpy(), Y[:FEW].numpy(), "sqeuclidean")
        return math.sqrt(costs[linear_sum_assignment(costs)].mean())

    return run


def pot_exact() -> Value:
    """POT."""
    import ot

    x, y = X[:FEW].numpy(), Y[:FEW].numpy()
    return lambda: math.sqrt(ot.emd2([], [], ot.dist(x, y)))


def scipy_frechet() -> Value:
    """The formula with a matrix root."""
    from scipy.linalg import sqrtm

    def run() -> float:
        x, y = X.numpy(), Y.numpy()
        a, b = np.cov(x.T), np.cov(y.T)
        root = np.trace(sqrtm(a @ b).real)
        return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)

    return run


def torchmetrics_frechet() -> Value:
    """torchmetrics, of images whose pixels are the features."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pixels(torch.nn.Flatten):
        num_features = D

    images = [v.reshape(-1, 1, 8, 8).expand(-1, 1, 8, 8) for v in (X, Y)]

    def run() -> float:
        distance = FrechetInceptionDistance(feature=Pixels(), input_img_size=(1, 8, 8)).set_dtype(torch.float64)
        distance.update(images[0], real=True)
        distance.update(images[1], real=False)
        return float(distance.compute())

    return run


def scipy_energy() -> Value:
    """Tables of distances."""
    from scipy.spatial.distance import cdist, pdist

    def run() -> float:
        x, y = X.numpy(), Y.numpy()
        return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())

    return run


def scikit_kernel() -> Value:
    """The unbiased squared distance of scikit-learn's cubic kernels."""
    from sklearn.metrics.pairwise import polynomial_kernel

    def run() -> float:
        x, y = X.numpy(), Y.numpy()
        n = len(x)
        own = [polynomial_kernel(v, degree=3) for v in (x, y)]
        within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in own)
        return float(within - 2 * polynomial_kernel(x, y, degree=3).mean())

    return run


METRICS: dict[str, dict[str, Callable[[], Value]]] = {
    f"sliced Wasserstein, 2000x{D}": {
        "numpy": lambda: numpy_sliced,
        "sdegen sliced_wasserstein": lambda: lambda: metrics.sliced_wasserstein(X, Y, directions=ALONG),
        "POT": pot_sliced,
    },
    f"exact Wasserstein, {FEW}x{D}": {
        "scipy": scipy_exact,
        "sdegen wasserstein": lambda: lambda: metrics.wasserstein(X[:FEW], Y[:FEW]),
        "POT": pot_exact,
    },
    f"Frechet, 2000x{D}": {
        "numpy and scipy": scipy_frechet,
        "sdegen frechet": lambda: lambda: metrics.frechet(X, Y),
        "torchmetrics": torchmetrics_frechet,
    },
    f"energy distance, 2000x{D}": {
        "scipy": scipy_energy,
        "sdegen energy_distance": lambda: lambda: metrics.energy_distance(X, Y),
    },
    f"kernel distance, 2000x{D}": {
        "scikit-learn": scikit_kernel,
        "sdegen kernel_distance": lambda: lambda: metrics.kernel_distance(X, Y),
    },
}


def checked(make: Callable[[], Value], first: Callable[[], Value]) -> Make:
    """A way, once it has given the reference's number."""

    def made() -> Callable[[], Any]:
        run = make()
        assert math.isclose(run(), first()(), rel_tol=1e-6)
        return run

    return made


GROUPS: dict[str, dict[str, Make]] = {
    f"metrics, {group}": {name: checked(make, next(iter(ways.values()))) for name, make in ways.items()}
    for group, ways in METRICS.items()
}


def test_distances(beside: Callable[[], None]) -> None:
    """Whole calls."""
    beside()
