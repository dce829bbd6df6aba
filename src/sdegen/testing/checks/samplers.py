r"""`check_sampler`: are these samples from that law? With a stated rate of false alarms and a stated sight.

False alarms: `false_fail` is split evenly over the eight statistical properties, and within each over its directions,
modes and sides (Bonferroni); an exact sampler fails with at most that probability. False passes: what a property "sees"
is the discrepancy that it would have found with probability at least `1 - false_pass`.

Not seen: discrepancies below that; dependence between samples other than copies; and in many dimensions a fault in few
of them, or in how they hang together, is smaller along random directions than it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.checks.sampler_trial import Trial, described
from sdegen.testing.report import Inapplicable, Measure, Report, Suite, holds, run
from sdegen.testing.statistics import (
    cell_test,
    copy_test,
    energy_test,
    ks_test,
    mean_test,
    mmd_test,
    mode_test,
    spread_test,
)
from sdegen.testing.statistics.bounds import forgiven, rate
from sdegen.testing.statistics.sequential import Sampler, streams

SAMPLER = Suite("sampler")
_STATISTICAL = 8
_CELLS = 8


def _usable(trial: Trial) -> str | None:
    return "some samples are not finite" if trial.broken else None


def _known(trial: Trial) -> str | None:
    return _usable(trial) or (None if trial.law is not None else "needs a target whose law is known, a GaussianMixture")


def _wide(trial: Trial) -> str | None:
    return _known(trial) or (None if bool(trial.mixture.cov().any()) else "the target is one point")


def _dense(trial: Trial) -> str | None:
    return _known(trial) or ("the target has no density" if bool(trial.mixture.covariances.singular) else None)


def _several(trial: Trial) -> str | None:
    one = trial.law is not None and len(trial.law) == 1
    return _usable(trial) or ("the target has one mode" if one else None)


def _distinct(trial: Trial) -> str | None:
    if trial.x[0].numel() == 1:
        return "rounding makes copies of single numbers"
    return _usable(trial) if trial.law is None else _dense(trial)


def _exact(trial: Trial) -> str | None:
    return _usable(trial) or (None if trial.slack == 0 else "allows no slack")


@SAMPLER.states("every sample is finite")
def finite(trial: Trial) -> Iterator[Measure]:
    yield Measure("samples that are not finite", float(trial.broken))


@SAMPLER.states("the same seed gives the same samples, another seed gives others")
def reproducible(trial: Trial) -> Iterator[Measure]:
    few, one, other = min(len(trial.x), 64), trial.seeds[2], trial.seeds[3]
    first, again, different = (torch.nan_to_num(trial.sampler(few, seed)) for seed in (one, one, other))
    yield holds("one seed gave two results", torch.equal(first, again))
    point = trial.law is not None and not bool(trial.law.cov().any())
    yield holds("two seeds gave one result", point or not torch.equal(first, different))


@SAMPLER.states("no more samples are copies of one another than the target's", applies=_distinct)
def distinct(trial: Trial) -> Iterator[Measure]:
    if copy_test(trial.y, trial.x, seed=trial.seeds[4]).statistic > 0.01:
        raise Inapplicable("the target repeats its samples")
    yield from trial.measure("share of copies", copy_test(trial.x, trial.y, seed=trial.seeds[4]))


@SAMPLER.states("P(u.x <= t) is the target's for all t, along every direction u", applies=_usable)
def projections(trial: Trial) -> Iterator[Measure]:
    target = trial.y if trial.law is None else trial.law
    result = ks_test(trial.x, target, along=trial.along, seed=trial.seeds[5], slack=trial.slack)
    yield from trial.measure("KS distance", result)


@SAMPLER.states("every mode, or cell, has the target's mass: E P(k | x) = pi_k", applies=_several)
def masses(trial: Trial) -> Iterator[Measure]:
    if trial.law is not None:
        result = mode_test(trial.x, trial.law, seed=trial.seeds[6], slack=trial.slack)
    else:
        centres = torch.unique(trial.draw(_CELLS, trial.seeds[6]), dim=0)
        result = cell_test(trial.x, trial.y, centres, slack=trial.slack)
    yield from trial.measure("change of mass", result)


@SAMPLER.states("E u.x = u.mu along every direction u", applies=_known)
def mean(trial: Trial) -> Iterator[Measure]:
    result = mean_test(trial.x, trial.mixture, along=trial.along, seed=trial.seeds[5], slack=trial.slack)
    yield from trial.measure("shift in sd", result)


@SAMPLER.states("E (u.(x - mu))^2 = u^T C u along every direction u", applies=_wide)
def spread(trial: Trial) -> Iterator[Measure]:
    try:
        result = spread_test(trial.x, trial.mixture, along=trial.along, seed=trial.seeds[5], slack=trial.slack)
    except InvalidArgumentError as error:  # no spread beyond rounding
        raise Inapplicable(str(error)) from None
    yield from trial.measure("relative change", result)


@SAMPLER.states("log p(x) is distributed as under the target", applies=_dense)
def density(trial: Trial) -> Iterator[Measure]:
    here, there = (trial.mixture.log_prob(v) for v in (trial.x, trial.y))
    yield from trial.measure("KS distance of log p", ks_test(here, there, slack=trial.slack)._replace(what=""))


@SAMPLER.states("the energy distance to the target is 0", applies=_exact)
def energy(trial: Trial) -> Iterator[Measure]:
    yield from trial.bets(energy_test, trial.seeds[7])


@SAMPLER.states("the maximum mean discrepancy to the target is 0", applies=_usable)
def mmd(trial: Trial) -> Iterator[Measure]:
    # the scale is taken from other samples than those tested
    total = trial.draw(1000, trial.seeds[9]).double().var(0).sum() if trial.law is None else trial.law.cov().trace()
    # laws within t in total variation are within sqrt 2 t here
    test = functools.partial(mmd_test, scale=float(total.sqrt()) or 1.0, slack=math.sqrt(2) * trial.slack)
    yield from trial.bets(test, trial.seeds[8])


def check_sampler(
    sampler: Sampler,
    target: GaussianMixture | Sampler,
    n: int = 100_000,
    *,
    false_fail: float = 1e-9,
    false_pass: float = 1e-6,
    slack: float = 0.0,
    along: int = 16,
    resolution: float = 0.0,
    batch: int = 1000,
    max_batches: int = 8,
    seed: int = 0,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check that `sampler(n, seed)` draws independent samples `[n, *S]` of the target; the report says what was seen.

    target: a `GaussianMixture` (the data's law, or that of a solver whose bias is known), or another sampler. An exact
    sampler fails with probability at most false_fail; each property sees, with probability at least `1 - false_pass`,
    the discrepancy that its line names. slack: what is allowed, in total variation, hence in KS distance and masses
    too; in the mean it is a shift of the target by so many standard deviations, in the variance a relative change;
    energy is then left out. along: how many random directions. The last two properties draw batches of their own,
    `max_batches` at most, and stop early once the target is rejected, or the MMD provably below `resolution`.

    only, expected_failed, fail_fast, raise_on_fail: as in `sdegen.testing.report.run`. Raises PropertyError if a
    property fails, InvalidArgumentError and InvalidTypeError on arguments or samples that cannot be compared; what the
    sampler raises passes.
    """
    if not callable(sampler):
        raise InvalidTypeError(f"sampler must be callable as sampler(n, seed), got {sampler!r}")
    law = target if isinstance(target, GaussianMixture) else None
    source: Any = target if law is None else functools.partial(_sampled, law)
    if not callable(source):
        raise InvalidTypeError(f"target must be a GaussianMixture or callable as target(n, seed), got {target!r}")
    if n < 2:
        raise InvalidArgumentError(f"n must be at least 2, got {n}; 100_000 for instance")
    rates = rate(false_fail, "false_fail") / _STATISTICAL, rate(false_pass, "false_pass")
    seeds = tuple(streams(seed, 10))
    x: Any = sampler(n, seeds[0])
    shape = target.shape if isinstance(target, GaussianMixture) else source(2, seeds[9]).shape[1:]
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != (n, *shape):
        expected = [n, *shape]
        raise InvalidArgumentError(f"sampler(n, seed) must return floating samples {expected}, got {described(x)}")
    trial = Trial(
        sampler, law, source, x.detach(), along, forgiven(slack), *rates, resolution, batch, max_batches, seeds
    )
    name = repr(law) if law is not None else getattr(target, "__name__", repr(target))
    allowed = f", slack {slack:g}" if slack else ""
    title = (
        f"check_sampler: {n:,} samples against {name}{allowed}\n"
        f"  false alarms {false_fail:g} in all; 'sees': found with probability {1 - false_pass:.8g}"
    )
    return run(
        SAMPLER,
        trial,
        title,
        only=only,
        expected_failed=expected_failed,
        fail_fast=fail_fast,
        raise_on_fail=raise_on_fail,
    )


def _sampled(law: GaussianMixture, n: int, seed: int) -> Tensor:
    return law.sample(n, seed=seed)
