"""Caffe's files as plain bytes, for tests, written from caffe.proto and independent of the package's reader."""

from __future__ import annotations

import struct

import numpy as np


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def message(field: int, value: bytes | str) -> bytes:
    """Return a field of wire type 2: a message, text or packed numbers."""
    value = value.encode() if isinstance(value, str) else value
    return varint(field * 8 + 2) + varint(len(value)) + value


def integer(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value)


def real(field: int, value: float) -> bytes:
    return varint(field * 8 + 5) + struct.pack("<f", value)


def blob(values: np.ndarray, old_shape: bool = False, packed: bool = True) -> bytes:
    """Return a BlobProto; with `old_shape` its shape is num, channels, height and width, filled up with ones."""
    values = np.asarray(values, "<f4")
    if old_shape:
        sides = (1,) * (4 - values.ndim) + values.shape
        shape = b"".join(integer(field, side) for field, side in enumerate(sides, 1))
    else:
        dims = [varint(side) for side in values.shape]
        shape = message(7, message(1, b"".join(dims)) if packed else b"".join(b"\x08" + dim for dim in dims))
    if packed:
        return shape + message(5, values.tobytes())
    return shape + b"".join(b"\x2d" + value.tobytes() for value in values.ravel())


TYPES_1 = {"Data": 5, "Convolution": 4, "ReLU": 18, "LRN": 15, "Pooling": 17, "InnerProduct": 14, "Dropout": 6}


def network(layers: list[tuple[str, str, list[bytes], bytes]], version: int = 2, name: str = "AlexNet") -> bytes:
    """Return a NetParameter of `layers`: name, type, blobs (BlobProtos) and an LRNParameter or b""."""
    out = message(1, name)
    for layer, kind, blobs, lrn in layers:
        if version == 2:
            body = message(1, layer) + message(2, kind) + message(3, "below") + b"".join(message(7, b) for b in blobs)
            out += message(100, body + (message(118, lrn) if lrn else b""))
        else:
            body = message(2, "below") + message(4, layer) + integer(5, TYPES_1[kind])
            body += b"".join(message(6, b) for b in blobs) + (message(18, lrn) if lrn else b"")
            out += message(2, body)
    return out


def alexnet(
    state: dict[str, np.ndarray], version: int = 2, pool_first: bool = False, packed: bool = True, k: float = 1.0
) -> bytes:
    """Return bvlc_alexnet (or CaffeNet, with `pool_first`) with the values of `state` as they are."""
    lrn = integer(1, 5) + real(2, 1e-4) + real(3, 0.75) + (real(5, k) if k != 1 else b"")
    layers: list[tuple[str, str, list[bytes], bytes]] = [("data", "Data", [], b"")]
    for layer in dict.fromkeys(name.split(".")[0] for name in state):
        kind, number = ("Convolution" if layer.startswith("conv") else "InnerProduct"), layer[-1]
        blobs = [blob(state[f"{layer}.{tensor}"], version == 1, packed) for tensor in ("weight", "bias")]
        layers += [(layer, kind, blobs, b""), (f"relu{number}", "ReLU", [], b"")]
        if layer in ("conv1", "conv2"):
            norm = [(f"norm{number}", "LRN", [], lrn), (f"pool{number}", "Pooling", [], b"")]
            layers += norm[::-1] if pool_first else norm
        elif layer == "conv5":
            layers.append(("pool5", "Pooling", [], b""))
    return network(layers, version)
