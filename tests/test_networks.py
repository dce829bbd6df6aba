"""Networks of other libraries: stand-ins with exact answers, called as theirs are, and theirs where installed."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import pickle
import sys
import types
from typing import NamedTuple

import pytest
import torch
from problems import F64, MIXTURE

import sdegen as sd
from sdegen.adapters import networks

LAW = sd.GaussianMixture(**MIXTURE)
N = 6
SHIFT = torch.linspace(-1, 1, N, dtype=F64)[:, None]
BETAS = torch.linspace(1e-3, 0.06, 200, dtype=F64)
SIGMAS = sd.VE(sigma_min=0.02, sigma_max=30.0)
SBI = sd.VP(beta_min=0.01, beta_max=10.0)


class Exact(torch.nn.Module):
    """What a perfect network says of the law on one process, each sample's data moved by its `shift`."""

    def __init__(self, process, want="noise"):
        super().__init__()
        self.exact, self.want = LAW.score(process), want
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=F64))
        self.eval()

    def at(self, x, level, shift=None):
        if shift is None:
            return self.exact(x, level, self.want) + self.weight * x
        alpha, p = level.alpha, sd.model.plane(self.exact.process, level, self.want)[0]
        return self.exact(x - column(alpha) * shift, level, self.want) + column(p) * shift + self.weight * x

    def forward(self, x, t, shift=None):
        return self.at(x, self.exact.process.level(t), shift)


def column(weight):
    return weight.reshape(-1, 1)


class Denoiser(Exact):
    """EDM's D."""

    sigma_min, sigma_max = 0, float("inf")

    def __init__(self):
        super().__init__(sd.EDM(), "data")

    def round_sigma(self, sigma):
        return sigma


class Raw(Exact):
    """EDM's F, of data of scale 0.7."""

    sigma_data = 0.7

    def __init__(self):
        super().__init__(sd.EDM(), "data")

    def forward(self, x, noise_labels, shift=None):
        sigma = torch.exp(4 * noise_labels)
        norm = torch.sqrt(sigma**2 + 0.7**2)[:, None]
        skip, out = 0.7**2 / norm**2, sigma[:, None] * 0.7 / norm
        return (self.at(x * norm, sd.EDM().level(sigma), shift) - skip * x * norm) / out


class Indexed(Exact):
    """A network at the index, or a label that stands for it; with a second half of channels where one is learned."""

    def __init__(self, process, want="noise", labels=None, learned=False, whole=False):
        super().__init__(process, want)
        steps = process.steps
        self.labels = torch.arange(steps, dtype=F64) if labels is None else labels
        self.learned, self.whole = learned, whole

    def forward(self, x, timesteps, shift=None):
        assert not self.whole or timesteps.dtype == torch.int64
        low = torch.searchsorted(self.labels, timesteps.to(F64).contiguous()).sub(1).clamp(0, len(self.labels) - 2)
        left, right = self.labels[low], self.labels[low + 1]
        index = low + (timesteps - left) / (right - left)
        out = super().forward(x, (index + 1) / len(self.labels), shift)
        return torch.cat([out, 7 + out], 1) if self.learned else out


class TimeFirst(Exact):
    """torchcfm's: time comes first, and data are at 1."""

    def __init__(self):
        super().__init__(sd.Flow(), "velocity")

    def forward(self, t, x, shift=None):
        return -super().forward(x, 1 - t, shift)


class DataAtOne(Exact):
    """flow_matching's: data are at 1."""

    def __init__(self):
        super().__init__(sd.Flow(), "velocity")

    def forward(self, x, t, **extras):
        return -super().forward(x, 1 - t, **extras)


class Labelled(Exact):
    """score_sde's, at the times that its labels stand for."""

    def __init__(self, process, want, time):
        super().__init__(process, want)
        self.time = time

    def forward(self, x, labels, shift=None):
        return super().forward(x, self.time(labels), shift)


class Posterior(NamedTuple):
    mean: torch.Tensor


class WithPosterior(Exact):
    """azula's, on a schedule that has neither noise at 0 nor signal at 1."""

    def __init__(self):
        super().__init__(sd.Process.from_functions(cosine, sine, t_min=0.0), "data")

    @staticmethod
    def schedule(t):
        return cosine(t), sine(t)

    def forward(self, x_t, t, shift=None):
        return Posterior(super().forward(x_t, t, shift))


