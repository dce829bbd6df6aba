"""Gradients through a solve: against finite differences, per sample, and without the steps between checkpoints."""

from __future__ import annotations

import pytest
import torch
from problems import F64

import sdegen as sd

VP = sd.VP(t_min=0.1)
BATCH = 4
NOISE = sd.White(sd.noise.seeds(2, BATCH))
SOLVERS = {
    "ddim": sd.ddim(),
    "dpmpp3": sd.dpmpp(3),
    "unipc3": sd.unipc(3),
    "deis": sd.deis(3),
    "heun": sd.heun(),
    "rk4 in t": sd.RungeKutta(sd.tableaus.RK4, sd.TIME),
    "rk4 in data": sd.RungeKutta(sd.tableaus.RK4, sd.DATA),
    "dpm3": sd.dpm(3),
    "euler_maruyama": sd.euler_maruyama(),
    "stochastic_heun": sd.stochastic_heun(),
    "dpmpp_sde": sd.dpmpp_sde(2),
    "pc": sd.pc(),
}


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Net(torch.nn.Module):
    """A small smooth network of x and time; predicts the noise."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(normals(3, 8, seed=1) * 0.5)
        self.last = torch.nn.Parameter(normals(8, 2, seed=2) * 0.5)

    def forward(self, x, t):
        return torch.tanh(torch.cat([x, t[:, None]], 1) @ self.first) @ self.last + 0.3 * x


X = normals(BATCH, 2, seed=3)
COTANGENT = normals(BATCH, 2, seed=4)


def model():
    return sd.ScoreModel(VP, Net().eval(), "noise")


def loss(model, x, solver, steps=8, **options):
    times = sd.grids.by_snr(VP, steps)
    noise = NOISE if solver.stochastic else None
    return (sd.solve(model, x, times, solver, noise=noise, **options).x * COTANGENT).sum()


def slope(f, h=1e-4):
    """f'(0) by central differences of order 6."""
    return sum(w * (float(f(k * h)) - float(f(-k * h))) for k, w in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))) / h


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_of_x(solver):
    x, direction = X.clone().requires_grad_(), normals(BATCH, 2, seed=5)
    net = model()
    loss(net, x, solver).backward()
    with torch.no_grad():
        known = slope(lambda h: loss(net, X + h * direction, solver))
    assert float((x.grad * direction).sum()) == pytest.approx(known, rel=1e-7)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_of_the_network(solver):
    net = model()
    directions = [normals(*p.shape, seed=6 + k) for k, p in enumerate(net.net.parameters())]
    loss(net, X, solver).backward()
    known = [p.grad for p in net.net.parameters()]
    start = [p.detach().clone() for p in net.net.parameters()]

    @torch.no_grad()
    def moved(h):
        for p, s, d in zip(net.net.parameters(), start, directions):
            p.copy_(s + h * d)
        return loss(net, X, solver)

    along = sum(float((g * d).sum()) for g, d in zip(known, directions))
    assert along == pytest.approx(slope(moved), rel=1e-7)


@pytest.mark.parametrize("name", ["dpmpp3", "dpm3", "unipc3", "heun", "rk4 in t", "euler_maruyama", "dpmpp_sde"])
def test_of_the_process(name):
    """alpha and sigma may be learned: the weights of all steps depend on them."""
    net = Net()

    def run(theta):
        process = sd.Process.from_functions(
            lambda t: torch.cos(t) + 0 * theta, lambda t: torch.sin(t) * (1 + theta * t), t_min=0.1, t_max=1.4
        )
        times = sd.grids.by_time(process, 6)
        solver = SOLVERS[name]
        noise = NOISE if solver.stochastic else None
        return (
            sd.solve(sd.ScoreModel(process, net.eval(), "noise"), X, times, solver, noise=noise).x * COTANGENT
        ).sum()

    theta = torch.tensor(0.3, dtype=F64, requires_grad=True)
    run(theta).backward()
    with torch.no_grad():
        known = slope(lambda h: run(torch.tensor(0.3 + h, dtype=F64)))
    assert float(theta.grad) == pytest.approx(known, rel=1e-6)


