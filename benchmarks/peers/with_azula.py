"""azula's samplers, which take a denoiser with a schedule, and times even between two ends."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sdegen as sd

from .measure import Denoise, Noise, Sampler, Stand, replaced

PEER = "azula"


def version() -> str:
    """The installed version. Raises PackageNotFoundError where there is none."""
    return importlib.metadata.version("azula")


@functools.cache
def _classes() -> tuple[Any, type[Any], type[Any]]:
    """azula's sampler module, a schedule and a denoiser written against its interfaces."""
    denoise, noise = importlib.import_module("azula.denoise"), importlib.import_module("azula.noise")

    class Levels(noise.Schedule):  # type: ignore[name-defined, misc]
        """Variance preserving, through the levels of a grid at times 1, 1 - 1/n, ..., 0."""

        def __init__(self, grid: Tensor) -> None:
            self.grid = grid

        def level(self, t: Tensor) -> Tensor:
            return self.grid[((1 - t) * (len(self.grid) - 1)).round().long()]

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            s = self.level(t)
            return 1 / torch.sqrt(1 + s * s), s / torch.sqrt(1 + s * s)

    class Exact(denoise.Denoiser):  # type: ignore[name-defined, misc]
        def __init__(self, schedule: Any, exact: Denoise) -> None:
            super().__init__()
            self.schedule, self.exact = schedule, exact

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, _ = self.schedule(t)
            return denoise.DiracPosterior(self.exact(x_t / alpha, self.schedule.level(t)))

    return importlib.import_module("azula.sample"), Levels, Exact


def _run(name: str, **options: Any) -> Callable[..., Tensor]:
    def run(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        module, levels, exact = _classes()
        schedule = levels(grid)
        alpha = schedule(torch.tensor([1.0, 0.0], dtype=torch.float64))[0]
        sampler = getattr(module, name)(
            exact(schedule, denoise), steps=len(grid) - 1, silent=True, dtype=torch.float64, **options
        )
        draw = torch.randn_like if noise is None else noise
        with replaced(module, torch=Stand(torch, randn_like=draw)):
            result: Tensor = sampler(alpha[0] * y) / alpha[1]
        return result

    return run


def _adams(name: str, frame: sd.Frame, note: str = "") -> list[Sampler]:
    return [
        Sampler(
            f"{name}(order={p})",
            _run(name, order=p),
            p,
            sd.Multistep(p, frame),
            memory=True,
            note=note,
            same=None if note else 1e-12,
        )
        for p in (2, 3)
    ]


def _pc(delta: float) -> Sampler:
    """Langevin steps with noise of variance `delta sigma^2`: ours has `(2 snr sigma)^2`."""
    return Sampler(
        f"PCSampler(delta={delta})",
        _run("PCSampler", delta=delta),
        None,
        sd.PC(sd.ddim(), sd.Langevin(math.sqrt(delta) / 2)),
        stochastic=True,
        evals=2,
        steps=(168, 336, 672),
        note="where sigma is small its corrector settles at 1 - delta/4 of the right variance",
    )


def samplers() -> list[Sampler]:
    """All samplers of `azula.sample`."""
    reab = "its last factor has sqrt(alpha_s^2 + sigma_t^2) in place of sqrt(alpha_s^2 + sigma_s^2)"
    return [
        Sampler("EulerSampler", _run("EulerSampler"), 1, sd.ddim(), same=1e-13),
        Sampler("DDIMSampler(eta=0)", _run("DDIMSampler"), 1, sd.ddim(), same=1e-13),
        Sampler("HeunSampler", _run("HeunSampler"), 2, sd.heun(), evals=2, same=1e-13),
        *_adams("zABSampler", sd.SIGMA),
        *_adams("vABSampler", sd.FLOW),
        *_adams("zEABSampler", sd.NOISE),
        *_adams("xEABSampler", sd.DATA),
        *_adams("REABSampler", sd.ANGLE, reab),
        Sampler("DDPMSampler", _run("DDPMSampler"), 1, sd.ddpm(), stochastic=True, same=1e-12),
        Sampler("DDIMSampler(eta=1)", _run("DDIMSampler", eta=1.0), 1, sd.ddim(1.0), stochastic=True, same=1e-12),
        Sampler(
            "DDIMSampler(eta=0.5)",
            _run("DDIMSampler", eta=0.5),
            1,
            sd.ddim(math.sqrt(0.5)),
            stochastic=True,
            same=1e-12,
        ),
        Sampler(
            "ItoSampler(eta=1)", _run("ItoSampler"), 1, sd.Multistep(1, sd.SIGMA, eta=1.0), stochastic=True, same=1e-12
        ),
        Sampler(
            "ItoSampler(eta=0.5)",
            _run("ItoSampler", eta=0.5),
            1,
            sd.Multistep(1, sd.SIGMA, eta=0.5),
            stochastic=True,
            same=1e-12,
        ),
        *(_pc(delta) for delta in (0.01, 0.3)),
    ]
