"""Exact mixtures: against calculus, against 60-digit arithmetic, and against the contract every score model keeps."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from cases import crossed, mostly_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sdegen import noise
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.processes.process import Level, Process
from sdegen.processes.schedules import EDM, VE, VP, Cosine, Flow, SubVP
from sdegen.scores.low_rank import Spectral
from sdegen.scores.mixtures import Gaussian, GaussianMixture
from sdegen.scores.model import ScoreModel, plane

F64 = torch.float64
U = 2.0**-53
K, D, R = 3, 4, 2
PROCESSES: list[Process] = [VP(), SubVP(), VE(), EDM(), Cosine(), Flow()]
WANTS = ["data", "noise", "score", "v", "velocity"]
KINDS = ["isotropic", "points", "diagonal", "full", "singular", "low rank", "low rank + diagonal"]
FORMS = [kind for kind in KINDS if kind not in ("points", "singular")]  # one for each way of computing


def randn(seed: int, *shape: int) -> Tensor:
    return noise.normals(noise.seeds(seed, 1), shape, (0, 0, 0, 0), tag=77, dtype=F64)[0]


def build(kind: str, count: int = K, shape: tuple[int, ...] = (D,), width: float = 0.7, apart: float = 2.0) -> Any:
    """A mixture, and the arguments that made it."""
    dim = math.prod(shape)
    means = apart * randn(1, count, *shape)
    root = width * randn(2, count, dim, dim) / math.sqrt(dim)
    stds = width * (0.3 + randn(3, count, *shape).abs())
    arguments: dict[str, dict[str, Tensor]] = {
        "isotropic": {"stds": width * (0.3 + randn(4, count).abs())},
        "points": {"stds": torch.zeros(())},
        "diagonal": {"stds": stds},
        "full": {"covs": root @ root.mT},
        "singular": {"covs": root[:, :, :1] @ root[:, :, :1].mT},
        "low rank": {"factors": root[:, :, :R], "stds": torch.tensor(0.4 * width, dtype=F64)},
        "low rank + diagonal": {"factors": root[:, :, :R], "stds": stds},
    }
    weights = 0.1 + randn(5, count).abs()
    return GaussianMixture(means, weights=weights, **arguments[kind]), arguments[kind]


def dense(mixture: GaussianMixture) -> Tensor:
    """Covariances `[K, D, D]`."""
    count, dim = len(mixture), mixture.means[0].numel()
    eye = torch.eye(count, dtype=F64)
    return torch.stack([mixture.covariances.average(eye[k], dim) for k in range(count)])


def columns(stds: Tensor, count: int) -> Tensor:
    """Standard deviations of any shape as `[K, D]` or `[K, 1]`."""
    return stds.expand(count)[:, None] if stds.ndim < 2 else stds.flatten(1)


def level_of(sigma: float, alpha: float = 1.0) -> Level:
    return Level(*(torch.tensor(v, dtype=F64) for v in (sigma, alpha, sigma)))


def rows_of(level: Level, index: Tensor) -> Level:
    return Level(*(v[index] for v in level))


def levels(process: Process, n: int) -> Level:
    part = torch.linspace(0.1, 0.9, n, dtype=F64)
    return process.level(process.t_min + (process.t_max - process.t_min) * part)


# ---------------------------------------------------------------------------------------------------- calculus


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_score_is_the_gradient_of_log_prob(kind: str, process: Process) -> None:
    mixture, _ = build(kind, shape=(2, 2))
    for level in (process.level(process.t_min + 0.3 * (process.t_max - process.t_min)), levels(process, 5)):
        x = mixture.sample(5, seed=3, level=level).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, level).sum(), x)
        score = mixture.score(process)(x, level)
        # a few tens of roundings of terms no larger than |x - alpha m| / sigma^2 ~ 1/sigma each
        tolerance = 1e3 * U * (10 / level.sigma.min() ** 2).item()
        torch.testing.assert_close(score, gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_the_data_given_x(kind: str) -> None:
    """Tweedie: `E = (x + sigma^2 s)/alpha`, `Cov = sigma^2/alpha dE/dx = sigma^2/alpha^2 (I + sigma^2 ds/dx)`."""
    mixture, _ = build(kind)
    process = VP()
    for level in (process.level(0.4), levels(process, 4)):
        x = mixture.sample(4, seed=5, level=level)
        a, s = (v.reshape(-1, 1) for v in (level.alpha, level.sigma))
        score = mixture.score(process)
        torch.testing.assert_close(mixture.denoise(x, level), (x + s * s * score(x, level)) / a, rtol=1e-12, atol=1e-12)

        def jacobian(f: Callable[[Tensor, Level], Tensor], x: Tensor = x, level: Level = level) -> Tensor:
            whole = torch.autograd.functional.jacobian(lambda y: f(y, level), x)
            return torch.stack([whole[i, :, i] for i in range(len(x))])

        cov = mixture.posterior_cov(x, level)
        a, s = a[..., None], s[..., None]
        torch.testing.assert_close(cov, s * s / a * jacobian(mixture.denoise), rtol=1e-10, atol=1e-11)
        hessian = jacobian(score)
        eye = torch.eye(D, dtype=F64)
        torch.testing.assert_close(cov, s * s / a**2 * (eye + s * s * hessian), rtol=1e-10, atol=1e-11)
        assert torch.equal(cov, cov.mT)
        assert torch.linalg.eigvalsh(cov).min() > -1e-13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_want_is_its_pair_of_the_plane(kind: str, process: Process) -> None:
    mixture, _ = build(kind)
    model = mixture.score(process)
    assert isinstance(model, ScoreModel)
    for level in (process.level((process.t_min + process.t_max) / 2), levels(process, 6)):
        x = mixture.sample(6, seed=9, level=level)
        data, unit = model(x, level, "data"), model(x, level, "noise")
        for want in [*WANTS, (torch.tensor(0.3, dtype=F64), torch.linspace(-2, 2, 6, dtype=F64))]:
            p, q = (v.reshape(-1, 1) for v in plane(process, level, want))
            expected = p * data + q * unit
            slack = 1e3 * U * ((p * data).abs() + (q * unit).abs() + (p.abs() + q.abs() / level.sigma.min()) * 10)
            assert ((model(x, level, want) - expected).abs() <= slack).all(), want
        whole = model(x, level, (level.alpha, level.sigma))
        torch.testing.assert_close(whole, x, rtol=1e-12, atol=1e-12)  # alpha data + sigma noise = x


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "full"])
def test_every_kind_agrees_with_the_full_matrices_of_the_same_law(kind: str) -> None:
    mixture, _ = build(kind)
    full = GaussianMixture(mixture.means, covs=dense(mixture), weights=mixture.weights)
    process = Cosine()
    for level in (process.level(0.3), levels(process, 7)):
        x = mixture.sample(7, seed=2, level=level)
        torch.testing.assert_close(mixture.log_prob(x, level), full.log_prob(x, level), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(mixture.posterior_cov(x, level), full.posterior_cov(x, level), rtol=1e-9, atol=1e-12)
        for want in WANTS:
            one, other = mixture.score(process)(x, level, want), full.score(process)(x, level, want)
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.cov(), full.cov(), rtol=1e-13, atol=1e-13)
    at = process.level(0.6)
    torch.testing.assert_close(mixture.marginal(at).cov(), full.marginal(at).cov(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_marginal_is_the_law_at_the_level(kind: str) -> None:
    mixture, _ = build(kind, shape=(2, 2))
    level = VP().level(0.5)
    x = mixture.sample(5, level=level)
    at = mixture.marginal(level)
    torch.testing.assert_close(at.log_prob(x), mixture.log_prob(x, level), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.mean(), level.alpha * mixture.mean())
    eye = torch.eye(4, dtype=F64)
    torch.testing.assert_close(at.cov(), level.alpha**2 * mixture.cov() + level.sigma**2 * eye, rtol=1e-13, atol=1e-13)


def test_log_prob_is_a_density() -> None:
    """Simpson's rule on a fine grid of a smooth density that vanishes at its ends is exact to rounding."""
    mixture = GaussianMixture([[-1.0], [2.0]], stds=[0.5, 1.0], weights=[1, 3])
    grid = torch.linspace(-12, 14, 4001, dtype=F64)
    assert abs(mixture.log_prob(grid[:, None]).exp().sum() * (grid[1] - grid[0]) - 1) < 1e-12
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.25, 0.75], dtype=F64)),
        torch.distributions.Normal(torch.tensor([-1.0, 2.0], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)),
    )
    torch.testing.assert_close(mixture.log_prob(grid[:, None]), reference.log_prob(grid), rtol=1e-13, atol=1e-13)


