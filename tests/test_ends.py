"""Spans that begin without signal and end without noise: every method that can start there is right there."""

from __future__ import annotations

import math

import pytest
import torch
from cases import crossed, mostly_slow
from problems import MIXTURE

import sdegen as sd

F64 = torch.float64
DATA = sd.GaussianMixture(**MIXTURE)


class Straight(sd.Process):
    """Rectified flow on the whole of [0, 1], as a user would write it."""

    t_min = 0.0

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


def rescaled():
    """Stable Diffusion's betas, rescaled so that no signal is left at the end (Lin et al. 2024, alg. 1)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


ENDS = {
    "Flow": sd.Flow(),
    "Flow to 0": sd.Flow(t_min=0.0),
    "cosine": sd.Process.from_functions(lambda t: torch.cos(t * math.pi / 2), lambda t: torch.sin(t * math.pi / 2)),
    "parabola": sd.Process.from_functions(lambda t: 1 - t**2, lambda t: t),
    "own": Straight(),
    "zero SNR": sd.DiscreteVP(rescaled(), zero_snr=True),
}
ON_DATA = {
    "default": sd.default,
    "ddim": sd.ddim,
    "ddim(1)": lambda: sd.ddim(1.0),
    "ddim(0.5)": lambda: sd.ddim(0.5),
    "dpmpp(2)": lambda: sd.dpmpp(2),
    "dpmpp(3)": lambda: sd.dpmpp(3),
    "unipc(3)": lambda: sd.unipc(3),
    "sa_solver": sd.sa_solver,
    "er_sde": sd.er_sde,
    "dpmpp_sde": lambda: sd.dpmpp_sde(2),
    "FLOW": lambda: sd.Multistep(3, sd.FLOW),
    "ANGLE": lambda: sd.Multistep(3, sd.ANGLE(sigma_data=0.5)),
    "WIENER, eta 1": lambda: sd.Multistep(2, sd.WIENER(sigma_data=0.5), eta=1.0),
}
ON_NOISE = {"heun": sd.heun, "lms": sd.lms, "edm": sd.edm, "euler_maruyama": sd.euler_maruyama, "pc": sd.pc}


def network(process, kind, calls=None):
    """A network that is exact, and asked by t alone."""

    def net(x, t):
        if calls is not None:
            calls.append(float(t.max()))
        return DATA.score(process)(x, process.level(t.double()), kind).to(x.dtype)

    return sd.ScoreModel(process, net, kind, time_dtype=F64)


def spread(x):
    """How far the standard deviations of samples are from the data's."""
    return float((x.std(0) / DATA.cov().diagonal().sqrt() - 1).abs().max())


@pytest.mark.parametrize(
    ("end", "name"),
    mostly_slow(crossed(ENDS, ON_DATA), lambda case: case[0] == "cosine" or case[1] in ("unipc(3)", "ddim(1)")),
)
def test_methods_on_the_data_start_without_signal(end, name):
    """400 samples; a standard deviation is off by 3.5 % of itself at most one time in three, 25 % is 7 times that."""
    calls = []
    x = sd.sample(network(ENDS[end], "velocity", calls), (400, 2), nfe=40, solver=ON_DATA[name](), seed=1, dtype=F64)
    assert calls[0] == 1.0
    assert max(calls) == 1.0
    assert spread(x) < 0.25


@pytest.mark.parametrize("nfe", [2, 3, 5])
@pytest.mark.parametrize("name", ["ddim(1)", "ddim(0.5)", "dpmpp_sde", "er_sde"])
def test_a_long_first_step_with_noise_is_finite(name, nfe):
    """A step over all of the log-SNR, whose e^(-2h) is rounded to 0."""
    for end in ("Flow", "Flow to 0", "cosine"):
        assert sd.sample(network(ENDS[end], "v"), (20, 2), nfe=nfe, solver=ON_DATA[name]()).isfinite().all()


@pytest.mark.parametrize("end", ENDS)
def test_predictions_of_the_data_agree(end):
    """Velocity, v, data and an exact score are one model."""
    process = ENDS[end]
    want = sd.sample(DATA.score(process), (8, 2), nfe=10, seed=2, dtype=F64)
    for kind in ("velocity", "v", "data"):
        got = sd.sample(network(process, kind), (8, 2), nfe=10, seed=2, dtype=F64)
        assert torch.allclose(got, want, atol=1e-8)


