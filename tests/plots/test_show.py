"""Every kind of picture, drawn from real small networks and looked at pixel by pixel or word by word."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.datasets import load_digits

from alexnet.checkpoint import save_model
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.model import create_model
from alexnet.models.spec import layers
from alexnet.plots.architecture import architecture_figure
from alexnet.plots.model import conv_weights, filter_tiles, filters_figure, seen
from alexnet.plots.predictions import curves_figure, find_examples
from alexnet.plots.show import KINDS, show
from alexnet.plots.style import THEMES, clean, rendered, save
from alexnet.run_dir import Run

LIGHT, DARK = THEMES["light"], THEMES["dark"]


@pytest.fixture
def run(small_run, tmp_path, monkeypatch):
    """A copy of a run on the digits, in an empty current folder with seven.png."""
    monkeypatch.chdir(tmp_path)
    digit = np.kron(load_digits().images[7] * (255 / 16), np.ones((4, 4)))
    folder = tmp_path / "pictures" / "7"
    folder.mkdir(parents=True)
    Image.fromarray(digit.astype(np.uint8)).save(folder / "seven.png")
    return Path(shutil.copytree(small_run, tmp_path / "run"))


WORDS = {
    "filters": ["run"],
    "activations": ["run", "pictures/7/seven.png"],
    "saliency": ["run", "pictures/7/seven.png"],
    "similar": ["run", "pictures"],
    "top5": ["run", "pictures"],
    "mistakes": ["run"],
    "curves": ["run"],
    "architecture": ["paper"],
    "receptive-field": ["run"],
}


def colours(path):
    return set(map(tuple, np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).tolist()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws(run, kind):
    file = show(kind, WORDS[kind])
    default = {"architecture": Path("architecture-paper.svg"), "receptive-field": Path("receptive-field-run.png")}
    assert file == default.get(kind, file)
    assert file.parent in (Path(), Path("run/show"))
    if kind != "architecture":
        with Image.open(file) as image:
            assert image.width >= 900
            assert len(colours(file)) > 20
    dark = show(kind, WORDS[kind], Path("dark.svg"), "dark")
    text = dark.read_text()
    assert DARK.paper in text
    assert LIGHT.paper not in text.replace("#ffffff;", "")
    assert re.search(r"<text[^>]*>", text)


def test_html_holds_both_themes_and_nothing_from_elsewhere(run):
    page = show("filters", ["run"], Path("new/filters.html")).read_text()
    light, dark = (base64.b64decode(found).decode() for found in re.findall(r"base64,([\w+/=]+)", page)[::-1])
    assert f"fill: {LIGHT.paper}" in light
    assert f"fill: {DARK.paper}" in dark
    assert 'media="(prefers-color-scheme: dark)"' in page
    assert not re.search(r'(src|href|srcset)="(?!data:)', page)


def test_texts_do_not_overlap():
    """Of the diagrams, whose texts we place ourselves; all other texts are laid out by matplotlib."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from alexnet.plots.style import _style

    for name in ARCHITECTURES:
        with mpl.rc_context(_style(LIGHT)):
            figure = architecture_figure(architecture(name), LIGHT)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in figure.axes[0].texts]
        width = figure.bbox.width
        for i, (text, box) in enumerate(boxes):
            assert box.x0 >= 0, text
            assert box.x1 <= width, text
            for other, another in boxes[:i]:
                assert not box.overlaps(another), (name, text, other)


