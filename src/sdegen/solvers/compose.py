"""Solvers around solvers: a corrector after a step, noise before or after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, check_positive, strict_keywords
from sdegen.grids import Grid
from sdegen.level import Level, placed
from sdegen.noise import NoiseSource
from sdegen.processes.process import Process
from sdegen.solvers.base import Carry, OneStep, Reverse, Solver, Step, check_score_model, draw
from sdegen.solvers.eta import check_posterior_eta, check_window
from sdegen.solvers.langevin import Langevin
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.stochastic import ReverseDiffusion
from sdegen.solvers.table import Past
from sdegen.tensors import combine


class Branch(NamedTuple):
    """A noise source for one of several parts: every part has tags of its own, and nested ones too."""

    noise: Any
    part: int
    parts: int = 2

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        drawn: Tensor = self.noise(x, now, next, self.parts * tag + self.part)
        return drawn


def refuse_memory(mover: Solver, part: Solver) -> None:
    """Raises InvalidArgumentError for a part with a memory, in a solver that moves x between its steps."""
    if part.memory:
        raise InvalidArgumentError(
            f"{part} carries {part.memory} past evaluations, which are wrong once {type(mover).__name__} has moved x; "
            "use a one-step method (heun(), ddim(), dpm(2), ddpm(), euler_maruyama())"
        )


def branches(noise: NoiseSource | None) -> tuple[Branch | None, Branch | None]:
    """The sources of the two parts of a step."""
    return (None, None) if noise is None else (Branch(noise, 0), Branch(noise, 1))


@strict_keywords
@dataclass(frozen=True)
class PC(OneStep):
    """Predictor, then corrector at the level reached, on every step (Song et al. 2021, alg. 1).

    Any one-step solver predicts, and what has `corrects` true corrects. Memory is refused: the corrector moves x, and
    values carried from before the move would no longer lie on the path.
    """

    predictor: Solver = field(default_factory=ReverseDiffusion)
    corrector: Solver = field(default_factory=Langevin)

    def __post_init__(self) -> None:
        if not self.corrector.corrects:
            raise InvalidArgumentError(
                f"{self.corrector} steps from now to next, where a corrector moves x at next, like sd.Langevin()"
            )
        refuse_memory(self, self.predictor)
        refuse_memory(self, self.corrector)

    @property
    def evals(self) -> int:
        return self.predictor.evals + self.corrector.evals

    @property
    def stochastic(self) -> bool:
        return self.predictor.stochastic or self.corrector.stochastic

    @property
    def learned_variance(self) -> bool:
        """The predictor's."""
        return self.predictor.learned_variance

    @property
    def couples(self) -> bool:
        return self.predictor.couples or self.corrector.couples

    @property
    def noise_end(self) -> bool:
        """The predictor's."""
        return self.predictor.noise_end

    @property
    def data_end(self) -> bool:
        """No: the corrector asks for the score at the end of the step."""
        return False

    @property
    def grid(self) -> Grid:
        return self.predictor.grid

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[Carry, Carry]:
        return self.predictor.init(model, x, now), self.corrector.init(model, x, now)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        first, second = branches(noise)
        predicted = self.predictor.step(model, x, now, next, carry[0], first)
        corrected = self.corrector.step(model, predicted.x, now, next, carry[1], second)
        return Step(corrected.x, (predicted.carry, corrected.carry), predicted.error)


class Wrapper(Solver):
    """A solver around another: what it does not say for itself is the other's.

    What a changed step may not keep is not handed on: error estimates, dense output, exactness, steps of its own.
    """

    solver: Solver

    @property
    def evals(self) -> int:
        return self.solver.evals

    @property
    def init_evals(self) -> int:
        return self.solver.init_evals

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic

    @property
    def learned_variance(self) -> bool:
        return self.solver.learned_variance

    @property
    def memory(self) -> int:
        return self.solver.memory

    @property
    def couples(self) -> bool:
        return self.solver.couples

    @property
    def grid(self) -> Grid:
        return self.solver.grid

    @property
    def noise_end(self) -> bool:
        """The solver's."""
        return self.solver.noise_end

    @property
    def data_end(self) -> bool:
        """The solver's."""
        return self.solver.data_end

    @property
    def convergence(self) -> int | None:
        return self.solver.convergence

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        return self.solver.init(model, x, now)


