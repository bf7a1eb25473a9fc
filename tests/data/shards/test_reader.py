"""Packed datasets are read exactly, in any process; damaged and unknown ones are refused with a clear error."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data import image_folder
from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.datasets import load_dataset
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.in_memory import decode_files, fits_in_memory
from alexnet.data.loader import BatchLoader
from alexnet.data.shards import manifest, reader
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.shards.reader import PackedImages, read_index
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import sha256_file

PREPROCESS = EvalTransform(24, 32)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Forty images of different shapes, larger than 32 pixels, in two classes of train/ and val/."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(40):
        path = root / ("val" if i % 4 == 3 else "train") / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((40 + 3 * (i % 7), 60 - 2 * (i % 5)), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="module")
def pixels(images, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("pixels") / "packed"
    pack_dataset(images, target, kind="uint8", size=32)
    return target


@pytest.fixture(scope="module")
def jpegs(images, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("jpegs") / "packed"
    pack_dataset(images, target, size=32)
    return target


def copy_folder(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def update_checksum(data: Path, shard: Path) -> None:
    """Make pack.json list the checksum of a changed shard."""
    about = json.loads((data / "pack.json").read_text())
    about["sha256"][shard.relative_to(data).as_posix()] = sha256_file(shard)
    (data / "pack.json").write_text(json.dumps(about))


def train_of(data: Path) -> PackedImages:
    return open_packed(data).splits["train"]


# ── contents ──────────────────────────────────────────────────────────────────────────────────────


def test_pixels_equal_those_for_evaluation(images, pixels):
    files = image_folder.scan_class_folders(images).splits["val"]
    packed = open_packed(pixels).splits["val"]
    assert packed.names == files.names
    assert torch.equal(packed.targets, files.targets)
    theirs = list(BatchLoader(files, PREPROCESS, batch_size=4).batches(0))
    ours = list(BatchLoader(packed, PREPROCESS, batch_size=4).batches(0))
    assert sum(len(batch.ids) for batch in ours) == 10
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    "cfg",
    [
        Augment(crop="random", flip=True),
        Augment(crop="random", flip=True, crop_group=3),
        Augment(crop="none", flip=True),
        Augment(crop="random", flip=True, jitter=(0.3, 0.3, 0.3)),
        Augment(crop="pad", padding=2, flip=True),
    ],
)
def test_mapped_crops_equal_those_of_images_in_memory(pixels, cfg):
    packed = train_of(pixels)
    arrays = decode_files(packed, PREPROCESS, cfg)
    kinds = {"batch_size": 7, "shuffle": True, "seed": 3}
    for epoch in (0, 5):
        mapped, in_memory = (
            BatchLoader(packed, PREPROCESS, cfg, **kinds),
            BatchLoader(arrays, PREPROCESS, cfg, **kinds),
        )
        pairs = list(zip(mapped.batches(epoch), in_memory.batches(epoch), strict=True))
        assert len(pairs) == 5
        for ours, theirs in pairs:
            assert torch.equal(ours.ids, theirs.ids)
            assert torch.equal(ours.targets, theirs.targets)
            a = augment(ours.images, ours.ids, epoch, 3, mapped.device_augment, 24)
            b = augment(theirs.images, theirs.ids, epoch, 3, in_memory.device_augment, 24)
            assert torch.equal(a, b)


def test_the_loader_yields_only_crops(pixels):
    loader = BatchLoader(train_of(pixels), PREPROCESS, Augment(crop="random", flip=True), batch_size=8)
    batch = next(loader.batches(0))
    assert batch.images.shape == (8, 3, 24, 24)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (loader.device_augment.crop, loader.device_augment.flip) == ("none", False)


def equal_batches(a, b):
    """Return whether two batches are equal in all fields."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pixels", "jpegs"])
