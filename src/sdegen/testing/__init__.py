"""Checks that prove a solver, a process, a score model or a noise source right: `from sdegen import testing`.

`check_solver(solver, order=2)` and its sisters check named properties, each with a mathematical statement, and return a
report. `parametrize_with_checks` makes pytest cases of them. `strategies` (which needs Hypothesis) draws processes,
grids, mixtures, solvers and the rest; `exact_law` and `exact_law_1d` compute the law of a sampler's output; `faults`
injects what can go wrong with a score; `audit` says why a trained network samples badly.
"""

from __future__ import annotations

import importlib
from typing import Any

from sdegen.testing.checks.noises import check_noise
from sdegen.testing.checks.processes import check_process
from sdegen.testing.checks.samplers import check_sampler
from sdegen.testing.checks.scores import check_score_model
from sdegen.testing.checks.sdes import check_sde
from sdegen.testing.checks.solvers import check_solver
from sdegen.testing.densities import Density, exact_law_1d
from sdegen.testing.diagnosis.audit import Audit, audit
from sdegen.testing.faults import FAULTS, FaultyScore, faults
from sdegen.testing.guards import assert_bit_identical, assert_constant_memory, assert_no_global_rng, peak_memory
from sdegen.testing.laws import Law, exact_law, path_error
from sdegen.testing.problems import PROBLEMS, Problem, reference, slope
from sdegen.testing.report import Measure, Outcome, Property, PropertyError, Report, Suite
from sdegen.testing.statistics.sequential import sequential
from sdegen.testing.suites import SUITES, checks, parametrize_with_checks

__all__ = [
    "FAULTS",
    "PROBLEMS",
    "SUITES",
    "Audit",
    "Density",
    "FaultyScore",
    "Law",
    "Measure",
    "Outcome",
    "Problem",
    "Property",
    "PropertyError",
    "Report",
    "Suite",
    "assert_bit_identical",
    "assert_constant_memory",
    "assert_no_global_rng",
    "audit",
    "check_noise",
    "check_process",
    "check_sampler",
    "check_score_model",
    "check_sde",
    "check_solver",
    "checks",
    "exact_law",
    "exact_law_1d",
    "faults",
    "parametrize_with_checks",
    "path_error",
    "peak_memory",
    "reference",
    "sequential",
    "slope",
]


def __dir__() -> list[str]:
    return [*__all__, "recipes", "strategies"]


def __getattr__(name: str) -> Any:
    if name in ("strategies", "recipes"):
        return importlib.import_module(f"sdegen.testing.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
