"""The demo, its pictures and the command line, on few samples and two budgets."""

from __future__ import annotations

import csv
import importlib.util
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import sdegen as sd
from sdegen import cli, demo, plots
from sdegen.demo.measurements import EXACT_SETS, PROJECTIONS, directions, timed

for needed in ("sklearn", "matplotlib"):  # looked for, and imported by the tests alone: collection has no need of them
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}", allow_module_level=True)

NAMES = ["euler_maruyama", "pc", "ddim", "dpmpp", "unipc", "default"]
SMALL = {"samples": 200, "budgets": [5, 20], "quick": True, "quiet": True}


class Bar:
    def update(self, n):
        pass


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return out, demo.run(out, seed=3, **SMALL)


@pytest.fixture(scope="module")
def digits():
    return demo.fit(0)


def test_it_writes_pictures_of_sensible_sizes(done):
    from matplotlib import image

    out, _ = done
    assert sorted(p.name for p in out.iterdir()) == sorted(demo.FILES)
    for name in demo.FILES[:4]:
        picture = image.imread(out / name)
        height, width = picture.shape[:2]
        assert 400 <= height <= 1500, name
        assert 1000 <= width <= 1600, name
        assert picture[..., :3].std() > 0.05, f"{name} is blank"
    assert image.imread(out / "overview.png").shape[1] == 1200
    assert (out / "overview.png").stat().st_size < 300_000


def test_the_table_shows_every_method_and_the_evaluations_it_used(done):
    _, report = done
    text = demo.table(report)
    assert [row.method for row in report.rows] == [name for name in NAMES for _ in range(2)]
    for name in NAMES:
        assert demo.METHODS[name].label in text
    assert re.search(rf"floor +distance +{report.floor:.4f}", text)
    used = [line.split()[-2:] for line in text.splitlines() if "NFE used" in line]
    assert used == [["5", "19" if name == "pc" else "20"] for name in NAMES]
    assert max(map(len, text.splitlines())) <= 80


def test_the_csv_holds_the_report(done):
    out, report = done
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [row.method for row in report.rows]
    for got, row in zip(rows, report.rows, strict=True):
        assert (int(got["budget"]), int(got["nfe"])) == (row.budget, row.nfe)
        assert float(got["distance"]) == pytest.approx(row.distance, abs=1e-6)
        assert float(got["floor"]) == pytest.approx(report.floor, abs=1e-6)
        assert float(got["seconds"]) >= 0


def test_same_seed_same_numbers_and_no_global_generator(done, digits, tmp_path):
    _, first = done
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = demo.run(tmp_path, seed=3, **SMALL)
    assert [row[:4] for row in again.rows] == [row[:4] for row in first.rows]
    assert again[1:] == first[1:]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    other = demo.measure(digits, 4, 200, ["ddim"], [5])
    assert other.rows[0].distance != first.rows[4].distance


@pytest.mark.slow
def test_deterministic_methods_fall_towards_the_floor(digits):
    report = demo.measure(digits, 0, 500, ["ddim", "dpmpp", "unipc", "default"], [5, 8, 30])
    for name in report.methods:
        far, nearer, near = (row.distance for row in report.of(name))
        assert far > nearer > near, name
        assert near < 1.8 * report.floor, name
    assert not report.exact(report.of("default")[0])
    assert report.exact(report.of("default")[2])


