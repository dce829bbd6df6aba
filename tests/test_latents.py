"""Standardised latents against numpy and diffusers, and the codebook against brute force."""

from __future__ import annotations

import copy
import types
import warnings

import numpy as np
import pytest
import torch

from sdegen.errors import InvalidArgumentError, InvalidTypeError
from sdegen.noise import normals, seeds
from sdegen.training import codebook
from sdegen.training.latents import Codebook, Latent, from_vae

F64 = torch.float64


def gauss(*shape, seed=0, dtype=torch.float32):
    return normals(seeds(seed, shape[0]), shape[1:], (1, 2, 3, 4), dtype=dtype)


def spread(*shape, seed=0, dtype=torch.float32):
    """Data whose channels, in dimension 1, differ in mean and in scale."""
    ramp = torch.arange(1.0, shape[1] + 1, dtype=dtype).reshape(-1, *(1,) * (len(shape) - 2))
    return 3 * ramp + ramp.sqrt() * gauss(*shape, seed=seed, dtype=dtype)


def moments(z):
    """Each channel's mean and standard deviation, by numpy."""
    flat = np.moveaxis(z.double().numpy(), 1, 0).reshape(z.shape[1], -1)
    return flat.mean(1), flat.std(1)


# Latent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_identity_comes_back_to_the_bit(dtype):
    x = gauss(20, 3, 4, 4).to(dtype)
    latent = Latent(None, None)
    assert torch.equal(latent.to(x), x)
    assert torch.equal(latent.back(latent.to(x)), x)
    assert latent.back(x).dtype == dtype


@pytest.mark.parametrize("shape", [(30, 3), (30, 3, 5), (9, 3, 4, 5), (5, 3, 2, 2, 3)])
def test_numbers_and_channels_standardise_by_the_formula(shape):
    x, mean, std = spread(*shape, dtype=F64), torch.tensor([3.0, 6.0, 9.0]), torch.tensor([1.0, 2.0, 4.0])
    latent = Latent(lambda y: 2 * y, lambda y: y / 2, 2 * mean, std)
    each = latent.to(x)
    for c in range(3):
        torch.testing.assert_close(each[:, c], (2 * x[:, c] - 2 * mean[c]) / std[c])
    torch.testing.assert_close(latent.back(each), x)
    one = Latent(None, None, 6.0, 3)
    torch.testing.assert_close(one.to(x), (x - 6) / 3)
    torch.testing.assert_close(one.back(one.to(x)), x)


def test_any_shape_that_broadcasts():
    x = gauss(8, 3, 4, 5)
    for shape in [(), (1,), (3,), (3, 1, 1), (4, 5), (3, 4, 5), (1, 3, 4, 1), (1, 1, 5)]:
        mean = gauss(1, *shape, seed=4)[0]
        wide = mean.reshape(3, 1, 1) if shape == (3,) else mean
        torch.testing.assert_close(Latent(None, None, mean, 2.0).to(x), (x - wide) / 2)


def test_half_precision_is_standardised_in_float32():
    x = (1000 + gauss(40, 2, 8)).to(torch.float16)
    latent = Latent(None, None, 1000.0, 1e-8)
    with pytest.warns(UserWarning, match="root mean square"):
        z = latent.to((1000 + torch.zeros(40, 2)).half() + 1)
    assert z.dtype == torch.float16
    assert z.isinf().all()  # of 1e8, which float16 does not have; 0/0 would be NaN
    latent = Latent(None, None, 999.9, 0.7)
    assert torch.equal(latent.to(x), ((x.float() - 999.9) / 0.7).half())  # rounded once
    assert torch.equal(latent.back(latent.to(x)), (latent.to(x).float() * 0.7 + 999.9).half())


