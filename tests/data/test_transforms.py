"""`EvalTransform` yields the pixels of torchvision's Resize and CenterCrop, and survives JSON."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from alexnet import rng
from alexnet.data.augment import BOX_DRAWS, crop_box
from alexnet.data.decode import BadImage, decode_crop, decode_image
from alexnet.data.transforms import EvalTransform, center_crop
from alexnet.errors import UserError
from helpers import data_folder

MODES = {"nearest": v2.InterpolationMode.NEAREST, "bilinear": v2.InterpolationMode.BILINEAR}
MODES["bicubic"] = v2.InterpolationMode.BICUBIC


def make_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (257, 257), (61, 40), (30, 299), (64, 64), (301, 256)])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, None), (33, 64)])
def test_evaluation_equals_torchvision(interpolation, shape, size, resize):
    image = make_photo(*shape)
    theirs = v2.Compose([v2.Resize(resize or size, interpolation=MODES[interpolation]), v2.CenterCrop(size)])
    ours = EvalTransform(size, resize, interpolation=interpolation).eval_tensor(image)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, v2.functional.pil_to_tensor(theirs(image)))


def test_an_image_of_the_right_size_is_unchanged():
    image = make_photo(32, 32)
    assert torch.equal(EvalTransform(32).eval_tensor(image), v2.functional.pil_to_tensor(image))


def test_squash_ignores_the_aspect_ratio():
    preprocess = EvalTransform(227, 256, squash=True)
    image = make_photo(400, 100)
    warped = v2.functional.pil_to_tensor(image.resize((256, 256), Image.Resampling.BILINEAR))
    assert torch.equal(preprocess.eval_tensor(image), v2.functional.center_crop(warped, [227, 227]))
    ours = preprocess.training_square(np.array(image))
    assert (ours.int() - warped.int()).abs().max() <= 1


def test_gray():
    preprocess = EvalTransform(16, channels=1, mean=(0.5,), std=(0.25,))
    pixels = preprocess.eval_tensor(make_photo(20, 30))
    assert pixels.shape == (1, 16, 16)


def test_training_square_keeps_the_short_side():
    image = make_photo(500, 300)
    ours = EvalTransform(224, 256).training_square(np.array(image))
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(256), v2.PILToTensor()])(image)
    assert (ours.int() - theirs.int()).abs().max() <= 1
    untouched = EvalTransform(300).training_square(np.array(image))
    assert torch.equal(untouched, v2.functional.pil_to_tensor(image)[..., 100:400])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_batch_agrees_with_eval_tensor(interpolation):
    preprocess = EvalTransform(40, 48, interpolation=interpolation)
    images = [make_photo(64, 64, seed) for seed in range(3)]
    batch = torch.stack([v2.functional.pil_to_tensor(image) for image in images])
    expected = torch.stack([preprocess.eval_tensor(image) for image in images])
    got = preprocess.resize_batch(batch)
    assert got.dtype == torch.uint8
    assert (got.int() - expected.int()).abs().max() <= 1
    assert preprocess.resize_batch(batch, 48).shape == (3, 3, 48, 48)
    assert torch.equal(EvalTransform(64).resize_batch(batch), batch)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 50), st.sampled_from(list(MODES)[1:]), st.booleans())
def test_resize_crop_is_within_two_levels_of_torchvision(width, height, size, interpolation, gray):
    image = make_photo(90, 70).convert("L" if gray else "RGB")
    left, top = (90 - width) // 2, (70 - height) // 3
    theirs = v2.functional.resized_crop(image, top, left, height, width, [size, size], MODES[interpolation])
    channels = len(image.getbands())
    preprocess = EvalTransform(size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    pixels = np.array(image).reshape(70, 90, channels)[top : top + height, left : left + width]
    ours = replace(preprocess, interpolation=interpolation).resize_crop(pixels)
    assert ours.dtype == torch.uint8
    assert (ours.int() - v2.functional.pil_to_tensor(theirs).int()).abs().max() <= 2


@pytest.mark.parametrize(("size", "largest", "mean"), [(224, 2, 0.05), (64, 90, 1.5)])
def test_training_crops_of_photographs_are_near_the_exact_ones(size, largest, mean):
    """In levels of 255. At 64 pixels about half of them are decoded at half size."""
    differences = []
    for i, path in enumerate(sorted(data_folder("imagenet-photos-200").rglob("*.[jJ]*"))[::10]):
        uniform = rng.uniform(0, 0, [i], "crop", BOX_DRAWS)[0]
        box = partial(crop_box, uniform=uniform, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3))
        image = decode_image(path)
        exact = image.crop(box(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
        got = EvalTransform(size).resize_crop(decode_crop(path, size, box=box))
        differences.append((got.int() - v2.functional.pil_to_tensor(exact).int()).abs().float())
    assert len(differences) == 20
    assert max(float(difference.max()) for difference in differences) <= largest
    assert np.mean([difference.mean() for difference in differences]) < mean


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalize(layout):
    preprocess = EvalTransform(8)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=layout)
    before = batch.clone()
    got = preprocess.normalize(batch)
    expected = v2.functional.normalize(batch.double() / 255, list(preprocess.mean), list(preprocess.std))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(batch, before)
    assert torch.equal(got, preprocess.normalize(batch.contiguous()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_center_of_a_mean_image_is_subtracted(layout):
    mean_image = torch.rand(3, 12, 12)
    preprocess = EvalTransform(8, 12, std=(0.5, 0.25, 1.0), mean_image=mean_image)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=layout)
    got = preprocess.normalize(batch)
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(got.double(), (batch / 255 - mean_image[:, 2:10, 2:10]) / std, rtol=0, atol=1e-5)
    assert got.dtype == torch.float32
    complete = replace(preprocess, size=12)  # as inference/crops.py does: the same square, uncropped
    full = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(complete.normalize(full).double(), (full / 255 - mean_image) / std, rtol=0, atol=1e-5)


def test_a_constant_mean_image_equals_the_mean():
    plain = EvalTransform(8, 12)
    constant = torch.tensor(plain.mean)[:, None, None].expand(3, 12, 12)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    got = replace(plain, mean_image=constant).normalize(batch)
    torch.testing.assert_close(got, plain.normalize(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 12), (12, 12, 3), (3, 12)])
def test_a_mean_image_of_another_size_is_rejected(shape):
    with pytest.raises(UserError, match=f"{'×'.join(map(str, shape))} does not fit images of 3×12×12"):
        EvalTransform(8, 12, mean_image=torch.zeros(shape))


def test_json_marks_a_mean_image():
    mean_image = torch.rand(3, 12, 12)
    preprocess = EvalTransform(8, 12, mean_image=mean_image)
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert values == {**EvalTransform(8, 12).to_dict(), "mean_image": True}
    again = EvalTransform.from_dict(values, mean_image)
    assert again == preprocess
    assert again.mean_image is mean_image
    for described, image in ((values, None), (EvalTransform(8, 12).to_dict(), mean_image)):
        with pytest.raises(UserError, match="do not match"):
            EvalTransform.from_dict(described, image)


def test_center_crop_rejects_a_smaller_image():
    with pytest.raises(UserError, match="8×8"):
        center_crop(torch.zeros(1, 3, 8, 8), 9)


@pytest.mark.parametrize(
    "preprocess",
    [EvalTransform(224, 256), EvalTransform(28, channels=1, mean=(0.286,), std=(0.353,), interpolation="bicubic")],
)
def test_json_round_trip(preprocess):
    assert EvalTransform.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'size'"),
        ([1], "'size'"),
        ({"size": "big"}, "'size'"),
        ({"size": True}, "'size'"),
        ({"size": 32, "rezise": 40}, "did you mean 'resize'"),
        ({"size": 32, "mean": "0.5"}, "'mean'"),
        ({"size": 32, "mean": [0.5]}, "3 channels"),
        ({"size": 32, "resize": 16}, "crop 32 pixels"),
        ({"size": 0}, "crop 0 pixels"),
        ({"size": 32, "channels": 4}, "not 4"),
        ({"size": 32, "mean": [127, 127, 127]}, "divide values"),
        ({"size": 32, "std": [0, 1, 1]}, "positive"),
        ({"size": 32, "interpolation": "bilinaer"}, "bilinear"),
        ({"size": 32, "mean_image": [0.5]}, "'mean_image'"),
    ],
)
def test_invalid_json_is_rejected(values, message):
    with pytest.raises(UserError, match=message):
        EvalTransform.from_dict(values)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_an_image_that_would_become_gigabytes_is_rejected(shape):
    for use in (lambda p, i: p.eval_tensor(i), lambda p, i: p.training_square(np.asarray(i))):
        with pytest.raises(BadImage, match=f"it is {shape[0]}×{shape[1]}, and resized it would be"):
            use(EvalTransform(224, 256), Image.new("RGB", shape))
    assert EvalTransform(28, squash=True).eval_tensor(Image.new("RGB", shape)).shape == (3, 28, 28)
