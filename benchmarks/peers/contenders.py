"""Other libraries' samplers through one signature, `sdegen.bench.Peer`, for `sdegen bench --peers` and for sweeps.

A sampler that steps over levels `s = sigma/alpha` is driven in `y = x/alpha`, by its adapter beside this file. Those
for ordinary differential equations take `dy/dlam = D(y) - y`, `lam = -log s`, the form in which they need the fewest
evaluations, and those for stochastic ones the reverse SDE over sigma.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from sdegen.bench.contenders import Contender, Ours
from sdegen.bench.others import Peer, View
from sdegen.grids import Grid, by_snr, karras, natural

GRIDS: dict[str, Grid] = {"karras": karras, "by_snr": by_snr}
"""On which samplers that take any grid are tried."""
USUAL = frozenset({
    "k-diffusion euler", "k-diffusion heun", "k-diffusion dpmpp_2m", "k-diffusion dpmpp_2m_sde midpoint",
    "k-diffusion dpmpp_3m_sde", "k-diffusion euler_ancestral", "diffusers DDPM(fixed_small)",
    "diffusers DPMSolverMultistep(dpmsolver++, order=3)", "diffusers UniPCMultistep(order=3, bh2)",
    "diffusers DEISMultistep(order=3)", "diffusers SASolver(orders 3 and 3, tau=0)", "azula vABSampler(order=3)",
})  # fmt: skip
"""What most people use, and what is best in docs/accuracy.md: the samplers of a run that does not ask for all."""
STEPS = 20_000


def contenders(libraries: Iterable[str] = (), every: bool = False) -> list[Contender]:
    """The samplers of the installed libraries, or of those named; `every` one of them, or the usual ones.

    Raises LookupError for a library that there is no adapter for, or that is named and not installed.
    """
    wanted, found = list(libraries), list[Contender]()
    for name in wanted:
        if name not in LIBRARIES:
            raise LookupError(f"there is no adapter for {name!r}: there are {', '.join(LIBRARIES)}")
    for name, made in LIBRARIES.items():
        if wanted and name not in wanted:
            continue
        try:
            found += made(every)
        except (ImportError, PackageNotFoundError) as error:
            if wanted:
                raise LookupError(f"{name} is not installed ({error}): pip install 'sdegen[peers]'") from error
    return found


def versions() -> dict[str, str]:
    """The installed libraries with their versions."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version({"score_sde": "scipy"}.get(name, name))
        except PackageNotFoundError:
            continue
    return {"scipy (score_sde)" if name == "score_sde" else name: number for name, number in found.items()}


def _normals(x: Tensor, now: Any = None, next: Any = None) -> Tensor:
    """torch's own, for samplers that draw once a step: a Brownian tree per sample takes a hundred times as long."""
    return torch.randn_like(x)


def by_level(sampler: Any) -> Callable[[View, Tensor, Tensor, float | None], Tensor]:
    """A sampler of `(denoise, y, levels, noise)` as one of `(view, x, times, tol)`."""
    noise = _normals if sampler.stochastic and not sampler.brownian else None

    def through(view: View, x: Tensor, times: Tensor, tol: float | None) -> Tensor:
        level = view.process.level(times)
        levels = torch.exp(-level.lam)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = sampler.run(view.denoise, (x / level.alpha[0]).to(x.dtype), levels, noise)
        return y * level.alpha[-1]

    return through


def _steppers(module: str) -> Callable[[bool], list[Contender]]:
    """The samplers of an adapter beside this file."""

    def made(every: bool) -> list[Contender]:
        library = importlib.import_module(f".{module}", __package__)
        library.version()
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        found: list[Contender] = []
        for sampler in library.samplers():
            if not every and f"{library.PEER} {sampler.name}" not in USUAL:
                continue
            grids = {"by_snr": by_snr} if sampler.even_only else GRIDS
            found += [
                Peer(
                    sampler.name,
                    library.PEER,
                    by_level(sampler),
                    name,
                    grid,
                    stochastic=sampler.stochastic,
                    evals=sampler.evals,
                    version=library.version(),
                )
                for name, grid in grids.items()
            ]
        return found

    return made


def flow(view: View, x: Tensor, times: Tensor) -> tuple[Callable[[Any, Tensor], Tensor], Tensor, Tensor, Tensor]:
    """The probability flow in `lam`: its field `(lam, y) -> dy/dlam`, y at the start, lams, and alpha at the end."""
    level = view.process.level(times)

    def field(lam: Any, y: Tensor) -> Tensor:
        return view.denoise(y, torch.exp(-torch.as_tensor(lam))) - y

    return field, (x / level.alpha[0]).to(x.dtype), level.lam, level.alpha[-1]


