"""A solve inside of somebody else's loop: it says what it asks of the network, and goes on with the answer.

A step is a pure function that asks its questions in an order. So it is run until it asks what is not yet answered, left
there, and run again from its beginning with one answer more: no solver is written twice for this.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.loop.advance import Rules, State, advance
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import rules_for
from sdegen.loop.pace import Adaptive
from sdegen.loop.queue import asked_state, blank_state, rules_alone
from sdegen.loop.solution import Status
from sdegen.scores.model import ScoreModel
from sdegen.solvers.base import Solver
from sdegen.tensors import expect_like, home, readable, widen


class Question(NamedTuple):
    """Where the network is to be asked: at x `[B, *S]`, at a level `[]` or `[B]`."""

    x: Tensor
    level: Level


class Unanswered(BaseException):
    """Raised in the place of an answer that is not there yet: no error, so that nobody's handler of errors meets it."""

    def __init__(self, question: Question) -> None:
        self.question = question


class AskedModel(ScoreModel):
    """A score model without a network: what it would return comes from outside, in the order in which it is asked."""

    def __init__(self, process: Any, predicts: Any, **options: Any) -> None:
        super().__init__(process, _nobody, predicts, **options)
        self.given: list[Tensor] = []
        self.read = 0

    def raw(self, x: Tensor, level: Level, *, whole: bool = False) -> Tensor:
        """The next answer; a learned variance's part of it only where that is asked for."""
        if self.read == len(self.given):
            raise Unanswered(Question(x, level))
        self.read += 1
        found = self.given[self.read - 1]
        return found if whole or not self.learned_variance else found.chunk(2, 1)[0]

    def forget(self) -> None:
        """Begin a step: none of its questions is answered."""
        self.given.clear()
        self.read = 0


def _nobody(x: Tensor, time: Tensor, **condition: Any) -> Tensor:
    raise TypeError("a driven solve answers in the place of its network")


class Together(Adaptive):
    """Adaptive steps of one size for all samples: that of the largest error, but for samples whose own is no number."""

    def norm(self, *args: Any) -> Tensor:
        """The size of a local error `[B]`, one for all."""
        size = super().norm(*args)
        finite = size.isfinite()
        return torch.where(finite, torch.where(finite, size, 0.0).max(), size)