def test_gradients_go_both_ways():
    layer = torch.nn.Linear(3, 3).double()
    latent = Latent(layer, lambda z: z**3, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.5, 2.0]))
    z = gauss(4, 3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(latent.back, z)
    assert torch.autograd.gradcheck(latent.to, z)
    latent.to(z).sum().backward()
    assert layer.weight.grad is not None


def test_statistics_are_copies():
    mean = torch.ones(3, dtype=F64)
    latent = Latent(None, None, mean)
    mean += 5
    assert latent.mean.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(700, 3), (50, 2, 7), (300, 4, 3, 2), (6, 2, 3, 2, 2)])
def test_fit_has_the_moments_of_numpy(shape):
    x = spread(*shape)
    expected = moments(x * 2)
    pieces = [x[:1], x[1:1], x[1:4], x[4:]]
    for data in (x, pieces, iter(pieces), [x]):
        latent = Latent.fit(lambda y: y * 2, None, data)
        np.testing.assert_allclose(latent.mean.numpy(), expected[0], rtol=1e-13)
        np.testing.assert_allclose(latent.std.numpy(), expected[1], rtol=1e-12)
        assert latent.mean.dtype == F64
    z = latent.to(x)
    np.testing.assert_allclose(moments(z), [[0] * shape[1], [1] * shape[1]], atol=1e-5)


def test_fit_merges_soundly_far_from_zero():
    x = 1e8 + gauss(900, 2, dtype=F64)
    latent = Latent.fit(None, None, list(x.split(7)))
    np.testing.assert_allclose(latent.std.numpy(), moments(x)[1], rtol=1e-8)  # sums of squares would lose all digits


def test_fit_keeps_no_graph():
    layer, able = torch.nn.Linear(3, 3), []
    latent = Latent.fit(lambda x: able.append(torch.is_grad_enabled()) or layer(x), None, gauss(20, 3))
    assert able == [False]
    assert not latent.mean.requires_grad
    latent.to(gauss(20, 3)).sum().backward()
    assert able == [False, True]


@pytest.mark.parametrize(
    ("scale", "shift", "warned"), [(1, 0, 0), (0.4, 0, 0), (2.5, 0, 0), (4, 0, 1), (0.2, 0, 1), (1, 5, 1)]
)
def test_warning_when_off_scale(scale, shift, warned):
    x = shift + scale * gauss(16, 2, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Latent(None, None).to(x)
        Latent(None, None).to(x[:15])  # too few samples to tell
    assert len(caught) == warned
    assert all(w.filename == __file__ and "Latent.fit" in str(w.message) for w in caught)


def test_ordinary_batches_never_warn():
    for seed in range(300):  # the worst case: one number per sample
        Latent(None, None).to(gauss(16, 1, seed=seed))


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (lambda: Latent(3, None), InvalidTypeError, "encode must be a function"),
        (lambda: Latent(None, "x"), InvalidTypeError, "decode must be a function"),
        (lambda: Latent(None, None, "x"), InvalidTypeError, "mean must be a tensor"),
        (lambda: Latent(None, None, 0.0, 1j), InvalidTypeError, "std must be"),
        (lambda: Latent(None, None, torch.tensor([0.0, torch.nan])), InvalidArgumentError, "mean must be finite"),
        (lambda: Latent(None, None, 0.0, 0.0), InvalidArgumentError, "std must be positive, got 0"),
        (lambda: Latent(None, None, 0.0, [1.0, -2.0]), InvalidArgumentError, "std must be positive, got -2"),
        (lambda: Latent(None, None, std=float("inf")), InvalidArgumentError, "std must be finite"),
        (lambda: Latent(None, None, mu=1), InvalidTypeError, "unknown keyword 'mu'"),
    ],
)
def test_errors_of_a_latent(made, error, words):
    with pytest.raises(error, match=words):
        made()


