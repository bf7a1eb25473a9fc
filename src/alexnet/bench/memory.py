"""The most memory that training or inference takes, measured in a process of its own, where nothing was used before.

A process that has worked already keeps freed pages and would use them again unseen. `python -m alexnet.bench.memory
train paper 32 fp32` prints the bytes that a fresh one took beyond what importing torch takes, or nothing where the
system does not tell (Windows). A GPU counts by itself, and is asked.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch

from alexnet.device import peak_memory

STEPS = 2  # the first allocates momentum at its end, so the second takes the most


def measure_peak_memory(what: str, arch: str, batch_size: int, precision: str, device: torch.device) -> int | None:
    """Bytes at the most while `arch` trains (`what` "train") or predicts ("predict") on made-up pictures.

    Counted are weights, gradients, momentum, activations, the pictures and workspaces: on a CPU what the process took,
    on a GPU what torch had allocated. None where the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _work(what, arch, batch_size, precision, device.type)
        return torch.cuda.max_memory_allocated(device) - before
    command = [sys.executable, "-m", "alexnet.bench.memory", what, arch, str(batch_size), precision, device.type]
    found = subprocess.run(command, capture_output=True, text=True)
    return int(found.stdout) if found.returncode == 0 and found.stdout.strip() else None


def _work(what: str, arch: str, batch_size: int, precision: str, device: str) -> None:
    """A few steps, or a few batches."""
    from alexnet.bench.engines import plain
    from alexnet.bench.synthetic import synthetic_step
    from alexnet.models.architectures import architecture
    from alexnet.models.model import build
    from alexnet.runtimes.engines import EXACT, TorchEngine

    spec = architecture(arch)
    call: Callable[[], object]
    if what == "train":
        call = synthetic_step(
            arch, image_size=spec.image_size, batch_size=batch_size, precision=precision, num_classes=spec.num_classes,
            settings={"device": device},
        )  # fmt: skip
    else:
        preprocess = plain(spec)
        model = build(spec).eval().to(device).to(memory_format=torch.channels_last)
        shape = (batch_size, spec.in_channels, spec.image_size, spec.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8).numpy()
        call = partial(TorchEngine(EXACT, model, preprocess, torch.device(device), torch.float32).logits, images)
    for _ in range(STEPS):
        call()


if __name__ == "__main__":
    before = peak_memory()
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    after = peak_memory()
    print(after - before if before is not None and after is not None else "")
