"""The shard writer: the task of each worker process of `pack.py`.

A shard is finished once its record exists, which is written after the shard; both are renamed into
place. So a killed `alexnet pack` resumes with the shards that have no record. The shard file itself
is written by litdata.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet.data.decode import BadImage, decode_crop
from alexnet.data.deep import ValueRange
from alexnet.data.recognize import WORK
from alexnet.data.shards.reader import INDEX, ITEM_TYPES, ShardFormat, Shards, read_index
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import atomic_write, convert, fsync_file, read_json, sha256_file

DIGEST = 16
"""Bytes of the digest that identifies copies of an image."""

_MAX_SHARD_BYTES = (1 << 32) - (1 << 20)  # of the images: litdata's offsets have 32 bits
_MAX_JPEG_SIDE = 65_500  # pixels: libjpeg's JPEG_MAX_DIMENSION


@dataclass(frozen=True)
class ShardTask:
    """A shard to write."""

    target: Path
    """The folder of the packed dataset."""
    split: str
    number: int
    """Index of the shard in its split."""
    root: Path
    """The folder that names are relative to."""
    images: list[str] | np.ndarray
    """File names, or pixels, uint8 N×H×W×C."""
    targets: list[int]
    format: ShardFormat
    value_range: ValueRange | None = None
    """What becomes 0…255 in images of more than 8 bits."""

    @property
    def result_path(self) -> Path:
        """Where the result is stored once the shard is finished."""
        return self.target / WORK / f"{self.split}-{self.number}.npz"

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class ShardRecord:
    """The metadata of a finished shard, without arrays."""

    name: str
    """File name; empty if no image could be read, in which case there is no file."""
    bytes: int
    sha256: str
    config: dict[str, Any]
    """litdata's description of the format."""
    failed: list[tuple[int, str]]
    """Unreadable images, by index in the task, with the reason."""


@dataclass(frozen=True)
class ShardResult:
    """Everything stored about a finished shard besides its file."""

    record: ShardRecord
    kept: np.ndarray
    """Indices in the task of the images in the shard, int64."""
    digests: np.ndarray
    """uint8 (images, DIGEST)."""
    pixel_sum: np.ndarray
    """Sum of the images as squares, uint32 side×side×C; empty except for training images of one size."""
    channel_products: np.ndarray
    """Sum over all pixels of the products of channels, float64 C×C."""


def write_shard(task: ShardTask) -> int:
    """Write a shard and its result, and return the number of images processed.

    Unreadable images are skipped and recorded. Raises `OSError` if the disk is full.
    """
    format, channels = task.format, task.format.channels
    side = format.side if task.split == "train" else None
    items: list[tuple[bytes, int]] = []
    kept, digests, failed = [], [], []
    pixel_sum = np.zeros((side, side, channels) if side else (0,), dtype=np.uint32)
    products = np.zeros((channels, channels))
    for i, target in enumerate(task.targets):
        image = task.images[i]
        source = task.root / image if isinstance(image, str) else image
        try:
            stored, digest, square = _encode_image(source, format, task.value_range)
        except BadImage as error:
            failed.append((i, error.reason))
            continue
        except MemoryError:
            failed.append((i, "it needs more memory than is available"))
            continue
        if side:
            pixel_sum += square
            flat = square.reshape(-1, channels).astype(np.float64)
            products += flat.T @ flat
        items.append((stored, target))
        kept.append(i)
        digests.append(np.frombuffer(digest, np.uint8))
    (task.target / task.split).mkdir(parents=True, exist_ok=True)
    record = _write_items(task, items, failed) if items else ShardRecord("", 0, "", {}, failed)
    with atomic_write(task.result_path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            about=np.frombuffer(json.dumps(asdict(record)).encode(), np.uint8),
            kept=np.array(kept, dtype=np.int64),
            digests=np.array(digests, dtype=np.uint8).reshape(-1, DIGEST),
            total=pixel_sum,
            products=products,
        )
    return len(task)


