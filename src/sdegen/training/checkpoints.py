"""A training run in a file: weights, averages, the optimizer's numbers, and what the run is, in safetensors."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, TrainingError, brief, strict_keywords
from sdegen.processes.records import recorded, restored
from sdegen.scores import files, weights
from sdegen.scores.safe import Kind, check_place, read_tensors, write_tensors
from sdegen.tensors import check_whole

if TYPE_CHECKING:
    from sdegen.training.run import Run

_KIND = Kind("checkpoint", "sd.train", "train")
_FORMAT = "sdegen training 1"
Identity = Mapping[str, Any]


@strict_keywords
@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run is kept; one that finds its own file goes on from it, with the same bits.

    Args:
        path: the file, as "run.safetensors". It is replaced as a whole.
        every: after how many steps it is written; after the last one it always is.

    Raises:
        InvalidArgumentError: `every` is no whole number >= 1.
    """

    path: str | os.PathLike[str]
    every: int = 500

    def __post_init__(self) -> None:
        check_whole("every", self.every)

    def check(self, run: Run) -> None:
        """Raises unless the run can be written there: known before the first step, not after hours."""
        path = Path(self.path)
        check_place(path, _KIND)
        if not ranks()[0]:
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of a process that was killed
                left.unlink(missing_ok=True)
            self._said(run)

    def save(self, run: Run) -> None:
        """Write the run, as its first process if there are several.

        Raises TrainingError where weights are not finite: what was written before is better.
        """
        if ranks()[0]:
            return
        if not all(bool(p.isfinite().all()) for p in run.parameters):
            raise TrainingError(
                f"the weights are not finite after step {run.step}: give a smaller lr, or clip=1.0; {self.path} is as "
                "it was before"
            )
        write_tensors(Path(self.path), *self._said(run), _KIND)

    def _said(self, run: Run) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a run, and its record."""
        tensors, tied = weights.state(run.module)
        kept = {f"net.{name}": value for name, value in tensors.items()}
        if run.average is not None:
            kept |= {f"ema.{name}": value for name, value in weights.state(weights.found(run.average.model))[0].items()}
        kept |= {f"others.{k}": p.detach().cpu().contiguous().clone() for k, p in enumerate(run.others)}
        state = run.optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for place, values in state["state"].items():
            for name, value in values.items():
                if torch.is_tensor(value):
                    kept[f"optimizer.{place}.{name}"] = value.detach().cpu().contiguous().clone()
                else:
                    numbers.setdefault(str(place), {})[name] = recorded(value)
        said = {
            "format": _FORMAT,
            "run": run.identity,
            "step": run.step,
            "loss": recorded(run.loss),
            "scheduled": run.schedule is not None,
            "skipped": run.skipped,
            "tied": tied,
            "groups": [{name: recorded(value) for name, value in group.items()} for group in state["param_groups"]],
            "optimizer": numbers,
            "scaler": run.scaler.state_dict(),
        }
        kept |= {"levels": run.levels.sums, **files.account(run.model)[1]}
        return kept, {"sdegen": json.dumps(said)}

    def load(self, run: Run) -> None:
        """Set a run to where the file left it, if there is one.

        Raises InvalidArgumentError for a file of another run, or one that is damaged.
        """
        path = Path(self.path)
        if not path.exists():
            return
        tensors, words = read_tensors(path, _KIND)
        said = _said(path, words)
        _check_same(path, said["run"], run.identity)
        parts = _parts(path, tensors)
        process = files.account(run.model)[1]
        if process.keys() != parts[""].keys() or not all(torch.equal(v, parts[""][k]) for k, v in process.items()):
            raise InvalidArgumentError(f"{path} is of another run: its process has other numbers")
        try:
            own = run.optimizer.state_dict()["param_groups"]
            state = _optimizer_state(said, parts["optimizer"], own, run.schedule is not None)
            if len(parts["others"]) != len(run.others):
                raise ValueError(f"it has {len(parts['others'])} parameters beside the network's")
            sums, tied = parts["levels"]["levels"], said["tied"]
            averaged = {name: parts["ema"][kept] for name, kept in tied.items() if run.average is not None}
            weights.take(run.module, {**parts["net"], **{k: parts["net"][v] for k, v in tied.items()}}, path)
            if run.average is not None:
                weights.take(weights.found(run.average.model), {**parts["ema"], **averaged}, path)
            run.optimizer.load_state_dict(state)
            run.scaler.load_state_dict(said["scaler"])
            run.levels.sums.copy_(sums)
            with torch.no_grad():
                for k, part in enumerate(run.others):
                    part.copy_(parts["others"][str(k)])
            run.step, run.skipped, run.loss = int(said["step"]), int(said["skipped"]), float(restored(said["loss"]))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(
                f"{path} is damaged, or of another optimizer: {brief(str(error), 200)}"
            ) from None


def ranks() -> tuple[int, int]:
    """Which process this is of torch.distributed, and of how many: (0, 1) where there is one alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _said(path: Path, words: Mapping[str, str]) -> dict[str, Any]:
    """The header's record. Raises InvalidArgumentError for a file that is no checkpoint."""
    try:
        said: dict[str, Any] = json.loads(words["sdegen"])
        form = said["format"]
    except (KeyError, TypeError, ValueError):
        raise InvalidArgumentError(f"{path} was not written by sd.train: give another checkpoint=") from None
    if form != _FORMAT or not isinstance(said.get("run"), dict):
        raise InvalidArgumentError(f"{path} is of format {form!r}, and checkpoints are of {_FORMAT!r}: give another")
    return said


