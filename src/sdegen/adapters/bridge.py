"""A reverse process as another library asks for it, and the checks before the first call."""

from __future__ import annotations

import collections
import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.loop.solution import Solution, SolveError, Status
from sdegen.solvers.base import Reverse, between, check_reverse, check_score_model
from sdegen.solvers.frame import Frame
from sdegen.solvers.frames import TIME
from sdegen.tensors import as_time, batch_time, combine, finite_rows, widen


class OutOfEvaluations(Exception):  # noqa: N818 - never seen outside of the adapters
    """More evaluations than a call may take."""


class Bridge(torch.nn.Module):
    """A model's reverse process between levels, in a clock that increases.

    `dY/du = sign (rate Y + N)` with `u = sign tau` and `x = scale Y` of a frame. A module whose parameters are those of
    the network behind the score; `evals` counts the evaluations of it, and more than `limit` raise OutOfEvaluations.
    levels: `[]` each, in the order in which they are passed; the model is asked between the first and the last. dtype:
    of the states x; Y's own if None.
    """

    def __init__(
        self, model: Reverse, frame: Frame, eta: float, levels: Sequence[Level], dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.model, self.frame, self.eta, self.levels, self.dtype = model, frame, eta, levels, dtype
        self.network = model.module
        taus = torch.stack([frame.clock(level) for level in levels])
        self.sign = 1.0 if float(taus[-1]) > float(taus[0]) else -1.0
        self.clocks = self.sign * taus
        self.known = dict(zip(self.clocks.tolist(), levels))
        self.evals = 0
        self.limit = math.inf

    def level(self, u: Tensor) -> Level:
        """The level at a clock `[]`, inside of the span."""
        clock = u.detach().to("cpu", torch.float64)
        known: Level | None = self.known.get(float(clock))
        if known is not None:
            return known
        process, tau = self.model.process, self.sign * clock.clamp(self.clocks[0], self.clocks[-1])
        return between(process, self.frame.level(process, tau).t, self.levels[0], self.levels[-1])

    def enter(self, x: Tensor) -> Tensor:
        """Y at the first level, in working precision, from x `[B, *S]`."""
        return combine((1 / self.frame.scale(self.levels[0]), x))

    def state(self, level: Level, y: Tensor) -> Tensor:
        """The state x at a level from Y `[B, *S]`."""
        return combine((self.frame.scale(level), y)).to(self.dtype or y.dtype)

    def slope(self, level: Level, y: Tensor) -> Tensor:
        """`dY/du` `[B, *S]` at a level, one evaluation."""
        if self.evals >= self.limit:
            raise OutOfEvaluations("this is the limit, and the end is not reached")
        self.evals += 1
        slope = widen(self.frame.field(self.model, self.state(level, y), level, self.eta))
        rate = self.frame.rate(self.eta)
        return self.sign * (slope + rate * y if rate else slope)

    def failure(self, solver: object, reason: str, status: Status, level: Level, x: Tensor, advice: str) -> SolveError:
        """The error of a run that ended short of the last level: the last good step began at `level` `[]`, x there."""
        rows = x.detach().new_zeros(x.shape[0], dtype=torch.float64)
        count = rows.to(torch.int32)
        how = torch.full_like(count, int(status), dtype=torch.int8)
        at = self.model.process.level(rows + level.t.to(rows.device))
        return SolveError(
            f"{solver} gave up past t={float(level.t):.6g} after {self.evals} evaluations: {reason}. The state there "
            f"is in this error's `partial`; {advice}",
            Solution(x, at, count + self.evals, count, count, how, []),
        )


class Flow(Bridge):
    """A probability flow between levels that keeps failed rows still, and notes what an adaptive method reached."""

    def __init__(self, model: Reverse, frame: Frame, x: Tensor, levels: Sequence[Level]) -> None:
        super().__init__(model, frame, 0.0, levels, x.dtype)
        self.failed = torch.zeros_like(finite_rows(x))
        self.reached = levels[0], x

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        """`dY/du` `[B, *S]`, 0 in a row from where it was not finite."""
        slope = self.slope(self.level(u), y)
        fine = finite_rows(slope)
        self.failed = self.failed | (~fine & finite_rows(y))
        return torch.where((fine & ~self.failed).reshape(-1, *(1,) * (y.ndim - 1)), slope, 0.0)

    def callback_accept_step(self, u: Tensor, y: Tensor, step: Tensor) -> None:
        """torchdiffeq's callback: a step from u and y is accepted."""
        level = self.level(u)
        self.reached = level, self.state(level, y.detach())

    def states(self, path: Tensor) -> Tensor:
        """x `[n + 1, B, *S]` from Y at the levels, NaN where a row failed."""
        x = torch.stack([self.state(level, y) for level, y in zip(self.levels, path)])
        return torch.where(self.failed.reshape(1, -1, *(1,) * (path.ndim - 2)), float("nan"), x)


class Backwards(Bridge):
    """A reverse SDE in torchsde's form, `dy = f(u, y) du + g(u, y) dw` with `u = -t`, see `for_torchsde`.

    Of a `ForwardSDE` it is the SDE as it stands, with `u = t`. `noise_type` is 'diagonal' for a diffusion `[]`, `[B]`
    or `[B, *S]`, and for a matrix 'general', or 'scalar' where it has one column; 'additive' and 'general' may be asked
    for, and make matrices of diagonals. `evals` counts the evaluations of the score.
    """

    def __init__(
        self,
        model: Reverse,
        shape: Sequence[int],
        eta: float,
        frame: Frame = TIME,
        levels: Sequence[Level] | None = None,
        *,
        sde_type: str = "ito",
        noise_type: str | None = None,
    ) -> None:
        process = model.process
        times = (process.t_min, process.t_max) if model.runs_forward else (process.t_max, process.t_min)
        super().__init__(model, frame, eta, levels or [process.level(t) for t in times])
        self.shape, self.sde_type = tuple(shape), sde_type
        self.noise_type = noise_type or "diagonal"
        if noise_type is None and not process.gaussian:
            g = process.diffusion(
                torch.zeros(1, *self.shape, dtype=torch.float64, device="cpu"), as_time(process.t_max)
            )
            if g.ndim > 1 + len(self.shape):
                self.noise_type = "scalar" if g.shape[-1] == 1 else "general"
        self.memory: collections.deque[tuple[Tensor, float, bool, Tensor]] = collections.deque(maxlen=0)

    def remember(self) -> None:
        """Keep the last answers, for the very same state and time: torchsde asks again for some of them."""
        self.memory = collections.deque(maxlen=8)

    def times(self, times: Tensor | Sequence[float]) -> Tensor:
        """torchsde's increasing `ts` `[n + 1]` from the times of a solve, float64: `-t`, or t of a `ForwardSDE`."""
        return self.sign * as_time(times)

    def flat(self, x: Tensor) -> Tensor:
        """torchsde's state `[B, D]` from x `[B, *S]`."""
        return x.reshape(x.shape[0], math.prod(self.shape))

    def shaped(self, y: Tensor) -> Tensor:
        """x `[..., B, *S]` from torchsde's states `[..., B, D]`."""
        return y.reshape(*y.shape[:-1], *self.shape)

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift `[B, D]` at u `[]`, y `[B, D]`: minus the reverse drift, in the sense of `sde_type`."""
        mode = torch.is_grad_enabled()
        for state, time, graph, answer in self.memory:
            if state is y and time == float(u) and graph == mode:
                return answer
        level, shaped = self.level(u), self.shaped(y)
        slope = self.slope(level, shaped)
        if self.sde_type == "stratonovich":
            slope = slope - self._correction(widen(self.state(level, shaped)), level)
        slope = self.flat(slope).to(y.dtype)
        self.memory.append((y, float(u), mode, slope))
        return slope

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion, `[B, D]` if `noise_type` is 'diagonal', else `[B, D, M]`."""
        level = self.level(u)
        g = self._diffusion(widen(self.state(level, self.shaped(y))), level)
        if g.ndim > len(self.shape) + 1:
            return g.flatten(1, -2).to(y.dtype)
        if g.ndim <= 1:
            wide = batch_time(g, y)[:, None].expand(y.shape)
        else:
            wide = self.flat(g.to(y.dtype).expand(y.shape[0], *self.shape))
        return torch.diag_embed(wide) if self.noise_type in ("additive", "general") else wide

    def noises(self, y: Tensor) -> int:
        """M, the number of noises that drive each sample: D where they are its own."""
        return y.shape[1] if self.noise_type == "diagonal" else int(self.g(self.clocks[0], y[:1]).shape[-1])

    def _diffusion(self, x: Tensor, level: Level) -> Tensor:
        if self.frame.timed:
            return self.eta * self.model.process.diffusion(x, level.t)
        return self.eta * torch.sqrt(2 * self.frame.clock(level))

    def _correction(self, x: Tensor, level: Level) -> Tensor | float:
        """Half of `sum_k (dg_k/dx) g_k` over the noises k, what Stratonovich's drift lacks of Ito's."""
        process = self.model.process
        if process.gaussian:
            return 0.0
        g = self._diffusion(x, level)
        if g.ndim <= x.ndim:  # g g^T is diagonal, and its divergence is twice that sum
            spread = process.divergence(x, level.t)
            return 0.0 if spread is None else self.eta**2 / 4 * spread
        total = torch.zeros_like(x)
        for k in range(g.shape[-1]):

            def column(v: Tensor, k: int = k) -> Tensor:
                return self._diffusion(v, level)[..., k]

            total = total + torch.func.jvp(column, (x,), (g[..., k].clone(),))[1]
        return total / 2


def package(name: str, extra: str) -> Any:
    """The module `name`. Raises InvalidArgumentError with how to install it where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InvalidArgumentError(f"this solver runs on {name}: pip install 'sdegen[{extra}]'") from None


def check_tolerances(rtol: float, atol: float) -> None:
    """Raises InvalidArgumentError unless both are finite, not negative, and one is positive."""
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol > 0):
        raise InvalidArgumentError(f"tolerances must be finite, >= 0 and not both 0, got rtol={rtol}, atol={atol}")


def check_start(solver: object, model: Reverse, frame: Frame, eta: float, now: Level) -> None:
    """Raises an error unless the model fits the solver's eta and frame, and the batch has one time, `now` `[]`."""
    check_reverse(solver, model, eta)
    if not frame.timed:
        check_score_model(solver, model)
    if now.t.ndim:
        raise InvalidArgumentError(f"{solver} has one time for the whole batch; give times, or an sd.Fixed, as control")


def adjoint_params(solver: object, model: Reverse, given: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """The tensors that an adjoint finds the gradients of: those given, or the parameters of the model's network."""
    if given is not None:
        return tuple(given)
    net = model.module
    if net is None:
        raise InvalidArgumentError(
            f"{solver}: no torch.nn.Module is behind {model}; give adjoint_params, a sequence of tensors, or ()"
        )
    return tuple(p for p in net.parameters() if p.requires_grad)