def read_result(path: Path) -> ShardResult | None:
    """Read the result of a shard; None if it is unfinished or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            record = convert(json.loads(stored["about"].tobytes()), ShardRecord, str(path))
            return ShardResult(record, *(stored[name] for name in ("kept", "digests", "total", "products")))
    except Exception:  # a missing or truncated file can fail in any way
        return None


def _encode_image(
    source: Path | np.ndarray, format: ShardFormat, value_range: ValueRange | None
) -> tuple[bytes, bytes, np.ndarray]:
    """Return the stored bytes, the digest of the source, and the image as a square, uint8
    side×side×C (empty if images keep their sizes). Raises `BadImage`."""
    if isinstance(source, Path):
        try:
            data = source.read_bytes()
        except OSError as error:
            raise BadImage(f"the system reports '{error.strerror or error}'", str(source)) from error
        # at full size, exactly as for evaluation
        pixels = decode_crop(data, sys.maxsize, format.channels, value_range=value_range)
    else:
        pixels = np.ascontiguousarray(source)
        data = pixels.tobytes()
    digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
    image = Image.fromarray(pixels if format.channels == 3 else pixels[..., 0])
    if format.side is None:
        is_jpeg = isinstance(source, Path) and data.startswith(b"\xff\xd8\xff")
        return data if is_jpeg else _encode_jpeg(image, format), digest, np.zeros(0, np.uint8)
    transform = EvalTransform(
        format.side, channels=format.channels, mean=(0.0,) * format.channels, std=(1.0,) * format.channels
    )  # mean and std are not used
    if min(image.size) > format.side or format.kind == "uint8":
        image = transform.resize_image(image)
    square = transform.eval_array(image).transpose(1, 2, 0)
    stored = np.ascontiguousarray(square).tobytes() if format.kind == "uint8" else _encode_jpeg(image, format)
    return stored, digest, square


def _encode_jpeg(image: Image.Image, format: ShardFormat) -> bytes:
    """Encode `image`, in memory. Raises `BadImage` if it cannot be a JPEG."""
    file = io.BytesIO()
    if max(image.size) > _MAX_JPEG_SIDE:
        raise BadImage(f"no JPEG can be {image.width}×{image.height} pixels")
    try:
        image.save(file, "JPEG", quality=format.quality)
    except (OSError, ValueError) as error:
        raise BadImage(f"it cannot be encoded as JPEG ({error})") from error
    return file.getvalue()


def _write_items(task: ShardTask, items: list[tuple[bytes, int]], failed: list[tuple[int, str]]) -> ShardRecord:
    """Write the shard with litdata to a temporary folder, verify it, and move it into place."""
    if (size := sum(len(stored) for stored, _ in items)) > _MAX_SHARD_BYTES:
        raise UserError(
            f"{len(items)} images from {task.root} form a shard of {size / 1e9:.1f} GB, but litdata's limit is 4 GB; "
            "pack with a smaller --size or --quality."
        )
    from litdata.streaming.serializers import BytesSerializer, IntegerSerializer
    from litdata.streaming.writer import BinaryWriter

    folder = Path(tempfile.mkdtemp(prefix="shard-", dir=task.target / WORK))
    try:
        # Items are tuples, since litdata turns a dict into an Arrow table. Other serializers are excluded, since one of
        # them would take pixels that begin with "%PDF" for a document.
        serializers = dict(zip(ITEM_TYPES, (BytesSerializer(), IntegerSerializer()), strict=True))
        writer = BinaryWriter(str(folder), chunk_size=len(items), serializers=serializers, chunk_index=task.number)
        for i, item in enumerate(items):
            writer[i] = item
        (written,) = map(Path, writer.done())
        (index,) = folder.glob(f"*{INDEX}")
        try:
            Shards(folder, task.format, read_index(index)).shard(0)
        except UserError as error:
            raise RuntimeError(f"this version of litdata writes an unknown shard format: {error}") from error
        fsync_file(written)
        name, config = written.name, read_json(index, dict[str, Any])["config"]
        record = ShardRecord(name, written.stat().st_size, sha256_file(written), config, failed)
        written.replace(task.target / task.split / name)
        return record
    finally:
        shutil.rmtree(folder, ignore_errors=True)
