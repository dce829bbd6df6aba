"""All suites of properties, and their properties as test cases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from sdegen.errors import InvalidTypeError
from sdegen.process import Process
from sdegen.sde import SDE
from sdegen.testing.checks import theorems  # noqa: F401 - it adds properties
from sdegen.testing.checks.claims import SOLVER
from sdegen.testing.checks.noises import NOISE, noise_cases
from sdegen.testing.checks.processes import PROCESS, process_cases
from sdegen.testing.checks.samplers import SAMPLER
from sdegen.testing.checks.scores import SCORE, score_cases
from sdegen.testing.checks.sdes import SDES, sde_cases
from sdegen.testing.checks.solvers import solver_cases
from sdegen.testing.report import Check, Suite

SUITES: dict[str, Suite] = {
    "solver": SOLVER,
    "process": PROCESS,
    "score": SCORE,
    "noise": NOISE,
    "sde": SDES,
    "sampler": SAMPLER,
}
"""The properties by kind of object; print one to read its statements."""


def checks(subject: Any, **options: Any) -> list[Check]:
    """The properties that apply to a solver, process, SDE, score model or noise source, as one callable each.

    options: those of the object's `check_...`, except for `fail_fast` and `raise_on_fail`: calling a check raises
    `PropertyError` if its property fails. Raises InvalidTypeError on what is none of these.
    """
    found: list[Check]
    made = isinstance(subject, type) and (issubclass(subject, SDE) or hasattr(subject, "step"))
    if made or isinstance(subject, torch.nn.Module):
        advice = "make one first" if made else "wrap it: sd.ScoreModel(process, net)"
        raise InvalidTypeError(f"checks takes an object to check, got {subject!r}; {advice}")
    if isinstance(subject, Process):
        found = process_cases(subject, **options)
    elif isinstance(subject, SDE):
        found = sde_cases(subject, **options)
    elif hasattr(subject, "step") and hasattr(subject, "init"):
        found = solver_cases(subject, **options)
    elif callable(subject) and isinstance(getattr(subject, "process", None), Process):
        found = score_cases(subject, **options)
    elif callable(subject):
        found = noise_cases(subject, **options)
    else:
        raise InvalidTypeError(
            f"there are checks for solvers, processes, SDEs, score models and makers of noise sources; got {subject!r}"
        )
    return [check for check in found if check.applies()]


def parametrize_with_checks(subjects: Iterable[Any], **options: Any) -> Any:
    """A pytest decorator: one test for each property of each subject, `def test(check): check()`.

    subjects: objects, or pairs `(object, options)` with options of its own, such as `{"order": 2}`. Those given by name
    are for all. Needs pytest.
    """
    import pytest

    if not isinstance(subjects, Iterable):
        raise InvalidTypeError(f"subjects must be a list, got {subjects!r}; write [{subjects!r}]")
    cases = []
    for entry in subjects:
        subject, own = entry if isinstance(entry, tuple) else (entry, {})
        for check in checks(subject, **{**options, **own}):
            # an address in a name differs from worker to worker
            name = re.sub(r" at 0x[0-9a-f]+", "", check.title)
            cases.append(pytest.param(check, id=f"{name}-{check.prop.name}"))
    return pytest.mark.parametrize("check", cases)
