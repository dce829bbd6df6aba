r"""Plans: a fixed grid and one linear combination per step, all in plain tensors, for every process and condition.

In `y = x/alpha` every process has the same probability flow at the same log-SNR, and there

    y_{k+1} = w_{k,0} y_k + sum_{j<=k} w_{k,1+j} F_j,    F_j = p_j data + q_j noise, predicted at (y_j, lam_j)

is any deterministic linear multistep method with one evaluation a step. A corrector that reuses the evaluation of the
next step is one too: the corrected y is linear in the predicted one and the F, so it is folded into the weights.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.grids import Grid
from sdegen.level import Level, points
from sdegen.processes.process import Process, linear_gaussian
from sdegen.processes.sde import SDE
from sdegen.scores.model import Model, convert, plane
from sdegen.scores.safe import Kind, read_tensors, write_tensors
from sdegen.solvers.base import Reverse, Solver, check_score_model
from sdegen.solvers.frames import DATA
from sdegen.solvers.table import Leg, Past, Table, ends
from sdegen.tensors import readable, widen

_FORMAT = "sdegen plan 1"
_KIND = Kind("plan", "Plan.save", "plans")
_CLOSE = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Table):
    """A solver with its own grid: `sd.sample(model, shape, solver=plan)`; made by `sd.calibrate` or `Plan.of`.

    lams `[n + 1]`: the levels as `log(alpha/sigma)`, increasing (towards data). wants `[n, 2]`: what the network is
    asked for at each level but the last, `p data + q noise`. weights `[n, 1 + n]`: of y and of the values so far, in
    `y = x/alpha`, zero for values to come. orders `[n]`: the order of each step's predictor, 0 where its weights were
    fitted. errors `[n]`: the estimated mean error of y at the end of each step, the last one that of the samples; NaN
    where it was not estimated. scale: the data's standard deviation as the pilot saw it. spent: network evaluations
    that calibration took. Float64, on the host.

    Deterministic, one evaluation a step. The same on every process whose levels reach from `lams[0]` to `lams[-1]`,
    under conditions and guidance. Raises InvalidArgumentError on tensors that are no plan.
    """

    frame = DATA
    lams: Tensor
    wants: Tensor
    weights: Tensor
    orders: Tensor
    errors: Tensor
    scale: float = math.nan
    spent: int = 0

    def __post_init__(self) -> None:
        weights: Any = self.weights
        n = len(weights) if torch.is_tensor(weights) and weights.ndim else 0
        shapes = {"lams": (n + 1,), "wants": (n, 2), "weights": (n, n + 1), "orders": (n,), "errors": (n,)}
        for name, shape in shapes.items():
            value = vars(self)[name]
            dtype = torch.int64 if name == "orders" else torch.float64
            if not torch.is_tensor(value) or value.dtype != dtype or value.device.type != "cpu":
                raise InvalidTypeError(f"a plan's {name} must be a {dtype} tensor on the CPU, got {value!r}")
            if value.shape != shape or n == 0:
                raise InvalidArgumentError(f"a plan's {name} must have shape {list(shape)}, got {list(value.shape)}")
            if name != "errors" and not bool(value.isfinite().all()):
                raise InvalidArgumentError(f"a plan's {name} must be finite, got {value.tolist()}")
        if type(self.scale) not in (float, int) or not (math.isnan(self.scale) or 0 < self.scale < math.inf):
            raise InvalidArgumentError(f"a plan's scale must be a positive number, or NaN, got {self.scale!r}")
        if type(self.spent) is not int or self.spent < 0:
            raise InvalidArgumentError(f"a plan's spent must be a whole number >= 0, got {self.spent!r}")
        if bool((self.lams.diff() <= 0).any()):
            raise InvalidArgumentError(f"a plan's lams must increase (towards data), got {self.lams.tolist()}")
        if bool(self.weights.triu(2).any()):
            raise InvalidArgumentError("a plan's weights must be zero for values that do not exist yet")

    @property
    def steps(self) -> int:
        """How many steps, and evaluations, the plan has."""
        return len(self.weights)

    @property
    def own_steps(self) -> int:
        return self.steps

    @property
    def error(self) -> float:
        """The estimated mean error of samples: root mean square over elements, mean over samples; NaN if unknown."""
        return float(self.errors[-1])

    @property
    def own_error(self) -> float:
        """`error` relative to the data's scale."""
        return self.error / self.scale

    @property
    def memory(self) -> int:
        return self.steps - 1

    @property
    def grid(self) -> Grid:
        """The plan's own times, `grid(process, n)`; n must be the plan's number of steps, or None."""
        return self._times

    def _times(self, sde: SDE, n: int | None = None) -> Tensor:
        process = linear_gaussian(sde, "a plan")
        if n is not None and n != self.steps:
            raise InvalidArgumentError(f"this plan has {self.steps} steps, got steps={n}: leave steps out")
        limits = torch.tensor([process.t_max, process.t_min], dtype=torch.float64, device="cpu")
        reach = process.level(limits).lam
        if not readable(reach):
            return process.at(self.lams).t
        if bool(self.lams[0] < reach[0] - _CLOSE) or bool(self.lams[-1] > reach[1] + _CLOSE):
            raise InvalidArgumentError(
                f"this plan's log-SNRs run from {float(self.lams[0]):.4g} to {float(self.lams[-1]):.4g} and those of "
                f"{process} only from {float(reach[0]):.4g} to {float(reach[1]):.4g}: calibrate on this process, or "
                "set its t_min and t_max"
            )
        times = process.at(self.lams.clamp(float(reach[0]), float(reach[1]))).t
        for end, here in ((0, 0), (-1, 1)):
            if abs(float(self.lams[end] - reach[here])) <= _CLOSE:
                times[end] = limits[here]
        return times

    def on(self, model: Reverse, levels: Level) -> Sequence[Solver]:
        """The steps on a grid whose levels `[n + 1]` are its own. Raises InvalidArgumentError on other levels."""
        check_score_model(self, model)
        lams = levels.lam
        if lams.shape != self.lams.shape or bool(((lams - self.lams).abs() > _CLOSE).any()):
            raise InvalidArgumentError(
                f"these {len(lams) - 1} steps from log-SNR {float(lams[0]):.4g} to {float(lams[-1]):.4g} are not the "
                f"plan's own {self.steps} from {float(self.lams[0]):.4g} to {float(self.lams[-1]):.4g}: give no grid "
                "and no steps, or plan.grid(process, None) where times are asked for (a plan runs only towards data)"
            )
        return super().on(model, levels)

    def init(self, model: Reverse, x: Tensor, now: Level) -> Past:
        """Past values, newest first: none yet, so zeros."""
        check_score_model(self, model)
        return Past(None, tuple(torch.zeros_like(widen(x)) for _ in range(self.memory)))

    def legs(self, model: Any, now: Level, next: Level, past: Past) -> list[Leg]:
        """Evaluate at x, combine; the step's place in the plan is that of the level nearest to `now`."""
        place = (self.lams[:-1] - now.lam.to("cpu")[..., None]).abs().argmin(-1)
        flat = place.reshape(-1)
        p, q = (v.reshape(place.shape) for v in self.wants.index_select(0, flat).unbind(-1))
        # the weights of the values from the newest on; never kept, as they may be traced
        back = torch.arange(self.steps, device="cpu")[:, None] - torch.arange(self.steps, device="cpu")
        known = torch.where(back >= 0, self.weights[:, 1:].gather(1, back.clamp(min=0)), 0.0)
        rows = torch.cat([self.weights[:, :1], known], 1).index_select(0, flat).reshape(*place.shape, -1)
        on_y, *on = (rows * next.alpha[..., None]).unbind(-1)
        return [Leg(now, (p, q), on_y / now.alpha, tuple(on))]

    @staticmethod
    def of(solver: Solver, process: Process, times: Tensor | int = 20) -> Plan:
        """The plan that takes the steps of a deterministic multistep solver on its grid, or on `times` `[n + 1]`.

        Found by running it on symbols, so for any solver whose step is linear in x and the predictions, with one
        evaluation a step. Raises InvalidArgumentError for other solvers.
        """
        if solver.stochastic or solver.evals != 1:
            raise InvalidArgumentError(f"a plan has one evaluation a step and no noise, which {solver} is not")
        if not torch.is_tensor(times):
            times = solver.grid(process, times)
        levels = process.level(times)
        frame = solver.clock_frame or DATA
        now, _ = ends(levels)
        p, q = (v.expand_as(now.t) for v in plane(process, now, frame.want(process, now, 0.0)))
        symbols = _Symbols(process, torch.stack([p, q], 1))
        each = points(levels)
        n, x = len(now.t), torch.eye(1, 1 + len(now.t), dtype=torch.float64, device="cpu")
        method = solver.for_steps(n)
        parts = solver.on(symbols, levels) or [method] * n
        if any(part.evals != 1 for part in parts):
            raise InvalidArgumentError(f"a plan has one evaluation a step, and some steps of {solver} have more")
        found, carry = [x[0]], parts[0].init(symbols, x, each[0])
        for part, here, there in zip(parts, each[:-1], each[1:]):
            x, carry = part.step(symbols, x, here, there, carry, None)[:2]
            found.append(x[0])
        rows = torch.stack(found) / levels.alpha[:, None] * levels.alpha[0]
        keep = rows[1:, 0] / rows[:-1, 0]
        weights = rows[1:] - keep[:, None] * rows[:-1]
        # rounding, where a value cannot have a weight
        weights = weights.tril(1) / levels.alpha[0]
        weights[:, 0] = keep
        top = int(vars(method).get("order", 1))
        orders = torch.arange(1, n + 1, device="cpu").clamp(max=top)
        return Plan(
            levels.lam, symbols.wants, weights, orders, torch.full((n,), math.nan, dtype=torch.float64, device="cpu")
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a safetensors file. Raises InvalidArgumentError without safetensors."""
        tensors = {name: vars(self)[name].contiguous() for name in _TENSORS}
        notes = {"format": _FORMAT, "notes": json.dumps({"scale": self.scale, "spent": self.spent})}
        write_tensors(pathlib.Path(path), tensors, notes, _KIND)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan, bit for bit. Raises InvalidArgumentError on a file that is none, and without safetensors."""
        tensors, notes = read_tensors(pathlib.Path(path), _KIND)
        known: Any = {}
        try:
            known = json.loads(notes["notes"])
            fits = notes["format"] == _FORMAT and set(tensors) == set(_TENSORS) and set(known) == {"scale", "spent"}
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise InvalidArgumentError(f"{path} is not a plan of this version: it must be written by Plan.save")
        parts: Any = {**tensors, **known}
        return Plan(**parts)

    def __eq__(self, other: object) -> bool:
        return type(other) is Plan and all(map(_alike, self._numbers(), other._numbers()))

    def __hash__(self) -> int:
        return hash((self.steps, self.spent, float(self.lams[0]), float(self.lams[-1])))

    def _numbers(self) -> list[Tensor]:
        """All that makes it."""
        alone = torch.tensor([self.scale, self.spent], dtype=torch.float64, device="cpu")
        return [*(vars(self)[name] for name in _TENSORS), alone]

    def __repr__(self) -> str:
        known = "not estimated" if math.isnan(self.error) else f"{self.error:.2g}"
        return (
            f"Plan({self.steps} steps, log-SNR {float(self.lams[0]):.3g} to {float(self.lams[-1]):.3g}, error {known})"
        )

    def __str__(self) -> str:
        head = f"{'step':>4}  {'log-SNR':>8}  {'sigma/alpha':>11}  {'order':>6}  {'error':>8}"
        lines = [f"{self!r}, data scale {self.scale:.3g}, {self.spent} evaluations spent", head]
        for k in range(self.steps):
            lam, order, error = float(self.lams[k + 1]), int(self.orders[k]), float(self.errors[k])
            known = "-" if math.isnan(error) else f"{error:.1e}"
            lines.append(f"{k + 1:>4}  {lam:>8.3f}  {math.exp(-lam):>11.4g}  {order or 'fitted':>6}  {known:>8}")
        return "\n".join(lines)


_TENSORS = ("lams", "wants", "weights", "orders", "errors")


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one shape and have the same numbers; NaN is the same as NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


class _Symbols(Model):
    """A model whose k-th answer is the k-th unit vector: what a solver makes of it are its weights."""

    def __init__(self, process: Process, wants: Tensor) -> None:
        self.process = process
        self.wants = wants
        self._calls = 0

    def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
        k, self._calls = self._calls, self._calls + 1
        on_x, on_value = convert(level, (self.wants[k, 0], self.wants[k, 1]), plane(self.process, level, want))
        value = torch.zeros_like(x)
        value[:, 1 + k] = 1.0
        return on_x * x + on_value * value
