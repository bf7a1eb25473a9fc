"""Fashion-MNIST on one GPU: the ten epochs of `fashion-mnist-d2l`, for which the book reports 88.3 %.

benchmarks/gpu.sh fashion-mnist [--data fashion-mnist/]
"""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import curve, device, finish, parser, unpacked

import alexnet

BOOK = 0.883


def made_up(folder: Path) -> Path:
    """The four IDX files, of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        files = {"images-idx3": images, "labels-idx1": np.arange(n, dtype=np.uint8) % 10}
        for kind, values in files.items():
            head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


def main() -> None:
    args = parser(__doc__).parse_args()
    on = device(args.tiny)
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-") as folder:
        data = made_up(Path(folder) / "data") if args.tiny else unpacked(args.data, "fashion-mnist")
        short: dict[str, Any] = {"epochs": 1, "limit_steps": 1, "batch_size": 4} if args.tiny else {}
        result = alexnet.train("fashion-mnist-d2l", out=Path(folder) / "run", data=data, seed=1, device=on, **short)
        results = {
            "recipe": "fashion-mnist-d2l", "book_top1": BOOK, "top1": result.summary["final"]["top1"],
            "epochs": result.summary["epochs"], "seconds": result.summary["seconds"],
            "images_per_second": result.summary["images_per_second"], "precision": result.summary["precision"],
            "curve": curve(result),
        }  # fmt: skip
    print({k: v for k, v in results.items() if k != "curve"})
    finish("gpu-fashion-mnist", results, on, args.tiny)


if __name__ == "__main__":
    main()
