"""torchdiffeq, torchode and scipy on the same probability flow from the same starts, as a function of a tolerance.

With `y = x/alpha` and `s = sigma/alpha` the flow is `dy/ds = (y - D)/s`, D the denoiser: the sigma form. In the clock
`lam = -log s` it is `dy/dlam = D - y`: the log-sigma form. Each library's rtol and atol are both the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import scipy.integrate
import torch
import torchdiffeq
import torchode
from torch import Tensor

import sdegen as sd
from sdegen import adapters

from .problems import F64, Case, Counted, Tally

FEW = 6
"""How many samples scipy solves one by one."""
STEPS = 20_000
Field = Callable[[Tensor, Tensor], Tensor]


class Failed(Exception):  # noqa: N818 - what a peer reports, not a mistake here
    """A peer said that it did not arrive."""


@dataclass(frozen=True)
class Flow:
    """A case's probability flow in one clock: the field `(tau [] or [B], y) -> dy/dtau`, and its ends."""

    case: Case
    tally: Tally
    field: Field
    first: float
    last: float
    scale: float

    @property
    def start(self) -> Tensor:
        """y at the first clock."""
        return self.case.start / self.scale


def flow(case: Case, form: str) -> Flow:
    """The sigma form, the log-sigma form ("log"), or x over the process's own time ("t")."""
    process = case.process
    ends = process.level(torch.tensor([process.t_max, process.t_min], dtype=F64))
    if form == "t":
        tally = Tally(process.t_min, process.t_max)
        field = adapters.for_torchdiffeq(process.probability_flow(Counted(case.model, tally)))
        return Flow(case, tally, field, process.t_max, process.t_min, 1.0)
    high, low = torch.exp(-ends.lam).tolist()
    tally, edm = Tally(low, high), sd.EDM()
    model = case.problem.model(edm)

    def denoise(y: Tensor, s: Tensor) -> Tensor:
        tally.add(len(y), s)
        return model(y, edm.level(s.abs()), "data")  # beyond s = 0 no network has an answer; the flow there is even

    def sigma(s: Tensor, y: Tensor) -> Tensor:
        return (y - denoise(y, s)) / (s[:, None] if s.ndim else s)

    def log(lam: Tensor, y: Tensor) -> Tensor:
        return denoise(y, torch.exp(-lam)) - y

    if form == "sigma":
        return Flow(case, tally, sigma, high, low, float(ends.alpha[0]))
    return Flow(case, tally, log, -math.log(high), -math.log(low), float(ends.alpha[0]))


def with_torchdiffeq(method: str) -> Callable[[Flow, float], Tensor]:
    """One step for the whole batch."""

    def run(flow: Flow, tol: float) -> Tensor:
        times = torch.tensor([flow.first, flow.last], dtype=F64)
        options = {"max_num_steps": STEPS}
        try:
            path = torchdiffeq.odeint(flow.field, flow.start, times, rtol=tol, atol=tol, method=method, options=options)
        except AssertionError as error:
            raise Failed(str(error)) from error
        end: Tensor = path[-1]
        return end

    return run


def torchode_solver(field: Field, method: str, tol: float) -> torchode.AutoDiffAdjoint:
    """torchode's solver with the controller that its `solve_ivp` takes."""
    term = torchode.ODETerm(field)
    step = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method](term=term)
    controller = torchode.PIDController(atol=tol, rtol=tol, pcoeff=0.2, icoeff=0.5, dcoeff=0.0, term=term)
    return torchode.AutoDiffAdjoint(step, controller, max_steps=STEPS)


def with_torchode(method: str) -> Callable[[Flow, float], Tensor]:
    """Steps per sample; all samples are evaluated until the last one is done."""

    def run(flow: Flow, tol: float) -> Tensor:
        times = torch.tensor([flow.first, flow.last], dtype=F64).expand(len(flow.start), 2)
        problem = torchode.InitialValueProblem(flow.start, times[:, 0], times[:, 1], times)
        found = torchode_solver(flow.field, method, tol).solve(problem)
        if bool((found.status != 0).any()):
            raise Failed(f"status {found.status.unique().tolist()}")
        return found.ys[:, -1]

    return run


def _scipy(flow: Flow, start: Tensor, tol: float) -> Tensor:
    def field(tau: float, y: np.ndarray) -> np.ndarray:
        return flow.field(torch.tensor(tau, dtype=F64), torch.from_numpy(y.copy()).reshape(start.shape)).numpy().ravel()

    with np.errstate(all="ignore"):
        found = scipy.integrate.solve_ivp(
            field, (flow.first, flow.last), start.numpy().ravel(), rtol=tol, atol=tol, t_eval=[flow.last]
        )
    if not found.success:
        raise Failed(found.message)
    return torch.from_numpy(found.y[:, -1]).reshape(start.shape)


def with_scipy(flow: Flow, tol: float) -> Tensor:
    """RK45, the batch as one system."""
    return _scipy(flow, flow.start, tol)


def with_scipy_alone(flow: Flow, tol: float) -> Tensor:
    """RK45, the first samples one by one."""
    return torch.cat([_scipy(flow, row[None], tol) for row in flow.start[:FEW]])


def versions() -> str:
    """The peers' versions."""
    return ", ".join(f"{name} {version(name)}" for name in ("torchdiffeq", "torchode", "scipy"))
