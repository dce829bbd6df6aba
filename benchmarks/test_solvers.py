"""What the library itself costs, beside the least that could do the job and beside its peers, in one run each.

The network is nearly free, so that times are overhead. `make bench` prints medians; compare within a group.
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torchdiffeq
import torchsde

import sdegen as sd
from sdegen import adapters

STEPS = 50
SMALL, LARGE = (16, 2), (256, 3072)
VP = sd.VP()


def network(x, t):
    return x * -0.5


MODEL = sd.ScoreModel(VP, network, "noise")


def start(shape):
    return VP.prior(sd.noise.seeds(0, shape[0]), shape[1:])


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def bare_ddim(x, levels):
    """DDIM as a bare loop over precomputed Python floats."""
    for a0, s0, a1, s1 in levels:
        eps = network(x, None)
        x = (a1 / a0) * x + (s1 - a1 / a0 * s0) * eps
    return x


def bare_levels():
    level = VP.level(sd.grids.by_snr(VP, STEPS))
    rows = list(zip(level.alpha.tolist(), level.sigma.tolist()))
    return [(*now, *next) for now, next in zip(rows, rows[1:])]


SOLVERS = {
    "ddim": sd.ddim(),
    "dpmpp2": sd.dpmpp(2),
    "unipc3": sd.unipc(3),
    "heun": sd.heun(),
    "euler_maruyama": sd.euler_maruyama(),
    "pc": sd.pc(),
}


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", ["bare loop", *SOLVERS])
def test_fifty_steps(benchmark, shape, name):
    benchmark.group = f"{STEPS} steps, x {list(shape)}"
    x = start(shape)
    if name == "bare loop":
        benchmark(bare_ddim, x, bare_levels())
        return
    solver, control = SOLVERS[name], sd.Fixed(sd.grids.by_snr(VP, STEPS))
    noise = sd.White(sd.noise.seeds(1, shape[0]))
    benchmark(sd.solve, MODEL, x, control, solver, noise=noise)


@pytest.mark.parametrize("name", ["sdegen", "torchdiffeq"])
def test_rk4_on_the_flow(benchmark, name):
    """The same 50 RK4 steps in t on one black-box flow."""
    benchmark.group = "rk4 in t, x [256, 64]"
    x, times = start((256, 64)), sd.grids.by_time(VP, STEPS)
    flow = VP.probability_flow(MODEL)
    if name == "sdegen":
        benchmark(sd.solve, flow, x, sd.Fixed(times), sd.RungeKutta(sd.RK4, sd.TIME))
    else:
        function = adapters.for_torchdiffeq(flow)
        benchmark(lambda: torchdiffeq.odeint(function, x, times, method="rk4")[-1])


@pytest.mark.parametrize("name", ["sdegen", "torchsde"])
def test_euler_maruyama_on_the_reverse_sde(benchmark, name):
    """The same 50 Euler-Maruyama steps, each library with its own per-run noise."""
    benchmark.group = "euler-maruyama in t, x [256, 64]"
    x, reverse = start((256, 64)), VP.reverse(MODEL)
    if name == "sdegen":
        noise = sd.White(sd.noise.seeds(1, 256))
        benchmark(sd.solve, reverse, x, sd.Fixed(sd.grids.by_time(VP, STEPS)), sd.euler_maruyama(), noise=noise)
        return

    problem = adapters.for_torchsde(reverse, (64,))
    ts = torch.tensor([-VP.t_max, -VP.t_min])
    benchmark(lambda: torchsde.sdeint(problem, x, ts, method="euler", dt=(1 - 1e-3) / STEPS)[-1])


@pytest.mark.parametrize("kind", ["isotropic", "full", "low rank", "empirical"])
def test_mixture_scores(benchmark, kind):
    """One exact score of 256 samples in 64 dimensions: 20 components, or 1,797 data points."""
    benchmark.group = "mixture score, x [256, 64]"
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(1797 if kind == "empirical" else 20, 64, generator=generator)
    half = torch.randn(20, 64, 8, generator=generator)
    mixture = {
        "isotropic": lambda: sd.GaussianMixture(means, stds=0.3),
        "full": lambda: sd.GaussianMixture(means, covs=half @ half.mT + torch.eye(64)),
        "low rank": lambda: sd.GaussianMixture(means, factors=half, stds=0.3),
        "empirical": lambda: sd.GaussianMixture.empirical(means),
    }[kind]()
    benchmark(mixture.score(VP), start((256, 64)), VP.level(0.5))


@pytest.mark.parametrize("module", ["torch", "sdegen"])
def test_import(benchmark, module):
    """A fresh interpreter that imports torch alone, and sdegen with it."""
    benchmark.group = "import"
    command = [sys.executable, "-c", f"import torch, {module}"]
    benchmark.pedantic(subprocess.run, (command,), {"check": True}, rounds=5)


def test_quadrature_weights(benchmark):
    """The weights of one third-order step."""
    benchmark.group = "quadrature"
    us = torch.tensor([0.0, -0.3, -0.7], dtype=torch.float64)
    weights, _ = benchmark(sd.quadrature.quadrature, -1.0, torch.tensor(0.4, dtype=torch.float64), us)
    assert math.isclose(float(weights.sum()), -math.expm1(-0.4), rel_tol=1e-12)
