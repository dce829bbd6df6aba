"""Score models in files: every part comes back bit for bit, and what is no such file is one clear error."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

import sdegen as sd
from sdegen.testing import catalogue

safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.filterwarnings("ignore:at t_max")


class Net(torch.nn.Module):
    """A network of points `[B, 2]` and time, with buffers."""

    def __init__(self, seed=0, width=8, out=2):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Parameter(torch.randn(width, 3, generator=generator) / 2)
        self.last = torch.nn.Parameter(torch.randn(out, width, generator=generator) / 2)
        self.register_buffer("shift", torch.randn(width, generator=generator))
        self.register_buffer("count", torch.tensor(7 + seed))
        self.seen = []
        self.eval()

    def forward(self, x, t, label=None):
        self.seen.append(t)
        size = (1 + t.to(x.dtype).abs()).log()[:, None]
        h = torch.tanh(torch.cat([x, size], 1) @ self.first.T + self.shift + self.count.to(x.dtype) / 100)
        return h @ self.last.T if label is None else h @ self.last.T + label[:, None].to(x.dtype)


class Energy(Net):
    def forward(self, x, t):
        return super().forward(x, t).square().sum(1)


def samples(model, **options):
    return sd.sample(model, (3, 2), nfe=4, seed=1, **options)


def same(model, path, net, **options):
    """The model in a file gives the samples of `model`, its weights have their bits, and it makes the same file."""
    again = sd.ScoreModel.load(path, net, **options)
    own, new = model.module.state_dict(), again.module.state_dict()
    assert [*own] == [*new]
    for name in own:
        assert own[name].dtype == new[name].dtype
        assert torch.equal(own[name], new[name])
    assert torch.equal(samples(again), samples(model))
    assert again.process == model.process
    for name in ("predicts", "sigma_data", "cast", "time_dtype", "learned_variance"):
        assert getattr(again, name) == getattr(model, name), name
    other = Path(f"{path}.again")
    again.save(other)
    assert other.read_bytes() == Path(path).read_bytes()
    return again


def saved(tmp_path, model, name="model.safetensors"):
    model.save(tmp_path / name)
    return tmp_path / name


def said(path):
    """The header's record."""
    with safetensors.safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["sdegen"])


# --- round trips

PROCESSES = [
    *(kind() for kind in catalogue.shipped_processes() if not inspect.isabstract(kind)),
    *(
        sd.VP(0.2, 12.0, t_min=2e-3),
        sd.SubVP(0.3, 7.0),
        sd.VE(0.02, 30.0),
        sd.EDM(0.01, 20.0),
        sd.Cosine(0.01, t_max=0.9),
    ),
    *(sd.Flow(t_min=0.0), sd.DiscreteVP(torch.linspace(4e-4, 0.08, 250)), sd.DiscreteVP([0.1, 0.2, 0.3])),
    sd.DiscreteVP(torch.cat([torch.linspace(1e-4, 0.02, 99), torch.ones(1)]), zero_snr=True),
]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_every_process_comes_back(process, tmp_path):
    model = sd.ScoreModel(process, Net(), "v")
    again = same(model, saved(tmp_path, model), Net(1))
    assert type(again.process) is type(process)
    for field in dataclasses.fields(process):
        own, new = getattr(process, field.name), getattr(again.process, field.name)
        assert torch.equal(own, new) if torch.is_tensor(own) else own == new


@pytest.mark.parametrize("predicts", ["score", "noise", "data", "v", "velocity", "edm", "energy"])
def test_every_prediction_comes_back(predicts, tmp_path):
    kind = Energy if predicts == "energy" else Net
    model = sd.ScoreModel(sd.VP(), kind(), predicts, sigma_data=0.7)
    again = same(model, saved(tmp_path, model), kind(1))
    assert again.predicts == predicts


TIMES = {
    "t": {"time": sd.model.level_time},
    "sigma": {"time": sd.model.sigma_time},
    "log sigma": {"time": sd.model.log_sigma_time},
    "index": {"time": sd.model.index_time(500)},
    "index of any": {"time": sd.model.index_time()},
    "whole index": {"time": sd.model.index_time(), "time_dtype": torch.long},
    "t in half": {"time_dtype": torch.float16},
    "edm's": {"predicts": "edm"},
    "edm's, and t": {"predicts": "edm", "time": sd.model.level_time},
}


