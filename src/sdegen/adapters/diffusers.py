"""diffusers both ways: models and grids from its schedulers, and solvers as schedulers inside of its pipelines."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

from sdegen.adapters.conventions import Network, has_unit_time, parts_of, time_name
from sdegen.adapters.runs import Parts, Run
from sdegen.adapters.stock import OURS, Ours, StockGrid, changed, clipped, law_of, scheduler_name, stock_of
from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief
from sdegen.grids.spacings import Grid
from sdegen.level import Level
from sdegen.loop.arguments import check_solver
from sdegen.loop.tolerance import PI
from sdegen.processes.records import recorded, restored
from sdegen.processes.schedules import Flow
from sdegen.scores.model import Model, ScoreModel, TimeMap
from sdegen.solvers.base import Solver
from sdegen.solvers.methods import adams, default
from sdegen.tensors import check_type, combine

__all__ = ["Network", "Scheduler", "StockGrid", "grid", "model"]
_KEPT = 8
"""How many runs a scheduler keeps prepared."""


def model(
    network: Any,
    scheduler: Any,
    *,
    time: TimeMap | None = None,
    time_dtype: torch.dtype | None = None,
    learned_variance: bool | None = None,
    **condition: Any,
) -> Model:
    """The model of a diffusers network and the scheduler it was trained with: `model(pipe.unet, pipe.scheduler, ...)`.

    epsilon, v_prediction, sample and flow_prediction become noise, v, data and velocity; a table of betas a
    `DiscreteVP` whose log-SNR is linear between indices, zero terminal SNR included; a flow scheduler `Flow`; EDM's
    preconditioning `EDM`. `shift` and dynamic shifting are a matter of grids. Where the config has `clip_sample` or
    `thresholding`, it is a map of the model (`sd.static_threshold`, `sd.dynamic_threshold`).

    Args:
        network: called as `network(x, timestep=time, **condition)`; it returns a tensor, a tuple or an output object.
        scheduler: a scheduler, its config, or a `Scheduler` of ours.
        time: a function of the `Level` in place of the scheduler's own time, as `sd.model.level_time` for a network
            that takes t in [0, 1]. Flux's kin are known by their names.
        time_dtype: of the time; None for float32, which networks of half the precision need, or float64 where they
            are of that.
        learned_variance: whether it returns twice the channels; None for what network and scheduler say.
        condition: the network's own arguments, as `encoder_hidden_states`, per sample or `sd.shared`.

    Raises:
        InvalidArgumentError: a prediction or a kind of scheduler that is unknown; a network whose pipelines call it
            otherwise.
        InvalidTypeError: `scheduler` is neither a scheduler nor a config.

    Source: Ho et al. (2020); Salimans & Ho (2022); Karras et al. (2022); Lipman et al. (2023).
    """
    if isinstance(network, SchedulerMixin | DiffusionPipeline) or not callable(network):
        raise InvalidTypeError(
            "model(network, scheduler) takes first the network, as pipe.unet or pipe.transformer, got "
            f"{type(network).__name__}"
        )
    stock = stock_of(scheduler)
    law = law_of(stock)
    parts = parts_of(network)
    if learned_variance is None:
        own = next((c for part in parts if isinstance(c := getattr(part, "config", None), Mapping)), {})
        twice = own.get("out_channels") == 2 * (own.get("in_channels") or 0) > 0
        learned_variance = twice or stock.config.get("variance_type") == "learned_range"
    if time_dtype is None and any(p.dtype != torch.float64 for part in parts for p in part.parameters()):
        time_dtype = torch.float32
    unit = time is None and isinstance(law.process, Flow) and has_unit_time(network, parts)
    made = ScoreModel(
        law.process,
        Network(network, time_name(network, parts), law.sign, stock.config.get("variance_type") == "learned"),
        law.predicts,
        time=time or (replace(law.time, unit=True) if unit else law.time),
        time_dtype=time_dtype,
        sigma_data=law.sigma_data,
        cast=True,
        learned_variance=learned_variance,
        **condition,
    )
    return clipped(made, stock)


def grid(
    scheduler: Any, *, mu: float | None = None, sigmas: Callable[[int], Sequence[float]] | None = None
) -> StockGrid:
    """The grid that a diffusers scheduler runs: with it and the same method, samples are those of diffusers.

    `sd.sample(model, shape, nfe=n, grid=grid(scheduler), solver=...)` asks the network where `set_timesteps(n)` does,
    rounding, offsets, Karras, exponential and beta sigmas and flow shifts included. Where the scheduler's last step
    ends at a level and not at the data (DDIM with set_alpha_to_one=False, PNDM, DEIS), the call ends so, too.

    Args:
        scheduler: a scheduler, or its config.
        mu: of dynamic shifting, which a pipeline works out from the size of its images.
        sigmas: a function of n for the sigmas that a pipeline gives, as Flux's `lambda n: np.linspace(1, 1 / n, n)`.

    Returns:
        A grid, `grid(process, n)`.

    Raises:
        InvalidArgumentError, InvalidTypeError: as `model`.
    """
    stock = stock_of(scheduler)
    law_of(stock)
    if stock.config.get("skip_prk_steps") is False:
        raise InvalidArgumentError("PNDM's Runge-Kutta steps have no grid here: give it skip_prk_steps=True")
    if stock is not scheduler and not scheduler_name(scheduler):
        raise InvalidArgumentError("this config does not say whose it is, and grids differ: give the scheduler itself")
    known = {key: value for key, value in stock.config.items() if not key.startswith("_")}
    return StockGrid({**known, "scheduler_class": type(stock).__name__}, mu, sigmas)


class Scheduler(Ours, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver as a scheduler of diffusers: `pipe.scheduler = Scheduler(sd.unipc(3), config=pipe.scheduler.config)`.

    A pipeline calls its network at `timesteps` and hands each output to `step`. So any solver runs in it: those that
    evaluate several times a step, and, with `tol`, those that adapt their steps, one size for the batch. Samples are
    those of `sd.sample(model(network, config), ...)` with the same solver and x: n steps are `nfe=n`, or, where a step
    takes several evaluations, `steps=n - 1` and the last denoising. One object serves pipelines in several threads.

    Args:
        solver: a solver; None for `default()`, with `tol` for `adams()`.
        config: of the scheduler that the network was trained with, or that scheduler.
        grid: as in `sd.sample`; None for the solver's own. `grid(pipe.scheduler)` is that of diffusers. Without one,
            sigmas, times and a `mu` that the pipeline hands over are read as its own scheduler reads them.
        tol: the tolerance of adaptive steps; their number is then not the pipeline's.
        changes: entries of the config that are to be others, as `prediction_type="v_prediction"`.

    Raises:
        InvalidArgumentError, InvalidTypeError: as `model`; for a solver without error estimate where `tol` is given.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 - as the base class has it

    def __init__(
        self,
        solver: Solver | None = None,
        *,
        config: Any = None,
        grid: Grid | None = None,
        tol: float | None = None,
        **changes: Any,
    ) -> None:
        if isinstance(solver, SchedulerMixin):
            raise InvalidTypeError("the first argument is a solver, as sd.heun(); give the scheduler as config=")
        if config is None and not changes:
            raise InvalidArgumentError(
                "the config of the scheduler that the network was trained with is needed: config=pipe.scheduler.config"
            )
        stock = changed(config, changes)
        solver = (default() if tol is None else adams()) if solver is None else solver
        check_solver(solver, None)
        law = law_of(stock)
        if grid is not None:
            check_type(grid, Callable, "grid must be a grid such as sd.grids.karras, or grid(scheduler)")
        if tol is not None:
            PI(tol=tol).bind(solver, law.process, torch.float32)
            tol = float(tol)
        if solver.own_steps is not None and solver.own_error is None:
            raise InvalidArgumentError(f"{solver} runs a loop of its own, and asks nothing of a pipeline's")
        self.solver, self.grid, self.tol = solver, grid, tol
        self.init_noise_sigma, self._scales = law.start, law.predicts == "edm"
        known = {key: value for key, value in stock.config.items() if key not in OURS and not key.startswith("_")}
        if config is None or "_use_default_values" in getattr(config, "config", config):
            known["_use_default_values"] = []  # else other schedulers would take their own defaults, of the betas too
        records = {"solver": _record(solver), "grid": _record(grid), "tol": tol}
        self._add(**known, scheduler_class=type(stock).__name__, **records)
        self._own = threading.local()
        self._kept: dict[Any, Run] = {}

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **given: Any) -> Any:
        """The scheduler of a config: one that it saved, or that of any scheduler of diffusers, `solver=` beside it.

        Raises InvalidArgumentError where the config has a solver or grid that is not this library's: give it again.
        """
        known = {**config, **given}
        parts = {name: known.pop(name, None) for name in OURS[1:]}
        made = cls(config=known, **{name: restored(part) if _is_plain(part) else part for name, part in parts.items()})
        made._add(**{name: known[name] for name in ("_class_name", "_diffusers_version") if name in known})
        return (made, {}) if return_unused_kwargs else made

    def _add(self, **entries: Any) -> None:
        """More entries of the config."""
        self.register_to_config(**entries)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_own", "_kept")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _own=threading.local(), _kept={})

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps") or 1000)

    @property
    def order(self) -> int:
        """The network evaluations of a step."""
        return self.solver.evals

    @property
    def betas(self) -> Tensor:
        """The table `[T]` of a discrete config, which training code reads."""
        found: Tensor = stock_of(self.config).betas
        return found

    @property
    def alphas_cumprod(self) -> Tensor:
        """`alpha^2` `[T]` of a discrete config."""
        found: Tensor = stock_of(self.config).alphas_cumprod
        return found

    @property
    def timesteps(self) -> Any:
        """The network's times: a tensor on a grid; with `tol`, an iterable that knows the next one after each step."""
        run = getattr(self._own, "run", None)
        return torch.arange(len(self) - 1, -1, -1, device="cpu") if run is None else run.timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Begin a run of n steps, or on the levels that diffusers' own scheduler makes of what else is given.

        Raises InvalidArgumentError where nothing says how many steps there are.
        """
        named = {"sigmas": sigmas, "mu": mu, "timesteps": timesteps}
        given = {name: value for name, value in named.items() if value is not None}
        counted = next((value for value in (sigmas, timesteps) if value is not None), ())
        n = num_inference_steps if num_inference_steps is not None else len(counted)
        if n < 1:
            raise InvalidArgumentError(f"a run needs at least one step, got num_inference_steps={num_inference_steps}")
        if num_inference_steps is not None:
            given["num_inference_steps"] = n
        key = (n, str(device), *((name, *np.ravel(np.asarray(value)).tolist()) for name, value in given.items()))
        made, parts = self._kept.get(key), Parts(self.config, self.solver, self.grid, self.tol)
        if made is None or not made.is_of(parts):
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = made = Run(parts, n, device, given)
        self._own.run = made.again()
        self.num_inference_steps = n

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at `timesteps[begin_index]`, as image-to-image pipelines do."""
        self._run().begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """x as the network takes it: as it is, but `c_in x` on EDM."""
        if not self._scales:
            return sample
        law = self._run().law
        sigma = float(law.time.t(torch.as_tensor(timestep, dtype=torch.float64)))
        return sample / math.hypot(sigma, law.sigma_data)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """What the solver makes of the network's output at `timestep`: where to call it next, in the end the samples.

        generator: where noise comes from, or a list of one for each sample; None for fresh noise. others: what
        pipelines of one scheduler hand to it, as DDIM's eta, which is the solver's here.

        Raises InvalidArgumentError for another time than was asked for, and before `set_timesteps`.
        """
        if others.get("eta"):
            raise InvalidArgumentError(f"eta={others['eta']} is the solver's here: Scheduler(sd.ddim({others['eta']}))")
        x = self._run().step(model_output, timestep, sample, generator)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha data + sigma noise` at the network's times `[B]`, in the data's dtype."""
        level = self._level(timesteps)
        return combine((level.alpha, original_samples), (level.sigma, noise)).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v, `alpha noise - sigma data`, at the network's times `[B]`, which training code asks for."""
        level = self._level(timesteps)
        return combine((level.alpha, noise), (-level.sigma, sample)).to(sample.dtype)

    def _level(self, timesteps: Tensor) -> Level:
        law = law_of(stock_of(self.config))
        t = law.time.t(torch.as_tensor(timesteps).detach().to("cpu", torch.float64))
        return law.process.level(t.clamp(law.process.t_min, law.process.t_max))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)

    def _run(self) -> Run:
        run: Run | None = getattr(self._own, "run", None)
        if run is None:
            raise InvalidArgumentError("set_timesteps(n) comes first: this thread has no run of this scheduler")
        return run


def _record(value: Any) -> Any:
    """A part of a scheduler as its config keeps it; of the user's own, what it was called."""
    try:
        return recorded(value)
    except InvalidArgumentError:
        return {"own": brief(value)}


def _is_plain(part: Any) -> bool:
    return part is None or isinstance(part, Mapping)
