"""The accuracy benchmark's problems as cases of an adaptive solve, and a count of what a solve asks of the network."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from benchmarks.accuracy import network
from benchmarks.accuracy.problems import PROBLEMS, PROCESSES, Problem, error

F64 = torch.float64
SAMPLES = {"ring": 128, "grid": 128, "stiff": 128, "digits": 64, "net": 64, "images": 12}
HEAVY = ("digits", "net", "images")
"""Problems whose network takes milliseconds: tolerances are whole decades there, but for `adams()`."""
LEAST = {"images": 1e-4}
"""The least error that peers are taken to, 1e-6 elsewhere: `images` takes 24 ms an evaluation."""


@dataclass(frozen=True)
class Case:
    """One problem under one process."""

    name: str
    process_name: str

    @property
    def problem(self) -> Problem:
        """The problem of the accuracy benchmark."""
        return PROBLEMS[self.name]

    @property
    def process(self) -> sd.Process:
        """The process."""
        return PROCESSES[self.process_name]

    @functools.cached_property
    def model(self) -> sd.ScoreModel:
        """The score under this process."""
        return self.problem.model(self.process)

    @functools.cached_property
    def scale(self) -> float:
        """The root mean square of the data's elements."""
        law = self.problem.mixture
        return network.SCALE if law is None else float(law.sample(2000, seed=0).square().mean().sqrt())

    @property
    def start(self) -> Tensor:
        """States at t_max `[n, *S]`: the first ones of the problem's."""
        return self.problem.start(self.process)[: SAMPLES[self.name]]

    @functools.cached_property
    def exact(self) -> Tensor:
        """Where the exact flow takes them."""
        return self.problem.reference(self.process)[: SAMPLES[self.name]]

    def errors(self, x: Tensor) -> Tensor:
        """Root mean square error of each of the first samples, relative to the data's scale, infinite if not finite."""
        wrong = error(x, self.exact[: len(x)]) / self.scale
        return torch.where(wrong.isfinite(), wrong, torch.inf)

    @property
    def least(self) -> float:
        """The error at which a sweep over tolerances may end."""
        return LEAST.get(self.name, 1e-6)


def cases(names: tuple[str, ...]) -> list[Case]:
    """Every problem under every process."""
    return [Case(name, process) for name in names for process in PROCESSES]


class Tally:
    """How often a network was called, for how many rows, and how many calls were at levels outside of an interval."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low * (1 - 1e-9), high * (1 + 1e-9)
        self.calls = self.rows = self.outside = 0

    def add(self, rows: int, at: Tensor) -> None:
        """One call, at levels `[]` or `[B]`."""
        self.calls += 1
        self.rows += rows
        self.outside += bool((~((at >= self.low) & (at <= self.high))).any())


class Counted(sd.guidance.ModelMap):
    """A model whose calls are counted by a `Tally`; everything else is the model's own."""

    def __init__(self, model: Any, tally: Tally) -> None:
        super().__init__(model)
        self.linear = model.linear
        self.tally = tally

    def __call__(self, x: Tensor, level: sd.Level, want: Any = "score") -> Tensor:
        """The model's prediction."""
        self.tally.add(len(x), level.t)
        answer: Tensor = self.models[0](x, level, want)
        return answer

    def coefficients(self, level: sd.Level, want: Any) -> Any:
        """A linear model's."""
        return self.models[0].coefficients(level, want)

    def raw(self, x: Tensor, level: sd.Level) -> Tensor:
        """A ScoreModel's raw output."""
        self.tally.add(len(x), level.t)
        answer: Tensor = self.models[0].raw(x, level)
        return answer
