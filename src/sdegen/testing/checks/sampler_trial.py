"""One check of a sampler: its samples, what they should be samples of, and the error rates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.report import Measure
from sdegen.testing.statistics.bounds import Result
from sdegen.testing.statistics.sequential import Sampler, Verdict, sequential


@dataclass(frozen=True, eq=False)
class Trial:
    """Samples x `[n, *S]` of `sampler` against a law, or against samples of `source`; `level` is for one property."""

    sampler: Sampler
    law: GaussianMixture | None
    source: Sampler
    x: Tensor
    along: int
    slack: float
    level: float
    false_pass: float
    resolution: float
    batch: int
    max_batches: int
    seeds: tuple[int, ...]

    @property
    def mixture(self) -> GaussianMixture:
        """The law; raises InvalidArgumentError where the target is a sampler."""
        if self.law is None:
            raise InvalidArgumentError("this property needs a target whose law is known, a GaussianMixture")
        return self.law

    @functools.cached_property
    def broken(self) -> int:
        """How many samples are not finite."""
        return int((~self.x.reshape(len(self.x), -1).isfinite().all(1)).sum())

    def draw(self, n: int, seed: int) -> Tensor:
        """n samples of the target, in the samples' dtype and on their device."""
        made: Any = self.source(n, seed)
        if not isinstance(made, Tensor) or made.shape != (n, *self.x.shape[1:]):
            expected = [n, *self.x.shape[1:]]
            raise InvalidArgumentError(f"target(n, seed) must return samples {expected}, got {described(made)}")
        return made.detach().to(self.x.device, self.x.dtype)

    @functools.cached_property
    def y(self) -> Tensor:
        """As many samples of the target."""
        return self.draw(len(self.x), self.seeds[1])

    def measure(self, what: str, result: Result) -> Iterator[Measure]:
        """The statistic and its critical value: it holds just where the p-value is above the level."""
        sight = f"sees {result.detectable(self.false_pass, self.level):.2g}"
        high = result.critical(self.level)
        if result.p_value > self.level:
            high = max(high, result.statistic)
        else:
            high = min(high, math.nextafter(result.statistic, -1.0))
        yield Measure(", ".join(part for part in (what, result.what, sight) if part), result.statistic, high)

    def bets(self, test: Callable[..., Result], seed: int) -> Iterator[Measure]:
        """The evidence against the target, batch after batch; it holds where the target is not rejected."""
        rates = {"false_fail": self.level, "false_pass": self.false_pass, "resolution": self.resolution}
        sizes = {"batch": self.batch, "max_batches": self.max_batches, "seed": seed}
        end: Verdict = sequential(self.sampler, self.draw, test, **rates, **sizes)  # type: ignore[arg-type]
        sight = f", sees {end.detectable:.2g}" if end.detectable < math.inf else ""
        what = f"log10 evidence, {end.verdict} in {end.batches} x {self.batch}{sight}"
        yield Measure(what, min(end.log_wealth / math.log(10), 1e300), math.nextafter(-math.log10(self.level), 0.0))


def described(value: Any) -> str:
    """What came instead of samples."""
    return f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
