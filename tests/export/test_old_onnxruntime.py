"""ONNX files are read by the oldest onnxruntime that the export names, with the same results.

`OLD_ONNXRUNTIME` names Python programs with old releases, separated as in PATH; each reads the files meant for it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from alexnet.checkpoint import save_model
from alexnet.cli import run
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.export.export import Exporter
from alexnet.inference.load import load_model
from alexnet.runtimes.convert import describe, write_onnx
from helpers import CLASS_NAMES, make_confident_model

pytestmark = pytest.mark.usefixtures("converts_once")

PYTHONS = [python for python in os.environ.get("OLD_ONNXRUNTIME", "").split(os.pathsep) if python]
READ = (
    "import sys, numpy as np, onnxruntime; print(onnxruntime.__version__);"
    "x = np.load(sys.argv[2]); n = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']);"
    "np.save(sys.argv[3], n.run(None, {'input': x})[0])"
)


def write(folder: Path, network: str = "cifar", precision: str = "fp32", opset: int | None = None) -> Path:
    save_model(folder, make_confident_model(network), CLASS_NAMES, EvalTransform(32))
    loaded = load_model(folder)
    manifest = describe(loaded, "onnx", True, precision)
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8)
    write_onnx(loaded, manifest, folder / "net.onnx", lambda: images, opset=opset)
    return folder / "net.onnx"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "opset", "expected"),
    [
        ("cifar", None, (14, 7, "1.12")), ("cifar", 17, (17, 8, "1.12")),
        ("cifar-towers", None, (18, 8, "1.14")),
        ("cifar", 20, (20, 9, "1.17")),
        ("cifar", 23, (23, 11, "1.23")),
    ],
)  # fmt: skip
def test_file_has_the_lowest_versions_or_those_asked_for(tmp_path, network, opset, expected):
    model = onnx.load(write(tmp_path, network, opset=opset))
    onnx.checker.check_model(model, full_check=True)
    about = json.loads(model.metadata_props[0].value)
    assert (model.opset_import[0].version, model.ir_version) == expected[:2]
    assert (about["opset"], about["ir_version"], about["oldest_onnxruntime"]) == expected


def test_unusable_opsets_are_refused(tmp_path, checkpoint, large_images, capsys):
    with pytest.raises(UserError, match=r"needs opset 14 in ONNX; use --opset 14, or omit it\."):
        write(tmp_path, opset=13)
    with pytest.raises(UserError, match=r"--opset must be between 7 and 23, not 99\."):
        Exporter(checkpoint, opset=99)
    assert run(["export", str(checkpoint), "pt2", "--opset", "14"]) == 2
    assert "--opset is a version of ONNX; omit it for pt2, or export to onnx." in capsys.readouterr().err


@pytest.mark.slow
def test_oldest_onnxruntime_is_printed(checkpoint, large_images, tmp_path, capsys):
    command = ["export", str(checkpoint), "onnx", "--images", str(large_images), "--out", str(tmp_path / "net.onnx")]
    assert run(command) == 0
    assert "ONNX opset 14, IR version 7: onnxruntime 1.12 and newer read it." in capsys.readouterr().out


@pytest.mark.skipif(not PYTHONS, reason="OLD_ONNXRUNTIME names no Python with an old onnxruntime")
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("precision", ["fp32", "half", "int8", "int8-fc"])
@pytest.mark.parametrize("network", ["cifar", "cifar-towers"])
def test_old_onnxruntime_gives_the_same_results(tmp_path, python, precision, network):
    file = write(tmp_path, network, precision)
    oldest = json.loads(onnx.load(file).metadata_props[0].value)["oldest_onnxruntime"]
    np.save(tmp_path / "images.npy", np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), np.uint8))
    results = []
    for program, name in ((python, "old.npy"), (sys.executable, "new.npy")):
        command = [program, "-c", READ, str(file), str(tmp_path / "images.npy"), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
        version = tuple(map(int, done.stdout.split(".")[:2]))
        if version < tuple(map(int, oldest.split("."))):
            pytest.skip(f"it is for onnxruntime {oldest}")
        assert done.returncode == 0, done.stderr
        results.append(np.load(tmp_path / name))
    assert results[0] == pytest.approx(results[1], abs=0.05 if precision == "half" else 1e-3)
