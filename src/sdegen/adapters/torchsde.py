"""torchsde's methods as solvers, driven by noise of each sample's seed alone, and reverse SDEs as its problems."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.adapters.bridge import Backwards, OutOfEvaluations, check_start, check_tolerances, package
from sdegen.adapters.bridge import adjoint_params as params_of
from sdegen.errors import InvalidArgumentError, check_known, check_positive, unknown_keywords
from sdegen.grids import Grid, natural
from sdegen.level import Level
from sdegen.loop.solution import Status
from sdegen.noise.brownian import Brownian
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import ReverseSDE, check_eta
from sdegen.solvers.base import OneStep, Reverse, Step, draw
from sdegen.solvers.frame import Frame
from sdegen.solvers.frames import SIGMA, TIME
from sdegen.tensors import check_type

SDE_TYPES = ("ito", "stratonovich")
NOISE_TYPES = ("additive", "diagonal", "general", "scalar")
PATHS = ("seeds", "interval")
_USUAL = {"eta": 1.0, "frame": TIME, "brownian": "seeds", "adjoint": False, "adaptive": False, "sde_type": "ito"}
_TOLERANCES = {"rtol": 1e-3, "atol": 1e-3}
_OURS = {"sde", "y0", "ts", "bm", "names", "logqp", "extra", "extra_solver_state", "unused_kwargs"}
"""What a step gives to torchsde's functions, or cannot use."""


def for_torchsde(
    reverse: ReverseSDE, shape: Sequence[int], *, sde_type: str = "ito", noise_type: str | None = None
) -> Backwards:
    """A reverse SDE as the problem that `torchsde.sdeint` and `sdeint_adjoint` take.

    torchsde's time is `u = -t`, which increases towards data, and its states are flat, `[B, D]`:

        problem = sd.adapters.for_torchsde(reverse, (2,))
        ys = torchsde.sdeint(problem, problem.flat(x), problem.times(times), method="euler", dt=0.01)
        out = problem.shaped(ys[-1])

    Args:
        reverse: `sde.reverse(score)`, or `sde.as_forward()`.
        shape: `*S`, of a sample.
        sde_type: 'ito' for its methods euler, milstein and srk, 'stratonovich' for the others; the drift is converted.
        noise_type: torchsde's name for the diffusion, see `Backwards`; None for the one that it has.

    The module's parameters are those of the network behind the score. Raises InvalidTypeError unless reverse is a
    `ReverseSDE`, InvalidArgumentError where its eta is 0 (`for_torchdiffeq`), or a type is unknown.
    """
    check_type(reverse, ReverseSDE, "for_torchsde takes sde.reverse(score)")
    if reverse.eta == 0:
        raise InvalidArgumentError("a probability flow has no noise: for_torchdiffeq(flow) is for it")
    check_known("sde_type", sde_type, SDE_TYPES, optional=True)
    check_known("noise_type", noise_type, NOISE_TYPES, optional=True)
    return Backwards(reverse, shape, reverse.eta, sde_type=sde_type, noise_type=noise_type)


