"""Statistical tests and `check_sampler`: rates of false alarms by simulation, power at the size that is stated, scipy.

Everything is seeded. Limits on simulated frequencies are exact binomial quantiles at 1e-9, so that for fresh seeds all
the comparisons of this file together would fail by chance with a probability below 1e-6.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from cases import mostly_slow

import sdegen as sd
from sdegen.testing.checks.samplers import SAMPLER, check_sampler
from sdegen.testing.report import PropertyError
from sdegen.testing.statistics import (
    cell_test,
    copy_test,
    energy_test,
    ks_test,
    mean_test,
    mmd_test,
    mode_test,
    permutation,
    spread_test,
)
from sdegen.testing.statistics.bounds import bisect, escaped, kl, unlikely
from sdegen.testing.statistics.kolmogorov import _gap, _Supremum, _Walk
from sdegen.testing.statistics.moments import Cumulants
from sdegen.testing.statistics.projections import directions, marginals, project
from sdegen.testing.statistics.sequential import bet, sequential, streams

F64 = torch.float64
UNLIKELY = 1e-9
REPEATS = 2000
ALPHA, BETA = 1e-9, 1e-6

NORMAL = sd.Gaussian(torch.zeros(1), std=1.0)
PLANE = sd.Gaussian(torch.zeros(2), std=1.0)
LINE = sd.GaussianMixture(torch.tensor([[-1.0], [0.4], [1.3]]), stds=[0.3, 0.25, 0.5], weights=[0.3, 0.5, 0.2])
THREE = sd.GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.7, -0.4], [0.1, 1.0]]), stds=[0.3, 0.4, 0.35], weights=[0.2, 0.5, 0.3]
)
APART = sd.GaussianMixture(torch.tensor([[-8.0, 0.0], [0.0, 8.0], [8.0, 0.0]]), stds=0.5, weights=[0.2, 0.3, 0.5])


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def kinds():
    """A mixture of every kind of covariance, in four dimensions."""
    means, square = random(3, 4, seed=1), random(3, 4, 4, seed=2)
    return {
        "isotropic": sd.GaussianMixture(means, stds=[0.3, 0.5, 1.0], weights=[0.2, 0.3, 0.5]),
        "diagonal": sd.GaussianMixture(means, stds=random(3, 4, seed=3).abs()),
        "full": sd.GaussianMixture(means, covs=square @ square.mT, weights=[0.6, 0.3, 0.1]),
        "low rank": sd.GaussianMixture(means, stds=0.2, factors=square[..., :2]),
        "factors and diagonal": sd.GaussianMixture(means, stds=random(3, 4, seed=4).abs(), factors=square[..., :1]),
        "points": sd.GaussianMixture.empirical(means),
    }


def batches(law, size, count=REPEATS, seed=1):
    return law.sample(size * count, seed=seed).reshape(count, size, *law.shape)


def most(alpha, repeats=REPEATS):
    """The count that a binomial of probability alpha exceeds with probability 1e-9 at most."""
    return scipy.stats.binom.isf(UNLIKELY, repeats, alpha)


def check_null(p_values):
    """P-values under the null hypothesis are small no more often than they say."""
    p = np.asarray(p_values)
    assert ((p > 0) & (p <= 1)).all()
    for alpha in (0.05, 0.01):
        assert (p <= alpha).sum() <= most(alpha, len(p)), f"{(p <= alpha).mean()} at {alpha}"


# Under the null hypothesis


@pytest.mark.slow
def test_ks_against_a_mixture_keeps_its_level():
    check_null([ks_test(x, LINE).p_value for x in batches(LINE, 20)])


def test_ks_of_two_samples_keeps_its_level_and_has_its_exact_law():
    pairs = zip(batches(LINE, 20, seed=2), batches(LINE, 20, seed=3))
    p = np.array([ks_test(x, y).p_value for x, y in pairs])
    check_null(p)
    # P(D >= 9/20) = 0.0336 exactly; the bound of this test is larger by the paths that touch both sides, below 1e-4
    level = _Walk(20, 1).p_value(9 / 20)
    exact = scipy.stats.ks_2samp(np.arange(20.0), np.arange(20.0) + 8.5, method="exact")
    assert exact.statistic == pytest.approx(9 / 20)
    assert exact.pvalue <= level <= exact.pvalue * 1.01
    low = scipy.stats.binom.ppf(UNLIKELY, REPEATS, exact.pvalue)
    assert low <= (p <= level * (1 + 1e-9)).sum() <= most(level)


@pytest.mark.slow
def test_masses_of_modes_keep_their_level():
    check_null([mode_test(x, THREE).p_value for x in batches(THREE, 30)])


@pytest.mark.slow
def test_masses_of_cells_keep_their_level():
    pairs = zip(batches(THREE, 30, seed=2), batches(THREE, 40, seed=3))
    check_null([cell_test(x, y, THREE.means).p_value for x, y in pairs])


@functools.lru_cache
def energy_ranks():
    """Ranks of the energy distance among 19 relabellings, under the null hypothesis."""
    pairs = zip(batches(THREE, 10, seed=2), batches(THREE, 12, seed=3))
    return np.array([energy_test(x, y, permutations=19, seed=i).p_value for i, (x, y) in enumerate(pairs)])


@pytest.mark.slow
def test_permutation_p_values_are_exact():
    p = energy_ranks()
    check_null(p)
    low = scipy.stats.binom.ppf(UNLIKELY, REPEATS, 0.05)
    assert low <= (p == 0.05).sum()  # without ties the rank is uniform: the top one has exactly 1/20
    assert (p / 2 <= 0.05).sum() > most(0.05)  # a p-value half of what it should be is caught by this very check


@pytest.mark.parametrize("squares", [False, True])
def test_cramers_bound_keeps_its_level(squares):
    """Of one mean of n values of a skew mixture, 30,000 times at once."""
    n, repeats = 5, 30_000
    law = marginals(LINE, tensor([1.0]))
    a, s = (law.means - law.mean) / law.std, law.stds / law.std
    z = (LINE.sample(n * repeats, seed=4)[:, 0] - law.mean) / law.std
    e = ((z.square() - 1) if squares else z).reshape(repeats, n).mean(1)
    cumulants = Cumulants(law.weights, a.expand(repeats, 3), s.expand(repeats, 3), squares)
    check_null((2 * torch.exp(-n * cumulants.rate(e))).clamp(max=1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        lambda x, y, i: ks_test(x, y[:12], along=3, seed=i),
        lambda x, y, i: ks_test(x, THREE, along=3, seed=i),
        lambda x, y, i: ks_test(x, y, slack=1e-12, seed=i),
        lambda x, y, i: copy_test((4 * x).round(), (4 * y).round(), seed=i),
        lambda x, y, i: mmd_test(x, y, permutations=19, seed=i),
        lambda x, y, i: mmd_test(x, y, permutations=19, scale=0.3, seed=i),
        lambda x, y, i: mmd_test(x, y, slack=1e-12, scale=0.3, seed=i),
        lambda x, y, i: mean_test(x, THREE, along=2, seed=i),
        lambda x, y, i: spread_test(x, THREE, along=2, seed=i),
        lambda x, y, i: cell_test(x, y, THREE.means, slack=1e-12),
    ],
    ids=[
        "ks-unequal",
        "ks-law",
        "ks-slack",
        "copies",
        "mmd",
        "mmd-scale",
        "mmd-slack",
        "mean",
        "spread",
        "cells-slack",
    ],
)
def test_the_other_tests_keep_their_level(test):
    pairs = zip(batches(THREE, 20, seed=2), batches(THREE, 20, seed=3))
    check_null([test(x, y, i).p_value for i, (x, y) in enumerate(pairs)])


@pytest.mark.slow
def test_slack_keeps_the_level_at_its_edge():
    """Samples of a law at just the distance that is allowed."""
    shift = 0.3
    distance = 2 * scipy.stats.norm.cdf(shift / 2) - 1
    check_null([ks_test(x + shift, NORMAL, slack=distance).p_value for x in batches(NORMAL, 20, 200)])
    check_null([mean_test(x + shift, NORMAL, slack=shift).p_value for x in batches(NORMAL, 20, 100)])
    check_null([spread_test(1.1**0.5 * x, NORMAL, slack=0.1).p_value for x in batches(NORMAL, 20, 100)])
    tilted = sd.GaussianMixture(APART.means, stds=0.5, weights=[0.25, 0.25, 0.5])
    check_null([mode_test(x, APART, slack=0.05).p_value for x in batches(tilted, 30, 200)])


def test_a_single_number_repeated_is_no_evidence():
    """Ties everywhere, and components without width: distances that rounding makes are not differences of laws."""
    point = sd.GaussianMixture.empirical(tensor([0.7, -2.0, 1e3]))
    x = point.sample(50, dtype=torch.float32)
    assert ks_test(x, point).statistic == 0.0
    for result in (mean_test(x, point), energy_test(x, x), mmd_test(x, x), copy_test(x, x), ks_test(x, x)):
        assert result.p_value == 1.0
    origin = sd.GaussianMixture.empirical(torch.zeros(1, 2))
    assert ks_test(torch.zeros(50, 2), origin).statistic == 0.0
    assert marginals(origin, torch.eye(2, dtype=F64)).cdf(0, tensor(-1e-9, 0.0, 1e-9)).tolist() == [0.0, 1.0, 1.0]
    far = sd.GaussianMixture.empirical(tensor([0.7, -2.0, 1e3], [0.0, 1.0, -3.0]))
    y = far.sample(2000, seed=3, dtype=torch.float32)
    assert ks_test(y, far, along=8).statistic < 0.1  # equal to the misfit of the two masses, not to a jump
    assert mode_test(y, far).p_value > 1e-3
    off = y + torch.tensor([0.0, 0.0, 0.1])
    assert ks_test(off, far, along=8).statistic > 0.4  # a jump that is missed by more than rounding


# Evidence


@pytest.mark.parametrize("ranks", [2, 20, 400])
def test_bets_on_ranks_are_fair(ranks):
    returns = [bet(r / ranks, ranks) for r in range(1, ranks + 1)]
    assert math.fsum(returns) / ranks == pytest.approx(1.0, abs=1e-12)
    assert returns == sorted(returns, reverse=True)
    assert min(returns) >= 0.25


def test_bets_on_p_values_are_fair():
    """(p - 1)/log p is a primitive of the bet: its integral over [a, 1] is 1 - (1 - a)/log(1/a), so 1 in all."""
    for a in (1e-12, 1e-3, 0.5):
        logs = np.linspace(math.log(a), 0, 2)
        area, error = scipy.integrate.quad(lambda l: bet(math.exp(l)) * math.exp(l), *logs, epsabs=1e-13)
        assert area == pytest.approx(1 - (1 - a) / math.log(1 / a), abs=error + 1e-11)
    p = np.geomspace(1e-300, 1.0, 400)
    assert (np.diff([bet(v) for v in p]) <= 1e-9).all()
    assert bet(1.0) == 0.5
    assert bet(0.0) == math.inf


@pytest.mark.slow
def test_evidence_of_null_samples_is_at_most_one_on_average():
    returns = np.array([bet(p, 20) for p in energy_ranks()])
    uniform = np.array([bet(r / 20, 20) for r in range(1, 21)])
    # Bernstein's inequality at 1e-9, with the variance and the range that a uniform rank has
    log = math.log(1 / UNLIKELY)
    margin = math.sqrt(2 * uniform.var() * log / REPEATS) + uniform.max() * log / (3 * REPEATS)
    assert returns.mean() <= 1 + margin
    assert np.mean([bet(min(1.0, max(0.05, p - 0.05)), 20) for p in energy_ranks()]) > 1 + margin  # ranks one too low


@pytest.mark.parametrize(
    ("test", "size"),
    [
        pytest.param(ks_test, 30, id="ks"),
        pytest.param(functools.partial(energy_test, permutations=19), 8, id="energy", marks=pytest.mark.slow),
    ],
)
def test_wealth_rarely_grows_under_the_null(test, size):
    """Ville: P(ever >= 10) <= 0.1, although the test stops as soon as it does."""
    target = NORMAL if test is ks_test else draw(NORMAL)
    ends = [
        sequential(draw(NORMAL), target, test, false_fail=0.1, batch=size, max_batches=5, seed=s) for s in range(100)
    ]
    assert sum(e.verdict == "rejected" for e in ends) <= most(0.1, 100)
    check_null([e.p_value for e in ends])


# Power, at the size that is stated. Each finds its fault but for a probability of 1e-6.


def draw(law, change=lambda x: x):
    return lambda n, seed: change(law.sample(n, seed=seed))


def found(result, size):
    """The fault of the stated size is rejected, and the critical value tells the same as the p-value."""
    assert math.isfinite(size)
    assert result.p_value <= ALPHA
    assert result.statistic >= result.critical(ALPHA) * (1 - 1e-9)


def test_critical_values_are_the_inverse_of_p_values():
    """At the level of its own p-value a statistic is just critical, in every test that has a formula."""
    x, y = THREE.sample(200, seed=1) + 0.4, THREE.sample(200, seed=2)
    x[:9] = x[9:18]
    cells = functools.partial(cell_test, centres=THREE.means)
    for result in (
        ks_test(x, THREE),
        ks_test(x, y),
        ks_test(x, y[:150]),
        ks_test(x, y, slack=0.01),
        mode_test(x, THREE),
        mode_test(x, THREE, slack=0.01),
        cells(x, y),
        cells(y, x),
        cells(x, y[:90], slack=0.01),
        copy_test(x, y),
        mean_test(x, THREE),
        mean_test(x, THREE, slack=0.01),
        spread_test(1.3 * x, THREE),
        spread_test(1.3 * x, THREE, slack=0.01),
        spread_test(0.7 * x, THREE),
        mmd_test(x + 1, y, scale=1.0, slack=0.01),
    ):
        assert result.p_value < 1
        assert result.critical(result.p_value * (1 + 1e-9)) == pytest.approx(result.statistic, rel=1e-6)


def ks_shift(distance):
    """The shift of a unit normal at this KS distance: 2 Phi(shift/2) - 1."""
    return 2 * scipy.stats.norm.ppf((1 + distance) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_ks_finds_what_it_says(seed):
    x, y, few = (NORMAL.sample(n, seed=10 * seed + i) for i, n in enumerate((2000, 2000, 800)))
    for target in (NORMAL, y, few):
        size = ks_test(x, target).detectable(BETA, ALPHA)
        found(ks_test(x + ks_shift(size), target), size)
        assert ks_test(x, target).p_value > ALPHA


def test_ks_sees_what_the_sample_size_allows():
    """sqrt(log(2e9)/2n) + sqrt(log(1e6)/2n)."""
    for n, size in ((10**5, 1.9e-2), (10**6, 6.0e-3), (10**7, 1.9e-3)):
        assert _Supremum(2, n, 1 / n, 0).detectable(BETA, ALPHA) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_masses_find_what_they_say(seed):
    n = 2000
    size = mode_test(APART.sample(n), APART).detectable(BETA, ALPHA)
    cells = cell_test(APART.sample(n), APART.sample(n, seed=99), APART.means).detectable(BETA, ALPHA)
    for change, test in ((size, mode_test), (cells, functools.partial(cell_test, centres=APART.means))):
        wrong = sd.GaussianMixture(APART.means, stds=0.5, weights=[0.2, 0.3 + change, 0.5 - change])
        target = APART if test is mode_test else APART.sample(n, seed=100 + seed)
        found(test(wrong.sample(n, seed=seed), target), change)


def test_a_missing_mode_is_found():
    """All responsibilities of a mode of mass pi are 0: found once (1 - pi)^n is below the level."""
    rare = sd.GaussianMixture(APART.means, stds=0.5, weights=[0.02, 0.48, 0.5])
    without = sd.GaussianMixture(APART.means[1:], stds=0.5, weights=[0.48, 0.5])
    enough = math.ceil(math.log(6 / ALPHA) / -math.log1p(-0.02))
    result = mode_test(without.sample(enough + 1), rare)
    assert result.p_value <= ALPHA
    assert result.what == "mode 0"
    assert mode_test(without.sample(enough // 2), rare).p_value > ALPHA


def test_a_rare_mode_that_grows_is_found_by_itself():
    """The others shrink by the fraction 0.08/0.98, for which their own bounds are too wide."""
    rare = sd.GaussianMixture(APART.means, stds=0.5, weights=[0.02, 0.48, 0.5])
    grown = sd.GaussianMixture(APART.means, stds=0.5, weights=[0.1, 0.9 * 0.48 / 0.98, 0.9 * 0.5 / 0.98])
    result = mode_test(grown.sample(1000), rare)
    assert result.p_value <= ALPHA
    assert result.what == "mode 0"


@pytest.mark.parametrize("law", [PLANE, THREE, APART], ids=["normal", "three", "apart"])
def test_moments_find_what_they_say(law):
    n, along = 3000, torch.eye(2)
    x = law.sample(n, seed=5)
    for test in (mean_test, spread_test):
        assert test(x, law, along=along).p_value > ALPHA
    shift = mean_test(x, law, along=along).detectable(BETA, ALPHA)
    sd0 = law.cov()[0, 0].sqrt()
    for sign in (-1, 1):
        found(mean_test(x + sign * shift * sd0 * tensor(1.0, 0.0), law, along=along), shift)
    change = spread_test(x, law, along=along).detectable(BETA, ALPHA)
    for factor in (1 + change, 1 - change):
        stretched = law.mean() + factor**0.5 * (x - law.mean())
        found(spread_test(stretched, law, along=along), change)


def test_the_power_for_variances_is_below_the_exact_one():
    """Squares of normals: what is stated is found with exactly chi^2's probability, which Chernoff's bound is below."""
    n = 3000
    result = spread_test(NORMAL.sample(n), NORMAL)
    beyond = result.bound
    high = max(float(beyond.cumulants.quantile(math.log(2 / ALPHA) / n, 1.0)), 0.0)
    exact = (1 + high) / (scipy.stats.chi2.ppf(BETA, n) / n) - 1
    assert exact <= result.detectable(BETA, ALPHA) <= 1.1 * exact


def test_correlated_coordinates_are_found_off_the_axes():
    n = 5000
    diagonal = torch.ones(1, 2)
    rho = spread_test(PLANE.sample(n), PLANE, along=diagonal).detectable(BETA, ALPHA)
    correlated = sd.Gaussian(torch.zeros(2), cov=tensor([1.0, rho], [rho, 1.0])).sample(n, seed=3)
    found(spread_test(correlated, PLANE, along=diagonal), rho)
    for test in (ks_test, mean_test, spread_test):
        assert test(correlated, PLANE, along=torch.eye(2)).p_value > ALPHA


def far_points(share):
    """A share of the samples far away: an MMD of sqrt(2) times the share to the samples at 0."""

    def sampler(n, seed):
        uniform = torch.special.ndtr(sd.Gaussian(torch.zeros(1), std=1.0).sample(n, seed=seed))
        return 1e3 * (uniform < share).to(F64)

    return sampler


def test_mmd_finds_what_it_says():
    test = functools.partial(mmd_test, scale=1.0, permutations=19)
    zeros = torch.zeros(500, 1, dtype=F64)
    for kind, level in ((test, 0.05), (functools.partial(mmd_test, scale=1.0, slack=0.1), ALPHA)):
        size = kind(zeros, zeros).detectable(BETA, level)
        assert size < 1.0
        for seed in range(5):
            assert kind(far_points(size / math.sqrt(2))(500, seed), zeros, seed=seed).p_value <= level


def test_relabelled_statistics_stay_below_their_bound():
    """Half of the pooled samples here, half far away, is the worst case for the spread of relabelled statistics."""
    x, y = torch.zeros(40, 1), 1e3 * torch.ones(40, 1)
    bound = mmd_test(x, y, scale=1.0, permutations=2000, seed=1).bound
    for chance in (0.5, 0.1, UNLIKELY):  # half of it is for a relabelled statistic above the rest of `topped`
        miss = math.sqrt(2 * bound.proxy * math.log(2 / chance))
        assert bound.others.max() <= bound.topped(chance) - miss


def test_mmd_with_slack_knows_its_mean_without_a_difference():
    """Samples far from one another: MMD^2 = 1/n + 1/m whatever their labels, no evidence at all."""
    x = 1e3 * torch.arange(30, dtype=F64)[:, None]
    result = mmd_test(x[:10], x[10:], scale=1.0, slack=1e-12)
    assert result.statistic == pytest.approx(math.sqrt(1 / 10 + 1 / 20))
    assert result.p_value == pytest.approx(1.0, abs=1e-9)


def test_copies_are_found():
    n = 1000
    assert copy_test(THREE.sample(n), THREE.sample(n, seed=2)).p_value == 1.0
    size = copy_test(THREE.sample(n), THREE.sample(n, seed=2)).detectable(BETA, ALPHA)
    x = THREE.sample(n)
    copies = round(size * n / 2)
    x[-copies:] = x[:copies]
    found(copy_test(x, THREE.sample(n, seed=2)), size)
    x[-copies:-1] = THREE.sample(copies - 1, seed=3)  # one pair alone
    assert copy_test(x, THREE.sample(n, seed=2)).p_value == pytest.approx(0.25)
    for dim in (3, 17, 300):  # all bits of a row count, wherever it stands
        x, y = random(100, dim, seed=1).float(), random(100, dim, seed=2).float()
        assert copy_test(torch.cat((x, x.flip(0))), torch.cat((y, y))).statistic == 1.0
        assert copy_test(x, y).statistic == 0.0


# Sequential


def test_sequential_stops_early_where_the_case_is_clear():
    test = functools.partial(mmd_test, scale=1.0)
    same, other = draw(PLANE), draw(PLANE, lambda x: x + 2)
    wrong = sequential(other, same, test, batch=100, max_batches=20)
    # a top rank among 400 pays 215: four pay 2e9
    assert (wrong.verdict, wrong.batches, wrong.n) == ("rejected", 4, 400)
    assert wrong.p_value <= 1e-9
    right = sequential(same, same, test, batch=100, max_batches=20, resolution=0.5)
    assert right.verdict == "accepted"
    assert 1 < right.batches < 20
    assert right.statistic < right.upper <= 0.5
    doubt = sequential(same, same, test, batch=100, max_batches=3, resolution=0.01)
    assert (doubt.verdict, doubt.batches) == ("undecided", 3)
    assert doubt.p_value == 1.0


def test_sequential_works_with_every_test_and_growing_batches():
    wrong = draw(THREE, lambda x: 1.3 * x + 0.3)
    for test in (ks_test, mode_test, mean_test, spread_test):
        end = sequential(wrong, THREE, test, batch=100, growth=2.0, max_batches=8)
        assert end.verdict == "rejected", test
        assert end.n == sum(100 * 2**t for t in range(end.batches))
    end = sequential(draw(THREE), THREE, ks_test, batch=500, growth=2.0, max_batches=5, resolution=0.1)
    assert end.verdict == "accepted"
    # proxies are 1/(4 n): the weights of the mean are the sizes
    sizes, seen = [r.n for r in end.results], [r.statistic for r in end.results]
    assert end.statistic == pytest.approx(np.average(seen, weights=sizes))
    assert end.upper == pytest.approx(end.statistic + math.sqrt(math.log(5 / BETA) / (2 * sum(sizes))))


def test_batches_are_fresh():
    seen = []

    def test(x, y, seed):
        seen.append(seed)
        return ks_test(x, y, seed=seed)

    def sampler(n, seed):
        seen.append(seed)
        return NORMAL.sample(n, seed=seed)

    sequential(sampler, sampler, test, batch=10, max_batches=7)
    assert len(seen) == len(set(seen)) == 21


@pytest.mark.parametrize("seed", mostly_slow([0, 1], [0]))
def test_sequential_finds_what_it_says(seed):
    zeros = lambda n, seed: torch.zeros(n, 1, dtype=F64)  # noqa: E731
    test, sizes = functools.partial(mmd_test, scale=1.0), dict(batch=500, max_batches=5)
    size = sequential(zeros, zeros, test, **sizes).detectable
    assert size < 0.8
    assert sequential(far_points(size / math.sqrt(2)), zeros, test, seed=seed, **sizes).verdict == "rejected"
    size = sequential(draw(NORMAL), NORMAL, ks_test, **sizes).detectable
    shifted = draw(NORMAL, lambda x: x + ks_shift(size))
    assert sequential(shifted, NORMAL, ks_test, seed=seed, **sizes).verdict == "rejected"
    assert sequential(zeros, zeros, test, batch=10, max_batches=3).detectable == math.inf  # three cannot pay 1e9


@pytest.mark.slow
def test_upper_limits_are_above_the_distance():
    """At false_pass = 0.1 the limit may be below the KS distance of the laws in a tenth of the runs."""
    shifted, distance = draw(NORMAL, lambda x: x + 0.2), 2 * scipy.stats.norm.cdf(0.1) - 1
    ends = [
        sequential(shifted, NORMAL, ks_test, batch=30, max_batches=4, false_pass=0.1, false_fail=1e-99, seed=s)
        for s in range(100)
    ]
    assert sum(e.upper < distance for e in ends) <= most(0.1, 100)


# Agreement with scipy, and with closed forms


def test_ks_statistics_agree_with_scipy():
    x, y = NORMAL.sample(300, seed=1), NORMAL.sample(300, seed=2)
    for other in (y, y[:170], (3 * y).round() / 3):
        theirs = scipy.stats.ks_2samp(x[:, 0], other[:, 0])
        assert ks_test(x, other).statistic == pytest.approx(theirs.statistic, abs=1e-12)
    theirs = scipy.stats.kstest(x[:, 0], "norm")
    assert ks_test(x, NORMAL).statistic == pytest.approx(theirs.statistic, abs=1e-12)


def test_the_tail_of_two_sample_ks_is_exact_far_out():
    """Paths that touch both sides have about the fourth power of the probability of one side."""
    x = np.arange(200.0)
    for shift in (40, 80, 160):
        theirs = scipy.stats.ks_2samp(x, x + shift - 0.5, method="exact")
        ours = _Walk(200, 1).p_value(theirs.statistic)
        assert ours == pytest.approx(theirs.pvalue, rel=1e-3)
        assert ours >= theirs.pvalue * (1 - 1e-9)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 129, 5000, 30_000])
def test_the_supremum_is_found_without_looking_everywhere(n):
    law = marginals(LINE, tensor([1.0]))
    t = LINE.sample(n, seed=n)[:, 0].sort().values
    f, steps = law.cdf(0, t), torch.arange(n + 1, dtype=F64) / n
    assert _gap(t, law, 0, 0.0) == max(float((steps[1:] - f).max()), float((f - steps[:-1]).max()))


def test_energy_and_mmd_agree_with_their_definitions():
    x, y = LINE.sample(60, seed=1), 0.3 + LINE.sample(80, seed=2)
    theirs = scipy.stats.energy_distance(x[:, 0], y[:, 0])
    assert energy_test(x, y).statistic == pytest.approx(theirs, rel=1e-9)

    def mean_kernel(a, b):
        return np.mean([np.exp(-((a - b.T) ** 2) / (2 * (0.7 * h) ** 2)) for h in permutation.BANDWIDTHS])

    x, y = x.numpy(), y.numpy()
    squared = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    ours = mmd_test(torch.tensor(x), torch.tensor(y), scale=0.7).statistic
    assert ours == pytest.approx(math.sqrt(squared), rel=1e-9)


def test_memory_is_bounded_by_tiles(monkeypatch):
    x, y = THREE.sample(50, seed=1), THREE.sample(70, seed=2)
    whole = energy_test(x, y)
    monkeypatch.setattr(permutation, "_TILE", 1000)
    parts = energy_test(x, y)
    assert parts.p_value == whole.p_value
    assert parts.statistic == pytest.approx(whole.statistic, rel=1e-12)


def test_relabelling_is_uniform():
    """The six ways to label two of four, each 1/6 of the time."""
    signs = permutation.labels(2, 2, 6000, seed=3)[:, 1:] > 0
    counts = np.unique(signs.numpy(), axis=1, return_counts=True)[1]
    assert len(counts) == 6
    low, high = (f(UNLIKELY, 6000, 1 / 6) for f in (scipy.stats.binom.ppf, scipy.stats.binom.isf))
    assert low <= counts.min() <= counts.max() <= high


def test_cell_p_values_are_fishers():
    x, y = tensor(*[[0.0]] * 7, *[[1.0]] * 13), tensor(*[[0.0]] * 15, *[[1.0]] * 10)
    tail = scipy.stats.hypergeom(45, 22, 20).cdf(7)
    assert cell_test(x, y, tensor([0.0], [1.0])).p_value == pytest.approx(min(1.0, 2 * 2 * tail), rel=1e-9)
    assert cell_test(y, x, tensor([0.0], [1.0])).p_value == pytest.approx(min(1.0, 2 * 2 * tail), rel=1e-9)
    big = cell_test(x.repeat(40, 1), y.repeat(40, 1), tensor([0.0], [1.0]))
    tail = scipy.stats.hypergeom(1800, 880, 800).logcdf(280)
    assert math.log(big.p_value / 4) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("n", [10, 1000])
def test_bounds_are_above_the_exact_tails_and_not_far(n):
    """Chernoff bounds exceed exact tails by a power of n, not by an exponential of it."""
    e = torch.linspace(0.1, 2.0, 8, dtype=F64)
    one, none = torch.ones(8, 1, dtype=F64), torch.zeros(8, 1, dtype=F64)
    for squares, closed, tails in (
        (False, e * e / 2, scipy.stats.norm.logsf(e * math.sqrt(n))),
        (True, (e - torch.log1p(e)) / 2, scipy.stats.chi2.logsf(n * (1 + e), n)),
    ):
        rate = Cumulants(tensor(1.0), none, one, squares).rate(e)
        torch.testing.assert_close(rate, closed, rtol=1e-9, atol=0)
        assert (-n * rate.numpy() >= tails).all()
        assert (-n * rate.numpy() - tails <= 3 + math.log(n)).all()
    low = Cumulants(tensor(1.0), none, one, True).rate(-torch.linspace(0.1, 0.9, 8, dtype=F64))
    assert (-n * low.numpy() >= scipy.stats.chi2.logcdf(n * (1 - np.linspace(0.1, 0.9, 8)), n)).all()
    share = torch.arange(1, n + 1, dtype=F64) / n
    exact = scipy.stats.binom.logsf(n * share - 1, n, 0.3)
    bound = torch.where(share > 0.3, -n * kl(share, tensor(0.3)), 0.0).numpy()
    assert (bound >= exact - 1e-9).all()


def test_quantiles_invert_rates():
    law = marginals(THREE, directions(3, 5, 2))
    a, s = (law.means - law.mean[:, None]) / law.std[:, None], law.stds / law.std[:, None]
    for squares in (False, True):
        cumulants = Cumulants(law.weights, a, s, squares)
        for side in (1.0, -1.0):
            e = cumulants.quantile(0.02, side)
            assert (side * e > 0).all()
            torch.testing.assert_close(cumulants.rate(e), torch.full_like(e, 0.02), rtol=1e-9, atol=0)
    p = tensor(0.1, 0.5, 0.97)
    for side, order in ((1.0, 1), (0.0, -1)):
        edge = unlikely(p, 0.02, side)
        torch.testing.assert_close(kl(edge, p), torch.full_like(p, 0.02), rtol=1e-9, atol=0)
        assert (order * (edge - p) > 0).all()
        beyond = escaped(edge, 0.02, side)
        torch.testing.assert_close(kl(edge, beyond), torch.full_like(p, 0.02), rtol=1e-9, atol=0)
        assert (order * (beyond - edge) > 0).all()
    assert unlikely(tensor(0.9), 1.0, 1.0).isnan()
    assert bisect(lambda v: v >= 0.3, tensor(0.0), tensor(1.0)) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", kinds())
def test_projections_of_mixtures_are_exact(kind):
    law = kinds()[kind]
    u = directions(1, 6, 4)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(10, dtype=F64))
    seen = marginals(law, u)
    torch.testing.assert_close(seen.mean, u @ law.mean())
    torch.testing.assert_close(seen.std.square(), ((u @ law.cov()) * u).sum(1))
    for k, one in enumerate(torch.eye(3, dtype=F64)):
        cov = law.covariances.average(one, 4)
        torch.testing.assert_close(seen.stds[:, k].square(), ((u @ cov) * u).sum(1), atol=1e-15, rtol=1e-9)
    if kind != "points":
        t = torch.linspace(-3, 3, 7, dtype=F64)
        for p in range(len(u)):
            parts = scipy.stats.norm.cdf(t[:, None], seen.means[p], seen.stds[p])
            np.testing.assert_allclose(seen.cdf(p, t), parts @ law.weights.numpy(), rtol=0, atol=1e-14)
    x = law.sample(4000, seed=7).float()
    torch.testing.assert_close(project(x, u), (x.double() @ u.T).T)
    for test in (ks_test, mode_test, mean_test, spread_test):
        assert test(x, law).p_value > ALPHA, test


# check_sampler

COUNTER = itertools.count()
QUICK = dict(batch=200, max_batches=5, raise_on_fail=False)


@pytest.mark.parametrize("kind", mostly_slow([*kinds(), "three", "apart", "line", "normal"], ["three", "line"]))
def test_exact_samplers_pass(kind):
    law = {**kinds(), "three": THREE, "apart": APART, "line": LINE, "normal": NORMAL}[kind]
    report = check_sampler(draw(law), law, 5000, **QUICK)
    assert report.ok, report
    assert "sees" in str(report)
    assert {o.prop.name for o in report.outcomes} == {p.name for p in SAMPLER}


@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.bfloat16], [torch.bfloat16]))
def test_exact_samplers_pass_in_other_dtypes_and_at_any_size(dtype):
    for law, n in ((THREE, 2000), (sd.GaussianMixture(tensor(0.0, 1.0), stds=0.3), 2)):
        report = check_sampler(lambda n, s, law=law: law.sample(n, seed=s, dtype=dtype), law, n, **QUICK)
        assert report.ok, report
    assert "sees inf" in str(check_sampler(draw(THREE), THREE, 2, **QUICK))  # two samples say nothing
    thin = sd.Gaussian(torch.full((2,), 100.0), std=1e-9)
    assert check_sampler(draw(thin, lambda x: x.to(dtype)), thin, 1000, **QUICK)["spread"].status == "-"


def test_a_sampler_can_be_the_target():
    report = check_sampler(lambda n, s: THREE.sample(n, seed=s).float(), draw(THREE), 10_000, **QUICK)
    assert report.ok, report
    assert report["mean"].status == "-"
    wrong = check_sampler(draw(THREE, lambda x: x + 0.2), draw(THREE), 10_000, **QUICK)
    assert {"projections", "masses"} <= {o.prop.name for o in wrong.failed}


def test_rounding_is_forgiven_where_the_target_has_no_width():
    """A few units in the last place off each of three points, always to the same side."""
    law = kinds()["points"]
    off = lambda n, seed: law.sample(n, seed=seed).float() * (1 + 3 * torch.finfo(torch.float32).eps)  # noqa: E731
    for target in (law, draw(law)):
        report = check_sampler(off, target, 5000, **QUICK)
        assert report.ok, report
        assert report["distinct"].status == "-"
    assert failures(lambda n, seed: off(n, seed) * 1.0001, law, 5000) >= {"projections"}


def failures(sampler, law, n=20_000, **options):
    return {o.prop.name for o in check_sampler(sampler, law, n, **{**QUICK, **options}).failed}


def test_a_scale_off_by_two_per_cent_is_found():
    assert "spread" in failures(draw(PLANE, lambda x: 1.02 * x), PLANE, 200_000, only=["spread", "mean"])


@pytest.mark.parametrize(
    ("fault", "by"),
    [
        (draw(sd.GaussianMixture(THREE.means, stds=[0.3, 0.4, 0.35], weights=[0.26, 0.44, 0.3])), {"masses"}),
        (draw(sd.GaussianMixture(THREE.means[1:], stds=[0.4, 0.35], weights=[0.5, 0.3])), {"masses", "energy", "mmd"}),
        (draw(THREE, lambda x: x + 0.4), {"projections", "mean", "energy", "mmd"}),
        (draw(THREE, lambda x: x.repeat(2, 1)[: len(x)]), set()),
        (draw(THREE, lambda x: x[: -(-len(x) // 2)].repeat(2, 1)[: len(x)]), {"distinct"}),
        (lambda n, seed: THREE.sample(n, seed=5), {"reproducible"}),
        (lambda n, seed: THREE.sample(n, seed=next(COUNTER)), {"reproducible"}),
        (draw(THREE, lambda x: torch.where(x > 1.7, math.nan, x)), {"finite"}),
        (draw(THREE, lambda x: 1.4 * x), {"projections", "spread", "density"}),
    ],
    ids=["weights", "mode", "shift", "none", "copies", "fixed-seed", "no-seed", "nan", "scale"],
)
def test_planted_faults_are_found(fault, by):
    seen = failures(fault, THREE, batch=400 if "energy" in by else 100)
    assert by <= seen
    assert by or not seen


@pytest.mark.slow
def test_dependence_between_projections_is_found_by_the_distances():
    """Right along the axes, as a copula of signs: the product of two normals is always positive."""
    wrong = draw(PLANE, lambda x: x.abs() * torch.sign(x[:, :1]))
    assert {"energy", "mmd", "projections"} <= failures(wrong, PLANE, batch=500)


def test_faults_too_small_to_be_seen():
    """A fault in one of many coordinates that keeps its mean and variance is too small along random directions."""
    law = sd.Gaussian(torch.zeros(64), std=1.0)
    wrong = draw(law, lambda x: torch.cat((torch.sign(x[:, :1]), x[:, 1:]), 1))
    assert failures(wrong, law, 5000, only=["projections", "mean", "spread", "energy"]) == set()
    axes = torch.eye(64)[:1]
    assert ks_test(wrong(5000, 1), law, along=axes).p_value <= ALPHA


def test_a_solver_is_checked_against_its_target_and_against_its_own_law():
    model = THREE.score(sd.VP())
    good = lambda n, seed: sd.sample(model, (n, 2), steps=20, seed=seed)  # noqa: E731
    poor = lambda n, seed: sd.sample(model, (n, 2), steps=5, solver=sd.ddim(), seed=seed)  # noqa: E731
    assert failures(good, THREE, 5000) == set()
    assert {"projections", "mean", "spread"} & failures(poor, THREE, 5000, only=["projections", "mean", "spread"])
    assert failures(poor, lambda n, seed: poor(n, seed), 2000) == set()
    wide = sd.GaussianMixture(1.1 * THREE.means, stds=1.1 * tensor(0.3, 0.4, 0.35), weights=[0.2, 0.5, 0.3])
    assert failures(draw(THREE, lambda x: 1.1 * x), THREE, 20_000, only=["spread"])
    assert failures(draw(THREE, lambda x: 1.1 * x), wide, 20_000) == set()


@pytest.mark.slow
def test_slack_allows_a_known_bias():
    bias = draw(THREE, lambda x: 1.03 * x)
    assert {"spread", "projections"} <= failures(bias, THREE, 200_000, only=["spread", "projections"])
    report = check_sampler(bias, THREE, 50_000, slack=0.07, **QUICK)
    assert report.ok, report
    assert report["energy"].status == "-"
    assert "spread" in failures(draw(THREE, lambda x: 1.2 * x), THREE, 50_000, slack=0.07)
    shifted = draw(THREE, lambda x: x + 0.4)
    assert failures(shifted, THREE, 500, only=["mmd"]) == {"mmd"}
    assert failures(shifted, THREE, 500, only=["mmd"], slack=0.5) == set()


def test_reports_say_what_was_seen():
    report = check_sampler(draw(THREE), THREE, 5000, only=["projections", "mmd"], batch=500, resolution=0.5)
    assert "accepted" in report["mmd"].worst.what
    size = ks_test(THREE.sample(5000), THREE).detectable(BETA, ALPHA / 8)
    assert f"sees {size:.2g}" in report["projections"].worst.what
    with pytest.raises(PropertyError, match="projections"):
        check_sampler(draw(THREE, lambda x: x + 1), THREE, 5000, only=["projections"])
    waived = {"projections": "known to be shifted"}
    check_sampler(draw(THREE, lambda x: x + 1), THREE, 5000, only=["projections"], expected_failed=waived)


@pytest.mark.slow
def test_exact_samplers_pass_at_ordinary_levels():
    """At false_fail = 0.2 no more than a fifth of exact samplers may fail; in 60, not more than 35."""
    options = dict(false_fail=0.2, batch=50, max_batches=3, raise_on_fail=False)
    reports = [check_sampler(draw(THREE), THREE, 300, seed=s, **options) for s in range(60)]
    assert sum(not r.ok for r in reports) <= most(0.2, 60)


# Arguments

X = THREE.sample(20)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ks_test([1.0], THREE), sd.InvalidTypeError, "floating tensor"),
        (lambda: ks_test(X.long(), THREE), sd.InvalidTypeError, "int64"),
        (lambda: ks_test(X[:, :1], THREE), sd.InvalidArgumentError, "shape"),
        (lambda: ks_test(X[:0], THREE), sd.InvalidArgumentError, "at least one sample"),
        (lambda: ks_test(X / 0, THREE), sd.InvalidArgumentError, "20 of its 20"),
        (lambda: ks_test(X, X[:, :1]), sd.InvalidArgumentError, "shape"),
        (lambda: ks_test(X, THREE, slack=-1.0), sd.InvalidArgumentError, "slack"),
        (lambda: ks_test(X, THREE, along=0), sd.InvalidArgumentError, "direction"),
        (lambda: ks_test(X, THREE, along=torch.zeros(1, 2)), sd.InvalidArgumentError, "directions"),
        (lambda: mode_test(X, PLANE), sd.InvalidArgumentError, "one mode"),
        (lambda: spread_test(X, sd.GaussianMixture.empirical(X[:1])), sd.InvalidArgumentError, "no spread"),
        (lambda: copy_test(X, X.float()), sd.InvalidArgumentError, "float64"),
        (lambda: energy_test(X, X, permutations=0), sd.InvalidArgumentError, "permutations"),
        (lambda: mmd_test(X, X, scale=0.0), sd.InvalidArgumentError, "positive"),
        (lambda: mmd_test(X, X, bandwidths=()), sd.InvalidArgumentError, "bandwidths"),
        (lambda: ks_test(X, THREE).detectable(0.0), sd.InvalidArgumentError, "false_pass"),
        (lambda: ks_test(X, THREE).critical(1.0), sd.InvalidArgumentError, "false_fail"),
        (lambda: bet(1.5), sd.InvalidArgumentError, "p-value"),
        (lambda: bet(0.03, 20), sd.InvalidArgumentError, "1/20"),
        (lambda: sequential(draw(THREE), THREE, ks_test, batch=0), sd.InvalidArgumentError, "batch=0"),
        (lambda: check_sampler(3, THREE), sd.InvalidTypeError, "sampler"),
        (lambda: check_sampler(draw(THREE), 3), sd.InvalidTypeError, "target"),
        (lambda: check_sampler(draw(THREE), THREE, 1), sd.InvalidArgumentError, "n must"),
        (lambda: check_sampler(draw(PLANE, lambda x: x[:-1]), PLANE, 9), sd.InvalidArgumentError, r"\[9, 2\]"),
        (lambda: check_sampler(draw(PLANE), PLANE, 9, false_fail=2.0), sd.InvalidArgumentError, "false_fail"),
        (lambda: check_sampler(draw(PLANE), PLANE, 9, only=["means"]), sd.InvalidArgumentError, "mean"),
    ],
)
def test_rejects_invalid_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_streams_are_distinct_and_fit_any_generator():
    seeds = streams(5, 1000)
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) <= max(seeds) < 2**31
