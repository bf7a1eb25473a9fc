"""The trainer: weights after known steps, metrics rows, checkpoints, and stopping and resuming without loss."""

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from alexnet import checkpoint, files, run_dir
from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.errors import TrainingFailed, UserError
from alexnet.models.model import build
from alexnet.progress import Position, Silent
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import find_calibration
from alexnet.training.api import resume, train
from alexnet.training.checkpoints import TrainState
from alexnet.training.recipe import read_recipe, with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.settings import ScheduleChange
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Interrupted, Trainer
from helpers import LogRecorder, make_image_folder

TINY = {
    "width": 0.125,
    "batch_size": 128,
    "epochs": 2,
    "precision": "fp32",
    "device": "cpu",
    "lr": 0.1,
}


def train_tiny(**settings):
    return train("digits", **{"progress": Silent(), **TINY, **settings})


def read_weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    folder = Run(run).named_checkpoint(which)
    assert folder is not None
    return load_checkpoint(folder).model.state_dict()


def equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def make_trainer(tmp_path: Path, **settings) -> Trainer:
    recipe = named_recipe("digits").replace(**{**TINY, **settings})
    setup = prepare_training(recipe, Silent())
    torch.manual_seed(0)
    return Trainer(setup, Run.create("x", tmp_path / "run", "{}"), build(setup.spec), Silent())


def test_a_run_learns_and_leaves_all_its_files(small_run):
    summary = json.loads((small_run / "summary.json").read_text())
    rows = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert summary["best"]["top1"] == max(r["top1"] for r in rows) > 0.3
    assert set(summary["best"]) == set(summary["final"]) == {"epoch", "top1", "top5", "val_loss"}
    assert {"epochs", "seconds", "parameters"} <= set(summary)
    assert summary["images_per_second"] == pytest.approx(len(rows) / sum(1 / r["images_per_second"] for r in rows))
    assert (sum(summary["class_images"]), len(summary["class_images"])) == (1259, 10)
    keys = {
        "epoch",
        "train_loss",
        "train_top1",
        "val_loss",
        "top1",
        "top5",
        "lr",
        "images_per_second",
        "seconds",
    }
    assert keys <= set(rows[0])
    for name in ("recipe.json", "env.json", "split.csv", "best", "last", "evaluation/val.parquet",
                 "evaluation/test.parquet"):  # fmt: skip
        assert (small_run / name).is_file(), name
    last = small_run / "checkpoints" / (small_run / "last").read_text().strip()
    assert sorted(p.name for p in last.iterdir()) == [
        "model.json",
        "model.safetensors",
        "training.pt",
    ]
    assert not any(p.name.startswith(".") for p in small_run.rglob("*"))


def test_runs_with_the_same_seed_are_equal_and_with_another_differ(tmp_path):
    a = train_tiny(out=tmp_path / "a", limit_steps=3).run
    b = train_tiny(out=tmp_path / "b", limit_steps=3).run
    c = train_tiny(out=tmp_path / "c", limit_steps=3, seed=1).run
    assert equal_weights(read_weights(a), read_weights(b))
    assert not equal_weights(read_weights(a), read_weights(c))


def test_deterministic_changes_nothing_on_the_cpu(tmp_path):
    plain = train_tiny(out=tmp_path / "a", limit_steps=2).run
    try:
        strict = train_tiny(out=tmp_path / "b", limit_steps=2, deterministic=True).run
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal_weights(read_weights(plain), read_weights(strict))