def torchsde(
    method: str = "euler",
    *,
    eta: float = 1.0,
    frame: Frame = TIME,
    sde_type: str | None = None,
    noise_type: str | None = None,
    brownian: str = "seeds",
    max_evals: int = 100_000,
    adjoint: bool = False,
    adjoint_params: Sequence[Tensor] | None = None,
    grid: Grid = natural,
    **options: Any,
) -> TorchSDE:
    """A solver that integrates the reverse SDE by `torchsde.sdeint`, or `sdeint_adjoint` if `adjoint`.

    A fixed method takes one step per step of the grid, or steps of `dt` in the frame's clock.

    Args:
        method: 'euler', 'milstein', 'srk' (Ito), 'midpoint', 'heun', 'euler_heun', 'log_ode', 'reversible_heun',
            'milstein' with `sde_type="stratonovich"`; the drift is converted where g depends on x.
        eta: the amount of noise, above 0.
        frame: TIME, or SIGMA for `dy = (1 + eta^2) noise ds + eta sqrt(2 s) dw` in `y = x/alpha`, `s = sigma/alpha`.
        sde_type: 'ito' or 'stratonovich'; None for what the method is for.
        noise_type: 'additive' or 'general' writes scalar and diagonal diffusions as matrices (srk then takes its scheme
            for additive noise).
        brownian: 'seeds' draws increments from the noise source of the solve, so that a sample depends on its seed
            alone: `White` on fixed steps; `Brownian`, in t, where steps are rejected (`adaptive`) or made again
            (`adjoint` with dt). srk's space-time area and log_ode's area are drawn beside them, exact in law on fixed
            steps, the second by Davie's approximation. 'interval' is torchsde's `BrownianInterval`, seeded by all the
            samples' seeds at once: a consistent path for any method, but every sample's noise then depends on the whole
            batch.
        max_evals: more evaluations in one call raise a SolveError.
        adjoint_params: the tensors that an adjoint has gradients for; None for the parameters of the model's network.
        options: torchsde's own arguments: `dt`; `adaptive=True` with `rtol`, `atol` (1e-3) and `dt_min`, which goes
            from the first to the last level in one go, with one step for all samples; `options`; those of the adjoint.

    Raises InvalidTypeError for an argument that torchsde does not have, InvalidArgumentError for an unknown or
    unsuitable option, or without torchsde. Source: Li et al. (2020); Kidger et al. (2021).
    """
    library = package("torchsde", "sde")
    from torchsde._core import methods  # which of the two calculi a method is for has no public name

    check_known("torchsde method", method, {m for m in library.settings.METHODS.all() if not m.startswith("adjoint")})
    check_known("sde_type", sde_type, SDE_TYPES, optional=True)
    own = methods.select(method=method, sde_type=sde_type or "ito").sde_type
    if sde_type not in (None, own):
        raise InvalidArgumentError(f"torchsde's {method} is for {own} SDEs, got sde_type={sde_type!r}; leave it out")
    known = inspect.signature(library.sdeint_adjoint).parameters.keys() - _OURS
    if options.keys() - known:
        raise unknown_keywords("torchsde", options.keys() - known, known)
    params = None if adjoint_params is None else tuple(adjoint_params)
    options = {k: v for k, v in {**_TOLERANCES, **options}.items() if adjoint or not k.startswith("adjoint")}
    return TorchSDE(method, float(eta), frame, own, noise_type, brownian, max_evals, adjoint, params, options, grid)


