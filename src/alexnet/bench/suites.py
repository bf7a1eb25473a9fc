"""The parts of `alexnet bench`: each measures something of ours in turn with the limit that bounds it.

How work is counted. A multiply-accumulate is 2 operations. Training does three times the forward pass's (forward,
gradients of the weights, gradients of the inputs) less once conv1's, since nobody needs the image's gradient; what is
not a convolution or a matrix counts as nothing. A copy counts what it reads and what it writes.

Each row of a result is a dict: medians, beside them `low`, `high` and `tries`, and `share_of_limit`, for which the
limit was measured together with it (a training step with a matrix product of its precision, the normalisation with a
copy of its own tensor, a crop from a file with decoding alone).
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
from alexnet.bench.engines import arithmetic, every_engine, plain, precision_of, weight_bytes
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
    """Operations of one image's forward and backward pass, counted as the head of this module says."""
    rows = [row for row in summarize(spec).rows if row.macs]
    return 2 * (3 * sum(row.macs for row in rows) - rows[0].macs)


class Measurements:
    """What can be measured on `device`, training in `precision`; `notes` keeps where the wish could not be met."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        seconds: float,
        say: Callable[[str], object],
        thorough: bool = False,
    ) -> None:
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self.seconds, self.tell = seconds, say
        self.notes: list[str] = []
        self.converted, self.thorough = False, thorough
        self.matmul = {name: peaks.matmul_work(name, device) for name in ("fp32", "bf16", "fp16")}

    def limits(self) -> dict[str, Any]:
        self.tell("measuring what this machine can do")
        work = {name: w for name, w in self.matmul.items() if w}
        found = self._rates(
            {"copy": peaks.copy_work(self.device), "decode": peaks.decode_work(), **work}, len(work) + 2
        )
        known: dict[str, Rate | None] = {
            "copy_gb_s": found["copy"] * 1e-9,
            **{f"matmul_{name}_gflop_s": found[name] * 1e-9 if name in found else None for name in self.matmul},
            "decode_images_per_second": found["decode"],
        }
        return {
            "limits": {name: rate.median if rate else None for name, rate in known.items()},
            "limits_spread": {name: rate.to_dict() for name, rate in known.items() if rate},
        }

    # ── the network ───────────────────────────────────────────────────────────────────────────────────────────

    def train(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """The loop's own step on made-up pictures in memory."""
        batch = self._fitting(spec, training=True)
        limit = self.matmul[self.precision.name]
        if not batch or not limit:
            return
        self.tell(f"training {spec.name}")
        step = synthetic_step(
            spec.name, image_size=spec.image_size, batch_size=batch, precision=self.precision.name,
            num_classes=spec.num_classes, settings={"device": self.device.type},
        )  # fmt: skip
        found = self._rates({"limit": limit, "train": Work(step, batch)})
        speed = found["train"].median * training_operations(spec)
        yield {
            **self._network(spec, batch), **_speed(found["train"]),
            "gflop_s": speed / 1e9, "limit_gflop_s": found["limit"].median / 1e9,
            "share_of_limit": speed / found["limit"].median,
        }  # fmt: skip

    def predict(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """uint8 pictures in memory to logits, one at a time and a batch, by every engine, all in turn.

        What bounds a single picture is not arithmetic but reading the weights, so the limit is the slower of the
        matrix product and a copy's traffic, in the engine's own format. Only the first architecture is tried in every
        engine, since converting takes a while; the others are tried in torch.
        """
        most = self._fitting(spec, training=False)
        if not most:
            return
        self.tell(f"predicting with {spec.name}")
        model, preprocess = build(spec).eval().to(self.device).to(memory_format=torch.channels_last), plain(spec)
        macs, bf16, convert = summarize(spec).macs, self.precision.name == "bf16", self._all_engines(spec)
        with every_engine(model, preprocess, self.device, self._note, bf16, convert, self.thorough) as engines:
            limit = {f"matmul {p}": w for p, w in self.matmul.items() if w and p in map(arithmetic, engines)}
            for batch in sorted({1, most}):
                images = _pictures(batch, spec.in_channels, spec.image_size).numpy()
                work = {name: Work(partial(engine.logits, images), batch) for name, engine in engines.items()}
                copy = peaks.copy_work(self.device)
                found = self._rates({"copy": copy, **limit, **work}, len(work) / 2)
                for name in engines:
                    rate = found[name]
                    calculating = 2 * macs / found[f"matmul {arithmetic(name)}"].median
                    reading = weight_bytes(name, spec) / batch / found["copy"].median
                    yield {
                        "engine": name, **self._network(spec, batch), "precision": precision_of(name), **_speed(rate),
                        "ms": 1000 * batch / rate.median, "gflop_s": 2e-9 * macs * rate.median,
                        "bound": "arithmetic" if calculating > reading else "reading the weights",
                        "share_of_limit": max(calculating, reading) * rate.median,
                    }  # fmt: skip

    def _all_engines(self, spec: AlexNetSpec) -> bool:
        """Whether to try `spec` in every engine: the first one, if memory suffices for the conversions."""
        if self.converted:
            return False
        self.converted = True
        needed, free = 48 * summarize(spec).parameters, peaks.free_device_memory(self.device)
        if needed > free:
            self._note(
                f"engines other than torch left out: to convert {spec.name} for them takes about "
                f"{needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} are free"
            )
        return needed <= free

    def layers(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """Each layer's forward pass alone, under its roof."""
        batch = self._fitting(spec, training=False)
        limit = self.matmul[self.precision.name]
        if not batch or not limit:
            return
        self.tell(f"the layers of {spec.name}")
        tune_malloc()
        images = _pictures(batch, spec.in_channels, spec.image_size).to(self.device)
        with torch.inference_mode(), self.precision.autocast(self.device):
            layers = layer_work(spec, plain(spec).normalize(images))
            work = {name: layer.work for name, layer in layers.items()}
            found = self._rates({"limit": limit, "copy": peaks.copy_work(self.device), **work}, len(work) / 5)
        whole = sum(layer.work.amount / found[name].median for name, layer in layers.items())
        for name, layer in layers.items():
            rate, bytes_s = found[name], found["copy"].median
            roof = min(found["limit"].median, layer.operations_per_byte * bytes_s)
            yield {
                "name": name, "type": layer.type, **self._network(spec, batch),
                **_milliseconds(layer.work.amount, rate),
                "operations_per_byte": layer.operations_per_byte, "gflop_s": rate.median / 1e9,
                "roof_gflop_s": roof / 1e9, "share_of_limit": rate.median / roof,
                "share_of_time": layer.work.amount / rate.median / whole,
            }  # fmt: skip

    def memory(self, spec: AlexNetSpec) -> Iterator[dict[str, Any]]:
        """The most memory that training and inference took, weights included."""
        for name in ("train", "predict"):
            batch = self._fitting(spec, training=name == "train")
            if not batch:
                return
            self.tell(f"memory to {name} {spec.name}")
            precision = self.precision.name if name == "train" else "fp32"
            found = measure_peak_memory(name, spec.name, batch, precision, self.device)
            yield {"name": name, **self._network(spec, batch), "precision": precision, "bytes": found}

    # ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────

    def lrn(self) -> Iterator[dict[str, Any]]:
        """Forward and backward, against the least traffic: 2.5 copies of the tensor (x in, y out; x, dy in, dx out)."""
        tune_malloc()  # as training does
        for shape in LRN_SHAPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                yield self._lrn(shape, layout)

    def _lrn(self, shape: tuple[int, int, int, int], layout: torch.memory_format) -> dict[str, Any]:
        n, *rest = shape
        if self.device.type != "cpu":
            n *= 16  # a GPU's cache would hold less
        while n > 1 and 8 * 4 * n * int(np.prod(rest)) > peaks.free_device_memory(self.device):
            n //= 2
        x = torch.randn(n, *rest, device=self.device).to(self.precision.dtype).contiguous(memory_format=layout)
        gradient, target = torch.randn_like(x), torch.empty_like(x)
        norm = LocalResponseNorm()
        x.requires_grad_()

        def both() -> None:
            torch.autograd.grad(norm(x), x, gradient)

        name = f"{'×'.join(map(str, (n, *rest)))} {'channels_last' if layout is torch.channels_last else 'NCHW'}"
        self.tell(f"LRN {name}")
        copied = Work(lambda: target.copy_(x.detach()), 2 * x.nbytes)
        found = self._rates({"copy": copied, "lrn": Work(both, 5 * x.nbytes)})
        rate = found["lrn"]
        return {
            "name": name, "precision": self.precision.name, **_milliseconds(5 * x.nbytes, rate),
            "gb_s": rate.median / 1e9, "limit_gb_s": found["copy"].median / 1e9,
            "share_of_limit": rate.median / found["copy"].median,
        }  # fmt: skip

    def data(self) -> Iterator[dict[str, Any]]:
        """From photographs' files, by one core, against decoding them and nothing else; and from memory, against a
        copy of what comes out. A share above 1 means that not all of a picture was decoded."""
        self.tell("the data path")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            names = [f"{n}.jpg" for n in range(16)]
            for name in names:
                (Path(folder) / name).write_bytes(peaks.photograph())
            files = ImageFiles(Path(folder), names, torch.zeros(len(names), dtype=torch.int64))
            epochs = count()
            preprocess, changes = EvalTransform(224, 256), Augment(crop="resized", flip=True)

            def read(loader: FromFiles) -> None:
                for _ in loader.batches(next(epochs)):
                    pass

            kinds = {"training crop": changes, "evaluation crop": None}
            work = {
                kind: Work(partial(read, FromFiles(files, preprocess, how, batch_size=len(names))), len(names))
                for kind, how in kinds.items()
            }
            with one_thread():
                found = self._rates({"limit": peaks.decode_work(), **work}, 3)
        for kind in kinds:
            yield {
                "name": f"{kind} of 224 from JPEG, a core", **_speed(found[kind]), "limit": "decode",
                "share_of_limit": found[kind].median / found["limit"].median,
            }  # fmt: skip
        for n, side, size, changes in (
            (512, 32, 32, Augment(crop="pad", flip=True)),
            (64, 256, 224, Augment(crop="random", flip=True)),
        ):
            images = _pictures(n, 3, side).to(self.device)
            call = partial(augment, images, np.arange(n), 0, 0, changes, size)
            found = self._rates({"limit": peaks.copy_work(self.device), "augment": Work(call, n)}, 2)
            yield {
                "name": f"crop of {size} ({changes.crop}) and flip in memory", **_speed(found["augment"]),
                "limit": "copy", "share_of_limit": found["augment"].median * 2 * 3 * size**2 / found["limit"].median,
            }  # fmt: skip

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────

    def _rates(self, work: Mapping[str, Work], times: float = 1.0) -> dict[str, Rate]:
        return peaks.rates(work, times * self.seconds, self.device)

    def _network(self, spec: AlexNetSpec, batch: int) -> dict[str, Any]:
        return {
            "arch": spec.name, "image_size": spec.image_size, "precision": self.precision.name, "batch_size": batch,
        }  # fmt: skip

    def _fitting(self, spec: AlexNetSpec, training: bool) -> int:
        """The wanted batch, halved until it fits into free memory; 0, with a note, where not even one image does.

        Estimated: training keeps weights, gradients, momentum and the old weights' copy, each activation and its
        gradient, and four batches of pictures; inference weights and two activations' worth of the largest layers.
        """
        summary, free = summarize(spec), peaks.free_device_memory(self.device)
        pixels = spec.in_channels * (spec.image_size * 8 // 7) ** 2
        fixed = (16 if training else 8) * summary.parameters
        each = (2 if training else 1) * summary.activation_bytes + 12 * pixels
        batch = self.batch_size
        while batch and fixed + batch * each > 0.8 * free:
            batch //= 2
        if batch < self.batch_size:
            what = f"{'training' if training else 'predicting with'} {spec.name}"
            instead = f"with batch {batch} instead of {self.batch_size}" if batch else "left out"
            self._note(f"{what} {instead}, since {free / 2**30:.1f} GiB of memory are free")
        return batch

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.tell(text)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _speed(rate: Rate) -> dict[str, Any]:
    return {"images_per_second": rate.median, "low": rate.low, "high": rate.high, "tries": rate.tries}


def _milliseconds(amount: float, rate: Rate) -> dict[str, Any]:
    """How long `amount` takes at that rate."""
    times = {"ms": rate.median, "low_ms": rate.high, "high_ms": rate.low}
    return {**{name: 1000 * amount / r for name, r in times.items()}, "tries": rate.tries}


def _pictures(n: int, channels: int, side: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=made)
