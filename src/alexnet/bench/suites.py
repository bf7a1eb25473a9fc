"""The suites of `alexnet bench`, each timed in turn with the limit that bounds it.

A multiply-accumulate counts as 2 operations. Training takes three forward passes (forward, gradients of
weights, gradients of inputs) minus one of conv1, since the image needs no gradient; only convolutions and matrix
products count. A copy counts the bytes it reads and those it writes.

A result row is a dict: medians with `low`, `high` and `tries`, and `share_of_limit`, whose limit is measured together
with the row: for a training step a matrix product of its precision, for LRN a copy of its tensor, for a crop from a
file the decoding without cropping.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.bench import peaks
from alexnet.bench.engines import engine_precision, matmul_precision, noise_transform, open_engines, weight_bytes
from alexnet.bench.memory import measure_peak_memory
from alexnet.bench.peaks import Rate, Work
from alexnet.bench.roofline import layer_work
from alexnet.bench.synthetic import synthetic_step
from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageFiles
from alexnet.data.loader import FromFiles
from alexnet.data.transforms import EvalTransform
from alexnet.device import Precision, tune_malloc
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.model import build
from alexnet.models.spec import AlexNetSpec
from alexnet.models.summary import summarize

LRN_SHAPES = ((64, 96, 55, 55), (64, 256, 27, 27))  # after conv1 and after conv2, batch 64


def training_operations(spec: AlexNetSpec) -> int:
    """Return the operations of one image's forward and backward pass, counted as described above."""
    rows = [row for row in summarize(spec).rows if row.macs]
    return 2 * (3 * sum(row.macs for row in rows) - rows[0].macs)


