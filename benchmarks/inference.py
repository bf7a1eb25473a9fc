"""Inference of `torchvision` at 224 in every engine, and in torch, onnxruntime and OpenVINO used directly.

    python benchmarks/inference.py --prepare    # convert and calibrate, not timed
    python benchmarks/inference.py              # time, about two minutes; writes results/inference.json
    python benchmarks/inference.py --memory     # peak memory; writes results/inference_memory.json

Weights are random, since speed does not depend on them; accuracy is measured with `alexnet eval --engine` on trained
runs. Ours normalize uint8 images; the peers (torch eager, compiled, raw engines) get normalized floats. All are timed
interleaved in one process, at batch 1 and 32, with a short pause between them: threads of onnxruntime and OpenMP keep
spinning after their work, and would slow down the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import data, save

from alexnet.bench.limits import time_interleaved
from alexnet.device import cache_dir
from alexnet.inference.load import TORCHVISION_PREPROCESS, calibration_images
from alexnet.models.model import create_model
from alexnet.runtimes import engines
from alexnet.runtimes.convert import describe, to_onnx
from alexnet.runtimes.engines import LoadedModel
from alexnet.runtimes.select import EngineConfig, open_engine, open_or_build

OURS = ("exact", "fast", "onnxruntime", "openvino", "openvino-int8-fc", "openvino-int8", "onnxruntime-int8")
CPU = torch.device("cpu")
Call = Callable[[], object]


def network() -> LoadedModel:
    """Return `torchvision` with fixed random weights."""
    torch.manual_seed(0)
    model = create_model("torchvision").eval()
    return LoadedModel(model, tuple(map(str, range(1000))), TORCHVISION_PREPROCESS, None, None, "benchmark-torchvision")


def float_onnx(opened: LoadedModel) -> Path:
    """Write the network as an ONNX file of float inputs, without our normalization, for the peers."""
    path = cache_dir() / "benchmark.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        to_onnx(opened, describe(opened, "onnx", pixels=False), path)
    return path


def make_files(opened: LoadedModel) -> None:
    """Create the engines' files that are missing."""
    images = partial(calibration_images, folder=data("imagenet-photos-200"))
    for name in ("onnxruntime", "openvino", "openvino-int8-fc", *engines.CALIBRATED):
        open_or_build(name, opened, images)


def prepare(opened: LoadedModel) -> None:
    make_files(opened)
    for batch in (1, 32):
        compiled(opened)(torch.zeros(batch, 3, 224, 224))
        open_engine(opened, EngineConfig("fast", CPU), make_images(batch))


def compiled(opened: LoadedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    torch._inductor.config.freezing = True
    module = torch.compile(opened.model.to(memory_format=torch.channels_last))

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return module(x.contiguous(memory_format=torch.channels_last))

    return run


def make_images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, 3, 224, 224), dtype=np.uint8)


