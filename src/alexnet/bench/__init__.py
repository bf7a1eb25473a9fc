"""`alexnet bench`: speed on this machine, as a share of its measured limits.

Entry point: `bench.bench`. Also public: `bench.synthetic_step` (a training step on random images) and
`limits.time_interleaved` (fair timings on a busy machine). Read `limits`, then `bench`.
"""

from collections.abc import Iterable

from alexnet.errors import unknown_name

PARTS = ("limits", "data", "predict", "train", "lrn")


def check_parts(parts: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not among `PARTS`; here, since the other modules import torch."""
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the bench", part, PARTS)
