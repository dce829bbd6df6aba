"""The strategies: what they draw can be pasted, shrinks to something small, is valid, and covers every kind."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import crossed, mostly_slow
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdegen as sd
from sdegen import noise
from sdegen.processes import schedules as processes
from sdegen.processes.process import check_levels
from sdegen.solvers import methods as names
from sdegen.testing import catalogue, recipes, strategies
from sdegen.testing.calls import make, spell, told
from sdegen.testing.recipes import (
    KINDS,
    LAYOUTS,
    SPACINGS,
    WEIGHTS,
    MonotoneProcess,
    Observation,
    Root,
    Spacing,
    State,
    discrete_vp,
    laid_out,
    log_snr,
    pair,
    random_gaussian,
    random_mixture,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps
PASTED = {"torch": torch, "sd": sd, **{name: getattr(recipes, name) for name in recipes.__all__}}
VP = sd.VP()

STRATEGIES: dict[str, Any] = {
    "seeds": strategies.seeds(),
    "dtypes": strategies.dtypes(),
    "batch_sizes": strategies.batch_sizes(),
    "etas": strategies.etas(),
    "shapes": strategies.shapes(),
    "predictions": strategies.predictions(),
    "processes": strategies.processes(),
    "times": strategies.processes().flatmap(strategies.times),
    "levels": st.tuples(strategies.processes(), st.none() | st.integers(0, 5)).flatmap(
        lambda drawn: strategies.levels(*drawn)
    ),
    "level_pairs": strategies.processes().flatmap(strategies.level_pairs),
    "level_triples": strategies.processes().flatmap(strategies.level_triples),
    "grids": strategies.grids(),
    "mixtures": strategies.mixtures(),
    "gaussians": strategies.gaussians(),
    "states": strategies.states(),
    "observations": st.integers(1, 12).flatmap(strategies.observations),
    "frames": strategies.frames(),
    "solvers": strategies.solvers(),
}
FEW = ("levels", "processes", "mixtures", "solvers")


def each(strategy: Any, test: Callable[[Any], object], examples: int = 100) -> None:
    """Run a test on drawn examples; a failing one is shrunk."""

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(strategy)
    def run(value: Any) -> None:
        test(value)

    run()


def draw(strategy: Any, examples: int = 300) -> list[Any]:
    found: list[Any] = []
    each(strategy, found.append, examples)
    return found


def smallest(strategy: Any, condition: Callable[[Any], Any] = lambda value: True) -> str:
    """The repr of what a search for the condition ends with, as a property's search does."""
    how = settings(max_examples=2000, derandomize=True, database=None, phases=(Phase.generate, Phase.shrink))
    return repr(find(strategy, condition, settings=how, random=random.Random(0)))


def paste(value: Any) -> Any:
    return eval(repr(value), dict(PASTED))  # noqa: S307


def identical(one: Any, two: Any) -> bool:
    """Whether two things are alike in all that a solve can see of them."""
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and one.stride() == two.stride() and torch.equal(one, two)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(identical, one, two))
    if isinstance(one, sd.GaussianMixture):
        parts = [(m.means, m.weights, *vars(m.covariances).values()) for m in (one, two)]
        return identical(*parts) and one.covariances.__class__ is two.covariances.__class__
    if isinstance(one, sd.Process):
        levels = [p.level(torch.linspace(p.t_min, p.t_max, 33, dtype=F64)) for p in (one, two)]
        return one == two and identical(*levels)
    if isinstance(one, Spacing) and not identical(one.times(VP), two.times(VP)):
        return False
    if isinstance(one, State) and not identical(one.tensor(), two.tensor()):
        return False
    if isinstance(one, Observation) and not identical(one.matrix, two.matrix):
        return False
    return bool(one == two)


# ---------------------------------------------------------------------------------------------------- reprs


@pytest.mark.parametrize("name", mostly_slow(STRATEGIES, FEW))
def test_a_repr_makes_the_same_again(name: str) -> None:
    def check(value: Any) -> None:
        assert identical(paste(value), value)
        assert len(repr(value)) < 400

    each(STRATEGIES[name], check)


