r"""Tests of samples against an exact law or against other samples, with error rates that hold at every level and n.

A test compares samples x `[n, *S]` with a `GaussianMixture` or with samples y `[m, *S]`, all independent, and returns a
`Result`. Nothing here is asymptotic: under the null hypothesis a p-value is at most a with probability at most a, at
1e-9 too. Each is

    min(1, C * bound)     C comparisons (Bonferroni), two sides each

with the bound of one comparison from

- `ks_test`    Massart's `2 exp(-2 n d^2)`; for two samples the reflection principle (n = m) or Massart twice;
- `mode_test`  Chernoff's `exp(-n kl)` for the means of responsibilities, which are exactly the weights;
- `cell_test`  the exact hypergeometric tail of counts; `copy_test`  Chernoff's for negatively associated pairs;
- `moments`    Cramer's transform of the projected mixture, in closed form, for means and variances;
- `permutation`  ranks among permutations, exact for every statistic, for energy distance and MMD.

False passes are bounded apart: `Result.detectable` is a discrepancy that is rejected with at least the probability
`1 - false_pass`. `slack` widens the null hypothesis to laws within that distance. Rounding of x is forgiven, 16 units
in the last place of its dtype (one for half precision): a fault that is no larger is none. Directions and cells must
not have been chosen by looking at the samples.

Sources: Massart (1990); Gnedenko and Korolyuk (1951); Hoeffding (1963); Joag-Dev and Proschan (1983).
"""

from __future__ import annotations

from sdegen.testing.statistics.bounds import Result
from sdegen.testing.statistics.counts import cell_test, copy_test
from sdegen.testing.statistics.kolmogorov import ks_test
from sdegen.testing.statistics.modes import mode_test
from sdegen.testing.statistics.moments import mean_test, spread_test
from sdegen.testing.statistics.permutation import energy_test, mmd_test

__all__ = [
    "Result",
    "cell_test",
    "copy_test",
    "energy_test",
    "ks_test",
    "mean_test",
    "mmd_test",
    "mode_test",
    "spread_test",
]
