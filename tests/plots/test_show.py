"""Every kind of figure, drawn from small networks and checked by pixel or word."""

import base64
import re
import shutil
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.datasets import load_digits

from alexnet.checkpoint import save_model
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.messages.translator import Translator
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.model import create_model
from alexnet.models.spec import layers
from alexnet.plots import style
from alexnet.plots.architecture import architecture_figure, receptive_field, receptive_field_figure
from alexnet.plots.kinds import KINDS
from alexnet.plots.metrics import curves_figure
from alexnet.plots.model import (
    Example,
    Predictions,
    conv_weights,
    filter_tiles,
    filters_figure,
    find_examples,
    mistakes_figure,
)
from alexnet.plots.show import draw, show
from alexnet.plots.style import THEMES, rc_params, render, save_figure, shorten
from alexnet.run_dir import Run

LIGHT, DARK = THEMES["light"], THEMES["dark"]
ENGLISH = Translator()


@pytest.fixture
def run(small_run, tmp_path, monkeypatch):
    """A copy of a run on the digits, in a temporary current folder with images/7/seven.png."""
    monkeypatch.chdir(tmp_path)
    digit = np.kron(load_digits().images[7] * (255 / 16), np.ones((4, 4)))
    folder = tmp_path / "images" / "7"
    folder.mkdir(parents=True)
    Image.fromarray(digit.astype(np.uint8)).save(folder / "seven.png")
    (tmp_path / "normed").mkdir()
    normed = create_model("cifar-towers", num_classes=10, in_channels=1, width=0.25)
    levels = EvalTransform(32, channels=1, mean=(0.0,), std=(1 / 255,))
    save_model(tmp_path / "normed", normed, tuple("0123456789"), levels)
    return Path(shutil.copytree(small_run, tmp_path / "run"))


ARGS = {
    "filters": ["run"],
    "activations": ["run", "images/7/seven.png"],
    "saliency": ["run", "images/7/seven.png"],
    "similar": ["run", "images"],
    "top5": ["run", "images"],
    "mistakes": ["run"],
    "curves": ["run"],
    "lrn": ["normed", "images"],
    "architecture": ["paper"],
    "receptive-field": ["run"],
}


