"""Sweeps and `sdegen bench`: what is counted, compared, kept, resumed and written; names; errors in the score."""

from __future__ import annotations

import csv
import dataclasses
import errno
import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from cases import crossed, mostly_slow

import sdegen as sd
from sdegen import bench
from sdegen.bench import figures, files, identity, names, orders, own, page, runs, sources, store, tables, targets
from sdegen.bench.contenders import Calibrated, Ours, drawn
from sdegen.bench.sweep import plan
from sdegen.cli import main
from sdegen.errors import InvalidArgumentError, InvalidTypeError

F64 = torch.float64


class Counted:
    """An exact denoiser of a mixture that counts the rows it is asked for, and may raise."""

    def __init__(self, process, law, stop=math.inf):
        self.inner, self.rows, self.stop = law.score(process), 0, stop
        self.process = process

    def __getstate__(self):
        """What it is, and not how often it was asked: what keys of kept runs are made of."""
        return {"inner": self.inner, "process": self.process}

    def __call__(self, x, time):
        self.rows += len(x)
        if self.rows > self.stop:
            raise KeyboardInterrupt
        return self.inner(x, self.process.level(time.double()), "data")


def ring(process=None, stop=math.inf, **options):
    process = process or sd.VP()
    law = sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), stds=0.3)
    net = Counted(process, law, stop)
    given = {"law": law, "dtype": F64, **options}
    return bench.Problem("two", sd.ScoreModel(process, net, "data"), (2,), **given), net


@pytest.fixture(scope="module", autouse=True)
def _timed_once():
    """What a sweep finds does not depend on how often its runs are timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RUNS", 1)
        yield


@pytest.fixture(scope="module")
def small():
    """One sweep that several tests look at."""
    problem, _ = ring()
    solvers = ["default", "ddim", "heun", "ddpm", "adams"]
    return bench.sweep(problem, solvers, [4, 8, 16], ["sw2", "rmse"], samples=64, resamples=20, progress=False)


# rows


def test_rows_are_tidy(small):
    assert all(tuple(row) == bench.COLUMNS for row in small)
    places = [(r["solver"], r["budget"], r["metric"]) for r in small]
    assert len(set(places)) == len(places)
    assert {(s, m) for s, _, m in places} == {
        *((s, "sw2") for s in ("default", "ddim", "heun", "ddpm", "adams")),
        *((s, "rmse") for s in ("default", "ddim", "heun", "adams")),
    }
    assert {b for s, b, _ in places if s == "adams"} == {1e-2, 1e-3}
    assert {b for s, b, _ in places if s == "ddim"} == {4, 8, 16}


def test_evaluations_are_those_of_the_model():
    for name in ("default", "heun", "pc", "dpm3", "adams"):
        problem, net = ring()
        contender = names.contender(name)
        for budget in (1e-2,) if contender.adaptive else (7, 12):
            net.rows = 0
            made = contender.draw(problem, 32, budget, 0, None)
            if budget < 1:  # samples that are done may be evaluated once more until they leave the batch
                assert made.nfe <= net.rows / 32 < 1.1 * made.nfe
            else:
                assert made.nfe == net.rows / 32 <= budget


def test_the_last_denoising_counts_where_samples_are_compared_with_data():
    process = sd.VP()
    data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    problem, net = ring(process, law=None, data=data, dtype=None)
    made = names.contender("ddim").draw(problem, 16, 6, 0, None)
    assert made.nfe == 6 == net.rows / 16
    exact = sd.sample(problem.model, (16, 2), steps=5, solver=sd.ddim(), progress=False, seed=0)
    assert torch.equal(made.x, exact)


def test_values_are_the_metrics_of_the_samples(small):
    problem, _ = ring()
    x = drawn(problem, 64, 0, None, solver=sd.ddim(), steps=8).x
    goal = targets.target(problem, [targets.metric(name) for name in ("sw2", "rmse")], 64, 0, None)
    for name in ("sw2", "rmse"):
        (row,) = small.where(solver="ddim", budget=8, metric=name)
        assert row["value"] == targets.metric(name)(x, goal)
        assert row["floor"] == pytest.approx(sd.metrics.floor(targets.metric(name), goal, 64))
        assert row["low"] <= row["value"] <= row["high"]


@pytest.mark.slow
def test_the_reference_is_tight():
    problem, _ = ring()
    goal = targets.target(problem, [targets.metric("rmse")], 32, 0, None)
    exact = drawn(problem, 32, 0, None, solver=sd.adams(), tol=1e-10).x
    assert (goal.ends - exact).abs().max() < 1e-6
    assert 0 < (goal.ends_spare - exact).abs().max() < 1e-4


def test_more_evaluations_are_nearer(small):
    for name in ("default", "ddim", "heun"):
        values = [small.where(solver=name, budget=b, metric="rmse")[0]["value"] for b in (4, 8, 16)]
        assert values[0] > values[1] > values[2] > 0


def test_csv_and_frame_hold_the_rows(small, tmp_path):
    small.write(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [r["solver"] for r in read] == [r["solver"] for r in small]
    assert [float(r["value"]) for r in read] == [r["value"] for r in small]
    pytest.importorskip("pandas")
    frame = small.frame()
    assert list(frame.columns) == list(bench.COLUMNS)
    assert frame["value"].tolist() == [r["value"] for r in small]


def test_a_frame_without_pandas_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(InvalidArgumentError, match="pip install pandas"):
        small.frame()


def test_rows_without_such_a_column():
    with pytest.raises(InvalidArgumentError, match="no column 'nfes'"):
        bench.Rows().where(nfes=3)


@pytest.mark.slow
def test_no_solver_takes_more_than_its_budget():
    problem, _ = ring()
    for name in names._SOLVERS:
        for contender in (names.contender(name), names.contender(f"{name}@karras")):
            for budget in () if contender.adaptive else (2, 6, 13):
                ready = contender.ready(problem, budget, 0, None)
                if ready.steps:
                    made = ready.draw(problem, 2, budget, 0, None)
                    assert 0 < made.nfe <= budget, (contender.name, contender.grid, budget)
                else:
                    assert budget < 13, contender.name


def test_a_budget_that_is_no_step_has_no_row():
    rows = bench.sweep(ring()[0], ["pndm", "ddim"], [3], ["rmse"], samples=8, progress=False)
    assert rows.each("solver") == ["ddim"]


def test_floors_are_of_as_many_exact_samples():
    data = torch.randn(60, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    problem, _ = ring(law=None, data=data)
    (row,) = bench.sweep(problem, ["ddim"], [5], ["sw2"], samples=1000, resamples=20, progress=False)
    assert row["samples"] == 30
    first, other = targets.exact(problem, 30, 0)
    assert row["floor"] == pytest.approx(float(sd.metrics.sliced_wasserstein(other, first)))


def test_bad_samples_are_counted_and_do_not_hide():
    problem, _net = ring()

    class Bad(Counted):
        def __call__(self, x, time):
            out = super().__call__(x, time)
            return torch.where((torch.arange(len(x)) == 1)[:, None], torch.nan, out) if len(x) == 32 else out

    bad = Bad(problem.process, problem.law)
    broken = bench.Problem("bad", sd.ScoreModel(problem.process, bad, "data"), (2,), law=problem.law, dtype=F64)
    (row,) = bench.sweep(broken, ["ddim"], [5], ["sw2"], samples=32, resamples=20, progress=False)
    assert row["failed"] == 1
    assert row["value"] == math.inf
    assert "1 failed" in page._cell(row)["value"]


def test_the_seconds_are_those_of_the_fastest_of_some_runs(monkeypatch):
    now = iter([0.0, 3.0, 3.0, 4.0, 4.0, 9.0])
    monkeypatch.setattr(runs.time, "perf_counter", lambda: next(now))
    draw = names.contender("ddim").draw
    monkeypatch.setattr(runs, "RUNS", 3)
    monkeypatch.setattr(runs, "SECONDS", 100.0)
    made, seconds = runs._timed(lambda: draw(ring()[0], 2, 4, 0, None))
    assert (made.nfe, seconds) == (4, 1.0)
    now = iter([0.0, 3.0])
    monkeypatch.setattr(runs, "SECONDS", 2.0)
    assert runs._timed(lambda: draw(ring()[0], 2, 4, 0, None))[1] == 3.0


# resuming


def key(row):
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_sweep_goes_on_where_it_was_interrupted(tmp_path):
    whole, net = ring()
    settings = {"samples": 16, "resamples": 20, "progress": False, "resume": True}
    expected = bench.sweep(whole, ["ddim", "heun", "ddpm"], [4, 8], ["sw2"], **settings)
    cut, _ = ring(stop=net.rows // 2)
    with pytest.raises(KeyboardInterrupt) as caught:
        bench.sweep(cut, ["ddim", "heun", "ddpm"], [4, 8], ["sw2"], keep=tmp_path, **settings)
    partial = caught.value.partial.rows
    assert 0 < len(partial) < len(expected)
    assert [key(r) for r in partial] == [key(r) for r in expected[: len(partial)]]
    again, count = ring()
    found = bench.sweep(again, ["ddim", "heun", "ddpm"], [4, 8], ["sw2"], keep=tmp_path, **settings)
    assert [key(r) for r in found] == [key(r) for r in expected]
    assert count.rows < net.rows
    count.rows = 0
    assert list(bench.sweep(again, ["ddim", "heun", "ddpm"], [4, 8], ["sw2"], keep=tmp_path, **settings)) == list(found)
    assert count.rows == 2 * 3 * 3  # two states at three levels: asked twice whether it is random, once who it is


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"samples": 17}, {"metrics": ["mean"]}, {"level": 0.9}, {"budgets": [5]}, {"model": 0.31}]
)
def test_what_is_kept_serves_the_same_run_only(tmp_path, change):
    change = dict(change)
    model = change.pop("model", None)
    given = {"budgets": [4], "metrics": ["sw2"], "samples": 16, "resamples": 20, "progress": False, "keep": tmp_path}
    given["resume"] = True
    problem, net = ring()
    bench.sweep(problem, ["ddim"], **given)
    if model is not None:
        law = sd.GaussianMixture(problem.law.means, stds=model)
        net = Counted(problem.process, law)
        problem = bench.Problem("two", sd.ScoreModel(problem.process, net, "data"), (2,), law=law, dtype=F64)
    net.rows = 0
    bench.sweep(problem, ["ddim"], **{**given, **change})
    assert net.rows > 16 + 18


def test_another_process_goes_on_as_well(tmp_path):
    """With grids, other libraries, and functions inside of metrics: no address is in a key."""
    code = """
