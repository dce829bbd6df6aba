"""Benchmarks beside a reference: each round of one is preceded by a round of the reference, and their ratio is kept.

A module has `GROUPS`, `{group: {name: make}}`: `make()` returns what is measured, a call without arguments, and raises
ImportError where a peer is not installed. The first of a group is its reference. A module may have `units(result)`, by
which times are divided. Its only test takes `beside` and calls it.
"""

from __future__ import annotations

import gc
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.compare import Row, table, write
from sdegen.bench.machine import about
from sdegen.bench.names import peer_versions

SECONDS, FEWEST, MOST, LEAST = 0.7, 5, 100, 2e-3
"""A benchmark with its reference: about how long, how many rounds; and the least that a round lasts."""
ROWS = pytest.StashKey[list[Row]]()
Run = Callable[[], Any]
Group = Mapping[str, Callable[[], Run]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--ratios`."""
    parser.addoption("--ratios", type=Path, help="write medians and ratios to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    """The rows of the table."""
    config.stash[ROWS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A case for each benchmark of the module's groups, timed in processor seconds."""
    if "beside" in metafunc.fixturenames:
        mark = pytest.mark.benchmark(timer=process_time)
        cases = [
            pytest.param((group, name), id=f"{group}: {name}", marks=mark)
            for group, runs in metafunc.module.GROUPS.items()
            for name in runs
        ]
        metafunc.parametrize("beside", cases, indirect=True)


@pytest.fixture
def beside(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Measures one benchmark and appends its row; one thread, no gradients, no garbage collection in between."""
    group, name = request.param
    units = getattr(request.module, "units", lambda result: 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peers' deprecations
            yield lambda: _measure(benchmark, group, name, request.module.GROUPS[group], units, request.config.stash)
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def _made(name: str, group: Group) -> Run:
    try:
        return group[name]()
    except (ImportError, PackageNotFoundError) as error:
        pytest.skip(f"{name} is not installed: {error}")


class Call(NamedTuple):
    """A round: a call, as often as fills it; how many units that is, and about how many seconds."""

    run: Run
    units: float
    seconds: float


def _round(run: Run, units: Callable[[Any], float]) -> Call:
    """A round of a call, which is warm after it."""
    share = units(run())
    began = process_time()
    run()
    once = max(process_time() - began, 1e-6)
    times = max(1, math.ceil(LEAST / once))

    def repeated() -> None:
        for _ in range(times):
            run()

    return Call(repeated if times > 1 else run, share * times, once * times)


def _measure(benchmark: Any, group: str, name: str, runs: Group, units: Callable[[Any], float], stash: Any) -> None:
    """Rounds of a benchmark, the reference before each; the reference itself is its own."""
    reference = next(iter(runs))
    one = _round(_made(name, runs), units)
    other = _round(_made(reference, runs), units) if name != reference else None
    theirs: list[float] = []

    def before() -> None:
        if other is not None:
            began = process_time()
            other.run()
            theirs.append((process_time() - began) / other.units)

    rounds = min(max(int(SECONDS / (one.seconds + (other.seconds if other else 0))), FEWEST), MOST)
    benchmark.group = group
    benchmark.pedantic(one.run, setup=before, rounds=rounds)
    benchmark.extra_info.update(reference=name == reference, units=one.units)
    if benchmark.stats is None:
        return
    own = [seconds / one.units for seconds in benchmark.stats.stats.data]
    ratios = [a / b for a, b in zip(own, theirs, strict=True)] if theirs else [1.0, 1.0]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    quarter, _, most = statistics.quantiles(own, n=4, method="inclusive")
    row = Row(group, name, reference, statistics.median(own), most - quarter, len(own), ratio, low, high)
    stash[ROWS].append(row)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """The table of ratios, and, of a run without failures, the file."""
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("medians, and ratios to the first of each group (quartiles)")
    for line in table(rows):
        terminalreporter.write_line(line)
    path = config.getoption("ratios")
    if path is not None and exitstatus == pytest.ExitCode.OK:
        write(path, dict(about(peer_versions())), rows)
        terminalreporter.write_line(f"written to {path}")
