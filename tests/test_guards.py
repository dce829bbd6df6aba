"""What a user's function does to x, to shapes and to levels is seen before it does harm."""

from __future__ import annotations

import functools
import io
import itertools
import json

import numpy as np
import pytest
import torch
from cases import crossed, mostly_slow
from problems import FRAMES, MIXTURE

import sdegen as sd

F64 = torch.float64
P = sd.VP()
MODEL = sd.GaussianMixture(**MIXTURE).score(P)
NOISE = sd.ScoreModel(P, lambda x, t: x * 0.5, "noise")
GRID = sd.grids.by_snr(P, 8)


def one(x, t):
    return torch.ones_like(x)


# --- close times

CLOSE = {
    "middle": ([1.0, 0.7, 0.5], [0.1, 0.01, 0.001]),
    "late": ([1.0, 0.7, 0.5, 0.3], [0.15, 0.05, 0.01, 0.001]),
    "many": ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], [0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.001]),
}
METHODS = {
    "default": sd.default(),
    "dpmpp(2)": sd.dpmpp(2),
    "unipc(3)": sd.unipc(3),
    "sa_solver": sd.sa_solver(),
    "dpmpp_sde": sd.dpmpp_sde(2),
    "er_sde": sd.er_sde(3),
    "lms": sd.lms(4),
    "deis": sd.deis(3),
    "pndm": sd.pndm(),
    "singlestep": sd.dpmpp(3, singlestep=True),
    "adams": sd.adams(),
    "adams with noise": sd.adams(eta=1.0),
    **{
        f"{name}, {correct}": sd.Multistep(3, FRAMES[name], correct=correct)
        for name, correct in crossed(FRAMES, (False, True))
    },
    "WIENER": sd.Multistep(3, sd.WIENER(sigma_data=0.5), eta=1.0, correct=True),
}


@pytest.mark.parametrize(
    ("name", "where"),
    mostly_slow(
        crossed(METHODS, CLOSE), lambda case: case[1] == "middle" or case[0] in ("adams", "unipc(3)", "default")
    ),
)
def test_two_times_that_nearly_meet_do_no_harm(name, where):
    """No more than three times what the grid without the close time gives, at any gap."""
    before, after = CLOSE[where]
    run = functools.partial(sd.sample, MODEL, (40, 2), solver=METHODS[name], seed=0, dtype=F64)
    most = 3 * max(2.0, float(run(grid=before + after).abs().max()))
    for gap in (1e-3, 1e-5, 1e-7, 1e-10, 1e-13):
        assert float(run(grid=[*before, before[-1] - gap, *after]).abs().max()) < most


def test_growing_steps_keep_their_nodes():
    """Adaptive steps grow fivefold from a short first one: errors are seen, and stay near the tolerance."""
    decay = sd.SDE.from_functions(lambda x, t: -3 * x, lambda x, t: torch.zeros_like(t))
    flow = decay.probability_flow(lambda x, t: torch.zeros_like(x))
    control = sd.PI(rtol=1e-8, atol=1e-10, start=0.0, end=1.0)
    found = sd.solve(flow, torch.ones(4, 1, dtype=F64), control, sd.solvers.Adams(frame=sd.TIME)).x
    assert float((found / torch.tensor(-3.0, dtype=F64).exp() - 1).abs().max()) < 1e-6


# --- what functions do to x


def drift_that(edit):
    def drift(x, t):
        edit(x)
        return -x

    return sd.SDE.from_functions(drift, one)


