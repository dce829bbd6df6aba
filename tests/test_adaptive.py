"""Adaptive steps: tolerances kept, samples alone and together, statuses, dense output, events, noise on a path."""

import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from cases import crossed, mostly_slow

import sdegen as sd
from sdegen.loop import queue
from sdegen.loop.advance import advance
from sdegen.loop.pace import RUNNING
from sdegen.solvers.tableaus import BOGACKI_SHAMPINE, DOPRI5, DOPRI8, HEUN_EULER, RK4, TSIT5
from sdegen.testing.problems import PROBLEMS

F64 = torch.float64
PAIRS = (sd.heun_euler, sd.bogacki_shampine, sd.dopri5, sd.tsit5, sd.dopri8)
PROCESSES = (sd.VP(), sd.EDM())


def start(process: sd.Process, n: int, size: int = 2, seed: int = 1) -> torch.Tensor:
    return process.prior(sd.noise.seeds(seed, n), (size,), F64)


def mixture() -> sd.GaussianMixture:
    return sd.GaussianMixture([[-1.0, 0.5], [0.7, -0.4], [0.1, 1.0]], stds=[0.3, 0.4, 0.05], weights=[0.2, 0.5, 0.3])


def tight(model, x, **ends):
    return sd.solve(model, x, sd.PI(rtol=1e-12, atol=1e-13, **ends), sd.dopri8()).x


def error(x, exact):
    return (x - exact).flatten(1).square().mean(1).sqrt()


class Recording(torch.nn.Module):
    """A mixture's score that keeps the times and the numbers of rows it was asked for."""

    def __init__(self, process, law):
        super().__init__()
        self.inner, self.process = law.score(process), process
        self.times, self.calls = [], []
        self.eval()

    def forward(self, x, t):
        self.times.append(t.clone())
        self.calls.append(len(x))
        return self.inner(x, self.process.level(t.double()), "noise")

    def model(self):
        return sd.ScoreModel(self.process, self, "noise")


# ------------------------------------------------------------------------------------------------- tolerances
@pytest.mark.parametrize(
    ("name", "process"),
    mostly_slow(crossed(["three", "grid", "line"], PROCESSES), [("grid", sd.EDM())]),
)
def test_the_error_at_the_end_is_that_asked_for(name, process):
    """Over three decades the mean over samples is within a factor of three of it, above and below."""
    law = PROBLEMS[name].data
    scale = float(law.sample(4000).double().square().mean().sqrt())
    model, x = law.score(process), start(process, 128, law.means.shape[1])
    exact = tight(model, x)
    for tol in (1e-2, 10**-2.5, 1e-3, 10**-3.5, 1e-4):
        found = sd.solve(model, x, sd.PI(tol=tol), sd.adams(sigma_data=scale))
        assert 1 / 3 < float(error(found.x, exact).mean()) / scale / tol < 3


@pytest.mark.parametrize("name", mostly_slow(["widths", "turned", "thin", "apart", "rings"], ["thin"]))
@pytest.mark.slow
def test_no_error_is_above_ten_times_the_tolerance(name):
    law, process = PROBLEMS[name].data, sd.VP()
    scale = float(law.sample(4000).double().square().mean().sqrt())
    model, x = law.score(process), start(process, 32, law.means.shape[1])
    exact = tight(model, x)
    for power in range(1, 9):
        found = sd.solve(model, x, sd.PI(tol=10.0**-power), sd.adams(sigma_data=scale))
        assert float(error(found.x, exact).mean()) / scale < 10.0 ** (1 - power)


@pytest.mark.parametrize(
    ("solver", "process"),
    mostly_slow(crossed([sd.adams, *PAIRS], PROCESSES), [(sd.adams, sd.VP()), (sd.tsit5, sd.EDM())]),
)
def test_no_tolerance_fails_silently(solver, process):
    """At every tolerance the mean error is at most ten times it; loose ones cannot jump over the structure."""
    model, x = mixture().score(process), start(process, 48)
    exact = tight(model, x)
    for tol in (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4):
        if tol < 1e-2 and solver is sd.heun_euler:
            continue
        found = sd.solve(model, x, sd.PI(tol=tol), solver())
        assert float(error(found.x, exact).median()) < min(3 * tol, 0.1)
        assert float(error(found.x, exact).mean()) < min(10 * tol, 0.3)


@functools.cache
def on_a_line(process):
    """A mixture's model in one dimension, eight starts and their ends."""
    model, x = PROBLEMS["line"].data.score(process), start(process, 8, 1)
    return model, x, tight(model, x)


FRAMES = (sd.DATA, sd.NOISE, sd.SIGMA, sd.FLOW, sd.WIENER, sd.ANGLE, sd.TIME)
ALL = (sd.VP(), sd.SubVP(), sd.VE(), sd.EDM(), sd.Cosine(), sd.Flow(), sd.DiscreteVP())
# each process and each frame once, under one of the two families of solvers
FAST = [(frame, ("adams", "tsit5")[i % 2], process) for i, (frame, process) in enumerate(zip(FRAMES, ALL))]