import sys, torch
import sdegen as sd
from sdegen import bench
from sdegen.bench import names, runs
if folder is None:
    runs.Bench.shot = lambda *args: sys.exit("a run was repeated")
peers = [c for c in names.peers("k-diffusion") if c.name == "euler"]
metrics = ["sw2", sd.metrics.Frechet(lambda x: torch.cat([x, x * x], 1))]
problem = bench.problem("rings")
given = {"samples": 16, "resamples": 20, "progress": False, "keep": folder or sys.argv[1], "resume": True}
bench.sweep(problem, ["ddim@karras", "default", *peers], [4], metrics, **given)
"""
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "folder": tmp_path})  # noqa: S102
    again = ["folder = None\n" + code, str(tmp_path)]
    ran = subprocess.run([sys.executable, "-c", *again], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(list(tmp_path.iterdir())) == 4


def test_an_edited_law_or_datum_is_another_problem(tmp_path):
    one, _ = ring()
    law = sd.GaussianMixture(one.law.means, stds=0.6)
    data = torch.ones(8, 2)
    other = data.clone()
    other[4], other[5] = 2.0, 0.0
    prints = [runs.fingerprint(bench.Problem("two", one.model, (2,), dtype=F64, **more)) for more in (
        {"law": one.law}, {"law": law}, {"data": data}, {"data": other}, {},
    )]  # fmt: skip
    assert len(set(prints)) == 5


def test_a_solver_s_code_is_part_of_its_key(tmp_path):
    keys = []
    for method in ("ddim", "heun"):
        (tmp_path / "own.py").write_text(
            "import sdegen as sd\nclass Mine(sd.OneStep):\n    def step(self, *a):\n"
            f"        return sd.{method}().step(*a)\n"
            "    def __repr__(self):\n        return 'Mine()'\ndef make():\n    return Mine()\n"
        )
        keys.append(runs.made_in(names.contender(f"{tmp_path / 'own.py'}:make")).key)
    assert keys[0] != keys[1]


def test_a_run_is_written_whole_or_not_at_all(tmp_path):
    problem, _ = ring()
    settings = runs.Settings((targets.metric("sw2"),), 16, 0)
    job = runs.Job(problem, names.contender("ddim"), 4)
    shot = runs.Bench(problem, settings).shot(job)
    store.save(tmp_path / "a.json", runs.content(shot))
    back = store.load(tmp_path / "a.json", partial(runs.read, job, settings))
    assert back.rows == shot.rows
    assert (back.shown - shot.shown).abs().max() < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text())["content"]["rows"]


SCALE = 1.0


def scaled(x):
    return SCALE * x


class Scaled:
    """A network whose answers hang on all that a function can hang on."""

    factor = 1.0

    def __init__(self, inner):
        self.inner, self.own, self.weights = inner, 1.0, torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.weights.weight)
        self.weights.eval()

    def __call__(self, x, time):
        here = self.factor * self.own * self.weights.weight.detach().double()
        return scaled(self.inner(x, time)) * here


def scaled_problem(size=1.0):
    problem, net = ring()
    inner = Scaled(net)
    outer = sd.ScoreModel(problem.process, lambda x, time: size * inner(x, time), "data")
    return bench.Problem("two", outer, (2,), law=problem.law, dtype=F64), inner


@pytest.mark.parametrize("change", ["global", "class", "object", "weights", "closure", "helper"])
def test_a_kept_run_is_never_that_of_another_function(tmp_path, monkeypatch, change):
    """Whatever is changed in Python, numbers are those of now: with `resume` as well."""
    given = {"samples": 16, "resamples": 20, "progress": False}
    bench.sweep(scaled_problem()[0], ["ddim"], [4], ["sw2"], keep=tmp_path, resume=True, **given)
    before = identity.seen(scaled_problem()[0].model)
    assert before.own
    assert not before.unseen
    assert identity.seen(scaled_problem()[0].model) == before
    problem, net = scaled_problem(0.5 if change == "closure" else 1.0)
    if change == "global":
        monkeypatch.setitem(globals(), "SCALE", 0.5)
    elif change == "helper":
        monkeypatch.setitem(globals(), "scaled", lambda x: 0.5 * x)
    elif change == "class":
        monkeypatch.setattr(Scaled, "factor", 0.5)
    elif change == "object":
        net.own = 0.5
    elif change == "weights":
        torch.nn.init.constant_(net.weights.weight, 0.5)
    assert identity.seen(problem.model).key != before.key  # by the code and the numbers, whatever it answers
    (fresh,) = bench.sweep(problem, ["ddim"], [4], ["sw2"], **given)
    (found,) = bench.sweep(problem, ["ddim"], [4], ["sw2"], keep=tmp_path, resume=True, **given)
    assert key(found) == key(fresh)
    assert len(list(tmp_path.iterdir())) == 2


class Sometimes:
    """The identity at the levels at which a benchmark looks at a network, and at others what a file says."""

    def __init__(self, path):
        self.path = path

    def __call__(self, x, time):
        factor = float(self.path.read_text())
        return torch.where((time[:, None] > 0.2) & (time[:, None] < 0.4), factor * x, x)


def test_what_no_hash_sees_is_taken_only_where_one_says_so(tmp_path):
    """A network that reads a file when it is asked; it is the same code, object and first answers after an edit."""
    (tmp_path / "factor").write_text("0.5")
    problem, _ = ring()
    model = sd.ScoreModel(problem.process, Sometimes(tmp_path / "factor"), "noise")
    problem = bench.Problem("two", model, (2,), law=problem.law, dtype=F64)
    given = {"samples": 16, "resamples": 20, "progress": False, "keep": tmp_path / "runs"}
    (first,) = bench.sweep(problem, ["ddim"], [4], ["sw2"], **given)
    (tmp_path / "factor").write_text("0.1")
    (kept,) = bench.sweep(problem, ["ddim"], [4], ["sw2"], resume=True, **given)
    assert key(kept) == key(first)
    with pytest.warns(UserWarning, match="1 run that was kept was made again.*resume=True"):
        (second,) = bench.sweep(problem, ["ddim"], [4], ["sw2"], **given)
    assert second["value"] != first["value"]


def test_what_cannot_be_looked_into_is_never_kept(tmp_path):
    problem, net = ring()
    lock = threading.Lock()
    held = sd.ScoreModel(problem.process, lambda x, time: net(x, time) if lock else x, "data")
    problem = bench.Problem("two", held, (2,), law=problem.law, dtype=F64)
    given = {"samples": 16, "progress": False, "keep": tmp_path}
    for _ in range(2):
        net.rows = 0
        with pytest.warns(UserWarning, match="runs are not kept where .*lock cannot be looked into"):
            bench.sweep(problem, ["ddim"], [4], ["sw2"], resume=True, **given)
        assert net.rows > 16 + 18
    assert not list(tmp_path.iterdir())


def test_a_set_is_known_in_any_order_and_a_circle_ends():
    circle = [1]
    circle.append(circle)
    assert identity.seen({"a", "b", "c"}) == identity.seen({"c", "b", "a"})
    assert identity.seen(circle) != identity.seen([1, [1]])
    assert identity.seen(torch.ones(2)) != identity.seen(torch.ones(2, dtype=F64))
    assert identity.seen(sd.ddim()).own == ()
    assert identity.seen(Scaled).own


DAMAGE = {
    "empty": lambda text: "",
    "cut": lambda text: text[:300],
    "another": lambda text: "{}",
    "a list": lambda text: "[1, 2]",
    "a digit": lambda text: re.sub(r'"(value|declared)": (\d)', lambda m: f'"{m[1]}": {9 - int(m[2])}', text),
    "no text": lambda text: "\udcff\udcfe",
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_told_and_made_again(tmp_path, capsys, damage):
    args = ["bench", "--problem", "rings", "--samples", "20", "--nfe", "4", "--metrics", "sw2", "--solvers", "ddim"]
    args += ["--out", str(tmp_path), "--quiet", *([] if damage == "a list" else ["--no-orders"])]
    assert main(args) == 0
    before, seconds = (tmp_path / "results.csv").read_text(), re.compile(r",[^,]*(?=,[^,]*,0,20,0,sdegen)")
    capsys.readouterr()
    kept = sorted((tmp_path / "runs").iterdir())
    assert len(kept) == 1 + (damage == "a list")
    whole = [path.read_text() for path in kept]
    for path, text in zip(kept, whole):
        path.write_bytes(DAMAGE[damage](text).encode("utf-8", "surrogateescape"))
    assert main(args) == 0
    said = capsys.readouterr().err.splitlines()
    assert sorted(re.findall(r"[0-9a-f]{24}\.json", " ".join(said))) == [path.name for path in kept]
    assert all("is damaged" in line and "made again" in line for line in said)
    assert len(said) == len(kept)
    assert seconds.sub("", (tmp_path / "results.csv").read_text()) == seconds.sub("", before)
    assert main(args) == 0
    assert not capsys.readouterr().err


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "write", "open"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "rows.csv"
    path.write_text("before")
    if call in ("fsync", "replace"):
        monkeypatch.setattr(files.os, call, full)
    else:
        half = io.TextIOWrapper(io.BytesIO())
        half.write = full
        monkeypatch.setattr(files, "open", full if call == "open" else lambda *a, **o: half, raising=False)
    with pytest.raises(files.WriteError, match=r"cannot write .*rows.csv: No space left on device; what was there"):
        bench.Rows([row()]).write(path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_a_file_over_the_limit_of_the_system_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(files.WriteError, match="cannot write"):
            files.write(tmp_path / "page", "x" * (1 << 21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["runs", "results.csv", "results.md", "index.html"])
def test_a_full_disk_ends_the_command_with_a_sentence(tmp_path, monkeypatch, capsys, name):
    real, args = os.replace, ["bench", "--problem", "rings", "--samples", "20", "--nfe", "4", "--metrics", "sw2"]

    def replace(source, target):
        return full() if name in str(target) else real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    assert main([*args, "--solvers", "ddim", "--no-orders", "--out", str(tmp_path / "out"), "--quiet"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("sdegen: error: cannot write ")
    assert name in said[-1]
    assert "No space left on device" in said[-1]
    assert all(p.stat().st_size and not p.name.endswith(".part") for p in (tmp_path / "out").rglob("*.*"))
    assert not [p for p in (tmp_path / "out").rglob("*.*") if name in str(p)]


# problems


@pytest.mark.parametrize(
    ("name", "process"),
    # each problem once, and each process
    mostly_slow(
        crossed(bench.PROBLEMS, bench.PROCESSES),
        {(name, [*bench.PROCESSES][i % len(bench.PROCESSES)]) for i, name in enumerate(bench.PROBLEMS)},
    ),
)
def test_a_built_in_problem_has_the_exact_score_of_its_law(name, process):
    problem = bench.problem(name, process)
    assert problem.name == f"{name}-{process}"
    exact = problem.law.score(problem.process)
    for part in (0.02, 0.4, 0.9):
        t = problem.process.t_min + part * (problem.process.t_max - problem.process.t_min)
        level = problem.process.level(t)
        x = problem.law.sample(3, seed=1, level=level)
        found, wanted = (m(x, level, "data") for m in (problem.model, exact))
        assert (found - wanted).abs().max() < 1e-9 * (1 + wanted.abs().max())


def test_rings_have_unequal_weights():
    weights = bench.problem("rings").law.weights
    assert weights.max() > 10 * weights.min()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": lambda x, t: x}, InvalidTypeError, "ScoreModel"),
        ({"shape": (3,)}, InvalidArgumentError, r"of shape \[2\]"),
        ({"image": (3, 3)}, InvalidArgumentError, "cannot be shown"),
    ],
)
def test_a_problem_whose_parts_do_not_fit(change, error, words):
    problem, _ = ring()
    given = {"name": "x", "model": problem.model, "shape": (2,), "law": problem.law, **change}
    with pytest.raises(error, match=words):
        bench.Problem(**given)


def test_an_unknown_problem_or_process():
    with pytest.raises(InvalidArgumentError, match="did you mean 'digits'"):
        bench.problem("digit")
    with pytest.raises(InvalidArgumentError, match="unknown process 'vp'"):
        bench.problem("rings", "vp")


# names


@pytest.mark.parametrize(
    ("text", "solver"),
    [
        ("default", sd.default()),
        ("dpmpp2", sd.dpmpp(2)),
        ("dpmpp_3", sd.dpmpp(3)),
        ("unipc3", sd.unipc(3)),
        ("dpmpp(2, singlestep=True)", sd.dpmpp(2, singlestep=True)),
        ("ddim(0.5)", sd.ddim(0.5)),
        ("dopri5", sd.dopri5()),
        ("dpmpp_sde2", sd.dpmpp_sde(2)),
        ("pc", sd.pc()),
    ],
)
def test_a_name_is_a_solver(text, solver):
    assert names.contender(text) == Ours(text, solver)


def test_a_grid_follows_the_at():
    found = names.contender("unipc3@karras")
    assert (found.grid, found.times, found.name) == ("karras", sd.grids.karras, "unipc3")
    assert names.contender("dopri5").adaptive
    assert not names.contender("dopri5@karras").adaptive
    assert names.contender("plan33") == Calibrated(33)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dpmp2", "did you mean 'dpmpp'"),
        ("default@carras", "did you mean 'karras'"),
        ("dpmpp9", "orders 1 to 3"),
        ("dpmpp(order=2", "is not a solver"),
        ("dpmpp(size=2)", "does not fit dpmpp"),
        ("__import__('os')", "unknown solver"),
        ("default(open('x'))", "is not a solver"),
        ("nothere.py:f", "there is no 'nothere.py'"),
    ],
)
def test_a_name_that_is_none(text, words):
    with pytest.raises(InvalidArgumentError, match=re.escape(words)):
        names.contender(text)


def test_lists_split_outside_of_brackets():
    assert names.split("a, dpmpp(2, singlestep=True)@karras,a ,b") == ["a", "dpmpp(2, singlestep=True)@karras", "b"]


def test_problems_by_name():
    assert [p.name for p in names.problems("rings,grid-EDM")] == ["rings-VP", "grid-EDM"]
    assert [p.name for p in names.problems("grid-*")] == [f"grid-{p}" for p in bench.PROCESSES]


# plans of a sweep


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": []}, "nothing to measure"),
        ({"solvers": []}, "nothing to measure"),
        ({"solvers": ["heun"], "budgets": [1]}, "nothing to measure"),
        ({"budgets": [0]}, "a budget"),
        ({"tols": [2.0]}, "between 0 and 1"),
        ({"solvers": ["ddim", Ours("ddim", sd.heun())]}, "two solvers"),
        ({"metrics": ["fid"]}, "unknown metric 'fid'"),
        ({"metrics": []}, "nothing to measure"),
        ({"metrics": ["rmse"], "solvers": ["ddpm"]}, "nothing to measure"),
        ({"metrics": [sd.metrics.MMD(scale=0.1), sd.metrics.MMD(scale=9.0)]}, "two metrics are called 'mmd'"),
        ({"solvers": ["plan3"]}, "at least 16"),
        ({"metrics": ["sw2"], "samples": 0}, "samples"),
    ],
)
def test_a_sweep_that_cannot_work(change, words):
    problem, net = ring()
    given = {"models": problem, "solvers": ["ddim"], "budgets": [4], "progress": False, **change}
    with pytest.raises(InvalidArgumentError, match=words):
        bench.sweep(**given)
    assert net.rows == 0


# errors in the score


def states(count=4000, level=0.5, scale=1.0):
    process = sd.VP()
    law = sd.Gaussian(torch.zeros(4, dtype=F64), std=scale)
    at = process.level(process.t_min + level * (process.t_max - process.t_min))
    return law.score(process), law.sample(count, seed=3, level=at), at


@pytest.mark.parametrize(
    ("level", "where", "scale"),
    mostly_slow(
        crossed([0.01, 0.3, 0.8], ["all", "low", "high"], [0.5, 1.0, 3.0]),
        [(0.3, "all", 1.0), (0.01, "low", 3.0), (0.8, "high", 0.5)],
    ),
)
def test_an_error_has_the_size_that_is_asked_for(level, where, scale):
    """Over 200 functions and 50 states each; a function's mean square varies by some 20 %, their mean by 2 %."""
    model, x, at = states(50, level, scale)
    s = float(at.sigma / at.alpha) / scale
    window = {"all": 1.0, "low": 1 / (1 + s * s), "high": s * s / (1 + s * s)}[where]
    squares = []
    for seed in range(200):
        wrong = bench.perturbed(model, 0.1, where, seed=seed, scale=scale)
        off = wrong(x, at, "data") - model(x, at, "data")
        squares.append(off.square().mean())
    found = float(torch.stack(squares).mean().sqrt())
    assert found == pytest.approx(0.1 * scale * window * s / math.sqrt(1 + s * s), rel=0.1)


