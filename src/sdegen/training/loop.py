"""The training loop: a generator of states, one for each step, which goes on from a checkpoint with the same bits."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from sdegen.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    check_positive,
    strict_keywords,
)
from sdegen.progress import told_bar
from sdegen.scores.model import ScoreModel
from sdegen.tensors import check_type, check_whole, named
from sdegen.training.averages import EMA
from sdegen.training.batches import check_batches, since
from sdegen.training.checkpoints import Checkpoint
from sdegen.training.run import ByLevel, Loss, Run, State

__all__ = ["ByLevel", "State", "train"]


@strict_keywords
def train(
    model: ScoreModel,
    batches: Iterable[Any],
    *,
    loss: Loss,
    steps: int,
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer],
    ema: EMA | None = EMA(),  # noqa: B008 - frozen
    amp: torch.dtype | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    schedule: Callable[[int], float] | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[State]:
    """Train a model's network: a generator that takes a step, and yields a `State`, at a time.

    A step is a function of (seed, step) and of its batch, dropout included. A step whose gradient is not finite changes
    nothing and is counted.

    Args:
        model: what is trained; its process is the one that is sampled under later.
        batches: `sd.Batches`, or any iterable that begins anew when it ends, as a loader, of tensors `[B, *S]` or pairs
            `(data, {"label": ...})` with conditions by name. They are moved to the network's device and dtype.
        loss: `sd.losses.simple` or another objective; or your own `(model, data, *, seed) -> [B]`.
        steps: how many in all, those before a checkpoint included.
        optimizer: a torch optimizer over `model.parameters()`, or what makes one of them.
        ema: the average of the weights; None for none.
        amp: torch.bfloat16 or torch.float16, in which autocast runs the network; the loss is float32.
        accumulate: how many batches make a step.
        clip: the largest norm of the gradient; None for any.
        schedule: a function of the step 0, 1, ..., by whose value the learning rates are multiplied.
        checkpoint: a file, or `sd.Checkpoint(path, every)`; where there is one the training goes on from it.
        seed: of noise, times and dropout, which differ among the processes of torch.distributed.
        progress: show a bar; None: on terminals.

    Yields:
        A `State` after every step; the last one again where a checkpoint has all of them.

    Raises:
        InvalidTypeError, InvalidArgumentError: an argument is not as above; a batch is empty, of another shape than the
            first, of whole numbers, or has NaN; a checkpoint is of another run.
        TrainingError: three steps in a row had a gradient that is not finite.
        OSError: the checkpoint cannot be written.
    """
    check_batches(batches)
    _check(model, loss, ema, schedule, amp, clip, steps=steps, accumulate=accumulate)
    run = Run(model, loss, optimizer, ema, amp, accumulate, clip, schedule, seed)
    kept = Checkpoint(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint
    check_type(kept, Checkpoint | None, "checkpoint must be a path, or sd.Checkpoint(path, every)")
    if kept is not None:
        kept = replace(kept, path=os.path.abspath(kept.path))  # wherever the caller goes meanwhile
        kept.check(run)
        kept.load(run)
    if run.step > steps:
        raise InvalidArgumentError(f"the checkpoint has {run.step} steps, more than steps={steps}: give more steps")
    return _states(run, batches, steps, kept, progress)


def _check(
    model: object, loss: object, ema: object, schedule: object, amp: object, clip: float | None, **counts: int
) -> None:
    """Raises InvalidTypeError or InvalidArgumentError unless the arguments are as `train` says."""
    check_type(model, ScoreModel, "model must be a ScoreModel(process, net, predicts)")
    check_type(ema, EMA | None, "ema must be sd.EMA(length), sd.EMA(decay=...), or None")
    check_type(schedule, Callable | None, "schedule must be a function of the step")
    for name, value in counts.items():
        check_whole(name, value)
    if clip is not None:
        check_positive(clip=clip)
    if amp not in (None, torch.bfloat16, torch.float16):
        raise InvalidArgumentError(f"amp must be torch.bfloat16, torch.float16 or None, got {amp!r}")
    if not callable(loss):
        raise InvalidTypeError(f"loss must be sd.losses.simple, another objective, or a function, got {loss!r}")
    try:
        inspect.signature(loss).bind(model, None, seed=0)
    except TypeError as error:
        raise InvalidTypeError(
            f"loss is called as loss(model, data, seed=...), and {named(loss)} is not: {error}; write "
            "sd.losses.min_snr(5.0), or lambda model, data, *, seed: sd.losses.sliced(model, data, level, seed=seed)"
        ) from None


def _states(
    run: Run, batches: Iterable[Any], steps: int, kept: Checkpoint | None, progress: bool | None
) -> Iterator[State]:
    """The steps that are left, a state after each."""
    source = since(batches, run.step * run.accumulate)
    before = run.modes()
    if not run.network.training:
        run.network.train()
    run.wanted = run.modes()
    try:
        with told_bar(steps, progress, "steps", run.step) as bar:
            if run.step == steps:
                yield run.state(steps)
            while run.step < steps:
                run.take(source)
                if kept is not None and (run.step % kept.every == 0 or run.step == steps):
                    kept.save(run)
                bar.set_description_str(f"loss {run.loss:.4g}, lr {run.lr:.3g}")
                bar.update(1)
                yield run.state(steps)
    finally:
        for part, training in before:
            part.training = training
        if run.schedule is not None:
            for group in run.optimizer.param_groups:
                group["lr"] = group["initial_lr"]
