"""Checkpoints: the training state, when they are written, the writing thread, and its errors."""

import errno
import io
import json
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.errors import TrainingFailed, UserError
from alexnet.models.model import build
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training import checkpoints
from alexnet.training.checkpoints import Checkpoints, TrainState, wrap_write_errors
from alexnet.training.recipe import Recipe
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Trainer

TINY = {"width": 0.0625, "batch_size": 128, "epochs": 1, "precision": "fp32", "device": "cpu"}


class EventRecorder(Silent):
    """Records finished epochs, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def epoch(self, row, epochs, split):
        self.events.append(f"epoch {row['epoch']}")


def make_trainer(tmp_path: Path, progress: Silent | None = None, **settings) -> Trainer:
    recipe = named_recipe("digits").replace(**{**TINY, **settings})
    setup = prepare_training(recipe, Silent())
    torch.manual_seed(0)
    run = Run.create("x", tmp_path / "run", recipe.to_json())
    return Trainer(setup, run, build(setup.spec), progress or Silent())


# ── the training state ────────────────────────────────────────────────────────────────────────────

REST = {"optimizer": {"state": {}}, "scaler": {}}


def test_the_training_state_survives_loading_with_weights_only():
    state = TrainState(step=7, epoch=2, batch=3, seen=96, loss_sum=1.5, hits=40.0, history=[{"epoch": 1, "top1": 0.5}])
    file = io.BytesIO()
    torch.save({"position": asdict(state), **REST}, file)
    file.seek(0)
    assert TrainState.from_training(torch.load(file, weights_only=True)) == state


def test_a_new_epoch_resets_its_sums_and_nothing_else():
    state = TrainState(step=7, epoch=2, batch=3, seen=96, loss_sum=1.5, hits=40.0, seconds=2.0)
    state.end_epoch({"epoch": 3}, is_best=False)
    assert state == TrainState(step=7, epoch=3, history=[{"epoch": 3}])


@pytest.mark.parametrize(
    "training",
    [{}, {"position": {}}, {**REST, "position": {"epoch_number": 1}}, {**REST, "position": 3}],
)
def test_a_training_state_of_other_software_is_refused(training):
    with pytest.raises(UserError, match="other software"):
        TrainState.from_training(training)


# ── saving ────────────────────────────────────────────────────────────────────────────────────────


def test_checkpoint_every_a_number_of_steps(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, checkpoint_every="3")
    steps = []
    save = Run.save_checkpoint

    def record(self, **given):
        steps.append(given["step"])
        return save(self, **given)

    monkeypatch.setattr(Run, "save_checkpoint", record)
    due = trainer.checkpoints.due
    trainer.checkpoints.due = lambda step: (trainer.checkpoints.wait(), due(step))[1]  # as on a fast disk
    trainer.fit()
    assert steps == [3, 6, 9, len(trainer.setup.train)]
    assert len(trainer.run.checkpoints()) == 2  # the last is the best


@pytest.mark.parametrize(("every", "due"), [("0.001s", True), ("1h", False), (None, False)])
def test_checkpoint_every_some_time(tmp_path, every, due):
    trainer = make_trainer(tmp_path, checkpoint_every=every)
    time.sleep(0.002)
    assert trainer.checkpoints.due(1) is due


def test_training_continues_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The file holds the copy, not the later weights; no other checkpoint is due meanwhile."""
    trainer = make_trainer(tmp_path, checkpoint_every="2")
    disk_free, running = threading.Event(), []
    save = Run.save_checkpoint

    def slow(self, **given):
        running.append(given["step"])
        assert disk_free.wait(30)
        return save(self, **given)

    monkeypatch.setattr(Run, "save_checkpoint", slow)
    copied = {}
    step = Trainer.step

    def record(self, *arguments):
        if self.state.step == 2:
            copied.update({k: v.clone() for k, v in self.model.state_dict().items()})
        if self.state.step == 8:  # six steps later no other one has started
            assert running == [2]
            assert not self.checkpoints.due(8)
            monkeypatch.setattr(Run, "save_checkpoint", save)
            disk_free.set()
            self.checkpoints.wait()
            (folder,) = self.run.checkpoints()
            saved = load_checkpoint(folder).model.state_dict()
            assert all(torch.equal(saved[k], copied[k]) for k in copied)
            assert not torch.equal(saved["fc8.weight"], self.model.state_dict()["fc8.weight"])
            assert read_training_state(folder)["position"]["step"] == 2
            running.append("checked")
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", record)
    trainer.fit()
    assert running == [2, "checked"]


def test_an_epoch_is_reported_once_its_checkpoint_is_on_disk(tmp_path, monkeypatch):
    progress = EventRecorder()
    trainer = make_trainer(tmp_path, progress, epochs=2)
    save = Run.save_checkpoint

    def record(self, **given):
        assert len(self.metrics()) == given["epoch"] - 1
        folder = save(self, **given)
        progress.events.append(f"saved {given['epoch']}")
        return folder

    monkeypatch.setattr(Run, "save_checkpoint", record)
    trainer.fit()
    assert progress.events == ["saved 1", "epoch 1", "saved 2", "epoch 2"]


def test_a_write_error_is_raised_at_the_next_step(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, checkpoint_every="2")

    def full(self, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save_checkpoint", full)
    step = Trainer.step

    def wait_for_disk(self, *arguments):
        self.checkpoints.close()  # waits
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", wait_for_disk)
    with pytest.raises(TrainingFailed, match="The checkpoint after step 2 could not be written to .*No space left"):
        trainer.fit()
    assert trainer.state.step == 3
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598"),
            "unexpected pos 704",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
            "No space left on device",
        ),
    ],
)
def test_errors_of_libraries_about_a_full_disk_become_those_of_the_system(tmp_path, monkeypatch, error, message):
    trainer = make_trainer(tmp_path, limit_steps=1)

    def full(*_):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(TrainingFailed, match=message):
        trainer.fit()
    assert list((trainer.run.path / "checkpoints").iterdir()) == []