def cosine(t):
    return torch.cos(torch.pi / 2 * t).clamp(min=0.0) * (t < 1)


def sine(t):
    return torch.sin(torch.pi / 2 * t)


class Mean(NamedTuple):
    """An enumeration's member, as far as it is read."""

    name: str


class Diffusion(torch.nn.Module):
    """What guided-diffusion's and denoising-diffusion-pytorch's GaussianDiffusion hold."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def gaussian_diffusion(mean="EPSILON", variance="LEARNED_RANGE", **more):
    return Diffusion(betas=BETAS.numpy(), model_mean_type=Mean(mean), model_var_type=Mean(variance), **more)


def lucid(objective, want, **more):
    model = Indexed(sd.DiscreteVP(BETAS), want, whole=True, **more)
    return Diffusion(model=model, num_timesteps=len(BETAS), objective=objective, betas=BETAS)


def sigma_time(labels):
    return SIGMAS.time(-torch.log(labels))


def falling_time(labels):
    assert labels.dtype == torch.int64
    return 1 - labels.to(F64) / 99


def label_time(labels):
    return labels / 999


SPACED = torch.arange(9, 200, 10, dtype=F64)
CUT = 1 - torch.cumprod(1 - BETAS, 0)[9::10] / torch.cumprod(1 - BETAS, 0)[9::10].roll(1)
CUT[0] = 1 - torch.cumprod(1 - BETAS, 0)[9]
DISCRETE = sd.DiscreteVP(torch.linspace(0.1, 20.0, 100, dtype=F64) / 100)


def spaced_diffusion():
    parts = dict(timestep_map=SPACED.long().tolist(), original_num_steps=200, rescale_timesteps=True)
    made = gaussian_diffusion("START_X", "FIXED_SMALL", **parts)
    made.betas = CUT.numpy()
    return made


CASES = {
    "edm D": lambda c: networks.edm(Denoiser(), **c),
    "edm F": lambda c: networks.edm(Raw(), **c),
    "edm, said": lambda c: networks.edm(
        Exact(sd.EDM(0.01, 50.0), "data"), predicts="data", sigma_min=0.01, sigma_max=50.0, **c
    ),
    "k_diffusion": lambda c: networks.k_diffusion(Wrapped(Denoiser()), **c),
    "guided": lambda c: networks.guided_diffusion(Indexed(sd.DiscreteVP(BETAS), learned=True), betas=BETAS, **c),
    "guided, learned range": lambda c: networks.guided_diffusion(
        Indexed(sd.DiscreteVP(BETAS), learned=True), gaussian_diffusion(), **c
    ),
    "guided, learned": lambda c: networks.guided_diffusion(
        Indexed(sd.DiscreteVP(BETAS), learned=True), gaussian_diffusion(variance="LEARNED"), **c
    ),
    "guided, rescaled": lambda c: networks.guided_diffusion(
        Indexed(sd.DiscreteVP(BETAS), labels=torch.arange(200, dtype=F64) * 5),
        gaussian_diffusion(variance="FIXED_LARGE", rescale_timesteps=True),
        **c,
    ),
    "guided, spaced": lambda c: networks.guided_diffusion(
        Indexed(sd.DiscreteVP(CUT), "data", labels=SPACED * 5), spaced_diffusion(), **c
    ),
    "denoising, noise": lambda c: networks.denoising_diffusion_pytorch(lucid("pred_noise", "noise"), **c),
    "denoising, data": lambda c: networks.denoising_diffusion_pytorch(lucid("pred_x0", "data", learned=True), **c),
    "denoising, v": lambda c: networks.denoising_diffusion_pytorch(lucid("pred_v", "v"), **c),
    "velocity, data at 1": lambda c: networks.velocity(DataAtOne(), **c),
    "velocity, time first": lambda c: networks.velocity(TimeFirst(), **c),
    "velocity, data at 0": lambda c: networks.velocity(Exact(sd.Flow(), "velocity"), data_at=0, **c),
    "score_sde VP": lambda c: networks.score_sde(Labelled(sd.VP(), "noise", label_time), **c),
    "score_sde SubVP": lambda c: networks.score_sde(Labelled(sd.SubVP(), "noise", label_time), sd.SubVP(), **c),
    "score_sde VE": lambda c: networks.score_sde(Labelled(SIGMAS, "score", sigma_time), SIGMAS, **c),
    "score_sde VE, indices": lambda c: networks.score_sde(
        Labelled(SIGMAS, "score", falling_time), SIGMAS, continuous=False, N=100, **c
    ),
    "score_sde VP, indices": lambda c: networks.score_sde(Indexed(DISCRETE), continuous=False, N=100, **c),
    "azula": lambda c: networks.azula(WithPosterior(), **c),
}
WHOLE = {"denoising, noise": 200, "denoising, data": 200, "denoising, v": 200, "score_sde VE, indices": 99}
"""Where times are rounded to whole numbers, and how many there are in the span of t."""


class Wrapped(torch.nn.Module):
    """A denoiser around another, as k-diffusion's for guidance."""

    def __init__(self, inner_model):
        super().__init__()
        self.inner_model = inner_model
        self.eval()

    def forward(self, x, sigma, shift=None):
        return self.inner_model(x, sigma, shift=shift)


