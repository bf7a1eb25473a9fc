"""`alexnet doctor`: a real convolution, forward and backward, on every device and precision of this machine.

A library that imports may still not compute (a wheel may not fit the GPU), so each result is compared with float64 on
the CPU, and every problem comes with its fix. It also says what is not installed: extras, and a font for Chinese.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.cli.output import print_json, print_lines

if TYPE_CHECKING:
    import torch

# By precision, relative to the largest value; bf16 has 8 significant bits, fp16 11.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}
TRIALS, TRIAL_SECONDS = 10, 0.1  # the fastest of so many counts; no further one is begun after this time
LITTLE_SPACE = 2 << 30  # bytes: a run of the paper's network keeps two checkpoints of about 700 MB


@dataclass(frozen=True)
class Trial:
    """One convolution on one device in one precision."""

    device: str
    precision: str
    ok: bool
    milliseconds: float | None
    detail: str


def examine() -> dict[str, Any]:
    """Try every device and precision of this machine; return the document of `alexnet doctor --json`.

    `healthy` means that every device present computes correctly in float32.
    """
    import torch

    from alexnet.device import available_devices, environment
    from alexnet.plots.style import has_chinese_font

    devices = [torch.device(name) for name in available_devices()]
    trials = [try_convolution(device, precision) for device in devices for precision in TOLERANCE]
    return {
        "healthy": all(t.ok for t in trials if t.precision == "fp32"),
        "environment": environment(devices[0], 0),
        "trials": [asdict(t) for t in trials],
        "missing_extras": missing_extras(),
        "chinese_font": has_chinese_font(),
        "free_disk": shutil.disk_usage(Path.cwd()).free,
        "advice": _advice(trials),
    }


def try_convolution(device: torch.device, precision: str) -> Trial:
    """Run AlexNet's conv2 on a small image, forward and backward, and compare with float64 on the CPU."""
    import torch

    from alexnet.device import Precision, one_thread

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 27, 27, generator=generator, dtype=torch.float64)
    w = torch.randn(32, 16, 5, 5, generator=generator, dtype=torch.float64) * 0.05
    expected = _forward_backward(x, w)
    dtype = Precision(precision, "").dtype
    try:
        with one_thread():  # as `pick_precision` does, whose result stands beside this one
            found = _forward_backward(x.to(device, dtype), w.to(device, dtype))
            seconds: list[float] = []
            while len(seconds) < TRIALS and sum(seconds) < TRIAL_SECONDS:
                start = time.perf_counter()
                found = _forward_backward(x.to(device, dtype), w.to(device, dtype))
                values = [f.double().cpu() for f in found]
                seconds.append(time.perf_counter() - start)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return Trial(str(device), precision, False, None, str(error).strip().splitlines()[0])
    milliseconds = 1000 * min(seconds)
    worst = max(float((v - e).abs().max() / e.abs().max()) for v, e in zip(values, expected, strict=True))
    ok = worst <= TOLERANCE[precision]  # NaN compares false
    return Trial(str(device), precision, ok, milliseconds, f"largest relative difference {worst:.1e}")


def _forward_backward(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn import functional as F

    w = w.detach().requires_grad_()
    y = F.conv2d(x, w, padding=2).relu()
    y.square().mean().backward()
    assert w.grad is not None
    return y.detach(), w.grad


def missing_extras() -> dict[str, list[str]]:
    """Return the packages that are not installed by the extra of alexnet that installs them, except those of `dev`."""
    from alexnet.device import package_version

    try:
        required = metadata.requires("alexnet") or []
    except metadata.PackageNotFoundError:  # imported from a folder
        return {}
    missing: dict[str, list[str]] = {}
    for text in required:
        found = re.match(r"""([\w.-]+).*\bextra == ['"]([\w-]+)['"]""", text)
        if found and found[2] != "dev" and "sys_platform" not in text and package_version(found[1]) is None:
            missing.setdefault(found[2], []).append(found[1])
    return missing


def _advice(trials: list[Trial]) -> list[str]:
    import torch

    from alexnet.device import cache_dir, pick_device, pick_precision
    from alexnet.models.lrn import KernelUnavailable, load_c_kernel
    from alexnet.plots.style import NO_FONT, has_chinese_font

    found = []
    device = pick_device()
    precision = pick_precision("auto", device)
    how = " (a 3×3 convolution and a linear layer)" if "measured" in precision.reason else ""
    found.append(f"'auto' is {device} with {precision.name}: {precision.reason}{how}.")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "this torch is a CPU build" if built is None else f"this torch needs a driver for CUDA {built}"
        found.append(
            f"There is an NVIDIA driver but torch cannot use it: {why}; install a torch build that matches it."
        )
    shm = Path("/dev/shm")
    if shm.is_dir() and (free := shutil.disk_usage(shm).free) < 1 << 30:
        found.append(
            f"/dev/shm has only {free / 2**20:.0f} MiB, so images may have to be read by the main process; "
            "start the container with --shm-size=2g."
        )
    compilers = ("cl",) if sys.platform == "win32" else ("c++", "g++", "clang++")
    if not any(shutil.which(c) for c in compilers):
        found.append("There is no C++ compiler, so --compile does not work; everything else does.")
    try:
        load_c_kernel()
    except KernelUnavailable as why:
        found.append(f"LRN on the CPU is several times slower than it could be: {why}.")
    if missing := missing_extras():
        packages = ", ".join(f"{extra} ({', '.join(names)})" for extra, names in missing.items())
        found.append(f"Not installed: {packages}; install them with: pip install 'alexnet[{','.join(missing)}]'.")
    if not has_chinese_font():
        found.append(f"Figures with --lang zh are in English, as no font has Chinese. {NO_FONT}")
    for folder in {Path.cwd(), cache_dir()}:
        while not folder.exists():
            folder = folder.parent
        if (free := shutil.disk_usage(folder).free) < LITTLE_SPACE:
            shown = f"{free / 2**30:.1f} GiB"
            found.append(f"Only {shown} are free in {folder}; a run of the paper's network needs 1.4 GB.")
    found += [f"{t.device} {t.precision} fails: {t.detail}." for t in trials if not t.ok]
    return found


def doctor(*, json: bool = False) -> int:
    """Run a real convolution, forward and backward, on each device and precision, and report what is missing.

    Args:
        json: Print one JSON document.
    """
    from alexnet.device import free_memory

    found = examine()
    if json:
        print_json(found)
        return 0 if found["healthy"] else 1
    env = found["environment"]
    print(", ".join(f"{name} {version}" for name, version in env["versions"].items() if version))
    memory, disk = free_memory() / 2**30, found["free_disk"] / 2**30
    print(f"{env['cpu']}, {env['cores']} cores, {memory:.1f} GiB of memory and {disk:.1f} GiB of disk free here")
    print(f"{env['platform']}\n")
    print("A convolution (16 to 32 channels, 5×5, two images of 27×27), forward and backward, on one CPU thread:")
    for t in found["trials"]:
        speed = f"{t['milliseconds']:9.2f} ms" if t["milliseconds"] is not None else " " * 12
        print_lines(f"  {'works' if t['ok'] else 'FAILS'}  {t['device']:<5} {t['precision']:<5} {speed}  {t['detail']}")
    print_lines("", *found["advice"])
    return 0 if found["healthy"] else 1
