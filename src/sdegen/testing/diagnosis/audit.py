"""`audit(model, data)`: why do the samples of this network look wrong?

Everything is measured on data noised to a level: `x = alpha data + sigma noise`. Losses are those of the predicted
noise, over that of the best linear denoiser, which knows only the data's mean and variances: above 1 a network is worse
than knowing nothing of the data but their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import ScoreModel
from sdegen.testing.checks.shared import working_dtype
from sdegen.testing.diagnosis.findings import WORSE, AuditRow, Finding, find
from sdegen.testing.diagnosis.hypotheses import Batch, Reading, Score, linear_loss, over, scores

F64 = torch.float64


@dataclass(frozen=True)
class Audit:
    """The diagnosis of a score model: a table by level, how other readings of the network fare, and findings.

    Prints as a table and sentences; `plot()` draws it. `ok` if nothing was found.
    """

    model: str
    rows: tuple[AuditRow, ...]
    readings: tuple[tuple[Reading, float], ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        head = f"{'t':>10} {'lam':>7} {'loss':>9} {'linear':>9} {'ratio':>7} {'size':>6} {'tweedie':>8} {'curl':>6}"
        lines = [f"audit of {self.model}", "", head]
        for r in self.rows:
            lines.append(
                f"{r.t:>10.4g} {r.lam:>7.2f} {r.loss:>9.3g} {r.linear:>9.3g} {r.ratio:>7.2f} {r.size:>6.2f} "
                f"{r.tweedie:>8.2f} {r.curl:>6.2f}"
            )
        lines += ["", "readings of the network, by the geometric mean of loss over the linear denoiser's:"]
        lines += [f"  {score:>9.3g}  {reading}" for reading, score in self.readings]
        lines += ["", "findings:" if self.findings else "nothing was found: the model is consistent with these data"]
        lines += [f"  - {finding.sentence}" for finding in self.findings]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The audit in plain numbers and strings, for JSON."""
        return {
            "model": self.model,
            "rows": [{**row._asdict(), "ratio": row.ratio} for row in self.rows],
            "readings": [{"reading": str(reading), "score": score} for reading, score in self.readings],
            "findings": [finding._asdict() for finding in self.findings],
        }

    def plot(self, ax: Any = None) -> Any:
        """Loss over the best linear denoiser's (the line at 1) by log-SNR; returns the Axes. Needs matplotlib."""
        from sdegen.plots import COLOURS, MUTED, figure

        ax = figure(6.4, 4.2).add_subplot() if ax is None else ax
        ax.axhline(1.0, color=MUTED, ls="--", lw=1, label="best linear denoiser")
        ax.plot([row.lam for row in self.rows], [row.ratio for row in self.rows], color=COLOURS[1], marker="o")
        bad = [row for row in self.rows if row.ratio > WORSE]
        if bad:
            ratios = [row.ratio for row in bad]
            ax.plot([row.lam for row in bad], ratios, "o", color=COLOURS[0], ms=8, label="worse than it")
        ax.set(yscale="log", xlabel="log(alpha/sigma): from noise to data", ylabel="loss over the linear denoiser's")
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, 0.5), max(high, 2.0))
        ax.legend(frameon=False)
        return ax


