"""Exponential Runge-Kutta methods in any frame: stages inside of the step, and the polynomial through chosen ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.grids import Grid, by_snr
from sdegen.level import Level
from sdegen.processes.sde import check_eta
from sdegen.solvers.base import Reverse, between, check_reverse, check_score_model
from sdegen.solvers.eta import eta_of_step
from sdegen.solvers.frame import Frame, check_one_clock
from sdegen.solvers.frames import DATA
from sdegen.solvers.quadrature import inner_eta, weights
from sdegen.solvers.table import Exponential, Leg, Past, Table


@strict_keywords
@dataclass(frozen=True)
class Singlestep(Exponential, Table):
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
            raise InvalidArgumentError(f"final must name different nodes of 0 to {self.evals - 1}, got {self.final}")
        check_one_clock(self, self.frame)
        if not callable(self.eta):
            check_eta(self.eta)

    @property
    def evals(self) -> int:
        return 1 + len(self.stages)

    @property
    def convergence(self) -> int:
        """The order at which errors fall with the step: of the path for eta = 0, of the law (weak) for eta > 0."""
        at = torch.tensor([(0.0, *self.stages)[i] for i in self.final], dtype=torch.float64, device="cpu")
        powers = at ** torch.arange(len(at), dtype=torch.float64, device="cpu")[:, None]
        masses = torch.linalg.solve(powers, 1 / torch.arange(1, len(at) + 1, dtype=torch.float64, device="cpu"))
        degree = len(at)
        while abs(float((masses * at**degree).sum()) - 1 / (degree + 1)) < 1e-12:
            degree += 1
        order = min([degree, *(1 + i for i in self.final if i)])
        return min(order, self.frame.weak_order) if self.stochastic else order

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        check_score_model(self, model)
        check_reverse(self, model, self.eta)
        return Past(None, ())

    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """A leg to every stage, and one to the end."""
        frame, process = self.frame, model.process
        step_eta = eta_of_step(self.eta, now, next)
        # an eta of the step is that of its stages; one of the level is its mean over each leg
        eta = step_eta if inner_eta(self.eta, frame) is None else self.eta
        levels, legs = [now], []
        for i, c in enumerate((*self.stages, 1.0)):
            here, there = levels[-1], next
            if c < 1.0:
                there = between(process, process.at(now.lam + c * (next.lam - now.lam)).t, now, next)
            which = self.final if i == len(self.stages) else tuple(range(i + 1))
            at = torch.stack([frame.coordinate(levels[j]) for j in which], -1)
            part = weights(frame, eta, now, there, at)
            on: list[Any] = [0.0] * (i + 1)
            for j, weight in zip(which, part.nodes.unbind(-1)):
                on[i - j] = weight
            left, spread, fresh = 1.0, 0.0, there is not here
            if self.stochastic and fresh:
                left = weights(frame, eta, here, there, at[..., :1]).decay  # type: ignore[assignment]
                spread = frame.spread(process, here, there, eta_of_step(eta, here, there))  # type: ignore[assignment]
            want = frame.unit_asked(model, here, step_eta)
            legs.append(Leg(here, want, part.decay, tuple(on), (), left, spread, fresh))
            levels.append(there)
        return legs
