"""Run folders: which checkpoints are kept, names that lead elsewhere, metrics and evaluations."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.checkpoint import WEIGHTS, load_checkpoint
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.models.model import create_model
from alexnet.run_dir import LOCK, Run, find_run


def test_a_locked_run_is_known_and_what_a_killed_process_left_is_removed(run):
    assert not run.is_locked()
    with run.lock(print):
        assert run.is_locked()
        assert run.is_locked()
        with pytest.raises(UserError, match="is being trained"):
            run.lock([].append, timeout=0).__enter__()
    assert not run.is_locked()
    (run.path / LOCK).touch()
    assert not run.is_locked()
    assert not (run.path / LOCK).exists()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create("test", tmp_path / "run", "{}")


def save(run: Run, step: int, *, best: bool = False) -> Path:
    torch.manual_seed(step)
    model = create_model("cifar", num_classes=3, width=0.1)
    return run.save_checkpoint(
        model=model,
        classes=("a", "b", "c"),
        preprocess=EvalTransform(size=32),
        step=step,
        epoch=1,
        training={"x": 1},
        best=best,
    )


def test_the_best_and_the_newest_two_checkpoints_are_kept(run):
    first = save(run, 1, best=True)
    second = save(run, 2)
    third = save(run, 3)
    (run.path / "checkpoints" / ".writing-killed").mkdir()
    fourth = save(run, 4)
    assert run.named_checkpoint("best") == first
    assert run.named_checkpoint("last") == fourth
    assert not second.exists()
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [first.name, third.name, fourth.name]
    assert run.checkpoints() == [fourth, third, first]


def test_other_folders_among_the_checkpoints_are_left_alone(run):
    save(run, 1, best=True)
    copy = run.path / "checkpoints" / "my-copy"
    shutil.copytree(run.checkpoints()[0], copy)
    (run.path / "checkpoints" / "00000001 old").mkdir()
    (run.path / "checkpoints" / ".damaged-00000009").mkdir()
    for step in range(2, 6):
        save(run, step)
    assert [path.name for path in run.checkpoints()] == ["00000005", "00000004", "00000001"]
    others = {path.name for path in (run.path / "checkpoints").iterdir() if path not in run.checkpoints()}
    assert others == {"my-copy", "00000001 old", ".damaged-00000009"}
    assert load_checkpoint(copy).step == 1


def test_a_kill_while_removing_a_checkpoint_leaves_no_half_of_it(run, monkeypatch):
    for step in (1, 2):
        save(run, step, best=True)

    def kill(path, **_):
        (path / WEIGHTS).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        save(run, 3, best=True)
    for folder in run.checkpoints():
        load_checkpoint(folder)


def test_a_failed_write_leaves_the_previous_checkpoint(run, monkeypatch):
    first = save(run, 1, best=True)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save(run, 2)
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == [first.name]
    assert run.named_checkpoint("last") == first


def test_taken_folders_are_refused(tmp_path):
    Run.create("x", tmp_path / "run", "{}")
    with pytest.raises(UserError, match="already holds a run; choose another --out, or add --resume to resume it"):
        Run.create("x", tmp_path / "run", "{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Run.check_free(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        Run.check_free(tmp_path / "full")
    Run.check_free(None)
    Run.check_free(tmp_path / "new")


def test_find_run(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        find_run("last", root=tmp_path)
    for name in ("a", "b"):
        Run.create("x", tmp_path / name, "{}")
    os.utime(tmp_path / "b" / "recipe.json", (1, 1))
    assert find_run("last", root=tmp_path).path == tmp_path / "a"
    assert find_run(tmp_path / "a").path == tmp_path / "a"
    with pytest.raises(UserError, match="There is no run"):
        find_run(tmp_path / "c")
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"it has no recipe\.json"):
        find_run(tmp_path / "c")


def test_a_pointer_cannot_lead_outside_the_run(run):
    (run.path / "last").write_text("../../etc")
    with pytest.raises(UserError, match="which is not in"):
        run.named_checkpoint("last")
    assert run.named_checkpoint("best") is None


def test_metrics_and_evaluation_round_trip(run):
    assert run.metrics() == []
    assert run.summary() == {}
    run.append_metrics({"epoch": 1, "top1": 0.5})
    run.append_metrics({"epoch": 2, "top1": 0.6})
    assert [r["epoch"] for r in run.metrics()] == [1, 2]
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    run.write_evaluation("val", ["a/1.jpg", "b/2.jpg", "ü.png", "d"], np.array([0, 1, 2, 0]), logits)
    stored = run.read_evaluation("val")
    assert stored is not None
    assert stored[0] == ["a/1.jpg", "b/2.jpg", "ü.png", "d"]
    np.testing.assert_array_equal(stored[1], [0, 1, 2, 0])
    np.testing.assert_array_equal(stored[2], logits)
    assert run.read_evaluation("test") is None
    run.metrics_jsonl.write_text("{broken")
    with pytest.raises(UserError, match="damaged"):
        run.metrics()


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = Run.create("digits", None, "{}"), Run.create("digits", None, "{}")
    assert a.path != b.path
    assert a.path.parent == Path("runs")


def test_runs_begun_in_the_same_second_get_their_own_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        barrier = threading.Barrier(8, timeout=60)

        def create(out: Path | None) -> Path | None:
            barrier.wait()
            try:
                return Run.create("digits", out, "{}").path
            except UserError:
                return None

        assert len(set(pool.map(create, [None] * 8))) == 8
        Path("mine").mkdir()
        for out in ("new", "mine"):
            created = [path for path in pool.map(create, [Path(out)] * 8) if path]
            assert created == [Path(out)]
    shutil.rmtree(tmp_path / "runs")
