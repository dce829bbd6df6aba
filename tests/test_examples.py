"""The examples run: with few steps always, as they are with the slow tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import sdegen as sd

for needed in ("sklearn", "matplotlib"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}", allow_module_level=True)

FOLDER = Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == ["latents", "ncsn"]


def test_latents(tmp_path, capsys):
    path = tmp_path / "latents.png"
    rows = example("latents").main(steps=3, vae_steps=3, vq_steps=3, nfe=3, count=4, path=str(path))
    assert list(rows) == [
        "real digits",
        *(f"{n}: {w}" for n in ("VAE", "VQ-VAE") for w in ("reconstructions", "samples")),
    ]
    assert all(x.shape == (4, 1, 8, 8) and torch.isfinite(x).all() for x in rows.values())
    assert path.stat().st_size > 5000
    assert "the first sample in codes" in capsys.readouterr().out


def test_ncsn(tmp_path):
    distances = example("ncsn").main(steps=3, langevin=2, count=50, path=str(tmp_path / "ncsn.png"))
    assert list(distances) == ["annealed Langevin, 21 evaluations", "probability flow, 20 evaluations"]
    assert (tmp_path / "ncsn.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_ladder_of_noise_is_sampled_by_langevin_and_by_the_flow(tmp_path):
    """Two sets of 2,000 points are .014 apart; noise alone is .5 from the moons."""
    distances = example("ncsn").main(path=str(tmp_path / "ncsn.png"))
    assert max(distances.values()) < 0.08


@pytest.mark.slow
def test_latent_diffusion_draws_digits(tmp_path):
    """Precision beside the real digits: .69 and .47 were measured, and .09 of the same pixels in another order."""
    module = example("latents")
    rows = module.main(steps=600, count=64, path=str(tmp_path / "latents.png"))
    real = module.digits().flatten(1).double()
    for name in ("VAE", "VQ-VAE"):
        x = rows[f"{name}: samples"].flatten(1).double()
        assert sd.metrics.precision(x, real) > 0.3 > sd.metrics.precision(x.flip(1), real), name
