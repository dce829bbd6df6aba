"""All that the library ships passes its checks; what is new is found by itself."""

from __future__ import annotations

import os

import pytest
import torch
from cases import mostly_slow

import sdegen as sd
from sdegen.testing import (
    PROBLEMS,
    SUITES,
    catalogue,
    check_process,
    check_score_model,
    check_solver,
    parametrize_with_checks,
    shipped,
)
from sdegen.testing.suites import PATHS

COUPLED = dict.fromkeys(
    ("batch_independence", "micro_batches", "levels_per_row", "fault_isolation", "corrector_balance", "affine"),
    "its step size is shared by the batch, which its name says",
)
FULL = os.environ.get("SDEGEN_TESTS") == "deep"
METHODS, FRAMED = shipped.methods(), shipped.framed()
OF_A_PATH = METHODS if FULL else shipped.one_of_each(METHODS)
OF_A_FRAME = FRAMED if FULL else shipped.one_of_each(FRAMED, key=lambda solver: solver.frame)
OF_A_METHOD = [p.name for p in SUITES["solver"] if p.name not in PATHS]
# what depends on the frame; the rest is the same code as in the methods by name
OF_FRAMED = ["order", "weak_order", "exactness", "process_invariance", "noise_rate", "dtypes"]


def expected(solver):
    return COUPLED if catalogue.couples(solver) else {}


# their order takes long; in the fast suite it is seen in sd.dpm_ancestral() and sd.stochastic_heun()
LONG = () if FULL else (sd.dpmpp_ancestral(), sd.adaptive_heun(), sd.stochastic_runge_kutta(), sd.solvers.Churn())


@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_methods(solver):
    names = [name for name in OF_A_METHOD if name != "weak_order" or solver not in LONG]
    check_solver(solver, only=names, expected_failed=expected(solver), full=FULL)


@pytest.mark.slow
@pytest.mark.parametrize("solver", LONG, ids=repr)
def test_orders_that_take_long(solver):
    check_solver(solver, only=["weak_order"])


# of the executor's paths and the loop's one each; without noise the classes of stochastic.py run what they run with it
QUICK = (
    sd.default(),
    sd.ddim(),
    sd.unipc(),
    sd.dpmpp_sde(),
    sd.pndm(),
    sd.dpm(),
    sd.ancestral(),
    sd.heun(),
    sd.adams(),
)
QUICK += (sd.adaptive_heun(), sd.euler_maruyama(), sd.stochastic_heun(), sd.pc(), sd.solvers.BatchCoupledLangevin())


@pytest.mark.parametrize("solver", mostly_slow(OF_A_PATH, lambda solver: FULL or solver in QUICK))
def test_code_paths(solver):
    check_solver(solver, only=sorted(PATHS), expected_failed=expected(solver), full=FULL)


def test_path_properties_are_properties_of_a_solver():
    assert SUITES["solver"].named(PATHS) == PATHS


# one of each frame: noise and the order of the others is in the methods by name, and in the slow tests
CORRECTED = [s for s in FRAMED if FULL or "correct=True" in repr(s)]


@pytest.mark.parametrize("solver", mostly_slow(FRAMED, CORRECTED))
def test_solvers_in_every_frame(solver):
    check_solver(solver, only=OF_FRAMED, full=FULL)


@pytest.mark.parametrize("solver", OF_A_FRAME, ids=repr)
def test_code_paths_in_every_frame(solver):
    check_solver(solver, only=["liouville", "one_graph"], full=FULL)


@pytest.mark.slow
@pytest.mark.parametrize("process", [sd.VP(), sd.VE(), sd.EDM(), sd.Flow()], ids=repr)
@pytest.mark.parametrize(
    "solver", [s for s in shipped.methods(varied=True) + FRAMED if s.convergence is not None], ids=repr
)
def test_orders_of_all_variants_on_all_processes(solver, process):
    check_solver(solver, process=process, only=["order", "weak_order"])


@pytest.mark.parametrize("process", shipped.processes(), ids=repr)
def test_processes(process):
    check_process(process, full=FULL)


# the others are mixtures computed as these are
SLOW = () if FULL else ("apart", "rings", "line", "normal", "points", "grid", "widths")


@pytest.mark.parametrize("problem", mostly_slow(PROBLEMS, lambda name: name not in SLOW))
def test_exact_scores(problem):
    check_score_model(PROBLEMS[problem].data.score(sd.VP()), full=FULL)


@parametrize_with_checks([sd.White], full=FULL)
def test_noise(check):
    check()


def ornstein_uhlenbeck():
    return sd.SDE.from_functions(
        drift=lambda x, t: -x,
        diffusion=lambda x, t: 2**0.5 * torch.ones_like(t),
        t_max=3.0,
        prior=lambda seeds, shape: sd.noise.normals(seeds, tuple(shape), (0, 0, 0, 0), dtype=torch.float32),
    )


def marginal(process):
    law = PROBLEMS["three"].data
    return lambda x, t: law.log_prob(x, process.level(t))


@parametrize_with_checks(
    [(ornstein_uhlenbeck(), {"log_prob": lambda x, t: -x.square().sum(1) / 2 + 0 * t})],
)
def test_general_sdes(check):
    check()


@pytest.mark.parametrize("process", mostly_slow(shipped.processes(), [sd.VP(), sd.VE(), sd.Flow(), sd.DiscreteVP()]))
def test_processes_are_sdes_whose_marginals_are_known(process):
    from sdegen.testing import check_sde

    # a tabulated process has kinks at its knots, where differences across one see both sides
    check_sde(process, log_prob=marginal(process))
