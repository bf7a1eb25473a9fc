"""Which pictures are the same: to the byte, or to the eye.

To the eye in two steps. Perceptual hashes that differ in few of their 64 bits name the candidates; the edges in their
portraits, small grey pictures, must then agree as well, for a hash alone takes any two shirts for one.

Candidates are found without comparing all with all: two hashes that differ in at most RADIUS bits agree wholly in one
of RADIUS + 1 blocks (M. Norouzi, A. Punjani, D. J. Fleet: Fast search in Hamming space with multi-index hashing, CVPR
2012), so that only those which share a block are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

RADIUS = 6
"""Bits of 64 in which the hashes of two versions of one picture may differ."""
AGREEMENT = 0.95
"""Correlation of the edges in their portraits, at least. Of 100 photographs, re-encoded at quality 30, shrunk to a half
and a quarter, made brighter, duller and grey, none had less; most that were cropped by 2 % a side had."""
_FURTHEST = 2000  # of the pictures that share a block, sorted by hash, each meets the next so many: never all with all

_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Indices of those with the same digest, ascending, in groups of two or more; an empty digest is like no other."""
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(hashes: np.ndarray, portraits: np.ndarray) -> np.ndarray:
    """Pairs of indices, int64 m×2, of pictures that look the same.

    `hashes` are uint64 (n,), `portraits` uint8 n×pixels of squares. Of a crowd that all look alike only as many pairs
    are given as tie it together, each of which was compared: at most n − 1 in all.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    distances = [np.empty(0, dtype=np.int64)]
    bounds = np.linspace(0, 64, RADIUS + 2).astype(int)
    for low, high in itertools.pairwise(bounds):
        block = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.lexsort((hashes, block))
        ordered, blocks = hashes[order], block[order]
        here = np.arange(len(order))
        for step in range(1, _FURTHEST + 1):
            here = here[here + step < len(order)]
            here = here[blocks[here] == blocks[here + step]]
            if len(here) == 0:
                break
            distance = _differing_bits(ordered[here], ordered[here + step])
            close = np.flatnonzero(distance <= RADIUS)
            pairs = np.sort(np.stack([order[here[close]], order[here[close] + step]], axis=1), axis=1)
            alike = _agree(portraits, pairs)
            found.append(pairs[alike])
            distances.append(distance[close][alike])
    pairs, first = np.unique(np.concatenate(found), axis=0, return_index=True)
    weights = np.concatenate(distances)[first] + 1  # above 0, which would be no edge
    tree = minimum_spanning_tree(coo_matrix((weights, pairs.T), shape=(len(hashes),) * 2)).tocoo()
    chosen = np.sort(np.stack([tree.row, tree.col], axis=1).astype(np.int64), axis=1)
    return chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))]


def _differing_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each place the number of bits in which two arrays of uint64 differ."""
    return _BITS[(a ^ b).view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.int64)


def _agree(portraits: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Of each pair whether the same edges are in both: brightness, contrast and colour may differ, shapes may not."""
    agree = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 1 << 14):  # some at a time: portraits are small, but many
        part = slice(start, start + (1 << 14))
        a, b = (_edges(portraits[pairs[part, side]]) for side in (0, 1))
        agree[part] = (a * b).mean(axis=1) >= AGREEMENT
    return agree


def _edges(rows: np.ndarray) -> np.ndarray:
    """How far each pixel stands out from its four neighbours, with mean 0 and deviation 1 in each row of n×pixels."""
    side = round(rows.shape[1] ** 0.5)
    x = rows.reshape(-1, side, side).astype(np.float32)
    found = 4 * x[:, 1:-1, 1:-1] - x[:, :-2, 1:-1] - x[:, 2:, 1:-1] - x[:, 1:-1, :-2] - x[:, 1:-1, 2:]
    found = found.reshape(len(x), -1)
    found -= found.mean(axis=1, keepdims=True)
    return found / np.maximum(found.std(axis=1, keepdims=True), 1e-3)
