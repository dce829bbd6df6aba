"""`sample` and `encode`: seeds, batches, defaults, the last denoising."""

from __future__ import annotations

import re

import pytest
import torch
from cases import mostly_slow
from problems import F64, PROCESSES, mixture

import sdegen as sd

VP = sd.VP()


class Net(torch.nn.Module):
    """A small network with everything that makes real ones depend on their batch: matrix products."""

    def __init__(self, dim=8, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(dim + 1, 64),
                torch.nn.SiLU(),
                torch.nn.Linear(64, 64),
                torch.nn.SiLU(),
                torch.nn.Linear(64, dim),
            ).to(dtype)
        self.batches = []

    def forward(self, x, t, label=None):
        self.batches.append(len(x))
        out = self.layers(torch.cat([x, t[:, None]], 1))
        return out if label is None else out + label[:, None]


@pytest.mark.parametrize("solver", [None, sd.pc(), sd.ddpm(), sd.unipc(3)], ids=["default", "pc", "ddpm", "unipc"])
def test_a_sample_is_its_seed(solver):
    """Alone, in any batch, at any batch size, in any order: bit for bit, on an exact score."""
    model = mixture(VP)
    options = dict(steps=8, solver=solver, seed=3)
    whole = sd.sample(model, (11, 2), **options)
    assert torch.equal(sd.sample(model, (4, 2), **options), whole[:4])
    for size in (1, 3, 4, 11, 64):
        assert torch.equal(sd.sample(model, (11, 2), batch_size=size, **options), whole)
    seeds = sd.noise.seeds(3, 11)[[7, 2]]
    assert torch.equal(sd.sample(model, (2, 2), **{**options, "seed": seeds}), whole[[7, 2]])
    assert not torch.equal(sd.sample(model, (11, 2), **{**options, "seed": 4}), whole)


def test_a_network_sees_full_batches_so_its_samples_do_not_depend_on_n():
    model = sd.ScoreModel(VP, Net().eval(), "noise")
    first = sd.sample(model, (10, 8), steps=4, batch_size=4, denoise=False, seed=0)
    assert set(model.net.batches) == {4}
    again = sd.sample(model, (3, 8), steps=4, batch_size=4, denoise=False, seed=0)
    assert torch.equal(again, first[:3])
    assert torch.equal(sd.sample(model, (9, 8), steps=4, batch_size=4, denoise=False, seed=0), first[:9])


def test_dtype_and_device_follow_the_network():
    for dtype in (torch.float32, F64, torch.bfloat16):
        model = sd.ScoreModel(VP, Net(dtype=dtype).eval(), "noise")
        assert sd.sample(model, (3, 8), steps=2, seed=0).dtype == dtype
    assert sd.sample(mixture(VP), (3, 2), steps=2, seed=0).dtype == torch.float32
    assert sd.sample(mixture(VP), (3, 2), steps=2, dtype=F64, seed=0).dtype == F64
    with pytest.raises(sd.InvalidTypeError, match="floating"):
        sd.sample(mixture(VP), (3, 2), dtype=torch.int64, seed=0)


def test_conditions_follow_their_samples_through_batches():
    labels = torch.arange(7.0)
    model = sd.ScoreModel(VP, lambda x, t, label: x * 0 + label[:, None], "data", label=labels)
    out = sd.sample(model, (7, 2), steps=3, batch_size=3, seed=0)
    assert torch.equal(out, labels[:, None].expand(7, 2))


def test_no_gradients_are_kept():
    net = Net().eval()
    out = sd.sample(sd.ScoreModel(VP, net, "noise"), (3, 8), steps=2, seed=0)
    assert not out.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", mostly_slow(PROCESSES, ["VP", "Flow"]))
def test_every_process_samples_the_mixture(name):
    """The default method at 40 steps against a fine solve from the same noise: within 1e-2 of a data scale of 1."""
    process = PROCESSES[name]
    model = mixture(process)
    out = sd.sample(model, (64, 2), steps=40, dtype=F64, seed=0)
    fine = sd.sample(model, (64, 2), steps=1000, solver=sd.heun(), dtype=F64, seed=0)
    assert float((out - fine).abs().median()) < 1e-2


