"""Unit normals as a pure function of (sample seed, step, tag, element): no generator, no state, nothing batch-wide.

A sample's noise depends on its own seed alone, so it is the same alone or in any batch, in any order, at any size.
Philox is applied twice: to the step's two times, and with the sample's seed as key to what they give and the element.
"""

from __future__ import annotations

import math
import operator
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, SupportsIndex, TypeAlias, overload

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, strict_keywords
from sdegen.tensors import check_type, home, readable

if TYPE_CHECKING:
    from sdegen.level import Level

Word: TypeAlias = Tensor | int
Words: TypeAlias = tuple[Word, Word, Word, Word]

_MASK = 0xFFFFFFFF
_BLOCKS = 1 << 15
_FEW = 1 << 10
# M - 2^32 for Philox's M0 and M1: a product M c can pass 2^63, and compiled code may assume that int64 never overflows
# (inductor's C++ did, and dropped masks); (M - 2^32) c cannot, has the same low word, and a high word smaller by c.
_MULTIPLIERS = 0xD2511F53 - (1 << 32), 0xCD9E8D57 - (1 << 32)
_WEYL = 0x9E3779B9, 0xBB67AE85
# As the high word of a float64 this is a NaN, which no time is: seeds never share a counter with a step's noise.
_SEEDS_DOMAIN = 0xFFFFFFFF


@overload
def philox(key: tuple[Tensor, Tensor], counter: Words) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
@overload
def philox(key: tuple[Word, Word], counter: Words) -> Words: ...
def philox(key: tuple[Word, Word], counter: Words) -> Words:
    """Four random words from a key and a counter: the Philox 4x32-10 bijection.

    Each of ten rounds maps ``(c0, c1, c2, c3)`` to ``(hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))``
    and adds the Weyl constants to the key.

    key: two int64 tensors, or ints, of values in 0 .. 2^32 - 1; counter: four of them. All six broadcast together. Four
    such values come back, ints if all that went in were. Source: Salmon, Moraes, Dror and Shaw, "Parallel random
    numbers: as easy as 1, 2, 3" (2011).
    """
    # The masks change no value; they also keep inductor from folding M into an index, whose steps it holds in 32 bits.
    c0, c1, c2, c3 = counter[0] & _MASK, counter[1], counter[2] & _MASK, counter[3]
    large = False
    for word in (*key, *counter):
        large = large or (isinstance(word, Tensor) and word.numel() > _FEW)
    for i in range(10):
        # Only c0 and c2 are multiplied next, so only they must be clean 32-bit words: c1, c3 and the keys carry rubbish
        # above bit 31 until a mask.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        k0, k1 = key[0] + i * _WEYL[0], key[1] + i * _WEYL[1]
        if large:
            c0, c1, c2, c3 = _high(p1, c2, c1 ^ k0), p1, _high(p0, c0, c3 ^ k1), p0
        else:
            c0, c1, c2, c3 = ((p1 >> 32) + c2 ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) + c0 ^ c3 ^ k1) & _MASK, p0
    return c0, c1 & _MASK, c2, c3 & _MASK


def _high(product: Word, factor: Word, word: Word) -> Word:
    """`(product >> 32) + factor ^ word` without more memory than it needs, for many words."""
    if isinstance(product, int):
        return (((product >> 32) + factor) ^ word) & _MASK
    # In place where shapes allow: fresh memory costs more than the arithmetic.
    high = (product >> 32).add_(factor)
    in_place = isinstance(word, Tensor) and high.shape == word.shape
    high = high.bitwise_xor_(word) if in_place else high ^ word
    return high.bitwise_and_(_MASK)


