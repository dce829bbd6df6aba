"""`check_score_model`: is it a score, of the law that is claimed, and a well-behaved function?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.scores.mixtures import GaussianMixture
from sdegen.scores.model import Model
from sdegen.tensors import widen
from sdegen.testing.checks.shared import host_reads, leaves_alone, twins, working_dtype
from sdegen.testing.guards import differing
from sdegen.testing.report import Measure, Report, Suite, holds, run
from sdegen.testing.rounding import mixture_error

F64 = torch.float64
SCORE = Suite("score model")
PREDICTIONS = ("data", "noise", "score", "v", "velocity")


@dataclass(frozen=True)
class Scored:
    """A score model, the law of its data if that is known, and the states on which it is called."""

    model: Any
    law: GaussianMixture | None
    reference: Model | None
    tol: float
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def process(self) -> Process:
        process: Process = self.model.process
        return process

    @property
    def eps(self) -> float:
        return torch.finfo(self.dtype).eps

    @property
    def exact(self) -> bool:
        """Whether the model is the law's own, so that theorems hold to rounding."""
        return self.law is not None and self.tol == 0.0


class At(NamedTuple):
    """States to call a model on: n samples from a seed, at a share of the time span, spread wider than the law's."""

    share: float
    seed: int
    n: int = 3
    spread: float = 1.0

    def told(self, subject: Scored) -> str:
        """Where that is."""
        level = self.level(subject.process)
        return f"t = {float(level.t):.6g}, lam = {float(level.lam):.4g}"

    def level(self, process: Process) -> Level:
        return process.level(process.t_min + self.share * (process.t_max - process.t_min))

    def x(self, subject: Scored) -> Tensor:
        """States of about the size that a solve meets there."""
        level = self.level(subject.process)
        z = noises.normals(noises.seeds(self.seed, self.n), subject.shape, (7, 0, 0, 0), dtype=F64)
        if subject.law is None:
            x = torch.hypot(level.alpha, level.sigma) * z
        else:
            x = level.alpha * subject.law.sample(self.n, seed=self.seed) + level.sigma * z
        return (self.spread * x).to(subject.dtype)


def points(subject: Scored) -> Any:
    import hypothesis.strategies as hs

    return hs.builds(
        At, hs.floats(0.0, 1.0), hs.integers(0, 2**31), hs.integers(1, 5), hs.sampled_from([1.0, 0.1, 3.0, 10.0])
    )


def known(subject: Scored) -> str | None:
    if subject.exact:
        return None if subject.dtype == F64 else f"theorems are checked in float64, and it runs in {subject.dtype}"
    return "its law is not known: give reference=" if subject.law is None else "tol > 0: it need not be exact"


def _compared(subject: Scored) -> str | None:
    return None if subject.reference is not None else "no reference was given"


def _wide(subject: Scored) -> str | None:
    return None if subject.dtype == F64 else f"derivatives by differences need float64, it runs in {subject.dtype}"


def _close(subject: Scored, what: str, a: Tensor, b: Tensor, size: Tensor | float, factor: float = 64) -> Measure:
    gap = (a.detach().double() - b.detach().double()).abs().max() if a.numel() else torch.zeros(())
    size = torch.as_tensor(size).detach()
    return Measure(f"{what}, in roundings", float(gap / (subject.eps * (size + 1e-300))), factor)


@SCORE.states("every prediction has x's shape, dtype and device, at a level [] and at a level per row", given=points)
def outputs(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject), case.level(subject.process)
    rows = Level(*(v.expand(case.n).clone() for v in level))
    for want in PREDICTIONS:
        out = subject.model(x, level, want)
        yield holds(f"{want} has shape {list(out.shape)}, x {list(x.shape)}", out.shape == x.shape)
        wide = (x.dtype, widen(x).dtype)  # a half-precision state may be answered in float32
        yield holds(f"{want} has dtype {out.dtype}, x {x.dtype}", out.dtype in wide)
        yield holds(f"{want} is on {out.device}", out.device == x.device)
        size = out.abs().max() + x.abs().max() / level.sigma
        yield _close(subject, f"{want} at a level per row", subject.model(x, rows, want), out, size, 1e3)


