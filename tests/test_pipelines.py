"""Our solvers as schedulers inside of diffusers' own pipelines."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import warnings

import pytest
import torch
from cases import mostly_slow

import sdegen as sd

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sdegen.adapters import diffusers as adapter  # noqa: E402 - needs the library
from sdegen.solvers.tableaus import EULER  # noqa: E402

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
SOLVERS = {
    "heun": (sd.heun(), {"steps": 9}),
    "unipc": (sd.unipc(3), {"nfe": 10}),
    "default": (sd.default(), {"nfe": 10}),
    "adaptive": (sd.tsit5(), {"tol": 1e-3}),
    "adaptive adams": (sd.adams(), {"tol": 1e-3}),
}
NAMES = mostly_slow(SOLVERS, ["heun", "unipc", "adaptive adams"])


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def seeded(maker, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return maker().eval()


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(solver, options, stock, **more):
    tol = {"tol": options["tol"]} if "tol" in options else {}
    return adapter.Scheduler(solver, config=stock, **tol, **more)


def gap(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.fixture(scope="module")
def vae():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    size = {"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16}
    return seeded(lambda: diffusers.AutoencoderKL(**blocks, **size))


@pytest.fixture(scope="module")
def unet():
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    size = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 16)}
    rest = {"layers_per_block": 1, "cross_attention_dim": 16, "norm_num_groups": 8, "attention_head_dim": 4}
    return seeded(lambda: diffusers.UNet2DConditionModel(**blocks, **size, **rest))


def ddim(**more):
    return diffusers.DDIMScheduler(**{**SD15, **more})


PARTS = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
LATENTS, WORDS, OTHER = randn(2, 4, 8, 8), randn(2, 5, 16, seed=2), randn(2, 5, 16, seed=3)


@pytest.fixture(scope="module")
def stable(unet, vae):
    """Stable Diffusion without its text encoder: a function of the scheduler."""
    pipe = quiet(
        diffusers.StableDiffusionPipeline(
            vae=vae, unet=unet, scheduler=ddim(), requires_safety_checker=False, **dict.fromkeys(PARTS)
        )
    )

    def run(scheduler, count=2, guidance=1.0, n=10):
        pipe.scheduler = scheduler
        return pipe(
            prompt_embeds=WORDS[:count],
            negative_prompt_embeds=OTHER[:count] if guidance > 1 else None,
            guidance_scale=guidance,
            num_inference_steps=n,
            latents=LATENTS[:count].clone(),
            output_type="latent",
        ).images

    return run


@pytest.mark.parametrize("name", NAMES)
def test_in_stable_diffusion(stable, unet, name):
    solver, options = SOLVERS[name]
    count = 1 if "tol" in options else 2  # a pipeline has one step for the batch, sample one for each
    model = adapter.model(unet, ddim(), encoder_hidden_states=WORDS[:count])
    expected = sd.sample(model, (count, 4, 8, 8), x=LATENTS[:count], solver=solver, **options)
    assert gap(stable(ours(solver, options, ddim()), count), expected) < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_on_diffusers_own_grid_the_images_are_its_own(stable, guidance):
    stock = ddim()
    expected = stable(stock, guidance=guidance)
    assert (
        gap(stable(adapter.Scheduler(sd.ddim(), config=stock, grid=adapter.grid(stock)), guidance=guidance), expected)
        < 1e-6
    )


def test_steps_for_a_batch_are_those_of_its_hardest_sample(stable, unet):
    model = adapter.model(unet, ddim(), encoder_hidden_states=WORDS)
    expected = sd.sample(model, (2, 4, 8, 8), x=LATENTS, tol=1e-4)
    found = stable(adapter.Scheduler(sd.adams(), config=ddim(), tol=1e-2))
    assert gap(found, expected) < 1e-2


@pytest.fixture(scope="module")
def three(vae):
    """Stable Diffusion 3 without its text encoders."""
    size = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    heads = {"attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "pos_embed_max_size": 32}
    words = {"joint_attention_dim": 32, "pooled_projection_dim": 64}
    net = seeded(lambda: diffusers.SD3Transformer2DModel(**size, **heads, **words))
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    none = dict.fromkeys(f"{part}{k}" for part in ("text_encoder", "tokenizer") for k in ("", "_2", "_3"))
    pipe = quiet(diffusers.StableDiffusion3Pipeline(transformer=net, scheduler=stock, vae=vae, **none))
    condition = {"encoder_hidden_states": randn(2, 5, 32), "pooled_projections": randn(2, 64)}

    def run(scheduler, count=2):
        pipe.scheduler = scheduler
        return pipe(
            prompt_embeds=condition["encoder_hidden_states"][:count],
            pooled_prompt_embeds=condition["pooled_projections"][:count],
            guidance_scale=1.0,
            num_inference_steps=10,
            latents=LATENTS[:count].clone(),
            output_type="latent",
            height=64,
            width=64,
        ).images

    return run, stock, net, condition


@pytest.mark.parametrize("name", ["euler", *NAMES])
def test_in_stable_diffusion_3(three, name):
    run, stock, net, condition = three
    solver, options = SOLVERS.get(name, (sd.RungeKutta(EULER, sd.FLOW), {"nfe": 10, "grid": adapter.grid(stock)}))
    count = 1 if "tol" in options else 2
    model = adapter.model(net, stock, **{key: value[:count] for key, value in condition.items()})
    expected = sd.sample(model, (count, 4, 8, 8), x=LATENTS[:count], solver=solver, **options)
    grid = {"grid": options["grid"]} if "grid" in options else {}
    assert gap(run(ours(solver, options, stock, **grid), count), expected) < 1e-5
    if name == "euler":
        assert gap(expected, run(stock)) < 3e-7


@pytest.fixture(scope="module")
def flux(vae):
    """Flux without its text encoders; its pipeline gives sigmas and a shift of its own, and divides times by 1000."""
    size = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": [4, 4, 8]}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    net = seeded(lambda: diffusers.FluxTransformer2DModel(**size, **heads, guidance_embeds=True))
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    none = dict.fromkeys(f"{part}{k}" for part in ("text_encoder", "tokenizer") for k in ("", "_2"))
    pipe = quiet(diffusers.FluxPipeline(transformer=net, scheduler=stock, vae=vae, **none))
    words, pooled, latents = randn(2, 5, 32), randn(2, 32), randn(2, 16, 16)

    def run(scheduler, count=2):
        pipe.scheduler = scheduler
        return pipe(
            prompt_embeds=words[:count],
            pooled_prompt_embeds=pooled[:count],
            guidance_scale=3.5,
            num_inference_steps=10,
            latents=latents[:count].clone(),
            output_type="latent",
            height=16,
            width=16,
        ).images

    def model(count):
        ids = pipe._prepare_latent_image_ids(count, 4, 4, torch.device("cpu"), torch.float32)
        return adapter.model(
            net,
            stock,
            encoder_hidden_states=words[:count],
            pooled_projections=pooled[:count],
            guidance=torch.full((count,), 3.5),
            img_ids=sd.shared(ids),
            txt_ids=sd.shared(torch.zeros(5, 3)),
        )

    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    grid = adapter.grid(
        stock, mu=calculate_shift(16, 256, 4096, 0.5, 1.15), sigmas=lambda n: torch.linspace(1, 1 / n, n).numpy()
    )
    return run, stock, model, latents, grid


@pytest.mark.parametrize("name", ["euler", *NAMES])
def test_in_flux(flux, name):
    run, stock, make, latents, grid = flux
    solver, options = SOLVERS.get(name, (sd.RungeKutta(EULER, sd.FLOW), {"nfe": 10}))
    count = 1 if "tol" in options else 2
    own = {} if "tol" in options else {"grid": grid}
    expected = sd.sample(make(count), (count, 16, 16), x=latents[:count], solver=solver, **options, **own)
    assert gap(run(ours(solver, options, stock), count), expected) < 1e-5
    if name == "euler":
        assert gap(expected, run(stock)) < 1e-6


def test_in_dit_with_a_learned_variance(vae):
    size = {"sample_size": 8, "num_layers": 1, "patch_size": 2, "in_channels": 4, "out_channels": 8}
    heads = {"attention_head_dim": 8, "num_attention_heads": 4, "num_embeds_ada_norm": 10}
    net = seeded(lambda: diffusers.DiTTransformer2DModel(**size, **heads, activation_fn="gelu-approximate"))
    stock = ddim()
    pipe = quiet(diffusers.DiTPipeline(net, vae, stock))

    def run(scheduler):
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        options = {"guidance_scale": 1.0, "num_inference_steps": 10, "output_type": "np"}
        return torch.from_numpy(pipe(class_labels=[1, 2], generator=generator, **options).images)

    assert gap(run(adapter.Scheduler(sd.ddim(), config=stock, grid=adapter.grid(stock))), run(stock)) < 1e-5
    assert run(adapter.Scheduler(sd.tsit5(), config=stock, tol=1e-2)).shape == (2, 16, 16, 3)


@pytest.fixture(scope="module")
def plain():
    """An unconditional U-Net and a DDPM pipeline around it."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 8}
    size = {"sample_size": 8, "block_out_channels": (16,), "layers_per_block": 1}
    net = seeded(lambda: diffusers.UNet2DModel(**blocks, **size))
    return net, quiet(diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(clip_sample=False)))


