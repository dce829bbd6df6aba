"""`check_process`: do alpha and sigma, and all that is derived from them, belong to one another?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdegen import noise as noises
from sdegen.errors import InvalidTypeError
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.processes.sde import SDE
from sdegen.sampling.sample import forward
from sdegen.testing.checks.shared import host_reads, leaves_alone, twins
from sdegen.testing.problems import PROBLEMS, off_knots
from sdegen.testing.report import Measure, Report, Suite, holds, run

F64 = torch.float64
EPS = torch.finfo(F64).eps
PROCESS = Suite("process")


class Shares(NamedTuple):
    """Times as shares of the span, in increasing order."""

    shares: tuple[float, ...]

    def told(self, process: Process) -> str:
        """The times."""
        return "t = " + ", ".join(f"{float(t):.6g}" for t in self.times(process))

    def times(self, process: Process) -> Tensor:
        """Those times, inside the span whatever rounding does."""
        t = process.t_min + (process.t_max - process.t_min) * torch.tensor(sorted(self.shares), dtype=F64)
        return t.clamp(process.t_min, process.t_max)


def _shares(count: int, low: float = 0.0, high: float = 1.0) -> Any:
    def given(process: Process) -> Any:
        import hypothesis.strategies as hs

        numbers = hs.lists(hs.floats(low, high), min_size=count, max_size=count).map(tuple)
        return hs.builds(Shares, numbers)

    return given


def _slack(process: Process, t: Tensor) -> Tensor:
    """The condition of lam as a function of t: how far one rounding of t, alpha and sigma moves it."""
    level, (d_alpha, d_sigma) = process.level(t), process.rates(t)
    rate = (d_sigma / level.sigma - d_alpha / level.alpha).abs()
    return EPS * (1 + rate * (t.abs() + abs(process.t_min)))


@PROCESS.states(
    "alpha(t) > 0 and sigma(t) > 0 are finite float64 numbers on [t_min, t_max]", given=_shares(2), examples=20
)
def positive(process: Process, case: Shares) -> Iterator[Measure]:
    level = process.level(case.times(process))
    for name, value in (("alpha", level.alpha), ("sigma", level.sigma)):
        yield holds(f"{name} has dtype {value.dtype}", value.dtype == F64)
        yield holds(f"{name} has shape {list(value.shape)} for t of shape [2]", value.shape == (2,))
        yield holds(f"{name} is {value.tolist()}", bool(((value > 0) & value.isfinite()).all()))


@PROCESS.states("lam(t) = log(alpha/sigma) falls strictly", given=_shares(2), examples=20)
def falling(process: Process, case: Shares) -> Iterator[Measure]:
    t = case.times(process)
    slack = float(64 * _slack(process, t).max())
    lam = process.level(t).lam
    rise = float(lam[1] - lam[0])
    yield Measure("rise of lam", rise, slack)
    if float(t[1] - t[0]) > 1e-3 * (process.t_max - process.t_min):
        yield Measure("rise of lam over a thousandth of the span or more", rise, -slack)


@PROCESS.states("at(lam(t)) is the level of t", given=_shares(3), examples=20)
def inverse(process: Process, case: Shares) -> Iterator[Measure]:
    t = case.times(process)
    lam = process.level(t).lam
    back = process.at(lam)
    # two maps, a few roundings of each of their steps
    yield Measure(
        "lam after the round trip, in roundings", float(((back.lam - lam).abs() / _slack(process, t)).max()), 128
    )
    yield Measure(
        "beyond the span", max(process.t_min - float(back.t.min()), float(back.t.max()) - process.t_max), 1e-9
    )


@PROCESS.states("time(lam) is what bisection on [t_min, t_max] finds", given=_shares(3, 0.01, 0.99), examples=20)
def bisection(process: Process, case: Shares) -> Iterator[Measure]:
    t = case.times(process)
    lam = process.level(t).lam
    gap = process.level(process.time(lam)).lam - process.level(Process.time(process, lam)).lam
    yield Measure("distance in lam, in roundings", float((gap.abs() / _slack(process, t)).max()), 256)


@PROCESS.states("rates(t) = (alpha', sigma'), by central differences", given=_shares(2, 0.05, 0.95), examples=20)
def rates(process: Process, case: Shares) -> Iterator[Measure]:
    t = off_knots(process, case.times(process))
    h = 1e-5 * (process.t_max - process.t_min)
    before, after = process.level(t - h), process.level(t + h)
    for name, rate, low, high in zip(
        ("alpha'", "sigma'"), process.rates(t), (before.alpha, before.sigma), (after.alpha, after.sigma)
    ):
        numeric = (high - low) / (2 * h)
        # h^2 of the third derivative, which may be a thousand times the first, and eps/h of the values
        size = numeric.abs() * 1e-4 + (high.abs() + low.abs()) * (4 * EPS / h) + 1e-9 / (process.t_max - process.t_min)
        yield Measure(f"{name} against differences", float(((rate - numeric).abs() / size).max()), 1.0)


@PROCESS.states("rates(t) is what forward-mode differentiation of alpha and sigma gives", given=_shares(3, 0.01, 0.99))
def derivatives(process: Process, case: Shares) -> Iterator[Measure]:
    t = off_knots(process, case.times(process))
    for name, rate, automatic in zip(("alpha'", "sigma'"), process.rates(t), Process.rates(process, t)):
        gap = (rate - automatic).abs() / (automatic.abs() + 1e-6 * automatic.abs().max() + 1e-300)
        yield Measure(f"{name} against automatic differentiation, relative", float(gap.max()), 1e-9)


@PROCESS.states(
    "drift(x, t) = (alpha'/alpha) x and diffusion^2 = (sigma^2)' - 2 (alpha'/alpha) sigma^2",
    given=_shares(3, 0.01, 0.99),
)
def coefficients(process: Process, case: Shares) -> Iterator[Measure]:
    t = case.times(process)
    level, (d_alpha, d_sigma) = process.level(t), process.rates(t)
    x = torch.tensor([[1.0], [-2.0], [0.5]], dtype=F64)
    f = d_alpha / level.alpha
    gap = process.drift(x, t) - f[:, None] * x
    yield Measure("drift", float((gap.abs() / (1e-300 + f[:, None].abs() * x.abs())).max()), 64 * EPS)
    parts = (2 * level.sigma * d_sigma).abs() + (2 * f * level.sigma**2).abs()
    g = process.diffusion(x, t)
    gap = g * g - (2 * level.sigma * d_sigma - 2 * f * level.sigma**2)
    yield Measure("diffusion squared", float((gap.abs() / parts).max()), 64 * EPS)
    yield holds(f"diffusion has shape {list(g.shape)}, dtype {g.dtype}", g.shape == (3,) and g.dtype == x.dtype)
    curl: object = SDE.divergence(process, x, t)
    yield holds("the diffusion depends on x", curl is None)


@PROCESS.states("transitions compose: K(r to t) = K(s to t) o K(r to s)", given=_shares(3), examples=20)
def semigroup(process: Process, case: Shares) -> Iterator[Measure]:
    r, s, t = (process.level(v) for v in case.times(process))
    (a1, s1), (a2, s2), (a, std) = process.transition(r, s), process.transition(s, t), process.transition(r, t)
    yield Measure("signal, relative", float((a2 * a1 / a - 1).abs()), 64 * EPS)
    slack = float(sum(_slack(process, v.t) for v in (r, s, t)))
    size = float(t.sigma**2 + (a2 * s.sigma) ** 2 + (a * r.sigma) ** 2)
    yield Measure("variance", float((s2**2 + (a2 * s1) ** 2 - std**2).abs()) / size, 64 * slack)


@PROCESS.states(
    "transition carries the marginal: a alpha = alpha_next, (a sigma)^2 + s^2 = sigma_next^2",
    given=_shares(2),
    examples=20,
)
def marginals(process: Process, case: Shares) -> Iterator[Measure]:
    now, next = (process.level(v) for v in case.times(process))
    a, s = process.transition(now, next)
    slack = 64 * float(_slack(process, now.t) + _slack(process, next.t))
    yield Measure("signal, relative", float((a * now.alpha / next.alpha - 1).abs()), slack)
    gap = (a * now.sigma) ** 2 + s**2 - next.sigma**2
    yield Measure("variance, relative", float(gap.abs() / next.sigma**2), slack)
    kernel = process.kernel(now, next)
    yield holds("kernel() is not transition()", torch.equal(kernel[0], a) and torch.equal(kernel[1], s))


@PROCESS.states("perturb(data, level, noise) = alpha data + sigma noise", given=_shares(3))
def perturbation(process: Process, case: Shares) -> Iterator[Measure]:
    level = process.level(case.times(process))
    data, noise = torch.arange(1, 13, dtype=F64).reshape(2, 3, 2).sin()
    exact = level.alpha[:, None] * data + level.sigma[:, None] * noise
    gap = (process.perturb(data, level, noise) - exact).abs().max()
    yield Measure("distance", float(gap / exact.abs().max()), 4 * EPS)


class _Unit:
    """A normal of one in row k + 1 at draw k, zero elsewhere."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, x: Tensor, now: Level, next: Level, tag: int = 0) -> Tensor:
        self.draws += 1
        z = torch.zeros_like(x)
        z[self.draws] = 1.0
        return z


