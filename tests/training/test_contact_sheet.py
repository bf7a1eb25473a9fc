"""The sheet shows the pixels that it is given, in rows of eight."""

import numpy as np
import torch
from PIL import Image

from alexnet.training.diagnostics import save_image_grid


def test_small_pictures_are_enlarged_and_keep_their_colours(tmp_path):
    images = torch.zeros(9, 3, 32, 32, dtype=torch.uint8)
    images[8, 0] = 200
    save_image_grid(tmp_path / "a.png", images)
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet)
    step = 32 * 4 + 4
    assert pixels.shape == (2 * step - 4, 8 * step - 4, 3)
    assert pixels[step + 10, 10].tolist() == [200, 0, 0]
    assert pixels[10, 10].tolist() == [0, 0, 0]
    assert pixels[step + 10, step + 10].tolist() == [255, 255, 255]


def test_grey_pictures(tmp_path):
    save_image_grid(tmp_path / "a.png", torch.full((1, 1, 224, 224), 7, dtype=torch.uint8))
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.getpixel((5, 5)) == (7, 7, 7)
