"""Exports of every format, compared with the run by their own runtime; the images compared on; failures."""

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

import alexnet
from alexnet.checkpoint import save_model
from alexnet.cli import run
from alexnet.data.datasets import load_dataset
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.transforms import EvalTransform
from alexnet.export import parity
from alexnet.export.export import Exporter
from alexnet.export.parity import ExportFailed, compute_reference, dataset_images
from alexnet.files import sha256_file
from alexnet.inference.evaluate import evaluate
from alexnet.inference.load import load_run_dataset
from alexnet.inference.predict import load
from alexnet.progress import Silent
from alexnet.runtimes import convert
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import FORMATS, is_exported_model
from alexnet.training.api import train
from helpers import CLASS_NAMES, make_confident_model, make_image_folder

pytestmark = pytest.mark.usefixtures("converts_once")

KINDS = [
    "onnx",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("openvino", "torchscript", "pt2", "huggingface")),
]


@pytest.fixture(autouse=True)
def _short_latency_measurements(monkeypatch):
    monkeypatch.setattr(parity, "LATENCY_SECONDS", 0)


def target(folder: Path, kind: str) -> Path:
    return folder / f"net{FORMATS[kind].suffix}"


def export(checkpoint, images, kind, folder, **settings):
    with Exporter(checkpoint, images=images, **settings) as exporter:
        return exporter.export(kind, target(folder, kind))


@pytest.mark.slow
def test_the_python_function_displays_its_comparison(checkpoint, large_images, tmp_path):
    out = tmp_path / "<net>.onnx"
    found = alexnet.export(checkpoint, "onnx", out=str(out), images=str(large_images))
    assert found.file == out
    assert "&lt;net&gt;.onnx agrees with the run" in found._repr_html_()
    assert ">100.00% of 12</td>" in found._repr_html_()
    with pytest.raises(alexnet.UserError, match="half=True and quantize="):
        alexnet.export(checkpoint, "onnx", half=True, quantize="int8")


@pytest.mark.parametrize("kind", KINDS)
def test_file_gives_the_predictions_of_the_run(exports, checkpoint, large_images, kind):
    found = exports[kind]
    assert found.parity.max_abs_diff < 1e-5
    assert (found.parity.images, found.parity.top1_agreement) == (12, 1.0)
    assert found.parity.top1 == found.parity.run_top1
    assert found.parity.without_torch == (kind in ("onnx", "openvino"))
    assert np.ptp(found.reference.probabilities, axis=0).max() > 0.1  # the images are distinguished
    exported = open_exported(found.file, trust=True)
    assert exported.classes == CLASS_NAMES
    assert not exported.manifest.pixels
    images = sorted(large_images.rglob("*.jpg"))[:3]
    expected = load(checkpoint, device="cpu").predict_many(images, top=3)
    for ours, theirs in zip(load(found.file, trust=True).predict_many(images, top=3), expected, strict=True):
        assert [label for label, _ in ours.labels] == [label for label, _ in theirs.labels]
        assert [p for _, p in ours.labels] == pytest.approx([p for _, p in theirs.labels], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_describes_model_files_and_parity(exports, kind):
    file = exports[kind].file
    manifest_file = file / "alexnet.json" if file.is_dir() else Path(f"{file}.json")
    manifest = json.loads(manifest_file.read_text())
    assert manifest["classes"] == list(CLASS_NAMES)
    assert manifest["preprocess"]["mean"] == [0.5, 0.4, 0.3]
    assert manifest["preprocess"]["interpolation"] == "bilinear"
    assert manifest["input"]["shape"] == ["batch", 3, 32, 32]
    assert manifest["parity"]["images"] == 12
    for name, digest in manifest["sha256"].items():
        assert sha256_file((file if file.is_dir() else file.parent) / name) == digest
    if kind != "huggingface":
        assert file.name in manifest["sha256"]


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_file_without_its_json_uses_the_embedded_manifest(exports, tmp_path, kind):
    for path in exports[kind].file.parent.glob("net.*"):
        shutil.copy(path, tmp_path)
    file = target(tmp_path, kind)
    before = open_exported(file, trust=True)
    Path(f"{file}.json").unlink()
    after = open_exported(file, trust=True)
    assert after.preprocess == before.preprocess
    assert after.classes == before.classes


def test_onnx_is_a_single_file_with_named_input_and_output(exports):
    file = exports["onnx"].file
    assert sorted(p.name for p in file.parent.glob("*.onnx*")) == ["net.onnx", "net.onnx.json"]
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [x.name for x in model.graph.input] == ["input"]
    assert [x.name for x in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # dynamic batch size
    opset = json.loads(Path(f"{file}.json").read_text())["opset"]
    assert opset == next(o.version for o in model.opset_import if o.domain == "")


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("onnx", "half"), ("onnx", "int8"), ("onnx", "int8-fc"), ("openvino", "half"), ("openvino", "int8"),
        ("openvino", "int8-fc"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_lower_precision_makes_files_smaller(exports, checkpoint, large_images, tmp_path, kind, precision):
    found = export(checkpoint, large_images, kind, tmp_path, precision=precision, tolerance=0.3)
    assert found.size < exports[kind].size * {"half": 0.6, "int8": 0.45, "int8-fc": 0.8}[precision]
    assert 0 < found.parity.max_abs_diff < 0.3
    assert json.loads(Path(f"{found.file}.json").read_text())["precision"] == precision


@pytest.mark.slow
def test_mean_image_is_part_of_the_file(large_images, tmp_path):
    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(size=32, resize=36, mean_image=mean)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model("cifar-towers"), CLASS_NAMES, preprocess)  # LRN too
    for kind in ("onnx", "huggingface"):
        found = export(tmp_path / "run", large_images, kind, tmp_path, with_preprocessing=True)
        assert found.parity.max_abs_diff < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "pt2", "openvino"])
