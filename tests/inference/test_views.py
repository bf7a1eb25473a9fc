import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from alexnet.cli import run
from alexnet.data.preprocess import Preprocess
from alexnet.data.sources import load_source
from alexnet.errors import UserError
from alexnet.inference.evaluate import evaluate, forward
from alexnet.inference.predict import load
from alexnet.inference.views import CENTRE, TEN_CROP, cut, uncropped, views_of
from alexnet.networks.model import create_model


def test_ten_crops_are_torchvisions():
    squares = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    ours = list(cut(squares, TEN_CROP, 224))
    theirs = tv.ten_crop(squares, [224])
    assert len(ours) == 10
    for view in theirs:
        assert sum(torch.equal(view, other) for other in ours) == 1


def test_offsets_are_those_of_2012():
    """0, 16 and 32 pixels of the margin of 32."""
    rows = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 256)[None, None]
    tops = [int(view[0, 0, 0, 0]) for view in cut(rows, TEN_CROP, 224)]
    assert tops == [0, 0, 0, 0, 16, 16, 32, 32, 32, 32]


@pytest.mark.parametrize("count", [1, 2, 8, 10, 18, 32, 50])
def test_grids(count):
    views = views_of(count)
    squares = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    found = list(cut(squares, views, 32))
    assert len(found) == len(views) == count
    assert len({view.numpy().tobytes() for view in found}) == count
    assert all(view.shape == (1, 3, 32, 32) for view in found)


def test_a_number_that_makes_no_grid():
    with pytest.raises(UserError, match="take 10 or 18"):
        views_of(15)


def test_the_centre_is_plain_evaluation():
    preprocess = Preprocess(size=24, resize=32)
    squares = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    (view,) = cut(squares, CENTRE, 24)
    assert torch.equal(view, preprocess.fit(squares))
    assert uncropped(preprocess).size == 32


def test_pictures_without_a_margin_get_a_mirrored_one():
    squares = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    views = list(cut(squares, TEN_CROP, 32))
    assert torch.equal(views[4], squares)  # the centre
    assert torch.equal(views[0][..., 1:, 1:], squares[..., :-1, :-1])  # moved by a pixel
    assert torch.equal(views[0][..., 0, 1:], squares[..., 1, :-1])  # and mirrored there


def test_probabilities_are_averaged_not_logits():
    torch.manual_seed(0)
    model = create_model("cifar", width=0.1, init="torch").eval()
    preprocess = Preprocess(size=32)
    squares = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.stack([model(preprocess.normalise(v)).softmax(1) for v in cut(squares, TEN_CROP, 32)]).mean(0)
        found = forward(model, squares, preprocess, TEN_CROP).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_eval_and_predict_share_the_views(small_run, tmp_path, capsys):
    part = load_source("digits").splits["test"]
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
