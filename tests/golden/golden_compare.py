"""Comparison of a golden file with newly computed values, on the same machine or another.

Numbers, names and hashes must be equal, with these exceptions. Floating-point numbers must agree within a tolerance: a
tight one if processor, compiler and libraries are those that the file was written with, else a wider one. Values under
a key that begins with `exact`, such as hashes of numbers whose last bits depend on the environment, are compared only
in the same environment; hashes called `codec_sha256`, of pixels decoded from lossy formats, only with the same codecs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import features


class Tolerance(NamedTuple):
    """The largest difference: `absolute` + `relative` × the stored number."""

    relative: float = 1e-4
    absolute: float = 1e-5


TIGHT = Tolerance()


def environment() -> dict[str, Any]:
    """Return everything that the last bits of a sum depend on."""
    compiler = os.environ.get("ALEXNET_COMPILER") or shutil.which("gcc") or shutil.which("cc") or "none"
    try:
        version = subprocess.run(
            [compiler, "-dumpfullversion"], capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except OSError:
        version = "none"
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "compiler": version,
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
        **codecs(),
    }


def codecs() -> dict[str, str | None]:
    """Return the versions that the pixels decoded from lossy formats depend on."""
    try:
        simplejpeg: str | None = importlib.metadata.version("simplejpeg")
    except importlib.metadata.PackageNotFoundError:
        simplejpeg = None
    libraries = ("jpg", "jpg_2000", "webp", "avif")
    versions = {f"lib{name}": features.version(name) if name in _known_features() else None for name in libraries}
    return {"pillow": importlib.metadata.version("pillow"), "simplejpeg": simplejpeg, **versions}


def _known_features() -> set[str]:
    return {*features.modules, *features.codecs}


def _cpu() -> list[str]:
    """Return the CPU's name and a hash of its flags, some of which a virtual machine may mask."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.processor()]
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [name, digest(flags.encode())]


def digest(data: np.ndarray | torch.Tensor | bytes) -> str:
    """Return the first half of the SHA-256 of dtype, shape and values in C order."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()[:32]
    values = data.detach().cpu().contiguous().numpy() if isinstance(data, torch.Tensor) else np.ascontiguousarray(data)
    return hashlib.sha256(f"{values.dtype} {values.shape} ".encode() + values.tobytes()).hexdigest()[:32]


def summarize(values: np.ndarray | torch.Tensor, samples: int = 6) -> dict[str, Any]:
    """Return shape, mean, standard deviation and some of the values, which show the size of a change."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    flat = array.astype(np.float64).ravel()
    indices = np.linspace(0, len(flat) - 1, min(samples, len(flat))).astype(int)
    return {
        "shape": list(array.shape),
        "mean": _short(flat.mean()),
        "deviation": _short(flat.std()),
        "values": [_short(v) for v in flat[indices]],
    }


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def differences(
    found: Any,
    kept: Any,
    *,
    same_environment: bool,
    same_codecs: bool,
    loose: Tolerance = TIGHT,
    where: str = "",
) -> list[str]:
    """Return a line for each difference of `found`, the new values, from `kept`, the stored ones."""
    options = {"same_environment": same_environment, "same_codecs": same_codecs, "loose": loose}
    if isinstance(kept, dict) and isinstance(found, dict):
        lines = [f"{where}/{key}: missing" for key in kept if key not in found]
        lines += [f"{where}/{key}: new" for key in found if key not in kept]
        for key in kept:
            if key not in found:
                continue
            if (key.startswith("exact") and not same_environment) or (key == "codec_sha256" and not same_codecs):
                continue
            lines += differences(found[key], kept[key], where=f"{where}/{key}", **options)
        return lines
    if isinstance(kept, list) and isinstance(found, list):
        if len(kept) != len(found):
            return [f"{where}: {len(found)} entries instead of {len(kept)}"]
        pairs = enumerate(zip(found, kept, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, where=f"{where}/{i}", **options)]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (found, kept))
    if numbers and (isinstance(found, float) or isinstance(kept, float)):
        within = TIGHT if same_environment else loose
        if math.isclose(found, kept, rel_tol=0, abs_tol=within.absolute + within.relative * abs(kept)):
            return []
    elif type(found) is type(kept) and found == kept:
        return []
    return [f"{where}: {found!r} instead of {kept!r}"]
