"""C functions that are built on the machine they run on, in under a second, once.

A plain C file needs no headers of torch's: `ctypes` hands its functions the addresses of tensors. What is built is kept
in `runtime.cache_dir()` under a name made of the source, the compiler and the processor, and is put there whole, so
that several processes may build at once. Only on Linux, where it was tried; elsewhere, and where there is no compiler,
callers have another way. `$ALEXNET_COMPILER` names the compiler; `none` forbids building.
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

FLAGS = ("-O2", "-ftree-vectorize", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


class Unavailable(Exception):
    """Nothing can be built here; the text says why. `wanted` is true where the user asked for that."""

    def __init__(self, why: str, wanted: bool = False) -> None:
        super().__init__(why)
        self.wanted = wanted


def library(source: Path) -> ctypes.CDLL:
    """The functions of the C file `source`, built now or earlier. Raises `Unavailable`."""
    path = _path(source)
    try:
        if path.stat().st_uid in (0, os.getuid()):  # code that someone else put there is not for us to run
            return _open(path)
    except OSError:
        pass  # not there, or damaged
    return _build(_compiler(), source, path)


def _path(source: Path) -> Path:
    """Where it is kept: another source, compiler, flag or processor is another file."""
    parts = [source.read_text(), _compiler(), *FLAGS, _processor()]
    key = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
    return cache_dir() / "native" / f"{source.stem}-{key}.so"


def _build(compiler: str, source: Path, path: Path) -> ctypes.CDLL:
    """Build `source` in a temporary folder, open it, and leave it at `path` if that can be written."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled, linked = Path(folder) / "a.o", Path(folder) / path.name
            # Linked without OpenMP: its functions are then those that torch has loaded, with torch's threads.
            commands = [*FLAGS, "-c", str(source), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(linked)]
            for command in commands:
                subprocess.run([compiler, *command], check=True, capture_output=True, timeout=60)
            opened = _open(linked)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(f"{path.name}.{Path(folder).name}")
                shutil.copyfile(linked, beside)
                beside.replace(path)
            except OSError:
                pass  # a read-only home: built anew by each process
            return opened
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{compiler} failed: {said[0] if said else f'exit code {error.returncode}'}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"what {compiler} builds cannot be used: {error}") from error


def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)  # now: what is missing should show here, not at the first call


def _compiler() -> str:
    """The path of the C compiler."""
    if sys.platform != "linux":
        raise Unavailable("C kernels are built on Linux only", wanted=True)
    chosen = os.environ.get("ALEXNET_COMPILER")
    if chosen == "none":
        raise Unavailable("ALEXNET_COMPILER is none", wanted=True)
    for name in [chosen] if chosen else ["gcc", "cc"]:
        if path := shutil.which(name):
            return os.path.realpath(path)
    raise Unavailable(f"there is no {chosen}" if chosen else "there is no C compiler; install gcc")


def _processor() -> str:
    """What decides which instructions `-march=native` uses: the name alone may hide what a virtual machine masks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return cpu_name()
    return cpu_name() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
