"""Many short epochs in one process, in place of a day of training: does memory stay flat, and disk usage bounded?

    python benchmarks/endurance.py                  # 2,000 epochs, 15 minutes; writes results/endurance.json
    python benchmarks/endurance.py --epochs 100     # a quick check

One real `alexnet train` on the embedded digits: a tiny network, batches of 629, a validation and two checkpoints per
epoch. Its memory (resident, and the private part) and the size of its run folder are sampled from outside. Checkpoints
hold the metrics of finished epochs, so a little growth is expected: `grown` is the growth per epoch over the second
half. Fails if it exceeds `MAX_GROWTH`, or if the second half has more files than the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import save

SETTINGS = [
    "--width", "0.0625", "--batch-size", "629", "--checkpoint-every", "1", "--device", "cpu", "--schedule", "constant",
    "--lr", "0.01",
]  # fmt: skip


MAX_GROWTH = 8 << 10
"""Bytes of memory that an epoch may add. Python keeps 2 KiB per epoch (tracemalloc): its row of metrics, and a copy in
the newest checkpoint; the allocator may need a few times that. A leak, such as the weights of this network (391 kB),
is well above."""
MIN_EPOCHS = 1000
"""Memory is only judged from this many epochs: the allocator grows in blocks of a megabyte and more."""
CHECKPOINT = 4
"""Files per checkpoint at most. The first sample may see one checkpoint, later ones two or three."""


def memory(pid: int) -> dict[str, int]:
    """Return the memory of a process in bytes (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(fields[field].split()[0]) * 1024 for name, field in (("resident", "VmRSS"), ("own", "RssAnon"))}


def disk(folder: Path) -> dict[str, int]:
    """Return total size and number of files in a folder that may change while it is read."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size if path.is_file() else 0)
        except FileNotFoundError:
            continue
    return {"bytes": sum(sizes), "files": len(sizes)}


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the bytes added per epoch over the second half."""
    half = rows[len(rows) // 2 :]
    return {
        key: float(np.polyfit([r["epoch"] for r in half], [r[key] for r in half], 1)[0])
        for key in ("resident", "own", "bytes")
    }


def find_problem(rows: list[dict[str, Any]], epochs: int) -> str | None:
    """Return a message if memory or files grow, else None."""
    grown = growth(rows)["own"]
    if epochs >= MIN_EPOCHS and grown > MAX_GROWTH:
        return f"Memory grows: {grown / 1024:.2f} KiB per epoch; at most {MAX_GROWTH / 1024:.0f} are allowed."
    half = len(rows) // 2
    before, after = (min(r["files"] for r in part) for part in (rows[:half], rows[half:]))
    if after > before + 2 * CHECKPOINT:
        return f"Files grow: from {before} at least in the first half to {after} in the second."
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=40, help="number of samples")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "alexnet", "train", "digits", "--epochs", str(args.epochs), "--out", str(run)]
        started = time.monotonic()
        with (Path(folder) / "log").open("w") as log:
            training = subprocess.Popen([*command, *SETTINGS], stdout=log, stderr=log)
        while training.poll() is None:
            try:
                epoch = (run / "metrics.jsonl").read_bytes().count(b"\n")
                if epoch >= len(rows) * args.epochs / args.samples and epoch:
                    rows.append(
                        {"epoch": epoch, "seconds": time.monotonic() - started, **memory(training.pid), **disk(run)}
                    )
                    print(rows[-1], flush=True)
            except (FileNotFoundError, KeyError):  # not started, or just ended
                pass
            time.sleep(0.1)
        if training.returncode:
            sys.exit((Path(folder) / "log").read_text())
        final = disk(run)
    grown = growth(rows)
    peak = max(r["resident"] for r in rows)
    print(
        f"{args.epochs} epochs: peak {peak / 2**20:.0f} MiB; each epoch of the second half adds "
        f"{grown['own'] / 1024:.2f} KiB of memory and {grown['bytes'] / 1024:.2f} KiB of disk"
    )
    save("endurance", {"epochs": args.epochs, "settings": SETTINGS, "looks": rows, "grown": grown, "in_the_end": final})
    if problem := find_problem(rows, args.epochs):
        sys.exit(problem)


if __name__ == "__main__":
    main()