class Kept:
    """A scheduler's last states, as a pipeline clips and scales what it returns."""

    def __init__(self, scheduler):
        self.scheduler, self.x = scheduler, None

    def __getattr__(self, name):
        return getattr(self.scheduler, name)

    def step(self, *args, **options):
        out = self.scheduler.step(*args, **options)
        self.x = out.prev_sample
        return out


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (sd.heun(), {"steps": 9}),
        (sd.unipc(3), {"nfe": 10}),
        (sd.ddpm(), {"nfe": 10}),
        (sd.dpm_ancestral(), {"steps": 9}),
        (sd.pndm(), {"steps": 9}),
        (sd.pc(), {"steps": 9}),
        (sd.edm(churn=4.0), {"steps": 9}),
        (sd.er_sde(), {"nfe": 10}),
        (sd.adams(), {"tol": 1e-3}),
        pytest.param(sd.adaptive_heun(1.0), {"tol": 0.1}, marks=pytest.mark.slow),
    ],
)
def test_in_ddpm(plain, solver, options):
    """Noise too is that of `sample`: the pipeline's generator makes the seeds."""
    net, pipe = plain
    stock = diffusers.DDPMScheduler(clip_sample=False)
    pipe.scheduler = kept = Kept(ours(solver, options, stock))
    pipe(batch_size=1, generator=torch.Generator().manual_seed(3), num_inference_steps=10, output_type="np")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((1, 3, 8, 8), generator=generator)
    expected = sd.sample(adapter.model(net, stock), (1, 3, 8, 8), x=x, solver=solver, seed=generator, **options)
    assert gap(kept.x, expected) < 1e-5


