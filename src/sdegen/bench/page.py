"""The page of a benchmark: one self-contained HTML file with tables and pictures, which needs no network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import sdegen
from sdegen import plots
from sdegen.bench import figures, files
from sdegen.bench.contenders import Contender, Ours
from sdegen.bench.machine import about
from sdegen.bench.orders import Fall
from sdegen.bench.problems import Problem
from sdegen.bench.rows import Rows
from sdegen.bench.runs import Job, Settings, Sweep
from sdegen.bench.tables import Answer, answers, at_floor, budget, enough, entry, ranked, sheets, short
from sdegen.bench.targets import exact
from sdegen.errors import InvalidArgumentError

TIED = 4
"""Contenders that may be as good as the best one, named in a line."""
WORDS = {
    "rmse": "root mean square over samples and elements of the distance to where a tight solve takes the same noise",
    "sw2": "sliced Wasserstein-2 distance to exact samples",
    "w2": "Wasserstein-2 distance to exact samples, by an exact assignment",
    "mmd": "maximum mean discrepancy to exact samples",
    "energy": "energy distance to exact samples",
    "ksd": "kernel Stein discrepancy, from the exact score",
    "mean": "error of the mean",
    "covariance": "error of the covariance",
    "modes": "chi-square of the masses of the modes, per degree of freedom: exact samples show about 1",
    "loglik": "mean log-density of the samples under the exact law, less that of exact samples; drawn without its sign",
    "frechet": "Frechet distance of the features' means and covariances",
    "frechet_inf": "Frechet distance, extrapolated to infinitely many samples",
    "is": "Inception Score: near that of exact samples is best",
    "is_inf": "Inception Score, extrapolated to infinitely many samples: near that of exact ones is best",
    "kid": "kernel inception distance",
    "precision": "more is better: the share of samples among the data's nearest neighbours",
    "recall": "more is better: the share of the data among the samples' nearest neighbours",
    "density": "how many neighbourhoods of data a sample lies in, of those expected: near 1 is best",
    "coverage": "more is better: the share of the data whose neighbourhood has a sample in it",
}


class Report(NamedTuple):
    """All that a page shows: what was run and how, its rows and first samples, and errors over steps by model.

    interrupted: how to go on, where it was.
    """

    jobs: Sequence[Job]
    settings: Settings
    done: Sweep
    falls: Mapping[str, Mapping[str, Fall]]
    command: str
    peers: Mapping[str, str]
    interrupted: str = ""

    @property
    def problems(self) -> list[Problem]:
        """The models that have rows, each once."""
        with_rows = set(self.done.rows.each("model"))
        return [p for p in dict.fromkeys(job.problem for job in self.jobs) if p.name in with_rows]


def check() -> None:
    """Raises InvalidArgumentError where a page could not be written, for want of jinja2 or matplotlib."""
    plots.figure(1.0, 1.0)
    _template()


def _template() -> Any:
    try:
        from jinja2 import Environment
    except ImportError:
        raise InvalidArgumentError("a page needs jinja2: pip install 'sdegen[bench]'") from None
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True).from_string(source)


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """The page as one HTML file.

    Raises:
        InvalidArgumentError: jinja2 or matplotlib is not installed.
        WriteError: It cannot be written; a page that was there is as it was.
    """
    files.write(path, _template().render(**content(report)))


def content(report: Report) -> dict[str, Any]:
    """What the template is filled with."""
    rows, settings = report.done.rows, report.settings
    libraries = [x for x in rows.each("library") if x != "sdegen"]
    names = [p.name for p in report.problems]
    count = [len({entry(row) for row in rows if entry(row).ours == ours}) for ours in (True, False)]
    beside = f", beside {count[1]} samplers of {', '.join(libraries)}" if libraries else ""
    return {
        "title": ", ".join(names),
        "lead": f"{count[0]} solvers of sdegen {sdegen.__version__}{beside}, on {', '.join(names)}.",
        "command": report.command,
        "interrupted": report.interrupted,
        "parts": [_part(report, p, f"model-{i}") for i, p in enumerate(report.problems, 1)],
        "robust": _robust(rows),
        "samples": ", ".join(f"{n:,}" for n in rows.each("samples")) or f"{settings.samples:,}",
        "seed": settings.seed,
        "level": f"{settings.level:.0%}",
        "denoised": ", and the last denoising is one" if any(p.denoises for p in report.problems) else "",
        "metrics": [(name, WORDS[name]) for name in rows.each("metric") if name in WORDS],
        "about": about(report.peers),
    }


def _part(report: Report, problem: Problem, anchor: str) -> dict[str, Any]:
    """One model's section."""
    rows = report.done.rows.where(model=problem.name)
    return {
        "name": problem.name,
        "anchor": anchor,
        "statement": problem.statement or f"{problem.model!r}",
        "peers": any(x != "sdegen" for x in rows.each("library")),
        "answers": [_answer(a) for a in answers(rows)],
        "metrics": [_metric(rows.where(metric=name), problem) for name in rows.each("metric")],
        "figures": _figures(report, problem, rows),
    }


