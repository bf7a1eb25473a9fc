import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alexnet.checkpoint import (
    MODEL,
    TRAINING,
    WEIGHTS,
    checkpoint_id,
    load_checkpoint,
    read_training_state,
    update_model_json,
)
from alexnet.checkpoint import PREPROCESS as PREPROCESS_FILE
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import atomic_write
from alexnet.models.model import create_model
from alexnet.run_dir import Run, environment, find_run

CLASSES = ("a", "b", "c")
PREPROCESS = EvalTransform(size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create("test", tmp_path / "run", "{}")


def save(run: Run, step: int, *, best: bool = False) -> Path:
    torch.manual_seed(step)
    model = create_model("cifar", num_classes=3, width=0.1)
    return run.save_checkpoint(
        model=model, classes=CLASSES, preprocess=PREPROCESS, step=step, epoch=1, training={"x": 1}, best=best
    )


def test_a_checkpoint_comes_back_as_it_was(run):
    torch.manual_seed(5)
    model = create_model("cifar", num_classes=3, width=0.1, norm="batch")
    folder = run.save_checkpoint(
        model=model, classes=CLASSES, preprocess=PREPROCESS, step=5, epoch=2, training=None, best=True
    )
    found = load_checkpoint(folder)
    assert (found.classes, found.preprocess, found.step, found.epoch) == (CLASSES, PREPROCESS, 5, 2)
    assert found.model.spec == model.spec
    for (name, ours), theirs in zip(model.state_dict().items(), found.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not found.model.training


def test_a_key_is_added_to_model_json_and_the_rest_stays(run):
    folder = save(run, 1, best=True)
    before = json.loads((folder / MODEL).read_text())
    who = checkpoint_id(folder)
    update_model_json(folder, "calibration", {"temperature": 1.5})
    assert json.loads((folder / MODEL).read_text()) == {**before, "calibration": {"temperature": 1.5}}
    assert checkpoint_id(folder) == who
    assert load_checkpoint(folder).classes == CLASSES


def test_the_best_and_the_newest_two_are_kept_and_the_rest_dropped(run):
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


def test_folders_that_are_not_ours_are_no_checkpoints_and_stay(run):
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


def test_a_checkpoint_that_is_being_dropped_is_none(run, monkeypatch):
    """A kill while its files are removed leaves no half of it in sight."""
    for step in (1, 2):
        save(run, step, best=True)

    def killed(path, **_):
        (path / WEIGHTS).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(run, 3, best=True)
    for folder in run.checkpoints():
        load_checkpoint(folder)


def test_a_checkpoint_holds_the_weights_that_were_copied(run):
    """Training goes on while it is written."""
    model = create_model("cifar", num_classes=3, width=0.1)
    copy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.fc8.weight.fill_(0)
    folder = run.save_checkpoint(
        model=model, classes=CLASSES, preprocess=PREPROCESS, step=1, epoch=1, training=None, best=True, weights=copy
    )
    assert torch.equal(load_checkpoint(folder).model.state_dict()["fc8.weight"], copy["fc8.weight"])


def test_a_changed_model_json_is_noticed_before_training_goes_on(run):
    folder = save(run, 1)
    described = json.loads((folder / MODEL).read_text())
    described["preprocess"]["mean"][0] = 0.15
    (folder / MODEL).write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"model\.json is damaged: it does not say what training\.pt was saved with"):
        read_training_state(folder)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_failed_checkpoint_leaves_the_one_before(run, monkeypatch):
    first = save(run, 1, best=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(run, 2)
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == [first.name]
    assert run.named_checkpoint("last") == first


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "model.json", "other software", "classes", "no json"])
def test_damage_is_noticed_and_named(run, damage):
    folder = save(run, 1, best=True)
    weights, described = folder / WEIGHTS, folder / MODEL
    values = json.loads(described.read_text())
    says = ""
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
        says = "model.safetensors is truncated or damaged"
    elif damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-50] ^= 1
        weights.write_bytes(data)
        says = "checksum"
    elif damage == "remove":
        weights.unlink()
        says = "has no model.safetensors"
    elif damage == "model.json":
        described.write_text(described.read_text()[:100])
        says = "model.json is damaged"
    elif damage == "other software":
        described.write_text(json.dumps({"architecture": "resnet"}))
        says = "written by other software"
    elif damage == "classes":
        described.write_text(json.dumps({**values, "classes": ["a"]}))
        says = "names 1 classes for a network with 3"
    elif damage == "no json":
        described.unlink()
        says = "not a checkpoint of ours"
    with pytest.raises(UserError, match=says) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def save_with_mean_image(run: Run) -> tuple[Path, torch.Tensor]:
    mean_image = torch.rand(3, 32, 32)
    folder = run.save_checkpoint(
        model=create_model("cifar", num_classes=3, width=0.1), classes=CLASSES,
        preprocess=replace(PREPROCESS, mean_image=mean_image), step=1, epoch=1, training=None, best=True,
    )  # fmt: skip
    return folder, mean_image


