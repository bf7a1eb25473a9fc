"""What an exported file says of pictures, found in a process of its own: `python -m alexnet.export.parity_worker JOB`.

The job is a JSON file: `file`, `trust` (whether to open it though it is not signed), `pictures` (paths),
`without_torch`, and `answers`, where the probabilities are to be written. Torch is kept from being imported where the
format does without it. Latencies are printed as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TRIES = 7  # of each latency, at least
SECONDS = 0.5  # that these take together, about


def main(job_file: str) -> None:
    """Carry out the job. Raises whatever opening, decoding and computing raise."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    if job["without_torch"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # from now on importing it is an ImportError
    from alexnet.inference.predict import BATCH_SIZE, load_eval_array
    from alexnet.runtimes.engines import softmax
    from alexnet.runtimes.exported import open_exported

    exported = open_exported(job["file"], job["trust"])
    files = [Path(name) for name in job["pictures"]]
    answers = []
    for start in range(0, len(files), BATCH_SIZE):
        contents = [path.read_bytes() for path in files[start : start + BATCH_SIZE]]
        pixels = np.stack([load_eval_array(content, exported.preprocess) for content in contents])
        answers.append(softmax(exported.engine.logits(pixels)))
    np.save(job["answers"], np.concatenate(answers))
    print(json.dumps(latencies(exported.engine.logits, pixels)))


def latencies(compute: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray) -> dict[str, float]:
    """Seconds, the median of several tries, that `compute` takes for 1 picture and for 32, taken from `pictures`."""
    found = {}
    for batch in (1, 32):
        x = np.resize(pictures, (batch, *pictures.shape[1:]))
        compute(x)  # which may compile
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < TRIES or time.perf_counter() - began < SECONDS:
            start = time.perf_counter()
            compute(x)
            times.append(time.perf_counter() - start)
        found[str(batch)] = statistics.median(times)
    return found


if __name__ == "__main__":
    main(sys.argv[1])
