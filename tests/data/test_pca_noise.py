"""The noise has the covariance that the paper states, and belongs to samples and not to batches."""

import numpy as np
import pytest
import torch

from alexnet.data.augment import IMAGENET_PCA, ColorPCA, pca_noise
from alexnet.errors import UserError

STD = (0.25, 0.2, 0.3)


def test_colour_noise_has_the_stated_covariance():
    """Over 10,000 draws: strength²·Σ σᵢ²·pᵢpᵢᵀ, in levels of 0…255, to within five standard errors."""
    n, strength = 10_000, 0.1
    x = pca_noise(torch.zeros(n, 3, 2, 2), range(n), 0, 0, IMAGENET_PCA, strength, std=STD)
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))  # one colour a picture
    levels = x[:, :, 0, 0].double().numpy() * np.array(STD) * 255
    p = np.reshape(IMAGENET_PCA.vectors, (3, 3))
    expected = strength**2 * sum(s**2 * np.outer(v, v) for s, v in zip(IMAGENET_PCA.std, p, strict=True))
    variances = np.diag(expected)
    errors = np.sqrt((np.outer(variances, variances) + expected**2) / n)  # of a covariance of normal numbers
    assert (np.abs(np.cov(levels.T, bias=True) - expected) < 5 * errors).all()
    assert (np.abs(levels.mean(axis=0)) < 5 * np.sqrt(variances / n)).all()
    along = levels @ p.T / (strength * np.array(IMAGENET_PCA.std))  # should be N(0, 1), three times, independent
    assert (np.abs((along**4).mean(axis=0) - 3) < 5 * np.sqrt(96 / n)).all()


def test_colour_noise_belongs_to_samples_and_not_to_batches():
    x, ids = torch.randn(12, 3, 4, 4), np.arange(100, 112)

    def noisy(x, ids, epoch=3, seed=7):
        return pca_noise(x.clone(), ids, epoch, seed, IMAGENET_PCA, 0.1, std=STD)

    whole = noisy(x, ids)
    assert torch.equal(torch.cat([noisy(x[s], ids[s]) for s in (slice(0, 5), slice(5, 12))]), whole)
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(noisy(x[order], torch.from_numpy(ids[order])), whole[order])
    assert not torch.equal(noisy(x, ids, epoch=4), whole)
    assert not torch.equal(noisy(x, ids, seed=8), whole)


def test_colour_noise_divides_pictures_and_noise_alike():
    x, ids = torch.randn(5, 3, 4, 4), range(5)
    plain = pca_noise(x.clone(), ids, 0, 0, IMAGENET_PCA, 0.1, std=STD)
    divided = pca_noise(x.clone(), ids, 0, 0, IMAGENET_PCA, 0.1, std=STD, divide=True)
    torch.testing.assert_close(divided, plain / 1.1)


def test_colour_noise_of_strength_0_changes_nothing():
    x = torch.randn(2, 3, 4, 4)
    before = x.clone()
    assert torch.equal(pca_noise(x, range(2), 0, 0, IMAGENET_PCA, 0.0, std=STD, divide=True), before)


@pytest.mark.parametrize(
    ("std", "vectors"),
    [((1.0, 1.0), (0.0,) * 9), ((1.0,) * 3, (0.0,) * 8), ((1.0, -1.0, 1.0), (0.0,) * 9), ((1.0,) * 3, (np.nan,) * 9)],
)
def test_what_cannot_be_a_colour_basis_is_refused(std, vectors):
    with pytest.raises(UserError, match="A PCA basis is three standard deviations"):
        ColorPCA(std, vectors)