@pytest.mark.parametrize("name", TIMES)
def test_every_time_comes_back(name, tmp_path):
    options = {"predicts": "noise", **TIMES[name]}
    model = sd.ScoreModel(sd.VP(), Net(), **options)
    net = Net(1)
    again = same(model, saved(tmp_path, model), net)
    assert type(again.time) is type(model.time)
    assert [t.dtype for t in net.seen[:4]] == [t.dtype for t in model.net.seen[:4]]
    assert all(map(torch.equal, net.seen[:4], model.net.seen[:4]))
    assert getattr(again.time, "steps", None) == getattr(model.time, "steps", None)


def test_the_steps_of_a_discrete_process_are_those_of_its_index(tmp_path):
    model = sd.ScoreModel(sd.DiscreteVP(torch.linspace(1e-3, 0.1, 100)), Net(), "noise", time=sd.model.index_time())
    again = same(model, saved(tmp_path, model), Net(1))
    assert again.time.steps == 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_of_weights_comes_back(dtype, tmp_path):
    """The network that takes them has another one."""
    net = Net().to(dtype)
    net.register_buffer("mask", torch.tensor([True, False, True]))
    net.register_buffer("small", torch.tensor([[-3, 4]], dtype=torch.int8))
    net.register_buffer("none", torch.zeros(0, 3))
    model = sd.ScoreModel(sd.EDM(), net, "data")
    fresh = Net(1)
    for name in ("mask", "small", "none"):
        fresh.register_buffer(name, torch.zeros_like(getattr(net, name)))
    weight = fresh.first
    again = same(model, saved(tmp_path, model), fresh)
    assert again.module.first is weight
    assert samples(again).dtype == dtype
    assert weight.requires_grad


def test_options_come_back(tmp_path):
    net = Net(out=4)
    model = sd.ScoreModel(sd.VP(), net, "edm", sigma_data=0.3, cast=True, learned_variance=True)
    again = same(model, saved(tmp_path, model), Net(1, out=4))
    assert again.cast
    assert torch.equal(*(sd.sample(m, (3, 2), steps=3, solver=sd.ddpm("learned"), seed=0) for m in (again, model)))
    other = sd.ScoreModel.load(tmp_path / "model.safetensors", Net(out=4), predicts="noise", sigma_data=0.9, cast=False)
    assert (other.predicts, other.sigma_data, other.cast, other.learned_variance) == ("noise", 0.9, False, True)


