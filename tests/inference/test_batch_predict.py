"""Predictions for many pictures as a table: what is in it, and that an interrupted one is gone on with."""

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

ASKED = {"networks": ["x"], "engine": "exact"}


class Counting:
    """Says the same of every picture, and counts them; stops after `most`."""

    def __init__(self, most=1000):
        self.seen, self.most = [], most

    def predict_many(self, images, top, views, scales):
        for path in images:
            if len(self.seen) == self.most:
                raise KeyboardInterrupt
            self.seen.append(path)
            if path.stem == "3":
                yield Prediction(str(path), error="it is cut short")
            else:
                yield Prediction(str(path), (("a", 0.75), ("b", 0.25))[:top])


@pytest.fixture
def images(tmp_path):
    return find_images([make_image_folder(tmp_path / "pictures", ("a", "b"), 5)])


def test_the_three_tables_say_the_same(images, tmp_path):
    written = [
        write_predictions(Counting(), images, tmp_path / f"x.{s}", ASKED, top=2) for s in ("csv", "parquet", "jsonl")
    ]
    assert [(w.images, w.errors, w.resumed) for w in written] == [(10, 2, 0)] * 3
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert (
        [x["path"] for x in lines] == [x["path"] for x in table] == [x["path"] for x in rows] == list(map(str, images))
    )
    assert lines[0]["labels"] == table[0]["labels"] == [{"label": "a", "p": 0.75}, {"label": "b", "p": 0.25}]
    assert (rows[0]["label1"], float(rows[0]["p1"]), rows[0]["label2"], rows[0]["error"]) == ("a", 0.75, "b", "")
    assert rows[3]["error"] == table[3]["error"] == lines[3]["error"] == "it is cut short"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures", "x.csv", "x.jsonl", "x.parquet"]


@pytest.mark.parametrize("damage", [b"", b'{"path": "half a li', b'{"half": \n', b"5\n", b'{"path": "x"}\n', b"\xff\n"])
def test_it_goes_on_where_it_stopped(images, tmp_path, damage):
    out = tmp_path / "x.csv"
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Counting(4), images, out, ASKED, top=2)
    assert not out.exists()
    part = tmp_path / "x.csv.part"
    part.write_bytes(part.read_bytes() + damage)
    second = Counting()
    found = write_predictions(second, images, out, ASKED, top=2)
    assert second.seen == images[4:]
    assert (found.images, found.errors, found.resumed) == (10, 2, 4)
    write_predictions(Counting(), images, tmp_path / "whole.csv", ASKED, top=2)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not part.exists()


def test_it_does_not_go_on_with_something_else(images, tmp_path):
    out = tmp_path / "x.csv"
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Counting(4), images, out, ASKED)
    before = (tmp_path / "x.csv.part").read_bytes()
    with pytest.raises(UserError, match="another network or with other settings"):
        write_predictions(Counting(), images, out, {**ASKED, "networks": ["y"]})
    with pytest.raises(UserError, match="another network or with other settings"):
        write_predictions(Counting(), images, out, ASKED, top=3)
    with pytest.raises(UserError, match="holds predictions for other images"):
        write_predictions(Counting(), images[1:], out, ASKED)
    assert (tmp_path / "x.csv.part").read_bytes() == before


@pytest.mark.parametrize("wrong", [["--top", "0"], ["--crops", "3"], ["--scales", "9"]])
def test_what_cannot_be_asked_leaves_nothing_behind(small_run, images, tmp_path, capsys, wrong):
    words = ["predict", str(small_run), str(tmp_path / "pictures"), "--out", str(tmp_path / "x.csv")]
    assert run([*words, *wrong]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert run(words) == 0


def test_a_part_that_is_something_else_is_told(small_run, images, tmp_path, capsys):
    words = ["predict", str(small_run), str(tmp_path / "pictures"), "--out", str(tmp_path / "x.csv")]
    (tmp_path / "x.csv.part").mkdir()
    assert run(words) == 2
    assert "x.csv.part, which holds unfinished predictions, cannot be used (Is a dir" in capsys.readouterr().err
    (tmp_path / "x.csv.part").rmdir()
    for other in ("half of a\ndownload\n", "5\n"):
        (tmp_path / "x.csv.part").write_text(other)
        assert run(words) == 2
        assert "delete it, or finish" in capsys.readouterr().err
        assert (tmp_path / "x.csv.part").read_text() == other


def test_a_full_disk_keeps_what_there_is(images, tmp_path, monkeypatch):
    from alexnet.inference import batch_predict

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(batch_predict._WRITERS, ".csv", full)
    with pytest.raises(WriteFailed, match="No space left on device; finished predictions are in x.csv.part"):
        write_predictions(Counting(), images, tmp_path / "x.csv", ASKED)
    monkeypatch.undo()
    again = Counting()
    assert write_predictions(again, images, tmp_path / "x.csv", ASKED).resumed == 10
    assert again.seen == []


def test_from_the_command_line(small_run, images, tmp_path, capsys):
    assert run(["predict", str(small_run), str(tmp_path / "pictures"), "--out", str(tmp_path / "x.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "x.csv"), "images": 10, "errors": 0, "resumed": 0,
    }  # fmt: skip
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 11
