"""The tables of evaluations, promises and hazards, from the sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from benchmarks.accuracy.page import Table

from .problems import Case
from .runs import ADAMS, BASE_LOG, BASE_SIGMA, METHODS, Outcome, Sweep, evaluations

WANTED = (1e-2, 1e-3, 1e-4, 1e-6)
GOALS = {BASE_SIGMA: 5.0, BASE_LOG: 2.3}
DECADES = tuple(range(1, 8))
Results = dict[tuple[str, str], dict[str, Sweep]]
"""By (problem, process): the sweeps by method."""


def _mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}"


def _two(found: Sweep, wanted: float) -> tuple[float, float]:
    return evaluations(found, wanted, "rows"), evaluations(found, wanted, "calls")


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def ratios(results: Results) -> str:
    """How many times more evaluations torchdiffeq's dopri5 takes than ours."""
    parts = []
    for base, goal in GOALS.items():
        table = Table(["problem", *(f"{e:g}" for e in WANTED)])
        for (name, process), found in results.items():
            cells = []
            for wanted in WANTED:
                rows = evaluations(found[base], wanted) / evaluations(found[ADAMS], wanted)
                calls = evaluations(found[base], wanted, "calls") / evaluations(found[ADAMS], wanted, "calls")
                large = evaluations(found[base], wanted, "rows", "rmse") / evaluations(
                    found[ADAMS], wanted, "rows", "rmse"
                )
                cells.append(f"{_ratio(rows)}, {_ratio(calls)}, {_ratio(large)}")
            table.add(f"`{name}`, {process}", *cells)
        parts.append(
            f"Evaluations of {base} over those of `adams()`, to a mean error of the column (at least {goal:g} was "
            "wanted): rows per sample, calls, and rows to a root mean square error over all samples of the same size."
            f"\n\n{table}"
        )
    return "\n\n".join(["### Evaluations to an error, beside torchdiffeq's dopri5", *parts])


def overview(results: Results) -> str:
    """Every method: geometric means over the cases that all of its errors were reached on."""
    table = Table(["solve", *(f"{e:g}" for e in WANTED)])
    everywhere = [name for name in METHODS if all(name in found for found in results.values())]
    common = {
        wanted: [
            found
            for found in results.values()
            if not any(math.isnan(evaluations(found[name], wanted)) for name in everywhere)
        ]
        for wanted in WANTED
    }
    for method in METHODS.values():
        cells = []
        for wanted in WANTED:
            pairs = [_two(found[method.name], wanted) for found in common[wanted] if method.name in found]
            few = "" if len(pairs) == len(common[wanted]) else f" (of {len(pairs)})"
            cells.append(f"{_number(_mean([p[0] for p in pairs]))}, {_number(_mean([p[1] for p in pairs]))}{few}")
        table.add(f"**{method.name}**" if method.ours else method.name, *cells)
    counts = ", ".join(str(len(common[wanted])) for wanted in WANTED)
    return (
        "### Evaluations to an error, every method\n\nRows per sample, then calls of the network, to a mean error; "
        f"geometric means over the cases where all reach it ({counts} of {len(results)}).\n\n{table}"
    )


def missed(results: Results) -> str:
    """Where a goal is missed, and where a peer is better."""
    lines = []
    for (name, process), found in results.items():
        where = f"`{name}`, {process}"
        for wanted in WANTED:
            ours = _two(found[ADAMS], wanted)
            for base, goal in GOALS.items():
                ratio = evaluations(found[base], wanted) / ours[0]
                if ratio < goal:
                    lines.append(f"- {where}, error {wanted:g}: {ratio:.1f} times fewer than {base}, below {goal:g}.")
            for other, swept in found.items():
                if METHODS[other].ours:
                    continue
                theirs = _two(swept, wanted)
                for count, mine, their in zip(("rows per sample", "calls"), ours, theirs):
                    if their < mine:
                        lines.append(
                            f"- {where}, error {wanted:g}: {other} needs fewer {count}, {their:.0f} to {mine:.0f}."
                        )
            lines += _pairs(found, where, wanted)
        lines += _promises(found, where)
    return "\n".join(["### Goals missed, and peers that are better", "", *(lines or ["None."])])


def _pairs(found: dict[str, Sweep], where: str, wanted: float) -> list[str]:
    """Where our pairs take more evaluations than a peer's same pair in its better clock."""
    lines = []
    for pair, mine in (("dopri5", "sdegen dopri5()"), ("tsit5", "sdegen tsit5()"), ("dopri8", "sdegen dopri8()")):
        ours = evaluations(found[mine], wanted)
        theirs = {
            name: evaluations(swept, wanted)
            for name, swept in found.items()
            if not METHODS[name].ours and f" {pair}," in name
        }
        better = {name: n for name, n in theirs.items() if n < ours}
        if better:
            best = min(better, key=lambda name: better[name])
            lines.append(
                f"- {where}, error {wanted:g}: `{pair}()` needs {ours:.0f} rows per sample, {best} {better[best]:.0f}."
            )
    return lines