@PROCESS.states("a forward path has the marginal law at every time, computed from unit responses", given=_shares(6))
def forward_law(process: Process, case: Shares) -> Iterator[Measure]:
    times = torch.unique(case.times(process))
    if len(times) < 2 or float(times.diff().min()) < 1e-9 * process.t_max:
        return
    # one row from 1 for the mean, the others from 0, where small noises keep their digits
    x = torch.zeros(len(times) + 1, 1, dtype=F64)
    x[0] = 1.0
    path = forward(process, x, times, noise=_Unit())[-1, :, 0]
    start, end = process.level(times[0]), process.level(times[-1])
    a = end.alpha / start.alpha
    slack = 64 * float(_slack(process, times).sum())
    yield Measure("mean, relative", abs(float(path[0] / a - 1)), slack)
    variance = path[1:].square().sum() + (a * start.sigma) ** 2
    yield Measure("variance, relative", abs(float(variance / end.sigma**2 - 1)), slack)


@PROCESS.states(
    "every reverse SDE, eta = 0, 0.3, 1, 1.7, has the forward marginals: moments of Fokker-Planck",
    given=_shares(1, 0.02, 0.98),
)
def reverse_marginals(process: Process, case: Shares) -> Iterator[Measure]:
    t, data = case.times(process)[0], PROBLEMS["widths"].data
    model, level, (d_alpha, d_sigma) = data.score(process), process.level(t), process.rates(t)
    mean, width = data.mean(), data.cov().diagonal()
    variance = level.alpha**2 * width + level.sigma**2
    g2 = process.variance_rate(t)
    for eta in (0.0, 0.3, 1.0, 1.7):
        reverse = process.reverse(model, eta)
        base = reverse.drift((level.alpha * mean)[None], t)[0]
        slope = reverse.drift((level.alpha * mean + variance.sqrt())[None], t)[0] - base
        size = (1 + eta**2) * (d_alpha.abs() + level.alpha) + (d_alpha * mean).abs()
        yield Measure(f"mean, eta={eta}", float(((base - d_alpha * mean).abs() / size).max()), 1e-9)
        # time runs down, so the reverse SDE's own noise adds to the variance it takes away
        rate = 2 * slope * variance.sqrt() - eta**2 * g2
        exact = 2 * (level.alpha * d_alpha * width + level.sigma * d_sigma)
        terms = (2 * level.alpha * d_alpha * width).abs() + (2 * level.sigma * d_sigma).abs() + (1 + eta**2) * g2
        yield Measure(f"variance, eta={eta}", float(((rate - exact).abs() / terms).max()), 1e-9)


