"""Solvers around solvers: noise before or after a step, a one-step start, a method chosen by the number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.processes.sde import check_eta
from sdegen.solvers.base import Carry, OneStep, Reverse, Solver, Step, check_score_model, draw
from sdegen.solvers.compose import Branch
from sdegen.solvers.frames import SIGMA, TIME, Frame
from sdegen.solvers.multistep import History, Multistep
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.table import Ask, Known, Past, asked, ends
from sdegen.solvers.tableaus import HEUN
from sdegen.tensors import combine, widen


class _Around(OneStep):
    """A solver around another: what it does not say for itself is the other's."""

    solver: Any

    @property
    def evals(self) -> int:
        """The solver's."""
        evals: int = self.solver.evals
        return evals

    @property
    def memory(self) -> int:
        """The solver's."""
        memory: int = self.solver.memory
        return memory

    @property
    def grid(self) -> Grid:
        """The solver's."""
        grid: Grid = self.solver.grid
        return grid

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        """The solver's carry."""
        return self.solver.init(model, x, now)


@dataclass(frozen=True)
class Churn(_Around):
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
        if not 0 <= self.low < self.high:
            raise InvalidArgumentError(f"churn needs 0 <= low < high, got low={self.low}, high={self.high}")
        if not (0 < self.inflate < math.inf and 0 < self.rho < math.inf):
            raise InvalidArgumentError(f"inflate and rho must be positive, got {self.inflate} and {self.rho}")
        if self.solver.memory:
            raise InvalidArgumentError(
                f"{self} moves x between steps, which makes the {self.solver.memory} past evaluations of {self.solver} "
                "wrong; use a one-step method (heun(), ddim(), dpm(2))"
            )

    @property
    def stochastic(self) -> bool:
        """Whether there is churn, or the solver draws noise."""
        return self.amount > 0 or self.solver.stochastic

    @property
    def convergence(self) -> int | None:
        """The order of the law: the solver's, at most 2; None where `inflate` keeps the law from converging."""
        order: int | None = getattr(self.solver, "convergence", None)
        if not self.stochastic or order is None:
            return order
        return min(order, 2) if self.inflate == 1 or not self.amount else None

    def init(self, model: Reverse, x: Tensor, now: Level) -> Carry:
        """The solver's carry."""
        check_score_model(self, model)
        return super().init(model, x, now)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """Up, then the solver's step down to `next`."""
        up, spread = self.rise(check_score_model(self, model).process, now, next)
        first, second = (None, None) if noise is None else (Branch(noise, 0), Branch(noise, 1))
        if self.amount:
            x = combine((up.alpha / now.alpha, x), (spread, draw(first, x, now, next))).to(x.dtype)
        return self.solver.step(model, x, up, next, carry, second)

    def rise(self, process: Process, now: Level, next: Level) -> tuple[Level, Tensor]:
        """The level that x is taken up to, and the spread, in x, of the noise that takes it there."""
        top, bottom = (process.level(t).lam for t in (process.t_max, process.t_min))
        u_now, u_next, u_max, u_min = (torch.exp(-lam / self.rho) for lam in (now.lam, next.lam, top, bottom))
        gamma = (self.amount * (u_now - u_next) / (u_max - u_min)).clamp(max=math.sqrt(2) - 1)
        s = now.sigma / now.alpha
        gamma = torch.where((s >= self.low) & (s <= self.high), gamma, 0.0)
        gamma = torch.minimum(gamma, torch.expm1((now.lam - top).clamp(min=0.0)))
        t = torch.where(gamma > 0, process.at(now.lam - torch.log1p(gamma)).t.clamp(max=process.t_max), now.t)
        up = process.level(t)
        return up, self.inflate * up.alpha * s * torch.sqrt(gamma * (2 + gamma))


@dataclass(frozen=True)
class Ancestral(_Around):
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
        check_eta(self.eta)
        inner: object = self.solver
        if not isinstance(inner, Singlestep) or inner.stochastic or max((0.0, *inner.stages)) > 0.5:
            raise InvalidArgumentError(
                f"Ancestral takes a deterministic Singlestep with stages up to the middle of the step, so that the "
                f"network is not asked below `next`; got {self.solver}"
            )
        if self.solver.frame == TIME:
            raise InvalidArgumentError(
                "Ancestral steps below the next level, which has no time: use a frame other than TIME"
            )
        if self.eta > 1:
            raise InvalidArgumentError(f"eta must be in [0, 1], got {self.eta}: more noise than the posterior has")

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero."""
        return self.eta > 0

    @property
    def convergence(self) -> int:
        """The order of the law: the solver's, at most 2."""
        return min(self.solver.convergence, 2) if self.stochastic else self.solver.convergence

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
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


