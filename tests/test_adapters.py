"""torchdiffeq's and torchsde's methods as solvers: orders, laws, evaluations, gradients, failures; the way back."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
import weakref

import pytest
import torch
from cases import crossed, mostly_slow
from problems import F64, MEANS, PROCESSES, WIDTHS, exact_law, mixture

import sdegen as sd
from sdegen import adapters
from sdegen.adapters import Backwards
from sdegen.adapters.torchsde import _Increments

torchdiffeq = pytest.importorskip("torchdiffeq")
torchsde = pytest.importorskip("torchsde")

VP = sd.VP(t_min=0.05)
MODEL = mixture(VP)
X = VP.prior(sd.noise.seeds(0, 16), (2,), F64)
WHITE = sd.White(sd.noise.seeds(1, 16))
ENDS = sd.grids.by_time(VP, 1)
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
SCIPY = ["LSODA", "RK45", "DOP853", "Radau", "BDF"]


class Watch(sd.model.Model):
    """A model that writes down when it is asked."""

    def __init__(self, inner):
        self.inner, self.process, self.times = inner, inner.process, []

    def __call__(self, x, level, want="score"):
        self.times.append(float(level.t))
        return self.inner(x, level, want)


@functools.cache
def reference():
    """The ends of X along the flow."""
    return sd.solve(MODEL, X, sd.grids.by_snr(VP, 800), sd.RungeKutta(sd.tableaus.RK4, sd.SIGMA)).x


def error(x, exact=None):
    return float((x - (reference() if exact is None else exact)).detach().norm(dim=1).mean())


def scipy_solver(name, tol, **options):
    return adapters.torchdiffeq("scipy_solver", tol, tol, options={"solver": name}, **options)


# torchdiffeq


def test_every_method_of_torchdiffeq_is_tested_here():
    from torchdiffeq._impl.odeint import SOLVERS

    adams = {"explicit_adams", "implicit_adams", "fixed_adams"}
    assert set(SOLVERS) == {*FIXED, *ADAPTIVE, *adams, "scipy_solver"}


@pytest.mark.parametrize(
    ("method", "frame"),
    mostly_slow(crossed(FIXED, [sd.TIME, sd.DATA]), lambda case: case in [("rk4", sd.DATA), ("euler", sd.TIME)]),
)
def test_fixed_methods_have_their_order(method, frame):
    """In frames without a linear part and with one; each step of the grid is one of the method."""
    solver = adapters.torchdiffeq(method, frame=frame)
    grid = adapters.Even(sd.DATA)
    coarse, fine = (sd.solve(MODEL, X, grid(VP, n), solver) for n in (60, 120))
    order = torch.log2(torch.tensor(error(coarse.x) / error(fine.x)))
    assert abs(order - FIXED[method]) < 0.35
    per_step = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}[method]
    assert fine.nfe.tolist() == [120 * per_step] * len(X)
    assert solver.evals == per_step


@pytest.mark.filterwarnings("ignore:Functional iteration")  # torchdiffeq's, of four iterations against 1e-10
@pytest.mark.parametrize(("method", "order"), [("explicit_adams", 3), ("implicit_adams", 4), ("fixed_adams", 4)])
def test_adams_methods_keep_their_past_over_the_steps_of_the_grid(method, order):
    """max_order=4 is torchdiffeq's Adams-Bashforth of order 3 and Moulton of order 4, started by its RK4."""
    solver = adapters.torchdiffeq(method, 1e-10, 1e-10, options={"max_order": 4})
    coarse, fine = (sd.solve(MODEL, X, solver.grid(VP, n), solver) for n in (100, 200))
    assert abs(float(torch.log2(torch.tensor(error(coarse.x) / error(fine.x)))) - order) < 0.4
    if method == "explicit_adams":
        assert fine.nfe.tolist() == [200 + 2 * 3] * len(X)  # two steps of RK4, then one evaluation each


def test_adams_methods_refuse_steps_that_differ():
    solver = adapters.torchdiffeq("explicit_adams", frame=sd.SIGMA)
    with pytest.raises(sd.InvalidArgumentError, match="weights of equal steps"):
        sd.solve(MODEL, X, sd.grids.karras(VP, 20), solver)
    grid = adapters.Even(sd.SIGMA)(VP, 20)
    clock = sd.SIGMA.clock(VP.level(grid))
    torch.testing.assert_close(clock.diff(), clock.diff()[:1].expand(20), rtol=1e-9, atol=0)
    assert grid[0] == VP.t_max
    assert grid[-1] == VP.t_min


