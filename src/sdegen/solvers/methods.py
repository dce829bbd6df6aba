"""The names people know. Each is data: nodes, frame, order, eta. docs/guide.md has the table of when to use which."""

from __future__ import annotations

import math

from sdegen.errors import InvalidArgumentError, check_known, strict_keywords
from sdegen.grids import angular, karras, natural
from sdegen.processes.sde import check_eta
from sdegen.solvers.adams import Adams
from sdegen.solvers.base import Solver
from sdegen.solvers.compose import PC, Ancestral, Churn
from sdegen.solvers.eta import DDIMEta, ERSDEEta, WindowEta
from sdegen.solvers.frame import Frame
from sdegen.solvers.frames import ANGLE, DATA, NOISE, SIGMA, WIENER, log_snr, seventh_root
from sdegen.solvers.langevin import Langevin
from sdegen.solvers.multistep import ByLength, Multistep, Started
from sdegen.solvers.runge_kutta import RungeKutta
from sdegen.solvers.singlestep import Singlestep
from sdegen.solvers.stochastic import (
    EmbeddedHeun,
    EulerMaruyama,
    Milstein,
    Posterior,
    ReverseDiffusion,
    StochasticHeun,
    StochasticRungeKutta,
)
from sdegen.solvers.tableaus import BOGACKI_SHAMPINE, DOPRI5, DOPRI8, EULER, HEUN, HEUN_EULER, RK4, TSIT5


def _order(name: str, order: int, top: int) -> int:
    if type(order) is not int or not 1 <= order <= top:
        raise InvalidArgumentError(f"{name} has the whole orders 1 to {top}, got {order!r}")
    return order


