"""The package itself: what it imports, in which order, how long that takes, and what its source may not contain."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import sdegen as sd

SOURCE = Path(sd.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
ORDER = (
    "errors",
    "tensors",
    "level",
    "progress",
    "noise",
    "processes",
    "grids",
    "scores",
    "solvers",
    "guidance",
    "training",
    "loop",
    "calibration",
    "sampling",
    "adapters",
    "metrics",
    "plots",
    "testing",
    "bench",
    "demo",
    "cli",
)
"""The parts, each a file or a package; one imports only from those before it."""


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of the library that a file imports anywhere (those for types alone left out)."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sdegen" and node not in for_types:
            base = node.module.partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}".strip(".")
                found.add(full if full in MODULES else base)
    return found


def reached(module: str, graph: dict[str, set[str]]) -> set[str]:
    """All that a module imports, directly or not."""
    seen, todo = set(), [module]
    while todo:
        for other in graph[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


# a package's face hands on the names of its files, and a command reads its version: neither is a floor
GRAPH = {name: imports(path) - {name} for name, path in MODULES.items() if path.name != "__main__.py"}


def part(module: str) -> str:
    return module.split(".")[0]


def test_every_part_has_a_place_in_the_order():
    assert {part(name) for name in GRAPH if name} == set(ORDER)


def test_no_part_imports_from_a_later_one():
    rank = {name: k for k, name in enumerate(ORDER)}
    upward = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if name and other and rank[part(other)] > rank[part(name)]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    files = {name: {o for o in others if MODULES[o].name != "__init__.py"} for name, others in GRAPH.items()}
    circles = [name for name in files if name in reached(name, files)]
    assert not circles


def test_a_package_does_not_have_the_name_of_a_public_function():
    packages = {path.parent.name for path in FILES if path.name == "__init__.py"} - {"sdegen"}
    assert not [name for name in packages if callable(getattr(sd, name, None))]


def test_importing_needs_torch_and_numpy_alone():
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import sdegen; "
        "extra = {'tqdm','matplotlib','sklearn','scipy','torchsde','torchdiffeq','hypothesis'} & set(sys.modules);"
        "print(sorted(extra - before)); assert 'sdegen' in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_version_is_one():
    from importlib.metadata import version

    assert version("sdegen") == sd.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", sd.__version__)


def forbidden(path: Path, node: ast.AST) -> str | None:
    """What a node does that no source may do: assert for users, eval, exec, pickle, the global random state."""
    if isinstance(node, ast.Assert):
        return "assert"
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    if name == "torch.load":
        safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        return None if safe else name
    if name == "pickle.loads":
        # the checks that copies are equal read bytes that they wrote themselves
        own = len(node.args) == 1 and ast.unparse(node.args[0]).startswith("pickle.dumps(")
        return None if own and "testing" in path.parts else name
    if name in {"eval", "exec", "pickle.load"}:
        return name
    if path.name == "guards.py":  # which looks after the global generators
        return None
    drawn = name == "torch.manual_seed" or re.match(r"torch\.(randn|rand|randint|normal)(_like)?$", name)
    looked_at = name == "np.random.get_state"  # which moves nothing
    return name if drawn or (name.startswith("np.random") and not looked_at) else None


def test_no_source_has_forbidden_constructs():
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {what}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (what := forbidden(path, node))
    ]
    assert not found


def test_public_names_are_documented():
    values = {name: getattr(sd, name) for name in vars(sd) if not name.startswith("_")}
    bare = [
        n for n, v in values.items() if callable(v) and not isinstance(v, sd.Frame) and not (v.__doc__ or "").strip()
    ]
    assert not bare


def test_the_tests_of_the_order_see_a_circle_and_an_import_upward():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert [name for name in graph if name in reached(name, graph)] == ["a", "b", "c"]
    assert all(x != y for x, y in itertools.pairwise(ORDER))


def test_one_sample_call_runs_few_functions():
    """Half of the 857 calls and 472 changes of file that it once took; counts do not depend on the machine."""
    from benchmarks.calls import counted

    calls = counted()
    assert calls.count <= 428
    assert calls.changes <= 236
