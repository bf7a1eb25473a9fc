"""The images of the golden files: one or more per supported format, encoded once and stored in `images/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

HERE = Path(__file__).resolve().parent
IMAGES = HERE / "images"
ORIENTATION = 0x0112
LOSSY = (".jpg", ".mpo", ".webp", ".jp2", ".avif")
"""Suffixes of formats whose decoded pixels may differ between library versions."""


def readable(name: str) -> bool:
    """Return whether the installed Pillow reads the format of the image `name`."""
    needed = {".avif": "avif", ".webp": "webp", ".jp2": "jpg_2000"}.get(Path(name).suffix)
    return needed is None or (needed in {*features.modules, *features.codecs} and bool(features.check(needed)))


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return gradients, a disc and a bar, uint8 H×W×3, without any symmetry."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / width, y / height
    phase, tint = draw.uniform(0, 6, 3), draw.uniform(0.4, 1, 3)
    waves = np.stack([np.sin(4 * x + 3 * y * y + p) for p in phase], axis=-1)
    pixels = (110 + 90 * waves) * tint
    place = draw.uniform(0.2, 0.4, 2)
    pixels[(x - place[0]) ** 2 + (y - place[1]) ** 2 < 0.02] = draw.uniform(150, 255, 3)
    pixels[(x > 0.6) & (x < 0.7) & (y > 0.3)] = draw.uniform(0, 90, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_images(folder: Path = IMAGES) -> None:
    """Encode all images. The golden files must then be written again too."""
    folder.mkdir(parents=True, exist_ok=True)
    color = Image.fromarray(scene(44, 30))
    gray, clear = color.convert("L"), color.copy()
    alpha = Image.fromarray(np.linspace(0, 255, 44 * 30).reshape(30, 44).astype(np.uint8))
    clear.putalpha(alpha)
    palette = color.quantize(16)
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 251 + 7)
    floats = Image.fromarray(np.asarray(gray).astype(np.float32) / 255)
    jpeg: dict[str, Any] = {"quality": 85}
    plain: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("444.jpg", color, {**jpeg, "subsampling": 0}),
        ("progressive.jpg", color, {**jpeg, "progressive": True}),
        ("rgb.png", color, {}),
        ("grey.png", gray, {}),
        ("alpha.png", clear, {}),
        ("grey-alpha.png", clear.convert("LA"), {}),
        ("palette.png", palette, {}),
        ("palette-transparent.png", palette, {"transparency": 3}),
        ("bits.png", gray.convert("1"), {}),
        ("16-bit.png", wide, {}),
        ("rgb.gif", palette, {}),
        ("transparent.gif", palette, {"transparency": 3}),
        ("animated.gif", palette, {"save_all": True, "append_images": [palette.rotate(180)]}),
        ("rgb.bmp", color, {}),
        ("palette.bmp", palette, {}),
        ("grey.bmp", gray, {}),
        ("rgb.dib", color, {}),
        ("lossless.webp", color, {"lossless": True}),
        ("alpha.webp", clear, {"quality": 80}),
        ("grey.tif", gray, {}),
        ("16-bit.tif", wide, {}),
        ("float.tif", floats, {}),
        ("cmyk.tif", color.convert("CMYK"), {"compression": "tiff_lzw"}),
        ("bits.tif", gray.convert("1"), {}),
        ("rgb.ppm", color, {}),
        ("grey.pgm", gray, {}),
        ("16-bit.pgm", wide, {}),
        ("bits.pbm", gray.convert("1"), {}),
        ("rgb.jp2", color, {"quality_mode": "dB", "quality_layers": [38]}),
        ("rgb.tga", color, {}),
        ("two.mpo", color, {**jpeg, "save_all": True, "append_images": [color.rotate(180)]}),
    ]
    for name, image, options in plain:
        image.save(folder / name, **options)
    turned: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("rgb{}.jpg", color, jpeg),
        ("grey{}.jpg", gray, jpeg),
        ("cmyk{}.jpg", color.convert("CMYK"), jpeg),
        ("turned{}.png", color, {}),
        ("turned{}.webp", color, {"quality": 80}),
        ("turned{}.tif", color, {"compression": "tiff_adobe_deflate"}),
    ]
    if readable("turned.avif"):
        turned.append(("turned{}.avif", color, {"quality": 60}))
    for name, image, options in turned:
        for tag in range(1, 9):
            exif = Image.Exif()
            exif[ORIENTATION] = tag
            image.save(folder / name.format(tag), exif=exif, **options)
    for i, size in enumerate([(300, 280), (340, 270), (262, 330), (600, 420), (290, 290), (400, 300)]):
        exif = Image.Exif()
        exif[ORIENTATION] = 6 if i == 2 else 1
        Image.fromarray(scene(*size, seed=i + 1)).save(folder / f"photo{i}.jpg", quality=60, exif=exif)
