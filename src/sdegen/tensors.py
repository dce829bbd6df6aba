"""Weights against states: broadcasting, working precision, linear combinations, the three kinds of diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from sdegen.errors import InvalidArgumentError

_AT_ONCE = 1 << 16
"""How many elements a sum takes at a time on a CPU."""


def like(weight: Tensor, x: Tensor) -> Tensor:
    """A weight `[]` or `[B]` in x's dtype, shaped to multiply x `[B, *S]`; `[]` may stay on the host."""
    weight = weight.to(x.dtype)
    return weight if weight.ndim == 0 else weight.reshape(-1, *(1,) * (x.ndim - 1))


def widen(x: Tensor) -> Tensor:
    """x in the precision of step arithmetic: float32 for half-precision states, its own dtype otherwise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def finite_rows(x: Tensor) -> Tensor:
    """Which rows of x `[B, *S]` are finite, `[B]` bool: the largest magnitude is NaN or Inf just where a value is."""
    flat = x.detach().flatten(1)
    return flat.abs().amax(1).isfinite() if flat.shape[1] else x.new_ones(x.shape[0], dtype=torch.bool)


def expect_like(value: object, x: Tensor, what: str) -> Tensor:
    """The value, or InvalidArgumentError (`what` + ' like x, ...') unless it is a tensor of x's shape and dtype."""
    if isinstance(value, Tensor) and value.shape == x.shape and value.dtype == x.dtype:
        return value
    got = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
    raise InvalidArgumentError(f"{what} like x, {list(x.shape)} of {x.dtype}; got {got}")


def combine(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """`sum w v` over pairs `(w, v)`, weights w `[]`, `[B]` or floats, states v `[B, *S]`: what a step is made of.

    In working precision: float32 for half-precision states, which `.to(x.dtype)` brings back.
    """
    total = _scaled(*terms[0])
    owned = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    for weight, value in terms[1:]:
        value = widen(value)
        term, times = (_scaled(weight, value), 1.0) if isinstance(weight, Tensor) else (value, weight)
        # without another large tensor: memory that is new costs more than the sum
        if owned and term.shape == total.shape and term.dtype == total.dtype and not is_functorch_wrapped_tensor(term):
            total.add_(term, alpha=times)
        else:
            total = torch.add(total, term, alpha=times)
    return total


def _scaled(weight: Tensor | float, value: Tensor) -> Tensor:
    value = widen(value)
    return (like(weight, value) if isinstance(weight, Tensor) else weight) * value


def length(a: Tensor, b: Tensor | float) -> Tensor:
    """`sqrt(a^2 + b^2)` by operations whose bits do not depend on how many there are, as torch.hypot's do on a CPU."""
    return torch.sqrt(a * a + b * b)


def power(x: Tensor, exponent: Tensor | float) -> Tensor:
    """`x^exponent` for x > 0, by operations whose bits do not depend on how many there are, as torch.pow's do."""
    return torch.exp(torch.log(x) * exponent)


def mean_square(x: Tensor) -> Tensor:
    """The mean of the squares of each sample of x `[B, *S]`, `[B]` in float64, by pairs.

    The order of the sum depends on a sample's size alone, so its bits do not depend on the batch, as those of `sum` do.
    """
    flat = x.flatten(1)
    count, size = flat.shape
    if not size:
        return x.new_zeros(count, dtype=torch.float64)
    # some rows at a time, which bounds the temporaries; bits do not change
    rows = max(1, (_AT_ONCE if flat.device.type == "cpu" else 64 * _AT_ONCE) // size)
    if count <= rows or torch.compiler.is_compiling():
        return _paired(flat) / size
    return torch.cat([_paired(flat[k : k + rows]) for k in range(0, count, rows)]) / size


def _paired(flat: Tensor) -> Tensor:
    """The sum of squares of each row, halves added until one column is left."""
    flat = flat.double().square()
    while flat.shape[1] > 1:
        half = flat.shape[1] // 2
        added = flat[:, :half] + flat[:, half : 2 * half]
        flat = torch.cat([added, flat[:, 2 * half :]], 1) if flat.shape[1] % 2 else added
    return flat[:, 0]


def softplus(x: Tensor) -> Tensor:
    """`log(1 + e^x)` to rounding: torch's own leaves its correction out from 20 on, where that is still 2e-9.

    Its bits do not depend on how many x there are, as those of torch's do on a CPU.
    """
    size = x.abs()
    return torch.log1p(torch.exp(-size)) + (x + size) / 2


def as_time(t: Tensor | float | Sequence[float]) -> Tensor:
    """A time, or several, as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


def batch_time(t: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A value `[]` or `[B]` as `[B]` on x's device and dtype, without waiting for the device."""
    dtype = dtype or x.dtype
    # a single floating value joins in the sum's own dtype, rounded as it would be before
    same = t.ndim == 0 and dtype.is_floating_point
    return x.new_zeros(x.shape[0], dtype=dtype) + (t if same else t.to(dtype))


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
