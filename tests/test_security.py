"""Reading a file never runs code: a pickle that would create a marker file is planted in every kind of file."""

import ast
import contextlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet
from alexnet.cli import run
from alexnet.data import recognize
from alexnet.data.shards import manifest
from alexnet.data.shards.pack import pack_dataset
from alexnet.errors import UserError
from alexnet.files import sha256_file
from alexnet.run_dir import Run
from helpers import make_image, make_image_folder

SOURCE = Path(alexnet.__file__).parent


class Payload:
    """An object whose unpickling creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def as_pickle(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker), protocol=4)


def as_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"model": Payload(marker)}, file)
    return file.getvalue()


def as_legacy_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"model": Payload(marker)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_npy(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return file.getvalue()


def as_npz(marker: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, about=np.array([Payload(marker)], dtype=object))
    return file.getvalue()


PAYLOADS = {"pickle": as_pickle, "torch": as_torch, "legacy torch": as_legacy_torch, "npy": as_npy, "npz": as_npz}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def exit_code(arguments: list[str]) -> int:
    """Run a command without its output, which may hold bytes of the payload, and return its exit code."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return run(arguments)


@pytest.fixture
def predict_exit_code(large_images: Path) -> Callable[..., int]:
    """`predict_exit_code(file, *trust)` runs `alexnet predict` on one image."""
    return lambda file, *trust: exit_code(["predict", str(file), str(large_images / "sky" / "0.jpg"), *trust])


def test_payloads_run_where_pickles_are_allowed(marker):
    """Otherwise no test below could fail."""
    for plant in PAYLOADS.values():
        data = plant(marker)
        if plant in (as_torch, as_legacy_torch):
            torch.load(io.BytesIO(data), weights_only=False)
        elif plant in (as_npy, as_npz):
            found = np.load(io.BytesIO(data), allow_pickle=True)
            assert plant is as_npy or found["about"] is not None
        else:
            pickle.loads(data)
        assert marker.exists(), plant
        marker.unlink()


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────

READ_BY = {
    "recipe.json": ["eval RUN", "resume RUN --epochs +1"],
    "metrics.jsonl": ["report RUN", "resume RUN --epochs +1"],
    "summary.json": ["report RUN", "resume RUN --epochs +1"],
    "split.csv": ["eval RUN", "resume RUN --epochs +1"],
    "best": ["predict RUN IMAGE"],
    "last": ["resume RUN --epochs +1"],
    "CHECKPOINT/model.safetensors": ["predict RUN IMAGE", "resume RUN --epochs +1"],
    "CHECKPOINT/model.json": ["predict RUN IMAGE"],
    "CHECKPOINT/preprocess.safetensors": ["predict RUN IMAGE"],
    "CHECKPOINT/training.pt": ["resume RUN --epochs +1"],
    "CHECKPOINT/calibration.json": ["predict RUN IMAGE"],
    "evaluation/val.parquet": ["report RUN"],
    "env.json": ["report RUN"],
    "alarms.json": ["report RUN", "resume RUN --epochs +1"],
    "bad_files.csv": ["report RUN", "resume RUN --epochs +1"],
}
TRAINS = {
    "metrics.jsonl", "last", "CHECKPOINT/model.safetensors", "CHECKPOINT/training.pt", "evaluation/val.parquet",
    "env.json", "alarms.json", "bad_files.csv",
}  # fmt: skip
"""Files whose damage does not stop a command, so that an epoch or a report follows, which takes seconds."""


def test_every_file_of_a_run_is_covered(small_run):
    written = {path.relative_to(small_run).as_posix() for path in small_run.rglob("*") if path.is_file()}
    checkpoints = {Path(name).parent.as_posix() for name in written if name.startswith("checkpoints/")}
    for folder in checkpoints:
        written = {name.replace(folder, "CHECKPOINT") for name in written}
    kinds = {name for name in written if not name.startswith("report") and not name.endswith(".png")}
    assert kinds <= {*READ_BY, "evaluation/test.parquet"}


def fix_checkpoint_checksum(path: Path) -> None:
    """Update the checksum of a planted file, as an attacker would; otherwise it would never be opened."""
    described = path.with_name("model.json")
    if path != described:
        values = json.loads(described.read_text())
        values["sha256"][path.name] = sha256_file(path)
        values["preprocess"] |= {"mean_image": True} if path.name == "preprocess.safetensors" else {}
        described.write_text(json.dumps(values))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in TRAINS else ()) for n in READ_BY])
def test_a_pickle_in_a_run_is_not_run(name, small_run, tmp_path, marker):
    make_image(tmp_path / "image.png", 0, 0)
    binary = name.endswith((".safetensors", ".pt", ".parquet"))
    for plant in (as_pickle, as_torch, as_legacy_torch) if binary else (as_pickle,):
        copy = tmp_path / "run"
        shutil.copytree(small_run, copy)
        for which in ("best", "last"):
            folder = Run(copy).named_checkpoint(which)
            path = copy / name.replace("CHECKPOINT", folder.relative_to(copy).as_posix())
            path.write_bytes(plant(marker))
            if "CHECKPOINT" not in name:
                break
            fix_checkpoint_checksum(path)
        for command in READ_BY[name]:
            arguments = command.replace("RUN", str(copy)).replace("IMAGE", str(tmp_path / "image.png")).split()
            code = exit_code(arguments)
            assert code in (0, 2), command  # 1 would be an unexpected error
            assert not marker.exists(), command
        shutil.rmtree(copy)


