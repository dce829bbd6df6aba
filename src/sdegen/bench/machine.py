"""What a benchmark ran with and on."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import sdegen


def about(peers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Versions and hardware."""
    found = [("sdegen", sdegen.__version__), ("torch", torch.__version__), ("Python", platform.python_version())]
    for name in ("numpy", "scipy"):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    found += list(peers.items())
    found.append(("system", f"{platform.system()} {platform.machine()}"))
    found.append(("processor", f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"))
    if torch.cuda.is_available():
        found.append(("accelerator", torch.cuda.get_device_name()))
    return found


@functools.cache
def processor() -> str:
    """The processor's name."""
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        model = None
    return model[1] if model else platform.processor() or "unknown"
