"""Numerical SDE/ODE solvers for score-based generative models, with pluggable scores: `import sdegen as sd`."""

import importlib
from typing import Any

from sdegen import adapters, frames, grids, guidance, model, noise, quadrature
from sdegen.brownian import Brownian, data_clock, sigma_clock
from sdegen.calibrate import calibrate
from sdegen.control import PI, Controller, Fixed, Restart
from sdegen.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    ScoreError,
    ScoreShapeError,
    ScoreTypeError,
    SdegenError,
    SolveError,
)
from sdegen.etas import DDIMEta, ERSDEEta, Window
from sdegen.frames import ANGLE, DATA, FLOW, NOISE, SIGMA, TIME, WIENER, Frame
from sdegen.guidance import dynamic_threshold, map_data, static_threshold
from sdegen.linear import CLD, OU, LinearScore, LinearSDE
from sdegen.methods import (
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
    pc_batch_coupled,
    pndm,
    reverse_diffusion,
    sa_solver,
    seeds,
    stochastic_heun,
    stochastic_runge_kutta,
    tsit5,
    unipc,
)
from sdegen.mixtures import Gaussian, GaussianMixture
from sdegen.model import ScoreModel
from sdegen.moments import Moments
from sdegen.noise import NoiseSource, White
from sdegen.plan import Plan
from sdegen.process import Process
from sdegen.processes import EDM, VE, VP, Cosine, DiscreteVP, Flow, SubVP
from sdegen.quadrature import Node, integrate
from sdegen.sample import edit, encode, sample
from sdegen.sde import SDE, ForwardSDE, Level, ReverseSDE
from sdegen.solution import STOP, Progress, Solution, Status
from sdegen.solve import solve
from sdegen.solvers.adams import Adams
from sdegen.solvers.adaptive import EmbeddedHeun
from sdegen.solvers.base import OneStep, Solver, Step
from sdegen.solvers.compose import PC, BatchCoupledLangevin, Langevin
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.renoise import Ancestral, ByLength, Churn, Started
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.stochastic import (
    EulerMaruyama,
    Milstein,
    ReverseDiffusion,
    StochasticHeun,
    StochasticRungeKutta,
)
from sdegen.solvers.tableaus import (
    BOGACKI_SHAMPINE,
    DOPRI5,
    DOPRI8,
    EULER,
    HEUN,
    HEUN_EULER,
    MIDPOINT,
    RK4,
    TSIT5,
    Tableau,
)
from sdegen.tensors import combine
from sdegen.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "ANGLE",
    "BOGACKI_SHAMPINE",
    "CLD",
    "DATA",
    "DOPRI5",
    "DOPRI8",
    "EDM",
    "EULER",
    "FLOW",
    "HEUN",
    "HEUN_EULER",
    "MIDPOINT",
    "NOISE",
    "OU",
    "PC",
    "PI",
    "RK4",
    "SDE",
    "SIGMA",
    "STOP",
    "TIME",
    "TSIT5",
    "VE",
    "VP",
    "WIENER",
    "Adams",
    "Ancestral",
    "BatchCoupledLangevin",
    "Brownian",
    "ByLength",
    "Churn",
    "Controller",
    "Cosine",
    "DDIMEta",
    "DiscreteVP",
    "ERSDEEta",
    "EmbeddedHeun",
    "EulerMaruyama",
    "Fixed",
    "Flow",
    "ForwardSDE",
    "Frame",
    "Gaussian",
    "GaussianMixture",
    "InvalidArgumentError",
    "InvalidTypeError",
    "Langevin",
    "Level",
    "LinearSDE",
    "LinearScore",
    "Milstein",
    "Moments",
    "Multistep",
    "Node",
    "NoiseSource",
    "OneStep",
    "Plan",
    "Process",
    "Progress",
    "Restart",
    "ReverseDiffusion",
    "ReverseSDE",
    "RungeKutta",
    "ScoreError",
    "ScoreModel",
    "ScoreShapeError",
    "ScoreTypeError",
    "SdegenError",
    "Singlestep",
    "Solution",
    "SolveError",
    "Solver",
    "Started",
    "Status",
    "Step",
    "StochasticHeun",
    "StochasticRungeKutta",
    "SubVP",
    "Tableau",
    "Trajectory",
    "White",
    "Window",
    "adams",
    "adapters",
    "adaptive_heun",
    "ancestral",
    "bogacki_shampine",
    "calibrate",
    "combine",
    "data_clock",
    "ddim",
    "ddpm",
    "default",
    "deis",
    "dopri5",
    "dopri8",
    "dpm",
    "dpm_ancestral",
    "dpmpp",
    "dpmpp_ancestral",
    "dpmpp_sde",
    "dynamic_threshold",
    "edit",
    "edm",
    "encode",
    "er_sde",
    "euler_maruyama",
    "frames",
    "grids",
    "guidance",
    "heun",
    "heun_euler",
    "integrate",
    "ipndm",
    "lms",
    "map_data",
    "milstein",
    "model",
    "noise",
    "pc",
    "pc_batch_coupled",
    "pndm",
    "quadrature",
    "reverse_diffusion",
    "sa_solver",
    "sample",
    "seeds",
    "sigma_clock",
    "solve",
    "static_threshold",
    "stochastic_heun",
    "stochastic_runge_kutta",
    "tsit5",
    "unipc",
]

_LATER = ("bench", "metrics", "plots", "testing")


def __getattr__(name: str) -> Any:
    """The modules that are imported when they are first asked for, as `sdegen.metrics`."""
    if name in _LATER:
        return importlib.import_module(f"sdegen.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
