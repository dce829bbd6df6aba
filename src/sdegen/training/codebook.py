"""Codebooks: discrete data, or latents, as the nearest of K vectors."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief, check_numbers
from sdegen.noise.normals import seeds
from sdegen.tensors import Numbers, check_floating, check_state, check_type, readable, tensor, widen

_AT_ONCE = 1 << 22  # distances, which bounds the memory of a search


class Quantized(NamedTuple):
    """Latents `[B, C, *rest]` rounded to a codebook."""

    values: Tensor
    """The nearest vectors, like the latents, to which gradients pass straight through."""
    codes: Tensor
    """Their numbers in the book, `[B, *rest]` int64."""
    loss: Tensor
    """The commitment loss of each sample, `[B]`: the mean of `|z - sg[nearest]|^2` over its numbers."""


class Codebook(torch.nn.Module):
    """K vectors, to the nearest of which latents are rounded: `code = argmin_k |z - e_k|^2`.

    The vectors are buffers that `update` learns. They are not learned by a gradient, whose loss would need a weight
    beside beta: a Parameter is copied too. Distances are sums of squares in float32 at least, so that a code depends
    on its own latent alone. Discrete data, as tokens `[B, L]`, become `book.embed(tokens)` `[B, C, L]`, the data of a
    diffusion model, and `book(samples).codes` are tokens again.

    Args:
        weights: `[K, C]`, for instance K latents of the data, or `torch.eye(K)` for one-hot codes.

    Raises InvalidTypeError unless weights are of a floating dtype, InvalidArgumentError unless they are finite and K
    and C positive. Source: van den Oord, Vinyals and Kavukcuoglu (2017), eqs. 1 to 3 and appendix A.1.
    """

    weights: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, weights: Numbers) -> None:
        super().__init__()
        given = tensor("weights", weights)
        check_floating(given, "weights")
        if given.ndim != 2 or not given.numel():
            advice = "K and C positive; K codes of one number are weights[:, None]"
            raise InvalidArgumentError(f"weights must be [K, C], got {list(given.shape)}; make {advice}")
        self.register_buffer("weights", widen(given).clone())
        self.register_buffer("counts", self.weights.new_ones(len(given)))  # as if each were the mean of one latent
        self.register_buffer("sums", self.weights.clone())

    def forward(self, z: Tensor) -> Quantized:
        """`Quantized(values, codes, loss)` of latents z `[B, C, *rest]`, `values = z + sg[nearest - z]`.

        The loss is for the encoder, which minimises `error + beta loss`. Raises InvalidTypeError unless z is of a
        floating dtype, InvalidArgumentError unless it is finite with C channels.
        """
        codes = self._nearest(self._rows(z)).reshape(z.shape[:1] + z.shape[2:])
        nearest = self.embed(codes).to(z.dtype)
        loss = (widen(z) - widen(nearest)).square().flatten(1).mean(1)
        return Quantized(nearest + (z - z.detach()), codes, loss)  # in this order they are the book's to the bit

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors `[B, C, *rest]` of codes `[B, *rest]`, in the book's dtype.

        Raises InvalidTypeError unless codes are integers, InvalidArgumentError unless they are in 0 .. K - 1.
        """
        check_type(codes, Tensor, "codes must be a tensor [B, *rest] of integers", "; take book(z).codes")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool or not codes.ndim:
            raise InvalidTypeError(f"codes must be integers [B, *rest], got {brief(codes)}; take book(z).codes")
        low, high = (int(codes.min()), int(codes.max())) if codes.numel() and readable(codes) else (0, 0)
        if low < 0 or high >= len(self.weights):
            must = f"codes must be in 0 .. {len(self.weights) - 1}"
            raise InvalidArgumentError(f"{must}, got {low} .. {high}; make a book of more vectors")
        return self.weights[codes.long()].movedim(-1, 1)

    @torch.no_grad()
    def update(self, z: Tensor, decay: float = 0.99, seed: int = 0, threshold: float = 0.01) -> int:
        """Moves each vector to the mean of the latents nearest to it, and those that no latent uses to latents.

        `counts <- decay counts + (1 - decay) n`, the same for sums, `e = sums / counts` with Laplace-smoothed counts.
        A code of less than `threshold` times the mean count restarts with that count at a latent of this batch, all at
        different ones while there are enough; which, is a function of the seed.

        Args:
            z: latents `[B, C, *rest]`, as for a call.
            decay: in [0, 1).
            seed: a whole number, best another one for each step.
            threshold: in [0, 1); 0 for no restarts.

        Returns how many codes restarted. Raises as a call does, InvalidTypeError unless decay and threshold are
        numbers, and InvalidArgumentError unless they are in range and z has latents.
        Source: van den Oord et al. (2017), appendix A.1; Dhariwal et al. (2020), sec. 3.1, for restarts.
        """
        check_numbers(decay=decay, threshold=threshold)
        seeds(seed, 0)  # so that an unfit seed is an error at once
        rows, K = self._rows(z), len(self.weights)
        if not (0 <= decay < 1 and 0 <= threshold < 1 and len(rows)):
            must, got = "decay and threshold must be in [0, 1) and z not empty", f"{len(rows)} latents"
            raise InvalidArgumentError(f"{must}, got {decay}, {threshold} and {got}; try 0.99 and 0.01")
        codes = self._nearest(rows)
        self.counts.lerp_(codes.bincount(minlength=K).to(self.counts), 1 - decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, rows.to(self.sums)), 1 - decay)
        total = self.counts.sum()
        smooth = (self.counts + 1e-5) * (total / (total + K * 1e-5))  # as in the authors' implementation
        self.weights.copy_(self.sums / smooth[:, None])
        dead = (self.counts < threshold * total / K).nonzero().flatten()
        if len(dead):
            order = seeds(seed, len(rows), device=rows.device).argsort()
            fresh = rows[order.repeat(-(-len(dead) // len(rows)))[: len(dead)]].to(self.weights)
            self.weights[dead], self.counts[dead], self.sums[dead] = fresh, total / K, fresh * (total / K)
        return len(dead)

    def _rows(self, z: Tensor) -> Tensor:
        """Latents as rows `[N, C]`, checked, in the precision of distances."""
        check_state(z, "z", "; look at the encoder that made it")
        C = self.weights.shape[1]
        if z.shape[1] != C:
            raise InvalidArgumentError(f"z must be [B, {C}, *rest] for codes of {C} numbers, got {list(z.shape)}")
        return z.detach().movedim(1, -1).reshape(-1, C).to(widen(self.weights).dtype)

    def _nearest(self, rows: Tensor) -> Tensor:
        book = widen(self.weights)
        exact = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")  # a matrix product rounds more
        parts = torch.split(rows, max(1, _AT_ONCE // len(book)))
        return torch.cat([exact(part, book).argmin(1) for part in parts])
