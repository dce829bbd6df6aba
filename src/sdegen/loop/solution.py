"""What a solve hands back, and what an observer sees on the way."""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, SdegenError
from sdegen.level import Level
from sdegen.tensors import cat, readable, version


class Status(enum.IntEnum):
    """How a sample ended."""

    OK = 0
    NONFINITE = 1
    """The score or the state became NaN or Inf; the sample stays where it last was finite."""
    STOPPED = 2
    """The observer ended the solve before the last level."""
    MAX_STEPS = 3
    """An adaptive solve had used its attempts; the sample stays where they took it."""
    STEP_TOO_SMALL = 4
    """No step, however small, met the tolerance; the sample stays before it."""
    EVENT = 5
    """The sample's event happened, and the sample ended there."""


FAILED = {
    Status.NONFINITE: "became NaN or Inf",
    Status.MAX_STEPS: "used up their attempts (max_attempts)",
    Status.STEP_TOO_SMALL: "met the tolerance with no step, however small",
}
"""How samples fail."""
_FAILURES = [int(kind) for kind in FAILED]


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


def shown(observe: Observer, progress: Progress) -> Any:
    """What the observer answers. Raises InvalidArgumentError if it edited the state."""
    before = version(progress.x)
    answer = observe(progress)
    if version(progress.x) != before:
        raise InvalidArgumentError("the observer edited progress.x in place, which is the solver's own: edit a copy")
    return answer


def observed(observe: Observer, progress: Progress, path: list[Any]) -> bool:
    """Show a step to the observer and keep its answer in the path; whether it asks to stop."""
    answer = shown(observe, progress)
    if answer is not None and answer is not STOP:
        path.append(answer)
    return answer is STOP


@contextlib.contextmanager
def guard(where: Callable[[], str], partial: Callable[[], Any]) -> Iterator[None]:
    """Let exceptions pass unchanged, with a note of where, and what is done so far as `partial`."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # a note that cannot be made must not hide the error
            error.__notes__ = [*vars(error).get("__notes__", []), f"sdegen: {where()}"]
            if "partial" not in vars(error):
                error.partial = partial()  # type: ignore[attr-defined]
        raise


class Solution(NamedTuple):
    """The result of a solve; stats and status are per sample, `[B]`, on x's device.

    x `[B, *S]`; level: the one each sample reached (fields `[B]`); nfe: network evaluations; accepted, rejected: steps;
    status: see `Status`. path: what the observer returned, step by step (None left out); of `draw(path=True)` the
    states `[m + 1, B, *S]`, the first where it began, with `levels` (fields `[m + 1]`) and `previews` `[m, B, *S]`, the
    data that each step's last evaluation predicted (None on a `ReverseSDE`), and the `seed` that makes them again.
    error: of an adaptive solve, an estimate of the error at the end, relative as its tolerance is, `[B]`; dense: the
    path at any time, None unless asked for, `solve(..., dense=True)`.
    """

    x: Tensor
    level: Level
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    path: Any
    error: Tensor | None = None
    dense: Callable[..., Tensor] | None = None
    previews: Tensor | None = None
    levels: Level | None = None
    seed: int | Tensor | None = None

    def rows(self, index: Tensor | slice) -> Solution:
        """Some of the samples, without their paths."""
        level = Level(*(v[index] for v in self.level))
        nfe, accepted, rejected, status = (v[index] for v in self[2:6])
        error = None if self.error is None else self.error[index]
        return Solution(self.x[index], level, nfe, accepted, rejected, status, [], error)

    def __repr__(self) -> str:
        """A line or two: shapes, how many samples are well, what they cost."""
        n, at = len(self.x), f"{list(self.x.shape)}, {self.x.dtype}"
        if not n or not readable(self.status):
            return f"Solution(x: {at})"
        kinds = [f"{int((self.status == kind).sum())} {kind.name}" for kind in Status if (self.status == kind).any()]
        low, high = int(self.nfe.min()), int(self.nfe.max())
        spent = f"{low}" if low == high else f"{low} to {high}"
        t = self.level.t
        ends = f"{float(t.min()):.4g}" + (f" to {float(t.max()):.4g}" if float(t.min()) != float(t.max()) else "")
        seed = "" if self.seed is None else ", seeds given" if torch.is_tensor(self.seed) else f", seed={self.seed}"
        return f"Solution(x: {at}, {', '.join(kinds)}, {spent} evaluations a sample, at t={ends}{seed})"

    @staticmethod
    def join(parts: list[Solution]) -> Solution:
        """Several solutions as one, without their paths."""
        if len(parts) == 1:
            return parts[0]
        level = Level(*(cat(v) for v in zip(*(part.level for part in parts))))
        nfe, accepted, rejected, status = (cat(v) for v in zip(*(part[2:6] for part in parts)))
        known = [part.error for part in parts if part.error is not None]
        error = cat(known) if len(known) == len(parts) else None
        return Solution(cat([p.x for p in parts]), level, nfe, accepted, rejected, status, [], error)

    @property
    def ok(self) -> Tensor:
        """Which samples did not fail, `[B]` bool."""
        return ~functools.reduce(torch.logical_or, [self.status == kind for kind in _FAILURES])


def ended(solution: Solution, on_failure: str) -> Solution:
    """The solution, or a SolveError that holds it if samples failed and the caller did not ask for them."""
    if on_failure == "return" or not readable(solution.status):
        return solution
    failed = (~solution.ok).nonzero().flatten().tolist()
    if not failed:
        return solution
    shown = ", ".join(str(i) for i in failed[:8]) + (", ..." if len(failed) > 8 else "")
    first, count = failed[0], len(solution.status)
    kinds = {int(solution.status[i]) for i in failed}
    what = " or ".join(text for kind, text in FAILED.items() if kind in kinds)
    wide = " (overflow is Inf too: float16 ends at 65504)" if solution.x.dtype == torch.float16 else ""
    raise SolveError(
        f"{len(failed)} of {count} samples {what}{wide} (rows {shown}); row {first} after "
        f"{int(solution.accepted[first])} good steps, at t={float(solution.level.t[first]):.6g}. This "
        "error's `partial` holds all samples with their status, those that did not fail finished; "
        'sd.solve(..., on_failure="return") returns it',
        solution,
    )


class SolveError(SdegenError, RuntimeError):
    """Some samples of a solve failed; `partial` holds the `Solution` with every finished row."""

    def __init__(self, message: str, partial: Solution) -> None:
        super().__init__(message)
        self.partial = partial

    def __reduce__(self) -> tuple[type[SolveError], tuple[str, Solution]]:
        return type(self), (str(self), self.partial)
