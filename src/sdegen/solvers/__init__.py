"""The classes that methods are made of; `sdegen.dpmpp`, `sdegen.heun` and the others are the names people know."""

from sdegen.solvers import eta, moment_frame, quadrature
from sdegen.solvers.adams import Adams
from sdegen.solvers.base import OneStep, Solver, Step
from sdegen.solvers.compose import PC, Ancestral, Churn
from sdegen.solvers.langevin import BatchCoupledLangevin, Langevin
from sdegen.solvers.multistep import ByLength, Multistep, Started
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.stochastic import (
    EmbeddedHeun,
    EulerMaruyama,
    ExactTransition,
    Milstein,
    Posterior,
    ReverseDiffusion,
    StochasticHeun,
    StochasticRungeKutta,
)
from sdegen.solvers.table import Leg, Past, Table
from sdegen.solvers.tableaus import Tableau

__all__ = [
    "PC",
    "Adams",
    "Ancestral",
    "BatchCoupledLangevin",
    "ByLength",
    "Churn",
    "EmbeddedHeun",
    "EulerMaruyama",
    "ExactTransition",
    "Langevin",
    "Leg",
    "Milstein",
    "Multistep",
    "OneStep",
    "Past",
    "Posterior",
    "ReverseDiffusion",
    "RungeKutta",
    "Singlestep",
    "Solver",
    "Started",
    "Step",
    "StochasticHeun",
    "StochasticRungeKutta",
    "Table",
    "Tableau",
    "eta",
    "moment_frame",
    "quadrature",
]
