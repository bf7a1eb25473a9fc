"""The command line as its users meet it: exit codes, one JSON document on stdout, one sentence on stderr."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import alexnet
from alexnet.cli import COMMANDS, run
from alexnet.cli.output import ImportNotice, system_language
from alexnet.models.architectures import ARCHITECTURES
from alexnet.run_dir import Run
from alexnet.training.recipes import RECIPES
from helpers import EVAL_KEYS, make_class_folders, make_image_folder

QUICK = ["--epochs", "1", "--width", "0.125", "--limit-steps", "2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def document(capsys: pytest.CaptureFixture[str]) -> object:
    """Everything on stdout, which must be one JSON document."""
    return json.loads(capsys.readouterr().out)


def test_help_names_every_command(capsys):
    assert run([]) == run(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for command in COMMANDS:
        assert f"\n  {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    assert run([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"alexnet {command}" in out
    assert "--json" in out
    assert not re.search(r"\{None\}|\(default: (None|False)?\)|options options", out)
    assert not re.search(r" (STR|PATH)\b", out.split("\n\n")[0].split("[-h]")[1].replace("--out PATH", ""))  # the usage


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(["pack"], "DATA, FOLDER"), (["features", "last", "a.png"], "--out PATH"), (["eval"], "RUN")],
)
def test_missing_arguments_are_named(capsys, arguments, missing):
    assert run(arguments) == 2
    program = f"alexnet {arguments[0]}"
    expected = f"alexnet: Missing from {program}: {missing}; run '{program} --help' for details.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_explains_itself(capsys, recipe):
    assert run(["train", recipe, "--help"]) == 0
    assert f"alexnet train {recipe}" in capsys.readouterr().out


def test_the_help_of_train_shows_examples_and_groups(capsys):
    assert run(["train", "--help"]) == 0
    out = capsys.readouterr().out
    parts = ["usage: alexnet train RECIPE|FOLDER", "Examples:\n  alexnet train ", "--out "]
    parts += [f" {group} options " for group in ("model", "data", "augmentation", "optimization", "schedule", "run")]
    places = [out.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize("recipe", [(), ("cifar10",)])
def test_the_help_of_train_is_wrapped_and_ends_its_description_with_the_recipes(capsys, monkeypatch, recipe):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["train", *recipe, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    listed = out.split("All recipes:\n")[1].split(";")[0]
    assert [name.strip() for name in listed.split(",")] == list(RECIPES)


def test_the_flags_of_train(capsys):
    """The list is a promise to users: change it knowingly, and keep it under fifty."""
    assert run(["train", "--help"]) == 0
    flags = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", capsys.readouterr().out)) - {"--help"}
    positive = sorted(f for f in flags if not f.startswith("--no-"))
    assert positive == [
        "--accumulate", "--arch", "--augment", "--balance", "--batch-size", "--checkpoint-every",
        "--columns", "--compile", "--cutmix", "--data", "--device", "--early-stop", "--encoding",
        "--epochs", "--force", "--freeze", "--image-size", "--in-channels", "--init", "--json", "--labels", "--lang",
        "--limit-steps", "--live", "--lr", "--mixup", "--momentum", "--norm", "--num-classes", "--open", "--out",
        "--parallel", "--precision", "--resume", "--schedule", "--seed", "--set", "--skip-bad",
        "--tensorboard", "--threads", "--time-budget", "--value-range", "--warmup",
        "--weight-decay", "--weights", "--width", "--workers",
    ]  # fmt: skip
    assert len(positive) < 50


@pytest.mark.parametrize(
    ("variables", "lang"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_lang_follows_the_locale(variables, lang, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert system_language() == lang


def test_a_list_that_is_given_several_times_is_joined(tmp_path: Path):
    words = ["--set", "pct_start=0.4", "lr_gamma=0.3", "--width", "0.1", "--set", "clip_norm=2", "--threads", "1"]
    assert run(["train", "digits", "--limit-steps", "1", *words, "--out", str(tmp_path / "run")]) == 0
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert [recipe[name] for name in ("pct_start", "lr_gamma", "clip_norm", "width")] == [0.4, 0.3, 2, 0.1]


def test_nothing_heavy_is_imported_for_help():
    code = "import sys; from alexnet.cli import run; run(sys.argv[1:]); print(*sorted(sys.modules), file=sys.stderr)"
    for arguments in (["--help"], ["train", "--help"], ["show", "--help"], ["arch", "paper"], ["code", "paper"]):
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=300
        )
        loaded = set(found.stderr.split())
        assert loaded.isdisjoint({"torch", "torchvision", "sklearn", "scipy", "matplotlib", "pandas"}), arguments


MISTAKES = [
    ["trian"], ["eval", "last", "--spilt", "val"], ["eval", "last", "--split", "half"], ["eval", "last"],
    ["eval", "runs/no"], ["eval", "run", "--data", "no"], ["report", "runs/no"], ["resume", "runs/no"],
    ["predict", "runs/no", "a.png"], ["predict", "run", "no.png"], ["export", "runs/no", "onnx"],
    ["export", "run", "onxx"], ["serve", "runs/no"], ["show", "filter", "run"], ["show", "filters", "runs/no"],
    ["show", "saliency", "run", "no.png"], ["show", "architecture", "papre"],
    ["features", "runs/no", "run", "--out", "f.csv"], ["features", "run", "no", "--out", "f.csv"],
    ["check", "no"], ["check", "run"], ["pack", "no", "packed"], ["train", "digts"], ["train", "no/images"],
    ["train", "cifar10", "--data", "no"], ["train", "--epochs", "-1"], ["train", "--arch", "papre"],
    ["train", "--out", "run"], ["train", "--weights", "runs/no"], ["train", "folder", "--labels", "no.csv"],
    ["train", "--labels=no.csv"], ["arch", "papre"], ["code", "papre"],
    ["ablate", "lnr"], ["ablate", "lrn", "--data", "no"], ["bench", "trian"], ["bench", "--arch", "papre"],
]  # fmt: skip


def test_mistakes_are_answered_without_importing_torch(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").write_text("{}")
    code = (
        "import json, sys; from alexnet.cli import run\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    code = run(words)\n"
        "    assert code == 2 and not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules), (words, code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(MISTAKES)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("alexnet: ") == len(MISTAKES)


def test_missing_data_is_reported_without_importing_numpy(tmp_path):
    commands = [["check", "no"], ["check", "no.zip", "--html", "page.html"], ["pack", "no", "packed"]]
    tables = [
        ["check", "--labels", "no.csv"],
        ["check", ".", "--labels", "no.csv"],
        ["pack", ".", "a", "--labels=no.csv"],
    ]
    code = (
        "import json, sys; from alexnet.cli import run\n"
        "for words in json.loads(sys.argv[1]): assert run(words) == 2 and 'numpy' not in sys.modules, words"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands + tables)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stderr.splitlines()
    for words, line in zip(commands, lines[:3], strict=True):
        assert line == f"alexnet: There is no folder or archive {words[1]}; check its path."
    assert lines[3:] == ["alexnet: There is no label file no.csv; check the path given as --labels."] * len(tables)


def test_images_are_checked_without_importing_torch(tmp_path):
    make_class_folders(tmp_path / "pets", {"cat": 3, "dog": 3})
    code = "import sys; from alexnet.cli import run; assert run(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    found = subprocess.run(
        [sys.executable, "-c", code, "check", "pets"], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == "Reading pets …\n"


def test_the_first_large_import_is_announced(capsys, monkeypatch):
    notice = ImportNotice()
    monkeypatch.setattr(sys, "meta_path", [notice, *sys.meta_path])
    for name in ("json", "torch", "torch.nn", "matplotlib"):
        for finder in list(sys.meta_path):
            finder.find_spec(name, None, None)
    assert capsys.readouterr().err == "Loading PyTorch …\n"
    assert notice not in sys.meta_path


@pytest.mark.slow
def test_torchvision_is_not_imported_before_it_is_needed():
    code = "import sys, alexnet.training.api, alexnet.data.datasets; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_python_m_alexnet():
    found = subprocess.run(
        [sys.executable, "-m", "alexnet", "arch", "nothing"], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 2
    assert found.stderr.startswith("alexnet: There is no architecture 'nothing'")


def test_arch_prints_the_table(capsys):
    assert run(["arch"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ARCHITECTURES)
    assert "60,965,224" in out
    assert run(["arch", "--json"]) == 0
    rows = document(capsys)
    assert {"name", "parameters", "macs", "image_size", "in_channels", "source"} <= set(rows[0])
    assert len(rows) == len(ARCHITECTURES)


def test_arch_prints_one_layer_by_layer(capsys):
    assert run(["arch", "paper", "--image-size", "128", "--num-classes", "7"]) == 0
    out = capsys.readouterr().out
    assert "conv1" in out
    assert "fc8" in out
    assert run(["arch", "code2012", "--json"]) == 0
    found = document(capsys)
    assert found["parameters"] == 60_965_224
    assert {"name", "type", "output", "parameters", "macs", "receptive_field"} <= set(found["layers"][0])
    conv1 = next(r for r in found["layers"] if r["name"] == "conv1")
    assert conv1["output"] == [96, 55, 55]


def test_code_prints_or_writes_the_source_of_an_architecture(capsys, tmp_path):
    settings = ["--image-size", "64", "--num-classes", "7", "--in-channels", "1", "--norm", "batch", "--width", "0.5"]
    assert run(["code", "paper", *settings]) == 0
    source, _ = capsys.readouterr()
    expected = alexnet.code("paper", image_size=64, num_classes=7, in_channels=1, norm="batch", width=0.5)
    assert source == expected
    assert "N x 1 x 64 x 64" in source

    assert run(["code", "paper", *settings, "--out", "nets/a.py"]) == 0
    assert capsys.readouterr().out == "nets/a.py\n"
    assert Path("nets/a.py").read_text() == source
    assert run(["code", "paper", *settings, "--json"]) == 0
    assert document(capsys) == {"name": "paper", "code": source, "files": []}

    assert run(["code", "paper", "--out", "nets"]) == 2
    assert capsys.readouterr().err == "alexnet: nets is a folder; give the name of a file in it.\n"
    assert Path("nets").is_dir()
    assert run(["code", "torchvision/resnet18"]) == 2
    assert "torchvision/models/resnet.py" in capsys.readouterr().err


def test_train_eval_predict_report(capsys, tmp_path):
    assert run(["train", *QUICK, "--out", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["run"] == "run"
    assert {"best", "final", "epochs", "seconds", "images_per_second", "parameters"} <= set(summary)
    assert re.search(r"^2/\d+ of epoch 1  loss ", err, re.MULTILINE)
    assert (tmp_path / "run" / "report.html").is_file()

    assert run(["eval", "run", "--split", "val", "--json"]) == 0
    found = document(capsys)
    assert found["top1"] == summary["best"]["top1"]
    assert set(found) >= EVAL_KEYS | {"ece", "coverage"}
    assert found["calibration"]["n"] == found["n"]
    assert summary["calibration"] == found["calibration"]
    assert run(["eval", "run"]) == 0
    assert "precision" in capsys.readouterr().out

    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save("a.png")
    Path("b.png").write_bytes(b"not an image")
    assert run(["predict", "run", "a.png", "b.png", "--json", "--top", "3"]) == 0
    good, bad = document(capsys)["predictions"]
    assert (good["path"], good["error"], len(good["labels"])) == ("a.png", None, 3)
    assert bad["labels"] == []
    assert bad["error"]
    assert run(["predict", "run", "a.png"]) == 0
    assert capsys.readouterr().out.startswith("a.png: ")

    assert run(["report", "run", "--json"]) == 0
    files = document(capsys)["files"]
    assert (files[0], "run/report/loss.svg" in files) == ("run/report.html", True)


def test_a_page_that_cannot_be_written_does_not_fail_the_run(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alexnet.report.report.write_report", full)
    assert run(["train", *QUICK, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "No space left on device" in err
    assert "alexnet report run" in err
    assert "Next:" in out


def test_after_training_the_next_commands_are_shown_and_last_is_its_run(capsys, skip_plots):
    assert run(["train", *QUICK]) == 0
    out = capsys.readouterr().out
    (folder,) = Path("runs").iterdir()
    assert f"alexnet eval {Path('runs', folder.name)}" in out
    assert f"alexnet predict {Path('runs', folder.name)}" in out
    assert run(["eval", "last", "--json"]) == 0
    assert document(capsys)["split"] == "test"


def test_training_own_images_names_run_and_export_after_them(capsys, tmp_path, skip_plots, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    make_image_folder(tmp_path / "my pets")
    assert run(["train", "--data", "my pets", "--open", *QUICK]) == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"my-pets-\d{8}-\d{6}", folder.name)
    assert Run(folder).name == "my-pets"
    out = capsys.readouterr().out
    following = [line.split()[1] for line in out.split("Next:\n")[1].splitlines()]
    assert following == ["predict", "eval", "show", "serve", "report"]
    (page,) = opened
    assert page == (folder / "report.html").resolve().as_uri()


def test_an_empty_class_folder_is_left_out_on_request(capsys, skip_plots):
    make_image_folder(Path("pets"))
    Path("pets", "none").mkdir()
    Path("pets", "broken.d").mkdir()
    Path("pets", "broken.d", "a.png").write_bytes(b"nothing")
    assert run(["check", "pets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  Classes without readable training images: broken.d; --skip-bad trains without them." in lines
    assert run(["check", "pets", "--fix", "pets-clean"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  alexnet train pets-clean"
    assert set(os.listdir("pets-clean")) == set(os.listdir("pets")) - {"none", "broken.d"}

    command = lines[lines.index("Or from scratch:") + 1]
    assert command == "  alexnet train folder --data pets --skip-bad"
    assert run([*command.split()[1:], *QUICK, "--out", "run"]) == 0
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == len(set(messages))  # although the images were read three times
    (skipped,) = (text for text in messages if text.startswith("Skipped "))
    for part in ("none/ (the class folder holds no images)", "broken.d/ (none of the training images of this class"):
        assert part in skipped
    assert Path("run", "bad_files.csv").read_text().splitlines()[1:3] == [
        "broken.d/,none of the training images of this class can be read",
        "none/,the class folder holds no images",
    ]
    assert run(["resume", "run", "--epochs", "+1"]) == 0


def test_predict_counts_what_could_not_be_read(small_run, capsys):
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save("a.png")
    Path("b.png").write_bytes(b"not an image")
    assert run(["predict", str(small_run), "a.png", "b.png"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == ("1 of 2 images could not be read; each has its reason above.")


def test_a_picture_on_stdin(small_run, capsys, monkeypatch):
    picture = io.BytesIO()
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save(picture, "PNG")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(picture.getvalue())))
    assert run(["predict", str(small_run), "-", "--json"]) == 0
    (prediction,) = document(capsys)["predictions"]
    assert prediction["path"] == "-"
    assert prediction["labels"]


@pytest.mark.slow
def test_resume_from_the_command_line(capsys, small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    assert run(["resume", str(copy), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "is finished; --epochs +N extends it" in err
    assert json.loads(out)["epochs"] == 4
    assert run(["resume", str(copy), "--epochs", "+1", "--json"]) == 0
    assert document(capsys)["epochs"] == 5


@pytest.mark.slow
def test_ablate_lists_the_claims_and_tests_one(capsys, tmp_path):
    assert run(["ablate", "--list", "--json"]) == 0
    claims = document(capsys)
    assert {"lrn", "dropout", "ten-crop", "tower-talk"} < {c["claim"] for c in claims}
    assert all(c["says"] and c["source"] and c["figure"] for c in claims)
    assert run(["ablate", "ten-crop", "--epochs", "1", "--lr", "0.01", "--seeds", "1", "--out", "a", "--json"]) == 0
    found = document(capsys)
    assert found["claim"] == "ten-crop"
    assert found["verdict"] == "cannot tell"  # a single pair
    assert [arm["name"] for arm in found["arms"]] == ["ten views", "one view"]
    assert all(Path(file).is_file() for file in found["files"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a claim"),
        (["lnr"], "did you mean 'lrn'"),
        (["lrn", "--seeds", "0"], "--seeds must be from 1"),
        (["lrn", "--budget", "0"], "--budget must be a number of minutes above 0"),
        (["lrn", "--data", "nowhere"], "There is no folder or archive nowhere"),
        (["lrn", "--recipe", "cifar11"], "did you mean 'cifar10'"),
    ],
)
def test_ablate_rejects_bad_input(capsys, tmp_path, arguments, message):
    assert run(["ablate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_debug_shows_where(capsys):
    with pytest.raises(ValueError, match="no architecture"):
        run(["arch", "nothing", "--debug"])


def test_a_failure_of_ours_is_exit_code_1(capsys, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setitem(COMMANDS, "doctor", broken)
    assert run(["doctor"]) == 1
    assert "internal error: RuntimeError: inside (--debug shows where)" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_failure():
    command = [sys.executable, "-m", "alexnet", "arch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_another_broken_pipe_is_a_failure(capsys, monkeypatch):
    def broken(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setitem(COMMANDS, "doctor", broken)
    assert run(["doctor"]) == 1
    assert "internal error: BrokenPipeError" in capsys.readouterr().err


def test_show_and_features_print_their_file(small_run, capsys):
    assert run(["show", "architecture", "lenet"]) == 0
    assert capsys.readouterr() == ("architecture-lenet.svg\n", "")
    assert run(["show", "curves", str(small_run), "--out", "new/c.html", "--json"]) == 0
    assert document(capsys) == {"files": ["new/c.html"]}
    assert Path("new/c.html").is_file()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("a.png")
    Path("bad.png").write_bytes(b"not an image")
    assert run(["features", str(small_run), ".", "--layer", "conv5", "--out", "f.csv", "--json"]) == 0
    found = document(capsys)
    assert (found["file"], found["n"], found["module"]) == ("f.csv", 1, "relu5")
    assert [error["path"] for error in found["errors"]] == ["bad.png"]
    assert run(["features", str(small_run), "a.png", "--out", "f.parquet"]) == 0
    assert capsys.readouterr().out.startswith("f.parquet: 1 images, ")
