"""Noise by seed beside torch's generators: white noise of a batch, and Brownian increments of 20 steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdegen as sd
from sdegen import noise

SHAPES = ((256, 3072), (64, 64))
STEPS = 20
EDM = sd.EDM()
TIMES = sd.grids.karras(EDM, STEPS)
Make = Callable[[], Callable[[], Any]]


def white(shape: tuple[int, ...]) -> dict[str, Make]:
    """Normals of one step for a batch."""
    seeds, x = noise.seeds(0, shape[0]), torch.empty(shape)
    whole, now, after = sd.White(seeds), EDM.level(TIMES[0]), EDM.level(TIMES[1])
    generator = torch.Generator()

    def keyed() -> Tensor:
        return noise.normals(seeds, shape[1:], tuple(torch.arange(4)), dtype=torch.float32)

    def compiled() -> Callable[[], Any]:
        words: Any = tuple(torch.arange(4))
        return torch.compile(lambda: noise.normals(seeds, shape[1:], words, dtype=torch.float32), fullgraph=True)

    def per_sample() -> Tensor:
        rows = [torch.randn(shape[1:], generator=generator.manual_seed(s)) for s in seeds.tolist()]
        return torch.stack(rows)

    def numpy_philox() -> Tensor:
        each = [np.random.Generator(np.random.Philox(key=s)) for s in seeds.tolist()]
        return torch.from_numpy(np.stack([g.standard_normal(shape[1:], dtype=np.float32) for g in each]))

    return {
        "torch.randn": lambda: lambda: torch.randn(shape),
        "sdegen White": lambda: lambda: whole(x, now, after),
        "sdegen noise.normals": lambda: keyed,
        "sdegen noise.normals, compiled": compiled,
        "a torch.Generator per sample": lambda: per_sample,
        "a numpy Philox per sample": lambda: numpy_philox,
    }


def brownian(shape: tuple[int, ...]) -> dict[str, Make]:
    """A path's increments over the steps of a grid, the path made anew; torch.randn is no path."""
    x, levels = torch.zeros(shape), [EDM.level(t) for t in TIMES]
    spans = [(float(b), float(a)) for a, b in zip(TIMES[:-1], TIMES[1:])]
    ends = float(TIMES[-1]), float(TIMES[0])

    def ours() -> Tensor:
        path = sd.Brownian(noise.seeds(0, shape[0]), EDM)
        return sum((path(x, a, b) for a, b in zip(levels, levels[1:])), x)

    def torchsde_paths(name: str, each: bool) -> Make:
        def made() -> Callable[[], Any]:
            import torchsde

            def path(size: tuple[int, ...], seed: int) -> Callable[[float, float], Tensor]:
                if name == "BrownianTree":
                    found = torchsde.BrownianTree(t0=ends[0], w0=torch.zeros(size), t1=ends[1], entropy=seed)
                else:
                    found = torchsde.BrownianInterval(t0=ends[0], t1=ends[1], size=size, entropy=seed)
                return lambda a, b: found(a, b)

            def run() -> Tensor:
                if not each:
                    whole = path(shape, 0)
                    return sum((whole(*span) for span in spans), x)
                paths = [path(shape[1:], seed) for seed in range(shape[0])]
                return sum((torch.stack([one(*span) for one in paths]) for span in spans), x)

            return run

        return made

    return {
        "torch.randn": lambda: lambda: sum((torch.randn(shape) for _ in spans), x),
        "sdegen Brownian": lambda: ours,
        "torchsde BrownianInterval": torchsde_paths("BrownianInterval", False),
        "torchsde BrownianTree": torchsde_paths("BrownianTree", False),
        "a torchsde BrownianTree per sample": torchsde_paths("BrownianTree", True),
    }


GROUPS: dict[str, dict[str, Make]] = {
    **{f"noise, white, {'x'.join(map(str, shape))}": white(shape) for shape in SHAPES},
    f"noise, Brownian path of {STEPS} steps, 64x64": brownian((64, 64)),
}


def test_noise(beside: Callable[[], None]) -> None:
    """Whole batches."""
    beside()
