"""Noise: published vectors, a plain-Python oracle, independence of the batch to the bit, the law and planted faults."""

import dataclasses
import importlib
import itertools
import math
import random
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

noise = importlib.import_module("sdegen.noise.normals")  # the module, beside its function of that name
MASK = 0xFFFFFFFF
word = st.integers(0, MASK)
int64 = st.integers(-(2**63), 2**63 - 1)


class Level(NamedTuple):
    """All of a level that noise reads."""

    t: torch.Tensor


def level(t):
    return Level(torch.as_tensor(t, dtype=torch.float64))


def white(n, seed=0, start=0):
    return noise.White(noise.seeds(seed, n, start))


def tensors(*values):
    return tuple(torch.tensor(v, dtype=torch.int64) for v in values)


def python_philox(key, counter):
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def python_normal(seed, words, tag, index):
    h = python_philox(words[:2], (*words[2:], 0, 0))
    w = python_philox((seed & MASK, (seed >> 32) & MASK), (index // 4, tag, *h[:2]))
    u, v = ((w[index % 4 // 2 * 2 + i] + 0.5) / 2**32 for i in (0, 1))
    return math.sqrt(-2 * math.log(u)) * (math.cos, math.sin)[index % 2](2 * math.pi * v)


# Philox: the known answers of the Random123 distribution (Salmon et al. 2011), philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK, MASK), (MASK, MASK, MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_philox_known_answers(key, counter, answer):
    assert tuple(int(w) for w in noise.philox(tensors(*key), tensors(*counter))) == answer
    assert python_philox(key, counter) == answer


def test_philox_known_answers_as_a_batch():
    keys, counters, answers = (torch.tensor(column).T for column in zip(*KNOWN, strict=True))
    assert torch.equal(torch.stack(noise.philox(tuple(keys), tuple(counters))), answers)


@given(st.tuples(word, word), st.tuples(word, word, word, word))
def test_philox_is_the_integer_algorithm(key, counter):
    assert tuple(int(w) for w in noise.philox(tensors(*key), tensors(*counter))) == python_philox(key, counter)


@pytest.mark.parametrize("wide", range(6))
def test_philox_broadcasts(wide):
    # Every argument in turn is the wide one: in-place steps must never meet a shape that they cannot hold.
    row = torch.tensor([0, 1, 7, MASK])
    arguments = [torch.tensor(5 + i) for i in range(6)]
    arguments[wide] = row
    arguments[(wide + 1) % 6] = torch.tensor([[3], [MASK]])
    before = [a.clone() for a in arguments]
    out = torch.stack(noise.philox(tuple(arguments[:2]), tuple(arguments[2:])))
    full = torch.broadcast_tensors(*arguments)
    assert out.shape == (4, 2, 4)
    assert all(map(torch.equal, arguments, before)), "the arguments were edited"
    for i, j in itertools.product(range(2), range(4)):
        values = [int(a[i, j]) for a in full]
        assert tuple(out[:, i, j].tolist()) == python_philox(values[:2], values[2:])


# Seeds
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 9), st.integers(0, 8))
def test_seeds_are_a_pure_function_of_seed_and_index(seed, start, n):
    got = noise.seeds(seed, n, start)
    assert got.shape == (n,)
    assert got.dtype == torch.int64
    for i, value in enumerate(got.tolist(), start):
        low, high, _, _ = python_philox((seed & MASK, seed >> 32), (i & MASK, i >> 32, MASK, MASK))
        assert value == (low | high << 32) % 2**63 >= 0


def test_seeds_do_not_depend_on_the_batch():
    everything = noise.seeds(3, 100)
    assert torch.equal(torch.cat([noise.seeds(3, 7, 0), noise.seeds(3, 93, 7)]), everything)
    far = noise.seeds(3, 4, 2**32 - 2)
    assert torch.equal(noise.seeds(3, 2, 2**32), far[2:])
    assert not set(far.tolist()) & set(everything.tolist()), "ids beyond 2^32 wrap"


def test_all_64_bits_of_a_seed_count():
    families = [noise.seeds(s, 50) for s in (0, 1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1)]
    assert len(torch.cat(families).unique()) == 50 * len(families)
    patterns = [0] + [1 << b for b in range(63)] + [-(2**63)]
    draws = noise.normals(torch.tensor(patterns), (4,), (1, 2, 3, 4), dtype=torch.float32)
    assert len(draws.unique(dim=0)) == len(patterns)


def test_seeds_are_uniform():
    n, family = 100_000, 1e-9
    bits = (noise.seeds(0, n)[:, None] >> torch.arange(63)) & 1
    # Exact: each bit's count is Binomial(n, 1/2). Power: a bias of 1.5% in any bit is caught with probability 0.999.
    limit = scipy.stats.binom.isf(family / 63 / 2, n, 0.5) - n / 2
    assert (bits.sum(0) - n / 2).abs().max() <= limit
    assert len(noise.seeds(0, n).unique()) == n  # a collision has probability n^2 / 2^64 < 1e-9


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, torch.tensor(1), np.float64(1), [1]])
@pytest.mark.parametrize("name", ["seed", "n", "start"])
def test_rejects_seeds_that_are_not_integers(name, bad):
    with pytest.raises(TypeError, match=rf"^{name} must be an int, got .*{type(bad).__name__}.*; pass a plain integer"):
        noise.seeds(**{"seed": 0, "n": 1, name: bad})


@pytest.mark.parametrize("bad", [-1, 2**63, 2**64])
@pytest.mark.parametrize("name", ["seed", "n", "start"])
def test_rejects_seeds_out_of_range(name, bad):
    with pytest.raises(ValueError, match=rf"^{name} must be in 0 .. 2\*\*63 - 1, got {bad}"):
        noise.seeds(**{"seed": 0, "n": 1, name: bad})


def test_rejects_an_index_that_does_not_fit():
    with pytest.raises(ValueError, match=r"start \+ n must be below 2\*\*63"):
        noise.seeds(0, 2, 2**63 - 2)
    assert torch.equal(noise.seeds(np.int64(5), np.uint8(3)), noise.seeds(5, 3))


# Normals
@settings(max_examples=50)
@given(int64, st.tuples(word, word, word, word), word, st.integers(0, 40))
def test_normals_are_the_formula(seed, words, tag, index):
    got = noise.normals(torch.tensor([seed]), (index + 1,), words, tag, dtype=torch.float64)[0, -1].item()
    assert got == float(np.float32(got)), "not rounded to float32"
    assert math.isclose(got, python_normal(seed, words, tag, index), rel_tol=2**-23, abs_tol=1e-15)


def test_normals_are_finite_at_the_ends_of_the_words():
    ends = [torch.tensor([[w]]) for w in (0, 1, 2**31, MASK)]
    draws = torch.cat([noise._box_muller(words) for words in itertools.product(ends, repeat=4)])
    assert draws.isfinite().all()
    assert 6.76 < draws.abs().max() < 6.77


@given(st.permutations(range(7)), st.integers(0, 7))
def test_a_row_does_not_depend_on_the_batch(order, cut):
    seeds, words = noise.seeds(1, 7), tuple(torch.arange(28).reshape(4, 7))
    whole = noise.normals(seeds, (3, 5), words, dtype=torch.float32)

    def rows(index):
        return noise.normals(seeds[index], (3, 5), tuple(w[index] for w in words), dtype=torch.float32)

    assert torch.equal(rows(list(order)), whole[list(order)])
    assert torch.equal(torch.cat([rows(slice(None, cut)), rows(slice(cut, None))]), whole)
    assert torch.equal(torch.cat([rows(slice(i, i + 1)) for i in range(7)]), whole)


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_smaller_sample_is_a_prefix(small, large):
    small, large = sorted((small, large))
    few, many = (noise.normals(noise.seeds(0, 3), (d,), (1, 2, 3, 4), dtype=torch.float32) for d in (small, large))
    assert torch.equal(few, many[:, :small])


def test_only_the_flat_index_decides():
    source, now, next = white(4), level(1.0), level(0.5)
    flat = source(torch.zeros(4, 24), now, next)
    layouts = [
        torch.zeros(4, 2, 3, 4),
        torch.zeros(4, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.zeros(4, 3, 2, 4).transpose(1, 2),
        torch.zeros(()).expand(4, 2, 3, 4),
        torch.zeros(4, 2, 3, 8)[..., ::2],
        torch.full((4, 2, 3, 4), math.nan),
    ]
    for x in layouts:
        z = source(x, now, next)
        assert z.shape == x.shape
        assert z.is_contiguous()
        assert torch.equal(z.reshape(4, 24), flat)
    strided = noise.White(noise.seeds(0, 8)[::2])
    assert torch.equal(strided(flat, now, next), noise.White(strided.seeds.clone())(flat, now, next))


def test_dtypes_share_their_noise():
    source, now, next = white(5), level(1.0), level(0.5)
    exact = source(torch.zeros(5, 99, dtype=torch.float64), now, next)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        z = source(torch.zeros(5, 99, dtype=dtype), now, next)
        assert z.dtype == dtype
        assert torch.equal(z, exact.to(dtype))
    assert torch.equal(exact.float().double(), exact)


def test_threads_and_repetition_change_nothing():
    source, x, now, next = white(64), torch.zeros(64, 1001), level(1.0), level(0.5)
    threads, once = torch.get_num_threads(), source(x, now, next)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(source(x, now, next), once)
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(z, once) for z in pool.map(lambda _: source(x, now, next), range(8)))


def test_no_global_generator_moves():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    white(3)(torch.zeros(3, 10), level(1.0), level(0.5), tag=2)
    assert states() == before
    torch.manual_seed(7)
    a = white(3)(torch.zeros(3, 10), level(1.0), level(0.5))
    torch.manual_seed(8)
    assert torch.equal(a, white(3)(torch.zeros(3, 10), level(1.0), level(0.5)))


def test_every_part_of_the_key_counts():
    x = torch.zeros(2, 6)
    times = [0.0, 5e-324, 0.5, math.nextafter(0.5, 1), 1.0, 1000.0]
    draws = [
        white(2, seed)(x, level(now), level(next), tag)
        for seed, now, next, tag in itertools.product((0, 1), times, times, (0, 1, MASK))
    ]
    rows = torch.stack(draws).reshape(-1, 6)
    assert len(rows.unique(dim=0)) == len(rows)


def test_zeros_of_either_sign_are_one_time():
    x, source = torch.zeros(2, 6), white(2)
    assert torch.equal(source(x, level(1.0), level(-0.0)), source(x, level(1.0), level(0.0)))
    assert torch.equal(source(x, level(-0.0), level(1.0)), source(x, level(0.0), level(1.0)))


def test_levels_may_differ_by_sample():
    times = torch.tensor([0.1, 0.2, 0.3, 0.2], dtype=torch.float64)
    z = white(4)(torch.zeros(4, 5), level(times), level(times / 2))
    for i, t in enumerate(times):
        assert torch.equal(white(1, start=i)(torch.zeros(1, 5), level(t), level(t / 2))[0], z[i])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3,), (3, 0), (3, 2, 0), (1, 1), (3, 1)])
