"""Conditions follow their samples: in batches, under a tolerance, by rows, for maps of models, through pickle."""

from __future__ import annotations

import pickle
from collections import OrderedDict, deque, namedtuple

import numpy as np
import pytest
import torch
from cases import mostly_slow

import sdegen as sd
from sdegen.guidance import ModelMap

P = sd.VP()
N = 6
Pair = namedtuple("Pair", "text size")
NUMBERS = torch.arange(float(N))


def total(part, n):
    """The numbers of a condition, added for each of n samples; a list of plain numbers has one for each."""
    if isinstance(part, torch.Tensor | np.ndarray):
        values = torch.as_tensor(part, dtype=torch.float64)
        return values.reshape(n, -1).sum(1) if values.ndim else values
    if isinstance(part, dict):
        return sum(total(value, n) for value in part.values())
    if isinstance(part, str):
        return float(len(part))
    if not isinstance(part, list | tuple):
        return float(part or 0)
    if len(part) == n and not any(
        isinstance(item, torch.Tensor | np.ndarray) and item.shape[:1] == (n,) for item in part
    ):
        return torch.tensor([float(total(item, 1)) for item in part], dtype=torch.float64)
    return sum(total(item, n) for item in part)


def net(x, t, **condition):
    """Moves every sample by its own conditions."""
    shift = sum(total(part, len(x)) for part in condition.values())
    return (x * 0.5 + 0.1 * (shift[:, None] if isinstance(shift, torch.Tensor) and shift.ndim else shift)).to(x.dtype)


CONDITIONS = {
    "tensor": NUMBERS,
    "rows of a tensor": NUMBERS[:, None].expand(N, 3),
    "array": np.arange(N),
    "list": list(range(N)),
    "tuple": tuple(range(N)),
    "range": range(N),
    "deque": deque(range(N)),
    "strings": ["a" * k for k in range(N)],
    "list of tensors": [torch.tensor(float(k)) for k in range(N)],
    "list of vectors": [torch.full((3,), float(k)) for k in range(N)],
    "list of dicts": [{"size": float(k)} for k in range(N)],
    "dict": {"text": NUMBERS, "deep": {"size": NUMBERS[:, None] * 2, "list": list(range(N))}},
    "ordered dict": OrderedDict(text=NUMBERS),
    "named tuple": Pair(NUMBERS, NUMBERS[:, None].expand(N, 3)),
    "tuple of tensors": (NUMBERS, 2 * NUMBERS),
    "list of arrays": [np.arange(N), np.arange(N) * 0.5],
    "pairs in a tuple": tuple((NUMBERS * k, NUMBERS) for k in range(7)),
    "tensor and none": (NUMBERS, None),
    "one row": torch.ones(1, 2),
    "number": 3,
    "shared": {"own": NUMBERS, "table": sd.shared("abc")},
}
CLEAR = [name for name in CONDITIONS if name not in ("list of vectors", "list of arrays", "tuple of tensors")]
CLEAR = [name for name in CLEAR if name not in ("pairs in a tuple", "tensor and none")]


def moved(name):
    return sd.ScoreModel(P, net, "noise", c=CONDITIONS[name])


@pytest.mark.parametrize("name", CONDITIONS)
def test_batches_have_their_own_conditions(name):
    whole = sd.sample(moved(name), (N, 2), nfe=4, seed=0)
    assert torch.equal(sd.sample(moved(name), (N, 2), nfe=4, seed=0, batch_size=4), whole)
    assert name in ("number", "one row") or (whole[0] - whole[5]).abs().max() > 0


QUEUED = ["tensor", "array", "strings", "dict", "named tuple", "pairs in a tuple"]


@pytest.mark.parametrize("name", mostly_slow(CONDITIONS, QUEUED))
def test_samples_of_a_tolerance_have_their_own_conditions(name):
    whole = sd.sample(moved(name), (N, 2), tol=1e-2, seed=0)
    assert torch.equal(sd.sample(moved(name), (N, 2), tol=1e-2, seed=0, batch_size=4), whole)
    x = P.prior(sd.noise.seeds(0, N), (2,))
    solved = sd.solve(moved(name), x, sd.PI(tol=1e-2), sd.adams()).x
    assert torch.allclose(solved, sd.sample(moved(name), (N, 2), tol=1e-2, seed=0, denoise=False), atol=1e-4)


