"""Brownian paths: their exact covariance, one path under every grid, and pure functions of seed and level."""

from __future__ import annotations

import copy
import functools
import gc
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import sdegen as sd
from sdegen import noise as noises
from sdegen import testing
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.noise.brownian import Brownian
from sdegen.solvers.eta import data_clock, sigma_clock

F64 = torch.float64
GENERAL = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: torch.ones_like(t), t_min=-1.0, t_max=3.0)
LINEAR = sd.Process.from_functions(lambda t: 1 - t, lambda t: t, t_min=0.01, t_max=0.99)  # levels by bisection
KINDS = {
    "VP in t": (sd.VP(), None),
    "EDM in t": (sd.EDM(), None),
    "general": (GENERAL, None),
    "general, clock of its own": (GENERAL, lambda level: -torch.exp(-level.t)),
    "VP as SIGMA": (sd.VP(), sigma_clock),
    "VP as DATA": (sd.VP(), data_clock),
    "EDM as DATA, eta 0.5": (sd.EDM(), functools.partial(data_clock, eta=0.5)),
    "Cosine as SIGMA": (sd.Cosine(), sigma_clock),
    "bisection as DATA": (LINEAR, data_clock),
}
KIND = pytest.mark.parametrize(("process", "clock"), KINDS.values(), ids=KINDS)


def level(process, share):
    return process.level(process.t_min + share * (process.t_max - process.t_min))


def clock_of(clock, at):
    return float(at.t if clock is None else clock(at))


class Units:
    """In the place of `normals`: the k-th node that is asked for is one in row k, and zero in all others."""

    def __init__(self):
        self.nodes = {}

    def __call__(self, seeds, shape, words, tag=0, *, dtype, device=None):
        low, high, depth = (torch.as_tensor(word).reshape(-1) for word in words[:3])
        batch = len(seeds) // self.rows
        out = torch.zeros(batch, self.rows, *shape, dtype=dtype)
        for i in range(batch):
            j = 0 if len(depth) == 1 else i * self.rows
            node = (int(depth[j]), int(low[min(j, len(low) - 1)]) + (int(high[min(j, len(high) - 1)]) << 32))
            out[i, self.nodes.setdefault(node, len(self.nodes))] = 1.0
        return out.reshape(-1, *shape)


@KIND
@pytest.mark.parametrize("depth", [24, 5])
def test_the_covariance_is_that_of_brownian_motion(process, clock, depth, monkeypatch):
    """W is a linear map of the tree's normals; the map times its transpose is `min(c, c')`, to rounding."""
    shares = [0.0, 1.0, 0.5, 0.25, 1 / 3, 0.7, 0.70001, 0.9999, 1e-5, 0.123456789, math.pi - 3]
    if depth == 5:
        shares = [0.0, 1.0, 0.5, 0.26, 1 / 3, 0.7, 0.9, 0.04, 0.14, 0.21, 0.84]  # one to a cell
    units = Units()
    units.rows = 12 * (depth + 2)
    monkeypatch.setattr(sys.modules["sdegen.noise.normals"], "normals", units)
    path = Brownian(torch.zeros(units.rows, dtype=torch.int64), process, clock=clock, depth=depth)
    x = torch.zeros(units.rows, 1, dtype=F64)
    first = level(process, 0.0)
    if depth == 5 and clock is not None and isinstance(process, sd.Process):
        # the tree is even in log-SNR there
        lams = torch.linspace(float(first.lam), float(level(process, 1.0).lam), 12, dtype=F64)
        places = [process.at(lam) for lam in lams[1:]]
    else:
        places = [level(process, share) for share in shares]
    c = torch.tensor([abs(clock_of(clock, p) - clock_of(clock, first)) for p in places], dtype=F64)
    w = torch.stack([path(x, first, p)[:, 0] * math.sqrt(v) for p, v in zip(places, c)])
    scale = c.sqrt().clamp(min=1e-300)
    gap = (w @ w.mT - torch.minimum(c[:, None], c[None])) / (scale[:, None] * scale[None])
    assert len(units.nodes) <= units.rows
    assert gap.nan_to_num().abs().max() < 1e-9
    assert (w @ w.mT - torch.minimum(c[:, None], c[None])).abs().max() < 1e-12 * c.max()


