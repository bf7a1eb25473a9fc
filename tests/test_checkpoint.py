"""Writing and reading checkpoint folders, and refusing damaged or foreign ones."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alexnet.checkpoint import (
    MODEL,
    PREPROCESS,
    TRAINING,
    WEIGHTS,
    checkpoint_id,
    load_checkpoint,
    read_training_state,
    save_model,
    update_model_json,
)
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import atomic_folder
from alexnet.models.model import Network, create_model

CLASSES = ("a", "b", "c")
TRANSFORM = EvalTransform(size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def make_model(norm: str | None = None) -> Network:
    return create_model("cifar", num_classes=3, width=0.1, norm=norm)


def write(folder: Path, model: Network | None = None, transform: EvalTransform = TRANSFORM, **settings) -> Path:
    settings = {"step": 1, "epoch": 1, "training": {"x": 1}, **settings}
    with atomic_folder(folder) as temporary:
        save_model(temporary, model or make_model(), CLASSES, transform, **settings)
    return folder


def update_checksum(folder: Path, name: str = TRAINING) -> None:
    """Make the checksum in model.json that of the file as it is now."""
    values = json.loads((folder / MODEL).read_text())
    values["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MODEL).write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a training state."""
    return write(tmp_path / "checkpoint")


# ── model ─────────────────────────────────────────────────────────────────────────────────────────


def test_round_trip(tmp_path):
    torch.manual_seed(5)
    model = make_model(norm="batch")
    loaded = load_checkpoint(write(tmp_path / "checkpoint", model, step=5, epoch=2, training=None))
    assert (loaded.classes, loaded.preprocess, loaded.step, loaded.epoch) == (CLASSES, TRANSFORM, 5, 2)
    assert loaded.model.spec == model.spec
    for (name, saved), tensor in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(saved, tensor), name
    assert not loaded.model.training


def test_given_weights_are_written_instead_of_those_of_the_model(tmp_path):
    """The model may be training while a copy of its weights is written."""
    model = make_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.fc8.weight.fill_(0)
    loaded = load_checkpoint(write(tmp_path / "checkpoint", model, weights=weights))
    assert torch.equal(loaded.model.state_dict()["fc8.weight"], weights["fc8.weight"])


def test_update_model_json_sets_one_key(folder):
    before = json.loads((folder / MODEL).read_text())
    identity = checkpoint_id(folder)
    update_model_json(folder, "calibration", {"temperature": 1.5})
    assert json.loads((folder / MODEL).read_text()) == {
        **before,
        "calibration": {"temperature": 1.5},
    }
    assert checkpoint_id(folder) == identity
    assert load_checkpoint(folder).classes == CLASSES


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate weights", "model.safetensors is truncated or damaged"),
        ("flip a bit", "checksum"),
        ("remove weights", "has no model.safetensors"),
        ("truncate model.json", "model.json is damaged"),
        ("other software", "written by other software"),
        ("classes", "names 1 classes for a network with 3"),
        ("remove model.json", "is not an AlexNet checkpoint"),
    ],
)
def test_damage_is_detected_and_named(folder, damage, message):
    weights, described = folder / WEIGHTS, folder / MODEL
    values = json.loads(described.read_text())
    if damage == "truncate weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "flip a bit":
        data = bytearray(weights.read_bytes())
        data[-50] ^= 1
        weights.write_bytes(data)
    elif damage == "remove weights":
        weights.unlink()
    elif damage == "truncate model.json":
        described.write_text(described.read_text()[:100])
    elif damage == "other software":
        described.write_text(json.dumps({"architecture": "resnet"}))
    elif damage == "classes":
        described.write_text(json.dumps({**values, "classes": ["a"]}))
    elif damage == "remove model.json":
        described.unlink()
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


