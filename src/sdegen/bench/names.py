"""From what is typed to what is meant: solvers, grids, problems, and functions of a user's own files."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from sdegen import grids
from sdegen.bench.contenders import Calibrated, Contender, Ours
from sdegen.bench.problems import PROCESSES, Problem, problem
from sdegen.errors import InvalidArgumentError, SdegenError, hint
from sdegen.grids import Grid
from sdegen.solvers import methods
from sdegen.solvers.base import Solver

_SOLVERS = {
    name: f
    for name, f in vars(methods).items()
    if inspect.isfunction(f) and f.__module__ == methods.__name__ and not name.startswith("_")
}
GRIDS: dict[str, Grid] = {
    name: getattr(grids, name)
    for name in (
        "angular", "beta", "by_snr", "by_time", "cosine", "exponential", "karras", "natural", "quadratic", "sgm_uniform"
    )
}  # fmt: skip


def contender(text: str) -> Contender:
    """A solver by name, and after an `@` its grid.

    `default`, `dpmpp2` (a name and its order), `dpmpp(2, singlestep=True)`, `unipc3@karras`, `plan1000` (a plan
    calibrated with so many evaluations), or `file.py:function` that returns a solver. An adaptive solver with a grid
    takes its steps there. Raises InvalidArgumentError for what is not known.
    """
    whole = text.strip()
    name, _, grid = whole.partition("@")
    plan = re.fullmatch(r"plan(\d+)", name)
    if plan and not grid:
        return Calibrated(int(plan[1]))
    if grid and grid not in GRIDS:
        raise InvalidArgumentError(f"unknown grid {grid!r} in {whole!r}: {hint(grid, list(GRIDS), 'there are')}")
    own, _, function = name.rpartition(":")
    return Ours(f"{Path(own).name}:{function}" if own else name, solver(name), grid or "own", GRIDS.get(grid))


def solver(text: str) -> Solver:
    """The solver that a name means. Raises InvalidArgumentError for what is not known or takes other arguments."""
    if ":" in text:
        made: Solver = loaded(text)()
        if not hasattr(made, "evals") or not callable(getattr(made, "step", None)) or isinstance(made, type):
            raise InvalidArgumentError(f"{text} must return a solver, such as sd.heun(), got {made!r}")
        return made
    name, args, options = _call(text)
    counted = re.fullmatch(r"([a-z_]+?)_?(\d+)", name)
    if name not in _SOLVERS and counted and counted[1] in _SOLVERS and not args:
        name, args = counted[1], [int(counted[2])]
    if name not in _SOLVERS:
        raise InvalidArgumentError(f"unknown solver {text!r}: {hint(name, list(_SOLVERS), 'there are')}")
    try:
        found: Solver = _SOLVERS[name](*args, **options)
    except TypeError:
        raise InvalidArgumentError(
            f"{text!r} does not fit {name}{inspect.signature(_SOLVERS[name])}; give what it takes"
        ) from None
    return found


def _call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The name, and the plain numbers and words it is called with."""
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return node.func.id, [ast.literal_eval(v) for v in node.args], options
    except (SyntaxError, ValueError):
        raise InvalidArgumentError(
            f"{text!r} is not a solver: give a name such as dpmpp2 or dpmpp(2, singlestep=True)"
        ) from None
    return text, [], {}


def split(text: str) -> list[str]:
    """The distinct items of a list with commas, those inside of brackets left alone."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise InvalidArgumentError(f"{text!r} has brackets that do not match")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def problems(text: str) -> list[Problem]:
    """Problems by name with their processes: `digits` (under VP), `ring-EDM`, `digits-*` (under all)."""
    found = []
    for item in split(text):
        name, _, process = item.partition("-")
        found += [problem(name, p) for p in (PROCESSES if process == "*" else [process or "VP"])]
    return found


def loaded(text: str) -> Callable[..., Any]:
    """The function of `path.py:function`. Raises InvalidArgumentError where there is none, or the file fails."""
    where, _, name = text.rpartition(":")
    path = Path(where)
    if not where:
        raise InvalidArgumentError(f"{text!r} must be path.py:function: say which function")
    if not path.is_file():
        raise InvalidArgumentError(f"{text!r} must be path.py:function with a file that exists; there is no {where!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidArgumentError(f"{where!r} is no Python file")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _Fresh(spec.loader.name, spec.loader.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses of the file look themselves up there
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except SdegenError:
        raise
    except Exception as error:
        raise InvalidArgumentError(f"{where} could not be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InvalidArgumentError(f"{where} has no function {name!r}: {hint(name, known, 'it has')}")
    return partial(_told, function, text, path)


class _Fresh(SourceFileLoader):
    """Reads the file as it is: what Python keeps compiled is told from it by its size and the second it was written."""

    def get_code(self, fullname: str) -> CodeType:
        compiled: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return compiled


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """The file's own folder can be imported from inside, as when the file is run."""
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _told(function: Callable[..., Any], text: str, path: Path) -> Any:
    """A user's function, called; what it raises is told with its name."""
    try:
        with _beside(path):
            return function()
    except SdegenError:
        raise
    except Exception as error:
        raise InvalidArgumentError(f"{text} raised {type(error).__name__}: {error}") from error


def peers(text: str) -> list[Contender]:
    """Other libraries' samplers: `usual` ones, `all`, or those of the libraries named, for example `diffusers,azula`.

    Raises InvalidArgumentError for a library that is not known or not installed.
    """
    module = _adapters()
    libraries = [] if text in ("usual", "all") else split(text)
    try:
        found: list[Contender] = module.contenders(libraries, text == "all")
    except LookupError as error:
        raise InvalidArgumentError(str(error.args[0])) from error
    if not found:
        raise InvalidArgumentError("none of the other libraries is installed: pip install 'sdegen[peers]'")
    return found


def peer_versions() -> dict[str, str]:
    """The other libraries that are installed, with their versions."""
    versions: dict[str, str] = _adapters().versions()
    return versions


def _adapters() -> Any:
    """`benchmarks/peers`, which is installed as `sdegen.bench.peers`, and beside `src` in a checkout."""
    from sdegen import bench

    beside = str(Path(bench.__file__).parents[3] / "benchmarks")
    if beside not in bench.__path__:
        bench.__path__.append(beside)
    try:
        return importlib.import_module("sdegen.bench.peers.contenders")
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(f"the adapters to other libraries are not installed ({error})") from error
