"""What the exact score of a known law must fulfil: calculus, Bayes, Tweedie, Fokker and Planck."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.mixtures import GaussianMixture
from sdegen.testing.checks.scores import SCORE, At, Scored, known, points
from sdegen.testing.problems import off_knots
from sdegen.testing.report import Inapplicable, Measure
from sdegen.testing.rounding import covariances, mixture_error

F64 = torch.float64
EPS = torch.finfo(F64).eps


def _law(subject: Scored) -> GaussianMixture:
    law: GaussianMixture | None = subject.law
    if law is None:
        raise InvalidArgumentError("its law is not known: give reference=")
    return law


def _small(subject: Scored) -> str | None:
    return known(subject) or (None if math.prod(subject.shape) <= 16 else "more than 16 dimensions")


@SCORE.states(
    "score = grad log p, by automatic differentiation of the density", applies=known, given=points, examples=25
)
def gradient(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject).to(F64), case.level(subject.process)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(_law(subject).log_prob(at, level).sum(), at)
    # what autograd adds to the error of the score itself is rounding of the same sums
    limit = mixture_error(_law(subject), x, level, 0.0, 1.0)[0]
    gap = (level.sigma * (slope - subject.model(x, level, "score"))).flatten(1).norm(dim=1)
    yield Measure("distance times sigma over its rounding bound", float((gap / limit).max()), 16.0)


@SCORE.states("data = E[data | x], by Bayes' rule on each component", applies=known, given=points)
def tweedie(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject).to(F64), case.level(subject.process)
    law, dim = _law(subject), math.prod(subject.shape)
    data = subject.model(x, level, "data").flatten(1)
    limit = mixture_error(law, x, level, 1.0, 0.0)[0]
    for i in range(len(x)):
        bayes = law.posterior(x[i].flatten(), level.alpha * torch.eye(dim, dtype=F64), level.sigma).mean().flatten()
        # the posterior's own route: singular values, conditioned like the denoiser's, and sums of the same length
        yield Measure("distance over its rounding bound", float((data[i] - bayes).norm() / limit[i]), 64.0)


def jacobian(model: Any, x: Tensor, level: Level, want: Any) -> Tensor:
    """`d want_i / d x_j` `[B, D, D]`, one reverse pass per dimension."""
    at = x.clone().requires_grad_()
    with torch.enable_grad():
        out = model(at, level, want).flatten(1)
        rows = [torch.autograd.grad(out[:, i].sum(), at, retain_graph=True)[0] for i in range(out.shape[1])]
    return torch.stack([row.flatten(1) for row in rows], 1)


@SCORE.states("dscore/dx is symmetric: the field is conservative", applies=_small, given=points, examples=12)
def conservative(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject).to(F64), case.level(subject.process)
    slopes = jacobian(subject.model, x, level, "noise")
    gap = (slopes - slopes.mT).abs().amax((1, 2))
    yield Measure("asymmetry over its rounding bound", float((gap / _slope_limit(subject, x, level)).max()), 1.0)


def _slope_limit(subject: Scored, x: Tensor, level: Level) -> Tensor:
    """How far rounding moves the noise's Jacobian: weights of error `dw` times the spread of the components' values.

    `J = sum_k w_k (J_k + v_k (a_k - a)^T)` with `a_k = C_k^-1 r_k`: the exponents' errors and the values' relative ones
    scale with the largest |a_k| present, which the noise's own bound already has once.
    """
    value, exponent = mixture_error(_law(subject), x, level, 0.0, 1.0)
    steep = 1 / level.sigma
    reach = 1 + subject.model(x, level, "noise").flatten(1).norm(dim=1) + _spread(_law(subject), x, level)
    limit: Tensor = 64 * (value + exponent + EPS) * steep * reach**2
    return limit


def _spread(law: GaussianMixture, x: Tensor, level: Level) -> Tensor:
    """The largest noise that any component alone predicts, `[B]`."""
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    alone = [law._only(k).predict(x, level, zero, one).flatten(1).square().sum(1).sqrt() for k in range(len(law))]
    return torch.stack(alone).amax(0)


@SCORE.states(
    "d data/dx = alpha/sigma^2 Cov[data | x], positive semi-definite (Tweedie, second order)",
    applies=_small,
    given=points,
    examples=12,
)
def second_order(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject).to(F64), case.level(subject.process)
    law, dim = _law(subject), math.prod(subject.shape)
    slopes = jacobian(subject.model, x, level, "data")
    scale = level.alpha / level.sigma**2
    # data = (x - sigma noise)/alpha: the Jacobian of the noise, times sigma/alpha
    limit = _slope_limit(subject, x, level) * level.sigma / level.alpha
    for i in range(len(x)):
        posterior = law.posterior(x[i].flatten(), level.alpha * torch.eye(dim, dtype=F64), level.sigma)
        cov = scale * posterior.cov()
        gap = float((slopes[i] - cov).abs().max() / (limit[i] + 64 * EPS * cov.abs().max()))
        yield Measure("distance over its rounding bound", gap, 4.0)
        least = float(
            torch.linalg.eigvalsh((slopes[i] + slopes[i].T) / 2).min() / (limit[i] + 64 * dim * EPS * cov.abs().max())
        )
        yield Measure("how negative its least eigenvalue is, over its rounding bound", -least, 4.0)


def fokker_planck_residual(
    law: GaussianMixture, process: Process, t: Tensor, model: Any = None, seed: int = 5
) -> Measure:
    """The relative residual of `d log p/dt = -div f - f.s + g^2/2 (div s + |s|^2)` at samples of p_t."""
    level = process.level(t)
    model = law.score(process) if model is None else model
    x = law.sample(4, seed=seed, level=level)
    change: Tensor = torch.func.jvp(lambda u: law.log_prob(x, process.level(u)), (t,), (torch.ones_like(t),))[1]
    s = model(x, level, "score")
    spread = jacobian(model, x, level, "score").diagonal(dim1=1, dim2=2).sum(1)
    f, g2 = process.rates(t)[0] / level.alpha, process.variance_rate(t)
    dim = x[0].numel()
    terms = (-f * dim, -f * (x * s).flatten(1).sum(1), g2 / 2 * spread, g2 / 2 * s.square().flatten(1).sum(1))
    # at low noise the last two are each D g^2 / 2 sigma^2 and cancel to the size of the first
    size = change.abs() + sum(term.abs() for term in terms)
    return Measure("relative residual", float(((change - sum(terms)).abs() / size).max()), 1e-8)


@SCORE.states(
    "d log p/dt = -div f - f.score + g^2/2 (div score + |score|^2): Fokker-Planck",
    applies=_small,
    given=points,
    examples=12,
)
def fokker_planck(subject: Scored, case: At) -> Iterator[Measure]:
    process = subject.process
    t = case._replace(share=min(max(case.share, 0.02), 0.98)).level(process).t
    yield fokker_planck_residual(_law(subject), process, off_knots(process, t), subject.model, case.seed)


def _line(subject: Scored) -> str | None:
    return known(subject) or (None if math.prod(subject.shape) == 1 else "its samples have more than one dimension")


@SCORE.states("int p = 1, int p score = 0, int p x score = -1, on a line", applies=_line, given=points, examples=12)
def integrals(subject: Scored, case: At) -> Iterator[Measure]:
    level, law = case.level(subject.process), _law(subject)
    marginal = law.marginal(level)
    # the trapezoidal rule, with points a sixth of the narrowest component's width apart or closer, errs by e^-700
    widths = [float(marginal._only(k).cov()) ** 0.5 for k in range(len(law))]
    means = marginal.means.flatten()
    low, high = float(means.min()) - 12 * max(widths), float(means.max()) + 12 * max(widths)
    count = int((high - low) / min(widths) * 6)
    if count > 200_000:
        return
    x = torch.linspace(low, high, max(count, 200), dtype=F64)
    states = x.reshape(-1, *subject.shape)
    p, s = law.log_prob(states, level).exp(), subject.model(states, level, "score").flatten()
    reach = float(x.abs().max()) / min(widths)
    yield Measure("int p - 1", abs(float(torch.trapezoid(p, x)) - 1), 1e-11 * reach)
    yield Measure(
        "int p score, times the narrowest width", abs(float(torch.trapezoid(p * s, x))) * min(widths), 1e-11 * reach
    )
    yield Measure("int p x score + 1", abs(float(torch.trapezoid(p * x * s, x)) + 1), 1e-11 * reach**2)


@SCORE.states("far from all data the score points back: (x - alpha m) . score < 0", applies=known, given=points)
def pull(subject: Scored, case: At) -> Iterator[Measure]:
    level, law = case.level(subject.process), _law(subject)
    mean = law.mean()
    width = 1 + law.cov().diagonal().sum().sqrt() + (law.means - mean).flatten(1).norm(dim=1).max()
    z = noises_of(subject, case)
    z = z / z.flatten(1).norm(dim=1).reshape(-1, *(1,) * len(subject.shape))
    away = 1e3 * (level.alpha * width + level.sigma) * z
    x = level.alpha * mean + away
    along = (away * subject.model(x, level, "score")).flatten(1).sum(1)
    # out there one component, however light, pulls by at least its inverse variance, which the largest trace bounds
    total = level.alpha**2 * covariances(law).diagonal(dim1=1, dim2=2).sum(1).max() + level.sigma**2
    pulled = along * total / away.flatten(1).square().sum(1)
    yield Measure("largest (x - alpha m) . score, over -|x - alpha m|^2 / variance", float(pulled.max()), -0.5)


def noises_of(subject: Scored, case: At) -> Tensor:
    """Unit normals for a case, of the shape of its states."""
    return noises.normals(noises.seeds(case.seed, case.n), subject.shape, (8, 0, 0, 0), dtype=F64)


@SCORE.states(
    "-x/sigma^2 where the noise is all: sigma score = -(x - alpha E[data])/sigma + O((alpha sd/sigma)^2)", applies=known
)
def noise_limit(subject: Scored) -> Iterator[Measure]:
    process, law = subject.process, _law(subject)
    level = process.level(process.t_max)
    share = float(
        level.alpha * (law.cov().diagonal().max().sqrt() + (law.means - law.mean()).abs().max()) / level.sigma
    )
    if share > 0.1:
        raise Inapplicable("its process does not end in almost pure noise")
    x = level.alpha * law.mean() + level.sigma * noises_of(subject, At(1.0, 3, 8))
    gap = subject.model(x, level, "noise") - (x - level.alpha * law.mean()) / level.sigma
    # the denoiser moves by its covariance, (alpha sd/sigma)^2 |z| per dimension, in units of the noise
    dim = math.prod(subject.shape)
    yield Measure("distance of the predicted noise", float(gap.abs().max()), 16 * dim * share**2 + 1e-12)
