"""Seconds from the start of `alexnet train DIR` to the end of its first optimizer step, by version of the code.

    python benchmarks/first_step.py --before OTHER/src    # OTHER: a checkout of an older version

On the 25,000 training images of Tiny-ImageNet-50 (64×64 JPEG), or any class folders given by --data. Each run is a
process that stops right after the first step, which it sees by a hook of torch that every optimizer calls; the versions
take turns. A first round, which is not timed, brings the files into the system's cache and measures the precision.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

from common import data, save

from alexnet.bench.limits import time_interleaved

HERE = Path(__file__).parents[1] / "src"

WATCHED = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(77))
from alexnet.cli import main
main()
"""


def train_one_step(source: Path, images: Path, folder: Path) -> None:
    """Run `alexnet train` of the package in `source` until its first optimizer step."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-c", WATCHED, "train", str(images), "--out", f"{out}/run", "--limit-steps", "1"]
        env = {**os.environ, "PYTHONPATH": str(source), "ALEXNET_CACHE": str(folder / "cache")}
        found = subprocess.run(command, env=env, capture_output=True, text=True)
        assert found.returncode == 77, found.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the src folder of an older checkout")
    parser.add_argument("--data", type=Path, help="class folders; Tiny-ImageNet-50 by default")
    parser.add_argument("--tries", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = given.data
        if images is None:
            with zipfile.ZipFile(data("tiny-imagenet-50.zip")) as archive:
                archive.extractall(folder / "images")
            images = folder / "images" / "train"
        sources = {"now": HERE, **({"before": given.before.resolve()} if given.before else {})}
        work = {label: partial(train_one_step, source, images, folder) for label, source in sources.items()}
        found = time_interleaved(work, tries=given.tries)
        count = sum(path.is_file() for path in images.rglob("*"))
    rows = [{"name": label, **timing.to_dict()} for label, timing in found.items()]
    for row in rows:
        print(row)
    save("first_step", {"images": count, "rows": rows})


if __name__ == "__main__":
    main()