def times(name, process, n):
    """Times from the first to the last, where the network's time needs no rounding."""
    found = sd.grids.by_snr(process, n)
    if name in WHOLE:
        found = (found * WHOLE[name]).round() / WHOLE[name]
    return found


def reference(process):
    """The exact model of the moved data, on a process."""
    return sd.ScoreModel(process, Exact(process, "v"), "v", shift=SHIFT)


def close(a, b, tol):
    return bool((a - b).norm() <= tol * (1 + b.norm()))


def states():
    """Data of the moved law, and noise."""
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    return LAW.sample(N, seed=0, dtype=F64) + SHIFT, noise


@pytest.mark.parametrize("name", CASES)
def test_every_prediction_is_exact(name):
    """At both ends and between, for networks that are exact as they are called."""
    model = CASES[name]({"shift": SHIFT})
    exact = reference(model.process)
    x, noise = states()
    for t in times(name, model.process, 6):
        level = model.process.level(t)
        noisy = model.process.perturb(x, level, noise)
        share = float(level.alpha / level.sigma)
        known = {
            "data": share > 1e-6,
            "noise": share < 1e6,
            "score": share < 1e6,
        }  # a law with an open end tells no more
        for want in (name for name in known if known[name]):
            found, right = model(noisy, level, want), exact(noisy, level, want)
            assert close(found, right, 1e-7), (float(t), want, found - right)


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_the_exact_model(name):
    """Each with its own condition, whatever the batch; a batch is filled up, so that 4 of 6 samples take two."""
    model = CASES[name]({"shift": SHIFT})
    grid = times(name, model.process, 5)
    right = sd.sample(reference(model.process), (N, 2), grid=grid, seed=3, dtype=F64)
    for size in (None, 4):
        assert close(sd.sample(model, (N, 2), grid=grid, seed=3, batch_size=size), right, 1e-7)


@pytest.mark.parametrize("name", CASES)
def test_models_are_portable(name):
    """Pickled, deep-copied, moved; the network is found behind them, with its dtype and mode."""
    model = CASES[name]({"shift": SHIFT})
    model.module.train()
    model.eval()
    grid = times(name, model.process, 3)
    right = sd.sample(model, (N, 2), grid=grid, seed=3)
    assert right.dtype == F64
    assert not model.module.training
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.module is not model.module
        assert torch.equal(sd.sample(twin, (N, 2), grid=grid, seed=3), right)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(sd.sample(twin, (N, 2), grid=grid, seed=3), right)
    assert torch.equal(sd.sample(model, (N, 2), grid=grid, seed=3), right)


# what the functions read of the objects


