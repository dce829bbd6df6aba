"""Latents: an autoencoder on the scale of unit noise, and one of diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief, strict_keywords, warn_caller
from sdegen.tensors import Numbers, at_home, check_floating, check_state, check_type, readable, tensor, widen
from sdegen.training.codebook import Codebook, Quantized

__all__ = ["Codebook", "Latent", "Quantized", "from_vae"]

Map = Callable[[Tensor], Tensor]
# Of 16 samples of unit Gaussians the root mean square is off [1/3, 3] in one batch of 200,000 if all numbers of a
# sample are one and the same, and far more rarely if not; a smaller batch can be so by chance.
_SAMPLES = 16
_OWN = "write Latent(encode, decode, mean, std)"


@strict_keywords
@dataclass(frozen=True, eq=False)
class Latent:
    """An autoencoder whose latents are standardised: `z = (encode(x) - mean) / std`, and `decode(z std + mean)` back.

    Both ways are differentiable; data for training are made under `torch.no_grad()`.

    Args:
        encode: a function from x `[B, *S]` to latents `[B, C, *rest]`; None for the identity.
        decode: a function from latents to x; None for the identity: `Latent(None, None, mean, std)` standardises x.
        mean: a number, `[C]` for one per channel, or any shape that broadcasts to the latents.
        std: likewise, positive.

    Raises InvalidTypeError for another type of these, InvalidArgumentError unless they are finite and std positive.
    Source: Rombach et al. (2022), appendices D.1 and G.
    """

    encode: Map | None
    decode: Map | None
    mean: Numbers = 0.0
    std: Numbers = 1.0

    def __post_init__(self) -> None:
        for name in ("encode", "decode"):
            check_type(getattr(self, name), Callable | None, f"{name} must be a function of a tensor, or None")
        for name in ("mean", "std"):  # copies, which no later edit of what was given can reach
            object.__setattr__(self, name, at_home(tensor(name, getattr(self, name))).clone())
        if readable(self.std) and not bool((self.std > 0).all()):
            advice = "leave a channel that never varies out of the latents, or give it 1"
            raise InvalidArgumentError(f"std must be positive, got {float(self.std.min()):g}; {advice}")

    def to(self, x: Tensor) -> Tensor:
        """The standardised latents of data x `[B, *S]`: z `[B, C, *rest]`, in the dtype of the latents.

        It warns of 16 samples or more whose root mean square is outside of [1/3, 3]: mean and std are not theirs.
        Raises InvalidTypeError unless encode returns a tensor of a floating dtype, InvalidArgumentError if that is not
        finite, or mean or std do not fit it.
        """
        latents = _encoded(self.encode, x)
        z = ((widen(latents) - _fit("mean", self.mean, latents)) / _fit("std", self.std, latents)).to(latents.dtype)
        size = float(widen(z.detach()).square().mean().sqrt()) if len(z) >= _SAMPLES and readable(z) else 1.0
        if size < 1 / 3 or size > 3:
            advice = "about 1 is right; measure mean and std by Latent.fit(encode, decode, data)"
            warn_caller(f"(encode(x) - mean) / std has a root mean square of {size:.3g} in this batch, where {advice}")
        return z

    def back(self, z: Tensor) -> Tensor:
        """The data `[B, *S]` of standardised latents z `[B, C, *rest]`; rows that are not finite are left to decode.

        Raises InvalidTypeError unless z is of a floating dtype, InvalidArgumentError if mean or std do not fit it.
        """
        check_floating(z, "z")
        latents = (widen(z) * _fit("std", self.std, z) + _fit("mean", self.mean, z)).to(z.dtype)
        return latents if self.decode is None else self.decode(latents)

    @classmethod
    @torch.no_grad()
    def fit(cls, encode: Map | None, decode: Map | None, data: Tensor | Iterable[Tensor]) -> Latent:
        """A `Latent` with each channel's mean and `std^2 = sum (latent - mean)^2 / N` over samples and positions.

        In float64, batch by batch. A channel that never varies is an error, as any scale for it would be a guess.

        Args:
            encode, decode: as for `Latent`.
            data: `[N, *S]`, or batches of such.

        Raises InvalidTypeError unless data and latents are tensors, the latter floating; InvalidArgumentError for no
        data, NaN or Inf, channels that are constant or of another number in a later batch.
        Source: Chan, Golub and LeVeque (1983), eq. 2.1, for the merge of batches.
        """
        must, advice = "data must be a tensor [N, *S] or batches of such", "; of pairs take (x for x, _ in loader)"
        check_type(data, Iterable, must, advice)
        count, mean, squares = 0, torch.zeros(0), torch.zeros(0)
        for x in torch.split(data, 256) if isinstance(data, Tensor) else data:
            check_type(x, Tensor, must, advice)
            part = at_home(_encoded(encode, x)).transpose(0, 1).flatten(1)
            if not count:
                mean, squares = part.new_zeros(len(part)), part.new_zeros(len(part))
            if len(part) != len(mean):
                raise InvalidArgumentError(f"encode must return as many channels always, got {len(mean)}, {len(part)}")
            if more := part.shape[1]:
                own, count = part.mean(1), count + more
                squares += (part - own[:, None]).square().sum(1) + (own - mean) ** 2 * ((count - more) * more / count)
                mean += (own - mean) * (more / count)
        if not count:
            raise InvalidArgumentError("data must have samples, got none; an iterator is empty once it was read")
        std = (squares / count).sqrt()
        flat = (std <= 1e-12 * mean.abs()).nonzero().flatten().tolist()  # a constant, to the rounding of its mean
        if flat:
            raise InvalidArgumentError(f"channels must vary, {flat[:8]} are constant; leave them out, or {_OWN}")
        return cls(encode, decode, mean, std)


def _encoded(encode: Map | None, x: Tensor) -> Tensor:
    z = x if encode is None else encode(x)
    advice = "; return the latents alone; of a diffusers autoencoder, sd.latents.from_vae(vae) does"
    check_type(z, Tensor, "encode(x) must be a torch.Tensor of a floating dtype", advice)
    check_state(z, "encode(x)", "; look for such values in x and in the encoder's weights")
    return z


def _fit(name: str, value: Tensor, z: Tensor) -> Tensor:
    """A mean or a std in z's working precision, on its device, shaped to broadcast to it."""
    shaped = value.reshape(-1, *(1,) * (z.ndim - 2)) if value.ndim == 1 else value
    if shaped.ndim > z.ndim or any(a not in (1, b) for a, b in zip(shaped.shape[::-1], z.shape[::-1])):
        advice = "give a number, [C] for latents [B, C, *rest], or a shape that broadcasts to theirs"
        raise InvalidArgumentError(f"{name} {list(value.shape)} does not fit latents {list(z.shape)}; {advice}")
    return shaped.to(widen(z).dtype).to(z.device)  # the dtype first, as not every device has float64