@PROCESS.states("the exact score of a mixture solves the Fokker-Planck equation", given=_shares(1, 0.05, 0.95))
def fokker_planck(process: Process, case: Shares) -> Iterator[Measure]:
    from sdegen.testing.checks.theorems import fokker_planck_residual

    t = off_knots(process, case.times(process))[0]
    yield fokker_planck_residual(PROBLEMS["three"].data, process, t)


@PROCESS.states(
    "the probability flow is E[velocity | x]: drift = alpha' data + sigma' noise", given=_shares(1, 0.02, 0.98)
)
def probability_flow(process: Process, case: Shares) -> Iterator[Measure]:
    t, model = case.times(process)[0], PROBLEMS["three"].data.score(process)
    level = process.level(t)
    x = torch.tensor([[0.3, -0.2], [1.0, 0.7]], dtype=F64) * torch.hypot(level.alpha, level.sigma)
    drift, velocity = process.probability_flow(model).drift(x, t), model(x, level, "velocity")
    f, g2 = process.rates(t)[0] / level.alpha, process.variance_rate(t)
    size = (f * x).abs().max() + (g2 * model(x, level)).abs().max() + velocity.abs().max()
    yield Measure("distance", float((drift - velocity).abs().max() / size), 1e-9)


@PROCESS.states("prior(seeds, shape) is sigma(t_max) times unit normals, one stream per seed")
def prior(process: Process) -> Iterator[Measure]:
    seeds = noises.seeds(3, 4096)
    x = process.prior(seeds, (3,))
    sigma = float(process.sigma(torch.tensor(process.t_max, dtype=F64)))
    # of 12,288 normals: mean and mean square, each within 6.5 standard deviations, which chance leaves in 1e-10
    z = x.double() / sigma
    yield Measure("mean, in standard deviations", abs(float(z.mean())) * z.numel() ** 0.5, 6.5)
    yield Measure("variance, in standard deviations", abs(float(z.square().mean() - 1)) * (z.numel() / 2) ** 0.5, 6.5)
    part = process.prior(seeds[5:9], (3,))
    yield holds("a row depends on its batch", torch.equal(part, x[5:9]))
    both = process.prior(torch.cat([seeds[:1], seeds[:1]]), (3,))
    yield holds("equal seeds give different rows", torch.equal(both[0], both[1]))


