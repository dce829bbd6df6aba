"""Where references and the trained network are kept: `$SDEGEN_BENCHMARKS`, or ~/.cache/sdegen-benchmarks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def folder() -> Path:
    """The cache folder, made if absent."""
    path = Path(os.environ.get("SDEGEN_BENCHMARKS") or Path.home() / ".cache" / "sdegen-benchmarks")
    path.mkdir(parents=True, exist_ok=True)
    return path


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns (tensors, or dictionaries of them), made once and read from disk from then on."""
    path = folder() / f"{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    value = make()
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(value, part)
    part.replace(path)  # two processes may make the same thing at once
    return value
