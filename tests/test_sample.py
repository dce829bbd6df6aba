"""`sample` and `encode`: seeds, batches, defaults, the last denoising."""

from __future__ import annotations

import pytest
import torch
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
    first = sd.sample(model, (10, 8), steps=4, batch_size=4, denoise=False)
    assert set(model.net.batches) == {4}
    again = sd.sample(model, (3, 8), steps=4, batch_size=4, denoise=False)
    assert torch.equal(again, first[:3])
    assert torch.equal(sd.sample(model, (9, 8), steps=4, batch_size=4, denoise=False), first[:9])


def test_dtype_and_device_follow_the_network():
    for dtype in (torch.float32, F64, torch.bfloat16):
        model = sd.ScoreModel(VP, Net(dtype=dtype).eval(), "noise")
        assert sd.sample(model, (3, 8), steps=2).dtype == dtype
    assert sd.sample(mixture(VP), (3, 2), steps=2).dtype == torch.float32
    assert sd.sample(mixture(VP), (3, 2), steps=2, dtype=F64).dtype == F64
    with pytest.raises(sd.InvalidTypeError, match="floating"):
        sd.sample(mixture(VP), (3, 2), dtype=torch.int64)


def test_conditions_follow_their_samples_through_batches():
    labels = torch.arange(7.0)
    model = sd.ScoreModel(VP, lambda x, t, label: x * 0 + label[:, None], "data", label=labels)
    out = sd.sample(model, (7, 2), steps=3, batch_size=3)
    assert torch.equal(out, labels[:, None].expand(7, 2))


def test_no_gradients_are_kept():
    net = Net().eval()
    out = sd.sample(sd.ScoreModel(VP, net, "noise"), (3, 8), steps=2)
    assert not out.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_every_process_samples_the_mixture(process):
    """The default method at 40 steps against a fine solve from the same noise: within 1e-2 of a data scale of 1."""
    model = mixture(process)
    out = sd.sample(model, (64, 2), steps=40, dtype=F64)
    fine = sd.sample(model, (64, 2), steps=1000, solver=sd.heun(), dtype=F64)
    assert float((out - fine).abs().median()) < 1e-2


def test_denoise_is_the_predicted_data():
    model = mixture(VP)
    state = sd.sample(model, (5, 2), steps=6, dtype=F64, denoise=False)
    clean = sd.sample(model, (5, 2), steps=6, dtype=F64)
    assert torch.equal(clean, model(state, VP.level(VP.t_min), "data"))


def test_grids_and_partial_spans():
    model = mixture(VP)
    a = sd.sample(model, (5, 2), steps=6, grid=sd.grids.by_time)
    b = sd.sample(model, (5, 2), grid=sd.grids.by_time(VP, 6))
    c = sd.sample(model, (5, 2), grid=sd.grids.by_time(VP, 6).tolist())
    assert torch.equal(a, b)
    assert torch.equal(b, c)
    narrow = sd.sample(mixture(sd.EDM()), (64, 2), grid=sd.grids.karras(sd.EDM(0.01, 20.0), 30), dtype=F64)
    wide = sd.sample(mixture(sd.EDM()), (64, 2), grid=sd.grids.karras(sd.EDM(), 40), dtype=F64)
    assert float((narrow - wide).abs().median()) < 0.05


def test_encode_then_decode_returns():
    """Time reversal, to the solvers' own error: a fourth-order method at 200 steps."""
    model = mixture(VP)
    x = sd.sample(model, (16, 2), steps=200, solver=sd.unipc(3), denoise=False, dtype=F64)
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
    out = sd.sample(sde.reverse(score), (10_000, 1), steps=400, solver=sd.euler_maruyama(), dtype=F64)
    assert abs(float(out.mean())) < 7 * 0.5 / 100
    # the law of EM itself has a variance error of order h = 0.01; the rest is 7 standard errors
    assert abs(float(out.var()) / 0.25 - 1) < 7 * (2 / 10_000) ** 0.5 + 0.03
    with pytest.raises(sd.InvalidTypeError, match="ScoreModel itself"):
        sd.sample(sde.probability_flow(score), (3, 1), solver=sd.ddim(), grid=sd.grids.by_time)


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
        ({"tol": 1e-3}, "unknown keyword 'tol'"),
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
    ],
)
def test_mistakes_are_named(options, message):
    arguments = {"model": mixture(VP), "shape": (4, 2), **options}
    with pytest.raises(sd.SdegenError, match=message):
        sd.sample(arguments.pop("model"), arguments.pop("shape"), **arguments)


def test_failed_samples_raise_with_the_rest():
    model = mixture(VP)

    def net(x, t):
        out = model(x, VP.level(t))
        return torch.where((x[:, :1] > 0.5) & (t[:, None] < 0.5), float("nan"), 1.0) * out

    with pytest.raises(sd.SolveError) as info:
        sd.sample(sd.ScoreModel(VP, net), (9, 2), steps=8, batch_size=4)
    partial = info.value.partial
    assert len(partial.x) == 9
    fine = sd.sample(model, (9, 2), steps=8, batch_size=4)
    assert 0 < int(partial.ok.sum()) < 9
    torch.testing.assert_close(partial.x[partial.ok], fine[partial.ok], rtol=1e-3, atol=1e-4)


def test_empty_and_observed_runs():
    assert sd.sample(mixture(VP), (0, 2)).shape == (0, 2)
    shapes = []
    sd.sample(mixture(VP), (5, 2), steps=3, batch_size=2, observe=lambda p: shapes.append(p.x.shape))
    assert shapes == [(2, 2)] * 6 + [(1, 2)] * 3
    early = sd.sample(mixture(VP), (5, 2), steps=8, observe=lambda p: sd.STOP if p.step == 4 else None)
    assert early.isfinite().all()


def test_progress_bar(capsys):
    sd.sample(mixture(VP), (5, 2), steps=3, batch_size=2, progress=True)
    err = capsys.readouterr().err
    assert "9/9" in err
    assert "NFE=9" in err
    sd.sample(mixture(VP), (5, 2), steps=3)
    assert capsys.readouterr().err == ""