def test_every_image_once_with_any_workers_from_any_start(request, kind, workers):
    packed = train_of(request.getfixturevalue(kind))
    cfg = Augment(crop="random", flip=True)
    loader = BatchLoader(packed, PREPROCESS, cfg, batch_size=4, shuffle=True, seed=1, workers=workers)
    alone = BatchLoader(packed, PREPROCESS, cfg, batch_size=4, shuffle=True, seed=1)
    first, again = list(loader.batches(2)), list(alone.batches(2))
    assert sorted(torch.cat([batch.ids for batch in first]).tolist()) == list(range(30))
    assert all(map(equal_batches, first, again))
    rest = list(loader.batches(2, start=3))
    assert len(rest) == len(first) - 3
    assert all(map(equal_batches, first[3:], rest))


def test_other_sizes_are_resized(pixels):
    packed = train_of(pixels)
    batch = next(BatchLoader(packed, EvalTransform(16, 20), Augment(crop="random"), batch_size=5).batches(0))
    assert batch.images.shape == (5, 3, 20, 20)
    resized = next(BatchLoader(packed, PREPROCESS, Augment(crop="resized"), batch_size=5).batches(0))
    assert resized.images.shape == (5, 3, 24, 24)
    gray = EvalTransform(24, 32, channels=1, mean=(0.5,), std=(0.5,))
    batch = next(BatchLoader(packed, gray, batch_size=5).batches(0))
    luma = np.asarray(decode_image(packed.raw(0)).convert("L"))[4:28, 4:28]
    assert np.array_equal(batch.images[0, 0], luma)


def test_jpegs_are_close_to_the_images(images, jpegs):
    files, packed = image_folder.scan_class_folders(images).splits["train"], train_of(jpegs)
    gray = EvalTransform(24, 32, channels=1, mean=(0.5,), std=(0.5,))  # JPEG halves the resolution of color
    theirs, ours = (decode_files(part, gray).images.float() for part in (files, packed))
    assert isinstance(packed.raw(0), bytes)
    assert 0 < (ours - theirs).abs().mean() < 4


def test_take_keeps_the_given_order(pixels):
    packed = train_of(pixels)
    part = packed.take(np.array([7, 2])).take(np.array([1, 0]))
    assert isinstance(part, PackedImages)
    assert part.names == [packed.names[2], packed.names[7]]
    assert np.array_equal(part.raw(1), packed.raw(7))
    assert part.statistics() is None
    assert packed.statistics() is not None


