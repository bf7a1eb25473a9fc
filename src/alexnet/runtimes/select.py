"""Opening an engine for a network, and finding out which is the fastest here.

Whatever engine is opened is compared once with `exact` on the first pictures that it gets (where they are few, mirrored
and turned too) and says how far its probabilities were off. `fast` times those that can run here, for one picture or
for many, and takes the fastest whose probabilities stay within `TOLERANCE`; the choice is kept (`stored.py`).
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
from alexnet.runtimes.engine_cache import EngineCache, choice_key, engine_key, engine_note
from alexnet.runtimes.engines import EXACT, FAST, KINDS, Engine, Torch, softmax
from alexnet.runtimes.loaded_model import LoadedModel

TOLERANCE = 0.02  # of a probability: what `fast` may differ by, a label at 50 % then being 48 to 52
PROBES = 8  # pictures that probabilities are compared on at least
TIMED = engines.CHUNK  # pictures that are timed together where there are many
SECONDS = 3.0  # that timing takes, about


@dataclass(frozen=True)
class EngineConfig:
    """The engine that was asked for, and where."""

    name: str
    device: torch.device
    asked: str = "auto"
    """The device as it was asked for."""
    calibrate: Path | None = None
    """A folder of pictures that 8-bit activations are calibrated on; then anew."""
    say: Callable[[str], object] = lambda _: None
    """Told which engine it is and how far off."""


class LazyEngine:
    """The engine `wanted` for a network, opened at the first pictures: they are what it is compared on."""

    def __init__(self, opened: LoadedModel, wanted: EngineConfig) -> None:
        self.name, self.note = wanted.name, ""
        self._opened, self._wanted = opened, wanted
        self._engine: Engine | None = None

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self._engine is None:
            self._engine = open_engine(self._opened, self._wanted, images)
            self.name, self.note = self._engine.name, self._engine.note
            if self.note:
                self._wanted.say(self.note)
        return self._engine.logits(images)


def torch_engine(opened: LoadedModel, device: torch.device, name: str = EXACT) -> Torch:
    """Torch in float32, as in training, or in bfloat16."""
    model = opened.model.to(device).to(memory_format=torch.channels_last)
    return Torch(name, model.eval(), opened.preprocess, device, torch.float32 if name == EXACT else torch.bfloat16)


def open_engine(opened: LoadedModel, wanted: EngineConfig, pictures: np.ndarray) -> Engine:
    """The engine `wanted` for `opened`, its file made if need be, compared on `pictures` (uint8 N×C×size×size)."""
    if wanted.name == EXACT:
        return torch_engine(opened, wanted.device)
    if wanted.name == FAST:
        return _fastest(opened, wanted, pictures)
    engine = _open(wanted.name, opened, wanted)
    store, key = EngineCache(opened.identity), engine_key(wanted.name)
    known = None if wanted.calibrate else store.measured(key)
    if known is None:
        probes = probe_pictures(pictures)
        known = {"off": _off(engine, torch_engine(opened, wanted.device), probes), "pictures": len(probes)}
        store.keep_measured(key, known)
    engine.note = engine_note(wanted.name, known)
    return engine


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────


def _open(name: str, opened: LoadedModel, wanted: EngineConfig) -> Engine:
    """Engine `name`, its file made if it is not there, or damaged."""
    kind = KINDS[name]
    if not kind.file:
        return torch_engine(opened, wanted.device, name)
    return engines.open_file(name, get_or_build(kind.file, opened, name, wanted.calibrate))


def get_or_build(kind: str, opened: LoadedModel, engine: str, calibrate: Path | None = None) -> Path:
    """The file of `kind` for `engine`, made unless it is kept; anew if `calibrate`, on the pictures in that folder."""
    store = EngineCache(opened.identity)
    store.keep_description(opened.classes, opened.preprocess)
    if not calibrate and (kept := store.find(kind)):
        return kept
    if lacking := engines.missing(engine, making=True):
        raise engines.not_installed(engine, lacking)
    from alexnet.inference.evaluate import calibration_images
    from alexnet.runtimes.convert import to_onnx, to_openvino
    from alexnet.runtimes.quantize import quantize_fc_int8, quantize_onnx_int8, quantize_openvino_int8

    if kind == "onnx":
        return store.make(kind, lambda path: to_onnx(opened.model.cpu(), path, opened.preprocess))
    if kind == "openvino":
        source = get_or_build("onnx", opened, engine)
        return store.make(kind, lambda path: to_openvino(source, path))
    if kind == "openvino-int8-fc":
        source = get_or_build("openvino", opened, engine)
        return store.make(kind, lambda path: quantize_fc_int8(source, path))
    pictures = calibration_images(opened, calibrate)
    source = get_or_build("onnx" if kind == "onnx-int8" else "openvino", opened, engine)
    quantise = quantize_onnx_int8 if kind == "onnx-int8" else quantize_openvino_int8
    return store.make(kind, lambda path: quantise(source, path, pictures))


# ── comparing ─────────────────────────────────────────────────────────────────────────────────────────────────


def probe_pictures(pictures: np.ndarray) -> np.ndarray:
    """`pictures`, at most a chunk of them; where they are few, the same ones mirrored and turned as well."""
    found = [pictures[: engines.CHUNK]]
    for turns in range(4):
        for mirrored in (pictures, pictures[..., ::-1]):
            if turns or mirrored is not pictures:
                found.append(np.rot90(mirrored, turns, axes=(2, 3)))
    enough = max(PROBES, len(found[0]))
    return np.ascontiguousarray(np.concatenate(found)[:enough])


def _off(engine: Engine, reference: Engine, pictures: np.ndarray) -> float:
    """The largest difference of a probability."""
    return float(np.abs(softmax(engine.logits(pictures)) - softmax(reference.logits(pictures))).max())


def _fastest(opened: LoadedModel, wanted: EngineConfig, pictures: np.ndarray) -> Engine:
    one = len(pictures) == 1
    store, key = EngineCache(opened.identity), choice_key(wanted.asked, one)
    known = store.measured(key)
    if known is None:
        known = _choose(opened, wanted, pictures, one)
        store.keep_measured(key, known)
    name = known["engine"]
    engine = torch_engine(opened, wanted.device) if name == EXACT else _open(name, opened, wanted)
    engine.note = engine_note(name, known) if name != EXACT else f"engine exact: {known['reason']}."
    return engine


def _choose(opened: LoadedModel, wanted: EngineConfig, pictures: np.ndarray, one: bool) -> dict[str, Any]:
    """Open all that can run here, compare and time them; what to keep of the fastest that is within `TOLERANCE`."""
    reference = torch_engine(opened, wanted.device)
    probes = probe_pictures(pictures)
    candidates: dict[str, Engine] = {EXACT: reference}
    off, left_out = {EXACT: 0.0}, []
    for name in _usable(wanted.device):
        try:
            engine = _open(name, opened, wanted)
        except UserError as error:  # this network, or this machine, is nothing for it
            left_out.append(str(error).rstrip("."))
            continue
        off[name] = _off(engine, reference, probes)  # the first run, which compiles, is not timed
        if off[name] <= TOLERANCE:
            candidates[name] = engine
        else:
            left_out.append(f"{name} was {off[name]:.2g} off, more than {TOLERANCE}")
    timed = np.resize(probes, (1 if one else TIMED, *probes.shape[1:]))  # repeated, where they are fewer
    seconds = _fastest_times(candidates, timed)
    best = min(seconds, key=lambda name: seconds[name])
    if best == EXACT:
        reason = "; ".join(["nothing that is installed here is faster within the tolerance", *left_out])
        return {"engine": EXACT, "reason": reason}
    gain = seconds[EXACT] / seconds[best]
    return {"engine": best, "off": off[best], "pictures": len(probes), "gain": round(gain, 2)}


def _usable(device: torch.device) -> list[str]:
    """The engines that `fast` tries: nothing that must be calibrated, and bfloat16 only where it is faster."""
    with torch.enable_grad():  # precision is picked by a small training step
        found = ["torch-bf16"] if pick_precision("auto", device).name == "bf16" else []
    if device.type != "cpu":
        return found
    for name in ("onnxruntime", "openvino", "openvino-int8-fc"):
        if engines.missing(name, making=True) is None:
            found.append("openvino-bf16" if name == "openvino" and engines.openvino_computes("bf16") else name)
    return found


def _fastest_times(candidates: dict[str, Engine], pictures: np.ndarray) -> dict[str, float]:
    """The shortest of several times in turn, since other programs can only add to one."""
    best = dict.fromkeys(candidates, float("inf"))
    began = time.perf_counter()
    for round_ in range(20):
        if round_ > 1 and time.perf_counter() - began > SECONDS:
            break
        for name, engine in candidates.items():
            time.sleep(0.03)  # threads of the engine before may still spin, waiting for more work
            start = time.perf_counter()
            engine.logits(pictures)
            best[name] = min(best[name], time.perf_counter() - start)
    return best
