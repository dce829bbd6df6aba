"""One step of every loop: a pure function of all that a solve knows between two steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import ScoreError
from sdegen.level import Level
from sdegen.loop.dense import EventFinder
from sdegen.loop.solution import Solution, Status
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Solver, Step, check_step
from sdegen.tensors import at_home, finite_rows, home, readable, where_rows, wrapped


class Fate(NamedTuple):
    """How each row fares, `[B]`: whether it goes on, whether its event ended it, where it stands, what it cost."""

    alive: Tensor
    stopped: Tensor
    t: Tensor
    accepted: Tensor
    tried: Tensor
    nfe: Tensor


class State(NamedTuple):
    """All that a solve knows between two steps.

    now, next: the step to come; control: the controller's state; steps, nfe: taken and evaluated so far. fate: how each
    row fares, None while all fare alike. moved: which rows the last step moved, None for all; inner: what dense output
    needs of it.
    """

    x: Tensor
    carry: Any
    now: Level
    next: Level
    control: Any
    steps: int
    nfe: int
    fate: Fate | None
    moved: Tensor | None = None
    inner: Any = None


@dataclass(frozen=True)
class Rules:
    """What does not change in a solve.

    levels: all of a known grid, where the controller is not asked; parts: its steps' own solvers. alone: whether the
    controller keeps each row's fate itself. cheap: whether values of x can be read without waiting; watch: whether
    edits of x are counted. dtype: that in which x is summed.
    """

    process: SDE
    model: Any
    solver: Solver
    noise: Any
    control: Any
    levels: tuple[Level, ...] = ()
    parts: Sequence[Solver] = ()
    event: EventFinder | None = None
    alone: bool = False
    cheap: bool = False
    watch: bool = False
    dtype: torch.dtype | None = None


def advance(rules: Rules, state: State, k: int) -> State:
    """The state after step k, or attempt k of an adaptive solve."""
    x, carry, now, next, control = state[:5]
    part = rules.parts[k] if rules.parts else rules.solver
    before = x._version if rules.watch else 0
    step = part.step(rules.model, x, now, next, carry, rules.noise)
    if rules.watch and x._version != before:
        raise ScoreError(
            "the state of a step was edited while its network was called: it keeps an x that it was given, and writes "
            "into it; let it keep a copy, x.clone()"
        )
    if type(step) is not Step or step.x.shape != x.shape or step.x.dtype != x.dtype:
        step = check_step(step, x, part)
    if rules.alone and step.x.requires_grad:
        step = _harmless(rules, state, step)
    accept: bool | Tensor
    if rules.levels:
        accept, after, beyond = True, next, rules.levels[min(k + 2, len(rules.levels) - 1)]
    else:
        accept, after, beyond, control = rules.control.update(rules.process, control, x, now, next, step)
    evals = part.evals if step.evals is None else step.evals
    found = None if rules.event is None else rules.event.located(x, now, next, step.x, step.inner)
    if found is not None:
        step = step._replace(x=where_rows(found.where, found.x, step.x))
    if rules.alone:
        return _alone(rules, state, step, accept, after, beyond, control, found)
    # a state that is batched by vmap cannot be read, though the start could
    readable_x = rules.cheap and not wrapped(step.x)
    together = readable_x and state.fate is None and accept is True and found is None
    # one sum per step: it is not finite if a value is not; huge values may only look so
    if together and math.isfinite(float(step.x.detach().sum(dtype=rules.dtype))):
        spent = state.nfe + evals
        return State(step.x, step.carry, after, beyond, control, state.steps + 1, spent, None, None, step.inner)
    fate = state.fate or apart(x, now, state.steps, state.nfe)
    alive = fate.alive & finite_rows(step.x)
    moved = alive if accept is True else alive & accept
    hit = moved & found.where if found is not None else None
    t = torch.where(moved, next.t, fate.t)
    after_fate = Fate(
        alive if hit is None else alive & ~hit,
        fate.stopped if hit is None else fate.stopped | hit,
        t if found is None or hit is None else where_rows(hit, found.level.t.to(t.device, t.dtype), t),
        fate.accepted + moved,
        fate.tried + fate.alive,
        fate.nfe + evals * fate.alive,
    )
    carry = where_rows(accept, step.carry, carry if step.retry is None else step.retry)
    x = where_rows(moved, step.x, x)
    return State(x, carry, after, beyond, control, state.steps + 1, state.nfe + evals, after_fate, moved, step.inner)


def _alone(
    rules: Rules, state: State, step: Step, accept: Any, after: Level, beyond: Level, control: Any, found: Any
) -> State:
    """The state after an attempt whose controller keeps each row's fate."""
    if found is not None:
        hit = found.where & accept
        after, beyond = where_rows(hit, found.level, after), where_rows(hit, found.level, beyond)
        control = control._replace(
            status=torch.where(hit, int(Status.EVENT), control.status).to(torch.int8),
        )
    everyone: bool | Tensor = accept
    if accept.device.type == "cpu" and readable(accept) and bool(accept.all()):
        everyone = True
    x = where_rows(everyone, step.x, state.x)
    carry = where_rows(everyone, step.carry, state.carry if step.retry is None else step.retry)
    return State(x, carry, after, beyond, control, state.steps + 1, state.nfe, None, accept, step.inner)


def _harmless(rules: Rules, state: State, step: Step) -> Step:
    """The attempt again, rows that became NaN or Inf without length: their gradients would be NaN times zero."""
    fine = finite_rows(step.x)
    if bool(fine.all()):
        return step
    next = where_rows(~fine, state.now, state.next)
    again = rules.solver.step(rules.model, state.x, state.now, next, state.carry, rules.noise)
    error = torch.zeros_like(again.x) if again.error is None else again.error.detach()
    return again._replace(error=where_rows(~fine, torch.full_like(error, torch.nan), error))


def apart(x: Tensor, level: Level, steps: int, nfe: int) -> Fate:
    """The fate of rows that fared alike so far."""
    batch = x.shape[0]
    alive = x.new_ones(batch, dtype=torch.bool)
    accepted = x.new_full((batch,), steps, dtype=torch.int32)
    spent = x.new_full((batch,), nfe, dtype=torch.int32)
    # where there is no float64 the time a row stands at is kept rounded: reading it would wait for the device
    kept = torch.float64 if home(x.device) == x.device else torch.float32
    t = x.new_zeros(batch, dtype=kept) + level.t
    return Fate(alive, ~alive, t, accepted, accepted.clone(), spent)


def solution(rules: Rules, state: State, done: bool, path: Any, dense: Any = None) -> Solution:
    """What a solve hands back from where it stands; done: whether it took all of its steps."""
    fate = state.fate or apart(state.x, state.now, state.steps, state.nfe)
    ended = int(Status.OK if done else Status.STOPPED)
    status = torch.where(fate.alive, ended, int(Status.NONFINITE))
    status = torch.where(fate.stopped, int(Status.EVENT), status).to(torch.int8)
    # of what a failed row tried, its last step was neither accepted nor rejected
    rejected = fate.tried - fate.accepted - (~fate.alive & ~fate.stopped).to(torch.int32)
    level = rules.process.level(fate.t if fate.t.dtype == torch.float64 else at_home(fate.t))
    return Solution(state.x, level, fate.nfe, fate.accepted, rejected, status, path, dense=dense)
