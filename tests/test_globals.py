"""Nothing outside of a call changes it: torch's default dtype and device, autocast, devices without float64."""

from __future__ import annotations

import contextlib
import traceback

import pytest
import torch
import torch._lazy.ts_backend
from cases import mostly_slow
from torch.utils._python_dispatch import TorchDispatchMode

import sdegen as sd

P = sd.VP()
MODEL = sd.ScoreModel(P, lambda x, t: torch.tanh(x) * t[:, None], "noise")
FLOW = sd.ScoreModel(sd.Flow(), lambda x, t: x * t[:, None], "velocity")
STEPS = sd.ScoreModel(sd.DiscreteVP(), lambda x, t: torch.tanh(x), "v", time=sd.model.index_time())
DATA = sd.GaussianMixture([[-1.0, 0.5], [0.7, -0.4]], stds=[0.3, 0.2])
ONES = torch.ones(3, 2)
OU = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: torch.ones_like(x), t_max=2.0)
WIDE = sd.GaussianMixture(torch.eye(3, 6), covs=(torch.ones(6, 6) + torch.eye(6)).expand(3, 6, 6))
MOMENTS = sd.solvers.moment_frame.Moments.of(WIDE.sample(500, seed=1).float(), rank=3)
PLAN = sd.Plan.of(sd.unipc(3), P, 4)


def drawn(make, model=MODEL, **options):
    return lambda: sd.sample(model, (4, 2), steps=5, solver=make(), seed=0, **options)


RUNS = {
    "default": drawn(sd.default),
    "default on Flow": drawn(sd.default, FLOW),
    "unipc": drawn(lambda: sd.unipc(3)),
    "unipc on Flow": drawn(lambda: sd.unipc(3), FLOW),
    "deis": drawn(lambda: sd.deis(3)),
    "singlestep": drawn(lambda: sd.dpm(3)),
    "heun": drawn(sd.heun),
    "lms": drawn(sd.lms),
    "pndm": drawn(sd.pndm),
    "churn": drawn(lambda: sd.edm(churn=5.0)),
    "ddpm": drawn(sd.ddpm),
    "ddim(0.5)": drawn(lambda: sd.ddim(0.5), FLOW),
    "sa_solver": drawn(sd.sa_solver),
    "er_sde": drawn(sd.er_sde),
    "pc": drawn(sd.pc),
    "euler_maruyama": drawn(sd.euler_maruyama),
    "ancestral": drawn(sd.dpmpp_ancestral),
    "plan": lambda: sd.sample(MODEL, (4, 2), solver=PLAN, seed=0),
    "restart": drawn(sd.ddim, grid=sd.Restart()),
    "discrete": drawn(sd.ddim, STEPS, grid=sd.grids.trailing),
    "exact score": drawn(sd.default, DATA.score(P)),
    "threshold": drawn(sd.default, sd.guidance.dynamic_threshold(MODEL)),
    "prior": drawn(sd.ddim, prior=(0.5, 2.0)),
    "Brownian": drawn(sd.ddpm, noise=lambda seeds: sd.Brownian(seeds, P)),
    "deep Brownian": drawn(sd.ddpm, noise=lambda seeds: sd.Brownian(seeds, P, depth=40)),
    "adams": lambda: sd.sample(MODEL, (4, 2), tol=1e-2, seed=0),
    "adams in batches": lambda: sd.sample(MODEL, (4, 2), tol=1e-2, seed=0, batch_size=3),
    "adams with noise": lambda: sd.sample(MODEL, (4, 2), tol=0.2, solver=sd.adams(eta=1.0), seed=0),
    "tsit5": lambda: sd.sample(MODEL, (4, 2), tol=1e-2, solver=sd.tsit5(), seed=0),
    "adaptive_heun": lambda: sd.sample(MODEL, (4, 2), tol=0.2, solver=sd.adaptive_heun(), seed=0),
    "edit": lambda: sd.edit(MODEL, ONES, 0.5, steps=3, seed=0),
    "encode": lambda: sd.encode(MODEL, ONES, steps=4),
    "forward": lambda: sd.forward(P, ONES, [0.1, 0.5, 1.0], seed=0),
    "forward SDE": lambda: sd.forward(OU, ONES, [0.0, 0.5, 1.0], seed=0),
    "data": lambda: sd.GaussianMixture([[-1.0, 0.5], [0.7, -0.4]], stds=[0.3, 0.2]).sample(3, seed=0),
    "Moments": lambda: sd.sample(WIDE.score(P), (3, 6), steps=4, solver=sd.Multistep(2, MOMENTS), seed=0),
}


