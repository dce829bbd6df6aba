"""Processes, score models, noise sources and SDEs with one planted fault each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sdegen as sd
from sdegen.scores.mixtures import MixtureScore
from sdegen.tensors import like
from sdegen.testing import PROBLEMS

F64 = torch.float64


@dataclass(frozen=True)
class Schedule(sd.VP):
    """VP, with what is derived from alpha and sigma wrong in one way."""

    fault: str = ""

    def has(self, fault: str) -> bool:
        return self.fault == fault

    def alpha(self, t: Tensor) -> Tensor:
        if self.has("beta off by a half"):
            return (2 * self.log_alpha(t)).exp()
        if self.has("float32 levels"):
            return super().alpha(t.float())
        if self.has("lam turns back"):
            return super().alpha(t) * (1 + 0.4 * torch.sin(60 * t) * t)
        return super().alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        if self.has("variance for sigma"):
            return super().sigma(t) ** 2
        if self.has("sigma that starts below 0"):
            return super().sigma(t) - 0.02
        if self.has("reads sigma"):
            return super().sigma(t) + 0 * float(t.sum())
        return super().sigma(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, s = super().rates(t)
        factor = {"rates of twice the beta": 2.0, "sign of the rates": -1.0}.get(self.fault, 1.0)
        return factor * a, (1.01 if self.has("sigma' off by 1 %") else factor) * s

    def time(self, lam: Tensor) -> Tensor:
        t = super().time(lam)
        if self.has("time off by one step of a thousand"):
            return t + 1e-3
        return super().time(2 * lam) if self.has("log-SNR for half of it") else t

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        if self.has("alpha' for alpha'/alpha"):
            return like(self.rates(sd.tensors.as_time(t))[0], x) * x
        return super().drift(x, t)

    def variance_rate(self, t: Tensor) -> Tensor:
        return super().variance_rate(t) / (2 if self.has("g squared halved") else 1)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        g = super().diffusion(x, t)
        if self.has("g squared for g"):
            return g * g
        return g * (1 + 0.01 * x.flatten(1).tanh().mean(1)) if self.has("diffusion that depends on x") else g

    def kernel(self, now: sd.Level, next: sd.Level) -> tuple[Tensor, Tensor]:
        a, s = super().kernel(now, next)
        if self.has("variance for the kernel's deviation"):
            return a, s * s
        if self.has("marginal for the kernel"):
            return a, next.sigma
        if self.has("kernel that cancels"):
            return a, torch.sqrt((next.sigma**2 - (a * now.sigma) ** 2).float().double().clamp(min=0))
        return (now.alpha / next.alpha, s) if self.has("kernel backwards") else (a, s)

    def perturb(self, data: Tensor, level: sd.Level, noise: Tensor) -> Tensor:
        if self.has("data and noise swapped"):
            return super().perturb(noise, level, data)
        return super().perturb(data, level, noise)

    def prior(self, seeds: Tensor, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.has("prior of the global generator"):
            return torch.randn(len(seeds), *shape, dtype=dtype)
        if self.has("prior too wide by 5 %"):
            return 1.05 * super().prior(seeds, shape, dtype)
        if self.has("prior by position"):
            seeds = sd.noise.seeds(0, len(seeds))
        return super().prior(seeds, shape, dtype)


class Score(MixtureScore):
    """The exact score of the three modes, wrong in one way."""

    def __init__(self, fault: str = "", data: sd.GaussianMixture | None = None) -> None:
        super().__init__(sd.VP(), data or PROBLEMS["three"].data)
        self.fault = fault

    def has(self, fault: str) -> bool:
        return self.fault == fault

    def __call__(self, x: Tensor, level: sd.Level, want: Any = "score") -> Tensor:
        law = self.mixture
        if self.has("time off by a thousandth"):
            level = self.process.level((level.t + 1e-3).clamp(max=1.0))
        if self.has("float32 inside"):
            p, q = sd.model.plane(self.process, level, want)
            return law.predict(x.float(), level, p, q).to(x.dtype)
        if self.has("weights forgotten"):
            law = sd.GaussianMixture(law.means, stds=[0.3, 0.4, 0.35])
        if self.has("a width forgotten"):
            law = sd.GaussianMixture(law.means, stds=0.35, weights=law.weights)
        if self.has("level of the first row for all"):
            level = sd.Level(*(v[0] if v.ndim else v for v in level))
        if self.has("edits x"):
            x += 0.0
            x[0, 0] += 1e-9
        p, q = sd.model.plane(self.process, level, want)
        out = law.predict(x, level, p, q).to(x.dtype)
        if self.has("sign of the score") and want == "score":
            return -out
        if self.has("score without 1/sigma") and want == "score":
            return out * like(level.sigma, x)
        if self.has("v with the wrong sign") and want == "v":
            return -out
        if self.has("velocity of reversed time") and want == "velocity":
            return -out
        if self.has("scaled by 1.001"):
            return out * 1.001
        if self.has("batch mean subtracted"):
            return out - 1e-3 * out.mean(0)
        if self.has("a swirl added"):
            return out + 1e-6 * torch.stack([-x[:, 1], x[:, 0]], 1)
        if self.has("overflows far away"):
            return out / (x.abs() < 5).all(1, keepdim=True)
        if self.has("zero far away"):
            return out * (x.abs() < 100).all(1, keepdim=True)
        if self.has("noise added"):
            return out + 1e-6 * torch.rand(x.shape, dtype=x.dtype)
        if self.has("float32 outside"):
            return out.float()
        if self.has("flattened"):
            return out.flatten()
        if self.has("detached"):
            return out.detach()
        return out + 0 * float(out.sum()) if self.has("reads a value") else out


class Shifted(sd.GaussianMixture):
    """A density that is right but for its normalisation: gradients cannot see it."""

    def log_prob(self, x: Tensor, level: sd.Level | None = None) -> Tensor:
        return super().log_prob(x, level) + 1e-3


class Net(torch.nn.Module):
    """A network with dropout and batch norm."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.part = torch.nn.BatchNorm1d(2) if norm else torch.nn.Dropout(0.1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.part(x)


