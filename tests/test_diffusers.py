"""diffusers both ways: the same samples as its own schedulers, and our solvers inside of its pipelines."""

from __future__ import annotations

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from cases import mostly_slow

import sdegen as sd

diffusers = pytest.importorskip("diffusers")

from sdegen.adapters import diffusers as adapter  # noqa: E402 - needs the library
from sdegen.solvers.tableaus import EULER  # noqa: E402

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
V = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
LEVEL = {"final_sigmas_type": "sigma_min"}
STRAIGHT = sd.RungeKutta(EULER, sd.FLOW)
SHAPE = (2, 3, 8, 8)


def scheduler(name, *settings, **more):
    merged = {key: value for part in (*settings, more) for key, value in part.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**merged)


def ddim(*settings, **more):
    return scheduler("DDIMScheduler", SD15, {"clip_sample": False}, *settings, **more)


def dpm(*settings, **more):
    return scheduler("DPMSolverMultistepScheduler", *(settings or (SD15,)), **more)


CASES = {
    "ddim": (ddim(), sd.ddim(), {"nfe": 10}),
    "ddim, end at a level": (ddim(set_alpha_to_one=False), sd.ddim(), {"nfe": 10}),
    "ddim, trailing": (ddim(timestep_spacing="trailing"), sd.ddim(), {"nfe": 10}),
    "ddim, v, zero SNR": (ddim(V), sd.ddim(), {"nfe": 10}),
    "ddim, data": (ddim(prediction_type="sample"), sd.ddim(), {"nfe": 10}),
    "ddim, cosine betas": (ddim(beta_schedule="squaredcos_cap_v2"), sd.ddim(), {"nfe": 10}),
    "ddim, trained betas": (
        ddim(num_train_timesteps=500, trained_betas=list(np.linspace(1e-4, 0.05, 500))),
        sd.ddim(),
        {"nfe": 10},
    ),
    "ddpm of CIFAR-10, clipped": (
        scheduler("DDIMScheduler", clip_sample=True, set_alpha_to_one=True),
        sd.ddim(),
        {"nfe": 10},
    ),
    "dpm++ 2m, linspace": (dpm(timestep_spacing="linspace", **SD15), sd.dpmpp(2), {"nfe": 10}),
    "dpm++ 2m, leading": (dpm(timestep_spacing="leading", **SD15), sd.dpmpp(2), {"nfe": 7}),
    "dpm++ 2m, trailing": (dpm(timestep_spacing="trailing", **SD15), sd.dpmpp(2), {"nfe": 7}),
    "dpm++ 2m, Karras": (dpm(use_karras_sigmas=True, **SD15), sd.dpmpp(2), {"nfe": 10}),
    "dpm++ 2m, exponential": (dpm(use_exponential_sigmas=True, **SD15), sd.dpmpp(2), {"nfe": 10}),
    "dpm++ 2m, beta": (dpm(use_beta_sigmas=True, **SD15), sd.dpmpp(2), {"nfe": 10}),
    "dpm++ 2m, lu": (dpm(use_lu_lambdas=True, **SD15), sd.dpmpp(2), {"nfe": 7}),
    "dpm++ 2m, end at a level": (dpm(final_sigmas_type="sigma_min", **SD15), sd.dpmpp(2), {"nfe": 15}),
    "dpm++ 2m, v, zero SNR": (dpm(SD15, V), sd.dpmpp(2), {"nfe": 7}),
    "dpm++ 2m, flow": (dpm(FLOW), sd.dpmpp(2), {"nfe": 10}),
    "dpm++ 1": (dpm(solver_order=1, **SD15), sd.dpmpp(1), {"nfe": 10}),
    "unipc 2": (scheduler("UniPCMultistepScheduler", SD15), sd.unipc(2), {"nfe": 10}),
    "unipc 2, Karras": (scheduler("UniPCMultistepScheduler", SD15, use_karras_sigmas=True), sd.unipc(2), {"nfe": 10}),
    "unipc 2, bh1": (
        scheduler("UniPCMultistepScheduler", SD15, LEVEL, solver_type="bh1", lower_order_final=False),
        sd.unipc(2, "bh1"),
        {"nfe": 10},
    ),
    "unipc 2, flow": (scheduler("UniPCMultistepScheduler", FLOW), sd.unipc(2), {"nfe": 10}),
    "euler, linspace": (scheduler("EulerDiscreteScheduler", SD15), sd.edm(1), {"nfe": 7}),
    "euler, leading": (scheduler("EulerDiscreteScheduler", SD15, timestep_spacing="leading"), sd.edm(1), {"nfe": 7}),
    "euler, SDXL": (scheduler("EulerDiscreteScheduler", SD15, timestep_spacing="leading"), sd.edm(1), {"nfe": 12}),
    "euler, Karras": (scheduler("EulerDiscreteScheduler", SD15, use_karras_sigmas=True), sd.edm(1), {"nfe": 10}),
    "euler, v": (
        scheduler("EulerDiscreteScheduler", SD15, V, rescale_betas_zero_snr=False),
        sd.edm(1),
        {"nfe": 10},
    ),
    "heun": (scheduler("HeunDiscreteScheduler", SD15), sd.heun(), {"steps": 9}),
    "heun, Karras": (scheduler("HeunDiscreteScheduler", SD15, use_karras_sigmas=True), sd.heun(), {"steps": 9}),
    "lms": (scheduler("LMSDiscreteScheduler", SD15), sd.lms(4), {"steps": 10}),
    "lms, Karras": (scheduler("LMSDiscreteScheduler", SD15, use_karras_sigmas=True), sd.lms(4), {"steps": 10}),
    "pndm": (scheduler("PNDMScheduler", SD15, skip_prk_steps=True), sd.pndm("heun"), {"steps": 10}),
    "deis 2": (scheduler("DEISMultistepScheduler", SD15, lower_order_final=False), sd.deis(2), {"nfe": 10}),
    "deis 2, Karras": (
        scheduler("DEISMultistepScheduler", SD15, lower_order_final=False, use_karras_sigmas=True),
        sd.deis(2),
        {"nfe": 10},
    ),
    "flow euler": (scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0), STRAIGHT, {"nfe": 10}),
    "flow euler, Karras": (
        scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, use_karras_sigmas=True),
        STRAIGHT,
        {"nfe": 7},
    ),
    "edm euler": (scheduler("EDMEulerScheduler"), sd.edm(1), {"nfe": 10}),
    "edm dpm++ 2m": (scheduler("EDMDPMSolverMultistepScheduler"), sd.dpmpp(2), {"nfe": 10}),
}
ROOTED = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
"""Schedulers whose x is divided by alpha."""


