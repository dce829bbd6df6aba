"""What a scheduler of diffusers says of its network: process, prediction and time; and the levels that it visits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief, check_known
from sdegen.grids.spacings import Ending
from sdegen.guidance.thresholds import dynamic_threshold, static_threshold
from sdegen.level import END, Level
from sdegen.loop.control import OnLevels
from sdegen.processes.process import Process
from sdegen.processes.schedules import EDM, DiscreteVP, Flow
from sdegen.scores.model import Model, ScoreModel

_THEIRS: Any = diffusers
OURS = ("scheduler_class", "solver", "grid", "tol")
"""What a `Scheduler` adds to the config."""
_NOT_READ = (*OURS, "_use_default_values")  # by the latter from_config would undo changes of entries
_PREDICTS = {"epsilon": "noise", "v_prediction": "v", "sample": "data", "flow_prediction": "velocity"}
_KINDS = {
    "beta_schedule": "DDIMScheduler",
    "shift": "FlowMatchEulerDiscreteScheduler",
    "sigma_data": "EDMEulerScheduler",
}
"""By a key of the config, a scheduler of its kind."""
_TO_ZERO = ("LMSDiscreteScheduler",)
"""Schedulers whose last step goes to sigma = 0 by their own method, and not to the predicted data."""


@dataclass(frozen=True)
class Clock:
    """A network's time, `rate t - offset`, or `log(t)/4` on EDM, where t is sigma.

    unit: whether it is then divided by `rate`, in float32 as pipelines do it.
    """

    rate: float = 1.0
    offset: float = 0.0
    log: bool = False
    unit: bool = False

    def __call__(self, level: Level) -> Tensor:
        """The time at a level."""
        time = level.t.log() / 4 if self.log else level.t * self.rate - self.offset
        return time.float() / self.rate if self.unit else time

    def t(self, time: Tensor) -> Tensor:
        """t at a network's time."""
        return torch.exp(4 * time) if self.log else (time + self.offset) / self.rate


class Ours:
    """What our `Scheduler` is, and no scheduler of theirs."""


class Law(NamedTuple):
    """What a scheduler says of its network: the process, the prediction, the time it is told, and `sign` of its output.

    start: the scale of the noise that a pipeline begins with.
    """

    process: Process
    predicts: Any
    time: Clock
    sigma_data: float = 0.5
    sign: float = 1.0
    start: float = 1.0


def stock_of(given: Any) -> Any:
    """The scheduler that was given, or that a config describes."""
    if isinstance(given, _THEIRS.SchedulerMixin) and not isinstance(given, Ours):
        return given
    config = getattr(given, "config", given)
    if not isinstance(config, Mapping):
        raise InvalidTypeError(
            f"a diffusers scheduler, or its config, is needed, got {brief(given)}: as pipe.scheduler, or "
            "diffusers.DDIMScheduler.from_pretrained(folder)"
        )
    name = scheduler_name(config)
    if name is None:  # a scheduler that was not loaded from a file does not say it; its law does not depend on it
        name = next((kind for key, kind in _KINDS.items() if key in config), None)
        config = {"clip_sample": False, **config} if name == "DDIMScheduler" else config  # which DDIM has by default
    kind: Any = getattr(_THEIRS, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, _THEIRS.SchedulerMixin)):
        raise InvalidArgumentError(
            f"a config needs the _class_name of one of diffusers' schedulers, got {name!r}: give the scheduler itself"
        )
    known: Any = kind
    return known.from_config({key: value for key, value in config.items() if key not in _NOT_READ})


def changed(given: Any, changes: Mapping[str, Any]) -> Any:
    """A scheduler whose config has some entries that are others. Raises InvalidArgumentError for unknown ones."""
    stock = _THEIRS.DDIMScheduler() if given is None else stock_of(given)
    unknown = sorted(changes.keys() - stock.config.keys())
    if unknown:
        raise InvalidArgumentError(f"the config of {type(stock).__name__} has no {', '.join(unknown)}")
    defaults = [name for name in stock.config.get("_use_default_values", ()) if name not in changes]
    return type(stock).from_config({**stock.config, **changes, "_use_default_values": defaults}) if changes else stock