# ------------------------------------------------------------------------------------- sixty digits, and extremes


def exact(x: Tensor, means: Tensor, arguments: dict[str, Tensor], weights: list[float], level: Level) -> Any:
    """`(E[data|x], E[noise|x], log p(x))` of one x in 60 digits, from the arguments as they were given."""
    mp = mpmath.mp
    a, s = mp.mpf(level.alpha.item()), mp.mpf(level.sigma.item())
    point, eye = mp.matrix(x.tolist()), mp.eye(len(x))
    logits, data, unit = [], [], []
    for k in range(len(means)):
        m, sigma = mp.matrix(means[k].tolist()), 0 * eye
        if "covs" in arguments:
            sigma = mp.matrix(arguments["covs"][k].tolist())
        if "factors" in arguments:
            factor = mp.matrix(arguments["factors"][k].tolist())
            sigma = sigma + factor * factor.T
        if "stds" in arguments:
            stds = columns(arguments["stds"], len(means)).expand(len(means), len(x))
            sigma = sigma + mp.diag([mp.mpf(v) ** 2 for v in stds[k].tolist()])
        c = a * a * sigma + s * s * eye
        r = point - a * m
        y = mp.lu_solve(c, r)
        logits.append(mp.log(weights[k]) - ((r.T * y)[0] + mp.log(mp.det(c)) + len(x) * mp.log(2 * mp.pi)) / 2)
        data.append(m + a * (sigma * y))
        unit.append(s * y)
    top = max(logits)
    total = sum(mp.exp(v - top) for v in logits)
    w = [mp.exp(v - top) / total for v in logits]
    mix = [sum((w[k] * v[k] for k in range(len(w))), mp.zeros(len(x), 1)) for v in (data, unit)]
    return mix[0], mix[1], top + mp.log(total / mp.fsum(weights))