class Driven:
    """A solve that is asked and answered from outside: `begin`, then `answer` while there is a `question`.

    model: a model made of `asked`; control: a `Fixed` grid, or `Together`; denoise: whether the last answer becomes the
    predicted data.
    """

    def __init__(self, model: Any, asked: AskedModel, control: Any, solver: Solver, denoise: bool) -> None:
        self.model, self.asked, self.control, self.denoise = model, asked, control, denoise
        adaptive = isinstance(control, Together)
        self.solver = solver.with_norm(control.norm) if adaptive else solver
        self.question: Question | None = None
        self.x: Tensor | None = None
        self.opening: dict[int, Level] = {}
        """Where the steps of a grid ask first, by their places, if they are known to ask at the state itself."""
        self._place = 0
        self._state: State | None = None
        self._rules: Rules | None = None

    def again(self, model: Any, asked: AskedModel) -> Driven:
        """The same solve of another model on its process, not begun; what is known of the grid is kept."""
        twin = copy.copy(self)
        twin.model, twin.asked, twin.question, twin.x, twin._state = model, asked, None, None, None
        twin._rules = None if self._rules is None else replace(self._rules, model=model)
        return twin

    def begin(self, x: Tensor, noise: Any = None, place: int = 0) -> None:
        """Start at x `[B, *S]`, on a grid at step `place`."""
        if place and not self.control.repeatable:
            raise InvalidArgumentError(f"{self.control} passes levels more than once, so it must begin with its first")
        if place:
            self.control, self._rules = self.control.since(place), None
        self._noise, self._state, self._left, self._place = noise, None, self.denoise, place
        if self._rules is not None:
            cheap = x.device.type == "cpu" and readable(x)
            watch = not x.is_inference()
            self._rules = replace(self._rules, noise=noise, cheap=cheap, watch=watch, dtype=widen(x[:0]).dtype)
        self.x = x
        self._ask()
        if self.question is not None and self.question.x is not x and not torch.equal(self.question.x, x):
            raise InvalidArgumentError(
                f"{self.solver} moves the state before it asks, and here it was asked at the state already: begin "
                "where it does not, as at the first level"
            )

    @property
    def between(self) -> bool:
        """Whether the question is the first one of a step, and so asked at the state itself."""
        return not self.asked.given

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return 0 if self._state is None else self._state.steps

    @property
    def status(self) -> Tensor | None:
        """How each sample fared so far `[B]`, `Status` or -1; None while nothing went wrong on a grid."""
        state = self._state
        if state is None or isinstance(self.control, Fixed):
            fate = None if state is None else state.fate
            return None if fate is None else torch.where(fate.alive, int(Status.OK), int(Status.NONFINITE))
        found: Tensor = state.control.status
        return found

    def answer(self, value: Tensor, x: Tensor | None = None) -> Tensor:
        """Go on with what the network returned at the question; where it is asked next, or else the samples.

        x: the state in place of the solve's own, where somebody changed it between two steps.
        """
        if self.question is None or self.x is None:
            raise InvalidArgumentError("this solve has no question that could be answered: it ended, or did not begin")
        if x is not None:
            self._edited(expect_like(x, self.question.x, "the state must stay what it was"))
        self.asked.given.append(value)
        there = self._ask()
        return self.x if there is None else there

    def _edited(self, x: Tensor) -> None:
        """Take x in place of the state, where the question is asked at that; inside of a step the answer is all."""
        if self.question is None or (self.question.x is not self.x and not self.between):
            return
        if self.question.x is self.x:
            self.x = x
            self._state = None if self._state is None else self._state._replace(x=x)
        elif not torch.equal(x, self.question.x):
            raise InvalidArgumentError(
                f"{self.solver} asks at states of its own alone, so that changes of them, as inpainting makes, are "
                "lost: take a method that asks at the beginning of each step, as heun(), unipc(3) or default()"
            )

    def _ask(self) -> Tensor | None:
        """Run the steps whose answers are there; where the next question is asked, None where there is none."""
        self.question, self.asked.read = None, 0
        stage = self._on_grid if isinstance(self.control, Fixed) else self._together
        try:
            while stage():
                self.asked.forget()
                if self.opening and self.steps and self._left == self.denoise and self.x is not None:
                    known = self.opening.get(self._place + self.steps)
                    if known is not None:
                        self.question = Question(self.x, known)
                        return self.x
        except Unanswered as halt:
            self.question = halt.question
            return halt.question.x
        return None

    def _on_grid(self) -> bool:
        """One step of a grid, its answers there; whether there was one."""
        state, steps = self._state, int(self.control.steps)
        if state is None and self.x is not None:
            now, next, control = self.control.init(self.model.process, self.x)
            if self._rules is None and steps:
                self._rules = rules_for(self.model, self.x, self.control, control, self.solver, self._noise, False)
            rules, carry = self._rules, ()
            if rules is not None:
                carry = (rules.parts[0] if rules.parts else self.solver).init(self.model, self.x, now)
            self._state = State(self.x, carry, now, next, control, 0, 0, None)
            return True
        if state is not None and self._rules is not None and state.steps < steps:
            self._state = advance(self._rules, state, state.steps)
            self.x = self._state.x
            return True
        return self._last()

    def _together(self) -> bool:
        """One attempt for all samples, its answers there; whether there was one."""
        process, state = self.model.process, self._state
        if state is None and self.x is not None:
            self._state = blank_state(process, self.control, self.solver, self.model, self.x)
            if self._state is None:
                self._state = asked_state(process, self.control, self.solver, self.model, self.x)[0]
            return True
        if state is not None and self.control.running(state.control):
            self._rules = self._rules or rules_alone(process, self.model, self.solver, self._noise, self.control)
            self._state = advance(self._rules, state, state.steps)
            self.x = self._state.x
            return True
        return self._last()

    def _last(self) -> bool:
        """The predicted data in place of the state, where that is how the solve ends."""
        if self._left and self._state is not None and self.x is not None:
            self.x = self.model(self.x, self._state.now, "data").to(self.x.dtype)
            self._left = False
            return True
        return False

    def time(self, level: Level) -> Tensor:
        """The network's time at a level `[]`; of levels `[B]` that of a sample that did not fail."""
        time = self.asked.time(level)
        if not time.ndim:
            return time
        status = self.status
        fine = torch.ones(len(time), dtype=torch.bool) if status is None else status.to(home(status.device)) <= 0
        return time[int(fine.to(torch.uint8).argmax())]
