"""What a step costs besides the network, in time and memory, beside the peers and the least that could do the job.

`python -m benchmarks.overhead` prints it, `--write` puts it into docs/overhead.md, `--quick` takes fewer rounds. All
run in one process, interleaved, with one thread: the network is `x * -0.5`, whose own time is taken off. The time of a
whole call is divided by its steps, so that what is prepared before the first step counts too; medians over rounds.
"""

from __future__ import annotations

import importlib
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.page import arguments, publish
from benchmarks.peers import with_kdiffusion
from sdegen.testing.guards import peak_memory

N = 20
SHAPES = ((4096, 2), (64, 3, 32, 32), (8, 4, 128, 128))
EDM, VP = sd.EDM(), sd.VP()
PAGE = Path(__file__).parents[1] / "docs" / "overhead.md"
BEGIN = "<!-- begin: benchmarks.overhead -->"
Run = Callable[[Tensor], Any]


def network(x: Tensor, t: Any) -> Tensor:
    """Nearly nothing."""
    return x * -0.5


def _levels() -> list[tuple[float, float]]:
    level = VP.level(sd.grids.by_snr(VP, N))
    return list(zip(level.alpha.tolist(), level.sigma.tolist()))


def hand_ddim(x: Tensor) -> Tensor:
    """DDIM over Python floats."""
    rows = _levels()
    for (a0, s0), (a1, s1) in zip(rows, rows[1:]):
        x = (a1 / a0) * x + (s1 - a1 / a0 * s0) * network(x, None)
    return x


def hand_heun(x: Tensor) -> Tensor:
    """Heun in sigma/alpha over Python floats, noise prediction."""
    rows = _levels()
    for (a0, s0), (a1, s1) in zip(rows, rows[1:]):
        first = network(x, None)
        ahead = (a1 / a0) * x + (s1 - a1 / a0 * s0) * first
        x = (a1 / a0) * x + (s1 - a1 / a0 * s0) / 2 * (first + network(ahead, None))
    return x


def hand_dpmpp(x: Tensor) -> Tensor:
    """DPM-Solver++ 2M over Python floats."""
    rows = _levels()
    lam = [math.log(a / s) for a, s in rows]
    old = None
    for k, ((a0, s0), (a1, s1)) in enumerate(zip(rows, rows[1:])):
        data = (1 / a0) * x - (s0 / a0) * network(x, None)
        w = -a1 * math.expm1(lam[k] - lam[k + 1])
        x = (s1 / s0) * x + w * data if old is None else _second(x, s1 / s0, w, data, old, lam, k)
        old = data
    return x


def _second(x: Tensor, decay: float, w: float, data: Tensor, old: Tensor, lam: list[float], k: int) -> Tensor:
    half = 0.5 * (lam[k + 1] - lam[k]) / (lam[k] - lam[k - 1])
    return decay * x + w * (1 + half) * data - w * half * old


def hand_ancestral(x: Tensor) -> Tensor:
    """DDPM's posterior over Python floats, with torch's own normals."""
    rows = _levels()
    for (a0, s0), (a1, s1) in zip(rows, rows[1:]):
        c = (a1 * s0 / (a0 * s1)) ** -2
        keep, std = (s1 / s0) * c**0.5, s1 * (1 - c) ** 0.5
        data = (1 / a0) * x - (s0 / a0) * network(x, None)
        x = keep * x + (a1 - keep * a0) * data + std * torch.randn_like(x)
    return x


HANDS: dict[str, Run] = {
    "ddim": hand_ddim, "heun": hand_heun, "dpmpp(2)": hand_dpmpp, "ancestral": hand_ancestral
}  # fmt: skip


def ours(solver: sd.Solver) -> Run:
    """A whole `solve`."""
    model, control = sd.ScoreModel(VP, network, "noise"), sd.Fixed(sd.grids.by_snr(VP, N))

    def run(x: Tensor) -> Any:
        noise = sd.White(sd.noise.seeds(0, len(x))) if solver.stochastic else None
        return sd.solve(model, x, control, solver, noise=noise).x

    return run


def kdiffusion(name: str, **options: Any) -> Run:
    """One of k-diffusion's functions; its network predicts the data."""
    grid = sd.grids.by_snr(EDM, N).float()
    function = getattr(with_kdiffusion._sampling(), name)
    return lambda x: function(network, x, grid, disable=True, **options)


def diffusers(name: str, **options: Any) -> Run:
    """One of diffusers' schedulers, driven as its pipelines do."""
    scheduler = getattr(importlib.import_module("diffusers"), name)(num_train_timesteps=1000, **options)

    def run(x: Tensor) -> Tensor:
        scheduler.set_timesteps(N)
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        return x

    return run


def azula(name: str, **options: Any) -> Run:
    """One of azula's samplers."""
    denoise, noise = importlib.import_module("azula.denoise"), importlib.import_module("azula.noise")

    class Plain(denoise.Denoiser):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return denoise.DiracPosterior(network(x_t, t))

    sampler = getattr(importlib.import_module("azula.sample"), name)(Plain(), steps=N, silent=True, **options)
    result: Run = sampler
    return result


