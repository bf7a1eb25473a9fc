"""benchmarks/gpu.sh: with --tiny each part runs end to end on a CPU, and states that this measured nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and timeout"
)


def run_script(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


def run_tiny(out: Path, name: str, *arguments: str) -> dict:
    """Run a part with --tiny and return its results."""
    done = run_script(out, *arguments, "--tiny")
    assert done.returncode == 0, done.stderr
    assert "it was not measured on a GPU" in done.stdout
    (path,) = out.iterdir()
    assert path.name == f"{name}-tiny.json"
    results = json.loads(path.read_text())["results"]
    assert results["ran_on_a_gpu"] is False
    return results


@pytest.mark.slow
def test_cifar10_results(tmp_path):
    results = run_tiny(tmp_path, "gpu-cifar10", "cifar10", "--fast", "cifar10", "--best", "ablation")
    (run,) = results["fast"]["runs"]
    assert run["curve"][0]["epoch"] == 1
    assert results["fast"]["reached_78"] in (0, 1)
    assert 0 <= results["best"]["top1"] <= 1


@pytest.mark.slow
def test_fashion_mnist_results(tmp_path):
    results = run_tiny(tmp_path, "gpu-fashion-mnist", "fashion-mnist")
    assert results["recipe"] == "fashion-mnist-d2l"
    assert len(results["curve"]) == 1


@pytest.mark.slow
def test_throughput_results(tmp_path):
    results = run_tiny(tmp_path, "gpu-throughput", "throughput")
    assert results["fp32"]["lrn"]
    assert set(results["loops"]["share_of_limit"]) == {"ours, fp32", "plain, fp32"}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fails_without_a_gpu(tmp_path):
    done = run_script(tmp_path, "fashion-mnist")
    assert done.returncode == 1
    assert done.stderr == "No CUDA GPU was found, so nothing was measured; --tiny tries the script on the CPU.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_throughput_on_a_gpu(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    subprocess.run(["bash", str(SCRIPT), "throughput", "--tiny"], check=True, env=environment)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["results"]["ran_on_a_gpu"] is True


@pytest.mark.slow
def test_an_unknown_part_prints_the_usage(tmp_path):
    done = run_script(tmp_path, "everything")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: benchmarks/gpu.sh")
    assert "{throughput,cifar10,fashion-mnist}" in done.stderr
