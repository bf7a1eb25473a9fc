"""Subprocess that runs the exported file on the parity images: `python -m alexnet.export.parity_worker JOB`.

JOB is a JSON file: `file`, `trust` (open it without a valid signature), `images` (paths), `without_torch`, `output`
(the .npy file for the probabilities), and `min_seconds` of a latency measurement. With `without_torch`, importing torch
is an error. Prints the latencies as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MIN_REPEATS = 7  # per latency


def main(job_file: str) -> None:
    """Run the job. Errors of opening the file, decoding and inference are raised unchanged."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    if job["without_torch"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it now raises ImportError
    from alexnet.inference.predict import BATCH_SIZE, load_eval_array
    from alexnet.runtimes.engines import softmax
    from alexnet.runtimes.exported import open_exported

    exported = open_exported(job["file"], job["trust"])
    files = [Path(name) for name in job["images"]]
    probabilities = []
    for start in range(0, len(files), BATCH_SIZE):
        contents = [path.read_bytes() for path in files[start : start + BATCH_SIZE]]
        pixels = np.stack([load_eval_array(content, exported.preprocess) for content in contents])
        probabilities.append(softmax(exported.engine.logits(pixels)))
    np.save(job["output"], np.concatenate(probabilities))
    print(json.dumps(measure_latencies(exported.engine.logits, pixels, job["min_seconds"])))


def measure_latencies(
    compute: Callable[[np.ndarray], np.ndarray], images: np.ndarray, min_seconds: float
) -> dict[str, float]:
    """Return the median seconds of `compute` by batch size: 1 and 32, filled from `images` (N×C×H×W)."""
    medians = {}
    for batch in (1, 32):
        x = np.resize(images, (batch, *images.shape[1:]))
        compute(x)  # warm-up, may compile
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < MIN_REPEATS or time.perf_counter() - began < min_seconds:
            start = time.perf_counter()
            compute(x)
            times.append(time.perf_counter() - start)
        medians[str(batch)] = statistics.median(times)
    return medians


if __name__ == "__main__":
    main(sys.argv[1])
