"""A probability flow as torchdiffeq asks for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdegen.errors import InvalidTypeError
from sdegen.level import Level
from sdegen.processes.sde import ReverseSDE
from sdegen.scores.model import network
from sdegen.solvers.base import Reverse, between, check_reverse
from sdegen.solvers.frames import Frame
from sdegen.tensors import combine, finite_rows, like, widen


class Flow:
    """The flow as torchdiffeq asks for it, in a clock that increases; counts evaluations, keeps failed rows still."""

    def __init__(self, frame: Frame, model: Reverse, x: Tensor, levels: Sequence[Level]) -> None:
        self.frame, self.model, self.dtype = frame, model, x.dtype
        self.first, self.last, self.levels = levels[0], levels[-1], levels
        taus = torch.stack([frame.clock(level) for level in levels])
        self.sign = 1.0 if float(taus[-1]) > float(taus[0]) else -1.0
        self.clocks = (self.sign * taus).to(x.device)
        self.span = float(self.clocks[0]), float(self.clocks[-1])
        self.start = combine((1 / frame.scale(self.first), x))
        self.failed = torch.zeros_like(finite_rows(x))
        self.evals = 0
        self.reached = self.first, x

    def level(self, clock: Tensor) -> Level:
        """The level at a clock, inside of the interval."""
        tau = self.sign * clock.detach().to("cpu", torch.float64).clamp(*self.span)
        return between(self.model.process, self.frame.level(self.model.process, tau).t, self.first, self.last)

    def __call__(self, clock: Tensor, y: Tensor) -> Tensor:
        """`dY/dclock` `[B, *S]`."""
        self.evals += 1
        level = self.level(clock)
        n = widen(self.frame.field(self.model, combine((self.frame.scale(level), y)).to(self.dtype), level, 0.0))
        rate = self.frame.rate(0.0)
        slope = n + rate * y if rate else n
        self.failed = self.failed | (~finite_rows(slope) & finite_rows(y))
        fine = finite_rows(slope) & ~self.failed
        return self.sign * torch.where(fine.reshape(-1, *(1,) * (y.ndim - 1)), slope, 0.0)

    def reach(self, clock: Tensor, y: Tensor, step: Tensor) -> None:
        """torchdiffeq's callback: a step from `clock` and y is accepted."""
        level = self.level(clock)
        self.reached = level, combine((self.frame.scale(level), y.detach())).to(self.dtype)

    def states(self, path: Tensor) -> Tensor:
        """x `[n + 1, B, *S]` from Y, NaN where a row failed."""
        scales = torch.stack([self.frame.scale(level) for level in self.levels])
        x = (like(scales.to(path.device), path) * path).to(self.dtype)
        return torch.where(self.failed.reshape(1, -1, *(1,) * (path.ndim - 2)), float("nan"), x)


class _Function(torch.nn.Module):
    """`func(t, x)` of a probability flow; the network's parameters are this module's."""

    def __init__(self, flow: ReverseSDE) -> None:
        super().__init__()
        self.flow, self.network = flow, network(flow)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """`dx/dt` `[B, *S]` at t, or at the end of the span where t lies outside."""
        return self.flow.drift(x, t.clamp(self.flow.sde.t_min, self.flow.sde.t_max))


def for_torchdiffeq(flow: Reverse) -> torch.nn.Module:
    """`func(t, x)` for `torchdiffeq.odeint` and `odeint_adjoint`, from `sde.probability_flow(score)` or a score model.

    A module whose parameters are those of the network behind the score, so that `odeint_adjoint` finds them. t runs in
    either direction; outside of the SDE's span, where steps that are interpolated may ask, the field is that at the
    nearer end. Raises InvalidArgumentError for a `ReverseSDE` with eta > 0.
    """
    if not isinstance(flow, ReverseSDE):
        if not hasattr(flow, "process"):
            raise InvalidTypeError(f"for_torchdiffeq takes sde.probability_flow(score) or a ScoreModel, got {flow!r}")
        flow = flow.process.probability_flow(flow)
    check_reverse("an ODE method", flow, 0.0)
    return _Function(flow)