def test_denoise_is_the_predicted_data():
    model = mixture(VP)
    state = sd.sample(model, (5, 2), steps=6, dtype=F64, denoise=False, seed=0)
    clean = sd.sample(model, (5, 2), steps=6, dtype=F64, seed=0)
    assert torch.equal(clean, model(state, VP.level(VP.t_min), "data"))


def test_grids_and_partial_spans():
    model = mixture(VP)
    a = sd.sample(model, (5, 2), steps=6, grid=sd.grids.by_time, seed=0)
    b = sd.sample(model, (5, 2), grid=sd.grids.by_time(VP, 6), seed=0)
    c = sd.sample(model, (5, 2), grid=sd.grids.by_time(VP, 6).tolist(), seed=0)
    assert torch.equal(a, b)
    assert torch.equal(b, c)
    narrow = sd.sample(mixture(sd.EDM()), (64, 2), grid=sd.grids.karras(sd.EDM(0.01, 20.0), 30), dtype=F64, seed=0)
    wide = sd.sample(mixture(sd.EDM()), (64, 2), grid=sd.grids.karras(sd.EDM(), 40), dtype=F64, seed=0)
    assert float((narrow - wide).abs().median()) < 0.05


def test_encode_then_decode_returns():
    """Time reversal, to the solvers' own error: a fourth-order method at 200 steps."""
    model = mixture(VP)
    x = sd.sample(model, (16, 2), steps=200, solver=sd.unipc(3), denoise=False, dtype=F64, seed=0)
    noise = sd.encode(model, x, steps=200, solver=sd.unipc(3))
    start = VP.prior(sd.noise.seeds(0, 16), (2,), F64)
    assert float((noise - start).abs().median()) < 1e-4
    with pytest.raises(sd.InvalidArgumentError, match="only a deterministic"):
        sd.encode(model, x, solver=sd.ddpm())


