"""The scripts in benchmarks/: what they count, read, draw and refuse."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.errors import UserError
from alexnet.models.architectures import architecture
from alexnet.models.model import build
from alexnet.models.summary import summarize
from alexnet.training.api import train

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import tower_colors
from curve import main as curve
from endurance import find_problem
from layers import count_operations, draw_roofline, layer_work
from memory import in_fresh_process

# ── curve.py: accuracies of runs and of tutorial loops ────────────────────────────────────────────


def test_runs_and_tutorials_become_one_plot(tmp_path, small_run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["curve.py"])  # recorded in the results
    tutorial = tmp_path / "plain.json"
    rows = [{"epoch": 1, "seconds": 10.0, "top1": 0.5, "images": 3}, {"epoch": 2, "seconds": 21.0, "top1": 0.6}]
    tutorial.write_text(json.dumps({"results": {"curve": rows}}))
    curve([f"ours={small_run}", f"ours={small_run}/metrics.jsonl", f"plain={tutorial}", "--out", str(tmp_path)])
    curves = json.loads((tmp_path / "accuracy-against-time.json").read_text())["results"]["curves"]
    assert curves["plain"] == [[{k: row[k] for k in ("epoch", "seconds", "top1")} for row in rows]]
    first, second = curves["ours"]
    assert first == second
    metrics = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert first[-1]["seconds"] == pytest.approx(sum(row["seconds"] for row in metrics))
    assert [p["top1"] for p in first] == [row["top1"] for row in metrics]
    assert {"accuracy-against-time.svg", "accuracy-against-time.png"} < {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("argument", ["name", "a=other.json", "a=nothing"])
def test_invalid_arguments_are_refused(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not NAME=PATH|holds no accuracies"):
        curve([argument, "--out", "out"])
    assert not Path("out").exists()


# ── endurance.py: fails on growing memory or files, but not on expected growth ────────────────────


def samples(epochs: int, memory: float, files: float) -> list[dict[str, float]]:
    """Forty samples, with so many KiB and files more per epoch; every third one sees a checkpoint being written."""
    return [
        {
            "epoch": e,
            "resident": 9e8,
            "own": 5e8 + 1024 * memory * e,
            "bytes": 2e6,
            "files": 16 + files * e + 3 * (e % 3),
        }
        for e in range(1, epochs + 1, epochs // 40)
    ]


@pytest.mark.parametrize(
    ("epochs", "memory", "files", "message"),
    [
        (2000, 2, 0, None),
        (2000, 400, 0, "Memory grows: 400.00 KiB per epoch; at most 8"),
        (2000, 2, 1, "Files grow"),
        (2000, 2, 0.02, "Files grow"),
        (100, 400, 0, None),
        (100, 2, 1, "Files grow"),
    ],
)
def test_growth_is_reported(epochs, memory, files, message):
    problem = find_problem(samples(epochs, memory, files), epochs)
    assert (problem is None) == (message is None)
    assert (problem or "").startswith(message or "")


# ── layers.py: counts what each layer does, and draws the roofline ────────────────────────────────


def test_operation_counts_equal_torchs():
    from torch.utils.flop_counter import FlopCounterMode

    spec = architecture("cifar")
    model, x = build(spec), torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * sum(count_operations(r) for r in summarize(spec).rows if r.macs)


def test_layer_work_matches_the_model():
    torch.manual_seed(0)
    spec = architecture("cifar-towers", width=0.25)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        measured = layer_work(spec, x)
        outputs = {name: work.call() for name, (work, _) in measured.items()}
    rows = {row.name: row for row in summarize(spec).rows}
    assert set(measured) == {name for name, row in rows.items() if row.kind not in ("flatten", "dropout")}
    assert all(tuple(y.shape[1:]) == rows[name].output for name, y in outputs.items())
    conv1 = rows["conv1"]
    moved = 4 * (x.numel() + 2 * math.prod(conv1.output) + conv1.parameters)
    assert measured["conv1"][1] == pytest.approx(2 * 2 * conv1.macs / moved)


def test_roofline_without_all_precisions(tmp_path):
    limits = {"copy_gb_s": 10.0, "matmul_fp32_gflop_s": 100.0}
    row = {"name": "conv1", "type": "conv", "arch": "cifar", "batch_size": 2, "precision": "fp32",
           "operations_per_byte": 50.0, "gflop_s": 60.0}  # fmt: skip
    files = draw_roofline({"limits": limits, "layers": [row, {**row, "name": "relu1", "type": "relu"}]}, tmp_path)
    assert [path.name for path in files] == ["roofline.svg", "roofline.png"]
    assert "conv1" in files[0].read_text() or files[0].stat().st_size > 1000


# ── memory.py: peaks of fresh processes include what training and prediction keep ─────────────────


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report peak memory")
def test_training_memory_includes_weights_gradients_and_momentum():
    weights = 4 * summarize(architecture("cifar")).parameters
    train, predict = (in_fresh_process("--task", task, "cifar") for task in ("train", "predict"))
    assert 3 * weights < train < 8 * weights
    assert weights < predict < train


# ── tower_colors.py: color in one tower and gray in the other, or the same in both ────────────────


def kernels(gray: int, colored: int) -> np.ndarray:
    """Return made-up kernels, (gray + colored, 3, 5, 5): some equal in R, G and B but for a little noise."""
    draw = np.random.default_rng(0)
    plain = np.repeat(draw.normal(size=(gray, 1, 5, 5)), 3, axis=1) + draw.normal(0, 0.1, (gray, 3, 5, 5))
    return np.concatenate([plain, draw.normal(size=(colored, 3, 5, 5))])


@pytest.mark.parametrize(("rgb", "index"), [((2, 2, 2), 0), ((1, -1, 0), 1), ((0, 3, 0), 2 / 3)])
def test_color_index_is_the_share_off_the_gray_axis(rgb, index):
    kernel = np.array(rgb, dtype=np.float32)[None, :, None, None] * np.arange(1, 10).reshape(3, 3)
    assert tower_colors.color_index(kernel) == pytest.approx([index], abs=1e-6)
    with pytest.raises(UserError, match="Kernel 0 of conv1 is zero"):
        tower_colors.color_index(0 * kernel)


def test_towers_that_specialize_differ_and_mixed_ones_do_not():
    specialized = tower_colors.compare_halves(tower_colors.color_index(kernels(12, 12)))
    gray, colored = specialized["means"]
    assert gray < 0.1 < 0.5 < colored
    assert specialized["difference"] == pytest.approx(colored - gray)
    assert specialized["p"] < 1e-4 < specialized["of_random_halves"] < specialized["difference"]
    mixed = np.concatenate([kernels(6, 6), kernels(6, 6)[::-1]])
    assert tower_colors.compare_halves(tower_colors.color_index(mixed))["p"] > 0.9
    few = tower_colors.compare_halves(tower_colors.color_index(kernels(6, 6)))
    assert few["p"] == pytest.approx(2 / math.comb(12, 6))  # exact: this split and the one with the halves exchanged


@pytest.mark.parametrize(
    ("trained", "initial", "untowered", "expected"),
    [
        ([0.01] * 5, [0.5] * 5, [0.5] * 5, "supports"),
        ([0.01] * 5, [0.5] * 5, [], "leans"),  # no networks without towers
        ([0.01] * 4, [0.5] * 4, [0.5] * 5, "leans"),  # too few runs
        ([0.001] * 4 + [0.2], [0.5] * 5, [0.5] * 5, "leans"),  # the paper says: in every run
        ([0.5] * 5, [0.5] * 5, [0.5] * 5, "cannot tell"),
        ([0.01] * 5, [0.01] * 5, [0.5] * 5, "cannot tell"),  # the control differs, too
        ([0.01] * 5, [0.5] * 5, [0.01] * 5, "cannot tell"),
    ],
)
def test_verdict_on_the_towers(trained, initial, untowered, expected):
    runs = []
    for groups in (
        [(tower_colors.TRAINED, trained), (tower_colors.INITIAL, initial)],
        [(tower_colors.UNTOWERED, untowered)],
    ):
        runs += [{name: {"seed": seed, "p": ps[seed]} for name, ps in groups} for seed in range(len(groups[0][1]))]
    found = tower_colors.combine(runs)
    assert found["verdict"] == expected
    assert found["groups"][tower_colors.TRAINED]["significant"] == sum(p < 0.05 for p in trained)
    assert len(found["groups"][tower_colors.UNTOWERED]["runs"]) == len(untowered)
    with pytest.raises(UserError, match="same seed"):
        tower_colors.combine([*runs, runs[0]])


@pytest.mark.slow
def test_towers_of_runs(tmp_path, image_folder, small_run, monkeypatch):
    settings = {"arch": "cifar-towers", "image_size": 32, "width": 0.25, "batch_size": 8, "limit_steps": 1, "lr": 1e-9}
    run = Path(train("folder", data=image_folder, out=tmp_path / "run", seed=3, **settings).run)
    with pytest.raises(UserError, match="has not learned"):
        tower_colors.measure(run)
    monkeypatch.setattr(tower_colors, "LEARNED_SHARE", -1)
    monkeypatch.setattr(sys, "argv", ["tower_colors.py"])  # recorded in the results
    tower_colors.main([str(run), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results" / "tower-colors.json").read_text())["results"]["groups"]
    (trained,), (initial,) = (found[name]["runs"] for name in (tower_colors.TRAINED, tower_colors.INITIAL))
    assert trained["seed"] == 3
    assert trained["colors"] == pytest.approx(initial["colors"], abs=1e-4)  # what that training began with
    assert found[tower_colors.UNTOWERED] == {"significant": 0, "p": None, "runs": []}
    assert (tmp_path / "img" / "tower-colors.svg").is_file()
    (run / "recipe.json").rename(tmp_path / "recipe.json")
    with pytest.raises(SystemExit, match="is not a run folder"):
        tower_colors.main([str(run)])
    with pytest.raises(UserError, match="no AlexNet with an even number of kernels on RGB"):
        tower_colors.measure(small_run)
