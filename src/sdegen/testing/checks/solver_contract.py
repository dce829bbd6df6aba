"""Properties of a solver as a program: what it may touch, what it carries, how it fails."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.grids import check_times
from sdegen.level import Level
from sdegen.loop.solution import Status
from sdegen.scores.model import Model
from sdegen.testing.checks.claims import F64, SOLVER, Claim, network
from sdegen.testing.checks.shared import leaves_alone, twins
from sdegen.testing.checks.solver_bits import same
from sdegen.testing.faults import faults
from sdegen.testing.guards import mid_stream, peak_memory
from sdegen.testing.report import Measure, holds


@SOLVER.states("a step edits neither x, nor the levels, nor the carry it was given")
def inputs_untouched(subject: Claim) -> Iterator[Measure]:
    model, x = subject.model(), subject.start(3)
    white = noises.White(noises.seeds(9, 3))
    levels = subject.levels(3)
    carry = subject.solver.init(model, x, levels[0])
    for now, next in zip(levels, levels[1:]):
        given = [*leaves(x), *leaves(now), *leaves(next), *leaves(carry)]
        before = [v.clone() for v in given]
        step = subject.solver.step(model, x, now, next, carry, white)
        for a, b in zip(given, before):
            yield same("what the step was given", a, b)
        x, carry = step.x, step.carry


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a carry, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, (tuple, list)) else []


@SOLVER.states("no global generator moves, no mode of torch changes")
def global_state_untouched(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3)
    with mid_stream():
        changes = list(leaves_alone(lambda: subject.solve(x, 3)))
    yield from changes


@SOLVER.states("a copy and a pickle run as the original; a run leaves the solver as it was")
def copies(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3)
    before = _attributes(subject.solver)
    whole = subject.solve(x, 4).x
    yield holds("a run changed the solver's attributes", _attributes(subject.solver) == before)
    copied, failures = twins(subject.solver)
    yield from failures
    for twin in [*copied, subject.solver]:
        yield same("a copy, or a second run", subject.solve(x, 4, solver=twin).x, whole)


def _attributes(solver: Any) -> str:
    """What a solver holds, tensors in full and addresses left out."""
    held = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in getattr(solver, "__dict__", {}).items()}
    return re.sub(r" at 0x[0-9a-f]+", "", repr(held))


@SOLVER.states("four threads, interleaved at every evaluation, share one solver and get its bits")
def threads(subject: Claim) -> Iterator[Measure]:
    starts = [subject.start(3) * (1 + 0.1 * k) for k in range(4)]
    alone = [subject.solve(x, 4).x for x in starts]
    found: list[Any] = [None] * 4
    meeting = threading.Barrier(4)

    def meet(*seen: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=10)

    class Together(Model):
        """Every evaluation, and every step's end, waits for those of the other threads: the solves interleave."""

        process = subject.process
        inner = subject.model()

        def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
            meet()
            return self.inner(x, level, want)

    def work(i: int) -> None:
        try:
            found[i] = subject.solve(starts[i], 4, model=Together(), observe=meet).x
        except Exception as error:
            found[i] = error
            meeting.abort()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result, own in zip(found, alone):
        if isinstance(result, Tensor):
            yield same("a thread's result", result, own)
        else:
            yield holds(f"in a thread: {type(result).__name__}: {result}", False)


@SOLVER.states("the carry has one structure, shape and dtype from init to the last step")
def carry_structure(subject: Claim) -> Iterator[Measure]:
    model, x = subject.model(), subject.start(3)
    white, levels = noises.White(noises.seeds(9, 3)), subject.levels(4)
    carry = subject.solver.init(model, x, levels[0])
    first = _structure(carry)
    for k, (now, next) in enumerate(zip(levels, levels[1:])):
        step = subject.solver.step(model, x, now, next, carry, white)
        yield holds(
            f"the carry of step {k + 1} is {_structure(step.carry)}, not {first}", _structure(step.carry) == first
        )
        x, carry = step.x, step.carry


