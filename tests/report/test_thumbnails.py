import base64
import io
import json
import shutil

from PIL import Image

from alexnet.report.thumbnails import SIDE, thumbnails
from alexnet.run_dir import Run


def pictured(root, tmp_path) -> Run:
    return Run.create("folder", tmp_path / "run", json.dumps({"dataset": "folder", "data": str(root), "seed": 0}))


def test_pictures_are_kept_for_when_the_data_has_gone(image_folder, tmp_path):
    run = pictured(image_folder, tmp_path)
    names = ["sky/0.jpg", "leaf/3.jpg"]
    first = thumbnails(run, names, tmp_path / "kept")
    assert list(first.found) == names
    assert not first.why
    shutil.rmtree(image_folder)
    again = thumbnails(run, [*names, "sky/1.jpg"], tmp_path / "kept")
    assert again.found == first.found
    assert again.why
    assert again.html("sky/1.jpg") == ""
    data = base64.b64decode(first.html("sky/0.jpg").split("base64,")[1].split('"')[0])
    assert max(Image.open(io.BytesIO(data)).size) == SIDE // 40 * 40  # enlarged by whole pixels


def test_one_lost_picture_does_not_hide_the_others(image_folder, tmp_path):
    (image_folder / "sky" / "0.jpg").unlink()
    found = thumbnails(pictured(image_folder, tmp_path), ["sky/0.jpg", "sky/1.jpg"], tmp_path / "kept")
    assert list(found.found) == ["sky/1.jpg"]
    assert found.why