@pytest.fixture(scope="module")
def wanted():
    return {name: run() for name, run in RUNS.items()}


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch._lazy.ts_backend.init()
    torch.set_default_device("lazy")
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "device": default_device,
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
}


@pytest.mark.parametrize("state", mostly_slow(STATES, ["float64", "device", "autocast to bfloat16"]))
def test_no_bit_depends_on_global_state(state, wanted):
    other = []
    with STATES[state]():
        for name, run in RUNS.items():
            found = run()
            same = found.device == wanted[name].device and found.dtype == wanted[name].dtype
            other += [] if same and torch.equal(found, wanted[name]) else [name]
    assert not other


def test_increments_of_a_deep_tree_are_independent():
    """9 neighbouring steps of 1e-8, 4000 paths: variance 1 to 9 standard errors, no correlation to 6.3; 5e-9 in all."""
    one = torch.ones((), dtype=torch.float64)
    path = sd.Brownian(sd.noise.seeds(2, 4000), span=(0.0, 1.0), depth=32)
    times = [sd.Level(torch.tensor(0.3 + k * 1e-8, dtype=torch.float64), one, one) for k in range(10)]
    x = torch.zeros(4000, 1, dtype=torch.float64)
    z = torch.cat([path(x, a, b) for a, b in zip(times[:-1], times[1:])], 1)
    assert float((z.var(0) - 1).abs().max()) < 0.2
    assert float((torch.corrcoef(z.T) - torch.eye(9)).abs().max()) < 0.1


def test_a_dtype_is_kept_with_an_x_of_another():
    for made, wished in (
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
    ):
        x = torch.ones(3, 2, dtype=made)
        assert sd.sample(MODEL, (3, 2), x=x, nfe=3, dtype=wished).dtype == wished
        assert sd.sample(MODEL, (3, 2), x=x.clamp(max=0.5), nfe=3).dtype == made
        assert sd.edit(MODEL, x, 0.5, nfe=3, dtype=wished).dtype == wished


class Float64(TorchDispatchMode):
    """Where in the library float64 tensors are made on the meta device, which stands for one that has none."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, torch.Tensor) and part.is_meta and part.dtype == torch.float64:
                self.found |= {f"{at.filename}:{at.lineno}" for at in traceback.extract_stack()[:-1]}
        return out


@pytest.mark.parametrize("make", [sd.ddim, sd.default, sd.ddpm, sd.heun, sd.pc, sd.euler_maruyama, sd.adams, sd.edm])
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"prior": (0.5, 2.0)}], ids=str)
def test_a_device_without_float64_gets_none(make, options):
    for model in (MODEL, FLOW):
        with Float64() as mode:
            sd.sample(model, (4, 2), nfe=6, solver=make(), device="meta", **options)
        assert not mode.found


def test_an_edit_draws_its_noise_where_its_data_are(monkeypatch):
    """The meta device mixes with the host without a word, so the noise is looked at itself."""
    devices = []
    drawn = sd.noise.normals

    def normals(*args, **options):
        devices.append(drawn(*args, **options).device.type)
        return drawn(*args, **options)

    monkeypatch.setattr(sd.noise, "normals", normals)
    sd.edit(MODEL, ONES.to("meta"), 0.5, nfe=4)
    assert devices == ["meta"]


def test_the_other_calls_give_none_to_such_a_device():
    x = ONES.to("meta")
    with Float64() as mode:
        sd.edit(MODEL, x, 0.5, nfe=4)
        sd.encode(MODEL, x, steps=3)
        sd.forward(P, x, [0.1, 0.5])
        sd.draw(sd.guidance.dynamic_threshold(MODEL), (4, 2), nfe=4, path=True, device="meta")
        sd.sample(MODEL, (4, 2), nfe=4, solver=sd.ddpm(), noise=lambda seeds: sd.Brownian(seeds, P), device="meta")
    assert not mode.found
