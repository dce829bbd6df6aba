"""The data of the demo: scikit-learn's handwritten digits (1,797 images of 8x8), and a mixture fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError
from sdegen.scores.mixtures import GaussianMixture
from sdegen.training.data import digits

# A standard deviation added to every pixel (of range [-1, 1]): clusters of 34 to 146 images leave the 64 x 64
# covariances singular.
RIDGE = 0.05


class Digits(NamedTuple):
    """The real images `[N, 8, 8]` in [-1, 1], their labels `[N]`, the mixture fitted to all and that of each class."""

    images: Tensor
    labels: Tensor
    mixture: GaussianMixture
    classes: list[GaussianMixture]

    def classify(self, images: Tensor) -> Tensor:
        """The most probable digit `[n]` of each image `[n, 8, 8]`, by Bayes' rule under the mixture."""
        weights = self.mixture.weights.reshape(10, 2).sum(1)
        return torch.stack([law.log_prob(images) + w.log() for law, w in zip(self.classes, weights)]).argmax(0)

    def sheet(self, images: Tensor, labels: Tensor | None = None, columns: int = 10) -> Tensor:
        """The first images of each digit, a row each `[10 columns, 8, 8]`; NaN where there are too few."""
        labels = self.classify(images) if labels is None else labels
        out = torch.full((10, columns, 8, 8), torch.nan)
        for digit in range(10):
            found = images[labels == digit][:columns].float()
            out[digit, : len(found)] = found
        return out.flatten(0, 1)


def fit(seed: int, train: Tensor | None = None) -> Digits:
    """Two Gaussians per digit, split by k-means: each cluster's mean, covariance + RIDGE^2 I, and size as weight.

    train: the places of the images that it is fitted to; None for all.
    Raises InvalidArgumentError without scikit-learn.
    """
    images, labels = digits()
    if train is not None:
        images, labels = images[train], labels[train]
    data = images.reshape(-1, 64)
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise InvalidArgumentError("the demo needs scikit-learn: pip install 'sdegen[demo]'") from None
    pairs = []
    for digit in range(10):
        own = data[labels == digit]
        split = torch.as_tensor(KMeans(2, n_init=4, random_state=seed % 2**32).fit_predict(own.numpy()))
        pairs.append([own[split == k] for k in range(2)])
    whole = _mixture([cluster for pair in pairs for cluster in pair])
    return Digits(images, labels, whole, [_mixture(pair) for pair in pairs])


def _mixture(clusters: Sequence[Tensor]) -> GaussianMixture:
    covs = [torch.cov(c.T, correction=0) + RIDGE**2 * torch.eye(64, dtype=c.dtype) for c in clusters]
    means = torch.stack([c.mean(0).reshape(8, 8) for c in clusters])
    return GaussianMixture(means, covs=torch.stack(covs), weights=[float(len(c)) for c in clusters])
