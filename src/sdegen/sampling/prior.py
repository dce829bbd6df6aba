"""Where samples start: their seeds, and the law of the state at the first time."""

from __future__ import annotations

import inspect
import os
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError, ScoreError, SdegenError, warn_caller
from sdegen.level import Level
from sdegen.scores.mixtures import Gaussian
from sdegen.scores.model import place
from sdegen.tensors import check_state, described, finite_rows, home, readable, tensor

Seed: TypeAlias = int | Tensor | torch.Generator | None
"""A number, int64 seeds `[n]`, a generator that a number is drawn from, or None for one of the operating system's."""
_PURE = 0.075
"""The share `alpha/sigma` of the data in the start from which on leaving it out is worth a word."""


class Law(Protocol):
    """The law of the data, as far as it is known: what `prior` takes. `sd.Gaussian` and its mixtures are such laws."""

    def sample(self, n: int, *, seed: Tensor, level: Level, dtype: torch.dtype) -> Tensor:
        """States `[n, *S]` at a level `[]`, `alpha data + sigma noise`, each a function of its own seed `[n]`."""
        ...

    def log_prob(self, x: Tensor, level: Level) -> Tensor:
        """`log p(x)` `[n]` of states `[n, *S]` at a level `[]`."""
        ...


def as_law(prior: Any, event: tuple[int, ...], process: Any) -> Law:
    """The law that `prior` says.

    Raises InvalidTypeError for what is no law, InvalidArgumentError for one of samples of another shape.
    """
    if not process.gaussian:
        raise InvalidArgumentError(f"prior is a law of the data, for a Process; {process} has its own prior")
    if isinstance(prior, tuple | list) and len(prior) == 2:
        mean, std = (tensor(name, value).double() for name, value in zip(("the prior's mean", "its std"), prior))
        try:
            shaped = [v.expand(event) for v in (mean, std)]
        except RuntimeError:
            raise InvalidArgumentError(
                f"prior=(mean, std) must be numbers or of the sample's shape {list(event)}, got {list(mean.shape)} and "
                f"{list(std.shape)}"
            ) from None
        return Gaussian(shaped[0], std=shaped[1])
    if not _is_law(prior):
        raise InvalidTypeError(
            "prior must be (mean, std) of the data, sd.Gaussian(mean, cov=cov), or a law with sample(n, seed=, level=, "
            f"dtype=) and log_prob(x, level); got {prior!r}"
        )
    shape = getattr(prior, "shape", event)
    if tuple(shape) != event:
        raise InvalidArgumentError(f"prior is a law of samples of shape {list(shape)}, asked for are {list(event)}")
    return prior  # type: ignore[no-any-return]


def _is_law(prior: Any) -> bool:
    """Whether it has the methods of a law, with their arguments, which those of torch.distributions have not."""
    try:
        inspect.signature(prior.sample).bind(1, seed=None, level=None, dtype=None)
        inspect.signature(prior.log_prob).bind(None, None)
    except (AttributeError, TypeError):
        return False
    except ValueError:  # no signature to be had
        return True
    return not isinstance(prior, type)


def own_seeds(seed: Seed, n: int, device: torch.device) -> tuple[int | Tensor, Tensor]:
    """What a seed stands for, a number or seeds `[n]`, and the seeds of the samples that it makes.

    None stands for a number of the operating system's, a generator for its next one.
    """
    there = device if device.type == "cpu" else home(device)
    if torch.is_tensor(seed):
        if seed.dtype != torch.int64 or seed.shape != (n,):
            raise InvalidArgumentError(
                f"seed must be one number or int64 seeds of shape [{n}], got {seed.dtype} of shape {list(seed.shape)}"
            )
        return seed, seed.to(there)
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little") >> 1
    elif isinstance(seed, torch.Generator):
        seed = int(torch.empty((), dtype=torch.int64, device=seed.device).random_(0, 2**63 - 1, generator=seed))
    try:
        return seed, noises.seeds(seed, n, device=there)
    except InvalidTypeError as error:
        raise InvalidTypeError(f"{error}, or int64 seeds of shape [{n}], a torch.Generator or None") from None


