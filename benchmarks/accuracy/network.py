"""A small network trained by denoising score matching on handwritten digits: a real, imperfect score."""

from __future__ import annotations

import math
import sys
import time

import torch
from torch import Tensor, nn

from sdegen.bench.problems import handwritten

from .cache import kept

SCALE = 0.5
"""The standard deviation of the training data, and the network's sigma_data."""
WIDTH, BLOCKS, SEED = 256, 5, 0
STEPS, BATCH = 8_000, 128
NAME = f"net-{WIDTH}x{BLOCKS}-{STEPS}-{SEED}"


def digits(scale: float) -> Tensor:
    """scikit-learn's handwritten digits `[1797, 64]`, of mean 0 and standard deviation `scale` over all pixels."""
    return handwritten() * scale


class MLP(nn.Module):
    """EDM's F: residual blocks that take `log(s)/4` through random Fourier features (Karras et al. 2022, table 1)."""

    frequencies: Tensor

    def __init__(self, dim: int = 64, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(1, 17) * 0.5)
        self.enter = nn.Linear(dim, width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Linear(width, dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """F `[B, 64]` at the scaled state x `[B, 64]` and `log(s)/4` `[B]`."""
        angle = time[:, None] * self.frequencies * (math.pi / 2)
        embedded = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h + embedded)
        return self.leave(h)  # type: ignore[no-any-return]


def _train() -> dict[str, Tensor]:
    """About five minutes on one core; the weights are an average over training (Karras et al. 2022, app. F)."""
    began, data = time.perf_counter(), digits(SCALE).float()
    random = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(SEED)
        net, mean = MLP(), MLP()
        mean.load_state_dict(net.state_dict())
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 200) * (1 - step / STEPS)
            clean = data[torch.randint(len(data), (BATCH,), generator=random)]
            s = torch.exp(-0.8 + 1.6 * torch.randn(BATCH, 1, generator=random))
            noise = torch.randn(clean.shape, generator=random)
            norm = torch.sqrt(s * s + SCALE * SCALE)
            target = (clean - SCALE * SCALE / norm**2 * (clean + s * noise)) * norm / (s * SCALE)
            loss = (net((clean + s * noise) / norm, s[:, 0].log() / 4) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                for average, value in zip(mean.parameters(), net.parameters()):
                    average.lerp_(value, max(5e-4, 1 / (step + 1)))
            if step % 1000 == 999:
                print(f"net: {step + 1} steps, loss {loss:.4f}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return {name: value.detach() for name, value in mean.state_dict().items()}


def trained() -> MLP:
    """The network in float64, trained if it is not in the cache."""
    net = MLP()
    net.load_state_dict(kept(NAME, _train))
    return net.double().eval().requires_grad_(False)
