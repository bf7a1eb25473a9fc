"""Ensembles: averaged probabilities, matched classes, and members that must not have seen the data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet
from alexnet.checkpoint import load_checkpoint, save_model
from alexnet.cli import run
from alexnet.data.datasets import load_dataset
from alexnet.errors import UserError
from alexnet.inference.crops import CENTER_CROP, TEN_CROP, make_views
from alexnet.inference.ensemble import _match_order, load_ensemble
from alexnet.inference.evaluate import evaluate
from alexnet.inference.load import is_run_reference
from alexnet.inference.predict import load
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import train
from helpers import EVAL_KEYS, make_image_folder

QUICK = {"epochs": 1, "width": 0.125, "batch_size": 32, "limit_steps": 8, "progress": Silent()}


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """Another network than `small_run`, for images of 40 pixels, on the same digits."""
    return train("digits", out=tmp_path_factory.mktemp("runs") / "other", image_size=40, **QUICK).run


@pytest.fixture
def digit(tmp_path) -> Path:
    pixels = load_dataset("digits").splits["test"].images[0, 0].numpy()
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


def permute_outputs(run_folder: Path, out: Path, classes: tuple[str, ...], order: list[int]) -> Path:
    """Save the run's best network to `out` with its outputs in another order, named `classes`."""
    found = load_checkpoint(Run(run_folder).named_checkpoint("best"))
    with torch.no_grad():
        for tensor in (found.model.fc8.weight, found.model.fc8.bias):
            tensor.copy_(tensor[order].clone())
    out.mkdir(parents=True)
    save_model(out, found.model, classes, found.preprocess)
    return out


def test_an_ensemble_is_the_mean_of_its_members_probabilities(small_run, other_run):
    before = [(r / "evaluation" / "test.parquet").read_bytes() for r in (small_run, other_run)]
    found = evaluate([small_run, other_run], device="cpu")
    assert [(r / "evaluation" / "test.parquet").read_bytes() for r in (small_run, other_run)] == before
    stored = [Run(r).read_evaluation("test") for r in (small_run, other_run)]
    targets = stored[0][1]
    mean = sum(softmax(logits) for _, _, logits in stored) / 2
    assert found["top1"] == float((mean.argmax(1) == targets).mean())
    assert found["loss"] == pytest.approx(-np.log(mean[np.arange(len(targets)), targets]).mean(), rel=1e-5)
    assert found["runs"] == [str(small_run), str(other_run)]
    for member, (_, _, logits) in zip(found["members"], stored, strict=True):
        assert member["top1"] == float((logits.argmax(1) == targets).mean())
    assert found["members"][0]["top1"] != found["members"][1]["top1"]


def test_one_run_is_an_ensemble_of_one(small_run):
    alone, listed = evaluate(small_run, device="cpu"), evaluate([small_run], device="cpu")
    assert alone == listed
    assert alone["members"] == [{"run": str(small_run), "top1": alone["top1"]}]


def test_predict_averages_too(small_run, other_run, digit):
    averaged = dict(alexnet.load([small_run, other_run], device="cpu").predict(digit, top=10).labels)
    alone = [dict(load(r, device="cpu").predict(digit, top=10).labels) for r in (small_run, other_run)]
    for label, p in averaged.items():
        assert p == pytest.approx((alone[0][label] + alone[1][label]) / 2, abs=1e-6)


def test_classes_in_another_order_are_matched_by_name(small_run, tmp_path):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    other = permute_outputs(small_run, tmp_path / "permuted", tuple(str(i) for i in order), order)
    alone, both = evaluate(small_run, device="cpu"), evaluate([small_run, other], device="cpu")
    assert both["members"][1]["top1"] == alone["top1"]
    assert both["loss"] == pytest.approx(alone["loss"], abs=1e-6)


def test_duplicate_class_names_are_matched_in_order():
    np.testing.assert_array_equal(_match_order(("crane", "auk", "crane"), ("auk", "crane", "crane")), [1, 0, 2])


def test_other_classes_are_rejected(small_run, tmp_path):
    names = (*(str(i) for i in range(9)), "nine")
    other = permute_outputs(small_run, tmp_path / "permuted", names, list(range(10)))
    with pytest.raises(UserError, match=f"'9' is in {small_run} and not in {other}; an ensemble needs"):
        evaluate([small_run, other])
    with pytest.raises(UserError, match="at least one run"):
        load_ensemble([])


