"""What a run passed through: every state and every prediction of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.loop.solution import Progress


class Trajectory(NamedTuple):
    """A run of `sample(return_path=True)`: x `[n, *S]`, what it returns without; and on the way there

    states `[m + 1, n, *S]`, at the levels `level` (fields `[m + 1]`), the first one where it began; previews
    `[m, n, *S]`, the data that each step's last evaluation predicted, at no further cost (None on a `ReverseSDE`).
    """

    x: Tensor
    states: Tensor
    previews: Tensor | None
    level: Level


class Recorder:
    """Keeps the path of one batch."""

    def __init__(self, x: Tensor, level: Level) -> None:
        self.states = [x]
        self.previews: list[Tensor | None] = []
        self.levels = [level]

    def __call__(self, progress: Progress) -> None:
        """Keep the state after a step and the data predicted in it."""
        self.states.append(progress.x.clone())
        self.previews.append(progress.preview())
        self.levels.append(progress.level)


def joined(x: Tensor, batches: Sequence[Recorder]) -> Trajectory:
    """The path of all batches; one that an observer ended early stays where it was."""
    longest = max(batches, key=lambda path: len(path.states))
    m = len(longest.states)
    states = torch.stack([torch.cat([path.states[min(k, len(path.states) - 1)] for path in batches]) for k in range(m)])
    seen = [[path.previews[min(k, len(path.previews) - 1)] for path in batches] for k in range(m - 1)]
    known = [torch.cat([part for part in row if part is not None]) for row in seen if row[0] is not None]
    level = Level(*(torch.stack(v) for v in zip(*longest.levels)))
    return Trajectory(x, states, torch.stack(known) if known else None, level)
