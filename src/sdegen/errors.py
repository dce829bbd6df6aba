"""The errors a user can meet, and the one call through which every score function is run and checked."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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


class TrainingError(SdegenError):
    """A training whose gradients are not finite any more."""


def hint(name: str, allowed: Sequence[str], otherwise: str) -> str:
    """What to do about an unknown name: the closest allowed one, or all of them after the words `otherwise`."""
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(allowed)}"


_ELSEWHERE = {
    "solver": "sampler scheduler method",
    "steps": "num_steps num_inference_steps n_steps epochs num_epochs max_steps",
    "nfe": "num_steps num_inference_steps n_steps",
    "batch_size": "batch bs",
    "seed": "generator",
    "x": "latents x0 x_T init",
    "size": "batch_size batch bs",
    "optimizer": "lr learning_rate",
    "ema": "ema_decay",
    "clip": "grad_clip max_grad_norm gradient_clip_val",
}
"""What other libraries call the options."""


def unknown_keywords(function: str, got: Iterable[str], allowed: Iterable[str]) -> InvalidTypeError:
    """The error for keywords that `function` does not take, with the one that is meant, or the closest it does."""
    name, known = sorted(got)[0], sorted(allowed)
    meant = [repr(own) for own, others in _ELSEWHERE.items() if own in known and name in others.split()]
    advice = f"did you mean {' or '.join(meant)}?" if meant else hint(name, known, "it takes")
    return InvalidTypeError(f"{function}() got an unknown keyword {name!r}: {advice}")


def check_call(name: str, target: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Raises InvalidTypeError unless `target` may be called so, under a name, and says how it may."""
    signature = inspect.signature(target)
    known = signature.parameters
    if not options.keys() <= known.keys():
        raise unknown_keywords(name, options.keys() - known.keys(), known)
    places = _placed(signature)
    if len(args) > len(places):
        named = [f"{key}=" for key, p in known.items() if p.kind is p.KEYWORD_ONLY]
        advice = f"; all else goes by name: {', '.join(named[:3])}, ..." if named else ""
        raise InvalidTypeError(
            f"{name}() takes {len(places)} arguments by place ({', '.join(places)}), got {len(args)}{advice}"
        )
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise InvalidTypeError(f"{name}(): {error}; it takes {', '.join(places)}") from None


def _placed(signature: inspect.Signature) -> list[str]:
    """The arguments that may be given by their place."""
    return [name for name, p in signature.parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]


def check_known(what: str, value: object, allowed: Iterable[str], *, optional: bool = False) -> None:
    """Raises InvalidArgumentError unless `value` is one of `allowed`, or None where it is optional."""
    names = sorted(allowed)
    if value not in names and not (optional and value is None):
        raise InvalidArgumentError(f"unknown {what} {value!r}: {hint(str(value), names, 'it must be one of')}")


def strict_keywords(target: C) -> C:
    """A function or a class, which answers an unknown keyword with a TypeError that names the closest known one.

    Too many arguments by place are told which go by name.
    A class keeps its signature and its type: only `__init__` is wrapped, so it stands above `@dataclass`.
    """
    signature = inspect.signature(target)
    known, own = set(signature.parameters), int(inspect.isclass(target))
    several = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    most = sys.maxsize if several else len(_placed(signature)) + own

    def strict(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(args) > most or not kwargs.keys() <= known:
                check_call(target.__name__, target, args[own:], kwargs)
            return function(*args, **kwargs)

        return call

    if not inspect.isclass(target):
        return strict(target)  # type: ignore[return-value]
    target.__init__ = strict(target.__init__)  # type: ignore[method-assign]
    return target


def check_positive(**values: Any) -> None:
    """Raises InvalidArgumentError unless all values, given by their names, are numbers, positive and finite."""
    for name, value in values.items():
        if is_number(value) and type(value) is not bool and 0 < value < float("inf"):
            continue
        raise InvalidArgumentError(f"{name} must be positive and finite, got {value!r}")


def is_number(value: object) -> bool:
    """Whether a value is one number: Python's own, or one of an array or a tensor."""
    try:
        return type(value) not in (str, bytes) and float(value) is not None  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # of what is no number, or has several
        return False


def check_numbers(advice: str = "", optional: bool = False, **values: Any) -> None:
    """Raises InvalidTypeError unless all values, given by their names, are numbers, or None where that is optional."""
    for name, value in values.items():
        if not ((optional and value is None) or is_number(value)):
            raise InvalidTypeError(f"{name} must be a number, got {brief(value)}{advice}")


def brief(value: object, most: int = 60) -> str:
    """What an error shows of a value: the beginning of its repr, of several numbers their shape."""
    if torch.is_tensor(value) and value.ndim:
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def warn_caller(message: str) -> None:
    """A warning at the line that called the library, however many of its functions and decorators lie between."""
    inside = (os.path.dirname(__file__), os.path.dirname(torch.__file__))
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(inside):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth + 1)
