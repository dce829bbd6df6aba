"""General SDEs forward and reverse: orders on exact and on shared paths, laws against Fokker-Planck on a grid."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from cases import mostly_slow

import sdegen as sd
from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.noise.brownian import Brownian
from sdegen.processes.sde import ForwardSDE
from sdegen.solvers.eta import data_clock, sigma_clock
from sdegen.testing.laws import path_error

F64 = torch.float64
UP = torch.linspace(0.0, 1.0, 5, dtype=F64)


def slope(counts, errors):
    """The order, by regression of log errors on log steps."""
    n, e = (torch.log(torch.as_tensor(v, dtype=F64)) for v in (counts, errors))
    n = n - n.mean()
    return float(-(n * e).sum() / (n * n).sum())


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def grid(n, start=0.0, end=1.0):
    return torch.linspace(start, end, n + 1, dtype=F64)


# --- geometric Brownian motion, `dx = mu x dt + s x dw`: exact paths and exact moments

MU, S = 0.6, 0.8
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)


DIAGONAL = sd.SDE.from_functions(lambda x, t: MU * x, lambda x, t: S * x)
MATRIX = sd.SDE.from_functions(lambda x, t: MU * x, lambda x, t: (0.5 * x + 0.6 * x @ TURN.T.to(x))[..., None])
ADDITIVE = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: 1 + t, t_max=1.0)


def exact(sde, x, noise):
    """The path's end from that of W: for MATRIX by the exponential of `(A - B^2/2) t + B W` of commuting matrices."""
    ends = sde.level(0.0), sde.level(1.0)
    if sde is DIAGONAL:
        return x * torch.exp(MU - S * S / 2 + S * noise(x, *ends))
    w, B = noise(x[:, :1], *ends)[:, 0], 0.5 * torch.eye(2, dtype=F64) + 0.6 * TURN
    whole = torch.linalg.matrix_exp(MU * torch.eye(2, dtype=F64) - B @ B / 2 + B * w[:, None, None])
    return (whole @ x[..., None])[..., 0]


@pytest.mark.parametrize(
    ("sde", "solver", "order"),
    [
        (DIAGONAL, sd.euler_maruyama(), 0.5),
        (DIAGONAL, sd.milstein(), 1.0),
        (MATRIX, sd.euler_maruyama(), 0.5),
    ],
    ids=["diagonal, Euler-Maruyama", "diagonal, Milstein", "matrix, Euler-Maruyama"],
)
def test_strong_orders_forward_on_exact_paths(sde, solver, order):
    """1000 paths; the standard deviation of a slope over other seeds is 0.02."""
    x, noise = torch.ones(1000, 2, dtype=F64), Brownian(noises.seeds(0, 1000), sde, depth=12)
    end, counts = exact(sde, x, noise), [16, 32, 64, 128]
    errors = []
    for n in counts:
        out = sd.solve(sde.as_forward(), x, grid(n), solver, noise=noise).x
        errors.append(float((out - end).square().sum(1).mean().sqrt()))
    assert abs(slope(counts, errors) - order) < 0.12


@pytest.mark.slow
def test_additive_noise_has_strong_order_one():
    """Against Euler-Maruyama on a grid 16 times as fine as the finest."""
    x, noise = torch.ones(400, 1, dtype=F64), Brownian(noises.seeds(1, 400), ADDITIVE, depth=12)
    fine = sd.solve(ADDITIVE.as_forward(), x, grid(1024), sd.euler_maruyama(), noise=noise).x
    counts = [8, 16, 32, 64]
    for solver in (sd.euler_maruyama(), sd.stochastic_heun()):
        outs = [sd.solve(ADDITIVE.as_forward(), x, grid(n), solver, noise=noise).x for n in counts]
        errors = [float((out - fine).square().mean().sqrt()) for out in outs]
        assert abs(slope(counts, errors) - 1.0) < 0.15


