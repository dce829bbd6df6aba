"""Solvers written out from their formulas, right with `fault=""` and wrong in one planted way otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdegen as sd
from sdegen.tensors import widen

Fault = Callable[[str], bool]


def column(weight: Tensor, x: Tensor) -> Tensor:
    """A weight `[]` or `[B]` that multiplies x `[B, *S]`, in x's dtype."""
    return weight.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) if weight.ndim else weight.to(x.dtype)


@dataclass(frozen=True)
class Planted(sd.OneStep):
    """A solver with the name of its fault."""

    fault: str = ""

    def has(self, fault: str) -> bool:
        return self.fault == fault


@dataclass(frozen=True)
class TwoM(Planted):
    """DPM-Solver++(2M): `x' = sigma'/sigma x - alpha' (e^-h - 1) (d + (d - d_last) / (2 r))`, r = h_last/h."""

    store: dict = field(default_factory=dict, repr=False, hash=False, compare=False)

    @property
    def memory(self) -> int:
        return 0 if self.has("claims no memory") else 1

    @property
    def evals(self) -> int:
        return 2 if self.has("counts two evaluations") else 1

    @property
    def grid(self) -> Any:
        if self.has("grid: a step too many"):
            return lambda process, n: sd.grids.by_snr(process, n + 1)
        if self.has("grid: stops a step short"):
            return lambda process, n: sd.grids.by_snr(process, n + 1)[:-1]
        if self.has("grid: float32"):
            return lambda process, n: sd.grids.by_snr(process, n).float().double()
        return sd.grids.by_snr

    def init(self, model: Any, x: Tensor, now: sd.Level) -> Any:
        if self.has("history kept on the solver"):
            return ()
        if self.has("history on the solver, reset by init"):
            self.store["carry"] = None
            return ()
        return torch.full_like(now.t, -1e20), torch.zeros_like(widen(x))

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        if self.has("history on the solver, reset by init"):
            carry = self.store["carry"] or (torch.full_like(now.t, -1e20), torch.zeros_like(widen(x)))
        if self.has("history kept on the solver"):
            carry = self.store.get("carry") or (torch.full_like(now.t, -1e20), torch.zeros_like(widen(x)))
            carry = carry if carry[1].shape == x.shape else (torch.full_like(now.t, -1e20), torch.zeros_like(widen(x)))
        lam, lam_next = now.lam, next.lam
        if self.has("float32 levels"):
            lam, lam_next = lam.float().double(), lam_next.float().double()
        d = self._data(model, x, now, next)
        last_lam, last = carry[0], carry[1]
        h = lam_next - lam
        r = (lam - last_lam) / h
        if self.has("equal steps assumed"):
            r = torch.where(r > 1e6, r, torch.ones_like(r))
        half = {"second-order term twice": 1.0, "second-order term halved": 0.25}.get(self.fault, 0.5)
        bent = d + column(half / r, d) * (d - last)
        if self.has("second-order term subtracted"):
            bent = d - column(half / r, d) * (d - last)
        decay = now.sigma / now.sigma if self.has("sigma of the start twice") else next.sigma / now.sigma
        gain = -torch.expm1(-h)
        if self.has("exponential to first order"):
            gain = h
        if self.has("sign in the exponent"):
            gain = -torch.expm1(h)
        alpha = now.alpha if self.has("alpha of the start") else next.alpha
        wide = widen(x)
        out = column(decay, wide) * wide + column(alpha * gain, wide) * bent
        return self._finish(x, out, (lam, last if self.has("history never renewed") else d), carry, h)

    def _data(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level) -> Tensor:
        if self.has("edits x"):
            x.mul_(1.0 + 1e-9)
        at = now
        if self.has("evaluates at the end of the step"):
            at = next
        if self.has("time rounded to thousandths"):
            at = model.process.level((now.t * 1000).round() / 1000)
        if self.has("leaves the span"):
            model(x, model.process.level(now.t * (1 + 1e-3)), "data")
        if self.has("evaluates twice"):
            model(x, at, "data")
        if self.has("takes noise for data"):
            return widen(model(x, at, "noise"))
        if self.has("first level of the batch for all"):
            at = sd.Level(*(v[:1] if v.ndim else v for v in at))
        d = widen(model(x, at, "data"))
        if self.has("clips the data"):
            d = d.clamp(-1, 1)
        if self.has("subtracts the batch mean"):
            d = d - 1e-3 * d.mean(0, keepdim=True)
        if self.has("swallows NaN"):
            d = d.nan_to_num(0.0, 0.0, 0.0)
        if self.has("NaN anywhere is NaN everywhere"):
            d = d + 0 * d.sum()
        if self.has("detaches"):
            d = d.detach()
        if self.has("coordinate 0 favoured"):
            d = torch.cat([d[:, :1] * 1.001, d[:, 1:]], 1)
        return d

    def _finish(self, x: Tensor, out: Tensor, carry: Any, old: Any, h: Tensor) -> sd.Step:
        if self.has("reads a value") and float(out.flatten()[0]) == 1e300:
            return sd.Step(x, carry)
        if self.has("branches on a value") and bool((out > 1e300).any()):
            return sd.Step(x, carry)
        if self.has("draws from torch's generator"):
            torch.rand(1)
        if self.has("seeds torch's generator"):
            torch.manual_seed(123)
        if self.has("draws from numpy's generator"):
            np.random.rand()
        if self.has("draws from random"):
            random.random()
        if self.has("steps back when x is large"):
            out = torch.where(x.norm() > 1e3, x, out.to(x.dtype))
        if self.has("stays in float32"):
            out = out.float().to(out.dtype)
        if self.has("carry grows"):
            carry = (*carry, out)
        if self.has("carry in the state's dtype"):
            carry = (carry[0].float(), carry[1])
        if self.has("edits the carry"):
            old[1].copy_(carry[1])
            carry = (carry[0], old[1])
        if self.has("counts its steps"):
            self.store["steps"] = self.store.get("steps", 0) + 1
        if self.has("history kept on the solver") or self.has("history on the solver, reset by init"):
            self.store["carry"] = carry
            return sd.Step(out.to(x.dtype), ())
        return sd.Step(out.double() if self.has("promotes the state") else out.to(x.dtype), carry)


