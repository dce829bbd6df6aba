r"""Where to put the levels of a plan: equidistribution of the local error, and a search on what a fit would leave.

The density of levels in log-SNR is `(|d^p f/dlam^p| g A)^(1/(p+1))` of the pilots' mean, where a method of order p on
f leaves a local error `h^{p+1} |d^p f/dlam^p| g` and A carries it to the end. Levels that share its integral equally
make all local errors equal. `Residuals` predicts, from the pilots' exact paths alone, what a fitted step leaves.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sdegen.calibration.pilot import F64, Path, angle, norms
from sdegen.grids import spacings

_TABLE = 400
_RIDGE = 1e-6


def karras_lams(n: int, first: Tensor, last: Tensor) -> Tensor:
    """n steps of the grid `karras`, as log-SNRs `[n + 1]`."""
    return _between(
        first, spacings.karras_lams(torch.linspace(0.0, 1.0, n + 1, dtype=F64, device="cpu"), first, last), last
    )


def _between(first: Tensor, lams: Tensor, last: Tensor) -> Tensor:
    """The log-SNRs with exact ends."""
    return torch.cat([first.reshape(1), lams[1:-1], last.reshape(1)])


def interpolate(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The broken line through (xs, ys), xs increasing, at any points; constant outside."""
    right = torch.searchsorted(xs, at.clamp(float(xs[0]), float(xs[-1]))).clamp(1, len(xs) - 1)
    part = ((at - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    return ys[right - 1] + part * (ys[right] - ys[right - 1])


def density(path: Path, kind: str, floor: float) -> Tensor:
    """The density of levels at the path's own `[m]`, of mean 1: 'data' with p = 1, or 'angle' (F) with p = 2.

    Smoothed over three levels; at least `floor` of its maximum, so that no stretch is left without levels.
    """
    p, values = (1, path.data()) if kind == "data" else (2, path.F)
    at, slopes = path.lams, values
    for order in range(1, p + 1):
        gaps = path.lams[order:] - path.lams[:-order]
        slopes = slopes.diff(dim=0) * order / gaps[:, None, None]
        at = (at[1:] + at[:-1]) / 2
    # an error in y shrinks as sd/n towards the end; of F as it enters z, times sd
    carried = path.scale / norms(at, path.scale) if kind == "data" else path.scale * angle(path.scale).pace(at).abs()
    found = (slopes.square().mean((1, 2)).sqrt() * carried) ** (1 / (p + 1))
    found = interpolate(path.lams, at, found)
    padded = torch.cat([found[:1], found, found[-1:]])
    found = torch.stack([padded[:-2], found, padded[2:]]).mean(0)
    found = found.clamp(min=floor * float(found.max()) + 1e-300)
    return found / _area(path.lams, found)[-1] * (path.lams[-1] - path.lams[0])


def blend(path: Path, floor: float) -> Tensor:
    """The mean of both densities `[m]`: what serves several methods."""
    return (density(path, "data", floor) + density(path, "angle", floor)) / 2


def _area(xs: Tensor, ys: Tensor) -> Tensor:
    return torch.cat([xs.new_zeros(1), torch.cumulative_trapezoid(ys, xs)])


def equidistributed(lams: Tensor, weight: Tensor, n: int) -> Tensor:
    """n steps `[n + 1]` that share the integral of a density given at `lams` equally."""
    area = _area(lams, weight)
    found = interpolate(torch.linspace(0.0, 1.0, n + 1, dtype=F64, device="cpu") * area[-1], area, lams)
    return _between(lams[0], found, lams[-1])


class Residuals:
    """What fitted steps on given levels leave, from exact paths alone, in a table of log-SNRs.

    Step k is the least-squares fit of z_{k+1} on z_k and F_0..F_k, all on the exact paths, with every pilot's step
    fitted on the others (from four pilots on). The sum of squares over the steps, root, mean over pilots, in units of y
    at the end, is an indicator, not an error: it knows neither how steps compensate each other nor how F answers to
    errors. All is Gram matrices of what the path keeps, so its cost does not depend on the size of a sample.
    """

    def __init__(self, path: Path) -> None:
        self.lams = torch.linspace(float(path.lams[0]), float(path.lams[-1]), _TABLE, dtype=F64, device="cpu")
        kept = torch.cat([path.z, path.F]).transpose(0, 1)
        forms = torch.cat(path.forms(self.lams))
        self.gram = forms @ (kept @ kept.transpose(1, 2) / kept.shape[2]) @ forms.T
        self.theta = angle(path.scale).tau(self.lams)
        self.scale = path.scale
        self.pilots = kept.shape[0]
        self._known: dict[tuple[int, ...], Tensor] = {}

    def places(self, lams: Tensor) -> Tensor:
        """The places in the table nearest to log-SNRs, all different."""
        part = (lams - self.lams[0]) / (self.lams[-1] - self.lams[0])
        found = (part * (_TABLE - 1)).round().long()
        n = len(found) - 1
        rise = torch.arange(n + 1, device="cpu")
        found = (found - rise).cummax(0).values + rise
        return torch.minimum(found, _TABLE - 1 - n + rise)

    def of(self, lams: Tensor) -> float:
        """The indicator for log-SNRs `[n + 1]`, to the table's resolution."""
        return self(self.places(lams))

    def __call__(self, places: Tensor) -> float:
        """The indicator for levels at places `[n + 1]`."""
        total, key = torch.zeros(self.pilots, dtype=F64, device="cpu"), tuple(places.tolist())
        for k in range(len(places) - 1):
            # a step depends on the levels up to its end alone
            known = self._known.get(key[: k + 2])
            if known is None:
                known = self._known[key[: k + 2]] = self._step(places, k)
            total = total + known
        return float(total.sqrt().mean()) * self.scale

    def _step(self, places: Tensor, k: int) -> Tensor:
        """The mean square, per pilot, that step k leaves."""
        chosen = torch.cat([places[k : k + 1], _TABLE + places[: k + 1], places[k + 1 : k + 2]])
        gram = self.gram[:, chosen[:, None], chosen]
        # what is left to fit: z_{k+1} - z_k - (theta_{k+1} - theta_k) F_k
        rest = torch.zeros(k + 3, dtype=F64, device="cpu")
        rest[0], rest[k + 2] = -1.0, 1.0
        rest[k + 1] = self.theta[places[k]] - self.theta[places[k + 1]]
        across = gram @ rest
        square, across, gram = across @ rest, across[:, :-1], gram[:, :-1, :-1]
        size = gram.diagonal(dim1=1, dim2=2).mean(0).sqrt() + 1e-30
        gram, across = gram / size / size[:, None], across / size
        if self.pilots > 3:
            a, b = (gram.sum(0) - gram) / (self.pilots - 1), (across.sum(0) - across) / (self.pilots - 1)
        else:
            a, b = gram.mean(0).expand_as(gram), across.mean(0).expand_as(across)
        found = torch.linalg.solve_ex(a + _RIDGE * torch.eye(k + 2, dtype=F64, device="cpu"), b)[0]
        left = square + (found * ((gram @ found[..., None])[..., 0] - 2 * across)).sum(1)
        clipped: Tensor = left.clamp(min=0.0)
        return clipped

    def search(self, lams: Tensor, trials: int = 500) -> Tensor:
        """Levels with a smaller indicator: one level moves, or all on one side of it; ever smaller moves."""
        best = self.places(lams).tolist()
        value, moves = self(torch.tensor(best, device="cpu")), _moves(len(best) - 1)
        for size in (16, 8, 4, 2, 1):
            improved = True
            while improved and trials > 0:
                improved = False
                for move, sign in itertools.product(moves, (-1, 1)):
                    new = [place + round(sign * size * part) for place, part in zip(best, move)]
                    if any(b <= a for a, b in itertools.pairwise(new)):
                        continue
                    trials -= 1
                    found = self(torch.tensor(new, device="cpu"))
                    if found < value:
                        best, value, improved = new, found, True
        return _between(lams[0], self.lams[best], lams[-1])


def _moves(n: int) -> list[list[float]]:
    """How far each of n + 1 levels goes when one goes by 1: those before it in proportion, those after it, or none."""
    found = []
    for j in range(1, n):
        before, after = [i / j for i in range(j)], [(n - i) / (n - j) for i in range(j + 1, n + 1)]
        still, last = [0.0] * j, [0.0] * (n - j)
        found += [[*before, 1.0, *last], [*still, 1.0, *after], [*still, 1.0, *last]]
    return found