@SCORE.states("rows at different levels get what each would get alone", given=points)
def levels_per_row(subject: Scored, case: At) -> Iterator[Measure]:
    x, process = case.x(subject), subject.process
    shares = torch.linspace(0.5 * case.share, 0.5 + 0.5 * case.share, case.n, dtype=F64)
    level = process.level(process.t_min + shares * (process.t_max - process.t_min))
    together = subject.model(x, level)
    for i in range(case.n):
        alone = _rows(subject, torch.tensor([i]))(x[i : i + 1], Level(*(v[i] for v in level)))
        size = alone.abs().max() + x[i].abs().max() / level.sigma[i]
        yield _close(subject, "a row at its own level", together[i : i + 1], alone, size, 1e4)


@SCORE.states(
    "all predictions are finite from t_min to t_max, out to ten times the law's width", given=points, examples=25
)
def finite(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject), case.level(subject.process)
    for want in PREDICTIONS:
        bad = float((~subject.model(x, level, want).isfinite()).sum())
        yield Measure(f"values of {want} that are not finite", bad)


@SCORE.states(
    "x = alpha data + sigma noise, score = -noise/sigma, v = alpha noise - sigma data, velocity = alpha' data + ...",
    given=points,
    examples=25,
)
def predictions_agree(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject).double(), case.level(subject.process)
    data, noise, score, v, velocity = (subject.model(x.to(subject.dtype), level, w).double() for w in PREDICTIONS)
    a, s = level.alpha, level.sigma
    d_alpha, d_sigma = subject.process.rates(level.t)
    # each is c_x x + c_pred pred with the model's own prediction: both terms may cancel, to the size of their larger
    d, n = data.abs().max() + x.abs().max() / a, noise.abs().max() + x.abs().max() / s
    yield _close(subject, "x", a * data + s * noise, x, a * d + s * n)
    yield _close(subject, "score", s * score, -noise, n)
    yield _close(subject, "v", v, a * noise - s * data, a * n + s * d)
    exact = d_alpha * data + d_sigma * noise
    yield _close(subject, "velocity", velocity, exact, d_alpha.abs() * d + d_sigma.abs() * n)


@SCORE.states("any pair (p, q) gives p data + q noise", given=points)
def pairs(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject), case.level(subject.process)
    p, q = torch.tensor(0.3 + case.share, dtype=F64), torch.tensor(-1.7, dtype=F64)
    data, noise = (subject.model(x, level, want).double() for want in ("data", "noise"))
    size = p * (data.abs().max() + x.abs().max() / level.alpha) + q.abs() * (
        noise.abs().max() + x.abs().max() / level.sigma
    )
    yield _close(subject, "distance", subject.model(x, level, (p, q)), p * data + q * noise, size)


@SCORE.states("a row's prediction depends on that row alone, not on its batch, its place or its mates", given=points)
def batch_independence(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject), case.level(subject.process)
    whole = subject.model(x, level)
    row = case.seed % case.n
    part = _rows(subject, torch.tensor([row]))
    # a network's matrix products round by the batch's size; what is looked for is another answer
    size, factor = whole.abs().max() + x.abs().max() / level.sigma, 1e4
    yield _close(subject, "a row alone", part(x[row : row + 1], level), whole[row : row + 1], size, factor)
    wild = x.clone()
    wild[row] = 1e3 * (1 + wild[row].abs())
    others = torch.arange(case.n) != row
    yield _close(subject, "rows beside a wild one", subject.model(wild, level)[others], whole[others], size, factor)
    back = torch.arange(case.n - 1, -1, -1)
    yield _close(subject, "rows in reverse", _rows(subject, back)(x[back], level), whole[back], size, factor)
    if subject.exact:
        yield Measure(
            "a row alone: elements that differ", float(differing(part(x[row : row + 1], level), whole[row : row + 1]))
        )


def _rows(subject: Scored, index: Tensor) -> Any:
    """The model for some samples of its per-sample conditions."""
    conditions = getattr(subject.model, "condition", None)
    return subject.model.rows(index) if conditions else subject.model