EDITS = {
    "mul_": lambda x: x.mul_(-1),
    "item": lambda x: x.__setitem__((slice(None), 0), 0.0),
    "view": lambda x: x.view(-1).zero_(),
    "clamp_": lambda x: x.clamp_(0.0, 0.5),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("which", ["drift", "diffusion", "subclass"])
def test_a_drift_that_edits_x_is_refused_and_the_callers_x_is_whole(name, which):
    edit = EDITS[name]

    class Own(sd.SDE):
        def drift(self, x, t):
            edit(x)
            return -x

        def diffusion(self, x, t):
            return torch.ones_like(x)

    def diffusion(x, t):
        edit(x)
        return torch.ones_like(x)

    made = {
        "drift": drift_that(edit),
        "diffusion": sd.SDE.from_functions(lambda x, t: -x, diffusion),
        "subclass": Own(),
    }
    x = torch.ones(3, 2)
    with pytest.raises((sd.InvalidArgumentError, sd.ScoreError), match="edited"):
        sd.forward(made[which], x, [0.0, 0.5, 1.0])
    assert torch.equal(x, torch.ones(3, 2))


@pytest.mark.parametrize(
    "drift",
    [
        lambda x, t: x * float("nan"),
        lambda x, t: torch.where(x > 0, torch.inf, x),
        lambda x, t: -x / (t[:, None] < 0.7),
    ],
)
def test_a_path_with_nan_raises(drift):
    with pytest.raises(sd.SolveError):
        sd.forward(sd.SDE.from_functions(drift, one), torch.ones(2, 2), torch.linspace(0, 1, 11))


@pytest.mark.parametrize("control", [GRID, sd.PI(tol=1e-2)], ids=["grid", "PI"])
def test_events_and_observers_that_edit_x_are_refused(control):
    solver, x = sd.adams(), torch.ones(2, 2, dtype=F64)
    with pytest.raises(sd.InvalidArgumentError, match="edited"):
        sd.solve(MODEL, x, control, solver, event=lambda x, level: x.zero_()[:, 0] + 1)
    with pytest.raises(sd.InvalidArgumentError, match="edited"):
        sd.solve(MODEL, x, control, solver, observe=lambda progress: progress.x.mul_(2))
    with pytest.raises(sd.InvalidArgumentError, match="edited"):
        sd.sample(MODEL, (5, 2), nfe=4, batch_size=2, observe=lambda progress: progress.x[:1].zero_())


def keeper():
    kept = []

    def net(x, t):
        for earlier in kept:
            earlier.zero_()
        kept.append(x)
        return x * 0.5

    return sd.ScoreModel(P, net, "noise")


KEPT = [sd.ddim(), sd.dpmpp(2), sd.default(), sd.heun(), sd.unipc(3), sd.pc(), sd.adams(), sd.pndm(), sd.dpm(3)]


@pytest.mark.parametrize("solver", KEPT, ids=lambda solver: str(solver)[:30])
def test_a_network_that_edits_an_x_it_kept_changes_nothing_or_is_told(solver):
    """Where a step goes back to an x that the network had, it must have that x still."""
    run = functools.partial(sd.sample, shape=(3, 2), steps=4, solver=solver, seed=0)
    if solver in KEPT[:3]:
        assert torch.equal(run(keeper()), run(NOISE))
        return
    with pytest.raises(sd.ScoreError, match="copy"):
        run(keeper())


# --- shapes and levels


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "g", [torch.tensor([0.0, 1.0]), torch.eye(2), torch.ones(2, 3)], ids=["[D]", "[D, D]", "[D, M]"]
)
def test_a_constant_noise_per_coordinate_is_refused_in_any_batch(g, n):
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: g)

    class Own(sd.SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return g

    noise = sd.White(sd.noise.seeds(0, n))
    for model in (sde.as_forward(), Own().as_forward(), sde.reverse(lambda x, t: -x)):
        times = [0.0, 0.5] if model.runs_forward else [0.5, 0.0]
        with pytest.raises(sd.InvalidArgumentError, match="diffusion"):
            sd.solve(model, torch.zeros(n, 2), times, sd.euler_maruyama(), noise=noise)


@pytest.mark.parametrize(
    "g", [lambda x, t: torch.tensor(0.5), lambda x, t: t + 1, lambda x, t: torch.ones(1, 2), lambda x, t: x[:, :, None]]
)
def test_the_kinds_of_noise_that_have_rows_are_taken(g):
    for n in (1, 2, 3):
        assert sd.forward(sd.SDE.from_functions(lambda x, t: -x, g), torch.ones(n, 2), [0.0, 0.5]).shape == (2, n, 2)


def process_of(a, s, low=1e-3):
    class Own(sd.Process):
        t_min = low

        def alpha(self, t):
            return a(t)

        def sigma(self, t):
            return s(t)

    return Own()


WRONG = {
    "alpha turns negative": (lambda t: torch.cos(8 * t), lambda t: t),
    "sigma falls": (torch.ones_like, lambda t: 1 + 0.1 * torch.sin(20 * t)),
    "backwards": (lambda t: t, lambda t: 1 - 0.9 * t),
    "too small to square": (lambda t: 1e-200 * (1 - 0.9 * t), lambda t: 1e-200 * t),
    "too large to square": (lambda t: 1e200 * (1 - 0.9 * t), lambda t: 1e200 * t),
    "NaN": (lambda t: torch.where(t < 0.5, 1 - t / 2, torch.nan), lambda t: t),
    "another shape": (lambda t: torch.ones(3), lambda t: t),
    "no tensor": (lambda t: 1.0, lambda t: t),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_process_that_is_none_is_refused_before_the_first_evaluation(name):
    def net(x, t):
        pytest.fail("called")

    errors = (sd.InvalidArgumentError, sd.InvalidTypeError)
    process = process_of(*WRONG[name])
    model, x = sd.ScoreModel(process, net, "data"), torch.ones(2, 2)
    for run in (
        lambda: sd.sample(model, (2, 2), nfe=3),
        lambda: sd.sample(model, (2, 2), tol=0.1),
        lambda: sd.solve(model, x, [0.3, 0.2], sd.ddim()),
        lambda: sd.edit(model, x, 0.5),
        lambda: sd.encode(model, x),
        lambda: sd.forward(process, x, [0.1, 0.9]),
        lambda: sd.Process.from_functions(*WRONG[name]),
    ):
        with pytest.raises(errors):
            run()


def test_a_constant_scale_may_be_one_number():
    constant = process_of(lambda t: torch.tensor(1.0, dtype=F64), lambda t: 20 * t)
    full = process_of(torch.ones_like, lambda t: 20 * t)
    one, other = (
        sd.sample(sd.ScoreModel(p, lambda x, t: x * 0.5, "noise"), (3, 2), nfe=5, seed=0) for p in (constant, full)
    )
    assert torch.equal(one, other)


# --- evaluations

COUNTED = [sd.ddim, sd.ddpm, sd.heun, sd.lms, sd.pndm, sd.dpm, sd.dpmpp, sd.unipc, sd.sa_solver, sd.er_sde, sd.pc]
COUNTED += [sd.dpm_ancestral, sd.default, sd.edm, sd.dopri5, sd.tsit5, sd.adams, sd.euler_maruyama, sd.dpmpp_ancestral]
COUNTED += [sd.dpmpp_sde, sd.deis, sd.adaptive_heun, lambda: sd.PC(sd.ddpm(), sd.Langevin(steps=3))]


@pytest.mark.parametrize("make", COUNTED)
def test_nfe_is_the_number_of_calls(make):
    """At most as many as asked for, one step more would be too many, and too few are an error."""
    calls = []
    model = sd.ScoreModel(P, lambda x, t: (calls.append(float(t[0])), x * 0.5)[1], "noise", time_dtype=F64)
    for nfe, denoise in itertools.product((1, 2, 9, 27), (True, False)):
        calls.clear()
        if nfe < make().cost(1) + denoise:
            with pytest.raises(sd.InvalidArgumentError, match="nfe"):
                sd.draw(model, (2, 2), nfe=nfe, solver=make(), denoise=denoise)
            assert not calls
            continue
        found = sd.draw(model, (2, 2), nfe=nfe, solver=make(), denoise=denoise)
        assert int(found.nfe[0]) == len(calls) <= nfe
        assert P.t_min <= min(calls)
        assert max(calls) <= P.t_max
        more = sd.draw(model, (2, 2), steps=int(found.accepted[0]) + 1, solver=make(), denoise=denoise)
        assert int(more.nfe[0]) > nfe


def test_what_does_not_go_with_nfe():
    for options in ({"steps": 4}, {"tol": 0.1}, {"grid": sd.Restart()}, {"grid": [1.0, 0.5, 0.1]}):
        with pytest.raises(sd.InvalidArgumentError):
            sd.sample(MODEL, (2, 2), nfe=12, **options)
    for nfe in (0, -1, 2.5, True, "8"):
        with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match="nfe"):
            sd.sample(MODEL, (2, 2), nfe=nfe)
    plan = sd.Plan.of(sd.unipc(3), P, 6)
    assert sd.draw(MODEL, (2, 2), solver=plan, nfe=7).nfe.tolist() == [7, 7]
    for nfe in (6, 8):
        with pytest.raises(sd.InvalidArgumentError, match="7 evaluations"):
            sd.sample(MODEL, (2, 2), solver=plan, nfe=nfe)


@pytest.mark.parametrize(
    "options",
    [
        {"nfe": 10},
        {"nfe": 10, "solver": sd.heun()},
        {"steps": 4, "batch_size": 2},
        {"steps": 4, "solver": sd.adams()},
        {"nfe": 12, "solver": sd.pndm(), "denoise": False},
        {"steps": 8, "grid": sd.Restart()},
    ],
    ids=lambda options: str(options)[:40],
)
def test_the_bar_counts_evaluations(options, monkeypatch):
    pytest.importorskip("tqdm")
    calls, shown = [], io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    model = sd.ScoreModel(P, lambda x, t: (calls.append(1), x * 0.5)[1], "noise")
    sd.sample(model, (5, 2), progress=True, **options)
    assert f"{len(calls)}/{len(calls)}" in shown.getvalue().split("\r")[-1]


# --- messages


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states_are_not_told_to_lose_a_half(dtype):
    x = torch.ones(3, 2, dtype=dtype)
    for run in (
        lambda: sd.edit(NOISE, x, 0.5),
        lambda: sd.solve(NOISE, x, [1.0, 0.5], sd.ddim()),
        lambda: sd.encode(NOISE, x),
        lambda: sd.sample(NOISE, (3, 2), x=x),
        lambda: sd.forward(P, x, [0.1, 0.5]),
        lambda: sd.GaussianMixture.empirical(x),
        lambda: sd.GaussianMixture(**MIXTURE).log_prob(x),
        lambda: sd.solvers.moment_frame.Moments.of(x, rank=1),
    ):
        with pytest.raises(sd.InvalidTypeError, match="view_as_real") as caught:
            run()
        assert "float()" not in str(caught.value)


def test_sparse_states_are_told_to_be_dense():
    x = torch.eye(2).to_sparse()
    for run in (lambda: sd.edit(NOISE, x, 0.5), lambda: sd.sample(NOISE, (2, 2), x=x), lambda: sd.encode(NOISE, x)):
        with pytest.raises(sd.InvalidTypeError, match="to_dense"):
            run()


@pytest.mark.parametrize(
    "grid",
    [
        lambda p: [1.0, 0.1],
        lambda p, n: None,
        lambda p, n, q: [1.0, 0.1],
        lambda p, n, *, q: [1.0, 0.1],
        lambda p, n: ["a", "b"],
        lambda p, n: (1 - k / n for k in range(n)),
        "karras",
        5,
    ],
)
def test_a_grid_that_is_none_is_a_type_error_of_ours(grid):
    for options in ({"steps": 3}, {"nfe": 4}, {"steps": 3, "start": 0.5}):
        with pytest.raises(sd.InvalidTypeError):
            sd.sample(NOISE, (2, 2), grid=grid, **options)


def test_a_grid_without_times_is_named():
    def forgetful(process, n):
        process.level(1.0)

    with pytest.raises(sd.InvalidTypeError, match="forgetful returned None"):
        sd.sample(NOISE, (2, 2), grid=forgetful)


def test_a_type_error_inside_of_a_grid_is_the_users_own():
    with pytest.raises(TypeError, match="concatenate"):
        sd.sample(NOISE, (2, 2), grid=lambda p, n: [1.0] + None)


def test_a_start_is_one_number():
    x = torch.ones(2, 2)
    for start in ("a", [0.5], {}, 1j):
        for run in (lambda s=start: sd.sample(NOISE, (2, 2), start=s), lambda s=start: sd.edit(NOISE, x, s)):
            with pytest.raises(sd.InvalidTypeError, match="start must be a number"):
                run()
    for start in (None, torch.tensor([0.3, 0.4]), 2.0, float("nan"), 0.0):
        with pytest.raises(sd.InvalidArgumentError, match="start"):
            sd.edit(NOISE, x, start)
    for start in (0.5, np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5])):
        assert torch.equal(sd.edit(NOISE, x, start, seed=0), sd.edit(NOISE, x, 0.5, seed=0))


