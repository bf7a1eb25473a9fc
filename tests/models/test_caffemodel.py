"""Caffe's files, written here byte by byte, and networks that compute what Caffe does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import caffe_writer
from alexnet.checkpoint import save_model
from alexnet.cli import run
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.load import load_model
from alexnet.inference.predict import load
from alexnet.inference.weights_file import FileOptions
from alexnet.models.architectures import architecture
from alexnet.models.caffemodel import CHANNEL_MEAN, read_caffemodel
from alexnet.models.model import build, create_model
from alexnet.models.weights import load_weights
from helpers import make_image_folder

WIDTH = 1 / 12  # 8-16-32-32-16 channels


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """Weights of Caffe's AlexNet at a twelfth of its width, for BGR of 0 to 255, with logits that differ by image."""
    model = create_model("caffe", num_classes=5, width=WIDTH)
    random = np.random.default_rng(4)
    found = {}
    for name, tensor in model.state_dict().items():
        fan_in = float(np.prod(tensor.shape[1:]))
        factor = {"conv1.weight": 0.02, "fc8.weight": 0.2}.get(name, 1)
        scale = (2 / fan_in) ** 0.5 * factor if tensor.dim() > 1 else 0.1
        found[name] = (random.standard_normal(tuple(tensor.shape)) * scale).astype(np.float32)
    return found


def caffe_logits(state: dict[str, np.ndarray], bgr: Tensor, pool_first: bool = False) -> Tensor:
    """Compute Caffe's AlexNet or CaffeNet in plain torch on N×3×227×227, BGR of 0 to 255 less its mean."""
    w = {name: torch.from_numpy(value) for name, value in state.items()}
    x = bgr
    for n, (stride, padding, groups) in enumerate([(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)], 1):
        x = F.relu(F.conv2d(x, w[f"conv{n}.weight"], w[f"conv{n}.bias"], stride, padding, groups=groups))
        steps = [lambda t: F.local_response_norm(t, 5, 1e-4, 0.75, 1.0)] if n < 3 else []
        steps += [lambda t: F.max_pool2d(t, 3, 2)] if n in (1, 2, 5) else []
        for step in steps[::-1] if pool_first else steps:
            x = step(x)
    x = x.flatten(1)
    for n in (6, 7, 8):
        x = F.linear(x, w[f"fc{n}.weight"], w[f"fc{n}.bias"])
        x = F.relu(x) if n < 8 else x
    return x


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(5)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    path = tmp_path_factory.mktemp("image") / "image.png"
    coarse.resize((256, 256), Image.Resampling.BICUBIC).save(path)  # so that nothing is resized below
    return path


def center(path: Path, size: int = 227) -> np.ndarray:
    """Return the BGR center, 3×size×size of 0 to 255, as Caffe crops it from 256 pixels."""
    start = (256 - size) // 2
    return np.asarray(Image.open(path), np.float32)[start : start + size, start : start + size, ::-1].transpose(2, 0, 1)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("arch", ["caffe", "caffenet"])
