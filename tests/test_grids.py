"""Grids: exactly n + 1 strictly decreasing points with exact ends, or an error."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, PROCESSES

import sdegen as sd
from sdegen.grids.spacings import Ending
from sdegen.loop.control import OnLevels

GRIDS = {
    "by_time": sd.grids.by_time,
    "by_snr": sd.grids.by_snr,
    "karras": sd.grids.karras,
    "karras(3)": partial(sd.grids.karras, rho=3.0),
    "graded": sd.grids.graded,
    "angular": sd.grids.angular,
    "angular(2, 0.5)": partial(sd.grids.angular, rho=2.0, center=0.5),
    "exponential(2)": partial(sd.grids.exponential, rho=2.0),
    "cosine": sd.grids.cosine,
    "quadratic": sd.grids.quadratic,
    "beta": sd.grids.beta,
    "natural": sd.grids.natural,
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@given(n=st.one_of(st.integers(1, 50), st.just(1000), st.just(10_000)))
@settings(max_examples=8)
def test_exact_count_exact_ends_strictly_falling(process, grid, n):
    times = grid(process, n)
    extra = 20 if grid is sd.grids.graded else 0
    assert times.dtype == F64
    assert times.shape == (n + extra + 1,)
    assert times[0] == process.t_max
    assert times[-1] == process.t_min
    assert (times.diff() < 0).all()


def test_grids_are_uniform_in_their_variable():
    process, n = sd.VP(), 50
    for grid, variable in (
        (sd.grids.by_time, lambda level: level.t),
        (sd.grids.by_snr, lambda level: level.lam),
        (sd.grids.karras, lambda level: torch.exp(-level.lam / 7)),
        (sd.grids.exponential, lambda level: level.lam),
        (sd.grids.cosine, lambda level: torch.atan(torch.exp(-level.lam))),
        (sd.grids.angular, lambda level: torch.atan(torch.exp(-level.lam / 4))),
        (sd.grids.quadratic, lambda level: level.t.sqrt()),
    ):
        steps = variable(process.level(grid(process, n))).diff()
        torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("grid", [sd.grids.karras, sd.grids.beta, sd.grids.quadratic])
def test_default_dtype_does_not_matter(grid):
    before = grid(sd.VP(), 10)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(grid(sd.VP(), 10), before)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("n", [0, -1, 2.5, "10", None, True])
def test_step_counts_must_be_whole_and_positive(n):
    with pytest.raises(sd.SdegenError, match="steps must be"):
        sd.grids.by_time(sd.VP(), n)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 0.5, 0.7, 0.1], "strictly monotone"),
        ([1.0, 0.5, 0.5, 0.1], r"times\[1\]=0.5 is followed by 0.5"),
        ([1.0, 1.0], r"times\[0\]"),
        ([1.0, float("nan"), 0.1], "finite"),
        ([1.0], "at least two"),
        ([], "at least two"),
        ([[1.0, 0.5]], "one dimension"),
        ([2.0, 0.5], "span"),
        ([1.0, 0.0], "span"),
    ],
)
def test_bad_grids_are_named(times, message):
    with pytest.raises(sd.InvalidArgumentError, match=message):
        sd.grids.check_times(torch.tensor(times), sd.VP())


def test_rejects_grids_that_cannot_be_resolved():
    narrow = sd.EDM(sigma_min=1.0, sigma_max=1.0 + 1e-14)
    with pytest.raises(sd.InvalidArgumentError, match="strictly monotone"):
        sd.grids.by_time(narrow, 1000)


def test_a_general_sde_has_only_time():
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: t)
    assert len(sd.grids.by_time(sde, 3)) == 4
    with pytest.raises(sd.InvalidTypeError, match="by_time"):
        sd.grids.karras(sde, 3)
    with pytest.raises(sd.InvalidArgumentError, match="rho"):
        sd.grids.karras(sd.VP(), 3, rho=-1.0)
    with pytest.raises(sd.InvalidArgumentError, match="rho must be positive and finite, got 'seven'"):
        sd.grids.karras(sd.VP(), 3, rho="seven")


def test_beta_is_the_distribution_of_its_times():
    """Numbers of times up to t are the distribution's, by its density integrated here."""
    times = sd.grids.beta(sd.VP(), 200)
    share = (times - 1e-3) / (1 - 1e-3)
    u = torch.linspace(0, 1, 200_001, dtype=F64)[1:-1]
    density = u**-0.4 * (1 - u) ** -0.4
    below = torch.stack([density[u <= 1 - s].sum() for s in share[1:-1]]) / density.sum()
    torch.testing.assert_close(below, torch.linspace(0, 1, 201, dtype=F64)[1:-1], rtol=0.0, atol=2e-3)