def test_weights_that_are_not_finite_are_not_written(tmp_path, monkeypatch):
    """The loss is that of the weights before the step, which makes them infinite while a checkpoint is due."""
    trainer = make_trainer(tmp_path, checkpoint_every="2", epochs=2)
    step = Trainer.step

    def set_infinite(self, *arguments):
        result = step(self, *arguments)
        if self.state.step == 3:
            self.checkpoints.wait()
            with torch.no_grad():
                self.model.fc8.weight[0, 0] = float("inf")
        return result

    monkeypatch.setattr(Trainer, "step", set_infinite)
    with pytest.raises(TrainingFailed, match=r"After step 4 fc8.weight is no longer finite: .*--lr|The loss became"):
        trainer.fit()
    assert [folder.name for folder in trainer.run.checkpoints()] == ["00000002"]


def test_a_second_checkpoint_is_queued_and_a_third_waits(tmp_path, monkeypatch):
    """There are never more than two copies in memory."""
    trainer = make_trainer(tmp_path)
    disk_free, started, save = threading.Event(), [], Run.save_checkpoint

    def slow(self, **given):
        started.append(given["step"])
        assert disk_free.wait(30)
        return save(self, **given)

    monkeypatch.setattr(Run, "save_checkpoint", slow)

    def save_at(step: int) -> None:
        trainer.state.step = step
        with torch.no_grad():
            trainer.model.fc8.bias.fill_(step)
        trainer.checkpoints.save(trainer.train_step, trainer.state, best=step == 1)

    save_at(1)
    save_at(2)
    third = threading.Thread(target=save_at, args=(3,))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    assert started == [1]
    disk_free.set()
    third.join(30)
    assert not third.is_alive()
    trainer.checkpoints.wait()
    assert started == [1, 2, 3]
    loaded = [load_checkpoint(folder) for folder in trainer.run.checkpoints()]
    assert [(c.step, c.model.fc8.bias[0].item()) for c in loaded] == [(3, 3.0), (2, 2.0), (1, 1.0)]


def test_after_a_write_error_the_queued_checkpoint_is_not_written(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    disk_free = threading.Event()

    def full(self, **given):
        assert given["step"] == 1
        assert disk_free.wait(30)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save_checkpoint", full)
    for step in (1, 2):
        trainer.state.step = step
        trainer.checkpoints.save(trainer.train_step, trainer.state, best=False)
    disk_free.set()
    with pytest.raises(TrainingFailed, match="The checkpoint after step 1 could not be written"):
        trainer.checkpoints.wait()


def test_a_step_is_saved_only_once(tmp_path):
    trainer = make_trainer(tmp_path, limit_steps=1)
    checkpoints = Checkpoints(trainer.run, trainer.setup)
    for _ in range(2):
        checkpoints.save(trainer.train_step, trainer.state, best=False)
    checkpoints.wait()
    assert [folder.name for folder in trainer.run.checkpoints()] == ["00000000"]


def test_the_writing_thread_ends(tmp_path):
    """A living one would keep OpenMP threads, which slow down training."""
    trainer = make_trainer(tmp_path, limit_steps=1)
    trainer.checkpoints.save(trainer.train_step, trainer.state, best=False)
    trainer.checkpoints.wait()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_an_error_about_a_vanished_run_folder_names_it(tmp_path):
    run = Run.create("x", tmp_path / "run", "{}")
    with (
        pytest.raises(TrainingFailed, match=f"{run.path} cannot be written: No such file"),
        wrap_write_errors(run.path),
    ):
        (run.path / "gone" / "x").write_text("")
    with pytest.raises(FileNotFoundError), wrap_write_errors(run.path):
        (tmp_path / "elsewhere").read_text()
    elsewhere = str(tmp_path / "elsewhere")
    with pytest.raises(TrainingFailed, match=f"{elsewhere} cannot be written: Read-only"), wrap_write_errors(run.path):
        raise OSError(errno.EROFS, "Read-only file system", elsewhere)
    with pytest.raises(OSError, match="Read-only"), wrap_write_errors(run.path):  # such as of shared memory
        raise OSError(errno.EROFS, "Read-only file system")


def test_keep_checkpoints_limits_the_number_of_checkpoints(tmp_path):
    trainer = make_trainer(tmp_path, checkpoint_every="1", keep_checkpoints=5)
    trainer.fit()
    assert 2 <= len(trainer.run.checkpoints()) <= 6
    assert json.loads((trainer.run.path / "summary.json").read_text())["complete"]


def test_what_the_writing_thread_needs_is_imported_before_it_starts():
    """A thread that imports pyarrow races with scikit-learn, which reads `sys.modules["pyarrow"]` for its metrics."""
    assert hasattr(checkpoints.pyarrow, "Table")


@pytest.mark.parametrize(("stop_error", "finished"), [(0.0, False), (0.2, False), (0.25, True), (0.3, True)])
def test_a_run_ends_at_its_stop_error(stop_error, finished):
    state = TrainState(epoch=2, best={"epoch": 2}, history=[{"train_top1": 0.9}, {"train_top1": 0.75}])
    assert state.finished(Recipe().replace(epochs=5, stop_error=stop_error)) is finished
