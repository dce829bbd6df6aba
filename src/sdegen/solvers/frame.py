"""What a frame is: a change of variables `Y = x / scale`, `tau = clock`, with `dY/dtau = rate Y + N`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level, placed
from sdegen.processes.process import Process, linear_gaussian
from sdegen.processes.sde import SDE, ReverseSDE
from sdegen.scores.model import Model
from sdegen.solvers.base import check_score_model
from sdegen.solvers.eta import Eta, is_zero
from sdegen.tensors import check_type, combine, like, named

if TYPE_CHECKING:
    from typing_extensions import Self

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Frame:
    """A frame of the table above; calling one returns it with other options, `ANGLE(sigma_data=0.5)`.

    `variable`, a function of lam, is what N is interpolated in, where that is not the clock: `sd.frames.log_snr` for
    polynomials in log-SNR, `sd.frames.seventh_root` for `(sigma/alpha)^(1/7)`.
    """

    variable: Callable[[Tensor], Tensor] | None = None
    weak_order: ClassVar[int] = 2
    """The weak order that one normal per step allows with the frame's `spread`."""
    exact: ClassVar[tuple[str, ...]] = ()
    """Data on which N is constant along the probability flow: 'point', or 'gaussian' for `N(0, sigma_data^2)`."""
    grouped: ClassVar[bool] = False
    """Whether clock and weights have one entry per group of directions, `[G]`; for multistep methods at levels `[]`."""
    lawful: ClassVar[bool] = False
    """Whether `exact` holds for the law of every eta too: the linear part is the whole reverse SDE of such data."""
    endless: ClassVar[bool] = False
    """Whether the clock is infinite where there is no signal, or no noise."""
    noise_end: ClassVar[bool] = True
    """Whether a step may begin where there is no signal: x / scale is finite, and N says something of the data."""
    data_end: ClassVar[bool] = False
    """Whether N is known where there is no noise from the data alone."""
    timed: ClassVar[bool] = False
    """Whether the clock is t, so that N is the drift of any SDE."""
    follows_eta: ClassVar[bool] = False
    """Whether weights follow an eta that changes inside of a step."""
    scaled: ClassVar[bool] = False
    """Whether eta enters N as the factor `1 + eta^2` alone, so that values of N at eta = 0 serve every eta."""

    @property
    def data_scale(self) -> float:
        """The standard deviation of the data that the frame is made for, 1 where it is made for none."""
        return 1.0

    @property
    def tol_share(self) -> float:
        """What an Adams step's error in the frame may be of a tolerance for the error at the end; measured."""
        return 0.1

    def __call__(self, **options: Any) -> Self:
        return replace(self, **options)

    def rate(self, eta: Eta) -> Eta:
        """The linear rate of the reverse process."""
        return 0.0

    def scale(self, level: Level) -> Tensor:
        """`x = scale Y`."""
        raise NotImplementedError

    def clock(self, level: Level) -> Tensor:
        """`tau` at a level."""
        return self.tau(level.lam)

    def tau(self, lam: Tensor) -> Tensor:
        """`tau` as a function of lam."""
        raise NotImplementedError

    def pace(self, lam: Tensor) -> Tensor:
        """`dtau/dlam`."""
        raise NotImplementedError

    def lam(self, tau: Tensor) -> Tensor:
        """lam as a function of tau."""
        raise NotImplementedError

    def level(self, process: SDE, tau: Tensor) -> Level:
        """The level of `process` at clock tau."""
        return linear_gaussian(process, self, "; frame TIME is for any SDE").at(self.lam(tau))

    def coordinate(self, level: Level) -> Tensor:
        """Where a node at `level` sits for interpolation: its clock, or `variable(lam)`."""
        if self.variable is not None:
            return self.variable(placed(level.lam))
        return self.tau(placed(level.lam)) if self.endless else self.clock(level)

    def want(self, process: SDE, level: Level, eta: Eta) -> Pair:
        """`N` as a pair (p, q) of the (data, noise) plane."""
        raise NotImplementedError

    def spread(self, process: SDE, now: Level, next: Level, eta: Eta) -> Tensor:
        """The standard deviation, in x at `next`, of the noise gathered from now to next."""
        raise NotImplementedError

    def field(self, model: Model | ReverseSDE, x: Tensor, level: Level, eta: Eta) -> Tensor:
        """`N` at x `[B, *S]`."""
        return ask(model, x, level, self.asked(model, level, lambda process: self.want(process, level, eta)))

    def unit_asked(self, model: Model | ReverseSDE, level: Level, eta: Eta) -> Any:
        """What a table asks a model for N without its factor `gain`."""
        return self.asked(model, level, lambda process: self.unit(process, level, eta))

    def slope_asked(self, model: Model | ReverseSDE, level: Level) -> Any:
        """What a table asks a model for `rate Y + N`, eta = 0: a prediction too, as x is `alpha data + sigma noise`."""

        def slope(process: Process) -> Pair:
            p, q = self.want(process, level, 0.0)
            rate = self.rate(0.0)
            if is_zero(rate):
                return p, q
            rate = rate / self.scale(level)
            return p + rate * level.alpha, q + rate * level.sigma

        return self.asked(model, level, slope)

    def asked(self, model: Model | ReverseSDE, level: Level, pair: Callable[[Process], Pair]) -> Any:
        """A pair of the (data, noise) plane, or a function `(model, x, level)` that knows how to ask."""
        return pair(check_score_model(self, model).process)

    def total(self, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """`sum w v` over values of N alone."""
        return combine(*terms)

    def join(self, now: Level, next: Level, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """`sum w v` over the weights and states of a step: x first where it is one of them, then values of N."""
        return combine(*terms)

    def kick(self, spread: Tensor, z: Tensor) -> Tensor:
        """The noise of a step from unit normals z `[B, *S]`."""
        return like(spread, z) * z

    def gain(self, eta: Eta) -> Eta:
        """The factor between N and `unit`."""
        return 1 + eta * eta if self.scaled else 1.0

    def unit(self, process: SDE, level: Level, eta: Eta) -> Pair:
        """`want` without the factor `gain`: what a history holds, so that eta may change from step to step."""
        return self.want(process, level, 0.0 if self.scaled else eta)

    def __repr__(self) -> str:
        chosen = [(f.name, vars(self)[f.name]) for f in fields(self) if vars(self)[f.name] != f.default]
        options = ", ".join(f"{name}={named(value)}" for name, value in chosen)
        return type(self).__name__.strip("_").upper() + (f"({options})" if options else "")


def check_frame(frame: object) -> None:
    """Raises InvalidTypeError unless `frame` is a Frame."""
    check_type(frame, Frame, "frame must be one of sd.DATA, NOISE, SIGMA, ANGLE, FLOW, WIENER, TIME")


def check_one_clock(solver: object, frame: Frame) -> None:
    """Raises an error for what is no frame, or one with several clocks, which a solver with stages cannot follow."""
    check_frame(frame)
    if frame.grouped:
        raise InvalidArgumentError(f"{type(solver).__name__} has one clock and {frame} has several: use sd.Multistep")


def ask(model: Any, x: Tensor, level: Level, asked: Any) -> Tensor:
    """The answer of a model to what a frame asks."""
    answer: Tensor = asked(model, x, level) if callable(asked) else model(x, level, asked)
    return answer


def drift_of(model: ReverseSDE, x: Tensor, level: Level) -> Tensor:
    return model.drift(x, level.t)