def openvino_raw(path: Path, batch: int, hint: str) -> Callable[[np.ndarray], object]:
    """Return OpenVINO in float32 as documented.

    One request, or, for throughput, a queue that gets the batch in halves.
    """
    from openvino import AsyncInferQueue

    core = engines.openvino_core()
    model = core.compile_model(path, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"})
    if hint == "LATENCY":
        request = model.create_infer_request()
        return lambda x: request.infer({0: x})
    queue = AsyncInferQueue(model)
    parts = max(1, min(batch, 2))

    def run(x: np.ndarray) -> None:
        for part in np.array_split(x, parts):
            queue.start_async({0: part})
        queue.wait_all()

    return run


def contestants(opened: LoadedModel, batch: int) -> tuple[dict[str, Call], str]:
    """Return what is timed, and the engine that `fast` selects."""
    import onnxruntime

    images = make_images(batch)
    floats = opened.preprocess.normalize(torch.from_numpy(images)).contiguous()
    array = floats.numpy()
    plain = create_model("torchvision").eval()
    plain.load_state_dict(opened.model.state_dict())

    def plainly() -> None:
        with torch.no_grad():
            plain(floats)

    torch_compiled = compiled(opened)
    raw = onnxruntime.InferenceSession(float_onnx(opened), providers=["CPUExecutionProvider"])
    latency, throughput = (openvino_raw(float_onnx(opened), batch, hint) for hint in ("LATENCY", "THROUGHPUT"))
    calls: dict[str, Call] = {
        "peer: torch eager, fp32 NCHW": plainly,
        "peer: torch.compile, frozen, channels_last": lambda: torch_compiled(floats),
        "peer: onnxruntime": lambda: raw.run(None, {"input": array}),
        "peer: openvino, latency hint": lambda: latency(array),
        "peer: openvino, throughput hint": lambda: throughput(array),
    }
    chosen = ""
    for name in OURS:
        engine = open_engine(opened, EngineConfig(name, CPU), images)
        if name == "fast":
            chosen = engine.name
        calls[f"ours: {name}"] = lambda engine=engine: engine.logits(images)
    return calls, chosen


def time_all(opened: LoadedModel, tries: int, seconds: float) -> None:
    results = {}
    for batch in (1, 32):
        calls, chosen = contestants(opened, batch)
        work = {}
        for name, call in calls.items():
            work[f"rest before {name}"] = lambda: time.sleep(0.1)
            work[name] = call
        found = time_interleaved(work, tries=tries * (4 if batch == 1 else 1), warmup=2, seconds=seconds)
        eager = found["peer: torch eager, fp32 NCHW"].median
        rows = [
            {
                "name": name,
                **timing.to_dict(),
                "images_per_second": batch / timing.median,
                "times_eager": eager / timing.median,
            }
            for name, timing in found.items()
            if not name.startswith("rest")
        ]
        peers = [row for row in rows if row["name"].startswith(("peer: onnx", "peer: openv"))]
        best = max(peers, key=lambda row: row["images_per_second"])
        ours = next(row for row in rows if row["name"] == "ours: fast")
        results[f"batch {batch}"] = {
            "fast_is": chosen,
            "fast_to_best_fp32_peer": ours["images_per_second"] / best["images_per_second"],
            "best_fp32_peer": best["name"],
            "rows": rows,
        }
        for row in rows:
            print(f"{batch:3} {row['name']:45} {1000 * row['median']:8.1f} ms "
                  f"({1000 * row['low']:.1f} to {1000 * row['high']:.1f}) {row['times_eager']:.2f}")  # fmt: skip
    save("inference", results, ("openvino", "onnxruntime", "nncf"))


def measure_memory() -> None:
    """Measure the peak memory of a process that does one thing: batch 1, then 32.

    Engines run from their cached file, as in a second `predict`, without torch.
    """
    make_files(network())
    results = []
    for name in ("eager", *(name for name in OURS if name != "fast")):
        command = [
            sys.executable,
            "-c",
            STORED if name in engines.KINDS else BY_TORCH,
            name,
            str(Path(__file__).parent),
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append({"engine": name, **json.loads(output.splitlines()[-1])})
        print(results[-1])
    save("inference_memory", {"rows": results}, ("openvino", "onnxruntime"))


PEAKS = """
import json, re, sys
import numpy as np
peaks = {}
for batch in (1, 32):
    logits(np.zeros((batch, 3, 224, 224), np.uint8))
    peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]  # getrusage would count the parent's too
    peaks[f"batch_{batch}_mib"] = round(int(peak) / 1024)
print(json.dumps(peaks))
"""
STORED = (
    """
import sys
from alexnet.runtimes.select import EngineCache
logits = EngineCache("benchmark-torchvision").open(sys.argv[1]).engine.logits
"""
    + PEAKS
)
BY_TORCH = (
    """
import sys
sys.path.insert(0, sys.argv[2])
from alexnet.runtimes.engines import TorchEngine
from inference import CPU, eager, network
logits = eager(network()) if sys.argv[1] == "eager" else TorchEngine(network(), CPU).logits
"""
    + PEAKS
)


def eager(opened: LoadedModel) -> Callable[[np.ndarray], np.ndarray]:
    model = opened.model.to(memory_format=torch.contiguous_format)

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(opened.preprocess.normalize(torch.from_numpy(images))))

    return logits


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="create all files, measure nothing")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--tries", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each batch size")
    given = parser.parse_args()
    if given.memory:
        measure_memory()
    elif given.prepare:
        prepare(network())
    else:
        time_all(network(), given.tries, given.seconds)
