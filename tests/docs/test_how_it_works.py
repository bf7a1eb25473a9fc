"""The tables, numbers and figures of docs/how-it-works.md, in both languages, match the code."""

from __future__ import annotations

import importlib.util
import math
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from alexnet.cli import COMMANDS, run
from alexnet.models.architectures import ARCHITECTURES, CODE_LRN, PAPER_LRN
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.spec import layers
from alexnet.models.summary import summarize

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("how-it-works.md", "how-it-works.zh-CN.md")
pages = pytest.mark.parametrize("page", PAGES)
PAPER = {row.name: row for row in summarize(ARCHITECTURES["paper"]).rows}


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def tables(page: str) -> list[dict[str, list[str]]]:
    """Return the tables of the page (sizes, LRN, towers, parameters, updates), each as rows by their first cell."""
    blocks = re.findall(r"(?:^\|.*\n)+", text(page), re.M)
    assert len(blocks) == 5
    result = []
    for block in blocks:
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        result.append({row[0]: row[1:] for row in cells[2:]})
    return result


def number(cell: str) -> float:
    return float(cell.replace(",", "").replace("%", ""))


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pages
def test_output_sizes(page: str) -> None:
    table = tables(page)[0]
    before: tuple[int, ...] = (3, 224, 224)
    for layer in layers(ARCHITECTURES["paper"]):
        if layer.kind not in ("conv", "maxpool", "linear"):
            continue
        input_, kernel, stride, padding, calculation, output = table[layer.name]
        if layer.kind == "linear":
            assert (input_, output) == (str(layer.input[0]), str(layer.output[0]))
            continue
        total = layer.input[1] - before[1] + 2 * layer.padding  # pad1, and the padding on both sides
        assert input_ == "×".join(map(str, before))
        assert (kernel, stride, padding) == (str(layer.kernel), str(layer.stride), str(total))
        a, b, c, d, e = map(int, re.fullmatch(r"\((\d+) \+ (\d+) − (\d+)\) / (\d+) \+ (\d)", calculation).groups())
        assert (a, b, c, d, e) == (before[1], total, layer.kernel, layer.stride, 1)
        assert (a + b - c) % d == 0
        assert output == "×".join(map(str, layer.output))
        assert layer.output[1] == (a + b - c) // d + e
        before = layer.output
    assert math.prod(before) == 9216


@pages
def test_parameters_and_macs(page: str) -> None:
    summary, table = summarize(ARCHITECTURES["paper"]), tables(page)[3]
    *names, last = table
    assert names == [row.name for row in summary.rows if row.parameters]
    totals = np.zeros(2)
    for name in names:
        weights, biases, parameters, share, macs, macs_share = table[name]
        row = PAPER[name]
        product, weights = weights.split(" = ")
        assert math.prod(map(int, product.split("·"))) == number(weights)
        assert number(weights) + number(biases) == number(parameters) == row.parameters
        assert number(macs) == row.macs
        assert (share, macs_share) == (
            f"{100 * row.parameters / summary.parameters:.1f} %",
            f"{100 * row.macs / summary.macs:.1f} %",
        )
        totals += number(weights), number(biases)
    assert [number(table[last][i]) for i in (0, 1, 2, 4)] == [*totals, summary.parameters, summary.macs]
    dense = [PAPER[name] for name in ("fc6", "fc7", "fc8")]
    assert f"{sum(row.parameters / summary.parameters for row in dense):.1%}".replace("%", " %") in text(page)
    assert f"{sum(row.macs / summary.macs for row in dense):.1%}".replace("%", " %") in text(page)
    neurons = sum(math.prod(row.output) for row in summary.rows if row.parameters)
    assert f"{neurons:,}" in text(page)


@pages
def test_towers(page: str) -> None:
    table = tables(page)[2]
    merged = {row.name: row for row in summarize(ARCHITECTURES["one-tower"]).rows}
    for name in ("conv2", "conv4", "conv5"):
        assert [number(cell) for cell in table[name]] == [
            PAPER[name].parameters,
            merged[name].parameters,
        ]
    both = [summarize(ARCHITECTURES[name]) for name in ("paper", "one-tower")]
    assert [[number(cell) for cell in row] for row in list(table.values())[-2:]] == [
        [s.parameters for s in both],
        [s.macs for s in both],
    ]


@pages
def test_lrn(page: str, figures: ModuleType) -> None:
    before, after = ([number(cell) for cell in row] for row in tables(page)[1].values())
    assert before == figures.LRN_EXAMPLE.tolist()
    lrn = LocalResponseNorm(CODE_LRN.size, CODE_LRN.alpha, CODE_LRN.beta, CODE_LRN.k)
    assert after == [round(v, 1) for v in lrn(figures.LRN_EXAMPLE[None, :, None]).flatten().tolist()]
    alone = torch.arange(0, 801.0)[:, None, None]
    peaks = [int(LocalResponseNorm(5, c.alpha, c.beta, c.k)(alone).argmax()) for c in (PAPER_LRN, CODE_LRN)]
    assert peaks == [200, 447]
    assert all(f"{peak}" in text(page) for peak in peaks)
    assert round(2**-0.75, 2) == 0.59


