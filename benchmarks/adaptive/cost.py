"""What an attempt of an adaptive step costs besides the network, ours beside torchode's and torchdiffeq's."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchdiffeq
import torchode
from torch import Tensor

import sdegen as sd
from benchmarks.accuracy.page import Table

from .peers import torchode_solver

F64 = torch.float64
SHAPES = ((64, 2), (4096, 2), (64, 3, 32, 32))
TOL = 1e-6
VP = sd.VP()
SPAN = float(VP.level(VP.t_max).lam), float(VP.level(VP.t_min).lam)


def network(x: Tensor, t: Any) -> Tensor:
    """Nearly nothing."""
    return x * -0.5


class Spent(NamedTuple):
    """Attempts of the longest sample, and calls of the network."""

    attempts: int
    calls: int


Run = Callable[[Tensor], Spent]


def ours(solver: sd.Solver, **options: Any) -> Run:
    """A whole `solve`, the network predicting the data."""
    model, control = sd.ScoreModel(VP, network, "data"), sd.PI(tol=TOL, **options)

    def run(x: Tensor) -> Spent:
        found = sd.solve(model, x, control, solver)
        return Spent(int((found.accepted + found.rejected).max()), int(found.nfe.max()))

    return run


def torchode_run(method: str) -> Run:
    """A whole solve of `dy/dlam = -y/2`, rows flat."""

    def run(x: Tensor) -> Spent:
        y = x.flatten(1)
        times = torch.tensor(SPAN, dtype=F64).expand(len(y), 2)
        problem = torchode.InitialValueProblem(y, times[:, 0], times[:, 1], times)
        found = torchode_solver(lambda t, y: network(y, t), method, TOL).solve(problem)
        return Spent(int(found.stats["n_steps"].max()), int(found.stats["n_f_evals"].max()))

    return run


def torchdiffeq_run(x: Tensor) -> Spent:
    """A whole solve of `dy/dlam = -y/2`, one step for all rows."""
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return network(y, t)

    torchdiffeq.odeint(field, x, torch.tensor(SPAN, dtype=F64), rtol=TOL, atol=TOL, method="dopri5")
    return Spent((calls - 2) // 6, calls)


def runs() -> dict[str, Run]:
    """Everything measured, by name."""
    return {
        "sdegen adams()": ours(sd.adams()),
        "sdegen adams(), fixed shapes": ours(sd.adams(), fixed_shapes=True),
        "sdegen dopri5()": ours(sd.dopri5()),
        "sdegen tsit5()": ours(sd.tsit5()),
        "torchode dopri5": torchode_run("dopri5"),
        "torchode tsit5": torchode_run("tsit5"),
        "torchdiffeq dopri5": torchdiffeq_run,
    }


@functools.cache
def start(shape: tuple[int, ...]) -> Tensor:
    """Unit normals in float64."""
    return sd.noise.normals(sd.noise.seeds(0, shape[0]), shape[1:], (0, 0, 0, 0), dtype=F64)


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, tuple[float, float, int]]:
    """Microseconds per attempt and per evaluation outside of the network, and attempts; medians over rounds."""
    x, everything = start(shape), runs()
    spent = {name: run(x) for name, run in everything.items()}
    seconds: dict[Any, list[float]] = {name: [] for name in [*everything, None]}
    for _ in range(rounds):
        for name, run in everything.items():
            began = time.process_time()
            run(x)
            seconds[name].append(time.process_time() - began)
        began = time.process_time()
        for _ in range(20):
            network(x, None)
        seconds[None].append((time.process_time() - began) / 20)
    once = statistics.median(seconds[None])
    found = {}
    for name, (attempts, calls) in spent.items():
        rest = (statistics.median(seconds[name]) - calls * once) * 1e6
        found[name] = rest / attempts, rest / calls, attempts
    return found


def section(rounds: int) -> str:
    """The table of the cost of an attempt."""
    with torch.no_grad():
        seen = [measure(shape, rounds) for shape in SHAPES]
    table = Table(["solve", *(" x ".join(map(str, shape)) for shape in SHAPES)])
    for name in seen[0]:
        cells = [f"{attempt:.0f}, {each:.0f} ({count})" for attempt, each, count in (one[name] for one in seen)]
        table.add(name, *cells)
    return (
        "### What an attempt costs besides the network\n\nMicroseconds per attempt, then per evaluation, of a whole "
        "solve; attempts in parentheses. The network is `x * -0.5`, its own time is taken off. Float64, tolerance "
        f"{TOL:g}, seconds of one core, medians of {rounds} rounds. An attempt is one evaluation in `adams()`, and six "
        f"in the pairs, so that the second number is what is paid beside an evaluation.\n\n{table}"
    )