def test_image_to_image_begins_inside(unet, vae):
    stock = ddim()
    pipe = quiet(
        diffusers.StableDiffusionImg2ImgPipeline(
            vae=vae, unet=unet, scheduler=stock, requires_safety_checker=False, **dict.fromkeys(PARTS)
        )
    )
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))

    def run(scheduler, strength):
        pipe.scheduler = scheduler
        options = {"guidance_scale": 1.0, "num_inference_steps": 10, "output_type": "latent"}
        return pipe(
            prompt_embeds=WORDS,
            image=image,
            strength=strength,
            generator=torch.Generator().manual_seed(0),
            **options,
        ).images

    for strength in (0.3, 0.55, 1.0):
        found = run(adapter.Scheduler(sd.ddim(), config=stock, grid=adapter.grid(stock)), strength)
        assert gap(found, run(stock, strength)) < 1e-6
    for solver in (sd.heun(), sd.unipc(3), sd.dpmpp_ancestral()):
        assert bool(run(adapter.Scheduler(solver, config=stock), 0.5).isfinite().all())
    with pytest.raises(sd.InvalidArgumentError, match="adaptive times are not known"):
        run(adapter.Scheduler(sd.tsit5(), config=stock, tol=1e-3), 0.5)
    with pytest.raises(sd.InvalidArgumentError, match="inside of a step"):
        run(adapter.Scheduler(sd.pndm(), config=stock), 0.5)