def test_conditions_are_given_on_loading(tmp_path):
    model = sd.ScoreModel(sd.VP(), Net(), "noise", label=torch.tensor([1.0, 2.0, 3.0]))
    path = saved(tmp_path, model)
    again = sd.ScoreModel.load(path, Net(1), label=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(samples(again), samples(model))
    assert not sd.ScoreModel.load(path, Net(1)).condition


class Tied(torch.nn.Module):
    def __init__(self, scale, tie=True):
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.a.weight.fill_(scale)
            self.a.bias.copy_(torch.tensor([scale, -scale]))
        memory = torch.arange(12.0) * scale
        self.register_buffer("part", memory[2:6].view(2, 2).T)
        self.register_buffer("whole", memory)
        self.register_buffer("end", memory[8:])
        if tie:
            self.b.weight = self.a.weight
        self.eval()

    def forward(self, x, t):
        return self.b(self.a(x)) @ self.part / 10


def test_tied_weights_and_views_come_back(tmp_path):
    net = Tied(0.5)
    assert not net.part.is_contiguous()
    model = sd.ScoreModel(sd.VP(), net, "noise")
    path = saved(tmp_path, model)
    assert said(path)["tied"] == {"b.weight": "a.weight"}
    fresh = Tied(2.0)
    again = same(model, path, fresh)
    assert again.module.b.weight is again.module.a.weight
    apart = sd.ScoreModel.load(path, Tied(2.0, tie=False))
    assert torch.equal(samples(apart), samples(model))


def test_a_callable_around_a_module_takes_its_weights(tmp_path):
    net = Net()
    model = sd.ScoreModel(sd.VP(), lambda x, t: 2 * net(x, t), "noise")
    path = saved(tmp_path, model)
    fresh = Net(1)
    again = sd.ScoreModel.load(path, lambda x, t: 2 * fresh(x, t))
    assert torch.equal(samples(again), samples(model))
    hidden = Net(2)
    deep = [[[[[[hidden]]]]]]
    found = sd.ScoreModel.load(path, lambda x, t: 2 * deep[0][0][0][0][0][0](x, t), module=hidden)
    assert torch.equal(samples(found), samples(model))


def test_what_compiles_or_spreads_a_network_is_left_out(tmp_path):
    net = Net()
    path = saved(tmp_path, sd.ScoreModel(sd.VP(), torch.compile(net, backend="eager"), "noise"))
    spread = saved(tmp_path, sd.ScoreModel(sd.VP(), torch.nn.DataParallel(net), "noise"), "spread.safetensors")
    plain = sd.ScoreModel(sd.VP(), net, "noise")
    for net in (Net(1), torch.compile(Net(1), backend="eager")):
        for file in (spread, path):
            assert torch.equal(samples(sd.ScoreModel.load(file, net)), samples(plain))


def test_a_loaded_network_is_in_evaluation_mode_and_on_its_device(tmp_path):
    path = saved(tmp_path, sd.ScoreModel(sd.VP(), Net(), "noise"))
    model = sd.ScoreModel.load(path, Net(1).train(), device="cpu", label=torch.ones(3))
    assert not model.module.training
    assert next(model.parameters()).device.type == "cpu"
    moved = sd.ScoreModel.load(path, Net(1), device="meta", label=torch.ones(3))
    assert {p.device.type for p in moved.parameters()} == {"meta"} == {moved.condition["label"].device.type}


def test_a_subclass_comes_back_as_itself(tmp_path):
    class Twice(sd.ScoreModel):
        def __call__(self, x, level, want="score"):
            return 2 * super().__call__(x, level, want)

    model = Twice(sd.VP(), Net(), "noise")
    path = saved(tmp_path, model)
    assert type(Twice.load(path, Net(1))) is Twice
    with pytest.raises(sd.InvalidArgumentError, match="saved by Twice: load it by that class"):
        sd.ScoreModel.load(path, Net(1))


# --- what is a user's own


class Sine(sd.Process):
    t_min, t_max = 0.01, 0.99

    def alpha(self, t):
        return torch.cos(torch.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(torch.pi / 2 * t)


def half_and_half(process, level):
    return torch.full_like(level.t, 0.5), torch.full_like(level.t, -0.5)


def minutes(level):
    return 60 * level.t


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("process", Sine(), "Sine"),
        ("process", sd.Process.from_functions(lambda t: 1 - t / 2, lambda t: t), "Function"),
        ("predicts", half_and_half, "half_and_half"),
        ("time", minutes, "minutes"),
        ("time", lambda level: 60 * level.t, "lambda"),
    ],
    ids=["class", "functions", "prediction", "time", "lambda"],
)
def test_what_is_your_own_is_asked_for(name, value, word, tmp_path):
    options = {"process": sd.VP(), "predicts": "noise", name: value}
    model = sd.ScoreModel(net=Net(), **options)
    path = saved(tmp_path, model)
    with pytest.raises(sd.InvalidArgumentError, match=rf"your own, .*{word}.*: load\(path, net, {name}=\.\.\.\)"):
        sd.ScoreModel.load(path, Net(1))
    again = sd.ScoreModel.load(path, Net(1), **{name: value})
    assert torch.equal(samples(again), samples(model))


def test_a_class_of_your_own_does_not_stand_for_one_of_the_library(tmp_path):
    path = saved(tmp_path, sd.ScoreModel(sd.VE(), Net(), "noise"))
    own = dataclasses.dataclass(frozen=True)(type("VE", (sd.VE,), {}))  # the name is taken over, and then given back
    try:
        with pytest.raises(sd.InvalidArgumentError, match="no process of this library"):
            sd.ScoreModel.load(path, Net(1))
    finally:
        own.__name__ = "_Gone"
    assert sd.ScoreModel.load(path, Net(1)).process == sd.VE()


