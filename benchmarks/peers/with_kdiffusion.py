"""k-diffusion's samplers: functions of `(denoiser(x, sigma), x, sigmas)`, in the variables used here."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import sdegen as sd

from .measure import Denoise, Noise, Sampler, Stand, replaced

PEER = "k-diffusion"
_CHURN = 168, 336, 672
"""Step counts beyond the cap of the churn, 40 / n < sqrt(2) - 1."""


def version() -> str:
    """The installed version. Raises PackageNotFoundError where there is none."""
    return importlib.metadata.version("k-diffusion")


@functools.cache
def _sampling() -> Any:
    """`k_diffusion.sampling`, loaded alone.

    The package's `__init__` imports its training code, and `utils` imports torchvision, which has no build beside a CPU
    torch that it would not replace. The samplers use neither: an empty package and an empty `torchvision.transforms`
    stand in while `sampling.py` and `utils.py`, unchanged, are loaded.
    """
    where = importlib.util.find_spec("k_diffusion")
    if where is None or where.submodule_search_locations is None:
        raise ModuleNotFoundError("k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(where.submodule_search_locations)
    vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    vision.transforms, transforms.functional = transforms, None  # type: ignore[attr-defined]
    stands = {"k_diffusion": package, "torchvision": vision, "torchvision.transforms": transforms}
    before = {name: sys.modules.get(name) for name in stands}
    sys.modules.update(stands)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


@contextlib.contextmanager
def _double() -> Iterator[None]:
    """float64 as the default dtype: some samplers make their grids in the default one."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


def _run(name: str, takes_noise: bool = False, **options: Any) -> Callable[..., Tensor]:
    def run(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
        module = _sampling()
        given: dict[str, Any] = dict(options)
        if takes_noise and noise is None:
            ends = 0.9 * grid.min(), 1.1 * grid.max()
            given["noise_sampler"] = module.BrownianTreeNoiseSampler(y, *ends, seed=list(range(len(y))))
        elif takes_noise:
            given["noise_sampler"] = lambda now, next: noise(y, now, next)
        draw = torch.randn_like if noise is None else noise
        with _double(), replaced(module, torch=Stand(torch, randn_like=draw)):
            result: Tensor = getattr(module, name)(denoise, y, grid, disable=True, **given)
        return result

    return run


def _fast(denoise: Denoise, y: Tensor, grid: Tensor, noise: Noise | None) -> Tensor:
    """`sample_dpm_fast` counts evaluations and makes its own grid, even in log-SNR."""
    with _double():
        ends = float(grid[-1]), float(grid[0])
        result: Tensor = _sampling().sample_dpm_fast(denoise, y, *ends, len(grid) - 1, disable=True)
    return result


def samplers() -> list[Sampler]:
    """The samplers on a given grid, and `dpm_fast`; `dpm_adaptive` has a tolerance in place of a step."""
    noisy = functools.partial(_run, takes_noise=True)
    sde2, single = sd.Multistep(order=2, frame=sd.DATA, eta=1.0), sd.dpmpp_sde(2, singlestep=True)
    return [
        Sampler("euler", _run("sample_euler"), 1, sd.ddim(), same=1e-13),
        Sampler("heun", _run("sample_heun"), 2, sd.heun(), evals=2, same=1e-13),
        Sampler("dpm_2", _run("sample_dpm_2"), 2, sd.dpm(2), evals=2, same=1e-13),
        Sampler("lms (order 4)", _run("sample_lms"), 4, sd.lms(4), memory=True, same=1e-12),
        Sampler(
            "dpm_fast",
            _fast,
            3,
            sd.Multistep(3, sd.NOISE),
            even_only=True,
            note="its last one or two steps have orders 2 and 1",
        ),
        Sampler(
            "dpmpp_2s_ancestral(eta=0)",
            _run("sample_dpmpp_2s_ancestral", eta=0.0),
            2,
            sd.dpmpp(2, singlestep=True),
            evals=2,
            same=1e-13,
        ),
        Sampler("dpmpp_2m", _run("sample_dpmpp_2m"), 2, sd.dpmpp(2), memory=True, same=1e-13),
        Sampler(
            "dpmpp_3m_sde(eta=0)",
            _run("sample_dpmpp_3m_sde", eta=0.0),
            3,
            sd.dpmpp(3),
            memory=True,
            note="its second divided difference is half the second derivative it stands for",
        ),
        Sampler(
            "euler, s_churn=40",
            _run("sample_euler", s_churn=40.0),
            1,
            sd.edm(1, churn=40.0),
            stochastic=True,
            steps=_CHURN,
        ),
        Sampler(
            "heun, s_churn=40", _run("sample_heun", s_churn=40.0), 2, sd.edm(churn=40.0), stochastic=True, steps=_CHURN
        ),
        Sampler(
            "heun, s_churn=40, s_noise=1.007",
            _run("sample_heun", s_churn=40.0, s_noise=1.007),
            None,
            None,
            stochastic=True,
            steps=_CHURN,
            note="the noise it adds is larger than that of the level it goes to",
        ),
        Sampler("euler_ancestral", noisy("sample_euler_ancestral"), 1, sd.ancestral(), stochastic=True, same=1e-12),
        Sampler("dpm_2_ancestral", noisy("sample_dpm_2_ancestral"), 2, sd.dpm_ancestral(), True, evals=2, same=1e-12),
        Sampler(
            "dpmpp_2s_ancestral",
            noisy("sample_dpmpp_2s_ancestral"),
            2,
            sd.dpmpp_ancestral(),
            stochastic=True,
            evals=2,
            same=1e-12,
        ),
        Sampler("dpmpp_sde", noisy("sample_dpmpp_sde"), 2, single, stochastic=True, brownian=True, evals=2),
        Sampler(
            "dpmpp_sde, independent noise_sampler",
            noisy("sample_dpmpp_sde"),
            2,
            single,
            stochastic=True,
            evals=2,
            note="a step draws twice over the same levels, and needs one Brownian path for both",
        ),
        Sampler(
            "dpmpp_2m_sde midpoint", noisy("sample_dpmpp_2m_sde"), 2, sd.dpmpp_sde(2), True, memory=True, same=1e-12
        ),
        Sampler(
            "dpmpp_2m_sde heun",
            noisy("sample_dpmpp_2m_sde", solver_type="heun"),
            2,
            sde2,
            True,
            memory=True,
            same=1e-12,
        ),
        Sampler(
            "dpmpp_3m_sde",
            noisy("sample_dpmpp_3m_sde"),
            3,
            sd.dpmpp_sde(3),
            True,
            memory=True,
            note="one normal a step allows weak order 2",
        ),
    ]