def scheduler_name(given: Any) -> Any:
    """The class of the scheduler that a config, or an object with one, is of; None where it does not say it."""
    config = getattr(given, "config", given)
    return config.get("scheduler_class") or config.get("_class_name")


def law_of(stock: Any) -> Law:
    """What a scheduler says of its network. Raises InvalidArgumentError where it does not say it."""
    config = stock.config
    known = config.get("prediction_type") or "flow_prediction"
    check_known("prediction_type", known, tuple(_PREDICTS))
    steps = config.get("num_train_timesteps") or 1000
    edm_like = config.get("timestep_type") == "continuous" and known == "v_prediction"
    if hasattr(stock, "precondition_noise") or edm_like:
        span = EDM(config.get("sigma_min") or 0.002, config.get("sigma_max") or 80.0)
        own = config.get("sigma_data", 1.0 if edm_like else 0.5)
        if known not in ("epsilon", "v_prediction") or type(stock).__name__.startswith("Cosine"):
            raise InvalidArgumentError(
                f"{type(stock).__name__} with prediction_type={known!r} has a preconditioning of its own: make the "
                "ScoreModel by hand, on EDM()"
            )
        return Law(span, "edm", Clock(log=True), own, 1.0 if known == "epsilon" else -1.0, span.sigma_max)
    table = getattr(stock, "alphas_cumprod", None)
    if config.get("use_flow_sigmas") or (table is None and "shift" in config):
        if config.get("invert_sigmas"):
            raise InvalidArgumentError(
                "invert_sigmas is for networks whose time runs from noise to data: write "
                "sd.adapters.networks.velocity(net, data_at=1)"
            )
        times = stock.timesteps
        if float(times[-1]) > float(times[0]) or float(times[0]) <= 1.0 < steps:
            raise InvalidArgumentError(
                f"the times of {type(stock).__name__} are not those of a flow from {steps} to 0: make the ScoreModel "
                "by hand, as ScoreModel(Flow(), net, 'velocity', time=...)"
            )
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        low = shifted(shift, shifted(shift, 1 / steps))  # its grids shift twice
        return Law(Flow(t_min=min(1e-3, low)), _PREDICTS[known], Clock(float(steps)))
    if table is None or not torch.is_tensor(table) or table.ndim != 1:
        raise InvalidArgumentError(
            f"{type(stock).__name__} has no table of alphas_cumprod, no flow and no EDM preconditioning: make the "
            "ScoreModel by hand, on a process of yours"
        )
    kept = table.detach().to("cpu", torch.float64)
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    return Law(DiscreteVP(betas, zero_snr=float(kept[-1]) == 0.0), _PREDICTS[known], Clock(float(len(kept)), 1.0))


def shifted(shift: float, s: Any) -> Any:
    """`shift s / (1 + (shift - 1) s)`: a flow's time, or times, moved towards noise (Esser et al. 2024, eq. 23)."""
    return shift * s / (1 + (shift - 1) * s)


@dataclass(frozen=True)
class StockGrid(Ending):
    """The grid of a scheduler of diffusers; made by `grid`."""

    config: Mapping[str, Any]
    mu: float | None = None
    sigmas: Callable[[int], Sequence[float]] | None = None

    @property
    def denoise(self) -> bool:
        """Whether its last step goes to the predicted data."""
        return self._made(2)[1]

    def __call__(self, process: Any, n: int) -> OnLevels:
        """n steps, on the scheduler's own process or on another one with its levels."""
        made, law = self._made(n + self.denoise)[0], law_of(stock_of(self.config))
        if process == law.process or (isinstance(process, Flow) and isinstance(law.process, Flow)):
            return made
        times = process.time(made.level.lam).clamp(process.t_min, process.t_max)
        return OnLevels(times, process.level(times))

    def _made(self, count: int) -> tuple[OnLevels, bool]:
        stock, given = stock_of(self.config), {} if self.mu is None else {"mu": self.mu}
        if self.sigmas is None:
            stock.set_timesteps(num_inference_steps=count, **given)
        else:
            stock.set_timesteps(sigmas=self.sigmas(count), **given)
        return visited(stock, law_of(stock))


