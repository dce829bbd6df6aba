"""Exponential Runge-Kutta methods in any frame: stages inside of the step, and the polynomial through chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid, by_snr
from sdegen.level import Level, points
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.processes.sde import ReverseSDE, check_eta
from sdegen.solvers.base import OneStep, Reverse, Solver, Step, between, check_reverse, check_score_model, draw
from sdegen.solvers.eta import ByLevel, of_step
from sdegen.solvers.frames import DATA, Frame, check_frame, refuse_grouped
from sdegen.solvers.quadrature import weights
from sdegen.solvers.table import Ask, Known, asked, ends, numbers, vectorised
from sdegen.tensors import combine


class _Leg(NamedTuple):
    """From `now` to a stage or to the end: its level, the weights of x and of the nodes `which`; for the noise, how
    much of what was gathered up to the stage before is left, and the spread of what comes on top."""

    level: Level
    which: tuple[int, ...]
    decay: Any
    nodes: Sequence[Any]
    left: Any
    spread: Any
    fresh: bool


@dataclass(frozen=True)
class Singlestep(OneStep):
    """Stages at the shares `stages` of the step in lam, each from all nodes before it; the step itself from `final`.

    Node 0 is the evaluation at now, node i that at stage i. `final` names the nodes whose polynomial, integrated
    exactly, gives the step: DPM-Solver-2 is `Singlestep((1/2,), (1,), NOISE)`, DPM-Solver-3
    `Singlestep((1/3, 2/3), (0, 2), NOISE)`, exponential Heun `Singlestep((1.0,), (0, 1))`.

    For eta > 0 the noise of stages and step is one Brownian path: what a stage gathered is part of the step's noise
    (independent draws would halve the weak order). Order (`convergence`): the smaller of the degree of the quadrature
    and one more than that of the stages it uses; for eta > 0 that of the law, at most 2 (1 in TIME).

    Hochbruck & Ostermann 2010, sec. 2.3; Lu et al. 2022, alg. 1-2; Gonzalez et al. 2023 (SEEDS) with noise.

    Raises InvalidArgumentError unless the stages rise inside (0, 1] and `final` names nodes, or for a bad eta.
    """

    stages: tuple[float, ...] = (0.5,)
    final: tuple[int, ...] = (1,)
    frame: Frame = DATA
    eta: float | Callable[[Level, Level], Tensor] = 0.0
    grid: Grid = field(default=by_snr, repr=False)

    def __post_init__(self) -> None:
        ends_ = (0.0, *self.stages, 1.0)
        if not all(a < b for a, b in zip(ends_, ends_[1:-1])) or max(ends_) > 1:
            raise InvalidArgumentError(f"stages must rise from above 0 to at most 1, got {self.stages}")
        if not self.final or len(set(self.final)) < len(self.final) or not set(self.final) <= set(range(self.evals)):
            raise InvalidArgumentError(
                f"final must name different nodes of 0 (now) to {self.evals - 1} (the last stage), got {self.final}"
            )
        check_frame(self.frame)
        refuse_grouped(self, self.frame)
        if not callable(self.eta):
            check_eta(self.eta)

    @property
    def evals(self) -> int:
        """One network evaluation at now and one per stage."""
        return 1 + len(self.stages)

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero."""
        return callable(self.eta) or self.eta > 0

    @property
    def convergence(self) -> int:
        """The order at which errors fall with the step: of the path for eta = 0, of the law (weak) for eta > 0."""
        at = torch.tensor([(0.0, *self.stages)[i] for i in self.final], dtype=torch.float64)
        powers = at ** torch.arange(len(at), dtype=torch.float64)[:, None]
        masses = torch.linalg.solve(powers, 1 / torch.arange(1, len(at) + 1, dtype=torch.float64))
        degree = len(at)
        while abs(float((masses * at**degree).sum()) - 1 / (degree + 1)) < 1e-12:
            degree += 1
        order = min([degree, *(1 + i for i in self.final if i)])
        return min(order, self.frame.weak_order) if self.stochastic else order

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those of the frame, for eta > 0 where its linear part holds the noise."""
        return self.frame.exact if not self.stochastic or self.frame.lawful else ()

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        check_score_model(self, model)
        check_reverse(self, model, self.eta)
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """All stages, then the step."""
        process = check_score_model(self, model).process
        eta = of_step(self.eta, now, next)

        def ask(k: int, x: Tensor, level: Level) -> Tensor:
            return self.frame.field(model, x, level, eta, unit=True)

        return Step(_run(list(self._legs(process, now, next)), ask, x, now, noise if self.stochastic else None), carry)

    def _legs(self, process: Process, now: Level, next: Level) -> Iterator[_Leg]:
        """The legs of a step, or of steps with levels `[n]`."""
        levels = [now]
        for i, c in enumerate((*self.stages, 1.0)):
            level = next if c == 1.0 else _inside(process, now, next, c)
            which = self.final if i == len(self.stages) else tuple(range(i + 1))
            at = torch.stack([self.frame.coordinate(levels[j]) for j in which], -1)
            # an eta of the step is that of its stages; one of the level is its mean over each leg
            inner = isinstance(self.eta, ByLevel) and isinstance(self.frame, type(DATA))
            eta = self.eta if inner else of_step(self.eta, now, next)
            part = weights(self.frame, eta, now, level, at, unit=True)
            left, spread = torch.ones_like(now.lam), torch.zeros_like(now.lam)
            fresh = level is not levels[-1]
            if self.stochastic and fresh:
                left = weights(self.frame, eta, levels[-1], level, at[..., :1], unit=True).decay
                spread = self.frame.spread(process, levels[-1], level, of_step(eta, levels[-1], level))
            yield _Leg(level, which, part.decay, part.nodes.unbind(-1), left, spread, fresh)
            levels.append(level)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """A solver per step of the grid with levels `[n + 1]`, all weights computed at once; the same method."""
        if isinstance(model, ReverseSDE):
            return ()
        now, next = ends(levels)
        if not vectorised(self.eta, now, next):
            return ()
        legs = list(self._legs(check_score_model(self, model).process, now, next))
        eta = of_step(self.eta, now, next)
        here = [now, *(leg.level for leg in legs[:-1])]
        asks = [asked(model, level, self.frame.unit(model.process, level, eta)) for level in here]
        steps = zip(zip(*map(_split, legs)), zip(*asks))
        return [_Known(self, steps_legs, steps_asks) for steps_legs, steps_asks in steps]


def _inside(process: Process, now: Level, next: Level, c: float) -> Level:
    """The level at the share c of the way in lam."""
    return between(process, process.at(now.lam + c * (next.lam - now.lam)).t, now, next)


def _split(leg: _Leg) -> list[_Leg]:
    """Legs of single steps, with plain numbers, from those of all steps."""
    nodes = zip(*(numbers(w) for w in leg.nodes))
    parts = zip(numbers(leg.decay), nodes, numbers(leg.left), numbers(leg.spread))
    return [_Leg(level, leg.which, *part, leg.fresh) for level, part in zip(points(leg.level), parts)]


def _run(
    legs: Sequence[_Leg], ask: Callable[[int, Tensor, Level], Tensor], x: Tensor, now: Level, noise: NoiseSource | None
) -> Tensor:
    """x carried along the legs."""
    values: list[Tensor] = []
    here, at, kick = x, now, None
    for k, leg in enumerate(legs):
        values.append(ask(k, here, at))
        out = combine((leg.decay, x), *zip(leg.nodes, (values[j] for j in leg.which)))
        if noise is not None:
            if leg.fresh:
                fresh = (leg.spread, draw(noise, x, at, leg.level))
                kick = combine(fresh) if kick is None else combine((leg.left, kick), fresh)
            out = out if kick is None else out + kick
        here, at = out.to(x.dtype), leg.level
    return here


@dataclass(frozen=True)
class _Known(Known):
    """One step on a known grid: its legs, and what the network is asked at the beginning of each."""

    legs: Sequence[_Leg]
    asks: Sequence[Ask]

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        def ask(k: int, x: Tensor, level: Level) -> Tensor:
            return self.asks[k](model, x, level)

        return Step(_run(self.legs, ask, x, now, noise if self.stochastic else None), carry)
