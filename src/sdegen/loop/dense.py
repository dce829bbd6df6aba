"""Paths between the steps: dense output, and the level at which a sample's own event happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Solver
from sdegen.tensors import as_time, described, expand_rows, unedited, where_rows

Event = Callable[[Tensor, Level], Tensor]
_HALVINGS = 60


class Piece(NamedTuple):
    """Some rows' accepted steps: which samples, from where to where, and what the step's polynomial needs.

    reached: where each sample stood after it, sooner where an event ended it; moving: which of them took it, where not
    all did.
    """

    rows: Tensor
    now: Level
    next: Level
    inner: Any
    reached: Tensor
    moving: Tensor | None = None


class Dense:
    """A solved path, at any time that each sample passed: `dense(t) -> [B, *S]`, t `[]` or `[B]`, or a `Level`.

    Inside of a step it is the step's own polynomial; outside of what a sample passed, NaN.
    """

    def __init__(self, solver: Any, process: SDE, x: Tensor, first: Level) -> None:
        self._solver, self._process = solver, process
        self._start, self._first = x, first
        self._pieces: list[Piece] = []

    def add(self, piece: Piece) -> None:
        """Keep the steps of some rows."""
        self._pieces.append(piece)

    def __len__(self) -> int:
        return len(self._pieces)

    def __call__(self, t: Tensor | float | Level) -> Tensor:
        """x `[B, *S]` at a time."""
        count, device = len(self._start), self._start.device
        t = as_time(t.t if isinstance(t, Level) else t).to(device)
        if t.ndim > 1 or (t.ndim and len(t) != count):
            raise InvalidArgumentError(f"t must be a time, or one per sample [{count}], got shape {list(t.shape)}")
        level = self._process.level(t.expand(count))
        begins = (level.t == self._first.t.to(device)).reshape(-1, *(1,) * (self._start.ndim - 1))
        out = torch.where(begins, self._start, torch.nan)
        for rows, now, next, inner, reached, moving in self._pieces:
            at = Level(*(v[rows] for v in level))
            low, high = torch.minimum(now.t, reached), torch.maximum(now.t, reached)
            inside = (at.t >= low) & (at.t <= high) & (at.t != now.t)
            inside = inside if moving is None else inside & moving
            if not bool(inside.any()):
                continue
            safe = where_rows(inside, at, next)
            x = self._solver.inside(self._process, now, next, inner, safe)
            picked = inside.nonzero().flatten()
            out = out.index_copy(0, rows[picked], x[picked].to(out.dtype))
        return out


def check_dense(solver: Any, what: str) -> None:
    """Raises InvalidArgumentError unless the solver's steps have a polynomial inside."""
    if solver.stochastic:
        raise InvalidArgumentError(f"{what} needs a solver without noise, whose steps have a polynomial; got {solver}")
    if not solver.dense:
        raise InvalidArgumentError(
            f"{what} needs a solver whose steps can be evaluated inside: sd.adams(), or a RungeKutta with dense "
            f"weights (sd.dopri5(), sd.tsit5(), sd.heun()); got {solver}"
        )


class Found(NamedTuple):
    """Which rows' events happened in a step `[B]`, the states there and the levels."""

    where: Tensor
    x: Tensor
    level: Level


class EventFinder:
    """Where the events of samples happen: a sign change of `event(x, level) -> [B]` over a step, located inside."""

    def __init__(self, event: Event, solver: Solver, process: SDE) -> None:
        self._event, self._solver, self._process = event, solver, process

    def value(self, x: Tensor, level: Level) -> Tensor:
        """The event function's value, checked. Raises InvalidTypeError unless it is `[B]`."""
        value: object = unedited("event(x, level)", self._event, x, level)
        if not torch.is_tensor(value) or value.shape != x.shape[:1] or not value.is_floating_point():
            raise InvalidTypeError(
                f"event(x, level) must return one floating number per sample, [{x.shape[0]}], whose sign changes; "
                f"got {described(value)}"
            )
        return value

    def located(self, x: Tensor, now: Level, next: Level, x_next: Tensor, inner: Any) -> Found | None:
        """The events that happen between now and next; None if none."""
        now, next = (expand_rows(level, len(x), x.device) for level in (now, next))
        before, after = self.value(x, now), self.value(x_next, next)
        hit = (before != 0) & (torch.sign(before) * torch.sign(after) <= 0) & before.isfinite() & after.isfinite()
        if not bool(hit.any()):
            return None
        low, high = now.t, next.t
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            level = self._process.level(middle)
            same = torch.sign(self.value(self._inside(now, next, inner, level), level)) == torch.sign(before)
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        level = self._process.level(torch.where(hit, high, next.t))
        return Found(hit, self._inside(now, next, inner, level), level)

    def _inside(self, now: Level, next: Level, inner: Any, at: Level) -> Tensor:
        return self._solver.inside(self._process, now, next, inner, at)
