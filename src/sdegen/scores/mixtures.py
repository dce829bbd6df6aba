r"""Gaussian mixtures, whose score, density, posterior and samples are exact at every level of every process.

If `data ~ sum_k pi_k N(m_k, Sigma_k)` then `x = alpha data + sigma noise` is the mixture of `N(alpha m_k, C_k)`,
`C_k = alpha^2 Sigma_k + sigma^2 I`. With `r_k = x - alpha m_k`, `w_k = softmax_k(log pi_k + log N(x; alpha m_k, C_k))`,

    E[p data + q noise | x] = sum_k w_k [p m_k + (p alpha Sigma_k + q sigma I) C_k^-1 r_k]

is every prediction at once: (1, 0) is the denoiser, (0, -1/sigma) the score. Data points are components without width,
so a training set's exact score is the same formula. Given `y = A data + n * noise`, each component is conditioned as a
Gaussian and weighted by its evidence `N(y; A m_k, A Sigma_k A^T + n^2 I)`. For one component the probability flow is
`x_next = alpha_next m + C_next^(1/2) C_now^(-1/2) (x - alpha_now m)`.

Everything is float64 inside, whatever the dtype of x.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from sdegen import noise as noises
from sdegen.errors import InvalidArgumentError, strict_keywords
from sdegen.level import Level
from sdegen.processes.linear import LinearSDE
from sdegen.processes.process import Process
from sdegen.scores import inputs
from sdegen.scores.covariances import Covariances, Weights
from sdegen.scores.linear import LinearScore
from sdegen.scores.low_rank import Spectral, condition
from sdegen.scores.model import ScoreModel, Want, plane
from sdegen.tensors import Numbers, numbers, readable, tensor, widen

Mixture = TypeVar("Mixture", bound="GaussianMixture")

# Streams of noise: as the high word of a float64 time the second word is a NaN, so no step of a solver has them.
_CHOICE, _DATA, _NOISE = ((stream, 0xFFFFFFFF, 0, 0) for stream in range(3))


@strict_keywords
class GaussianMixture:
    """A mixture of K Gaussians on samples of shape S (D elements, row-major), `sum_k pi_k N(m_k, Sigma_k)`.

    It is float64 on the device of the means, immutable, and follows x to other devices.

    Args:
        means: `[K, *S]`.
        stds: `[]` or `[K]` (isotropic) or `[K, *S]` (diagonal); zero is allowed, `empirical` is short for it.
        covs: `[K, D, D]`, symmetric positive semi-definite, in place of stds.
        factors: `[K, D, R]`, together with stds: `Sigma_k = F_k F_k^T + diag(stds_k^2)`.
        weights: `[K]`, positive, of any sum; equal by default.

    Raises InvalidTypeError for what is not real numbers; InvalidArgumentError for wrong shapes, numbers that are not
    finite, negative stds, weights that are not positive, covariances that are not symmetric positive semi-definite.
    """

    def __init__(
        self,
        means: Numbers,
        *,
        stds: Numbers | None = None,
        covs: Numbers | None = None,
        factors: Numbers | None = None,
        weights: Numbers | None = None,
    ) -> None:
        centres = numbers("means", means)
        if centres.ndim < 1 or centres.numel() == 0:
            raise InvalidArgumentError(f"means must be [K, *S], at least one component, got {list(centres.shape)}")
        self._shape = centres.shape[1:]
        self._means = centres.reshape(len(centres), -1)
        self._kind = inputs.covariances(self._means, self._shape, stds, covs, factors)
        self._log_weights = inputs.log_weights(self._means, weights)
        self._copies: dict[torch.device, GaussianMixture] = {}

    @staticmethod
    def empirical(data: Numbers, weights: Numbers | None = None) -> GaussianMixture:
        """The law of a training set, data `[N, *S]`: its score is the exact minimiser of denoising score matching.

        `score(x) = sum_i w_i(x) (alpha data_i - x) / sigma^2` (Karras et al. 2022, app. B.3).
        """
        return GaussianMixture(data, stds=0.0, weights=weights)

    @property
    def shape(self) -> torch.Size:
        """S, the shape of a sample."""
        return self._shape

    @property
    def means(self) -> Tensor:
        """The components' means `[K, *S]`, float64."""
        return self._means.reshape(-1, *self._shape)

    @property
    def weights(self) -> Tensor:
        """The components' weights `[K]`, float64, of sum 1."""
        return self._log_weights.exp()

    @property
    def covariances(self) -> Covariances:
        """The components' covariances, as they are stored."""
        return self._kind

    def __len__(self) -> int:
        return len(self._means)

    def __repr__(self) -> str:
        kind = type(self._kind).__name__
        return f"{type(self).__name__}({len(self)} components of shape {list(self._shape)}, {kind})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}

    def _with(self: Mixture, means: Tensor, kind: Covariances, logits: Tensor) -> Mixture:
        other = copy.copy(self)
        other._means, other._kind, other._copies = means, kind, {}
        logits = logits - logits.amax()  # or else weights far from 0 in their logarithm lose digits of their sum
        other._log_weights = logits - logits.logsumexp(0)
        return other

    def to(self: Mixture, device: torch.device | str) -> Mixture:
        """The same mixture on another device (calls with an x elsewhere do this by themselves, once per device)."""
        device = torch.device(device)
        if device == self._means.device:
            return self
        found: Any = self._copies.get(device)
        if found is None:
            found = self._with(self._means.to(device), self._kind.map(lambda v: v.to(device)), self._log_weights)
            found._log_weights = self._log_weights.to(device)
            if readable(found._means):  # never keep a tensor that is being traced
                self._copies[device] = found
        return found  # type: ignore[no-any-return]

    @overload
    def score(self, sde: Process) -> ScoreModel: ...
    @overload
    def score(self, sde: LinearSDE) -> LinearScore: ...
    def score(self, sde: Process | LinearSDE) -> ScoreModel | LinearScore:
        """The exact score under `sde`, of the law that is this mixture at t_min.

        Under a `Process` it is a score model, any prediction directly from the components: `E[p data + q noise | x]`
        as in this module's head; it can be pickled, copied, compiled and differentiated. Under a `LinearSDE` it is a
        callable `(x, t)` for `sde.reverse`. Raises InvalidTypeError for any other SDE.
        """
        return LinearScore(sde, self) if isinstance(sde, LinearSDE) else MixtureScore(sde, self)

    def through(self, step: Tensor, spread: Tensor) -> GaussianMixture:
        """The law of `step x + N(0, spread)`, with full covariances; step and spread `[D, D]`, float64."""
        means, covs = self._means @ step.mT, step @ self.dense() @ step.mT + spread
        return GaussianMixture(means.reshape(-1, *self._shape), covs=covs, weights=self.weights)

    def beside(self, variance: float) -> GaussianMixture:
        """The joint law `[2, *S]` of x and of independent `N(0, variance)` of the same shape."""
        means, covs = torch.stack([self.means, torch.zeros_like(self.means)], 1), self.dense()
        if self._kind.aligned:
            own = covs.diagonal(dim1=-2, dim2=-1)
            stds = torch.stack([own, torch.full_like(own, variance)], 1).sqrt()
            return GaussianMixture(means, stds=stds.reshape(means.shape), weights=self.weights)
        other = variance * torch.eye(covs.shape[1], dtype=torch.float64, device="cpu")
        joint = torch.stack([torch.block_diag(own, other) for own in covs])  # type: ignore[no-untyped-call]
        return GaussianMixture(means, covs=joint, weights=self.weights)

    def dense(self) -> Tensor:
        """The components' covariances as matrices `[K, D, D]`."""
        return self._kind.dense(*self._means.shape)

    def predict(self, x: Tensor, level: Level, p: Tensor, q: Tensor) -> Tensor:
        """`E[p data + q noise | x]` `[B, *S]` at x `[B, *S]`, level, p and q `[]` or `[B]`.

        The result has x's dtype (float32 for half precision). Raises InvalidArgumentError on an x of another shape.
        """
        here, flat = self._enter(x)
        at = inputs.weights(x, level, p, q)

        def mean(part: Tensor, some: Weights) -> Tensor:
            logits, seen = here._seen(part, some)
            return here._kind.combine(seen, part, here._means, logits.softmax(-1), some)

        return here._kind.by_chunks(flat, at, mean).reshape(x.shape).to(widen(x).dtype).to(x.device)

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        """The posterior mean `E[data | x]` `[B, *S]`, level `[]` or `[B]`: Tweedie's formula (Efron 2011)."""
        one = torch.ones_like(level.alpha)
        return self.predict(x, level, one, torch.zeros_like(one))

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """`log p(x)` `[B]` in float64, of x `[B, *S]` at a level `[]` or `[B]`; of the data themselves by default.

        Raises InvalidArgumentError on an x of another shape, and without a level where a covariance is singular.
        """
        here, flat = self._enter(x)
        if level is None:
            if readable(here._means) and bool(here._kind.singular):
                raise InvalidArgumentError(
                    f"{self!r} has no density: a covariance is singular (or stds are zero); give a level or other stds"
                )
            one = torch.ones((), dtype=torch.float64, device="cpu")
            level = Level(0 * one, one, 0 * one)
        at = inputs.weights(x, level, level.alpha, level.sigma)
        logits = here._kind.by_chunks(flat, at, lambda part, some: here._seen(part, some)[0])
        top = logits.detach().amax(-1, keepdim=True)  # so that the weights in the gradient add up to 1
        return (logits - top).logsumexp(-1) + top.squeeze(-1)

    def posterior_cov(self, x: Tensor, level: Level) -> Tensor:
        """The covariance `[B, D, D]` of the data given x `[B, *S]` at a level `[]` or `[B]`.

        `sum_k w_k [S_k + (d_k - d)(d_k - d)^T]`, `S_k = sigma^2 Sigma_k C_k^-1`, with `d_k` the components' posterior
        means and d the mixture's; it is `sigma^2/alpha` times the Jacobian of `denoise`. Memory is B D^2.
        """
        here, flat = self._enter(x)
        one = torch.ones_like(level.alpha)
        at = inputs.weights(x, level, one, 0 * one)
        w = here._kind.by_chunks(flat, at, lambda part, some: here._seen(part, some)[0]).softmax(-1)
        mean = here.predict(flat.reshape(x.shape), level, at.p, at.q).flatten(1)
        total = flat.new_zeros(*flat.shape, flat.shape[1])
        for k in range(len(here)):
            alone = here._only(k)
            away = alone.predict(flat.reshape(x.shape), level, at.p, at.q).flatten(1) - mean
            spread = away[:, :, None] * away[:, None, :]
            total = total + w[:, k, None, None] * (alone._own_cov(len(flat), at) + spread)
        return total.to(widen(x).dtype)

    def sample(
        self, n: int, *, seed: int | Tensor = 0, level: Level | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """n samples `[n, *S]` at a level `[]` or `[n]`, of the data by default; sample i depends on `(seed, i)` alone.

        `alpha (m_k + Sigma_k^(1/2) z) + sigma z'`, k by inversion of the weights' sum; seed may be int64 seeds `[n]`.
        Raises InvalidTypeError and InvalidArgumentError on an n or seed that is not a whole number in range.
        """
        device = self._means.device
        seeds = seed.to(device) if torch.is_tensor(seed) else noises.seeds(seed, n, device=device)
        dim = self._means.shape[1]
        high, low, _, _ = noises.philox(noises.halves(seeds), _CHOICE)
        uniform = ((high >> 5).double() * 2.0**26 + (low >> 6) + 0.5) * 2.0**-53
        edges = self.weights.cumsum(0)
        index = torch.searchsorted(edges / edges[-1], uniform).clamp(max=len(self) - 1)
        z = noises.normals(seeds, (self._kind.noises(dim),), _DATA, dtype=torch.float64)
        x = self._means[index] + self._kind.draw(index, z)
        if level is not None:
            at = inputs.weights(x, level, level.alpha, level.sigma).columns(1)
            x = at.alpha * x + at.sigma * noises.normals(seeds, (dim,), _NOISE, dtype=torch.float64)
        return x.reshape(n, *self._shape).to(dtype)

    def mean(self) -> Tensor:
        """The mean `sum_k pi_k m_k` `[*S]`."""
        return (self.weights @ self._means).reshape(self._shape)

    def cov(self) -> Tensor:
        """The covariance `sum_k pi_k [Sigma_k + (m_k - m)(m_k - m)^T]` `[D, D]`."""
        w = self.weights
        away = self._means - w @ self._means
        return self._kind.average(w, self._means.shape[1]) + (w[:, None] * away).T @ away

    def marginal(self: Mixture, level: Level) -> Mixture:
        """The law of `x = alpha data + sigma noise` at one level `[]`, itself a mixture.

        Raises InvalidArgumentError on a level of several rows.
        """
        if level.alpha.numel() != 1 or level.sigma.numel() != 1:
            raise InvalidArgumentError("marginal() takes one level; take the levels of a batch one at a time")
        alpha, sigma = (v.reshape(()).to(self._means) for v in (level.alpha, level.sigma))
        return self._with(alpha * self._means, self._kind.marginal(alpha, sigma), self._log_weights)

    def posterior(self: Mixture, y: Numbers, A: Numbers, noise_std: Numbers) -> Mixture:
        """The law of the data given `y = A data + noise_std * noise` (Bishop 2006, sec. 2.3.3).

        Each component is conditioned as a Gaussian and weighted by its evidence, through singular values of
        `A Sigma_k^(1/2) / noise_std`, so that covariances stay positive and small noises keep their digits. Isotropic
        and low-rank-plus-isotropic components stay so; others cost a D x D matrix and decomposition each.

        y: M numbers; A: `[M, D]`; noise_std: `[]` or `[M]`, zero where `A Sigma_k A^T` is not singular. Raises
        InvalidArgumentError for wrong shapes, numbers that are not finite, a negative noise_std, and exact observations
        that some component rules out.
        """
        seen, matrix, n = inputs.observation(self._means, y, A, noise_std)
        exact = n == 0
        unit = 0.0 if bool(exact.all()) else 1.0
        if unit and bool(exact.any()):  # first what is known exactly, then the rest
            first = self.posterior(seen[exact], matrix[exact], 0.0)
            return first.posterior(seen[~exact], matrix[~exact], n[~exact])
        scale = n if unit else torch.ones_like(n)
        v, matrix = (seen - self._means @ matrix.T) / scale, matrix / scale[:, None]
        if unit and self._kind.points:
            return self._with(self._means, self._kind, self._log_weights - (v * v).sum(-1) / 2)
        move, kind, evidence = condition(Spectral(*self._kind.eigen(matrix.shape[1])), v, matrix, unit)
        return self._with(self._means + move, kind, self._log_weights + evidence)

    def _enter(self: Mixture, x: Tensor) -> tuple[Mixture, Tensor]:
        """The mixture on x's device, and x `[B, *S]` as `[B, D]` in float64."""
        flat = inputs.state(x, self._shape)
        return self.to(flat.device), flat

    def _seen(self, flat: Tensor, at: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`log pi_k + log N(x; alpha m_k, C_k)` `[B, K]`, and what `Covariances.combine` takes as `seen`."""
        density, seen = self._kind.log_density(flat, self._means, at)
        return self._log_weights + density, seen

    def _only(self, k: int) -> GaussianMixture:
        """Component k alone."""
        part = slice(k, k + 1)
        return self._with(self._means[part], self._kind.map(lambda v: v[part]), self._log_weights[part])

    def _own_cov(self, count: int, at: Weights) -> Tensor:
        """`sigma^2/alpha` times the gain of component 0, `[D, D]`, or `[B, D, D]` at a level per row."""
        dim = self._means.shape[1]
        basis = torch.eye(dim, dtype=self._means.dtype, device=self._means.device)
        if any(v.ndim for v in at):
            at = Weights(*((v + self._means.new_zeros(count)).repeat_interleave(dim) for v in at))
            basis = basis.repeat(count, 1)
        origin = self._with(torch.zeros_like(self._means), self._kind, self._log_weights)
        level = Level(at.alpha, at.alpha, at.sigma)
        scaled = origin.predict(basis.reshape(-1, *self._shape), level, at.p * at.sigma * at.sigma / at.alpha, at.q)
        own = scaled.reshape(-1, dim, dim) if at.alpha.ndim else scaled.reshape(dim, dim)
        return (own + own.mT) / 2


@strict_keywords
class Gaussian(GaussianMixture):
    """One Gaussian `N(mean, Sigma)` on samples of shape S (D elements), for which the probability flow is explicit.

    mean `[*S]`, and std `[]` or `[*S]`, or cov `[D, D]`, or factor `[D, R]` with std: as in a `GaussianMixture`.
    """

    def __init__(
        self, mean: Numbers, *, std: Numbers | None = None, cov: Numbers | None = None, factor: Numbers | None = None
    ) -> None:
        given = {"mean": mean, "std": std, "cov": cov, "factor": factor}
        ones = [None if value is None else tensor(name, value)[None] for name, value in given.items()]
        super().__init__(ones[0], stds=ones[1], covs=ones[2], factors=ones[3])

    def flow(self, x: Tensor, now: Level, next: Level) -> Tensor:
        """The exact probability-flow map of x `[B, *S]` between two levels `[]` or `[B]`, either way.

        `alpha_next m + C_next^(1/2) C_now^(-1/2) (x - alpha_now m)`. Source: the linear flow of Song et al. 2021,
        eq. 13, solved in the eigenbasis, where `(x - alpha m)/sqrt(alpha^2 e + sigma^2)` is constant.
        """
        here, flat = self._enter(x)
        a, b = inputs.weights(x, now, now.alpha, now.sigma), inputs.weights(x, next, next.alpha, next.sigma)
        r = flat - a.columns(1).alpha * here._means
        y = b.columns(1).alpha * here._means + here._kind.transport(r, a, b)
        return y.reshape(x.shape).to(widen(x).dtype)


class MixtureScore(ScoreModel):
    """The exact score model of a mixture under a process; made by `GaussianMixture.score`."""

    linear = False
    exact = True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the mixture lies."""
        return self.mixture.means.device

    def __init__(self, process: Process, mixture: GaussianMixture) -> None:
        super().__init__(process, functools.partial(_score_net, process, mixture), "score")
        self.mixture = mixture

    def __call__(self, x: Tensor, level: Level, want: Want = "score") -> Tensor:
        """The exact prediction `want` `[B, *S]` (a name, or a pair `(p, q)`) at x `[B, *S]`, level `[]` or `[B]`."""
        return self.mixture.predict(x, level, *plane(self.process, level, want))

    def __repr__(self) -> str:
        return f"{self.mixture!r}.score({self.process})"


def _score_net(process: Process, mixture: GaussianMixture, x: Tensor, time: Tensor) -> Tensor:
    level = process.level(time)
    return mixture.predict(x, level, *plane(process, level, "score")).to(x.dtype)
