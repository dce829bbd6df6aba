"""Samples per second where samples need very different numbers of steps: from a queue, or batch by batch."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchode
from torch import Tensor

import sdegen as sd
from benchmarks.accuracy.page import Table
from benchmarks.accuracy.problems import error

from .peers import torchode_solver

SAMPLES, BATCH, SIZE, TOL = 384, 64, 16, 1e-3
VP = sd.VP()


class Network(torch.nn.Module):
    """An MLP of 6 layers of 512, for its cost; the prediction is that of Gaussian data, and a push.

    It goes back and forth at each sample's own frequency in log-SNR: most are low, and need some 15 evaluations; the
    highest need more than a hundred.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (SIZE, *(512,) * 6, SIZE)
        layers = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
        self.net = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.SiLU())))
        self.calls = self.rows = 0
        self.eval()

    def forward(self, x: Tensor, t: Tensor, frequency: Tensor) -> Tensor:
        """The predicted data `[B, 16]`."""
        self.calls += 1
        self.rows += len(x)
        cost = self.net(x.float()).to(x.dtype)
        level = VP.level(t.double())
        a, s, lam = (v[:, None].to(x.dtype) for v in (level.alpha, level.sigma, level.lam))
        push = torch.cos(frequency[:, None] * lam) * s / (1 + lam.square() / 20)
        return a / (a * a + s * s) * x + push + 0.0 * cost


@functools.cache
def problem() -> tuple[Network, sd.ScoreModel]:
    """The network, and the model of all samples with their frequencies."""
    net = Network()
    share = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)
    frequency = 10 * share[torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))] ** 4
    return net, sd.ScoreModel(VP, net, "data", frequency=frequency)


def queue() -> Tensor:
    """Samples that are done leave, others enter."""
    return sd.sample(
        problem()[1], (SAMPLES, SIZE), tol=TOL, batch_size=BATCH, denoise=False, dtype=torch.float64, seed=0
    )


def batches(fixed: bool) -> Callable[[], Tensor]:
    """Batch after batch: each waits for its slowest sample, whose mates are evaluated on if `fixed`, else leave."""

    def run() -> Tensor:
        model, seeds = problem()[1], sd.noise.seeds(0, SAMPLES)
        parts = []
        for index in torch.arange(SAMPLES).split(BATCH):
            part: Any = model.rows(index)
            tol = sd.PI(tol=TOL, fixed_shapes=fixed)
            shape = len(index), SIZE
            parts.append(sd.sample(part, shape, tol=tol, seed=seeds[index], denoise=False, dtype=torch.float64))
        return torch.cat(parts)

    return run


def torchode_batches() -> Tensor:
    """torchode's tsit5 on the log-sigma form, batch after batch, at the same tolerance."""
    model, seeds, parts = problem()[1], sd.noise.seeds(0, SAMPLES), []
    ends = VP.level(torch.tensor([VP.t_max, VP.t_min], dtype=torch.float64))
    for index in torch.arange(SAMPLES).split(BATCH):
        part = model.rows(index)

        def field(lam: Tensor, y: Tensor, part: sd.ScoreModel = part) -> Tensor:
            level = VP.at(lam)
            return part(level.alpha[:, None] * y, level, "data") - y

        y = VP.prior(seeds[index], (SIZE,), torch.float64) / ends.alpha[0]
        times = ends.lam.expand(len(index), 2)
        initial = torchode.InitialValueProblem(y, times[:, 0], times[:, 1], times)
        found = torchode_solver(field, "tsit5", TOL).solve(initial)
        parts.append(found.ys[:, -1] * ends.alpha[1])
    return torch.cat(parts)


RUNS: dict[str, Callable[[], Tensor]] = {
    "`sample(tol=..., batch_size=64)`, a queue": queue,
    "batches of 64, finished samples leave": batches(False),
    "batches of 64, `fixed_shapes=True`": batches(True),
    "batches of 64, torchode tsit5, log-sigma": torchode_batches,
}


def spread() -> tuple[str, Tensor]:
    """The fewest, the most and the mean evaluations of a sample, in words; and exact ends."""
    x, model = VP.prior(sd.noise.seeds(0, SAMPLES), (SIZE,), torch.float64), problem()[1]
    nfe = sd.solve(model, x, sd.PI(tol=TOL), sd.adams()).nfe
    words = f"{int(nfe.min())} to {int(nfe.max())} evaluations ({float(nfe.double().mean()):.0f} on average)"
    return words, sd.solve(model, x, sd.PI(tol=1e-8), sd.dopri8()).x


def section(rounds: int) -> str:
    """The table of throughput."""
    net = problem()[0]
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    counted: dict[str, tuple[int, int, float]] = {}
    with torch.no_grad():
        words, exact = spread()
        for _ in range(rounds):
            for name, run in RUNS.items():
                net.calls = net.rows = 0
                began = time.process_time()
                x = run()
                seconds[name].append(time.process_time() - began)
                counted[name] = net.calls, net.rows, float(error(x, exact).mean())
    table = Table(
        ["way", "samples per second", "calls", "rows evaluated per sample", "mean rows in a call", "mean error"]
    )
    for name, times in seconds.items():
        calls, rows, wrong = counted[name]
        speed = f"{SAMPLES / statistics.median(times):.0f}"
        table.add(name, speed, str(calls), f"{rows / SAMPLES:.1f}", f"{rows / calls:.1f}", f"{wrong:.1e}")
    return (
        f"### Throughput with a queue\n\n{SAMPLES} samples in {SIZE} dimensions, tolerance {TOL:g}, that need {words}: "
        "each is pushed at a frequency of its own, most slowly, few quickly. The network is an MLP of six layers of "
        f"512, exact ends come from `dopri8()` at 1e-8. Seconds of one core, medians of {rounds} rounds.\n\n{table}"
    )
