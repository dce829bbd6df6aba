"""What is told of classes, modules, states and code, for keys of kept runs."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Mapping
from typing import Any

_UNTOLD = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__", "_abc_impl"}
_UNTOLD |= {"__dataclass_fields__", "__dataclass_params__", "__annotations__", "__annotate__", "__annotate_func__"}
_UNTOLD |= {"__annotations_cache__", "__builtins__", "__loader__", "__spec__", "__file__", "__cached__", "__name__"}
_UNTOLD |= {"__path__", "__package__", "__slotnames__", "__warningregistry__"}
"""Of classes and modules: what says nothing of what they do."""


FLAGS = 0x3FF
"""Of code: what it takes and gives, without the features of later versions that its file asks for."""


def told(found: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a class or a module that say what it does."""
    return {name: value for name, value in found.items() if name not in _UNTOLD}


def lasting(kind: type, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without what is worked out from the rest of it when it is asked for."""
    return {k: v for k, v in state.items() if not isinstance(getattr(kind, str(k), None), functools.cached_property)}


def imported(code: types.CodeType) -> list[str]:
    """The modules that a function and those inside it import."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in imported(part)]
    return [*(str(i.argval) for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"), *inner]