@pytest.mark.parametrize(
    ("solver", "order"),
    [(sd.euler_maruyama(), 1), (sd.milstein(), 1), (sd.stochastic_runge_kutta(), 2)],
    ids=["Euler-Maruyama", "Milstein", "Runge-Kutta"],
)
def test_weak_orders_without_sampling(solver, order):
    """A step multiplies x by a factor, so moments of n steps are powers of those of one, by Gauss-Hermite."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(20))
    weights, x = weights / weights.sum(), torch.ones(20, 1, dtype=F64)

    def known(x, now, next, tag=0):
        return nodes[:, None]

    for p in (1, 2):
        counts, errors = [8, 16, 32], []
        for n in counts:
            step = sd.solve(DIAGONAL.as_forward(), x, [0.0, 1 / n], solver, noise=known).x[:, 0]
            moment = float((weights * step**p).sum()) ** n
            errors.append(abs(moment - math.exp(p * MU + p * (p - 1) / 2 * S * S)))
        assert abs(slope(counts, errors) - order) < 0.25


def test_moments_of_geometric_brownian_motion():
    """log x is normal: its mean and variance over 20,000 paths, 6.5 standard deviations (8e-11); 64 Milstein steps."""
    n = 20_000
    x = torch.ones(n, 1, dtype=F64)
    path = sd.forward(DIAGONAL, x, grid(64), noise=sd.White(noises.seeds(4, n)), solver=sd.milstein())
    log = path[-1].log()
    assert abs(float(log.mean()) - (MU - S * S / 2)) < 6.5 * S / math.sqrt(n) + 0.01
    assert abs(float(log.var()) / S**2 - 1) < 6.5 * math.sqrt(2 / n) + 0.02


# --- strong orders of the methods for score models, shared Brownian paths, reverse

VP = sd.VP()
DATA = sd.GaussianMixture([[-1.0], [0.8]], stds=[0.5, 0.4], weights=[1.0, 2.0])
ER = functools.partial(data_clock, eta=sd.solvers.eta.ERSDEEta())
IN_TIME = {
    "euler_maruyama": (sd.euler_maruyama(), None),
    "milstein": (sd.milstein(), None),
    "stochastic_heun": (sd.stochastic_heun(), None),
    "stochastic_runge_kutta": (sd.stochastic_runge_kutta(), None),
    "reverse_diffusion": (sd.reverse_diffusion(), None),
}
IN_LAM = {
    "ddpm": (sd.ddpm(), data_clock),
    "ddim(0.5)": (sd.ddim(0.5), functools.partial(data_clock, eta=0.5)),
    "Multistep(1, SIGMA)": (sd.Multistep(1, sd.SIGMA, eta=1.0), sigma_clock),
    "Multistep(2, SIGMA)": (sd.Multistep(2, sd.SIGMA, eta=1.0), sigma_clock),
    "dpmpp_sde(2)": (sd.dpmpp_sde(2), data_clock),
    "dpmpp_sde(2, singlestep)": (sd.dpmpp_sde(2, singlestep=True), data_clock),
    "seeds(1)": (sd.seeds_solver(1), sigma_clock),
    "seeds(2)": (sd.seeds_solver(2), sigma_clock),
    "seeds(3)": (sd.seeds_solver(3), sigma_clock),
    "sa_solver(3)": (sd.sa_solver(3, low=0.0, high=math.inf), data_clock),
    "er_sde(3)": (sd.er_sde(3), ER),
    "dpm_ancestral": (sd.dpm_ancestral(), data_clock),
    "dpmpp_ancestral": (sd.dpmpp_ancestral(), data_clock),
}
FAST = ("euler_maruyama",)


def even_in_lam(n, start=0.9, end=0.1):
    first, last = VP.level(start).lam, VP.level(end).lam
    times = VP.at(torch.linspace(float(first), float(last), n + 1, dtype=F64)).t
    times[0], times[-1] = start, end
    return times


@pytest.mark.parametrize("name", [n if n in FAST else slow(n) for n in (*IN_TIME, *IN_LAM)])
def test_strong_orders_reverse(name):
    """One path under every grid: distances between n and 2 n steps fall at order 1, as for any additive noise."""
    solver, clock = {**IN_TIME, **IN_LAM}[name]
    counts = [32, 64, 128, 256] if name not in FAST else [24, 48, 96]
    seeds = noises.seeds(0, 400)
    noise, model = Brownian(seeds, VP, clock=clock, depth=13), DATA.score(VP)
    x, spaced = (
        VP.prior(seeds, (1,)).double(),
        even_in_lam if name in IN_LAM else functools.partial(grid, start=0.9, end=0.1),
    )
    outs = [sd.solve(model, x, spaced(n), solver, noise=noise).x for n in (*counts, 2 * counts[-1])]
    errors = [float((a - b).square().mean().sqrt()) for a, b in zip(outs, outs[1:])]
    assert abs(slope(counts, errors) - 1.0) < 0.25, errors


@pytest.mark.parametrize(
    ("solver", "clock"),
    [(sd.ddpm(), data_clock), (sd.ddpm(), None), (sd.Multistep(1, sd.SIGMA, eta=1.0), sigma_clock)],
    ids=["ddpm", "ddpm, in t", "SIGMA"],
)
def test_strong_orders_without_sampling(solver, clock):
    """On Gaussian data, by unit responses to the increments of the path in the clock."""
    data, counts = sd.Gaussian([0.5], std=0.3), [32, 64, 128]
    errors = [path_error(solver, VP, data, even_in_lam(n), clock=clock) for n in counts]
    assert abs(slope(counts, errors) - 1.0) < 0.1, errors


@pytest.mark.slow
def test_white_noise_has_no_path():
    """What the Brownian path is for: with white noise the same seeds at other steps give other samples."""
    seeds, model = noises.seeds(0, 300), DATA.score(VP)
    x = VP.prior(seeds, (1,)).double()
    apart = {}
    for kind, noise in {"white": sd.White(seeds), "path": Brownian(seeds, VP, clock=data_clock)}.items():
        a, b = (sd.solve(model, x, even_in_lam(n), sd.ddpm(), noise=noise).x for n in (50, 400))
        apart[kind] = float((a - b).abs().mean())
    assert apart["path"] < 0.1
    assert apart["white"] > 0.5


# --- a double well against its Fokker-Planck equation on a grid

HALF, CELLS = 3.5, 350
EDGES = torch.linspace(-HALF, HALF, CELLS + 1, dtype=F64)
MIDDLES = (EDGES[1:] + EDGES[:-1]) / 2


def well(x, t=None):
    return x - x**3


def rough(x, t=None):
    return 0.6 * torch.sqrt(1 + 0.5 * x * x)


WELLS = {
    "additive": sd.SDE.from_functions(well, lambda x, t: torch.full_like(t, 0.8), t_max=0.8),
    "multiplicative": sd.SDE.from_functions(well, rough, t_max=0.8),
}


def generator(kind):
    """`dp/dt = -(f p)' + (g^2 p)''/2` in conservative central differences, of order 2 in the cells' width."""
    width = float(EDGES[1] - EDGES[0])
    g = 0.8 + 0 * MIDDLES if kind == "additive" else rough(MIDDLES)
    f, total = well(EDGES[1:-1]), torch.zeros(CELLS, CELLS, dtype=F64)
    for i in range(CELLS - 1):
        # the flux from cell i into cell i + 1
        out = torch.zeros(CELLS, dtype=F64)
        out[i], out[i + 1] = f[i] / 2 + g[i] ** 2 / (2 * width), f[i] / 2 - g[i + 1] ** 2 / (2 * width)
        total[i] -= out / width
        total[i + 1] += out / width
    return total