@pytest.mark.parametrize(
    ("method", "frame"),
    mostly_slow(
        crossed([*ADAPTIVE, "scipy_solver"], [sd.TIME, sd.SIGMA]),
        [("dopri5", sd.SIGMA), ("bosh3", sd.TIME), ("scipy_solver", sd.SIGMA)],
    ),
)
def test_adaptive_methods_keep_their_tolerance(method, frame):
    """The error is some multiple of the tolerance, and a tighter tolerance gives a smaller one for more evaluations.

    fehlberg2, of order 2 and with few stages, keeps its own badly.
    """
    solutions = []
    for tol in (1e-4, 1e-5) if method == "adaptive_heun" else (1e-4, 1e-6):
        solution = sd.solve(MODEL, X, ENDS, adapters.torchdiffeq(method, tol, tol, frame=frame))
        assert error(solution.x) < (1000 if method == "fehlberg2" else 50) * tol
        solutions.append(solution)
    assert error(solutions[1].x) < error(solutions[0].x) / 5
    assert int(solutions[1].nfe[0]) > int(solutions[0].nfe[0])


@pytest.mark.parametrize("name", SCIPY)
def test_scipys_solvers(name):
    solution = sd.solve(MODEL, X[:2], ENDS, scipy_solver(name, 1e-6))
    assert error(solution.x, reference()[:2]) < 1e-4


@pytest.mark.parametrize(
    ("method", "process"),
    mostly_slow(
        crossed([*ADAPTIVE, "scipy_solver", "rk4", "implicit_adams"], PROCESSES.values()),
        lambda case: case[0] == "dopri5" or case[1] == sd.VP(),
    ),
)
def test_evaluations_are_counted_and_none_lies_outside(method, process):
    watch = Watch(mixture(process))
    solver = adapters.torchdiffeq(method, 1e-3, 1e-3)
    x = process.prior(sd.noise.seeds(0, 4), (2,), F64)
    times = solver.grid(process, solver.own_steps or 30)
    solution = sd.solve(watch, x, times, solver)
    assert solution.nfe.tolist() == [len(watch.times)] * 4
    assert process.t_min <= min(watch.times)
    assert max(watch.times) <= process.t_max


def test_torchdiffeq_itself_leaves_the_interval():
    """What the test above guards against is real."""
    times = []

    def field(t, y):
        times.append(float(t))
        return VP.probability_flow(MODEL).drift(y, t)

    with contextlib.suppress(AssertionError):  # underflow in dt: where t < 0 the process has no levels
        torchdiffeq.odeint(field, X, ENDS, rtol=1e-3, atol=1e-3)
    assert min(times) < VP.t_min


def test_a_huge_first_step_ends_at_the_end():
    solver = adapters.torchdiffeq("dopri5", 1e-6, 1e-6, options={"first_step": 1e9})
    assert error(sd.solve(MODEL, X, ENDS, solver).x) < 1e-4


def test_the_numbers_are_torchdiffeqs():
    flow = VP.probability_flow(MODEL)
    times = sd.grids.by_time(VP, 20)
    for method in FIXED:
        theirs = torchdiffeq.odeint(adapters.for_torchdiffeq(flow), X, times, method=method)[-1]
        ours = sd.solve(flow, X, times, adapters.torchdiffeq(method)).x
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_levels_between_cost_nothing():
    """An adaptive method runs once; the states between are its dense output."""
    solver = adapters.torchdiffeq("dopri5", 1e-7, 1e-7)
    times = sd.grids.by_time(VP, 7)
    one = sd.solve(MODEL, X, ENDS, solver)
    seen = sd.solve(MODEL, X, times, solver, observe=lambda progress: progress.x)
    assert seen.nfe.tolist() == one.nfe.tolist()
    assert torch.equal(seen.x, one.x)
    assert len(seen.path) == 7
    for k, x in enumerate(seen.path[:-1], 1):
        there = sd.solve(MODEL, X, [1.0, float(times[k])], adapters.torchdiffeq("dopri8", 1e-9, 1e-9)).x
        assert error(x, there) < 1e-4


def test_in_sample():
    rk4 = sd.sample(MODEL, (3, 2), solver=adapters.torchdiffeq("rk4"), steps=40, seed=0)
    native = sd.sample(
        MODEL, (3, 2), solver=sd.RungeKutta(sd.tableaus.RK4, sd.TIME, grid=sd.grids.natural), steps=40, seed=0
    )
    torch.testing.assert_close(rk4, native, rtol=1e-3, atol=1e-4)
    steps = []
    solver = adapters.torchdiffeq("dopri5")
    adaptive = sd.sample(MODEL, (3, 2), solver=solver, observe=lambda progress: steps.append(progress.steps), seed=0)
    assert steps == [1]
    torch.testing.assert_close(adaptive, native, rtol=1e-3, atol=1e-3)
    part = sd.sample(MODEL, (3, 2), solver=solver, x=X[:3], start=0.6, end=0.2, denoise=False, seed=0)
    there = sd.solve(MODEL, X[:3], [0.6, 0.2], adapters.torchdiffeq("dopri8", 1e-8, 1e-8)).x
    assert error(part, there) < 1e-3


def test_from_data_to_noise_and_back():
    solver = adapters.torchdiffeq("dopri8", 1e-9, 1e-9, frame=sd.SIGMA)
    torch.testing.assert_close(sd.encode(MODEL, reference(), solver=solver), X, rtol=1e-6, atol=1e-6)


