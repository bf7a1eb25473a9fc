"""Weights under every naming scheme and from every file type; refused ones leave the model unchanged."""

from __future__ import annotations

import argparse
import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from alexnet.errors import UserError
from alexnet.models.architectures import architecture
from alexnet.models.model import AlexNet, build, create_model
from alexnet.models.state_dicts import find_state_dict
from alexnet.models.weights import load_weights, read_weights, to_torchvision, torchvision_weights

FEATURES = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
CLASSIFIER = {"fc6": 1, "fc7": 4, "fc8": 6}


def small(seed: int, name: str = "torchvision", **given: object) -> AlexNet:
    torch.manual_seed(seed)
    return build(architecture(name, width=0.125, **{"image_size": 64, "num_classes": 6, **given}))  # type: ignore[arg-type]


def renamed(state: dict[str, Tensor], style: str) -> dict[str, object]:
    """Return a state dict in the naming scheme of another program."""
    found: dict[str, object] = OrderedDict()
    for n, (key, value) in enumerate(state.items()):
        layer, tensor = key.split(".")
        part = f"features.{FEATURES[layer]}" if layer in FEATURES else f"classifier.{CLASSIFIER[layer]}"
        short = tensor[0]
        name, entry = {
            "ours": (key, value),
            "torchvision": (f"{part}.{tensor}", value),
            "bare indices": (f"{3 * (n // 2)}.{tensor}", value),
            "data parallel": (f"module.{part}.{tensor}", value),
            "compiled": (f"_orig_mod.{key}", value),
            "both": (f"_orig_mod.module.{key}", value),
            "caffe blobs": (f"{layer}_{short}", value.numpy()),
            "caffe numbered": (f"{layer}.{int(short == 'b')}", value.reshape((1,) * (4 - value.dim()) + value.shape)),
            "unknown names": (f"stage{n // 2}/{'kernel' if short == 'w' else 'offset'}", value),
            "half precision": (key, value.bfloat16()),
        }[style]
        found[name] = entry
    return found


STYLES = [
    "ours",
    "torchvision",
    "bare indices",
    "data parallel",
    "compiled",
    "both",
    "caffe blobs",
    "caffe numbered",
    "unknown names",
]


def assert_same(model: AlexNet, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert list(own) == list(state)
    assert all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("style", STYLES)
def test_names_of_every_style_are_matched(style: str, wrapper: str | None) -> None:
    state = small(1).state_dict()
    given = renamed(state, style)
    model = small(2)
    assert load_weights(model, {wrapper: given, "epoch": 3} if wrapper else given) is model
    assert_same(model, state)


@pytest.mark.parametrize("style", [s for s in STYLES if s != "unknown names"])
def test_sorted_names_are_matched(style: str) -> None:
    # safetensors keeps no order: "features.10" comes before "features.3", "bias" before "weight", "classifier" first.
    state = small(1).state_dict()
    assert_same(load_weights(small(2), dict(sorted(renamed(state, style).items()))), state)


def test_values_are_copied_and_cast() -> None:
    source, model = small(1), small(2)
    load_weights(model, renamed(source.state_dict(), "half precision"))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=1e-2, atol=1e-3)
    load_weights(model, source.state_dict())
    with torch.no_grad():
        next(source.parameters()).zero_()
    assert next(model.parameters()).any()


def test_batch_norm_statistics_are_loaded() -> None:
    source = small(1, "cifar", norm="batch", image_size=32).train()
    source(torch.randn(4, 3, 32, 32))
    assert_same(load_weights(small(2, "cifar", norm="batch", image_size=32), source.state_dict()), source.state_dict())