def seeded(maker, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return maker().eval()


@pytest.fixture(scope="module")
def unet():
    """A small U-Net in double precision."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    size = {"sample_size": 8, "block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 8}
    return seeded(lambda: diffusers.UNet2DModel(**blocks, **size)).double()


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def randn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def theirs(stock, net, x, n, **options):
    """diffusers' own loop."""
    stock = copy.deepcopy(stock)
    stock.set_timesteps(n)
    scaled = getattr(stock, "scale_model_input", lambda x, t: x)
    for t in stock.timesteps:
        with torch.no_grad():
            x = stock.step(net(scaled(x, t), t).sample, t, x, **options).prev_sample
    return x


def gap(ours, expected):
    return float((ours - expected).abs().max() / expected.abs().max())


FAST = (
    "ddim",
    "ddim, end at a level",
    "ddim, v, zero SNR",
    "ddpm of CIFAR-10, clipped",
    "dpm++ 2m, linspace",
    "dpm++ 2m, Karras",
    "dpm++ 2m, flow",
    "unipc 2",
    "euler, linspace",
    "euler, Karras",
    "heun",
    "lms",
    "pndm",
    "deis 2",
    "flow euler",
    "edm euler",
)


@pytest.mark.parametrize("case", mostly_slow(CASES, FAST))
def test_the_same_samples(unet, case):
    stock, solver, options = CASES[case]
    n = options.get("nfe", options.get("steps") + (case.startswith("heun")) if "steps" in options else None)
    options = {**options, "solver": solver, "grid": adapter.grid(stock)}
    x = start = randn(*SHAPE)
    if type(stock).__name__ in ROOTED:
        grid = options["grid"]
        start = x / float(grid(adapter.model(unet, stock).process, n - grid.denoise).level.alpha[0])
    if case.startswith("edm"):
        x = start = 80.0 * x
    if case.endswith("clipped"):
        expected = theirs(stock, unet, start, n, use_clipped_model_output=True)
    else:
        expected = theirs(stock, unet, start, n)
    ours = sd.sample(adapter.model(unet, stock), SHAPE, x=x, **options)
    assert gap(ours, expected) < 3e-7


class Recorded:
    """The normals that another library drew, in their order."""

    def __init__(self, seed, dtype):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, x, now, next, tag=0):
        return torch.randn(x.shape, generator=self.generator, dtype=self.dtype).to(x.dtype)


