"""Numerical SDE/ODE solvers for score-based generative models, with pluggable scores: `import sdegen as sd`."""

from sdegen import frames, grids, guidance, model, noise, quadrature
from sdegen.calibrate import calibrate
from sdegen.control import Controller, Fixed, Restart
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
from sdegen.methods import (
    ancestral,
    ddim,
    ddpm,
    default,
    deis,
    dpm,
    dpm_ancestral,
    dpmpp,
    dpmpp_ancestral,
    dpmpp_sde,
    edm,
    er_sde,
    euler_maruyama,
    heun,
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
from sdegen.sde import SDE, Level, ReverseSDE
from sdegen.solution import STOP, Progress, Solution, Status
from sdegen.solve import solve
from sdegen.solvers.base import OneStep, Solver, Step
from sdegen.solvers.compose import PC, BatchCoupledLangevin, Langevin
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.renoise import Ancestral, ByLength, Churn, Started
from sdegen.solvers.runge_kutta import EULER, HEUN, MIDPOINT, RK4, RungeKutta, Tableau
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.stochastic import (
    EulerMaruyama,
    Milstein,
    ReverseDiffusion,
    StochasticHeun,
    StochasticRungeKutta,
)
from sdegen.tensors import combine
from sdegen.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "ANGLE",
    "DATA",
    "EDM",
    "EULER",
    "FLOW",
    "HEUN",
    "MIDPOINT",
    "NOISE",
    "PC",
    "RK4",
    "SDE",
    "SIGMA",
    "STOP",
    "TIME",
    "VE",
    "VP",
    "WIENER",
    "Ancestral",
    "BatchCoupledLangevin",
    "ByLength",
    "Churn",
    "Controller",
    "Cosine",
    "DDIMEta",
    "DiscreteVP",
    "ERSDEEta",
    "EulerMaruyama",
    "Fixed",
    "Flow",
    "Frame",
    "Gaussian",
    "GaussianMixture",
    "InvalidArgumentError",
    "InvalidTypeError",
    "Langevin",
    "Level",
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
    "ancestral",
    "calibrate",
    "combine",
    "ddim",
    "ddpm",
    "default",
    "deis",
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
    "solve",
    "static_threshold",
    "stochastic_heun",
    "stochastic_runge_kutta",
    "unipc",
]
