"""One-step methods in t: Euler-Maruyama, Milstein, Heun, a Runge-Kutta method of weak order 2; reverse diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.processes.sde import check_eta
from sdegen.solvers.base import OneStep, Reverse, Step, check_reverse, check_score_model, draw
from sdegen.solvers.frames import TIME
from sdegen.tensors import combine, diffuse, like, noise_like, widen


@dataclass(frozen=True)
class _InTime(OneStep):
    """What methods in t on a reverse SDE share: an eta, which a `ReverseSDE` must have too, and the natural grid."""

    eta: float = 1.0
    grid: Grid = field(default=natural, repr=False)

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero."""
        return self.eta > 0

    @property
    def convergence(self) -> int:
        """Weak order 1."""
        return 1

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        check_reverse(self, model, self.eta)
        return ()


@dataclass(frozen=True)
class EulerMaruyama(_InTime):
    """Euler-Maruyama in t on the reverse SDE, for scalar, diagonal and matrix noise (Maruyama 1955).

    `x_next = x + drift dt + g sqrt(|dt|) z`. Weak order 1; strong order 1 where g does not depend on x, else 1/2.
    A score model is reversed with this eta; a `ReverseSDE` must have the same (InvalidArgumentError otherwise).
    """

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One Euler-Maruyama step."""
        h = next.t - now.t
        out = combine((torch.ones_like(h), x), (h, TIME.field(model, x, now, self.eta)))
        if self.eta > 0:
            wide = widen(x)
            g = self.eta * model.process.diffusion(wide, now.t)
            kick = diffuse(g, draw(noise, noise_like(g, x), now, next), wide)
            out = out + like(h.abs().sqrt(), out) * kick
        return Step(out.to(x.dtype), carry)


@dataclass(frozen=True)
class Milstein(EulerMaruyama):
    """Euler-Maruyama with the next term of the Ito-Taylor expansion, `g g' (dw^2 - dt)/2` (Milstein 1975).

    `x_next = x + drift dt + g dw + (g dg/dx)(dw^2 - |dt|)/2`, dg/dx by forward-mode automatic differentiation. Weak
    order 1; strong order 1 for diagonal noise each of whose entries depends on its own coordinate, where
    Euler-Maruyama has 1/2; where g does not depend on x the two are the same. Raises InvalidArgumentError for matrix
    noise, whose terms would need more than the increments.
    """

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        super().init(model, x, now)
        if self.stochastic and model.process.diffusion(widen(x), now.t).ndim > x.ndim:
            raise InvalidArgumentError(
                f"{self} needs diagonal noise and {model.process} has matrix noise; use euler_maruyama() or "
                "StochasticRungeKutta()"
            )
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One Milstein step."""
        if not self.stochastic or isinstance(model.process, Process):
            return super().step(model, x, now, next, carry, noise)
        h, wide = next.t - now.t, widen(x)
        out = combine((torch.ones_like(h), x), (h, TIME.field(model, x, now, self.eta)))
        dw = like(h.abs().sqrt(), out) * draw(noise, x, now, next)

        def kick(v: Tensor) -> Tensor:
            return diffuse(self.eta * model.process.diffusion(v, now.t), torch.ones_like(v), v)

        g = kick(wide)
        slope: Tensor = torch.func.jvp(kick, (wide,), (g,))[1]
        return Step((out + g * dw + slope * (dw * dw - like(h.abs(), out)) / 2).to(x.dtype), carry)


