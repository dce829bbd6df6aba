"""Langevin dynamics at a level: a corrector, and on its own an annealed sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, check_numbers, check_positive, strict_keywords
from sdegen.grids import Grid, check_steps, natural
from sdegen.level import Level
from sdegen.noise import NoiseSource
from sdegen.solvers.base import Carry, OneStep, Reverse, Step, draw
from sdegen.tensors import combine, widen


@strict_keywords
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
    stochastic = True
    corrects = True

    def __post_init__(self) -> None:
        if self.length is not None and not callable(self.length):
            check_positive(length=self.length)
        check_numbers(snr=self.snr)
        if not 0 < self.snr < 1:
            raise InvalidArgumentError(f"snr must be in (0, 1), got {self.snr}: at 1 the step does not contract noise")
        check_steps(self.steps)

    @property
    def evals(self) -> int:
        return self.steps

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        if self.length is None and not model.process.gaussian:
            raise InvalidArgumentError(
                f"{self} takes its step from sigma, which {model.process} does not have: give Langevin(length=...)"
            )
        return ()

    def size(self, now: Level, next: Level, score: Tensor, z: Tensor) -> Tensor:
        """The step size e, `[]` or `[B]`."""
        if self.length is None:
            return 2 * (self.snr * next.sigma) ** 2
        return self.length(next) if callable(self.length) else torch.full_like(next.t, self.length)

    def step(self, model: Any, x: Tensor, now: Level, next: Level, carry: Carry, noise: NoiseSource | None) -> Step:
        """All Langevin steps at `next`, with noise tags 0, 1, ..."""
        wide = widen(x)
        for tag in range(self.steps):
            here = wide.to(x.dtype)
            score = widen(model(here, next) if model.answers else model.score_at(here, next.t))
            z = draw(noise, x, now, next, tag)
            e = self.size(now, next, score, z)
            wide = combine((torch.ones_like(e), wide), (e, score), (torch.sqrt(2 * e), z))
        return Step(wide.to(x.dtype), carry)


@strict_keywords
@dataclass(frozen=True)
class BatchCoupledLangevin(Langevin):
    """Langevin with the step size of score_sde: `e = 2 a^2 (snr |z| / |score|)^2`, norms averaged over the batch.

    `a = alpha_now/alpha_next` of the step that led here, where Song et al. (2021, alg. 4-5) take that of the step to
    come, a difference of the order of a step. Every sample's step depends on its batch-mates, so what is
    promised of seeds and batches elsewhere does not hold; for comparisons with published samples.
    """

    couples = True

    def size(self, now: Level, next: Level, score: Tensor, z: Tensor) -> Tensor:
        ratio: Tensor = torch.linalg.vector_norm(z.flatten(1), dim=1).mean()
        ratio = ratio / torch.linalg.vector_norm(score.flatten(1), dim=1).mean()
        a = (now.alpha / next.alpha).to(ratio.dtype)
        return 2 * (a * self.snr * ratio) ** 2
