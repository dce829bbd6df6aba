"""A network that learned its variance, and DDPM's step with each of the three variances."""

from __future__ import annotations

import math

import pytest
import torch
from problems import F64, MEANS, PROCESSES, WIDTHS, gaussian

import sdegen as sd
from sdegen.testing import check_solver, slope
from sdegen.testing.laws import exact_law
from sdegen.testing.problems import by_lam

VP = sd.VP()
DATA = sd.Gaussian(MEANS, std=WIDTHS)
FRACTIONS = torch.tensor([0.3, 0.0, 1.0, 0.65], dtype=F64)


def normals(seed, *shape, dtype=F64):
    return sd.noise.normals(sd.noise.seeds(seed, shape[0]), shape[1:], (0, 0, 0, 0), dtype=dtype)


def learned(process, fraction, predicts="noise", exact=None, **options):
    """The exact model of Gaussian data, as a network that learned `fraction` beside its prediction."""
    exact = exact or gaussian(process)

    def net(x, t):
        v = 2 * torch.as_tensor(fraction, dtype=x.dtype) - 1 + 0.0 * x
        return torch.cat([exact(x, process.level(t), predicts), v], 1)

    return sd.ScoreModel(process, net, predicts, learned_variance=True, **options)


def by_hand(process, times, fraction):
    """Mean and variance per coordinate after all steps, by the posterior of each with the variance between."""
    levels = [process.level(t) for t in times]
    mean = levels[0].alpha * MEANS
    var = levels[0].alpha ** 2 * WIDTHS**2 + levels[0].sigma ** 2
    for now, next in zip(levels, levels[1:]):
        a = now.alpha / next.alpha
        beta = now.sigma**2 - a * a * next.sigma**2
        small = beta * next.sigma**2 / now.sigma**2
        gain = now.alpha * WIDTHS**2 / (now.alpha**2 * WIDTHS**2 + now.sigma**2)  # of E[data | x]
        on_x, on_data = a * next.sigma**2 / now.sigma**2, next.alpha * beta / now.sigma**2
        slope_x = on_x + on_data * gain
        mean = slope_x * mean + on_data * (1 - gain * now.alpha) * MEANS
        var = slope_x**2 * var + beta**fraction * small ** (1 - fraction)
    return mean, var