@pytest.mark.parametrize("name", mostly_slow(STRATEGIES, FEW))
def test_what_is_drawn_can_be_copied_and_pickled(name: str) -> None:
    def check(value: Any) -> None:
        for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert identical(twin, value)
            assert repr(twin) == repr(value)
            assert type(twin) is type(value)

    each(STRATEGIES[name], check, 30)


def test_every_strategy_is_in_the_table_and_documented() -> None:
    public = {
        n: f for n, f in vars(strategies).items() if inspect.isfunction(f) and f.__module__ == strategies.__name__
    }
    public = {name: f for name, f in public.items() if not name.startswith("_")}
    assert set(public) == set(STRATEGIES)
    for name, function in public.items():
        assert (function.__doc__ or "").strip(), name


def test_what_is_told_is_what_it_was_made_from() -> None:
    vp, solver = make(sd.VP, beta_max=12.0), make(sd.Multistep, order=3, frame=make(sd.FLOW, variable=Root()))
    assert repr(vp) == "sd.VP(beta_max=12.0)"
    assert repr(solver) == "sd.Multistep(order=3, frame=sd.FLOW(variable=Root()))"
    assert isinstance(solver, sd.Multistep)
    plain = sd.Multistep(order=3, frame=sd.FLOW(variable=Root()))
    assert solver == plain
    assert plain == solver
    assert hash(solver) == hash(plain)
    assert solver != sd.Multistep(order=3)
    assert sd.Multistep(order=3) != solver
    assert vp in {sd.VP(beta_max=12.0)}
    assert vp != sd.VP()
    assert repr(told(solver, "again")) == "again"
    assert type(told(solver, "again")) is type(solver)
    other = dataclasses.replace(solver, order=2)  # changed: the call would be a lie
    assert other == sd.Multistep(order=2, frame=sd.FLOW(variable=Root()))
    assert "order=3" not in repr(other)
    assert pickle.loads(pickle.dumps(other)) == other
    assert "random_mixture" not in repr(random_mixture("full", 2, (2,)).marginal(vp.level(0.5)))
    sd.ReverseSDE(sd.VP(beta_max=12.0), random_mixture("full", 2, (2,)).score(vp))  # one process, told or not


