"""Values of the metrics: against POT, torchmetrics, scipy and scikit-learn, closed forms, and what cannot change them.

Statistical limits are six standard errors (two-sided 2e-9) of means over independent seeded sets.
"""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import sdegen as sd
import sdegen.metrics as sm
from sdegen.metrics.moments import frechet_moments
from sdegen.metrics.projections import chosen
from sdegen.metrics.stein import mixture_score

F64 = torch.float64
LINE = sd.Gaussian(torch.zeros(1), std=1.0)
THREE = sd.GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.7, -0.4], [0.1, 1.0]]), stds=[0.3, 0.4, 0.35], weights=[0.2, 0.5, 0.3]
)
APART = sd.GaussianMixture(torch.tensor([[-8.0, 0.0], [0.0, 8.0], [8.0, 0.0]]), stds=0.5, weights=[0.2, 0.3, 0.5])


def normals(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


X, Y = normals(60, 3, seed=1), 1.3 * normals(60, 3, seed=2) + 0.2
MORE = 1.3 * normals(90, 3, seed=3) + 0.2


def full_target(n=64, **kw):
    x = THREE.sample(n, seed=7)
    target = replace(sm.Target.of(THREE, n, seed=1), ends=x + 0.01 * normals(n, 2), ends_spare=x + 0.001, **kw)
    return x, target


class Flatten(nn.Module):
    num_features = 3

    def forward(self, x):
        return x.double().flatten(1)


def within(values, expected):
    """Whether the mean of independent values is within six standard errors of what it should be."""
    v = torch.as_tensor(values, dtype=F64)
    return abs(float(v.mean()) - expected) <= 6 * float(v.std()) / math.sqrt(len(v))


# ---------------------------------------------------------------------------------------------- other libraries
@pytest.mark.parametrize("y", [Y, MORE], ids=["as many", "more"])
def test_sliced_wasserstein_is_pots(y):
    ot = pytest.importorskip("ot")
    along = chosen(40, 5, X)
    theirs = ot.sliced_wasserstein_distance(X.numpy(), y.numpy(), projections=along.T.numpy(), p=2)
    assert sm.sliced_wasserstein(X, y, directions=40, seed=5) == pytest.approx(float(theirs), rel=1e-12)
    assert sm.sliced_wasserstein(X, y, directions=3 * along) == pytest.approx(float(theirs), rel=1e-12)
    metric = sm.SlicedWasserstein(directions=40, seed=5)
    assert metric(X, sm.Target(samples=y)) == pytest.approx(float(theirs), rel=1e-12)


def test_wasserstein_is_pots():
    ot = pytest.importorskip("ot")
    theirs = math.sqrt(ot.emd2([], [], ot.dist(X.numpy(), Y.numpy())))
    assert sm.wasserstein(X, Y) == pytest.approx(theirs, rel=1e-12)
    assert sm.Wasserstein()(X, sm.Target(samples=torch.cat((Y, MORE)))) == pytest.approx(theirs, rel=1e-12)
    assert sm.Wasserstein(limit=20)(X, sm.Target(samples=Y)) == pytest.approx(sm.wasserstein(X[:20], Y[:20]), rel=1e-12)


def test_energy_distance_is_scipys_without_the_diagonal():
    x, y = X[:, 0], MORE[:, 0]
    n, m = len(x), len(y)
    biased = scipy.stats.energy_distance(x, y) ** 2
    pairs = [float((v[:, None] - v).abs().sum()) for v in (x, y)]
    ours = biased - pairs[0] * (1 / (n * (n - 1)) - 1 / n**2) - pairs[1] * (1 / (m * (m - 1)) - 1 / m**2)
    assert sm.energy_distance(x, y) == pytest.approx(ours, rel=1e-12)
    assert sm.Energy()(x, sm.Target(samples=y)) == pytest.approx(ours, rel=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "rational_quadratic"])
