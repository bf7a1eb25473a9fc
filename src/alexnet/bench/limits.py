"""The limits of this machine, as work to be timed: memory bandwidth, matrix products, JPEG decoding."""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from PIL import Image

from alexnet.bench.timing import Work, synchronizer, time_interleaved
from alexnet.data.decode import decode_image
from alexnet.device import Precision, free_memory

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # larger than any cache
LARGEST_MATRIX = {"cpu": 4096, "cuda": 16384}
MATMUL_SECONDS = 0.3  # upper bound for one product
PHOTO_SIZE = (500, 375)  # the most frequent size in ImageNet


def free_device_memory(device: torch.device) -> int:
    """Return the free bytes of the memory that `device` uses."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def copy_work(device: torch.device) -> Work:
    """Return the copy of a large tensor; its amount is the bytes read plus the bytes written.

    Cache lines that are fetched before being overwritten are not counted.
    """
    size = min(COPY_BYTES.get(device.type, COPY_BYTES["cpu"]), free_device_memory(device) // 16)
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return Work(functools.partial(target.copy_, source), 2 * source.nbytes)


def matmul_work(precision: str, device: torch.device) -> Work | None:
    """Return the largest square matrix product within `MATMUL_SECONDS`, in operations (2 per multiply-accumulate).

    Starts small and doubles, since many CPUs emulate bfloat16 and float16 hundreds of times slower than float32. None
    if the device does not support the product.
    """
    largest, dtype = LARGEST_MATRIX.get(device.type, LARGEST_MATRIX["cpu"]), Precision(precision, "").dtype
    side, wait = 128, synchronizer(device)
    while True:
        try:
            a = torch.randn(side, side, device=device).to(dtype)
            call = functools.partial(torch.mm, a, a.clone(), out=torch.empty_like(a))
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


@functools.cache
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
