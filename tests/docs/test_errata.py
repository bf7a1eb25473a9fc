"""Evidence for docs/errata.md: one test per row that arithmetic or a run can check.

The number in a test name is that of the tutorial. More rows are covered by the last section of
tests/models/test_architectures.py. The end of this file checks that both languages cite exactly these tests.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import alexnet as torchvision_alexnet

from alexnet.cli import run
from alexnet.inference.crops import CENTER_CROP, TEN_CROP, crop_views
from alexnet.models.architectures import ARCHITECTURES, PAPER_LRN
from alexnet.models.initial_weights import INITS
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.spec import Layer, layers
from alexnet.models.summary import summarize
from alexnet.training.recipes import CIFAR10_STD, cifar10_seed
from helpers import data_folder

ROOT = Path(__file__).resolve().parents[2]
ERRATA = ("docs/errata.md", "docs/errata.zh-CN.md")
TUTORIAL_STD = (0.2023, 0.1994, 0.2010)  # as in tutorial 002 and the recipe that reproduces it


def kinds(name: str, number: int | str) -> list[str]:
    """Return the kinds of the layers in block `number`, in order."""
    return [layer.kind for layer in layers(ARCHITECTURES[name]) if layer.name.endswith(str(number))]


def named(name: str) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers(ARCHITECTURES[name])}


def widths(name: str) -> list[int]:
    return [conv.out_channels for conv in ARCHITECTURES[name].convs]


# ── the network ───────────────────────────────────────────────────────────────────────────────────


def test_000_widths_are_those_of_2014() -> None:
    with torch.device("meta"):
        features = torchvision_alexnet().features
    channels = [module.out_channels for module in features if isinstance(module, nn.Conv2d)]
    assert channels == widths("torchvision") == [64, 192, 384, 256, 256]
    assert widths("paper") == widths("code2012") == [96, 256, 384, 384, 256]
    assert "1404.5997" in (torchvision_alexnet.__doc__ or "")  # the 2014 paper, cited by torchvision


def test_000_lrn_comes_before_pooling() -> None:
    assert [n for n in range(1, 6) if "lrn" in kinds("paper", n)] == [1, 2]
    assert [n for n in range(1, 6) if "lrn" in kinds("torchvision-lrn", n)] == [1, 2, 5]
    for n in (1, 2):
        assert kinds("paper", n).index("lrn") < kinds("paper", n).index("maxpool")
        assert kinds("torchvision-lrn", n).index("lrn") > kinds("torchvision-lrn", n).index("maxpool")
    assert (nn.LocalResponseNorm(5).k, PAPER_LRN.k) == (1.0, 2.0)


def test_000_lrn_is_competition_and_only_shrinks_gradients() -> None:
    torch.manual_seed(0)
    lrn = LocalResponseNorm(PAPER_LRN.size, PAPER_LRN.alpha, PAPER_LRN.beta, PAPER_LRN.k).double()
    a = torch.rand(64, 16, 1, dtype=torch.float64) * 300
    raised = a.clone()
    raised[:, 7] += 100
    change = (lrn(raised) - lrn(a)).squeeze(-1)
    assert (change[:, [5, 6, 8, 9]] < 0).all()  # neighbors within the window of five are suppressed
    assert change[:, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15]].abs().max() == 0
    # At most k^-beta = 0.59 of any gradient passes, and less for channels with large activations.
    jacobian = torch.stack([torch.autograd.functional.jacobian(lrn, x[None]).reshape(16, 16) for x in a[:8]])
    strongest = a[:8].squeeze(-1).argmax(1)
    assert torch.linalg.matrix_norm(jacobian, ord=2).max() < 2**-0.75
    assert jacobian[torch.arange(8), strongest, strongest].abs().max() < 0.1


def test_001_lrn_follows_the_relu() -> None:
    assert kinds("paper", 1)[-3:] == kinds("paper", 2)[-3:] == ["relu", "lrn", "maxpool"]
    # The code that produced the published numbers has both orders.
    assert kinds("code2012", 1)[2:] == ["lrn", "maxpool", "relu"]
    assert kinds("code2012", 2)[1:3] == ["relu", "lrn"]


def test_000_lrn_of_five_is_almost_the_identity() -> None:
    """On the outputs of conv1 for images of mean 0 and variance 1, smooth as photographs are."""
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(4, 3, 28, 28), size=224, mode="bicubic")
    images = (images - images.mean()) / images.std()
    features = torchvision_alexnet().features
    with torch.inference_mode():
        maps = features[:3](images)
        ratio = (nn.LocalResponseNorm(5)(maps) / maps)[maps > 0]
    assert 1 - ratio.min() < 0.001
    assert maps.max() > 1


def test_dropout_follows_fc6_and_fc7() -> None:
    for name in ("paper", "code2012", "caffe", "d2l"):
        assert kinds(name, 6) == kinds(name, 7) == ["linear", "relu", "dropout"]
    for name in ("torchvision", "torchvision-lrn", "seed-merged", "cifar"):  # as in tutorials 000, 001 and 002
        assert kinds(name, 6) == kinds(name, 7) == ["dropout", "linear", "relu"]


def test_001_text_and_code_differ() -> None:
    paper, code = named("paper"), named("seed-merged")
    assert (paper["fc6"].output, paper["drop6"].p) == ((4096,), 0.5)
    assert (code["fc6"].output, code["drop6"].p) == ((2048,), 0.2)


def test_001_three_ways_to_55() -> None:
    assert (224 - 11) / 4 + 1 == 54.25  # 54 windows fit without padding
    assert (224 - 11 + 1 + 2) / 4 + 1 == 55  # the text: 1 left, 2 right
    assert (224 - 11 + 2 + 2) / 4 == 54.25  # the code: rounded down, the last column of zeros is never read
    assert (224 - 11 + 0 + 3) / 4 + 1 == 55  # 2012: 0 left, 3 right
    x = torch.rand(1, 3, 224, 224)
    conv = nn.Conv2d(3, 1, 11, stride=4)
    two = nn.functional.pad(x, (2, 2, 2, 2))
    assert torch.equal(conv(two), conv(two[..., :227, :227]))
    for pads in ((1, 2), (2, 1), (0, 3)):
        assert conv(nn.functional.pad(x, (*pads, *pads))).shape[-1] == 55
    assert [named(name)["conv1"].output[1] for name in ("paper", "one-tower", "caffe", "d2l")] == [55, 55, 55, 54]
    assert named("d2l-unpadded")["conv1"].output[1] == 54
    assert named("code2012")["pad1"].padding == 3


def test_001_merging_adds_a_million_parameters() -> None:
    paper, merged = ARCHITECTURES["paper"], ARCHITECTURES["one-tower"]
    assert widths("paper") == widths("one-tower")
    assert (summarize(paper).parameters, summarize(merged).parameters) == (60_965_224, 62_378_344)
    more = {name: named("paper")[name].parameters - layer.parameters for name, layer in named("one-tower").items()}
    assert {name: -n for name, n in more.items() if n} == {"conv2": 307_200, "conv4": 663_552, "conv5": 442_368}


def test_001_overlap_is_independent_of_averaging() -> None:
    """Windows overlap because they are wider than the stride, whether they take the maximum or the mean."""
    for name in ("paper", "torchvision", "d2l"):
        pools = [layer for layer in layers(ARCHITECTURES[name]) if layer.kind == "maxpool"]
        assert [(pool.kernel, pool.stride) for pool in pools] == [(3, 2)] * 3
    x = torch.randn(1, 1, 27, 27)
    assert nn.AvgPool2d(3, 2)(x).shape == nn.MaxPool2d(3, 2)(x).shape == (1, 1, 13, 13)


def test_002_parameters() -> None:
    paper, merged = (summarize(ARCHITECTURES[name]).parameters for name in ("paper", "one-tower"))
    assert (round(paper / 1e6), round(merged / 1e6)) == (61, 62)
    # The layers as the tutorial prints them, with its fc6.
    tutorial = [3 * 64 * 121 + 64, 64 * 192 * 25 + 192, 192 * 384 * 9 + 384, 384 * 256 * 9 + 256, 256 * 256 * 9 + 256]
    tutorial += [256 * 2 * 2 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 10 + 10]
    assert sum(tutorial) == 23_490_378


def test_003_227_is_the_input_size_of_caffe() -> None:
    assert ARCHITECTURES["caffe"].image_size == ARCHITECTURES["caffenet"].image_size == 227
    assert {ARCHITECTURES[name].image_size for name in ("paper", "code2012", "torchvision")} == {224}


def test_003_conv3_to_conv5_start_with_a_std_of_003() -> None:
    printed, code = INITS["paper"], INITS["code2012"]
    assert (printed.std, dict(printed.stds)) == (0.01, {})
    assert dict(code.stds) == {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}


def test_004_channels_are_16_times_those_of_lenet() -> None:
    assert [a / b for a, b in zip(widths("paper"), widths("lenet"), strict=False)] == [16, 16]


def test_004_lost_the_padding_of_the_book() -> None:
    book, tutorial = named("d2l"), named("d2l-unpadded")
    assert (book["conv1"].padding, tutorial["conv1"].padding) == (1, 0)
    shapes = [[(x.output, x.parameters) for x in layer.values()] for layer in (book, tutorial)]
    assert shapes[0] == shapes[1]  # hence nothing complains; tests/models/test_weights.py compares the logits


def test_004_megabytes_of_fc6_and_fc7() -> None:
    for name, size in (("paper", 218_136_576), ("d2l-unpadded", 171_999_232)):
        assert 4 * sum(named(name)[layer].parameters for layer in ("fc6", "fc7")) == size


# ── training and evaluation ───────────────────────────────────────────────────────────────────────


def test_000_ten_crops_are_fixed() -> None:
    """The ten views of an image, whose predictions are averaged, are not random."""
    square = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    first, second = list(crop_views(square, TEN_CROP, 224)), list(crop_views(square, TEN_CROP, 224))
    assert len(first) == 10
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[4], next(crop_views(square, CENTER_CROP, 224)))


def stds(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the std over all pixels and the mean of the stds within each image, (C,) each, of N×H×W×C in [0, 1]."""
    return images.std((0, 1, 2)), images.std((1, 2)).mean(0)