@functools.cache
def densities(kind, steps):
    """The law at times `k t_max/steps` `[steps + 1, CELLS]`, from `N(0.3, 0.3^2)`."""
    flow = torch.linalg.matrix_exp(generator(kind) * WELLS[kind].t_max / steps)
    p = torch.exp(-(((MIDDLES - 0.3) / 0.3) ** 2) / 2)
    rows = [p / p.sum()]
    for _ in range(steps):
        rows.append(flow @ rows[-1])
    return torch.stack(rows)


def start(n):
    return 0.3 + 0.3 * noises.normals(noises.seeds(8, n), (1,), (5, 0, 0, 0), dtype=F64)


def away(x, p):
    """The Kolmogorov-Smirnov distance of samples to a law on the cells."""
    n = len(x)
    seen = torch.searchsorted(x.flatten().sort().values, EDGES, right=True) / n
    return float((seen - torch.cat([torch.zeros(1, dtype=F64), p.cumsum(0)])).abs().max())


N = 20_000
BOUND = math.sqrt(math.log(2e9) / (2 * N)) + 0.01
"""Massart's bound at 1e-9, and 0.01 for steps and cells. A shift by 0.1 is seen: it moves the law by 0.06 and more."""
EVERY = {
    "euler_maruyama": sd.euler_maruyama(),
    "milstein": sd.milstein(),
    "stochastic_runge_kutta": sd.stochastic_runge_kutta(),
}