@PROCESS.states("levels of a batch are those of its times one by one", given=_shares(4))
def level_batches(process: Process, case: Shares) -> Iterator[Measure]:
    t = case.times(process)
    together = process.level(t)
    for i in range(len(t)):
        for name, a, b in zip(("t", "alpha", "sigma"), together, process.level(t[i])):
            # vectorised functions may round the last bit otherwise
            yield Measure(f"{name}, relative", float((a[i] - b).abs() / b.abs().clamp(min=1e-300)), 8 * EPS)


@PROCESS.states("levels are float64 whatever the default dtype, and no global generator moves")
def default_dtype(process: Process) -> Iterator[Measure]:
    middle = (process.t_min + process.t_max) / 2
    whole = process.level(middle)
    yield from leaves_alone(lambda: (process.level(middle), process.rates(torch.tensor(middle, dtype=F64))))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        other = process.level(middle)
    finally:
        torch.set_default_dtype(default)
    for a, b in zip(whole, other):
        yield holds("another default dtype changes the level", torch.equal(a, b) and a.dtype == F64)


@PROCESS.states("level, at, rates and kernels read no value on the host")
def no_host_reads(process: Process) -> Iterator[Measure]:
    def use(mode: FakeTensorMode) -> None:
        t = mode.from_tensor(torch.linspace(process.t_min, process.t_max, 3, dtype=F64))
        level = process.level(t)
        process.at(level.lam)
        process.rates(t)
        process.kernel(level, level)
        process.drift(t[:, None], t)
        process.diffusion(t[:, None], t)

    yield host_reads(use)


@PROCESS.states("copies and pickles have the same levels, and equal processes one hash")
def copies(process: Process) -> Iterator[Measure]:
    t = torch.linspace(process.t_min, process.t_max, 5, dtype=F64)
    whole = process.level(t)
    copied, failures = twins(process)
    yield from failures
    for twin in copied:
        yield holds("a copy has other levels", all(torch.equal(a, b) for a, b in zip(twin.level(t), whole)))
        with contextlib.suppress(RuntimeError, TypeError):  # fields that cannot be compared, or a class without a hash
            yield holds("equal processes have different hashes", twin != process or hash(twin) == hash(process))


@PROCESS.states("at t_max almost no data are left: alpha sd / sigma < 0.1 for data of unit size", full=True)
def pure_noise(process: Process) -> Iterator[Measure]:
    level = process.level(process.t_max)
    yield Measure("alpha/sigma at t_max", float(level.alpha / level.sigma), 0.1)


def check_process(
    process: Process,
    *,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check every property of a process: alpha and sigma against rates, drift, diffusion, kernels, levels, paths.

    Options as in `sdegen.testing.report.run`. Raises InvalidTypeError unless `process` is a `Process`, PropertyError if
    a property fails.
    """
    if isinstance(process, type):
        raise InvalidTypeError(f"check_process takes a process, got the class {process.__name__}: make one first")
    if not isinstance(process, Process):
        raise InvalidTypeError(f"check_process takes a Process, got {process!r}; a general SDE goes to check_sde")
    return run(
        PROCESS,
        process,
        f"check_process({process})",
        only=only,
        expected_failed=expected_failed,
        full=full,
        fail_fast=fail_fast,
        raise_on_fail=raise_on_fail,
    )
