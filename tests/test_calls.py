"""Calls of the public functions with wrong arguments, and messages with keywords in place of flags."""

import re
from pathlib import Path

import pytest
from PIL import Image

import alexnet
from alexnet import calls
from alexnet.calls import PROSE, as_keywords
from alexnet.plots.kinds import check_arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--top must be at least 1, not 0.", "top= must be at least 1, not 0."),
        ("omit --device cuda, or use --engine exact.", "omit device='cuda', or use engine='exact'."),
        ("--half and --quantize both make it smaller.", "half=True and quantize= both make it smaller."),
        ("skip them with --skip-bad.", "skip them with skip_bad=True."),
        ("use 8 or 10, or --ten-crop.", "use 8 or 10, or views=10."),
        ("give --budget 5, fewer --epochs or a smaller --width.", "give budget=5, fewer epochs= or a smaller width=."),
        ("pack with --value-range=0,4095.", "pack with value_range=(0, 4095)."),
        ("--columns path=NAME,label=NAME reads others.", "columns='path=NAME,label=NAME' reads others."),
        ("try --lr 0.01 or --set clip_norm=1", "try lr=0.01 or clip_norm=1"),
        ("give --set nesterov=false, or --no-flip.", "give nesterov=False, or flip=False."),
        ("--out runs/a is not empty.", "out='runs/a' is not empty."),
        ("use 'alexnet resume RUN --epochs 3'.", "use 'alexnet resume RUN --epochs 3'."),  # a command
        ("There is no run a--b.", "There is no run a--b."),
    ],
)
def test_flags_become_keywords(text, expected):
    assert as_keywords(text) == expected
    assert as_keywords(expected) == expected


VALUES = {
    "auto", "batch", "constant", "cosine", "cpu", "data", "exact", "flip", "jpeg", "kaiming", "lrn", "none",
    "occlusion", "openvino", "plateau", "towers",
}  # fmt: skip


def test_every_word_after_a_flag_is_known_as_prose_or_as_a_value():
    """A word of a new sentence that is in neither set would be shown as the flag's value."""
    found = set()
    for file in Path(calls.__file__).parent.rglob("*.py"):
        if "cli" not in file.parts:
            text = re.sub(r'"""(.|\n)*?"""|#.*', "", file.read_text(encoding="utf-8"))
            found |= set(re.findall(r'[ ("]--[a-z][a-z-]+ ([a-z]+)(?=[ .,;)"])', text))
    assert {"must", "is", "exact"} <= found
    assert found - PROSE - VALUES == set()


class Run:
    run = Path("runs/a")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alexnet.load(), "alexnet.load() needs run: alexnet.load(run, …)."),
        (lambda: alexnet.export("r"), "alexnet.export() needs format: alexnet.export(run, format, …)."),
        (lambda: alexnet.ablate(), "alexnet.ablate() needs claim: alexnet.ablate(claim, …)."),
        (lambda: alexnet.load("r", engin="fast"), "alexnet.load() takes no argument 'engin'; did you mean 'engine'?"),
        (lambda: alexnet.train(epoch=5), "alexnet.train() takes no argument 'epoch'; did you mean 'epochs'?"),
        (lambda: alexnet.train(ouy="a"), "alexnet.train() takes no argument 'ouy'; did you mean 'out'?"),
        (
            lambda: alexnet.train(zzz=1),
            "alexnet.train() takes no argument 'zzz'; help(alexnet.train) says what it takes.",
        ),
        (
            lambda: alexnet.train("digits", "runs/a"),
            "alexnet.train() takes only recipe by position; give the rest by name, such as out=….",
        ),
        (lambda: alexnet.arch(5), "alexnet.arch() takes a str or None as name, not 5."),
        (
            lambda: alexnet.arch("paper", num_classes="5"),
            "alexnet.arch() takes an int or None as num_classes, not '5'.",
        ),
        (
            lambda: alexnet.code("paper", num_class=5),
            "alexnet.code() takes no argument 'num_class'; did you mean 'num_classes' or 'in_channels'?",
        ),
        (lambda: alexnet.arch(width=2), "Name an architecture to set its width, such as alexnet.arch('paper')."),
        (
            lambda: alexnet.show("filters", "r", layr=1),
            "alexnet.show() takes no argument 'layr'; did you mean 'layer'?",
        ),
        (lambda: alexnet.evaluate("r", scales=1.1), "alexnet.evaluate() takes a list as scales, not 1.1."),
        (
            lambda: alexnet.evaluate(Run()),
            "alexnet.evaluate() takes a str, a Path or a list as run, not a Run; give its .run.",
        ),
        (lambda: alexnet.train(progress=True), "alexnet.train() takes a Progress or None as progress, not True."),
        (
            lambda: alexnet.load_weights("lenet", "a.pt"),
            "alexnet.load_weights() takes an AlexNet or a TorchvisionNetwork as model, not 'lenet'.",
        ),
        (lambda: alexnet.LocalResponseNorm(size="5"), "alexnet.LocalResponseNorm() takes an int as size, not '5'."),
        (lambda: alexnet.ablate("lrn", seeds=0), "seeds= must be from 1 to 1000, not 0."),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(call, message):
    with pytest.raises(alexnet.UserError) as raised:
        call()
    assert str(raised.value) == message


