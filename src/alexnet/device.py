"""The machine: device and precision, CPU, memory and allocator, this process's rank, and env.json.

Only this module queries torch for its devices and the environment for the rank.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import platformdirs

from alexnet.errors import UserError, unknown_name
from alexnet.files import read_json, write_json

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OWN_CGROUP = Path("/proc/self/cgroup")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # attributes of torch


def cache_dir() -> Path:
    """Return the only folder written to besides run folders: `$ALEXNET_CACHE`, else the system's place for caches.

    A user without a home folder, as in a container with an unknown uid, has it among the temporary files.
    """
    if chosen := os.environ.get("ALEXNET_CACHE"):
        return Path(chosen)
    try:
        folder = platformdirs.user_cache_path("alexnet", appauthor=False)
        if folder.is_absolute():  # older versions of platformdirs return ~/.cache
            return folder
    except RuntimeError:
        pass
    try:
        return Path(tempfile.gettempdir()) / f"alexnet-{os.getuid()}"
    except FileNotFoundError as error:
        raise UserError(
            "This user has neither a home folder nor a place for temporary files; set ALEXNET_CACHE and TMPDIR to "
            "writable folders."
        ) from error


def package_environment() -> dict[str, str]:
    """Return the environment of a Python process that is to find this package."""
    search_path = filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}


# ── device and precision ──────────────────────────────────────────────────────────────────────────


def available_devices() -> list[str]:
    """Return the types of device that torch can use here, fastest first."""
    import torch

    devices = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def pick_device(name: str = "auto") -> torch.device:
    """Return the device `name`; `auto` is the fastest one here. Raises `UserError` if it is not available.

    With several processes on this machine, each gets its own GPU, or all get the CPU if there are too few GPUs.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    limit_threads()
    import torch

    if (processes := local_world_size()) > 1:
        return _pick_local_device(name, processes)
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UserError(
            f"--device {name} is not usable on this machine, which has {', '.join(available)}; "
            "leave --device out, or run 'alexnet doctor' to see what is missing."
        )
    return torch.device(name)


def _pick_local_device(name: str, processes: int) -> torch.device:
    """Return the device of this process, one of `processes` here. Raises the same `UserError` on every rank."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cuda") and gpus >= processes:
        return torch.device("cuda", local_rank())
    if name in ("auto", "cpu"):
        return torch.device("cpu")
    raise UserError(
        f"--device {name} cannot serve the {processes} processes on this machine, which has {gpus} CUDA GPUs; "
        "use --device cpu."
    )


@dataclass(frozen=True)
class Precision:
    """The dtype of convolutions and matrix products; weights, losses and updates stay float32."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, DTYPES[self.name])

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context to run the model in; it does nothing for fp32."""
        import torch

        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "fp32")


def pick_precision(name: str, device: torch.device) -> Precision:
    """Return the precision `name`; `auto` is bf16 where it is measurably faster, else fp32.

    Many CPUs accept bfloat16 but emulate it, hundreds of times slower than float32. So `auto` times
    two small layers in both dtypes, once per machine, and caches the result in `cache_dir()`.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return Precision(name, "as requested")
    import torch

    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "this GPU has bfloat16 hardware")
        return Precision("fp32", "this GPU has no bfloat16 hardware; --precision fp16 may be faster")
    if device.type == "mps":
        return Precision("fp32", "the safe choice on MPS")
    gain = _bf16_gain_on_cpu()
    if gain >= 1.3:
        return Precision("bf16", f"measured {gain:.1f}x as fast as fp32 on this CPU")
    return Precision("fp32", f"bf16 measured {gain:.2g}x as fast as fp32 on this CPU")


def _bf16_gain_on_cpu() -> float:
    """Return the speed of training small layers in bfloat16 relative to float32 on this CPU; cached on disk."""
    import torch

    key = f"{cpu_name()} | torch {torch.__version__} | {torch.get_num_threads()} threads"
    path = cache_dir() / "bf16.json"
    try:
        cached = read_json(path, dict[str, float])
    except (OSError, UserError):
        cached = {}
    if key in cached:
        return cached[key]
    fp32 = _time_layers(torch.float32, give_up=60.0)
    gain = fp32 / _time_layers(torch.bfloat16, give_up=3 * fp32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**cached, key: gain})
    except OSError:
        pass  # with a read-only home it is measured each time
    return gain


