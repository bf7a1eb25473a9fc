"""A run that is served while it trains: before its first checkpoint, after a better one, when it stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alexnet.checkpoint import load_checkpoint
from alexnet.files import write_json
from alexnet.messages.translator import Translator
from alexnet.run_dir import Run
from alexnet.serving import registry, training
from alexnet.serving.registry import Models, open_models
from server_client import Client, running_server

OF_AN_EPOCH = ("best", "last", "checkpoints", "evaluation", "metrics.jsonl", "summary.json")
"""What training writes at the end of an epoch, in the order in which the test does."""


DEAD = (
    "62% of the channels of relu3 are zero on every image checked and no longer learn: the learning rate was too high "
    "for a while; try --lr 0.0033."
)


class Trained:
    """A run folder, locked as by a training process, whose first epoch `finish_epoch` ends."""

    def __init__(self, finished: Path, path: Path) -> None:
        self.run, self._finished = Run(Path(shutil.copytree(finished, path))), finished
        for name in OF_AN_EPOCH:
            shutil.move(path / name, path.with_name(f"later-{name}"))
        self._lock = ExitStack()
        self._lock.enter_context(self.run.lock(print))

    def finish_epoch(self) -> None:
        for name in OF_AN_EPOCH:
            shutil.move(self.run.path.with_name(f"later-{name}"), self.run.path / name)
        self.write_summary(complete=False)

    def improve(self) -> None:
        """Write a better checkpoint, whose network always answers 9."""
        best = load_checkpoint(self.run.named_checkpoint("best"))  # type: ignore[arg-type]
        state = best.model.state_dict()
        state["fc8.weight"].zero_()
        state["fc8.bias"][:] = 5 * (torch.arange(10) == 9)
        self.run.save_checkpoint(
            model=best.model, classes=best.classes, preprocess=best.preprocess, step=best.step + 5, epoch=5, best=True
        )

    def write_summary(self, **values: Any) -> None:
        write_json(self.run.path / "summary.json", {**self.run.summary(), **values})

    def unlock(self) -> None:
        self._lock.close()


@pytest.fixture
def trained(small_run: Path, tmp_path: Path) -> Iterator[Trained]:
    found = Trained(small_run, tmp_path / "digits")
    yield found
    found.unlock()


def get(server: Client, path: str) -> Any:
    response = server.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def sample(server: Client) -> bytes:
    return server.get("/v1/samples/0").content


def test_run_without_a_checkpoint_is_served_and_its_network_from_the_first_epoch_on(trained: Trained) -> None:
    models = open_models([trained.run.path])
    assert (list(models), models.names) == ([], ["digits"])
    with running_server(models) as server:
        assert get(server, "/v1/models") == {"default": None, "models": []}
        first = get(server, "/v1/training")
        assert (first["model"], first["state"], first["epochs"], first["best"]) == ("digits", "training", 4, None)
        assert (first["history"], first["alarms"], get(server, "/v1/mistakes")["mistakes"]) == ([], [], [])
        assert (first["step"], first["steps"], first["steps_per_epoch"]) == (0, None, None)
        write_json(trained.run.progress_json, {"step": 3, "steps": 20, "steps_per_epoch": 40})
        now = get(server, "/v1/training")
        assert (now["step"], now["steps"], now["steps_per_epoch"], now["time_budget"]) == (3, 20, 40, None)
        refused = server.post("/v1/predict", b"x")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "digits has no checkpoint yet" in refused.json()["error"]
        assert server.get("/v1/training?model=cat").status_code == 404

        trained.finish_epoch()
        alarm = {"epoch": 2, "kind": "dead", "text": DEAD, "withdrawn": None}
        write_json(trained.run.path / "alarms.json", [alarm, {**alarm, "kind": "stuck", "withdrawn": 3}])
        (model,) = get(server, "/v1/models")["models"]
        assert {"training", "samples"} <= set(model["looks"])
        assert server.post("/v1/predict", sample(server)).status_code == 200
        now = get(server, "/v1/training?model=digits")
        assert now["state"] == "training"
        texts = {"en": alarm["text"], "zh": Translator("zh").sentence(str(alarm["text"]))}
        assert now["alarms"] == [{"epoch": 2, "kind": "dead", "text": alarm["text"], "texts": texts}]
        assert "relu3" in texts["zh"] != texts["en"]
        rows = trained.run.metrics()
        assert [row["val_loss"] for row in now["history"]] == [row["val_loss"] for row in rows]
        assert now["best"] == trained.run.summary()["best"]["epoch"]
        assert now["step"] == rows[-1]["step"]  # progress.json is older
        trained.unlock()
        stopped = get(server, "/v1/training")
        last = trained.run.checkpoint_name("last") or ""
        assert (stopped["state"], stopped["step"], stopped["steps"]) == ("stopped", int(last), 20)
        trained.run.progress_json.unlink()
        trained.write_summary(complete=True)
        finished = get(server, "/v1/training")
        assert (finished["state"], finished["step"], finished["steps"]) == ("finished", *[rows[-1]["step"]] * 2)


def test_better_checkpoint_replaces_the_network_while_requests_go_on(trained: Trained) -> None:
    trained.finish_epoch()
    with running_server(open_models([trained.run.path])) as server:
        image = sample(server)
        before = server.predict(image).json()["predictions"][0]["labels"][0]
        trained.improve()
        after = server.predict(image).json()["predictions"][0]["labels"][0]
        assert (before["label"] != "9" or before["p"] != after["p"], after["label"]) == (True, "9")
        assert server.post("/v1/saliency", image).json()["label"] == "9"


def test_damaged_checkpoint_leaves_the_network_and_is_read_once(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.finish_epoch()
    with running_server(open_models([trained.run.path])) as server:
        image = sample(server)
        before = server.predict(image).json()
        trained.improve()
        best = trained.run.named_checkpoint("best")
        assert best is not None
        (best / "model.safetensors").write_bytes(b"cut short")
        assert server.predict(image).json() == before
        monkeypatch.setattr(registry, "load", lambda *_, **__: pytest.fail("it is loaded again"))
        assert server.predict(image).json() == before


def test_finished_run_stays_as_it_was_at_the_start(small_run: Path, tmp_path: Path) -> None:
    run = Trained(small_run, tmp_path / "digits")
    run.finish_epoch()
    run.write_summary(complete=True)
    run.unlock()
    with running_server(open_models([run.run.path])) as server:
        image = sample(server)
        before = server.predict(image).json()
        run.improve()
        assert server.predict(image).json() == before
        assert get(server, "/v1/training")["state"] == "finished"


def test_mistakes_are_the_most_confident_ones_and_read_once_an_epoch(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.finish_epoch()
    split = trained.run.summary()["split"]
    stored = trained.run.read_evaluation(split)
    assert stored is not None
    names, targets, logits = stored
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = np.flatnonzero(p.argmax(1) != targets)
    expected = sorted(wrong, key=lambda row: -p[row].max())[:12]
    loaded: list[object] = []
    load_data = training.load_run_dataset
    monkeypatch.setattr(training, "load_run_dataset", lambda *x: loaded.append(x) or load_data(*x))
    with running_server(open_models([trained.run.path])) as server:
        found = get(server, "/v1/mistakes")
        assert (found["images"], found["wrong"]) == (len(targets), len(wrong))
        assert [(m["label"], m["predicted"]) for m in found["mistakes"]] == [
            (str(targets[row]), str(p[row].argmax())) for row in expected
        ]
        assert all(m["image"].startswith("data:image/png") for m in found["mistakes"])
        assert get(server, "/v1/mistakes") == found
        trained.run.write_evaluation(split, names, targets, np.eye(10, dtype=np.float32)[targets])
        assert get(server, "/v1/mistakes")["mistakes"] == []
    assert len(loaded) == 1


def test_mistakes_without_the_dataset_have_no_images(trained: Trained) -> None:
    trained.finish_epoch()
    recipe = json.loads(trained.run.recipe_json.read_text())
    with running_server(open_models([trained.run.path])) as server:
        write_json(trained.run.recipe_json, {**recipe, "dataset": "images", "data": "/nowhere"})
        found = get(server, "/v1/mistakes")["mistakes"]
        assert {mistake["image"] for mistake in found} == {None}
        assert found[0]["label"] != found[0]["predicted"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.json", "summary.json"])
def test_damaged_training_is_404_and_predictions_continue(trained: Trained, name: str) -> None:
    trained.finish_epoch()
    with running_server(open_models([trained.run.path])) as server:
        image = sample(server)
        (trained.run.path / name).write_text("{")
        response = server.get("/v1/training")
        assert (response.status_code, name in response.json()["error"]) == (404, True)
        assert server.post("/v1/predict", image).status_code == 200


def test_model_without_a_run_has_no_training(models: Models) -> None:
    with running_server(models) as server:
        assert "training" not in get(server, "/v1/models")["models"][0]["looks"]
        for path in ("/v1/training", "/v1/mistakes"):
            assert "fruit is not a run" in server.get(path).json()["error"]


def test_training_requires_the_token(trained: Trained) -> None:
    with running_server(open_models([trained.run.path]), token="t") as server:
        assert [server.get(path).status_code for path in ("/v1/training", "/v1/mistakes")] == [401, 401]
