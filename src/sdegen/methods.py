"""The names people know. Each is data: nodes, frame, order, eta. docs/guide.md has the table of when to use which."""

from __future__ import annotations

from sdegen.errors import InvalidArgumentError
from sdegen.frames import DATA, NOISE, SIGMA
from sdegen.grids import karras, natural
from sdegen.solvers.base import Solver
from sdegen.solvers.compose import PC, BatchCoupledLangevin, Langevin
from sdegen.solvers.multistep import DDIMEta, Multistep
from sdegen.solvers.runge_kutta import HEUN, RungeKutta
from sdegen.solvers.singlestep import EulerMaruyama, ReverseDiffusion


def _order(name: str, order: int, top: int) -> int:
    if type(order) is not int or not 1 <= order <= top:
        raise InvalidArgumentError(f"{name} has orders 1 to {top}, got {order!r}; sd.Multistep goes to 5 in any frame")
    return order


def euler_maruyama(eta: float = 1.0) -> EulerMaruyama:
    """Euler-Maruyama in t on the reverse SDE (Song et al. 2021, sec. 4.1), on any `ReverseSDE`.

    score_sde's EulerMaruyamaPredictor; there the time grid and last denoising are the sampler's, here `sample`'s.
    """
    return EulerMaruyama(eta)


def reverse_diffusion() -> ReverseDiffusion:
    """The reverse-diffusion predictor (Song et al. 2021, eq. 46): the forward transition, discretised backwards.

    score_sde's ReverseDiffusionPredictor, on any process and grid instead of the thousand training steps.
    """
    return ReverseDiffusion()


def ancestral() -> Multistep:
    """Ancestral sampling: the exact posterior of the next level given x and the predicted data (Ho et al. 2020, eq. 7).

    k-diffusion's sample_euler_ancestral(eta=1) and azula's DDPM; score_sde's AncestralSamplingPredictor for VE (for VP
    that one takes the forward variance beta instead of the posterior's). Karras grid; `ddpm()` is it on `natural`.
    """
    return Multistep(order=1, frame=DATA, eta=1.0, grid=karras)


def ddpm() -> Multistep:
    """DDPM's sampler with the posterior variance ("fixed small"; Ho et al. 2020, eq. 7), on any grid.

    diffusers' DDPMScheduler(variance_type="fixed_small", clip_sample=False), which may take only integer times.
    """
    return Multistep(order=1, frame=DATA, eta=1.0, grid=natural)


def ddim(eta: float = 0.0) -> Multistep:
    """DDIM with its own eta in [0, 1] (Song, Meng & Ermon 2021, eq. 12 and 16): 0 deterministic, 1 is `ddpm()`.

    diffusers' DDIMScheduler(clip_sample=False), azula's DDIM, k-diffusion's sample_euler (eta=0), DPM-Solver-1; any
    grid, and the last denoising is `sample`'s.
    """
    return Multistep(order=1, frame=DATA, eta=DDIMEta(eta) if eta else 0.0, grid=natural)


def pc(snr: float = 0.16, steps: int = 1) -> PC:
    """Predictor-corrector: reverse diffusion, then `steps` Langevin steps (Song et al. 2021, alg. 1).

    score_sde's PC sampler with a step size from the level, so that no sample depends on another, and the corrector
    after the predictor, as in the paper (the authors' code corrects first). The corrector leaves a bias of order snr^2.
    """
    return PC(ReverseDiffusion(), Langevin(snr, steps))


def pc_batch_coupled(snr: float = 0.16, steps: int = 1) -> PC:
    """`pc` with score_sde's own step size, from norms averaged over the batch: samples depend on their batch-mates.

    Song et al.'s settings: snr=0.16 for CIFAR-10 (VE), 0.075 for 256x256 and larger (Song et al. 2021, app. G).
    """
    return PC(ReverseDiffusion(), BatchCoupledLangevin(snr, steps))


def heun() -> RungeKutta:
    """Heun's method on the probability flow in sigma/alpha, two evaluations a step (Karras et al. 2022, alg. 1).

    EDM's deterministic sampler and k-diffusion's sample_heun, which take one evaluation in the last step, to sigma = 0;
    here the grid stops at t_min.
    """
    return RungeKutta(HEUN, SIGMA)


def dpmpp(order: int = 2) -> Multistep:
    """DPM-Solver++ multistep of order 1, 2 or 3 (Lu et al. 2022b, alg. 2), with exact quadrature weights.

    diffusers' DPMSolverMultistepScheduler(algorithm_type="dpmsolver++") and k-diffusion's sample_dpmpp_2m. Those round
    the weights to the leading order of h, and their third-order coefficient misses a factor 2 (it has order 2). Wants a
    grid in log-SNR: with few steps `by_time` leaves a last step too long for orders 2 and 3.
    """
    return Multistep(order=_order("dpmpp", order, 3), frame=DATA)


def unipc(order: int = 3) -> Multistep:
    """UniPC of order 1 to 4 on data prediction: corrector one order higher (Zhao et al. 2023, alg. 1-2).

    diffusers' UniPCMultistepScheduler(solver_type="bh2") without lower_order_final. Its weights are these exact ones,
    but for the shortcut it takes at order 2, which differs by the choice of B(h). Converges at order + 1. Wants a grid
    in log-SNR: with few steps `by_time` leaves a last step too long for its order.
    """
    return Multistep(order=_order("unipc", order, 4), frame=DATA, correct=True)


def default() -> Solver:
    """What `sample` uses: third-order Adams-Bashforth on noise prediction, polynomials in log-SNR, Karras grid.

    diffusers' DEISMultistepScheduler(solver_order=3) and DPM-Solver-3 as a multistep, with exact weights and without
    lower_order_final. Of order 3, one evaluation a step; chosen for staying well behaved at few steps on any process.
    """
    return Multistep(order=3, frame=NOISE, correct=False, grid=karras)
