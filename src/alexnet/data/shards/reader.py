"""Memory-mapped reading of packed datasets, as written by `alexnet pack` (`pack.py`).

    DST/
      pack.json                  classes, image format, statistics, checksums
      mean_image.npy             mean training image, in levels of 0…255
      failed.csv                 images that could not be read, with the reason
      train/  val/  test/        for each split:
        chunk-0-<n>.bin          the shards
        index.json               litdata's index of them
        samples.parquet          name, class and digest of each image, in shard order

A shard is a litdata file: the number of items, their offsets, and the items, each consisting of the sizes of its two
parts, the bytes of the image, and its class. litdata can read them; here they are memory-mapped under our own sampler,
so that only the crop of packed pixels is copied and runs resume exactly. Of the item types that an index may name, only
raw bytes and integers are accepted: others include litdata's pickle type, which can run code.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import get_worker_info

from alexnet.data.dataset import ImageFiles, RawImage
from alexnet.data.deep import ValueRange
from alexnet.data.recognize import PACK
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import convert, read_json, sha256_file

INDEX, SAMPLES, MEAN_IMAGE, FAILED = "index.json", "samples.parquet", "mean_image.npy", "failed.csv"
FORMAT = "alexnet-pack-1"  # of pack.json; readers refuse other formats
ITEM_TYPES = ["bytes", "int"]
"""litdata's types of the two parts of an item: the image and its class."""

_MAX_MAPPED = 512  # shards mapped at a time; each keeps a file open, and the usual limit of a process is 1024
_ITEM_OVERHEAD = 16  # bytes of an item besides the image: the sizes of its two parts, and the class


