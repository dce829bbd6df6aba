"""Paths, previews, starting and stopping anywhere, going back to noise, and models with edited data."""

from __future__ import annotations

import pytest
import torch
from problems import F64, mixture

import sdegen as sd
from sdegen.testing import PROBLEMS

VP, EDM = sd.VP(), sd.EDM()


def network(process=VP):
    return sd.ScoreModel(process, lambda x, t: 0.3 * x + t[:, None], "noise")


@pytest.mark.parametrize("model", [network(), mixture(VP)], ids=["network", "exact score"])
@pytest.mark.parametrize("solver", [sd.default(), sd.dpm(3), sd.ddpm(), sd.heun()], ids=repr)
def test_a_path_has_every_state_and_what_was_predicted(model, solver):
    plain = sd.sample(model, (5, 2), steps=6, solver=solver, dtype=F64, seed=0)
    path = sd.draw(model, (5, 2), steps=6, solver=solver, dtype=F64, path=True, batch_size=3, seed=0)
    assert torch.equal(path.x, plain)
    assert path.path.shape == (7, 5, 2)
    assert path.previews.shape == (6, 5, 2)
    assert torch.equal(path.levels.t, solver.grid(VP, 6))
    last = model(path.path[-1], VP.level(path.levels.t[-1]), "data")
    torch.testing.assert_close(path.x, last)
    if solver.evals == 1:  # the last evaluation of a step is at its beginning
        for state, t, seen in zip(path.path, path.levels.t, path.previews):
            torch.testing.assert_close(model(state, VP.level(t), "data"), seen, rtol=1e-12, atol=1e-12)


def test_previews_cost_no_evaluation_and_reach_observers():
    calls, seen = 0, []

    def net(x, t):
        nonlocal calls
        calls += 1
        return 0.5 * x

    model = sd.ScoreModel(EDM, net, "data")
    sd.sample(
        model, (4, 2), steps=5, batch_size=3, observe=lambda p: seen.append((p.x, p.preview())), denoise=False, seed=0
    )
    assert calls == 10
    assert [x.shape[0] for x, _ in seen] == [data.shape[0] for _, data in seen] == [3] * 5 + [1] * 5
    first = seen[0][1]
    torch.testing.assert_close(first, 0.5 * EDM.prior(sd.noise.seeds(0, 4)[:3], (2,)))


def test_a_general_sde_has_a_path_and_no_previews():
    sde = sd.SDE.from_functions(
        lambda x, t: -x, lambda x, t: torch.ones_like(t), prior=lambda seeds, shape: torch.ones(len(seeds), *shape)
    )
    path = sd.draw(sde.reverse(lambda x, t: -x), (3, 2), steps=4, path=True, seed=0)
    assert path.path.shape == (5, 3, 2)
    assert path.previews is None


def test_nothing_has_an_empty_path():
    path = sd.draw(network(), (0, 2), steps=4, path=True, seed=0)
    assert path.x.shape == (0, 2)
    assert path.path.shape == (1, 0, 2)


def test_a_run_goes_on_from_where_another_stopped():
    """One-step methods: stopping at a level of the grid and going on changes nothing."""
    model, times = mixture(EDM), sd.grids.karras(EDM, 8)
    whole = sd.sample(model, (4, 2), solver=sd.ddpm(), grid=times, dtype=F64, seed=0)
    middle = sd.sample(model, (4, 2), solver=sd.ddpm(), grid=times[:5], dtype=F64, denoise=False, seed=0)
    after = sd.sample(model, (4, 2), solver=sd.ddpm(), grid=times[4:], x=middle, seed=0)
    torch.testing.assert_close(after, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("grid", [sd.grids.karras, sd.grids.by_snr, sd.grids.natural, sd.grids.angular, None])
def test_start_and_end_bound_the_grid(grid):
    seen = []
    x = torch.ones(2, 2)
    sd.sample(
        network(), (2, 2), x=x, start=0.6, end=0.2, grid=grid, steps=5, observe=lambda p: seen.append(p.level.t), seed=0
    )
    assert len(seen) == 5
    assert float(seen[-1]) == 0.2
    first = []
    sd.sample(
        sd.ScoreModel(VP, lambda x, t: first.append(t) or x, "noise"),
        (2, 2),
        x=x,
        start=0.6,
        grid=grid,
        steps=5,
        seed=0,
    )
    assert abs(float(first[0][0]) - 0.6) < 1e-6


@pytest.mark.parametrize(
    "grid", [sd.grids.leading, sd.grids.sgm_uniform, sd.grids.by_time(VP, 20), [1.0, 0.5, 0.3, 0.1]]
)
def test_a_grid_that_takes_no_start_is_cut(grid):
    """What diffusers' strength does: those of the grid's times that lie between."""
    whole = grid(VP, 20) if callable(grid) else torch.as_tensor(grid, dtype=F64)
    path = sd.draw(network(), (2, 2), x=torch.ones(2, 2), grid=grid, start=0.4, end=0.2, path=True, seed=0)
    inside = whole[(whole < 0.4) & (whole > 0.2)]
    torch.testing.assert_close(path.levels.t, torch.cat([whole.new_tensor([0.4]), inside, whole.new_tensor([0.2])]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.5, "grid": sd.Restart(0.05, 0.5)}, "takes no start or end"),
        ({"x": torch.ones(3, 2)}, "must have the shape asked for"),
        ({"x": torch.full((2, 2), float("nan"))}, "NaN or Inf"),
        ({"start": 0.1, "end": 0.5}, "runs down in time"),
    ],
)
def test_bad_starts_and_ends_are_errors(options, message):
    with pytest.raises(sd.InvalidArgumentError, match=message):
        sd.sample(network(), (2, 2), **options)


