"""All that is shipped, found by inspection: processes, frames, methods and solvers with their options.

What is here has a repr that can be pasted into a test, see `calls`; a new method is found without being listed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

import sdegen as sd
from sdegen import noise
from sdegen.errors import SdegenError
from sdegen.processes import schedules as processes_module
from sdegen.solvers import frames as frames_module
from sdegen.solvers import methods
from sdegen.testing import recipes
from sdegen.testing.calls import make, spell, told

T = TypeVar("T")

_FRAME_OPTIONS: Mapping[str, Sequence[Any]] = {
    "variable": (recipes.log_snr, recipes.Root(), recipes.Root(2.0)),
    "sigma_data": (0.5, 3.0),
}


def shipped_processes() -> list[type[sd.Process]]:
    """The classes of the shipped processes."""
    return [value for value in public(processes_module) if isinstance(value, type) and issubclass(value, sd.Process)]


@functools.cache
def shipped_frames() -> tuple[sd.Frame, ...]:
    """The shipped frames."""
    return tuple(told(value, spell(value)) for value in public(frames_module) if isinstance(value, sd.Frame))


@functools.cache
def varied_frames() -> tuple[sd.Frame, ...]:
    """The shipped frames, then those with other variables of interpolation and widths of the data."""
    varied = [list(variants(f, inspect.signature(type(f)), _FRAME_OPTIONS))[1:] for f in shipped_frames()]
    return (*shipped_frames(), *itertools.chain(*varied))


@functools.cache
def solver_families() -> dict[str, tuple[sd.Solver, ...]]:
    """The named methods, and every exported solver class by its name, in all their variants; the simplest first."""
    options: dict[str, Sequence[Any]] = {
        "order": range(1, 6),
        "eta": (0.0, 0.5, 1.0, 2.0),
        "correct": (True,),
        "snr": (0.05, 0.16, 0.3),
        "steps": (1, 2),
        "frame": varied_frames(),
        "tableau": [value for value in vars(sd.tableaus).values() if isinstance(value, sd.tableaus.Tableau)],
    }
    families = {"methods": _all_variants(public(methods), options)}
    options["grid"] = (sd.grids.natural, recipes.Spacing("uneven", ratio=10.0))
    options["predictor"] = [s for s in families["methods"] if not s.memory and not isinstance(s, sd.PC)]
    options["corrector"] = _all_variants((sd.Langevin, sd.solvers.BatchCoupledLangevin), {"snr": (0.05,)})
    for cls in filter(_is_solver, map(_exported, sd.solvers.__all__)):
        families[cls.__name__] = _all_variants([cls], options)
    # a Plan is made for a model, and cannot be made from options
    return {name: family for name, family in families.items() if family}


def couples(solver: Any) -> bool:
    """Whether a sample's result depends on its batch-mates."""
    parts = solver, getattr(solver, "corrector", None)
    return any(isinstance(part, sd.solvers.BatchCoupledLangevin) for part in parts)


@functools.cache
def runs_on_general(solver: Any) -> bool:
    """Whether a solver takes a step on a general SDE that is reversed with its own eta."""
    if getattr(solver, "frame", sd.TIME) != sd.TIME:
        return False
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: torch.ones_like(t))
    try:
        reverse = sde.reverse(lambda x, t: -x, getattr(solver, "eta", 0.0))
        sd.solve(reverse, torch.ones(1, 1), [1.0, 0.5], solver, noise=sd.White(noise.seeds(0, 1)))
    except SdegenError:
        return False
    return True


def _all_variants(targets: Iterable[Callable[..., T]], options: Mapping[str, Sequence[Any]]) -> tuple[T, ...]:
    found: list[Any] = [v for target in targets for v in variants(target, inspect.signature(target), options)]
    return tuple(sorted(found, key=lambda s: (s.stochastic, s.memory, s.evals, len(repr(s)), repr(s))))


def variants(
    target: Callable[..., T], signature: inspect.Signature, options: Mapping[str, Sequence[Any]]
) -> Iterable[T]:
    """`target` with every combination of the options that its signature has and that it allows."""
    choices = []
    for name, parameter in signature.parameters.items():
        without: list[dict[str, Any]] = [] if parameter.default is parameter.empty else [{}]
        choices.append([*without, *({name: value} for value in options.get(name, ()) if value != parameter.default)])
    for chosen in itertools.product(*choices):
        with contextlib.suppress(SdegenError):
            yield make(target, **{name: value for part in chosen for name, value in part.items()})


def _exported(name: str) -> Any:
    return getattr(sd.solvers, name)


def public(module: Any) -> list[Any]:
    """What a module defines under public names, in its order."""
    values = [value for name, value in vars(module).items() if not name.startswith("_")]
    return [v for v in values if callable(v) and getattr(v, "__module__", None) == module.__name__]


def _is_solver(value: Any) -> bool:
    solver = isinstance(value, type) and dataclasses.is_dataclass(value) and issubclass(value, sd.Solver)
    return solver and value is not sd.solvers.ExactTransition  # which runs from data to noise
