"""Linear SDEs with matrices: transitions, marginals and scores against other ways to compute them; sampling."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import sdegen as sd
from sdegen import noise as noises
from sdegen import testing
from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.noise.brownian import Brownian
from sdegen.processes.linear import CLD, OU, LinearSDE

F64 = torch.float64
TURN = [[-0.3, 2.0, 0.0], [-2.0, -0.3, 0.5], [0.0, 0.1, -1.5]]
PUSH = [[1.0, 0.0], [0.4, 0.3], [0.0, 0.7]]
SDES = {
    "full": LinearSDE(TURN, PUSH, t_max=2.0),
    "clocked": LinearSDE(TURN, PUSH, lambda t: 0.2 + 3 * t * t, t_min=0.1, t_max=1.5),
    "CLD": CLD(),
    "CLD, clocked": CLD(beta=lambda t: 1 + 4 * t, mass=0.5, friction=1.0),
    "OU": OU(0.7, 1.3, t_max=3.0),
    "grows": LinearSDE([[0.5, 1.0], [0.0, 0.2]], [[1.0], [2.0]]),
    "stiff": LinearSDE([[-300.0, 0.0], [1.0, -0.1]], [[1.0, 0.0], [0.0, 1.0]], t_max=5.0),
}
EACH = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)


def at(value):
    return torch.tensor(value, dtype=F64)


def mixture(size, kind="covs"):
    means = noises.normals(noises.seeds(1, 2), (size,), (5, 0, 0, 0), dtype=F64)
    if kind == "stds":
        return sd.GaussianMixture(means, stds=[0.3, 0.6], weights=[1.0, 2.0])
    root = noises.normals(noises.seeds(2, 2), (size, size), (5, 0, 0, 0), dtype=F64)
    return sd.GaussianMixture(means, covs=root @ root.mT * 0.2 + 0.05 * torch.eye(size), weights=[1.0, 2.0])


def rk4(field, state, start, end, steps):
    """A tight solve of an ODE on a pair of tensors."""
    h = (end - start) / steps
    for k in range(steps):
        t = start + k * h
        slopes = [field(state, t)]
        for c in (0.5, 0.5, 1.0):
            slopes.append(field([s + c * h * d for s, d in zip(state, slopes[-1])], t + c * h))
        a, b, c, d = slopes
        state = [s + h / 6 * (p + 2 * q + 2 * r + u) for s, p, q, r, u in zip(state, a, b, c, d)]
    return state


@EACH
def test_moments_solve_their_equations(sde):
    """`dm/dt = beta A m`, `dP/dt = beta (A P + P A^T + B B^T)`, by RK4 with errors far below the bound."""
    data = mixture(len(sde.A))
    start, end = sde.t_min, sde.t_min + 0.6 * (sde.t_max - sde.t_min)

    def field(state, t):
        m, P = state
        rate = sde.rate(at(t))
        return rate * sde.A @ m, rate * (sde.A @ P + P @ sde.A.mT + sde.B @ sde.B.mT)

    m, P = rk4(field, [data.mean()[:, None], data.cov()], start, end, 3000)
    law = sde.marginal(data, end)
    assert (law.mean() - m[:, 0]).abs().max() < 1e-10 * (1 + m.abs().max())
    assert (law.cov() - P).abs().max() < 1e-10 * (1 + P.abs().max())
    assert torch.allclose(law.weights, data.weights)


@EACH
def test_transitions_compose_and_agree_with_van_loan(sde):
    a, b, c = (sde.t_min + share * (sde.t_max - sde.t_min) for share in (0.1, 0.35, 0.6))
    one, two, whole = sde.transition(a, b), sde.transition(b, c), sde.transition(a, c)
    torch.testing.assert_close(two[0] @ one[0], whole[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(two[0] @ one[1] @ two[0].mT + two[1], whole[1], rtol=1e-11, atol=1e-12)
    # Van Loan's block: for a short step, where its growing half is tame; torch's exponential is off by up to 3e-13
    h = float(sde.clock(at(sde.t_min + 1e-3), at(sde.t_min)))
    size = len(sde.A)
    block = torch.zeros(2 * size, 2 * size, dtype=F64)
    block[:size, :size], block[:size, size:], block[size:, size:] = -sde.A, sde.B @ sde.B.mT, sde.A.mT
    big = torch.linalg.matrix_exp(block * h)
    step, spread = sde.transition(sde.t_min, sde.t_min + 1e-3)
    torch.testing.assert_close(step, big[size:, size:].mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(spread, big[size:, size:].mT @ big[:size, size:], rtol=1e-9, atol=1e-12)
    rows = sde.transition(at([a, a, b]), at([b, c, c]))
    for row, (step, spread) in enumerate((one, whole, two)):
        torch.testing.assert_close(rows[0][row], step, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(rows[1][row], spread, rtol=1e-13, atol=1e-14)


def test_short_steps_keep_the_digits_of_small_variances():
    """In CLD positions get noise only through velocities: `2 Gamma beta^3 h^3 / (3 M^2)` for short steps."""
    sde = CLD()
    for h in (1e-3, 1e-6, 1e-9):
        _, spread = sde.transition(0.0, h)
        b = 4.0 * h
        assert abs(float(spread[0, 0]) / (2 * b**3 / (3 * 0.25**2)) - 1) < 20 * h
        assert abs(float(spread[0, 1]) / (b**2 / 0.25) - 1) < 20 * h


@EACH
def test_the_stationary_law(sde):
    P = sde.stationary
    if bool((torch.linalg.eigvals(sde.A).real >= 0).any()):
        assert P is None
        with pytest.raises(InvalidArgumentError, match="no stationary law"):
            sde.prior(noises.seeds(0, 2), (2,))
        return
    noise = sde.B @ sde.B.mT
    assert (sde.A @ P + P @ sde.A.mT + noise).abs().max() < 1e-11 * noise.abs().max()
    step, spread = sde.transition(sde.t_min, sde.t_max)
    torch.testing.assert_close(step @ P @ step.mT + spread, P, rtol=1e-11, atol=1e-12)


def test_known_stationary_laws():
    torch.testing.assert_close(CLD(mass=0.5).stationary, torch.diag(at([1.0, 0.5])))
    torch.testing.assert_close(OU(0.7, 1.3).stationary, at([[1.3**2 / 1.4]]))


def test_priors():
    """Moments of 40,000 samples; 6.5 standard deviations, a false-positive rate of 8e-11 for each of 20 numbers."""
    n = 40_000
    grows = LinearSDE([[0.5, 1.0], [0.0, 0.2]], [[1.0], [2.0]], data_cov=[[1.0, 0.2], [0.2, 0.5]])
    law = grows.marginal(sd.Gaussian([0.0, 0.0], cov=[[1.0, 0.2], [0.2, 0.5]]), 1.0)
    for sde, cov in ((CLD(), torch.diag(at([1.0, 0.25]))), (grows, law.cov())):
        x = sde.prior(noises.seeds(3, n), (2, 1), torch.float64)[..., 0]
        size = cov.diagonal().sqrt()
        assert ((x.mean(0) / size).abs() * math.sqrt(n) < 6.5).all()
        gap = (x.mT @ x / n - cov) / (size[:, None] * size)
        assert (gap.abs() * math.sqrt(n / 2) < 6.5).all()
        assert torch.equal(sde.prior(noises.seeds(3, n)[5:7], (2, 1), torch.float64)[..., 0], x[5:7])


@EACH
@pytest.mark.parametrize("kind", ["covs", "stds"])
def test_the_score_is_the_gradient_of_the_log_density(sde, kind):
    n = 2 if kind == "stds" else 1
    data = mixture(len(sde.A) * n, kind)
    score, x = data.score(sde), 1.5 * noises.normals(noises.seeds(4, 6), (len(sde.A) * n,), (5, 0, 0, 0), dtype=F64)
    times = [sde.t_min + share * (sde.t_max - sde.t_min) for share in (0.0, 0.01, 0.3, 1.0)]
    for t in times:
        law, leaf = sde.marginal(data, t), x.clone().requires_grad_()
        log_prob = law.log_prob(leaf)
        exact = torch.autograd.grad(log_prob.sum(), leaf)[0]
        found = score(x, at(t))
        assert (found - exact).abs().max() < 1e-9 * (1 + exact.abs().max())
        torch.testing.assert_close(score.log_prob(x, at(t)), log_prob.detach(), rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(score(x[2:3], at(t)), found[2:3], rtol=1e-13, atol=1e-13)
    rows = score(x[:4], at(times))
    for i, t in enumerate(times):
        torch.testing.assert_close(rows[i : i + 1], score(x[i : i + 1], at(t)), rtol=1e-9, atol=1e-11)
    assert score(x.float(), at(times[2])).dtype == torch.float32


def test_the_suite_of_sdes():
    """The forward and the reverse Fokker-Planck equations among others, at the exact density."""
    sde = SDES["CLD, clocked"]
    data = sde.lift(sd.GaussianMixture([[-1.0, 0.5], [0.7, -0.4]], stds=0.3))
    testing.check_sde(sde, shape=(2, 2), log_prob=data.score(sde).log_prob)
    mixed = LinearSDE([[-1.0, 2.0], [-0.5, -0.2]], [[1.0, 0.0], [0.4, 0.3]], lambda t: 1 + t)
    testing.check_sde(mixed, shape=(2,), log_prob=mixture(2).score(mixed).log_prob)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_positions_are_lifted(kind):
    sde, means = CLD(gamma=0.1, mass=0.5), [[-1.0, 0.5], [0.7, -0.4]]
    given = {
        "isotropic": dict(stds=0.3),
        "diagonal": dict(stds=[[0.1, 0.2], [0.3, 0.4]]),
        "full": dict(covs=[[[1.0, 0.5], [0.5, 0.6]], [[0.2, 0.0], [0.0, 0.1]]]),
    }[kind]
    data = sd.GaussianMixture(means, weights=[0.3, 0.7], **given)
    lifted = sde.lift(data)
    assert lifted.shape == (2, 2)
    torch.testing.assert_close(lifted.mean(), torch.stack([data.mean(), torch.zeros(2, dtype=F64)]))
    cov = torch.block_diag(data.cov(), 0.05 * torch.eye(2, dtype=F64))
    torch.testing.assert_close(lifted.cov(), cov)
    x = noises.normals(noises.seeds(0, 5), (2, 2), (5, 0, 0, 0), dtype=F64)
    velocity = -x[:, 1].square().sum(1) / 0.1 - math.log(2 * math.pi * 0.05)
    torch.testing.assert_close(lifted.log_prob(x), data.log_prob(x[:, 0]) + velocity)


def test_exact_forward_transitions():
    """Mean and covariance of the path by unit normals: those of the marginals, through any times between."""
    sde, times = SDES["clocked"], [0.1, 0.2, 0.9, 1.5]

    def noise(x, now, next, tag=0):
        k = times.index(pytest.approx(float(now.t)))
        z = torch.zeros_like(x)
        z[1 + 3 * k : 4 + 3 * k] = torch.eye(3, dtype=F64)
        return z

    x = at([0.4, -1.0, 0.3])
    path = sd.forward(sde, x.expand(10, 3), times, noise=noise)
    for k, t in enumerate(times[1:], 1):
        law = sde.marginal(sd.Gaussian(x, std=0.0), t)
        moved = path[k, 1:] - path[k, 0]
        torch.testing.assert_close(path[k, 0], law.mean(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moved.mT @ moved, law.cov(), rtol=1e-10, atol=1e-12)


def law_of(model, x, times, solver, noise=None):
    return sd.solve(model, x, times, solver, noise=noise).x


def distance(a, b):
    """The Kolmogorov-Smirnov distance of two samples, one dimension each."""
    both = torch.cat([a, b]).sort().values
    cdf = [torch.searchsorted(v.sort().values, both, right=True) / len(v) for v in (a, b)]
    return float((cdf[0] - cdf[1]).abs().max())


N = 20_000
KS = 2 * math.sqrt(math.log(4e9) / (2 * N))
"""Two samples of N of one law are farther apart in less than 1e-9 of runs (Massart's bound, half of it for each)."""
METHODS = {
    "euler_maruyama": (sd.euler_maruyama(), 1.0, 400),
    "stochastic_heun": (sd.stochastic_heun(), 1.0, 100),
    "stochastic_runge_kutta": (sd.stochastic_runge_kutta(), 1.0, 100),
    "probability flow": (sd.RungeKutta(sd.tableaus.RK4, sd.TIME), 0.0, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["CLD", "clocked"])
def test_reverse_solvers_sample_the_mixture(name, kind):
    """Kolmogorov-Smirnov distances to exact samples, element by element; 0.005 more for the steps' own bias.

    False positives below 1e-9 each. A shift by 0.2 standard deviations moves the distribution function by 0.079 where
    the bound is 0.052, four standard deviations of the distance more.
    """
    solver, eta, steps = METHODS[name]
    sde = SDES[kind]
    data = sde.lift(sd.GaussianMixture([[-1.5], [1.0]], stds=0.4, weights=[1.0, 2.0])) if kind == "CLD" else mixture(3)
    first, last = sde.t_max, sde.t_min + 1e-3
    x = sde.marginal(data, first).sample(N, seed=1).reshape(N, *data.shape)
    model = sde.reverse(data.score(sde), eta)
    times = sde.t_min + torch.linspace(1, 0, steps + 1, dtype=F64) ** 2 * (first - last) + 1e-3
    times[0] = first
    out = law_of(model, x, times, solver, sd.White(noises.seeds(2, N))).flatten(1)
    exact = sde.marginal(data, float(times[-1])).sample(N, seed=3).flatten(1)
    for direction in torch.eye(out.shape[1], dtype=F64):
        assert distance(out @ direction, exact @ direction) < KS + 0.005


def test_euler_maruyama_converges_to_the_exact_law():
    """Without sampling: on Gaussian data it is affine, and its moments, by unit normals, converge at order 1."""
    sde, data = SDES["CLD"], SDES["CLD"].lift(sd.Gaussian([0.3], std=0.5))
    law, gaps = sde.marginal(data, 1.0), []
    for steps in (200, 400):
        times = torch.linspace(1.0, 0.0, steps + 1, dtype=F64)
        known = {float(t): k for k, t in enumerate(times)}
        x = law.mean().flatten().repeat(3 + 2 * steps, 1)
        x[1:3] += torch.linalg.cholesky(law.cov()).mT

        def noise(x, now, next, tag=0, known=known):
            z, k = torch.zeros_like(x).flatten(1), 3 + 2 * known[float(now.t)]
            z[k : k + 2] = torch.eye(2, dtype=F64)
            return z.reshape(x.shape)

        model = sde.reverse(data.score(sde))
        out = law_of(model, x.reshape(-1, 2, 1), times, sd.euler_maruyama(), noise).flatten(1)
        moved = out[1:] - out[0]
        away = (out[0] - data.mean().flatten()).norm() + (moved.mT @ moved - data.cov()).norm()
        gaps.append(float(away))
    assert gaps[1] < 0.05
    assert 1.8 < gaps[0] / gaps[1] < 2.3


class Path:
    """One Brownian path of ours as torchsde's `bm`, in its time -t for the reverse SDE."""

    def __init__(self, noise, sde, x):
        self.noise, self.sde, self.x = noise, sde, x
        self.shape, self.dtype, self.device, self.levy_area_approximation = x.shape, x.dtype, x.device, "none"

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        now, next = self.sde.level(-ta.to(F64)), self.sde.level(-tb.to(F64))
        return self.noise(self.x, now, next) * (tb - ta).sqrt()


def test_torchsde_agrees_step_by_step():
    """Euler-Maruyama of torchsde on the same reverse SDE and the same increments: to rounding."""
    torchsde = pytest.importorskip("torchsde")
    sde = SDES["CLD"]
    data = sde.lift(sd.GaussianMixture([[-1.5], [1.0]], stds=0.4))
    model = sde.reverse(data.score(sde))
    x = sde.prior(noises.seeds(0, 5), (2, 1), F64)
    noise = Brownian(noises.seeds(1, 5), sde)

    class Theirs:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return -model.drift(y.reshape(-1, 2, 1), -t).flatten(1)

        def g(self, t, y):
            return model.diffusion(y.reshape(-1, 2, 1), -t).flatten(1)

    steps, flat = 50, x.flatten(1)
    bm = Path(lambda x, now, next: noise(x, now, next), sde, flat)
    theirs = torchsde.sdeint(Theirs(), flat, at([-1.0, -0.02]), bm=bm, method="euler", dt=0.98 / steps)[-1]
    times = -torch.linspace(-1.0, -0.02, steps + 1, dtype=F64)
    ours = law_of(model, x, times, sd.euler_maruyama(), noise)
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-9, atol=1e-9)


def test_copies_and_precision():
    sde = SDES["CLD"]
    data = sde.lift(sd.GaussianMixture([[-1.0, 0.5]], stds=0.3))
    x = noises.normals(noises.seeds(0, 3), (2, 2), (5, 0, 0, 0), dtype=torch.float32)
    score = data.score(sde)
    for twin in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert torch.equal(twin(x, at(0.3)), score(x, at(0.3)))
    exact = sde.reverse(score).drift(x.double(), at(0.3))
    assert (sde.reverse(score).drift(x, at(0.3)).double() - exact).abs().max() < 1e-4
    noise = sd.White(noises.seeds(0, 3))
    out = sd.solve(sde.reverse(score), x, [1.0, 0.5, 0.1], sd.euler_maruyama(), noise=noise)
    assert out.x.dtype == torch.float32


def test_mistakes():
    with pytest.raises(InvalidArgumentError, match=r"A must be \[D0, D0\]"):
        LinearSDE([[1.0, 2.0]], [[1.0]])
    with pytest.raises(InvalidArgumentError, match="beta must be positive"):
        LinearSDE([[1.0]], [[1.0]], lambda t: t - 0.5)
    with pytest.raises(InvalidArgumentError, match="multiple of 2 elements"):
        CLD().drift(torch.zeros(3, 5), at(0.1))
    with pytest.raises(InvalidArgumentError, match="mass must be positive"):
        CLD(mass=-1.0)
    with pytest.raises(InvalidArgumentError, match="data_cov"):
        LinearSDE([[1.0]], [[1.0]], data_cov=torch.eye(2))
    with pytest.raises(InvalidArgumentError, match="swap"):
        CLD().transition(0.5, 0.2)
    with pytest.raises(InvalidArgumentError, match="multiple of 2"):
        sd.Gaussian([0.0], std=1.0).score(CLD())
    assert isinstance(CLD().level(0.5), Level)


def test_velocities_start_with_their_variance_in_float64() -> None:
    mixture = sd.GaussianMixture([[0.0, 1.0]], stds=0.5)
    cov = CLD(mass=0.3, gamma=0.1).lift(mixture).cov()
    torch.testing.assert_close(cov.diagonal(), torch.tensor([0.25, 0.25, 0.03, 0.03], dtype=F64), rtol=1e-15, atol=0.0)
