"""Plans and their calibration: the algebra exactly, the gains by measurement against tight references."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
import sys

import pytest
import torch
from cases import crossed, mostly_slow
from torch._subclasses import FakeTensorMode

import sdegen as sd
from sdegen.calibration import fit as fitting
from sdegen.calibration import levels as knots
from sdegen.calibration import pilot
from sdegen.calibration.calibrate import calibrate
from sdegen.calibration.plan import Plan
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run

F64 = torch.float64
TENSORS = ("lams", "wants", "weights", "orders", "errors")


def log_snr(lam):
    return lam


METHODS = [
    sd.default(),
    sd.dpmpp(2),
    sd.unipc(3),
    sd.Multistep(1, sd.NOISE),
    sd.Multistep(3, sd.NOISE),
    sd.Multistep(2, sd.SIGMA),
    sd.Multistep(2, sd.FLOW, correct=True),
    sd.Multistep(4, sd.ANGLE(sigma_data=0.7, variable=log_snr), correct=True),
]


@functools.cache
def plane():
    """25 narrow modes in the plane, of uneven weight."""
    side = torch.linspace(-1.0, 1.0, 5, dtype=F64)
    weights = torch.arange(25, dtype=F64).mul(7).remainder(25) + 5
    return sd.GaussianMixture(torch.cartesian_prod(side, side), stds=0.05, weights=weights)


@functools.cache
def clusters(first=0, last=8):
    """Clusters in 64 dimensions, each with widths of its own, or some of them."""
    z = sd.noise.normals(sd.noise.seeds(5, 8), (64, 2), (0, 0, 0, 0), dtype=F64)
    means, stds = 0.7 * z[..., 0], 0.03 + 0.3 * z[..., 1] ** 2
    part = slice(first, last)
    return sd.GaussianMixture(means[part], stds=stds[part], weights=torch.arange(8, dtype=F64)[part] + 5)


class Guided(sd.model.Model):
    """Classifier-free guidance between two exact scores: no exact score of any law."""

    def __init__(self, condition, free, weight):
        self.process, self.condition, self.free, self.weight = condition.process, condition, free, weight

    def __call__(self, x, level, want="score"):
        free = self.free(x, level, want)
        return free + self.weight * (self.condition(x, level, want) - free)


def exact(model, x, steps=250):
    """The end of the probability flow: order 6, `steps` steps and 12 that double at the start."""
    times = sd.grids.graded(model.process, steps, sd.grids.by_snr, 12)
    with torch.no_grad():
        return run(
            model,
            x,
            Fixed(times),
            sd.Multistep(5, sd.ANGLE(sigma_data=0.7, variable=log_snr), correct=True),
        ).x


def errors(model, x, end, solver, times):
    with torch.no_grad():
        out = sd.solve(model, x, times, solver).x
    return (out - end).flatten(1).square().mean(1).sqrt()


def planned_errors(model, x, end, plan):
    return errors(model, x, end, plan, plan.grid(model.process, None))


@functools.cache
def reference(name, count=48, kind="free"):
    model = models(name, kind)
    x = model.process.prior(sd.noise.seeds(11, count), (2,) if name == "plane" else (64,), F64)
    return x, exact(model, x)


@functools.cache
def models(name, kind="free"):
    process = sd.EDM()
    free = (plane() if name == "plane" else clusters()).score(process)
    part = clusters(2, 6).score(process)
    return {"free": free, "condition": part, "guidance": Guided(part, free, 2.5)}[kind]


@functools.cache
def made(name, nfe, pilot=1000):
    return calibrate(models(name), (2,) if name == "plane" else (64,), nfe=nfe, pilot=pilot)


class Counted(sd.model.Model):
    """A model that counts the single samples it is asked for."""

    def __init__(self, model):
        self.model, self.process, self.count = model, model.process, 0

    def __call__(self, x, level, want="score"):
        self.count += len(x)
        return self.model(x, level, want)


class Bare(sd.Solver):
    """A plan without its `on`: the loop takes `step` itself."""

    def __init__(self, plan):
        self.plan = plan

    grid = property(lambda self: self.plan.grid)
    memory = property(lambda self: self.plan.memory)
    own_steps = property(lambda self: self.plan.own_steps)

    def init(self, *arguments):
        return self.plan.init(*arguments)

    def step(self, *arguments):
        return self.plan.step(*arguments)


# the algebra


PROCESSES = [sd.VP(), sd.EDM(), sd.Flow(t_max=0.999)]


@pytest.mark.parametrize(
    ("method", "process"), mostly_slow(crossed(METHODS, PROCESSES), [(METHODS[1], sd.VP()), (METHODS[-1], sd.EDM())])
)
def test_a_collapsed_method_is_the_method(method, process):
    model, times = plane().score(process), sd.grids.karras(process, 12)
    x = process.prior(sd.noise.seeds(0, 6), (2,), F64)
    plan = Plan.of(method, process, times)
    own = sd.solve(model, x, times, method).x
    for solver in (plan, Bare(plan)):
        torch.testing.assert_close(sd.solve(model, x, times, solver).x, own, rtol=1e-11, atol=1e-11)
    drawn = sd.sample(model, (6, 2), solver=plan, dtype=F64, denoise=False, seed=0)
    torch.testing.assert_close(drawn, own, rtol=1e-11, atol=1e-11)


def test_rejects_methods_that_a_plan_cannot_hold():
    for solver in (sd.ddpm(), sd.heun()):
        with pytest.raises(sd.InvalidArgumentError, match="one evaluation a step"):
            Plan.of(solver, sd.VP())


def test_one_plan_serves_every_process():
    """The same y at the same log-SNR, on three schedules that reach further than the plan."""
    narrow = sd.EDM(sigma_min=0.02, sigma_max=60.0)
    plan = calibrate(plane().score(narrow), (2,), nfe=8, pilot=600)
    y = narrow.prior(sd.noise.seeds(0, 6), (2,), F64)
    own = sd.solve(plane().score(narrow), y, plan.grid(narrow, None), plan).x
    for process in (sd.VP(), sd.EDM(), sd.Flow()):
        times = plan.grid(process, None)
        ends = process.level(times[[0, -1]])
        out = sd.solve(plane().score(process), ends.alpha[0] * y, times, plan).x
        torch.testing.assert_close(out / ends.alpha[1], own, rtol=1e-8, atol=1e-8)


def test_a_plan_is_saved_bit_for_bit(tmp_path):
    plan = made("plane", 10)
    plan.save(tmp_path / "plan.safetensors")
    back = Plan.load(tmp_path / "plan.safetensors")
    for name in TENSORS:
        assert torch.equal(getattr(back, name).view(torch.int64), getattr(plan, name).view(torch.int64))
    assert (back.scale, back.spent) == (plan.scale, plan.spent)
    unknown = Plan.of(sd.dpmpp(2), sd.VP(), 4)
    unknown.save(tmp_path / "other.safetensors")
    assert math.isnan(Plan.load(tmp_path / "other.safetensors").error)


def test_plans_are_compared_by_value(tmp_path):
    """NaN, of errors that were not estimated, is the same as NaN."""
    for plan in (made("plane", 10), Plan.of(sd.dpmpp(2), sd.VP(), 4)):
        plan.save(tmp_path / "plan")
        for again in (Plan.load(tmp_path / "plan"), pickle.loads(pickle.dumps(plan))):
            assert again == plan
            assert len({again, plan}) == 1
        for name in TENSORS:
            changed = getattr(plan, name).clone()
            changed[-1] = changed[-1] + 1 if not changed.is_floating_point() else changed[-1].nan_to_num() * 0.9 + 1e-3
            assert dataclasses.replace(plan, **{name: changed}) != plan
        assert dataclasses.replace(plan, spent=plan.spent + 1) != plan
        assert dataclasses.replace(plan, scale=2.5) != plan
    assert Plan.of(sd.dpmpp(2), sd.VP(), 4) != Plan.of(sd.dpmpp(2), sd.VP(), 5)
    assert Plan.of(sd.dpmpp(2), sd.VP(), 4) != sd.dpmpp(2)


def test_rejects_files_without_a_plan(tmp_path):
    from safetensors.torch import save_file

    save_file({"lams": torch.zeros(3)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(sd.InvalidArgumentError, match=r"Plan\.save"):
        Plan.load(tmp_path / "x.safetensors")


def test_without_safetensors_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(sd.InvalidArgumentError, match=r"sdegen\[plans\]"):
        made("plane", 10).save(tmp_path / "plan.safetensors")


def test_a_plan_prints_its_levels():
    plan = made("plane", 10)
    lines = str(plan).splitlines()
    assert len(lines) == 12
    assert "fitted" in lines[2]
    assert f"{plan.spent} evaluations" in lines[0]
    assert "not estimated" in repr(Plan.of(sd.dpmpp(2), sd.VP(), 4))


@pytest.mark.parametrize("solver", [lambda plan: plan, Bare], ids=["on", "step"])
def test_rows_do_not_know_each_other(solver):
    process = sd.VP()
    model = sd.ScoreModel(process, lambda x, t: torch.tanh(x), "noise")
    plan = Plan.of(sd.unipc(3), process, 7)
    x, times = process.prior(sd.noise.seeds(3, 5), (4,), F64), plan.grid(process, None)
    whole = sd.solve(model, x, times, solver(plan)).x
    for i in range(5):
        assert torch.equal(sd.solve(model, x[i : i + 1], times, solver(plan)).x[0], whole[i])


def test_a_plan_reads_nothing_on_the_host():
    process, plan = sd.EDM(), made("plane", 10)
    control = sd.Fixed(plan.grid(process, None))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.zeros(5, 2, dtype=F64))
        assert sd.solve(plane().score(process), x, control, plan).x.shape == (5, 2)


def test_a_plan_that_was_traced_still_has_its_numbers():
    """Nothing that a plan works out while its values cannot be read stays with it."""
    process = sd.EDM()
    model, x = plane().score(process), process.prior(sd.noise.seeds(0, 3), (2,), F64)
    plan = Plan.of(sd.dpmpp(2), process, 5)
    times = plan.grid(process, 5)
    before = sd.solve(model, x, times, Plan.of(sd.dpmpp(2), process, 5)).x
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        level = process.level(times[0])
        plan.step(model, mode.from_tensor(x), level, process.level(times[1]), plan.init(model, x, level), None)
    torch.testing.assert_close(sd.solve(model, x, times, plan).x, before, rtol=0, atol=0)


def test_rejects_other_levels():
    process, plan = sd.EDM(), made("plane", 10)
    model, x = models("plane"), torch.zeros(2, 2, dtype=F64)
    for times in (sd.grids.karras(process, 10), sd.grids.karras(process, 7), plan.grid(process, None).flip(0)):
        with pytest.raises(sd.InvalidArgumentError, match="plan's own 10"):
            sd.solve(model, x, times, plan)
    with pytest.raises(sd.InvalidArgumentError, match="leave steps out"):
        sd.sample(model, (2, 2), solver=plan, steps=12, seed=0)
    with pytest.raises(sd.InvalidArgumentError, match="calibrate on this process"):
        sd.sample(plane().score(sd.EDM(sigma_max=20.0)), (2, 2), solver=plan, seed=0)


def test_rejects_tensors_that_make_no_plan():
    plan = Plan.of(sd.dpmpp(2), sd.VP(), 4)
    parts = {name: getattr(plan, name) for name in TENSORS}
    late = plan.weights.clone()
    late[0, 3] = 1.0
    cases = [("lams", plan.lams.flip(0), "increase"), ("weights", late, "do not exist yet")]
    cases += [("wants", plan.wants[:2], "shape"), ("weights", plan.weights * math.nan, "finite")]
    for name, value, match in cases:
        with pytest.raises(sd.InvalidArgumentError, match=match):
            Plan(**{**parts, name: value})
    with pytest.raises(sd.InvalidTypeError, match="float64"):
        Plan(**{**parts, "lams": plan.lams.float()})


# the parts of calibration


def test_equidistribution_shares_the_density_equally():
    lams = torch.linspace(-4.0, 6.0, 2001, dtype=F64)
    weight = 0.1 + torch.exp(-((lams - 1.0) ** 2))
    found = knots.equidistributed(lams, weight, 10)
    area = torch.cumulative_trapezoid(weight, lams)
    at = knots.interpolate(found[1:-1], lams[1:], area)
    torch.testing.assert_close(at, area[-1] * torch.arange(1, 10) / 10, rtol=1e-6, atol=1e-6)
    assert found[0] == lams[0]
    assert found[-1] == lams[-1]


def probe(model, shape, seed=0):
    return pilot.Probe(model, shape, seed, F64, torch.device("cpu"), None)


def test_a_path_is_exact_between_its_levels():
    """On a fine path the states between levels are those of a path that has levels there."""
    model = models("clusters")
    ask = probe(model, (64,))
    first, last = pilot.span(model.process)
    gaps = []
    with torch.no_grad():
        for n in (48, 96):
            lams = knots.karras_lams(n, first, last)
            start = ask.start(0, 3, first)
            fine = pilot.trace(ask, start, lams, 0.7)
            both = torch.cat([lams, (lams[1:] + lams[:-1]) / 2]).sort().values
            exact_z = pilot.trace(ask, start, both, 0.7).z
            gaps.append(float((fine.at(both[1::2]) - exact_z[1::2]).abs().max()))
    assert gaps[1] < gaps[0] / 6
    assert gaps[1] < 2e-3
    torch.testing.assert_close(fine.at(lams), fine.z, rtol=0, atol=1e-12)
    again = fine.rescaled(0.3)
    torch.testing.assert_close(again.data(), fine.data(), rtol=1e-9, atol=1e-9)


def test_least_squares_finds_the_weights_and_gives_no_trust_to_the_lost():
    phi = sd.noise.normals(sd.noise.seeds(1, 9), (4, 30), (0, 0, 0, 0), dtype=F64)
    true = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=F64)
    target = torch.einsum("c,mce->me", true, phi)
    found = fitting.least_squares(phi, target, torch.zeros(4, dtype=F64), 1e-9)
    torch.testing.assert_close(found, true, rtol=1e-6, atol=1e-6)
    target[0] += 10.0
    # one of nine pilots is off by far more than the others' residual; without trust the error would be of order 1
    found = fitting.least_squares(phi, target, torch.zeros(4, dtype=F64), 1e-9)
    torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-3)
    base = torch.ones(4, dtype=F64)
    torch.testing.assert_close(fitting.least_squares(phi, target, base, 1e9), base, rtol=1e-6, atol=1e-6)


def test_a_fitted_plan_is_exact_on_gaussian_data():
    """There F is a multiple of y, so one step with the right weights is exact, whatever scale was estimated."""
    model = sd.Gaussian(torch.zeros(16, dtype=F64), std=0.3).score(sd.EDM())
    plan = calibrate(model, (16,), nfe=4, pilot=600)
    x = model.process.prior(sd.noise.seeds(2, 8), (16,), F64)
    level = model.process.level(torch.tensor([80.0, 0.002], dtype=F64))
    end = x * torch.hypot(level.sigma[1], torch.tensor(0.3)) / torch.hypot(level.sigma[0], torch.tensor(0.3))
    assert float(planned_errors(model, x, end, plan).max()) < 1e-4 * 0.3


# the budget


@pytest.mark.parametrize(
    ("name", "budget"), [("plane", 16), ("plane", 90), ("plane", 1000), ("clusters", 33), ("clusters", 300)]
)
def test_the_pilot_keeps_to_its_budget(name, budget):
    model = Counted(models(name))
    plan = calibrate(model, (2,) if name == "plane" else (64,), nfe=7, pilot=budget)
    assert 0 < model.count == plan.spent <= budget
    assert math.isnan(plan.error) == (budget < 200)


def test_without_a_pilot_the_plan_is_the_default():
    model = Counted(models("plane"))
    plan = calibrate(model, (2,), nfe=9, pilot=0)
    x, _ = reference("plane")
    own = sd.solve(models("plane"), x, sd.default().grid(model.process, 9), sd.default()).x
    assert model.count == plan.spent == 0
    torch.testing.assert_close(sd.solve(models("plane"), x, plan.grid(model.process, None), plan).x, own)


def test_nfe_counts_the_denoising_that_sample_adds():
    model = Counted(models("plane"))
    plan = calibrate(model, (2,), nfe=6, pilot=33, denoise=True)
    model.count = 0
    sd.sample(model, (3, 2), solver=plan, dtype=F64, seed=0)
    assert model.count == 3 * 6


def test_calibration_is_a_function_of_its_seed():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    one, two, other = (calibrate(models("plane"), (2,), nfe=5, pilot=600, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.weights, two.weights)
    assert not torch.equal(one.weights, other.weights)
    assert torch.equal(torch.random.get_rng_state(), state)


# what it is worth

PEERS = [
    (sd.Multistep(3, sd.NOISE), sd.grids.karras),
    (sd.Multistep(3, sd.NOISE), sd.grids.by_snr),
    (sd.unipc(3), sd.grids.by_snr),
    (sd.unipc(2), sd.grids.by_snr),
]


def mean_errors(name, nfe, plan, kind="free"):
    """Mean error of the plan, of DPM-Solver++ 2M on the Karras grid, of the best peer."""
    model, (x, end) = models(name, kind), reference(name, kind=kind)
    process = model.process
    peers = [float(errors(model, x, end, solver, grid(process, nfe)).mean()) for solver, grid in PEERS]
    usual = float(errors(model, x, end, sd.dpmpp(2), sd.grids.karras(process, nfe)).mean())
    return float(planned_errors(model, x, end, plan).mean()), usual, min(peers)


BEATEN = [(name, *case) for name, case in crossed(["plane", "clusters"], [(10, 5.0, 2.0), (20, 7.0, 2.5)])]


@pytest.mark.parametrize(("name", "nfe", "over_usual", "over_best"), mostly_slow(BEATEN, [BEATEN[0]]))
def test_a_plan_beats_fixed_methods(name, nfe, over_usual, over_best):
    plan = made(name, nfe)
    own, usual, best = mean_errors(name, nfe, plan)
    assert plan.spent <= 1000
    assert usual > over_usual * own, (own, usual)
    assert best > over_best * own, (own, best)


@pytest.mark.slow
def test_the_error_estimate_is_honest():
    """Few pilots judge errors of which few large ones make the mean: right on average, and never far off."""
    model, (x, end) = models("clusters"), reference("clusters")
    ratios = []
    for seed in range(3):
        plan = calibrate(model, (64,), nfe=10, seed=seed)
        ratios.append(plan.error / float(planned_errors(model, x, end, plan).mean()))
    assert 1 / 2 < math.prod(ratios) ** (1 / 3) < 2, ratios
    assert 1 / 4 < min(ratios) <= max(ratios) < 4, ratios


@pytest.mark.parametrize("kind", ["condition", "guidance"])
def test_a_plan_serves_conditions_and_guidance(kind):
    own, usual, best = mean_errors("clusters", 10, made("clusters", 10), kind)
    assert min(best, usual) > 1.5 * own, (own, usual, best)


def test_one_path_already_helps():
    own, usual, best = mean_errors("clusters", 10, made("clusters", 10, 33))
    assert usual > 5 * own, (own, usual)
    assert best > 1.2 * own, (own, best)


@pytest.mark.slow
def test_the_smallest_plan_for_a_tolerance():
    loose, tight = (calibrate(models("clusters"), (64,), tol=tol, pilot=1000) for tol in (5e-2, 1e-2))
    for plan, tol in ((loose, 5e-2), (tight, 1e-2)):
        assert plan.error <= tol * plan.scale
        assert plan.spent <= 1000
    assert loose.steps < tight.steps
    with pytest.warns(UserWarning, match="met tol=1e-07"):
        calibrate(models("plane"), (2,), tol=1e-7, pilot=1000)


# networks as they are


def test_half_precision_networks():
    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, x, time):
            s = torch.exp(4 * time.float())[:, None]
            return (self.gain.float() * x.float() * 0.25 / (0.25 + s * s)).to(x.dtype)

    net = Denoiser().to(torch.bfloat16).eval()
    process = sd.EDM()
    model = sd.ScoreModel(process, net, "data", time=sd.model.log_sigma_time, time_dtype=torch.float32)
    model.time = lambda level: -level.lam / 4
    plan = calibrate(model, (32,), nfe=6, pilot=600)
    out = sd.sample(model, (64, 32), solver=plan, seed=0)
    assert out.dtype == torch.bfloat16
    assert 0.4 < float(out.float().std()) < 0.6


def test_large_samples_are_fitted_on_some_of_their_elements():
    def net(x, time):
        s = torch.exp(4 * time)[:, None, None]
        return x * 0.25 / (0.25 + s * s)

    model = sd.ScoreModel(sd.EDM(), net, "data", time=sd.model.log_sigma_time)
    plan = calibrate(model, (150, 120), nfe=5, pilot=300, dtype=torch.float32, batch_size=4)
    out = sd.sample(model, (4, 150, 120), solver=plan, seed=0)
    assert abs(float(out.std()) - 0.5) < 0.01
    assert plan.error < 1e-4


def test_conditions_of_single_samples_are_used_in_turn():
    seen = []

    def net(x, time, label):
        seen.append(label)
        return torch.zeros_like(x) + label[:, None]

    model = sd.ScoreModel(sd.EDM(), net, "data", label=torch.tensor([1.0, 2.0, 3.0]))
    calibrate(model, (4,), nfe=4, pilot=400)
    assert {v for label in seen for v in label.tolist()} == {1.0, 2.0, 3.0}


def test_a_pilot_that_is_not_finite_is_an_error():
    def net(x, time):
        return torch.where(time[:, None] < 1.0, math.nan, torch.zeros_like(x))

    with pytest.raises(sd.ScoreError, match="pilot met NaN or Inf"):
        calibrate(sd.ScoreModel(sd.EDM(), net, "data"), (4,), nfe=5, pilot=600)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(nfe=None), "give nfe or tol"),
        (dict(tol=0.1), "give nfe or tol"),
        (dict(nfe=None, tol=-1.0), "tol must be positive"),
        (dict(nfe=0), "nfe must be >= 1"),
        (dict(nfe=1, denoise=True), "leaves no step"),
        (dict(nfe=1000), "1 to 64 steps"),
        (dict(pilot=-1), "pilot must be 0"),
        (dict(pilot=5), "pilot must be 0"),
        (dict(nfe=None, tol=0.1, pilot=0), "without a pilot"),
        (dict(nfe=None, tol=0.1, pilot=40), "too small"),
        (dict(nfe=None, tol="small"), "tol must be positive"),
        (dict(batch_size=0), "batch_size must be >= 1"),
        (dict(shape=()), "without a batch"),
        (dict(shape=7), "sample's shape"),
        (dict(model=sd.VP()), "model must be"),
        (dict(model=plane().score(sd.VP()).process.reverse(plane().score(sd.VP()))), "not a ReverseSDE"),
        (dict(nfes=3), "did you mean 'nfe'"),
    ],
)
def test_reports_mistakes(change, match):
    call = {"model": models("plane"), "shape": (2,), "nfe": 6, **change}
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match=match):
        calibrate(call.pop("model"), call.pop("shape"), **call)


def test_pilots_held_out_keep_their_own_conditions():
    """The error estimate of a conditional model is as good with different conditions as with equal ones."""
    generator = torch.Generator().manual_seed(0)
    base = sd.GaussianMixture(torch.randn(6, 64, generator=generator), stds=0.3).score(sd.EDM())

    def shifted(x, t, y):
        moved = x - y.reshape(-1, 1)
        return base(moved, sd.EDM().level(t[0]), "data") + y.reshape(-1, 1)

    y = torch.arange(7.0, dtype=torch.float64) / 3
    plan = sd.calibrate(sd.ScoreModel(sd.EDM(), shifted, "data", y=y), (64,), nfe=8, pilot=700, dtype=torch.float64)
    model, x = (
        sd.ScoreModel(sd.EDM(), shifted, "data", y=y.repeat(4)),
        sd.EDM().prior(sd.noise.seeds(5, 28), (64,)).double(),
    )
    exact = sd.solve(model, x, sd.grids.by_snr(sd.EDM(), 300), sd.unipc(3)).x
    error = (sd.solve(model, x, plan.grid(sd.EDM(), None), plan).x - exact).square().mean(1).sqrt().mean()
    assert 0.2 < plan.error / float(error) < 5


def test_a_plan_is_read_from_a_plan_alone(tmp_path):
    path = tmp_path / "text"
    path.write_text("no plan")
    with pytest.raises(sd.InvalidArgumentError, match="not a safetensors file"):
        sd.Plan.load(path)
    with pytest.raises(FileNotFoundError):
        sd.Plan.load(tmp_path / "nothing")
    with pytest.raises(sd.InvalidArgumentError, match="one evaluation a step"):
        sd.Plan.of(sd.pndm(), sd.VP(), 10)


def test_a_plan_steps_rows_at_levels_of_their_own():
    plan, process = sd.Plan.of(sd.lms(2), sd.VP(), 5), sd.VP()
    model = sd.ScoreModel(process, lambda x, t: 0.3 * x, "noise")
    levels = process.level(plan.grid(process, None))
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    now, next = (sd.Level(*(v[k : k + 3] for v in levels)) for k in (0, 1))
    carry = plan.init(model, x, now)
    together = plan.step(model, x, now, next, carry, None).x
    for row in range(3):
        ends = (sd.Level(*(v[row] for v in level)) for level in (now, next))
        alone = plan.step(model, x[row : row + 1], *ends, plan.init(model, x[:1], now), None).x
        torch.testing.assert_close(together[row : row + 1], alone)
