"""What a network may really be: every reading of its output, its time, its input and its data, by denoising loss.

A reading turns the network's raw output into predicted noise. The mean square error of that noise, over the loss of the
best linear denoiser of the data's mean and variances, is below 1 at every level if the reading is right and the network
learned anything, and far above 1 if it is wrong: a network is told apart from its misreadings without being retrained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.processes.schedules import EDM, VE, VP, Cosine, DiscreteVP, Flow
from sdegen.scores.model import ScoreModel, convert, level_time, log_sigma_time, plane, sigma_time
from sdegen.tensors import combine

F64 = torch.float64
PREDICTIONS = ("data", "noise", "score", "v", "velocity")


class Reading(NamedTuple):
    """How a network is read: what its output is, with which sign, and which process, time, input and data it takes."""

    predicts: str = "as declared"
    sign: int = 1
    process: str = ""
    time: str = ""
    input: str = ""
    data: str = ""

    @property
    def changes(self) -> int:
        """In how many things it differs from the declaration."""
        return sum((self.predicts != "as declared", self.sign < 0, *(bool(v) for v in self[2:])))

    def __str__(self) -> str:
        said = [] if self.predicts == "as declared" else [f"it predicts {self.predicts}"]
        if self.sign < 0:
            said.append("with the opposite sign")
        said += [f"trained on {self.process}" if self.process else ""]
        said += [f"its time is {self.time}" if self.time else ""]
        said += [f"its input is {self.input}" if self.input else ""]
        said += [f"its data were {self.data}" if self.data else ""]
        return ", ".join(part for part in said if part) or "as declared"


class Batch(NamedTuple):
    """Data and noise `[B, *S]` for one level, and the model with the conditions of those data."""

    data: Tensor
    noise: Tensor
    model: ScoreModel


class Score(NamedTuple):
    """How a reading fares at a level: its loss, and that with the outputs handed to other rows, over the linear one's.

    A reading whose output says nothing of x fares no worse with another row's.
    """

    loss: float
    shuffled: float


FLOOR = 1e-3
"""Added to losses before they are compared: below it a network's own error of a few percent would decide."""


def over(loss: float, linear: float) -> float:
    """A loss over the linear denoiser's."""
    return (loss + FLOOR) / (linear + FLOOR)


class _Call(NamedTuple):
    """One way of calling the network: a process, a time map, an input scale, a map of the data."""

    reading: Reading
    process: Process
    time: Callable[[Level], Tensor]
    scale: Callable[[Level], Tensor]
    data: Callable[[Tensor], Tensor]


def _one(level: Level) -> Tensor:
    return torch.ones_like(level.alpha)


def _same(data: Tensor) -> Tensor:
    return data


def _times(process: Process) -> dict[str, Callable[[Level], Tensor]]:
    """Time maps that are met in the field, by what a finding calls them."""
    return {
        "t": level_time,
        "sigma/alpha": sigma_time,
        "log(sigma/alpha)/4": log_sigma_time,
        "1000 t": lambda level: 1000 * level.t,
        "the index 0 ... 999": lambda level: 1000 * level.t - 1,
        "1 - t, running the other way": lambda level: 1 - level.t,
        "t / 1000": lambda level: level.t / 1000,
        "lam, the log-SNR": lambda level: level.lam,
    }


_DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "mapped from [0, 1] to [-1, 1]": lambda d: 2 * d - 1,
    "mapped from [-1, 1] to [0, 1]": lambda d: (d + 1) / 2,
    "divided by 127.5 and centred": lambda d: d / 127.5 - 1,
    "of half the size": lambda d: d / 2,
    "of twice the size": lambda d: 2 * d,
    "scaled by 0.18215, as latents of Stable Diffusion are": lambda d: 0.18215 * d,
    "not scaled by 0.18215, as latents of Stable Diffusion are": lambda d: d / 0.18215,
}