def test_an_error_is_one_function_whatever_the_prediction_and_the_batch():
    model, x, at = states(20)
    wrong = bench.perturbed(model, 0.1)
    data, noise = (wrong(x, at, want) for want in ("data", "noise"))
    assert (at.alpha * data + at.sigma * noise - x).abs().max() < 1e-12
    assert torch.equal(bench.perturbed(model, 0.1)(x, at, "data"), data)
    assert not torch.equal(bench.perturbed(model, 0.1, seed=1)(x, at, "data"), data)
    assert (wrong(x[:1], at, "data") - data[:1]).abs().max() < 1e-13
    rows = sd.Level(*(v.expand(20) for v in at))
    assert (wrong(x, rows, "data") - data).abs().max() < 1e-13


@pytest.mark.slow
def test_an_error_is_smooth():
    _model, x, at = states(200)
    off = bench.robustness.Disturbance()
    gaps = [(off(x + d, at) - off(x, at)).abs().max() for d in (1e-3, 1e-4)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)
    order = [f.points for f in orders.falls(ring()[0].perturbed(0.05), [names.contender("dpmpp2")], 0, None).values()]
    slope = math.log2(order[0][-2][1] / order[0][-1][1])
    assert slope == pytest.approx(2, abs=0.3)


def test_no_error_is_the_model_itself():
    model, x, at = states(5)
    assert torch.equal(bench.perturbed(model, 0.0)(x, at, "data"), model(x, at, "data"))


