"""One-step methods in t: Euler-Maruyama, Milstein, Heun, a Runge-Kutta method of weak order 2; and DDPM's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, check_known, strict_keywords
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.diffusions import diffuse, noise_like
from sdegen.processes.sde import check_eta
from sdegen.solvers.base import Carry, OneStep, Reverse, Step, check_reverse, check_score_model, draw
from sdegen.solvers.frames import TIME
from sdegen.tensors import combine, like, widen


@dataclass(frozen=True)
class _InTime(OneStep):
    """What methods in t on a reverse SDE share: an eta, which a `ReverseSDE` must have too, and the natural grid."""

    eta: float = 1.0
    grid: Grid = field(default=natural, repr=False)
    convergence = 1

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def noise_end(self) -> bool:
        """Without noise: g is infinite where there is no signal."""
        return not self.stochastic

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        check_reverse(self, model, self.eta)
        return ()


@strict_keywords
@dataclass(frozen=True)
class EulerMaruyama(_InTime):
    """Euler-Maruyama in t on the reverse SDE, for scalar, diagonal and matrix noise (Maruyama 1955).

    `x_next = x + drift dt + g sqrt(|dt|) z`. Weak order 1; strong order 1 where g does not depend on x, else 1/2.
    A score model is reversed with this eta; a `ReverseSDE` must have the same (InvalidArgumentError otherwise).
    """

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        h = next.t - now.t
        out = combine((torch.ones_like(h), x), (h, TIME.field(model, x, now, self.eta)))
        if self.eta > 0:
            wide = widen(x)
            g = self.eta * model.process.diffusion(wide, now.t)
            kick = diffuse(g, draw(noise, noise_like(g, x), now, next), wide)
            out = out + like(h.abs().sqrt(), out) * kick
        return Step(out.to(x.dtype), carry)


@strict_keywords
@dataclass(frozen=True)
class Milstein(EulerMaruyama):
    """Euler-Maruyama with the next term of the Ito-Taylor expansion, `g g' (dw^2 - dt)/2` (Milstein 1975).

    `x_next = x + drift dt + g dw + (g dg/dx)(dw^2 - |dt|)/2`, dg/dx by forward-mode automatic differentiation. Weak
    order 1; strong order 1 for diagonal noise each of whose entries depends on its own coordinate, where
    Euler-Maruyama has 1/2; where g does not depend on x the two are the same. Raises InvalidArgumentError for matrix
    noise, whose terms would need more than the increments.
    """

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        super().init(model, x, now)
        if self.stochastic and model.process.diffusion(widen(x), now.t).ndim > x.ndim:
            raise InvalidArgumentError(
                f"{self} needs diagonal noise, {model.process} has matrix noise; use stochastic_runge_kutta()"
            )
        return ()

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        if not self.stochastic or model.process.gaussian:
            return super().step(model, x, now, next, carry, noise)
        h, wide = next.t - now.t, widen(x)
        out = combine((torch.ones_like(h), x), (h, TIME.field(model, x, now, self.eta)))
        dw = like(h.abs().sqrt(), out) * draw(noise, x, now, next)

        def kick(v: Tensor) -> Tensor:
            return diffuse(self.eta * model.process.diffusion(v, now.t), torch.ones_like(v), v)

        g = kick(wide)
        slope: Tensor = torch.func.jvp(kick, (wide,), (g,))[1]
        return Step((out + g * dw + slope * (dw * dw - like(h.abs(), out)) / 2).to(x.dtype), carry)


class _Noise(NamedTuple):
    """The noise of a step, made of `g(x, level)`, here that at x and now, `ahead = x + drift dt` and `dw = root z`."""

    g: Callable[[Tensor, Level], Tensor]
    here: Tensor
    x: Tensor
    ahead: Tensor
    now: Level
    next: Level
    root: Tensor
    dw: Tensor

    def mean(self) -> Tensor:
        """The mean of g at both times."""
        return (diffuse(self.here, self.dw, self.x) + diffuse(self.g(self.x, self.next), self.dw, self.x)) / 2

    def diagonal(self) -> Tensor:
        """The terms of noises each of which drives its own coordinate."""
        size, one = like(self.root, self.x), torch.ones_like(self.x)
        g = diffuse(self.here, one, self.x)
        up, down = (diffuse(self.g(self.ahead + s * (size * g), self.next), one, self.x) for s in (1, -1))
        return _add(torch.zeros_like(self.x), up, down, 2 * g, self.dw, self.dw * self.dw - size * size, size) / 4

    def matrix(self, signs: Tensor) -> Tensor:
        """The terms of every pair of noises; the two-point variables V are the signs `[B, M, M]` of fresh normals."""
        count, size, narrow = self.here.shape[-1], like(self.root, self.x), like(self.root, self.dw)
        signs = signs.tril(-1)
        square = narrow * narrow
        double = (square[..., None] if narrow.ndim else square) * (signs - signs.mT)
        columns = self.here.unbind(-1)
        sides = [size * column for column in columns]
        both = [(self.g(self.x + side, self.now), self.g(self.x - side, self.now)) for side in sides]
        total = torch.zeros_like(self.x)
        for j, own in enumerate(columns):
            w = like(self.dw[:, j], self.x)
            up, down = (self.g(self.ahead + s * sides[j], self.next)[..., j] for s in (1, -1))
            total = _add(total, up, down, 2 * own, w, w * w - size * size, size)
            for r in range(count):
                if r != j:
                    up, down = both[r][0][..., j], both[r][1][..., j]
                    cross = w * like(self.dw[:, r], self.x) + like(double[:, r, j], self.x)
                    total = _add(total, up, down, -2 * own, w, cross, size)
        return total / 4


def _add(total: Tensor, up: Tensor, down: Tensor, twice: Tensor, dw: Tensor, square: Tensor, size: Tensor) -> Tensor:
    """A sum with the terms of g at two sides, `size` times g away: its mean times dw, its slope times `square`."""
    return total + (up + down + twice) * dw + (up - down) * square / size


@strict_keywords
@dataclass(frozen=True)
class StochasticHeun(_InTime):
    """Heun's method in t: the mean of the drifts at both ends, and of g at both times (Kloeden & Platen 1992, ch. 15).

    `x^ = x + drift dt + g dw`, `x_next = x + (drift + drift^) dt/2 + (g(x, now) + g(x, next)) dw/2`. Weak order 2 and
    strong order 1 where g does not depend on x, as on every `Process`; weak order 1 otherwise. Two evaluations a step.
    """

    evals = 2
    convergence = 2
    follows: ClassVar[bool] = False
    """Whether g's dependence on x enters, by differences."""

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        return Step(self._both(model, x, now, next, noise)[0].to(x.dtype), carry)

    def _both(self, model: Reverse, x: Tensor, now: Level, next: Level, noise: NoiseSource | None) -> list[Tensor]:
        """x at `next`, and what Euler-Maruyama makes of the same step."""
        h, one, wide = next.t - now.t, torch.ones_like(next.t), widen(x)
        drift = TIME.field(model, x, now, self.eta)
        ahead = combine((one, wide), (h, drift))
        kick = ahead.new_zeros(())
        if self.stochastic:

            def g(y: Tensor, level: Level) -> Tensor:
                return self.eta * model.process.diffusion(y, level.t)

            here = g(wide, now)
            dw = draw(noise, noise_like(here, x), now, next)
            parts = _Noise(g, here, wide, ahead, now, next, h.abs().sqrt(), like(h.abs().sqrt(), dw) * dw)
            if not self.follows or model.process.gaussian:
                kick = parts.mean()
            elif here.ndim <= x.ndim:
                kick = parts.diagonal()
            else:
                count = here.shape[-1]
                kick = parts.matrix(torch.sign(draw(noise, dw.new_empty(dw.shape[0], count, count), now, next, 1)))
            ahead = ahead + diffuse(here, parts.dw, wide)
        later = TIME.field(model, ahead.to(x.dtype), next, self.eta)
        return [combine((one, wide), (h / 2, drift), (h / 2, later)) + kick, ahead]