def check_start(process: Any, level: Level) -> None:
    """Raises InvalidArgumentError where noise alone is no start at a level; warns where it lacks much of the data."""
    last = not readable(level.t) or float(level.t) == process.t_max
    if not process.gaussian:
        if not last:
            raise InvalidArgumentError(f"the prior of {process} is at t={process.t_max}; times must start there")
        return
    share = float(level.alpha / level.sigma) if readable(level.alpha) else 0.0
    if share > _PURE:
        warn_caller(
            f"{'at t_max' if last else 'where the grid starts'}, t={float(level.t):g}, x still holds alpha/sigma = "
            f"{share:.2g} of the data, and the start is noise alone: samples will lack it. Give prior=(mean, std) of "
            "the data, or sd.Gaussian(mean, cov=cov); or "
            + ("a process with a larger t_max" if last else f"start at t_max={process.t_max:g}")
            + ", or x, states from process.perturb(data, level, noise)"
        )


def begin_at(
    process: Any, law: Law | None, seeds: Tensor, event: tuple[int, ...], dtype: torch.dtype, level: Level
) -> Tensor:
    """The states at the first level: of the prior's law there, or noise alone."""
    if not process.gaussian:
        own: Tensor = process.prior(seeds, event)
        return own.to(dtype)
    if law is not None:
        drawn: Any = law.sample(len(seeds), seed=seeds, level=level, dtype=dtype)
        if not torch.is_tensor(drawn) or drawn.shape != (len(seeds), *event):
            raise InvalidArgumentError(f"the prior's sample must be {[len(seeds), *event]}, got {described(drawn)}")
        return representable(drawn.to(seeds.device, dtype), level)
    x: Tensor = process.prior(seeds, event, dtype)
    if readable(level.t) and float(level.t) != process.t_max:
        scale: Tensor = level.sigma / process.sigma(torch.full_like(level.t, process.t_max))
        x = x * scale.to(dtype)
    return representable(x, level)


def representable(x: Tensor, level: Level) -> Tensor:
    """States at a level, or InvalidArgumentError where float16 cannot hold them."""
    if x.dtype == torch.float16 and readable(x) and not bool(finite_rows(x).all()):
        raise InvalidArgumentError(
            f"the start overflows: states of scale sigma = {float(level.sigma):g} have values beyond {x.dtype}'s "
            f"largest, {torch.finfo(x.dtype).max:g}; use dtype=torch.bfloat16 or torch.float32"
        )
    return x


def states_kind(
    net: torch.nn.Module | None,
    x: Any,
    shape: list[int],
    law: Any,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    home: torch.device | None,
) -> tuple[torch.dtype, torch.device]:
    """In what precision and where the states live: the caller's word, then x's, then the network's.

    Raises InvalidArgumentError for an x of another shape than `shape`, or beside a prior.
    """
    made = place(net, dtype, device, home)
    if x is None:
        return made
    check_state(x)
    if list(x.shape) != shape:
        raise InvalidArgumentError(f"x must have the shape asked for, {shape}; got {list(x.shape)}")
    if law is not None:
        raise InvalidArgumentError("x is where samples start, and so is prior: give one of the two")
    return dtype or x.dtype, x.device if device is None else made[1]


def add_notes(
    error: Exception, net: torch.nn.Module | None, seed: int | Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """Say in an exception's notes which samples it met, and what states were made where no network told of them."""
    add_seed(error, seed)
    own = isinstance(error, SdegenError) and not isinstance(error, ScoreError)
    theirs = place(net, None, None) if net is not None else None
    if not own and theirs != (dtype, device):
        why = "as no torch.nn.Module was found behind the network" if theirs is None else f"the network {theirs}"
        _note(
            error,
            f"the states are {dtype} on {device}, {why}: give dtype= and device= to the call, or module= to the "
            "ScoreModel",
        )


def add_seed(error: Exception, seed: int | Tensor) -> None:
    """Say in an exception's notes which noise it met."""
    _note(error, "drawn with " + ("the given seeds" if torch.is_tensor(seed) else f"seed={seed}"))


def _note(error: Exception, text: str) -> None:
    error.__notes__ = [*vars(error).get("__notes__", []), f"sdegen: {text}"]
