"""Exact scores of mixtures, beside autograd through `torch.distributions.MixtureSameFamily` of the same law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as laws

import sdegen as sd

VP, D, K, POINTS = sd.VP(), 64, 20, 1797
LEVEL = VP.level(torch.tensor(0.5, dtype=torch.float64))
Make = Callable[[], Callable[[], Any]]


def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Means `[K, D]`, factors `[K, D, 8]` and data `[POINTS, D]`."""
    generator = torch.Generator().manual_seed(0)
    shapes = (K, D), (K, D, 8), (POINTS, D)
    means, factors, data = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return means, factors, data


MEANS, FACTORS, DATA = parts()
FULL = FACTORS @ FACTORS.mT + torch.eye(D, dtype=torch.float64)
A, S = LEVEL.alpha, LEVEL.sigma
MIXTURES: dict[str, tuple[int, Callable[[], sd.GaussianMixture], Callable[[], laws.Distribution]]] = {
    "isotropic": (
        256,
        lambda: sd.GaussianMixture(MEANS, stds=0.3),
        lambda: laws.Independent(laws.Normal(A * MEANS, torch.hypot(A * 0.3, S)), 1),
    ),
    "full": (
        256,
        lambda: sd.GaussianMixture(MEANS, covs=FULL),
        lambda: laws.MultivariateNormal(A * MEANS, A**2 * FULL + S**2 * torch.eye(D, dtype=torch.float64)),
    ),
    "low rank": (
        256,
        lambda: sd.GaussianMixture(MEANS, factors=FACTORS, stds=0.3),
        lambda: laws.LowRankMultivariateNormal(A * MEANS, A * FACTORS, ((A * 0.3) ** 2 + S**2).expand(K, D)),
    ),
    f"{POINTS} data points": (
        64,
        lambda: sd.GaussianMixture.empirical(DATA),
        lambda: laws.Independent(laws.Normal(A * DATA, S), 1),
    ),
}
"""By name: how many samples, the mixture, and the components at the level."""


def by_autograd(x: Tensor, components: Callable[[], laws.Distribution]) -> Tensor:
    """The score as the gradient of the log-density, of a law made anew as at every step."""
    each = components()
    law = laws.MixtureSameFamily(laws.Categorical(torch.ones(each.batch_shape[0], dtype=x.dtype)), each)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(law.log_prob(x).sum(), x)[0]


def ways(count: int, mixture: Callable[[], sd.GaussianMixture], components: Callable[[], Any]) -> dict[str, Make]:
    """Both, which must agree."""
    x = VP.prior(sd.noise.seeds(0, count), (D,), torch.float64)

    def ours() -> Callable[[], Any]:
        model = mixture().score(VP)
        torch.testing.assert_close(model(x, LEVEL), by_autograd(x, components), rtol=1e-8, atol=1e-8)
        return lambda: model(x, LEVEL)

    return {"torch.distributions, autograd": lambda: lambda: by_autograd(x, components), "sdegen GaussianMixture": ours}


GROUPS: dict[str, dict[str, Make]] = {
    f"mixture score, {name}, {made[0]}x{D}": ways(*made) for name, made in MIXTURES.items()
}


def test_scores(beside: Callable[[], None]) -> None:
    """One evaluation of a batch, float64."""
    beside()