def test_small_and_empty_shapes(shape):
    z = white(shape[0])(torch.zeros(shape), level(1.0), level(0.5))
    assert z.shape == shape
    assert z.isfinite().all()


def test_noise_carries_no_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    assert not white(2)(x, level(torch.tensor(1.0, requires_grad=True)), level(0.5)).requires_grad


def test_white_is_immutable_and_compared_by_identity():
    a, b = white(2), white(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.seeds = b.seeds
    assert a != b
    assert len({a, b, a}) == 2


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        ([1, 2], TypeError, r"seeds must be a tensor of one int64 per sample, got list"),
        (5, TypeError, r"got int; make them with sdegen\.noise\.seeds"),
        (torch.zeros(2), TypeError, r"seeds must be int64, got torch\.float32"),
        (torch.zeros(2, dtype=torch.int32), TypeError, r"seeds must be int64, got torch\.int32"),
        (torch.tensor(1), ValueError, r"shape \[B\], one per sample, got \[\]"),
        (torch.ones(2, 3, dtype=torch.int64), ValueError, r"shape \[B\], one per sample, got \[2, 3\]"),
    ],
)
def test_rejects_invalid_seeds(seeds, error, message):
    with pytest.raises(error, match=message):
        noise.White(seeds)
    with pytest.raises(error, match=message):
        noise.normals(seeds, (2,), (0, 0, 0, 0), dtype=torch.float32)