def test_the_floor_is_the_distance_of_exact_samples(digits):
    few, many = (demo.measure(digits, 0, n, ["ddim"], [2]) for n in (250, 1000))
    assert few.floor == pytest.approx(2 * many.floor, rel=0.15)  # it falls like 1/sqrt(n)
    assert 0 < many.noise < 0.3 * many.floor
    assert many.spread == pytest.approx(float(digits.images.reshape(-1, 64).var(0).mean().sqrt()), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_truly(name, digits):
    exact, calls = digits.mixture.score(sd.VP()), []

    def net(x, t):
        calls.append(len(x))
        return exact(x, exact.process.level(t[0].double()), "score")

    counted = sd.ScoreModel(sd.VP(), net)
    for budget in (5, 8):
        calls.clear()
        x, nfe, _ = timed(counted, demo.METHODS[name].solver, budget, 4, 0, Bar())
        assert x.shape == (4, 8, 8)
        assert len(calls) == nfe <= budget


def test_the_sliced_distance_has_known_values():
    along = directions(5, 20_000, 6)
    assert along.norm(dim=1).allclose(torch.ones(20_000, dtype=torch.float64))
    a = sd.noise.normals(sd.noise.seeds(1, 300), (2, 3), (1, 0, 0, 0), dtype=torch.float64)
    assert demo.sliced_distance(a, a.flip(0), along) == 0.0
    shift = torch.tensor([[3.0, 0, 0], [0, 4.0, 0]])
    # a shift v is |along . v| far in each direction, whose mean square over the sphere is |v|^2 / D
    assert demo.sliced_distance(a, a + shift, along) == pytest.approx(5 / math.sqrt(6), rel=0.03)
    assert demo.sliced_distance(a, a + shift, torch.eye(6).double()) == pytest.approx(5 / math.sqrt(6), rel=1e-12)
    # a scaling by 2 of centred unit normals: W2 = 1 in every direction, in the limit of many samples
    assert demo.sliced_distance(a, 2 * a, along) == pytest.approx(1.0, rel=0.05)


def test_the_sliced_distance_is_an_optimal_assignment():
    optimize = pytest.importorskip("scipy.optimize")
    a, b = (
        np.asarray(sd.noise.normals(sd.noise.seeds(s, 40), (5,), (1, 0, 0, 0), dtype=torch.float64)) for s in (1, 2)
    )
    along = np.asarray(directions(0, 12, 5))
    costs = []
    for v in along:
        cost = np.subtract.outer(a @ v, b @ v) ** 2
        costs.append(cost[optimize.linear_sum_assignment(cost)].mean())
    got = demo.sliced_distance(*map(torch.as_tensor, (a, b, along)))
    assert got == pytest.approx(math.sqrt(np.mean(costs)), rel=1e-12)
    assert (PROJECTIONS, EXACT_SETS) == (256, 16)


def test_the_mixture_fits_the_digits(digits):
    assert len(digits.mixture) == 20
    assert digits.images.shape == (1797, 8, 8)
    assert (float(digits.images.min()), float(digits.images.max())) == (-1, 1)
    assert digits.mixture.mean().allclose(digits.images.mean(0))
    truth = torch.cov(digits.images.flatten(1).T, correction=0) + 0.05**2 * torch.eye(64)
    assert digits.mixture.cov().allclose(truth)
    assert (digits.classify(digits.images) == digits.labels).double().mean() > 0.97


def test_sheets_leave_missing_images_empty(digits):
    sheet = digits.sheet(digits.images[:12], digits.labels[:12], columns=2)
    assert sheet.shape == (20, 8, 8)
    assert sheet.isnan().flatten(1).all(1).tolist() == [j == 1 and digit > 1 for digit in range(10) for j in range(2)]


def test_plots_draw_on_given_axes_and_on_their_own():
    whole = plots.figure(3, 3)
    ax = whole.add_subplot()
    assert plots.image_grid(torch.zeros(3, 4, 5), 2, ax, title="t", row_labels="ab") is ax
    assert ax.images[0].get_array().shape == (9, 11)
    assert plots.image_grid(torch.zeros(3, 3, 16, 16), 3).images[0].get_array().shape == (16, 52, 3)
    assert plots.trajectories(torch.zeros(4, 2, 8, 8)).images[0].get_array().shape == (17, 35)
    plan = sd.Plan.of(sd.lms(2), sd.EDM(), 6)
    assert plots.plan(plan).lines[0].get_ydata().tolist() == torch.exp(-plan.lams).tolist()
    ax = plots.quality({"a": [(10, 0.2), (5, 1.0)], "b": [(5, 1.0)]}, 0.1, emphasis="a")
    assert list(ax.get_lines()[0].get_xdata()) == [5, 10]
    ax.get_figure().canvas.draw()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.image_grid(torch.zeros(3, 4)),
        lambda: plots.image_grid(torch.zeros(0, 4, 4)),
        lambda: plots.image_grid(torch.zeros(2, 4, 4), 0),
        lambda: plots.trajectories(torch.zeros(2, 4, 4)),
        lambda: plots.quality({}),
        lambda: plots.quality({"a": [(5, 0.0)]}),
    ],
)
def test_plots_refuse_what_they_cannot_draw(draw):
    with pytest.raises(sd.InvalidArgumentError):
        draw()


