"""What the demo shows: the table, `results.csv` and the pictures."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen import plots
from sdegen.demo.digits import Digits
from sdegen.demo.measurements import METHODS, Report, Row
from sdegen.grids import by_time
from sdegen.loop.fixed import solve
from sdegen.processes.schedules import VP
from sdegen.sampling.sample import sample
from sdegen.scores.model import ScoreModel
from sdegen.solvers.methods import default

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILES = ("digits.png", "trajectories.png", "quality.png", "overview.png", "results.csv")
SHEET_STEPS = 19  # and one evaluation to denoise


def table(report: Report) -> str:
    """The report as text: three lines per method (NFE used, distance, seconds), a column per budget."""
    budgets = sorted({row.budget for row in report.rows})
    lines = [f"{'method':<20} {'NFE budget':<10}" + "".join(f"{b:>9} " for b in budgets)]
    rule = "-" * max(len(lines[0].rstrip()), 78)
    for name in report.methods:
        rows = sorted(report.of(name), key=lambda row: row.budget)
        marks = ["*" if report.exact(row) else " " for row in rows]
        lines += [
            rule,
            f"{METHODS[name].label:<20} {'NFE used':<10}" + "".join(f"{row.nfe:>9} " for row in rows),
            f"{'':<20} {'distance':<10}" + "".join(f"{row.distance:>9.4f}{m}" for row, m in zip(rows, marks)),
            f"{'':<20} {'seconds':<10}" + "".join(f"{row.seconds:>9.2f} " for row in rows),
        ]
    n = f"{report.samples:,}"
    lines += [
        rule,
        f"{'floor':<20} {'distance':<10}{report.floor:>9.4f}  ± {report.noise:.4f} (sd): exact against exact",
        "",
        f"Distance: sliced Wasserstein-2 between {n} generated and {n} exact samples,",
        f"where the data's own standard deviation is {report.spread:.2f}. The score is exact, so what",
        "is above the floor is the solver's error. * as near as exact samples (+ 2 sd).",
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_csv(report: Report, path: Path) -> None:
    """One line per row, with the floor in the last column."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "floor"])
        for row in report.rows:
            writer.writerow([*row[:3], f"{row.distance:.6f}", f"{row.seconds:.3f}", f"{report.floor:.6f}"])


def draw(digits: Digits, report: Report, seed: int, folder: Path) -> None:
    """All pictures, into the folder."""
    model = digits.mixture.score(VP())
    made = digits.sheet(sample(model, (600, 8, 8), steps=SHEET_STEPS, seed=seed, progress=False))
    sheets(made, digits.sheet(digits.images, digits.labels), folder / "digits.png")
    trajectories(model, seed, folder / "trajectories.png")
    overview(made, report, folder / "overview.png")
    whole = plots.figure(7.6, 4.8)
    title = f"{report.samples:,} digits drawn with an exact score"
    _quality(report, whole.add_subplot(), title, "sliced Wasserstein-2 distance to the exact law")
    whole.savefig(folder / "quality.png", dpi=150)


def sheets(made: Tensor, real: Tensor, path: str | os.PathLike[str]) -> None:
    """Generated digits beside real ones, a row per digit."""
    whole = plots.figure(10.0, 5.1)
    rows = [str(digit) for digit in range(10)]
    left, right = whole.subplots(1, 2)
    title = f"Generated, by {SHEET_STEPS + 1} evaluations of the default method"
    plots.image_grid(made, 10, left, title=title, row_labels=rows)
    plots.image_grid(real, 10, right, title="Real, from scikit-learn", row_labels=rows)
    whole.savefig(path, dpi=150)


def overview(made: Tensor, report: Report, path: str | os.PathLike[str]) -> None:
    """Generated digits beside NFE against distance, in one picture 1200 pixels wide."""
    whole = plots.figure(12.0, 4.8)
    places = whole.add_gridspec(1, 2, width_ratios=[1.0, 1.62])
    left, right = (whole.add_subfigure(places[i]) for i in range(2))
    plots.image_grid(
        made, 10, left.add_subplot(), title=f"Digits, by {SHEET_STEPS + 1} evaluations of the default method"
    )
    title = "How far from the exact law, after how many evaluations"
    _quality(report, right.add_subplot(), title, "sliced Wasserstein-2 distance")
    whole.savefig(path, dpi=100)


def trajectories(model: ScoreModel, seed: int, path: str | os.PathLike[str], steps: int = 44, every: int = 4) -> None:
    """States and predicted data of five samples along the default method's steps, on a grid uniform in time."""
    process, solver = model.process, default()
    times = by_time(process, steps)  # the method's own grid would fill half of the picture with pure noise
    start = process.prior(noises.seeds(seed, 5), (8, 8), torch.float32)
    states = [start, *solve(model, start, times, solver, observe=lambda progress: progress.x.clone()).path][::every]
    levels = [process.level(t) for t in times[::every]]
    data = [model(x, level, "data") for x, level in zip(states, levels)]
    noise = [float(level.sigma / level.alpha) for level in levels]
    labels = [f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in noise]
    whole = plots.figure(8.2, 7.5)
    top, bottom = whole.subplots(2, 1)
    plots.trajectories(torch.stack(states), labels, top, title="The state, at noise levels σ/α", span=(-1.25, 1.25))
    plots.trajectories(torch.stack(data), labels, bottom, title="The data that the model predicts from it")
    whole.savefig(path, dpi=150)


def _quality(report: Report, ax: Axes, title: str, distance: str) -> None:
    curves = {METHODS[name].label: [(row.nfe, row.distance) for row in report.of(name)] for name in report.methods}
    bold = METHODS["default"].label
    plots.quality(curves, report.floor, ax, noise=2 * report.noise, title=title, distance=distance, emphasis=bold)
