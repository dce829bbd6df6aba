"""Score matching without a target: implicit, sliced, by differences; and the Fisher divergence that they estimate."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidTypeError, check_positive, strict_keywords
from sdegen.level import Level
from sdegen.scores.divergence import Divergence, Exact, Probes, signs, tangent
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import Model
from sdegen.tensors import check_state, check_type, check_whole, combine, like, widen
from sdegen.training.densities import noised


@strict_keywords
def implicit(
    model: Model, data: Tensor, level: Level, divergence: Divergence | None = None, *, seed: int = 0
) -> Tensor:
    """Implicit score matching at a level, `(|s|^2/2 + tr ds/dx) / D`, at x noised to it: needs no target.

    Its mean is that of `|s - score|^2 / (2 D)` less a constant.

    Args:
        model: a score model; networks of energies too.
        data: `[B, *S]`, floating, clean; noised by `seed` as in `matching`.
        level: `[]` or `[B]`; near `process.level(process.t_min)` for the data's own law.
        divergence: `sd.divergence.Exact()`, as by default, or `Probes(k)`.
        seed: of the noise and the probes.

    Returns:
        `[B]`.

    Raises:
        InvalidTypeError, InvalidArgumentError: as `matching`.

    Source: Hyvarinen (2005), eq. 4.
    """
    check_type(divergence, Callable | None, "divergence must be sd.divergence.Exact() or Probes(k)")
    keys, x, score = _asked(model, data, level, seed)
    found = (divergence or Exact())(score, x, level=level, seeds=keys)
    both = widen(found.value).square().flatten(1).sum(1) / 2 + found.trace.to(widen(x).dtype)
    return both / max(1, x[:1].numel())


@strict_keywords
def sliced(
    model: Model, data: Tensor, level: Level, *, probes: int = 1, variance_reduction: bool = True, seed: int = 0
) -> Tensor:
    """Sliced score matching, `(v^T (ds/dx) v + |s|^2/2) / D`; without variance reduction `(v . s)^2/2` for `|s|^2/2`.

    Args:
        model, data, level, seed: as for `implicit`.
        probes: the number of random signs v, over which it is averaged.
        variance_reduction: whether the mean of `(v . s)^2` is put in.

    Returns:
        `[B]`.

    Source: Song et al. (2019), "Sliced score matching", eq. 7-8.
    """
    if variance_reduction:
        return implicit(model, data, level, Probes(probes), seed=seed)
    check_whole("probes", probes)
    keys, x, score = _asked(model, data, level, seed)
    along = signs(x, probes, level, keys)
    value, rows = tangent(score, x)
    slope, height = (widen(part * along).flatten(2).sum(2) for part in (rows(along), value))
    return (slope + height.square() / 2).mean(0) / max(1, x[:1].numel())


@strict_keywords
def finite_difference(
    model: Model, data: Tensor, level: Level, *, step: float = 1e-2, probes: int = 1, seed: int = 0
) -> Tensor:
    """Sliced score matching by differences: `(h_+ - h_-)/(2 e) + (h_+ + h_-)^2/8`, over D, `h = v . s(x +- e v)`.

    Of energies too, without second derivatives by x. Its bias is of order e^2.

    Args:
        model, data, level, probes, seed: as for `sliced`.
        step: e over the level's sigma, v being random signs.

    Returns:
        `[B]`.

    Raises:
        InvalidArgumentError: the step is not positive.
        InvalidTypeError: data of half precision.

    Source: Pang et al. (2020), eq. 14.
    """
    check_positive(step=step)
    check_whole("probes", probes)
    if widen(data).dtype != data.dtype:
        raise InvalidTypeError(f"differences lose their digits in {data.dtype}: give float32 data and weights")
    keys, x, score = _asked(model, data, level, seed)
    e = step * level.sigma
    total = widen(x).new_zeros(x.shape[0])
    for v_ in signs(x, probes, level, keys):
        up, down = (
            widen(v_ * score(combine((1.0, x), (side * e, v_)).to(x.dtype))).flatten(1).sum(1) for side in (1.0, -1.0)
        )
        total = total + (up - down) / (2 * like(e, total)) + (up + down).square() / 8
    return total / (probes * max(1, x[:1].numel()))


def fisher(model: Model, law: GaussianMixture | Model, x: Tensor, level: Level) -> Tensor:
    """The Fisher divergence of a model from a law, `|s - score|^2 / D` at each x, which its mean over the law is.

    Args:
        model: what is measured.
        law: a mixture, whose exact score is taken under the model's process, or another model.
        x: `[B, *S]`, at the level, of the law.
        level: `[]` or `[B]`.

    Returns:
        `[B]`.

    Source: Hyvarinen (2005), eq. 2.
    """
    check_type(model, Model, "model must be a ScoreModel, or a map of one")
    check_state(x, "x", "")
    other = law.score(model.process) if isinstance(law, GaussianMixture) else law
    check_type(other, Model, "law must be a mixture, or a model")
    return (widen(model(x, level)) - widen(other(x, level))).square().flatten(1).mean(1)


def _asked(model: Model, data: Tensor, level: Level, seed: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The samples' seeds, x noised to a level, and the score there as a function of x."""
    check_type(level, Level, "level must be a Level, process.level(t)")
    _, x, _ = noised(model, data, level, seed)
    return noises.seeds(seed, data.shape[0], device=data.device), x, lambda y: model(y, level, "score")