@pytest.mark.parametrize(
    ("name", "channels", "inputs", "hidden", "padding"),
    [("seed-merged", 3, 9216, 2048, 2), ("d2l", 1, 6400, 4096, 1), ("d2l-unpadded", 1, 6400, 4096, 0)],
)
@pytest.mark.slow
def test_weights_of_tutorial_networks_give_the_same_logits(
    name: str, channels: int, inputs: int, hidden: int, padding: int
) -> None:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(channels, 96, 11, 4, padding), nn.ReLU(), nn.MaxPool2d(3, 2)),
        nn.Sequential(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        nn.Sequential(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten()),
        nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
    ]
    flat = nn.Sequential(*(module for block in blocks for module in block), nn.Linear(hidden, 10)).eval()
    ours = load_weights(create_model(name, num_classes=10), flat.state_dict()).eval()
    x = torch.randn(1, channels, 224, 224)
    torch.testing.assert_close(ours(x), flat(x), rtol=0, atol=1e-6)
    if name == "d2l":  # the tutorial lost the book's padding: nothing complains, and the logits are others
        other = load_weights(create_model("d2l-unpadded", num_classes=10), flat.state_dict()).eval()
        assert (other(x) - flat(x)).abs().max() > 1e-4


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


def checkpoint_of(style: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what a program saves of a network with this state dict."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}
    averages = {key: value + 1 for key, value in state.items()}
    prefixed = {f"model.{key}": value for key, value in state.items()}
    return {
        "net": {"net": state, "acc": 93.1, "epoch": 7},
        "model_state": {"epoch": 7, "model_state": state, "optimizer_state": optimizer},
        "any name": {"alexnet_v2": state, "optimizer": optimizer, "best": torch.tensor(0.9)},
        "nested": {"ema": {"model": state, "decay": 0.99}, "optimizer": optimizer},
        "any prefix": {f"my.backbone.{key}": value for key, value in state.items()},
        "inner wrapper": {key.replace("features.", "features.module."): value for key, value in state.items()},
        "compiled part": {key.replace("classifier.", "classifier._orig_mod."): v for key, v in state.items()},
        "lightning": {
            "epoch": 7, "global_step": 70, "pytorch-lightning_version": "2.5.0", "loops": {}, "lr_schedulers": [],
            "state_dict": {**prefixed, "criterion.weight": torch.ones(6), "train_acc.total": torch.tensor(3)},
            "callbacks": {"EarlyStopping{'monitor': 'loss'}": {"best_score": torch.tensor(0.1)}},
            "optimizer_states": [optimizer], "hyper_parameters": {"lr": 0.1},
        },
        "loss beside layers": {**state, "criterion.weight": torch.ones(6), "loss_fn.pos_weight": torch.ones(6)},
        "loss in wrapper": {f"module.{k}": v for k, v in {**prefixed, "criterion.weight": torch.ones(6)}.items()},
        "averages only": {"model_ema": {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(9)}},
        "with options": {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("runs")), "best": np.float64(93.1),
                         "losses": np.ones(3), "optimizer": optimizer},
        "averages beside": {"state_dict_ema": averages, "state_dict": state, "arch": "alexnet"},
    }[style]  # fmt: skip


CHECKPOINTS = [
    "net", "model_state", "any name", "nested", "any prefix", "inner wrapper", "compiled part", "lightning",
    "loss beside layers", "loss in wrapper", "averages only", "with options", "averages beside",
]  # fmt: skip


@pytest.mark.parametrize("style", CHECKPOINTS)
def test_checkpoints_of_other_programs_are_loaded(style: str, tmp_path: Path) -> None:
    state = small(1).state_dict()
    torch.save(checkpoint_of(style, renamed(state, "torchvision")), tmp_path / "w.ckpt")  # type: ignore[arg-type]
    assert_same(load_weights(small(2), tmp_path / "w.ckpt"), state)


def test_choices_are_noted() -> None:
    state = small(1).state_dict()
    notes: list[str] = []
    find_state_dict(checkpoint_of("averages beside", state), "w.pth", notes.append)
    find_state_dict(checkpoint_of("loss beside layers", state), "w.pth", notes.append)
    assert notes[0] == "Of w.pth the weights in 'state_dict' are taken, and not those in 'state_dict_ema'."
    assert "'criterion.weight', 'loss_fn.pos_weight' belongs to the training" in notes[1]


def test_several_networks_in_one_file_are_refused() -> None:
    state = small(1).state_dict()
    twice = {"netG": state, "netD": dict(state)}
    assert_refused(small(2), twice, "several networks in the weights: 'netG', 'netD'; save")


