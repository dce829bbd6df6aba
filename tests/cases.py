"""Grids of test cases of which a few run always, and the others with the slow tests."""

from __future__ import annotations

import itertools
import re

import pytest


def mostly_slow(cases, fast):
    """Parameters: those that are in `fast`, or for which `fast(case)` is true, as they are; the others marked slow.

    A tuple holds the values of one case. Raises ValueError if no case is fast.
    """
    chosen = [bool(fast(case) if callable(fast) else case in fast) for case in cases]
    if not any(chosen):
        raise ValueError(f"no case is fast of {list(cases)}")
    return [_param(case, () if quick else (pytest.mark.slow,)) for case, quick in zip(cases, chosen)]


def crossed(*axes):
    """All combinations of the values of the axes, as tuples."""
    return list(itertools.product(*axes))


def _param(case, marks):
    parts = case if isinstance(case, tuple) else (case,)
    return pytest.param(*parts, marks=marks, id="-".join(map(_name, parts)))


def _name(value):
    text = value if isinstance(value, str) else getattr(value, "__name__", None) or repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # an address differs from worker to worker
