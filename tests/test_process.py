"""The processes: their algebra, inverse clocks, kernels, and the reverse family's marginals."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from problems import F64, PROCESSES, gaussian, mixture

import sdegen as sd
from sdegen import adapters
from sdegen.testing import check_process

processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def spread(process: sd.SDE, n: int = 41) -> torch.Tensor:
    return torch.linspace(process.t_min, process.t_max, n, dtype=F64)


def test_transition_backwards_is_an_error():
    process = sd.VP()
    with pytest.raises(sd.InvalidArgumentError, match="swap the levels"):
        process.transition(process.level(0.5), process.level(0.2))


def test_discrete_vp_agrees_with_the_discrete_process():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    process = sd.DiscreteVP()
    level = process.level(torch.arange(1, 1001, dtype=F64) / 1000)
    alpha_bar = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(level.alpha**2, alpha_bar, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(level.sigma**2, 1 - alpha_bar, rtol=1e-11, atol=0.0)
    index = sd.model.index_time(1000)(level)
    torch.testing.assert_close(index, torch.arange(1000, dtype=F64), rtol=0, atol=1e-10)
    # the DDPM kernel q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x, beta_i)
    a, s = process.transition(sd.Level(*(v[:-1] for v in level)), sd.Level(*(v[1:] for v in level)))
    torch.testing.assert_close(s**2, betas[1:], rtol=1e-8, atol=0.0)
    torch.testing.assert_close(a**2, 1 - betas[1:], rtol=1e-10, atol=0.0)


def test_two_functions_make_a_process():
    """A user's VP, derived by differentiation and bisection, is VP."""
    vp = sd.VP()
    mine = sd.Process.from_functions(
        lambda t: torch.exp(-(19.9 * t * t / 4 + 0.05 * t)),
        lambda t: torch.sqrt(-torch.expm1(-(19.9 * t * t / 2 + 0.1 * t))),
        t_min=1e-3,
        t_max=1.0,
    )
    t = spread(vp)
    x = torch.ones(len(t), 2, dtype=F64)
    torch.testing.assert_close(mine.drift(x, t), vp.drift(x, t), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(mine.diffusion(x, t), vp.diffusion(x, t), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(mine.at(vp.level(t).lam).t, t, rtol=1e-9, atol=1e-12)


def test_a_subclass_needs_two_methods():
    class Mine(sd.Process):
        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t

    class Theirs(Mine):
        t_max = 0.999

    samples = sd.sample(mixture(Theirs()), (4, 2), steps=5, dtype=F64, seed=0)
    torch.testing.assert_close(
        samples, sd.sample(mixture(sd.Flow(t_max=0.999)), (4, 2), steps=5, dtype=F64, seed=0), rtol=1e-9, atol=1e-9
    )
    whole = sd.sample(mixture(Mine()), (4, 2), steps=5, dtype=F64, seed=0)  # alpha is zero at t = 1
    torch.testing.assert_close(
        whole, sd.sample(mixture(sd.Flow()), (4, 2), steps=5, dtype=F64, seed=0), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (lambda t: 1 - 2 * t, lambda t: t, "must be positive"),
        (lambda t: torch.ones_like(t), lambda t: 2 - t, "fall strictly"),
        (lambda t: torch.ones_like(t), lambda t: t * float("nan"), "must be positive and finite"),
    ],
)
def test_rejects_functions_that_are_no_process(alpha, sigma, message):
    with pytest.raises(sd.InvalidArgumentError, match=message):
        sd.Process.from_functions(alpha, sigma)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.VP(beta_min=-1),
        lambda: sd.VP(beta_min=30.0),
        lambda: sd.VP(t_min=2.0),
        lambda: sd.VE(sigma_min=0.0),
        lambda: sd.VE(sigma_min=2, sigma_max=1),
        lambda: sd.EDM(sigma_max=float("inf")),
        lambda: sd.EDM(sigma_min=float("nan")),
        lambda: sd.Flow(t_max=1.01),
        lambda: sd.Flow(t_min=-0.01),
        lambda: sd.Cosine(s=-0.1),
        lambda: sd.DiscreteVP(torch.tensor([0.1, 1.5])),
        lambda: sd.DiscreteVP(torch.tensor([0.1, float("nan")])),
        lambda: sd.DiscreteVP(torch.tensor(0.1)),
        lambda: sd.SDE.from_functions(lambda x, t: x, lambda x, t: t, t_min=1.0, t_max=0.0),
        lambda: sd.VP().reverse(lambda x, t: -x, eta=-1.0),
        lambda: sd.VP().reverse(lambda x, t: -x, eta=float("nan")),
        lambda: sd.VE().reverse(mixture(sd.VP())),
    ],
)
def test_impossible_settings_are_errors(make):
    with pytest.raises(sd.SdegenError):
        make()