def test_member_that_may_have_trained_on_the_images_is_rejected(small_run, tmp_path):
    """Digits are split by seed: one run trained on what the other tests on."""
    other = train("digits", out=tmp_path / "b", seed=1, **QUICK).run
    for split in ("val", "test"):
        with pytest.raises(UserError, match=f"of the 269 {split} images of .* are not in the {split} split of"):
            evaluate([small_run, other], split=split)
    make_image_folder(tmp_path / "new", ("3", "7"), 2)
    assert evaluate([small_run, other], data=tmp_path / "new", device="cpu")["n"] == 4


def test_test_split_of_the_dataset_is_shared(tmp_path):
    for split in ("train", "test"):
        make_image_folder(tmp_path / "data" / split, count=12)
    runs = [train(tmp_path / "data", out=tmp_path / f"{seed}", seed=seed, **QUICK).run for seed in (0, 1)]
    assert evaluate(runs, device="cpu")["split"] == "test"
    with pytest.raises(UserError, match="may have been trained on them"):
        evaluate(runs, split="val")
    # a run without a recorded split trained on all of the dataset's train split
    (runs[1] / "split.csv").unlink()
    with pytest.raises(UserError, match="3 of the 3 val images"):
        evaluate(runs, split="val")


def test_ten_views_at_two_scales_are_twenty_forwards_of_one_batch(small_run, other_run, digit):
    classifier = load([small_run, other_run], device="cpu")
    sizes: list[list[int]] = [[], []]
    for member, seen in zip(classifier.ensemble.members, sizes, strict=True):
        member.model.register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(len(args[0])))
    list(classifier.predict_many([digit] * 3, views=10, scales=(1, 1.15)))
    assert sizes == [[3] * 20, [3] * 20]


def test_members_of_one_size_share_input_images(small_run, other_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    ensemble = load_ensemble([small_run, other_run, copy])
    assert [r.members for r in ensemble.input_groups(CENTER_CROP)] == [(0, 2), (1,)]
    groups = ensemble.input_groups(make_views(10, (1.0, 1.5)))
    assert [(r.preprocess.size, r.members) for r in groups] == [(32, (0, 2)), (40, (1,)), (48, (0, 2)), (60, (1,))]


def test_scales_are_averaged(small_run, digit):
    classifier = load(small_run, device="cpu")
    each = [dict(classifier.predict(digit, 10, 10, (scale,)).labels) for scale in (1, 1.25)]
    both = dict(classifier.predict(digit, 10, 10, (1, 1.25)).labels)
    assert each[0] != each[1]
    for label, p in both.items():
        assert p == pytest.approx((each[0][label] + each[1][label]) / 2, abs=1e-6)
    assert dict(classifier.predict(digit, 10, 10).labels) == each[0]


def test_eval_and_predict_read_the_same_at_every_scale(small_run):
    """Arrays in memory and single images are resized in the same way."""
    part = load_dataset("digits").splits["test"]
    found = evaluate(small_run, split="test", views=2, scales=(1, 1.15), device="cpu")
    assert (found["views"], found["scales"]) == (4, [1.0, 1.15])
    images = [Image.fromarray(image.numpy()) for image in part.images[:, 0]]
    predictions = load(small_run, device="cpu").predict_many(images, 1, 2, (1, 1.15))
    labels = torch.tensor([int(p.labels[0][0]) for p in predictions])
    assert found["top1"] == (labels == part.targets).double().mean().item()


def test_leading_arguments_that_are_runs_form_the_ensemble(small_run, other_run, digit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = Run(other_run).named_checkpoint("best")
    assert all(map(is_run_reference, ["last", "torchvision:IMAGENET1K_V1", str(small_run), str(checkpoint)]))
    assert not any(map(is_run_reference, ["-", "digit.png", str(tmp_path), "nowhere"]))
    shutil.copy(digit, "last")
    assert not is_run_reference("last")  # here it is an image
    arguments = ["predict", str(small_run), str(checkpoint), "digit.png", "last", "--json", "--top", "10"]
    assert run(arguments) == 0
    first, second = json.loads(capsys.readouterr().out)["predictions"]
    assert (first["path"], second["path"]) == ("digit.png", "last")
    expected = load([small_run, other_run], device="cpu").predict(digit, top=10)
    assert [entry["label"] for entry in first["labels"]] == [label for label, _ in expected.labels]
    assert run(["predict", str(small_run), str(other_run)]) == 2
    assert "Name at least one image" in capsys.readouterr().err


@pytest.mark.slow
def test_eval_takes_several_runs(small_run, other_run, capsys):
    arguments = ["eval", str(small_run), str(other_run), "--ten-crop", "--scales", "1", "1.15", "--json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= EVAL_KEYS | {"runs", "members"}
    assert found["views"] == 2 * len(TEN_CROP)
    assert run(["eval", str(small_run), str(other_run)]) == 0
    assert f"individually: {small_run} " in capsys.readouterr().out
