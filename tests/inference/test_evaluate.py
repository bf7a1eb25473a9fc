"""Evaluation: the metrics of training, other data, matched classes, stored logits."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alexnet.checkpoint import MODEL
from alexnet.data.dataset import ImageArrays
from alexnet.data.loader import evaluation_batches
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.evaluate import (
    compute_metrics,
    cross_entropy,
    evaluate,
    match_classes,
    run_networks,
    wilson_interval,
)
from alexnet.models.model import create_model
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import correct_at, ece, find_calibration
from alexnet.training.api import resume, train
from helpers import make_image_folder


def test_eval_gives_the_metrics_of_training(small_run):
    summary = json.loads((small_run / "summary.json").read_text())
    found = evaluate(small_run, split="val", device="cpu")
    assert found["top1"] == summary["best"]["top1"]
    assert found["top5"] == summary["best"]["top5"]
    assert found["loss"] == pytest.approx(summary["best"]["val_loss"], abs=1e-9)
    assert (found["split"], found["views"], found["n"]) == ("val", 1, 269)
    assert found["interval"][0] < found["top1"] < found["interval"][1]
    assert [c["label"] for c in found["per_class"]] == [str(i) for i in range(10)]
    assert evaluate(small_run, device="cpu")["top1"] == summary["test"]["top1"]  # auto is test


def test_eval_reports_calibrated_confidence(small_run):
    run = Run(small_run)
    stored, _ = find_calibration(run.named_checkpoint("best"), run)
    found = evaluate(small_run, device="cpu")
    _, targets, logits = run.read_evaluation("test")
    confidence, correct = stored.confidence(logits), logits.argmax(axis=1) == targets
    assert found["calibration"] == stored.to_dict()
    assert found["calibration_note"] == ""
    assert found["ece_calibrated"] == pytest.approx(ece(confidence, correct), abs=1e-9)
    assert found["coverage"] == (confidence >= stored.threshold).mean()
    assert found["answered_top1"] == correct[confidence >= stored.threshold].mean()
    assert f"unsure below {stored.threshold:.1%}: {found['coverage']:.2%} above it" in repr(found)
    found = evaluate(small_run, device="cpu", split="val")
    assert "It was fitted on these images" in repr(found)
    assert found["ece_calibrated"] == pytest.approx(stored.ece_after, abs=1e-9)
    assert found["ece"] == pytest.approx(stored.ece_before, abs=1e-9)


def test_eval_without_a_threshold_gives_the_reason(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    best = Run(copy).named_checkpoint("best")
    described = json.loads((best / MODEL).read_text())
    del described["calibration"]
    (best / MODEL).write_text(json.dumps(described))
    found = evaluate(copy, device="cpu")
    assert "fitted now on its val split" in repr(found)
    recipe = json.loads((copy / "recipe.json").read_text())
    (copy / "recipe.json").write_text(json.dumps({**recipe, "validate_on": "test"}))
    (copy / "split.csv").unlink()
    found = evaluate(copy, device="cpu")
    assert (found["calibration"], found["coverage"], found["ece_calibrated"]) == (None, None, None)
    assert "which nothing may be fitted on" in repr(found)
    assert 0 < found["ece"] < 1
    assert found["curve"][-1]["top1"] == found["top1"]


def test_stored_logits_give_the_same_metrics(small_run):
    stored = Run(small_run).read_evaluation("test")
    assert stored is not None
    paths, targets, logits = stored
    assert len(set(paths)) == 269
    summary = json.loads((small_run / "summary.json").read_text())
    assert compute_metrics(logits, targets, tuple("0123456789"))["top1"] == summary["test"]["top1"]


def test_another_folder_is_matched_by_class_name(tmp_path, image_folder):
    run = train(image_folder, out=tmp_path / "run", epochs=1, width=0.125, batch_size=8, progress=Silent()).run
    other = make_image_folder(tmp_path / "other", ("leaf", "sky"), 3)
    found = evaluate(run, data=other, device="cpu")
    assert (found["split"], found["n"]) == ("all", 6)
    assert [c["n"] for c in found["per_class"]] == [0, 3, 3]
    make_image_folder(tmp_path / "unknown", ("leaf", "stone"), 2)
    with pytest.raises(UserError, match="which do not include 'stone'"):
        evaluate(run, data=tmp_path / "unknown")


def test_evaluation_data_needs_no_train_folder(small_run, tmp_path):
    for split, name in (("val", "3"), ("val", "7"), ("test", "7")):
        make_image_folder(tmp_path / "data" / split, (name,), 2)
    found = evaluate(small_run, data=tmp_path / "data", device="cpu")
    assert (found["split"], found["n"]) == ("test", 2)
    assert evaluate(small_run, data=tmp_path / "data", split="val", device="cpu")["n"] == 4
    assert evaluate(small_run, data=tmp_path / "data" / "test", device="cpu")["split"] == "all"


def test_another_checkpoint_does_not_replace_the_stored_evaluation(small_run, tmp_path):
    run = Run(shutil.copytree(small_run, tmp_path / "copy"))
    other = shutil.copytree(run.named_checkpoint("best"), tmp_path / "copy" / "checkpoints" / "other")
    before = (run.path / "evaluation" / "test.parquet").stat().st_mtime_ns
    evaluate(other, device="cpu")
    assert (run.path / "evaluation" / "test.parquet").stat().st_mtime_ns == before
    evaluate(run.path, device="cpu")
    assert (run.path / "evaluation" / "test.parquet").stat().st_mtime_ns > before


def test_damaged_recipe_is_reported(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    (copy / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="recipe.json is damaged"):
        evaluate(copy)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_damaged_after_training_are_named(image_folder, tmp_path, monkeypatch, in_memory):
    """Neither evaluating nor resuming checks all files again, and neither has --skip-bad."""
    settings = {
        "arch": "cifar",
        "width": 0.1,
        "image_size": 32,
        "epochs": 1,
        "progress": Silent(),
        "workers": 0,
    }
    run = train(str(image_folder), out=tmp_path / "run", in_memory=in_memory, **settings).run
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()]
    for split in ("train", "val"):
        name = next(name for name, row_split in rows if row_split == split)
        (image_folder / name).write_bytes(b"damaged")
    if not in_memory:
        monkeypatch.setattr("alexnet.data.in_memory.MAX_IN_MEMORY", 0)
    before = (run / "metrics.jsonl").read_bytes()
    for split in ("train", "val"):
        with pytest.raises(UserError, match=r"cannot be read: |Cannot read ") as error:
            evaluate(run, split=split)
        assert "--skip-bad" not in str(error.value)
    with pytest.raises(UserError, match=r"cannot be read: |Cannot read ") as error:
        resume(run, epochs="+1", progress=Silent())
    assert "--skip-bad" not in str(error.value)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_match_classes():
    np.testing.assert_array_equal(match_classes(("a", "b", "c"), ("c", "a")), [2, 0])
    with pytest.raises(UserError, match="2 classes and the network 1"):
        match_classes(("a",), ("a", "b"))


def test_imagenet_folders_match_torchvision_classes():
    from torchvision.models import AlexNet_Weights

    names = tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    numbers = tuple(f"n{1440764 + i:08d}" for i in range(1000))
    np.testing.assert_array_equal(match_classes(names, numbers), np.arange(1000))
    with pytest.raises(UserError, match="which do not include 'n01440764'"):
        match_classes(names, numbers[:10])


def test_invalid_inputs(small_run, tmp_path):
    with pytest.raises(UserError, match="no split 'vall'; did you mean 'val'"):
        evaluate(small_run, split="vall")
    with pytest.raises(UserError, match="There is no folder"):
        evaluate(small_run, data=tmp_path / "nothing")
    copy = shutil.copytree(small_run, tmp_path / "copy")
    checkpoint = Run(copy).named_checkpoint("best")
    moved = shutil.move(str(checkpoint), tmp_path / "alone")
    with pytest.raises(UserError, match="has no data of its own"):
        evaluate(moved)


def test_evaluation_representations(small_run):
    found = evaluate(small_run, split="val", device="cpu")
    assert "top-1" in repr(found)
    assert found._repr_html_().count("<tr>") == 11
    assert json.loads(json.dumps(found))["n"] == 269


def test_an_evaluation_displays_itself_in_chinese(small_run):
    found = evaluate(small_run, split="val", device="cpu", lang="zh")
    low, high = found["interval"]
    first, second = repr(found).splitlines()
    assert first == (
        f"top-1 {found['top1']:.2%}（95 % 区间 {low:.2%} 至 {high:.2%}），top-5 {found['top5']:.2%}，"
        f"损失 {found['loss']:.4f}，269 张验证图片"
    )
    assert second.startswith(f"校准误差 {found['ece']:.2%}，温度 {found['calibration']['temperature']:.3g} 下为 ")
    assert second.endswith("它正是在这些图片上拟合的。")
    assert re.findall(r"<th [^>]*>([^<]*)</th>", found._repr_html_()) == ["类别", "图片数", "精确率", "召回率", "F1"]
    assert found == evaluate(small_run, split="val", device="cpu")
    with pytest.raises(UserError, match="There is no language 'de'"):
        evaluate(small_run, lang="de")


def test_model_keeps_its_training_mode():
    model = create_model("cifar", width=0.1).train()
    arrays = ImageArrays(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.arange(3), ["a", "b", "c"])
    preprocess = EvalTransform(size=32)
    (outputs,) = run_networks([(model, preprocess)], evaluation_batches(arrays, preprocess), torch.device("cpu"))
    assert model.training
    assert outputs.logits.shape == (3, 10)
    np.testing.assert_array_equal(outputs.ids, [0, 1, 2])


def test_metrics_counted_by_hand():
    logits = np.array([[3.0, 1, 0], [0, 2, 1], [0, 2, 1], [5, 0, 1]], dtype=np.float32)
    targets = np.array([0, 1, 2, 2])
    found = compute_metrics(logits, targets, ("a", "b", "c"))
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0
    assert found["n"] == 4
    a, b, c = found["per_class"]
    assert (a["label"], a["n"], a["precision"], a["recall"]) == ("a", 1, 0.5, 1.0)
    assert (b["n"], b["precision"], b["recall"]) == (1, 0.5, 1.0)
    assert (c["n"], c["precision"], c["recall"], c["f1"]) == (2, 0.0, 0.0, 0.0)
    expected = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(targets)).item()
    assert found["loss"] == pytest.approx(expected, abs=1e-12)


def test_top5_counts_the_fifth_but_not_the_sixth():
    logits = np.arange(10, dtype=np.float32)[None].repeat(2, axis=0)
    assert correct_at(logits, np.array([5, 4]), 5).tolist() == [True, False]


def test_constant_or_nan_logits_count_as_wrong():
    zeros = np.zeros((3, 10), dtype=np.float32)
    assert not correct_at(zeros, np.array([0, 1, 2]), 1).any()
    nan = np.full((3, 10), np.nan, dtype=np.float32)
    assert not correct_at(nan, np.array([0, 1, 2]), 5).any()


def test_cross_entropy_survives_large_logits():
    assert cross_entropy(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)


def test_interval_is_wilsons():
    # the textbook formula for 81 of 263
    n, p, z = 263, 81 / 263, 1.959963984540054
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(81, 263) == pytest.approx((center - half, center + half))
    low, high = wilson_interval(10, 10)
    assert high == 1.0
    assert 0.6 < low < 0.8
    assert wilson_interval(0, 0) == (0.0, 1.0)
