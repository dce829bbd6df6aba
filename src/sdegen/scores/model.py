r"""Score models: a network and what it predicts, in the plane of (data, noise).

Every prediction is a linear form `p data + q noise`, and so is the state, `x = alpha data + sigma noise`:

    data (1, 0)   noise (0, 1)   score (0, -1/sigma)   v (-sigma, alpha)   velocity (alpha', sigma').

Any one with x gives any other, `want = c_x x + c_pred pred`, by one 2x2 solve:

    [alpha p; sigma q] (c_x, c_pred) = (P, Q)   ->   det = alpha q - sigma p,
    c_x = (P q - Q p) / det,   c_pred = (alpha Q - sigma P) / det.
"""

from __future__ import annotations

import copy
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, unknown_keywords, warn_caller
from sdegen.level import Level, check_level
from sdegen.processes.process import Process
from sdegen.scores.conditions import Conditions
from sdegen.tensors import batch_time, call_score, combine, module_behind, named

Want = str | tuple[Tensor, Tensor]
TimeMap = Callable[[Level], Tensor]
Predicts = Literal["score", "noise", "data", "v", "velocity", "edm", "energy"]


def plane(process: Process, level: Level, want: Want) -> tuple[Tensor, Tensor]:
    """The pair `(p, q)`, each `[]` or `[B]`, of a prediction named data, noise, score, v or velocity; a pair is itself.

    Salimans & Ho 2022 for v; Lipman et al. 2022 for the velocity, `alpha' data + sigma' noise`.
    """
    check_level(level)
    if not isinstance(want, str):
        return want
    zero, one = torch.zeros_like(level.t), torch.ones_like(level.t)
    match want:
        case "data":
            return one, zero
        case "noise":
            return zero, one
        case "score":
            return zero, -1 / level.sigma
        case "v":
            return -level.sigma, level.alpha
        case "velocity":
            return process.rates(level.t)
    raise InvalidArgumentError(
        f"unknown prediction {want!r}: it must be 'data', 'noise', 'score', 'v', 'velocity' or a pair (p, q)"
    )


