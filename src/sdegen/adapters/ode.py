"""torchdiffeq's methods as solvers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdegen.adapters.common import (
    adjoint_params,
    check_frame_fits,
    check_known,
    check_one_clock,
    check_tolerances,
    cut_off,
    package,
)
from sdegen.adapters.flows import Flow
from sdegen.errors import InvalidArgumentError
from sdegen.grids import Grid, by_time, check_steps, check_times, natural
from sdegen.level import Level, points
from sdegen.loop.solution import SolveError, Status
from sdegen.noise.normals import NoiseSource
from sdegen.processes.sde import SDE
from sdegen.scores.model import network
from sdegen.solvers.base import OneStep, Reverse, Solver, Step, check_reverse
from sdegen.solvers.frames import TIME, Frame, check_frame, refuse_grouped
from sdegen.solvers.table import Known

MAX_STEPS = 10_000


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

    method: any of torchdiffeq's. Those of fixed steps ('euler', 'midpoint', 'heun2', 'heun3', 'rk4', the Adams methods)
    take the steps of the grid (equal ones in the Adams methods, see `Even`), or of `options={"step_size": h}` in the
    frame's clock. Adaptive ones ('dopri5', 'dopri8', 'bosh3', 'fehlberg2', 'adaptive_heun', and 'scipy_solver' with
    `options={"solver": "LSODA"}`) take rtol and atol, run from the first to the last level in one go, and are
    interpolated at levels between: `sample` gives them one step, and the first step of a solve counts all evaluations.
    frame: the variables they integrate in, `dY/dtau = rate Y + N`: TIME is the flow in t, SIGMA is `y = x/alpha` in
    `sigma/alpha`. adjoint: gradients by the adjoint equation, of x and of `adjoint_params` (None: the parameters of the
    model's network). options, adjoint_options: torchdiffeq's own.

    Otherwise than in torchdiffeq the model is never asked outside of the interval: adaptive steps end on its ends, and
    the trial step that chooses the first one is asked at the nearer end. `max_num_steps` is 10,000 unless options say
    otherwise. A sample whose derivative is not finite stays still from there on and ends with its status NONFINITE, so
    that the others finish; a run that cannot go on raises a SolveError whose `partial` holds the state where its last
    good step began. Adaptive methods choose one step for all: a sample depends on its batch-mates, within tolerance.

    Raises InvalidArgumentError for an unknown method or option, for tolerances below 0, and where torchdiffeq is not
    installed. Chen, R. T. Q.: torchdiffeq (2018).
    """
    package("torchdiffeq", "ode")
    from torchdiffeq._impl.odeint import SOLVERS  # the table of methods has no public name

    check_known("torchdiffeq method", method, SOLVERS)
    options = dict(options or {})
    for name in options:
        check_known(f"option of {method}", name, _options(SOLVERS[method]))
    kinds = {"_advance": _Adaptive, "_update_history": _Adams, "_step_func": TorchDiffEq}
    kind = next((kind for mark, kind in kinds.items() if hasattr(SOLVERS[method], mark)), _OneCall)
    if kind is not _Adaptive and options.keys() & {"step_size", "grid_constructor"}:
        kind = _OneCall
    differentiable = hasattr(SOLVERS[method], "valid_callbacks") and SOLVERS[method].valid_callbacks() != set()
    return kind(
        method,
        float(rtol),
        float(atol),
        frame,
        adjoint,
        options,
        dict(adjoint_options or {}),
        None if adjoint_params is None else tuple(adjoint_params),
        getattr(SOLVERS[method], "order", 1),
        differentiable,
        grid or (Even(frame) if kind is _Adams else natural),
    )


