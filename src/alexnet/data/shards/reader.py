"""A packed data set, as `alexnet pack` writes it (`pack.py`), read by memory map.

    DST/
      pack.json                  classes, form of the pictures, statistics, checksums
      mean_image.npy             of the training pictures, in levels of 0…255
      failed.csv                 pictures that could not be read, and why
      train/  val/  test/        of each split that there is:
        chunk-0-<n>.bin          the shards
        index.json               litdata's list of them
        samples.parquet          name, class and digest of each picture, in the order of the shards

A shard is a file of litdata's: the number of items, where each starts, and the items, which are the sizes of their two
parts, the bytes of the picture and its class. litdata reads them; we read them by memory map under our own sampler, so
that of packed pixels nothing but the crop is copied, and that runs resume exactly. Of the forms that an index may name
only raw bytes and integers are read here. The others are refused: one of litdata's is the pickle, which can run code.
"""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from alexnet.data.dataset import ImageFiles, RawImage
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import sha256_file

PACK, INDEX, SAMPLES, MEAN_IMAGE, FAILED = "pack.json", "index.json", "samples.parquet", "mean_image.npy", "failed.csv"
WORK = ".packing"
"""The folder in DST that holds what is known of finished shards until all are."""
PARTS = ["bytes", "int"]
"""What the items consist of, in litdata's words: the picture, its class."""

_MAPPED = 512  # shards that are mapped at a time at most: each holds a file open, of which a process may have 1024
_AROUND = 16  # bytes of an item that are not the picture: the sizes of its two parts, and the class


@dataclass(frozen=True)
class ShardFormat:
    """How the pictures of a packed data set are stored."""

    kind: str
    """jpeg: files of JPEG's; uint8: pixels, all squares of `side`, cut from the centre."""
    side: int | None
    """The short side in pixels, of JPEGs at most; None: JPEGs of their original size."""
    channels: int
    quality: int | None = None
    """Of the JPEGs that were made in packing."""

    def __post_init__(self) -> None:
        numbers = [self.channels, *(n for n in (self.side, self.quality) if n is not None)]
        whole = all(isinstance(n, int) and n > 0 for n in numbers)
        if self.kind not in ("jpeg", "uint8") or self.channels not in (1, 3) or not whole:
            raise ValueError(f"there are no such pictures: {self}")
        if self.kind == "uint8" and self.side is None:
            raise ValueError("pixels need a side")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture's pixels: H×W×C."""
        return self.side or 0, self.side or 0, self.channels


class Shard(NamedTuple):
    """A shard in memory, without its pages having been read."""

    data: np.ndarray
    """All of it, uint8."""
    starts: np.ndarray
    """Where each item starts, and where the last ends."""
    pictures: np.ndarray | None
    """Packed pixels, a view of N×H×W×C."""


