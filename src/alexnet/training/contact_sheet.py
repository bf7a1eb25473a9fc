"""Many small pictures in one: what training really reads, to be looked at."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from alexnet.runs import replacing

ACROSS = 8
SIDE = 112  # pixels that a picture is shown with, at least


def write_contact_sheet(path: Path, images: torch.Tensor) -> None:
    """Write uint8 images N×C×S×S (C 1 or 3) as one PNG file, eight in a row; small ones enlarged without smoothing."""
    n, _, side, _ = images.shape
    factor = max(1, round(SIDE / side))
    step = side * factor + 4
    sheet = Image.new("RGB", (ACROSS * step - 4, -(-n // ACROSS) * step - 4), "white")
    for i, image in enumerate(images):
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels).resize((side * factor,) * 2, Image.Resampling.NEAREST)
        sheet.paste(picture, (i % ACROSS * step, i // ACROSS * step))
    sheet.thumbnail((1200, 1200))
    with replacing(path) as beside:
        sheet.save(beside, format="PNG")
