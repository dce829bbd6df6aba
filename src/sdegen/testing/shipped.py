"""What of all that is shipped the suite checks: found by inspection, so that a new method is checked without a list."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import sdegen as sd
from sdegen.solvers import methods as methods_module
from sdegen.testing import catalogue
from sdegen.testing.calls import make

OPTIONS = {"order": range(1, 6), "eta": (0.0, 0.5, 1.0)}
"""The options of named methods that are varied; values that a method refuses are left out."""


def path(solver: Any) -> tuple[str, bool, bool, bool]:
    """What decides which code a solver runs: its class, and whether it draws noise, corrects, and remembers."""
    corrects = bool(getattr(solver, "correct", False))
    return type(solver).__name__, solver.stochastic, corrects, solver.memory > 0


def one_of_each(solvers: Iterable[Any], key: Callable[[Any], Any] = path) -> list[Any]:
    """The first solver of each path, or of each value of `key`, which says what else decides the code that runs."""
    kept: dict[Any, Any] = {}
    for solver in solvers:
        kept.setdefault(key(solver), solver)
    return list(kept.values())


@functools.cache
def processes() -> tuple[sd.Process, ...]:
    """One of every process, with its defaults."""
    return tuple(make(cls) for cls in catalogue.shipped_processes() if not inspect.isabstract(cls))


@functools.cache
def methods(varied: bool = False) -> tuple[sd.Solver, ...]:
    """Every named method, `varied` in all its orders and etas, and one of every other exported solver class.

    DDIM is there with noise as well, which it has not by default.
    """
    options = OPTIONS if varied else {}
    named = [s for f in catalogue.public(methods_module) for s in catalogue.variants(f, inspect.signature(f), options)]
    named.append(make(sd.ddim, eta=0.5))
    classes = [family[0] for name, family in catalogue.solver_families().items() if name != "methods"]
    return tuple(_distinct([*named, *classes]))


@functools.cache
def framed() -> tuple[sd.Solver, ...]:
    """Adams methods, with corrector and with noise, and a Runge-Kutta method, in every frame, but for those above."""
    taken = set(methods())
    found = [
        solver
        for frame in catalogue.shipped_frames()
        for solver in (
            make(sd.Multistep, 2, frame=frame),
            make(sd.Multistep, 3, frame=frame, correct=True),
            make(sd.Multistep, 2, frame=frame, eta=1.0),
            make(sd.RungeKutta, frame=frame),
        )
    ]
    return tuple(solver for solver in _distinct(found) if solver not in taken)


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Without what equals an earlier one."""
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept
