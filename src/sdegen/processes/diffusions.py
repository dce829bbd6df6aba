"""The three kinds of diffusion `g`: a scalar for each sample, one for each coordinate, a matrix."""

from __future__ import annotations

from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.tensors import like


def diffuse(g: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """`g z` for a scalar `[]`/`[B]`, diagonal `[B, *S]` or matrix `[B, *S, M]` diffusion; z like x or `[B, M]`."""
    if g.ndim <= 1:
        return like(g, x) * z
    if g.ndim == x.ndim:
        return g * z
    return (g * z.reshape(z.shape[0], *(1,) * (x.ndim - 1), -1)).sum(-1)


def gram(g: Tensor, v: Tensor) -> Tensor:
    """`g g^T v` for the three kinds of diffusion, v `[B, *S]`."""
    check_diffusion(g, v)
    if g.ndim <= v.ndim:
        return diffuse(g, diffuse(g, v, v), v)
    return diffuse(g, (g * v.unsqueeze(-1)).flatten(1, -2).sum(1), v)


def noise_like(g: Tensor, x: Tensor) -> Tensor:
    """A tensor with the shape of the noise that drives `g`: x itself, or `[B, M]` for matrix diffusion."""
    check_diffusion(g, x)
    return x if g.ndim <= x.ndim else x.new_empty(x.shape[0], g.shape[-1])


def check_diffusion(g: Tensor, x: Tensor) -> None:
    """Raises InvalidArgumentError unless g has the shape of one of the three kinds of diffusion."""
    scalar = g.ndim == 0 or (g.ndim == 1 and g.shape[0] in (1, x.shape[0]))
    wide = g.shape[:-1] if g.ndim == x.ndim + 1 else g.shape
    shaped = len(wide) == x.ndim and all(size in (1, whole) for size, whole in zip(wide, x.shape))
    if not (scalar or shaped):
        raise InvalidArgumentError(
            f"diffusion(x, t) returned shape {list(g.shape)} for x of shape {list(x.shape)}; allowed are [] or [B] "
            "(scalar), [B, *S] (diagonal) and [B, *S, M] (matrix)"
        )
