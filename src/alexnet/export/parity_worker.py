"""Subprocess that runs the exported file on the parity images: `python -m alexnet.export.parity_worker JOB`.

JOB is a JSON file with a `Job`. Prints the latencies as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet.files import read_json

MIN_REPEATS = 7  # per latency


@dataclass(frozen=True)
class Job:
    """What to run."""

    file: Path
    images: list[Path]
    without_torch: bool
    """Make importing torch an error."""
    output: Path
    """The .npy file for the probabilities."""
    min_seconds: float
    """Spent on each latency measurement."""


def main(job_file: str) -> None:
    """Run the job. Errors of opening the file, decoding and inference are raised unchanged."""
    job = read_json(Path(job_file), Job)
    if job.without_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it now raises ImportError
    from alexnet.inference.predict import BATCH_SIZE, load_eval_array
    from alexnet.runtimes.engines import softmax
    from alexnet.runtimes.exported import open_exported

    exported = open_exported(job.file, trust=True)  # the exporter has just written it
    engine = exported.engine
    assert engine is not None
    probabilities = []
    for start in range(0, len(job.images), BATCH_SIZE):
        contents = [path.read_bytes() for path in job.images[start : start + BATCH_SIZE]]
        pixels = np.stack([load_eval_array(content, exported.preprocess) for content in contents])
        probabilities.append(softmax(engine.logits(pixels)))
    np.save(job.output, np.concatenate(probabilities))
    print(json.dumps(measure_latencies(engine.logits, pixels, job.min_seconds)))


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
