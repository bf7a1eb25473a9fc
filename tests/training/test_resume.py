"""What is found after a stop: damage in any file of a checkpoint, names that lead nowhere, leftovers, a twin."""

import errno
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alexnet.checkpoint import MODEL, TRAINING, WEIGHTS, load_checkpoint, read_training_state
from alexnet.errors import UserError
from alexnet.run_dir import Run
from alexnet.training.api import resume, train
from alexnet.training.checkpoints import TrainState
from alexnet.training.progress import Silent
from alexnet.training.resume import RunLock, find_latest_valid, remove_partial_files

SETTINGS = {"width": 0.0625, "batch_size": 256, "epochs": 3, "precision": "fp32", "device": "cpu", "lr": 0.05}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of three epochs, each better than the one before: its best checkpoint is its last."""
    return train("digits", out=tmp_path_factory.mktemp("runs") / "run", progress=Silent(), **SETTINGS).run


@pytest.fixture
def run(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished, tmp_path / "run"))


def say(sentences: list[str]):
    return sentences.append


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, TRAINING])
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "flipped"])
def test_damage_to_the_newest_checkpoint_is_noticed_and_the_one_before_used(run, name, how):
    newest, before, *_ = run.checkpoints()
    damage(newest / name, how)
    said = []
    start = find_latest_valid(run, say(said))
    assert start is not None
    assert start.folder == before
    assert run.named_checkpoint("last") == before
    assert len(said) == 1 + (run.named_checkpoint("best") is None)
    assert newest.name in said[0]
    assert said[0].endswith(f"Going on from {before.name} instead.")
    assert newest not in run.checkpoints()


def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_it_would_have(run, finished):
    """Its best one was the same: the epoch is trained again, and is the best again."""
    newest = run.checkpoints()[0]
    assert run.named_checkpoint("best") == newest
    damage(newest / WEIGHTS, "flipped")
    summary = resume(run.path, progress=Silent()).summary
    assert summary["best"] == Run(finished).summary()["best"]
    assert summary["test"] == Run(finished).summary()["test"]
    ours, theirs = (load_checkpoint(r.named_checkpoint("best")).model.state_dict() for r in (run, Run(finished)))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not list((run.path / "checkpoints").glob(".*"))


def test_a_damaged_best_is_replaced(run):
    newest, before, *_ = run.checkpoints()
    (run.path / "best").write_text(before.name)
    training = read_training_state(newest)
    position = TrainState.from_training(training)
    position.best = position.history[1]
    run.save_checkpoint(
        model=load_checkpoint(newest).model, classes=load_checkpoint(newest).classes,
        preprocess=load_checkpoint(newest).preprocess,
        step=position.step + 1, epoch=3, training={**training, "position": position.to_dict()}, best=False,
    )  # fmt: skip
    said = []
    assert find_latest_valid(run, say(said)).best_lost is False
    assert said == []
    damage(before / WEIGHTS, "cut")
    start = find_latest_valid(run, say(said))
    assert start.best_lost
    assert "It was the best one; epoch 3, the last one, takes its place" in said[0]
    assert start.state(training).best["epoch"] == 3
    assert run.named_checkpoint("best") == start.folder


def test_names_that_lead_nowhere_are_mended(run):
    newest = run.checkpoints()[0]
    for name, text in (("last", "nothing"), ("best", "\0\0\0")):
        (run.path / name).write_text(text)
    assert find_latest_valid(run, say([])).folder == newest
    assert run.named_checkpoint("last") == run.named_checkpoint("best") == newest


def test_a_run_without_a_whole_checkpoint_says_so(run):
    for folder in run.checkpoints():
        damage(folder / TRAINING, "empty")
    with pytest.raises(
        UserError, match=r"None of the \d checkpoints of .* is whole; delete .*to train again from the start"
    ):
        resume(run.path, progress=Silent())
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(UserError, match="which is not in"):
        resume(run.path, progress=Silent())


def test_what_was_not_whole_is_removed(run):
    (run.path / "checkpoints" / ".writing-1").mkdir()
    (run.path / "checkpoints" / ".writing-1" / WEIGHTS).write_text("half")
    (run.path / ".last.abc.writing").write_text("half")
    (run.path / "evaluation" / ".val.parquet.abc.writing").write_text("half")
    (run.path / ".gitignore").write_text("*")
    before = {p for p in run.path.rglob("*") if "writing" not in str(p)}
    remove_partial_files(run)
    assert set(run.path.rglob("*")) == before


def test_a_read_error_condemns_no_checkpoint(run, monkeypatch):
    """As a network drive gives for a while: the file may be whole."""
    newest = run.checkpoints()[0]
    for name in (MODEL, TRAINING, WEIGHTS):
        opened = io.open

        def failing(file, *rest, of=newest / name, opened=opened, **more):
            if file == of:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(of))
            return opened(file, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", failing)
            patch.setattr("io.open", failing)
            with pytest.raises(
                UserError, match=f"{newest.name}.* cannot be read .Input/output error.; it may be whole"
            ):
                resume(run.path, epochs="+1", progress=Silent())
        assert run.checkpoints()[0] == newest
    assert find_latest_valid(run, say(said := [])).folder == newest
    assert said == []


def test_what_was_set_aside_stays_until_the_run_is_complete(run):
    newest, before, *_ = run.checkpoints()
    damage(newest / WEIGHTS, "flipped")
    find_latest_valid(run, say([]))
    copy = load_checkpoint(before)
    run.save_checkpoint(
        model=copy.model, classes=copy.classes, preprocess=copy.preprocess, step=copy.step, epoch=copy.epoch,
        training=read_training_state(before), best=True,
    )  # fmt: skip
    assert (newest.with_name(f".damaged-{newest.name}") / WEIGHTS).is_file()
    resume(run.path, epochs="4", progress=Silent())
    assert not list((run.path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("closed", [".", "checkpoints"])
def test_what_cannot_be_written_is_told_before_anything_is_changed(run, monkeypatch, closed):
    """Root may write everywhere, so it is told that it may not."""
    damage(run.checkpoints()[0] / WEIGHTS, "flipped")
    before = sorted(run.path.rglob("*"))
    access, folder = os.access, run.path / closed
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    with pytest.raises(UserError, match=f"{folder.name} cannot be written by you"):
        resume(run.path, progress=Silent())
    assert sorted(run.path.rglob("*")) == before


def test_the_lock_is_one_that_nfs_has(run, monkeypatch):
    """There only a file that is open for writing can be locked."""
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def flock(handle, how):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    one, other = RunLock(run), RunLock(run)
    one.acquire(say(said := []))
    with pytest.raises(UserError, match="is being trained by another process"):
        other.acquire(say([]), timeout=0.1)
    one.release()
    other.acquire(say(said), timeout=0.1)
    other.release()
    assert said == []
    assert not list(run.path.glob(".*"))


def test_where_nothing_can_be_locked_it_says_so(run, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    RunLock(run).acquire(say(said := []))
    assert said == [f"{run.path} cannot be locked (No locks available): see to it that no other process trains it."]


def test_a_run_is_for_one_process_at_a_time(run):
    program = """if True:
        import sys, time
        from pathlib import Path
        from alexnet.run_dir import Run
        from alexnet.training.recover import Alone
        Alone(Run(Path(sys.argv[1]))).take(print)
        print("held", flush=True)
        time.sleep(60)
    """
    other = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is being trained by another process"):
            RunLock(run).acquire(say(said := []), timeout=0.2)
        assert "waiting up to" in said[0]
        other.kill()
        began = time.monotonic()
        mine = RunLock(run)
        mine.acquire(say([]), timeout=20)
        assert time.monotonic() - began < 20
        mine.release()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
