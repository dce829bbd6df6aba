"""Networks behind functions: the module is found, and its dtype, device and mode with it; models pickle."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import sdegen as sd

P = sd.Flow()


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))

    def forward(self, x, t=None):
        return self.inner(x)


GLOBAL = Plain()
TABLE = {"net": GLOBAL}
SPACE = SimpleNamespace(net=GLOBAL)


def by_name(x, t):
    return GLOBAL(x)


def through_a_function(x, t):
    return by_name(x, t)


def by_table(x, t):
    return TABLE["net"](x)


def by_attribute(x, t):
    return SPACE.net(x)


def inner_lambda(x, t):
    return (lambda y: GLOBAL(y))(x)


def decorated(function):
    @functools.wraps(function)
    def call(x, t):
        return function(x, t)

    return call


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, x, t):
        return self.net(x)

    def method(self, x, t):
        return self.net(x)


class Slots:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net

    def __call__(self, x, t):
        return self.net(x)


@dataclass
class Data:
    net: object

    def __call__(self, x, t):
        return self.net(x)


def closures(net):
    table, items, deep = {"net": net}, [net], ({"a": [net]},)
    return {
        "lambda": lambda x, t: -net(x),
        "dict": lambda x, t: table["net"](x),
        "list": lambda x, t: items[0](x),
        "deep": lambda x, t: deep[0]["a"][0](x),
        "set": (lambda kept: lambda x, t: next(iter(kept))(x))({net}),
        "default": lambda x, t, net=net: net(x),
        "keyword default": lambda x, t, *, net=net: net(x),
        "lambda of a lambda": (lambda f: lambda x, t: f(x))(lambda x: net(x)),
        "forward": (lambda f: lambda x, t: f(x))(net.forward),
        "partial": functools.partial(lambda net, x, t: net(x), net),
        "partial by keyword": functools.partial(lambda x, t, net: net(x), net=net),
        "decorated": decorated(lambda x, t: net(x)),
        "bound method": Holder(net).method,
        "object": Holder(net),
        "slots": Slots(net),
        "dataclass": Data(net),
        "compiled": (lambda fast: lambda x, t: fast(x))(torch.compile(net, backend="eager")),
    }


LOCAL = list(closures(GLOBAL))
NAMED = [by_name, through_a_function, by_table, by_attribute, inner_lambda]


@pytest.mark.parametrize("name", LOCAL)
def test_the_module_in_a_closure_is_found(name):
    net = Plain().double().eval()
    model = sd.ScoreModel(P, closures(net)[name], "velocity")
    assert net in list(model.module.modules())
    assert sd.sample(model, (2, 2), nfe=2).dtype == torch.float64
    net.train()
    with pytest.warns(UserWarning, match="training mode"):
        sd.sample(model, (2, 2), nfe=2)
    model.eval()
    assert not net.training
    assert sd.sample(model.to(torch.float32), (2, 2), nfe=2).dtype == torch.float32


@pytest.mark.parametrize("function", NAMED, ids=lambda function: function.__name__)
def test_the_module_among_globals_is_found(function):
    for net in (function, lambda x, t: function(x, t)):
        assert GLOBAL in list(sd.ScoreModel(P, net, "velocity").module.modules())


def test_the_device_is_the_networks():
    net = Plain().to("meta").eval()
    assert sd.sample(sd.ScoreModel(P, lambda x, t: net(x), "velocity"), (2, 2), nfe=2).is_meta


def test_a_module_may_be_given():
    net = Plain().double().eval()
    hidden = net
    for _ in range(9):
        hidden = functools.partial(hidden)
        hidden = (lambda inner: lambda x, t=None: inner(x))(hidden)
    assert sd.ScoreModel(P, hidden, "velocity").module is None
    model = sd.ScoreModel(P, hidden, "velocity", module=net)
    assert model.module is net
    assert sd.sample(model, (2, 2), nfe=2).dtype == torch.float64


def test_a_note_says_what_was_chosen_where_no_module_was_found():
    weight = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError) as caught:
        sd.sample(sd.ScoreModel(P, lambda x, t: x @ weight, "velocity"), (2, 2), nfe=2)
    assert any("float32" in note and "dtype=" in note and "device=" in note for note in caught.value.__notes__)
    for method in ("eval", "parameters", "to"):
        with pytest.raises(sd.InvalidTypeError, match="module=net"):
            getattr(sd.ScoreModel(P, lambda x, t: x, "velocity"), method)()


def test_a_network_in_evaluation_mode_gets_no_warning():
    net = Plain().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.sample(sd.ScoreModel(P, lambda x, t: net(x), "velocity"), (2, 2), nfe=2)


@pytest.mark.parametrize("name", [name for name in LOCAL if name not in ("compiled",)])
def test_models_with_local_functions_pickle(name):
    pytest.importorskip("cloudpickle")
    model = sd.ScoreModel(P, closures(Plain().eval())[name], "velocity")
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(*(sd.sample(m, (3, 2), nfe=3, seed=0) for m in (model, again)))
    assert copy.copy(model).net is model.net


def test_without_cloudpickle_a_lambda_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(pickle.PicklingError, match="cloudpickle"):
        pickle.dumps(sd.ScoreModel(P, lambda x, t: x, "velocity"))
    pickle.dumps(sd.ScoreModel(P, by_name, "velocity"))


@pytest.mark.slow
def test_a_pickled_lambda_runs_in_another_process(tmp_path):
    pytest.importorskip("cloudpickle")
    net = torch.nn.Linear(2, 2).eval()
    model = sd.ScoreModel(P, lambda x, t: net(x), "velocity")
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    code = "import pickle, sys, sdegen as sd; model = pickle.load(open(sys.argv[1], 'rb'))"
    code += "; print(sd.sample(model, (1, 2), nfe=3, seed=0).tolist())"
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(sd.sample(model, (1, 2), nfe=3, seed=0).tolist())


@pytest.mark.parametrize(
    "make",
    [
        sd.guidance.static_threshold,
        sd.guidance.dynamic_threshold,
        lambda model: sd.guidance.map_data(model, functools.partial(lambda k, data, x, level: data * k, 0.5)),
    ],
)
def test_maps_of_models_pickle(make):
    pytest.importorskip("cloudpickle")
    model = make(sd.ScoreModel(P, by_name, "velocity"))
    GLOBAL.eval()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(*(sd.sample(m, (3, 2), nfe=3, seed=0) for m in (model, again)))


def moved_by(sde):
    score = sd.ScoreModel(sde, lambda x, t: x * 0.5, "noise") if sde.gaussian else lambda x, t: -x
    return torch.stack([sde.drift(X, T), sde.reverse(score).drift(X, T)])


class Slotted(sd.Process):
    __slots__ = ("shift",)

    def __init__(self, shift):
        self.shift = shift
        self.curve = lambda t: t + shift

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.curve(t) + self.shift


X, T = torch.ones(3, 2), torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
FUNCTIONS = {
    "process": lambda: sd.Process.from_functions(lambda t: 1 - 0.999 * t, lambda t: t),
    "partial": lambda: sd.Process.from_functions(lambda t: 1 - t / 2, functools.partial(lambda k, t: k * t, 0.5)),
    "SDE": lambda: sd.SDE.from_functions(lambda x, t: -x, lambda x, t: t, prior=lambda seeds, shape: X),
    "linear": lambda: sd.OU(beta=lambda t: 1 + t),
    "own": lambda: Slotted(0.5),
    "VP": sd.VP,
}


@pytest.mark.parametrize("how", [lambda sde: pickle.loads(pickle.dumps(sde)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_processes_of_functions_pickle_and_are_copied(name, how):
    pytest.importorskip("cloudpickle")
    sde = FUNCTIONS[name]()
    again = how(sde)
    assert type(again) is type(sde)
    assert torch.equal(moved_by(again), moved_by(sde))
    reverse = sde.reverse(lambda x, t: -x)
    assert torch.equal(how(reverse).drift(X, T), reverse.drift(X, T))
    if name == "process":
        model = sd.ScoreModel(sde, lambda x, t: x * 0.5, "noise")
        assert torch.equal(*(sd.sample(m, (3, 2), nfe=3, seed=0) for m in (model, how(model))))


def test_without_cloudpickle_a_process_of_lambdas_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    for sde in (FUNCTIONS["process"](), FUNCTIONS["SDE"](), FUNCTIONS["linear"]()):
        copy.deepcopy(sde)
        with pytest.raises(pickle.PicklingError, match="cloudpickle"):
            pickle.dumps(sde)
    assert pickle.loads(pickle.dumps(sd.VP(beta_max=4.0))) == sd.VP(beta_max=4.0)


class Quantized(torch.nn.Module):
    def __init__(self, *rest):
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)
        for k, dtype in enumerate(rest):
            self.register_parameter(f"p{k}", torch.nn.Parameter(torch.ones(2, dtype=dtype)))

    def forward(self, x, t):
        return x * self.first.to(x.dtype)


@pytest.mark.parametrize("rest", [(), (torch.float32,), (torch.float64,), (torch.bfloat16, torch.float32)], ids=str)
def test_states_have_a_dtype_that_they_can(rest):
    """Not that of weights kept in fewer bits, which the network converts."""
    model = sd.ScoreModel(P, Quantized(*rest).eval(), "velocity")
    assert sd.sample(model, (2, 2), nfe=3).dtype == (rest or (torch.float32,))[0]
    with pytest.raises(sd.InvalidTypeError, match=r"x must be of a floating dtype, torch\.float16"):
        sd.solve(model, torch.ones(2, 2).to(torch.float8_e4m3fn), [1.0, 0.5], sd.ddim())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "time",
    [lambda level: torch.stack([level.t, level.lam], -1), lambda level: torch.ones(4), lambda level: torch.ones(0)],
)
def test_a_time_of_several_numbers_is_told(time, n):
    """Also where there happen to be as many samples."""
    model = sd.ScoreModel(P, lambda x, t: pytest.fail("called"), "velocity", time=time)
    for options in ({"nfe": 3}, {"tol": 0.1}):
        with pytest.raises(sd.InvalidArgumentError, match=r"time\(level\) must return a tensor like level\.t"):
            sd.sample(model, (n, 2), **options)


class Energy(torch.nn.Module):
    def forward(self, x):
        return x.square().sum(1) / 2


class Conditional(torch.nn.Module):
    def forward(self, x, label):
        return label * x.square().sum(1) / 2


def test_energies_may_take_x_alone():
    want = sd.sample(sd.ScoreModel(sd.VP(), lambda x, t: x.square().sum(1) / 2, "energy"), (3, 2), nfe=4, seed=0)
    for net in (Energy().eval(), torch.compile(Energy().eval(), backend="eager"), lambda x: x.square().sum(1) / 2):
        assert torch.equal(sd.sample(sd.ScoreModel(sd.VP(), net, "energy"), (3, 2), nfe=4, seed=0), want)
    model = sd.ScoreModel(sd.VP(), Conditional().eval(), "energy", label=torch.ones(3))
    assert torch.equal(sd.sample(model, (3, 2), nfe=4, seed=0), want)


class Output:
    def __init__(self, sample):
        self.sample = sample


@pytest.mark.parametrize(
    ("net", "advice"),
    [
        (lambda x, t: Output(x), r"net\(x, t\)\.sample"),
        (lambda x, t: {"out": x}, r"net\(x, t\)\['out'\]"),
        (lambda x, t: (x, None), r"net\(x, t\)\[0\]"),
        (lambda x, t: [x], r"net\(x, t\)\[0\]"),
        (lambda x, t: torch.cat([x, x], 1), r"chunk\(2, 1\)\[0\]"),
        (lambda x, t: torch.cat([x, x], -1), r"chunk\(2, 3\)\[0\]"),
    ],
)
def test_what_a_network_returns_wrongly_is_told_what_to_write(net, advice):
    with pytest.raises(sd.ScoreError, match=advice):
        sd.sample(sd.ScoreModel(P, net, "velocity"), (2, 3, 4, 4), nfe=2)


MEANT = {
    "noise": ["epsilon", "eps", "Epsilon", "noise ", "NOISE", "pred_noise", "noise-prediction"],
    "data": ["x0", "x_0", "x_start", "sample", "pred_x0", "denoised", "original_sample"],
    "v": ["v_prediction", "v-prediction", "V"],
    "velocity": ["flow", "flow_matching", "vector_field", "velocty"],
    "score": ["scores", "Score"],
}


@pytest.mark.parametrize(("meant", "text"), [(meant, text) for meant, texts in MEANT.items() for text in texts])
def test_other_names_of_predictions_are_known(meant, text):
    with pytest.raises(sd.InvalidArgumentError, match=f"did you mean '{meant}'"):
        sd.ScoreModel(P, by_name, text)


def test_what_is_no_prediction_names_all():
    for wrong in (None, 3, "banana"):
        with pytest.raises(sd.InvalidArgumentError, match="'velocity'") as caught:
            sd.ScoreModel(P, by_name, wrong)
        assert "did you mean" not in str(caught.value)


def test_a_wrapper_says_nothing_of_a_network_in_eval_mode(recwarn):
    net = torch.nn.DataParallel(torch.nn.Linear(2, 2).eval())
    model = sd.ScoreModel(sd.VP(), lambda x, t: net(x), "noise")
    sd.sample(model, (3, 2), nfe=3, seed=0)
    assert not recwarn
    net.train()
    with pytest.warns(UserWarning, match="training mode"):
        sd.sample(model, (3, 2), nfe=3, seed=0)


def test_a_deep_copy_has_a_network_of_its_own():
    net = torch.nn.Linear(2, 2).eval()
    for model in (sd.ScoreModel(sd.VP(), lambda x, t: net(x), "noise"), sd.ScoreModel(sd.VP(), net_of_x(net), "noise")):
        twin, shallow = copy.deepcopy(model), copy.copy(model)
        assert shallow.module is net
        assert twin.module is not net
        assert torch.equal(sd.sample(twin, (3, 2), nfe=3, seed=0), sd.sample(model, (3, 2), nfe=3, seed=0))


def net_of_x(net):
    return functools.partial(lambda net, x, t: net(x), net)
