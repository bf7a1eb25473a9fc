"""Training and resuming from Python: what is recorded, what may change, what is refused."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alexnet
from alexnet.checkpoint import load_checkpoint
from alexnet.data.quality.check import check_dataset
from alexnet.data.shards.pack import pack_dataset
from alexnet.errors import UserError
from alexnet.progress import Silent
from alexnet.report.report import write_report
from alexnet.run_dir import Run
from alexnet.training.api import TrainingResult, resume, train
from alexnet.training.recipe import with_settings
from alexnet.training.recipes import named_recipe
from helpers import LogRecorder, make_image, make_image_folder

QUICK = {"epochs": 1, "width": 0.125, "batch_size": 8}
DIGITS = {**QUICK, "batch_size": 256}


def test_training_on_an_image_folder(tmp_path, image_folder):
    result = train(image_folder, out=tmp_path / "run", progress=Silent(), **{**QUICK, "epochs": 15})
    run = Run(result.run)
    rows = (run.path / "split.csv").read_text().splitlines()
    assert rows[0] == "name,split"
    assert len(rows) == 25
    recipe = json.loads(run.recipe_json.read_text())
    assert (recipe["arch"], recipe["image_size"]) == ("cifar", 32)
    assert Path(recipe["data"]).is_absolute()
    model = json.loads((run.named_checkpoint("best") / "model.json").read_text())
    assert model["classes"] == ["apple", "leaf", "sky"]
    assert result.summary["best"]["top1"] == 1.0  # three plain colors


def test_a_recipe_json_reproduces_the_run(tmp_path, image_folder):
    first = train(image_folder, out=tmp_path / "a", progress=Silent(), **QUICK)
    again = train(tmp_path / "a" / "recipe.json", out=tmp_path / "b", progress=Silent())
    assert again.summary["best"]["val_loss"] == first.summary["best"]["val_loss"]


def test_validation_folders_are_matched_by_name(tmp_path):
    make_image_folder(tmp_path / "data" / "train", ("apple", "leaf", "sky"), 4)
    make_image(tmp_path / "data" / "Valid" / "sky" / "x.png", 2, 7)
    make_image(tmp_path / "data" / "Valid" / "leaf" / "x.png", 1, 8)
    result = train("folder", data=tmp_path / "data", out=tmp_path / "run", progress=Silent(), **QUICK)
    stored = Run(result.run).read_evaluation("val")
    assert stored is not None
    assert stored[0] == ["Valid/leaf/x.png", "Valid/sky/x.png"]
    assert stored[1].tolist() == [1, 2]
    assert not Run(result.run).split_csv.exists()


def test_skip_bad_lists_the_skipped_files(tmp_path, image_folder):
    (image_folder / "sky" / "broken, really.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match="broken, really.jpg"):
        train(image_folder, out=tmp_path / "run", progress=Silent(), **QUICK)
    assert not (tmp_path / "run").exists()
    train(image_folder, out=tmp_path / "run", progress=Silent(), skip_bad=True, **QUICK)
    header, line = (tmp_path / "run" / "bad_files.csv").read_text().splitlines()
    assert header == "path,reason"
    assert line.startswith('"sky/broken, really.jpg",')


def test_a_run_killed_before_bad_files_are_listed_resumes(tmp_path, image_folder, monkeypatch):
    (image_folder / "sky" / "broken.jpg").write_bytes(b"<html>")

    def kill(_: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "remove_partial_files", kill)  # the first call once recipe.json exists
        with pytest.raises(KeyboardInterrupt):
            train(image_folder, out=tmp_path / "run", progress=Silent(), skip_bad=True, **QUICK)
    assert (tmp_path / "run" / "recipe.json").is_file()
    assert not (tmp_path / "run" / "bad_files.csv").exists()
    assert resume(tmp_path / "run", progress=Silent()).summary["epochs"] == 1
    assert "sky/broken.jpg" in (tmp_path / "run" / "bad_files.csv").read_text()


def test_training_from_disk_equals_training_from_memory(tmp_path, image_folder, monkeypatch):
    """Small data is decoded once, large data by workers in each epoch."""
    settings = {**QUICK, "progress": Silent(), "norm": "none"}
    recipe = {"crop": "none", "flip": True, "jitter": [0, 0, 0], **settings}
    memory = train(image_folder, out=tmp_path / "memory", **recipe)
    monkeypatch.setattr("alexnet.training.setup.fits_in_memory", lambda *_: False)
    for workers in (0, 2):
        disk = train(image_folder, out=tmp_path / f"disk{workers}", workers=workers, **recipe)
        assert disk.summary["best"]["val_loss"] == pytest.approx(memory.summary["best"]["val_loss"], rel=1e-4)


def test_the_224_pixel_network_trains_on_photographs(tmp_path):
    for i, name in enumerate(("a", "b")):
        for n in range(3):
            for split in ("train", "val"):
                make_image(tmp_path / "data" / split / name / f"{n}.jpg", i, n, size=(320, 240))
    result = train(
        "imagenet-torchvision", data=tmp_path / "data", out=tmp_path / "run", progress=Silent(),
        width=0.125, batch_size=4, limit_steps=2, workers=0,
    )  # fmt: skip
    assert result.summary["steps"] == 2
    assert result.summary["arch"] == "torchvision"


def test_resuming_with_a_new_class_is_refused(tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "data" / "train")
    shutil.copytree(image_folder, tmp_path / "data" / "val")
    result = train("folder", data=tmp_path / "data", out=tmp_path / "run", progress=Silent(), **QUICK)
    make_image_folder(tmp_path / "data" / "train", ("stone",), 3)
    with pytest.raises(UserError, match="was trained on 3: apple, leaf, sky"):
        resume(result.run, epochs="+1", progress=Silent())


@pytest.mark.parametrize("epochs", ["+0", "x", "-3", "1", "0", ""])
def test_invalid_extensions_are_refused(small_run, tmp_path, epochs):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    with pytest.raises(UserError, match="--epochs|already has"):
        resume(copy, epochs=epochs, progress=Silent())


def test_resuming_a_run_without_checkpoints_starts_it(tmp_path):
    shutil.copytree(
        train("digits", out=tmp_path / "a", progress=Silent(), limit_steps=1, **DIGITS).run,
        tmp_path / "b",
    )
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    (tmp_path / "b" / "checkpoints").mkdir()
    for name in ("best", "last", "metrics.jsonl", "summary.json"):
        (tmp_path / "b" / name).unlink()
    again = resume(tmp_path / "b", progress=Silent())
    assert again.summary["best"] == json.loads((tmp_path / "a" / "summary.json").read_text())["best"]


def test_train_with_resume_returns_a_finished_run(tmp_path):
    first = train("digits", out=tmp_path / "a", progress=Silent(), limit_steps=1, **DIGITS)
    again = train("digits", out=tmp_path / "a", progress=Silent(), limit_steps=1, resume=True, **DIGITS)
    assert again.already_finished
    assert again.summary == first.summary
    assert "top-1" in str(again)
    assert again._repr_html_().count("<tr>") == 2


def test_a_result_displays_itself_in_chinese(tmp_path):
    metrics = {"epoch": 3, "train_loss": 0.25, "val_loss": 0.5, "top1": 0.875, "images_per_second": 1234.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    calibration = {"threshold": 0.9, "split": "val", "coverage": 0.75, "answered_top1": 0.955}
    summary = {
        "best": {"epoch": 3, "top1": 0.875, "top5": 0.99}, "split": "val", "steps": 12, "steps_per_epoch": 4,
        "classes": 10, "class_images": [10] * 10, "calibration": calibration,
        "test": {"top1": 0.85, "top5": 0.98, "interval": [0.8, 0.9]},
    }  # fmt: skip
    result = TrainingResult(tmp_path, summary, lang="zh")
    assert str(result).splitlines() == [
        "验证 top-1 87.50%，top-5 99.00%，第 3 轮（最佳）",
        "测试 top-1 85.00%（95 % 区间 80.00% 至 90.00%），top-5 98.00%",
        "低于 90.0% 为不确定：75.00% 的验证图片达到阈值，其中 95.50% 正确",
        f"运行 {tmp_path}",
    ]
    head = re.findall(r"<th [^>]*>([^<]*)</th>", result._repr_html_())
    assert head == ["轮次", "训练损失", "验证损失", "top-1", "每秒图片数"]
    guessing = {**summary, "split": "test", "test": None, "calibration": None, "class_images": [90, 10]}
    assert str(TrainingResult(tmp_path, guessing, lang="zh")).splitlines() == [
        "测试 top-1 87.50%，top-5 99.00%，第 3 轮（最后一轮）",
        "这并不比总是回答最常见的类别（占图片的 90.0%）更好；可能的原因依次为：图片或轮数太少、学习率不合适、"
        "标签有误。",
        "没有置信度阈值：该配方以测试集作验证，而测试集不能用来拟合任何东西",
        f"运行 {tmp_path}",
    ]


def test_training_speaks_chinese(tmp_path, image_folder, capsys):
    settings = {"out": tmp_path / "run", "width": 0.125, "epochs": 1, "limit_steps": 1, "lang": "zh"}
    result = train(image_folder, **settings)
    shown = capsys.readouterr().err
    assert "张训练图片，" in shown
    assert re.search(r"^按图片尺寸选定网络结构“\w+”，输入 \d+×\d+，宽度 0.125；", shown, re.MULTILINE)
    row = json.loads((result.run / "metrics.jsonl").read_text())
    assert f"训练损失 {row['train_loss']:.4f}  验证损失 {row['val_loss']:.4f}  验证 top-1 {row['top1']:.2%}" in shown
    assert not re.search("[a-z]{3,} [a-z]{3,} ", shown), "in English"
    again = train(image_folder, resume=True, **settings)
    assert again.already_finished
    assert str(again).startswith("验证 top-1 ")


def test_train_with_resume_keeps_what_the_data_chose(tmp_path, image_folder):
    settings = {"out": tmp_path / "run", "progress": Silent(), "width": 0.125, "limit_steps": 1}
    train(image_folder, **settings)
    assert train(image_folder, resume=True, **settings).already_finished
    with pytest.raises(UserError, match="--lr 0.3 would change the experiment"):
        train(image_folder, resume=True, lr=0.3, **settings)


def test_settings_that_change_the_experiment_need_force(tmp_path):
    """Other settings are applied and logged; those of the network cannot change at all."""
    out = tmp_path / "a"
    settings = {"out": out, "progress": Silent(), **DIGITS, "epochs": 2}
    train("digits", **settings, limit_steps=1)
    stopped = json.loads((out / "recipe.json").read_text())
    again = {**settings, "limit_steps": 1, "resume": True, "progress": (recorder := LogRecorder())}
    assert train("digits", **again).already_finished
    assert recorder.lines == []
    with pytest.raises(UserError, match="was started with --width 0.125, which cannot change within a run"):
        train("digits", **{**again, "width": 0.5}, force=True)
    with pytest.raises(UserError, match=r"--lr 0.3 would change the experiment: leave it out, or add --force"):
        train("digits", **again, lr=0.3)
    with pytest.raises(UserError, match=f"to train longer: alexnet resume {out} --epochs 9"):
        train("digits", **{**again, "epochs": 9})
    assert json.loads((out / "recipe.json").read_text()) == stopped
    resume(out, progress=recorder, settings={"checkpoint_every": "7"}, epochs=2)
    assert f"{out} resumes with --checkpoint-every 7 (before: --checkpoint-every 10m)." in recorder.lines
    resume(out, progress=recorder, force=True, settings={"lr": 0.3}, epochs=3)
    assert f"{out} resumes with --lr 0.3 (before: --lr 0.05)." in recorder.lines
    recipe = json.loads((out / "recipe.json").read_text())
    assert (recipe["lr"], recipe["checkpoint_every"], recipe["epochs"]) == (0.3, "7", 3)
    assert [row["epoch"] for row in Run(out).metrics()] == [1, 2, 3]


def test_an_extension_logs_its_learning_rates(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    resume(copy, epochs="+1", progress=(recorder := LogRecorder()))
    (sentence,) = [line for line in recorder.lines if line.startswith("Extended")]
    assert sentence.startswith(
        "Extended to 5 epochs: the learning rate follows the one-cycle schedule of a run of 5 epochs, from "
    )
    rate = float(sentence.split("from ")[1].split()[0])
    assert rate == pytest.approx(0.05 * (1 - (4 / 5 - 0.25) / 0.75), rel=0.02)


def test_a_changed_number_of_images_needs_force(tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "data" / "train")
    shutil.copytree(image_folder, tmp_path / "data" / "val")
    result = train("folder", data=tmp_path / "data", out=tmp_path / "run", progress=Silent(), **QUICK)
    (tmp_path / "data" / "train" / "sky" / "0.jpg").unlink()
    with pytest.raises(UserError, match="now has 23 training images, but .* was started with 24"):
        resume(result.run, epochs="+1", progress=Silent())
    assert resume(result.run, epochs="+1", force=True, progress=Silent()).summary["epochs"] == 2


def test_renamed_images_need_force(tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "data" / "train")
    shutil.copytree(image_folder, tmp_path / "data" / "val")
    run = train("folder", data=tmp_path / "data", out=tmp_path / "run", progress=Silent(), **QUICK).run
    sky = tmp_path / "data" / "train" / "sky"
    (sky / "0.jpg").rename(sky / "another.jpg")
    with pytest.raises(UserError, match="The training images have other names or labels than when"):
        resume(run, epochs="+1", progress=Silent())
    assert resume(run, epochs="+1", force=True, progress=Silent()).summary["epochs"] == 2
    assert resume(run, epochs="+1", progress=Silent()).summary["epochs"] == 3  # these are now the run's


def test_other_package_versions_are_logged(tmp_path):
    run = train("digits", out=tmp_path / "run", progress=Silent(), limit_steps=1, **DIGITS).run
    found = json.loads((run / "env.json").read_text())
    found["versions"] |= {"pillow": "1.0", "numpy": "1.1", "torchvision": None}
    (run / "env.json").write_text(json.dumps(found))
    resume(run, epochs="+1", progress=(recorder := LogRecorder()))
    (sentence,) = [line for line in recorder.lines if line.startswith("Environment changed")]
    assert sentence.startswith("Environment changed (numpy 1.1, now ")
    assert "; pillow 1.0, now " in sentence
    assert "torch" not in sentence


def test_a_moved_data_folder_can_be_given(tmp_path, image_folder):
    run = train(image_folder, out=tmp_path / "run", progress=Silent(), **QUICK).run
    image_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="images"):
        resume(run, epochs="+1", progress=Silent())
    resume(
        run,
        epochs="+1",
        settings={"data": tmp_path / "elsewhere"},
        progress=(recorder := LogRecorder()),
    )
    assert any("resumes with --data" in line for line in recorder.lines)


def test_in_memory_is_recorded_and_used_when_resuming(tmp_path, image_folder, monkeypatch):
    run = Run(train(image_folder, out=tmp_path / "run", progress=Silent(), **QUICK).run)
    assert json.loads(run.recipe_json.read_text())["in_memory"] is True
    monkeypatch.setattr("alexnet.data.in_memory.MAX_IN_MEMORY", 0)  # a new run would now read from disk
    read = []
    monkeypatch.setattr("alexnet.data.loader.DataLoader", lambda *a, **k: read.append(a))
    resume(run.path, epochs="+1", progress=Silent())
    assert read == []


def test_resuming_another_recipe_or_without_out_is_refused(small_run):
    with pytest.raises(UserError, match="holds a run of 'digits', not of 'cifar10'"):
        train("cifar10", out=small_run, resume=True, progress=Silent())
    with pytest.raises(UserError, match="--resume needs --out"):
        train("digits", resume=True, progress=Silent())


def test_a_limited_run_can_be_resumed_to_its_full_length(tmp_path):
    run = train("digits", out=tmp_path / "a", progress=Silent(), **{**DIGITS, "epochs": 2, "limit_steps": 1}).run
    assert resume(run, epochs=2, progress=Silent()).summary["epochs"] == 2


def test_another_architecture_brings_its_own_settings():
    recipe = with_settings(named_recipe("cifar10"), {"arch": "paper"})
    assert (
        recipe.model.width,
        recipe.model.norm,
        recipe.model.dropout,
        recipe.model.image_size,
    ) == (
        1.0,
        "auto",
        None,
        None,
    )
    assert with_settings(named_recipe("cifar10"), {"arch": "paper", "width": 0.5}).model.width == 0.5
    assert with_settings(named_recipe("cifar10"), {"arch": "cifar"}).model.width == named_recipe("cifar10").model.width


@pytest.mark.skipif(os.name != "posix", reason="such names exist only on POSIX")
def test_file_names_that_are_not_utf8(tmp_path, image_folder):
    name = os.fsdecode(b"caf\xe9.jpg")
    (image_folder / "sky" / "0.jpg").rename(image_folder / "sky" / name)
    (image_folder / "sky" / os.fsdecode(b"bad\xe9.jpg")).write_bytes(b"")
    run = Run(train(image_folder, out=tmp_path / "run", progress=Silent(), skip_bad=True, **QUICK).run)
    assert "bad\\xe9.jpg" in (run.path / "bad_files.csv").read_text()
    assert resume(run.path, epochs="+1", progress=Silent()).summary["epochs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_a_torchvision_classifier_trains_and_resumes_bit_for_bit(tmp_path, image_folder, name):
    """With dropout and running means; the run can also be evaluated, used and reported."""
    settings = {"arch": f"torchvision/{name}", "batch_size": 8, "lr": 0.005, "schedule": "constant"}
    settings["progress"] = Silent()
    first = train(image_folder, out=tmp_path / "run", epochs=1, **settings)
    run = Run(first.run)
    recipe = json.loads(run.recipe_json.read_text())
    assert (recipe["arch"], recipe["image_size"]) == (
        f"torchvision/{name}",
        32,
    )  # by images of 40×36
    assert alexnet.evaluate(run.path, device="cpu")["top1"] == first.summary["best"]["top1"]
    assert alexnet.load(run.path, device="cpu").predict(image_folder / "sky" / "0.jpg", views=10).labels
    assert write_report(run)[0].is_file()

    assert resume(run.path, epochs=2, progress=Silent()).summary["epochs"] == 2
    unbroken = Run(train(image_folder, out=tmp_path / "unbroken", epochs=2, **settings).run)
    resumed_model, unbroken_model = (load_checkpoint(r.named_checkpoint("last")).model for r in (run, unbroken))
    assert resumed_model.spec == unbroken_model.spec
    weights = zip(resumed_model.state_dict().items(), unbroken_model.state_dict().values(), strict=True)
    for (key, a), b in weights:
        assert torch.equal(a, b), key


@pytest.mark.parametrize(
    "settings",
    [{"spec_edits": ["average-pool"]}, {"lr_changes": [{"epoch": 2, "lr": 0.1, "layers": ["fc"]}]}],
)
def test_alexnet_settings_are_refused_for_torchvision_classifiers(tmp_path, image_folder, settings):
    with pytest.raises(UserError, match="work for AlexNets only; leave them out"):
        train(
            image_folder,
            out=tmp_path / "run",
            arch="torchvision/resnet18",
            schedule="constant",
            **settings,
        )
    assert not (tmp_path / "run").exists()


def test_a_torchvision_classifier_trains_on_grayscale_images(tmp_path):
    settings = {
        "arch": "torchvision/mobilenet_v3_small",
        "epochs": 1,
        "limit_steps": 1,
        "progress": Silent(),
    }
    run = Run(train("digits", out=tmp_path / "run", **settings).run)
    spec = load_checkpoint(run.named_checkpoint("best")).model.spec
    assert (spec.in_channels, spec.image_size, spec.num_classes) == (1, 32, 10)


@pytest.mark.parametrize(
    "start",
    [train, resume, lambda data: pack_dataset(Path(data), Path("packed")), lambda data: check_dataset(Path(data))],
    ids=["train", "resume", "pack", "check"],
)
def test_a_spawned_worker_does_not_start_again(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match="if __name__ =="):
        start("digits")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("alexnet.data.shards.pack", "pack_dataset(Path('images'), Path('packed'), workers=2)"),
        ("alexnet.data.quality.check", "check_dataset(Path('images'))"),
    ],
    ids=["pack", "check"],
)
@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__': "])
def test_a_script_without_a_guard_learns_why_no_process_starts(module, call, guard, tmp_path):
    make_image_folder(tmp_path / "images")
    script = tmp_path / "script.py"
    lines = ("from pathlib import Path", f"import {module} as m", "m._MIN_FOR_PROCESSES = 1", f"{guard}m.{call}")
    script.write_text("\n".join(lines))
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ended.returncode == 0) == bool(guard)
    if not guard:
        assert "of this script again" in ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert "could not start, as each of them runs the script; put the call below a line with if __name__" in last


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path):
    make_image_folder(tmp_path / "images")
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, alexnet\n"
        "multiprocessing.set_start_method('spawn', force=True)\n"
        "alexnet.train('images', arch='cifar', epochs=1, image_size=32, width=0.1, workers=2, in_memory=False)\n"
    )
    ended = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 1
    assert ended.stderr.count("started the training of this script again") == 2
    assert "since each worker process runs the script too" in ended.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1
