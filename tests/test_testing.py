"""The testing kit itself: reports, exact laws, guards, the fault injector."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st

import sdegen as sd
from sdegen import testing
from sdegen.testing.faults import InjectedError
from sdegen.testing.laws import exact_laws
from sdegen.testing.problems import by_lam
from sdegen.testing.report import Measure, Suite, holds, run

F64 = torch.float64
VP = sd.VP()

SUITE = Suite("number")


@SUITE.states("x = 1")
def one(x):
    yield Measure("distance to one", abs(x - 1), 1e-9)


@SUITE.states("x >= 0")
def positive(x):
    yield holds(f"{x} is negative", x >= 0)


@SUITE.states("x^2 = n^2 for n up to x", given=lambda x: st.integers(0, 1000))
def below(x, n):
    yield Measure("n", n, 100 * x)


@SUITE.states("1/x is finite", applies=lambda x: "zero has no inverse" if x == 0 else None)
def inverse(x):
    yield Measure("1/x", 1 / x, 1e9)


def test_a_report_says_what_holds_and_what_broke_the_rest():
    report = run(SUITE, 1.0, "check(1)", raise_on_fail=False)
    assert not report
    assert [o.status for o in report.outcomes] == ["ok", "ok", "FAILED", "ok"]
    # the search finds a case and shrinks it to the smallest
    assert "for 101" in report["below"].message
    text = str(report)
    assert "3 of 4 properties hold" in text
    assert "x^2 = n^2" in text
    assert max(len(line) for line in text.splitlines()) <= 120
    data = json.loads(json.dumps(report.to_dict()))
    assert data["outcomes"][2]["status"] == "FAILED"
    assert not data["ok"]


def test_a_failure_raises_with_the_report_and_fail_fast_stops():
    with pytest.raises(testing.PropertyError, match="below") as info:
        run(SUITE, 1.0, "check(1)")
    assert isinstance(info.value, AssertionError)
    assert info.value.report["one"].status == "ok"
    assert len(run(SUITE, -1.0, "check(-1)", raise_on_fail=False, fail_fast=True).outcomes) == 1


def test_inapplicable_and_broken_checks_say_why():
    report = run(SUITE, 0.0, "check(0)", raise_on_fail=False)
    assert report["inverse"].status == "-"
    assert report["inverse"].message == "zero has no inverse"
    broken = run(SUITE, "text", "check", raise_on_fail=False)
    assert broken["one"].status == "ERROR"
    assert "TypeError" in broken["one"].message


def test_expected_failures_are_strict():
    reason = {"below": "numbers above 100 are known to fail"}
    assert run(SUITE, 1.0, "check(1)", expected_failed=reason)["below"].status == "expected"
    with pytest.raises(testing.PropertyError, match="was expected to fail"):
        run(SUITE, 20.0, "check(20)", only=["below"], expected_failed=reason)
    with pytest.raises(sd.InvalidArgumentError, match="did you mean 'below'"):
        run(SUITE, 1.0, "check(1)", only=["belwo"])


@pytest.mark.parametrize(
    ("measure", "held"),
    [
        (Measure("x", 0.5, 1.0), True),
        (Measure("x", math.nan, 1.0), False),
        (Measure("x", 0.5, 1.0, 0.6), False),
        (Measure("x", 0.0), True),
        (Measure("x", 1e-300), False),
    ],
)
def test_bounds_of_measures(measure, held):
    assert measure.holds == held
    assert (measure.ratio <= 1) == held


# ---------------------------------------------------------------------------------------------------- exact laws


def test_the_law_of_one_ddpm_step_is_the_closed_form():
    """On N(m, s^2) the step is `x' = a x + b + c z`; its moments follow by hand."""
    data = sd.Gaussian([0.3], std=0.7)
    times = torch.tensor([0.8, 0.5], dtype=F64)
    now, next = VP.level(times[0]), VP.level(times[1])
    law = testing.exact_law(sd.ddpm(), VP, data, times)
    gain = now.alpha * 0.49 / (now.alpha**2 * 0.49 + now.sigma**2)  # d E[data|x] / dx
    decay = next.alpha / now.alpha * torch.exp(-2 * (next.lam - now.lam))
    slope = decay - next.alpha * torch.expm1(-2 * (next.lam - now.lam)) * gain
    variance = slope**2 * (now.alpha**2 * 0.49 + now.sigma**2) - next.sigma**2 * torch.expm1(-2 * (next.lam - now.lam))
    torch.testing.assert_close(law.cov[0, 0], variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(law.mean[0], next.alpha * 0.3, rtol=1e-12, atol=0)


def test_exact_laws_agree_with_one_another_and_with_samples():
    """The moments of the density, of the affine recursion, and of 200,000 samples (six standard errors)."""
    data, n = sd.Gaussian([0.5], std=0.8), 12
    times = by_lam(VP, n)
    law = testing.exact_law(sd.ddpm(), VP, data, times)
    density = testing.exact_law_1d(sd.ddpm(), VP, data, times)
    assert abs(density.mean - float(law.mean[0])) < 1e-12
    assert abs(density.variance - float(law.cov[0, 0])) < 1e-12
    count = 200_000
    start = data.sample(count, seed=1, level=VP.level(times[0]))
    x = sd.solve(data.score(VP), start, times, sd.ddpm(), noise=sd.White(sd.noise.seeds(2, count))).x
    assert abs(float(x.mean()) - density.mean) < 6 * (density.variance / count) ** 0.5
    assert abs(float(x.var()) / density.variance - 1) < 6 * (2 / count) ** 0.5


def test_a_deterministic_density_is_carried_along_the_flow():
    """DDIM in many steps on a line: the density tends to the marginal, and mass is kept."""
    data = testing.PROBLEMS["line"].data
    distances = []
    for n in (20, 40):
        times = by_lam(VP, n)
        law = testing.exact_law_1d(sd.ddim(), VP, data, times)
        assert abs(law.mass - 1) < 1e-3
        distances.append(law.total_variation(data.marginal(VP.level(times[-1]))))
    assert 0.8 < testing.slope(distances) < 1.3


def test_correlated_data_and_any_start():
    """Covariances that are not diagonal, and a start that is not the marginal, which the sampler forgets."""
    data = testing.PROBLEMS["turned"].data
    times = by_lam(VP, 40)
    start = testing.Law(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64))
    own, forced = (testing.exact_law(sd.Multistep(2, sd.DATA, 1.0), VP, data, times, start=s) for s in (None, start))
    target = data.marginal(VP.level(times[-1]))
    assert own.error(target) < 0.05
    assert abs(own.error(target) - forced.error(target)) < 0.02


def test_law_error_sees_mean_and_covariance():
    law = testing.Law(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    assert law.error(sd.Gaussian([0.0, 0.0], std=1.0)) == 0
    assert law.error(sd.Gaussian([0.0, 2.0], std=2.0)) == pytest.approx((1 + 2 * 0.75**2) ** 0.5)


class Clipped(sd.OneStep):
    """Not affine: it clips."""

    stochastic = True

    def step(self, model, x, now, next, carry, noise):
        return sd.Step(x.clamp(-1, 1) + 0.1 * noise(x, now, next), carry)


def test_laws_refuse_what_they_cannot_compute():
    data, times = sd.Gaussian([0.5], std=0.8), by_lam(VP, 4)
    with pytest.raises(sd.InvalidArgumentError, match="not affine"):
        testing.exact_law(Clipped(), VP, data, times)
    with pytest.raises(sd.InvalidTypeError, match="one Gaussian"):
        testing.exact_law(sd.ddpm(), VP, testing.PROBLEMS["line"].data, times)
    for solver, message in (
        (sd.Multistep(2, eta=1.0), "past evaluations"),
        (sd.PC(sd.ddpm(), sd.Langevin()), "draws 2 normals"),
    ):
        with pytest.raises(sd.InvalidArgumentError, match=message):
            testing.exact_law_1d(solver, VP, data, times)
    with pytest.raises(sd.InvalidArgumentError, match="one dimension"):
        testing.exact_law_1d(sd.ddpm(), VP, testing.PROBLEMS["three"].data, times)
    with pytest.raises(sd.InvalidArgumentError, match="more points"):
        testing.exact_law_1d(sd.ddpm(), VP, data, by_lam(VP, 4000)[:3], points=64)


@dataclass(frozen=True)
class ClippedData(sd.OneStep):
    """DDIM with clipped data: each coordinate is bent on its own."""

    def step(self, model, x, now, next, carry, noise):
        ratio = next.sigma / now.sigma
        clipped = model(x, now, "data").clamp(-0.6, 0.6)
        return sd.Step(sd.combine((ratio, x), (next.alpha - ratio * now.alpha, clipped)), carry)


def test_clipping_of_each_coordinate_is_not_taken_for_affine():
    data = sd.Gaussian([0.5, -1.0], std=[0.2, 0.5])
    with pytest.raises(sd.InvalidArgumentError, match="not affine"):
        testing.exact_law(ClippedData(), VP, data, sd.grids.by_snr(VP, 10))


def test_samples_coupled_by_their_batch_have_no_law():
    data = testing.PROBLEMS["widths"].data
    for solver in (sd.solvers.BatchCoupledLangevin(), sd.PC(sd.ddpm(), sd.solvers.BatchCoupledLangevin())):
        with pytest.raises(sd.InvalidArgumentError, match="couples the samples"):
            testing.exact_law(solver, VP, data, by_lam(VP, 5))


class RarelyNoisy(sd.OneStep):
    """DDPM on the first 12 steps of a grid, DDIM after them: how many normals it draws does not grow with the grid."""

    stochastic = True

    def __init__(self, steps=None):
        self.steps = steps

    def for_steps(self, n):
        return RarelyNoisy(n)

    def step(self, model, x, now, next, carry, noise):
        late = float(now.lam) > -3 + 12 * 6 / self.steps
        part = sd.ddim() if late else sd.ddpm()
        return part.step(model, x, now, next, part.init(model, x, now), noise)._replace(carry=())


def test_laws_on_several_grids_are_those_on_each():
    data = testing.PROBLEMS["widths"].data
    grids = [by_lam(VP, n) for n in (16, 24, 32)]
    for solver in (sd.seeds_solver(2), sd.pc(), sd.ddim(), RarelyNoisy()):
        for law, times in zip(exact_laws(solver, VP, data, grids), grids):
            alone = testing.exact_law(solver, VP, data, times)
            assert torch.equal(law.mean, alone.mean), solver
            assert torch.equal(law.cov, alone.cov), solver
    with pytest.raises(sd.InvalidArgumentError, match="couples the samples"):
        next(exact_laws(sd.solvers.BatchCoupledLangevin(), VP, data, grids))


def test_what_is_missing_is_not_taken_for_what_does_not_apply():
    """An import that fails in a solver is an error; nothing checked is not all well."""

    class Broken(sd.OneStep):
        def step(self, model, x, now, next, carry, noise):
            import nothing_of_this_name  # noqa: F401

    report = testing.check_solver(Broken(), order=1, only=["order", "layout"], raise_on_fail=False)
    assert [o.status for o in report.outcomes] == ["ERROR", "ERROR"]
    assert not testing.check_solver(sd.ddim(), only=["weak_order"], raise_on_fail=False).ok
    for arguments, message in (
        ({"only": []}, "nothing would be checked"),
        ({"only": "order"}, r"must be a list.*\['order'\]"),
        ({"expected_failed": {"order": ""}}, "to reasons"),
        ({"order": "2"}, "whole number"),
        ({"process": sd.VP}, "Process object"),
    ):
        with pytest.raises(sd.InvalidArgumentError, match=message):
            testing.check_solver(sd.ddim(), **arguments)


class TwoDraws(sd.OneStep):
    """Euler-Maruyama whose noise is that of its two half steps."""

    eta = 1.0
    stochastic = True

    def step(self, model, x, now, next, carry, noise):
        middle = model.process.level((now.t + next.t) / 2)
        z = (noise(x, now, middle) + noise(x, middle, next)) * 0.5**0.5
        return sd.euler_maruyama().step(model, x, now, next, carry, lambda *_: z)


def test_a_solver_may_draw_more_than_once_a_step():
    report = testing.check_solver(TwoDraws(), weak_order=1, strong_order=1, raise_on_fail=False)
    assert report.ok, report
    assert report["noise_rate"].status == "ok"
    assert "not parts" in report["strong_order"].message


def test_half_precision_labels_and_energies_are_checked():
    def half(x, t, label):
        return x / 2 + label[:, None].to(x.dtype)

    model = sd.ScoreModel(VP, half, "noise", label=torch.arange(3.0))
    assert testing.check_score_model(model, shape=(2,), dtype=torch.float16, raise_on_fail=False).ok
    law = testing.PROBLEMS["three"].data
    energy = sd.ScoreModel(VP, lambda x, t: -law.log_prob(x, VP.level(t)), "energy")
    assert testing.check_score_model(energy, law, raise_on_fail=False).ok


def test_faults_say_whether_they_came():
    faulty = testing.faults(lambda x, t: x, "nan", sample=9, call=2)
    x = torch.ones(3, 2)
    faulty(x, x)
    assert not faulty.fired
    with pytest.raises(sd.InvalidArgumentError, match="the batch has 3"):
        faulty(x, x)
    assert faulty.fired


def test_strong_errors_need_one_path():
    data = testing.PROBLEMS["widths"].data
    with pytest.raises(sd.InvalidArgumentError, match="one Brownian path"):
        testing.path_error(sd.pc(), VP, data, by_lam(VP, 4))


@pytest.mark.parametrize("problem", testing.PROBLEMS.values(), ids=testing.PROBLEMS)
def test_every_problem_has_exact_scores_and_flows(problem):
    data = problem.data
    model = data.score(VP)
    level = VP.level(0.5)
    x = data.sample(3, level=level)
    assert model(x, level).isfinite().all()
    assert repr(problem) == f"PROBLEMS[{problem.name!r}]"
    assert problem.statement


# -------------------------------------------------------------------------------------------- guards and faults


def test_guards_notice_what_they_guard():
    with testing.assert_no_global_rng():
        sd.noise.normals(sd.noise.seeds(0, 3), (2,), (0, 0, 0, 0), dtype=F64)
    with pytest.raises(testing.PropertyError, match="torch's generator"), testing.assert_no_global_rng():
        torch.rand(1)
    a = torch.tensor([1.0, math.nan, -0.0])
    testing.assert_bit_identical(a, a.clone())
    with pytest.raises(testing.PropertyError, match="1 of 3"):
        testing.assert_bit_identical(a, torch.tensor([1.0, math.nan, 0.0]))
    with pytest.raises(testing.PropertyError, match="float64"):
        testing.assert_bit_identical(a, a.double())


def test_peak_memory_counts_what_is_alive_at_once():
    def function():
        x = torch.ones(1000, dtype=F64)
        y = x + 1
        del x
        return (y + 1).sum()

    assert 16_000 <= testing.peak_memory(function) < 17_000
    testing.assert_constant_memory(lambda n: [torch.ones(1000).sum() for _ in range(n)])
    with pytest.raises(testing.PropertyError, match="grows"):
        testing.assert_constant_memory(lambda n: [torch.ones(1000) for _ in range(n)])


@pytest.mark.parametrize("kind", testing.FAULTS)
def test_every_fault_does_something_at_its_call_alone(kind):
    model = testing.PROBLEMS["three"].data.score(VP)
    faulty = testing.faults(model, kind, sample=1, call=2)
    x, level = torch.ones(3, 2, dtype=F64), VP.level(0.5)
    good = model(x.clone(), level)
    assert torch.equal(faulty(x, level), good)
    try:
        bad = faulty(x.clone(), level)
        edited = x.clone()
        faulty.reset()
        faulty(edited, level)
        faulty(edited, level)
        same = (
            isinstance(bad, torch.Tensor)
            and bad.device == x.device
            and torch.equal(bad, good)
            and torch.equal(edited, x)
        )
        assert not (same and bad.dtype == good.dtype)
    except (KeyboardInterrupt, InjectedError):
        assert kind in ("interrupt", "raise")
    assert torch.equal(model(x, level), good)


def test_faults_are_named():
    with pytest.raises(sd.InvalidArgumentError, match="did you mean 'nan'"):
        testing.faults(lambda x, t: x, "nann")
    with pytest.raises(sd.InvalidArgumentError, match="count from 1"):
        testing.faults(lambda x, t: x, "nan", call=0)


# --------------------------------------------------------------------------------------------------- the checks


def test_rejects_impossible_claims():
    with pytest.raises(sd.InvalidArgumentError, match="weak_order=2"):
        testing.check_solver(sd.ddpm(), order=2)
    with pytest.raises(sd.InvalidArgumentError, match="give order="):
        testing.check_solver(sd.ddim(), weak_order=1)
    with pytest.raises(sd.InvalidArgumentError, match="make one first"):
        testing.check_solver(sd.Multistep)
    with pytest.raises(sd.InvalidArgumentError, match=r"lacks .*derive from sd\.OneStep"):
        testing.check_solver(lambda x: x)
    with pytest.raises(sd.InvalidArgumentError, match="'point'"):
        testing.check_solver(sd.ddim(), exact="mixture")
    with pytest.raises(sd.InvalidTypeError, match="check_sde"):
        testing.check_process(sd.SDE.from_functions(lambda x, t: x, lambda x, t: t))
    with pytest.raises(sd.InvalidTypeError, match="ScoreModel"):
        testing.check_score_model(lambda x, t: x)
    with pytest.raises(sd.InvalidArgumentError, match="shape of a sample"):
        testing.check_score_model(sd.ScoreModel(VP, lambda x, t: x))
    with pytest.raises(sd.InvalidTypeError, match="from seeds"):
        testing.check_noise(sd.White(sd.noise.seeds(0, 3)).seeds)
    with pytest.raises(sd.InvalidTypeError, match="there are checks for"):
        testing.checks(7)


@pytest.mark.parametrize("claim", [{"order": 1}, {"order": 3}])
def test_an_order_is_met_from_both_sides(claim):
    with pytest.raises(testing.PropertyError, match="slope"):
        testing.check_solver(sd.dpmpp(2), only=["order"], **claim)


@pytest.mark.slow
def test_a_trained_network_is_held_to_its_tolerance():
    exact = testing.PROBLEMS["three"].data
    truth = exact.score(VP)

    def net(x, t):
        level = VP.level(t)
        return truth(x, level, "noise") + 0.02 * torch.cos(3 * x)

    model = sd.ScoreModel(VP, net, "noise")
    assert testing.check_score_model(model, exact, tol=0.03, raise_on_fail=False).ok
    report = testing.check_score_model(model, exact, tol=0.005, raise_on_fail=False)
    assert [o.prop.name for o in report.failed] == ["agrees"]
    strict = testing.check_score_model(model, exact, raise_on_fail=False)
    assert {"agrees", "gradient"} <= {o.prop.name for o in strict.failed}


def test_suites_print_their_statements_and_there_are_sixty_properties():
    assert sum(len(suite) for suite in testing.SUITES.values()) >= 60
    for suite in testing.SUITES.values():
        assert all(p.statement and p.name in str(suite) for p in suite)
        assert len({p.name for p in suite}) == len(suite)


def test_parametrisation_gives_one_case_per_property():
    mark = testing.parametrize_with_checks([sd.ddim(), (sd.VP(), {"only": ["falling"]})], only=None)
    names, cases = mark.args
    assert names == "check"
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids)
    assert sum("falling" in i for i in ids) == 1
    assert any("order" in i for i in ids)