@pytest.mark.parametrize(
    ("encode", "error", "words"),
    [
        (lambda x: (x,), InvalidTypeError, r"encode\(x\) must be a torch.Tensor.*got.*from_vae"),
        (lambda x: None, InvalidTypeError, "got None"),
        (lambda x: x.long(), InvalidTypeError, "floating dtype.*got torch.int64"),
        (lambda x: torch.complex(x, x), InvalidTypeError, "view_as_real"),
        (lambda x: x[:, 0, 0], InvalidArgumentError, r"must be \[B, \*S\]"),
        (lambda x: x / 0, InvalidArgumentError, r"NaN or Inf in rows \[0, 1, 2.*encoder's weights"),
        (lambda x: x[:, :2], InvalidArgumentError, r"mean \[3\] does not fit latents \[20, 2, 4\]; give"),
    ],
)
def test_errors_of_encode(encode, error, words):
    with pytest.raises(error, match=words):
        Latent(encode, None, torch.zeros(3)).to(gauss(20, 3, 4))
    if "fit" not in words:
        with pytest.raises(error, match=words):
            Latent.fit(encode, None, gauss(20, 3, 4))


@pytest.mark.parametrize("shape", [(2,), (4, 1), (1, 1, 1, 1), (5, 3, 4)])
def test_statistics_that_do_not_fit(shape):
    latent = Latent(None, None, std=torch.ones(shape))
    for call in (latent.to, latent.back):
        with pytest.raises(InvalidArgumentError, match=r"std .* does not fit latents"):
            call(gauss(20, 3, 4))


def test_errors_of_back():
    with pytest.raises(InvalidTypeError, match="z must be of a floating dtype"):
        Latent(None, None).back(torch.ones(3, 3, dtype=torch.int64))
    bad = gauss(3, 2)
    bad[1] = torch.nan
    assert torch.equal(Latent(None, None).back(bad)[[0, 2]], bad[[0, 2]])  # one bad row touches no other


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (3, InvalidTypeError, "data must be a tensor"),
        ([(gauss(3, 2), torch.zeros(3))], InvalidTypeError, "for x, _ in loader"),
        ([], InvalidArgumentError, "got none"),
        (torch.zeros(0, 3), InvalidArgumentError, "got none"),
        ([gauss(3, 2), gauss(3, 4)], InvalidArgumentError, "channels always, got 2, 4"),
        (torch.cat([gauss(9, 1), torch.full((9, 2), 0.1)], 1), InvalidArgumentError, r"\[1, 2\] are constant"),
        (torch.ones(1, 2), InvalidArgumentError, "constant"),
    ],
)
def test_errors_of_fit(data, error, words):
    with pytest.raises(error, match=words):
        Latent.fit(None, None, data)


# from_vae


def check(vae, x, encoded, expected):
    """The latents and the images of a diffusers autoencoder against the arithmetic of diffusers' pipelines."""
    standard = from_vae(vae)
    torch.testing.assert_close(standard.to(x), expected(encoded), rtol=1e-5, atol=1e-5)
    images = standard.back(expected(encoded))
    torch.testing.assert_close(images, vae.decode(encoded).sample, rtol=1e-4, atol=1e-5)
    assert images.requires_grad


def row(values, ndim=4):
    return torch.tensor(values).view(1, -1, *(1,) * (ndim - 2))


