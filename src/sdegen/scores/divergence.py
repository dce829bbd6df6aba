"""The divergence `tr df/dx` of a function of the state, exact or by random probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.level import Level
from sdegen.noise.normals import White, seeds
from sdegen.tensors import check_type, check_whole, expect_like

__all__ = ["Divergence", "Exact", "Function", "Probes", "Traced", "signs", "tangent"]

Function = Callable[[Tensor], Tensor]
_AT_ONCE = 1 << 18
"""How many numbers the directions hold that are taken at once, unless a chunk is given: 2 MB in float64."""

_DETACHED = "the function does not depend on x by autograd, so it has no divergence: it detaches x, or works in no_grad"


class Traced(NamedTuple):
    """A function's value `[B, *S]`, its divergence `[B]` in float64, and the standard error of that `[B]`."""

    value: Tensor
    trace: Tensor
    std_error: Tensor


class Divergence(Protocol):
    """What gives `tr df/dx` of each row, with the value, by one evaluation of f."""

    def __call__(
        self, function: Function, x: Tensor, *, level: Level | None = None, seeds: Tensor | None = None
    ) -> Traced:
        """The value and the divergence of `function` `[B, *S] -> [B, *S]` at x `[B, *S]`.

        level: where x lies, and seeds `[B]`: what random probes are keyed by.
        """
        ...


@strict_keywords
@dataclass(frozen=True)
class Exact:
    """The divergence exactly: `sum_i (df_i/dx_i)`, D rows of the Jacobian from one evaluation, in bounded memory.

    The rows are vector-Jacobian products, `chunk` of them at a time (vmapped where the network allows it), so the
    value costs no further evaluation, and energies and kernels without a forward mode are differentiated too.
    Gradients flow through it where grad mode is on. Rows must not depend on one another, as they do in batch norm in
    training mode.

    Args:
        chunk: how many rows of the Jacobian at a time; None for as many as fit into 2 MB of directions.

    Raises:
        InvalidArgumentError: `chunk` is no whole number >= 1; the function does not depend on x by autograd.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            check_whole("chunk", self.chunk)

    def __call__(
        self, function: Function, x: Tensor, *, level: Level | None = None, seeds: Tensor | None = None
    ) -> Traced:
        """The value and the divergence of `function` at x `[B, *S]`; level and seeds are not used."""
        value, rows = tangent(function, x)
        size = math.prod(x.shape[1:])
        chunk = self.chunk or max(1, _AT_ONCE // max(1, x.numel()))
        trace = x.new_zeros(x.shape[0], dtype=torch.float64)
        for first in range(0, size, chunk):
            place = torch.arange(first, min(size, first + chunk), device=x.device)
            basis = x.new_zeros(len(place), size).scatter_(1, place[:, None], 1.0)
            found = rows(basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)).flatten(2)
            picked = found.gather(2, place[:, None, None].expand(-1, x.shape[0], 1))
            trace = trace + picked.double().sum((0, 2))
        return Traced(value, trace, torch.zeros_like(trace))


@strict_keywords
@dataclass(frozen=True)
class Probes:
    """The divergence by k random probes: the mean of `v . (df/dx)^T v` over signs v, without bias (Hutchinson).

    A probe is a pure function of (sample seed, level, number), so those of one level tell nothing of another's. The
    standard error is that of the k estimates; NaN for k = 1, of which it cannot be known.

    Args:
        count: k, the number of probes.

    Raises:
        InvalidArgumentError: k is no whole number >= 1; the function does not depend on x by autograd.

    Source: Hutchinson (1990); Grathwohl et al. (2019), eq. 7.
    """

    count: int = 1

    def __post_init__(self) -> None:
        check_whole("count", self.count)

    def __call__(
        self, function: Function, x: Tensor, *, level: Level | None = None, seeds: Tensor | None = None
    ) -> Traced:
        """The value and the estimated divergence of `function` at x `[B, *S]`, probes keyed by seeds and level."""
        value, rows = tangent(function, x)
        along = signs(x, self.count, level, seeds)
        each = (rows(along) * along).flatten(2).double().sum(2)
        alone = torch.full_like(each[0], torch.nan)
        error = each.std(0) / math.sqrt(self.count) if self.count > 1 else alone
        return Traced(value, each.mean(0), error.detach())


def signs(x: Tensor, count: int, level: Level | None = None, keys: Tensor | None = None) -> Tensor:
    """Random signs `[count, B, *S]` like x, each a function of (seed, level, number); seeds 0, 1, ... unless given."""
    keys = seeds(0, x.shape[0], device=x.device) if keys is None else keys
    check_type(level, Level | None, "level must be a Level")
    if level is None:
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        level = Level(zero, zero, zero)
    white = White(keys)
    return torch.stack([white(x, level, level, tag).sign() for tag in range(count)])


def tangent(function: Function, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A function's value at x, and what gives `(df/dx)^T v` for v `[k, B, *S]`; graphs are kept where grad mode is on.

    Raises InvalidArgumentError where the function does not depend on x by autograd.
    """
    keep = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        at = x if keep and x.requires_grad else x.detach().clone().requires_grad_()
        value = expect_like(function(at), x, "a function whose divergence is asked for must return a tensor")
    if not value.requires_grad:
        raise InvalidArgumentError(_DETACHED)

    def rows(v: Tensor) -> Tensor:
        def product(some: Tensor, batched: bool) -> Tensor:
            found = torch.autograd.grad(
                value, at, some, retain_graph=True, create_graph=keep, is_grads_batched=batched, allow_unused=True
            )[0]
            if found is None:
                raise InvalidArgumentError(_DETACHED)
            return found

        try:
            return product(v, True)
        except RuntimeError:  # of a backward pass that vmap cannot take
            return torch.stack([product(one, False) for one in v])

    return value if keep else value.detach(), rows