def test_the_number_of_mapped_shards_is_limited(pixels, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_MAPPED", 2)
    packed = train_of(pixels)
    cfg = Augment(crop="random", flip=True)
    list(BatchLoader(packed, PREPROCESS, cfg, batch_size=30, shuffle=True).batches(0))
    assert len(packed.shards.files) == 10
    assert packed.shards.shard.cache_info().currsize == 2


def test_pickling_drops_mapped_shards(pixels):
    packed = train_of(pixels)
    packed.raw(0)
    there = pickle.loads(pickle.dumps(packed))
    assert there.shards.shard.cache_info().currsize == 0
    assert np.array_equal(there.raw(29), packed.raw(29))


def test_litdata_reads_the_shards(pixels, jpegs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # litdata's cache is there
    from litdata import StreamingDataset

    for data in (pixels, jpegs):
        packed = train_of(data)
        theirs = StreamingDataset(str(data / "train"))
        assert len(theirs) == len(packed) == 30
        for i in (0, 13, 29):
            image, label = theirs[i]
            assert label == packed.targets[i] == packed.shards.label(i)
            ours = packed.raw(i)
            assert image == (ours if isinstance(ours, bytes) else ours.tobytes())


# ── damaged and malicious files ───────────────────────────────────────────────────────────────────


def test_a_truncated_changed_or_missing_shard_is_named(pixels, jpegs, tmp_path):
    for kind, data in (("p", pixels), ("j", jpegs)):
        for damage in ("truncated", "changed", "missing"):
            target = copy_folder(data, tmp_path / f"{kind}-{damage}")
            shard = target / "train" / "chunk-0-3.bin"
            content = bytearray(shard.read_bytes())
            if damage == "missing":
                shard.unlink()
            elif damage == "truncated":
                shard.write_bytes(content[:-1])
            else:
                content[200] ^= 1
                shard.write_bytes(content)
            with pytest.raises(UserError, match=r"chunk-0-3\.bin is damaged.*alexnet pack"):
                load_dataset("folder", target)


@pytest.mark.parametrize("name", ["pack.json", "train/index.json", "train/samples.parquet", "mean_image.npy"])
@pytest.mark.parametrize("what", [b"", b"{}", b"\x80\x04K\x01."])
def test_damaged_tables_are_named(pixels, tmp_path, name, what):
    target = copy_folder(pixels, tmp_path / "copy")
    (target / name).write_bytes(what)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load_dataset("folder", target)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_found_while_reading_is_reported_from_workers(pixels, jpegs, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(manifest, "MAX_VERIFIED_AT_OPEN", 0)  # as for large datasets
    target = copy_folder(pixels, tmp_path / "pixels")
    shard = target / "train" / "chunk-0-3.bin"
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    source = load_dataset("folder", target)
    loader = BatchLoader(source.splits["train"], PREPROCESS, Augment(crop="random"), batch_size=4, workers=workers)
    with pytest.raises(UserError, match=r"^\S*chunk-0-3\.bin is damaged \(its header"):
        list(loader.batches(0))

    target = copy_folder(jpegs, tmp_path / "jpegs")
    shard = target / "train" / "chunk-0-3.bin"
    data = bytearray(shard.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 4] = b"abcd"
    shard.write_bytes(data)
    update_checksum(target, shard)
    files = load_dataset("folder", target).splits["train"]
    with pytest.raises(BadImage, match=r"\.png in .*chunk-0-3\.bin: it is not an image"):
        list(BatchLoader(files, PREPROCESS, batch_size=4, workers=workers).batches(0))
    with pytest.raises(BadImage, match=r"\.png in .*chunk-0-3\.bin"):
        decode_files(files, PREPROCESS)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pixels", "jpegs"])
def test_a_flipped_bit_in_a_large_dataset_is_detected_when_read(request, kind, tmp_path, monkeypatch, workers):
    """In a small dataset it is detected on opening."""
    monkeypatch.setattr(manifest, "MAX_VERIFIED_AT_OPEN", 0)
    target = copy_folder(request.getfixturevalue(kind), tmp_path / "copy")
    shard = target / "train" / "chunk-0-3.bin"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    files = load_dataset("folder", target).splits["train"]
    with pytest.raises(UserError, match=r"^\S*chunk-0-3\.bin is damaged \(its checksum differs\).*alexnet pack"):
        list(BatchLoader(files, PREPROCESS, Augment(crop="random"), batch_size=4, workers=workers).batches(0))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_intact_shard_is_verified_once(pixels, tmp_path, monkeypatch, workers):
    """Regardless of how often, and in how many processes, it is mapped."""
    monkeypatch.setattr(manifest, "MAX_VERIFIED_AT_OPEN", 0)
    files = train_of(pixels)
    loader = BatchLoader(files, PREPROCESS, Augment(crop="random"), batch_size=4, workers=workers)
    list(loader.batches(0))
    monkeypatch.setattr(reader, "sha256_file", lambda path: pytest.fail(f"{path} is verified again"))
    list(loader.batches(1))
    files.shards._open_cache()
    list(BatchLoader(files, PREPROCESS, batch_size=4, workers=workers).batches(0))


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickles_in_shards_are_refused_and_never_run(pixels, tmp_path, monkeypatch):
    """An index that declares the images to be pickles, which litdata itself would run."""
    monkeypatch.setattr(manifest, "MAX_VERIFIED_AT_OPEN", 0)
    mark, target = tmp_path / "ran", copy_folder(pixels, tmp_path / "copy")
    evil = pickle.dumps(Evil(mark))
    item = struct.pack("<2I", len(evil), 8) + evil + struct.pack("<q", 0)
    shard = struct.pack("<3I", 1, 12, 12 + len(item)) + item
    (target / "train" / "chunk-0-0.bin").write_bytes(shard)
    index = json.loads((target / "train" / "index.json").read_text())
    index["config"]["data_format"] = ["pickle", "int"]
    index["chunks"] = [{"chunk_bytes": len(shard), "chunk_size": 1, "dim": None, "filename": "chunk-0-0.bin"}]
    (target / "train" / "index.json").write_text(json.dumps(index))
    about = json.loads((target / "pack.json").read_text())
    about["sha256"] = {}  # an attacker could also fix the checksums
    about["images"] = {"train": 1}
    (target / "pack.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"index\.json lists items of the types \['pickle', 'int'\]"):
        load_dataset("folder", target)
    assert not mark.exists()

    monkeypatch.setenv("HOME", str(tmp_path))
    from litdata import StreamingDataset

    StreamingDataset(str(target / "train"))[0]
    assert mark.exists(), "the planted pickle does run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_format": ["graph:pickle", "int"]}, "only"),
        ({"data_format": ["bytes", "int", "pickle"]}, "only"),
        ({"compression": "zstd"}, "uncompressed"),
        ({"encryption": {"algorithm": "fernet"}}, "uncompressed"),
        ({"item_loader": "ParquetLoader"}, "only"),
    ],
)
def test_an_index_with_other_item_types_is_refused(pixels, tmp_path, change, message):
    index = json.loads((pixels / "train" / "index.json").read_text())
    path = tmp_path / "index.json"
    path.write_text(json.dumps({**index, "config": {**index["config"], **change}}))
    with pytest.raises(UserError, match=message):
        read_index(path)