CASES = {
    "small": (0.0, sd.ddpm(), None),
    "large": (1.0, sd.ddpm("large"), None),
    "learned .3": (0.3, sd.ddpm("learned"), 0.3),
    "learned, each its own": (FRACTIONS, sd.ddpm("learned"), FRACTIONS),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("case", CASES)
def test_the_law_of_each_variance_is_the_closed_form(name, case):
    process, (fraction, solver, says) = PROCESSES[name], CASES[case]
    times = by_lam(process, 6)
    model = None if says is None else learned(process, says)
    law = exact_law(solver, process, DATA, times, model=model)
    mean, var = by_hand(process, times, fraction)
    torch.testing.assert_close(law.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(law.cov, torch.diag(var), rtol=1e-9, atol=1e-10)


def test_every_variance_has_weak_order_one():
    for _, solver, says in CASES.values():
        errors = []
        for n in (80, 160):
            model = None if says is None else learned(VP, says)
            times = by_lam(VP, n)
            law = exact_law(solver, VP, DATA, times, model=model)
            errors.append(law.error(DATA.marginal(VP.level(times[-1]))))
        assert abs(slope(errors) - 1) < 0.1


def test_the_large_variance_passes_the_checks_of_a_solver():
    report = check_solver(sd.ddpm("large"), weak_order=1)
    assert report.ok


def test_small_is_the_object_that_ddpm_was():
    assert sd.ddpm() == sd.ddpm("small") == sd.Multistep(order=1, frame=sd.DATA, eta=1.0, grid=sd.grids.natural)
    with pytest.raises(sd.InvalidArgumentError, match="did you mean 'large'"):
        sd.ddpm("lrage")
    with pytest.raises(sd.InvalidArgumentError, match="unknown variance 'small'"):
        sd.solvers.Posterior("small")


@pytest.mark.parametrize("name", PROCESSES)
def test_a_learned_variance_reaches_from_small_to_large(name):
    process = PROCESSES[name]
    x = process.prior(sd.noise.seeds(0, 5), (4,), F64)
    options = dict(x=x, steps=7, seed=3)
    for fraction, other in ((0.0, sd.ddpm()), (1.0, sd.ddpm("large"))):
        found = sd.sample(learned(process, fraction), (5, 4), solver=sd.ddpm("learned"), **options)
        expected = sd.sample(gaussian(process), (5, 4), solver=other, **options)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_both_ends_of_a_flow_are_levels_like_others():
    """Where there is no signal, and where there is no noise: the smallest variance is 0 there, and no log of it met."""
    flow = sd.Flow(t_min=0.0)
    for fraction in (0.0, 0.5, 1.0):
        model = learned(flow, fraction, "velocity")
        out = sd.sample(model, (6, 4), steps=5, solver=sd.ddpm("learned"), grid=torch.linspace(1, 0, 6), dtype=F64)
        assert out.isfinite().all()
    small = sd.sample(learned(flow, 0.0, "velocity"), (6, 4), steps=5, solver=sd.ddpm("learned"), seed=0, dtype=F64)
    plain = sd.sample(gaussian(flow), (6, 4), steps=5, solver=sd.ddpm(), seed=0, dtype=F64)
    torch.testing.assert_close(small, plain, rtol=1e-9, atol=1e-9)


class Conv(torch.nn.Module):
    """A network of images `[B, 2, 4, 4]`, whose v is in [-1, 1] and depends on x and time."""

    def __init__(self, channels=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(channels, 2, 3, 3, generator=generator, dtype=F64) / 5)
        self.calls = 0
        self.eval()

    def forward(self, x, t, shift=0.0):
        self.calls += 1
        out = torch.nn.functional.conv2d(x, self.weight, padding=1) + (t.to(x.dtype) / 1000)[:, None, None, None]
        return torch.cat([out[:, :2], torch.tanh(out[:, 2:] + shift)], 1)


def diffusers_states(monkeypatch, kind, net, x, noise, n, clip=False):
    """x at the end of every step of diffusers' own scheduler in float64, given the normals of each."""
    ddpm = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = ddpm.DDPMScheduler(variance_type=kind, clip_sample=clip)
    betas = sd.DiscreteVP().betas
    scheduler.alphas_cumprod, scheduler.one = torch.cumprod(1 - betas, 0), torch.ones((), dtype=F64)
    scheduler.set_timesteps(n)
    drawn = iter(noise)
    monkeypatch.setattr(ddpm, "randn_tensor", lambda *args, **options: next(drawn))
    states = []
    for t in scheduler.timesteps:
        out = net(x, t.expand(len(x)))
        x = scheduler.step(out if kind == "learned_range" else out[:, :2], t, x).prev_sample
        states.append(x)
    return scheduler.timesteps, states


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("clip", [False, True])
def test_each_variance_is_that_of_diffusers_step_by_step(monkeypatch, variance, clip):
    n, net = 8, Conv()
    x, noise = normals(1, 3, 2, 4, 4), [normals(10 + k, 3, 2, 4, 4) for k in range(n)]
    kind = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]
    indices, theirs = diffusers_states(monkeypatch, kind, net, x, noise, n, clip)
    model = sd.ScoreModel(sd.DiscreteVP(), net, "noise", time=sd.model.index_time(), learned_variance=True)
    model = sd.guidance.static_threshold(model) if clip else model
    times = (indices.to(F64) + 1) / 1000
    drawn = iter(noise)
    found = sd.solve(model, x, times, sd.ddpm(variance), noise=lambda *where: next(drawn), observe=lambda p: p.x)
    last = model(found.x, model.process.level(times[-1]), "data")  # what `sample` denoises by, at no noise
    for ours, own in zip([*found.path, last], theirs):
        torch.testing.assert_close(ours, own, rtol=1e-10, atol=1e-10)


def test_previews_and_guidance_leave_the_learned_variance_as_it_is():
    model = sd.ScoreModel(sd.DiscreteVP(), Conv(), "noise", time=sd.model.index_time(), learned_variance=True)
    options = dict(steps=4, solver=sd.ddpm("learned"), seed=0)
    plain = sd.sample(model, (3, 2, 4, 4), **options)
    seen = []
    watched = sd.sample(model, (3, 2, 4, 4), observe=lambda p: seen.append(p.preview()), **options)
    assert torch.equal(plain, watched)
    assert all(part.shape == (3, 2, 4, 4) for part in seen)
    mapped = sd.guidance.map_data(model, lambda data, x, level: data)
    assert mapped.learned_variance
    torch.testing.assert_close(sd.sample(mapped, (3, 2, 4, 4), **options), plain, rtol=1e-9, atol=1e-9)
    assert not sd.guidance.map_data(gaussian(VP), lambda data, x, level: data).learned_variance
    deaf = sd.guidance.ModelMap.__new__(type("Deaf", (sd.guidance.ModelMap,), {"__call__": lambda self, x, *a: x}))
    deaf.models = (model,)
    with pytest.raises(sd.InvalidArgumentError, match="was not asked"):
        deaf.with_fraction(torch.zeros(1, 2, 4, 4, dtype=F64), model.process.level(0.5))


@pytest.mark.parametrize("predicts", ["score", "noise", "data", "v", "velocity", "edm"])
def test_raw_is_the_first_half_and_everything_else_works_as_ever(predicts):
    process, net = sd.EDM(), Conv()
    model = sd.ScoreModel(process, net, predicts, learned_variance=True, shift=sd.shared(0.2))
    plain = sd.ScoreModel(process, lambda x, t, **c: net(x, t, **c)[:, :2], predicts, shift=sd.shared(0.2))
    x, level = normals(0, 3, 2, 4, 4), process.level(torch.tensor([0.5, 1.0, 3.0], dtype=F64))
    net.calls = 0
    raw, fraction = model.raw_and_fraction(x, level)
    assert net.calls == 1
    assert torch.equal(raw, plain.raw(x, level))
    assert torch.equal(model.raw(x, level), raw)
    both = model.raw(x, level, whole=True)
    assert torch.equal(fraction, (both[:, 2:] + 1) / 2)
    assert 0 <= fraction.min() < fraction.max() <= 1
    for want in ("data", "noise", "score"):
        assert torch.equal(model(x, level, want), plain(x, level, want))
        found, beside = model.with_fraction(x, level, want)
        torch.testing.assert_close(found, plain(x, level, want))
        assert torch.equal(beside, fraction)
    assert torch.equal(sd.sample(model, (3, 2, 4, 4), nfe=5, seed=0), sd.sample(plain, (3, 2, 4, 4), nfe=5, seed=0))
    edm = sd.sample(model, (3, 2, 4, 4), nfe=5, seed=0, solver=sd.heun())
    assert torch.equal(edm, sd.sample(plain, (3, 2, 4, 4), nfe=5, seed=0, solver=sd.heun()))


def test_a_sample_of_a_learned_variance_is_its_seed_and_one_evaluation_a_step():
    net = Conv()
    model = sd.ScoreModel(sd.DiscreteVP(), net, "noise", time=sd.model.index_time(), learned_variance=True)
    found = sd.draw(model, (4, 2, 4, 4), steps=5, solver=sd.ddpm("learned"), seed=0)
    assert net.calls == 6
    assert found.nfe.tolist() == [6] * 4
    again = sd.sample(model, (2, 2, 4, 4), steps=5, solver=sd.ddpm("learned"), seed=0)
    torch.testing.assert_close(again, found.x[:2])


def test_half_precision_is_stepped_in_float32():
    net = Conv().to(torch.bfloat16)
    model = sd.ScoreModel(sd.DiscreteVP(), net, "noise", time=sd.model.index_time(), learned_variance=True)
    x, level = normals(0, 2, 2, 4, 4, dtype=torch.bfloat16), model.process.level(0.4)
    assert [part.dtype for part in model.with_fraction(x, level, "data")] == [torch.float32] * 2
    out = sd.sample(model, (2, 2, 4, 4), steps=3, solver=sd.ddpm("learned"))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_wrong_channels_are_named_where_they_are_seen():
    x, level = torch.zeros(3, 2, 4, 4, dtype=F64), VP.level(0.5)
    alone = sd.ScoreModel(VP, Conv(2), learned_variance=True)
    with pytest.raises(
        sd.ScoreError, match=r"must return shape \[3, 4, 4, 4\].*learned_variance=True .*; leave it out$"
    ):
        alone(x, level)
    with pytest.raises(sd.ScoreError, match=r"must return shape \[3, 2, 4, 4\].*learned_variance=True.*chunk\(2, 1\)"):
        sd.ScoreModel(VP, Conv())(x, level)
    thrice = sd.ScoreModel(VP, lambda x, t: torch.cat([x] * 3, 1), learned_variance=True)
    with pytest.raises(sd.ScoreError, match=r"a prediction and a variance$"):
        thrice(x, level)
    last = sd.ScoreModel(VP, lambda x, t: torch.cat([x] * 2, -1))
    with pytest.raises(sd.ScoreError, match=r"prediction and a variance: lambda x, t: net\(x, t\).chunk\(2, 3\)"):
        last(x, level)


def test_what_cannot_be_is_refused_before_the_first_call():
    net = Conv()
    with pytest.raises(sd.InvalidArgumentError, match=r"energy .* leave learned_variance out"):
        sd.ScoreModel(VP, net, "energy", learned_variance=True)
    with pytest.raises(sd.InvalidTypeError, match="learned_variance must be True or False"):
        sd.ScoreModel(VP, net, learned_variance=1)
    with pytest.raises(sd.InvalidTypeError, match="'learned_variance'"):
        sd.ScoreModel(VP, net, learned_varience=True)
    plain = sd.ScoreModel(VP, net)
    with pytest.raises(sd.InvalidArgumentError, match=r"draws its noise by the variance.*learned_variance=True"):
        sd.sample(plain, (2, 2, 4, 4), steps=3, solver=sd.ddpm("learned"))
    for found in (plain.raw_and_fraction, plain.with_fraction, gaussian(VP).with_fraction):
        with pytest.raises(sd.InvalidArgumentError, match="no learned variance"):
            found(torch.zeros(2, 2, 4, 4, dtype=F64), VP.level(0.5))
    reverse = VP.reverse(plain)
    for variance in ("large", "learned"):
        with pytest.raises(sd.InvalidTypeError, match="needs a ScoreModel"):
            sd.solve(
                reverse, torch.zeros(2, 2, 4, 4), [0.9, 0.5], sd.ddpm(variance), noise=sd.White(sd.noise.seeds(0, 2))
            )

    class Own(sd.ScoreModel):
        def __call__(self, x, level, want="score"):
            return super().__call__(x, level, want)

    with pytest.raises(sd.InvalidArgumentError, match="Own answers by a __call__ of its own"):
        sd.sample(Own(VP, net, learned_variance=True), (2, 2, 4, 4), steps=3, solver=sd.ddpm("learned"))
    assert net.calls == 0


def test_a_solver_says_whether_it_needs_a_learned_variance():
    learned_step = sd.ddpm("learned")
    assert learned_step.learned_variance
    assert sd.PC(learned_step, sd.Langevin()).learned_variance
    assert not any(solver.learned_variance for solver in (sd.ddpm(), sd.ddpm("large"), sd.heun(), sd.pc()))


def test_the_step_compiles_to_one_graph():
    model = learned(VP, 0.3)
    x, noise = VP.prior(sd.noise.seeds(0, 2), (4,), F64), sd.White(sd.noise.seeds(1, 2))
    solver = sd.ddpm("learned")
    step = torch.compile(solver.step, fullgraph=True, backend="eager")
    levels = VP.level(0.6), VP.level(0.5)
    torch.testing.assert_close(step(model, x, *levels, (), noise).x, solver.step(model, x, *levels, (), noise).x)


def test_the_fraction_moves_the_spread_alone_by_its_logarithm():
    """`x - mean = s r^(1 - f) z`: two fractions differ by `r^(f - g)` in what they add."""
    now, next = VP.level(0.6), VP.level(0.55)
    x, z = torch.zeros(1, 4, dtype=F64), torch.ones(1, 4, dtype=F64)
    steps = [
        sd.ddpm("learned").step(learned(VP, f), x, now, next, (), lambda *where, k=k: k * z).x
        for f in (0.2, 0.9)
        for k in (0.0, 1.0)
    ]
    ratio = ((steps[1] - steps[0]) / (steps[3] - steps[2])).flatten().tolist()
    assert ratio == pytest.approx([math.exp(0.7 * float(now.lam - next.lam + (next.alpha / now.alpha).log()))] * 4)
