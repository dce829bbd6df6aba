"""Other libraries' own code and ours on one exact score and grid: the same numbers, or their slip and both orders.

A stochastic sampler is compared by its exact law on Gaussian data, which is all of it that does not depend on how its
normals are drawn. benchmarks/peers runs the peers; docs/peers.md has the table.
"""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from cases import mostly_slow

import sdegen as sd
from benchmarks.peers import measure, with_azula, with_diffusers, with_kdiffusion
from sdegen.testing.laws import exact_law
from sdegen.testing.problems import PROBLEMS, reference

EDM = measure.EDM
PEERS = (with_kdiffusion, with_diffusers, with_azula)
SAMPLERS = {f"{peer.PEER} {s.name}": s for peer in PEERS for s in peer.samplers()}
SAME = {name: s for name, s in SAMPLERS.items() if s.same is not None}
SLIPS = {
    "k-diffusion dpmpp_3m_sde(eta=0)": 2,
    "diffusers DPMSolverMultistep(dpmsolver++, order=3)": 2,
    "diffusers DPMSolverMultistep(dpmsolver, order=3)": 2,
    "diffusers EDMDPMSolverMultistep(order=3)": 2,
    "azula REABSampler(order=2)": 1,
    "azula REABSampler(order=3)": 1,
}
WEAK_SLIPS = {
    "k-diffusion dpmpp_sde, independent noise_sampler": 1,
    "diffusers DPMSolverMultistep(sde-dpmsolver++, order=3)": 1,
    "diffusers DPMSolverSinglestep(sde-dpmsolver++, order=2, midpoint)": 1,
}


@pytest.fixture(autouse=True)
def _their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def grids(sampler, n=12):
    return [measure.GRIDS[name](n) for name in (("even",) if sampler.even_only else ("even", "uneven"))]


@functools.cache
def start():
    return reference(EDM, "three", 1000)[0]


@pytest.mark.parametrize("name", [name for name, s in SAME.items() if not s.stochastic])
def test_the_same_numbers(name):
    sampler = SAME[name]
    model = PROBLEMS["three"].data.score(EDM)
    for grid in grids(sampler):
        theirs = sampler.run(measure.exact_denoiser("three"), start().clone(), grid, None)
        ours = sd.solve(model, start(), grid, sampler.ours).x
        assert float((theirs - ours).abs().max()) <= sampler.same


@pytest.mark.parametrize("name", [name for name, s in SAME.items() if s.stochastic])
def test_the_same_law(name):
    sampler = SAME[name]
    for grid in grids(sampler):
        theirs = measure.law_of(sampler.run, grid, sampler.brownian)
        ours = exact_law(sampler.ours, EDM, PROBLEMS["widths"].data, grid)
        assert float((theirs.mean - ours.mean).abs().max()) <= sampler.same
        assert float((theirs.cov - ours.cov).abs().max()) <= sampler.same


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("churn", "high"), [(4.0, 50.0), (40.0, 50.0), (8.0, 1.0)])
def test_churn_is_edms(order, churn, high):
    """S_churn / N at every step of the Karras grid of N steps, with the cap, in the window S_tmin to S_tmax."""
    name = "sample_euler" if order == 1 else "sample_heun"
    run = with_kdiffusion._run(name, s_churn=churn, s_tmin=0.05, s_tmax=high)
    grid = sd.grids.karras(EDM, 12)
    theirs = measure.law_of(run, grid, problem="widths")
    ours = exact_law(sd.edm(order, churn, low=0.05, high=high), EDM, PROBLEMS["widths"].data, grid)
    scale = float(theirs.cov.abs().max())
    assert float((theirs.mean - ours.mean).abs().max()) <= 1e-11 * scale**0.5
    assert float((theirs.cov - ours.cov).abs().max()) <= 1e-11 * scale


