"""Counter-based random numbers: uniform, independent, and a function of their arguments alone."""

import numpy as np
import pytest
import torch

from alexnet import rng


def test_numbers_depend_only_on_the_arguments():
    together = rng.uniform(3, 7, [10, 11, 12], "flip", 4)
    alone = rng.uniform(3, 7, [11], "flip", 4)
    assert together.shape == (3, 4)
    np.testing.assert_array_equal(together[1], alone[0])
    np.testing.assert_array_equal(together[:, :2], rng.uniform(3, 7, [10, 11, 12], "flip", 2))


@pytest.mark.parametrize("change", [(4, 7, "flip"), (3, 8, "flip"), (3, 7, "crop")])
def test_numbers_change_with_seed_epoch_and_purpose(change):
    seed, epoch, purpose = change
    ids = np.arange(1000)
    a, b = rng.uniform(3, 7, ids, "flip", 1)[:, 0], rng.uniform(seed, epoch, ids, purpose, 1)[:, 0]
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_numbers_are_uniform_and_independent():
    u = rng.uniform(0, 0, np.arange(50_000), "test", 3)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.002)
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.02  # neighboring samples


def test_permutation_visits_everything_once_and_changes_with_the_epoch():
    first, second = rng.permutation(0, 1, 100), rng.permutation(0, 2, 100)
    assert sorted(first) == list(range(100))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, rng.permutation(0, 1, 100))


def test_derived_seeds_fit_torch():
    seeds = {rng.derive_seed(0, "step", i) for i in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    torch.manual_seed(max(seeds))
