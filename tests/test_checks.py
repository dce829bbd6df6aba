"""All that the library ships passes its checks; what is new is found by itself."""

from __future__ import annotations

import os

import pytest
import torch

import sdegen as sd
from sdegen.testing import PROBLEMS, catalogue, parametrize_with_checks, shipped

COUPLED = dict.fromkeys(
    ("batch_independence", "micro_batches", "levels_per_row", "fault_isolation", "corrector_balance", "affine"),
    "its step size is shared by the batch, which its name says",
)
FULL = os.environ.get("SDEGEN_TESTS") == "deep"
# what depends on the frame; the rest is the same code as in the methods by name
ACCURACY = ["order", "weak_order", "exactness", "process_invariance", "noise_rate", "liouville", "one_graph", "dtypes"]


def expected(solver):
    return (solver, {"expected_failed": COUPLED}) if catalogue.couples(solver) else solver


@parametrize_with_checks(map(expected, shipped.methods()), full=FULL)
def test_methods(check):
    check()


@parametrize_with_checks([(s, {"only": ACCURACY}) for s in shipped.framed()], full=FULL)
def test_solvers_in_every_frame(check):
    check()


@pytest.mark.slow
@pytest.mark.parametrize("process", [sd.VP(), sd.VE(), sd.EDM(), sd.Flow()], ids=repr)
@pytest.mark.parametrize(
    "solver", [s for s in shipped.methods(varied=True) + shipped.framed() if hasattr(s, "convergence")], ids=repr
)
def test_orders_of_all_variants_on_all_processes(solver, process):
    from sdegen.testing import check_solver

    check_solver(solver, process=process, only=["order", "weak_order"])


@parametrize_with_checks(shipped.processes(), full=FULL)
def test_processes(check):
    check()


@parametrize_with_checks([PROBLEMS[name].data.score(sd.VP()) for name in PROBLEMS], full=FULL)
def test_exact_scores(check):
    check()


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


@pytest.mark.parametrize("process", shipped.processes(), ids=repr)
def test_processes_are_sdes_whose_marginals_are_known(process):
    from sdegen.testing import check_sde

    # a tabulated process has kinks at its knots, where differences across one see both sides
    check_sde(process, log_prob=marginal(process))