# --- the file


def test_the_header_can_be_read(tmp_path):
    process, options = sd.DiscreteVP(), {"time": sd.model.index_time(), "time_dtype": torch.long}
    path = saved(tmp_path, sd.ScoreModel(process, Net(), "noise", **options))
    assert said(path) == {
        "format": "sdegen model 1",
        "sdegen": sd.__version__,
        "class": "ScoreModel",
        "network": "Net",
        "config": None,
        "tied": {},
        "process": {"sde": "DiscreteVP", "zero_snr": False},
        "predicts": "noise",
        "time": {"index_time": 1000},
        "time_dtype": "int64",
        "sigma_data": 0.5,
        "cast": False,
        "learned_variance": False,
    }
    held = safetensors.load_file(path)
    assert set(held) == {"first", "last", "shift", "count", ".process.betas"}
    assert torch.equal(held[".process.betas"], process.betas)
    assert said(saved(tmp_path, sd.ScoreModel(sd.VP(), Net())))["process"] == json.loads(sd.VP().to_json())


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = saved(tmp_path, sd.ScoreModel(sd.VP(), Net(), "noise"))
    before = path.read_bytes()

    def cut(tensors, name, words):
        Path(name).write_bytes(before[:50])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save_file", cut)
        with pytest.raises(OSError, match="no space"):
            sd.ScoreModel(sd.VP(), Net(1), "noise").save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    sd.ScoreModel(sd.VP(), Net(1), "noise").save(path)
    assert path.read_bytes() != before
    assert os.listdir(tmp_path) == [path.name]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_model_can_be_saved_over_the_file_it_came_from(tmp_path):
    model = sd.ScoreModel(sd.VP(), Net(), "noise")
    path = saved(tmp_path, model)
    again = sd.ScoreModel.load(path, Net(1))
    with torch.no_grad():
        again.module.last.mul_(2)
    again.save(path)
    assert torch.equal(sd.ScoreModel.load(path, Net(2)).module.last, 2 * model.module.last)


# --- what cannot be saved


def test_what_has_no_weights_is_not_saved(tmp_path):
    path = tmp_path / "x.safetensors"
    data = sd.GaussianMixture(torch.zeros(1, 2), stds=1.0)
    with pytest.raises(sd.InvalidTypeError, match="has no weights: it is an exact score"):
        data.score(sd.VP()).save(path)
    for model in (
        sd.ScoreModel(sd.VP(), lambda x, t: -x),
        sd.ScoreModel(sd.VP(), lambda x, t: x.square().sum(1), "energy"),
    ):
        with pytest.raises(sd.InvalidTypeError, match=r"has no weights: no torch.nn.Module was found"):
            model.save(path)
    assert not path.exists()


def test_states_that_are_no_plain_tensors_are_not_saved(tmp_path):
    class Extra(Net):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    sparse, complex_, meta = Net(), Net(), Net().to("meta")
    sparse.register_buffer("table", torch.eye(3).to_sparse())
    complex_.register_buffer("table", torch.zeros(2, dtype=torch.complex128))
    for net, word in ((Extra(), "no tensor"), (sparse, "table"), (complex_, "table"), (meta, "first")):
        with pytest.raises(sd.InvalidArgumentError, match=word):
            sd.ScoreModel(sd.VP(), net, "noise").save(tmp_path / "x.safetensors")
    import numpy as np

    with pytest.raises(sd.InvalidArgumentError, match="plain numbers"):
        sd.ScoreModel(sd.VP(np.float32(0.1), 20.0), Net(), "noise").save(tmp_path / "x.safetensors")


