r"""Least squares for the weights of a plan, step by step, on the states that the plan itself reaches.

With z_k and F_0..F_k of M pilots in the columns of Phi, the weights of step k are

    argmin_w  sum_m trust_m |z*_{k+1} - Phi w|_m^2 + ridge |S (w - w_0)|^2,

z* the exact path, w_0 the exponential Adams method's weights, S the columns' sizes: a small linear system. The fitted
step's own result is the state from which the next step is taken, so errors made so far are seen and made good. A pilot
that fell to another mode is lost, and would spoil the fit for the others: trust falls with the square of what a pilot
leaves, over a few rounds.

OLSS fits the coefficients of a sampler by least squares too (Duan et al. 2023, arXiv:2305.14677); here they start from
exponential Adams weights, on levels made for the data, and the whole past takes part.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sdegen.calibration.pilot import F64, Path, Probe, combined, follow, norms
from sdegen.calibration.plan import Plan

RIDGE = 1e-6
_ROUNDS = 4


def fitted(probe: Probe, plan: Plan, path: Path) -> tuple[Plan, Tensor]:
    """The plan with fitted weights, and each pilot's error at the end of every step, `[n, M]`.

    One evaluation per pilot and step.
    """
    y = path.starts
    weights, values, kept, errors = torch.zeros_like(plan.weights), [], [], []
    scales, targets = norms(plan.lams, path.scale), path.at(plan.lams)
    for k in range(plan.steps):
        values.append(probe(y, plan.lams[k], path.scale, path.first))
        kept.append(probe.keep(values[-1]))
        phi = torch.stack([probe.keep(y) / scales[k], *kept], 1)
        base = plan.weights[k, : k + 2] / scales[k + 1]
        base = torch.cat([base[:1] * scales[k], base[1:]])
        found = least_squares(phi, targets[k + 1], base, RIDGE)
        weights[k, : k + 2] = found * scales[k + 1]
        weights[k, 0] = weights[k, 0] / scales[k]
        y = combined(weights[k].tolist(), y, values)
        errors.append(distance(probe.keep(y), targets[k + 1] * scales[k + 1]))
    return replace(plan, weights=weights, orders=torch.zeros_like(plan.orders)), torch.stack(errors)


def least_squares(phi: Tensor, target: Tensor, base: Tensor, ridge: float) -> Tensor:
    """The weights `[c]` nearest to `base` that carry phi `[M, c, E]` to target `[M, E]`, in the sense above."""
    size = phi.square().mean((0, 2)).sqrt() + 1e-30
    columns = phi / size[:, None]
    rest = target - torch.einsum("c,mce->me", base, phi)
    gram = columns @ columns.transpose(1, 2) / phi.shape[2]
    across = (columns @ rest[..., None])[..., 0] / phi.shape[2]
    diagonal = ridge * torch.eye(len(base), dtype=F64, device="cpu")
    trust = torch.ones(len(phi), dtype=F64, device="cpu")
    for _ in range(_ROUNDS):
        trust = trust / trust.sum()
        found = torch.linalg.solve(torch.einsum("m,mab->ab", trust, gram) + diagonal, trust @ across)
        left = distance(torch.einsum("c,mce->me", found, columns), rest)
        trust = (left + left.median() + 1e-30) ** -2
    weights: Tensor = base + found / size
    return weights


def tried(probe: Probe, plan: Plan, path: Path) -> Tensor:
    """Each pilot's error at the end of every step of a plan as it is, `[n, P]`; one evaluation per pilot and step."""
    states, _, _ = follow(probe, plan, path.starts, path.scale, first=path.first)
    exact = path.at(plan.lams) * norms(plan.lams, path.scale)[:, None, None]
    return torch.stack([distance(s, z) for s, z in zip(states[1:], exact[1:])])


def distance(y: Tensor, exact: Tensor) -> Tensor:
    """The root mean square over elements, `[P]`."""
    return (y - exact).square().mean(1).sqrt()