def packed(z):
    """Patches of 2 x 2 as channels, as Flux2Pipeline._patchify_latents."""
    B, C, H, W = z.shape
    return z.view(B, C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(B, C * 4, H // 2, W // 2)


SMALL = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 2}


def test_diffusers_autoencoders():
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    torch.manual_seed(0)
    x, kl = gauss(2, 3, 8, 8), diffusers.AutoencoderKL
    for options, expected in [
        ({"scaling_factor": 0.4}, lambda z: z * 0.4),
        ({"scaling_factor": 0.36, "shift_factor": 0.11}, lambda z: (z - 0.11) * 0.36),
        (
            {"scaling_factor": 0.5, "latents_mean": (0.3, -0.2), "latents_std": (0.8, 1.7)},
            lambda z: (z - row([0.3, -0.2])) * 0.5 / row([0.8, 1.7]),
        ),
        ({"scaling_factor": 0.5, "latents_mean": (0.3, -0.2)}, lambda z: z * 0.5),  # one alone counts for nothing
    ]:
        vae = kl(**SMALL, **options)
        check(vae, x, vae.encode(x).latent_dist.mode(), expected)
    sides = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (4, 4))
    depths = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1))
    tiny = diffusers.AutoencoderTiny(**sides, **depths, latent_channels=2, scaling_factor=0.7)
    check(tiny, x, tiny.encode(x).latents, lambda z: z * 0.7)
    vq = diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=5, scaling_factor=0.2)
    check(vq, x, vq.encode(x).latents, lambda z: z * 0.2)
    flux = diffusers.AutoencoderKLFlux2(
        **SMALL, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)
    )
    flux.bn.running_mean.copy_(gauss(8, 1)[:, 0])
    flux.bn.running_var.copy_(gauss(8, 1, seed=1)[:, 0].exp())
    mean, std = flux.bn.running_mean.view(1, -1, 1, 1), (flux.bn.running_var + flux.config.batch_norm_eps).sqrt()
    check(flux, x, flux.encode(x).latent_dist.mode(), lambda z: (packed(z) - mean) / std.view(1, -1, 1, 1))
    assert torch.equal(copy.deepcopy(from_vae(vq)).to(x), from_vae(vq).to(x))


def test_diffusers_video_autoencoder():
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    options = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
    wan = diffusers.AutoencoderKLWan(**options, latents_mean=[0.1, 0.2], latents_std=[2.0, 3.0])
    x = gauss(1, 3, 1, 8, 8)
    mean, std = row([0.1, 0.2], 5), row([2.0, 3.0], 5)
    check(wan, x, wan.encode(x).latent_dist.mode(), lambda z: (z - mean) / std)


def fake(found=lambda x: types.SimpleNamespace(latent=x), decoded=None, **facts):
    """An autoencoder of the shape of diffusers' own: latents are data."""
    config = facts.pop("config", {})
    decoded = decoded or (lambda z: types.SimpleNamespace(sample=z))
    return types.SimpleNamespace(encode=found, decode=decoded, config=types.SimpleNamespace(**config), **facts)


def test_statistics_in_buffers():  # LTX
    vae = fake(config={"scaling_factor": 2.0}, latents_mean=torch.tensor([1.0, 2.0]), latents_std=torch.ones(2) / 4)
    x = gauss(2, 2, 3, 4, 4)
    torch.testing.assert_close(from_vae(vae).to(x), (x - row([1.0, 2.0], 5)) * 8)


def test_statistics_of_each_frame():  # Cosmos 1
    mean, std = gauss(1, 6)[0], gauss(1, 6, seed=1)[0].exp()
    vae = fake(config={"latents_mean": mean.tolist(), "latents_std": std.tolist(), "latent_channels": 2})
    x = gauss(2, 2, 3, 4, 4)
    z = from_vae(vae).to(x)
    torch.testing.assert_close(z, (x - mean.view(1, 2, 3, 1, 1)) / std.view(1, 2, 3, 1, 1))
    torch.testing.assert_close(from_vae(vae).back(z), x)
    with pytest.raises(InvalidArgumentError, match=r"mean \[2, 3, 1, 1\] does not fit"):
        from_vae(vae).to(x[:, :, :2])


def test_autoencoder_that_standardises_itself():  # RAE
    vae = fake(config={"latents_mean": 3.0, "latents_std": 2.0, "scaling_factor": 4.0}, _latents_mean=torch.ones(1))
    x = gauss(2, 2, 3, 4, 4)
    assert torch.equal(from_vae(vae).to(x), x)


def test_config_that_says_nothing():
    for config in ({}, {"scaling_factor": None, "shift_factor": None, "latents_mean": None, "latents_std": None}):
        x = gauss(2, 2, 3)
        assert torch.equal(from_vae(fake(config=config)).to(x), x)
    assert torch.equal(from_vae(fake(lambda x: types.SimpleNamespace(latents=2 * x))).to(x), 2 * x)


