"""The cache of engines, `cache_dir()/engines/<model id>/`: exported files, and what was measured; read without torch.

    <kind of file>-<version>/   model.onnx, or model.xml and model.bin; their manifest
    measured.json               how much each engine differs from `exact` on this machine, and which one `fast` chose

A folder of files is written under a temporary name and renamed. Damaged files are built again. If the cache cannot be
written, files go to a temporary folder that is deleted when the process ends. The cache may be deleted at any time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet.device import cache_dir, cpu_name
from alexnet.errors import UserError
from alexnet.files import atomic_folder, read_json, write_json
from alexnet.runtimes import engines
from alexnet.runtimes.engines import FAST, KINDS, Kind, LoadedModel
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import FORMATS

FORMAT = 3  # of the files; increased when the conversions change

_temporary_dirs: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # removed when the process ends


@dataclass(frozen=True)
class EngineCache:
    """The cached files and measurements of one network; its folder need not exist yet."""

    model_id: str

    @property
    def path(self) -> Path:
        return cache_dir() / "engines" / self.model_id

    def open(self, name: str) -> LoadedModel | None:
        """Open engine `name`, or return None if its file is missing or damaged."""
        kind = KINDS[name]
        try:
            found = open_exported(self.file(kind), arithmetic=kind.arithmetic)
        except UserError:
            return None
        assert found.engine is not None
        assert found.manifest is not None
        if not found.manifest.sums:  # its manifest is missing, so nothing verified the file
            return None
        found.engine.name = name
        return replace(found, model_id=self.model_id)

    def file(self, kind: Kind) -> Path:
        """Return the path of a kind of file, which need not exist."""
        version = f"-{metadata.version('openvino')}" if kind.format == "openvino" else ""
        folder = self.path / f"{kind.format}-{kind.precision}-{FORMAT}{version}"
        if temporary := _temporary_dirs.get(folder):
            folder = Path(temporary.name)
        return folder / f"model{FORMATS[kind.format].suffix}"

    def build(self, kind: Kind, write: Callable[[Path], object]) -> None:
        """Call `write(path)` to write the file of `kind` and its manifest.

        If the cache cannot be written, they are in a temporary folder. Raises `UserError` if the disk is full.
        """
        target = self.file(kind)
        folder = target.parent
        if not _is_writable(folder.parent):
            temporary = tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True)
            write(Path(temporary.name) / target.name)
            _temporary_dirs[folder] = temporary
            return
        try:
            with atomic_folder(folder) as partial:
                write(partial / target.name)
                shutil.rmtree(folder, ignore_errors=True)
            self._drop_measurements(kind)
        except OSError as error:
            raise UserError(
                f"The engine file cannot be cached in {folder.parent}: {error.strerror or error}; free some space, or "
                "set ALEXNET_CACHE to another folder."
            ) from error

    # ── measurements ──────────────────────────────────────────────────────────────────────────────────────────

    def load_measurement(self, key: str) -> dict[str, Any] | None:
        """Return the value saved under `key` on this CPU with this number of threads, or None."""
        return self._measurements().get(f"{_machine()} | {key}")

    def save_measurement(self, key: str, value: dict[str, Any]) -> None:
        self._save_measurements({**self._measurements(), f"{_machine()} | {key}": value})

    def _drop_measurements(self, kind: Kind) -> None:
        """Delete the measurements of the engines that read `kind`, whose file was rebuilt."""
        same = [name for name, other in KINDS.items() if replace(other, arithmetic=kind.arithmetic) == kind]
        stale = {f"{_machine()} | {engine_key(name)}" for name in same if not engines.missing(name)}
        self._save_measurements({key: value for key, value in self._measurements().items() if key not in stale})

    def _measurements(self) -> dict[str, dict[str, Any]]:
        try:
            return read_json(self.path / "measured.json", dict[str, dict[str, Any]])
        except (OSError, UserError):
            return {}

    def _save_measurements(self, values: dict[str, dict[str, Any]]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "measured.json", values)
        except OSError:
            pass  # nothing is cached, so the next process is slower


def _is_writable(folder: Path) -> bool:
    """Create `folder` if necessary, and return whether files can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _machine() -> str:
    return f"{cpu_name()} | {engines.thread_count()} threads"


def open_cached(model_id: str, name: str, device: str, single: bool) -> LoadedModel | None:
    """Return a network in engine `name`, for a single image or many, if its file is cached, measured and intact."""
    cache = EngineCache(model_id)
    measured = cache.load_measurement(choice_key(device, single) if name == FAST else engine_key(name))
    chosen = str((measured or {}).get("engine", name))
    if measured is None or chosen not in KINDS or not KINDS[chosen].format:
        return None
    found = cache.open(chosen)
    if found is not None and found.engine is not None:
        found.engine.note = engine_note(chosen, measured)
    return found


def engine_key(name: str) -> str:
    """Return the key of the measured difference between engine `name` and `exact`."""
    return f"{name} {engines.version(name)}"


def choice_key(device: str, single: bool) -> str:
    """Return the key of the engine that `fast` chose, for a single image or many, among those installed."""
    installed = [engine_key(name) for name in KINDS if engines.missing(name) is None]
    return f"fast on {device} for {'one image' if single else 'many'} among {', '.join(installed)}"


def engine_note(name: str, measured: dict[str, Any]) -> str:
    """Return a sentence on the measurements made when engine `name` was first opened."""
    images = measured["images"]
    difference = f"probabilities differ from exact by at most {measured['difference']:.2g} on {images} images"
    speedup = f", at {measured['gain']:.1f} times its speed" if "gain" in measured else ""
    return f"engine {name}: {difference}{speedup}."
