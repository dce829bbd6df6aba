"""Models made of models."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.conditions import as_index
from sdegen.scores.model import Model
from sdegen.scores.plane import Want, convert, plane
from sdegen.tensors import combine

if TYPE_CHECKING:
    from typing_extensions import Self


class ModelMap(Model):
    """A model made of models: what it does not say for itself is theirs."""

    index: Tensor | None = None
    """Which samples of the whole call its rows are `[b]`, None where they are all: what a batch of them has."""

    def __init__(self, *models: Model) -> None:
        self.models = models

    @property
    def process(self) -> Process:  # type: ignore[override]
        """The models' process."""
        return self.models[0].process

    @property
    def condition(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The conditions of all, the first model's before the others'."""
        return {name: value for model in reversed(self.models) for name, value in model.condition.items()}

    @property
    def module(self) -> torch.nn.Module | None:  # type: ignore[override]
        """The first module behind one of them."""
        return next((found for model in self.models if (found := model.module) is not None), None)

    @property
    def device(self) -> torch.device | None:  # type: ignore[override]
        """Where the first one answers."""
        return self.models[0].device

    @property
    def prior(self) -> Any:
        """What the first one knows of the data."""
        return self.models[0].prior

    @property
    def sigma_data(self) -> float:  # type: ignore[override]
        """That of the first one."""
        return self.models[0].sigma_data

    @property
    def learned_variance(self) -> bool:  # type: ignore[override]
        """Whether the first one has a learned variance."""
        return self.models[0].learned_variance

    def with_fraction(self, x: Tensor, level: Level, want: Want = "score") -> tuple[Tensor, Tensor]:
        """The map's prediction `want`, and the fraction that the first model's network gives beside its own."""
        heard, twin = _Heard(self.models[0]), copy.copy(self)
        twin.models = (heard, *self.models[1:])
        answer = twin(x, level, want)
        return answer, heard.fraction()

    def eval(self) -> Self:
        """The map, the networks of its models set to evaluation mode."""
        for model in self.models:
            model.eval()  # type: ignore[attr-defined]
        return self

    def to(self, *args: Any, **options: Any) -> Self:
        """The map, its models moved as by `torch.nn.Module.to`."""
        for model in self.models:
            model.to(*args, **options)  # type: ignore[attr-defined]
        return self

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of the models' networks."""
        return itertools.chain(*(model.parameters() for model in self.models))  # type: ignore[attr-defined]

    def save(self, path: object) -> None:
        """Raises InvalidTypeError: the models are what files keep."""
        raise InvalidTypeError(f"{type(self).__name__} is a map of a model: save model.models[0], and map it again")

    @property
    def row_count(self) -> int | None:
        """The number of samples of its own conditions, or of the first model that says one."""
        counts = [super().row_count, *(model.row_count for model in self.models)]
        return next((count for count in counts if count is not None), None)

    def rows(self, index: Tensor | Sequence[int]) -> Self:
        """The same map of the models for the samples `index` `[b]`, which its `index` keeps."""
        index = as_index(index)
        part = copy.copy(super().rows(index))
        part.models = tuple(model.rows(index) for model in self.models)
        part.index = index if self.index is None else self.index[index.to(self.index.device)]
        return part

    def sized(self, n: int) -> Self:
        """The same map of the models for n samples."""
        whole = copy.copy(super().sized(n))
        whole.models = tuple(model.sized(n) for model in self.models)
        return whole

    def says(self, level: Level) -> tuple[bool, bool]:
        """What all of them do."""
        told = [model.says(level) for model in self.models]
        return all(data for data, _ in told), all(noise for _, noise in told)


class _Listener(ModelMap):
    """A model that keeps something of its last evaluation, and answers as the model does."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.linear = model.linear  # type: ignore[misc]

    def coefficients(self, level: Level, want: Want) -> tuple[Tensor, Tensor]:
        """The model's, where it is linear."""
        model: Any = self.models[0]
        found: tuple[Tensor, Tensor] = model.coefficients(level, want)
        return found


class _Heard(_Listener):
    """A model that keeps the learned variance's fraction, whatever else it is asked for."""

    _fraction: Tensor | None = None

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The model's prediction."""
        answer, self._fraction = self.models[0].with_fraction(x, level, want)
        return answer

    def raw(self, x: Tensor, level: Level) -> Tensor:
        """A linear model's raw output."""
        model: Any = self.models[0]
        answer: Tensor
        answer, self._fraction = model.raw_and_fraction(x, level)
        return answer

    def fraction(self) -> Tensor:
        """The fraction `[B, *S]`. Raises InvalidArgumentError before the first evaluation."""
        if self._fraction is None:
            raise InvalidArgumentError(f"{self.models[0]} was not asked, and the learned variance is that of it")
        return self._fraction


class PreviewModel(_Listener):
    """A model that remembers its last evaluation, to show the data predicted there at no further one."""

    _last: Callable[[], Tensor] | None = None

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The model's prediction."""
        answer = self.models[0](x, level, want)
        self._keep(x, level, want, answer)
        return answer

    def with_fraction(self, x: Tensor, level: Level, want: Want = "score") -> tuple[Tensor, Tensor]:
        """The model's prediction and the fraction of its learned variance."""
        answer, fraction = self.models[0].with_fraction(x, level, want)
        self._keep(x, level, want, answer)
        return answer, fraction

    def _keep(self, x: Tensor, level: Level, want: Want, answer: Tensor) -> None:
        (model,) = self.models

        def data() -> Tensor:
            c_x, c_answer = convert(level, plane(model.process, level, want), plane(model.process, level, "data"))
            return combine((c_x, x), (c_answer, answer)).to(x.dtype)

        self._last = data

    def raw(self, x: Tensor, level: Level) -> Tensor:
        """A linear model's raw output."""
        model: Any = self.models[0]
        answer: Tensor = model.raw(x, level)

        def data() -> Tensor:
            c_x, c_raw = model.coefficients(level, "data")
            return combine((c_x, x), (c_raw, answer)).to(x.dtype)

        self._last = data
        return answer

    def preview(self) -> Tensor | None:
        """The predicted data at the last evaluation `[B, *S]`, None before the first."""
        return None if self._last is None else self._last()