def test_general_flows_and_wrong_ones():
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: torch.ones_like(t), t_max=1.0)
    flow = sde.probability_flow(lambda x, t: -x)  # dx = -x/2 dt
    x = torch.ones(2, 3, dtype=F64)
    out = sd.solve(flow, x, [1.0, 0.0], adapters.torchdiffeq("dopri5", 1e-9, 1e-9)).x
    torch.testing.assert_close(out, x * torch.tensor(0.5, dtype=F64).exp(), rtol=1e-8, atol=0)
    with pytest.raises(sd.InvalidTypeError, match="drift and diffusion"):
        sd.solve(flow, x, [1.0, 0.0], adapters.torchdiffeq("dopri5", frame=sd.SIGMA))
    with pytest.raises(sd.InvalidArgumentError, match="eta=1"):
        sd.solve(sde.reverse(lambda x, t: -x), x, [1.0, 0.0], adapters.torchdiffeq("dopri5"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "scipy_solver"])
def test_states_of_other_precision(method, dtype):
    solver = adapters.torchdiffeq(method, 1e-4, 1e-4)
    out = sd.solve(MODEL, X.to(dtype), sd.grids.by_time(VP, solver.own_steps or 30), solver)
    assert out.x.dtype == dtype
    assert error(out.x.double()) < 30 * torch.finfo(dtype).eps + 3e-3


def test_a_sample_that_fails_leaves_the_others():
    def net(x, t):
        return torch.where(x[:, :1] > 3.0, float("nan"), -x)

    model = sd.ScoreModel(VP, net)
    x = torch.tensor([[0.1, 0.2], [4.0, 0.1], [-0.3, 1.0]], dtype=F64)
    for method in ("dopri5", "rk4", "scipy_solver"):
        solver = adapters.torchdiffeq(method)
        times = sd.grids.by_time(VP, solver.own_steps or 10)
        solution = sd.solve(model, x, times, solver, on_failure="return")
        assert solution.status.tolist() == [sd.Status.OK, sd.Status.NONFINITE, sd.Status.OK]
        rest = sd.solve(model, x[[0, 2]], times, solver).x
        assert error(solution.x[[0, 2]], rest) < 1e-4
        assert torch.equal(solution.x[1], x[1])
        with pytest.raises(sd.SolveError, match="1 of 3"):
            sd.solve(model, x, times, solver)


def test_a_run_that_cannot_go_on_says_where():
    sde = sd.SDE.from_functions(lambda x, t: -(x**2), lambda x, t: torch.zeros_like(t), t_max=2.0)
    flow = sde.probability_flow(lambda x, t: x * 0)  # x = 1/(t - 1) for x = 1 at t = 2: it blows up at t = 1
    x = torch.ones(2, 1, dtype=F64)
    for options, reason in (({}, "underflow|non-finite|max_num_steps"), ({"max_num_steps": 5}, "max_num_steps")):
        with pytest.raises(sd.SolveError, match=reason) as caught:
            sd.solve(flow, x, [2.0, 0.0], adapters.torchdiffeq("dopri5", 1e-6, 1e-6, options=options))
        partial = caught.value.partial
        assert (partial.status == (sd.Status.MAX_STEPS if options else sd.Status.STEP_TOO_SMALL)).all()
        reached = partial.level.t
        if options:
            assert ((reached > 1.0) & (reached < 2.0)).all()
            torch.testing.assert_close(partial.x[:, 0], 1 / (reached - 1), rtol=1e-3, atol=0)
        else:
            assert ((reached - 1.0).abs() < 1e-4).all()
            assert (partial.x > 1e4).all()
        assert (partial.nfe > 5).all()
        assert "sdegen: in step 1" in caught.value.__notes__[0]