NO_NUMBERS = {
    "'a'": "a",
    "None": None,
    r"a tensor \[2\]": torch.tensor([0.1, 0.2]),
    r"\[1\.0, 2\.0\]": [1.0, 2.0],
    r"array\(": np.array([0.1, 0.2]),
}
NUMBERED = {
    "VP.beta_min": sd.VP,
    "SubVP.beta_max": sd.SubVP,
    "VE.sigma_min": sd.VE,
    "EDM.sigma_max": sd.EDM,
    "Cosine.s": sd.Cosine,
    "Flow.t_max": sd.Flow,
    "CLD.mass": sd.CLD,
    "CLD.beta": sd.CLD,
    "OU.rate": sd.OU,
    "OU.t_max": sd.OU,
    "SDE.t_min": lambda **span: sd.SDE.from_functions(lambda x, t: x, lambda x, t: t, **span),
    "Process.t_max": lambda **span: sd.Process.from_functions(lambda t: 1 - t, lambda t: t, **span),
    "pc.snr": sd.pc,
    "Langevin.snr": sd.Langevin,
}


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize("got", NO_NUMBERS)
def test_what_is_no_number_is_told(name, got):
    option = name.partition(".")[2]
    with pytest.raises(sd.InvalidTypeError, match=f"^{option} must be a number.*got {got}"):
        NUMBERED[name](**{option: NO_NUMBERS[got]})


def test_betas_are_told_where_to_go():
    with pytest.raises(sd.InvalidTypeError, match=r"sd\.DiscreteVP\(betas\)"):
        sd.VP(torch.linspace(1e-4, 0.02, 1000))
    for betas in ("x", [None]):
        with pytest.raises(sd.InvalidTypeError, match="betas must be"):
            sd.DiscreteVP(betas)
    with pytest.raises(sd.InvalidArgumentError, match=r"Got \[0\]"):
        sd.DiscreteVP([])


def test_forward_is_per_sample_and_needs_increasing_times():
    vp, times = sd.VP(), torch.tensor([0.1, 0.5, 1.0])
    x = torch.ones(5, 3)
    whole = sd.forward(vp, x, times, seed=3)
    assert whole.shape == (3, 5, 3)
    assert torch.equal(whole[:, :2], sd.forward(vp, x[:2], times, seed=3))
    for wrong in (times.flip(0), [0.1, 1.2], [0.0, 0.5]):
        with pytest.raises(sd.InvalidArgumentError, match="increase strictly inside"):
            sd.forward(vp, x, wrong, seed=0)


def test_functions_that_return_the_wrong_thing_are_named():
    x = torch.ones(4, 2, dtype=F64)
    t = torch.tensor(0.5)
    for drift in (lambda x, t: x[:, :1], lambda x, t: x.float(), lambda x, t: 0.0):
        with pytest.raises(sd.InvalidArgumentError, match="drift"):
            sd.SDE.from_functions(drift, lambda x, t: t).drift(x, t)
    with pytest.raises(sd.InvalidTypeError, match="full_like"):
        sd.SDE.from_functions(lambda x, t: x, lambda x, t: 0.7).diffusion(x, t)
    with pytest.raises(sd.InvalidTypeError, match="torch's functions"):
        sd.Process.from_functions(lambda t: 1.0, lambda t: t)


def general(kind: str) -> sd.SDE:
    """VP as a general SDE, with each kind of noise; 'rotated' mixes coordinates, the law is the same."""
    vp = sd.VP()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=F64)).Q

    def diffusion(x, t):
        g = vp.diffusion(x, t)
        assert t.shape == (x.shape[0],)
        assert t.dtype == x.dtype
        if kind == "scalar":
            return g
        if kind == "diagonal":
            return g[:, None].expand_as(x)
        return g[:, None, None] * turn

    return sd.SDE.from_functions(lambda x, t: vp.drift(x, t), diffusion, t_min=1e-3, t_max=1.0, prior=None)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "matrix"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_general_sde_has_the_process_s_reverse(kind, eta):
    vp = sd.VP()
    model = gaussian(vp)
    own = vp.reverse(model, eta)
    other = general(kind).reverse(lambda x, t: model(x, vp.level(t)), eta)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.tensor(0.4)
    torch.testing.assert_close(other.drift(x, t), own.drift(x, t), rtol=1e-6, atol=1e-6)
    g = other.diffusion(x, t)
    assert g.ndim == {"scalar": 1, "diagonal": 2, "matrix": 3}[kind]


