"""The package itself: what it imports, in which order, how long that takes, and what its source may not contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdegen as sd

SOURCE = Path(sd.__file__).parent
ORDER = [
    ["errors"],
    ["tensors", "trees", "noise"],
    ["sde"],
    ["process"],
    ["processes"],
    ["model"],
    ["guidance", "previews"],
    ["covariances", "spectra", "mixture_inputs", "mixtures", "grids"],
    ["etas", "linear"],
    ["brownian"],
    ["frames"],
    ["quadrature"],
    ["solvers"],
    ["moments"],
    ["solution"],
    ["control"],
    ["checks", "progress", "trajectory", "dense", "checkpointing"],
    ["active"],
    ["solve"],
    ["methods"],
    ["starts", "tolerance"],
    ["sample"],
    ["knots", "pilot", "fitting", "plan", "calibrate"],
    ["metrics"],
    ["plots", "adapters"],
    ["testing"],
    ["bench"],
    ["demo"],
    ["cli"],
]
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The sdegen modules that a file imports when it is imported itself (not those for types alone)."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            if node.module == "sdegen":
                found |= {name.name for name in node.names}
            elif node.module.startswith("sdegen."):
                found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name not in ("__init__.py", "__main__.py")], ids=lambda p: p.stem
)
def test_a_module_imports_only_from_its_left(path):
    rank = {name: i for i, names in enumerate(ORDER) for name in names}
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name in imports(path):
        if name in rank and name != own:
            assert rank[name] <= rank[own], f"{own} imports {name}"


def test_every_module_has_a_place_in_the_order():
    names = {p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in FILES} - {"__init__", "__main__"}
    assert names <= {name for group in ORDER for name in group}


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_forbidden_constructs(path):
    """No assert for users, no eval/exec/pickle, no global random state, no inference mode in the core."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "pickle.load"}, name
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            assert name != "torch.load" or safe, name
            # the checks that copies are equal read bytes that they wrote themselves
            own = len(node.args) == 1 and ast.unparse(node.args[0]).startswith("pickle.dumps(")
            assert name != "pickle.loads" or (own and "testing" in path.parts), name
            if path.name == "guards.py":  # which looks after the global generators
                continue
            assert name != "torch.manual_seed", name
            assert not re.match(r"torch\.(randn|rand|randint|normal)(_like)?$", name), name
            assert not name.startswith("np.random"), name


@pytest.mark.parametrize("name", sorted(n for n in vars(sd) if not n.startswith("_")))
def test_public_names_are_documented(name):
    value = getattr(sd, name)
    if callable(value) and not isinstance(value, sd.Frame):
        assert (value.__doc__ or "").strip(), f"sd.{name} has no docstring"
