"""Peak memory of training or inference, measured in a fresh process: a used one would reuse its freed pages.

`python -m alexnet.bench.memory train paper 32 fp32 cpu` prints the bytes beyond those of the imports, or nothing where
the system does not report it (Windows). On a GPU, torch's own statistics are used.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch

from alexnet.device import peak_memory

STEPS = 2  # momentum is allocated at the end of the first step, so the second has the peak


def measure_peak_memory(what: str, arch: str, batch_size: int, precision: str, device: torch.device) -> int | None:
    """Return the peak memory in bytes while `arch` trains (`what="train"`) or predicts ("predict") on random images.

    Includes weights, gradients, momentum, activations, images and workspaces. None if the system does not report it
    or the process fails.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _run(what, arch, batch_size, precision, device.type)
        return torch.cuda.max_memory_allocated(device) - before
    command = [sys.executable, "-m", "alexnet.bench.memory", what, arch, str(batch_size), precision, device.type]
    result = subprocess.run(command, capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 and result.stdout.strip() else None


def _run(what: str, arch: str, batch_size: int, precision: str, device: str) -> None:
    """Run a few training steps or batches of inference."""
    from alexnet.bench.engines import noise_transform
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
        preprocess = noise_transform(spec)
        model = build(spec).eval().to(device).to(memory_format=torch.channels_last)
        shape = (batch_size, spec.in_channels, spec.image_size, spec.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8).numpy()
        call = partial(TorchEngine(EXACT, model, preprocess, torch.device(device), torch.float32).logits, images)
    for _ in range(STEPS):
        call()


if __name__ == "__main__":
    before = peak_memory()
    _run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    after = peak_memory()
    print(after - before if before is not None and after is not None else "")
