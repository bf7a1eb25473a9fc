"""Tables are told by their columns' names, in every usual spelling."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from alexnet.data.image_folder import class_order, read_label_table
from alexnet.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\na.jpg,1,train\nb.jpg,2,VAL\n",
        "\ufefflabel,image,set\n1,a.jpg,training\n2,b.jpg,validation\n",
        "Filename;Class;Subset;size\r\na.jpg;1;train;9\r\nb.jpg;2;valid;9\r\n\r\n",
        "file\ttarget\tsplit\na.jpg\t1\ttrain\nb.jpg\t2\tval",
    ],
)
def test_csv(text, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    found = read_label_table(path)
    assert (found.names, found.labels, found.splits) == (["a.jpg", "b.jpg"], ["1", "2"], ["train", "val"])
    assert (found.bad, found.repeated) == ([], 0)


def test_parquet_with_numbers_and_gaps(tmp_path):
    path = tmp_path / "labels.parquet"
    columns = {"path": ["a.jpg", "b.jpg", None, "d.jpg"], "label": [1.0, 2.0, 3.0, float("nan")], "bytes": [b""] * 4}
    pa.parquet.write_table(pa.table(columns), path)
    found = read_label_table(path)
    assert (found.names, found.labels, found.splits) == (["a.jpg", "b.jpg"], ["1", "2"], ["all", "all"])
    assert found.bad == [
        ("row 3", "labels.parquet gives no path there"),
        ("d.jpg", "labels.parquet gives it no label"),
    ]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a/1.jpg,cat\n")
    with pytest.raises(UserError, match="has a/1.jpg, cat; name them so"):
        read_label_table(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(UserError, match="has none; name them so"):
        read_label_table(tmp_path / "x.csv")


def test_class_order():
    assert class_order(["10", "9", "b"]) == ("10", "9", "b")
    assert class_order(["10", "9", "009"]) == ("009", "9", "10")
