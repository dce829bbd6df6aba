"""The loop that runs any solver under any controller, and what it hands back."""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from sdegen.control import Controller, Fixed
from sdegen.errors import InvalidArgumentError, InvalidTypeError, SolveError, readable, unknown_keywords
from sdegen.noise import NoiseSource
from sdegen.process import SDE, Level, ReverseSDE
from sdegen.solvers.base import Reverse, Solver, Step

P = ParamSpec("P")
R = TypeVar("R")


class Status(enum.IntEnum):
    """How a sample ended."""

    OK = 0
    NONFINITE = 1
    """The score or the state became NaN or Inf; the sample stays where it last was finite."""
    STOPPED = 2
    """The observer ended the solve before the last level."""


class Progress(NamedTuple):
    """What an observer sees after each step; x `[B, *S]` is the solver's own and must not be edited."""

    step: int
    steps: int | None
    x: Tensor
    level: Level
    nfe: int


class _Stop(enum.Enum):
    STOP = "stop"


STOP = _Stop.STOP
"""What an observer returns to end the solve after this step."""

Observer = Callable[[Progress], Any]


class Solution(NamedTuple):
    """The result of a solve; stats and status are per sample, `[B]`, on x's device.

    x `[B, *S]`; level: the one each sample reached (fields `[B]`); nfe: network evaluations; accepted, rejected: steps;
    status: see `Status`; path: what the observer returned, step by step (None left out).
    """

    x: Tensor
    level: Level
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    path: list[Any]

    @property
    def ok(self) -> Tensor:
        """Which samples did not fail, `[B]` bool."""
        return self.status != Status.NONFINITE


