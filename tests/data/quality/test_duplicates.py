"""The indexed search finds the same as comparing all pairs."""

import numpy as np

from alexnet.data.quality import duplicates
from alexnet.data.quality.duplicates import RADIUS, exact_groups, near_pairs


def components(pairs: np.ndarray, count: int) -> list[int]:
    """Return the cluster of each, by its smallest index."""
    of = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            of[a] = of[b] = min(of[a], of[b])
    return of


def test_exact_groups():
    assert exact_groups([b"x", b"", b"y", b"x", b"", b"x", b"z", b"y"]) == [[0, 3, 5], [2, 7]]


def test_all_pairs_within_the_radius_are_found():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 300, dtype=np.uint64)
    for i in range(0, 200, 2):  # every second differs from its predecessor in 0 to 9 bits
        bits = random.choice(64, size=i // 2 % 10, replace=False)
        hashes[i + 1] = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=0)
    image = random.integers(0, 256, (1, 256), np.uint8)
    thumbnails = np.repeat(image, 300, axis=0)  # all equal
    distance = np.array([[bin(int(a) ^ int(b)).count("1") for b in hashes] for a in hashes])
    expected = np.argwhere(np.triu(distance <= RADIUS, 1))
    found = near_pairs(hashes, thumbnails)
    assert len(expected) >= 70
    assert components(found, 300) == components(expected, 300)


def test_thumbnails_must_match():
    random = np.random.default_rng(1)
    thumbnails = random.integers(0, 200, (4, 256), np.uint8)
    thumbnails[1] = thumbnails[0] + 40  # brighter
    thumbnails[2] = np.rint(thumbnails[0] * 0.6)  # dimmer
    hashes = np.array([5, 5, 4, 5], np.uint64)
    assert sorted(map(tuple, near_pairs(hashes, thumbnails).tolist())) in ([(0, 1), (0, 2)], [(0, 1), (1, 2)])


def test_a_cluster_gives_a_spanning_tree(monkeypatch):
    thumbnails = np.repeat(np.random.default_rng(2).integers(0, 256, (1, 256), np.uint8), 150, axis=0)
    hashes = np.full(150, 77, np.uint64)
    assert len(near_pairs(hashes, thumbnails)) == 149
    monkeypatch.setattr(duplicates, "_MAX_COMPARISONS", 3)
    assert len(near_pairs(hashes, thumbnails)) == 149


def test_fewer_than_two_images_give_no_pair():
    assert near_pairs(np.empty(0, np.uint64), np.empty((0, 256), np.uint8)).shape == (0, 2)
    assert near_pairs(np.array([3], np.uint64), np.zeros((1, 256), np.uint8)).shape == (0, 2)