@pytest.mark.parametrize("kind", ["dpm++ 2m sde", "ddpm", "ddim eta"])
def test_the_same_samples_with_the_same_noise(unet, kind):
    stock, solver, options = {
        "dpm++ 2m sde": (dpm(algorithm_type="sde-dpmsolver++", **SD15), sd.dpmpp_sde(2), {}),
        "ddpm": (scheduler("DDPMScheduler", clip_sample=False), sd.ddpm(), {}),
        "ddim eta": (ddim(), sd.ddim(0.7), {"eta": 0.7}),
    }[kind]
    x = randn(*SHAPE)
    expected = theirs(stock, unet, x, 10, generator=torch.Generator().manual_seed(5), **options)
    ours = sd.sample(
        adapter.model(unet, stock),
        SHAPE,
        x=x,
        nfe=10,
        solver=solver,
        grid=adapter.grid(stock),
        noise=lambda seeds: Recorded(5, torch.float32 if kind.startswith("dpm++") else torch.float64),
    )
    assert gap(ours, expected) < 3e-7


def test_grids_are_those_of_the_scheduler(unet):
    """Every time that the network is told is one of theirs, for many numbers of steps."""
    for stock in (dpm(use_karras_sigmas=True, **SD15), scheduler("EulerDiscreteScheduler", SD15), dpm(FLOW)):
        model = adapter.model(unet, stock)
        for n in (2, 5, 13, 50):
            stock.set_timesteps(n)
            level = adapter.grid(stock)(model.process, n - 1).level
            told = level.t * 1000 - (0 if "flow" in str(stock.config.prediction_type) else 1)
            torch.testing.assert_close(told, stock.timesteps.double(), rtol=0, atol=1e-4)


def test_one_line_from_what_people_have(unet):
    stock = ddim()
    x = randn(*SHAPE)
    known = sd.sample(adapter.model(unet, stock), SHAPE, x=x, nfe=5)
    for given in (stock.config, dict(stock.config), {**stock.config, "_class_name": "DDIMScheduler"}):
        assert torch.equal(sd.sample(adapter.model(unet, given), SHAPE, x=x, nfe=5), known)
    ours = adapter.Scheduler(sd.heun(), config=stock)
    assert torch.equal(sd.sample(adapter.model(unet, ours), SHAPE, x=x, nfe=5), known)
    assert torch.equal(sd.sample(adapter.model(unet, ours.config), SHAPE, x=x, nfe=5), known)
    bare = adapter.model(lambda x, t: (unet(x, t).sample,), stock)  # a tuple, and a time that has another name
    assert torch.equal(sd.sample(bare, SHAPE, x=x, nfe=5, dtype=torch.float64), known)


def test_a_flows_shift_is_no_part_of_its_process(unet):
    plain, shifted = (scheduler("FlowMatchEulerDiscreteScheduler", shift=shift) for shift in (1.0, 3.0))
    x = randn(*SHAPE)
    first, second = (sd.sample(adapter.model(unet, s), SHAPE, x=x, nfe=6) for s in (plain, shifted))
    assert torch.equal(first, second)


