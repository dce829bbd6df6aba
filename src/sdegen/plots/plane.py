"""Laws and scores in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidTypeError
from sdegen.level import Level, check_level
from sdegen.plots.inputs import Law, check_law, log_density, mesh, span_of
from sdegen.plots.style import INK, figure, headed, look, plain, shades
from sdegen.scores.model import ScoreModel, place
from sdegen.tensors import batch_time, call_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Score = ScoreModel | Callable[[Tensor, Tensor], Tensor]
SHARES = (0.99, 0.95, 0.8, 0.6, 0.4, 0.2)


def density(
    law: Law, span: Sequence[float], ax: Axes | None = None, *, level: Level | None = None, title: str = ""
) -> Axes:
    """A law of the plane as filled contours: the regions of highest density with 99, 95, 80, 60, 40, 20% of the mass.

    law: a `GaussianMixture` (at a level, or the data's law), an exact score (of a mixture under a process or a linear
    SDE; at a level), or a function `log_prob(x [n, 2]) -> [n]`, with a level `log_prob(x, t)`; of any constant factor,
    since the mass is that in the span, `(low, high)` for both axes or `(left, right, bottom, top)`.

    Raises InvalidTypeError on a law without a density, InvalidArgumentError on samples of another shape, a span that
    does not increase, a missing level, and log densities that are NaN, or -inf everywhere.
    """
    check_law(law, timed=False)
    box = span_of(span)
    ax = ax or figure(5.6, 5.2).add_subplot()
    fill(ax, law, box, level, 161)
    _square_axes(ax, box)
    headed(ax, title)
    return ax


def score_field(
    score: Score,
    level: Level,
    span: Sequence[float],
    ax: Axes | None = None,
    *,
    law: Law | None = None,
    arrows: int = 17,
    title: str = "",
) -> Axes:
    """The score of a model at a level as arrows in the plane, over the law's `density` if one is given.

    score: a `ScoreModel`, or a callable `(x [B, 2], t [B]) -> [B, 2]`, as the score of a linear SDE. Arrows point
    exactly along it; their lengths are `m / (m + median(m)/2)` of the spacing, m the score's norm, since it varies
    over decades. arrows: how many along each axis. span: as in `density`. Raises what `density` raises, and ScoreError.
    """
    check_level(level)
    if not callable(score):
        raise InvalidTypeError(f"score must be a ScoreModel or a callable (x, t) -> score, got {score!r}")
    box = span_of(span)
    ax = density(law, span, ax, level=level) if law is not None else ax or figure(5.6, 5.2).add_subplot()
    _, _, points = mesh(_inner(box, arrows), arrows)
    value = _score(score, points, level).detach().to(torch.float64)
    norm = value.norm(dim=1, keepdim=True)
    length = min(box[1] - box[0], box[3] - box[2]) / arrows
    unit = value / norm.clamp(min=1e-300)
    arrow = (unit * (norm / (norm + norm.nanmedian().div(2).clamp(min=1e-300))) * length).numpy()
    look_of: dict[str, Any] = {
        "color": INK,
        "width": 0.0042,
        "headwidth": 3.2,
        "headlength": 3.6,
        "headaxislength": 3.2,
    }
    ax.quiver(*points.numpy().T, *arrow.T, angles="xy", scale_units="xy", scale=1, pivot="mid", zorder=3, **look_of)
    _square_axes(ax, box)
    headed(ax, title)
    return ax


def fill(ax: Axes, law: Law, box: tuple[float, float, float, float], level: Level | None, n: int) -> Any:
    """The filled contours of a law over a box, from n x n values; the contour set."""
    x, y, points = mesh(box, n)
    logs = log_density(law, points, level)
    shape = np.exp(logs - logs.max())
    down = np.sort(shape)[::-1]
    mass = down.cumsum() / down.sum()
    edges = np.unique([down[np.searchsorted(mass, share).clip(max=len(down) - 1)] for share in SHARES])
    colours = [shades()(0.08 + 0.55 * i / len(SHARES)) for i in range(len(edges))]
    edges = np.append(edges, math.nextafter(max(float(edges[-1]), 1.0), math.inf))
    return ax.contourf(x, y, shape.reshape(n, n), levels=edges, colors=colours, extend="neither", zorder=1)


def _inner(box: tuple[float, float, float, float], n: int) -> tuple[float, float, float, float]:
    """The box without half a spacing at its edges, so that arrows end inside."""
    wide, high = (box[1] - box[0]) / n / 2, (box[3] - box[2]) / n / 2
    return box[0] + wide, box[1] - wide, box[2] + high, box[3] - high


def _score(score: Score, x: Tensor, level: Level) -> Tensor:
    if isinstance(score, ScoreModel) or hasattr(score, "process"):
        model: Any = score
        dtype = x.dtype if model.module is None else place(model.module, None, None)[0]
        return model(x.to(dtype), level, "score")  # type: ignore[no-any-return]
    return call_score(score, x, batch_time(level.t, x))


def _square_axes(ax: Axes, box: tuple[float, float, float, float]) -> None:
    plain(ax, "", "", grid="")
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal")
    ax.locator_params(nbins=6 if look(ax).wide else 4, prune="both")  # or two numbers meet in the corner
