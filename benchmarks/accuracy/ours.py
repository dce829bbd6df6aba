"""Our methods by name, on the grids they are meant for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import sdegen as sd
from sdegen.grids import Grid, angular, by_snr, karras

from .problems import PILOT, Problem
from .runs import Row, ours

METHODS: dict[str, tuple[Callable[[], sd.Solver], Grid | None]] = {
    "default()": (sd.default, None),
    "Multistep(3, NOISE), Karras": (partial(sd.Multistep, 3, sd.NOISE), karras),
    "ddim(), Karras": (sd.ddim, karras),
    "dpmpp(2), Karras": (partial(sd.dpmpp, 2), karras),
    "dpmpp(2), log-SNR": (partial(sd.dpmpp, 2), by_snr),
    "unipc(3), log-SNR": (partial(sd.unipc, 3), by_snr),
    "heun(), Karras": (sd.heun, karras),
}
"""A name, how to make the solver, and its grid (None: the method's own)."""

STOCHASTIC: dict[str, tuple[Callable[[], sd.Solver], Grid | None]] = {
    "default() (no noise)": (sd.default, None),
    "ddpm(), Karras": (sd.ddpm, karras),
    "pc(), Karras": (sd.pc, karras),
    **{
        f"Multistep({p}, DATA, eta={eta}), {name}": (partial(sd.Multistep, p, sd.DATA, eta), grid)
        for p in (1, 2, 3)
        for eta, name, grid in ((0.5, "angular", angular), (1.0, "Karras", karras))
    },
    "Multistep(1, DATA, eta=0.5, corrected), angular": (partial(sd.Multistep, 1, sd.DATA, 0.5, True), angular),
    "Multistep(2, DATA, eta=0.3), angular": (partial(sd.Multistep, 2, sd.DATA, 0.3), angular),
    "Multistep(3, NOISE, eta=0.5 above s=0.3), angular": (
        lambda: sd.Multistep(3, sd.NOISE, sd.solvers.eta.WindowEta(0.5, 0.3, 200.0)),
        angular,
    ),
    "Multistep(2, WIENER(0.7), eta=0.5), angular": (
        partial(sd.Multistep, 2, sd.WIENER(sigma_data=0.7), 0.5),
        angular,
    ),
    "Multistep(2, SIGMA, eta=0.5), Karras": (partial(sd.Multistep, 2, sd.SIGMA, 0.5), karras),
    "Multistep(3, ANGLE, eta=0.3), angular": (
        partial(sd.Multistep, 3, sd.ANGLE(variable=sd.frames.seventh_root), 0.3),
        angular,
    ),
    "er_sde(2), angular": (partial(sd.er_sde, 2), angular),
    "sa_solver(2), angular": (partial(sd.sa_solver, 2), angular),
    "sa_solver(3, tau=0.5), angular": (partial(sd.sa_solver, 3, 0.5), angular),
    "dpmpp_sde(2), angular": (partial(sd.dpmpp_sde, 2), angular),
    "dpmpp_sde(2, singlestep=True), angular": (partial(sd.dpmpp_sde, 2, singlestep=True), angular),
    "seeds(2), angular": (partial(sd.seeds_solver, 2), angular),
    "edm(churn=10), Karras": (partial(sd.edm, churn=10.0), karras),
}
"""Methods of the distribution benchmark, in the same form."""


def rows(problem: Problem, process: sd.Process, budgets: tuple[int, ...]) -> dict[str, Row]:
    """Our rows on a problem under a process."""
    found: dict[str, Row] = {}
    for name, (make, grid) in METHODS.items():
        solver = make()
        chosen = grid or solver.grid
        found[name] = {n: ours(solver, problem, process, chosen, n) for n in budgets if n >= solver.evals}
    return {**found, **plans(problem, process, budgets)}


PILOTS = 33, 1000
"""Evaluations that a plan's calibration may spend, on noise of its own."""


def planned(model: sd.ScoreModel, problem: Problem, n: int, pilot: int) -> sd.Plan:
    """A plan of n steps; states are in float64 but for a network that has a precision of its own."""
    dtype = torch.float64 if model.module is None else None
    return sd.calibrate(model, problem.shape, nfe=n, pilot=pilot, seed=problem.seed + PILOT, dtype=dtype)


def plans(problem: Problem, process: sd.Process, budgets: tuple[int, ...]) -> dict[str, Row]:
    """Rows of calibrated plans, where the library makes them."""
    found: dict[str, Row] = {}
    if not hasattr(sd, "calibrate"):
        return found
    for pilot in PILOTS:
        row = found.setdefault(f"plan, pilot {pilot}", {})
        for n in budgets:
            plan = planned(problem.model(process), problem, n, pilot)
            row[n] = ours(plan, problem, process, plan.grid, n)
    return found