def test_the_span_of_an_edm_network_is_its_own():
    def span(net, **given):
        process = networks.edm(net, predicts="data", **given).process
        return process.sigma_min, process.sigma_max

    net = Denoiser()
    assert span(net) == (0.002, 80.0)
    assert span(net, sigma_max=50.0) == (0.002, 50.0)
    net.sigma_min, net.sigma_max = torch.tensor(0.25), 100.0
    assert span(net) == span(Wrapped(Wrapped(net))) == (0.25, 100.0)
    assert span(net, sigma_min=0.5) == (0.5, 100.0)
    two = Sigma()
    two.sigma_data = 0.5
    assert networks.edm(two).predicts == "data"
    assert networks.edm(Raw()).sigma_data == 0.7
    assert networks.edm(Raw(), sigma_data=0.3).sigma_data == 0.3


def test_a_denoiser_of_edm_may_answer_in_float32():
    """As EDM's own do for any x."""

    class Single(Denoiser):
        def forward(self, x, sigma):
            return super().forward(x, sigma).float()

    model, level = networks.edm(Single()), sd.EDM().level(1.0)
    assert model(torch.ones(2, 2, dtype=F64), level, "data").dtype == F64


def test_a_learned_range_of_variance_is_kept():
    net = Indexed(sd.DiscreteVP(BETAS), learned=True)
    x, level = torch.ones(3, 2, dtype=F64), sd.DiscreteVP(BETAS).level(0.5)
    assert networks.guided_diffusion(net, gaussian_diffusion()).with_fraction(x, level)[1].shape == x.shape
    for other in (gaussian_diffusion(variance="LEARNED"), None):
        assert not networks.guided_diffusion(net, other).learned_variance


def test_the_usual_betas_are_ddpms():
    assert networks.guided_diffusion(Exact(sd.VP())).process == sd.DiscreteVP()


def test_betas_may_end_at_one():
    diffusion = gaussian_diffusion("START_X", "FIXED_SMALL")
    diffusion.betas = [*BETAS.tolist(), 1.0]
    assert networks.guided_diffusion(Exact(sd.VP()), diffusion).process.open_ends == (True, False)


class WithClasses(Exact):
    """denoising-diffusion-pytorch's with classes, which it drops at random unless it is told not to."""

    def forward(self, x, time, classes, cond_drop_prob=0.5):
        return x * cond_drop_prob + classes[:, None]

    def forward_with_cond_scale(self, x, time, classes, cond_scale=1.0):
        return cond_scale * self(x, time, classes, cond_drop_prob=0.0)


def test_classes_are_not_dropped_and_guide():
    diffusion = Diffusion(model=WithClasses(sd.VP()), objective="pred_noise", betas=BETAS)
    x, classes = torch.ones(N, 2, dtype=F64), torch.arange(N, dtype=F64)
    level = sd.DiscreteVP(BETAS).level(0.5)
    for more, scale in (({}, 1.0), ({"cond_scale": 6.0}, 6.0)):
        model = networks.denoising_diffusion_pytorch(diffusion, classes=classes, **more)
        assert torch.equal(model.rows([4, 2])(x[:2], level, "noise")[:, 0], scale * classes[[4, 2]])
        assert model.module is not None


@pytest.mark.parametrize("name", ["t", "time", "timestep", "timesteps"])
def test_time_comes_first_where_it_is_named_first(name):
    space = {}
    exec(f"def net({name}, x):\n    assert {name}.ndim == 1 and x.ndim == 2\n    return x", space)  # noqa: S102
    x, level = torch.ones(2, 2), sd.Flow().level(0.5)
    for net in (space["net"], functools.partial(space["net"])):
        assert torch.equal(networks.velocity(net, data_at=0)(x, level, "velocity"), x)


def test_time_comes_first_in_a_compiled_network_too():
    net = TimeFirst()
    x, level = torch.ones(2, 2, dtype=F64), sd.Flow().level(0.5)
    compiled = networks.velocity(torch.compile(net, backend="eager"))
    assert close(compiled(x, level, "velocity"), networks.velocity(net)(x, level, "velocity"), 1e-12)


class Holder:
    def __init__(self, **held):
        vars(self).update(held)


X = torch.ones(2, 2)