def test_lrn_and_normalization_become_standard_operators(large_images, tmp_path, kind):
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model("cifar-towers"), CLASS_NAMES, EvalTransform(size=32))
    found = export(tmp_path / "run", large_images, kind, tmp_path, with_preprocessing=True)
    assert found.parity.max_abs_diff < 1e-4
    assert open_exported(found.file, trust=True).manifest.pixels
    if kind != "openvino":
        program = f"import torch; torch.{'jit' if kind == 'torchscript' else 'export'}.load({str(found.file)!r})"
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            check=True,
            env={**os.environ, "PYTHONPATH": ""},
        )


@pytest.mark.slow
def test_weights_load_into_the_torchvision_model(large_images, tmp_path):
    torch.manual_seed(0)
    from torchvision.models import squeezenet1_1

    from alexnet.models.model import create_model

    (tmp_path / "run").mkdir()
    save_model(
        tmp_path / "run",
        create_model("torchvision/squeezenet1_1", 3, image_size=64),
        CLASS_NAMES,
        EvalTransform(64),
    )
    file = export(tmp_path / "run", large_images, "torchvision-weights", tmp_path).file
    squeezenet1_1(num_classes=3).load_state_dict(torch.load(file, weights_only=True))
    theirs, ours = (
        evaluate(file, data=large_images),
        evaluate(tmp_path / "run", data=large_images, device="cpu"),
    )
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    assert theirs["n"] == ours["n"] == 12


# ── images to compare on ──────────────────────────────────────────────────────────────────────────


def train_on(data, folder):
    train(
        "folder",
        data=data,
        out=folder / "run",
        epochs=1,
        width=0.125,
        batch_size=8,
        image_size=32,
        progress=Silent(),
    )
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"kind": "uint8", "size": 40}, {"kind": "jpeg"}])
def test_run_on_packed_data_is_compared_on_images_of_its_shards(tmp_path, capsys, options):
    pack_dataset(make_image_folder(tmp_path / "images"), tmp_path / "packed", **options)
    trained = train_on(tmp_path / "packed", tmp_path)
    assert run(["export", str(trained), "onnx", "--json"]) == 0
    found, error = capsys.readouterr()
    count = (trained / "split.csv").read_text().count(",val\n")
    assert json.loads(found)["images"] == count > 0
    assert f"Comparing on {count} images of the val split." in error


def test_packed_jpegs_are_compared_unchanged(tmp_path):
    pack_dataset(make_image_folder(tmp_path / "images"), tmp_path / "packed", size="original")
    dataset = load_dataset("folder", tmp_path / "packed")
    images = dataset_images(dataset, dataset.classes, tmp_path)
    part = dataset.splits["val"]
    assert [path.read_bytes() for path in images.files] == [part.raw(i) for i in range(len(part))]


