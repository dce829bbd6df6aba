"""Batches of data: ours, a pure function of (seed, number); and those of any iterable, as a loader's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief, unknown_keywords
from sdegen.scores.arguments import check_conditions
from sdegen.scores.conditions import Conditions
from sdegen.tensors import as_tensor, check_state, check_type, check_whole, has_dtype

_LOADERS = frozenset({"batch_size", "batch", "bs", "shuffle", "drop_last", "num_workers", "generator", "sampler"})
"""Words of loaders, which would be taken for conditions."""
_DROPS = 1 << 62
"""The place of the seed of what is dropped, behind those of the epochs."""
Batch = tuple[Tensor, Mapping[str, Any]]
_ADVICE = "a batch is a tensor [B, *S], or a pair of one and a dict of the conditions by name, (data, {'label': y})"


class Batches:
    """Endless batches of a set of data, in a new order in every epoch: batch k is a function of (seed, k).

    Every batch has `size` samples: it goes on into the next epoch. Iterating begins at batch 0.

    Args:
        data: `[N, *S]`, floating.
        size: B, the samples of a batch.
        seed: of the orders, and of what is dropped.
        drop: the share of samples whose conditions are those of `null`, for classifier-free guidance; a tenth if None.
        null: by name, the value that stands for no condition: `null={"label": net.null}`.
        conditions: by name, per sample as for `ScoreModel`, tensors `[N, ...]`.

    Raises:
        InvalidTypeError: data that are no tensor or array of a floating dtype.
        InvalidArgumentError: data that are empty or not finite; conditions for another number of samples; a share out
            of [0, 1); names in `null` that are no tensor conditions.
    """

    def __init__(
        self,
        data: Any,
        size: int,
        *,
        seed: int = 0,
        drop: float | None = None,
        null: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> None:
        self.data = as_tensor(data) if has_dtype(data) else data
        check_state(self.data, "data", "")
        self.data = self.data.detach()  # latents may carry the graph of their encoder
        check_whole("size", size)
        if not len(self.data):
            raise InvalidArgumentError(f"data is empty, of shape {list(self.data.shape)}: there is nothing to train on")
        if drop is not None and not null:
            raise InvalidArgumentError(f"drop={drop} needs null={{...}}, what stands for no condition, by name")
        drop = 0.1 if drop is None else drop
        if not 0 <= drop < 1:
            raise InvalidArgumentError(f"drop must be a share in [0, 1), got {drop}")
        noises.seeds(seed, 1)  # tells what is no seed
        self.size, self.seed, self.drop, self.null = size, seed, drop, dict(null or {})
        own = ("size", "seed", "drop", "null")
        if others := [name for name in conditions if name in _LOADERS]:
            raise unknown_keywords("Batches", others, own)
        check_conditions(conditions, own, "Batches")
        self._conditions = Conditions.of(conditions).sized(len(self.data))
        for name, value in self.null.items():
            own_values = conditions.get(name)
            if not torch.is_tensor(own_values):
                raise InvalidArgumentError(f"null={{{name!r}: ...}} needs a tensor of conditions {name}=... [N]")
            self.null[name] = _null(name, value, own_values)
        self._order: tuple[int, Tensor] = (-1, self.data)

    def __call__(self, k: int) -> Batch:
        """Batch k: data `[B, *S]`, and the conditions by name."""
        count = len(self.data)
        places = torch.arange(k * self.size, (k + 1) * self.size)
        first, last = int(places[0]) // count, int(places[-1]) // count
        index = torch.cat([self._of(e)[places[places // count == e] % count] for e in range(first, last + 1)])
        found = self._conditions.rows(index).plain
        if self.null:
            key = int(noises.seeds(self.seed, 1, start=_DROPS)[0])
            drawn = noises.seeds(key, self.size, start=k * self.size).double() * 2.0**-63 < self.drop
            for name, value in self.null.items():
                rows = drawn.to(found[name].device).reshape(-1, *(1,) * (found[name].ndim - 1))
                found[name] = torch.where(rows, value.to(found[name]), found[name])
        return self.data[index.to(self.data.device)], found

    def __iter__(self) -> Iterator[Batch]:
        return self.since(0)

    def since(self, k: int) -> Iterator[Batch]:
        """The batches from k on."""
        while True:
            yield self(k)
            k += 1

    def _of(self, epoch: int) -> Tensor:
        """The order of the samples in an epoch, that of the last one asked for kept."""
        known, order = self._order  # read once: another thread may write it
        if known != epoch:
            key = int(noises.seeds(self.seed, 1, start=epoch)[0])
            order = noises.seeds(key, len(self.data)).argsort()
            self._order = epoch, order
        return order


def _null(name: str, value: Any, conditions: Tensor) -> Tensor:
    """What stands for no condition, as the conditions are. Raises InvalidArgumentError where it cannot be."""
    try:
        given = torch.as_tensor(value)
        found = given.to(conditions)
        same = bool((found == given.to(conditions.device)).all()) and found.expand(conditions.shape[1:]) is not None
    except (TypeError, ValueError, RuntimeError):
        same = False
    if not same:
        raise InvalidArgumentError(
            f"null={{{name!r}: {brief(value)}}} must be a value of {conditions.dtype} like one of the conditions, "
            f"{list(conditions.shape[1:])}"
        )
    return found


def since(batches: Iterable[Any], k: int) -> Iterator[Batch]:
    """The batches of any iterable from number k on, over and over.

    Raises InvalidArgumentError where it ends and does not begin again, or there are none.
    """
    if isinstance(batches, Batches):
        yield from batches.since(k)
    done, before = 0, -1
    while done > before:
        before = done
        for batch in batches:
            done += 1
            if done > k:
                yield _sorted(batch)
    if not done:
        raise InvalidArgumentError(f"batches is empty: {type(batches).__name__} has none to give")
    raise InvalidArgumentError(
        f"the batches ended after {done}, and those of {type(batches).__name__} do not begin again: give a loader, a "
        "list, or sd.Batches(data, size)"
    )


def check_batches(batches: Any) -> None:
    """Raises InvalidTypeError unless it can be iterated over, and is no single tensor."""
    check_type(batches, Iterable, "batches must be sd.Batches(data, size), a loader, or a list of batches")
    if torch.is_tensor(batches):
        raise InvalidTypeError(
            f"batches is one tensor {list(batches.shape)}: write sd.Batches(data, size), which makes batches of it"
        )


def _sorted(batch: Any) -> Batch:
    """A batch as data and conditions by name."""
    match batch:
        case Tensor() | [Tensor()]:
            return (batch if torch.is_tensor(batch) else batch[0]), {}
        case [Tensor() as data, Mapping() as conditions]:
            return data, conditions
    got = f"{len(batch)} of {', '.join(type(b).__name__ for b in batch)}" if isinstance(batch, list | tuple) else ""
    raise InvalidTypeError(f"{_ADVICE}; got {got or brief(batch)}")
