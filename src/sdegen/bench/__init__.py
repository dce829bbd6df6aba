"""Step counts against quality: sweeps of solvers, budgets and metrics over problems, and the page of `sdegen bench`.

`import sdegen.bench`; nothing here is imported with sdegen itself.
"""

from sdegen.bench.contenders import Calibrated, Contender, Drawn, Ours
from sdegen.bench.others import Peer
from sdegen.bench.problems import PROBLEMS, PROCESSES, Problem, problem
from sdegen.bench.robustness import perturbed, reduced
from sdegen.bench.rows import COLUMNS, Rows
from sdegen.bench.sweep import sweep

__all__ = [
    "COLUMNS",
    "PROBLEMS",
    "PROCESSES",
    "Calibrated",
    "Contender",
    "Drawn",
    "Ours",
    "Peer",
    "Problem",
    "Rows",
    "perturbed",
    "problem",
    "reduced",
    "sweep",
]
