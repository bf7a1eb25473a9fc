"""The machine we run on: device, precision, processes, and the source of every random number.

Nothing else asks torch which devices there are, which process this is, or for a seed.

Randomness is counter-based: a draw is a hash of (seed, epoch, sample, purpose), never the next number of some
generator. So it does not matter which worker, process or order computes it, and the exact resumption of a run
needs one integer, the step.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # what torch calls them


def cache_dir() -> Path:
    """The one folder outside a run folder that we write to: `$ALEXNET_CACHE`, else `~/.cache/alexnet`."""
    if chosen := os.environ.get("ALEXNET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet"


# ── device and precision ──────────────────────────────────────────────────────────────────────────────────────


def available_devices() -> list[str]:
    """The kinds of device that torch can use here, fastest first."""
    import torch

    devices = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is the fastest one here. Raises `UserError` if it is not there.

    Of several processes on a machine each gets a GPU of its own, or, where there are too few, the CPU.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    import torch

    if (processes := local_world_size()) > 1:
        return _pick_local_device(name, processes)
    present = available_devices()
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise UserError(
            f"--device {name} is not usable on this machine, which has {', '.join(present)}; "
            "leave --device out, or run 'alexnet doctor' to see what is missing."
        )
    return torch.device(name)


def _pick_local_device(name: str, processes: int) -> torch.device:
    """The device of this process, one of so many on this machine. Raises `UserError` alike in all of them."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and gpus >= processes:
        return torch.device("cuda", local_rank())
    if name in ("auto", "cpu"):
        return torch.device("cpu")
    raise UserError(
        f"--device {name} cannot serve the {processes} processes that run on this machine, which has {gpus} CUDA GPUs; "
        "use --device cpu."
    )


@dataclass(frozen=True)
class Precision:
    """The number format of convolutions and matrix products; weights, losses and updates stay float32."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, DTYPES[self.name])

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the network runs; does nothing for fp32."""
        import torch

        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "fp32")


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision called `name`; `auto` is bf16 where a measurement shows it to be faster, else fp32.

    Many processors accept bfloat16 and emulate it hundreds of times slower than float32, so `auto` times a
    pair of small layers in both, once per machine, and keeps the answer in `cache_dir()`.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return Precision(name, "as asked")
    import torch

    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "this GPU computes bfloat16 in hardware")
        return Precision("fp32", "this GPU has no bfloat16 hardware; --precision fp16 may be faster")
    if device.type == "mps":
        return Precision("fp32", "the safe choice on MPS")
    gain = _bf16_gain_on_cpu()
    if gain >= 1.3:
        return Precision("bf16", f"measured {gain:.1f}x as fast as fp32 on this CPU")
    return Precision("fp32", f"bf16 measured {gain:.2g}x as fast as fp32 on this CPU")


def _bf16_gain_on_cpu() -> float:
    """How many times as fast as in float32 small layers train in bfloat16 on this CPU (cached on disk)."""
    import torch

    key = f"{cpu_name()} | torch {torch.__version__} | {torch.get_num_threads()} threads"
    path = cache_dir() / "bf16.json"
    try:
        known = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    if isinstance(known.get(key), float):
        return float(known[key])
    fp32 = _layers_seconds(torch.float32, give_up=60.0)
    gain = fp32 / _layers_seconds(torch.bfloat16, give_up=3 * fp32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**known, key: gain}, indent=1))
    except OSError:
        pass  # a read-only home costs a moment each time, nothing else
    return gain


def _layers_seconds(dtype: torch.dtype, give_up: float) -> float:
    """The shortest of a few times that a small convolution and a fully connected layer take, forward and backward.

    Both, since a processor may emulate one and not the other; the shortest, since other programs can only add to
    it; and no more tries once one took longer than `give_up` seconds.
    """
    import torch

    x = torch.ones(8, 32, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.ones(64, 32, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    features = torch.ones(64, 512, dtype=dtype)
    matrix = torch.ones(512, 512, dtype=dtype).requires_grad_()
    best = float("inf")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other on a busy machine, which would drown the difference
    try:
        for _ in range(9):
            start = time.perf_counter()
            torch.nn.functional.conv2d(x, kernel, padding=1).sum().backward()
            torch.nn.functional.linear(features, matrix).sum().backward()
            best = min(best, time.perf_counter() - start)
            if best > give_up:
                break
    finally:
        torch.set_num_threads(threads)
    return best


def cpu_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_count(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: `taskset` or a container's quota may allow fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_words(cgroup / "cpu.max")  # microseconds of work, in a period of so many
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that a new allocation can have, in a container too; 4 GiB where the system does not tell."""
    words = _read_words(Path("/proc/meminfo"))
    free = int(words[words.index("MemAvailable:") + 1]) * 1024 if "MemAvailable:" in words else 4 << 30
    limit, used = _read_words(cgroup / "memory.max"), _read_words(cgroup / "memory.current")
    if limit and used and limit[0].isdecimal():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def peak_memory(device: torch.device | None = None) -> int | None:
    """The most bytes that this process has held in memory so far, or on a GPU what torch has had allocated there; None
    on Windows, which does not tell."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory at the start, too
        return int(status[status.index("VmHWM:") :].split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def tune_malloc() -> bool:
    """Keep memory that is freed for the next allocation; whether this system's allocator can be told to.

    The GNU allocator maps each large tensor anew and gives its pages back at once; the kernel then clears and faults
    them in again, 80,000 times in a training step of `torchvision` on 32 images, a third of its time on two cores.
    Afterwards no large block is mapped on its own and nothing is given back: the process stays as large as it ever was,
    which is no larger than it would have been. No effect with other allocators (musl, macOS, Windows) or on a GPU's
    memory. For processes that compute for long; never called on import.
    """
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, ValueError, OSError):  # no confstr, not this name, or no such function
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, _GROW_BY)])


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # the parameters' numbers in glibc's malloc.h
_GROW_BY = 64 << 20  # bytes more than needed that the process grows by


def use_deterministic_algorithms() -> None:
    """Have torch compute with such algorithms alone as give the same bits each time, and raise where it has none.

    For GPUs, where sums are added up in whatever order threads finish; to be called before the first product there.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def _read_words(path: Path) -> list[str]:
    """What a small system file says; nothing where there is none."""
    try:
        return path.read_text().split()
    except OSError:
        return []


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────


def world_size() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, counted from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine this is, counted from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
