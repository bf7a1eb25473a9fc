"""Golden files: `python tests/golden/make.py [NAME…]` computes reference values and writes `tests/golden/NAME.json`.

They record what refactoring must not change: pixels of the decoder, batches of every recipe, logits of every
architecture, the JSON documents of `arch`, `check`, `eval` and `predict`, the exit codes for bad input, and the weights
after two epochs on the digits. `test_golden.py` computes them again and compares. A change that intends to alter one of
them writes that file again, so that the difference can be reviewed.

Texts are omitted, since their wording may change: titles, sources, departures, repairs and details of `arch`; reasons,
warnings (except their number), notes, verdict and commands of `check`; errors of images (except whether there is one)
and the note on calibration. `make.py images` encodes the images again, which only a new format requires.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from golden_bad_input import CASES
from golden_compare import Tolerance, digest, environment, summarize
from golden_images import HERE, IMAGES, LOSSY, readable, scene, write_images
from PIL import Image

from alexnet.checkpoint import load_checkpoint
from alexnet.cli import run
from alexnet.data.augment import augment, mix, pca_noise
from alexnet.data.decode import decode_crop, decode_image, image_size
from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.model import create_model
from alexnet.models.spec import layers
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import train
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import Recipe
from alexnet.training.recipes import RECIPES
from alexnet.training.setup import TrainSetup, prepare_training

Golden = dict[str, Any]

# ── helpers ───────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def scratch() -> Path:
    """Return a temporary folder of this process, removed at its exit."""
    folder = Path(tempfile.mkdtemp(prefix="golden-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the working directory to `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Run `alexnet` with `arguments` in this process; return exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return code, out.getvalue(), err.getvalue()


def command_json(arguments: list[str]) -> Any:
    """Return the JSON document that a command prints."""
    code, out, err = call(arguments)
    assert code == 0, f"{arguments} ended with {code}: {err}"
    return json.loads(out)


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


# ── decoder ───────────────────────────────────────────────────────────────────────────────────────


def golden_decode() -> Golden:
    """Decode every image in gray and color: full, and at several sizes and in part with both JPEG decoders."""
    found: Golden = {}
    for path in sorted(path for path in IMAGES.iterdir() if readable(path.name)):
        got: dict[str, np.ndarray] = {}
        for channels in (1, 3):
            got[f"whole {channels}"] = np.asarray(decode_image(path, channels))
            for reader in ("turbo", "pillow") if path.suffix == ".jpg" else ("pillow",):
                with _reader(reader):
                    for size in (16, 64, 224) if path.name.startswith("photo") else (4,):
                        got[f"all {channels} {size} {reader}"] = decode_crop(path, size, channels)
                    got[f"part {channels} 16 {reader}"] = decode_crop(path, 16, channels, box=_box)
        lossy = path.suffix in LOSSY and not path.name.startswith("lossless")
        found[path.name] = {
            "size": list(image_size(path)),
            "shape": {key: list(pixels.shape) for key, pixels in got.items()},
            "mean": {key: round(float(pixels.mean()), 2) for key, pixels in got.items()},
            "codec_sha256" if lossy else "sha256": {key: digest(pixels) for key, pixels in got.items()},
        }
    return found


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    return width // 8, height // 8, width - width // 5, height - height // 6


@contextlib.contextmanager
def _reader(name: str) -> Iterator[None]:
    """Decode with simplejpeg (`turbo`), or without it (`pillow`)."""
    try:
        import simplejpeg
    except ImportError:
        simplejpeg = None
    if name == "turbo" or simplejpeg is None:
        yield
        return
    with mock.patch.object(simplejpeg, "decode_jpeg", side_effect=ValueError("refused")):
        yield


# ── batches ───────────────────────────────────────────────────────────────────────────────────────

PLACES = {"memory": ((0, 0, 0), (7, 2, 1)), "files": ((7, 2, 1),)}
"""(seed, epoch, step) of the recorded batches."""


def golden_batches() -> Golden:
    """Return batches of every recipe, as loaded and as the network's input, from memory and from files."""
    folder = scratch() / "sets"
    if not folder.exists():
        _write_datasets(folder)
    found: Golden = {}
    for name, make in RECIPES.items():
        if name == "mnist":  # not recorded: fashion-mnist without flips
            continue
        recipe = make()
        small = {"width": 0.125, "batch_size": 8, "precision": "fp32", "device": "cpu", "workers": 0}
        own = {"digits": None, "cifar10": "cifar", "fashion-mnist": "fashion"}.get(recipe.data.dataset, "photos")
        shape = {"image_size": recipe.model.image_size or 128} if recipe.data.dataset == "folder" else {}
        recipe = recipe.replace(**small, **shape, data=folder / own if own else None)
        variants = {"memory": recipe.replace(in_memory=True)}
        files = recipe.replace(in_memory=False, dataset="folder", data=folder / "photos")
        if recipe.data.dataset in ("digits", "fashion-mnist"):
            files = files.replace(mean=None, std=None)  # those of the recipe have one channel
        variants["files"] = files
        for how, variant in variants.items():
            for seed, epoch, step in PLACES[how]:
                prepared = _prepared(variant.replace(seed=seed))
                exact = own == "cifar" and how == "memory" and variant.model.image_size in (None, 32)
                found[f"{name} {how} {seed}-{epoch}-{step}"] = _batch(prepared, epoch, step, exact)
    return found


