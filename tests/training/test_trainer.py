"""The loop by what it leaves behind: weights after known steps, rows, checkpoints, and what a stop loses."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from alexnet import checkpoint, files, run_dir
from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.errors import TrainingFailed, UserError
from alexnet.inference.calibration import find_calibration
from alexnet.models.model import build
from alexnet.run_dir import Run
from alexnet.training.api import resume_run, train
from alexnet.training.checkpoints import TrainState
from alexnet.training.manual_schedule import ScheduleChange
from alexnet.training.progress import Silent
from alexnet.training.recipe import read_recipe, with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.signals import Interrupted
from alexnet.training.trainer import Trainer
from helpers import make_image_folder

TINY = {"width": 0.125, "batch_size": 128, "epochs": 2, "precision": "fp32", "device": "cpu", "lr": 0.1}


def tiny(**settings):
    return train("digits", **{"progress": Silent(), **TINY, **settings})


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    folder = Run(run).named_checkpoint(which)
    assert folder is not None
    return load_checkpoint(folder).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def make_loop(tmp_path: Path, **settings) -> Trainer:
    recipe = replace(named_recipe("digits"), **{**TINY, **settings})
    prepared = prepare_training(recipe, Silent())
    torch.manual_seed(0)
    return Trainer(prepared, Run.create("x", tmp_path / "run", "{}"), build(prepared.spec), Silent())


def test_a_run_learns_and_leaves_all_its_files(small_run):
    summary = json.loads((small_run / "summary.json").read_text())
    rows = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert summary["best"]["top1"] == max(r["top1"] for r in rows) > 0.3
    assert set(summary["best"]) == set(summary["final"]) == {"epoch", "top1", "top5", "val_loss"}
    assert {"epochs", "seconds", "images_per_second", "parameters"} <= set(summary)
    wanted = {"epoch", "train_loss", "train_top1", "val_loss", "top1", "top5", "lr", "images_per_second", "seconds"}
    assert wanted <= set(rows[0])
    for name in ("recipe.json", "env.json", "split.csv", "best", "last", "evaluation/val.parquet",
                 "evaluation/test.parquet"):  # fmt: skip
        assert (small_run / name).is_file(), name
    last = small_run / "checkpoints" / (small_run / "last").read_text().strip()
    assert sorted(p.name for p in last.iterdir()) == ["model.json", "model.safetensors", "training.pt"]
    assert not any(p.name.startswith(".") for p in small_run.rglob("*"))


def test_two_runs_with_one_seed_are_equal_and_with_another_differ(tmp_path):
    a = tiny(out=tmp_path / "a", limit_steps=3).run
    b = tiny(out=tmp_path / "b", limit_steps=3).run
    c = tiny(out=tmp_path / "c", limit_steps=3, seed=1).run
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(c))


def test_on_the_cpu_deterministic_is_the_same_run(tmp_path):
    plain = tiny(out=tmp_path / "a", limit_steps=2).run
    try:
        strict = tiny(out=tmp_path / "b", limit_steps=2, deterministic=True).run
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(weights(plain), weights(strict))


def test_accumulation_is_the_same_step(tmp_path):
    """Without batch norm, a batch in parts (101 does not divide by 4) is the batch at once, dropout included."""
    shared = {"norm": "none", "dropout": 0.5, "batch_size": 101, "lr": 0.01, "momentum": 0.5, "limit_steps": 13}
    whole = make_loop(tmp_path / "a", **shared)
    parts = make_loop(tmp_path / "b", accumulate=4, **shared)
    for loop in (whole, parts):
        loop.fit()
    assert len(whole.setup.train) == 13  # the last batch is a smaller one
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_is_the_one_written_out(tmp_path):
    """One step of the loop against SGD with momentum, weight decay and clipping, spelled out by hand."""
    loop = make_loop(
        tmp_path, norm="none", dropout=0.0, label_smoothing=0.1, clip_norm=0.05, schedule="constant", decay_biases=False
    )
    recipe, train_set = loop.recipe, loop.setup.train
    before = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    batch = next(train_set.batches(0))
    loop._train_batch(batch, 0)
    after = dict(loop.model.named_parameters())

    from alexnet.data.augment import augment

    twin = build(loop.setup.spec)
    twin.load_state_dict(before)
    x = augment(batch.images, batch.ids, 0, recipe.seed, train_set.device_augment, 32)
    loss = F.cross_entropy(twin(loop.setup.preprocess.normalize(x)), batch.targets, label_smoothing=0.1)
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in twin.parameters()]))
    assert norm > 0.05
    for name, p in twin.named_parameters():
        gradient = p.grad * 0.05 / norm + (recipe.weight_decay if p.ndim > 1 else 0.0) * before[name]
        step = gradient * (1 + recipe.momentum)  # the first step of Nesterov's form
        torch.testing.assert_close(after[name], before[name] - recipe.lr * step, rtol=1e-4, atol=1e-7)


def test_limit_steps_ends_like_an_epoch(tmp_path):
    result = tiny(out=tmp_path / "run", limit_steps=4)
    run = Run(result.run)
    (row,) = run.metrics()
    assert row["step"] == 4
    assert result.summary["steps"] == 4
    assert run.named_checkpoint("best") == run.named_checkpoint("last")
    assert resume_run(run).already_finished


class StopAt(Silent):
    """Sends `signum` to this process when it has seen so many looks at the loss."""

    def __init__(self, signum: int, look: int = 1) -> None:
        self.signum, self.look = signum, look

    def step(self, epoch, epochs, done, total, loss, top1):
        self.look -= 1
        if self.look == 0:
            os.kill(os.getpid(), self.signum)


HAND_MADE = {
    "optimizer": "sgd2012", "nesterov": False, "schedule": "constant", "lr": 0.02, "bias_lr_mult": 2.0,
    "lr_changes": [ScheduleChange(2, ("conv1",), lr=0.0, bias_lr=0.0), ScheduleChange(2, ("fc8",), lr=0.005)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("signum", "code", "settings"), [(signal.SIGINT, 130, {}), (signal.SIGTERM, 143, HAND_MADE)], ids=["sgd", "sgd2012"]
)
def test_a_stop_in_mid_epoch_saves_and_the_resumed_run_equals_the_unbroken_one(tmp_path, signum, code, settings):
    settings = {**TINY, "batch_size": 32, **settings}
    unbroken = train("digits", out=tmp_path / "unbroken", progress=Silent(), **settings)
    with pytest.raises(Interrupted) as stop:
        train("digits", out=tmp_path / "stopped", progress=StopAt(signum), **settings)
    assert stop.value.exit_code == code
    assert "alexnet resume" in str(stop.value)
    run = Run(tmp_path / "stopped")
    assert run.metrics() == []
    assert read_training_state(run.named_checkpoint("last"))["position"]["step"] == 21
    resume_run(run, progress=Silent())
    assert same(weights(tmp_path / "unbroken"), weights(run.path))
    keys = ("epoch", "train_loss", "train_top1", "val_loss", "top1")
    for ours, theirs in zip(run.metrics(), Run(unbroken.run).metrics(), strict=True):
        assert {k: ours[k] for k in keys} == {k: theirs[k] for k in keys}


def test_changes_added_by_hand_to_a_run_hold_from_there_on(tmp_path):
    """Also to one whose checkpoint knows two groups: the momentum goes by parameter, the rates by recipe.json."""
    run = Run(tiny(out=tmp_path / "run", epochs=1, schedule="constant", norm="none", lr=0.02).run)
    before = weights(run.path)
    recipe = replace(
        read_recipe(run.recipe_json), epochs=2, lr_changes=(ScheduleChange(2, ("conv1",), lr=0.0, bias_lr=0.0),)
    )
    momentum = read_training_state(run.named_checkpoint("last"))["optimizer"]["state"]
    run.recipe_json.write_text(recipe.to_json())
    prepared = prepare_training(recipe, Silent())
    loop = Trainer(prepared, run, build(prepared.spec), Silent())
    training = read_training_state(run.named_checkpoint("last"))
    loop.restore(TrainState.from_training(training), training)
    by_name = {name: loop.optimizer.state[p]["momentum_buffer"] for name, p in loop.model.named_parameters()}
    order = sorted(by_name, key=lambda name: name.endswith("bias"))
    assert all(torch.equal(by_name[name], momentum[i]["momentum_buffer"]) for i, name in enumerate(order))
    resume_run(run, progress=Silent())
    after = weights(run.path)
    assert {name.split(".")[0] for name in before if torch.equal(before[name], after[name])} == {"conv1"}
    assert [row["lr"] for row in run.metrics()] == [0.02, 0.02]


def test_a_stop_while_a_finished_run_is_extended(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("alexnet.training.trainer.LOG_EVERY", 5)
    run = Run(shutil.copytree(small_run, tmp_path / "copy"))
    with pytest.raises(Interrupted):
        resume_run(run, epochs="+1", progress=StopAt(signal.SIGTERM, look=1))
    result = resume_run(run, progress=Silent())
    assert not result.already_finished
    assert [r["epoch"] for r in run.metrics()] == [1, 2, 3, 4, 5]
    assert resume_run(run).already_finished


def test_a_stop_at_the_very_last_step_is_no_stop(tmp_path):
    """The step limit is reached in the same step: the run ends as it would have."""
    result = tiny(out=tmp_path / "run", limit_steps=3, progress=StopAt(signal.SIGINT))
    assert result.summary["steps"] == 3
    assert result.summary["complete"]


def test_a_crash_after_the_last_checkpoint_is_mended_by_resume(tmp_path, monkeypatch):
    """Killed between the checkpoint of the last epoch and everything that is written after it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny(out=tmp_path / "run", epochs=1)
    run = Run(tmp_path / "run")
    assert run.summary() == {}
    result = resume_run(run, progress=Silent())
    whole = tiny(out=tmp_path / "whole", epochs=1)
    assert result.summary["best"] == whole.summary["best"]
    assert result.summary["test"] == whole.summary["test"]
    assert result.summary["calibration"] == whole.summary["calibration"]
    assert len(run.metrics()) == 1
    for split in ("val", "test"):
        ours, theirs = run.read_evaluation(split), Run(whole.run).read_evaluation(split)
        assert (ours[2] == theirs[2]).all()
    assert resume_run(run).already_finished


