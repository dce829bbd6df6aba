"""Two small networks that train well on a CPU: `MLP` for vectors, `UNet` for images; no model zoo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from sdegen.errors import InvalidArgumentError, InvalidTypeError, strict_keywords
from sdegen.tensors import STATES, check_whole, described, widen

__all__ = ["MLP", "UNet"]

_FREQUENCIES = 8  # the fastest turns once in 0.8 of log_sigma_time, a factor of 23 in the noise scale
_GROUP = 8  # channels that are normalised together


class _Network(nn.Module):
    """What both networks share: what their blocks are told of time and label, and the checks of a call."""

    def __init__(self, width: int, classes: int | None, last: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        check_whole("classes", 1 if classes is None else classes)
        self.null = classes
        """The label that stands for no class, the number of classes; None for a network without classes."""
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = None if classes is None else nn.Embedding(classes + 1, width)
        self.last = last
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def told(self, x: Tensor, shape: Sequence[int | str], time: Tensor, label: Tensor | None) -> Tensor:
        """What blocks are told, `[B, width]`; raises unless x is `[B, *shape]`, where a name is of any size."""
        name = type(self).__name__
        _check(name, "x", x, STATES, ("B", *shape))
        _check(name, "time", time, STATES, x.shape[:1])
        told = self.time(waves(time).to(x.dtype))
        if label is None:
            return silu(told if self.labels is None else told + self.labels.weight[-1])
        if self.labels is None:
            raise InvalidArgumentError(f"this {name} takes no label: make it with classes=10, say")
        # values are not read, which would wait for the device; torch reports one that is out of range
        _check(name, "label", label, (torch.int64,), x.shape[:1])
        return silu(told + self.labels(label))


def waves(time: Tensor) -> Tensor:
    """sin and cos of k time `[B]`, k = 1 .. 8, `[B, 16]`: smooth, and one to one on any interval shorter than 2 pi."""
    angles = widen(time)[:, None] * torch.arange(1, _FREQUENCIES + 1, device=time.device)
    return torch.cat([angles.sin(), angles.cos()], 1)


@strict_keywords
class MLP(_Network):
    """A network of residual blocks for vectors: `net(x [B, dim], time [B], label [B] or None)` gives `[B, dim]`.

    Its output is zero before training. Times are of about unit scale, in an interval no longer than 6. Recommended:
    `sd.ScoreModel(process, net, ..., time=sd.model.log_sigma_time)`; VP's t will do.

    Args:
        dim: how many numbers a sample has; or its shape, for x `[B, *dim]`.
        width: numbers between blocks.
        depth: how many blocks.
        classes: how many labels there are, 0 .. classes - 1; `net.null`, which is `classes`, stands for none of them,
            as does `label=None`. None for a network that takes no label.

    Raises:
        InvalidArgumentError: a size is no whole number >= 1; of a call, x, time or label has a wrong shape.
        InvalidTypeError: of a call, x or time is no floating tensor, or label is none of int64.
    """

    def __init__(
        self, dim: int | Sequence[int], *, width: int = 128, depth: int = 3, classes: int | None = None
    ) -> None:
        shape = tuple(dim) if isinstance(dim, Sequence) else (dim,)
        for name, value in (*(("dim", size) for size in shape), ("width", width), ("depth", depth)):
            check_whole(name, value)
        super().__init__(width, classes, nn.Linear(width, math.prod(shape)))
        self.shape, self.first = shape, nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(_Dense(width) for _ in range(depth))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The output `[B, *dim]` at x `[B, *dim]`, time `[B]` and label `[B]`."""
        told = self.told(x, self.shape, time, label)
        h = self.first(x.reshape(len(x), math.prod(self.shape)))
        for block in self.blocks:
            h = block(h, told)
        return self.last(silu(h)).reshape(x.shape)  # type: ignore[no-any-return]