def _prepared(recipe: Recipe) -> TrainSetup:
    return prepare_training(recipe, Silent())


def _batch(prepared: TrainSetup, epoch: int, step: int, exact: bool) -> Golden:
    """Return a batch as loaded, augmented, and as the network's input. `exact`: computed in integers only."""
    recipe, preprocess, train = prepared.recipe, prepared.preprocess, prepared.train
    batch = next(iter(train.batches(epoch, step)))
    key = "sha256" if exact else "exact_sha256"
    row: Golden = {
        "batches": len(train),
        "ids": batch.ids.tolist(),
        "targets": batch.targets.tolist(),
        "leads": batch.crop_ids.tolist() if batch.crop_ids is not None else None,
        "read": {key: digest(batch.images), **summarize(batch.images)},
    }
    images = batch.images
    if train.device_augment is not None:
        images = augment(
            images, batch.ids, epoch, recipe.run.seed, train.device_augment, preprocess.size, batch.crop_ids
        )
    row["augmented"] = {key: digest(images), **summarize(images)}
    x = preprocess.normalize(images)
    if prepared.pca_basis is not None:
        noise = schedule_at(recipe, epoch * len(train) + step, len(train)).pca_noise
        x = pca_noise(
            x, batch.ids, epoch, recipe.run.seed, prepared.pca_basis, noise,
            std=preprocess.std, divide=recipe.augmentation.pca_divide,
        )  # fmt: skip
    torch.manual_seed(step)
    x, targets = mix(x, batch.targets, len(prepared.classes), prepared.augment)
    levels = x * (255 * sum(preprocess.std) / len(preprocess.std))
    row["input"] = {"exact_sha256": digest(x), **summarize(levels)}
    row["answers"] = summarize(targets.float())
    row["mean"], row["std"] = list(preprocess.mean), list(preprocess.std)
    if preprocess.mean_image is not None:
        row["mean image"] = summarize(preprocess.mean_image)
    if prepared.pca_basis is not None:
        row["basis"] = [*prepared.pca_basis.std, *prepared.pca_basis.vectors]
    return row


def _write_datasets(folder: Path) -> None:
    """Write small substitutes, in supported layouts, for the datasets that are not embedded."""
    draw = np.random.default_rng(5)
    for split, count in (("train", 24), ("val", 2), ("test", 4)):
        for i in range(count):
            for kind in ("cat", "dog"):
                path = folder / "cifar" / split / kind / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    for split, count in (("train", 5), ("val", 1), ("test", 1)):
        for i in range(count):
            for shift, kind in enumerate(("fish", "gull", "wolf", "yak")):
                path = folder / "photos" / split / kind / f"{i:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(IMAGES / f"photo{(i + shift) % 6}.jpg", path)
    raw = folder / "fashion" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 40), ("t10k", 10)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(_idx(pixels))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(_idx((np.arange(count) % 10).astype(np.uint8)))


def _idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return head + values.tobytes()


# ── networks ──────────────────────────────────────────────────────────────────────────────────────


PERIOD = 1_048_583
"""Numbers drawn for a tensor before they repeat: a prime, so that no two rows are equal."""


