"""All suites of properties, and their properties as test cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sdegen.errors import InvalidTypeError
from sdegen.processes.process import Process
from sdegen.processes.sde import SDE
from sdegen.testing.checks import solvers, theorems  # noqa: F401 - they add properties
from sdegen.testing.checks.claims import SOLVER, claim
from sdegen.testing.checks.noises import NOISE, sourced
from sdegen.testing.checks.processes import PROCESS
from sdegen.testing.checks.samplers import SAMPLER
from sdegen.testing.checks.scores import SCORE, scored
from sdegen.testing.checks.sdes import SDES, general
from sdegen.testing.report import Check, Suite, bound

SUITES: dict[str, Suite] = {
    "solver": SOLVER,
    "process": PROCESS,
    "score": SCORE,
    "noise": NOISE,
    "sde": SDES,
    "sampler": SAMPLER,
}
"""The properties by kind of object; print one to read its statements."""

PATHS = frozenset(
    {
        "batch_independence",
        "constant_memory",
        "fault_isolation",
        "liouville",
        "micro_batches",
        "no_host_reads",
        "one_graph",
        "threads",
    }
)
"""The properties of a solver that test the code of its class, whatever its numbers: they are checked on one solver of
each `shipped.path`. All others are checked on every solver."""


def checks(
    subject: Any, *, only: Any = None, expected_failed: Any = None, full: bool = False, **claims: Any
) -> list[Check]:
    """The properties that apply to a solver, process, SDE, score model or noise source, as one callable each.

    only, expected_failed, full, claims: the options of the object's `check_...`; calling a check raises `PropertyError`
    if its property fails. Raises InvalidTypeError on what is none of these.
    """
    suite, bind = _kind(subject)
    title = getattr(subject, "__name__", str(subject))
    found = bound(suite, bind(subject, **claims), title, only=only, expected_failed=expected_failed, full=full)
    return [check for check in found if check.applies()]


def _kind(subject: Any) -> tuple[Suite, Callable[..., Any]]:
    """The suite of an object, and what makes its subject of the object and the claims."""
    made = isinstance(subject, type) and (issubclass(subject, SDE) or hasattr(subject, "step"))
    if made or isinstance(subject, torch.nn.Module):
        advice = "make one first" if made else "wrap it: sd.ScoreModel(process, net)"
        raise InvalidTypeError(f"checks takes an object to check, got {subject!r}; {advice}")
    if isinstance(subject, Process):
        return PROCESS, lambda process: process
    if isinstance(subject, SDE):
        return SDES, general
    if hasattr(subject, "step") and hasattr(subject, "init"):
        return SOLVER, claim
    if callable(subject) and isinstance(getattr(subject, "process", None), Process):
        return SCORE, scored
    if callable(subject):
        return NOISE, sourced
    raise InvalidTypeError(
        f"there are checks for solvers, processes, SDEs, score models and makers of noise sources; got {subject!r}"
    )


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
