"""The weights of all steps of a grid, beside Gauss-Legendre in numpy, and scipy's and mpmath's quad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import sdegen as sd

STEPS = 20
POINTS, MASSES = np.polynomial.legendre.leggauss(24)
Make = Callable[[], Callable[[], Any]]


@functools.cache
def grid(order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps `h [n]` in log-SNR and the nodes before them `us [n, order]`."""
    lam = sd.VP().level(sd.grids.by_snr(sd.VP(), STEPS + order - 1)).lam
    now = lam[order - 1 : -1]
    return lam[order:] - now, torch.stack([lam[order - 1 - j : len(lam) - 1 - j] - now for j in range(order)], -1)


def ours(order: int) -> np.ndarray:
    """`quadrature`, all steps at once."""
    h, us = grid(order)
    return sd.solvers.quadrature.quadrature(-1.0, h, us)[0].numpy()


def direct(order: int) -> np.ndarray:
    """Gauss-Legendre of each Lagrange polynomial, all steps at once."""
    h, us = (part.numpy() for part in grid(order))
    u = h[:, None] * (1 + POINTS) / 2
    kernel = h[:, None] / 2 * MASSES * np.exp(u - h[:, None])
    return np.stack([(kernel * _lagrange(u, us.T[:, :, None], j)).sum(1) for j in range(order)], 1)


def by_quad(order: int) -> np.ndarray:
    """`scipy.integrate.quad` of each."""
    from scipy.integrate import quad

    return np.array([
        [quad(lambda u, h=h, us=us, j=j: np.exp(u - h) * _lagrange(u, us, j), 0, h)[0] for j in range(order)]
        for h, us in zip(*(part.numpy() for part in grid(order)))
    ])  # fmt: skip


def by_mpmath(order: int) -> np.ndarray:
    """`mpmath.quad` of each."""
    import mpmath

    return np.array([
        [float(mpmath.quad(lambda u, h=h, us=us, j=j: mpmath.exp(u - h) * _lagrange(u, us, j), [0, h])) for j in
         range(order)]
        for h, us in zip(*(part.tolist() for part in grid(order)))
    ])  # fmt: skip


def _lagrange(u: Any, us: Any, j: int) -> Any:
    found = 1.0
    for i in range(len(us)):
        if i != j:
            found = found * ((u - us[i]) / (us[j] - us[i]))
    return found


def checked(run: Callable[[int], np.ndarray], order: int) -> Make:
    """A way, once it has given the same weights."""

    def made() -> Callable[[], Any]:
        np.testing.assert_allclose(run(order), direct(order), rtol=1e-9)
        return lambda: run(order)

    return made


WAYS = {
    "numpy, Gauss-Legendre": direct,
    "sdegen quadrature": ours,
    "scipy.integrate.quad": by_quad,
    "mpmath.quad": by_mpmath,
}
GROUPS: dict[str, dict[str, Make]] = {
    f"quadrature, {STEPS} steps, order {order}": {name: checked(run, order) for name, run in WAYS.items()}
    for order in (1, 3)
}


def test_quadrature(beside: Callable[[], None]) -> None:
    """Whole grids."""
    beside()
