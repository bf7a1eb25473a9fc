"""Opening an engine for a network, from the cache where it is there, and choosing the fastest one on this machine.

An engine is compared with `exact` once, on its first images (few images are also mirrored and rotated),
and its note reports the largest difference in probability. `fast` times the engines that run here, for a single image
or many, and takes the fastest whose probabilities stay within `TOLERANCE`. Both are cached with the files of the
engines in `cache_dir()/engines/<model id>/`:

    <kind of file>-<version>/   model.onnx, or model.xml and model.bin; their manifest
    measured.json               how much each engine differs from `exact` on this machine, and which one `fast` chose

A folder of files is written under a temporary name and renamed. Damaged files are built again. If the cache cannot be
written, files go to a temporary folder that is deleted when the process ends. The cache may be deleted at any time.
Opening a cached engine needs no torch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet.device import cache_dir, cpu_name, pick_precision
from alexnet.errors import UserError
from alexnet.files import atomic_folder, read_json, write_json
from alexnet.runtimes import engines
from alexnet.runtimes.engines import EXACT, FAST, KINDS, Engine, Kind, LoadedModel, TorchEngine, softmax
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import FORMATS, check_installed, read_manifest, write_manifest

if TYPE_CHECKING:
    import torch

FORMAT = 5  # of files and measurements; increased when the conversions change
ONNX = KINDS["onnxruntime"]
TOLERANCE = 0.02  # largest difference in probability that `fast` accepts: 50 % may become 48 or 52
MIN_PROBES = 8  # images on which probabilities are compared
TIMED_BATCH = engines.CHUNK  # images per timing, unless a single image is timed
TIMING_SECONDS = 3.0  # approximate limit for all timings

_temporary_dirs: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # removed when the process ends


@dataclass(frozen=True)
class EngineConfig:
    """Which engine to open, and how."""

    name: str
    device: torch.device
    device_name: str = "auto"
    """The device as the user named it."""
    calibration_images: Callable[[LoadedModel], np.ndarray] | None = None
    """Returns uint8 N×C×size×size to calibrate 8-bit activations on; called only if needed."""
    recalibrate: bool = False
    """Whether to calibrate again although a calibrated file is cached."""
    log: Callable[[str], object] = lambda _: None
    """Receives the engine's note."""