@pytest.mark.parametrize("shape", [(), (1, 3), (3,)])
def test_rejects_a_batch_of_another_size(shape):
    with pytest.raises(ValueError, match=r"x must have one row per seed: got x of shape .* and 2 seeds"):
        white(2)(torch.zeros(shape), level(1.0), level(0.5))


def test_rejects_invalid_dtypes_and_tags():
    with pytest.raises(TypeError, match=r"must be floating, got torch\.int64"):
        white(2)(torch.zeros(2, 3, dtype=torch.int64), level(1.0), level(0.5))
    with pytest.raises(TypeError, match=r"tag must be an int, got 0\.5"):
        white(2)(torch.zeros(2, 3), level(1.0), level(0.5), tag=0.5)
    for tag in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"tag must be in 0 .. 2\*\*32 - 1, got {tag}"):
            white(2)(torch.zeros(2, 3), level(1.0), level(0.5), tag=tag)


# Tracing
def step(seeds, x, now, next):
    return noise.White(seeds)(x, Level(now), Level(next), tag=3)


TRACED = [torch.arange(6) - 3, torch.zeros(6, 1001), torch.tensor(1.0).double(), torch.tensor(-0.0).double()]


def test_no_host_sync():
    with FakeTensorMode() as mode:
        z = step(*(mode.from_tensor(a) for a in TRACED))
        assert z.shape == (6, 1001)
        assert z.dtype == torch.float32


