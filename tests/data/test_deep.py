"""Images of more than 8 bits: the range of a data set, white as 0, and files that cannot be read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from alexnet.data.dataset import ImageDataset, ImageFiles
from alexnet.data.decode import BadImage, check_image, decode_crop, decode_image
from alexnet.data.deep import CLIPPED, UNMEASURED, RangeUnknown
from alexnet.data.quality.inspect import inspect_files
from alexnet.data.value_range import RangeFinder, find_value_range, measure_image, parse_value_range
from alexnet.errors import UserError

TWELVE_BITS = (0.0, 4095.0)
RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 4096, (12, 20, 4)).astype(np.uint16)
SCALED = np.rint(VALUES / 4095 * 255).astype(np.uint8)


def png(values: np.ndarray) -> bytes:
    """16-bit values H×W×C as PNG, which Pillow writes for gray only."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(values: np.ndarray, photometric: int = 1, planes: int = 1, order: str = "<", extra: int = 0) -> bytes:
    """Values H×W×C of any type as an uncompressed TIFF."""
    height, width, channels = values.shape
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[values.dtype.kind]
    data = (values.transpose(2, 0, 1) if planes == 2 else values).astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: [width], 257: [height], 258: [8 * values.itemsize] * channels, 259: [1], 262: [photometric]}
    strips = channels if planes == 2 else 1
    tags |= {273: [0] * strips, 277: [channels], 278: [height], 279: [len(data) // strips] * strips, 284: [planes]}
    if extra:
        tags[338] = [0] * extra
    tags[339] = [kind] * channels
    end = 8 + 2 + 12 * len(tags) + 4
    start = end + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    tags[273] = [start + i * len(data) // strips for i in range(strips)]
    entries, more = b"", b""
    for tag, numbers in sorted(tags.items()):
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += packed if len(numbers) == 1 else struct.pack(order + "I", end + len(more))
        more += packed if len(numbers) > 1 else b""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, len(tags)) + entries + b"\0\0\0\0" + more + data


def compressed(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values[..., 0]).save(file, "TIFF", compression="tiff_lzw")
    return file.getvalue()


FILES = {
    "gray PNG": (png(VALUES[..., :1]), 1),
    "color PNG": (png(VALUES[..., :3]), 3),
    "gray TIFF": (tiff(VALUES[..., :1]), 1),
    "big-endian gray TIFF": (tiff(VALUES[..., :1], order=">"), 1),
    "compressed gray TIFF": (compressed(VALUES[..., :1]), 1),
    "gray PGM": (b"P5 20 12 65535\n" + VALUES[..., :1].astype(">u2").tobytes(), 1),
    "color PPM": (b"P6 20 12 65535\n" + VALUES[..., :3].astype(">u2").tobytes(), 3),
    "color TIFF": (tiff(VALUES[..., :3], photometric=2), 3),
    "big-endian color TIFF": (tiff(VALUES[..., :3], photometric=2, order=">"), 3),
    "color TIFF with a fourth band": (tiff(VALUES, photometric=2, extra=1), 3),
    "signed TIFF": (tiff(VALUES[..., :1].astype(np.int16)), 1),
    "32-bit TIFF": (tiff(VALUES[..., :1].astype(np.uint32)), 1),
    "signed 32-bit TIFF": (tiff(VALUES[..., :1].astype(np.int32), order=">"), 1),
    "float TIFF": (tiff(VALUES[..., :1].astype(np.float32)), 1),
}


@pytest.mark.parametrize("name", FILES)
def test_a_range_is_applied_to_every_kind_of_file(name):
    data, channels = FILES[name]
    image = decode_image(data, channels, value_range=TWELVE_BITS)
    pixels = np.asarray(image).reshape(12, 20, channels)
    np.testing.assert_array_equal(pixels, SCALED[..., :channels])
    assert image.info == {CLIPPED: False}
    np.testing.assert_array_equal(decode_crop(data, 4, channels, value_range=TWELVE_BITS), pixels)
    box = decode_crop(data, 4, channels, box=lambda width, height: (5, 2, width, height), value_range=TWELVE_BITS)
    np.testing.assert_array_equal(box, pixels[2:, 5:])
    assert decode_image(data, channels, value_range=(0, 2000)).info == {CLIPPED: True}


def test_alpha_is_no_value():
    for channels in (2, 4):
        values = np.minimum(VALUES[..., :channels], 4095)
        values[..., -1] = 65535
        values[0, 0, -1] = 0
        image = np.asarray(decode_image(png(values), 3, value_range=TWELVE_BITS))
        np.testing.assert_array_equal(image[1:, :, : channels - 1], SCALED[1:, :, : channels - 1])
        np.testing.assert_array_equal(image[0, 0], 255)
        measured = measure_image(png(values))
        assert measured
        assert measured.largest <= 4095


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value_range", [TWELVE_BITS, None])
def test_white_as_0_is_inverted_as_in_8_bits(order, value_range):
    dark, inverted = tiff(VALUES[..., :1], order=order), tiff(VALUES[..., :1], photometric=0, order=order)
    pixels = [np.asarray(decode_image(data, 1, value_range=value_range)) for data in (dark, inverted)]
    np.testing.assert_array_equal(pixels[0], 255 - pixels[1])
    eight = tiff(SCALED[..., :1], photometric=0, order=order)
    np.testing.assert_array_equal(np.asarray(decode_image(eight, 1)), 255 - SCALED[..., 0])


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (VALUES[..., [0, 1, 2, 3, 0]], {}, "5 bands of 16-bit values"),
        (VALUES[..., [0] * 13], {}, "13 bands of 16-bit values"),
        (SCALED[..., [0] * 13], {"order": ">"}, "13 bands of 8-bit values"),
        (VALUES[..., :1].astype(np.float64), {}, "1 band of floating-point 64-bit values"),
        (VALUES[..., :1].astype(np.complex64), {}, "1 band of complex 64-bit values"),
        ((SCALED[..., :1] // 2).astype(np.int8), {}, "8-bit values are signed"),
        (VALUES[..., :3], {"photometric": 2, "planes": 2}, "bands of more than 8 bits in separate planes"),
        (
            VALUES[..., :1].astype(np.float32),
            {"planes": 2, "order": ">"},
            "bands of more than 8 bits in separate planes",
        ),
    ],
)
def test_a_tiff_that_cannot_be_read_is_named_as_what_it_is(values, options, reason, tmp_path, capfd):
    path = tmp_path / "bands.tif"
    path.write_bytes(tiff(values, **options))
    with pytest.raises(BadImage, match=reason):
        decode_image(path)
    assert reason in (check_image(path) or "")
    (info,) = inspect_files([str(path)])
    assert reason in (info.reason or "")
    assert capfd.readouterr() == ("", "")


# ── the range of a data set ───────────────────────────────────────────────────────────────────────


def save_images(folder, images: dict[str, np.ndarray]) -> ImageFiles:
    import torch

    for name, values in images.items():
        (folder / name).write_bytes(tiff(values[..., None]))
    return ImageFiles(folder, list(images), torch.zeros(len(images), dtype=torch.int64))


def noise(seed: int, low: float, high: float, kind: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (40, 40)).astype(kind)


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 200, np.uint16, (0, 255)),
        (0, 1000, np.uint16, (0, 1023)),
        (100, 4000, np.uint16, (0, 4095)),
        (0, 16000, np.uint16, (0, 16383)),
        (0, 60000, np.uint16, (0, 65535)),
        (0, 1e6, np.uint32, (0, 2**20 - 1)),
        (-1000, 3000, np.int16, (-1000, 3000)),
        (-1000, 3000, np.int32, (-1000, 3000)),
        (0.1, 0.3, np.float32, (0.1, 0.3)),
        (-5e-4, 2e3, np.float32, (0, 2e3)),
    ],
)
def test_the_range_is_that_of_the_training_images(low, high, kind, expected, tmp_path):
    train = save_images(tmp_path, {f"{i}.tif": noise(i, low, high, kind) for i in range(10)})
    hot = noise(10, low, high, kind)
    hot[3, 4] = 60000 if kind is np.uint16 else 30000  # one pixel decides nothing
    train.names.append("hot.tif")
    (tmp_path / "hot.tif").write_bytes(tiff(hot[..., None]))
    train = ImageFiles(tmp_path, train.names, train.targets[[0] * 11])
    val = save_images(tmp_path, {"val.tif": noise(11, low, 4 * high, kind)})
    found = find_value_range(ImageDataset("folder", ("a",), {"train": train, "val": val}, 1))
    assert found
    assert found.images == 12
    tolerance = 0 if np.dtype(kind).kind == "u" else 0.01 * (high - low)
    assert found.value_range == pytest.approx(expected, abs=tolerance)
    assert f"12 of 12 images have more than 8 bits (12 {np.dtype(kind).itemsize * 8}-bit" in found.sentence
    assert found.beyond >= (hot.max() > expected[1])
    given = find_value_range(ImageDataset("folder", ("a",), {"train": train, "val": val}, 1), (-1e9, 1e9))
    assert given
    assert given.value_range == (-1e9, 1e9)
    assert given.beyond == 0
    assert "as given" in given.sentence