def test_the_tensor_of_an_answer_is_taken_out():
    normal = torch.distributions.Normal(X, 1.0)
    for out in (X, (X,), [X], Holder(sample=X), Holder(mean=X), normal, (Holder(mean=X),)):
        assert networks.unwrapped(out) is X or torch.equal(networks.unwrapped(out), X)


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ((X, X), r"net\(x, t\)\[0\]"),
        ({"eps": X}, r"net\(x, t\)\['eps'\]"),
        (Holder(logits=X), r"net\(x, t\)\.logits"),
        (Holder(note=1, velocity=X), r"net\(x, t\)\.velocity"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_one_tensor_is_told_how_to_write(out, line):
    """By `unwrapped`, and by any score model."""
    with pytest.raises(sd.ScoreError, match=line):
        networks.unwrapped(out)
    with pytest.raises(sd.ScoreError, match=line):
        sd.ScoreModel(sd.VP(), lambda x, t: out)(X, sd.VP().level(0.5))


def rising(t):
    return torch.ones_like(t), 1 - t / 2


def plain(x, t):
    return x


class Sigma(torch.nn.Module):
    """A raw network of k-diffusion, which is asked at sigma, or EDM2's denoiser, which has sigma_data."""

    def forward(self, x, sigma):
        return x


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: networks.edm(plain), sd.InvalidArgumentError, "predicts='data' .* predicts='edm'"),
        (lambda: networks.edm(Sigma()), sd.InvalidArgumentError, "Sigma does not tell"),
        (lambda: networks.edm(Denoiser(), predicts="noise"), sd.InvalidArgumentError, "predicts='data' .* 'noise'"),
        (lambda: networks.edm(Denoiser), sd.InvalidTypeError, "instance"),
        (lambda: networks.edm(Denoiser(), sigma_min=100.0), sd.InvalidArgumentError, "minimum < maximum"),
        (lambda: networks.k_diffusion(3), sd.InvalidTypeError, "callable"),
        (
            lambda: networks.guided_diffusion(plain, gaussian_diffusion("PREVIOUS_X")),
            sd.InvalidArgumentError,
            "EPSILON",
        ),
        (
            lambda: networks.guided_diffusion(plain, gaussian_diffusion(), betas=BETAS),
            sd.InvalidArgumentError,
            "one of",
        ),
        (lambda: networks.guided_diffusion(plain, BETAS), sd.InvalidTypeError, "Tensor has no betas"),
        (lambda: networks.guided_diffusion(plain, betas=1 - BETAS), sd.InvalidArgumentError, "alphas_cumprod"),
        (lambda: networks.denoising_diffusion_pytorch(Denoiser()), sd.InvalidTypeError, "Denoiser has no model"),
        (
            lambda: networks.denoising_diffusion_pytorch(lucid("pred_score", "score")),
            sd.InvalidArgumentError,
            "unknown objective 'pred_score'",
        ),
        (lambda: networks.velocity(plain, data_at=0.5), sd.InvalidArgumentError, "data_at must be 1 .* 0 .* got 0.5"),
        (lambda: networks.velocity(3), sd.InvalidTypeError, "callable"),
        (lambda: networks.score_sde(plain, sd.Flow()), sd.InvalidTypeError, r"VP\(\), SubVP\(\) or VE\(\)"),
        (
            lambda: networks.sbi(Estimator(), torch.zeros(2, 3)),
            sd.InvalidArgumentError,
            r"observation \[3\], got \[2, 3\]",
        ),
        (lambda: networks.sbi(plain, torch.zeros(3)), sd.InvalidTypeError, "function has no condition_shape"),
        (lambda: networks.azula(plain), sd.InvalidTypeError, "function has no schedule"),
        (lambda: networks.azula(Holder(schedule=rising)), sd.InvalidArgumentError, "must fall"),
    ],
)
def test_a_mistake_is_one_clear_error(make, error, match):
    with pytest.raises(error, match=match):
        make()


# sbi


class Estimator(Exact):
    """An estimator of sbi: the law is moved by the first number of the observation."""

    condition_shape, input_shape = torch.Size([3]), torch.Size([2])
    mean_0, std_0 = torch.zeros(2), torch.ones(2)

    def __init__(self, process=SBI, want="score"):
        super().__init__(process, want)
        self.t_min, self.t_max = process.t_min, process.t_max

    input_shape = (2,)
    mean_0, std_0 = torch.tensor([[0.6, 0.6]]), torch.ones(1)

    def mean_t_fn(self, times):
        return self.exact.process.alpha(times)[..., None]

    def std_fn(self, times):
        return self.exact.process.sigma(times)[..., None]

    def forward(self, input, condition, time):
        assert condition.shape == (1, 3)
        return super().forward(input, time, condition[:, :1])