def test_autoencoder_in_half_precision():
    vae = fake(dtype=torch.bfloat16, config={"scaling_factor": 0.5})
    assert from_vae(vae).to(gauss(2, 3, 4)).dtype == torch.bfloat16
    assert from_vae(vae).back(gauss(2, 3, 4)).dtype == torch.bfloat16


def test_errors_of_from_vae():
    with pytest.raises(InvalidTypeError, match=r"got 3 without \['encode', 'decode', 'config'\]; write Latent"):
        from_vae(3)
    with pytest.raises(InvalidTypeError, match=r"encode\(x\) must be a torch.Tensor"):
        from_vae(fake(lambda x: types.SimpleNamespace(other=x))).to(gauss(2, 3))
    with pytest.raises(InvalidTypeError, match=r"vae.decode\(z\) must have a tensor .sample"):
        from_vae(fake(decoded=lambda z: [z])).back(gauss(2, 3))


# Codebook


def brute(z, weights):
    """Values and codes of latents, one latent and one code at a time."""
    flat = z.double().movedim(1, -1).reshape(-1, z.shape[1])
    codes = [int(np.argmin([float(((row - e) ** 2).sum()) for e in weights.double()])) for row in flat]
    shape = (z.shape[0], *z.shape[2:])
    codes = torch.tensor(codes, dtype=torch.int64).reshape(shape)
    return weights[codes].movedim(-1, 1).to(z.dtype), codes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
@pytest.mark.parametrize("shape", [(9, 4), (3, 4, 5), (2, 4, 4, 3), (4, 4, 4, 4), (1, 4, 2, 2, 2), (0, 4, 3)])
def test_nearest_codes_are_those_of_brute_force(shape, dtype):
    weights = gauss(7, 4, seed=3)
    z = gauss(*shape).to(dtype) if shape[0] else torch.zeros(shape, dtype=dtype)
    found = Codebook(weights)(z)
    values, codes = brute(z, weights)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.values, values)  # to the bit
    assert found.values.dtype == dtype
    expected = (z.double() - values.double()).square().flatten(1).mean(1)
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-3 if dtype == torch.float16 else 1e-6, atol=0)


def test_far_codes_lose_no_digits():
    weights = 1e4 + torch.arange(5.0)[:, None] * torch.ones(3)
    z = 1e4 + torch.tensor([0.4, 1.6, 2.4, 3.6])[:, None] * torch.ones(3)
    assert Codebook(weights)(z).codes.tolist() == [0, 2, 2, 4]


def test_chunks_change_no_codes(monkeypatch):
    book, z = Codebook(gauss(7, 3)), gauss(10, 3, 5, seed=1)
    whole = book(z)
    monkeypatch.setattr(codebook, "_AT_ONCE", 15)
    assert torch.equal(book(z).codes, whole.codes)
    assert torch.equal(book(z[4:5]).codes, whole.codes[4:5])


def test_codes_embed_and_come_back():
    book = Codebook(gauss(11, 4))
    tokens = torch.arange(22).reshape(2, 11) % 11
    vectors = book.embed(tokens)
    assert vectors.shape == (2, 4, 11)
    assert torch.equal(vectors[1, :, 3], book.weights[tokens[1, 3]])
    assert torch.equal(book(vectors + 0.01).codes, tokens)
    assert torch.equal(book.embed(tokens.int()), vectors)
    assert book.embed(tokens[:, 0]).shape == (2, 4)
    assert Codebook(torch.eye(3))(torch.tensor([[0.2, 0.9, 0.1]])).codes.tolist() == [1]


def test_straight_through_gradient_is_the_identity():
    book, z, up = Codebook(gauss(5, 3)), gauss(4, 3, 2, 2, seed=1).requires_grad_(), gauss(4, 3, 2, 2, seed=2)
    book(z).values.backward(up)
    assert torch.equal(z.grad, up)