def test_predictions_are_those_of_caffe(state, image, tmp_path, arch, version, packed):
    pool_first = arch == "caffenet"
    path = write(tmp_path / "net.caffemodel", caffe_writer.alexnet(state, version, pool_first, packed))
    bgr = torch.from_numpy(center(image) - np.array(CHANNEL_MEAN[::-1], np.float32)[:, None, None])[None]
    expected = caffe_logits(state, bgr, pool_first).softmax(1)[0]
    loaded = load_model(path)  # the architecture is in the file
    assert loaded.model.spec.name == arch
    found = dict(load(path).predict(image).labels)
    assert [found[str(n)] for n in range(5)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert 0.02 < expected.max() < 0.98  # the comparison could fail
    model = load_weights(create_model(arch, num_classes=5, width=WIDTH), path).eval()
    torch.testing.assert_close(model(bgr.flip(1)), caffe_logits(state, bgr, pool_first), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["net.binaryproto", "imagenet_mean.binaryproto"])
def test_the_mean_image_beside_it_is_subtracted(state, image, tmp_path, name):
    mean = np.random.default_rng(6).uniform(90, 140, (3, 256, 256)).astype(np.float32)
    path = write(tmp_path / "net.caffemodel", caffe_writer.alexnet(state))
    write(tmp_path / name, caffe_writer.blob(mean, old_shape=True))
    bgr = torch.from_numpy(center(image) - mean[:, 14:241, 14:241])[None]
    found = dict(load(path).predict(image).labels)
    assert [found[str(n)] for n in range(5)] == pytest.approx(caffe_logits(state, bgr).softmax(1)[0].tolist(), abs=1e-5)
    notes: list[str] = []
    load_model(path, log=notes.append)
    assert any(name in note for note in notes)


def test_flags_replace_what_caffe_uses(state, tmp_path):
    path = write(tmp_path / "net.caffemodel", caffe_writer.alexnet(state))
    for name in ("one", "two"):
        write(tmp_path / f"{name}.binaryproto", caffe_writer.blob(np.ones((3, 256, 256)), old_shape=True))
    with pytest.raises(UserError, match=r"several mean images.*rename the right one.*net\.binaryproto"):
        load_model(path)
    preprocess = load_model(path, file=FileOptions(mean=(0.5,), crop_pct=1.0)).preprocess
    assert (preprocess.mean, preprocess.resize_side, preprocess.squash) == ((0.5,) * 3, 227, True)
    assert preprocess.std == pytest.approx((1 / 255,) * 3)
    write(tmp_path / "net.binaryproto", caffe_writer.blob(np.full((1, 3, 1, 1), 51)))  # a mean per channel
    assert load_model(path).preprocess.mean == pytest.approx((0.2,) * 3)


def test_gray_networks_have_no_color_order(tmp_path):
    model = create_model("caffe", num_classes=3, in_channels=1, width=WIDTH)
    values = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    loaded = load_model(write(tmp_path / "net.caffemodel", caffe_writer.alexnet(values)))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.preprocess.mean == (0.0,)


@pytest.mark.slow
def test_training_starts_from_it(state, tmp_path, capsys):
    path = write(tmp_path / "net.caffemodel", caffe_writer.alexnet(state))
    photos = make_image_folder(tmp_path / "photos", count=4)
    out = tmp_path / "run"
    given = ["--weights", str(path), "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--out", str(out)]
    assert run(["train", str(photos), *given, "--json"]) == 0
    assert "Starting from" in capsys.readouterr().err
    model = json.loads(next(out.glob("checkpoints/*/model.json")).read_text())
    assert (model["spec"]["name"], model["preprocess"]["squash"]) == ("caffe", True)


# ── refused ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("arch", ["caffenet", "paper", "code2012"])
def test_networks_with_another_lrn_are_refused(state, tmp_path, arch):
    path = write(tmp_path / "net.caffemodel", caffe_writer.alexnet(state))
    with pytest.raises(UserError, match=rf"k 1 before pooling, and '{arch}' another; use 'caffe'"):
        load_weights(create_model(arch, num_classes=5, width=WIDTH), path)
    with pytest.raises(UserError, match="use 'caffe'"):
        load_model(path, file=FileOptions(arch=arch))
    write(path, caffe_writer.alexnet(state, k=2.0))
    with pytest.raises(UserError, match="k 2 before pooling.*no architecture here has that"):
        load_weights(create_model("caffe", num_classes=5, width=WIDTH), path)


def test_weights_in_a_checkpoint_folder_are_refused_by_another_network(tmp_path):
    model = build(architecture("caffenet", num_classes=3, width=WIDTH))
    save_model(tmp_path, model, ("a", "b", "c"), EvalTransform(227))
    weights = tmp_path / "model.safetensors"
    load_weights(create_model("caffenet", num_classes=3, width=WIDTH, dropout=0.0), weights)
    other = create_model("code2012", num_classes=3, width=WIDTH)
    with pytest.raises(UserError, match=r"holds weights of 'caffenet', and 'code2012' as built here has another LRN"):
        load_weights(other, weights)
    load_weights(other, shutil.copy(weights, tmp_path / "weights.safetensors"))  # nothing beside it says what it is


FLOAT, HUGE = b"\x2d", b"\xff" * 9 + b"\x01"
DAMAGED = {
    "text": b"this is no network at all",
    "no layers": caffe_writer.message(1, "AlexNet"),
    "a length beyond the end": b"\xa2\x06" + caffe_writer.varint(1 << 40) + b"abc",
    "a length of 2**64 - 1": b"\xa2\x06" + HUGE,
    "a number without end": b"\x80" * 1000,
    "a group": b"\x0b" * 10,
    "fields without end": b"\x08\x00" * 20_000,
    "unpacked floats cut off": caffe_writer.message(100, caffe_writer.message(7, FLOAT + b"\0\0\0\0" + FLOAT + b"\0")),
    "an absurd shape": caffe_writer.message(
        100, caffe_writer.message(7, caffe_writer.message(7, caffe_writer.message(1, HUGE * 3)) + FLOAT + b"\0" * 4)
    ),
    "a shape of many sides": caffe_writer.message(
        100, caffe_writer.message(7, caffe_writer.message(7, caffe_writer.message(1, b"\1" * 999)) + FLOAT + b"\0" * 4)
    ),
    "three bytes of floats": caffe_writer.message(100, caffe_writer.message(7, caffe_writer.message(5, b"abc"))),
    "a name that is a number": caffe_writer.message(100, caffe_writer.integer(1, 7)),
    "layers of one name": caffe_writer.network([("a", "Data", [caffe_writer.blob(np.ones(2))], b"")] * 2),
    "an LRN of text": caffe_writer.message(100, caffe_writer.message(118, caffe_writer.message(2, "1e-4"))),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_one_sentence(content, tmp_path, capsys):
    path, photo = write(tmp_path / "net.caffemodel", content), write(tmp_path / "photo.jpg", b"")
    assert run(["predict", str(path), str(photo)]) == 2
    assert "damaged or not Caffe's" in (err := capsys.readouterr().err)
    assert "Traceback" not in err


def test_files_cut_anywhere_are_refused(state, tmp_path):
    whole = caffe_writer.alexnet(state)
    path = tmp_path / "net.caffemodel"
    for end in np.random.default_rng(7).integers(1, len(whole) - 1, 40):
        write(path, whole[:end])
        with pytest.raises(UserError, match="damaged|tensors"):  # between two layers, tensors are missing
            load_weights(create_model("caffe", num_classes=5, width=WIDTH), path)


def test_damaged_mean_images_are_one_sentence(state, tmp_path):
    path = write(tmp_path / "net.caffemodel", caffe_writer.alexnet(state))
    mean = tmp_path / "net.binaryproto"
    write(mean, caffe_writer.blob(np.ones((3, 256, 256)))[:-5])
    with pytest.raises(UserError, match="The mean image.*ends in the middle"):
        load_model(path)
    write(mean, caffe_writer.blob(np.ones((1, 256, 256))))
    with pytest.raises(UserError, match="has 1 channels, not 3"):
        load_model(path)
    write(mean, caffe_writer.blob(np.ones((3, 100, 100))))
    with pytest.raises(UserError, match="A mean image of 3×100×100 does not fit"):
        load_model(path)


def test_a_width_of_floats_costs_no_memory(tmp_path):
    """A million unpacked floats are read at once, not one by one."""
    values = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
    entries = np.zeros(values.size, [("key", "u1"), ("value", "<f4")])
    entries["key"], entries["value"] = FLOAT[0], values.ravel()
    shape = caffe_writer.message(7, caffe_writer.message(1, caffe_writer.varint(1000) * 2))
    layer = ("fc", "InnerProduct", [shape + entries.tobytes()], b"")
    found = read_caffemodel(write(tmp_path / "net.caffemodel", caffe_writer.network([layer]))).tensors
    np.testing.assert_array_equal(found["fc.weight"].numpy(), values)
