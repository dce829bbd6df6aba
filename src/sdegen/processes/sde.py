"""Forward SDEs `dx = f(x, t) dt + g(x, t) dw`, and the reverse family that a score turns them into."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, SdegenError, hint
from sdegen.level import Level, check_span, is_end
from sdegen.processes.callables import Portable, module_behind
from sdegen.processes.diffusions import check_diffusion, gram
from sdegen.tensors import as_time, batch_time, call_score, check_type, expect_like, like, named, tensor, unedited

if TYPE_CHECKING:
    from sdegen.scores.model import Model

_MOST_NOISE = 1e4
Field = Callable[[Tensor, Tensor], Tensor]


class SDE(Portable, ABC):
    """A forward SDE `dx = f(x, t) dt + g(x, t) dw` on `[t_min, t_max]`: data at `t_min`, noise at `t_max`.

    A subclass writes `drift`, `diffusion` and, to be sampled from, `prior`. `t` is `[]` or `[B]`; `from_functions`
    builds one from plain functions, which always get `t` as `[B]` on x's device and dtype.
    """

    t_min: float = 0.0
    t_max: float = 1.0
    gaussian: ClassVar[bool] = False
    """Whether it is linear-Gaussian, `x_t = alpha data + sigma noise` with alpha and sigma at every level."""
    proven: ClassVar[bool] = True
    """Whether there is nothing to check before a solve; of a `Process`, its alpha and sigma over the span."""
    exact_transitions: ClassVar[bool] = False
    """Whether `transit` knows the law of a later level given x now."""
    noise_type: ClassVar[str] = "general"
    """torchsde's name for what `diffusion` returns: 'diagonal' where it is scalar or diagonal; 'general' is any."""

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """`f(x, t)`, x and result `[B, *S]`."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """`g(x, t)`: `[]` or `[B]` times the identity, `[B, *S]` diagonal, or `[B, *S, M]` a matrix (M noises)."""

    def prior(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """Samples `[B, *S]` of the law at `t_max`, one per seed `[B]`; `shape` is `*S`."""
        raise InvalidArgumentError(f"{type(self).__name__} has no prior: define prior(seeds, shape) or start from an x")

    def level(self, t: Tensor | float) -> Level:
        """The level at time t `[]` or `[B]`; a general SDE has no alpha and sigma (NaN)."""
        t = as_time(t)
        nothing = torch.full_like(t, float("nan"))
        return Level(t, nothing, nothing)

    def share(self, level: Level, span: tuple[float, float]) -> Tensor:
        """Where a level lies between two times, 0 at the first and 1 at the last, in the variable to halve: t."""
        return (level.t - span[0]) / (span[1] - span[0])

    def at_share(self, share: Tensor, span: tuple[float, float]) -> Level:
        """The level at a share `[n]` of the way between two times."""
        return self.level(span[0] + share * (span[1] - span[0]))

    def divergence(self, x: Tensor, t: Tensor) -> Tensor | None:
        """`sum_j d(g g^T)_ij / dx_j` `[B, *S]`, or None where g does not depend on x (the reverse drift needs it).

        Exact, by forward-mode derivatives: D of them for samples of D elements. Override it with a closed form.
        """
        with torch.inference_mode(False), torch.enable_grad():
            probe = x.detach().clone().requires_grad_()
            g = self.diffusion(probe, t.clone())
            if not g.requires_grad or torch.autograd.grad(g.sum(), probe, allow_unused=True)[0] is None:
                return None

        def along(e: Tensor) -> Tensor:
            direction = e.expand_as(x).clone()  # forward-mode AD refuses expanded tensors
            tangent: Tensor = torch.func.jvp(lambda y: gram(self.diffusion(y, t), direction), (x,), (direction,))[1]
            return tangent

        if torch.is_inference_mode_enabled():  # where vmap has no rule for forward-mode derivatives in torch 2.4
            with torch.inference_mode(False), torch.no_grad():
                return self.divergence(x.clone(), t.clone())
        size = x[0].numel() if x.shape[0] else 0
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *x.shape[1:])
        total: Tensor = torch.func.vmap(along)(basis).sum(0)
        return total

    @property
    def open_ends(self) -> tuple[bool, bool]:
        """Whether there is no signal at t_max, and no noise at t_min; unknown, and False, without alpha and sigma."""
        return False, False

    def reverse(self, score: Model | Field, eta: float = 1.0) -> ReverseSDE:
        """The reverse family: `eta=1` is the reverse SDE, `eta=0` the probability flow (see `ReverseSDE`)."""
        return ReverseSDE(self, score, eta)

    def probability_flow(self, score: Model | Field) -> ReverseSDE:
        """The deterministic flow with the same marginals, `reverse(score, eta=0)`."""
        return ReverseSDE(self, score, 0.0)

    def as_forward(self) -> ForwardSDE:
        """This SDE as a model that `solve` runs through increasing times."""
        return ForwardSDE(self)

    def to_json(self) -> str:
        """The SDE as a JSON text, `{"sde": name, parameter: value}`, from which `SDE.from_json` makes it again.

        Raises InvalidTypeError for an SDE that is made of functions, or is no dataclass.
        """
        kind: Any = self
        if not is_dataclass(kind) or type(self).__name__.startswith("_"):
            raise InvalidTypeError(f"{self} is made of functions, which JSON does not hold: keep its code")
        values = {f.name: vars(self)[f.name] for f in fields(kind) if f.init}
        bad = [name for name, value in values.items() if callable(value)]
        if bad:
            raise InvalidTypeError(f"{bad[0]} of {self} is a function, which JSON does not hold: give a number")
        return json.dumps({"sde": type(self).__name__, **values}, default=Tensor.tolist)

    @staticmethod
    def from_json(text: str) -> SDE:
        """The SDE that `to_json` wrote. Raises InvalidArgumentError for another text."""
        try:
            values = json.loads(text)
            name = values.pop("sde")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InvalidArgumentError('an SDE is written as {"sde": "VP", ...}, by its to_json()') from None
        known: dict[str, Callable[..., SDE]] = {kind.__name__: kind for kind in _kinds(SDE)}
        if str(name) not in known:
            raise InvalidArgumentError(f"unknown SDE {name!r}: {hint(str(name), sorted(known), 'known are')}")
        try:
            given = {key: tensor(key, v).double() if type(v) is list else v for key, v in values.items()}
            return known[name](**given)
        except SdegenError:
            raise
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{values} are no parameters of {name}: {error}") from None

    def transit(self, x: Tensor, now: Level, next: Level, z: Tensor) -> Tensor:
        """x `[B, *S]` at a later level by the exact transition from now, z unit normals `[B, *S]`."""
        raise InvalidTypeError(f"the transitions of {self} are not known: step with euler_maruyama()")

    @staticmethod
    def from_functions(
        drift: Field,
        diffusion: Field,
        *,
        t_min: float = 0.0,
        t_max: float = 1.0,
        prior: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
    ) -> SDE:
        """An SDE from `drift(x, t)` and `diffusion(x, t)`, x `[B, *S]` t `[B]`; `prior(seeds [B], *S)` if wanted."""
        return _FunctionSDE(drift, diffusion, t_min, t_max, prior)


@dataclass(frozen=True)
class _FunctionSDE(SDE):
    f: Field
    g: Field
    t_min: float
    t_max: float
    draw: Callable[[Tensor, Sequence[int]], Tensor] | None = None

    def __post_init__(self) -> None:
        check_span(self.t_min, self.t_max)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        f = unedited("drift(x, t)", self.f, x, batch_time(t, x))
        return expect_like(f, x, "drift(x, t) must return a tensor")

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        g = unedited("diffusion(x, t)", self.g, x, batch_time(t, x))
        if type(g) is not Tensor:
            check_type(g, Tensor, "diffusion(x, t) must return a tensor", "; a constant is torch.full_like(t, c)")
        check_diffusion(g, x)
        return g

    def prior(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        return self.draw(seeds, shape) if self.draw else super().prior(seeds, shape)

    def __repr__(self) -> str:
        names = ", ".join(map(named, (self.f, self.g)))
        return f"SDE.from_functions({names}, t_min={self.t_min:g}, t_max={self.t_max:g})"


def _kinds(kind: Any) -> Iterator[Any]:
    """The classes below one that can be written, user's own after the library's."""
    for inner in kind.__subclasses__():
        if "__dataclass_fields__" in vars(inner) and not inner.__name__.startswith("_"):
            yield inner
        yield from _kinds(inner)


class ExactScore(ABC):
    """A score callable that takes times `[]` or `[B]` in float64, and lies on a device of its own."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its numbers lie."""

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The score `[B, *S]`, in x's dtype."""


