"""What a solver claims, and the exact models on which its properties are checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run
from sdegen.loop.solution import Solution
from sdegen.processes.process import Process
from sdegen.processes.schedules import VP
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import Model, ScoreModel
from sdegen.solvers.base import Solver
from sdegen.solvers.eta import DDIMEta
from sdegen.solvers.frames import TIME
from sdegen.testing.problems import PROBLEMS, by_lam, starts
from sdegen.testing.report import Suite

F64 = torch.float64
SOLVER = Suite("solver")


@dataclass(frozen=True)
class Claim:
    """A solver and what is claimed of it; what is None is not claimed."""

    solver: Solver
    order: int | None
    weak_order: int | None
    strong_order: float | None
    exact: tuple[str, ...]
    invariant: bool
    process: Process
    eta: float | None = None

    @property
    def stochastic(self) -> bool:
        return bool(self.solver.stochastic)

    def times(self, n: int) -> Tensor:
        """n steps from almost noise to almost data."""
        return by_lam(self.process, n)

    def evals(self, n: int) -> list[int]:
        """The evaluations that the solver declares for each of n steps."""
        on = getattr(self.solver, "on", None)
        parts = () if on is None else on(self.model(), self.process.level(self.times(n)))
        return [part.evals for part in parts] or [self.solver.evals] * n

    @property
    def primes(self) -> int:
        """The evaluations that it declares to make before the first step."""
        return self.solver.init_evals

    def model(self, problem: str = "three", process: Process | None = None) -> ScoreModel:
        return PROBLEMS[problem].data.score(process or self.process)

    def start(self, batch: int, problem: str = "three", dtype: torch.dtype = F64) -> Tensor:
        return starts(self.process, batch, PROBLEMS[problem].data.shape, self.times(1)[0]).to(dtype)

    def solve(
        self,
        x: Tensor,
        times: Tensor | int,
        *,
        model: Model | None = None,
        seeds: Tensor | None = None,
        noise: Any = None,
        solver: Solver | None = None,
        observe: Any = None,
    ) -> Solution:
        """A solve with failed rows returned, on the exact model of 'three' unless another is given."""
        if isinstance(times, int):
            times = self.times(times)
        if noise is None and self.stochastic:
            noise = noises.White(noises.seeds(9, len(x)) if seeds is None else seeds)
        return run(model or self.model(), x, Fixed(times), solver or self.solver, noise, observe)

    def levels(self, n: int) -> list[Level]:
        """The levels of `times(n)`, one by one."""
        return [self.process.level(t) for t in self.times(n)]


def claim(
    solver: Any,
    order: int | None = None,
    weak_order: int | None = None,
    strong_order: float | None = None,
    exact: Any = None,
    invariant: bool | None = None,
    process: Process | None = None,
    eta: float | None = None,
) -> Claim:
    """The claim of `check_solver`'s arguments; what is not given is taken from the solver's own declarations."""
    missing = [name for name in ("init", "step", "evals", "stochastic", "memory", "grid") if not hasattr(solver, name)]
    if isinstance(solver, type) or missing:
        raise InvalidArgumentError(
            f"check_solver takes a solver object such as sd.ddim(), got {solver!r}"
            + (f", which lacks {', '.join(missing)}: derive from sd.OneStep" if missing else ": make one first")
        )
    declared = getattr(solver, "convergence", None)
    if order is None and weak_order is None:
        order, weak_order = (None, declared) if solver.stochastic else (declared, None)
    if solver.stochastic and order is not None:
        raise InvalidArgumentError(f"{solver} draws noise: its order is a weak one, weak_order={order}")
    if not solver.stochastic and (weak_order is not None or strong_order is not None):
        raise InvalidArgumentError(f"{solver} draws no noise: give order=, not weak_order= or strong_order=")
    exact = getattr(solver, "exact", ()) if exact is None else exact
    exact = (exact,) if isinstance(exact, str) else tuple(exact)
    unknown = set(exact) - {"point", "gaussian"}
    if unknown:
        raise InvalidArgumentError(f"exact may name 'point' and 'gaussian', got {sorted(unknown)}")
    if invariant is None:
        frame = getattr(solver, "frame", None)
        invariant = frame is not None and frame != TIME
    for name, value in (("order", order), ("weak_order", weak_order)):
        if value is not None and (type(value) is not int or not 1 <= value <= 12):
            raise InvalidArgumentError(f"{name} must be a whole number from 1 to 12, got {value!r}")
    if process is not None and not isinstance(process, Process):
        raise InvalidArgumentError(f"process must be a Process object such as sd.VP(), got {process!r}")
    if eta is None:
        own = getattr(solver, "eta", None)
        own = own.eta if isinstance(own, DDIMEta) else own  # the same for short steps
        eta = own if isinstance(own, (int, float)) else None
    return Claim(solver, order, weak_order, strong_order, exact, invariant, process or VP(), eta)


def deterministic(subject: Claim) -> str | None:
    """Applies to solvers without noise."""
    return "the solver draws noise" if subject.stochastic else None


def noisy(subject: Claim) -> str | None:
    """Applies to solvers with noise."""
    return None if subject.stochastic else "the solver draws no noise"


def network(process: Process, dim: int = 2) -> ScoreModel:
    """A score model of no law in particular: `tanh(W x) + t`, summed elementwise so that rows keep their bits."""
    weights = noises.normals(noises.seeds(11, dim), (dim,), (0, 0, 0, 0), dtype=F64) / dim**0.5

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh((x[:, None] * weights.to(x)).sum(-1)) + t[:, None]

    return ScoreModel(process, net, "noise")


def mixture_of(problem: str) -> GaussianMixture:
    """The data of a problem."""
    return PROBLEMS[problem].data