@pytest.mark.parametrize(
    ("frame", "name", "process"),
    mostly_slow(crossed(FRAMES, ["adams", "tsit5"], ALL), [*FAST, (sd.TIME, "adams", ALL[2])]),
)
def test_in_every_frame_and_process(frame, name, process):
    make = {"adams": lambda frame: sd.solvers.Adams(frame=frame), "tsit5": sd.tsit5}[name]
    if process.open_ends[0] and not frame.noise_end:  # which `solve` says, and `sample` starts inside
        process = sd.Flow(t_max=0.999)
    model, x, exact = on_a_line(process)
    found = sd.solve(model, x, sd.PI(tol=1e-3), make(frame))
    assert float(error(found.x, exact).median()) < 1e-2
    assert bool((found.level.t == process.t_min).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_keep_their_dtype(dtype):
    model = mixture().score(sd.VP())
    exact = sd.sample(model, (32, 2), tol=1e-6, dtype=F64, seed=0)
    tol = 200 * torch.finfo(dtype).eps
    found = sd.sample(model, (32, 2), tol=tol, dtype=dtype, seed=0)
    assert found.dtype == dtype
    assert float(error(found.double(), exact).median()) < 3 * tol


def test_encoding_to_a_tolerance_is_the_way_back():
    model, x = mixture().score(sd.EDM()), start(sd.EDM(), 16)
    data = sd.sample(model, (16, 2), tol=1e-9, x=x, denoise=False, seed=0)
    assert float((sd.encode(model, data, tol=1e-8) - x).abs().max()) < 80 * 1e-5
    assert torch.equal(sd.encode(model, data, tol=sd.PI(tol=1e-8)), sd.encode(model, data, tol=1e-8))
    with pytest.raises(sd.InvalidArgumentError, match="steps does not go with tol"):
        sd.encode(model, data, tol=1e-3, steps=10)


def test_a_plan_takes_its_own_steps_where_they_are_good_enough():
    model = mixture().score(sd.VP())
    plan = sd.calibrate(model, (2,), nfe=12)
    assert torch.equal(
        sd.sample(model, (4, 2), tol=0.5, solver=plan, seed=0), sd.sample(model, (4, 2), solver=plan, seed=0)
    )
    with pytest.raises(sd.InvalidArgumentError, match=r"above tol=1e-07"):
        sd.sample(model, (4, 2), tol=1e-7, solver=plan, seed=0)


def test_general_flows_and_equations_of_matrices():
    """Critically damped Langevin dynamics: its probability flow has no frame but TIME, and two kinds of states."""
    sde = sd.CLD()
    law = sde.lift(sd.GaussianMixture([[-1.0], [1.0]], stds=[0.3, 0.2]))
    flow = sde.probability_flow(law.score(sde))
    x = sde.prior(sd.noise.seeds(0, 24), (2,)).double()
    exact = sd.solve(flow, x, sd.PI(rtol=1e-10, atol=1e-10), sd.dopri8(sd.TIME)).x
    for solver in (sd.dopri5(sd.TIME), sd.solvers.Adams(frame=sd.TIME)):
        for tol in (1e-2, 1e-4, 1e-6):
            found = sd.solve(flow, x, sd.PI(tol=tol), solver)
            assert float(error(found.x, exact).median()) < 5 * tol


@pytest.mark.slow
def test_noise_that_depends_on_x_converges_on_its_path():
    """Geometric Brownian motion: a pair without the term in dw^2 - dt keeps an error of 0.06 at every tolerance."""
    sde = sd.SDE.from_functions(lambda x, t: 0.2 * x, lambda x, t: 0.5 * x)
    x, noise = torch.ones(200, 1, dtype=F64), sd.Brownian(sd.noise.seeds(0, 200), sde)
    w = noise(x, sde.level(torch.tensor(0.0, dtype=F64)), sde.level(torch.tensor(1.0, dtype=F64)))
    exact = torch.exp(0.075 + 0.5 * w)
    gaps = []
    for tol in (1e-1, 1e-2, 1e-3):
        control = sd.PI(tol=tol, start=0.0, end=1.0)
        found = sd.solve(sde.as_forward(), x, control, sd.adaptive_heun(), noise=noise)
        gaps.append(float((found.x - exact).abs().mean()))
    assert gaps[2] < 0.25 * gaps[0] < 0.02
    turning = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: torch.stack([x, x.flip(1)], -1))
    path, up = sd.Brownian(sd.noise.seeds(0, 3), turning), sd.PI(tol=0.1, start=0.0, end=1.0)
    with pytest.raises(sd.InvalidArgumentError, match=r"matrix noise of .* depends on x"):
        sd.solve(turning.as_forward(), torch.ones(3, 2, dtype=F64), up, sd.adaptive_heun(), noise=path)


def test_a_solution_of_samples():
    model = mixture().score(sd.VP())
    found = sd.draw(model, (30, 2), tol=1e-3, batch_size=8, seed=0)
    assert torch.equal(found.x, sd.sample(model, (30, 2), tol=1e-3, batch_size=8, seed=0))
    assert found.nfe.shape == found.status.shape == found.error.shape == (30,)
    assert bool((found.nfe > 10).all())
    fixed = sd.draw(model, (30, 2), steps=7, seed=0)
    assert torch.equal(fixed.x, sd.sample(model, (30, 2), steps=7, seed=0))
    assert fixed.nfe.tolist() == [8] * 30
    assert sd.draw(model, (0, 2), steps=7, seed=0).x.shape == (0, 2)