@dataclass(frozen=True)
class Started(_Around):
    """A multistep method whose first steps are a Runge-Kutta method's, so that it starts at its full order.

    `steps` of them (the history's length if None), in the method's own frame; what they evaluate at the beginning of a
    step is the method's past. It is known only on a grid which step is the first: outside of one (`step` by hand, an
    adaptive controller) the method starts as it does alone.

    PNDM starts like this (Liu et al. 2022, sec. 3.3). Raises InvalidArgumentError for a method with noise or corrector,
    a start in another frame, or steps < 1.
    """

    solver: Multistep = field(default_factory=lambda: Multistep(frame=SIGMA))
    start: RungeKutta = field(default_factory=lambda: RungeKutta(HEUN))
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.solver.stochastic or self.solver.correct:
            raise InvalidArgumentError(
                f"Started takes a multistep method without noise and corrector, got {self.solver}"
            )
        if self.start.frame != self.solver.frame:
            raise InvalidArgumentError(
                f"the start must be in the method's frame {self.solver.frame}, whose past it makes; got {self.start}"
            )
        if self.steps is not None and self.steps < 1:
            raise InvalidArgumentError(f"steps must be >= 1 or None, got {self.steps}")

    @property
    def convergence(self) -> int:
        """The method's order."""
        return self.solver.convergence

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those that are so for both parts."""
        return tuple(data for data in self.solver.exact if data in self.start.exact)

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: History, noise: NoiseSource | None
    ) -> Step:
        """One step of the method."""
        return self.solver.step(model, x, now, next, carry, noise)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """The first steps by `start`, the others by the method."""
        steps = list(self.solver.on(model, levels))
        count = min(self.solver.memory if self.steps is None else self.steps, len(steps))
        now = Level(*(v[:count] for v in ends(levels)[0]))
        if count:
            asks = asked(model, now, self.solver.frame.want(model.process, now, 0.0))
            steps[:count] = [_First(self.start, self.solver.memory, ask) for ask in asks]
        return steps


@dataclass(frozen=True)
class ByLength(OneStep):
    """One of several multistep methods, by the number of steps: `methods` are pairs (from how many steps, method).

    Few steps want a low order and many a high one. It is known only on a grid how many there are: outside of one the
    second method steps (the first of one). Raises InvalidArgumentError unless the first pair is for one step and the
    numbers rise.
    """

    methods: tuple[tuple[int, Multistep], ...] = ((1, Multistep(1)), (6, Multistep(2)))
    grid: Grid = field(default=natural, repr=False)

    def __post_init__(self) -> None:
        lengths = [n for n, _ in self.methods]
        if not all(isinstance(method, Multistep) for _, method in self.methods):
            raise InvalidTypeError(f"methods must be pairs (from how many steps, Multistep), got {self.methods}")
        if len({(repr(method.frame), method.eta) for _, method in self.methods}) > 1:
            raise InvalidArgumentError(f"methods must have one frame and one eta, got {self.methods}")
        if lengths[:1] != [1] or lengths != sorted(set(lengths)):
            raise InvalidArgumentError(f"methods must be for rising numbers of steps, the first for 1; got {lengths}")

    def among(self, n: int) -> Multistep:
        """The method for n steps."""
        return [method for least, method in self.methods if least <= n][-1]

    @property
    def _usual(self) -> Multistep:
        return self.methods[min(1, len(self.methods) - 1)][1]

    @property
    def stochastic(self) -> bool:
        """Whether one of the methods draws noise."""
        return any(method.stochastic for _, method in self.methods)

    @property
    def memory(self) -> int:
        """The most that one of the methods carries."""
        return max(method.memory for _, method in self.methods)

    @property
    def eta(self) -> Any:
        """The methods' eta."""
        return self._usual.eta

    @property
    def frame(self) -> Frame:
        """The methods' frame."""
        return self._usual.frame

    @property
    def convergence(self) -> int:
        """The order of the method for the most steps."""
        return self.methods[-1][1].convergence

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact."""
        return self.methods[0][1].exact

    def init(self, model: Reverse, x: Tensor, now: Level) -> History:
        """The usual method's history."""
        return self._usual.init(model, x, now)

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: History, noise: NoiseSource | None
    ) -> Step:
        """One step of the usual method."""
        return self._usual.step(model, x, now, next, carry, noise)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """The steps of the method for this many."""
        n = len(levels.t) - 1
        method = self.among(n)
        return method.on(model, levels) or [method] * n


@dataclass(frozen=True)
class _First(Known):
    """A Runge-Kutta step that leaves its first slope to a multistep method."""

    keep: int
    ask: Ask

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        return Past((), None, None)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Past, noise: Any) -> Step:
        value = self.ask(model, x, now)
        out = self.method.through(model, x, now, next, value)
        return Step(out, Past((widen(value), *carry.values)[: self.keep], None, None))