def test_inside_of_a_cell_the_variance_is_at_most_one(monkeypatch):
    """And falls to zero with the step, so that a step that is shortened ever more sees a smooth path."""
    units = Units()
    units.rows = 200
    monkeypatch.setattr(sys.modules["sdegen.noise.normals"], "normals", units)
    path = Brownian(torch.zeros(200, dtype=torch.int64), span=(0.0, 1.0), depth=3)
    x = torch.zeros(200, 1, dtype=F64)
    at = [GENERAL.level(v) for v in (0.2501, 0.28, 0.31, 0.3100001, 0.374)]
    variance = [[float(path(x, a, b).square().sum()) for b in at] for a in at]
    assert max(max(row) for row in variance) <= 1 + 1e-12
    assert variance[2][3] < 1e-3
    assert all(row[i] == 0 for i, row in enumerate(variance))


@KIND
def test_steps_add_up_and_turn_round(process, clock):
    path = Brownian(noises.seeds(1, 7), process, clock=clock)
    x = torch.zeros(7, 3, dtype=F64)
    for shares in ((0.9, 0.5, 0.1), (0.0, 0.3, 1.0), (0.4, 0.4 + 1e-6, 0.4 + 2e-6), (1.0, 1 / 3, 0.0), (0.2, 0.8, 0.5)):
        a, b, c = (level(process, share) for share in shares)

        def w(p, q):
            return path(x, p, q) * math.sqrt(abs(clock_of(clock, q) - clock_of(clock, p)))

        size = math.sqrt(max(abs(clock_of(clock, p) - clock_of(clock, a)) for p in (b, c)))
        whole = math.sqrt(abs(clock_of(clock, level(process, 1.0)) - clock_of(clock, level(process, 0.0))))
        assert (w(a, c) - w(a, b) - w(b, c)).abs().max() < 1e-10 * size + 1e-13 * whole
        torch.testing.assert_close(path(x, b, a), -path(x, a, b), rtol=0, atol=1e-13)
        assert not path(x, a, a).any()


@pytest.mark.parametrize("shares", [(0.4, 0.4), (0.4, 0.4 + 1e-15)])
def test_a_step_of_no_length_is_no_noise(shares):
    path, x = Brownian(noises.seeds(1, 3), sd.VP(), clock=data_clock), torch.zeros(3, 2)
    a, b = (level(sd.VP(), share) for share in shares)
    assert path(x, a, b).abs().max() < 1.0
    rows = sd.VP().level(torch.tensor([0.3, 0.4, 0.5], dtype=F64))
    other = sd.VP().level(torch.tensor([0.3, 0.2, 0.5], dtype=F64))
    z = path(x, rows, other)
    assert not z[[0, 2]].any()
    assert z[1].abs().min() > 0


def test_the_suite_of_noise_sources():
    testing.check_noise(lambda seeds: Brownian(seeds, sd.VP()), path=True)


@pytest.mark.slow
def test_the_suite_of_noise_sources_in_another_clock():
    """But for the sum of steps, which the suite takes in t, and bits of a time per row: a clock's exp is rounded."""
    left_out = ("path", "fresh", "levels_per_row")
    names = [check.prop.name for check in testing.checks(sd.White) if check.prop.name not in left_out]
    testing.check_noise(lambda seeds: Brownian(seeds, sd.VP(), clock=data_clock), path=True, only=names)