# ── data and weights ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".safetensors", ".npy"])
@pytest.mark.parametrize("plant", PAYLOADS)
def test_a_pickle_as_weights_is_not_run(plant, ending, tmp_path, marker):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(PAYLOADS[plant](marker))
    with pytest.raises(ValueError, match=r"weights\."):
        alexnet.load_weights(alexnet.create_model("lenet"), path)
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("plant", PAYLOADS)
def test_a_pickle_in_data_is_not_run(plant, tmp_path, marker):
    data = PAYLOADS[plant](marker)
    folder = make_image_folder(tmp_path / "images", ("a", "b"), 3)
    (folder / "a" / "0.jpg").write_bytes(data)
    (tmp_path / "labels.csv").write_bytes(data)
    (tmp_path / "labels.parquet").write_bytes(data)
    (tmp_path / "mean.npy").write_bytes(data)
    for name in ("images.zip", "images.tar", "images.tar.gz"):
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "holds.zip", "w") as archive:
        archive.writestr("a/0.jpg", data)
        archive.writestr("b/0.jpg", data)
        archive.writestr("../../sitecustomize.py", "raise SystemExit")
    for stem in ("train", "t10k"):
        (tmp_path / "idx").mkdir(exist_ok=True)
        (tmp_path / "idx" / f"{stem}-images-idx3-ubyte").write_bytes(data)
        (tmp_path / "idx" / f"{stem}-labels-idx1-ubyte").write_bytes(data)
    batches = tmp_path / "cifar" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (batches / name).write_bytes(data)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data)
    out = ["--out", str(tmp_path / "out")]
    for arguments in (
        ["check", str(folder)],
        ["train", "folder", "--data", str(folder), *out],
        ["train", "folder", "--labels", str(tmp_path / "labels.csv"), *out],
        ["train", "folder", "--labels", str(tmp_path / "labels.parquet"), *out],
        ["train", "folder", "--data", str(folder), "--skip-bad", "--set", f"mean_image={tmp_path / 'mean.npy'}", *out],
        *(["train", str(tmp_path / name), *out] for name in ("images.zip", "images.tar", "images.tar.gz")),
        ["train", str(tmp_path / "holds.zip"), *out],
        ["train", "fashion-mnist", "--data", str(tmp_path / "idx"), *out],
        ["train", "cifar10", "--data", str(tmp_path / "cifar"), *out],
        ["train", "cifar10", "--data", str(tmp_path / "cifar-10-python.tar.gz"), *out],
        ["train", str(tmp_path / "nowhere.json"), *out],
    ):
        assert exit_code(arguments) == (0 if arguments[0] == "check" else 2), arguments
        assert not marker.exists(), arguments


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pack")
    pack_dataset(make_image_folder(root / "images"), root / "packed", kind="uint8", size=16)
    return root / "packed"


@pytest.mark.parametrize("name", ["pack.json", "mean_image.npy", "train/index.json", "train/samples.parquet"])
@pytest.mark.parametrize("plant", PAYLOADS)
def test_a_pickle_in_packed_data_is_not_run(plant, name, packed, tmp_path, marker, monkeypatch):
    """With valid checksums; tests/data/shards/test_reader.py covers the shards themselves."""
    copy = tmp_path / "packed"
    shutil.copytree(packed, copy)
    (copy / name).write_bytes(PAYLOADS[plant](marker))
    monkeypatch.setattr(manifest, "find_mismatches", lambda *_: [])
    if name == "mean_image.npy":  # read by the color statistics
        with pytest.raises(UserError, match="is damaged"):
            manifest.open_packed(copy).splits["train"].statistics()
    else:
        assert exit_code(["train", str(copy), "--out", str(tmp_path / "out")]) == 2
        assert exit_code(["check", str(copy)]) == 2
    assert not marker.exists()


def test_a_pickle_in_an_unfinished_pack_is_not_run(packed, tmp_path, marker):
    images, target = packed.parent / "images", tmp_path / "packed"
    (target / recognize.WORK).mkdir(parents=True)
    (target / recognize.WORK / "train-0.npz").write_bytes(as_npz(marker))
    (target / recognize.WORK / "plan.json").write_bytes(b"{}")
    assert exit_code(["pack", str(images), str(target), "--format", "uint8", "--size", "16"]) == 2
    (target / recognize.WORK / "plan.json").unlink()
    assert exit_code(["pack", str(images), str(target), "--format", "uint8", "--size", "16"]) == 0
    assert not marker.exists()


def test_postscript_is_not_opened_as_an_image(tmp_path, small_run, capsys):
    """Pillow would hand it to Ghostscript."""
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch " + b"x) (w) file\n"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert run(["predict", str(small_run), str(tmp_path / "a.jpg"), str(tmp_path / "b.png"), "--json"]) == 0
    assert "not an image" in capsys.readouterr().out