def _check_same(path: Path, theirs: Identity, ours: Identity) -> None:
    """Raises InvalidArgumentError where a file is of another run, and says what differs."""
    told = _differences("", theirs, ours)
    if told:
        raise InvalidArgumentError(f"{path} is of another run, with {'; '.join(told)}: go on so, or give another file")


def _differences(name: str, theirs: Any, ours: Any) -> list[str]:
    """What differs between two records, each with its place in them."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping) and theirs.keys() == ours.keys():
        parts = [_differences(f"{name} {key}".strip(), theirs[key], ours[key]) for key in sorted(theirs)]
        return [text for part in parts for text in part]
    return [] if theirs == ours else [f"{name} {brief(theirs)}, here {brief(ours)}"]


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by what they are of; those of the process under the empty name."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in ("net", "ema", "optimizer", "others", "levels", "")}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind not in parts:
            raise InvalidArgumentError(f"{path} holds {name!r}, which no checkpoint has: it is damaged, or of another")
        parts[kind][name if kind in ("levels", "") else rest] = value
    return parts


def _optimizer_state(
    said: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Sequence[Any], scheduled: bool
) -> dict[str, Any]:
    """What `Optimizer.load_state_dict` takes: the file's moments under the optimizer's own numbers.

    A learning rate that the caller changed along the way is the file's, where both began with the same.
    """
    state: dict[int, dict[str, Any]] = {}
    for place, values in said["optimizer"].items():
        state[int(place)] = {name: restored(value) for name, value in values.items()}
    for name, value in tensors.items():
        place, _, key = name.partition(".")
        state.setdefault(int(place), {})[key] = value
    groups = []
    for theirs, ours in zip(said["groups"], own, strict=True):
        begun = {name: restored(theirs[name]) for name in ("initial_lr", "lr") if name in theirs}
        if list(restored(theirs["params"])) != list(ours["params"]):
            raise ValueError("its groups are of other parameters")
        same = "lr" in ours and float(begun["initial_lr"]) == float(ours["initial_lr"])
        same = same and not (scheduled or said["scheduled"])
        groups.append({**ours, "lr": begun["lr"]} if same else ours)
    return {"state": state, "param_groups": groups}
