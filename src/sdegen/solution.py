"""What a solve hands back, and what an observer sees on the way."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import SolveError, readable
from sdegen.sde import Level


class Status(enum.IntEnum):
    """How a sample ended."""

    OK = 0
    NONFINITE = 1
    """The score or the state became NaN or Inf; the sample stays where it last was finite."""
    STOPPED = 2
    """The observer ended the solve before the last level."""


class Progress(NamedTuple):
    """What an observer sees after each step; x `[B, *S]` is the solver's own and must not be edited.

    `preview()` is the data `[B, *S]` that the network predicted at the step's last evaluation, at no further one (None
    on a `ReverseSDE`, which predicts none).
    """

    step: int
    steps: int | None
    x: Tensor
    level: Level
    nfe: int
    preview: Callable[[], Tensor | None] = lambda: None


class _Stop(enum.Enum):
    STOP = "stop"


STOP = _Stop.STOP
"""What an observer returns to end the solve after this step."""

Observer = Callable[[Progress], Any]


class Solution(NamedTuple):
    """The result of a solve; stats and status are per sample, `[B]`, on x's device.

    x `[B, *S]`; level: the one each sample reached (fields `[B]`); nfe: network evaluations; accepted, rejected: steps;
    status: see `Status`; path: what the observer returned, step by step (None left out).
    """

    x: Tensor
    level: Level
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    path: list[Any]

    def rows(self, n: int) -> Solution:
        """The first n samples."""
        level = Level(*(v[:n] for v in self.level))
        nfe, accepted, rejected, status = (v[:n] for v in self[2:6])
        return Solution(self.x[:n], level, nfe, accepted, rejected, status, self.path)

    @staticmethod
    def join(parts: list[Solution]) -> Solution:
        """Several solutions as one, without their paths."""
        kind = parts[0].x.device.type
        # autocast looks at what cat is given, and knows no float16 on a CPU; some devices have no autocast
        able = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if able else contextlib.nullcontext():
            level = Level(*(torch.cat(v) for v in zip(*(part.level for part in parts))))
            nfe, accepted, rejected, status = (torch.cat(v) for v in zip(*(part[2:6] for part in parts)))
            return Solution(torch.cat([p.x for p in parts]), level, nfe, accepted, rejected, status, [])

    @property
    def ok(self) -> Tensor:
        """Which samples did not fail, `[B]` bool."""
        return self.status != Status.NONFINITE


def ended(solution: Solution, on_failure: str) -> Solution:
    """The solution, or a SolveError that holds it if samples failed and the caller did not ask for them."""
    if on_failure == "return" or not readable(solution.status):
        return solution
    failed = (solution.status == Status.NONFINITE).nonzero().flatten().tolist()
    if not failed:
        return solution
    shown = ", ".join(str(i) for i in failed[:8]) + (", ..." if len(failed) > 8 else "")
    first, count = failed[0], len(solution.status)
    rest = "The others are finished, in this error's `partial`; " if len(failed) < count else ""
    raise SolveError(
        f"{len(failed)} of {count} samples became NaN or Inf (rows {shown}); row {first} after "
        f"{int(solution.accepted[first])} good steps, at t={float(solution.level.t[first]):.6g}. {rest}"
        'solve(..., on_failure="return") returns all with their status',
        solution,
    )
