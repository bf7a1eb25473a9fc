"""The measurements of `alexnet bench`, each timed in turn with the limit that bounds it; needs no data or network.

A multiply-accumulate counts as 2 operations. Training takes three forward passes (forward, gradients of
weights, gradients of inputs) minus one of conv1, since the image needs no gradient; only convolutions and matrix
products count. A copy counts the bytes it reads and those it writes.

A result row is a dict: medians with `low`, `high` and `tries`, and `share_of_limit`, whose limit is measured together
with the row: for a training step a matrix product of its precision, for LRN a copy of its tensor, for a crop from a
file the decoding without cropping.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.bench import PARTS, check_parts, limits
from alexnet.bench.limits import Spread, Work, measure_rates
from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles
from alexnet.data.loader import BatchLoader
from alexnet.data.transforms import EvalTransform
from alexnet.device import DTYPES, Precision, environment, one_thread, pick_device, pick_precision, tune_malloc
from alexnet.errors import UserError
from alexnet.files import write_json
from alexnet.models.architectures import architecture
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.model import build
from alexnet.models.spec import AlexNetSpec
from alexnet.models.summary import summarize
from alexnet.runtimes.engines import CALIBRATED, EXACT, KINDS, Engine, LoadedModel, TorchEngine
from alexnet.runtimes.select import EngineCache, EngineConfig, open_or_build
from alexnet.training.architecture import build_spec
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.setup import TrainSetup, build_augment
from alexnet.training.step import TrainStep

ARCHS = ("torchvision", "paper")
BATCH_SIZES = {"cpu": 32, "cuda": 256}
LRN_SHAPES = ((64, 96, 55, 55), (64, 256, 27, 27))  # after conv1 and after conv2, batch 64
BATCHES = 4  # of the synthetic training step, in memory and used in turn
CALIBRATION_IMAGES = 8  # of noise: the 8-bit ranges are meaningless, the work is the same


def bench(
    parts: Sequence[str] = (),
    *,
    archs: Sequence[str] = ARCHS,
    batch_size: int | None = None,
    seconds: float = 1.0,
    precision: str = "auto",
    device: str = "auto",
    out: Path | None = None,
    log: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Measure the limits and `parts` (default: all `PARTS`); return the document of `alexnet bench --json`.

    Each measurement takes about `seconds`, or three tries if they take longer. `batch_size` defaults to 32 on a CPU and
    256 on a GPU; halved where memory is short (see `notes`). With `out`, write bench.json there; `files` lists it.
    Raises `UserError` for unknown names, invalid numbers, and a folder that cannot be written.
    """
    check_parts(parts)
    specs = [architecture(name) for name in archs]
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    if not seconds > 0:
        raise UserError(f"--seconds, the time per measurement, must be above 0, not {seconds:g}.")
    torch_device = pick_device(device)
    if out is not None:
        _check_writable(out)  # fail now, not after the measurements
    chosen = pick_precision(precision, torch_device)
    size = batch_size or BATCH_SIZES.get(torch_device.type, BATCH_SIZES["cpu"])
    bench = Bench(torch_device, chosen, size, seconds, log)
    document: dict[str, Any] = {
        "environment": environment(torch_device, 0),
        "precision": {"name": chosen.name, "reason": chosen.reason},
        **bench.limits(),
    }
    # training tunes malloc for the whole process, prediction and data loading do not: so they come first
    measurements: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "data": bench.data,
        "predict": partial(bench.predict, specs, calibrate="predict" in parts),
        "train": partial(bench.train, specs),
        "lrn": bench.lrn,
    }
    for part, measure in measurements.items():
        if part in (parts or PARTS):
            document[part] = list(measure())
    document["notes"] = bench.notes
    if out is not None:
        document["files"] = [str(out / "bench.json")]
        write_json(out / "bench.json", document)
    return document


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written: {error.strerror}; choose another --out.") from error


def training_operations(spec: AlexNetSpec) -> int:
    """Return the operations of one image's forward and backward pass, counted as described above."""
    rows = [row for row in summarize(spec).rows if row.macs]
    return 2 * (3 * sum(row.macs for row in rows) - rows[0].macs)