def golden_logits() -> Golden:
    """Return each architecture's logits, with weights from a formula, and its initial weights, at width 0.125."""
    found: Golden = {}
    for name, spec in ARCHITECTURES.items():
        row: Golden = {
            "layers": [layer.name for layer in layers(spec)],
            "norms": [[n.size, n.alpha, n.beta, n.k, n.towers] for n in (layer.norm for layer in layers(spec)) if n],
            "dropout": [layer.p for layer in layers(spec) if layer.kind == "dropout"],
        }
        with torch.device("meta"):
            model = create_model(name, num_classes=10)
        state = {
            key: _formula(key, tuple(value.shape)).to(value.dtype) if value.ndim else value.new_zeros((), device="cpu")
            for key, value in model.state_dict().items()
        }
        row["weights"] = {key: list(value.shape) for key, value in state.items()}
        model.load_state_dict(state, assign=True)
        model.eval()
        side, channels = model.spec.image_size, model.spec.in_channels
        pixels = scene(side, side, seed=3).astype(np.float32) - 128  # large, so that LRN counts
        images = torch.from_numpy(pixels.transpose(2, 0, 1)[None, :channels].copy())
        with torch.inference_mode():
            logits = model(images)
        row["logits"] = {
            "exact_sha256": digest(logits),
            "largest": float(logits.abs().max()),
            "values": (logits[0] / logits.abs().max()).tolist(),
        }
        del model, state
        torch.manual_seed(11)
        fresh = create_model(name, num_classes=10, width=0.125).state_dict()
        row["fresh"] = {
            key: {"exact_sha256": digest(value), **summarize(value, 3)} for key, value in fresh.items() if value.ndim
        }
        found[name] = row
    return found


