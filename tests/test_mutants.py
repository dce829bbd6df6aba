"""The checks catch what they are for: planted faults, each by the property that is expected to, and no false alarm."""

from __future__ import annotations

import pytest
from mutation.catalogue import SURVIVORS, all_mutants, controls

MUTANTS = all_mutants()
RAISING = {"TwoM: promotes the state", "Score: detached"}
"""Faults at which torch or the loop raises by itself: the check says so, instead of measuring."""


HEAVY = ("by Adams", "Singlestep, noisy", "by Ancestral", "StochasticHeun: ", "second-order term twice")
"""Faults whose weak orders take seconds: they run with the slow tests."""


def case(mutant):
    heavy = any(name in mutant.name for name in HEAVY)
    return pytest.param(mutant, marks=[pytest.mark.slow] if heavy else [], id=mutant.name)


@pytest.mark.parametrize("mutant", [*map(case, MUTANTS)])
def test_planted_faults_are_caught(mutant):
    if mutant.name in SURVIVORS:
        pytest.skip(SURVIVORS[mutant.name])
    outcome = mutant.check(only=[mutant.caught_by], raise_on_fail=False)[mutant.caught_by]
    assert outcome.status == ("ERROR" if mutant.name in RAISING else "FAILED"), outcome.message


@pytest.mark.slow
@pytest.mark.parametrize("control", controls(), ids=lambda m: m.name)
def test_the_same_objects_without_a_fault_pass(control):
    control.check()


def test_sixty_faults_and_more_are_planted():
    assert len(MUTANTS) >= 60
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert len(SURVIVORS) <= 3
