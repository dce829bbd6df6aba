"""Hypothesis strategies for all that a solve is made of; what they draw has a repr that can be pasted into a test.

The reprs read after `import torch, sdegen as sd` and `from sdegen.testing.recipes import *`. Everything drawn is valid,
and shrinks to the simplest of its kind: `sd.VP()`, one step, one dimension, one sample.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

import sdegen as sd
from sdegen.errors import InvalidArgumentError
from sdegen.testing import catalogue, recipes
from sdegen.testing.calls import make

T = TypeVar("T")
Want = str | tuple[Tensor, Tensor]

_PROCESS_OPTIONS = {
    "beta_min": st.floats(0.01, 1.0),
    "beta_max": st.floats(2.0, 40.0),
    "sigma_min": st.floats(1e-4, 0.1),
    "sigma_max": st.floats(1.0, 1000.0),
    "s": st.floats(0.0, 0.1, allow_subnormal=False),
    "t_min": st.floats(1e-5, 1e-2),
    "t_max": st.floats(0.9, 0.999),
}
_SPANS = ((0.0, 1.0), (1e-3, 1.0), (-1.0, 1.0), (2.0, 3.0), (0.0, 1000.0))
_SEEDS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1)


def seeds() -> SearchStrategy[int]:
    """Seeds 0 .. 2^63 - 1, the boundaries of narrower words among them."""
    return st.sampled_from(_SEEDS) | st.integers(0, 2**63 - 1)


def dtypes(half: bool = True) -> SearchStrategy[torch.dtype]:
    """Floating dtypes, float64 first; the half-precision ones only if `half`."""
    return st.sampled_from((torch.float64, torch.float32, *((torch.bfloat16, torch.float16) if half else ())))


def batch_sizes() -> SearchStrategy[int]:
    """Batch sizes: one, none, few, and those around a tile of 32 rows."""
    return st.sampled_from((1, 0, 2, 7, 32, 33))


def etas(top: float = 2.0) -> SearchStrategy[float]:
    """Amounts of noise in [0, top], 0 and 1 often."""
    return st.sampled_from((0.0, min(1.0, top))) | st.floats(2.0**-10, top)


@st.composite
def shapes(draw: DrawFn, max_dim: int = 64) -> tuple[int, ...]:
    """Sample shapes S of one to three dimensions, of at most `max_dim` elements."""
    sizes: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        sizes.append(draw(st.integers(1, max_dim // math.prod(sizes))))
    return tuple(sizes)


def _quarters(low: float, high: float) -> SearchStrategy[float]:
    """Multiples of 1/4: numbers that are read at a glance, zero first."""
    return st.integers(math.ceil(4 * low), math.floor(4 * high)).map(lambda k: k / 4)


def _widths() -> SearchStrategy[float]:
    return st.sampled_from((1.0, 0.5, 2.0, 0.25, 10.0, 1e-2, 1e-3))


def _calls(
    target: Callable[..., T], options: Mapping[str, SearchStrategy[Any]], *arguments: SearchStrategy[Any]
) -> SearchStrategy[T]:
    """Calls of `target` with all arguments and any of the options, none at the simplest."""
    given = st.fixed_dictionaries({name: st.none() | values for name, values in options.items()})

    def call(these: tuple[Any, ...], those: dict[str, Any]) -> T:
        return target(*these, **{name: value for name, value in those.items() if value is not None})

    return st.builds(call, st.tuples(*arguments), given)


def predictions() -> SearchStrategy[Want]:
    """What a model is asked for: a name, or a pair (p, q) of the (data, noise) plane."""
    names: SearchStrategy[Want] = st.sampled_from(("data", "noise", "score", "v", "velocity"))
    return names | st.builds(recipes.pair, _quarters(-2, 2), _quarters(-2, 2))


# --- processes, times, levels, grids


def processes(user: bool = True) -> SearchStrategy[sd.Process]:
    """Every shipped process with random options; with `user`, processes that give alpha and sigma alone as well."""
    found = catalogue.shipped_processes()
    kinds: list[SearchStrategy[sd.Process]] = [st.sampled_from(found).map(make)]
    kinds += [_calls(functools.partial(make, c), o) for c in found if (o := _fields(c, _PROCESS_OPTIONS))]
    kinds.append(st.builds(recipes.discrete_vp, st.integers(2, 100)))
    if user:
        kinds.append(_user_processes())
    return st.one_of(kinds)


def _user_processes() -> SearchStrategy[sd.Process]:
    def build(lams: tuple[float, float], span: tuple[float, float], **curves: Any) -> sd.Process:
        return recipes.MonotoneProcess(lams[0], lams[1], **curves, t_min=span[0], t_max=span[1])

    return st.builds(
        build,
        st.tuples(st.sampled_from((4.0, 1.0, 8.0, 12.0)), st.sampled_from((-4.0, -1.0, -8.0, -12.0))),
        st.sampled_from(_SPANS),
        bends=st.lists(_quarters(0, 8), max_size=3).map(tuple),
        norms=st.lists(_quarters(-2, 2), max_size=3).map(tuple),
    )


def _fields(cls: Any, options: Mapping[str, T]) -> dict[str, T]:
    """Those of the options that a dataclass has."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in options.items() if name in names}


