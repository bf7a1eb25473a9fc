"""Small pictures for the web page, with numpy and Pillow alone: what a network sees, where it looks, what layers give.

Each is a data address, so that a JSON answer holds it and the page needs no second request. Colours are those of
`alexnet show`: orange speaks for a label, blue against it (Okabe and Ito, whom the colour-blind can tell apart).
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageOps

from alexnet.inference.explain import Saliency, Stage

MAPS, COLUMNS = 8, 4  # of each stage: those with the largest mean, in rows of four
SIDE = 256  # pixels, of what the network sees: small pictures are enlarged by whole numbers up to it
THUMBNAIL = 160
FOR, AGAINST = (230, 126, 0), (0, 114, 178)
RAMP = np.array([[0, 24, 56], [0, 114, 178], [240, 228, 66]])  # nothing, half, the stage's largest
GAP = np.array([128, 128, 128], np.uint8)
BETWEEN = 3  # pixels between maps


def data_uri(image: Image.Image, form: str = "PNG") -> str:
    """`image` as an address that holds it."""
    file = io.BytesIO()
    image.save(file, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def png(image: Image.Image) -> bytes:
    """`image` as a PNG file, its pixels unchanged."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def thumbnail(image: Image.Image) -> str:
    """`image` as a data address, at most `THUMBNAIL` pixels wide and high; a small one unchanged."""
    if max(image.size) <= THUMBNAIL:
        return data_uri(image)
    return data_uri(ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL)), "JPEG")


def seen(pixels: np.ndarray) -> Image.Image:
    """What the network sees, uint8 (H, W, 1 or 3), enlarged by a whole number to about `SIDE`: each pixel stays one."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def overlay(found: Saliency) -> Image.Image:
    """The picture in grey, with orange where a place speaks for the label, and blue where against it.

    The strongest half per cent of the places has full colour; nothing is coloured where all are 0.
    """
    back = seen(found.image).convert("L")
    limit = float(np.quantile(np.abs(found.heat), 0.995))
    share = np.clip(found.heat / limit, -1, 1) if limit > 0 else np.zeros_like(found.heat)
    large = Image.fromarray(share.astype(np.float32)).resize(back.size, Image.Resampling.BILINEAR)
    strength = np.asarray(large)[..., None]
    grey = 40 + 0.7 * np.asarray(back, np.float32)[..., None]  # never black: colours show on dark places too
    colours = np.where(strength > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    share_of_colour = 0.85 * np.abs(strength) ** 0.8
    return Image.fromarray(np.rint(grey * (1 - share_of_colour) + colours * share_of_colour).astype(np.uint8))


def sheet(stage: Stage) -> Image.Image:
    """A stage's strongest maps, or its units in rows, from dark (nothing) to yellow (the largest shown)."""
    flat = stage.values.ndim == 1
    values = _rows(stage.values)[None] if flat else stage.values
    maps = values[np.argsort(-values.mean((1, 2)), kind="stable")[:MAPS]]
    largest = max(float(np.nanmax(maps)), 1e-12)
    columns = 1 if flat else COLUMNS
    factor = max(1, SIDE // columns // maps.shape[2])  # whole pixels, so that a value stays a square
    tiles = _coloured(maps / largest).repeat(factor, axis=1).repeat(factor, axis=2)
    count, high, wide = tiles.shape[:3]
    rows = -(-count // columns)
    canvas = np.tile(GAP, (rows * (high + BETWEEN) - BETWEEN, columns * (wide + BETWEEN) - BETWEEN, 1))
    for i, tile in enumerate(tiles):
        top, left = i // columns * (high + BETWEEN), i % columns * (wide + BETWEEN)
        canvas[top : top + high, left : left + wide] = tile
    return Image.fromarray(canvas)


def _rows(values: np.ndarray) -> np.ndarray:
    """A vector broken into rows, about four times as wide as high; NaN where there is nothing."""
    rows = max(1, round((len(values) / 4) ** 0.5)) if len(values) > 40 else 1
    wide = -(-len(values) // rows)
    found = np.full(rows * wide, np.nan, np.float32)
    found[: len(values)] = values
    return found.reshape(rows, wide)


def _coloured(share: np.ndarray) -> np.ndarray:
    """Shares of the largest, (…), as colours, uint8 (…, 3); below 0 is as 0, and NaN is grey."""
    at = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(np.nan_to_num(share), at, RAMP[:, c]) for c in range(3)], axis=-1)
    return np.where(np.isnan(share)[..., None], GAP, np.rint(colours).astype(np.uint8))