@SCORE.states(
    "a call leaves x as it was, answers the same again, and moves no global generator", given=points, examples=10
)
def purity(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject), case.level(subject.process)
    given = x.clone()
    answers: list[Tensor] = []
    moved = list(leaves_alone(lambda: answers.append(subject.model(x, level))))
    first = answers[0]
    yield Measure("elements of x that changed", float(differing(x, given)))
    yield Measure("elements of a second answer that differ", float(differing(subject.model(x, level), first)))
    yield from moved


@SCORE.states("the network is in evaluation mode")
def evaluation_mode(subject: Scored) -> Iterator[Measure]:
    net = subject.model.module
    training = [name or "itself" for name, part in net.named_modules() if part.training] if net is not None else []
    yield holds(f"in training mode: {', '.join(training[:3])}; call net.eval()", not training)


@SCORE.states("a copy and a pickle answer as the original")
def copies(subject: Scored) -> Iterator[Measure]:
    case = At(0.4, 1)
    x, level = case.x(subject), case.level(subject.process)
    whole = subject.model(x, level)
    copied, failures = twins(subject.model)
    yield from failures
    for twin in copied:
        yield Measure("elements that differ", float(differing(twin(x, level), whole)))


def _no_energy(subject: Scored) -> str | None:
    return "an energy's gradient is taken by autograd" if getattr(subject.model, "predicts", "") == "energy" else None


@SCORE.states("no value is read on the host", applies=_no_energy)
def no_host_reads(subject: Scored) -> Iterator[Measure]:
    case = At(0.4, 1)
    x, level = case.x(subject), case.level(subject.process)
    yield host_reads(lambda mode: subject.model(mode.from_tensor(x), level))


@SCORE.states("it compiles to one graph with eager's numbers", applies=_no_energy)
def one_graph(subject: Scored) -> Iterator[Measure]:
    from torch._dynamo.testing import CompileCounter  # takes seconds to import

    torch._dynamo.reset()
    counter, case = CompileCounter(), At(0.4, 1)
    x, level = case.x(subject), case.level(subject.process)
    compiled = torch.compile(lambda y: subject.model(y, level), fullgraph=True, backend=counter)
    try:
        out = compiled(x)
    except Exception as error:
        yield holds(f"it does not compile: {type(error).__name__}: {str(error).splitlines()[0]}", False)
        return
    finally:
        torch._dynamo.reset()
    whole = subject.model(x, level)
    yield Measure("graphs more than one", float(counter.frame_count - 1))
    yield _close(subject, "compiled against eager", out, whole, whole.abs().max() + x.abs().max() / level.sigma, 1e3)


@SCORE.states("its derivatives in x are those of its values, by differences", applies=_wide, given=points, examples=10)
def differentiable(subject: Scored, case: At) -> Iterator[Measure]:
    x, level = case.x(subject), case.level(subject.process)
    v = torch.cos(torch.arange(x.numel(), dtype=F64)).reshape(x.shape)
    at = x.clone().requires_grad_()
    (pulled,) = torch.autograd.grad((subject.model(at, level, "noise") * v).sum(), at)
    h = 1e-5 * float(torch.hypot(level.alpha, level.sigma) * 0.1 + level.sigma)
    with torch.no_grad():
        numeric = (subject.model(x + h * v, level, "noise") - subject.model(x - h * v, level, "noise")) / (2 * h)
        value = 1 + subject.model(x, level, "noise").abs().max()
    # the noise predicted has derivatives of size 1/sigma; differences lose eps/h of values and h^2 of curvature
    size = 1 + pulled.abs().sum() + 1 / level.sigma
    curved = (h / level.sigma) ** 2
    allowed = float(1e-6 + 64 * subject.eps * value / (h * size) + 1e2 * curved)
    yield Measure("relative gap", float(((pulled * v).sum() - (numeric * v).sum()).abs() / size), allowed)


