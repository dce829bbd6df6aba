"""Grids: exactly n + 1 strictly decreasing points with exact ends, or an error."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, PROCESSES

import sdegen as sd

GRIDS = {
    "by_time": sd.grids.by_time,
    "by_snr": sd.grids.by_snr,
    "karras": sd.grids.karras,
    "karras(3)": partial(sd.grids.karras, rho=3.0),
    "graded": sd.grids.graded,
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@given(n=st.one_of(st.integers(1, 50), st.just(1000), st.just(10_000)))
@settings(max_examples=8)
def test_exact_count_exact_ends_strictly_falling(process, grid, n):
    times = grid(process, n)
    extra = 20 if grid is sd.grids.graded else 0
    assert times.dtype == F64
    assert times.shape == (n + extra + 1,)
    assert times[0] == process.t_max
    assert times[-1] == process.t_min
    assert (times.diff() < 0).all()


def test_grids_are_uniform_in_their_variable():
    process, n = sd.VP(), 50
    for grid, variable in (
        (sd.grids.by_time, lambda level: level.t),
        (sd.grids.by_snr, lambda level: level.lam),
        (sd.grids.karras, lambda level: torch.exp(-level.lam / 7)),
    ):
        steps = variable(process.level(grid(process, n))).diff()
        torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-9, atol=0.0)


def test_default_dtype_does_not_matter():
    before = sd.grids.karras(sd.VP(), 10)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(sd.grids.karras(sd.VP(), 10), before)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("n", [0, -1, 2.5, "10", None, True])
def test_step_counts_must_be_whole_and_positive(n):
    with pytest.raises(sd.SdegenError, match="steps must be"):
        sd.grids.by_time(sd.VP(), n)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 0.5, 0.7, 0.1], "strictly monotone"),
        ([1.0, 0.5, 0.5, 0.1], r"times\[1\]=0.5 is followed by 0.5"),
        ([1.0, 1.0], r"times\[0\]"),
        ([1.0, float("nan"), 0.1], "finite"),
        ([1.0], "at least two"),
        ([], "at least two"),
        ([[1.0, 0.5]], "one dimension"),
        ([2.0, 0.5], "span"),
        ([1.0, 0.0], "span"),
    ],
)
def test_bad_grids_are_named(times, message):
    with pytest.raises(sd.InvalidArgumentError, match=message):
        sd.grids.check_times(torch.tensor(times), sd.VP())


def test_a_grid_that_cannot_be_resolved_is_refused():
    narrow = sd.EDM(sigma_min=1.0, sigma_max=1.0 + 1e-14)
    with pytest.raises(sd.InvalidArgumentError, match="strictly monotone"):
        sd.grids.by_time(narrow, 1000)


def test_a_general_sde_has_only_time():
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: t)
    assert len(sd.grids.by_time(sde, 3)) == 4
    with pytest.raises(sd.InvalidTypeError, match="by_time"):
        sd.grids.karras(sde, 3)
    with pytest.raises(sd.InvalidArgumentError, match="rho"):
        sd.grids.karras(sd.VP(), 3, rho=-1.0)
