"""Counts the cases that Hypothesis generates, over all workers, and says so at the end."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings
from hypothesis.statistics import collector

PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("suite", derandomize=True, deadline=None, database=None, phases=PHASES)
settings.register_profile("deep", deadline=None, database=None, max_examples=1000, print_blob=True, phases=PHASES)
settings.load_profile("deep" if os.environ.get("SDEGEN_TESTS") == "deep" else "suite")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item):
    seen = []
    with collector.with_value(lambda stats: seen.append(stats)):
        try:
            return (yield)
        finally:
            cases = [len(phase["test-cases"]) for stats in seen for phase in stats.values() if isinstance(phase, dict)]
            item.user_properties.append(("examples", sum(cases)))


def pytest_terminal_summary(terminalreporter):
    reports = [r for name in ("passed", "failed", "xfailed") for r in terminalreporter.stats.get(name, [])]
    values = [v for r in reports for name, v in getattr(r, "user_properties", ()) if name == "examples"]
    if sum(values):
        terminalreporter.write_line(f"{sum(values):,} generated cases in {sum(v > 0 for v in values):,} tests")
