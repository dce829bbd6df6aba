"""What a user gives to a mixture, checked and turned into float64 tensors and covariance kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level
from sdegen.scores.covariances import Covariances, Diagonal, Isotropic, Weights
from sdegen.scores.low_rank import FactorDiagonal, Spectral
from sdegen.tensors import Numbers, as_time, check_floating, home, numbers, readable, tensor


def log_weights(means: Tensor, weights: Numbers | None) -> Tensor:
    """`log pi` `[K]` of weights of any sum."""
    if weights is None:
        return means.new_zeros(len(means)) - math.log(len(means))
    given = numbers("weights", weights).to(means.device)
    if given.shape != means.shape[:1] or (readable(given) and not bool((given > 0).all())):
        raise InvalidArgumentError(
            f"weights must be [{len(means)}] positive numbers, one per component, got shape {list(given.shape)}"
            + (f" with smallest {float(given.min()):g}" if readable(given) and given.numel() else "")
            + "; leave out components of weight zero"
        )
    return (given.log() - given.log().logsumexp(0)).contiguous()


def covariances(
    means: Tensor, shape: Sequence[int], stds: Numbers | None, covs: Numbers | None, factors: Numbers | None
) -> Covariances:
    """The kind that stands for what was given."""
    if (stds is None) == (covs is None) or (covs is not None and factors is not None):
        given = [name for name, value in (("stds", stds), ("covs", covs), ("factors", factors)) if value is not None]
        raise InvalidArgumentError(
            f"give stds, or covs, or factors with stds (stds=0 for no more than the factors); got {given or 'none'}"
        )
    if covs is not None:
        return Spectral.of_dense(_symmetric(means, covs))
    count, dim = means.shape
    std = numbers("stds", stds).to(means.device)
    if tuple(std.shape) not in ((), (count,), (count, *shape)):
        raise InvalidArgumentError(
            f"stds has shape {list(std.shape)}; it must be [] or [{count}] (isotropic) or {[count, *shape]} (diagonal)"
        )
    if readable(std) and bool((std < 0).any()):
        raise InvalidArgumentError(f"stds must not be negative, got {float(std.min()):g}")
    isotropic = std.ndim <= 1
    variances = std.square().expand(count).contiguous() if isotropic else std.square().reshape(count, dim)
    if factors is None:
        return Isotropic(variances) if isotropic else Diagonal(variances)
    F = numbers("factors", factors).to(means.device)
    if F.ndim != 3 or F.shape[:2] != (count, dim) or F.shape[2] == 0:
        raise InvalidArgumentError(f"factors has shape {list(F.shape)}; it must be [K, D, R] = [{count}, {dim}, R]")
    return Spectral.of_factors(F, variances) if isotropic else FactorDiagonal(F, variances)


def _symmetric(means: Tensor, covs: Numbers) -> Tensor:
    """Symmetric positive semi-definite `[K, D, D]`, within the rounding of the dtype they came in."""
    count, dim = means.shape
    given = tensor("covs", covs)
    tolerance = 16 * dim * torch.finfo(given.dtype if given.dtype.is_floating_point else torch.float64).eps
    C = numbers("covs", given).to(means.device)
    if C.shape != (count, dim, dim):
        raise InvalidArgumentError(
            f"covs has shape {list(C.shape)}; it must be [K, D, D] = {[count, dim, dim]}, D being the number of "
            "elements of one sample"
        )
    if not readable(C):
        return C
    size = C.abs().amax((1, 2))
    skew = (C - C.mT).abs().amax((1, 2))
    if bool((skew > tolerance * size).any()):
        raise InvalidArgumentError(
            f"covs must be symmetric; they differ from their transposes by {float(skew.max()):g}"
        )
    C = (C + C.mT) / 2
    lowest = torch.linalg.eigvalsh(C)[:, 0]
    if bool((lowest < -tolerance * size).any()):
        raise InvalidArgumentError(
            f"covs must be positive semi-definite; component {int((lowest / size).argmin())} has the eigenvalue "
            f"{float(lowest[(lowest / size).argmin()]):g}"
        )
    return C


def observation(means: Tensor, y: Numbers, A: Numbers, noise_std: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    """y `[M]`, A `[M, D]` and the noise's stds `[M]`."""
    values = [numbers(name, v).to(means.device) for name, v in (("y", y), ("A", A), ("noise_std", noise_std))]
    seen, matrix, n = values[0].reshape(-1), values[1], values[2]
    if matrix.shape != (len(seen), means.shape[1]) or len(seen) == 0:
        raise InvalidArgumentError(
            f"A has shape {list(matrix.shape)}; for y of {len(seen)} elements it must be [M, D] = "
            f"[{len(seen)}, {means.shape[1]}], with M >= 1"
        )
    if n.shape not in ((), seen.shape) or bool((n < 0).any()):
        raise InvalidArgumentError(
            f"noise_std must be [] or [{len(seen)}] and not negative, got shape {list(n.shape)} and smallest "
            f"{float(n.min()):g}"
        )
    return seen, matrix, n.expand(len(seen))


def state(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x `[B, *S]` of a floating dtype as `[B, D]`, contiguous (sums take their order from the layout), in float64."""
    if type(x) is not Tensor or not x.is_floating_point():
        check_floating(x)
    if x.ndim == 0 or x.shape[1:] != shape:
        raise InvalidArgumentError(f"x has shape {list(x.shape)}; this mixture takes [B, *S] with S = {list(shape)}")
    there = x.device if x.is_meta else home(x.device)
    return x.reshape(x.shape[0], math.prod(shape)).to(there).to(torch.float64).contiguous()


def weights(x: Tensor, level: Level, p: Tensor, q: Tensor) -> Weights:
    """The scalars of a prediction `p data + q noise` at a level, each `[]` or one for each row of x."""
    values = [as_time(v) for v in (level.alpha, level.sigma, p, q)]
    for value in values:
        if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, x.shape[0])):
            raise InvalidArgumentError(
                f"a level or weight of shape {list(value.shape)} met x of shape {list(x.shape)}; it must be [] or "
                f"[{x.shape[0]}]"
            )
    return Weights(*values)
