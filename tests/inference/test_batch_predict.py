"""Predictions for many images as a table, and resuming an interrupted one."""

import csv
import json

import pytest
from pyarrow import parquet

from alexnet.cli import run
from alexnet.data.image_folder import find_images
from alexnet.errors import UserError
from alexnet.inference.batch_predict import WriteFailed, write_predictions
from alexnet.inference.predict import Prediction
from helpers import make_image_folder

SETTINGS = {"networks": ["x"], "engine": "exact"}


class RecordingClassifier:
    """Predicts the same for every image and records them; is interrupted after `limit`."""

    def __init__(self, limit=1000):
        self.predicted, self.limit = [], limit

    def predict_many(self, images, top, views, scales):
        for path in images:
            if len(self.predicted) == self.limit:
                raise KeyboardInterrupt
            self.predicted.append(path)
            if path.stem == "3":
                yield Prediction(str(path), error="it is truncated")
            else:
                yield Prediction(str(path), (("a", 0.75), ("b", 0.25))[:top])


@pytest.fixture
def images(tmp_path):
    return find_images([make_image_folder(tmp_path / "images", ("a", "b"), 5)])


def test_three_formats_hold_the_same_rows(images, tmp_path):
    written = [
        write_predictions(RecordingClassifier(), images, tmp_path / f"x.{suffix}", SETTINGS, top=2)
        for suffix in ("csv", "parquet", "jsonl")
    ]
    assert [(w.images, w.errors, w.resumed) for w in written] == [(10, 2, 0)] * 3
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    rows = list(csv.DictReader((tmp_path / "x.csv").open(encoding="utf-8-sig")))
    assert (
        [x["path"] for x in lines] == [x["path"] for x in table] == [x["path"] for x in rows] == list(map(str, images))
    )
    assert table[0]["labels"] == [{"label": "a", "p": 0.75}, {"label": "b", "p": 0.25}]
    assert lines[0]["labels"] == [{**label, "confidence": label["p"]} for label in table[0]["labels"]]
    assert (rows[0]["label1"], float(rows[0]["p1"]), rows[0]["label2"], rows[0]["error"]) == ("a", 0.75, "b", "")
    assert rows[3]["error"] == table[3]["error"] == lines[3]["error"] == "it is truncated"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "x.csv", "x.jsonl", "x.parquet"]


@pytest.mark.parametrize("damage", [b"", b'{"path": "half a li', b'{"half": \n', b"5\n", b'{"path": "x"}\n', b"\xff\n"])
def test_resumes_where_it_stopped(images, tmp_path, damage):
    out = tmp_path / "x.csv"
    with pytest.raises(KeyboardInterrupt):
        write_predictions(RecordingClassifier(4), images, out, SETTINGS, top=2)
    assert not out.exists()
    part = tmp_path / "x.csv.part"
    part.write_bytes(part.read_bytes() + damage)
    second = RecordingClassifier()
    found = write_predictions(second, images, out, SETTINGS, top=2)
    assert second.predicted == images[4:]
    assert (found.images, found.errors, found.resumed) == (10, 2, 4)
    write_predictions(RecordingClassifier(), images, tmp_path / "complete.csv", SETTINGS, top=2)
    assert out.read_bytes() == (tmp_path / "complete.csv").read_bytes()
    assert not part.exists()


def test_does_not_resume_with_other_settings_or_images(images, tmp_path):
    out = tmp_path / "x.csv"
    with pytest.raises(KeyboardInterrupt):
        write_predictions(RecordingClassifier(4), images, out, SETTINGS)
    before = (tmp_path / "x.csv.part").read_bytes()
    with pytest.raises(UserError, match="another network or with other settings"):
        write_predictions(RecordingClassifier(), images, out, {**SETTINGS, "networks": ["y"]})
    with pytest.raises(UserError, match="another network or with other settings"):
        write_predictions(RecordingClassifier(), images, out, SETTINGS, top=3)
    with pytest.raises(UserError, match="holds predictions for other images"):
        write_predictions(RecordingClassifier(), images[1:], out, SETTINGS)
    assert (tmp_path / "x.csv.part").read_bytes() == before


@pytest.mark.parametrize("flags", [["--top", "0"], ["--crops", "3"], ["--scales", "9"]])
def test_invalid_flags_leave_no_file(small_run, images, tmp_path, capsys, flags):
    arguments = ["predict", str(small_run), str(tmp_path / "images"), "--out", str(tmp_path / "x.csv")]
    assert run([*arguments, *flags]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert run(arguments) == 0


def test_unrelated_part_file_is_rejected(small_run, images, tmp_path, capsys):
    arguments = ["predict", str(small_run), str(tmp_path / "images"), "--out", str(tmp_path / "x.csv")]
    (tmp_path / "x.csv.part").mkdir()
    assert run(arguments) == 2
    assert "x.csv.part, which holds unfinished predictions, cannot be used (Is a dir" in capsys.readouterr().err
    (tmp_path / "x.csv.part").rmdir()
    for other in ("half of a\ndownload\n", "5\n"):
        (tmp_path / "x.csv.part").write_text(other)
        assert run(arguments) == 2
        assert "delete it, or finish" in capsys.readouterr().err
        assert (tmp_path / "x.csv.part").read_text() == other


def test_full_disk_keeps_finished_predictions(images, tmp_path, monkeypatch):
    from alexnet.inference import batch_predict

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(batch_predict._WRITERS, ".csv", full)
    with pytest.raises(WriteFailed, match="No space left on device; finished predictions are in x.csv.part"):
        write_predictions(RecordingClassifier(), images, tmp_path / "x.csv", SETTINGS)
    monkeypatch.undo()
    again = RecordingClassifier()
    assert write_predictions(again, images, tmp_path / "x.csv", SETTINGS).resumed == 10
    assert again.predicted == []


def test_from_the_command_line(small_run, images, tmp_path, capsys):
    assert run(["predict", str(small_run), str(tmp_path / "images"), "--out", str(tmp_path / "x.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "x.csv"), "images": 10, "errors": 0, "resumed": 0,
    }  # fmt: skip
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 11