class FlowEstimator(Estimator):
    """With noise that is left at t = 0, and the mean that sbi's own has."""

    noise_scale = 1e-3

    def __init__(self):
        super().__init__(sd.Process.from_functions(left, noise_and_more, t_min=0.0), "velocity")

    def mean_t_fn(self, times):
        return (1 - times.clamp(max=0.99))[..., None]


def left(t):
    return 1.0 - t


def noise_and_more(t):
    return 1e-3 + t


@pytest.mark.parametrize("make", [Estimator, lambda: Estimator(sd.SubVP()), lambda: Estimator(SIGMAS), FlowEstimator])
def test_an_estimator_of_sbi_is_exact(make):
    estimator = make()
    model = networks.sbi(estimator, torch.tensor([0.6, 7.0, 7.0]))
    exact = sd.ScoreModel(
        model.process, Exact(estimator.exact.process, "v"), "v", shift=torch.full((N, 1), 0.6, dtype=F64)
    )
    x, noise = states()
    for t in sd.grids.by_snr(model.process, 5):
        level = model.process.level(t)
        noisy = model.process.perturb(x, level, noise)
        for want in ("noise", "data", "score", "velocity"):
            assert close(model(noisy, level, want), exact(noisy, level, want), 1e-6), (float(t), want)
    options = dict(nfe=8, seed=4)
    prior = None if isinstance(estimator, FlowEstimator) else (torch.tensor([0.6, 0.6]), 1.0)  # the model's own
    right = sd.sample(exact, (N, 2), dtype=F64, prior=prior, **options)
    for twin in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert close(sd.sample(twin, (N, 2), batch_size=4, **options), right, 1e-6)


@pytest.mark.parametrize("kind", ["vp", "ve", "subvp", "flow"])
def test_sbis_own_estimators(kind):
    """Untrained ones: their scores and their kernels are those of the model; samples start as theirs do."""
    nets = pytest.importorskip("sbi.neural_nets")
    torch.manual_seed(0)
    theta, x = 5 + 3 * torch.randn(64, 2), torch.randn(64, 3)
    made = nets.posterior_flow_nn() if kind == "flow" else nets.posterior_score_nn(sde_type=kind)
    estimator = made(theta, x).eval()
    model = networks.sbi(estimator, x[0])
    for t in sd.grids.by_time(model.process, 4):
        level, time = model.process.level(t), t.float().expand(4)
        with torch.no_grad():
            if kind == "flow":
                assert close(model(theta[:4], level, "velocity"), estimator(theta[:4], x[:1], time), 1e-6)
            else:
                assert close(model(theta[:4], level), estimator.score(theta[:4], x[:1], time), 1e-6)
                assert close(level.alpha, estimator.mean_t_fn(t).squeeze(), 1e-12)
                assert close(level.sigma, estimator.std_fn(t).squeeze(), 1e-12)
    samples = sd.sample(model, (500, 2), nfe=5, seed=0)
    assert samples.dtype == torch.float32
    first = sd.draw(model, (4000, 2), nfe=2, seed=0, path=True).path[0]
    if kind != "flow":  # which starts from a standard normal
        assert (first.mean(0) - estimator.mean_base[0]).abs().max() < 0.1 * estimator.std_base.max()
        assert (first.std(0) / estimator.std_base[0] - 1).abs().max() < 0.05


# other libraries' own classes


class Empty(types.ModuleType):
    """Stands for a package that is imported beside what is tested, and not used by it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def own_module(package, module, *unused):
    """A module of a package, without the package's `__init__` and the `unused` ones, or a skip where it is missing."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    stands = {package: types.ModuleType(package), **{name: Empty(name) for name in unused}}
    stands[package].__path__ = list(found.submodule_search_locations)
    before = {name: value for name, value in sys.modules.items() if name in stands or name.startswith(f"{package}.")}
    sys.modules.update(stands)
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        for name in [name for name in sys.modules if name in stands or name.startswith(f"{package}.")]:
            del sys.modules[name]
        sys.modules.update(before)