def test_places_that_are_no_file(tmp_path):
    model = sd.ScoreModel(sd.VP(), Net(), "noise")
    with pytest.raises(FileNotFoundError, match="no folder"):
        model.save(tmp_path / "none" / "x.safetensors")
    with pytest.raises(sd.InvalidArgumentError, match="is a folder"):
        model.save(tmp_path)
    with pytest.raises(sd.InvalidArgumentError, match="a name of pickles"):
        model.save(tmp_path / "model.pt")
    with pytest.raises(sd.InvalidArgumentError, match="from_pretrained"):
        sd.ScoreModel.load(tmp_path, Net())
    for name in ("none.safetensors", "none.pt"):
        with pytest.raises(FileNotFoundError, match="no model"):
            sd.ScoreModel.load(tmp_path / name, Net())


# --- what cannot be loaded


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path, sd.ScoreModel(sd.DiscreteVP(), Net(), "noise"))


def refused(path, word, net=None, **options):
    """A clear error, and a network left as it was."""
    net = Net(1) if net is None else net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match=word):
        sd.ScoreModel.load(path, net, **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in net.state_dict().items())


def test_weights_of_another_architecture_are_refused(path):
    wider, more, less = Net(1, width=9), Net(1), Net(1)
    more.extra, more.other = torch.nn.Linear(2, 2), torch.nn.Linear(4, 4)
    refused(path, r"not those of Net; of another shape or kind: first \[8, 3\], not \[9, 3\], last", wider)
    refused(path, r"missing in the file: extra.weight, extra.bias, other.weight, other.bias$", more)
    del less.last
    refused(path, r"unexpected: last$", less)
    del less.first
    less.register_buffer("first", torch.zeros(8, 3, dtype=torch.long))
    refused(path, r"unexpected: last; of another shape or kind: first", less)
    with pytest.raises(sd.InvalidArgumentError, match="of another shape or kind"):
        sd.ScoreModel.load(path, Net(1).to("meta"))


def changed(path, words=None, tensors=None, **record):
    """The file with another header or tensors."""
    held = safetensors.load_file(path)
    words = {"sdegen": json.dumps({**said(path), **record})} if words is None else words
    safetensors.save_file({**held, **(tensors or {})}, path, words)
    return path


def test_files_of_other_kinds_are_refused(path):
    good = path.read_bytes()
    plan = path.with_name("plan.safetensors")
    sd.Plan.of(sd.dpmpp(2), sd.VP(), 4).save(plan)
    refused(plan, "it holds a plan, which sd.Plan.load reads")
    with pytest.raises(sd.InvalidArgumentError, match=r"Plan\.save"):
        sd.Plan.load(path)
    refused(changed(path, words={"format": "pt"}), "it holds weights alone")
    for count in (0, 5, 9, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:count])
        refused(path, "not a safetensors file")
    for content in (b"garbage, garbage", b"\xff" * 100, b"{}"):
        path.write_bytes(content)
        refused(path, "not a safetensors file")


def test_headers_of_other_versions_or_none_are_refused(path):
    fine = said(path)
    refused(
        changed(path, format="sdegen model 2", sdegen="9.1"), "format 'sdegen model 2', by sdegen 9.1; this version"
    )
    refused(changed(path, format="sdegen model 1", sdegen="0.1", foreign=1), "has the keys .*foreign")
    for name in fine:
        words = {"sdegen": json.dumps({k: v for k, v in fine.items() if k != name})}
        refused(changed(path, words=words), "is not as ScoreModel.save writes it")
    for text in ("", "[]", "null", "3", "{}", "{"):
        refused(changed(path, words={"sdegen": text}), "is not as ScoreModel.save writes it")
    wrong = [
        *({"process": p} for p in ({"sde": "VPP"}, {"sde": "VP", "beta": 1}, {"sde": "OU"}, 3, None, {})),
        *({"time": t} for t in ("no_time", "__init__", {"index_time": 3, "more": 1}, {"no_time": 1}, 3, None)),
        *({"time_dtype": d} for d in ("int63", "nn", 3)),
        *({"predicts": p} for p in ("nothing", None, 3)),
        *({"sigma_data": s} for s in (-1, None, "a")),
        *({"learned_variance": v} for v in (1, None)),
        *({"tied": t} for t in ({"a": "b"}, 3, ["first"], {"a": ["first"]})),
    ]
    for record in wrong:
        path.write_bytes(path.read_bytes())
        refused(changed(path, words={"sdegen": json.dumps({**fine, **record})}), ".")
    process = safetensors.load_file(path)[".process.betas"]
    words = {"sdegen": json.dumps(fine)}
    refused(changed(path, words=words, tensors={".process.betas": 1 - process}), "alphas_cumprod")
    refused(changed(path, words=words, tensors={".process.betas": process, ".process.evil": process.clone()}), "evil")