def test_general_sdes_are_sampled_too():
    """An Ornstein-Uhlenbeck process as plain functions, sampled by EM: the law of its Gaussian data, by moments.

    10,000 samples: |z| < 7 on mean and variance, false alarms below 1e-10.
    """

    def score(x, t):
        variance = 0.25 * torch.exp(-2 * t) + 1 - torch.exp(-2 * t)
        return -x / variance[:, None]

    sde = sd.SDE.from_functions(
        lambda x, t: -x,
        lambda x, t: torch.full_like(t, 2**0.5),
        t_min=0.0,
        t_max=4.0,
        prior=lambda seeds, shape: sd.noise.normals(seeds, tuple(shape), (0, 0, 0, 0), dtype=F64),
    )
    out = sd.sample(sde.reverse(score), (10_000, 1), steps=400, solver=sd.euler_maruyama(), dtype=F64, seed=0)
    assert abs(float(out.mean())) < 7 * 0.5 / 100
    # the law of EM itself has a variance error of order h = 0.01; the rest is 7 standard errors
    assert abs(float(out.var()) / 0.25 - 1) < 7 * (2 / 10_000) ** 0.5 + 0.03
    with pytest.raises(sd.InvalidTypeError, match="ScoreModel itself"):
        sd.sample(sde.probability_flow(score), (3, 1), solver=sd.ddim(), grid=sd.grids.by_time, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4,)}, "shape must be"),
        ({"shape": 4}, "shape must be"),
        ({"shape": (-1, 2)}, "shape must be"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"steps": -3}, "steps must be >= 1"),
        ({"steps": 2.5}, "whole number"),
        ({"stpes": 3}, "did you mean 'steps'"),
        ({"rtol": 1e-3}, "unknown keyword 'rtol'"),
        ({"tol": -1.0}, "tol must be a finite number >= 0"),
        ({"tol": 1e-3, "steps": 10}, "steps does not go with tol"),
        ({"grid": lambda process, n: sd.grids.karras(process, n).flip(0)}, "times must decrease"),
        ({"dtype": "float32"}, "torch.float32"),
        ({"seed": [1, 2]}, "or int64 seeds of shape"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"seed": torch.arange(3)}, r"shape \[4\]"),
        ({"solver": sd.ddim}, "got"),
        ({"solver": "ddim"}, "solver must be"),
        ({"grid": "karras"}, "grid must be"),
        ({"grid": [0.1, 1.0, 0.5]}, "strictly monotone"),
        ({"model": lambda x, t: x}, "wrap a callable"),
        ({"progress": "yes", "observe": 3}, "observe must be"),
        ({"sampler": sd.ddim()}, "did you mean 'solver'"),
        ({"scheduler": sd.ddim()}, "did you mean 'solver'"),
        ({"num_inference_steps": 5}, "did you mean 'steps' or 'nfe'"),
        ({"bs": 5}, "did you mean 'batch_size'"),
        ({"generator": None}, "did you mean 'seed'"),
        ({"x_T": torch.ones(4, 2)}, "did you mean 'x'"),
        ({"solver": sd.Restart()}, r"this is a grid: give it as grid="),
        ({"solver": sd.grids.karras}, r"this is a grid: give it as grid="),
        ({"solver": sd.PI(tol=0.1)}, r"chooses the steps: give it as tol="),
        ({"nfe": 5, "denoise": 2}, "denoise must be True, False or None, got 2"),
        ({"steps": 5, "denoise": "no"}, "denoise must be True, False or None, got 'no'"),
        ({"start": torch.tensor([0.5, 0.6])}, "start must be a number"),
        ({"dtype": torch.float8_e4m3fn}, "torch.bfloat16, torch.float32 or torch.float64, got torch.float8_e4m3fn"),
        ({"dtype": torch.int64}, "dtype must be a floating torch.dtype, torch.float16"),
    ],
)
def test_mistakes_are_named(options, message):
    arguments = {"model": mixture(VP), "shape": (4, 2), **options}
    with pytest.raises(sd.SdegenError, match=message):
        sd.sample(arguments.pop("model"), arguments.pop("shape"), **arguments)


@pytest.mark.parametrize("call", [sd.sample, sd.draw])
@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        ([(4, 2), sd.ddim()], {}, r"takes 2 arguments by place \(model, shape\), got 3; all else goes by name"),
        ([], {"nfe": 5}, "missing a required argument: 'shape'"),
        ([(4, 2)], {"shape": (4, 2)}, "multiple values for (keyword )?argument 'shape'"),
    ],
)
def test_a_wrong_call_is_told_by_the_name_that_was_called(call, args, options, words):
    with pytest.raises(TypeError) as caught:
        call(mixture(VP), *args, **options)
    assert str(caught.value).startswith(f"{call.__name__}()")
    if call is sd.sample or len(args) > 1:
        assert re.search(words, str(caught.value))


@pytest.mark.parametrize(
    ("nfe", "options", "words"),
    [
        (1, {}, "Give nfe=2 or more, or denoise=False"),
        (2, {"solver": sd.heun()}, "Give nfe=3 or more, or denoise=False"),
        (1, {"solver": sd.heun()}, "Give nfe=3 or more"),
        (1, {"solver": sd.heun(), "denoise": False}, "Give nfe=2 or more"),
    ],
)
def test_too_few_evaluations_are_told_how_many_will_do(nfe, options, words):
    with pytest.raises(sd.InvalidArgumentError) as caught:
        sd.sample(mixture(VP), (4, 2), nfe=nfe, **options)
    assert str(caught.value).endswith(words)
    assert len(str(caught.value)) < 200
    least = int(re.search(r"Give nfe=(\d+)", str(caught.value))[1])
    assert sd.draw(mixture(VP), (4, 2), nfe=least, **options).nfe.tolist() == [least] * 4
    if words.endswith("denoise=False"):
        sd.sample(mixture(VP), (4, 2), nfe=nfe, **options, denoise=False)