def _calls(model: ScoreModel) -> Iterator[_Call]:
    """The declared call first, then those that differ in one thing."""

    def edm_scale(level: Level) -> Tensor:
        return 1 / torch.sqrt(level.sigma**2 + (model.sigma_data * level.alpha) ** 2)

    own_scale = edm_scale if model.predicts == "edm" else _one
    declared = _Call(Reading(), model.process, model.time, own_scale, _same)
    yield declared
    for name, time in _times(model.process).items():
        yield declared._replace(reading=Reading(time=name), time=time)
    other = {
        "x itself": _one,
        "x over its own size (EDM's c_in)": edm_scale,
        "x / alpha": lambda level: 1 / level.alpha,
    }
    for name, scale in other.items():
        if scale is not own_scale:
            yield declared._replace(reading=Reading(input=name), scale=scale)
    whole = Reading(time="log(sigma/alpha)/4", input="x over its own size (EDM's c_in)")
    yield declared._replace(reading=whole, time=log_sigma_time, scale=edm_scale)
    plain = Reading(time="t", input="x itself")
    yield declared._replace(reading=plain, time=level_time, scale=_one)
    for name, data in _DATA.items():
        yield declared._replace(reading=Reading(data=name), data=data)
    for process in (VP(), VE(), EDM(), Cosine(), DiscreteVP(), Flow()):
        if process != model.process:
            yield declared._replace(reading=Reading(process=str(process)), process=process)


def pair(model: ScoreModel, call: _Call, level: Level) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Pairs of the plane that the output may be, the declared one first."""
    on_process = model if call.process is model.process else _on(model, call.process)
    yield "as declared", on_process.pair(level)
    for name in PREDICTIONS:
        if name != model.predicts:
            yield name, plane(call.process, level, name)
    if model.predicts != "edm":
        edm = ScoreModel(call.process, model.net, "edm", sigma_data=model.sigma_data)
        yield "EDM's F", edm.pair(level)


def _on(model: ScoreModel, process: Process) -> ScoreModel:
    other = ScoreModel(process, model.net, model.predicts, time=model.time, sigma_data=model.sigma_data)
    return other


def raw(model: ScoreModel, call: _Call, x: Tensor, level: Level) -> Tensor:
    """The network's own output, called in a way that need not be the declared one."""
    net = ScoreModel(
        call.process, model.net, "data", time=call.time, cast=True, time_dtype=model.time_dtype, **model.condition
    )
    return net(combine((call.scale(level), x)).to(x.dtype), level, "data")


def linear_loss(level: Level, variance: Tensor) -> float:
    """The best linear denoiser's mean square error in the noise, `alpha^2 v / (alpha^2 v + sigma^2)` per element."""
    signal = level.alpha**2 * variance
    return max(float((signal / (signal + level.sigma**2)).mean()), 1e-12)


def scores(model: ScoreModel, lams: Tensor, batches: list[Batch], dtype: torch.dtype) -> dict[Reading, list[Score]]:
    """How each reading fares at each log-SNR, where it fares at all."""
    found: dict[Reading, list[Score]] = {}
    for call in _calls(model):
        for lam, batch in zip(lams, batches):
            for reading, score in _at(model, call, lam, batch, dtype):
                found.setdefault(reading, []).append(score)
    return {reading: values for reading, values in found.items() if len(values) == len(lams)}


def _at(
    model: ScoreModel, call: _Call, lam: Tensor, batch: Batch, dtype: torch.dtype
) -> Iterator[tuple[Reading, Score]]:
    process = call.process
    low, high = sorted(process.edges.tolist())
    if not low - 1 <= float(lam) <= high + 1:
        return
    level = process.at(lam.clamp(low, high))  # processes end at different levels: the nearest one tells as much
    data = call.data(batch.data)
    linear = linear_loss(level, data.var(0, correction=0))
    x = (level.alpha * data + level.sigma * batch.noise).to(dtype)
    try:
        output = raw(batch.model, call, x, level).double()
    except (RuntimeError, IndexError, ValueError, TypeError):
        return  # this network cannot be called so: an index out of its table, for instance
    alone = bool(call.reading.data or call.reading.process)  # with another prediction besides, almost anything fits
    for name, known in itertools.islice(pair(model, call, level), 1 if alone else None):
        c_x, c_out = convert(level, known, (torch.zeros_like(level.t), torch.ones_like(level.t)))
        for sign in (1, -1):
            own, other = (c_x * x.double() + sign * c_out * v - batch.noise for v in (output, output.roll(1, 0)))
            loss, shuffled = (over(float(e.square().mean()), linear) for e in (own, other))
            if math.isfinite(loss):
                yield call.reading._replace(predicts=name, sign=sign), Score(loss, shuffled)