def audit(
    model: ScoreModel, data: Tensor | GaussianMixture, *, levels: int = 10, samples: int = 256, seed: int = 0
) -> Audit:
    """Diagnose a score model on the data `[N, *S]` of its network's training (or a mixture): what is wrong, and where?

    Compares the network's denoising loss at `levels` log-SNRs with the best linear denoiser's, with what other
    predictions, signs, time maps, input scales, data scales and processes would give; its size at high noise with
    `-x/sigma^2`; its Jacobian with a symmetric one; its error with Tweedie's formula. `samples` rows per level. Costs
    about 40 evaluations per level.

    Raises InvalidTypeError unless `model` is a ScoreModel, InvalidArgumentError on data that are not finite `[N, *S]`.
    """
    if not isinstance(model, ScoreModel):
        raise InvalidTypeError(
            f"audit takes a ScoreModel, got {model!r}; wrap the network: sd.ScoreModel(process, net)"
        )
    if levels < 4 or samples < 16:
        raise InvalidArgumentError(f"audit needs levels >= 4 and samples >= 16, got {levels} and {samples}")
    rows = _data(data, samples * levels, seed)
    process = model.process
    model.check_batch(len(rows))
    noisiest, cleanest = process.edges.tolist()
    lams = torch.linspace(noisiest, cleanest, levels, dtype=F64)
    batches = _batches(model, rows, levels, samples, seed)
    dtype = working_dtype(batches[0].model, batches[0].noise, data.dtype if isinstance(data, Tensor) else F64)
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    first, last = (
        process.at(lam) if is_open else process.level(t)
        for lam, is_open, t in zip((lams[0], lams[-1]), process.open_ends, (process.t_max, process.t_min))
    )
    levels_ = [first, *(process.at(lam) for lam in lams[1:-1]), last]
    table = tuple(_row(level, batch, mean, variance, dtype) for level, batch in zip(levels_, batches))
    read = _readings(model, _telling(model, table, variance), batches[1:-1], variance, dtype)
    found = find(model, process, table, read, rows, batches[levels // 2], dtype)
    best = sorted(read.items(), key=lambda item: item[1])
    shown = [(Reading(), read[Reading()]), *[item for item in best if item[0] != Reading()][:4]]
    return Audit(str(model), table, tuple(sorted(shown, key=lambda item: item[1])), tuple(found))


def _data(data: Any, count: int, seed: int) -> Tensor:
    """The data as rows in float64, as many as there are."""
    if isinstance(data, GaussianMixture):
        return data.sample(count, seed=seed)
    if not isinstance(data, Tensor) or data.ndim < 2 or not data.is_floating_point() or len(data) < 2:
        got = f"{data.dtype} of shape {list(data.shape)}" if isinstance(data, Tensor) else repr(data)
        raise InvalidArgumentError(
            f"data must be a floating tensor [N, *S] of two samples or more, or a mixture; got {got}"
        )
    if not bool(data.isfinite().all()):
        raise InvalidArgumentError("data hold NaN or Inf; leave those samples out")
    return data.detach().to(F64)


def _batches(model: ScoreModel, rows: Tensor, levels: int, samples: int, seed: int) -> list[Batch]:
    """Fresh data and noise for every level; data are taken in an order that the seed shuffles."""
    order = torch.argsort(noises.seeds(seed, len(rows), device=rows.device))
    found = []
    for k in range(levels):
        index = order[(torch.arange(samples, device=rows.device) + k * samples) % len(rows)]
        shape = tuple(rows.shape[1:])
        z = noises.normals(noises.seeds(seed, samples, device=rows.device), shape, (11, k, 0, 0), dtype=F64)
        found.append(Batch(rows[index], z, model.rows(index)))
    return found


def _row(level: Level, batch: Batch, mean: Tensor, variance: Tensor, dtype: torch.dtype) -> AuditRow:
    a, s = float(level.alpha), float(level.sigma)
    x = a * batch.data + s * batch.noise
    with torch.no_grad():
        noise = batch.model(x.to(dtype), level, "noise").double()
    loss = float((noise - batch.noise).square().mean())
    linear = linear_loss(level, variance)
    away = (x - a * mean) / s
    size = float((noise * away).mean() / away.square().mean())
    tweedie, curl = _derivatives(level, batch, x, noise, dtype)
    return AuditRow(float(level.t), float(level.lam), loss, linear, size, tweedie, curl)


def _derivatives(level: Level, batch: Batch, x: Tensor, noise: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Tweedie's ratio and the curl, from products of the Jacobian of the noise with random u and w."""
    # signs instead of normals: what the Jacobian has of the identity then adds nothing to the scatter (Hutchinson 1990)
    u, w = (
        noises.normals(noises.seeds(k, len(x), device=x.device), tuple(x.shape[1:]), (12, 0, 0, 0), dtype=F64).sign()
        for k in (1, 2)
    )
    try:
        at = x.to(dtype).requires_grad_()
        with torch.enable_grad():
            out = batch.model(at, level, "noise")
            (by_u,) = torch.autograd.grad((out * u.to(dtype)).sum(), at, retain_graph=True)
            (by_w,) = torch.autograd.grad((out * w.to(dtype)).sum(), at)
    except RuntimeError:
        return math.nan, math.nan
    forth, back = (by_u.double() * w).flatten(1).sum(1), (by_w.double() * u).flatten(1).sum(1)
    rms = ((forth + back) / 2).square().mean().sqrt()
    curl = float(((forth - back) / 2).square().mean().sqrt() / rms.clamp(min=1e-300))
    # data = (x - s noise)/a: its mean square error is (s/a)^2 that of the noise, its divergence (D - s div noise)/a
    a, s, size = float(level.alpha), float(level.sigma), x[0].numel()
    spread = float((size - s * (by_u.double() * u).flatten(1).sum(1)).mean()) / a
    error = (s / a) ** 2 * float((noise - batch.noise).square().flatten(1).sum(1).mean())
    promised = s * s / a * spread
    return error / promised if promised > 0 else math.nan, curl


def _telling(model: ScoreModel, table: tuple[AuditRow, ...], variance: Tensor) -> Tensor:
    """Log-SNRs for readings: a third at high noise, the others where the linear denoiser's loss is 1 to 95 %.

    At high noise every reading of the right size fares alike; at low noise silence does, and no level is spent there.
    """
    lams = torch.linspace(table[0].lam, table[-1].lam, 200, dtype=F64)
    said = torch.tensor([linear_loss(model.process.at(lam), variance) for lam in lams], dtype=F64)
    inside = lams[(said > 0.01) & (said < 0.95)]
    if len(inside) < 2:
        return lams[:: 200 // len(table)][1 : len(table) - 1]
    count = len(table) - 2
    high = torch.linspace(float(lams[1]), float(inside[0]), count // 3 + 1, dtype=F64)[:-1]
    return torch.cat([high, torch.linspace(float(inside[0]), float(inside[-1]), count - count // 3, dtype=F64)])


def _readings(
    model: ScoreModel, lams: Tensor, batches: list[Batch], variance: Tensor, dtype: torch.dtype
) -> dict[Reading, float]:
    """The geometric mean over levels of each reading's loss over the linear denoiser's; the declared one among them.

    Others count only if their output says something of x: if at some level they fare worse when it is shuffled.
    """
    with torch.no_grad():
        found = {} if model.predicts == "energy" else scores(model, lams, batches, dtype)
        own = [_own(batch, model.process.at(lam), variance, dtype) for lam, batch in zip(lams, batches)]
    means = {r: _mean([v.loss for v in values]) for r, values in found.items() if _speaks(values)}
    means[Reading()] = _mean(own)
    return means


def _speaks(values: list[Score]) -> bool:
    told = [v.shuffled / v.loss for v in values]
    # a reading that gains nothing on the linear denoiser could be one that ignores the network
    return max(told) > 1.2 and (_mean([v.loss for v in values]) < 1 or _mean(told) > 2)


def _mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values)) if all(map(math.isfinite, values)) else math.inf


def _own(batch: Batch, level: Level, variance: Tensor, dtype: torch.dtype) -> float:
    """The declared reading's loss over the linear denoiser's."""
    x = (level.alpha * batch.data + level.sigma * batch.noise).to(dtype)
    noise = batch.model(x, level, "noise").double()
    return over(float((noise - batch.noise).square().mean()), linear_loss(level, variance))