def test_a_multistep_method_that_begins_inside_starts_anew(plain):
    """Half of a run is the run of half of the grid, whose first step has no past."""
    net, _ = plain
    scheduler = adapter.Scheduler(sd.unipc(3), config=ddim())
    scheduler.set_timesteps(10)
    x = first = randn(2, 3, 8, 8)
    for t in scheduler.timesteps[4:]:
        with torch.no_grad():
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    model = adapter.model(net, ddim())
    times = sd.grids.by_snr(model.process, 9)[4:]
    assert gap(x, sd.sample(model, (2, 3, 8, 8), x=first, solver=sd.unipc(3), grid=times)) < 1e-6


def loop(scheduler, net, x, n=6):
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def test_states_that_a_pipeline_edits_are_gone_on_from(plain):
    """As inpainting does: the state after a step is replaced, and the next step begins there."""
    net, _ = plain
    x = randn(1, 3, 8, 8)
    mask = (randn(1, 1, 8, 8, seed=5) > 0).float()

    def run(scheduler):
        y = x
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            with torch.no_grad():
                y = scheduler.step(net(y, t).sample, t, y).prev_sample
            y = mask * y + (1 - mask) * 0.3
        return y

    stock = ddim()
    assert gap(run(adapter.Scheduler(sd.ddim(), config=stock, grid=adapter.grid(stock))), run(stock)) < 1e-6


def test_one_scheduler_in_two_threads(plain):
    net, _ = plain
    scheduler = adapter.Scheduler(sd.unipc(3), config=ddim())
    starts = [randn(2, 3, 8, 8, seed=k) for k in range(4)]
    alone = [loop(scheduler, net, x, 4 + k) for k, x in enumerate(starts)]
    found = [None] * 4

    def work(k):
        found[k] = loop(scheduler, net, starts[k], 4 + k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, alone):
        assert gap(one, other) < 1e-5


SAVED = {
    "default": {},
    "table": {"solver": sd.unipc(3), "grid": sd.grids.karras},
    "wrapped": {"solver": sd.edm(churn=4.0)},
    "noisy": {"solver": sd.er_sde(2)},
    "adaptive": {"solver": sd.tsit5(), "tol": 1e-2},
    "plan": {"solver": sd.Plan.of(sd.unipc(2), sd.DiscreteVP(), 6)},
}


@pytest.mark.parametrize("name", SAVED)
def test_save_and_load(name, tmp_path):
    scheduler = adapter.Scheduler(config=ddim(), **SAVED[name])
    scheduler.save_pretrained(tmp_path)
    json.loads((tmp_path / "scheduler_config.json").read_text())
    for twin in (
        adapter.Scheduler.from_pretrained(tmp_path),
        adapter.Scheduler.from_config(scheduler.config),
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
    ):
        assert twin.solver == scheduler.solver
        assert twin.grid is scheduler.grid
        assert twin.tol == scheduler.tol
        assert twin.config.beta_end == 0.012


def test_its_config_makes_other_schedulers_of_the_same_law():
    config = adapter.Scheduler(sd.unipc(3), config=diffusers.DDIMScheduler()).config
    for kind in (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverSDEScheduler, diffusers.PNDMScheduler):
        other = kind.from_config(config)
        assert (other.config.beta_start, other.config.beta_end) == (0.0001, 0.02)
    assert adapter.Scheduler.from_config(other.config, solver=sd.heun()).solver == sd.heun()


class Mine(sd.OneStep):
    def step(self, model, x, now, next, carry, noise):
        return sd.Step(model(x, now, "data").to(x.dtype), carry)


def test_a_solver_of_ones_own_is_given_again(tmp_path):
    adapter.Scheduler(Mine(), config=ddim()).save_pretrained(tmp_path)
    with pytest.raises(sd.InvalidArgumentError, match="Mine"):
        adapter.Scheduler.from_pretrained(tmp_path)
    assert isinstance(adapter.Scheduler.from_pretrained(tmp_path, solver=Mine()).solver, Mine)


