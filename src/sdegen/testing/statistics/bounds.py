"""What a statistical test returns, and the tails of a binomial that several tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError

TINY = 1e-300


class Bound(Protocol):
    """What is known of a statistic, under the null hypothesis and away from it."""

    @property
    def proxy(self) -> float:
        """v: a statistic's mean is at least the true discrepancy, and `P(statistic < mean - e) <= exp(-e^2/(2v))`."""

    @property
    def ranks(self) -> int:
        """R where p-values are multiples of 1/R, as those of R - 1 permutations; 0 where they are not."""

    def critical(self, false_fail: float) -> float:
        """The smallest statistic with a p-value of at most `false_fail`."""

    def detectable(self, false_pass: float, false_fail: float) -> float:
        """See `Result.detectable`."""


class Result(NamedTuple):
    """What a test found: a discrepancy, and a p-value with `P(p_value <= a) <= a` for every a if there is none.

    statistic: the discrepancy of the comparison with the smallest p-value; p_value: over all comparisons; n: samples;
    what: the comparison that it was.
    """

    statistic: float
    p_value: float
    n: int
    bound: Bound
    what: str = ""

    def critical(self, false_fail: float = 1e-9) -> float:
        """The smallest statistic of that comparison that is rejected at the level `false_fail`."""
        return self.bound.critical(rate(false_fail, "false_fail"))

    def detectable(self, false_pass: float = 1e-6, false_fail: float = 1e-9) -> float:
        """A discrepancy which is rejected at the level `false_fail` but for a probability of at most `false_pass`.

        In the units of the statistic; infinite where no discrepancy has this guarantee.
        """
        return self.bound.detectable(rate(false_pass, "false_pass"), rate(false_fail, "false_fail"))


def rate(value: float, name: str) -> float:
    """The value; raises InvalidArgumentError unless it is a probability in (0, 1)."""
    if not 0.0 < value < 1.0:
        raise InvalidArgumentError(f"{name} must be a probability between 0 and 1, got {value}; 1e-9 for instance")
    return value


def forgiven(slack: float) -> float:
    """The value; raises InvalidArgumentError unless it is finite and not negative."""
    if not 0.0 <= slack < math.inf:
        raise InvalidArgumentError(f"slack must be finite and >= 0, got {slack}")
    return slack


def within(value: float, most: float) -> float:
    """The value; infinite where it is above the most that the statistic can be."""
    return value if value <= most else math.inf


def bisect(beyond: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int = 64) -> Tensor:
    """Where `beyond`, false and then true on the way from `low` to `high`, becomes true: a point where it is."""
    for _ in range(steps):
        middle = (low + high) / 2
        after = beyond(middle)
        low, high = torch.where(after, low, middle), torch.where(after, middle, high)
    return high


def kl(a: Tensor, p: Tensor) -> Tensor:
    """`a log(a/p) + (1 - a) log((1 - a)/(1 - p))`, the divergence of two coins.

    A mean of n independent variables in [0, 1] of expectation p is a or further out with probability at most
    `exp(-n kl(a, p))` (Hoeffding 1963, thm 1); so it is for hypergeometric and negatively associated ones.
    """
    p, q = p.clamp(min=TINY), (1 - p).clamp(min=TINY)
    return (torch.xlogy(a, a / p) + torch.xlogy(1 - a, (1 - a) / q)).clamp(min=0)


def unlikely(p: Tensor, c: float, side: float) -> Tensor:
    """The mean a nearest to p, above it (`side` 1) or below (0), with `kl(a, p) >= c`; NaN where there is none."""
    end = torch.full_like(p, side)
    found = bisect(lambda a: kl(a, p) >= c, p.clone(), end)
    return torch.where(kl(end, p) >= c, found, math.nan)


def escaped(a: Tensor, c: float, side: float) -> Tensor:
    """The expectation p nearest to a, above it (`side` 1) or below (0), with `kl(a, p) >= c`."""
    return bisect(lambda p: kl(a, p) >= c, a.clone(), torch.full_like(a, side))
