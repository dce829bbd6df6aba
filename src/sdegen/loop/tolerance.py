r"""Adaptive steps, sample by sample: a PID controller of the local error.

With e the size of a step's error estimate in units of what is allowed, q the power of the step with which it falls, and
e', e'' those of the two accepted steps before, an attempt is accepted if e <= 1, and the next step is longer by

    safety e^(-(kP + kI + kD)/q) e'^((kP + 2 kD)/q) e''^(-kD/q),

kept between two factors (Soderlind 2003; Hairer & Wanner 1996, sec. IV.2). With kP = kD = 0 it is the elementary rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdegen.errors import InvalidArgumentError, check_positive, is_number, strict_keywords, warn_caller
from sdegen.loop.control import Control
from sdegen.loop.pace import Adaptive
from sdegen.processes.process import check_levels
from sdegen.processes.sde import SDE
from sdegen.solvers.base import Solver
from sdegen.solvers.frames import TIME
from sdegen.tensors import check_whole, has_dtype


@strict_keywords
@dataclass(frozen=True)
class PI(Control):
    """Adaptive steps to a tolerance, each sample by its own errors: a controller for solvers with an error estimate.

    tol: the error at the end relative to the scale of the data, as the root of the mean square over a sample's
    elements (1e-3 if neither it nor rtol and atol are given; docs/adaptive.md has how well it is kept). On a `Process`
    a local error counts relative to `hypot(alpha sigma_data, sigma)`, as the flow of data of that scale carries it to
    the end. rtol, atol: instead, each step's error relative to `atol + rtol max(|x_now|, |x_next|)`.

    sigma_data: the scale of the data, that of the solver's frame by default, 1 without one. start, end: times, from
    t_max to t_min by default. safety: a factor on each step, the solver's own by default. pcoeff, icoeff, dcoeff: see
    the module. min_factor, max_factor: by which a step may change. first_step, max_step: in the clock of the solver's
    frame. max_jump: how far a step may go in log-SNR, a guard against tolerances so loose that steps pass over all
    structure: by default half a unit per evaluation, and 1 for Adams (on a general SDE: an eighth of the span).
    max_attempts: after which a sample ends with `Status.MAX_STEPS`. chunk: attempts between two looks at which samples
    are done, each of which waits for the device (1 on a CPU, else 8). fixed_shapes: leave finished samples in the
    batch, frozen, so that shapes never change.

    Raises InvalidArgumentError for tolerances that are negative, all zero, or not finite, and other values out of
    range; a tolerance below 100 roundings of x's dtype is raised to that, with a warning.
    """

    adaptive = True
    tol: float | None = None
    rtol: float | None = None
    atol: float | None = None
    sigma_data: float | None = None
    start: float | None = None
    end: float | None = None
    safety: float | None = None
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    min_factor: float = 0.2
    max_factor: float = 5.0
    first_step: float | None = None
    max_step: float | None = None
    max_jump: float | None = None
    max_attempts: int = 10_000
    chunk: int | None = None
    fixed_shapes: bool = False

    def __post_init__(self) -> None:
        for name in ("tol", "rtol", "atol"):
            value = vars(self)[name]
            if has_dtype(value) and value.ndim == 0:  # a number of numpy's or torch's
                value = value.item()
                object.__setattr__(self, name, value)
            number = is_number(value) and type(value) is not bool
            if value is not None and not (number and 0 <= value < math.inf):
                raise InvalidArgumentError(f"{name} must be a finite number >= 0 (tol > 0), got {value!r}")
        classic = self.rtol is not None or self.atol is not None
        if self.tol is not None and classic:
            raise InvalidArgumentError("give tol, the error at the end, or rtol and atol, those of a step; not both")
        if (self.tol == 0.0) or (classic and (self.rtol or 0.0) + (self.atol or 0.0) == 0.0):
            raise InvalidArgumentError("no error at all cannot be had: tol, or rtol + atol, must be > 0")
        sizes = ("sigma_data", "safety", "first_step", "max_step", "max_jump", "max_factor", "min_factor")
        check_positive(**{name: vars(self)[name] for name in sizes if vars(self)[name] is not None})
        if not self.min_factor < 1 < self.max_factor:
            raise InvalidArgumentError(
                f"min_factor < 1 < max_factor is needed, got {self.min_factor} and {self.max_factor}"
            )
        for name in ("max_attempts", "chunk"):
            if vars(self)[name] is not None:
                check_whole(name, vars(self)[name])

    def ends(self, process: SDE) -> tuple[float, float]:
        """The first and the last time."""
        return (
            process.t_max if self.start is None else float(self.start),
            process.t_min if self.end is None else float(self.end),
        )

    def runs_down(self, process: SDE) -> bool:
        """Whether time runs down."""
        start, end = self.ends(process)
        return start > end

    def bind(self, solver: Solver, process: Any, dtype: torch.dtype) -> Adaptive:
        """The controller of a solve with this solver on this process, states of this dtype.

        Raises InvalidArgumentError for a solver without an error estimate, and for a start or end outside of the span.
        """
        if solver.own_steps is not None:
            raise InvalidArgumentError(
                f"{type(solver).__name__} has steps or tolerances of its own: give it times, not a PI"
            )
        if not solver.adaptive:
            raise InvalidArgumentError(
                f"{solver} has no error estimate to adapt steps to: use sd.adams(), sd.dopri5(), sd.tsit5() or another "
                "pair, sd.adaptive_heun() or sd.adams(eta=1.0) with noise; or give steps instead of a tolerance"
            )
        first, last = (process.level(t) for t in self._checked_ends(process))
        classic = self.rtol is not None or self.atol is not None
        rtol, atol = self._local(dtype)
        frame = solver.clock_frame or TIME
        scale = self.sigma_data or frame.data_scale
        share = 1.0 if classic else solver.tol_share
        return Adaptive(
            replace(
                self,
                safety=self.safety or solver.safety,
                max_jump=self.max_jump or solver.max_jump,
            ),
            frame,
            first,
            last,
            share * rtol,
            share * atol,
            scale if process.gaussian and not classic else None,
        )

    def _checked_ends(self, process: Any) -> tuple[float, float]:
        """The ends, inside of the span and with a signal and noise on a Process."""
        ends = self.ends(process)
        for name, t in zip(("start", "end"), ends):
            if not process.t_min <= t <= process.t_max:
                raise InvalidArgumentError(
                    f"{name} must be a time in [{process.t_min:g}, {process.t_max:g}], got {t:g}"
                )
        if ends[0] == ends[1]:
            raise InvalidArgumentError(f"start and end must differ, got {ends[0]:g} twice")
        if process.gaussian:
            check_levels(process, process.level(torch.tensor(ends, dtype=torch.float64, device="cpu")))
        return ends

    def _local(self, dtype: torch.dtype) -> tuple[float, float]:
        """rtol and atol, or tol as both; at least what x's dtype can keep."""
        if self.rtol is None and self.atol is None:
            rtol = atol = 1e-3 if self.tol is None else self.tol
        else:
            rtol, atol = self.rtol or 0.0, self.atol or 0.0
        least = 100 * torch.finfo(dtype).eps
        if max(rtol, atol) >= least:
            return rtol, atol
        warn_caller(
            f"a tolerance of {max(rtol, atol):g} is below 100 roundings of {dtype}; taking {least:.1e}. Give x in "
            "float64, or a larger tolerance"
        )
        return least, least if rtol == atol else atol
