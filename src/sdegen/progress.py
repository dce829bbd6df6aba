"""The progress bar: tqdm where it is installed and wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sdegen.errors import InvalidArgumentError


@contextlib.contextmanager
def progress_bar(steps: int | None, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """A function that counts one step and its evaluations on a tqdm bar; `shown=None`: only if tqdm is there."""
    if shown is False:
        yield lambda evals: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if shown:
            raise InvalidArgumentError("progress=True needs tqdm: pip install 'sdegen[progress]'") from None
        yield lambda evals: None
        return
    nfe = 0
    with tqdm(total=steps, unit="step") as bar:

        def count(evals: int) -> None:
            nonlocal nfe
            nfe += evals
            bar.set_postfix(NFE=nfe, refresh=False)
            bar.update()

        yield count