def test_tensors_that_are_not_the_networks_are_refused(path):
    refused(changed(path, tensors={"evil": torch.ones(1)}), "unexpected: evil")
    many = {f"evil{k}": torch.ones(1) for k in range(9)}
    refused(changed(path, tensors=many), "unexpected: evil, evil0, evil1, evil2 and 6 more")


def test_a_network_has_to_be_given(path):
    with pytest.raises(sd.InvalidArgumentError, match=r"weights of Net and no code: load\(path, net\)"):
        sd.ScoreModel.load(path)
    with pytest.raises(sd.InvalidTypeError, match=r"no torch.nn.Module was found"):
        sd.ScoreModel.load(path, lambda x, t: x)
    with pytest.raises(sd.InvalidTypeError, match="net must be callable"):
        sd.ScoreModel.load(path, 3)
    with pytest.raises(sd.InvalidTypeError, match="unknown keyword 'sigma_dat'"):
        sd.ScoreModel.load(path, Net(), sigma_dat=3)


# --- pickles


def test_pickles_are_read_where_it_is_said(tmp_path):
    net = Net()
    model = sd.ScoreModel(sd.EDM(), net, "data", time=sd.model.log_sigma_time)
    options = dict(process=sd.EDM(), predicts="data", time=sd.model.log_sigma_time)
    line = r"ScoreModel.load\(path, net, process=..., predicts=..., allow_pickle=True\)"
    for name, old in (("net.pt", False), ("net.pth", True), ("net", False), ("other", True), ("net.bin", False)):
        path = tmp_path / name
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=not old)
        refused(path, f"can run code.*{line}", **options)
        refused(path, line, process=sd.EDM(), allow_pickle=True)
        again = sd.ScoreModel.load(path, Net(1), allow_pickle=True, **options)
        assert torch.equal(samples(again), samples(model))
    for count in (0, 1, 60):
        (tmp_path / "cut.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:count])
        refused(tmp_path / "cut.pt", "no pickle of tensors alone", allow_pickle=True, **options)


def test_pickles_of_more_than_tensors_are_refused(tmp_path):
    options = dict(process=sd.EDM(), predicts="data", allow_pickle=True)
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    refused(path, "no pickle of tensors alone", **options)
    torch.save({"model": Net(), "epoch": 3}, path)
    refused(path, "no pickle of tensors alone", **options)
    torch.save({"state_dict": Net().state_dict(), "epoch": 3}, path)
    refused(path, "a dict of state_dict, epoch, and no state dict", **options)
    torch.save(torch.ones(3), path)
    refused(path, "no state dict", **options)
    assert not ran.exists()


def test_a_name_of_pickles_with_the_bytes_of_safetensors_is_none(path):
    other = path.rename(path.with_suffix(".bin"))
    assert torch.equal(
        samples(sd.ScoreModel.load(other, Net(1))), samples(sd.ScoreModel(sd.DiscreteVP(), Net(), "noise"))
    )


# --- the hub


def hub_classes():
    hub = pytest.importorskip("huggingface_hub")

    class Made(torch.nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, width: int = 4, scale: float = 1.0):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))
            self.scale = scale
            self.eval()

        def forward(self, x, t):
            return self.scale * self.layers(x)

    @dataclasses.dataclass
    class Settings:
        width: int = 4

    class Configured(torch.nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, config: Settings):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2 * config.width)
            self.eval()

        def forward(self, x, t):
            return self.layer(x)[:, :2]

    Configured.__init__.__annotations__["config"] = Settings
    Configured._hub_mixin_init_parameters["config"] = Configured._hub_mixin_init_parameters["config"].replace(
        annotation=Settings
    )
    return hub, Made, Configured, Settings


