"""`calibrate`: from a few pilot paths of any model to a `Plan`, without training or gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.calibration.fit import fitted, tried
from sdegen.calibration.levels import Residuals, blend, density, equidistributed, karras_lams
from sdegen.calibration.pilot import ELEMENTS, F64, Path, Probe, adams, span, trace
from sdegen.calibration.plan import Plan
from sdegen.errors import InvalidArgumentError, InvalidTypeError, check_positive, strict_keywords, warn_caller
from sdegen.grids import check_steps
from sdegen.loop.arguments import check_model
from sdegen.scores.model import place, warn_if_training
from sdegen.solvers.methods import default

_LONGEST = 64
_TOP = 20
"""The most steps that are tried for a tolerance: the paths are exact enough to judge these."""
_MANY = 64
"""Elements of a sample from which on one coarse path is enough, and a search for levels has equations to go by."""
_DOUBT = 0.75
"""How far below the fitted plan's error the unfitted one's must be, on the few pilots held out, to be preferred."""
_PATHS = 83
"""The most exact paths, 64 of them to fit."""
_EQUATIONS = 1.25
"""Equations per unknown below which weights are not fitted: they would fit the pilots alone."""


@strict_keywords
@torch.no_grad()
def calibrate(
    model: Any,
    shape: Sequence[int],
    *,
    nfe: int | None = None,
    tol: float | None = None,
    pilot: int = 1000,
    fit: bool = True,
    denoise: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """A plan for sampling `model` with `nfe` evaluations, or with as few as keep the error below `tol`.

    What the pilots' budget buys (docs/calibrate.md): nothing, `default()` as a plan; up to about 300, one path, from
    which the levels follow, with exponential Adams weights and no error estimate; more, many paths: the weights are
    fitted on most of them, and the others give the error estimate and decide whether the fit is worth having.

    Args:
        model: a `ScoreModel`, or what answers like one; conditions of single samples are used in turn.
        shape: of one sample, `*S`.
        nfe: evaluations of the sampling call.
        tol: in place of nfe, the error to stay below, relative to the data's scale: the smallest nfe that meets it.
        pilot: how many evaluations, of one sample each, it may spend; what it did spend is `plan.spent`.
        fit: whether weights may be fitted.
        denoise: the last of the nfe is `sample`'s own denoising, so the plan has nfe - 1 steps (its error is that of
            the state at t_min all the same).
        seed: of the pilots' noise, which no sample shares.
        batch_size: how many states the network sees at once.
        dtype, device: of the states that the network gets; as in `sample`, and float64 for a mixture's exact score.

    Raises InvalidArgumentError or InvalidTypeError for arguments that cannot work, ScoreError where a pilot is not
    finite. Warns where the budget does not suffice for `tol`.
    """
    size = _checked(model, shape, nfe, tol, pilot)
    n = None if nfe is None else _steps(nfe, denoise)
    if n is not None and pilot == 0:
        return Plan.of(default(), model.process, n)
    if batch_size is not None:
        check_steps(batch_size, "batch_size")
    warn_if_training(model.module)
    made = place(model.module, F64 if model.exact and dtype is None else dtype, device, model.device)
    probe = Probe(model, size, seed, *made, batch_size)
    if n is None:
        return _smallest(probe, float(tol or 0), pilot, fit)
    budget = _budget(probe, n, pilot, fit)
    return _single(probe, n, pilot) if budget is None else _best(probe, _traced(probe, budget), n, budget)


def _checked(model: Any, shape: Any, nfe: Any, tol: Any, pilot: Any) -> tuple[int, ...]:
    check_model(model)
    if not model.answers:
        raise InvalidTypeError("calibrate needs predictions at levels: give the ScoreModel itself, not a ReverseSDE")
    span(model.process)
    try:
        size = torch.Size(shape)
    except TypeError:
        raise InvalidTypeError(f"shape must be a sample's shape (*S), such as (3, 32, 32), got {shape!r}") from None
    if not size or min(size) < 1:
        raise InvalidArgumentError(f"shape must be one sample's (*S), without a batch, got {list(size)}")
    if (nfe is None) == (tol is None):
        raise InvalidArgumentError(f"give nfe or tol, one of the two; got nfe={nfe}, tol={tol}")
    if tol is not None:
        check_positive(tol=tol)
    if type(pilot) is not int or pilot < 0 or 0 < pilot < 16:
        raise InvalidArgumentError(f"pilot must be 0 (none) or at least 16 evaluations, got {pilot!r}")
    if pilot == 0 and nfe is None:
        raise InvalidArgumentError("without a pilot there is no error estimate to choose nfe by: give nfe")
    return tuple(size)


def _steps(nfe: int, denoise: bool) -> int:
    """How many steps a plan has whose sampling call takes nfe evaluations."""
    n = check_steps(nfe, "nfe") - bool(denoise)
    if n == 0:
        raise InvalidArgumentError("nfe=1 with denoise=True leaves no step: the denoising takes one evaluation")
    if not 1 <= n <= _LONGEST:
        raise InvalidArgumentError(f"a plan has 1 to {_LONGEST} steps, not {n}: beyond, any method of order 3 does")
    return n


def _order(n: int) -> int:
    """The predictor's order for n steps."""
    return 1 if n <= 6 else 2 if n <= 15 else 3


