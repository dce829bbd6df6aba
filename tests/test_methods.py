"""What the methods do beyond what every solver is checked for: known grids, starts, noise of the level, moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import F64, mixture

import sdegen as sd
from sdegen.solvers.compose import Wrapper
from sdegen.testing import PROBLEMS, reference, slope
from sdegen.testing.laws import exact_law
from sdegen.testing.problems import by_lam, uneven

VP, EDM = sd.VP(), sd.EDM()
FRAMES = (sd.DATA, sd.NOISE, sd.SIGMA, sd.ANGLE, sd.FLOW, sd.WIENER, sd.TIME)


class Plain(Wrapper):
    """A solver without its `on`, so that it steps as it does outside of a known grid."""

    def __init__(self, solver):
        self.solver = solver

    def step(self, *arguments):
        return self.solver.step(*arguments)


SOLVERS = [
    *(sd.RungeKutta(tableau, frame) for tableau in (sd.tableaus.HEUN, sd.tableaus.RK4) for frame in FRAMES),
    *(
        sd.Multistep(3, frame, eta, correct, pair)
        for frame in FRAMES
        for eta, correct, pair in ((0.0, False, "exact"), (0.7, True, "flat"), (0.0, True, "midpoint"))
    ),
    sd.Multistep(3, sd.DATA(variable=lambda lam: lam), eta=sd.solvers.eta.WindowEta(0.8, 0.1, 2.0), correct=True),
    *(sd.dpm(3), sd.seeds_solver(3), sd.er_sde(), sd.sa_solver(), sd.ddim(), sd.ddim(0.5), sd.ipndm()),
    *(sd.dpmpp_sde(2, singlestep=True), sd.Singlestep((1.0,), (0, 1), sd.NOISE, sd.solvers.eta.ERSDEEta())),
]


@pytest.mark.slow
def test_weights_worked_out_at_once_are_those_of_single_steps():
    x, times = VP.prior(sd.noise.seeds(0, 4), (2,), F64), sd.grids.by_time(VP, 7)
    noise = sd.White(sd.noise.seeds(3, 4))
    for model in (sd.ScoreModel(VP, lambda x, t: 0.3 * x + t[:, None], "v"), mixture(VP)):
        for solver in SOLVERS:
            one = sd.solve(model, x, times, solver, noise=noise).x
            plain = sd.solve(model, x, times, Plain(solver), noise=noise).x
            torch.testing.assert_close(one, plain, rtol=1e-12, atol=1e-12, msg=lambda text, s=solver: f"{s}: {text}")


@pytest.mark.parametrize(
    ("solver", "n", "nfe"),
    [
        (sd.pndm(), 10, 3 * 4 + 7),
        (sd.pndm("heun"), 10, 2 + 9),
        (sd.pndm(), 2, 2 * 4),
        (sd.solvers.Started(sd.Multistep(3, sd.NOISE), sd.RungeKutta(sd.tableaus.HEUN, sd.NOISE), steps=1), 5, 2 + 4),
        (sd.dpm(3), 4, 12),
        (sd.default(), 12, 12),
    ],
    ids=repr,
)
def test_evaluations_are_counted_step_by_step(solver, n, nfe):
    calls = 0

    def net(x, t):
        nonlocal calls
        calls += 1
        return 0.1 * x

    solution = sd.solve(sd.ScoreModel(VP, net, "noise"), torch.ones(2, 3), sd.grids.by_snr(VP, n), solver)
    assert calls == nfe
    assert solution.nfe.tolist() == [nfe, nfe]


def test_a_started_method_has_its_order_without_a_graded_start():
    """From a cold start order 4 shows 2 on this grid (test_solvers); from RK4's steps it shows 4."""
    solver = sd.solvers.Started(sd.Multistep(4, sd.NOISE), sd.RungeKutta(sd.tableaus.RK4, sd.NOISE))
    x, exact = reference(VP)
    errors = [float((sd.solve(mixture(VP), x, by_lam(VP, n), solver).x - exact).abs().mean()) for n in (200, 400)]
    assert abs(slope(errors) - 4) < 0.5