def within_an_ulp(a, b):
    # One draw in 10^8 may differ, by float32's last bit, where another float64 logarithm or sine straddles a boundary.
    return torch.allclose(a, b, rtol=2**-22, atol=1e-12) and (a != b).sum() <= 1


def test_one_graph():
    torch._dynamo.reset()
    traced = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(*TRACED), step(*TRACED))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_equals_eager():
    # Random rows beside an index: inductor has got both wrong, by an overflow in C++ and by 32-bit steps of the index.
    torch._dynamo.reset()
    words = tensors(0, 1, 2, 3)

    def blocks(seeds, *words):
        a0, a1, a2, a3 = (word[:, None] for word in noise.philox(noise.halves(seeds), words))
        block = torch.arange(32)
        return torch.stack(noise.philox((a0, a1), (block, torch.zeros_like(block), a2, a3)), -1)

    rows = noise.seeds(0, 32)
    assert torch.equal(torch.compile(blocks, fullgraph=True)(rows, *words), blocks(rows, *words))
    inputs = [rows, torch.zeros(32, 129), *TRACED[2:]]
    assert within_an_ulp(torch.compile(step, fullgraph=True)(*inputs), step(*inputs))


# The law. Every test below has an exact null distribution (or a bound that holds at every n), and all of them together
# reject true unit normals with probability below FAMILY. Power at n = 2^20 with 80 tests (6.8 standard errors),
# with probability of detection above 0.999: a mean off by 0.010; a scale off by 0.7%; a distribution function off by
# 0.0055; a correlation of 0.022 between neighbours along any axis, and one of 0.014 between "larger than the median".
FAMILY = 1e-9
MEDIAN = float(scipy.stats.norm.ppf(0.75))


def draw():
    x, tags, times = torch.zeros(32, 1024), (0, 1), torch.linspace(1.0, 0.1, 17, dtype=torch.float64)
    # Consecutive sample seeds: the nearest keys that there are.
    source = noise.White(torch.arange(32))
    steps = [[source(x, level(a), level(b), tag) for tag in tags] for a, b in itertools.pairwise(times)]
    return torch.stack([torch.stack(row) for row in steps]).permute(2, 0, 1, 3).double()