def test_the_default_number_of_steps_is_bounded(monkeypatch):
    """lambda = 1e7 over a unit of time: torchdiffeq alone would take some 3e6 steps."""
    module = sys.modules["sdegen.adapters.torchdiffeq"]
    assert module.MAX_STEPS == 10_000
    monkeypatch.setattr(module, "MAX_STEPS", 200)
    sde = sd.SDE.from_functions(lambda x, t: 1e7 * x, lambda x, t: torch.zeros_like(t), t_max=1.0)
    flow = sde.probability_flow(lambda x, t: x * 0)
    with pytest.raises(sd.SolveError, match="max_num_steps exceeded \\(200"):
        sd.solve(flow, torch.ones(1, 1, dtype=F64), [1.0, 0.0], adapters.torchdiffeq("adaptive_heun"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adapters.torchdiffeq("dopri6"), "did you mean 'dopri[58]'"),
        (lambda: adapters.torchdiffeq("rk4", options={"step_siz": 0.1}), "did you mean 'step_size'"),
        (lambda: adapters.torchdiffeq("rk4", options={"max_num_steps": 3}), "option of rk4"),
        (lambda: adapters.torchdiffeq(rtol=0.0, atol=0.0), "not both 0"),
        (lambda: adapters.torchdiffeq(rtol=-1e-3), ">= 0"),
        (lambda: adapters.torchdiffeq(atol=float("nan")), "finite"),
        (lambda: adapters.torchdiffeq(atol=float("inf")), "finite"),
        (lambda: adapters.torchdiffeq(frame="sigma"), "frame must be"),
        (lambda: adapters.torchsde("eulr"), "did you mean 'euler'"),
        (lambda: adapters.torchsde("adjoint_reversible_heun"), "reversible_heun"),
        (lambda: adapters.torchsde("srk", sde_type="stratonovich"), "is for ito"),
        (lambda: adapters.torchsde("heun", sde_type="ito"), "is for stratonovich"),
        (lambda: adapters.torchsde(eta=0.0), "eta=0"),
        (lambda: adapters.torchsde(frame=sd.DATA), "sd.TIME or in sd.SIGMA"),
        (lambda: adapters.torchsde(noise_type="matrix"), "noise_type"),
        (lambda: adapters.torchsde(brownian="tree"), "brownian"),
        (lambda: adapters.torchsde(dt=0.0), "dt must be positive"),
        (lambda: adapters.torchsde(rtl=0.1), "did you mean 'rtol'"),
        (lambda: adapters.torchsde("srk", adaptive=True), "brownian='interval'"),
        (lambda: adapters.for_torchdiffeq(VP.reverse(MODEL)), "eta=1"),
        (lambda: adapters.for_torchdiffeq(VP), "for_torchdiffeq takes"),
        (lambda: adapters.for_torchsde(VP.probability_flow(MODEL), (2,)), "no noise"),
        (lambda: adapters.for_torchsde(MODEL, (2,)), "takes sde.reverse"),
        (lambda: adapters.for_torchsde(VP.reverse(MODEL), (2,), sde_type="backward"), "sde_type"),
        (lambda: adapters.for_torchsde(VP.reverse(MODEL), (2,), noise_type="matrix"), "noise_type"),
    ],
)
def test_reports_invalid_arguments(make, words):
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match=words):
        make()


@pytest.mark.parametrize(("name", "extra"), [("torchdiffeq", "ode"), ("torchsde", "sde")])
def test_a_missing_package_says_what_to_install(name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(sd.InvalidArgumentError, match=rf"pip install 'sdegen\[{extra}\]'"):
        getattr(adapters, name)()


def test_solvers_are_values():
    for make in (adapters.torchdiffeq, adapters.torchsde):
        assert make() == make()
        assert hash(make()) == hash(make())
        assert pickle.loads(pickle.dumps(make())) == make()
        assert make("euler", frame=sd.SIGMA) != make("euler")
        assert repr(make("euler")).startswith(make.__name__)


def test_rejects_levels_per_sample():
    levels = VP.level(torch.tensor([0.5, 0.6]))
    for solver in (adapters.torchdiffeq(), adapters.torchsde()):
        with pytest.raises(sd.InvalidArgumentError, match="one time for the whole batch"):
            solver.init(MODEL, X[:2], levels)


# torchsde

METHODS = {
    "euler": dict(method="euler"),
    "milstein": dict(method="milstein"),
    "srk": dict(method="srk"),
    "srk additive": dict(method="srk", noise_type="additive"),
    "milstein, Stratonovich": dict(method="milstein", sde_type="stratonovich"),
    "midpoint": dict(method="midpoint"),
    "heun": dict(method="heun"),
    "euler_heun": dict(method="euler_heun"),
    "log_ode": dict(method="log_ode"),
    "log_ode general": dict(method="log_ode", noise_type="general"),
    "reversible_heun": dict(method="reversible_heun"),
}
LAW = {
    "euler": (1, 1, 1),
    "milstein": (1, 1, 1),
    "srk": (2, 2, 4),
    "srk additive": (2, 2, 2),
    "milstein, Stratonovich": (1, 1, 1),
    "midpoint": (2, 1, 2),
    "heun": (2, 1, 2),
    "euler_heun": (1, 1, 1),
    "log_ode": (2, 3, 2),
    "reversible_heun": (2, 1, 2),
}


def test_every_method_of_torchsde_is_tested_here():
    known = {m for m in torchsde.settings.METHODS.all() if not m.startswith("adjoint")}
    assert known == {options["method"] for options in METHODS.values()}


@pytest.mark.parametrize("name", mostly_slow(LAW, ["euler"]))
def test_the_law_has_its_order(name):
    """Mean and variance on Gaussian data, without sampling: a wrong area, drift or increment would keep an error."""
    order, draws, evals = LAW[name]
    process = sd.Cosine(t_min=0.6 if name == "reversible_heun" else 0.05)  # it is hardly stable
    solver = adapters.torchsde(**METHODS[name])
    level = process.level(process.t_min)
    means, variances = level.alpha * MEANS, level.alpha**2 * WIDTHS**2 + level.sigma**2
    errors = []
    for n in (64, 128):
        mean, variance = exact_law(process, solver, sd.grids.by_time(process, n), draws=draws)
        errors.append(max(float((mean - means).abs().max()), float((variance - variances).abs().max())))
    assert abs(float(torch.log2(torch.tensor(errors[0] / errors[1]))) - order) < 0.5
    assert errors[1] < 0.05
    solution = sd.solve(MODEL, X, sd.grids.by_time(VP, 5), solver, noise=WHITE)
    assert solution.nfe.tolist() == [5 * evals] * len(X)
    assert solver.evals == evals


def test_euler_is_euler_maruyama_and_heun_is_heun():
    """The same seeds give the same path: increments come from the noise source of the solve."""
    times = sd.grids.by_time(VP, 40)
    for theirs, ours in (("euler", sd.euler_maruyama()), ("heun", sd.stochastic_heun())):
        a, b = (sd.solve(MODEL, X, times, s, noise=WHITE) for s in (adapters.torchsde(theirs), ours))
        torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-13)
        assert torch.equal(a.nfe, b.nfe)