class LazyEngine:
    """An engine that is opened on its first call, since it is compared with `exact` on these images."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self.name, self.note = config.name, ""
        self._loaded, self._config = loaded, config
        self._engine: Engine | None = None

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self._engine is None:
            self._engine = open_engine(self._loaded, self._config, images)
            self.name, self.note = self._engine.name, self._engine.note
            if self.note:
                self._config.log(self.note)
        return self._engine.logits(images)


# ── opening ───────────────────────────────────────────────────────────────────────────────────────


def open_engine(loaded: LoadedModel, config: EngineConfig, images: np.ndarray) -> Engine:
    """Open an engine, building its file if necessary, and compare it on `images`, uint8 N×C×size×size."""
    if config.name == EXACT:
        return TorchEngine(loaded, config.device)
    cache, single = EngineCache(loaded.model_id), len(images) == 1
    key = _choice_key(config.device_name, single) if config.name == FAST else _engine_key(config.name)
    engine = None if config.name == FAST else open_or_build(loaded, config)
    measured = None if config.recalibrate else cache.load_measurement(key)
    if measured is None:
        if engine is None:
            measured = _choose_fastest(loaded, config, images, single)
        else:
            probes = make_probes(images)
            difference = _max_difference(engine, TorchEngine(loaded, config.device), probes)
            measured = {"engine": engine.name, "difference": difference, "images": len(probes)}
        cache.save_measurement(key, measured)
    if engine is None:
        engine = open_or_build(loaded, replace(config, name=measured["engine"]))
    engine.note = _engine_note(measured)
    return engine


def open_or_build(loaded: LoadedModel, config: EngineConfig) -> Engine:
    """Open any engine but `fast`; its file, if it has one, is written unless it is cached and intact.

    Raises `UserError` if a package is missing, this processor cannot run it, the network cannot be converted, or
    `calibration_images` raises it.
    """
    name = config.name
    if name == EXACT or not KINDS[name].format:
        return TorchEngine(loaded, config.device, name)
    kind, cache = KINDS[name], EngineCache(loaded.model_id)
    check_installed(kind.format, engine=name)
    if not engines.openvino_supports(kind.arithmetic):
        raise UserError(f"--engine {name} needs a processor that supports {kind.arithmetic}; use --engine openvino.")
    found = None if config.recalibrate else cache.open(name)
    if found is None:
        check_installed(kind.format, True, kind.precision, name)
        _write_file(loaded, kind, config)
        found = cache.open(name)
    if found is None or found.engine is None:
        raise UserError(f"--engine {name} cannot open the file that it wrote in {cache.path}; use --engine exact.")
    return found.engine


def _write_file(loaded: LoadedModel, kind: Kind, config: EngineConfig) -> None:
    """Write the file of `kind`, converted from the cached ONNX file in float32, which is also written unless it is
    intact."""
    from alexnet.runtimes.convert import describe, write_onnx, write_openvino

    def load_images() -> np.ndarray:
        assert config.calibration_images is not None, f"engine {config.name} needs calibration images"
        return config.calibration_images(loaded)

    cache, source = EngineCache(loaded.model_id), None
    if kind != ONNX:
        source = cache.file(ONNX)
        if not _is_intact(source):
            _write_file(loaded, ONNX, config)
            source = cache.file(ONNX)  # in another folder if the cache cannot be written
    write = write_onnx if kind.format == "onnx" else write_openvino
    manifest = describe(loaded, kind.format, precision=kind.precision)
    cache.build(kind, lambda path: write_manifest(path, write(loaded, manifest, path, load_images, source)))


def _is_intact(path: Path) -> bool:
    """Whether the engine's file `path` is there and as its manifest describes it."""
    try:
        return read_manifest(path) is not None
    except UserError:
        return False


def open_cached(model_id: str, name: str, device: str, single: bool) -> LoadedModel | None:
    """Return a network in engine `name`, for a single image or many, if its file is cached, measured and intact."""
    cache = EngineCache(model_id)
    measured = cache.load_measurement(_choice_key(device, single) if name == FAST else _engine_key(name))
    chosen = str(measured["engine"]) if measured else EXACT
    if measured is None or chosen not in KINDS or not KINDS[chosen].format:
        return None
    found = cache.open(chosen)
    if found is not None and found.engine is not None:
        found.engine.note = _engine_note(measured)
    return found


def _engine_key(name: str) -> str:
    """Return the key of the measured difference between engine `name` and `exact`."""
    package = {"onnx": "onnxruntime", "openvino": "openvino"}.get(KINDS[name].format, "torch")
    return f"{name} {metadata.version(package)} {FORMAT}"


def _choice_key(device: str, single: bool) -> str:
    """Return the key of the engine that `fast` chose, for a single image or many, among those installed."""
    installed = [_engine_key(name) for name in KINDS if engines.missing(name) is None]
    return f"fast on {device} for {'one image' if single else 'many'} among {', '.join(installed)}"


def _engine_note(measured: dict[str, Any]) -> str:
    """Return a sentence on the measurements made when an engine was first opened, or chosen."""
    if measured["engine"] == EXACT:
        return f"engine exact: {measured['reason']}."
    compared = f"differ from exact by at most {measured['difference']:.2g} on {measured['images']} images"
    speedup = f", at {measured['gain']:.1f} times its speed" if "gain" in measured else ""
    return f"engine {measured['engine']}: probabilities {compared}{speedup}."


# ── comparing and choosing ────────────────────────────────────────────────────────────────────────