def test_a_hot_pixel_in_every_image_decides_nothing():
    finder = RangeFinder()
    for seed in range(20):
        values = noise(seed, 0, 4000)
        values[seed, seed] = 65535
        finder.add(measure_image(tiff(values[..., None])), True)
    found = finder.result()
    assert found
    assert found.value_range == TWELVE_BITS
    assert found.beyond == 20
    assert "20 of them have values beyond this range, which are clipped." in found.sentence


def test_constant_and_tiny_images_have_a_range():
    for values in (np.zeros((1, 1)), np.full((3, 3), 7), np.full((1, 1), 65535)):
        for kind in (np.uint16, np.float32, np.int16):
            finder = RangeFinder()
            finder.add(measure_image(tiff(values.astype(kind)[..., None])), True)
            found = finder.result()
            assert found
            assert found.value_range[0] < found.value_range[1]
            decode_image(tiff(values.astype(kind)[..., None]), value_range=found.value_range)


def test_a_deep_image_without_a_range_stops_what_needs_one(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(png(VALUES[..., :3]))
    for read in (
        lambda: decode_image(path, value_range=UNMEASURED),
        lambda: decode_crop(path, 8, value_range=UNMEASURED),
        lambda: check_image(path, True, UNMEASURED),
        lambda: check_image(path, False, UNMEASURED),
    ):
        with pytest.raises(RangeUnknown):
            read()
    shallow = tmp_path / "shallow.png"
    Image.fromarray(SCALED[..., :3]).save(shallow)
    np.testing.assert_array_equal(np.asarray(decode_image(shallow, value_range=UNMEASURED)), SCALED[..., :3])
    assert measure_image(shallow) is None


@pytest.mark.parametrize("text", ["", "5", "5,", "5,5", "9,1", "a,b", "0,inf", "1,2,3"])
def test_a_range_is_two_numbers(text):
    with pytest.raises(UserError, match="give two numbers, such as 0,4095"):
        parse_value_range(text)
    assert parse_value_range("-1000,3e3") == (-1000, 3000)
