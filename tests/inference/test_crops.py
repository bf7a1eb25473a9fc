"""Views of test-time augmentation, and the mean of their probabilities."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from alexnet.cli import run
from alexnet.data.datasets import load_dataset
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.crops import CENTER_CROP, TEN_CROP, crop_views, log_mean, make_views, without_center_crop
from alexnet.inference.ensemble import forward
from alexnet.inference.evaluate import evaluate
from alexnet.inference.predict import load
from alexnet.models.model import create_model


def test_ten_crops_match_torchvision():
    squares = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    ours = list(crop_views(squares, TEN_CROP, 224))
    theirs = tv.ten_crop(squares, [224])
    assert len(ours) == 10
    for view in theirs:
        assert sum(torch.equal(view, other) for other in ours) == 1


def test_offsets_are_those_of_2012():
    """0, 16 and 32 pixels of the margin of 32."""
    rows = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 256)[None, None]
    tops = [int(view[0, 0, 0, 0]) for view in crop_views(rows, TEN_CROP, 224)]
    assert tops == [0, 0, 0, 0, 16, 16, 32, 32, 32, 32]


@pytest.mark.parametrize("count", [1, 2, 8, 10, 18, 32, 50])
def test_grids(count):
    views = make_views(count)
    squares = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    found = list(crop_views(squares, views, 32))
    assert len(found) == len(views) == count
    assert len({view.numpy().tobytes() for view in found}) == count
    assert all(view.shape == (1, 3, 32, 32) for view in found)


def test_count_that_forms_no_grid():
    with pytest.raises(UserError, match="use 10 or 18"):
        make_views(15)


def test_center_crop_is_plain_evaluation():
    preprocess = EvalTransform(size=24, resize=32)
    squares = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    (view,) = crop_views(squares, CENTER_CROP, 24)
    assert torch.equal(view, preprocess.resize_batch(squares))
    assert without_center_crop(preprocess).size == 32


def test_images_without_a_margin_are_padded_by_reflection():
    squares = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    views = list(crop_views(squares, TEN_CROP, 32))
    assert torch.equal(views[4], squares)  # the center
    assert torch.equal(views[0][..., 1:, 1:], squares[..., :-1, :-1])  # shifted by a pixel
    assert torch.equal(views[0][..., 0, 1:], squares[..., 1, :-1])  # and reflected there


def test_probabilities_are_averaged_not_logits():
    torch.manual_seed(0)
    model = create_model("cifar", width=0.1, init="torch").eval()
    preprocess = EvalTransform(size=32)
    squares = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.stack(
            [model(preprocess.normalize(v)).softmax(1) for v in crop_views(squares, TEN_CROP, 32)]
        ).mean(0)
        found = forward(model, squares, preprocess, TEN_CROP).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_eval_and_predict_share_the_views(small_run, capsys):
    part = load_dataset("digits").splits["test"]
    found = evaluate(small_run, split="test", views=10, device="cpu")
    assert found["views"] == 10
    classifier = load(small_run, device="cpu")
    p = classifier.probabilities(part.images, TEN_CROP)
    assert found["top1"] == float((p.argmax(1) == part.targets).double().mean())
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert run(["eval", str(small_run), "--ten-crop", "--crops", "18"]) == 2
    assert "--ten-crop is 10 views" in capsys.readouterr().err


def test_several_views_do_not_replace_the_stored_logits(small_run):
    stored = small_run / "evaluation" / "val.parquet"
    before = stored.read_bytes()
    evaluate(small_run, split="val", views=2, device="cpu")
    assert stored.read_bytes() == before


def test_scales_resize_the_image_and_not_the_square():
    preprocess = EvalTransform(size=224, resize=256)
    assert [without_center_crop(preprocess, s).size for s in (0.875, 1, 1.15)] == [224, 256, 294]
    views = make_views(10, (1, 1.15))
    assert len(views) == 20
    with pytest.raises(UserError, match=r"At --scales 0\.8 the image is 205×205 .* use 0\.875 or more"):
        without_center_crop(preprocess, 0.8)


def test_a_mean_image_is_subtracted_at_every_scale():
    model = torch.nn.Flatten().eval()
    preprocess = EvalTransform(size=24, resize=32, mean_image=torch.rand(3, 32, 32), std=(1, 1, 1))
    squares = torch.randint(0, 256, (2, 3, without_center_crop(preprocess, 1.5).size, 48), dtype=torch.uint8)
    found = forward(model, squares, preprocess, CENTER_CROP)
    expected = squares[..., 12:36, 12:36] / 255 - preprocess.mean_image[:, 4:28, 4:28]
    torch.testing.assert_close(found, expected.flatten(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (0,), (1, -1), (5,), (float("nan"),)])
def test_invalid_scales(scales):
    with pytest.raises(UserError, match="--scales takes numbers above 0 and up to 4"):
        make_views(1, scales)


def test_mean_of_certain_predictions_is_finite():
    """Probabilities that float32 cannot hold: 200 nats apart, their mean is the logarithm of one half and -200.7."""
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    found = log_mean([logits, logits.flip(1)])
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, 0.5]]).log().maximum(torch.tensor(-200.0)))