def test_a_mean_image_comes_back_as_it_was(run):
    folder, mean_image = save_with_mean_image(run)
    found = load_checkpoint(folder).preprocess
    assert found == PREPROCESS
    assert found.mean_image is not None
    assert torch.equal(found.mean_image, mean_image)
    assert not (save(run, 2, best=True) / PREPROCESS_FILE).exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("remove", "has no preprocess.safetensors; use another checkpoint"),
        ("truncate", "preprocess.safetensors is truncated or damaged: its checksum"),
        ("unlisted", "preprocess.safetensors is truncated or damaged: its checksum"),
        ("junk", "preprocess.safetensors holds no mean image"),
        ("other tensor", "preprocess.safetensors holds no mean image"),
        ("other size", "A mean image of 3×16×16 does not fit pictures of 3×32×32"),
    ],
)
def test_damage_to_a_mean_image_is_noticed_and_named(run, damage, says):
    folder, mean_image = save_with_mean_image(run)
    path = folder / PREPROCESS_FILE
    if damage == "remove":
        path.unlink()
    elif damage in ("truncate", "junk"):
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other tensor":
        save_file({"mean": mean_image}, path)
    elif damage == "other size":
        save_file({"mean_image": torch.zeros(3, 16, 16)}, path)
    if damage == "unlisted":
        values = json.loads((folder / MODEL).read_text())
        del values["sha256"][PREPROCESS_FILE]
        (folder / MODEL).write_text(json.dumps(values))
    elif damage not in ("remove", "truncate"):
        bless(folder, PREPROCESS_FILE)
    with pytest.raises(UserError, match=says) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_a_changed_byte_in_training_pt_is_noticed(run):
    path = save(run, 1) / TRAINING
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"training\.pt is truncated or damaged: its checksum"):
        read_training_state(path.parent)


def bless(folder: Path, name: str = TRAINING) -> None:
    """Make the checksum in model.json that of the file that is there."""
    described = json.loads((folder / MODEL).read_text())
    described["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MODEL).write_text(json.dumps(described))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/alexnet-was-here"),))


def test_a_pickle_in_training_pt_is_refused_and_not_run(run):
    folder = save(run, 1)
    Path("/tmp/alexnet-was-here").unlink(missing_ok=True)
    for write in (lambda p: torch.save({"optimizer": Bomb()}, p), lambda p: p.write_bytes(pickle.dumps(Bomb()))):
        write(folder / TRAINING)
        bless(folder)
        with pytest.raises(UserError, match="pickle that could run code"):
            read_training_state(folder)
    assert not Path("/tmp/alexnet-was-here").exists()


def test_training_pt_that_is_cut_or_missing(run):
    folder = save(run, 1)
    path = folder / TRAINING
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_training_state(folder)
    path.unlink()
    with pytest.raises(UserError, match="has no training.pt"):
        read_training_state(folder)


def test_folders_that_are_taken(tmp_path):
    Run.create("x", tmp_path / "run", "{}")
    with pytest.raises(UserError, match="already holds a run; choose another --out, or add --resume"):
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


def test_a_pointer_cannot_lead_outside(run):
    (run.path / "last").write_text("../../etc")
    with pytest.raises(UserError, match="which is not in"):
        run.named_checkpoint("last")
    assert run.named_checkpoint("best") is None


def test_metrics_and_evaluation_come_back(run):
    assert run.metrics() == []
    assert run.summary() == {}
    run.append_metrics({"epoch": 1, "top1": 0.5})
    run.append_metrics({"epoch": 2, "top1": 0.6})
    assert [r["epoch"] for r in run.metrics()] == [1, 2]
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    run.write_evaluation("val", ["a/1.jpg", "b/2.jpg", "ü.png", "d"], np.array([0, 1, 2, 0]), logits)
    found = run.read_evaluation("val")
    assert found is not None
    assert found[0] == ["a/1.jpg", "b/2.jpg", "ü.png", "d"]
    np.testing.assert_array_equal(found[1], [0, 1, 2, 0])
    np.testing.assert_array_equal(found[2], logits)
    assert run.read_evaluation("test") is None
    run.metrics_jsonl.write_text("{broken")
    with pytest.raises(UserError, match="damaged"):
        run.metrics()


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = Run.create("digits", None, "{}"), Run.create("digits", None, "{}")
    assert a.path != b.path
    assert a.path.parent == Path("runs")
    shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["/usr/bin/alexnet", "train", "a b/"], "alexnet train 'a b/'"),
        (["/lib/alexnet/__main__.py", "train"], "python -m alexnet train"),
        (["notebook.py", "train"], None),
    ],
)
def test_environment_keeps_the_command(monkeypatch, typed, kept):
    monkeypatch.setattr("sys.argv", typed)
    assert environment(torch.device("cpu"), 0)["command"] == kept


def test_environment_names_versions():
    found = environment(torch.device("cpu"), 3)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["seed"] == 3
    json.dumps(found)
