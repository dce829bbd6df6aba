"""Measures peers' samplers with the library's own checks: `python -m benchmarks.peers.orders [--write]`.

Prints markdown tables; `--write` puts them between the markers of docs/peers.md. A peer that is not installed is
skipped, with a line that says so.
"""

from __future__ import annotations

import itertools
import logging
import platform
import re
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import sdegen as sd

from . import measure, with_azula, with_diffusers, with_kdiffusion
from .drive_diffusers import as_shipped
from .measure import GRIDS, SLOPES, Habits, Sampler, Seen

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
BEGIN = "<!-- begin: benchmarks.peers.orders -->"
COMMAND = "python -m benchmarks.peers.orders --write"
PEERS: tuple[Any, ...] = (with_kdiffusion, with_diffusers, with_azula)
_REACH, _RATIO, _STUCK, _ROUNDED = 0.25, 1.25, 0.4, 10.0


def verdict(sampler: Sampler, peer: Seen, ours: Seen | None) -> str:
    """What was found of a sampler, in words."""
    words = [_of_order(sampler, peer, ours)]
    if ours is not None and peer.even >= _STUCK:
        if peer.error > _RATIO * ours.error:
            words.append(f"error {_times(peer.error / ours.error)} ours")
        elif ours.error > _RATIO * peer.error:
            words.append(f"our error is {_times(ours.error / peer.error)} its")
    return "; ".join(words)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _of_order(sampler: Sampler, peer: Seen, ours: Seen | None) -> str:
    because = f": {sampler.note}" if sampler.note else ""
    if peer.even < _STUCK:
        return f"**the law does not converge to the data's**, its error tends to {peer.limit:.2g}{because}"
    if sampler.declared is None:
        return f"order {peer.even:.1f}{because}"
    least = sampler.declared - _REACH
    uneven = peer.even if peer.uneven is None else peer.uneven
    there = "diverges on the uneven grid" if uneven < 0 else f"order {uneven:.1f} on the uneven grid"
    if min(peer.even, uneven) >= least:
        above = peer.even >= sampler.declared + 0.5
        return f"order {peer.even:.1f}, above what is declared" if above else "as declared"
    if uneven >= least:
        return "as declared; on the even grid its first-order start shows"
    if peer.even >= least:
        return f"as declared on the even grid, **{there}**{because}"
    if ours is not None and abs(peer.even - ours.even) < 0.02 and abs(peer.error / ours.error - 1) < 0.02:
        return f"as ours on the even grid, **{there}**{because}"
    return f"**order {peer.even:.1f}**" + (f", **{there}**" if uneven < 0 else "") + because


def of_noise(sampler: Sampler, habits: Habits) -> str:
    """Where noise comes from, in words."""
    if not sampler.stochastic:
        return "draws unused noise from the global generator" if habits.moves else ""
    own = "a seed per sample" if habits.alone else "a sample depends on its batch"
    return ("global generator; " if habits.moves else "") + own


def _orders(found: Seen | None) -> str:
    if found is None:
        return "—"
    return f"{found.even:.2f} / {'—' if found.uneven is None else f'{found.uneven:.2f}'}"


def _name(solver: sd.Solver | None) -> str:
    """A solver without the options that are at their defaults."""
    text = re.sub(
        r"(, correct=False|, eta=0\.0|, steps=1|\b(tableau|frame|order|predictor|corrector)=)", "", repr(solver)
    )
    text = re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.3f}", text)
    return "—" if solver is None else f"`{text}`"


def row(sampler: Sampler) -> str:
    """One line of the table."""
    peer, habits, ours = measure.seen(sampler), measure.habits(sampler), measure.seen_of_ours(sampler)
    cells = [
        f"`{sampler.name}`",
        "—" if sampler.declared is None else f"{sampler.declared:g}",
        _orders(peer),
        f"{peer.error:.1e}",
        _name(sampler.ours),
        _orders(ours),
        f"{ours.error:.1e}" if ours else "—",
        verdict(sampler, peer, ours),
        of_noise(sampler, habits),
    ]
    return "| " + " | ".join(cells) + " |"


def rounding() -> str:
    """The deterministic schedulers of diffusers whose own float32 costs them digits that count."""
    coarse, fine = (GRIDS["even"](n) for n in (50, SLOPES[-1]))
    lines = []
    for sampler in with_diffusers.deterministic():
        with as_shipped():
            single = measure.error_of(sampler.run, fine)
        if single > _ROUNDED * measure.error_of(sampler.run, fine) and single > 1e-5:
            double = measure.error_of(sampler.run, fine)
            with as_shipped():
                short = measure.error_of(sampler.run, coarse)
            lines.append(
                f"- `{sampler.name}`: {single:.1e} in float32 and {double:.1e} in float64 at {SLOPES[-1]} steps "
                f"({short:.1e} and {measure.error_of(sampler.run, coarse):.1e} at 50)"
            )
    text = "In float32, as shipped, these have errors more than ten times those of float64, and above 1e-5:"
    return "\n".join([text, "", *(lines or ["- none"])])


HEAD = (
    "| sampler | declared | measured, even / uneven | error | our counterpart | measured | error | found | noise |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def table(peer: ModuleType | Any) -> str:
    """The section of one peer, or the line that says why there is none."""
    try:
        version = peer.version()
        samplers = peer.samplers()
        measure.error_of(samplers[0].run, measure.GRIDS["even"](2))
    except ImportError as error:
        return f"## {peer.PEER}\n\nSkipped: {error}.\n"
    parts = [f"## {peer.PEER} {version}"]
    for stochastic, group in itertools.groupby(samplers, key=lambda s: s.stochastic):
        rows = []
        for sampler in group:
            print(f"{peer.PEER}: {sampler.name}", file=sys.stderr)
            rows.append(row(sampler))
        parts.append("### " + ("Stochastic: weak order" if stochastic else "Deterministic: order"))
        parts.append("\n".join([HEAD, *rows]))
    if peer is with_diffusers:
        parts.append(rounding())
    return "\n\n".join(parts) + "\n"


def report() -> str:
    """All of it."""
    began = time.perf_counter()
    tables = [table(peer) for peer in PEERS]
    versions = f"sdegen {sd.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    head = f"Written by `{COMMAND}` with {versions}, in {time.perf_counter() - began:.0f} s on the CPU."
    return "\n".join([head, "", *tables])


def main() -> None:
    """Prints the report; `--write` puts it into the page."""
    from benchmarks.page import arguments, publish  # a wheel has these adapters and not the pages

    write = arguments(__doc__).write
    warnings.simplefilter("ignore")  # peers' deprecations
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.no_grad():
        text = report()
    publish(PAGE, BEGIN, text, write)


if __name__ == "__main__":
    main()
