"""Exported files as runs: the same labels, without torch where that is possible; and what is not opened."""

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
from alexnet.export.export import Exporter
from alexnet.inference.load import is_run_reference, load_model, model_id
from alexnet.inference.predict import load, load_fast
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import Manifest, check_installed, manifest_path, read_manifest
from alexnet.runtimes.signature import is_signed, key_path, sign
from helpers import make_image


@pytest.fixture(scope="session")
def exported(exports):
    """The folder of all files."""
    return exports["onnx"].file.parent


@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_predict_needs_no_torch(exported, checkpoint, large_images, name):
    picture = large_images / "leaf" / "2.jpg"
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"from alexnet.cli import run; sys.exit(run(['predict', {str(exported / name)!r}, {str(picture)!r}, '--json']))"
    )
    source = str(Path(alexnet.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["predictions"]
    expected = load(checkpoint, device="cpu").predict(picture)
    assert [x["label"] for x in found["labels"]] == [label for label, _ in expected.labels]
    assert [x["p"] for x in found["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-5)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_eval_gives_the_run_s_figures(exported, checkpoint, large_images, capsys, name):
    assert run(["eval", str(exported / name), "--data", str(large_images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(["eval", str(checkpoint), "--data", str(large_images), "--json", "--device", "cpu"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert [found[key] for key in ("top1", "n", "split")] == [expected[key] for key in ("top1", "n", "split")]


def test_ten_views_and_ensembles_take_files_too(exported, checkpoint, large_images):
    picture = large_images / "sky" / "0.jpg"
    ten = load(exported / "net.onnx").predict(picture, views=10)
    assert ten.labels[0][1] == pytest.approx(
        load(checkpoint, device="cpu").predict(picture, views=10).labels[0][1], abs=1e-5
    )
    both = load([checkpoint, exported / "net.xml"], device="cpu").predict(picture)
    assert both.labels[0][1] == pytest.approx(load(checkpoint, device="cpu").predict(picture).labels[0][1], abs=1e-5)
    assert is_run_reference(str(exported / "net.onnx"))
    assert not is_run_reference(str(picture))


@pytest.mark.parametrize(("name", "part"), [("net.onnx", "net.onnx"), ("net.xml", "net.bin"), ("net.pt", "net.pt")])
def test_a_damaged_file_is_not_opened(export_folder, name, part):
    content = bytearray((export_folder / part).read_bytes())
    content[len(content) // 2] ^= 1
    (export_folder / part).write_bytes(content)
    with pytest.raises(UserError, match=rf"{part} is damaged or another file: its checksum"):
        open_exported(export_folder / name)


def test_a_swapped_file_is_not_opened(export_folder):
    shutil.copy(export_folder / "net.pt2", export_folder / "net.pt")
    shutil.copy(export_folder / "net.onnx.json", export_folder / "net.pte.json")
    (export_folder / "net.pte").touch()
    with pytest.raises(
        UserError, match=r"describes a file in the format onnx, but .* has the suffix of the format executorch"
    ):
        open_exported(export_folder / "net.pte")
    with pytest.raises(UserError, match="damaged or another file"):
        open_exported(export_folder / "net.pt")
    (export_folder / "net.bin").unlink()
    with pytest.raises(UserError, match=r"net\.bin, a part of .*, is missing"):
        open_exported(export_folder / "net.xml")


def test_a_renamed_pair_is_opened(export_folder):
    (export_folder / "net.onnx").rename(export_folder / "fruit.onnx")
    (export_folder / "net.onnx.json").rename(export_folder / "fruit.onnx.json")
    assert open_exported(export_folder / "fruit.onnx").classes == ("apple", "leaf", "sky")


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_what_can_run_code_needs_a_checksum_or_trust(export_folder, large_images, capsys, name):
    (export_folder / f"{name}.json").unlink()
    picture = str(large_images / "sky" / "1.jpg")
    assert run(["predict", str(export_folder / name), picture]) == 2
    assert "opening torchscript files can run code" in capsys.readouterr().err.replace("pt2 files", "torchscript files")
    assert run(["predict", str(export_folder / name), picture, "--trust"]) == 0
    assert run(["eval", str(export_folder / name), "--data", str(large_images)]) == 2
    assert run(["eval", str(export_folder / name), "--data", str(large_images), "--trust"]) == 0


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_what_another_user_signed_needs_trust(export_folder, large_images, tmp_path, monkeypatch, capsys, name):
    words = ["predict", str(export_folder / name), str(large_images / "sky" / "1.jpg")]
    key = key_path().read_bytes()
    assert key_path().stat().st_mode & 0o777 == 0o600
    assert run(words) == 0
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    for content, mode in ((b"", 0o600), (bytes(32), 0o600), (key, 0o644)):  # damaged, another's, readable by all
        key_path().write_bytes(content)
        key_path().chmod(mode)
        assert run(words) == 2
        error = capsys.readouterr().err
        assert f"{name} is not signed as exported by you on this machine" in error
        assert "can run code; if you know where it comes from, add --trust" in error
    key_path().unlink()
    assert run(words) == 2
    assert not key_path().exists()  # reading makes none
    assert run([*words, "--trust"]) == 0


def test_one_key_is_made_whoever_is_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "new" / "cache"))
    with ThreadPoolExecutor(8) as threads:
        signatures = set(threads.map(lambda _: sign("pt2", {"net.pt2": "0"}), range(32)))
    assert len(signatures) == 1
    (signature,) = signatures
    assert [path.name for path in key_path().parent.iterdir()] == ["export.key"]
    assert is_signed(signature, "pt2", {"net.pt2": "0"})
    for kind, digits in (("torchscript", "0"), ("pt2", "1")):
        assert not is_signed(signature, kind, {"net.pt2": digits})


def test_a_stranger_s_torchscript_is_not_run(tmp_path):
    class Loud(torch.nn.Module):
        def forward(self, x):
            return x + 1

    torch.jit.save(torch.jit.script(Loud()), tmp_path / "theirs.pt")
    with pytest.raises(UserError, match="add --trust"):
        load(tmp_path / "theirs.pt")
    with pytest.raises(UserError, match="does not describe its classes"):
        load(tmp_path / "theirs.pt", trust=True)


def test_other_things_are_told_what_they_are(export_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is an exported file, which only predict and eval take; give the run"):
        load_model(export_folder / "net.onnx")
    with pytest.raises(UserError, match="has its own engine; omit --engine openvino"):
        load(export_folder / "net.onnx", engine="openvino")
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"x\.onnx cannot be opened as onnx \("):
        open_exported(tmp_path / "x.onnx")
    (export_folder / "net.onnx.json").write_text("{")
    with pytest.raises(UserError, match=r"net\.onnx\.json is damaged"):
        open_exported(export_folder / "net.onnx")
    (export_folder / "net.onnx.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="written by other software"):
        open_exported(export_folder / "net.onnx")


def test_a_description_survives_json(export_folder):
    description = read_manifest(export_folder / "net.onnx")
    again = Manifest.from_dict(json.loads(json.dumps(description.to_dict())), "there")
    assert again == description


DAMAGES = [
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


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES, ids=lambda x: str(x)[:30])
def test_a_damaged_description_is_told(export_folder, large_images, capsys, damage, sentence):
    beside = export_folder / "net.onnx.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **damage}))
    words = ["predict", str(export_folder / "net.onnx"), str(large_images / "sky" / "1.jpg")]
    for more in ([], ["--out", str(export_folder / "out.csv")]):
        assert run([*words, *more]) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert sentence in error
    assert not list(export_folder.glob("out.csv*"))


def test_a_description_without_checksums_is_told(export_folder, large_images, capsys):
    beside = export_folder / "net.onnx.json"
    told = json.loads(beside.read_text())
    del told["sha256"]
    beside.write_text(json.dumps(told))
    words = [
        "predict",
        str(export_folder / "net.onnx"),
        str(large_images / "sky" / "1.jpg"),
        "--out",
        str(export_folder / "out.csv"),
    ]
    assert run(words) == 2
    assert "has no checksum of net.onnx" in capsys.readouterr().err
    assert run([*words, "--trust"]) == 0


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2", "net"])
def test_other_weights_or_classes_are_another_network(export_folder, tmp_path, name):
    """For `predict --out`, which goes on only with the same one."""
    file, beside = export_folder / name, manifest_path(export_folder / name)
    told = json.loads(beside.read_text())
    names = [model_id(file)]
    for part, digits in told["sha256"].items():  # one part after the other is another
        beside.write_text(json.dumps({**told, "sha256": {**told["sha256"], part: f"{int(digits, 16) ^ 1:064x}"}}))
        names.append(model_id(file))
    beside.write_text(json.dumps({**told, "classes": ["leaf", "apple", "sky"]}))
    names.append(model_id(file))
    assert len(set(names)) == len(names)
    assert model_id(file) == names[-1]

    beside.write_text(json.dumps(told))
    names = [model_id(file, trust=True)]
    for part in told["sha256"]:  # which nobody compares with the checksums now
        path = file / part if file.is_dir() else export_folder / part
        path.write_bytes(path.read_bytes() + b" ")
        names.append(model_id(file, trust=True))
    assert len(set(names)) == len(names)
    if not file.is_dir():
        beside.unlink()
        names = [model_id(file)]
        for part in told["sha256"]:
            (export_folder / part).write_bytes((export_folder / part).read_bytes() + b" ")
            names.append(model_id(file))
        assert len(set(names)) == len(names)


def test_what_lacks_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = {
        "onnx": "onnxruntime; install it with: pip install 'alexnet[fast]'",
        "executorch": "executorch; install it with: pip install 'alexnet[exec",
    }
    for kind, said in {**wanted, "huggingface": "huggingface_hub; install it with: pip install 'alexnet[hub]'"}.items():
        with pytest.raises(UserError, match=re.escape(f"The format {kind} needs {said}")):
            check_installed(kind, writing=True)


def test_a_file_is_unsure_where_the_run_is(small_run, tmp_path):
    pictures = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(pictures):
        make_image(path, i % 3, i, size=(32, 32))  # no digits
    with Exporter(small_run) as exporter:
        file = exporter.export("onnx", tmp_path / "net.onnx").file
    ours = list(load_fast(file).predict_many(pictures))
    theirs = list(load(small_run, device="cpu").predict_many(pictures))
    assert [p.unsure for p in ours] == [p.unsure for p in theirs]
    assert all(p.unsure is not None for p in ours)
    assert [p.confidence for p in ours] == pytest.approx([p.confidence for p in theirs], abs=1e-5)
    assert load(file).predict(pictures[0]).confidence == pytest.approx(ours[0].confidence, abs=1e-5)


def test_what_is_open_is_in_memory(export_folder, large_images):
    """A server goes on if a file is swapped or damaged under it. In a process of its own, which a file that is mapped
    into memory would kill."""
    names = [str(export_folder / name) for name in ("net.onnx", "net.xml", "net.pt", "net.pt2")]
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from alexnet.inference.predict import load\n"
        f"picture, names = {str(large_images / 'sky' / '1.jpg')!r}, {names!r}\n"
        "opened = [load(name) for name in names]\n"
        "before = [one.predict(picture) for one in opened]\n"
        f"for path in Path({str(export_folder)!r}).iterdir():\n"
        "    if not path.is_file(): continue\n"
        "    size = path.stat().st_size\n"
        "    with path.open('r+b') as file:\n"
        "        file.write(os.urandom(size))\n"
        "        file.truncate(size // 3)\n"
        "assert before == [one.predict(picture) for one in opened]\n"
        "print('as before')\n"
    )
    source = str(Path(alexnet.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.stdout == "as before\n", (done.returncode, done.stderr)
