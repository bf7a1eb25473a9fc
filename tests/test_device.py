import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from alexnet import device, rng
from alexnet.device import (
    DTYPES,
    available_devices,
    cpu_count,
    cpu_name,
    free_memory,
    pick_device,
    pick_precision,
    tune_malloc,
    use_deterministic_algorithms,
    world_size,
)
from alexnet.errors import UserError


def test_draws_depend_on_nothing_but_their_arguments():
    together = rng.uniform(3, 7, [10, 11, 12], "flip", 4)
    alone = rng.uniform(3, 7, [11], "flip", 4)
    assert together.shape == (3, 4)
    np.testing.assert_array_equal(together[1], alone[0])
    np.testing.assert_array_equal(together[:, :2], rng.uniform(3, 7, [10, 11, 12], "flip", 2))


@pytest.mark.parametrize("change", [(4, 7, "flip"), (3, 8, "flip"), (3, 7, "crop")])
def test_draws_change_with_seed_epoch_and_purpose(change):
    seed, epoch, purpose = change
    ids = np.arange(1000)
    a, b = rng.uniform(3, 7, ids, "flip", 1)[:, 0], rng.uniform(seed, epoch, ids, purpose, 1)[:, 0]
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_draws_are_uniform_and_independent():
    u = rng.uniform(0, 0, np.arange(50_000), "test", 3)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.002)
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.02  # neighbouring samples


def test_permutation_visits_everything_once_and_changes_with_the_epoch():
    first, second = rng.permutation(0, 1, 100), rng.permutation(0, 2, 100)
    assert sorted(first) == list(range(100))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, rng.permutation(0, 1, 100))


def test_derived_seeds_fit_torch():
    seeds = {rng.derive_seed(0, "step", i) for i in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    torch.manual_seed(max(seeds))


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == available_devices()[0]
    with pytest.raises(UserError, match="no device 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda is not usable on this machine, which has .*cpu"):
            pick_device("cuda")


def test_precision_is_probed_once_and_remembered(tmp_path, monkeypatch):
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


def test_precision_as_asked():
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


def test_the_machine_is_described():
    assert cpu_count() >= 1
    assert free_memory() > 1 << 20
    assert cpu_name()
    assert world_size() == 1


def test_a_containers_limits_are_seen(tmp_path):
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


PAGES = """
import resource, torch
from torch.nn import functional as F
from alexnet import runtime

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def trained():
    torch.manual_seed(0)
    layer, x = torch.nn.Conv2d(3, 64, 11, stride=4), torch.randn(8, 3, 224, 224)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        layer(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in layer.parameters()]

torch.set_num_threads(1)
plain, many = trained(), faults()
told = runtime.keep_pages()
faults()
kept, few = trained(), faults()
assert all(torch.equal(a, b) for a, b in zip(plain, kept))
assert not told or few < many / 4, (many, few)
print(told)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="faults cannot be counted there")
def test_kept_pages_are_not_faulted_in_again_and_change_no_result():
    """In a process of its own, since it cannot be undone."""
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sys.platform == "linux" and tune_malloc())


@pytest.mark.parametrize("name", ["", "musl", None])
def test_other_allocators_are_left_alone(name, monkeypatch):
    def confstr(_):
        if name is None:
            raise ValueError("unrecognized configuration name")
        return name

    monkeypatch.setattr(device.os, "confstr", confstr, raising=False)
    assert tune_malloc() is False
    monkeypatch.delattr(device.os, "confstr")
    assert tune_malloc() is False


def test_compute_alike_switches_torch_over(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        torch.nn.functional.max_pool2d(x, 3, 2).sum().backward()
        with pytest.raises(RuntimeError, match="deterministic"):  # it does refuse: torch has no such form of this
            torch.nn.functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.long), 2)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