def test_reduced_precision_is_that_of_its_dtype():
    model, x, at = states(100)
    off = (bench.reduced(model)(x, at, "data") - model(x, at, "data")).abs()
    assert 1e-4 < off.max() < 2**-8 * 4
    assert bench.reduced(model, F64)(x, at, "data").equal(model(x, at, "data"))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m: bench.perturbed(m, -1), InvalidArgumentError),
        (lambda m: bench.perturbed(m, 0.1, "middle"), InvalidArgumentError),
        (lambda m: bench.perturbed(m, 0.1, scale=0), InvalidArgumentError),
        (lambda m: bench.perturbed(lambda x, t: x, 0.1), InvalidTypeError),
        (lambda m: bench.reduced(m, torch.int8), InvalidArgumentError),
        (lambda m: bench.reduced(None), InvalidTypeError),
    ],
)
def test_errors_of_errors(call, error):
    with pytest.raises(error):
        call(states(1)[0])


# tables


def row(**change):
    base = dict.fromkeys(bench.COLUMNS) | {"model": "m", "library": "sdegen", "grid": "own", "metric": "sw2"}
    return base | {"solver": "a", "budget": 10, "nfe": 10, "value": 1.0, "low": 0.9, "high": 1.1, "floor": 0.5} | change


def test_contenders_are_ranked_by_the_budgets_that_all_have():
    rows = bench.Rows(
        [
            row(solver="a", budget=5, value=9.0),
            row(solver="a", value=1.0),
            row(solver="b", value=2.0),
            row(solver="c", value=math.inf),
        ]
    )
    assert [e.solver for e in tables.ranked(rows)] == ["a", "b", "c"]