@pytest.mark.parametrize("kind", ["noise", "score"])
def test_noise_says_nothing_of_the_data_where_there_is_no_signal(kind):
    for end in ("Flow", "cosine", "own"):
        calls = []
        model = network(ENDS[end], kind, calls)
        x = torch.ones(2, 2, dtype=F64)
        for run in (
            lambda model=model: sd.sample(model, (2, 2), nfe=5),
            lambda model=model: sd.sample(model, (2, 2), tol=1e-2),
            lambda model=model, x=x: sd.solve(model, x, [1.0, 0.5], sd.ddim()),
        ):
            with pytest.raises(sd.InvalidArgumentError, match="alpha is 0"):
                run()
        assert not calls


@pytest.mark.parametrize("name", ON_NOISE)
def test_methods_on_the_noise_start_inside_and_refuse_the_end(name):
    calls = []
    model = network(sd.Flow(), "velocity", calls)
    assert sd.sample(model, (4, 2), nfe=30, solver=ON_NOISE[name](), dtype=F64).isfinite().all()
    level = sd.Flow().level(calls[0])
    assert math.isclose(float(level.alpha / level.sigma), 1e-3, rel_tol=1e-3)
    calls.clear()
    with pytest.raises(sd.InvalidArgumentError, match="alpha is 0"):
        sd.sample(model, (4, 2), nfe=30, solver=ON_NOISE[name](), start=1.0)
    assert not calls


@pytest.mark.parametrize("end", mostly_slow(ENDS, ["Flow", "Flow to 0", "cosine"]))
def test_drifts_start_inside(end):
    """The drift of a flow or a reverse SDE is a difference of infinities where there is no signal."""
    process = ENDS[end]
    flow = process.probability_flow(DATA.score(process))
    x = sd.sample(
        flow, (300, 2), steps=60, solver=sd.RungeKutta(sd.tableaus.RK4, sd.TIME), grid=sd.grids.by_snr, seed=0
    )
    assert spread(x) < 0.25
    assert sd.sample(process.reverse(DATA.score(process)), (4, 2), steps=50).isfinite().all()
    with pytest.raises(sd.InvalidArgumentError, match="alpha is 0"):
        sd.solve(flow, x, [1.0, 0.5], sd.RungeKutta(sd.tableaus.RK4, sd.TIME))


IN_TIME = [sd.euler_maruyama, sd.stochastic_heun, sd.milstein]
IN_TIME += [lambda: sd.RungeKutta(sd.tableaus.RK4, sd.TIME), lambda: sd.Multistep(2, sd.TIME)]


@pytest.mark.parametrize(
    ("make", "steps"), mostly_slow(crossed(IN_TIME, [20, 100]), lambda case: case[1] == 20 or case[0] is IN_TIME[0])
)
def test_steps_in_time_start_where_alpha_has_a_finite_rate(make, steps):
    """alpha = sqrt(1 - t^2): Euler-Maruyama's first step from alpha = 1e-3 made states of 500 standard deviations."""
    steep = sd.Process.from_functions(lambda t: (1 - t * t).clamp(min=0).sqrt(), lambda t: t, t_min=1e-3, t_max=1.0)
    noisy = make().stochastic
    for model in (DATA.score(steep), steep.reverse(DATA.score(steep), 1.0 if noisy else 0.0)):
        x = sd.sample(model, (500, 2), steps=steps, solver=make(), seed=0)
        assert float((x.std(0) / DATA.sample(2000, seed=1).std(0)).max()) < (2.0 if steps == 20 else 1.3)
    velocity = sd.ScoreModel(steep, lambda x, t: x, "velocity")
    with pytest.raises(sd.InvalidArgumentError, match="if alpha has a finite rate there"):
        sd.sample(velocity, (4, 2), steps=steps)  # infinite there, and the default would begin with it


@pytest.mark.parametrize("make", [sd.default, lambda: sd.dpmpp(2), lambda: sd.dpmpp(3), lambda: sd.unipc(3)])
@pytest.mark.parametrize("nfe", [10, 20])
def test_a_start_without_signal_costs_no_accuracy(make, nfe):
    """Errors against tight solves of their own: no more than 1.2 times those from 0.999."""

    def error(process):
        run = {"seed": 3, "dtype": F64, "denoise": False}
        near = sd.sample(DATA.score(process), (64, 2), steps=300, solver=sd.dpmpp(3), **run)
        return float((sd.sample(DATA.score(process), (64, 2), nfe=nfe, solver=make(), **run) - near).abs().mean())

    assert error(sd.Flow()) < 1.2 * error(sd.Flow(t_max=0.999))


