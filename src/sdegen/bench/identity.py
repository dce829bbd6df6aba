"""What an object is, as a text that another process would write too: for keys under which runs are kept."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity(thing: Any) -> str:
    """Classes, functions and their code by name and bytes, tensors by their numbers, all else by its fields or repr."""
    if isinstance(thing, Tensor):
        return f"{list(thing.shape)} {thing.dtype} {digest(thing)}"
    if isinstance(thing, functools.partial):
        return f"partial({identity(thing.func)}, {identity(thing.args)}, {identity(thing.keywords)})"
    if isinstance(thing, types.FunctionType):
        inside = [cell.cell_contents for cell in thing.__closure__ or ()]
        return f"{thing.__module__}.{thing.__qualname__} {_code(thing.__code__)} {identity(inside)}"
    if isinstance(thing, Mapping):
        return "{" + ", ".join(f"{identity(k)}: {identity(v)}" for k, v in thing.items()) + "}"
    if isinstance(thing, (list, tuple, set, frozenset)):
        return f"{type(thing).__name__}({', '.join(map(identity, thing))})"
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = [(f.name, getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.init]
        return f"{_class(type(thing))}({', '.join(f'{name}={identity(value)}' for name, value in fields)})"
    return _ADDRESS.sub("", f"{_class(type(thing))} {thing!r}")


def digest(x: Tensor) -> str:
    """A hash of all numbers of a tensor."""
    return hashlib.sha256(x.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()


def _class(kind: type) -> str:
    """A class by name, and one from elsewhere by its methods' code as well: it may be edited between runs."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in ("sdegen", "builtins", "torch"):
        return name
    return name + "".join(_code(f.__code__) for f in vars(kind).values() if isinstance(f, types.FunctionType))


def _code(code: types.CodeType) -> str:
    parts = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    whole = f"{code.co_code.hex()} {code.co_names} {parts}"
    return hashlib.sha256(_ADDRESS.sub("", whole).encode()).hexdigest()[:16]
