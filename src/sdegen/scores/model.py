"""Score models: a network and what it predicts, and what a solver asks of any model."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, check_positive, warn_caller
from sdegen.level import Level, check_level
from sdegen.processes.callables import Portable, module_behind, takes_one
from sdegen.processes.process import Process
from sdegen.scores.arguments import Predicts, check_conditions, check_predicts, check_time, check_time_dtype
from sdegen.scores.conditions import Conditions, as_index
from sdegen.scores.files import Saved
from sdegen.scores.plane import Want, convert, edm_pair, plane
from sdegen.tensors import STATE_NAMES, STATES, batch_time, call_score, check_type, combine, named, widen

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Model",
    "Predicts",
    "ScoreModel",
    "TimeMap",
    "Want",
    "convert",
    "index_time",
    "level_time",
    "log_sigma_time",
    "place",
    "plane",
    "sigma_time",
    "warn_if_training",
]

TimeMap = Callable[[Level], Tensor]
_OPTIONS = ("predicts", "time", "sigma_data", "cast", "time_dtype", "module", "learned_variance")


def level_time(level: Level) -> Tensor:
    """The process's own time, `t`."""
    return level.t


def sigma_time(level: Level) -> Tensor:
    """The noise scale `sigma / alpha` (which is sigma for VE and EDM)."""
    return level.sigma / level.alpha


def log_sigma_time(level: Level) -> Tensor:
    """`log(sigma / alpha) / 4`, EDM's c_noise (Karras et al. 2022, table 1)."""
    return -level.lam / 4


class index_time:  # noqa: N801 - used as a function: time=index_time(1000)
    """DDPM's time index, `t T - 1`: 0 at t = 1/T and T - 1 at t = 1 (Ho et al. 2020).

    steps: T; None for that of the process, 1000 on one that is not discrete. It is rounded where the network takes
    whole numbers, `ScoreModel(..., time_dtype=torch.long)`.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.steps = steps

    def __call__(self, level: Level) -> Tensor:
        return (level.t * (self.steps or 1000) - 1).clamp(min=0.0)  # of a span that goes on below 1/T

    def on(self, process: Process) -> index_time:
        """The index on a process. Raises InvalidArgumentError where the process has another number of steps."""
        if self.steps is not None and process.steps not in (None, self.steps):
            raise InvalidArgumentError(
                f"index_time({self.steps}) on {process}: the network would get indices up to {self.steps - 1} in "
                f"{process.steps} steps; write index_time(), which takes the process's, or, for a network whose "
                f"process was cut to fewer steps, time=lambda level: level.t * {self.steps} - 1"
            )
        return index_time(self.steps or process.steps)


class Model(Portable, ABC):
    """What a solver asks for predictions: a score model, or anything that answers like one.

    A subclass has a `process` and writes `__call__`; the rest has defaults.
    """

    process: Process
    """The process whose levels it is asked at."""
    answers: ClassVar[bool] = True
    """Whether it answers predictions at a level; a `ReverseSDE` has its drift and diffusion alone."""
    linear: ClassVar[bool] = False
    """Whether every prediction is linear in x and `raw(x, level)`, with the numbers that `coefficients` gives."""
    exact: ClassVar[bool] = False
    """Whether it is the exact score of a law, whose states are worth float64."""
    prior: Any = None
    """What is known of the data, as `sample(prior=...)` takes it, where a call does not say it."""
    sigma_data: float = 0.5
    """The data's standard deviation, as EDM's preconditioning takes it."""
    learned_variance: bool = False
    """Whether a variance is learned beside the prediction, of which `with_fraction` answers."""
    runs_forward: ClassVar[bool] = False
    """Whether time runs up, as for a `ForwardSDE`."""
    eta: ClassVar[Any] = None
    """The noise that a drift was made for; a model serves every amount."""
    condition: Mapping[str, Any] = MappingProxyType({})
    """The conditions, by name."""
    module: torch.nn.Module | None = None
    """The `torch.nn.Module` behind it, if there is one: it has the dtype, device and training mode."""
    device: torch.device | None = None
    """Where it answers, where no module says so."""
    _conditions: Conditions = Conditions()

    @abstractmethod
    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The prediction `want` `[B, *S]`, a name or a pair `(p, q)`, at x `[B, *S]` and a level `[]` or `[B]`."""

    def with_fraction(self, x: Tensor, level: Level, want: Want = "score") -> tuple[Tensor, Tensor]:
        """The prediction `want` and the learned variance's fraction, both `[B, *S]`, by one evaluation.

        `log variance = (1 - fraction) log small + fraction log large`: 0 is the posterior's variance, 1 that of the
        forward kernel (Nichol & Dhariwal 2021, eq. 15). Raises InvalidArgumentError where none is learned.
        """
        raise InvalidArgumentError(f"{self} has no learned variance; see ScoreModel(..., learned_variance=True)")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = object.__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # with networks of its own behind lambdas too
        return twin

    @property
    def row_count(self) -> int | None:
        """How many samples its conditions are for; None where any number will do."""
        return self._conditions.count

    def rows(self, index: Tensor | Sequence[int]) -> Self:
        """The same model for the samples `index` `[b]` of its per-sample conditions."""
        if type(index) is not Tensor or index.dtype != torch.int64 or index.ndim != 1:
            index = as_index(index)
        return self._under(self._conditions.rows(index)) if self._conditions else self

    def sized(self, n: int) -> Self:
        """The same model, its per-sample conditions known to be for n samples: `rows` need not guess it then.

        Raises InvalidArgumentError unless they are for n samples, or one for all.
        """
        return self._under(self._conditions.sized(n)) if self._conditions else self

    def _under(self, conditions: Conditions) -> Self:
        twin = copy.copy(self)
        twin._conditions = conditions
        return twin

    def says(self, level: Level) -> tuple[bool, bool]:
        """Whether its answers tell the data, and the noise, at one level `[]` that may lack the one or the other."""
        return True, True

    def check_batch(self, n: int) -> None:
        """Raises InvalidArgumentError unless every per-sample condition is for n samples, or one for all."""
        self.sized(n)