def test_a_failed_sample_claims_no_accuracy():
    model, x = mixture().score(sd.VP()), start(sd.VP(), 3)
    found = sd.solve(model, x, sd.PI(tol=1e-6, max_attempts=9), sd.adams(), on_failure="return")
    assert found.error.tolist() == [math.inf] * 3


def test_adaptive_steps_forward_in_time():
    """Geometric Brownian motion, whose law is known, on its path: drift -x, noise x/2, from 1 at 0 to t = 1."""
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: 0.5 * x)
    x, noise = torch.ones(500, 1, dtype=F64), sd.Brownian(sd.noise.seeds(1, 500), sde)
    control = sd.PI(rtol=3e-3, atol=1e-4, start=0.0, end=1.0)
    found = sd.solve(sde.as_forward(), x, control, sd.adaptive_heun(), noise=noise)
    w = noise(x, sde.level(torch.tensor(0.0, dtype=F64)), sde.level(torch.tensor(1.0, dtype=F64)))
    exact = torch.exp(-1.0 - 0.125 + 0.5 * w)
    assert float((found.x - exact).abs().median()) < 0.02
    assert bool((found.level.t == 1.0).all())
    with pytest.raises(sd.InvalidArgumentError, match="times must increase"):
        sd.solve(sde.as_forward(), x, sd.PI(rtol=1e-2), sd.adaptive_heun(), noise=noise)


def test_fewer_evaluations_for_looser_tolerances():
    model, x = mixture().score(sd.VP()), start(sd.VP(), 32)
    spent = [float(sd.solve(model, x, sd.PI(tol=10.0**-k), sd.adams()).nfe.double().mean()) for k in (1, 3, 5, 7)]
    assert spent == sorted(spent)
    assert spent[-1] > 2 * spent[0]


def test_the_estimate_of_the_error_falls_with_the_error():
    model, x = mixture().score(sd.EDM()), start(sd.EDM(), 64)
    exact = tight(model, x)
    for tol in (1e-2, 1e-4, 1e-6):
        found = sd.solve(model, x, sd.PI(tol=tol), sd.adams())
        ratio = found.error / error(found.x, exact)
        assert 0.2 < float(ratio.median()) < 5


def test_a_tolerance_per_step_as_scipy_means_it():
    """rtol and atol: on exponential decay the error of each accepted step is below atol + rtol |x|."""
    sde = sd.SDE.from_functions(lambda x, t: x, lambda x, t: torch.zeros_like(t))
    flow = sde.probability_flow(lambda x, t: torch.zeros_like(x))
    x = torch.tensor([[1.0], [5.0]], dtype=F64)
    for solver in (
        sd.dopri5(sd.TIME),
        sd.tsit5(sd.TIME),
        sd.solvers.Adams(frame=sd.TIME),
        sd.bogacki_shampine(sd.TIME),
    ):
        for rtol in (1e-4, 1e-8):
            found = sd.solve(flow, x, sd.PI(rtol=rtol, atol=0.0), solver)
            gap = (found.x / x / math.exp(-1.0) - 1).abs().max()
            assert gap < 20 * rtol, (solver, rtol)
            assert found.status.tolist() == [0, 0]


def test_nothing_is_evaluated_outside_of_the_interval():
    for solver, process in itertools.product((sd.adams, sd.dopri5, sd.dopri8), PROCESSES):
        net = Recording(process, mixture())
        for tol in (0.3, 1e-3):
            sd.solve(net.model(), start(process, 8), sd.PI(tol=tol), solver())
        times = torch.cat(net.times)
        assert float(times.min()) >= process.t_min
        assert float(times.max()) <= process.t_max


@pytest.mark.parametrize("make", [sd.adams, sd.dopri5, sd.heun_euler, lambda: sd.adams(eta=1.0)])
def test_evaluations_are_counted_per_sample(make):
    """Rows leave the batch one by one here, so the rows that the network saw are the samples' own counts."""
    process, solver = sd.VP(), make()
    net = Recording(process, mixture())
    x = start(process, 7)
    noise = sd.Brownian(sd.noise.seeds(0, 7), process) if solver.stochastic else None
    found = sd.solve(net.model(), x, sd.PI(tol=1e-2), solver, noise=noise)
    assert int(found.nfe.sum()) == sum(net.calls)
    assert bool((found.accepted > 0).all())


# ------------------------------------------------------------------------------------- alone and in company
@pytest.mark.parametrize("make", [sd.adams, *PAIRS, lambda: sd.adams(eta=0.7), lambda: sd.adaptive_heun(1.0)])
def test_a_sample_is_what_it_would_be_alone(make):
    process, solver = sd.VP(), make()
    model, x, seeds = mixture().score(process), start(process, 23), sd.noise.seeds(9, 23)
    noise = sd.Brownian(seeds, process) if solver.stochastic else None
    control = sd.PI(tol=0.2 if solver.stochastic else 1e-2)
    together = sd.solve(model, x, control, solver, noise=noise)
    assert together.nfe.unique().numel() > 1 or make in PAIRS
    for i in range(0, 23, 4):
        own = None if noise is None else noise.rows(torch.tensor([i]))
        alone = sd.solve(model, x[i : i + 1], control, solver, noise=own)
        assert torch.equal(alone.x[0], together.x[i])
        assert alone.nfe[0] == together.nfe[i]
        assert alone.accepted[0] == together.accepted[i]
        assert alone.error[0] == together.error[i]


