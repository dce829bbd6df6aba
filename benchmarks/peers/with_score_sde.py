"""The samplers of Song et al. 2021, written from the paper: their code is no package. Times are
those of `natural`: even in t, and for the variance-exploding SDEs, whose sigma is geometric there, in log sigma.

The step of the corrector comes from norms averaged over the batch, as in the paper's algorithms 4 and 5, so that a
sample depends on those beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdegen.bench.others import View

SNR = 0.16
"""The corrector's signal-to-noise ratio (app. G: 0.16 on CIFAR-10)."""

Run = Callable[[View, Tensor, Tensor, "float | None"], Tensor]
Predictor = Callable[[View, Tensor, Tensor, Tensor], Tensor]


class Recipe(NamedTuple):
    """A sampler by name."""

    name: str
    run: Run
    stochastic: bool = True
    adaptive: bool = False
    evals: int = 1


def euler_maruyama(view: View, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One step of the reverse SDE from t to s (eq. 6): `x - (f - g^2 score) (t - s) + g sqrt(t - s) z`."""
    g = view.process.diffusion(x, t)
    drift = view.process.drift(x, t) - g**2 * view.score(x, t)
    return x - drift * (t - s) + g * torch.sqrt(t - s) * torch.randn_like(x)


def reverse_diffusion(view: View, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One step of eq. 46, the forward transition from s to t discretised as `x_t = x_s + f + G z`, backwards."""
    gain, spread = view.process.kernel(view.process.level(s), view.process.level(t))
    return x - (gain - 1) * x + spread**2 * view.score(x, t) + spread * torch.randn_like(x)


def ancestral(view: View, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One step of eq. 4 (variance preserving) and eq. 47 (exploding): the mean by Tweedie's formula.

    The noise has the forward variance for a process that preserves variance, and the posterior's for one that does not.
    """
    now, next = view.process.level(t), view.process.level(s)
    gain, spread = view.process.kernel(next, now)
    mean = (x + spread**2 * view.score(x, t)) / gain
    exploding = bool(gain == 1)
    return mean + (spread * next.sigma / now.sigma if exploding else spread) * torch.randn_like(x)


def corrected(view: View, x: Tensor, s: Tensor, ahead: Tensor) -> Tensor:
    """One Langevin step at s: `x + e score + sqrt(2 e) z`, `e = 2 a (snr |z| / |score|)^2`, norms of the batch's mean.

    `a = 1 - beta` of the step to come, to `ahead`: 1 for the variance-exploding SDE (algorithms 4 and 5).
    """
    score, z = view.score(x, s), torch.randn_like(x)
    sizes = [v.flatten(1).norm(dim=1).mean() for v in (z, score)]
    kept = (view.process.alpha(s) / view.process.alpha(ahead)) ** 2
    step = 2 * kept * (SNR * sizes[0] / sizes[1]) ** 2
    return x + step * score + torch.sqrt(2 * step) * z


def sampler(predict: Predictor, correct: bool = False) -> Run:
    """Algorithm 1: a predictor between the levels, and at each level a corrector."""

    def run(view: View, x: Tensor, times: Tensor, tol: float | None) -> Tensor:
        times = times.to(x.device)
        for t, s, ahead in zip(times, times[1:], [*times[2:], times[-1]]):
            x = predict(view, x, t, s).to(x.dtype)
            x = corrected(view, x, s, ahead).to(x.dtype) if correct else x
        return x

    return run


def probability_flow(view: View, x: Tensor, times: Tensor, tol: float | None) -> Tensor:
    """The flow of eq. 13 over t by scipy's RK45, the batch as one system (app. D.4)."""
    import scipy.integrate

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        state, at = torch.from_numpy(flat.copy()).to(x).reshape(x.shape), torch.tensor(t, dtype=torch.float64)
        g = view.process.diffusion(state, at)
        slope = view.process.drift(state, at) - g**2 * view.score(state, at) / 2
        return slope.double().cpu().numpy().ravel()

    ends = float(times[0]), float(times[-1])
    start = x.double().cpu().numpy().ravel()
    found = scipy.integrate.solve_ivp(field, ends, start, method="RK45", rtol=tol, atol=tol)
    if not found.success:
        raise RuntimeError(found.message)
    return torch.from_numpy(found.y[:, -1]).to(x).reshape(x.shape)


RECIPES = (
    Recipe("euler_maruyama", sampler(euler_maruyama)),
    Recipe("reverse_diffusion", sampler(reverse_diffusion)),
    Recipe("ancestral", sampler(ancestral)),
    Recipe("pc", sampler(reverse_diffusion, correct=True), evals=2),
    Recipe("probability_flow rk45", probability_flow, stochastic=False, adaptive=True),
)
