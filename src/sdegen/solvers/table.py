"""One executor for every method that is a table: answers of the network, and linear combinations with known weights.

A step asks the network once per leg and combines, `x = on_x start + sum_j on_j values_j + noise`. Multistep methods
have one leg and a past, singlestep and Runge-Kutta methods several legs, plans weights that were fitted. Weights are
numbers or tensors `[]` or `[B]`; for a known grid they are worked out at once, `[n]`, and split into plain numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, ScoreError
from sdegen.level import Level, points
from sdegen.noise import NoiseSource
from sdegen.scores.model import ScoreModel, Want
from sdegen.solvers.base import Reverse, Solver, Step, draw, given
from sdegen.solvers.eta import EachStep, StepEta
from sdegen.solvers.frame import Frame
from sdegen.solvers.quadrature import FAR
from sdegen.tensors import combine, version, widen


class Leg(NamedTuple):
    """One part of a step: ask for `want` at `level`, then go on with `on_x start + sum_j on[j] values[j] + noise`.

    want: a prediction, a function `(model, x, level)`, or None where nothing is asked. on_x: the weight of the step's
    start, None to stay (the last slope of an FSAL method). on: the weights of the values, newest first. again: weights
    of x, the last start and the values, which first correct this step's start (PEC). left: what is left of the noise
    so far; spread: that of the noise which comes on top where `fresh`.
    """

    level: Level
    want: Any
    on_x: Any
    on: tuple[Any, ...] = ()
    again: tuple[Any, ...] = ()
    left: Any = 1.0
    spread: Any = 0.0
    fresh: bool = False


class Past(NamedTuple):
    """What a table carries: where past values sit `[..., m]`, the values, newest first, and how many steps were taken.

    at is None where no polynomial goes through them. level, start, kick: where the last step began, the x it began
    from, and the noise it added; for a corrector.
    """

    at: Tensor | None
    values: tuple[Tensor, ...]
    taken: int = 0
    level: Level | None = None
    start: Tensor | None = None
    kick: Tensor | None = None


Ran = tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor | None]
"""The end of a step's legs: x in working precision, all values, newest first, the corrected start, the noise."""


def run(
    legs: Sequence[Leg], model: Any, x: Tensor, past: Past, noise: NoiseSource | None, end: Level, grouped: Any = None
) -> Ran:
    """x carried along the legs of one step; `grouped`: a frame that combines direction by direction."""
    values, start, kick, here, out = past.values, x, None, x, x
    before = None if past.start is None else version(past.start)
    for k, (level, want, on_x, on, again, left, spread, fresh) in enumerate(legs):
        if want is not None:
            # a prediction is a name or a pair; anything else knows how to ask
            asked = want(model, here, level) if callable(want) else widen(model(here, level, want))
            values = (asked, *values)
        if again and past.start is not None:
            if version(past.start) != before:
                raise ScoreError(
                    "the network edited the x of an earlier call, which a corrector goes back to: let it keep a copy"
                )
            own, *rest = again
            terms = zip(rest, (past.start, *values))
            moved = () if past.kick is None else ((1.0 - own, past.kick),)
            if grouped is None:
                start = combine((own, x), *terms, *moved)
            else:
                start = grouped.join(past.level, level, *terms)
                start = start if past.kick is None else start + past.kick
        if on_x is None:
            continue
        there = legs[k + 1].level if k + 1 < len(legs) else end
        terms = zip((on_x, *on), (start, *values))
        out = combine(*terms) if grouped is None else grouped.join(level, there, *terms)
        if noise is not None:
            if fresh:
                z = draw(noise, x, level, there)
                if grouped is not None:
                    kick = grouped.kick(spread, z)
                else:
                    kick = combine((spread, z)) if kick is None else combine((left, kick), (spread, z))
            out = out if kick is None else out + kick
        here = out.to(x.dtype)
    return out, values, start, kick


def check_history(values: Sequence[Tensor], x: Tensor) -> None:
    """Raises InvalidArgumentError where past values are those of another batch."""
    if values and values[0].shape != x.shape:
        raise InvalidArgumentError(
            f"the history holds values of shape {list(values[0].shape)} and x has {list(x.shape)}: start anew with "
            "init() when the batch changes"
        )


