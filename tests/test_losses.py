"""Losses: one formula for every network, process and objective; closed forms; what must vanish at the exact score.

A statistical test here is a z-test at 6 standard errors: 2e-9 false alarms each, 1e-7 for the file. A factor 1.25 in a
loss is found by it (asserted); smaller ones are left to the tests that are exact.
"""

from __future__ import annotations

import math

import pytest
import torch
from problems import MIXTURE, PROCESSES

import sdegen as sd
from sdegen.scores.plane import convert, edm_pair, plane
from sdegen.training.densities import noised

F64 = torch.float64
DATA = sd.GaussianMixture(**MIXTURE)
OBJECTIVES = {
    "simple": sd.losses.simple,
    "ncsn": sd.losses.ncsn,
    "v": sd.losses.v,
    "flow": sd.losses.flow,
    "edm": sd.losses.edm,
    "min_snr": sd.losses.min_snr(5.0),
    "likelihood": sd.losses.likelihood,
}


def table(name, process, level, sigma_data=0.5):
    """The weight of the noise error, written out by hand."""
    alpha, sigma = level.alpha, level.sigma
    if name in ("simple", "ncsn", "likelihood"):
        return torch.ones_like(alpha)
    if name == "v":  # v = alpha noise - sigma data, and the error of data is -sigma/alpha that of noise
        return ((alpha**2 + sigma**2) / alpha) ** 2
    if name == "flow":  # velocity = alpha' data + sigma' noise
        d_alpha, d_sigma = process.rates(level.t)
        return (d_sigma - d_alpha * sigma / alpha) ** 2
    if name == "edm":
        s = sigma / alpha
        return (s**2 + sigma_data**2) / (s * sigma_data) ** 2 * s**2
    snr = (alpha / sigma) ** 2
    return snr.clamp(max=5.0) / snr


def close(values, at=6.0):
    """Whether the mean of independent values is zero within so many standard errors."""
    values = values.detach().double()
    return float(values.mean().abs()) <= at * float(values.std()) / math.sqrt(len(values))


def guess(x, level):
    """Some noise prediction that is no one's."""
    return torch.sin(2 * x) + level.lam.reshape(-1, *(1,) * (x.ndim - 1)) / 5


def wrapped(process, predicts, sigma_data=0.5):
    """The guess as a network of another prediction, by conversion that is written here."""

    def net(x, time):
        level = process.level(time) if predicts != "edm" else process.at(-4 * time)
        if predicts == "edm":
            x = x * torch.sqrt(level.sigma**2 + (sigma_data * level.alpha) ** 2)[:, None]
        noise = guess(x, level)
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        data = (x - sigma * noise) / alpha
        match predicts:
            case "noise":
                return noise
            case "data":
                return data
            case "score":
                return -noise / sigma
            case "v":
                return alpha * noise - sigma * data
            case "velocity":
                d_alpha, d_sigma = process.rates(level.t)
                return d_alpha[:, None] * data + d_sigma[:, None] * noise
            case "edm":
                s = sigma / alpha
                norm = (s**2 + sigma_data**2).sqrt()
                return (data - sigma_data**2 / norm**2 * x / alpha) * norm / (s * sigma_data)

    return sd.ScoreModel(process, net, predicts, sigma_data=sigma_data)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_prediction_and_no_sigma_data_change_a_weight(name, process):
    objective, data = OBJECTIVES[name], DATA.sample(32, seed=1)
    for predicts in ("noise", "data", "score", "v", "velocity", "edm"):
        for sigma_data in (0.5, 1.0):
            model = wrapped(process, predicts, sigma_data)
            level, x, noise = noised(model, data, objective.levels, 3)
            want = table(name, process, level, sigma_data) * (guess(x, level) - noise).square().mean(1)
            got = objective(model, data, seed=3)
            assert torch.allclose(got, want, rtol=1e-6, atol=1e-12), (predicts, sigma_data)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("process", [sd.VP(), sd.EDM(), sd.Flow(t_max=0.999), sd.DiscreteVP()], ids=repr)
