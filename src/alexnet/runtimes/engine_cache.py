"""Engine files that were made once: `cache_dir()/engines/<identity of the network>/`, read without torch.

    model.json                  classes and preprocessing
    <kind of file>-<version>/   model.onnx, or model.xml and model.bin; sums.json with their checksums
    measured.json               how far each engine was off on this machine, and which one `fast` chose

A folder of files is written beside its place and renamed into it. What is damaged is made anew; where nothing can be
written, files are made in a temporary folder each time. The whole folder may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet.data.transforms import EvalTransform
from alexnet.device import cache_dir, cpu_name
from alexnet.errors import UserError
from alexnet.files import sha256_file, write_json
from alexnet.runtimes import engines
from alexnet.runtimes.engines import FAST, KINDS, Engine

FORMAT = 2  # of the files: raised when what the conversions make changes
FILES = {
    "onnx": "model.onnx",
    "onnx-int8": "model.onnx",
    "openvino": "model.xml",
    "openvino-int8": "model.xml",
    "openvino-int8-fc": "model.xml",
}
"""The kinds of file, and the name of each."""

_unkept: dict[tuple[Path, str], tempfile.TemporaryDirectory[str]] = {}  # deleted as the program ends


@dataclass(frozen=True)
class EngineCache:
    """What is kept of one network, which need not exist yet."""

    identity: str
    """From `formats.identity`."""

    @property
    def path(self) -> Path:
        return cache_dir() / "engines" / self.identity

    # ── the network ───────────────────────────────────────────────────────────────────────────────────────────

    def describe(self) -> tuple[tuple[str, ...], EvalTransform] | None:
        """Classes and geometry (a mean image is in the engine files); None where nothing is kept."""
        try:
            found = json.loads((self.path / "model.json").read_text(encoding="utf-8"))
            return tuple(found["classes"]), EvalTransform.from_dict(found["preprocess"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_description(self, classes: tuple[str, ...], preprocess: EvalTransform) -> None:
        if not (self.path / "model.json").is_file():
            shown = replace(preprocess, mean_image=None).to_dict()
            self._write("model.json", {"classes": list(classes), "preprocess": shown})

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, kind: str) -> Path | None:
        """The file of `kind`, if it is there and as it was written."""
        if unkept := _unkept.get((self.path, kind)):
            return Path(unkept.name) / FILES[kind]
        folder = self._folder(kind)
        try:
            sums = json.loads((folder / "sums.json").read_text())
            whole = FILES[kind] in sums and all(sha256_file(folder / name) == told for name, told in sums.items())
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return folder / FILES[kind] if whole else None

    def make(self, kind: str, write: Callable[[Path], None]) -> Path:
        """The file that `write` makes at the path it gets, kept, or else in a temporary folder until the program
        ends. Raises `UserError` where the disk is full."""
        folder = self._folder(kind)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        except OSError:
            temporary = tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True)
            write(Path(temporary.name) / FILES[kind])
            _unkept[self.path, kind] = temporary
            return Path(temporary.name) / FILES[kind]
        try:
            write(beside / FILES[kind])
            write_json(beside / "sums.json", {path.name: sha256_file(path) for path in beside.iterdir()})
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(beside, folder)
            self._forget(kind)
        except OSError as error:
            raise UserError(
                f"The engine's file cannot be kept in {folder.parent}: {error.strerror or error}; make room, or set "
                "ALEXNET_CACHE to another folder."
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return folder / FILES[kind]

    def _folder(self, kind: str) -> Path:
        made_for = "" if kind.startswith("onnx") else f"-{metadata.version('openvino')}"
        return self.path / f"{kind}-{FORMAT}{made_for}"

    # ── measurements ──────────────────────────────────────────────────────────────────────────────────────────

    def measured(self, key: str) -> dict[str, Any] | None:
        """What was kept under `key` on a machine like this."""
        found = self._measurements().get(f"{_machine()} | {key}")
        return found if isinstance(found, dict) else None

    def keep_measured(self, key: str, value: dict[str, Any]) -> None:
        self._write("measured.json", {**self._measurements(), f"{_machine()} | {key}": value})

    def _forget(self, kind: str) -> None:
        """What was measured of the engines that read `kind`, of which there is a new file."""
        stale = {
            f"{_machine()} | {engine_key(name)}"
            for name in KINDS
            if KINDS[name].file == kind and not engines.missing(name)
        }
        self._write("measured.json", {key: v for key, v in self._measurements().items() if key not in stale})

    def _measurements(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / "measured.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self, name: str, value: Any) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / name, value)
        except OSError:
            pass  # nothing is kept then: slower the next time, nothing else


def _machine() -> str:
    return f"{cpu_name()} | {engines.threads()} threads"


def open_cached(identity: str, name: str, device: str, one: bool) -> Engine | None:
    """Engine `name` for one picture or many, if it has been opened here before and its file is whole."""
    store = EngineCache(identity)
    known = store.measured(choice_key(device, one) if name == FAST else engine_key(name))
    chosen = str((known or {}).get("engine", name))
    path = store.find(KINDS[chosen].file) if known and chosen in KINDS and KINDS[chosen].file else None
    if known is None or path is None:
        return None
    engine = engines.open_file(chosen, path)
    engine.note = engine_note(chosen, known)
    return engine


def engine_key(name: str) -> str:
    """Under which it is kept how far engine `name` was off."""
    return f"{name} {engines.version(name)}"


def choice_key(device: str, one: bool) -> str:
    """Under which `fast` keeps its choice: for one picture or many, among the engines that are installed."""
    present = [engine_key(name) for name in KINDS if engines.missing(name) is None]
    return f"fast on {device} for {'one picture' if one else 'many'} among {', '.join(present)}"


def engine_note(name: str, known: dict[str, Any]) -> str:
    """The sentence that tells of an engine what was measured when it was first opened."""
    off = f"its probabilities were at most {known['off']:.2g} off on {known['pictures']} pictures"
    gain = f" and it was {known['gain']:.1f} times as fast as exact" if "gain" in known else ""
    return f"engine {name}: {off}{gain}."
