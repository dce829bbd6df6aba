r"""Brownian paths as pure functions of (sample seed, level, tag): steps that overlap see one path, in constant memory.

The path is Lévy's construction on a fixed binary tree. With the clock c (W has variance `|c - c'|` between two levels),
and the cells of depth l = 0 .. L - 1, the cell (a, b) with middle m adds its own unit normal times

    sqrt((c_m - c_a)(c_b - c_m)/(c_b - c_a)) min((c - c_a)/(c_m - c_a), (c_b - c)/(c_b - c_m)),

the bridge's exact law at m; the whole span adds `(c - c_0)/sqrt(c_1 - c_0)`, and the cell of depth L that the level
lies in `sqrt((c - c_a)(c_b - c)/(c_b - c_a))`, the exact law at the level itself. So W at any level is a sum of L + 2
normals, of known weights, each named by its depth and its place: a step needs no recursion, no branch and no past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.level import Level, check_span
from sdegen.noise import normals as noises
from sdegen.tensors import check_type, check_whole, home, like, readable

Clock = Callable[[Level], Tensor]
_Term = tuple[int, Any, Any]  # a node in a step's normal: depth, place there, weight; numbers or tensors `[]` or `[B]`

# As the high word of a float64 this is a NaN, which no time is: the tree shares no counter with the noise of steps.
_TREE_DOMAIN = 0xFFFFFFFE
_LOW = 0xFFFFFFFF
_MAX_DEPTH = 48
_TINY = torch.finfo(torch.float64).tiny
_SLACK = 1e-8
# Small batches draw several nodes at once, which saves calls; large ones one at a time, which saves memory.
_AT_ONCE = 1 << 16


@runtime_checkable
class Spanned(Protocol):
    """What a path asks of an SDE: its span, and shares of it in the variable that the tree halves under a clock."""

    t_min: float
    t_max: float

    def share(self, level: Level, span: tuple[float, float]) -> Tensor: ...
    def at_share(self, share: Tensor, span: tuple[float, float]) -> Level: ...


class _Nodes(NamedTuple):
    """The nodes that W at a level is a sum of, `[n]` or `[B, n]`: places in their depth, and weights; its clock."""

    place: Tensor
    weight: Tensor
    clock: Tensor


@strict_keywords
@dataclass(frozen=True, eq=False)
class Brownian:
    r"""Unit normals that are the increments of one Brownian path per (sample seed, tag), whatever the steps.

    `z(now, next) = (W(next) - W(now)) / sqrt(|c(next) - c(now)|)`, zero for a step of no length. Steps add up to
    rounding, `sqrt(|c - a|) z(a, c) = sqrt(|b - a|) z(a, b) + sqrt(|c - b|) z(b, c)`, up or down in time, so a solve
    sees one path whatever its grid, and a step that is rejected and retried still the same. z is W's increment in the
    direction of the step, `z(b, a) = -z(a, b)`: `sde.forward` through increasing times is driven by W, a reverse solve
    by the same W run backwards, the noise that takes the forward path back if the drifts are those of `SDE.reverse`.

    A pure function of (seed, now, next, tag, element), the same in any batch, in any order and from any thread: in
    every bit with the clock t, with others up to the rounding of torch's exponentials, which may differ for one time
    and for many. The noise `[B, M]` of a matrix diffusion is that of samples of shape `[M]`.

    Args:
        seeds: [B] int64, one per sample, as made by `noise.seeds`.
        process: whose span the path covers; with a `clock`, a `Process` also has the tree spread evenly in log-SNR.
        span: `(t_min, t_max)`, where there is no process or another span is wanted.
        clock: a function Level -> Tensor, monotone in time, whose differences are W's variances; t if left out.
            `sigma_clock` and `data_clock` are those of the exponential methods: with them a step's noise at every
            refinement is that of one path. Paths of different clocks, spans or depths are different paths.
        depth: cells of `2^-depth` of the span are the smallest. The law is exact for all steps that join different
            cells; inside of one cell z has a variance of at most one. Two normals are drawn per step and depth.

    Raises InvalidTypeError unless seeds are an int64 tensor, the process an SDE and the clock a function;
    InvalidArgumentError unless seeds have one dimension, there is a span, and the depth is in 1 .. 48; on a call,
    unless x has one row per seed, and for a level outside of the span, if the host can read it (others are clamped).
    Source: Lévy's construction, as a tree of seeds: Li et al. (2020), sec. 4; Kidger (2021), sec. 5.5.
    """

    seeds: Tensor
    process: Spanned | None = None
    span: tuple[float, float] | None = None
    clock: Clock | None = None
    depth: int = 24

    def __post_init__(self) -> None:
        noises.check_seeds(self.seeds)
        check_type(self.process, Spanned | None, "process must be an SDE", "; a span is given by span=(t0, t1)")
        check_type(self.clock, Callable | None, "clock must be a function of a Level", "; leave it out for t")
        if self.process is None and self.span is None:
            raise InvalidArgumentError("a Brownian path needs a span: Brownian(seeds, process), or span=(t_min, t_max)")
        check_whole("depth", self.depth, _MAX_DEPTH)
        check_span(*self._times)

    @property
    def _times(self) -> tuple[float, float]:
        if self.span is not None:
            low, high = self.span
            return float(low), float(high)
        return (self.process.t_min, self.process.t_max) if self.process is not None else (0.0, 1.0)

    def rows(self, index: Tensor) -> Brownian:
        """The paths of some rows: those of `seeds[index]`."""
        return replace(self, seeds=self.seeds[index])

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        """`z` like x `[B, *S]` for the step between two levels `[]` or `[B]`; of x only shape, dtype, device count."""
        noises.check_rows(self.seeds, x, "Brownian")
        first, last = self._nodes(now), self._nodes(next)
        length = (last.clock - first.clock).abs()
        scale = torch.where(length > 0, length.clamp(min=_TINY).sqrt().reciprocal(), 0.0)[..., None]
        # a node that both ends share is drawn once, with the difference of its weights
        shared = last.place == first.place
        weights = torch.cat([(last.weight - first.weight * shared) * scale, first.weight * ~shared * -scale], -1)
        places = torch.cat([last.place.expand_as(shared), first.place.expand_as(shared)], -1)
        depths = [*range(self.depth + 2)] * 2
        if _on_host(now) and _on_host(next):
            known = zip(depths, places.tolist(), weights.tolist())
            return self._sum(x, [term for term in known if term[2]], tag)
        return self._sum(x, list(zip(depths, places.unbind(-1), weights.unbind(-1))), tag)

    def _nodes(self, level: Level) -> _Nodes:
        """The nodes of W at a level: the span's, one for each depth, and the smallest cell's own."""
        level = Level(*(part.detach() for part in level))
        share = self._share(level)
        halvings = torch.arange(self.depth, -1, -1, device=share.device)
        cell = (share * 2.0**self.depth).long().clamp(0, (1 << self.depth) - 1)[..., None] >> halvings
        size = (torch.ones_like(halvings) << (self.depth - halvings)).to(share.dtype).reciprocal()
        left, middle, right = self._clock_at(torch.stack([cell * size, (2 * cell + 1) * (size / 2), (cell + 1) * size]))
        start, end = left[..., 0], right[..., 0]
        clock = level.t if self.clock is None else self.clock(level).detach()
        clock = clock.clamp(torch.minimum(start, end), torch.maximum(start, end))
        whole, lower, upper = (right - left).abs(), (middle - left).abs(), (right - middle).abs()
        above = torch.minimum((clock[..., None] - left).abs(), whole)
        below = torch.minimum((right - clock[..., None]).abs(), whole)
        hat = torch.minimum(above / lower.clamp(min=_TINY), below / upper.clamp(min=_TINY)).clamp(max=1.0)
        weight = hat * torch.sqrt(lower * (upper / whole.clamp(min=_TINY)))
        least = torch.sqrt(above[..., -1:] * (below[..., -1:] / whole[..., -1:].clamp(min=_TINY)))
        most = above[..., :1] / whole[..., :1].clamp(min=_TINY).sqrt()
        place = torch.cat([torch.zeros_like(cell[..., :1]), cell], -1)
        return _Nodes(place, torch.cat([most, weight[..., :-1], least], -1), clock)

    def _share(self, level: Level) -> Tensor:
        """Where in the span a level lies, 0 at t_min and 1 at t_max, in the variable that the tree halves."""
        if self.clock is None or self.process is None:
            low, high = self._times
            share = (level.t - low) / (high - low)
        else:
            share = self.process.share(level, self._times)
        if _on_host(level) and not -_SLACK <= float(share) <= 1 + _SLACK:
            raise InvalidArgumentError(
                f"t={float(level.t):.9g} is outside of the Brownian path's span {list(self._times)}: give it another"
            )
        return share.clamp(0.0, 1.0)

    def _clock_at(self, share: Tensor) -> Tensor:
        """The clock at shares of the span."""
        low, high = self._times
        if self.clock is None:
            return low + share * (high - low)
        flat = share.flatten()
        if self.process is None:
            nothing = torch.full_like(flat, float("nan"))
            level = Level(low + flat * (high - low), nothing, nothing)
        else:
            level = self.process.at_share(flat, self._times)
        return self.clock(level).detach().reshape(share.shape)

    def _sum(self, x: Tensor, terms: list[_Term], tag: int) -> Tensor:
        """The sum of the terms, like x; added in float64, in one order whatever the batch and however many at once."""
        there = home(x.device)
        total = torch.zeros(x.shape, dtype=torch.float64, device=there)
        # while a CUDA graph is captured nothing may be copied from the host, as several nodes at once would have to be
        captured = not readable(x) and not torch.compiler.is_compiling()
        each = 1 if captured else max(1, _AT_ONCE // max(1, x.numel()))
        for start in range(0, len(terms), each):
            some = terms[start : start + each]
            for (_, _, weight), z in zip(some, self._draw(x, some, tag)):
                total = total + (like(weight.to(there), total) if isinstance(weight, Tensor) else weight) * z
        return total.to(x.dtype).to(x.device)

    def _draw(self, x: Tensor, terms: list[_Term], tag: int) -> Iterable[Tensor]:
        """The unit normals of some terms, each `[B, *S]`, float64."""
        shape, count, batch = tuple(x.shape[1:]), len(terms), len(self.seeds)
        options: Any = {"tag": tag, "dtype": torch.float64, "device": home(x.device)}
        words: noises.Words
        if count == 1:
            depth, place, _ = terms[0]
            words = (place & _LOW, place >> 32, depth, _TREE_DOMAIN)
            return [noises.normals(self.seeds, shape, words, **options)]
        places = torch.stack([_placed(place) for _, place, _ in terms])
        places = places.reshape(count, -1).expand(count, batch).reshape(-1)
        depths = torch.tensor([depth for depth, _, _ in terms], device="cpu").repeat_interleave(batch)
        words = (places & _LOW, places >> 32, depths, _TREE_DOMAIN)
        drawn = noises.normals(self.seeds.repeat(count), shape, words, **options)
        return drawn.reshape(count, batch, *shape).unbind(0)


def _placed(place: int | Tensor) -> Tensor:
    return place if isinstance(place, Tensor) else torch.tensor(place, device="cpu")


def _on_host(level: Level) -> bool:
    return level.t.ndim == 0 and level.t.device.type == "cpu" and readable(level.t)