@pytest.mark.parametrize("call", [sd.sample, sd.draw])
def test_what_failed_is_told_to_be_in_the_error(call):
    model = sd.ScoreModel(VP, lambda x, t: x * float("nan"), "noise")
    with pytest.raises(sd.SolveError, match="This error's `partial` holds all samples with their status") as caught:
        call(model, (4, 2), nfe=5)
    assert caught.value.partial.status.tolist() == [sd.Status.NONFINITE] * 4


def test_failed_samples_raise_with_the_rest():
    model = mixture(VP)

    def net(x, t):
        out = model(x, VP.level(t))
        return torch.where((x[:, :1] > 0.5) & (t[:, None] < 0.5), float("nan"), 1.0) * out

    with pytest.raises(sd.SolveError) as info:
        sd.sample(sd.ScoreModel(VP, net), (9, 2), steps=8, batch_size=4, seed=0)
    partial = info.value.partial
    assert len(partial.x) == 9
    fine = sd.sample(model, (9, 2), steps=8, batch_size=4, seed=0)
    assert 0 < int(partial.ok.sum()) < 9
    torch.testing.assert_close(partial.x[partial.ok], fine[partial.ok], rtol=1e-3, atol=1e-4)


def test_empty_and_observed_runs():
    assert sd.sample(mixture(VP), (0, 2), seed=0).shape == (0, 2)
    shapes = []
    sd.sample(mixture(VP), (5, 2), steps=3, batch_size=2, observe=lambda p: shapes.append(p.x.shape), seed=0)
    assert shapes == [(2, 2)] * 6 + [(1, 2)] * 3
    early = sd.sample(mixture(VP), (5, 2), steps=8, observe=lambda p: sd.STOP if p.step == 4 else None, seed=0)
    assert early.isfinite().all()


def test_progress_bar(capsys):
    sd.sample(mixture(VP), (5, 2), steps=3, batch_size=2, progress=True, seed=0)
    err = capsys.readouterr().err
    assert "12/12" in err  # three batches of three steps and the denoising
    assert "evaluation" in err
    sd.sample(mixture(VP), (5, 2), steps=3, seed=0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [3, 8, 1000])
def test_conditions_must_match_the_number_of_samples(count):
    calls = []

    def net(x, t, label):
        calls.append(label)
        return x

    model = sd.ScoreModel(VP, net, "noise", label=torch.arange(float(count)))
    with pytest.raises(sd.InvalidArgumentError, match=rf"condition 'label' has shape \[{count}\] for a batch of 7"):
        sd.sample(model, (7, 2), batch_size=3, seed=0)
    assert calls == []
    single = sd.ScoreModel(VP, lambda x, t, label: x * 0 + label[:, None], "data", label=torch.arange(100.0))
    one = sd.sample(single.rows(torch.tensor([37])), (1, 2), seed=sd.noise.seeds(0, 100)[[37]])
    assert one.tolist() == [[37.0, 37.0]]


def test_a_start_inside_the_data_warns():
    with pytest.warns(UserWarning, match="the start is noise alone"):
        sd.sample(mixture(VP), (3, 2), grid=[0.3, 0.1, 0.001], seed=0)


def test_grids_between_two_levels():
    for grid in (sd.grids.by_time, sd.grids.by_snr, sd.grids.karras):
        times = grid(VP, 6, start=0.4, end=0.01)
        assert times[0] == 0.4
        assert times[-1] == 0.01
        assert len(times) == 7
        with pytest.raises(sd.InvalidArgumentError, match="must be above"):
            grid(VP, 6, start=0.1, end=0.2)


