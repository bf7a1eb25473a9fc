"""Exact and near duplicates among images.

Near duplicates are found in two steps, from the hashes and thumbnails that `inspect.py` computes. Perceptual hashes
that differ in at most RADIUS of their 64 bits give candidates; the edges of their gray thumbnails must then also agree,
since a hash alone confuses any two shirts.

Candidates are found without comparing all pairs: two hashes that differ in at most RADIUS bits are equal in at least
one of RADIUS + 1 blocks (M. Norouzi, A. Punjani, D. J. Fleet: Fast search in Hamming space with multi-index hashing,
CVPR 2012), so only hashes that share a block are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

RADIUS = 6
"""Maximum number of the 64 hash bits in which two versions of an image may differ."""
MIN_CORRELATION = 0.95
"""Minimum correlation of thumbnail edges. None of 100 photos fell below it after re-encoding at quality 30, downscaling
to a half or a quarter, brightening, darkening or conversion to gray; most did after cropping 2 % per side."""
_MAX_COMPARISONS = 2000  # per image and block: each is compared with at most so many successors in hash order

_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Return groups of two or more indices with the same digest, ascending; empty digests match nothing."""
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Return pairs of indices of near duplicates, int64 m×2.

    `hashes` are uint64 (n,), `thumbnails` uint8 n×pixels, each a flattened square. A cluster of near duplicates is
    reduced to a spanning tree of compared pairs, so there are at most n − 1 pairs.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    distances = [np.empty(0, dtype=np.int64)]
    bounds = np.linspace(0, 64, RADIUS + 2).astype(int)
    for low, high in itertools.pairwise(bounds):
        block = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.lexsort((hashes, block))
        ordered, blocks = hashes[order], block[order]
        positions = np.arange(len(order))
        for step in range(1, _MAX_COMPARISONS + 1):
            positions = positions[positions + step < len(order)]
            positions = positions[blocks[positions] == blocks[positions + step]]
            if len(positions) == 0:
                break
            distance = _hamming_distances(ordered[positions], ordered[positions + step])
            close = np.flatnonzero(distance <= RADIUS)
            pairs = np.sort(np.stack([order[positions[close]], order[positions[close] + step]], axis=1), axis=1)
            matching = _edges_match(thumbnails, pairs)
            found.append(pairs[matching])
            distances.append(distance[close][matching])
    pairs, first = np.unique(np.concatenate(found), axis=0, return_index=True)
    if not len(pairs):
        return pairs
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    weights = np.concatenate(distances)[first] + 1  # a weight of 0 would mean no edge
    tree = minimum_spanning_tree(coo_matrix((weights, pairs.T), shape=(len(hashes),) * 2)).tocoo()
    chosen = np.sort(np.stack([tree.row, tree.col], axis=1).astype(np.int64), axis=1)
    return chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))]


def _hamming_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the elementwise number of differing bits of two uint64 arrays."""
    return _BITS[(a ^ b).view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.int64)


def _edges_match(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return for each of `pairs`, m×2, whether the edges agree, bool (m,); brightness and contrast may differ."""
    match = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 1 << 14):  # in chunks, to limit memory
        part = slice(start, start + (1 << 14))
        a, b = (_edges(thumbnails[pairs[part, side]]) for side in (0, 1))
        match[part] = (a * b).mean(axis=1) >= MIN_CORRELATION
    return match


def _edges(rows: np.ndarray) -> np.ndarray:
    """Return each pixel's difference from its four neighbors, standardized per row of n×pixels."""
    side = round(rows.shape[1] ** 0.5)
    x = rows.reshape(-1, side, side).astype(np.float32)
    edges = 4 * x[:, 1:-1, 1:-1] - x[:, :-2, 1:-1] - x[:, 2:, 1:-1] - x[:, 1:-1, :-2] - x[:, 1:-1, 2:]
    edges = edges.reshape(len(x), -1)
    edges -= edges.mean(axis=1, keepdims=True)
    return edges / np.maximum(edges.std(axis=1, keepdims=True), 1e-3)