class Bench:
    """Measurements on `device`, training in `precision`; `notes` lists what was reduced or skipped."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        seconds: float,
        log: Callable[[str], object],
    ) -> None:
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.seconds, self.log = seconds, log
        self.notes: list[str] = []
        self.matmul = {name: limits.matmul_work(name, device) for name in DTYPES}

    def limits(self) -> dict[str, Any]:
        """Memory bandwidth, JPEG decoding, and a matrix product per precision."""
        self.log("measuring the limits of this machine")
        work = {name: w for name, w in self.matmul.items() if w}
        rates = self._rates(
            {"copy": limits.copy_work(self.device), "decode": limits.decode_work(), **work}, len(work) + 2
        )
        found: dict[str, Spread | None] = {
            "copy_gb_s": rates["copy"] * 1e-9,
            **{f"matmul_{name}_gflop_s": rates[name] * 1e-9 if name in rates else None for name in self.matmul},
            "decode_images_per_second": rates["decode"],
        }
        return {
            "limits": {name: rate.median if rate else None for name, rate in found.items()},
            "limits_spread": {name: rate.to_dict() for name, rate in found.items() if rate},
        }

    def train(self, specs: Sequence[AlexNetSpec]) -> Iterator[dict[str, Any]]:
        """The trainer's step on random images in memory."""
        for spec in specs:
            batch = self._fit_batch(spec, training=True)
            limit = self.matmul[self.precision.name]
            if not batch or not limit:
                continue
            self.log(f"training {spec.name}")
            step = synthetic_step(
                spec.name, image_size=spec.image_size, batch_size=batch, precision=self.precision.name,
                num_classes=spec.num_classes, settings={"device": self.device.type},
            )  # fmt: skip
            rates = self._rates({"limit": limit, "train": Work(step, batch)})
            speed = rates["train"].median * training_operations(spec)
            yield {
                **_describe(spec, batch, self.precision.name), **_speed(rates["train"]),
                "gflop_s": speed / 1e9, "limit_gflop_s": rates["limit"].median / 1e9,
                "share_of_limit": speed / rates["limit"].median,
            }  # fmt: skip

    def predict(self, specs: Sequence[AlexNetSpec], calibrate: bool) -> Iterator[dict[str, Any]]:
        """From uint8 images in memory to logits, for batch 1 and a full batch, in every engine.

        A single image is bounded by reading the weights, not by arithmetic, so the limit is the slower of the matrix
        product and the copy, in the engine's number format. Only the first architecture runs in every engine, since
        conversion takes a while; the others run in torch.
        """
        for i, spec in enumerate(specs):
            largest = self._fit_batch(spec, training=False)
            if not largest:
                continue
            self.log(f"predicting with {spec.name}")
            with self.open_engines(spec, convert=i == 0 and self._can_convert(spec), calibrate=calibrate) as engines:
                for batch in sorted({1, largest}):
                    yield from self._predict(spec, batch, engines)

    def _predict(self, spec: AlexNetSpec, batch: int, engines: Mapping[str, Engine]) -> Iterator[dict[str, Any]]:
        images = _random_images(batch, spec.in_channels, spec.image_size).numpy()
        work = {name: Work(partial(engine.logits, images), batch) for name, engine in engines.items()}
        products = {f"matmul {p}": w for p in ("fp32", "bf16") if (w := self.matmul[p])}
        rates = self._rates({"copy": limits.copy_work(self.device), **products, **work}, len(work) / 2)
        macs = summarize(spec).macs
        for name in engines:
            rate, number_format = rates[name], number_format_of(name)
            limit = rates["matmul bf16" if number_format == "bf16" else "matmul fp32"]  # torch multiplies no int8
            compute_time = 2 * macs / limit.median
            read_time = weight_bytes(name, spec) / batch / rates["copy"].median
            yield {
                "engine": name, **_describe(spec, batch, number_format), **_speed(rate),
                "ms": 1000 * batch / rate.median, "gflop_s": 2e-9 * macs * rate.median,
                "bound": "arithmetic" if compute_time > read_time else "reading the weights",
                "share_of_limit": max(compute_time, read_time) * rate.median,
            }  # fmt: skip

    def _can_convert(self, spec: AlexNetSpec) -> bool:
        """Return whether memory suffices to convert `spec` for the engines other than torch."""
        needed, free = 48 * summarize(spec).parameters, limits.free_device_memory(self.device)
        if needed > free:
            self._note(
                f"engines other than torch skipped: converting {spec.name} takes about "
                f"{needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free"
            )
        return needed <= free

    @contextmanager
    def open_engines(self, spec: AlexNetSpec, convert: bool, calibrate: bool) -> Iterator[dict[str, Engine]]:
        """Yield engines for an untrained network of `spec` by name; their files are deleted afterwards.

        Always torch; with `convert` on a CPU, all others whose packages are installed; those with 8-bit activations,
        the slowest to build, only with `calibrate`.
        """
        size, channels = spec.image_size, spec.in_channels
        preprocess = EvalTransform(size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
        classes = tuple(map(str, range(spec.num_classes)))
        loaded = LoadedModel(build(spec).eval(), classes, preprocess, None, None, f"bench-{os.getpid()}")
        noise = _random_images(CALIBRATION_IMAGES, channels, size).numpy()
        torch_engines = [EXACT, "torch-bf16"] if self.precision.name == "bf16" else [EXACT]
        engines: dict[str, Engine] = {name: TorchEngine(loaded, self.device, name) for name in torch_engines}
        try:
            for name, kind in KINDS.items():
                if not kind.format or not convert or self.device.type != "cpu":
                    continue
                if name in CALIBRATED and not calibrate:
                    self._note(f"engine {name} skipped: building it takes a while; 'alexnet bench predict' includes it")
                else:
                    try:
                        engines[name] = open_or_build(
                            loaded, EngineConfig(name, self.device, calibration_images=lambda _: noise)
                        )
                    except UserError as error:  # a missing package, a processor or network that it does not suit
                        self._note(f"engine {name} skipped: {error}")
            yield engines
        finally:
            shutil.rmtree(EngineCache(loaded.model_id).path, ignore_errors=True)

    def lrn(self) -> Iterator[dict[str, Any]]:
        """LRN forward and backward, against 2.5 copies, the least traffic (x in, y out; x, dy in, dx out)."""
        tune_malloc()  # as training does
        for (n, *rest), layout in product(LRN_SHAPES, ("NCHW", "channels_last")):
            yield self._lrn(n if self.device.type == "cpu" else 16 * n, rest, layout)  # exceed a GPU's cache

    def _lrn(self, n: int, rest: Sequence[int], layout: str) -> dict[str, Any]:
        while n > 1 and 8 * 4 * n * int(np.prod(rest)) > limits.free_device_memory(self.device):
            n //= 2
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        x = torch.randn(n, *rest, device=self.device).to(self.precision.dtype).contiguous(memory_format=memory_format)
        gradient, target = torch.randn_like(x), torch.empty_like(x)
        norm = LocalResponseNorm()
        x.requires_grad_()

        def forward_backward() -> None:
            torch.autograd.grad(norm(x), x, gradient)

        name = f"{'×'.join(map(str, (n, *rest)))} {layout}"
        self.log(f"LRN {name}")
        copied = Work(lambda: target.copy_(x.detach()), 2 * x.nbytes)
        rates = self._rates({"copy": copied, "lrn": Work(forward_backward, 5 * x.nbytes)})
        rate, amount = rates["lrn"], 5 * x.nbytes
        return {
            "name": name, "precision": self.precision.name, "tries": rate.tries,
            "ms": 1000 * amount / rate.median, "low_ms": 1000 * amount / rate.high, "high_ms": 1000 * amount / rate.low,
            "gb_s": rate.median / 1e9, "limit_gb_s": rates["copy"].median / 1e9,
            "share_of_limit": rate.median / rates["copy"].median,
        }  # fmt: skip

    def data(self) -> Iterator[dict[str, Any]]:
        """Yield rows for crops: from JPEG files on one core, against decoding only; from memory, against a copy.

        A share above 1 means that only part of an image was decoded.
        """
        self.log("data loading")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, one_thread():
            names = [f"{n}.jpg" for n in range(16)]
            for name in names:
                (Path(folder) / name).write_bytes(limits.make_photo())
            files = ImageFiles(Path(folder), names, torch.zeros(len(names), dtype=torch.int64))
            epochs = count()
            preprocess, augmentation = EvalTransform(224, 256), Augment(crop="resized", flip=True)

            def read(loader: BatchLoader) -> None:
                for _ in loader.batches(next(epochs)):
                    pass

            kinds = {"training crop": augmentation, "evaluation crop": None}
            work = {
                kind: Work(partial(read, BatchLoader(files, preprocess, how, batch_size=len(names))), len(names))
                for kind, how in kinds.items()
            }
            rates = self._rates({"limit": limits.decode_work(), **work}, 3)
        for kind in kinds:
            yield {
                "name": f"{kind} of 224 from JPEG, one core", **_speed(rates[kind]), "limit": "decode",
                "share_of_limit": rates[kind].median / rates["limit"].median,
            }  # fmt: skip
        for n, side, size, augmentation in (
            (512, 32, 32, Augment(crop="pad", flip=True)),
            (64, 256, 224, Augment(crop="random", flip=True)),
        ):
            images = _random_images(n, 3, side).to(self.device)
            call = partial(augment, images, np.arange(n), 0, 0, augmentation, size)
            rates = self._rates({"limit": limits.copy_work(self.device), "augment": Work(call, n)}, 2)
            yield {
                "name": f"crop of {size} ({augmentation.crop}) and flip in memory", **_speed(rates["augment"]),
                "limit": "copy", "share_of_limit": rates["augment"].median * 2 * 3 * size**2 / rates["limit"].median,
            }  # fmt: skip

    def _rates(self, work: Mapping[str, Work], times: float = 1.0) -> dict[str, Spread]:
        return measure_rates(work, times * self.seconds, self.device)

    def _fit_batch(self, spec: AlexNetSpec, training: bool) -> int:
        """Return the batch size, halved (with a note) until it fits into free memory; 0 if not even one image fits.

        An estimate: training keeps weights, gradients, momentum, a copy of the weights, every activation with its
        gradient, and four batches of images; inference keeps weights and activations.
        """
        summary, free = summarize(spec), limits.free_device_memory(self.device)
        pixels = spec.in_channels * (spec.image_size * 8 // 7) ** 2
        fixed = (16 if training else 8) * summary.parameters
        per_image = (2 if training else 1) * summary.activation_bytes + 12 * pixels
        batch = self.batch_size
        while batch and fixed + batch * per_image > 0.8 * free:
            batch //= 2
        if batch < self.batch_size:
            task = f"{'training' if training else 'predicting with'} {spec.name}"
            change = f"with batch {batch} instead of {self.batch_size}" if batch else "skipped"
            self._note(f"{task} {change}: {free / 2**30:.1f} GiB of memory are free")
        return batch

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.log(text)


def number_format_of(engine: str) -> str:
    if engine in CALIBRATED:
        return "int8"
    if engine == "openvino-int8-fc":
        return "int8 weights of fc"
    return "bf16" if engine.endswith("bf16") else "fp32"


def weight_bytes(engine: str, spec: AlexNetSpec) -> int:
    """Return the least number of weight bytes that an engine reads per batch."""
    of_conv, of_fc = {"int8": (1, 1), "int8 weights of fc": (4, 1), "bf16": (2, 2)}.get(
        number_format_of(engine), (4, 4)
    )
    return sum(row.parameters * (of_fc if row.kind == "linear" else of_conv) for row in summarize(spec).rows)


def _describe(spec: AlexNetSpec, batch: int, precision: str) -> dict[str, Any]:
    return {"arch": spec.name, "image_size": spec.image_size, "precision": precision, "batch_size": batch}


def _speed(rate: Spread) -> dict[str, Any]:
    return {"images_per_second": rate.median, "low": rate.low, "high": rate.high, "tries": rate.tries}


def _random_images(n: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def synthetic_step(
    arch: str,
    *,
    image_size: int | None = None,
    batch_size: int,
    precision: str = "auto",
    num_classes: int = 1000,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[], None]:
    """Return a function that takes one optimizer step of `arch` on `batch_size` random uint8 images in memory, as the
    trainer does, but without a dataset or a run.

    The step is that of a run: gather, random crop from 1/7 larger images (256 for 224), flip, normalize, forward,
    backward, update. `settings` are recipe fields (`norm`, `compile`, `device` …). On a GPU the function returns before
    the work is done. Raises `UserError` as `train` does.
    """
    values = {"arch": arch, "image_size": image_size, "batch_size": batch_size, "precision": precision}
    recipe = with_settings(Recipe().replace(crop="random", flip=True), {**values, **(settings or {})})
    device = pick_device(recipe.run.device)
    spec = build_spec(recipe, num_classes, channels=None)
    channels, size = spec.in_channels, spec.image_size
    side, n = size + size // 7, BATCHES * batch_size
    images = _random_images(n, channels, side)
    torch.manual_seed(recipe.run.seed)
    targets = torch.randint(num_classes, (n,))
    arrays = ImageArrays(images.to(device), targets.to(device), [str(i) for i in range(n)])
    preprocess = EvalTransform(size, side, channels, (0.5,) * channels, (0.25,) * channels)
    augment = build_augment(recipe.augmentation)
    batches = BatchLoader(arrays, preprocess, augment, batch_size=batch_size, shuffle=True, seed=recipe.run.seed)
    setup = TrainSetup(
        recipe, spec, preprocess, augment,
        ImageDataset("synthetic", tuple(map(str, range(num_classes))), {"train": arrays}, channels),
        batches, {}, device, pick_precision(recipe.run.precision, device), SingleProcess(),
    )  # fmt: skip
    train_step = TrainStep(setup, build(spec).train())
    numbered = enumerate(batch for epoch in count() for batch in batches.batches(epoch))

    def step() -> None:
        number, batch = next(numbered)
        train_step(batch, number // BATCHES, number, schedule_at(recipe, number, BATCHES))

    return step
