"""What an attempt of an adaptive step costs besides the network, beside the peers.

`python -m benchmarks.adaptive` has what an error costs, and a queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torchode")
pytest.importorskip("torchdiffeq")

from benchmarks.adaptive import cost

Make = Callable[[], Callable[[], Any]]
SHAPES = cost.SHAPES[0], cost.SHAPES[2]


def attempts(shape: tuple[int, ...]) -> dict[str, Make]:
    """torchode's dopri5 first, whose steps are per sample as well."""
    runs = cost.runs()
    first = "torchode dopri5"

    def on(run: cost.Run) -> Make:
        return lambda: lambda: run(cost.start(shape))

    return {name: on(runs[name]) for name in [first, *(name for name in runs if name != first)]}


GROUPS: dict[str, dict[str, Make]] = {
    f"controller, an attempt, {'x'.join(map(str, shape))}": attempts(shape) for shape in SHAPES
}


def units(result: Any) -> int:
    """Attempts of a solve."""
    attempted: int = result.attempts
    return attempted


def test_controller(beside: Callable[[], None]) -> None:
    """Per attempt of a whole solve with a network of nothing."""
    beside()
