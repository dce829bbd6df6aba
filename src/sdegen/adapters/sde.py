"""torchsde's methods as solvers, driven by noise that depends on each sample's seed alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdegen.adapters.backwards import NOISE_TYPES, SDE_TYPES, Backwards, OutOfEvaluations
from sdegen.adapters.common import (
    adjoint_params,
    check_frame_fits,
    check_known,
    check_one_clock,
    check_tolerances,
    cut_off,
    package,
)
from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.loop.solution import SolveError, Status
from sdegen.noise.brownian import Brownian
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import check_eta
from sdegen.solvers.base import OneStep, Reverse, Step, check_reverse, draw
from sdegen.solvers.frames import SIGMA, TIME, Frame
from sdegen.tensors import combine, widen

PATHS = ("seeds", "interval")


def torchsde(
    method: str = "euler",
    *,
    eta: float = 1.0,
    frame: Frame = TIME,
    sde_type: str | None = None,
    noise_type: str | None = None,
    dt: float | None = None,
    adaptive: bool = False,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    dt_min: float = 1e-5,
    brownian: str = "seeds",
    max_evals: int = 100_000,
    adjoint: bool = False,
    options: Mapping[str, Any] | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    grid: Grid = natural,
) -> TorchSDE:
    """A solver that integrates the reverse SDE by `torchsde.sdeint`, or `sdeint_adjoint` if `adjoint`.

    method: 'euler', 'milstein', 'srk' (Ito), 'midpoint', 'heun', 'euler_heun', 'log_ode', 'reversible_heun', 'milstein'
    with `sde_type="stratonovich"`; the drift is converted where g depends on x. frame: TIME, or SIGMA for
    `dy = (1 + eta^2) noise ds + eta sqrt(2 s) dw` in `y = x/alpha`, `s = sigma/alpha`. noise_type: 'additive' or
    'general' writes scalar and diagonal diffusions as matrices (srk then takes its scheme for additive noise).
    A fixed method takes one step per step of the grid, or steps of dt in the frame's clock.

    brownian='seeds' draws increments from the noise source of the solve, so that a sample depends on its seed alone:
    `White` on fixed steps; `Brownian`, in t, where steps are rejected (`adaptive`) or made again (`adjoint` with dt).
    srk's space-time area and log_ode's area are drawn beside them, exact in law on fixed steps, the second by Davie's
    approximation. brownian='interval' is torchsde's `BrownianInterval`, seeded by all the samples' seeds at once: a
    consistent path for any method, but every sample's noise then depends on the whole batch.

    adaptive=True takes rtol, atol, dt_min as torchsde does, in one go from the first to the last level, with one step
    for all samples; more than `max_evals` evaluations in one call raise a SolveError. adjoint: gradients by the adjoint
    equation, of x and of `adjoint_params` (None: the parameters of the model's network).

    Raises InvalidArgumentError for an unknown or unsuitable option, and where torchsde is not installed.
    Li et al. 2020; Kidger et al. 2021.
    """
    package("torchsde", "sde")
    from torchsde import settings
    from torchsde._core import methods  # which of the two calculi a method is for has no public name

    check_known("torchsde method", method, {m for m in settings.METHODS.all() if not m.startswith("adjoint")})
    own = methods.select(method=method, sde_type=sde_type or "ito").sde_type
    check_known("sde_type", sde_type or own, SDE_TYPES)
    if sde_type not in (None, own):
        raise InvalidArgumentError(f"torchsde's {method} is for {own} SDEs, got sde_type={sde_type!r}; leave it out")
    kind = _Adaptive if adaptive or dt is not None else TorchSDE
    return kind(
        method,
        float(eta),
        frame,
        own,
        noise_type,
        None if dt is None else float(dt),
        adaptive,
        float(rtol),
        float(atol),
        float(dt_min),
        brownian,
        max_evals,
        adjoint,
        dict(options or {}),
        adjoint_method,
        dict(adjoint_options or {}),
        None if adjoint_params is None else tuple(adjoint_params),
        grid,
    )


@dataclass(frozen=True, repr=False)
class TorchSDE(OneStep):
    """A method of torchsde, see `torchsde`; a step is one call of it between two levels."""

    method: str
    eta: float
    frame: Frame
    sde_type: str
    noise_type: str | None
    dt: float | None
    adaptive: bool
    rtol: float
    atol: float
    dt_min: float
    brownian: str
    max_evals: int
    adjoint: bool
    options: Mapping[str, Any] = field(hash=False)
    adjoint_method: str | None
    adjoint_options: Mapping[str, Any] = field(hash=False)
    adjoint_params: tuple[Tensor, ...] | None = field(compare=False)
    grid: Grid = field(default=natural)

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_tolerances(self.rtol, self.atol)
        check_known("brownian", self.brownian, PATHS)
        if self.noise_type is not None:
            check_known("noise_type", self.noise_type, NOISE_TYPES)
        if self.eta == 0:
            raise InvalidArgumentError("eta=0 is a flow without noise: sd.adapters.torchdiffeq has its methods")
        if self.frame not in (TIME, SIGMA):
            raise InvalidArgumentError(f"torchsde integrates in sd.TIME or in sd.SIGMA, got frame={self.frame}")
        if self.dt is not None and not 0 < self.dt < math.inf:
            raise InvalidArgumentError(f"dt must be positive and finite, got {self.dt}")
        if self.adaptive and self.brownian == "seeds" and self.method in ("srk", "log_ode"):
            raise InvalidArgumentError(
                f"adaptive {self.method} needs areas of one consistent path: give brownian='interval'"
            )

    def __repr__(self) -> str:
        shown = {"eta": 1.0, "frame": TIME, "noise_type": None, "dt": None, "brownian": "seeds", "adjoint": False}
        if self.adaptive:
            shown = {**shown, "adaptive": False, "rtol": None, "atol": None}
        if self.method == "milstein":
            shown = {**shown, "sde_type": "ito"}
        rest = "".join(f", {k}={getattr(self, k)!r}" for k, usual in shown.items() if getattr(self, k) != usual)
        return f"torchsde({self.method!r}{rest})"

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    @property
    def evals(self) -> int:
        """Evaluations of one of its steps; a step itself counts them."""
        if self.method == "srk":
            return 2 if self.noise_type == "additive" else 4
        return 1 if self.method in ("euler", "milstein", "euler_heun") else 2

    @property
    def memory(self) -> int:
        """reversible_heun carries its last evaluation."""
        return int(self.method == "reversible_heun")

    @property
    def convergence(self) -> int:
        """Weak order 1."""
        return 1

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry; reversible_heun's, flat, follows from its first step."""
        check_reverse(self, model, self.eta)
        check_frame_fits(self, self.frame, model)
        check_one_clock(self, now)
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[Tensor, ...], noise: NoiseSource | None
    ) -> Step:
        """torchsde from now to next; the step counts its evaluations."""
        import torchsde as library

        problem = Backwards(
            model, x.shape[1:], self.eta, self.frame, sde_type=self.sde_type, noise_type=self.noise_type
        )
        u0, u1 = (problem.sign * self.frame.clock(level) for level in (now, next))
        problem.ends, problem.dtype, problem.limit = {float(u0): now, float(u1): next}, x.dtype, self.max_evals
        if not self.adjoint:
            problem.remember()
        y = problem.flat(widen(x) if self.frame == TIME else combine((1 / self.frame.scale(now), x)))
        extra: dict[str, Any] = {"extra_solver_state": carry} if carry else {}
        if self.adjoint:
            extra |= {"adjoint_method": self.adjoint_method, "adjoint_options": dict(self.adjoint_options)}
            extra["adjoint_params"] = adjoint_params(self, model, self.adjoint_params)
        call = library.sdeint_adjoint if self.adjoint else library.sdeint
        length = float(u1 - u0)
        # a little more than the whole interval, which torchsde cuts at its end: one step, not one and a rounding
        dt = self.dt or (length / 100 if self.adaptive else length * (1 + 1e-6))
        try:
            ys, state = call(
                problem,
                y,
                torch.stack([u0, u1]),
                bm=self._path(problem, y, now, next, noise),
                method=self.method,
                dt=dt,
                adaptive=self.adaptive,
                rtol=self.rtol,
                atol=self.atol,
                dt_min=self.dt_min,
                options=dict(self.options),
                extra=True,
                **extra,
            )
        except (OutOfEvaluations, AssertionError) as error:  # the latter is how torchsde says that it met a NaN
            status = Status.MAX_STEPS if isinstance(error, OutOfEvaluations) else Status.NONFINITE
            raise SolveError(
                f"{self} gave up between t={float(now.t):.6g} and t={float(next.t):.6g} after {problem.evals} "
                f"evaluations: {error}. Its begin is in this error's `partial`; raise rtol, atol or max_evals",
                cut_off(model.process, x, now, problem.evals, status),
            ) from error
        out = problem.shaped(ys[-1])
        out = out if self.frame == TIME else combine((self.frame.scale(next), out))
        return Step(out.to(x.dtype), tuple(state), evals=problem.evals)

    def _path(self, problem: Backwards, y: Tensor, now: Level, next: Level, noise: NoiseSource | None) -> Any:
        """What torchsde asks for increments."""
        if self.brownian == "interval":
            return self._interval(problem, y, now, next, noise)
        again = self.adaptive or (self.adjoint and self.dt is not None)
        follows = isinstance(noise, Brownian) and noise.clock is None and self.frame == TIME
        if again and not follows:
            raise InvalidArgumentError(
                f"{self} asks for parts of steps again, and fresh noise there biases the law: give "
                "noise=sd.Brownian(seeds, process) in frame TIME, or brownian='interval'"
            )
        return _Increments(problem, y, noise)

    def _interval(self, problem: Backwards, y: Tensor, now: Level, next: Level, noise: NoiseSource | None) -> Any:
        """torchsde's path, its seed a hash of normals that all samples draw."""
        import torchsde as library

        drawn = draw(noise, y.new_empty(y.shape[0], 4, dtype=torch.float32), now, next)
        words = str(drawn.flatten().tolist()).encode()
        entropy = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
        area = {"srk": "space-time", "log_ode": "foster"}.get(self.method, "none")
        low, high = sorted(problem.ends)
        return library.BrownianInterval(
            t0=low,
            t1=high,
            size=(y.shape[0], problem.noises(y)),
            dtype=y.dtype,
            device=y.device,
            entropy=entropy,
            levy_area_approximation=area,
        )


