"""Exponential Adams methods in any frame: predictor of order p, optionally a corrector of order p + 1 for free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.frames import DATA, Eta, Frame, check_frame
from sdegen.grids import Grid, by_snr
from sdegen.noise import NoiseSource
from sdegen.quadrature import FAR, Node, integrate
from sdegen.sde import Level, check_eta
from sdegen.solvers.base import Reverse, Step, check_reverse, draw
from sdegen.tensors import like, widen


class Last(NamedTuple):
    """The last step, for the corrector: where it began, and the noise it added (None without any)."""

    x: Tensor
    level: Level
    kick: Tensor | None


class History(NamedTuple):
    """Past nodes, newest first, and with a corrector the last step."""

    nodes: tuple[Node, ...]
    last: Last | None


@dataclass(frozen=True)
class DDIMEta:
    """DDIM's own eta as a step's eta: noise of `eta` times the posterior's std (Song, Meng & Ermon 2021, eq. 16).

    `1 - exp(-2 e^2 h) = eta^2 (1 - exp(-2 h))` solved for e; the two agree at 0 and 1.
    """

    eta: float

    def __post_init__(self) -> None:
        check_eta(self.eta)
        if self.eta > 1:
            raise InvalidArgumentError(
                f"DDIM's eta must be in [0, 1], got {self.eta}: more noise than the posterior has"
            )

    def __call__(self, now: Level, next: Level) -> Tensor:
        h = next.lam - now.lam
        return torch.sqrt(-torch.log1p(self.eta**2 * torch.expm1(-2 * h)) / (2 * h))


@dataclass(frozen=True)
class Multistep:
    """One evaluation a step: the polynomial through this one and the `order - 1` before it, integrated exactly.

    With `correct=True` each evaluation, made at the predicted x, also corrects that x through one more node (PEC), so
    the order becomes `order + 1` at no cost; the end of the grid is left predicted. `eta` is constant, or, for order 1
    without corrector, a function `(now, next) -> eta`.

    Order (`convergence`): `order`, or `order + 1` when corrected; for eta > 0 that of the law, at most 2 (1 in TIME).
    The first step knows no past and has order 1, an error in proportion to N's derivative at the first level, which
    vanishes with the data's share of x there; `grids.graded` starts a solve at full order where that is not enough.
    With eta = 0 one step is exact for point-mass data in DATA, NOISE, SIGMA and FLOW (in DATA for any eta), and for
    N(0, sigma_data^2) data in ANGLE(sigma_data).

    Adams 1883; Hochbruck & Ostermann 2010, sec. 2.5; Zhao et al. 2023 (UniPC) for reusing the corrector's evaluation.

    Raises InvalidArgumentError for an order outside 1..5, a bad eta, or a varying eta with memory.
    """

    order: int = 2
    frame: Frame = DATA
    eta: float | Callable[[Level, Level], Tensor] = 0.0
    correct: bool = False
    grid: Grid = field(default=by_snr, repr=False)
    estimate: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if type(self.order) is not int or not 1 <= self.order <= 5:
            raise InvalidArgumentError(f"order must be 1, 2, 3, 4 or 5, got {self.order!r}")
        check_frame(self.frame)
        if not callable(self.eta):
            check_eta(self.eta)
        elif self.memory:
            raise InvalidArgumentError(
                "an eta that varies from step to step needs order=1 and correct=False: past values of N hold the eta "
                "they were made with"
            )

    @property
    def evals(self) -> int:
        """One network evaluation per step."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero."""
        return callable(self.eta) or self.eta > 0

    @property
    def memory(self) -> int:
        """The number of past evaluations carried."""
        return self.order if self.correct else self.order - 1

    @property
    def convergence(self) -> int:
        """The order at which errors fall with the step: of the path for eta = 0, of the law (weak) for eta > 0."""
        order = self.order + 1 if self.correct else self.order
        if not self.stochastic:
            return order
        return min(order, self.frame.weak_order)

    @property
    def exact(self) -> tuple[str, ...]:
        """Data on which one step is exact: those of the frame, and in DATA a point for every eta."""
        frozen = not self.stochastic or self.frame == DATA(variable=self.frame.variable)
        return self.frame.exact if frozen else ()

    def init(self, model: Reverse, x: Tensor, now: Level) -> History:
        """A history of nodes so far away that they have no weight."""
        check_reverse(self, model, self.eta)
        wide = widen(x)
        # every leaf its own tensor: shared ones would make a compiled step specialise on the sharing
        nodes = tuple(Node(torch.full_like(now.t, FAR * (j + 1)), torch.zeros_like(wide)) for j in range(self.memory))
        if not self.correct:
            return History(nodes, None)
        kick = torch.zeros_like(wide) if self.stochastic else None
        return History(nodes, Last(wide.clone(), Level(*(v.clone() for v in now)), kick))

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: History, noise: NoiseSource | None
    ) -> Step:
        """Evaluate at x, correct x with it, predict x at `next`."""
        if carry.nodes and carry.nodes[0].value.shape != x.shape:
            raise InvalidArgumentError(
                f"the history holds values of shape {list(carry.nodes[0].value.shape)} and x has {list(x.shape)}: "
                "start anew with init() when the batch changes"
            )
        frame = self.frame
        eta: Eta = self.eta(now, next) if callable(self.eta) else self.eta
        # a tensor of its own, as in init: in TIME the coordinate is the level's t, which the carry holds too
        nodes = (Node(frame.coordinate(now).clone(), frame.field(model, x, now, eta)), *carry.nodes)
        start, last = x, carry.last
        if last is not None:
            start, _ = integrate(frame, eta, last.x, last.level, now, nodes)
            start = start if last.kick is None else start + last.kick
        out, error = integrate(frame, eta, start, now, next, nodes[: self.order], self.estimate)
        kick = None
        if self.stochastic:
            kick = like(frame.spread(model.process, now, next, eta), out) * draw(noise, x, now, next)
            out = out + kick
        carry = History(nodes[: self.memory], Last(start, now, kick) if self.correct else None)
        return Step(out.to(x.dtype), carry, error)
