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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from alexnet.checkpoint import DESCRIBED, TRAINING, _description, _digest, save_model
from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_count, cpu_name
from alexnet.errors import UserError
from alexnet.files import PARTIAL, as_os_error, atomic_write, fsync_dir, fsync_file, printable, write_text

if TYPE_CHECKING:
    import torch

    from alexnet.models.model import Network
QUARANTINED = ".damaged-"  # how the name of a checkpoint begins that was set aside
CHECKPOINT_NAME = re.compile(r"\d{8,}a*")  # the name of a checkpoint; what else lies beside them is the user's


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
        return sorted((p for p in found if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()), reverse=True)

    def save_checkpoint(
        self,
        *,
        model: Network,
        classes: Sequence[str],
        preprocess: EvalTransform,
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
        beside = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}-", dir=folder.parent))
        try:
            beside.chmod(0o755)
            if training is not None:
                described = _digest(_description(model, classes, preprocess, step, epoch))
                with (beside / TRAINING).open("wb") as file:  # whose errors tell more than those of torch's own
                    torch.save({**training, DESCRIBED: described}, file)
                fsync_file(beside / TRAINING)
            save_model(beside, model, classes, preprocess, step=step, epoch=epoch, weights=weights)
            fsync_dir(beside)
            beside.rename(folder)
            fsync_dir(folder.parent)
        except (SafetensorError, RuntimeError) as error:  # how these libraries report a full disk
            shutil.rmtree(beside, ignore_errors=True)
            raise as_os_error(error) from error
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
                    other.rename(other.with_name(f"{PARTIAL}-{other.name}"))  # a kill would leave half of it in sight
        for gone in folder.parent.glob(f"{PARTIAL}-*"):
            shutil.rmtree(gone, ignore_errors=True)
        return folder

    def remove_quarantined(self) -> None:
        """Remove the checkpoints that were set aside as damaged."""
        for folder in self.path.glob(f"checkpoints/{QUARANTINED}*"):
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
        with atomic_write(target) as beside:
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

    def evaluation_targets(self, split: str) -> tuple[list[str], np.ndarray] | None:
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


# ── where it was run ──────────────────────────────────────────────────────────────────────────────────────────


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """What `env.json` says: versions, machine, device, seed, the command and the git revision if there is one."""
    import torch

    packages = ("alexnet", "torch", "torchvision", "numpy", "pillow", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{p: package_version(p) for p in packages}},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cpu_count(),
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
