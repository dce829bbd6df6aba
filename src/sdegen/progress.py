"""The progress bar: tqdm where it is installed and wanted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from sdegen.errors import InvalidArgumentError


@contextlib.contextmanager
def progress_bar(total: int | None, unit: str, shown: bool | None) -> Iterator[Callable[[int], None] | None]:
    """A function that counts evaluations, or finished samples, on a tqdm bar; None where no bar is shown.

    `shown=None`: only if tqdm is there. Raises InvalidArgumentError where it is wanted and there is no tqdm.
    """
    tqdm = None if shown is False else _tqdm(bool(shown))
    if tqdm is None:
        yield None
        return
    with tqdm(total=total, unit=f" {unit}") as bar:
        yield bar.update


def watched() -> bool:
    """Whether someone sees a bar: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextlib.contextmanager
def told_bar(total: int, shown: bool | None, unit: str = "evaluations", done: int = 0) -> Iterator[Any]:
    """A tqdm bar with a text beside, over many runs or steps; `shown=None`: on terminals, and only if tqdm is there.

    Raises InvalidArgumentError where it is wanted and there is no tqdm.
    """
    shape = "{desc:<40.40} {percentage:3.0f}% |{bar}| {n}/{total} " + unit + ", {remaining} left"
    tqdm = _tqdm(bool(shown))
    if tqdm is None:
        yield _Hidden()
        return
    hidden = None if shown is None else not shown
    with tqdm(total=total, initial=done, disable=hidden, leave=False, dynamic_ncols=True, bar_format=shape) as bar:
        yield bar


def _tqdm(wanted: bool) -> Any:
    """tqdm's bar, None where it is missing. Raises InvalidArgumentError if it is wanted and missing."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if wanted:
            raise InvalidArgumentError("a progress bar needs tqdm: pip install 'sdegen[progress]'") from None
        return None
    return tqdm


class _Hidden:
    """A bar that shows nothing."""

    def set_description_str(self, text: str) -> None:
        """Nothing."""

    def update(self, done: int) -> None:
        """Nothing."""