def test_a_file_imports_nothing_but_this_library(tmp_path):
    adapter.Scheduler(sd.heun(), config=ddim()).save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    known = json.loads(path.read_text())
    for name in ("os:system", "sdegen.cli:main", "sdegen.solvers.methods:none", "sdegen.errors:SdegenError"):
        known["solver"] = {"object": name, "fields": {}}
        path.write_text(json.dumps(known))
        with pytest.raises(sd.InvalidArgumentError, match="record"):
            adapter.Scheduler.from_pretrained(tmp_path)


def test_in_a_saved_pipeline(plain, tmp_path):
    pipe = plain[1]
    pipe.scheduler = adapter.Scheduler(sd.unipc(3), config=diffusers.DDPMScheduler(clip_sample=False))
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][1] == "Scheduler"
    loaded = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path, scheduler=pipe.scheduler, local_files_only=True))
    assert loaded.scheduler.solver == sd.unipc(3)


def test_what_training_code_asks_of_a_scheduler():
    stock, scheduler = ddim(), adapter.Scheduler(sd.heun(), config=ddim())
    assert len(scheduler) == 1000
    assert scheduler.timesteps.tolist() == list(range(999, -1, -1))
    assert torch.equal(scheduler.betas, stock.betas)
    assert torch.equal(scheduler.alphas_cumprod, stock.alphas_cumprod)
    x, noise = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=2)
    times = torch.tensor([0, 500, 999])
    for dtype in (torch.float32, torch.bfloat16):
        found = scheduler.add_noise(x.to(dtype), noise.to(dtype), times)
        assert found.dtype == dtype
        known = stock.add_noise(x, noise, times)
        assert gap(found.float(), known) < (1e-6 if dtype == torch.float32 else 1e-2)
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    t = torch.tensor([250.0, 1000.0, 3.0])
    found = adapter.Scheduler(sd.heun(), config=flow).scale_noise(x, t, noise)
    assert gap(found, (1 - t / 1000).view(3, 1, 1, 1) * x + (t / 1000).view(3, 1, 1, 1) * noise) < 1e-6


def test_shapes_and_dtypes_of_time_steps():
    stock = ddim()
    on_theirs = adapter.Scheduler(sd.ddim(), config=stock, grid=adapter.grid(stock))
    on_theirs.set_timesteps(5)
    assert on_theirs.timesteps.dtype == torch.int64
    assert on_theirs.timesteps.tolist() == [801, 601, 401, 201, 1]
    heun = adapter.Scheduler(sd.heun(), config=stock, grid=adapter.grid(stock))
    heun.set_timesteps(5)
    assert heun.order == 2
    assert heun.timesteps.tolist() == [801, 601, 601, 401, 401, 201, 201, 1, 1]
    heun.set_timesteps(timesteps=[700, 300, 100])
    assert heun.timesteps.tolist() == [700, 300, 300, 100, 100]
    heun.set_timesteps(1)
    assert heun.timesteps.tolist() == [1]


def test_half_precision_states(plain):
    net, _ = plain
    x = randn(2, 3, 8, 8)
    whole = loop(adapter.Scheduler(sd.unipc(2), config=ddim()), net, x)
    scheduler = adapter.Scheduler(sd.unipc(2), config=ddim())
    scheduler.set_timesteps(6)
    y = x.half()
    for t in scheduler.timesteps:
        with torch.no_grad():
            y = scheduler.step(net(y.float(), t).sample.half(), t, y).prev_sample
        assert y.dtype == torch.float16
    assert gap(y.float(), whole) < 2e-2


@pytest.mark.parametrize("tol", [None, 1e-2])
def test_a_bad_sample_is_named_and_touches_no_other(tol):
    """The output is NaN for one sample; the others end bit for bit as they do alone."""
    scheduler = adapter.Scheduler(sd.tsit5(), config=ddim(), tol=tol)
    x = randn(3, 4)

    def run(x, bad):
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            out = x * float(t) / 1000
            if bad is not None and float(t) < 500:
                out[bad] = torch.nan
            x = scheduler.step(out, t, x).prev_sample
        return x

    fine = run(x[[0, 2]], None)
    with pytest.warns(UserWarning, match=r"samples \[1\]"):
        found = run(x, 1)
    assert torch.equal(found[[0, 2]], fine) if tol is None else gap(found[[0, 2]], fine) < 1e-2
    assert not bool(found[[0, 2]].isnan().any())


