"""Numerical SDE/ODE solvers for score-based generative models, with pluggable scores: `import sdegen as sd`."""

from sdegen import frames, grids, model, noise, quadrature
from sdegen.control import Controller, Fixed
from sdegen.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    ScoreError,
    ScoreShapeError,
    ScoreTypeError,
    SdegenError,
    SolveError,
)
from sdegen.frames import ANGLE, DATA, FLOW, NOISE, SIGMA, TIME, Frame
from sdegen.methods import (
    ancestral,
    ddim,
    ddpm,
    default,
    dpmpp,
    euler_maruyama,
    heun,
    pc,
    pc_batch_coupled,
    reverse_diffusion,
    unipc,
)
from sdegen.mixtures import Gaussian, GaussianMixture
from sdegen.model import ScoreModel
from sdegen.noise import NoiseSource, White
from sdegen.process import Process
from sdegen.processes import EDM, VE, VP, Cosine, DiscreteVP, Flow, SubVP
from sdegen.quadrature import Node, integrate
from sdegen.sample import encode, sample
from sdegen.sde import SDE, Level, ReverseSDE
from sdegen.solution import STOP, Progress, Solution, Status
from sdegen.solve import solve
from sdegen.solvers.base import OneStep, Solver, Step
from sdegen.solvers.compose import PC, BatchCoupledLangevin, Langevin
from sdegen.solvers.multistep import DDIMEta, Multistep
from sdegen.solvers.runge_kutta import EULER, HEUN, MIDPOINT, RK4, RungeKutta, Tableau
from sdegen.solvers.singlestep import EulerMaruyama, ReverseDiffusion
from sdegen.tensors import combine

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
    "BatchCoupledLangevin",
    "Controller",
    "Cosine",
    "DDIMEta",
    "DiscreteVP",
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
    "Multistep",
    "Node",
    "NoiseSource",
    "OneStep",
    "Process",
    "Progress",
    "ReverseDiffusion",
    "ReverseSDE",
    "RungeKutta",
    "ScoreError",
    "ScoreModel",
    "ScoreShapeError",
    "ScoreTypeError",
    "SdegenError",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "Step",
    "SubVP",
    "Tableau",
    "White",
    "ancestral",
    "combine",
    "ddim",
    "ddpm",
    "default",
    "dpmpp",
    "encode",
    "euler_maruyama",
    "frames",
    "grids",
    "heun",
    "integrate",
    "model",
    "noise",
    "pc",
    "pc_batch_coupled",
    "quadrature",
    "reverse_diffusion",
    "sample",
    "solve",
    "unipc",
]
