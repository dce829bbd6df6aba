"""Sheets of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.plots.style import INK, MUTED, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def image_grid(
    images: Tensor,
    columns: int = 10,
    ax: Axes | None = None,
    *,
    title: str = "",
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    span: tuple[float, float] = (-1.0, 1.0),
) -> Axes:
    """A sheet of images `[n, H, W]` or `[n, 3, H, W]`, row by row; an image of NaN leaves its place empty.

    Grey images are drawn as ink: span[0] is paper, span[1] is black. Values outside the span are clipped.
    Raises InvalidArgumentError on images of another shape and on columns < 1.
    """
    sheet, rows, cell = _tiled(images, columns, span)
    ax = ax or figure(0.6 * columns + 0.4, 0.6 * rows + 0.5).add_subplot()
    ax.imshow(sheet.numpy(), cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_axis_off()
    small: dict[str, Any] = {"color": MUTED, "fontsize": 9}
    for i, label in enumerate(row_labels[:rows]):
        ax.text(-0.1 * cell[1], (i + 0.47) * cell[0], label, ha="right", va="center", **small)
    for j, label in enumerate(column_labels[:columns]):
        ax.text((j + 0.47) * cell[1], -0.15 * cell[0], label, ha="center", va="bottom", **small)
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=11, pad=18 if column_labels else 8)
    return ax


def _tiled(images: Tensor, columns: int, span: tuple[float, float]) -> tuple[Tensor, int, tuple[int, int]]:
    """The images in one array with empty gaps between them, values in [0, 1]; the rows; a cell's size."""
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.movedim(1, -1)
    elif images.ndim != 3:
        raise InvalidArgumentError(f"images must be [n, H, W] or [n, 3, H, W], got shape {list(images.shape)}")
    if 0 in images.shape or columns < 1:
        raise InvalidArgumentError(
            f"a sheet needs images and columns, got shape {list(images.shape)}, {columns} columns"
        )
    n, height, width = images.shape[:3]
    gap, rows = max(1, height // 8), -(-n // columns)
    cells = torch.full((rows * columns, height + gap, width + gap, *images.shape[3:]), math.nan)
    cells[:n, :height, :width] = ((images.detach().cpu().float() - span[0]) / (span[1] - span[0])).clamp(0.0, 1.0)
    apart = cells.reshape(rows, columns, *cells.shape[1:])
    sheet = apart.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-gap, :-gap]
    return (sheet if images.ndim == 3 else sheet.nan_to_num(1.0)), rows, (height + gap, width + gap)
