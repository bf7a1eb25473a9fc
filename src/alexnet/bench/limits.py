"""Timings on a busy machine, and this machine's limits: memory bandwidth, matrix products, JPEG decoding.

Timings are medians of interleaved tries. Disturbances last seconds: interleaving (a b c, a b c, …) spreads them evenly,
so that the ratio of two medians is far more stable than either. So always time the things you compare in one call.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.data.decode import decode_image
from alexnet.device import Precision, free_memory

MIN_TRY_SECONDS = 0.01  # shorter work is repeated within a try, so that call overhead does not count


@dataclass(frozen=True)
class Spread:
    """The median, the lowest and the highest of several tries: seconds per call, or an amount per second."""

    median: float
    low: float
    high: float
    tries: int

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.tries)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_interleaved(
    work: Mapping[str, Callable[[], object]],
    tries: int = 7,
    warmup: int = 1,
    seconds: float | None = None,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Spread]:
    """Return the seconds per call of each callable in `work`, of `tries` interleaved rounds after `warmup` others.

    With `seconds`, no round after the third starts later than that. `wait` is called before each clock reading, e.g.
    `torch.cuda.synchronize` for an asynchronous device.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    started = time.perf_counter()
    for round_ in range(warmup + tries):
        if round_ == warmup:
            started = time.perf_counter()
        if seconds is not None and round_ >= warmup + 3 and time.perf_counter() - started > seconds:
            break
        for name, call in work.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if round_ >= warmup:
                taken[name].append(time.perf_counter() - start)
    return {name: Spread(statistics.median(t), min(t), max(t), len(t)) for name, t in taken.items()}


@dataclass(frozen=True)
class Work:
    """A call and its amount: bytes, floating-point operations or images."""

    call: Callable[[], object]
    amount: float


def measure_rates(work: Mapping[str, Work], seconds: float, device: torch.device) -> dict[str, Spread]:
    """Return the amount per second of each `work`, in turn: of three rounds, and more until `seconds` have passed.

    A share of a limit is the quotient of two rates from one call.
    """
    wait = getattr(torch, device.type).synchronize
    repeats = {name: _count_repeats(w.call, wait) for name, w in work.items()}

    def repeat(name: str) -> None:
        for _ in range(repeats[name]):
            work[name].call()

    calls = {name: partial(repeat, name) for name in work}
    # No warm-up: `_count_repeats` has made the first calls.
    timings = time_interleaved(calls, tries=1000, warmup=0, seconds=seconds, wait=wait)
    rates = {}
    for name, t in timings.items():
        amount = work[name].amount * repeats[name]
        rates[name] = Spread(amount / t.median, amount / t.high, amount / t.low, t.tries)
    return rates


def _count_repeats(call: Callable[[], object], wait: Callable[[], object]) -> int:
    """Return how often to repeat `call` within a try, after a warm-up call."""
    call()
    seconds = time_interleaved({"call": call}, tries=1, warmup=0, wait=wait)["call"].median
    return max(1, round(MIN_TRY_SECONDS / max(seconds, 1e-7)))


# ── limits ────────────────────────────────────────────────────────────────────────────────────────

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # larger than any cache
LARGEST_MATRIX = {"cpu": 4096, "cuda": 16384}
MATMUL_SECONDS = 0.3  # upper bound for one product
PHOTO_SIZE = (500, 375)  # the most frequent size in ImageNet


def free_device_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def copy_work(device: torch.device) -> Work:
    """Return the copy of a large tensor; its amount is the bytes read plus the bytes written.

    Cache lines that are fetched before being overwritten are not counted.
    """
    size = min(COPY_BYTES.get(device.type, COPY_BYTES["cpu"]), free_device_memory(device) // 16)
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return Work(partial(target.copy_, source), 2 * source.nbytes)


def matmul_work(precision: str, device: torch.device) -> Work | None:
    """Return the largest square matrix product within `MATMUL_SECONDS`, in operations (2 per multiply-accumulate).

    Starts small and doubles, since many CPUs emulate bfloat16 and float16 hundreds of times slower than float32. None
    if the device does not support the product.
    """
    largest, dtype = LARGEST_MATRIX.get(device.type, LARGEST_MATRIX["cpu"]), Precision(precision, "").dtype
    side, wait = 128, getattr(torch, device.type).synchronize
    while True:
        try:
            a = torch.randn(side, side, device=device).to(dtype)
            call = partial(torch.mm, a, a.clone(), out=torch.empty_like(a))
            seconds = time_interleaved({"product": call}, tries=3, wait=wait)["product"].low  # one try may be disturbed
        except (RuntimeError, TypeError):  # e.g. "addmm_impl_cpu_" not implemented for 'Half'
            if side > 128:
                raise
            return None
        if 2 * side > largest or 8 * seconds > MATMUL_SECONDS:
            return Work(call, 2.0 * side**3)
        side *= 2


def decode_work() -> Work:
    """Return the decoding of a JPEG photo to RGB on one core, in images."""
    data = make_photo()
    return Work(lambda: decode_image(data), 1)


@cache
def make_photo(seed: int = 0) -> bytes:
    """Return a synthetic 500×375 JPEG about as hard to decode as a photo: 120 kB, ImageNet's average.

    Noise with amplitude ∝ 1/frequency, as in natural scenes (Field 1987); color varies less than brightness.
    """
    rng = np.random.default_rng(seed)
    width, height = PHOTO_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # zero mean
    planes = []
    for contrast in (48.0, 14.0, 14.0):  # Y, Cb and Cr, in levels of 255
        phase = rng.uniform(0, 2 * np.pi, frequency.shape)
        plane = np.fft.irfft2(np.exp(1j * phase) / frequency, s=(height, width))
        planes.append(128 + plane * (contrast / plane.std()))
    pixels = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "YCbCr").convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()
