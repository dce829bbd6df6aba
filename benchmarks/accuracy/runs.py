"""What is measured: mean and median of the samples' terminal errors and the flips, of peers' methods and ours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import sdegen as sd
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run as solve

from .cache import kept
from .peers import Peer, distinct, end, versions
from .problems import Problem, error

BUDGETS = (5, 8, 10, 15, 20, 35, 50)
LONG = (70, 100, 150, 200, 300)
"""Budgets of DPM-Solver++ 2M alone, which reaches the small errors late."""
RIVAL = "k-diffusion dpmpp_2m", "karras"
"""DPM-Solver++ 2M on the Karras grid, from its most used code."""


class Cell(NamedTuple):
    """Mean and median over the samples of the root mean square error, and the share of samples in another mode."""

    mean: float
    median: float
    flips: float


Row = dict[int, Cell]


def judged(y: Tensor, problem: Problem, process: sd.Process) -> Cell:
    """Ends y `[B, *S]` at t_min against the reference; infinite where a sample is not finite."""
    exact = problem.reference(process) / process.level(process.t_min).alpha
    if not bool(y.isfinite().all()):
        return Cell(float("inf"), float("inf"), 1.0)
    wrong = error(y, exact)
    return Cell(float(wrong.mean()), float(wrong.median()), float(problem.flipped(y, exact).double().mean()))


def ours(solver: sd.Solver, problem: Problem, process: sd.Process, grid: sd.grids.Grid, evaluations: int) -> Cell:
    """Our solver on a grid, with so many evaluations."""
    times = grid(process, evaluations // solver.evals)
    with torch.no_grad():
        x = solve(problem.model(process), problem.start(process), Fixed(times), solver).x
    return judged(x / process.level(process.t_min).alpha, problem, process)


def of_peer(peer: Peer, problem: Problem, process: sd.Process, grid: str, budgets: Iterable[int]) -> Row:
    """A peer's row on a grid; without the budgets that allow it no step."""
    return {
        n: judged(end(peer.sampler.run, problem, process, grid, peer.steps(n)), problem, process)
        for n in budgets
        if peer.steps(n) > 0
    }


def of_peers(problem: Problem, process: sd.Process, budgets: tuple[int, ...] = BUDGETS) -> dict[tuple[str, str], Row]:
    """Rows of all peers by (name, grid), kept on disk per versions of the peers, problem and budgets."""

    def make() -> dict[str, dict[int, list[float]]]:
        return {
            f"{peer.name}|{grid}": _plain(of_peer(peer, problem, process, grid, budgets))
            for peer in distinct(False)
            for grid in peer.grids(process)
        }

    found = kept(_key("peers", problem, process, budgets), make)
    return {_pair(name): {n: Cell(*c) for n, c in row.items()} for name, row in found.items()}


def of_rival(problem: Problem, process: sd.Process) -> Row:
    """RIVAL's row at the budgets LONG, kept on disk."""

    def make() -> dict[int, list[float]]:
        peer = next(peer for peer in distinct(False) if peer.name == RIVAL[0])
        return _plain(of_peer(peer, problem, process, RIVAL[1], LONG))

    return {n: Cell(*c) for n, c in kept(_key("rival", problem, process, LONG), make).items()}


def _plain(row: Row) -> dict[int, list[float]]:
    return {n: list(cell) for n, cell in row.items()}


def _key(kind: str, problem: Problem, process: sd.Process, budgets: tuple[int, ...]) -> str:
    mark = f"{versions()} {budgets} {problem.samples} {float(problem.reference(process).sum()):.9e}"
    return f"{kind}-{problem.name}-{type(process).__name__}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"


def _pair(text: str) -> tuple[str, str]:
    name, grid = text.rsplit("|", 1)
    return name, grid
