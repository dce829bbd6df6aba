"""What is known of a user's network without calling it: the module behind it, what it takes, how it is pickled."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import operator
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdegen.tensors import named

if TYPE_CHECKING:
    from typing_extensions import Self


_TOGETHER = ""
"""The place in an object's pickled state of what is kept in one piece: no attribute has an empty name."""


def module_behind(function: Any) -> torch.nn.Module | None:
    """The module that a callable is or has: in its closure, the globals it names, its parts or its object.

    Several are one `torch.nn.ModuleList`, those first that have floating parameters.
    """
    found: list[torch.nn.Module] = []
    seen, todo = set(), [(function, 4)]
    while todo:
        value, depth = todo.pop(0)
        if id(value) in seen or isinstance(value, Tensor | type | types.ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            found.append(value)
        elif depth:
            todo += [(part, depth - 1) for part in _parts(value)]
    if len(found) < 2:
        return found[0] if found else None
    several = torch.nn.ModuleList(
        sorted(found, key=lambda net: not any(p.is_floating_point() for p in net.parameters()))
    )
    several.training = False  # the list itself has no mode
    return several


def _parts(value: Any) -> list[Any]:
    """What a callable or a collection is made of."""
    match value:
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            kept = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            return kept + [value.__globals__[name] for name in names(value.__code__) if name in value.__globals__]
        case types.MethodType() | functools.partial():
            return _bound(value)
        case Mapping():
            return list(value.values())
        case list() | tuple() | set() | frozenset():
            return list(value)
    return attributes(value) + ([type(value).__call__] if callable(value) else [])


def attributes(value: Any) -> list[Any]:
    """What an object holds, in its dict or in slots."""
    return list(held(value).values())


def held(value: Any) -> dict[str, Any]:
    """What an object holds by name, in its dict or in slots."""
    inside = [name for kind in type(value).__mro__ for name in slots(kind) if name not in ("__dict__", "__weakref__")]
    found: dict[str, Any] = {}
    with contextlib.suppress(TypeError):  # of an object without a dict
        found.update(vars(value))
    for name in inside:
        with contextlib.suppress(AttributeError):  # of a slot that holds nothing yet
            found[name] = getattr(value, name)
    return found


def _bound(value: Any) -> list[Any]:
    """A function and what it is bound to, of a method or a partial; nothing for anything else."""
    match value:
        case types.MethodType():
            return [value.__self__, value.__func__]
        case functools.partial():
            return [value.func, *value.args, *value.keywords.values()]
    return []


def slots(kind: type) -> tuple[str, ...]:
    """The attributes that a class itself keeps outside of `__dict__`."""
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)


def names(code: types.CodeType) -> list[str]:
    """All names that a function and those inside it use."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def takes_one(net: Callable[..., Any], condition: Iterable[str]) -> bool:
    """Whether a network takes x alone, and no time, beside its conditions."""
    if isinstance(net, torch.nn.Module):  # of a compiled one, which takes anything, the module inside
        net = dict(net.named_children()).get("_orig_mod", net).forward
    try:
        known = inspect.signature(net).parameters.values()
    except (TypeError, ValueError):  # no signature to be had
        return False
    if any(p.kind is p.VAR_POSITIONAL for p in known):
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in condition for p in known) < 2


class Portable:
    """What may hold lambdas and local functions, and is copied and pickled with them."""

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        _keep(twin, held(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = object.__new__(type(self))
        _keep(twin, {name: copy.deepcopy(value, memo) for name, value in held(self).items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return picklable(held(self))

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        together = state.get(_TOGETHER, {})
        _keep(self, {**{name: value for name, value in state.items() if name != _TOGETHER}, **together})


def _keep(thing: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        object.__setattr__(thing, name, value)  # frozen or not


class _Local:
    """Callables made of functions that pickle cannot find by their names, and the modules that they may hold."""

    def __init__(self, function: Mapping[str, Any]) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        try:
            import cloudpickle  # type: ignore[import-untyped]
        except ImportError:
            first = named(next(iter(self.function.values())))
            raise pickle.PicklingError(
                f"{first} is or holds a lambda or a local function, which pickle cannot find again: "
                "pip install cloudpickle, which sdegen uses where it is there, or define it with def at the top of a "
                "module, or as a torch.nn.Module"
            ) from None
        return cloudpickle.loads, (cloudpickle.dumps(self.function),)


def picklable(state: Mapping[str, Any]) -> dict[str, Any]:
    """An object's state, lambdas and local functions in a form that pickle takes.

    They are kept in one piece with the modules that they hold, if those stand beside them: what was one stays one.
    """
    local = {name: value for name, value in state.items() if _is_local(value)}
    if not local:
        return dict(state)
    behind = [net for value in local.values() if (net := module_behind(value)) is not None]
    reached = {id(part) for net in behind for part in net.modules()}
    modules = {name: value for name, value in state.items() if id(value) in reached}
    rest = {name: value for name, value in state.items() if name not in local and name not in modules}
    return {**rest, _TOGETHER: _Local({**local, **modules})}


def _is_local(value: Any) -> bool:
    """Whether a callable is or holds a function that is not found again by its name."""
    if not isinstance(value, types.FunctionType):
        return any(map(_is_local, _bound(value)))
    try:
        return operator.attrgetter(value.__qualname__)(sys.modules.get(value.__module__)) is not value
    except AttributeError:
        return True