def test_answers_name_the_best_of_each_side():
    peer = {"library": "other", "solver": "p"}
    rows = bench.Rows([row(value=2.0), row(solver="b", value=1.0), row(**peer, value=3.0, low=2.9, high=3.1)])
    (answer,) = tables.answers(rows)
    assert (answer.ours["solver"], answer.peer["solver"], answer.better) == ("b", "p", 3.0)
    assert answer.verdict == "sdegen 3 times nearer"
    worse = bench.Rows([row(value=2.0, high=2.95), row(**peer, value=1.0, low=0.8, high=3.1)])
    assert tables.answers(worse)[0].verdict == "other 2 times nearer, within the intervals"
    floors = bench.Rows([row(low=0.4), row(**peer, low=0.1)])
    assert tables.answers(floors)[0].verdict == "both at the floor"


def test_more_is_better_where_it_is_and_signs_do_not_count():
    def best(metric, values, **more):
        rows = bench.Rows(row(solver=str(v), metric=metric, value=v, low=v - 0.1, high=v + 0.1, **more) for v in values)
        return rows, tables.ranked(rows)[0].solver

    shares, first = best("precision", [0.2, 0.7], floor=0.75)
    assert first == "0.7"
    assert [tables.at_floor(r) for r in shares] == [False, True]
    gaps, first = best("loglik", [-0.5, 0.3, -1.0], floor=0.25)
    assert first == "0.3"
    assert [tables.at_floor(r) for r in gaps] == [False, True, False]
    squares, first = best("mmd", [0.4, -0.1], floor=0.05)
    assert first == "-0.1"
    assert [tables.at_floor(r) for r in squares] == [False, True]
    (answer,) = tables.answers(bench.Rows([*shares[:1], {**shares[1], "library": "other"}]))
    assert answer.verdict == "other"


def test_what_should_be_near_exact_samples_may_miss_to_either_side():
    rows = bench.Rows(
        row(solver=str(v), metric="is", value=v, low=v - 0.1, high=v + 0.1, floor=2.0) for v in (2.5, 1.9)
    )
    assert tables.ranked(rows)[0].solver == "1.9"
    assert [tables.at_floor(r) for r in rows] == [False, True]


def test_a_tolerance_ranks_after_budgets_and_failures_last():
    rows = bench.Rows(
        [row(solver="a", value=3.0), row(solver="b", value=2.0), row(solver="t", budget=1e-2, value=math.inf)]
    )
    assert [e.solver for e in tables.ranked(rows)] == ["b", "a", "t"]


def test_squares_are_told_as_distances():
    peer = {"library": "other", "metric": "frechet", "low": math.nan, "high": math.nan}
    rows = bench.Rows([row(metric="frechet"), row(**peer, value=4.0)])
    assert tables.answers(rows)[0].verdict == "sdegen 2 times nearer, no intervals"


def test_a_picture_with_a_tolerance_shows_all_budgets(small):
    from sdegen import plots

    seen = []
    real = plots.quality
    plots.quality = lambda *args, **options: seen.append(real(*args, **options)) or seen[-1]
    try:
        figures.quality(small.where(metric="rmse"), "nfe")
    finally:
        plots.quality = real
    values = [r["value"] for r in small.where(metric="rmse", budget=4) if r["solver"] != "heun"]
    assert all(ax.get_ylim()[1] > max(values) for ax in seen)


def test_samples_of_large_images_can_be_shown():
    problem = bench.problem("images")
    data = torch.zeros(6000, 3072)
    assert figures.samples(problem, {"ddim": data[:16]}, data).wide.startswith("data:image/svg")


def test_one_failure_outweighs_many_small_gains():
    def solver(name, values):
        return [row(solver=name, budget=b, value=v) for b, v in zip((10, 20, 50), values)]

    rows = bench.Rows([*solver("a", (2.0, 0.130, 0.130)), *solver("b", (0.155, 0.131, 0.131))])
    assert [e.solver for e in tables.ranked(rows)] == ["b", "a"]


def test_the_fewest_evaluations_at_the_floor_and_who_is_as_good():
    rows = bench.Rows(
        [
            row(budget=5),
            row(budget=10, low=0.4),
            row(solver="b", budget=10, value=1.2, low=0.45),
            row(budget=20, low=0.1),
        ]
    )
    assert tables.enough(rows) == "No difference to exact samples can be seen from NFE 10 on: a, b."
    assert tables.enough(bench.Rows([row()])) == ""
    assert [a.tied for a in tables.answers(rows)] == [(), ("b",), ()]


def test_tables_have_the_floor_beside_every_number(small):
    text, marked = tables.text(small), tables.markdown(small)
    for r in small:
        cell = f"{tables.short(r['value'])} ({tables.short(r['floor'])})"
        assert cell in text
        assert f"{tables.short(r['value'])} [{tables.short(r['low'])}, {tables.short(r['high'])}]" in marked
    assert marked.count("floor") == len(small)


# orders


def test_orders_are_seen():
    problem, _ = ring()
    found = orders.falls(problem, [names.contender(n) for n in ("ddim", "dpmpp2", "ddpm", "adams")], 0, None)
    assert set(found) == {"ddim", "dpmpp2"}
    for name, order in (("ddim", 1), ("dpmpp2", 2)):
        assert found[name].declared == order
        assert found[name].floor < 1e-8
        (_, a), (_, b) = found[name].points[-2:]
        assert math.log2(a / b) == pytest.approx(order, abs=0.25)


# the command