def colors_of(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return set(map(tuple, np.unique(pixels, axis=0).tolist()))


FAST_KINDS = ("top5", "curves", "architecture")


@pytest.mark.parametrize("kind", [k if k in FAST_KINDS else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_every_kind_is_drawn_to_its_default_file(run, kind):
    file = show(kind, ARGS[kind], theme="dark")
    default = {
        "architecture": Path("architecture-paper.svg"),
        "receptive-field": Path("receptive-field-run.png"),
    }
    assert file == default.get(kind, file)
    assert file.parent in (Path(), Path("run/show"))
    if kind == "architecture":
        check_dark_svg(file)
        return
    with Image.open(file) as image:
        assert image.width >= 900
        assert image.convert("RGB").getpixel((2, 2)) == tuple(round(255 * c) for c in to_rgb(DARK.background))
    assert len(colors_of(file)) > 20


def check_dark_svg(file):
    text = file.read_text()
    assert DARK.background in text
    assert LIGHT.background not in text.replace("#ffffff;", "")
    assert re.search(r"<text[^>]*>", text)


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "top5" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_every_kind_is_drawn_as_dark_svg(run, kind):
    check_dark_svg(show(kind, ARGS[kind], Path("dark.svg"), "dark"))


def test_html_is_self_contained_with_both_themes(run):
    page = show("filters", ["run"], Path("new/filters.html")).read_text()
    light, dark = (base64.b64decode(found).decode() for found in re.findall(r"base64,([\w+/=]+)", page)[::-1])
    for svg, theme in ((light, LIGHT), (dark, DARK)):
        assert f"fill: {theme.foreground}" in svg
        assert f"fill: {theme.background}" not in svg  # transparent, so that the shadows of the page show
    assert 'media="(prefers-color-scheme: dark)"' in page
    assert not re.search(r'(src|href|srcset)="(?!data:)', page)


def test_html_escapes_names(tmp_path):
    rows = [{"epoch": 1, "split": "val", "train_loss": 1, "val_loss": 1, "train_top1": 0.5, "top1": 0.5}]
    draw = partial(curves_figure, {'"><script>': rows})
    page = save_figure(draw, tmp_path / "a.html").read_text()
    assert "<script" not in page
    assert "<title>Learning curves of &#34;&gt;&lt;script&gt;</title>" in page
    assert b"<script" not in render(draw, LIGHT)


@pytest.mark.filterwarnings("ignore:Glyph")  # no Chinese font may be installed
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow
def test_texts_of_diagrams_do_not_overlap(name, lang):
    """Only the diagrams place their texts themselves; matplotlib lays out all others."""
    with mpl.rc_context(rc_params(LIGHT)):
        figure = architecture_figure(architecture(name), LIGHT, Translator(lang))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in figure.axes[0].texts]
    width = figure.bbox.width
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        for other, another in boxes[:i]:
            assert not box.overlaps(another), (text, other)


# ── architecture ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_diagram_names_every_layer_and_size(name):
    spec = ARCHITECTURES[name]
    svg = render(partial(architecture_figure, spec), LIGHT).decode()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    stack = [layer for layer in layers(spec) if layer.kind in ("conv", "linear")]
    has_towers = any(layer.groups == 2 for layer in stack)
    for layer in stack:
        towers = 2 if has_towers and layer is not stack[-1] else 1
        assert texts.count(layer.name) == towers
        size = "×".join(map(str, (*layer.output[1:], layer.output[0] // towers)))
        assert texts.count(size) >= towers, (layer.name, size)
    assert f"{spec.image_size}×{spec.image_size}×{spec.in_channels}" in texts


def test_towers_are_connected_as_in_the_paper():
    """Two orange lines cross before conv3, fc6 and fc7 each; a network without towers has none."""
    for name, crossings in (("paper", 6), ("code2012", 6), ("cifar-towers", 6), ("one-tower", 0)):
        figure = architecture_figure(ARCHITECTURES[name], LIGHT, ENGLISH)
        assert sum(line.get_color() == LIGHT.orange for line in figure.axes[0].lines) == crossings


# ── filters ───────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_filters_of_conv1_are_shown_in_their_colors(tmp_path):
    """Filters of a single color are shown in that color; zero is gray."""
    model = create_model("cifar", width=0.125, num_classes=2)
    model.conv1.weight.zero_()
    expected = [(255, 128, 128), (128, 255, 128), (0, 128, 255)]
    for i, color in enumerate(expected):
        for channel, value in enumerate(color):
            model.conv1.weight[i, channel] = {0: -1.0, 128: 0.0, 255: 1.0}[value]
    colors = colors_of(save_figure(partial(filters_figure, model, "conv1", "a"), tmp_path / "f.png"))
    saturated = {c for c in colors if max(c) - min(c) > 100}
    for color in expected:
        assert any(max(abs(a - b) for a, b in zip(color, c, strict=True)) <= 1 for c in saturated), color
    assert (128, 128, 128) in colors or (127, 127, 127) in colors


def test_deeper_filters_are_shown_by_their_strongest_channel():
    weights = np.zeros((2, 5, 3, 3), np.float32)
    weights[0, 3], weights[1, 1] = 2, -2
    weights[0, 0] = 0.5
    tiles = filter_tiles(weights, LIGHT)
    np.testing.assert_allclose(tiles[0, 0, 0], to_rgb(LIGHT.orange), atol=0.01)
    np.testing.assert_allclose(tiles[1, 0, 0], to_rgb(LIGHT.blue), atol=0.01)


def test_filters_of_two_towers_are_separate():
    figure = filters_figure(create_model("cifar-towers", width=0.25), "conv1", "a", LIGHT, ENGLISH)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == [
        "conv1, tower 1",
        "conv1, tower 2",
    ]
    assert len(filters_figure(create_model("cifar", width=0.125), None, "a", LIGHT, ENGLISH).axes) == 5
    squeezenet = create_model("torchvision/squeezenet1_1", num_classes=2, image_size=64)
    assert list(conv_weights(squeezenet))[:2] == ["features.0", "features.3.squeeze"]
    filters_figure(squeezenet, None, "a", DARK, ENGLISH)


def test_a_layer_without_filters_is_reported_by_the_call(small_run):
    with pytest.raises(UserError, match="no convolution 'conv9'"):
        draw("filters", [str(small_run)], layer="conv9")


# ── receptive fields ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "layer"),
    [("cifar", "pool2"), ("code2012", "conv3"), ("lenet", "pool2"), ("d2l-unpadded", "conv2")],
)
def test_receptive_field_is_where_the_gradient_is(name, layer):
    spec = architecture(name, width=0.125, image_size=64 if name == "cifar" else None)
    model = create_model(name, width=0.125, image_size=spec.image_size).eval()
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    stack = layers(spec)
    index = [entry.name for entry in stack].index(layer)
    for unit in (0, stack[index].output[1] // 2):
        # with random inputs, every position of a max pool wins in one of the draws
        touched = torch.zeros(spec.image_size, dtype=torch.bool)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            x = torch.rand(1, spec.in_channels, spec.image_size, spec.image_size, generator=generator).requires_grad_()
            model[: index + 1](x)[0, :, unit, unit].sum().backward()
            touched |= x.grad[0].abs().sum((0, 1)) > 0
        first, last = receptive_field(stack, layer, unit)
        pixels = touched.nonzero().flatten()
        assert (int(pixels.min()), int(pixels.max())) == (
            max(0, first),
            min(spec.image_size - 1, last),
        )


@pytest.mark.parametrize(("name", "padding", "dashed"), [("lenet", 0, 0), ("paper", 1, 0), ("cifar", 1, 1)])
def test_notes_on_receptive_fields_are_of_what_is_drawn(name, padding, dashed):
    figure = receptive_field_figure(architecture(name), Image.new("RGB", (64, 64)), LIGHT, ENGLISH)
    frames = [axes.patches[0] for axes in figure.axes if axes.patches]
    assert any(frame.get_linestyle() == "--" for frame in frames) == dashed
    note = figure.get_supxlabel().replace("\n", " ")
    assert ("zeros of padding" in note) == padding
    assert ("dashed frame" in note) == dashed


# ── predictions ───────────────────────────────────────────────────────────────────────────────────


def test_examples_are_the_most_confident_mistakes_and_least_confident_correct():
    logits = np.array([[5.0, 0], [3, 0], [0, 1], [0, 4], [2, 0]], np.float32)
    targets = np.array([1, 1, 1, 1, 0])
    mistakes, correct = find_examples(Predictions(list("abcde"), targets, logits), ("cat", "dog"), 2)
    assert [c.name for c in mistakes] == ["a", "b"]
    assert [(c.name, c.true, c.predicted) for c in correct] == [
        ("c", "dog", "dog"),
        ("e", "cat", "cat"),
    ]
    assert correct[0].confidence == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_network_without_mistakes_has_no_row_of_them():
    example = (Example("a.png", "cat", "cat", 0.6), Image.new("RGB", (8, 8)))
    height = {}
    for name, mistakes in (("with", [example]), ("without", [])):
        figure = mistakes_figure(mistakes, [example], "a", "test", 1234, 1.0, LIGHT, ENGLISH)
        height[name] = figure.get_figheight()
        headings = [part.get_suptitle() for part in figure.subfigs]
    assert headings == ["No mistakes among 1,234 test images.", "Least confident correct predictions"]
    assert sum(axes.get_visible() for axes in figure.axes) == 1
    assert height["without"] < height["with"] - 2


def test_true_label_is_the_folder_name(run):
    svg = show("top5", ["run", "images"], Path("a.svg")).read_text()
    assert "first for 1 of 1" in svg or "first for 0 of 1" in svg
    shutil.copy("images/7/seven.png", "seven.png")
    assert "true label" not in show("top5", ["run", "seven.png"], Path("b.svg")).read_text()


def test_curves_of_several_runs_have_a_legend(run):
    rows = Run(run).metrics()
    figure = curves_figure({"a": rows, "b": rows[:2]}, LIGHT, ENGLISH)
    assert [t.get_text().split(":")[0] for t in figure.axes[1].get_legend().get_texts()] == [
        "a",
        "b",
    ]
    again = shutil.copytree(run, "again")
    assert show("curves", ["run", str(again)]) == Path("curves.png")


def test_names_in_any_script_or_math_markup_are_kept(tmp_path):
    assert shorten("a\nb", 9) == "a?b"
    assert shorten("x" * 50 + "end.jpg", 20).endswith("nd.jpg")
    assert len(shorten("x" * 50, 20)) == 20
    rows = [{"epoch": 1, "split": "val", "train_loss": 1, "val_loss": 1, "train_top1": 0.5, "top1": 0.5}]
    svg = render(partial(curves_figure, {"$x$": rows, "猫": rows}), LIGHT).decode()
    assert "$x$: 50.0%" in svg
    assert "猫: 50.0%" in svg


@pytest.fixture
def stale_fonts(tmp_path, monkeypatch):
    """matplotlib with a cache file from a time when only its own fonts were installed."""
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.fname.startswith(mpl.get_data_path())]
    monkeypatch.setattr(manager, "ttflist", own)
    font_manager.json_dump(manager, tmp_path / "fontlist.json")
    monkeypatch.setattr(manager, "ttflist", font_manager.json_load(tmp_path / "fontlist.json").ttflist)
    style._add_new_fonts.cache_clear()
    yield
    style._add_new_fonts.cache_clear()


def title_figure(title, theme, _):
    return style.new_figure(3, 1, title, "")


def test_fonts_installed_after_the_cache_was_written_are_found(stale_fonts, recwarn):
    if not any("CJK" in path for path in font_manager.findSystemFonts()):
        pytest.skip("no Chinese font is installed")
    one, other = (render(partial(title_figure, title), LIGHT, "png") for title in ("金毛寻回犬", "拉布拉多犬"))
    assert not recwarn.list
    assert one != other  # as boxes would be


def test_letters_without_a_font_are_reported(stale_fonts, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with pytest.warns(UserWarning, match="fonts-noto-cjk"):
        render(partial(title_figure, "金毛寻回犬"), LIGHT, "png", Translator("zh"))


@pytest.mark.parametrize("values", [(0.999, 1.0), (0.5, 0.501), (0.2, 0.9)])
def test_axes_of_percentages_do_not_magnify_chance(values):
    _, axes = style.new_panel()
    axes.plot(values)
    style.use_percent(axes.yaxis)
    low, high = axes.get_ylim()
    assert high - low >= 0.0499
    assert low <= min(values) <= max(values) <= high <= max(1.01, max(values) + 0.05)
    assert axes.yaxis.get_major_formatter()(0.975) == "97.5%"


def test_chinese_letters_count_twice():
    assert shorten("IMG_2024_现场照片_最终版.jpeg", 15) == "IMG_2024_….jpeg"
    assert shorten("现场照片最终版", 14) == "现场照片最终版"
    assert style.is_wide("金毛寻回犬 dog") is True
    assert style.is_wide("a dog 狗") is False


def test_a_checkpoint_without_run_draws_into_the_current_folder(run):
    save_model(
        Path(),
        create_model("lenet"),
        tuple("0123456789"),
        EvalTransform(28, None, 1, (0.5,), (0.5,)),
    )
    assert show("filters", ["."]) == Path("filters.png")
    with pytest.raises(UserError, match=r"\. comes without a run"):
        show("mistakes", ["."])


def test_figures_are_reproducible():
    draw = partial(architecture_figure, ARCHITECTURES["lenet"])
    assert render(draw, DARK) == render(draw, DARK)
