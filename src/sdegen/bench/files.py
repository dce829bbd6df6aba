"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sdegen.errors import SdegenError


class WriteError(SdegenError, OSError):
    """A file could not be written; what was there before is as it was."""


def write(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8: first beside its place, then put there in one step.

    Args:
        path: The file. One that is there is replaced; a link stays a link.
        text: What it will hold, line ends as they are.

    Raises:
        WriteError: The disk is full, or the folder cannot be written to. No part of the text is left behind.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
    if target.exists() and not target.is_file() and not target.is_dir():  # a pipe or a device holds nothing to keep
        part = target
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            if part is not target:
                os.fsync(file.fileno())  # some disks say that they are full only now
        if part is not target:
            os.replace(part, target)
    except OSError as error:
        if part is not target:
            with contextlib.suppress(OSError):
                part.unlink()
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; what was there before is as it was. Make room or choose "
            "another folder, and give the command again"
        ) from error
