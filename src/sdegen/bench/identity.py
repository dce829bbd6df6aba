"""What a thing is, down to its code and its numbers, as a hash that another process finds too: keys of kept runs."""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib.util
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdegen.bench import inside
from sdegen.bench.sources import origin, release
from sdegen.processes import callables

_ATOMS = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented))
_ATOMS += (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)  # type: ignore[assignment]
_NAMED = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)


class Seen(NamedTuple):
    """What was seen of things.

    key: A hash of all of it. own: Names of code that is neither this library's nor an installed package's; such code
    may depend on what no hash sees, as files that it reads. unseen: Types of parts that could not be looked into.
    """

    key: str
    own: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def seen(*things: Any) -> Seen:
    """Look at all that things are made of.

    Args:
        *things: Anything: functions are looked into with their closures, defaults and the globals that they name,
            classes with their methods, modules with their parts, tensors with their numbers, all else with its state.
            This library's code and that of installed packages is known by name and version.

    Returns:
        The hash, and whose code was met.
    """
    walk = _Walk({})
    try:
        walk.parts("things", things)
    except RecursionError:
        walk.unseen["things nested too deeply"] = None
    return walk.found()


class _Walk:
    """One walk through things; each is entered once, and named by a number from then on."""

    def __init__(self, numbers: dict[int, int]) -> None:
        self.hash, self.numbers = hashlib.sha256(), numbers
        self.own: dict[str, None] = {}
        self.unseen: dict[str, None] = {}
        self.alive: list[Any] = []  # an id is another's once its owner is gone

    def found(self) -> Seen:
        return Seen(self.hash.hexdigest(), tuple(self.own), tuple(self.unseen))

    def say(self, *words: Any) -> None:
        for word in words:
            text = str(word).encode("utf-8", "surrogatepass")
            self.hash.update(b"%d:%s" % (len(text), text))

    def parts(self, what: str, things: Iterable[Any]) -> None:
        """Several, with their number."""
        things = list(things)
        self.say(what, len(things))
        for thing in things:
            self.look(thing)

    def look(self, thing: Any) -> None:
        if type(thing) in _ATOMS:
            self.say(type(thing).__name__, repr(thing))
            return
        if id(thing) in self.numbers:
            self.say("again", self.numbers[id(thing)])
            return
        self.numbers[id(thing)] = len(self.numbers)
        self.alive.append(thing)
        if isinstance(thing, types.ModuleType):
            self._module(thing)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, (Tensor, np.ndarray)):
            self._array(thing)
        elif not self._simple(thing):
            self._object(thing)

    def _simple(self, thing: Any) -> bool:
        """Collections and wrappers of other things; False for what is none."""
        kind = type(thing)
        if isinstance(thing, types.MethodType):
            self.parts("method", [thing.__self__, thing.__func__])
        elif isinstance(thing, _NAMED):
            holder = getattr(thing, "__self__", None)
            self.say("builtin", getattr(thing, "__module__", ""), thing.__qualname__)
            self.look(None if isinstance(holder, types.ModuleType) else holder)
        elif isinstance(thing, property):
            self.parts("property", [thing.fget, thing.fset, thing.fdel])
        elif isinstance(thing, (staticmethod, classmethod)):
            self.parts(kind.__name__, [thing.__func__])
        elif isinstance(thing, functools.cached_property):
            self.parts("cached property", [thing.func])
        elif isinstance(thing, functools._lru_cache_wrapper):
            self.parts("cache", [thing.__wrapped__])
        elif isinstance(thing, weakref.ref):
            self.parts("reference", [thing()])
        elif isinstance(thing, types.CellType):
            self.parts("cell", [] if thing == types.CellType() else [thing.cell_contents])
        elif isinstance(thing, enum.Enum):
            self.parts("enum", [kind, thing.name])
        elif kind in (dict, OrderedDict, types.MappingProxyType):
            self.parts(kind.__name__, [part for item in thing.items() for part in item])
        elif kind in (list, tuple, deque, torch.Size):
            self.parts(kind.__name__, thing)
        elif kind in (set, frozenset):
            self.say(kind.__name__, *sorted(self._apart(part) for part in thing))
        else:
            return False
        return True

    def _apart(self, thing: Any) -> str:
        """A hash of its own, for things that come in no order."""
        other = _Walk(dict(self.numbers))
        other.look(thing)
        self.own |= other.own
        self.unseen |= other.unseen
        return other.hash.hexdigest()

    def _whose(self, module: str, name: str) -> bool:
        """Whether code is a user's own; other code is told by its name and version."""
        where = origin(module)
        if where == "own":
            self.own[name] = None
            return True
        self.say(where, module, name, "" if where == "library" else release(module.partition(".")[0]))
        return False

    def _module(self, thing: types.ModuleType) -> None:
        if self._whose(thing.__name__, thing.__name__):
            self.say("module")
            self.parts("vars", [x for item in inside.told(vars(thing)).items() for x in item])

    def _class(self, thing: type) -> None:
        if self._whose(thing.__module__, thing.__qualname__):
            self.say("class", thing.__qualname__)
            self.parts("bases", thing.__bases__)
            self.parts("vars", [x for item in sorted(inside.told(vars(thing)).items()) for x in item])

    def _function(self, thing: types.FunctionType) -> None:
        # of the module that it is written in; what it is called may be another's
        where = str(thing.__globals__.get("__name__", ""))
        if thing.__globals__ is not getattr(sys.modules.get(where), "__dict__", None):
            where = ""  # made by exec, under whatever name
        if self._whose(where, thing.__qualname__):
            self.look(thing.__code__)
            names = callables.names(thing.__code__)
            named = {name: thing.__globals__[name] for name in names if name in thing.__globals__}
            self.parts("globals", [part for item in named.items() for part in item])
            for name in inside.imported(thing.__code__):
                self._import(name, str(thing.__globals__.get("__package__") or ""))
        self.parts("closure", thing.__closure__ or ())
        self.parts("defaults", [thing.__defaults__, thing.__kwdefaults__, vars(thing)])

    def _import(self, name: str, package: str) -> None:
        """A module that a function imports when it runs."""
        for full in dict.fromkeys((f"{package}.{name}" if package else name, name)):
            if full in sys.modules:
                self.look(sys.modules[full])
                return
        try:
            spec = importlib.util.find_spec(name) if name else None
        except (ImportError, ValueError):
            spec = None
        self.say("import", name, spec is not None)

    def _code(self, thing: types.CodeType) -> None:
        self.say(
            "code",
            thing.co_code.hex(),
            thing.co_names,
            thing.co_varnames,
            thing.co_freevars,
            thing.co_flags & inside.FLAGS,
        )
        self.say(getattr(thing, "co_exceptiontable", b"").hex(), thing.co_argcount, thing.co_kwonlyargcount)
        self.parts("constants", thing.co_consts)

    def _array(self, thing: Any) -> None:
        self.look(type(thing))
        try:
            if isinstance(thing, np.ndarray):
                flat: Any = np.ascontiguousarray(thing)
                if flat.dtype.hasobject:
                    self.parts("objects", flat.ravel().tolist())
                    return
            else:
                self.say(thing.device)
                flat = thing.detach().resolve_conj().resolve_neg().cpu().contiguous()
                flat = flat.reshape(-1).view(torch.uint8).numpy()
            self.say("array", thing.dtype, tuple(thing.shape))
            self.hash.update(flat.tobytes() if flat.ndim != 1 or flat.dtype != np.uint8 else flat)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):  # sparse, quantized, without numbers
            self._reduced(thing)
        extra = getattr(thing, "__dict__", None)
        if extra:
            self.look(extra)

    def _object(self, thing: Any) -> None:
        """Anything else: its class and its state."""
        kind = type(thing)
        self.look(kind)
        if origin(kind.__module__) == "library":  # how they are pickled is for files, and leaves things out
            slots = [name for k in kind.__mro__ for name in callables.slots(k)]
            self.parts("slots", [getattr(thing, name, None) for name in slots])
            self.look(inside.lasting(kind, getattr(thing, "__dict__", {})))
            if isinstance(thing, (tuple, list)):
                self.parts("items", thing)
            elif isinstance(thing, Mapping):
                self.parts("items", [part for item in thing.items() for part in item])
        else:
            self._reduced(thing)

    def _reduced(self, thing: Any) -> None:
        """By what pickle would take of it."""
        try:
            made = thing.__reduce_ex__(2)
        except Exception:
            self.unseen[type(thing).__qualname__] = None
            return
        if isinstance(made, str):
            self.say("name", made)
            if origin(type(thing).__module__) == "own":
                self.unseen[type(thing).__qualname__] = None
            return
        function, args, state, *items = (*made, None, None, None)[:5]
        self.parts("reduced", [function, args])
        self.look(inside.lasting(type(thing), state) if isinstance(state, dict) else state)
        for more in items:
            self.parts("items", () if more is None else more)