def strict_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with an unknown keyword answered by a TypeError that names the closest known one."""
    known = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= known:
            raise unknown_keywords(function.__name__, kwargs.keys() - known, known)
        return function(*args, **kwargs)

    return call


@strict_keywords
def solve(
    model: Reverse,
    x: Tensor,
    control: Controller | Tensor | Sequence[float],
    solver: Solver,
    *,
    noise: NoiseSource | None = None,
    observe: Observer | None = None,
    on_failure: str = "raise",
    progress: bool = False,
) -> Solution:
    """Run `solver` on `model` from x `[B, *S]` over the levels that `control` chooses.

    model: a `ScoreModel` (or what answers like one), or a `ReverseSDE`. control: a controller, or times `[n + 1]`,
    decreasing towards data (increasing ones take a deterministic solver from data to noise). noise: needed by
    stochastic solvers, `White(seeds)`. observe: called with a `Progress` after each step; what it returns is kept in
    `Solution.path`, and `STOP` ends the solve. on_failure: "raise" a `SolveError` at the end if a sample became NaN or
    Inf (its `partial` is the solution with every other sample finished), or "return" the solution with its status.

    Gradients flow if they are enabled. Half-precision states are stepped in float32 arithmetic. Everything is checked
    before the first evaluation (`InvalidArgumentError`, `InvalidTypeError`); an exception in the score passes as it is,
    with a note of step and time and, as its attribute `partial`, the solution so far.
    """
    controller: Controller = Fixed(control) if isinstance(control, (Tensor, Sequence)) else control
    _check(model, x, controller, solver, noise, on_failure, observe)
    now, next, state = controller.init(model.process, x)
    x = x.clone(memory_format=torch.contiguous_format)
    run = _Run(model.process, x, now, solver.evals)
    if x.shape[0] == 0:
        return run.solution()
    steps = getattr(controller, "steps", None)
    with _guard(run), progress_bar(steps, progress) as bar:
        carry = solver.init(model, x, now)
        while controller.running(state):
            run.trying = now
            step = solver.step(model, run.x, now, next, carry, noise)
            accept, after, beyond, state = controller.update(model.process, state, run.x, now, next, step)
            run.take(step, next, accept)
            carry = _keep(accept, step.carry, carry)
            now, next = after, beyond
            bar(solver.evals)
            if observe is not None and _observed(observe, run, steps):
                break
        else:
            run.done = True
    return ended(run.solution(), on_failure)


class _Run:
    """The mutable side of one solve: the state, where each row stands and how it fares."""

    def __init__(self, process: SDE, x: Tensor, now: Level, evals: int) -> None:
        batch = x.shape[0]
        self.process = process
        self.x = x
        self.evals = evals
        self.t = x.new_zeros(batch, dtype=torch.float64) + now.t
        self.alive = x.new_ones(batch, dtype=torch.bool)
        self.tried = x.new_zeros(batch, dtype=torch.int32)
        self.accepted = x.new_zeros(batch, dtype=torch.int32)
        self.steps = 0
        self.done = False
        self.level = self.trying = now
        self.path: list[Any] = []

    def take(self, step: Step, next: Level, accept: bool | Tensor) -> None:
        """Move the rows whose step is accepted and finite; freeze for good those that are not finite."""
        self.tried = self.tried + self.alive
        # the largest magnitude is NaN or Inf just where a value is, and cannot overflow
        flat = step.x.detach().flatten(1)
        size = flat.abs().amax(1) if flat.shape[1] else None
        self.alive = self.alive if size is None else self.alive & size.isfinite()
        moved = self.alive if accept is True else self.alive & accept
        self.x = _keep(moved, step.x, self.x)
        self.t = torch.where(moved, next.t, self.t)
        self.accepted = self.accepted + moved
        self.level = next
        self.steps += 1

    def solution(self) -> Solution:
        ended = int(Status.OK if self.done else Status.STOPPED)
        status = torch.where(self.alive, ended, int(Status.NONFINITE)).to(torch.int8)
        # of what a failed row tried, its last step was neither accepted nor rejected
        rejected = self.tried - self.accepted - (~self.alive).to(torch.int32)
        level, nfe = self.process.level(self.t), self.tried * self.evals
        return Solution(self.x, level, nfe, self.accepted, rejected, status, self.path)


def _keep(accept: bool | Tensor, new: Any, old: Any) -> Any:
    """`new` in the rows where `accept` `[B]`, `old` in the others, leaf by leaf."""
    if isinstance(accept, bool):
        return new if accept else old
    if isinstance(new, Tensor):
        return torch.where(accept.reshape(-1, *(1,) * (new.ndim - 1)), new, old) if new.ndim else new
    if isinstance(new, tuple):
        leaves = [_keep(accept, n, o) for n, o in zip(new, old)]
        return type(new)(*leaves) if hasattr(new, "_fields") else tuple(leaves)
    return new


def _observed(observe: Observer, run: _Run, steps: int | None) -> bool:
    """Show the step to the observer, keep its answer; whether it asks to stop."""
    answer = observe(Progress(run.steps, steps, run.x, run.level, run.steps * run.evals))
    if answer is STOP:
        return True
    if answer is not None:
        run.path.append(answer)
    return False


@contextlib.contextmanager
def _guard(run: _Run) -> Iterator[None]:
    """Let exceptions pass unchanged, with a note of where, and the solution so far as `partial`."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # a note that cannot be made must not hide the error
            when = f"t={float(run.trying.t):.6g}" if run.trying.t.ndim == 0 else f"t in {run.trying.t.tolist()}"
            note = f"sdegen: in step {run.steps + 1}, at {when}, after {run.steps * run.evals} evaluations"
            error.__notes__ = [*getattr(error, "__notes__", []), note]
            if not hasattr(error, "partial"):
                error.partial = run.solution()  # type: ignore[attr-defined]
        raise