class Exponential(Solver):
    """A method that integrates the linear part of its frame exactly, with an amount of noise."""

    frame: Frame
    eta: Any = 0.0

    @property
    def stochastic(self) -> bool:
        return callable(self.eta) or self.eta > 0

    @property
    def exact(self) -> tuple[str, ...]:
        """Those of the frame, for eta > 0 where its linear part holds the noise."""
        return self.frame.exact if not self.stochastic or self.frame.lawful else ()


class Table(Solver):
    """A method that is a table: a subclass says the legs of a step, given where past values sit."""

    frame: Frame
    eta: Any = 0.0

    @property
    def clock_frame(self) -> Frame:
        return self.frame

    @abstractmethod
    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """The legs of a step for levels `[]`, `[B]` or, on a known grid, `[n]`; `past.at[..., 0]` is now's node."""

    @property
    def remembers_start(self) -> bool:
        """Whether a step's start and noise are carried, for a corrector."""
        return False

    def skipped(self, count: int) -> int:
        """How many of the newest values of a step are not carried."""
        return 0

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        """A past of values so far away that they have no weight."""
        wide = widen(x)
        here = self.frame.coordinate(now)
        far = FAR * torch.arange(1, self.memory + 1, dtype=here.dtype, device=here.device)
        at = far.expand(*here.shape, -1).clone()
        # every leaf its own tensor: shared ones would make a compiled step specialise on the sharing
        values = tuple(torch.zeros_like(wide) for _ in range(self.memory))
        if not self.remembers_start:
            return Past(at, values)
        kick = torch.zeros_like(wide) if self.stochastic else None
        return Past(at, values, 0, Level(*(v.clone() for v in now)), wide.clone(), kick)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Past, noise: NoiseSource | None) -> Step:
        check_history(carry.values, x)
        at = carry.at
        if at is not None:
            # a new tensor: in TIME the coordinate is the level's t, which the carry may hold too
            at = torch.cat([self.frame.coordinate(now)[..., None], at], -1)
        legs = self.legs(model, now, next, carry._replace(at=at))
        grouped = self.frame if self.frame.grouped else None
        ran = run(legs, model, x, carry, given(noise) if self.stochastic else None, next, grouped)
        out, values, start, kick = ran
        skip, count = self.skipped(carry.taken), min(carry.taken + 1, self.starting)
        past = Past(None if at is None else at[..., : self.memory], values[skip : skip + self.memory], count)
        if self.remembers_start:
            past = past._replace(level=now, start=widen(start), kick=kick)
        return self.judged(model, x, now, next, at, ran, Step(out.to(x.dtype), past))

    def judged(self, model: Any, x: Tensor, now: Level, next: Level, at: Any, ran: Ran, step: Step) -> Step:
        """The step with its error estimate and what dense output needs, where the method has them."""
        return step

    def on(self, model: Any, levels: Level) -> Sequence[Solver]:
        """All steps of a grid with levels `[n + 1]`: the same legs for tensors `[n]`, split into plain numbers."""
        if not model.answers or self.frame.grouped:
            return ()
        method = self
        if callable(self.eta) and not isinstance(self.eta, StepEta):
            method = replace(self, eta=EachStep(self.eta))  # type: ignore[type-var]
        now, next = ends(levels)
        legs = method.legs(model, now, next, nodes(method, now))
        split = plain(legs, model, len(now.t))
        if split is None:
            return ()
        if len(legs) == 1 and not self.memory and model.linear and not callable(legs[0].want):
            split = [(folded(leg),) for (leg,) in split]
        return self.rows(split)

    def rows(self, steps: Sequence[tuple[Leg, ...]], skip: int = 0) -> list[Solver]:
        """One solver per step, from its legs with plain numbers."""
        evals = sum([leg.want is not None for leg in steps[0]])
        own = evals, self.init_evals, self.memory, skip, self.remembers_start, self.stochastic
        return [Row(self, legs, *own) for legs in steps]