# ── exported files ────────────────────────────────────────────────────────────────────────────────


def fix_manifest_checksum(described: Path, file: Path, **changed: str) -> None:
    """Update the checksum of `file` in its manifest, as an attacker who sends both can."""
    values = json.loads(described.read_text())
    described.write_text(json.dumps({**values, "sha256": {file.name: sha256_file(file)}, **changed}))


class TouchFile(torch.nn.Module):
    """A TorchScript module that creates the file `marker` by mapping a tensor to it."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = str(marker)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] + torch.from_file(self.marker, True, 1)


def plant_torchscript(path: Path, marker: Path) -> None:
    torch.jit.save(torch.jit.script(TouchFile(marker)), str(path))


def plant_pt2(path: Path, marker: Path) -> None:
    """Replace the sample inputs, which torch.export.load unpickles, by a payload."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, as_torch(marker) if "/sample_inputs/" in name else data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "plant"),
    [("net.pt2", plant_pt2), ("net.pt", plant_torchscript)],
)
def test_a_valid_checksum_does_not_make_code_trusted(
    name, plant, export_folder, large_images, predict_exit_code, marker
):
    file = export_folder / name
    plant(file, marker)
    fix_manifest_checksum(export_folder / f"{name}.json", file)
    assert predict_exit_code(file) == 2
    assert not marker.exists()
    assert exit_code(["eval", str(file), "--data", str(large_images)]) == 2
    assert not marker.exists()
    predict_exit_code(file, "--trust")
    assert marker.exists()  # otherwise this test could not fail


@pytest.mark.slow
@pytest.mark.parametrize("trust", [[], ["--trust"]])
def test_torchscript_with_another_suffix_is_not_opened(trust, export_folder, predict_exit_code, marker):
    plant_torchscript(export_folder / "net.onnx", marker)
    fix_manifest_checksum(export_folder / "net.onnx.json", export_folder / "net.onnx", kind="torchscript")
    assert predict_exit_code(export_folder / "net.onnx", *trust) == 2
    assert not marker.exists()


def test_a_file_with_a_similar_name_is_not_opened(export_folder, predict_exit_code, marker):
    """A foreign net.PT next to our net.pt and its manifest."""
    plant_torchscript(export_folder / "net.PT", marker)
    if os.path.samefile(export_folder / "net.PT", export_folder / "net.pt"):
        pytest.skip("the file system is case-insensitive")
    shutil.copy(export_folder / "net.pt.json", export_folder / "net.PT.json")
    for trust in ([], ["--trust"]):
        assert predict_exit_code(export_folder / "net.PT", *trust) == 2
        assert not marker.exists()


# ── source code ───────────────────────────────────────────────────────────────────────────────────


def find_calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Return each call with its dotted name."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def find_unsafe_calls(tree: ast.AST) -> list[str]:
    """Return the names of calls that could run code from what they read."""
    found = []
    for name, call in find_calls(tree):
        keywords = {
            k.arg: ast.unparse(k.value) for k in call.keywords if k.arg in ("weights_only", "allow_pickle", "shell")
        }
        last = name.rsplit(".", 1)[-1]
        if (
            name in ("eval", "exec", "compile", "__import__")
            or name in ("os.system", "os.popen", "torch.jit.load", "torch.hub.load", "joblib.load", "shelve.open")
            or name == "torch.export.load"  # unpickles if its restricted loader fails
            or (name.startswith(("pickle.", "marshal.", "dill.", "cloudpickle.")) and last in ("load", "loads"))
            or (name == "torch.load" and keywords.get("weights_only") != "True")
            or (
                last == "load"
                and name.startswith(("np.", "numpy."))
                and keywords.get("allow_pickle", "False") != "False"
            )
            or (name.startswith("yaml.") and last != "safe_load")
            or last in ("extractall", "unpack_archive")
            or keywords.get("shell") == "True"
        ):
            found.append(name)
    return found


def test_the_source_has_no_unsafe_calls():
    found = {}
    for path in SOURCE.rglob("*.py"):
        if bad := find_unsafe_calls(ast.parse(path.read_text(encoding="utf-8"))):
            found[path.relative_to(SOURCE).as_posix()] = sorted(bad)
    # TorchScript and pt2 files can hold code; they are opened only with --trust
    assert found == {"runtimes/exported.py": ["torch.export.load", "torch.jit.load"]}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)", "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text)",
        "np.load(p, allow_pickle=True)", "eval(text)", "torch.export.load(path)",
        "tar.extractall(folder)", "subprocess.run(command, shell=True)",
    ],
)  # fmt: skip
def test_unsafe_calls_are_found(line):
    assert find_unsafe_calls(ast.parse(line))


@pytest.mark.parametrize("line", ["torch.load(path, weights_only=True)", "np.load(p)", "model.eval()", "json.loads(t)"])
def test_safe_calls_are_allowed(line):
    assert not find_unsafe_calls(ast.parse(line))