@pytest.mark.parametrize("kind", WELLS)
@pytest.mark.parametrize(
    "name", ["euler_maruyama", "stochastic_runge_kutta", *map(slow, ("milstein", "stochastic_heun"))]
)
def test_forward_laws_of_a_double_well(kind, name):
    solver = EVERY.get(name, sd.stochastic_heun())
    times = grid(100, 0.0, 0.8)
    out = sd.solve(WELLS[kind].as_forward(), start(N), times, solver, noise=sd.White(noises.seeds(2, N))).x
    assert out.std() > 0.5
    assert away(out, densities(kind, 100)[-1]) < BOUND


class GridScore:
    """`d log p/dx` of the law on the cells, at the grid's times, linear between the cells' middles."""

    any_time = True

    def __init__(self, kind, steps):
        self.steps, self.end = steps, WELLS[kind].t_max
        log = densities(kind, steps).clamp(min=1e-14).log()
        self.table = torch.gradient(log, spacing=(MIDDLES,), dim=1)[0]

    def __call__(self, x, t):
        row = self.table[round(float(t.flatten()[0]) / self.end * self.steps)]
        place = ((x - MIDDLES[0]) / (MIDDLES[1] - MIDDLES[0])).clamp(0, CELLS - 1.001)
        k = place.long()
        return torch.lerp(row[k], row[k + 1], place - k)


def from_law(p, n):
    """Samples of a law on the cells, by inversion."""
    u = torch.special.ndtr(noises.normals(noises.seeds(5, n), (1,), (5, 0, 0, 0), dtype=F64)).flatten()
    total = torch.cat([torch.zeros(1, dtype=F64), p.cumsum(0)])
    k = (torch.searchsorted(total, u) - 1).clamp(0, CELLS - 1)
    return (EDGES[k] + (u - total[k]) / p[k] * (EDGES[1] - EDGES[0]))[:, None]


@pytest.mark.parametrize("kind", mostly_slow(WELLS, [*WELLS][-1:]))
@pytest.mark.parametrize("name", ["euler_maruyama", *map(slow, ("pc", "flow", "milstein", "stochastic_runge_kutta"))])
def test_reverse_laws_of_a_double_well(kind, name):
    """From the law at t_max back to `N(0.3, 0.3^2)`, with the exact score and, where g depends on x, div(g g^T)."""
    steps, sde = 200, WELLS[kind]
    p = densities(kind, steps)
    x, model = from_law(p[-1], N), sde.reverse(GridScore(kind, steps), 0.0 if name == "flow" else 1.0)
    solver = EVERY.get(name, sd.RungeKutta(sd.tableaus.EULER, sd.TIME))
    if name == "pc":
        solver = sd.PC(sd.euler_maruyama(), sd.Langevin(length=2e-4))
    out = sd.solve(model, x, grid(steps, 0.8, 0.0), solver, noise=sd.White(noises.seeds(2, N))).x
    assert away(x, p[0]) > 0.2
    assert away(out, p[0]) < BOUND + 0.01
    if name == "flow":
        back = sd.solve(model, out, grid(steps, 0.0, 0.8), sd.RungeKutta(sd.tableaus.EULER, sd.TIME)).x
        assert away(back, p[-1]) < BOUND + 0.01


# --- the forward model