@pytest.mark.parametrize("name", ["../chunk.bin", "/etc/passwd", "a/b.bin", ".."])
def test_a_shard_outside_its_folder_is_refused(pixels, tmp_path, name):
    index = json.loads((pixels / "train" / "index.json").read_text())
    index["chunks"][0]["filename"] = name
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="it lists a shard"):
        read_index(path)


def test_an_item_with_a_wrong_length_is_refused(jpegs, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_VERIFIED_AT_OPEN", 0)
    target = copy_folder(jpegs, tmp_path / "copy")
    shard = target / "train" / "chunk-0-0.bin"
    data = bytearray(shard.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<I", data, first, 1 << 30)
    shard.write_bytes(data)
    update_checksum(target, shard)
    with pytest.raises(UserError, match="does not match its header"):
        load_dataset("folder", target).splits["train"].raw(0)


def test_square_crops_are_not_accepted_for_squashing(pixels, jpegs):
    squashed = EvalTransform(24, 32, squash=True)
    with pytest.raises(UserError, match="--format jpeg"):
        BatchLoader(train_of(pixels), squashed, batch_size=4)
    with pytest.raises(UserError, match="--format jpeg"):
        decode_files(train_of(pixels), squashed)
    assert len(BatchLoader(train_of(jpegs), squashed, batch_size=4)) == 8


def test_workers_allocate_batches_in_shared_memory(monkeypatch):
    monkeypatch.setattr(reader, "get_worker_info", lambda: object())
    batch = reader._allocate((2, 3))
    assert batch.shape == (2, 3)
    assert batch.is_shared()
    monkeypatch.setattr(reader, "get_worker_info", lambda: None)
    assert not reader._allocate((2, 3)).is_shared()


def test_small_packed_datasets_are_loaded_into_memory(pixels):
    source = load_dataset("folder", pixels)
    assert fits_in_memory(source, 32)
    held = decode_files(source.splits["train"], PREPROCESS, Augment(crop="random"))
    assert isinstance(held, ImageArrays)
    assert not isinstance(source.splits["train"], ImageArrays)
    assert isinstance(source.splits["train"], ImageFiles)
    assert held.images.shape == (30, 3, 32, 32)
