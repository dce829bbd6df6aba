"""Trained networks in folders: what `sdegen train` writes, and `sdegen sample` reads."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdegen import plots
from sdegen.errors import InvalidArgumentError, brief
from sdegen.processes.schedules import VP
from sdegen.sampling.sample import sample
from sdegen.scores.model import ScoreModel, log_sigma_time
from sdegen.training import losses
from sdegen.training.averages import EMA
from sdegen.training.batches import Batches
from sdegen.training.checkpoints import Checkpoint
from sdegen.training.latents import Latent
from sdegen.training.loop import State, train
from sdegen.training.nets import MLP, UNet

_RECORD, MODEL, CHECKPOINT = "run.json", "model.safetensors", "checkpoint.safetensors"
FILES = (_RECORD, MODEL, CHECKPOINT)
_FORMAT = "sdegen run 1"


@dataclass(frozen=True)
class Run:
    """What a folder holds, beside the weights: the data's fingerprint, shape, scale and range, and the options."""

    data: str
    shape: list[int]
    mean: list[float]
    std: list[float]
    span: list[float]
    width: int
    batch: int
    lr: float
    seed: int

    @property
    def latent(self) -> Latent:
        """What brings data to unit scale and back."""
        return Latent(None, None, torch.tensor(self.mean), torch.tensor(self.std))

    def network(self) -> torch.nn.Module:
        """A network for such data: a `UNet` for images, an `MLP` for all else."""
        if len(self.shape) == 3:
            # the layout that convolutions on a CPU are a fifth faster in
            return UNet(self.shape[0], width=self.width).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return MLP(self.shape, width=self.width)


def fit(
    data: Tensor,
    out: Path,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 2e-3,
    width: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[State]:
    """Train a network on data `[N, *S]` and write it to a folder, a state after each step; a stopped one goes on.

    EDM's preconditioning and loss under VP, on data at unit scale; Adam with a warm-up and a cosine to zero, gradients
    clipped, a power-function average. Raises as `sd.train`.
    """
    flat = Latent.fit(None, None, data)
    mean, std = (torch.as_tensor(value).flatten().tolist() for value in (flat.mean, flat.std))
    span = [float(data.min()), float(data.max())]
    fingerprint = hashlib.sha256(data.contiguous().numpy().tobytes()).hexdigest()
    width = width or (32 if data.ndim == 4 else 128)
    run = Run(fingerprint, list(data.shape[1:]), mean, std, span, width, batch, lr, seed)
    _check_folder(out, run)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = run.network()
    model = ScoreModel(VP(), net, "edm", time=log_sigma_time, sigma_data=1.0)
    out.mkdir(parents=True, exist_ok=True)
    states = train(
        model,
        Batches(run.latent.to(data), batch, seed=seed),
        loss=losses.edm,
        steps=steps,
        optimizer=torch.optim.Adam(model.parameters(), lr),
        schedule=functools.partial(_warm, steps),
        ema=EMA(0.1),
        clip=1.0,
        seed=seed,
        checkpoint=Checkpoint(out / CHECKPOINT, every=100),
        progress=progress,
    )
    (out / _RECORD).write_text(json.dumps({"format": _FORMAT, **asdict(run)}, indent=1) + "\n", encoding="utf-8")
    for state in states:
        if state.step == steps:
            state.ema.save(out / MODEL)
        yield state


def _check_folder(out: Path, run: Run) -> None:
    """Raises InvalidArgumentError where a folder holds another run, or files of another kind under a run's names."""
    taken = [name for name in (CHECKPOINT, MODEL) if (out / name).exists()]
    if (out / _RECORD).exists():
        other, ours = asdict(_read(out)), asdict(run)
        names = [name for name, value in ours.items() if value != other[name]]
        if names:
            told = ["other data"] if "data" in names else [f"{name} {other[name]}" for name in names]
            raise InvalidArgumentError(
                f"{out} holds a run of {', '.join(told)}: give another --out, or the same options"
            )
    elif taken:
        raise InvalidArgumentError(f"{out} holds {', '.join(taken)} that no sdegen train wrote: give another --out")


def _read(folder: Path) -> Run:
    """The record in a folder. Raises InvalidArgumentError where there is none, or another."""
    try:
        said: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if said.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Run(**said)
    except FileNotFoundError:
        raise InvalidArgumentError(f"{folder} holds no run: sdegen train --data ... --out {folder} makes one") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{folder / _RECORD} is not as sdegen train writes it: {brief(error)}") from None


def _warm(steps: int, k: int) -> float:
    """A hundred steps up in a line, and down to zero by a cosine."""
    return min(1.0, (k + 1) / 100) * (1 + math.cos(math.pi * k / steps)) / 2


def load(folder: Path) -> tuple[Run, ScoreModel]:
    """The run in a folder and its model. Raises InvalidArgumentError where it holds none."""
    run = _read(folder)
    net = run.network()
    if not (folder / MODEL).exists():
        raise InvalidArgumentError(f"{folder} holds a run that was not finished: the same sdegen train goes on with it")
    return run, ScoreModel.load(folder / MODEL, net)


def draw(folder: Path, n: int, *, steps: int, out: Path, seed: int | None = None) -> Tensor:
    """n samples of the run in a folder, in the data's own scale, written as .npy or as a picture.

    Raises InvalidArgumentError for a name of another kind, or a picture of what is neither an image nor in a plane.
    """
    run, model = load(folder)
    images, plane = len(run.shape) == 3 and run.shape[0] in (1, 3), run.shape == [2]
    if out.suffix.lower() not in (".npy", ".png"):
        raise InvalidArgumentError(f"samples are written as .png or .npy, got {out}")
    if out.suffix.lower() == ".png" and not images and not plane:
        raise InvalidArgumentError(f"samples of shape {run.shape} make no picture: give a name as samples.npy")
    x = run.latent.back(sample(model, (n, *run.shape), steps=steps, seed=seed))
    if out.suffix.lower() == ".npy":
        np.save(out, x.numpy())
        return x
    if images:
        low, high = run.span
        # one channel as it is, black at the low end: the sheet draws ink
        shown, span = (-x[:, 0], (-high, -low)) if run.shape[0] == 1 else (x, (low, high))
        ax = plots.image_grid(shown, max(1, round(n**0.5)), span=span)
    else:
        ax = plots.figure(5.0, 5.0).add_subplot()
        ax.plot(*x.T.numpy(), ".", markersize=2)
        ax.set_aspect("equal")
    whole: Any = ax.figure
    whole.savefig(out, dpi=150)
    return x
