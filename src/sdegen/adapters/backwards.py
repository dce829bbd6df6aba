"""A reverse SDE as torchsde asks for one: time that increases, states `[B, D]`, methods f and g."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdegen.adapters.common import check_known
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.processes.sde import ForwardSDE, ReverseSDE
from sdegen.scores.model import network
from sdegen.solvers.base import Reverse
from sdegen.solvers.frames import SIGMA, TIME, Frame
from sdegen.tensors import as_time, batch_time, combine, widen

SDE_TYPES = ("ito", "stratonovich")
NOISE_TYPES = ("additive", "diagonal", "general", "scalar")


class OutOfEvaluations(Exception):  # noqa: N818 - never seen outside of the adapter
    """More evaluations than a solve may take."""


class Backwards(torch.nn.Module):
    """`dy = f(u, y) du + g(u, y) dw` with `u = -t`: the reverse SDE in torchsde's form, see `for_torchsde`.

    Of a `ForwardSDE` it is the SDE as it stands, with `u = t`.

    `noise_type` is 'diagonal' for a diffusion `[]`, `[B]` or `[B, *S]`, and for a matrix 'general', or 'scalar' where
    it has one column; 'additive' and 'general' may be asked for, and make matrices of diagonals. `evals` counts the
    evaluations of the score.
    """

    def __init__(
        self,
        model: Reverse,
        shape: Sequence[int],
        eta: float,
        frame: Frame = TIME,
        *,
        sde_type: str = "ito",
        noise_type: str | None = None,
    ) -> None:
        super().__init__()
        self.model, self.shape, self.eta, self.frame = model, tuple(shape), eta, frame
        self.network = network(model)
        self.sign = 1.0 if isinstance(model, ForwardSDE) else -1.0
        self.sde_type = sde_type
        self.noise_type = noise_type or self._noise_type()
        self.ends: dict[float, Level] = {}
        self.dtype: torch.dtype | None = None
        self.evals = 0
        self.limit = math.inf
        self.memory: collections.deque[tuple[Tensor, float, bool, Tensor]] = collections.deque(maxlen=0)

    def remember(self) -> None:
        """Keep the last answers, for the very same state and time: torchsde asks again for some of them."""
        self.memory = collections.deque(maxlen=8)

    def _noise_type(self) -> str:
        x = torch.zeros(1, *self.shape, dtype=torch.float64)
        process = self.model.process
        g = torch.zeros(()) if isinstance(process, Process) else process.diffusion(x, as_time(process.t_max))
        if g.ndim <= x.ndim:
            return "diagonal"
        return "scalar" if g.shape[-1] == 1 else "general"

    def times(self, times: Tensor | Sequence[float]) -> Tensor:
        """torchsde's increasing `ts` `[n + 1]` from the times of a solve, float64: `-t`, or t of a `ForwardSDE`."""
        return self.sign * as_time(times)

    def flat(self, x: Tensor) -> Tensor:
        """torchsde's state `[B, D]` from x `[B, *S]`."""
        return x.reshape(x.shape[0], math.prod(self.shape))

    def shaped(self, y: Tensor) -> Tensor:
        """x `[..., B, *S]` from torchsde's states `[..., B, D]`."""
        return y.reshape(*y.shape[:-1], *self.shape)

    def level(self, u: Tensor) -> Level:
        """The level at torchsde's time u, inside of the span."""
        known = self.ends.get(float(u))
        if known is not None:
            return known
        process, tau = self.model.process, self.sign * u.detach().to("cpu", torch.float64)
        t = self.frame.level(process, tau).t
        low, high = process.t_min, process.t_max
        if self.ends:
            spanned = [float(end.t) for end in self.ends.values()]
            low, high = min(spanned), max(spanned)
        return process.level(t.clamp(low, high))

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift `[B, D]` at u `[]`, y `[B, D]`: minus the reverse drift, in the sense of `sde_type`."""
        mode = torch.is_grad_enabled()
        for state, time, graph, answer in self.memory:
            if state is y and time == float(u) and graph == mode:
                return answer
        if self.evals >= self.limit:
            raise OutOfEvaluations(f"torchsde took {self.evals} evaluations and is not at the end")
        self.evals += 1
        level = self.level(u)
        x = self._state(level, y)
        slope = self.sign * widen(self.frame.field(self.model, x, level, self.eta))
        if self.sde_type == "stratonovich":
            slope = slope - self._correction(widen(x), level)
        slope = self.flat(slope).to(y.dtype)
        self.memory.append((y, float(u), mode, slope))
        return slope

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion, `[B, D]` if `noise_type` is 'diagonal', else `[B, D, M]`."""
        level = self.level(u)
        g = self._diffusion(widen(self._state(level, y)), level)
        if g.ndim > len(self.shape) + 1:
            return g.flatten(1, -2).to(y.dtype)
        if g.ndim <= 1:
            wide = batch_time(g, y)[:, None].expand(y.shape)
        else:
            wide = self.flat(g.to(y.dtype).expand(y.shape[0], *self.shape))
        return torch.diag_embed(wide) if self.noise_type in ("additive", "general") else wide

    def noises(self, y: Tensor) -> int:
        """M, how many noises drive each sample: D where they are its own."""
        if self.noise_type == "diagonal":
            return y.shape[1]
        return int(self.g(as_time(self.sign * self.model.process.t_max), y[:1]).shape[-1])

    def _state(self, level: Level, y: Tensor) -> Tensor:
        x = self.shaped(y)
        x = x if self.frame == TIME else combine((self.frame.scale(level), x))
        return x if self.dtype is None else x.to(self.dtype)

    def _diffusion(self, x: Tensor, level: Level) -> Tensor:
        if self.frame == SIGMA:
            return self.eta * torch.sqrt(2 * self.frame.clock(level))
        return self.eta * self.model.process.diffusion(x, level.t)

    def _correction(self, x: Tensor, level: Level) -> Tensor | float:
        """Half of `sum_k (dg_k/dx) g_k` over the noises k, what Stratonovich's drift lacks of Ito's."""
        process = self.model.process
        if isinstance(process, Process):
            return 0.0
        g = self._diffusion(x, level)
        if g.ndim <= x.ndim:  # g g^T is diagonal, and its divergence is twice that sum
            spread = process.divergence(x, level.t)
            return 0.0 if spread is None else self.eta**2 / 4 * spread
        total = torch.zeros_like(x)
        for k in range(g.shape[-1]):
            along = g[..., k].clone()

            def column(v: Tensor, k: int = k) -> Tensor:
                return self._diffusion(v, level)[..., k]

            total = total + torch.func.jvp(column, (x,), (along,))[1]
        return total / 2


