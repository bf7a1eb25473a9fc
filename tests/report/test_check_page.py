"""The page of a check is whole, self-contained and small, whatever was found."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from alexnet.cli import run
from alexnet.data.quality import check as check_module
from alexnet.data.quality.check import check_dataset
from alexnet.data.quality.findings import Findings
from alexnet.report.check_page import write_page
from damaged_images import damage_dataset, make_photos, split_photos
from helpers import make_image_folder


class Tags(HTMLParser):
    VOID = ("meta", "br", "img", "line", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def whole(path: Path) -> str:
    page = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith("data:image/jpeg;base64,") for link in tags.links)
    assert len(page) < 5_000_000
    return page


def test_everything_found_is_drawn(tmp_path):
    root = split_photos(make_photos(tmp_path / "photos", 60), tmp_path / "<data>")
    done = damage_dataset(root)
    page = whole(write_page(check_dataset(root), tmp_path / "page.html"))
    assert "&lt;data&gt;" in page
    for way in ("empty", "web page", "one pixel", "near copy"):
        assert done[way] in page, way
    assert "two splits and two labels" in page
    assert "<h3>ant (" in page
    assert "&#x27;cat &#x27;" in page  # told from 'cat'
    assert page.count("<figure>") == 2 + 12  # duplicates and augmented pictures
    assert "<circle" in page


def test_many_classes_stay_small(tmp_path):
    make_image_folder(tmp_path / "data", tuple(f"c{i:04d}" for i in range(700)), 2)
    page = whole(write_page(check_dataset(tmp_path / "data"), tmp_path / "page.html"))
    assert "580 classes between the largest and the smallest are not shown." in page
    assert page.count("<h3>") == 480
    assert "… and 220 more." in page


@pytest.mark.parametrize(("recipe", "channels", "side"), [("cifar10", 3, 32), ("fashion-mnist", 1, 28)])
def test_pictures_without_files(tmp_path, recipe, channels, side):
    images = torch.randint(0, 256, (40, channels, side, side), dtype=torch.uint8)
    names, labels = [f"train/{i}" for i in range(40)], ["a", "b"] * 20
    found = Findings(tmp_path, tmp_path, None, recipe, names, labels, ["train"] * 40, ("a", "b"), pixels=images)
    found.infos = list(check_module._inspect_all(check_module.inspect_arrays, images.permute(0, 2, 3, 1).numpy(), None))
    page = whole(write_page(found, tmp_path / "page.html"))
    assert f"All pictures are {side}×{side} pixels." in page
    assert len(re.findall(r'<div class="row">', page)) == 2 + 12


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_image_folder(tmp_path / "my data")
    assert run(["check", "my data", "--html", "page.html", "--fix", "clean"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\n  alexnet train folder --data 'my data'\n" in out
    assert out.splitlines()[-1] == "page.html"
    whole(tmp_path / "page.html")
    assert len(list((tmp_path / "clean").rglob("*.jpg"))) == 24