@pytest.mark.parametrize(
    ("value", "call"),
    [
        (sd.VP(), "sd.VP()"),
        (sd.EDM(sigma_max=5.0), "sd.EDM(sigma_max=5.0)"),
        (sd.grids.karras, "sd.grids.karras"),
        (sd.tableaus.HEUN, "sd.tableaus.HEUN"),
        (log_snr, "log_snr"),
        (Root(3.0), "Root(rho=3.0)"),
        ((1.0,), "(1.0,)"),
        ([sd.DATA, (0.5, 2)], "[sd.DATA, (0.5, 2)]"),
        (torch.tensor([0.1, 0.2], dtype=F64), "torch.tensor([0.1, 0.2], dtype=torch.float64)"),
        (sd.DiscreteVP([0.1, 0.2]), "sd.DiscreteVP(betas=torch.tensor([0.1, 0.2], dtype=torch.float64))"),
        (VP.level, "sd.VP().level"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_spelling(value: Any, call: str) -> None:
    assert spell(value) == call


# ---------------------------------------------------------------------------------------------------- shrinking


@pytest.mark.parametrize(
    ("name", "simplest"),
    [
        ("seeds", "0"),
        ("dtypes", "torch.float64"),
        ("batch_sizes", "1"),
        ("etas", "0.0"),
        ("shapes", "(1,)"),
        ("predictions", "'data'"),
        ("processes", "sd.VP()"),
        ("times", "1.0"),
        ("levels", "sd.VP().level(1.0)"),
        ("level_pairs", "(sd.VP().level(0.5), sd.VP().level(1.0))"),
        ("level_triples", "(sd.VP().level(0.25), sd.VP().level(0.5), sd.VP().level(1.0))"),
        ("grids", "Spacing()"),
        ("mixtures", "sd.GaussianMixture(((0.0,),), stds=1.0)"),
        ("gaussians", "sd.Gaussian((0.0,), std=1.0)"),
        ("states", "State()"),
        ("observations", "Observation()"),
        ("frames", "sd.DATA"),
        ("solvers", "sd.ddim()"),
    ],
)
def test_the_simplest_of_its_kind(name: str, simplest: str) -> None:
    assert smallest(STRATEGIES[name]) == simplest


def _separated(mixture: sd.GaussianMixture) -> bool:
    return len(mixture) > 1 and bool((mixture.means.amax(0) - mixture.means.amin(0)).max() > 2.6)


def _jumps(grid: Spacing) -> bool:
    steps = VP.level(grid.times(VP)).lam.diff()
    return len(steps) > 1 and bool((steps[1:] / steps[:-1]).max() > 1e6)


@pytest.mark.parametrize(
    ("name", "condition", "found"),
    [
        ("seeds", lambda seed: seed >= 2**40, str(2**40)),
        ("shapes", lambda shape: math.prod(shape) > 10 and len(shape) == 1, "(11,)"),
        ("predictions", lambda want: not isinstance(want, str) and want[1] < 0, "pair(0.0, -0.25)"),
        ("processes", lambda p: isinstance(p, sd.VP) and p.beta_max < 10, "sd.VP(beta_max=2.0)"),
        ("processes", lambda p: p.t_max > 1 and p.t_max < 100, "sd.EDM()"),
        ("processes", lambda p: p.t_min < 0, "MonotoneProcess(t_min=-1.0)"),
        ("processes", lambda p: sum(getattr(p, "bends", ())) > 1, "MonotoneProcess(bends=(1.25,))"),
        ("grids", lambda grid: grid.steps >= 7, "Spacing(steps=7)"),
        ("grids", _jumps, "Spacing(kind='clumps', steps=2, ratio=100000000.0)"),
        ("mixtures", lambda m: len(m) == 3, "sd.GaussianMixture(((0.0,), (0.0,), (0.0,)), stds=1.0)"),
        ("mixtures", _separated, "sd.GaussianMixture(((0.0,), (2.75,)), stds=1.0)"),
        ("mixtures", lambda m: bool(m.covariances.singular), "sd.GaussianMixture(((0.0,),), stds=0.0)"),
        (
            "mixtures",
            lambda m: m.weights.min() < 1e-200,
            "sd.GaussianMixture(((0.0,), (0.0,)), stds=1.0, weights=(1.0, 1e-300))",
        ),
        (
            "mixtures",
            lambda m: len(m) > 4 and m.weights.min() < 1e-3,
            "random_mixture('isotropic', 5, (1,), weights='skewed')",
        ),
        ("gaussians", lambda g: g.cov().diagonal().min() < 0.01, "sd.Gaussian((0.0,), std=0.01)"),
        ("states", lambda s: not s.tensor().is_contiguous() and s.dtype == F64, None),
        ("observations", lambda o: len(o.matrix) == 2, "Observation(rows=((1.0,), (1.0,)))"),
        ("frames", lambda frame: frame.variable is not None and frame.rate(0.0) == 1.0, "sd.NOISE(variable=log_snr)"),
        (
            "solvers",
            lambda s: s.memory == 4 and s.stochastic,
            ("sd.sa_solver(order=4)", "sd.Multistep(order=5, eta=0.5)"),
        ),
        ("solvers", lambda s: isinstance(s, sd.PC) and not s.predictor.stochastic, "sd.PC(predictor=sd.ddim())"),
    ],
)
def test_a_planted_fault_shrinks_to_a_line(
    name: str, condition: Callable[[Any], Any], found: str | tuple[str, ...] | None
) -> None:
    call = smallest(STRATEGIES[name], condition)
    assert len(call) <= 70
    # Of two lines that are as simple, a search may end with either: it takes constants of every module imported.
    assert found is None or call in ([found] if isinstance(found, str) else found)


# ---------------------------------------------------------------------------------------------------- validity


def test_processes_are_processes() -> None:
    def check(process: sd.Process) -> None:
        t = torch.linspace(process.t_min, process.t_max, 129, dtype=F64)
        level = process.level(t)
        check_levels(process, level)
        assert level.alpha.dtype == level.sigma.dtype == F64
        assert (level.lam.diff() < 0).all()
        assert all(rate.isfinite().all() for rate in process.rates(t))
        assert (process.variance_rate(t[1:-1]) > 0).all()

    each(strategies.processes(), check, 200)
    assert not any(isinstance(p, MonotoneProcess) for p in draw(strategies.processes(user=False), 100))


def test_a_users_process_is_its_formula() -> None:
    def check(process: sd.Process) -> None:
        t = torch.linspace(process.t_min, process.t_max, 65, dtype=F64)
        u = (t - process.t_min) / (process.t_max - process.t_min)
        level = process.level(t)
        fall = u + sum(b * u ** (k + 2) for k, b in enumerate(process.bends))
        lam = process.lam_max - (process.lam_max - process.lam_min) * fall / fall[-1]
        norm = sum((c * u**k for k, c in enumerate(process.norms)), torch.zeros_like(u))
        # exp and log keep a few roundings of numbers no larger than |n| + |lam| <= 6 + 12, three times over
        slack = 100 * 18 * EPS
        assert (level.lam - lam).abs().max() < slack
        assert (torch.hypot(level.alpha, level.sigma).log() - norm).abs().max() < slack

    each(strategies._user_processes(), check, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lam_max": -4.0}, "must fall"), ({"bends": (-1.0,)}, "bends >= 0"), ({"t_max": 0.0}, "t_min < t_max")],
)
def test_rejects_invalid_processes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sd.InvalidArgumentError, match=message):
        MonotoneProcess(**options)


def test_levels_are_in_their_order() -> None:
    cases = strategies.processes().flatmap(
        lambda p: st.tuples(st.just(p), strategies.level_pairs(p, gap=0.1), strategies.level_triples(p))
    )

    def check(case: Any) -> None:
        process, two, three = case
        for gap, levels in ((0.1, two), (1e-6, three)):
            for first, second in zip(levels, levels[1:]):
                assert process.t_min <= first.t < second.t <= process.t_max
                assert first.lam - second.lam >= gap
                assert all(v.isfinite() for v in process.transition(first, second))

    each(cases, check)


@pytest.mark.parametrize(("kind", "most"), mostly_slow(crossed(SPACINGS, [5, 60, 10_000]), lambda case: case[1] == 60))
def test_grids_are_grids(kind: str, most: int) -> None:
    def check(case: tuple[Spacing, sd.Process]) -> None:
        grid, process = case
        times = sd.grids.check_times(grid.times(process), process)
        assert times.shape == (grid.steps + 1,)
        assert (times[0], times[-1]) == (process.t_max, process.t_min)
        assert (times.diff() < 0).all()
        assert torch.equal(dataclasses.replace(grid, steps=1)(process, grid.steps), times)

    each(st.tuples(strategies.grids(most, [kind]), strategies.processes()), check, 12 if most > 60 else 30)


def test_uneven_grids_are_uneven() -> None:
    clumps = VP.level(Spacing("clumps", 9, ratio=1e8).times(VP)).lam.diff()
    torch.testing.assert_close(clumps.max() / clumps.min(), torch.tensor(1e8, dtype=F64), rtol=1e-5, atol=0)
    uneven = VP.level(Spacing("uneven", 50, ratio=1e8).times(VP)).lam.diff()
    assert uneven.max() / uneven.min() > 1e6
    assert (uneven[1:] / uneven[:-1]).log10().abs().max() < 8
    with pytest.raises(sd.InvalidArgumentError, match="by_time, by_snr"):
        Spacing("karas")
    with pytest.raises(sd.InvalidArgumentError, match="ratio"):
        Spacing("uneven", ratio=0.5)
    with pytest.raises(sd.InvalidArgumentError, match="steps must be >= 1"):
        Spacing("uneven", 0).times(VP)
    with pytest.raises(sd.InvalidTypeError, match="needs a Process"):
        Spacing("uneven").times(sd.SDE.from_functions(lambda x, t: -x, lambda x, t: t))


def test_mixtures_have_finite_scores() -> None:
    cases = strategies.processes().flatmap(
        lambda p: st.tuples(st.just(p), strategies.levels(p), strategies.mixtures() | strategies.gaussians())
    )

    def check(case: Any) -> None:
        process, level, data = case
        x = torch.cat([data.sample(3, level=level), 1e3 * level.sigma * torch.ones(1, *data.shape, dtype=F64)])
        for want in ("score", "data"):
            assert data.score(process)(x, level, want).isfinite().all()
        assert math.isclose(float(data.weights.sum()), 1.0, rel_tol=1e-12)
        assert data.shape.numel() <= 64
        assert len(data) <= 8

    each(cases, check, 120)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_random_mixtures_have_the_spectra_they_say(kind: str, condition: float) -> None:
    count, dim, width = 3, 6, 0.7
    mixture = random_mixture(kind, count, (2, 3), width=width, condition=condition)
    basis = torch.eye(count, dtype=F64)
    spectra = torch.stack([torch.linalg.eigvalsh(mixture.covariances.average(one, dim)) for one in basis]) / width**2
    # an eigenvalue moves by a rounding of the largest, 2 at most, times the roundings along D sums, twice over
    slack = 100 * EPS
    low, high = {
        "points": (0.0, 0.0),
        "degenerate": (0.0, 1.0),
        "low-rank": (1 / condition, 1 + 1 / condition),
    }.get(kind, (1 / condition, 1.0))
    if kind == "low-rank+diagonal":  # the sum of two such: no smaller than the smallest, no larger than both
        assert spectra.min() >= low - slack
        assert 1 - slack <= spectra.max() <= 2 + slack
    else:
        assert abs(spectra.min() - low) <= slack
        assert abs(spectra.max() - high) <= slack
    one = random_gaussian(kind, (2, 3), width=width, condition=condition)
    assert one.shape == (2, 3)
    assert (torch.linalg.eigvalsh(one.cov()).max() / width**2 <= spectra.max() + slack) or "rank+" in kind


def test_random_mixtures_have_the_means_and_weights_they_say() -> None:
    far = random_mixture("points", 8, (8, 8), apart=1e3)
    gaps = (far.means[:, None] - far.means[None]).square().mean((2, 3)).sqrt()[~torch.eye(8, dtype=torch.bool)]
    # root mean squares of 64 normals: 1 +- 1/sqrt(128), here within five standard deviations
    assert ((gaps / 1e3 - 1).abs() < 5 / math.sqrt(128)).all()
    equal = random_mixture("full", 3, (2,), apart=0.0)
    assert not equal.means.any()
    parts = [equal.covariances.average(one, 2) for one in torch.eye(3, dtype=F64)]
    assert torch.equal(parts[0], parts[1])
    assert torch.equal(parts[0], parts[2])
    weights = {kind: random_mixture("points", 3, (2,), weights=kind).weights for kind in WEIGHTS}
    torch.testing.assert_close(weights["equal"], torch.full((3,), 1 / 3, dtype=F64))
    torch.testing.assert_close(weights["skewed"] * 1.11, torch.tensor([1.0, 0.1, 0.01], dtype=F64))
    assert weights["tiny"][2] == pytest.approx(5e-301, rel=1e-10)
    for options in ({"kind": "fool"}, {"weights": "none"}):
        with pytest.raises(sd.InvalidArgumentError, match="must be one of"):
            random_mixture(**{"kind": "full", "components": 1, "shape": (1,), **options})


def test_seeds_make_different_numbers() -> None:
    seeds = (0, 1, 2**31, 2**32, 2**32 + 1, 2**63 - 1)
    drawn = torch.stack([random_gaussian("points", (8,), seed=seed).mean() for seed in seeds])
    assert len(drawn.unique(dim=0)) == len(seeds)
    # another stream than the noise of steps and the mixtures' own
    assert not torch.allclose(drawn[0], 2**0.5 * noise.normals(torch.tensor([0]), (8,), (0, 0, 0, 0), dtype=F64)[0])
    # the mean square of 512 entries of variance 1/64 is 1/64 (1 +- sqrt(2/512)), here within five standard deviations
    assert abs(64 * float(Observation((8, 64)).matrix.square().mean()) - 1) < 5 * math.sqrt(2 / 512)


def test_solvers_solve() -> None:
    data = sd.GaussianMixture([[-1.0, 0.5], [0.7, -0.4]], stds=0.3)
    cases = st.tuples(strategies.solvers(), strategies.processes(), strategies.dtypes(half=False))

    def check(case: Any) -> None:
        solver, process, dtype = case
        if any(process.open_ends) and not solver.noise_end:
            return
        seeds = noise.seeds(0, 3)
        x = process.prior(seeds, (2,), dtype)
        out = sd.solve(data.score(process), x, solver.grid(process, 2), solver, noise=sd.White(seeds)).x
        assert out.dtype == dtype
        assert out.isfinite().all()

    each(cases, check, 200)


@pytest.mark.parametrize("deterministic", [None, False, True])
@pytest.mark.parametrize("memory", [None, False, True])
@pytest.mark.parametrize("coupled", [None, False])
def test_solvers_are_as_asked_for(deterministic: bool | None, memory: bool | None, coupled: bool | None) -> None:
    for solver in draw(strategies.solvers(deterministic=deterministic, memory=memory, coupled=coupled), 60):
        assert deterministic in (None, not solver.stochastic)
        assert memory in (None, solver.memory > 0)
        assert coupled is None or "atch" not in repr(solver)


def test_solvers_for_general_sdes_solve_them() -> None:
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: torch.ones_like(t))
    kinds = set()
    for solver in draw(strategies.solvers(process_type=sd.SDE), 100):
        model = sde.reverse(lambda x, t: -x, getattr(solver, "eta", 0.0))
        out = sd.solve(model, torch.ones(2, 3), [1.0, 0.6, 0.3], solver, noise=sd.White(noise.seeds(0, 2))).x
        assert out.isfinite().all()
        kinds.add(type(solver).__name__)
    assert {"EulerMaruyama", "RungeKutta", "Multistep"} <= kinds
    with pytest.raises(sd.InvalidArgumentError, match="ask for less"):
        strategies.solvers(deterministic=True, coupled=True)


def test_states_are_as_they_say() -> None:
    def check(state: State) -> None:
        x = state.tensor()
        assert (x.shape, x.dtype) == (state.shape, state.dtype)
        assert x.isfinite().all()
        assert torch.equal(x, dataclasses.replace(state, layout="contiguous").tensor()) or state.layout == "expanded"
        assert x.data_ptr() != state.tensor().data_ptr() or x.numel() == 0

    each(strategies.states(), check, 200)
    for state in draw(strategies.states(shape=(2, 3), batch=7, dtype=torch.float32), 30):
        assert (state.shape, state.dtype) == ((7, 2, 3), torch.float32)


def test_layouts() -> None:
    x = torch.arange(24, dtype=F64).reshape(2, 3, 4)
    for layout in LAYOUTS:
        y = laid_out(x, layout)
        assert torch.equal(x, y)
        assert y.data_ptr() != x.data_ptr()
        assert y.is_contiguous() == (layout in ("contiguous", "expanded"))
    assert laid_out(x, "transposed").stride() == (1, 2, 6)
    assert laid_out(x, "strided").stride() == (24, 8, 2)
    same = x[:1].expand_as(x)
    assert laid_out(same, "expanded").stride() == (0, 4, 1)
    assert laid_out(same, "contiguous").stride() == (12, 4, 1)
    with pytest.raises(sd.InvalidArgumentError, match="contiguous, transposed"):
        laid_out(x, "tiled")


def test_observations_give_posteriors() -> None:
    cases = strategies.mixtures(max_dim=10).flatmap(
        lambda m: st.tuples(st.just(m), strategies.observations(m.shape.numel()))
    )

    def check(case: tuple[sd.GaussianMixture, Observation]) -> None:
        data, seen = case
        dim = data.shape.numel()
        x = data.sample(2)
        y = seen.apply(x)
        assert y.shape == (2, len(seen.matrix))
        assert seen.matrix.shape[1] == dim
        # D products, summed: D + 1 roundings of the sum of magnitudes, in each of the two
        exact = torch.einsum("md,bd->bm", seen.matrix, x.flatten(1))
        bound = (dim + 1) * EPS * torch.einsum("md,bd->bm", seen.matrix.abs(), x.flatten(1).abs())
        assert ((y - exact).abs() <= 2 * bound).all()
        assert data.posterior(y[0], seen.matrix, seen.noise_std).means.isfinite().all()

    each(cases, check)


def test_predictions_are_understood() -> None:
    model, level = sd.Gaussian([0.0, 1.0], std=0.5).score(VP), VP.level(0.3)

    def check(want: Any) -> None:
        assert model(torch.ones(3, 2), level, want).isfinite().all()

    each(strategies.predictions(), check)
    assert [float(v) for v in pair(0.1, -2.0)] == [0.1, -2.0]


def test_variables_of_frames() -> None:
    lam = torch.linspace(-5, 5, 11, dtype=F64)
    assert log_snr(lam) is lam
    torch.testing.assert_close(Root(3.0)(lam) ** 3, torch.exp(-lam), rtol=1e-14, atol=0)


def test_discrete_vp_has_vps_betas() -> None:
    """With the midpoint rule exact for a linear beta, alpha at a knot is VP's."""
    for steps in (2, 10, 1000):
        process = discrete_vp(steps)
        knots = torch.arange(1, steps + 1, dtype=F64) / steps
        # sums of up to 1000 roundings of parts of log alpha, which reaches 5
        torch.testing.assert_close(process.log_alpha(knots), VP.log_alpha(knots), rtol=0, atol=1000 * 5 * EPS)


# ---------------------------------------------------------------------------------------------------- coverage


@pytest.mark.slow
def test_every_process_appears() -> None:
    drawn = draw(strategies.processes(), 400)
    shipped = [
        v
        for n, v in vars(processes).items()
        if isinstance(v, type) and issubclass(v, sd.Process) and v.__module__ == processes.__name__ and n[0] != "_"
    ]
    assert len(shipped) >= 7
    for cls in (*shipped, MonotoneProcess):
        assert any(isinstance(p, cls) for p in drawn), cls
        if cls is not sd.DiscreteVP:
            assert any(isinstance(p, cls) and p != cls() for p in drawn), cls


@pytest.mark.slow
def test_every_kind_of_law_appears() -> None:
    mixtures, gaussians = draw(strategies.mixtures(), 400), draw(strategies.gaussians(), 250)
    for drawn, points in ((mixtures, "stds=0.0"), (gaussians, "std=0.0")):
        words = " ".join(map(repr, drawn))
        for said in (*(f"'{kind}'" for kind in KINDS), points, "condition=100000000.0", "width=0.001"):
            assert said in words, said
    words = " ".join(map(repr, mixtures))
    for said in ("apart=0.0", "apart=1000.0", "'tiny'", "'skewed'", "1e-300)"):
        assert said in words, said
    assert {len(m) for m in mixtures} >= set(range(1, 9))
    assert {len(m.shape) for m in mixtures} == {1, 2, 3}
    assert max(m.shape.numel() for m in mixtures) > 50
    assert min(m.shape.numel() for m in mixtures) == 1
    only = draw(strategies.mixtures(max_dim=4, max_components=2, kinds=["low-rank"]), 50)
    assert all("'low-rank'" in repr(m) and len(m) <= 2 and m.shape.numel() <= 4 for m in only)


@pytest.mark.slow
def test_every_kind_of_grid_layout_dtype_and_number_appears() -> None:
    drawn = draw(strategies.grids(), 400)
    assert {grid.kind for grid in drawn} == set(SPACINGS)
    for kind in SPACINGS:
        assert any(grid.steps == 1 for grid in drawn if grid.kind == kind), kind
        assert any(grid.steps > 20 for grid in drawn if grid.kind == kind), kind
    assert any(grid.ratio == 1e8 for grid in drawn if grid.kind == "uneven")
    states = draw(strategies.states(), 400)
    assert {s.layout for s in states} == set(LAYOUTS)
    assert {s.dtype for s in states} == {torch.float64, torch.float32, torch.bfloat16, torch.float16}
    assert {s.shape[0] for s in states} == {0, 1, 2, 7, 32, 33}
    assert {isinstance(s.numbers, int) for s in states} == {False, True}
    assert {0, 2**31, 2**32, 2**63 - 1} <= set(draw(strategies.seeds(), 200))
    assert {0.0, 1.0} <= set(draw(strategies.etas(), 100))
    assert max(draw(strategies.etas(), 100)) > 1
    wants = draw(strategies.predictions(), 100)
    assert {w for w in wants if isinstance(w, str)} == {"data", "noise", "score", "v", "velocity"}
    assert any(isinstance(w, tuple) for w in wants)
    assert {isinstance(o.rows[0], int) for o in draw(STRATEGIES["observations"], 100)} == {False, True}
    levels = draw(STRATEGIES["levels"])
    assert {level.t.shape for level in levels} >= {(), (0,), (1,), (5,)}
    times = draw(strategies.times(sd.EDM()), 200)
    assert min(times) == 0.002
    assert max(times) == 80.0
    assert any(0.002 < t < 0.1 for t in times)


def test_every_frame_and_solver_appears() -> None:
    frames = draw(strategies.frames(), 400)
    shipped = [sd.DATA, sd.NOISE, sd.SIGMA, sd.ANGLE, sd.FLOW, sd.WIENER, sd.TIME]
    assert {type(f).__name__ for f in frames} == {type(f).__name__ for f in shipped}
    for frame in shipped:
        assert frame in frames
        assert frame == sd.TIME or any(f.variable is not None for f in frames if isinstance(f, type(frame)))
    assert {f.sigma_data for f in frames if hasattr(f, "sigma_data")} == {0.5, 1.0, 3.0}
    assert all(f in shipped for f in draw(strategies.frames(options=False), 50))
    families = {name: " ".join(map(repr, found)) for name, found in catalogue.solver_families().items()}
    methods = [n for n, f in vars(names).items() if inspect.isfunction(f) and f.__module__ == names.__name__]
    assert all(f"sd.{name}(" in families["methods"] for name in methods if not name.startswith("_"))
    classes = {"Multistep", "RungeKutta", "PC", "Langevin", "BatchCoupledLangevin", "EulerMaruyama", "ReverseDiffusion"}
    assert set(families) >= {"methods", *classes}
    drawn = [repr(solver) for solver in draw(strategies.solvers(), 1200)]
    for name, calls in families.items():
        assert any(call in calls for call in drawn), name
    words = " ".join(drawn)
    for said in (
        "order=5",
        "correct=True",
        "eta=2.0",
        "sd.tableaus.RK4",
        "variable=Root(",
        "grid=sd.grids.natural",
        "snr=0.3",
    ):
        assert said in words, said


def test_a_new_method_is_drawn_without_being_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def newest(order: int) -> sd.Multistep:
        return sd.Multistep(order=order, frame=sd.FLOW)

    def another(what: str) -> sd.Multistep:  # nothing is known of its argument
        raise AssertionError

    for method in (newest, another):
        method.__module__ = "sdegen.solvers.methods"
        monkeypatch.setattr(f"sdegen.solvers.methods.{method.__name__}", method, raising=False)
    found = [s for s in catalogue.solver_families.__wrapped__()["methods"] if "newest" in repr(s)]
    assert sorted(s.order for s in found) == [1, 2, 3, 4, 5]
    assert not any("newest" in repr(s) for s in catalogue.solver_families()["methods"])
