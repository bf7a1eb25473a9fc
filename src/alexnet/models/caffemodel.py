"""Networks that Caffe saved (`.caffemodel`) and its mean images (`.binaryproto`), read without Caffe.

Both are Protocol Buffers messages: a sequence of fields, each a number, a wire type and a value, which may be a message
again. The field numbers are those of `src/caffe/proto/caffe.proto` in BVLC/caffe. Caffe's images are BGR of 0 to 255;
what is returned here is for RGB of 0 to 255. The file is mapped, so damaged lengths cost no memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import UserError
from alexnet.models.architectures import architecture
from alexnet.models.spec import AlexNetSpec, LRNSpec

SUFFIX = ".caffemodel"
CHANNEL_MEAN = (122.6789143406786, 116.66876761696767, 104.0069879317889)
"""Of Caffe's imagenet_mean.binaryproto, as RGB of 0 to 255 (BVLC/caffe, examples/00-classification.ipynb)."""
MEAN_SIDE = 256  # pixels, both sides of Caffe's images before the crop (examples/imagenet/readme.md)

_MAX_LAYERS, _MAX_FIELDS = 10_000, 1_000  # in a network, and in any message below it
_LAYERS = {100: (1, 2, 7, 118), 2: (4, 5, 6, 18)}
"""Field of NetParameter → fields of name, type, blobs and lrn_param in its LayerParameter or older V1LayerParameter."""
_LRN, _POOLING = ("LRN", 15), ("Pooling", 17)  # types in LayerParameter, V1LayerParameter
_VALUES: dict[int, str] = {5: "<f4", 8: "<f8"}  # fields of BlobProto: data, double_data


@dataclass(frozen=True)
class CaffeNetwork:
    """The weights of a network, and what its layers without weights say."""

    tensors: dict[str, Tensor]
    """Layer and tensor ("conv1.weight") → values, float32 on the CPU, in Caffe's order; the first convolution takes
    RGB instead of BGR."""
    lrn: LRNSpec | None
    """Constants of its first LRN."""
    pool_first: bool | None
    """Whether the first pooling layer precedes the first LRN; None if there is no LRN or no pooling."""

    def find_architecture(self) -> str | None:
        """Return "caffe" or "caffenet", the one with this LRN in this place, or None."""
        return next((name for name in ("caffe", "caffenet") if self._has_norm_of(architecture(name))), None)

    def check(self, spec: Any, where: str) -> None:
        """Raise `UserError` if the network of `spec` has another LRN, or in another place: the shapes of `caffe`,
        `caffenet`, `paper` and `code2012` are the same, and predictions would be wrong without any sign."""
        if self.lrn is None or self._has_norm_of(spec):
            return
        place = "after" if self.pool_first else "before"
        advice = f"use '{name}'" if (name := self.find_architecture()) else "no architecture here has that"
        raise UserError(
            f"{where} has an LRN of size {self.lrn.size}, alpha {self.lrn.alpha:g}, beta {self.lrn.beta:g} and "
            f"k {self.lrn.k:g} {place} pooling, and '{spec.name}' another; {advice}."
        )

    def _has_norm_of(self, spec: Any) -> bool:
        stages = spec.convs[0].stages if isinstance(spec, AlexNetSpec) and spec.norm == "lrn" else ()
        if "lrn" not in stages or "pool" not in stages or spec.lrn != self.lrn:
            return False
        return (stages.index("pool") < stages.index("lrn")) == self.pool_first


def read_caffemodel(path: Path) -> CaffeNetwork:
    """Read a network that Caffe saved, with layers of its version 1 or 2. Raises `UserError` if it cannot be read."""
    try:
        return _network(_map(path))
    except (ValueError, OSError) as error:
        raise UserError(
            f"'{path}' is damaged or not Caffe's: {error}; copy it again, or, if it is older than 2014, upgrade it "
            "with Caffe's upgrade_net_proto_binary."
        ) from error


def read_mean_image(path: Path) -> Tensor:
    """Read Caffe's mean image, float32 3×H×W or 1×H×W, RGB of 0 to 255. Raises `UserError` if it cannot be read."""
    try:
        mean = _blob(_map(path))
        if mean.ndim == 4 and len(mean) == 1:
            mean = mean[0]
        if mean.ndim != 3 or len(mean) not in (1, 3) or not np.isfinite(mean).all():
            raise ValueError(f"its shape is {'×'.join(map(str, mean.shape))}, or its values are not finite")
    except (ValueError, OSError) as error:
        raise UserError(f"The mean image '{path}' is damaged: {error}; copy it again, or give --mean.") from error
    return torch.from_numpy(mean[::-1].astype(np.float32))


def _map(path: Path) -> memoryview:
    mapped: Any = np.memmap(path, np.uint8, "r")
    return memoryview(mapped)


