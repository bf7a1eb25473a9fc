"""Checking packed datasets: damage is found in every file, and skipped and duplicate images are reported."""

import json
import shutil

import pytest

from alexnet.cli import run
from alexnet.data.quality.check import check_packed
from alexnet.data.shards.pack import pack_dataset
from helpers import make_image_folder


@pytest.fixture
def packed(tmp_path):
    root = make_image_folder(tmp_path / "images" / "train")
    make_image_folder(tmp_path / "images" / "val", count=2)
    shutil.copyfile(root / "sky" / "0.jpg", root / "sky" / "copy.jpg")
    shutil.copyfile(root / "sky" / "1.jpg", tmp_path / "images" / "val" / "sky" / "1.jpg")
    (root / "leaf" / "0.jpg").write_bytes(b"no image")
    pack_dataset(tmp_path / "images", tmp_path / "packed")
    return tmp_path / "packed"


def test_contents_are_reported(packed, capsys):
    assert run(["check", str(packed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 30
    assert found["classes"] == {"apple": 10, "leaf": 9, "sky": 11}
    assert found["splits"]["train"] == {"apple": 8, "leaf": 7, "sky": 9}
    assert [bad["path"] for bad in found["bad"]] == ["train/leaf/0.jpg"]
    assert ["train/sky/0.jpg", "train/sky/copy.jpg"] in found["duplicates"]
    assert ["train/sky/1.jpg", "val/sky/1.jpg"] in found["duplicates"]
    assert found["damaged"] == []
    assert run(["check", str(packed)]) == 0
    shown = capsys.readouterr().out
    assert "train: 24 images of 3 classes, 7 to 9 per class" in shown
    assert "22 files are intact" in shown


@pytest.mark.parametrize("name", ["train/chunk-0-3.bin", "val/chunk-0-0.bin", "mean_image.npy", "failed.csv"])
def test_a_flipped_bit_is_found(packed, name):
    data = bytearray((packed / name).read_bytes())
    data[len(data) // 2] ^= 1
    (packed / name).write_bytes(data)
    found = check_packed(packed)
    assert found.damaged == [name]
    assert "1 of 22 files are damaged" in found.verdict


def test_html_and_fix_need_the_original_images(packed, tmp_path, capsys):
    assert run(["check", str(packed), "--html", str(tmp_path / "page.html")]) == 2
    assert "is packed" in capsys.readouterr().err