@dataclass(frozen=True)
class Adams3(Planted):
    """Third-order Adams-Bashforth on noise in `s = sigma/alpha`: the integral of the Lagrange polynomial."""

    memory = 2
    grid = staticmethod(sd.grids.by_snr)

    def init(self, model: Any, x: Tensor, now: sd.Level) -> Any:
        zero = torch.zeros_like(widen(x))
        far = torch.full_like(now.t, 1e20)
        return far, zero, 2 * far, zero.clone()

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        s, end = now.sigma / now.alpha, next.sigma / next.alpha
        h, n0 = end - s, widen(model(x, now, "noise"))
        u1, n1, u2, n2 = carry[0] - s, carry[1], carry[2] - s, carry[3]
        if self.has("history in the wrong order"):
            n1, n2 = n2, n1
        if self.has("one node short"):
            u2, n2 = torch.full_like(u2, 2e20), torch.zeros_like(n2)
        first = column(h * h / 2 / (0 - u1), n0) * (n0 - n1)
        slope = column(1 / (0 - u1), n0) * (n0 - n1)
        slope2 = column(1 / (u1 - u2), n0) * (n1 - n2)
        bend = column(1 / (0 - u2), n0) * (slope - slope2)
        weight = h**3 / 3 - u1 * h * h / 2
        if self.has("second divided difference halved"):  # phi_3 times it, as printed, instead of twice
            weight = weight / 2
        if self.has("last nodes swapped in the integral"):
            weight = h**3 / 3 - u2 * h * h / 2
        integral = column(h, n0) * n0 + first + column(weight, n0) * bend
        y = column(1 / now.alpha, n0) * widen(x) + integral
        return sd.Step((column(next.alpha, n0) * y).to(x.dtype), (s, n0, carry[0], carry[1]))


