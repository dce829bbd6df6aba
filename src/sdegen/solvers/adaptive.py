"""A stochastic method in t with an error estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.solvers.base import Reverse, Step
from sdegen.solvers.frames import TIME, Frame
from sdegen.solvers.stochastic import StochasticRungeKutta
from sdegen.tensors import widen


@dataclass(frozen=True)
class EmbeddedHeun(StochasticRungeKutta):
    """`StochasticRungeKutta`, its difference to the Euler-Maruyama step inside of it the error; two evaluations a step.

    Where g does not depend on x it is `StochasticHeun`, and `error = (drift^ - drift) dt/2 + (g(next) - g(now)) dw/2`.
    Where it does, the term in `dw^2 - dt` gives it strong order 1: steps that are chosen by the noise they meet
    converge to another limit in methods of order 1/2 (Gaines & Lyons 1997), and so matrix noise that depends on x,
    whose order 1 needs more than increments, is refused with InvalidArgumentError. Jolicoeur-Martineau et al. 2021,
    alg. 1, for the embedded pair; Roberts 2012 for the stochastic Heun step.
    """

    frame: ClassVar[Frame] = TIME

    @property
    def adaptive(self) -> bool:
        """A step has an error estimate."""
        return True

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        super().init(model, x, now)
        wide = widen(x)
        matrix = self.stochastic and len(x) > 0 and model.process.diffusion(wide, now.t).ndim > x.ndim
        if matrix and model.process.divergence(wide, now.t) is not None:
            raise InvalidArgumentError(
                f"{self} adapts its steps, and the matrix noise of {model.process} depends on x: use "
                "stochastic_runge_kutta() or euler_maruyama() with a number of steps"
            )
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """One step, and what Euler-Maruyama would have made of it."""
        out, euler = self._both(model, x, now, next, noise)
        return Step(out.to(x.dtype), carry, out - euler, 1.5 if self.stochastic else 2.0)
