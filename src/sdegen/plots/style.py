"""What all pictures share: figures, colours, sizes of letters by the width of the axes, notes and legends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sdegen.errors import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#e6e6e6"
# After Okabe and Ito (2008), told apart by all common kinds of colour vision; the light ones darker, for text.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#aa3377", "#c98a00", "#222222", "#3d9fdc", "#8c6d46")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)))
NARROW = 3.7


class Look(NamedTuple):
    """The size of axes in inches, whether they are wide, and the letters (points) that they take."""

    width: float
    height: float
    wide: bool
    small: float
    text: float
    head: float


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; raises InvalidArgumentError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidArgumentError("pictures need matplotlib: pip install 'sdegen[plots]'") from None
    whole = Figure(figsize=(width, height), layout="constrained")
    whole.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return whole


def look(ax: Axes) -> Look:
    """The look of axes: those below 3.7 inches, half of a page or a phone, have smaller letters."""
    width, height = ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi
    wide = width >= NARROW
    return Look(width, height, wide, *((9.0, 10.0, 11.0) if wide else (7.5, 8.5, 9.5)))


def extent(text: str, size: float) -> float:
    """About the width of a line of text, in inches: letters are about half as wide as high."""
    return 0.52 * size * max(map(len, text.split("\n"))) / 72


def wrapped(text: str, inches: float, size: float) -> str:
    """The text in lines of about that width."""
    return textwrap.fill(text, max(16, int(inches * 72 / (0.52 * size))))


def shades() -> Colormap:
    """White to blue to ink: light is little, in grey too."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("sdegen", ["#ffffff", "#c6dff0", "#6baed6", COLOURS[1], "#0b2e4f"])


def plain(ax: Axes, xlabel: str, ylabel: str, grid: str = "y") -> None:
    """Few lines: no box, a light grid along `grid` ("x", "y", "both" or ""), labels in ink."""
    size = look(ax)
    ax.set_xlabel(wrapped(xlabel, size.width, size.text), color=INK, fontsize=size.text)
    ax.set_ylabel(wrapped(ylabel, size.height, size.text), color=INK, fontsize=size.text)
    ax.tick_params(length=0, colors=MUTED, labelsize=size.small)
    if grid:
        ax.grid(axis=grid, color=FAINT, lw=0.7)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color("#bbbbbb")


def headed(ax: Axes, title: str, notes: Sequence[str] = ()) -> None:
    """A title and, below it, small notes: above the axes, where no data are."""
    size = look(ax)
    lines = [line for note in notes for line in wrapped(note, size.width, size.small).split("\n")]
    pad = 8.0
    if lines:
        small = {"textcoords": "offset points", "va": "bottom", "color": MUTED, "fontsize": size.small}
        ax.annotate("\n".join(lines), (0, 1), (0, 5), xycoords="axes fraction", **small)  # type: ignore[arg-type]
        pad += 1.3 * size.small * len(lines)
    if title:
        ax.set_title(wrapped(title, size.width, size.head), loc="left", color=INK, fontsize=size.head, pad=pad)


def outside(ax: Axes, handles: Sequence[Artist], gap: float = 32.0, head: str = "") -> float:
    """A legend outside: beside wide axes if its names are short, else below them and `gap` points of labels.

    The handles' labels may be broken into lines, to fit. Returns the height that it takes off the axes, in inches.
    """
    from matplotlib.transforms import ScaledTranslation

    size = look(ax)
    letters = size.small if size.wide or len(handles) <= 8 else 0.9 * size.small
    mark = 0.55 if size.wide else 0.35  # inches that the sample of a line takes
    below = 1.14 * size.width  # the labels of the axes leave that much
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), below - mark, letters))
    widths = [extent(str(handle.get_label()), letters) + mark for handle in handles]
    beside = size.wide and max(widths) < 0.45 * size.width
    down = ScaledTranslation(0, -gap / 72, ax.figure.dpi_scale_trans)
    columns = 1 if beside else _columns(widths, below)
    ax.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0) if beside else (-0.1 if size.wide else -0.15, 0.0),
        bbox_transform=ax.transAxes if beside else ax.transAxes + down,
        ncols=columns,
        frameon=False,
        fontsize=letters,
        labelcolor=INK,
        handlelength=2.6 if size.wide else 1.9,
        borderaxespad=0.2,
        labelspacing=0.35,
        columnspacing=1.0,
        title=head or None,
        title_fontproperties={"size": letters},
        alignment="left",
    )
    return 0.0 if beside else 1.4 * letters / 72 * (-(-len(widths) // columns) + bool(head))


def _columns(widths: Sequence[float], room: float) -> int:
    """The most columns, filled one after the other, that fit side by side."""
    for columns in range(min(4, len(widths)), 1, -1):
        rows, longer = divmod(len(widths), columns)  # the first ones hold one row more
        parts: list[float] = []
        rest = list(widths)
        for i in range(columns):
            count = rows + (i < longer)
            parts, rest = [*parts, max(rest[:count])], rest[count:]
        if sum(parts) <= room:
            return columns
    return 1
