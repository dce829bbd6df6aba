"""The comparison of two runs of the benchmarks: what it names, what it leaves, and its exit statuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import compare
from benchmarks.compare import Row

ABOUT = {"torch": "2", "processor": "some"}


def row(name, ratio=1.0, spread=0.04, group="steps", reference="bare", second=1e-4):
    quartiles = (ratio * (1 - spread), ratio * (1 + spread)) if name != reference else (ratio, ratio)
    return Row(group, name, reference, ratio * second, spread * ratio * second, 50, ratio, *quartiles)


ROWS = [row("bare"), row("ours", 2.0), row("theirs", 5.0), row("bare", group="noise"), row("ours", 8.0, group="noise")]


@pytest.fixture
def run(tmp_path, capsys):
    """Two runs compared: the status, what was printed, and what was said on stderr."""

    def compared(old, new, *options, about=ABOUT):
        paths = tmp_path / "old.json", tmp_path / "new.json"
        compare.write(paths[0], ABOUT, old)
        compare.write(paths[1], about, new)
        status = compare.main([*map(str, paths), *options])
        return status, *capsys.readouterr()

    return compared


def changed(name, **fields):
    """The rows with one of them changed."""
    return [replace(r, **fields) if (r.group, r.name) == ("steps", name) else r for r in ROWS]


def slowed(name, factor, spread=0.04):
    """The rows, one of them slower by a factor."""
    return [row(name, r.ratio * factor, spread) if (r.group, r.name) == ("steps", name) else r for r in ROWS]


def test_a_run_beside_itself_is_the_same(run):
    assert run(ROWS, ROWS) == (0, "0 slower, 5 same\n", "")


def test_a_slow_down_is_named(run):
    status, out, _ = run(ROWS, slowed("ours", 1.3))
    assert status == 1
    assert out == "slower    steps: ours, 2.00 -> 2.60 x bare (+30%)\n1 slower, 4 same\n"


def test_what_is_faster_is_named_and_no_failure(run):
    status, out, _ = run(ROWS, slowed("theirs", 0.5))
    assert status == 0
    assert out == "faster    steps: theirs, 5.00 -> 2.50 x bare (-50%)\n0 slower, 1 faster, 4 same\n"


@pytest.mark.parametrize(("factor", "spread"), [(1.1, 0.001), (0.9, 0.001), (1.3, 0.25), (1 / 1.3, 0.3)])
def test_noise_is_not(run, factor, spread):
    """A change below the threshold, however sharp; a larger one inside of the quartiles."""
    assert run(ROWS, slowed("ours", factor, spread)) == (0, "0 slower, 5 same\n", "")


def test_noise_of_the_old_run_counts_as_well(run):
    old = slowed("ours", 1.0, 0.4)
    assert run(old, slowed("ours", 1.3, 0.01))[0] == 0


def test_a_slower_machine_is_not_slower_code(run):
    """All seconds thrice as many, other versions: said, and nothing else."""
    slow = [replace(r, median=3 * r.median, iqr=3 * r.iqr) for r in ROWS]
    status, out, _ = run(ROWS, slow, about={"torch": "3", "processor": "some", "scipy": "1"})
    assert (status, out) == (0, "torch: 2 -> 3\nscipy: none -> 1\n0 slower, 5 same\n")


def test_a_faster_machine_hides_no_slower_code(run):
    """All seconds a third, one ratio larger by 30 %."""
    fast = [replace(r, median=r.median / 3, iqr=r.iqr / 3) for r in slowed("ours", 1.3)]
    assert run(ROWS, fast)[0] == 1


def test_the_threshold_is_an_option(run):
    assert run(ROWS, slowed("ours", 1.3), "--threshold", "0.5")[0] == 0
    assert run(ROWS, slowed("ours", 1.1, 0.001), "--threshold", "0.05")[0] == 1


def test_missing_and_new_benchmarks_are_named(run):
    status, out, _ = run(ROWS[:2] + ROWS[3:], [ROWS[0], *ROWS[2:]])
    assert status == 0
    assert out.splitlines() == [
        "new       steps: theirs, 5.00 x bare",
        "missing   steps: ours, 2.00 x bare",
        "0 slower, 1 new, 1 missing, 3 same",
    ]


def test_ratios_to_another_reference_are_not_compared(run):
    status, out, _ = run(ROWS, changed("ours", reference="theirs", ratio=9.0, low=9.0, high=9.0))
    assert status == 0
    assert "other     steps: ours, the reference was bare and is theirs" in out


def test_what_is_worst_stands_first(run):
    _, out, _ = run([*ROWS[:4], row("ours", 4.0, group="noise")], [*slowed("ours", 0.5)[:4], ROWS[4], row("more", 3.0)])
    assert [line.split()[0] for line in out.splitlines()] == ["slower", "faster", "new", "1"]


GOOD = {"about": {}, "benchmarks": [vars(row("bare"))]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"about": {}, "benchmarks": []}',
        '{"about": {}, "benchmarks": [{"group": "steps"}]}',
        *(
            json.dumps({**GOOD, "benchmarks": [{**vars(row("bare")), **wrong}]})
            for wrong in (
                {"ratio": float("nan")},
                {"ratio": -1.0},
                {"median": 0.0},
                {"iqr": float("inf")},
                {"median": "fast"},
                {"low": 2.0},
                {"more": 1},
            )
        ),
    ],
)
def test_files_that_hold_no_run_are_one_line_and_status_2(tmp_path, capsys, text):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    compare.write(good, ABOUT, ROWS)
    bad.write_text(text)
    for paths in ((good, bad), (bad, good)):
        assert compare.main([str(p) for p in paths]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "bad.json" in err


def test_a_good_file_by_hand_is_read(tmp_path):
    """The wrong files above are wrong in what they say alone."""
    path = tmp_path / "good.json"
    path.write_text(json.dumps(GOOD))
    assert compare.read(path).rows == {("steps", "bare"): row("bare")}


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert compare.main([str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "none.json" in err
    assert "make bench" in err


@pytest.mark.parametrize(
    "argv", [["--threshold", "-1"], ["--threshold", "much"], ["--threshold", "nan"], ["a", "b", "c"]]
)
def test_bad_arguments_are_one_line_and_status_2(capsys, argv):
    with pytest.raises(SystemExit) as raised:
        compare.main(argv)
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_written_is_read(tmp_path):
    compare.write(tmp_path / "deep" / "run.json", ABOUT, ROWS)
    found = compare.read(tmp_path / "deep" / "run.json")
    assert found.about == ABOUT
    for before, after in zip(ROWS, found.rows.values(), strict=True):
        assert vars(after) == {
            k: pytest.approx(v, rel=1e-4) if type(v) is float else v for k, v in vars(before).items()
        }


def test_the_stored_baseline_is_whole():
    """Each group has its reference, whose ratio is 1, and something beside it."""
    rows = compare.read(compare.BASELINE).rows
    for group in {group for group, _ in rows}:
        own = [r for r in rows.values() if r.group == group]
        (first,) = {r.reference for r in own}
        assert rows[group, first].ratio == 1
        assert len(own) > 1


def test_tables_have_every_group_once_and_every_row():
    lines = list(compare.table(ROWS))
    assert [line for line in lines if not line.startswith(" ")] == ["steps", "noise"]
    assert "  ours      200 us     2.00 (1.92 to 2.08)" in lines
    assert "  bare      100 us        1" in lines
    page = compare.markdown(compare.Run(ABOUT, {(r.group, r.name): r for r in ROWS}))
    assert "| theirs | 500 us | 5.00 (4.80 to 5.20) |" in page
    assert "Measured with torch 2, processor some." in page


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.5, "2.50 s"), (0.0215, "21.5 ms"), (1e-3, "1.00 ms"), (1.234e-4, "123 us")],
)
def test_seconds_in_words(seconds, words):
    assert compare.time(seconds) == words
