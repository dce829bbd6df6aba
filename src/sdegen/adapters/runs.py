"""A solver's run inside of somebody else's loop: the times that it asks for, and what it makes of the answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.adapters.stock import StockGrid, clipped, law_of, levels_given, stock_of
from sdegen.errors import InvalidArgumentError, brief, warn_caller
from sdegen.grids.spacings import Ending
from sdegen.loop.control import OnLevels
from sdegen.loop.tolerance import PI
from sdegen.noise import White
from sdegen.sampling.batches import path_noise
from sdegen.sampling.driven import AskedModel, Driven, Together
from sdegen.sampling.options import closed, on_grid
from sdegen.sampling.prior import own_seeds
from sdegen.scores.model import Model
from sdegen.solvers.base import Solver


class Parts(NamedTuple):
    """What a run is prepared for: a config, a solver, a grid and a tolerance."""

    config: Any
    solver: Solver
    grid: Any
    tol: float | None


class Run:
    """One run of a scheduler: the times it asks for, and the solve behind them; prepared once, and run by `again`."""

    def __init__(self, parts: Parts, n: int, device: Any, given: Mapping[str, Any]) -> None:
        self.parts, stock = parts, stock_of(parts.config)
        self._stock, self.law, self._about = stock, law_of(stock), n
        self.solver, self.device, self.index = parts.solver, device, 0
        self.begin_index: int | None = None
        self._latest: Tensor | None = None
        self._learned = self.solver.learned_variance
        process, (model, asked) = self.law.process, self._models()
        grid, denoise = parts.grid, True
        control: Any
        if parts.tol is not None:
            start, end = closed(model, self.solver, None, None) if any(process.open_ends) else (None, None)
            settings = PI(tol=parts.tol, start=start, end=end)
            control = Together(**vars(settings.bind(self.solver, process, torch.float32)))
        elif given.keys() - {"num_inference_steps"} and (grid is None or isinstance(grid, StockGrid)):
            made, denoise = levels_given(stock, self.law, given)
            control = _control(model, self.solver, lambda process, n: made, made.steps)
        else:
            denoise = grid.denoise if isinstance(grid, Ending) else True
            if self.solver.own_steps not in (None, n - denoise):
                raise InvalidArgumentError(
                    f"{brief(self.solver)} has {self.solver.own_steps} steps of its own: give "
                    f"num_inference_steps={self.solver.own_steps + denoise}, got {n}"
                )
            control = _control(model, self.solver, grid, n - denoise)
        self.driven = Driven(model, asked, control, self.solver, denoise)
        self.adaptive = isinstance(control, Together)
        self.timesteps: Any = None
        if self.adaptive:
            self._first = float(self.law.time(control.first))
        else:
            self._rehearse(device)

    def is_of(self, parts: Parts) -> bool:
        """Whether it was prepared for these."""
        return all(one is other for one, other in zip(self.parts, parts))

    def again(self) -> Run:
        """The same run, not begun."""
        run = copy.copy(self)
        run.driven = self.driven.again(*self._models())
        if run.adaptive:
            run.timesteps = Requests(run, self._about)
        return run

    def _models(self) -> tuple[Model, AskedModel]:
        """The model of the solve, and the one inside of it that is answered from outside."""
        asked = AskedModel(
            self.law.process,
            self.law.predicts,
            time=self.law.time,
            sigma_data=self.law.sigma_data,
            learned_variance=self._learned,
        )
        return clipped(asked, self._stock), asked

    def _rehearse(self, device: Any) -> None:
        """Find the times that the solve will ask for, by one of zeros; and which of them are at a step's beginning."""
        width = 1 + self._learned
        self.times: list[float] = []
        self.places: dict[int, int] = {}
        x = torch.zeros(1, 1, device="cpu")
        self.driven.begin(x, White(torch.zeros(1, dtype=torch.int64, device="cpu")))
        opening = {}
        while (question := self.driven.question) is not None:
            place = self.driven.steps
            if self.driven.between and place not in self.places.values():
                self.places[len(self.times)] = place
                if question.x is self.driven.x:
                    opening[place] = question.level
            self.times.append(float(self.driven.time(question.level)))
            self.driven.answer(torch.zeros(1, width, device="cpu"))
        self.driven.opening = opening
        times = torch.tensor(self.times, dtype=torch.float64, device="cpu")
        whole = self.law.time.offset == 1.0 and bool(((times - times.round()).abs() < 1e-6).all())
        self.timesteps = (times.round().long() if whole else times.float()).to(device)
        self.driven.question = None

    @property
    def expected(self) -> float | None:
        """The time that is asked for next; None where the run is done."""
        if not self.adaptive:
            return self.times[self.index] if self.index < len(self.times) else None
        if self._latest is None:
            return self._first
        question = self.driven.question
        return None if question is None else float(self.driven.time(question.level))

    def step(self, output: Tensor, timestep: Any, sample: Tensor, generator: Any) -> Tensor:
        """Hand the solve one output of the network."""
        if self._latest is None:
            self._begin(timestep, sample, generator)
        self._check(timestep)
        if self._learned or output.shape != sample.shape:
            output = self._fitting(output, sample)
        output = output if self.law.sign == 1.0 else self.law.sign * output
        changed = None if sample is self._latest else sample
        self._latest = self.driven.answer(output.to(sample.dtype), changed)
        self.index += 1
        if self.driven.question is None:
            self._end()
        return self._latest

    def _fitting(self, output: Tensor, sample: Tensor) -> Tensor:
        """The output without a learned variance that the solver has no use for; an error where it does not fit x."""
        wide = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
        if output.shape == wide:
            return output if self._learned else output[:, : sample.shape[1]]
        raise InvalidArgumentError(
            f"the network returned {list(output.shape)} for x of {list(sample.shape)}"
            + (f"; {brief(self.solver)} needs twice the channels, for the variance" if self._learned else "")
        )

    def _begin(self, timestep: Any, sample: Tensor, generator: Any) -> None:
        """Start the solve where the pipeline starts, which may be in the middle."""
        place = 0
        if not self.adaptive:
            self.index = self._index(timestep) if self.begin_index is None else self.begin_index
            if self.index not in self.places:
                raise InvalidArgumentError(
                    f"timesteps[{self.index}] lies inside of a step of {brief(self.solver)}, whose steps begin at "
                    f"{sorted(self.places)}: begin there"
                )
            place = self.places[self.index]
        draws = self.solver.stochastic or (not self.adaptive and self.driven.control.draws)
        noise = self._noise(sample, generator) if draws else None
        self.driven.begin(sample.clone(), noise, place)
        self._latest = sample

    def _noise(self, sample: Tensor, generator: Any) -> Any:
        """The noise of the samples, whose seeds a generator makes, or one for each."""
        if isinstance(generator, list | tuple):
            seeds = torch.cat([own_seeds(one, 1, sample.device)[1] for one in generator])
        else:
            seeds = own_seeds(generator, len(sample), sample.device)[1]
        return path_noise(self.law.process, self.solver)(seeds) if self.adaptive else White(seeds)

    def _index(self, timestep: Any) -> int:
        """The first time of that value at which a step begins."""
        time = self._seen(timestep)
        found = [index for index in self.places if _alike(self.times[index], time)]
        if not found:
            raise InvalidArgumentError(f"step was called with t={time:g}, which is none of {self.times}")
        return found[0]

    def _check(self, timestep: Any) -> None:
        """Raises InvalidArgumentError unless this is the time that was asked for."""
        expected = self.expected
        if expected is None:
            raise InvalidArgumentError("this run is done: set_timesteps(n) begins another")
        if not _alike(self._seen(timestep), expected):
            raise InvalidArgumentError(
                f"step was called with t={self._seen(timestep):g}, and t={expected:g} was asked for: call the network "
                "and step at each of scheduler.timesteps, in their order"
            )

    def _seen(self, timestep: Any) -> float:
        """A time on the host, without waiting for the device where it is one of ours."""
        if not torch.is_tensor(timestep):
            return float(timestep)
        known = None if timestep.device.type == "cpu" or self.adaptive else self.timesteps.untyped_storage()
        if known is not None and timestep.untyped_storage().data_ptr() == known.data_ptr():
            return self.times[timestep.storage_offset()]
        return float(timestep.flatten()[0])

    def _end(self) -> None:
        """Say which samples failed."""
        status = self.driven.status
        failed = [] if status is None else (status > 0).nonzero().flatten().tolist()
        if failed:
            warn_caller(f"samples {failed[:8]} failed: they became NaN or Inf, or no step met the tolerance")


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-5 * max(1.0, abs(other))


