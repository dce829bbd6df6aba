"""The audit of a network: it names what is wrong with a plugged-in model, and nothing where nothing is."""

from __future__ import annotations

import json
import re

import pytest
import torch
from cases import crossed, mostly_slow

import sdegen as sd
from sdegen.testing import PROBLEMS, audit

F64 = torch.float64
VP, EDM, FLOW = sd.VP(), sd.EDM(), sd.Flow()
LAW = PROBLEMS["three"].data
DATA = LAW.sample(2000, seed=5)


def net(predicts="noise", process=VP, law=LAW):
    """The perfect network of a law: what training with this prediction on this process tends to."""
    model = law.score(process)
    return lambda x, t: model(x, process.level(t.double()), predicts).to(x.dtype)


def edm_net(sigma_data=0.5):
    """The perfect raw network F, which takes c_in x and log(sigma)/4."""
    model = LAW.score(EDM)

    def f(x, t):
        s = torch.exp(4 * t.double())
        norm = torch.sqrt(s * s + sigma_data**2)[:, None]
        y = x.double() * norm
        skip, out = sigma_data**2 / norm**2, s[:, None] * sigma_data / norm
        return ((model(y, EDM.level(s), "data") - skip * y) / out).to(x.dtype)

    return f


def twist(x, t):
    return net()(x, t) + 0.4 * torch.stack([-x[:, 1], x[:, 0]], 1)


MISREAD = {
    "noise declared as score": (sd.ScoreModel(VP, net("noise"), "score"), "predicts noise, not score"),
    "v declared as noise": (sd.ScoreModel(VP, net("v"), "noise"), "predicts v, not noise"),
    "data declared as v": (sd.ScoreModel(VP, net("data"), "v"), "predicts data, not v"),
    "the other sign": (sd.ScoreModel(VP, lambda x, t: -net()(x, t), "noise"), "opposite sign"),
    "velocity of time reversed": (
        sd.ScoreModel(FLOW, lambda x, t: -net("velocity", FLOW)(x, 1 - t), "velocity"),
        "opposite sign.*1 - t",
    ),
    "time as an index": (sd.ScoreModel(VP, lambda x, t: net()(x, ((t + 1) / 1000).clamp(1e-3, 1)), "noise"), "index 0"),
    "time running the other way": (sd.ScoreModel(VP, lambda x, t: net()(x, (1 - t).clamp(1e-3, 1)), "noise"), "1 - t"),
    "another process": (sd.ScoreModel(VP, net("noise", sd.Cosine()), "noise"), "trained on Cosine"),
    "F declared as data": (sd.ScoreModel(EDM, edm_net(), "data"), "predicts EDM's F, not data"),
    "data declared as F": (sd.ScoreModel(EDM, net("data", EDM), "edm"), "predicts data, not edm"),
    "an input to be scaled": (
        sd.ScoreModel(EDM, lambda x, t: net("noise", EDM)(x * torch.hypot(t, 0 * t + 0.5)[:, None], t), "noise"),
        "x over its own size",
    ),
}


@pytest.mark.parametrize(("model", "cause"), MISREAD.values(), ids=MISREAD)
def test_a_misread_network_is_named(model, cause):
    found = audit(model, DATA)
    assert not found.ok
    assert found.findings[0].kind == "reading"
    assert re.search(cause, found.findings[0].sentence)
    best = found.readings[0]
    assert best[1] < 1.05
    assert str(found.findings[0].sentence) in str(found)


def trained(error):
    """A network with an error of its own, smooth and of a few percent of the noise, in float32."""
    exact = net()
    return lambda x, t: exact(x, t) * (1 + error * torch.sin(3 * x)) + error / 2 * torch.cos(2 * x.flip(1))


IMPERFECT = {
    "score": (lambda f: sd.ScoreModel(VP, f, "score"), "predicts noise, not score"),
    "data": (lambda f: sd.ScoreModel(VP, f, "data"), "predicts noise, not data"),
    "sign": (lambda f: sd.ScoreModel(VP, lambda x, t: -f(x, t), "noise"), "opposite sign"),
    "time": (lambda f: sd.ScoreModel(VP, lambda x, t: f(x, (t / 1000).clamp(1e-3, 1)), "noise"), "1000|index 0"),
    "reversed": (lambda f: sd.ScoreModel(VP, lambda x, t: f(x, (1 - t).clamp(1e-3, 1)), "noise"), "1 - t"),
}


@pytest.mark.parametrize(
    ("misuse", "error"),
    mostly_slow(crossed(IMPERFECT, [0.02, 0.05]), lambda case: case[1] > 0.02 and case[0] in ("score", "time")),
)
def test_imperfect_networks_are_read_as_well(misuse, error):
    misuse, cause = IMPERFECT[misuse]
    found = audit(misuse(trained(error)), DATA.float())
    assert found.findings[0].kind == "reading"
    assert re.search(cause, found.findings[0].sentence)
    right = audit(sd.ScoreModel(VP, trained(error), "noise"), DATA.float())
    assert "reading" not in {f.kind for f in right.findings}


