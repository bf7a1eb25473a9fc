"""Opening an engine for a network, and choosing the fastest one on this machine.

An engine is compared with `exact` once, on its first images (few images are also mirrored and rotated),
and its note reports the largest difference in probability. `fast` times the engines that run here, for a single image
or many, and takes the fastest whose probabilities stay within `TOLERANCE`; the choice is cached (`engine_cache.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.device import pick_precision
from alexnet.errors import UserError
from alexnet.runtimes import engines
from alexnet.runtimes.convert import describe, write_onnx, write_openvino
from alexnet.runtimes.engine_cache import EngineCache, choice_key, engine_key, engine_note
from alexnet.runtimes.engines import EXACT, FAST, KINDS, Engine, LoadedModel, TorchEngine, softmax
from alexnet.runtimes.manifest import read_manifest, write_manifest

ONNX = KINDS["onnxruntime"]
TOLERANCE = 0.02  # largest difference in probability that `fast` accepts: 50 % may become 48 or 52
MIN_PROBES = 8  # images on which probabilities are compared
TIMED_BATCH = engines.CHUNK  # images per timing, unless a single image is timed
TIMING_SECONDS = 3.0  # approximate limit for all timings


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


def torch_engine(loaded: LoadedModel, device: torch.device, name: str = EXACT) -> TorchEngine:
    """Return the engine `name` of torch: `exact` computes in float32, any other in bfloat16."""
    model = loaded.model.to(device).to(memory_format=torch.channels_last)
    return TorchEngine(
        name, model.eval(), loaded.preprocess, device, torch.float32 if name == EXACT else torch.bfloat16
    )


def open_engine(loaded: LoadedModel, config: EngineConfig, images: np.ndarray) -> Engine:
    """Open an engine, building its file if necessary, and compare it on `images`, uint8 N×C×size×size."""
    if config.name == EXACT:
        return torch_engine(loaded, config.device)
    if config.name == FAST:
        return _open_fastest(loaded, config, images)
    engine = _open(config.name, loaded, config)
    cache, key = EngineCache(loaded.model_id), engine_key(config.name)
    measured = None if config.recalibrate else cache.load_measurement(key)
    if measured is None:
        probes = make_probes(images)
        difference = _max_difference(engine, torch_engine(loaded, config.device), probes)
        measured = {"difference": difference, "images": len(probes)}
        cache.save_measurement(key, measured)
    engine.note = engine_note(config.name, measured)
    return engine


def _open(name: str, loaded: LoadedModel, config: EngineConfig) -> Engine:
    if not KINDS[name].format:
        return torch_engine(loaded, config.device, name)
    return open_or_build(name, loaded, config.calibration_images, config.recalibrate)


def open_or_build(
    name: str,
    loaded: LoadedModel,
    calibration_images: Callable[[LoadedModel], np.ndarray] | None = None,
    rebuild: bool = False,
) -> Engine:
    """Open engine `name`, whose file is written with `rebuild`, or unless it is cached and intact.

    Raises `UserError` if a package is missing, this processor cannot run it, the network cannot be converted, or
    `calibration_images` raises it.
    """
    kind, cache = KINDS[name], EngineCache(loaded.model_id)
    if package := engines.missing(name):
        raise engines.not_installed(name, package)
    if not engines.openvino_supports(kind.arithmetic):
        raise UserError(f"--engine {name} needs a processor that supports {kind.arithmetic}; use --engine openvino.")
    found = None if rebuild else cache.open(name)
    if found is None:
        if package := engines.missing(name, converting=True):
            raise engines.not_installed(name, package)
        images = _load_images(name, loaded, calibration_images)
        source = None if kind == ONNX else _build_onnx(loaded, cache)
        write = write_onnx if kind.format == "onnx" else write_openvino
        manifest = describe(loaded, kind.format, precision=kind.precision)
        cache.build(kind, lambda path: write_manifest(path, write(loaded, manifest, path, lambda: images, source)))
        found = cache.open(name)
    if found is None or found.engine is None:
        raise UserError(f"--engine {name} cannot open the file that it wrote in {cache.path}; use --engine exact.")
    return found.engine


def _load_images(
    name: str, loaded: LoadedModel, calibration_images: Callable[[LoadedModel], np.ndarray] | None
) -> np.ndarray:
    if name not in engines.CALIBRATED:
        return np.empty(0)
    if calibration_images is None:
        raise ValueError(f"engine {name} needs calibration images")
    return calibration_images(loaded)


def _build_onnx(loaded: LoadedModel, cache: EngineCache) -> Path:
    """Return the cached ONNX file, which all others are converted from; writes it unless it is intact."""
    try:
        if read_manifest(cache.file(ONNX)):
            return cache.file(ONNX)
    except UserError:
        pass
    manifest = describe(loaded, "onnx")
    cache.build(ONNX, lambda path: write_manifest(path, write_onnx(loaded, manifest, path, lambda: np.empty(0))))
    return cache.file(ONNX)


# ── comparing and choosing ────────────────────────────────────────────────────────────────────────────────────


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


def _open_fastest(loaded: LoadedModel, config: EngineConfig, images: np.ndarray) -> Engine:
    single = len(images) == 1
    cache, key = EngineCache(loaded.model_id), choice_key(config.device_name, single)
    choice = cache.load_measurement(key)
    if choice is None:
        choice = _choose_fastest(loaded, config, images, single)
        cache.save_measurement(key, choice)
    name = choice["engine"]
    engine = torch_engine(loaded, config.device) if name == EXACT else _open(name, loaded, config)
    engine.note = engine_note(name, choice) if name != EXACT else f"engine exact: {choice['reason']}."
    return engine


def _choose_fastest(loaded: LoadedModel, config: EngineConfig, images: np.ndarray, single: bool) -> dict[str, Any]:
    """Open, compare and time the engines that run here; return what to cache about the fastest within `TOLERANCE`."""
    reference = torch_engine(loaded, config.device)
    probes = make_probes(images)
    candidates: dict[str, Engine] = {EXACT: reference}
    differences, rejected = {EXACT: 0.0}, []
    for name in _list_candidates(config.device):
        try:
            engine = _open(name, loaded, config)
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