def from_vae(vae: Any) -> Latent:
    """A diffusers autoencoder with its own statistics: `z = (latent - mean) scaling / std`, as in diffusers' pipelines.

    mean and std are `latents_mean` and `latents_std` where both are set, else `shift_factor` and 1; what is missing
    or None is 0 or 1. They are in its config, or buffers (LTX). Flux 2 has them in a batch norm over patches of 2 x 2,
    which become channels; RAE standardises by itself. What a pipeline does beside is not in z: Cosmos multiplies by
    the scheduler's `sigma_data`, GLM-Image leaves scaling out. diffusers is not imported.

    Args:
        vae: with `config`, `encode`, which returns `latent_dist` (its mode is taken), `latents` or `latent`, and
            `decode`, which returns `sample`; inputs are cast to its dtype.

    Raises InvalidTypeError if it lacks one of these. Source: Rombach et al. (2022), appendices D.1 and G.
    """
    lacking = [name for name in ("encode", "decode", "config") if not hasattr(vae, name)]
    if lacking:
        raise InvalidTypeError(f"vae must be a diffusers autoencoder, got {brief(vae)} without {lacking}; {_OWN}")
    return Latent(partial(_vae_encode, vae), partial(_vae_decode, vae), *_statistics(vae))


def _statistics(vae: Any) -> tuple[Numbers, Numbers]:
    def read(name: str) -> Any:  # of the module only what its config lacks: diffusers warns of the rest
        return getattr(vae.config if hasattr(vae.config, name) else vae, name, None)

    if hasattr(vae, "_latents_mean"):  # RAE
        return 0.0, 1.0
    if hasattr(vae, "bn"):  # Flux 2
        return vae.bn.running_mean, (vae.bn.running_var + vae.bn.eps).sqrt()
    mean, std, scaling = read("latents_mean"), read("latents_std"), read("scaling_factor") or 1.0
    if mean is None or std is None:
        return read("shift_factor") or 0.0, 1.0 / scaling
    mean, std = at_home(tensor("latents_mean", mean)), at_home(tensor("latents_std", std)) / scaling
    C = read("latent_channels") or len(mean)
    by_frame = len(mean) > C  # Cosmos 1
    return (mean.reshape(C, -1, 1, 1), std.reshape(C, -1, 1, 1)) if by_frame else (mean, std)


def _vae_encode(vae: Any, x: Tensor) -> Tensor:
    found = vae.encode(x.to(getattr(vae, "dtype", x.dtype)))
    dist = getattr(found, "latent_dist", None)
    z: Tensor = getattr(found, "latents", getattr(found, "latent", found)) if dist is None else dist.mode()
    return pixel_unshuffle(z, 2) if hasattr(vae, "bn") else z


def _vae_decode(vae: Any, z: Tensor) -> Tensor:
    z = pixel_shuffle(z, 2) if hasattr(vae, "bn") else z
    found = vae.decode(z.to(getattr(vae, "dtype", z.dtype)))
    x: Tensor = getattr(found, "sample", found)
    check_type(x, Tensor, "vae.decode(z) must have a tensor .sample", f"; {_OWN}")
    return x