def _formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return values for the tensor `name`, equal on all machines: uniform, with the standard deviation that preserves
    the scale of activations; variances and scales of batch norm around 1."""
    draw = np.random.Generator(np.random.PCG64([ord(letter) for letter in name]))
    count = int(np.prod(shape))
    values = torch.from_numpy(np.resize(draw.random(min(count, PERIOD), dtype=np.float32), shape))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return values.add_(0.5)
    reach = (6 / int(np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.1
    return values.sub_(0.5).mul_(2 * reach)


# ── documents ─────────────────────────────────────────────────────────────────────────────────────


def golden_arch() -> Golden:
    """Return the numbers, names and structure that `arch` reports: the list, each architecture, and with options."""
    prose = ("title", "source", "departures", "repair")
    rows = command_json(["arch", "--json"])
    found: Golden = {"table": [without(row, *prose) for row in rows], "keys": sorted(rows[0])}
    more = [
        ["cifar", "--norm", "batch", "--width", "0.5"],
        ["paper", "--num-classes", "10", "--in-channels", "1"],
        ["torchvision", "--image-size", "256", "--norm", "lrn"],
    ]
    for arguments in [*([name] for name in ARCHITECTURES), *more]:
        got = command_json(["arch", *arguments, "--json"])
        kept = [without(layer, "detail") for layer in got["layers"]]
        found[" ".join(arguments)] = {
            **without(got, *prose, "layers"),
            "keys": sorted(got),
            "layer keys": sorted(got["layers"][0]),
            "layers": [[layer["name"], layer["type"], layer["output"], layer["parameters"]] for layer in kept],
            "sha256": digest(json.dumps(kept, sort_keys=True).encode()),
        }
    got = command_json(["arch", "torchvision/resnet18", "--json"])
    found["torchvision/resnet18"] = {"keys": sorted(got), "parameters": got["parameters"]}
    return found


def golden_check() -> Golden:
    """Return what `check` reports for a messy folder, for one with splits, and for a table of labels."""
    folder = scratch() / "messy"
    if not folder.exists():
        _write_messy_folder(folder)
    found: Golden = {}
    with working_in(folder):
        for arguments in (["messy"], ["divided"], ["messy", "--labels", "labels.csv"]):
            got = command_json(["check", *arguments, "--json"])
            kept = without(got, "data", "warnings", "notes", "verdict", "command", "fix_command")
            for key in ("bad", "suspicious"):
                kept[key] = sorted(row["path"] for row in got[key])
            for key in ("duplicates", "near_duplicates", "across_splits", "across_classes"):
                kept[key] = sorted(got[key])
            kept |= {"keys": sorted(got), "number of warnings": len(got["warnings"])}
            found[" ".join(arguments)] = kept
    return found


def _write_messy_folder(folder: Path) -> None:
    """Write class folders with all kinds of problems, folders with splits, and a label table."""
    messy = folder / "messy"
    rgb = functools.partial(_scene, 80, 60)
    for i in range(4):
        _save(messy / "cat" / f"{i}.png", rgb(i))
        _save(messy / "dog" / f"{i}.png", rgb(10 + i))
    for i in range(2):
        _save(messy / "Dog " / f"{i}.png", rgb(20 + i))
    shutil.copyfile(messy / "cat" / "0.png", messy / "cat" / "copy of 0.png")
    shutil.copyfile(messy / "cat" / "1.png", messy / "dog" / "a cat.png")
    _save(messy / "cat" / "again.jpg", rgb(2), quality=40)
    _save(messy / "dog" / "smaller.png", rgb(11).resize((40, 30)))
    _save(messy / "cat" / "nested" / "deep" / "5.png", rgb(30))
    _save(messy / "cat" / ".hidden.png", rgb(31))
    _save(messy / "cat" / "ünïcode 猫.png", rgb(32))
    _save(messy / "cat" / "line\nbreak.png", rgb(33))
    _save(messy / "cat" / "-dash.PNG", rgb(34))
    _save(messy / "dog" / "tiny.png", rgb(35).resize((5, 4)))
    _save(messy / "dog" / "long.png", rgb(36).resize((300, 20)))
    _save(messy / "dog" / "one colour.png", Image.new("RGB", (50, 50), (9, 99, 199)))
    _save(messy / "dog" / "print.jpg", rgb(37).convert("CMYK"))
    _save(messy / "dog" / "grey.png", rgb(38).convert("L"))
    _save(
        messy / "dog" / "deep.png",
        Image.fromarray(np.asarray(rgb(39).convert("L")).astype(np.uint16) * 200),
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    _save(messy / "dog" / "turned.jpg", rgb(40), exif=exif)
    moving = rgb(41).convert("P")
    _save(messy / "dog" / "moving.gif", moving, save_all=True, append_images=[moving.rotate(90)])
    _save(messy / "dog" / "really.png", rgb(42), format="JPEG")
    complete = (messy / "cat" / "3.png").read_bytes()
    (messy / "cat" / "cut.png").write_bytes(complete[: len(complete) // 2])
    (messy / "cat" / "empty.jpg").write_bytes(b"")
    (messy / "cat" / "page.jpg").write_text("<html>not found</html>", encoding="utf-8")
    (messy / "cat" / "text.bmp").write_text("hello", encoding="utf-8")
    (messy / "cat" / "notes.txt").write_text("not an image", encoding="utf-8")
    (messy / "Thumbs.db").write_bytes(b"x")
    (messy / "nothing").mkdir()
    _save(messy / "stray.png", rgb(43))
    for split in ("train", "val"):
        for i, kind in enumerate(("cat", "dog")):
            for n in range(3):
                _save(
                    folder / "divided" / split / kind / f"{n}.png",
                    rgb(50 + 10 * i + n + 3 * (split == "val")),
                )
    shutil.copyfile(folder / "divided" / "train" / "cat" / "0.png", folder / "divided" / "val" / "cat" / "0.png")
    rows = ["path,label,split", "cat/0.png,cat,train", "cat/1.png,cat,val", "dog/0.png,dog,train", "dog/1.png,dog,val"]
    rows += ["dog/1.png,dog,val", "cat/nowhere.png,cat,train", "cat/empty.jpg,cat,train", "dog/2.png,dog,tarin"]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _scene(width: int, height: int, seed: int) -> Image.Image:
    """Return a scene whose perceptual hash differs from those of other seeds."""
    blocks = np.random.default_rng(seed).integers(0, 200, (6, 8, 3), dtype=np.uint8)
    coarse = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    return Image.fromarray((coarse // 2 + scene(width, height, seed) // 2).astype(np.uint8))


def _save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────


def trained_run(name: str, **settings: Any) -> Path:
    """Train on the digits with `settings` on one thread, and return the run folder `name`; a second call reuses it."""
    folder = scratch() / name
    if not folder.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        train("digits", out=folder, precision="fp32", device="cpu", progress=Silent(), **settings)
        torch.set_num_threads(threads)
    return folder


def small_run() -> Path:
    """Return a small run with a low learning rate, so that rounding differences of processors hardly grow."""
    return trained_run("small", epochs=2, width=0.125, lr=0.02, schedule="constant", dropout=0.0)


def golden_digits() -> Golden:
    """Return weights, metrics and summary after two epochs of the unchanged recipe, and its weights after four steps.

    At its learning rate, rounding differences grow: on another processor a weight differs by 1e-4 after four steps and
    by 100 % after forty. So the longer training is compared in the same environment only.
    """
    folder = trained_run("digits", epochs=2)
    found = Run(folder)
    timed = ("seconds", "images_per_second", "waiting", "memory")
    rows, summary = (
        [without(row, *timed) for row in found.metrics()],
        without(found.summary(), *timed),
    )
    assert len(rows) == 2
    return {
        "rates": [{key: row[key] for key in ("epoch", "step", "split", "lr")} for row in rows],
        "keys": {"row": sorted(found.metrics()[0]), "summary": sorted(found.summary())},
        "recipe": json.loads(found.recipe_json.read_text(encoding="utf-8")),
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        "split": digest(found.split_csv.read_bytes()),
        "four steps": {"weights": _weights(trained_run("four", epochs=2, limit_steps=4))},
        "exact": {"metrics": rows, "summary": summary, "weights": _weights(folder)},
    }


def _weights(folder: Path) -> Golden:
    last = Run(folder).named_checkpoint("last")
    assert last is not None
    state = load_checkpoint(last).model.state_dict()
    return {key: {"exact_sha256": digest(value), **summarize(value)} for key, value in state.items()}


def golden_eval_predict() -> Golden:
    """Return the documents of `eval` and `predict` on a small run."""
    folder = scratch() / "predicting"
    if not folder.exists():
        folder.mkdir()
        shutil.copytree(small_run(), folder / "run")
        _write_digits(folder / "pictures")
    found: Golden = {}
    with working_in(folder):
        for arguments in ("eval run", "eval run --split val --crops 2", "eval run --scales 1 1.2"):
            got = command_json([*arguments.split(), "--json"])
            found[arguments] = {**without(got, "calibration_note"), "keys": sorted(got)}
        for arguments in (
            "predict run pictures --top 10",
            "predict run pictures/0.png pictures/1.png --top 10 --crops 10",
        ):
            got = command_json([*arguments.split(), "--json"])
            found[arguments] = {
                "keys": sorted({key for row in got["predictions"] for key in row}),
                "predictions": [
                    {
                        **row,
                        "error": row["error"] is not None,
                        "labels": {label["label"]: label["p"] for label in row["labels"]},
                    }
                    for row in got["predictions"]
                ],
            }
    return found


def _write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    folder.mkdir()
    for i, digit in enumerate(load_digits().images[[3, 140, 1200, 1700]]):
        pixels = np.rint(digit * 255 / 16).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    Image.fromarray(scene(50, 70)).save(folder / "a scene.png")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")


def golden_bad_input() -> Golden:
    """Return the exit code for each bad input, and whether the error is one sentence."""
    template = small_run()
    found: Golden = {}
    for number, (setup, arguments) in enumerate(CASES):
        here = scratch() / f"bad-{number}"
        here.mkdir()
        if "RUN" in arguments:
            shutil.copytree(template, here / "run")
        setup(here)
        before = sorted(here.rglob("*"))
        with working_in(here):
            code, out, err = call([argument.replace("RUN", "run") for argument in arguments.split()])
        found[f"{setup.__name__}: {arguments}"] = {
            "exit": code,
            "kind": _kind(out, err),
            "nothing left behind": sorted(here.rglob("*")) == before,
        }
        shutil.rmtree(here)
    return found


def _kind(out: str, err: str) -> str:
    lines = err.strip().splitlines()
    if "Traceback" in err:
        return "traceback"
    if "alexnet: internal error:" in err:
        return "unexpected failure"
    if not lines or not lines[-1].startswith("alexnet: "):
        return "no sentence"
    return "sentence" if not out else "sentence, and something on stdout"


# ── all golden files ──────────────────────────────────────────────────────────────────────────────

GOLDENS: dict[str, Callable[[], Golden]] = {
    "decode": golden_decode,
    "batches": golden_batches,
    "logits": golden_logits,
    "arch": golden_arch,
    "check": golden_check,
    "eval_predict": golden_eval_predict,
    "bad_input": golden_bad_input,
    "digits": golden_digits,
}

LOOSE: dict[str, Tolerance] = {
    "decode": Tolerance(0, 1.0),
    "batches": Tolerance(0.01, 3.0),
    "logits": Tolerance(1e-3, 1e-4),
    "eval_predict": Tolerance(0.02, 0.02),
    "digits": Tolerance(0.01, 1e-3),
}
"""Tolerances in another environment: for pixels in levels, for trained weights and metrics a few digits."""


def main(names: list[str]) -> None:
    """Write the golden files `names`, by default all."""
    if names == ["images"]:
        write_images()
        return
    os.environ["ALEXNET_CACHE"] = str(scratch() / "cache")
    torch.set_num_threads(1)
    for name in names or GOLDENS:
        kept = {"environment": environment(), "found": GOLDENS[name]()}
        path = HERE / f"{name}.json"
        path.write_text(_text(kept), encoding="utf-8")
        print(f"{path}: {path.stat().st_size:,} bytes")


def _text(kept: dict[str, Golden]) -> str:
    """Return `kept` as JSON with one line per entry."""
    parts = []
    for part, entries in kept.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in entries.items()]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
