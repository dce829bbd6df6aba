"""`check_sde`: do a forward SDE's drift, diffusion and divergence belong together, and its reverse to its marginals?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.processes.diffusions import gram, noise_like
from sdegen.processes.sde import SDE
from sdegen.sampling.sample import forward
from sdegen.testing.checks.shared import host_reads, leaves_alone
from sdegen.testing.guards import differing
from sdegen.testing.problems import off_knots
from sdegen.testing.report import Measure, Report, Suite, holds, run

F64 = torch.float64
SDES = Suite("SDE")
Density = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class General:
    """An SDE, the shape of its samples, and, if it is known, `log_prob(x, t)` of its law."""

    sde: SDE
    shape: tuple[int, ...]
    log_prob: Density | None

    @property
    def size(self) -> int:
        return int(torch.tensor(self.shape).prod())

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of the known density, which may be differentiated again."""
        density: Any = self.log_prob
        slope: Tensor = torch.func.grad(lambda y: density(y, t).sum())(x)
        return slope


class Place(NamedTuple):
    """n states from a seed, at a share of the time span."""

    share: float
    seed: int
    n: int = 3

    def told(self, subject: General) -> str:
        """Where that is."""
        return f"t = {float(self.t(subject)):.6g}"

    def t(self, subject: General) -> Tensor:
        span = subject.sde.t_max - subject.sde.t_min
        return off_knots(subject.sde, torch.tensor(subject.sde.t_min + self.share * span, dtype=F64))

    def x(self, subject: General) -> Tensor:
        return noises.normals(noises.seeds(self.seed, self.n), subject.shape, (9, 0, 0, 0), dtype=F64)


def _places(subject: General) -> Any:
    import hypothesis.strategies as hs

    return hs.builds(Place, hs.floats(0.01, 0.99), hs.integers(0, 2**31), hs.integers(1, 5))


def _density(subject: General) -> str | None:
    return None if subject.log_prob is not None else "its law is not known: give log_prob="


def _matrix(g: Tensor, x: Tensor) -> Tensor:
    """Any of the three kinds of diffusion as `[B, D, M]`."""
    batch, size = x.shape[0], x[0].numel()
    if g.ndim > x.ndim:
        return g.expand(*x.shape, g.shape[-1]).reshape(batch, size, -1)
    flat = g.expand(x.shape).reshape(batch, size) if g.ndim == x.ndim else g.expand(batch)[:, None].expand(batch, size)
    return torch.diag_embed(flat)


@SDES.states("drift is like x; diffusion is [] or [B], [B, *S], or [B, *S, M]; both finite", given=_places, examples=25)
def shapes(subject: General, case: Place) -> Iterator[Measure]:
    x, t = case.x(subject), case.t(subject)
    for dtype in (F64, torch.float32):
        f, g = subject.sde.drift(x.to(dtype), t), subject.sde.diffusion(x.to(dtype), t)
        yield holds(f"drift has shape {list(f.shape)}, x {list(x.shape)}", f.shape == x.shape)
        yield holds(f"drift is {f.dtype} for x of {dtype}", f.dtype == dtype)
        gram(g, f)  # raises on a diffusion of no known kind
        yield Measure("values that are not finite", float((~f.isfinite()).sum() + (~g.isfinite()).sum()))


@SDES.states("a row's drift and diffusion depend on that row and its time alone", given=_places)
def batch_independence(subject: General, case: Place) -> Iterator[Measure]:
    x, t = case.x(subject), case.t(subject)
    row = case.seed % case.n
    for name in ("drift", "diffusion"):
        function = getattr(subject.sde, name)
        whole, alone = function(x, t), function(x[row : row + 1], t)
        if whole.ndim == 0 or whole.shape[0] != case.n:
            whole, alone = whole.expand(case.n), alone.expand(1)
        gap = (whole[row] - alone[0]).abs().max()
        yield Measure(f"{name} of a row alone", float(gap / (1 + whole[row].abs().max())), 1e-12)


@SDES.states("times [] and [B] mean the same", given=_places)
def times(subject: General, case: Place) -> Iterator[Measure]:
    x, t = case.x(subject), case.t(subject)
    for name in ("drift", "diffusion"):
        function = getattr(subject.sde, name)
        one, many = _matrix_or(x, function(x, t)), _matrix_or(x, function(x, t.expand(case.n).clone()))
        yield Measure(f"{name} at a time per row", float((one - many).abs().max() / (1 + one.abs().max())), 1e-12)


def _matrix_or(x: Tensor, value: Tensor) -> Tensor:
    return value if value.shape == x.shape else _matrix(value, x)


@SDES.states("drift and diffusion leave x as it was, answer the same again, and move no global generator")
def purity(subject: General) -> Iterator[Measure]:
    case = Place(0.4, 1)
    x, t = case.x(subject), case.t(subject)
    given = x.clone()
    first = [f(x, t) for f in (subject.sde.drift, subject.sde.diffusion)]
    again: list[Tensor] = []
    moved = list(leaves_alone(lambda: again.extend(f(x, t) for f in (subject.sde.drift, subject.sde.diffusion))))
    yield Measure("elements of x that changed", float(differing(x, given)))
    for a, b in zip(first, again):
        yield Measure("elements of a second answer that differ", float(differing(a, b)))
    yield from moved


