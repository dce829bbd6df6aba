"""What a step costs besides the network, beside a loop by hand and the peers.

The network is nearly free, so that times are overhead; they are per step. `python -m benchmarks.overhead` has more
methods and shapes, and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sdegen as sd
from benchmarks import overhead
from sdegen import adapters

SHAPES = ((16, 2), (64, 3, 32, 32))
VP, STEPS = overhead.VP, overhead.N
Make = Callable[[], Callable[[], Any]]


def start(*shape: int) -> torch.Tensor:
    """x at t_max."""
    return VP.prior(sd.noise.seeds(0, shape[0]), shape[1:])


def on(shape: tuple[int, ...], make: Callable[[], overhead.Run]) -> Make:
    """A sampler on one start."""

    def made() -> Callable[[], Any]:
        run, x = make(), start(*shape)
        return lambda: run(x)

    return made


def ours(solver: sd.Solver) -> Callable[[], overhead.Run]:
    """A whole `solve`."""
    return lambda: overhead.ours(solver)


def peer(library: Callable[..., overhead.Run], name: str, **options: Any) -> Callable[[], overhead.Run]:
    """One of a peer's samplers, looked for when it is run."""
    return lambda: library(name, **options)


STEPPERS: dict[str, dict[str, Callable[[], overhead.Run]]] = {
    "ddim": {
        "sdegen ddim()": ours(sd.ddim()),
        "k-diffusion euler": peer(overhead.kdiffusion, "sample_euler"),
        "diffusers DDIM": peer(overhead.diffusers, "DDIMScheduler", clip_sample=False),
        "azula DDIM": peer(overhead.azula, "DDIMSampler"),
    },
    "heun": {
        "sdegen heun()": ours(sd.heun()),
        "k-diffusion heun": peer(overhead.kdiffusion, "sample_heun"),
        "azula Heun": peer(overhead.azula, "HeunSampler"),
    },
    "dpmpp(2)": {
        "sdegen dpmpp(2)": ours(sd.dpmpp(2)),
        "sdegen default()": ours(sd.default()),
        "sdegen unipc(3)": ours(sd.unipc(3)),
        "k-diffusion dpmpp_2m": peer(overhead.kdiffusion, "sample_dpmpp_2m"),
        "diffusers DPMSolverMultistep": peer(overhead.diffusers, "DPMSolverMultistepScheduler"),
    },
    "ancestral": {
        "sdegen ddpm()": ours(sd.ddpm()),
        "sdegen euler_maruyama()": ours(sd.euler_maruyama()),
        "sdegen pc()": ours(sd.pc()),
        "k-diffusion euler_ancestral": peer(overhead.kdiffusion, "sample_euler_ancestral"),
        "diffusers DDPM": peer(overhead.diffusers, "DDPMScheduler", clip_sample=False),
    },
}


def torchdiffeq_rk4() -> Callable[[], Any]:
    """RK4 in t on the flow as a black box."""
    import torchdiffeq

    flow, x, times = _flow()
    function = adapters.for_torchdiffeq(flow)
    return lambda: torchdiffeq.odeint(function, x, times, method="rk4")[-1]


def our_rk4() -> Callable[[], Any]:
    """The same."""
    flow, x, times = _flow()
    return lambda: sd.solve(flow, x, sd.Fixed(times), sd.RungeKutta(sd.tableaus.RK4, sd.TIME))


def _flow() -> tuple[sd.ReverseSDE, torch.Tensor, torch.Tensor]:
    model = sd.ScoreModel(VP, overhead.network, "noise")
    return VP.probability_flow(model), start(256, 64), sd.grids.by_time(VP, STEPS)


def torchsde_euler() -> Callable[[], Any]:
    """Euler-Maruyama in t on the reverse SDE as a black box, with its own noise."""
    import torchsde

    x, problem = start(256, 64), adapters.for_torchsde(_reverse(), (64,))
    ts = torch.tensor([-VP.t_max, -VP.t_min])
    return lambda: torchsde.sdeint(problem, x, ts, method="euler", dt=(1 - 1e-3) / STEPS)[-1]


def our_euler() -> Callable[[], Any]:
    """The same, with noise by seed."""
    x, reverse, times = start(256, 64), _reverse(), sd.Fixed(sd.grids.by_time(VP, STEPS))
    noise = sd.White(sd.noise.seeds(1, 256))
    return lambda: sd.solve(reverse, x, times, sd.euler_maruyama(), noise=noise)


def _reverse() -> sd.ReverseSDE:
    return VP.reverse(sd.ScoreModel(VP, overhead.network, "noise"))


GROUPS: dict[str, dict[str, Make]] = {
    f"overhead of {kind}, {'x'.join(map(str, shape))}": {
        "hand loop": on(shape, lambda kind=kind: overhead.HANDS[kind]),  # type: ignore[misc]
        **{name: on(shape, make) for name, make in runs.items()},
    }
    for shape in SHAPES
    for kind, runs in STEPPERS.items()
}
GROUPS |= {
    "overhead of rk4 in t, 256x64": {"torchdiffeq rk4": torchdiffeq_rk4, "sdegen RungeKutta(RK4)": our_rk4},
    "overhead of euler-maruyama in t, 256x64": {"torchsde euler": torchsde_euler, "sdegen euler_maruyama()": our_euler},
}


def units(result: Any) -> int:
    """Steps."""
    return STEPS


def test_overhead(beside: Callable[[], None]) -> None:
    """Per step."""
    beside()