class Page(html.parser.HTMLParser):
    """The texts and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset") and value]

    def handle_data(self, data):
        self.texts.append(data.strip())


ARGS = ["--problem", "rings", "--solvers", "default,ddim,adams", "--nfe", "5,10", "--samples", "40"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of one command."""
    out = tmp_path_factory.mktemp("bench") / "report"
    assert main(["bench", *ARGS, "--score-error", "0.1:low", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are not drawn, which takes most of the time of a command; `made` has them."""
    monkeypatch.setattr(figures, "picture", lambda draw, words: figures.Picture("data:,", "data:,", words))


def test_the_command_writes_a_table_and_a_page(made):
    assert {p.name for p in made.iterdir()} == {"index.html", "results.csv", "results.md", "runs"}
    with (made / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["model"] for r in rows} == {"rings-VP", "rings-VP+0.1low"}
    text = (made / "index.html").read_text()
    found = Page(text)
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"data:[^\"]*", "", text))
    for r in rows:
        assert tables.short(float(r["value"])) in found.texts
        assert any(t.startswith(f"floor {tables.short(float(r['floor']))}") for t in found.texts)
    for title in (
        "Orders",
        "Time grids",
        "Samples",
        "With an error in the score",
        "Versions and hardware",
        "sw2",
        "rmse",
    ):
        assert title in found.texts
    assert found.tags.count("picture") == 2 * (2 * 2 + 3)
    assert "sdegen bench --problem rings" in text


@pytest.mark.usefixtures("undrawn")
def test_the_command_runs_nothing_twice(made, tmp_path, monkeypatch):
    made = shutil.copytree(made, tmp_path / "report")
    before = (made / "results.csv").read_text()
    monkeypatch.setattr(runs.Bench, "shot", lambda *args: pytest.fail("a run was repeated"))
    monkeypatch.setattr(orders, "falls", lambda *args: pytest.fail("the orders were measured again"))
    assert main(["bench", *ARGS, "--score-error", "0.1:low", "--out", str(made), "--quiet"]) == 0
    assert (made / "results.csv").read_text() == before


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_command_keeps_what_it_had(tmp_path, monkeypatch, capsys):
    real, left = runs.Bench.shot, [3]

    def shot(self, job):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, job)

    monkeypatch.setattr(runs.Bench, "shot", shot)
    args = ["bench", *ARGS, "--metrics", "sw2", "--no-orders", "--out", str(tmp_path), "--quiet"]
    assert main(args) == 130
    err = capsys.readouterr().err
    assert "3 of 6 runs are kept in" in err
    assert "interrupted" in err
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert "This run was interrupted" in (tmp_path / "index.html").read_text()
    monkeypatch.setattr(runs.Bench, "shot", real)
    assert main(args) == 0
    assert "This run was interrupted" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--problem", "digit"], "did you mean 'digits'"),
        (["--problem", "rings-XY"], "unknown process 'XY'"),
        (["--solvers", "dpmp"], "did you mean 'dpm"),
        (["--metrics", "fid"], "unknown metric 'fid'"),
        (["--nfe", "0"], "0 is below 1"),
        (["--nfe", "ten"], "'ten' is not a whole number"),
        (["--tol", "2"], "2 is not between 0 and 1"),
        (["--samples", "1"], "1 is below 2"),
        (["--score-error", "0.1:middle"], "'middle' is none of"),
        (["--score-error", "much"], "'much' is not a number"),
        (["--model", "no.py:f"], "there is no 'no.py'"),
        (["--model", "no.py"], "say which function"),
        (["--model", "x.py:f", "--problem", "rings"], "not both"),
        (["--data", "x.npy"], "go with --model"),
        (["--peers", "kdiffusion"], "no adapter for 'kdiffusion'"),
        (["--grids", "carras"], "unknown grid 'carras'"),
        (["--metrics", ","], "nothing to measure"),
        (["--solvers", "ddim("], "brackets that do not match"),
        (["--metrics", "rmse", "--solvers", "ddpm"], "nothing to measure"),
        (["--bogus"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_end_with_status_2_and_one_line(args, words, tmp_path, capsys):
    assert main(["bench", *args, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


OWN = """
import torch
import sdegen as sd

def model():
    law = sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), stds=0.3)
    process = sd.VP()
    exact = law.score(process)
    return sd.ScoreModel(process, lambda x, t: exact(x, process.level(t.double()), "noise"), "noise")

def exact():
    return sd.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), stds=0.3).score(sd.VP())

def solver():
    return sd.ddim()

def trained():
    return sd.ScoreModel(sd.VP(), Net(), "noise")

class Net(torch.nn.Module):
    def forward(self, x, t):
        return x

def linear():
    return sd.ScoreModel(sd.VP(), Line().eval(), "noise")

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 2)

    def forward(self, x, t):
        return self.line(x)

def late():
    import beside
    return beside.model()

def broken():
    raise RuntimeError("no weights here")

def nothing():
    return 3

made, method, number = model(), solver(), 3
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", mostly_slow(["npy", "pt", "safetensors"], ["safetensors"]))
def test_a_model_and_data_of_ones_own(mine, tmp_path, kind):
    data = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"data.{kind}"
    if kind == "npy":
        __import__("numpy").save(path, data.numpy())
    elif kind == "pt":
        torch.save(data, path)
    else:
        __import__("safetensors.torch").torch.save_file({"data": data}, path)
    args = ["--model", f"{mine}:model", "--data", str(path), "--solvers", f"ddim,{mine}:solver", "--nfe", "6"]
    assert main(["bench", *args, "--samples", "32", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["model"], r["metric"], float(r["nfe"])) for r in rows} == {("mine", m, 6.0) for m in ("sw2", "rmse")}
    values = [[r["value"] for r in rows if r["solver"] == s] for s in ("ddim", "mine.py:solver")]
    assert values[0] == values[1]


@pytest.mark.usefixtures("undrawn")
def test_a_model_and_a_solver_may_be_there_already(mine, tmp_path):
    args = ["--model", f"{mine}:made", "--shape", "2", "--solvers", f"ddim,{mine}:method", "--nfe", "4"]
    assert (
        main(["bench", *args, "--metrics", "rmse", "--samples", "16", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    )
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["value"] for row in rows}) == 1 < len(rows)


@pytest.mark.usefixtures("undrawn")
def test_a_model_may_import_what_lies_beside_it_when_it_is_called(mine, tmp_path):
    (tmp_path / "beside.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n"
        "from mine import exact as model\n"
    )
    args = ["--model", f"{mine}:late", "--solvers", "ddim", "--nfe", "4", "--metrics", "modes"]
    assert main(["bench", *args, "--samples", "16", "--out", str(tmp_path / "out"), "--quiet", "--no-orders"]) == 0


@pytest.mark.usefixtures("undrawn")
def test_a_model_of_a_mixture_brings_its_law(mine, tmp_path):
    args = ["--model", f"{mine}:exact", "--solvers", "ddim", "--nfe", "4", "--metrics", "modes"]
    assert main(["bench", *args, "--samples", "32", "--out", str(tmp_path / "out"), "--quiet", "--no-orders"]) == 0


