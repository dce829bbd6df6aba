"""Properties of a solver as a program: whose bits depend on what, what it may touch, how it fails."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.grids import check_times
from sdegen.sde import Level
from sdegen.solution import Status
from sdegen.testing.checks.claims import F64, SOLVER, Claim, network, noisy
from sdegen.testing.faults import faults
from sdegen.testing.guards import differing, global_state, mid_stream, nobody_could, peak_memory
from sdegen.testing.report import Measure, holds


def same(what: str, a: Tensor, b: Tensor) -> Measure:
    """The measure of two tensors that must have the same bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return holds(f"{what}: {list(a.shape)} of {a.dtype}, not {list(b.shape)} of {b.dtype}", False)
    return Measure(f"{what}: elements that differ", float(differing(a, b)))


class Run(NamedTuple):
    """A small solve: its number of steps, its batch, the seed of its starts and its noise."""

    steps: int
    batch: int
    seed: int


def _runs(subject: Claim) -> Any:
    import hypothesis.strategies as hs

    return hs.builds(Run, hs.integers(1, 5), hs.integers(1, 9), hs.integers(0, 2**31))


def _start(subject: Claim, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    seeds = noises.seeds(seed, batch)
    level = subject.process.level(subject.times(1)[0])
    return level.sigma * noises.normals(seeds, (2,), (1, 0, 0, 0), dtype=F64), seeds


@SOLVER.states("n steps make n evals evaluations, all inside [t_min, t_max]", given=_runs, examples=10)
def evaluations(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    times, exact = [], subject.model()

    class Watch:
        process = subject.process

        def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
            times.append(level.t)
            return exact(x, level, want)

    x, seeds = _start(subject, batch, seed)
    solution = subject.solve(x, n, model=Watch(), seeds=seeds)
    yield Measure("evaluations not declared", abs(len(times) - n * subject.solver.evals))
    yield Measure("NFE off", float((solution.nfe - n * subject.solver.evals).abs().max()))
    yield Measure("steps off", float((solution.accepted - n).abs().max()))
    low, high = float(torch.stack(times).min()), float(torch.stack(times).max())
    span = subject.times(n)
    yield Measure("beyond the grid", max(float(span[-1]) - low, high - float(span[0])))
    yield Measure("distance of the last time to the grid's end", float((solution.level.t - span[-1]).abs().max()))


@SOLVER.states("a stochastic solver draws noise, each normal once; any other draws none", given=_runs, examples=10)
def fresh_noise(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case.steps + 4, case.batch, case.seed
    drawn = []
    x, seeds = _start(subject, batch, seed)
    white, times = noises.White(seeds), subject.times(n)

    def watch(x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        drawn.append((float(now.t), float(next.t), tag))
        return white(x, now, next, tag)

    subject.solve(x, times, noise=watch)
    yield Measure("normals drawn again", float(len(drawn) - len(set(drawn))))
    yield holds("draws of a solver that says it is deterministic", subject.stochastic or not drawn)
    yield holds("no noise in a solver that says it is stochastic", not subject.stochastic or drawn)
    inside = [any(a >= now > next >= b for a, b in zip(times, times[1:])) for now, next, _ in drawn]
    yield Measure("draws that are not from a level of their step down to another", float(inside.count(False)))


@SOLVER.states("a row alone, in another order or beside a wild one has the same bits", given=_runs, examples=15)
def batch_independence(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    x, seeds = _start(subject, batch, seed)
    whole = subject.solve(x, n, seeds=seeds).x
    order = torch.argsort(noises.seeds(seed + 1, batch))
    yield same("rows in another order", subject.solve(x[order], n, seeds=seeds[order]).x, whole[order])
    row = seed % batch
    yield same("a row alone", subject.solve(x[row : row + 1], n, seeds=seeds[row : row + 1]).x, whole[row : row + 1])
    wild = x.clone()
    wild[row] *= 1e6
    others = torch.arange(batch) != row
    yield same("rows beside a wild one", subject.solve(wild, n, seeds=seeds).x[others], whole[others])


@SOLVER.states("two micro-batches together have the bits of the whole batch", given=_runs, examples=10)
def micro_batches(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    x, seeds = _start(subject, batch, seed)
    cut = seed % (batch + 1)
    parts = [subject.solve(x[part], n, seeds=seeds[part]).x for part in (slice(None, cut), slice(cut, None))]
    yield same("micro-batches", torch.cat(parts), subject.solve(x, n, seeds=seeds).x)


@SOLVER.states("the same seeds give the same bits, other seeds other samples", applies=noisy, given=_runs, examples=10)
def seeds(subject: Claim, case: Run) -> Iterator[Measure]:
    n, batch, seed = case
    x, own = _start(subject, batch, seed)
    first = subject.solve(x, n, seeds=own).x
    yield same("a second run", subject.solve(x, n, seeds=own).x, first)
    other = subject.solve(x, n, seeds=noises.seeds(seed + 1, batch)).x
    yield Measure("rows that other seeds leave as they are", float((other == first).all(1).sum()))
    shared = subject.solve(x[:1].expand(batch, 2), n, seeds=own[:1].expand(batch)).x
    yield same("rows of one start and one seed", shared, shared[:1].expand(batch, 2).contiguous())


@SOLVER.states("the layout of x in memory changes no bit")
def layout(subject: Claim) -> Iterator[Measure]:
    x = subject.start(5)
    whole = subject.solve(x, 4).x
    transposed = torch.empty(2, 5, dtype=F64).t().copy_(x)
    strided = torch.zeros(5, 6, dtype=F64)[:, ::3].copy_(x)
    yield same("transposed", subject.solve(transposed, 4).x, whole)
    yield same("strided", subject.solve(strided, 4).x, whole)


@SOLVER.states("the shape of a sample changes no bit: [B, 4], [B, 2, 2] and [B, 1, 4, 1] are one")
def sample_shape(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3, "widths")
    model = network(subject.process, 4)
    flat = subject.solve(x, 4, model=model).x

    def shaped(shape: tuple[int, ...]) -> Tensor:
        class Shaped:
            process = subject.process

            def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
                return model(x.flatten(1), level, want).reshape(x.shape)

        return subject.solve(x.reshape(3, *shape), 4, model=Shaped()).x.reshape(3, 4)

    for shape in ((2, 2), (1, 4, 1)):
        yield same(f"shape {shape}", shaped(shape), flat)


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
        before = global_state()
        subject.solve(x, 3)
        after = global_state()
    for name, value in before.items():
        yield holds(f"{name} changed", after[name] == value)


@SOLVER.states("a copy and a pickle run as the original; a run leaves the solver as it was")
def copies(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3)
    before = _attributes(subject.solver)
    whole = subject.solve(x, 4).x
    yield holds("a run changed the solver's attributes", _attributes(subject.solver) == before)
    yield same("a deep copy", subject.solve(x, 4, solver=copy.deepcopy(subject.solver)).x, whole)
    yield same("a second run", subject.solve(x, 4).x, whole)
    try:
        stored_bytes = pickle.dumps(subject.solver)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        # a lambda or local class in an option cannot be pickled by anyone; that is the option's affair
        yield holds(f"pickle: {error}", nobody_could(error))
        return
    yield same("a pickle", subject.solve(x, 4, solver=pickle.loads(stored_bytes)).x, whole)  # noqa: S301


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

    class Together:
        """Every evaluation, and every step's end, waits for those of the other threads: the solves interleave."""

        process = subject.process
        exact = subject.model()

        def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
            meet()
            return self.exact(x, level, want)

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
    reached = (call - 1) // subject.solver.evals
    yield Measure("good steps counted wrongly", abs(int(bad.accepted[row]) - reached))
    yield holds("a healthy row has a bad status", (bad.status[others] == Status.OK).all())


@SOLVER.states("the memory of a solve does not grow with its steps")
def constant_memory(subject: Claim) -> Iterator[Measure]:
    model = network(subject.process)
    x = subject.start(64)
    few, many = (peak_memory(lambda n=n: subject.solve(x, n, model=model)) for n in (6, 24))  # type: ignore[misc]
    grid = 24 * 5 * 8  # the levels of the grid themselves
    yield Measure("bytes at 24 steps over those at 6", many - few, grid + 0.02 * few)
