"""The library's own frozen objects as plain data for JSON, and back: numbers, tuples, functions by name, dataclasses.

Reading imports nothing but this library: a file cannot name other code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, SdegenError, brief

_ROOT = __name__.partition(".")[0]


def recorded(value: Any) -> Any:
    """A value as plain data.

    Raises InvalidArgumentError for what is not made of numbers, words, tensors and this library's own functions and
    dataclasses.
    """
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case tuple() | list():
            return [recorded(part) for part in value]
        case Tensor():
            return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
        case functools.partial():
            parts = [recorded(value.func), recorded(value.args), _mapped(value.keywords)]
            return dict(zip(("partial", "args", "keywords"), parts))
        case Mapping():
            return {"mapping": _mapped(value)}
    kind = value if isinstance(value, types.FunctionType) else type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__.partition(".")[0] == _ROOT and "<" not in name:
        if isinstance(value, types.FunctionType):
            return {"function": name}
        if dataclasses.is_dataclass(value):
            known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            return {"object": name, "fields": _mapped(known)}
    raise InvalidArgumentError(f"{brief(value)} is not this library's own and has no record: give it again on loading")


def restored(record: Any) -> Any:
    """The value of a record. Raises InvalidArgumentError for what is no record of this library."""
    try:
        return _value(record)
    except SdegenError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{brief(record)} is no record of {_ROOT}'s: {error}") from None


def _value(record: Any) -> Any:
    match record:
        case list():
            return tuple(map(_value, record))
        case {"float": number}:
            return float(number)
        case {"tensor": numbers, "dtype": str(dtype)}:
            return torch.tensor(numbers, dtype=getattr(torch, dtype), device="cpu")
        case {"partial": function, "args": args, "keywords": dict(keywords)}:
            return functools.partial(_value(function), *_value(args), **_restored(keywords))
        case {"mapping": dict(parts)}:
            return _restored(parts)
        case {"function": str(name)}:
            return _found(name, types.FunctionType)
        case {"object": str(name), "fields": dict(fields)}:
            return _found(name, type)(**_restored(fields))
        case {"own": name}:
            raise InvalidArgumentError(f"a record has what is your own, {name}: give it again")
        case Mapping():
            raise InvalidArgumentError(f"{brief(record)} is no record of {_ROOT}'s")
    return record


def _mapped(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: recorded(value) for name, value in values.items()}


def _restored(records: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(record) for name, record in records.items()}


def _found(name: str, kind: type) -> Any:
    """The function or dataclass of this library that is called so."""
    module, _, path = name.partition(":")
    if module.partition(".")[0] != _ROOT:
        raise InvalidArgumentError(f"a record names {name!r}, which is no part of {_ROOT}: nothing else is imported")
    try:
        found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        found = None
    if not isinstance(found, kind) or (kind is type and not dataclasses.is_dataclass(found)):
        raise InvalidArgumentError(f"a record names {name!r}, which this version of {_ROOT} does not have")
    return found
