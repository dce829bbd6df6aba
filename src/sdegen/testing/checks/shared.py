"""What the suites have in common: copies, host reads, global state, the dtype in which a model runs."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdegen.errors import ScoreTypeError
from sdegen.tensors import STATES
from sdegen.testing.guards import global_state, nobody_could
from sdegen.testing.report import Measure, holds

F64 = torch.float64


def host_reads(function: Callable[[FakeTensorMode], Any]) -> Measure:
    """Whether `function(mode)` reads a value on the host: with tensors that have none, any read raises."""
    message = ""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        try:
            function(mode)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
    return holds(f"a value was read: {message}", not message)


def leaves_alone(function: Callable[[], Any]) -> Iterator[Measure]:
    """Whether `function()` moves a global generator or changes a mode of torch, one measure for each."""
    before = global_state()
    function()
    after = global_state()
    for name, value in before.items():
        yield holds(f"{name} changed", after[name] == value)


def twins(value: Any) -> tuple[list[Any], list[Measure]]:
    """A deep copy of a value and what its pickle gives; and the measure of a pickle that failed."""
    copied = [copy.deepcopy(value)]
    try:
        copied.append(pickle.loads(pickle.dumps(value)))  # noqa: S301 - bytes made on this line
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return copied, [holds(f"pickle: {error}", nobody_could(error))]
    return copied, []


def working_dtype(model: Any, x: Tensor, first: torch.dtype = F64) -> torch.dtype:
    """That of the network's weights; where a function hides them, the first in which the model can be called on x."""
    net: torch.nn.Module | None = model.module
    weights = [] if net is None else [p.dtype for p in net.parameters() if p.dtype in STATES]
    if weights:
        return weights[0]
    level = model.process.level((model.process.t_min + model.process.t_max) / 2)
    for dtype in (first, F64, torch.float32):
        with contextlib.suppress(RuntimeError, ScoreTypeError), torch.no_grad():
            model(x.to(dtype), level)
            return dtype
    return first