def _torchdiffeq(method: str) -> Callable[[View, Tensor, Tensor, float | None], Tensor]:
    def run(view: View, x: Tensor, times: Tensor, tol: float | None) -> Tensor:
        field, y, lams, alpha = flow(view, x, times)
        given: dict[str, Any] = {} if tol is None else {"rtol": tol, "atol": tol, "options": {"max_num_steps": STEPS}}
        path = importlib.import_module("torchdiffeq").odeint(field, y, lams.to(y), method=method, **given)
        end: Tensor = path[-1] * alpha
        return end

    return run


def _of_torchdiffeq(every: bool) -> list[Contender]:
    importlib.import_module("torchdiffeq")
    fixed = {"rk4": 4, "midpoint": 2} if every else {"rk4": 4}
    adaptive = ("dopri5", "bosh3", "dopri8") if every else ("dopri5",)
    found: list[Contender] = [
        Peer(name, "torchdiffeq", _torchdiffeq(name), "by_snr", by_snr, evals=evals, version=version("torchdiffeq"))
        for name, evals in fixed.items()
    ]
    return found + [
        Peer(name, "torchdiffeq", _torchdiffeq(name), "own", by_snr, adaptive=True, version=version("torchdiffeq"))
        for name in adaptive
    ]


def _torchode(method: str) -> Callable[[View, Tensor, Tensor, float | None], Tensor]:
    def run(view: View, x: Tensor, times: Tensor, tol: float | None) -> Tensor:
        library = importlib.import_module("torchode")
        level = view.process.level(times)

        def field(lam: Tensor, y: Tensor) -> Tensor:  # every row at a level of its own
            here = view.process.at(lam.double())
            shape = (-1, *x.shape[1:])
            state = (y * here.alpha[:, None]).to(y.dtype).reshape(shape)
            return view.ask(state, here).flatten(1) - y

        term = library.ODETerm(field)
        step = getattr(library, method)(term=term)
        control = library.PIDController(atol=tol, rtol=tol, pcoeff=0.2, icoeff=0.5, dcoeff=0.0, term=term)
        ends = level.lam.to(x)[[0, -1]].expand(len(x), 2)
        start = (x / level.alpha[0]).to(x.dtype).flatten(1)
        problem = library.InitialValueProblem(start, ends[:, 0], ends[:, 1], ends)
        found = library.AutoDiffAdjoint(step, control, max_steps=STEPS).solve(problem)
        y = found.ys[:, -1].reshape(x.shape) * level.alpha[-1]
        failed = (found.status != 0).reshape(-1, *(1,) * (x.ndim - 1))
        end: Tensor = y.masked_fill(failed, torch.nan)
        return end

    return run


def _of_torchode(every: bool) -> list[Contender]:
    importlib.import_module("torchode")
    methods = {"dopri5": "Dopri5", "tsit5": "Tsit5"} if every else {"dopri5": "Dopri5"}
    return [
        Peer(name, "torchode", _torchode(cls), "own", by_snr, adaptive=True, version=version("torchode"))
        for name, cls in methods.items()
    ]


def _of_torchsde(every: bool) -> list[Contender]:
    importlib.import_module("torchsde")
    methods = ("euler", "srk", "milstein", "heun") if every else ("euler",)
    return [
        Ours(name, sd.adapters.torchsde(name, frame=sd.SIGMA), "karras", karras, library="torchsde") for name in methods
    ]


def _of_score_sde(every: bool) -> list[Contender]:
    from . import with_score_sde as recipes

    importlib.import_module("scipy.integrate")
    return [
        Peer(recipe.name, "score_sde", recipe.run, "natural", natural, recipe.stochastic, recipe.adaptive, recipe.evals)
        for recipe in recipes.RECIPES
    ]


LIBRARIES: dict[str, Callable[[bool], list[Contender]]] = {
    "k-diffusion": _steppers("with_kdiffusion"),
    "diffusers": _steppers("with_diffusers"),
    "azula": _steppers("with_azula"),
    "torchdiffeq": _of_torchdiffeq,
    "torchode": _of_torchode,
    "torchsde": _of_torchsde,
    "score_sde": _of_score_sde,
}