@pytest.mark.parametrize("name", CLEAR)
def test_rows_of_a_model_make_single_samples_again(name):
    whole = sd.sample(moved(name), (N, 2), nfe=4, seed=0)
    index = torch.tensor([4, 1])
    some = sd.sample(moved(name).rows(index), (2, 2), nfe=4, seed=sd.noise.seeds(0, N)[index])
    assert torch.equal(some, whole[index])


@pytest.mark.parametrize("name", ["tensor", "strings", "dict", "named tuple", "array"])
def test_a_plan_is_calibrated_under_conditions(name):
    assert sd.calibrate(moved(name), (2,), nfe=3, pilot=16, batch_size=3).steps == 3


@pytest.mark.parametrize("name", CONDITIONS)
def test_models_with_conditions_pickle(name):
    if name == "shared":
        assert pickle.loads(pickle.dumps(moved(name))).condition["c"]["table"].value == "abc"
    again = pickle.loads(pickle.dumps(moved(name)))
    assert torch.equal(*(sd.sample(m, (N, 2), nfe=3, seed=0, batch_size=4) for m in (again, moved(name))))


def test_what_is_shared_arrives_whole():
    seen = []

    def looks(x, t, table, number):
        seen.append((table, number))
        return x * 0.5

    table = torch.arange(float(N))
    sd.sample(sd.ScoreModel(P, looks, "noise", table=sd.shared(table), number=3), (N, 2), nfe=3, batch_size=4)
    assert all(given is table and number == 3 for given, number in seen)