@pytest.mark.slow
def test_note_mentions_few_unreadable_and_training_images(small_run, checkpoint, large_images, tmp_path, capsys):
    some = Path(shutil.copytree(large_images, tmp_path / "some"))
    (some / "sky" / "3.jpg").write_bytes(b"no image")
    command = [
        "export",
        str(checkpoint),
        "onnx",
        "--out",
        str(tmp_path / "net.onnx"),
        "--images",
        str(some),
        "--json",
    ]
    assert run(command) == 0
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert (found["images"], found["unreadable"]) == (11, 1)
    assert f"only 11 images were compared, all there are in {some}" in found["note"]
    assert "1 of 12 could not be read" in found["note"]
    assert f"Note: {found['note']}" in error
    recorded = json.loads((tmp_path / "net.onnx.json").read_text())["parity"]
    assert (recorded["note"], recorded["unreadable"]) == (found["note"], 1)

    with Exporter(small_run) as exporter:
        assert exporter.reference.note is None
        assert (len(exporter.reference.images.files), exporter.reference.images.description) == (
            269,
            "of the val split",
        )
        dataset = load_run_dataset(exporter.loaded.run, None)
        train_only = replace(dataset, splits={"train": dataset.splits["train"].take(np.arange(250))})
        images = dataset_images(train_only, train_only.classes, tmp_path)
        note = compute_reference(exporter.loaded, images).note
        assert note == "the run was trained on these images, so top-1 does not predict the accuracy on new ones"


# ── failures ──────────────────────────────────────────────────────────────────────────────────────


