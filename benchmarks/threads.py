"""Images per second of training on the CPU, alone and beside a program that keeps one core busy.

`python benchmarks/threads.py` trains the digits for an epoch with one thread, with all, and with the measured choice.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import alexnet
from alexnet.device import cpu_count
from alexnet.progress import Silent
from alexnet.run_dir import Run


def spin() -> None:
    """Keep the first of this process's cores busy."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    while True:
        pass


@contextmanager
def busy_core() -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()


def speed(threads: int | None) -> tuple[float, int]:
    """Return images per second of an epoch, and the number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        result = alexnet.train("digits", out=Path(folder) / "run", epochs=1, threads=threads, progress=Silent())
        row = Run(result.run).metrics()[-1]
    return row["images_per_second"], row["threads"]


def main() -> None:
    """Print a table."""
    os.environ.pop("OMP_NUM_THREADS", None)
    for label, beside in (("alone", False), ("beside a busy core", True)):
        for threads in (1, cpu_count(), None):
            if beside:
                with busy_core():
                    found, used = speed(threads)
            else:
                found, used = speed(threads)
            print(f"{label:20} {'measured' if threads is None else 'given':9} {used:3} threads {found:8.0f} images/s")


if __name__ == "__main__":
    main()
