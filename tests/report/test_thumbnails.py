import base64
import io
import json
import shutil

from PIL import Image

from alexnet.report.thumbnails import SIDE, load_thumbnails
from alexnet.run_dir import Run


def make_run(data, tmp_path) -> Run:
    return Run.create("folder", tmp_path / "run", json.dumps({"dataset": "folder", "data": str(data), "seed": 0}))


def test_thumbnails_outlive_the_data_set(image_folder, tmp_path):
    run = make_run(image_folder, tmp_path)
    names = ["sky/0.jpg", "leaf/3.jpg"]
    first = load_thumbnails(run, names, tmp_path / "cache")
    assert list(first.urls) == names
    assert not first.error
    shutil.rmtree(image_folder)
    again = load_thumbnails(run, [*names, "sky/1.jpg"], tmp_path / "cache")
    assert again.urls == first.urls
    assert again.error
    assert again.html("sky/1.jpg") == ""
    data = base64.b64decode(first.html("sky/0.jpg").split("base64,")[1].split('"')[0])
    assert max(Image.open(io.BytesIO(data)).size) == SIDE // 40 * 40  # enlarged by an integer factor


def test_a_missing_image_does_not_hide_the_others(image_folder, tmp_path):
    (image_folder / "sky" / "0.jpg").unlink()
    thumbnails = load_thumbnails(make_run(image_folder, tmp_path), ["sky/0.jpg", "sky/1.jpg"], tmp_path / "cache")
    assert list(thumbnails.urls) == ["sky/1.jpg"]
    assert thumbnails.error