def test_the_exact_score_has_the_loss_of_the_posterior(name, process):
    """`E w alpha^2/sigma^2 tr cov(data | x) / D`, and no gradient: any change of the prediction only adds to it."""
    model, data, objective = DATA.score(process), DATA.sample(10000, seed=2), OBJECTIVES[name]
    level, x, _ = noised(model, data, objective.levels, 5)
    trace = DATA.posterior_cov(x, level).diagonal(dim1=1, dim2=2).sum(1)
    weight = table(name, process, level)
    least = weight * (level.alpha / level.sigma) ** 2 * trace / 2
    loss = objective(model, data, seed=5)
    scale = 1 / least  # the test has its power from all levels, whatever their weights
    assert close((loss - least) * scale)
    assert not close((loss * 1.25 - least) * scale)

    class Moved(sd.model.Model):
        process = model.process

        def __init__(self, by):
            self.by = by

        def __call__(self, x, level, want="score"):
            c = convert(level, plane(self.process, level, "noise"), plane(self.process, level, want))[1]
            return model(x, level, want) + (self.by * c)[:, None] * torch.sin(x)

    up, down = (objective(Moved(by), data, seed=5) for by in (0.5, -0.5))
    assert close((up - down) * scale)
    added = (up + down) / 2 - loss
    assert torch.allclose(added, weight * (0.5 * torch.sin(x)).square().mean(1), rtol=1e-6, atol=1e-12)


def test_a_discrete_process_is_trained_at_its_own_indices():
    process = sd.DiscreteVP()
    level = sd.losses.simple.at(DATA.score(process), 4096, 0)
    index = level.t * 1000 - 1
    assert torch.equal(index, index.round())
    assert index.min() == 0
    assert index.max() == 999
    assert torch.unique(index).numel() == 1000  # 4096 points of a lattice meet every index
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    model = sd.ScoreModel(process, net, "noise", time=sd.model.index_time(), time_dtype=torch.long)
    sd.losses.simple(model, torch.zeros(64, 2))
    assert torch.equal(seen[0], sd.losses.simple.at(model, 64, 0).t.mul(1000).round().long() - 1)


@pytest.mark.parametrize("process", [sd.VP(), sd.EDM(), sd.Flow(), sd.Flow(t_min=0.0), sd.VE()], ids=repr)
def test_densities_are_what_they_say(process):
    u = (torch.arange(20000, dtype=F64) + 0.5) / 20000
    t = sd.losses.Uniform()(process, u).t
    assert torch.allclose(t, process.t_min + u * (process.t_max - process.t_min))
    lam = sd.losses.UniformLogSNR()(process, u).lam
    low, high = process.edges.tolist()
    assert torch.allclose(lam, low + u * (high - low), atol=1e-6)
    rungs = sd.losses.Ladder(12)(process, u).lam
    assert torch.allclose(torch.unique(rungs.float()), torch.linspace(low, high, 12), atol=1e-4)
    assert all(
        abs(int(((rungs - rung).abs() < 1e-3).sum()) - 20000 / 12) <= 1 for rung in torch.linspace(low, high, 12)
    )
    log_s = -sd.losses.LogNormal(-1.2, 1.2)(process, u).lam
    assert log_s.min() >= -high - 1e-6
    assert log_s.max() <= -low + 1e-6
    for q in (0.1, 0.5, 0.9):
        assert float(log_s.quantile(q)) == pytest.approx(
            -1.2 + 1.2 * float(torch.special.ndtri(torch.tensor(q))), abs=2e-2
        )


def test_the_levels_of_a_flow_by_log_normal_are_logit_normal():
    t = sd.losses.LogNormal(0.3, 0.8)(sd.Flow(t_min=0.0), torch.linspace(0.001, 0.999, 101, dtype=F64)).t
    want = torch.sigmoid(0.3 + 0.8 * torch.special.ndtri(torch.linspace(0.001, 0.999, 101, dtype=F64)))
    assert torch.allclose(t, want, atol=1e-5)


def test_a_loss_is_a_function_of_seed_and_sample():
    model = wrapped(sd.VP(), "noise")
    data = DATA.sample(8, seed=0)
    first = sd.losses.simple(model, data, seed=4)
    state = torch.get_rng_state()
    assert torch.equal(sd.losses.simple(model, data, seed=4), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sd.losses.simple(model, data, seed=5), first)
    level = sd.VP().level(0.4)
    whole = sd.losses.matching(model, data, levels=level, seed=4)
    assert torch.equal(sd.losses.matching(model, data[:3], levels=level, seed=4), whole[:3])
    alone = sd.losses.Objective(sd.losses.Uniform(), lattice=False)
    assert torch.equal(alone(model, data[:3], seed=4), alone(model, data, seed=4)[:3])


def test_the_noise_is_not_that_of_a_law_or_a_start_with_the_same_seed():
    law, level = sd.Gaussian(torch.zeros(4), std=1.0), sd.VP().level(0.5)
    data = law.sample(500, seed=6)
    _, _, noise = noised(law.score(sd.VP()), data, level, 6)
    start = sd.VP().prior(sd.noise.seeds(6, 500), (4,), F64)
    spread = law.sample(500, seed=6, level=level) - level.alpha * data
    for other in (data, start, spread):
        correlation = float((noise * other).mean() / (noise.std() * other.std()))
        assert abs(correlation) < 6 / 2000**0.5


