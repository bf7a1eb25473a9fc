"""All kinds of image files become RGB or gray, and broken ones give a reason."""

import importlib.util
import io
import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from alexnet.data import jpeg
from alexnet.data.decode import (
    BadImage,
    check_image,
    decode_crop,
    decode_image,
    image_size,
)
from alexnet.data.quality.inspect import inspect_arrays, inspect_files
from alexnet.errors import UserError

RED, BLUE = (220, 30, 20), (10, 40, 200)


def two_halves(width: int = 40, height: int = 24) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def near(image: Image.Image, point: tuple[int, int], color: tuple[int, ...], tolerance: int = 8) -> bool:
    pixel = np.atleast_1d(np.asarray(image.getpixel(point)))
    return bool(np.abs(pixel.astype(int) - np.array(color)).max() <= tolerance)


# What a camera stores so that turning it as the tag says gives the upright image.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("tag", STORED)
def test_exif_orientation_is_applied_once(tag, tmp_path):
    upright = two_halves()
    upright.paste((0, 200, 0), (0, 0, 8, 8))  # so that flipped differs from turned
    stored = upright if STORED[tag] is None else upright.transpose(STORED[tag])
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    image = decode_image(path)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))
    assert image_size(path) == upright.size
    again = decode_image(encoded(image, "PNG", exif=image.info.get("exif", b"")))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(upright))


@pytest.mark.parametrize(
    ("format", "tag"),
    [(format, tag) for format in ("TIFF", "LZW", "PNG", "WEBP", "JPEG") for tag in (0, *STORED, 9)
     if format != "LZW" or tag in STORED],  # libtiff does not write invalid tags
)  # fmt: skip
def test_every_reader_agrees_on_the_orientation(format, tag, tmp_path):
    upright = two_halves()
    upright.paste((0, 200, 0), (0, 0, 16, 8))
    stored = upright if STORED.get(tag) is None else upright.transpose(STORED[tag])
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {
        "LZW": {"compression": "tiff_lzw"},
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }.get(format, {})
    path = tmp_path / "photo"
    stored.save(path, "TIFF" if format == "LZW" else format, exif=exif, **options)
    pixels = np.asarray(decode_image(path))
    np.testing.assert_allclose(pixels.astype(int), np.asarray(upright), atol=9 if format == "JPEG" else 0)
    np.testing.assert_array_equal(decode_crop(path, 24), pixels)
    right = decode_crop(path, 24, box=lambda width, height: (width - 10, 0, width, height))
    np.testing.assert_array_equal(right, pixels[:, -10:])
    assert image_size(path) == upright.size
    with Image.open(path) as image:  # not loaded yet
        np.testing.assert_array_equal(np.asarray(decode_image(image)), pixels)
    (info,), (plain,) = inspect_files([str(path)]), inspect_arrays(pixels[None])
    assert (info.width, info.height, info.turned) == (*upright.size, 2 <= tag <= 8)
    if format != "JPEG":  # which is inspected at a smaller scale
        assert (info.hash, info.thumbnail) == (plain.hash, plain.thumbnail)