@dataclass(frozen=True)
class ReverseSDE(Portable):
    r"""The reverse family of an SDE under a score: every eta has the forward marginals (Song et al. 2021).

    `dx = [f - (1 + eta^2)/2 (div(g g^T) + g g^T score)] dt + eta g dw`, run from `t_max` down to `t_min`; `eta=1` is
    the reverse SDE (Anderson 1982; Song et al. 2021, eq. 6), `eta=0` the probability flow (eq. 13).

    `score` is a `ScoreModel` or any callable `(x [B, *S], t [B]) -> score [B, *S]`. Raises on a negative eta and on a
    model of another process; a callable's wrong output raises a `ScoreError` when it is called.
    """

    sde: SDE
    score: Model | Field
    eta: float = 1.0
    answers: ClassVar[bool] = False
    """Whether it answers predictions at a level, as a score model does; here drift and diffusion are all there is."""
    prior: ClassVar[Any] = None
    """Nothing is known of the data where a call does not say it."""
    runs_forward: ClassVar[bool] = False
    """Whether time runs up, from data to noise."""

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_type(self.score, Callable, "score must be a ScoreModel or a callable (x, t) -> score")
        owner = self._predictor.process if self._predictor is not None else self.sde
        if owner is not self.sde and owner != self.sde:
            raise InvalidArgumentError(f"the score model belongs to {owner}, not to {self.sde}; build it on this SDE")

    @property
    def _predictor(self) -> Model | None:
        """The score where it is a model, None where it is a callable."""
        return self.score if getattr(self.score, "answers", False) else None  # type: ignore[return-value]

    @property
    def module(self) -> torch.nn.Module | None:
        """The `torch.nn.Module` behind the score, if there is one."""
        return module_behind(self.score) if self._predictor is None else self._predictor.module

    @property
    def device(self) -> torch.device | None:
        """Where the score answers, where no module says so."""
        if self._predictor is not None:
            return self._predictor.device
        return self.score.device if isinstance(self.score, ExactScore) else None

    def rows(self, index: Tensor | Sequence[int]) -> ReverseSDE:
        """The same for the samples `index` `[b]` of the model's per-sample conditions."""
        return self if self._predictor is None else replace(self, score=self._predictor.rows(index))

    def says(self, level: Level) -> tuple[bool, bool]:
        """Whether its drift tells the data, and the noise: without signal it is a difference of infinities."""
        return not is_end(level)[0], True

    def sized(self, n: int) -> ReverseSDE:
        """The same, its model's conditions known to be for n samples."""
        return self if self._predictor is None else replace(self, score=self._predictor.sized(n))

    def check_batch(self, n: int) -> None:
        """The model's own check of its per-sample conditions."""
        if self._predictor is not None:
            self._predictor.check_batch(n)

    @property
    def process(self) -> SDE:
        """The forward SDE, under the name that a score model has for it."""
        return self.sde

    def level(self, t: Tensor | float) -> Level:
        """The forward SDE's level at time t."""
        return self.sde.level(t)

    def score_at(self, x: Tensor, t: Tensor) -> Tensor:
        """The score `[B, *S]` at x `[B, *S]` and t `[]` or `[B]`."""
        if self._predictor is not None:
            return self._predictor(x, self.sde.level(t))
        # an exact score needs no time per row, rounded to x's dtype
        return call_score(self.score, x, t if isinstance(self.score, ExactScore) else batch_time(t, x))

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """`f - (1 + eta^2)/2 (div(g g^T) + g g^T score)` `[B, *S]`, for time running down."""
        t = as_time(t)
        pull = gram(self.sde.diffusion(x, t), self.score_at(x, t))
        curl = self.sde.divergence(x, t)
        pull = pull if curl is None else pull + curl
        return self.sde.drift(x, t) - (1 + self.eta**2) / 2 * pull

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """`eta g(x, t)`."""
        return self.eta * self.sde.diffusion(x, as_time(t))

    sde_type: ClassVar[str] = "ito"
    """With `f`, `g` and `noise_type` what torchsde asks of an SDE, for flat samples `[B, D]`; its time is u = -t."""

    @property
    def noise_type(self) -> str:
        """torchsde's name for the noise: 'diagonal' where the SDE's g is so, 'general' where that is not known."""
        return self.sde.noise_type

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift in torchsde's time `[B, D]`."""
        return -self.drift(y, -u)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion in torchsde's time, `[B, D]`, or `[B, D, M]` for 'general' noise."""
        return self._shaped(self.diffusion(y, -u), y)

    def _shaped(self, g: Tensor, y: Tensor) -> Tensor:
        if g.ndim > y.ndim:
            return g
        g = like(g, y).expand_as(y) if g.ndim <= 1 else g.expand_as(y)
        return g if self.noise_type == "diagonal" else torch.diag_embed(g)


