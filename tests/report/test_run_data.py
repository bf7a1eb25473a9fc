import pytest
import torch

from alexnet.report.run_data import read_run_data
from fake_run import make_fake_run


def test_what_a_run_tells(tmp_path):
    facts = read_run_data(make_fake_run(tmp_path / "run", classes=4, per_class=10, accuracy=0.8))
    assert facts.split == "test"
    assert facts.classes == ("class 0", "class 1", "class 2", "class 3")
    assert facts.figures["top1"] == pytest.approx(0.8)
    assert facts.answers.sure == pytest.approx(torch.tensor(facts.answers.logits).softmax(1).amax(1).numpy())
    assert facts.training_pictures == 640  # ten steps of 64
    facts.run.split_csv.write_text("name,split\na.jpg,train\nb.jpg,val\nc.jpg,train\n")
    again = read_run_data(facts.run)
    assert again.split_counts == {"train": 2, "val": 1}
    assert again.training_pictures == 2


def test_a_missing_or_damaged_part_is_none(tmp_path):
    run = make_fake_run(tmp_path / "run")
    (run.path / "evaluation" / "test.parquet").write_bytes(b"PAR1 not really")
    (run.path / "env.json").write_text("{")
    (run.path / "best").write_text("00000099\n")
    facts = read_run_data(run)
    assert (facts.answers, facts.figures, facts.env, facts.classes) == (None, None, {}, ())
    assert facts.stored("alarms.json") is None
