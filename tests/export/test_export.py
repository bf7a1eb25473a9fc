"""Every format, compared with the run by its own runtime in its own process; and what makes the comparison fail."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from alexnet.checkpoint import save_model
from alexnet.cli import run
from alexnet.data.datasets import load_dataset
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.transforms import EvalTransform
from alexnet.export import writers
from alexnet.export.export import Exporter
from alexnet.export.parity import ExportFailed, own_pictures, reference
from alexnet.files import sha256_file
from alexnet.inference.evaluate import evaluate
from alexnet.inference.predict import load
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import FORMATS, is_exported_model
from alexnet.training.api import train
from alexnet.training.progress import Silent
from helpers import CLASS_NAMES, make_confident_model, make_image_folder

HERE = ("onnx", "openvino", "torchscript", "pt2", "huggingface")  # and installed with `dev`


def target(folder: Path, kind: str) -> Path:
    return folder / f"net{FORMATS[kind].suffix}"


def export(checkpoint, photos, kind, folder, **settings):
    with Exporter(checkpoint, images=photos, **settings) as exporter:
        return exporter.export(kind, target(folder, kind))


@pytest.mark.parametrize("kind", HERE)
def test_a_file_says_what_the_run_says(exports, checkpoint, large_images, kind):
    found = exports[kind]
    assert found.parity.max_abs_diff < 1e-5
    assert (found.parity.images, found.parity.top1_agreement) == (12, 1.0)
    assert found.parity.top1 == found.truth.top1
    assert found.parity.without_torch == (kind in ("onnx", "openvino"))
    assert np.ptp(found.truth.probabilities, axis=0).max() > 0.1  # the pictures do differ
    opened = open_exported(found.file)
    assert opened.classes == CLASS_NAMES
    assert not opened.manifest.pixels
    pictures = sorted(large_images.rglob("*.jpg"))[:3]
    expected = load(checkpoint, device="cpu").predict_many(pictures, top=3)
    for ours, theirs in zip(load(found.file).predict_many(pictures, top=3), expected, strict=True):
        assert [label for label, _ in ours.labels] == [label for label, _ in theirs.labels]
        assert [p for _, p in ours.labels] == pytest.approx([p for _, p in theirs.labels], abs=1e-5)


@pytest.mark.parametrize("kind", HERE)
def test_the_description_tells_all(exports, kind):
    file = exports[kind].file
    beside = file / "alexnet.json" if file.is_dir() else Path(f"{file}.json")
    told = json.loads(beside.read_text())
    assert told["classes"] == list(CLASS_NAMES)
    assert told["preprocess"]["mean"] == [0.5, 0.4, 0.3]
    assert told["preprocess"]["interpolation"] == "bilinear"
    assert told["input"]["shape"] == ["batch", 3, 32, 32]
    assert told["parity"]["images"] == 12
    for name, digits in told["sha256"].items():
        assert sha256_file((file if file.is_dir() else file.parent) / name) == digits
    if kind != "huggingface":
        assert file.name in told["sha256"]


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torchscript", "pt2"])
def test_a_file_without_its_json_describes_itself(export_folder, kind):
    file = target(export_folder, kind)
    before = open_exported(file)
    Path(f"{file}.json").unlink()
    after = open_exported(file, trust=FORMATS[kind].runs_code)
    assert after.preprocess == before.preprocess
    assert after.classes == before.classes


def test_onnx_is_one_file_that_names_its_ends(exports):
    file = exports["onnx"].file
    assert sorted(p.name for p in file.parent.glob("*.onnx*")) == ["net.onnx", "net.onnx.json"]
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [x.name for x in model.graph.input] == ["input"]
    assert [x.name for x in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any number of pictures
    opset = json.loads(Path(f"{file}.json").read_text())["opset"]
    assert opset == next(o.version for o in model.opset_import if o.domain == "")


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("onnx", "int8-fc"),
        ("openvino", "int8"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [
            ("onnx", "half"), ("onnx", "int8"), ("openvino", "half"), ("openvino", "int8-fc"),
        ]),
    ],
)  # fmt: skip
def test_smaller_files(exports, checkpoint, large_images, tmp_path, kind, precision):
    found = export(checkpoint, large_images, kind, tmp_path, precision=precision, tolerance=0.3)
    assert found.size < exports[kind].size * {"half": 0.6, "int8": 0.45, "int8-fc": 0.8}[precision]
    assert 0 < found.parity.max_abs_diff < 0.3
    assert json.loads(Path(f"{found.file}.json").read_text())["precision"] == precision


def test_the_mean_image_goes_into_the_file(large_images, tmp_path):
    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(size=32, resize=36, mean_image=mean)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model("cifar-towers"), CLASS_NAMES, preprocess)  # LRN too
    for kind in ("onnx", "huggingface"):
        found = export(tmp_path / "run", large_images, kind, tmp_path, with_preprocessing=True)
        assert found.parity.max_abs_diff < 1e-4


@pytest.mark.parametrize("kind", [pytest.param("torchscript", marks=pytest.mark.slow), "pt2", "openvino"])
def test_lrn_and_normalisation_become_plain_operations(large_images, tmp_path, kind):
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model("cifar-towers"), CLASS_NAMES, EvalTransform(size=32))
    found = export(tmp_path / "run", large_images, kind, tmp_path, with_preprocessing=True)
    assert found.parity.max_abs_diff < 1e-4
    assert open_exported(found.file).manifest.pixels
    if kind != "openvino":
        alone = f"import torch; torch.{'jit' if kind == 'torchscript' else 'export'}.load({str(found.file)!r})"
        subprocess.run([sys.executable, "-W", "ignore", "-c", alone], check=True, env={**os.environ, "PYTHONPATH": ""})


def test_weights_for_torchvision_s_own_network(large_images, tmp_path):
    torch.manual_seed(0)
    from torchvision.models import squeezenet1_1

    from alexnet.models.model import create_model

    (tmp_path / "run").mkdir()
    save_model(
        tmp_path / "run", create_model("torchvision/squeezenet1_1", 3, image_size=64), CLASS_NAMES, EvalTransform(64)
    )
    file = export(tmp_path / "run", large_images, "torchvision-weights", tmp_path).file
    squeezenet1_1(num_classes=3).load_state_dict(torch.load(file, weights_only=True))
    theirs, ours = evaluate(file, data=large_images), evaluate(tmp_path / "run", data=large_images, device="cpu")
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    assert theirs["n"] == ours["n"] == 12


# ── which pictures ────────────────────────────────────────────────────────────────────────────────────────────────


def a_run_on(data, folder):
    train(
        "folder", data=data, out=folder / "run", epochs=1, width=0.125, batch_size=8, image_size=32, progress=Silent()
    )
    return folder / "run"


@pytest.mark.parametrize("form", [{"kind": "uint8", "size": 40}, {"kind": "jpeg"}])
def test_a_packed_run_is_compared_on_what_is_in_its_shards(tmp_path, capsys, form):
    pack_dataset(make_image_folder(tmp_path / "pictures"), tmp_path / "packed", **form)
    trained = a_run_on(tmp_path / "packed", tmp_path)
    assert run(["export", str(trained), "onnx", "--json"]) == 0
    found, error = capsys.readouterr()
    count = (trained / "split.csv").read_text().count(",val\n")
    assert json.loads(found)["images"] == count > 0
    assert f"Comparing on {count} pictures of the val split." in error


def test_packed_jpegs_are_compared_as_they_are(tmp_path):
    pack_dataset(make_image_folder(tmp_path / "pictures"), tmp_path / "packed", size="original")
    source = load_dataset("folder", tmp_path / "packed")
    found = own_pictures(source, source.classes, tmp_path)
    part = source.splits["val"]
    assert [path.read_bytes() for path in found.files] == [part.raw(i) for i in range(len(part))]


def test_too_few_unreadable_and_learnt_pictures_are_told(small_run, checkpoint, large_images, tmp_path, capsys):
    some = Path(shutil.copytree(large_images, tmp_path / "some"))
    (some / "sky" / "3.jpg").write_bytes(b"no picture")
    words = ["export", str(checkpoint), "onnx", "--out", str(tmp_path / "net.onnx"), "--images", str(some), "--json"]
    assert run(words) == 0
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert (found["images"], found["unreadable"]) == (11, 1)
    assert f"only 11 pictures were compared, for want of more in {some}" in found["note"]
    assert "1 of 12 could not be read" in found["note"]
    assert f"Note: {found['note']}" in error
    parity = json.loads((tmp_path / "net.onnx.json").read_text())["parity"]
    assert (parity["note"], parity["unreadable"]) == (found["note"], 1)

    with Exporter(small_run) as exporter:
        assert exporter.truth.note is None
        source = exporter._source
        alone = replace(source, splits={"train": source.splits["train"].take(np.arange(250))})
        seen = reference(exporter.opened, own_pictures(alone, alone.classes, tmp_path))
        assert seen.note == "the run was trained on these pictures, so that top-1 says little of others"


# ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────


class Swapped(nn.Module):
    """Blue, green, red."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.flip(1))


