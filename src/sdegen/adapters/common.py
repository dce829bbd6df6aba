"""What both adapters share: the package they need, the network whose parameters an adjoint differentiates."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, hint
from sdegen.level import Level
from sdegen.loop.solution import Solution, Status
from sdegen.processes.process import Process
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import network
from sdegen.solvers.base import Reverse
from sdegen.solvers.frames import TIME, Frame


def package(name: str, extra: str) -> Any:
    """The module `name`. Raises InvalidArgumentError with how to install it where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InvalidArgumentError(f"this solver runs on {name}: pip install 'sdegen[{extra}]'") from None


def check_known(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raises InvalidArgumentError unless `value` is one of `allowed`."""
    names = sorted(allowed)
    if value not in names:
        raise InvalidArgumentError(f"unknown {what} {value!r}: {hint(str(value), names, 'it must be one of')}")


def check_tolerances(rtol: float, atol: float) -> None:
    """Raises InvalidArgumentError unless both are finite, not negative, and one is positive."""
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol > 0):
        raise InvalidArgumentError(f"tolerances must be finite, >= 0 and not both 0, got rtol={rtol}, atol={atol}")


def check_one_clock(solver: object, now: Level) -> None:
    """Raises InvalidArgumentError for levels per sample: these libraries keep one time for the whole batch."""
    if now.t.ndim:
        raise InvalidArgumentError(f"{solver} has one time for the whole batch; give times, or an sd.Fixed, as control")


def check_frame_fits(solver: object, frame: Frame, model: Reverse) -> None:
    """Raises InvalidTypeError for a model that has drift and diffusion alone, in a frame that asks for predictions."""
    if frame != TIME and (isinstance(model, ReverseSDE) or not isinstance(model.process, Process)):
        raise InvalidTypeError(
            f"{solver} asks for predictions, and a ReverseSDE gives only drift and diffusion: pass the ScoreModel "
            "itself, or leave frame=sd.TIME"
        )


def adjoint_params(solver: object, model: Reverse, given: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """The tensors that an adjoint finds the gradients of: those given, or the parameters of the model's network."""
    if given is not None:
        return tuple(given)
    net = network(model)
    if net is None:
        raise InvalidArgumentError(
            f"{solver}: no torch.nn.Module was found behind {model}, so its parameters' gradients would be missing; "
            "give adjoint_params, a sequence of tensors, empty if there are none"
        )
    return tuple(p for p in net.parameters() if p.requires_grad)


def cut_off(process: SDE, x: Tensor, level: Level, evals: int, status: Status) -> Solution:
    """The solution of a run that ended at `level` `[]`, short of the last level, with x `[B, *S]` there."""
    rows = x.detach().new_zeros(x.shape[0], dtype=torch.float64)
    count = rows.to(torch.int32)
    how = torch.full_like(count, int(status), dtype=torch.int8)
    return Solution(x, process.level(rows + level.t.to(rows.device)), count + evals, count, count, how, [])
