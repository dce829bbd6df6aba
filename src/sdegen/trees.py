"""Tuples of tensors whose first dimension is the batch: what solvers and controllers carry, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def mapped(f: Callable[..., Any], *trees: Any) -> Any:
    """f of the tensors that stand in the same place of every tree; what is no tensor and no tuple is the first's."""
    if isinstance(trees[0], Tensor):
        return f(*trees)
    if isinstance(trees[0], tuple):
        parts = [mapped(f, *parts) for parts in zip(*trees)]
        return type(trees[0])(*parts) if hasattr(trees[0], "_fields") else tuple(parts)
    return trees[0]


def keep(accept: bool | Tensor, new: T, old: T) -> T:
    """`new` in the rows where `accept` `[B]`, `old` in the others; tensors `[]` belong to no row and are new."""
    if isinstance(accept, bool):
        return new if accept else old
    shaped: T = mapped(
        lambda a, b: torch.where(accept.reshape(-1, *(1,) * (a.ndim - 1)), a, b) if a.ndim else a, new, old
    )
    return shaped


def rows(tree: T, index: Tensor) -> T:
    """The rows `index` of every tensor, wherever each lies; tensors `[]` belong to no row."""
    picked: T = mapped(lambda leaf: leaf[index.to(leaf.device, non_blocking=True)] if leaf.ndim else leaf, tree)
    return picked


def picked(whole: Any, index: Tensor) -> Any:
    """A model or a noise source for the samples `index`, where it is one that knows its samples; else as it is."""
    return whole.rows(index) if hasattr(whole, "rows") else whole


def spread(tree: T, count: int, device: torch.device) -> T:
    """Values `[]` or `[count]` as `[count]` on a device."""
    wide: T = mapped(lambda leaf: leaf.to(device).expand(count), tree)
    return wide


def joined(first: T, second: T) -> T:
    """The rows of one tree, then those of another of the same structure."""
    whole: T = mapped(lambda *leaves: cat(leaves) if leaves[0].ndim else leaves[0], first, second)
    return whole


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Rows after rows. Autocast looks at what `torch.cat` is given, and knows no float16 on a CPU."""
    kind = parts[0].device.type
    able = torch.amp.is_autocast_available(kind)  # some devices have no autocast
    with torch.autocast(kind, enabled=False) if able else contextlib.nullcontext():
        return torch.cat(list(parts))
