"""`sdegen train` and `sdegen sample`: from data to a picture, and what is said of data that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sdegen import cli
from sdegen.demo import runs
from sdegen.training import data

QUIET = ["--steps", "3", "--batch", "4", "--width", "8", "--quiet"]


def moons(path, count=40):
    rng = np.random.default_rng(0)
    np.save(path, 30 + 5 * rng.normal(size=(count, 2)))
    return str(path)


def folder(path, mode="RGB", sizes=((6, 5),) * 3):
    path.mkdir()
    for k, size in enumerate(sizes):
        pixels = np.full((*size[::-1], 3), 40 * k, np.uint8)
        Image.fromarray(pixels).convert(mode).save(path / f"{k}.png")
    (path / "notes.txt").write_text("no image")
    (path / "._0.png").write_bytes(b"of another system")
    return str(path)


def test_vectors_from_a_file_to_a_picture_and_back_to_their_scale(tmp_path, capsys):
    source, out = moons(tmp_path / "x.npy"), str(tmp_path / "run")
    assert cli.main(["train", "--data", source, "--out", out, *QUIET]) == 0
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "model.safetensors",
        "run.json",
    ]
    for name in ("s.png", "s.npy"):
        assert cli.main(["sample", out, "--n", "50", "--steps", "2", "--seed", "1", "--out", str(tmp_path / name)]) == 0
        assert name in capsys.readouterr().out
    x = np.load(tmp_path / "s.npy")
    assert x.shape == (50, 2)
    assert 20 < x.mean() < 40  # at the scale of the data, not at the network's
    with Image.open(tmp_path / "s.png") as picture:
        assert np.asarray(picture)[..., :3].std() > 10


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_images_of_a_folder(tmp_path, mode, channels):
    source, out = folder(tmp_path / "images", mode), str(tmp_path / "run")
    found = data.read(source)
    assert found.shape == (3, channels, 5, 6)
    assert found.min() == -1
    assert found[1].unique().tolist() == pytest.approx([40 / 127.5 - 1])
    assert cli.main(["train", "--data", source, "--out", out, *QUIET]) == 0
    assert cli.main(["sample", out, "--n", "3", "--steps", "2", "--out", str(tmp_path / "s.png")]) == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 50


def test_the_same_command_goes_on_and_prints_where_it_is(tmp_path, capsys):
    source, out = moons(tmp_path / "x.npy"), str(tmp_path / "run")
    line = ["train", "--data", source, "--out", out, "--batch", "4", "--width", "8"]
    assert cli.main([*line, "--steps", "20"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("step 2 of 20: mean loss over the levels ")
    assert len(told) == 11
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert cli.main([*line, "--steps", "20"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert cli.main([*line, "--steps", "20", "--seed", "1"]) == 2
    assert "holds a run of seed 0" in capsys.readouterr().err
    np.save(tmp_path / "y.npy", np.load(source) + 1000)
    assert cli.main(["train", "--data", str(tmp_path / "y.npy"), *line[3:], "--steps", "20"]) == 2
    assert "holds a run of other data" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    (tmp_path / "run" / "run.json").unlink()
    assert cli.main([*line, "--steps", "20"]) == 2
    assert "model.safetensors that no sdegen train wrote" in capsys.readouterr().err


def test_bytes_and_shapes_of_arrays(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "grey.npy", pixels)
    found = data.read(str(tmp_path / "grey.npy"))
    assert found.shape == (2, 1, 3, 4)
    assert torch.allclose(found.flatten(), torch.arange(24) / 127.5 - 1)
    np.save(tmp_path / "long.npy", np.zeros((5, 7)))
    assert data.read(str(tmp_path / "long.npy")).shape == (5, 7)
    np.save(tmp_path / "last.npy", np.zeros((2, 8, 6, 3)))
    assert data.read(str(tmp_path / "last.npy")).shape == (2, 3, 8, 6)
    np.save(tmp_path / "big.npy", np.ones((2, 3), ">f4"))
    assert torch.equal(data.read(str(tmp_path / "big.npy")), torch.ones(2, 3))
    images, labels = data.digits()
    assert data.read("digits").shape == (1797, 1, 8, 8)
    assert images.min() == -1
    assert images.max() == 1
    assert labels.unique().tolist() == list(range(10))


def bad_source(tmp_path, kind):
    match kind:
        case "none":
            return str(tmp_path / "no.npy")
        case "text":
            (tmp_path / "x.npy").write_text("hello")
        case "objects":
            np.save(tmp_path / "x.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
        case "words":
            np.save(tmp_path / "x.npy", np.array(["a", "b"]))
        case "whole":
            np.save(tmp_path / "x.npy", np.zeros((4, 2), np.int64))
        case "nan":
            np.save(tmp_path / "x.npy", np.full((4, 2), np.nan))
        case "several":
            np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.zeros(2))
            return str(tmp_path / "x.npz")
        case "empty":
            (tmp_path / "empty").mkdir()
            return str(tmp_path / "empty")
        case "sizes":
            return folder(tmp_path / "images", sizes=((6, 5), (6, 4)))
        case "broken":
            source = folder(tmp_path / "images")
            (tmp_path / "images" / "1.png").write_bytes(b"\x89PNG no")
            return source
        case "deep":
            source = folder(tmp_path / "images")
            Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(tmp_path / "images" / "1.png")
            return source
        case "no numbers":
            np.save(tmp_path / "x.npy", np.zeros((5, 0)))
        case "constant":
            np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    return str(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "there is no file or folder"),
        ("text", "is no .npy file of numbers"),
        ("objects", "is no .npy file of numbers"),
        ("words", "is no .npy file of numbers"),
        ("whole", "must be of a floating dtype"),
        ("nan", "is NaN or Inf in rows [0, 1, 2, 3]"),
        ("several", "holds a, b: save one array"),
        ("empty", "holds no image"),
        ("sizes", "0.png is 6 x 5"),
        ("broken", "1.png is no image that can be read"),
        ("deep", "1.png has I;16 pixels: convert it to 8 bits"),
        ("no numbers", "is empty, of shape [5, 0]"),
        ("constant", "std"),
    ],
)
def test_data_that_are_none_are_told_in_one_line(tmp_path, capsys, kind, words):
    source = bad_source(tmp_path, kind)
    assert cli.main(["train", "--data", source, "--out", str(tmp_path / "run"), *QUIET]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_folders_that_hold_no_run_are_told_in_one_line(tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "holds no run: sdegen train" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{")
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "is not as sdegen train writes it" in capsys.readouterr().err
    said = {"format": "sdegen run 1", "shape": [3], "mean": [0.0], "std": [1.0], "span": [-1, 1], "width": 8}
    said |= {"data": "", "batch": 4, "lr": 0.1, "seed": 0}
    (tmp_path / "run.json").write_text(json.dumps(said))
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "a run that was not finished" in capsys.readouterr().err
    cloud = tmp_path / "cloud.npy"
    np.save(cloud, np.random.default_rng(0).normal(size=(20, 3)))
    run = str(tmp_path / "run")
    assert cli.main(["train", "--data", str(cloud), "--out", run, *QUIET]) == 0
    for name, words in (
        ("s.png", "make no picture"),
        ("s.txt", "written as .png or .npy"),
        ("no/s.npy", "cannot write"),
    ):
        assert cli.main(["sample", run, "--n", "4", "--steps", "2", "--out", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert runs.load(tmp_path / "run")[0].shape == [3]