def test_a_row_with_no_number_is_named_before_the_network_is_asked():
    def net(x, t):
        raise AssertionError("it was asked")

    model, data = sd.ScoreModel(sd.VP(), net, "noise"), torch.zeros(4, 2)
    data[2, 0] = torch.nan
    with pytest.raises(sd.InvalidArgumentError, match=r"data is NaN or Inf in rows \[2\] of 4"):
        sd.losses.simple(model, data)
    with pytest.raises(sd.InvalidTypeError, match=r"data must be of a floating dtype.*127\.5"):
        sd.losses.simple(model, torch.zeros(4, 2, dtype=torch.uint8))
    with pytest.raises(sd.InvalidArgumentError, match=r"data must be \[B, \*S\]"):
        sd.losses.simple(model, torch.zeros(4))
    with pytest.raises(sd.InvalidTypeError, match="levels must be a density"):
        sd.losses.matching(model, torch.zeros(4, 2), levels=0.3)
    with pytest.raises(sd.InvalidArgumentError, match="unknown weight 'vv': did you mean 'v'"):
        sd.losses.Objective(sd.losses.Uniform(), "vv")
    with pytest.raises(sd.InvalidArgumentError, match="weight must be positive"):
        sd.losses.Objective(sd.losses.Uniform(), -1.0)
    with pytest.raises(sd.InvalidArgumentError, match="gamma must be positive"):
        sd.losses.min_snr(0)
    with pytest.raises(sd.InvalidTypeError, match="model must be a ScoreModel"):
        sd.losses.simple(net, torch.zeros(4, 2))
    with pytest.raises(sd.InvalidTypeError, match="level must be a Level"):
        sd.losses.implicit(model, torch.zeros(4, 2), 0.3)
    with pytest.raises(sd.InvalidTypeError, match=r"differences lose their digits in torch\.bfloat16"):
        sd.losses.finite_difference(model, torch.zeros(4, 2).bfloat16(), sd.VP().level(0.3))
    with pytest.raises(sd.InvalidTypeError, match="divergence must be"):
        sd.losses.implicit(model, torch.zeros(4, 2), sd.VP().level(0.3), "exact")
    with pytest.raises(sd.InvalidArgumentError, match=r"one for each of 4 samples; got \[3\]"):
        sd.losses.matching(model, torch.zeros(4, 2), levels=sd.VP().level(torch.tensor([0.1, 0.2, 0.3])))
    with pytest.raises(sd.InvalidArgumentError, match="has no level within the span"):
        sd.losses.Objective(sd.losses.LogNormal(-30.0, 1.0))(model, torch.zeros(4, 2))
    wide = sd.losses.Objective(sd.losses.Uniform(), lambda level: level.t[:, None])
    with pytest.raises(sd.InvalidArgumentError, match=r"one number for each level \[4\], got \[4, 1\]"):
        wide(sd.ScoreModel(sd.VP(), lambda x, t: x, "noise"), torch.zeros(4, 2))
    with pytest.raises(sd.InvalidArgumentError, match="step must be positive"):
        sd.losses.finite_difference(model, torch.zeros(4, 2), sd.VP().level(0.3), step=0.0)


def test_the_lattice_of_times_has_less_variance():
    """Over 300 seeds the ratio's logarithm has a standard error of .12: 4 is 12 of them below the 18 measured."""
    law = sd.Gaussian(torch.zeros(64), std=0.5)
    model, alone = law.score(sd.VP()), sd.losses.Objective(sd.losses.Uniform(), lattice=False)
    data = law.sample(64, seed=9)
    means = {
        name: torch.stack([objective(model, data, seed=k).mean() for k in range(300)])
        for name, objective in (("lattice", sd.losses.simple), ("alone", alone))
    }
    assert means["alone"].var() / means["lattice"].var() > 4
    assert float((means["alone"].mean() - means["lattice"].mean()).abs()) < 6 * float(means["alone"].std()) / 300**0.5


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_min_snr_is_that_of_diffusers(predicts):
    training_utils = pytest.importorskip("diffusers.training_utils")
    schedulers = pytest.importorskip("diffusers")
    scheduler = schedulers.DDPMScheduler(num_train_timesteps=1000)
    process = sd.DiscreteVP(scheduler.betas)
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(
        0
    )  # their table is rounded to float32, 1e-5 of snr
    model, data = wrapped(process, predicts), DATA.sample(64, seed=1)
    level, x, noise = noised(model, data, sd.losses.Uniform(), 2)
    index = (level.t * 1000).round().long() - 1
    snr = training_utils.compute_snr(scheduler, index).double()
    theirs = snr.clamp(max=5.0) / (snr if predicts == "noise" else snr + 1)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    target = noise if predicts == "noise" else alpha * noise - sigma * data
    want = theirs * (model.net(x, level.t) - target).square().mean(1)
    assert torch.allclose(sd.losses.min_snr(5.0)(model, data, seed=2), want, rtol=1e-6)