def _structure(tree: Any) -> str:
    if isinstance(tree, Tensor):
        return f"{list(tree.shape)}:{str(tree.dtype).removeprefix('torch.')}"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k}: {_structure(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        return type(tree).__name__ + "(" + ", ".join(_structure(v) for v in tree) + ")"
    return type(tree).__name__


def _memoryless(subject: Claim) -> str | None:
    return f"it carries {subject.solver.memory} past evaluations" if subject.solver.memory else None


@SOLVER.states("a solver that claims no memory gives the same with a fresh carry each step", applies=_memoryless)
def memory(subject: Claim) -> Iterator[Measure]:
    model, x = subject.model(), subject.start(3)
    white, levels = noises.White(noises.seeds(9, 3)), subject.levels(4)
    carry, y = subject.solver.init(model, x, levels[0]), x
    for now, next in zip(levels, levels[1:]):
        step = subject.solver.step(model, x, now, next, carry, white)
        x, carry = step.x, step.carry
        y = subject.solver.step(model, y, now, next, subject.solver.init(model, y, now), white).x
        yield same("with a fresh carry", y, x)


def _grids(subject: Claim) -> Any:
    import hypothesis.strategies as hs

    from sdegen.testing import strategies as st

    return hs.tuples(st.processes(), hs.integers(1, 60))


@SOLVER.states("the solver's own grid has n steps, falls strictly, and runs exactly from t_max to t_min", given=_grids)
def own_grid(subject: Claim, case: Any) -> Iterator[Measure]:
    process, n = case
    times = check_times(subject.solver.grid(process, n), process)
    yield Measure("steps off", abs(len(times) - 1 - n))
    yield Measure("ends off", abs(float(times[0]) - process.t_max) + abs(float(times[-1]) - process.t_min))
    yield holds("it does not fall strictly", (times.diff() < 0).all())


@SOLVER.states("an empty batch stays empty")
def empty_batch(subject: Claim) -> Iterator[Measure]:
    out = subject.solve(subject.start(0), 3)
    yield holds(f"shape {list(out.x.shape)}", out.x.shape == (0, 2))


@SOLVER.states("a level for each row gives what the rows' own solves give")
def levels_per_row(subject: Claim) -> Iterator[Measure]:
    times = torch.tensor([[0.9, 0.5, 0.2], [0.8, 0.7, 0.3], [0.6, 0.3, 0.1]], dtype=F64)
    low, high = (float(v) for v in (subject.times(1)[1], subject.times(1)[0]))
    times = low + (high - low) * times
    x, model = subject.start(3), subject.model()
    white = noises.White(noises.seeds(9, 3))
    try:
        together = _march(subject, model, x, [subject.process.level(t) for t in times.T], white)
    except RuntimeError as error:
        advice = "weights of a step may be [B]: sd.combine((weight, x), ...) shapes them"
        yield holds(f"{str(error).splitlines()[0]}; {advice}", False)
        return
    for i in range(3):
        own = noises.White(white.seeds[i : i + 1])
        alone = _march(subject, model, x[i : i + 1], [subject.process.level(t) for t in times[i]], own)
        # vectorised and scalar functions of a level may round differently: its weights, by an ulp each
        yield Measure("row against its own solve", float((together[i] - alone[0]).abs().max()), 1e-12)


def _march(subject: Claim, model: Any, x: Tensor, levels: list[Level], noise: Any) -> Tensor:
    carry = subject.solver.init(model, x, levels[0])
    for now, next in zip(levels, levels[1:]):
        step = subject.solver.step(model, x, now, next, carry, noise)
        x, carry = step.x, step.carry
    return x


def _fault_cases(subject: Claim) -> Any:
    import hypothesis.strategies as hs

    calls = hs.integers(1, 4 * subject.solver.evals)
    return hs.builds(Fault, hs.sampled_from(["nan", "inf", "-inf"]), hs.integers(0, 4), calls)


class Fault(NamedTuple):
    """A fault of `faults`, in a batch of five and four steps."""

    kind: str
    sample: int
    call: int


@SOLVER.states("a NaN or Inf ends its own row; the others keep their bits", given=_fault_cases, examples=15)
def fault_isolation(subject: Claim, case: Fault) -> Iterator[Measure]:
    kind, row, call = case
    model, x = subject.model(), subject.start(5)
    good = subject.solve(x, 4, model=model)
    bad = subject.solve(x, 4, model=faults(model, kind, sample=row, call=call))
    others = torch.arange(5) != row
    yield same("the other rows", bad.x[others], good.x[others])
    yield holds("a NaN or Inf from the score vanished: the row counts as OK", int(bad.status[row]) == Status.NONFINITE)
    yield Measure("values that are not finite", float((~bad.x.isfinite()).sum()))
    spent = list(itertools.accumulate(subject.evals(4), initial=subject.primes))[1:]
    reached = sum(after < call for after in spent)
    # a slope that is carried to the next step can fail after its own step was good
    spare = int(bad.accepted[row]) - reached
    yield Measure("good steps counted wrongly", 0 if 0 <= spare <= subject.primes else abs(spare))
    yield holds("a healthy row has a bad status", (bad.status[others] == Status.OK).all())


@SOLVER.states("the memory of a solve does not grow with its steps")
def constant_memory(subject: Claim) -> Iterator[Measure]:
    model = network(subject.process)
    x = subject.start(1 << 12)  # large beside what the weights of all steps take while they are made
    few, many = (peak_memory(lambda n=n: subject.solve(x, n, model=model)) for n in (12, 36))  # type: ignore[misc]
    yield Measure("bytes at 36 steps over those at 12", many - few, 0.25 * x.nbytes)
