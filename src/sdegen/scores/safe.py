"""Tensors and words in one safetensors file, which is written whole or not at all, and runs no code when read."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sdegen.errors import InvalidArgumentError


class Kind(NamedTuple):
    """A kind of file, for errors: what it holds, as 'plan', who writes it, and the extra that reads and writes it."""

    what: str
    writer: str
    extra: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, str], kind: Kind) -> None:
    """Write tensors and the header's words to a file, or leave what is there as it was.

    The bytes are the same at every call where there is one word; of several the order is not.
    Raises InvalidArgumentError without safetensors, FileNotFoundError without the folder, OSError where it is full.
    """
    module = check_place(path, kind)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode  # as any new file's; some versions of safetensors let the owner alone read theirs
        module.torch.save_file(dict(tensors), str(part), dict(words))
        part.chmod(mode)
        with part.open("r+b") as file:
            os.fsync(file.fileno())  # or a crash after the renaming could leave less than there was before
        os.replace(part, path)
    except (OSError, module.SafetensorError) as error:
        kept = "; what was there before is left as it was" * path.exists()
        told = f"the {kind.what} {path} could not be written: {error}{kept}"
        raise OSError(*((error.errno, told) if isinstance(error, OSError) and error.errno else (told,))) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def check_place(path: Path, kind: Kind) -> Any:
    """The module that writes. Raises where a file cannot be written there, as far as that can be seen before."""
    module = _safetensors(kind)
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder: give a file in it, to save the {kind.what} as")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to save a {kind.what} in")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(13, f"no permission to write a {kind.what} in the folder", str(path.parent))
    return module


def read_tensors(path: Path, kind: Kind) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the host, and its header's words.

    Raises FileNotFoundError without a file, InvalidArgumentError without safetensors or where it is of another format.
    """
    module = _safetensors(kind)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind.what} {path}")
    try:
        with module.safe_open(str(path), "pt") as file:
            words = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, words  # noqa: SIM118 - no mapping
    except module.SafetensorError as error:
        raise InvalidArgumentError(f"{path} is not a safetensors file, which {kind.writer} writes: {error}") from None


def _safetensors(kind: Kind) -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise InvalidArgumentError(
            f"{kind.what}s are kept as safetensors: pip install 'sdegen[{kind.extra}]'"
        ) from None
    return safetensors
