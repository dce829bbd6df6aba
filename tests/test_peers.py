"""Other libraries' samplers in a benchmark: the same starts, the same score, the same method where it is the same."""

from __future__ import annotations

import pytest
import torch
from cases import crossed, mostly_slow

import sdegen as sd
from sdegen import bench
from sdegen.bench import names, runs
from sdegen.bench.contenders import Drawn, Ours, drawn
from sdegen.bench.others import Peer, View
from sdegen.errors import InvalidArgumentError
from sdegen.grids import by_time

F64 = torch.float64


def two(process=None, data=None):
    process = process or sd.VP()
    law = sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), stds=0.3)
    given = {"law": law} if data is None else {"data": data}
    return bench.Problem("two", law.score(process), (2,), dtype=F64, **given)


def peer(library, name, grid=None):
    found = [c for c in names.peers(library) if c.name == name and grid in (None, c.grid)]
    assert found, f"{library} has no {name}"
    return found[0]


SAME = [
    ("k-diffusion", "euler", "ddim"),
    ("k-diffusion", "heun", "heun"),
    ("k-diffusion", "dpmpp_2m", "dpmpp2"),
    ("diffusers", "UniPCMultistep(order=3, bh2)", "unipc3"),
]


COUPLED = sd.PC(sd.solvers.ReverseDiffusion(), sd.solvers.BatchCoupledLangevin())


@pytest.mark.parametrize("grid", ["karras", "by_snr"])
@pytest.mark.parametrize("process", [sd.VP(), sd.EDM(), sd.Flow(t_max=0.999)], ids=repr)
@pytest.mark.parametrize(("library", "name", "ours"), SAME)
def test_the_same_method_draws_the_same_samples(library, name, ours, process, grid):
    problem = two(process)
    theirs = peer(library, name, grid).draw(problem, 8, 12, 0, None)
    mine = names.contender(f"{ours}@{grid}").draw(problem, 8, 12, 0, None)
    assert theirs.nfe == mine.nfe
    assert (theirs.x - mine.x).abs().max() < 1e-8


RECIPES = {"euler_maruyama": sd.euler_maruyama(), "reverse_diffusion": sd.reverse_diffusion()}


def scripted(monkeypatch):
    """torch's normals in order, for both sides: the peers' `randn_like`, and a noise source that draws the same."""
    real = torch.randn
    random = torch.Generator()

    def draw(x, *args, **kwargs):
        return real(x.shape, generator=random, dtype=x.dtype)

    monkeypatch.setattr(torch, "randn_like", draw)
    return random, draw


@pytest.mark.parametrize(
    ("name", "ours", "process"),
    [
        *((n, s, p) for n, s in RECIPES.items() for p in (sd.VP(), sd.VE(), sd.EDM())),
        ("pc", COUPLED, sd.VE()),  # on VP ours takes the step behind, and the paper the one to come
        ("pc", COUPLED, sd.EDM()),
    ],
    ids=repr,
)
def test_the_recipes_of_score_sde_are_these_methods(name, ours, process, monkeypatch):
    problem, recipe = two(process), peer("score_sde", name)
    random, draw = scripted(monkeypatch)
    x = process.prior(sd.noise.seeds(0, 6), (2,), F64)
    times = recipe.times(process, 5)
    random.manual_seed(1)
    theirs = recipe.run(View(problem), x.clone(), times, None)
    random.manual_seed(1)
    mine = sd.solve(problem.model, x, times, ours, noise=lambda x, now, next, tag=0: draw(x)).x
    assert (theirs - mine).abs().max() < 1e-9 * (1 + mine.abs().max())


