"""torchdiffeq's methods as solvers, and probability flows as its problems."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdegen.adapters.bridge import Flow, adjoint_params, check_start, check_tolerances, package
from sdegen.errors import InvalidArgumentError, check_known
from sdegen.grids import Grid, natural
from sdegen.grids.spacings import in_time
from sdegen.level import Level, points
from sdegen.loop.solution import SolveError, Status
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import Model
from sdegen.solvers.base import OneStep, Reverse, Solver, Step, check_reverse
from sdegen.solvers.frame import Frame, check_one_clock
from sdegen.solvers.frames import TIME
from sdegen.tensors import check_type, map_tensors

MAX_STEPS = 10_000
_SCIPY = "scipy_solver"
_EVALS = {"midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


class _Function(torch.nn.Module):
    """`func(t, x)` of a probability flow; the network's parameters are this module's."""

    def __init__(self, flow: ReverseSDE) -> None:
        super().__init__()
        self.flow, self.network = flow, flow.module

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """`dx/dt` `[B, *S]` at t, or at the end of the span where t lies outside."""
        return self.flow.drift(x, t.clamp(self.flow.sde.t_min, self.flow.sde.t_max))


def for_torchdiffeq(flow: Reverse) -> torch.nn.Module:
    """A probability flow as the `func(t, x)` of `torchdiffeq.odeint` and `odeint_adjoint`.

    t runs in either direction; outside of the SDE's span, where steps that are interpolated may ask, the field is that
    at the nearer end.

    flow: `sde.probability_flow(score)`, or a score model. The module's parameters are those of the network behind the
    score, so that `odeint_adjoint` finds them. Raises InvalidTypeError for anything else, InvalidArgumentError for a
    `ReverseSDE` with eta > 0.
    """
    check_type(flow, Model | ReverseSDE, "for_torchdiffeq takes sde.probability_flow(score) or a ScoreModel")
    reverse: Any = flow
    if flow.answers:
        reverse = flow.process.probability_flow(reverse)
    check_reverse("an ODE method", reverse, 0.0)
    return _Function(reverse)


def torchdiffeq(
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    frame: Frame = TIME,
    adjoint: bool = False,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    grid: Grid | None = None,
) -> TorchDiffEq:
    """A solver that integrates the probability flow by `torchdiffeq.odeint`, or `odeint_adjoint` if `adjoint`.

    Otherwise than in torchdiffeq the model is never asked outside of the interval: adaptive steps end on its ends, and
    the trial step that chooses the first one is asked at the nearer end. `max_num_steps` is 10,000 unless options say
    otherwise. A sample whose derivative is not finite stays still from there on and ends with its status NONFINITE, so
    that the others finish; a run that cannot go on raises a SolveError whose `partial` holds the state where its last
    good step began. Adaptive methods choose one step for all: a sample depends on its batch-mates, within tolerance.

    Args:
        method: any of torchdiffeq's. Those of fixed steps ('euler', 'midpoint', 'heun2', 'heun3', 'rk4', the Adams
            methods) take the steps of the grid (equal ones in the Adams methods, see `Even`), or of
            `options={"step_size": h}` in the frame's clock. Adaptive ones ('dopri5', 'dopri8', 'bosh3', 'fehlberg2',
            'adaptive_heun', and 'scipy_solver' with `options={"solver": "LSODA"}`) run from the first to the last level
            in one go, and are interpolated at levels between: `sample` gives them one step, and the first step of a
            solve counts all evaluations.
        frame: the variables they integrate in, `dY/dtau = rate Y + N`: TIME is the flow in t, SIGMA is `y = x/alpha` in
            `sigma/alpha`.
        options, adjoint_options: torchdiffeq's own.
        adjoint_params: the tensors that an adjoint has gradients for; None for the parameters of the model's network.
        grid: the solver's own grid; None for `natural`, or an even one for the Adams methods.

    Raises InvalidArgumentError for an unknown method or option, a tolerance below 0, or without torchdiffeq. Source:
    Chen, R. T. Q.: torchdiffeq (2018).
    """
    package("torchdiffeq", "ode")
    from torchdiffeq._impl.odeint import SOLVERS  # the table of methods has no public name

    check_known("torchdiffeq method", method, SOLVERS)
    options = dict(options or {})
    for name in options:
        check_known(f"option of {method}", name, _options(SOLVERS[method]))
    steps = _steps(SOLVERS[method], options)
    params = None if adjoint_params is None else tuple(adjoint_params)
    again, order = dict(adjoint_options or {}), 1 if method == _SCIPY else SOLVERS[method].order
    grid = grid or (Even(frame) if steps == "even" else natural)
    return TorchDiffEq(method, float(rtol), float(atol), frame, steps, adjoint, options, again, params, order, grid)


def _options(solver: type) -> set[str]:
    """The names that a torchdiffeq method's constructor and those of its bases take."""
    own = {name for base in solver.__mro__[:-1] for name in inspect.signature(base).parameters}
    return (own | {"norm"}) - {"self", "func", "y0", "rtol", "atol", "args", "kwargs", "unused_kwargs"}


