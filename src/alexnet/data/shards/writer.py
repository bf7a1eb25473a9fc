"""One shard of a packed data set, from its pictures to the disk: what the processes of `pack.py` do.

A shard is finished when its facts are there: they are written after it, each renamed into place. So a packing that was
killed goes on with the shards that have none. The file itself is written by litdata.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from alexnet.data.decode import BadImage, decode_crop
from alexnet.data.shards.reader import INDEX, WORK, ShardFormat, Shards, read_index
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import sha256_file

DIGEST = 16
"""Bytes of the digest by which copies of a file are known."""

_MOST = (1 << 32) - (1 << 20)  # bytes of a shard's pictures: its offsets have 32 bits
_LONGEST_JPEG = 65_500  # pixels: libjpeg's JPEG_MAX_DIMENSION


@dataclass(frozen=True)
class Task:
    """A shard to be made."""

    target: Path
    """The folder of the packed data set."""
    split: str
    number: int
    """Of the shard in its split."""
    root: Path
    """The folder that names start from."""
    pictures: list[str] | np.ndarray
    """Names of files, or pixels, uint8 N×H×W×C."""
    targets: list[int]
    form: ShardFormat

    @property
    def facts(self) -> Path:
        """Where the facts of the finished shard are kept."""
        return self.target / WORK / f"{self.split}-{self.number}.npz"

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class About:
    """What is told of a shard."""

    name: str
    """Of its file; empty where none of its pictures could be read, and there is none."""
    bytes: int
    sha256: str
    config: dict[str, Any]
    """litdata's own words on the form."""
    failed: list[tuple[int, str]]
    """Pictures that could not be read, by their place in the task, and why."""


@dataclass(frozen=True)
class Facts:
    """All that is kept of a finished shard beside its file."""

    about: About
    kept: np.ndarray
    """Which pictures of the task it holds, int64."""
    digests: np.ndarray
    """uint8 (pictures, DIGEST)."""
    total: np.ndarray
    """The sum of its pictures as squares: uint32 side×side×C; empty where that was not asked for."""
    products: np.ndarray
    """Of the pixels' channels, summed: float64 C×C."""


def write_shard(task: Task) -> int:
    """Make the shard and write its facts; returns how many pictures were gone through.

    A picture that cannot be read is left out and noted. Raises `OSError` for a disk that is full.
    """
    form, channels = task.form, task.form.channels
    side = form.side if task.split == "train" else None
    items: list[tuple[bytes, int]] = []
    kept, digests, failed = [], [], []
    total = np.zeros((side, side, channels) if side else (0,), dtype=np.uint32)
    products = np.zeros((channels, channels))
    for i, target in enumerate(task.targets):
        picture = task.pictures[i]
        try:
            stored, digest, square = _encode(task.root / picture if isinstance(picture, str) else picture, form)
        except BadImage as error:
            failed.append((i, error.reason))
            continue
        except MemoryError:
            failed.append((i, "it needs more memory than there is"))
            continue
        if side:
            total += square
            flat = square.reshape(-1, channels).astype(np.float64)
            products += flat.T @ flat
        items.append((stored, target))
        kept.append(i)
        digests.append(np.frombuffer(digest, np.uint8))
    folder = task.target / task.split
    folder.mkdir(parents=True, exist_ok=True)
    about = _write(task, items, failed) if items else About("", 0, "", {}, failed)
    _save_facts(
        task.facts,
        Facts(
            about,
            np.array(kept, dtype=np.int64),
            np.array(digests, dtype=np.uint8).reshape(-1, DIGEST),
            total,
            products,
        ),
    )
    return len(task)


def read_facts(path: Path) -> Facts | None:
    """What `write_shard` wrote; None where it was not finished or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = [found[name] for name in ("kept", "digests", "total", "products")]
            return Facts(_about(found["about"]), *arrays)
    except Exception:  # whatever a file gives that is torn, or not there
        return None


def read_about(path: Path) -> About | None:
    """The first part of it alone, which is small."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return _about(found["about"])
    except Exception:  # as above
        return None


def _about(array: np.ndarray) -> About:
    said = json.loads(array.tobytes())
    return About(**{**said, "failed": [(int(i), str(reason)) for i, reason in said["failed"]]})