class Inner(Exact):
    """The network inside of a k-diffusion denoiser, at the sigma that its time stands for."""

    def __init__(self, want, sigma, process=None):
        super().__init__(sd.EDM(1e-4, 1e4) if process is None else process, want)
        self.sigma = sigma

    def forward(self, x, t, shift=None):
        """Called with `x / sqrt(1 + sigma^2)`: of a denoiser D, v is `(x / sqrt(1 + sigma^2) - D sqrt(...))/sigma`."""
        sigma = column(self.sigma(t))
        data = self.at(x * torch.sqrt(1 + sigma**2), self.exact.process.level(sigma.flatten()), shift)
        return (x * torch.sqrt(1 + sigma**2) / (1 + sigma**2) - data) / (sigma / torch.sqrt(1 + sigma**2))


class Minus(Inner):
    def forward(self, *args, **kwargs):
        return -super().forward(*args, **kwargs)


class Applied(Indexed):
    """A CompVis model."""

    alphas_cumprod = torch.cumprod(1 - BETAS, 0)

    def apply_model(self, x, t, cond):
        return self(x, t, cond)


def sigma_itself(t):
    return t


def tangent(t):
    return torch.tan(t * torch.pi / 2)


K_DIFFUSION = {
    "eps": lambda k, inner: k.external.DiscreteEpsDDPMDenoiser(inner, Applied.alphas_cumprod, quantize=False),
    "v": lambda k, inner: k.external.DiscreteVDDPMDenoiser(inner, Applied.alphas_cumprod, quantize=False),
    "CompVis": lambda k, inner: k.external.CompVisDenoiser(inner),
    "v-diffusion": lambda k, inner: k.external.VDenoiser(inner),
    "Denoiser": lambda k, inner: k.layers.Denoiser(inner, sigma_data=1.0),
}


@pytest.mark.parametrize("name", K_DIFFUSION)
def test_k_diffusions_own_denoisers(name):
    k = Holder(
        external=own_module("k_diffusion", "external", "torchvision", "torchvision.transforms"),
        layers=own_module("k_diffusion", "layers", "torchvision", "torchvision.transforms", "dctorch"),
    )
    inner = {
        "eps": lambda: Indexed(sd.DiscreteVP(BETAS)),
        "v": lambda: Indexed(sd.DiscreteVP(BETAS), "v"),
        "CompVis": lambda: Applied(sd.DiscreteVP(BETAS)),
        "v-diffusion": lambda: Inner("data", tangent),
        "Denoiser": lambda: Minus("data", sigma_itself),
    }[name]()
    denoiser = K_DIFFUSION[name](k, inner).eval()
    model = networks.k_diffusion(denoiser, **{"cond" if name == "CompVis" else "shift": SHIFT})
    exact = reference(model.process)
    if hasattr(denoiser, "sigmas"):
        assert model.process == sd.EDM(float(denoiser.sigmas[0]), float(denoiser.sigmas[-1]))
    x, noise = states()
    for t in sd.grids.by_snr(model.process, 5):
        level = model.process.level(t)
        noisy = model.process.perturb(x, level, noise)
        for want in ("data", "noise"):
            assert close(model(noisy, level, want), exact(noisy, level, want), 1e-6), (float(t), want)
    right = sd.sample(exact, (N, 2), nfe=8, seed=0, dtype=F64)
    assert close(sd.sample(model, (N, 2), nfe=8, seed=0, batch_size=4), right, 1e-6)
    assert model.module is denoiser


class Backbone(Inner):
    """azula's, at log(sigma/alpha): the data, or what its Karras preconditioning makes the data of."""

    def __init__(self, karras):
        super().__init__("data", torch.exp, sd.EDM(1e-6, 1e6))
        self.karras = karras

    def forward(self, x, t, shift=None):
        if self.karras:
            return -super().forward(x, t, shift)
        sigma = self.sigma(t)
        return self.at(x * torch.sqrt(1 + column(sigma) ** 2), self.exact.process.level(sigma), shift)