def _control(model: Model, solver: Solver, grid: Any, steps: int) -> Any:
    """The grid of so many steps; of none, its one level."""
    process = model.process
    start, end = closed(model, solver, None, None) if any(process.open_ends) else (None, None)
    if not steps and isinstance(grid, Ending):
        control = grid(process, 0)
        times = control.times
    elif steps:
        control = on_grid(model, solver, grid, steps, start, end)
        times = control.times
    else:
        times = torch.tensor([process.t_max if start is None else start], dtype=torch.float64, device="cpu")
        control = OnLevels(times, process.level(times))
    return control if control.draws or isinstance(control, OnLevels) else OnLevels(times, process.level(times))


def _unknown(self: Any, other: Any) -> Any:
    """Refuse what needs all times at once."""
    raise InvalidArgumentError(
        "adaptive times are not known before the run, so a pipeline that begins or ends inside of them, as "
        "image-to-image and inpainting do, needs a grid: leave tol out"
    )


class Requests:
    """The times of a run that adapts its steps: each is known after the step before."""

    __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = _unknown

    def __init__(self, run: Run, about: int) -> None:
        self._run, self._about = run, about

    def __len__(self) -> int:
        return self._about

    def __iter__(self) -> Iterator[Tensor]:
        seen = None
        while (time := self._run.expected) is not None:
            if seen == self._run.index:
                raise InvalidArgumentError(
                    "adaptive times are known one by one, after each step: call step before you take the next one"
                )
            seen = self._run.index
            yield torch.tensor(time, dtype=torch.float32, device=self._run.device)