@dataclass(frozen=True)
class ShardFormat:
    """How the images of a packed dataset are stored."""

    kind: str
    """jpeg: JPEG files; uint8: pixels of center crops, `side`×`side`."""
    side: int | None
    """Short side in pixels, for JPEGs the maximum; None: JPEGs of the original size."""
    channels: int
    quality: int | None = None
    """Quality of the JPEGs encoded during packing."""

    def __post_init__(self) -> None:
        numbers = [self.channels, *(n for n in (self.side, self.quality) if n is not None)]
        positive = all(isinstance(n, int) and n > 0 for n in numbers)
        if self.kind not in ("jpeg", "uint8") or self.channels not in (1, 3) or not positive:
            raise ValueError(f"invalid image format: {self}")
        if self.kind == "uint8" and self.side is None:
            raise ValueError("the format uint8 needs a side")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the pixels of an image, H×W×C."""
        return self.side or 0, self.side or 0, self.channels


class PackStatistics(TypedDict):
    """Of the packed training images, in levels of 0…255."""

    images: int
    mean: list[float]
    covariance: list[list[float]]


@dataclass(frozen=True)
class Manifest:
    """The contents of pack.json."""

    format: str
    key: str
    """Hash of images, format and shards (see `pack_key`)."""
    form: ShardFormat
    classes: list[str]
    images: dict[str, int]
    """Number of images by split."""
    failed: int
    """Number of images that could not be read during packing."""
    statistics: PackStatistics | None
    made_with: dict[str, str]
    """Versions of the packages that wrote it."""
    sha256: dict[str, str]
    """Checksum of each file, by its path relative to the folder."""
    value_range: ValueRange | None = None
    """The values that became 0 and 255 in images of more than 8 bits; None (or absent) if there were none."""


def read_manifest(data: Path) -> Manifest:
    """Read the pack.json of the packed dataset `data`. Raises `UserError`."""
    path = data / PACK
    try:
        stored: dict[str, Any] = read_json(path, dict)
        if (format := stored.get("format", FORMAT)) == FORMAT:
            return convert(stored, Manifest, PACK)
    except (OSError, UserError) as error:
        raise UserError(f"{path} is damaged ({str(error).rstrip('.')}); pack the dataset again.") from error
    raise UserError(f"{path} has the format '{format}', not {FORMAT}; update alexnet.")


class Shard(NamedTuple):
    """A memory-mapped shard, whose pages are read on access."""

    data: np.ndarray
    """The full file, uint8."""
    starts: np.ndarray
    """Offset of each item, and the end of the last."""
    images: np.ndarray | None
    """Packed pixels, a view of shape N×H×W×C."""


class Shards:
    """The shards of a split. Any process can read them; each maps them itself."""

    def __init__(self, folder: Path, format: ShardFormat, files: Sequence[tuple[str, int, int]]) -> None:
        """`files` lists the name, number of items and size in bytes of each shard."""
        self.folder, self.format, self.files = folder, format, list(files)
        self.first_items = np.cumsum([0, *(count for _, count, _ in self.files)])
        """Index of each shard's first item, and the number of all items."""
        self._checksums: Sequence[str] = ()
        self._verified = torch.zeros(0, dtype=torch.bool)
        self._open_cache()

    def _open_cache(self) -> None:
        self.shard = lru_cache(_MAX_MAPPED)(self._map)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()

    def verify_when_mapped(self, checksums: Sequence[str]) -> None:
        """Verify the SHA-256 checksum of each shard when it is first mapped. The results are shared with worker
        processes, which are new in each epoch, so each shard is verified once."""
        self._checksums = checksums
        self._verified = torch.zeros(len(checksums), dtype=torch.bool).share_memory_()

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / self.files[number][0]

    def locate(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard numbers of items, and the positions of the items in these shards."""
        shards = np.searchsorted(self.first_items, items, side="right") - 1
        return shards, items - self.first_items[shards]

    def raw(self, item: int) -> bytes | np.ndarray:
        """Return the bytes of a JPEG, or a copy of H×W×C pixels. Raises `UserError` for a damaged shard."""
        (number,), (position,) = self.locate(np.array([item]))
        shard = self.shard(int(number))
        if shard.images is not None:
            return np.array(shard.images[position])
        start, stop = shard.starts[position], shard.starts[position + 1]
        sizes = shard.data[start : start + 8].view("<u4")
        if sizes.tolist() != [stop - start - _ITEM_OVERHEAD, 8]:
            raise damaged(self.path(int(number)), f"the length of item {position} does not match its header")
        return shard.data[start + 8 : stop - 8].tobytes()

    def label(self, item: int) -> int:
        """Return the class stored in the shard, which equals that in the sample table."""
        (number,), (position,) = self.locate(np.array([item]))
        shard = self.shard(int(number))
        stop = shard.starts[position + 1]
        return int(shard.data[stop - 8 : stop].view("<i8")[0])

    def _map(self, number: int) -> Shard:
        name, count, size = self.files[number]
        path = self.folder / name
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise damaged(path, "it is missing") from None
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise damaged(path, str(error)) from error
        data = np.frombuffer(mapped, np.uint8)
        header = 4 * (count + 2)
        if len(data) != size or size < header:
            raise damaged(path, f"it has {len(data):,} bytes instead of {size:,}")
        starts = data[4:header].view("<u4").astype(np.int64)
        image_bytes = (
            self.format.side**2 * self.format.channels if self.format.kind == "uint8" and self.format.side else 1
        )
        lengths = np.diff(starts)
        if int(data[:4].view("<u4")[0]) != count or starts[0] != header or starts[-1] != size:
            raise damaged(path, "its header is not that of a shard")
        if (lengths < image_bytes + _ITEM_OVERHEAD).any() or (
            self.format.kind == "uint8" and (lengths > image_bytes + _ITEM_OVERHEAD).any()
        ):
            raise damaged(path, "the lengths of its items do not match pack.json")
        if self._checksums and not self._verified[number]:
            if sha256_file(path) != self._checksums[number]:
                raise damaged(path, "its checksum differs")
            self._verified[number] = True
        images = None
        if self.format.kind == "uint8":
            height, width, channels = self.format.shape
            strides = (image_bytes + _ITEM_OVERHEAD, width * channels, channels, 1)
            images = np.ndarray((count, height, width, channels), np.uint8, mapped, header + 8, strides)
        return Shard(data, starts, images)


@dataclass(frozen=True)
class PackedImages(ImageFiles):
    """Images in shards."""

    verified: ClassVar[bool] = True

    shards: Shards
    items: np.ndarray
    """Item index of each image, int64 (N,)."""

    def raw(self, i: int) -> RawImage:
        """Return image `i` as stored."""
        return self.shards.raw(int(self.items[i]))

    def describe(self, i: int) -> str:
        """Return the name and shard of image `i`."""
        (number,), _ = self.shards.locate(self.items[[i]])
        return f"{self.names[i]} in {self.shards.path(int(number))}"

    def take(self, indices: np.ndarray) -> PackedImages:
        """Return the images at `indices`, in that order."""
        part = super().take(indices)
        return PackedImages(part.root, part.names, part.targets, self.shards, self.items[np.asarray(indices)])

    def statistics(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the mean image, C×side×side in levels of 0…255, and the color covariance, C×C, computed during
        packing; None if these are not all the training images, or if images have their original sizes."""
        pack = self.root.parent
        stored = read_manifest(pack).statistics
        if stored is None or self.root.name != "train":
            return None
        if not len(self) == self.shards.first_items[-1] == stored["images"]:
            return None
        try:
            mean_image = np.load(pack / MEAN_IMAGE, allow_pickle=False)
            covariance = np.array(stored["covariance"], dtype=np.float64)
            height, width, channels = self.shards.format.shape
            shapes = [getattr(values, "shape", None) for values in (mean_image, covariance)]
            if shapes != [(channels, height, width), (channels, channels)] or mean_image.dtype != np.float64:
                raise ValueError(f"mean image and covariance have shapes {shapes}")
            return mean_image, covariance
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise damaged(pack / MEAN_IMAGE, repr(error)) from error

    def check(self, preprocess: EvalTransform) -> None:
        """Raise `UserError` if `preprocess` squashes full images but only square crops are stored."""
        if preprocess.squash and self.shards.format.kind == "uint8":
            raise UserError(
                f"{self.root.parent} contains square center crops, but this recipe squashes full images to squares; "
                "pack with --format jpeg."
            )

    def matches(self, preprocess: EvalTransform) -> bool:
        """Return whether the stored pixels are the resized squares that `preprocess` crops from."""
        format = self.shards.format
        return format.kind == "uint8" and (format.side, format.channels) == (
            preprocess.resize_side,
            preprocess.channels,
        )

    def crops(self, ids: np.ndarray, corners: np.ndarray, mirrored: np.ndarray, size: int) -> torch.Tensor:
        """Return the crops of images `ids` at `corners` (top, left), mirrored or not: uint8 N×C×size×size in
        channels-last layout. Only for packed pixels; raises `UserError` for a damaged shard."""
        out = _allocate((len(ids), size, size, self.shards.format.channels))
        pixels = out.numpy()
        items = self.items[ids]
        numbers, positions = self.shards.locate(items)
        tops, lefts = corners[:, 0].tolist(), corners[:, 1].tolist()
        for row in np.argsort(items, kind="stable").tolist():  # one shard after another
            images = self.shards.shard(int(numbers[row])).images
            assert images is not None
            window = images[positions[row], tops[row] : tops[row] + size, lefts[row] : lefts[row] + size]
            if mirrored[row]:  # by torch, which is vectorized: seven times faster than NumPy
                out[row] = torch.from_numpy(np.array(window)).flip(1)
            else:
                pixels[row] = window
        return out.permute(0, 3, 1, 2)

    def digests(self) -> list[bytes]:
        """Return the digest of each image's source, which is the same for copies of a file."""
        column = read_samples(self.root / SAMPLES, ["digest"])["digest"].to_pylist()
        return [column[item] for item in self.items]


def damaged(path: Path, reason: str) -> UserError:
    """Return the error for a damaged file of a packed dataset."""
    return UserError(f"{path} is damaged ({reason}); rerun 'alexnet pack' with the same arguments to repair it.")


# ── tables of a split ─────────────────────────────────────────────────────────────────────────────


class _Encoding(TypedDict, total=False):
    compression: Any
    ipc_compression: Any
    encryption: Any


class _Config(_Encoding):
    data_format: list[str]
    item_loader: str


class _Chunk(TypedDict):
    filename: str
    chunk_size: int
    chunk_bytes: int


class _Index(TypedDict):
    """A litdata index."""

    config: _Config
    chunks: list[_Chunk]


def read_index(path: Path) -> list[tuple[str, int, int]]:
    """Return name, number of items and bytes of each shard in a litdata index. Raises `UserError` if its items are
    anything but uncompressed raw bytes and integers."""
    try:
        index = read_json(path, _Index, "the index")
    except (OSError, UserError) as error:
        raise damaged(path, str(error).rstrip(".")) from error
    config = index["config"]
    types, encoding = config["data_format"], [config.get(key) for key in _Encoding.__annotations__]
    if types != ITEM_TYPES or config["item_loader"] != "PyTreeLoader" or any(encoding):
        raise UserError(
            f"{path} lists items of the types {types}, but only {ITEM_TYPES}, uncompressed, are accepted, since others "
            "can run code; pack the dataset with 'alexnet pack'."
        )
    files = [(chunk["filename"], chunk["chunk_size"], chunk["chunk_bytes"]) for chunk in index["chunks"]]
    for name, count, size in files:
        if Path(name).name != name or not name.endswith(".bin") or count < 1 or size < 1:
            raise damaged(path, f"it lists a shard '{name}' of {count} items and {size} bytes")
    return files


def read_samples(path: Path, columns: list[str]) -> Any:
    """Read columns of the sample table. Parquet contains no code."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def _allocate(shape: tuple[int, ...]) -> torch.Tensor:
    """Return an uninitialized uint8 tensor; in a worker process in shared memory, which saves copying the batch."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
