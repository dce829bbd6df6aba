"""How long the first step may be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdegen.level import Level
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Norm
from sdegen.solvers.frame import Frame
from sdegen.tensors import combine, power


def starting_step(
    frame: Frame,
    slope: Callable[[Tensor, Level], Tensor],
    process: SDE,
    x: Tensor,
    now: Level,
    end: Level,
    first: Tensor,
    norm: Norm,
    order: int,
) -> Tensor:
    """The first step in the frame's clock, positive, `[B]`, from the slope `first` at now and one more of a small step.

    `h0 = d0/(100 d1)`, `h = (1/(100 max(d1, d2)))^(1/(order + 1))` and at most 100 h0, with d0, d1, d2 the sizes of Y,
    its slope, and its second derivative (Hairer, Norsett & Wanner 1993, sec. II.4); never beyond `end`.
    """
    start = frame.clock(now)
    whole = (frame.clock(end) - start).abs()
    scale = frame.scale(now)
    d0 = norm(x, x, x, now)
    d1 = norm(combine((scale, first)), x, x, now)
    known = (d0 > 1e-5) & (d1 > 1e-5)
    h0 = torch.where(known, 0.01 * d0 / torch.where(known, d1, 1.0), 1e-6 * whole)
    h0 = torch.minimum(h0, whole)
    ahead = start + torch.sign(frame.clock(end) - start) * h0
    level = frame.level(process, ahead)
    y = combine((frame.scale(level) / scale, x), (frame.scale(level) * (ahead - start), first)).to(x.dtype)
    change = slope(y, level) - first
    d2 = norm(combine((scale, change)), x, x, now) / h0
    most = torch.maximum(d1, d2)
    h1 = torch.where(most > 1e-15, power(0.01 / most.clamp(min=1e-15), 1 / (order + 1)), h0 * 1e3)
    chosen = torch.minimum(torch.minimum(100 * h0, h1), whole)
    return torch.where(chosen.isfinite() & (chosen > 0), chosen, 1e-3 * whole)
