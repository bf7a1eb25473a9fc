"""The machine we run on: device, precision, processes, and the source of every random number.

Nothing else asks torch which devices there are, which process this is, or for a seed.

Randomness is counter-based: a draw is a hash of (seed, epoch, sample, purpose), never the next number of some
generator. So it does not matter which worker, process or order computes it, and the exact resumption of a run
needs one integer, the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

# ── randomness ────────────────────────────────────────────────────────────────────────────────────────────────

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit words in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed that depends on `seed` and every part: `derive_seed(0, "order", epoch)`."""
    text = "\0".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(seed: int, epoch: int, ids: Sequence[int] | np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) for each sample id: float64, shape (len(ids), count).

    A sample's numbers depend only on the arguments: not on the other ids, nor on any draw before.
    """
    words = np.asarray(ids, dtype=np.int64).astype(np.uint64)[:, None]
    columns = np.arange(1, count + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):  # wrapping is what makes it a hash
        base = _splitmix64(words * _GOLDEN + np.uint64(derive_seed(seed, epoch, purpose)))
        bits = _splitmix64(base + columns * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch `epoch` visits `n` samples: a permutation of 0…n-1, int64."""
    return np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(n)