def test_exponential_is_polyexponential():
    """k-diffusion's definition: log sigma falls as a power of the share left."""
    process = sd.EDM()
    log = torch.log(sd.grids.exponential(process, 10, rho=3.0))
    ramp = torch.linspace(1, 0, 11, dtype=F64) ** 3
    torch.testing.assert_close(log, log[-1] + ramp * (log[0] - log[-1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["AYS_SD15", "AYS_SDXL", "AYS_DEEPFLOYD", "AYS_SVD"])
def test_published_levels_are_met_exactly_and_interpolated_in_log(name):
    sigmas = getattr(sd.grids, name)
    process = sd.EDM(sigma_min=0.002, sigma_max=700.0)
    exact = sd.grids.from_sigmas(process, len(sigmas) - 1, sigmas)
    torch.testing.assert_close(exact, torch.tensor(sigmas, dtype=F64), rtol=1e-12, atol=0.0)
    twice = sd.grids.from_sigmas(process, 2 * len(sigmas) - 2, sigmas)
    torch.testing.assert_close(twice[1::2], (exact[1:] * exact[:-1]).sqrt(), rtol=1e-12, atol=0.0)


def test_published_levels_fit_the_process_that_they_are_for():
    """SDXL's scaled-linear betas, whose last level 0.02917 the published 0.029 rounds."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2
    for sigmas in (sd.grids.AYS_SD15, sd.grids.AYS_SDXL):
        times = sd.grids.from_sigmas(sd.DiscreteVP(betas), 10, sigmas)
        assert times[0] == 1.0
        assert times[-1] == 1e-3


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [([1.0, 2.0], "must be positive, finite and fall"), ([1.0, 0.0], "must be positive"), ([700.0, 0.1], "beyond the")],
)
def test_bad_sigmas_are_errors(sigmas, message):
    with pytest.raises(sd.InvalidArgumentError, match=message):
        sd.grids.from_sigmas(sd.EDM(), 3, sigmas)


@pytest.mark.parametrize("grid", [sd.grids.leading, sd.grids.trailing, sd.grids.linspace])
@pytest.mark.parametrize("n", [19, 49, 999])
def test_time_steps_are_a_networks_own(grid, n):
    """A network that takes integers is asked at those of the spacing, on DDPM's process and on the continuous one."""
    seen = []
    model = sd.ScoreModel(
        sd.DiscreteVP(), lambda x, t: seen.append(float(t[0])) or 0.1 * x, "noise", time=sd.model.index_time(1000)
    )
    sd.sample(model, (1, 2), solver=sd.ddim(), grid=grid, steps=n, seed=0)
    assert len(seen) == n + 1
    assert max(abs(t - round(t)) for t in seen) < 1e-4
    assert [round(t) for t in seen] == sd.grids.timesteps(n + 1, grid.__name__).tolist()
    assert torch.equal(grid(sd.VP(), n), grid(sd.DiscreteVP(), n))


def test_bad_time_steps_are_errors():
    for call, message in (
        (lambda: sd.grids.timesteps(10, "middle"), "spacing must be"),
        (lambda: sd.grids.timesteps(2000), "cannot be chosen"),
        (lambda: sd.grids.timesteps(10, offset=200), "outside of"),
        (lambda: sd.grids.leading(sd.EDM(), 10), "span that ends at 1"),
    ):
        with pytest.raises(sd.InvalidArgumentError, match=message):
            call()


def test_sgm_uniform_leaves_its_last_step_to_the_denoising():
    times = sd.grids.sgm_uniform(sd.VP(), 9)
    torch.testing.assert_close(times, sd.grids.by_time(sd.VP(), 10)[:-1])


@pytest.mark.parametrize(
    "grid",
    [sd.grids.karras, sd.grids.angular, sd.grids.exponential, sd.grids.cosine, sd.grids.quadratic, sd.grids.beta],
)
def test_grids_between_two_times(grid):
    times = grid(sd.VP(), 5, start=0.7, end=0.2)
    assert times[0] == 0.7
    assert times[-1] == 0.2
    with pytest.raises(sd.InvalidArgumentError, match="runs down"):
        grid(sd.VP(), 5, start=0.2, end=0.7)


class Half(Ending):
    """by_snr, said to end at its last level, or with the data."""

    def __init__(self, denoise):
        self._denoise = denoise

    @property
    def denoise(self):
        return self._denoise

    def __call__(self, process, n):
        return sd.grids.by_snr(process, n)


@pytest.mark.parametrize("own", [True, False])
def test_a_grid_may_say_how_a_call_on_it_ends(own):
    """Its word stands where the call has none; nfe counts the last denoising where there is one."""
    model = sd.GaussianMixture(torch.zeros(1, 2), stds=0.5).score(sd.VP())
    options = {"solver": sd.ddim(), "seed": 0}
    found = sd.draw(model, (3, 2), nfe=6, grid=Half(own), **options)
    plain = sd.draw(model, (3, 2), nfe=6, grid=sd.grids.by_snr, denoise=own, **options)
    assert torch.equal(found.x, plain.x)
    assert found.nfe.tolist() == plain.nfe.tolist() == [6] * 3
    other = sd.draw(model, (3, 2), nfe=6, grid=Half(own), denoise=not own, **options)
    assert torch.equal(other.x, sd.sample(model, (3, 2), nfe=6, grid=sd.grids.by_snr, denoise=not own, **options))


def test_levels_may_tell_the_network_another_time():
    """A scheduler's rounding: the step is that of the levels, the network is told the grid's own times."""
    process, seen = sd.VP(), []
    times = sd.grids.by_snr(process, 4)
    exact = process.level(times)

    def net(x, t):
        seen.append(float(t[0]))
        return 0.5 * x

    model = sd.ScoreModel(process, net, "noise", time_dtype=torch.float64)
    told = exact._replace(t=exact.t + 1e-3)
    x = torch.ones(1, 2)
    known = sd.solve(model, x, times, sd.unipc(2)).x
    seen.clear()
    found = sd.solve(model, x, OnLevels(times, told), sd.unipc(2)).x
    assert torch.equal(found, known)  # this network does not look at the time
    assert seen == pytest.approx(told.t[:-1].tolist(), abs=1e-12)
    with pytest.raises(sd.InvalidArgumentError, match="rise"):
        OnLevels(times, type(exact)(*(v.flip(0) for v in exact)))


def test_time_steps_are_those_of_diffusers_for_every_number(recwarn):
    """Where its own list has another length, one step too many by a rounding, there is nothing to agree with."""
    diffusers = pytest.importorskip("diffusers")
    for spacing in ("linspace", "leading", "trailing"):
        scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
        for n in range(1, 1000):
            scheduler.set_timesteps(n)
            if len(scheduler.timesteps) == n:
                assert sd.grids.timesteps(n, spacing).tolist() == scheduler.timesteps.tolist(), (spacing, n)
