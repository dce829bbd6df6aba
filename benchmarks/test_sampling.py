"""End to end: samples of the digits' mixture with as many evaluations of its score, ours beside the peers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

import sdegen as sd
from benchmarks.peers import contenders
from sdegen.bench.contenders import Contender, Ours, Peer, View
from sdegen.bench.problems import Problem, problem
from sdegen.grids import by_snr

COUNT, NFE = 128, 20
Make = Callable[[], Callable[[], Any]]


@functools.cache
def digits() -> Problem:
    """The mixture of the digits under VP."""
    return problem("digits", "VP")


def by_hand(view: View, x: Tensor, times: Tensor, tol: float | None) -> Tensor:
    """DDIM over Python floats."""
    levels = [view.process.level(t) for t in times]
    rows = [(float(level.alpha), float(level.sigma)) for level in levels]
    for level, (a0, s0), (a1, s1) in zip(levels, rows, rows[1:]):
        x = (s1 / s0) * x + (a1 - s1 / s0 * a0) * view.ask(x, level)
    return x


def drawn(make: Callable[[], Contender]) -> Make:
    """A contender's samples, once it has taken the evaluations and made digits: finite, and of their size."""

    def made() -> Callable[[], Any]:
        contender, of = make(), digits()
        found = contender.draw(of, COUNT, NFE, 0, None)
        assert found.nfe == NFE, (found.nfe, NFE)
        spread = float(found.x.var(0).mean().sqrt())
        assert abs(spread - of.scale) < 0.3 * of.scale, (spread, of.scale)
        return lambda: contender.draw(of, COUNT, NFE, 0, None)

    return made


def peer(library: str, name: str) -> Make:
    """A peer's sampler by name, looked for when it is run, on the grid that is even in log-SNR."""

    def find() -> Contender:
        try:
            known = contenders.contenders([library], every=True)
        except LookupError as error:
            raise ImportError(str(error)) from error
        return next(one for one in known if one.name == name and one.grid == "by_snr")

    return drawn(find)


def ours(name: str, solver: sd.Solver) -> Make:
    """`sd.sample`."""
    return drawn(lambda: Ours(name, solver, "by_snr", by_snr))


HAND = drawn(lambda: Peer("ddim", "by hand", by_hand, "by_snr", by_snr))
GROUPS: dict[str, dict[str, Make]] = {
    f"end to end, {COUNT} digits, {NFE} evaluations": {
        "hand loop, ddim": HAND,
        "sdegen ddim()": ours("ddim", sd.ddim()),
        "sdegen dpmpp(2)": ours("dpmpp2", sd.dpmpp(2)),
        "sdegen default()": ours("default", sd.default()),
        "sdegen ddpm()": ours("ddpm", sd.ddpm()),
        "k-diffusion euler": peer("k-diffusion", "euler"),
        "k-diffusion dpmpp_2m": peer("k-diffusion", "dpmpp_2m"),
        "k-diffusion euler_ancestral": peer("k-diffusion", "euler_ancestral"),
        "diffusers DDIM(eta=0)": peer("diffusers", "DDIM(eta=0)"),
        "diffusers DPMSolverMultistep": peer("diffusers", "DPMSolverMultistep(dpmsolver++, order=2, midpoint)"),
        "diffusers DDPM": peer("diffusers", "DDPM(fixed_small)"),
    }
}


def test_sampling(beside: Callable[[], None]) -> None:
    """Whole runs, the start included."""
    beside()
