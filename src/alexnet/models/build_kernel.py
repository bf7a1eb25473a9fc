"""C kernels, compiled once on the machine that runs them, in under a second.

A plain C file needs no torch headers: `ctypes` passes it the addresses of tensors. The library is cached in
`device.cache_dir()` under a hash of source, compiler and processor, and written atomically, so several processes may
build it at the same time. Linux only; elsewhere, or without a compiler, callers need a fallback. `$ALEXNET_COMPILER`
names the compiler; `none` disables building.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from alexnet.device import cache_dir, cpu_name
from alexnet.files import atomic_write

FLAGS = ("-O2", "-ftree-vectorize", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


class KernelUnavailable(Exception):
    """No kernel can be built; the message is the reason. `expected`: whether this needs no warning."""

    def __init__(self, reason: str, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


def load_library(source: Path) -> ctypes.CDLL:
    """Return the library of the C file `source`, building it if needed. Raises `KernelUnavailable`."""
    path = _library_path(source)
    try:
        if path.stat().st_uid in (0, os.getuid()):  # never run code that another user put there
            return _open(path)
    except OSError:
        pass  # missing or damaged
    return _build(_find_compiler(), source, path)


def _library_path(source: Path) -> Path:
    """Return the cached library's path, which depends on source, compiler, flags and processor."""
    parts = [source.read_text(), _find_compiler(), *FLAGS, _describe_processor()]
    key = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
    return cache_dir() / "native" / f"{source.stem}-{key}.so"


def _build(compiler: str, source: Path, path: Path) -> ctypes.CDLL:
    """Build `source` in a temporary folder, load it, and copy it to `path` if that is writable."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled, linked = Path(folder) / "a.o", Path(folder) / path.name
            # Linked without OpenMP, so it uses the OpenMP runtime, and the threads, that torch has loaded.
            commands = [*FLAGS, "-c", str(source), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(linked)]
            for command in commands:
                subprocess.run([compiler, *command], check=True, capture_output=True, timeout=60)
            opened = _open(linked)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as partial:
                    shutil.copyfile(linked, partial)
            except OSError:
                pass  # read-only cache folder: each process builds its own
            return opened
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise KernelUnavailable(
            f"{compiler} failed: {lines[0] if lines else f'exit code {error.returncode}'}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailable(f"the library built by {compiler} cannot be used: {error}") from error


def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)  # now: missing symbols must fail here, not at the first call


def _find_compiler() -> str:
    """Return the path of the C compiler. Raises `KernelUnavailable`."""
    if sys.platform != "linux":
        raise KernelUnavailable("C kernels are built on Linux only", expected=True)
    chosen = os.environ.get("ALEXNET_COMPILER")
    if chosen == "none":
        raise KernelUnavailable("ALEXNET_COMPILER is none", expected=True)
    for name in [chosen] if chosen else ["gcc", "cc"]:
        if path := shutil.which(name):
            return os.path.realpath(path)
    raise KernelUnavailable(f"there is no {chosen}" if chosen else "there is no C compiler; install gcc")


def _describe_processor() -> str:
    """Return what `-march=native` depends on; the name alone does not show instructions masked by a virtual machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return cpu_name()
    return cpu_name() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