def ended(solution: Solution, on_failure: str) -> Solution:
    """The solution, or a SolveError that holds it if samples failed and the caller did not ask for them."""
    if on_failure == "return" or not readable(solution.status):
        return solution
    failed = (solution.status == Status.NONFINITE).nonzero().flatten().tolist()
    if not failed:
        return solution
    shown = ", ".join(str(i) for i in failed[:8]) + (", ..." if len(failed) > 8 else "")
    first = failed[0]
    raise SolveError(
        f"{len(failed)} of {len(solution.status)} samples became NaN or Inf (rows {shown}); row {first} after "
        f"{int(solution.accepted[first])} good steps, at t={float(solution.level.t[first]):.6g}. The others are "
        'finished, in this error\'s `partial`; solve(..., on_failure="return") returns them with their status',
        solution,
    )


def _check(
    model: Any, x: Any, control: Any, solver: Any, noise: NoiseSource | None, on_failure: str, observe: Any
) -> None:
    """Every mistake that can be seen before the first evaluation."""
    if not hasattr(model, "process") or not (isinstance(model, ReverseSDE) or callable(model)):
        raise InvalidTypeError(
            f"model must be a ScoreModel or a ReverseSDE, got {model!r}; wrap a callable as ScoreModel(process, net)"
        )
    if isinstance(solver, type) or not all(hasattr(solver, name) for name in ("init", "step", "evals")):
        raise InvalidTypeError(f"solver must be a solver such as sd.ddim(), got {solver!r}")
    if not all(hasattr(control, name) for name in ("init", "running", "update")):
        raise InvalidTypeError(f"control must be a controller or a tensor of times, got {control!r}")
    if on_failure not in ("raise", "return"):
        raise InvalidArgumentError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    check_observer(observe)
    check_state(x)
    if getattr(solver, "stochastic", False):
        if noise is None:
            raise InvalidArgumentError(
                f"{solver} draws noise: give noise=sd.White(seeds), with seeds=sd.noise.seeds(0, {x.shape[0]})"
            )
        if isinstance(control, Fixed) and not control.towards_data:
            raise InvalidArgumentError(f"{solver} is stochastic and runs only towards data: times must decrease")
    warn_if_training(model)


def check_observer(observe: Any) -> None:
    """Raises InvalidTypeError unless observe is None or can be called."""
    if observe is not None and not callable(observe):
        raise InvalidTypeError(f"observe must be a callable that takes a Progress, got {observe!r}")


def check_state(x: Any) -> None:
    """Raises unless x is a finite floating tensor `[B, *S]` with at least one sample dimension."""
    if not isinstance(x, Tensor):
        raise InvalidTypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise InvalidTypeError(f"x must be floating point, got {x.dtype}; convert it, x.float()")
    if x.ndim < 2:
        raise InvalidArgumentError(
            f"x must be [B, *S], a batch and at least one sample dimension, got shape {list(x.shape)}; "
            "one sample of D numbers is x[None], B samples of one number are x[:, None]"
        )
    if readable(x):
        bad = (~x.detach().flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise InvalidArgumentError(f"x is NaN or Inf in rows {bad[:8]} of {x.shape[0]}, before the first step")


def warn_if_training(model: Any) -> None:
    """One warning for a network in training mode: dropout and batch norm would make the samples noisy and coupled."""
    net = getattr(getattr(model, "score", model), "module", None)
    if isinstance(net, torch.nn.Module) and net.training and any(True for _ in net.modules()):
        warnings.warn(
            f"the network {type(net).__name__} is in training mode, so dropout and batch norm are active; "
            "call net.eval() before sampling",
            stacklevel=4,
        )


@contextlib.contextmanager
def progress_bar(steps: int | None, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """A function that counts one step and its evaluations on a tqdm bar; `shown=None`: only if tqdm is there."""
    if shown is False:
        yield lambda evals: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if shown:
            raise InvalidArgumentError("progress=True needs tqdm: pip install 'sdegen[progress]'") from None
        yield lambda evals: None
        return
    nfe = 0
    with tqdm(total=steps, unit="step") as bar:

        def count(evals: int) -> None:
            nonlocal nfe
            nfe += evals
            bar.set_postfix(NFE=nfe, refresh=False)
            bar.update()

        yield count