class Noise:
    """White noise with one fault."""

    def __init__(self, seeds: Tensor, fault: str = "") -> None:
        self.seeds, self.fault, self.calls = seeds, fault, 0

    def __call__(self, x: Tensor, now: sd.Level, next: sd.Level, tag: int = 0) -> Tensor:
        fault, seeds = self.fault, self.seeds
        self.calls += 1
        if fault == "the tag forgotten":
            tag = 0
        if fault == "the end of the step forgotten":
            next = now
        if fault == "the start of the step forgotten":
            now = next
        if fault == "times in float32":
            now, next = (level._replace(t=level.t.float().double()) for level in (now, next))
        if fault == "seeds by position":
            seeds = torch.arange(len(seeds))
        if fault == "half of the seed":
            seeds = seeds >> 1
        if fault == "neighbouring seeds share a stream":
            seeds = torch.div(seeds, 2, rounding_mode="floor")
        if fault == "a call counter in the key":
            tag += self.calls
        if fault == "reads the times":
            tag += int(float(now.t) > 1e9)
        z = sd.White(seeds)(x, now, next, tag)
        if fault == "too wide by 3 %":
            return 1.03 * z
        if fault == "a mean of 0.03":
            return z + 0.03
        if fault == "uniform":
            return ((torch.special.ndtr(z.double()) - 0.5) * 12**0.5).to(z.dtype)
        if fault == "tails cut at 3":
            return z.clamp(-3, 3)
        if fault == "every second element repeated":
            flat = z.flatten(1).clone()
            flat[:, 1::2] = flat[:, : flat.shape[1] - flat.shape[1] % 2 : 2]
            return flat.reshape(x.shape)
        if fault == "antithetic elements":
            flat = z.flatten(1).clone()
            flat[:, 1::2] = -flat[:, : flat.shape[1] - flat.shape[1] % 2 : 2]
            return flat.reshape(x.shape)
        if fault == "torch's generator":
            return torch.randn_like(x)
        if fault == "moves torch's generator":
            torch.rand(1)
        if fault == "depends on x":
            return z + 0 * x
        if fault == "float32 always":
            return z.float()
        return z


def stationary(fault: str = "") -> sd.SDE:
    """`dx = (g g' - g^2 x / 2) ... ` built so that N(0, 1) is stationary though g depends on x."""

    def g(x: Tensor, t: Tensor) -> Tensor:
        if fault == "g depends on the batch":
            x = x + 1e-3 * x.mean(0)
        return 1 + 0.5 * torch.sin(x)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        push = 0.25 if fault == "divergence halved in the drift" else 0.5
        pull = g(x, t) if fault == "g for g squared in the drift" else g(x, t) ** 2
        f = g(x, t) * push * torch.cos(x) - pull / 2 * x
        return f - 1e-3 * f.mean(0) if fault == "drift centred over the batch" else f

    base = sd.SDE.from_functions(drift, g)
    if fault in ("divergence forgotten", "divergence halved", "curl of the reverse drift forgotten"):
        return _Bent(base, fault)
    return base


@dataclass(frozen=True)
class _Bent(sd.SDE):
    """An SDE whose own divergence is wrong."""

    base: sd.SDE
    fault: str

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self.base.drift(x, t)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        return self.base.diffusion(x, t)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor | None:
        own = self.base.divergence(x, t)
        return None if self.fault == "divergence forgotten" or own is None else own / 2


def normal_density(x: Tensor, t: Tensor) -> Tensor:
    """`log N(x; 0, 1)`, whatever t is."""
    return -x.square().flatten(1).sum(1) / 2 - x[0].numel() / 2 * math.log(2 * math.pi) + 0 * t
