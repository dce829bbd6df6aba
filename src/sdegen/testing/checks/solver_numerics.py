"""Properties of a solver's arithmetic: precision, derivatives, compilation, waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdegen import noise as noises
from sdegen.level import Level
from sdegen.loop.control import Fixed
from sdegen.loop.fixed import run
from sdegen.solvers.base import Solver, Step
from sdegen.solvers.compose import Wrapper
from sdegen.testing.checks.claims import F64, SOLVER, Claim, network
from sdegen.testing.checks.shared import host_reads
from sdegen.testing.checks.solver_bits import same
from sdegen.testing.report import Measure, holds

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@SOLVER.states("a fixed grid never waits for the device: no value is read on the host")
def no_host_reads(subject: Claim) -> Iterator[Measure]:
    control, model, x = Fixed(subject.times(4)), subject.model(), subject.start(3)
    shapes: list[torch.Size] = []

    def solve(mode: FakeTensorMode) -> None:
        white = noises.White(mode.from_tensor(noises.seeds(0, 3)))
        shapes.append(run(model, mode.from_tensor(x), control, subject.solver, white).x.shape)

    yield host_reads(solve)
    yield holds("the shape changed", shapes[0] == x.shape)


class _Nudged(Wrapper):
    """A solver whose step k moves row k by a rounding of x: the responses bound the error of rounding x each step."""

    def __init__(self, solver: Solver, unit: float) -> None:
        self.solver, self.unit, self.count = solver, unit, 0

    def step(self, model: Any, x: Tensor, now: Level, next: Level, carry: Any, noise: Any) -> Step:
        step: Step = self.solver.step(model, x, now, next, carry, noise)
        self.count += 1
        kick = torch.zeros_like(x)
        kick[self.count] = self.unit * step.x[self.count].abs()
        return step._replace(x=step.x + kick)


@SOLVER.states("a state keeps its dtype, near the float64 result: error <= 16 |dx_n/dx_k x_k|_2 eps")
def dtypes(subject: Claim) -> Iterator[Measure]:
    n, model = 8, subject.model()
    x = subject.start(1).expand(n + 1, 2).to(torch.float16).to(F64)
    seeds = noises.seeds(9, 1).expand(n + 1)
    exact = subject.solve(x, n, model=model, seeds=seeds).x[0]
    for dtype in DTYPES:
        eps = torch.finfo(dtype).eps
        # roundings of x, of the score's output and of the noise are independent from step to step: their responses add
        # in quadrature, and each is at most eps/2; 16 of what x alone gives leaves room for all three
        nudged = subject.solve(x, n, model=model, seeds=seeds, solver=_Nudged(subject.solver, 1e-7)).x
        bound = (nudged[1:] - exact).norm(dim=0).max() * eps / 1e-7 + eps * exact.abs().max()
        out = subject.solve(x[:1].to(dtype), n, model=model, seeds=seeds[:1]).x
        yield holds(f"the result of {dtype} is {out.dtype}", out.dtype == dtype)
        yield Measure(f"error in {dtype}", float((out[0].double() - exact).abs().max()), 16 * float(bound))


@SOLVER.states("derivatives flow through a solve: forward mode = reverse mode = finite differences")
def gradients(subject: Claim) -> Iterator[Measure]:
    x, model = subject.start(2), network(subject.process)
    direction = torch.cos(torch.arange(4, dtype=F64)).reshape(2, 2)

    def final(y: Tensor) -> Tensor:
        return subject.solve(y, 3, model=model).x

    forward: Tensor = torch.func.jvp(final, (x,), (direction,))[1]
    at = x.clone().requires_grad_()
    weight = torch.sin(torch.arange(4, dtype=F64) + 1).reshape(2, 2)
    (backward,) = torch.autograd.grad((final(at) * weight).sum(), at)
    h = 1e-5
    # central differences: h^2 of the third derivative, of size 1, and eps/h of the values
    numeric = (final(x + h * direction) - final(x - h * direction)) / (2 * h)
    size = float(1 + numeric.abs().max())
    yield Measure("forward mode against differences", float((forward - numeric).abs().max()) / size, 1e-7)
    pairing = float((backward * direction).sum() - (weight * forward).sum())
    yield Measure("reverse mode against forward mode", abs(pairing) / size, 1e-10)


@SOLVER.states("gradients reach the network's parameters")
def parameter_gradients(subject: Claim) -> Iterator[Measure]:
    from sdegen.scores.model import ScoreModel

    x = subject.start(2)

    def final(scale: Tensor) -> Tensor:
        model = ScoreModel(subject.process, lambda x, t: scale * torch.tanh(x), "noise")
        return subject.solve(x, 3, model=model).x.sum()

    scale = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(final(scale), scale)
    h = 1e-5
    with torch.no_grad():
        numeric = float(final(scale + h) - final(scale - h)) / (2 * h)
    yield Measure("gradient against differences", abs(float(gradient) - numeric) / (1 + abs(numeric)), 1e-7)


@SOLVER.states("no_grad and inference mode change no bit, and no_grad keeps no graph")
def grad_modes(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3)
    whole = subject.solve(x, 3).x
    with torch.no_grad():
        quiet = subject.solve(x.clone().requires_grad_(), 3).x
    with torch.inference_mode():
        inference = subject.solve(x.clone(), 3).x.clone()
    yield same("under no_grad", quiet, whole)
    yield holds("a graph was kept under no_grad", not quiet.requires_grad)
    yield same("in inference mode", inference, whole)


@SOLVER.states("torch.func.vmap over states is the loop over them")
def vmap(subject: Claim) -> Iterator[Measure]:
    x = torch.stack([subject.start(3), subject.start(3) * 0.5])
    model = network(subject.process)
    mapped = torch.func.vmap(lambda y: subject.solve(y, 3, model=model).x)(x)
    for got, y in zip(mapped, x):
        # batched and plain kernels may order a sum differently
        gap = float((got - subject.solve(y, 3, model=model).x).abs().max())
        yield Measure("mapped against looped", gap, 1e-12)


@SOLVER.states("the default dtype changes no bit")
def default_dtype(subject: Claim) -> Iterator[Measure]:
    x = subject.start(3, dtype=torch.float32)
    model = network(subject.process)
    whole = subject.solve(x, 3, model=model).x
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        other = subject.solve(x, 3, model=model).x
    finally:
        torch.set_default_dtype(before)
    yield same("with float64 as the default", other, whole)


@SOLVER.states("a step compiles to one graph, which serves every step and gives eager's numbers")
def one_graph(subject: Claim) -> Iterator[Measure]:
    from torch._dynamo.testing import CompileCounter  # takes seconds to import

    torch._dynamo.reset()
    model, levels = network(subject.process), subject.levels(4)
    solver = subject.solver.for_steps(4)
    white, counter = noises.White(noises.seeds(9, 3)), CompileCounter()

    def step(x: Tensor, carry: Any, now: Level, next: Level) -> Step:
        return solver.step(model, x, now, next, carry, white)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    x = y = subject.start(3)
    carry = mine = solver.init(model, x, levels[0])
    try:
        for now, next in zip(levels, levels[1:]):
            out, own = compiled(x, carry, now, next), step(y, mine, now, next)
            x, carry, y, mine = out.x, out.carry, own.x, own.carry
    except Exception as error:
        yield holds(f"it does not compile: {type(error).__name__}: {str(error).splitlines()[0]}", False)
        return
    finally:
        torch._dynamo.reset()
    # first steps that are made in another way are another graph, and one more while they are counted
    yield Measure("graphs more than one", float(counter.frame_count - 1), 2.0 if solver.starting else 0.0)
    yield Measure("compiled against eager", float((x - y).abs().max()), 1e-12)