def forward_bound(
    x: Tensor, mixture: GaussianMixture, arguments: dict[str, Tensor], level: Level, p: float, q: float
) -> tuple[float, float]:
    """First-order bounds of the float64 errors of `E[p data + q noise | x]` (norm over a sample) and `log p(x)`.

    With `y = C^-1 r`, `A = (p alpha Sigma + q sigma) C^-1`, `v = p m + A r` and c = 8 (D + K + 8) roundings of each
    operation, the errors of one component are those of

    - its inputs: r to `rho = c u (|x| + |alpha m| + |C y|)`: `|y| rho` in the exponent, `|A| rho` in v;
    - its covariance: `dSigma = dF F^T + F dF^T`, `|dF| <= c u |F|` (factors), or `|dSigma| <= c u |Sigma|` (eigh):
      `alpha^2 (y^T dSigma y + tr C^-1 dSigma)/2` in the exponent, `alpha (p - alpha A) dSigma y` in v;
    - its sums: `c u (|r.y| + sum |log eig C| + D)` in the exponent, `c u (|p m| + |A| |x| + |p - alpha A| |m|)` in v;

    and the mixture's are `sum_k w_k (|dv_k| + 2 |dexponent_k| |v_k - v|)` and `sum_k w_k |dexponent_k|`.
    """
    a, s = level.alpha.item(), level.sigma.item()
    c = 8 * (len(x) + len(mixture) + 8) * U
    eye = torch.eye(len(x), dtype=F64)
    w, v, dv, de = [], [], [], []
    logits = [float(part.log_prob(x[None], level)) for part in map(mixture._only, range(len(mixture)))]
    shares = (torch.tensor(logits, dtype=F64) + mixture.weights.log()).softmax(0)
    for k, cov in enumerate(dense(mixture)):
        m, covered = mixture.means[k], a * a * cov + s * s * eye
        r, inverse = x - a * m, torch.linalg.inv(covered)
        y, gain = inverse @ r, (p * a * cov + q * s * eye) @ inverse
        left = p * eye - a * gain
        size = torch.linalg.matrix_norm(gain, 2)
        rho = c * (x.norm() + (a * m).norm() + (covered.abs() @ y.abs()).norm())
        if "factors" in arguments:
            factor = arguments["factors"][k]
            shift, along = c * torch.linalg.matrix_norm(factor, 2), (factor.T @ y).norm()
            own = a * a * shift * (along * y.norm() + 2 * (inverse @ factor).norm())
            bent = a * shift * (torch.linalg.matrix_norm(left, 2) * along + (left @ factor).norm() * y.norm())
        else:
            shift = c * torch.linalg.matrix_norm(cov, 2) if "covs" in arguments else torch.zeros((), dtype=F64)
            own = a * a * shift * (y.norm() ** 2 + inverse.trace())
            bent = a * shift * torch.linalg.matrix_norm(left, 2) * y.norm()
        logs = torch.linalg.eigvalsh(covered).clamp(min=1e-300).log().abs().sum()
        de.append(c * abs(logits[k]) + y.norm() * rho + own + c * ((r @ y).abs() + logs + len(x)))
        rounding = abs(p) * m.norm() + size * x.norm() + torch.linalg.matrix_norm(left, 2) * m.norm()
        dv.append(size * rho + bent + c * rounding)
        v.append(p * m + gain @ r)
        w.append(shares[k])
    mean = sum(wk * vk for wk, vk in zip(w, v, strict=True))
    error = sum(wk * (dk + 2 * ek * (vk - mean).norm()) for wk, vk, dk, ek in zip(w, v, dv, de, strict=True))
    return float(error), float(sum(wk * ek for wk, ek in zip(w, de, strict=True)))


@pytest.mark.parametrize(
    ("kind", "width", "apart", "sigma"),
    mostly_slow(
        [
            (kind, *size, sigma)
            for kind, size, sigma in crossed(KINDS, [(1e-4, 100.0), (1.0, 2.0)], [1e-4, 1e-2, 1.0, 1e2, 1e4])
        ],
        lambda case: case[3] in (1e-4, 1.0, 1e4),
    ),
)
def test_against_sixty_digits(kind: str, width: float, apart: float, sigma: float) -> None:
    mpmath.mp.dps = 60
    mixture, arguments = build(kind, width=width, apart=apart)
    weights = [1.0, 1e-300, 0.5]
    mixture = GaussianMixture(mixture.means, weights=weights, **arguments)
    level, one = level_of(sigma, 0.5 if sigma == 1.0 else 1.0), torch.ones((), dtype=F64)
    x = mixture.sample(2, seed=8, level=level)
    x[1] = level.alpha * mixture.means[1] + sigma * randn(6, D)
    answers = [mixture.predict(x, level, one, 0 * one), mixture.predict(x, level, 0 * one, one)]
    for i in range(len(x)):
        *expected, log_p = exact(x[i], mixture.means, arguments, weights, level)
        for (p, q), answer, truth in zip(((1.0, 0.0), (0.0, 1.0)), answers, expected, strict=True):
            error = mpmath.norm(mpmath.matrix(answer[i].tolist()) - truth)
            bound, log_bound = forward_bound(x[i], mixture, arguments, level, p, q)
            assert error <= bound
        assert abs(mpmath.mpf(mixture.log_prob(x[i : i + 1], level).item()) - log_p) <= log_bound


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["isotropic", "points", "diagonal", "low rank", "low rank + diagonal"])
def test_three_thousand_dimensions(kind: str, sigma: float, dtype: torch.dtype) -> None:
    """Beside one component, far from the other and 1e-4 wide, the answer is that component's own, to rounding."""
    dim, width = 3072, 1e-4
    means = torch.stack((torch.zeros(dim, dtype=F64), torch.full((dim,), 100.0, dtype=F64)))
    factors = width * randn(2, 2, dim, 3)
    stds = width * (0.5 + randn(3, 2, dim).abs())
    arguments: dict[str, dict[str, Tensor]] = {
        "isotropic": {"stds": torch.full((2,), width, dtype=F64)},
        "points": {"stds": torch.zeros(())},
        "diagonal": {"stds": stds},
        "low rank": {"factors": factors, "stds": torch.tensor(width, dtype=F64)},
        "low rank + diagonal": {"factors": factors, "stds": stds},
    }
    mixture = GaussianMixture(means, weights=[1, 1e-300], **arguments[kind])
    process, level = EDM(1e-4, 1e4), level_of(sigma)
    x = mixture.sample(2, seed=4, level=level).to(dtype)
    model = mixture.score(process)
    answers = {want: model(x, level, want) for want in WANTS}
    for want, answer in answers.items():
        assert answer.dtype == dtype
        assert answer.isfinite().all(), want
    variances = columns(arguments[kind]["stds"].to(F64), 2)[0] ** 2
    diagonal = (variances + sigma**2).expand(dim)
    wide, y = x.to(F64), x.to(F64) / diagonal
    if "factors" in arguments[kind]:  # Woodbury on three columns, well conditioned as the factors are of width's size
        whole = factors[0].T / diagonal
        y = y - (torch.linalg.solve(torch.eye(3, dtype=F64) + whole @ factors[0], whole @ wide.T).T) @ whole
    eps = torch.finfo(dtype).eps + 1e3 * U  # one rounding to x's dtype, and the reference's own
    torch.testing.assert_close(answers["score"].to(F64), -y, rtol=2 * eps, atol=eps * y.abs().max().item())
    torch.testing.assert_close(
        answers["noise"].to(F64), sigma * y, rtol=2 * eps, atol=eps * sigma * y.abs().max().item()
    )