def groups() -> dict[str, dict[str, Run]]:
    """Samplers of one kind, by name; those that are no peer's stand in a group of their own."""
    found: dict[str, dict[str, Run]] = {
        "ddim": {
            "sdegen ddim()": ours(sd.ddim()),
            "k-diffusion euler": kdiffusion("sample_euler"),
            "diffusers DDIM": diffusers("DDIMScheduler", clip_sample=False),
            "azula DDIM": azula("DDIMSampler"),
        },
        "heun": {
            "sdegen heun()": ours(sd.heun()),
            "k-diffusion heun": kdiffusion("sample_heun"),
            "azula Heun": azula("HeunSampler"),
        },
        "dpmpp(2)": {
            "sdegen dpmpp(2)": ours(sd.dpmpp(2)),
            "k-diffusion dpmpp_2m": kdiffusion("sample_dpmpp_2m"),
            "diffusers DPMSolverMultistep": diffusers("DPMSolverMultistepScheduler"),
        },
        "unipc(3)": {
            "sdegen unipc(3)": ours(sd.unipc(3)),
            "diffusers UniPC(3)": diffusers("UniPCMultistepScheduler", solver_order=3),
        },
        "deis(3)": {
            "sdegen deis(3)": ours(sd.deis(3)),
            "diffusers DEIS(3)": diffusers("DEISMultistepScheduler", solver_order=3),
            "azula zEAB(3)": azula("zEABSampler", order=3),
        },
        "lms(4)": {
            "sdegen lms(4)": ours(sd.lms(4)),
            "k-diffusion lms": kdiffusion("sample_lms"),
            "diffusers LMS": diffusers("LMSDiscreteScheduler"),
        },
        "ancestral": {
            "sdegen ddpm()": ours(sd.ddpm()),
            "k-diffusion euler_ancestral": kdiffusion("sample_euler_ancestral"),
            "diffusers DDPM": diffusers("DDPMScheduler", clip_sample=False),
            "azula DDPM": azula("DDPMSampler"),
        },
    }
    for kind, hand in HANDS.items():
        found[kind] = {"hand loop": hand, **found[kind]}
    rest = {
        "default()": sd.default(),
        "dpm(2)": sd.dpm(2),
        "dpm(3)": sd.dpm(3),
        "dpmpp(3)": sd.dpmpp(3),
        "unipc(5)": sd.unipc(5),
        "pndm()": sd.pndm(),
        "rk4": sd.RungeKutta(sd.tableaus.RK4),
        "edm(churn=40)": sd.edm(churn=40.0),
        "dpmpp_sde(2)": sd.dpmpp_sde(2),
        "seeds(2)": sd.seeds_solver(2),
        "sa_solver(3)": sd.sa_solver(3),
        "er_sde(3)": sd.er_sde(3),
        "dpmpp_ancestral()": sd.dpmpp_ancestral(),
        "euler_maruyama()": sd.euler_maruyama(),
        "stochastic_heun()": sd.stochastic_heun(),
        "pc()": sd.pc(),
    }
    found["no peer here"] = {f"sdegen {name}": ours(solver) for name, solver in rest.items()}
    return found


def evaluations(run: Run, x: Tensor) -> int:
    """How often a run calls the network."""
    code, seen = network.__code__, 0

    def watch(frame: Any, event: str, arg: Any) -> None:
        nonlocal seen
        seen += event == "call" and frame.f_code is code

    sys.setprofile(watch)
    try:
        run(x)
    finally:
        sys.setprofile(None)
    return seen


def measure(shape: tuple[int, ...], rounds: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Microseconds a step outside of the network, and peak memory in states, of every sampler on one shape."""
    x = VP.prior(sd.noise.seeds(0, shape[0]), shape[1:])
    runs = {(kind, name): run for kind, group in groups().items() for name, run in group.items()}
    calls = {key: evaluations(run, x) for key, run in runs.items()}
    memory = {key: peak_memory(lambda run=run: run(x)) / x.nbytes for key, run in runs.items()}  # type: ignore[misc]
    seconds: dict[Any, list[float]] = {key: [] for key in [*runs, None]}
    for _ in range(rounds):
        for key, run in runs.items():
            began = time.perf_counter()
            run(x)
            seconds[key].append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(N):
            network(x, None)
        seconds[None].append(time.perf_counter() - began)
    once = statistics.median(seconds[None]) / N
    return {key: ((statistics.median(seconds[key]) - calls[key] * once) / N * 1e6, memory[key]) for key in runs}


def report(rounds: int) -> str:
    """A table per kind of method."""
    seen = {shape: measure(shape, rounds) for shape in SHAPES}
    head = "| sampler | " + " | ".join(f"{' x '.join(map(str, shape))}: us, states" for shape in SHAPES) + " |"
    parts = [f"Medians of {rounds} rounds of {N} steps, one thread, torch {torch.__version__}, float32."]
    for kind, group in groups().items():
        rows = []
        for name in group:
            cells = []
            for shape in SHAPES:
                us, states = seen[shape][kind, name]
                base = seen[shape].get((kind, "hand loop"))
                ratio = f" ({us / base[0]:.2f}x)" if base and name != "hand loop" else ""
                cells.append(f"{us:.0f}{ratio}, {states:.1f}")
            rows.append("| " + " | ".join([name, *cells]) + " |")
        parts.append("\n".join([f"### {kind}", "", head, "|---" * (len(SHAPES) + 1) + "|", *rows]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Prints the report; `--write` puts it into the page."""
    options = arguments(__doc__, quick="3 rounds in place of 15")
    warnings.simplefilter("ignore")  # peers' deprecations
    torch.set_num_threads(1)
    with torch.no_grad():
        text = report(3 if options.quick else 15)
    publish(PAGE, BEGIN, text, options.write)


if __name__ == "__main__":
    main()
