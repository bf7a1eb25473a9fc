"""Choice of device and precision, limits of the machine, the allocator, and the environment record."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from alexnet import device
from alexnet.device import (
    DTYPES,
    available_devices,
    cache_dir,
    cpu_count,
    cpu_name,
    environment,
    free_memory,
    pick_device,
    pick_precision,
    tune_malloc,
    use_deterministic_algorithms,
    world_size,
)
from alexnet.errors import UserError


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == available_devices()[0]
    with pytest.raises(UserError, match="no device 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda is not usable on this machine, which has .*cpu"):
            pick_device("cuda")


def test_the_cache_is_where_the_user_or_the_system_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "chosen"))
    assert cache_dir() == tmp_path / "chosen"
    monkeypatch.setenv("ALEXNET_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir().is_relative_to(Path.home())
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_dir() == tmp_path / "alexnet"


def test_the_bf16_measurement_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path))
    cpu = torch.device("cpu")
    first = pick_precision("auto", cpu)
    stored = json.loads((tmp_path / "bf16.json").read_text())
    (key,) = stored
    assert stored[key] > 0
    assert first.name == ("bf16" if stored[key] >= 1.3 else "fp32")
    (tmp_path / "bf16.json").write_text(json.dumps({key: 5.0}))
    assert pick_precision("auto", cpu).name == "bf16"
    (tmp_path / "bf16.json").write_text("damaged")
    assert pick_precision("auto", cpu).name in ("bf16", "fp32")


def test_kernels_built_in_the_first_try_do_not_count(monkeypatch):
    seconds = iter([0.040, *[0.002] * 8])  # as measured on a CPU with AMX, where fp32 takes 8 ms
    clock = iter([t for start, s in enumerate(seconds) for t in (start, start + s)])
    monkeypatch.setattr(device.time, "thread_time", lambda: next(clock))
    assert device._time_layers(torch.float32, give_up=3 * 0.008) == pytest.approx(0.002)


def test_requested_precision():
    cpu = torch.device("cpu")
    for name in DTYPES:
        precision = pick_precision(name, cpu)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        assert precision.dtype == dtype
        with precision.autocast(cpu):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == dtype
    with pytest.raises(UserError, match="fp32"):
        pick_precision("fp23", cpu)


def test_machine_properties():
    assert cpu_count() >= 1
    assert free_memory() > 1 << 20
    assert cpu_name()
    assert world_size() == 1


def test_container_limits_apply(tmp_path):
    assert cpu_count(tmp_path) == cpu_count()
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert cpu_count(tmp_path) == 1
    assert free_memory(tmp_path) == 2_000_000
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu_count(tmp_path) == cpu_count()
    assert free_memory(tmp_path) > 2_000_000


def test_cache_of_a_user_without_a_home(monkeypatch, tmp_path):
    for name in ("ALEXNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # without HOME and for an unknown uid
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_dir() == tmp_path / f"alexnet-{os.getuid()}"

    def no_folder() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    with pytest.raises(UserError, match="set ALEXNET_CACHE and TMPDIR"):
        cache_dir()


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("", "cpu", {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}),  # version 1 in a container
        ("4:cpu,cpuacct:/docker/1\n", "cpu/docker/1", {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}),
        ("0::/user.slice/a.scope\n", "user.slice", {"cpu.max": "100000 100000"}),  # of the group above
        ("0::/user.slice/a.scope\n", "user.slice/a.scope", {"cpu.max": "100000 100000"}),
    ],
)
def test_cpu_quota_of_each_kind_of_control_group(own, folder, files, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "OWN_CGROUP", tmp_path / "self")
    (tmp_path / "self").write_text(own)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (tmp_path / folder / name).write_text(text + "\n")
    assert cpu_count(tmp_path) == 1
    for name in files:
        (tmp_path / folder / name).write_text("-1\n" if "quota" in name else "max 100000\n")
    assert cpu_count(tmp_path) == cpu_count()


def test_memory_limit_of_version_1(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("3000000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000000\n")
    assert free_memory(tmp_path) == 2_000_000


def test_threads_stay_within_the_quota(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "cpu_count", lambda: 2)
    try:
        for requested, expected in (("", 2), ("3", 3)):
            torch.set_num_threads(3)
            monkeypatch.setenv("OMP_NUM_THREADS", requested)
            pick_device("cpu")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


PAGE_FAULTS = """
import resource, torch
from torch.nn import functional as F
from alexnet.device import tune_malloc

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def train():
    torch.manual_seed(0)
    layer, x = torch.nn.Conv2d(3, 64, 11, stride=4), torch.randn(8, 3, 224, 224)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        layer(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in layer.parameters()]

torch.set_num_threads(1)
before, many = train(), faults()
tuned = tune_malloc()
faults()
after, few = train(), faults()
assert all(torch.equal(a, b) for a, b in zip(before, after))
assert not tuned or few < many / 4, (many, few)
print(tuned)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="page faults cannot be counted on Windows")
def test_tune_malloc_saves_page_faults_and_changes_no_result():
    """In a subprocess, since it cannot be undone."""
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sys.platform == "linux" and tune_malloc())


@pytest.mark.parametrize("name", ["", "musl", None])
def test_tune_malloc_leaves_other_allocators_alone(name, monkeypatch):
    def confstr(_):
        if name is None:
            raise ValueError("unrecognized configuration name")
        return name

    monkeypatch.setattr(device.os, "confstr", confstr, raising=False)
    assert tune_malloc() is False
    monkeypatch.delattr(device.os, "confstr")
    assert tune_malloc() is False


def test_use_deterministic_algorithms(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that monkeypatch restores it
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        torch.nn.functional.max_pool2d(x, 3, 2).sum().backward()
        with pytest.raises(RuntimeError, match="deterministic"):  # torch has no deterministic max_unpool2d
            torch.nn.functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.long), 2)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/alexnet", "train", "a b/"], "alexnet train 'a b/'"),
        (["/lib/alexnet/__main__.py", "train"], "python -m alexnet train"),
        (["notebook.py", "train"], None),
    ],
)
def test_environment_records_the_command(monkeypatch, argv, command):
    monkeypatch.setattr("sys.argv", argv)
    assert environment(torch.device("cpu"), 0)["command"] == command


def test_environment_records_versions_and_seed():
    record = environment(torch.device("cpu"), 3)
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["seed"] == 3
    json.dumps(record)