def test_002_std_is_the_mean_over_images() -> None:
    with zipfile.ZipFile(data_folder("cifar10-jpeg.zip")) as archive:
        names = sorted(name for name in archive.namelist() if re.search(r"(^|/)train/.*\.jpg$", name))[::25]
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]) / 255
    overall, within = stds(images)
    assert len(images) == 2000
    np.testing.assert_allclose(overall, CIFAR10_STD, atol=0.002)
    np.testing.assert_allclose(within, TUTORIAL_STD, atol=0.003)


def test_002_mean_of_stds_is_always_too_small() -> None:
    """The total variance is the variance within images plus that between them, which the mean of stds leaves out."""
    torch.manual_seed(0)
    images = (torch.rand(500, 8, 8, 3) * torch.rand(500, 1, 1, 3)).double().numpy()
    overall, within = stds(images)
    between = images.mean((1, 2)).std(0)
    np.testing.assert_allclose(overall**2, images.var((1, 2)).mean(0) + between**2)
    assert (within < overall).all()
    assert cifar10_seed().data.std == TUTORIAL_STD
    # Pixels normalized by it have stds of 1.22 to 1.30 instead of 1.
    assert [round(a / b, 2) for a, b in zip(CIFAR10_STD, TUTORIAL_STD, strict=True)] == [1.22, 1.22, 1.3]