def test_forward_runs_every_solver_in_t():
    x, noise = torch.ones(4, 2, dtype=F64), Brownian(noises.seeds(0, 4), DIAGONAL)
    for solver in (sd.euler_maruyama(), sd.milstein(), sd.stochastic_heun(), sd.stochastic_runge_kutta()):
        path = sd.forward(DIAGONAL, x, UP, noise=noise, solver=solver)
        solution = sd.solve(DIAGONAL.as_forward(), x, UP, solver, noise=noise)
        assert torch.equal(path[-1], solution.x)
        assert path.shape == (5, 4, 2)
    assert torch.equal(
        sd.forward(DIAGONAL, x, UP, noise=noise), sd.forward(DIAGONAL, x, UP, noise=noise, solver=sd.euler_maruyama())
    )
    matrix = sd.forward(MATRIX, x, UP, seed=3, solver=sd.stochastic_runge_kutta())
    assert matrix.isfinite().all()
    model = VP.as_forward()
    assert torch.equal(model.drift(x, UP[2] + 0.1), VP.drift(x, UP[2] + 0.1))
    assert isinstance(model, ForwardSDE)


def test_a_path_forward_and_back_is_one_path():
    """The reverse drift of a deterministic score gives the increments back: `z(b, a) = -z(a, b)` step by step."""
    noise, x = Brownian(noises.seeds(0, 3), span=(0.0, 1.0)), torch.zeros(3, 1, dtype=F64)
    still = sd.SDE.from_functions(lambda x, t: 0 * x, lambda x, t: torch.ones_like(t))
    there = sd.solve(still.as_forward(), x, grid(64), sd.euler_maruyama(), noise=noise).x
    calm = still.reverse(lambda x, t: 0 * x)
    back = sd.solve(calm, there, grid(64, 1.0, 0.0), sd.euler_maruyama(), noise=noise).x
    assert there.abs().min() > 0.01
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)


def test_directions_and_mistakes():
    x, noise = torch.ones(3, 1, dtype=F64), sd.White(noises.seeds(0, 3))
    with pytest.raises(InvalidArgumentError, match="times must increase"):
        sd.solve(DIAGONAL.as_forward(), x, [1.0, 0.0], sd.euler_maruyama(), noise=noise)
    with pytest.raises(InvalidArgumentError, match="as_forward"):
        sd.solve(DIAGONAL.reverse(lambda x, t: x), x, [0.0, 1.0], sd.euler_maruyama(), noise=noise)
    with pytest.raises(InvalidArgumentError, match="eta"):
        sd.solve(DIAGONAL.as_forward(), x, [0.0, 1.0], sd.euler_maruyama(0.5), noise=noise)
    with pytest.raises(InvalidTypeError, match="takes an SDE"):
        ForwardSDE(3)
    with pytest.raises(InvalidTypeError, match="no score"):
        DIAGONAL.as_forward().score_at(x, UP[0])
    with pytest.raises(InvalidArgumentError, match="length"):
        sd.solve(DIAGONAL.reverse(lambda x, t: x), x, [1.0, 0.0], sd.Langevin(), noise=noise)
    with pytest.raises(InvalidArgumentError, match="length must be positive"):
        sd.Langevin(length=-1.0)
    with pytest.raises(InvalidArgumentError, match="matrix noise"):
        sd.solve(MATRIX.as_forward(), torch.ones(3, 2, dtype=F64), UP, sd.milstein(), noise=noise)


def test_langevin_takes_a_length_of_its_own():
    """On a process the rule from sigma, given as a length, changes no bit."""
    model, x = DATA.score(VP), torch.ones(3, 1, dtype=F64)
    noise = sd.White(noises.seeds(0, 3))
    by_rule = sd.solve(model, x, [0.9, 0.5, 0.2], sd.Langevin(0.2), noise=noise).x
    given = sd.Langevin(length=lambda level: 2 * (0.2 * level.sigma) ** 2)
    assert torch.equal(sd.solve(model, x, [0.9, 0.5, 0.2], given, noise=noise).x, by_rule)
    reverse = sd.solve(VP.reverse(model), x, [0.9, 0.5, 0.2], sd.Langevin(0.2), noise=noise).x
    assert torch.equal(reverse, by_rule)
