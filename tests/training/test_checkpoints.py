"""Saving while training goes on: when, how many at a time, what it waits for, and what happens when it fails."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.errors import TrainingFailed
from alexnet.models.model import build
from alexnet.run_dir import Run
from alexnet.training.checkpoints import Checkpoints, wrap_write_errors
from alexnet.training.progress import Silent
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Trainer

TINY = {"width": 0.0625, "batch_size": 128, "epochs": 1, "precision": "fp32", "device": "cpu"}


class Steps(Silent):
    """What the loop had reported when, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def epoch(self, row, epochs, split):
        self.seen.append(f"epoch {row['epoch']}")


def make_loop(tmp_path: Path, report: Silent | None = None, **settings) -> Trainer:
    recipe = replace(named_recipe("digits"), **{**TINY, **settings})
    prepared = prepare_training(recipe, Silent())
    torch.manual_seed(0)
    run = Run.create("x", tmp_path / "run", recipe.to_json())
    return Trainer(prepared, run, build(prepared.spec), report or Silent())


def test_within_an_epoch_a_checkpoint_comes_after_so_many_steps(tmp_path, monkeypatch):
    loop = make_loop(tmp_path, checkpoint_every="3")
    steps = []
    save = Run.save_checkpoint

    def noted(self, **given):
        steps.append(given["step"])
        return save(self, **given)

    monkeypatch.setattr(Run, "save_checkpoint", noted)
    due = loop.checkpoints.due
    loop.checkpoints.due = lambda step: (loop.checkpoints.wait(), due(step))[1]  # as on a fast disk
    loop.fit()
    assert steps == [3, 6, 9, len(loop.setup.train)]
    assert len(loop.run.checkpoints()) == 2  # the last is the best


