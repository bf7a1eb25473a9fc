"""Bad input for every command: a function that writes the files, and the arguments after `alexnet`.

The wording of the errors is tested elsewhere (`test_bad_input.py`), so that it can change without these cases. RUN in
the arguments is a small finished run. The names of the functions are part of the keys in bad_input.json.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Setup = Callable[[Path], None]
"""Prepares the working folder of the command, which contains the run as `run`."""


def save_noise(path: Path, seed: int = 0) -> None:
    """Write a small image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(path)


def good_folder(here: Path) -> None:
    """Write two classes of three images."""
    for i, name in enumerate(("a", "b")):
        for n in range(3):
            save_noise(here / "data" / name / f"{n}.png", 10 * i + n)


def empty_class(here: Path) -> None:
    good_folder(here)
    (here / "data" / "c").mkdir()


def one_class(here: Path) -> None:
    save_noise(here / "data" / "a" / "0.png")
    save_noise(here / "data" / "a" / "1.png")


def unreadable(here: Path) -> None:
    good_folder(here)
    (here / "data" / "b" / "1.png").write_bytes(b"<html>not found</html>")


def no_images(here: Path) -> None:
    (here / "data" / "a").mkdir(parents=True)
    (here / "data" / "a" / "notes.txt").write_text("not an image", encoding="utf-8")


def a_file(here: Path) -> None:
    (here / "data").write_text("", encoding="utf-8")


def flat(here: Path) -> None:
    save_noise(here / "data" / "x.png")


def only_val(here: Path) -> None:
    save_noise(here / "data" / "val" / "a" / "0.png")
    save_noise(here / "data" / "val" / "b" / "0.png")


def taken(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "recipe.json").write_text("{}", encoding="utf-8")


def full(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.doc").write_text("important", encoding="utf-8")


def unfinished_pack(here: Path) -> None:
    (here / "data" / ".packing").mkdir(parents=True)


def broken_zip(here: Path) -> None:
    (here / "pets.zip").write_bytes(b"PK\x03\x04 and no more")


def climbing_zip(here: Path) -> None:
    with zipfile.ZipFile(here / "pets.zip", "w") as file:
        file.writestr("../../cat.jpg", "x")


def pictures(here: Path) -> None:
    save_noise(here / "a.png")
    (here / "empty.png").write_bytes(b"")


def a_folder_of_nothing(here: Path) -> None:
    (here / "other").mkdir()


def no_run(here: Path) -> None:
    (here / "run" / "recipe.json").unlink()


def cut_weights(here: Path) -> None:
    for path in (here / "run" / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1000])


def cut_description(here: Path) -> None:
    for path in (here / "run" / "checkpoints").glob("*/model.json"):
        path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")


def of_other_software(here: Path) -> None:
    for path in (here / "run" / "checkpoints").glob("*/model.json"):
        path.write_text(json.dumps({"arch": "resnet18", "epoch": 3}), encoding="utf-8")


def cut_training(here: Path) -> None:
    for path in (here / "run" / "checkpoints").glob("*/training.pt"):
        path.write_bytes(path.read_bytes()[:1000])


def number_for_a_summary(here: Path) -> None:
    (here / "run" / "summary.json").write_text("5", encoding="utf-8")


def no_metrics(here: Path) -> None:
    (here / "run" / "metrics.jsonl").unlink()


def not_exported(here: Path) -> None:
    (here / "net.onnx").write_bytes(b"nothing")
    save_noise(here / "a.png")


def empty_token(here: Path) -> None:
    (here / "token").write_text("", encoding="utf-8")


def recipe(text: str) -> Setup:
    """Return a function that writes `text` to recipe.json."""

    def recipe_json(here: Path) -> None:
        (here / "recipe.json").write_text(text, encoding="utf-8")

    return recipe_json


def table(text: str) -> Setup:
    """Return a function that writes class folders, and `text` to labels.csv."""

    def labels_csv(here: Path) -> None:
        good_folder(here)
        (here / "labels.csv").write_text(text, encoding="utf-8")

    return labels_csv


def nothing(here: Path) -> None:
    """Write no files."""


