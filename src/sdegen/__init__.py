"""Numerical SDE/ODE solvers for score-based generative models, with pluggable scores: `import sdegen as sd`."""

import importlib
from typing import Any

from sdegen import adapters, grids, guidance, noise
from sdegen.calibration.calibrate import calibrate
from sdegen.calibration.plan import Plan
from sdegen.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    ScoreError,
    ScoreShapeError,
    ScoreTypeError,
    SdegenError,
)
from sdegen.guidance.thresholds import dynamic_threshold, map_data, static_threshold
from sdegen.level import Level
from sdegen.loop.control import Controller, Fixed, Restart
from sdegen.loop.fixed import solve
from sdegen.loop.solution import STOP, Progress, Solution, SolveError, Status
from sdegen.loop.tolerance import PI
from sdegen.noise.brownian import Brownian
from sdegen.noise.normals import NoiseSource, White
from sdegen.processes.linear import CLD, OU, LinearSDE
from sdegen.processes.process import Process
from sdegen.processes.schedules import EDM, VE, VP, Cosine, DiscreteVP, Flow, SubVP
from sdegen.processes.sde import SDE, ForwardSDE, ReverseSDE
from sdegen.sampling.sample import edit, encode, sample
from sdegen.sampling.trajectory import Trajectory
from sdegen.scores import model
from sdegen.scores.linear import LinearScore
from sdegen.scores.mixtures import Gaussian, GaussianMixture
from sdegen.scores.model import ScoreModel
from sdegen.solvers import frames, quadrature
from sdegen.solvers.adams import Adams
from sdegen.solvers.adaptive import EmbeddedHeun
from sdegen.solvers.base import OneStep, Solver, Step
from sdegen.solvers.compose import PC, BatchCoupledLangevin, Langevin
from sdegen.solvers.eta import DDIMEta, ERSDEEta, Window, data_clock, sigma_clock
from sdegen.solvers.frames import ANGLE, DATA, FLOW, NOISE, SIGMA, TIME, WIENER, Frame
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
from sdegen.solvers.moment_frame import Moments
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.quadrature import Node, integrate
from sdegen.solvers.renoise import Ancestral, ByLength, Churn, Started
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.stochastic import EulerMaruyama, Milstein, ReverseDiffusion, StochasticHeun, StochasticRungeKutta
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
