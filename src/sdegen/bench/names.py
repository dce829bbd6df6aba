"""From what is typed to what is meant: solvers, grids, problems, and functions of a user's own files."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from sdegen import grids
from sdegen.bench.contenders import Calibrated, Contender, Ours
from sdegen.bench.own import Own, loaded
from sdegen.bench.problems import PROCESSES, Problem, problem
from sdegen.errors import InvalidArgumentError, hint
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
    if ":" not in name:
        return Ours(name, solver(name), grid or "own", GRIDS.get(grid))
    own = loaded(name)
    called = f"{own.path.name}:{name.rpartition(':')[2]}"
    return Ours(called, _returned(own), grid or "own", GRIDS.get(grid), sources=own.sources)


def solver(text: str) -> Solver:
    """The solver that a name means. Raises InvalidArgumentError for what is not known or takes other arguments."""
    if ":" in text:
        return _returned(loaded(text))
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


def _returned(own: Own) -> Solver:
    """The solver that a user's function returns."""
    made: Solver = own()
    if not hasattr(made, "evals") or not callable(getattr(made, "step", None)) or isinstance(made, type):
        raise InvalidArgumentError(f"{own.text} must be or return a solver, such as sd.heun(), got {made!r}")
    return made


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