def test_batch_norm_is_matched_without_its_counters_and_in_any_order(tmp_path: Path) -> None:
    source = small(1, "cifar", norm="batch", image_size=32).train()
    source(torch.randn(4, 3, 32, 32))
    state = source.state_dict()
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    loaded = load_weights(small(2, "cifar", norm="batch", image_size=32), old).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in old.items())
    blocks = {}  # a tutorial's nn.Sequential(Conv2d, BatchNorm2d, …) per layer, sorted as safetensors does
    for key, value in old.items():
        layer, tensor = key.split(".")
        number = layer[-1]
        module = {"conv": f"layer{number}.0", "norm": f"layer{number}.1", "fc": f"fc{number}.1"}[layer[:-1]]
        blocks[f"{module}.{tensor}"] = value
    save_file(blocks, tmp_path / "w.safetensors")
    loaded = load_weights(small(2, "cifar", norm="batch", image_size=32), tmp_path / "w.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in old.items())


def test_a_bias_is_not_taken_for_a_weight() -> None:
    """In a batch norm all tensors have one shape."""
    state = small(1, "cifar", norm="batch", image_size=32).state_dict()
    names = {"norm1.weight": "a1.bias", "norm1.bias": "a1.weight"}
    swapped = {names.get(key, f"b.{key}"): value for key, value in state.items() if "num_batches" not in key}
    assert_refused(small(2, "cifar", norm="batch", image_size=32), swapped, r"'norm1.weight' .* their 'a1.bias'")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    state = small(1).state_dict()
    state["fc8.bias"][2] = value
    assert_refused(small(2), state, "'fc8.bias' holds values that are not finite")


def test_sparse_tensors_are_refused() -> None:
    state = small(1).state_dict()
    assert_refused(small(2), {**state, "fc8.weight": state["fc8.weight"].to_sparse()}, "'fc8.weight' is sparse")


def test_a_traced_network_is_refused(tmp_path: Path) -> None:
    model = small(2).eval()
    torch.jit.trace(model, torch.zeros(1, 3, 64, 64)).save(tmp_path / "traced.pt")
    assert_refused(model, tmp_path / "traced.pt", "is a TorchScript archive, which holds code")


# ── mismatches ────────────────────────────────────────────────────────────────────────────────────


def assert_refused(model: AlexNet, weights: object, message: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message) as error:
        load_weights(model, weights)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_first_mismatch_is_named() -> None:
    state = small(1).state_dict()
    message = r"its 'fc8.weight' has shape \(9, 512\) and their 'classifier.6.weight' has \(6, 512\)"
    assert_refused(small(2, num_classes=9), renamed(state, "torchvision"), message)
    assert_refused(
        small(2, num_classes=9), state, r"'fc8.weight' has shape \(9, 512\) and their 'fc8.weight' has \(6, 512\)"
    )
    message = r"'conv1.weight' has shape \(64, 3, 5, 5\) and their '0.weight' has \(64, 3, 11, 11\)"
    assert_refused(create_model("cifar"), {"0.weight": torch.zeros(64, 3, 11, 11)}, message)
    # The same number of elements in another shape does not match.
    assert_refused(small(2), {**state, "fc7.weight": state["fc7.weight"].reshape(256, 1024)}, "'fc7.weight' has shape")


def test_too_few_or_too_many_tensors_are_refused() -> None:
    state = renamed(small(1).state_dict(), "torchvision")
    few = {key: value for key, value in state.items() if not key.startswith("classifier.6")}
    assert_refused(
        small(2), few, "has 16 tensors, but there are 14 in the weights: 'fc8.weight' is only in 'torchvision'"
    )
    many = {**state, "classifier.8.weight": torch.zeros(1)}
    assert_refused(small(2), many, "'classifier.8.weight' is only in the weights")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no tensors in the weights"),
        ({"state_dict": {}}, "no tensors"),
        ({"norm1.num_batches_tracked": torch.tensor(3)}, "no tensors"),
        ({"epoch": 3}, "'epoch' is no tensor"),
        ([1, 2], "not a list"),
        (None, "not a NoneType"),
    ],
)
def test_invalid_state_dicts_are_refused(weights: object, message: str) -> None:
    assert_refused(small(2), weights, message)