@pytest.mark.parametrize("denoiser", ["KarrasDenoiser", "SimpleDenoiser"])
@pytest.mark.parametrize("schedule", ["VE", "VP", "Cosine", "Rectified", "Decay"])
def test_azulas_own_denoisers(schedule, denoiser):
    azula = pytest.importorskip("azula")
    importlib.import_module("azula.denoise")
    made = getattr(azula.noise, f"{schedule}Schedule")()
    net = getattr(azula.denoise, denoiser)(Backbone(denoiser == "KarrasDenoiser"), made)
    model = networks.azula(net.eval(), shift=SHIFT)
    exact = reference(model.process)
    x, noise = states()
    for t in sd.grids.by_snr(model.process, 5):
        level = model.process.level(t)
        assert close(torch.stack([level.alpha, level.sigma]), torch.stack(made(t)), 1e-12)
        noisy = model.process.perturb(x, level, noise)
        for want in ("data", "noise", "velocity"):
            assert close(model(noisy, level, want), exact(noisy, level, want), 1e-6), (float(t), want)
    right = sd.sample(exact, (N, 2), nfe=8, seed=0, dtype=F64)
    assert close(sd.sample(model, (N, 2), nfe=8, seed=0, batch_size=4), right, 1e-6)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(sd.sample(twin, (N, 2), nfe=8, seed=0), sd.sample(model, (N, 2), nfe=8, seed=0))


def test_flow_matchings_own_wrapper():
    wrapper = pytest.importorskip("flow_matching.utils").ModelWrapper

    class Wrapper(wrapper):
        def forward(self, x, t, **extras):
            return self.model(x, t, **extras)

    model = networks.velocity(Wrapper(DataAtOne()).eval(), shift=SHIFT)
    right = sd.sample(reference(sd.Flow()), (N, 2), nfe=8, seed=0, dtype=F64)
    assert close(sd.sample(model, (N, 2), nfe=8, seed=0), right, 1e-7)


def test_torchcfms_own_network_takes_time_first():
    unet = own_module("torchcfm", "models.unet.unet", "torchvision")
    torch.manual_seed(0)
    net = unet.UNetModelWrapper(
        dim=(1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1,), num_classes=3, class_cond=True
    ).eval()
    with torch.no_grad():
        for part in net.parameters():
            part.add_(0.01)
    x, y, level = torch.randn(2, 1, 8, 8), torch.tensor([0, 2]), sd.Flow().level(0.25)
    found = networks.velocity(net, y=y)(x, level, "velocity")
    assert close(found, -net(torch.tensor([0.75, 0.75]), x, y), 1e-6)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_denoising_diffusion_pytorchs_own_networks(objective):
    own = own_module("denoising_diffusion_pytorch", "denoising_diffusion_pytorch_1d", "torchvision")
    torch.manual_seed(0)
    net = own.Unet1D(dim=8, dim_mults=(1, 2), channels=1)
    diffusion = own.GaussianDiffusion1D(net, seq_length=16, timesteps=50, objective=objective).eval()
    model = networks.denoising_diffusion_pytorch(diffusion)
    x = torch.randn(3, 1, 16)
    for index in (0, 20, 49):
        level = model.process.level((index + 1) / 50)
        assert abs(float(level.alpha) ** 2 - float(diffusion.alphas_cumprod[index])) < 1e-6
        with torch.no_grad():
            noise, data = diffusion.model_predictions(x, torch.full((3,), index))
            assert close(model(x, level, "noise"), noise, 1e-4)
            assert close(model(x, level, "data"), data, 1e-4)
    assert model.module is net


class Plain(torch.nn.Linear):
    def forward(self, x, t):
        return super().forward(x) * (1 + t[:, None])


@pytest.mark.parametrize(
    "make",
    [
        networks.velocity,
        lambda net: networks.score_sde(net, sd.VE(), continuous=False),
        lambda net: networks.score_sde(net),
        lambda net: networks.guided_diffusion(net),
    ],
)
def test_files_keep_times_and_predictions_of_these_networks(make, tmp_path):
    model = make(Plain(2, 2).eval())
    model.save(tmp_path / "model.safetensors")
    twin = sd.ScoreModel.load(tmp_path / "model.safetensors", Plain(2, 2))
    assert torch.equal(sd.sample(twin, (4, 2), nfe=4, seed=0), sd.sample(model, (4, 2), nfe=4, seed=0))
