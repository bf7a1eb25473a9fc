"""The served models: their names, exported files, and the shared-weight copy for explanations."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.errors import UserError
from alexnet.export.export import Export
from alexnet.serving.explain import Explainer
from alexnet.serving.registry import open_models, warm_up
from server_client import encode_jpeg, running_server


def test_models_are_named_after_their_folder_and_duplicates_numbered(small_run: Path, checkpoint: Path) -> None:
    models = open_models([small_run, checkpoint, small_run])
    assert list(models) == ["small", checkpoint.name, "small-2"]
    with running_server(models) as server:
        document = server.get("/v1/models").json()
    assert document["default"] == "small"
    assert document["models"][0]["architecture"] == "cifar"
    assert ["samples" in model["looks"] for model in document["models"]] == [True, False, True]


@pytest.mark.skipif(sys.platform == "win32", reason="no such names")
def test_model_name_is_printable_everywhere(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "猫\x1b[31m\u202eb\n\u2028"
    shutil.copytree(checkpoint, folder)
    name = r"猫\x1b[31m\u202eb\n\u2028"
    with running_server(open_models([folder])) as server:
        assert server.get("/v1/models").json()["default"] == name
        assert server.predict(encode_jpeg(), model=name).status_code == 200
        for path, shown in (("/docs", name), ("/metrics", name.replace("\\", r"\\"))):
            text = server.get(path).text
            assert shown in text
            assert all(c.isprintable() or c == "\n" for c in text)


def test_shared_copy_has_the_weights_and_its_own_hooks(checkpoint: Path) -> None:
    classifier = open_models([checkpoint])[checkpoint.name]
    copied = Explainer("net", classifier).loaded
    model, shared_copy = classifier.model, copied.model
    assert model is not None
    pairs = list(zip(model.parameters(), shared_copy.parameters(), strict=True))
    assert pairs
    assert all(a is b for a, b in pairs)
    calls: list[str] = []
    for module in shared_copy.modules():
        module.register_forward_hook(lambda *_: calls.append("hooked"))
    pixels = torch.from_numpy(np.zeros((1, 3, 32, 32), np.uint8))
    classifier.probabilities(pixels)
    assert not calls
    shared_copy(copied.preprocess.normalize(pixels))
    assert calls


def test_server_without_models_is_rejected() -> None:
    with pytest.raises(UserError, match="at least one model"):
        open_models([])


@pytest.mark.slow
def test_exported_file_gives_the_predictions_of_its_run(
    checkpoint: Path, large_images: Path, exports: dict[str, Export], tmp_path: Path
) -> None:
    file = Path(shutil.copy(exports["onnx"].file, tmp_path))
    shutil.copy(f"{exports['onnx'].file}.json", tmp_path)
    models = open_models([file, checkpoint])
    warm_up(models["net"], 4)
    data = (large_images / "leaf" / "1.jpg").read_bytes()
    with running_server(models) as server:
        model = server.get("/v1/models").json()["models"][0]
        assert (model["name"], model["engine"], model["precision"], model["looks"]) == ("net", "onnx", "fp32", [])
        for query in ({}, {"ten_crop": "true"}):
            ours, theirs = (
                server.predict(data, model=name, **query).json()["predictions"][0]["labels"]
                for name in ("net", checkpoint.name)
            )
            assert [one["label"] for one in ours] == [one["label"] for one in theirs]
            assert [one["p"] for one in ours] == pytest.approx([one["p"] for one in theirs], abs=1e-4)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged or another file"):
        open_models([file])


def test_file_that_can_run_code_requires_trust(tmp_path: Path) -> None:
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(module, tmp_path / "unsigned.pt")
    with pytest.raises(UserError, match="add --trust"):
        open_models([tmp_path / "unsigned.pt"])