@pytest.mark.parametrize(
    ("function", "more", "words"),
    [
        ("broken", [], "no weights here"),
        ("trained", ["--shape", "2"], "training mode"),
        ("nothing", [], "must be or return a sdegen.ScoreModel"),
        ("number", [], "must be or return a sdegen.ScoreModel"),
        ("modle", [], "did you mean 'model'"),
        ("model", [], "give the shape of a sample"),
        ("model", ["--data", "none.npy"], "there is no file none.npy"),
        ("model", ["--shape", "2", "--metrics", "sw2"], "needs the target's samples"),
        ("model", ["--shape", "2,x"], "'x' is not a whole number"),
        ("linear", ["--shape", "3"], "failed on two samples [2, 3]"),
        ("model", ["--shape", "2", "--solvers", "MINE:nothing"], "must be or return a solver"),
    ],
)
def test_a_model_of_ones_own_that_cannot_work(mine, function, more, words, tmp_path, capsys):
    more = [text.replace("MINE", str(mine)) for text in more]
    args = ["bench", "--solvers", "ddim", "--nfe", "4", "--samples", "8", "--model", f"{mine}:{function}", *more]
    assert main([*args, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert words in capsys.readouterr().err


def test_data_of_another_kind(tmp_path):
    from sdegen.bench.command import read

    (tmp_path / "a.txt").write_text("1")
    torch.save(torch.arange(3), tmp_path / "a.pt")
    torch.save(torch.tensor([[1.0], [math.nan]]), tmp_path / "d.pt")
    torch.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, tmp_path / "b.pt")
    (tmp_path / "c.npy").write_bytes(b"not an array")
    for name, words in (
        ("a.txt", "are read from"),
        ("a.pt", "floating array"),
        ("b.pt", "one array"),
        ("c.npy", "could not be read"),
        ("d.pt", "1 of its 2 rows are not"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            read(tmp_path / name)


# files of one's own


EDITED = """
import sdegen as sd
import torch
from inner.deep import factor, Line
FACTOR = 1.0
def helper(x): return FACTOR * x
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = Line()
    def forward(self, x, t):
        import late
        return helper(x) * factor() * self.line(x[:, :1]) * late.FACTOR
def model(): return sd.ScoreModel(sd.VP(), Net().eval(), "noise")
class Mine(sd.OneStep):
    evals = 1
    def step(self, model, x, now, next, carry, noise):
        return sd.Step(helper(x) * factor() * 0.9, carry)
def solver(): return Mine()
"""
DEEP = """
import torch
FACTOR = 1.0
def factor(): return FACTOR
class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0]]))
    def forward(self, x):
        return x * self.weight / (1 + x.square())
"""
EDITS = {
    "constant": ("mine.py", "FACTOR = 1.0", "FACTOR = 0.5"),
    "helper": ("mine.py", "return FACTOR * x", "return FACTOR * x / 2"),
    "import": ("inner/deep.py", "FACTOR = 1.0", "FACTOR = 0.5"),
    "weights": ("inner/deep.py", "[[1.0]]", "[[0.5]]"),
    "late": ("late.py", "1.0", "0.5"),
}


@pytest.fixture
def edited(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "inner").mkdir()
    (tmp_path / "mine.py").write_text(EDITED)
    (tmp_path / "late.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "inner" / "__init__.py").write_text("import late\n")
    (tmp_path / "inner" / "deep.py").write_text(DEEP)
    return tmp_path


def values(args, out):
    assert main([*args, "--out", str(out), "--quiet"]) == 0
    with (out / "results.csv").open() as file:
        return [(r["model"], r["solver"], r["value"]) for r in csv.DictReader(file)]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("edit", "resume"), mostly_slow(crossed(EDITS, [False, True]), lambda case: not case[1] or case[0] == "late")
)
def test_an_edited_file_is_never_told_by_its_old_numbers(edited, edit, resume, monkeypatch):
    torch.save(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), edited / "data.pt")
    what = ["--model", f"{edited / 'mine.py'}:model", "--data", str(edited / "data.pt"), "--metrics", "sw2"]
    what += ["--solvers", f"ddim,{edited / 'mine.py'}:solver", "--nfe", "4"]
    args = ["bench", *what, "--samples", "8", "--no-orders", *(["--resume"] if resume else [])]
    first = values(args, edited / "out")
    name, old, new = EDITS[edit]
    text = (edited / name).read_text()
    assert old in text
    times = (edited / name).stat()
    (edited / name).write_text(text.replace(old, new))
    os.utime(edited / name, (times.st_atime, times.st_mtime))  # as an edit within a second
    second = values(args, edited / "out")
    assert second == values(args, edited / "fresh")
    assert [a != b for a, b in zip(first, second)] == [True, True]
    if resume:
        monkeypatch.setattr(runs.Bench, "shot", lambda *args: pytest.fail("a run was repeated"))
        assert values(args, edited / "out") == second


@pytest.mark.usefixtures("undrawn")
def test_runs_of_ones_own_file_go_on_only_where_one_says_so(mine, tmp_path, monkeypatch, capsys):
    args = ["bench", "--model", f"{mine}:exact", "--solvers", "ddim,heun", "--nfe", "4", "--metrics", "rmse"]
    args += ["--samples", "8", "--no-orders", "--out", str(tmp_path / "out")]
    real, calls = runs.Bench.shot, []

    def shot(self, job):
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, job)

    monkeypatch.setattr(runs.Bench, "shot", shot)
    assert main(args) == 130
    assert "1 of 2 runs are kept in" in (said := capsys.readouterr().err)
    assert "the same command with --resume goes on" in said
    assert "The same command with --resume goes on." in (tmp_path / "out" / "index.html").read_text()
    assert main([*args, "--resume"]) == 0
    assert len(calls) == 3
    capsys.readouterr()
    assert main(args) == 0
    assert len(calls) == 5
    assert "2 runs that were kept were made again" in (said := capsys.readouterr().err)
    assert "--resume takes them" in said


def test_two_files_may_have_a_neighbour_of_one_name(tmp_path):
    made = []
    for folder, order in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.py").write_text("import neighbour\ndef make(): return neighbour.make()\n")
        text = f"import sdegen as sd\ndef make(): return sd.dpmpp({order})\n"
        (tmp_path / folder / "neighbour.py").write_text(text)
        made.append(names.contender(f"{tmp_path / folder / 's.py'}:make"))
    assert [m.solver for m in made] == [sd.dpmpp(1), sd.dpmpp(2)]
    assert made[0].sources != made[1].sources


MIXTURE = (
    "import sdegen\ndef model(): return sdegen.GaussianMixture([[0., 1.], [1., 0.]], stds=.3).score(sdegen.VP())\n"
)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["json", "random", "torch", "numpy", "sdegen", "colorsys"])
def test_a_file_may_have_the_name_of_a_module(tmp_path, name):
    path = tmp_path / f"{name}.py"
    path.write_text(f"import {name}\nassert {name}.__file__ != __file__\n{MIXTURE}")
    own._forget()
    sys.modules.pop("colorsys", None)
    before = dict(sys.modules)
    args = ["--model", f"{path}:model", "--solvers", "ddim", "--nfe", "4", "--metrics", "sw2", "--samples", "8"]
    assert main(["bench", *args, "--out", str(tmp_path / "out"), "--quiet", "--no-orders"]) == 0
    assert all(sys.modules[key] is module for key, module in before.items())
    assert str(tmp_path) not in sys.path
    if name == "colorsys":
        assert Path(sys.modules[name].__file__).parent != tmp_path


