"""`alexnet bench`: timings, its document, shares of limits, bad input, low memory, and the engines."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from alexnet.bench import bench as measurements
from alexnet.bench import limits
from alexnet.bench.bench import (
    BATCHES,
    PARTS,
    Bench,
    bench,
    number_format_of,
    synthetic_step,
    training_operations,
    weight_bytes,
)
from alexnet.bench.limits import Work, copy_work, make_photo, matmul_work, measure_rates, time_interleaved
from alexnet.cli import run
from alexnet.device import Precision, cache_dir
from alexnet.errors import UserError
from alexnet.models.architectures import architecture
from alexnet.models.model import build
from alexnet.models.summary import summarize
from alexnet.training.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Sizes at which everything takes seconds."""
    monkeypatch.setattr(measurements, "LRN_SHAPES", ((2, 6, 5, 5),))
    monkeypatch.setattr(limits, "MATMUL_SECONDS", 0.001)
    monkeypatch.setitem(limits.COPY_BYTES, "cpu", 1 << 20)


def test_operation_counts_equal_torchs():
    from torch.utils.flop_counter import FlopCounterMode

    spec = architecture("cifar")  # torch overcounts the backward pass of groups
    model, x = build(spec), torch.zeros(2, 3, 32, 32)  # no gradient for the image, as in training
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert counter.get_total_flops() == 2 * training_operations(spec)


def test_rates_are_ordered_and_scale():
    measured = measure_rates({"a": Work(lambda: None, 1), "b": Work(lambda: None, 5)}, 0.01, CPU)
    assert all(0 < r.low <= r.median <= r.high for r in measured.values())
    assert (measured["a"] * 3).median == 3 * measured["a"].median


def test_limits_perform_the_operations_they_count(monkeypatch):
    monkeypatch.setitem(limits.COPY_BYTES, "cpu", 1 << 16)
    copied = copy_work(CPU)
    assert copied.amount == 2 << 16
    assert (copied.call() == 1).all()
    monkeypatch.setitem(limits.LARGEST_MATRIX, "cpu", 256)
    product = matmul_work("fp32", CPU)
    assert product.amount <= 2 * 256**3
    assert 2 * product.call().shape[0] ** 3 == product.amount