def put(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, to the disk, and rename it into place; that reaches the disk too, and with it the
    renames in that folder before."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(handle)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _encode(picture: Path | np.ndarray, form: ShardFormat) -> tuple[bytes, bytes, np.ndarray]:
    """What is stored, the digest of what it is made from, and the picture as a square, uint8 side×side×C (or nothing
    where pictures keep their size). Raises `BadImage`."""
    if isinstance(picture, Path):
        try:
            data = picture.read_bytes()
        except OSError as error:
            raise BadImage(f"the system says '{error.strerror or error}'", str(picture)) from error
        pixels = decode_crop(data, sys.maxsize, form.channels)  # in full: exactly what evaluation reads
    else:
        pixels = np.ascontiguousarray(picture)
        data = pixels.tobytes()
    digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
    image = Image.fromarray(pixels if form.channels == 3 else pixels[..., 0])
    if form.side is None:
        kept = isinstance(picture, Path) and data.startswith(b"\xff\xd8\xff")
        return data if kept else _jpeg(image, form), digest, np.zeros(0, np.uint8)
    square = EvalTransform(
        form.side, channels=form.channels, mean=(0.0,) * form.channels, std=(1.0,) * form.channels
    )  # the numbers are not used
    if min(image.size) > form.side or form.kind == "uint8":
        image = square.resize_image(image)
    cut = square.eval_array(image).transpose(1, 2, 0)
    return np.ascontiguousarray(cut).tobytes() if form.kind == "uint8" else _jpeg(image, form), digest, cut


def _jpeg(image: Image.Image, form: ShardFormat) -> bytes:
    """Raises `BadImage` where there is no such JPEG: the disk has no part in it."""
    file = io.BytesIO()
    if max(image.size) > _LONGEST_JPEG:
        raise BadImage(f"no JPEG can be {image.width}×{image.height} pixels")
    try:
        image.save(file, "JPEG", quality=form.quality)
    except (OSError, ValueError) as error:
        raise BadImage(f"it cannot be made a JPEG ({error})") from error
    return file.getvalue()


def _write(task: Task, items: list[tuple[bytes, int]], failed: list[tuple[int, str]]) -> About:
    """The shard, written by litdata into a folder of its own, looked over, and moved into place."""
    if (size := sum(len(stored) for stored, _ in items)) > _MOST:
        raise UserError(
            f"{len(items)} pictures from {task.root} make a shard of {size / 1e9:.1f} GB, and litdata counts to 4; "
            "pack with a smaller --size or --quality."
        )
    from litdata.streaming.serializers import BytesSerializer, IntegerSerializer
    from litdata.streaming.writer import BinaryWriter

    beside = Path(tempfile.mkdtemp(prefix="shard-", dir=task.target / WORK))
    try:
        # A tuple, since a dict becomes an Arrow table, and these two forms first, since pixels that begin with "%PDF"
        # would be taken for a document.
        forms = {"bytes": BytesSerializer(), "int": IntegerSerializer()}
        writer = BinaryWriter(str(beside), chunk_size=len(items), serializers=forms, chunk_index=task.number)
        for i, item in enumerate(items):
            writer[i] = item
        (written,) = map(Path, writer.done())
        (index,) = beside.glob(f"*{INDEX}")
        try:
            files = read_index(index)
            Shards(beside, task.form, files).shard(0)
        except UserError as error:
            raise RuntimeError(f"this version of litdata writes shards of another kind: {error}") from error
        with written.open("rb") as file:
            os.fsync(file.fileno())
        name, config = written.name, json.loads(index.read_text(encoding="utf-8"))["config"]
        about = About(name, written.stat().st_size, sha256_file(written), config, failed)
        written.replace(task.target / task.split / name)
        return about
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _save_facts(path: Path, facts: Facts) -> None:
    said = np.frombuffer(json.dumps(asdict(facts.about)).encode(), np.uint8)
    put(
        path,
        lambda file: np.savez(
            file, about=said, kept=facts.kept, digests=facts.digests, total=facts.total, products=facts.products
        ),
    )
