"""Features of a layer, and the table that holds them."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from alexnet.errors import UserError
from alexnet.inference.features import Features, output_of, write_features
from alexnet.inference.load import load_model
from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.model import create_model
from alexnet.models.spec import layers
from helpers import make_image, make_image_folder


@pytest.mark.parametrize(
    ("arch", "layer", "module"),
    [
        ("paper", "fc7", "relu7"),
        ("paper", "fc8", "fc8"),
        ("paper", "relu7", "relu7"),
        ("code2012", "conv1", "conv1"),  # normalized and pooled before its ReLU
        ("code2012", "conv2", "relu2"),
        ("lenet", "fc4", "sigmoid4"),
    ],
)
def test_layer_with_weights_means_its_activation(arch, layer, module):
    assert output_of(layers(ARCHITECTURES[arch]), layer) == module


def test_batch_norm_before_the_activation():
    assert output_of(layers(create_model("cifar", norm="batch", width=0.125).spec), "conv3") == "relu3"


@pytest.mark.parametrize("layer", ["conv1", "pool2", "conv5", "fc6", "fc7", "relu7", "drop7", "fc8"])
def test_features_equal_a_forward_hook(layer):
    """fc7 is what a hook on relu7 sees, not what a hook on fc7 sees, which has negative values."""
    model = create_model("cifar", width=0.125).eval()
    seen = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        model(x)
        features = Features(model, layer)
        got = features(x)
    assert got.shape[1:] == features.shape
    torch.testing.assert_close(got, seen[output_of(layers(model.spec), layer)], rtol=0, atol=0)
    if layer in ("conv1", "fc6", "fc7"):
        assert (seen[layer] < 0).any()
        assert (got >= 0).all()


def test_default_is_the_last_hidden_layer():
    assert Features(create_model("cifar", width=0.125)).layer == "fc7"
    assert Features(create_model("lenet")).layer == "fc4"


def test_any_module_of_torchvisions_networks():
    model = create_model("torchvision/resnet18", num_classes=3, image_size=32).eval()
    features = Features(model, "layer1.0.bn1")  # the next ReLU works in place
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        stem = model.network.maxpool(model.network.relu(model.network.bn1(model.network.conv1(x))))
        expected = model.network.layer1[0].bn1(model.network.layer1[0].conv1(stem))
        torch.testing.assert_close(features(x), expected)
    assert features.shape == expected.shape[1:]
    with pytest.raises(UserError, match="Name a layer of 'torchvision/resnet18' with --layer: conv1, "):
        Features(model)
    with pytest.raises(UserError, match="no layer 'layer11' in 'torchvision/resnet18'; did you mean 'layer1"):
        Features(model, "layer11")


def expected_features(run, path, layer):
    loaded = load_model(run)
    x = loaded.preprocess.normalize(loaded.preprocess.eval_tensor(Image.open(path))[None])
    with torch.no_grad():
        return Features(loaded.model, layer)(x).flatten().numpy()


def test_a_table_of_a_folder(small_run, tmp_path):
    root = make_image_folder(tmp_path / "data" / "train", ("one", "two"), 2).parent
    make_image(root / "loose.jpg", 0, 9)
    (root / "train" / "one" / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "new" / "f.parquet"
    written = write_features(small_run, root, out, layer="conv1", device="cpu")
    table = parquet.read_table(out)
    assert (written.n, written.module, written.errors[0][0]) == (5, "relu1", str(root / "train" / "one" / "bad.jpg"))
    assert table["label"].to_pylist() == [None, "one", "one", "two", "two"]
    assert json.loads(table.schema.metadata[b"shape"]) == list(written.shape)
    assert table.schema.field("features").type.list_size == int(np.prod(written.shape))
    for path, row in zip(table["path"].to_pylist(), table["features"].to_pylist(), strict=True):
        np.testing.assert_allclose(row, expected_features(small_run, path, "conv1"), rtol=1e-5, atol=1e-5)
    assert [p.name for p in out.parent.iterdir()] == ["f.parquet"]


def test_csv_holds_the_same_numbers(small_run, tmp_path):
    root = make_image_folder(tmp_path / "data", ("a\nb",), 2)
    write_features(small_run, root, tmp_path / "f.csv", device="cpu")
    write_features(small_run, root, tmp_path / "f.parquet", device="cpu")
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8-sig") as file:
        head, *rows = csv.reader(file)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert head[:3] == ["path", "label", "f0"]
    assert [row[1] for row in rows] == ["a\\nb"] * 2
    values = np.array([row[2:] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(values, np.array(table["features"].to_pylist(), dtype=np.float32))


def test_single_image_and_invalid_input(small_run, tmp_path):
    make_image(tmp_path / "a.png", 0, 0)
    assert write_features(small_run, tmp_path / "a.png", tmp_path / "f.parquet", device="cpu").n == 1
    with pytest.raises(UserError, match="There is no layer 'fc77'; did you mean 'fc7'"):
        write_features(small_run, tmp_path / "a.png", tmp_path / "g.parquet", layer="fc77")
    with pytest.raises(UserError, match=r"written as \.parquet or \.csv, not as .*g\.xlsx"):
        write_features(small_run, tmp_path / "a.png", tmp_path / "g.xlsx")
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the images could be read: .*bad\.png: the file is empty\."):
        write_features(small_run, tmp_path / "bad.png", tmp_path / "g.parquet")
    assert not (tmp_path / "g.parquet").exists()
