"""Diffusion on latents, of a VAE and of a VQ-VAE, on scikit-learn's digits: a few minutes on one CPU core.

    python examples/latents.py

The VAE's latents are numbers; the VQ-VAE's are codes, 16 tokens of an alphabet of 64. Codes become vectors by
`Codebook.embed`, a diffusion model is trained on these, and its samples are snapped to the nearest codes: so any
discrete data can be sampled, a sequence of tokens `[B, L]` as vectors `[B, C, L]`.
Needs scikit-learn and matplotlib.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import sdegen as sd

WORDS = (5, 0xFFFFFFFF, 0, 0)  # a name for the VAE's noise, which no step of a solver has


def digits() -> Tensor:
    """The 1,797 images `[N, 1, 8, 8]` in [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1


def encoder(channels: int) -> nn.Sequential:
    """Images `[B, 1, 8, 8]` to `[B, channels, 4, 4]`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(32, channels, 3, padding=1),
    )  # fmt: skip


def decoder(channels: int) -> nn.Sequential:
    """Latents `[B, channels, 4, 4]` to images `[B, 1, 8, 8]`."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )  # fmt: skip


def train_vae(x: Tensor, steps: int, channels: int = 2, weight: float = 3e-3, seed: int = 0) -> sd.latents.Latent:
    """A VAE with a Gaussian posterior `N(mean, std^2)` per latent; its latents are the means."""
    encode, decode = encoder(2 * channels), decoder(channels)
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], 2e-3)
    for step, (batch, _) in zip(range(steps), sd.Batches(x, 128, seed=seed)):
        mean, log_std = encode(batch).chunk(2, 1)
        keys = sd.noise.seeds(seed, len(batch), start=step * len(batch))  # noise of its own for every image and step
        noise = sd.noise.normals(keys, tuple(mean.shape[1:]), WORDS, dtype=mean.dtype)
        kl = (mean**2 + (2 * log_std).exp() - 1).mean() / 2 - log_std.mean()
        loss = mse_loss(decode(mean + log_std.exp() * noise), batch) + weight * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sd.latents.Latent.fit(lambda images: encode(images).chunk(2, 1)[0], decode, x)


def train_vq(
    x: Tensor, steps: int, channels: int = 4, beta: float = 0.25, seed: int = 0
) -> tuple[sd.latents.Latent, sd.latents.Codebook]:
    """A VQ-VAE of 64 codes; its latents are the codes' vectors, and what is decoded is snapped to the nearest first."""
    encode, decode = encoder(channels), decoder(channels)
    with torch.no_grad():
        book = sd.latents.Codebook(encode(x[:4]).movedim(1, -1).reshape(64, channels))  # all latents of four images
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], 2e-3)
    for step, (batch, _) in zip(range(steps), sd.Batches(x, 128, seed=seed)):
        z = encode(batch)
        found = book(z)
        loss = mse_loss(decode(found.values), batch) + beta * found.loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        book.update(z, decay=0.95, seed=step)
    latent = sd.latents.Latent.fit(lambda images: book(encode(images)).values, lambda z: decode(book(z).values), x)
    return latent, book


def diffuse(z: Tensor, steps: int, seed: int = 0) -> sd.ScoreModel:
    """A diffusion model of standardised latents `[N, C, 4, 4]`."""
    net = sd.nets.UNet(z.shape[1], levels=2)
    model = sd.ScoreModel(sd.VP(), net, "edm", time=sd.model.log_sigma_time, sigma_data=1.0)
    states = sd.train(
        model, sd.Batches(z, 128), loss=sd.losses.edm, steps=steps, seed=seed, clip=1.0,
        optimizer=torch.optim.Adam(model.parameters(), 2e-3),
        schedule=lambda k: min(1.0, (k + 1) / 100, 2 - 2 * k / steps),
    )  # fmt: skip
    for state in states:
        if state.step % 500 == 0:
            print(f"step {state.step} of {steps}: loss {state.loss:.3f}")
    return state.ema


def picture(path: str, rows: dict[str, Tensor]) -> None:
    """One row of images `[n, 1, 8, 8]` for each caption."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 1, figsize=(7, 1.1 * len(rows)))
    for axis, (caption, images) in zip(axes, rows.items()):
        sheet = torch.nn.functional.pad(images[:, 0], (0, 1), value=-1.0).permute(1, 0, 2).flatten(1)
        axis.imshow(sheet.numpy(), cmap="gray_r", vmin=-1, vmax=1)
        axis.set_title(caption, fontsize=8, loc="left")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(
    steps: int = 2000,
    vae_steps: int = 600,
    vq_steps: int = 600,
    nfe: int = 20,
    count: int = 12,
    path: str = "latents.png",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Trains both autoencoders, a diffusion model on the latents of each, and writes the picture.

    Args:
        steps: of each diffusion model.
        vae_steps: of the VAE.
        vq_steps: of the VQ-VAE.
        nfe: network evaluations of a sample.
        count: images in a row of the picture.
        path: where it goes.
        seed: of everything.

    Returns:
        The rows of the picture, images `[count, 1, 8, 8]` by caption.
    """
    torch.manual_seed(seed)  # the weights that torch's layers begin with
    x = digits()
    vae = train_vae(x, vae_steps, seed=seed)
    vq, book = train_vq(x, vq_steps, seed=seed)
    rows = {"real digits": x[:count]}
    for name, latent in (("VAE", vae), ("VQ-VAE", vq)):
        with torch.no_grad():
            z = torch.cat([latent.to(part) for part in x.split(256)])
            back = torch.cat([latent.back(part) for part in z.split(256)])
        print(f"{name}: latents {list(z.shape[1:])}, reconstruction error {float(mse_loss(back, x)):.4f}")
        samples = sd.sample(diffuse(z, steps, seed), (count, *z.shape[1:]), nfe=nfe, seed=seed)
        with torch.no_grad():
            rows |= {f"{name}: reconstructions": back[:count], f"{name}: samples": latent.back(samples)}
    vectors = dataclasses.replace(vq, decode=None).back(samples)
    print(f"the first sample in codes: {book(vectors).codes[0].tolist()}")
    picture(path, rows)
    return rows


if __name__ == "__main__":
    main()
