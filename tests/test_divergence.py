"""Divergences: exact beside a closed form and torch's Jacobian, probes without bias and with honest errors."""

from __future__ import annotations

import math

import pytest
import torch
from problems import MIXTURE

import sdegen as sd

F64 = torch.float64
LAW = sd.GaussianMixture(**MIXTURE)
LEVEL = sd.VP().level(0.3)
MODEL = LAW.score(sd.VP())
X = LAW.sample(6, seed=1, level=LEVEL)


def data(x):
    return MODEL(x, LEVEL, "data")


TRACE = LAW.posterior_cov(X, LEVEL).diagonal(dim1=1, dim2=2).sum(1) * LEVEL.alpha / LEVEL.sigma**2


@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_exact_is_the_posterior_covariance(chunk):
    found = sd.divergence.Exact(chunk=chunk)(data, X)
    assert torch.allclose(found.trace, TRACE, rtol=1e-10)
    assert torch.equal(found.value, data(X))
    assert not found.std_error.any()


def test_any_shape_and_no_graph_where_none_is_wanted():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 2, 3, padding=1))
    x = torch.randn(3, 2, 4, 5)
    with torch.no_grad():
        found = sd.divergence.Exact(chunk=7)(net, x)
    assert not found.value.requires_grad
    assert not found.trace.requires_grad
    jacobian = torch.autograd.functional.jacobian(lambda y: net(y).sum(0), x).reshape(40, 3, 40)
    assert torch.allclose(found.trace.float(), torch.einsum("ibi->b", jacobian), atol=1e-5)
    assert not x.requires_grad
    with torch.inference_mode():
        assert torch.allclose(sd.divergence.Exact()(net, x).trace, found.trace, atol=1e-6)


def test_gradients_flow_through_it():
    scale = torch.tensor(0.7, dtype=F64, requires_grad=True)
    x = X.clone().requires_grad_()
    for kind in (sd.divergence.Exact(), sd.divergence.Probes(3)):
        trace = kind(lambda y: torch.sin(scale * y), x, level=LEVEL).trace
        by_scale, by_x = torch.autograd.grad(trace.sum(), (scale, x))
        want = (torch.cos(scale * x) - scale * x * torch.sin(scale * x)).sum()
        assert torch.allclose(by_scale, want.detach())
        assert torch.allclose(by_x, -(scale**2 * torch.sin(scale * x)).detach())


def test_probes_have_no_bias_and_their_error_is_theirs():
    """400 estimates of 4 probes: z-tests at 6 standard errors, and 4 probes' variance within a third."""
    found = [sd.divergence.Probes(4)(data, X, level=LEVEL, seeds=sd.noise.seeds(k, 6)) for k in range(400)]
    traces, errors = torch.stack([f.trace for f in found]), torch.stack([f.std_error for f in found])
    assert ((traces.mean(0) - TRACE).abs() < 6 * traces.std(0) / math.sqrt(400)).all()
    ratio = errors.square().mean(0) / traces.var(0)
    assert ((ratio > 0.67) & (ratio < 1.5)).all()
    alone = sd.divergence.Probes()(data, X, level=LEVEL)
    assert alone.std_error.isnan().all()


def test_probes_are_keyed_by_seed_level_and_number():
    one = sd.divergence.signs(X, 3, LEVEL, sd.noise.seeds(0, 6))
    assert torch.equal(one.abs(), torch.ones_like(one))
    assert torch.equal(one, sd.divergence.signs(X, 3, LEVEL))
    assert torch.equal(one[:, 2:4], sd.divergence.signs(X[2:4], 3, LEVEL, sd.noise.seeds(0, 6)[2:4]))
    others = [
        sd.divergence.signs(X, 3, sd.VP().level(0.31)),
        sd.divergence.signs(X, 3, LEVEL, sd.noise.seeds(1, 6)),
        one.roll(1, 0),
    ]
    assert all(not torch.equal(one, other) for other in others)


def test_an_energy_is_twice_differentiated():
    P = torch.tensor([[1.0, 0.2], [0.2, 0.5]], dtype=F64)
    model = sd.ScoreModel(sd.VP(), lambda x: ((x @ P) * x).sum(1) / 2, "energy")
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            found = sd.divergence.Exact()(lambda x: model(x, LEVEL, "score"), X)
        assert torch.allclose(found.trace, -P.trace().expand(6))


def test_a_backward_pass_that_cannot_be_vmapped_is_taken_row_by_row():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            if float(grad.abs().max()) == 0:  # reads a value, which vmap cannot
                return torch.zeros_like(x)
            return 2 * x * grad

    found = sd.divergence.Exact()(Square.apply, X)
    assert torch.allclose(found.trace, 2 * X.sum(1))


def test_what_is_no_function_of_x_is_said():
    with pytest.raises(sd.InvalidArgumentError, match="does not depend on x by autograd"):
        sd.divergence.Exact()(lambda x: torch.sin(x.detach()), X)
    net = torch.nn.Linear(2, 2).double()
    with pytest.raises(sd.InvalidArgumentError, match="does not depend on x by autograd"):
        sd.divergence.Exact()(lambda x: net(x.detach()), X)
    with pytest.raises(sd.InvalidArgumentError, match="must return a tensor like x"):
        sd.divergence.Exact()(lambda x: x.sum(1), X)
    with pytest.raises(sd.InvalidArgumentError, match="count must be a whole number"):
        sd.divergence.Probes(0)
    with pytest.raises(sd.InvalidArgumentError, match="chunk must be a whole number"):
        sd.divergence.Exact(chunk=0)


def test_one_bad_row_is_its_own():
    x = X.clone()
    x[2] = torch.nan
    found = sd.divergence.Exact()(data, x).trace
    assert found[2].isnan()
    assert torch.equal(found[[0, 1, 3, 4, 5]], sd.divergence.Exact()(data, X).trace[[0, 1, 3, 4, 5]])
