"""The errors a user can meet, and the one call through which every score function is run and checked."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    pass


P = ParamSpec("P")
R = TypeVar("R")


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


def strict_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with an unknown keyword answered by a TypeError that names the closest known one."""
    known = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= known:
            raise unknown_keywords(function.__name__, kwargs.keys() - known, known)
        return function(*args, **kwargs)

    return call


def warn_caller(message: str) -> None:
    """A warning at the line that called the library, however many of its functions and decorators lie between."""
    inside = (os.path.dirname(__file__), os.path.dirname(torch.__file__))
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(inside):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth + 1)
