"""Grids of test cases of which a few run always, and the others with the slow tests."""

from __future__ import annotations

import itertools

import pytest


def mostly_slow(values, fast, ids=None):
    """Parameters: those that are `fast(value)` as they are, the others marked slow. Raises ValueError if none is fast.

    `fast` is a predicate or a collection of values; `ids` makes names of values. A tuple is the values of one case.
    """
    quick = fast if callable(fast) else lambda value: value in fast
    made = []
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        marks = () if quick(value) else pytest.mark.slow
        made.append(pytest.param(*parts, marks=marks, **({} if ids is None else {"id": ids(value)})))
    if not any(param.marks == () for param in made):
        raise ValueError("no case is fast")
    return made


def grid(*axes):
    """All combinations of the values of the axes, as tuples."""
    return list(itertools.product(*axes))
