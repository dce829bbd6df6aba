"""Objects whose repr is the call that makes them, so that what a search found can be pasted into a test."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

import sdegen as sd

P = ParamSpec("P")
T = TypeVar("T")

_RECIPES = "sdegen.testing.recipes"


def told(value: T, call: str | None) -> T:
    """A copy of `value` whose repr is `call`: of a subclass of its class, and equal to what `value` is equal to.

    It can be pickled and deep-copied. A shallow copy, which is how objects make changed ones, has its own repr again.
    """
    base = _plain_class(type(value))
    other: T = _twin(value, _telling(base))
    vars(other)["_call"] = call
    return other


def make(target: Callable[..., T], *args: Any, **options: Any) -> T:
    """`target(*args, **options)` with this call as its repr: `make(sd.VP, beta_max=8.0)` is `sd.VP(beta_max=8.0)`."""
    words = [*map(spell, args), *(f"{name}={spell(value)}" for name, value in options.items())]
    return told(target(*args, **options), f"{spell(target)}({', '.join(words)})")


def recipe(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose results have the calls that made them as their reprs."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return make(function, *args, **kwargs)

    return call


def spell(value: Any) -> str:
    """What to write for a value after `import torch, sdegen as sd` and `from sdegen.testing.recipes import *`."""
    if id(value) in _public():
        return _public()[id(value)]
    if isinstance(value, types.MethodType):
        return f"{spell(value.__self__)}.{value.__name__}"
    if isinstance(value, types.FunctionType | type) and value.__module__ == _RECIPES:
        return value.__name__
    if isinstance(value, Tensor):
        return f"torch.tensor({value.tolist()!r}, dtype={value.dtype})"
    if type(value) is list:
        return f"[{', '.join(map(spell, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(spell, value))}{',' * (len(value) == 1)})"
    place = _public().get(id(type(value)), "")
    if dataclasses.is_dataclass(value) and place:
        return f"{place.removesuffix(type(value).__name__)}{brief(value)}"
    return repr(value)


def brief(value: Any) -> str:
    """The call that makes a dataclass, without the arguments that are as by default."""
    return f"{type(value).__name__}({', '.join(_changed(value))})"


class Sparse:
    """A dataclass (with `repr=False`) whose repr leaves out what is as by default."""

    def __repr__(self) -> str:
        return brief(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # or else Hypothesis and IPython write out the fields of dataclasses


def _changed(value: Any) -> Iterator[str]:
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        make_default: Any = field.default_factory
        default = field.default if make_default is dataclasses.MISSING else make_default()
        if field.init and (isinstance(given, Tensor) or given != default):
            yield f"{field.name}={spell(given)}"


@functools.cache
def _public() -> dict[int, str]:
    """The public names of functions, classes and constants, by identity."""
    grids = {
        f"sd.grids.{name}": value for name, value in vars(sd.grids).items() if isinstance(value, types.FunctionType)
    }
    classes = {f"sd.solvers.{name}": getattr(sd.solvers, name) for name in sd.solvers.__all__}
    tableaus = {f"sd.tableaus.{name}": value for name, value in vars(sd.tableaus).items() if name.isupper()}
    root = {f"sd.{name}": getattr(sd, name) for name in sd.__all__}
    named = classes | tableaus | grids | root  # a value of several names has the shortest
    return {id(value): name for name, value in named.items()}


def _plain_class(cls: type) -> type:
    return cls.__mro__[1] if "_told" in vars(cls) else cls


def _plain(value: Any) -> Any:
    """The same without a call."""
    base = _plain_class(type(value))
    return value if base is type(value) else _twin(value, base)


def _twin(value: Any, cls: type) -> Any:
    """An instance of another class of the same layout, with the state of `value`."""
    if issubclass(cls, tuple):
        return tuple.__new__(cls, value)
    other = object.__new__(cls)
    vars(other).update({name: v for name, v in vars(value).items() if name != "_call"})
    return other


@functools.cache
def _telling(base: Any) -> type:
    """The subclass of `base` whose instances say `_call`."""
    own: dict[str, Any] = {
        "_told": True,
        "_call": None,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__hash__": base.__hash__,
        "__copy__": _plain,
        "__repr__": lambda self: self._call or base.__repr__(self),
        "_repr_pretty_": Sparse._repr_pretty_,
        "__eq__": lambda self, other: self is other or _plain(self) == _plain(other),
        "__reduce__": lambda self: (told, (_plain(self), self._call)),
    }
    return types.new_class(base.__name__, (base,), exec_body=lambda namespace: namespace.update(own))
