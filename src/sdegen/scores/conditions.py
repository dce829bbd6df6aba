"""Conditions of a network: which of their parts belong to one sample each, and those of some of the samples.

A tensor or an array of at least one dimension is per sample. A dict or a named tuple, and a list or tuple that holds
such parts, is a structure of them; a list or tuple of n items that holds none has one for each sample. What is not per
sample is said by `shared`.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief
from sdegen.processes.callables import attributes
from sdegen.tensors import readable

_ADVICE = "write sd.shared(value) for what is one for all samples"
Sizes = frozenset[int] | None
"""The numbers of samples that a condition may be for; None where any number will do."""


@dataclass(frozen=True)
class Shared:
    """A value that is one for all samples, whatever its length."""

    value: Any


def shared(value: Any) -> Shared:
    """A condition that every sample gets whole, as `ScoreModel(process, net, table=sd.shared(table))`.

    Args:
        value: anything; the network gets it as it is.

    Returns:
        The value, marked.
    """
    return Shared(value)


def as_index(index: Any) -> Tensor:
    """The places of some samples `[b]`, of a tensor or a list. Raises InvalidTypeError unless they are whole numbers.

    A mask has to be made places first: read as numbers, it would be the samples 0 and 1.
    """
    if isinstance(index, Sequence) and all(type(k) is int for k in index):
        return torch.tensor(list(index), dtype=torch.int64, device="cpu")
    found = torch.from_numpy(index) if type(index) is np.ndarray and index.dtype.kind == "i" else index
    if not torch.is_tensor(found) or found.ndim != 1 or found.dtype not in (torch.int64, torch.int32):
        raise InvalidTypeError(
            f"rows takes an int64 tensor [b] of the samples' places, or a list of them; got {brief(index)}. One sample "
            "is [3], those of a mask are mask.nonzero().flatten()"
        )
    return found.long()


class Conditions(dict[str, "_Part"]):
    """The conditions of a model by name, each sorted into what is per sample and what is not."""

    @staticmethod
    def of(condition: Mapping[str, Any]) -> Conditions:
        """The conditions that are given by their names."""
        return Conditions({name: _sorted(value) for name, value in condition.items()})

    @property
    def plain(self) -> dict[str, Any]:
        """The conditions as they were given."""
        return {name: part.whole() for name, part in self.items()}

    def sized(self, n: int) -> Conditions:
        """The same where they are known to be for n samples. Raises InvalidArgumentError unless they are."""
        return Conditions({name: part.decided(name, n) for name, part in self.items()})

    @property
    def count(self) -> int | None:
        """How many samples they are for, None where any number will do.

        Raises InvalidArgumentError where that is not clear.
        """
        sizes = _common(self.values())
        if sizes is None or len(sizes) == 1:
            return None if sizes is None else min(sizes)
        each = {name: sorted(part.sizes or ()) for name, part in self.items()}
        several = f"may be for {' or '.join(map(str, sorted(sizes)))} samples" if sizes else "differ in length"
        raise InvalidArgumentError(f"the conditions {several}, by name {each}: {_ADVICE}")

    def rows(self, index: Tensor) -> Conditions:
        """Those of the samples `index` `[b]`.

        Raises InvalidArgumentError for an index beyond them, or where it is not clear how many samples they are for.
        """
        n = self.count
        if n is not None and index.numel() and readable(index) and not (-n <= int(index.min()) and index.max() < n):
            raise InvalidArgumentError(f"the conditions are for {n} samples, got rows {index.tolist()}")
        return Conditions({name: part.rows(index) for name, part in self.sized(n or 1).items()})

    def to(self, device: torch.device) -> Conditions:
        """The same with all tensors on a device."""
        return Conditions({name: part.to(device) for name, part in self.items()})

    def given(self, n: int) -> dict[str, Any]:
        """What the network gets for a batch of n samples."""
        return {name: part.decided(name, n).given(n) for name, part in self.items()}


class _Part(ABC):
    """A condition, or a part of one."""

    sizes: Sizes = None
    own: bool = False
    """Whether something in it is per sample."""

    def decided(self, name: str, n: int) -> _Part:
        """The part where there are n samples: Raises InvalidArgumentError where it is not for so many."""
        return self

    def rows(self, index: Tensor) -> _Part:
        """The part for some of the samples."""
        return self

    def to(self, device: torch.device) -> _Part:
        """The part with its tensors on a device."""
        return self

    def given(self, n: int) -> Any:
        """What the network gets for a batch of n samples."""
        return self.whole()

    @abstractmethod
    def whole(self) -> Any:
        """The value that was given."""


@dataclass(frozen=True)
class _Whole(_Part):
    """What is one for all samples; marked, where `shared` says so; counted, where it has items that are in no order."""

    value: Any
    marked: bool = False
    counted: bool = False

    def decided(self, name: str, n: int) -> _Part:
        if self.counted and len(self.value) == n > 1:
            raise InvalidArgumentError(
                f"condition {name!r} is a {type(self.value).__name__} of {n} items for a batch of {n}: give a tensor, "
                f"an array or a list where they are one for each sample; {_ADVICE}"
            )
        return self

    def to(self, device: torch.device) -> _Part:
        return replace(self, value=self.value.to(device)) if torch.is_tensor(self.value) else self

    def given(self, n: int) -> Any:
        return self.value

    def whole(self) -> Any:
        return Shared(self.value) if self.marked else self.value


@dataclass(frozen=True)
class _Rows(_Part):
    """A tensor or an array with a row for each sample, or one row for all."""

    value: Any
    own = True

    @property
    def sizes(self) -> Sizes:  # type: ignore[override]
        return None if self.value.shape[0] == 1 else frozenset([int(self.value.shape[0])])

    def decided(self, name: str, n: int) -> _Part:
        if self.value.shape[0] not in (1, n):
            raise InvalidArgumentError(
                f"condition {name!r} has shape {list(self.value.shape)} for a batch of {n}: its first dimension must "
                f"be the batch or 1; {_ADVICE}"
            )
        return self

    def rows(self, index: Tensor) -> _Part:
        if self.value.shape[0] == 1:
            return self
        return _Rows(self.value[index.to(self.value.device) if torch.is_tensor(self.value) else index.cpu().numpy()])

    def to(self, device: torch.device) -> _Part:
        return _Rows(self.value.to(device)) if torch.is_tensor(self.value) else self

    def given(self, n: int) -> Any:
        if self.value.shape[0] == n:
            return self.value
        shape = (n, *self.value.shape[1:])
        return self.value.expand(shape) if torch.is_tensor(self.value) else np.broadcast_to(self.value, shape)

    def whole(self) -> Any:
        return self.value


@dataclass(frozen=True)
class _Parts(_Part):
    """A structure of parts: those of a dict by name, those of a list or tuple by place."""

    parts: Mapping[Any, _Part]
    made: Callable[[dict[Any, Any]], Any]

    @property
    def own(self) -> bool:  # type: ignore[override]
        # the lists in a dict are of samples, those in a list may be anything
        named = self.made is dict and self.sizes is not None
        return named or any(part.own for part in self.parts.values())

    @property
    def sizes(self) -> Sizes:  # type: ignore[override]
        return _common(self.parts.values())

    def decided(self, name: str, n: int) -> _Part:
        return replace(self, parts={key: part.decided(f"{name}[{key!r}]", n) for key, part in self.parts.items()})

    def rows(self, index: Tensor) -> _Part:
        return replace(self, parts={key: part.rows(index) for key, part in self.parts.items()})

    def to(self, device: torch.device) -> _Part:
        return replace(self, parts={key: part.to(device) for key, part in self.parts.items()})

    def given(self, n: int) -> Any:
        return self.made({key: part.given(n) for key, part in self.parts.items()})

    def whole(self) -> Any:
        return self.made({key: part.whole() for key, part in self.parts.items()})


@dataclass(frozen=True)
class _Each(_Part):
    """A list or tuple of one item for each sample, or one item for all."""

    items: tuple[Any, ...]
    kind: Callable[[Any], Any]
    own = True

    @property
    def sizes(self) -> Sizes:  # type: ignore[override]
        return None if len(self.items) == 1 else frozenset([len(self.items)])

    def decided(self, name: str, n: int) -> _Part:
        if len(self.items) not in (1, n):
            raise InvalidArgumentError(
                f"condition {name!r} has {len(self.items)} items for a batch of {n}: give one for each sample; "
                f"{_ADVICE}"
            )
        return self

    def rows(self, index: Tensor) -> _Part:
        if len(self.items) == 1:
            return self
        return replace(self, items=tuple(self.items[k] for k in index.tolist()))

    def given(self, n: int) -> Any:
        return self.kind(self.items if len(self.items) == n else self.items * n)

    def whole(self) -> Any:
        return self.kind(self.items)


@dataclass(frozen=True)
class _Sequence(_Part):
    """A list or tuple of which the number of samples will tell whether it is `_Each` or `_Parts`."""

    each: _Each
    parts: _Parts

    @property
    def own(self) -> bool:  # type: ignore[override]
        return self.parts.own

    @property
    def sizes(self) -> Sizes:  # type: ignore[override]
        inside, length = self.parts.sizes, len(self.each.items)
        if not self.own:
            return self.each.sizes
        return None if inside is None else inside | {length}

    def decided(self, name: str, n: int) -> _Part:
        inside, length = self.parts.sizes, len(self.each.items)
        structure = self.own and (inside is None or n in inside)
        if structure and length == n > 1:
            raise InvalidArgumentError(
                f"condition {name!r} is a list or tuple of {n} items for a batch of {n}, and its items are of {n} "
                f"samples too: give one tensor, or a dict of them; {_ADVICE}"
            )
        return self.parts.decided(name, n) if structure else self.each.decided(name, n)

    def to(self, device: torch.device) -> _Part:
        return _sorted(self.each.kind([part.to(device).whole() for part in self.parts.parts.values()]))

    def whole(self) -> Any:
        return self.each.whole()


def _listed(kind: Callable[[Any], Any], found: dict[int, Any]) -> Any:
    return kind(list(found.values()))


def _common(parts: Any) -> Sizes:
    """The numbers of samples that all parts may be for."""
    known = [part.sizes for part in parts if part.sizes is not None]
    return frozenset.intersection(*known) if known else None


def _sorted(value: Any) -> _Part:
    """What a value is, as far as it tells without the number of samples."""
    match value:
        case Shared():
            return _Whole(value.value, marked=True)
        case Tensor() | np.ndarray():
            return _Rows(value) if value.ndim else _Whole(value)
        case str() | bytes():
            return _Whole(value)
        case Mapping():
            return _Parts({key: _sorted(part) for key, part in value.items()}, dict)
        case Sequence() if value:
            fields = getattr(type(value), "_make", None)
            kind = fields or (type(value) if isinstance(value, list | tuple) else list)
            structure = _Parts({k: _sorted(part) for k, part in enumerate(value)}, functools.partial(_listed, kind))
            return structure if fields else _Sequence(_Each(tuple(value), kind), structure)
        case Iterator():
            raise InvalidTypeError(f"a condition is used at every call, and a {type(value).__name__} once: make a list")
    if any(torch.is_tensor(part) and part.ndim for part in attributes(value)):
        raise InvalidTypeError(
            f"a condition is a {type(value).__name__} that holds tensors: give a dict of them where they are one for "
            f"each sample; {_ADVICE}"
        )
    return _Whole(value, counted=isinstance(value, Sized))