def test_a_class_that_keeps_its_arguments_is_made_with_them(tmp_path):
    _, Made, Configured, Settings = hub_classes()
    model = sd.ScoreModel(sd.VP(), Made(6, scale=2.0), "noise")
    path = saved(tmp_path, model)
    assert said(path)["config"] == {"width": 6, "scale": 2.0}
    again = same(model, path, Made)
    assert again.net.scale == 2.0
    assert torch.equal(samples(sd.ScoreModel.load(path, Made(6, 2.0))), samples(model))
    other = sd.ScoreModel(sd.VP(), Configured(Settings(3)), "noise")
    path = saved(tmp_path, other)
    same(other, path, Configured)


def test_classes_that_cannot_be_made_are_refused(tmp_path):
    _, Made, *_ = hub_classes()

    class Other(Made):
        def __init__(self, depth):
            super().__init__()

    path = saved(tmp_path, sd.ScoreModel(sd.VP(), Net(), "noise"))
    with pytest.raises(sd.InvalidTypeError, match="must be an instance, got the class Net"):
        sd.ScoreModel.load(path, Net)
    with pytest.raises(sd.InvalidArgumentError, match="no arguments of Made: give an instance"):
        sd.ScoreModel.load(path, Made)
    path = saved(tmp_path, sd.ScoreModel(sd.VP(), Made(6), "noise"))
    with pytest.raises(sd.InvalidArgumentError, match="Other is not made by the arguments in"):
        sd.ScoreModel.load(path, Other)


def test_a_folder_holds_a_model(tmp_path):
    model = sd.ScoreModel(sd.VP(), Net(), "noise")
    model.save_pretrained(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == ["model.safetensors"]
    for folder in (tmp_path / "new" / "folder", str(tmp_path / "new" / "folder")):
        again = sd.ScoreModel.from_pretrained(folder, Net(1), label=torch.zeros(3))
        assert torch.equal(samples(again), samples(model))
    with pytest.raises(FileNotFoundError, match=r"no model .*model.safetensors"):
        sd.ScoreModel.from_pretrained(tmp_path, Net())
    for missing in (tmp_path / "none", str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no folder"):
            sd.ScoreModel.from_pretrained(missing, Net())


def test_a_repository_is_read_from_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    model = sd.ScoreModel(sd.VP(), Net(), "noise")
    path, asked = saved(tmp_path, model), []
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args, **options: (asked.append((args, options)), str(path))[1])
    again = sd.ScoreModel.from_pretrained("me/mine", Net(1), revision="v1", token="t", cache_dir=tmp_path)
    assert torch.equal(samples(again), samples(model))
    assert asked == [(("me/mine", "model.safetensors"), {"revision": "v1", "token": "t", "cache_dir": tmp_path})]


def test_a_model_is_pushed_to_the_hub(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    model, done = sd.ScoreModel(sd.VP(), Net(), "noise"), []

    class Api:
        def __init__(self, token=None):
            done.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            done.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            again = sd.ScoreModel.from_pretrained(folder_path, Net(1))
            done.append(("upload", repo_id, revision, commit_message, torch.equal(samples(again), samples(model))))
            return "address"

    monkeypatch.setattr(hub, "HfApi", Api)
    assert model.push_to_hub("me/mine", private=True, token="t", revision="v1", commit_message="text") == "address"
    assert done == [("token", "t"), ("create", "me/mine", True, True), ("upload", "me/mine", "v1", "text", True)]


def test_the_extras_are_named_where_they_are_not_there(tmp_path, monkeypatch):
    model = sd.ScoreModel(sd.VP(), Net(), "noise")
    path = saved(tmp_path, model)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        for call in (
            lambda: sd.ScoreModel.from_pretrained("me/mine", Net()),
            lambda: model.push_to_hub("me/mine"),
            lambda: sd.ScoreModel.load(path, Net),
        ):
            with pytest.raises(sd.InvalidArgumentError, match=r"pip install 'sdegen\[hub\]'"):
                call()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: model.save(path), lambda: sd.ScoreModel.load(path, Net())):
        with pytest.raises(
            sd.InvalidArgumentError, match=r"models are kept as safetensors: pip install 'sdegen\[hub\]'"
        ):
            call()