def p_values(z):
    """P-values under independent unit normals, of z with axes (seed, step, tag, element)."""
    n, flat = z.numel(), z.flatten().numpy()

    def two_sided(law, count):
        return 2 * min(law.cdf(count), law.sf(count - 1))

    p = {"mean": 2 * scipy.stats.norm.sf(abs(flat.sum()) / math.sqrt(n))}
    energy = scipy.stats.chi2(n)
    p["variance"] = 2 * min(energy.cdf((flat**2).sum()), energy.sf((flat**2).sum()))
    for edge in (2.0, 3.0, 4.0):
        tail = scipy.stats.binom(n, 2 * scipy.stats.norm.sf(edge))
        p[f"beyond {edge}"] = two_sided(tail, (abs(flat) > edge).sum())
    # Massart's constant in the inequality of Dvoretzky, Kiefer and Wolfowitz.
    p["law"] = 2 * math.exp(-2 * n * scipy.stats.kstest(flat, "norm").statistic ** 2)

    # Signs and "larger than the median magnitude" are fair coins, so agreements over disjoint pairs are binomial.
    for bit, coins in {"sign": z > 0, "magnitude": z.abs() > MEDIAN}.items():
        for axis, name in enumerate(("seed", "step", "tag", "element")):
            for lag, shift in itertools.product((1, 2, 4, 8), (0, 1, 2)):
                if 2 * lag > z.shape[axis] or (shift and z.shape[axis] == 2):
                    continue
                first, second = coins.roll(-shift, axis).unflatten(axis, (-1, 2, lag)).unbind(axis + 1)
                pairs = scipy.stats.binom(n // 2, 0.5)
                p[f"{bit} {name} {lag} {shift}"] = two_sided(pairs, int((first == second).sum()))
    return p


def rejected(z):
    p = p_values(z)
    return {name for name, value in p.items() if value < FAMILY / len(p)}


def test_the_law_of_the_noise():
    z = draw()
    assert z.numel() == 2**20
    assert rejected(z) == set()


def shared_radius(words, right=noise._box_muller):
    return right((words[0], words[1], words[0], words[3]))


def wrong_factor(words, right=noise._box_muller):
    return right(words) * math.sqrt(1.95 / 2)


def wrong_mean(words, right=noise._box_muller):
    return right(words) + 0.01


def half_turn(words, right=noise._box_muller):
    return right((words[0], words[1] // 2, words[2], words[3] // 2))


def short_words(words, right=noise._box_muller):
    return right(tuple(w & ~0xFFFFF for w in words))


def coarse_values(words, right=noise._box_muller):
    return (right(words) * 32).round() / 32


def cut_tail(words, right=noise._box_muller):
    return right(words).clamp(-3.9, 3.9)


def without(index):
    def faulty(key, counter, right=noise.philox):
        return right(key, tuple(c * (i != index) for i, c in enumerate(counter)))

    return faulty


def few_seeds(key, counter, right=noise.philox):
    return right((key[0] & ~1, key[1]), counter)


@pytest.mark.parametrize(
    ("attribute", "fault", "symptom"),
    [
        ("_box_muller", wrong_factor, "variance"),
        ("_box_muller", wrong_mean, "mean"),
        ("_box_muller", half_turn, "mean"),
        ("_box_muller", shared_radius, "magnitude element 2 0"),
        ("_box_muller", short_words, "beyond 4.0"),
        ("_box_muller", coarse_values, "law"),
        ("_box_muller", cut_tail, "beyond 4.0"),
        ("philox", without(0), "sign element 4 0"),  # the block
        ("philox", without(1), "sign tag 1 0"),
        ("philox", few_seeds, "sign seed 1 0"),
    ],
)
def test_planted_faults_are_caught(monkeypatch, attribute, fault, symptom):
    monkeypatch.setattr(sys.modules["sdegen.noise.normals"], attribute, fault)
    assert symptom in rejected(draw())


def test_a_planted_repeated_step_is_caught():
    z = draw()
    z[:, 1::2] = z[:, ::2]
    assert {"sign step 1 0", "magnitude step 1 0"} <= rejected(z)


@given(word, word, word, word)
@settings(max_examples=30)
def test_integers_tensors_and_a_mix_give_the_same_words(a, b, c, d):
    """A time on the host is hashed as an integer, one on a device or in a batch as a tensor: the same noise."""
    ints = noise.philox((a, b), (c, d, 0, 0))
    assert ints == python_philox((a, b), (c, d, 0, 0))
    assert [int(v) for v in noise.philox(tensors(a, b), (*tensors(c, d), 0, 0))] == list(ints)
    seeds = noise.seeds(3, 4)
    plain = noise.normals(seeds, (5,), (a, b, c, d), dtype=torch.float32)
    assert torch.equal(noise.normals(seeds, (5,), tensors(a, b, c, d), dtype=torch.float32), plain)
    rows = tuple(v.expand(4) for v in tensors(a, b, c, d))
    assert torch.equal(noise.normals(seeds, (5,), rows, dtype=torch.float32), plain)