def times(process: sd.Process) -> SearchStrategy[float]:
    """Times in the span of a process, its ends and powers of two of the span from either end often."""
    low, high = float(process.t_min), float(process.t_max)
    near = st.integers(1, 12).map(lambda k: (high - low) * 2.0**-k)
    return st.one_of(
        st.floats(low, high, allow_subnormal=False),
        st.sampled_from((high, low)),
        near.map(lambda d: low + d),
        near.map(lambda d: high - d),
    )


def levels(process: sd.Process, batch: int | None = None) -> SearchStrategy[sd.Level]:
    """Levels of a process, `[]`, or `[batch]` with a time for each row."""
    if batch is None:
        return times(process).map(lambda t: _level(process, t))
    return st.lists(times(process), min_size=batch, max_size=batch).map(lambda t: _level(process, t))


def _level(process: sd.Process, t: float | list[float]) -> sd.Level:
    return make(process.level, t)


def level_pairs(process: sd.Process, gap: float = 1e-6) -> SearchStrategy[tuple[sd.Level, sd.Level]]:
    """Two levels in the order of time, at least `gap` apart in lam."""
    return _ordered(process, 2, gap).map(lambda found: (found[0], found[1]))


def level_triples(process: sd.Process, gap: float = 1e-6) -> SearchStrategy[tuple[sd.Level, sd.Level, sd.Level]]:
    """Three levels in the order of time, at least `gap` apart in lam."""
    return _ordered(process, 3, gap).map(lambda found: (found[0], found[1], found[2]))


def _ordered(process: sd.Process, count: int, gap: float) -> SearchStrategy[list[sd.Level]]:
    def apart(found: list[sd.Level]) -> bool:
        return all(float(a.lam - b.lam) >= gap for a, b in itertools.pairwise(found))

    drawn = st.lists(times(process), min_size=count, max_size=count, unique=True)
    return drawn.map(lambda ts: [_level(process, t) for t in sorted(ts)]).filter(apart)


def grids(max_steps: int = 50, kinds: Sequence[str] = recipes.SPACINGS) -> SearchStrategy[recipes.Spacing]:
    """Time grids of 1 to `max_steps` steps (10,000 at most), neighbouring steps up to 1e8 apart in length."""
    ratios = st.sampled_from((10.0, 1.0, 1e3, 1e8))
    options: dict[str, dict[str, SearchStrategy[Any]]] = {
        "karras": {"rho": st.sampled_from((7.0, 1.0, 3.0, 100.0))},
        "uneven": {"ratio": ratios, "seed": seeds()},
        "clumps": {"ratio": ratios},
    }
    steps = st.integers(1, max_steps) | st.sampled_from((1, max_steps))
    return st.one_of([st.builds(recipes.Spacing, st.just(k), steps, **options.get(k, {})) for k in kinds])


# --- laws, states, observations


def mixtures(
    max_dim: int = 64, max_components: int = 8, kinds: Sequence[str] = recipes.KINDS
) -> SearchStrategy[sd.GaussianMixture]:
    """Mixtures of the kinds of `recipes.KINDS`: small ones by their numbers, others from a seed, see `random_mixture`.

    Among them equal components, components up to 1e3 apart, weights down to 1e-300 and condition numbers up to 1e8.
    """
    options = {
        "apart": st.sampled_from((2.0, 0.0, 1e-3, 20.0, 1e3)),
        "width": _widths(),
        "condition": st.sampled_from((10.0, 1.0, 1e4, 1e8)),
        "weights": st.sampled_from(recipes.WEIGHTS),
        "seed": seeds(),
    }
    sizes = st.integers(1, max_components), shapes(max_dim)
    large = _calls(recipes.random_mixture, options, st.sampled_from(kinds), *sizes)
    return _explicit(kinds, _small_mixtures, max_dim, max_components) | large


def gaussians(max_dim: int = 64, kinds: Sequence[str] = recipes.KINDS) -> SearchStrategy[sd.Gaussian]:
    """One Gaussian, as `mixtures` has many; see `random_gaussian`."""
    options = {
        "away": st.sampled_from((2.0, 0.0, 20.0, 1e3)),
        "width": _widths(),
        "condition": st.sampled_from((10.0, 1.0, 1e4, 1e8)),
        "seed": seeds(),
    }
    large = _calls(recipes.random_gaussian, options, st.sampled_from(kinds), shapes(max_dim))
    return _explicit(kinds, _small_gaussians, max_dim) | large


def _explicit(kinds: Sequence[str], small: Callable[..., SearchStrategy[T]], *limits: int) -> SearchStrategy[T]:
    """What gives its numbers, of those kinds that can; nothing where none can."""
    found = [kind for kind in recipes.EXPLICIT_KINDS if kind in kinds]
    return small(found, *limits) if found else st.nothing()