@pytest.mark.parametrize(("every", "due"), [("0.001s", True), ("1h", False), (None, False)])
def test_a_time_between_checkpoints(tmp_path, every, due):
    loop = make_loop(tmp_path, checkpoint_every=every)
    time.sleep(0.002)
    assert loop.checkpoints.due(1) is due


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The file holds what was copied, not what the weights have become; the next one waits for its turn."""
    loop = make_loop(tmp_path, checkpoint_every="2")
    free, running = threading.Event(), []
    save = Run.save_checkpoint

    def slow(self, **given):
        running.append(given["step"])
        assert free.wait(30)
        return save(self, **given)

    monkeypatch.setattr(Run, "save_checkpoint", slow)
    copied = {}
    step = Trainer._train_batch

    def noted(self, *arguments):
        if self.state.step == 2:
            copied.update({k: v.clone() for k, v in self.model.state_dict().items()})
        if self.state.step == 8:  # six steps later none other has begun
            assert running == [2]
            assert not self.checkpoints.due(8)
            monkeypatch.setattr(Run, "save_checkpoint", save)
            free.set()
            self.checkpoints.wait()
            (folder,) = self.run.checkpoints()
            found = load_checkpoint(folder).model.state_dict()
            assert all(torch.equal(found[k], copied[k]) for k in copied)
            assert not torch.equal(found["fc8.weight"], self.model.state_dict()["fc8.weight"])
            assert read_training_state(folder)["position"]["step"] == 2
            running.append("checked")
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_batch", noted)
    loop.fit()
    assert running == [2, "checked"]


def test_an_epoch_is_done_when_its_checkpoint_is_on_disk(tmp_path, monkeypatch):
    report = Steps()
    loop = make_loop(tmp_path, report, epochs=2)
    save = Run.save_checkpoint

    def noted(self, **given):
        assert len(self.metrics()) == given["epoch"] - 1
        folder = save(self, **given)
        report.seen.append(f"saved {given['epoch']}")
        return folder

    monkeypatch.setattr(Run, "save_checkpoint", noted)
    loop.fit()
    assert report.seen == ["saved 1", "epoch 1", "saved 2", "epoch 2"]


def test_a_failure_is_raised_at_the_next_step(tmp_path, monkeypatch):
    loop = make_loop(tmp_path, checkpoint_every="2")

    def full(self, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save_checkpoint", full)
    step = Trainer._train_batch

    def slowly(self, *arguments):
        time.sleep(0.05)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_batch", slowly)
    with pytest.raises(TrainingFailed, match="The checkpoint after step 2 could not be written to .*No space left"):
        loop.fit()
    assert loop.state.step in (3, 4)
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598"), "unexpected pos 704"),
        (SafetensorError("Error while serializing: I/O error: No space left (os error 28)"), "No space left on device"),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_put_into_the_systems_words(tmp_path, monkeypatch, error, says):
    loop = make_loop(tmp_path, limit_steps=1)

    def full(*_):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(TrainingFailed, match=says):
        loop.fit()
    assert list((loop.run.path / "checkpoints").iterdir()) == []


def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch):
    """The loss is that of the weights before the step; the step broke them, and a checkpoint is due."""
    loop = make_loop(tmp_path, checkpoint_every="2", epochs=2)
    step = Trainer._train_batch

    def breaking(self, *arguments):
        found = step(self, *arguments)
        if self.state.step == 3:
            self.checkpoints.wait()
            with torch.no_grad():
                self.model.fc8.weight[0, 0] = float("inf")
        return found

    monkeypatch.setattr(Trainer, "_train_batch", breaking)
    with pytest.raises(TrainingFailed, match=r"After step 4 fc8.weight is no longer finite: .*--lr|The loss became"):
        loop.fit()
    assert [folder.name for folder in loop.run.checkpoints()] == ["00000002"]


def test_one_that_is_due_while_another_is_written_is_copied_and_waits_its_turn(tmp_path, monkeypatch):
    """An epoch ends: training goes on after a copy. A third one waits, so that there are two copies at most."""
    loop = make_loop(tmp_path)
    free, begun, save = threading.Event(), [], Run.save_checkpoint

    def slow(self, **given):
        begun.append(given["step"])
        assert free.wait(30)
        return save(self, **given)

    monkeypatch.setattr(Run, "save_checkpoint", slow)

    def save_at(step: int) -> None:
        loop.state.step = step
        with torch.no_grad():
            loop.model.fc8.bias.fill_(step)
        loop.checkpoints.save(loop.model, loop.optimizer, loop.scaler, loop.state, best=step == 1)

    save_at(1)
    save_at(2)
    third = threading.Thread(target=save_at, args=(3,))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    assert begun == [1]
    free.set()
    third.join()
    loop.checkpoints.wait()
    assert begun == [1, 2, 3]
    found = [load_checkpoint(folder) for folder in loop.run.checkpoints()]
    assert [(one.step, one.model.fc8.bias[0].item()) for one in found] == [(3, 3.0), (2, 2.0), (1, 1.0)]


def test_after_a_failure_what_waits_is_not_written(tmp_path, monkeypatch):
    loop = make_loop(tmp_path)
    free = threading.Event()

    def full(self, **given):
        assert given["step"] == 1
        assert free.wait(30)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save_checkpoint", full)
    for step in (1, 2):
        loop.state.step = step
        loop.checkpoints.save(loop.model, loop.optimizer, loop.scaler, loop.state, best=False)
    free.set()
    with pytest.raises(TrainingFailed, match="The checkpoint after step 1 could not be written"):
        loop.checkpoints.wait()


def test_nothing_is_written_twice_at_one_place(tmp_path):
    loop = make_loop(tmp_path, limit_steps=1)
    checkpoints = Checkpoints(loop.run, loop.setup)
    for _ in range(2):
        checkpoints.save(loop.model, loop.optimizer, loop.scaler, loop.state, best=False)
    checkpoints.wait()
    assert [folder.name for folder in loop.run.checkpoints()] == ["00000000"]


def test_a_run_folder_that_vanishes_is_named(tmp_path):
    run = Run.create("x", tmp_path / "run", "{}")
    with (
        pytest.raises(TrainingFailed, match=f"{run.path} cannot be written: No such file"),
        wrap_write_errors(run.path),
    ):
        (run.path / "gone" / "x").write_text("")
    with pytest.raises(FileNotFoundError), wrap_write_errors(run.path):
        (tmp_path / "elsewhere").read_text()


def test_a_loop_keeps_as_many_as_it_is_told(tmp_path):
    loop = make_loop(tmp_path, checkpoint_every="1", keep_checkpoints=5)
    loop.fit()
    assert 2 <= len(loop.run.checkpoints()) <= 6
    assert json.loads((loop.run.path / "summary.json").read_text())["complete"]
