import html
import re
from pathlib import Path

import pytest
import torch

from alexnet.cli import run
from alexnet.data.quality.check import check_dataset
from alexnet.data.quality.findings import Findings
from alexnet.data.quality.inspect import inspect_arrays
from alexnet.messages.translator import Translator
from alexnet.report.check_page import write_page
from damaged_images import damage_dataset, make_photos, split_photos
from helpers import make_image_folder
from parsed_html import page_links


def read_page(path: Path) -> str:
    """Return a page after checking that it is well-formed, self-contained and small."""
    page = path.read_text(encoding="utf-8")
    assert all(link.startswith("data:image/jpeg;base64,") for link in page_links(page))
    assert len(page) < 5_000_000
    return page


def array_findings(root, recipe, images, labels, classes) -> Findings:
    """Findings of images in memory."""
    names = [f"train/{i}" for i in range(len(images))]
    findings = Findings(root, root, None, recipe, names, labels, ["train"] * len(images), classes, pixels=images)
    findings.infos = inspect_arrays(images.permute(0, 2, 3, 1).numpy())
    return findings


def test_all_findings_are_shown(tmp_path):
    root = split_photos(make_photos(tmp_path / "photos", 60), tmp_path / "<data>")
    damaged = damage_dataset(root)
    findings = check_dataset(root)
    page = read_page(write_page(findings, tmp_path / "page.html"))
    assert "&lt;data&gt;" in page
    for kind in ("empty", "web page", "one pixel", "near copy"):
        assert damaged[kind] in re.sub("</?(span|wbr)[^>]*>", "", page), kind
    assert "<b>two splits</b> · <b>two labels</b>" in page
    assert "<h3>ant (" in page
    assert "&#39;cat &#39;" in page  # distinct from 'cat'
    assert page.count("<figure>") == 2 + 12  # duplicates and augmented images
    assert "<circle" in page
    chinese = read_page(write_page(findings, tmp_path / "zh.html", "zh"))
    assert "近似重复" in chinese
    assert "Near duplicates" not in chinese
    texts = [*findings.warnings, *findings.notes, findings.verdict, *(reason for _, reason in findings.bad)]
    texts += [anomaly for i in findings.unusual for anomaly in findings.infos[i].anomalies]
    translated = [Translator("zh").sentence(text) for text in texts]
    assert [text for text in translated if re.search("([a-z]{2,} ){2}", text.replace("pip install", ""))] == []
    shown = html.unescape(re.sub("</?(span|wbr)[^>]*>", "", chinese))
    assert [text for text in translated if text not in shown] == []


def test_page_of_700_classes_is_small(tmp_path):
    classes = tuple(f"c{i:04d}" for i in range(700))
    images = torch.randint(0, 256, (1400, 3, 8, 8), dtype=torch.uint8)
    findings = array_findings(tmp_path, "cifar10", images, [name for name in classes for _ in range(2)], classes)
    page = read_page(write_page(findings, tmp_path / "page.html"))
    assert "580 classes between the largest and the smallest are not shown." in page
    assert page.count("<h3>") == 480
    assert "… and 220 more." in page


@pytest.mark.parametrize(("recipe", "channels", "side"), [("cifar10", 3, 32), ("fashion-mnist", 1, 28)])
def test_images_that_are_not_files(tmp_path, recipe, channels, side):
    images = torch.randint(0, 256, (40, channels, side, side), dtype=torch.uint8)
    page = read_page(
        write_page(
            array_findings(tmp_path, recipe, images, ["a", "b"] * 20, ("a", "b")),
            tmp_path / "page.html",
        )
    )
    assert f"All images are {side}×{side} pixels." in page
    assert len(re.findall(r'<div class="row">', page)) == 2 + 12


def test_check_command_writes_page_and_cleaned_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_image_folder(tmp_path / "my data")
    assert run(["check", "my data", "--html", "page.html", "--fix", "clean"]) == 0
    out, err = capsys.readouterr()
    assert err == "Reading my data …\n"
    assert "\n  alexnet train clean\n" in out
    assert out.splitlines()[-1] == "page.html"
    read_page(tmp_path / "page.html")
    assert run(["check", "my data", "--lang", "zh"]) == 0
    assert "可以开始训练" in capsys.readouterr().out
    assert len(list((tmp_path / "clean").rglob("*.jpg"))) == 24
