"""Packed data sets are read exactly, in any process, and what is damaged or foreign is refused in a sentence."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data import image_folder, loader
from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.datasets import decode_files, load_dataset
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.loader import FromFiles, InMemory
from alexnet.data.shards import manifest, reader
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.shards.reader import PackedImages, read_index
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import sha256_file

PREPROCESS = EvalTransform(24, 32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Forty photographs of different shapes, larger than 32 pixels, in two classes of train/ and val/."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(40):
        path = root / ("val" if i % 4 == 3 else "train") / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((40 + 3 * (i % 7), 60 - 2 * (i % 5)), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="module")
def pixels(pictures, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("pixels") / "packed"
    pack_dataset(pictures, target, kind="uint8", size=32)
    return target


@pytest.fixture(scope="module")
def jpegs(pictures, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("jpegs") / "packed"
    pack_dataset(pictures, target, size=32)
    return target


def copied(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def mend_sum(data: Path, shard: Path) -> None:
    """As if it had been packed so."""
    about = json.loads((data / "pack.json").read_text())
    about["sha256"][shard.relative_to(data).as_posix()] = sha256_file(shard)
    (data / "pack.json").write_text(json.dumps(about))


def train_of(data: Path) -> PackedImages:
    return open_packed(data).splits["train"]


# ── the same pictures ─────────────────────────────────────────────────────────────────────────────────────────


def test_pixels_are_what_evaluation_reads(pictures, pixels):
    files = image_folder.scan_class_folders(pictures).splits["val"]
    manifest = open_packed(pixels).splits["val"]
    assert manifest.names == files.names
    assert torch.equal(manifest.targets, files.targets)
    theirs = list(FromFiles(files, PREPROCESS, batch_size=4).batches(0))
    ours = list(FromFiles(manifest, PREPROCESS, batch_size=4).batches(0))
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
def test_crops_from_the_map_are_those_that_pictures_in_memory_get(pixels, cfg):
    manifest = train_of(pixels)
    arrays = decode_files(manifest, PREPROCESS, cfg)
    kinds = {"batch_size": 7, "shuffle": True, "seed": 3}
    for epoch in (0, 5):
        mapped, in_memory = FromFiles(manifest, PREPROCESS, cfg, **kinds), InMemory(arrays, PREPROCESS, cfg, **kinds)
        pairs = list(zip(mapped.batches(epoch), in_memory.batches(epoch), strict=True))
        assert len(pairs) == 5
        for ours, theirs in pairs:
            assert torch.equal(ours.ids, theirs.ids)
            assert torch.equal(ours.targets, theirs.targets)
            a = augment(ours.images, ours.ids, epoch, 3, mapped.device_augment, 24)
            b = augment(theirs.images, theirs.ids, epoch, 3, in_memory.device_augment, 24)
            assert torch.equal(a, b)


def test_no_more_than_the_crop_leaves_the_loader(pixels):
    loader = FromFiles(train_of(pixels), PREPROCESS, Augment(crop="random", flip=True), batch_size=8)
    batch = next(loader.batches(0))
    assert batch.images.shape == (8, 3, 24, 24)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (loader.device_augment.crop, loader.device_augment.flip) == ("none", False)


def same(a, b):
    """Whether two batches hold the same pictures, classes and places."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pixels", "jpegs"])
def test_every_picture_once_with_any_workers_from_any_place(request, kind, workers):
    manifest = train_of(request.getfixturevalue(kind))
    cfg = Augment(crop="random", flip=True)
    loader = FromFiles(manifest, PREPROCESS, cfg, batch_size=4, shuffle=True, seed=1, workers=workers)
    alone = FromFiles(manifest, PREPROCESS, cfg, batch_size=4, shuffle=True, seed=1)
    first, again = list(loader.batches(2)), list(alone.batches(2))
    assert sorted(torch.cat([batch.ids for batch in first]).tolist()) == list(range(30))
    assert all(map(same, first, again))
    rest = list(loader.batches(2, start=3))
    assert len(rest) == len(first) - 3
    assert all(map(same, first[3:], rest))


def test_other_sizes_are_resized(pixels):
    manifest = train_of(pixels)
    batch = next(FromFiles(manifest, EvalTransform(16, 20), Augment(crop="random"), batch_size=5).batches(0))
    assert batch.images.shape == (5, 3, 20, 20)
    resized = next(FromFiles(manifest, PREPROCESS, Augment(crop="resized"), batch_size=5).batches(0))
    assert resized.images.shape == (5, 3, 24, 24)
    grey = EvalTransform(24, 32, channels=1, mean=(0.5,), std=(0.5,))
    batch = next(FromFiles(manifest, grey, batch_size=5).batches(0))
    luma = np.asarray(decode_image(manifest.raw(0)).convert("L"))[4:28, 4:28]
    assert np.array_equal(batch.images[0, 0], luma)