def swap_channels(monkeypatch, tmp_path):
    original = writers.to_convert

    def to_convert(*settings):
        whole, *others = original(*settings)
        return Swapped(whole), *others

    monkeypatch.setattr(writers, "to_convert", to_convert)


def wrong_mean(monkeypatch, tmp_path):
    original = writers.Job.describe

    def describe(job, **about):
        found = original(job, **about)
        return replace(found, preprocess=replace(found.preprocess, mean=(0.485, 0.456, 0.406)))

    monkeypatch.setattr(writers.Job, "describe", describe)


def no_antialiasing(monkeypatch, tmp_path):
    """The file's side then resizes bilinearly from the four nearest pixels, as OpenCV and older tensor code do."""
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "sitecustomize.py").write_text(
        "from PIL import Image\n"
        "def resize(self, size, resample=None, *_, **__):\n"
        "    scale = self.width / size[0], self.height / size[1]\n"
        "    return self.transform(size, Image.Transform.AFFINE, (scale[0], 0, 0, 0, scale[1], 0), 2)\n"
        "Image.Image.resize = resize\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "faulty"))


@pytest.mark.parametrize("fault", [swap_channels, wrong_mean, no_antialiasing])
def test_a_fault_makes_parity_fail_and_leaves_nothing(checkpoint, large_images, tmp_path, monkeypatch, capsys, fault):
    fault(monkeypatch, tmp_path)
    kind = "pt2" if fault is swap_channels else "onnx"
    out = tmp_path / "new" / "folder" / target(tmp_path, kind).name
    assert run(["export", str(checkpoint), kind, "--out", str(out), "--images", str(large_images)]) == 1
    error = capsys.readouterr().err
    assert f"The {kind} file differs from the run by 0." in error
    assert "more than 0.001" in error
    assert not (tmp_path / "new").exists()


def test_a_file_that_was_there_survives_a_failure(export_folder, checkpoint, large_images, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in export_folder.rglob("*.*")}
    wrong_mean(monkeypatch, tmp_path)
    with pytest.raises(ExportFailed, match="differs"):
        export(checkpoint, large_images, "onnx", export_folder)
    assert {path: path.read_bytes() for path in export_folder.rglob("*.*")} == before


def test_a_check_without_torch_is_really_without(exports, tmp_path):
    """Asked in the way of ONNX to open a file that needs torch, the checking process fails."""
    job = {
        "file": str(exports["pt2"].file),
        "trust": False,
        "pictures": [],
        "without_torch": True,
        "answers": str(tmp_path / "a.npy"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "alexnet.export.parity_worker", str(tmp_path / "job.json")]
    source = str(Path(writers.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source})
    assert done.returncode == 1
    assert "import of torch halted" in done.stderr


@pytest.mark.parametrize("kind", ["torchscript", "onnx", "openvino"])
def test_a_full_disk_leaves_nothing(checkpoint, large_images, tmp_path, kind):
    """Files may not grow beyond 100 kB here, which is how a full disk looks from inside."""
    out = target(tmp_path / "out", kind)  # for torchscript torch's own writer would take the process down
    done = subprocess.run(
        [sys.executable, "-m", "alexnet", "export", str(checkpoint), kind, "--images", str(large_images), "--out", out],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(writers.__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "could not be written as" in done.stderr
    assert "nothing was left behind" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_cache_a_file_is_exported_and_needs_trust(checkpoint, large_images, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    file = str(tmp_path / "net.pt2")
    assert run(["export", str(checkpoint), "pt2", "--out", file, "--images", str(large_images)]) == 0
    assert "The pt2 file could not be signed" in capsys.readouterr().err
    assert run(["predict", file, str(large_images / "sky" / "0.jpg")]) == 2
    assert run(["predict", file, str(large_images / "sky" / "0.jpg"), "--trust"]) == 0


def test_an_exported_folder_stays_until_the_new_one_is_in_its_place(
    export_folder, checkpoint, large_images, monkeypatch
):
    before = {path: path.read_bytes() for path in (export_folder / "net").iterdir()}
    there = os.replace

    def replacing(source, to):
        if Path(to) == export_folder / "net" and Path(source).name == "net":
            raise OSError(5, "Input/output error")
        return there(source, to)

    monkeypatch.setattr(os, "replace", replacing)
    with pytest.raises(ExportFailed, match="Input/output error"):
        export(checkpoint, large_images, "huggingface", export_folder)
    assert {path: path.read_bytes() for path in (export_folder / "net").iterdir()} == before
    monkeypatch.undo()
    (export_folder / "net" / "of-before").touch()
    export(checkpoint, large_images, "huggingface", export_folder)
    assert not (export_folder / "net" / "of-before").exists()
    assert not list(export_folder.glob(".exporting-*"))


def test_folders_made_for_a_place_too_deep_do_not_stay(checkpoint, large_images, tmp_path, capsys):
    """The folder can be made just so, and one in it cannot."""
    deep = tmp_path / "new"
    while len(str(deep)) < 4080 - 200:
        deep /= "d" * 190
    deep /= "d" * (4085 - len(str(deep)))
    words = ["export", str(checkpoint), "onnx", "--images", str(large_images), "--out", str(deep / "n.onnx")]
    assert run(words) == 2
    assert "cannot be written: File name too long" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ── what is not installed everywhere, and what a program does with a file ─────────────────────────────────────


@pytest.mark.parametrize("settings", [{}, {"with_preprocessing": True}, {"precision": "half"}, {"precision": "int8"}])
def test_executorch(checkpoint, large_images, tmp_path, settings):
    pytest.importorskip("executorch")
    found = export(checkpoint, large_images, "executorch", tmp_path, tolerance=0.5, **settings)
    exact = "precision" not in settings
    assert found.parity.max_abs_diff < (1e-5 if exact else 0.5)
    images = np.zeros((33, 3, 32, 32), np.uint8)  # more than fit into its memory at once
    assert open_exported(found.file).engine.logits(images).shape == (33, 3)


def test_the_hub_folder_goes_through_the_mixin(exports, tmp_path):
    from huggingface_hub import ModelHubMixin

    from alexnet.runtimes.hub import HubModel

    model = HubModel.from_pretrained(exports["huggingface"].file)
    assert isinstance(model, ModelHubMixin)
    assert model.classes == CLASS_NAMES
    model.save_pretrained(tmp_path / "again")  # what push_to_hub uploads
    assert json.loads((tmp_path / "again" / "config.json").read_text())["classes"] == list(CLASS_NAMES)
    assert "pipeline_tag: image-classification" in (tmp_path / "again" / "README.md").read_text()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(HubModel.from_pretrained(tmp_path / "again")(x), model(x))


def test_a_folder_that_the_mixin_saved_is_predicted_from(exports, large_images, tmp_path, capsys):
    from alexnet.runtimes.hub import HubModel

    HubModel.from_pretrained(exports["huggingface"].file).save_pretrained(tmp_path / "again")
    capsys.readouterr()
    answers = []
    for folder in (exports["huggingface"].file, tmp_path / "again"):
        assert run(["predict", str(folder), str(large_images / "sky" / "0.jpg"), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert answers[0] == answers[1]
    assert not is_exported_model(large_images)
    for damage in ("{", '{"spec": {}, "classes": [], "preprocess": {}}'):
        (tmp_path / "again" / "config.json").write_text(damage)
        assert run(["predict", str(tmp_path / "again"), str(large_images / "sky" / "0.jpg")]) == 2


def test_a_saved_folder_with_a_mean_image_keeps_it(tmp_path, large_images, capsys):
    from alexnet.runtimes.hub import HubModel

    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(size=32, resize=36, mean_image=mean)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model(), CLASS_NAMES, preprocess)
    file = export(tmp_path / "run", large_images, "huggingface", tmp_path, with_preprocessing=True).file
    HubModel.from_pretrained(file).save_pretrained(tmp_path / "again")
    picture = large_images / "leaf" / "1.jpg"
    expected = load(tmp_path / "run", device="cpu").predict(picture)
    assert dict(load(tmp_path / "again").predict(picture).labels) == pytest.approx(dict(expected.labels), abs=1e-5)
    bare = HubModel(
        make_confident_model().spec.to_dict(), CLASS_NAMES, preprocess.to_dict()
    )  # which nothing could subtract it for
    bare.save_pretrained(tmp_path / "bare")
    assert run(["predict", str(tmp_path / "bare"), str(picture)]) == 2
    assert "subtracts a mean image" in capsys.readouterr().err


def test_an_onnx_file_needs_nothing_of_ours(checkpoint, large_images, tmp_path):
    """With preprocessing, a program that resizes as the description says gets the run's probabilities."""
    import onnxruntime
    from PIL import Image

    file = export(checkpoint, large_images, "onnx", tmp_path, with_preprocessing=True).file
    told = json.loads(onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map["alexnet"])
    side = told["preprocess"]["size"]
    with Image.open(large_images / "sky" / "3.jpg") as image:  # 150×110
        small = image.convert("RGB").resize((side * 150 // 110, side), Image.Resampling.BILINEAR)
    left = round((small.width - side) / 2)
    pixels = np.asarray(small.crop((left, 0, left + side, side))).transpose(2, 0, 1)[None]
    (logits,) = onnxruntime.InferenceSession(file).run(["output"], {"input": pixels})
    p = np.exp(logits[0] - logits[0].max())
    expected = dict(load(checkpoint, device="cpu").predict(large_images / "sky" / "3.jpg").labels)
    assert dict(zip(told["classes"], p / p.sum(), strict=True)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_all_formats_at_once(checkpoint, large_images, tmp_path, monkeypatch, capsys):
    lacking = ("executorch", "openvino", "huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in lacking else object())
    assert run(["export", str(checkpoint), "all", "--images", str(large_images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [x["format"] for x in found["exports"]] == ["onnx", "torchscript", "pt2"]
    assert [x["format"] for x in found["left_out"]] == ["openvino", "executorch", "torchvision-weights", "huggingface"]
    for one in found["exports"]:
        assert {"file", "format", "size", "max_abs_diff", "top1_agreement", "images"} <= one.keys()
        assert Path(one["file"]).exists()


def test_one_format_that_cannot_be_written_does_not_stop_the_others(
    checkpoint, large_images, tmp_path, monkeypatch, capsys
):
    for kind in ("openvino", "torchscript", "executorch", "huggingface"):
        monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], precisions=()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export" / "cifar.onnx").mkdir(parents=True)  # in its place
    words = ["export", str(checkpoint), "all", "--images", str(large_images), "--json"]
    assert run(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert [x["format"] for x in found["exports"]] == ["pt2"]
    assert [x["format"] for x in found["failed"]] == ["onnx"]
    assert "cifar.onnx is a folder" in found["failed"][0]["reason"]
    assert len(found["left_out"]) == 5

    for kind in ("onnx", "pt2"):
        monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], precisions=()))
    assert run(words) == 1  # nothing was exported
    assert json.loads(capsys.readouterr().out)["exports"] == []


def test_without_pictures_all_formats_fail_with_one_sentence(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["export", str(checkpoint), "all"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("This network comes without pictures") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_one(small_run, tmp_path, capsys):
    assert run(["export", str(small_run), "onnx", "--out", str(tmp_path / "x.onnx")]) == 0
    out, err = capsys.readouterr()
    assert "same label" in out
    assert "100.00%" in out
    assert f"alexnet predict {tmp_path / 'x.onnx'} PICTURE…" in out
    assert "Comparing on 269 pictures of the val split." in err
    told = json.loads((tmp_path / "x.onnx.json").read_text())
    assert told["parity"]["images"] == 269
