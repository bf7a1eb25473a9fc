"""Arrays and tensors as images: shapes, ranges, and the sentence for all else."""

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data.arrays import array_to_image, find_scale
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
        (
            np.where(np.eye(4) > 0, np.nan, 0.5)[1:],
            "its value in row 0, column 1 is nan; give finite values from 0 to 1",
        ),
        (torch.tensor([[[0.5, 0.5], [0.5, -torch.inf]]]), "its value in row 1, column 1 is -inf"),
        (GRAY.astype(int), "its values are int64; give uint8"),
        (GRAY > 9, "its values are bool; give uint8"),
        (COLOR.transpose(2, 0, 1), r"its shape is 3×6×5, .* move its channels with \.transpose\(1, 2, 0\)"),
        (torch.from_numpy(COLOR), r"its shape is 6×5×3, .* move its channels with \.permute\(2, 0, 1\)"),
        (np.zeros((7, 8, 9)), r"its shape is 7×8×9, .* for a batch of gray images give list\(x\) or x\[\.\.\., None\]"),
        (torch.zeros(7, 8, 9), r"its shape is 7×8×9, .* for a batch of gray images give list\(x\) or x\[:, None\]"),
        (np.zeros((0, 8)), "its shape is 0×8"),
        (torch.zeros(()), "it is of type Tensor; give a path"),
        (None, "it is of type NoneType; give a path"),
    ],
)
def test_all_else_is_refused_in_one_sentence(array, message):
    with pytest.raises(BadImage, match=message):
        array_to_image(array)


@pytest.mark.parametrize(
    ("arrays", "scale"),
    [
        ([np.full((8, 8), 15, np.uint8)], "such as x / 16."),
        ([np.full((8, 8), 1, np.uint8), np.zeros((8, 8), np.uint8)], "such as x * 255."),
        ([torch.full((1, 8, 8), 4, dtype=torch.uint8)], "such as x / 4."),
        ([np.full((8, 8), 16 / 255)], "such as x / 0.0627."),
        ([np.full((8, 8), 15, np.uint8), np.full((8, 8), 17, np.uint8)], ""),
        ([np.full((8, 8), 0.5)], ""),
        ([np.zeros((8, 8), np.uint8)], ""),
        ([np.zeros((0, 8), np.uint8), "a.png", None, np.full((8, 8), 9)], ""),
        ([np.full((8, 8), np.nan)], ""),
    ],
)
def test_arrays_that_are_nearly_black_get_advice(arrays, scale):
    assert find_scale(arrays).endswith(scale)
    assert bool(find_scale(arrays)) == bool(scale)