def test_the_corrector_has_the_papers_step_on_vp(monkeypatch):
    problem, recipe = two(), peer("score_sde", "pc")
    _, draw = scripted(monkeypatch)
    draws = []
    monkeypatch.setattr(torch, "randn_like", lambda x: draws.append(draw(x)) or draws[-1])
    process = problem.process
    x = process.prior(sd.noise.seeds(0, 6), (2,), F64)
    t, s, ahead = times = recipe.times(process, 30)[:3]
    made = recipe.run(View(problem), x.clone(), times, None)  # two steps; the first is made again
    first = peer("score_sde", "reverse_diffusion")
    real = iter([draws[0], draws[2]])
    monkeypatch.setattr(torch, "randn_like", lambda x: next(real))

    def corrected(x, s, ahead, z):
        score = problem.model(x, process.level(s), "score")
        kept = float(process.alpha(s) / process.alpha(ahead)) ** 2
        e = 2 * kept * (0.16 * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
        return x + e * score + torch.sqrt(2 * e) * z

    once = corrected(first.run(View(problem), x, torch.stack([t, s]), None), s, ahead, draws[1])
    twice = corrected(first.run(View(problem), once, torch.stack([s, ahead]), None), ahead, ahead, draws[3])
    assert (made - twice).abs().max() < 1e-10


@pytest.mark.parametrize("process", [sd.VP(), sd.VE()], ids=repr)
def test_ancestral_sampling_is_tweedies_mean_and_the_paper_s_noise(process, monkeypatch):
    problem = two(process)
    recipe = peer("score_sde", "ancestral")
    _, draw = scripted(monkeypatch)
    draws = []
    monkeypatch.setattr(torch, "randn_like", lambda x: draws.append(draw(x)) or draws[-1])
    x = process.prior(sd.noise.seeds(0, 6), (2,), F64)
    t, s = times = recipe.times(process, 30)[:2]
    made = recipe.run(View(problem), x.clone(), times, None)
    score = problem.model(x, process.level(t), "score")
    if isinstance(process, sd.VP):  # eq. 4 with beta = 1 - (alpha_t / alpha_s)^2
        beta = 1 - (process.alpha(t) / process.alpha(s)) ** 2
        expected = (x + beta * score) / torch.sqrt(1 - beta) + torch.sqrt(beta) * draws[0]
    else:  # eq. 47
        a, b = process.sigma(t) ** 2, process.sigma(s) ** 2
        expected = x + (a - b) * score + torch.sqrt(b * (a - b) / a) * draws[0]
    assert (made - expected).abs().max() < 1e-10 * (1 + expected.abs().max())


ADAPTIVE = [("torchdiffeq", "dopri5"), ("torchode", "dopri5"), ("score_sde", "probability_flow rk45")]


@pytest.mark.parametrize(
    ("library", "name", "process"),
    mostly_slow([(*who, on) for who, on in crossed(ADAPTIVE, [sd.VP(), sd.EDM()])], lambda case: case[2] == sd.EDM()),
)
def test_adaptive_solvers_end_where_the_flow_does(library, name, process):
    problem = two(process)
    exact = drawn(problem, 8, 0, None, solver=sd.adams(), tol=1e-10).x
    found = peer(library, name)
    assert found.adaptive
    for tol in (1e-3, 1e-7):
        made = found.draw(problem, 8, tol, 0, None)
        assert (made.x - exact).abs().max() < 300 * tol
        assert made.nfe > 5


def samplers(which):
    """`usual` or `all`, with every grid; or `each`: all, with the first grid."""
    found = names.peers("all" if which == "each" else which)
    return [*{(c.library, c.name): c for c in reversed(found)}.values()] if which == "each" else found


# the times that a grid has are not a sampler's code
@pytest.mark.parametrize(
    ("which", "denoises"),
    mostly_slow([("each", False), ("usual", True), ("all", False), ("all", True)], lambda case: case[0] == "usual"),
)
def test_every_sampler_runs_and_keeps_to_its_budget(which, denoises):
    data = torch.randn(64, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) if denoises else None
    problem = two(data=data)
    before = torch.get_rng_state()
    found = samplers(which)
    assert {c.library for c in found} == set(names._adapters().LIBRARIES)
    for c in found:
        made = c.draw(problem, 2, 1e-2 if c.adaptive else 13, 0, None)
        assert made.x.shape == (2, 2), c.name
        assert made.x.dtype == F64
        assert bool(made.x.isfinite().all()), c.name
        assert c.adaptive or 8 <= made.nfe <= 13, (c.name, made.nfe)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_in_float32_gets_float32_whatever_a_library_makes_of_the_state():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(2, 2)

        def forward(self, x, t):
            assert x.dtype == torch.float32
            return 0.1 * self.line(x)

    problem = bench.Problem("net", sd.ScoreModel(sd.VP(), Net().eval(), "noise"), (2,), data=torch.randn(40, 2))
    for c in samplers("each"):
        if c.library != "diffusers" or "DPM" not in c.name:  # a dozen of one kind
            made = c.draw(problem, 2, 1e-1 if c.adaptive else 7, 0, None)
            assert made.x.dtype == torch.float32, c.name


def test_what_the_model_raises_is_not_the_library_s():
    def net(x, t):
        raise ValueError("no such layer")

    broken = bench.Problem("broken", sd.ScoreModel(sd.VP(), net, "noise"), (2,))
    with pytest.raises(ValueError, match="no such layer"):
        peer("k-diffusion", "euler", "karras").draw(broken, 2, 5, 0, None)


def test_a_sampler_that_raises_has_no_samples():
    def run(view, x, times, tol):
        raise ZeroDivisionError

    made = Peer("bad", "other", run, "by_time", by_time).draw(two(), 3, 5, 0, None)
    assert bool(made.x.isnan().all())


def test_a_sweep_with_other_libraries_has_their_rows():
    rows = bench.sweep(
        two(), ["ddim@karras", peer("k-diffusion", "euler", "karras")], [6], ["rmse"], samples=16, progress=False
    )
    ours, theirs = rows
    assert (ours["library"], theirs["library"]) == ("sdegen", "k-diffusion")
    assert theirs["value"] == pytest.approx(ours["value"], rel=1e-6)
    assert theirs["nfe"] == ours["nfe"] == 6


def test_libraries_by_name():
    assert {c.library for c in names.peers("azula,torchsde")} == {"azula", "torchsde"}
    assert len(names.peers("all")) > len(names.peers("usual"))
    with pytest.raises(InvalidArgumentError, match="there is no adapter for 'edm'"):
        names.peers("edm")


def test_memory_and_seconds_are_measured():
    problem = two()
    contender = Ours("ddim", sd.ddim())
    settings = runs.Settings((), 64, 0)
    assert runs.Bench(problem, settings).shot(runs.Job(problem, contender, 5)).rows == []
    few = runs._memory(lambda n: contender.draw(problem, n, 5, 0, None), problem, 16)
    many = runs._memory(lambda n: Drawn(torch.zeros(n, 1000, dtype=F64) + 1, 1.0), problem, 16)
    assert 2 * 8 < few < 10_000
    assert many == pytest.approx(2 * 8000, rel=0.01)