@dataclass(frozen=True, repr=False)
class _Adaptive(TorchSDE):
    """A method with steps of its own."""

    planned: ClassVar[int] = 1


class _Increments:
    """A Brownian motion in torchsde's form, from a noise source: W by tag 0, the areas by tags 1 and 2.

    `U = int (W - W(u0)) du = h (W/2 + H)` with H of variance h/12 beside W; the area `A = H W^T - W H^T + b` with b
    skew of variance h^2/12 (Davie's approximation: its first two moments given W and H's law are exact).
    """

    levy_area_approximation = "davie"

    def __init__(self, problem: Backwards, y: Tensor, noise: NoiseSource | None) -> None:
        self.problem, self.noise = problem, noise
        self.dtype, self.device = y.dtype, y.device
        self.own = problem.noise_type in ("diagonal", "additive")
        self.shape = torch.Size((y.shape[0], problem.noises(y)))

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        """W over `[ta, tb]`, `[B, M]`, with U if `return_U`, with A `[B, M, M]` if `return_A`."""
        h = (tb - ta).to(self.dtype)
        w = h.sqrt() * self._draw(ta, tb, 0)
        if not (return_U or return_A):
            return w
        height = (h / 12).sqrt() * self._draw(ta, tb, 1)
        outer = height[:, :, None] * w[:, None, :]
        parts = [w, *([h * (w / 2 + height)] if return_U else [])]
        if return_A:
            z = self._draw(ta, tb, 2, square=True).tril(-1)
            parts.append(outer - outer.mT + (h * h / 12).sqrt() * (z - z.mT))
        return tuple(parts)

    def _draw(self, ta: Tensor, tb: Tensor, tag: int, square: bool = False) -> Tensor:
        batch, count = self.shape
        # the shapes that the solvers here draw in: two solvers with one seed see one path
        shape = (batch, count, count) if square else (batch, *self.problem.shape) if self.own else (batch, count)
        x = torch.empty(shape, dtype=self.dtype, device=self.device)
        z = draw(self.noise, x, self.problem.level(ta), self.problem.level(tb), tag)
        return z if square else z.reshape(batch, count)
