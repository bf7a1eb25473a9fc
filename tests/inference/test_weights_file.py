"""Files of weights that other programs saved, in every command that takes a network."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.inference.load import is_run_reference, load_model
from alexnet.inference.predict import load
from alexnet.inference.weights_file import FileOptions, read_classes
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.model import create_model
from alexnet.models.recognize import recognize, tensor_shapes
from alexnet.models.state_dicts import find_state_dict
from alexnet.progress import Silent
from alexnet.training.api import train
from helpers import CLASS_NAMES, make_confident_model, make_image_folder


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_confident_model("cifar")


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as tutorials save it: {"net": …, "acc": …, "epoch": …}."""
    path = tmp_path_factory.mktemp("file") / "net.pth"
    torch.save({"net": model.state_dict(), "acc": 81.5, "epoch": 12}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("photos"), count=3)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
    return path


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def test_predictions_equal_the_tutorials_own(file, model, photos, capsys):
    """Its own pipeline: Resize, CenterCrop, ToTensor, Normalize, model, softmax."""
    image = photos / "apple" / "0.jpg"
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    pipeline = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    with torch.no_grad():
        expected = model(pipeline(Image.open(image))[None]).softmax(1)[0]
    assert run(["predict", str(file), str(image), "--mean", "0.5", "--std", ".25", ".25", ".25", "--json"]) == 0
    output = capsys.readouterr()
    for found in json.loads(output.out)["predictions"][0]["labels"]:
        assert found["p"] == pytest.approx(float(expected[int(found["label"])]), abs=1e-5)
    assert "are those of 'cifar'; --arch overrides this" in output.err
    assert "short side of 32 and a crop of 32 pixels, mean 0.5 0.5 0.5, std 0.25 0.25 0.25" in output.err


@pytest.mark.slow
def test_every_command_takes_a_file(file, photos, names, tmp_path, capsys):
    known = ["--arch", "cifar", "--classes", str(names), "--json"]
    assert run(["eval", str(file), "--data", str(photos), *known]) == 0
    assert {row["label"] for row in json.loads(capsys.readouterr().out)["per_class"]} == set(CLASS_NAMES)
    assert run(["features", str(file), str(photos), "--out", str(tmp_path / "f.csv"), *known]) == 0
    assert len(list(csv.reader((tmp_path / "f.csv").open()))) == 1 + 9
    out = str(tmp_path / "net.pt")
    assert run(["export", str(file), "torchscript", "--images", str(photos), "--out", out, *known]) == 0
    assert json.loads(Path(f"{out}.json").read_text())["classes"] == list(CLASS_NAMES)
    assert run(["show", "filters", str(file), "--out", str(tmp_path / "f.png"), *known]) == 0


@pytest.mark.parametrize("suffix", [".pth.tar", ".PT", ".ckpt", ".bin"])
def test_files_are_known_by_their_suffix(file, tmp_path, suffix):
    copy = shutil.copy(file, tmp_path / f"net{suffix}")
    assert load_model(copy).classes == ("0", "1", "2")
    assert is_run_reference(copy)


def test_an_archive_of_images_is_no_file_of_weights(tmp_path):
    (tmp_path / "photos.tar").write_bytes(bytes(1024))
    assert not is_run_reference(str(tmp_path / "photos.tar"))


@pytest.mark.parametrize("arguments", [[], ["--arch", "cifar"]])
def test_a_traced_network_is_not_opened(model, photos, tmp_path, arguments, capsys):
    """As tutorial 002 saves it."""
    torch.jit.trace(model, torch.zeros(1, 3, 32, 32)).save(tmp_path / "alexnet_cifar10.pt")
    assert run(["predict", str(tmp_path / "alexnet_cifar10.pt"), str(photos / "sky" / "1.jpg"), *arguments]) == 2
    assert "opening torchscript files can run code" in capsys.readouterr().err


def test_folders_of_other_names_need_class_names(file, photos, capsys):
    assert run(["eval", str(file), "--data", str(photos)]) == 2
    assert "name those of a file of weights with --classes" in capsys.readouterr().err


