"""A stochastic method in t with an error estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdegen.frames import TIME, Frame
from sdegen.noise import NoiseSource
from sdegen.sde import Level
from sdegen.solvers.base import Reverse, Step
from sdegen.solvers.stochastic import StochasticHeun


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
        out, euler = self._both(model, x, now, next, noise)
        return Step(out.to(x.dtype), carry, out - euler, 1.5 if self.stochastic else 2.0)
