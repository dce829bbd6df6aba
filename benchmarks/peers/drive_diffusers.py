"""diffusers' schedulers, driven as its pipelines drive them: `set_timesteps`, then `step` for every timestep.

Three things are arranged around the unmodified schedulers, so that what is measured is the method. float32 in their
modules is float64, or their rounding would hide orders above 2; `as_shipped` leaves it. The grid is the given one: as
the sigmas of `use_exponential_sigmas=True`, or as `trained_betas` where only training levels can be visited. It has one
level more than steps are taken, so that what they do in a last step (sigma = 0, lower order) is left out. The model is
told the level that the scheduler itself computes with, not the timestep, which some round to an integer.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .measure import Denoise, Noise, Stand, replaced

_DOUBLE = {"torch": Stand(torch, float32=torch.float64), "np": Stand(np, float32=np.float64)}


@contextlib.contextmanager
def as_shipped() -> Iterator[None]:
    """float32 inside the schedulers, as they are."""
    double = dict(_DOUBLE)
    _DOUBLE.clear()
    try:
        yield
    finally:
        _DOUBLE.update(double)


@functools.cache
def _class(name: str) -> tuple[Any, Any]:
    schedulers = importlib.import_module("diffusers.schedulers")
    cls = getattr(schedulers, name)
    return importlib.import_module(cls.__module__), cls


def _sources(y: Tensor, noise: Noise | None) -> Mapping[str, Any]:
    """What stands in for a scheduler module's own sources of noise."""
    if noise is None:
        return {}
    return {
        "randn_tensor": lambda *args, **kwargs: noise(y),
        "BrownianTreeNoiseSampler": lambda *args, **kwargs: lambda now, next: noise(y, now, next),
    }


def _generators(step: Callable[..., Any], y: Tensor, noise: Noise | None) -> dict[str, Any]:
    """A generator for every sample, where `step` takes them."""
    if noise is not None or "generator" not in inspect.signature(step).parameters:
        return {}
    return {"generator": [torch.Generator().manual_seed(i) for i in range(len(y))]}


def _level(scheduler: Any) -> Any:
    """The level at which a scheduler takes the next prediction to be."""
    i = scheduler.step_index or 0
    if getattr(scheduler, "state_in_first_order", True):
        return scheduler.sigmas[i]
    if hasattr(scheduler, "mid_point_sigma"):
        return scheduler.mid_point_sigma
    if hasattr(scheduler, "sigmas_interpol"):
        # the ancestral one counts its intermediate levels from the first stage
        return scheduler.sigmas_interpol[i - 1 if hasattr(scheduler, "sigmas_up") else i]
    return scheduler.sigmas[i]


def _betas(grid: Tensor) -> list[float]:
    """The betas of a training schedule whose levels are the grid's: `prod (1 - beta) = 1 / (1 + s^2)`."""
    kept = 1 / (1 + grid.flip(0).square())
    return (1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])).tolist()


def sigmas(name: str, exploding: bool = False, stages: int = 1, **options: Any) -> Callable[..., Tensor]:
    """A scheduler that steps over `sigmas`. exploding: its samples are y, not alpha y. stages: evaluations a step."""

    def run(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        module, cls = _class(name)
        with replaced(module, **_DOUBLE, **_sources(y, noise)):
            if "use_exponential_sigmas" in inspect.signature(cls).parameters:
                scheduler = cls(use_exponential_sigmas=True, **options)
                scheduler._convert_to_exponential = lambda *args, **kwargs: grid.numpy()
            else:
                scheduler = cls(num_train_timesteps=len(grid), trained_betas=_betas(grid), **options)
            scheduler.set_timesteps(len(grid))
            scheduler.set_begin_index(0)
            generators = _generators(scheduler.step, y, noise)
            scale = torch.ones_like(grid) if exploding else torch.sqrt(1 + grid * grid)
            x = y / scale[0]
            for t in scheduler.timesteps[: stages * (len(grid) - 1)]:
                scheduler.scale_model_input(x, t)
                s = _level(scheduler)
                clean = x if exploding else x * torch.sqrt(1 + s * s)
                x = scheduler.step((clean - denoise(clean, s)) / s, t, x, **generators).prev_sample
        return x * scale[-1]

    return run


def edm(name: str, **options: Any) -> Callable[..., Tensor]:
    """A scheduler of EDM's networks, which answer F in `denoised = c_skip x + c_out F`."""

    def run(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        module, cls = _class(name)
        with replaced(module, **_DOUBLE, **_sources(y, noise)):
            scheduler = cls(sigma_schedule="exponential", **options)
            scheduler._compute_exponential_sigmas = lambda ramp: grid
            scheduler.set_timesteps(len(grid))
            scheduler.set_begin_index(0)
            generators = _generators(scheduler.step, y, noise)
            x, width = y, scheduler.config.sigma_data
            for t in scheduler.timesteps[: len(grid) - 1]:
                scheduler.scale_model_input(x, t)
                s = scheduler.sigmas[scheduler.step_index]
                total = s * s + width * width
                answer = (denoise(x, s) - width * width / total * x) * total.sqrt() / (s * width)
                x = scheduler.step(answer, t, x, **generators).prev_sample
        return x

    return run


def trained(
    name: str, extra: int = 0, keywords: Mapping[str, Any] | None = None, **options: Any
) -> Callable[..., Tensor]:
    """A scheduler that visits training levels alone: the grid's levels are the training levels, all visited.

    extra: evaluations beyond one a step. keywords: of `step`.
    """

    def run(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        module, cls = _class(name)
        levels = grid.flip(0)
        with replaced(module, **_DOUBLE, **_sources(y, noise)):
            scheduler = cls(num_train_timesteps=len(grid), trained_betas=_betas(grid), **options)
            scheduler.set_timesteps(len(grid))
            given = {**(keywords or {}), **_generators(scheduler.step, y, noise)}
            x = y / torch.sqrt(1 + grid[0] ** 2)
            for t in scheduler.timesteps[: len(grid) - 1 + extra]:
                s = levels[t]
                clean = x * torch.sqrt(1 + s * s)
                x = scheduler.step((clean - denoise(clean, s)) / s, t, x, **given).prev_sample
        return x * torch.sqrt(1 + grid[-1] ** 2)

    return run


def ipndm(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
    """IPNDM takes its sigmas as `trained_betas`, and answers of v."""
    module, cls = _class("IPNDMScheduler")
    root = torch.sqrt(1 + grid * grid)
    with replaced(module, **_DOUBLE):
        scheduler = cls(trained_betas=(grid / root).tolist())
        scheduler.set_timesteps(len(grid) - 1)
        scheduler.set_begin_index(0)
        x = y / root[0]
        for i, t in enumerate(scheduler.timesteps):
            clean = x * root[i]
            data = denoise(clean, grid[i])
            x = scheduler.step(((clean - data) / grid[i] - grid[i] * data) / root[i], t, x).prev_sample
    return x * root[-1]


def flow(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
    """Rectified flow: `x = (1 - sigma) data + sigma noise`, and the model answers noise - data."""
    module, cls = _class("FlowMatchEulerDiscreteScheduler")
    sigma = grid / (1 + grid)
    with replaced(module, **_DOUBLE):
        scheduler = cls()
        scheduler.set_timesteps(sigmas=sigma.tolist())
        scheduler.set_begin_index(0)
        x = y / (1 + grid[0])
        for i, t in enumerate(scheduler.timesteps[:-1]):
            data = denoise(x * (1 + grid[i]), grid[i])
            x = scheduler.step((x - data) / sigma[i], t, x).prev_sample
    return x * (1 + grid[-1])
