"""Properties of what a solver makes of its noise: affine, of the right rate, balanced by a corrector's pull."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.testing.checks.claims import F64, SOLVER, Claim, mixture_of, noisy
from sdegen.testing.laws import exact_law
from sdegen.testing.problems import by_lam, off_knots
from sdegen.testing.report import Measure, holds


@SOLVER.states("on Gaussian data a solve is affine in its start and its normals, row by row", applies=noisy)
def affine(subject: Claim) -> Iterator[Measure]:
    times = by_lam(subject.process, 4)
    try:
        law = exact_law(subject.solver, subject.process, mixture_of("widths"), times)
    except InvalidArgumentError as error:
        # a corrector with a rule of its own, or clipping, may mean to: then this is an expected failure
        yield holds(str(error), False)
        return
    yield Measure("non-finite moments", float((~law.cov.isfinite()).sum() + (~law.mean.isfinite()).sum()))


def _claims_eta(subject: Claim) -> str | None:
    return noisy(subject) or (None if subject.eta is not None else "no eta is claimed")


@SOLVER.states("a short step adds noise of variance eta^2 g^2 |dt|", applies=_claims_eta)
def noise_rate(subject: Claim) -> Iterator[Measure]:
    process, model = subject.process, subject.model("widths")
    x = mixture_of("widths").mean().repeat(5, 1)
    for share in (0.1, 0.5, 0.9):
        ratios = []
        for h in (4e-4, 2e-4):
            start = torch.tensor(process.t_min + share * (process.t_max - process.t_min), dtype=F64)
            now = process.level(off_knots(process, start))
            next = process.level(now.t - h * (process.t_max - process.t_min))
            kick = _kicks(subject.solver, model, x, now, next)
            ratios.append(float(kick.square().sum() / x.shape[1] / (process.variance_rate(now.t) * (now.t - next.t))))
        seen, eta = 2 * ratios[1] - ratios[0], subject.eta or 0.0
        # what is left after extrapolation is of second order in a step of 4e-4
        slack = 1e-3 * max(eta**2, 1e-4)
        yield Measure(f"variance over g^2 |dt| at {share:g} of the span", seen, eta**2 + slack, eta**2 - slack)


def _kicks(solver: Any, model: Any, x: Tensor, now: Level, next: Level) -> Tensor:
    """What each normal that a step draws does to x: rows, one after another, of as many as there are."""

    def out(unit: _Unit) -> Tensor:
        moved: Tensor = solver.step(model, x, now, next, solver.init(model, x, now), unit).x
        return moved

    quiet = _Unit(-1)
    base = out(quiet)
    return torch.cat([out(_Unit(k))[1:] - base[1:] for k in range(quiet.calls)])


def _corrector(subject: Claim) -> Any:
    """The solver itself if it corrects, or its corrector, or None."""
    return subject.solver if getattr(subject.solver, "corrects", False) else getattr(subject.solver, "corrector", None)


def _corrects(subject: Claim) -> str | None:
    return None if _corrector(subject) is not None else "it does not correct"


@SOLVER.states(
    "a corrector contracts, and its noise makes up for its pull: A C A^T + B B^T = C + O((1 - A)^2 C)",
    applies=_corrects,
)
def corrector_balance(subject: Claim) -> Iterator[Measure]:
    corrector = _corrector(subject)
    data, process = mixture_of("widths"), subject.process
    for share in (0.02, 0.3, 0.9):
        level = process.level(process.t_min + share * (process.t_max - process.t_min))
        law = data.marginal(level)
        pull, kick = _linear_part(corrector, subject.model("widths"), law.mean(), level)
        cov = law.cov()
        after = pull @ cov @ pull.mT + kick @ kick.mT
        moved = torch.eye(len(cov), dtype=F64) - pull
        size = float(torch.linalg.matrix_norm(moved, 2))
        yield Measure(
            f"largest eigenvalue at {share:g} of the span", float(torch.linalg.eigvals(pull).abs().max()), 1.0
        )
        allowed = 2 * size * float(torch.linalg.matrix_norm(moved @ cov, 2))
        yield Measure(
            f"change of the law at {share:g} of the span", float(torch.linalg.matrix_norm(after - cov, 2)), allowed
        )
        snr = getattr(corrector, "snr", None)
        if snr is not None:
            # steps pulls of at most e/C each, e = 2 (snr sigma)^2, on the narrowest coordinate
            most = corrector.evals * 2 * float((snr * level.sigma) ** 2 / cov.diagonal().min())
            yield Measure("pull over that of its snr", size / most, 1.0 + 1e-9)


def _linear_part(corrector: Any, model: Any, mean: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """A and B of `x -> A x + B z + c`, the corrector at a level, by unit responses."""
    size = len(mean)
    still = mean.repeat(1 + size, 1)
    x = still.clone()
    x[1:] += torch.eye(size, dtype=F64)
    plain = corrector.step(model, x, level, level, corrector.init(model, x, level), _Unit(-1)).x
    return (plain[1:] - plain[0]).mT, _kicks(corrector, model, still, level, level).mT


class _Unit:
    """At draw k row i + 1 gets a one in element i; nothing else is drawn but zeros."""

    def __init__(self, k: int) -> None:
        self.k, self.calls = k, 0

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        z = torch.zeros_like(x)
        if self.calls == self.k:
            z[1:] = torch.eye(x.shape[1], dtype=x.dtype)
        self.calls += 1
        return z
