"""What a problem's model answers to a few questions: whether it works, and whether it answers alike each time."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.bench.own import exited
from sdegen.bench.problems import Problem
from sdegen.errors import InvalidArgumentError, SdegenError
from sdegen.level import Level
from sdegen.scores.model import place
from sdegen.tensors import like

ROUGH, ROUGHER = 1e-5, 1e-2
"""Two answers may differ by so much of the largest number in them, on an accelerator by the second of these: sums of
one order or another. Where random numbers were drawn they may not differ at all."""


def questions(problem: Problem) -> list[tuple[Tensor, Level]]:
    """Two states of a usual size at each of three levels: the noisiest one, one in the middle, one near the data."""
    process = problem.process
    dtype, device = place(problem.model.module, problem.dtype, None, problem.model.device)
    z = noises.normals(noises.seeds(0, 2, device=device), problem.shape, (0, 0, 0, 0), dtype=dtype)
    span = process.t_max - process.t_min
    found = []
    for t in (process.t_max, process.t_min + span / 2, process.t_min + span / 20):
        level = process.level(t)
        found.append((z * like(torch.hypot(level.alpha, level.sigma), z), level))
    return found


def answer(problem: Problem, x: Tensor, level: Level) -> Tensor:
    """The data that the model predicts.

    Raises:
        InvalidArgumentError: The network failed, or called `sys.exit`.
    """
    try:
        with torch.no_grad():
            found: Tensor = problem.model(x, level, "data")
            return found
    except SdegenError:
        raise
    except SystemExit as error:
        raise InvalidArgumentError(exited(f"the model of {problem.name}", error)) from error
    except Exception as error:
        raise InvalidArgumentError(
            f"the model of {problem.name} failed on two samples {list(x.shape)} of {x.dtype}, whose shape is that of "
            f"the data or of --shape: {type(error).__name__}: {error}"
        ) from error


def check_same(problem: Problem) -> None:
    """Ask the model twice of the same states at the same levels.

    Args:
        problem: The problem whose model is asked.

    Raises:
        InvalidArgumentError: The network fails, or its answers differ: it draws noise, or keeps a state.
    """
    for x, level in questions(problem):
        before = _generators(x.device)
        first, second = (answer(problem, x, level) for _ in range(2))
        drew = before != _generators(x.device)
        off = float((first - second).abs().nan_to_num(0.0).max())
        rough = 0.0 if drew else ROUGH if x.device.type == "cpu" else ROUGHER
        if off > rough * float(first.abs().nan_to_num(0.0).max()) or not torch.equal(first.isnan(), second.isnan()):
            raise InvalidArgumentError(
                f"the network of {problem.name} is random: asked twice at the same x and level (t = "
                f"{float(level.t):.3g}), it gave answers that differ by up to {off:.2g}. A benchmark needs a network "
                "that answers alike each time. Turn dropout off with eval(), and take out what draws noise "
                "(torch.randn, torch.rand) or keeps a state between calls"
            )


def _generators(device: torch.device) -> list[bytes]:
    """Where the generators are that everyone draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    kept = np.random.get_state(legacy=False)
    return [*(s.numpy().tobytes() for s in states), repr(kept).encode(), repr(random.getstate()).encode()]