def test_errors_of_numbers_say_which_to_take():
    steps = sd.ScoreModel(sd.DiscreteVP(), lambda x, t: x * 0.5, "noise")
    for grid in (sd.grids.leading, sd.grids.trailing, sd.grids.linspace):
        assert sd.sample(steps, (1, 2), steps=999, grid=grid).isfinite().all()
        with pytest.raises(sd.InvalidArgumentError, match="steps=999"):
            sd.sample(steps, (1, 2), steps=1000, grid=grid)
    with pytest.raises(sd.InvalidArgumentError, match="trailing stops at"):
        sd.edit(steps, torch.zeros(2, 2), 0.1, steps=4, grid=sd.grids.trailing)
    ou = sd.SDE.from_functions(lambda x, t: -x, one, t_max=5.0)
    noise = sd.Brownian(sd.noise.seeds(0, 2), ou)
    with pytest.raises(sd.InvalidArgumentError, match="start=0, end=5"):
        sd.solve(ou.as_forward(), torch.zeros(2, 1), sd.PI(rtol=0.1, atol=0.1), sd.adaptive_heun(), noise=noise)


@pytest.mark.parametrize("options", [{"nfe": 3}, {"tol": 0.1}, {"nfe": 3, "prior": (0.0, 1.0)}], ids=str)
def test_float16_that_overflows_is_told(options):
    """Of 1000 normals one is above 1.3 in all but 1e-43 of all seeds."""
    model = sd.ScoreModel(sd.EDM(sigma_max=5e4), lambda x, t: x * 0.5, "noise")
    with pytest.raises(sd.InvalidArgumentError, match="overflows"):
        sd.sample(model, (500, 2), dtype=torch.float16, **options)
    with pytest.raises(sd.InvalidArgumentError, match="overflows"):
        sd.edit(model, torch.ones(500, 2, dtype=torch.float16), 5e4)