def for_torchsde(
    reverse: ReverseSDE, shape: Sequence[int], *, sde_type: str = "ito", noise_type: str | None = None
) -> Backwards:
    """What `torchsde.sdeint` and `sdeint_adjoint` take, from `sde.reverse(score)` and the sample shape `*S`.

    torchsde's time is `u = -t`, which increases towards data, and its states are flat, `[B, D]`:

        problem = sd.adapters.for_torchsde(reverse, (2,))
        ys = torchsde.sdeint(problem, problem.flat(x), problem.times(times), method="euler", dt=0.01)
        out = problem.shaped(ys[-1])

    sde_type: 'ito' for its methods euler, milstein and srk, 'stratonovich' for the others; the drift is converted. A
    module whose parameters are those of the network behind the score. Raises InvalidArgumentError for an eta of 0
    (`for_torchdiffeq`) and for unknown types, InvalidTypeError for what is no ReverseSDE.
    """
    if not isinstance(reverse, ReverseSDE):
        raise InvalidTypeError(f"for_torchsde takes sde.reverse(score), got {reverse!r}")
    if reverse.eta == 0:
        raise InvalidArgumentError("a probability flow has no noise: for_torchdiffeq(flow) is for it")
    check_known("sde_type", sde_type, SDE_TYPES)
    if noise_type is not None:
        check_known("noise_type", noise_type, NOISE_TYPES)
    return Backwards(reverse, shape, reverse.eta, sde_type=sde_type, noise_type=noise_type)