@strict_keywords
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
    that one takes the forward variance beta, `ddpm("large")`). Karras grid; `ddpm()` is it on `natural`.
    """
    return Multistep(order=1, frame=DATA, eta=1.0, grid=karras)


@strict_keywords
def ddpm(variance: str = "small") -> Multistep | Posterior:
    """DDPM's sampler, on any grid (Ho et al. 2020, eq. 7): the posterior's mean, and noise of its variance, or of more.

    variance: 'small', the posterior's; 'large', the forward kernel's, beta (their sec. 3.2); 'learned', between them by
    what a `ScoreModel(..., learned_variance=True)` says (Nichol & Dhariwal 2021, eq. 15). diffusers'
    DDPMScheduler(variance_type="fixed_small", "fixed_large" or "learned_range", clip_sample=False), which may take only
    integer times.
    """
    check_known("variance", variance, ("small", "large", "learned"))
    return Posterior(variance) if variance != "small" else Multistep(order=1, frame=DATA, eta=1.0, grid=natural)


@strict_keywords
def ddim(eta: float = 0.0) -> Multistep:
    """DDIM with its own eta in [0, 1] (Song, Meng & Ermon 2021, eq. 12 and 16): 0 deterministic, 1 is `ddpm()`.

    diffusers' DDIMScheduler(clip_sample=False), azula's DDIM, k-diffusion's sample_euler (eta=0), DPM-Solver-1; any
    grid, and the last denoising is `sample`'s.
    """
    return Multistep(order=1, frame=DATA, eta=DDIMEta(eta) if eta else 0.0, grid=natural)


@strict_keywords
def pc(snr: float = 0.16, steps: int = 1) -> PC:
    """Predictor-corrector: reverse diffusion, then `steps` Langevin steps (Song et al. 2021, alg. 1).

    score_sde's PC sampler with a step size from the level, so that no sample depends on another, and the corrector
    after the predictor, as in the paper (the authors' code corrects first). The corrector leaves a bias of order snr^2.
    """
    return PC(ReverseDiffusion(), Langevin(snr, steps))


def heun() -> RungeKutta:
    """Heun's method on the probability flow in sigma/alpha, two evaluations a step (Karras et al. 2022, alg. 1).

    EDM's deterministic sampler and k-diffusion's sample_heun, which take one evaluation in the last step, to sigma = 0;
    here the grid stops at t_min.
    """
    return RungeKutta(HEUN, SIGMA)


@strict_keywords
def edm(
    order: int = 2, churn: float = 0.0, low: float = 0.0, high: float = math.inf, inflate: float = 1.0
) -> RungeKutta | Churn:
    """EDM's sampler: Heun (order 2) or Euler (1) in sigma/alpha, with churn if asked for (Karras et al. 2022, alg. 2).

    churn is S_churn, low and high S_tmin and S_tmax, inflate S_noise; diffusers' EulerDiscreteScheduler and
    HeunDiscreteScheduler, k-diffusion's sample_euler and sample_heun. Two evaluations also in the last step, which here
    ends at t_min and not at 0. With inflate > 1 the law does not converge to the data's.
    """
    solver = RungeKutta(HEUN if _order("edm", order, 2) == 2 else EULER, SIGMA)
    return Churn(solver, churn, low, high, inflate) if churn else solver


@strict_keywords
def lms(order: int = 4) -> Multistep:
    """Linear multistep (Adams-Bashforth) in sigma/alpha, exact on uneven steps (Karras et al. 2022 use its family).

    k-diffusion's sample_lms and diffusers' LMSDiscreteScheduler, orders 1 to 5; azula's zABSampler.
    """
    return Multistep(order=_order("lms", order, 5), frame=SIGMA, grid=karras)


@strict_keywords
def deis(order: int = 3) -> Multistep:
    """tAB-DEIS with polynomials in log(sigma/alpha): Adams-Bashforth on noise prediction (Zhang & Chen 2023, eq. 15).

    diffusers' DEISMultistepScheduler without lower_order_final; azula's zEABSampler. Orders 1 to 5.
    """
    return Multistep(order=_order("deis", order, 5), frame=NOISE)


@strict_keywords
def ipndm(order: int = 4) -> Multistep:
    """iPNDM: classical Adams-Bashforth weights on noise prediction, whatever the steps (Zhang & Chen 2023, sec. 3.3).

    Of its order on steps of one length in sigma/alpha, of order 2 where lengths change slowly, of order 1 otherwise:
    `lms(order)` is the same with weights for the steps there are.
    """
    return Multistep(order=_order("ipndm", order, 5), frame=SIGMA, even=True)


@strict_keywords
def pndm(start: str = "rk4") -> Started:
    """PNDM: `ipndm(4)` after a Runge-Kutta start, 'rk4' (three steps) or 'heun' (one) (Liu et al. 2022, alg. 2).

    diffusers' PNDMScheduler with skip_prk_steps=False, whose stages lie in the middle of a step in t and not, as here,
    in sigma/alpha, or True.
    """
    check_known("start", start, ("rk4", "heun"))
    tableau, steps = (RK4, 3) if start == "rk4" else (HEUN, 1)
    return Started(ipndm(4), RungeKutta(tableau, SIGMA), steps)


@strict_keywords
def dpm(order: int = 2, singlestep: bool = True) -> Singlestep | Multistep:
    """DPM-Solver of order 1, 2 or 3 on noise prediction (Lu et al. 2022, alg. 1-2), or its multistep form.

    Singlestep: stages at 1/2, or 1/3 and 2/3, of the step in log-SNR, as many evaluations a step as the order; order 2
    is k-diffusion's sample_dpm_2. Multistep: diffusers' DPMSolverMultistepScheduler(algorithm_type="dpmsolver"), but
    for order 3, where theirs misses a factor 2.
    """
    return _dpm(_order("dpm", order, 3), NOISE, 0.0, singlestep)


@strict_keywords
def dpmpp(order: int = 2, singlestep: bool = False) -> Singlestep | Multistep:
    """DPM-Solver++ of order 1, 2 or 3 on data prediction, multistep or singlestep (Lu et al. 2022b, alg. 1-2).

    Multistep: diffusers' DPMSolverMultistepScheduler(algorithm_type="dpmsolver++"), k-diffusion's sample_dpmpp_2m; in
    order 3 their coefficient misses a factor 2 (it has order 2). Singlestep, order 2: sample_dpmpp_2s_ancestral(eta=0).
    Multistep wants a grid in log-SNR: with few steps `by_time` leaves a last step too long for orders 2 and 3.
    """
    return _dpm(_order("dpmpp", order, 3), DATA, 0.0, singlestep)


@strict_keywords
def dpmpp_sde(order: int = 2, eta: float = 1.0, singlestep: bool = False) -> Singlestep | Multistep:
    """SDE-DPM-Solver++ of order 1, 2 or 3: `dpmpp` with noise (Lu et al. 2022b, sec. 5.3); weak order at most 2.

    Multistep, order 2: "DPM++ 2M SDE", k-diffusion's sample_dpmpp_2m_sde (whose eta is the square of this one) and
    diffusers' "sde-dpmsolver++", the same numbers. Order 3 has exact weights, where sample_dpmpp_3m_sde misses a factor
    2 and diffusers has a wrong sign. Singlestep, order 2: "DPM++ SDE", sample_dpmpp_sde, but for the exact integrals of
    its Brownian path in place of the path's increments.
    """
    return _dpm(_order("dpmpp_sde", order, 3), DATA, eta, singlestep)


def _dpm(order: int, frame: Frame, eta: float, singlestep: bool) -> Singlestep | Multistep:
    if singlestep:
        return _singlestep(order, frame, eta)
    return Multistep(order=order, frame=frame, eta=eta, pair="midpoint" if order == 2 else "exact")


def _singlestep(order: int, frame: Frame, eta: float) -> Singlestep:
    stages: tuple[float, ...] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]
    return Singlestep(stages, {1: (0,), 2: (1,), 3: (0, 2)}[order], frame, eta)


@strict_keywords
def seeds_solver(order: int = 2) -> Singlestep:
    """SEEDS of order 1, 2 or 3: DPM-Solver with noise, on noise prediction (Gonzalez et al. 2023, alg. 1-3).

    All noise of a step is one Brownian path; weak order at most 2, as many evaluations a step as the order.
    """
    return _singlestep(_order("seeds_solver", order, 3), NOISE, 1.0)


@strict_keywords
def er_sde(order: int = 3) -> Multistep:
    """ER-SDE of order 1, 2 or 3: much noise early, next to none at the end (Cui et al. 2023, ER-SDE 5).

    eta as a function of the level (`sd.solvers.eta.ERSDEEta`), its integrals by Gauss-Legendre; weak order at most 2.
    """
    return Multistep(order=_order("er_sde", order, 3), frame=DATA, eta=ERSDEEta())


@strict_keywords
def sa_solver(
    order: int = 3, tau: float = 1.0, low: float = 0.05, high: float = 1.0, correct: bool | int = True
) -> Multistep:
    """SA-Solver: Adams with corrector, and noise `tau` where low <= sigma/alpha <= high (Xue et al. 2023, alg. 1).

    diffusers' SASolverScheduler(corrector_order=correct), whose window is in time steps. `correct` is the number of the
    corrector's nodes, one more than the predictor's for True. Weak order at most 2; with tau = 0, `unipc`.
    """
    eta = WindowEta(tau, low, high) if tau else 0.0
    return Multistep(order=_order("sa_solver", order, 4), frame=DATA, eta=eta, correct=correct, pair="flat")


@strict_keywords
def dpm_ancestral(eta: float = 1.0) -> Ancestral:
    """DPM-Solver-2 to below the next level, and noise back up: k-diffusion's sample_dpm_2_ancestral, weak order 2.

    diffusers' KDPM2AncestralDiscreteScheduler. Two evaluations a step.
    """
    return Ancestral(Singlestep((1 / 2,), (1,), NOISE, grid=karras), eta)


@strict_keywords
def dpmpp_ancestral(eta: float = 1.0) -> Ancestral:
    """DPM-Solver++ 2S to below the next level, and noise back up: k-diffusion's sample_dpmpp_2s_ancestral.

    Weak order 2, two evaluations a step.
    """
    return Ancestral(Singlestep((1 / 2,), (1,), DATA, grid=karras), eta)


@strict_keywords
def milstein(eta: float = 1.0) -> Milstein:
    """Milstein's method in t on any reverse SDE with diagonal noise (Milstein 1975)."""
    return Milstein(eta)


@strict_keywords
def stochastic_heun(eta: float = 1.0) -> StochasticHeun:
    """Heun's method in t on any reverse SDE: weak order 2 where g is free of x (Kloeden & Platen 1992, ch. 15)."""
    return StochasticHeun(eta)


@strict_keywords
def stochastic_runge_kutta(eta: float = 1.0) -> StochasticRungeKutta:
    """The explicit method of weak order 2 on any reverse SDE, matrix noise too (Kloeden & Platen 1992, eq. 15.1.3)."""
    return StochasticRungeKutta(eta)


@strict_keywords
def unipc(order: int = 3, kind: str = "bh2") -> Multistep:
    """UniPC of order 1 to 5 on data prediction: corrector one order higher (Zhao et al. 2023, alg. 1-2).

    kind: the authors' B(h) of orders 1 and 2, 'bh1' or 'bh2'. diffusers' UniPCMultistepScheduler(solver_type=kind)
    without lower_order_final, the same numbers. Converges at order + 1. Wants a grid in log-SNR: with few steps
    `by_time` leaves a last step too long for its order.
    """
    check_known("kind", kind, ("bh1", "bh2"))
    pair = "flat" if kind == "bh1" else "midpoint"
    return Multistep(order=_order("unipc", order, 5), frame=DATA, correct=True, pair=pair)


_FRAME = ANGLE(variable=seventh_root)
_DEFAULT = ByLength(
    ((1, Multistep(3, _FRAME)), (11, Multistep(4, _FRAME)), (40, Multistep(4, _FRAME, correct=True))), grid=angular
)


def default() -> Solver:
    """What `sample` uses: Adams methods in the angle frame, polynomials in `(sigma/alpha)^(1/7)`, on `grids.angular`.

    Of order 3 for up to 10 steps, 4 from 11 and, with a corrector, 5 from 40; one evaluation a step. Chosen from some
    thousand combinations of frame, order and grid by the terminal error on exact mixtures and a trained network;
    docs/accuracy.md has the study, and the comparison with other libraries' samplers. `calibrate` fits one to a model.
    """
    return _DEFAULT


@strict_keywords
def adams(order: int | None = None, sigma_data: float = 1.0, eta: float = 0.0) -> Adams:
    """Adaptive steps and orders, one evaluation per attempt: what `sample(tol=...)` takes, in ANGLE and log-SNR.

    order: the highest, 6 if None. sigma_data: the scale of the data (EDM's networks: 0.5). eta > 0: in WIENER, with the
    noise of a Brownian path and, if None, order 2 (docs/adaptive.md compares them). No peer has it;
    torchdiffeq's implicit_adams is of the kind, in t and for the whole batch. Raises InvalidArgumentError for an eta
    above 10, whose steps would be as many as `eta^2` asks for.
    """
    check_eta(eta)
    if eta > 10:
        raise InvalidArgumentError(
            f"adaptive steps follow all of the noise, and eta={eta:g} asks for about {100 * eta**2:.0e} of them: take "
            "an eta up to 10, or a fixed grid"
        )
    if eta:
        return Adams(2 if order is None else order, WIENER(sigma_data=sigma_data), eta)
    return Adams(6 if order is None else order, ANGLE(sigma_data=sigma_data, variable=log_snr))


@strict_keywords
def dopri5(frame: Frame = ANGLE) -> RungeKutta:
    """Dormand and Prince's pair of order 5(4): torchdiffeq's and torchode's dopri5, scipy's RK45; six evaluations."""
    return RungeKutta(DOPRI5, frame)


@strict_keywords
def tsit5(frame: Frame = ANGLE) -> RungeKutta:
    """Tsitouras's pair of order 5(4): torchode's and diffrax's Tsit5; six evaluations."""
    return RungeKutta(TSIT5, frame)


@strict_keywords
def dopri8(frame: Frame = ANGLE) -> RungeKutta:
    """Dormand and Prince's method of order 8, two errors: torchdiffeq's dopri8, scipy's DOP853; twelve evaluations."""
    return RungeKutta(DOPRI8, frame)


@strict_keywords
def bogacki_shampine(frame: Frame = ANGLE) -> RungeKutta:
    """Bogacki and Shampine's pair of order 3(2): torchdiffeq's bosh3, scipy's RK23; three evaluations."""
    return RungeKutta(BOGACKI_SHAMPINE, frame)


@strict_keywords
def heun_euler(frame: Frame = ANGLE) -> RungeKutta:
    """Heun's method with Euler's inside, 2(1): torchdiffeq's adaptive_heun; two evaluations."""
    return RungeKutta(HEUN_EULER, frame)


@strict_keywords
def adaptive_heun(eta: float = 1.0) -> EmbeddedHeun:
    """Adaptive steps in t on any reverse SDE: Heun's step, its difference to Euler-Maruyama's the error.

    Jolicoeur-Martineau et al. 2021, alg. 1, with its tolerances in `sd.PI`; rejected steps stay on the Brownian path.
    """
    return EmbeddedHeun(eta)