@pytest.mark.parametrize("steps", [6, 12])
def test_singlestep_on_grids_with_its_stages(steps):
    """diffusers' scheduler takes its stages from the grid: every second level of an even one is a step of ours."""
    sampler = SAMPLERS["diffusers DPMSolverSinglestep(dpmsolver++, order=2, midpoint)"]
    grid = measure.GRIDS["even"](steps)
    theirs = sampler.run(measure.exact_denoiser("three"), start().clone(), grid, None)
    ours = sd.solve(PROBLEMS["three"].data.score(EDM), start(), grid[::2], sd.dpmpp(2, singlestep=True)).x
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-13)


@pytest.mark.slow
def test_dpmpp_sde_is_the_same_but_for_its_brownian_path():
    """k-diffusion's draws are increments in s, ours Ito integrals of the step: other correlations, both of order 2."""
    sampler = SAMPLERS["k-diffusion dpmpp_sde"]
    seen = measure._orders(lambda grid: measure.law_of(sampler.run, grid, True), (36, 72, 144))
    ours = measure.seen_of_ours(sampler)
    assert abs(seen.even - 2) < 0.15
    assert abs(ours.even - 2) < 0.1


@pytest.mark.parametrize("name", mostly_slow(SLIPS, list(SLIPS)[:1]))
@pytest.mark.slow
def test_their_order_and_ours(name):
    sampler = SAMPLERS[name]
    theirs, ours = measure.seen(sampler), measure.seen_of_ours(sampler)
    assert abs(theirs.uneven - SLIPS[name]) < 0.2
    assert abs(ours.uneven - sampler.declared) < 0.2
    assert theirs.error > 5 * ours.error


@pytest.mark.parametrize("name", mostly_slow(WEAK_SLIPS, list(WEAK_SLIPS)[1:2]))
@pytest.mark.slow
def test_their_weak_order_and_ours(name):
    sampler = SAMPLERS[name]
    theirs, ours = measure.seen(sampler), measure.seen_of_ours(sampler)
    assert theirs.even < WEAK_SLIPS[name] + 0.2
    assert abs(ours.even - 2) < 0.1
    assert theirs.error > 5 * ours.error


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("n", "offset"), [(50, 0), (20, 0), (7, 0), (50, 1)])
def test_time_steps_are_diffusers(spacing, n, offset):
    import diffusers

    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(n)
    ours = sd.grids.timesteps(n, spacing, offset=offset if spacing == "leading" else 0)
    assert ours.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("n", [2, 10, 31])
def test_grids_are_k_diffusions(n):
    module = with_kdiffusion._sampling()
    with with_kdiffusion._double():
        karras = module.get_sigmas_karras(n + 1, 0.002, 80.0)[:-1]
        exponential = module.get_sigmas_exponential(n + 1, 0.002, 80.0)[:-1]
        poly = module.get_sigmas_polyexponential(n + 1, 0.002, 80.0, rho=2.0)[:-1]
    torch.testing.assert_close(sd.grids.karras(EDM, n), karras.double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sd.grids.exponential(EDM, n), exponential.double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sd.grids.exponential(EDM, n, rho=2.0), poly.double(), rtol=1e-12, atol=0)


def test_beta_is_diffusers():
    """diffusers takes the quantiles over sigma, which on EDM is time."""
    import diffusers

    scheduler = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True)
    sigmas = scheduler._convert_to_beta(torch.tensor([80.0, 0.002]), 11)
    torch.testing.assert_close(
        sd.grids.beta(EDM, 10), torch.as_tensor(sigmas, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def test_a_whole_run_of_ddim_is_diffusers():
    """The integers of a network, the last step to alpha = 1 as the last denoising: 50 evaluations of each."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(50)

    def net(x, t):
        return 0.3 * torch.tanh(x) + 1e-4 * t.reshape(-1, 1)

    process = sd.DiscreteVP()
    start = process.prior(sd.noise.seeds(0, 3), (2,), torch.float64)
    model = sd.ScoreModel(process, net, "noise", time=sd.model.index_time(1000))
    ours = sd.sample(model, (3, 2), solver=sd.ddim(), grid=sd.grids.trailing, steps=49, x=start, seed=0)
    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(net(theirs, t.double()), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # their alphas are in float32