def visited(stock: Any, law: Law) -> tuple[OnLevels, bool]:
    """The levels that a scheduler visits, its time steps set, and whether it then goes on to the data."""
    process, times, sigmas = law.process, stock.timesteps.double().cpu(), getattr(stock, "sigmas", None)
    if sigmas is None:
        t = law.time.t(torch.unique(times).flip(0))
        data = float(getattr(stock, "final_alpha_cumprod", 1.0)) == 1.0
        if not data and float(t[-1]) > process.t_min:
            t = torch.cat([t, t.new_tensor([process.t_min])])
        return OnLevels(t, process.level(t)), data
    sigmas = sigmas.double().cpu()
    data = float(sigmas[-1]) == 0.0
    new = torch.cat(
        [torch.ones(1, dtype=torch.bool, device="cpu"), sigmas.diff() != 0]
    )  # those of two stages stand twice
    s = sigmas[new][:-1] if data else sigmas[new]
    t = s if isinstance(process, Flow) else process.time(-torch.log(s))
    t = t.clamp(process.t_min, process.t_max)
    level = process.level(t)
    if not law.time.log and not hasattr(stock, "sigmas_interpol"):
        # the network is told what the scheduler tells it, which may be rounded; of the last level it is told nothing
        told = torch.cat([times, times.new_full((max(0, len(sigmas) - len(times)),), math.nan)])[new][: len(s)]
        level = level._replace(t=torch.where(told.isnan(), t, law.time.t(told)))
    if type(stock).__name__ in _TO_ZERO:
        end = Level(*(t.new_tensor([value]) for value in (process.t_min, 1.0, END)))
        below = end.t * (1 - 1e-9)  # where the last sigma is the process's last
        return OnLevels(torch.cat([t, below]), Level(*map(torch.cat, zip(level, end)))), False
    return OnLevels(t, level), data


def levels_given(stock: Any, law: Law, given: Mapping[str, Any]) -> tuple[OnLevels, bool]:
    """The levels of sigmas, a shift mu or times that a pipeline gives, and whether they then go on to the data.

    As the scheduler's own `set_timesteps` reads them, where it takes them; times are those that the network is told.
    Raises InvalidArgumentError for a mu where no flow is shifted.
    """
    process, takes = law.process, inspect.signature(stock.set_timesteps).parameters.keys()
    flow, mu = isinstance(process, Flow), given.get("mu")
    if mu is not None and not flow:
        raise InvalidArgumentError(f"{type(stock).__name__} is no flow and has no shift, got mu={mu}")
    if given.keys() <= takes and not ("timesteps" in given and "sigmas" not in given):
        stock.set_timesteps(**given)
        return visited(stock, law)
    if "timesteps" in given:
        t = law.time.t(torch.as_tensor(given["timesteps"], dtype=torch.float64, device="cpu"))
    else:
        told = given["sigmas"] if "sigmas" in given else np.linspace(1, 1e-3, given["num_inference_steps"])
        s = torch.as_tensor(told, dtype=torch.float64, device="cpu")
        s = s[s > 0]
        shift = math.exp(mu) if mu is not None else stock.config.get("flow_shift") or stock.config.get("shift") or 1.0
        t = shifted(shift, s) if flow else process.time(-torch.log(s))
    t = t.clamp(process.t_min, process.t_max)
    return OnLevels(t, process.level(t)), True


def clipped(made: ScoreModel, stock: Any) -> Model:
    """The model with its predicted data clipped as the scheduler clips them, by entries of the config that it reads."""
    config, reads = stock.config, inspect.signature(type(stock).__init__).parameters
    if "thresholding" in reads and config.get("thresholding"):
        top = config["sample_max_value"]
        return dynamic_threshold(made, config["dynamic_thresholding_ratio"], limit=top)
    if "clip_sample" in reads and config.get("clip_sample"):
        bound = config.get("clip_sample_range", 1.0)
        return static_threshold(made, -bound, bound)
    return made