def convert(level: Level, known: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`(c_x, c_pred)` with `want = c_x x + c_pred known`, the 2x2 solve of this module's head."""
    p, q = known
    big_p, big_q = want
    det = level.alpha * q - level.sigma * p
    return (big_p * q - big_q * p) / det, (level.alpha * big_q - level.sigma * big_p) / det


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
    """DDPM's time index, `t T - 1`: 0 at t = 1/T and T - 1 at t = 1, not rounded (Ho et al. 2020)."""

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps

    def __call__(self, level: Level) -> Tensor:
        return level.t * self.steps - 1


class Model(ABC):
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
    count: int | None = None
    """How many samples its conditions are for; None where any number will do."""

    @abstractmethod
    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The prediction `want` `[B, *S]`, a name or a pair `(p, q)`, at x `[B, *S]` and a level `[]` or `[B]`."""

    def rows(self, index: Tensor) -> Model:
        """The same model for the samples `index` `[b]` of its per-sample conditions."""
        return self

    def check_batch(self, n: int) -> None:  # noqa: B027 - without conditions there is nothing to check
        """Raises InvalidArgumentError unless every per-sample condition is for n samples, or one for all."""


class ModelMap(Model):
    """A model made of models: what it does not say for itself is theirs."""

    index: Tensor | None = None
    """Which samples of the whole call its rows are `[b]`, None where they are all: what a batch of them has."""

    def __init__(self, *models: Model) -> None:
        self.models = models

    @property
    def process(self) -> Process:  # type: ignore[override]
        """The models' process."""
        return self.models[0].process

    @property
    def condition(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The conditions of all, the first model's before the others'."""
        return {name: value for model in reversed(self.models) for name, value in model.condition.items()}

    @property
    def module(self) -> torch.nn.Module | None:  # type: ignore[override]
        """The first module behind one of them."""
        return next((found for model in self.models if (found := model.module) is not None), None)

    @property
    def device(self) -> torch.device | None:  # type: ignore[override]
        """Where the first one answers."""
        return self.models[0].device

    @property
    def count(self) -> int | None:  # type: ignore[override]
        """The number of samples of the first model that says one."""
        return next((count for model in self.models if (count := model.count) is not None), None)

    def rows(self, index: Tensor) -> ModelMap:
        """The same map of the models for the samples `index` `[b]`, which its `index` keeps."""
        part = copy.copy(self)
        part.models = tuple(model.rows(index) for model in self.models)
        part.index = index if self.index is None else self.index[index.to(self.index.device)]
        return part

    def check_batch(self, n: int) -> None:
        """Every model's own check."""
        for model in self.models:
            model.check_batch(n)


class PreviewModel(ModelMap):
    """A model that remembers its last evaluation, to show the data predicted there at no further one."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.linear = model.linear  # type: ignore[misc]
        self._last: Callable[[], Tensor] | None = None

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The model's prediction."""
        (model,) = self.models
        answer = model(x, level, want)

        def data() -> Tensor:
            c_x, c_answer = convert(level, plane(model.process, level, want), plane(model.process, level, "data"))
            return combine((c_x, x), (c_answer, answer)).to(x.dtype)

        self._last = data
        return answer

    def coefficients(self, level: Level, want: Want) -> tuple[Tensor, Tensor]:
        """The model's, where it is linear."""
        model: Any = self.models[0]
        found: tuple[Tensor, Tensor] = model.coefficients(level, want)
        return found

    def raw(self, x: Tensor, level: Level) -> Tensor:
        """A linear model's raw output."""
        model: Any = self.models[0]
        answer: Tensor = model.raw(x, level)

        def data() -> Tensor:
            c_x, c_raw = model.coefficients(level, "data")
            return combine((c_x, x), (c_raw, answer)).to(x.dtype)

        self._last = data
        return answer

    def preview(self) -> Tensor | None:
        """The predicted data at the last evaluation `[B, *S]`, None before the first."""
        return None if self._last is None else self._last()


class ScoreModel(Model):
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
    Every output is checked (`ScoreError`); another floating dtype is refused unless `cast=True`. A prediction for a
    half-precision x is returned in float32 where it had to be converted.
    """

    linear = True

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
        **condition: Any,
    ) -> None:
        if not isinstance(process, Process):
            raise InvalidTypeError(
                f"a ScoreModel needs a Process (VP(), EDM(), ...), got {process!r}; for a general SDE give the score "
                "callable to sde.reverse(score)"
            )
        if not callable(net):
            raise InvalidTypeError(f"net must be callable as net(x, time), got {net!r}")
        if isinstance(net, type):
            raise InvalidTypeError(f"net must be an instance, got the class {net.__name__}: make one first")
        if time is not None and not callable(time):
            raise InvalidTypeError(f"time must be a function of a Level, as sd.model.index_time(1000), got {time!r}")
        options = ("predicts", "time", "sigma_data", "cast", "time_dtype")
        for name in condition:
            if difflib.get_close_matches(name, options, n=1, cutoff=0.8):
                raise unknown_keywords("ScoreModel", [name], options)
        if not 0 < sigma_data < float("inf"):
            raise InvalidArgumentError(f"sigma_data must be positive and finite, got {sigma_data}")
        self.process = process
        self.net = net
        self.predicts = predicts
        self.time: TimeMap = time or (log_sigma_time if predicts == "edm" else level_time)
        self.sigma_data = sigma_data
        self.cast = cast
        self.time_dtype = time_dtype
        self._conditions = Conditions(condition)
        if predicts not in ("edm", "energy") and not callable(predicts):
            middle = process.level((process.t_min + process.t_max) / 2)
            try:
                plane(process, middle, predicts)  # an unknown name is an error here, not at the first call
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{error}; predicts may also be 'edm' or 'energy'") from None

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The prediction `want` `[B, *S]`, a name or a pair `(p, q)`, at x `[B, *S]` and a level `[]` or `[B]`."""
        check_level(level)
        if isinstance(want, str) and want == self.predicts:
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
            # F = (data - c_skip y) / c_out with y = data + s noise
            s = level.sigma / level.alpha
            norm = torch.sqrt(s * s + self.sigma_data**2)
            return s / (self.sigma_data * norm), -self.sigma_data / norm
        return plane(self.process, level, self.predicts)

    def raw(self, x: Tensor, level: Level) -> Tensor:
        """The network's own output at x `[B, *S]` (for 'energy' the score), checked."""
        value = self.time(level)
        if not isinstance(value, Tensor):
            raise InvalidTypeError(f"time(level) must return a tensor like level.t, got {value!r}")
        time = batch_time(value, x, self.time_dtype)
        condition = self._conditions.given(x.shape[0]) if self._conditions else {}
        if self.predicts == "energy":
            return self._force(x, time, condition)
        if self.predicts == "edm":
            c_in = 1 / torch.sqrt(level.sigma * level.sigma + (self.sigma_data * level.alpha) ** 2)
            x = combine((c_in, x)).to(x.dtype)
        return call_score(self.net, x, time, condition, cast=self.cast)

    def _force(self, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            at = x if x.requires_grad else x.detach().clone().requires_grad_()
            energy = call_score(self.net, at, time.clone(), condition, cast=self.cast, shape=x.shape[:1])
            if not energy.requires_grad:
                raise InvalidArgumentError("the energy does not depend on x through autograd: its gradient is missing")
            return -torch.autograd.grad(energy.sum(), at, create_graph=keep)[0]

    def check_batch(self, n: int) -> None:
        """Raises InvalidArgumentError unless every per-sample condition is for n samples, or one for all."""
        self._conditions.check(n)

    def __repr__(self) -> str:
        net = type(self.net).__name__ if self.module is not None else named(self.net)
        return f"{type(self).__name__}({self.process}, {net}, predicts={self.predicts!r})"

    def rows(self, index: Tensor) -> ScoreModel:
        """The same model for the samples `index` `[b]` of its per-sample conditions."""
        part = copy.copy(self)
        part._conditions = self._conditions.rows(index)
        return part

    @property
    def condition(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The conditions, by name."""
        return self._conditions.values

    @property
    def count(self) -> int | None:  # type: ignore[override]
        """How many samples the conditions are for."""
        return self._conditions.count

    @property
    def module(self) -> torch.nn.Module | None:  # type: ignore[override]
        """The `torch.nn.Module` behind `net`, if there is one: it has the dtype, device and training mode."""
        return module_behind(self.net)


def warn_if_training(model: Any) -> None:
    """One warning for a network in training mode: dropout and batch norm would make the samples noisy and coupled."""
    net = model.module
    if net is not None and any(part.training for part in net.modules()):
        warn_caller(
            f"the network {type(net).__name__} is in training mode, so dropout and batch norm are active; "
            "call net.eval() before sampling"
        )


def place(model: Any, dtype: Any, device: torch.device | str | None) -> tuple[torch.dtype, torch.device]:
    """Where and in what precision the states live: the caller's word, else the network's parameters."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidTypeError(f"dtype must be a floating torch.dtype such as torch.float32, got {dtype!r}")
    net = model.module
    weights = [] if net is None else [p for p in net.parameters() if p.is_floating_point()][:1]
    if weights:
        own_dtype, own_device = weights[0].dtype, weights[0].device
    else:
        own_dtype, own_device = torch.float32, model.device or torch.device("cpu")
    return dtype or own_dtype, own_device if device is None else torch.device(device)
