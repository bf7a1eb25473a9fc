"""The format web without a browser: layers, weights, escaping, size, flags and errors."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.checkpoint import save_model
from alexnet.cli import run
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.export import browser
from alexnet.export.export import Exporter
from alexnet.export.web import layer_list, translate_page, web_tensors
from alexnet.inference.predict import load
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.model import create_model
from alexnet.models.spec import NORMS, layers
from helpers import CLASS_NAMES, make_confident_model

SCRIPTS = Path(__file__).resolve().parents[2] / "src/alexnet/export/web"
KINDS = set(re.findall(r"^  (\w+)(?:\(|: )", (SCRIPTS / "alexnet.js").read_text().split("\n};")[0], re.MULTILINE))
NASTY = ("</script><script>alert(1)</script>", 'it\'s "quoted" & <b>', "two\nlines \u2028 猫")


def export(checkpoint: Path, images: Path | None, out: Path, **settings: Any) -> Path:
    with Exporter(checkpoint, images=images, parity=False, **settings) as exporter:
        return exporter.export("web", out).file


def embedded(page: str, name: str) -> Any:
    """Return the JSON document of a script element."""
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_page_knows_every_layer_of_every_network(name, norm):
    spec = architecture(name, norm=norm)
    listed = layer_list(spec)
    assert [(row["name"], row["kind"]) for row in listed] == [(row.name, row.kind) for row in layers(spec)]
    assert {row["kind"] for row in listed} <= KINDS
    assert listed[0]["input"] == (spec.in_channels, spec.image_size, spec.image_size)
    json.dumps(listed)


def test_weights_in_few_bits_are_near_those_of_the_network():
    model = create_model("cifar", num_classes=3, norm="batch", width=0.125)
    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(32, resize=36, mean_image=mean)
    exact = dict(web_tensors(model, preprocess, "fp32"))
    small = dict(web_tensors(model, preprocess, "int8-fc"))
    assert exact["input.shift"].shape == (3, 32, 32)
    assert {values.dtype.name for values in exact.values()} == {"float32"}
    assert (small["conv1.weight"].dtype, small["fc6.weight"].dtype) == (np.float16, np.int8)
    assert small["norm1.running_var"].dtype == np.float32
    restored = small["fc8.weight"] * small["fc8.weight.scale"]
    assert np.abs(restored - model.fc8.weight.detach().numpy().T).max() <= small["fc8.weight.scale"].max() / 2 + 1e-9


def test_page_holds_weights_classes_and_samples(checkpoint, large_images, tmp_path):
    out = export(checkpoint, large_images, tmp_path / "net.html")
    page = out.read_text(encoding="utf-8")
    network, samples = embedded(page, "network"), embedded(page, "sample-images")
    assert network["classes"] == list(CLASS_NAMES)
    assert [step["step"] for step in network["image"]][-3:] == ["resize", "crop", "layout"]
    assert [sample["label"] for sample in samples] == [0] * 4 + [1] * 4 + [2] * 4
    parts = re.findall(r'class="weights">(.*?)</script>', page)
    widths = {"f32": 4, "f16": 2, "i8": 1}
    expected = sum(tensor["size"] * widths[tensor["type"]] for tensor in network["tensors"])
    assert len(b"".join(map(base64.b64decode, parts))) == expected
    assert "://" not in re.sub(r'class="weights">.*?</script>', "", page)
    text = len(page.encode()) - sum(map(len, parts)) - len(json.dumps(samples))
    assert text <= 60_000


def test_samples_are_those_of_a_folder_or_none(checkpoint, large_images, tmp_path):
    (tmp_path / "mine" / CLASS_NAMES[1]).mkdir(parents=True)
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "mine" / CLASS_NAMES[1] / "a.png")
    for samples, labels in {str(tmp_path / "mine"): [1], "none": []}.items():
        page = export(checkpoint, large_images, tmp_path / "net.html", samples=samples).read_text(encoding="utf-8")
        assert [sample["label"] for sample in embedded(page, "sample-images")] == labels
        assert ('id="samples"' in page) == bool(labels)


def test_a_page_is_translated_with_its_weights_and_samples(checkpoint, large_images, tmp_path):
    page = export(checkpoint, large_images, tmp_path / "net.html")
    english = page.read_text(encoding="utf-8")
    (tmp_path / "zh").mkdir()
    translate_page(page, tmp_path / "zh" / "net.html", "zh")
    assert (tmp_path / "zh" / "net.html").read_text(encoding="utf-8") == export(
        checkpoint, large_images, page, lang="zh"
    ).read_text(encoding="utf-8")
    translate_page(tmp_path / "zh" / "net.html", page, "en")
    assert page.read_text(encoding="utf-8") == english


def test_class_names_cannot_leave_their_script(tmp_path):
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", make_confident_model(), NASTY, EvalTransform(32))
    shown = load(tmp_path / "run", device="cpu").classes
    page = export(tmp_path / "run", None, tmp_path / "<script>&.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    assert "<title>&lt;script&gt;&amp;</title>" in page
    assert embedded(page, "network")["classes"] == list(shown)
    assert embedded(page, "sample-images") == []


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_unchecked_file_says_so(checkpoint, large_images, tmp_path, capsys, lang):
    out = tmp_path / "net.html"
    arguments = [str(checkpoint), "web", "--images", str(large_images), "--out", str(out), "--no-parity"]
    assert run(["export", *arguments, "--lang", lang, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["precision"], found["images"], found["max_abs_diff"]) == ("web", "int8-fc", 0, None)
    assert found["size"] == out.stat().st_size
    page, manifest = out.read_text(encoding="utf-8"), json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    assert (manifest["checked"], manifest["parity"], embedded(page, "network")["checked"]) == (False, None, False)
    assert {"en": "Unchecked:", "zh": "未经核对："}[lang] in page
    assert f'<html lang="{ {"en": "en", "zh": "zh-CN"}[lang] }">' in page


def test_without_a_browser_it_says_what_to_install(checkpoint, large_images, tmp_path, monkeypatch, capsys):
    arguments = ["export", str(checkpoint), "web", "--images", str(large_images), "--out", str(tmp_path / "net.html")]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(browser, "_APPLICATIONS", {})
    assert run(arguments) == 2
    assert "Chromium" in (error := capsys.readouterr().err)
    assert "--no-parity" in error
    monkeypatch.setattr(browser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'alexnet\[web\]', or write the file unchecked"):
        browser.find_browser()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["web", "--half"], "web does not support half"),
        (["web", "--quantize", "int8"], "web does not support int8;"),
        (["onnx", "--lang", "zh"], "--lang is the language of the format web"),
        (["onnx", "--no-parity"], "--no-parity is for the format web"),
        (["onnx", "--samples", "none"], "--samples is for the format web"),
        (["web", "--samples", "nowhere", "--no-parity"], "--samples nowhere is not a folder"),
        (["onnx", "--fp32", "--half"], "--fp32 keeps all weights"),
        (["web", "--out", "net.htm"], "must end in .html"),
    ],
)
def test_flags_of_other_formats_are_refused(checkpoint, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("alexnet.export.export.find_browser", lambda: None)
    assert run(["export", str(checkpoint), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_networks_that_a_page_cannot_compute_are_refused(tmp_path):
    for name, (model, preprocess, message) in {
        "resnet": (create_model("torchvision/resnet18", 3, image_size=64), EvalTransform(64), "AlexNets only"),
        "deep": (make_confident_model(), EvalTransform(32, value_range=(0, 4095)), "more than 8 bits"),
    }.items():
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, model, CLASS_NAMES, preprocess)
        with pytest.raises(UserError, match=message):
            export(tmp_path / name, None, tmp_path / "net.html")
    assert not (tmp_path / "net.html").exists()


def test_other_commands_do_not_open_a_page(checkpoint, tmp_path):
    out = export(checkpoint, None, tmp_path / "net.html")
    with pytest.raises(UserError, match=r"net\.html runs in a browser"):
        load(out)