@dataclass(frozen=True, repr=False)
class TorchSDE(OneStep):
    """A method of torchsde, see `torchsde`; a step is one call of it between two levels."""

    method: str
    eta: float
    frame: Frame
    sde_type: str
    noise_type: str | None
    brownian: str
    max_evals: int
    adjoint: bool
    adjoint_params: tuple[Tensor, ...] | None = field(compare=False)
    options: Mapping[str, Any] = field(hash=False)
    grid: Grid = field(default=natural)
    stochastic = True
    convergence = 1

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_tolerances(self.options["rtol"], self.options["atol"])
        check_known("brownian", self.brownian, PATHS)
        check_known("noise_type", self.noise_type, NOISE_TYPES, optional=True)
        if self.eta == 0:
            raise InvalidArgumentError("eta=0 is a flow without noise: sd.adapters.torchdiffeq has its methods")
        if self.frame not in (TIME, SIGMA):
            raise InvalidArgumentError(f"torchsde integrates in sd.TIME or in sd.SIGMA, got frame={self.frame}")
        if self.dt is not None:
            check_positive(dt=self.dt)
        if self.adapts and self.brownian == "seeds" and self.method in ("srk", "log_ode"):
            raise InvalidArgumentError(f"adaptive {self.method} needs areas of one path: give brownian='interval'")

    def __repr__(self) -> str:
        names = ("eta", "frame", "noise_type", "brownian", "adjoint", *(("sde_type",) * (self.method == "milstein")))
        shown = {**{name: vars(self)[name] for name in names}, **self.options}
        usual = _USUAL if self.adapts else _USUAL | _TOLERANCES
        rest = "".join(f", {name}={value!r}" for name, value in shown.items() if value != usual.get(name))
        return f"torchsde({self.method!r}{rest})"

    @property
    def dt(self) -> float | None:
        """The step, where it is not the grid's."""
        return self.options.get("dt")

    @property
    def adapts(self) -> bool:
        """Whether torchsde adapts its steps."""
        return bool(self.options.get("adaptive"))

    @property
    def evals(self) -> int:
        """Evaluations of one of its steps; a step itself counts them."""
        if self.method == "srk":
            return 2 if self.noise_type == "additive" else 4
        return 1 if self.method in ("euler", "milstein", "euler_heun") else 2

    @property
    def memory(self) -> int:
        return int(self.method == "reversible_heun")  # which carries its last evaluation

    @property
    def own_steps(self) -> int | None:
        return 1 if self.adapts or self.dt is not None else None

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        check_start(self, model, self.frame, self.eta, now)
        return ()

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Any, noise: NoiseSource | None) -> Step:
        import torchsde as library

        problem = Backwards(
            model, x.shape[1:], self.eta, self.frame, (now, next), sde_type=self.sde_type, noise_type=self.noise_type
        )
        problem.dtype, problem.limit = x.dtype, self.max_evals
        length = float(problem.clocks[1] - problem.clocks[0])
        # a little more than the whole interval, which torchsde cuts at its end: one step, not one and a rounding
        dt = self.dt or length * (0.01 if self.adapts else 1 + 1e-6)
        call, given = library.sdeint, {**self.options, "dt": dt}
        if carry:
            given["extra_solver_state"] = carry
        if self.adjoint:
            call, given["adjoint_params"] = library.sdeint_adjoint, params_of(self, model, self.adjoint_params)
        else:
            problem.remember()
        y = problem.flat(problem.enter(x))
        path, advice = self._path(problem, y, noise), "raise rtol, atol or max_evals"
        try:
            ys, state = call(problem, y, problem.clocks, bm=path, method=self.method, extra=True, **given)
        except OutOfEvaluations as error:
            raise problem.failure(self, str(error), Status.MAX_STEPS, now, x, advice) from error
        except AssertionError as error:  # how torchsde says that it met a NaN
            raise problem.failure(self, str(error), Status.NONFINITE, now, x, advice) from error
        return Step(problem.state(next, problem.shaped(ys[-1])), tuple(state), evals=problem.evals)

    def _path(self, problem: Backwards, y: Tensor, noise: NoiseSource | None) -> Any:
        if self.brownian == "interval":
            return self._interval(problem, y, noise)
        again = self.adapts or (self.adjoint and self.dt is not None)
        follows = isinstance(noise, Brownian) and noise.clock is None and self.frame.timed
        if again and not follows:
            raise InvalidArgumentError(
                f"{self} asks for parts of steps again, and fresh noise there biases the law: give "
                "noise=sd.Brownian(seeds, process) in frame TIME, or brownian='interval'"
            )
        return _Increments(problem, y, noise)

    def _interval(self, problem: Backwards, y: Tensor, noise: NoiseSource | None) -> Any:
        """torchsde's path, its seed a hash of normals that all samples draw."""
        import torchsde as library

        now, next = problem.levels
        drawn = draw(noise, y.new_empty(y.shape[0], 4, dtype=torch.float32), now, next)
        words = str(drawn.flatten().tolist()).encode()
        low, high = problem.clocks.tolist()
        return library.BrownianInterval(
            t0=low,
            t1=high,
            size=(y.shape[0], problem.noises(y)),
            dtype=y.dtype,
            device=y.device,
            entropy=int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little"),
            levy_area_approximation={"srk": "space-time", "log_ode": "foster"}.get(self.method, "none"),
        )


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
