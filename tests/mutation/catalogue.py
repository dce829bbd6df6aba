"""Every planted fault: what is wrong, how it is checked, and, after a run, which property caught it.

`python -m mutation.catalogue`, from the tests' folder, checks all of them and prints the table; `make mutants` does so.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import sdegen as sd
from mutation import core, others, solvers
from sdegen.testing import PROBLEMS, Report, check_noise, check_process, check_score_model, check_sde, check_solver


class Mutant(NamedTuple):
    """An object with a fault, the check of it, and the property that is expected to catch it first ('' for none)."""

    kind: str
    fault: str
    check: Callable[..., Report]
    caught_by: str

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.fault}"


def _solver(cls: type, caught: dict[str, str], **claims: Any) -> Iterator[Mutant]:
    for fault, prop in caught.items():
        yield Mutant(cls.__name__, fault, functools.partial(check_solver, cls(fault), **claims), prop)


def _made(
    kind: str, check: Callable[..., Report], make: Callable[[str], Any], caught: dict[str, str], **options: Any
) -> Iterator[Mutant]:
    for fault, prop in caught.items():
        yield Mutant(kind, fault, functools.partial(check, make(fault), **options), prop)


TWO_M = {
    "second-order term twice": "order",
    "second-order term halved": "order",
    "second-order term subtracted": "order",
    "equal steps assumed": "order",
    "sigma of the start twice": "order",
    "alpha of the start": "order",
    "exponential to first order": "order",
    "sign in the exponent": "order",
    "evaluates at the end of the step": "order",
    "time rounded to thousandths": "order",
    "history never renewed": "order",
    "history kept on the solver": "copies",
    "float32 levels": "order",
    "takes noise for data": "order",
    "clips the data": "order",
    "coordinate 0 favoured": "order",
    "grid: a step too many": "own_grid",
    "grid: stops a step short": "own_grid",
    "grid: float32": "own_grid",
    "claims no memory": "memory",
    "counts two evaluations": "evaluations",
    "evaluates twice": "evaluations",
    "leaves the span": "evaluations",
    "edits x": "inputs_untouched",
    "first level of the batch for all": "levels_per_row",
    "subtracts the batch mean": "batch_independence",
    "steps back when x is large": "batch_independence",
    "swallows NaN": "fault_isolation",
    "NaN anywhere is NaN everywhere": "fault_isolation",
    "detaches": "gradients",
    "reads a value": "no_host_reads",
    "branches on a value": "no_host_reads",
    "draws from torch's generator": "global_state_untouched",
    "draws from numpy's generator": "global_state_untouched",
    "draws from random": "global_state_untouched",
    "seeds torch's generator": "global_state_untouched",
    "history on the solver, reset by init": "threads",
    "counts its steps": "copies",
    "stays in float32": "rotation",
    "carry grows": "carry_structure",
    "carry in the state's dtype": "carry_structure",
    "edits the carry": "inputs_untouched",
    "promotes the state": "dtypes",
}
ADAMS = {
    "second divided difference halved": "order",
    "history in the wrong order": "order",
    "one node short": "order",
    "last nodes swapped in the integral": "order",
}
TWO_STAGE = {
    "guess scaled by the start's alpha": "order",
    "second stage at the start's level": "order",
    "second stage at the start's x": "order",
    "weights 1/3 and 2/3": "order",
    "weights that sum to 1.001": "order",
}
MARUYAMA = {
    "half the score": "weak_order",
    "twice the score": "weak_order",
    "score scaled by 1.05": "weak_order",
    "sign of the score": "weak_order",
    "drift of another SDE": "weak_order",
    "g squared for g": "weak_order",
    "h for sqrt(h)": "weak_order",
    "noise too strong by 5 %": "weak_order",
    "no noise in it": "weak_order",
    "the same noise every step": "weak_order",
    "noise drawn twice": "fresh_noise",
    "one noise for the whole batch": "weak_order",
    "its own generator": "batch_independence",
    "the global generator": "global_state_untouched",
    "noise by position in the batch": "batch_independence",
    "uniform noise": "affine",
    "noise of the step before": "fresh_noise",
    "noise asked for upwards": "fresh_noise",
}
STOCHASTIC_HEUN = {
    "a second draw for the second stage": "weak_order",
    "diffusion of the start alone": "weak_order",
    "second stage without the noise": "weak_order",
}
ETA = {
    "variance for standard deviation": "noise_rate",
    "eta squared for eta": "weak_order",
    "beta for the posterior's variance": "weak_order",
    "direction keeps its full length": "weak_order",
}
CORRECTED = {
    "corrector step too large": "corrector_balance",
    "corrector step without sigma": "corrector_balance",
    "sqrt(e) for sqrt(2 e)": "corrector_balance",
    "corrects at the level left behind": "",
    "the corrector draws the predictor's noise": "fresh_noise",
    "step from the batch's norms": "batch_independence",
}
SCHEDULE = {
    "beta off by a half": "inverse",
    "float32 levels": "positive",
    "lam turns back": "falling",
    "variance for sigma": "inverse",
    "sigma that starts below 0": "positive",
    "reads sigma": "no_host_reads",
    "rates of twice the beta": "rates",
    "sign of the rates": "rates",
    "sigma' off by 1 %": "rates",
    "time off by one step of a thousand": "inverse",
    "log-SNR for half of it": "inverse",
    "alpha' for alpha'/alpha": "coefficients",
    "g squared halved": "coefficients",
    "g squared for g": "coefficients",
    "diffusion that depends on x": "coefficients",
    "variance for the kernel's deviation": "semigroup",
    "marginal for the kernel": "semigroup",
    "kernel that cancels": "semigroup",
    "kernel backwards": "marginals",
    "data and noise swapped": "perturbation",
    "prior of the global generator": "prior",
    "prior too wide by 5 %": "prior",
    "prior by position": "prior",
}
SCORES = {
    "sign of the score": "predictions_agree",
    "score without 1/sigma": "predictions_agree",
    "v with the wrong sign": "predictions_agree",
    "velocity of reversed time": "predictions_agree",
    "scaled by 1.001": "predictions_agree",
    "time off by a thousandth": "gradient",
    "float32 inside": "predictions_agree",
    "weights forgotten": "gradient",
    "a width forgotten": "gradient",
    "level of the first row for all": "levels_per_row",
    "edits x": "purity",
    "batch mean subtracted": "batch_independence",
    "a swirl added": "conservative",
    "overflows far away": "finite",
    "zero far away": "pull",
    "noise added": "purity",
    "float32 outside": "outputs",
    "flattened": "outputs",
    "detached": "differentiable",
    "reads a value": "no_host_reads",
}
NOISES = {
    "the tag forgotten": "independent",
    "the end of the step forgotten": "fresh",
    "the start of the step forgotten": "fresh",
    "times in float32": "fresh",
    "seeds by position": "per_sample",
    "half of the seed": "independent",
    "a call counter in the key": "pure",
    "too wide by 3 %": "normal",
    "a mean of 0.03": "normal",
    "uniform": "normal",
    "tails cut at 3": "normal",
    "every second element repeated": "independent",
    "antithetic elements": "independent",
    "torch's generator": "pure",
    "moves torch's generator": "untouched",
    "depends on x": "shape_alone",
    "float32 always": "outputs",
    "reads the times": "no_host_reads",
}
SDES = {
    "divergence halved in the drift": "fokker_planck",
    "g for g squared in the drift": "fokker_planck",
    "drift centred over the batch": "batch_independence",
    "g depends on the batch": "batch_independence",
    "divergence forgotten": "divergence",
    "divergence halved": "divergence",
}


SURVIVORS = {
    "Corrected: corrects at the level left behind": "a corrector that sees the level left behind errs by a step, as "
    "its predictor does: it is another consistent method of the same order, and nothing that it claims is false",
}
"""Planted changes that no property can call a fault, and why."""


def all_mutants() -> list[Mutant]:
    """Every planted fault."""
    found = [
        *_solver(solvers.TwoM, TWO_M, order=2),
        *_solver(solvers.Adams3, ADAMS, order=3),
        *_solver(solvers.TwoStage, TWO_STAGE, order=2),
        *_solver(solvers.Maruyama, MARUYAMA, weak_order=1, eta=1.0),
        *_solver(solvers.StochasticHeun, STOCHASTIC_HEUN, weak_order=2),
        *_solver(solvers.Eta, ETA, weak_order=1, eta=0.7),
        *_solver(solvers.Corrected, CORRECTED),
        *_made("Process", check_process, lambda fault: others.Schedule(fault=fault), SCHEDULE),
        *_made("Score", check_score_model, others.Score, SCORES),
        *_made("Noise", check_noise, lambda fault: functools.partial(others.Noise, fault=fault), NOISES),
        *_made("SDE", check_sde, others.stationary, SDES, log_prob=others.normal_density),
    ]
    found += [Mutant("Executor", *fault) for fault in core.executor_faults()]
    found += [Mutant("Loop", *fault) for fault in core.loop_faults()]
    silent = functools.partial(check_solver, solvers.Maruyama("says that it is deterministic"))
    found.append(Mutant("Maruyama", "says that it is deterministic", silent, "fresh_noise"))
    shifted = others.Shifted(PROBLEMS["line"].data.means, stds=[0.3, 0.25, 0.5], weights=[0.3, 0.5, 0.2])
    density = functools.partial(check_score_model, others.Score("", shifted))
    found.append(Mutant("Score", "density not normalised", density, "integrals"))
    for fault, norm in (("dropout in training mode", False), ("batch norm in training mode", True)):
        model = sd.ScoreModel(sd.VP(), others.Net(norm).double(), "noise")
        found.append(Mutant("Score", fault, functools.partial(check_score_model, model, shape=(2,)), "evaluation_mode"))
    return found


def controls() -> list[Mutant]:
    """The same objects without a fault: they must pass."""
    made: list[tuple[Any, Any]] = [
        (check_solver, (solvers.TwoM(), {"order": 2})),
        (check_solver, (solvers.Adams3(), {"order": 3})),
        (check_solver, (solvers.TwoStage(), {"order": 2})),
        (check_solver, (solvers.Maruyama(), {"weak_order": 1, "strong_order": 1, "eta": 1.0})),
        (check_solver, (solvers.StochasticHeun(), {"weak_order": 2})),
        (check_solver, (solvers.Eta(), {"weak_order": 1, "eta": 0.7})),
        (check_solver, (solvers.Corrected(), {})),
        (check_process, (others.Schedule(), {})),
        (check_score_model, (others.Score(), {})),
        (check_noise, (others.Noise, {})),
        (check_sde, (others.stationary(), {"log_prob": others.normal_density})),
    ]
    return [
        Mutant(
            getattr(subject, "__name__", repr(subject)), "no fault", functools.partial(check, subject, **options), ""
        )
        for check, (subject, options) in made
    ]


def main() -> int:
    """Check every mutant with all properties and print which caught it first."""
    torch.set_num_threads(1)
    start, mutants = time.perf_counter(), all_mutants()
    caught, none = 0, 0
    print("| fault | property that caught it | what it saw |\n|---|---|---|")
    for mutant in mutants:
        report = mutant.check(fail_fast=True, raise_on_fail=False)
        first = report.failed[0] if report.failed else None
        caught += first is not None
        none += first is None and mutant.name in SURVIVORS
        seen = first.message.split("\n")[0].replace("|", "\\|")[:90] if first else SURVIVORS.get(mutant.name, "")
        print(f"| {mutant.name} | {first.prop.name if first else '**survived**'} | {seen} |", flush=True)
    faults = len(mutants) - none
    print(f"\n{caught} of {faults} planted faults caught, in {time.perf_counter() - start:.0f} s; {none} is no fault")
    return 0 if caught == faults else 1


if __name__ == "__main__":
    raise SystemExit(main())