def seeds(seed: int, n: int, start: int = 0, device: torch.device | str | None = None) -> Tensor:
    """Seeds of samples ``start .. start + n - 1``, each a pure function of ``seed`` and the sample's own index.

    ``seeds[i] = philox(key=seed, counter=(start + i, domain)) mod 2^63``: ``seeds(s, 2, 5)`` is ``seeds(s, 7)[5:]``.

    Returns [n] int64, non-negative, on the CPU unless a device is given. Raises InvalidTypeError for arguments that are
    not integers (a bool is not one here), InvalidArgumentError unless 0 <= seed, n, start, start + n < 2^63.
    """
    seed, n, start = _integer("seed", seed, 1 << 63), _integer("n", n, 1 << 63), _integer("start", start, 1 << 63)
    if start + n >= 1 << 63:
        raise InvalidArgumentError(f"start + n must be below 2**63, got {start} + {n}; take a smaller start")
    if n == 1:  # in plain numbers, without a tensor operation per round
        low, high, _, _ = philox(halves(seed), (*halves(start), _SEEDS_DOMAIN, _SEEDS_DOMAIN))
        return torch.tensor([low | ((high & 0x7FFFFFFF) << 32)], dtype=torch.int64, device=device or "cpu")
    index = torch.arange(start, start + n, dtype=torch.int64, device=device or "cpu")
    key = halves(torch.full_like(index, seed))
    low, high, _, _ = philox(key, (*halves(index), _SEEDS_DOMAIN, _SEEDS_DOMAIN))
    return low | ((high & 0x7FFFFFFF) << 32)


def normals(
    seeds: Tensor,
    shape: tuple[int, ...],
    words: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int],
    tag: int = 0,
    *,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent unit normals, each a pure function of (sample seed, words, tag, flat index in the sample).

    ``h = philox(key=words[:2], counter=(words[2:], 0, 0))``, ``w = philox(key=seed, counter=(block, tag, h0, h1))``; a
    block's words give four normals ``sqrt(-2 log u(w0)) (cos, sin)(2 pi u(w1))`` and the same from ``w2, w3``, with
    ``u(w) = (w + 1/2) / 2^32``. They are computed in float64 and rounded to float32 whatever the dtype, so runs in
    different dtypes share their noise; so do devices and compiled code, but for about one draw in 10^8 whose last
    float64 bit straddles a float32 boundary. Draws are in row-major order: a smaller sample takes a prefix of a larger.

    Args:
        seeds: [B] int64, any bit pattern.
        shape: the sample's shape S.
        words: four int64 tensors, [] or [B], or ints, of values in 0 .. 2^32 - 1.
        tag: 0 <= tag < 2^32; streams of different tags are independent.
        dtype: a floating dtype.
        device: where to make them; by default where the seeds are.

    Returns [B, *S] of the dtype, contiguous; at most 6.77 in magnitude. Raises InvalidTypeError unless seeds are int64,
    the dtype floating and the tag an integer, InvalidArgumentError unless seeds have one dimension and the tag is in
    range. Source: Salmon et al. (2011) for the counters; Box and Muller (1958) for the normals.
    """
    check_seeds(seeds)
    if not dtype.is_floating_point:
        raise InvalidTypeError(f"dtype of the noise must be floating, got {dtype}; ask for torch.float32, for instance")
    tag = _integer("tag", tag, 1 << 32)
    wanted = torch.device(device) if device is not None else seeds.device
    if wanted.type == "meta":  # which has no values to draw
        return torch.empty(len(seeds), *shape, dtype=dtype, device=wanted)
    device = home(wanted)
    seeds = seeds.to(device, non_blocking=True)
    size = math.prod(shape)
    stream = [word.to(device, non_blocking=True) if isinstance(word, Tensor) else word for word in words]
    h0, h1 = philox((stream[0], stream[1]), (stream[2], stream[3], 0, 0))[:2]
    # some rows at a time, which bounds the temporaries and on the CPU keeps them in the cache; bits do not change
    blocks = _BLOCKS if device.type == "cpu" else 128 * _BLOCKS
    rows = len(seeds) if torch.compiler.is_compiling() else max(1, blocks // max(1, size // 4))
    parts = []
    for start in range(0, len(seeds), max(1, rows)):
        part = slice(start, start + rows)
        parts.append(_draw(seeds[part], _column(h0, part), _column(h1, part), tag, size).to(dtype))
    flat = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else seeds.new_empty(0, size, dtype=dtype)
    return flat.reshape(len(seeds), *shape).to(wanted)


def _column(word: Word, part: slice) -> Word:
    return word[part, None] if isinstance(word, Tensor) and word.ndim else word


def _draw(seeds: Tensor, h0: Word, h1: Word, tag: int, size: int) -> Tensor:
    k0, k1 = halves(seeds[:, None])
    block = torch.arange(-(-size // 4), dtype=torch.int64, device=seeds.device)
    return _box_muller(philox((k0, k1), (block, tag, h0, h1))).flatten(1)[:, :size]


def _box_muller(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    # [B, N] words to [B, N, 2, 2] float32. Half a unit keeps u off 0 and 1, where the logarithm or the last bit fails.
    r = torch.stack((words[0], words[2]), -1).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = torch.stack((words[1], words[3]), -1).double().add_(0.5).mul_(2.0 * math.pi * 2.0**-32)
    return torch.stack(((r * angle.cos()).float(), r.mul_(angle.sin_()).float()), -1)


@overload
def halves(pattern: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def halves(pattern: int) -> tuple[int, int]: ...
def halves(pattern: Word) -> tuple[Word, Word]:
    """The low and the high 32 bits of int64 patterns, as words."""
    return pattern & _MASK, (pattern >> 32) & _MASK


def _integer(name: str, value: SupportsIndex, limit: int) -> int:
    try:
        if isinstance(value, (bool, Tensor)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        got = f"{value!r} ({type(value).__name__})"
        raise InvalidTypeError(f"{name} must be an int, got {got}; pass a plain integer") from None
    if not 0 <= number < limit:
        raise InvalidArgumentError(f"{name} must be in 0 .. 2**{limit.bit_length() - 1} - 1, got {number}")
    return number


def check_seeds(seeds: Tensor) -> None:
    advice = "; make them with sdegen.noise.seeds(seed, n)"
    check_type(seeds, Tensor, "seeds must be a tensor of one int64 per sample", advice)
    if seeds.dtype != torch.int64:
        raise InvalidTypeError(f"seeds must be int64, got {seeds.dtype}{advice}")
    if seeds.ndim != 1:
        raise InvalidArgumentError(f"seeds must have the shape [B], one per sample, got {list(seeds.shape)}{advice}")


def check_rows(seeds: Tensor, x: Tensor, source: str) -> None:
    """Raises InvalidArgumentError unless x has one row per seed."""
    if x.ndim == 0 or x.shape[0] != len(seeds):
        raise InvalidArgumentError(
            f"x must have one row per seed: got x of shape {list(x.shape)} and {len(seeds)} seeds in {source}"
        )


class NoiseSource(Protocol):
    """Unit normals of x's shape, dtype and device as a pure function of (sample seed, now.t, next.t, tag)."""

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        """Normals [B, *S] for the step from ``now`` to ``next``; of x only the shape, dtype and device are read."""
        ...


