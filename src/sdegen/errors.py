"""The errors a user can meet, and the one call through which every score function is run and checked."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

C = TypeVar("C", bound=Callable[..., Any])


class SdegenError(Exception):
    """Base of every error that this library raises on purpose."""


class InvalidArgumentError(SdegenError, ValueError):
    """An argument has the right type and a value that cannot work."""


class InvalidTypeError(SdegenError, TypeError):
    """An argument has the wrong type, dtype or name."""


class ScoreError(SdegenError):
    """A score function returned something that cannot be a score, or edited its input."""


class ScoreShapeError(ScoreError, ValueError):
    """A score function returned a tensor of another shape than its input's."""


class ScoreTypeError(ScoreError, TypeError):
    """A score function returned no tensor, or one of another dtype or device."""


def hint(name: str, allowed: Sequence[str], otherwise: str) -> str:
    """What to do about an unknown name: the closest allowed one, or all of them after the words `otherwise`."""
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(allowed)}"


def unknown_keywords(function: str, got: Iterable[str], allowed: Iterable[str]) -> InvalidTypeError:
    """The error for keywords that `function` does not take, with the closest name it does."""
    name = sorted(got)[0]
    return InvalidTypeError(f"{function}() got an unknown keyword {name!r}: {hint(name, sorted(allowed), 'it takes')}")


def check_known(what: str, value: object, allowed: Iterable[str], *, optional: bool = False) -> None:
    """Raises InvalidArgumentError unless `value` is one of `allowed`, or None where it is optional."""
    names = sorted(allowed)
    if value not in names and not (optional and value is None):
        raise InvalidArgumentError(f"unknown {what} {value!r}: {hint(str(value), names, 'it must be one of')}")


def strict_keywords(target: C) -> C:
    """A function or a class, which answers an unknown keyword with a TypeError that names the closest known one.

    A class keeps its signature and its type: only `__init__` is wrapped, so it stands above `@dataclass`.
    """
    known = set(inspect.signature(target).parameters)

    def strict(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys() <= known:
                raise unknown_keywords(target.__name__, kwargs.keys() - known, known)
            return function(*args, **kwargs)

        return call

    if not isinstance(target, type):
        return strict(target)  # type: ignore[return-value]
    target.__init__ = strict(target.__init__)  # type: ignore[misc]
    return target


def check_positive(**values: Any) -> None:
    """Raises InvalidArgumentError unless all values, given by their names, are numbers, positive and finite."""
    for name, value in values.items():
        with contextlib.suppress(
            TypeError, ValueError, RuntimeError
        ):  # of what compares with no number, or has several
            if type(value) is not bool and 0 < value < float("inf"):
                continue
        raise InvalidArgumentError(f"{name} must be positive and finite, got {value!r}")


def warn_caller(message: str) -> None:
    """A warning at the line that called the library, however many of its functions and decorators lie between."""
    inside = (os.path.dirname(__file__), os.path.dirname(torch.__file__))
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(inside):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth + 1)
