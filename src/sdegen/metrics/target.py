"""What samples are measured against, and what a measurement returns."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.scores.mixtures import GaussianMixture

T = TypeVar("T")

F64 = torch.float64
_SHAPED = ("samples", "spare", "ends", "ends_spare")
_HOW = {
    "samples": "exact samples or held-out data [m, *S], as Target(samples=...) or Target.of(law, m)",
    "law": "the exact law, as Target(law=mixture) or Target.of(law, m)",
    "ends": "what a tight solve makes of the same noise [n, *S], as Target(ends=...)",
}


class Estimate(NamedTuple):
    """A metric's value, an interval for it, and what exact samples show.

    `[low, high]` covers the metric's expectation over draws of the samples and of the target's, at these numbers of
    them (NaN where there is no honest interval); `floor` is the root mean square of the metric over sets of as many
    exact samples (NaN where there is none).
    """

    value: float
    low: float
    high: float
    floor: float


@dataclass(frozen=True, eq=False)
class Target:
    """What samples `[n, *S]` are measured against; every metric takes the parts it needs.

    - `samples` `[m, *S]`: exact samples or held-out data;
    - `spare` `[k, *S]`: exact samples that are in nothing else, of which floors are made (n at a time, k >= n);
    - `law`: the exact law at the level where the samples end (`mixture.marginal(level)` is one);
    - `ends` `[n, *S]`: where a tight solve takes the same noise, row by row;
    - `ends_spare` `[n, *S]`: the same from a less tight solve, the floor of `rmse`.

    What a metric works out from the target alone is kept in it and used for the next sample set.
    Raises InvalidTypeError on parts that are no floating tensors, InvalidArgumentError on those that are empty, not
    finite, or of different sample shapes.
    """

    samples: Tensor | None = None
    spare: Tensor | None = None
    law: GaussianMixture | None = None
    ends: Tensor | None = None
    ends_spare: Tensor | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        shapes = {} if self.law is None else {"law": self.law.shape}
        for name in _SHAPED:
            part = getattr(self, name)
            if part is not None:
                checked(f"the target's {name}", part)
                if failures(part):
                    raise InvalidArgumentError(
                        f"the target's {name} must be finite: {failures(part)} of its {len(part)} rows are not"
                    )
                shapes[name] = part.shape[1:]
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise InvalidArgumentError(f"all parts of a target must have one sample shape, got {listed}")

    @classmethod
    def of(
        cls, law: GaussianMixture, n: int, *, seed: int = 0, sets: int = 4, dtype: torch.dtype = torch.float64
    ) -> Target:
        """The target of a mixture: the law, n samples of it, and `sets` spare sets of n (seeds derived from `seed`)."""
        if n < 1 or sets < 0:
            raise InvalidArgumentError(f"a target has n >= 1 samples and sets >= 0, got n={n}, sets={sets}")
        first, second = noises.seeds(seed, 2).tolist()
        spare = law.sample(sets * n, seed=second, dtype=dtype) if sets else None
        return cls(samples=law.sample(n, seed=first, dtype=dtype), spare=spare, law=law)

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, worked out once for this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[no-any-return]

    def need(self, part: str, metric: str) -> Any:
        """A part that a metric cannot do without; raises InvalidArgumentError where it is missing."""
        value = getattr(self, part)
        if value is None:
            raise InvalidArgumentError(f"{metric} needs the target's {part}: give {_HOW[part]}")
        return value

    @property
    def shape(self) -> torch.Size | None:
        """The samples' shape S, or None for an empty target."""
        if self.law is not None:
            return self.law.shape
        parts = [getattr(self, name) for name in _SHAPED]
        return next((p.shape[1:] for p in parts if p is not None), None)


class Metric(Protocol):
    """A number for samples against a target; any callable with a name is one.

    Two attributes are read where there are any: `failed` (what samples with NaN or Inf get, by default inf) and
    `kind` ("root" for a distance, "square" for a squared one; by default "plain", a number of any other kind).
    """

    name: str
    """A short name."""

    def __call__(self, x: Tensor, target: Target, /) -> float:
        """The metric of samples `[n, *S]`."""
        ...


def failures(x: Tensor) -> int:
    """How many of the samples `[n, *S]` have an element that is NaN or Inf."""
    return len(x) - int(x.detach().reshape(len(x), -1).isfinite().all(1).sum())


def checked(name: str, x: Any, shape: torch.Size | None = None, least: int = 1) -> Tensor:
    """Samples `[n, *S]`, detached: floating, at least `least`, of the sample shape given; they need not be finite.

    Raises InvalidTypeError on what is no floating tensor, InvalidArgumentError on the rest.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        how = "x.float()" if isinstance(x, Tensor) else "torch.as_tensor(x)"
        raise InvalidTypeError(f"{name} must be a floating tensor [n, *S], got {got}; convert it, for example by {how}")
    if x.ndim == 0 or x.numel() == 0 or len(x) < least:
        count = "one sample" if least == 1 else f"{least} samples"
        raise InvalidArgumentError(f"{name} must be [n, *S] with at least {count}, got shape {list(x.shape)}")
    if shape is not None and x.shape[1:] != shape:
        raise InvalidArgumentError(
            f"{name} has samples of shape {list(x.shape[1:])}, the target's are {list(shape)}; reshape one of them"
        )
    return x.detach()


def pair(x: Any, y: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of finite samples as `[n, D]` and `[m, D]`, float64, on the device of x.

    Raises InvalidTypeError and InvalidArgumentError as `checked`, and on samples that are not finite.
    """
    x = checked("x", x, least=least)
    y = checked("y", y, x.shape[1:], least).to(x.device)
    for name, v in (("x", x), ("y", y)):
        if failures(v):
            raise InvalidArgumentError(f"{name} must be finite: {failures(v)} of its {len(v)} samples are not")
    return flat(x), flat(y)


def flat(x: Tensor) -> Tensor:
    """`[n, *S]` as `[n, D]` in float64."""
    return x.detach().reshape(len(x), -1).to(F64)


def chunks(x: Tensor, size: int) -> list[Tensor]:
    """The rows of x, at most so many at a time."""
    return [x[i : i + size] for i in range(0, len(x), size)]