def _promises(found: dict[str, Sweep], where: str) -> list[str]:
    lines = []
    for k in (2, 3, 4):
        one = at(found[ADAMS], k)
        ratio = math.nan if one is None else one.mean * 10**k
        if not 1 / 3 <= ratio <= 3:
            lines.append(
                f"- {where}, tol 1e-{k}: the mean error of `adams()` is {ratio:.2f} times the tolerance, not within 3."
            )
    return lines


def at(found: Sweep, decade: float) -> Outcome | None:
    """The solve at tolerance 10^-decade, None if the sweep had ended."""
    return next((one for one in found if abs(math.log10(one.tol) + decade) < 1e-6), None)


def details(results: Results, cases: list[Case]) -> str:
    """A table per case."""
    parts = [
        "### Every case\n\nRows per sample, then calls, to a mean error; in parentheses rows to a root mean square."
    ]
    for case in cases:
        found = results[case.name, case.process_name]
        table = Table(["solve", *(f"{e:g}" for e in WANTED)])
        for name, swept in found.items():
            cells = []
            for wanted in WANTED:
                rows, calls = _two(swept, wanted)
                cells.append(
                    f"{_number(rows)}, {_number(calls)} ({_number(evaluations(swept, wanted, 'rows', 'rmse'))})"
                )
            table.add(f"**{name}**" if METHODS[name].ours else name, *cells)
        head = f"#### `{case.name}` under {case.process_name}"
        parts.append(f"{head}\n\n{case.problem.statement}; {len(case.exact)} samples.\n\n{table}")
    return "\n\n".join(parts)


def promise(results: Results) -> str:
    """Error over tolerance."""
    table = Table(["problem", *(f"1e-{k}" for k in DECADES)])
    for (name, process), found in results.items():
        cells = []
        for k in DECADES:
            one = at(found[ADAMS], k)
            cells.append("–" if one is None else _promise(one.errors / one.tol))
        table.add(f"`{name}`, {process}", *cells)
    rest = Table(["solve", *(f"1e-{k}" for k in DECADES)])
    for method in METHODS.values():
        cells = []
        for k in DECADES:
            known = [at(found[method.name], k) for found in results.values() if method.name in found]
            means = [one.mean / one.tol for one in known if one is not None and one.said]
            few = "" if len(means) == len(results) else f" (of {len(means)})"
            cells.append(f"{_mean(means):.2g}, {min(means):.2g} to {max(means):.2g}{few}" if means else "–")
        rest.add(f"**{method.name}**" if method.ours else method.name, *cells)
    return (
        "### What a tolerance promises\n\nError over tolerance of `adams()`: mean, median, worst sample.\n\n"
        f"{table}\n\nAll methods: mean error over tolerance, its geometric mean over the cases and its range. "
        "Peers' rtol and atol are both the tolerance; sweeps end where the error is below 1e-6 (`images`: 1e-4), "
        f"which leaves cases out at the right.\n\n{rest}"
    )


def _promise(ratio: torch.Tensor) -> str:
    return f"{float(ratio.mean()):.2g}, {float(ratio.median()):.2g}, {float(ratio.max()):.2g}"


def estimates(results: Results) -> str:
    """`Solution.error` over the error."""
    table = Table(["solver", *(f"1e-{k}" for k in DECADES)])
    share = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for method in (m for m in METHODS.values() if m.ours):
        cells = []
        for k in DECADES:
            known = [one for found in results.values() if (one := at(found[method.name], k)) is not None]
            if not known:
                cells.append("–")
                continue
            ratio = torch.cat([one.estimate / one.errors.clamp(min=1e-16) for one in known])
            low, middle, high = ratio.quantile(share).tolist()
            cells.append(f"{middle:.2g} ({low:.2g} to {high:.2g})")
        table.add(f"`{method.name.removeprefix('sdegen ')}`", *cells)
    return (
        "### How good the estimate is\n\n`Solution.error` over the error, median and, in parentheses, 10 and 90 % "
        f"quantiles over all samples of all cases, by tolerance.\n\n{table}"
    )


def hazards(results: Results, in_time: dict[tuple[str, str], Sweep]) -> str:
    """Evaluations outside of the interval, silent failures and reported ones."""
    table = Table(["solve", *(f"tol {t}" for t in ("1", "0.1", "0.01", "0.001"))])
    rows = {name: [found[name] for found in results.values() if name in found] for name in METHODS}
    rows["torchdiffeq dopri5, x over t (VP only)"] = list(in_time.values())
    for name, sweeps in rows.items():
        cells = []
        for k in range(4):
            ones = [one for swept in sweeps if (one := at(swept, k)) is not None]
            silent = sum(one.said and float(one.errors.mean()) > 0.1 for one in ones)
            failed = sum(not one.said for one in ones)
            cells.append(f"{sum(one.outside for one in ones)}, {silent}, {failed} of {len(ones)}")
        ours = name in METHODS and METHODS[name].ours
        table.add(f"**{name}**" if ours else name, *cells)
    return (
        "### Hazards\n\nCalls of the network at levels outside of `[t_min, t_max]`, over all cases; cases whose mean "
        "error is above a tenth of the data's scale with success reported (at tolerance 1 that is what was asked "
        f"for); cases where failure was reported.\n\n{table}"
    )