def stationary():
    """A diffusion whose g depends on x, diagonal; N(0, 1) is stationary, so that its score is -x."""

    def g(x, t):
        return 1 + 0.5 * torch.sin(x)

    def drift(x, t):
        return g(x, t) * 0.5 * torch.cos(x) - g(x, t) ** 2 / 2 * x

    return sd.SDE.from_functions(drift, g, t_min=0.0, t_max=1.0).reverse(lambda x, t: -x)


def mixed():
    """Two noises in three coordinates, a matrix that depends on x; a score that belongs to no law."""

    def g(x, t):
        return torch.stack([torch.cos(x), 0.5 * torch.ones_like(x) + 0.3 * x.roll(1, 1).sin()], -1)

    return sd.SDE.from_functions(lambda x, t: -x, g, t_min=0.0, t_max=1.0).reverse(lambda x, t: -x)


def driven_by_one(shape=(3,)):
    """One noise for all coordinates."""

    def g(x, t):
        return (1 + 0.5 * torch.sin(x))[..., None]

    return sd.SDE.from_functions(lambda x, t: -x, g, t_min=0.0, t_max=1.0).reverse(lambda x, t: -x)


EVEN = torch.linspace(1.0, 0.0, 257, dtype=F64)
ROWS = 32
PATH = sd.Brownian(sd.noise.seeds(3, ROWS), span=(0.0, 1.0), depth=10)
STARTS = torch.linspace(-1.5, 1.5, ROWS * 3, dtype=F64).reshape(ROWS, 3)


@functools.cache
def truth(make):
    """The end of the path, by 256 steps of Milstein's method where it can be had."""
    solver = sd.euler_maruyama() if make is mixed or make is driven_by_one else sd.milstein()
    return sd.solve(make(), STARTS, EVEN, solver, noise=PATH).x