@pytest.mark.parametrize("make", [sd.adams, sd.tsit5, lambda: sd.adams(eta=1.0)])
def test_a_queue_gives_what_one_batch_gives(make):
    model = mixture().score(sd.EDM())
    tol = 0.2 if make().stochastic else 1e-2
    plain = sd.sample(model, (40, 2), tol=tol, solver=make(), dtype=F64, seed=0)
    for size, control in ((7, tol), (16, sd.PI(tol=tol, fixed_shapes=True, chunk=5)), (64, tol)):
        assert torch.equal(
            plain, sd.sample(model, (40, 2), tol=control, solver=make(), batch_size=size, dtype=F64, seed=0)
        )
    some = sd.noise.seeds(0, 40)[[3, 31]]
    assert torch.equal(plain[[3, 31]], sd.sample(model, (2, 2), tol=tol, solver=make(), seed=some, dtype=F64))


def test_the_batch_stays_full_until_the_queue_is_empty():
    net = Recording(sd.VP(), mixture())
    sd.sample(net.model(), (100, 2), tol=1e-3, batch_size=16, denoise=False, dtype=F64, seed=0)
    assert set(net.calls) == {16}
    waste = sum(net.calls) / int(sd.draw(net.model(), (100, 2), tol=1e-3, dtype=F64, seed=0).nfe.sum())
    assert waste < 1.3  # of one batch's last samples, while nobody is left to enter
    for solver, count in itertools.product((sd.adams(), sd.dopri5(), sd.heun_euler(), sd.tsit5(sd.TIME)), (5, 20)):
        fixed = Recording(sd.VP(), mixture())
        control = sd.PI(tol=1e-1, fixed_shapes=True)
        sd.sample(fixed.model(), (count, 2), tol=control, solver=solver, batch_size=16, dtype=F64, seed=0)
        assert set(fixed.calls) == {16}, solver


def test_conditions_follow_their_samples():
    """Every sample has a centre of its own, which its rows of the batch must see, whoever else is there."""
    process = sd.VP()
    centre = torch.linspace(-2, 2, 30, dtype=F64)[:, None]

    def net(x, t, centre):
        level = process.level(t)
        a, s = level.alpha[:, None], level.sigma[:, None]
        return (x - a * centre) / torch.sqrt(a * a * 0.01 + s * s) ** 2 * s

    model = sd.ScoreModel(process, net, "noise", centre=centre)
    x = sd.sample(model, (30, 1), tol=1e-4, batch_size=8, dtype=F64, seed=0)
    assert float((x - centre).abs().max()) < 0.4  # four standard deviations
    assert torch.equal(x, sd.sample(model, (30, 1), tol=1e-4, dtype=F64, seed=0))


def test_one_look_at_the_device_per_chunk(monkeypatch):
    """Without what a CPU is read for freely, a chunk of attempts costs one transfer of the statuses."""
    for name in ("sdegen.loop.advance.readable", "sdegen.solvers.adams.readable"):
        monkeypatch.setattr(name, lambda *_: False)
    model, x = mixture().score(sd.VP()), start(sd.VP(), 8)
    source = queue.Source(8, lambda i: model, lambda i: x[i], lambda i: None)
    control = sd.PI(tol=1e-3).bind(sd.adams(), sd.VP(), F64)
    waiting = queue.Queue(source, 8, sd.VP(), control, sd.adams(), False, None, None)
    rules, state = waiting.rules(torch.arange(8)), waiting._started().state
    reads = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                reads.append(func)
            return func(*args, **(kwargs or {}))

    state = advance(rules, state, 0)
    with Watch():
        for k in range(1, 6):
            state = advance(rules, state, k)
    assert reads == []


