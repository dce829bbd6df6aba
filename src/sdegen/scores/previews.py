"""Previews: the data that the network predicted at a step's last evaluation, without another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sdegen.level import Level
from sdegen.scores.model import ScoreModel, convert, plane
from sdegen.tensors import combine


class Watched:
    """A model that remembers its last evaluation; everything else is the model's own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._last: Callable[[], Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
        """The model's prediction."""
        model = self.model
        answer: Tensor = model(x, level, want)

        def data() -> Tensor:
            c_x, c_answer = convert(level, plane(model.process, level, want), plane(model.process, level, "data"))
            return _combined(x, answer, c_x, c_answer)

        self._last = data
        return answer

    def raw(self, x: Tensor, level: Level) -> Tensor:
        """A ScoreModel's raw output."""
        model: ScoreModel = self.model
        answer = model.raw(x, level)
        self._last = lambda: _combined(x, answer, *model.coefficients(level, "data"))
        return answer

    def preview(self) -> Tensor | None:
        """The predicted data at the last evaluation `[B, *S]`, None before the first."""
        return None if self._last is None else self._last()


def _combined(x: Tensor, answer: Tensor, c_x: Tensor, c_answer: Tensor) -> Tensor:
    return combine((c_x, x), (c_answer, answer)).to(x.dtype)
