"""Damaged JPEGs that Pillow decodes without an error are recognized, and good ones of the same kinds are not."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet.data.decode import BadImage, check_image, decode_crop, decode_image
from alexnet.data.quality.inspect import inspect_files

KINDS = {
    "baseline": {},
    "optimized": {"optimize": True},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "gray": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "rotated": {"orientation": 6},
    "gray below": {"below": (128, 128, 128)},
}


def make_jpeg(kind: str, side: int = 160) -> bytes:
    """Encode a photograph-like image of `side` pixels."""
    options = dict(KINDS[kind])
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(1).integers(-12, 13, (side, side, 3))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    if below := options.pop("below", None):
        image.paste(below, (0, side // 2, side, side))
    if orientation := options.pop("orientation", None):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(file, "JPEG", **options)
    return file.getvalue()


def scan_start(data: bytes) -> int:
    return data.index(b"\xff\xda") + 14


def break_off(data: bytes) -> bytes:
    start = scan_start(data)
    return data[: start + (len(data) - start) // 3] + b"\xff\xd9"


def zero_middle(data: bytes) -> bytes:
    middle = (scan_start(data) + len(data)) // 2
    return data[:middle] + bytes(150) + data[middle + 150 :]


def zero_tail(data: bytes) -> bytes:
    start = scan_start(data)
    kept = start + (len(data) - start) // 3
    return data[:kept] + bytes(len(data) - 2 - kept) + b"\xff\xd9"


def remove_middle(data: bytes) -> bytes:
    middle = (scan_start(data) + len(data)) // 2
    return data[:middle] + data[middle + 700 :]


def stray_marker(data: bytes) -> bytes:
    middle = (scan_start(data) + len(data)) // 2
    return data[:middle] + b"\xff\x33" + data[middle + 2 :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("reader")
def test_good_images_raise_no_alarm(kind, tmp_path):
    data = make_jpeg(kind)
    padding = (bytes(100), bytes(1 << 20), b"\xaa" * 100, b"\xff")
    for version in (data, data + bytes(500), *(data[:-2] + pad + data[-2:] for pad in padding)):
        assert check_image(version) is None
        decode_crop(version, 40)
    (tmp_path / "a.jpg").write_bytes(data)
    assert inspect_files([str(tmp_path / "a.jpg")])[0].reason is None


@pytest.mark.usefixtures("reader")
def test_appended_files_and_metadata_raise_no_alarm():
    data, preview = make_jpeg("baseline"), make_jpeg("gray", 80)
    comment = b"\xff\xfe\x01\x02" + (b"\xff\xd9\xff\xda" + bytes(252))
    video = b"\0\0\0\x18ftypmp42" + np.random.default_rng(2).bytes(5000)  # as in motion photos
    for version in (data + preview, data + video, data[:2] + comment + data[2:], data[:-2] + comment + data[-2:]):
        assert check_image(version) is None


@pytest.mark.parametrize("damage", [break_off, zero_middle, zero_tail, remove_middle, stray_marker])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("reader")
def test_damage_is_recognized_by_every_reader(kind, damage, tmp_path):
    data = damage(make_jpeg(kind))
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    reason = check_image(path)
    assert reason is not None
    assert "cut short" in reason or "damaged" in reason
    with pytest.raises(BadImage) as caught:
        decode_image(path, 1)
    assert caught.value.reason == reason
    for size in (10, 40, 999):
        with pytest.raises(BadImage, match=r"a\.jpg"):
            decode_crop(path, size)
    assert inspect_files([str(path)])[0].reason is not None