EXITS = {
    "import": "import sys\nsys.exit()\n",
    "words": "import sys\nsys.exit('no gpu')\n",
    "zero": "exit(0)\n",
    "function": "def model(): raise SystemExit(0)\n",
    "network": "import sdegen\ndef net(x, t): raise SystemExit\n"
    "def model(): return sdegen.ScoreModel(sdegen.VP(), net)\n",
    "later": "import sdegen\ndef net(x, t):\n    if len(x) > 2: raise SystemExit('done')\n    return -x\n"
    "def model(): return sdegen.ScoreModel(sdegen.VP(), net)\n",
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("where", EXITS)
def test_a_file_that_leaves_the_program_is_told(tmp_path, where, capsys):
    (tmp_path / "m.py").write_text(EXITS[where])
    args = ["--model", f"{tmp_path / 'm.py'}:model", "--shape", "2", "--nfe", "4", "--samples", "8", "--quiet"]
    assert main(["bench", *args, "--solvers", "ddim", "--out", str(tmp_path / "out")]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sdegen: error: ")
    assert str(tmp_path / "m.py") in said
    assert "called sys.exit" in said
    if where == "words":
        assert "no gpu" in said


def test_a_solver_s_file_that_leaves_the_program_is_told(tmp_path, capsys):
    (tmp_path / "s.py").write_text("raise SystemExit\n")
    args = ["bench", "--problem", "rings", "--solvers", f"{tmp_path / 's.py'}:make", "--out", str(tmp_path / "out")]
    assert main(args) == 2
    assert "s.py" in capsys.readouterr().err


# names


ODD = ["$x_1$", "a_b^c", "<b>", "a|b", "`c`", "$\\nosuch{$", "_edge_", "**bold**"]


def odd_rows():
    return bench.Rows(
        row(model=f"m {name}", solver=name, metric=name, budget=b, value=1.0 / b, low=0.9 / b, high=1.1 / b, seconds=b,
            memory=1024.0, failed=0, samples=8)
        for name in ODD for b in (5, 10)
    )  # fmt: skip


def test_pictures_show_names_letter_by_letter(monkeypatch):
    """`$\\nosuch{$` would be an error as TeX."""
    from matplotlib.text import Text

    drawn_figures, real = [], figures._uri
    monkeypatch.setattr(figures, "_uri", lambda figure: drawn_figures.append(figure) or real(figure))
    rows = bench.Rows({**r, "model": "$m$", "metric": "$\\nosuch{$"} for r in odd_rows())
    figures.quality(rows, "nfe")
    falls = {name: orders.Fall([(20.0, 0.1), (40.0, 0.01), (80.0, 0.001)], 1.0, 1e-9) for name in ODD}
    figures.orders(falls)
    problem = bench.problem("rings")
    figures.grids(problem, {name: torch.linspace(1, 0.5, 4) for name in ODD})
    figures.samples(problem, {name: torch.arange(8.0).reshape(4, 2) for name in ODD}, None)
    assert len(drawn_figures) == 8
    for figure in drawn_figures[:4]:
        words = [text.get_text().strip() for text in figure.findobj(Text)]
        assert all(any(text.startswith(name) for text in words) for name in ODD)
    for figure in drawn_figures:
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts)


def test_markdown_shows_names_as_they_are():
    text = tables.markdown(odd_rows())
    assert "<b>" not in text
    for shown in (r"\$x_1\$", "a_b^c", "&lt;b&gt;", r"a\|b", r"\`c\`", r"\_edge\_", r"\*\*bold\*\*"):
        assert f"| {shown} |" in text
        assert f"### m {shown}, {shown}" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4


def test_a_page_shows_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_uri", lambda figure: "data:,")
    model, law = ring()[0].model, ring()[0].law
    problems = [bench.Problem(f"m {name}", model, (2,), law=law, dtype=F64) for name in ODD]
    jobs = [runs.Job(p, Ours(name, sd.ddim()), 5) for p, name in zip(problems, ODD)]
    report = page.Report(jobs, runs.Settings((), 8, 0), runs.Sweep(odd_rows(), {}), {}, "sdegen <b>", {})
    page.write(report, tmp_path / "index.html")
    found = Page((tmp_path / "index.html").read_text())
    assert "b" not in found.tags
    assert {f"m {name}" for name in ODD} <= set(found.texts)
    targets_of = [link for link in found.links if link.startswith("#model")]
    assert len(set(targets_of)) == len(ODD)


# networks that are random


def noisy(x, time):
    return x + 1e-9 * torch.randn_like(x)


def half_noisy(x, time):
    return torch.where(time[:, None] < 0.1, x + torch.rand_like(x), x)


def numpys(x, time):
    import numpy

    return x + float(numpy.random.random())


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, x, time):
        self.calls += 1
        return x + self.calls


RANDOM = {
    "noise": noisy,
    "late noise": half_noisy,
    "numpy": numpys,
    "dropout": lambda x, time: torch.nn.functional.dropout(x, 0.5, training=True),
    "state": Counting(),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_network_that_is_random_is_told(kind):
    problem = bench.Problem("two", sd.ScoreModel(sd.VP(), RANDOM[kind], "noise"), (2,), dtype=F64)
    with pytest.raises(InvalidArgumentError, match=r"the network of two is random: asked twice at the same x"):
        plan(problem, ["ddim"], [4], (), [targets.metric("rmse")])  # which is before the first run


def test_a_network_that_is_random_ends_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "m.py").write_text(
        "import torch, sdegen\nnet = lambda x, t: x + torch.randn_like(x)\n"
        "def model(): return sdegen.ScoreModel(sdegen.VP(), net, 'noise')\n"
    )
    args = ["--model", f"{tmp_path / 'm.py'}:model", "--shape", "2", "--out", str(tmp_path / "out"), "--quiet"]
    monkeypatch.setattr(runs.Bench, "shot", lambda *args: pytest.fail("it was run"))
    assert main(["bench", *args]) == 2
    assert "the network of m is random" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_that_draws_and_answers_alike_is_none(tmp_path):
    def net(x, time):
        torch.rand(1)
        return x

    problem = bench.Problem("two", sd.ScoreModel(sd.VP(), net, "noise"), (2,), dtype=F64)
    assert bench.sweep(problem, ["ddim"], [4], ["rmse"], samples=8, progress=False)


def test_a_metric_s_name_is_a_plain_attribute():
    """So that type checkers take `name = "mine"` in a subclass of `Metric`, and all metrics here as one."""
    assert sd.metrics.Metric.__annotations__ == {"name": "str"}
    for made in sd.metrics.NAMES.values():
        assert isinstance(made().name, str)
        assert "name" not in {f.name for f in dataclasses.fields(made())}


def test_the_hash_of_the_sources_changes_with_every_file_that_is_imported(edited):
    (edited / "inner" / "side.py").write_text("A = 1\n")
    (edited / "inner" / "deep.py").write_text(DEEP + "def never():\n    from . import side\n")
    (edited / "other.py").write_text("A = 1\n")
    hashes = [sources.closure(edited / "mine.py")]
    for name in ("mine.py", "late.py", "inner/deep.py", "inner/__init__.py", "inner/side.py"):
        path = edited / name
        path.write_text(path.read_text() + "# an edit\n")
        hashes.append(sources.closure(edited / "mine.py"))
    assert len(set(hashes)) == 6
    (edited / "other.py").write_text("A = 2\n")
    assert sources.closure(edited / "mine.py") == hashes[-1]