@pytest.mark.parametrize("draw", range(8))
def test_the_widest_disagreement_of_scales(draw: int) -> None:
    """Factors a million times wider than the diagonal: refinement keeps the noise accurate (see FactorDiagonal)."""
    mpmath.mp.dps = 60
    stds = (1e-4 * 10 ** torch.linspace(0, 6, D, dtype=F64)).expand(1, D)
    arguments = {"factors": randn(100 + draw, 1, D, R) * 100, "stds": stds}
    mixture = GaussianMixture(torch.zeros(1, D), **arguments)
    for sigma in (1e-4, 1e-2, 1.0, 1e4):
        level = level_of(sigma)
        x = mixture.sample(1, seed=draw, level=level)
        _, unit, _ = exact(x[0], mixture.means, arguments, [1.0], level)
        got = mpmath.matrix(mixture.score(EDM())(x, level, "noise")[0].tolist())
        assert mpmath.norm(got - unit) <= forward_bound(x[0], mixture, arguments, level, 0.0, 1.0)[0]
        assert mpmath.norm(got - unit) <= 1e-9 * mpmath.norm(unit)


# ------------------------------------------------------------------------------------------------- symmetries

LAWS = settings(max_examples=15, deadline=None, derandomize=True, database=None)


@LAWS
@given(st.sampled_from(KINDS), st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_symmetries(kind: str, seed: int, scale: float, shift: float) -> None:
    """Permuted or split components are the same law; shift, scale and rotation carry the score along."""
    mixture, arguments = build(kind)
    level = level_of(0.6, 0.8)
    x = mixture.sample(3, seed=seed, level=level)
    one = torch.ones((), dtype=F64)

    def answers(g: GaussianMixture, y: Tensor, at: Level = level) -> tuple[Tensor, Tensor]:
        return g.predict(y, at, 0 * one, one), g.log_prob(y, at)

    unit, log_p = answers(mixture, x)
    order = torch.tensor([2, 0, 1, 1, 0])
    pieces = mixture.weights[order] * torch.tensor([1.0, 0.25, 0.5, 0.5, 0.75], dtype=F64)
    picked = {name: value[order] if value.ndim else value for name, value in arguments.items()}
    for got, want in zip(
        answers(GaussianMixture(mixture.means[order], weights=pieces, **picked), x), (unit, log_p), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)

    moved = GaussianMixture(mixture.means + shift, weights=mixture.weights, **arguments)
    for got, want in zip(answers(moved, x + level.alpha * shift), (unit, log_p), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)  # x itself moves by u |shift| ~ 1e-13, / sigma^2

    powers = {"covs": 2, "stds": 1, "factors": 1}
    scaled = {name: value * scale ** powers[name] for name, value in arguments.items()}
    wide = GaussianMixture(mixture.means * scale, weights=mixture.weights, **scaled)
    wide_unit, wide_log = answers(wide, x * scale, level_of(0.6 * scale, 0.8))
    torch.testing.assert_close(wide_unit, unit, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(wide_log + D * math.log(scale), log_p, rtol=1e-10, atol=1e-10)

    turn, _ = torch.linalg.qr(randn(seed % 1000, D, D))
    turned = GaussianMixture(mixture.means @ turn.T, covs=turn @ dense(mixture) @ turn.T, weights=mixture.weights)
    for got, want in zip(answers(turned, x @ turn.T), (unit @ turn.T, log_p), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@LAWS
@given(st.integers(1, 6), st.lists(st.floats(-300, 0), min_size=1, max_size=6), st.floats(0, 1e3), st.floats(1e-4, 1e4))
def test_any_weights_and_distances_give_finite_answers(
    dim: int, powers: list[float], apart: float, sigma: float
) -> None:
    count = len(powers)
    means = apart * randn(count, count, dim)
    level = level_of(sigma)
    for stds in (torch.zeros(()), torch.full((count, dim), 1e-4)):
        mixture = GaussianMixture(means, stds=stds, weights=[10**power for power in powers])
        x = torch.cat((mixture.sample(2, level=level), means))
        assert mixture.log_prob(x, level).isfinite().all()
        data = mixture.denoise(x, level)
        assert data.isfinite().all()
        if not stds.any():  # the denoiser of data points stays in their hull, up to rounding
            slack = 1e3 * U * (1 + apart)
            assert (data <= means.amax(0) + slack).all()
            assert (data >= means.amin(0) - slack).all()


# --------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_law(kind: str) -> None:
    """DKW: `P(sup |F_n - F| > eps) <= 2 exp(-2 n eps^2)`; 42 comparisons at 1e-11 fail by chance below 1e-9."""
    mixture, _ = build(kind)
    n = 20_000
    limit = math.sqrt(math.log(2 / 1e-11) / (2 * n))
    for level in (None, VP().level(0.3)):
        x = mixture.sample(n, seed=11, level=level)
        law = mixture if level is None else mixture.marginal(level)
        for direction in (torch.ones(D, dtype=F64), randn(1, D), randn(2, D)):
            value = (x @ direction).sort().values
            scale = torch.einsum("d,kde,e->k", direction, dense(law), direction).clamp(min=0).sqrt()
            centre = law.means @ direction
            if bool((scale == 0).any()) or (kind == "points" and level is None):
                counts = torch.stack([(value - c).abs() < 1e-9 for c in centre]).double().mean(1)
                assert (counts - law.weights).abs().max() < 2 * limit
                continue
            cdf = (law.weights * torch.special.ndtr((value[:, None] - centre) / scale)).sum(1)
            steps = torch.arange(n + 1, dtype=F64) / n
            assert max((cdf - steps[:-1]).max(), (steps[1:] - cdf).max()) < limit


def test_samples_depend_on_their_own_seed_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for kind in KINDS:
        mixture, _ = build(kind, shape=(3, 1))
        level = VP().level(0.5)
        whole = mixture.sample(70, seed=3, level=level)
        assert whole.shape == (70, 3, 1)
        assert whole.dtype == F64
        for n in (0, 1, 2, 31, 32, 33):
            assert torch.equal(mixture.sample(n, seed=3, level=level), whole[:n])
        assert not torch.equal(mixture.sample(70, seed=4, level=level), whole)
        assert mixture.sample(2, dtype=torch.float32).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


# -------------------------------------------------------------------------------------------------- posterior


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_posterior_is_the_conditional_of_the_joint_gaussian(kind: str, size: int) -> None:
    mixture, _ = build(kind)
    A, y = randn(20, size, D), randn(21, size)
    for stds in (torch.tensor(0.3, dtype=F64), 0.1 + randn(22, size).abs()):
        law = mixture.posterior(y, A, stds)
        cov, inner = dense(mixture), stds.expand(size).square().diag()
        seen = A @ cov @ A.T + inner
        lean = cov @ A.T @ torch.linalg.inv(seen)
        miss = y - mixture.means @ A.T
        means = mixture.means + (lean @ miss[..., None])[..., 0]
        evidence = torch.distributions.MultivariateNormal(mixture.means @ A.T, seen).log_prob(y)
        # errors of the formulas above, which invert `seen`: roundings times its condition number
        tolerance = 1e2 * D * U * torch.linalg.cond(seen).max().item() * (1 + mixture.means.abs().max().item())
        torch.testing.assert_close(law.means, means, rtol=0, atol=tolerance)
        torch.testing.assert_close(dense(law), cov - lean @ A @ cov, rtol=0, atol=tolerance)
        weights = (mixture.weights.log() + evidence).softmax(0)
        torch.testing.assert_close(law.weights, weights, rtol=0, atol=tolerance * (1 + miss.abs().max().item() ** 2))


def test_posterior_keeps_its_digits_and_its_structure() -> None:
    mpmath.mp.dps = 60
    mixture, arguments = build("low rank", count=2, width=100.0)
    A, y, std = randn(1, 1, D), randn(2, 1), 1e-4
    law = mixture.posterior(y, A, std)
    assert isinstance(law.covariances, Spectral)
    assert law.covariances.e.shape == (2, R + 1)
    for k in range(2):
        factor = mpmath.matrix(arguments["factors"][k].tolist())
        cov = factor * factor.T + mpmath.eye(D) * mpmath.mpf(arguments["stds"].item()) ** 2
        row, m = mpmath.matrix(A.tolist()), mpmath.matrix(mixture.means[k].tolist())
        seen = (row * cov * row.T)[0] + mpmath.mpf(std) ** 2
        lean = cov * row.T / seen
        truth = m + lean * (mpmath.mpf(y.item()) - (row * m)[0])
        assert mpmath.norm(mpmath.matrix(law.means[k].tolist()) - truth) < 1e-11
        # a millionth of the prior's deviation is left along A, with an error of 100 roundings of the prior's
        inside = A[0] @ law.covariances.U[k]
        outside = A[0] - law.covariances.U[k] @ inside  # a difference of squares would cancel
        along = (inside**2 * law.covariances.e[k]).sum() + outside.norm() ** 2 * law.covariances.s[k]
        left = mpmath.sqrt(mpmath.mpf(std) ** 2 * (row * cov * row.T)[0] / seen)
        prior = float(mpmath.norm(row) * mpmath.norm(cov) ** 0.5)
        assert abs(along.sqrt().item() - left) < 100 * U * prior
    few = GaussianMixture(randn(3, 2, 3072), stds=0.5).posterior(randn(4, 5), randn(5, 5, 3072), 0.1)
    assert few.covariances.e.shape == (2, 5)  # type: ignore[attr-defined]


def test_posterior_chains_and_takes_exact_observations() -> None:
    mixture, _ = build("full")
    A, y = randn(1, 3, D), randn(2, 3)
    whole = mixture.posterior(y, A, [0.3, 0.0, 0.2])
    chained = mixture.posterior(y[:1], A[:1], 0.3).posterior(y[1:2], A[1:2], 0).posterior(y[2:], A[2:], 0.2)
    torch.testing.assert_close(whole.means, chained.means, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.weights, chained.weights, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dense(whole), dense(chained), rtol=1e-9, atol=1e-11)
    known = mixture.posterior(y, A, 0.0)
    torch.testing.assert_close(known.means @ A.T, y.expand(K, 3), rtol=1e-9, atol=1e-9)
    assert (A @ dense(known) @ A.T).abs().max() < 1e-12
    with pytest.raises(InvalidArgumentError, match="no density"):
        known.log_prob(known.means)
    assert known.log_prob(known.means, VP().level(0.1)).isfinite().all()


def test_posterior_of_data_points_only_weighs_them() -> None:
    data = randn(1, 50, 2, 3)
    prior = GaussianMixture.empirical(data)
    A, y = randn(2, 2, 6), randn(3, 2)
    law = prior.posterior(y, A, 0.5)
    assert torch.equal(law.means, data)
    expected = (-((y - data.flatten(1) @ A.T) ** 2).sum(1) / 2 / 0.25).softmax(0)
    torch.testing.assert_close(law.weights, expected, rtol=1e-12, atol=0)
    with pytest.raises(InvalidArgumentError, match="positive noise_std"):
        prior.posterior(y, A, 0.0)


# ------------------------------------------------------------------------------------------------------- flow


@pytest.mark.parametrize("process", mostly_slow(PROCESSES, [VP(), EDM()]))
def test_flow_solves_the_probability_flow(process: Process) -> None:
    """Against RK4 at n and 2n steps: the finer is off by a fifteenth of their difference (order 4), taken twice."""
    law = Gaussian(randn(1, D), factor=randn(2, D, R), std=0.2 + randn(3, D).abs())
    span = process.t_max - process.t_min
    start, stop = process.t_min + 0.8 * span, process.t_min + 0.3 * span
    x = law.sample(3, seed=2, level=process.level(start))
    flow = process.probability_flow(law.score(process))

    def rk4(n: int) -> Tensor:
        y, h = x, (stop - start) / n
        for i in range(n):
            t = torch.tensor(start + i * h, dtype=F64)
            k1 = flow.drift(y, t)
            k2 = flow.drift(y + h / 2 * k1, t + h / 2)
            k3 = flow.drift(y + h / 2 * k2, t + h / 2)
            k4 = flow.drift(y + h * k3, t + h)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    coarse, fine = rk4(60), rk4(120)
    now, next = process.level(start), process.level(stop)
    error = (law.flow(x, now, next) - fine).abs().max()
    assert error <= 2 * (fine - coarse).abs().max() / 15 + 1e-11


@pytest.mark.parametrize("arguments", [{"std": 0.0}, {"std": 0.3}, {"std": [0.1, 1.0]}, {"cov": [[2.0, 1], [1, 1]]}])
def test_flow_goes_there_and_back(arguments: dict[str, Any]) -> None:
    law = Gaussian([1.0, -2.0], **arguments)
    process = VP()
    now, next = process.level(0.9), levels(process, 5)
    x = law.sample(5, level=now)
    y = law.flow(x, now, next)
    torch.testing.assert_close(law.flow(y, next, now), x, rtol=1e-12, atol=1e-12)
    # the map carries the marginal's standard scores along
    torch.testing.assert_close(
        law.log_prob(y, next) - torch.stack([law.marginal(rows_of(next, torch.tensor(i))).log_prob(m)[0] for i, m in
                                             enumerate((next.alpha[:, None] * law.mean())[:, None])]),
        law.log_prob(x, now) - law.log_prob((now.alpha * law.mean())[None], now),
        rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    assert isinstance(law.marginal(now), Gaussian)
    assert law.flow(x.float(), now, next).dtype == torch.float32


def test_a_thin_flow_and_a_diagonal_one() -> None:
    thin, full = (
        Gaussian(randn(1, D), factor=randn(2, D, R), std=0.3),
        Gaussian(randn(1, D), cov=randn(2, D, R) @ randn(2, D, R).T + 0.09 * torch.eye(D, dtype=F64)),
    )
    now, next = VP().level(0.9), VP().level(0.2)
    x = thin.sample(4, level=now)
    torch.testing.assert_close(thin.flow(x, now, next), full.flow(x, now, next), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- bits, and bad rows


@pytest.mark.parametrize(
    ("kind", "count", "dim"),
    mostly_slow(
        [(kind, *size) for kind, size in crossed(KINDS, [(20, 64), (7, 33), (1, 1), (50, 7)])],
        lambda case: case[1] in (1, 7),
    ),
)
def test_a_row_has_the_same_bits_in_any_batch(kind: str, count: int, dim: int) -> None:
    mixture, _ = build(kind, count=count, shape=(dim,))
    process, n = VP(), 70
    one, each = process.level(0.3), levels(process, n)
    x = 2 * randn(30, n, dim)
    model = mixture.score(process)
    calls: list[Callable[[Tensor, Level], Tensor]] = [
        lambda y, at: model(y, at),
        lambda y, at: model(y, at, "velocity"),
        lambda y, at: mixture.log_prob(y, at),
    ]
    whole = [(call(x, one), call(x, each)) for call in calls]
    cuts = [torch.arange(b) for b in (range(1, 71) if dim == 33 else (1, 2, 31, 32, 33, 63))]
    cuts += [torch.arange(5, 5 + b) for b in (1, 3, 34)]
    cuts += [torch.tensor(sorted(range(n), key=lambda i, s=s: (i * s) % 71)) for s in (3, 17, 29)]
    for cut in cuts:
        for call, (at_one, at_each) in zip(calls, whole, strict=True):
            assert torch.equal(call(x[cut], one), at_one[cut])
            assert torch.equal(call(x[cut], rows_of(each, cut)), at_each[cut])


def test_many_points_cross_the_chunks_unchanged() -> None:
    """Enough components and rows for several blocks of both."""
    data = GaussianMixture.empirical(randn(1, 1500, 180))
    diagonal = GaussianMixture(randn(1, 1500, 180), stds=0.1 + randn(2, 1500, 180).abs())
    x, level = randn(3, 40, 180), VP().level(0.8)
    for mixture in (data, diagonal):
        whole = mixture.denoise(x, level)
        for cut in (slice(0, 1), slice(39, 40), slice(3, 37)):
            assert torch.equal(mixture.denoise(x[cut], level), whole[cut])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_touches_no_other(kind: str, bad: float) -> None:
    mixture, _ = build(kind)
    process = VP()
    x = randn(1, 40, D)
    poisoned = x.clone()
    poisoned[7, 1] = bad
    others = [i for i in range(40) if i != 7]
    for level in (process.level(0.4), levels(process, 40)):
        for call in (mixture.score(process), mixture.log_prob, mixture.posterior_cov):
            clean, dirty = call(x, level), call(poisoned, level)
            assert torch.equal(clean[others], dirty[others])
            assert not dirty[7].isfinite().all()
        probe = poisoned.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_prob(probe, level)[others].sum(), probe)
        assert gradient[others].isfinite().all()
    each = levels(process, 40)
    broken = Level(each.t, each.alpha, each.sigma.clone().index_fill_(0, torch.tensor([7]), math.nan))
    assert torch.equal(mixture.denoise(x, each)[others], mixture.denoise(x, broken)[others])


# ------------------------------------------------------------------------------------- the contract of a model


@pytest.mark.parametrize("kind", mostly_slow(FORMS, ["full", "low rank"]))
def test_no_host_sync(kind: str) -> None:
    mixture, _ = build(kind)
    process = VP()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(5, D)
        for level in (process.level(torch.empty((), dtype=F64)), process.level(torch.empty(5, dtype=F64))):
            for want in WANTS:
                assert mixture.score(process)(x, level, want).shape == (5, D)
            assert mixture.log_prob(x, level).shape == (5,)
            assert mixture.posterior_cov(x, level).shape == (5, D, D)
    model = mixture.score(process)
    with FakeTensorMode(allow_non_fake_inputs=True):
        far = torch.empty(5, D, device="meta")  # a host level, data elsewhere
        assert model(far, Level(*(torch.empty((), dtype=F64) for _ in range(3)))).device.type == "meta"
    assert model(torch.zeros(2, D), process.level(0.5)).device.type == "cpu"


@pytest.mark.parametrize("kind", mostly_slow(FORMS, ["full"]))
def test_compiles_to_one_graph(kind: str) -> None:
    mixture, _ = build(kind)
    process = VP()
    model = mixture.score(process)
    torch.compiler.reset()

    def both(x: Tensor, one: Level, each: Level) -> tuple[Tensor, Tensor]:
        return model(x, one), model(x, each, "v")

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    x, one, each = randn(1, 6, D), process.level(0.5), levels(process, 6)
    for got, want in zip(compiled(x, one, each), both(x, one, each), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMS)
def test_compiles_with_the_default_backend(kind: str) -> None:
    mixture, _ = build(kind)
    process = VP()
    model = mixture.score(process)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    x, level = randn(1, 6, D), process.level(0.5)
    torch.testing.assert_close(compiled(x, level), model(x, level), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_second_derivatives(kind: str) -> None:
    mixture, _ = build(kind)
    process = VP()
    model, level = mixture.score(process), process.level(0.4)
    x, v = randn(1, 3, D), randn(2, 3, D)
    forward = torch.func.jvp(lambda y: model(y, level), (x,), (v,))[1]
    backward = torch.func.vjp(lambda y: model(y, level), x)[1](v)[0]
    torch.testing.assert_close(forward, backward, rtol=1e-11, atol=1e-11)  # the Hessian of log p is symmetric
    assert torch.autograd.gradgradcheck(lambda y: model(y, level), x.requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind: str) -> None:
    mixture, _ = build(kind)
    process = VP()
    x, level = randn(1, 3, D), process.level(0.4)
    model = mixture.score(process)
    for again in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x, level), model(x, level))
    assert model.module is None
    assert torch.equal(model.rows(torch.tensor([0]))(x[:1], level), model(x, level)[:1])
    time = torch.full((3,), 0.4, dtype=F64)
    assert torch.equal(model.net(x, time), model(x, process.level(time)))


def test_shapes_and_dtypes() -> None:
    process = VP()
    level = process.level(0.4)
    images = GaussianMixture(randn(1, 2, 3, 2, 2), stds=0.3)
    x = randn(2, 4, 3, 2, 2)
    model = images.score(process)
    answer = model(x, level)
    assert answer.shape == x.shape
    for dtype, out in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        low = model(x.to(dtype), level)
        assert low.dtype == out
        assert torch.equal(low, model(x.to(dtype).double(), level).to(out))
    swapped = x.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(model(swapped, level), answer)
    assert torch.equal(model(x[:1].expand(5, 3, 2, 2), level)[4], answer[0])
    assert model(x[:0], level).shape == (0, 3, 2, 2)
    assert images.log_prob(x[:0]).shape == (0,)
    assert images.posterior_cov(x[:0], level).shape == (0, 12, 12)
    single = Level(*(v.reshape(1) for v in level))
    torch.testing.assert_close(model(x, single), answer, rtol=1e-13, atol=1e-13)
    scalars = GaussianMixture([-1.0, 1.0], stds=[0.1, 0.2])
    assert scalars.score(process)(torch.zeros(5), level).shape == (5,)
    assert scalars.sample(3).shape == (3,)
    assert scalars.mean().shape == ()
    for kind in KINDS:
        mixture, _ = build(kind, shape=(2, 2))
        assert mixture.denoise(x[:0, 0], level).shape == (0, 2, 2)
        assert mixture.posterior_cov(x[:, 0], level).shape == (4, 4, 4)
        assert mixture.to("meta").means.device.type == "meta"
        assert str(K) in repr(mixture)


def test_plain_numbers_keep_their_digits_and_inputs_are_copied() -> None:
    means = torch.tensor([[0.1, 0.2]], dtype=F64, requires_grad=True)
    mixture = GaussianMixture(means, stds=[0.1], weights=[1e-300])
    with torch.no_grad():
        means.add_(1)
    assert torch.equal(mixture.means, torch.tensor([[0.1, 0.2]], dtype=F64))
    assert not mixture.means.requires_grad
    assert mixture.weights.item() == 1.0
    tiny = GaussianMixture([[0.0], [1.0]], stds=0.1, weights=[1e-300, 1e300])
    assert 0 <= tiny.weights[0] < 1e-299
    assert torch.equal(GaussianMixture([[0.1]], stds=0.1).means, torch.tensor([[0.1]], dtype=F64))


def test_moments() -> None:
    mixture = GaussianMixture([[0.0, 0.0], [4.0, 0.0]], stds=[1.0, 2.0], weights=[3, 1])
    torch.testing.assert_close(mixture.mean(), torch.tensor([1.0, 0.0], dtype=F64))
    within, between = 0.75 * 1 + 0.25 * 4, 0.75 * 1 + 0.25 * 9
    torch.testing.assert_close(mixture.cov(), torch.tensor([[within + between, 0.0], [0.0, within]], dtype=F64))
    assert len(mixture) == 2


EYE = torch.eye(2)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, InvalidArgumentError, "give stds, or covs"),
    ({"stds": 1.0, "covs": EYE.expand(3, 2, 2)}, InvalidArgumentError, "give stds, or covs"),
    ({"factors": torch.ones(3, 2, 1)}, InvalidArgumentError, "factors with stds"),
    ({"stds": torch.ones(2)}, InvalidArgumentError, r"stds has shape \[2\]"),
    ({"stds": -1.0}, InvalidArgumentError, "negative"),
    ({"stds": math.nan}, InvalidArgumentError, "finite"),
    ({"stds": "wide"}, InvalidTypeError, "stds must be"),
    ({"stds": torch.ones(3, dtype=torch.complex64)}, InvalidTypeError, "real"),
    ({"covs": torch.ones(3, 2)}, InvalidArgumentError, r"\[K, D, D\]"),
    ({"covs": torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(3, 2, 2)}, InvalidArgumentError, "symmetric"),
    ({"covs": torch.tensor([[1.0, 2.0], [2.0, 1.0]]).expand(3, 2, 2)}, InvalidArgumentError, "semi-definite"),
    ({"factors": torch.ones(3, 3, 1), "stds": 1.0}, InvalidArgumentError, r"\[K, D, R\]"),
    ({"stds": 1.0, "weights": [1, 1]}, InvalidArgumentError, "one per component"),
    ({"stds": 1.0, "weights": [1, 0, 1]}, InvalidArgumentError, "weight zero"),
    ({"means": torch.zeros(0, 2), "stds": 1.0}, InvalidArgumentError, "at least one component"),
    ({"means": 1.0, "stds": 1.0}, InvalidArgumentError, r"\[K, \*S\]"),
    ({"means": [[math.inf]], "stds": 1.0}, InvalidArgumentError, "means must be finite"),
    ({"means": None, "stds": 1.0}, InvalidTypeError, "means must be"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GaussianMixture(**{"means": torch.zeros(3, 2), **arguments})


def test_bad_calls() -> None:
    mixture = GaussianMixture(torch.zeros(3, 2), stds=0.0)
    process = VP()
    level, x = process.level(0.5), torch.zeros(4, 2)
    model = mixture.score(process)
    with pytest.raises(InvalidArgumentError, match=r"S = \[2\]"):
        model(torch.zeros(4, 3), level)
    with pytest.raises(InvalidTypeError, match="floating"):
        model(torch.zeros(4, 2, dtype=torch.int64), level)
    with pytest.raises(InvalidTypeError, match="list"):
        model([[0.0, 0.0]], level)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"\[\] or \[4\]"):
        model(x, levels(process, 3))
    with pytest.raises(InvalidArgumentError, match="unknown prediction"):
        model(x, level, "epsilon")
    with pytest.raises(InvalidTypeError, match="Process"):
        mixture.score("vp")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no density"):
        mixture.log_prob(x)
    with pytest.raises(InvalidArgumentError, match="one level"):
        mixture.marginal(levels(process, 3))
    for y, A, std in ((torch.zeros(2), torch.zeros(2, 3), 1.0), (torch.zeros(0), torch.zeros(0, 2), 1.0)):
        with pytest.raises(InvalidArgumentError, match="A has shape"):
            mixture.posterior(y, A, std)
    for std in (-1.0, torch.ones(3)):
        with pytest.raises(InvalidArgumentError, match="noise_std"):
            mixture.posterior(torch.zeros(2), torch.zeros(2, 2), std)
    with pytest.raises((TypeError, ValueError)):
        mixture.sample(-1)
    with pytest.raises(InvalidTypeError, match="mean"):
        Gaussian(None, std=1.0)
    with pytest.raises(InvalidArgumentError, match="redundant"):
        Gaussian([0.0, 0.0], std=1.0).posterior([0.0, 0.0], [[1.0, 0.0], [1.0, 0.0]], 0.0)