def test_dynamic_shifting_is_a_grid(unet):
    stock = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    sigmas = lambda n: np.linspace(1, 1 / n, n)  # noqa: E731
    x = randn(*SHAPE)
    ours = sd.sample(
        adapter.model(unet, stock), SHAPE, x=x, nfe=8, solver=STRAIGHT, grid=adapter.grid(stock, mu=0.9, sigmas=sigmas)
    )
    stock.set_timesteps(sigmas=sigmas(8), mu=0.9)
    with torch.no_grad():
        for t in stock.timesteps:
            x = stock.step(unet(x, t).sample, t, x).prev_sample
    assert gap(ours, x) < 3e-7


def test_thresholds_are_theirs(unet):
    for more in ({"sample_max_value": 1.5}, {"sample_max_value": 100.0, "dynamic_thresholding_ratio": 0.9}):
        stock = scheduler("DDPMScheduler", clip_sample=False, thresholding=True, **more)
        model = adapter.model(unet, stock)
        stock.set_timesteps(10)
        t = stock.timesteps[3]
        x = 3 * randn(*SHAPE)
        with torch.no_grad():
            expected = stock.step(unet(x, t).sample, t, x).pred_original_sample
            ours = model(x, model.process.level((float(t) + 1) / 1000), "data")
        assert gap(ours, expected) < 3e-7


def test_learned_variance_is_dropped_or_used():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 8}
    size = {"sample_size": 8, "block_out_channels": (16,), "layers_per_block": 1, "in_channels": 3, "out_channels": 6}
    net = seeded(lambda: diffusers.UNet2DModel(**blocks, **size)).double()
    stock = scheduler("DDPMScheduler", variance_type="learned_range", clip_sample=False)
    model = adapter.model(net, stock)
    assert model.learned_variance
    x = randn(*SHAPE)
    expected = theirs(stock, net, x, 10, generator=torch.Generator().manual_seed(5))
    ours = sd.sample(
        model,
        SHAPE,
        x=x,
        nfe=10,
        solver=sd.ddpm("learned"),
        grid=adapter.grid(stock),
        noise=lambda seeds: Recorded(5, torch.float64),
    )
    assert gap(ours, expected) < 3e-7
    assert sd.sample(model, SHAPE, nfe=5, seed=0).shape == SHAPE


def test_half_precision_keeps_whole_times():
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, x, timestep):
            seen.append(timestep)
            return x

    model = adapter.model(Net(2, 2).bfloat16(), ddim())
    sd.sample(model, (2, 2), nfe=5, grid=adapter.grid(ddim()))
    assert {time.dtype for time in seen} == {torch.float32}
    assert [float(time[0]) for time in seen] == [801.0, 601.0, 401.0, 201.0, 1.0]


def test_zero_terminal_snr_has_no_signal_at_its_first_level(unet):
    process = adapter.model(unet, ddim(V)).process
    assert float(process.level(1.0).alpha) < 2e-9
    assert adapter.model(unet, scheduler("EulerDiscreteScheduler", SD15, V)).process.open_ends == (False, False)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: adapter.model(net, ddim(prediction_type="nonsense")), "prediction_type"),
        (lambda net: adapter.model(net, object()), "scheduler"),
        (lambda net: adapter.model(net, {"_class_name": "UNet2DModel"}), "_class_name"),
        (lambda net: adapter.model(net, {"a": 1}), "_class_name"),
        (lambda net: adapter.model(None, ddim()), "network"),
        (lambda net: adapter.model(net, scheduler("CMStochasticIterativeScheduler")), "alphas_cumprod"),
        (lambda net: adapter.model(net, scheduler("CosineDPMSolverMultistepScheduler")), "preconditioning"),
        (
            lambda net: adapter.model(net, scheduler("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)),
            "data_at=1",
        ),
        (lambda net: adapter.grid(dict(ddim().config)), "whose"),
        (lambda net: sd.ScoreModel(ddim(), net), "Process"),
        (lambda net: sd.DiscreteVP(ddim()), "betas"),
        (lambda net: adapter.Scheduler(sd.ddim(), config=ddim(), beta_strat=1.0), "beta_strat"),
        (lambda net: adapter.Scheduler(sd.ddim(), config=ddim(), tol=1e-3), "error estimate"),
        (lambda net: adapter.Scheduler(ddim(), config=ddim()), "solver"),
    ],
)
def test_mistakes_are_one_clear_error(unet, call, says):
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match=says):
        call(unet)


