import re
from pathlib import Path
from string import Formatter

import pytest

import alexnet
from alexnet.errors import UserError
from alexnet.messages.translator import LANGUAGES, Translator, load_sentences, load_template, load_texts
from alexnet.models.architectures import ARCHITECTURES

ENGLISH, CHINESE = load_texts("en"), load_texts("zh")


def placeholders(text: str) -> set[tuple[str | None, str | None]]:
    return {(name, form) for _, name, form, _ in Formatter().parse(text) if name is not None}


def test_languages_have_the_same_keys_in_the_same_order():
    assert set(LANGUAGES) == {"en", "zh"}
    assert list(ENGLISH) == list(CHINESE)


@pytest.mark.parametrize("key", ENGLISH)
def test_texts_have_the_same_placeholders_in_both_languages(key):
    assert ENGLISH[key]
    assert placeholders(ENGLISH[key]) == placeholders(CHINESE[key])
    assert not re.search("[\u4e00-\u9fff]", ENGLISH[key])
    untranslated = {
        "saliency_name_grad-cam",
        "f1",
        "top5",
        "result_top1",
        "result_top5",
        "correct_prediction",
        "on_device",
        "web_done_one",
        "web_failed_one",
        "comma",
        "arch_title",
    }
    untranslated |= {f"check_{name}" for name in ("heading", "class_heading", "named", "pair", "reason")}  # punctuation
    untranslated |= {f"operation_{kind}" for kind in ("relu", "tanh", "sigmoid", "lrn", "dropout")}
    assert re.search("[\u4e00-\u9fff]", CHINESE[key]) or key in untranslated


def test_every_text_is_used():
    """Those of the web page are held to its scripts in tests/serving."""
    package = Path(alexnet.__file__).parent
    folders = [package / name for name in ("cli", "data", "export", "messages", "plots", "report", "serving")]
    folders += [package / name for name in ("inference", "models", "notebook", "training")]
    files = [path for folder in folders for path in folder.rglob("*.*") if path.suffix in (".py", ".html", ".js")]
    files.append(package / "progress.py")
    used = set(re.findall(r"""["']([a-z0-9_-]+)["']""", "".join(path.read_text() for path in files)))
    used |= set(re.findall(r"\btexts\.([a-z_-]+)", "".join(path.read_text() for path in files)))
    used |= {f"error_{name}" for name in used}
    prefixes = ["advice", "app", "arch", "docs", "operation", "progress", "result", "split"]
    prefixes += ["saliency", "saliency_name", "saliency_unit"]
    used |= {f"{prefix}_{name}" for prefix in prefixes for name in used} | {f"{name}_note" for name in used}  # composed
    assert not {key for key in ENGLISH if not key.startswith("web_")} - used


@pytest.mark.parametrize("lang", [lang for lang in LANGUAGES if lang != "en"])
def test_sentences_have_the_fields_of_the_english_ones(lang):
    for pattern, translated in load_sentences(lang):
        assert {name for name, _ in placeholders(translated)} <= set(pattern.groupindex), translated


def test_chinese_texts_have_one_word_for_one_thing():
    """For an image (a term such as image classification keeps its own), for unsure, and for to skip."""
    package, top = Path(alexnet.__file__).parent, Path(__file__).parents[2]
    files = [package / "messages/zh.json", package / "messages/sentences.zh.json", top / "README.zh-CN.md"]
    others = "(?<!均值)图像(?!分类|识别|处理)|没有把握|略过"
    for path in [*files, *(top / "docs").rglob("*.zh-CN.md*")]:
        assert re.findall(others, path.read_text(encoding="utf-8")) == [], path.name


def test_sentences_are_translated_with_what_they_name():
    translate = Translator("zh").sentence
    assert translate("it is cut short") == "文件不完整"
    assert translate("Readable but unusual: 1 image; it is PNG, not .jpg (2).") == (
        "有 1 张图片可以读取，但有异常：实际格式为 PNG，而非 .jpg（2 张）。"
    )
    assert translate(
        "Not ready for training: a holds images of one class only, 'b'; a classifier needs two or more."
    ) == ("还不能训练：a 中只有“b”一个类别有图片；分类器至少需要两个。")
    assert translate("Something new about cat (2).jpg. It is cut short.") == (
        "Something new about cat (2).jpg. It is cut short."
    )
    assert Translator().sentence("it is cut short") == "it is cut short"


def test_all_that_architectures_say_of_themselves_is_translated():
    translate = Translator("zh").sentence
    for spec in ARCHITECTURES.values():
        for text in filter(None, (spec.title, spec.repair, *spec.departures)):
            assert translate(text) != text
            assert not re.search("[a-z]{3,} [a-z]{3,} ", translate(text)), "in English"


def test_translator_formats_texts():
    assert Translator("zh")("classes") == "各类别结果"
    assert Translator()("parameters", n=61100840) == "61,100,840 parameters"
    assert [Translator(lang).split("val") for lang in LANGUAGES] == ["validation", "验证集"]
    assert [Translator(lang).join(["a.", "b."]) for lang in LANGUAGES] == ["a. b.", "a.b."]
    with pytest.raises(UserError, match="no language 'de'|'de'"):
        Translator("de")


def test_file_names_are_not_broken_in_their_ending():
    template = load_template("alexnet.report", "parts.html").module
    cell = template.cell("train/cat/a_long_name.jpeg", "file")
    assert 'train/cat/a_<wbr><span class="ending">long_name.jpeg</span>' in cell
    assert ">a.jpg</span>" in template.cell("a-folder/a.jpg", "file")


def test_durations():
    translate = Translator()
    spaces = {ord("\u00a0"): " "}  # no-break spaces
    assert [translate.duration(s).translate(spaces) for s in (3.14, 61, 484, 7026)] == [
        "3.1 s",
        "1 min 1 s",
        "8 min 4 s",
        "1 h 57 min",
    ]
    assert Translator("zh").duration(484) == "8 分 4 秒"
