"""Solves whose gradients keep one state every few steps and compute the steps between again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.loop.control import Fixed, Restarted
from sdegen.loop.solution import Solution, Status, guard
from sdegen.solvers.base import Solver, check_step
from sdegen.tensors import finite_rows, keep


class _Point(NamedTuple):
    """All that a solve knows between two steps; counts and times `[B]`."""

    x: Tensor
    carry: Any
    alive: Tensor
    accepted: Tensor
    nfe: Tensor
    t: Tensor


def check_checkpoint(every: Any, control: Any, **others: Any) -> None:
    """Raises InvalidArgumentError for what steps that are computed again cannot do."""
    if not (type(every) is int and every >= 1):
        raise InvalidArgumentError(f"checkpoint must be a whole number of steps >= 1, got {every!r}")
    if not isinstance(control, Fixed) or isinstance(control, Restarted):
        raise InvalidArgumentError(
            f"checkpoint=k needs a fixed grid of times, got {control!r}; leave it out, or give times"
        )
    for name, value in others.items():
        if value:
            raise InvalidArgumentError(f"{name} does not go with checkpoint, which computes steps twice: leave one out")


def checkpointed(model: Any, x: Tensor, control: Fixed, solver: Solver, noise: Any, every: int) -> Solution:
    """The solution that the loop of `solve` gives, and the same gradients, from the states at every k-th step.

    Memory for gradients is that of `n/every` states and carries and of `every` steps, smallest at `every = sqrt(n)`,
    for one more evaluation per step (Chen et al. 2016, sec. 3).
    """
    process = model.process
    now, _, state = control.init(process, x)
    own = control.bind(solver, model, state)
    first = own[0] if own else solver
    levels = state.levels

    def run(point: _Point, begin: int, end: int) -> _Point:
        x, carry, alive, accepted, nfe, t = point
        for k in range(begin, end):
            part = own[k] if own else solver
            step = check_step(part.step(model, x, levels[k], levels[k + 1], carry, noise), x, part)
            nfe = nfe + (part.evals if step.evals is None else step.evals) * alive
            alive = alive & finite_rows(step.x)
            x, carry = keep(alive, step.x, x), step.carry
            accepted, t = accepted + alive, torch.where(alive, levels[k + 1].t.to(t.device), t)
        return _Point(x, carry, alive, accepted, nfe, t)

    alive = x.new_ones(len(x), dtype=torch.bool)
    start = x.clone(memory_format=torch.contiguous_format)
    t = x.new_zeros(len(x), dtype=torch.float64) + Level(*now).t.detach().to(x.device)
    none = alive.to(torch.int32) * 0
    point = _Point(start, first.init(model, start, now), alive, none, none + getattr(first, "primes", 0), t)
    steps = len(levels) - 1
    begin = 0

    def solution() -> Solution:
        ended = Status.OK if begin >= steps else Status.STOPPED
        status = torch.where(point.alive, int(ended), int(Status.NONFINITE)).to(torch.int8)
        return Solution(point.x, process.level(point.t), point.nfe, point.accepted, none, status, [])

    with guard(lambda: f"in steps {begin + 1} to {min(begin + every, steps)}", solution):
        while begin < steps:
            point = checkpoint(run, point, begin, min(begin + every, steps), use_reentrant=False)
            begin += every
    return solution()