@SCORE.states(
    "it agrees with the reference, in root mean square over the law at each level", applies=_compared, given=points
)
def agrees(subject: Scored, case: At) -> Iterator[Measure]:
    case = case._replace(n=64 if subject.tol else case.n, spread=1.0 if subject.tol else case.spread)
    x, level = case.x(subject), case.level(subject.process)
    reference: Any = subject.reference
    ours, exact = subject.model(x, level, "noise").double(), reference(x, level, "noise").double()
    gap = (ours - exact).square().mean().sqrt()
    if subject.tol:
        yield Measure("error of the predicted noise", float(gap), subject.tol)
        return
    law: Any = subject.law
    scale = subject.eps / torch.finfo(F64).eps
    limit = scale * mixture_error(law, x, level, 0.0, 1.0)[0] if law is not None else 1e-9 * (1 + exact.abs().max())
    yield Measure(
        "predicted noise over its rounding bound (a trained network needs tol > 0)",
        float(((ours - exact).flatten(1).norm(dim=1) / limit).max()),
        16,
    )


def check_score_model(
    model: Any,
    reference: GaussianMixture | Model | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    tol: float = 0.0,
    dtype: torch.dtype | None = None,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check every property of a score model: as a function, and, where the law of its data is known, as its score.

    reference: the `GaussianMixture` of the data, or a model of the truth on the same process; a mixture's own score is
    its own. shape: of a sample, `*S`; the mixture's by default. tol: the root-mean-square error that is allowed of the
    predicted noise (in units of the noise); 0 holds the model to the theorems of exact scores, up to rounding. dtype:
    of the states, by default that of the network, else float64. Options as in `sdegen.testing.report.run`.

    To find out why a trained network samples badly, see `audit`. Raises InvalidTypeError and InvalidArgumentError on
    what is no score model or lacks a shape, PropertyError if a property fails.
    """
    subject = scored(model, reference, shape, tol, dtype)
    title = f"check_score_model({model})"
    return run(
        SCORE,
        subject,
        title,
        only=only,
        expected_failed=expected_failed,
        full=full,
        fail_fast=fail_fast,
        raise_on_fail=raise_on_fail,
    )


def scored(model: Any, reference: Any = None, shape: Any = None, tol: float = 0.0, dtype: Any = None) -> Scored:
    """What `check_score_model` checks, from its arguments."""
    if not callable(model) or not isinstance(getattr(model, "process", None), Process):
        raise InvalidTypeError(f"check_score_model takes a score model on a Process, got {model!r}; see sd.ScoreModel")
    if not 0.0 <= tol < float("inf"):
        raise InvalidArgumentError(f"tol must be finite and >= 0, got {tol}")
    if reference is not None and not isinstance(reference, GaussianMixture) and not hasattr(reference, "process"):
        raise InvalidTypeError(f"reference must be a GaussianMixture or a score model, got {reference!r}")
    if any(isinstance(v, Tensor) and v.ndim and v.shape[0] != 1 for v in getattr(model, "condition", {}).values()):
        model = model.rows(torch.zeros(1, dtype=torch.int64))  # the first sample's condition, for all
    own = getattr(model, "mixture", None)
    law = reference if isinstance(reference, GaussianMixture) else getattr(reference, "mixture", own)
    if isinstance(reference, GaussianMixture):
        reference = reference.score(model.process)
    if shape is None and law is None:
        raise InvalidArgumentError("give the shape of a sample, shape=(3, 32, 32), or a reference that has one")
    event: Any = law.shape if shape is None and law is not None else shape
    if not isinstance(event, Sequence) or (law is not None and tuple(event) != tuple(law.shape)):
        own_shape = f", and the law's is {tuple(law.shape)}" if law is not None else ""
        raise InvalidArgumentError(f"shape must be a sample's, such as (3, 32, 32), got {event!r}{own_shape}")
    dtype = dtype or working_dtype(model, torch.zeros(1, *event))
    quiet = _Quiet(model) if getattr(model, "predicts", "") == "energy" else model
    return Scored(quiet, law, reference, tol, tuple(event), dtype)


class _Quiet:
    """A score model whose outputs carry a graph only where x does: an energy's always do."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        if name == "model" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, x: Tensor, level: Level, want: Any = "score") -> Tensor:
        out: Tensor = self.model(x, level, want)
        return out if x.requires_grad else out.detach()
