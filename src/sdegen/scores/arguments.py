"""What a user says of a network when making a score model, checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, unknown_keywords
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.tensors import check_type

Predicts = Literal["score", "noise", "data", "v", "velocity", "edm", "energy"]
_MEANT = {
    "noise": "epsilon eps pred_noise noise_prediction epsilon_prediction",
    "data": "x0 x_0 x_start xstart start_x pred_x0 pred_x_start x1 sample denoised "
    "original_sample pred_original_sample",
    "v": "v_prediction pred_v vprediction",
    "velocity": "u flow flow_prediction rectified_flow vector_field flow_matching velocity_prediction",
}
"""What other libraries call the predictions."""


def _meant(text: str) -> str | None:
    """The prediction that another spelling, or another library's name, stands for."""
    known = {name: name for name in get_args(Predicts)}
    known |= {other: name for name, others in _MEANT.items() for other in others.split()}
    close = difflib.get_close_matches(text.strip().lower().replace("-", "_"), known, n=1, cutoff=0.75)
    return known[close[0]] if close else None


def check_conditions(names: Iterable[str], options: tuple[str, ...], function: str = "ScoreModel") -> None:
    """Raises InvalidTypeError for a condition whose name is next to that of an option: it is a slip."""
    for name in names:
        if name in ("prediction_type", "pred_type", "parameterization", "objective"):
            raise InvalidTypeError(f"{name} is another library's word: say it as predicts='noise', 'v', 'data', ...")
        if difflib.get_close_matches(name, options, n=1, cutoff=0.8):
            raise unknown_keywords(function, [name], options)


def check_predicts(predicts: Any, learned_variance: bool) -> None:
    """Raises InvalidArgumentError unless it is a prediction by name or a function, and goes with a learned variance."""
    if predicts not in get_args(Predicts) and not callable(predicts):
        meant = _meant(str(predicts))
        raise InvalidArgumentError(
            f"unknown prediction {predicts!r}"
            + (f", did you mean {meant!r}?" if meant else ".")
            + f" What the network returns is one of {', '.join(map(repr, get_args(Predicts)))}, or a function "
            "(process, level) -> (p, q)"
        )
    if type(learned_variance) is not bool:
        raise InvalidTypeError(f"learned_variance must be True or False, got {learned_variance!r}")
    if learned_variance and predicts == "energy":
        raise InvalidArgumentError(
            "an energy [B] has no channels that could hold a variance: leave learned_variance out"
        )


def check_time_dtype(dtype: Any, time: Any, process: Process) -> None:
    """Raises InvalidTypeError for what is no dtype of times, InvalidArgumentError where rounded t says nothing."""
    if dtype is None:
        return
    whole = (torch.int16, torch.int32, torch.int64)
    if dtype not in whole and not (type(dtype) is torch.dtype and dtype.is_floating_point):
        raise InvalidTypeError(f"time_dtype must be torch.long or a floating torch.dtype, got {dtype!r}")
    indices = float(process.t_min).is_integer() and float(process.t_max).is_integer() and process.t_max > 1
    if dtype in whole and time is None and not indices:
        raise InvalidArgumentError(
            f"time_dtype={dtype} rounds t, which is in [{process.t_min:g}, {process.t_max:g}]: for a network trained "
            "on indices give time=sd.model.index_time(T) with it, T its number of training steps"
        )


def check_time(value: Any, level: Level) -> None:
    """Raises unless `time` made one number for each time of the level, or one for all."""
    check_type(value, Tensor, "time(level) must return a tensor like level.t")
    if value.numel() != 1 and value.shape != level.t.shape:
        raise InvalidArgumentError(
            f"time(level) must return a tensor like level.t, of shape {list(level.t.shape)}, got {list(value.shape)}: "
            "a network gets one number for each sample as its time"
        )