def test_the_losses_of_edm_and_flow_matching_are_as_published():
    data = DATA.sample(64, seed=1)
    model = wrapped(sd.EDM(), "edm")
    level, x, _ = noised(model, data, sd.losses.LogNormal(-1.2, 1.2), 2)
    s = level.sigma[:, None]
    raw = model.net(x / (s**2 + 0.25).sqrt(), s[:, 0].log() / 4)
    denoised = 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25).sqrt() * raw
    want = ((s**2 + 0.25) / (s * 0.5) ** 2 * (denoised - data) ** 2).mean(1)
    assert torch.allclose(sd.losses.edm(model, data, seed=2), want, rtol=1e-6)
    straight = wrapped(sd.Flow(), "velocity")
    level, x, noise = noised(straight, data, sd.losses.Uniform(), 2)
    want = (straight.net(x, level.t) - (noise - data)).square().mean(1)
    assert torch.allclose(sd.losses.flow(straight, data, seed=2), want, rtol=1e-6)


def test_the_flow_loss_is_that_of_torchcfm():
    torchcfm = pytest.importorskip("torchcfm")
    model = sd.adapters.networks.velocity(lambda x, t: torch.sin(x + t[:, None]))
    data = DATA.sample(64, seed=1)
    level, x, noise = noised(model, data, sd.losses.Uniform(), 2)
    matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    t, theirs, target = matcher.sample_location_and_conditional_flow(noise, data, 1 - level.t)
    assert torch.allclose(theirs, x, atol=1e-12)
    want = (torch.sin(theirs + t[:, None]) - target).square().mean(1)
    assert torch.allclose(sd.losses.flow(model, data, seed=2), want, rtol=1e-6)


def test_a_network_without_signal_at_the_end_is_trained_there():
    betas = torch.cat([torch.linspace(1e-4, 0.02, 999, dtype=F64), torch.ones(1, dtype=F64)])
    model = sd.ScoreModel(sd.DiscreteVP(betas, zero_snr=True), lambda x, t: 0.0 * x, "v")
    end = model.process.level(1.0)
    data = DATA.sample(16, seed=0)
    got = sd.losses.matching(model, data, levels=end, weight="v", seed=1)
    assert torch.allclose(got, data.square().mean(1), rtol=1e-6)  # v = -data there


PRECISION = torch.tensor([[1.2, 0.3, 0.0], [-0.1, 0.8, 0.2], [0.0, 0.4, 0.5]], dtype=F64)