@dataclass(frozen=True)
class StochasticHeun(_InTime):
    """Heun's method in t: the mean of the drifts at both ends, and of g at both times (Kloeden & Platen 1992, ch. 15).

    `x^ = x + drift dt + g dw`, `x_next = x + (drift + drift^) dt/2 + (g(x, now) + g(x, next)) dw/2`. Weak order 2 and
    strong order 1 where g does not depend on x, as on every `Process`; weak order 1 otherwise. Two evaluations a step.
    """

    @property
    def evals(self) -> int:
        """Two network evaluations per step."""
        return 2

    @property
    def convergence(self) -> int:
        """Order 2: of the path for eta = 0, of the law where g does not depend on x for eta > 0."""
        return 2

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One step."""
        return Step(self._both(model, x, now, next, noise)[0].to(x.dtype), carry)

    def _both(
        self, model: Reverse, x: Tensor, now: Level, next: Level, noise: NoiseSource | None
    ) -> tuple[Tensor, Tensor]:
        """x at `next`, and what Euler-Maruyama makes of the same step."""
        h, one, wide = next.t - now.t, torch.ones_like(next.t), widen(x)
        drift = TIME.field(model, x, now, self.eta)
        ahead = combine((one, wide), (h, drift))
        kick = ahead.new_zeros(())
        if self.stochastic:
            g = self.eta * model.process.diffusion(wide, now.t)
            dw = draw(noise, noise_like(g, x), now, next)
            dw = like(h.abs().sqrt(), dw) * dw
            kick = self._kick(model, wide, ahead, now, next, g, dw, noise)
            ahead = ahead + diffuse(g, dw, wide)
        later = TIME.field(model, ahead.to(x.dtype), next, self.eta)
        return combine((one, wide), (h / 2, drift), (h / 2, later)) + kick, ahead

    def _kick(
        self,
        model: Reverse,
        x: Tensor,
        ahead: Tensor,
        now: Level,
        next: Level,
        g: Tensor,
        dw: Tensor,
        noise: NoiseSource | None,
    ) -> Tensor:
        """The noise of the step; `ahead` is `x + drift dt`, g that at now."""
        return (diffuse(g, dw, x) + diffuse(self.eta * model.process.diffusion(x, next.t), dw, x)) / 2


@dataclass(frozen=True)
class StochasticRungeKutta(StochasticHeun):
    """The explicit Runge-Kutta method of weak order 2 on any reverse SDE (Platen; Kloeden & Platen 1992, eq. 15.1.3).

    For scalar noise, diagonal noise each of whose entries depends on its own coordinate, and matrix noise `[B, *S, M]`
    (4 M evaluations of g, none of the network): g's dependence on x enters by differences at `+-g sqrt(dt)`. Where g
    does not depend on x it is `StochasticHeun`. Two evaluations a step.
    """

    def _kick(
        self,
        model: Reverse,
        x: Tensor,
        ahead: Tensor,
        now: Level,
        next: Level,
        g: Tensor,
        dw: Tensor,
        noise: NoiseSource | None,
    ) -> Tensor:
        process, root = model.process, (next.t - now.t).abs().sqrt()
        if isinstance(process, Process):
            return super()._kick(model, x, ahead, now, next, g, dw, noise)
        size = like(root, x)

        def at(y: Tensor, level: Level) -> Tensor:
            return self.eta * process.diffusion(y, level.t)

        if g.ndim <= x.ndim:
            side = size * diffuse(g, torch.ones_like(x), x)
            up, down = (diffuse(at(ahead + s * side, next), torch.ones_like(x), x) for s in (1, -1))
            here = diffuse(g, torch.ones_like(x), x)
            return ((up + down + 2 * here) * dw + (up - down) * (dw * dw - size * size) / size) / 4
        return self._matrix(at, x, ahead, now, next, g, dw, noise, root)

    def _matrix(
        self,
        at: Callable[[Tensor, Level], Tensor],
        x: Tensor,
        ahead: Tensor,
        now: Level,
        next: Level,
        g: Tensor,
        dw: Tensor,
        noise: NoiseSource | None,
        root: Tensor,
    ) -> Tensor:
        """The terms of every pair of noises; the two-point variables V are signs of normals of their own."""
        count, size, narrow = g.shape[-1], like(root, x), like(root, dw)
        signs = torch.sign(draw(noise, dw.new_empty(dw.shape[0], count, count), now, next, 1)).tril(-1)
        double = (
            (narrow * narrow)[..., None] * (signs - signs.mT) if narrow.ndim else narrow * narrow * (signs - signs.mT)
        )
        sides = [size * g[..., j] for j in range(count)]
        both = [(at(x + side, now), at(x - side, now)) for side in sides]
        total = torch.zeros_like(x)
        for j in range(count):
            own, w = g[..., j], _column(dw[:, j], x)
            up, down = (at(ahead + s * sides[j], next)[..., j] for s in (1, -1))
            total = total + (up + down + 2 * own) * w + (up - down) * (w * w - size * size) / size
            for r in range(count):
                if r != j:
                    up, down = both[r][0][..., j], both[r][1][..., j]
                    cross = w * _column(dw[:, r], x) + _column(double[:, r, j], x)
                    total = total + (up + down - 2 * own) * w + (up - down) * cross / size
        return total / 4


def _column(v: Tensor, x: Tensor) -> Tensor:
    """One number per row, `[B]`, shaped to multiply x."""
    return v.reshape(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True)
class ReverseDiffusion(OneStep):
    """The reverse-diffusion predictor: the forward step's own discretisation, reversed (Song et al. 2021, eq. 46).

    With the forward kernel `x_now = a x_next + s noise`: `x_next = (2 - a) x_now + s^2 score + s z`. Weak order 1.
    """

    grid: Grid = field(default=natural, repr=False)

    @property
    def stochastic(self) -> bool:
        """Always: it draws one normal per step."""
        return True

    @property
    def convergence(self) -> int:
        """Weak order 1."""
        return 1

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        check_score_model(self, model)
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One reverse-diffusion step."""
        model = check_score_model(self, model)
        a, s = model.process.kernel(next, now)
        out = combine((2 - a, x), (s * s, model(x, now, "score")))
        return Step((out + like(s, out) * draw(noise, x, now, next)).to(x.dtype), carry)