def _steps(solver: type, options: Mapping[str, Any]) -> str:
    """Whose steps a method takes: those of the 'grid', if they are 'even', its 'own', or 'landing' ones.

    The latter are its own too, and can be told where to end.
    """
    from torchdiffeq._impl.fixed_adams import AdamsBashforthMoulton
    from torchdiffeq._impl.solvers import AdaptiveStepsizeODESolver, FixedGridODESolver

    if issubclass(solver, AdaptiveStepsizeODESolver):
        return "landing"
    if not issubclass(solver, FixedGridODESolver) or options.keys() & {"step_size", "grid_constructor"}:
        return "own"
    return "even" if issubclass(solver, AdamsBashforthMoulton) else "grid"


@dataclass(frozen=True)
class Even:
    """The grid that is uniform in a frame's clock, which torchdiffeq's Adams methods need: a `grid(process, n)`."""

    frame: Frame

    def __call__(self, process: SDE, n: int, *, start: float | None = None, end: float | None = None) -> Tensor:
        def place(part: Tensor, *ends: Tensor) -> Tensor:
            first, last = self.frame.clock(process.level(torch.stack(ends)))
            return self.frame.level(process, first + part * (last - first)).t

        return in_time(process, n, start, end, place)


@dataclass(frozen=True, repr=False)
class TorchDiffEq(OneStep):
    """A method of torchdiffeq, see `torchdiffeq`; a step is one call of it between two levels."""

    method: str
    rtol: float
    atol: float
    frame: Frame
    steps: str
    adjoint: bool
    options: Mapping[str, Any] = field(hash=False)
    adjoint_options: Mapping[str, Any] = field(hash=False)
    adjoint_params: tuple[Tensor, ...] | None = field(compare=False)
    convergence: int = 1
    grid: Grid = field(default=natural)

    def __post_init__(self) -> None:
        check_one_clock(self, self.frame)
        check_tolerances(self.rtol, self.atol)

    def __repr__(self) -> str:
        tolerances = f", rtol={self.rtol:g}, atol={self.atol:g}" if self.own_steps else ""
        rest = "".join(f", {k}={v!r}" for k, v in (("options", self.options), ("adjoint", self.adjoint)) if v)
        return f"torchdiffeq({self.method!r}{tolerances}, frame={self.frame}{rest})"

    @property
    def evals(self) -> int:
        """Evaluations of a step between two levels, where the method fixes them; a step itself counts them."""
        return _EVALS.get(self.method, 1)

    @property
    def own_steps(self) -> int | None:
        """One for a method with steps of its own: it takes the whole interval in one go."""
        return 1 if self.steps in ("own", "landing") else None

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        check_start(self, model, self.frame, 0.0, now)
        return ()

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Any, noise: NoiseSource | None) -> Step:
        path, evals = self.through(model, x, [now, next])
        return Step(path[-1], carry, evals=evals)

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """A solver per step, where a method has a past or its own steps: the first one makes a single call for all.

        Raises InvalidArgumentError for an Adams method whose steps are not equal in the frame's clock.
        """
        if self.steps == "grid":
            return ()
        if self.steps == "even":
            lengths = self.frame.clock(levels).diff()
            if float((lengths / lengths.mean() - 1).abs().max()) > 1e-6:
                raise InvalidArgumentError(
                    f"{self} has the weights of equal steps: leave grid out, or give sd.adapters.Even({self.frame})"
                )
        each = points(levels)
        return [_Part(self, each, k) for k in range(len(each) - 1)]

    def through(self, model: Reverse, x: Tensor, levels: Sequence[Level]) -> tuple[Tensor, int]:
        """The states `[n + 1, B, *S]` at `levels` (n + 1 of them, `[]` each) from x at the first, and the evaluations.

        Raises SolveError where torchdiffeq gives up, InvalidArgumentError where gradients would be lost.
        """
        import torchdiffeq as library

        self._check_gradients(model, x)
        flow = Flow(model, self.frame, x, levels)
        clocks = flow.clocks.to(x.device)
        given: dict[str, Any] = {"options": self._given(clocks[[0, -1]])}
        if self.adjoint:  # which runs from each level to the one before it
            again = {k: v for k, v in self._given(clocks).items() if k != "norm"}
            given["adjoint_options"] = {**again, **self.adjoint_options}
            given["adjoint_params"] = adjoint_params(self, model, self.adjoint_params)
        call = library.odeint_adjoint if self.adjoint else library.odeint
        try:
            with warnings.catch_warnings():
                # about the min_step that torchdiffeq passes to all of scipy's solvers, and steps that none accepts
                warnings.filterwarnings("ignore", "The following arguments have no effect", UserWarning)
                warnings.filterwarnings("ignore", "Solver .* does not support callbacks", UserWarning)
                path = call(flow, flow.enter(x), clocks, method=self.method, rtol=self.rtol, atol=self.atol, **given)
        except AssertionError as error:  # how torchdiffeq says that it cannot go on
            raise self._failure(flow, str(error).splitlines()[0]) from error
        if len(path) != len(levels):
            raise self._failure(flow, "scipy ended before the last level")
        return flow.states(path), flow.evals

    def _given(self, stops: Tensor) -> dict[str, Any]:
        """The options of one call, whose adaptive steps end at the clocks `stops`."""
        if self.steps != "landing":
            return dict(self.options)
        norm = self.options.get("norm", lambda y: y.square().mean().sqrt())
        # the first step is chosen by norms of y: without detaching it would be part of the graph, through y alone
        given = {**self.options, "norm": lambda y: norm(map_tensors(Tensor.detach, y))}
        return {"max_num_steps": MAX_STEPS, "step_t": stops, **given}

    def _check_gradients(self, model: Reverse, x: Tensor) -> None:
        lost = self.method == _SCIPY and not self.adjoint and torch.is_grad_enabled()
        if lost and any(v.requires_grad for v in (x, *(model.module.parameters() if model.module else ()))):
            raise InvalidArgumentError(
                f"{self} runs in numpy and gradients would be lost: use torch.no_grad() or adjoint=True"
            )

    def _failure(self, flow: Flow, reason: str) -> SolveError:
        known = {"max_num_steps": Status.MAX_STEPS, "non-finite": Status.NONFINITE}
        status = next((kind for word, kind in known.items() if word in reason), Status.STEP_TOO_SMALL)
        advice = "raise rtol and atol, compute in float64, or use frame=sd.SIGMA"
        return flow.failure(self, reason, status, *flow.reached, advice)


@dataclass(frozen=True)
class _Part(OneStep):
    """Step k of a run that is made in one call; the carry is the path `[n + 1, B, *S]`."""

    method: TorchDiffEq
    levels: Sequence[Level]
    k: int

    def init(self, model: Reverse, x: Tensor, now: Level) -> Any:
        return self.method.init(model, x, now)

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Any, noise: NoiseSource | None) -> Step:
        path, evals = (carry, 0) if self.k else self.method.through(model, x, self.levels)
        return Step(path[self.k + 1], path, evals=evals)
