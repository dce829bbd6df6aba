"""Directions, and samples along them."""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError

F64 = torch.float64
# A stream of normals that no process, solver or mixture draws from.
_DIRECTIONS = (0x64697273, 0xFFFFFFFF, 0, 0)
_BUDGET = 1 << 22


def directions(seed: int, count: int, dim: int) -> Tensor:
    """Unit vectors `[P, dim]`: `count` uniform on the sphere, after the axes if these are at most `count`."""
    if count < 1:
        raise InvalidArgumentError(f"at least one direction is needed, got {count}")
    if dim == 1:
        return torch.ones(1, 1, dtype=F64)
    v = noises.normals(noises.seeds(seed, count), (dim,), _DIRECTIONS, dtype=F64)
    random = v / v.square().sum(1, keepdim=True).sqrt()
    return torch.cat((torch.eye(dim, dtype=F64), random)) if dim <= count else random


def chosen(along: int | Tensor, seed: int, x: Tensor) -> Tensor:
    """The directions `[P, D]` for samples x: unit vectors along those given, or so many random ones."""
    dim = x[0].numel()
    if not isinstance(along, Tensor):
        return directions(seed, along, dim).to(x.device)
    if along.ndim != 2 or along.shape[1] != dim or not bool((along != 0).any(1).all()):
        raise InvalidArgumentError(f"directions must be [P, {dim}] and not zero, got shape {list(along.shape)}")
    return torch.nn.functional.normalize(along.to(x.device, F64))


def project(x: Tensor, along: Tensor) -> Tensor:
    """`u.x` in float64, `[P, n]`, of samples `[n, *S]` along `[P, D]`; x is widened a part at a time."""
    flat = x.reshape(len(x), -1)
    step = max(1, _BUDGET // flat.shape[1])
    return torch.cat([along @ flat[i : i + step].to(F64).T for i in range(0, len(flat), step)], 1)
