"""What changes in a training: the network, its average, the optimizer; and what is told of it after a step."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    TrainingError,
    warn_caller,
)
from sdegen.level import Level
from sdegen.scores import files, weights
from sdegen.scores.model import ScoreModel, place
from sdegen.tensors import check_state, described, widen
from sdegen.training.averages import EMA
from sdegen.training.batches import Batch
from sdegen.training.checkpoints import ranks
from sdegen.training.losses import Objective
from sdegen.training.nets import MLP, UNet

Loss = Callable[..., Tensor]
_BINS, _FADE, _MOST_BAD = 10, 0.98, 3


class ByLevel(NamedTuple):
    """The mean loss in bins of `lam = log(alpha/sigma)`, over about the last 50 steps.

    Edges `[K + 1]`, from noise to data, and losses `[K]`: NaN in a bin without samples.
    """

    lam: Tensor
    loss: Tensor


class State(NamedTuple):
    """Where a training is after a step.

    step of steps; loss, the mean over the step's samples; by_level; lr, the learning rate of the first group; skipped,
    how many steps had a gradient that was not finite; model, which is trained; ema, a score model with the averaged
    weights, in evaluation mode (the model itself without an average). Both models change with the steps to come.
    """

    step: int
    steps: int
    loss: float
    by_level: ByLevel
    lr: float
    skipped: int
    model: ScoreModel
    ema: ScoreModel


class Run:
    """What changes in a training: the network, its average, the optimizer, counts."""

    def __init__(
        self,
        model: ScoreModel,
        loss: Loss,
        optimizer: Any,
        ema: EMA | None,
        amp: torch.dtype | None,
        accumulate: int,
        clip: float | None,
        schedule: Callable[[int], float] | None,
        seed: int,
    ) -> None:
        self.model, self.measure, self.amp = model, loss, amp
        self.accumulate, self.schedule, self.seed = accumulate, schedule, seed
        self.clip = None if clip is None else float(clip)
        self.module, self.network = weights.found(model), model._found()
        self.dtype, self.device = place(self.module, None, None)
        self.optimizer = _optimizer(optimizer, self.module.parameters())
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group.get("lr", math.nan)
        own = {id(p) for p in self.module.parameters()}
        self.others = [p for p in self.parameters if id(p) not in own]
        if len(self.others) == len(self.parameters):
            raise InvalidArgumentError("the optimizer has no parameter of this model: make it of model.parameters()")
        _warn_of_time(model, self.module)
        self.average = None if ema is None else ema.of(model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp is torch.float16)
        self.levels = _Levels(model)
        self.rank, self.world = ranks()
        self.step = self.skipped = self._bad = 0
        self.loss = math.nan
        self.wanted: list[tuple[torch.nn.Module, bool]] = []
        self._shape: torch.Size | None = None
        self.identity = {
            "model": files.account(model)[0],
            "network": type(self.module).__name__,
            "loss": _record(loss),
            "optimizer": type(self.optimizer).__name__,
            "ema": _record(ema),
            "amp": str(amp),
            "accumulate": accumulate,
            "clip": self.clip,
            "seed": int(seed),
            "dtype": str(self.dtype),
        }
        noises.seeds(seed, 1)  # tells what is no seed
        self._buffers = list(self.network.buffers())

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0].get("lr", math.nan))

    def modes(self) -> list[tuple[torch.nn.Module, bool]]:
        """The parts of the network, and whether each is in training mode."""
        return [(part, part.training) for part in self.network.modules()]

    def state(self, steps: int) -> State:
        """What is yielded."""
        ema = self.model if self.average is None else self.average.model
        return State(self.step, steps, self.loss, self.levels.means(), self.lr, self.skipped, self.model, ema)

    def take(self, source: Iterator[Batch]) -> None:
        """One step."""
        if torch.is_inference_mode_enabled():
            raise InvalidArgumentError("training needs gradients, and torch.inference_mode() is around it")
        if not self.network.training:  # a part that was frozen stays so
            for module, training in self.wanted:
                module.training = training
        before = [buffer.clone() for buffer in self._buffers]
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None:
            times = float(self.schedule(self.step))
            if not 0 <= times < math.inf:
                raise InvalidArgumentError(f"schedule({self.step}) is {times}: it must be a number from 0 on")
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * times
        self.loss = sum(self._batch(next(source), part) for part in range(self.accumulate))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip or math.inf)
        self.step += 1
        # of several processes all have the norm in common, and each a loss of its own
        good = math.isfinite(float(norm)) and (self.world > 1 or math.isfinite(self.loss))
        if good:
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(self.step)
        else:
            for buffer, old in zip(self._buffers, before):
                buffer.copy_(old)
        # a scaler finds its scale by steps that overflow: they are no fault before the scale is 1
        searching = math.isfinite(self.loss) and self.scaler.get_scale() > 1
        self.scaler.update()
        self.skipped += not good
        self._bad = 0 if good or searching else self._bad + 1
        if self._bad == _MOST_BAD:
            raise self._diverged()

    def _diverged(self) -> TrainingError:
        """The error of steps in a row whose gradient is not finite."""
        if self.skipped == self.step:
            return TrainingError(
                f"the gradient was not finite in the first {_MOST_BAD} steps (loss {self.loss:g}), before any change "
                "of the weights: look at what the network returns, and at the scale of the data"
            )
        return TrainingError(
            f"the gradient was not finite in {_MOST_BAD} steps in a row, up to step {self.step} (loss {self.loss:g}, "
            f"lr {self.lr:g}): give a smaller lr, clip=1.0, or torch.bfloat16 for float16; a checkpoint holds "
            "the last weights that were finite"
        )

    def _batch(self, batch: Batch, part: int) -> float:
        """The mean loss of a batch, its part of the step's, gradients taken."""
        data, condition = self._taken(batch[0]), batch[1]
        model = self.model.conditioned(**condition) if condition else copy.copy(self.model)
        model._conditions = model._conditions.to(self.device)
        model.cast |= self.amp is not None
        place = (self.step * self.accumulate + part) * self.world + self.rank
        key = int(noises.seeds(self.seed, 1, start=place)[0])
        autocast = torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)
        with _keyed(key, self.device), autocast, torch.enable_grad():
            losses: Any = self.measure(model, data, seed=key)
            mean = widen(losses).mean() / self.accumulate if torch.is_tensor(losses) else None
        if mean is None or losses.shape != data.shape[:1]:
            raise InvalidArgumentError(
                f"the loss must be one number for each sample, {list(data.shape[:1])}, got {described(losses)}"
            )
        if not losses.requires_grad:
            raise InvalidArgumentError("the loss does not depend on any parameter of the network that has a gradient")
        self.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
        if isinstance(self.measure, Objective):
            self.levels.add(self.measure.at(model, len(data), key), losses)
        return float(mean.detach())

    def _taken(self, data: Tensor) -> Tensor:
        """The data of a batch, checked, where the network is and in its precision."""
        name = f"the batch of step {self.step + 1}"
        check_state(data, name, "")
        if self._shape is None:
            self._shape = data.shape[1:]
            _warn_of_scale(self.model, data)
        if data.shape[0] == 0 or data.shape[1:] != self._shape:
            sizes = ", ".join(map(str, self._shape))
            raise InvalidArgumentError(f"{name} is {list(data.shape)}, and must be [B, {sizes}], B >= 1")
        return data.detach().to(self.device, self.dtype)