# ── architecture ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_diagram_names_every_layer_and_size(name):
    spec = ARCHITECTURES[name]
    svg = rendered(lambda theme: architecture_figure(spec, theme), LIGHT).decode()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    stack = [layer for layer in layers(spec) if layer.kind in ("conv", "linear")]
    two = any(layer.groups == 2 for layer in stack)
    for layer in stack:
        towers = 2 if two and layer is not stack[-1] else 1
        assert texts.count(layer.name) == towers
        size = "×".join(map(str, (*layer.output[1:], layer.output[0] // towers)))
        assert texts.count(size) >= towers, (layer.name, size)
    assert f"{spec.image_size}×{spec.image_size}×{spec.in_channels}" in texts


def test_towers_meet_where_the_paper_says():
    """Orange lines cross before conv3, fc6 and fc7, two each; a merged network has none."""
    for name, crossings in (("paper", 6), ("code2012", 6), ("cifar-towers", 6), ("one-tower", 0)):
        figure = architecture_figure(ARCHITECTURES[name], LIGHT)
        assert sum(line.get_color() == LIGHT.orange for line in figure.axes[0].lines) == crossings


# ── filters ───────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_the_picture_shows_conv1s_colours(tmp_path):
    """Filters that are one colour each appear as that colour, zero as grey."""
    model = create_model("cifar", width=0.125, num_classes=2)
    model.conv1.weight.zero_()
    wanted = [(255, 128, 128), (128, 255, 128), (0, 128, 255)]
    for i, colour in enumerate(wanted):
        for channel, value in enumerate(colour):
            model.conv1.weight[i, channel] = {0: -1.0, 128: 0.0, 255: 1.0}[value]
    file = save(lambda theme: filters_figure(model, "conv1", theme), tmp_path / "f.png")
    found = {c for c in colours(file) if max(c) - min(c) > 100}
    for colour in wanted:
        assert any(max(abs(a - b) for a, b in zip(colour, c, strict=True)) <= 1 for c in found), colour
    assert (128, 128, 128) in colours(file) or (127, 127, 127) in colours(file)


def test_deeper_filters_show_their_strongest_slice():
    weights = np.zeros((2, 5, 3, 3), np.float32)
    weights[0, 3], weights[1, 1] = 2, -2
    weights[0, 0] = 0.5
    shown = filter_tiles(weights, LIGHT)
    np.testing.assert_allclose(shown[0, 0, 0], to_rgb(LIGHT.orange), atol=0.01)
    np.testing.assert_allclose(shown[1, 0, 0], to_rgb(LIGHT.blue), atol=0.01)


def test_two_towers_are_apart():
    figure = filters_figure(create_model("cifar-towers", width=0.25), "conv1", LIGHT)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["conv1, tower 1", "conv1, tower 2"]
    assert len(filters_figure(create_model("cifar", width=0.125), None, LIGHT).axes) == 5
    foreign = create_model("torchvision/squeezenet1_1", num_classes=2, image_size=64)
    assert list(conv_weights(foreign))[:2] == ["features.0", "features.3.squeeze"]
    filters_figure(foreign, None, DARK)


# ── receptive fields ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "layer"), [("cifar", "pool2"), ("code2012", "conv3"), ("lenet", "pool2"), ("d2l", "conv2")]
)
def test_what_a_unit_sees_is_where_its_gradient_is(name, layer):
    spec = architecture(name, width=0.125, image_size=64 if name == "cifar" else None)
    model = create_model(name, width=0.125, image_size=spec.image_size).eval()
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    stack = layers(spec)
    upto = [entry.name for entry in stack].index(layer)
    for unit in (0, stack[upto].output[1] // 2):
        # rising values, so that max pools have one winner in turn at every place of their window: sum over shifts
        touched = torch.zeros(spec.image_size, dtype=torch.bool)
        for shift in range(4):
            generator = torch.Generator().manual_seed(shift)
            x = torch.rand(1, spec.in_channels, spec.image_size, spec.image_size, generator=generator).requires_grad_()
            model[: upto + 1](x)[0, :, unit, unit].sum().backward()
            touched |= x.grad[0].abs().sum((0, 1)) > 0
        first, last = seen(stack, layer, unit)
        places = touched.nonzero().flatten()
        assert (int(places.min()), int(places.max())) == (max(0, first), min(spec.image_size - 1, last))


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mistakes_are_the_most_confident_and_successes_the_least():
    logits = np.array([[5.0, 0], [3, 0], [0, 1], [0, 4], [2, 0]], np.float32)
    targets = np.array([1, 1, 1, 1, 0])
    mistakes, lucky = find_examples(list("abcde"), targets, logits, ("cat", "dog"), 2)
    assert [c.name for c in mistakes] == ["a", "b"]
    assert [(c.name, c.true, c.said) for c in lucky] == [("c", "dog", "dog"), ("e", "cat", "cat")]
    assert lucky[0].p == pytest.approx(1 / (1 + np.exp(-1)))


def test_the_true_label_comes_from_the_folder(run):
    svg = show("top5", ["run", "pictures"], Path("a.svg")).read_text()
    assert "1 of 1 first" in svg or "0 of 1 first" in svg
    shutil.copy("pictures/7/seven.png", "seven.png")
    assert "true label" not in show("top5", ["run", "seven.png"], Path("b.svg")).read_text()


def test_curves_of_several_runs_are_told_apart(run):
    rows = Run(run).metrics()
    figure = curves_figure({"a": rows, "b": rows[:2]}, LIGHT)
    assert [t.get_text().split(":")[0] for t in figure.axes[1].get_legend().get_texts()] == ["a", "b"]
    again = shutil.copytree(run, "again")
    assert show("curves", ["run", str(again)]) == Path("curves.png")


def test_names_of_any_script_and_mathematics_stay_as_they_are(tmp_path):
    assert clean("a\nb", 9) == "a?b"
    assert clean("x" * 50 + "end.jpg", 20).endswith("nd.jpg")
    assert len(clean("x" * 50, 20)) == 20
    rows = [{"epoch": 1, "split": "val", "train_loss": 1, "val_loss": 1, "train_top1": 0.5, "top1": 0.5}]
    svg = rendered(lambda theme: curves_figure({"$x$": rows, "猫": rows}, theme), LIGHT).decode()
    assert "$x$: 50.0%" in svg
    assert "猫: 50.0%" in svg


def test_a_lone_checkpoint_draws_into_the_current_folder(run):
    save_model(Path(), create_model("lenet"), tuple("0123456789"), EvalTransform(28, None, 1, (0.5,), (0.5,)))
    assert show("filters", ["."]) == Path("filters.png")
    with pytest.raises(UserError, match=r"\. comes without a run"):
        show("mistakes", ["."])


def test_drawings_are_the_same_each_time(tmp_path):
    spec = ARCHITECTURES["lenet"]
    once, twice = (rendered(lambda theme: architecture_figure(spec, theme), DARK) for _ in range(2))
    assert once == twice
    assert Image.open(io.BytesIO(rendered(lambda t: architecture_figure(spec, t), DARK, "png"))).getpixel((2, 2))[
        :3
    ] == tuple(round(255 * c) for c in to_rgb(DARK.paper))
