"""Faults in the one executor and the one loop, each checked through every class of solvers that uses them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import sdegen as sd
from sdegen.loop import fixed
from sdegen.solvers import adams, table
from sdegen.testing import Report, check_solver, problems

CLASSES: dict[str, Callable[[], sd.Solver]] = {
    "Multistep": functools.partial(sd.dpmpp, 2),
    "Multistep, corrected": functools.partial(sd.unipc, 2),
    "Multistep, noisy": functools.partial(sd.dpmpp_sde, 2),
    "Singlestep": functools.partial(sd.dpm, 2),
    "Singlestep, noisy": functools.partial(sd.seeds_solver, 2),
    "RungeKutta": sd.heun,
    "RungeKutta, FSAL": sd.bogacki_shampine,
    "Started": sd.pndm,
    "ByLength": sd.default,
    "Adams": functools.partial(sd.adams, 3),
    "Adams, noisy": functools.partial(sd.adams, eta=1.0),
    "Ancestral": sd.dpm_ancestral,
}


def _scaled(leg: Any, **factors: float) -> Any:
    """A leg with some of its weights multiplied."""
    changes = {name: getattr(leg, name) * factor for name, factor in factors.items() if getattr(leg, name) is not None}
    return leg._replace(**changes)


LEGS: dict[str, Callable[[Any], Any]] = {
    "the start counts a thousandth more": lambda leg: _scaled(leg, on_x=1.001),
    "the newest value counts a twentieth more": lambda leg: leg._replace(
        on=tuple(1.05 * w for w in leg.on[:1]) + leg.on[1:]
    ),
    "values oldest first": lambda leg: leg._replace(on=leg.on[::-1]),
    "no correction": lambda leg: leg._replace(again=()),
    "noise too strong by a twentieth": lambda leg: _scaled(leg, spread=1.05),
    "the noise so far is forgotten": lambda leg: _scaled(leg, left=0.0),
}
NOISY = ["Multistep, noisy", "Singlestep, noisy", "Adams, noisy"]
PASTS = ["Multistep", "Multistep, corrected", "Singlestep", "ByLength", "Adams"]
WHERE = {
    "the start counts a thousandth more": list(CLASSES),
    "the newest value counts a twentieth more": list(CLASSES),
    "values oldest first": PASTS,
    "no correction": ["Multistep, corrected"],
    "noise too strong by a twentieth": NOISY,
    "the noise so far is forgotten": ["Singlestep, noisy"],
}
"""The classes that have what a fault spoils."""


@contextlib.contextmanager
def planted(places: list[Any], name: str, fault: Callable[..., Any]) -> Iterator[None]:
    """Modules in which a function is replaced by `fault(right, *arguments)`, for a while."""
    right = [vars(place)[name] for place in places]
    for place, function in zip(places, right):
        setattr(place, name, functools.partial(fault, function))
    try:
        yield
    finally:
        for place, function in zip(places, right):
            setattr(place, name, function)


def _faulty_run(fault: Callable[[Any], Any], run: Callable[..., Any], legs: Any, *arguments: Any) -> Any:
    return run([fault(leg) for leg in legs], *arguments)


def _check(places: list[Any], name: str, fault: Callable[..., Any], make: Any, caught: str, **options: Any) -> Report:
    # the reference is kept, and is solved by the same code: it must be found before the fault is planted
    if caught == "order":
        problems.reference(sd.VP())
    solved = problems._kept.cache_info().misses
    with planted(places, name, fault):
        report = check_solver(make(), **options)
    if problems._kept.cache_info().misses > solved:
        problems._kept.cache_clear()
        raise RuntimeError(f"a reference was solved by the code that is wrong: find it before {caught} is checked")
    return report


def executor_faults() -> Iterator[tuple[str, Callable[..., Report], str]]:
    """Every fault of the executor, by every class that it spoils: its name, its check, the property that catches it."""
    for fault, classes in WHERE.items():
        for name in classes:
            caught = "weak_order" if CLASSES[name]().stochastic else "order"
            wrong = functools.partial(_faulty_run, LEGS[fault])
            yield (
                f"{fault}, by {name}",
                functools.partial(_check, [table, adams], "run", wrong, CLASSES[name], caught),
                caught,
            )


def _forgets_the_carry(advance: Callable[..., Any], rules: Any, state: Any, k: int) -> Any:
    return advance(rules, state, k)._replace(carry=state.carry)


def _loses_a_step(advance: Callable[..., Any], rules: Any, state: Any, k: int) -> Any:
    after = advance(rules, state, k)
    return after._replace(x=state.x) if k == len(rules.levels) - 5 else after


def _counts_one_less(advance: Callable[..., Any], rules: Any, state: Any, k: int) -> Any:
    after = advance(rules, state, k)
    return after._replace(nfe=after.nfe - (k == 1))


def _moves_the_neighbour(advance: Callable[..., Any], rules: Any, state: Any, k: int) -> Any:
    """A row that failed takes the next one along."""
    after = advance(rules, state, k)
    if after.fate is None:
        return after
    alive = after.fate.alive & torch.roll(after.fate.alive, 1)
    return after._replace(fate=after.fate._replace(alive=alive))


LOOP = {
    "the carry is never renewed": (_forgets_the_carry, "order", ["Multistep", "Started", "ByLength", "Adams"]),
    "a step is lost": (_loses_a_step, "order", ["Multistep", "Singlestep", "RungeKutta", "Adams"]),
    "an evaluation less is counted": (
        _counts_one_less,
        "evaluations",
        ["Multistep", "Singlestep", "RungeKutta", "Adams"],
    ),
    "a failed row stops its neighbour": (_moves_the_neighbour, "fault_isolation", ["Multistep", "RungeKutta", "Adams"]),
}


def loop_faults() -> Iterator[tuple[str, Callable[..., Report], str]]:
    """Every fault of the loop, by classes that it spoils."""
    for fault, (wrong, caught, classes) in LOOP.items():
        for name in classes:
            yield (
                f"{fault}, by {name}",
                functools.partial(_check, [fixed], "advance", wrong, CLASSES[name], caught),
                caught,
            )
