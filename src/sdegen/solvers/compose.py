"""Solvers made of solvers: Langevin correctors and predictor-corrector methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid, check_steps, natural
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.processes.sde import ReverseSDE
from sdegen.solvers.base import Carry, OneStep, Reverse, Solver, Step, draw
from sdegen.solvers.stochastic import ReverseDiffusion
from sdegen.tensors import combine, widen


@dataclass(frozen=True)
class Langevin(OneStep):
    """`steps` steps of unadjusted Langevin dynamics at the level `next`: `x + e score + sqrt(2 e) z`.

    The step size comes from the level, `e = 2 (snr sigma)^2`: rules from the norms of one sample are biased, rules
    from batch means couple samples (`BatchCoupledLangevin`). Leaves the law at its level up to a bias of order snr^2:
    for Gaussian data of variance C at that level, variance `C / (1 - e/(2 C))` in equilibrium, at most
    `1/(1 - snr^2)` times too wide. Raises InvalidArgumentError unless 0 < snr < 1 (Song & Ermon 2019, alg. 1).

    As a solver on its own it is annealed Langevin dynamics. `length`, a number or a function of the level, gives e
    instead; on a `ReverseSDE` of a general SDE, whose levels have no sigma, it must.
    """

    snr: float = 0.16
    steps: int = 1
    grid: Grid = field(default=natural, repr=False)
    length: float | Callable[[Level], Tensor] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.length, (int, float)) and not 0 < self.length < float("inf"):
            raise InvalidArgumentError(f"length must be positive and finite, got {self.length}")
        if not 0 < self.snr < 1:
            raise InvalidArgumentError(f"snr must be in (0, 1), got {self.snr}: at 1 the step does not contract noise")
        check_steps(self.steps)

    @property
    def evals(self) -> int:
        """One network evaluation per Langevin step."""
        return self.steps

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    @property
    def corrects(self) -> bool:
        """Yes: x is moved at `next`."""
        return True

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        if self.length is None and not isinstance(model.process, Process):
            raise InvalidArgumentError(
                f"{self} takes its step size from sigma, which {model.process} does not have: give "
                "Langevin(length=...), a number or a function of the level"
            )
        return ()

    def size(self, now: Level, next: Level, score: Tensor, z: Tensor) -> Tensor:
        """The step size e, `[]` or `[B]`."""
        if self.length is None:
            return 2 * (self.snr * next.sigma) ** 2
        return self.length(next) if callable(self.length) else torch.full_like(next.t, self.length)

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """All Langevin steps at `next`, with noise tags 0, 1, ..."""
        wide = widen(x)
        for tag in range(self.steps):
            here = wide.to(x.dtype)
            score = widen(model.score_at(here, next.t) if isinstance(model, ReverseSDE) else model(here, next, "score"))
            z = draw(noise, x, now, next, tag)
            e = self.size(now, next, score, z)
            wide = combine((torch.ones_like(e), wide), (e, score), (torch.sqrt(2 * e), z))
        return Step(wide.to(x.dtype), carry)


@dataclass(frozen=True)
class BatchCoupledLangevin(Langevin):
    """Langevin with the step size of score_sde: `e = 2 a^2 (snr |z| / |score|)^2`, norms averaged over the batch.

    `a = alpha_now/alpha_next` of the step that led here, where Song et al. (2021, alg. 4-5) take that of the step to
    come, a difference of the order of a step. Every sample's step depends on its batch-mates, so what is
    promised of seeds and batches elsewhere does not hold; for comparisons with published samples.
    """

    def size(self, now: Level, next: Level, score: Tensor, z: Tensor) -> Tensor:
        """The step size e, `[]`, from the batch."""
        ratio: Tensor = torch.linalg.vector_norm(z.flatten(1), dim=1).mean()
        ratio = ratio / torch.linalg.vector_norm(score.flatten(1), dim=1).mean()
        a = (now.alpha / next.alpha).to(ratio.dtype)
        return 2 * (a * self.snr * ratio) ** 2


class Branch(NamedTuple):
    """A noise source for one part of a pair: the binary tree of tags keeps all parts, nested ones too, apart."""

    noise: NoiseSource
    bit: int

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        return self.noise(x, now, next, 2 * tag + self.bit)


@dataclass(frozen=True)
class PC(OneStep):
    """Predictor, then corrector at the level reached, on every step (Song et al. 2021, alg. 1).

    Any one-step solver predicts, and what has `corrects` true corrects. Memory is refused: the corrector moves x, and
    values carried from before the move would no longer lie on the path.
    """

    predictor: Solver = field(default_factory=ReverseDiffusion)
    corrector: Solver = field(default_factory=Langevin)

    def __post_init__(self) -> None:
        if not getattr(self.corrector, "corrects", False):
            raise InvalidArgumentError(
                f"{self.corrector} does not correct: it steps from now to next, where a corrector moves x at next, "
                "like sd.Langevin()"
            )
        for name, part in (("predictor", self.predictor), ("corrector", self.corrector)):
            if part.memory:
                raise InvalidArgumentError(
                    f"the {name} {part} carries {part.memory} past evaluations, which a corrector's jump makes wrong; "
                    "use a one-step method (ddpm(), euler_maruyama(), Multistep(order=1), heun())"
                )

    @property
    def evals(self) -> int:
        """The predictor's evaluations and the corrector's."""
        return self.predictor.evals + self.corrector.evals

    @property
    def stochastic(self) -> bool:
        """Whether either part draws noise."""
        return self.predictor.stochastic or self.corrector.stochastic

    @property
    def grid(self) -> Grid:
        """The predictor's grid."""
        return self.predictor.grid

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[Carry, Carry]:
        """Both carries."""
        return self.predictor.init(model, x, now), self.corrector.init(model, x, now)

    def step(
        self,
        model: Reverse,
        x: Tensor,
        now: Level,
        next: Level,
        carry: tuple[Carry, Carry],
        noise: NoiseSource | None,
    ) -> Step:
        """One predictor step, then the corrector at `next`."""
        first, second = (None, None) if noise is None else (Branch(noise, 0), Branch(noise, 1))
        predicted = self.predictor.step(model, x, now, next, carry[0], first)
        corrected = self.corrector.step(model, predicted.x, now, next, carry[1], second)
        return Step(corrected.x, (predicted.carry, corrected.carry), predicted.error)