# ── mean image ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": [300_000, 4096]},
        {"hidden": [1] * 200_000},
        {"width": 1e300},
        {"image_size": 10**12, "adaptive_pool": 10**9},
        {"image_size": 10**30},
        {"convs": [{"out_channels": 8, "kernel": 10**15}]},
        {"kind": "torchvision", "name": "torchvision/regnet_y_128gf"},
        {"kind": "torchvision", "name": "torchvision/vit_b_16", "image_size": 16 * 10**5},
        {"kind": "torchvision", "name": "torchvision/vit_b_16", "image_size": 10**18},
        {"kind": "torchvision", "name": "torchvision/maxvit_t", "image_size": 10**7},
    ],
)
def test_a_network_that_is_larger_than_its_weights_is_not_built(folder, changes, monkeypatch):
    values = json.loads((folder / "model.json").read_text())
    spec = values["spec"] if "kind" not in changes else {"num_classes": values["spec"]["num_classes"]}
    convs = [{**spec["convs"][0], **conv} for conv in changes.get("convs", [])]
    values["spec"] = {**spec, **changes, **({"convs": convs} if convs else {})}
    (folder / "model.json").write_text(json.dumps(values))
    monkeypatch.setattr("alexnet.models.model.build", lambda spec: pytest.fail("was built"))
    with pytest.raises(UserError, match=r"does not hold the network|use at least|is damaged"):
        load_checkpoint(folder)


def test_preprocessing_that_would_exhaust_the_memory_is_refused(folder):
    values = json.loads((folder / "model.json").read_text())
    values["preprocess"]["resize"] = 10**5
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="more than 4096 pixels is refused"):
        load_checkpoint(folder)


def test_mean_image_round_trip(tmp_path, folder):
    mean_image = torch.rand(3, 32, 32)
    loaded = load_checkpoint(write(tmp_path / "mean", transform=replace(TRANSFORM, mean_image=mean_image))).preprocess
    assert loaded == TRANSFORM
    assert loaded.mean_image is not None
    assert torch.equal(loaded.mean_image, mean_image)
    assert not (folder / PREPROCESS).exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("remove", "has no preprocess.safetensors; use another checkpoint"),
        ("truncate", "preprocess.safetensors is truncated or damaged: its checksum"),
        ("unlisted", "preprocess.safetensors is truncated or damaged: its checksum"),
        ("junk", "preprocess.safetensors holds no mean image"),
        ("other tensor", "preprocess.safetensors holds no mean image"),
        ("other size", "A mean image of 3×16×16 does not fit (pictures|images) of 3×32×32"),
    ],
)
def test_damage_to_the_mean_image_is_detected_and_named(tmp_path, damage, message):
    mean_image = torch.rand(3, 32, 32)
    folder = write(tmp_path / "mean", transform=replace(TRANSFORM, mean_image=mean_image))
    path = folder / PREPROCESS
    if damage == "remove":
        path.unlink()
    elif damage in ("truncate", "junk"):
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other tensor":
        save_file({"mean": mean_image}, path)
    elif damage == "other size":
        save_file({"mean_image": torch.zeros(3, 16, 16)}, path)
    if damage == "unlisted":
        values = json.loads((folder / MODEL).read_text())
        del values["sha256"][PREPROCESS]
        (folder / MODEL).write_text(json.dumps(values))
    elif damage not in ("remove", "truncate"):
        update_checksum(folder, PREPROCESS)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


# ── training state ────────────────────────────────────────────────────────────────────────────────


def test_training_state_round_trip(folder):
    assert read_training_state(folder) == {"x": 1}


def test_a_changed_model_json_is_detected_before_training_resumes(folder):
    values = json.loads((folder / MODEL).read_text())
    values["preprocess"]["mean"][0] = 0.15
    (folder / MODEL).write_text(json.dumps(values))
    with pytest.raises(
        UserError,
        match=r"model\.json is damaged: it differs from the one that training\.pt was saved",
    ):
        read_training_state(folder)


def test_a_changed_byte_in_training_pt_is_detected(folder):
    path = folder / TRAINING
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"training\.pt is truncated or damaged: its checksum"):
        read_training_state(folder)


def test_a_truncated_or_missing_training_pt_is_refused(folder):
    path = folder / TRAINING
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_training_state(folder)
    path.unlink()
    with pytest.raises(UserError, match="has no training.pt"):
        read_training_state(folder)


def test_a_foreign_training_pt_is_refused(folder):
    torch.save({"optimizer": {}}, folder / TRAINING)
    update_checksum(folder)
    with pytest.raises(UserError, match=r"training\.pt was written by other software"):
        read_training_state(folder)


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_in_training_pt_is_refused_and_not_run(folder, tmp_path):
    payload = Payload(tmp_path / "executed")
    for dump in (
        lambda p: torch.save({"optimizer": payload}, p),
        lambda p: p.write_bytes(pickle.dumps(payload)),
    ):
        dump(folder / TRAINING)
        update_checksum(folder)
        with pytest.raises(UserError, match="pickle that could run code"):
            read_training_state(folder)
    assert not payload.path.exists()