@pytest.mark.parametrize("n", [1, 10, 11, 39, 40, 100])
def test_the_default_is_the_method_for_its_number_of_steps(n):
    solver = sd.default()
    x, times = EDM.prior(sd.noise.seeds(0, 3), (2,), F64), sd.grids.angular(EDM, n)
    chosen = sd.Multistep(3 if n <= 10 else 4, solver.frame, correct=n >= 40)
    assert solver.for_steps(n) == chosen
    assert torch.equal(sd.solve(mixture(EDM), x, times, solver).x, sd.solve(mixture(EDM), x, times, chosen).x)


@pytest.mark.parametrize(
    "eta", [sd.solvers.eta.ERSDEEta(), sd.solvers.eta.ERSDEEta(1.0, 0.5), sd.solvers.eta.DDIMEta(0.6)], ids=repr
)
def test_a_step_has_the_mean_square_of_eta(eta):
    """`1 + eta^2` of a step is the mean of its function over the step, in lam; additive over parts of a step."""
    lams = torch.linspace(-2.5, 2.0, 7, dtype=F64)
    ends = [EDM.at(lam) for lam in lams]
    parts = sum(float((1 + eta(a, b) ** 2) * (b.lam - a.lam)) for a, b in zip(ends, ends[1:]))
    whole = float((1 + eta(ends[0], ends[-1]) ** 2) * 4.5)
    if isinstance(eta, sd.solvers.eta.DDIMEta):  # a function of the step, not of the level
        assert abs(parts - whole) > 1e-3
    else:
        assert abs(parts - whole) < 1e-12
    if isinstance(eta, sd.solvers.eta.ERSDEEta):
        fine = torch.linspace(-2.5, 2.0, 4001, dtype=F64)
        s = torch.exp(-fine) ** eta.power
        gain = 1 + eta.power * s * s.exp() / (s.exp() + eta.shift)
        assert abs(float(torch.trapezoid(gain, fine)) - whole) < 1e-5
        torch.testing.assert_close(eta.gain(fine), gain)


def test_a_window_is_open_in_steps_whose_middle_is_inside():
    eta, levels = sd.solvers.eta.WindowEta(0.8, 0.2, 3.0), [EDM.level(s) for s in (4.0, 3.0, 2.0, 0.25, 0.17, 0.1)]
    seen = [float(eta(now, next)) for now, next in zip(levels, levels[1:])]
    assert seen == [0.0, 0.8, 0.8, 0.8, 0.0]


