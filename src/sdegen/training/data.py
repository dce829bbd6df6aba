"""What a network is trained on: handwritten digits, a file of numpy's, a folder of images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, brief
from sdegen.tensors import check_state

_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1,797 images `[1797, 8, 8]` in [-1, 1], float64, and their labels `[1797]`.

    Raises InvalidArgumentError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InvalidArgumentError("the digits need scikit-learn: pip install 'sdegen[demo]'") from None
    bunch = load_digits()
    return torch.as_tensor(bunch.images) / 8 - 1, torch.as_tensor(bunch.target)


def read(source: str) -> Tensor:
    """Data `[N, *S]` in float32, images `[N, C, H, W]`: "digits", a file of numpy's, or a folder of images of one size.

    Bytes are brought to [-1, 1]. Raises InvalidArgumentError, or InvalidTypeError, for what holds no such data.
    """
    path = Path(source)
    if source == "digits" and not path.exists():
        return digits()[0].float()[:, None]
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InvalidArgumentError(f"there is no file or folder {source}: give digits, a file.npy, or a folder")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidArgumentError(f"{source} is no .npy file of numbers: {error}") from None
    if not isinstance(found, np.ndarray):
        raise InvalidArgumentError(f"{source} holds {', '.join(found)}: save one array as .npy")
    found = found.astype(found.dtype.newbyteorder("="))
    try:
        data = torch.as_tensor(found / np.float32(127.5) - 1 if found.dtype == np.uint8 else found)
    except TypeError as error:
        raise InvalidArgumentError(f"{source} is no .npy file of numbers: {error}") from None
    check_state(data, source, "")
    if not data.numel():
        raise InvalidArgumentError(f"{source} is empty, of shape {list(data.shape)}")
    if data.ndim == 4 and data.shape[-1] in (1, 3) and data.shape[1] not in (1, 3):
        data = data.movedim(-1, 1)  # as images usually lie in numpy's arrays
    return (data[:, None] if data.ndim == 3 else data).float().contiguous()


def _folder(path: Path) -> Tensor:
    """The images in a folder, sorted by name, `[N, C, H, W]` in [-1, 1]: of one channel if all are grey."""
    try:
        from PIL import Image
    except ImportError:
        raise InvalidArgumentError("a folder of images needs pillow: pip install 'sdegen[plots]'") from None
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES and not p.name.startswith("."))
    if not files:
        raise InvalidArgumentError(f"{path} holds no image ({', '.join(sorted(_IMAGES))})")
    modes: set[str] = set()
    for file in files:
        with _opened(file, Image) as image:
            modes.add(image.mode)
            if image.mode[0] in "IF":
                raise InvalidArgumentError(f"{file} has {image.mode} pixels: convert it to 8 bits, or give a .npy file")
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    parts: list[Tensor] = []
    for file in files:
        with _opened(file, Image) as image:
            part = torch.from_numpy(np.array(image.convert(mode)))
        parts.append(part)
        if part.shape != parts[0].shape:
            first, other = (" x ".join(map(str, p.shape[1::-1])) for p in (parts[0], part))
            raise InvalidArgumentError(f"images must be of one size: {files[0]} is {first}, {file} is {other}")
    data = torch.stack(parts).float() / 127.5 - 1
    return data[:, None] if mode == "L" else data.movedim(-1, 1).contiguous()


@contextlib.contextmanager
def _opened(file: Path, library: Any) -> Iterator[Any]:
    """An image of pillow's. Raises InvalidArgumentError where it cannot be read."""
    try:
        with library.open(file) as image:
            yield image
    except InvalidArgumentError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidArgumentError(f"{file} is no image that can be read: {brief(error)}") from None
