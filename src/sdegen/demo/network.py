"""The demo's network: a U-Net trained on real digits, beside the exact mixture of the same digits and held-out ones."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen import metrics, plots
from sdegen import noise as noises
from sdegen.demo import runs
from sdegen.demo.digits import Digits, fit
from sdegen.plots.style import COLOURS, MUTED, headed, look, plain
from sdegen.processes.schedules import VP
from sdegen.progress import told_bar
from sdegen.sampling.sample import sample
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import ScoreModel
from sdegen.testing.diagnosis.audit import Audit, audit
from sdegen.training import losses
from sdegen.training.data import digits
from sdegen.training.loop import ByLevel

BUDGETS = (5, 10, 20)
HELD_OUT, STEPS, SAMPLES = 297, 1800, 1500
FILES = ("network.png", "training.png", "network.csv", "audit.txt")
FOLDER = "network"
_SHOWN = 12


class Row(NamedTuple):
    """A set of images beside the held-out ones: sliced Wasserstein-2 distance, precision and recall."""

    images: str
    nfe: int
    distance: float
    precision: float
    recall: float


class Trained(NamedTuple):
    """What was trained, and what came of it.

    digits: the training images and their mixture; held: the others `[n, 8, 8]`; unit: the mixture at the network's
    scale; curves: the loss by level after some steps; drawn: samples by name and evaluations.
    """

    model: ScoreModel
    run: runs.Run
    digits: Digits
    held: Tensor
    unit: GaussianMixture
    curves: dict[int, ByLevel]
    rows: list[Row]
    drawn: dict[tuple[str, int], Tensor]
    audit: Audit


def train(out: Path, seed: int, *, steps: int = STEPS, samples: int = SAMPLES, quiet: bool = False) -> Trained:
    """Train on all digits but the held-out ones, in the folder `network`, and measure samples beside the mixture's."""
    images, _ = digits()
    order = noises.seeds(seed, len(images)).argsort()
    held = images[order[:HELD_OUT]]
    kept = fit(seed, order[HELD_OUT:])
    curves: dict[int, ByLevel] = {}
    shown = {max(1, steps * k // 100) for k in (5, 25, 100)}
    data = kept.images.float()[:, None]
    for name in runs.FILES:
        (out / FOLDER / name).unlink(missing_ok=True)  # of another demo
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))  # convolutions gain by the second
    try:
        for state in runs.fit(data, out / FOLDER, steps=steps, seed=seed, progress=False if quiet else None):
            if state.step in shown:
                curves[state.step] = state.by_level
    finally:
        torch.set_num_threads(threads)
    run, model = runs.load(out / FOLDER)
    mean, std = run.mean[0], run.std[0]
    unit = GaussianMixture(
        (kept.mixture.means - mean) / std, covs=kept.mixture.dense() / std**2, weights=kept.mixture.weights
    )
    exact = kept.mixture.score(VP())
    drawn: dict[tuple[str, int], Tensor] = {}
    with told_bar(2 * sum(BUDGETS), False if quiet else None) as bar:
        for nfe in BUDGETS:
            bar.set_description_str(f"samples by {nfe} evaluations")
            drawn["mixture", nfe] = sample(exact, (samples, 8, 8), nfe=nfe, seed=seed, progress=False).float()
            z = sample(model, (samples, 1, 8, 8), nfe=nfe, seed=seed, progress=False)
            drawn["network", nfe] = run.latent.back(z)[:, 0]
            bar.update(2 * nfe)
    rows = [_row("training images", 0, kept.images, held)]
    rows += [_row(name, nfe, x, held) for (name, nfe), x in drawn.items()]
    diagnosis = audit(model, run.latent.to(data))
    return Trained(model, run, kept, held, unit, curves, rows, drawn, diagnosis)


def _row(name: str, nfe: int, x: Tensor, held: Tensor) -> Row:
    a, b = x.double().flatten(1), held.flatten(1)
    return Row(name, nfe, metrics.sliced_wasserstein(a, b), metrics.precision(a, b), metrics.recall(a, b))