def test_an_unsupported_precision_has_no_limit(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(torch, "mm", refuse)
    assert matmul_work("fp16", CPU) is None


def test_the_photo_is_reproducible_and_realistic():
    from alexnet.data.decode import decode_image

    file = make_photo(1)
    make_photo.cache_clear()
    assert file == make_photo(1)
    assert 90_000 < len(file) < 150_000
    assert decode_image(file).size == (500, 375)


@pytest.mark.slow
def test_json_has_a_row_per_measurement(small, capsys, tmp_path, monkeypatch):
    kinds = {name: kind for name, kind in measurements.KINDS.items() if not kind.format or name == "onnxruntime"}
    monkeypatch.setattr(measurements, "KINDS", kinds)  # test_all_engines_agree converts to the others
    arguments = ["--arch", "lenet", "cifar-towers", "--batch-size", "2", "--seconds", "0.01"]
    assert run(["bench", *PARTS, *arguments, "--json", "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {"copy_gb_s", "matmul_fp32_gflop_s", "matmul_bf16_gflop_s"} <= set(found["limits"])
    assert set(PARTS) <= set(found)
    for row in (*found["train"], *found["predict"]):
        assert {"arch", "image_size", "precision", "batch_size", "images_per_second", "share_of_limit"} <= set(row)
        assert row["low"] <= row["images_per_second"] <= row["high"]
    assert {row["batch_size"] for row in found["predict"]} == {1, 2}
    assert all("engine" in row for row in found["predict"])
    assert len(found["lrn"]) == 2
    for part in ("lrn", "data"):
        assert all(row["name"] and ("ms" in row or "images_per_second" in row) for row in found[part])
        assert all(math.isfinite(row["share_of_limit"]) and row["share_of_limit"] > 0 for row in found[part])
    for row in found["train"]:
        speed = row["images_per_second"] * training_operations(architecture(row["arch"])) / 1e9
        assert row["gflop_s"] == pytest.approx(speed)
        assert row["share_of_limit"] == pytest.approx(row["gflop_s"] / row["limit_gflop_s"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == found
    assert "training cifar-towers" in err


def test_tables_are_printed(small, capsys):
    assert run(["bench", "limits", "lrn", "data", "--seconds", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "matmul_fp32_gflop_s" in out
    assert "2×6×5×5 channels_last" in out
    assert "training crop of 224 from JPEG" in out
    assert "train " not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predcit"], "There is no part of the bench 'predcit'; did you mean 'predict'?"),
        (["--arch", "papr"], "did you mean 'paper' or 'paper-six'?"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0."),
        (["--seconds", "0"], "must be above 0, not 0."),
        (["--seconds", "nan"], "must be above 0, not nan."),
        (["--out", "file/in"], "The folder file/in cannot be written"),
    ],
)
def test_invalid_arguments_are_refused(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_batches_shrink_when_memory_is_short(small, monkeypatch):
    messages = []
    weights = 4 * summarize(architecture("cifar")).parameters
    monkeypatch.setattr(limits, "free_device_memory", lambda device: 6 * weights)
    found = bench(["train"], archs=["cifar"], batch_size=1 << 20, seconds=0.01, log=messages.append)
    (row,) = found["train"]
    assert 1 <= row["batch_size"] < 1 << 20
    (note,) = found["notes"]
    assert note in messages
    assert note == (
        f"training cifar with batch {row['batch_size']} instead of 1048576: {6 * weights / 2**30:.1f} GiB of "
        "memory are free"
    )
    monkeypatch.setattr(limits, "free_device_memory", lambda device: 4 * weights)
    found = bench(["train"], archs=["cifar"], batch_size=1, seconds=0.01)
    assert found["train"] == []
    assert "training cifar skipped" in found["notes"][0]


@pytest.mark.slow
def test_all_engines_agree_and_leave_no_files():
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    measured = Bench(CPU, Precision("bf16", ""), 3, 0.01, str)
    with measured.open_engines(architecture("lenet"), convert=True, calibrate=False) as opened:
        assert {"exact", "torch-bf16", "onnxruntime", "openvino", "openvino-int8-fc"} <= set(opened)
        expected = opened["exact"].logits(images)
        for name, engine in opened.items():
            tolerance = 1e-4 if number_format_of(name) == "fp32" else 0.05
            np.testing.assert_allclose(engine.logits(images), expected, atol=tolerance)
    assert any("openvino-int8 skipped" in note for note in measured.notes)
    assert not list((cache_dir() / "engines").glob("bench-*"))


def test_weight_bytes_per_engine():
    spec = architecture("lenet")
    rows = summarize(spec).rows
    fc = sum(row.parameters for row in rows if row.kind == "linear")
    total = summarize(spec).parameters
    assert weight_bytes("exact", spec) == weight_bytes("openvino", spec) == 4 * total
    assert weight_bytes("torch-bf16", spec) == 2 * total
    assert weight_bytes("openvino-int8-fc", spec) == 4 * (total - fc) + fc
    assert weight_bytes("onnxruntime-int8", spec) == total


# ── the synthetic step is the trainer's: it updates all weights, and refuses what `train` refuses ─


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("cifar", {"norm": "batch", "width": 0.125}),
        ("lenet", {}),
        pytest.param("torchvision/resnet18", {}, marks=pytest.mark.slow),
    ],
)
def test_every_call_takes_one_step(arch, settings, monkeypatch):
    steps = []
    call = TrainStep.__call__

    def record(self, batch, epoch, number, hyperparameters):
        before = [p.detach().clone() for p in self.model.parameters()]
        result = call(self, batch, epoch, number, hyperparameters)
        changed = [not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True)]
        steps.append((number, epoch, tuple(batch.images.shape[:2]), all(changed)))
        return result

    monkeypatch.setattr(TrainStep, "__call__", record)
    step = synthetic_step(arch, image_size=32, batch_size=4, precision="fp32", num_classes=3, settings=settings)
    for _ in range(BATCHES + 2):
        step()
    assert [s[0] for s in steps] == list(range(BATCHES + 2))
    assert {s[1] for s in steps} == {0, 1}
    assert all(s[2] == (4, 1 if arch == "lenet" else 3) and s[3] for s in steps)


def test_invalid_sizes_are_refused():
    with pytest.raises(UserError, match="too small"):
        synthetic_step("torchvision", image_size=32, batch_size=2)
    with pytest.raises(UserError, match="--batch-size must be greater than 0"):
        synthetic_step("cifar", batch_size=0)


# ── timings ───────────────────────────────────────────────────────────────────────────────────────


def test_calls_are_interleaved_and_the_warmup_not_counted():
    calls: list[str] = []
    timings = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, tries=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: t.tries for name, t in timings.items()} == {"a": 3, "b": 3}
    assert all(0 <= t.low <= t.median <= t.high for t in timings.values())


def test_a_time_limit_leaves_at_least_three_tries():
    assert time_interleaved({"a": lambda: None}, tries=1000, seconds=0.0)["a"].tries == 3


def test_waits_before_reading_the_clock():
    log: list[str] = []
    time_interleaved({"a": lambda: log.append("work")}, tries=1, warmup=0, wait=lambda: log.append("wait"))
    assert log == ["wait", "work", "wait"]
