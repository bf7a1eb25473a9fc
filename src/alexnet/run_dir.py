"""The run folder: file names, metrics, checkpoints and stored evaluations.

runs/<recipe>-<time>/
  recipe.json  env.json  metrics.jsonl  summary.json  split.csv  bad_files.csv
  checkpoints/<step>/             see `checkpoint.py`
  best  last                      names of checkpoints, in text files
  evaluation/<split>.parquet      path, target, logits
  report.html  report/            the report, and its plots and tables as files
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet.checkpoint import write_checkpoint
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import PARTIAL, atomic_write, printable, write_text

if TYPE_CHECKING:
    import torch

    from alexnet.models.model import Network

QUARANTINED = ".damaged-"  # prefix of quarantined checkpoints
CHECKPOINT_NAME = re.compile(r"\d{8,}a*")  # any other folder among the checkpoints belongs to the user


@dataclass(frozen=True)
class Run:
    """A run folder. Every method that writes is atomic."""

    path: Path

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
        """Create the run folder `out`, or `runs/<name>-<time>`. Raises `UserError` if that fails."""
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
        """Raise `UserError` if `out` is a file or a folder that is not empty."""
        if out is None or not out.exists():
            return
        if not out.is_dir():
            raise UserError(f"--out {out} is a file; choose a folder that does not exist yet.")
        if (out / "recipe.json").exists():
            raise UserError(f"{out} already holds a run; choose another --out, or add --resume to resume it.")
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"--out {out} is not empty; choose a folder that is empty or does not exist yet.")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append the row of a finished epoch to metrics.jsonl."""
        with self.metrics_jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, one per finished epoch."""
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
        """Return the content of summary.json, or {} before the end of the first epoch."""
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
        """Return the folder that the file `best` or `last` names, or None before the first checkpoint."""
        name = self.checkpoint_name(which)
        if name is None:
            return None
        folder = self.path / "checkpoints" / name
        if Path(name).name != name or not os.path.isdir(folder):  # os.path.isdir accepts any text
            raise UserError(f"{self.path / which} names the checkpoint '{name}', which is not in {folder.parent}.")
        return folder

    def checkpoint_name(self, which: str) -> str | None:
        """Return the name in the file `best` or `last`, even of a missing checkpoint; None if the file is missing."""
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
        """Return the folders of all checkpoints, newest first."""
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
        """Write `checkpoints/<step>`, point `last` (and `best`) to it, and return its folder.

        Keeps the best and the `keep` newest checkpoints, and removes the others. `training` and `weights` are those of
        `write_checkpoint`.
        """
        folder = self.path / "checkpoints" / f"{step:08d}"
        folder.parent.mkdir(exist_ok=True)
        while folder.exists():  # stopped after an epoch's last step and resumed; never delete the only checkpoint
            folder = folder.with_name(folder.name + "a")
        write_checkpoint(folder, model, classes, preprocess, step=step, epoch=epoch, training=training, weights=weights)
        if best:  # first: the training state in `last` may rely on it
            write_text(self.path / "best", folder.name + "\n")
        write_text(self.path / "last", folder.name + "\n")
        older = [path for path in self.checkpoints() if path.name < folder.name]
        kept = {folder, self.named_checkpoint("best"), *older[: keep - 1]}
        for other in self.checkpoints():
            if other not in kept:
                with suppress(OSError):
                    other.rename(other.with_name(f"{PARTIAL}-{other.name}"))  # hidden even if killed while removing
        for leftover in folder.parent.glob(f"{PARTIAL}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return folder

    def remove_quarantined(self) -> None:
        """Remove the quarantined checkpoints."""
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
        with atomic_write(target) as temporary:
            parquet.write_table(table, temporary)
        return target

    def read_evaluation(self, split: str) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        """Return paths, targets (n,) and logits (n, classes) of `split`, or None if it was not evaluated."""
        from pyarrow import parquet

        path = self.path / "evaluation" / f"{split}.parquet"
        if not path.exists():
            return None
        table = parquet.read_table(path)
        logits = table["logits"].combine_chunks().flatten().to_numpy()  # ImageNet: 50 million values
        return table["path"].to_pylist(), table["target"].to_numpy(), logits.reshape(len(table), -1).copy()

    def read_evaluation_targets(self, split: str) -> tuple[list[str], np.ndarray] | None:
        """Return the paths and targets of `read_evaluation` without the logits, which may not fit into memory."""
        from pyarrow import parquet

        path = self.path / "evaluation" / f"{split}.parquet"
        if not path.exists():
            return None
        table = parquet.read_table(path, columns=["path", "target"])
        return table["path"].to_pylist(), table["target"].to_numpy()


def find_run(name: str | Path, root: Path = Path("runs")) -> Run:
    """Return the run in the folder `name`, or for `last` the newest in `root`. Raises `UserError`."""
    if str(name) == "last" and not Path(name).exists():
        runs = [p for p in root.glob("*") if (p / "recipe.json").is_file()]
        if not runs:
            raise UserError(f"There is no run in {root.resolve()} yet; create one with 'alexnet train'.")
        return Run(max(runs, key=lambda p: ((p / "recipe.json").stat().st_mtime_ns, p.name)))
    path = Path(name)
    if not path.exists():
        raise UserError(f"There is no run {path}; give a run folder, such as runs/digits-…, or 'last'.")
    if not (path / "recipe.json").is_file():
        raise UserError(f"{path} is not a run folder: it has no recipe.json.")
    return Run(path)