# ---------------------------------------------------------------------------------------------------- failures
class Broken(torch.nn.Module):
    """An exact score, but NaN for, or very stiff around, samples that start far out in the first coordinate."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = mixture().score(sd.VP()), kind
        self.eval()

    def forward(self, x, t):
        out = self.inner(x, sd.VP().level(t.double()), "noise")
        marked = x[:, 1:] > 50
        if self.kind == "nan":
            return torch.where(marked & (t[:, None] < 0.5), torch.nan, out)
        return torch.where(marked, out + 1e7 * torch.sin(1e5 * x), out)


@pytest.mark.parametrize(("kind", "status"), [("nan", sd.Status.NONFINITE), ("stiff", sd.Status.MAX_STEPS)])
@pytest.mark.parametrize("make", [sd.adams, sd.dopri5])
def test_one_bad_sample_among_a_thousand_touches_nobody(kind, status, make):
    process = sd.VP()
    model = sd.ScoreModel(process, Broken(kind), "noise")
    x = start(process, 1000)
    bad = x.clone()
    bad[500, 1] = 1e3
    control = sd.PI(tol=1e-2, max_attempts=60)
    good = sd.solve(model, x, control, make())
    found = sd.solve(model, bad, control, make(), on_failure="return")
    others = torch.arange(1000) != 500
    for field in ("x", "nfe", "accepted", "rejected", "status", "error"):
        assert torch.equal(getattr(found, field)[others], getattr(good, field)[others]), field
    assert found.status[500] == status
    assert bool(found.x[500].isfinite().all())
    assert found.level.t[500] > process.t_min
    assert found.nfe[500] <= 61 * 7
    with pytest.raises(sd.SolveError, match=r"1 of 1000 samples .*\(rows 500\)"):
        sd.solve(model, bad, control, make())


def test_a_sample_that_runs_out_of_attempts_stays_where_it_was():
    model, x = mixture().score(sd.VP()), start(sd.VP(), 5)
    found = sd.solve(model, x, sd.PI(tol=1e-6, max_attempts=9), sd.adams(), on_failure="return")
    assert found.status.tolist() == [sd.Status.MAX_STEPS] * 5
    assert bool((found.accepted + found.rejected == 9).all())
    for i in range(5):
        exact = tight(model, x[i : i + 1], end=float(found.level.t[i]))
        assert float((found.x[i] - exact[0]).abs().max()) < 1e-3
    with pytest.raises(sd.SolveError, match=r"max_attempts"):
        sd.solve(model, x, sd.PI(tol=1e-6, max_attempts=9), sd.adams())


def test_a_blow_up_ends_with_its_time():
    """y' = y^2 from 1 at t = 0 has a pole at t = 1; the solver stops before it and says where."""
    sde = sd.SDE.from_functions(lambda x, t: -x * x, lambda x, t: torch.zeros_like(t), t_max=2.0)
    flow = sde.probability_flow(lambda x, t: torch.zeros_like(x))
    found = sd.solve(
        flow, torch.ones(1, 1, dtype=F64), sd.PI(rtol=1e-6, atol=1e-9), sd.tsit5(sd.TIME), on_failure="return"
    )
    assert found.status.tolist() == [sd.Status.STEP_TOO_SMALL]
    assert 1.0 - 1e-3 <= float(found.level.t[0]) <= 1.0 + 1e-3
    assert bool(found.x.isfinite().all())


def test_an_exception_in_the_score_keeps_what_is_done():
    process, calls = sd.VP(), []

    def net(x, t):
        calls.append(len(x))
        if len(calls) > 60:
            raise RuntimeError("the network broke")
        return x

    with pytest.raises(RuntimeError, match="the network broke") as caught:
        sd.solve(sd.ScoreModel(process, net, "noise"), start(process, 3), sd.PI(tol=1e-9), sd.adams())
    assert any("in attempt" in note for note in caught.value.__notes__)
    assert caught.value.partial.x.shape == (3, 2)
    assert bool((caught.value.partial.status == sd.Status.STOPPED).all())


@pytest.mark.parametrize("make", [sd.adams, sd.dopri5, lambda: sd.solvers.Adams(frame=sd.TIME)])
@pytest.mark.parametrize(
    "options", [{"first_step": 1e-20}, {"max_step": 1e-20}, {"safety": 1e-30}, {"max_jump": 1e-20}]
)
def test_steps_below_rounding_end_a_solve(options, make):
    """No bound on attempts helps where an attempt that stands still is taken for the first one."""
    model, x = mixture().score(sd.VP()), start(sd.VP(), 2)
    found = sd.solve(model, x, sd.PI(tol=1e-2, max_attempts=50, **options), make(), on_failure="return")
    assert set(found.status.tolist()) <= {sd.Status.STEP_TOO_SMALL, sd.Status.MAX_STEPS, sd.Status.OK}
    if "max_jump" not in options or "TIME" not in repr(make()):
        assert found.status.tolist() == [sd.Status.STEP_TOO_SMALL] * 2


def test_directions_are_checked():
    process, noise = sd.VP(), sd.Brownian(sd.noise.seeds(0, 2), sd.VP())
    model, x = mixture().score(process), start(process, 2)
    up = sd.PI(start=process.t_min, end=process.t_max)
    with pytest.raises(sd.InvalidArgumentError, match="times must decrease"):
        sd.solve(model, x, up, sd.adams(eta=1.0), noise=noise)
    with pytest.raises(sd.InvalidArgumentError, match="times must decrease"):
        sd.solve(process.reverse(model), x, up, sd.adaptive_heun(), noise=noise)
    with pytest.raises(sd.InvalidArgumentError, match="times must increase"):
        sd.solve(process.as_forward(), x, sd.PI(), sd.adaptive_heun(), noise=noise)


def test_a_rejected_attempt_that_was_nan_leaves_no_gradient():
    """Below 0 the drift is NaN; the first attempts of one sample go there, are rejected, and must not be seen."""
    w = torch.tensor(1.0, dtype=F64, requires_grad=True)
    sde = sd.SDE.from_functions(lambda x, t: 3 * w * torch.sqrt(x), lambda x, t: torch.zeros_like(t))
    flow = sde.probability_flow(lambda x, t: torch.zeros_like(x))
    x = torch.tensor([[3.5], [9.9]], dtype=F64, requires_grad=True)
    found = sd.solve(flow, x, sd.PI(tol=1e-6, first_step=1.0, max_step=1.0), sd.tsit5(sd.TIME))
    assert int(found.rejected[0]) > 0
    found.x.sum().backward()
    # x(0) = (sqrt(x(1)) - 3 w / 2)^2
    roots = x.detach().sqrt()
    assert torch.allclose(x.grad, (roots - 1.5) / roots, rtol=1e-4)
    assert float(w.grad) == pytest.approx(float((-3 * (roots - 1.5)).sum()), rel=1e-4)