@pytest.mark.parametrize(
    "stock",
    [
        ddim(),
        scheduler("EulerDiscreteScheduler", SD15),
        scheduler("FlowMatchEulerDiscreteScheduler"),
        scheduler("EDMEulerScheduler"),
    ],
)
@pytest.mark.parametrize("process", [sd.VP(), sd.EDM(1e-3, 1e4), sd.Flow(), sd.DiscreteVP()])
def test_a_grid_has_its_levels_on_other_processes(unet, stock, process):
    own = adapter.model(unet, stock).process
    grid = adapter.grid(stock)
    wanted, found = (grid(on, 6).level.lam for on in (own, process))
    low, high = (float(process.level(t).lam) for t in (process.t_max, process.t_min))
    torch.testing.assert_close(found.clamp(min=-9), wanted.clamp(max(low, -9.0), high), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigmas", ["", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_lms_ends_at_zero_where_its_last_sigma_is_the_tables(unet, sigmas):
    stock = scheduler("LMSDiscreteScheduler", **({sigmas: True} if sigmas else {}))
    grid, model, x = adapter.grid(stock), adapter.model(unet, stock), randn(*SHAPE)
    start = x / float(grid(model.process, 8).level.alpha[0])
    ours = sd.sample(model, SHAPE, x=x, steps=8, solver=sd.lms(4), grid=grid)
    assert gap(ours, theirs(stock, unet, start, 8)) < 1e-6


def test_a_shift_below_one_reaches_its_last_sigma(unet):
    stock = scheduler("FlowMatchEulerDiscreteScheduler", shift=0.5)
    x = randn(*SHAPE)
    ours = sd.sample(adapter.model(unet, stock), SHAPE, x=x, nfe=5, solver=STRAIGHT, grid=adapter.grid(stock))
    stock.set_timesteps(5)
    with torch.no_grad():
        for t in stock.timesteps:
            x = stock.step(unet(x, t).sample, t, x).prev_sample
    assert gap(ours, x) < 3e-7


class FluxLike(torch.nn.Linear):
    """Called as Flux: its time is no second argument, and in [0, 1]."""

    def __init__(self):
        super().__init__(2, 2)
        self.seen = []

    def forward(self, hidden_states, words=None, timestep=None):
        self.seen.append(float(timestep[0]))
        return (super().forward(hidden_states),)


class Around(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **options):
        return self.module(*args, **options)


def test_networks_are_known_behind_what_is_around_them():
    flow = scheduler("FlowMatchEulerDiscreteScheduler")
    net = FluxLike().eval()
    for around in (net, Around(net).eval(), functools.partial(net, words=None), net.forward):
        net.seen.clear()
        sd.sample(adapter.model(around, flow), (2, 2), nfe=4)
        assert net.seen[0] == 1.0
        assert max(net.seen) <= 1.0
    function = lambda x, t: net(x, timestep=t / 1000)  # noqa: E731
    with pytest.raises(sd.InvalidArgumentError, match="level_time"):
        adapter.model(function, flow)
    sd.sample(adapter.model(function, flow, time=lambda level: 1000 * level.t), (2, 2), nfe=4)
    assert max(net.seen) <= 1.0


def test_networks_that_pipelines_turn_are_refused():
    class Lumina2Net(torch.nn.Linear):
        def forward(self, hidden_states, timestep):
            return hidden_states

    flow = scheduler("FlowMatchEulerDiscreteScheduler")
    with pytest.raises(sd.InvalidArgumentError, match="sign"):
        adapter.model(Lumina2Net(2, 2), flow)


def test_half_precision_behind_a_function_keeps_whole_times():
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, x, timestep):
            seen.append(float(timestep[0]))
            return x

    net = Net(2, 2).bfloat16().eval()
    sd.sample(adapter.model(lambda x, t: net(x, t), ddim()), (2, 2), nfe=5, grid=adapter.grid(ddim()))
    assert seen == [801.0, 601.0, 401.0, 201.0, 1.0]