def strong_errors(make, solver, steps):
    return [error(sd.solve(make(), STARTS, EVEN[:: 256 // n], solver, noise=PATH).x, truth(make)) for n in steps]


@pytest.mark.parametrize(
    "name", mostly_slow([n for n in METHODS if n not in ("srk additive", "log_ode general")], ["milstein", "heun"])
)
def test_paths_converge_where_the_noise_depends_on_x(name):
    """Strong convergence on one Brownian path, Ito and Stratonovich to the same one: the drift is converted."""
    coarse, fine = strong_errors(stationary, adapters.torchsde(**METHODS[name]), (8, 32))
    assert fine < 0.09
    assert coarse / fine > (1.6 if name == "euler" else 2.8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler", "midpoint", "heun", "euler_heun", "log_ode"])
def test_paths_converge_under_matrix_noise(name):
    coarse, fine = strong_errors(mixed, adapters.torchsde(name), (4, 32))
    assert fine < 0.12
    assert coarse / fine > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler", "milstein", "srk", "midpoint", "milstein, Stratonovich"])
def test_paths_converge_under_one_noise(name):
    coarse, fine = strong_errors(driven_by_one, adapters.torchsde(**METHODS[name]), (4, 32))
    assert fine < 0.1
    assert coarse / fine > 2


def test_frames_agree_on_the_law_they_converge_to():
    process = sd.Cosine(t_min=0.05)
    times = sd.grids.karras(process, 128)
    solvers = [adapters.torchsde("heun", frame=frame) for frame in (sd.TIME, sd.SIGMA)]
    (m0, v0), (m1, v1) = (exact_law(process, solver, times) for solver in solvers)
    torch.testing.assert_close(m0, m1, rtol=0, atol=2e-3)
    torch.testing.assert_close(v0, v1, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_depends_on_its_own_seed_alone(name):
    solver = adapters.torchsde(**METHODS[name])
    seeds = sd.noise.seeds(5, 6)
    everything = sd.sample(MODEL, (6, 2), steps=5, solver=solver, seed=seeds, dtype=F64)
    two = sd.sample(MODEL, (2, 2), steps=5, solver=solver, seed=seeds[[4, 1]], dtype=F64)
    torch.testing.assert_close(two, everything[[4, 1]], rtol=1e-12, atol=1e-13)


def test_samples_of_any_shape_and_precision():
    data = sd.GaussianMixture(torch.zeros(1, 2, 3), stds=0.5)
    model = data.score(VP)
    flat = sd.GaussianMixture(torch.zeros(1, 6), stds=0.5).score(VP)
    for name, options in METHODS.items():
        solver = adapters.torchsde(**options)
        shaped = sd.sample(model, (4, 2, 3), steps=4, solver=solver, seed=0)
        assert shaped.dtype == torch.float32
        torch.testing.assert_close(
            shaped.flatten(1), sd.sample(flat, (4, 6), steps=4, solver=solver, seed=0), rtol=1e-4, atol=1e-4, msg=name
        )
        half = sd.sample(model, (4, 2, 3), steps=4, solver=solver, dtype=torch.bfloat16, seed=0)
        assert half.dtype == torch.bfloat16


def test_the_areas_have_their_law():
    """Variances of U and A, and U's covariance with W; 6.5 sigma bounds, each false with probability below 1e-10."""
    n, h = 20_000, 0.3
    reverse = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: x.new_ones(len(x), 2, 2)).reverse(lambda x, t: -x)
    y = torch.zeros(n, 2, dtype=F64)
    motion = _Increments(Backwards(reverse, (2,), 1.0), y, sd.White(sd.noise.seeds(9, n)))
    w, u, a = motion(torch.tensor(-0.8, dtype=F64), torch.tensor(-0.5, dtype=F64), return_U=True, return_A=True)

    def near(values, expected):
        bound = 6.5 * float(values.std()) / n**0.5
        assert abs(float(values.mean()) - expected) < bound < 0.1 * expected

    near(w[:, 0] ** 2, h)
    near(u[:, 0] ** 2, h**3 / 3)
    near(u[:, 0] * w[:, 0], h**2 / 2)
    near(a[:, 0, 1] ** 2, h**2 / 4)
    assert torch.equal(a, -a.mT)


def test_adaptive_steps_follow_one_path():
    """heun with rejected steps on a Brownian path ends near the fine solution on that path."""
    solver = adapters.torchsde("heun", adaptive=True, rtol=1e-2, atol=1e-2)
    solution = sd.solve(stationary(), STARTS, [1.0, 0.0], solver, noise=PATH)
    assert error(solution.x, truth(stationary)) < 0.05
    assert (solution.nfe > 30).all()
    again = sd.sample(MODEL, (3, 2), solver=solver, noise=lambda seeds: sd.Brownian(seeds, VP), seed=0)
    assert again.isfinite().all()


def test_fresh_noise_is_refused_where_steps_are_made_again():
    for solver in (
        adapters.torchsde("heun", adaptive=True),
        adapters.torchsde("heun", dt=0.1, adjoint=True, adjoint_params=()),
    ):
        with pytest.raises(sd.InvalidArgumentError, match="fresh noise there biases the law"):
            sd.solve(MODEL, X, ENDS, solver, noise=WHITE)
    other = sd.Brownian(WHITE.seeds, VP, clock=lambda level: level.lam)
    with pytest.raises(sd.InvalidArgumentError, match="fresh noise there biases the law"):
        sd.solve(MODEL, X, ENDS, adapters.torchsde("heun", adaptive=True), noise=other)


def test_torchsdes_own_path():
    """Seeded by the samples' seeds, so that it can be had again, and without the global generator."""
    for options in (dict(method="srk", adaptive=True), dict(method="log_ode", dt=0.1), dict(method="heun", dt=0.1)):
        solver = adapters.torchsde(**options, brownian="interval", rtol=1e-2, atol=1e-2)
        state = torch.get_rng_state()
        one, two = (sd.solve(MODEL, X, ENDS, solver, noise=WHITE).x for _ in range(2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(one, two)
        other = sd.solve(MODEL, X, ENDS, solver, noise=sd.White(sd.noise.seeds(2, 16))).x
        assert not torch.equal(one, other)


def test_a_run_without_end_is_ended():
    model = sd.ScoreModel(VP, lambda x, t: x * float("nan"))
    path = sd.Brownian(WHITE.seeds, VP)
    spent, broken = sd.Status.MAX_STEPS, sd.Status.NONFINITE
    for asked, tol, reason, status in ((MODEL, 1e-9, "500 evaluations", spent), (model, 1e-2, "nan", broken)):
        solver = adapters.torchsde("heun", adaptive=True, rtol=tol, atol=tol, dt_min=1e-12, max_evals=500)
        with pytest.raises(sd.SolveError, match=reason) as caught:
            sd.solve(asked, X, ENDS, solver, noise=path)
        assert torch.equal(caught.value.partial.x, X)
        assert (caught.value.partial.status == status).all()
    fixed = sd.solve(model, X, sd.grids.by_time(VP, 3), adapters.torchsde("heun"), noise=WHITE, on_failure="return")
    assert (fixed.status == sd.Status.NONFINITE).all()


# the way back


@pytest.mark.parametrize("make", [stationary, mixed, driven_by_one], ids=["diagonal", "matrix", "one noise"])
def test_reverse_sdes_as_problems_of_torchsde(make):
    """sdeint on the problem and Euler-Maruyama here, on torchsde's own path."""
    reverse = make()
    x = torch.linspace(-1.0, 1.0, 12, dtype=F64).reshape(4, 3)
    problem = adapters.for_torchsde(reverse, (3,))
    assert problem.noise_type == {"stationary": "diagonal", "mixed": "general"}.get(make.__name__, "scalar")
    size = (4, {"diagonal": 3, "general": 2, "scalar": 1}[problem.noise_type])
    path = torchsde.BrownianInterval(-1.0, 0.0, size=size, dtype=F64, entropy=7)
    ts = problem.times(EVEN[::8])
    theirs = torchsde.sdeint(problem, problem.flat(x), ts, bm=path, method="euler", dt=1 / 32)

    def recorded(x, now, next, tag=0):
        return path(-now.t, -next.t) / (now.t - next.t).sqrt()

    ours = sd.solve(reverse, x, EVEN[::8], sd.euler_maruyama(), noise=recorded).x
    torch.testing.assert_close(problem.shaped(theirs[-1]), ours, rtol=1e-10, atol=1e-10)
    assert problem.shaped(theirs).shape == (33, 4, 3)
    stratonovich = adapters.for_torchsde(reverse, (3,), sde_type="stratonovich")
    other = torchsde.sdeint(stratonovich, problem.flat(x), ts[[0, -1]], bm=path, method="heun", dt=1 / 32)[-1]
    assert error(problem.shaped(other), ours) < 0.3


@pytest.mark.parametrize("package", ["torchdiffeq", "torchsde"])
def test_a_backend_with_steps_of_its_own_takes_no_number_of_evaluations(package):
    pytest.importorskip(package)
    solver = adapters.torchdiffeq("dopri5") if package == "torchdiffeq" else adapters.torchsde("euler", dt=0.01)
    with pytest.raises(sd.InvalidArgumentError, match="chooses its number of evaluations itself: nfe does not go"):
        sd.sample(mixture(sd.VP()), (3, 2), nfe=10, solver=solver)


def test_forward_sdes_run_in_torchsde():
    """dx = -x dt + (1 + 0.5 sin x) dw through increasing times, beside Euler-Maruyama and Heun on the same path."""
    forward = stationary().sde.as_forward()
    times = EVEN.flip(0)
    ours = sd.solve(forward, STARTS, times, sd.milstein(), noise=PATH).x
    theirs = sd.solve(forward, STARTS, times[::4], adapters.torchsde("heun"), noise=PATH)
    assert error(theirs.x, ours) < 0.02
    problem = adapters.for_torchsde(forward, (3,))
    assert torch.equal(problem.times(times), times)


def test_modules_carry_the_parameters_of_the_network():
    net = torch.nn.Linear(2, 2)

    def reverse(eta):
        return VP.reverse(sd.ScoreModel(VP, Timed(net)), eta)

    for module in (adapters.for_torchdiffeq(reverse(0.0)), adapters.for_torchsde(reverse(1.0), (2,))):
        assert [id(p) for p in module.parameters()] == [id(p) for p in net.parameters()]


class Timed(torch.nn.Module):
    """A network that also depends on time."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return torch.tanh(self.inner(x)) * (1 + t[:, None]) - x


# gradients


def learned():
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Linear(2, 2, dtype=F64)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) * 0.5)
    return sd.ScoreModel(VP, Timed(net).eval()), net.eval()


def gradients(model, net, solver, times, noise=None):
    x = X[:4].clone().requires_grad_()
    for p in net.parameters():
        p.grad = None
    (sd.solve(model, x, times, solver, noise=noise).x ** 2).sum().backward()
    return [x.grad, *(p.grad.clone() for p in net.parameters())]


def close(a, b, rtol):
    for one, two in zip(a, b):
        assert float((one - two).norm() / two.norm()) < rtol


@functools.cache
def true_gradients():
    """By autograd through 300 steps of RK4 here; tests/test_gradients.py has that against finite differences."""
    model, net = learned()
    return gradients(model, net, sd.RungeKutta(sd.tableaus.RK4, sd.SIGMA), sd.grids.by_snr(VP, 300))


@pytest.mark.parametrize("frame", [sd.TIME, sd.SIGMA], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "scipy_solver"])
def test_gradients_of_adaptive_methods(method, frame):
    """The adjoint's, and autograd's: the step that is chosen first must not be part of the graph."""
    model, net = learned()
    for adjoint in (False, True):
        solver = adapters.torchdiffeq(method, 1e-6, 1e-6, frame=frame, adjoint=adjoint)
        if adjoint or method != "scipy_solver":
            close(gradients(model, net, solver, ENDS), true_gradients(), 1e-4)


@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_fixed_methods(method, adjoint):
    model, net = learned()
    options = {"max_order": 4} if method == "explicit_adams" else None
    solver = adapters.torchdiffeq(method, adjoint=adjoint, options=options)
    close(gradients(model, net, solver, sd.grids.by_time(VP, 100)), true_gradients(), 5e-3)


def test_adjoint_gradients_at_levels_between():
    model, _ = learned()
    times = sd.grids.by_time(VP, 3)
    solver = adapters.torchdiffeq("dopri5", 1e-9, 1e-9, adjoint=True)
    ours = sd.RungeKutta(sd.tableaus.RK4, sd.TIME)
    results = []
    for s, grid in ((solver, times), (ours, sd.grids.by_time(VP, 300))):
        x = X[:4].clone().requires_grad_()
        path = sd.solve(model, x, grid, s, observe=lambda progress: progress.x).path
        (path[0 if s is solver else 99] ** 2).sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_lost_gradients_are_refused():
    model, net = learned()
    with pytest.raises(sd.InvalidArgumentError, match="gradients would be lost"):
        sd.solve(model, X, ENDS, adapters.torchdiffeq("scipy_solver"))
    with torch.no_grad():
        assert sd.solve(model, X, ENDS, adapters.torchdiffeq("scipy_solver")).ok.all()
    module = model.net
    found = gradients(sd.ScoreModel(VP, lambda x, t: module(x, t)), net, adapters.torchdiffeq(adjoint=True), ENDS)
    close(found, gradients(model, net, adapters.torchdiffeq(adjoint=True), ENDS), 1e-12)  # through a closure too
    hidden = weakref.ref(module)
    loose = sd.ScoreModel(VP, lambda x, t: hidden()(x, t))
    with pytest.raises(sd.InvalidArgumentError, match="give adjoint_params"):
        sd.solve(loose, X, ENDS, adapters.torchdiffeq(adjoint=True))
    given = adapters.torchdiffeq("dopri5", 1e-9, 1e-9, adjoint=True, adjoint_params=tuple(net.parameters()))
    whole = adapters.torchdiffeq("dopri5", 1e-9, 1e-9)
    close(gradients(loose, net, given, ENDS), gradients(loose, net, whole, ENDS), 1e-6)


def test_reversible_heuns_adjoint_is_exact():
    """The adjoint of the algebraically reversible method is the gradient of what was computed, to rounding."""
    model, net = learned()
    times, noise = sd.grids.by_time(VP, 20), sd.White(sd.noise.seeds(1, 4))
    adjoint = gradients(model, net, adapters.torchsde("reversible_heun", adjoint=True), times, noise)
    close(adjoint, gradients(model, net, adapters.torchsde("reversible_heun"), times, noise), 1e-10)


@pytest.mark.parametrize("name", ["euler", "midpoint"])
def test_stochastic_adjoints_converge_to_autograd(name):
    model, net = learned()
    noise = sd.White(sd.noise.seeds(1, 4))
    gaps = []
    for n in (10, 80):
        times = torch.linspace(1.0, 0.7, n + 1, dtype=F64)
        a, b = (gradients(model, net, adapters.torchsde(name, adjoint=v), times, noise) for v in (False, True))
        gaps.append(max(float((p - q).norm() / p.norm()) for p, q in zip(a, b)))
    assert gaps[1] < 0.15
    assert gaps[1] < gaps[0] / 4


def test_autograd_through_torchsde_is_that_of_euler_maruyama():
    model, net = learned()
    times, noise = sd.grids.by_time(VP, 10), sd.White(sd.noise.seeds(1, 4))
    ours = gradients(model, net, sd.euler_maruyama(), times, noise)
    close(gradients(model, net, adapters.torchsde("euler"), times, noise), ours, 1e-10)


@pytest.mark.parametrize("kind", ["process", "general", "forward"])
def test_a_reverse_sde_is_one_of_torchsdes(kind):
    """Euler's method by hand on the same increments: f, g, noise_type and sde_type are all that torchsde asks for."""
    torchsde = pytest.importorskip("torchsde")
    if kind == "process":
        problem = sd.VP().reverse(sd.Gaussian([0.5, -1.0], std=0.5).score(sd.VP()))
    else:
        matrix = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.4, 0.3]], dtype=F64)
        sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: matrix.expand(len(x), 2, 3))
        problem = sde.as_forward() if kind == "forward" else sde.reverse(lambda x, t: -x)
    x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    up = kind == "forward"
    ts = torch.arange(1, 8, dtype=F64) / 8 if up else -torch.arange(7, 0, -1, dtype=F64) / 8  # exact in float32 too
    noises = (4, 2) if kind == "process" else (4, 3)
    path = torchsde.BrownianInterval(float(ts[0]), float(ts[-1]), size=noises, dtype=F64, entropy=3)
    assert problem.noise_type == ("diagonal" if kind == "process" else "general")
    theirs = torchsde.sdeint(problem, x, ts, bm=path, method="euler", dt=0.125)
    ours = x
    for a, b in zip(ts[:-1], ts[1:]):
        w, t = path(a, b), a if up else -a
        g = problem.diffusion(ours, t)
        kick = (g * w[:, None]).sum(-1) if g.ndim == 3 else g * w
        ours = ours + (problem.drift(ours, t) * (b - a) if up else -problem.drift(ours, t) * (b - a)) + kick
    assert float((theirs[-1] - ours).abs().max()) < 1e-9