WRONG = {
    "tensor": torch.ones(N - 1),
    "list": list(range(N + 1)),
    "array": np.ones(N - 2),
    "dict": {"a": NUMBERS, "b": torch.ones(N - 1)},
    "deep": {"a": {"b": [torch.ones(4), torch.ones(4)]}},
    "named tuple": Pair(NUMBERS, torch.ones(4)),
    "both ways": [torch.ones(N) for _ in range(N)],
    "a set": set(range(N)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_and_unclear_lengths_are_seen_before_the_first_evaluation(name):
    model = sd.ScoreModel(P, lambda x, t, c: pytest.fail("called"), "noise", c=WRONG[name])
    for options in ({"nfe": 3}, {"nfe": 3, "batch_size": 4}, {"tol": 0.1}):
        with pytest.raises(sd.InvalidArgumentError, match=r"sd\.shared"):
            sd.sample(model, (N, 2), **options)


def test_rows_of_unclear_conditions_are_refused():
    model = sd.ScoreModel(P, net, "noise", c=(NUMBERS, 2 * NUMBERS))
    with pytest.raises(sd.InvalidArgumentError, match="2 or 6"):
        model.rows(torch.tensor([1]))
    assert (
        sd.ScoreModel(P, net, "noise", c=(NUMBERS, 2 * NUMBERS), other=NUMBERS).rows(torch.tensor([1])).row_count
        is None
    )
    with pytest.raises(sd.InvalidArgumentError, match="rows"):
        sd.ScoreModel(P, net, "noise", c=NUMBERS).rows(torch.tensor([6]))


@pytest.mark.parametrize("index", [[0, 2], (0, 2), range(0, 4, 2), np.array([0, 2]), torch.tensor([0, 2]).int()])
def test_rows_may_be_listed(index):
    model = sd.ScoreModel(P, net, "noise", c=NUMBERS, names=list("abcdef"))
    for some in (model, sd.guidance.map_data(model, lambda data, x, level: data), P.reverse(model)):
        found = some.rows(index)
        found = found.score if isinstance(found, sd.ReverseSDE) else found
        assert torch.equal(found.condition["c"], NUMBERS[[0, 2]])
        assert found.condition["names"] == ["a", "c"]


@pytest.mark.parametrize(
    "index",
    [3, None, slice(0, 2), "ab", [0.5], [True, False], np.array([0.5]), NUMBERS > 2, NUMBERS, torch.tensor(3)],
    ids=str,
)
def test_rows_that_are_no_places_are_refused(index):
    """A mask read as numbers would be the samples 0 and 1."""
    bare, model = (sd.ScoreModel(P, net, "noise", **given) for given in ({}, {"c": NUMBERS}))
    for some in (bare, model, sd.guidance.map_data(model, lambda data, x, level: data), P.reverse(model)):
        with pytest.raises(sd.InvalidTypeError, match=r"int64 tensor \[b\] of the samples' places, or a list"):
            some.rows(index)


def test_an_edit_has_options_of_its_own_samples():
    """An inpainting mask per sample: known pixels stay theirs in every batch."""
    mask = torch.arange(N * 2).reshape(N, 2) % 3 == 0
    known = torch.arange(float(N * 2)).reshape(N, 2)

    def fill(data, x, level, mask, known):
        return torch.where(mask, known.to(data.dtype), data)

    model = sd.guidance.map_data(moved("list"), fill, mask=mask, known=known)
    whole = sd.sample(model, (N, 2), nfe=4, seed=0)
    assert torch.equal(whole[mask], known[mask])
    assert torch.equal(sd.sample(model, (N, 2), nfe=4, seed=0, batch_size=4), whole)
    tight = sd.sample(model, (N, 2), tol=1e-2, seed=0, batch_size=4)
    assert torch.equal(tight[mask], known[mask])
    index = torch.tensor([5, 2])
    some = sd.sample(model.rows(index), (2, 2), nfe=4, seed=sd.noise.seeds(0, N)[index])
    assert torch.equal(some, whole[index])
    with pytest.raises(sd.InvalidArgumentError, match="mask"):
        sd.sample(sd.guidance.map_data(moved("list"), fill, mask=mask[1:], known=known), (N, 2), nfe=4)


def test_a_map_of_models_knows_which_samples_it_has():
    seen = []

    class Watching(ModelMap):
        def __call__(self, x, level, want="score"):
            seen.append(None if self.index is None else self.index.tolist())
            return self.models[0](x, level, want)

    sd.sample(Watching(moved("tensor")), (N, 2), nfe=2, batch_size=4)
    assert [0, 1, 2, 3] in seen
    assert [4, 5, 5, 5] in seen
    again = Watching(moved("tensor")).rows(torch.tensor([4, 2, 1])).rows(torch.tensor([2, 0]))
    assert again.index.tolist() == [1, 4]


@pytest.mark.parametrize("value", [torch.tensor(2.0), np.array(2.0), 2.0, "two", b"two"], ids=repr)
def test_a_single_value_is_one_for_all(value):
    model = sd.ScoreModel(sd.VP(), lambda x, t, value: 0.5 * x, "noise", value=value)
    assert torch.equal(sd.sample(model, (3, 2), nfe=3, seed=0), sd.sample(model, (3, 2), nfe=3, seed=0, batch_size=2))


class Held:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Kept:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("kind", [Held, Kept])
def test_an_object_that_holds_tensors_is_ambiguous(kind):
    """Its rows went whole to every batch."""
    with pytest.raises(sd.InvalidTypeError, match=r"a dict of them .* sd\.shared"):
        sd.ScoreModel(P, lambda x, t, c: x, "noise", c=kind(torch.ones(N, 2)))
    with pytest.raises(sd.InvalidTypeError, match=r"a dict of them .* sd\.shared"):
        sd.ScoreModel(P, lambda x, t, c: x, "noise", c={"inner": kind(torch.ones(N, 2))})
    for whole in (kind(3), sd.shared(kind(torch.ones(N, 2))), kind(torch.tensor(1.0))):
        sd.sample(sd.ScoreModel(P, lambda x, t, c: x, "noise", c=whole), (N, 2), nfe=3, batch_size=4)


def test_an_iterator_serves_one_call():
    with pytest.raises(sd.InvalidTypeError, match="make a list"):
        sd.ScoreModel(P, lambda x, t, c: x, "noise", c=(k for k in range(N)))