def linear(shape, energy=False, process=None):
    """A linear score `-P x` on samples of three numbers; as an energy `x P x / 2`, whose P is symmetrised."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.P = torch.nn.Parameter(PRECISION.clone())

        def forward(self, x, t):
            y = x.flatten(1) @ self.P.T
            return (x.flatten(1) * y).sum(1) / 2 if energy else -y.reshape(x.shape)

    return sd.ScoreModel(process or sd.VP(), Net(), "energy" if energy else "score")


LEVEL = sd.VP().level(0.35)


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 1)], ids=str)
def test_losses_without_a_target_have_their_closed_forms(shape, energy):
    model, data = linear(shape, energy), torch.randn(64, *shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    P = (PRECISION + PRECISION.T) / 2 if energy else PRECISION
    _, x, _ = noised(model, data, LEVEL, 7)
    score = x.flatten(1) @ -P.T
    want = (score.square().sum(1) / 2 - P.trace()) / 3
    assert torch.allclose(sd.losses.implicit(model, data, LEVEL, seed=7), want)
    assert torch.allclose(sd.losses.implicit(model, data, LEVEL, sd.divergence.Exact(chunk=2), seed=7), want)
    sliced = sd.losses.sliced(model, data, LEVEL, seed=7, probes=2)
    assert close(sliced - want)
    v = sd.divergence.signs(x, 2, LEVEL, sd.noise.seeds(7, 64)).flatten(2)
    slopes = -torch.einsum("kbi,ij,kbj->kb", v, P, v)
    assert torch.allclose(sliced, (score.square().sum(1) / 2 + slopes.mean(0)) / 3)
    plain = sd.losses.sliced(model, data, LEVEL, seed=7, probes=2, variance_reduction=False)
    heights = torch.einsum("kbi,bi->kb", v, score)
    assert torch.allclose(plain, (slopes + heights.square() / 2).mean(0) / 3)
    differences = sd.losses.finite_difference(model, data, LEVEL, seed=7, probes=2)
    assert torch.allclose(differences, plain, rtol=1e-6)  # the same for a linear score, whatever the step
    for loss in (sd.losses.implicit, sd.losses.sliced, sd.losses.finite_difference):
        loss(model, data, LEVEL).mean().backward()
    assert model.net.P.grad.abs().min() > 0


def test_losses_without_a_target_are_least_at_the_law():
    """Over exact moments, not samples: whitened data and the law's own covariance at the level."""
    law = sd.Gaussian(torch.zeros(2, dtype=F64), cov=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
    data = law.sample(20000, seed=3)
    cov = LEVEL.alpha**2 * law.cov() + LEVEL.sigma**2 * torch.eye(2, dtype=F64)
    exact = torch.linalg.inv(cov)
    P = exact.clone().requires_grad_()
    model = sd.ScoreModel(sd.VP(), lambda x, t: -x @ P, "score")
    for loss in (sd.losses.implicit, sd.losses.sliced, sd.losses.finite_difference):
        grads = []
        for part in range(20):
            value = loss(model, data[part * 1000 : (part + 1) * 1000], LEVEL, seed=part).mean()
            grads.append(torch.autograd.grad(value, P)[0])
        for entry in torch.stack(grads).flatten(1).T:
            assert float(entry.mean().abs()) < 9 * float(entry.std()) / 20**0.5, loss  # t of 19 degrees: 3e-8


def test_fisher_is_the_distance_of_scores():
    law = sd.Gaussian(torch.zeros(3, dtype=F64), std=0.7)
    x = law.sample(16, seed=0, level=LEVEL)
    model = linear((3,))
    with torch.no_grad():
        got = sd.losses.fisher(model, law, x, LEVEL)
        same = sd.losses.fisher(law.score(sd.VP()), law, x, LEVEL)
        models = sd.losses.fisher(model, law.score(sd.VP()), x, LEVEL)
    truth = -x / (LEVEL.alpha**2 * 0.49 + LEVEL.sigma**2)
    assert torch.allclose(got, (-x @ PRECISION.T - truth).square().sum(1) / 3)
    assert torch.equal(got, models)
    cube = sd.Gaussian(torch.zeros(3, 1, 1), std=0.7)
    with torch.no_grad():
        assert torch.allclose(sd.losses.fisher(linear((3, 1, 1)), cube, x.reshape(16, 3, 1, 1), LEVEL), got)
    assert not same.any()
    with pytest.raises(sd.InvalidTypeError, match="law must be a mixture"):
        sd.losses.fisher(model, "law", x, LEVEL)


def test_energies_are_trained_by_every_objective():
    model, data = linear((3,), energy=True), torch.randn(32, 3, dtype=F64)
    for objective in OBJECTIVES.values():
        model.net.zero_grad()
        objective(model, data).mean().backward()
        assert model.net.P.grad.abs().min() > 0


def test_a_map_has_the_scale_of_the_data_of_its_model():
    model = wrapped(sd.VP(), "edm", 1.3)
    same = sd.guidance.map_data(model, lambda data, *rest: data)
    data = DATA.sample(16, seed=0)
    assert torch.allclose(sd.losses.edm(same, data, seed=1), sd.losses.edm(model, data, seed=1))


def test_half_precision_networks_have_float32_losses():
    model = sd.ScoreModel(sd.VP(), lambda x, t: 0.5 * x, "noise")
    data = torch.randn(16, 3)
    whole = sd.losses.simple(model, data, seed=1)
    half = sd.losses.simple(model, data.bfloat16(), seed=1)
    assert half.dtype == torch.float32
    assert torch.allclose(half, whole, rtol=0.05)


def test_the_pair_of_edm_stands_once():
    level = sd.VP().level(torch.tensor([0.1, 0.7], dtype=F64))
    model = sd.ScoreModel(sd.VP(), lambda x, t: x, "edm", sigma_data=0.7)
    assert all(torch.equal(a, b) for a, b in zip(model.pair(level), edm_pair(level, 0.7)))