def test_jpegs_are_near_the_pictures(pictures, jpegs):
    files, manifest = image_folder.scan_class_folders(pictures).splits["train"], train_of(jpegs)
    grey = EvalTransform(24, 32, channels=1, mean=(0.5,), std=(0.5,))  # JPEG has half of the colours' resolution
    theirs, ours = (decode_files(part, grey).images.float() for part in (files, manifest))
    assert isinstance(manifest.raw(0), bytes)
    assert 0 < (ours - theirs).abs().mean() < 4


def test_a_part_is_taken_in_order(pixels):
    manifest = train_of(pixels)
    part = manifest.take(np.array([7, 2])).take(np.array([1, 0]))
    assert isinstance(part, PackedImages)
    assert part.names == [manifest.names[2], manifest.names[7]]
    assert np.array_equal(part.raw(1), manifest.raw(7))
    assert part.statistics() is None
    assert manifest.statistics() is not None


def test_few_shards_are_open_at_a_time(pixels, monkeypatch):
    monkeypatch.setattr(reader, "_MAPPED", 2)
    manifest = train_of(pixels)
    cfg = Augment(crop="random", flip=True)
    list(FromFiles(manifest, PREPROCESS, cfg, batch_size=30, shuffle=True).batches(0))
    assert len(manifest.shards.files) == 10
    assert manifest.shards.shard.cache_info().currsize == 2


def test_shards_go_to_other_processes_unmapped(pixels):
    manifest = train_of(pixels)
    manifest.raw(0)
    there = pickle.loads(pickle.dumps(manifest))
    assert there.shards.shard.cache_info().currsize == 0
    assert np.array_equal(there.stored(29), manifest.raw(29))


