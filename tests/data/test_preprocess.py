"""The same pixels as torchvision's Resize and CenterCrop, and a record that survives JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from alexnet.data.preprocess import Preprocess, centre_crop
from alexnet.errors import UserError

MODES = {"nearest": v2.InterpolationMode.NEAREST, "bilinear": v2.InterpolationMode.BILINEAR}
MODES["bicubic"] = v2.InterpolationMode.BICUBIC


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (257, 257), (61, 40), (30, 299), (64, 64), (301, 256)])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, None), (33, 64)])
def test_evaluation_equals_torchvision(interpolation, shape, size, resize):
    image = picture(*shape)
    theirs = v2.Compose([v2.Resize(resize or size, interpolation=MODES[interpolation]), v2.CenterCrop(size)])
    ours = Preprocess(size, resize, interpolation=interpolation).evaluation(image)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, v2.functional.pil_to_tensor(theirs(image)))


def test_a_picture_of_the_right_size_is_untouched():
    image = picture(32, 32)
    assert torch.equal(Preprocess(32).evaluation(image), v2.functional.pil_to_tensor(image))


def test_stretch_ignores_the_aspect_ratio():
    preprocess = Preprocess(227, 256, stretch=True)
    image = picture(400, 100)
    warped = v2.functional.pil_to_tensor(image.resize((256, 256), Image.Resampling.BILINEAR))
    assert torch.equal(preprocess.evaluation(image), v2.functional.center_crop(warped, [227, 227]))
    assert torch.equal(preprocess.training_square(image), warped)


def test_grey():
    preprocess = Preprocess(16, channels=1, mean=(0.5,), std=(0.25,))
    pixels = preprocess.evaluation(picture(20, 30))
    assert pixels.shape == (1, 16, 16)


def test_training_square_keeps_the_whole_short_side():
    assert Preprocess(224, 256).training_square(picture(500, 300)).shape == (3, 256, 256)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fit_agrees_with_evaluation_on_a_batch(interpolation):
    preprocess = Preprocess(40, 48, interpolation=interpolation)
    images = [picture(64, 64, seed) for seed in range(3)]
    batch = torch.stack([v2.functional.pil_to_tensor(image) for image in images])
    expected = torch.stack([preprocess.evaluation(image) for image in images])
    got = preprocess.fit(batch)
    assert got.dtype == torch.uint8
    assert (got.int() - expected.int()).abs().max() <= 1
    assert preprocess.fit(batch, 48).shape == (3, 3, 48, 48)
    assert torch.equal(Preprocess(64).fit(batch), batch)


def test_cut_is_pillows_resize_of_a_box():
    image = picture(90, 70)
    expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=(10, 5, 80, 65))
    assert torch.equal(Preprocess(32).cut(image, (10, 5, 80, 65)), v2.functional.pil_to_tensor(expected))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalise(layout):
    preprocess = Preprocess(8)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=layout)
    before = batch.clone()
    got = preprocess.normalise(batch)
    expected = v2.functional.normalize(batch.double() / 255, list(preprocess.mean), list(preprocess.std))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(batch, before)


def test_a_mean_image_is_subtracted_by_its_centre():
    mean_image = torch.rand(3, 12, 12)
    preprocess = Preprocess(8, 12, std=(0.5, 0.25, 1.0), mean_image=mean_image)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    got = preprocess.normalise(batch)
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(got.double(), (batch / 255 - mean_image[:, 2:10, 2:10]) / std, rtol=0, atol=1e-5)
    assert got.dtype == torch.float32
    whole = replace(preprocess, size=12)  # as views.py does: the same square, uncropped
    full = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(whole.normalise(full).double(), (full / 255 - mean_image) / std, rtol=0, atol=1e-5)


def test_a_constant_mean_image_is_the_mean():
    plain = Preprocess(8, 12)
    constant = torch.tensor(plain.mean)[:, None, None].expand(3, 12, 12)
    batch = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    got = replace(plain, mean_image=constant).normalise(batch)
    torch.testing.assert_close(got, plain.normalise(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 12), (12, 12, 3), (3, 12)])
def test_a_mean_image_of_another_size_is_refused(shape):
    with pytest.raises(UserError, match=f"{'×'.join(map(str, shape))} does not fit pictures of 3×12×12"):
        Preprocess(8, 12, mean_image=torch.zeros(shape))


def test_json_says_that_there_is_a_mean_image():
    mean_image = torch.rand(3, 12, 12)
    preprocess = Preprocess(8, 12, mean_image=mean_image)
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert values == {**Preprocess(8, 12).to_dict(), "mean_image": True}
    again = Preprocess.from_dict(values, mean_image)
    assert again == preprocess
    assert again.mean_image is mean_image
    for described, image in ((values, None), (Preprocess(8, 12).to_dict(), mean_image)):
        with pytest.raises(UserError, match="belong together"):
            Preprocess.from_dict(described, image)


def test_centre_crop_says_when_the_picture_is_too_small():
    with pytest.raises(UserError, match="8×8"):
        centre_crop(torch.zeros(1, 3, 8, 8), 9)


@pytest.mark.parametrize(
    "preprocess",
    [Preprocess(224, 256), Preprocess(28, channels=1, mean=(0.286,), std=(0.353,), interpolation="bicubic")],
)
def test_survives_json(preprocess):
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


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
        ({"size": 32, "resize": 16}, "cut 32 pixels"),
        ({"size": 0}, "cut 0 pixels"),
        ({"size": 32, "channels": 4}, "not 4"),
        ({"size": 32, "mean": [127, 127, 127]}, "divide values"),
        ({"size": 32, "std": [0, 1, 1]}, "positive"),
        ({"size": 32, "interpolation": "bilinaer"}, "bilinear"),
        ({"size": 32, "mean_image": [0.5]}, "'mean_image'"),
    ],
)
def test_junk_is_refused_with_a_sentence(values, message):
    with pytest.raises(UserError, match=message):
        Preprocess.from_dict(values)