@strict_keywords
@dataclass(frozen=True, eq=False)
class White:
    """White noise: fresh unit normals for every (sample seed, now.t, next.t, tag), independent across all four.

    ``z = normals(seeds, S, words=(bits(now.t), bits(next.t)), tag)`` with the 64-bit patterns of the float64 times. A
    step asked for twice gets the same noise, so draws within one step need different tags. Overlapping steps are
    independent, which is right on a fixed grid; a step that may be rejected and retried needs a Brownian path.

    seeds: [B] int64, one per sample, as made by :func:`seeds`. Raises InvalidTypeError unless they are an int64 tensor,
    InvalidArgumentError unless they have one dimension, and on a call unless x has one row per seed.
    """

    seeds: Tensor

    def __post_init__(self) -> None:
        check_seeds(self.seeds)

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        check_rows(self.seeds, x, "White")
        words = (*_time_words(now.t, x.device), *_time_words(next.t, x.device))
        return normals(self.seeds, tuple(x.shape[1:]), words, tag, dtype=x.dtype, device=x.device)


def _time_words(t: Tensor, device: torch.device) -> tuple[Word, Word]:
    # -0.0 and 0.0 are one time with two patterns; adding 0.0 leaves only the second.
    if t.ndim == 0 and t.device.type == "cpu" and readable(t):
        # A time that lies on the host is hashed there, without a tensor operation per round.
        pattern = int.from_bytes(struct.pack("<d", float(t.detach()) + 0.0), "little")
        return pattern & _MASK, pattern >> 32
    return halves((t.to(home(device), torch.float64, non_blocking=True) + 0.0).view(torch.int64))
