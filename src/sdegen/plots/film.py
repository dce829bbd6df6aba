"""Flows in the plane as moving pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.plots.inputs import Law, Times, around, check_law, check_tensor, level_of, numbers_of, span_of, times_of
from sdegen.plots.plane import fill
from sdegen.plots.style import COLOURS, INK, figure, headed, look, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

_COLOURS = 40  # of the palette: few colours make long runs, which is what a GIF packs


def animate(
    states: Tensor,
    file: str | os.PathLike[str],
    *,
    ax: Axes | None = None,
    law: Law | None = None,
    times: Times | None = None,
    labels: Sequence[str] = (),
    fps: float = 12.0,
    hold: float = 1.0,
    span: Sequence[float] | None = None,
    title: str = "",
    dpi: float = 120.0,
) -> Axes:
    """Points `[steps, n, 2]` along a run, written as a GIF that repeats: a frame per step, the last one held longer.

    times: of the states `[steps]`. labels: one per frame; by default the time, or the count of steps. law: an exact
    score, or a function `log_prob(x, t)`, whose density at each frame's time is drawn below the points. fps: frames a
    second, 0.1 to 50; times in a GIF are whole hundredths of a second. hold: seconds that the last frame stays on for.
    span: as in `density`; by default around all states. Returns the axes of the last frame.

    Raises InvalidArgumentError on states of another shape, times or labels that are not one per state, a law without
    times, an fps out of its range or a negative hold; InvalidTypeError unless states are a floating tensor.
    """
    values = _checked(states, law, times, labels, fps, hold)
    box = span_of(span) if span is not None else (*around(values[..., 0]), *around(values[..., 1]))
    moments = None if times is None else times_of(times, len(values))
    if ax is None:
        height = 3.4 * (box[3] - box[2]) / (box[1] - box[0])
        ax = figure(4.0, min(max(height, 2.4), 5.6) + 0.6).add_subplot()
    plain(ax, "", "", grid="")
    ax.set(xlim=box[:2], ylim=box[2:], aspect="equal")
    headed(ax, title)
    area = float(np.clip(5000 / values.shape[1], 2.0, 20.0))
    # without smooth edges points are of one colour, and files half as large
    points = ax.scatter(values[0, :, 0], values[0, :, 1], s=area, c=COLOURS[0], lw=0, zorder=3, antialiaseds=False)
    where: dict[str, Any] = {
        "va": "top",
        "color": INK,
        "fontsize": look(ax).text,
        "zorder": 5,
        "transform": ax.transAxes,
    }
    label = ax.text(0.02, 0.98, "", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, **where)
    _frame(ax, dpi)  # a layout settles while it is drawn for the first time
    frames = []
    for i, state in enumerate(values):
        points.set_offsets(state)
        label.set_text(_label(i, len(values), moments, labels))
        if law is None or moments is None:
            frames.append(_frame(ax, dpi))
            continue
        below = fill(ax, law, box, level_of(law, float(moments[i])), 97)
        frames.append(_frame(ax, dpi))
        if i + 1 < len(values):
            _remove(below)
    _write(frames, file, fps, hold)
    return ax


def _checked(
    states: Tensor, law: Law | None, times: Times | None, labels: Sequence[str], fps: float, hold: float
) -> np.ndarray:
    check_tensor(states)
    if states.ndim != 3 or states.shape[-1] != 2 or 0 in states.shape:
        raise InvalidArgumentError(f"states must be points [steps, n, 2], no size 0, got {list(states.shape)}")
    if law is not None:
        check_law(law, timed=True)
        if times is None:
            raise InvalidArgumentError("a law needs times= [steps] of the states, to be drawn at them")
    if labels and len(labels) != len(states):
        raise InvalidArgumentError(f"labels must be one per state, {len(states)}, got {len(labels)}")
    if not all(isinstance(v, (int, float)) for v in (fps, hold)):
        raise InvalidTypeError(f"fps and hold must be numbers, got {fps!r} and {hold!r}")
    if not 0.1 <= fps <= 50 or not 0 <= hold <= 60:
        raise InvalidArgumentError(f"fps must be 0.1 to 50 and hold 0 to 60 seconds, got fps={fps}, hold={hold}")
    return numbers_of(states)


def _label(i: int, steps: int, times: np.ndarray | None, labels: Sequence[str]) -> str:
    if labels:
        return labels[i]
    return f"step {i} of {steps - 1}" if times is None else f"t = {times[i]:.3f}"


def _frame(ax: Axes, dpi: float) -> Image:
    """The whole figure as it is now, by its own means of writing files, which leaves its canvas alone."""
    from PIL import Image

    whole: Any = ax.figure.canvas.figure  # of a subfigure too, the one that holds it
    with io.BytesIO() as buffer:
        whole.savefig(buffer, format="png", dpi=dpi)
        return Image.open(buffer).convert("RGB")


def _remove(drawn: Any) -> None:
    """Take filled contours away; before matplotlib 3.8 they were many artists."""
    for artist in [drawn] if hasattr(drawn, "remove") else drawn.collections:
        artist.remove()


def _write(frames: Sequence[Image], file: str | os.PathLike[str], fps: float, hold: float) -> None:
    """One palette for all frames, made of the first, the middle and the last one."""
    from PIL import Image

    width, height = frames[0].size
    some = Image.new("RGB", (width, 3 * height))
    for k, i in enumerate((0, len(frames) // 2, len(frames) - 1)):
        some.paste(frames[i], (0, k * height))
    palette = some.quantize(_COLOURS, dither=Image.Dither.NONE)
    values = palette.getpalette() or []
    paper = 3 * int(np.asarray(Image.new("RGB", (1, 1), "white").quantize(palette=palette))[0, 0])
    palette.putpalette([*values[:paper], 255, 255, 255, *values[paper + 3 :]])  # a mean of whites would not be white
    packed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    each = 10 * max(2, round(100 / fps))
    times = [each] * (len(packed) - 1) + [max(each, 10 * round(100 * hold))]
    packed[0].save(file, format="GIF", save_all=True, append_images=packed[1:], duration=times, loop=0, optimize=True)