class _Levels:
    """Sums of losses and counts of samples in bins of log-SNR, which fade with the steps."""

    def __init__(self, model: ScoreModel) -> None:
        low, high = model.process.edges.tolist()
        self.edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
        self.sums = torch.zeros(2, _BINS, dtype=torch.float64)

    def add(self, level: Level, losses: Tensor) -> None:
        """Take in the losses `[B]` of samples at their levels."""
        told = losses.detach().double().cpu()
        place = torch.bucketize(level.lam.detach().cpu().expand(len(told)).contiguous(), self.edges[1:-1])
        good = told.isfinite()
        both = torch.stack([told, torch.ones_like(told)]).where(good, 0.0)
        self.sums.mul_(_FADE).index_add_(1, place, both)

    def means(self) -> ByLevel:
        """The mean loss of every bin."""
        return ByLevel(self.edges, self.sums[0] / self.sums[1])


def _warn_of_time(model: ScoreModel, module: torch.nn.Module) -> None:
    """One warning for times that the library's own networks cannot tell apart."""
    if isinstance(module, MLP | UNet):
        ends = model.time(model.process.at(model.process.edges)).tolist()
        if abs(ends[1] - ends[0]) > 6:
            warn_caller(
                f"{type(module).__name__} tells times apart in an interval of 6, and gets {min(ends):.3g} to "
                f"{max(ends):.3g}: give ScoreModel(..., time=sd.model.log_sigma_time)"
            )


def _warn_of_scale(model: ScoreModel, data: Tensor) -> None:
    """One warning for data that the noise at t_max does not hide, or that at t_min does."""
    size = float(widen(data).square().mean().sqrt()) if data.numel() else 1.0
    low, high = model.process.edges.exp().tolist()
    if model.predicts == "edm" and not 0.5 < size / model.sigma_data < 2:
        warn_caller(
            f"the first batch has a root mean square of {size:.3g}, and the model sigma_data={model.sigma_data:g}: "
            "give ScoreModel(..., sigma_data=...) the data's standard deviation"
        )
    if not 0.3 / high < size < 0.5 / low:
        warn_caller(
            f"the first batch has a root mean square of {size:.3g}, and the noise of {model.process} goes from "
            f"{1 / high:.3g} to {1 / low:.3g}: bring data to a standard deviation of about 1, by sd.latents.Latent.fit"
        )


def _optimizer(given: Any, parameters: Iterator[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer, made of the parameters where it is what makes one. Raises for what is none, or takes a closure."""
    made = given if isinstance(given, torch.optim.Optimizer) else callable(given) and given(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise InvalidTypeError(
            "optimizer must be a torch optimizer, as torch.optim.Adam(model.parameters(), 1e-3), or what makes one of "
            f"parameters; got {made if callable(given) else given!r}"
        )
    if isinstance(made, torch.optim.LBFGS):
        raise InvalidArgumentError("LBFGS evaluates the loss by itself, several times a step: give Adam, or another")
    return made


@contextlib.contextmanager
def _keyed(key: int, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded, for dropout, and afterwards as they were."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(key)
        if cuda:
            torch.cuda.manual_seed(key)
        yield


def _record(value: Any) -> Any:
    """A loss or an average as plain data; of an objective its parts, which may be a user's own one by one."""
    if isinstance(value, Objective):
        return {"levels": _record(value.levels), "weight": _record(value.weight), "lattice": value.lattice}
    return files.recorded_or_named(value)
