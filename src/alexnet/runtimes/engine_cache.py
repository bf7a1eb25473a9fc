"""The cache of converted engine files, `cache_dir()/engines/<model id>/`; read without torch.

    model.json                  classes and preprocessing
    <kind of file>-<version>/   model.onnx, or model.xml and model.bin; sums.json with their checksums
    measured.json               how much each engine differs from `exact` on this machine, and which one `fast` chose

A folder of files is written under a temporary name and renamed. Damaged files are built again. If the cache cannot be
written, files go to a temporary folder that is deleted when the process ends. The cache may be deleted at any time.
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
from alexnet.runtimes.engines import FAST, KINDS, LoadedModel

FORMAT = 2  # of the files; increased when the conversions change
FILES = {
    "onnx": "model.onnx",
    "onnx-int8": "model.onnx",
    "openvino": "model.xml",
    "openvino-int8": "model.xml",
    "openvino-int8-fc": "model.xml",
}
"""Kind of file → file name."""

_temporary_dirs: dict[tuple[Path, str], tempfile.TemporaryDirectory[str]] = {}  # removed when the process ends


@dataclass(frozen=True)
class EngineCache:
    """The cached files and measurements of one network; its folder need not exist yet."""

    model_id: str
    """From `inference.load.model_id`."""

    @property
    def path(self) -> Path:
        return cache_dir() / "engines" / self.model_id

    def load_description(self) -> tuple[tuple[str, ...], EvalTransform] | None:
        """Return classes and geometry (a mean image is in the engine files), or None if nothing is cached."""
        try:
            found = json.loads((self.path / "model.json").read_text(encoding="utf-8"))
            return tuple(found["classes"]), EvalTransform.from_dict(found["preprocess"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save_description(self, classes: tuple[str, ...], preprocess: EvalTransform) -> None:
        if not (self.path / "model.json").is_file():
            geometry = replace(preprocess, mean_image=None).to_dict()
            self._write("model.json", {"classes": list(classes), "preprocess": geometry})

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, kind: str) -> Path | None:
        """Return the file of `kind` if it exists and its checksums match."""
        if temporary := _temporary_dirs.get((self.path, kind)):
            return Path(temporary.name) / FILES[kind]
        folder = self._kind_dir(kind)
        try:
            sums = json.loads((folder / "sums.json").read_text())
            intact = FILES[kind] in sums and all(sha256_file(folder / name) == sha for name, sha in sums.items())
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return folder / FILES[kind] if intact else None

    def build(self, kind: str, write: Callable[[Path], None]) -> Path:
        """Call `write(path)` to build the file of `kind`, and return its path in the cache.

        If the cache cannot be written, the file is in a temporary folder. Raises `UserError` if the disk is full.
        """
        folder = self._kind_dir(kind)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        except OSError:
            temporary = tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True)
            write(Path(temporary.name) / FILES[kind])
            _temporary_dirs[self.path, kind] = temporary
            return Path(temporary.name) / FILES[kind]
        try:
            write(partial / FILES[kind])
            write_json(partial / "sums.json", {path.name: sha256_file(path) for path in partial.iterdir()})
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            self._drop_measurements(kind)
        except OSError as error:
            raise UserError(
                f"The engine file cannot be cached in {folder.parent}: {error.strerror or error}; free some space, or "
                "set ALEXNET_CACHE to another folder."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder / FILES[kind]

    def _kind_dir(self, kind: str) -> Path:
        version = "" if kind.startswith("onnx") else f"-{metadata.version('openvino')}"
        return self.path / f"{kind}-{FORMAT}{version}"

    # ── measurements ──────────────────────────────────────────────────────────────────────────────────────────

    def load_measurement(self, key: str) -> dict[str, Any] | None:
        """Return the value saved under `key` on this CPU with this number of threads, or None."""
        found = self._measurements().get(f"{_machine()} | {key}")
        return found if isinstance(found, dict) else None

    def save_measurement(self, key: str, value: dict[str, Any]) -> None:
        self._write("measured.json", {**self._measurements(), f"{_machine()} | {key}": value})

    def _drop_measurements(self, kind: str) -> None:
        """Delete the measurements of the engines that read `kind`, whose file was rebuilt."""
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
            pass  # nothing is cached, so the next process is slower


def _machine() -> str:
    return f"{cpu_name()} | {engines.thread_count()} threads"


def open_cached(model_id: str, name: str, device: str, single: bool) -> LoadedModel | None:
    """Return a network in engine `name`, for a single image or many, if its file is cached, measured and intact."""
    cache = EngineCache(model_id)
    measured = cache.load_measurement(choice_key(device, single) if name == FAST else engine_key(name))
    chosen = str((measured or {}).get("engine", name))
    path = cache.find(KINDS[chosen].file) if measured and chosen in KINDS and KINDS[chosen].file else None
    description = cache.load_description()
    if measured is None or path is None or description is None:
        return None
    engine = engines.open_file(chosen, path)
    engine.note = engine_note(chosen, measured)
    return LoadedModel(None, *description, None, None, model_id, engine)


def engine_key(name: str) -> str:
    """Return the key of the measured difference between engine `name` and `exact`."""
    return f"{name} {engines.version(name)}"


def choice_key(device: str, single: bool) -> str:
    """Return the key of the engine that `fast` chose, for a single image or many, among those installed."""
    installed = [engine_key(name) for name in KINDS if engines.missing(name) is None]
    return f"fast on {device} for {'one picture' if single else 'many'} among {', '.join(installed)}"


def engine_note(name: str, measured: dict[str, Any]) -> str:
    """Return a sentence on the measurements made when engine `name` was first opened."""
    images = measured["images"]
    difference = f"probabilities differ from exact by at most {measured['difference']:.2g} on {images} images"
    speedup = f", at {measured['gain']:.1f} times its speed" if "gain" in measured else ""
    return f"engine {name}: {difference}{speedup}."