@dataclass(frozen=True)
class TwoStage(Planted):
    """Heun's method on the probability flow in `s = sigma/alpha`."""

    evals = 2
    grid = staticmethod(sd.grids.karras)

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        s, end = now.sigma / now.alpha, next.sigma / next.alpha
        y, h = column(1 / now.alpha, x) * widen(x), end - s
        first = widen(model(x, now, "noise"))
        alpha = now.alpha if self.has("guess scaled by the start's alpha") else next.alpha
        guess = (column(alpha, x) * (y + column(h, x) * first)).to(x.dtype)
        at = now if self.has("second stage at the start's level") else next
        second = widen(model(x if self.has("second stage at the start's x") else guess, at, "noise"))
        a, b = (1 / 3, 2 / 3) if self.has("weights 1/3 and 2/3") else (0.5, 0.5)
        if self.has("weights that sum to 1.001"):
            b += 1e-3
        y = y + column(h, x) * (a * first + b * second)
        return sd.Step((column(next.alpha, x) * y).to(x.dtype), carry)


@dataclass(frozen=True)
class Maruyama(Planted):
    """Euler-Maruyama on the reverse SDE: `x' = x + (f - g^2 score) dt + g sqrt(|dt|) z`."""

    grid = staticmethod(sd.grids.natural)

    @property
    def stochastic(self) -> bool:
        return not self.has("says that it is deterministic")

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        process = sd.VE() if self.has("drift of another SDE") else model.process
        wide = widen(x)
        h = next.t - now.t
        g2 = model.process.variance_rate(now.t)
        rate = process.rates(now.t)[0] / process.alpha(now.t)
        share = {"half the score": 0.5, "twice the score": 2.0, "score scaled by 1.05": 1.05}.get(self.fault, 1.0)
        if self.has("sign of the score"):
            share = -1.0
        drift = column(rate, wide) * wide - column(share * g2, wide) * widen(model(x, now, "score"))
        z = self._normals(noise, x, now, next)
        kick = torch.sqrt(g2) * h.abs().sqrt()
        kick = {
            "g squared for g": g2 * h.abs().sqrt(),
            "h for sqrt(h)": torch.sqrt(g2) * h.abs(),
            "noise too strong by 5 %": 1.05 * kick,
            "no noise in it": 0 * kick,
        }.get(self.fault, kick)
        out = wide + column(h, wide) * drift + column(kick, wide) * widen(z)
        return sd.Step(out.to(x.dtype), carry)

    def _normals(self, noise: Any, x: Tensor, now: sd.Level, next: sd.Level) -> Tensor:
        if self.has("noise of the step before"):
            return noise(x, now._replace(t=2 * now.t - next.t), now)
        if self.has("noise asked for upwards"):
            return noise(x, next, now)
        if self.has("the same noise every step"):
            first = now._replace(t=torch.ones_like(now.t))
            return noise(x, first, first._replace(t=torch.zeros_like(now.t)))
        if self.has("one noise for the whole batch"):
            return noise(x, now, next)[:1].expand_as(x)
        if self.has("its own generator"):
            return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        if self.has("the global generator"):
            return torch.randn_like(x)
        if self.has("noise by position in the batch"):
            return sd.White(sd.noise.seeds(0, len(x)))(x, now, next)
        if self.has("uniform noise"):
            return 12**0.5 * (torch.special.ndtr(noise(x, now, next).double()) - 0.5).to(x.dtype)
        if self.has("noise drawn twice"):
            return (noise(x, now, next) + noise(x, now, next)) / 2
        return noise(x, now, next)


