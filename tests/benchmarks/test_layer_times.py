"""benchmarks/layers.py counts what each layer does, and draws the roofline."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from alexnet.models.architectures import architecture
from alexnet.models.model import build
from alexnet.models.summary import summarize

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from layers import count_operations, draw_roofline, layer_work


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
