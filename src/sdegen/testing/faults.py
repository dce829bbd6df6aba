"""The fault injector: a score model that does wrong, to one sample, at one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, hint
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.model import Model

F64 = torch.float64


class InjectedError(Exception):
    """What a score with the fault 'raise' raises."""


def _fill(value: float) -> Callable[[Tensor, Tensor, int], Any]:
    def fault(out: Tensor, x: Tensor, row: int) -> Tensor:
        out = out.clone()
        out[row : row + 1] = value
        return out

    return fault


def _edit_input(out: Tensor, x: Tensor, row: int) -> Tensor:
    x[row : row + 1] += 1.0
    return out


def _interrupt(out: Tensor, x: Tensor, row: int) -> Tensor:
    raise KeyboardInterrupt


def _raise(out: Tensor, x: Tensor, row: int) -> Tensor:
    raise InjectedError("the fault that was asked for")


FAULTS: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "nan": _fill(math.nan),
    "inf": _fill(math.inf),
    "-inf": _fill(-math.inf),
    "huge": _fill(1e30),
    "zero": _fill(0.0),
    "missing dimension": lambda out, x, row: out[:, :1].squeeze(1),
    "one column": lambda out, x, row: out[:, :1],
    "one row": lambda out, x, row: out[:1],
    "extra dimension": lambda out, x, row: out[None],
    "scalar": lambda out, x, row: out.sum(),
    "other float": lambda out, x, row: out.to(torch.float32 if out.dtype == F64 else F64),
    "int64": lambda out, x, row: out.long(),
    "complex": lambda out, x, row: out.to(torch.complex128),
    "python float": lambda out, x, row: 0.5,
    "none": lambda out, x, row: None,
    "tuple": lambda out, x, row: (out,),
    "numpy": lambda out, x, row: out.detach().cpu().numpy(),
    "other device": lambda out, x, row: out.to("meta"),
    "edits its input": _edit_input,
    "raise": _raise,
    "interrupt": _interrupt,
}
"""What can go wrong with a score: `fault(output, x, row) -> what is returned instead`."""


class FaultyScore(Model):
    """A score model that answers like `score`, but for its call number `call` (the first is 1).

    It is a model itself (`process`, and a call with a level), and a plain callable `(x, time)` for a `ScoreModel`,
    where it counts the calls of the network. `calls` is how many there were, `fired` whether the fault's own was
    among them; `reset()` starts anew.
    """

    def __init__(self, score: Any, kind: str, sample: int = 0, call: int = 1) -> None:
        if kind not in FAULTS:
            raise InvalidArgumentError(f"no fault is called {kind!r}: {hint(kind, list(FAULTS), 'the faults are')}")
        if call < 1 or sample < 0:
            raise InvalidArgumentError(f"calls count from 1 and samples from 0, got call={call}, sample={sample}")
        self.score, self.kind, self.sample, self.call = score, kind, sample, call
        self.calls = 0

    @property
    def process(self) -> Process:  # type: ignore[override]
        """The process of the score model inside."""
        process: Process = self.score.process
        return process

    @property
    def fired(self) -> bool:
        """Whether the call came that the fault was for."""
        return self.calls >= self.call

    def reset(self) -> None:
        """Count calls from the start again."""
        self.calls = 0

    def __call__(self, x: Tensor, level: Level | Tensor, *want: Any, **condition: Any) -> Any:
        self.calls += 1
        if self.calls == self.call and self.sample >= len(x):
            raise InvalidArgumentError(f"the fault is for sample {self.sample} (from 0), and the batch has {len(x)}")
        out = self.score(x, level, *want, **condition)
        return FAULTS[self.kind](out, x, self.sample) if self.calls == self.call else out

    def __repr__(self) -> str:
        return f"faults({self.score!r}, {self.kind!r}, sample={self.sample}, call={self.call})"


def faults(score: Model | Callable[..., Any], kind: str, sample: int = 0, call: int = 1) -> FaultyScore:
    """`score`, with a fault of one of the kinds in `FAULTS` at its call number `call` (from 1), in row `sample`.

    `score` is a score model, or the callable `(x, time)` inside one. Raises InvalidArgumentError on an unknown kind.
    """
    return FaultyScore(score, kind, sample, call)
