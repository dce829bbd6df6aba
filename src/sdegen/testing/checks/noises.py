"""`check_noise`: are these unit normals, fresh where they must be and the same where they must be?

Statistics are held to bounds that chance passes in fewer than 1e-10 of runs each (6.5 standard deviations for sums of
many terms; Massart's bound `2 exp(-2 n d^2)` for the Kolmogorov-Smirnov distance), a hundred comparisons in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdegen import noise as noises
from sdegen.errors import InvalidTypeError
from sdegen.level import Level
from sdegen.noise.normals import NoiseSource
from sdegen.processes.process import Process
from sdegen.processes.schedules import VP
from sdegen.testing.checks.shared import host_reads, leaves_alone, twins
from sdegen.testing.guards import differing
from sdegen.testing.report import Measure, Report, Suite, holds, run

F64 = torch.float64
NOISE = Suite("noise source")
SIGMAS = 6.5
KS = math.sqrt(math.log(2 / 1e-10) / 2)
"""`d sqrt(n)` at which `2 exp(-2 n d^2) = 1e-10` (Massart 1990)."""


@dataclass(frozen=True)
class Sourced:
    """How to make the source for some seeds, and where its levels lie."""

    make: Callable[[Tensor], NoiseSource]
    process: Process
    path: bool

    def draw(
        self,
        seeds: Tensor,
        shape: tuple[int, ...],
        *,
        at: tuple[float, float] = (0.8, 0.6),
        tag: int = 0,
        dtype: Any = F64,
    ) -> Tensor:
        """Normals `[B, *shape]` of the step between two shares of the time span."""
        return self.make(seeds)(torch.zeros(len(seeds), *shape, dtype=dtype), self.level(at[0]), self.level(at[1]), tag)

    def level(self, share: float) -> Level:
        return self.process.level(self.process.t_min + share * (self.process.t_max - self.process.t_min))


class Drawn(NamedTuple):
    """A step between two shares of the time span, for a batch of samples of a shape."""

    seed: int
    batch: int
    shape: tuple[int, ...]
    now: float = 0.8
    next: float = 0.6
    tag: int = 0

    def of(self, subject: Sourced, seeds: Tensor | None = None, **options: Any) -> Tensor:
        seeds = noises.seeds(self.seed, self.batch) if seeds is None else seeds
        return subject.draw(seeds, self.shape, at=(self.now, self.next), **{"tag": self.tag, **options})


def _cases(subject: Sourced) -> Any:
    import hypothesis.strategies as hs

    shapes = hs.lists(hs.integers(1, 4), min_size=1, max_size=3).map(tuple)
    share = hs.floats(0.0, 1.0)
    ends = hs.tuples(share, share).filter(lambda e: abs(e[0] - e[1]) > 1e-6)
    tags = hs.just(0) if subject.path else hs.integers(0, 2**20)
    whole = hs.builds(
        lambda seed, batch, shape, e, tag: Drawn(seed, batch, shape, max(e), min(e), tag),
        hs.integers(0, 2**62),
        hs.integers(1, 6),
        shapes,
        ends,
        tags,
    )
    return whole


def _fresh(subject: Sourced) -> str | None:
    return "increments of one path are not independent of one another" if subject.path else None


@NOISE.states(
    "normals like x: its shape, dtype and device, all finite, whatever the layout of x", given=_cases, examples=20
)
def outputs(subject: Sourced, case: Drawn) -> Iterator[Measure]:
    for dtype in (F64, torch.float32, torch.bfloat16):
        z = case.of(subject, dtype=dtype)
        yield holds(f"shape {list(z.shape)}", z.shape == (case.batch, *case.shape))
        yield holds(f"{z.dtype} for x of {dtype}", z.dtype == dtype)
        yield Measure("values that are not finite", float((~z.isfinite()).sum()))


@NOISE.states(
    "a pure function: the same (seed, now, next, tag) gives the same bits, on any object and in any order",
    given=_cases,
    examples=20,
)
def pure(subject: Sourced, case: Drawn) -> Iterator[Measure]:
    first = case.of(subject)
    case._replace(now=0.5, next=0.4, tag=0).of(subject)
    yield Measure("elements of a second draw that differ", float(differing(case.of(subject), first)))
    source = subject.make(noises.seeds(case.seed, case.batch))
    x = torch.zeros(case.batch, *case.shape, dtype=F64)
    other = [source(x, subject.level(0.9), subject.level(0.3)) for _ in range(2)]
    again = source(x, subject.level(case.now), subject.level(case.next), case.tag)
    yield Measure("elements that another step before it changes", float(differing(again, first)))
    yield Measure("elements of a repeated step that differ", float(differing(other[0], other[1])))


@NOISE.states("a row depends on its own seed alone: any batch, any order", given=_cases, examples=20)
def per_sample(subject: Sourced, case: Drawn) -> Iterator[Measure]:
    seeds = noises.seeds(case.seed, case.batch)
    whole = case.of(subject)
    order = torch.argsort(noises.seeds(case.seed + 1, case.batch))
    yield Measure("elements that another order changes", float(differing(case.of(subject, seeds[order]), whole[order])))
    alone = case.of(subject, seeds[-1:])
    yield Measure("elements of a row alone that differ", float(differing(alone, whole[-1:])))
    twice = case.of(subject, seeds[:1].expand(2))
    yield Measure("elements by which equal seeds differ", float(differing(twice[0], twice[1])))


@NOISE.states("the values of x do not matter, nor does its layout", given=_cases, examples=10)
def shape_alone(subject: Sourced, case: Drawn) -> Iterator[Measure]:
    seeds, ends = noises.seeds(case.seed, case.batch), (subject.level(case.now), subject.level(case.next))
    x = torch.full((case.batch, *case.shape), math.nan, dtype=F64)
    z = subject.make(seeds)(x, *ends, case.tag)
    yield Measure("elements that NaN in x changes", float(differing(z, case.of(subject))))
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    yield Measure("elements that the layout changes", float(differing(subject.make(seeds)(turned, *ends, case.tag), z)))


@NOISE.states("dtypes share their noise: float32 rounds float64", given=_cases, examples=10)
def dtypes(subject: Sourced, case: Drawn) -> Iterator[Measure]:
    z = case.of(subject)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        gap = (case.of(subject, dtype=dtype).double() - z).abs() / (1 + z.abs())
        yield Measure(f"distance in {dtype}", float(gap.max()), 2 * torch.finfo(dtype).eps)


@NOISE.states("no global generator moves, and x and the levels stay as they were")
def untouched(subject: Sourced) -> Iterator[Measure]:
    source, now, next = subject.make(noises.seeds(0, 3)), subject.level(0.8), subject.level(0.6)
    x = torch.ones(3, 2, dtype=F64)
    source(x, now, next)
    yield from leaves_alone(lambda: source(x, now, next))
    yield holds("x changed", bool((x == 1).all()))
    yield holds(
        "a level changed", torch.equal(now.t, subject.level(0.8).t) and torch.equal(next.t, subject.level(0.6).t)
    )


@NOISE.states("copies and pickles draw the same")
def copies(subject: Sourced) -> Iterator[Measure]:
    source, ends = subject.make(noises.seeds(0, 3)), (subject.level(0.8), subject.level(0.6))
    x = torch.zeros(3, 2, dtype=F64)
    whole = source(x, *ends)
    copied, failures = twins(source)
    yield from failures
    for twin in copied:
        yield Measure("elements that differ", float(differing(twin(x, *ends), whole)))


@NOISE.states("no value is read on the host")
def no_host_reads(subject: Sourced) -> Iterator[Measure]:
    def draw(mode: FakeTensorMode) -> None:
        source = subject.make(mode.from_tensor(noises.seeds(0, 3)))
        # levels too: on an accelerator they may live where reading them waits
        now, next = (Level(*map(mode.from_tensor, subject.level(share))) for share in (0.8, 0.6))
        source(mode.from_tensor(torch.zeros(3, 2, dtype=F64)), now, next)

    yield host_reads(draw)


@NOISE.states("a time per row gives what the rows' own times give", given=_cases, examples=10)
def levels_per_row(subject: Sourced, case: Drawn) -> Iterator[Measure]:
    seeds = noises.seeds(case.seed, 3)
    part = torch.tensor([1.0, 0.7, 0.4], dtype=F64)
    span = subject.process.t_max - subject.process.t_min
    now, next = (subject.process.level(subject.process.t_min + span * s * part) for s in (case.now, 0.5 * case.next))
    x = torch.zeros(3, *case.shape, dtype=F64)
    together = subject.make(seeds)(x, now, next, case.tag)
    for i in range(3):
        first, last = (Level(*(v[i] for v in level)) for level in (now, next))
        alone = subject.make(seeds[i : i + 1])(x[:1], first, last, case.tag)
        yield Measure("elements that differ", float(differing(alone, together[i : i + 1])))


def _far(what: str, z: Tensor) -> Iterator[Measure]:
    """Mean, variance, skewness and kurtosis of unit normals, in standard deviations of each."""
    n = z.numel()
    z = z.double().flatten()
    yield Measure(f"mean of {what}, in standard deviations", abs(float(z.mean())) * n**0.5, SIGMAS)
    yield Measure(
        f"variance of {what}, in standard deviations", abs(float(z.square().mean() - 1)) * (n / 2) ** 0.5, SIGMAS
    )
    yield Measure(
        f"third moment of {what}, in standard deviations", abs(float(z.pow(3).mean())) * (n / 15) ** 0.5, SIGMAS
    )
    yield Measure(
        f"fourth moment of {what}, in standard deviations", abs(float(z.pow(4).mean() - 3)) * (n / 96) ** 0.5, SIGMAS
    )


def _ks(z: Tensor) -> Measure:
    z = z.double().flatten().sort().values
    n = z.numel()
    cdf = torch.special.ndtr(z)
    rank = torch.arange(1, n + 1, dtype=F64) / n
    distance = torch.maximum((cdf - rank).abs(), (cdf - rank + 1 / n).abs()).max()
    return Measure("Kolmogorov-Smirnov distance times sqrt(n)", float(distance) * n**0.5, KS)


@NOISE.states("unit normals: moments and Kolmogorov-Smirnov distance over 100,000 of them")
def normal(subject: Sourced) -> Iterator[Measure]:
    z = subject.draw(noises.seeds(1, 10_000), (10,))
    yield from _far("all", z)
    yield _ks(z)
    # of 100,000 the largest is below 3.6 in 2e-14 of runs, and above 8 in 1e-10
    yield Measure("largest magnitude", float(z.abs().max()), 8.0, 3.6)


def _uncorrelated(what: str, a: Tensor, b: Tensor) -> Iterator[Measure]:
    a, b = a.double().flatten(), b.double().flatten()
    n = a.numel()
    yield Measure(f"{what}: correlation, in standard deviations", abs(float((a * b).mean())) * n**0.5, SIGMAS)
    # squares are uncorrelated too: (z^2 - 1)(w^2 - 1) has variance 4
    both = (a.square() - 1) * (b.square() - 1)
    yield Measure(
        f"{what}: correlation of squares, in standard deviations", abs(float(both.mean())) * (n / 4) ** 0.5, SIGMAS
    )


@NOISE.states("seeds, elements and tags are independent streams: correlations over 40,000 pairs")
def independent(subject: Sourced) -> Iterator[Measure]:
    seeds = noises.seeds(2, 20_000)
    z = subject.draw(seeds, (4,))
    yield from _uncorrelated("neighbouring seeds", z[::2], z[1::2])
    yield from _uncorrelated("neighbouring elements", z[:, ::2], z[:, 1::2])
    plain = torch.arange(20_000)
    w = subject.draw(plain, (4,))
    yield from _far("seeds 0, 1, 2, ...", w)
    yield from _uncorrelated("seeds 0, 1, 2, ...", w[::2], w[1::2])
    if not subject.path:
        yield from _uncorrelated("neighbouring tags", z, subject.draw(seeds, (4,), tag=1))


@NOISE.states("steps are independent: neighbouring, and those that share an end", applies=_fresh)
def fresh(subject: Sourced) -> Iterator[Measure]:
    seeds = noises.seeds(4, 10_000)
    z = subject.draw(seeds, (4,))
    for what, at in {
        "the step after it": (0.6, 0.4),
        "a step with the same start": (0.8, 0.5),
        "a step with the same end": (0.7, 0.6),
        "the step reversed": (0.6, 0.8),
        "a step a rounding away": (0.8 * (1 + 2**-50), 0.6),
    }.items():
        yield from _uncorrelated(what, z, subject.draw(seeds, (4,), at=at))


def _nested(subject: Sourced) -> str | None:
    return None if subject.path else "white noise has no path"


@NOISE.states(
    "increments of one path: sqrt(c - a) z(a, c) = sqrt(b - a) z(a, b) + sqrt(c - b) z(b, c)", applies=_nested
)
def path(subject: Sourced) -> Iterator[Measure]:
    seeds, (a, b, c) = noises.seeds(5, 50), (0.8, 0.65, 0.4)
    whole = math.sqrt(a - c) * subject.draw(seeds, (4,), at=(a, c))
    parts = math.sqrt(a - b) * subject.draw(seeds, (4,), at=(a, b)) + math.sqrt(b - c) * subject.draw(
        seeds, (4,), at=(b, c)
    )
    yield Measure("distance", float((whole - parts).abs().max()), 1e-6)


def check_noise(
    make: Callable[[Tensor], NoiseSource],
    *,
    process: Process | None = None,
    path: bool = False,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check every property of a noise source, given as what makes one from seeds `[B]`, such as `sd.White`.

    process: whose levels the steps join, VP. path: whether its normals are the increments of one path in t, so that
    steps which share time are not independent. Options as in `sdegen.testing.report.run`. Raises InvalidTypeError on
    what cannot be called, PropertyError if a property fails.
    """
    subject = sourced(make, process, path)
    return run(
        NOISE,
        subject,
        f"check_noise({getattr(make, '__name__', make)})",
        only=only,
        expected_failed=expected_failed,
        full=full,
        fail_fast=fail_fast,
        raise_on_fail=raise_on_fail,
    )


def sourced(make: Any, process: Process | None = None, path: bool = False) -> Sourced:
    """What `check_noise` checks, from its arguments."""
    if hasattr(make, "seeds") and not isinstance(make, type):
        raise InvalidTypeError("check_noise takes what makes a source from seeds [B]: sd.White, not sd.White(seeds)")
    if not callable(make):
        raise InvalidTypeError(f"check_noise takes what makes a source from seeds [B], such as sd.White; got {make!r}")
    return Sourced(make, process or VP(), path)
