"""A step of our schedulers inside of a diffusers pipeline's loop, beside a step of its own with the same method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sdegen as sd

STEPS, SHAPE = 50, (2, 4, 64, 64)
METHODS: dict[str, tuple[str, Callable[[], Any]]] = {
    "DDIM": ("DDIMScheduler", sd.ddim),
    "DDIM, clipped": ("DDIMScheduler", sd.ddim),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", lambda: sd.dpmpp(2)),
    "UniPC": ("UniPCMultistepScheduler", lambda: sd.unipc(2)),
    "Euler": ("EulerDiscreteScheduler", lambda: sd.edm(1)),
    "Heun": ("HeunDiscreteScheduler", sd.heun),
    "flow Euler": (
        "FlowMatchEulerDiscreteScheduler",
        lambda: sd.RungeKutta(sd.solvers.tableaus.EULER, sd.FLOW),
    ),
}


def loop(make: Callable[[], Any]) -> Callable[[], int]:
    """A pipeline's loop around a network that costs nothing; how many times it steps."""
    scheduler, x, out = make(), torch.randn(SHAPE), torch.randn(SHAPE)

    def run() -> int:
        y = x
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            y = scheduler.step(out, t, y, return_dict=False)[0]
        return len(scheduler.timesteps)

    return run


def theirs(method: str) -> Any:
    """diffusers' scheduler."""
    import diffusers

    return getattr(diffusers, METHODS[method][0])(**({"clip_sample": False} if method == "DDIM" else {}))


def ours(method: str) -> Any:
    """The solver with that scheduler's config."""
    return sd.adapters.diffusers.Scheduler(METHODS[method][1](), config=theirs(method))


GROUPS = {
    f"pipeline step, {method}": {
        "diffusers": lambda method=method: loop(lambda: theirs(method)),
        "sdegen": lambda method=method: loop(lambda: ours(method)),
    }
    for method in METHODS
}


def units(result: int) -> int:
    """Times are per step, the run's set-up in them."""
    return result


def test_pipelines(beside: Callable[[], None]) -> None:
    beside()
