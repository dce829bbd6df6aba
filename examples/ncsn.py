"""Noise-conditional score networks, end to end: a ladder of noise, annealed Langevin dynamics, and the flow beside it.

    python examples/ncsn.py

A network is trained on two moons at ten levels of noise (Song & Ermon 2019, eq. 6), and sampled in two ways: by
annealed Langevin dynamics on that ladder (their algorithm 1), and by the probability flow of the same network, which
is asked between the levels too. It takes about a minute, and needs scikit-learn and matplotlib.
"""

from __future__ import annotations

import torch
from torch import Tensor

import sdegen as sd

LEVELS = 10


def moons(count: int, seed: int = 0) -> Tensor:
    """Two moons `[count, 2]`, of mean 0 and standard deviation 1."""
    from sklearn.datasets import make_moons

    x = torch.as_tensor(make_moons(count, noise=0.05, random_state=seed)[0], dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0)


def train(data: Tensor, steps: int, seed: int = 0) -> sd.ScoreModel:
    """A network of the noise, which is -sigma times the score, trained on the ladder of VE's noise."""
    torch.manual_seed(seed)  # the weights that torch's layers begin with
    process = sd.VE(sigma_min=0.03, sigma_max=5.0)
    model = sd.ScoreModel(process, sd.nets.MLP(2), "noise", time=sd.model.log_sigma_time)
    ladder = sd.losses.Objective(sd.losses.Ladder(LEVELS))  # sd.losses.ncsn, with a name for the number of levels
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    states = sd.train(
        model, sd.Batches(data, 256), loss=ladder, steps=steps, optimizer=optimizer, seed=seed,
        schedule=lambda k: 1 - k / steps,
    )  # fmt: skip
    for state in states:
        if state.step % 500 == 0:
            print(f"step {state.step} of {steps}: loss by level {[round(v, 2) for v in state.by_level.loss.tolist()]}")
    return state.ema


def samples(model: sd.ScoreModel, count: int, langevin: int, seed: int = 0) -> dict[str, Tensor]:
    """Samples `[count, 2]` by caption: annealed Langevin dynamics with some steps a level, and the flow."""
    ladder = sd.grids.by_snr(model.process, LEVELS)  # times whose sigmas are a geometric sequence
    prior = (0.0, 1.0)  # the data's mean and standard deviation: at the largest noise they are still seen
    dynamics = sd.Langevin(snr=0.16, steps=langevin)
    annealed = sd.sample(model, (count, 2), solver=dynamics, grid=ladder, prior=prior, seed=seed)
    flow = sd.sample(model, (count, 2), nfe=20, prior=prior, seed=seed)
    return {
        f"annealed Langevin, {LEVELS * langevin + 1} evaluations": annealed,
        "probability flow, 20 evaluations": flow,
    }


def picture(path: str, rows: dict[str, Tensor]) -> None:
    """A scatter plot `[n, 2]` for each caption."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(rows), figsize=(4 * len(rows), 4), sharex=True, sharey=True)
    for axis, (caption, points) in zip(axes, rows.items()):
        axis.plot(*points.T.numpy(), ".", markersize=2)
        axis.set_title(caption, fontsize=9, loc="left")
        axis.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(steps: int = 2000, langevin: int = 100, count: int = 2000, path: str = "ncsn.png") -> dict[str, float]:
    """Trains, samples, writes the picture.

    Args:
        steps: of the training.
        langevin: steps of Langevin dynamics at each level.
        count: how many samples.
        path: where the picture goes.

    Returns:
        The sliced Wasserstein-2 distance to new data, by caption.
    """
    model = train(moons(8000), steps)
    real = moons(count, seed=1)
    made = samples(model, count, langevin)
    distances = {caption: sd.metrics.sliced_wasserstein(x.double(), real.double()) for caption, x in made.items()}
    for caption, distance in distances.items():
        print(f"{caption}: sliced W2 to new data {distance:.3f}")
    picture(path, {"data": real, **made})
    return distances


if __name__ == "__main__":
    main()
