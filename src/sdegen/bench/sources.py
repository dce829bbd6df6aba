"""Whose code it is: this library's, an installed package's, or a user's own; and what files it is written in."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import sdegen

Origin = Literal["library", "installed", "own"]

ROOT = Path(sdegen.__file__).resolve().parent
PEERS = ROOT.parents[1] / "benchmarks" / "peers"
"""Adapters to other libraries in a checkout; an installed package has them within itself."""


def origin(module: str) -> Origin:
    """Whose a module is, by its name.

    Args:
        module: The name, as in `sys.modules`.

    Returns:
        "library" for sdegen, "installed" for Python itself and what lies in site-packages, and "own" for all else.
    """
    top = module.partition(".")[0]
    if top in ("__main__", "__mp_main__"):  # what is run, or typed, whatever runs it
        return "own"
    file = getattr(sys.modules.get(top), "__file__", None)
    if isinstance(file, str):
        return _origin(file)
    return "installed" if top in sys.stdlib_module_names else "own"


@functools.cache
def _origin(file: str) -> Origin:
    for path in (Path(os.path.abspath(file)), Path(os.path.realpath(file))):
        if path.is_relative_to(ROOT):
            return "library"
        if {"site-packages", "dist-packages"} & set(path.parts):
            return "installed"
        if path.is_relative_to(sysconfig.get_path("stdlib")):
            return "installed"
    return "own"


@functools.cache
def library() -> str:
    """A hash of this library's own files, the adapters to other libraries among them."""
    whole = hashlib.sha256()
    for folder in (ROOT, PEERS):
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else ():
            whole.update(f"{path.relative_to(folder)} {_digest(path)}".encode())
    return whole.hexdigest()


@functools.cache
def release(package: str) -> str:
    """The version of an installed package, by the name that is imported; empty for Python's own."""
    if package in sys.stdlib_module_names:
        return ""
    found = importlib.metadata.packages_distributions().get(package, [])
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(found)))


def closure(path: Path) -> str:
    """A hash of a file and of all local files that it imports, however far down.

    Args:
        path: A Python file. Its imports are looked for in its own folder and on `sys.path`, site-packages aside.

    Returns:
        The hash: it changes with every character of any of the files, whether or not it is run.
    """
    done: dict[Path, str] = {}
    roots = [path.resolve().parent, *(Path(p or ".").resolve() for p in sys.path if _origin(f"{p or '.'}/x") == "own")]
    todo = [path.resolve()]
    while todo:
        file = todo.pop()
        if file not in done:
            done[file] = _digest(file)
            todo += [found for found in _imports(file, roots) if _origin(str(found)) == "own"]
    return hashlib.sha256(" ".join(sorted(f"{file.name} {text}" for file, text in done.items())).encode()).hexdigest()


def _imports(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """The local files that a file's import statements mean, wherever in it they stand."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # it says so itself when it is imported
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _found(alias.name.split("."), roots, False)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            places = roots if node.level == 0 else [file.parents[min(node.level, len(file.parents)) - 1]]
            for alias in node.names:
                yield from _found([*parts, alias.name], places, node.level > 0)


def _found(parts: Sequence[str], roots: Sequence[Path], relative: bool) -> Iterator[Path]:
    """The files of a dotted name and of the packages that it lies in, in every folder that has them."""
    known = parts[0] in sys.stdlib_module_names or (parts[0] in sys.modules and origin(parts[0]) != "own")
    if known and not relative:
        return  # what is installed goes before what lies beside a file
    for root in roots:
        for count in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:count])
            found = [place.with_name(f"{place.name}.py"), place / "__init__.py"]
            found += place.parent.glob(f"{place.name}.*.so") if place.parent.is_dir() else []
            yield from (p.resolve() for p in found if p.is_file())


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unread"