def test_a_run_is_held_to_its_times(plain):
    net, _ = plain
    scheduler = adapter.Scheduler(sd.heun(), config=ddim())
    x = randn(1, 3, 8, 8)
    with pytest.raises(sd.InvalidArgumentError, match="set_timesteps"):
        scheduler.step(x, 1, x)
    with pytest.raises(sd.InvalidArgumentError, match="at least one"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(3)
    with pytest.raises(sd.InvalidArgumentError, match="none of"):
        scheduler.step(x, 3.7, x)
    times = scheduler.timesteps
    y = scheduler.step(x, times[0], x).prev_sample
    with pytest.raises(sd.InvalidArgumentError, match="was asked for"):
        scheduler.step(y, times[0], y)
    with pytest.raises(sd.InvalidArgumentError, match="returned"):
        scheduler.step(y[:, :2], times[1], y)
    scheduler.step(y, times[1], y)  # a mistake leaves the run as it was
    loop(scheduler, net, x, 3)
    with pytest.raises(sd.InvalidArgumentError, match="done"):
        scheduler.step(x, times[0], x)
    lazy = adapter.Scheduler(sd.tsit5(), config=ddim(), tol=1e-2)
    lazy.set_timesteps(10)
    assert len(lazy.timesteps) == 10
    with pytest.raises(sd.InvalidArgumentError, match="one by one"):
        list(lazy.timesteps)


def asked(scheduler, net, x, change=lambda x: x, n=6):
    """A loop whose states go through a function on their way."""
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        x = change(x)
        with torch.no_grad():
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize("tol", [None, 1e-2])
@pytest.mark.parametrize("solver", [sd.adams(), sd.tsit5(), sd.bogacki_shampine(), sd.heun()])
def test_states_that_are_copied_are_the_same_states(plain, solver, tol):
    """As in DiT's pipeline with guidance; methods that carry a slope ask first inside of a step."""
    net, _ = plain
    scheduler, x = adapter.Scheduler(solver, config=ddim(), tol=tol if solver.adaptive else None), randn(1, 3, 8, 8)
    known = asked(scheduler, net, x)
    assert torch.equal(asked(scheduler, net, x, torch.clone), known)


@pytest.mark.parametrize("solver", [sd.adams(), sd.tsit5()])
def test_methods_that_never_ask_at_the_state_refuse_changes_of_it(plain, solver):
    scheduler = adapter.Scheduler(solver, config=ddim())
    with pytest.raises(sd.InvalidArgumentError, match="inpainting"):
        asked(scheduler, plain[0], randn(1, 3, 8, 8), lambda x: x * 1.01)


def test_a_solver_that_moves_the_state_first_begins_where_it_does_not(plain):
    """Churn's first step from t_max adds nothing; elsewhere the pipeline has asked at the wrong state."""
    churn = adapter.Scheduler(sd.edm(1, churn=4.0), config=ddim(), grid=adapter.grid(ddim()))
    with pytest.raises(sd.InvalidArgumentError, match="moves the state before it asks"):
        asked(churn, plain[0], randn(1, 3, 8, 8))


def test_a_run_that_was_prepared_outside_runs_in_inference_mode(plain):
    scheduler, x = adapter.Scheduler(sd.unipc(3), config=ddim()), randn(1, 3, 8, 8)
    known = asked(scheduler, plain[0], x)
    with torch.inference_mode():
        assert torch.equal(asked(scheduler, plain[0], x.clone()), known)


def test_sigmas_and_mu_of_a_flow_are_shifted_times():
    config = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    scheduler = adapter.Scheduler(sd.dpmpp(2), config=config)
    sigmas = torch.linspace(1.0, 0.25, 4)
    scheduler.set_timesteps(sigmas=sigmas, mu=0.9)
    e = torch.exp(torch.tensor(0.9))
    torch.testing.assert_close(scheduler.timesteps, 1000 * e / (e + 1 / sigmas - 1))
    with pytest.raises(sd.InvalidArgumentError, match="no shift"):
        adapter.Scheduler(sd.dpmpp(2), config=ddim()).set_timesteps(5, mu=0.9)


def test_runs_are_prepared_for_exactly_what_was_given():
    scheduler = adapter.Scheduler(sd.ddim(), config=diffusers.FlowMatchEulerDiscreteScheduler())
    for middle in (0.50001, 0.50004):
        scheduler.set_timesteps(sigmas=torch.tensor([1.0, middle, 0.2]))
        assert float(scheduler.timesteps[1]) == pytest.approx(1000 * middle, abs=1e-3)
    scheduler.set_timesteps(5)
    first = scheduler.timesteps
    scheduler.solver = sd.heun()
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == 2 * len(first) - 1


def test_schedulers_made_from_ours_are_their_own():
    config = adapter.Scheduler(sd.unipc(3), config=ddim()).config
    karras = diffusers.EulerDiscreteScheduler.from_config(config, use_karras_sigmas=True)
    scheduler = adapter.Scheduler(sd.edm(1), config=karras, grid=adapter.grid(karras))
    scheduler.set_timesteps(5)
    karras.set_timesteps(5)
    torch.testing.assert_close(scheduler.timesteps.float(), karras.timesteps, rtol=0, atol=1e-3)
    other = diffusers.EDMEulerScheduler.from_config(config)
    assert isinstance(adapter.model(lambda x, t: x, other).process, sd.EDM)


def test_edm_scales_its_input_whatever_the_first_sigma():
    stock = diffusers.EDMEulerScheduler(sigma_max=1.0)
    scheduler = adapter.Scheduler(sd.edm(1), config=stock)
    for one in (scheduler, stock):
        one.set_timesteps(5)
    x = randn(2, 3, 8, 8)
    t = scheduler.timesteps[0]
    assert gap(scheduler.scale_model_input(x, t), x / (1 + 0.25) ** 0.5) < 1e-6


def test_in_ddims_pipeline_and_what_else_pipelines_ask(plain):
    net, _ = plain
    pipe = quiet(diffusers.DDIMPipeline(net, ddim()))
    pipe.scheduler = scheduler = adapter.Scheduler(sd.heun(), config=ddim())
    assert pipe(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 3)
    with pytest.raises(sd.InvalidArgumentError, match=r"sd\.ddim\(1\.0\)"):
        pipe(num_inference_steps=3, eta=1.0)
    x, noise, t = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=2), torch.tensor([3, 900])
    assert gap(scheduler.get_velocity(x, noise, t), ddim().get_velocity(x, noise, t)) < 1e-6
    lazy = adapter.Scheduler(sd.tsit5(), config=ddim(), tol=1e-2)
    lazy.set_timesteps(5)
    with pytest.raises(sd.InvalidArgumentError, match="needs a grid"):
        _ = lazy.timesteps < 500


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: adapter.Scheduler(sd.adapters.torchdiffeq("dopri5"), config=ddim()), "loop of its own"),
        (lambda: adapter.Scheduler(sd.heun(), config=ddim(), grid="karras"), "grid must be"),
        (
            lambda: adapter.Scheduler(sd.Plan.of(sd.unipc(2), sd.DiscreteVP(), 6), config=ddim()).set_timesteps(5),
            "num_inference_steps=7",
        ),
    ],
)
def test_what_cannot_be_driven_is_refused(call, says):
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError), match=says):
        call()


@pytest.mark.parametrize(
    "record",
    [
        {"tensor": [1.0], "dtype": "floot"},
        {"tensor": [1.0], "dtype": "load"},
        {"float": "abc"},
        {"partial": {"function": "sdegen.grids.spacings:karras"}, "args": None, "keywords": {}},
        {"own": "Mine()"},
        {"a": 1},
    ],
)
def test_records_that_are_none_are_named(record):
    with pytest.raises(sd.InvalidArgumentError, match="record"):
        adapter.Scheduler.from_config({**ddim().config, "solver": record})


def test_the_default_dtype_is_not_read():
    """Everything that a run makes says in what precision it is."""
    config, x = ddim(), randn(2, 4)

    def run(scheduler):
        y = x
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            y = scheduler.step(0.1 * y, t, y).prev_sample
        return y

    scheduler = adapter.Scheduler(sd.unipc(3), config=config)
    known = run(scheduler)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(run(adapter.Scheduler(sd.unipc(3), config=config)), known)
    finally:
        torch.set_default_dtype(torch.float32)