def test_integer_tensors_are_refused() -> None:
    state = small(1).state_dict()
    assert_refused(
        small(2), {key: value.to(torch.int8) for key, value in state.items()}, "'conv1.weight' holds torch.int8"
    )


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["ours", "torchvision", "bare indices"])
@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "w.pth", "old.pt"])
def test_every_file_format_is_loaded(tmp_path: Path, file: str, style: str) -> None:
    state = small(1).state_dict()
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(dict(renamed(state, style)), path)  # type: ignore[arg-type]
    else:
        torch.save(renamed(state, style), path, _use_new_zipfile_serialization=file != "old.pt")
    assert_same(load_weights(small(2), path), state)
    assert_same(load_weights(small(3), str(path)), state)


def test_truncated_and_empty_files_are_refused(tmp_path: Path) -> None:
    model = small(2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for file in ("w.safetensors", "w.pt", "old.pt"):
        complete = (tmp_path / file).read_bytes()
        cut = tmp_path / f"cut-{file}"
        for length in (3, 100, len(complete) // 2, len(complete) - 1):
            cut.write_bytes(complete[:length])
            assert_refused(model, cut, "damaged, truncated")
        cut.write_bytes(b"")
        assert_refused(model, cut, "is empty")
    for junk in (b"not weights at all\n", b"\x80\x02}q", b"\x89PNG\r\n", bytes(100)):
        (tmp_path / "junk.pt").write_bytes(junk)
        assert_refused(model, tmp_path / "junk.pt", "damaged")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert_refused(small(2), tmp_path / "none.pt", "There is no file")
    assert_refused(small(2), tmp_path, "is a folder")


class Harmful:
    """Pickles as an instruction to create a file when loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    model = small(2)
    for new in (True, False):
        torch.save({"state_dict": Harmful(tmp_path / "ran")}, tmp_path / "bad.pt", _use_new_zipfile_serialization=new)
        assert_refused(model, tmp_path / "bad.pt", r"can run code .* torch\.save\(model\.state_dict\(\)")
        assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # the file does run code
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Harmful(tmp_path / "never")}, protocol=protocol))
        assert_refused(model, tmp_path / "plain.pt", "can run code")
    assert not (tmp_path / "never").exists()
    torch.save(model, tmp_path / "model.pt")
    assert_refused(model, tmp_path / "model.pt", "can run code")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="contains a list, not a state dict"):
        read_weights(tmp_path / "list.pt")


# ── torchvision ───────────────────────────────────────────────────────────────────────────────────


def test_to_torchvision_gives_torchvisions_names_and_logits() -> None:
    torch.manual_seed(0)
    ours = create_model("torchvision", num_classes=3, image_size=96, dropout=0.2).eval()
    theirs = torchvision.models.alexnet(num_classes=3)
    theirs.load_state_dict(to_torchvision(ours))
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(theirs.eval()(x), ours(x), rtol=0, atol=1e-6)
    assert list(to_torchvision(ours)) == list(theirs.state_dict())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("torchvision-lrn", {}, "name of lrn1"),
        ("paper", {"image_size": 224}, "name of pad1 is pad1 instead of conv1"),
        ("torchvision", {"in_channels": 1}, r"input of conv1 is \(1, 64, 64\) instead of \(3, 64, 64\)"),
        ("torchvision", {"norm": "batch"}, "bias of conv1 is False"),
        ("torchvision", {"width": 0.125}, r"output of conv1 is \(8, 15, 15\) instead of \(64, "),
    ],
)
def test_only_torchvisions_network_is_converted(name: str, given: dict[str, object], message: str) -> None:
    with torch.device("meta"):
        model = build(architecture(name, **{"image_size": 64, **given}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        to_torchvision(model)


def test_torchvision_weights_are_loaded_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Torchvision checks its cache first; this state dict stands in for the published one.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = Path(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url).name
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = small(1).state_dict()
    torch.save(renamed(state, "torchvision"), folder / file)
    found, categories = torchvision_weights("IMAGENET1K_V1")
    assert_same(load_weights(small(2), found), state)
    assert len(categories) == 1000
    assert categories[0] == "tench"


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the first proxies it sees; restored afterwards
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(
        UserError, match=r"could not be downloaded from https://.* check the network connection and try again"
    ):
        torchvision_weights("IMAGENET1K_V1")
    with pytest.raises(UserError, match="did you mean 'IMAGENET1K_V1'"):
        torchvision_weights("IMAGENET1K_V2")
