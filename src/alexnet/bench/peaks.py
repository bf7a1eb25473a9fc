"""What this machine can do at most: copy memory, multiply matrices, decode a photograph.

Each thing that is timed is `Work`: a call and how much it does (bytes, floating-point operations, pictures), so that
all speeds are rates and a share is the quotient of two of them. `rates` measures several in turn, in one go.

Notable: a matrix product is tried small first and grows while there is time, since many processors accept bfloat16 and
float16 and emulate them hundreds of times slower than float32.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.bench.timing import interleaved
from alexnet.data.decode import decode_image
from alexnet.device import Precision, free_memory

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # far beyond any cache
LARGEST_MATRIX = {"cpu": 4096, "cuda": 16384}
MATMUL_SECONDS = 0.3  # the longest product
SHORTEST = 0.01  # seconds of a try: shorter work is repeated within it, so that starting it and the clock do not count
PHOTOGRAPH = (500, 375)  # what most pictures of ImageNet measure


@dataclass(frozen=True)
class Work:
    """A call and how much it does: bytes, floating-point operations or pictures."""

    call: Callable[[], object]
    amount: float


@dataclass(frozen=True)
class Rate:
    """So much a second: the middle of the tries, the slowest and the fastest."""

    median: float
    low: float
    high: float
    tries: int

    def __mul__(self, factor: float) -> Rate:
        return Rate(self.median * factor, self.low * factor, self.high * factor, self.tries)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rates(work: Mapping[str, Work], seconds: float, device: torch.device) -> dict[str, Rate]:
    """How much of each work is done a second; all are tried in turn, thrice and then until `seconds` are over."""
    wait = waiter(device)
    times = {name: _times(w.call, wait) for name, w in work.items()}

    def repeated(name: str) -> None:
        for _ in range(times[name]):
            work[name].call()

    calls = {name: functools.partial(repeated, name) for name in work}
    found = interleaved(calls, tries=1000, warmup=0, seconds=seconds, wait=wait)  # `_times` has warmed up
    result = {}
    for name, t in found.items():
        amount = work[name].amount * times[name]
        result[name] = Rate(amount / t.median, amount / t.high, amount / t.low, t.tries)
    return result


def _times(call: Callable[[], object], wait: Callable[[], object]) -> int:
    """How often to repeat a call within a try; the first call, which prepares much, does not count."""
    call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    return max(1, round(SHORTEST / max(time.perf_counter() - start, 1e-7)))


def waiter(device: torch.device) -> Callable[[], object]:
    """What waits until `device`, which may work on its own, has done what it was told."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def free_device_memory(device: torch.device) -> int:
    """Bytes that are free where `device` keeps its tensors."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


# ── the limits ────────────────────────────────────────────────────────────────────────────────────────────────


def copy_work(device: torch.device) -> Work:
    """One large tensor copied onto another; in bytes, those read and those written both counted.

    That caches may fetch what is about to be overwritten is not counted.
    """
    size = min(COPY_BYTES.get(device.type, COPY_BYTES["cpu"]), free_device_memory(device) // 16)
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return Work(functools.partial(target.copy_, source), 2 * source.nbytes)


def matmul_work(precision: str, device: torch.device) -> Work | None:
    """A product of two square matrices, as large as `MATMUL_SECONDS` allow; in operations, 2 a multiply-accumulate.

    None where this machine has no such product.
    """
    largest, dtype = LARGEST_MATRIX.get(device.type, LARGEST_MATRIX["cpu"]), Precision(precision, "").dtype
    side, wait = 128, waiter(device)
    while True:
        try:
            a = torch.randn(side, side, device=device).to(dtype)
            call = functools.partial(torch.mm, a, a.clone(), out=torch.empty_like(a))
            seconds = interleaved({"product": call}, tries=3, wait=wait)["product"].low  # others may disturb one try
        except (RuntimeError, TypeError):  # "addmm_impl_cpu_" not implemented for 'Half', and what other devices say
            if side > 128:
                raise
            return None
        if 2 * side > largest or 8 * seconds > MATMUL_SECONDS:
            return Work(call, 2.0 * side**3)
        side *= 2


def decode_work() -> Work:
    """A photograph's file decoded to RGB by one core; in pictures."""
    data = photograph()
    return Work(lambda: decode_image(data), 1)


@functools.cache
def photograph(seed: int = 0) -> bytes:
    """A JPEG of 500×375 about as hard to decode as a photograph: about 120 kB, as ImageNet's are on average.

    Noise whose amplitude falls as 1/frequency, as that of natural scenes does (Field 1987); colours vary less than
    brightness.
    """
    rng = np.random.default_rng(seed)
    width, height = PHOTOGRAPH
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean
    planes = []
    for contrast in (48.0, 14.0, 14.0):  # brightness, and two differences of colour, in levels of 255
        phase = rng.uniform(0, 2 * np.pi, frequency.shape)
        plane = np.fft.irfft2(np.exp(1j * phase) / frequency, s=(height, width))
        planes.append(128 + plane * (contrast / plane.std()))
    pixels = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "YCbCr").convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()