@pytest.mark.parametrize(
    "solver", mostly_slow([sd.ddpm(), sd.ddim(), sd.euler_maruyama(), sd.pc(0.05)], [sd.ddpm(), sd.ddim()])
)
def test_own_grids_suit_every_process(solver):
    """No method's own grid misses the data: the width of N(0, 0.5^2) at 200 steps, by exact law, within 15 %."""
    from problems import UnitResponse

    draws = 0 if not solver.stochastic else 2 if isinstance(solver, sd.PC) else 1
    for process in PROCESSES.values():
        model = sd.Gaussian(torch.zeros(1), std=0.5).score(process)
        x = torch.zeros(2 + draws * 200, 1, dtype=F64)
        x[1] = process.level(process.t_max).sigma
        noise = UnitResponse() if draws else None
        out = sd.solve(model, x, solver.grid(process, 200), solver, noise=noise).x
        assert abs(float((out[1:] ** 2).sum().sqrt()) / 0.5 - 1) < 0.15, process


def test_a_reverse_sde_has_its_own_default():
    sde = sd.SDE.from_functions(
        lambda x, t: -x,
        lambda x, t: torch.full_like(t, 2**0.5),
        t_max=3.0,
        prior=lambda seeds, shape: sd.noise.normals(seeds, tuple(shape), (0, 0, 0, 0), dtype=F64),
    )
    for model in (
        sde.reverse(lambda x, t: -x),
        sde.probability_flow(lambda x, t: -x),
        sde.reverse(lambda x, t: -x, 0.5),
    ):
        out = sd.sample(model, (50, 3), steps=30, seed=0)
        assert out.dtype == torch.float32
        assert 0.5 < float(out.std()) < 2

    class Mine(sd.SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return torch.tensor(1.0)

        def prior(self, seeds, shape):
            return torch.zeros(len(seeds), *shape)

    assert sd.sample(Mine().reverse(lambda x, t: -x), (4, 2), steps=3, seed=0).shape == (4, 2)


def test_an_exception_in_a_later_batch_keeps_the_earlier_ones():
    model = mixture(VP)
    calls = []

    def net(x, t):
        calls.append(0)
        if len(calls) > 9:
            raise RuntimeError("lost")
        return model(x, VP.level(t))

    with pytest.raises(RuntimeError, match="lost") as info:
        sd.sample(sd.ScoreModel(VP, net), (6, 2), steps=3, batch_size=2, seed=0)
    fine = sd.sample(sd.ScoreModel(VP, lambda x, t: model(x, VP.level(t))), (6, 2), steps=3, batch_size=2, seed=0)
    assert torch.equal(info.value.partial.x[:4], fine[:4])
    assert len(info.value.partial.x) == 6
    calls.clear()
    with pytest.raises(RuntimeError, match="lost") as info:
        sd.sample(sd.ScoreModel(VP, net), (5, 2), steps=3, batch_size=2, seed=0)
    assert len(info.value.partial.x) == 5


def test_training_mode_warns_once_per_sample_call():
    model = sd.ScoreModel(VP, Net(), "noise")
    with pytest.warns(UserWarning, match="training mode") as caught:
        sd.sample(model, (6, 8), steps=2, batch_size=2, seed=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    hidden = Net().eval()
    hidden.layers[1].train()
    with pytest.warns(UserWarning, match="training mode"):
        sd.sample(sd.ScoreModel(VP, hidden, "noise"), (2, 8), steps=2, seed=0)


def test_without_tqdm_there_is_no_bar_and_asking_for_one_says_why(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert sd.sample(mixture(VP), (2, 2), steps=2, seed=0).shape == (2, 2)
    with pytest.raises(sd.InvalidArgumentError, match=r"sdegen\[progress\]"):
        sd.sample(mixture(VP), (2, 2), steps=2, progress=True, seed=0)


def test_devices_without_autocast_are_sampled_on_too():
    model = sd.ScoreModel(sd.VP(), lambda x, t: -x)
    assert sd.sample(model, (4, 2), steps=2, batch_size=2, device="meta", solver=sd.ddpm(), seed=0).shape == (4, 2)
