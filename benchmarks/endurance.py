"""Many short epochs in one process, as a stand-in for a day of training: is memory flat, and is disk bounded?

    python benchmarks/endurance.py                  # 2,000 epochs, a quarter of an hour; writes results/endurance.json
    python benchmarks/endurance.py --epochs 100     # a quick look

One real `alexnet train` on the embedded digits, a tiny network in batches of 629, with a validation and a checkpoint
each epoch and one more within it. From outside, its memory (resident, and the part that is its own) and the bytes
of its run folder are read after every so many epochs. The metrics of finished epochs are in every checkpoint, so a
little growth is right: `grown` is what one epoch adds, over the second half. It fails where that is more than
`MOST`, or where there are more files in the second half than in the first.
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


MOST = 8 << 10
"""Bytes of memory that an epoch may add. Python keeps 2 KiB more after each (tracemalloc): its row of metrics, and that
row's copy for the newest checkpoint; the allocator may need a few times that. What could be kept by mistake, such as
the weights of this network (391 kB), is well above."""
JUDGED = 1000
"""Epochs from which on memory is judged: the allocator takes blocks of a megabyte and more."""
CHECKPOINT = 4
"""Files that a checkpoint has at most. At the first look there may be one where later there are two or three."""


def memory(pid: int) -> dict[str, int]:
    """Bytes that a process holds (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(fields[field].split()[0]) * 1024 for name, field in (("resident", "VmRSS"), ("own", "RssAnon"))}


def disk(folder: Path) -> dict[str, int]:
    """Bytes and number of the files in a folder that may change meanwhile."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size if path.is_file() else 0)
        except FileNotFoundError:
            continue
    return {"bytes": sum(sizes), "files": len(sizes)}


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes that an epoch adds, over the second half."""
    half = rows[len(rows) // 2 :]
    return {
        key: float(np.polyfit([r["epoch"] for r in half], [r[key] for r in half], 1)[0])
        for key in ("resident", "own", "bytes")
    }


def complaint(rows: list[dict[str, Any]], epochs: int) -> str | None:
    """What is wrong, if anything."""
    grown = growth(rows)["own"]
    if epochs >= JUDGED and grown > MOST:
        return f"Memory grows: {grown / 1024:.2f} KiB an epoch, and {MOST / 1024:.0f} are allowed."
    middle = len(rows) // 2
    before, after = (min(r["files"] for r in part) for part in (rows[:middle], rows[middle:]))
    if after > before + 2 * CHECKPOINT:
        return f"Files grow: from {before} at least in the first half to {after} in the second."
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--looks", type=int, default=40, help="how often to look")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "alexnet", "train", "digits", "--epochs", str(args.epochs), "--out", str(run)]
        began = time.monotonic()
        with (Path(folder) / "log").open("w") as log:
            training = subprocess.Popen([*command, *SETTINGS], stdout=log, stderr=log)
        while training.poll() is None:
            try:
                epoch = (run / "metrics.jsonl").read_bytes().count(b"\n")
                if epoch >= len(rows) * args.epochs / args.looks and epoch:
                    rows.append(
                        {"epoch": epoch, "seconds": time.monotonic() - began, **memory(training.pid), **disk(run)}
                    )
                    print(rows[-1], flush=True)
            except (FileNotFoundError, KeyError):  # not begun, or just ended
                pass
            time.sleep(0.1)
        if training.returncode:
            sys.exit((Path(folder) / "log").read_text())
        whole = disk(run)
    grown = growth(rows)
    most = max(r["resident"] for r in rows)
    print(
        f"{args.epochs} epochs: at most {most / 2**20:.0f} MiB; an epoch of the second half adds "
        f"{grown['own'] / 1024:.2f} KiB of memory and {grown['bytes'] / 1024:.2f} KiB of disk"
    )
    save("endurance", {"epochs": args.epochs, "settings": SETTINGS, "looks": rows, "grown": grown, "in_the_end": whole})
    if wrong := complaint(rows, args.epochs):
        sys.exit(wrong)


if __name__ == "__main__":
    main()