class Suites:
    """Measurements on `device`, training in `precision`; `notes` lists what was reduced or skipped."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        seconds: float,
        log: Callable[[str], object],
        calibrate: bool = False,
    ) -> None:
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.seconds, self.log = seconds, log
        self.notes: list[str] = []
        self.converted, self.calibrate = False, calibrate
        self.matmul = {name: peaks.matmul_work(name, device) for name in ("fp32", "bf16", "fp16")}

    def limits(self) -> dict[str, Any]:
        """Memory bandwidth, JPEG decoding, and a matrix product per precision."""
        self.log("measuring the limits of this machine")
        work = {name: w for name, w in self.matmul.items() if w}
        rates = self._rates(
            {"copy": peaks.copy_work(self.device), "decode": peaks.decode_work(), **work}, len(work) + 2
        )
        limits: dict[str, Rate | None] = {
            "copy_gb_s": rates["copy"] * 1e-9,
            **{f"matmul_{name}_gflop_s": rates[name] * 1e-9 if name in rates else None for name in self.matmul},
            "decode_images_per_second": rates["decode"],
        }
        return {
            "limits": {name: rate.median if rate else None for name, rate in limits.items()},
            "limits_spread": {name: rate.to_dict() for name, rate in limits.items() if rate},
        }

    # ── per model ─────────────────────────────────────────────────────────────────────────────────────────────

    def train(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """The trainer's step on random images in memory."""
        batch = self._fit_batch(spec, training=True)
        limit = self.matmul[self.precision.name]
        if not batch or not limit:
            return
        self.log(f"training {spec.name}")
        step = synthetic_step(
            spec.name, image_size=spec.image_size, batch_size=batch, precision=self.precision.name,
            num_classes=spec.num_classes, settings={"device": self.device.type},
        )  # fmt: skip
        rates = self._rates({"limit": limit, "train": Work(step, batch)})
        speed = rates["train"].median * training_operations(spec)
        yield {
            **self._describe(spec, batch), **_speed(rates["train"]),
            "gflop_s": speed / 1e9, "limit_gflop_s": rates["limit"].median / 1e9,
            "share_of_limit": speed / rates["limit"].median,
        }  # fmt: skip

    def predict(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """From uint8 images in memory to logits, for batch 1 and a full batch, in every engine.

        A single image is bounded by reading the weights, not by arithmetic, so the limit is the slower of the matrix
        product and the copy, in the engine's number format. Only the first architecture runs in every engine, since
        conversion takes a while; the others run in torch.
        """
        largest = self._fit_batch(spec, training=False)
        if not largest:
            return
        self.log(f"predicting with {spec.name}")
        model = build(spec).eval().to(self.device).to(memory_format=torch.channels_last)
        macs, bf16, convert = summarize(spec).macs, self.precision.name == "bf16", self._should_convert(spec)
        with open_engines(
            model, noise_transform(spec), self.device, self._note, bf16, convert, self.calibrate
        ) as engines:
            limit = {f"matmul {p}": w for p, w in self.matmul.items() if w and p in map(matmul_precision, engines)}
            for batch in sorted({1, largest}):
                images = _random_images(batch, spec.in_channels, spec.image_size).numpy()
                work = {name: Work(partial(engine.logits, images), batch) for name, engine in engines.items()}
                copy = peaks.copy_work(self.device)
                rates = self._rates({"copy": copy, **limit, **work}, len(work) / 2)
                for name in engines:
                    rate = rates[name]
                    compute_time = 2 * macs / rates[f"matmul {matmul_precision(name)}"].median
                    read_time = weight_bytes(name, spec) / batch / rates["copy"].median
                    yield {
                        "engine": name, **self._describe(spec, batch), "precision": engine_precision(name),
                        **_speed(rate),
                        "ms": 1000 * batch / rate.median, "gflop_s": 2e-9 * macs * rate.median,
                        "bound": "arithmetic" if compute_time > read_time else "reading the weights",
                        "share_of_limit": max(compute_time, read_time) * rate.median,
                    }  # fmt: skip

    def _should_convert(self, spec: AlexNetSpec) -> bool:
        """Return whether to run `spec` in every engine: only the first one, if memory suffices for the conversion."""
        if self.converted:
            return False
        self.converted = True
        needed, free = 48 * summarize(spec).parameters, peaks.free_device_memory(self.device)
        if needed > free:
            self._note(
                f"engines other than torch skipped: converting {spec.name} takes about "
                f"{needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free"
            )
        return needed <= free

    def layers(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """Each layer's forward pass, as a share of its roof (see `roofline.py`)."""
        batch = self._fit_batch(spec, training=False)
        limit = self.matmul[self.precision.name]
        if not batch or not limit:
            return
        self.log(f"the layers of {spec.name}")
        tune_malloc()
        images = _random_images(batch, spec.in_channels, spec.image_size).to(self.device)
        with torch.inference_mode(), self.precision.autocast(self.device):
            layers = layer_work(spec, noise_transform(spec).normalize(images))
            work = {name: layer.work for name, layer in layers.items()}
            rates = self._rates({"limit": limit, "copy": peaks.copy_work(self.device), **work}, len(work) / 5)
        total = sum(layer.work.amount / rates[name].median for name, layer in layers.items())
        for name, layer in layers.items():
            rate, bytes_s = rates[name], rates["copy"].median
            roof = min(rates["limit"].median, layer.operations_per_byte * bytes_s)
            yield {
                "name": name, "type": layer.type, **self._describe(spec, batch),
                **_milliseconds(layer.work.amount, rate),
                "operations_per_byte": layer.operations_per_byte, "gflop_s": rate.median / 1e9,
                "roof_gflop_s": roof / 1e9, "share_of_limit": rate.median / roof,
                "share_of_time": layer.work.amount / rate.median / total,
            }  # fmt: skip

    def memory(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """Peak memory of training and inference, weights included."""
        for name in ("train", "predict"):
            batch = self._fit_batch(spec, training=name == "train")
            if not batch:
                return
            self.log(f"memory to {name} {spec.name}")
            precision = self.precision.name if name == "train" else "fp32"
            peak = measure_peak_memory(name, spec.name, batch, precision, self.device)
            yield {"name": name, **self._describe(spec, batch), "precision": precision, "bytes": peak}

    # ── without a model ───────────────────────────────────────────────────────────────────────────────────────

    def lrn(self) -> Iterator[dict[str, Any]]:
        """LRN forward and backward, against 2.5 copies, the least traffic (x in, y out; x, dy in, dx out)."""
        tune_malloc()  # as training does
        for shape in LRN_SHAPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                yield self._lrn(shape, layout)

    def _lrn(self, shape: tuple[int, int, int, int], layout: torch.memory_format) -> dict[str, Any]:
        n, *rest = shape
        if self.device.type != "cpu":
            n *= 16  # exceed a GPU's cache
        while n > 1 and 8 * 4 * n * int(np.prod(rest)) > peaks.free_device_memory(self.device):
            n //= 2
        x = torch.randn(n, *rest, device=self.device).to(self.precision.dtype).contiguous(memory_format=layout)
        gradient, target = torch.randn_like(x), torch.empty_like(x)
        norm = LocalResponseNorm()
        x.requires_grad_()

        def forward_backward() -> None:
            torch.autograd.grad(norm(x), x, gradient)

        name = f"{'×'.join(map(str, (n, *rest)))} {'channels_last' if layout is torch.channels_last else 'NCHW'}"
        self.log(f"LRN {name}")
        copied = Work(lambda: target.copy_(x.detach()), 2 * x.nbytes)
        rates = self._rates({"copy": copied, "lrn": Work(forward_backward, 5 * x.nbytes)})
        rate = rates["lrn"]
        return {
            "name": name, "precision": self.precision.name, **_milliseconds(5 * x.nbytes, rate),
            "gb_s": rate.median / 1e9, "limit_gb_s": rates["copy"].median / 1e9,
            "share_of_limit": rate.median / rates["copy"].median,
        }  # fmt: skip

    def data(self) -> Iterator[dict[str, Any]]:
        """Yield rows for crops: from JPEG files on one core, against decoding only; from memory, against a copy.

        A share above 1 means that only part of an image was decoded.
        """
        self.log("data loading")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            names = [f"{n}.jpg" for n in range(16)]
            for name in names:
                (Path(folder) / name).write_bytes(peaks.make_photo())
            files = ImageFiles(Path(folder), names, torch.zeros(len(names), dtype=torch.int64))
            epochs = count()
            preprocess, augmentation = EvalTransform(224, 256), Augment(crop="resized", flip=True)

            def read(loader: FromFiles) -> None:
                for _ in loader.batches(next(epochs)):
                    pass

            kinds = {"training crop": augmentation, "evaluation crop": None}
            work = {
                kind: Work(partial(read, FromFiles(files, preprocess, how, batch_size=len(names))), len(names))
                for kind, how in kinds.items()
            }
            with one_thread():
                rates = self._rates({"limit": peaks.decode_work(), **work}, 3)
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
            rates = self._rates({"limit": peaks.copy_work(self.device), "augment": Work(call, n)}, 2)
            yield {
                "name": f"crop of {size} ({augmentation.crop}) and flip in memory", **_speed(rates["augment"]),
                "limit": "copy", "share_of_limit": rates["augment"].median * 2 * 3 * size**2 / rates["limit"].median,
            }  # fmt: skip

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────

    def _rates(self, work: Mapping[str, Work], times: float = 1.0) -> dict[str, Rate]:
        return peaks.measure_rates(work, times * self.seconds, self.device)

    def _describe(self, spec: AlexNetSpec, batch: int) -> dict[str, Any]:
        return {
            "arch": spec.name, "image_size": spec.image_size, "precision": self.precision.name, "batch_size": batch,
        }  # fmt: skip

    def _fit_batch(self, spec: AlexNetSpec, training: bool) -> int:
        """Return the batch size, halved (with a note) until it fits into free memory; 0 if not even one image fits.

        An estimate: training keeps weights, gradients, momentum, a copy of the weights, every activation with its
        gradient, and four batches of images; inference keeps weights and activations.
        """
        summary, free = summarize(spec), peaks.free_device_memory(self.device)
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
        if text not in self.notes:
            self.notes.append(text)
            self.log(text)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread within this context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _speed(rate: Rate) -> dict[str, Any]:
    return {"images_per_second": rate.median, "low": rate.low, "high": rate.high, "tries": rate.tries}


def _milliseconds(amount: float, rate: Rate) -> dict[str, Any]:
    """Return the time `amount` takes at that rate."""
    times = {"ms": rate.median, "low_ms": rate.high, "high_ms": rate.low}
    return {**{name: 1000 * amount / r for name, r in times.items()}, "tries": rate.tries}


def _random_images(n: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
