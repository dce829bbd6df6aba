"""The two networks: shapes, rows, conditions, derivatives of every kind, dtypes, errors; a warning is an error."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch.func import functional_call, jvp, vmap

import sdegen as sd
from sdegen.training import nets

F64 = torch.float64
MAKES = {
    "mlp": lambda **o: nets.MLP(3, width=16, depth=2, **o),
    "shaped": lambda **o: nets.MLP((2, 3), width=16, depth=2, **o),
    "unet": lambda **o: nets.UNet(2, width=8, levels=2, **o),
}
SHAPES = {"mlp": (3,), "shaped": (2, 3), "unet": (2, 5, 3)}
each = pytest.mark.parametrize("kind", MAKES)


def made(kind, seed=0, **options):
    """A network whose every weight is random: none is at its start of zero."""
    torch.manual_seed(seed)
    net = MAKES[kind](**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def inputs(kind, rows=4, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *SHAPES[kind], generator=generator, dtype=F64).to(dtype)
    return x, torch.linspace(-1.6, 1.3, rows, dtype=F64).to(dtype)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 7), (8, 8), (28, 28)])
@pytest.mark.parametrize(("channels", "rows", "levels"), [(1, 1, 3), (3, 2, 3), (2, 3, 1), (4, 1, 6)])
def test_images_of_any_size(size, channels, rows, levels):
    net = nets.UNet(channels, width=8, levels=levels)
    x = torch.randn(rows, channels, *size)
    out = net(x, torch.rand(rows))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert not out.any()
    out.sum().backward()


@each
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_output_is_zero_at_the_start(kind, rows):
    x, time = inputs(kind, rows)
    out = MAKES[kind]()(x, time)
    assert out.shape == x.shape
    assert not out.any()


def test_the_default_for_digits_is_small():
    net = nets.UNet(1)
    assert sum(p.numel() for p in net.parameters()) < 300_000
    assert sum(p.numel() for p in nets.UNet(1, classes=10).parameters()) < 300_000


@each
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_rows_are_independent(kind, dtype, most):
    net = made(kind, classes=3).to(dtype)
    x, time = inputs(kind, 5, dtype)
    label = torch.tensor([0, 1, 2, 3, 1])
    whole = net(x, time, label)
    for train in (True, False):
        net.train(train)
        for k in range(5):
            alone = net(x[k : k + 1], time[k : k + 1], label[k : k + 1])[0]
            assert (alone - whole[k]).abs().max() < most
    others = x.clone()
    others[1:] = torch.nan
    assert (net(others, time, label)[0] - whole[0]).abs().max() < most


@each
def test_labels(kind):
    net = made(kind, classes=3)
    x, time = inputs(kind, 1)
    assert net.null == 3
    outs = [net(x, time, torch.tensor([k])) for k in range(4)]
    assert torch.equal(net(x, time), outs[3])
    for a in range(4):
        for b in range(a):
            assert (outs[a] - outs[b]).abs().max() > 1e-3
    assert MAKES[kind]().null is None


@each
def test_a_seed_fixes_the_start(kind):
    first, second, third = (made(kind, seed, classes=2).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


@each
def test_gradients_reach_every_parameter(kind):
    net = made(kind, classes=3)
    x, time = inputs(kind)
    net(x, time, torch.tensor([0, 1, 2, 3])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        if name.endswith("labels.weight"):
            assert (parameter.grad.abs().amax(1) > 0).all()


@each
def test_derivatives_of_every_kind_agree(kind):
    net = made(kind, classes=3).double()
    x, time = inputs(kind, 2, F64)
    label, v = torch.tensor([0, 2]), torch.ones_like(x)
    at = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(net(at, time, label), at, v, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), at)
    out, forward = jvp(lambda y, t: net(y, t, label), (x, time), (v, torch.ones_like(time)))
    units = torch.eye(x[0].numel(), dtype=F64).reshape(-1, 1, *x.shape[1:]).expand(-1, 2, *x.shape[1:])
    (rows,) = torch.autograd.grad(net(at, time, label), at, units, is_grads_batched=True)
    each_row = vmap(lambda y, t, c: net(y[None], t[None], c[None])[0])(x, time, label)
    assert torch.allclose(each_row, out, atol=1e-12)
    assert torch.allclose(rows.sum(0), first, atol=1e-12)  # the units add up to v
    h = 1e-5
    ahead, behind = (net(x + s * v, time + s, label) for s in (h, -h))
    assert torch.allclose(forward, (ahead - behind) / (2 * h), atol=1e-6)
    push = torch.randn_like(x)

    def slope(y):
        y = y.detach().requires_grad_()
        return torch.autograd.grad(net(y, time, label), y, v)[0].square().sum()

    assert torch.allclose((second * push).sum(), (slope(x + h * push) - slope(x - h * push)) / (2 * h), rtol=1e-5)


@each
def test_it_is_one_graph(kind):
    net = made(kind, classes=3)
    x, time = inputs(kind)
    label = torch.tensor([0, 1, 2, 3])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, time, label), net(x, time, label), atol=1e-6)


@each
def test_other_dtypes(kind):
    net = made(kind, classes=3)
    x, time = inputs(kind)
    exact = net(x, time)
    assert torch.allclose(copy.deepcopy(net).double()(x.double(), time.double()).float(), exact, atol=1e-5)
    half = copy.deepcopy(net).bfloat16()(x.bfloat16(), time)
    assert half.dtype == torch.bfloat16
    assert copy.deepcopy(net).bfloat16()(x.bfloat16(), time.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x, time, torch.full((4,), 3))
    mixed.float().square().sum().backward()
    for rough in (half, mixed):
        assert (rough.float() - exact).norm() < 0.05 * exact.norm()


@each
def test_copies_and_states(kind):
    net = made(kind, classes=3)
    x, time = inputs(kind)
    twin, other = copy.deepcopy(net), made(kind, 1, classes=3)
    other.load_state_dict(net.state_dict())
    assert list(net.state_dict()) == [name for name, _ in net.named_parameters()]
    with torch.device("meta"):
        empty = MAKES[kind](classes=3)
    empty.load_state_dict(net.state_dict(), assign=True)
    for again in (twin, other, empty):
        assert torch.equal(again(x, time), net(x, time))
    assert torch.equal(functional_call(other, dict(net.named_parameters()), (x, time)), net(x, time))


@each
@pytest.mark.parametrize("predicts", ["noise", "v", "edm"])
def test_a_model_around_it_samples(kind, predicts):
    net = made(kind, classes=3).eval()
    model = sd.ScoreModel(sd.VP(), net, predicts, time=sd.model.log_sigma_time, label=torch.tensor([0, 1, 2, 3]))
    samples = sd.sample(model, (4, *SHAPES[kind]), nfe=6, seed=3)
    assert samples.isfinite().all()
    assert torch.allclose(sd.sample(model, (4, *SHAPES[kind]), nfe=6, seed=3, batch_size=2), samples, atol=1e-4)


@pytest.mark.parametrize("ends", [(-1.6, 1.3), (0.0, 1.0)])
def test_what_is_told_of_time_is_smooth_and_one_to_one(ends):
    torch.manual_seed(0)
    net = nets.MLP(2, width=64).double()
    time = torch.linspace(*ends, 401, dtype=F64)
    seen = nets.waves(time)
    apart = torch.cdist(seen, seen)
    gap = (time[:, None] - time).abs()
    assert (apart >= gap)[gap > 0].all()  # no two times look alike, near or far
    speed = seen.diff(dim=0).norm(dim=1) / time.diff()
    assert speed.max() < 1.001 * 204**0.5  # the sum of k^2 for k = 1 .. 8
    assert speed.min() > 1
    out = net.told(torch.zeros(401, 2, dtype=F64), (2,), time, None)
    bend = out.diff(n=2, dim=0).abs().max() / time.diff()[0] ** 2
    assert bend < 30


SAME = nets.MLP(3, classes=4)
IMAGES = nets.UNet(2, width=8)
T2 = torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nets.MLP(0), sd.InvalidArgumentError, "dim must be a whole number >= 1, got 0"),
        (lambda: nets.MLP((2, 0.5)), sd.InvalidArgumentError, "dim must be a whole number >= 1, got 0.5"),
        (lambda: nets.MLP(3, width=0), sd.InvalidArgumentError, "width must be a whole number >= 1, got 0"),
        (lambda: nets.MLP(3, depth=-1), sd.InvalidArgumentError, "depth must be a whole number >= 1, got -1"),
        (lambda: nets.MLP(3, classes=0), sd.InvalidArgumentError, "classes must be a whole number >= 1, got 0"),
        (lambda: nets.MLP(3, clases=2), sd.InvalidTypeError, "did you mean 'classes'?"),
        (lambda: nets.UNet(True), sd.InvalidArgumentError, "channels must be a whole number >= 1, got True"),
        (lambda: nets.UNet(levels=0), sd.InvalidArgumentError, "levels must be a whole number >= 1, got 0"),
        (lambda: nets.UNet(width=12), sd.InvalidArgumentError, "width must be a multiple of 8, got 12"),
        (lambda: nets.UNet(width=0), sd.InvalidArgumentError, "width must be a whole number >= 1, got 0"),
        (lambda: SAME([1.0], T2), sd.InvalidTypeError, "MLP takes x as a floating tensor, got [1.0]"),
        (
            lambda: SAME(torch.zeros(2, 3, dtype=torch.int64), T2),
            sd.InvalidTypeError,
            "MLP takes x as a floating tensor, got [2, 3] of torch.int64",
        ),
        (
            lambda: SAME(torch.zeros(2, 4), T2),
            sd.InvalidArgumentError,
            "MLP takes x of shape [B, 3], got [2, 4]",
        ),
        (
            lambda: nets.MLP((2, 3))(torch.zeros(2, 6), T2),
            sd.InvalidArgumentError,
            "MLP takes x of shape [B, 2, 3], got [2, 6]",
        ),
        (
            lambda: IMAGES(torch.zeros(2, 3, 8, 8), T2),
            sd.InvalidArgumentError,
            "UNet takes x of shape [B, 2, H, W], got [2, 3, 8, 8]",
        ),
        (
            lambda: IMAGES(torch.zeros(2, 8, 8), T2),
            sd.InvalidArgumentError,
            "UNet takes x of shape [B, 2, H, W], got [2, 8, 8]",
        ),
        (
            lambda: IMAGES(torch.zeros(2, 2, 0, 8), T2),
            sd.InvalidArgumentError,
            "UNet takes x of shape [B, 2, H, W], got [2, 2, 0, 8]",
        ),
        (lambda: SAME(torch.zeros(2, 3), 0.5), sd.InvalidTypeError, "MLP takes time as a floating tensor, got 0.5"),
        (
            lambda: SAME(torch.zeros(2, 3), torch.arange(2)),
            sd.InvalidTypeError,
            "MLP takes time as a floating tensor, got [2] of torch.int64",
        ),
        (
            lambda: SAME(torch.zeros(2, 3), torch.zeros(())),
            sd.InvalidArgumentError,
            "MLP takes time of shape [2], got []",
        ),
        (
            lambda: IMAGES(torch.zeros(2, 2, 4, 4), T2, torch.arange(2)),
            sd.InvalidArgumentError,
            "this UNet takes no label: make it with classes=10, say",
        ),
        (
            lambda: SAME(torch.zeros(2, 3), T2, T2),
            sd.InvalidTypeError,
            "MLP takes label as a tensor of torch.int64, got [2] of torch.float32",
        ),
        (
            lambda: SAME(torch.zeros(2, 3), T2, 1),
            sd.InvalidTypeError,
            "MLP takes label as a tensor of torch.int64, got 1",
        ),
        (
            lambda: SAME(torch.zeros(2, 3), T2, torch.arange(3)),
            sd.InvalidArgumentError,
            "MLP takes label of shape [2], got [3]",
        ),
    ],
)
def test_errors_say_what_is_allowed(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()