CASES: list[tuple[Setup, str]] = [
    (nothing, "trian"),
    (nothing, "train digist --out out"),
    (nothing, "train folder --out out"),
    (nothing, "train folder --data data --out out"),
    (nothing, "train nowhere/ --out out"),
    (nothing, "train nowhere.json --out out"),
    (nothing, "train --data x --out out"),
    (nothing, "train --epoch 3 --out out"),
    (nothing, "train --epochs ten --out out"),
    (nothing, "train --epochs 0 --out out"),
    (nothing, "train --lr -1 --out out"),
    (nothing, "train --lr nan --out out"),
    (nothing, "train --width 0 --out out"),
    (nothing, "train --warmup 1 --out out"),
    (nothing, "train --schedule stairs --out out"),
    (nothing, "train --precision fp8 --out out"),
    (nothing, "train --arch papre --out out"),
    (nothing, "train --arch torchvision/resnet81 --out out"),
    (nothing, "train --init xavir --out out"),
    (nothing, "train --weights runs/none --out out"),
    (nothing, "train --freeze conv1-conv9 --out out"),
    (nothing, "train --freeze conv1-fc8 --out out"),
    (nothing, "train --augment wild --out out"),
    (nothing, "train --time-budget 10 --out out"),
    (nothing, "train --set padding --out out"),
    (nothing, "train --set padding=much --out out"),
    (nothing, "train --set crop_group=0 --out out"),
    (nothing, "train --num-classes 5 --out out"),
    (nothing, "train digits stray --out out"),
    (nothing, "train --resume"),
    (nothing, "train --arch cifar-towers --parallel towers --out out"),
    (taken, "train --out out"),
    (full, "train --out out"),
    (recipe("{"), "train recipe.json --out out"),
    (recipe('{"epochz": 1}'), "train recipe.json --out out"),
    (
        recipe('{"schedule": "constant", "lr_changes": [{"epoch": 2, "lr": "low"}]}'),
        "train recipe.json --out out",
    ),
    (recipe('{"pca_noise": 0.1}'), "train recipe.json --out out"),
    (recipe('{"mean_image": "nowhere.npy"}'), "train recipe.json --out out"),
    (a_file, "train folder --data data --out out"),
    (empty_class, "train data --out out"),
    (one_class, "train data --out out"),
    (no_images, "train data --out out"),
    (unreadable, "train data --out out"),
    (flat, "train data --out out"),
    (only_val, "train data --out out"),
    (unfinished_pack, "train data --out out"),
    (climbing_zip, "train pets.zip --out out"),
    (good_folder, "train cifar10 --data data --out out"),
    (good_folder, "train fashion-mnist --data data --out out"),
    (good_folder, "train data --arch paper --image-size 32 --out out"),
    (table("path,label\n"), "train folder --data data --labels labels.csv --out out"),
    (
        table("path,label\na/0.png,a\na/9.png,b\nb/0.png,b\n"),
        "train folder --data data --labels labels.csv --out out",
    ),
    (nothing, "resume nowhere"),
    (nothing, "resume RUN --epochs soon"),
    (cut_training, "resume RUN --epochs +1"),
    (number_for_a_summary, "resume RUN"),
    (nothing, "eval"),
    (nothing, "eval nowhere"),
    (nothing, "eval last"),
    (nothing, "eval RUN --split vall"),
    (nothing, "eval RUN --data nowhere"),
    (nothing, "eval RUN --crops 15"),
    (nothing, "eval RUN --scales 0.5"),
    (nothing, "eval RUN --engine fastest"),
    (good_folder, "eval RUN --data data"),
    (a_folder_of_nothing, "eval other"),
    (no_run, "eval RUN"),
    (cut_weights, "eval RUN"),
    (cut_description, "eval RUN"),
    (of_other_software, "eval RUN"),
    (not_exported, "eval net.onnx"),
    (nothing, "predict RUN"),
    (nothing, "predict RUN nowhere.png"),
    (pictures, "predict RUN empty.png"),
    (pictures, "predict RUN a.png --top 0"),
    (pictures, "predict RUN a.png --engine openvnio"),
    (pictures, "predict RUN a.png --out x.txt"),
    (pictures, "predict RUN a.png --out no/x.csv"),
    (not_exported, "predict net.onnx a.png"),
    (nothing, "arch alexnet"),
    (nothing, "arch torchvision/resnet"),
    (nothing, "arch paper --image-size 16"),
    (nothing, "arch paper --num-classes 0"),
    (nothing, "check"),
    (nothing, "check data"),
    (a_file, "check data"),
    (no_images, "check data"),
    (broken_zip, "check pets.zip"),
    (climbing_zip, "check pets.zip"),
    (good_folder, "check data --fix data/clean"),
    (good_folder, "check data --html no/page.html"),
    (table("image,kind\na/0.png,a\n"), "check data --labels labels.csv"),
    (nothing, "pack data packed"),
    (good_folder, "pack data data/packed"),
    (good_folder, "pack data packed --size all"),
    (good_folder, "pack data packed --format uint8 --size original"),
    (nothing, "report nowhere"),
    (nothing, "show"),
    (nothing, "show filter RUN"),
    (nothing, "show filters"),
    (nothing, "show filters RUN --layer conv9"),
    (nothing, "show filters RUN --out a.jpg"),
    (nothing, "show architecture papre"),
    (no_metrics, "show curves RUN"),
    (pictures, "show top5 RUN empty.png"),
    (pictures, "features RUN a.png"),
    (pictures, "features RUN a.png --out f.xlsx"),
    (pictures, "features RUN a.png --out f.csv --layer fc77"),
    (nothing, "export RUN"),
    (nothing, "export RUN onxx"),
    (nothing, "export nowhere onnx"),
    (nothing, "export RUN onnx --half --quantize int8"),
    (nothing, "export RUN onnx --out net.bin"),
    (nothing, "export RUN onnx --images nowhere"),
    (nothing, "serve"),
    (nothing, "serve nowhere"),
    (nothing, "serve RUN --port 99999"),
    (empty_token, "serve RUN --token-file token"),
    (nothing, "ablate"),
    (nothing, "ablate lnr"),
    (nothing, "bench nothing"),
    (nothing, "bench train --arch papre --seconds 0.01"),
    (nothing, "doctor stray"),
]