def test_divergence_of_a_diffusion_that_depends_on_x():
    """Against the closed form: g = diag(x_i^2) has div(g g^T)_i = 4 x_i^3; a full matrix by finite differences."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.zeros(())
    diagonal = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: x * x)
    torch.testing.assert_close(diagonal.divergence(x, t), 4 * x**3)
    assert sd.SDE.from_functions(lambda x, t: -x, lambda x, t: t).divergence(x, t) is None

    def matrix(x, t):
        return torch.stack([x * x.roll(1, -1), x.sin()], -1)  # [B, 3, 2]

    def gram(x):
        g = matrix(x, t)
        return torch.einsum("bim,bjm->bij", g, g)

    h, expected = 1e-6, torch.zeros_like(x)
    for j in range(3):
        step = torch.zeros(3, dtype=F64)
        step[j] = h
        expected += (gram(x + step) - gram(x - step))[:, :, j] / (2 * h)
    got = sd.SDE.from_functions(lambda x, t: -x, matrix).divergence(x, t)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_reverse_family_keeps_a_stationary_law_when_g_depends_on_x():
    """dx = (g g' - g^2 x / 2 ...) built so that N(0, 1) is stationary: its reverse drift must equal its drift."""

    def g(x, t):
        return 1 + 0.5 * torch.sin(x)

    def drift(x, t):  # f = div(g^2)/2 + g^2/2 * score keeps p stationary
        return g(x, t) * 0.5 * torch.cos(x) - g(x, t) ** 2 / 2 * x

    sde = sd.SDE.from_functions(drift, g)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    reverse = sde.reverse(lambda x, t: -x)
    # reversed in time a stationary reversible diffusion is itself, so -reverse drift = drift
    torch.testing.assert_close(-reverse.drift(x, torch.tensor(0.5)), drift(x, None))
    flow = sde.probability_flow(lambda x, t: -x)
    torch.testing.assert_close(flow.drift(x, torch.tensor(0.5)), torch.zeros_like(x), rtol=0, atol=1e-14)


def test_reverse_sde_runs_in_torchsde_and_torchdiffeq():
    """drift and diffusion are all that a black-box solver needs."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torchsde = pytest.importorskip("torchsde")
    vp = sd.VP(t_min=0.05)
    model = mixture(vp)
    x = vp.prior(sd.noise.seeds(0, 8), (2,), F64)
    flow = vp.probability_flow(model)
    ends = torch.tensor([1.0, 0.05], dtype=F64)
    theirs = torchdiffeq.odeint(adapters.for_torchdiffeq(flow), x, ends, rtol=1e-9)[-1]
    ours = sd.solve(flow, x, sd.grids.by_time(vp, 400), sd.RungeKutta(sd.tableaus.RK4, sd.TIME)).x
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    reverse = vp.reverse(model)
    problem = adapters.for_torchsde(reverse, (2,))
    times = sd.grids.by_time(vp, 50)
    path = torchsde.BrownianInterval(-1.0, -0.05, size=x.shape, dtype=F64, entropy=7)
    theirs = torchsde.sdeint(problem, x, problem.times(times), bm=path, method="euler", dt=0.95 / 50)[-1]

    def recorded(x, now, next, tag=0):
        return path(-now.t, -next.t) / torch.sqrt(now.t - next.t)

    ours = sd.solve(reverse, x, times, sd.euler_maruyama(), noise=recorded).x
    # their times are sums of dt, off by 1e-16: increments of the path over such gaps are 1e-8
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", [sd.Flow(t_min=1e-12), sd.VP(t_min=1e-8), sd.EDM(sigma_min=1e-9)], ids=repr)
def test_tiny_noise_keeps_its_digits(process):
    """Where exp(-2 lam) is below 1e-9 its share must not be dropped: log-SNRs up to 27."""
    check_process(process, only=["inverse", "falling", "derivatives"])
    lams = torch.tensor([9.99, 10.01, 19.9, 20.1], dtype=F64)
    lams = lams[lams < process.level(process.t_min).lam]
    torch.testing.assert_close(process.at(lams).lam, lams, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (sd.VP, "betamin", "beta_min"),
        (sd.SubVP, "beta_maks", "beta_max"),
        (sd.VE, "sigmamax", "sigma_max"),
        (sd.EDM, "sigma_mni", "sigma_min"),
        (sd.Cosine, "tmax", "t_max"),
        (sd.Flow, "t_mn", "t_min"),
        (sd.DiscreteVP, "beta", "betas"),
        (sd.LinearSDE, "data_covs", "data_cov"),
        (sd.CLD, "frictoin", "friction"),
        (sd.OU, "tmax", "t_max"),
        (sd.GaussianMixture, "std", "stds"),
        (sd.Gaussian, "covs", "cov"),
        (sd.Brownian, "clocks", "clock"),
    ],
)
def test_a_misspelled_keyword_is_answered_by_the_right_one(make, wrong, right):
    message = rf"^{make.__name__}\(\) got an unknown keyword '{wrong}': did you mean '{right}'\?$"
    with pytest.raises(sd.InvalidTypeError, match=message):
        make(**{wrong: 0.1})
    assert right in inspect.signature(make).parameters


def test_classes_with_checked_keywords_stay_dataclasses():
    process = sd.VP(0.2, t_max=0.9)
    assert repr(process) == "VP(beta_min=0.2, beta_max=20.0, t_min=0.001, t_max=0.9)"
    assert pickle.loads(pickle.dumps(process)) == process == dataclasses.replace(sd.VP(0.2), t_max=0.9)
    assert list(inspect.signature(sd.VP).parameters) == [field.name for field in dataclasses.fields(sd.VP)]
    with pytest.raises(sd.InvalidTypeError, match="did you mean 't_max'"):
        dataclasses.replace(process, tmax=1.0)
    with pytest.raises(sd.InvalidTypeError, match=r"CLD\(\) got an unknown keyword 'A'"):
        sd.CLD(A=[[1.0]])  # which LinearSDE, its base, does take


BETAS = torch.linspace(1e-4, 0.02, 100, dtype=F64)


def looked_up(t):
    return (1 - BETAS).cumprod(0)[(t * 99).round().long()]


@pytest.mark.parametrize(
    ("alpha", "sigma", "words"),
    [
        (lambda t: looked_up(t).sqrt(), lambda t: (1 - looked_up(t)).sqrt(), "DiscreteVP"),
        (lambda t: 1 - t.detach(), lambda t: t, r"alpha\(t\) changes with t, and its derivative is 0"),
        (lambda t: 1 - 0.9 * t, lambda t: 0.1 + t.detach(), r"sigma\(t\) changes with t, and its derivative is 0"),
        (lambda t: 1 - t, lambda t: t - 2, r"sigma\(0.001\) = -1.999"),
    ],
)
def test_functions_that_say_nothing_of_their_rates_are_refused(alpha, sigma, words):
    """Their drift would be 0: Euler-Maruyama returned its noise as samples."""
    with pytest.raises(sd.InvalidArgumentError, match=words):
        sd.Process.from_functions(alpha, sigma)


def test_a_constant_scale_has_the_rate_0():
    sd.Process.from_functions(torch.ones_like, lambda t: t)


def test_indices_are_no_times():
    process = sd.DiscreteVP()
    with pytest.raises(sd.InvalidArgumentError, match=r"whole numbers up to 999.*\(i \+ 1\)/T"):
        process.level(torch.tensor([0, 500, 999]))
    assert float(sd.Flow().level(torch.tensor(1)).t) == 1.0
    assert torch.equal(sd.EDM().level(torch.tensor([1, 80])).sigma, torch.tensor([1.0, 80.0], dtype=F64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, int, "long", torch.complex64])
def test_a_dtype_of_times_is_one_that_holds_them(dtype):
    with pytest.raises(sd.InvalidTypeError, match=r"time_dtype must be torch\.long or a floating"):
        sd.ScoreModel(sd.DiscreteVP(), lambda x, t: x, "noise", time_dtype=dtype)


@pytest.mark.parametrize("process", [sd.VP(), sd.DiscreteVP(), sd.Flow(), sd.EDM()], ids=repr)
def test_whole_times_need_indices(process):
    with pytest.raises(sd.InvalidArgumentError, match="index_time"):
        sd.ScoreModel(process, lambda x, t: x, "noise", time_dtype=torch.long)
    indices = sd.model.index_time(process.steps or 100)
    sd.ScoreModel(process, lambda x, t: x, "noise", time_dtype=torch.long, time=indices)
    own = sd.Process.from_functions(lambda t: 1 - t / 1001, lambda t: (t + 1) / 1001, t_min=0.0, t_max=1000.0)
    sd.ScoreModel(own, lambda x, t: x, "noise", time_dtype=torch.long)