def test_files_and_runs_form_an_ensemble(file, checkpoint, photos, names, capsys):
    image = str(photos / "sky" / "1.jpg")
    assert run(["predict", str(checkpoint), str(file), image, "--classes", str(names), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "lenet"], "'lenet' cannot load"),
        (["--arch", "alexnet"], "There is no architecture 'alexnet'"),
        (["--arch", "torchvision/resnet18"], "'torchvision/resnet18' cannot load"),
        (["--mean", "120", "110", "100"], "divide values of 0…255 by 255"),
        (["--crop-pct", "0"], "must be above 0"),
        (["--classes", "none.txt"], "none.txt cannot be read"),
    ],
)
def test_wrong_descriptions_are_refused(file, photos, arguments, message, capsys):
    assert run(["predict", str(file), str(photos / "sky" / "1.jpg"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["checkpoint", "torchvision:IMAGENET1K_V1"])
def test_a_network_that_describes_itself_takes_no_description(name, checkpoint, photos, capsys):
    source = str(checkpoint) if name == "checkpoint" else name
    assert run(["predict", source, str(photos / "sky" / "1.jpg"), "--arch", "cifar"]) == 2
    assert "--arch describes a file of weights" in capsys.readouterr().err


def test_the_weights_of_a_checkpoint_bring_its_description(checkpoint):
    loaded = load_model(checkpoint / "model.safetensors")
    assert loaded.checkpoint == checkpoint
    assert loaded.classes == CLASS_NAMES


# ── training ──────────────────────────────────────────────────────────────────────────────────────

SETTINGS: dict[str, Any] = {"precision": "fp32", "device": "cpu", "workers": 0, "epochs": 1, "progress": Silent()}


@pytest.mark.parametrize("arch", ["auto", "cifar"])
def test_training_starts_from_a_file(file, model, tmp_path, arch):
    data = make_image_folder(tmp_path / "data", classes=("kilo", "lima"))
    result = train("folder", data=data, weights=str(file), arch=arch, out=tmp_path / "run", **SETTINGS)
    trained = load_model(result.run)
    assert trained.model.fc8.out_features == 2
    for name, value in model.state_dict().items():
        assert name.startswith("fc8") or torch.equal(value, trained.model.state_dict()[name]), name
    recipe = json.loads((result.run / "recipe.json").read_text())
    assert (recipe["arch"], recipe["weights"]) == ("cifar", str(file))


def publish(arch: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Put random weights into torchvision's cache as its best weights of `arch`, and return their network."""
    torch.manual_seed(0)
    network = models.get_model(arch)
    weights = models.get_model_weights(arch)["DEFAULT"]
    monkeypatch.setenv("TORCH_HOME", str(folder))
    cached = folder / "hub" / "checkpoints" / Path(weights.url).name
    cached.parent.mkdir(parents=True)
    torch.save(network.state_dict(), cached)
    return network.eval()


def test_published_weights_of_any_classifier(photos, tmp_path, monkeypatch):
    theirs = publish("mobilenet_v3_small", tmp_path, monkeypatch)
    weights = models.MobileNet_V3_Small_Weights.DEFAULT
    image = photos / "leaf" / "0.jpg"
    with torch.no_grad():
        expected = theirs(weights.transforms()(Image.open(image))[None]).softmax(1)[0]
    found = load("torchvision/mobilenet_v3_small:DEFAULT", device="cpu").predict(image)
    for label, p in found.labels:
        assert p == pytest.approx(float(expected[weights.meta["categories"].index(label)]), abs=1e-5)
    network = {"arch": "torchvision/mobilenet_v3_small", "weights": "DEFAULT"}
    result = train("folder", data=photos, out=tmp_path / "run", limit_steps=1, **network, **SETTINGS)
    trained = load_model(result.run)
    assert trained.classes == CLASS_NAMES
    assert (trained.preprocess.size, trained.preprocess.resize) == (224, 256)
    own = trained.model.network.state_dict()
    kept = {name: value for name, value in theirs.state_dict().items() if not name.startswith("classifier.3")}
    assert all(torch.equal(own[name], value) for name, value in kept.items())


def test_published_weights_that_normalize_again(photos, tmp_path, monkeypatch):
    """With its weights torchvision builds googlenet with `transform_input`."""
    publish("googlenet", tmp_path, monkeypatch)
    weights = models.GoogLeNet_Weights.DEFAULT
    image = photos / "leaf" / "0.jpg"
    with torch.no_grad():
        theirs = models.googlenet(weights=weights).eval()
        expected = theirs(weights.transforms()(Image.open(image))[None]).softmax(1)[0]
    found = load("torchvision/googlenet:IMAGENET1K_V1", device="cpu").predict(image)
    for label, p in found.labels:
        assert p == pytest.approx(float(expected[weights.meta["categories"].index(label)]), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "DEFAULT"}, "name their network, too, such as --arch torchvision/mobilenet_v3_small"),
        ({"weights": "IMAGENET1K_V9", "arch": "torchvision/resnet18"}, "did you mean 'IMAGENET1K_V1'"),
        ({"weights": "DEFAULT", "arch": "torchvision/resnet81"}, "no torchvision classifier 'resnet81'"),
        ({"weights": "DEFAULT", "arch": "paper"}, "name their network, too"),
    ],
)
def test_unknown_published_weights_are_refused(settings, message, photos, tmp_path):
    with pytest.raises(UserError, match=message):
        train("folder", data=photos, out=tmp_path / "run", **settings, **SETTINGS)
    assert not (tmp_path / "run").exists()


# ── recognizing a network ─────────────────────────────────────────────────────────────────────────


def tensors(name: str, **settings: Any) -> dict[str, Tensor]:
    """Return tensors without memory, of the shapes of an architecture."""
    with torch.device("meta"):
        return create_model(name, **settings).state_dict()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("norm", [None, "batch"])
def test_shapes_are_those_of_the_built_network(name, norm):
    own = tensors(name, norm=norm)
    assert tensor_shapes(architecture(name, norm=norm)) == {key: tuple(value.shape) for key, value in own.items()}


