"""Arrays and tensors as images: shapes, ranges, and the sentence for all else."""

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data.arrays import array_to_image
from alexnet.data.decode import BadImage, decode_image

COLOR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]


@pytest.mark.parametrize(
    ("array", "pixels"),
    [
        (COLOR, COLOR),
        (GRAY, GRAY),
        (GRAY[..., None], GRAY),
        (COLOR / 255, COLOR),
        ((COLOR / 255).astype(np.float16), COLOR),
        (COLOR[::-1], COLOR[::-1]),  # of negative strides
        (torch.from_numpy(COLOR).permute(2, 0, 1), COLOR),
        (torch.from_numpy(COLOR).permute(2, 0, 1) / 255, COLOR),  # as torchvision's ToTensor gives it
        ((torch.from_numpy(GRAY) / 255).requires_grad_(), GRAY),
        ((torch.from_numpy(GRAY[None]) > 127).to(torch.bfloat16), (GRAY > 127) * np.uint8(255)),
    ],
)
def test_arrays_are_the_image_that_their_library_means(array, pixels):
    assert (np.asarray(array_to_image(array)) == pixels).all()


def test_alpha_is_that_of_a_file():
    clear = np.dstack([COLOR, np.zeros((6, 5, 1), np.uint8)])
    assert np.asarray(decode_image(array_to_image(clear))).min() == 255  # over white


def test_values_of_more_than_8_bits_are_those_of_a_file(tmp_path):
    for dtype in (np.uint16, np.int32, np.float32):
        values = (GRAY * 16.0).astype(dtype)
        Image.fromarray(values).save(tmp_path / "deep.tif")
        expected = decode_image(tmp_path / "deep.tif", 1, value_range=(0, 4095))
        assert decode_image(array_to_image(values, (0, 4095)), 1, value_range=(0, 4095)) == expected
    with pytest.raises(BadImage, match="its values are uint16; give uint8 from 0 to 255"):
        array_to_image(GRAY.astype(np.uint16))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLOR * 1.0, "floating-point from 0 to 248, not from 0"),
        (COLOR / 127.5 - 1, "floating-point from -1 to 0.945, not from 0"),
        (np.full((4, 4), np.nan), "floating-point from nan to nan"),
        (GRAY.astype(int), "its values are int64; give uint8"),
        (GRAY > 9, "its values are bool; give uint8"),
        (COLOR.transpose(2, 0, 1), r"its shape is 3×6×5, .* move its channels with \.transpose\(1, 2, 0\)"),
        (torch.from_numpy(COLOR), r"its shape is 6×5×3, .* move its channels with \.permute\(2, 0, 1\)"),
        (np.zeros((7, 8, 9)), "its shape is 7×8×9, and an array must be H×W or H×W×C.*give a list"),
        (np.zeros((0, 8)), "its shape is 0×8"),
        (torch.zeros(()), "it is a Tensor; give a path"),
        (None, "it is a NoneType; give a path"),
    ],
)
def test_all_else_is_refused_in_one_sentence(array, message):
    with pytest.raises(BadImage, match=message):
        array_to_image(array)
