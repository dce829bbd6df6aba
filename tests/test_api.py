"""The public names and their signatures, as they stand: a break of either is a decision, made in tests/api.txt too."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import sdegen as sd

SNAPSHOT = Path(__file__).with_name("api.txt")


def described(name: str, value: object) -> str:
    """One line for one public name: a module, a value, or a call with its parameters and defaults."""
    if inspect.ismodule(value):
        return f"{name}: module"
    if not callable(value) or isinstance(value, sd.Frame):
        return f"{name}: {type(value).__name__}"
    kind = "class " if isinstance(value, type) else ""
    try:
        found = inspect.signature(value)
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
        signature = str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    except ValueError:  # an enumeration
        signature = "(...)"
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    return f"{kind}{name}{signature}"


def api() -> list[str]:
    return [described(name, getattr(sd, name)) for name in sorted(sd.__all__)]


def test_the_public_names_and_signatures_are_those_of_the_snapshot():
    assert api() == SNAPSHOT.read_text().splitlines()


def test_dir_shows_the_public_names_alone():
    assert set(dir(sd)) == {*sd.__all__, "__version__"}
    assert len(sd.__all__) == len(set(sd.__all__)) <= 111


def test_modules_of_the_root_have_the_name_of_their_file():
    modules = {name: getattr(sd, name) for name in sd.__all__ if inspect.ismodule(getattr(sd, name))}
    assert all(module.__name__.split(".")[-1] == name for name, module in modules.items())
