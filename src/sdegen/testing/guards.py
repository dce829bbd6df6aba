"""Guards: what a computation must leave alone, and what it must not grow."""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdegen.testing.report import PropertyError


def global_state() -> dict[str, Any]:
    """What every part of a program shares: the generators of torch, numpy and random, and torch's modes."""
    numbers: Any = np.random.get_state()
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "CUDA's generators": b"".join(s.numpy().tobytes() for s in torch.cuda.get_rng_state_all())
        if torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        else b"",
        "numpy's generator": (numbers[0], numbers[1].tobytes(), *numbers[2:]),
        "random's generator": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the number of threads": torch.get_num_threads(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


@contextlib.contextmanager
def mid_stream() -> Iterator[None]:
    """Global generators in the middle of their streams, where no seeding leaves them; put back at the end."""
    kept: Any = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.rand(7)
    np.random.standard_normal(7)
    random.random()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


@contextlib.contextmanager
def assert_no_global_rng() -> Iterator[None]:
    """Raises PropertyError if the block moves a global generator or changes one of torch's modes."""
    with mid_stream():
        before = global_state()
        yield
        changed = [name for name, value in global_state().items() if value != before[name]]
    if changed:
        raise PropertyError(f"the block changed {', '.join(changed)}")


def assert_bit_identical(a: Tensor, b: Tensor, what: str = "the tensors") -> None:
    """Raises PropertyError unless a and b have one shape, dtype and the same bits (NaNs included)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise PropertyError(f"{what} differ: {list(a.shape)} of {a.dtype} and {list(b.shape)} of {b.dtype}")
    apart = differing(a, b)
    if apart:
        worst = float((a.double() - b.double()).abs().nan_to_num().max())
        raise PropertyError(f"{what} differ in {apart} of {a.numel()} elements, by up to {worst:.3g}")


def differing(a: Tensor, b: Tensor) -> int:
    """How many elements differ in their bits."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = sizes[a.element_size()]
    return int((a.contiguous().view(kind) != b.contiguous().view(kind)).sum())


def nobody_could(error: Exception) -> bool:
    """Whether a pickle failed for what is no fault of the object: a lambda, or a class that cannot be imported."""
    return any(word in str(error) for word in ("local", "lambda", "attribute lookup", "not the same object"))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, and the most bytes of them alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak = 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self._follow(value)
        return out

    def _follow(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators seeded inside, for code that draws from them, and put back after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def peak_memory(function: Callable[[], Any]) -> int:
    """The most bytes of tensors made inside `function()` that were alive at once."""
    watch = _Watch()
    with watch:
        function()
    return watch.peak


def assert_constant_memory(function: Callable[[int], Any], small: int = 5, large: int = 20, slack: float = 1.1) -> None:
    """Raises PropertyError if the peak memory of `function(large)` is more than `slack` times that of `small`."""
    few, many = (peak_memory(lambda n=n: function(n)) for n in (small, large))  # type: ignore[misc]
    if many > slack * few:
        raise PropertyError(f"peak memory grows from {few:,} bytes at {small} to {many:,} at {large}")
