import pytest
import torch

from alexnet.report.run_data import read_run_data
from fake_run import make_fake_run


def test_run_data_reads_predictions_and_splits(tmp_path):
    data = read_run_data(make_fake_run(tmp_path / "run", classes=4, per_class=10, accuracy=0.8))
    assert data.split == "test"
    assert data.classes == ("class 0", "class 1", "class 2", "class 3")
    assert data.metrics["top1"] == pytest.approx(0.8)
    softmax = torch.tensor(data.predictions.logits).softmax(1)
    assert data.predictions.confidence == pytest.approx(softmax.amax(1).numpy())
    assert data.training_images == 640  # ten steps of 64
    data.run.split_csv.write_text("name,split\na.jpg,train\nb.jpg,val\nc.jpg,train\n")
    data = read_run_data(data.run)
    assert data.split_counts == {"train": 2, "val": 1}
    assert data.training_images == 2


def test_missing_or_damaged_files_are_none(tmp_path):
    run = make_fake_run(tmp_path / "run")
    (run.path / "evaluation" / "test.parquet").write_bytes(b"PAR1 not really")
    (run.path / "env.json").write_text("{")
    (run.path / "best").write_text("00000099\n")
    data = read_run_data(run)
    assert (data.predictions, data.metrics, data.env, data.classes) == (None, None, {}, ())
    assert (data.training_warnings, data.data_warnings) == ([], [])
    (run.path / "alarms.json").write_text("[1]")
    (run.path / "check.json").write_text("[")
    assert (data.training_warnings, data.data_warnings) == ([], [])
