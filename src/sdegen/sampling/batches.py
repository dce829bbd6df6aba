"""How samples come in batches: seeds, starts, conditions and noise of any of them, on grids and to a tolerance."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.loop.arguments import check_solve
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run_to
from sdegen.loop.pace import Adaptive
from sdegen.loop.queue import Source, adapted
from sdegen.loop.solution import STOP, Observer, Progress, Solution, Status, guard
from sdegen.noise import Brownian, NoiseSource
from sdegen.progress import progress_bar
from sdegen.sampling.prior import Law, begin_at
from sdegen.solvers.base import Reverse, Solver
from sdegen.tensors import finite_rows, where_rows


@dataclass(frozen=True)
class Batches:
    """All samples of a call: any of them are had with `model`, `start` and `noise`, whatever the batching.

    seeds `[n]`; event: S; first: the first level; x: states to start from; law: what they are drawn from if there is no
    x, None for noise alone; make: the noise source from seeds; size: how many samples the network sees at once.
    """

    whole: Reverse
    seeds: Tensor
    event: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    first: Level
    x: Tensor | None
    law: Law | None
    make: Callable[[Tensor], NoiseSource] | None
    size: int

    def model(self, index: Tensor) -> Any:
        """The model for some samples."""
        return self.whole.rows(index.to(self.seeds.device))

    def start(self, index: Tensor) -> Tensor:
        """Where some samples start."""
        index = index.to(self.seeds.device)
        if self.x is not None:
            return self.x[index]
        x = begin_at(self.whole.process, self.law, self.seeds[index], self.event, self.dtype, self.first)
        return x.to(self.device)

    def noise(self, index: Tensor) -> Any:
        """The noise of some samples."""
        return None if self.make is None else self.make(self.seeds[index.to(self.seeds.device)])

    def on_grid(
        self, control: Fixed, solver: Solver, denoise: bool, observe: Observer | None, shown: bool | None, path: bool
    ) -> Solution:
        """All samples on one grid, batch after batch; the last one is filled up, so that no shape depends on n."""
        n, size = len(self.seeds), self.size
        parts: list[Solution] = []
        records: list[Recorder] = []
        chunks = math.ceil(n / size) if n else 0
        last = denoise and self.whole.answers
        total = 0 if shown is False else chunks * (int(control.cost(solver) or 0) + last)
        with _keeping(parts, n), progress_bar(total, "evaluation", shown) as bar:
            for k in range(chunks):
                real = min(size, n - k * size)
                index = torch.arange(k * size, (k + 1) * size, device=self.seeds.device).clamp(max=n - 1)
                model, x, noise = (self.model(index), self.start(index), self.noise(index))
                if not parts:
                    check_solve(model, x, control, solver, noise, "return", observe)
                watch = BatchObserver(observe, bar, real, path)
                part, level = run_to(
                    model, x, control, solver, noise, watch if watch.needed else None, False, previews=watch.previews
                )
                records += [watch.record(x, self.first)] if path else []
                parts.append(part if real == size else part.rows(slice(real)))
                if last:
                    part = denoised(model, part, level)
                    parts[-1] = part if real == size else part.rows(slice(real))
                    if bar is not None:
                        bar(1)
        if parts:
            found = Solution.join(parts)
            return joined(found, records) if path else found
        empty = torch.empty(0, *self.event, dtype=self.dtype, device=self.device)
        found = _nothing(empty, self.first)
        return joined(found, [Recorder([empty], [], [self.first])]) if path else found

    def to_tolerance(self, control: Adaptive, solver: Solver, denoise: bool, shown: bool | None) -> Solution:
        """All samples with steps of their own, the batch kept full from the queue; failed ones with their status."""
        n, process = len(self.seeds), self.whole.process
        first = torch.arange(min(1, n), device="cpu")
        x = self.start(first)
        check_solve(self.model(first), x, control, solver, self.noise(first), "return", None)
        source = Source(n, self.model, self.start, self.noise)
        size = self.size if control.settings.fixed_shapes else min(self.size, n)
        whole = adapted(source, size, process, control, solver, progress=shown)
        if not denoise or not self.whole.answers or not n:
            return whole
        parts = []
        with guard(lambda: "in the last denoising; `partial` has the states before it", lambda: whole):
            for begin in range(0, n, self.size):
                index = torch.arange(begin, begin + self.size, device=self.seeds.device).clamp(max=n - 1)
                part = whole.rows(index)
                part = denoised(self.model(index), part, part.level)
                parts.append(part.rows(slice(min(self.size, n - begin))))
        return Solution.join(parts)


def path_noise(process: Any, solver: Solver) -> Callable[[Tensor], NoiseSource]:
    """Makes Brownian paths in the clock in which the solver's own noise is one, where it says which."""
    clock = solver.noise_clock(process) if process.gaussian else None
    return lambda seeds: Brownian(seeds, process, clock=clock)