def _rows(count: int, dim: int, numbers: SearchStrategy[float]) -> SearchStrategy[tuple[tuple[float, ...], ...]]:
    return st.tuples(*[st.tuples(*[numbers] * dim)] * count)


@st.composite
def _small_mixtures(draw: DrawFn, kinds: Sequence[str], max_dim: int, max_components: int) -> sd.GaussianMixture:
    kind = draw(st.sampled_from(kinds))
    count, dim = draw(st.integers(1, min(3, max_components))), draw(st.integers(1, min(2, max_dim)))
    means = draw(_rows(count, dim, _quarters(-4, 4)))
    widths = draw(_rows(count, dim if kind == "diagonal" else 1, _widths()))  # of points too: they are not simpler
    weights = draw(st.none() | st.tuples(*[st.sampled_from((1.0, 0.5, 0.01, 1e-300))] * count))
    stds: Any = {"points": 0.0, "diagonal": widths, "isotropic": tuple(row[0] for row in widths)}[kind]
    stds = stds[0] if kind == "isotropic" and len(set(stds)) == 1 else stds
    return make(sd.GaussianMixture, means, stds=stds, **({} if weights is None else {"weights": weights}))


@st.composite
def _small_gaussians(draw: DrawFn, kinds: Sequence[str], max_dim: int) -> sd.Gaussian:
    kind, dim = draw(st.sampled_from(kinds)), draw(st.integers(1, min(3, max_dim)))
    mean = draw(st.tuples(*[_quarters(-4, 4)] * dim))
    widths = draw(st.tuples(*[_widths()] * (dim if kind == "diagonal" else 1)))
    std: Any = {"points": 0.0, "diagonal": widths, "isotropic": widths[0]}[kind]
    return make(sd.Gaussian, mean, std=std)


@st.composite
def states(
    draw: DrawFn,
    shape: tuple[int, ...] | None = None,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    max_dim: int = 64,
) -> recipes.State:
    """States `[B, *S]` of all dtypes and layouts, up to a thousand in scale; what is given is not drawn.

    What is drawn makes its tensor, `state.tensor()`: up to eight numbers are in its repr, more come from a seed.
    """
    shape = draw(shapes(max_dim)) if shape is None else shape
    batch = draw(batch_sizes()) if batch is None else batch
    size = batch * math.prod(shape)
    # an empty batch draws a number as well, and so does not pass for simpler than one sample
    few = st.tuples(*[_quarters(-4, 4)] * max(1, size)) if size <= 8 else st.nothing()
    return recipes.State(
        (batch, *shape),
        draw(few.map(lambda numbers: numbers[:size]) | seeds()),
        draw(st.sampled_from((1.0, 1e-3, 1e3))),
        draw(dtypes()) if dtype is None else dtype,
        draw(st.sampled_from(recipes.LAYOUTS)),
    )


@st.composite
def observations(draw: DrawFn, dim: int) -> recipes.Observation:
    """Noisy linear observations of samples of `dim` elements: up to eight numbers, or 1 to dim + 1 random rows."""
    noise_std = draw(st.sampled_from((1.0, 0.1, 1e-3, 10.0)))
    if dim <= 8 and not draw(st.booleans()):
        entries = st.sampled_from((1.0, 0.0, -1.0, 0.5, -2.0))
        return recipes.Observation(draw(_rows(draw(st.integers(1, 8 // dim)), dim, entries)), noise_std)
    return recipes.Observation((draw(st.integers(1, dim + 1)), dim), noise_std, draw(seeds()))


# --- frames and solvers


def frames(options: bool = True) -> SearchStrategy[sd.Frame]:
    """Every shipped frame; with `options`, with other variables of interpolation and widths of the data as well."""
    return st.sampled_from(catalogue.varied_frames() if options else catalogue.shipped_frames())


def solvers(
    *,
    deterministic: bool | None = None,
    memory: bool | None = None,
    coupled: bool | None = None,
    process_type: type[sd.SDE] = sd.Process,
) -> SearchStrategy[sd.Solver]:
    """Every shipped method and solver, with its options: orders, frames, etas, correctors, tableaus, grids.

    deterministic: without noise (True) or with. memory: with past evaluations (True) or without. coupled: with samples
    that depend on their batch (True) or not. None takes both. process_type: `sd.SDE` for what runs on general SDEs.
    Raises InvalidArgumentError where nothing fits.
    """

    def fits(solver: Any) -> bool:
        return (
            deterministic in (None, not solver.stochastic)
            and memory in (None, solver.memory > 0)
            and coupled in (None, catalogue.couples(solver))
            and (issubclass(process_type, sd.Process) or catalogue.runs_on_general(solver))
        )

    found = [[solver for solver in family if fits(solver)] for family in catalogue.solver_families().values()]
    if not any(found):
        raise InvalidArgumentError("no shipped solver is all that; ask for less of deterministic, memory and coupled")
    return st.one_of([st.sampled_from(family) for family in found if family])
