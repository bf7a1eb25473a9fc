"""The run folder: file names, metrics, checkpoints and stored evaluations.

runs/<name>-<time>/             the recipe's name, or that of the user's images (`Recipe.run_name`)
  recipe.json  env.json  metrics.jsonl  summary.json  split.csv  bad_files.csv
  checkpoints/<step>/             see `checkpoint.py`
  best  last                      names of checkpoints, in text files
  evaluation/<split>.parquet      path, target, logits
  report.html  report/            the report, and its plots and tables as files
  progress.json                   the step, while it trains

Its import takes a few milliseconds, so that the command line can answer a misspelled run at once.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.errors import UserError, suggest
from alexnet.files import PARTIAL, atomic_folder, atomic_write, convert, printable, read_json, write_text

if TYPE_CHECKING:
    import numpy as np

    from alexnet.data.transforms import EvalTransform
    from alexnet.models.model import Network

QUARANTINED = ".damaged-"  # prefix of quarantined checkpoints
LOCK = ".lock"  # in the run folder while a process trains it
LOCK_TIMEOUT_S = 30.0  # the grace period that schedulers give a process before they kill it
CHECKPOINT_NAME = re.compile(r"\d{8,}a*")  # any other folder among the checkpoints belongs to the user


@dataclass(frozen=True)
class Run:
    """A run folder. Every method that writes is atomic."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the folder without the time in it."""
        return re.sub(r"(?<=.)-\d{8}-\d{6}(-\d+)?$", "", self.path.resolve().name)

    @property
    def recipe_json(self) -> Path:
        return self.path / "recipe.json"

    @property
    def metrics_jsonl(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def progress_json(self) -> Path:
        return self.path / "progress.json"

    @property
    def split_csv(self) -> Path:
        return self.path / "split.csv"

    @classmethod
    def create(cls, name: str, out: Path | None, recipe_json: str) -> Run:
        """Create the run folder `out`, or `runs/<name>-<time>`. Raises `UserError` if that fails.

        Of several processes that create the same folder, one does; the others raise, or take another name.
        """
        if out is not None:
            cls.check_free(out)
        try:
            if out is None:
                out = _make_new_folder(Path("runs"), f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
            out.mkdir(parents=True, exist_ok=True)
            try:
                (out / "checkpoints").mkdir()  # atomic
            except FileExistsError:
                raise UserError(f"{out} was just taken by another process; choose another --out.") from None
            write_text(out / "recipe.json", recipe_json + "\n")
        except OSError as error:
            raise UserError(
                f"The run folder {out or 'runs'} cannot be written: {error.strerror}; choose another --out."
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
        return convert(rows, list[dict[str, Any]], str(self.metrics_jsonl))

    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json, or {} before the end of the first epoch."""
        try:
            return read_json(self.path / "summary.json", dict[str, Any])
        except FileNotFoundError:
            return {}

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
        step: int,
        best: bool,
        keep: int = 2,
        model: Network,
        classes: Sequence[str],
        preprocess: EvalTransform,
        **contents: Any,
    ) -> Path:
        """Write `checkpoints/<step>`, point `last` (and `best`) to it, and return its folder.

        Keeps the best and the `keep` newest checkpoints, and removes the others. The arguments
        besides `best` and `keep` are those of `save_model`.
        """
        from alexnet.checkpoint import save_model

        folder = self.path / "checkpoints" / f"{step:08d}"
        folder.parent.mkdir(exist_ok=True)
        while folder.exists():  # stopped after an epoch's last step and resumed; never delete the only checkpoint
            folder = folder.with_name(folder.name + "a")
        with atomic_folder(folder) as temporary:
            save_model(temporary, model, classes, preprocess, step=step, **contents)
        if best:  # first: the training state in `last` may rely on it
            self.name_checkpoint("best", folder.name)
        self.name_checkpoint("last", folder.name)
        older = [path for path in self.checkpoints() if path.name < folder.name]
        kept = {folder, self.named_checkpoint("best"), *older[: keep - 1]}
        for other in self.checkpoints():
            if other not in kept:
                with suppress(OSError):
                    other.rename(other.with_name(f"{PARTIAL}-{other.name}"))  # hidden even if killed while removing
        for leftover in folder.parent.glob(f"{PARTIAL}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return folder

    def name_checkpoint(self, which: str, name: str | None) -> None:
        """Make the file `best` or `last` name a checkpoint, or remove it for None."""
        if name is None:
            (self.path / which).unlink(missing_ok=True)
        elif name != self.checkpoint_name(which):
            write_text(self.path / which, name + "\n")

    def quarantine(self, folder: Path) -> None:
        """Rename a damaged checkpoint so that it is no longer listed; `remove_quarantined` deletes it."""
        target = folder.with_name(f"{QUARANTINED}{folder.name}")
        while target.exists():
            target = target.with_name(target.name + "a")
        folder.rename(target)

    def remove_quarantined(self) -> None:
        """Remove the quarantined checkpoints."""
        for folder in self.path.glob(f"checkpoints/{QUARANTINED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_partial_files(self) -> None:
        """Remove files and checkpoints that a killed process left half-written."""
        for path in [*self.path.rglob(f"*{PARTIAL}"), *self.path.glob(f"checkpoints/{PARTIAL}-*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("."):
                path.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raise `UserError` if the run folder or its checkpoint folder is not writable."""
        for folder in (self.path, self.path / "checkpoints"):
            if folder.exists() and not os.access(folder, os.W_OK):
                raise UserError(f"{folder} is not writable; change its permissions, or resume a copy of {self.path}.")

    @contextmanager
    def lock(self, log: Callable[[str], object], timeout: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Lock the folder for the only process that trains it. The system releases it however the process ends.

        Waits up to `timeout` seconds for another process. Raises `UserError` after that.
        """
        from filelock import FileLock, Timeout

        # Data-loading workers, forks of this process that may outlive it by seconds, do not keep filelock's locks.
        lock = FileLock(self.path / LOCK, fallback_to_soft=False)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log(f"Another process is training {self.path}; waiting up to {timeout:.0f} s.")
                lock.acquire(timeout=timeout)
        except Timeout as error:
            raise UserError(
                f"{self.path} is being trained by another process; stop that process, or wait for it."
            ) from error
        except OSError as error:
            if os.access(self.path, os.W_OK):  # otherwise no process can train here
                why = error.strerror or error
                log(f"{self.path} cannot be locked ({why}): make sure that no other process is training it.")
        try:
            yield
        finally:
            if lock.is_locked:
                with suppress(OSError):
                    (self.path / LOCK).unlink()  # before releasing: the next process sees that its file is gone
                lock.release()

    def is_locked(self) -> bool:
        """Return whether a process trains this run. Keeps none from doing so, and removes what a killed one left."""
        path = self.path / LOCK
        if not path.exists():
            return False
        from filelock import FileLock, Timeout

        lock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # OSError: not ours to lock
            return True
        with suppress(OSError):
            path.unlink()  # as in `lock`
        lock.release()
        return False

    def write_evaluation(self, split: str, paths: Sequence[str], targets: np.ndarray, logits: np.ndarray) -> Path:
        """Write `evaluation/<split>.parquet`: path (string), target (int64), logits (list of float32)."""
        import numpy as np
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
        table = self._read_table(split, ["path", "target", "logits"])
        if table is None:
            return None
        logits = table["logits"].combine_chunks().flatten().to_numpy()  # ImageNet: 50 million values
        return table["path"].to_pylist(), table["target"].to_numpy(), logits.reshape(len(table), -1).copy()

    def read_evaluation_targets(self, split: str) -> tuple[list[str], np.ndarray] | None:
        """Return the paths and targets of `read_evaluation` without the logits, which may not fit into memory."""
        table = self._read_table(split, ["path", "target"])
        return None if table is None else (table["path"].to_pylist(), table["target"].to_numpy())

    def _read_table(self, split: str, columns: list[str]) -> Any:
        from pyarrow import parquet

        path = self.path / "evaluation" / f"{split}.parquet"
        return parquet.read_table(path, columns=columns) if path.exists() else None


def _make_new_folder(parent: Path, name: str) -> Path:
    """Create and return `parent/name`, or `name-2`, `name-3`, … if others have that already."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()  # atomic: another run may begin in the same second
            return folder
    raise AssertionError("unreachable")


def check_runs(*names: str) -> None:
    """Raise `UserError` if one of `names` is no file, no folder and not `last`; weights of torchvision (`:`) pass."""
    for name in names:
        if not os.path.exists(name) and ":" not in name:
            find_run(name)


def find_run(name: str | Path, root: Path = Path("runs")) -> Run:
    """Return the run in the folder `name`, or for `last` the newest in `root`. Raises `UserError`."""
    if str(name) == "last" and not Path(name).exists():
        runs = [p for p in root.glob("*") if (p / "recipe.json").is_file()]
        if not runs:
            raise UserError(f"There is no run in {root.resolve()} yet; create one with 'alexnet train'.")
        return Run(max(runs, key=lambda p: ((p / "recipe.json").stat().st_mtime_ns, p.name)))
    path = Path(name)
    if not path.exists():
        known = {p.name: str(p) for p in root.glob("*") if (p / "recipe.json").is_file()} | {"last": "last"}
        close = suggest(path.name, known, known) or "; give a run folder, such as runs/digits-…, or 'last'."
        raise UserError(f"There is no run {path}{close}")
    if not (path / "recipe.json").is_file():
        raise UserError(f"{path} is not a run folder: it has no recipe.json.")
    return Run(path)
