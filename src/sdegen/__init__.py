"""Numerical SDE/ODE solvers for score-based generative models, with pluggable scores: `import sdegen as sd`."""

import importlib
from typing import TYPE_CHECKING, Any

from sdegen import adapters, grids, guidance, noise, solvers
from sdegen.calibration.calibrate import calibrate
from sdegen.calibration.plan import Plan
from sdegen.errors import InvalidArgumentError, InvalidTypeError, ScoreError, SdegenError, TrainingError
from sdegen.level import Level
from sdegen.loop.control import Controller, Fixed
from sdegen.loop.fixed import solve
from sdegen.loop.solution import STOP, Solution, SolveError, Status
from sdegen.loop.tolerance import PI
from sdegen.noise import Brownian, NoiseSource, White
from sdegen.processes.linear import CLD, OU, LinearSDE
from sdegen.processes.process import Process
from sdegen.processes.schedules import EDM, VE, VP, Cosine, DiscreteVP, Flow, SubVP
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.sampling.restart import Restart
from sdegen.sampling.sample import draw, edit, encode, forward, sample
from sdegen.scores import divergence, model
from sdegen.scores.conditions import shared
from sdegen.scores.mixtures import Gaussian, GaussianMixture
from sdegen.scores.model import ScoreModel
from sdegen.solvers import frames, tableaus
from sdegen.solvers.base import OneStep, Solver, Step
from sdegen.solvers.compose import PC
from sdegen.solvers.frame import Frame
from sdegen.solvers.frames import ANGLE, DATA, FLOW, NOISE, SIGMA, TIME, WIENER
from sdegen.solvers.langevin import Langevin
from sdegen.solvers.methods import (
    adams,
    adaptive_heun,
    ancestral,
    bogacki_shampine,
    ddim,
    ddpm,
    default,
    deis,
    dopri5,
    dopri8,
    dpm,
    dpm_ancestral,
    dpmpp,
    dpmpp_ancestral,
    dpmpp_sde,
    edm,
    er_sde,
    euler_maruyama,
    heun,
    heun_euler,
    ipndm,
    lms,
    milstein,
    pc,
    pndm,
    reverse_diffusion,
    sa_solver,
    seeds_solver,
    stochastic_heun,
    stochastic_runge_kutta,
    tsit5,
    unipc,
)
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.tensors import combine
from sdegen.training import latents, losses, nets
from sdegen.training.averages import EMA
from sdegen.training.batches import Batches
from sdegen.training.checkpoints import Checkpoint
from sdegen.training.loop import train

if TYPE_CHECKING:
    from sdegen import bench, metrics, plots, testing

__version__ = "0.1.0"

__all__ = [
    "ANGLE",
    "CLD",
    "DATA",
    "EDM",
    "EMA",
    "FLOW",
    "NOISE",
    "OU",
    "PC",
    "PI",
    "SDE",
    "SIGMA",
    "STOP",
    "TIME",
    "VE",
    "VP",
    "WIENER",
    "Batches",
    "Brownian",
    "Checkpoint",
    "Controller",
    "Cosine",
    "DiscreteVP",
    "Fixed",
    "Flow",
    "Frame",
    "Gaussian",
    "GaussianMixture",
    "InvalidArgumentError",
    "InvalidTypeError",
    "Langevin",
    "Level",
    "LinearSDE",
    "Multistep",
    "NoiseSource",
    "OneStep",
    "Plan",
    "Process",
    "Restart",
    "ReverseSDE",
    "RungeKutta",
    "ScoreError",
    "ScoreModel",
    "SdegenError",
    "Singlestep",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "Step",
    "SubVP",
    "TrainingError",
    "White",
    "adams",
    "adapters",
    "adaptive_heun",
    "ancestral",
    "bench",
    "bogacki_shampine",
    "calibrate",
    "combine",
    "ddim",
    "ddpm",
    "default",
    "deis",
    "divergence",
    "dopri5",
    "dopri8",
    "dpm",
    "dpm_ancestral",
    "dpmpp",
    "dpmpp_ancestral",
    "dpmpp_sde",
    "draw",
    "edit",
    "edm",
    "encode",
    "er_sde",
    "euler_maruyama",
    "forward",
    "frames",
    "grids",
    "guidance",
    "heun",
    "heun_euler",
    "ipndm",
    "latents",
    "lms",
    "losses",
    "metrics",
    "milstein",
    "model",
    "nets",
    "noise",
    "pc",
    "plots",
    "pndm",
    "reverse_diffusion",
    "sa_solver",
    "sample",
    "seeds_solver",
    "shared",
    "solve",
    "solvers",
    "stochastic_heun",
    "stochastic_runge_kutta",
    "tableaus",
    "testing",
    "train",
    "tsit5",
    "unipc",
]

_LATER = ("bench", "metrics", "plots", "testing")


def __getattr__(name: str) -> Any:
    """The modules that are imported when they are first asked for, as `sdegen.metrics`."""
    if name in _LATER:
        return importlib.import_module(f"sdegen.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and no module or import beside them."""
    return [*__all__, "__version__"]