@strict_keywords
@dataclass(frozen=True)
class StochasticRungeKutta(StochasticHeun):
    """The explicit Runge-Kutta method of weak order 2 on any reverse SDE (Platen; Kloeden & Platen 1992, eq. 15.1.3).

    For scalar noise, diagonal noise each of whose entries depends on its own coordinate, and matrix noise `[B, *S, M]`
    (4 M evaluations of g, none of the network): g's dependence on x enters by differences at `+-g sqrt(dt)`. Where g
    does not depend on x it is `StochasticHeun`. Two evaluations a step.
    """

    follows = True


@strict_keywords
@dataclass(frozen=True)
class ReverseDiffusion(OneStep):
    """The reverse-diffusion predictor: the forward step's own discretisation, reversed (Song et al. 2021, eq. 46).

    With the forward kernel `x_now = a x_next + s noise`: `x_next = (2 - a) x_now + s^2 score + s z`. Weak order 1.
    """

    grid: Grid = field(default=natural, repr=False)
    stochastic = True
    noise_end = False
    convergence = 1

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        check_score_model(self, model)
        return ()

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        scored = check_score_model(self, model)
        a, s = scored.process.kernel(next, now)
        out = combine((2 - a, x), (s * s, scored(x, now, "score")))
        return Step((out + like(s, out) * draw(noise, x, now, next)).to(x.dtype), carry)


