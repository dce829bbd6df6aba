"""Two-sample tests by counting: how many samples fall into a cell, and how many are copies of one another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError
from sdegen.testing.statistics.bounds import Result, forgiven, kl, unlikely, within
from sdegen.testing.statistics.projections import F64, checked, directions, distances

_SHUFFLE = 0x73687566


@dataclass(frozen=True)
class _Cells:
    """Counts a of n and b of m in one of K cells; under one law a is hypergeometric given a + b = `total`."""

    n: int
    m: int
    count: int
    total: int
    up: bool
    slack: float
    proxy: float = math.inf
    ranks: int = 0

    def _log_tails(self) -> tuple[int, Tensor]:
        """The smallest a, and `log P(a or more)` from there on; of the other sample's count where it has more."""
        n, m = (self.n, self.m) if self.up else (self.m, self.n)
        first = max(0, self.total - m)
        a = torch.arange(first, min(n, self.total) + 1, dtype=F64)
        rest = self.total - a

        def choose(size: int, k: Tensor) -> Tensor:
            whole = torch.tensor(size + 1.0, dtype=F64)
            return torch.lgamma(whole) - torch.lgamma(k + 1) - torch.lgamma(whole - k)

        logs = choose(n, a) + choose(m, rest)
        logs = logs - logs.logsumexp(0)
        return first, logs.flip(0).logcumsumexp(0).flip(0).clamp(max=0.0)

    def log_p(self, a: int, b: int) -> float:
        """The logarithm of 2 K times the tail, not yet cut at 0."""
        if self.slack > 0:
            return self._log_hoeffding(abs(a / self.n - b / self.m))
        first, tails = self._log_tails()
        return math.log(2 * self.count) + float(tails[(a if self.up else b) - first])

    def _log_hoeffding(self, d: float) -> float:
        return math.log(2 * self.count) - 2 * max(0.0, d - self.slack) ** 2 / (1 / self.n + 1 / self.m)

    def critical(self, false_fail: float) -> float:
        if self.slack > 0:
            return within(self._reach(false_fail, (1 / self.n + 1 / self.m) / 2), 1.0)
        first, tails = self._log_tails()
        beyond = (tails <= math.log(false_fail / (2 * self.count))).nonzero()
        if not len(beyond):
            return math.inf
        n, m = (self.n, self.m) if self.up else (self.m, self.n)
        k = first + int(beyond[0])
        return k / n - (self.total - k) / m

    def _reach(self, false_fail: float, half: float) -> float:
        return self.slack + math.sqrt(math.log(2 * self.count / false_fail) * half)

    def detectable(self, false_pass: float, false_fail: float) -> float:
        # a/n - total/N = (a/n - b/m) m/N, and exp(-2 n e^2/(1 - (n - 1)/N)) for draws without replacement (Serfling
        # 1974, cor. 1.1); of the two samples take the one for which it is less
        half = (1 / self.n + 1 / self.m) / 2
        known = half if self.slack > 0 else half * (1 + 1 / max(self.n, self.m))
        return within(self._reach(false_fail, known) + math.sqrt(math.log(1 / false_pass) * half), 1.0)


def cell_test(x: Tensor, target: Tensor, centres: Tensor, *, slack: float = 0.0) -> Result:
    """The masses of K cells, `max_k |a_k/n - b_k/m|`, a cell being all that is nearest to one of the centres.

    x `[n, *S]`, target `[m, *S]`; centres `[K, *S]` that were not chosen by looking at these samples. P-value: 2 K
    times the exact hypergeometric tail of a_k given `a_k + b_k` (Fisher 1935); with slack, a difference of masses that
    is allowed, Hoeffding's `exp(-2 d^2/(1/n + 1/m))`. Raises InvalidArgumentError, InvalidTypeError as `ks_test`.
    """
    slack, x = forgiven(slack), checked("x", x)
    y, centres = checked("target", target, x).to(x.device), checked("centres", centres, x).to(x.device)
    n, m, count = len(x), len(y), len(centres)
    found = []
    for k, (a, b) in enumerate(zip(_occupied(x, centres), _occupied(y, centres))):
        cells = _Cells(n, m, count, a + b, a * m >= b * n, slack)
        found.append((cells.log_p(a, b), k, abs(a / n - b / m), cells))
    log_p, k, d, cells = min(found, key=lambda f: f[0])
    return Result(d, math.exp(min(0.0, log_p)), n, cells, f"cell {k}")