# --- kept files

PLAN = sd.Plan.of(sd.unipc(3), P, 6)
KEYS = ("lams", "wants", "weights", "orders", "errors")


def tampered():
    fine = {key: getattr(PLAN, key) for key in KEYS}
    notes = ["{", "[1]", "null", "{}", '{"scale":1,"spent":2,"evil":3}', '{"scale":"abc","spent":1}', '{"spent":1}']
    notes += ['{"scale":null,"spent":1}', '{"scale":0.0,"spent":1}', '{"scale":-1,"spent":1}', '{"scale":1,"spent":-5}']
    notes += ['{"scale":1,"spent":1.5}', '{"scale":true,"spent":1}', '{"scale":1e400,"spent":1}']
    good = {"format": "sdegen plan 1", "notes": '{"scale":1.0,"spent":1}'}
    for text in notes:
        yield f"notes {text}", fine, good | {"notes": text}
    yield "no notes", fine, {"format": good["format"]}
    yield "no format", fine, {"notes": good["notes"]}
    yield "another format", fine, good | {"format": "sdegen plan 2"}
    for key in KEYS:
        yield f"no {key}", {k: v for k, v in fine.items() if k != key}, good
        yield f"short {key}", fine | {key: fine[key][:-1].clone()}, good
        yield f"one {key}", fine | {key: torch.tensor(1.0)}, good
        yield f"half {key}", fine | {key: fine[key].half()}, good
        if key not in ("orders", "errors"):
            yield f"nan {key}", fine | {key: torch.full_like(fine[key], torch.nan)}, good
    yield "falling lams", fine | {"lams": fine["lams"].flip(0).clone()}, good
    yield "more", fine | {"evil": torch.ones(1)}, good