def test_a_kill_while_a_finished_run_is_extended_hides_no_epoch(small_run, tmp_path, monkeypatch):
    """The last epoch's checkpoint is on disk, and summary.json still tells of the shorter run."""
    run = Run(shutil.copytree(small_run, tmp_path / "copy"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            resume_run(run, epochs="+1", progress=Silent())
    assert run.summary()["complete"]
    result = resume_run(run, progress=Silent())
    assert not result.already_finished
    assert result.summary["epochs"] == 5
    assert [row["epoch"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    assert resume_run(run).already_finished


def test_best_is_named_before_last(tmp_path, monkeypatch):
    """`last` holds a position that believes in the best epoch, so the file `best` must not lag behind it."""
    names = []
    write = files.write_text
    monkeypatch.setattr(run_dir, "write_text", lambda path, text: (names.append(path.name), write(path, text))[1])
    tiny(out=tmp_path / "run", limit_steps=1)
    assert [n for n in names if n in ("best", "last")] == ["best", "last"]


def test_a_picture_that_vanishes_in_mid_epoch_loses_no_step(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr("alexnet.training.setup.fits_in_memory", lambda *_: False)
    settings = {"epochs": 1, "width": 0.125, "batch_size": 4, "workers": 0, "out": tmp_path / "run"}
    chosen = {"data": image_folder, "batch_size": 4, "width": 0.125, "workers": 0}
    checked = prepare_training(with_settings(named_recipe("folder"), chosen), Silent())
    *_, last = checked.train.batches(0)
    victim = image_folder / checked.dataset.splits["train"].names[int(last.ids[0])]
    content = victim.read_bytes()

    def spoil(*_: object) -> dict:
        victim.write_bytes(content[:100])
        return {}

    monkeypatch.setattr("alexnet.training.api.environment", spoil)
    with pytest.raises(UserError, match=f"{victim.name}.*alexnet resume"):
        train(image_folder, progress=Silent(), **settings)
    run = Run(tmp_path / "run")
    assert read_training_state(run.named_checkpoint("last"))["position"]["step"] == len(checked.train) - 1
    victim.write_bytes(content)
    assert resume_run(run, progress=Silent()).summary["steps"] == len(checked.train)


def test_a_network_that_breaks_in_the_last_step_is_not_saved(tmp_path, monkeypatch):
    """The losses were finite, the last update was not."""
    update = Trainer._train_batch

    def break_it(self, *arguments):
        found = update(self, *arguments)
        with torch.no_grad():
            self.model.fc8.weight.fill_(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "_train_batch", break_it)
    with pytest.raises(TrainingFailed, match="The loss became nan"):
        tiny(out=tmp_path / "run", limit_steps=1)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_finished_run_can_be_extended(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    result = resume_run(Run(copy), epochs="+1", progress=Silent())
    assert [r["epoch"] for r in Run(copy).metrics()] == [1, 2, 3, 4, 5]
    assert result.summary["epochs"] == 5
    assert json.loads((copy / "recipe.json").read_text())["epochs"] == 5
    stored, note = find_calibration(Run(copy).named_checkpoint("best"), Run(copy))
    assert result.summary["calibration"] == stored.to_dict()
    assert note == ""


def test_a_run_that_validates_on_test_gets_no_threshold(tmp_path):
    for split in ("train", "test"):
        make_image_folder(tmp_path / "data" / split, count=2)
    recipe = replace(named_recipe("folder"), data=tmp_path / "data", validate_on="test")
    result = train(recipe, out=tmp_path / "run", progress=Silent(), **{**TINY, "limit_steps": 1})
    assert result.summary["calibration"] is None
    assert "no confidence threshold: its recipe validates on the test split" in str(result)
    best = Run(result.run).named_checkpoint("best")
    assert "calibration" not in json.loads((best / checkpoint.MODEL).read_text())


def test_a_line_of_metrics_too_many_is_mended_on_resume(tmp_path):
    """As after a crash between the line and the checkpoint, or between the checkpoint and the line."""
    run = Run(tiny(out=tmp_path / "run", limit_steps=4).run)
    (row,) = run.metrics()
    run.append_metrics({**row, "epoch": 99})
    resume_run(run, epochs="3", progress=Silent())
    assert [r["epoch"] for r in run.metrics()] == [1, 2, 3]


def test_nan_is_an_error_that_says_what_to_change(tmp_path):
    with pytest.raises(TrainingFailed, match=r"The loss became (nan|inf).*--lr"):
        tiny(out=tmp_path / "run", norm="none", lr=1e6, momentum=0.99, schedule="constant", epochs=20)


def test_a_loss_at_chance_raises_the_alarm_once(tmp_path):
    said = []

    class Listen(Silent):
        def log(self, text):
            said.append(text)

    train("digits", out=tmp_path / "run", progress=Listen(), **{**TINY, "lr": 0.0, "batch_size": 12})
    alarms = [s for s in said if "nothing is being learned" in s]
    assert len(alarms) == 1
    assert "2.303" in alarms[0]


def test_a_full_disk_says_so_and_keeps_the_finished_epoch(tmp_path, monkeypatch):
    run = Run(tiny(out=tmp_path / "run", limit_steps=2).run)
    kept = run.named_checkpoint("last")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingFailed, match="No space left on device.*alexnet resume"):
        resume_run(run, epochs="+1", progress=Silent())
    assert run.named_checkpoint("last") == kept


@pytest.mark.parametrize("settings", [
    {"mixup": 0.2, "cutmix": 1.0}, {"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": False},
    {"optimizer": "sgd2012", "nesterov": False, "precision": "fp16"},
    {"schedule": "plateau"}, {"schedule": "step"}, {"schedule": "cosine", "warmup": 0.5}, {"activation": "tanh"},
], ids=str)  # fmt: skip
def test_every_switch_trains(tmp_path, settings):
    result = tiny(out=tmp_path / "run", limit_steps=2, **settings)
    assert result.summary["steps"] == 2
    assert all(torch.isfinite(t).all() for t in weights(result.run).values())


@pytest.mark.slow
def test_compiled_training_agrees(tmp_path):
    plain = make_loop(tmp_path / "a", norm="none", dropout=0.5, limit_steps=2)
    compiled = make_loop(tmp_path / "b", norm="none", dropout=0.5, limit_steps=2, compile=True)
    plain.fit()
    compiled.fit()
    for a, b in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_training_in_a_thread_works(tmp_path):
    """As in a notebook or a server: no signal handlers there."""
    found = []
    thread = threading.Thread(target=lambda: found.append(tiny(out=tmp_path / "run", limit_steps=1)))
    thread.start()
    thread.join()
    assert found[0].summary["steps"] == 1


def test_dropout_is_a_function_of_seed_step_and_layer(tmp_path):
    """Not of what was drawn before: of torch's global generator nothing is left."""
    loop = make_loop(tmp_path, dropout=0.5, norm="none")
    batch = next(loop.setup.train.batches(0))
    drawn = []
    for name in ("drop6", "drop7"):
        loop.model.get_submodule(name).register_forward_hook(lambda module, *_: drawn.append(module.mask.clone()))
    for step in (5, 5, 6):
        torch.rand(step)
        loop.state.step = step
        loop._train_batch(batch, 0)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[4])


def test_a_run_stops_early_when_nothing_gets_better(tmp_path):
    """At a rate of 0 no epoch is better than the first."""
    result = tiny(out=tmp_path / "run", epochs=9, lr=0.0, norm="none", early_stop=2)
    assert result.summary["epochs"] == 3
    assert result.summary["complete"]
    assert resume_run(Run(result.run), progress=Silent()).already_finished


def test_a_run_that_stopped_early_is_extended_all_the_same(tmp_path):
    run = Run(tiny(out=tmp_path / "run", epochs=9, lr=0.0, norm="none", early_stop=2, limit_steps=None).run)
    said = Silent()
    said.log = (sentences := []).append
    summary = resume_run(run, epochs="+1", progress=said).summary
    assert summary["epochs"] == 4
    assert read_recipe(run.recipe_json).early_stop == 0
    assert (
        "It had stopped early, after 2 epochs without a better one; from here on it does not stop early." in sentences
    )


def test_alarms_are_said_once_and_kept(tmp_path):
    class Said(Silent):
        lines: list[str] = []  # noqa: RUF012

        def log(self, text: str) -> None:
            self.lines.append(text)

    result = tiny(out=tmp_path / "run", batch_size=12, lr=1e-12, norm="none", width=0.0625, progress=Said())
    kept = json.loads((result.run / "alarms.json").read_text())
    assert [(alarm["epoch"], alarm["kind"]) for alarm in kept] == [(1, "stuck")]
    assert [line for line in Said.lines if "nothing is being learned" in line] == [kept[0]["text"]]


def test_the_first_batch_is_drawn_and_the_time_is_accounted_for(tmp_path):
    result = tiny(out=tmp_path / "run", limit_steps=2)
    with Image.open(result.run / "augmented.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 300
    (row,) = Run(result.run).metrics()
    assert 0 <= row["waiting"] < 1
    assert row["memory"] > 1 << 27
    assert set(row["dead"]) == {"relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"}