def test_of_times_is_refused():
    times = sd.grids.by_snr(VP, 4).requires_grad_()
    with pytest.raises(sd.InvalidArgumentError, match="require gradients"):
        sd.solve(model(), X, times, sd.ddim())


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_batch_mates_do_not_leak(solver):
    """A sample's end depends on its own start alone, exactly; and its gradient is that of the sample alone."""
    net, x = model(), X.clone().requires_grad_()
    times = sd.grids.by_snr(VP, 5)
    noise = NOISE if solver.stochastic else None
    (sd.solve(net, x, times, solver, noise=noise).x[1] * COTANGENT[1]).sum().backward()
    assert torch.equal(x.grad[[0, 2, 3]], torch.zeros(3, 2, dtype=F64))
    assert (x.grad[1] != 0).any()
    own = X[1:2].clone().requires_grad_()
    alone = sd.White(NOISE.seeds[1:2]) if solver.stochastic else None
    (sd.solve(net, own, times, solver, noise=alone).x[0] * COTANGENT[1]).sum().backward()
    torch.testing.assert_close(own.grad[0], x.grad[1], rtol=1e-12, atol=1e-14)


def test_of_a_sample_beside_one_that_fails():
    def broken(x, t):
        return torch.where(x[:, :1] > 50.0, float("nan"), -0.5 * x)

    x = X.clone()
    x[2] = 90.0
    x.requires_grad_()
    solution = sd.solve(sd.ScoreModel(VP, broken), x, [1.0, 0.6, 0.3], sd.ddim(), on_failure="return")
    assert solution.status.tolist() == [0, 0, sd.Status.NONFINITE, 0]
    solution.x[[0, 1, 3]].sum().backward()
    assert x.grad[[0, 1, 3]].isfinite().all()
    assert (x.grad[[0, 1, 3]] != 0).all()


def test_sample_and_encode_keep_no_graph():
    net = model()
    assert not sd.sample(net, (2, 2), steps=3, seed=0).requires_grad
    assert not sd.encode(net, X.clone().requires_grad_(), steps=3).requires_grad


# checkpoints


def gradients(solver, steps, **options):
    net, x = model(), X.clone().requires_grad_()
    loss(net, x, solver, steps, **options).backward()
    return [x.grad, *(p.grad for p in net.net.parameters())]


@pytest.mark.parametrize("every", [1, 3, 8, 100])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_checkpoints_change_no_gradient(solver, every):
    for ours, plain in zip(gradients(solver, 8, checkpoint=every), gradients(solver, 8)):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["unipc3", "rk4 in t", "euler_maruyama"])
def test_checkpoints_change_nothing_else(name):
    solver = SOLVERS[name]
    noise = NOISE if solver.stochastic else None
    plain, ours = (
        sd.solve(model(), X, sd.grids.by_snr(VP, 7), solver, noise=noise, **options)
        for options in ({}, {"checkpoint": 3})
    )
    assert torch.equal(ours.x, plain.x)
    for a, b in zip(ours[2:6], plain[2:6]):
        assert torch.equal(a, b)


def kept(solver, steps, **options):
    """Bytes of the graph between forward and backward: what autograd packs, and what checkpoints hold of states."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(model(), X.clone().requires_grad_(), solver, steps, **options)
    del value
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["dpmpp3", "rk4 in t", "euler_maruyama"])
def test_checkpoints_forget_the_steps_between(name):
    """What autograd saves does not grow with the steps between checkpoints; without them it grows in proportion."""
    solver = SOLVERS[name]
    few, many = (kept(solver, n, checkpoint=n // 4) for n in (16, 128))
    assert many <= few
    plain = [kept(solver, n) for n in (16, 128)]
    assert plain[1] > 6 * plain[0]
    assert plain[0] > 4 * few


def test_evaluations_are_made_twice_and_counted_once():
    calls = []

    class Counted(Net):
        def forward(self, x, t):
            calls.append(float(t[0]))
            return super().forward(x, t)

    net, x = sd.ScoreModel(VP, Counted().eval(), "noise"), X.clone().requires_grad_()
    solution = sd.solve(net, x, sd.grids.by_snr(VP, 12), sd.dpmpp(2), checkpoint=4)
    assert solution.nfe.tolist() == [12] * BATCH
    assert len(calls) == 12
    solution.x.sum().backward()
    assert len(calls) == 24
