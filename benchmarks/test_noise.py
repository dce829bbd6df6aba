"""Keyed normals beside torch's generators, in one run: a batch of 256 samples of 3072 elements."""

import pytest
import torch

from sdegen import noise

B, D = 256, 3072

pytestmark = pytest.mark.benchmark(group=f"normals, {B} x {D}")


def test_keyed(benchmark):
    seeds = noise.seeds(0, B)
    z = benchmark(lambda: noise.normals(seeds, (D,), (1, 2, 3, 4), dtype=torch.float32))
    assert z.shape == (B, D)


def test_keyed_compiled(benchmark):
    seeds = noise.seeds(0, B)
    words = tuple(torch.arange(4))
    compiled = torch.compile(lambda: noise.normals(seeds, (D,), words, dtype=torch.float32), fullgraph=True)
    compiled()
    assert benchmark(compiled).shape == (B, D)


def test_torch_randn(benchmark):
    assert benchmark(lambda: torch.randn(B, D)).shape == (B, D)


def test_torch_generator_per_sample(benchmark):
    seeds = noise.seeds(0, B).tolist()
    generator = torch.Generator()
    z = benchmark(lambda: torch.stack([torch.randn(D, generator=generator.manual_seed(s)) for s in seeds]))
    assert z.shape == (B, D)
