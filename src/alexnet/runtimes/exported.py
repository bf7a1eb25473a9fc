"""Exported models, each opened by the runtime of its format: ONNX and OpenVINO without torch, the others with it.

Its engine takes uint8 images as `EvalTransform.eval_array` returns them and returns logits. Images are normalized here
if the file does not do so itself. The files of `--engine` are exported files in a cache, and open in the same way.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet.device import cache_dir, package_environment
from alexnet.errors import UserError
from alexnet.files import read_json
from alexnet.runtimes.engines import CHUNK, Engine, LoadedModel, openvino_core, thread_count
from alexnet.runtimes.manifest import (
    FORMATS,
    KEY,
    WEB,
    Manifest,
    check_installed,
    exported_model_id,
    format_of,
    manifest_path,
    read_manifest,
)

if TYPE_CHECKING:
    import torch

Compute = Callable[[np.ndarray], np.ndarray]
"""uint8 or float32 N×C×size×size → float32 (N, classes)."""

TRIAL_SECONDS, TRIAL_BYTES_PER_SECOND = 30.0, 10_000_000
"""Limit on opening a file and processing one image: seconds, and one more for so many bytes. The 244 MB of an AlexNet
take two seconds."""


class ExportedEngine:
    """The computation of an exported file, from uint8 images to logits, at most `CHUNK` images at once."""

    def __init__(self, name: str, manifest: Manifest, compute: Compute) -> None:
        self.name, self.note = name, ""
        self._manifest, self._compute = manifest, compute
        self._scale, self._shift = manifest.preprocess.channel_scale_and_shift()

    def logits(self, images: np.ndarray) -> np.ndarray:
        chunks = [self._logits(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _logits(self, images: np.ndarray) -> np.ndarray:
        inputs = images if self._manifest.pixels else images * self._scale + self._shift
        return np.asarray(self._compute(inputs), np.float32)


def open_exported(name: str | Path, trust: bool = False, arithmetic: str = "f32") -> LoadedModel:
    """Open the exported file or folder `name`; `trust` opens one in a format that can run code, and without a trial.

    `arithmetic` is OpenVINO's: f32 or bf16.

    Raises `UserError` if it is missing, damaged or swapped, needs a package that is not installed, could run code, or
    takes too long.
    """
    path = Path(name)
    if path.suffix.lower() == FORMATS[WEB].suffix:
        raise UserError(f"{path} runs in a browser: open it there, and here give the run that it was exported from.")
    manifest = read_manifest(path, trust)
    kind = format_of(path)
    check_installed(kind)
    model_id = exported_model_id(path, manifest)
    if FORMATS[kind].graph and not trust:
        _try_in_process(path, model_id)
    try:
        compute, embedded = _OPENERS[kind](path, manifest, arithmetic)
    except UserError:
        raise
    except Exception as error:  # each runtime raises its own exceptions
        raise UserError(
            f"{path} cannot be opened as {kind} ({_first_line(error)}); export the network again."
        ) from error
    if manifest is None:
        if embedded is None:
            raise UserError(
                f"{path} does not describe its classes and preprocessing, and {manifest_path(path).name} is not "
                "beside it; export the network with alexnet."
            )
        manifest = Manifest.from_json(embedded, f"The metadata in {path}")
    engine = ExportedEngine(f"{kind} ({path.name})", manifest, compute)
    _check_output(engine, path, manifest)
    calibration = manifest.calibration
    note = "" if calibration else f"{path} has no confidence threshold: it was exported from a network without one."
    return LoadedModel(
        None, manifest.classes, manifest.preprocess, None, None, model_id, engine, manifest, calibration, note
    )


def _try_in_process(path: Path, model_id: str) -> None:
    """Open a file and process one image in another process, once for each file: it may contain an endless loop, or
    crash, and runtimes cannot be interrupted. Raises `UserError`, but not for what opening it here raises, too."""
    passed = cache_dir() / "opened" / model_id
    if passed.exists():
        return
    seconds = TRIAL_SECONDS + path.stat().st_size / TRIAL_BYTES_PER_SECOND
    command = [sys.executable, "-m", "alexnet.runtimes.exported", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, env=package_environment())
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{path} was not opened, because it takes more than {seconds:.0f} seconds for one image: it may contain an "
            "endless loop; check where it comes from, or export the network again."
        ) from None
    if done.returncode < 0:
        raise UserError(
            f"{path} was not opened, because its runtime crashes with it (signal {-done.returncode}); check where it "
            "comes from, or export the network again."
        )
    if done.returncode == 0:
        with contextlib.suppress(OSError):  # the cache cannot be written
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()


def _check_output(engine: Engine, path: Path, manifest: Manifest) -> None:
    """Raise `UserError` unless the network takes images as its manifest describes and returns a logit for each
    class."""
    preprocess = manifest.preprocess
    black = np.zeros((1, preprocess.channels, preprocess.size, preprocess.size), np.uint8)
    try:
        shape = engine.logits(black).shape
    except Exception as error:  # as above
        raise UserError(
            f"{path} cannot process an image as described in {manifest_path(path)} ({_first_line(error)}); export "
            "the network again."
        ) from error
    if shape != (1, len(manifest.classes)):
        raise UserError(
            f"{path} does not return a number for each of the {len(manifest.classes)} classes in "
            f"{manifest_path(path)}; export the network again."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": .")


# ── one opener per format, which returns the computation and the manifest embedded in the file ────

Opener = Callable[[Path, "Manifest | None", str], tuple[Compute, "str | bytes | None"]]


def _open_onnx(path: Path, _: Manifest | None, __: str) -> tuple[Compute, str | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    embedded = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda images: session.run(["output"], {"input": images})[0], embedded


def _open_openvino(path: Path, _: Manifest | None, arithmetic: str) -> tuple[Compute, str | None]:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch, since we wait for each
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": thread_count(),
    }
    model = openvino_core().read_model(path)
    embedded = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    request = openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({"input": images})["output"], embedded


def _open_torchscript(path: Path, _: Manifest | None, __: str) -> tuple[Compute, str | bytes | None]:
    import torch

    extra_files = {f"{KEY}.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecation, which the export mentioned
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra_files)
    return _torch_compute(module), extra_files[f"{KEY}.json"] or None


def _open_pt2(path: Path, _: Manifest | None, __: str) -> tuple[Compute, str | bytes | None]:
    import torch

    extra_files = {f"{KEY}.json": ""}
    program = torch.export.load(path, extra_files=extra_files)
    return _torch_compute(program.module()), extra_files[f"{KEY}.json"] or None


def _open_executorch(path: Path, _: Manifest | None, __: str) -> tuple[Compute, None]:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def compute(images: np.ndarray) -> np.ndarray:
        logits: torch.Tensor = method.execute([torch.from_numpy(np.ascontiguousarray(images))])[0]
        return logits.numpy().copy()  # the next call overwrites it

    return compute, None


def _open_torchvision_weights(path: Path, manifest: Manifest | None, _: str) -> tuple[Compute, None]:
    import torch

    if manifest is None:
        raise UserError(
            f"{path} holds only weights and {manifest_path(path).name}, which describes them, is not beside it; "
            "load it in Python with alexnet.load_weights(alexnet.create_model(…), path)."
        )
    from torchvision.models import alexnet

    from alexnet.models.model import build, spec_from_dict
    from alexnet.models.recognize import check_size
    from alexnet.models.torchvision_models import TorchvisionNetwork

    spec = spec_from_dict(manifest.spec)
    state = torch.load(path, map_location="cpu", weights_only=True)
    check_size(spec, {name: tuple(tensor.shape) for name, tensor in state.items()}, str(path))
    model = build(spec)
    network = model.network if isinstance(model, TorchvisionNetwork) else alexnet(num_classes=spec.num_classes)
    network.load_state_dict(state)
    return _torch_compute(network.eval()), None


def _open_huggingface(path: Path, manifest: Manifest | None, _: str) -> tuple[Compute, str | None]:
    from alexnet.models.model import spec_from_dict
    from alexnet.models.recognize import check_size, safetensors_shapes
    from alexnet.runtimes.hub import HubModel

    config, weights = path / "config.json", path / "model.safetensors"
    check_size(spec_from_dict(read_json(config, dict[str, Any])["spec"]), safetensors_shapes(weights), str(weights))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loads a local folder
        model = HubModel.from_pretrained(path)
    return _torch_compute(model), None if manifest else model.describe().to_json()


def _torch_compute(module: torch.nn.Module) -> Compute:
    import torch

    def compute(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits: torch.Tensor = module(torch.from_numpy(np.ascontiguousarray(images)))
        return logits.float().numpy()

    return compute


_OPENERS: dict[str, Opener] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "torchscript": _open_torchscript,
    "pt2": _open_pt2,
    "executorch": _open_executorch,
    "torchvision-weights": _open_torchvision_weights,
    "huggingface": _open_huggingface,
}
assert _OPENERS.keys() == FORMATS.keys() - {WEB}

if __name__ == "__main__":
    open_exported(sys.argv[1], trust=True)
