"""No command looks up a host name, or leaves anything in the home folder, whatever its libraries do by default.

A library that is loaded first replaces getaddrinfo, so that lookups of C++ code are recorded, too, and fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import alexnet
from alexnet.cli import COMMANDS

RECORDER = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    char address[16];
    if (!name || inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1) {
        int (*original)() = dlsym(RTLD_NEXT, "getaddrinfo");
        return original(name, service, hints, found);
    }
    int file = open(getenv("LOOKUPS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dprintf(file, "%s\\n", name ? name : "");
    close(file);
    return EAI_FAIL;
}
"""

FEW = {
    "predict": ["predict NET.onnx IMAGE", "predict NET.xml IMAGE"],
}
"""Command → arguments; in any test run."""

MANY = {
    "train": ["train digits --out OUT/run --epochs 1 --width 0.125"],
    "resume": ["resume RUN --epochs +1"],
    "eval": ["eval RUN", "eval NET.onnx --data IMAGES", "eval RUN --engine onnxruntime", "eval RUN --engine openvino"],
    "arch": ["arch cifar"],
    "code": ["code cifar"],
    "check": ["check IMAGES"],
    "pack": ["pack IMAGES OUT/packed"],
    "report": ["report RUN"],
    "show": ["show curves RUN --out OUT/curves.html"],
    "features": ["features RUN IMAGES --out OUT/features.csv"],
    "export": ["export RUN onnx", "export RUN openvino", "export RUN openvino --quantize int8 --tolerance 1"],
    "serve": ["serve NET.onnx --port 0", "serve NET.xml --port 0"],
    "doctor": ["doctor"],
    "ablate": ["ablate nothing --seeds 1 --epochs 1 --width 0.125 --out OUT/ablate"],
    "bench": ["bench predict train --arch cifar --batch-size 4 --seconds 0.1"],
}  # fmt: skip

CASES = [
    *(case for cases in FEW.values() for case in cases),
    *(pytest.param(case, marks=pytest.mark.slow) for cases in MANY.values() for case in cases),
]


def test_every_command_is_tried():
    assert FEW.keys() | MANY.keys() == COMMANDS.keys()


@pytest.fixture(scope="module")
def recorder(tmp_path_factory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("lookups of C++ code are recorded on Linux with a C compiler")
    folder = tmp_path_factory.mktemp("recorder")
    (folder / "recorder.c").write_text(RECORDER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "recorder.so", "recorder.c", "-ldl"], cwd=folder, check=True)
    return folder / "recorder.so"


@pytest.fixture
def environment(recorder, tmp_path) -> dict[str, str]:
    """Variables of a process with an empty home folder, whose lookups are recorded."""
    for name in ("home", "out", "matplotlib"):
        (tmp_path / name).mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "CI", "ORT_", "PYTEST"))}
    return {
        **kept, "HOME": str(tmp_path / "home"), "LD_PRELOAD": str(recorder), "LOOKUPS": str(tmp_path / "lookups"),
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"), "PYTHONPATH": str(Path(alexnet.__file__).parents[1]),
    }  # fmt: skip


def left_behind(tmp_path: Path) -> tuple[str, list[Path]]:
    """Return the lookups and the files in the home folder."""
    lookups = tmp_path / "lookups"
    return lookups.read_text() if lookups.exists() else "", [p for p in (tmp_path / "home").rglob("*") if p.is_file()]


def test_lookups_are_recorded(environment, tmp_path):
    """Otherwise no test below could fail."""
    code = "import socket\ntry: socket.getaddrinfo('host.example', 80)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert left_behind(tmp_path)[0] == "host.example\n"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_command_looks_nothing_up(environment, exported, small_run, large_images, tmp_path, case):
    shutil.copytree(small_run, tmp_path / "run")
    names = {
        "NET": str(exported / "net"), "IMAGES": str(large_images), "IMAGE": str(large_images / "sky" / "0.jpg"),
        "RUN": str(tmp_path / "run"), "OUT": str(tmp_path / "out"),
    }  # fmt: skip
    words = case.split()
    for name, value in names.items():
        words = [word.replace(name, value) if word.startswith(name) else word for word in words]
    process = subprocess.Popen(
        [sys.executable, "-m", "alexnet", *words], env=environment, text=True, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=30 if words[0] == "serve" else 300)  # statistics are sent after seconds
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        assert words[0] == "serve", output
    assert process.returncode in (0, 143 if words[0] == "serve" else 0), output
    assert left_behind(tmp_path) == ("", [])