def _occupied(x: Tensor, centres: Tensor) -> list[int]:
    flat, points = x.reshape(len(x), -1), centres.reshape(len(centres), -1).to(F64)
    step = max(1, (1 << 22) // (len(points) + points.shape[1]))
    total = torch.zeros(len(points), dtype=torch.int64, device=x.device)
    for i in range(0, len(flat), step):
        nearest = distances(flat[i : i + step].to(F64), points).argmin(1)
        total += torch.bincount(nearest, minlength=len(points))
    counts: list[int] = total.tolist()
    return counts


@dataclass(frozen=True)
class _Copies:
    """k of `pairs` pairs lie within x, each with probability at most `chance = (n/N)^2`."""

    n: int
    pairs: int
    chance: float
    proxy: float = math.inf
    ranks: int = 0

    def critical(self, false_fail: float) -> float:
        if self.pairs == 0:
            return math.inf
        chance = torch.tensor(self.chance, dtype=F64)
        share = float(unlikely(chance, math.log(1 / false_fail) / self.pairs, 1.0))
        return math.inf if math.isnan(share) else 2 * share * self.pairs / self.n

    def detectable(self, false_pass: float, false_fail: float) -> float:
        return within(2 * math.ceil(math.log(1 / false_fail) / math.log(1 / self.chance)) / self.n, 1.0)


def copy_test(x: Tensor, target: Tensor, *, seed: int = 0) -> Result:
    """The share of samples that are copies: `2 k/n`, k the disjoint pairs of equal samples within x.

    x `[n, *S]`, target `[m, *S]` in x's dtype, so that rounding repeats values in both. Of the c pairs in the pooled
    samples, paired in an order that `seed` shuffles, one lies within x with probability at most `(n/(n + m))^2`, and
    these events are negatively associated: p-value `exp(-c kl(k/c, (n/(n + m))^2))` where k is more than expected
    (Joag-Dev and Proschan 1983; Hoeffding 1963). `detectable` is for a target that repeats nothing. Raises
    InvalidArgumentError on another dtype, and as `ks_test`.
    """
    x = checked("x", x)
    y = checked("target", target, x).to(x.device)
    if x.dtype != y.dtype:
        raise InvalidArgumentError(f"the target's samples must be of x's dtype {x.dtype}, got {y.dtype}: convert them")
    pooled, n = torch.cat((_marks(x, seed), _marks(y, seed))), len(x)
    keys = noises.philox(noises.halves(noises.seeds(seed, len(pooled), device=x.device)), (_SHUFFLE, 0, 0, 0))
    order = (keys[0] << 31 | keys[1] >> 1).argsort()
    group = pooled[order]
    place = group.argsort(stable=True)
    group, mine = group[place], (order < n)[place]
    start = torch.searchsorted(group, group)
    even = (torch.arange(len(group), device=x.device) - start)[:-1] % 2 == 0
    paired = even & (group[1:] == group[:-1])
    pairs, within = int(paired.sum()), int((paired & mine[1:] & mine[:-1]).sum())
    bound = _Copies(n, pairs, (n / len(pooled)) ** 2)
    share, chance = (torch.tensor(v, dtype=F64) for v in (within / max(1, pairs), bound.chance))
    p = math.exp(-pairs * float(kl(share, chance))) if share > chance else 1.0
    return Result(2 * within / n, p, n, bound)


def _marks(x: Tensor, seed: int) -> Tensor:
    """A number for each sample, the same bits for equal ones: a projection, summed row by row."""
    flat = x.reshape(len(x), -1)
    u = directions(seed, 1, flat.shape[1])[-1].to(x.device)
    step = max(1, (1 << 22) // flat.shape[1])
    return torch.cat([(flat[i : i + step].to(F64) * u).sum(1) for i in range(0, len(flat), step)])