class ScoreModel(Saved, Model):
    """A network, what it predicts and how it takes time; answers any prediction at any level of its process.

    `net(x [B, *S], time [B], **condition) -> [B, *S]`, time being `time(level)` on x's device and in x's dtype (or
    `time_dtype`: give torch.float32 where a half-precision time would lose digits). `predicts` is one of

    - 'score', 'noise', 'data', 'v', 'velocity', or a function `(process, level) -> (p, q)` of your own;
    - 'edm': the raw output F of an EDM-preconditioned network, `data = c_skip x + c_out F`, called with
      `c_in x` and, unless `time` is given, `log(sigma)/4` (Karras et al. 2022, table 1, with `sigma_data`);
    - 'energy': net returns an energy `[B]` and `score = -grad energy`.

    Conditions are per sample: tensors and arrays `[B, ...]` or `[1, ...]`, lists of B items, and dicts, lists and
    tuples of such, in any depth; each sample's part goes with it into every batch. Numbers, strings and `sd.shared`
    values are one for all.
    With `learned_variance=True` the network returns `[B, 2C, *rest]` for x `[B, C, *rest]`: the prediction, and v in
    [-1, 1], by which `ddpm("learned")` draws its noise; all else leaves v out.
    Every output is checked (`ScoreError`); another floating dtype is refused unless `cast=True`. A prediction for a
    half-precision x is returned in float32 where it had to be converted.
    """

    linear = True
    _times: ClassVar = {f.__name__: f for f in (level_time, sigma_time, log_sigma_time, index_time)}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls) and "linear" not in vars(cls):
            cls.linear = False  # its answers are its own, and no longer linear in `raw` by this class's numbers

    def __init__(
        self,
        process: Process,
        net: Callable[..., Any],
        predicts: Predicts | Callable[[Process, Level], tuple[Tensor, Tensor]] = "score",
        *,
        time: TimeMap | None = None,
        sigma_data: float = 0.5,
        cast: bool = False,
        time_dtype: torch.dtype | None = None,
        module: torch.nn.Module | None = None,
        learned_variance: bool = False,
        **condition: Any,
    ) -> None:
        advice = "; for a general SDE give the score callable to sde.reverse(score)"
        check_type(process, Process, "a ScoreModel needs a Process (VP(), EDM(), ...)", advice)
        check_type(net, Callable, "net must be callable as net(x, time)")
        if isinstance(net, type):
            raise InvalidTypeError(f"net must be an instance, got the class {net.__name__}: make one first")
        check_type(time, Callable | None, "time must be a function of a Level, as sd.model.index_time(1000)")
        check_conditions(condition, _OPTIONS)
        check_positive(sigma_data=sigma_data)
        check_predicts(predicts, learned_variance)
        self.process = process
        self.net = net
        self.predicts = predicts
        self.time: TimeMap = time or (log_sigma_time if predicts == "edm" else level_time)
        if isinstance(self.time, index_time):
            self.time = self.time.on(process)
        check_time_dtype(time_dtype, time, process)
        self._module, self._timeless = module, predicts == "energy" and takes_one(net, condition)
        self.sigma_data = sigma_data
        self.cast, self.time_dtype, self.learned_variance = cast, time_dtype, learned_variance
        self._conditions = Conditions.of(condition)

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The prediction `want` `[B, *S]`, a name or a pair `(p, q)`, at x `[B, *S]` and a level `[]` or `[B]`."""
        if type(level) is not Level:
            check_level(level)
        if want == self.predicts:
            return self.raw(x, level)
        c_x, c_raw = self.coefficients(level, want)
        return combine((c_x, x), (c_raw, self.raw(x, level)))

    def coefficients(self, level: Level, want: Want) -> tuple[Tensor, Tensor]:
        """`(c_x, c_raw)` with `want = c_x x + c_raw raw(x, level)`, of the level's shape."""
        return convert(level, self.pair(level), plane(self.process, level, want))

    def pair(self, level: Level) -> tuple[Tensor, Tensor]:
        """The pair `(p, q)` of the network's own output, `p data + q noise`; for 'energy' that of the score."""
        if callable(self.predicts):
            return self.predicts(self.process, level)
        if self.predicts == "energy":
            return plane(self.process, level, "score")
        if self.predicts == "edm":
            return edm_pair(level, self.sigma_data)
        return plane(self.process, level, self.predicts)

    def says(self, level: Level) -> tuple[bool, bool]:
        """Whether the network's own output has the data, and the noise, in it; one that has x's part alone has not."""
        if not self.linear:
            return True, True
        p, q = (abs(float(part)) for part in self.pair(level))
        known = p + q < math.inf  # a velocity is infinite where alpha leaves 0 with an infinite rate
        return known and p > 1e-6, known and q > 1e-6

    def raw(self, x: Tensor, level: Level, *, whole: bool = False) -> Tensor:
        """The network's own output at x `[B, *S]` (for 'energy' the score), checked; `whole`: a learned variance's too.

        Of `[B, 2C, *rest]` the first half, unless it is asked for whole.
        """
        value = self.time(level)
        if type(value) is not Tensor or (value.ndim and value.shape != level.t.shape):
            check_time(value, level)
        time = batch_time(value, x, self.time_dtype)
        condition = self._conditions.given(x.shape[0]) if self._conditions else {}
        if self.predicts == "energy":
            return self._force(x, time, condition)
        if self.predicts == "edm":
            c_in = 1 / torch.sqrt(level.sigma * level.sigma + (self.sigma_data * level.alpha) ** 2)
            x = combine((c_in, x)).to(x.dtype)
        if not self.learned_variance:
            return call_score(self.net, x, time, condition, cast=self.cast)
        both = torch.Size((x.shape[0], 2 * x.shape[1], *x.shape[2:]))
        out = call_score(self.net, x, time, condition, cast=self.cast, shape=both)
        return out if whole else out[:, : x.shape[1]]

    def raw_and_fraction(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """`raw` and the learned variance's fraction `(v + 1)/2`, both `[B, *S]`, by one evaluation.

        Raises InvalidArgumentError unless the model was made with learned_variance=True.
        """
        if not self.learned_variance:
            super().with_fraction(x, level)
        raw, v = self.raw(x, level, whole=True).chunk(2, 1)
        return raw, (widen(v) + 1) / 2

    def with_fraction(self, x: Tensor, level: Level, want: Want = "score") -> tuple[Tensor, Tensor]:
        """The prediction `want` and the learned variance's fraction, both `[B, *S]`, by one evaluation."""
        if self.learned_variance and not self.linear:
            raise InvalidArgumentError(f"{type(self).__name__} answers by a __call__ of its own: give it with_fraction")
        raw, fraction = self.raw_and_fraction(x, level)
        c_x, c_raw = self.coefficients(level, want)
        return combine((c_x, x), (c_raw, raw)), fraction

    def _force(self, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            at = x if x.requires_grad else x.detach().clone().requires_grad_()
            net = (lambda y, _, **rest: self.net(y, **rest)) if self._timeless else self.net
            energy = call_score(net, at, time.clone(), condition, cast=self.cast, shape=x.shape[:1])
            if not energy.requires_grad:
                raise InvalidArgumentError("the energy does not depend on x through autograd: its gradient is missing")
            return -torch.autograd.grad(energy.sum(), at, create_graph=keep)[0]

    def conditioned(self, **condition: Any) -> Self:
        """The same model with these conditions, in place of its own of these names.

        Args:
            condition: as for `ScoreModel`: per sample, unless they are numbers, words or `sd.shared`.

        Raises:
            InvalidTypeError: a name that looks like one of an option.
        """
        check_conditions(condition, _OPTIONS)
        twin = copy.copy(self)
        twin._conditions = Conditions.of({**self._conditions.plain, **condition})
        return twin

    def __repr__(self) -> str:
        net = type(self.net).__name__ if self.module is self.net else named(self.net)
        return f"{type(self).__name__}({self.process}, {net}, predicts={self.predicts!r})"

    @property
    def condition(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The conditions, by name."""
        return self._conditions.plain

    @property
    def module(self) -> torch.nn.Module | None:  # type: ignore[override]
        """The `torch.nn.Module` behind `net`, if there is one: it has the dtype, device and training mode."""
        return self._module if self._module is not None else module_behind(self.net)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of the network. Raises InvalidTypeError where no module is behind it."""
        return self._found().parameters()

    def eval(self) -> ScoreModel:
        """The model, its network set to evaluation mode. Raises InvalidTypeError where no module is behind it."""
        self._found().eval()
        return self

    def to(self, *args: Any, **options: Any) -> ScoreModel:
        """The model, its network and the tensors of its conditions moved as by `torch.nn.Module.to`.

        Raises InvalidTypeError where no module is behind it.
        """
        moved = next(iter(self._found().to(*args, **options).parameters()), None)
        if moved is not None:
            self._conditions = self._conditions.to(moved.device)
        return self

    def _found(self) -> torch.nn.Module:
        net = self.module
        if net is None:
            raise InvalidTypeError(f"no torch.nn.Module was found behind {named(self.net)}: give module=net")
        return net


def _wraps_one_that_is_not(module: torch.nn.Module) -> bool:
    """Whether a module wraps one in eval mode: its own flag, which torch 2.4 leaves set, is no one's choice."""
    parts = list(module.children())
    return len(parts) == 1 and not parts[0].training


def warn_if_training(net: torch.nn.Module | None) -> None:
    """One warning for a network in training mode: dropout and batch norm would make the samples noisy and coupled."""
    active = [] if net is None else [m for m in net.modules() if m.training and not _wraps_one_that_is_not(m)]
    if active:
        warn_caller(
            f"the network {type(active[0]).__name__} is in training mode, so dropout and batch norm are active; "
            "call net.eval() before sampling"
        )


def place(
    net: torch.nn.Module | None, dtype: Any, device: torch.device | str | None, home: torch.device | None = None
) -> tuple[torch.dtype, torch.device]:
    """In what precision and where the states live: the caller's word, else that of the network's parameters.

    home: where, if there is no network.
    """
    if dtype is not None and dtype not in STATES:
        raise InvalidTypeError(f"dtype must be a floating torch.dtype, {STATE_NAMES}, got {dtype!r}")
    weights = [] if net is None else [p for p in net.parameters() if p.is_floating_point()]
    own_dtype, own_device = torch.float32, home or torch.device("cpu")
    if weights:  # those of fewer bits, as float8, are converted by the network itself
        own_dtype = next((p.dtype for p in weights if p.dtype in STATES), own_dtype)
        own_device = weights[0].device
    return dtype or own_dtype, own_device if device is None else torch.device(device)
