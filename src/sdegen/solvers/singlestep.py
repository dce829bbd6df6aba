"""One-step stochastic methods: Euler-Maruyama on any reverse SDE, and the reverse-diffusion predictor."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdegen.frames import TIME
from sdegen.grids import Grid, natural
from sdegen.noise import NoiseSource
from sdegen.sde import Level, check_eta
from sdegen.solvers.base import OneStep, Reverse, Step, check_reverse, check_score_model, draw
from sdegen.tensors import combine, diffuse, like, noise_like, widen


@dataclass(frozen=True)
class EulerMaruyama(OneStep):
    """Euler-Maruyama in t on the reverse SDE, for scalar, diagonal and matrix noise (Maruyama 1955).

    `x_next = x + drift dt + g sqrt(|dt|) z`. Weak order 1; strong order 1 where g does not depend on x, else 1/2.
    A score model is reversed with this eta; a `ReverseSDE` must have the same (InvalidArgumentError otherwise).
    """

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