def make_probes(images: np.ndarray) -> np.ndarray:
    """Return at most `CHUNK` of `images`, with mirrored and rotated copies if there are fewer than `MIN_PROBES`."""
    probes = [images[: engines.CHUNK]]
    for turns in range(4):
        for flipped in (images, images[..., ::-1]):
            if turns or flipped is not images:
                probes.append(np.rot90(flipped, turns, axes=(2, 3)))
    count = max(MIN_PROBES, len(probes[0]))
    return np.ascontiguousarray(np.concatenate(probes)[:count])


def _max_difference(engine: Engine, reference: Engine, images: np.ndarray) -> float:
    """Return the largest difference in probability between two engines on `images`."""
    return float(np.abs(softmax(engine.logits(images)) - softmax(reference.logits(images))).max())


def _choose_fastest(loaded: LoadedModel, config: EngineConfig, images: np.ndarray, single: bool) -> dict[str, Any]:
    """Open, compare and time the engines that run here; return what to cache about the fastest within `TOLERANCE`."""
    reference = TorchEngine(loaded, config.device)
    probes = make_probes(images)
    candidates: dict[str, Engine] = {EXACT: reference}
    differences, rejected = {EXACT: 0.0}, []
    for name in _list_candidates(config.device):
        try:
            engine = open_or_build(loaded, replace(config, name=name))
        except UserError as error:  # it does not suit this network or this machine
            rejected.append(str(error).rstrip("."))
            continue
        differences[name] = _max_difference(engine, reference, probes)  # the first run, which compiles, is not timed
        if differences[name] <= TOLERANCE:
            candidates[name] = engine
        else:
            rejected.append(f"{name} differs by {differences[name]:.2g}, more than {TOLERANCE}")
    timed = np.resize(probes, (1 if single else TIMED_BATCH, *probes.shape[1:]))  # repeats them if they are fewer
    seconds = _time_engines(candidates, timed)
    best = min(seconds, key=lambda name: seconds[name])
    if best == EXACT:
        reason = "; ".join(["no engine installed here is faster within the tolerance", *rejected])
        return {"engine": EXACT, "reason": reason}
    speedup = seconds[EXACT] / seconds[best]
    return {"engine": best, "difference": differences[best], "images": len(probes), "gain": round(speedup, 2)}


def _list_candidates(device: torch.device) -> list[str]:
    """Return the engines that `fast` tries: none that needs calibration, and bfloat16 only if the device favors it."""
    import torch

    with torch.enable_grad():  # the precision is picked by a small training step
        names = ["torch-bf16"] if pick_precision("auto", device).name == "bf16" else []
    if device.type != "cpu":
        return names
    for name in ("onnxruntime", "openvino", "openvino-int8-fc"):
        if engines.missing(name, converting=True) is None:
            names.append("openvino-bf16" if name == "openvino" and engines.openvino_supports("bf16") else name)
    return names


def _time_engines(candidates: dict[str, Engine], images: np.ndarray) -> dict[str, float]:
    """Return the minimum of interleaved timings of each engine, in seconds: other processes only prolong them."""
    best = dict.fromkeys(candidates, float("inf"))
    started = time.perf_counter()
    for repeat in range(20):
        if repeat > 1 and time.perf_counter() - started > TIMING_SECONDS:
            break
        for name, engine in candidates.items():
            time.sleep(0.03)  # the threads of the previous engine may still spin, waiting for more work
            start = time.perf_counter()
            engine.logits(images)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────


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
            found = open_exported(self.file(kind), trust=True, arithmetic=kind.arithmetic)
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
                if not _is_intact(target):
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            if _is_intact(target):  # another process was faster, and may be reading it
                return
            raise UserError(
                f"The engine file cannot be cached in {folder.parent}: {error.strerror or error}; free some space, or "
                "set ALEXNET_CACHE to another folder."
            ) from error

    def load_measurement(self, key: str) -> dict[str, Any] | None:
        """Return the value saved under `key` on this CPU with this number of threads, or None."""
        return self._measurements().get(f"{_machine()} | {key}")

    def save_measurement(self, key: str, value: dict[str, Any]) -> None:
        self._save_measurements({**self._measurements(), f"{_machine()} | {key}": value})

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