@pages
def test_learning_rate_inside_the_velocity(page: str) -> None:
    w = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    velocity, changes = 0.0, []
    for step in range(1, 344):
        rate = 1.0 if step <= 300 else 0.1
        velocity = 0.9 * velocity + rate
        before = float(w.detach())
        optimizer.param_groups[0]["lr"] = rate
        w.grad = torch.ones(1)
        optimizer.step()
        changes.append((velocity, before - float(w.detach())))
    assert changes[299] == pytest.approx((10, 10), abs=1e-2)
    for i, row in enumerate(tables(page)[4].values()):
        assert [number(cell) for cell in row] == pytest.approx([c[i] for c in changes[300:306]], abs=0.006)
    assert changes[341][0] - 1 > 0.1 > changes[342][0] - 1 > 0.09


@pages
def test_numbers_of_the_text(page: str, figures: ModuleType) -> None:
    content = text(page)
    fields = [PAPER[name].receptive_field for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")]
    assert fields == [11, 51, 99, 131, 163, 195]
    assert all(str(field) in content for field in fields)
    assert (224 - 11) / 4 == 53.25
    x = torch.tensor([0.0, 3.0], requires_grad=True)
    slopes = [torch.autograd.grad(f(x).sum(), x)[0].tolist() for f in (torch.sigmoid, torch.tanh)]
    assert (slopes[0][0], slopes[1][0], round(slopes[1][1], 4)) == (0.25, 1.0, 0.0099)
    assert f"{math.log(1000):.3f}" in content
    assert f"{math.log(10):.3f}" in content
    assert 33 * 33 * 2 == 2178
    noise = 0.1 * np.sqrt(((figures.PCA_DIRECTIONS * figures.PCA_STDS) ** 2).sum(1))
    assert [f"{level:.1f}" for level in noise] == ["7.4", "7.2", "7.7"]
    np.testing.assert_allclose(figures.PCA_DIRECTIONS.T @ figures.PCA_DIRECTIONS, np.eye(3), atol=2e-4)
    for value in ("0.0099", "2178", "7.4", "7.2", "7.7", "121.8", "37.1", "19.7", "53.25"):
        assert value in content
    recipes = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert all(measured in recipes and measured in content for measured in ("79.82", "81.59"))


@pages
def test_commands_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", text(page), re.S)
    lines = [shlex.split(line.split("#")[0])[1:] for line in block.splitlines()]
    for command, *rest in lines:
        assert command in COMMANDS
        assert run([command, "--help"]) == 0
        usage = capsys.readouterr().out
        assert all(word in usage for word in rest if word.startswith("--"))


def test_both_pages_have_the_same_numbers() -> None:
    """Tables have the same numbers, cell by cell, and the images are the same."""
    english, chinese = ([line for line in text(page).splitlines() if line[:1] == "|"] for page in PAGES)
    assert len(english) == len(chinese)
    for a, b in zip(english, chinese, strict=True):
        assert re.findall(r"[\d,.×·+−/=]+\d", a) == re.findall(r"[\d,.×·+−/=]+\d", b)
    english_images, chinese_images = (re.findall(r"\(img/([\w.-]+)\)", text(page)) for page in PAGES)
    assert english_images == chinese_images


@pytest.mark.slow
def test_figures_are_used_and_small(tmp_path: Path, figures: ModuleType) -> None:
    used = set(re.findall(r"\(img/([\w.-]+)\)", text(PAGES[0])))
    assert set(figures.FIGURES) == {name for name in used if not name.startswith("show-")}  # drawn by `alexnet show`
    assert all((DOCS / "img" / name).stat().st_size < 150_000 for name in used)
    figures.save_figures(
        tmp_path,
        {name: figures.FIGURES[name] for name in ("parameters-and-macs.svg", "pca-noise.png")},
    )
    assert "<svg" in (tmp_path / "parameters-and-macs.svg").read_text(encoding="utf-8")
    assert (tmp_path / "pca-noise.png").read_bytes()[:4] == b"\x89PNG"


def test_learning_rate_figure_shows_run_145(figures: ModuleType) -> None:
    drops = [epoch for epoch in figures.RATES["weights"] if epoch > 1]
    assert drops == [25, 51, 79]
    assert "drops came at epochs 25, 51 and 79" in " ".join(text(PAGES[0]).split())
    assert figures.RATES["weights of conv1"] == {1: 1e-2, 25: 1e-3, 51: 1e-4, 67: 1e-5, 72: 0.0}
    assert figures.RATES["biases"] == {1: 2e-2}
    assert figures.NOISE_OFF == 67