@strict_keywords
@dataclass(frozen=True)
class Churn(Wrapper):
    """Noise before every step: x is taken up from s to `s (1 + gamma)`, then the solver steps from there (EDM).

    `gamma = min(amount (u_now - u_next) / (u_max - u_min), sqrt(2) - 1)` with `u = s^(1/rho)`, `s = sigma/alpha`, where
    `low <= s <= high`; u_max and u_min are those of the process's span, so that on the whole Karras grid of N steps
    gamma is Karras et al.'s `S_churn / N`, and on every grid the limit is one SDE. Levels above t_max are not asked
    for: there is no churn at the first one. `inflate` multiplies the noise; other than at 1, the law does not converge.

    Karras et al. 2022, alg. 2. Raises InvalidArgumentError for a negative amount, a bad window, or a solver that
    remembers.
    """

    solver: Solver = field(default_factory=RungeKutta)
    amount: float = 40.0
    low: float = 0.0
    high: float = math.inf
    inflate: float = 1.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise InvalidArgumentError(f"churn must be finite and >= 0, got {self.amount}")
        check_window(self.low, self.high)
        check_positive(inflate=self.inflate, rho=self.rho)
        refuse_memory(self, self.solver)

    @property
    def stochastic(self) -> bool:
        return self.amount > 0 or self.solver.stochastic

    @property
    def convergence(self) -> int | None:
        """The order of the law: the solver's, at most 2; None where `inflate` keeps the law from converging."""
        order = self.solver.convergence
        if not self.stochastic or order is None:
            return order
        return min(order, 2) if self.inflate == 1 or not self.amount else None

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        check_score_model(self, model)
        return super().init(model, x, now)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """Up, then the solver's step down to `next`."""
        up, spread = self.rise(check_score_model(self, model).process, now, next)
        first, second = branches(noise)
        if self.amount:
            x = combine((up.alpha / now.alpha, x), (spread, draw(first, x, now, next))).to(x.dtype)
        return self.solver.step(model, x, up, next, carry, second)

    def rise(self, process: Process, now: Level, next: Level) -> tuple[Level, Tensor]:
        """The level that x is taken up to, and the spread, in x, of the noise that takes it there."""
        top, bottom = (placed(process.level(t).lam) for t in (process.t_max, process.t_min))
        u_now, u_next, u_max, u_min = (torch.exp(-lam / self.rho) for lam in (now.lam, next.lam, top, bottom))
        gamma = (self.amount * (u_now - u_next) / (u_max - u_min)).clamp(max=math.sqrt(2) - 1)
        s = now.sigma / now.alpha
        gamma = torch.where((s >= self.low) & (s <= self.high), gamma, 0.0)
        gamma = torch.minimum(gamma, torch.expm1((now.lam - top).clamp(min=0.0)))
        t = torch.where(gamma > 0, process.at(now.lam - torch.log1p(gamma)).t.clamp(max=process.t_max), now.t)
        up = process.level(t)
        return up, self.inflate * up.alpha * s * torch.sqrt(gamma * (2 + gamma))


@strict_keywords
@dataclass(frozen=True)
class Ancestral(Wrapper):
    """A deterministic step that goes too far, to `s_down`, and noise back up to `s_next`.

    `s_up^2 = eta^2 s_next^2 (s_now^2 - s_next^2) / s_now^2`, at most s_next^2, `s_down^2 = s_next^2 - s_up^2`: with
    eta = 1 the noise of the exact posterior of one step. The solver's stages then lie at or above `next`; its order is
    that of the law, at most 2. k-diffusion's ancestral samplers; for `Singlestep((), (0,))`, which is Euler's method,
    the same as `ddim(eta)`.

    Raises InvalidArgumentError unless the solver is a deterministic `Singlestep` with stages before the end of the
    step, in the middle of it or earlier where eta > 0, and for a bad eta.
    """

    solver: Singlestep = field(default_factory=Singlestep)
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_posterior_eta(self.eta)
        inner: object = self.solver
        if not isinstance(inner, Singlestep) or inner.stochastic or max((0.0, *inner.stages)) > 0.5:
            raise InvalidArgumentError(
                f"Ancestral takes a deterministic Singlestep, its stages up to the step's middle; got {self.solver}"
            )
        if self.solver.frame.timed:
            raise InvalidArgumentError("Ancestral steps below the next level, which has no time; no frame TIME")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def convergence(self) -> int:
        """The order of the law: the solver's, at most 2."""
        return min(self.solver.convergence, 2) if self.stochastic else self.solver.convergence

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Past, noise: NoiseSource | None) -> Step:
        """Down past `next`, and up to it."""
        down, spread = self.fall(now, next)
        step = self.solver.step(model, x, now, down, carry, None)
        if not self.stochastic:
            return step
        out = combine((torch.ones_like(spread), step.x), (spread, draw(noise, x, now, next))).to(x.dtype)
        return Step(out, step.carry)

    def fall(self, now: Level, next: Level) -> tuple[Level, Tensor]:
        """Where the deterministic step goes, with `next`'s time and alpha, and the spread of the noise in x."""
        up = (self.eta**2 * -torch.expm1(2 * (now.lam - next.lam))).clamp(max=1.0)
        return Level(next.t, next.alpha, next.sigma * torch.sqrt(1 - up)), next.sigma * torch.sqrt(up)
