"""What is said about a metric: intervals that cover, floors, failed samples, streams, errors, metrics of your own.

Coverage is simulated. Limits on the number of intervals that miss are binomial quantiles at 1e-9; a slow test covers
every metric, a fast one those that are cheap.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats
import torch
from cases import crossed, mostly_slow
from torch import nn

import sdegen as sd
import sdegen.metrics as sm
from sdegen.metrics.intervals import median, skewed
from sdegen.metrics.ustatistics import one_sample, pair_sums

F64 = torch.float64
THREE = sd.GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.7, -0.4], [0.1, 1.0]]), stds=[0.3, 0.4, 0.35], weights=[0.2, 0.5, 0.3]
)
UNLIKELY = 1e-9


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@functools.cache
def full_target(n=64):
    x = THREE.sample(n, seed=7)
    return x, replace(sm.Target.of(THREE, n, seed=1), ends=x + 0.01 * normals(n, 2), ends_spare=x + 0.001)


# --------------------------------------------------------------------------------------------------- coverage
def covered(metric, n, away, repeats, resamples=60, m=None, level=0.95):
    """How many intervals hold the expectation, which is the mean over as many sets (of squares, for a root)."""
    found, name = [], metric.name
    for r in range(repeats):
        seeds = 2 * r + 10**6 * (1 + away)
        x, y = THREE.sample(n, seed=seeds), THREE.sample(m or n, seed=seeds + 1)
        x = 1.15 * x + 0.15 if away else x
        errors = 0.1 * normals(n, 2, seed=r) * (1 + away * normals(n, 1, seed=r + 10**6))
        target = sm.Target(samples=y, law=THREE, ends=x + errors)
        found.append(sm.measure(metric, x, target, floor=0.0, resamples=resamples, seed=r, level=level)[:3])
    value, low, high = np.array(found).T
    power = 2 if name == "rmse" or getattr(metric, "kind", "") == "root" else 1
    truth = np.mean(value**power) ** (1 / power)
    return int(((low <= truth) & (truth <= high)).sum())


def enough(hits, repeats, low=0.95, high=0.95):
    """Whether so many hits are likely for a rate of coverage in [low, high]."""
    least = scipy.stats.binom.ppf(UNLIKELY, repeats, low)
    most = scipy.stats.binom.isf(UNLIKELY, repeats, high)
    return least <= hits <= most


@pytest.mark.parametrize(
    ("name", "away"),
    mostly_slow(
        crossed(["energy", "mmd", "kid", "ksd", "rmse"], [False, True]),
        [("energy", False), ("energy", True), ("ksd", False), ("rmse", True)],
    ),
)
def test_intervals_of_closed_forms_cover(name, away):
    """At n = 100 a rate below 0.78 or above 0.999... would be seen: 150 intervals."""
    assert enough(covered(sm.NAMES[name](), 100, away, 150), 150)
    assert not enough(118, 150)


SLOW = dict.fromkeys(sm.NAMES, 200) | {"w2": 60, "sw2": 100, "frechet_inf": 100, "is_inf": 100}


@pytest.mark.slow
@pytest.mark.parametrize("away", [False, True], ids=["null", "away"])
@pytest.mark.parametrize("name", sorted(sm.NAMES))
def test_intervals_cover(name, away):
    """400 intervals, whose rate of coverage is within 0.92 and 0.98 for all but the extrapolated."""
    repeats, metric = 400, sm.SlicedWasserstein(directions=16) if name == "sw2" else sm.NAMES[name]()
    low, high = (0.90, 0.999) if name.endswith("_inf") else (0.92, 0.98)
    hits = covered(metric, SLOW[name], away, repeats, resamples=100)
    print(f"{name} {'away' if away else 'null'}: {hits / repeats:.3f}")
    assert enough(hits, repeats, low, high), hits / repeats


@pytest.mark.slow
@pytest.mark.parametrize("name", ["energy", "mmd", "kid", "sw2", "recall"])
def test_intervals_cover_for_sets_of_different_sizes_and_other_levels(name):
    metric = sm.SlicedWasserstein(directions=16) if name == "sw2" else sm.NAMES[name]()
    assert enough(covered(metric, 150, True, 300, m=300, resamples=60), 300, 0.92, 0.98)
    assert enough(covered(metric, 100, True, 300, resamples=60, level=0.8), 300, 0.76, 0.87)


def test_spreads_of_pairs_are_the_jackknifes_and_known():
    """The closed form against leaving out each sample of either set; `2 tr C^2/n^2` for the kernel x.y."""
    x, y = normals(60, 2, seed=1), 1.5 * normals(50, 2, seed=2) + 0.3
    seen = sm.Energy().estimate(x, sm.Target(samples=y)).spread.jackknife
    known = 0.0
    for v, less in ((x, lambda v: (v, y)), (y, lambda v: (x, v))):
        left = np.array([sm.energy_distance(*less(torch.cat((v[:i], v[i + 1 :])))) for i in range(len(v))])
        known += (len(v) - 1) / len(v) * ((left - left.mean()) ** 2).sum()
    assert seen == pytest.approx(known, rel=0.06)
    z = normals(2000, 3, seed=5) * torch.tensor([1.0, 2.0, 0.5])
    spread = one_sample(pair_sums(lambda a, b: a @ b.T, z)).spread
    squares = float(z.T.cov().square().sum())
    assert spread.second == pytest.approx(2 * squares / 2000**2, rel=0.01)
    assert spread.bias == pytest.approx(float(z.T.cov().trace()) / 2000, rel=0.01)


def test_means_of_skewed_numbers_are_covered_better_than_by_t():
    """Squares of errors that are lognormal of shape 1.5 (skewness 33), n = 100: t-intervals cover in 85 %."""
    values = torch.exp(1.5 * normals(1000, 100, seed=2))
    truth = math.exp(1.125)
    hits = plain = 0
    for v in values:
        _, low, high = skewed(v, 0.95)
        hits += low <= truth <= high
        plain += abs(float(v.mean()) - truth) <= 1.984 * float(v.std()) / 10
    assert enough(hits, 1000, 0.88, 0.95)
    assert hits > plain + 30
    exact = [skewed(v, 0.95)[1:] for v in normals(2000, 20, seed=3)]
    assert enough(sum(low <= 0 <= high for low, high in exact), 2000, 0.945, 0.955)


def test_the_medians_interval_is_exact():
    for n in (8, 30, 101):
        hits = 0
        for v in torch.exp(3 * normals(1000, n, seed=n)):
            _, low, high = median(v, 0.9)
            hits += low <= 1 <= high
        # the k-th from either end, k the largest with P(B < k) <= 5 %, B ~ binomial(n, 1/2)
        k = sum(scipy.stats.binom.cdf(i, n, 0.5) <= 0.05 for i in range(n))
        rate = 1 - 2 * scipy.stats.binom.cdf(k - 1, n, 0.5)
        assert rate >= 0.9
        assert enough(hits, 1000, rate, rate)
    assert all(map(math.isnan, median(torch.ones(3), 0.95)[1:]))


def test_too_few_samples_have_no_interval():
    x, target = full_target()
    for name in sorted(set(sm.NAMES) - {"frechet_inf", "is_inf"}):
        few = replace(target, ends=target.ends[:7])
        estimate = sm.measure(sm.NAMES[name](), x[:7], few, floor=0.0)
        assert math.isfinite(estimate.value), name
        assert math.isnan(estimate.low), name
        assert math.isnan(estimate.high), name


def test_higher_levels_and_more_samples():
    x, target = full_target()
    for name in ("rmse", "energy", "frechet", "recall", "modes"):
        widths = []
        for level in (0.5, 0.9, 0.99):
            e = sm.measure(sm.NAMES[name](), x, target, level=level, floor=0.0)
            widths.append(e.high - e.low)
        assert widths[0] < widths[1] < widths[2], name


# ------------------------------------------------------------------------------------------------ floors, failures
def test_floors_are_root_mean_squares_over_spare_sets():
    _, target = full_target()
    metric = sm.Energy()
    sets = target.spare.split(50)[:5]
    assert len(target.spare) == 256
    known = math.sqrt(np.mean([metric(s, target) ** 2 for s in sets]))
    assert sm.floor(metric, target, 50) == pytest.approx(known, rel=1e-12)
    assert sm.measure(metric, sets[0], target).floor == sm.floor(metric, target, 50)
    assert math.isnan(sm.floor(metric, replace(target, spare=None), 50))
    assert math.isnan(sm.floor(sm.RMSE(), replace(target, ends_spare=None), 50))
    assert sm.measure(metric, sets[0], target, floor=3.0).floor == 3.0
    for broken in (metric, sm.RMSE()):
        with pytest.raises(sd.InvalidArgumentError, match="spare"):
            sm.floor(broken, target, 1000)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", sorted(sm.NAMES))
def test_failed_samples_are_never_hidden(name, bad):
    x, target = full_target()
    x = x.clone()
    x[[3, 5], 0] = bad
    metric, better = sm.NAMES[name](), name in ("is", "is_inf", "precision", "recall", "density", "coverage", "loglik")
    worst = -math.inf if better else math.inf
    assert metric(x, target) == worst
    estimate = sm.measure(metric, x, target, floor=0.5)
    assert estimate.value == worst
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert estimate.floor == 0.5
    assert sm.failures(x) == 2


# -------------------------------------------------------------------------------------------------------- streams
STREAMED = [
    sm.RMSE(),
    sm.RMSE("mean"),
    sm.MeanError(),
    sm.CovarianceError(),
    sm.Frechet(),
    sm.Frechet(nn.Flatten()),
    sm.InceptionScore(),
    sm.ModeMasses(),
    sm.LogLikelihoodGap(),
]


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("metric", STREAMED, ids=lambda m: f"{m.name}")
def test_streams_merge_in_any_split(metric, offset):
    x, target = full_target()
    law = sd.GaussianMixture(THREE.means + offset, stds=[0.3, 0.4, 0.35], weights=[0.2, 0.5, 0.3])
    x = x + offset
    target = sm.Target(samples=target.samples + offset, law=law, ends=target.ends + offset)
    whole = metric(x, target)
    for cuts in ([64], [1] * 64, [10, 1, 30, 23], [63, 1]):
        streams, start = [], 0
        for size in cuts:
            made, rows = sm.Stream(metric, target), slice(start, start + size)
            made.update(x[rows], *([target.ends[rows]] if metric.name == "rmse" else []))
            streams.append(made)
            start += size
        order = torch.randperm(len(streams), generator=torch.Generator().manual_seed(len(cuts))).tolist()
        first = streams[order[0]]
        for k in order[1:]:
            first.merge(streams[k])
        assert first.count == 64
        assert first.compute() == pytest.approx(whole, rel=1e-10 if not offset else 1e-5, abs=1e-12)


def test_streams_say_what_they_cannot_do():
    x, target = full_target()
    made = sm.stream(sm.MeanError(), target, [x[:10], x[10:]])
    assert made.compute() == pytest.approx(sm.MeanError()(x, target), rel=1e-12)
    bad = x.clone()
    bad[2] = math.nan
    made.update(bad)
    assert (made.count, made.failed, made.compute()) == (128, 1, math.inf)
    with pytest.raises(sd.InvalidArgumentError, match="no samples"):
        sm.Stream(sm.MeanError(), target).compute()
    with pytest.raises(sd.InvalidArgumentError, match="same"):
        made.merge(sm.Stream(sm.CovarianceError(), target))
    for metric in (sm.Energy(), sm.RMSE("median"), sm.SlicedWasserstein()):
        with pytest.raises(sd.InvalidTypeError, match="at once"):
            sm.Stream(metric, target)


# -------------------------------------------------------------------------------------------- metrics of your own
@dataclass(frozen=True)
class Own:
    name: str = "own"
    kind: str = "root"

    def __call__(self, x, target):
        return float(sm.sliced_wasserstein(x, target.samples, directions=16))


@dataclass(frozen=True)
class Paired:
    name: str = "paired"

    def __call__(self, x, target):
        return float((x - target.ends).square().mean())


def test_a_metric_of_ones_own_is_measured():
    x, target = full_target()
    assert sm.measure(Own(), x, target) == pytest.approx(
        sm.measure(sm.SlicedWasserstein(directions=16), x, target), rel=1e-9
    )
    ours, known = sm.measure(Paired(), x, replace(target, spare=None)), sm.measure(sm.RMSE(), x, target)
    assert ours.value == pytest.approx(known.value**2, rel=1e-9)
    assert ours.high - ours.low == pytest.approx(known.high**2 - known.low**2, rel=0.5)
    assert math.isnan(ours.floor)
    assert sm.measure(Own(), x * math.nan, target).value == math.inf


# --------------------------------------------------------------------------------------------------------- errors
def test_what_a_target_lacks_is_said():
    x, empty = full_target()[0], sm.Target()
    need = dict.fromkeys(sm.NAMES, "samples") | dict.fromkeys(["ksd", "modes", "loglik", "is", "is_inf"], "law")
    need["rmse"] = "ends"
    for name, part in need.items():
        with pytest.raises(sd.InvalidArgumentError, match=f"{name.removesuffix('_inf')}.*needs the target's {part}"):
            sm.measure(sm.NAMES[name](), x, empty)


X = normals(20, 2)
ERRORS = [
    (lambda: sm.sliced_wasserstein(X, X[:, :1]), sd.InvalidArgumentError, "shape"),
    (lambda: sm.sliced_wasserstein(X.long(), X), sd.InvalidTypeError, "floating"),
    (lambda: sm.sliced_wasserstein(X, X, directions=0), sd.InvalidArgumentError, "direction"),
    (lambda: sm.SlicedWasserstein(directions=0), sd.InvalidArgumentError, "direction"),
    (lambda: sm.energy_distance(X, X * math.nan), sd.InvalidArgumentError, "20 of its 20"),
    (lambda: sm.energy_distance(X[:1], X), sd.InvalidArgumentError, "2 samples"),
    (lambda: sm.wasserstein(X, X[:10]), sd.InvalidArgumentError, "as many"),
    (lambda: sm.wasserstein(X, X, limit=10), sd.InvalidArgumentError, "at most 10"),
    (lambda: sm.Wasserstein(limit=0), sd.InvalidArgumentError, "limit"),
    (lambda: sm.mmd(X, X, kernel="cosine"), sd.InvalidArgumentError, "kernel"),
    (lambda: sm.mmd(X, X, scale=0.0), sd.InvalidArgumentError, "scale"),
    (lambda: sm.MMD(bandwidths=()), sd.InvalidArgumentError, "bandwidth"),
    (lambda: sm.mmd(X, torch.zeros(5, 2)), sd.InvalidArgumentError, "median distance"),
    (lambda: sm.KernelStein(exponent=1.0), sd.InvalidArgumentError, "exponent"),
    (lambda: sm.KernelStein(length=-1.0), sd.InvalidArgumentError, "length"),
    (lambda: sm.kernel_stein(X, lambda x: x[:1]), sd.InvalidArgumentError, "score"),
    (lambda: sm.RMSE("mode"), sd.InvalidArgumentError, "statistic"),
    (lambda: sm.rmse(X, X[:3]), sd.InvalidArgumentError, "row by row"),
    (lambda: sm.FrechetInfinity(divisions=(1, 1)), sd.InvalidArgumentError, "two different"),
    (lambda: sm.precision(X, X, k=20), sd.InvalidArgumentError, "k must be"),
    (lambda: sm.inception_score(X), sd.InvalidArgumentError, "probabilities"),
    (lambda: sm.LogLikelihoodGap(draws=1), sd.InvalidArgumentError, "draws"),
    (lambda: sm.ModeMasses()(X, sm.Target(law=sd.Gaussian(torch.zeros(2), std=1.0))), sd.InvalidArgumentError, "one"),
    (lambda: sm.ModeMasses()(X, sm.Target(law=sd.GaussianMixture.empirical(X))), sd.InvalidArgumentError, "density"),
    (lambda: sm.MeanError()(X, sm.Target(samples=torch.ones(5, 2))), sd.InvalidArgumentError, "spread"),
    (lambda: sm.Frechet(lambda x: 3)(X, sm.Target(samples=X)), sd.InvalidTypeError, "features"),
    (lambda: sm.KID(lambda x: x[:3])(X, sm.Target(samples=X)), sd.InvalidArgumentError, "features"),
    (lambda: sm.Target(samples=X, spare=X[:, :1]), sd.InvalidArgumentError, "one sample shape"),
    (lambda: sm.Target(samples=X * math.inf), sd.InvalidArgumentError, "finite"),
    (lambda: sm.Target.of(THREE, 0), sd.InvalidArgumentError, "n >= 1"),
    (lambda: sm.measure(sm.Energy(), X[:, :1], sm.Target(samples=X)), sd.InvalidArgumentError, "shape"),
    (lambda: sm.measure(sm.Energy(), X, sm.Target(samples=X), level=1.0), sd.InvalidArgumentError, "level"),
    (lambda: sm.measure(sm.Energy(), X, sm.Target(samples=X), resamples=3), sd.InvalidArgumentError, "resamples"),
    (lambda: sm.measure(sm.Energy, X, sm.Target(samples=X)), sd.InvalidTypeError, "metric"),
    (lambda: sm.floor(lambda x, t: 0.0, sm.Target(samples=X), 3), sd.InvalidTypeError, "name"),
]


@pytest.mark.parametrize(("call", "error", "words"), ERRORS)
def test_mistakes_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