def table(done: Trained) -> str:
    """The rows as text."""
    parameters = sum(p.numel() for p in done.model.parameters())
    lines = [
        f"A U-Net of {parameters:,} parameters, trained on {len(done.digits.images):,} of the digits, beside the exact",
        f"mixture of the same; distances are those to the {len(done.held)} digits that neither has seen.",
        "",
        f"{'images':<28}{'evaluations':>12}{'distance':>11}{'precision':>11}{'recall':>9}",
    ]
    names = {"mixture": "exact mixture, default()", "network": "network, default()"}
    for row in sorted(done.rows, key=lambda row: (row.nfe, row.images)):
        count = row.nfe or ""
        name = names.get(row.images, row.images)
        lines.append(f"{name:<28}{count:>12}{row.distance:>11.4f}{row.precision:>11.3f}{row.recall:>9.3f}")
    lines.append("")
    lines.append("Distance: sliced Wasserstein-2. Training images show what is left by the finite number of both.")
    return "\n".join(lines)


def write(done: Trained, folder: Path) -> None:
    """The pictures, the rows and the audit, into the folder."""
    with (folder / "network.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([*row[:2], *(f"{value:.6f}" for value in row[2:])] for row in done.rows)
    (folder / "audit.txt").write_text(f"{done.audit}\n", encoding="utf-8")
    _sheet(done, folder / "network.png")
    _losses(done, folder / "training.png")


def _sheet(done: Trained, path: Path) -> None:
    """Held-out digits, and samples of the mixture and of the network at each budget."""
    half = _SHOWN // 2
    whole = plots.figure(10.0, 4.8)
    whole.supxlabel("left of the rows: network evaluations", fontsize=9, color=MUTED)
    parts = [("Real, held out", [("", done.held.float())])]
    titles = {"mixture": "20 Gaussians, exact score", "network": "Network, from the same noise"}
    for name, title in titles.items():
        parts.append((title, [(str(nfe), done.drawn[name, nfe]) for nfe in BUDGETS]))
    for ax, (title, blocks) in zip(whole.subplots(1, 3), parts):
        rows = 9 // len(blocks)
        images = torch.cat([x[: rows * half] for _, x in blocks])
        labels = [label if k == rows // 2 else "" for label, _ in blocks for k in range(rows)]
        plots.image_grid(images, half, ax, title=title, row_labels=labels)
    whole.savefig(path, dpi=150)


def _losses(done: Trained, path: Path) -> None:
    """The loss by level while training; and the error of the noise on held-out digits, of network and mixture."""
    whole = plots.figure(10.0, 4.0)
    left, right = whole.subplots(1, 2)
    for ax in (left, right):
        look(ax)
    for k, (step, means) in enumerate(sorted(done.curves.items())):
        middle = (means.lam[1:] + means.lam[:-1]) / 2
        left.plot(middle, means.loss, color=COLOURS[1 + k], marker="o", ms=4, label=f"network, after step {step}")
    plain(left, "log-SNR, log(α/σ): from noise to data", "EDM's loss")
    headed(left, "The loss by level (few samples at its left end)")
    held = done.run.latent.to(done.held.float()[:, None])
    models = {
        "network": (done.model, held),
        "20 Gaussians, exact score": (done.unit.score(done.model.process), held[:, 0].double()),
    }
    first, last = done.model.process.edges.tolist()
    lam = torch.linspace(first, last, 25)[1:-1]
    for k, (name, (model, data)) in enumerate(models.items()):
        with torch.no_grad():
            errors = [losses.matching(model, data, levels=model.process.at(v), seed=1).mean() for v in lam]
        right.plot(lam, errors, color=COLOURS[(3, 0)[k]], label=name)
    plain(right, "log-SNR, log(α/σ): from noise to data", "mean square error of the noise")
    headed(right, "On digits that neither has seen")
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=9)
    whole.savefig(path, dpi=150)