def _network(message: memoryview) -> CaffeNetwork:
    """Read a NetParameter."""
    tensors: dict[str, Tensor] = {}
    order: list[str] = []
    norms: list[LRNSpec] = []
    for version, layer in _fields(message, {2: memoryview, 100: memoryview}, _MAX_LAYERS):
        name_field, type_field, blobs_field, lrn_field = _LAYERS[version]
        kinds: dict[int, type] = {name_field: memoryview, blobs_field: memoryview, lrn_field: memoryview}
        kinds[type_field] = memoryview if version == 100 else int
        name, kind, blobs, lrn = "", "", list[np.ndarray](), LRNSpec(alpha=1.0, k=1.0)  # Caffe's defaults
        for field, value in _fields(layer, kinds):
            if field == name_field:
                name = str(value, "utf-8", "replace")
            elif field == type_field:
                text = value if isinstance(value, int) else str(value, "utf-8", "replace")
                kind = "lrn" if text in _LRN else "pool" if text in _POOLING else ""
            elif field == blobs_field:
                blobs.append(_blob(value))
            elif field == lrn_field:
                lrn = _lrn(value)
        order += [kind] if kind else []
        norms += [lrn] if kind == "lrn" else []
        if blobs and f"{name}.weight" in tensors:
            raise ValueError(f"two layers are called '{name}'")
        if not tensors and blobs and blobs[0].ndim == 4 and blobs[0].shape[1] == 3:
            blobs[0] = blobs[0][:, ::-1]  # BGR to RGB
        for tensor, blob in zip(("weight", "bias", *range(len(blobs))), blobs, strict=False):
            tensors[f"{name}.{tensor}"] = torch.from_numpy(blob.astype(np.float32))
    if not tensors:
        raise ValueError("it has no layers with weights")
    pool_first = order.index("pool") < order.index("lrn") if {"pool", "lrn"} <= set(order) else None
    return CaffeNetwork(tensors, norms[0] if norms and pool_first is not None else None, pool_first)


def _lrn(message: memoryview) -> LRNSpec:
    """Read an LRNParameter; its floats are rounded to the six digits that they were written with."""
    names = {1: "size", 2: "alpha", 3: "beta", 5: "k"}
    given = {"alpha": 1.0, "k": 1.0}
    for field, value in _fields(message, {1: int, 2: np.ndarray, 3: np.ndarray, 5: np.ndarray}):
        given[names[field]] = value if field == 1 else float(f"{value[-1]:.6g}")
    return LRNSpec(**given)  # type: ignore[arg-type]


def _blob(message: memoryview) -> np.ndarray:
    """Read a BlobProto: its values as a read-only array of the shape it gives, or the four sides of old files."""
    shape: list[int] = []
    sides = dict.fromkeys((1, 2, 3, 4), 0)
    parts: list[np.ndarray] = []
    has_shape = False
    kinds = {1: int, 2: int, 3: int, 4: int, 5: (memoryview, np.ndarray), 7: memoryview, 8: memoryview}
    for field, value in _fields(message, kinds):
        if field == 7:
            has_shape = True
            for _, dim in _fields(value, {1: (int, memoryview)}):
                shape += [dim] if isinstance(dim, int) else _varints(dim)
        elif field in sides:
            sides[field] = value
        else:
            parts.append(value if isinstance(value, np.ndarray) else np.frombuffer(value, _VALUES[field]))
    shape = shape if has_shape else list(sides.values())
    count = sum(map(len, parts))
    if not count or math.prod(shape) != count or len(shape) > 4:
        raise ValueError(f"{count:,} values do not have the shape {'×'.join(map(str, shape[:8]))}")
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)


def _fields(message: memoryview, kinds: Mapping[int, Any], most: int = _MAX_FIELDS) -> Iterator[tuple[int, Any]]:
    """Yield number and value of the fields of `message` that `kinds` lists with their types.

    A value is an int, a memoryview (text, a message, packed numbers) or an array of float32: adjacent unpacked floats
    of one field together, as there may be millions. Raises `ValueError` if the message is damaged.
    """
    position = count = 0
    while position < len(message):
        start = position
        key, position = _varint(message, position)
        wire = key & 7
        value: int | memoryview | np.ndarray
        if wire == 0:
            value, position = _varint(message, position)
        elif wire == 5:
            run = _count_floats(message, start) if position == start + 1 else 1
            end = start + run * (position - start + 4)
            layout = np.dtype([("key", "u1", (position - start,)), ("value", "<f4")])
            value, position = np.frombuffer(_cut(message, start, end), layout)["value"], end
        elif wire in (1, 2):
            length, position = (8, position) if wire == 1 else _varint(message, position)
            value = _cut(message, position, position + length)
            position += length
        else:
            raise ValueError(f"it has a field of the unknown type {wire}")
        if (count := count + 1) > most:
            raise ValueError(f"a message in it has more than {most:,} fields")
        if (number := key >> 3) in kinds:
            if not isinstance(value, kinds[number]):
                raise ValueError(f"field {number} has the wrong type")
            yield number, value


def _cut(message: memoryview, start: int, end: int) -> memoryview:
    if end > len(message):
        raise ValueError("it ends in the middle of a field")
    return message[start:end]


def _count_floats(message: memoryview, start: int) -> int:
    """Return how many unpacked floats of the same field (a byte of key and four of value each) follow each other."""
    keys = np.frombuffer(message, np.uint8)[start::5]
    size = 16
    while True:  # in growing pieces, so that short runs in a long message cost little
        other = np.flatnonzero(keys[:size] != keys[0])
        if len(other):
            return int(other[0])
        if size >= len(keys):
            return len(keys)
        size *= 2


def _varints(message: memoryview) -> list[int]:
    numbers: list[int] = []
    position = 0
    while position < len(message) and len(numbers) < _MAX_FIELDS:
        number, position = _varint(message, position)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return an integer of up to ten bytes, seven bits each, the lowest first, and the position after it."""
    value = 0
    for n, byte in enumerate(message[position : position + 10]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, position + n + 1
    raise ValueError("it ends in the middle of a number")
