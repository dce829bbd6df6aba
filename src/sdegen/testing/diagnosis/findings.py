"""What an audit's numbers mean, in sentences: one per finding, with its probable cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.model import ScoreModel
from sdegen.testing.diagnosis.hypotheses import Batch, Reading, over


class AuditRow(NamedTuple):
    """One level: losses of predicted noise over the linear denoiser's, and what should be 1, 1 and 0.

    loss: mean square error of the predicted noise; linear: that of the best linear denoiser. size: the predicted noise
    along x/sigma, 1 where noise is all. tweedie: the denoiser's mean square error over `sigma^2/alpha E[div denoiser]`,
    1 for a posterior mean. curl: the antisymmetric part of the Jacobian over the symmetric one, 0 for a gradient.
    """

    t: float
    lam: float
    loss: float
    linear: float
    size: float
    tweedie: float
    curl: float

    @property
    def ratio(self) -> float:
        """The loss over the linear denoiser's."""
        return self.loss / self.linear


class Finding(NamedTuple):
    """What was found, in one sentence with its probable cause; `kind` says what it is about."""

    kind: str
    sentence: str


WORSE = 1.15
"""A loss over the linear denoiser's that is no longer sampling error: 256 samples of one dimension scatter by 0.09."""
CLEAR = 0.85
"""How much better another reading must fare before it is believed; all readings see the same data and noise."""
RIGHT = 1.05
"""The loss over the linear denoiser's below which a reading may be right."""
FAR, TOLERABLE = 0.5, 1.25
TIED = 1.04
"""How much better a reading must fare for each thing that it changes."""
CURL = 0.3
SIZE = 0.15
TWEEDIE = 1.5
START = 0.15


def find(
    model: ScoreModel,
    process: Process,
    table: tuple[AuditRow, ...],
    scores: dict[Reading, float],
    data: Tensor,
    batch: Batch,
    dtype: torch.dtype,
) -> Iterator[Finding]:
    """All findings, what is likeliest to be the cause first."""
    yield from _mode(model)
    if not all(math.isfinite(row.loss) for row in table):
        where = next(row for row in table if not math.isfinite(row.loss))
        yield Finding(
            "finite",
            f"The network gives NaN or Inf at t = {where.t:.4g}: look for an overflow of its time, or of a layer "
            "in half precision.",
        )
        return
    yield from _batch(process, batch, dtype)
    found = list(_reading(model, scores)) or [*_size(table), *_curl(table)]
    yield from found or _stranger(scores) or [*_worse(table), *_tweedie(table)]
    yield from _start(process, data)


def _mode(model: ScoreModel) -> Iterator[Finding]:
    net = model.module
    if net is not None and any(part.training for part in net.modules()):
        yield Finding(
            "mode",
            "The network is in training mode, so dropout and batch norm are active: call net.eval() before sampling.",
        )


def _batch(process: Process, batch: Batch, dtype: torch.dtype) -> Iterator[Finding]:
    level = process.level((process.t_min + process.t_max) / 2)
    x = (level.alpha * batch.data + level.sigma * batch.noise).to(dtype)
    with torch.no_grad():
        whole = batch.model(x, level, "noise")
        alone = batch.model.rows(torch.zeros(1, dtype=torch.int64))(x[:1], level, "noise")
    gap = float((whole[:1] - alone).abs().max() / (1 + whole.abs().max()))
    if gap > 1e-3:
        yield Finding(
            "batch",
            f"A sample's prediction changes by {gap:.2g} when it is alone instead of in a batch: a layer looks across "
            "the batch (batch norm in training mode, or a sum over the wrong dimension).",
        )


def _reading(model: ScoreModel, scores: dict[Reading, float]) -> Iterator[Finding]:
    """Another reading fares clearly better than the declared one: of those as good as the best, the least different."""
    own = scores[Reading()]
    others = {reading: score for reading, score in scores.items() if reading != Reading()}
    if not others:
        return
    best = min(others.values())
    # a network with errors of its own is never quite right: then the other reading must be far better
    if not (best < CLEAR * own and best < RIGHT) and not (best < FAR * own and best < TOLERABLE):
        return
    # each further change must earn its keep
    reading = min(others, key=lambda r: others[r] * TIED**r.changes)
    cause, score = _cause(model, reading), others[reading]
    if score < 1.0:
        sentence = (
            f"The network is misread: {cause} (loss {score:.2g} of the linear denoiser's, {own:.2g} as declared)."
        )
    else:  # no better than what knows only the data's size: a network that is not what it should be looks so too
        sentence = (
            f"As declared the loss is {own:.2g} times the linear denoiser's; the best reading ({score:.2g}) is that "
            f"{cause}. If that is not so: is this the trained network, and are these its data?"
        )
    yield Finding("reading", sentence)