@dataclass(frozen=True)
class Even:
    """The grid that is uniform in a frame's clock, which torchdiffeq's Adams methods need: a `grid(process, n)`."""

    frame: Frame

    def __call__(self, process: SDE, n: int, *, start: float | None = None, end: float | None = None) -> Tensor:
        """Times `[n + 1]` from start (t_max unless given) to end (t_min unless given)."""
        ends = by_time(process, 1, start=start, end=end)
        clock = self.frame.clock(process.level(ends))
        share = torch.linspace(0.0, 1.0, check_steps(n) + 1, dtype=torch.float64)
        times = self.frame.level(process, clock[0] + share * (clock[1] - clock[0])).t
        return check_times(torch.cat([ends[:1], times[1:-1], ends[1:]]), process)


def _options(solver: type) -> set[str]:
    """The names that a torchdiffeq method's constructor and those of its bases take."""
    own = {name for base in solver.__mro__[:-1] for name in inspect.signature(base).parameters}
    return (own | {"norm"}) - {"self", "func", "y0", "rtol", "atol", "args", "kwargs", "unused_kwargs"}


def _rms(y: Tensor) -> Tensor:
    """torchdiffeq's norm."""
    return y.square().mean().sqrt()


@dataclass(frozen=True, repr=False)
class TorchDiffEq(OneStep):
    """A method of torchdiffeq, see `torchdiffeq`; a step is one call of it between two levels."""

    method: str
    rtol: float
    atol: float
    frame: Frame
    adjoint: bool
    options: Mapping[str, Any] = field(hash=False)
    adjoint_options: Mapping[str, Any] = field(hash=False)
    adjoint_params: tuple[Tensor, ...] | None = field(compare=False)
    order: int
    differentiable: bool
    grid: Grid = field(default=natural)
    lands: ClassVar[bool] = False
    """Whether its steps can be told where to end."""

    def __post_init__(self) -> None:
        check_frame(self.frame)
        refuse_grouped(self, self.frame)
        check_tolerances(self.rtol, self.atol)

    def __repr__(self) -> str:
        tolerances = f", rtol={self.rtol:g}, atol={self.atol:g}" if isinstance(self, _OneCall) else ""
        rest = "".join(f", {k}={v!r}" for k, v in (("options", self.options), ("adjoint", self.adjoint)) if v)
        return f"torchdiffeq({self.method!r}{tolerances}, frame={self.frame}{rest})"

    @property
    def evals(self) -> int:
        """Evaluations of a step between two levels, where the method fixes them; a step itself counts them."""
        return {"midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}.get(self.method, 1)

    @property
    def convergence(self) -> int:
        """The method's order."""
        return self.order

    def init(self, model: Reverse, x: Tensor, now: Level) -> tuple[()]:
        """An empty carry."""
        check_reverse(self, model, 0.0)
        check_frame_fits(self, self.frame, model)
        check_one_clock(self, now)
        return ()

    def step(
        self, model: Reverse, x: Tensor, now: Level, next: Level, carry: tuple[()], noise: NoiseSource | None
    ) -> Step:
        """torchdiffeq from now to next; the step counts its evaluations."""
        path, evals = self.through(model, x, [now, next])
        return Step(path[-1], carry, evals=evals)

    def through(self, model: Reverse, x: Tensor, levels: Sequence[Level]) -> tuple[Tensor, int]:
        """The states `[n + 1, B, *S]` at `levels` (n + 1 of them, `[]` each) from x at the first, and the evaluations.

        Raises SolveError where torchdiffeq gives up, InvalidArgumentError where gradients would be lost.
        """
        import torchdiffeq as library

        self._check_gradients(model, x)
        flow = Flow(self.frame, model, x, levels)
        given: dict[str, Any] = {"options": self._given(flow, flow.clocks[[0, -1]])}
        if self.adjoint:  # which runs from each level to the one before it
            again = {k: v for k, v in self._given(flow, flow.clocks).items() if k != "norm"}
            given["adjoint_options"] = {**again, **self.adjoint_options}
            given["adjoint_params"] = adjoint_params(self, model, self.adjoint_params)
        call = library.odeint_adjoint if self.adjoint else library.odeint
        try:
            with warnings.catch_warnings():
                # scipy's, about the min_step that torchdiffeq passes to all of its solvers
                warnings.filterwarnings("ignore", "The following arguments have no effect", UserWarning)
                path = call(flow, flow.start, flow.clocks, method=self.method, rtol=self.rtol, atol=self.atol, **given)
        except AssertionError as error:  # how torchdiffeq says that it cannot go on
            raise self._failure(flow, str(error).splitlines()[0]) from error
        if len(path) != len(levels):
            raise self._failure(flow, "scipy ended before the last level")
        return flow.states(path), flow.evals

    def _given(self, flow: Flow, stops: Tensor) -> dict[str, Any]:
        """The options of one call, whose adaptive steps end at the clocks `stops`."""
        if not self.lands:
            return dict(self.options)
        flow.callback_accept_step = flow.reach  # type: ignore[attr-defined]
        norm = self.options.get("norm", _rms)
        # the first step is chosen by norms of y: without detaching it would be part of the graph, through y alone
        given = {**self.options, "norm": lambda y: norm(y.detach() if isinstance(y, Tensor) else y)}
        return {"max_num_steps": MAX_STEPS, "step_t": stops, **given}

    def _check_gradients(self, model: Reverse, x: Tensor) -> None:
        if self.differentiable or self.adjoint or not torch.is_grad_enabled():
            return
        net = network(model)
        if x.requires_grad or (net is not None and any(p.requires_grad for p in net.parameters())):
            raise InvalidArgumentError(
                f"{self} runs in numpy and gradients would be lost: call it under torch.no_grad(), or use adjoint=True"
            )

    def _failure(self, flow: Flow, reason: str) -> SolveError:
        level, x = flow.reached
        known = {"max_num_steps": Status.MAX_STEPS, "non-finite": Status.NONFINITE}
        status = next((kind for word, kind in known.items() if word in reason), Status.STEP_TOO_SMALL)
        return SolveError(
            f"{self} gave up at t={float(level.t):.6g} after {flow.evals} evaluations: {reason}. The state "
            "there is in this error's `partial`; raise rtol and atol, compute in float64, or use frame=sd.SIGMA",
            cut_off(flow.model.process, x, level, flow.evals, status),
        )


@dataclass(frozen=True, repr=False)
class _Whole(TorchDiffEq):
    """A method with a past, or with steps of its own: on a known grid it makes a single call, at the first step."""

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """A solver per step of the grid: the first one integrates, the others hand out what it found."""
        each = points(levels)
        return [_Part(self, each, k) for k in range(len(each) - 1)]


@dataclass(frozen=True, repr=False)
class _Adams(_Whole):
    """An Adams method, whose coefficients hold for equal steps alone."""

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """As `_Whole`. Raises InvalidArgumentError for steps that are not equal in the frame's clock."""
        steps = self.frame.clock(levels).diff()
        if float((steps / steps.mean() - 1).abs().max()) > 1e-6:
            raise InvalidArgumentError(
                f"{self} has the weights of equal steps, and these differ: leave grid out, use the grid "
                f"sd.adapters.Even({self.frame}), or an Adams method for any steps, sd.Multistep"
            )
        return super().on(model, levels)


@dataclass(frozen=True, repr=False)
class _OneCall(_Whole):
    """A method with steps of its own."""

    planned: ClassVar[int] = 1


@dataclass(frozen=True, repr=False)
class _Adaptive(_OneCall):
    """An adaptive method, whose steps end on the ends of the interval."""

    lands: ClassVar[bool] = True


@dataclass(frozen=True)
class _Part(Known):
    """Step k of a run that is made in one call; the carry is the path `[n + 1, B, *S]`."""

    levels: Sequence[Level]
    k: int

    def step(self, model: Reverse, x: Tensor, now: Level, next: Level, carry: Any, noise: NoiseSource | None) -> Step:
        method: TorchDiffEq = self.method
        path, evals = (carry, 0) if self.k else method.through(model, x, self.levels)
        return Step(path[self.k + 1], path, evals=evals)