@SDES.states(
    "divergence = sum_j d(g g^T)_ij/dx_j, by central differences; None only where g is free of x",
    given=_places,
    examples=10,
)
def divergence(subject: General, case: Place) -> Iterator[Measure]:
    x, t = case.x(subject), case.t(subject)
    h, size = 1e-5, subject.size

    def spread(y: Tensor) -> Tensor:
        g = _matrix(subject.sde.diffusion(y, t), y)
        return g @ g.mT

    total = torch.zeros(case.n, size, dtype=F64)
    for j, step in enumerate(_steps(x, h)):
        total += (spread(x + step) - spread(x - step))[:, :, j] / (2 * h)
    got = subject.sde.divergence(x, t)
    got = torch.zeros_like(x) if got is None else got
    scale = 1 + spread(x).abs().max() + total.abs().max()
    yield Measure("relative gap", float((got.reshape(case.n, size) - total).abs().max() / scale), 1e-7)


@SDES.states("reverse drifts are f - (1 + eta^2)/2 (div g g^T + g g^T score), diffusions eta g", given=_places)
def reverse_family(subject: General, case: Place) -> Iterator[Measure]:
    x, t, sde = case.x(subject), case.t(subject), subject.sde

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -torch.tanh(x)

    g = _matrix(sde.diffusion(x, t), x)
    curl = sde.divergence(x, t)
    pull = ((g @ g.mT) @ score(x, t).flatten(1)[..., None])[..., 0].reshape(x.shape) + (0 if curl is None else curl)
    f = sde.drift(x, t)
    for eta in (0.0, 0.5, 1.0):
        reverse = sde.reverse(score, eta)
        exact = f - (1 + eta**2) / 2 * pull
        size = 1 + f.abs().max() + pull.abs().max()
        yield Measure(f"drift, eta={eta}", float((reverse.drift(x, t) - exact).abs().max() / size), 1e-12)
        gap = (_matrix(reverse.diffusion(x, t), x) - eta * g).abs().max()
        yield Measure(f"diffusion, eta={eta}", float(gap / (1 + g.abs().max())), 1e-12)


class _Ones:
    """Row k + 1 gets a one in element k, row 0 nothing."""

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        z = x.new_zeros(x.shape[0], x[0].numel())
        size = z.shape[1]
        z[1 : 1 + size] = torch.eye(size, dtype=x.dtype)
        return z.reshape(x.shape)


@SDES.states("a short forward path has mean x + f h and covariance g g^T h, to first order", given=_places, examples=10)
def forward_moments(subject: General, case: Place) -> Iterator[Measure]:
    x, t, sde = case.x(subject)[:1], case.t(subject), subject.sde
    wide = noise_like(sde.diffusion(x, t), x)
    rows = x.expand(1 + wide[0].numel(), *subject.shape).clone()
    gaps = []
    for h in (2e-4, 1e-4):
        h *= sde.t_max - sde.t_min
        out = forward(sde, rows, torch.stack([t, t + h]), noise=_Ones())[-1].flatten(1)
        moved = out[1:] - out[0]
        cov = moved.mT @ moved
        g = _matrix(sde.diffusion(x, t), x)[0]
        f = sde.drift(x, t).flatten()
        gaps.append(
            (
                float((out[0] - x.flatten() - f * h).norm()) / h / (1 + float(f.norm())),
                float((cov - g @ g.mT * h).norm()) / h / (1e-300 + float((g @ g.mT).norm())),
            )
        )
    # what is left over h is O(h): it must be small, or halve
    for what, (first, second) in zip(("mean", "covariance"), zip(*gaps)):
        yield Measure(
            f"{what}: what is left at half the step, over what was", second / first if first > 1e-6 else 0.0, 0.6
        )


@SDES.states(
    "the known law solves the Fokker-Planck equation: dp/dt = -div(f p) + 1/2 div div (g g^T p)",
    applies=_density,
    given=_places,
    examples=10,
)
def fokker_planck(subject: General, case: Place) -> Iterator[Measure]:
    yield _residual(subject, case, None)


@SDES.states(
    "the probability flow and every reverse SDE carry the known law", applies=_density, given=_places, examples=10
)
def reverse_marginals(subject: General, case: Place) -> Iterator[Measure]:
    for eta in (0.0, 0.6, 1.0):
        yield _residual(subject, case, eta)