@KIND
def test_rows_batches_and_times_per_row_change_no_bit(process, clock):
    seeds = noises.seeds(3, 6)
    path, x = Brownian(seeds, process, clock=clock), torch.zeros(6, 2, 2)
    span = process.t_max - process.t_min
    times = [process.t_min + span * torch.tensor(v, dtype=F64) for v in ([0.9, 0.8, 0.5, 1.0, 0.3, 0.5], 6 * [0.125])]
    z = path(x, *(process.level(t) for t in times))
    for i in range(6):
        one = path.rows(torch.tensor([i]))(x[:1], *(process.level(t[i]) for t in times))
        assert torch.equal(one, z[i : i + 1])
    index = torch.tensor([4, 1])
    both = path.rows(index)(x[:2], *(process.level(t[index]) for t in times))
    assert torch.equal(both, z[index])
    mixed = path(x, process.level(times[0]), process.level(times[1][0]))
    assert torch.equal(mixed, z)


def test_large_and_small_draws_have_the_same_bits():
    """However many nodes are drawn at once."""
    seeds, (a, b) = noises.seeds(0, 2), (sd.VP().level(0.7), sd.VP().level(0.4))
    large = Brownian(seeds, sd.VP())(torch.zeros(2, 70_000), a, b)
    small = Brownian(seeds, sd.VP())(torch.zeros(2, 5), a, b)
    assert torch.equal(large[:, :5], small)


@pytest.mark.slow
def test_twenty_thousand_queries_in_any_order_are_one_function():
    """No state: the first, the last and a fresh object agree in every bit, and memory does not grow."""
    times = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    seeds = noises.seeds(5, 1).expand(20_000)
    x = torch.zeros(20_000, 1, dtype=F64)
    path = Brownian(seeds, span=(0.0, 1.0))
    whole = path(x, GENERAL.level(times[:, 0]), GENERAL.level(times[:, 1]))
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(1))
    again = path(x, GENERAL.level(times[order, 0]), GENERAL.level(times[order, 1]))
    assert torch.equal(again, whole[order])
    single, few = Brownian(seeds[:1], span=(0.0, 1.0)), 600
    for k in order[:few].tolist():
        assert torch.equal(single(x[:1], GENERAL.level(times[k, 0]), GENERAL.level(times[k, 1])), whole[k : k + 1])


@pytest.mark.slow
def test_nothing_is_kept_between_queries():
    path, x = Brownian(noises.seeds(5, 2), sd.VP()), torch.zeros(2, 3)
    levels = [sd.VP().level(t) for t in torch.linspace(0.01, 1.0, 100, dtype=F64)]

    def alive():
        gc.collect()
        return sum(type(o) is Tensor for o in gc.get_objects())

    path(x, levels[0], levels[1])
    before = alive()
    for a, b in zip(levels, levels[1:]):
        path(x, a, b)
    assert alive() == before
    assert vars(path).keys() == {"seeds", "process", "span", "clock", "depth"}


@pytest.mark.slow
def test_seeds_and_tags_are_independent_paths():
    """200,000 pairs: a correlation above 6.5/sqrt(n) = 0.0145 has a false-positive rate of 8e-11 each.

    A correlation of 0.03 would be missed with a probability below 1e-11.
    """
    n, (a, b, c) = 200_000, (sd.VP().level(t) for t in (0.9, 0.5, 0.2))
    x = torch.zeros(n, 1, dtype=F64)
    path = Brownian(noises.seeds(9, n), sd.VP(), depth=12)
    z = path(x, a, b)
    for other in (path(x, a, b, 1), path(x, b, c), path(x, b, c, 1), z.roll(1, 0), sd.White(path.seeds)(x, a, b)):
        assert abs(float((z * other).mean())) < 6.5 / math.sqrt(n)
        assert abs(float(((z * z - 1) * (other * other - 1)).mean())) < 6.5 * 2 / math.sqrt(n)
    # steps that share half of their time have the correlation sqrt(1/2) of one path
    half = path(x, a, sd.VP().level(0.7))
    assert abs(float((z * half).mean()) - math.sqrt(0.5)) < 6.5 * math.sqrt(1.5 / n)