@pytest.mark.slow
def test_accumulation_takes_the_same_step(tmp_path):
    """Without batch norm, in four micro-batches (101 does not divide by 4) and with dropout."""
    shared = {
        "norm": "none",
        "dropout": 0.5,
        "batch_size": 101,
        "lr": 0.01,
        "momentum": 0.5,
        "limit_steps": 13,
    }
    plain = make_trainer(tmp_path / "a", **shared)
    accumulated = make_trainer(tmp_path / "b", accumulate=4, **shared)
    for trainer in (plain, accumulated):
        trainer.fit()
    assert len(plain.setup.train) == 13  # the last batch is smaller
    for a, b in zip(plain.model.parameters(), accumulated.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_equals_sgd_written_by_hand(tmp_path):
    """SGD with Nesterov momentum, weight decay, label smoothing and clipping."""
    trainer = make_trainer(
        tmp_path,
        norm="none",
        dropout=0.0,
        label_smoothing=0.1,
        clip_norm=0.05,
        schedule="constant",
        decay_biases=False,
    )
    recipe, train_set = trainer.recipe, trainer.setup.train
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    batch = next(train_set.batches(0))
    trainer.step(batch)
    after = dict(trainer.model.named_parameters())

    from alexnet.data.augment import augment

    reference = build(trainer.setup.spec)
    reference.load_state_dict(before)
    x = augment(batch.images, batch.ids, 0, recipe.run.seed, train_set.device_augment, 32)
    loss = F.cross_entropy(reference(trainer.setup.preprocess.normalize(x)), batch.targets, label_smoothing=0.1)
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in reference.parameters()]))
    assert norm > 0.05
    for name, p in reference.named_parameters():
        gradient = p.grad * 0.05 / norm + (recipe.optimization.weight_decay if p.ndim > 1 else 0.0) * before[name]
        step = gradient * (1 + recipe.optimization.momentum)  # the first step of Nesterov's form
        torch.testing.assert_close(after[name], before[name] - recipe.optimization.lr * step, rtol=1e-4, atol=1e-7)


def test_limit_steps_ends_the_run_like_an_epoch(tmp_path):
    result = train_tiny(out=tmp_path / "run", limit_steps=4)
    run = Run(result.run)
    (row,) = run.metrics()
    assert row["step"] == 4
    assert result.summary["steps"] == 4
    assert run.named_checkpoint("best") == run.named_checkpoint("last")
    assert resume(run.path).already_finished


class Positions(Silent):
    """Keeps where training was at each report, and what the line of the last epoch says is left."""

    def __init__(self) -> None:
        self.positions = []

    def step(self, position, loss, top1):
        self.positions.append(position)

    def epoch(self, row, epochs, split):
        self.epochs_left = row["epochs_left"]


def test_progress_counts_the_planned_part_of_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("alexnet.training.trainer.PROGRESS_S", 0.0)
    written = []

    def record(path, value, flush=True):
        if path.name == "progress.json":
            written.append(value)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")  # the training goes on without it
        files.write_json(path, value, flush)

    monkeypatch.setattr("alexnet.training.trainer.write_json", record)
    shown = Positions()
    result = train_tiny(out=tmp_path / "run", epochs=2, limit_steps=25, batch_size=64, progress=shown)
    size = result.summary["steps_per_epoch"]
    assert size < 25 < 2 * size
    assert shown.positions[-1] == Position(
        2, 2, 64 * (25 - size), 64 * (25 - size), *[shown.positions[-1].run_total] * 2
    )
    assert {position.total for position in shown.positions if position.epoch == 1} == {
        sum(result.summary["class_images"])
    }
    assert shown.epochs_left == 0
    assert written[-1] == {"step": 25, "steps": 25, "steps_per_epoch": size}
    assert not Run(result.run).progress_json.exists()


class StopAt(Silent):
    """Sends `signum` to this process at the n-th report of the loss."""

    def __init__(self, signum: int, report: int = 1) -> None:
        self.signum, self.reports_left = signum, report

    def step(self, position, loss, top1):
        self.reports_left -= 1
        if self.reports_left == 0:
            os.kill(os.getpid(), self.signum)