def test_a_png_may_have_megabytes_of_metadata():
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "abc" * 2_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "<x/>" * 1_000_000, zip=True)
    data = encoded(two_halves(), "PNG", pnginfo=info)
    assert check_image(data) is None
    assert image_size(data) == (40, 24)
    np.testing.assert_array_equal(decode_crop(data, 24), np.asarray(two_halves()))
    info.add_text("more", "x" * (65 << 20), zip=True)
    assert check_image(encoded(two_halves(), "PNG", pnginfo=info)) == (
        "it has more than 64 MiB of metadata; save it without"
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_malformed_exif_is_ignored():
    data = encoded(two_halves(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert near(decode_image(data), (5, 5), RED)


def test_cmyk_jpeg():
    image = decode_image(encoded(two_halves().convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert near(image, (5, 5), RED)
    assert near(image, (35, 5), BLUE)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize(("channels", "result"), [(3, "RGB"), (1, "L")])
def test_every_mode_becomes_rgb_or_gray(mode, channels, result):
    stored = two_halves().convert("RGB" if mode == "LAB" else mode)
    # Pillow 12.3 cannot read the YCbCr TIFF that it writes
    image = decode_image(stored if mode == "YCbCr" else encoded(stored, "TIFF"), channels)
    assert (image.mode, image.size) == (result, (40, 24))


def test_palette_with_and_without_transparency():
    palette = two_halves().quantize(2)
    assert near(decode_image(encoded(palette, "PNG")), (5, 5), RED)
    clear = palette.getpixel((5, 5))
    image = decode_image(encoded(palette, "PNG", transparency=clear))
    assert near(image, (5, 5), (255, 255, 255), 0)
    assert near(image, (35, 5), BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_over_white(mode):
    image = Image.new(mode, (4, 4), (0,) * (len(mode) - 1) + (0,))
    image.putpixel((1, 1), (0,) * (len(mode) - 1) + (255,))
    image.putpixel((2, 2), (0,) * (len(mode) - 1) + (128,))
    for channels, white in ((3, (255, 255, 255)), (1, (255,))):
        read = decode_image(encoded(image, "PNG"), channels)
        assert near(read, (0, 0), white, 0)
        assert near(read, (1, 1), (0,) * channels, 0)
        assert near(read, (2, 2), (127,) * channels, 1)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(format):
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    image = decode_image(encoded(Image.fromarray(values), format), channels=1)
    np.testing.assert_array_equal(np.asarray(image).ravel(), np.arange(256))


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 255), (255.0, 255), (9000.0, 255)])
def test_floating_point_tiff(scale, expected):
    values = (np.linspace(0, 1, 64, dtype=np.float32) * scale).reshape(8, 8)
    pixels = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF"), channels=1))
    assert (pixels.min(), pixels.max()) == (0, expected)
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    assert near(
        decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        (4, 4),
        RED,
    )


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims to be so large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\x09IDAT"


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BROKEN = {
    "empty": (b"", "the file is empty"),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    "text": (b"hello, world", "not an image of a known format"),
    "cut JPEG": (encoded(NOISE, "JPEG")[:-800], "cut short"),
    "cut PNG": (encoded(NOISE, "PNG")[:-5000], "cut short"),
    "HEIC": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "pillow-heif"),
    "bomb": (png_header(20_000, 20_000), "178,956,970 pixels"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not an image",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_give_a_reason(kind, tmp_path):
    if kind == "HEIC" and importlib.util.find_spec("pillow_heif"):
        pytest.skip("pillow-heif is installed, so HEIC is tried")
    data, reason = BROKEN[kind]
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=r"image\.jpg") as caught:
        decode_image(path)
    assert reason in caught.value.reason
    assert str(caught.value).count(". ") == 0  # one sentence
    assert check_image(path) == caught.value.reason
    assert check_image(path, full=False) == caught.value.reason
    with pytest.raises(BadImage, match="the image"):
        decode_image(data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(BadImage, match="no such file"):
        decode_image(tmp_path / "none.jpg")
    with pytest.raises(BadImage, match="folder"):
        decode_image(str(tmp_path))


def test_damage_in_the_middle_is_found_by_the_full_check_only(tmp_path):
    data = bytearray(encoded(NOISE, "PNG"))
    data[5000:5100] = bytes(100)
    path = tmp_path / "damaged.png"
    path.write_bytes(data)
    assert check_image(path) is not None
    assert check_image(path, full=False) is None


def test_good_files_pass_both_checks(tmp_path):
    path: Path = tmp_path / "good.jpg"
    path.write_bytes(encoded(NOISE, "JPEG") + bytes(4000))  # padded, as some cameras do
    assert check_image(path) is None
    assert check_image(path, full=False) is None


# ── for training ──────────────────────────────────────────────────────────────────────────────────


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, with some noise on it."""
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + np.random.default_rng(1).integers(-9, 10, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


PARTS = st.tuples(*[st.integers(0, 99)] * 4)  # per cent of width or height


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), mode=st.sampled_from(["RGB", "L", "CMYK"]),
    channels=st.sampled_from([1, 3]), subsampling=st.integers(0, 2), progressive=st.booleans(),
    orientation=st.integers(1, 8), part=PARTS,
)  # fmt: skip
def test_a_crop_at_full_scale_equals_decode_image(
    reader, width, height, mode, channels, subsampling, progressive, orientation, part
):
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(width, height, mode), "JPEG", progressive=progressive, exif=exif, **options)
    complete = decode_image(data, channels)
    expected = np.asarray(complete).reshape(complete.height, complete.width, channels)

    def box(*size: int) -> tuple[int, int, int, int]:
        assert size == complete.size
        (left, right), (top, bottom) = (sorted(p * s // 100 for p in part[i::2]) for i, s in enumerate(size))
        return left, top, right + 1, bottom + 1

    left, top, right, bottom = box(*complete.size)
    got = decode_crop(data, 99, channels, box=box)
    np.testing.assert_array_equal(got, expected[top:bottom, left:right])
    np.testing.assert_array_equal(decode_crop(data, 99, channels), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_a_crop_of_other_formats(format):
    data = encoded(photograph(40, 30), format)
    got = decode_crop(data, 1, box=lambda width, height: (2, 3, width, height - 4))
    np.testing.assert_array_equal(got, np.asarray(decode_image(data))[3:26, 2:])


@settings(max_examples=40, deadline=None)
@given(st.integers(16, 400), st.integers(16, 300), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 6]))
def test_a_crop_is_decoded_at_the_smallest_scale_equally_by_both_readers(width, height, factor, orientation):
    pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(width, height), "JPEG", quality=90, exif=exif)
    size = max(1, min(width, height) // (2 * factor))
    got = decode_crop(data, size)
    used = next(f for f in (8, 4, 2, 1) if min(width, height) >= 2 * f * size)
    upright = (height, width) if orientation == 6 else (width, height)
    assert abs(got.shape[1] - upright[0] / used) <= 1
    assert abs(got.shape[0] - upright[1] / used) <= 1
    assert min(got.shape[:2]) >= 2 * size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "import_simplejpeg", lambda: None)
        np.testing.assert_array_equal(decode_crop(data, size), got)


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("size", [12, 25, 50])
def test_a_smaller_scale_is_nearly_the_same_after_resizing(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(320, 240), "JPEG", quality=90, exif=exif)
    part = decode_crop(data, size)
    assert part.shape[0] < 240
    exact, near = (
        np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        for image in (decode_image(data), Image.fromarray(part))
    )
    assert np.abs(exact - near).mean() < 2


def test_a_box_is_scaled_with_the_image():
    image = Image.new("RGB", (256, 160), BLUE)
    image.paste(RED, (64, 32, 192, 96))
    got = decode_crop(encoded(image, "JPEG", quality=95), 16, box=lambda *_: (64, 32, 192, 96))
    assert got.shape == (32, 64, 3)
    assert np.abs(got.astype(int) - RED).max() < 12


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("size", [1, 999])
def test_broken_files_give_the_same_reason_in_training(kind, size, reader, tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(BROKEN[kind][0])
    with pytest.raises(BadImage) as expected:
        decode_image(path)
    with pytest.raises(BadImage) as caught:
        decode_crop(path, size)
    assert str(caught.value) == str(expected.value)


def test_harmless_surplus_bytes_are_read_in_training_too(reader):
    data = encoded(photograph(64, 48), "JPEG", quality=95)
    padded = data[:-2] + bytes(100) + data[-2:]  # libjpeg complains, but all pixels are there
    np.testing.assert_array_equal(decode_crop(padded, 99), np.asarray(decode_image(data)))


def test_bad_image_survives_pickling_and_is_a_user_error():
    error = pickle.loads(pickle.dumps(BadImage("it is cut short", "a.jpg")))
    assert isinstance(error, UserError)
    assert (error.reason, error.source) == ("it is cut short", "a.jpg")
    assert "a.jpg" in str(error)


def test_channels_are_one_or_three():
    with pytest.raises(UserError, match="not 4"):
        decode_image(encoded(NOISE, "PNG"), channels=4)


@pytest.mark.skipif(sys.platform != "linux", reason="depends on how Pillow is linked")
def test_libtiff_prints_nothing(capfd):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        file, "TIFF", compression="tiff_lzw"
    )
    damaged = bytearray(file.getvalue())
    damaged[200:6000] = b"\xff" * 5800
    with pytest.raises(BadImage):
        decode_image(bytes(damaged))
    assert capfd.readouterr().err == ""
