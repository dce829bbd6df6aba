"""What of all that is shipped the suite checks: found by inspection, so that a new method is checked without a list."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import sdegen as sd
from sdegen.solvers import methods as methods_module
from sdegen.testing import catalogue
from sdegen.testing.calls import make

OPTIONS = {"order": range(1, 6), "eta": (0.0, 0.5, 1.0)}
"""The options of named methods that are varied; values that a method refuses are left out."""


def processes() -> list[sd.Process]:
    """One of every process, with its defaults."""
    return [make(cls) for cls in catalogue.shipped_processes() if not inspect.isabstract(cls)]


def methods(varied: bool = False) -> list[sd.Solver]:
    """Every named method, `varied` in all its orders and etas, and one of every other exported solver class.

    DDIM is there with noise as well, which it has not by default.
    """
    options = OPTIONS if varied else {}
    named = [s for f in catalogue.public(methods_module) for s in catalogue.variants(f, inspect.signature(f), options)]
    named.append(make(sd.ddim, eta=0.5))
    classes = [family[0] for name, family in catalogue.solver_families().items() if name != "methods"]
    return _distinct([*named, *classes])


def framed() -> list[sd.Solver]:
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
    return [solver for solver in _distinct(found) if solver not in taken]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Without what equals an earlier one."""
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept
