"""Counter-based random numbers.

A draw is a hash of (seed, epoch, sample id, purpose), never the next number of a generator. So it does not matter which
worker, rank or order computes it, and resuming a run exactly needs one integer: the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, SplitMix64's increment


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer, a bijection of uint64 in which every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every part, e.g. `derive_seed(0, "order", epoch)`."""
    text = "\0".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(seed: int, epoch: int, ids: Sequence[int] | np.ndarray, purpose: str, count: int) -> np.ndarray:
    """Return `count` uniform numbers in [0, 1) per sample id: float64, shape (len(ids), count).

    A sample's numbers do not depend on the other ids, nor on earlier draws.
    """
    words = np.asarray(ids, dtype=np.int64).astype(np.uint64)[:, None]
    columns = np.arange(1, count + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):  # the hash relies on wrapping
        base = _splitmix64(words * _GOLDEN + np.uint64(derive_seed(seed, epoch, purpose)))
        bits = _splitmix64(base + columns * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order in which epoch `epoch` visits `n` samples: a permutation of 0…n−1, int64."""
    return np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(n)