@pytest.mark.parametrize("name", ["half", "one-tower", "seed-merged", "cifar", "cifar-towers", "lenet"])
@pytest.mark.parametrize("settings", [{}, {"num_classes": 17}, {"in_channels": 1}])
def test_a_network_is_recognized_by_its_shapes(name, settings):
    spec, note = recognize(tensors(name, **settings))
    assert spec == architecture(name, **settings)
    assert name in note


def test_batch_norm_and_width_are_recognized():
    assert recognize(tensors("cifar", norm="batch"))[0] == architecture("cifar", norm="batch")
    assert recognize(tensors("cifar", width=0.5))[0] == architecture("cifar", width=0.5)


@pytest.mark.parametrize(("lrn", "name"), [(False, "torchvision"), (True, "torchvision-lrn")])
def test_lrn_is_recognized_by_the_layer_numbers(lrn, name):
    norm = [nn.LocalResponseNorm(5)] if lrn else []
    with torch.device("meta"):
        network = nn.Module()
        network.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), *norm,
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), *norm,
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), *norm,
        )  # fmt: skip
        network.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(),
            nn.Linear(4096, 8),
        )  # fmt: skip
    state = network.state_dict()
    assert recognize(state)[0].name == name
    other = "torchvision" if lrn else "torchvision-lrn"
    spec, note = recognize(state, other)
    assert spec.name == other
    assert f"The layer numbers in the weights are those of {name}, not of {other}." in note


def test_several_candidates_are_named():
    with pytest.raises(UserError, match=r"'paper', 'code2012', 'caffe', 'caffenet'; name the one .* --arch paper"):
        recognize(tensors("caffe"))
    with pytest.raises(UserError, match="those of no architecture"):
        recognize({"a.weight": torch.zeros(8, 3), "b.weight": torch.zeros(2, 8)})


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "regnet_y_400mf"])
def test_torchvisions_classifiers_are_recognized(name):
    with torch.random.fork_rng():
        state = models.get_model(name, num_classes=7).state_dict()
    spec, _ = recognize(find_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}}))
    assert (spec.name, spec.num_classes) == (f"torchvision/{name}", 7)


# ── class names ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "cat\ndog\n红\n"),
        ("c.txt", "\ufeffcat\r\ndog\r\n红"),
        ("c.json", '["cat", "dog", "红"]'),
        ("c.json", '{"0": "cat", "2": "红", "1": "dog"}'),
        ("c.json", '{"0": ["n01", "cat"], "1": ["n02", "dog"], "2": ["n03", "红"]}'),
        ("c.json", '{"dog": 1, "cat": 0, "红": 2}'),
    ],
)
def test_class_names_are_read(name, text, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert read_classes(tmp_path / name) == ("cat", "dog", "红")


LABELS = {"gb18030": "苹果\n橘子\n葡萄酒", "shift_jis": "りんご\nみかん\nぶどう", "cp1252": "café\nœuf\n…"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", *LABELS])
@pytest.mark.parametrize("form", ["lines", "json"])
def test_class_names_are_decoded_like_tables(encoding, form, tmp_path):
    labels = LABELS.get(encoding, LABELS["gb18030"]).split("\n")
    path = tmp_path / f"c.{'json' if form == 'json' else 'txt'}"
    text = json.dumps(labels, ensure_ascii=False) if form == "json" else "\r\n".join(labels)
    path.write_bytes(text.encode(encoding))
    given = encoding if encoding in LABELS else None  # a few words fit several encodings
    assert read_classes(path, given) == tuple(labels)


def test_names_are_stored_as_those_of_tables(tmp_path):
    (tmp_path / "c.txt").write_text("\u200b cafe\u0301\u3000\na\x1b[31m\n", encoding="utf-8")
    assert read_classes(tmp_path / "c.txt") == ("caf\xe9", "a\\x1b[31m")


def test_an_encoding_that_was_found_is_said(tmp_path):
    path, said = tmp_path / "c.txt", []
    path.write_bytes("café\nthé\npurée".encode("cp1252"))
    assert read_classes(path, log=said.append) == ("café", "thé", "purée")
    assert said == [f"Read {path} as cp1252, the only encoding that fits."]
    read_classes(path, "cp1252", said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"", "empty class name"),
        ("c.txt", b"cat\n\ndog\n", "empty class name"),
        ("c.txt", "类别\n".encode("gbk"), "several encodings fit: .*; choose one with --classes-encoding"),
        ("c.txt", b"ab\xff\x81", "is no text in UTF-8 .* give its --classes-encoding"),
        ("c.json", b"{", "must be JSON"),
        ("c.json", b'{"0": "cat", "2": "dog"}', "must be JSON"),
        ("c.json", b"3", "must be JSON"),
        ("c.json", b'[["n01", 2]]', "must be JSON"),
    ],
)
def test_wrong_class_names_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / name)


def test_the_number_of_class_names_is_checked(file, tmp_path):
    (tmp_path / "two.txt").write_text("cat\ndog")
    with pytest.raises(UserError, match="has 2 class names and '.*' 3 outputs"):
        load_model(file, file=FileOptions(classes=tmp_path / "two.txt"))
