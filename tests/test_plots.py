"""Pictures: what is drawn where, what cannot be drawn, letters that do not touch, files that play."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import mostly_slow
from matplotlib.text import Text
from PIL import Image

import sdegen as sd
from sdegen import plots
from sdegen.plots.logs import apart
from sdegen.plots.orders import before_floor, slope
from sdegen.plots.plane import SHARES

F64 = torch.float64
VP, EDM = sd.VP(), sd.EDM()
LINE = sd.GaussianMixture([[-1.5], [1.0]], stds=[0.3, 0.5])
PLANE = sd.GaussianMixture([[-2.0, 0.0], [1.5, 1.0]], stds=[0.3, 0.5])
WIDTHS = pytest.mark.parametrize("width", [3.6, 7.6])
NAMES = ["Euler-Maruyama", "DPM-Solver++ (2M) SDE", "UniPC, order 3", "DDIM", "Heun", "a peer's dpmpp_2m", "PNDM"]


def axes(width=7.6, height=4.8):
    return plots.figure(width, height).add_subplot()


def values(*shape):
    """Numbers without a pattern."""
    return torch.sin(torch.arange(math.prod(shape), dtype=F64) ** 1.5).reshape(shape)


def many(count, budgets=(5, 8, 10, 15, 20, 30, 50, 100)):
    """Curves that start close to each other and end at a floor."""
    return {
        f"{NAMES[i % len(NAMES)]} {i}": [(x, math.hypot(5 * x ** (-0.6 - 0.1 * i), 0.03)) for x in budgets]
        for i in range(count)
    }


def boxes(ax, artists):
    """Where artists are on the page, once it is laid out."""
    whole = ax.figure.canvas.figure
    whole.draw_without_rendering()
    # of an annotation its letters, without its line
    return [(Text if isinstance(a, Text) else type(a)).get_window_extent(a) for a in artists]


def numbers(axis):
    """The numbers at an axis that are shown."""
    axis.figure.draw_without_rendering()
    return [tick.label1 for tick in axis._update_ticks()]


def no_two_touch(found):
    return not any(a.overlaps(b) for a, b in itertools.combinations([b for b in found if b.width > 1], 2))


def inside(whole, found):
    return all(b.x0 > -1 and b.y0 > -1 and b.x1 < whole.bbox.x1 + 1 and b.y1 < whole.bbox.y1 + 1 for b in found)


def said(ax):
    """All words of the axes but for ticks and labels."""
    return "\n".join(text.get_text() for text in ax.texts).replace("\n", " ")


# ---- paths


def test_a_score_field_of_a_network_is_asked_in_its_own_precision():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(2, 2)

        def forward(self, x, t):
            return self.line(x)

    model = sd.ScoreModel(sd.VP(), Net().eval(), "noise")
    with torch.no_grad():
        assert plots.score_field(model, model.process.level(0.3), (-2, 2)) is not None


def test_points_are_lines_with_a_ring_where_they_start_and_a_dot_where_they_end():
    states = values(5, 3, 2)
    own = axes()
    ax = plots.trajectories(states, ax=own, title="a run")
    assert ax is own
    lines, start, end = ax.collections
    assert np.array_equal(np.stack(lines.get_segments()), states.transpose(0, 1).numpy())
    assert np.array_equal(start.get_offsets(), states[0].numpy())
    assert np.array_equal(end.get_offsets(), states[-1].numpy())
    assert np.allclose(start.get_facecolors(), 1)
    assert len({tuple(c) for c in end.get_facecolors()}) == 3
    assert ax.get_title(loc="left") == "a run"
    assert plots.trajectories(states, span=(-2, 3)).axis() == (-2, 3, -2, 3)


def test_numbers_are_lines_over_time_as_the_run_goes():
    states = values(4, 3)
    for given in (states, states[..., None], states.float()):
        ax = plots.trajectories(given, times=[1.0, 0.5, 0.2, 0.1])
        drawn = np.stack(ax.collections[0].get_segments())
        assert np.allclose(drawn[..., 1], states.T.numpy(), atol=1e-6)
        assert np.array_equal(drawn[0, :, 0], [1.0, 0.5, 0.2, 0.1])
        assert ax.get_xlim() == (1.0, 0.1)
    assert np.array_equal(plots.trajectories(states).collections[0].get_segments()[0][:, 0], range(4))


def test_a_state_that_is_not_finite_leaves_a_gap_alone():
    states = values(4, 20, 2)
    states[2, 5] = math.nan
    ax = plots.trajectories(states)
    assert len(ax.collections[0].get_segments()) == 20
    ax.figure.draw_without_rendering()


def test_images_are_a_row_per_sample():
    ax = plots.trajectories(torch.zeros(4, 2, 8, 8), list("abcd"))
    assert ax.images[0].get_array().shape == (17, 35)
    assert [text.get_text() for text in ax.texts] == list("abcd")


# ---- films


def test_a_film_has_a_frame_per_state_and_holds_the_last(tmp_path):
    states, file, own = values(4, 50, 2), tmp_path / "flow.gif", axes(3.0, 3.0)
    canvas = own.figure.canvas
    ax = plots.animate(states, file, ax=own, fps=8, hold=0.7, times=[1.0, 0.6, 0.3, 0.1], title="flow")
    assert ax is own
    assert own.figure.canvas is canvas
    assert np.array_equal(ax.collections[0].get_offsets(), states[-1].numpy())
    assert ax.texts[0].get_text() == "t = 0.100"
    with Image.open(file) as film:
        assert film.format == "GIF"
        assert film.info["loop"] == 0
        frames, lengths = [], []
        for i in range(film.n_frames):
            film.seek(i)
            lengths.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB")))
    assert lengths == [120, 120, 120, 700]
    assert frames[0][2, 2].tolist() == [255, 255, 255]
    assert all((a != b).any() for a, b in itertools.pairwise(frames))


def test_a_film_shows_the_law_at_the_time_of_its_frame(tmp_path):
    times = VP.at(torch.tensor([-3.0, 0.0, 3.0], dtype=F64)).t
    model = PLANE.score(VP)
    ax = plots.animate(values(3, 9, 2), tmp_path / "a.gif", law=model, times=times, span=(-4, 4), dpi=40)
    left = [c for c in ax.collections if c.get_zorder() == 1]
    alone = plots.density(model, (-4, 4), level=VP.level(times[-1])).collections
    assert len(left) == 1  # those of the frames before are gone
    assert np.allclose(left[0].levels, alone[0].levels, rtol=0.1)
    plots.animate(values(3, 9, 2), tmp_path / "b.gif", law=lambda x, t: -(x.square().sum(1)) * t, times=times, dpi=40)
    ax = plots.animate(values(2, 9, 2), tmp_path / "c.gif", labels=["noise", "data"], dpi=40)
    assert ax.texts[0].get_text() == "data"


@pytest.mark.slow
def test_a_film_of_60_frames_of_2000_points_is_below_2_megabytes(tmp_path):
    path = sd.draw(PLANE.score(VP), (2000, 2), steps=59, solver=sd.ddpm(), path=True, dtype=F64, seed=0)
    plots.animate(path.path, tmp_path / "a.gif", times=path.levels.t, law=PLANE.score(VP))
    assert (tmp_path / "a.gif").stat().st_size < 2e6
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 60


# ---- laws


def test_regions_of_a_gaussian_hold_their_mass():
    """The region above a share 1 - s of the peak holds the mass s of a Gaussian in the plane."""
    law = sd.Gaussian([0.5, -0.5], cov=[[1.0, 0.3], [0.3, 0.5]])
    for given in (law, lambda x: law.log_prob(x) + 7):
        levels = plots.density(given, (-5, 5)).collections[0].levels
        assert np.allclose(levels[:-1], [1 - share for share in SHARES], rtol=0.03)


def test_a_density_that_is_one_number_fills_its_support():
    box = plots.density(lambda x: torch.where(x.abs().amax(1) < 1, 0.0, -math.inf), (-2, 2))
    assert len(box.collections[0].get_paths()) == 1
    box.figure.draw_without_rendering()


@pytest.mark.parametrize("score", [sd.Gaussian([1.0, 0.0], std=1.0).score(VP), lambda x, t: (1 - t[0]) - x])
def test_arrows_point_along_the_score(score):
    level = VP.level(0.4)
    own = axes()
    ax = plots.score_field(score, level, (-2, 2), own, arrows=6)
    assert ax is own
    arrows = ax.collections[0]
    at = torch.as_tensor(np.asarray(arrows.get_offsets()))
    exact = score(at, level) if isinstance(score, sd.ScoreModel) else score(at, level.t.expand(36))
    drawn = torch.stack([torch.as_tensor(arrows.U), torch.as_tensor(arrows.V)], 1)
    assert torch.allclose(torch.nn.functional.cosine_similarity(drawn, exact), torch.ones(36, dtype=F64))
    lengths = drawn.norm(dim=1)[exact.norm(dim=1).argsort()]
    assert bool((lengths.diff() > -1e-12).all())
    assert float(lengths.max()) < 4 / 6


def test_a_score_field_shows_the_density_below():
    level = EDM.level(0.7)
    ax = plots.score_field(PLANE.score(EDM), level, (-3, 3), law=PLANE)
    alone = plots.density(PLANE, (-3, 3), level=level)
    assert np.array_equal(ax.collections[0].levels, alone.collections[0].levels)
    linear = sd.OU()
    exact = PLANE.score(linear)
    plots.score_field(exact, linear.level(0.3), (-3, 3), law=exact)


def test_marginals_are_histograms_of_every_time():
    states, times = values(4, 500), torch.tensor([0.9, 0.6, 0.5, 0.1], dtype=F64)
    states[1, :100] = math.nan
    ax = plots.marginals(states, times, bins=20, span=(-1, 0.5))
    image = ax.collections[0]
    drawn = np.asarray(image.get_array()).reshape(20, 4)
    for row, column in zip(states.numpy(), drawn.T):
        assert np.allclose(column * 500 * 1.5 / 20, np.histogram(row, 20, (-1, 0.5))[0])
    edges = image.get_coordinates()[0, :, 0]
    assert np.allclose(edges, [0.9, 0.75, 0.55, 0.3, 0.1])
    assert ax.get_xlim() == (0.9, 0.1)


def test_lines_of_marginals_are_of_the_exact_density():
    model = LINE.score(VP)
    times = torch.linspace(0.9, 0.05, 60, dtype=F64)
    ax = plots.marginals(values(60, 50), times, law=model, span=(-4, 4))
    lines = ax.collections[1]
    assert len(lines.levels) == 4
    points = [path.vertices for path in lines.get_paths()]
    for level, at in zip(lines.levels, points):
        on = VP.level(torch.as_tensor(at[:, 0].copy()))
        exact = LINE.log_prob(torch.as_tensor(at[:, 1:].copy()), on).exp()
        assert torch.allclose(exact, torch.full_like(exact, float(level)), rtol=0.05)
    other = plots.marginals(values(60, 50, 1), times, law=lambda x, t: LINE.log_prob(x, VP.level(t)), span=(-4, 4))
    assert np.allclose(other.collections[1].levels, lines.levels)


# ---- levels


@WIDTHS
def test_each_grid_is_a_row_of_its_levels(width):
    grids = {"by log-SNR": sd.grids.by_snr(EDM, 50), "Karras": sd.grids.karras(EDM, 50), "ten": [80.0, 1.0, 0.01]}
    own = axes(width, 2.4)
    ax = plots.time_grids(grids, EDM, own)
    assert ax is own
    for row, (line, times) in enumerate(zip(ax.lines, grids.values())):
        level = EDM.level(torch.as_tensor(times, dtype=F64))
        assert np.allclose(line.get_xdata(), level.sigma / level.alpha, rtol=1e-12)
        assert set(line.get_ydata()) == {-row}
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # noise is on the left
    assert [t.get_text() for t in ax.texts] == ["by log-SNR: 50 steps", "Karras: 50 steps", "ten: 2 steps"]
    assert no_two_touch(boxes(ax, [*ax.texts, *numbers(ax.xaxis)]))


# ---- cost against quality


def test_points_are_drawn_by_cost_and_bad_ones_are_counted():
    curves = {
        "a": [(10, 0.2), (5, 1.0), (20, math.nan)],
        "b": [(5, 0.9), (10, 0.0), (math.inf, 1.0)],
        "c": [(5, -1.0)],
    }
    own = axes()
    ax = plots.quality(curves, 0.1, own, label="seconds")
    assert ax is own
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[5, 10], [5]]
    assert "2 points are not finite and 2 points are not above zero: left out" in said(ax)
    assert ax.get_xlabel() == "seconds"
    assert "1 point is not finite: left out" in said(plots.quality({"a": [(1, 1), (2, math.inf)]}))
    assert said(plots.quality({"a": [(1, 1)]})) == "a"


def test_intervals_are_bars_or_a_band():
    curves = {"a": [(5, 1.0, 0.5, 1.5), (10, 0.5, -1.0, 0.6), (20, 0.3, math.nan, math.nan)], "b": [(5, 2.0)]}
    ax = plots.quality(curves)
    bars = np.stack(ax.collections[0].get_segments())
    assert np.allclose(bars[0], [[5, 0.5], [5, 1.5]])
    assert np.allclose(bars[1], [[10, ax.get_ylim()[0]], [10, 0.6]])
    assert len(bars) == 2
    band = plots.quality(curves, bands=True).collections[0].get_paths()[0].vertices
    assert {(5.0, 0.5), (5.0, 1.5), (10.0, 0.6)} <= {tuple(map(float, v)) for v in band}


def test_floors_are_one_for_all_or_one_per_curve():
    curves = {"a": [(5, 1.0), (20, 0.5)], "b": [(5, 2.0)]}
    whole = plots.quality(curves, 0.1, noise=0.02)
    assert [list(line.get_ydata()) for line in whole.lines][2] == [0.1, 0.1]
    assert "floor" in said(whole)
    each = plots.quality(curves, {"a": 0.1})
    assert np.allclose(each.collections[0].get_segments()[0], [[5, 0.1], [20, 0.1]])
    assert "dashed: the floor" in said(each)


def test_rings_are_round_the_points_that_no_other_beats():
    curves = {f"{i}": [(1 + abs(x) * 9, 1 + abs(y) * 9) for x, y in values(6, 2).roll(i) + 0.1 * i] for i in range(5)}
    curves["0"] += [(2.0, 0.5), (3.0, 0.5), (2.0, 0.6)]
    ax = plots.quality(curves, pareto=True)
    rings = next(line for line in ax.lines if line.get_markerfacecolor() == "none")
    points = {(float(x), float(y)) for curve in curves.values() for x, y in curve}
    free = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]
    assert sorted(zip(*map(list, rings.get_data()))) == sorted(free)
    assert (2.0, 0.5) in free
    assert "ringed" in said(ax)


def test_muted_curves_are_grey_and_no_two_others_look_alike():
    curves = many(20)
    grey, bold = list(curves)[15:18], list(curves)[3]
    ax = plots.quality(curves, emphasis=bold, muted=grey)
    looks = {line.get_label(): (line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in ax.lines}
    dashes = {line.get_label(): str(line._dash_pattern) for line in ax.lines}
    assert len({(*looks[name], dashes[name]) for name in curves}) == 20
    assert {looks[name][0] for name in grey} & {looks[name][0] for name in curves if name not in grey} == set()
    assert max(ax.lines, key=lambda line: line.get_linewidth()).get_label() == bold


@pytest.mark.parametrize("count", [2, 8])
def test_names_beside_lines_do_not_touch(count):
    ax = plots.quality(many(count), 0.03, axes(7.6, 3.6), noise=0.01, title="names")
    names = [text for text in ax.texts if text.get_text() in many(count)]
    assert len(names) == count
    assert ax.get_legend() is None
    found = boxes(ax, names)
    assert no_two_touch([b.padded(-1) for b in found])
    assert inside(ax.figure, found)
    left = ax.transData.transform((5, 1))[0]
    assert all(b.x1 < left for b in found)
    places = sorted(names, key=lambda text: -text.xyann[1])
    assert [n.xy[1] for n in places] == sorted((n.xy[1] for n in names), reverse=True)


@pytest.mark.parametrize("count", mostly_slow([3, 9, 20], [9]))
@WIDTHS
def test_a_legend_stands_outside_and_letters_do_not_touch(width, count):
    draw = plots.quality(many(count), 0.03, axes(width, 5.4), pareto=True, title="A title that takes more than a line")
    errors = plots.convergence(many(count), axes(width, 5.4), declared=dict.fromkeys(many(count), 2))
    for ax in (draw, errors):
        ticks = boxes(ax, numbers(ax.xaxis))
        assert no_two_touch(ticks)
        assert no_two_touch(boxes(ax, numbers(ax.yaxis)))
        assert inside(ax.figure, boxes(ax, [ax.xaxis.label, ax.yaxis.label, ax._left_title]))
        legend = ax.get_legend()
        if legend is None:
            assert width > 5
            assert count <= 8
            continue
        assert len(legend.get_texts()) == count
        found = boxes(ax, legend.get_texts())
        assert no_two_touch([b.padded(-1) for b in found])
        assert inside(ax.figure, found)
        page = legend.get_window_extent()
        assert not any(page.padded(-3).overlaps(b) for b in [ax.bbox, *ticks, ax.xaxis.label.get_window_extent()])


@pytest.mark.parametrize("xs", [(49, 50, 51, 52), (0.0012, 0.3, 7.0), (3.0,), tuple(range(1, 200))])
@WIDTHS
def test_ticks_of_any_costs_do_not_touch(width, xs):
    ax = plots.quality({"a": [(x, 0.11 + 0.001 * i) for i, x in enumerate(xs)]}, None, axes(width, 3.0))
    for labels in (numbers(ax.xaxis), numbers(ax.yaxis)):
        assert no_two_touch(boxes(ax, labels))


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_places_are_the_nearest_ones_that_are_apart(n):
    """Without bounds it is isotonic regression, by another library; within bounds all stay inside and in order."""
    from sklearn.isotonic import IsotonicRegression

    wanted = [float(v) for v in values(3, n)[1]]
    gap = 0.2
    order = np.argsort(wanted, kind="stable")
    ranks = np.arange(n) * gap
    best = IsotonicRegression().fit_transform(np.arange(n), np.array(wanted)[order] - ranks) + ranks
    assert np.allclose(np.array(apart(wanted, gap, -9, 9))[order], best)
    placed = np.array(apart(wanted, gap, -1.3, 1.3))[order]
    assert (np.diff(placed) > gap - 1e-12).all()
    assert placed[0] >= -1.3
    assert placed[-1] <= 1.3 + 1e-12


# ---- orders


@pytest.mark.parametrize("order", [0.5, 1, 2, 3, 5])
def test_a_rounding_floor_does_not_count_into_the_order(order):
    steps = [10 * 2**i for i in range(10)]
    rough = (0.7 + 0.3 * values(10)).tolist()
    level = steps[5] ** -float(order)
    floored = [(n, max(n**-order, level * r)) for n, r in zip(steps, rough)]
    falls = before_floor(floored)
    assert 3 <= falls <= 6
    assert abs(slope(floored[:falls]) - order) < 0.1 * order
    clean = [(n, n**-order) for n in steps]
    assert before_floor(clean) == 10
    assert slope(clean) == pytest.approx(order, rel=1e-12)
    assert before_floor(clean, clean[4][1]) == 4


def test_an_order_that_falls_or_rises_late_is_no_floor():
    steps = [10 * 2**i for i in range(8)]
    late = [(n, n**-3.0 + 1e-3 / n) for n in steps]
    early = [(n, min(0.5, 4 / n**2)) for n in (1, 2, 3, 8, 16, 32)]
    assert before_floor(late) == 8
    assert before_floor(early) == 6
    assert before_floor([(n, 1.0) for n in steps]) == 8


def test_the_slope_is_that_of_least_squares():
    points = [(n, abs(float(v)) + 0.1) for n, v in zip((3, 7, 20, 50), values(4))]
    expected = -np.polyfit(np.log([p[0] for p in points]), np.log([p[1] for p in points]), 1)[0]
    assert slope(points) == pytest.approx(expected, rel=1e-10)
    assert math.isnan(slope(points[:1]))


def test_convergence_names_the_order_and_shows_what_does_not_count():
    steps = [10, 20, 40, 80, 160, 320]
    curve = [(n, max(n**-3.0, 3e-7 * (1 + n % 7 / 9))) for n in steps]
    own = axes()
    ax = plots.convergence({"a": curve, "b": [(10, 0.1), (20, math.nan)]}, own, declared={"a": 3})
    assert ax is own
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["a: 3.00 (3)", "b"]
    hollow = next(line for line in ax.lines if line.get_markerfacecolor() == "white")
    assert list(zip(*map(list, hollow.get_data()))) == curve[4:]
    dotted = next(line for line in ax.lines if line.get_linewidth() == 0.9)
    (x0, x1), (y0, y1) = dotted.get_data()
    assert math.log(y0 / y1) / math.log(x1 / x0) == pytest.approx(3)
    assert (x1, y1) == pytest.approx(curve[3])
    assert "hollow" in said(ax)
    assert "1 point is not finite" in said(ax)


# ---- what cannot be drawn


STATES, POINTS = values(3, 4), values(3, 4, 2)
NET = sd.ScoreModel(VP, lambda x, t: x, "noise")


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.trajectories(values(3, 4, 3)), "states must be"),
        (lambda: plots.trajectories(values(0, 4, 2)), "no size 0"),
        (lambda: plots.trajectories(POINTS, times=[3.0, 2.0, 1.0]), "times are the x of numbers"),
        (lambda: plots.trajectories(POINTS, ["a"]), "labels stand over"),
        (lambda: plots.trajectories(STATES, times=[2.0, 1.0]), "one per state, 3, got 2"),
        (lambda: plots.trajectories(STATES, times=[1.0, 2.0, 1.5]), "strictly monotone"),
        (lambda: plots.trajectories(POINTS * math.nan), "no state is finite"),
        (lambda: plots.trajectories(POINTS, span=(1, 0)), "span must be"),
        (lambda: plots.animate(STATES, "x.gif"), r"\[steps, n, 2\]"),
        (lambda: plots.animate(POINTS, "x.gif", fps=0), "fps must be"),
        (lambda: plots.animate(POINTS, "x.gif", hold=-1), "hold"),
        (lambda: plots.animate(POINTS, "x.gif", labels=["a"]), "labels must be one per state, 3"),
        (lambda: plots.animate(POINTS, "x.gif", law=PLANE.score(VP)), "needs times="),
        (lambda: plots.marginals(POINTS, [3.0, 2.0, 1.0]), "states must be numbers"),
        (lambda: plots.marginals(STATES, [3.0, 1.0]), "one per state"),
        (lambda: plots.marginals(STATES, [3.0, 2.0, 1.0], bins=1), "bins must be 2"),
        (lambda: plots.marginals(STATES * math.inf, [3.0, 2.0, 1.0]), "no state is finite"),
        (lambda: plots.density(PLANE.score(VP), (-1, 1)), "give level="),
        (lambda: plots.density(LINE, (-1, 1)), "this mixture takes"),
        (lambda: plots.density(PLANE, (-1, 1, 0)), "span must be"),
        (lambda: plots.density(lambda x: x, (-1, 1)), "log_prob must return"),
        (lambda: plots.density(lambda x: x[:, 0] * math.nan, (-1, 1)), "finite or -inf"),
        (lambda: plots.density(lambda x: torch.full((len(x),), -math.inf), (-1, 1)), "finite somewhere"),
        (lambda: plots.time_grids({}, VP), "at least one grid"),
        (lambda: plots.time_grids({"a": [2.0, 0.5]}, VP), "span"),
        (lambda: plots.quality({"a": [(1.0, 2.0, 3.0)]}), "a point must be"),
        (lambda: plots.quality({"a": [3.0]}), "a point must be"),
        (lambda: plots.quality({"a": [(1.0, 2.0, 3.0, 4.0)]}), "must hold its point"),
        (lambda: plots.quality({"a": [(1, 1)]}, 0.0), "floors must be"),
        (lambda: plots.quality({"a": [(1, 1)]}, {"a": math.nan}), "floors must be"),
        (lambda: plots.convergence({"a": []}), "no .* above zero"),
        (lambda: plots.convergence({"a": [(1, 2, 1, 3)]}), "a point must be"),
    ],
)
def test_reports_invalid_values(draw, words):
    with pytest.raises(sd.InvalidArgumentError, match=words):
        draw()


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.trajectories([1.0]), "must be a tensor, got list"),
        (lambda: plots.trajectories(torch.zeros(3, 4, dtype=torch.long)), "floating"),
        (lambda: plots.animate(POINTS.numpy(), "x.gif"), "must be a tensor"),
        (lambda: plots.animate(POINTS, "x.gif", fps="fast"), "must be numbers"),
        (lambda: plots.animate(POINTS, "x.gif", law=PLANE, times=[3.0, 2.0, 1.0]), "alone has no time"),
        (lambda: plots.marginals(STATES, [3.0, 2.0, 1.0], law=LINE), "alone has no time"),
        (lambda: plots.marginals(STATES, [3.0, 2.0, 1.0], bins=2.5), "whole number"),
        (lambda: plots.density(NET, (-1, 1)), "has no density"),
        (lambda: plots.density(3, (-1, 1)), "a law is"),
        (lambda: plots.density(PLANE, (-1, 1), level=0.5), "must be a Level"),
        (lambda: plots.score_field(NET, 0.5, (-1, 1)), "must be a Level"),
        (lambda: plots.score_field(3, VP.level(0.5), (-1, 1)), "score must be"),
        (lambda: plots.time_grids({"a": [1.0, 0.5]}, sd.OU()), "need a Process"),
        (lambda: plots.time_grids([[1.0, 0.5]], VP), "must be a dict"),
        (lambda: plots.quality([(1, 2)]), "must be a dict"),
    ],
)
def test_reports_invalid_types(draw, words):
    with pytest.raises(sd.InvalidTypeError, match=words):
        draw()


def test_nothing_is_global():
    code = (
        "import sys, sdegen.plots as plots; assert 'matplotlib' not in sys.modules;"
        "plots.quality({'a': [(1, 2)]}).figure.draw_without_rendering(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
