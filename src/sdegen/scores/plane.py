r"""The plane of (data, noise), in which every prediction of a network is a linear form, and so is the state.

A prediction is `p data + q noise`, the state `x = alpha data + sigma noise`:

    data (1, 0)   noise (0, 1)   score (0, -1/sigma)   v (-sigma, alpha)   velocity (alpha', sigma').

Any one with x gives any other, `want = c_x x + c_pred pred`, by one 2x2 solve:

    [alpha p; sigma q] (c_x, c_pred) = (P, Q)   ->   det = alpha q - sigma p,
    c_x = (P q - Q p) / det,   c_pred = (alpha Q - sigma P) / det.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.level import Level, check_level
from sdegen.processes.process import Process

Want = str | tuple[Tensor, Tensor]


def plane(process: Process, level: Level, want: Want) -> tuple[Tensor, Tensor]:
    """The pair `(p, q)`, each `[]` or `[B]`, of a prediction named data, noise, score, v or velocity; a pair is itself.

    Salimans & Ho 2022 for v; Lipman et al. 2022 for the velocity, `alpha' data + sigma' noise`.
    """
    if type(level) is not Level:
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


def edm_pair(level: Level, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The pair `(p, q)` of an EDM network's raw output F, where `data = c_skip y + c_out F`, `y = data + s noise`.

    Source: Karras et al. (2022), table 1, with `s = sigma/alpha`.
    """
    s = level.sigma / level.alpha
    norm = torch.sqrt(s * s + sigma_data**2)
    return s / (sigma_data * norm), -sigma_data / norm


def convert(level: Level, known: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`(c_x, c_pred)` with `want = c_x x + c_pred known`, the 2x2 solve of this module's head."""
    p, q = known
    big_p, big_q = want
    det = level.alpha * q - level.sigma * p
    return (big_p * q - big_q * p) / det, (level.alpha * big_q - level.sigma * big_p) / det