@pytest.mark.parametrize(("name", "tensors", "notes"), [pytest.param(*case, id=case[0]) for case in tampered()])
def test_a_tampered_plan_is_refused_by_load(name, tensors, notes, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(tensors, tmp_path / "plan", notes)
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError)):
        sd.Plan.load(tmp_path / "plan")


def test_a_file_that_is_no_plan(tmp_path):
    pytest.importorskip("safetensors")
    for content in (b"", b"garbage", b"\xff" * 100):
        (tmp_path / "plan").write_bytes(content)
        with pytest.raises(sd.InvalidArgumentError):
            sd.Plan.load(tmp_path / "plan")
    with pytest.raises(FileNotFoundError):
        sd.Plan.load(tmp_path / "none")


SDES = [sd.VP(), sd.VP(beta_max=4), sd.SubVP(), sd.VE(), sd.EDM(sigma_max=10.0), sd.Cosine(), sd.Flow(t_min=0.0)]
SDES += [sd.DiscreteVP(), sd.DiscreteVP(torch.linspace(4e-4, 0.08, 250)), sd.CLD(), sd.OU(rate=2.0)]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: str(sde)[:30])
def test_a_process_comes_back_from_json(sde):
    again = sd.SDE.from_json(sde.to_json())
    assert type(again) is type(sde)
    assert again.to_json() == sde.to_json()
    x, t = torch.ones(2, 2, 1, dtype=F64)[..., 0], torch.tensor(0.4, dtype=F64)
    if not isinstance(sde, type(sd.CLD())):
        assert torch.equal(again.drift(x[:, :1], t), sde.drift(x[:, :1], t))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"beta": 1}',
        '{"sde": "Vp"}',
        '{"sde": 3}',
        '{"sde": ["VP"]}',
        '{"sde": "Process"}',
        '{"sde": "VP", "beta": 3}',
        '{"sde": "VP", "beta_min": "a"}',
        '{"sde": "VP", "beta_min": null}',
        '{"sde": "VP", "beta_min": -1}',
        '{"sde": "DiscreteVP", "betas": "x"}',
        '{"sde": "DiscreteVP", "betas": ["x"]}',
    ],
)
def test_json_that_is_no_process_is_refused(text):
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError)):
        sd.SDE.from_json(text)