def _answer(answer: Answer) -> dict[str, str]:
    found = {"metric": answer.metric, "nfe": f"{answer.budget:g}", "verdict": answer.verdict}
    found["tied"] = ", ".join(answer.tied[:TIED]) + (", ..." if len(answer.tied) > TIED else "")
    for who, value, row in (("ours", "value", answer.ours), ("peer", "theirs", answer.peer)):
        found[who] = "" if row is None else str(entry(row))
        found[value] = "" if row is None else f"{short(row['value'])} (floor {short(row['floor'])})"
    return found


def _metric(rows: Rows, problem: Problem) -> dict[str, Any]:
    """A metric's pictures and tables."""
    some = any(0 < figures.drawn_value(row) < float("inf") for row in rows)
    pictures = [figures.quality(rows, cost) for cost in ("nfe", "seconds")] if some else []
    name = rows[0]["metric"]
    words, reached = WORDS.get(name, ""), enough(rows)
    if problem.law is None:
        words, reached = (text.replace("exact samples", "held-out data") for text in (words, reached))
    return {"name": name, "words": words, "enough": reached, "pictures": pictures, "sheets": sheets(rows, _cell)}


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    tail = f"; {row['nfe']:.3g} evaluations" if row["budget"] < 1 else ""
    interval = "" if row["low"] != row["low"] else f"{short(row['low'])} to {short(row['high'])}"
    return {
        "value": short(row["value"]) + (f" ({row['failed']} failed)" if row["failed"] else ""),
        "interval": interval,
        "floor": f"floor {short(row['floor'])}{tail}",
        "cost": f"{row['seconds']:.2g} s, {row['memory'] / 1024:.3g} KiB",
        "best": at_floor(row),
    }


def _figures(report: Report, problem: Problem, rows: Rows) -> list[dict[str, Any]]:
    """Orders, grids, samples: what there is of them."""
    found: list[dict[str, Any]] = []
    falls = report.falls.get(problem.name)
    if falls:
        words = "Mean distance to a tight solve from the same noise; dotted, the orders that the methods declare."
        if problem.law is None:
            words += " A network shows them where the steps are short beside its own roughness, and above its rounding."
        found.append({"title": "Orders", "words": words, "picture": figures.orders(falls)})
    times = _grids(report, problem)
    if times:
        words = "Noise on the left, data on the right; the same distance is the same step in log-SNR."
        found.append({"title": "Time grids", "words": words, "picture": figures.grids(problem, times)})
    at = _at(rows)
    first = figures.shown(rows.where(metric=rows[0]["metric"]))
    drawn = {
        str(e): report.done.shown[problem.name, e, at] for e in first if (problem.name, e, at) in report.done.shown
    }
    if drawn and (problem.image is not None or (len(problem.shape) == 1 and problem.shape[0] > 1)):
        truth = exact(problem, 100, report.settings.seed, sets=1)[0]  # of which 400 are drawn
        words = f"From the same noise, by {budget(at)} evaluations; rows in this order: {', '.join(['exact', *drawn])}."
        found.append({"title": "Samples", "words": words, "picture": figures.samples(problem, drawn, truth)})
    return found


def _at(rows: Rows) -> float:
    """The budget whose samples are shown: the first one from 10 on, or the last."""
    known = sorted(b for b in rows.each("budget") if b >= 1) or sorted(rows.each("budget"))
    return float(next((b for b in known if b >= 10), known[-1]))


def _grids(report: Report, problem: Problem) -> dict[str, Any]:
    """Times of the grids of our solvers, by the solvers' names, those of one grid together."""
    found: dict[tuple[float, ...], list[str]] = {}
    contenders: list[Contender] = [job.contender for job in report.jobs if job.problem is problem]
    for c in dict.fromkeys(c for c in contenders if isinstance(c, Ours) and not c.adaptive):
        times = (c.times or c.solver.grid)(problem.process, 20)
        label = f"{c.name} ({getattr(c.times or c.solver.grid, '__name__', 'its own')})"
        found.setdefault(tuple(torch.as_tensor(getattr(times, "times", times)).tolist()), []).append(label)
    return {", ".join(labels): torch.tensor(times, dtype=torch.float64) for times, labels in found.items()}


def _robust(rows: Rows) -> dict[str, Any] | None:
    """Ranks by the first metric on the models with and without an error in the score; None without such models."""
    names = rows.each("model")
    if not any("+" in name for name in names):
        return None
    metric = rows[0]["metric"]
    ranks = {name: ranked(rows.where(model=name, metric=metric)) for name in names}
    entries = ranks[names[0]]
    lines = [[str(e), *(str(ranks[n].index(e) + 1) if e in ranks[n] else "" for n in names)] for e in entries]
    return {"metric": metric, "head": ["solver", *names], "lines": lines}
