"""The peers' own samplers on these problems: every one with its best grid, those that do the same thing run once."""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.peers import with_azula, with_diffusers, with_kdiffusion
from benchmarks.peers.measure import Denoise, Run, Sampler
from sdegen.grids import by_snr, by_time, karras

from .problems import PROBLEMS, Problem

F64 = torch.float64
EDM = sd.EDM()
GRIDS: dict[str, Callable[..., Tensor]] = {"time": by_time, "karras": karras, "snr": by_snr}
"""`time`: even in t, the peers' own on VP (the "linspace" spacing); `karras`: rho = 7; `snr`: even in log-SNR."""
_EXTRA = {"PNDM(skip_prk_steps=True)": 1}
_OWN_GRID = ("dpm_fast",)


@dataclass(frozen=True)
class Peer:
    """A sampler and the others that gave the same result."""

    library: str
    sampler: Sampler
    same: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The library's name and the sampler's."""
        return f"{self.library} {self.sampler.name}"

    def steps(self, evaluations: int) -> int:
        """How many steps so many evaluations allow."""
        return (evaluations - _EXTRA.get(self.sampler.name, 0)) // self.sampler.evals

    def grids(self, process: sd.Process) -> tuple[str, ...]:
        """The names of the grids it is tried on."""
        if self.sampler.name in _OWN_GRID:
            return ("snr",)
        return ("karras", "snr") if isinstance(process, sd.EDM) else ("time", "karras", "snr")


def versions() -> list[str]:
    """The installed peers with their versions."""
    return [f"{library.PEER} {library.version()}" for library in _libraries()]


def _libraries() -> list[Any]:
    found = []
    for library in (with_kdiffusion, with_diffusers, with_azula):
        try:
            library.version()
        except ImportError:
            continue
        found.append(library)
    return found


def levels(process: sd.Process, times: Tensor) -> Tensor:
    """`s = sigma/alpha` at times."""
    return torch.exp(-process.level(times).lam)


def denoiser(problem: Problem) -> Denoise:
    """`E[data | y]` at level s; s is a number, or one number repeated for every row."""
    model = problem.model(EDM)

    def denoise(y: Tensor, s: Any) -> Tensor:
        return model(y, EDM.level(torch.as_tensor(s, dtype=F64).flatten()[0]), "data")

    return denoise


def end(run: Run, problem: Problem, process: sd.Process, grid: str, steps: int, noise: Any = None) -> Tensor:
    """y at t_min from the problem's starts, by a peer's sampler."""
    times = GRIDS[grid](process, steps)
    y = problem.start(process) / process.level(times[0]).alpha
    return ran(run, denoiser(problem), y, levels(process, times), noise)


def ran(run: Run, denoise: Denoise, y: Tensor, grid: Tensor, noise: Any = None) -> Tensor:
    """A peer's end; not a number where it raises on so short a grid."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return run(denoise, y.clone(), grid, noise)
        except (IndexError, ValueError, ZeroDivisionError, AssertionError, RuntimeError):
            return torch.full_like(y, math.nan)


@functools.cache
def distinct(noisy: bool) -> tuple[Peer, ...]:
    """The samplers with or without noise; those that end within 1e-7 of another on two grids are listed with it."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    problem, process, seen, found = PROBLEMS["ring"], EDM, list[Tensor](), list[Peer]()
    denoise, y = denoiser(problem), problem.start(process)[:16]
    for library in _libraries():
        for sampler in library.samplers():
            if sampler.stochastic != noisy:
                continue
            peer, ends = Peer(library.PEER, sampler), []
            for grid in ("karras", "snr"):
                noise = white(5) if noisy else None
                ends.append(ran(sampler.run, denoise, y, levels(process, GRIDS[grid](process, peer.steps(24))), noise))
            end = torch.stack(ends)
            twin = next((i for i, other in enumerate(seen) if bool((other - end).abs().max() < 1e-7)), None)
            if twin is None or sampler.brownian or found[twin].sampler.brownian:
                seen.append(end)
                found.append(peer)
            else:
                found[twin] = Peer(found[twin].library, found[twin].sampler, (*found[twin].same, peer.name))
    return tuple(found)


def white(seed: int) -> Any:
    """Independent normals, for samplers that do not say between which levels a draw lies."""
    random = torch.Generator().manual_seed(seed)
    return lambda x, now=None, next=None: torch.randn(x.shape, generator=random, dtype=x.dtype)