def test_litdata_reads_the_shards(pixels, jpegs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where it would keep a cache
    from litdata import StreamingDataset

    for data in (pixels, jpegs):
        manifest = train_of(data)
        theirs = StreamingDataset(str(data / "train"))
        assert len(theirs) == len(manifest) == 30
        for i in (0, 13, 29):
            image, label = theirs[i]
            assert label == manifest.targets[i] == manifest.shards.label(i)
            ours = manifest.raw(i)
            assert image == (ours if isinstance(ours, bytes) else ours.tobytes())


# ── damage and strangers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_shard_that_is_cut_short_changed_or_gone_is_named(pixels, jpegs, tmp_path):
    for kind, data in (("p", pixels), ("j", jpegs)):
        for way in ("short", "changed", "gone"):
            target = copied(data, tmp_path / f"{kind}-{way}")
            shard = target / "train" / "chunk-0-3.bin"
            whole = bytearray(shard.read_bytes())
            if way == "gone":
                shard.unlink()
            elif way == "short":
                shard.write_bytes(whole[:-1])
            else:
                whole[200] ^= 1
                shard.write_bytes(whole)
            with pytest.raises(UserError, match=r"chunk-0-3\.bin is damaged.*alexnet pack"):
                load_dataset("folder", target)


@pytest.mark.parametrize("name", ["pack.json", "train/index.json", "train/samples.parquet", "mean_image.npy"])
@pytest.mark.parametrize("what", [b"", b"{}", b"\x80\x04K\x01."])
def test_damaged_companions_are_named(pixels, tmp_path, name, what):
    target = copied(pixels, tmp_path / "copy")
    (target / name).write_bytes(what)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load_dataset("folder", target)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_shows_later_is_told_from_workers_too(pixels, jpegs, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(manifest, "VERIFIED", 0)  # as with large data
    target = copied(pixels, tmp_path / "pixels")
    shard = target / "train" / "chunk-0-3.bin"
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    source = load_dataset("folder", target)
    loader = FromFiles(source.splits["train"], PREPROCESS, Augment(crop="random"), batch_size=4, workers=workers)
    with pytest.raises(UserError, match=r"^\S*chunk-0-3\.bin is damaged \(its head"):
        list(loader.batches(0))

    target = copied(jpegs, tmp_path / "jpegs")
    shard = target / "train" / "chunk-0-3.bin"
    data = bytearray(shard.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 4] = b"abcd"
    shard.write_bytes(data)
    mend_sum(target, shard)
    files = load_dataset("folder", target).splits["train"]
    with pytest.raises(BadImage, match=r"\.png in .*chunk-0-3\.bin: it is not an image"):
        list(FromFiles(files, PREPROCESS, batch_size=4, workers=workers).batches(0))
    with pytest.raises(BadImage, match=r"\.png in .*chunk-0-3\.bin"):
        decode_files(files, PREPROCESS)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pixels", "jpegs"])
def test_a_flipped_bit_of_large_data_is_noticed_where_it_is_read(request, kind, tmp_path, monkeypatch, workers):
    """Of small data it is noticed at the start, before."""
    monkeypatch.setattr(manifest, "VERIFIED", 0)
    target = copied(request.getfixturevalue(kind), tmp_path / "copy")
    shard = target / "train" / "chunk-0-3.bin"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    files = load_dataset("folder", target).splits["train"]
    with pytest.raises(UserError, match=r"^\S*chunk-0-3\.bin is damaged \(its checksum differs\).*alexnet pack"):
        list(FromFiles(files, PREPROCESS, Augment(crop="random"), batch_size=4, workers=workers).batches(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sound_shard_is_read_once_for_its_checksum(pixels, tmp_path, monkeypatch, workers):
    """However often it is mapped, in however many processes, which are new in each epoch."""
    monkeypatch.setattr(manifest, "VERIFIED", 0)
    files = train_of(pixels)
    loader = FromFiles(files, PREPROCESS, Augment(crop="random"), batch_size=4, workers=workers)
    list(loader.batches(0))
    monkeypatch.setattr(reader, "sha256_of", lambda path: pytest.fail(f"{path} is read again"))
    list(loader.batches(1))
    files.shards._open_cache()
    list(FromFiles(files, PREPROCESS, batch_size=4, workers=workers).batches(0))


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickles_in_shards_are_refused_and_never_run(pixels, tmp_path, monkeypatch):
    """An index that calls the pictures pickles: litdata itself would run them."""
    monkeypatch.setattr(manifest, "VERIFIED", 0)
    mark, target = tmp_path / "ran", copied(pixels, tmp_path / "copy")
    evil = pickle.dumps(Evil(mark))
    item = struct.pack("<2I", len(evil), 8) + evil + struct.pack("<q", 0)
    shard = struct.pack("<3I", 1, 12, 12 + len(item)) + item
    (target / "train" / "chunk-0-0.bin").write_bytes(shard)
    index = json.loads((target / "train" / "index.json").read_text())
    index["config"]["data_format"] = ["pickle", "int"]
    index["chunks"] = [{"chunk_bytes": len(shard), "chunk_size": 1, "dim": None, "filename": "chunk-0-0.bin"}]
    (target / "train" / "index.json").write_text(json.dumps(index))
    about = json.loads((target / "pack.json").read_text())
    about["sha256"] = {}  # whoever plants a pickle can mend checksums
    about["images"] = {"train": 1}
    (target / "pack.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"index\.json names data of the form \['pickle', 'int'\]"):
        load_dataset("folder", target)
    assert not mark.exists()

    monkeypatch.setenv("HOME", str(tmp_path))
    from litdata import StreamingDataset

    StreamingDataset(str(target / "train"))[0]
    assert mark.exists(), "the planted pickle is one that runs"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_format": ["graph:pickle", "int"]}, "only"),
        ({"data_format": ["bytes", "int", "pickle"]}, "only"),
        ({"compression": "zstd"}, "uncompressed"),
        ({"encryption": {"algorithm": "fernet"}}, "uncompressed"),
        ({"item_loader": "ParquetLoader"}, "only"),
    ],
)
def test_an_index_of_another_form_is_refused(pixels, tmp_path, change, says):
    index = json.loads((pixels / "train" / "index.json").read_text())
    path = tmp_path / "index.json"
    path.write_text(json.dumps({**index, "config": {**index["config"], **change}}))
    with pytest.raises(UserError, match=says):
        read_index(path)


@pytest.mark.parametrize("name", ["../chunk.bin", "/etc/passwd", "a/b.bin", ".."])
def test_a_shard_elsewhere_is_refused(pixels, tmp_path, name):
    index = json.loads((pixels / "train" / "index.json").read_text())
    index["chunks"][0]["filename"] = name
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="it lists a shard"):
        read_index(path)


def test_an_item_that_claims_another_length_is_refused(jpegs, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "VERIFIED", 0)
    target = copied(jpegs, tmp_path / "copy")
    shard = target / "train" / "chunk-0-0.bin"
    data = bytearray(shard.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<I", data, first, 1 << 30)
    shard.write_bytes(data)
    mend_sum(target, shard)
    with pytest.raises(UserError, match="another length"):
        load_dataset("folder", target).splits["train"].raw(0)


def test_pixels_cut_to_squares_are_not_stretched(pixels, jpegs):
    stretched = EvalTransform(24, 32, squash=True)
    with pytest.raises(UserError, match="--format jpeg"):
        FromFiles(train_of(pixels), stretched, batch_size=4)
    with pytest.raises(UserError, match="--format jpeg"):
        decode_files(train_of(pixels), stretched)
    assert len(FromFiles(train_of(jpegs), stretched, batch_size=4)) == 8


def test_in_a_worker_batches_are_made_in_shared_memory(monkeypatch):
    monkeypatch.setattr(reader, "get_worker_info", lambda: object())
    made = reader._empty((2, 3))
    assert made.shape == (2, 3)
    assert made.is_shared()
    monkeypatch.setattr(reader, "get_worker_info", lambda: None)
    assert not reader._empty((2, 3)).is_shared()


def test_small_packed_data_is_kept_in_memory_like_any_other(pixels):
    source = load_dataset("folder", pixels)
    assert loader.fits_in_memory(source, 32)
    held = decode_files(source.splits["train"], PREPROCESS, Augment(crop="random"))
    assert isinstance(held, ImageArrays)
    assert not isinstance(source.splits["train"], ImageArrays)
    assert isinstance(source.splits["train"], ImageFiles)
    assert held.images.shape == (30, 3, 32, 32)
