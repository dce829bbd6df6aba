"""How many Python functions of the library one `sample` call runs, and how often they change the file.

`python -m benchmarks.calls` prints both, for a network of one operation: `sd.sample(model, (4, 2), steps=10)`, 11
evaluations. Unlike times they do not depend on the machine, and they are most of what a small network waits for.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor

import sdegen as sd

SOURCE = os.path.dirname(sd.__file__)


class Calls(NamedTuple):
    """Python calls into the library, changes of file from one to the next, and the calls by file and function."""

    count: int
    changes: int
    by_name: Counter[str]


def net(x: Tensor, t: Tensor) -> Tensor:
    """A network of one operation."""
    return -x


def counted(steps: int = 10, **options: Any) -> Calls:
    """The calls of one `sample` call with a warm cache."""
    model = sd.ScoreModel(sd.VP(), net, "noise")
    sd.sample(model, (4, 2), steps=steps, **options)
    names: list[str] = []
    files: list[str] = []

    def seen(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE):
            files.append(code.co_filename)
            names.append(f"{os.path.relpath(code.co_filename, SOURCE)} {code.co_name}")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        sd.sample(model, (4, 2), steps=steps, **options)
    finally:
        sys.setprofile(before)
    changes = 1 + sum(a != b for a, b in zip(files, files[1:]))
    return Calls(len(names), changes, Counter(names))


def main() -> None:
    """Print the counts, and who makes most of them."""
    calls = counted()
    print(f"{calls.count} calls, {calls.changes} changes of file")
    for name, count in calls.by_name.most_common(20):
        print(f"{count:4}  {name}")


if __name__ == "__main__":
    main()