def test_exceptions_keep_their_notes_and_what_is_done():
    process, x = sd.VP(), start(sd.VP(), 3)

    def broken_after(calls):
        def net(x, t):
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise RuntimeError("broken")
            return x

        return sd.ScoreModel(process, net, "noise")

    for run in (
        lambda: sd.solve(broken_after(0), x, sd.PI(tol=1e-2), sd.dopri5()),
        lambda: sd.solve(broken_after(5), x, sd.grids.karras(process, 9), sd.ddim(), checkpoint=3),
    ):
        with pytest.raises(RuntimeError, match="broken") as caught:
            run()
        assert any("sdegen:" in note for note in caught.value.__notes__)
    assert caught.value.partial.accepted.tolist() == [3] * 3
    spent = int(sd.solve(broken_after(10**6), x[:1], sd.PI(tol=1e-2), sd.adams()).nfe)
    with pytest.raises(RuntimeError, match="broken") as caught:
        sd.sample(broken_after(spent), (60, 2), tol=1e-2, batch_size=60, dtype=F64, x=x[:1].expand(60, 2), seed=0)
    assert caught.value.partial.x.shape == (60, 2)


def test_a_solver_that_changes_the_dtype_is_refused():
    class Widening(sd.solvers.Adams):
        def step(self, model, x, now, next, carry, noise):
            step = super().step(model, x, now, next, carry, noise)
            return step._replace(x=step.x.double())

    model, x = mixture().score(sd.VP()), start(sd.VP(), 2).float()
    with pytest.raises(sd.InvalidArgumentError, match=r"it must keep \[2, 2\] and torch.float32"):
        sd.solve(model, x, sd.PI(tol=1e-2), Widening())
    with pytest.raises(sd.InvalidArgumentError, match=r"it must keep \[2, 2\] and torch.float32"):
        sd.solve(model, x, sd.grids.karras(sd.VP(), 4), Widening(), checkpoint=2)


def test_a_process_without_signal_at_its_end_wants_a_prediction_of_the_data():
    with pytest.raises(sd.InvalidArgumentError, match="alpha is 0 at t=1"):
        sd.sample(sd.ScoreModel(sd.Flow(), lambda x, t: x, "noise"), (3, 2), tol=1e-2, seed=0)


def test_observers_see_all_samples_and_may_stop():
    model, x = mixture().score(sd.VP()), start(sd.VP(), 4)
    with torch.inference_mode():
        seen = sd.solve(model, x, sd.PI(tol=1e-2), sd.adams(), observe=lambda p: (p.nfe, p.x.shape, p.preview().shape))
    assert all(shape == preview == x.shape for _, shape, preview in seen.path)
    stopped = sd.solve(model, x, sd.PI(tol=1e-2), sd.adams(), observe=lambda p: sd.STOP if p.step == 5 else None)
    assert stopped.status.tolist() == [sd.Status.STOPPED] * 4
    with pytest.raises(sd.InvalidArgumentError, match="edit a copy"):
        sd.solve(model, x, sd.PI(tol=1e-2), sd.adams(), observe=lambda p: p.x.zero_())


# ---------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tol": 0.0}, "must be > 0"),
        ({"rtol": 0.0, "atol": 0.0}, "must be > 0"),
        ({"tol": -1e-3}, "finite number >= 0"),
        ({"tol": True}, "finite number >= 0"),
        ({"tol": torch.ones(2)}, "finite number >= 0"),
        ({"max_step": torch.ones(2)}, "max_step must be positive"),
        ({"tol": math.nan}, "finite number >= 0"),
        ({"tol": math.inf}, "finite number >= 0"),
        ({"rtol": math.nan}, "finite number >= 0"),
        ({"tol": 1e-3, "rtol": 1e-3}, "not both"),
        ({"min_factor": 1.5}, "min_factor < 1 < max_factor"),
        ({"max_attempts": 0}, "whole number >= 1"),
        ({"chunk": 2.5}, "whole number >= 1"),
        ({"safety": 0.0}, "positive and finite"),
        ({"first_step": -1.0}, "positive and finite"),
    ],
)
def test_controllers_reject_invalid_options(options, words):
    with pytest.raises(sd.InvalidArgumentError, match=words):
        sd.PI(**options)


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), np.int64(1)], ids=repr)
def test_a_tolerance_may_be_a_number_of_numpy_or_torch(number):
    assert sd.PI(tol=number) == sd.PI(tol=float(number))
    assert hash(sd.PI(tol=number)) == hash(sd.PI(tol=float(number)))


