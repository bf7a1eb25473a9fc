"""Splits are stratified, seeded, and survive split.csv."""

import shutil

import numpy as np
import pytest
import torch

from alexnet.data.dataset import read_split, stratified_split, write_split
from alexnet.data.datasets import load_dataset
from alexnet.errors import UserError
from helpers import make_image_folder

TARGETS = torch.tensor([0] * 100 + [1] * 40 + [2] * 7 + [3] * 2 + [4])


@pytest.mark.parametrize(
    ("fraction", "held"), [(0.05, [5, 2, 1, 1, 0]), (0.5, [50, 20, 4, 1, 0]), (0.99, [99, 39, 6, 1, 0])]
)
def test_each_class_gives_its_fraction_but_never_all(fraction, held):
    kept_indices, held_indices = stratified_split(TARGETS, fraction, 0)
    assert np.bincount(TARGETS[held_indices], minlength=5).tolist() == held
    assert sorted([*kept_indices, *held_indices]) == list(range(len(TARGETS)))


def test_a_split_depends_only_on_the_seed():
    first, second = stratified_split(TARGETS, 0.2, 3), stratified_split(TARGETS.numpy(), 0.2, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[1], stratified_split(TARGETS, 0.2, 4)[1])


def test_held_out_samples_are_spread_over_the_class():
    _, held = stratified_split(torch.zeros(10_000), 0.1, 0)
    assert abs(held.mean() - 5000) < 300  # not the first or the last files, which are often similar


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 5.0])
def test_a_fraction_outside_0_and_1_is_rejected(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        stratified_split(TARGETS, fraction, 0)


def test_copies_stay_in_one_split(tmp_path):
    root = make_image_folder(tmp_path / "data", ("a", "b"), 20)
    for i in range(10):
        shutil.copy(root / "a" / f"{i}.jpg", root / "a" / f"copy{i}.jpg")
    for seed in range(5):
        source = load_dataset("folder", root, seed=seed)
        held = {(root / name).read_bytes() for name in source.splits["val"].names}
        trained_on = [(root / name).read_bytes() for name in source.splits["train"].names]
        assert held.isdisjoint(trained_on)
        assert {split: len(part) for split, part in source.splits.items()}.keys() == {"train", "val"}
        assert len(source.split_rows) == 50
        counts = np.bincount(source.splits["val"].targets, minlength=2)
        assert 4 <= counts[0] <= 8  # four of the twenty different ones, some of them twice
        assert counts[1] == 4


def test_copies_of_a_single_image_can_still_be_split(tmp_path):
    root = make_image_folder(tmp_path / "data", ("a", "b"), 1)
    for name in ("a", "b"):
        for i in range(9):
            shutil.copy(root / name / "0.jpg", root / name / f"copy{i}.jpg")
    assert len(load_dataset("folder", root).splits["val"]) == 4


def test_split_csv_round_trip(tmp_path):
    rows = [("cat/a.jpg", "train"), ('odd, "name"\n.jpg', "val"), ("猫/ü.jpg", "test"), ("bytes\udcff.jpg", "train")]
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows


@pytest.mark.parametrize("text", ["", "a,b\n", "name,split\nx.jpg,tarin\n", "name,split\nx.jpg\n"])
def test_other_files_are_rejected(text, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="not a split"):
        read_split(path)


def test_a_missing_split_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_split(tmp_path / "split.csv")
