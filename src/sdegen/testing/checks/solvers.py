"""`check_solver`: is this solver right, and if not, why?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdegen.processes.process import Process
from sdegen.testing.checks.claims import SOLVER, Claim, claim
from sdegen.testing.report import Report, run

# They add the properties, in the order of a report.
# isort: off
from sdegen.testing.checks import solver_accuracy, solver_symmetry, solver_noise  # noqa: F401
from sdegen.testing.checks import solver_bits, solver_contract, solver_numerics  # noqa: F401
# isort: on


def check_solver(
    solver: Any,
    *,
    order: int | None = None,
    weak_order: int | None = None,
    strong_order: float | None = None,
    exact: str | Sequence[str] | None = None,
    invariant: bool | None = None,
    process: Process | None = None,
    eta: float | None = None,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check every property of a solver; the report says which hold, by what margin, and what broke the others.

    order: of the path, for a solver that draws no noise. weak_order: of the law, for one that does; strong_order: of
    the path on one Brownian path in t. Each is by default the solver's own `convergence`, if it has one, and must be
    met from both sides. exact: 'point' where one step is exact on a single data point, 'gaussian' where it is on
    `N(0, sigma_data^2)`; by default the solver's own `exact`. invariant: whether `x/alpha` on a grid in lam is the same
    under every process; by default so for solvers with a frame other than TIME. process: where orders are measured, VP.
    eta: how much of the reverse SDE's noise it adds; by default its own `eta`.

    only, expected_failed, full, fail_fast, raise_on_fail: as in `sdegen.testing.report.run`. Takes some ten seconds.
    Raises InvalidArgumentError on what is no solver or a claim that cannot be, PropertyError if a property fails.
    """
    subject = claim(solver, order, weak_order, strong_order, exact, invariant, process, eta)
    return run(
        SOLVER,
        subject,
        f"check_solver({solver})" + _unclaimed(subject),
        only=only,
        expected_failed=expected_failed,
        full=full,
        fail_fast=fail_fast,
        raise_on_fail=raise_on_fail,
    )


def _unclaimed(subject: Claim) -> str:
    if subject.order is not None or subject.weak_order is not None:
        return ""
    return f"\n  NO ORDER IS CHECKED: give {'weak_order' if subject.stochastic else 'order'}="