def test_a_tolerance_below_rounding_is_raised_with_a_warning():
    model, x = mixture().score(sd.VP()), start(sd.VP(), 2)
    with pytest.warns(UserWarning, match="below 100 roundings of torch.float32"):
        found = sd.solve(model, x.float(), sd.PI(tol=1e-20), sd.dopri5(), on_failure="return")
    assert bool(found.x.isfinite().all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.solve(model, x, sd.PI(tol=1e-9), sd.adams())


def test_rejects_what_does_not_go_with_a_tolerance():
    model = mixture().score(sd.VP())
    seeds = sd.noise.seeds(0, 4)
    x = start(sd.VP(), 4)
    for options in ({"steps": 10}, {"grid": sd.grids.karras}, {"path": True}, {"observe": print}):
        with pytest.raises(sd.InvalidArgumentError, match="does not go with tol"):
            sd.draw(model, (4, 2), tol=1e-2, **options)
    for solver in (sd.ddim(), sd.RungeKutta(RK4), sd.euler_maruyama()):
        with pytest.raises(sd.InvalidArgumentError, match="no error estimate"):
            sd.sample(model, (4, 2), tol=1e-2, solver=solver, seed=0)
    with pytest.raises(sd.InvalidArgumentError, match="fresh noise, would bias"):
        sd.solve(model, x, sd.PI(tol=1e-2), sd.adams(eta=1.0), noise=sd.White(seeds))
    with pytest.raises(sd.InvalidArgumentError, match="Brownian"):
        sd.solve(model, x, sd.PI(tol=1e-2), sd.adams(eta=1.0))
    with pytest.raises(sd.InvalidArgumentError, match="start must be a time"):
        sd.solve(model, x, sd.PI(tol=1e-2, start=3.0), sd.adams())
    with pytest.raises(sd.InvalidArgumentError, match="must differ"):
        sd.solve(model, x, sd.PI(tol=1e-2, start=0.5, end=0.5), sd.adams())
    with pytest.raises(sd.InvalidArgumentError, match="without noise"):
        sd.solve(model, x, sd.grids.karras(sd.VP(), 5), sd.pc(), noise=sd.White(seeds), dense=True)
    with pytest.raises(sd.InvalidArgumentError, match="evaluated inside"):
        sd.solve(model, x, sd.grids.karras(sd.VP(), 5), sd.dpmpp(2, singlestep=True), dense=True)


# -------------------------------------------------------------------------------------- dense output and events
@pytest.mark.parametrize(
    "solver", mostly_slow([sd.adams(), *(f() for f in PAIRS), sd.adams(order=2)], [sd.adams(), sd.tsit5()])
)
def test_the_path_between_the_steps(solver):
    process = sd.EDM()
    model, x = mixture().score(process), start(process, 6)
    found = sd.solve(model, x, sd.PI(tol=1e-4), solver, dense=True)
    assert torch.equal(found.dense(process.t_max), x)
    assert float((found.dense(found.level) - found.x).abs().max()) < 1e-11
    for t in (40.0, 3.0, 0.7, 0.21, 0.01):
        exact = tight(model, x, end=t)
        scale = math.hypot(1.0, t)
        assert float(error(found.dense(t), exact).max()) < 20e-4 * scale, t
    each = torch.linspace(0.1, 2, 6, dtype=F64)
    mixed = torch.stack([found.dense(float(t))[i] for i, t in enumerate(each)])
    assert float((found.dense(each) - mixed).abs().max()) < 1e-12
    assert bool(found.dense(100.0).isnan().all())


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (sd.RungeKutta(sd.tableaus.HEUN), 2),
        (sd.RungeKutta(RK4), 3),
        (sd.RungeKutta(BOGACKI_SHAMPINE), 3),
        (sd.RungeKutta(DOPRI5), 4),
        (sd.RungeKutta(TSIT5), 4),
        (sd.RungeKutta(DOPRI8), 3),
        (sd.Multistep(2), 2),
        (sd.solvers.Adams(2), 3),
    ],
    ids=repr,
)
def test_dense_output_on_a_grid_has_its_order(solver, order):
    """In the middle of the steps, on grids of 40 and 80 equal ones in log-SNR."""
    process = sd.VP()
    low, high = (float(process.time(torch.tensor(v, dtype=F64))) for v in (2.0, -2.0))
    model = PROBLEMS["three"].data.score(process)
    x = start(process, 8)
    errors = []
    for n in (40, 80):
        times = sd.grids.by_snr(process, n, start=high, end=low)
        found = sd.solve(model, x, times, solver, dense=True)
        middle = float(process.at(process.level(times).lam[[n // 2, n // 2 + 1]].mean()).t)
        errors.append(error(found.dense(middle), tight(model, x, start=high, end=middle)).mean())
    assert math.log2(errors[0] / errors[1]) > order - 0.5


@pytest.mark.parametrize("grid", [True, False])
def test_samples_stop_at_their_own_events(grid):
    process = sd.EDM()
    model, x = mixture().score(process), start(process, 40)
    control = sd.grids.karras(process, 60) if grid else sd.PI(tol=1e-5)
    solver = sd.tsit5() if grid else sd.adams()

    def event(x, level):
        return x[:, 0] * x[:, 1]

    whole = sd.solve(model, x, control, solver, dense=True)
    found = sd.solve(model, x, control, solver, event=event)
    hit = found.status == sd.Status.EVENT
    assert 3 < int(hit.sum()) < 40
    assert float(event(found.x, found.level)[hit].abs().max()) < 1e-9
    assert torch.equal(found.x[~hit], whole.x[~hit])
    late = (event(x, None).sign() * event(whole.x, None).sign()) < 0
    assert bool(hit[late].all())
    assert float((whole.dense(found.level) - found.x).abs().max()) < 1e-9
    ended = sd.solve(model, x, control, solver, event=event, dense=True)
    assert torch.equal(ended.x, found.x)
    later = ended.dense(found.level.t * 0.999)
    assert bool(later[hit].isnan().all())
    before = ended.dense((found.level.t * 1.001).clamp(max=process.t_max))
    assert bool(before.isfinite().all())
    odd = sd.solve(model, x, control, solver, event=lambda x, level: torch.log(x[:, 0]))
    assert bool((odd.status == sd.Status.OK).any())
    with pytest.raises(sd.InvalidTypeError, match="one floating number per sample"):
        sd.solve(model, x, control, solver, event=lambda x, level: x[:, 0] > 0)
    assert bool((found.nfe[hit] <= whole.nfe[hit]).all())


# ------------------------------------------------------------------------------------------------------- noise
def test_a_rejected_step_stays_on_its_path():
    """With one Brownian path, tighter tolerances approach one limit, sample by sample."""
    process = sd.VP()
    model, seeds = mixture().score(process), sd.noise.seeds(4, 64)
    x, solver = start(process, 64), sd.adams(eta=1.0)
    noise = sd.Brownian(seeds, process, clock=solver.noise_clock(process))
    ends = [sd.solve(model, x, sd.PI(tol=tol, max_jump=0.5), solver, noise=noise).x for tol in (0.3, 0.03, 3e-3)]
    far, near = (float(error(end, ends[-1]).median()) for end in ends[:2])
    assert near < 0.4 * far < 0.1


NOISY = {"adams": sd.adams(eta=1.0), "adaptive_heun": sd.adaptive_heun(1.0), "adams, eta=0.5": sd.adams(eta=0.5)}


@pytest.mark.parametrize("name", mostly_slow(NOISY, ["adams, eta=0.5"]))
def test_adaptive_noise_has_the_right_law(name):
    """Means and variances of a Gaussian at 0.2 of the scale: the tolerance leaves 2 % or so, the draw the rest.

    2,000 samples: a variance has a standard error of 3.2 %, a mean one of 0.022 standard deviations, so that either
    bound is 5.5 of them away, 4e-8 for each of six numbers; a variance that is 30 % off fails with certainty.
    """
    process = sd.VP()
    law = sd.Gaussian(torch.tensor([0.5, -1.0, 0.0], dtype=F64), std=torch.tensor([0.2, 0.5, 1.0], dtype=F64))
    x = sd.sample(law.score(process), (2000, 3), tol=0.05, solver=NOISY[name], dtype=F64, denoise=False, seed=0)
    target = law.at(process.level(process.t_min)) if hasattr(law, "at") else law
    ratio = x.var(0) / target.cov().diagonal()
    assert float((ratio - 1).abs().max()) < 0.2
    assert float(((x.mean(0) - target.mean()) / target.cov().diagonal().sqrt()).abs().max()) < 0.14


def test_the_controllers_arithmetic():
    """A PID controller's factor, by hand, for one accepted and one rejected attempt."""
    process = sd.VP()
    control = sd.PI(rtol=1.0, atol=0.0, pcoeff=0.3, icoeff=0.4, dcoeff=0.1, safety=0.9).bind(sd.dopri5(), process, F64)
    x = torch.ones(2, 1, dtype=F64)
    now, _, pace = control.init(process, x)
    next, pace = control.leaving(process, now, pace, torch.full((2,), 0.01, dtype=F64))
    pace = pace._replace(error=torch.full((2,), 0.5, dtype=F64), earlier=torch.full((2,), 0.25, dtype=F64))
    step = sd.Step(x, (), torch.tensor([[0.2], [3.0]], dtype=F64), 5.0)
    accept, after, _, state = control.update(process, pace, x, now, next, step)
    assert accept.tolist() == [True, False]
    tried = (control.frame.clock(next) - control.frame.clock(now)).abs()
    good = 0.9 * 0.2 ** (-0.8 / 5) * 0.5 ** (0.5 / 5) * 0.25 ** (-0.1 / 5)
    bad = 0.9 * 3.0 ** (-0.8 / 5) * 0.5 ** (0.5 / 5) * 0.25 ** (-0.1 / 5)
    assert state.step[0] == pytest.approx(float(tried[0]) * good)
    assert state.step[1] == pytest.approx(float(tried[1]) * min(bad, 0.9))
    assert after.t[0] == next.t[0]
    assert after.t[1] == now.t[1]
    assert state.status.tolist() == [RUNNING, RUNNING]
    assert (state.error[0], state.earlier[0]) == (pytest.approx(0.2), 0.5)
    assert (state.error[1], state.earlier[1]) == (0.5, 0.25)


def test_embedded_errors_fall_as_declared():
    process = sd.VP()
    model, x = PROBLEMS["three"].data.score(process), start(process, 16)
    for tableau in (HEUN_EULER, BOGACKI_SHAMPINE, DOPRI5, TSIT5, DOPRI8):
        solver = sd.RungeKutta(tableau, sd.ANGLE)
        sizes = []
        for width in (0.4, 0.2):
            now, next = (process.at(torch.full((16,), lam, dtype=F64)) for lam in (-0.2, -0.2 + width))
            step = solver.step(model, x, now, next, solver.init(model, x, now), None)
            sizes.append(error(step.error, torch.zeros_like(x)).mean())
        assert math.log2(sizes[0] / sizes[1]) == pytest.approx(tableau.order_error, abs=1.3), tableau