def test_commitment_gradient():
    book, z = Codebook(gauss(5, 3)), gauss(4, 3, 2, 2, seed=1).requires_grad_()
    found = book(z)
    assert found.loss.shape == (4,)
    found.loss.sum().backward()
    torch.testing.assert_close(z.grad, 2 * (z - found.values).detach() / 12)


def test_update_between_forward_and_backward():
    book, z = Codebook(gauss(5, 3)), gauss(8, 3, seed=1).requires_grad_()
    found = book(z)
    book.update(z)
    found.loss.sum().backward()
    torch.testing.assert_close(z.grad, 2 * (z - found.values).detach() / 3)
    assert not list(book.parameters())
    assert not book.weights.requires_grad


def test_update_is_the_formula():
    weights, z = gauss(4, 3, dtype=F64), gauss(30, 3, 2, seed=1, dtype=F64)
    book = Codebook(weights)
    codes, flat = brute(z, weights)[1].flatten(), z.movedim(1, -1).reshape(-1, 3)
    assert book.update(z, decay=0.8) == 0
    counts = torch.stack([0.8 + 0.2 * (codes == k).sum().double() for k in range(4)])
    sums = torch.stack([0.8 * weights[k] + 0.2 * flat[codes == k].sum(0) for k in range(4)])
    torch.testing.assert_close(book.counts, counts)
    torch.testing.assert_close(book.sums, sums)
    smooth = (counts + 1e-5) / (counts.sum() + 4e-5) * counts.sum()
    torch.testing.assert_close(book.weights, sums / smooth[:, None], rtol=1e-12, atol=0)


def clusters(n, seed, dtype=torch.float32):
    centres = 4 * torch.tensor([[1.0, 1, 0], [1, -1, 1], [-1, 1, 2], [-1, -1, 3]], dtype=dtype)
    return centres, (centres[torch.arange(n) % 4] + 0.1 * gauss(n, 3, seed=seed)).to(dtype)


def test_updates_find_the_centres_of_clusters():
    centres, first = clusters(40, 99)
    book = Codebook(first[:4] + gauss(4, 3, seed=7))
    for step in range(200):
        book.update(clusters(40, step)[1], decay=0.95, seed=step)
    nearest = torch.cdist(centres, book.weights).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2, 3]
    assert float((book.weights[nearest] - centres).abs().max()) < 0.03


def test_dead_codes_revive_as_latents_of_the_batch():
    centres, z = clusters(40, 0)
    weights = torch.cat([centres[:1], 100 + gauss(3, 3)])  # only the first is ever used
    book, twin, other, still = (Codebook(weights) for _ in range(4))
    revived = book.update(z, decay=0.01, seed=5)
    assert revived == 3
    apart = (book.weights[1:, None] == z).all(-1)
    assert apart.sum(1).tolist() == [1, 1, 1]
    assert len(apart.nonzero()[:, 1].unique()) == 3
    torch.testing.assert_close(book.sums[1:] / book.counts[1:, None], book.weights[1:])
    assert book.counts.min() > 1
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert twin.update(z, decay=0.01, seed=5) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(twin.weights, book.weights)
    other.update(z, decay=0.01, seed=6)
    assert not torch.equal(other.weights, book.weights)
    assert still.update(z, decay=0.01, threshold=0) == 0
    for step in range(60):
        book.update(clusters(40, step)[1], decay=0.9, seed=step)
    assert len(book(z).codes.unique()) == 4


def test_more_dead_codes_than_latents():
    book = Codebook(torch.cat([torch.zeros(1, 2), 50 + gauss(9, 2)]))
    z = gauss(3, 2)
    assert book.update(z, decay=0.0) == 9
    assert all(bool((z == e).all(1).any()) for e in book.weights[1:])


def test_half_precision_books_are_kept_in_float32():
    book = Codebook(gauss(4, 3).half())
    assert book.weights.dtype == torch.float32
    for step in range(3):
        book.update(gauss(9, 3, seed=step).to(torch.bfloat16))
    assert book(gauss(2, 3).half()).values.dtype == torch.float16
    cast = copy.deepcopy(book).half()
    assert cast(gauss(2, 3).half()).codes.tolist() == book(gauss(2, 3).half()).codes.tolist()
    cast.update(gauss(9, 3).half())