def test_edit_keeps_what_its_start_leaves():
    """From nearly no noise the data come back; from t_max nothing of them is left; noise is a function of the seed."""
    model, data = mixture(EDM), torch.tensor([[0.1, 1.0], [0.7, -0.4], [-1.0, 0.5]], dtype=F64)
    near = sd.edit(model, data, 0.02, seed=0)
    assert float((near - data).abs().max()) < 0.2
    one = sd.edit(model, data, 1.0, seed=4, steps=10)
    again = sd.edit(model, data[:2], 1.0, seed=sd.noise.seeds(4, 3)[:2], steps=10, solver=sd.default())
    torch.testing.assert_close(one[:2], again, rtol=0, atol=0)
    assert not torch.equal(one, sd.edit(model, data, 1.0, seed=5, steps=10))
    far = [sd.edit(model, torch.full((3, 2), value, dtype=F64), 80.0, steps=20, seed=0) for value in (0.0, 3.0)]
    assert float((far[0] - far[1]).abs().max()) < 0.2
    for start in (0.0, 100.0):
        with pytest.raises(sd.InvalidArgumentError, match="start must be a time"):
            sd.edit(model, data, start, seed=0)
    with pytest.raises(sd.InvalidTypeError, match="ScoreModel"):
        sd.edit(EDM.reverse(model), data, 1.0, seed=0)


class Units:
    """Each normal is one in its own row and zero in the others; keeps what was asked for."""

    def __init__(self, rows):
        self.seeds, self.asked = torch.zeros(rows, dtype=torch.int64), []

    def __call__(self, x, now, next, tag=0):
        self.asked.append((float(now.t), float(next.t), tag))
        return torch.eye(len(x), dtype=x.dtype)[:, len(self.asked) : len(self.asked) + 1]


@pytest.mark.parametrize(
    "solver", [sd.Multistep(2, sd.WIENER(sigma_data=0.7)), sd.Multistep(1, sd.WIENER(sigma_data=0.7), 1.0)]
)
def test_a_restart_keeps_the_law_of_an_exact_solver(solver):
    """Every visit to a level has normals of its own, and the way up has the forward transition's law."""
    grid = sd.Restart(0.1, 2.0, steps=3, times=2, grid=sd.Restart(0.01, 0.03, steps=1, times=1))(EDM, 6)
    model, units = sd.Gaussian([0.0], std=0.7).score(EDM), Units(40)
    first = EDM.level(grid.times[0])
    x = torch.zeros(40, 1, dtype=F64)
    x[0] = float(torch.sqrt(0.49 + first.sigma**2))
    out = sd.solve(model, x, grid, solver, noise=units)
    assert len(set(units.asked)) == len(units.asked)
    assert grid.passes == 4
    assert out.nfe.tolist() == [6 + 3 * 2 + 1] * 40
    exact = 0.49 + float(EDM.level(grid.times[-1]).sigma) ** 2
    assert abs(float(out.x.square().sum()) - exact) < 1e-12 * exact