@dataclass(frozen=True)
class ForwardSDE(ReverseSDE):
    """A forward SDE as a model: `drift` and `diffusion` are its own, and `solve` runs it through increasing times.

    Solvers in t take it as they take a `ReverseSDE` of eta = 1, with all of the noise: `euler_maruyama()`,
    `milstein()`, `stochastic_heun()`, `stochastic_runge_kutta()`. It needs no score and has none.
    """

    score: Any = field(default=None, init=False, repr=False)
    eta: float = field(default=1.0, init=False, repr=False)
    runs_forward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_type(self.sde, SDE, "ForwardSDE takes an SDE")

    def says(self, level: Level) -> tuple[bool, bool]:
        """Everything: it needs no score."""
        return True, True

    def score_at(self, x: Tensor, t: Tensor) -> Tensor:
        """Raises InvalidTypeError: a forward SDE has no score."""
        raise InvalidTypeError("a forward SDE has no score: correct and denoise with sde.reverse(score)")

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The SDE's drift `f(x, t)` `[B, *S]`."""
        return self.sde.drift(x, as_time(t))

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift for torchsde, whose time is t here."""
        return self.drift(y, u)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion for torchsde."""
        return self._shaped(self.diffusion(y, u), y)


def check_eta(eta: float) -> None:
    """Raises InvalidArgumentError unless eta is finite and not negative, InvalidTypeError unless it is a number."""
    check_type(eta, int | float, "eta must be a number")
    if not 0.0 <= eta <= _MOST_NOISE:
        raise InvalidArgumentError(
            f"eta must be in [0, {_MOST_NOISE:g}], got {eta} (0: probability flow, 1: reverse SDE)"
        )