class Shards:
    """The shards of one split. Any process may read them, and each maps them for itself."""

    def __init__(self, folder: Path, form: ShardFormat, files: Sequence[tuple[str, int, int]]) -> None:
        """`files`: the name of each shard, its number of items, its bytes."""
        self.folder, self.form, self.files = folder, form, list(files)
        self.first = np.cumsum([0, *(count for _, count, _ in self.files)])
        """The number of each shard's first item, and of all items."""
        self._sums: Sequence[str] = ()
        self._sound = torch.zeros(0, dtype=torch.bool)
        self._open_cache()

    def _open_cache(self) -> None:
        self.shard = lru_cache(_MAPPED)(self._map)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()

    def verify_as_mapped(self, sums: Sequence[str]) -> None:
        """Compare the checksum of each shard (SHA-256) as it is mapped for the first time. What is known to be sound is
        shared with the processes that read for this one, which are new in each epoch: a shard is read once for it."""
        self._sums, self._sound = sums, torch.zeros(len(sums), dtype=torch.bool).share_memory_()

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / self.files[number][0]

    def place(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For numbers of items the numbers of their shards, and their places there."""
        shards = np.searchsorted(self.first, items, side="right") - 1
        return shards, items - self.first[shards]

    def raw(self, item: int) -> bytes | np.ndarray:
        """The bytes of a JPEG, or pixels H×W×C of one's own. Raises `UserError` for a damaged shard."""
        (number,), (place,) = self.place(np.array([item]))
        shard = self.shard(int(number))
        if shard.pictures is not None:
            return np.array(shard.pictures[place])
        start, stop = shard.starts[place], shard.starts[place + 1]
        sizes = shard.data[start : start + 8].view("<u4")
        if sizes.tolist() != [stop - start - _AROUND, 8]:
            raise damaged(self.path(int(number)), f"item {place} is of another length than it says")
        return shard.data[start + 8 : stop - 8].tobytes()

    def label(self, item: int) -> int:
        """The class that stands in the shard; ours are read from the table, which says the same."""
        (number,), (place,) = self.place(np.array([item]))
        shard = self.shard(int(number))
        return int(shard.data[shard.starts[place + 1] - 8 : shard.starts[place + 1]].view("<i8")[0])

    def _map(self, number: int) -> Shard:
        name, count, size = self.files[number]
        path = self.folder / name
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise damaged(path, "it is not there") from None
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise damaged(path, str(error)) from error
        data = np.frombuffer(mapped, np.uint8)
        head = 4 * (count + 2)
        if len(data) != size or size < head:
            raise damaged(path, f"it has {len(data):,} bytes instead of {size:,}")
        starts = data[4:head].view("<u4").astype(np.int64)
        least = self.form.side**2 * self.form.channels if self.form.kind == "uint8" and self.form.side else 1
        lengths = np.diff(starts)
        if int(data[:4].view("<u4")[0]) != count or starts[0] != head or starts[-1] != size:
            raise damaged(path, "its head is not that of a shard")
        if (lengths < least + _AROUND).any() or (self.form.kind == "uint8" and (lengths > least + _AROUND).any()):
            raise damaged(path, "its items are of another length than pack.json says")
        if self._sums and not self._sound[number]:
            if sha256_file(path) != self._sums[number]:
                raise damaged(path, "its checksum differs")
            self._sound[number] = True
        pictures = None
        if self.form.kind == "uint8":
            height, width, channels = self.form.shape
            strides = (least + _AROUND, width * channels, channels, 1)
            pictures = np.ndarray((count, height, width, channels), np.uint8, mapped, head + 8, strides)
        return Shard(data, starts, pictures)


@dataclass(frozen=True)
class PackedImages(ImageFiles):
    """Pictures in shards."""

    shards: Shards
    items: np.ndarray
    """The number of each picture's item, int64 (N,)."""

    def raw(self, i: int) -> RawImage:
        """Picture `i` as it is kept."""
        return self.shards.raw(int(self.items[i]))

    def describe(self, i: int) -> str:
        """Its name and its shard."""
        (number,), _ = self.shards.place(self.items[[i]])
        return f"{self.names[i]} in {self.shards.path(int(number))}"

    def take(self, indices: np.ndarray) -> PackedImages:
        """Those at `indices`, in that order."""
        some = super().take(indices)
        return PackedImages(some.root, some.names, some.targets, self.shards, self.items[np.asarray(indices)])

    def statistics(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The mean image, C×side×side in levels of 0…255, and the covariance of the colours, C×C, as they were summed
        in packing; None where these are not all of the training pictures, or they keep their size."""
        pack = self.root.parent
        try:
            about = json.loads((pack / PACK).read_text(encoding="utf-8"))["statistics"]
            if about is None or self.root.name != "train" or not len(self) == self.shards.first[-1] == about["images"]:
                return None
            mean_image = np.load(pack / MEAN_IMAGE, allow_pickle=False)
            covariance = np.array(about["covariance"], dtype=np.float64)
            height, width, channels = self.shards.form.shape
            shapes = [getattr(values, "shape", None) for values in (mean_image, covariance)]
            if shapes != [(channels, height, width), (channels, channels)] or mean_image.dtype != np.float64:
                raise ValueError(f"the mean image and the covariance are {shapes}")
            return mean_image, covariance
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise damaged(pack / MEAN_IMAGE, repr(error)) from error

    def check(self, preprocess: EvalTransform) -> None:
        """Raise `UserError` for pixels that were cut to a square where the whole picture should be stretched to one."""
        if preprocess.squash and self.shards.form.kind == "uint8":
            raise UserError(
                f"{self.root.parent} holds squares cut from the centre, and this recipe stretches whole pictures to a "
                "square; pack them with --format jpeg."
            )

    def matches(self, preprocess: EvalTransform) -> bool:
        """Whether these are pixels of the very squares that `preprocess` cuts from."""
        form = self.shards.form
        return form.kind == "uint8" and (form.side, form.channels) == (preprocess.resize_side, preprocess.channels)

    def crops(self, ids: np.ndarray, corners: np.ndarray, mirrored: np.ndarray, size: int) -> torch.Tensor:
        """Of each picture of `ids` the window at its corner (top, left), mirrored or not: uint8 N×C×size×size, the
        channels of a pixel side by side. Only for packed pixels; raises `UserError` for a damaged shard."""
        out = _empty((len(ids), size, size, self.shards.form.channels))
        pixels = out.numpy()
        items = self.items[ids]
        numbers, places = self.shards.place(items)
        tops, lefts = corners[:, 0].tolist(), corners[:, 1].tolist()
        for row in np.argsort(items, kind="stable").tolist():  # a shard at a time
            pictures = self.shards.shard(int(numbers[row])).pictures
            assert pictures is not None
            window = pictures[places[row], tops[row] : tops[row] + size, lefts[row] : lefts[row] + size]
            if mirrored[row]:  # by torch, which turns whole registers of pixels: in a seventh of NumPy's time
                out[row] = torch.from_numpy(np.array(window)).flip(1)
            else:
                pixels[row] = window
        return out.permute(0, 3, 1, 2)

    def digests(self) -> list[bytes]:
        """Of each picture the digest of what it was packed from: the same for copies of a file."""
        column = read_samples(self.root / SAMPLES, ["digest"])["digest"].to_pylist()
        return [column[item] for item in self.items]


def damaged(path: Path, why: str) -> UserError:
    """The error for a file of a packed data set."""
    return UserError(f"{path} is damaged ({why}); 'alexnet pack' with the same words as before makes it anew.")


# ── the parts of a split ──────────────────────────────────────────────────────────────────────────────────────


def read_index(path: Path) -> list[tuple[str, int, int]]:
    """The shards that a litdata index lists: name, items, bytes. Raises `UserError` for one that names anything but
    uncompressed raw bytes and integers."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        config, chunks = found["config"], found["chunks"]
        forms, loader = config["data_format"], config["item_loader"]
        packing = [config.get(key) for key in ("compression", "ipc_compression", "encryption")]
        files = [(str(c["filename"]), int(c["chunk_size"]), int(c["chunk_bytes"])) for c in chunks]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, repr(error)) from error
    if forms != PARTS or loader != "PyTreeLoader" or any(packing):
        raise UserError(
            f"{path} names data of the form {forms}, and only {PARTS}, uncompressed, is read: others can run code; "
            "pack the data with 'alexnet pack'."
        )
    for name, count, size in files:
        if Path(name).name != name or not name.endswith(".bin") or count < 1 or size < 1:
            raise damaged(path, f"it lists a shard '{name}' of {count} items and {size} bytes")
    return files


def read_samples(path: Path, columns: list[str]) -> Any:
    """Columns of the table of samples. Parquet holds no code."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from error


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    """uint8, not filled; in a worker process in memory that it shares with the process that it works for, into which
    the batch would else be copied."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
