"""The pictures of the golden files: in every format that is read, kept in `images/` so that no encoder matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

HERE = Path(__file__).resolve().parent
IMAGES = HERE / "images"
ORIENTATION = 0x0112
LOSSY = (".jpg", ".mpo", ".webp", ".jp2", ".avif")
"""Endings of formats whose pixels may differ between versions of their libraries."""


def readable(name: str) -> bool:
    """Whether Pillow as it is installed here reads the format of the picture `name`."""
    needed = {".avif": "avif", ".webp": "webp", ".jp2": "jpg_2000"}.get(Path(name).suffix)
    return needed is None or (needed in {*features.modules, *features.codecs} and bool(features.check(needed)))


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 H×W×3: gradients, a disc and a bar, which look like none of their mirror images."""
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
    """Encode everything anew. The golden files belong to the pictures as they were encoded once."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = Image.fromarray(scene(44, 30))
    grey, clear = colour.convert("L"), colour.copy()
    alpha = Image.fromarray(np.linspace(0, 255, 44 * 30).reshape(30, 44).astype(np.uint8))
    clear.putalpha(alpha)
    palette = colour.quantize(16)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 251 + 7)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    jpeg: dict[str, Any] = {"quality": 85}
    plain: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("444.jpg", colour, {**jpeg, "subsampling": 0}),
        ("progressive.jpg", colour, {**jpeg, "progressive": True}),
        ("rgb.png", colour, {}),
        ("grey.png", grey, {}),
        ("alpha.png", clear, {}),
        ("grey-alpha.png", clear.convert("LA"), {}),
        ("palette.png", palette, {}),
        ("palette-transparent.png", palette, {"transparency": 3}),
        ("bits.png", grey.convert("1"), {}),
        ("16-bit.png", wide, {}),
        ("rgb.gif", palette, {}),
        ("transparent.gif", palette, {"transparency": 3}),
        ("animated.gif", palette, {"save_all": True, "append_images": [palette.rotate(180)]}),
        ("rgb.bmp", colour, {}),
        ("palette.bmp", palette, {}),
        ("grey.bmp", grey, {}),
        ("rgb.dib", colour, {}),
        ("lossless.webp", colour, {"lossless": True}),
        ("alpha.webp", clear, {"quality": 80}),
        ("grey.tif", grey, {}),
        ("16-bit.tif", wide, {}),
        ("float.tif", floats, {}),
        ("cmyk.tif", colour.convert("CMYK"), {"compression": "tiff_lzw"}),
        ("bits.tif", grey.convert("1"), {}),
        ("rgb.ppm", colour, {}),
        ("grey.pgm", grey, {}),
        ("16-bit.pgm", wide, {}),
        ("bits.pbm", grey.convert("1"), {}),
        ("rgb.jp2", colour, {"quality_mode": "dB", "quality_layers": [38]}),
        ("rgb.tga", colour, {}),
        ("two.mpo", colour, {**jpeg, "save_all": True, "append_images": [colour.rotate(180)]}),
    ]
    for name, image, options in plain:
        image.save(folder / name, **options)
    turned: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("rgb{}.jpg", colour, jpeg),
        ("grey{}.jpg", grey, jpeg),
        ("cmyk{}.jpg", colour.convert("CMYK"), jpeg),
        ("turned{}.png", colour, {}),
        ("turned{}.webp", colour, {"quality": 80}),
        ("turned{}.tif", colour, {"compression": "tiff_adobe_deflate"}),
    ]
    if readable("turned.avif"):
        turned.append(("turned{}.avif", colour, {"quality": 60}))
    for name, image, options in turned:
        for tag in range(1, 9):
            exif = Image.Exif()
            exif[ORIENTATION] = tag
            image.save(folder / name.format(tag), exif=exif, **options)
    for i, size in enumerate([(300, 280), (340, 270), (262, 330), (600, 420), (290, 290), (400, 300)]):
        exif = Image.Exif()
        exif[ORIENTATION] = 6 if i == 2 else 1
        Image.fromarray(scene(*size, seed=i + 1)).save(folder / f"photo{i}.jpg", quality=60, exif=exif)
