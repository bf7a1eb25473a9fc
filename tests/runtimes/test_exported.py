"""Exported files in place of runs: the same predictions, without torch where possible; and what is rejected."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import alexnet
from alexnet.cli import run
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.load import is_run_reference, load_model
from alexnet.inference.predict import load
from alexnet.runtimes import exported as exported_files
from alexnet.runtimes.exported import _try_in_process as try_in_process  # before a fixture replaces it
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import (
    KEY,
    Manifest,
    check_installed,
    exported_model_id,
    manifest_path,
    read_manifest,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_predict_needs_no_torch(exported, checkpoint, large_images, name):
    image = large_images / "leaf" / "2.jpg"
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"from alexnet.cli import run; sys.exit(run(['predict', {str(exported / name)!r}, {str(image)!r}, '--json']))"
    )
    source = str(Path(alexnet.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["predictions"]
    expected = load(checkpoint, device="cpu").predict(image)
    assert [x["label"] for x in found["labels"]] == [label for label, _ in expected.labels]
    assert [x["p"] for x in found["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-5)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_eval_gives_the_metrics_of_the_run(exported, checkpoint, large_images, capsys, name):
    assert run(["eval", str(exported / name), "--data", str(large_images), "--json", "--trust"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(["eval", str(checkpoint), "--data", str(large_images), "--json", "--device", "cpu"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert [found[key] for key in ("top1", "n", "split")] == [expected[key] for key in ("top1", "n", "split")]


def test_image_beside_a_json_file_is_an_image(checkpoint, large_images, tmp_path, capsys):
    photo = shutil.copy(large_images / "sky" / "0.jpg", tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg.json").write_text('{"title": "photo.jpg"}')  # as Google Takeout writes it
    assert not is_run_reference(str(photo))
    assert run(["predict", str(checkpoint), str(photo), "--json"]) == 0
    assert [p["error"] for p in json.loads(capsys.readouterr().out)["predictions"]] == [None]


def test_ten_crop_and_ensembles_accept_exported_files(exported, checkpoint, large_images):
    image = large_images / "sky" / "0.jpg"
    ten = load(exported / "net.onnx").predict(image, views=10)
    assert ten.labels[0][1] == pytest.approx(
        load(checkpoint, device="cpu").predict(image, views=10).labels[0][1], abs=1e-5
    )
    both = load([checkpoint, exported / "net.xml"], device="cpu").predict(image)
    assert both.labels[0][1] == pytest.approx(load(checkpoint, device="cpu").predict(image).labels[0][1], abs=1e-5)
    assert is_run_reference(str(exported / "net.onnx"))
    assert not is_run_reference(str(image))


@pytest.mark.parametrize(("name", "part"), [("net.onnx", "net.onnx"), ("net.xml", "net.bin"), ("net.pt", "net.pt")])
def test_damaged_file_is_rejected(export_folder, name, part):
    content = bytearray((export_folder / part).read_bytes())
    content[len(content) // 2] ^= 1
    (export_folder / part).write_bytes(content)
    for trust in (name == "net.pt", True):  # trust does not skip the checksum
        with pytest.raises(UserError, match=rf"{part} is damaged or another file: its checksum"):
            open_exported(export_folder / name, trust)


def test_swapped_file_is_rejected(export_folder):
    shutil.copy(export_folder / "net.pt2", export_folder / "net.pt")
    shutil.copy(export_folder / "net.onnx.json", export_folder / "net.pte.json")
    (export_folder / "net.pte").touch()
    with pytest.raises(
        UserError,
        match=r"describes a file in the format onnx, but .* has the suffix of the format executorch",
    ):
        open_exported(export_folder / "net.pte")
    with pytest.raises(UserError, match="damaged or another file"):
        open_exported(export_folder / "net.pt", trust=True)
    (export_folder / "net.bin").unlink()
    with pytest.raises(UserError, match=r"net\.bin, a part of .*, is missing"):
        open_exported(export_folder / "net.xml")


def test_file_renamed_with_its_manifest_opens(export_folder):
    (export_folder / "net.onnx").rename(export_folder / "fruit.onnx")
    (export_folder / "net.onnx.json").rename(export_folder / "fruit.onnx.json")
    assert open_exported(export_folder / "fruit.onnx").classes == ("apple", "leaf", "sky")


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_format_that_runs_code_needs_trust(export_folder, large_images, capsys, name, with_manifest):
    if not with_manifest:
        (export_folder / f"{name}.json").unlink()
    image = str(large_images / "sky" / "1.jpg")
    assert run(["predict", str(export_folder / name), image]) == 2
    error = capsys.readouterr().err.replace("pt2 files", "torchscript files")
    assert "opening torchscript files can run code; if you trust where it comes from, add --trust" in error
    assert run(["predict", str(export_folder / name), image, "--trust"]) == 0
    assert run(["eval", str(export_folder / name), "--data", str(large_images)]) == 2
    assert run(["eval", str(export_folder / name), "--data", str(large_images), "--trust"]) == 0


def test_unknown_torchscript_is_rejected(tmp_path):
    class AddOne(torch.nn.Module):
        def forward(self, x):
            return x + 1

    torch.jit.save(torch.jit.script(AddOne()), tmp_path / "unknown.pt")
    with pytest.raises(UserError, match="add --trust"):
        load(tmp_path / "unknown.pt")
    with pytest.raises(UserError, match="does not describe its classes"):
        load(tmp_path / "unknown.pt", trust=True)


def test_rejected_inputs_are_explained(export_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is an exported file, which only predict and eval take; give the run"):
        load_model(export_folder / "net.onnx")
    with pytest.raises(UserError, match="has its own engine; omit --engine openvino"):
        load(export_folder / "net.onnx", engine="openvino")
    (tmp_path / "x.onnx").write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"x\.onnx cannot be opened as onnx \("):
        open_exported(tmp_path / "x.onnx")
    (export_folder / "net.onnx.json").write_text("{")
    with pytest.raises(UserError, match=r"net\.onnx\.json is damaged"):
        open_exported(export_folder / "net.onnx")
    (export_folder / "net.onnx.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="written by other software"):
        open_exported(export_folder / "net.onnx")


def test_manifest_survives_json(export_folder):
    manifest = read_manifest(export_folder / "net.onnx")
    again = Manifest.from_json(manifest.to_json(), "there")
    assert again == manifest


DAMAGED_FIELDS = [
    (
        {"classes": []},
        "is damaged (manifest cannot be [] at classes: expected a list of length at least 1",
    ),
    ({"classes": "abc"}, "is damaged (manifest cannot be 'abc' at classes: expected a list"),
    ({"classes": ["a", "b"]}, "does not return a number for each of the 2 classes"),
    ({"classes": list("abcd")}, "does not return a number for each of the 4 classes"),
    ({"pixels": "x"}, "is damaged (manifest cannot be 'x' at pixels: expected true or false)"),
    ({"pixels": True}, "cannot process an image as"),
    ({"spec": 5}, "is damaged (manifest cannot be 5 at spec: expected an object)"),
    ({"network": None}, "is damaged (manifest cannot be null at network: expected a text)"),
    (
        {"calibration": [1]},
        "is damaged (manifest cannot be [1] at calibration: expected an object or null)",
    ),
    ({"sha256": ["x"]}, 'is damaged (manifest cannot be ["x"] at sha256: expected an object)'),
    ({"sha256": {}}, "has no checksum of net.onnx"),
    ({"sha256": {"net.bin": "0"}}, "net.bin is damaged or another file"),
    ({"kind": []}, "is damaged (manifest cannot be [] at kind: expected a text)"),
    ({"kind": "x"}, "is damaged (there is no format x in fp32)"),
    (
        {"calibration": {"temperature": -1.0, "threshold": 0.5}},
        "calibration: temperature -1 and threshold 0.5 are not usable",
    ),
    ({"preprocess": {"size": "x"}}, "is damaged (Preprocessing field 'size'"),
    ({"preprocess": {"size": 999}}, "cannot process an image as"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED_FIELDS, ids=lambda x: str(x)[:30])
def test_damaged_manifest_is_reported(export_folder, large_images, capsys, damage, message):
    manifest = export_folder / "net.onnx.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **damage}))
    arguments = ["predict", str(export_folder / "net.onnx"), str(large_images / "sky" / "1.jpg")]
    for more in ([], ["--out", str(export_folder / "out.csv")]):
        assert run([*arguments, *more]) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert message in error
    assert not list(export_folder.glob("out.csv*"))


def test_manifest_without_checksums_is_rejected(export_folder, large_images, capsys):
    manifest = export_folder / "net.onnx.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    manifest.write_text(json.dumps(content))
    arguments = [
        "predict",
        str(export_folder / "net.onnx"),
        str(large_images / "sky" / "1.jpg"),
        "--out",
        str(export_folder / "out.csv"),
    ]
    for more in ([], ["--trust"]):
        assert run([*arguments, *more]) == 2
        assert "has no checksum of net.onnx" in capsys.readouterr().err
    manifest.unlink()
    assert run(arguments) == 0  # the file describes itself


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("spec", {"hidden": [300_000, 4096]}, "does not hold the network that is described beside it"),
        ("preprocess", {"size": 10**5}, "more than 4096 pixels is refused"),
        ("preprocess", {"size": 10**5, "mean_image": True}, "more than 4096 pixels is refused"),
    ],
)
def test_a_folder_that_describes_more_than_it_holds_is_refused(export_folder, part, changes, message, monkeypatch):
    """It opens without a manifest, so nothing else verifies config.json."""
    folder = export_folder / "net"
    (folder / "alexnet.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config[part] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("alexnet.runtimes.hub.build", lambda spec: pytest.fail("was built"))
    with pytest.raises(UserError, match=message):
        open_exported(folder)


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2", "net"])
def test_model_id_depends_on_weights_and_classes(export_folder, tmp_path, name):
    """`predict --out` resumes only with the same network."""
    file, manifest = export_folder / name, manifest_path(export_folder / name)
    content = json.loads(manifest.read_text())

    def described_id(**changed):
        return exported_model_id(file, Manifest.from_json(json.dumps({**content, **changed}), "there"))

    names = [described_id(), described_id(classes=["leaf", "apple", "sky"])]
    for part, digits in content["sha256"].items():
        names.append(described_id(sha256={**content["sha256"], part: f"{int(digits, 16) ^ 1:064x}"}))
    assert len(set(names)) == len(names)
    assert described_id() == names[0] == open_exported(file, trust=True).model_id

    names = [exported_model_id(file, None)]
    for part in content["sha256"]:
        path = file / part if file.is_dir() else export_folder / part
        path.write_bytes(path.read_bytes() + b" ")
        names.append(exported_model_id(file, None))
    assert len(set(names)) == len(names)


def test_missing_package_is_reported_with_its_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    packages = {"onnx": "onnxruntime", "executorch": "executorch", "huggingface": "huggingface_hub"}
    extras = {"onnx": "fast", "executorch": "executorch", "huggingface": "hub"}
    for kind, package in packages.items():
        install = f"install it with: pip install 'alexnet[{extras[kind]}]'."
        message = f"The format {kind} needs {package}, which is not installed; {install}"
        with pytest.raises(UserError, match=re.escape(message)):
            check_installed(kind, writing=True)


def test_exported_file_is_unsure_where_the_checkpoint_is(exported, calibrated_checkpoint, large_images):
    images = sorted(large_images.rglob("*.jpg"))
    found = list(load(exported / "net.onnx").predict_many(images))
    expected = list(load(calibrated_checkpoint, device="cpu").predict_many(images))
    assert [p.unsure for p in found] == [p.unsure for p in expected]
    assert {p.unsure for p in found} == {True, False}
    assert [p.confidence for p in found] == pytest.approx([p.confidence for p in expected], abs=1e-5)
    loaded = load(exported / "net.onnx").predict(images[0])
    assert loaded.confidence == pytest.approx(found[0].confidence, abs=1e-5)


@pytest.mark.parametrize(
    "names",
    [("net.onnx", "net.xml"), pytest.param(("net.pt", "net.pt2"), marks=pytest.mark.slow)],
    ids="+".join,
)
def test_opened_file_is_in_memory(export_folder, large_images, names):
    """A server keeps running when a file is swapped or damaged. In a separate process, which a memory-mapped file would
    kill."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from alexnet.inference.predict import load\n"
        f"image, names = {str(large_images / 'sky' / '1.jpg')!r}, {[str(export_folder / name) for name in names]!r}\n"
        "models = [load(name, trust=True) for name in names]\n"
        "before = [model.predict(image) for model in models]\n"
        f"for path in Path({str(export_folder)!r}).iterdir():\n"
        "    if not path.is_file(): continue\n"
        "    size = path.stat().st_size\n"
        "    with path.open('r+b') as file:\n"
        "        file.write(os.urandom(size))\n"
        "        file.truncate(size // 3)\n"
        "assert before == [model.predict(image) for model in models]\n"
        "print('unchanged')\n"
    )
    source = str(Path(alexnet.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.stdout == "unchanged\n", (done.returncode, done.stderr)


# ── files that never finish ───────────────────────────────────────────────────────────────────────


def endless_onnx(path: Path, constant: bool) -> Path:
    """Write a network with an endless loop: of constants, which OpenVINO computes when it opens the file, or one that
    begins with the first image."""
    import onnx
    from onnx import helper, numpy_helper

    def value(name, dtype, shape):
        return helper.make_tensor_value_info(name, dtype, shape)

    float32, boolean, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL, onnx.TensorProto.INT64
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Add", ["x", "one"], ["next"])],
        "body",
        [value("number", int64, []), value("go", boolean, []), value("x", float32, [])],
        [value("again", boolean, []), value("next", float32, [])],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    nodes = [
        helper.make_node("Cast", ["input"], ["pixels"], to=float32),
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
        helper.make_node("ReduceMean", ["means"], ["start"], keepdims=0),
        helper.make_node("Loop", ["", "true", "zero" if constant else "start"], ["end"], body=body),
        helper.make_node("Add", ["logits", "end"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [value("input", onnx.TensorProto.UINT8, ["batch", 3, 32, 32])],
        [value("output", float32, ["batch", 3])],
        [numpy_helper.from_array(np.array(True), "true"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)
    manifest = Manifest("onnx", "cifar", {}, ("a", "b", "c"), EvalTransform(32), pixels=True)
    helper.set_model_props(model, {KEY: manifest.to_json()})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "constant"),
    [("onnx", True), ("openvino", True), pytest.param("onnx", False, marks=pytest.mark.slow)],
)
def test_endless_loop_is_stopped(tmp_path, monkeypatch, kind, constant):
    file = endless_onnx(tmp_path / "endless.onnx", constant)
    if kind == "openvino":
        openvino = pytest.importorskip("openvino")
        model = openvino.Core().read_model(file)
        manifest = Manifest("openvino", "cifar", {}, ("a", "b", "c"), EvalTransform(32), pixels=True)
        model.set_rt_info(manifest.to_json(), [KEY])
        file = tmp_path / "endless.xml"
        openvino.save_model(model, file)
    monkeypatch.setattr(exported_files, "_try_in_process", try_in_process)
    monkeypatch.setattr(exported_files, "TRIAL_SECONDS", 2)
    message = re.escape(f"{file} was not opened, because it takes more than 2 seconds for one image: it may contain an")
    with pytest.raises(UserError, match=message):
        open_exported(file)


def test_crash_of_a_runtime_is_reported(export_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))  # the file was not tried before
    monkeypatch.setattr(exported_files, "_try_in_process", try_in_process)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11))
    with pytest.raises(UserError, match=r"net\.onnx was not opened, because its runtime crashes with it \(signal 11\)"):
        open_exported(export_folder / "net.onnx")


def test_file_is_tried_once(export_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exported_files, "_try_in_process", try_in_process)
    assert open_exported(export_folder / "net.onnx").classes == ("apple", "leaf", "sky")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it is tried again"))
    open_exported(export_folder / "net.onnx")