def check_shape(shape: Any) -> tuple[int, tuple[int, ...]]:
    """`(n, *S)` taken apart."""
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 0:
        raise InvalidArgumentError(
            f"shape must be (n, *S), a number of samples and at least one sample dimension, got {shape!r}"
        )
    return sizes[0], sizes[1:]


def denoised(model: Any, part: Solution, level: Level) -> Solution:
    """The predicted data in place of the state; a row that is not finite stays the state and says so."""
    clean = model(part.x, level, "data").to(part.x.dtype)
    fine = finite_rows(clean).to(part.status.device) & part.ok
    status = torch.where(fine, part.status, int(Status.NONFINITE))
    return part._replace(x=where_rows(fine, clean, part.x), status=status, nfe=part.nfe + part.ok)


class Recorder:
    """The path of one batch: its states, the levels they are at, and the data predicted on the way."""

    def __init__(self, states: list[Tensor], previews: list[Tensor | None], levels: list[Level]) -> None:
        self.states, self.previews, self.levels = states, previews, levels


class BatchObserver:
    """The observer of one batch: moves the bar, keeps the path, hides the padded rows from the user's own."""

    def __init__(self, observe: Observer | None, bar: Callable[[int], None] | None, real: int, path: bool) -> None:
        self.observe, self.bar, self.real, self.path = observe, bar, real, path
        self.previews = observe is not None or path
        self.needed = self.previews or bar is not None
        self.spent = 0
        self._kept = Recorder([], [], [])

    def record(self, x: Tensor, first: Level) -> Recorder:
        """The path from x at the first level."""
        kept = self._kept
        return Recorder([x[: self.real], *kept.states], kept.previews, [first, *kept.levels])

    def __call__(self, progress: Progress) -> Any:
        """Show one step."""
        if self.bar is not None:
            self.bar(progress.nfe - self.spent)
        self.spent = progress.nfe
        if not self.previews:
            return None

        def preview() -> Tensor | None:
            data = progress.preview()
            return None if data is None else data[: self.real]

        shown = progress._replace(x=progress.x[: self.real], preview=preview)
        if self.path:
            self._kept.states.append(shown.x.clone())
            self._kept.previews.append(preview())
            self._kept.levels.append(progress.level)
        return STOP if self.observe is not None and self.observe(shown) is STOP else None


def joined(found: Solution, records: Sequence[Recorder]) -> Solution:
    """The solution with the path of all batches; one that an observer ended early stays where it was."""
    longest = max(records, key=lambda path: len(path.states))
    m = len(longest.states)
    states = torch.stack([torch.cat([path.states[min(k, len(path.states) - 1)] for path in records]) for k in range(m)])
    seen = [[path.previews[min(k, len(path.previews) - 1)] for path in records] for k in range(m - 1)]
    known = [torch.cat([part for part in row if part is not None]) for row in seen if row[0] is not None]
    level = Level(*(torch.stack(v) for v in zip(*longest.levels)))
    return found._replace(path=states, previews=torch.stack(known) if known else None, levels=level)


def _nothing(empty: Tensor, level: Level) -> Solution:
    """The solution for no samples."""
    none = torch.zeros(0, dtype=torch.int32, device=empty.device)
    return Solution(empty, Level(*(v.expand(0) for v in level)), none, none, none, none.to(torch.int8), [])


@contextlib.contextmanager
def _keeping(parts: list[Solution], n: int) -> Iterator[None]:
    """Add the finished batches to the `partial` of an exception that ends the run."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # what cannot be kept must not hide the error
            last = vars(error).get("partial")
            whole = Solution.join([*parts, *([last] if last is not None else [])])
            error.partial = whole.rows(slice(n))  # type: ignore[attr-defined]
        raise
