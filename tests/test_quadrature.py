"""Frames and the one formula: exact on polynomials, exact on point masses, the same samples in every process."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from cases import crossed, mostly_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, FRAMES, PROCESSES, gaussian, lam_grid, mixture

import sdegen as sd
from sdegen.solvers.quadrature import FAR, phi, quadrature

EPS = torch.finfo(F64).eps
PLANE = {name: frame for name, frame in FRAMES.items() if name != "TIME"}


def exact_phi(k: int, z: float) -> float:
    with mpmath.workdps(60):
        z = mpmath.mpf(z)
        tail = mpmath.nsum(lambda n: z**n / mpmath.factorial(n + k), [0, mpmath.inf]) if abs(z) < 60 else None
        if tail is None:
            tail = (mpmath.exp(z) - sum(z**n / mpmath.factorial(n) for n in range(k))) / z**k
        return float(tail)


@pytest.mark.parametrize("z", [0.0, 1e-12, -1e-6, 0.3, -0.9, 1.4999, -1.4999, 1.5001, -1.5001, 5.0, -7.0, 25.0, -30.0])
def test_phi_functions(z):
    """Series: a sum of positive parts or a decaying alternation below e^1.5, so 2 e^{1.5} eps in all. Recursion:
    phi_k loses at most the sum of |1/j! / z^{k-j}| eps against phi_k >= c/k!, bounded here by 2^k k eps."""
    got = phi(torch.tensor(z, dtype=F64), 6)
    for k in range(1, 7):
        exact = exact_phi(k, z)
        bound = (2 * math.e**1.5 + 2.0**k * k * math.factorial(k)) * EPS
        assert abs(float(got[k - 1]) - exact) <= bound * max(abs(exact), 1 / math.factorial(k) / max(1.0, abs(z)))


def test_phi_keeps_its_shape_and_has_no_seam():
    z = torch.linspace(-3, 3, 12, dtype=F64).reshape(3, 4)
    assert phi(z, 5).shape == (3, 4, 5)
    for index in torch.cartesian_prod(torch.arange(3), torch.arange(4)):
        assert torch.equal(phi(z, 5)[tuple(index)], phi(z[tuple(index)], 5))


@given(
    a=st.floats(-3, 3),
    h=st.floats(0.01, 2.0),
    sign=st.sampled_from([-1.0, 1.0]),
    gaps=st.lists(st.floats(0.3, 2.0), min_size=0, max_size=5),
    ahead=st.booleans(),
    coefficients=st.lists(st.floats(-1, 1), min_size=6, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_weights_are_exact_on_polynomials(a, h, sign, gaps, ahead, coefficients):
    """m nodes integrate degree m - 1; the error term vanishes on degree m - 2. Tolerance: eps per operation."""
    h *= sign
    us = [0.0]
    for gap in gaps:
        us.append(us[-1] - gap * h)
    if ahead:
        us = [h, *us][:6]
    m = len(us)
    nodes = torch.tensor(us, dtype=F64)

    def check(degree, weights, expected):
        values = sum(c * nodes**k for k, c in enumerate(coefficients[: degree + 1])) + 0 * nodes
        size = float((weights * values).abs().sum() + weights.abs().sum() + abs(expected))
        assert abs(float((weights * values).sum()) - expected) <= 4000 * EPS * size

    with mpmath.workdps(30):
        integral = mpmath.quad(
            lambda u: mpmath.exp(a * (h - u)) * sum(c * u**k for k, c in enumerate(coefficients[:m])), [0, h]
        )
    weights, last = quadrature(a, torch.tensor(h, dtype=F64), nodes)
    check(m - 1, weights, float(integral))
    if m > 1:
        check(m - 2, last, 0.0)


def test_a_missing_past_has_no_weight():
    """Far nodes leave exactly the weights of the nodes that exist, at any clock scale."""
    for h in (1e-3, 1.0, 1e4):
        step = torch.tensor(h, dtype=F64)
        near = torch.tensor([0.0, -h], dtype=F64)
        far = torch.cat([near, torch.tensor([FAR, 2 * FAR, 3 * FAR], dtype=F64)])
        for a in (0.0, -1.0 / h, 1.0 / h):
            weights, _ = quadrature(a, step, far)
            expected, _ = quadrature(a, step, near)
            torch.testing.assert_close(weights[:2], expected, rtol=4 * EPS, atol=0.0)
            assert (weights[2:].abs() <= 1e-14 * expected.abs().sum()).all()


def test_weights_of_a_batch_are_those_of_its_rows():
    g = torch.Generator().manual_seed(0)
    h, us = torch.rand(5, generator=g, dtype=F64), torch.randn(5, 4, generator=g, dtype=F64)
    whole = quadrature(-1.3, h, us)
    for i in range(5):
        for part, row in zip(whole, quadrature(-1.3, h[i], us[i])):
            assert torch.equal(part[i], row)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_clock_inverts_and_frame_is_the_probability_flow(process, frame):
    """`dY/dtau = rate Y + N` along the flow, by differences; `level` inverts `clock`."""
    lam = torch.linspace(-2.5, 2.5, 11, dtype=F64)
    lam = lam[(lam > process.level(process.t_max).lam) & (lam < process.level(process.t_min).lam)]
    middle = process.at(lam)
    torch.testing.assert_close(frame.level(process, frame.clock(middle)).lam, middle.lam, rtol=1e-11, atol=1e-11)
    data, noise = 0.7, -1.3  # on a point mass at 0.7 the flow is alpha data + sigma noise with both fixed
    h = 1e-5
    before, after = process.at(middle.lam - h), process.at(middle.lam + h)

    def y(level):
        return (level.alpha * data + level.sigma * noise) / frame.scale(level)

    p, q = frame.want(process, middle, 0.0)
    rate = (y(after) - y(before)) / (frame.clock(after) - frame.clock(before))
    # DiscreteVP's clock has a kink at every knot, so its TIME rates are only one-sided there
    tolerance = 2e-2 if isinstance(process, sd.DiscreteVP) and frame is sd.TIME else 1e-5
    torch.testing.assert_close(rate, frame.rate(0.0) * y(middle) + p * data + q * noise, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frame", PLANE.values(), ids=PLANE.keys())
@pytest.mark.parametrize("eta", [0.4, 1.0, 1.8])
def test_spread_is_the_variance_of_the_ito_integral(frame, eta):
    """In x: `int (scale_next/scale e^{a(tau_next - tau)} g eta)^2 dt`, by Simpson's rule on lam."""
    process = sd.VP()
    now, next = process.at(-0.4), process.at(0.3)
    path = process.at(torch.linspace(-0.4, 0.3, 2001, dtype=F64))
    a = frame.rate(eta)
    carried = frame.scale(next) / frame.scale(path) * torch.exp(a * (frame.clock(next) - frame.clock(path)))
    integrand = 2 * (eta * path.sigma * carried) ** 2  # g^2 dt = -2 sigma^2 dlam
    weights = torch.ones(2001, dtype=F64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    variance = (integrand * weights).sum() * 0.7 / 2000 / 3
    torch.testing.assert_close(frame.spread(process, now, next, eta), variance.sqrt(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("frame", PLANE.values(), ids=PLANE.keys())
def test_spread_keeps_its_digits_on_short_steps(frame):
    """A thousand short steps' variances, carried to the end, add up to the long step's."""
    process, eta = sd.VP(), 1.0
    path = process.at(torch.linspace(-0.4, 0.3, 1001, dtype=F64))
    now, next = sd.Level(*(v[:-1] for v in path)), sd.Level(*(v[1:] for v in path))
    end = process.at(0.3)
    a = frame.rate(eta)
    carried = frame.scale(end) / frame.scale(next) * torch.exp(a * (frame.clock(end) - frame.clock(next)))
    total = ((carried * frame.spread(process, now, next, eta)) ** 2).sum()
    torch.testing.assert_close(frame.spread(process, process.at(-0.4), end, eta) ** 2, total, rtol=1e-9, atol=0.0)


EXACT = [sd.DATA, sd.NOISE, sd.SIGMA, sd.FLOW, sd.SIGMA(variable=lambda lam: lam)]


@pytest.mark.parametrize(
    ("process", "frame", "order", "correct"),
    mostly_slow(
        crossed(PROCESSES.values(), EXACT, [1, 3, 5], [False, True]), lambda case: case[2] == 3 or case[0] == sd.VP()
    ),
)
def test_point_mass_is_exact_in_one_step(process, frame, order, correct):
    point = torch.tensor([[0.7, -2.0]], dtype=F64)
    model = sd.GaussianMixture(point, stds=0.0).score(process)
    x = process.prior(sd.noise.seeds(1, 5), (2,), F64)
    start, end = process.level(process.t_max), process.level(process.t_min)
    noise = (x - start.alpha * point) / start.sigma
    solver = sd.Multistep(order, frame, correct=correct)
    out = sd.solve(model, x, torch.tensor([process.t_max, process.t_min], dtype=F64), solver).x
    # rounding of the start, carried to the end by the frame's linear part
    carried = (
        frame.scale(end) / frame.scale(start) * torch.exp(frame.rate(0.0) * (frame.clock(end) - frame.clock(start)))
    )
    size = float(carried * x.abs().max()) + 2.0
    torch.testing.assert_close(out, end.alpha * point + end.sigma * noise, rtol=0, atol=200 * EPS * size)


def test_every_process_gives_the_same_samples_on_one_lam_grid():
    """y = x/alpha obeys one ODE whatever the schedule: VP, VE, EDM, Flow, ... agree to rounding."""
    lams = torch.linspace(-3.0, 4.0, 13, dtype=F64)
    for frame in PLANE.values():
        for solver in (
            sd.Multistep(3, frame),
            sd.Multistep(2, frame, correct=True),
            sd.RungeKutta(sd.tableaus.RK4, frame),
        ):
            results = []
            for process in PROCESSES.values():
                if isinstance(process, sd.DiscreteVP):
                    continue
                start, end = process.at(lams[0]), process.at(lams[-1])
                noise = sd.noise.normals(sd.noise.seeds(0, 8), (2,), (0, 0, 0, 0), dtype=F64)
                x = start.sigma * noise
                out = sd.solve(mixture(process), x, lam_grid(process, lams), solver).x
                results.append(out / end.alpha)
            for other in results[1:]:
                torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-13)


def test_sigma_with_polynomials_in_lam_is_noise():
    """`int noise ds` with ds = -s dlam is NOISE's exponential integral: two routes to one method."""
    process = sd.EDM()
    x = process.prior(sd.noise.seeds(0, 8), (2,), F64)
    times = sd.grids.by_snr(process, 12)
    one = sd.solve(mixture(process), x, times, sd.Multistep(4, sd.SIGMA(variable=lambda lam: lam))).x
    two = sd.solve(mixture(process), x, times, sd.Multistep(4, sd.NOISE)).x
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_angle_is_exact_on_gaussian_data():
    """ANGLE(sigma_data) is the exact flow of N(0, sigma_data^2): one step of order 1 solves it."""
    process = sd.EDM()
    model = gaussian(process, torch.zeros(2, dtype=F64), torch.tensor(0.5, dtype=F64))
    x = process.prior(sd.noise.seeds(0, 8), (2,), F64)
    times = torch.tensor([80.0, 0.002], dtype=F64)
    out = sd.solve(model, x, times, sd.Multistep(1, sd.ANGLE(sigma_data=0.5))).x
    exact = x * math.sqrt((0.002**2 + 0.25) / (80.0**2 + 0.25))
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=0.0)


def test_frames_say_who_they_are_and_refuse_nonsense():
    assert repr(sd.DATA) == "DATA"
    assert repr(sd.ANGLE(sigma_data=0.5)) == "ANGLE(sigma_data=0.5)"
    with pytest.raises(sd.InvalidArgumentError):
        sd.ANGLE(sigma_data=-1.0)
    with pytest.raises(sd.InvalidArgumentError):
        sd.TIME(variable=torch.exp)
    general = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: t)
    with pytest.raises(sd.InvalidTypeError, match="ScoreModel itself"):
        sd.solve(general.probability_flow(lambda x, t: -x), torch.ones(2, 2), [1.0, 0.5], sd.ddim())