def test_a_restart_is_a_grid_for_sample():
    model = mixture(EDM)
    run = {"steps": 8, "solver": sd.heun(), "grid": sd.Restart(0.05, 0.5, steps=3, times=2), "dtype": F64}
    path = sd.draw(model, (4, 2), path=True, seed=0, **run)
    assert path.path.shape[0] == 8 + 2 * (1 + 3) + 1
    assert int((path.levels.t.diff() > 0).sum()) == 2
    alone = sd.sample(model, (2, 2), seed=sd.noise.seeds(0, 4)[2:], **run)
    assert torch.equal(alone, path.x[2:])
    with pytest.raises(sd.InvalidArgumentError, match="a Restart draws noise"):
        sd.solve(model, torch.ones(2, 2), run["grid"](EDM, 8), sd.heun())
    for bad in (sd.Restart(0.05, 500.0), sd.Restart(1e-4, 0.1)):
        with pytest.raises(sd.InvalidArgumentError, match="outside of the grid"):
            bad(EDM, 8)
    with pytest.raises(sd.InvalidArgumentError, match="low < high"):
        sd.Restart(1.0, 0.5)


def test_edited_data_are_what_every_prediction_says():
    model, x, level = (
        mixture(VP),
        torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0)),
        VP.level(0.4),
    )
    clipped = sd.guidance.static_threshold(model, -0.2, 0.3)
    data = model(x, level, "data").clamp(-0.2, 0.3)
    torch.testing.assert_close(clipped(x, level, "data"), data)
    noise = (x - level.alpha * data) / level.sigma
    torch.testing.assert_close(clipped(x, level, "noise"), noise)
    torch.testing.assert_close(clipped(x, level, "v"), level.alpha * noise - level.sigma * data)
    path = sd.draw(clipped, (4, 2), path=True, steps=6, seed=0)
    assert float(path.previews.max()) <= 0.3 + 1e-6
    assert float(path.previews.min()) >= -0.2 - 1e-6


def test_an_edit_that_changes_nothing_changes_nothing():
    model = network()
    same = sd.guidance.map_data(model, lambda data, x, level: data)
    torch.testing.assert_close(sd.sample(same, (4, 2), seed=0), sd.sample(model, (4, 2), seed=0), rtol=1e-4, atol=1e-5)


def test_dynamic_thresholds_are_per_sample():
    """Saharia et al. 2022, sec. 2.3: the quantile of each sample's own magnitudes; nothing inside the bound."""
    data = torch.stack([torch.linspace(-0.5, 0.5, 101), torch.linspace(-4.0, 4.0, 101)]).double()
    model = sd.ScoreModel(VP, lambda x, t: data, "data")
    edited = sd.guidance.dynamic_threshold(model, 0.9)(data, VP.level(0.5), "data")
    torch.testing.assert_close(edited[0], data[0])
    limit = torch.quantile(data[1].abs(), 0.9)
    torch.testing.assert_close(edited[1], data[1].clamp(-limit, limit) / limit)
    alone = sd.guidance.dynamic_threshold(sd.ScoreModel(VP, lambda x, t: data[1:], "data"), 0.9)(
        data[1:], VP.level(0.5), "data"
    )
    assert torch.equal(alone, edited[1:])
    held = sd.guidance.dynamic_threshold(model, 0.9, limit=1.5)(data, VP.level(0.5), "data")
    torch.testing.assert_close(held[1], data[1].clamp(-1.5, 1.5) / 1.5)
    with pytest.raises(sd.InvalidArgumentError, match="limit"):
        sd.guidance.dynamic_threshold(model, limit=0.5)


def test_edits_go_with_conditions():
    model = sd.ScoreModel(VP, lambda x, t, c: x * c[:, None], "noise", c=torch.arange(4.0))
    clipped = sd.guidance.static_threshold(model)
    whole = sd.sample(clipped, (4, 2), steps=4, seed=0)
    torch.testing.assert_close(sd.sample(clipped, (4, 2), steps=4, batch_size=3, seed=0), whole)
    with pytest.raises(sd.InvalidArgumentError, match="batch"):
        sd.sample(clipped, (5, 2), seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.guidance.static_threshold(network(), 1.0, -1.0),
        lambda: sd.guidance.dynamic_threshold(network(), 1.5),
        lambda: sd.guidance.dynamic_threshold(network(), 0.9, 0.0),
        lambda: sd.guidance.map_data(VP.reverse(network()), lambda data, x, level: data),
        lambda: sd.guidance.map_data(network(), 3.0),
        lambda: sd.guidance.map_data(network(), lambda data, x, level: data[:1])(
            torch.ones(2, 2), VP.level(0.5), "data"
        ),
    ],
)
def test_bad_edits_are_errors(make):
    with pytest.raises(sd.SdegenError):
        make()


def test_the_paths_data_end_where_the_flow_ends():
    """The previews of a fine path tend to the sample."""
    path = sd.draw(PROBLEMS["three"].data.score(EDM), (4, 2), steps=60, path=True, dtype=F64, seed=0)
    gaps = (path.previews - path.x).abs().amax((1, 2))
    assert float(gaps[-1]) < 1e-3 < float(gaps[0])
