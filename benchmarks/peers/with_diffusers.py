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
    ours = sd.Multistep(order, frame, eta=1.0 if noisy else 0.0)
    return Sampler(
        f"DPMSolverMultistep({algorithm}, order={order}{suffix})", run, order, ours, noisy, memory=order > 1, note=note
    )


def _single(order: int, algorithm: str = "dpmsolver++", kind: str = "midpoint") -> Sampler:
    run = sigmas(
        "DPMSolverSinglestepScheduler",
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        final_sigmas_type="sigma_min",
    )
    noisy = algorithm.startswith("sde")
    ours = sd.Multistep(order, sd.DATA, eta=1.0 if noisy else 0.0)
    name = f"DPMSolverSinglestep({algorithm}, order={order}, {kind})"
    return Sampler(name, run, order, ours, noisy, memory=True, note=_TWO if noisy else _GROUP if order == 3 else "")


def _unipc(order: int, kind: str) -> Sampler:
    run = sigmas("UniPCMultistepScheduler", solver_order=order, solver_type=kind, lower_order_final=False)
    name = f"UniPCMultistep(order={order}, {kind})"
    return Sampler(name, run, order + 1, sd.unipc(order), memory=True)


def _sa(order: int, tau: int) -> Sampler:
    run = sigmas(
        "SASolverScheduler",
        predictor_order=order,
        corrector_order=order,
        tau_func=lambda t: tau,
        lower_order_final=False,
    )
    ours = sd.Multistep(order, sd.DATA, eta=1.0) if tau else sd.unipc(order)
    note = _ONE if tau and order > 2 else ""
    name = f"SASolver(orders {order} and {order}, tau={tau})"
    return Sampler(name, run, order, ours, stochastic=bool(tau), memory=True, note=note)


def deterministic() -> list[Sampler]:
    """Schedulers that draw no noise, at the options that make them so."""
    return [
        Sampler("DDIM(eta=0)", trained("DDIMScheduler", clip_sample=False), 1, sd.ddim()),
        Sampler("EulerDiscrete", sigmas("EulerDiscreteScheduler", exploding=True), 1, sd.ddim()),
        Sampler("EDMEuler", edm("EDMEulerScheduler"), 1, sd.ddim()),
        Sampler("HeunDiscrete", sigmas("HeunDiscreteScheduler", exploding=True, stages=2), 2, sd.heun(), evals=2),
        Sampler(
            "KDPM2Discrete",
            sigmas("KDPM2DiscreteScheduler", exploding=True, stages=2),
            2,
            sd.RungeKutta(sd.MIDPOINT, sd.SIGMA),
            evals=2,
        ),
        Sampler(
            "LMSDiscrete(order=4)",
            sigmas("LMSDiscreteScheduler", exploding=True),
            4,
            sd.Multistep(4, sd.SIGMA),
            memory=True,
        ),
        Sampler(
            "PNDM(skip_prk_steps=True)",
            trained("PNDMScheduler", extra=1, skip_prk_steps=True),
            2,
            sd.Multistep(2, sd.SIGMA),
            memory=True,
            even_only=True,
        ),
        Sampler(
            "IPNDM",
            ipndm,
            4,
            sd.Multistep(4, sd.SIGMA),
            memory=True,
            even_only=True,
            note="fourth-order weights of equal steps are applied to the noise alone, and the step's weight is DDIM's",
        ),
        *(
            Sampler(
                f"DEISMultistep(order={p})",
                sigmas("DEISMultistepScheduler", solver_order=p, lower_order_final=False),
                p,
                sd.Multistep(p, sd.NOISE),
                memory=p > 1,
                note=_ROUND if p == 3 else "",
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
            )
            for p in (2, 3)
        ),
        _single(2),
        _single(3),
        _single(3, kind="heun"),
        Sampler("FlowMatchEulerDiscrete", flow, 1, sd.Multistep(1, sd.FLOW)),
        *(_unipc(p, kind) for p in (1, 2, 3) for kind in ("bh1", "bh2")),
        _sa(2, 0),
        _sa(3, 0),
    ]


def stochastic() -> list[Sampler]:
    """Schedulers that draw noise."""
    sde2 = sd.Multistep(order=2, frame=sd.DATA, eta=1.0)
    return [
        Sampler("DDPM(fixed_small)", trained("DDPMScheduler", clip_sample=False), 1, sd.ddpm(), stochastic=True),
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
        ),
        Sampler(
            "DDIM(eta=0.5)",
            trained("DDIMScheduler", keywords={"eta": 0.5}, clip_sample=False),
            1,
            sd.ddim(0.5),
            stochastic=True,
        ),
        Sampler(
            "EulerAncestralDiscrete",
            sigmas("EulerAncestralDiscreteScheduler", exploding=True),
            1,
            sd.ancestral(),
            stochastic=True,
        ),
        Sampler(
            "KDPM2AncestralDiscrete",
            sigmas("KDPM2AncestralDiscreteScheduler", exploding=True, stages=2),
            2,
            sde2,
            stochastic=True,
            evals=2,
        ),
        Sampler(
            "DPMSolverSDE",
            sigmas("DPMSolverSDEScheduler", exploding=True, stages=2, noise_sampler_seed=0),
            2,
            sde2,
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
