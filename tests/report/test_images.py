import base64
import io
import shutil

from PIL import Image

from alexnet.report.images import SIDE, load_thumbnails
from alexnet.run_dir import Run
from alexnet.training.recipe import Recipe


def make_run(data, tmp_path) -> Run:
    return Run.create("folder", tmp_path / "run", Recipe().replace(dataset="folder", data=data).to_json())


def test_thumbnails_outlive_the_data_set(image_folder, tmp_path):
    run = make_run(image_folder, tmp_path)
    names = ["sky/0.jpg", "leaf/3.jpg"]
    urls, error = load_thumbnails(run, names, tmp_path / "cache")
    assert list(urls) == names
    assert not error
    shutil.rmtree(image_folder)
    again, error = load_thumbnails(run, [*names, "sky/1.jpg"], tmp_path / "cache")
    assert again == urls
    assert error
    data = base64.b64decode(urls["sky/0.jpg"].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(data)).size) == SIDE // 40 * 40  # enlarged by an integer factor


def test_a_missing_image_does_not_hide_the_others(image_folder, tmp_path):
    (image_folder / "sky" / "0.jpg").unlink()
    urls, error = load_thumbnails(make_run(image_folder, tmp_path), ["sky/0.jpg", "sky/1.jpg"], tmp_path / "cache")
    assert list(urls) == ["sky/1.jpg"]
    assert error