def test_data_are_clipped_where_the_scheduler_itself_clips(unet):
    """A config without class name has what it says; DPM-Solver carries DDPM's clip_sample, and does not read it."""
    x, level = 9 * randn(*SHAPE), sd.DiscreteVP().level(0.3)
    euler = scheduler("EulerDiscreteScheduler", SD15)
    hidden = diffusers.DPMSolverMultistepScheduler.from_config(scheduler("DDPMScheduler", clip_sample=True).config)
    clipped = scheduler("DDPMScheduler", clip_sample=True)
    for given, bound in ((dict(euler.config), False), (hidden, False), (clipped, True), (dict(clipped.config), True)):
        with torch.no_grad():
            found = float(adapter.model(unet, given)(x, level, "data").abs().max())
        assert (found <= 1.0) is bound


def test_a_model_that_clips_moves_and_refuses_files(unet, tmp_path):
    model = adapter.model(copy.deepcopy(unet).train(), scheduler("DDPMScheduler"))
    assert model.eval() is model
    assert not model.module.training
    assert {p.dtype for p in model.to(torch.float32).parameters()} == {torch.float32}
    with pytest.raises(sd.InvalidTypeError, match=r"model\.models\[0\]"):
        model.save(tmp_path / "model.safetensors")
    inner = model.models[0]
    inner.save(tmp_path / "model.safetensors")
    twin = sd.ScoreModel.load(tmp_path / "model.safetensors", adapter.Network(copy.deepcopy(unet)))
    assert torch.equal(sd.sample(twin, SHAPE, nfe=3, seed=0), sd.sample(inner, SHAPE, nfe=3, seed=0))
    assert len(repr(model)) < 200


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: adapter.model(ddim(), net), "first the network"),
        (lambda net: adapter.model(diffusers.DDPMPipeline(net, ddim()), ddim()), "first the network"),
        (lambda net: adapter.Scheduler(ddim()), "config="),
        (lambda net: adapter.Scheduler(sd.heun()), r"config=pipe\.scheduler\.config"),
        (lambda net: adapter.grid(scheduler("PNDMScheduler")), "skip_prk_steps"),
        (lambda net: sd.ScoreModel(sd.VP(), net, prediction_type="noise"), "predicts"),
        (lambda net: sd.ScoreModel.from_pretrained("nofolder", net), "no folder"),
    ],
)
def test_slips_of_a_first_hour(unet, call, says):
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError, FileNotFoundError), match=says):
        call(unet)


def test_a_tolerance_alone_takes_the_solver_of_sample():
    assert adapter.Scheduler(config=ddim(), tol=1e-2).solver == sd.adams()


def test_a_learned_variance_that_is_no_share_of_a_range_is_dropped():
    stock = scheduler("DDPMScheduler", variance_type="learned", clip_sample=False)
    model = adapter.model(lambda x, t: torch.cat([0.5 * x, 9 * x], 1), stock)
    assert not model.learned_variance
    assert sd.sample(model, (2, 3, 4, 4), nfe=4, seed=0).shape == (2, 3, 4, 4)


def test_an_index_is_none_below_zero():
    """A network of 250 indices on a process that goes on below 1/250."""
    seen = []

    def net(x, t):
        seen.append(float(t[0]))
        return 0.5 * x

    sd.sample(sd.ScoreModel(sd.VP(), net, "noise", time=sd.model.index_time(250)), (2, 2), nfe=5)
    assert min(seen) == 0.0
    assert max(seen) == 249.0
