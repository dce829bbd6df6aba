"""Everything that the library ships, found by looking: what is new is checked without being listed."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sdegen as sd
from sdegen import frames as frames_module
from sdegen import methods as methods_module
from sdegen.errors import SdegenError
from sdegen.frames import Frame
from sdegen.process import Process
from sdegen.solvers.base import Solver
from sdegen.solvers.multistep import Multistep
from sdegen.solvers.runge_kutta import HEUN, RungeKutta

OPTIONS: Mapping[str, Sequence[Any]] = {"order": range(1, 6), "eta": (0.0, 0.5, 1.0)}
"""The options of methods that are varied, and their values; those that a method refuses are left out."""


def processes() -> list[Process]:
    """One of every exported process, with its defaults."""
    classes = [v for v in _exported() if inspect.isclass(v) and issubclass(v, Process)]
    return [cls() for cls in classes if not inspect.isabstract(cls)]


def frames() -> list[Frame]:
    """Every frame, with its defaults."""
    return [value for value in vars(frames_module).values() if isinstance(value, Frame)]


def methods() -> list[Solver]:
    """Every named method in all its orders and etas, and one of every exported solver class."""
    functions = [v for n, v in vars(methods_module).items() if inspect.isfunction(v) and not n.startswith("_")]
    found = [s for f in functions if f.__module__ == methods_module.__name__ for s in variants(f, OPTIONS)]
    classes = [v for v in _exported() if inspect.isclass(v) and hasattr(v, "step") and not hasattr(v, "_is_protocol")]
    for cls in classes:
        with contextlib.suppress(TypeError):  # an abstract one, or one that needs arguments
            found.append(cls())
    return _distinct(s for s in found if hasattr(s, "init") and hasattr(s, "evals"))


def framed() -> list[Solver]:
    """Adams methods, with corrector and with noise, and a Runge-Kutta method, in every frame."""
    return _distinct(
        solver
        for frame in frames()
        for solver in (
            Multistep(2, frame),
            Multistep(3, frame, correct=True),
            Multistep(2, frame, 1.0),
            RungeKutta(HEUN, frame),
        )
    )


def couples_batch(solver: Any) -> bool:
    """Whether a solver says that its samples depend on their batch-mates."""
    return any("BatchCoupled" in type(part).__name__ for part in (solver, getattr(solver, "corrector", None)))


def variants(function: Callable[..., Any], options: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    """`function` called with every combination of the options that it has and does not refuse."""
    names = [name for name in inspect.signature(function).parameters if name in options]
    for values in itertools.product(*(options[name] for name in names)):
        with contextlib.suppress(SdegenError):
            yield function(**dict(zip(names, values)))


def _exported() -> list[Any]:
    return [getattr(sd, name) for name in sd.__all__]


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({repr(value): value for value in values}.values())