def test_dtype_device_and_copies():
    path = Brownian(noises.seeds(0, 3), sd.VP(), clock=functools.partial(data_clock, eta=0.7))
    a, b = sd.VP().level(0.9), sd.VP().level(0.6)
    z = path(torch.zeros(3, 4, dtype=F64), a, b)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(path(torch.zeros(3, 4, dtype=dtype), a, b), z.to(dtype))
    for twin in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert torch.equal(twin(torch.zeros(3, 4, dtype=F64), a, b), z)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: path(torch.zeros(3, 4, dtype=F64), a, b), range(40)))
    assert all(torch.equal(other, z) for other in found)
    assert path(torch.zeros(3, 0), a, b).shape == (3, 0)
    assert Brownian(noises.seeds(0, 0), sd.VP())(torch.zeros(0, 2), a, b).shape == (0, 2)


def test_gradients_of_times_end_here():
    t = torch.tensor(0.6, dtype=F64, requires_grad=True)
    a = Level(t, t * 1, t * 2)
    assert not Brownian(noises.seeds(0, 2), sd.VP())(torch.zeros(2, 1), a, sd.VP().level(0.2)).requires_grad


@pytest.mark.parametrize("kind", ["VP in t", "bisection as DATA"])
def test_no_value_is_read_on_the_host(kind):
    process, clock = KINDS[kind]
    mode = FakeTensorMode()
    path = Brownian(mode.from_tensor(noises.seeds(0, 3)), process, clock=clock)
    now, next = (Level(*map(mode.from_tensor, level(process, share))) for share in (0.8, 0.3))
    with mode:
        assert path(torch.zeros(3, 2, device="cpu"), now, next).shape == (3, 2)


@pytest.mark.slow
def test_compiled_code_draws_the_same():
    path, (a, b) = Brownian(noises.seeds(0, 3), sd.VP(), depth=6), (sd.VP().level(0.8), sd.VP().level(0.3))
    draw = torch.compile(lambda x, now, next: path(x, Level(*now), Level(*next)), fullgraph=True, backend="aot_eager")
    x = torch.zeros(3, 2, dtype=F64)
    assert torch.equal(draw(x, tuple(a), tuple(b)), path(x, a, b))


def test_outside_of_the_span():
    path, x = Brownian(noises.seeds(0, 2), span=(0.0, 1.0)), torch.zeros(2, 1, dtype=F64)
    at = GENERAL.level
    with pytest.raises(InvalidArgumentError, match="outside of the Brownian path's span"):
        path(x, at(1.001), at(0.5))
    with pytest.raises(InvalidArgumentError, match="outside of the Brownian path's span"):
        path(x, at(0.5), at(-0.001))
    assert torch.equal(path(x, at(1.0 + 1e-12), at(0.5)), path(x, at(1.0), at(0.5)))
    rows = path(x, at(torch.tensor([1.5, 1.0], dtype=F64)), at(torch.tensor([0.5, 0.5], dtype=F64)))
    assert torch.equal(rows, path(x, at(1.0), at(0.5)))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, InvalidArgumentError, "needs a span"),
        ({"process": 3}, InvalidTypeError, "must be an SDE"),
        ({"span": (1.0, 0.0)}, InvalidArgumentError, "t_min < t_max"),
        ({"span": (0.0, 1.0), "depth": 0}, InvalidArgumentError, "depth"),
        ({"span": (0.0, 1.0), "depth": 60}, InvalidArgumentError, "depth"),
        ({"span": (0.0, 1.0), "clock": 1.0}, InvalidTypeError, "clock"),
    ],
)
def test_mistakes(arguments, error, match):
    with pytest.raises(error, match=match):
        Brownian(noises.seeds(0, 2), **arguments)


def test_seeds_and_rows_are_checked():
    with pytest.raises(InvalidTypeError, match="seeds"):
        Brownian(torch.zeros(2), sd.VP())
    with pytest.raises(InvalidArgumentError, match="one row per seed"):
        Brownian(noises.seeds(0, 2), sd.VP())(torch.zeros(3, 1), sd.VP().level(0.5), sd.VP().level(0.2))