def test_an_eta_written_for_one_step_is_asked_step_by_step():
    """The same numbers as one that takes all steps at once."""
    model, noise = mixture(VP), sd.White(sd.noise.seeds(0, 3))
    x, times = VP.prior(sd.noise.seeds(0, 3), (2,), F64), sd.grids.by_time(VP, 6)
    one = sd.Multistep(2, eta=lambda now, next: 1.0 if float(now.t) > 0.5 else 0.2)
    all_at_once = sd.Multistep(2, eta=lambda now, next: 0.2 + 0.8 * (now.t > 0.5).double())
    found = [sd.solve(model, x, times, solver, noise=noise).x for solver in (one, all_at_once)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_er_sde_in_closed_form():
    """Cui et al. 2023: for one datum and `r = phi'/phi`, `y_next = r y + (1 - r) data`, noise of `s'^2 - (s r)^2`."""
    now, next = EDM.level(3.0), EDM.level(1.2)
    model = sd.GaussianMixture.empirical(torch.tensor([[0.4, -1.0]], dtype=F64)).score(EDM)
    x, white = torch.tensor([[2.0, 1.0]], dtype=F64), sd.White(sd.noise.seeds(0, 1))
    step = sd.er_sde(1).step(model, x, now, next, sd.er_sde(1).init(model, x, now), white).x

    def phi(s):
        return s * (math.exp(s**0.3) + 10)

    r = phi(1.2) / phi(3.0)
    mean = r * x + (1 - r) * torch.tensor([[0.4, -1.0]], dtype=F64)
    torch.testing.assert_close(step, mean + math.sqrt(1.2**2 - 9 * r * r) * white(x, now, next), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["widths", "thin", "turned"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_frame_of_the_moments_is_exact_on_gaussian_data(name, eta, steps):
    """Any Gaussian, every eta, flow and law, in one step."""
    data = PROBLEMS[name].data
    widths, basis = torch.linalg.eigh(data.cov())
    frame = sd.solvers.moment_frame.Moments(None, data.mean(), basis[:, 1:], widths[1:].sqrt(), float(widths[0].sqrt()))
    times = by_lam(VP, steps)
    law = exact_law(sd.Multistep(2, frame, eta), VP, data, times)
    assert law.error(data.marginal(VP.level(times[-1]))) < 1e-12


def test_the_frame_of_the_moments_has_the_order_of_the_method_on_other_data():
    x, exact = reference(VP)
    frame = sd.solvers.moment_frame.Moments.of(PROBLEMS["three"].data.sample(100), rank=1)
    for solver in (sd.Multistep(2, frame), sd.Multistep(2, frame, correct=True)):
        errors = [float((sd.solve(mixture(VP), x, uneven(VP, n), solver).x - exact).abs().mean()) for n in (80, 160)]
        assert abs(slope(errors) - solver.convergence) < 0.25


def test_moments_of_samples():
    data = PROBLEMS["turned"].data
    found = sd.solvers.moment_frame.Moments.of(data.sample(20_000), rank=2)
    torch.testing.assert_close(
        found.stds.sort().values, torch.linalg.eigvalsh(data.cov())[1:].sqrt(), rtol=0.03, atol=0
    )
    assert abs(found.rest - 1e-2) < 1e-3
    with pytest.raises(sd.InvalidArgumentError, match="samples show at most"):
        sd.solvers.moment_frame.Moments.of(data.sample(3), rank=3)
    with pytest.raises(sd.InvalidArgumentError, match="orthonormal"):
        sd.solvers.moment_frame.Moments(None, torch.zeros(2), torch.ones(2, 1), torch.ones(1))
    with pytest.raises(sd.InvalidArgumentError, match="several: use"):
        sd.RungeKutta(sd.tableaus.HEUN, found)


def geometric(c=0.8, eta=1.0):
    """`dx = c x dw` forward, with a score that makes the reverse drift linear, so that its moments are known."""
    sde = sd.SDE.from_functions(lambda x, t: 0.3 * x, lambda x, t: c * x, t_min=0.0)
    return sde, sde.reverse(lambda x, t: -1.1 / x, eta)


def moments_of_a_step(solver, reverse, now, next, count=40):
    """E R and E R^2 of one step from x = 1, by Gauss-Hermite over its normal."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(count)
    z = torch.tensor(nodes)[:, None]
    x, levels = torch.ones(count, 1, dtype=F64), [reverse.level(torch.tensor(t, dtype=F64)) for t in (now, next)]
    step = solver.step(reverse, x, *levels, solver.init(reverse, x, levels[0]), lambda x, a, b, tag=0: z)
    w = torch.tensor(masses / masses.sum())[:, None]
    return float((w * step.x).sum()), float((w * step.x**2).sum())


@pytest.mark.parametrize(
    ("solver", "order"), [(sd.euler_maruyama(), 1), (sd.milstein(), 1), (sd.stochastic_runge_kutta(), 2)], ids=repr
)
def test_weak_order_where_the_noise_depends_on_x(solver, order):
    """Moments of a geometric Brownian motion, computed: x_n is a product of independent steps."""
    _, reverse = geometric()
    rate = -(0.3 - (2 * 0.64 - 1.1 * 0.64))  # drift for time running down, per unit of x
    errors = []
    for n in (20, 40, 80):
        first, second = moments_of_a_step(solver, reverse, 1.0, 1.0 - 1 / n)
        errors.append(abs(first**n - math.exp(rate)) + abs(second**n - math.exp(2 * rate + 0.64)))
    assert abs(slope(errors) - order) < 0.15


@pytest.mark.parametrize(("solver", "order"), [(sd.euler_maruyama(), 0.5), (sd.milstein(), 1.0)], ids=repr)
def test_strong_order_where_the_noise_depends_on_x(solver, order):
    """Against the closed form on the same path; the errors' ratio, of 4,000 paths, spreads by 5 %."""
    _, reverse = geometric()
    rate, fine, rows = -(0.3 - (2 * 0.64 - 1.1 * 0.64)), 256, 4000
    z = sd.noise.normals(sd.noise.seeds(1, rows), (fine,), (7, 0, 0, 0), dtype=F64)
    exact = torch.exp(rate - 0.32 + 0.8 * z.sum(1) / math.sqrt(fine))
    errors = []
    for n in (64, 256):
        parts = z.reshape(rows, n, fine // n).sum(2) / math.sqrt(fine // n)
        x = torch.ones(rows, 1, dtype=F64)
        for k in range(n):
            levels = [reverse.level(torch.tensor(1 - j / n, dtype=F64)) for j in (k, k + 1)]
            x = solver.step(reverse, x, *levels, (), lambda x, a, b, tag=0, k=k, parts=parts: parts[:, k : k + 1]).x
        errors.append(float((x[:, 0] - exact).square().mean().sqrt()))
    assert abs(slope(errors, 4.0) - order) < 0.12


def test_matrix_noise_of_weak_order_two():
    """Two driving noises that do not commute: second moments against the linear equation they obey.

    `dx = sum_j B_j x dw_j` backwards in time, whose `E x x^T` solves `dM = A M + M A^T + sum_j B_j M B_j^T`; a step is
    quadratic in its normals, so a rule exact for polynomials of degree 5 in them and for the two signs is exact.
    """
    first, second = (
        torch.tensor([[0.0, 0.5], [0.2, 0.0]], dtype=F64),
        torch.tensor([[0.4, 0.0], [0.1, -0.3]], dtype=F64),
    )
    drift = torch.tensor([[-0.2, 0.1], [0.0, 0.1]], dtype=F64)

    def g(x, t):
        return torch.stack([x @ first.T, x @ second.T], -1)

    sde = sd.SDE.from_functions(lambda x, t: torch.zeros_like(x), g, t_min=0.0)
    reverse = sde.reverse(lambda x, t: torch.zeros_like(x), 1.0)
    reverse = type("Linear", (type(reverse),), {"drift": lambda self, x, t: x @ drift.T})(sde, reverse.score, 1.0)
    a = torch.kron(-drift, torch.eye(2, dtype=F64)) + torch.kron(torch.eye(2, dtype=F64), -drift)
    a = a + torch.kron(first, first) + torch.kron(second, second)
    start = torch.tensor([1.0, -0.5], dtype=F64)
    exact = torch.linalg.matrix_exp(a) @ torch.kron(start, start)
    nodes, masses = np.polynomial.hermite_e.hermegauss(4)
    masses = masses / masses.sum()
    pairs = [(i, j, s) for i in range(4) for j in range(4) for s in (1.0, -1.0)]
    w = torch.tensor([masses[i] * masses[j] / 2 for i, j, _ in pairs])
    z = torch.tensor([[nodes[i], nodes[j]] for i, j, _ in pairs])
    signs = torch.tensor([s for *_, s in pairs])[:, None, None].expand(-1, 2, 2)
    errors = []
    for n in (10, 20, 40):
        levels = [reverse.level(torch.tensor(t, dtype=F64)) for t in (1.0, 1 - 1 / n)]
        columns = []
        for basis in torch.eye(2, dtype=F64):
            x = basis.expand(len(pairs), 2).clone()
            draw = lambda x, a, b, tag=0: (signs if tag else z).to(x.dtype)  # noqa: E731
            columns.append(sd.stochastic_runge_kutta().step(reverse, x, *levels, (), draw).x)
        response = torch.stack(columns, -1)  # x_next = response x
        second_moment = torch.einsum("n,nij,nkl->ikjl", w, response, response).reshape(4, 4)
        errors.append(float((torch.linalg.matrix_power(second_moment, n) @ torch.kron(start, start) - exact).norm()))
    assert abs(slope(errors) - 2) < 0.1


def test_milstein_refuses_matrix_noise():
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: x.new_ones(*x.shape, 3))
    with pytest.raises(sd.InvalidArgumentError, match="diagonal noise"):
        sd.solve(
            sde.reverse(lambda x, t: -x),
            torch.ones(2, 2),
            [1.0, 0.5],
            sd.milstein(),
            noise=sd.White(sd.noise.seeds(0, 2)),
        )


@pytest.mark.parametrize("amount", [1.0, 10.0])
def test_churn_keeps_the_law_of_an_exact_solver(amount):
    """A solver without error between the kicks: what churn adds is exactly the noise of the level that it goes to."""
    data = sd.Gaussian([0.0], std=0.7)
    solver = sd.solvers.Churn(sd.Multistep(1, sd.WIENER(sigma_data=0.7)), amount)
    times = sd.grids.karras(EDM, 8)
    assert exact_law(solver, EDM, data, times).error(data.marginal(EDM.level(times[-1]))) < 1e-10
    wrong = sd.solvers.Churn(sd.Multistep(1, sd.WIENER(sigma_data=0.7)), amount, inflate=1.01)
    assert exact_law(wrong, EDM, data, times).error(data.marginal(EDM.level(times[-1]))) > 1e-4
    assert wrong.convergence is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.Multistep(2, correct=4),
        lambda: sd.Multistep(1, correct=1),
        lambda: sd.Multistep(2, pair="other"),
        lambda: sd.Multistep(2, sd.DATA(variable=lambda lam: lam), even=True),
        lambda: sd.Singlestep((0.5, 0.2), (1,)),
        lambda: sd.Singlestep((0.5,), (2,)),
        lambda: sd.Singlestep((1.5,), (1,)),
        lambda: sd.solvers.Churn(sd.dpmpp(2)),
        lambda: sd.solvers.Churn(amount=-1.0),
        lambda: sd.solvers.Churn(low=2.0, high=1.0),
        lambda: sd.solvers.Ancestral(sd.Singlestep((1.0,), (0, 1))),
        lambda: sd.solvers.Ancestral(eta=1.5),
        lambda: sd.solvers.Ancestral(sd.Singlestep((0.5,), (1,), sd.TIME)),
        lambda: sd.solvers.ByLength(((1, sd.Multistep(2)), (5, sd.Multistep(2, sd.NOISE)))),
        lambda: sd.solvers.Started(sd.Multistep(2, sd.DATA), sd.heun()),
        lambda: sd.solvers.Started(sd.Multistep(2, sd.SIGMA, correct=True)),
        lambda: sd.solvers.Started(steps=0),
        lambda: sd.solvers.ByLength(((2, sd.Multistep(2)),)),
        lambda: sd.solvers.eta.WindowEta(low=1.0, high=0.5),
        lambda: sd.solvers.eta.ERSDEEta(power=0.0),
        lambda: sd.pndm("euler"),
        lambda: sd.unipc(2, "bh3"),
        lambda: sd.edm(3),
        lambda: sd.seeds_solver(4),
    ],
)
def test_impossible_options_are_errors(make):
    with pytest.raises(sd.InvalidArgumentError):
        make()


def solved(model, solver, n=6, x=None):
    x = VP.prior(sd.noise.seeds(0, 4), (2,), F64) if x is None else x
    return sd.solve(model, x, sd.grids.by_snr(VP, n), solver, noise=sd.White(sd.noise.seeds(3, 4))).x


@pytest.mark.parametrize("solver", [sd.dpmpp(), sd.ddim(), sd.heun(), sd.dpm(2)], ids=repr)
def test_a_wrapper_is_never_taken_for_the_model_inside(solver):
    """A user's guidance that keeps its ScoreModel under a name that the library uses as well."""

    class Guided(sd.guidance.ModelMap):
        def __init__(self, model):
            super().__init__(model)
            self.model = self._model = model

        def __call__(self, x, level, want="score"):
            return 1.5 * self.model(x, level, want)

    class Stronger(sd.ScoreModel):
        def __call__(self, x, level, want="score"):
            return 1.5 * super().__call__(x, level, want)

    net = sd.ScoreModel(VP, lambda x, t: 0.2 * x, "noise")
    for guided in (Guided(net), Stronger(VP, lambda x, t: 0.2 * x, "noise")):
        torch.testing.assert_close(solved(guided, solver), solved(guided, Plain(solver)), rtol=1e-11, atol=1e-11)
        assert not torch.allclose(solved(guided, solver), solved(net, solver))


@pytest.mark.parametrize(
    ("solver", "predicts"),
    [(sd.lms(3), "noise"), (sd.dpmpp(3), "data"), (sd.unipc(2), "data"), (sd.pndm(), "noise"), (sd.heun(), "noise")],
    ids=repr,
)
def test_a_network_may_reuse_its_output(solver, predicts):
    """As compiled and captured networks do: the memory of one output is that of the next."""
    buffer = torch.empty(4, 2, dtype=F64)

    def reusing(x, t):
        return torch.mul(x, 0.3, out=buffer)

    plain = solved(sd.ScoreModel(VP, lambda x, t: 0.3 * x, predicts), solver)
    assert torch.equal(solved(sd.ScoreModel(VP, reusing, predicts), solver), plain)


@pytest.mark.parametrize("frame", [sd.DATA, sd.WIENER(sigma_data=0.5)], ids=repr)
def test_gradients_reach_a_learned_eta(frame):
    strength = torch.tensor(0.5, dtype=F64, requires_grad=True)
    model = sd.ScoreModel(VP, lambda x, t: 0.3 * x, "noise")
    for solver in (sd.Multistep(2, frame, eta=lambda now, next: strength * torch.ones_like(now.t)),):
        (found,) = torch.autograd.grad(solved(model, solver).sum(), strength)
        (direct,) = torch.autograd.grad(solved(model, Plain(solver)).sum(), strength)
        torch.testing.assert_close(found, direct)
        assert float(found.abs()) > 1e-3


@pytest.mark.parametrize(
    "solver", [sd.default(), sd.pndm(), sd.pndm("heun"), sd.unipc(3), sd.dpm(3), sd.dopri5()], ids=repr
)
@pytest.mark.parametrize("n", [4, 12, 45])
def test_steps_by_hand_are_the_method(solver, n):
    """`step` with its carry is what `solve` takes, also where the first steps, or all, depend on the grid."""
    model = sd.ScoreModel(VP, lambda x, t: 0.3 * x + t[:, None], "v")
    x, times = VP.prior(sd.noise.seeds(0, 4), (2,), F64), solver.grid(VP, n)
    levels = [VP.level(t) for t in times]
    y, carry = x, solver.init(model, x, levels[0])
    for now, next in zip(levels, levels[1:]):
        y, carry = solver.step(model, y, now, next, carry, None)[:2]
    torch.testing.assert_close(y, sd.solve(model, x, times, solver).x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", [sd.ddpm(), sd.sa_solver(), sd.seeds_solver(), sd.adams(eta=1.0)], ids=repr)
def test_a_step_by_hand_does_not_leave_its_noise_out(solver):
    model, x, (now, next) = mixture(VP), torch.ones(2, 2, dtype=F64), (VP.level(0.5), VP.level(0.4))
    with pytest.raises(sd.InvalidArgumentError, match="draws noise"):
        solver.step(model, x, now, next, solver.init(model, x, now), None)


@pytest.mark.parametrize("grad", [True, False])
def test_an_ensemble_of_networks_by_vmap(grad):
    weights = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) / 4

    def run(w):
        return solved(sd.ScoreModel(VP, lambda x, t: x @ w, "noise"), sd.unipc(2))

    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(torch.func.vmap(run)(weights), torch.stack([run(w) for w in weights]))


@pytest.mark.parametrize("eta", [sd.solvers.eta.ERSDEEta(), sd.solvers.eta.WindowEta(0.8, 0.2, 1.0), 0.7], ids=repr)
@pytest.mark.parametrize("make", [lambda f, e: sd.Multistep(2, f, e), lambda f, e: sd.Singlestep((0.5,), (1,), f, e)])
def test_the_law_of_a_gaussian_is_exact_for_every_eta(make, eta):
    data, solver = sd.Gaussian([0.0], std=0.5), make(sd.WIENER(sigma_data=0.5), eta)
    assert "gaussian" in solver.exact
    for n in (1, 4):
        times = sd.grids.by_time(VP, n, start=0.8, end=0.2)
        assert exact_law(solver, VP, data, times).error(data.marginal(VP.level(0.2))) < 1e-10


@pytest.mark.parametrize("solver", [sd.Singlestep((1.0,), (0, 1), eta=1.0), sd.seeds_solver(3)], ids=repr)
def test_noise_is_drawn_over_parts_of_a_step_that_have_a_length(solver):
    asked = []

    class Source:
        seeds = torch.zeros(4, dtype=torch.int64)

        def __call__(self, x, now, next, tag=0):
            asked.append((float(now.t), float(next.t)))
            return torch.zeros_like(x)

    x = VP.prior(sd.noise.seeds(0, 4), (2,), F64)
    sd.solve(mixture(VP), x, sd.grids.by_snr(VP, 3), solver, noise=Source())
    assert all(now > next for now, next in asked)
    assert all(a[1] == b[0] for a, b in zip(asked, asked[1:]))