def test_functions_have_no_json():
    for sde in (sd.SDE.from_functions(one, one), sd.Process.from_functions(lambda t: 1 - t, lambda t: t)):
        with pytest.raises(sd.InvalidTypeError, match="function"):
            sde.to_json()
    assert json.loads(sd.VP().to_json())["sde"] == "VP"


# --- indices of time


def looked_up(process, levels, **options):
    seen = []
    model = sd.ScoreModel(process, lambda x, t: (seen.extend(t.tolist()), x)[1], "noise", **options)
    model(torch.zeros(len(levels.t), 2), levels, "noise")
    return seen


@pytest.mark.parametrize("T", [2, 7, 50, 250, 1000, 4000])
def test_indices_are_those_of_the_process_and_whole(T):
    process = sd.DiscreteVP(torch.linspace(0.1 / T, min(0.9, 20 / T), T))
    levels = process.level(torch.arange(1, T + 1, dtype=F64) / T)
    for dtype in (torch.long, torch.int32):
        assert looked_up(process, levels, time=sd.model.index_time(), time_dtype=dtype) == list(range(T))
    between = process.level((torch.arange(1, T, dtype=F64) + 0.4) / T)
    assert looked_up(process, between, time=sd.model.index_time(T), time_dtype=torch.long) == list(range(T - 1))
    floating = looked_up(process, levels, time=sd.model.index_time(), time_dtype=F64)
    assert np.allclose(floating, range(T), atol=1e-9)


def test_another_number_of_steps_is_refused():
    process = sd.DiscreteVP(torch.linspace(4e-4, 0.08, 250))
    with pytest.raises(sd.InvalidArgumentError, match=r"index_time\(\)"):
        sd.ScoreModel(process, one, "noise", time=sd.model.index_time(1000))
    sd.ScoreModel(P, one, "noise", time=sd.model.index_time(250))