MANUAL_SCHEDULE = {
    "optimizer": "sgd2012", "nesterov": False, "schedule": "constant", "lr": 0.02, "bias_lr_mult": 2.0,
    "lr_changes": [ScheduleChange(2, ("conv1",), lr=0.0, bias_lr=0.0), ScheduleChange(2, ("fc8",), lr=0.005)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("signum", "code", "settings"),
    [
        (signal.SIGINT, 130, {}),
        (signal.SIGINT, 130, {"optimizer": "muon", "flip": True, "alternate_flip": True}),
        pytest.param(signal.SIGTERM, 143, MANUAL_SCHEDULE, marks=pytest.mark.slow),
    ],
    ids=["sgd", "muon", "sgd2012"],
)
def test_a_run_stopped_in_mid_epoch_and_resumed_equals_an_uninterrupted_one(tmp_path, signum, code, settings):
    settings = {**TINY, "width": 0.0625, "batch_size": 32, **settings}
    uninterrupted = train("digits", out=tmp_path / "uninterrupted", progress=Silent(), **settings)
    with pytest.raises(Interrupted) as stop:
        train("digits", out=tmp_path / "stopped", progress=StopAt(signum), **settings)
    assert stop.value.exit_code == code
    assert str(stop.value) == f"Checkpoint saved at step 21. Resume with: alexnet resume {tmp_path / 'stopped'}"
    run = Run(tmp_path / "stopped")
    assert run.metrics() == []
    assert read_training_state(run.named_checkpoint("last"))["position"]["step"] == 21
    resume(run.path, progress=Silent())
    assert equal_weights(read_weights(tmp_path / "uninterrupted"), read_weights(run.path))
    keys = ("epoch", "train_loss", "train_top1", "val_loss", "top1")
    for row, expected in zip(run.metrics(), Run(uninterrupted.run).metrics(), strict=True):
        assert {k: row[k] for k in keys} == {k: expected[k] for k in keys}


def test_lr_changes_added_to_a_finished_run_apply_when_resumed(tmp_path):
    """Momentum is restored by parameter although the groups differ; the rates come from recipe.json."""
    run = Run(train_tiny(out=tmp_path / "run", epochs=1, schedule="constant", norm="none", lr=0.02).run)
    before = read_weights(run.path)
    recipe = read_recipe(run.recipe_json).replace(
        epochs=2,
        lr_changes=(ScheduleChange(2, ("conv1",), lr=0.0, bias_lr=0.0),),
    )
    momentum = read_training_state(run.named_checkpoint("last"))["optimizer"]["state"]
    run.recipe_json.write_text(recipe.to_json())
    setup = prepare_training(recipe, Silent())
    trainer = Trainer(setup, run, build(setup.spec), Silent())
    training = read_training_state(run.named_checkpoint("last"))
    trainer.restore(TrainState.from_training(training), training)
    by_name = {name: trainer.optimizer.state[p]["momentum_buffer"] for name, p in trainer.model.named_parameters()}
    order = sorted(by_name, key=lambda name: name.endswith("bias"))
    assert all(torch.equal(by_name[name], momentum[i]["momentum_buffer"]) for i, name in enumerate(order))
    resume(run.path, progress=Silent())
    after = read_weights(run.path)
    assert {name.split(".")[0] for name in before if torch.equal(before[name], after[name])} == {"conv1"}
    assert [row["lr"] for row in run.metrics()] == [0.02, 0.02]


@pytest.mark.slow
def test_a_stop_while_extending_a_finished_run(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("alexnet.training.trainer.LOG_EVERY", 5)
    run = Run(shutil.copytree(small_run, tmp_path / "copy"))
    with pytest.raises(Interrupted):
        resume(run.path, epochs="+1", progress=StopAt(signal.SIGTERM))
    result = resume(run.path, progress=Silent())
    assert not result.already_finished
    assert [r["epoch"] for r in run.metrics()] == [1, 2, 3, 4, 5]
    assert resume(run.path).already_finished


def test_a_stop_at_the_last_step_is_ignored(tmp_path):
    """The step limit is reached in the same step, so the run is complete."""
    result = train_tiny(out=tmp_path / "run", limit_steps=3, progress=StopAt(signal.SIGINT))
    assert result.summary["steps"] == 3
    assert result.summary["complete"]


@pytest.mark.slow
def test_resume_completes_a_run_that_crashed_after_its_last_checkpoint(tmp_path, monkeypatch):
    """Killed between the checkpoint of the last epoch and everything written after it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(out=tmp_path / "run", epochs=1)
    run = Run(tmp_path / "run")
    assert run.summary() == {}
    result = resume(run.path, progress=Silent())
    complete = train_tiny(out=tmp_path / "complete", epochs=1)
    assert result.summary["best"] == complete.summary["best"]
    assert result.summary["test"] == complete.summary["test"]
    assert result.summary["calibration"] == complete.summary["calibration"]
    assert len(run.metrics()) == 1
    for split in ("val", "test"):
        assert (run.read_evaluation(split)[2] == Run(complete.run).read_evaluation(split)[2]).all()
    assert resume(run.path).already_finished


def test_a_kill_while_extending_a_finished_run_loses_no_epoch(small_run, tmp_path, monkeypatch):
    """The new epoch's checkpoint is on disk while summary.json still describes the shorter run."""
    run = Run(shutil.copytree(small_run, tmp_path / "copy"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            resume(run.path, epochs="+1", progress=Silent())
    assert run.summary()["complete"]
    result = resume(run.path, progress=Silent())
    assert not result.already_finished
    assert result.summary["epochs"] == 5
    assert [row["epoch"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    assert resume(run.path).already_finished


def test_best_is_written_before_last(tmp_path, monkeypatch):
    """The state in `last` refers to the best epoch, so the file `best` must not be older."""
    names = []
    write = files.write_text
    monkeypatch.setattr(run_dir, "write_text", lambda path, text: (names.append(path.name), write(path, text))[1])
    train_tiny(out=tmp_path / "run", limit_steps=1)
    assert [n for n in names if n in ("best", "last")] == ["best", "last"]


def test_an_image_that_becomes_unreadable_in_mid_epoch_loses_no_step(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr("alexnet.training.setup.fits_in_memory", lambda *_: False)
    settings = {"epochs": 1, "width": 0.125, "batch_size": 4, "workers": 0, "out": tmp_path / "run"}
    chosen = {"data": image_folder, "batch_size": 4, "width": 0.125, "workers": 0}
    setup = prepare_training(with_settings(named_recipe("folder"), chosen), Silent())
    *_, last = setup.train.batches(0)
    victim = image_folder / setup.dataset.splits["train"].names[int(last.ids[0])]
    content = victim.read_bytes()

    def truncate(*_: object) -> dict:
        victim.write_bytes(content[:100])
        return {}

    monkeypatch.setattr("alexnet.training.api.environment", truncate)
    with pytest.raises(UserError, match=f"{victim.name}.*Then resume with: alexnet resume"):
        train(image_folder, progress=Silent(), **settings)
    run = Run(tmp_path / "run")
    assert read_training_state(run.named_checkpoint("last"))["position"]["step"] == len(setup.train) - 1
    victim.write_bytes(content)
    assert resume(run.path, progress=Silent()).summary["steps"] == len(setup.train)


def test_weights_that_become_nan_in_the_last_step_are_not_saved(tmp_path, monkeypatch):
    """All training losses were finite."""
    update = Trainer.step

    def set_nan(self, *arguments):
        result = update(self, *arguments)
        with torch.no_grad():
            self.model.fc8.weight.fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "step", set_nan)
    with pytest.raises(TrainingFailed, match="The loss became nan"):
        train_tiny(out=tmp_path / "run", limit_steps=1)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_finished_run_can_be_extended(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    result = resume(copy, epochs="+1", progress=Silent())
    assert [r["epoch"] for r in Run(copy).metrics()] == [1, 2, 3, 4, 5]
    assert result.summary["epochs"] == 5
    assert json.loads((copy / "recipe.json").read_text())["epochs"] == 5
    stored, note = find_calibration(Run(copy).named_checkpoint("best"), Run(copy))
    assert result.summary["calibration"] == stored.to_dict()
    assert note == ""


def test_a_run_that_validates_on_test_is_not_calibrated(tmp_path):
    for split in ("train", "test"):
        make_image_folder(tmp_path / "data" / split, count=2)
    recipe = named_recipe("folder").replace(data=tmp_path / "data", validate_on="test")
    result = train(recipe, out=tmp_path / "run", progress=Silent(), **{**TINY, "limit_steps": 1})
    assert result.summary["calibration"] is None
    assert "no confidence threshold: its recipe validates on the test split" in str(result)
    best = Run(result.run).named_checkpoint("best")
    assert "calibration" not in json.loads((best / checkpoint.MODEL).read_text())


def test_resume_repairs_a_surplus_line_of_metrics(tmp_path):
    """As after a crash between checkpoint and line."""
    run = Run(train_tiny(out=tmp_path / "run", limit_steps=4).run)
    (row,) = run.metrics()
    run.append_metrics({**row, "epoch": 99})
    resume(run.path, epochs="3", progress=Silent())
    assert [r["epoch"] for r in run.metrics()] == [1, 2, 3]


def test_a_nan_loss_ends_training_with_advice(tmp_path):
    with pytest.raises(TrainingFailed, match=r"The loss became (nan|inf).*--lr"):
        train_tiny(out=tmp_path / "run", norm="none", lr=1e6, momentum=0.99, schedule="constant", epochs=20)


@pytest.mark.slow
def test_an_alarm_is_shown_once_and_kept(tmp_path):
    recorder = LogRecorder()
    settings = {"batch_size": 12, "lr": 1e-12, "norm": "none", "width": 0.0625}
    result = train_tiny(out=tmp_path / "run", progress=recorder, **settings)
    kept = json.loads((result.run / "alarms.json").read_text())
    assert [(alarm["epoch"], alarm["kind"]) for alarm in kept] == [(1, "stuck")]
    assert [text for text in recorder.lines if "nothing is being learned" in text] == [kept[0]["text"]]
    assert "2.303" in kept[0]["text"]


def test_a_full_disk_ends_training_with_a_message_and_keeps_the_finished_epoch(tmp_path, monkeypatch):
    run = Run(train_tiny(out=tmp_path / "run", limit_steps=2).run)
    kept = run.named_checkpoint("last")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingFailed, match="No space left on device.*alexnet resume"):
        resume(run.path, epochs="+1", progress=Silent())
    assert run.named_checkpoint("last") == kept


@pytest.mark.parametrize("settings", [
    {"mixup": 0.2, "cutmix": 1.0}, {"precision": "bf16"}, {"channels_last": False},
    pytest.param({"precision": "fp16"}, marks=pytest.mark.slow),  # slow on a CPU
    pytest.param({"optimizer": "sgd2012", "nesterov": False, "precision": "fp16"}, marks=pytest.mark.slow),
    {"schedule": "plateau"}, {"schedule": "step"}, {"schedule": "cosine", "warmup": 0.5}, {"activation": "tanh"},
    {"optimizer": "muon", "precision": "bf16"},
], ids=str)  # fmt: skip
def test_every_option_trains(tmp_path, settings):
    result = train_tiny(out=tmp_path / "run", **{"limit_steps": 2, "width": 0.0625, **settings})
    assert result.summary["steps"] == 2
    assert all(torch.isfinite(t).all() for t in read_weights(result.run).values())


@pytest.mark.slow
def test_compiled_training_agrees_with_eager(tmp_path):
    eager = make_trainer(tmp_path / "a", norm="none", dropout=0.5, limit_steps=2)
    compiled = make_trainer(tmp_path / "b", norm="none", dropout=0.5, limit_steps=2, compile=True)
    eager.fit()
    compiled.fit()
    for a, b in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_training_in_a_thread_works(tmp_path):
    """As in a notebook or a server, where no signal handlers can be set."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train_tiny(out=tmp_path / "run", limit_steps=1)))
    thread.start()
    thread.join(60)
    assert results[0].summary["steps"] == 1


def test_dropout_masks_depend_on_seed_step_and_layer_only(tmp_path):
    """Not on the state of torch's global generator."""
    trainer = make_trainer(tmp_path, dropout=0.5, norm="none")
    batch = next(trainer.setup.train.batches(0))
    masks = []
    for name in ("drop6", "drop7"):
        trainer.model.get_submodule(name).register_forward_hook(lambda module, *_: masks.append(module.mask.clone()))
    for step in (5, 5, 6):
        torch.rand(step)
        trainer.state.step = step
        trainer.step(batch)
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[4])


def test_early_stopping_and_extending_such_a_run(tmp_path):
    """At a learning rate of 0 no epoch is better than the first."""
    result = train_tiny(out=tmp_path / "run", epochs=9, lr=0.0, norm="none", early_stop=2)
    run = Run(result.run)
    assert result.summary["epochs"] == 3
    assert result.summary["complete"]
    assert resume(run.path, progress=Silent()).already_finished
    progress = Silent()
    progress.log = (messages := []).append
    assert resume(run.path, epochs="+1", progress=progress).summary["epochs"] == 4
    assert read_recipe(run.recipe_json).schedule.early_stop == 0
    message = "The run had stopped early, after 2 epochs without improvement; early stopping is off from here on."
    assert message in messages


@pytest.mark.slow
def test_the_plateau_schedule_ends_a_run_after_its_last_drop(tmp_path):
    result = train_tiny(
        out=tmp_path / "run", epochs=9, lr=0.0, norm="none", schedule="plateau", patience=0, max_drops=1
    )
    assert (result.summary["epochs"], result.summary["complete"]) == (3, True)  # a drop after 2, the end after 3
    run = Run(result.run)
    assert resume(run.path, progress=Silent()).already_finished
    assert resume(run.path, epochs="+1", progress=Silent()).summary["epochs"] == 4
    assert read_recipe(run.recipe_json).schedule.max_drops is None


def test_augmented_images_are_saved_and_resources_recorded(tmp_path):
    result = train_tiny(out=tmp_path / "run", limit_steps=2)
    with Image.open(result.run / "augmented.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 300
    (row,) = Run(result.run).metrics()
    assert 0 <= row["waiting"] < 1
    assert row["memory"] > 1 << 27
    assert set(row["dead"]) == {"relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"}
