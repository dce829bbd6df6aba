"""Where the runs of a sweep are kept, and which of them may be taken again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy
import torch

import sdegen
from sdegen.bench import files
from sdegen.bench.identity import Seen
from sdegen.bench.machine import processor
from sdegen.bench.sources import library
from sdegen.errors import InvalidArgumentError

T = TypeVar("T")


class Place(NamedTuple):
    """Where a run is kept; path: None where it is not; again: whether what is there may be taken."""

    path: Path | None = None
    again: bool = False


class Store:
    """Runs in a folder, each in a file whose name is a hash of all that it depends on.

    What rests on this library and on installed packages alone is taken again without asking: the hash sees all of it.
    A user's own code may read files and more that no hash sees, so what rests on it is taken only with `resume`.

    folder: None keeps nothing. resume: whether runs of a user's own code are taken as well. tell: what to do with a
    sentence, about files that are damaged and runs that cannot be kept.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, resume: bool = False, tell: Callable[[str], None] = print
    ) -> None:
        self.folder, self.resume, self.tell = None if folder is None else Path(folder), resume, tell
        self.passed, self.own, self._said = 0, False, set[str]()
        self._marks: dict[int, tuple[Any, Seen]] = {}
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidArgumentError(
                    f"runs cannot be kept in {folder}: {error.strerror or error}; give a folder"
                ) from error

    def mark(self, thing: Any, look: Callable[[Any], Seen]) -> Seen:
        """What a thing is, looked at once: what runs leave in it, as counts of calls, makes no other thing of it."""
        if id(thing) not in self._marks:
            self._marks[id(thing)] = thing, look(thing)
        return self._marks[id(thing)][1]

    def place(self, *parts: Seen | str) -> Place:
        """Where a run with these parts is kept."""
        if self.folder is None:
            return Place()
        looked = [part for part in parts if isinstance(part, Seen)]
        unseen = dict.fromkeys(name for part in looked for name in part.unseen)
        if unseen:
            if self.resume:
                self._once(
                    f"runs are not kept where no other process could tell what they are of: {', '.join(unseen)} cannot "
                    "be looked into; such runs are made each time"
                )
            return Place()
        whole = [*(part.key if isinstance(part, Seen) else part for part in parts), *_around()]
        path = self.folder / f"{hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:24]}.json"
        own = any(part.own for part in looked)
        self.own |= own
        again = self.resume or not own
        self.passed += path.exists() and not again
        return Place(path, again)

    def made(self, place: Place, read: Callable[[Any], T], make: Callable[[], T], write: Callable[[T], Any]) -> T:
        """What is kept at a place, or else what is made now, which is kept then.

        Args:
            place: As `place` gives it.
            read: From what JSON holds to the thing; it raises where that is no such thing.
            make: Makes it.
            write: From the thing to what JSON can hold.

        Returns:
            The thing.

        Raises:
            WriteError: It cannot be kept.
        """
        if place.path is not None and place.again and os.path.lexists(place.path):
            try:
                return load(place.path, read)
            except Exception as error:
                self.tell(f"{place.path} is damaged ({_reason(error)}): that run is made again")
        found = make()
        if place.path is not None:
            save(place.path, write(found))
        return found

    def advice(self) -> str:
        """What to say of runs that were there and were not taken; empty where there are none."""
        if not self.passed:
            return ""
        runs = "1 run that was kept was" if self.passed == 1 else f"{self.passed} runs that were kept were"
        return f"{runs} made again: what rests on code of your own may have changed where nothing shows it"

    def _once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.tell(sentence)


def save(path: Path, content: Any) -> None:
    """Writes what JSON can hold, with a hash of it. Raises WriteError; then there is no such file, or the old one."""
    text = json.dumps(content)
    files.write(path, f'{{"sha256": "{_hash(text)}", "content": {text}}}')


def load(path: Path, read: Callable[[Any], T]) -> T:
    """What was written. Raises an error of any kind on a file that is not as it was written."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    content = whole["content"]
    if whole["sha256"] != _hash(json.dumps(content)):
        raise ValueError("it is not as it was written")
    return read(content)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror or error)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "it is no whole JSON file"
    return "it is not as it was written"


def _around() -> tuple[Any, ...]:
    """What else numbers and seconds depend on."""
    return (
        *_versions(),
        processor(),
        torch.get_num_threads(),
        str(torch.get_default_dtype()),
        str(torch.get_default_device()),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )


@functools.cache
def _versions() -> tuple[str, ...]:
    return sdegen.__version__, library(), torch.__version__, numpy.__version__, platform.python_version()
