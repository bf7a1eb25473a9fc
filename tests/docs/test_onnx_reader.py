"""docs/onnx_reader.py, which knows only what an exported file says, labels images as the product does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.checkpoint import save_model
from alexnet.data.transforms import EvalTransform
from alexnet.inference.load import load_model
from alexnet.inference.predict import load
from alexnet.models.model import create_model
from alexnet.runtimes.convert import describe, write_onnx
from alexnet.runtimes.image_steps import describe_steps
from helpers import CLASS_NAMES

READER = Path(__file__).resolve().parents[2] / "docs" / "onnx_reader.py"
ORIENTATION = 0x0112  # EXIF

CASES = {
    "colors": (False, EvalTransform(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))),  # the fixture `exported`
    "range": (True, EvalTransform(32, resize=37, interpolation="bicubic", squash=True, value_range=(100, 4095))),
    "gray": (False, EvalTransform(32, channels=1, mean=(0.4,), std=(0.2,), value_range=(0, 4095))),
}
"""Name → whether the file normalizes by itself, and its preprocessing."""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Files that a program reads wrongly if it ignores orientation, transparency, depth or frames."""
    folder = tmp_path_factory.mktemp("images")
    ramp = np.linspace(0, 255, 60 * 45).reshape(45, 60)
    pixels = np.dstack([ramp, ramp.max() - ramp, np.tile(np.linspace(0, 255, 60), (45, 1))]).astype(np.uint8)
    picture = Image.fromarray(pixels)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.save(folder / f"turned-{orientation}.jpg", exif=exif)
    picture.save(folder / "turned.tif", tiffinfo={ORIENTATION: 6})
    picture.save(folder / "turned.png", exif=exif)
    transparent = picture.copy()
    transparent.putalpha(Image.fromarray(ramp.T.copy().astype(np.uint8)).resize((60, 45)))
    transparent.save(folder / "transparent.png")
    transparent.save(folder / "transparent.webp", lossless=True)
    transparent.convert("LA").save(folder / "transparent-gray.png")
    palette = picture.quantize(8)
    palette.save(folder / "palette.png", transparency=3)
    palette.save(folder / "frames.gif", save_all=True, append_images=[palette.transpose(Image.Transpose.ROTATE_180)])
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("L").save(folder / "gray.png")
    picture.convert("1").save(folder / "bits.png")
    deep = Image.fromarray((ramp * 16).astype(np.uint16))  # 12 bits
    for name in ("deep.png", "deep.tif"):
        deep.save(folder / name)
    deep.save(folder / "deep-turned.png", exif=exif)
    Image.fromarray((ramp * 257).astype(np.uint16)).save(folder / "deeper.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(exported, calibrated_checkpoint, tmp_path_factory):
    """`files(case)` returns a run and its ONNX file."""
    found = {"colors": (calibrated_checkpoint, exported / "net.onnx")}

    def file_of(case: str) -> tuple[Path, Path]:
        if case not in found:
            folder, (pixels, preprocess) = tmp_path_factory.mktemp(case), CASES[case]
            torch.manual_seed(0)
            model = create_model("cifar", num_classes=3, width=0.125, in_channels=preprocess.channels).eval()
            model.fc8.weight.data *= 500  # as in make_confident_model
            (folder / "run").mkdir()
            save_model(folder / "run", model, CLASS_NAMES, preprocess)
            loaded, path = load_model(folder / "run"), folder / "net.onnx"
            write_onnx(loaded, describe(loaded, "onnx", pixels), path, lambda: np.empty(0))
            found[case] = folder / "run", path
        return found[case]

    return file_of


def read(file: Path, *images: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(READER), str(file), *map(str, images)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("case", ["colors", *(pytest.param(c, marks=pytest.mark.slow) for c in ("range", "gray"))])
def test_reader_gives_the_labels_of_the_product(files, images, case):
    run, file = files(case)
    done = read(file, *images)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = load(run, device="cpu").predict_many(images)
    for line, image, prediction in zip(lines, images, expected, strict=True):
        name, label, p = line.rsplit(maxsplit=2)
        assert (name, label) == (f"{image}:", prediction.labels[0][0])
        assert float(p) == pytest.approx(prediction.labels[0][1], abs=2e-5), image.name
    assert len({line.rsplit(maxsplit=1)[1] for line in lines}) > len(lines) / 2  # the images are distinguished


@pytest.mark.slow
def test_reader_refuses_what_it_would_read_wrongly(files, tmp_path):
    image = tmp_path / "float.tif"
    Image.fromarray(np.ones((40, 40), np.float32)).save(image)
    done = read(files("range")[1], image)
    assert done.returncode == 1
    assert done.stderr == f"{image}: of images of more than 8 bits, this program reads 16-bit gray.\n"


def test_reader_is_short():
    assert len(READER.read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.parametrize(("case", "pixels", "lacks"), [("colors", False, None), ("range", True, "normalize")])
def test_steps_are_complete_and_in_order(case, pixels, lacks):
    preprocess = CASES[case][1]
    steps = json.loads(json.dumps(describe_steps(preprocess, pixels)))
    names = ["frame", "depth", "transparency", "orientation", "colors", "resize", "crop", "normalize", "layout"]
    assert [step["step"] for step in steps] == [name for name in names if name != lacks]
    by_name = {step["step"]: step for step in steps}
    assert by_name["depth"]["range"] == (None if case == "colors" else [100, 4095])
    assert all(step["text"].endswith(".") for step in steps)
