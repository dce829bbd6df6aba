"""The errors a user can meet, and the one call through which every score function is run and checked."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch._subclasses import FakeTensor

if TYPE_CHECKING:
    from sdegen.solution import Solution


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


class SolveError(SdegenError, RuntimeError):
    """Some samples of a solve failed; `partial` holds the `Solution` with every finished row."""

    def __init__(self, message: str, partial: Solution) -> None:
        super().__init__(message)
        self.partial = partial

    def __reduce__(self) -> tuple[type[SolveError], tuple[str, Solution]]:
        return type(self), (str(self), self.partial)


def readable(x: Tensor) -> bool:
    """Whether values can be read on the host: not while tracing or capturing, in vmap, of a FakeTensor or on meta."""
    if torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor):
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return False
        x = get_unwrapped(x)
    return True


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


def call_score(
    function: Callable[..., Any],
    x: Tensor,
    time: Tensor,
    condition: Mapping[str, Any] | None = None,
    *,
    cast: bool = False,
    shape: torch.Size | None = None,
) -> Tensor:
    """`function(x, time, **condition)`, checked: a tensor of `shape` (x's unless given), x's dtype, device; x unedited.

    Raises ScoreShapeError, ScoreTypeError, ScoreError. `cast=True` converts another floating dtype instead of refusing.
    """
    shape = x.shape if shape is None else shape
    watch = not torch.compiler.is_compiling() and not x.is_inference()
    version = x._version if watch else 0
    out = function(x, time, **(condition or {}))
    if watch and x._version != version:
        raise ScoreError(
            "the score function modified its input x in place; return a new tensor (for example x * 2, not x.mul_(2))"
        )
    if not isinstance(out, Tensor):
        raise ScoreTypeError(f"the score function returned {type(out).__name__}; it must return a torch.Tensor")
    if out.shape != shape:
        raise ScoreShapeError(
            f"the score function returned shape {list(out.shape)} for x of shape {list(x.shape)}; "
            f"it must return shape {list(shape)}"
        )
    if out.device != x.device:
        raise ScoreTypeError(
            f"the score function returned a tensor on {out.device} for x on {x.device}; move the network or x"
        )
    if out.dtype != x.dtype:
        if not (cast and out.is_floating_point()):
            raise ScoreTypeError(
                f"the score function returned dtype {out.dtype} for x of dtype {x.dtype}; it must return x's dtype "
                "(ScoreModel(..., cast=True) converts another floating dtype)"
            )
        out = out.to(x.dtype)
    return out


def warn_caller(message: str) -> None:
    """A warning at the line that called the library, however many of its functions and decorators lie between."""
    inside = (os.path.dirname(__file__), os.path.dirname(torch.__file__))
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(inside):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth + 1)
