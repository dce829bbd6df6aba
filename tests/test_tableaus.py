"""Runge-Kutta coefficients against the order conditions, which are what their order means."""

import functools
import itertools
import math

import pytest

import sdegen as sd
from sdegen.solvers.tableaus import Tableau

TABLEAUS = {value.name: value for value in vars(sd.tableaus).values() if isinstance(value, Tableau)}


@functools.cache
def trees(n):
    """The rooted trees of n nodes, each the sorted tuple of its branches (Butcher 2008, sec. 300)."""
    if n == 1:
        return frozenset([()])
    found = set()
    for sizes in partitions(n - 1):
        for branches in itertools.product(*(trees(size) for size in sizes)):
            found.add(tuple(sorted(branches)))
    return frozenset(found)


def partitions(n, largest=None):
    for first in range(min(n, largest or n), 0, -1):
        if first == n:
            yield (n,)
        else:
            for rest in partitions(n - first, first):
                yield (first, *rest)


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def stages(tree, a):
    """The elementary weight's factor at every stage."""
    inner = [stages(branch, a) for branch in tree]
    parts = [[sum(x * y for x, y in zip(row, own)) for row in a] for own in inner]
    return [math.prod(part[i] for part in parts) for i in range(len(a))]


def gaps(weights, a, n):
    """By how much the conditions of order n fail, tree by tree."""
    return [abs(math.fsum(w * s for w, s in zip(weights, stages(tree, a))) - 1 / density(tree)) for tree in trees(n)]


def test_there_are_as_many_trees_as_there_are():
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)
def test_the_order_is_the_declared_one(tableau):
    for n in range(1, tableau.order + 1):
        assert max(gaps(tableau.b, tableau.a, n)) < 1e-11, n
    assert max(gaps(tableau.b, tableau.a, tableau.order + 1)) > 1e-6


@pytest.mark.parametrize("tableau", [t for t in TABLEAUS.values() if t.error], ids=repr)
def test_the_embedded_error_has_the_order_of_its_power(tableau):
    """The other result, b - error, is right below the power with which the error falls, and not at it."""
    other = [b - e for b, e in zip(tableau.b, tableau.error)]
    power = tableau.order_error if not tableau.second else 6  # the two of DOPRI8 are of order 5 and 3
    for n in range(1, power):
        assert max(gaps(other, tableau.a, n)) < 1e-11
    assert max(gaps(other, tableau.a, power)) > 1e-6
    if tableau.second:
        other = [b - e for b, e in zip(tableau.b, tableau.second)]
        assert max(max(gaps(other, tableau.a, n)) for n in range(1, 4)) < 1e-11
        assert max(gaps(other, tableau.a, 4)) > 1e-6


@pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)
def test_stages_are_where_their_weights_add_up_to(tableau):
    for row in tableau.a:
        assert -1e-15 <= sum(row) <= 1 + 1e-12
    assert tableau.fsal == (tableau.name in ("bogacki_shampine", "dopri5", "tsit5", "dopri8"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": (0.5, 0.6)}, "b must sum to 1"),
        ({"a": ((), (1.0, 2.0))}, "row i of a needs i entries"),
        ({"error": (0.5, 0.5), "order_error": 2}, "error needs one weight per stage"),
        ({"error": (0.5, -0.5)}, "order_error must say"),
        ({"dense": ((1.0,), (1.0,))}, "the dense weights at 1 must be b"),
    ],
)
def test_rejects_invalid_coefficients(change, words):
    good = {"name": "mine", "order": 2, "a": ((), (1.0,)), "b": (0.5, 0.5)}
    with pytest.raises(sd.InvalidArgumentError, match=words):
        Tableau(**{**good, **change})
