"""The fault battery: what was seen to go wrong in this field's libraries, on every solver and every entry point.

Each case must end in a clear error, or in the right answer for everything that is not at fault: never in a silent wrong
answer, and never in a call that does not return (`Capped` ends one that asks for more evaluations than it said).
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from cases import crossed, mostly_slow

import sdegen as sd
from sdegen.errors import ScoreShapeError, ScoreTypeError
from sdegen.testing import (
    FAULTS,
    PROBLEMS,
    assert_bit_identical,
    assert_no_global_rng,
    catalogue,
    exact_law,
    faults,
    shipped,
)
from sdegen.testing.faults import InjectedError
from sdegen.testing.problems import by_lam

F64 = torch.float64
VP = sd.VP()
DATA = PROBLEMS["three"].data
STEPS, BATCH = 4, 5
# faults meet the loop and the code of a class of solvers, not its options
SOLVERS = shipped.one_of_each(shipped.methods())
ODES = [s for s in SOLVERS if not s.stochastic]
# what only meets the code before the loop, or the loop: without memory, with it, and with noise
FEW = [sd.ddim(), sd.lms(), sd.dpmpp_sde()]
ONE = sd.lms()
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
few_solvers = pytest.mark.parametrize("solver", mostly_slow(SOLVERS, FEW))


class Capped:
    """A score callable that raises when it is called more often than any run here needs."""

    def __init__(self, net, cap=200):
        self.net, self.cap, self.calls = net, cap, 0

    def __call__(self, x, t):
        self.calls += 1
        if self.calls > self.cap:
            raise AssertionError(f"{self.calls} evaluations: it does not end")
        return self.net(x, t)


def exact(x, t):
    return DATA.score(VP)(x, VP.level(t.double()))


def by_solve(net, solver, **options):
    x = VP.prior(sd.noise.seeds(0, BATCH), (2,), F64)
    noise = sd.White(sd.noise.seeds(9, BATCH))
    model = sd.ScoreModel(VP, Capped(net), **options)
    return sd.solve(model, x, by_lam(VP, STEPS), solver, noise=noise).x


def by_sample(net, solver, **options):
    return sd.sample(
        sd.ScoreModel(VP, Capped(net), **options), (BATCH, 2), steps=STEPS, solver=solver, dtype=F64, seed=0
    )


def by_encode(net, solver, **options):
    x = DATA.sample(BATCH, seed=3)
    return sd.encode(sd.ScoreModel(VP, Capped(net), **options), x, steps=STEPS, solver=solver)


ENTRIES = {"solve": by_solve, "sample": by_sample, "encode": by_encode}
RUNS = [(name, solver) for name, solver in crossed(ENTRIES, SOLVERS) if name != "encode" or solver in ODES]


def every_solver_once(cases):
    """Of cases that begin with an entry and a solver: every solver by `solve`, a few by the other entries."""
    return mostly_slow(cases, lambda case: case[0] == "solve" or case[1] in FEW)


def every_fault_once(kinds):
    """Cases `(entry, solver, kind)`: the first fault on every solver, each other on one; the rest are slow."""
    return mostly_slow(
        [(*run, kind) for run, kind in crossed(RUNS, kinds)],
        lambda case: case[1] == ONE or (case[2] == kinds[0] and (case[0] == "solve" or case[1] in FEW)),
    )


runs = pytest.mark.parametrize(("entry", "solver"), every_solver_once(RUNS))

WRONG = {
    ScoreShapeError: ["missing dimension", "one column", "one row", "extra dimension", "scalar"],
    ScoreTypeError: ["other float", "int64", "complex", "python float", "none", "tuple", "numpy", "other device"],
    sd.ScoreError: ["edits its input"],
}
SILENT = ["huge", "zero"]
"""Wrong values of the right shape: no library can know, so they only must not touch other rows."""


ERRORS = {kind: error for error, kinds in WRONG.items() for kind in kinds}
# all of them end in one function: every fault on one solver, one fault on every solver
BAD_CALLS = [(name, ONE, kind, call) for name, kind, call in crossed(ENTRIES, ERRORS, (1, 3))]
BAD_CALLS += [(name, solver, "one row", 3) for name, solver in RUNS if solver != ONE]


@pytest.mark.parametrize(("entry", "solver", "kind", "call"), every_solver_once(BAD_CALLS))
def test_wrong_outputs_are_named_at_the_call_that_makes_them(entry, solver, kind, call):
    """Rows 3 to 9: shapes, dtypes, types, devices, and an input edited in place."""
    net = faults(exact, kind, sample=2, call=call)
    with pytest.raises(ERRORS[kind]):
        ENTRIES[entry](net, solver)
    assert net.calls == call


def test_the_battery_knows_every_fault():
    assert set(FAULTS) == set(ERRORS) | {"nan", "inf", "-inf", "raise", "interrupt"} | set(SILENT)


@pytest.mark.parametrize(("entry", "solver", "kind"), every_fault_once(["nan", "inf", "-inf"]))
def test_one_bad_value_ends_one_row(entry, solver, kind):
    """Rows 1, 37, 55: an error that names the row and holds all others, which have the bits of a run without it."""
    good = ENTRIES[entry](exact, solver)
    coupled = catalogue.couples(solver)
    with pytest.raises(sd.SolveError, match=r"samples became NaN or Inf") as info:
        ENTRIES[entry](faults(exact, kind, sample=2, call=2), solver)
    partial = info.value.partial
    assert partial.x.isfinite().all()
    if not coupled:
        others = [0, 1, 3, 4]
        assert partial.status.tolist() == [0, 0, sd.Status.NONFINITE, 0, 0]
        assert_bit_identical(partial.x[others], good[others])


@pytest.mark.parametrize(("entry", "solver", "kind"), every_fault_once(SILENT))
def test_wrong_values_touch_their_own_row_alone(entry, solver, kind):
    if catalogue.couples(solver):
        pytest.skip("its step size is shared by the batch, which its name says")
    good = ENTRIES[entry](exact, solver)
    net = faults(exact, kind, sample=2, call=2)
    try:
        bad = ENTRIES[entry](net, solver)
    except sd.SolveError as error:
        bad = error.partial.x
    others = [0, 1, 3, 4]
    assert_bit_identical(bad[others], good[others])


RAISED = {"raise": InjectedError, "interrupt": KeyboardInterrupt}


@pytest.mark.parametrize(("entry", "solver", "kind"), every_fault_once(list(RAISED)))
def test_exceptions_pass_with_what_was_done(entry, solver, kind):
    """Rows 10 and 11: unchanged, with a note and the solution so far; the same objects run again."""
    grad = torch.is_grad_enabled()
    net = faults(exact, kind, call=3)
    with pytest.raises(RAISED[kind]) as info:
        ENTRIES[entry](net, solver)
    assert torch.is_grad_enabled() == grad
    assert any("in step" in note for note in info.value.__notes__)
    assert info.value.partial.x.isfinite().all()
    ENTRIES[entry](net, solver)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("solver", mostly_slow(ODES, FEW))
def test_rejects_non_finite_starts_before_the_first_call(solver, bad):
    """Row 2."""
    net = Capped(exact)
    model, x = sd.ScoreModel(VP, net), torch.zeros(BATCH, 2, dtype=F64)
    x[3, 1] = bad
    for run in (lambda: sd.solve(model, x, [0.9, 0.1], solver), lambda: sd.encode(model, x, solver=solver)):
        with pytest.raises(sd.InvalidArgumentError, match=r"rows \[3\]"):
            run()
    assert net.calls == 0


@pytest.mark.parametrize("x", [torch.ones(3, 2, dtype=torch.int64), torch.ones(3), torch.tensor(1.0), [1.0], None])
def test_rejects_invalid_states(x):
    """Rows 30 and 34: integers, and shapes without a batch."""
    model = sd.ScoreModel(VP, Capped(exact))
    for run in (lambda: sd.solve(model, x, [0.9, 0.1], sd.ddim()), lambda: sd.encode(model, x)):
        with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match="x must be"):
            run()


GRIDS = [
    [0.5, 0.5],
    [0.9, 0.1, 0.5],
    [0.9, float("nan"), 0.1],
    [float("inf"), 0.1],
    [0.9],
    [],
    [[0.9, 0.1]],
    [7.77, 0.1],
    [0.9, -0.1],
    [0.9, 0.0],
    torch.tensor([0.9, 0.1]).bool(),
]


@pytest.mark.parametrize("times", GRIDS, ids=str)
def test_rejects_invalid_grids_before_the_first_call(times):
    """Rows 14, 18 to 21: duplicates, turns, NaN, one level, off the span, sigma = 0."""
    net = Capped(exact)
    model, x = sd.ScoreModel(VP, net), torch.ones(2, 2, dtype=F64)
    for run in (
        lambda: sd.solve(model, x, times, sd.ddim()),
        lambda: sd.sample(model, (2, 2), grid=times, dtype=F64, seed=0),
        lambda: sd.encode(model, x, grid=times),
    ):
        with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError)):
            run()
    assert net.calls == 0


@pytest.mark.parametrize("steps", [0, -1, 2.5, "10", True])
@few_solvers
def test_rejects_invalid_steps(solver, steps):
    """Row 17: no library may return its own input noise for a sample."""
    net = Capped(exact)
    model = sd.ScoreModel(VP, net)
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match="steps must be"):
        sd.sample(model, (2, 2), steps=steps, solver=solver, seed=0)
    if not solver.stochastic:
        with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match="steps must be"):
            sd.encode(model, torch.ones(2, 2), steps=steps, solver=solver)
    assert net.calls == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.VE(sigma_min=2.0, sigma_max=1.0),
        lambda: sd.EDM(sigma_min=-1.0),
        lambda: sd.VP(beta_min=20.0, beta_max=0.1),
        lambda: sd.VP(t_min=0.0),
        lambda: sd.Flow(t_min=-0.1),
        lambda: sd.Flow(t_max=1.1),
        lambda: sd.DiscreteVP(torch.tensor([0.1, float("nan")])),
        lambda: sd.DiscreteVP(torch.tensor([0.1, 1.5])),
        lambda: sd.DiscreteVP(torch.tensor([0.9, 0.1])),
        lambda: sd.grids.karras(VP, 0),
        lambda: sd.grids.karras(VP, 5, rho=-1.0),
        lambda: sd.grids.karras(VP, 5, rho=float("nan")),
        lambda: sd.ddim(2.0),
        lambda: sd.ddim(-1.0),
        lambda: sd.ddim(float("nan")),
        lambda: sd.euler_maruyama(float("inf")),
        lambda: sd.pc(snr=float("nan")),
        lambda: VP.reverse(exact, eta=-1.0),
    ],
)
def test_rejects_invalid_settings(make):
    """Rows 20, 22, 52, 53."""
    with pytest.raises(sd.InvalidArgumentError):
        make()


def test_unknown_keywords_name_the_closest():
    """Row 51."""
    model = sd.ScoreModel(VP, exact)
    x = torch.ones(2, 2, dtype=F64)
    for run in (
        lambda: sd.solve(model, x, [0.9, 0.1], sd.ddim(), nosie=None),
        lambda: sd.sample(model, (2, 2), step=5, seed=0),
        lambda: sd.encode(model, x, solvr=sd.ddim()),
        lambda: sd.ScoreModel(VP, exact, predict="noise"),
    ):
        with pytest.raises(sd.InvalidTypeError, match="did you mean"):
            run()


@runs
def test_a_second_run_is_the_first(entry, solver):
    """Rows 12, 39, 40, 48: no run state, no global generator read or moved, no graph kept by sample and encode."""
    first = ENTRIES[entry](exact, solver)
    with assert_no_global_rng():
        again = ENTRIES[entry](exact, solver)
    torch.manual_seed(123)
    assert_bit_identical(again, first)
    assert_bit_identical(ENTRIES[entry](exact, solver), first)
    weight = torch.ones((), dtype=F64, requires_grad=True)
    out = ENTRIES[entry](lambda x, t: weight * exact(x, t), solver)
    assert out.requires_grad == (entry == "solve")


@solvers
def test_rejects_a_batch_that_changes_mid_run(solver):
    """Row 13: old history is never broadcast onto another batch."""
    model, x = DATA.score(VP), torch.ones(4, 2, dtype=F64)
    levels = [VP.level(t) for t in by_lam(VP, 3)]
    step = solver.step(model, x, levels[0], levels[1], solver.init(model, x, levels[0]), sd.White(sd.noise.seeds(0, 4)))
    less = sd.White(sd.noise.seeds(0, 1))
    if solver.memory:
        with pytest.raises(sd.InvalidArgumentError, match="start anew"):
            solver.step(model, step.x[:1], levels[1], levels[2], step.carry, less)
    else:
        assert solver.step(model, step.x[:1], levels[1], levels[2], step.carry, less).x.shape == (1, 2)


@solvers
def test_a_run_that_is_stored_and_resumed_has_its_bits(solver):
    """Row 44: x and carry are plain values; pickled in the middle they go on as if nothing had been."""
    model, x = DATA.score(VP), torch.ones(3, 2, dtype=F64)
    levels = [VP.level(t) for t in by_lam(VP, 6)]
    noise = sd.White(sd.noise.seeds(0, 3))
    carry, y = solver.init(model, x, levels[0]), x
    other = copy.deepcopy(carry)
    for now, next in zip(levels, levels[1:]):
        step = solver.step(model, x, now, next, carry, noise)
        x, carry = step.x, step.carry
        resumed, y, other = pickle.loads(pickle.dumps((solver, y, other)))
        step = resumed.step(model, y, now, next, other, noise)
        y, other = step.x, step.carry
    assert_bit_identical(y, x)


@runs
def test_training_mode_is_one_warning(entry, solver):
    """Row 45: dropout would make every evaluation noisy."""
    drop = torch.nn.Dropout(0.0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.scale = drop, torch.nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, x, t):
            return -self.scale * self.drop(x)

    def by(net):
        model = sd.ScoreModel(VP, net)
        if entry == "sample":
            return sd.sample(model, (2, 2), steps=2, solver=solver, seed=0)
        x = torch.ones(2, 2, dtype=F64)
        if entry == "encode":
            return sd.encode(model, x, steps=2, solver=solver)
        return sd.solve(model, x, [0.9, 0.5], solver, noise=sd.White(sd.noise.seeds(0, 2))).x

    with pytest.warns(UserWarning, match="training mode") as caught:
        by(Net())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by(Net().eval())


DTYPES = (torch.bfloat16, torch.float64, torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("solver", "dtype"),
    mostly_slow(crossed(SOLVERS, DTYPES), lambda case: case[0] in FEW or case[1] is torch.bfloat16),
)
def test_a_state_keeps_its_dtype_under_autocast_and_another_default(solver, dtype):
    """Rows 5, 28, 29, 46, 58."""
    net = sd.ScoreModel(VP, lambda x, t: exact(x.double(), t.double()).to(torch.float32), cast=True)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = sd.sample(net, (3, 2), steps=3, solver=solver, dtype=dtype, seed=0)
    finally:
        torch.set_default_dtype(default)
    assert out.dtype == dtype
    assert out.isfinite().all()


@solvers
def test_empty_batches_and_no_features(solver):
    """Row 33."""
    model = sd.ScoreModel(VP, Capped(lambda x, t: -x))
    assert sd.sample(model, (0, 2), steps=3, solver=solver, seed=0).shape == (0, 2)
    assert model.net.calls == 0
    assert sd.sample(model, (3, 0), steps=3, solver=solver, seed=0).shape == (3, 0)
    if not solver.stochastic:
        assert sd.encode(model, torch.ones(0, 2), steps=3, solver=solver).shape == (0, 2)


@few_solvers
def test_as_many_steps_as_training_had(solver):
    """Rows 15 and 31: a thousand steps on a thousand betas, exactly, and nothing divided by zero."""
    process = sd.DiscreteVP()
    model = sd.ScoreModel(
        process, Capped(lambda x, t: torch.tanh(x) + 0 * t[:, None], cap=1000 * (solver.evals + 1)), "noise"
    )
    x, noise = process.prior(sd.noise.seeds(0, 1), (2,)), sd.White(sd.noise.seeds(1, 1))
    solution = sd.solve(model, x, sd.grids.by_time(process, 999), solver, noise=noise)
    assert solution.ok.all()
    assert solution.accepted.tolist() == [999]
    assert float(solution.level.t) == process.t_min


def test_nothing_is_clipped():
    """Row 16: DDPM on N(3, 0.5) keeps its mean and its width; the law is computed."""
    data = sd.Gaussian([3.0], std=0.5)
    law = exact_law(sd.ddpm(), VP, data, sd.grids.by_snr(VP, 200))
    assert abs(float(law.mean[0]) - 3) < 0.05
    assert abs(float(law.cov[0, 0]) ** 0.5 - 0.5) < 0.02


NOISY = [s for s in SOLVERS if s.stochastic and not catalogue.couples(s)]


@pytest.mark.parametrize(("entry", "solver"), every_solver_once(crossed(("solve", "sample"), NOISY)))
def test_blow_ups_end_with_their_status(entry, solver):
    """Row 55: a score that explodes at one sample (its row grows without bound) leaves the others alone."""

    def net(x, t):
        out = exact(x, t)
        return torch.cat([out[:2], 1e200 * (1 + x[2:3] ** 2), out[3:]])

    good = ENTRIES[entry](exact, solver)
    with pytest.raises(sd.SolveError, match="rows 2") as info:
        ENTRIES[entry](net, solver)
    others = [0, 1, 3, 4]
    assert_bit_identical(info.value.partial.x[others], good[others])