def test_book_is_kept_in_a_state_dict():
    book, twin = Codebook(gauss(4, 3)), Codebook(torch.zeros(4, 3))
    book.update(gauss(9, 3))
    twin.load_state_dict(book.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(book.buffers(), twin.buffers()))
    weight = torch.nn.Parameter(gauss(4, 3))
    copied = Codebook(weight)
    copied.update(gauss(9, 3))
    assert torch.equal(weight, gauss(4, 3))


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ("x", InvalidTypeError, "weights must be"),
        (torch.ones(3, 2, dtype=torch.int64), InvalidTypeError, "weights must be of a floating dtype"),
        (torch.ones(3), InvalidArgumentError, r"weights must be \[K, C\], got \[3\].*weights\[:, None\]"),
        (torch.ones(0, 2), InvalidArgumentError, r"got \[0, 2\]"),
        (torch.ones(2, 0), InvalidArgumentError, r"got \[2, 0\]"),
        (torch.full((2, 2), torch.nan), InvalidArgumentError, "weights must be finite"),
    ],
)
def test_errors_of_a_book(weights, error, words):
    with pytest.raises(error, match=words):
        Codebook(weights)


@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        ([1.0], InvalidTypeError, "z must be a torch.Tensor"),
        (torch.ones(2, 3, dtype=torch.int64), InvalidTypeError, "z must be of a floating dtype.*z.float"),
        (torch.ones(3), InvalidArgumentError, r"z must be \[B, \*S\]"),
        (torch.ones(2, 4, 3), InvalidArgumentError, r"z must be \[B, 3, \*rest\].*got \[2, 4, 3\]"),
        (torch.full((2, 3), torch.nan), InvalidArgumentError, r"z is NaN or Inf in rows \[0, 1\]"),
    ],
)
def test_errors_of_latents_of_a_book(z, error, words):
    book = Codebook(gauss(5, 3))
    before = copy.deepcopy(book.state_dict())
    for call in (book, book.update):
        with pytest.raises(error, match=words):
            call(z)
    assert all(torch.equal(a, before[name]) for name, a in book.state_dict().items())


@pytest.mark.parametrize(
    ("codes", "error", "words"),
    [
        ([1], InvalidTypeError, "codes must be a tensor"),
        (torch.ones(2), InvalidTypeError, "codes must be integers"),
        (torch.ones(2, dtype=torch.bool), InvalidTypeError, "codes must be integers"),
        (torch.tensor(1), InvalidTypeError, "codes must be integers"),
        (torch.tensor([0, 5]), InvalidArgumentError, r"codes must be in 0 .. 4, got 0 .. 5"),
        (torch.tensor([-1, 2]), InvalidArgumentError, r"got -1 .. 2"),
    ],
)
def test_errors_of_codes(codes, error, words):
    with pytest.raises(error, match=words):
        Codebook(gauss(5, 3)).embed(codes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"decay": "x"}, InvalidTypeError, "decay must be a number"),
        ({"threshold": None}, InvalidTypeError, "threshold must be a number"),
        ({"decay": 1.0}, InvalidArgumentError, r"in \[0, 1\).*got 1.0"),
        ({"decay": float("nan")}, InvalidArgumentError, r"in \[0, 1\)"),
        ({"threshold": -0.1}, InvalidArgumentError, r"in \[0, 1\)"),
        ({"seed": 0.5}, InvalidTypeError, "seed must be an int"),
        ({"seed": -1}, InvalidArgumentError, "seed must be in"),
        ({"z": torch.zeros(0, 3)}, InvalidArgumentError, "not empty.*0 latents"),
    ],
)
def test_errors_of_an_update(options, error, words):
    with pytest.raises(error, match=words):
        Codebook(gauss(5, 3)).update(**{"z": gauss(4, 3), **options})