def _stranger(scores: dict[Reading, float]) -> list[Finding]:
    """A network that fares badly however it is read."""
    own = scores[Reading()]
    if own < 3.0:
        return []
    sentence = (
        f"The loss is {own:.2g} times the linear denoiser's, and no other prediction, sign, time, input, data scale or "
        "process fares well: is this the trained network, with its weights loaded, and are these its data?"
    )
    return [Finding("stranger", sentence)]


def _cause(model: ScoreModel, reading: Reading) -> str:
    """What to change, for a reading that differs from the declaration."""
    causes = []
    if reading.process:
        causes.append(
            f"it was trained on {reading.process}, not on {model.process}; build the ScoreModel on that process"
        )
    if reading.predicts != "as declared":
        name = "edm" if reading.predicts == "EDM's F" else reading.predicts
        causes.append(f"it predicts {reading.predicts}, not {model.predicts}; declare predicts={name!r}")
    if reading.sign < 0:
        causes.append("its output has the opposite sign; negate it, lambda x, t: -net(x, t)")
    if reading.time:
        causes.append(f"it takes {reading.time} for its time; give time= that maps a level so")
    if reading.input:
        causes.append(f"it takes {reading.input} for its input; scale x before the network")
    if reading.data:
        causes.append(f"its training data were {reading.data}, compared with these; scale the data or the samples")
    return ", and ".join(causes)


def _worse(table: tuple[AuditRow, ...]) -> Iterator[Finding]:
    bad = [row for row in table if over(row.loss, row.linear) > WORSE]
    if not bad:
        return
    worst = max(bad, key=lambda row: over(row.loss, row.linear))
    place = _place(table, worst)
    cause = {
        "high noise": "few training steps saw such levels, or its input is not scaled down there",
        "low noise": "it cannot resolve small noise: precision of its time, or levels that training never reached",
        "middle": "it is under-trained where structure forms: look at the training distribution of levels",
    }[place]
    yield Finding(
        "loss",
        f"At {len(bad)} of {len(table)} levels the network is worse than the best linear denoiser, most of all at t = "
        f"{worst.t:.4g} ({worst.ratio:.2g} times its loss), at {place}: {cause}.",
    )


def _place(table: tuple[AuditRow, ...], row: AuditRow) -> str:
    position = table.index(row) / (len(table) - 1)
    return "high noise" if position < 0.34 else "low noise" if position > 0.66 else "middle"


def _size(table: tuple[AuditRow, ...]) -> Iterator[Finding]:
    """Where the linear denoiser's loss is below 2 %, x is noise but for 2 %, and the score must be -x/sigma^2."""
    noisy = [row for row in table if row.linear < 0.02]
    bad = [row for row in noisy if abs(row.size - 1) > SIZE]
    if bad:
        row = max(bad, key=lambda r: abs(r.size - 1))
        yield Finding(
            "size",
            f"At t = {row.t:.4g}, where x is almost only noise, the score is {row.size:.2f} times -x/sigma^2 instead "
            "of 1: a factor is missing or doubled between the network's output and the score there.",
        )


def _curl(table: tuple[AuditRow, ...]) -> Iterator[Finding]:
    bad = [row for row in table if row.curl > CURL]
    if bad:
        row = max(bad, key=lambda r: r.curl)
        yield Finding(
            "curl",
            f"The score is no gradient: at t = {row.t:.4g} its Jacobian's antisymmetric part is {row.curl:.2f} of the "
            "symmetric one. A little of it is usual in trained networks; this much bends flows and likelihoods.",
        )


def _tweedie(table: tuple[AuditRow, ...]) -> Iterator[Finding]:
    """Only where there is an error to speak of: data of isolated points are known without one at low noise."""
    told = [row for row in table if 0.02 < row.linear < 0.999 and row.ratio > 0.05]
    # few samples hold most of a rare error: a mean that misses them is too small, and is no sign of anything
    bad = [row for row in told if not TWEEDIE**-2 < row.tweedie < TWEEDIE]
    if len(bad) > 1:
        row = max(bad, key=lambda r: abs(math.log(max(r.tweedie, 1e-9))))
        more = row.tweedie > 1
        yield Finding(
            "tweedie",
            f"At t = {row.t:.4g} the denoiser's error is {row.tweedie:.2g} times what its divergence promises: it is "
            + (
                "more certain than it is right (over-fitted, or sharpened by guidance)."
                if more
                else "less certain than it could be (under-fitted, or averaged)."
            ),
        )


def _start(process: Process, data: Tensor) -> Iterator[Finding]:
    level: Level = process.level(process.t_max)
    share = float(level.alpha * data.std() / level.sigma)
    if share > START:
        yield Finding(
            "start",
            f"At t_max the data are still {share:.2g} of the noise, and sampling starts from noise alone: extend the "
            "process (t_max, sigma_max, beta_max) or scale the data down.",
        )
