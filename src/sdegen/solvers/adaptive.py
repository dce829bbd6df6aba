"""A stochastic method in t with an error estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdegen.frames import TIME, Frame
from sdegen.noise import NoiseSource
from sdegen.sde import Level
from sdegen.solvers.base import Reverse, Step, draw
from sdegen.solvers.stochastic import StochasticHeun
from sdegen.tensors import combine, diffuse, like, noise_like, widen


@dataclass(frozen=True)
class EmbeddedHeun(StochasticHeun):
    """`StochasticHeun`, its difference to the Euler-Maruyama step inside of it the error; two evaluations a step.

    `error = (drift^ - drift) dt/2 + (g(x, next) - g(x, now)) dw/2`. Where g depends on x alone the noise has no part in
    it. Jolicoeur-Martineau et al. 2021, alg. 1; Roberts 2012 for the stochastic Heun step.
    """

    frame: ClassVar[Frame] = TIME

    @property
    def adaptive(self) -> bool:
        """A step has an error estimate."""
        return True

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One step, and what Euler-Maruyama would have made of it."""
        h, one, wide = next.t - now.t, torch.ones_like(next.t), widen(x)
        drift = TIME.field(model, x, now, self.eta)
        euler = combine((one, wide), (h, drift))
        kick = euler.new_zeros(())
        if self.stochastic:
            g = self.eta * model.process.diffusion(wide, now.t)
            dw = draw(noise, noise_like(g, x), now, next)
            dw = like(h.abs().sqrt(), dw) * dw
            kick = self._kick(model, wide, euler, now, next, g, dw, noise)
            euler = euler + diffuse(g, dw, wide)
        later = TIME.field(model, euler.to(x.dtype), next, self.eta)
        out = combine((one, wide), (h / 2, drift), (h / 2, later)) + kick
        return Step(out.to(x.dtype), carry, out - euler, 1.5 if self.stochastic else 2.0)