def test_the_command_prints_the_table_and_where_the_files_are(tmp_path, capsys):
    threads = torch.get_num_threads()
    args = [
        "demo",
        "--out",
        str(tmp_path / "a"),
        "--samples",
        "20",
        "--methods",
        "pc,ddim",
        "--nfe",
        "5,3,5",
        "--quick",
    ]
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "UniPC" not in out
    for word in ("Predictor-corrector", "DDIM", str(tmp_path / "a"), "overview.png"):
        assert word in out
    assert torch.get_num_threads() == threads
    assert cli.main([*args, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--seed", "-1"], ["--seed", "-1 is below 0"]),
        (["--seed", "x"], ["--seed", "'x' is not a whole number"]),
        (["--seed", str(2**63)], ["--seed", "is over"]),
        (["--samples", "1"], ["--samples", "1 is below 2"]),
        (["--nfe", "1,5"], ["--nfe", "1 is below 2"]),
        (["--nfe", "5,many"], ["--nfe", "'many'"]),
        (["--nfe", "2", "--methods", "pc"], ["pc needs an NFE of at least 3"]),
        (["--methods", "dimm"], ["unknown method 'dimm'", "did you mean 'ddim'?"]),
        (["--methods", "zzz"], ["unknown method 'zzz'", "euler_maruyama"]),
        (["--out", __file__], ["--out", "is a file"]),
        (["--out", __file__ + "/x"], ["cannot write to", "Not a directory"]),
        (["--colour"], ["unrecognized arguments: --colour"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(args, words, capsys):
    assert cli.main(["demo", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for word in ("sdegen", *words):
        assert word in err


@pytest.mark.parametrize(("module", "extra"), [("sklearn.datasets", "demo"), ("matplotlib.figure", "plots")])
def test_a_missing_package_is_one_line_and_status_2(module, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo", "--out", str(tmp_path), "--samples", "2", "--nfe", "3", "--quick"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"pip install 'sdegen[{extra}]'" in err


def test_without_tqdm_there_is_no_bar_and_all_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert cli.main(["demo", "--out", str(tmp_path), "--samples", "2", "--nfe", "3", "--quick"]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "results.csv").exists()


@pytest.mark.slow
def test_the_network_is_trained_measured_and_drawn(tmp_path, capsys):
    """At a tenth of the steps: its samples are no farther from held-out digits than twice the exact mixture's."""
    from matplotlib import image

    report = demo.run(tmp_path, samples=50, methods=["ddim"], budgets=[5], steps=200)
    out = capsys.readouterr().out
    assert len(report.rows) == 1
    for word in (
        "257,025 parameters",
        "1,500 of the digits",
        "297 digits that neither has seen",
        "audit of ScoreModel",
    ):
        assert word in out
    with (tmp_path / "network.csv").open(newline="") as file:
        rows = {(row["images"], int(row["nfe"])): row for row in csv.DictReader(file)}
    assert set(rows) == {("training images", 0), *((n, k) for n in ("mixture", "network") for k in (5, 10, 20))}
    for nfe in (5, 10, 20):
        far, exact = (float(rows[name, nfe]["distance"]) for name in ("network", "mixture"))
        assert far < 2 * exact
        assert float(rows["network", nfe]["recall"]) > 0.5
    for name in ("network.png", "training.png"):
        assert image.imread(tmp_path / name)[..., :3].std() > 0.05, f"{name} is blank"
    assert "findings:" in out or "nothing was found" in out
    assert cli.main(["sample", str(tmp_path / "network"), "--n", "4", "--out", str(tmp_path / "x.npy")]) == 0
    assert np.load(tmp_path / "x.npy").shape == (4, 1, 8, 8)


def test_failures_and_interruptions_have_their_status(monkeypatch, capsys):
    for error, status in ((KeyboardInterrupt(), 130), (sd.SdegenError("no"), 1), (PermissionError(13, "denied"), 2)):

        def fails(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(demo, "run", fails)
        assert cli.main(["demo"]) == status
        assert capsys.readouterr().err.count("\n") == 1


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdegen {sd.__version__}\n"
    assert cli.main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert cli.main(["demo", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (*demo.METHODS, *demo.FILES, *demo.Row._fields, f"{demo.SAMPLES}", ",".join(map(str, demo.BUDGETS))):
        assert word in text
    assert cli.main([]) == 2


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    code = (
        "import signal, sys, threading, _thread\nfrom sdegen import cli, demo\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may start its jobs with it ignored
        "threading.Timer(0.5, _thread.interrupt_main).start()\n"
        "sys.exit(cli.main(['demo', '--out', sys.argv[1], '--samples', '20000']))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (130, "sdegen: interrupted\n")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "sdegen", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sdegen {sd.__version__}\n"
