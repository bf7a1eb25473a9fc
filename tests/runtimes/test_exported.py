"""Exported files in place of runs: the same predictions, without torch where possible; and what is rejected."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import alexnet
from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.inference.load import is_run_reference, load_model, model_id
from alexnet.inference.predict import load, load_fast
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import Manifest, check_installed, manifest_path, read_manifest
from alexnet.runtimes.signature import is_signed, key_path, sign


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
    assert run(["eval", str(exported / name), "--data", str(large_images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(["eval", str(checkpoint), "--data", str(large_images), "--json", "--device", "cpu"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert [found[key] for key in ("top1", "n", "split")] == [expected[key] for key in ("top1", "n", "split")]


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
    with pytest.raises(UserError, match=rf"{part} is damaged or another file: its checksum"):
        open_exported(export_folder / name)


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
        open_exported(export_folder / "net.pt")
    (export_folder / "net.bin").unlink()
    with pytest.raises(UserError, match=r"net\.bin, a part of .*, is missing"):
        open_exported(export_folder / "net.xml")


def test_file_renamed_with_its_manifest_opens(export_folder):
    (export_folder / "net.onnx").rename(export_folder / "fruit.onnx")
    (export_folder / "net.onnx.json").rename(export_folder / "fruit.onnx.json")
    assert open_exported(export_folder / "fruit.onnx").classes == ("apple", "leaf", "sky")


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_format_that_runs_code_needs_a_manifest_or_trust(export_folder, large_images, capsys, name):
    (export_folder / f"{name}.json").unlink()
    image = str(large_images / "sky" / "1.jpg")
    assert run(["predict", str(export_folder / name), image]) == 2
    assert "opening torchscript files can run code" in capsys.readouterr().err.replace("pt2 files", "torchscript files")
    assert run(["predict", str(export_folder / name), image, "--trust"]) == 0
    assert run(["eval", str(export_folder / name), "--data", str(large_images)]) == 2
    assert run(["eval", str(export_folder / name), "--data", str(large_images), "--trust"]) == 0


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_signature_of_another_user_needs_trust(export_folder, large_images, tmp_path, monkeypatch, capsys, name):
    arguments = ["predict", str(export_folder / name), str(large_images / "sky" / "1.jpg")]
    key = key_path().read_bytes()
    assert key_path().stat().st_mode & 0o777 == 0o600
    assert run(arguments) == 0
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    for content, mode in (
        (b"", 0o600),
        (bytes(32), 0o600),
        (key, 0o644),
    ):  # damaged, another user's, readable by all
        key_path().write_bytes(content)
        key_path().chmod(mode)
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert f"{name} is not signed as exported by you on this machine" in error
        assert "can run code; if you know where it comes from, add --trust" in error
    key_path().unlink()
    assert run(arguments) == 2
    assert not key_path().exists()  # reading creates none
    assert run([*arguments, "--trust"]) == 0


def test_concurrent_signing_creates_one_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "new" / "cache"))
    with ThreadPoolExecutor(8) as threads:
        signatures = set(threads.map(lambda _: sign("pt2", {"net.pt2": "0"}), range(32)))
    assert len(signatures) == 1
    (signature,) = signatures
    assert [path.name for path in key_path().parent.iterdir()] == ["export.key"]
    assert is_signed(signature, "pt2", {"net.pt2": "0"})
    for kind, digits in (("torchscript", "0"), ("pt2", "1")):
        assert not is_signed(signature, kind, {"net.pt2": digits})


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
    again = Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())), "there")
    assert again == manifest


DAMAGED_FIELDS = [
    ({"classes": []}, "is damaged (classes is not a list of names)"),
    ({"classes": "abc"}, "is damaged (classes is not a list of names)"),
    ({"classes": ["a", "b"]}, "does not return a number for each of the 2 classes"),
    ({"classes": list("abcd")}, "does not return a number for each of the 4 classes"),
    ({"pixels": "x"}, "is damaged (pixels is not true or false)"),
    ({"pixels": True}, "cannot process an image as"),
    ({"spec": 5}, "is damaged (spec is not an object)"),
    ({"network": None}, "is damaged (network is not a name)"),
    ({"calibration": [1]}, "is damaged (calibration is not an object)"),
    ({"sha256": ["x"]}, "is damaged (sha256 is not an object of checksums)"),
    ({"sha256": {}}, "has no checksum of net.onnx"),
    ({"sha256": {"net.bin": "0"}}, "net.bin is damaged or another file"),
    ({"kind": []}, "is damaged (unhashable"),
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


def test_manifest_without_checksums_needs_trust(export_folder, large_images, capsys):
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
    assert run(arguments) == 2
    assert "has no checksum of net.onnx" in capsys.readouterr().err
    assert run([*arguments, "--trust"]) == 0


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2", "net"])
def test_model_id_depends_on_weights_and_classes(export_folder, tmp_path, name):
    """`predict --out` resumes only with the same network."""
    file, manifest = export_folder / name, manifest_path(export_folder / name)
    content = json.loads(manifest.read_text())
    names = [model_id(file)]
    for part, digits in content["sha256"].items():
        manifest.write_text(
            json.dumps({**content, "sha256": {**content["sha256"], part: f"{int(digits, 16) ^ 1:064x}"}})
        )
        names.append(model_id(file))
    manifest.write_text(json.dumps({**content, "classes": ["leaf", "apple", "sky"]}))
    names.append(model_id(file))
    assert len(set(names)) == len(names)
    assert model_id(file) == names[-1]

    manifest.write_text(json.dumps(content))
    names = [model_id(file, trust=True)]
    for part in content["sha256"]:  # not compared with the checksums now
        path = file / part if file.is_dir() else export_folder / part
        path.write_bytes(path.read_bytes() + b" ")
        names.append(model_id(file, trust=True))
    assert len(set(names)) == len(names)
    if not file.is_dir():
        manifest.unlink()
        names = [model_id(file)]
        for part in content["sha256"]:
            (export_folder / part).write_bytes((export_folder / part).read_bytes() + b" ")
            names.append(model_id(file))
        assert len(set(names)) == len(names)


def test_missing_package_is_reported_with_its_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    packages = {"onnx": "onnxruntime", "executorch": "executorch", "huggingface": "huggingface_hub"}
    extras = {"onnx": "fast", "executorch": "executorch", "huggingface": "hub"}
    for kind, package in packages.items():
        message = f"The format {kind} needs {package}; install it with: pip install 'alexnet[{extras[kind]}]'."
        with pytest.raises(UserError, match=re.escape(message)):
            check_installed(kind, writing=True)


def test_exported_file_is_unsure_where_the_checkpoint_is(exported, calibrated_checkpoint, large_images):
    images = sorted(large_images.rglob("*.jpg"))
    found = list(load_fast(exported / "net.onnx").predict_many(images))
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
        "from alexnet.inference.predict import load_fast\n"
        f"image, names = {str(large_images / 'sky' / '1.jpg')!r}, {[str(export_folder / name) for name in names]!r}\n"
        "models = [load_fast(name) for name in names]\n"
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