def test_a_wrong_type_is_a_type_error_as_in_python():
    with pytest.raises(TypeError):
        alexnet.arch(5)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "; did you mean 'train'?"),
        ("predict", "; predict with alexnet.load(RUN).predict(IMAGE)."),
        ("serve", "; it is a command: run 'alexnet serve' in a terminal."),
    ],
)
def test_unknown_names_suggest_known_ones(name, hint):
    with pytest.raises(AttributeError) as raised:
        getattr(alexnet, name)
    assert str(raised.value) == f"module 'alexnet' has no attribute '{name}'{hint}"


def test_a_folder_with_an_empty_class_is_trained_on_with_a_keyword(tmp_path):
    for name in ("dark", "empty", "light"):
        (tmp_path / name).mkdir()
    for name, level in (("dark", 0), ("light", 255)):
        Image.new("L", (32, 32), level).save(tmp_path / name / "1.png")
    with pytest.raises(alexnet.UserError, match=r"hold no images.*; replace or remove them, .* with skip_bad=True\.$"):
        alexnet.train(tmp_path, epochs=1)


def test_the_same_network_twice_is_no_ensemble(small_run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(small_run)
    with pytest.raises(alexnet.UserError, match=f"{link} are the same network; name it once"):
        alexnet.load([small_run, link])


def test_similar_runs_are_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits-1", "pets"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.json").write_text("{}")
    for given, suggested in (("lastt", "'last'"), ("runs/digit-1", "'runs/digits-1'"), ("digits-1", "'runs/digits-1'")):
        with pytest.raises(alexnet.UserError) as raised:
            alexnet.load(given)
        assert str(raised.value) == f"There is no run {given}; did you mean {suggested}?"
    with pytest.raises(alexnet.UserError, match="There is no checkpoint 'bets'; did you mean 'best'"):
        alexnet.load("runs/pets", checkpoint="bets")


def test_a_missing_extra_is_named_before_anything_is_loaded(small_run, monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setattr("alexnet.errors.find_spec", lambda _: None)
    with pytest.raises(alexnet.UserError, match=r"Saliency needs captum.*alexnet\[show\]"):
        check_arguments("saliency", [str(small_run), str(tmp_path / "a.png")], {})
    monkeypatch.setattr("alexnet.runtimes.manifest._is_installed", lambda name: name != "onnxscript")
    monkeypatch.setattr("alexnet.export.export.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(alexnet.UserError, match=r"onnx needs onnxscript.*alexnet\[fast\]"):
        alexnet.export(small_run, "onnx")