@strict_keywords
@dataclass(frozen=True)
class Posterior(OneStep):
    """DDPM's step with a variance of its own: the posterior's mean given x and the predicted data, and more noise.

    With the forward kernel `x_now = a x_next + s noise`, `r = sigma_next/sigma_now`:

        x_next = a r^2 x_now + alpha_next (s/sigma_now)^2 data + s r^(1 - fraction) z.

    Weak order 1. At fraction 0 it is the posterior itself, `ddpm()`.

    Args:
        variance: 'large', the forward kernel's (fraction 1); or 'learned', for each element what the network says,
            `log variance` being linear in it between both.
        grid: the method's own grid.

    Raises:
        InvalidArgumentError: another variance, or at a solve's begin a 'learned' one that the model has not.

    Source: Ho et al. (2020), sec. 3.2; Nichol & Dhariwal (2021), eq. 15.
    """

    variance: str = "large"
    grid: Grid = field(default=natural, repr=False)
    stochastic = True
    convergence = 1

    def __post_init__(self) -> None:
        check_known("variance", self.variance, ("large", "learned"))

    @property
    def learned_variance(self) -> bool:
        return self.variance == "learned"

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        if not check_score_model(self, model).learned_variance and self.learned_variance:
            raise InvalidArgumentError(
                f"{self} draws its noise by the variance that the network learned, and {model} has none: give "
                "ScoreModel(..., learned_variance=True) where the network returns twice the channels, else take ddpm()"
            )
        return ()

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        scored = check_score_model(self, model)
        a, s = scored.process.kernel(next, now)
        ratio, share = next.sigma / now.sigma, s / now.sigma
        if self.learned_variance:
            data, fraction = scored.with_fraction(x, now, "data")
        else:
            data, fraction = scored(x, now, "data"), None
        out = combine((a * ratio * ratio, x), (next.alpha * share * share, data))
        spread = like(s, out)
        if fraction is not None:
            spread = spread * torch.exp((1 - fraction) * like(ratio.log(), out))
        return Step((out + spread * draw(noise, x, now, next)).to(x.dtype), carry)


@strict_keywords
@dataclass(frozen=True)
class EmbeddedHeun(StochasticRungeKutta):
    """`StochasticRungeKutta`, its difference to the Euler-Maruyama step inside of it the error; two evaluations a step.

    Where g does not depend on x it is `StochasticHeun`, and `error = (drift^ - drift) dt/2 + (g(next) - g(now)) dw/2`.
    Where it does, the term in `dw^2 - dt` gives it strong order 1: steps that are chosen by the noise they meet
    converge to another limit in methods of order 1/2 (Gaines & Lyons 1997), and so matrix noise that depends on x,
    whose order 1 needs more than increments, is refused with InvalidArgumentError. Jolicoeur-Martineau et al. 2021,
    alg. 1, for the embedded pair; Roberts 2012 for the stochastic Heun step.
    """

    adaptive = True

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        super().init(model, x, now)
        wide = widen(x)
        matrix = self.stochastic and len(x) > 0 and model.process.diffusion(wide, now.t).ndim > x.ndim
        if matrix and model.process.divergence(wide, now.t) is not None:
            raise InvalidArgumentError(
                f"{self} adapts its steps, and the matrix noise of {model.process} depends on x: use euler_maruyama()"
            )
        return ()

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        out, euler = self._both(model, x, now, next, noise)
        return Step(out.to(x.dtype), carry, out - euler, 1.5 if self.stochastic else 2.0)


@dataclass(frozen=True)
class ExactTransition(OneStep):
    """The exact transition of a forward SDE that knows its own, from data to noise: no evaluation, no error."""

    evals = 0
    stochastic = True

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """x at `next`, drawn given x now."""
        return Step(model.process.transit(x, now, next, draw(noise, x, now, next)).to(x.dtype), carry)