def test_energies_are_audited_and_conditions_follow_their_data():
    energy = sd.ScoreModel(VP, lambda x, t: -LAW.log_prob(x, VP.level(t.double())).to(x.dtype), "energy")
    assert audit(energy, DATA).ok
    shift = torch.linspace(-1, 1, len(DATA), dtype=F64)[:, None]
    moved = net()

    def conditional(x, t, shift):
        a = VP.level(t.double()).alpha[:, None]
        return moved(x - a * shift, t)

    model = sd.ScoreModel(VP, conditional, "noise", shift=shift)
    assert audit(model, DATA + shift).ok
    assert not audit(sd.ScoreModel(VP, conditional, "noise", shift=shift.flip(0)), DATA + shift).ok


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_data_of_another_scale_are_named(scale):
    found = audit(sd.ScoreModel(VP, net(), "noise"), DATA / scale)
    word = "half" if scale == 0.5 else "twice"
    assert f"of {word} the size" in found.findings[0].sentence


def test_images_in_zero_one_for_minus_one_one():
    law = sd.GaussianMixture(torch.tensor([[0.9, -0.9], [-0.5, 0.8]]), stds=0.1)
    model = sd.ScoreModel(VP, net(law=law), "noise")
    found = audit(model, (law.sample(1000, seed=2) + 1) / 2)
    assert "mapped from [0, 1] to [-1, 1]" in found.findings[0].sentence


OTHER = {
    "size": (lambda x, t: 1.3 * net()(x, t), "1.30 times -x/sigma"),
    "curl": (twist, "no gradient"),
    "loss": (lambda x, t: net()(x, t.clamp(min=0.08)), "at low noise"),
    "reading": (net(law=sd.Gaussian([4.0, -4.0], std=0.1)), "is this the trained network, and are these its data?"),
    "finite": (lambda x, t: net()(x, t) / (t > 0.5)[:, None], "NaN or Inf at t"),
    "batch": (lambda x, t: net()(x, t) - 0.1 * x.mean(0), "alone instead of in a batch"),
}


@pytest.mark.parametrize(("kind", "wrong"), OTHER.items(), ids=OTHER)
def test_other_faults_are_named(kind, wrong):
    function, cause = wrong
    found = {f.kind: f.sentence for f in audit(sd.ScoreModel(VP, function, "noise"), DATA).findings}
    assert cause in found[kind]


def test_over_fitting_breaks_tweedie():
    """The exact score of 40 training points, on fresh data: far more certain than it is right."""
    learned = sd.GaussianMixture.empirical(LAW.sample(40, seed=1))
    found = audit(sd.ScoreModel(VP, net(law=learned), "noise"), DATA)
    assert {f.kind for f in found.findings} == {"loss", "tweedie"}
    assert any("over-fitted" in f.sentence for f in found.findings)


def test_training_mode_and_a_start_that_is_no_noise():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.0)

        def forward(self, x, t):
            return self.drop(net()(x, t))

    kinds = {f.kind for f in audit(sd.ScoreModel(VP, Net(), "noise"), DATA).findings}
    assert kinds == {"mode"}
    short = sd.VP(beta_max=2.0)
    kinds = {f.kind for f in audit(LAW.score(short), DATA).findings}
    assert kinds == {"start"}


LAWS = ["three", "grid", "rings", "images", "widths", "points"]
PROCESSES = [VP, sd.VE(), EDM, FLOW, sd.DiscreteVP()]


# each law and each process once
@pytest.mark.parametrize(
    ("name", "process"), mostly_slow(crossed(LAWS, PROCESSES), list(zip(LAWS, [*PROCESSES[1:], *PROCESSES])))
)
def test_nothing_is_found_where_nothing_is(name, process):
    law = PROBLEMS[name].data
    found = audit(law.score(process), law)
    assert found.ok, str(found)


@pytest.mark.parametrize("seed", mostly_slow(range(5), [0]))
def test_nothing_is_found_on_other_draws(seed):
    assert audit(LAW.score(VP), DATA, seed=seed).ok


def test_what_is_printed_drawn_and_stored():
    found = audit(MISREAD["noise declared as score"][0], DATA)
    text = str(found)
    assert max(len(line) for line in text.splitlines() if "  - " not in line) <= 120
    assert len(found.rows) == 10
    assert json.loads(json.dumps(found.to_dict()))["findings"][0]["kind"] == "reading"
    ax = found.plot()
    assert ax.get_yscale() == "log"
    assert found.plot(ax) is ax


def test_a_float32_network_with_conditions():
    layer = torch.nn.Linear(2, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t, label):
            return self.layer(x) + label

    model = sd.ScoreModel(VP, Net().eval(), "noise", label=torch.tensor(0.5))
    assert not audit(model, DATA.float()).ok  # it was never trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda x, t: x, DATA), "wrap the network"),
        ((LAW.score(VP), DATA[:, 0].long()), "floating tensor"),
        ((LAW.score(VP), DATA[0]), "floating tensor"),
        ((LAW.score(VP), DATA * float("nan")), "NaN or Inf"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((sd.InvalidTypeError, sd.InvalidArgumentError), match=message):
        audit(*arguments)
    with pytest.raises(sd.InvalidArgumentError, match="levels >= 4"):
        audit(LAW.score(VP), DATA, levels=2)
