"""The files of examples/ are what they say: the package's network, update, views and towers, in plain lines."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from alexnet.data.dataset import ImageArrays
from alexnet.data.statistics import color_pca, compute_statistics
from alexnet.data.transforms import EvalTransform
from alexnet.inference.crops import TEN_CROP, crop_views
from alexnet.models.model import create_model
from alexnet.training.optim import make_optimizer
from alexnet.training.recipes import named_recipe
from helpers import CLASS_NAMES, make_image_folder
from ranks import Ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import alexnet_2012  # noqa: E402
import finetune  # noqa: E402
import two_towers  # noqa: E402

LINES = {"alexnet_2012.py": 200, "finetune.py": 100, "two_towers.py": 200}
SMALL = {"width": 0.25, "image_size": 64, "num_classes": 10}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with closing(Ranks(2)) as started:
        yield started


def images(n: int = 8, channels: int = 3, side: int = 64) -> Tensor:
    """Return inputs as in 2012: levels of 0 to 255 minus their mean, float64."""
    return torch.randint(0, 256, (n, channels, side, side)).double() - 127


# ── one file ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", LINES)
def test_a_file_is_short_and_imports_only_torch(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES[name]
    nodes = list(ast.walk(ast.parse(text)))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    allowed = {"torch", "torchvision"} | sys.stdlib_module_names
    allowed |= {"sklearn"} if name == "alexnet_2012.py" else {"alexnet_2012"} if name == "two_towers.py" else set()
    assert {module.partition(".")[0] for module in found} <= allowed


def test_the_network_is_the_papers() -> None:
    """Same names, shapes and number of parameters, and the same initial distribution."""
    with torch.device("meta"):
        theirs = {name: w.shape for name, w in create_model("paper").named_parameters()}
    ours = alexnet_2012.AlexNet()
    assert {name: w.shape for name, w in ours.named_parameters()} == theirs
    assert sum(w.numel() for w in ours.parameters()) == 60_965_224
    for name, layer in ours.named_children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02), name
            assert layer.weight.mean().abs() < 2e-4, name
            assert set(layer.bias.tolist()) == {float(name in ("conv2", "conv4", "conv5", "fc6", "fc7"))}


def test_the_logits_are_the_papers_at_full_size() -> None:
    ours, theirs = alexnet_2012.AlexNet().eval(), create_model("paper").eval()
    theirs.load_state_dict(ours.state_dict())
    x = images(2, side=224).float()
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5 * ours(x).abs().max().item())


@pytest.mark.parametrize(
    ("width", "size", "channels", "classes"), [(0.25, 64, 1, 10), (0.5, 67, 3, 7), (0.25, 97, 3, 4)]
)
def test_narrow_networks_are_the_packages(width: float, size: int, channels: int, classes: int) -> None:
    """At widths of 1/2 and 1/4, with the initial weights of `paper-gain`; logits in float64 to 1e-12 of the largest."""
    theirs = (
        create_model(
            "paper", width=width, image_size=size, in_channels=channels, num_classes=classes, init="paper-gain"
        )
        .double()
        .eval()
    )
    ours = alexnet_2012.AlexNet(width, size, channels, classes).double().eval()
    for name, layer in ours.named_children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            expected = theirs.get_submodule(name)
            assert layer.weight.std().item() == pytest.approx(expected.weight.std().item(), rel=0.1), name
            assert torch.equal(layer.bias, expected.bias), name
    ours.load_state_dict(theirs.state_dict())
    x = images(4, channels, size)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() <= 1e-12 * theirs(x).abs().max()


def test_images_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="use at least 64"):
        alexnet_2012.AlexNet(0.25, 63)


def test_three_steps_are_those_of_the_recipe() -> None:
    """The optimizer of `imagenet-paper`, without the factors that imitate the unscaled dropout of 2012; float64."""
    recipe = named_recipe("imagenet-paper").replace(dropout_2012=False)
    assert recipe.optimization.lr == 0.01
    theirs = create_model("paper", **SMALL, init="paper-gain").double().eval()  # without dropout
    ours = alexnet_2012.AlexNet(0.25, 64, 3, 10).double().eval()
    ours.load_state_dict(theirs.state_dict())
    optimizer, velocities = make_optimizer(theirs, recipe), {w: torch.zeros_like(w) for w in ours.parameters()}
    for lr in (0.01, 0.01, 0.001):  # the rate is inside the velocity: what was built up at the old rate remains
        x, y = images(), torch.randint(10, (8,))
        for group in optimizer.param_groups:
            group["lr"] = lr
        for model in (ours, theirs):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
        alexnet_2012.update(velocities, lr)
    for (name, w), v in zip(theirs.named_parameters(), velocities, strict=True):
        assert (w - v).abs().max() <= 1e-12 * w.abs().max(), name


def test_ten_views_are_the_packages() -> None:
    squares = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    ours, theirs = alexnet_2012.ten_crop(squares, 224), list(crop_views(squares, TEN_CROP, 224))
    assert len(ours) == len(theirs) == 10
    assert all(map(torch.equal, ours, theirs))
    assert all(map(torch.equal, alexnet_2012.ten_crop(squares, 224, mirror=False), theirs[::2]))


def test_mean_image_and_colors_are_the_packages() -> None:
    pixels = torch.randint(0, 256, (20, 3, 9, 9), dtype=torch.uint8) // torch.tensor([1, 2, 3])[:, None, None]
    pixels = pixels.to(torch.uint8)
    mean, components = alexnet_2012.measure(DataLoader([(image, 0) for image in pixels], 7))
    part = ImageArrays(pixels, torch.zeros(20, dtype=torch.long), [str(i) for i in range(20)])
    statistics = compute_statistics(part, EvalTransform(9))
    assert torch.allclose(mean, 255 * statistics.mean_image, atol=1e-4)
    basis = color_pca(statistics.covariance)
    theirs = torch.tensor(basis.std)[:, None] * torch.tensor(basis.vectors).reshape(3, 3)
    ours = components.T.flip(0)  # largest first; the sign of a component is arbitrary
    assert torch.allclose(ours.abs(), theirs.abs(), atol=1e-2)
    assert torch.allclose(ours.T @ ours, theirs.T @ theirs, rtol=1e-4, atol=0.1)


def test_augmentation_crops_mirrors_and_adds_one_color() -> None:
    torch.manual_seed(0)
    square = torch.arange(3 * 12 * 12).reshape(3, 12, 12).float()
    none = torch.zeros(3, 3)
    crops = alexnet_2012.augment(square.expand(400, 3, 12, 12), none, 10, mirror=True)
    windows = [square[:, i : i + 10, j : j + 10] for i in range(3) for j in range(3)]
    windows += [window.flip(-1) for window in windows]
    found = [next(i for i, window in enumerate(windows) if torch.equal(crop, window)) for crop in crops]
    assert set(found) == set(range(18))
    assert alexnet_2012.augment(square[None].repeat(50, 1, 1, 1), none, 12, mirror=False).unique(dim=0).shape[0] == 1
    components = torch.diag(torch.tensor([10.0, 100.0, 1000.0]))
    noise = alexnet_2012.augment(torch.zeros(2000, 3, 2, 2), components, 2, mirror=True)
    assert torch.equal(noise, noise[..., :1, :1].expand_as(noise))
    assert torch.allclose(noise[..., 0, 0].std(dim=0), torch.tensor([1.0, 10.0, 100.0]), rtol=0.1)


def test_the_folder_path_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`--data DIR`, with val/ in place of test/; the three colors of the images are learned."""
    make_image_folder(tmp_path / "train", count=20)
    make_image_folder(tmp_path / "val", count=4)
    sets, classes = alexnet_2012.load_folder(tmp_path, side=73)
    assert [len(part) for part in sets] == [54, 6, 12]
    assert classes == 3
    image, label = sets[2][0]
    assert (image.shape, image.dtype, label) == ((3, 73, 73), torch.uint8, 0)
    torch.manual_seed(0)
    top1, top5 = alexnet_2012.train(alexnet_2012.AlexNet(0.0625, 64, 3, 3), sets, 64, True, 1, 8, 0.01)
    assert 0 <= top1 <= top5 == 1
    assert "epoch  1  rate 0.01  loss" in capsys.readouterr().out
    (tmp_path / "val" / CLASS_NAMES[0]).rename(tmp_path / "val" / "other")
    with pytest.raises(SystemExit, match="class folders of the same names"):
        alexnet_2012.load_folder(tmp_path, side=73)
    monkeypatch.setattr(sys, "argv", ["alexnet_2012.py", "--data", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        alexnet_2012.main()
    assert "none" in capsys.readouterr().err


@pytest.mark.slow
def test_digits_are_learned(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`python examples/alexnet_2012.py`: at least 97 % of the test images."""
    monkeypatch.setattr(sys, "argv", ["alexnet_2012.py"])
    threads = torch.get_num_threads()
    alexnet_2012.main()
    torch.set_num_threads(threads)
    last = capsys.readouterr().out.splitlines()[-1]
    assert float(last.split("top-1 ")[1].split("%")[0]) >= 97, last


# ── two towers ────────────────────────────────────────────────────────────────────────────────────


def step_of(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Take a training step, with dropout; return the logits before it and the weights after it."""
    weights = list(model.parameters())
    torch.manual_seed(1)
    logits = model(x)
    F.cross_entropy(logits, y).backward()
    alexnet_2012.update({w: torch.zeros_like(w) for w in weights}, 0.01)
    return logits.detach(), [w.detach() for w in weights]


def make_whole() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return alexnet_2012.AlexNet(0.25, 64, 3, 10).double(), images(), torch.randint(10, (8,))


def tower_step(evaluate: bool) -> tuple[Any, Any]:
    """Run in each process. Return NumPy arrays, since the sender of a tensor would have to outlive it."""
    torch.distributed.init_process_group("gloo")
    try:
        whole, x, y = make_whole()
        tower = two_towers.Tower(whole).double()
        if evaluate:
            with torch.no_grad():
                return tower.eval()(x).numpy(), []
        logits, weights = step_of(tower.train(), x, y)
        return logits.numpy(), [w.numpy() for w in weights]
    finally:
        torch.distributed.destroy_process_group()


def test_two_towers_are_one_network(processes: Ranks) -> None:
    whole, x, y = make_whole()
    names = [name for name, _ in whole.named_parameters()]
    with torch.no_grad():
        expected = whole.eval()(x)
    for logits, _ in processes(2, tower_step, True):
        assert (torch.from_numpy(logits) - expected).abs().max() <= 1e-12 * expected.abs().max()
    logits, weights = step_of(whole.train(), x, y)
    results = processes(2, tower_step, False)
    for theirs, _ in results:
        assert (torch.from_numpy(theirs) - logits).abs().max() <= 1e-12 * logits.abs().max()
    for name, one, halves in zip(names, weights, zip(*(w for _, w in results), strict=True), strict=True):
        two = torch.cat([torch.from_numpy(half) for half in halves])
        assert two.shape == one.shape, name
        assert (two - one).abs().max() <= 1e-12 * one.abs().max(), name


# ── fine-tuning ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_finetuning_learns_from_given_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a file of weights, here random ones, whose convolutions do not change."""
    torch.manual_seed(0)
    trained = torchvision.models.alexnet()
    for w in trained.parameters():
        if w.ndim > 1:
            nn.init.kaiming_normal_(w)  # torch's own are smaller and would leave nothing of the image in the last layer
    with torch.no_grad():
        trained.classifier[4].weight *= 0.2
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    make_image_folder(tmp_path / "images", count=5)
    command = ["--weights", str(tmp_path / "weights.pth"), "--save", str(tmp_path / "mine.pth"), "--epochs", "5"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", str(tmp_path / "images"), *command])
    finetune.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[-1] < 0.8 * losses[0], lines
    assert lines[-1].endswith("accuracy 100.0%")
    saved = torch.load(tmp_path / "mine.pth", weights_only=True)
    assert saved["classifier.6.weight"].shape == (3, 4096)
    assert torch.equal(saved["features.0.weight"], trained.features[0].weight)
    assert not torch.equal(saved["classifier.1.weight"], trained.classifier[1].weight)


def test_finetuning_without_a_connection_starts_from_scratch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **settings: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    assert finetune.read_weights(None) is None
    assert "no route to host" in (said := capsys.readouterr().out)
    assert "--weights" in said
    with torch.device("meta"):
        assert all(w.requires_grad for w in finetune.make_model(None, 2).parameters())