@pytest.mark.parametrize("T", [10, 250, 1000])
def test_time_steps_are_numpys(T):
    for n in range(1, T + 1):
        assert (sd.grids.timesteps(n, "linspace", T).numpy() == np.linspace(0, T - 1, n).round()[::-1]).all()
        assert (sd.grids.timesteps(n, "leading", T).numpy() == (np.arange(n) * (T // n))[::-1]).all()
        trailing = np.round(np.arange(T, 0, -T / n)) - 1
        if len(trailing) == n:  # numpy itself makes one too many for some n
            assert (sd.grids.timesteps(n, "trailing", T).numpy() == trailing).all()


# --- ends of adaptive solves, and what is printed


class Stubborn(sd.OneStep):
    """A method whose error is a little too large whatever the step."""

    adaptive = True

    def step(self, model, x, now, next, carry, noise):
        model(x, now)
        return sd.Step(x * 1.0, carry, error=torch.full_like(x, 1.05e-3), order=5.0)


def test_no_end_of_rejections_ends_a_sample():
    """A step that is not below the rounding of its time, and never good: 50 attempts, and no more."""
    calls = []
    model = sd.ScoreModel(P, lambda x, t: (calls.append(1), x)[1], "noise")
    found = sd.solve(model, torch.ones(2, 2), sd.PI(rtol=0.0, atol=1e-3), Stubborn(), on_failure="return")
    assert found.status.tolist() == [sd.Status.STEP_TOO_SMALL] * 2
    assert found.rejected.tolist() == [50, 50]
    assert len(calls) <= 52
    with pytest.raises(sd.SolveError, match="no step"):
        sd.solve(model, torch.ones(2, 2), sd.PI(rtol=0.0, atol=1e-3), Stubborn())


def test_reprs_are_short():
    shown = [
        sd.draw(MODEL, (300, 2), nfe=4),
        sd.draw(MODEL, (300, 2), tol=0.1),
        sd.draw(MODEL, (300, 2), nfe=4, path=True),
        sd.draw(MODEL, (0, 2), nfe=4),
        sd.draw(NOISE, (3, 2), nfe=4, device="meta"),
        sd.draw(MODEL, (3, 2), nfe=4, seed=torch.arange(3)),
        sd.Plan.of(sd.unipc(3), P, 60),
        sd.testing.report.Report("a check of many properties", ()),
    ]
    for thing in shown:
        assert repr(thing).count("\n") <= 2
        assert len(repr(thing)) < 400


def test_trajectories_take_a_drawn_path():
    pytest.importorskip("matplotlib").use("Agg")
    found = sd.draw(MODEL, (20, 2), nfe=6, path=True)
    assert len(sd.plots.trajectories(found).collections) == len(sd.plots.trajectories(found.path).collections)
    with pytest.raises(sd.InvalidArgumentError, match="path=True"):
        sd.plots.trajectories(sd.draw(MODEL, (20, 2), nfe=6))


ETAS = [(-1.0, "eta must be in"), (1e6, "eta must be in"), (float("nan"), "eta must be in"), ("much", "a number")]


@pytest.mark.parametrize(("value", "words"), [*ETAS, *((torch.tensor(v), words) for v, words in ETAS[:3])])
def test_an_eta_of_ones_own_is_checked_before_the_first_evaluation(value, words):
    model = sd.ScoreModel(P, lambda x, t: pytest.fail("called"), "noise")
    solver = sd.Multistep(2, sd.DATA, eta=lambda now, next: value)
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match=words):
        sd.sample(model, (3, 2), nfe=5, solver=solver)


@pytest.mark.parametrize("noise", [torch.ones(4, 2), 0, "white", sd.White(sd.noise.seeds(0, 4))], ids=repr)
@pytest.mark.parametrize("solver", [sd.ddpm(), sd.ddim()], ids=["noisy", "plain"])
def test_what_makes_no_noise_is_refused_before_the_first_evaluation(noise, solver):
    model = sd.ScoreModel(P, lambda x, t: pytest.fail("called"), "noise")
    with pytest.raises(sd.InvalidTypeError, match=r"noise must be a function .* such as sd\.White"):
        sd.sample(model, (4, 2), nfe=5, solver=solver, noise=noise)


@pytest.mark.parametrize("noise", [torch.ones(4, 2), 0, "white"], ids=repr)
def test_what_is_no_source_is_refused(noise):
    words = r"noise must be a source, such as sd\.White\(seeds\)"
    with pytest.raises(sd.InvalidTypeError, match=words):
        sd.solve(NOISE, torch.ones(4, 2), GRID, sd.ddpm(), noise=noise)
    with pytest.raises(sd.InvalidTypeError, match=words):
        sd.sample(NOISE, (4, 2), solver=sd.ddpm(), noise=lambda seeds: noise)
    with pytest.raises(sd.InvalidTypeError, match=words):
        sd.forward(P, torch.ones(4, 2), [0.1, 0.5], noise=noise)