def _residual(subject: General, case: Place, eta: float | None) -> Measure:
    """`d log p/dt` against `-div b - b.s +- eta^2/2 (div h + h.s)`, for eta None of the forward SDE.

    With drift b and `h_i = sum_j d_j (g g^T)_ij + (g g^T s)_i`; + for time running up, - for a reverse SDE's down.
    """
    x, t, sde = case.x(subject), case.t(subject), subject.sde
    density: Any = subject.log_prob
    change: Tensor = torch.func.jvp(lambda u: density(x, u), (t,), (torch.ones_like(t),))[1]
    score = subject.score(x, t)
    way, amount = (1.0, 1.0) if eta is None else (-1.0, eta**2)

    def drift(y: Tensor) -> Tensor:
        return sde.drift(y, t) if eta is None else sde.reverse(subject.score, eta).drift(y, t)

    def flux(y: Tensor) -> Tensor:
        curl = sde.divergence(y.detach(), t)
        return gram(sde.diffusion(y, t), subject.score(y, t)) + (0 if curl is None else curl)

    terms = [-_spread(drift, x), -_dot(drift(x), score)]
    own = [_spread(flux, x) / 2, _dot(flux(x), score) / 2]
    terms += [way * amount * term for term in own]
    # a reverse drift is a difference of the forward one and the flux, and may cancel to nothing
    size = change.abs() + sum(term.abs() for term in terms + own) + (sde.drift(x, t) * score).flatten(1).norm(dim=1)
    gap = (change - sum(terms)).abs() / (1e-12 + size)
    return Measure(f"relative residual, {'forward' if eta is None else f'eta={eta}'}", float(gap.max()), 1e-6)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _steps(x: Tensor, h: float) -> Iterator[Tensor]:
    """A step of h along each element of a sample, `[*S]`."""
    for row in h * torch.eye(x[0].numel(), dtype=F64):
        yield row.reshape(x.shape[1:])


def _spread(field: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """The divergence `[B]` of a field, by central differences: h^2 of third derivatives and eps/h of values."""
    total = torch.zeros(len(x), dtype=F64)
    for j, step in enumerate(_steps(x, h)):
        total += ((field(x + step) - field(x - step)).flatten(1)[:, j]) / (2 * h)
    return total


def _has_prior(subject: General) -> str | None:
    own = type(subject.sde).prior is not SDE.prior and getattr(subject.sde, "draw", True) is not None
    return None if own else "it has no prior"


@SDES.states("the prior is one sample per seed, a function of that seed alone", applies=_has_prior)
def prior(subject: General) -> Iterator[Measure]:
    seeds = noises.seeds(3, 64)
    x = subject.sde.prior(seeds, subject.shape)
    yield holds(f"shape {list(x.shape)}", x.shape == (64, *subject.shape))
    yield Measure("values that are not finite", float((~x.isfinite()).sum()))
    yield Measure(
        "elements of some rows alone that differ",
        float(differing(subject.sde.prior(seeds[5:9], subject.shape), x[5:9])),
    )
    yield holds("different seeds give equal rows", bool((x[0] != x[1]).any()))


@SDES.states("drift and diffusion read no value on the host")
def no_host_reads(subject: General) -> Iterator[Measure]:
    x, t = Place(0.4, 1).x(subject), Place(0.4, 1).t(subject)

    def use(mode: FakeTensorMode) -> None:
        for function in (subject.sde.drift, subject.sde.diffusion):
            function(mode.from_tensor(x), mode.from_tensor(t))

    yield host_reads(use)


@SDES.states("a copy has the same drift and diffusion")
def copies(subject: General) -> Iterator[Measure]:
    case, twin = Place(0.4, 1), copy.deepcopy(subject.sde)
    x, t = case.x(subject), case.t(subject)
    for name in ("drift", "diffusion"):
        gap = differing(getattr(twin, name)(x, t), getattr(subject.sde, name)(x, t))
        yield Measure(f"elements of {name} that differ", float(gap))


def check_sde(
    sde: SDE,
    *,
    shape: tuple[int, ...] = (2,),
    log_prob: Density | None = None,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check every property of a forward SDE, general or linear, on samples of a shape `*S`.

    log_prob: `(x [B, *S], t) -> [B]`, the density of its law where that is known: then forward and reverse
    Fokker-Planck equations are checked against it. Options as in `sdegen.testing.report.run`. Raises InvalidTypeError
    unless `sde` is an SDE, PropertyError if a property fails.
    """
    subject = general(sde, shape, log_prob)
    return run(
        SDES,
        subject,
        f"check_sde({sde})",
        only=only,
        expected_failed=expected_failed,
        full=full,
        fail_fast=fail_fast,
        raise_on_fail=raise_on_fail,
    )


def general(sde: SDE, shape: tuple[int, ...] = (2,), log_prob: Density | None = None) -> General:
    """What `check_sde` checks, from its arguments."""
    if not isinstance(sde, SDE):
        raise InvalidTypeError(f"check_sde takes an SDE, got {sde!r}; sd.SDE.from_functions makes one")
    if not shape or min(shape) < 1:
        raise InvalidArgumentError(f"shape must be that of a sample, (D,) or more, got {shape}")
    return General(sde, tuple(shape), log_prob)