@dataclass(frozen=True)
class StochasticHeun(Planted):
    """Heun on the reverse SDE with additive noise: both stages are driven by one normal; weak order 2."""

    evals = 2
    stochastic = True
    grid = staticmethod(sd.grids.natural)

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        reverse = model.process.reverse(model)
        h = next.t - now.t
        z = noise(x, now, next)
        other = noise(x, now, next, 1) if self.has("a second draw for the second stage") else z
        g0, g1 = model.process.variance_rate(now.t), model.process.variance_rate(next.t)
        if self.has("diffusion of the start alone"):
            g1 = g0
        first, wide = widen(reverse.drift(x, now.t)), widen(x)
        guess = wide + column(h, wide) * first + column((g0 * h.abs()).sqrt(), wide) * widen(other)
        if self.has("second stage without the noise"):
            guess = wide + column(h, wide) * first
        second = widen(reverse.drift(guess.to(x.dtype), next.t))
        kick = column(((g0 + g1) / 2 * h.abs()).sqrt(), wide) * widen(z)
        return sd.Step((wide + column(h, wide) * (first + second) / 2 + kick).to(x.dtype), carry)


@dataclass(frozen=True)
class Eta(Planted):
    """DDIM with eta = 0.7 (Song, Meng & Ermon 2021, eq. 12 and 16)."""

    stochastic = True
    grid = staticmethod(sd.grids.natural)

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        eta, a, s = 0.7, next.alpha / now.alpha, next.sigma / now.sigma
        # alpha and sigma of any process: sigma'^2 (1 - (s/a)^2) is the posterior's variance
        variance = next.sigma**2 * (1 - (s / a) ** 2)
        std = eta * torch.sqrt(variance)
        if self.has("variance for standard deviation"):
            std = eta * variance
        if self.has("eta squared for eta"):
            std = eta * eta * torch.sqrt(variance)
        if self.has("beta for the posterior's variance"):
            std = eta * torch.sqrt(1 - a * a)
        rest = torch.sqrt(next.sigma**2 - (eta * eta * variance if self.has("eta squared for eta") else std**2))
        if self.has("direction keeps its full length"):
            rest = next.sigma
        wide = widen(x)
        unit = widen(model(x, now, "noise"))
        data = column(1 / now.alpha, wide) * wide - column(now.sigma / now.alpha, wide) * unit
        out = column(next.alpha, wide) * data + column(rest, wide) * unit
        return sd.Step((out + column(std, wide) * widen(noise(x, now, next))).to(x.dtype), carry)


@dataclass(frozen=True)
class Corrected(Planted):
    """Euler-Maruyama, then one Langevin step at the level reached, its size `e = 2 (snr sigma)^2`."""

    evals = 2
    stochastic = True
    corrects = False
    snr = 0.16
    grid = staticmethod(sd.grids.natural)

    @property
    def corrector(self) -> Any:
        return Pull(self.fault)

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        x = Maruyama().step(model, x, now, next, (), noise).x
        at = now if self.has("corrects at the level left behind") else next
        tag = 0 if self.has("the corrector draws the predictor's noise") else 1
        return Pull(self.fault).step(model, x, now, at, (), lambda x, a, b, t=0: noise(x, now, next, tag))


@dataclass(frozen=True)
class Pull(Planted):
    """The corrector of `Corrected`."""

    stochastic = True
    corrects = True

    @property
    def snr(self) -> float:
        return 0.16

    def step(self, model: Any, x: Tensor, now: sd.Level, next: sd.Level, carry: Any, noise: Any) -> sd.Step:
        e = 2 * (self.snr * next.sigma) ** 2
        if self.has("corrector step too large"):
            e = 4 * e
        if self.has("corrector step without sigma"):
            e = torch.full_like(e, 2 * self.snr**2)
        kick = torch.sqrt(e) if self.has("sqrt(e) for sqrt(2 e)") else torch.sqrt(2 * e)
        wide, score = widen(x), widen(model(x, next, "score"))
        if self.has("step from the batch's norms"):
            e = e * (1 + 1e-3 * score.norm() / (1 + score.norm()))
        out = wide + column(e, wide) * score + column(kick, wide) * widen(noise(x, now, next))
        return sd.Step(out.to(x.dtype), carry)
