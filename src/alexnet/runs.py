"""The run folder: the names in it, how they are written, and how a checkpoint is read back.

    runs/<recipe>-<time>/
      recipe.json  env.json  metrics.jsonl  summary.json  split.csv  bad_files.csv
      checkpoints/<step>/{model.safetensors, model.json, training.pt}, preprocess.safetensors with a mean image
      best  last                      names of checkpoints, in text files
      evaluation/<split>.parquet      path, target, logits
      report.html  report/            the page, and its plots and tables as files

Every file is written beside its place, flushed and renamed into it, so that a reader, or a restart after a crash,
finds either the old file or the new one. Nothing here can run code: weights are safetensors, the rest is JSON,
and `training.pt` goes through torch's restricted loader.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from alexnet import runtime
from alexnet.data.checksum import sha256_of
from alexnet.data.preprocess import Preprocess
from alexnet.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used: a run can be found, and a stored engine used, without it
    import torch

    from alexnet.networks.model import Network

FORMAT = "alexnet-1"  # of model.json; a reader refuses what it does not know
WEIGHTS, MODEL, TRAINING = "model.safetensors", "model.json", "training.pt"
PREPROCESS = "preprocess.safetensors"  # beside model.json where there is a mean image
WRITING = ".writing"  # how the hidden names of files end that are not whole yet; a folder's begins so
DAMAGED = ".damaged-"  # how the name of a checkpoint begins that was set aside
OURS = re.compile(r"\d{8,}a*")  # the name of a checkpoint; what else lies beside them is the user's
DESCRIBED = "described"  # in training.pt: the checksum of what model.json says


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; on success the file is flushed to disk and renamed into place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=WRITING, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        _flush(beside)
        beside.chmod(0o644)
        beside.replace(path)
        _flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def printable(name: str) -> str:
    """A file name as text that every file and terminal takes: bytes that are no UTF-8 as `\\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _of_the_system(error: Exception) -> OSError:
    """The system's error behind one of torch or safetensors."""
    if isinstance(error.__context__, OSError):
        return OSError(error.__context__.errno, error.__context__.strerror)
    number = re.search(r"os error (\d+)", str(error))
    if number:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return OSError(errno.EIO, str(error).splitlines()[0])


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)  # Windows flushes only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    """Make a rename in the folder `path` outlast a loss of power, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems have no such thing
        pass
    finally:
        os.close(handle)


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Unreadable(UserError):
    """A checkpoint that the system cannot read now, which does not say that it is damaged."""

    def __init__(self, folder: Path, error: OSError) -> None:
        why = error.strerror or error
        super().__init__(
            f"{folder} cannot be read ({why}); it may be whole all the same: try again once it can be read."
        )


@dataclass(frozen=True)
class Checkpoint:
    """A network as it was saved, with all that is needed to use it."""

    path: Path
    model: Network
    classes: tuple[str, ...]
    preprocess: Preprocess
    step: int
    epoch: int


@dataclass(frozen=True)
class Run:
    """A run folder. Every method that writes leaves either the old or the new state."""

    path: Path

    # names
    @property
    def recipe_json(self) -> Path:
        return self.path / "recipe.json"

    @property
    def metrics_jsonl(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def split_csv(self) -> Path:
        return self.path / "split.csv"

    @classmethod
    def create(cls, name: str, out: Path | None, recipe_json: str) -> Run:
        """Make the folder `out`, or `runs/<name>-<time>`. Raises `UserError` if it already holds a run."""
        if out is None:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            out = Path("runs") / f"{name}-{stamp}"
            extra = 1
            while out.exists():
                extra += 1
                out = Path("runs") / f"{name}-{stamp}-{extra}"
        cls.check_free(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "recipe.json", recipe_json + "\n")
            (out / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The run folder {out} cannot be written: {error.strerror}; choose another --out."
            ) from error
        return cls(out)

    @staticmethod
    def check_free(out: Path | None) -> None:
        """Raise `UserError` if `out` holds a run already, or something that is not ours."""
        if out is None or not out.exists():
            return
        if not out.is_dir():
            raise UserError(f"--out {out} is a file; choose a folder that does not exist yet.")
        if (out / "recipe.json").exists():
            raise UserError(f"{out} already holds a run; choose another --out, or add --resume to go on with it.")
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"--out {out} is not empty; choose a folder that is empty or does not exist yet.")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add the line of a finished epoch."""
        with self.metrics_jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The finished epochs, one row each."""
        try:
            rows = [json.loads(line) for line in self.metrics_jsonl.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UserError(f"{self.metrics_jsonl} is damaged: {error}.") from error
        if not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{self.metrics_jsonl} is damaged: each of its lines must be a JSON object.")
        return rows

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says, empty if the first epoch has not ended."""
        try:
            found = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"{self.path / 'summary.json'} is damaged: {error}.") from error
        if not isinstance(found, dict):
            raise UserError(f"{self.path / 'summary.json'} is damaged: it must be a JSON object.")
        return found

    def named_checkpoint(self, which: str) -> Path | None:
        """The folder that `best` or `last` names; None if there is no checkpoint yet."""
        name = self.name_in(which)
        if name is None:
            return None
        folder = self.path / "checkpoints" / name
        if Path(name).name != name or not os.path.isdir(folder):  # which takes any text
            raise UserError(f"{self.path / which} names the checkpoint '{name}', which is not in {folder.parent}.")
        return folder

    def name_in(self, which: str) -> str | None:
        """What the file `best` or `last` says, whether or not there is such a checkpoint; None if there is no file."""
        path = self.path / which
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{path}, which names a checkpoint, cannot be read: {error.strerror}; remove it."
            ) from error

    def checkpoints(self) -> list[Path]:
        """The folders of all checkpoints, the newest first."""
        folder = self.path / "checkpoints"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted((p for p in found if OURS.fullmatch(p.name) and p.is_dir()), reverse=True)

    def save_checkpoint(
        self,
        *,
        model: Network,
        classes: Sequence[str],
        preprocess: Preprocess,
        step: int,
        epoch: int,
        training: dict[str, Any] | None,
        best: bool,
        weights: dict[str, torch.Tensor] | None = None,
        keep: int = 2,
    ) -> Path:
        """Write `checkpoints/<step>` and point `last` (and `best`) to it. The best and the newest `keep` stay, and the
        rest is dropped.

        `weights`: what to write where `model` is being trained meanwhile; unless given, its own."""
        import torch

        folder = self.path / "checkpoints" / f"{step:08d}"
        folder.parent.mkdir(exist_ok=True)
        while folder.exists():  # a run stopped after its epoch's last step and resumed; never delete the only one
            folder = folder.with_name(folder.name + "a")
        beside = Path(tempfile.mkdtemp(prefix=f"{WRITING}-", dir=folder.parent))
        try:
            beside.chmod(0o755)
            if training is not None:
                described = _digest(_description(model, classes, preprocess, step, epoch))
                with (beside / TRAINING).open("wb") as file:  # whose errors tell more than those of torch's own
                    torch.save({**training, DESCRIBED: described}, file)
                _flush(beside / TRAINING)
            write_model(beside, model, classes, preprocess, step=step, epoch=epoch, weights=weights)
            _flush_folder(beside)
            beside.rename(folder)
            _flush_folder(folder.parent)
        except (SafetensorError, RuntimeError) as error:  # how these libraries report a full disk
            shutil.rmtree(beside, ignore_errors=True)
            raise _of_the_system(error) from error
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if best:  # first: were it lost, `last` would hold a position that believes in it
            write_text(self.path / "best", folder.name + "\n")
        write_text(self.path / "last", folder.name + "\n")
        older = [path for path in self.checkpoints() if path.name < folder.name]
        kept = {folder, self.named_checkpoint("best"), *older[: keep - 1]}
        for other in self.checkpoints():
            if other not in kept:
                with suppress(OSError):
                    other.rename(other.with_name(f"{WRITING}-{other.name}"))  # a kill would leave half of it in sight
        for gone in folder.parent.glob(f"{WRITING}-*"):
            shutil.rmtree(gone, ignore_errors=True)
        return folder

    def drop_damaged(self) -> None:
        """Remove the checkpoints that were set aside as damaged."""
        for folder in self.path.glob(f"checkpoints/{DAMAGED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def write_evaluation(self, split: str, paths: Sequence[str], targets: np.ndarray, logits: np.ndarray) -> Path:
        """Write `evaluation/<split>.parquet`: path (string), target (int64), logits (list of float32)."""
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table(
            {
                "path": pa.array(list(map(printable, paths)), pa.string()),
                "target": pa.array(targets.astype(np.int64)),
                "logits": pa.array(list(logits.astype(np.float32)), pa.list_(pa.float32())),
            }
        )
        target = self.path / "evaluation" / f"{split}.parquet"
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as beside:
            parquet.write_table(table, beside)
        return target

    def read_evaluation(self, split: str) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        """Paths, targets (n,) and logits (n, classes) of `split`; None if it was not evaluated."""
        from pyarrow import parquet

        path = self.path / "evaluation" / f"{split}.parquet"
        if not path.exists():
            return None
        table = parquet.read_table(path)
        logits = table["logits"].combine_chunks().flatten().to_numpy()  # no Python list: ImageNet has 50 million
        return table["path"].to_pylist(), table["target"].to_numpy(), logits.reshape(len(table), -1).copy()

    def evaluated(self, split: str) -> tuple[list[str], np.ndarray] | None:
        """Paths and targets of `read_evaluation`, without its logits, which may not fit into memory."""
        from pyarrow import parquet

        path = self.path / "evaluation" / f"{split}.parquet"
        if not path.exists():
            return None
        table = parquet.read_table(path, columns=["path", "target"])
        return table["path"].to_pylist(), table["target"].to_numpy()


def find_run(name: str | Path, root: Path = Path("runs")) -> Run:
    """The run called `name`: a run folder, or `last` for the newest one under `root`. Raises `UserError`."""
    if str(name) == "last" and not Path(name).exists():
        runs = [p for p in root.glob("*") if (p / "recipe.json").is_file()]
        if not runs:
            raise UserError(f"There is no run in {root.resolve()} yet; 'alexnet train' makes one.")
        return Run(max(runs, key=lambda p: ((p / "recipe.json").stat().st_mtime_ns, p.name)))
    path = Path(name)
    if not path.exists():
        raise UserError(f"There is no run {path}; give a run folder, such as runs/digits-…, or 'last'.")
    if not (path / "recipe.json").is_file():
        raise UserError(f"{path} is not a run folder: it has no recipe.json.")
    return Run(path)


# ── a checkpoint ──────────────────────────────────────────────────────────────────────────────────────────────


def write_model(
    folder: Path,
    model: Network,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    step: int = 0,
    epoch: int = 0,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `model.safetensors`, `model.json` and, with a mean image, `preprocess.safetensors` into `folder`: all that
    using the network needs. `weights` are those of `model` unless given."""
    from safetensors.torch import save_file

    state = model.state_dict() if weights is None else weights
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, folder / WEIGHTS)
    _flush(folder / WEIGHTS)
    if preprocess.mean_image is not None:
        save_file({"mean_image": preprocess.mean_image.contiguous()}, folder / PREPROCESS)
        _flush(folder / PREPROCESS)
    files = [name for name in (WEIGHTS, PREPROCESS, TRAINING) if (folder / name).exists()]
    write_json(
        folder / MODEL,
        {
            **_description(model, classes, preprocess, step, epoch),
            "sha256": {name: sha256_of(folder / name) for name in files},
        },
    )


def _description(
    model: Network, classes: Sequence[str], preprocess: Preprocess, step: int, epoch: int
) -> dict[str, Any]:
    """What `model.json` says of a network, but for checksums and what is added later."""
    return {
        "format": FORMAT,
        "spec": model.spec.to_dict(),
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "step": step,
        "epoch": epoch,
    }


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def read_model(folder: Path) -> Checkpoint:
    """The network in a checkpoint folder, on the CPU. Raises `UserError` on damage or another program's files."""
    from safetensors.torch import load_file

    from alexnet.networks.model import build, spec_from_dict

    described = folder / MODEL
    found = describe(folder)
    mean_image = _mean_image(folder, found)
    try:
        spec = spec_from_dict(found["spec"])
        preprocess = Preprocess.from_dict(found["preprocess"], mean_image)
        classes = tuple(str(c) for c in found["classes"])
        step, epoch = int(found["step"]), int(found["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{described} is damaged ({error}); use another checkpoint of the run.") from error
    if len(classes) != spec.num_classes:
        raise UserError(f"{described} names {len(classes)} classes for a network with {spec.num_classes}.")
    path = _intact(folder, WEIGHTS, found)
    model = build(spec)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not hold the network that {MODEL} describes: {first}.") from error
    return Checkpoint(folder, model.eval(), classes, preprocess, step, epoch)


def _mean_image(folder: Path, found: dict[str, Any]) -> torch.Tensor | None:
    """The mean image of a checkpoint whose `model.json` says, in `found`, that it has one."""
    described = found.get("preprocess")
    if not isinstance(described, dict) or not described.get("mean_image"):
        return None
    from safetensors.torch import load_file

    path = _intact(folder, PREPROCESS, found)
    try:
        return load_file(path)["mean_image"].clone()  # free of the file, which Windows could not delete else
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} holds no mean image; use another checkpoint of the run.") from error


def _intact(folder: Path, name: str, found: dict[str, Any]) -> Path:
    """The file `name` of a checkpoint, there and with the checksum that `model.json`, in `found`, gives."""
    path, sums = folder / name, found.get("sha256")
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} has no {name}; use another checkpoint of the run.")
    if not isinstance(sums, dict) or sha256_of(path) != sums.get(name):
        raise UserError(f"{path} is truncated or damaged: its checksum is not the one in {MODEL}.")
    return path


def add_to_model(folder: Path, key: str, value: Any) -> None:
    """Set one `key` of a checkpoint's `model.json`, which is written anew as a whole."""
    write_json(folder / MODEL, {**describe(folder), key: value})


def describe(folder: Path) -> dict[str, Any]:
    """What `model.json` says. Raises `UserError` if it is missing, damaged or another program's."""
    path = folder / MODEL
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a checkpoint of ours: it has no {MODEL}.") from None
    except OSError as error:
        raise Unreadable(folder, error) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); use another checkpoint of the run.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} was written by other software: its format is not '{FORMAT}'.")
    return found


def identify(folder: Path) -> str:
    """16 hexadecimal digits that change with the weights, classes or preprocessing of a checkpoint; `model.json` alone
    is read, and no torch needed. Raises `UserError` where that is missing or damaged."""
    found = describe(folder)
    told = [found.get(key) for key in ("spec", "classes", "preprocess")]
    sums = found.get("sha256")
    told += [sums.get(name) for name in (WEIGHTS, PREPROCESS)] if isinstance(sums, dict) else []
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def read_training(folder: Path) -> dict[str, Any]:
    """What `training.pt` holds, read without running anything in it. Raises `UserError`."""
    import torch

    path = folder / TRAINING
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} has no {TRAINING}, so that training cannot go on from it.")
    told = describe(folder)
    expected = told["sha256"].get(TRAINING) if isinstance(told.get("sha256"), dict) else None
    if expected != sha256_of(path):
        raise UserError(f"{path} is truncated or damaged: its checksum is not the one in {MODEL}.")
    try:
        found = dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, MemoryError):  # tells of the machine, not of the file
        raise
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors here
        raise UserError(f"{path} holds a pickle that could run code, which is refused.") from error
    said = {key: told.get(key) for key in ("format", "spec", "classes", "preprocess", "step", "epoch")}
    if found.pop(DESCRIBED, None) not in (None, _digest(said)):  # earlier versions did not keep it
        raise UserError(f"{folder / MODEL} is damaged: it does not say what {TRAINING} was saved with.")
    return found


# ── where it was run ──────────────────────────────────────────────────────────────────────────────────────────


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """What `env.json` says: versions, machine, device, seed, the command and the git revision if there is one."""
    import torch

    packages = ("alexnet", "torch", "torchvision", "numpy", "pillow", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{p: package_version(p) for p in packages}},
        "platform": platform.platform(),
        "cpu": runtime.cpu_name(),
        "cores": runtime.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "seed": seed,
        "command": _command(),
        "git": _git_revision(),
    }


def _command() -> str | None:
    """What was typed, where this is the program `alexnet`; None in a script or a notebook."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.name == "__main__.py" and program.parent.name == "alexnet":
        return shlex.join(["python", "-m", "alexnet", *sys.argv[1:]])
    return shlex.join(["alexnet", *sys.argv[1:]]) if program.stem == "alexnet" else None


def package_version(package: str) -> str | None:
    """The version of an installed package, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
