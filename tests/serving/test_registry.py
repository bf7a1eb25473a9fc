"""The networks of a server: their names, and that looking inside one leaves the answers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.errors import UserError
from alexnet.export.export import Exporter
from alexnet.serving.registry import ModelRegistry, open_models, warm_up
from asking import asking


def test_networks_are_called_by_their_folder_and_a_second_one_gets_a_number(small_run: Path, checkpoint: Path) -> None:
    models = open_models([small_run, checkpoint, small_run])
    assert list(models) == ["small", checkpoint.name, "small-2"]
    assert models.default == "small"
    assert models["small"].architecture == "cifar"
    assert models["small"].run is not None
    assert models[checkpoint.name].run is None


def test_the_network_for_looking_shares_weights_and_not_hooks(checkpoint: Path) -> None:
    served = open_models([checkpoint])[checkpoint.name]
    assert served.opened is not None
    answering, looking = served.classifier.model, served.opened.model
    pairs = list(zip(answering.parameters(), looking.parameters(), strict=True))
    assert pairs
    assert all(a is b for a, b in pairs)
    seen: list[str] = []
    for module in looking.modules():
        module.register_forward_hook(lambda *_: seen.append("hooked"))
    pixels = torch.from_numpy(np.zeros((1, 3, 32, 32), np.uint8))
    served.classifier.probabilities(pixels)
    assert not seen
    looking(served.opened.preprocess.normalize(pixels))
    assert seen


def test_a_server_without_networks_is_refused() -> None:
    with pytest.raises(UserError, match="at least one network"):
        ModelRegistry([])


def test_an_exported_file_is_served_like_a_run(checkpoint: Path, large_images: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    with Exporter(checkpoint, images=large_images) as exporter:
        exporter.export("onnx", file)
    models = open_models([file, checkpoint])
    warm_up(models["net"], 4)
    data = (large_images / "leaf" / "1.jpg").read_bytes()
    with asking(models) as server:
        told = server.get("/v1/models").json()["models"][0]
        assert (told["name"], told["engine"], told["precision"], told["looks"]) == ("net", "onnx", "fp32", [])
        for more in ({}, {"ten_crop": "true"}):
            ours, theirs = (
                server.predict(data, model=name, **more).json()["predictions"][0]["labels"]
                for name in ("net", checkpoint.name)
            )
            assert [one["label"] for one in ours] == [one["label"] for one in theirs]
            assert [one["p"] for one in ours] == pytest.approx([one["p"] for one in theirs], abs=1e-4)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged or another file"):
        open_models([file])


def test_a_file_that_could_run_code_is_not_opened_without_trust(tmp_path: Path) -> None:
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(module, tmp_path / "stranger.pt")
    with pytest.raises(UserError, match="add --trust"):
        open_models([tmp_path / "stranger.pt"])
