"""Batches depend only on (seed, epoch, index), not on workers, history or memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import rng
from alexnet.data import image_folder, in_memory, loader
from alexnet.data.augment import BOX_DRAWS, Augment, augment, crop_box
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.in_memory import decode_files, fits_in_memory
from alexnet.data.loader import Batch, BatchLoader, Shard, batch_bounds, choose_workers
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError, WorkerDied

PREPROCESS = EvalTransform(16, 20)


def arrays(n: int = 10, side: int = 20) -> ImageArrays:
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageArrays(images, torch.arange(n), [f"train/{i}" for i in range(n)])


@pytest.fixture
def files(tmp_path) -> ImageFiles:
    """Eleven photographs of different shapes in two classes."""
    random = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / ("cat" if i < 6 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((40 + 3 * i, 60 - 2 * i)).save(path)
    return image_folder.scan_class_folders(tmp_path).splits["train"]


def same(left: list[Batch], right: list[Batch]) -> bool:
    pairs = [(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return len(left) > 0 and all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize(
    ("samples", "batch_size", "drop_last", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (9, 4, False, [4, 5]),
        (9, 4, True, [4, 4]),
        (8, 4, True, [4, 4]),
        (3, 4, True, [3]),
        (1, 4, False, [1]),
        (3, 1, False, [1, 1, 1]),
        (0, 4, False, []),
    ],
)
def test_batch_bounds(samples, batch_size, drop_last, sizes):
    bounds = batch_bounds(samples, batch_size, drop_last)
    assert [stop - start for start, stop in bounds] == sizes
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(sum(sizes)))


def test_an_empty_batch_size_is_rejected():
    with pytest.raises(UserError, match="not 0"):
        batch_bounds(5, 0)


# ── in memory ─────────────────────────────────────────────────────────────────────────────────────


def test_in_memory_evaluation_is_in_order():
    data = arrays()
    loader = BatchLoader(data, PREPROCESS, batch_size=4)
    batches = list(loader.batches(0))
    assert len(loader) == len(batches) == 3
    assert loader.samples == 10
    assert loader.device_augment is None
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([batch.images for batch in batches]), PREPROCESS.resize_batch(data.images))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), data.targets)


def test_a_fixed_order_is_that_of_the_first_epoch():
    options = {"batch_size": 3, "shuffle": True, "seed": 4}
    shuffled = BatchLoader(arrays(), PREPROCESS, Augment(), **options)
    fixed = BatchLoader(arrays(), PREPROCESS, Augment(), fixed_order=True, **options)
    first = [batch.ids.tolist() for batch in shuffled.batches(0)]
    assert [batch.ids.tolist() for batch in fixed.batches(0)] == first
    assert [batch.ids.tolist() for batch in fixed.batches(5)] == first
    assert [batch.ids.tolist() for batch in shuffled.batches(5)] != first


def test_shuffled_batches_can_start_anywhere():
    loader = BatchLoader(arrays(), PREPROCESS, Augment(crop="random"), batch_size=3, shuffle=True, seed=4)
    batches = list(loader.batches(2))
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.tolist() == rng.permutation(4, 2, 10).tolist()
    for batch in batches:
        assert torch.equal(batch.targets, batch.ids)
        assert torch.equal(batch.images, arrays().images[batch.ids])
    assert same(list(loader.batches(2, start=1)), batches[1:])
    assert list(loader.batches(2, start=3)) == []
    assert not same(list(loader.batches(3)), batches)


def test_in_memory_resizes_images_of_another_size():
    small = arrays(side=12)
    (batch,) = BatchLoader(small, PREPROCESS, batch_size=10).batches(0)
    assert batch.images.shape[-1] == 16
    (batch,) = BatchLoader(small, PREPROCESS, Augment(crop="random"), batch_size=10).batches(0)
    assert batch.images.shape[-1] == 20
    (batch,) = BatchLoader(small, PREPROCESS, Augment(crop="resized"), batch_size=10).batches(0)
    assert batch.images.shape[-1] == 12


def test_images_cropped_for_evaluation_cannot_be_trained_on(files):
    ready = decode_files(files, PREPROCESS)
    with pytest.raises(UserError, match="read them again"):
        BatchLoader(ready, PREPROCESS, Augment(crop="random"), batch_size=2)
    with pytest.raises(UserError, match="read them again"):
        BatchLoader(ready, EvalTransform(12), batch_size=2)


def test_in_memory_channels_must_match():
    with pytest.raises(UserError, match="3 channels and the preprocessing 1"):
        BatchLoader(arrays(), EvalTransform(16, channels=1, mean=(0.5,), std=(0.5,)), batch_size=2)


# ── from files ────────────────────────────────────────────────────────────────────────────────────


def test_evaluation_from_files_equals_memory_and_the_decoder(files):
    from_files = list(BatchLoader(files, PREPROCESS, batch_size=4).batches(0))
    assert same(
        from_files,
        list(BatchLoader(decode_files(files, PREPROCESS), PREPROCESS, batch_size=4).batches(0)),
    )
    assert torch.equal(from_files[1].images[2], PREPROCESS.eval_tensor(decode_image(files.paths[6])))
    assert torch.cat([batch.targets for batch in from_files]).tolist() == [0] * 6 + [1] * 5


@pytest.mark.parametrize("crop", ["random", "pad"])
def test_training_from_files_equals_memory(crop, files):
    cfg = Augment(crop=crop, flip=True)
    options = {"batch_size": 4, "shuffle": True, "seed": 3}
    from_files = BatchLoader(files, PREPROCESS, cfg, **options)
    assert from_files.device_augment == cfg
    in_memory = BatchLoader(decode_files(files, PREPROCESS, cfg), PREPROCESS, cfg, **options)
    assert same(list(from_files.batches(1)), list(in_memory.batches(1)))


def test_resized_crop_is_taken_from_the_full_image(files):
    cfg = Augment(crop="resized", flip=True)
    loader = BatchLoader(files, PREPROCESS, cfg, batch_size=4, shuffle=True, seed=3)
    assert loader.device_augment == Augment(crop="none", flip=True)
    for batch in loader.batches(5):
        assert batch.images.shape[1:] == (3, 16, 16)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for image, i in zip(batch.images, batch.ids.tolist(), strict=True):
            full = decode_image(files.paths[i])
            box = crop_box(*full.size, rng.uniform(3, 5, [i], "crop", BOX_DRAWS)[0], cfg.scale, cfg.ratio)
            assert torch.equal(image, PREPROCESS.resize_crop(np.array(full.crop(box))))
        flipped = augment(batch.images, batch.ids, 5, 3, loader.device_augment, 16)
        assert flipped.shape == batch.images.shape


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["resized", "random"])
def test_any_number_of_workers_gives_the_same_batches(crop, files):
    def batches(workers: int, start: int = 0) -> list[Batch]:
        options = {"batch_size": 3, "shuffle": True, "seed": 1, "workers": workers}
        return list(BatchLoader(files, PREPROCESS, Augment(crop=crop), **options).batches(2, start))

    state = torch.get_rng_state()
    alone = batches(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(batch.ids) for batch in alone] == [3, 3, 3, 2]
    assert same(batches(1), alone)
    assert same(batches(2), alone)
    assert same(batches(2, start=2), alone[2:])


@pytest.mark.slow
def test_a_crop_group_of_files_shares_the_box_of_its_first(files):
    batch, *_ = BatchLoader(files, PREPROCESS, Augment(crop="resized", crop_group=3), batch_size=6, seed=5).batches(2)
    draws = rng.uniform(5, 2, range(6), "crop", BOX_DRAWS)
    for i, image in enumerate(batch.images):
        full = decode_image(files.paths[i])
        box = crop_box(*full.size, draws[i // 3 * 3], (0.08, 1.0), (3 / 4, 4 / 3))
        assert torch.equal(image, PREPROCESS.resize_crop(np.array(full.crop(box))))


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(files):
    loader = BatchLoader(files, PREPROCESS, Augment(crop="resized"), batch_size=3, shuffle=True, seed=1, workers=1)
    alone = list(BatchLoader(files, PREPROCESS, Augment(crop="resized"), batch_size=3, shuffle=True, seed=1).batches(0))
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        assert same(list(loader.batches(0)), alone)
    finally:
        torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize(
    "raised",
    [
        ConnectionResetError(104, "reset"),
        FileNotFoundError("no socket"),
        EOFError(),
        RuntimeError("DataLoader worker 7"),
    ],
)
def test_a_worker_that_dies_while_sending_raises_reader_died(raised, files, monkeypatch):
    """Whichever way torch comes to know it, which depends on the moment; test_faults.py kills real ones."""

    def broken(loader):
        yield from ()
        raise raised

    monkeypatch.setattr(loader, "_defer_worker_errors", broken)
    with pytest.raises(WorkerDied):
        list(BatchLoader(files, PREPROCESS, batch_size=4, workers=1).batches(0))
    with pytest.raises(type(raised)):
        list(BatchLoader(files, PREPROCESS, batch_size=4, workers=0).batches(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_named(workers, files):
    files.paths[7].write_bytes(b"<html>")
    loader = BatchLoader(files, PREPROCESS, batch_size=4, workers=workers)
    with pytest.raises(BadImage, match=r"07\.png: it is not an image but a web page") as caught:
        list(loader.batches(0))
    assert "Traceback" not in str(caught.value)


# ── this machine ──────────────────────────────────────────────────────────────────────────────────


def test_the_default_number_of_workers_follows_the_cores(monkeypatch, tmp_path):
    for cores, expected in ((1, 0), (2, 2), (64, 16)):
        monkeypatch.setattr(loader, "cpu_count", lambda cores=cores: cores)
        assert choose_workers(None, 1, tmp_path) == (expected, None)
    assert choose_workers(3, 1, tmp_path) == (3, None)
    assert choose_workers(0, 1 << 60, tmp_path) == (0, None)
    assert choose_workers(5, 1 << 60, tmp_path / "macos") == (5, None)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # mounted read-only
    workers, sentence = choose_workers(4, 1, tmp_path)
    assert (workers, "is not writable" in (sentence or "")) == (0, True)


def test_little_shared_memory_reduces_the_workers_with_a_note(tmp_path):
    workers, sentence = choose_workers(4, 1 << 60, tmp_path)
    assert workers == 0
    assert "--shm-size" in sentence
    free = loader.shutil.disk_usage(tmp_path).free
    workers, sentence = choose_workers(4, free // 10, tmp_path)  # each may hold four batches
    assert workers in (1, 2)
    assert f"{workers} worker processes instead of 4" in sentence


def test_a_negative_number_of_workers_is_rejected():
    with pytest.raises(UserError, match="-1"):
        choose_workers(-1, 1)


def test_fits_in_memory(monkeypatch):
    names = [f"{i}" for i in range(1000)]
    source = ImageDataset("x", ("a", "b"), {"train": ImageFiles(Path(), names, torch.zeros(1000))}, channels=3)
    monkeypatch.setattr(in_memory, "free_memory", lambda: 64 << 30)
    assert fits_in_memory(source, 64)
    assert fits_in_memory(source, 846)  # 2 GiB are 1000 × 3 × 846²
    assert not fits_in_memory(source, 847)
    monkeypatch.setattr(in_memory, "free_memory", lambda: 40_000_000)
    assert not fits_in_memory(source, 64)
    assert fits_in_memory(ImageDataset("x", ("a",), {"train": arrays()}, 3), 4096)  # there already


# ── several processes ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 3, 10, 12])
@pytest.mark.parametrize("processes", [1, 2, 4, 5])
def test_shards_of_a_batch_are_consecutive_and_differ_by_at_most_one_row(n, processes):
    places = [Shard(number, processes).row_range(n) for number in range(processes)]
    assert [i for place in places for i in range(place.start, place.start + place.size)] == list(range(n))
    assert max(place.size for place in places) - min(place.size for place in places) <= 1
    assert {place.total for place in places} == {n}


@pytest.mark.parametrize("cfg", [Augment(crop="random", crop_group=4), Augment(crop="random", mixup=0.2)])
def test_processes_together_read_the_batches_of_one_process(cfg):
    """Eleven samples in batches of four: of three processes, one has no part of the last batch but one."""
    complete = BatchLoader(arrays(11), PREPROCESS, cfg, batch_size=4, shuffle=True, seed=4)
    shares = [Shard(number, 3) for number in range(3)]
    loaders = [BatchLoader(arrays(11), PREPROCESS, cfg, batch_size=4, shuffle=True, seed=4, shard=s) for s in shares]
    for full_batch, *parts in zip(complete.batches(1), *(part.batches(1) for part in loaders), strict=True):
        own = [slice(len(part.ids) - part.rows.size, None) for part in parts]
        assert torch.equal(torch.cat([p.ids[s] for p, s in zip(parts, own, strict=True)]), full_batch.ids)
        assert torch.equal(torch.cat([p.crop_ids[s] for p, s in zip(parts, own, strict=True)]), full_batch.crop_ids)
        for part in parts:
            extra = len(part.ids) - part.rows.size
            assert extra == (1 if cfg.mixup or not part.rows.size else 0)
            assert part.rows.total == len(full_batch.ids)
            if extra:  # the image that the first is mixed with: the one before it, or the last of all
                assert part.ids[0] == full_batch.ids[part.rows.start - 1]


def test_files_are_sharded_like_memory(files):
    cfg = Augment(crop="resized", mixup=0.2)
    share = Shard(1, 2)
    one = BatchLoader(files, PREPROCESS, cfg, batch_size=5, shuffle=True, seed=2, shard=share)
    two = BatchLoader(files, PREPROCESS, cfg, batch_size=5, shuffle=True, seed=2, workers=2, shard=share)
    complete = BatchLoader(files, PREPROCESS, cfg, batch_size=5, shuffle=True, seed=2)
    assert same(list(one.batches(3)), list(two.batches(3)))
    for part, full_batch in zip(one.batches(3), complete.batches(3), strict=True):
        rows = slice(part.row_range.start - 1, part.row_range.start + part.row_range.size)
        assert torch.equal(part.images, full_batch.images[rows])


def test_evaluation_is_sharded_by_complete_batches():
    complete = list(BatchLoader(arrays(11), PREPROCESS, batch_size=3).batches(0))
    found = []
    for number in range(3):
        loader = BatchLoader(arrays(11), PREPROCESS, batch_size=3)
        loader.shard_batches(Shard(number, 3))
        found.append(list(loader.batches(0)))
        assert loader.samples == sum(len(batch.ids) for batch in found[-1])
    assert same([found[0][0], found[1][0], found[2][0], found[0][1]], complete)


def test_processes_on_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(loader, "cpu_count", lambda: 8)
    assert choose_workers(None, 1)[0] == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_workers(None, 1)[0] == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert choose_workers(None, 1)[0] == 0
