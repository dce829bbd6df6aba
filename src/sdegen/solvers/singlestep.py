"""One-step stochastic methods: Euler-Maruyama on any reverse SDE, and the reverse-diffusion predictor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen.errors import InvalidTypeError
from sdegen.frames import TIME
from sdegen.grids import Grid, by_time
from sdegen.noise import NoiseSource
from sdegen.process import Level, Process, ReverseSDE, check_eta
from sdegen.solvers.base import OneStep, Reverse, Step
from sdegen.tensors import combine, diffuse, like, noise_like, widen


@dataclass(frozen=True)
class EulerMaruyama(OneStep):
    """Euler-Maruyama in t on the reverse SDE, for scalar, diagonal and matrix noise (Maruyama 1955).

    `x_next = x + drift dt + g sqrt(|dt|) z`. Weak order 1; strong order 1 where g does not depend on x, else 1/2.
    A `ReverseSDE` brings its own eta; a score model is reversed with this one.
    """

    eta: float = 1.0
    grid: Grid = by_time

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        """Whether eta is not zero; a ReverseSDE's own eta is taken to be."""
        return self.eta > 0

    @property
    def convergence(self) -> int:
        """Weak order 1."""
        return 1

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One Euler-Maruyama step."""
        h = next.t - now.t
        drift = TIME.field(model, x, now, self.eta)
        out = combine((torch.ones_like(h), x), (h, drift))
        eta = model.eta if isinstance(model, ReverseSDE) else self.eta
        if eta > 0 and noise is not None:
            wide = widen(x)
            g = eta * model.process.diffusion(wide, now.t)
            z = widen(noise(noise_like(g, x), now, next))
            out = out + like(h.abs().sqrt(), out) * diffuse(g, z, wide)
        return Step(out.to(x.dtype), carry)


@dataclass(frozen=True)
class ReverseDiffusion(OneStep):
    """The reverse-diffusion predictor: the forward step's own discretisation, reversed (Song et al. 2021, eq. 46).

    With the forward kernel `x_now = a x_next + s noise`: `x_next = (2 - a) x_now + s^2 score + s z`. Weak order 1.
    """

    grid: Grid = by_time

    @property
    def stochastic(self) -> bool:
        """Always: it draws one normal per step."""
        return True

    @property
    def convergence(self) -> int:
        """Weak order 1."""
        return 1

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One reverse-diffusion step."""
        process = model.process
        if isinstance(model, ReverseSDE) or not isinstance(process, Process):
            raise InvalidTypeError(
                "the reverse-diffusion predictor needs a ScoreModel on a Process; use euler_maruyama() on a ReverseSDE"
            )
        a, s = process.kernel(next, now)
        out = combine((2 - a, x), (s * s, model(x, now, "score")))
        if noise is not None:
            out = out + like(s, out) * widen(noise(x, now, next))
        return Step(out.to(x.dtype), carry)
