"""The exact law of a whole-run sampler on Gaussian data, by unit responses; see `sdegen.testing.laws`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.laws import Law

CHECK = -0.5
"""What the row that checks for an affine map gets of all directions: negative and partial, where bent maps differ."""
_AFFINE = 1e-6


class Units:
    """Unit responses: each normal is one in one row and zero in all others; the last row gets CHECK of every normal.

    A draw is a normal of its own, or (`brownian`) the mean of the normals of the cells that its step covers, as an
    increment of one Brownian path in s is.
    """

    def __init__(self, first: int, knots: list[float] | None = None) -> None:
        self.first, self.knots = first, knots
        self.steps: list[tuple[Any, Any]] = []

    def shares(self) -> Iterator[tuple[int, float]]:
        """The normals of the current draw, and how much of each."""
        if self.knots is None:
            yield len(self.steps) - 1, 1.0
            return
        a, b = sorted(map(_key, self.steps[-1]))
        low, high = self.knots.index(a), self.knots.index(b)
        levels = [math.exp(key) for key in self.knots]
        for k in range(low, high):
            yield k, math.sqrt((levels[k + 1] - levels[k]) / (levels[high] - levels[low]))

    def __call__(self, x: Tensor, now: Any = None, next: Any = None) -> Tensor:
        self.steps.append((now, next))
        flat = x.new_zeros(x.shape)
        size = x.shape[1]
        for k, share in self.shares():
            start = self.first + k * size
            if start + size < len(flat):
                flat[start : start + size] = share * torch.eye(size, dtype=x.dtype)
            flat[-1] += CHECK * share
        return flat


def _key(level: Any) -> float:
    """A level up to the rounding of a logarithm and back."""
    return round(math.log(float(level)), 9)


def law(run: Callable[[Tensor, Units], Tensor], start: GaussianMixture, brownian: bool = False) -> Law:
    """The law of `run(x, noise)` started from a Gaussian.

    Raises ValueError where the sampler is not an affine map of its start and its normals.
    """
    mean, root = start.mean(), torch.linalg.cholesky(start.cov())
    size = len(mean)
    probe = Units(1)
    run(mean.repeat(2, 1), probe)
    knots = sorted({_key(level) for step in probe.steps for level in step}) if brownian else None
    count = len(probe.steps) if knots is None else len(knots) - 1
    x = mean.repeat(2 + size + count * size, 1)
    x[1 : 1 + size] += root.mT
    x[-1] += CHECK * root.sum(1)
    out = run(x, Units(1 + size, knots))
    moved = out[1:-1] - out[0]
    gap = float((out[-1] - out[0] - CHECK * moved.sum(0)).abs().max())
    if not gap <= _AFFINE * float(out[0].abs().max() + moved.abs().sum(0).max()):
        raise ValueError("not affine in its start and its normals")
    return Law(out[0], moved.mT @ moved)
