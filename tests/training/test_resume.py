"""Resuming after a kill or a crash: damaged checkpoints, wrong names, partial files, and a second process."""

import errno
import multiprocessing
import os
import shutil
import time
from dataclasses import asdict
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch

from alexnet.checkpoint import MODEL, TRAINING, WEIGHTS, load_checkpoint, read_training_state
from alexnet.errors import UserError
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import resume, train
from alexnet.training.checkpoints import TrainState, find_latest_valid

SETTINGS = {"width": 0.0625, "batch_size": 256, "epochs": 3, "precision": "fp32", "device": "cpu", "lr": 0.05}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of three epochs, each better than the one before, so its best checkpoint is its last."""
    return train("digits", out=tmp_path_factory.mktemp("runs") / "run", progress=Silent(), **SETTINGS).run


@pytest.fixture
def run(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished, tmp_path / "run"))


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
def test_previous_checkpoint_is_used_if_the_newest_is_damaged(run, name, how):
    newest, before, *_ = run.checkpoints()
    damage(newest / name, how)
    log = []
    folder, _ = find_latest_valid(run, log.append)
    assert folder == before
    assert run.named_checkpoint("last") == before
    assert len(log) == 1 + (run.named_checkpoint("best") is None)
    assert newest.name in log[0]
    assert log[0].endswith(f"Resuming from {before.name} instead.")
    assert newest not in run.checkpoints()


def test_damage_to_the_newest_checkpoint_does_not_change_the_result(run, finished):
    """The newest checkpoint was also the best one: its epoch is trained again and is the best again."""
    newest = run.checkpoints()[0]
    assert run.named_checkpoint("best") == newest
    damage(newest / WEIGHTS, "flipped")
    summary = resume(run.path, progress=Silent()).summary
    assert summary["best"] == Run(finished).summary()["best"]
    assert summary["test"] == Run(finished).summary()["test"]
    resumed, unbroken = (load_checkpoint(r.named_checkpoint("best")).model.state_dict() for r in (run, Run(finished)))
    assert all(torch.equal(resumed[key], unbroken[key]) for key in resumed)
    assert not list((run.path / "checkpoints").glob(".*"))


def test_a_damaged_best_checkpoint_is_replaced(run):
    newest, before, *_ = run.checkpoints()
    (run.path / "best").write_text(before.name)
    training = read_training_state(newest)
    state = TrainState.from_training(training)
    state.best = state.history[1]
    run.save_checkpoint(
        model=load_checkpoint(newest).model, classes=load_checkpoint(newest).classes,
        preprocess=load_checkpoint(newest).preprocess,
        step=state.step + 1, epoch=3, training={**training, "position": asdict(state)}, best=False,
    )  # fmt: skip
    log = []
    assert find_latest_valid(run, log.append)[1].best == state.best
    assert log == []
    damage(before / WEIGHTS, "cut")
    folder, found = find_latest_valid(run, log.append)
    assert "It was the best one; epoch 3, the last one, replaces it" in log[0]
    assert found.best["epoch"] == 3
    assert run.named_checkpoint("best") == folder


def test_wrong_names_in_last_and_best_are_corrected(run):
    newest = run.checkpoints()[0]
    for name, text in (("last", "nothing"), ("best", "\0\0\0")):
        (run.path / name).write_text(text)
    assert find_latest_valid(run, [].append)[0] == newest
    assert run.named_checkpoint("last") == run.named_checkpoint("best") == newest


def test_a_run_with_only_damaged_checkpoints_is_refused(run):
    for folder in run.checkpoints():
        damage(folder / TRAINING, "empty")
    with pytest.raises(
        UserError,
        match=r"All \d checkpoints of .* are damaged; delete .*to train again from the start",
    ):
        resume(run.path, progress=Silent())
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(UserError, match="which is not in"):
        resume(run.path, progress=Silent())


def test_partial_files_are_removed(run):
    (run.path / "checkpoints" / ".writing-1").mkdir()
    (run.path / "checkpoints" / ".writing-1" / WEIGHTS).write_text("half")
    (run.path / ".last.abc.writing").write_text("half")
    (run.path / "evaluation" / ".val.parquet.abc.writing").write_text("half")
    (run.path / ".gitignore").write_text("*")
    before = {p for p in run.path.rglob("*") if "writing" not in str(p)}
    run.remove_partial_files()
    assert set(run.path.rglob("*")) == before


def test_a_read_error_does_not_quarantine_a_checkpoint(run, monkeypatch):
    """Network drives have temporary read errors: the file may be intact."""
    newest = run.checkpoints()[0]
    for name in (MODEL, TRAINING, WEIGHTS):

        def failing(file, *rest, of=newest / name, opened, **more):
            if file == of:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(of))
            return opened(file, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", partial(failing, opened=open))
            patch.setattr(Path, "open", partialmethod(failing, opened=Path.open))
            with pytest.raises(
                UserError,
                match=f"{newest.name}.* cannot be read .Input/output error.; it may still be intact",
            ):
                resume(run.path, epochs="+1", progress=Silent())
        assert run.checkpoints()[0] == newest
    assert find_latest_valid(run, (log := []).append)[0] == newest
    assert log == []


def test_quarantined_checkpoints_are_kept_until_the_run_is_complete(run):
    newest, before, *_ = run.checkpoints()
    damage(newest / WEIGHTS, "flipped")
    find_latest_valid(run, [].append)
    copy = load_checkpoint(before)
    run.save_checkpoint(
        model=copy.model, classes=copy.classes, preprocess=copy.preprocess, step=copy.step, epoch=copy.epoch,
        training=read_training_state(before), best=True,
    )  # fmt: skip
    assert (newest.with_name(f".damaged-{newest.name}") / WEIGHTS).is_file()
    resume(run.path, epochs="4", progress=Silent())
    assert not list((run.path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("closed", [".", "checkpoints"])
def test_a_read_only_run_is_refused_before_anything_is_changed(run, monkeypatch, closed):
    """`os.access` is patched because root may write everywhere."""
    damage(run.checkpoints()[0] / WEIGHTS, "flipped")
    before = sorted(run.path.rglob("*"))
    access, folder = os.access, run.path / closed
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    with pytest.raises(UserError, match=f"{folder.name} is not writable; change its permissions"):
        resume(run.path, progress=Silent())
    assert sorted(run.path.rglob("*")) == before


def test_the_lock_works_on_nfs(run, monkeypatch):
    """NFS can lock only files that are open for writing."""
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def flock(handle, how):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    log = []
    with (
        run.lock(log.append),
        pytest.raises(UserError, match="is being trained by another process"),
        run.lock([].append, timeout=0.1),
    ):
        pass
    with run.lock(log.append, timeout=0.1):
        pass
    assert log == []
    assert not list(run.path.glob(".*"))


def test_a_file_system_without_locks_is_logged(run, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with run.lock((log := []).append):
        pass
    assert log == [f"{run.path} cannot be locked (No locks available): make sure that no other process is training it."]


def test_only_one_process_trains_a_run(run):
    pytest.importorskip("fcntl")
    fork = multiprocessing.get_context("fork")
    locked = fork.Event()

    def hold() -> None:
        with run.lock(print):
            locked.set()
            time.sleep(600)

    other = fork.Process(target=hold, daemon=True)
    other.start()
    try:
        assert locked.wait(60)
        with (
            pytest.raises(UserError, match="is being trained by another process"),
            run.lock((log := []).append, timeout=0.2),
        ):
            pass
        assert log == [f"Another process is training {run.path}; waiting up to 0 s."]
        other.kill()
        with run.lock([].append, timeout=60):
            pass
    finally:
        other.kill()
        other.join(60)


def test_a_fork_does_not_keep_the_lock(run):
    """Data-loading workers are forks, and may outlive a killed training by seconds."""
    fork = multiprocessing.get_context("fork")
    with run.lock(print):
        worker = fork.Process(target=time.sleep, args=(600,), daemon=True)
        worker.start()
    try:
        with run.lock((log := []).append, timeout=0):
            assert log == []
    finally:
        worker.kill()
        worker.join(60)
