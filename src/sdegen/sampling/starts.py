"""What `sample` starts from and ends with: seeds, places, the prior at a level, the last prediction."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, warn_caller
from sdegen.level import Level
from sdegen.loop.solution import Solution, Status
from sdegen.processes.process import Process
from sdegen.tensors import finite_rows, keep, readable

_PURE = 0.15


def check_shape(shape: Any) -> tuple[int, tuple[int, ...]]:
    """`(n, *S)` taken apart."""
    try:
        sizes = tuple(operator.index(v) for v in shape)
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 0:
        raise InvalidArgumentError(
            f"shape must be (n, *S), a number of samples and at least one sample dimension, got {shape!r}"
        )
    return sizes[0], sizes[1:]


def own_seeds(seed: Any, n: int, device: torch.device) -> Tensor:
    if not isinstance(seed, Tensor):
        try:
            return noises.seeds(seed, n, device=device)
        except InvalidTypeError as error:
            raise InvalidTypeError(f"{error}, or int64 seeds of shape [{n}]") from None
    if seed.dtype != torch.int64 or seed.shape != (n,):
        raise InvalidArgumentError(
            f"seed must be one number or int64 seeds of shape [{n}], got {seed.dtype} of shape {list(seed.shape)}"
        )
    return seed.to(device)


def begin_at(model: Any, seeds: Tensor, event: tuple[int, ...], dtype: torch.dtype, first: Tensor) -> Tensor:
    """The prior at the first time."""
    process = model.process
    if not isinstance(process, Process):
        if float(first) != process.t_max:
            raise InvalidArgumentError(f"the prior of {process} is at t={process.t_max}; times must start there")
        drawn: Tensor = process.prior(seeds, event)
        return drawn.to(dtype)
    x = process.prior(seeds, event, dtype)
    if not readable(first) or float(first) == process.t_max:
        return x
    level = process.level(first)
    share = float(level.alpha / level.sigma)
    if share > _PURE:
        warn_caller(
            f"the grid starts at t={float(first):g}, where x still holds alpha/sigma = {share:.2g} of the data, and "
            "the start is noise alone; start at t_max, or run sd.solve from process.perturb(data, level, noise)"
        )
    return x * (level.sigma / process.sigma(torch.full_like(first, process.t_max))).to(dtype)


def denoised(model: Any, part: Solution, level: Level) -> Solution:
    """The predicted data in place of the state; a row that is not finite stays the state and says so."""
    clean = model(part.x, level, "data").to(part.x.dtype)
    fine = finite_rows(clean) & part.ok
    status = torch.where(fine, part.status, int(Status.NONFINITE))
    return part._replace(x=keep(fine, clean, part.x), status=status, nfe=part.nfe + part.ok)
