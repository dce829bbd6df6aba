"""The properties on whatever the strategies draw: any process, any mixture at any level, any solver."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sdegen as sd
from sdegen.testing import SUITES, strategies
from sdegen.testing.checks.claims import claim
from sdegen.testing.checks.scores import scored
from sdegen.testing.report import Inapplicable

MANY = 10 if os.environ.get("SDEGEN_TESTS") == "deep" else 1
# what costs a compilation, a thousand samples or fake tensors is checked on what is shipped, not on every draw
HEAVY = {"one_graph", "no_host_reads", "prior", "fokker_planck", "copies", "default_dtype", "pure_noise"}
HEAVY |= {"reverse_marginals", "agrees"}
PROCESSES = [p for p in SUITES["process"] if p.name not in HEAVY]
SCORES = [p for p in SUITES["score"] if p.name not in HEAVY]
CONTRACT = {
    "evaluations",
    "fresh_noise",
    "batch_independence",
    "micro_batches",
    "own_grid",
    "fault_isolation",
    "layout",
}
CONTRACT |= {"sample_shape", "carry_structure", "memory", "levels_per_row", "rotation", "inputs_untouched"}
SOLVERS = [p for p in SUITES["solver"] if p.name in CONTRACT]


def hold(prop, subject, draw):
    """Every measure of a property on one drawn case is within its bounds."""
    assume(prop.applies(subject) is None)
    case = () if prop.given is None else (draw(prop.given(subject)),)
    with contextlib.suppress(Inapplicable):
        for measure in prop.check(subject, *case):
            assert measure.holds, f"{measure} for {case}"


@pytest.mark.parametrize("prop", PROCESSES, ids=lambda p: p.name)
@given(data=st.data(), process=strategies.processes())
@settings(max_examples=40 * MANY)
def test_any_process(prop, data, process):
    hold(prop, process, data.draw)


@pytest.mark.parametrize("prop", SCORES, ids=lambda p: p.name)
@given(data=st.data(), law=strategies.mixtures(), process=strategies.processes())
@settings(max_examples=30 * MANY)
def test_any_mixture_under_any_process(prop, data, law, process):
    hold(prop, scored(law.score(process)), data.draw)


@pytest.mark.parametrize("prop", SOLVERS, ids=lambda p: p.name)
@given(data=st.data(), solver=strategies.solvers(coupled=False))
@settings(max_examples=30 * MANY)
def test_any_solver_with_any_options(prop, data, solver):
    hold(prop, claim(solver), data.draw)


@given(law=strategies.mixtures(max_dim=8), data=st.data())
@settings(max_examples=50 * MANY)
def test_observations_are_bayes_rule(law, data):
    """The posterior of the posterior is that of all observations at once."""
    dim = law.means[0].numel()
    seen = data.draw(strategies.observations(dim))
    y = seen.apply(law.sample(1, seed=3))[0] + 0.1
    once = law.posterior(y, seen.matrix, 0.5)
    both = once.posterior(y + 0.2, seen.matrix, 0.7)
    # two looks through one matrix are one look at their average, weighted by precision
    precision = 1 / 0.5**2 + 1 / 0.7**2
    mean = (y / 0.5**2 + (y + 0.2) / 0.7**2) / precision
    pooled = law.posterior(mean, seen.matrix, precision**-0.5)
    scale = 1 + law.means.abs().max() + both.mean().abs().max()
    torch.testing.assert_close(both.mean() / scale, pooled.mean() / scale, rtol=0, atol=1e-6)


@given(process=strategies.processes(), spacing=strategies.grids(max_steps=40), data=st.data())
@settings(max_examples=60 * MANY)
def test_any_solver_runs_on_any_grid(process, spacing, data):
    solver = data.draw(strategies.solvers())
    assume(solver.noise_end or not any(process.open_ends))
    times = spacing.times(process)
    model = sd.ScoreModel(process, lambda x, t: torch.tanh(x), "v")
    x = sd.noise.normals(sd.noise.seeds(0, 2), (2,), (0, 0, 0, 0), dtype=torch.float64)
    solution = sd.solve(model, x, times, solver, noise=sd.White(sd.noise.seeds(1, 2)), on_failure="return")
    assert (solution.accepted[solution.ok] == len(times) - 1).all()
    assert solution.x.isfinite().all()
    assert (solution.level.t[solution.ok] == times[-1]).all()
