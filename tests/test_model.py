"""Score models: the plane of predictions, time maps, EDM and energy networks, conditions, checks of the output."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from problems import F64, PROCESSES, mixture

import sdegen as sd
from sdegen.errors import ScoreShapeError, ScoreTypeError

NAMES = ["data", "noise", "score", "v", "velocity"]


def state(process, batch=7):
    level = process.level(torch.tensor(0.35 * process.t_max + 0.65 * process.t_min, dtype=F64))
    x = torch.randn(batch, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return level.alpha * x + level.sigma * x.flip(0), level


class As:
    """The exact mixture model seen as a network that predicts `name`."""

    def __init__(self, process, name):
        self.process, self.name, self.exact = process, name, mixture(process)

    def __call__(self, x, t):
        return self.exact(x, self.process.level(t), self.name)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("predicts", NAMES)
def test_all_predictions_agree(process, predicts):
    exact, model = mixture(process), sd.ScoreModel(process, As(process, predicts), predicts)
    x, level = state(process)
    for want in NAMES:
        scale = exact(x, level, want).abs().max()
        torch.testing.assert_close(model(x, level, want), exact(x, level, want), rtol=1e-12, atol=float(1e-12 * scale))


def test_own_prediction_by_a_function_and_by_a_pair():
    process = sd.VP()
    x, level = state(process)

    def pair(process, level):
        return level.alpha * 0 + 2.0, level.sigma

    exact = mixture(process)
    model = sd.ScoreModel(process, lambda x, t: exact(x, process.level(t), pair(process, process.level(t))), pair)
    torch.testing.assert_close(model(x, level, "noise"), exact(x, level, "noise"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        model(x, level, (torch.tensor(1.0), torch.tensor(2.0))),
        exact(x, level, "data") + 2 * exact(x, level, "noise"),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("process", [sd.EDM(), sd.VP(), sd.Flow()])
def test_edm_preconditioning(process):
    """A raw network F, wrapped by hand as Karras et al. 2022 write it, against predicts='edm'."""
    sigma_data, seen = 0.7, {}

    def raw(x, c_noise):
        seen["x"], seen["t"] = x, c_noise
        return torch.sin(x) * c_noise[:, None]

    model = sd.ScoreModel(process, raw, "edm", sigma_data=sigma_data)
    x, level = state(process)
    y, s = x / level.alpha, level.sigma / level.alpha
    norm = torch.sqrt(s**2 + sigma_data**2)
    f = raw(y / norm, (s.log() / 4).expand(len(x)))
    data = sigma_data**2 / norm**2 * y + s * sigma_data / norm * f
    torch.testing.assert_close(model(x, level, "data"), data, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen["x"], y / norm, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(seen["t"], (s.log() / 4).expand(len(x)))


def test_energy_gives_its_gradient():
    process, data = sd.VE(), sd.GaussianMixture(torch.zeros(1, 2), stds=0.5)

    def energy(x, t):
        return (x * x).sum(1) / (2 * (0.25 + process.level(t).sigma ** 2))

    model = sd.ScoreModel(process, energy, "energy")
    x, level = state(process)
    torch.testing.assert_close(model(x, level), data.score(process)(x, level), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert not model(x, level).requires_grad
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x, level)[:, 0].sum(), x)
    torch.testing.assert_close(slope[:, 0], (-1 / (0.25 + level.sigma**2)).expand(len(x)))
    with pytest.raises(ScoreShapeError, match="must return shape \\[7\\]"):
        sd.ScoreModel(process, lambda x, t: x, "energy")(x, level)
    with pytest.raises(sd.InvalidArgumentError, match="does not depend on x"):
        sd.ScoreModel(process, lambda x, t: t, "energy")(x, level)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (None, lambda level: level.t),
        (sd.model.level_time, lambda level: level.t),
        (sd.model.sigma_time, lambda level: level.sigma / level.alpha),
        (sd.model.log_sigma_time, lambda level: (level.sigma / level.alpha).log() / 4),
        (sd.model.index_time(1000), lambda level: 1000 * level.t - 1),
        (lambda level: 1 - level.t, lambda level: 1 - level.t),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_time_maps(time, expected, batched):
    process, seen = sd.VP(), []

    def net(x, t):
        seen.append(t)
        return x

    x, level = state(process)
    x = x.float()
    if batched:
        level = process.level(torch.linspace(0.1, 0.9, len(x), dtype=F64))
    sd.ScoreModel(process, net, time=time)(x, level)
    assert seen[0].shape == (len(x),)
    assert seen[0].dtype == x.dtype
    torch.testing.assert_close(seen[0], expected(level).expand(len(x)).float())


def test_time_dtype_keeps_digits_for_half_states():
    process, seen = sd.DiscreteVP(), []

    def net(x, t):
        seen.append(t)
        return x

    x = torch.zeros(2, 1, dtype=torch.bfloat16)
    model = sd.ScoreModel(process, net, time=sd.model.index_time(), time_dtype=torch.float32)
    model(x, process.level(0.751))
    torch.testing.assert_close(seen[0], torch.full((2,), 750.0))
    sd.ScoreModel(process, net, time=sd.model.index_time())(x, process.level(0.751))
    assert seen[1].dtype == torch.bfloat16


def test_conditions_are_per_sample():
    process = sd.VP()
    labels = torch.arange(7.0, dtype=F64)

    def net(x, t, label, scale):
        return x * scale + label[:, None]

    model = sd.ScoreModel(process, net, label=labels, scale=2.0)
    x, level = state(process)
    torch.testing.assert_close(model(x, level), 2 * x + labels[:, None])
    some = torch.tensor([4, 1])
    torch.testing.assert_close(model.rows(some)(x[some], level), model(x, level)[some])
    one = sd.ScoreModel(process, net, label=labels[:1], scale=2.0)
    torch.testing.assert_close(one(x, level), 2 * x)
    with pytest.raises(sd.InvalidArgumentError, match=r"condition 'label' has shape \[7\] for a batch of 2"):
        model(x[:2], level)


def wrong_outputs():
    return {
        "[B,1]": (lambda x, t: x[:, :1], ScoreShapeError, r"\[7, 1\].*\[7, 2\]"),
        "[1,D]": (lambda x, t: x[:1], ScoreShapeError, r"\[1, 2\].*\[7, 2\]"),
        "[D]": (lambda x, t: x[0], ScoreShapeError, r"\[2\]"),
        "scalar": (lambda x, t: x.sum(), ScoreShapeError, r"\[\]"),
        "[1,B,D]": (lambda x, t: x[None], ScoreShapeError, r"\[1, 7, 2\]"),
        "float64": (lambda x, t: x.double(), ScoreTypeError, "float64.*float32.*cast=True"),
        "int64": (lambda x, t: x.long(), ScoreTypeError, "int64"),
        "complex": (lambda x, t: x.to(torch.complex64), ScoreTypeError, "complex64"),
        "float": (lambda x, t: 0.0, ScoreTypeError, "float"),
        "None": (lambda x, t: None, ScoreTypeError, "NoneType"),
        "tuple": (lambda x, t: (x, x), ScoreTypeError, "tuple"),
        "meta": (lambda x, t: x.to("meta"), ScoreTypeError, "meta.*cpu"),
        "in place": (lambda x, t: x.mul_(2), sd.ScoreError, "modified its input"),
    }


@pytest.mark.parametrize("fault", wrong_outputs())
def test_wrong_outputs_are_named(fault):
    net, error, message = wrong_outputs()[fault]
    process = sd.VP()
    x, level = state(process)
    with pytest.raises(error, match=f"(?s){message}"):
        sd.ScoreModel(process, net)(x.float(), level)
    with pytest.raises(error, match=f"(?s){message}"):
        process.reverse(net).drift(x.float(), level.t)


def test_cast_accepts_other_floats_only():
    process = sd.VP()
    x, level = state(process)
    out = sd.ScoreModel(process, lambda x, t: x.bfloat16(), cast=True)(x.float(), level)
    assert out.dtype == torch.float32
    with pytest.raises(ScoreTypeError):
        sd.ScoreModel(process, lambda x, t: x.long(), cast=True)(x.float(), level)


def test_rejects_invalid_models_when_built():
    with pytest.raises(sd.InvalidArgumentError, match="unknown prediction 'x0'"):
        sd.ScoreModel(sd.VP(), lambda x, t: x, "x0")
    with pytest.raises(sd.InvalidTypeError, match="needs a Process"):
        sd.ScoreModel(lambda x, t: x, sd.VP())
    with pytest.raises(sd.InvalidTypeError, match="callable"):
        sd.ScoreModel(sd.VP(), None)
    with pytest.raises(sd.InvalidArgumentError, match="sigma_data"):
        sd.ScoreModel(sd.VP(), lambda x, t: x, "edm", sigma_data=0.0)


def test_models_copy_and_pickle():
    x = torch.ones(3, 2)
    for process in PROCESSES.values():
        model = sd.ScoreModel(process, AtTime(), "noise")
        level = process.level(process.t_max)
        for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert again.process == process
            assert hash(again.process) == hash(process)
            assert torch.equal(again(x, level), model(x, level))
            process.reverse(again)  # an equal process is the same process
    assert repr(model) == "ScoreModel(DiscreteVP(1000 betas), AtTime, predicts='noise')"
    assert sd.DiscreteVP() != sd.DiscreteVP(torch.full((1000,), 0.01))


def test_slips_with_levels_times_and_options_are_named():
    process, x = sd.VP(), torch.ones(3, 2)
    model = sd.ScoreModel(process, lambda x, t, **kw: x, "noise")
    with pytest.raises(sd.InvalidTypeError, match=r"process\.level\(t\)"):
        model(x, 0.5)
    with pytest.raises(sd.InvalidTypeError, match=r"process\.level\(t\)"):
        mixture(process)(x, 0.5)
    with pytest.raises(sd.InvalidTypeError, match=r"process\.level\(t\)"):
        process.perturb(x, 0.3, x)
    level = process.level(0.5)
    for data, noise in ((x, x[0]), (x, x.double()), (x.byte(), x.byte())):
        with pytest.raises(sd.InvalidArgumentError, match="of one shape and dtype"):
            process.perturb(data, level, noise)
    assert process.perturb(x.bfloat16(), level, x.bfloat16()).dtype == torch.bfloat16
    for name, close in (("predict", "predicts"), ("times", "time"), ("sigmadata", "sigma_data")):
        with pytest.raises(sd.InvalidTypeError, match=f"did you mean '{close}'"):
            sd.ScoreModel(process, lambda x, t, **kw: x, **{name: "noise"})
    with pytest.raises(sd.InvalidTypeError, match="index_time"):
        sd.ScoreModel(process, lambda x, t: x, time=1000)
    with pytest.raises(sd.InvalidTypeError, match="must return a tensor"):
        sd.ScoreModel(process, lambda x, t: x, time=lambda level: 1.0)(x, level)
    with pytest.raises(sd.InvalidTypeError, match="the class Linear"):
        sd.ScoreModel(process, torch.nn.Linear)
    with pytest.raises(sd.InvalidArgumentError, match="'edm', 'energy'"):
        sd.ScoreModel(process, lambda x, t: x, "eps")
    with pytest.raises(sd.InvalidArgumentError, match="alphas_cumprod"):
        sd.DiscreteVP(torch.linspace(0.999, 0.01, 1000))


class AtTime(torch.nn.Module):
    def forward(self, x, t):
        return x + t[:, None]
