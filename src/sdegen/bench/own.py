"""Functions of a user's own files: loaded as they are on disk, and called; whatever they do is told with their name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from sdegen.bench.sources import closure, origin
from sdegen.errors import InvalidArgumentError, SdegenError, hint
from sdegen.scores.model import Model

PREFIX = "sdegen_file"
_COUNT = itertools.count()
_BESIDE: dict[str, Any] = {}
"""Modules that lie beside a user's file and were imported for it."""


class Own(NamedTuple):
    """A function of a user's file: `file.py:function`, and the file."""

    text: str
    path: Path
    function: Callable[[], Any]

    def __call__(self) -> Any:
        """What the function returns.

        Raises:
            InvalidArgumentError: It raised an error, or it called `sys.exit`.
        """
        with _told(self.text, f"{self.text} raised"), _beside(self.path):
            return self.function()

    @property
    def sources(self) -> str:
        """A hash of the file and of all local files that it imports."""
        return closure(self.path)


def loaded(text: str) -> Own:
    """The function that `path.py:function` means, or one that returns what is a model or a solver itself.

    Args:
        text: The path of a file and a name in it. The file is read anew, and so is what it imports from its folder.
            It may have any name: no module of that name is replaced by it.

    Returns:
        The function, to be called without arguments.

    Raises:
        InvalidArgumentError: There is no such file or function, or the file fails or calls `sys.exit`.
    """
    where, _, name = text.rpartition(":")
    path = Path(where)
    if not where:
        raise InvalidArgumentError(f"{text!r} must be path.py:function: say which function")
    if not path.is_file():
        raise InvalidArgumentError(f"{text!r} must be path.py:function with a file that exists; there is no {where!r}")
    _forget()
    title = f"{PREFIX}{next(_COUNT)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None or spec.loader is None:
        raise InvalidArgumentError(f"{where!r} is no Python file")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _Fresh(spec.loader.name, spec.loader.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module  # dataclasses of the file look themselves up there
    with _told(where, f"{where} could not be imported:"), _beside(path):
        spec.loader.exec_module(module)
    found = vars(module).get(name)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InvalidArgumentError(f"{where} has no function {name!r}: {hint(name, known, 'it has')}")
    made = isinstance(found, Model) or not callable(found)  # a model answers, and is not to be called for one
    return Own(text, path, (lambda: found) if made else found)


def exited(who: str, error: SystemExit) -> str:
    """A sentence about code that ended the program.

    Args:
        who: What to name where the file cannot be told from the error.
        error: What `sys.exit` raised.

    Returns:
        The file and the line, what was called, and what to do.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _ours(f.filename)]
    place = f"{who} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else who
    code = "" if error.code is None else repr(error.code)
    return (
        f"{place} called sys.exit({code}), which ends the program; nothing can be measured. It must return or raise "
        'instead: put what is for a script under if __name__ == "__main__":'
    )


def _ours(file: str) -> bool:
    """Whether a line of a traceback is of no file of a user's, but of this library or what runs it."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return file.startswith(("<", here)) or f"{os.sep}site-packages{os.sep}" in file


@contextlib.contextmanager
def _told(who: str, raised: str) -> Iterator[None]:
    """What a user's code raises, as an error with its name."""
    try:
        yield
    except SdegenError:
        raise
    except SystemExit as error:
        raise InvalidArgumentError(exited(who, error)) from error
    except Exception as error:
        raise InvalidArgumentError(f"{raised} {type(error).__name__}: {error}") from error


class _Fresh(SourceFileLoader):
    """Reads the file as it is: what Python keeps compiled is told from it by its size and the second it was written."""

    def get_code(self, fullname: str) -> CodeType:
        compiled: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return compiled


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """The file's own folder can be imported from inside, after all that is installed: it hides nothing of others."""
    folder, known, compiled = str(path.parent.resolve()), set(sys.modules), sys.dont_write_bytecode
    sys.path.append(folder)
    sys.dont_write_bytecode = True  # an edit within a second would not be seen beside what is compiled
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = compiled
        with contextlib.suppress(ValueError):  # the file may have changed the path itself
            last = len(sys.path) - 1 - sys.path[::-1].index(folder)
            del sys.path[last]
        for name in set(sys.modules) - known:
            if not name.startswith(PREFIX) and origin(name) == "own":
                _BESIDE[name] = sys.modules[name]


def _forget() -> None:
    """Lets modules beside the files before be imported anew: they may have been edited, or be another folder's."""
    for name, module in _BESIDE.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _BESIDE.clear()