def test_mmd_by_scikit_learns_kernels(name):
    from sklearn.metrics import pairwise

    scale = np.median(pairwise.euclidean_distances(MORE)[np.triu_indices(90, 1)])

    def kernel(a, b, bandwidth):
        if name == "gaussian":
            return pairwise.rbf_kernel(a, b, gamma=1 / (2 * bandwidth**2))
        return 1 / (1 + pairwise.euclidean_distances(a, b, squared=True) / (2 * bandwidth**2))

    total = 0.0
    for b in (0.5, 2.0):
        xx, yy, xy = (kernel(p, q, b * scale) for p, q in ((X, X), (MORE, MORE), (X, MORE)))
        own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
        total += (sum(own) - 2 * xy.mean()) / 2
    # torch's median of an even number is the lower one
    assert sm.mmd(X, MORE, bandwidths=(0.5, 2.0), kernel=name, scale=float(scale)) == pytest.approx(total, rel=1e-9)
    ours = sm.MMD(bandwidths=(0.5, 2.0), kernel=name)(X, sm.Target(samples=MORE))
    assert ours == pytest.approx(sm.mmd(X, MORE, bandwidths=(0.5, 2.0), kernel=name), rel=1e-12)
    assert ours == pytest.approx(total, rel=1e-2)


def test_frechet_kid_and_inception_score_are_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    kid = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance
    inception = pytest.importorskip("torchmetrics.image.inception").InceptionScore
    images = [v.reshape(-1, 3, 1, 1) for v in (X, Y)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = [
            fid(feature=Flatten(), input_img_size=(3, 1, 1)).set_dtype(F64),
            kid(feature=Flatten(), subsets=1, subset_size=60),
        ]
        for d in distances:
            d.update(images[0], real=True)
            d.update(images[1], real=False)
        scores = inception(feature=Flatten(), splits=1)
        scores.update(images[0])
        theirs = float(distances[0].compute()), float(distances[1].compute()[0]), float(scores.compute()[0])
    target = sm.Target(samples=images[1])
    extract = nn.Flatten()
    assert sm.Frechet(extract)(images[0], target) == pytest.approx(theirs[0], rel=1e-9)
    assert sm.KID(extract)(images[0], target) == pytest.approx(theirs[1], rel=1e-6)
    assert sm.InceptionScore(extract)(images[0], target) == pytest.approx(theirs[2], rel=1e-9)
    assert sm.inception_score(X.softmax(1)) == pytest.approx(theirs[2], rel=1e-9)
    assert sm.frechet(*images) == pytest.approx(theirs[0], rel=1e-9)


def test_precision_recall_density_and_coverage_by_scikit_learns_neighbours():
    from sklearn.metrics import pairwise
    from sklearn.neighbors import NearestNeighbors

    k = 4

    def wide(v):
        return NearestNeighbors(n_neighbors=k).fit(v).kneighbors()[0][:, -1]

    near = X + 1
    d = pairwise.euclidean_distances(near, MORE)
    x, y = wide(near), wide(MORE)
    expected = {
        sm.Precision(k=k): (d <= y).any(1).mean(),
        sm.Recall(k=k): (d <= x[:, None]).any(0).mean(),
        sm.Density(k=k): (d <= y).sum() / (k * len(X)),
        sm.Coverage(k=k): (d <= y).any(0).mean(),
    }
    functions = sm.precision, sm.recall, sm.density, sm.coverage
    for function, (metric, value) in zip(functions, expected.items()):
        assert metric(near, sm.Target(samples=MORE)) == pytest.approx(value, abs=1e-12), metric
        assert function(near, MORE, k=k) == pytest.approx(value, abs=1e-12)
        assert value not in (0, 1)


# ------------------------------------------------------------------------------------------------- closed forms
def test_shifts_and_gaussians_have_known_distances():
    shift = torch.tensor([3.0, 0.0, 4.0])
    assert sm.wasserstein(X, X + shift) == pytest.approx(5.0, rel=1e-12)
    assert sm.sliced_wasserstein(X, X + shift, directions=torch.eye(3)) == pytest.approx(5 / math.sqrt(3), rel=1e-12)
    assert sm.frechet(X, X + shift) == pytest.approx(25.0, rel=1e-9)
    a, b = torch.tensor([1.0, 4.0]).double(), torch.tensor([9.0, 0.25]).double()
    zero, one = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    known = 2.0 + (a.sqrt() - b.sqrt()).square().sum()
    turn = torch.linalg.qr(normals(2, 2, seed=9))[0]
    rotated = [turn @ v.diag() @ turn.T for v in (a, b)]
    assert frechet_moments(zero, rotated[0], one, rotated[1]) == pytest.approx(float(known), rel=1e-12)
    # quantiles at the middles of n equal parts stand for the law: W2 of N(0, 1) and N(1, 2^2) is sqrt(2)
    q = torch.special.ndtri((torch.arange(20_000, dtype=F64) + 0.5) / 20_000)
    assert sm.sliced_wasserstein(q, 2 * q + 1) == pytest.approx(math.sqrt(2), rel=1e-3)
    assert sm.wasserstein(q[::20], 2 * q[::20] + 1) == pytest.approx(sm.sliced_wasserstein(q[::20], 2 * q[::20] + 1))


SETS = [(sd.Gaussian(torch.zeros(2), std=1.0).sample(50, seed=2 * s), normals(40, 2, seed=s)) for s in range(300)]


@pytest.mark.slow
def test_unbiased_metrics_are_right_on_average():
    """Energy and Gaussian MMD of N(0, 1) and N(a, s^2 I) in two dimensions; and 0 for the law itself."""
    a, s = torch.tensor([0.6, -0.3]).double(), 1.4
    far = [(x, a + s * y) for x, y in SETS]

    def gaussian(v, d2=0.0):  # E exp(-|z|^2/2), z ~ N(d, v I)
        return math.exp(-d2 / (2 * (1 + v))) / (1 + v)

    def length(v, d2=0.0):  # E |z| of the Rice law
        t = d2 / (2 * v)
        return math.sqrt(math.pi * v / 2) * scipy.special.hyp1f1(-0.5, 1, -t)

    d2 = float(a.square().sum())
    mmd = gaussian(2) + gaussian(2 * s * s) - 2 * gaussian(1 + s * s, d2)
    energy = 2 * length(1 + s * s, d2) - length(2) - length(2 * s * s)
    assert within([sm.mmd(x, y, scale=1.0, bandwidths=[1.0]) for x, y in far], mmd)
    assert within([sm.energy_distance(x, y) for x, y in far], energy)
    for function in (sm.energy_distance, sm.kernel_distance, lambda x, y: sm.mmd(x, y, scale=1.0)):
        values = [function(x, y) for x, y in SETS]
        assert within(values, 0.0)
        assert not within([function(x, y + 0.2) for x, y in SETS], 0.0)


def test_stein_discrepancy_is_that_of_quadrature():
    """On a line under N(0, 1), of samples of N(0.5, 0.8^2): the double integral of the Stein kernel."""
    z, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    q = 0.5 + 0.8 * z
    x, y = q[:, None], q[None]
    r = (x - y) ** 2
    k, slope = (1 + r) ** -0.5, -((1 + r) ** -1.5) * (x - y)  # k and its derivative by x
    mixed = (1 + r) ** -1.5 - 3 * r * (1 + r) ** -2.5  # by x and y
    known = float(w @ (x * y * k + (-x) * (-slope) + (-y) * slope + mixed) @ w)
    values = [sm.kernel_stein(0.5 + 0.8 * normals(40, 1, seed=s), lambda v: -v) for s in range(400)]
    assert within(values, known)
    assert known > 0.05
    metric, target = sm.KernelStein(length=1.0), sm.Target(law=LINE)
    assert metric(X[:, :1], target) == pytest.approx(sm.kernel_stein(X[:, :1], lambda v: -v), rel=1e-9)
    assert within([sm.KernelStein()(THREE.sample(40, seed=s), sm.Target(law=THREE)) for s in range(300)], 0.0)


def test_stein_kernel_by_differentiation():
    """u of two points in three dimensions, with derivatives of the kernel by autograd."""
    p, q = X[:2]
    score = lambda v: -v * v.square().sum(-1, keepdim=True)  # noqa: E731
    k = lambda a, b: (0.7**2 + (a - b).square().sum()) ** -0.3  # noqa: E731
    s, t = score(p), score(q)
    a, b = (v.clone().requires_grad_() for v in (p, q))
    dp, dq = torch.autograd.grad(k(a, b), (a, b), create_graph=True)
    mixed = sum(torch.autograd.grad(dp[i], b, retain_graph=True)[0][i] for i in range(3))
    known = ((s @ t) * k(p, q) + s @ dq + t @ dp + mixed).detach()
    assert sm.kernel_stein(X[:2], score, length=0.7, exponent=-0.3) == pytest.approx(float(known), rel=1e-10)


def test_the_score_of_a_mixture_is_that_of_a_process():
    process = sd.VP()
    level = process.level(torch.tensor(0.3))
    x = THREE.sample(20, seed=1)
    theirs = THREE.score(process)(x, level, "score")
    torch.testing.assert_close(mixture_score(THREE.marginal(level), x), theirs, rtol=1e-9, atol=1e-9)


def test_errors_of_moments_by_hand():
    x, target = X[:, :2], sm.Target(law=THREE)
    mean, cov = THREE.mean(), THREE.cov()
    away = float((x.mean(0) - mean).square().sum() / cov.trace())
    assert sm.MeanError()(x, target) == pytest.approx(math.sqrt(away), rel=1e-12)
    theirs = np.linalg.norm(np.cov(x.numpy().T) - cov.numpy()) / np.linalg.norm(cov.numpy())
    assert sm.CovarianceError()(x, target) == pytest.approx(theirs, rel=1e-9)
    samples = sm.Target(samples=THREE.sample(400_000))
    for metric in (sm.MeanError(), sm.CovarianceError(), sm.Frechet()):
        assert metric(x, samples) == pytest.approx(metric(x, target), rel=0.02)


def test_rmse_by_hand():
    target = sm.Target(ends=Y)
    errors = ((X - Y) ** 2).mean(1).sqrt()
    assert sm.RMSE()(X, target) == pytest.approx(float((X - Y).square().mean().sqrt()), rel=1e-12) == sm.rmse(X, Y)
    assert sm.RMSE("mean")(X, target) == pytest.approx(float(errors.mean()), rel=1e-12)
    assert sm.RMSE("median")(X, target) == pytest.approx(float(np.median(errors)), rel=1e-12)
    spare = replace(target, ends_spare=Y + 0.001)
    assert sm.floor(sm.RMSE(), spare, 60) == pytest.approx(0.001, rel=1e-9)


def test_modes_are_pearsons_chi_square_where_they_are_apart():
    target, x = sm.Target(law=APART), APART.sample(500, seed=4)
    counts = torch.stack(((x[:, 0] < -4).sum(), (x[:, 1] > 4).sum(), (x[:, 0] > 4).sum()))
    pearson = scipy.stats.chisquare(counts.numpy(), 500 * APART.weights.numpy()).statistic / 2
    assert sm.ModeMasses(draws=200_000)(x, target) == pytest.approx(pearson, rel=0.02)
    three = sm.Target(law=THREE)
    values = [sm.ModeMasses()(THREE.sample(60, seed=s), three) for s in range(300)]
    assert within(values, 1.0)
    assert sm.ModeMasses()(x[x[:, 0] < 4], target) > 50


def test_the_log_likelihood_gap_has_a_closed_form():
    """x ~ N(m, s^2) under N(0, 1): `(1 - m^2 - s^2)/2`; and 0 for exact samples."""
    target = sm.Target(law=LINE)
    values = [sm.LogLikelihoodGap(draws=400_000)(0.5 + 0.8 * normals(50, 1, seed=s), target) for s in range(300)]
    error = 6 * math.hypot(np.std(values) / math.sqrt(300), math.sqrt(0.5 / 400_000))
    assert abs(np.mean(values) - (1 - 0.25 - 0.64) / 2) < error < 0.05
    assert abs(sm.LogLikelihoodGap()(LINE.sample(100_000, seed=3), target)) < 6 * math.sqrt(0.5 / 1e5 + 0.5 / 5e4)


@pytest.mark.slow
def test_extrapolation_removes_the_bias():
    target = sm.Target(law=THREE)
    exact = sm.InceptionScore()(THREE.sample(400_000, seed=1), target)
    for n, plain, limit, value in (
        (200, sm.Frechet(), sm.FrechetInfinity(), 0.0),
        (40, sm.InceptionScore(), sm.InceptionScoreInfinity(), exact),
    ):
        sets = [THREE.sample(n, seed=s) for s in range(300)]
        biased, unbiased = ([metric(x, target) for x in sets] for metric in (plain, limit))
        assert not within(biased, value), plain
        assert abs(np.mean(unbiased) - value) < 0.4 * abs(np.mean(biased) - value), plain


# ------------------------------------------------------------------------------------------------ invariances
@pytest.mark.parametrize("name", sorted(sm.NAMES))
def test_order_and_dtype_do_not_matter(name):
    metric, (x, target) = sm.NAMES[name](), full_target()
    value = metric(x, target)
    assert math.isfinite(value)
    assert sm.NAMES[name]() == metric
    assert metric.name == name
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    shuffled = replace(target, samples=target.samples[order], ends=target.ends[order])
    if not name.endswith("_inf"):  # whose parts are drawn by place
        assert metric(x[order], shuffled) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert metric(x.float(), target) == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert metric(x.bfloat16(), target) == pytest.approx(metric(x.bfloat16().double(), target), rel=1e-9, abs=1e-12)
    assert metric(x, target) == value
    seen = sm.measure(metric, x, target, resamples=20, floor=0.0)
    assert seen == sm.measure(metric, x, target, resamples=20, floor=0.0)
    assert seen.value == pytest.approx(value, rel=1e-12)
    assert seen.low <= seen.value <= seen.high > seen.low


@pytest.mark.parametrize("function", [sm.sliced_wasserstein, sm.wasserstein, sm.energy_distance, sm.mmd, sm.frechet])
def test_rotations_shifts_and_units(function):
    turn = torch.linalg.qr(normals(3, 3, seed=4))[0]
    along = {"directions": torch.eye(3)} if function is sm.sliced_wasserstein else {}
    turned = {"directions": turn} if along else {}
    value = function(X, Y, **along)
    assert function(X @ turn + 5, Y @ turn + 5, **turned) == pytest.approx(value, rel=1e-8)
    power = {sm.sliced_wasserstein: 1, sm.wasserstein: 1, sm.energy_distance: 1, sm.mmd: 0, sm.frechet: 2}[function]
    assert function(10 * X, 10 * Y, **along) == pytest.approx(10**power * value, rel=1e-8)
    images = X.reshape(-1, 1, 3), Y.reshape(-1, 1, 3)
    assert function(*images, **along) == pytest.approx(value, rel=1e-12)


def test_chunks_change_nothing(monkeypatch):
    x, target = full_target()
    names = ("mmd", "energy", "ksd", "kid", "precision", "recall", "density", "coverage", "modes", "loglik")
    whole = {name: sm.measure(sm.NAMES[name](), x, target, resamples=20, floor=0.0) for name in names}
    monkeypatch.setattr("sdegen.metrics.ustatistics._TILE", 64 * 5)
    monkeypatch.setattr("sdegen.metrics.neighbours._TILE", 64 * 5)
    monkeypatch.setattr("sdegen.metrics.pointwise._ROWS", 7)
    monkeypatch.setattr("sdegen.metrics.stein._ROWS", 7)
    target = replace(target)
    for name in names:
        again = sm.measure(sm.NAMES[name](), x, target, resamples=20, floor=0.0)
        assert again == pytest.approx(whole[name], rel=1e-9, abs=1e-12), name
