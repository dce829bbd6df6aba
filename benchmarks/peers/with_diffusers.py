"""diffusers' schedulers by name and options; `drive_diffusers` drives them."""

from __future__ import annotations

import importlib.metadata

import sdegen as sd

from .drive_diffusers import edm, flow, ipndm, sigmas, trained
from .measure import Sampler

PEER = "diffusers"


def version() -> str:
    """The installed version. Raises PackageNotFoundError where there is none."""
    return importlib.metadata.version("diffusers")


_THIRD = "its third-order term multiplies the divided difference, which is half the second derivative it stands for"
_SIGN = "its third-order coefficient has -0.5 where +0.5 belongs, and tends to -1 instead of 0"
_ONE = "one normal a step allows weak order 2"
_TWO = "a step draws over the same levels more than once, independently, and needs one Brownian path for all draws"
_ROUND = "its closed-form weights lose their digits on the first steps of that grid, 1e-8 long"
_GROUP = "its stages want equal steps inside each group of three"


def _dpm(algorithm: str, order: int, kind: str = "midpoint", noisy: bool = False) -> Sampler:
    """DPM-Solver multistep; its options for the last steps are off."""
    run = sigmas(
        "DPMSolverMultistepScheduler",
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    frame = sd.NOISE if algorithm == "dpmsolver" else sd.DATA
    suffix = f", {kind}" if order == 2 else ""
    note = (_SIGN if noisy else _THIRD) if order == 3 else ""
    pair = "midpoint" if order == 2 and kind == "midpoint" else "exact"
    ours = sd.Multistep(order, frame, eta=1.0 if noisy else 0.0, pair=pair)
    name = f"DPMSolverMultistep({algorithm}, order={order}{suffix})"
    same = None if order == 3 else 1e-12
    return Sampler(name, run, order, ours, noisy, memory=order > 1, note=note, same=same)


def _single(order: int, algorithm: str = "dpmsolver++", kind: str = "midpoint") -> Sampler:
    run = sigmas(
        "DPMSolverSinglestepScheduler",
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        final_sigmas_type="sigma_min",
    )
    noisy = algorithm.startswith("sde")
    ours = sd.dpmpp_sde(order, singlestep=True) if noisy else sd.dpmpp(order, singlestep=True)
    name = f"DPMSolverSinglestep({algorithm}, order={order}, {kind})"
    note = _TWO if noisy else _GROUP if order == 3 else ""
    return Sampler(name, run, order, ours, noisy, memory=True, note=note)


def _unipc(order: int, kind: str) -> Sampler:
    run = sigmas("UniPCMultistepScheduler", solver_order=order, solver_type=kind, lower_order_final=False)
    name = f"UniPCMultistep(order={order}, {kind})"
    return Sampler(name, run, order + 1, sd.unipc(order, kind), memory=True, same=1e-12)


def _sa(order: int, tau: int) -> Sampler:
    run = sigmas(
        "SASolverScheduler",
        predictor_order=order,
        corrector_order=order,
        tau_func=lambda t: tau,
        lower_order_final=False,
    )
    ours = sd.Multistep(order, sd.DATA, eta=float(tau), correct=order, pair="flat")
    note = _ONE if tau and order > 2 else ""
    name = f"SASolver(orders {order} and {order}, tau={tau})"
    # its closed-form weights lose digits on the short first steps of the uneven grid
    return Sampler(name, run, order, ours, stochastic=bool(tau), memory=True, note=note, same=1e-9)


def deterministic() -> list[Sampler]:
    """Schedulers that draw no noise, at the options that make them so."""
    return [
        Sampler("DDIM(eta=0)", trained("DDIMScheduler", clip_sample=False), 1, sd.ddim(), same=1e-13),
        Sampler("EulerDiscrete", sigmas("EulerDiscreteScheduler", exploding=True), 1, sd.ddim(), same=1e-13),
        Sampler("EDMEuler", edm("EDMEulerScheduler"), 1, sd.ddim(), same=1e-13),
        Sampler(
            "HeunDiscrete", sigmas("HeunDiscreteScheduler", exploding=True, stages=2), 2, sd.heun(), evals=2, same=1e-13
        ),
        Sampler(
            "KDPM2Discrete",
            sigmas("KDPM2DiscreteScheduler", exploding=True, stages=2),
            2,
            sd.dpm(2),
            evals=2,
            same=1e-13,
        ),
        Sampler(
            "LMSDiscrete(order=4)",
            sigmas("LMSDiscreteScheduler", exploding=True),
            4,
            sd.lms(4),
            memory=True,
            same=1e-12,
        ),
        Sampler(
            "PNDM(skip_prk_steps=True)",
            trained("PNDMScheduler", extra=1, skip_prk_steps=True),
            2,
            sd.pndm("heun"),
            memory=True,
            even_only=True,
            same=1e-13,
        ),
        Sampler(
            "IPNDM",
            ipndm,
            4,
            sd.ipndm(4),
            memory=True,
            even_only=True,
            same=1e-13,
            note="fourth-order weights of equal steps are applied to the noise alone, and the step's weight is DDIM's",
        ),
        *(
            Sampler(
                f"DEISMultistep(order={p})",
                sigmas("DEISMultistepScheduler", solver_order=p, lower_order_final=False),
                p,
                sd.deis(p),
                memory=p > 1,
                note=_ROUND if p == 3 else "",
                same=(1e-13, 1e-8, 2e-2)[p - 1],
            )
            for p in (1, 2, 3)
        ),
        _dpm("dpmsolver++", 1),
        _dpm("dpmsolver++", 2),
        _dpm("dpmsolver++", 2, "heun"),
        _dpm("dpmsolver++", 3),
        _dpm("dpmsolver", 2),
        _dpm("dpmsolver", 3),
        *(
            Sampler(
                f"EDMDPMSolverMultistep(order={p})",
                edm("EDMDPMSolverMultistepScheduler", solver_order=p, lower_order_final=False),
                p,
                sd.dpmpp(p),
                memory=True,
                note=_THIRD if p == 3 else "",
                same=1e-12 if p == 2 else None,
            )
            for p in (2, 3)
        ),
        _single(2),
        _single(3),
        _single(3, kind="heun"),
        Sampler("FlowMatchEulerDiscrete", flow, 1, sd.Multistep(1, sd.FLOW), same=1e-13),
        *(_unipc(p, kind) for p in (1, 2, 3) for kind in ("bh1", "bh2")),
        _sa(2, 0),
        _sa(3, 0),
    ]


def stochastic() -> list[Sampler]:
    """Schedulers that draw noise."""
    return [
        Sampler("DDPM(fixed_small)", trained("DDPMScheduler", clip_sample=False), 1, sd.ddpm(), True, same=1e-12),
        Sampler(
            "DDPM(fixed_large)",
            trained("DDPMScheduler", clip_sample=False, variance_type="fixed_large"),
            1,
            sd.ddpm(),
            stochastic=True,
        ),
        Sampler(
            "DDIM(eta=1)",
            trained("DDIMScheduler", keywords={"eta": 1.0}, clip_sample=False),
            1,
            sd.ddim(1.0),
            stochastic=True,
            same=1e-12,
        ),
        Sampler(
            "DDIM(eta=0.5)",
            trained("DDIMScheduler", keywords={"eta": 0.5}, clip_sample=False),
            1,
            sd.ddim(0.5),
            stochastic=True,
            same=1e-12,
        ),
        Sampler(
            "EulerAncestralDiscrete",
            sigmas("EulerAncestralDiscreteScheduler", exploding=True),
            1,
            sd.ancestral(),
            stochastic=True,
            same=1e-12,
        ),
        Sampler(
            "KDPM2AncestralDiscrete",
            sigmas("KDPM2AncestralDiscreteScheduler", exploding=True, stages=2),
            2,
            sd.dpm_ancestral(),
            stochastic=True,
            evals=2,
            same=1e-12,
        ),
        Sampler(
            "DPMSolverSDE",
            sigmas("DPMSolverSDEScheduler", exploding=True, stages=2, noise_sampler_seed=0),
            2,
            sd.dpmpp_sde(2, singlestep=True),
            stochastic=True,
            evals=2,
            brownian=True,
        ),
        _dpm("sde-dpmsolver++", 1, noisy=True),
        _dpm("sde-dpmsolver++", 2, noisy=True),
        _dpm("sde-dpmsolver++", 2, "heun", noisy=True),
        _dpm("sde-dpmsolver++", 3, noisy=True),
        _single(2, "sde-dpmsolver++"),
        _single(3, "sde-dpmsolver++"),
        _sa(2, 1),
        _sa(3, 1),
    ]


def samplers() -> list[Sampler]:
    """All of them."""
    return [*deterministic(), *stochastic()]