def test_002_evaluation_does_not_move_the_batch() -> None:
    # "meta" stands for a GPU: a device other than that of the batches.
    model, batch = nn.Linear(2, 2, device="meta"), torch.zeros(1, 2)
    with pytest.raises(RuntimeError, match="device"):
        model(batch)
    assert model(batch.to("meta")).shape == (1, 2)


def scaled_loop(
    zero_grad: bool, enabled: bool = True, scale: float = 65536.0, slope: float = 1.0
) -> list[float | None]:
    """Return the multiple of the true gradient that each of four GradScaler steps applies; None if it is skipped."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1 / slope)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=enabled)
    applied: list[float | None] = []
    for _ in range(4):
        if zero_grad:
            optimizer.zero_grad()
        before = float(weight.detach())
        scaler.scale(slope * weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        applied.append(before - float(weight.detach()) or None)
    return applied


def test_002_mixed_precision_without_zero_grad() -> None:
    # If the scaler is disabled, as it is without CUDA, each step applies the sum of all gradients so far.
    assert scaled_loop(zero_grad=True, enabled=False) == [1, 1, 1, 1]
    assert scaled_loop(zero_grad=False, enabled=False) == [1, 2, 3, 4]
    # If it is enabled, the leftover gradient is divided by the scale once more and hardly noticeable …
    assert scaled_loop(zero_grad=False, scale=4.0) == [1, 1.25, 1.3125, 1.328125]
    assert scaled_loop(zero_grad=False) == pytest.approx([1, 1, 1, 1], rel=1e-4)
    # … until one gradient overflows: infinity plus anything is infinity, so every later step is skipped.
    assert scaled_loop(zero_grad=True, scale=2.0**127, slope=2.0) == [None, 1, 1, 1]
    assert scaled_loop(zero_grad=False, scale=2.0**127, slope=2.0) == [None, None, None, None]


def test_002_traced_without_eval_dropout_remains() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(64, 10))
    x = torch.ones(1, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and finds that the outputs vary
        traced = torch.jit.trace(model, x, check_trace=False)
        evaluated = torch.jit.trace(model.eval(), x)
    traced.eval()  # too late
    assert not torch.equal(traced(x), traced(x))
    assert torch.equal(evaluated(x), evaluated(x))


def test_002_accumulation_leaks_into_the_next_epoch() -> None:
    """Of ten batches in windows of four, the last two are applied in the first step of the next epoch."""
    weight = torch.zeros(1, requires_grad=True)
    applied: list[list[float]] = []
    for _ in range(2):
        applied.append([])
        for i in range(10):
            (weight.sum() / 4).backward()
            if (i + 1) % 4 == 0:
                assert weight.grad is not None
                applied[-1].append(float(weight.grad))
                weight.grad = None
    assert applied == [[1.0, 1.0], [1.5, 1.0]]


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def cited_tests(page: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", read(page)))


def rows(page: str) -> list[list[str]]:
    lines = read(page).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d{3}", line)]


@pytest.mark.parametrize("page", ERRATA)
def test_page_cites_exactly_these_tests(page: str) -> None:
    source = Path(__file__).read_text(encoding="utf-8").split("# ── the page")[0]
    own = set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))
    architectures = read("tests/models/test_architectures.py")
    others = set(re.findall(r"^def (test_tutorial_\w+)", architectures, re.MULTILINE))
    assert cited_tests(page) == own | others
    assert re.findall(r"python -m pytest (\S+) (\S+)", read(page)) == [
        ("tests/docs/test_errata.py", "tests/models/test_architectures.py")
    ]


@pytest.mark.parametrize("page", ERRATA)
def test_every_row_has_evidence(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(page)
    assert len(found) >= 22
    for row in found:
        assert len(row) == 4
        assert re.search(r"`(test_\w+|alexnet arch [\w-]+|layers/\S+)`|[Pp]aper, |论文", row[3]), row
    for command in set(re.findall(r"`alexnet (arch [\w-]+)", read(page))):
        assert run(command.split()) == 0
    assert capsys.readouterr().out


def test_both_languages_have_the_same_rows() -> None:
    english, chinese = (rows(page) for page in ERRATA)
    assert [row[0] for row in english] == [row[0] for row in chinese]
    for a, b in zip(english, chinese, strict=True):
        assert re.findall(r"`([^`]+)`", a[3]) == re.findall(r"`([^`]+)`", b[3])