def _time_layers(dtype: torch.dtype, give_up: float) -> float:
    """Return the shortest time, in seconds, of a small convolution and a linear layer, forward and backward.

    Both layers, since a CPU may emulate only one of them; the shortest time, since the first try also pays for the
    kernels that are built then. It is the time that the thread computes, which other programs hardly change: the choice
    that follows is kept on disk, and must not depend on how busy the machine was. Stops when two tries took longer
    than `give_up` seconds.
    """
    import torch

    x = torch.ones(8, 32, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.ones(64, 32, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    features = torch.ones(64, 512, dtype=dtype)
    matrix = torch.ones(512, 512, dtype=dtype).requires_grad_()
    best = float("inf")
    with one_thread():  # on a busy machine threads wait for each other, which would hide the difference
        for tries in range(1, 10):
            start = time.thread_time()
            torch.nn.functional.conv2d(x, kernel, padding=1).sum().backward()
            torch.nn.functional.linear(features, matrix).sum().backward()
            best = min(best, time.thread_time() - start)
            if best > give_up and tries > 1:
                break
    return best


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch compute on one thread within this context."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_name() -> str:
    """Return the CPU's model name where the system provides it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_count(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use; `taskset` or a container's quota may allow fewer than exist."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders(cgroup, "cpu"):
        quota = _read_words(folder / "cpu.max")  # microseconds of CPU time per period, and the period
        quota = quota or [*_read_words(folder / "cpu.cfs_quota_us"), *_read_words(folder / "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0].isdecimal() and int(quota[1]) > 0:
            cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def limit_threads() -> None:
    """Make torch use at most `cpu_count()` threads, unless OMP_NUM_THREADS says how many.

    torch starts one per core of the machine. More than a container's quota use it up early in each period and wait.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > (cores := cpu_count()):
        torch.set_num_threads(cores)


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory available, also in a container; 4 GiB if the system does not report it."""
    words = _read_words(Path("/proc/meminfo"))
    free = int(words[words.index("MemAvailable:") + 1]) * 1024 if "MemAvailable:" in words else 4 << 30
    for folder in _cgroup_folders(cgroup, "memory"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _read_words(folder / limit_file), _read_words(folder / used_file)
            if limit and used and limit[0].isdecimal():
                free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders under `root` whose limits on `controller` apply to this process, of cgroup version 1 and 2.

    These are its own and those above it, as /proc/self/cgroup names them. A container often sees its own as the root.
    """
    hierarchies = {root: PurePosixPath("/"), root / controller: PurePosixPath("/")}
    for line in _read_words(OWN_CGROUP):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            hierarchies[root] = PurePosixPath(path)
        elif controller in controllers.split(","):
            hierarchies[root / controller] = PurePosixPath(path)
    for hierarchy, inside in hierarchies.items():
        for folder in (inside, *inside.parents):
            yield hierarchy / str(folder).lstrip("/")


def peak_memory(device: torch.device | None = None) -> int | None:
    """Return this process's peak memory in bytes, or on a GPU torch's peak allocation; None on Windows."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()  # getrusage includes the parent's memory at the fork
        return int(status[status.index("VmHWM:") :].split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def tune_malloc() -> bool:
    """Make glibc reuse freed memory instead of returning it to the system; return whether that worked.

    By default glibc maps every new large tensor and unmaps it when freed; the kernel then clears
    and faults in its pages each time, 80,000 times in a training step of `torchvision` on 32
    images: a third of its time on two cores. Afterwards the process never shrinks, but its peak is
    no larger. No effect with other allocators (musl, macOS, Windows) or on GPU memory. For
    long-running computations; never called on import.
    """
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, ValueError, OSError):  # no confstr, no such name, or no mallopt
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, _GROW_BY)])


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
_GROW_BY = 64 << 20  # extra bytes requested whenever the heap grows


def use_deterministic_algorithms() -> None:
    """Make torch use bitwise reproducible algorithms only, and raise where it has none.

    For GPUs, where the order of summation otherwise depends on thread timing. Call before the first matrix product.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def _read_words(path: Path) -> list[str]:
    """Return the words of a small system file, or [] if it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []


# ── ranks ─────────────────────────────────────────────────────────────────────────────────────────


def world_size() -> int:
    """Return the number of processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the rank of this process on this machine, which is its GPU's index."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


# ── environment ───────────────────────────────────────────────────────────────────────────────────


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Return the content of env.json: versions, machine, device, seed, command line and git revision."""
    import torch

    packages = ("alexnet", "torch", "torchvision", "numpy", "pillow", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{p: package_version(p) for p in packages}},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "seed": seed,
        "command": _command(),
        "git": _git_revision(),
    }


def _command() -> str | None:
    """Return the command line if this process is the `alexnet` command; None in a script or notebook."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.name == "__main__.py" and program.parent.name == "alexnet":
        return shlex.join(["python", "-m", "alexnet", *sys.argv[1:]])
    return shlex.join(["alexnet", *sys.argv[1:]]) if program.stem == "alexnet" else None


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