@strict_keywords
class UNet(_Network):
    """A network for images of any size: `net(x [B, C, H, W], time [B], label [B] or None)` gives `[B, C, H, W]`.

    Each level halves height and width, rounding up; the coarsest has twice the channels, and attention. Its output is
    zero before training. Time is as for `MLP`.

    Args:
        channels: C.
        width: channels of all levels but the coarsest, a multiple of 8.
        levels: how many sizes an image is seen in.
        classes: as for `MLP`.

    Raises:
        InvalidArgumentError, InvalidTypeError: as for `MLP`; width is no multiple of 8.
    """

    def __init__(self, channels: int = 1, *, width: int = 32, levels: int = 3, classes: int | None = None) -> None:
        for name, size in (("channels", channels), ("width", width), ("levels", levels)):
            check_whole(name, size)
        if width % _GROUP:
            raise InvalidArgumentError(f"width must be a multiple of {_GROUP}, got {width}")
        sizes = [width] * (levels - 1) + [2 * width]
        super().__init__(2 * width, classes, nn.Conv2d(sizes[0], channels, 3, padding=1))
        self.channels, self.first = channels, nn.Conv2d(channels, sizes[0], 3, padding=1)
        self.downs = nn.ModuleList(_Block(a, a, 2 * width) for a in sizes[:-1])
        self.halves = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in zip(sizes, sizes[1:]))
        self.middle, self.attention = _Block(2 * width, 2 * width, 2 * width), _Attention(2 * width)
        self.ups = nn.ModuleList(_Block(a + b, a, 2 * width) for a, b in zip(sizes[-2::-1], sizes[:0:-1]))
        self.norm = nn.GroupNorm(sizes[0] // _GROUP, sizes[0])

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The output `[B, C, H, W]` at x `[B, C, H, W]`, time `[B]` and label `[B]`."""
        told = self.told(x, (self.channels, "H", "W"), time, label)
        h, skips = self.first(x), []
        for down, half in zip(self.downs, self.halves):
            skips.append(down(h, told))
            h = half(skips[-1])
        h = self.attention(self.middle(h, told))
        for up, skip in zip(self.ups, reversed(skips)):
            h = up(torch.cat([interpolate(h, size=skip.shape[2:]), skip], 1), told)
        return self.last(silu(self.norm(h)))  # type: ignore[no-any-return]


class _Dense(nn.Module):
    """A residual block for vectors, scaled and shifted by what it is told."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.film = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.inside, self.outside = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told).chunk(2, 1)
        h = self.inside(silu(self.norm(x))) * (1 + scale) + shift
        return x + self.outside(silu(h))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """A residual block of two convolutions, scaled and shifted between them by what it is told."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(c // _GROUP, c) for c in (inputs, outputs))
        self.convs = nn.ModuleList(nn.Conv2d(c, outputs, 3, padding=1) for c in (inputs, outputs))
        self.film = nn.Linear(told, 2 * outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[:, :, None, None].chunk(2, 1)
        h = self.norms[1](self.convs[0](silu(self.norms[0](x)))) * (1 + scale) + shift
        return self.skip(x) + self.convs[1](silu(h))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention over all places, residual; by plain products, whose second derivatives exist on every device."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(channels // _GROUP, channels)
        self.parts, self.last = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(self.norm(x)).flatten(2).chunk(3, 1)
        weights = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(-1)
        return x + self.last((value @ weights.transpose(1, 2)).reshape(x.shape))  # type: ignore[no-any-return]


def _check(name: str, what: str, value: object, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]) -> None:
    """Raises unless the value is a tensor of one of the dtypes and of the shape, where "B" and names are any size."""
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        allowed = "a floating tensor" if len(dtypes) > 1 else f"a tensor of {dtypes[0]}"
        raise InvalidTypeError(f"{name} takes {what} as {allowed}, got {described(value)}")
    wrong = (size != a if isinstance(a, int) else a != "B" and size == 0 for a, size in zip(shape, value.shape))
    if value.ndim != len(shape) or any(wrong):
        allowed = ", ".join(map(str, shape))
        raise InvalidArgumentError(f"{name} takes {what} of shape [{allowed}], got {list(value.shape)}")