class BGR(nn.Module):
    """A model that receives its channels in reverse order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.flip(1))


def swap_channels(monkeypatch, tmp_path):
    original = convert.to_convert

    def to_convert(*settings):
        converted, *others = original(*settings)
        return BGR(converted), *others

    monkeypatch.setattr("alexnet.export.export.to_convert", to_convert)


def wrong_mean(monkeypatch, tmp_path):
    def describe(*settings):
        found = convert.describe(*settings)
        return replace(found, preprocess=replace(found.preprocess, mean=(0.485, 0.456, 0.406)))

    monkeypatch.setattr("alexnet.export.export.describe", describe)


def no_antialiasing(monkeypatch, tmp_path):
    """Make the worker resize from the four nearest pixels, as OpenCV and older tensor code do."""
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "sitecustomize.py").write_text(
        "from PIL import Image\n"
        "def resize(self, size, resample=None, *_, **__):\n"
        "    scale = self.width / size[0], self.height / size[1]\n"
        "    return self.transform(size, Image.Transform.AFFINE, (scale[0], 0, 0, 0, scale[1], 0), 2)\n"
        "Image.Image.resize = resize\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "faulty"))


@pytest.mark.parametrize(
    "fault",
    [
        wrong_mean,
        *(pytest.param(fault, marks=pytest.mark.slow) for fault in (swap_channels, no_antialiasing)),
    ],
)
def test_mismatch_fails_and_leaves_nothing(checkpoint, large_images, tmp_path, monkeypatch, capsys, fault):
    fault(monkeypatch, tmp_path)
    kind = "pt2" if fault is swap_channels else "onnx"
    out = tmp_path / "new" / "folder" / target(tmp_path, kind).name
    assert run(["export", str(checkpoint), kind, "--out", str(out), "--images", str(large_images)]) == 1
    error = capsys.readouterr().err
    assert f"The {kind} file differs from the run by 0." in error
    assert "more than the tolerance of 0.001" in error
    assert not (tmp_path / "new").exists()


def test_existing_file_survives_a_mismatch(exports, checkpoint, large_images, tmp_path, monkeypatch):
    for path in exports["onnx"].file.parent.glob("net.onnx*"):
        shutil.copy(path, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2
    mismatch = replace(exports["onnx"].parity, max_abs_diff=0.5)
    monkeypatch.setattr(parity, "compare", lambda *_, **__: mismatch)
    with pytest.raises(ExportFailed, match="differs"):
        export(checkpoint, large_images, "onnx", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_worker_without_torch_cannot_import_it(exports, tmp_path):
    """A file that needs torch fails in the worker if it is opened the way of ONNX."""
    job = {
        "file": str(exports["pt2"].file),
        "images": [],
        "without_torch": True,
        "output": str(tmp_path / "a.npy"),
        "min_seconds": 0.0,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "alexnet.export.parity", str(tmp_path / "job.json")]
    source = str(Path(parity.__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}, timeout=300
    )
    assert done.returncode == 1
    assert "import of torch halted" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "onnx", "openvino"])
def test_full_disk_leaves_nothing(checkpoint, large_images, tmp_path, kind):
    """A file size limit of 100 kB stands in for a full disk."""
    out = target(tmp_path / "out", kind)  # torch's own writer of TorchScript would abort the process
    done = subprocess.run(
        [sys.executable, "-m", "alexnet", "export", str(checkpoint), kind, "--images", str(large_images), "--out", out],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(parity.__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "could not be written as" in done.stderr
    assert "nothing was left behind" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_exported_folder_is_restored_if_the_new_one_cannot_move(export_folder, checkpoint, large_images, monkeypatch):
    before = {path: path.read_bytes() for path in (export_folder / "net").iterdir()}
    replace_file = os.replace

    def fail(source, to):
        if Path(to) == export_folder / "net" and Path(source).name == "net":
            raise OSError(5, "Input/output error")
        return replace_file(source, to)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExportFailed, match="Input/output error"):
        export(checkpoint, large_images, "huggingface", export_folder)
    assert {path: path.read_bytes() for path in (export_folder / "net").iterdir()} == before
    monkeypatch.undo()
    (export_folder / "net" / "old-file").touch()
    export(checkpoint, large_images, "huggingface", export_folder)
    assert not (export_folder / "net" / "old-file").exists()
    assert not list(export_folder.glob(".exporting-*"))


def test_folders_created_for_an_impossible_path_are_removed(checkpoint, large_images, tmp_path, capsys):
    """The folder of the file is just short enough to exist, the temporary folder in it is not."""
    deep = tmp_path / "new"
    while len(str(deep)) < 4080 - 200:
        deep /= "d" * 190
    deep /= "d" * (4085 - len(str(deep)))
    command = [
        "export",
        str(checkpoint),
        "onnx",
        "--images",
        str(large_images),
        "--out",
        str(deep / "n.onnx"),
    ]
    assert run(command) == 2
    assert "cannot be written: File name too long" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ── optional formats, and files used by other programs ────────────────────────────────────────────


@pytest.mark.parametrize("settings", [{}, {"with_preprocessing": True}, {"precision": "half"}, {"precision": "int8"}])
def test_executorch_file_gives_the_predictions_of_the_run(checkpoint, large_images, tmp_path, settings):
    pytest.importorskip("executorch")
    found = export(checkpoint, large_images, "executorch", tmp_path, tolerance=0.5, **settings)
    exact = "precision" not in settings
    assert found.parity.max_abs_diff < (1e-5 if exact else 0.5)
    images = np.zeros((33, 3, 32, 32), np.uint8)  # more than its planned memory holds
    assert open_exported(found.file, trust=True).engine.logits(images).shape == (33, 3)


@pytest.mark.slow
def test_hub_folder_loads_and_saves_through_the_mixin(exports, tmp_path):
    from huggingface_hub import ModelHubMixin

    from alexnet.runtimes.hub import HubModel

    model = HubModel.from_pretrained(exports["huggingface"].file)
    assert all(path.stat().st_mode & 0o004 for path in exports["huggingface"].file.iterdir())  # others may read it
    assert isinstance(model, ModelHubMixin)
    assert model.classes == CLASS_NAMES
    model.save_pretrained(tmp_path / "again")  # what push_to_hub uploads
    assert json.loads((tmp_path / "again" / "config.json").read_text())["classes"] == list(CLASS_NAMES)
    assert "pipeline_tag: image-classification" in (tmp_path / "again" / "README.md").read_text()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(HubModel.from_pretrained(tmp_path / "again")(x), model(x))


@pytest.mark.slow
def test_folder_saved_by_the_mixin_can_predict(exports, large_images, tmp_path, capsys):
    from alexnet.runtimes.hub import HubModel

    HubModel.from_pretrained(exports["huggingface"].file).save_pretrained(tmp_path / "again")
    capsys.readouterr()
    predictions = []
    for folder in (exports["huggingface"].file, tmp_path / "again"):
        assert run(["predict", str(folder), str(large_images / "sky" / "0.jpg"), "--json"]) == 0
        predictions.append(json.loads(capsys.readouterr().out)["predictions"])
    assert predictions[0] == predictions[1]
    assert not is_exported_model(large_images)
    for damage in ("{", '{"spec": {}, "classes": [], "preprocess": {}}'):
        (tmp_path / "again" / "config.json").write_text(damage)
        assert run(["predict", str(tmp_path / "again"), str(large_images / "sky" / "0.jpg")]) == 2


@pytest.mark.slow
def test_folder_saved_by_the_mixin_keeps_the_mean_image(tmp_path, large_images, capsys):
    from alexnet.runtimes.hub import HubModel

    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(size=32, resize=36, mean_image=mean)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model(), CLASS_NAMES, preprocess)
    file = export(tmp_path / "run", large_images, "huggingface", tmp_path, with_preprocessing=True).file
    HubModel.from_pretrained(file).save_pretrained(tmp_path / "again")
    image = large_images / "leaf" / "1.jpg"
    expected = load(tmp_path / "run", device="cpu").predict(image)
    assert dict(load(tmp_path / "again").predict(image).labels) == pytest.approx(dict(expected.labels), abs=1e-5)
    bare = HubModel(
        make_confident_model().spec.to_dict(), CLASS_NAMES, preprocess.to_dict()
    )  # without pixels, nothing would subtract it
    bare.save_pretrained(tmp_path / "bare")
    assert run(["predict", str(tmp_path / "bare"), str(image)]) == 2
    assert "subtracts a mean image" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_file_works_without_this_package(checkpoint, large_images, tmp_path):
    """With preprocessing, a program that resizes as the manifest specifies gets the run's probabilities."""
    import onnxruntime
    from PIL import Image

    file = export(checkpoint, large_images, "onnx", tmp_path, with_preprocessing=True).file
    manifest = json.loads(onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map["alexnet"])
    side = manifest["preprocess"]["size"]
    with Image.open(large_images / "sky" / "3.jpg") as image:  # 150×110
        small = image.convert("RGB").resize((side * 150 // 110, side), Image.Resampling.BILINEAR)
    left = round((small.width - side) / 2)
    pixels = np.asarray(small.crop((left, 0, left + side, side))).transpose(2, 0, 1)[None]
    (logits,) = onnxruntime.InferenceSession(file).run(["output"], {"input": pixels})
    p = np.exp(logits[0] - logits[0].max())
    expected = dict(load(checkpoint, device="cpu").predict(large_images / "sky" / "3.jpg").labels)
    assert dict(zip(manifest["classes"], p / p.sum(), strict=True)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_all_formats_in_one_command(checkpoint, large_images, tmp_path, monkeypatch, capsys):
    lacking = ("executorch", "openvino", "huggingface_hub", "playwright")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in lacking else object())
    assert run(["export", str(checkpoint), "all", "--images", str(large_images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [x["format"] for x in found["exports"]] == ["onnx", "torchscript", "pt2"]
    assert [x["format"] for x in found["left_out"]] == [
        "openvino",
        "executorch",
        "torchvision-weights",
        "huggingface",
        "web",
    ]
    for one in found["exports"]:
        assert {"file", "format", "size", "max_abs_diff", "top1_agreement", "images"} <= one.keys()
        assert Path(one["file"]).exists()


def test_failing_format_does_not_stop_the_others(checkpoint, large_images, tmp_path, monkeypatch, capsys):
    for kind in ("openvino", "torchscript", "executorch", "huggingface", "web"):
        monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], precisions=()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export" / "cifar.pt2").mkdir(parents=True)  # a folder where the file should go
    command = ["export", str(checkpoint), "all", "--fp32", "--images", str(large_images), "--json"]
    assert run(command) == 1
    found = json.loads(capsys.readouterr().out)
    assert [x["format"] for x in found["exports"]] == ["onnx"]
    assert [x["format"] for x in found["failed"]] == ["pt2"]
    assert "cifar.pt2 is a folder" in found["failed"][0]["reason"]
    assert len(found["left_out"]) == 6

    for kind in ("onnx", "pt2"):
        monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], precisions=()))
    assert run(command) == 1  # nothing was exported
    assert json.loads(capsys.readouterr().out)["exports"] == []


def test_all_formats_without_images_fail_with_one_message(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["export", str(checkpoint), "all"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("This model comes without images") == 1
    assert list(tmp_path.iterdir()) == []


def test_table_of_a_single_format(checkpoint, large_images, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "x.onnx"), "--images", str(large_images)]
    assert run(["export", str(checkpoint), "onnx", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "same label" in out
    assert "100.00%" in out
    assert f"alexnet predict {tmp_path / 'x.onnx'} IMAGE…" in out
    assert f"Comparing on 12 images in {large_images}." in err
    manifest = json.loads((tmp_path / "x.onnx.json").read_text())
    assert manifest["parity"]["images"] == 12