@dataclass(frozen=True)
class Row(Solver):
    """One step of a table on a known grid: its legs, with plain numbers, and what the method says, worked out once.

    `memory` values are carried, after leaving out the `skip` newest.
    """

    method: Table
    legs: tuple[Leg, ...]
    evals: int = 1
    init_evals: int = 0
    memory: int = 0
    skip: int = 0
    remembers_start: bool = False
    stochastic: bool = False

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        """The method's past, without the values that do not exist yet."""
        past: Past = self.method.init(model, x, now)
        return Past(None, past.values if self.init_evals else ())

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Past, noise: NoiseSource | None) -> Step:
        out, values, start, kick = run(self.legs, model, x, carry, noise if self.stochastic else None, next)
        if not self.memory:
            return Step(out.to(x.dtype), carry)
        values = values[self.skip : self.skip + self.memory]
        if not self.remembers_start:
            return Step(out.to(x.dtype), Past(None, values))
        return Step(out.to(x.dtype), Past(None, values, 0, None, widen(start), kick))


class Ask(NamedTuple):
    """One prediction at one level of a known grid, with the numbers that turn the network's output into it."""

    want: Want
    on_x: float
    on_raw: float

    def __call__(self, model: Any, x: Tensor, level: Level) -> Tensor:
        """The prediction `[B, *S]`, in working precision."""
        raw: Tensor = model.raw(x, level)
        if self.on_x == 0.0 and self.on_raw == 1.0:
            return widen(raw).clone()  # it is kept, and a network may write its next output into the same memory
        return combine((self.on_x, x), (self.on_raw, raw))


def raw(model: ScoreModel, x: Tensor, level: Level) -> Tensor:
    """The network's own output, where its prediction is folded into the step."""
    return model.raw(x, level)


def folded(leg: Leg) -> Leg:
    """A leg whose value is not carried: the network's output goes into the step without the prediction made of it."""
    (on,), (_, on_x, on_raw) = leg.on, leg.want
    return leg._replace(want=raw, on_x=leg.on_x + on * on_x, on=(on * on_raw,))


def ends(levels: Level) -> tuple[Level, Level]:
    """Where the steps between levels `[n + 1]` begin and end, `[n]` each."""
    t, alpha, sigma = levels
    return Level(t[:-1], alpha[:-1], sigma[:-1]), Level(t[1:], alpha[1:], sigma[1:])


def nodes(method: Table, now: Level) -> Past:
    """Where the nodes of the steps from levels `[n]` sit, `[n, memory + 1]`: FAR before the first; the step before."""
    here, count = method.frame.coordinate(now), method.memory
    far = FAR * torch.arange(count, 0, -1, dtype=here.dtype, device=here.device)
    at = torch.cat([far, here]).unfold(0, count + 1, 1).flip(-1)
    last = Level(*(torch.cat([v[:1], v[:-1]]) for v in now)) if method.remembers_start else None
    return Past(at, (), 0, last)


def plain(legs: Sequence[Leg], model: Any, n: int) -> list[tuple[Leg, ...]] | None:
    """The legs of n single steps, with plain numbers, from those of all; None where gradients flow through a weight.

    Weights of values that do not exist yet stand last, and nothing meets them.
    """
    columns = []
    for level, want, on_x, on, again, left, spread, fresh in legs:
        ask = asks(level, want, model, n)
        known = [on_x, left, spread, *on, *again]
        if ask is None or any(isinstance(w, Tensor) and w.requires_grad for w in known):
            return None
        first, rest, top, *more = [w.expand(n).tolist() if isinstance(w, Tensor) else [w] * n for w in known]
        ahead, behind = (list(zip(*part)) or [()] * n for part in (more[: len(on)], more[len(on) :]))
        columns.append(list(map(Leg, points(level), ask, first, ahead, behind, rest, top, [fresh] * n)))
    return list(zip(*columns))


def asks(level: Level, want: Any, model: Any, n: int) -> list[Any] | None:
    """What a leg asks in each of n steps; None where gradients flow through the numbers."""
    if want is None or callable(want):
        return [want] * n
    p, q = [v.expand(n) for v in want]
    pairs = list(zip(p.unbind(), q.unbind()))
    if not model.linear:
        return pairs
    on_x, on_raw = [v.expand(n) for v in model.coefficients(level, (p, q))]
    if on_x.requires_grad or on_raw.requires_grad:
        return None
    return list(map(Ask, pairs, on_x.tolist(), on_raw.tolist()))