def _fine(n: int) -> int:
    """How many steps make a path exact enough to judge plans of n steps."""
    return 28 if n <= 8 else 32 if n <= 12 else 40 if n <= 26 else 3 * n // 2


class _Budget(NamedTuple):
    """What the pilots are spent on: a coarse path, `paths` of `fine` steps, then `runs` plans tried on all of these."""

    coarse: int
    fine: int
    paths: int
    runs: int
    fit: bool

    @property
    def held(self) -> int:
        """How many paths are held out of the fit: two of nine, at least two."""
        return max(2, -(-2 * self.paths // 9))

    @property
    def fits(self) -> int:
        return self.paths - self.held

    @property
    def traced(self) -> int:
        """Evaluations for the exact paths."""
        return self.coarse + self.paths * (self.fine + 1)

    def tries(self, n: int) -> int:
        """Evaluations for plans of n steps; with a fit, the unfitted plan is tried on the pilots held out too."""
        return (self.runs * self.paths + self.held * self.fit) * n


def _budget(probe: Probe, n: int, pilot: int, fit: bool) -> _Budget | None:
    """As many paths as `pilot` evaluations allow; None where that is fewer than six.

    The best use that these allow: two fitted plans, one, three plans without a fit, one.
    """
    size = math.prod(probe.shape)
    coarse = 33 if size >= _MANY else 75
    for runs, kind in ((2, True), (1, True), (3, False), (1, False)):
        if kind and (not fit or (runs == 2 and size < _MANY)):
            continue
        options = (_Budget(coarse, _fine(n), paths, runs, kind) for paths in range(_PATHS, 5, -1))
        found = next((option for option in options if option.traced + option.tries(n) <= pilot), None)
        if found and (not kind or (_enough(found.fits, size, n) and (runs == 1 or found.fits >= 8))):
            return found
    return None


def _enough(fits: int, size: int, n: int) -> bool:
    """Whether so many pilots give the equations that a fit of n steps needs."""
    return fits * min(size, ELEMENTS) >= _EQUATIONS * (n + 2)


def _single(probe: Probe, n: int, pilot: int) -> Plan:
    """The levels from one path, without a fit."""
    path = _coarse(probe, min(pilot, 75))
    weight = blend(path, 0.05) if _order(n) == 1 else density(path, "angle", 0.05)
    plan = adams(equidistributed(path.lams, weight, n), path.scale, _order(n))
    return replace(plan, scale=path.scale, spent=probe.spent)


def _coarse(probe: Probe, budget: int) -> Path:
    """One path on a Karras grid, or three where samples have few elements, at its own scale."""
    first, last = span(probe.model.process)
    count = 1 if math.prod(probe.shape) >= _MANY or budget < 60 else 3
    lams = karras_lams(min(budget // count, 49) - 1, first, last)
    path = trace(probe, probe.start(0, count, first), lams, 1.0)
    return path.rescaled(_scale(path))


def _scale(path: Path) -> float:
    """The standard deviation of the data at the ends of the paths: about their mean; of few paths about one value."""
    ends = path.data()[-1]
    count, size = ends.shape
    if count > 3:
        spread = (ends - ends.mean(0)).square().mean() * count / (count - 1)
    else:
        spread = (ends - (ends.mean() if size >= _MANY else 0)).square().mean()
    return max(float(spread.sqrt()), 1e-6)


def _traced(probe: Probe, budget: _Budget) -> Path:
    """The exact paths, on levels from a coarse one."""
    coarse = _coarse(probe, budget.coarse)
    lams = equidistributed(coarse.lams, blend(coarse, 0.2), budget.fine)
    path = trace(probe, probe.start(8, budget.paths, lams[0]), lams, coarse.scale)
    return path.rescaled(_scale(path))


def _grids(path: Path, n: int, runs: int, fit: bool) -> list[Tensor]:
    """The levels worth a run. To be fitted: the best common ones by what a fit would leave, and a search's result."""
    plain = karras_lams(n, path.lams[0], path.lams[-1])
    shared = [equidistributed(path.lams, density(path, kind, 0.05), n) for kind in ("data", "angle")]
    middle = (shared[0] + shared[1]) / 2
    if not fit:
        return [shared[1], middle, shared[0]][:runs]
    left = Residuals(path)
    common = sorted([*shared, middle, (shared[0] + plain) / 2, plain], key=left.of)
    if runs == 1:
        return common[:1]
    return [common[0], min((left.search(lams) for lams in (common[0], plain)), key=left.of)]


def _best(probe: Probe, pilots: Path, n: int, budget: _Budget) -> Plan:
    """The best candidate by the errors of all pilots; unfitted where those held out do no worse."""
    fits, held = pilots.part(slice(budget.fits)), pilots.part(slice(budget.fits, None))
    scale, judges = pilots.scale, held if budget.fit else pilots
    found: list[tuple[float, Plan, Tensor]] = []
    for lams in _grids(fits, n, budget.runs, budget.fit):
        plan, own = adams(lams, scale, _order(n)), torch.empty(n, 0, device="cpu")
        if budget.fit:
            plan, own = fitted(probe, plan, fits)
        errors = tried(probe, plan, judges)
        found.append((float(torch.cat([own, errors], 1)[-1].mean()), plan, errors))
    _, plan, errors = min(found, key=lambda entry: entry[0])
    if budget.fit:
        plain = adams(plan.lams, scale, _order(n))
        unfitted = tried(probe, plain, held)
        if float(unfitted[-1].mean()) < _DOUBT * float(errors[-1].mean()):
            plan, errors = plain, unfitted
    return replace(plan, errors=errors.mean(1) + pilots.defect.mean(), scale=scale, spent=probe.spent)


def _smallest(probe: Probe, tol: float, pilot: int, fit: bool) -> Plan:
    """The plan with the fewest steps whose estimate meets tol, among those that the budget allows to try.

    Two thirds go to the paths. How many steps to try is read off `Residuals`, scaled to the errors measured so far.
    """
    budget = _budget(probe, 12, pilot * 2 // 3, fit)
    if budget is None:
        raise InvalidArgumentError(f"tol needs an error estimate, and a pilot of {pilot} is too small: 1000 will do")
    budget = budget._replace(runs=1, fine=_fine(_TOP))
    pilots, size = _traced(probe, budget), math.prod(probe.shape)
    path = pilots.part(slice(budget.fits))
    left, share = Residuals(path), 0.3
    expected = {n: left.of(_grids(path, n, 1, True)[0]) for n in range(2, _TOP + 1)}
    tries: dict[int, Plan] = {}
    low, high = 1, _TOP + 1  # failed, and met tol (or out of reach)
    while low + 1 < high:
        hopeful = (n for n, value in expected.items() if share * value <= tol * pilots.scale)
        n = min(max(next(hopeful, _TOP), low + 1), high - 1)
        own = budget._replace(fit=budget.fit and _enough(budget.fits, size, n))
        if probe.spent + own.tries(n) > pilot:
            break
        tries[n] = _best(probe, pilots, n, own)
        share = tries[n].error / expected[n]
        low, high = (low, n) if tries[n].error <= tol * tries[n].scale else (n, high)
    if high not in tries:
        reached = min((plan.error / plan.scale for plan in tries.values()), default=math.inf)
        warn_caller(
            f"no plan of up to {_TOP} steps met tol={tol:g} with {pilot} pilot evaluations (the best has "
            f"{reached:.2g}): raise pilot or tol, or give nfe"
        )
    return replace(tries[high] if high in tries else tries[max(tries)], spent=probe.spent)