@pytest.mark.parametrize("make", [lambda: sd.dpmpp(2), lambda: sd.dpmpp(3), lambda: sd.unipc(2), lambda: sd.unipc(3)])
def test_an_end_without_noise_costs_no_accuracy(make):
    """A last step to where lam has no end extrapolates no farther than a usual step."""

    def error(process):
        run = {"seed": 3, "dtype": F64}
        near = sd.sample(DATA.score(process), (64, 2), steps=300, solver=sd.dpmpp(3), **run)
        return float((sd.sample(DATA.score(process), (64, 2), nfe=10, solver=make(), **run) - near).abs().mean())

    assert error(sd.Flow(t_min=0.0)) < 1.5 * error(sd.Flow())


@pytest.mark.parametrize("end", ["Flow", "Flow to 0", "cosine"])
def test_a_tolerance_is_kept(end):
    process = ENDS[end]
    run = {"seed": 4, "dtype": F64, "denoise": False}
    tight = sd.sample(DATA.score(process), (16, 2), steps=600, solver=sd.dpmpp(3), **run)
    found = sd.sample(network(process, "velocity"), (16, 2), tol=1e-5, **run)
    assert float((found - tight).abs().max()) < 5e-5


@pytest.mark.parametrize("end", mostly_slow(ENDS, ["cosine"]))
def test_adaptive_noise_starts_without_signal(end):
    """100 samples, whose standard deviations are off by 7 % of themselves: 50 % is 7 times that."""
    x = sd.sample(DATA.score(ENDS[end]), (100, 2), tol=0.1, solver=sd.adams(eta=1.0), seed=1)
    assert spread(x) < 0.5


def test_adaptive_noise_starts_far_out():
    """A log-SNR of -50 at t_max, as good as an end: the first steps lie where all is noise."""
    x = sd.sample(DATA.score(sd.VP(beta_max=200.0)), (100, 2), tol=0.2, solver=sd.adams(eta=1.0), seed=1)
    assert spread(x) < 0.5


@pytest.mark.parametrize("make", [sd.ddim, lambda: sd.dpmpp(3), lambda: sd.unipc(2), lambda: sd.unipc(3), sd.default])
@pytest.mark.parametrize("end", mostly_slow(["Flow", "Flow to 0", "own"], ["Flow to 0"]))
def test_encoding_begins_where_there_is_no_noise(make, end):
    """The way up of every method meets that of the adaptive one."""
    model, x = DATA.score(ENDS[end]), DATA.sample(4, seed=0)
    want = sd.encode(model, x, tol=1e-6)
    assert float((sd.encode(model, x, steps=150, solver=make()) - want).abs().max()) < 0.05


def test_forward_goes_to_both_ends():
    x = torch.ones(4, 2, dtype=F64)
    path = sd.forward(sd.Flow(t_min=0.0), x, [0.0, 0.5, 1.0], seed=0)
    assert path.isfinite().all()
    assert torch.equal(path[0], x)


def test_betas_to_zero_snr():
    """In the last cell alpha/sigma falls to 0 in a line: levels and rates are those of it, and time inverts it."""
    betas = rescaled()
    with pytest.raises(sd.InvalidArgumentError, match="zero_snr=True"):
        sd.DiscreteVP(betas)
    with pytest.raises(sd.InvalidArgumentError, match="leave it out"):
        sd.DiscreteVP(zero_snr=True)
    process = sd.DiscreteVP(betas, zero_snr=True)
    assert process.open_ends == (True, False)
    kept = (1 - betas).cumprod(0)
    index = torch.arange(0, 999, 37)
    torch.testing.assert_close(process.level((index + 1).double() / 1000).alpha, kept[index].sqrt(), rtol=1e-12, atol=0)
    t = torch.tensor([0.0021, 0.5005, 0.9989, 0.9991, 0.9995, 0.99999], dtype=F64)
    level, h = process.level(t), 1e-8
    torch.testing.assert_close(process.at(level.lam).t, t, rtol=0, atol=1e-12)
    for rate, f in zip(process.rates(t), (process.alpha, process.sigma)):
        torch.testing.assert_close(rate, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-5, atol=1e-7)
    assert bool(torch.stack(process.rates(torch.tensor(1.0, dtype=F64))).isfinite().all())
    slope = (process.level(0.9995).alpha / process.level(0.9995).sigma) / (kept[998] / (1 - kept[998])).sqrt()
    assert float(slope) == pytest.approx(0.5, abs=1e-12)
    assert sd.SDE.from_json(process.to_json()) == process
