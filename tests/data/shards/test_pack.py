"""Packing keeps what it was given, survives what may happen to it, and says what it could not do."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.cli import run
from alexnet.data.dataset import ImageArrays
from alexnet.data.datasets import load_dataset, load_for_evaluation
from alexnet.data.decode import decode_image, image_size
from alexnet.data.shards import manifest, writer
from alexnet.data.shards import pack as pack_module
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.shards.reader import WORK
from alexnet.data.statistics import compute_statistics
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.training.api import train
from alexnet.training.progress import Silent
from helpers import make_image, make_image_folder


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """24 pictures in train/, nine in test/."""
    make_image_folder(tmp_path / "divided" / "train")
    return make_image_folder(tmp_path / "divided" / "test", count=3).parent


def stored(data: Path, split: str = "train") -> list:
    part = open_packed(data).splits[split]
    return [part.raw(i) for i in range(len(part))]


def files_of(data: Path) -> dict[str, bytes]:
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────


def test_splits_names_classes_and_order_are_those_of_the_folder(divided, tmp_path):
    done = pack_dataset(divided, tmp_path / "packed")
    theirs = load_dataset("folder", divided, seed=4)
    ours = load_dataset("folder", tmp_path / "packed", seed=4)
    assert done["images"] == {"train": 24, "test": 9}
    assert ours.classes == theirs.classes
    assert ours.held_out == theirs.held_out == ("val",)
    for split in ("train", "val", "test"):
        assert ours.splits[split].names == theirs.splits[split].names
        assert torch.equal(ours.splits[split].targets, theirs.splits[split].targets)
    assert ours.split_rows == theirs.split_rows
    again = load_dataset("folder", tmp_path / "packed", seed=9, split=theirs.split_rows)
    assert again.splits["val"].names == theirs.splits["val"].names


def test_copies_of_a_file_stay_on_one_side(image_folder, tmp_path):
    for i in range(6):
        shutil.copyfile(image_folder / "sky" / "0.jpg", image_folder / "sky" / f"copy{i}.jpg")
    pack_dataset(image_folder, tmp_path / "packed", kind="uint8", size=16)
    for seed in range(3):
        theirs, ours = (load_dataset("folder", data, seed=seed) for data in (image_folder, tmp_path / "packed"))
        assert theirs.splits["val"].names == ours.splits["val"].names


def test_the_short_side_is_shrunk_and_never_enlarged(image_folder, tmp_path):
    make_image(image_folder / "sky" / "large.png", 2, 7, size=(120, 90))
    pack_dataset(image_folder, tmp_path / "a", size=50)
    part = open_packed(tmp_path / "a").splits["train"]
    sizes = {name: image_size(part.raw(i)) for i, name in enumerate(part.names)}
    assert sizes.pop("sky/large.png") == (66, 50)
    assert set(sizes.values()) == {(40, 36)}
    pack_dataset(image_folder, tmp_path / "b", kind="uint8", size=50)
    assert {picture.shape for picture in stored(tmp_path / "b")} == {(50, 50, 3)}


def test_small_pictures_keep_their_size_unless_told(image_folder, tmp_path):
    done = pack_dataset(image_folder, tmp_path / "packed", kind="uint8")
    assert done["form"] == {"kind": "uint8", "side": 36, "channels": 3, "quality": None}


def test_originals_are_kept_to_the_byte(image_folder, tmp_path):
    make_image(image_folder / "sky" / "z.png", 2, 7)
    done = pack_dataset(image_folder, tmp_path / "packed", size="original", quality=75)
    part = open_packed(tmp_path / "packed").splits["train"]
    for i, name in enumerate(part.names):
        if name.endswith(".jpg"):
            assert part.raw(i) == (image_folder / name).read_bytes()
        else:
            assert part.raw(i).startswith(b"\xff\xd8")
            assert image_size(part.raw(i)) == (40, 36)
    assert done["statistics"] is None


def test_large_files_are_cut_into_shards_by_their_bytes(divided, tmp_path, monkeypatch):
    """Of many small ones the shards, and the key by which a packing goes on, are those of counting."""
    monkeypatch.setattr(pack_module, "_AT_LEAST", 1)
    pack_dataset(divided, tmp_path / "counted", size="original")
    before = json.loads((tmp_path / "counted" / "pack.json").read_text())
    sizes = [path.stat().st_size for path in (divided / "train").rglob("*.jpg")]
    monkeypatch.setattr(pack_module, "_SHARD_FILES", 5 * max(sizes))
    done = pack_dataset(divided, tmp_path / "packed", size="original")
    assert done["shards"] >= 6
    assert done["key"] != before["key"]
    assert stored(tmp_path / "packed") == stored(tmp_path / "counted")
    for path in (tmp_path / "packed" / "train").glob("*.bin"):
        assert path.stat().st_size < 5 * max(sizes) + 1000
    assert pack_dataset(divided, tmp_path / "packed", size="original")["resumed"]
    assert (
        pack_dataset(divided, tmp_path / "small", size=32)["shards"] == 2
    )  # pictures of at most 256 pixels are counted
    monkeypatch.setattr(pack_module, "_SHARD_FILES", sum(sizes))
    assert pack_dataset(divided, tmp_path / "all", size="original")["key"] == before["key"]


def test_a_shard_too_large_for_its_index_is_refused(divided, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_MOST", 1000)
    with pytest.raises(UserError, match=r"litdata counts to 4.*--size"):
        pack_dataset(divided, tmp_path / "packed")


def test_quality_decides_the_size(image_folder, tmp_path):
    sizes = [pack_dataset(image_folder, tmp_path / str(q), quality=q)["bytes"] for q in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.6 * sizes[2]


def test_pictures_are_put_upright(image_folder, tmp_path):
    picture = Image.open(image_folder / "sky" / "0.jpg")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(image_folder / "sky" / "0.jpg", exif=exif)
    pack_dataset(image_folder, tmp_path / "packed")
    part = open_packed(tmp_path / "packed").splits["train"]
    assert image_size(part.raw(part.names.index("sky/0.jpg"))) == (36, 40)


def test_statistics_are_those_that_are_measured(divided, tmp_path):
    for name, kind in (("p", "uint8"), ("j", "jpeg")):
        pack_dataset(divided, tmp_path / name, kind=kind, size=32)
    geometry = EvalTransform(28, 32)
    theirs = compute_statistics(load_dataset("folder", divided, hold_out=False).splits["train"], geometry)
    for name in ("p", "j"):
        part = load_dataset("folder", tmp_path / name, hold_out=False).splits["train"]
        ours = compute_statistics(part, geometry)
        assert torch.equal(ours.mean_image, theirs.mean_image)
        assert np.allclose(ours.covariance, theirs.covariance, rtol=1e-12)
    other = compute_statistics(part, EvalTransform(20, 24))  # of another size they are measured
    assert other.mean_image.shape == (3, 24, 24)
    some = part.take(np.arange(10))
    assert not torch.equal(compute_statistics(some, geometry).mean_image, theirs.mean_image)


def test_decoded_sets_are_packed_as_they_are(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 20)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = np.array([2051, count, 28, 28], ">u4").tobytes()
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">u4").tobytes() + labels.tobytes())
    done = pack_dataset(folder, tmp_path / "packed", kind="uint8")
    assert done["form"]["side"] == 28
    assert done["form"]["channels"] == 1
    theirs = load_dataset("fashion-mnist", folder, seed=1)
    ours = load_dataset("fashion-mnist", tmp_path / "packed", seed=1)
    assert (ours.channels, ours.classes) == (1, theirs.classes)
    for split in ("train", "val", "test"):
        kept, given = ours.splits[split], theirs.splits[split]
        assert isinstance(given, ImageArrays)
        assert kept.names == given.names
        assert np.array_equal(kept.raw(3)[..., 0], given.images[3, 0].numpy())


def test_archives_and_tables_of_labels_are_packed(image_folder, tmp_path):
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(image_folder, "pictures")
    assert pack_dataset(tmp_path / "pictures.tar", tmp_path / "a")["images"] == {"train": 24}
    labels = tmp_path / "labels.csv"
    rows = [(path.relative_to(tmp_path).as_posix(), f"x{i % 2}") for i, path in enumerate(image_folder.rglob("*.jpg"))]
    labels.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    done = pack_dataset(image_folder.parent, tmp_path.with_name(tmp_path.name + "-b"), labels=labels)
    assert done["classes"] == ["x0", "x1"]


def test_a_test_set_alone_is_packed_for_evaluation(divided, tmp_path):
    shutil.rmtree(divided / "train")
    pack_dataset(divided, tmp_path / "packed")
    source = load_for_evaluation("folder", tmp_path / "packed")
    assert {split: len(part) for split, part in source.splits.items()} == {"test": 9}
    with pytest.raises(UserError, match="without a train/"):
        load_dataset("folder", tmp_path / "packed")


# ── what may happen ───────────────────────────────────────────────────────────────────────────────────────────


def test_pictures_that_cannot_be_read_are_listed_and_left_out(divided, tmp_path, capsys):
    (divided / "train" / "sky" / "0.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (divided / "test" / "sky" / "1.jpg").write_bytes(b"")
    (divided / "test" / "sky" / "2.jpg").unlink()
    (divided / "test" / "sky" / "2.jpg").symlink_to("nowhere")
    assert run(["pack", str(divided), str(tmp_path / "packed"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["failed"] == 3
    assert done["images"] == {"train": 23, "test": 7}
    with open(tmp_path / "packed" / "failed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["split"]) for row in rows] == [
        ("train/sky/0.jpg", "train"), ("test/sky/1.jpg", "test"), ("test/sky/2.jpg", "test"),
    ]  # fmt: skip
    assert "cut short" in rows[0]["reason"]
    source = load_dataset("folder", tmp_path / "packed")
    assert "train/sky/0.jpg" not in source.splits["train"].names + source.splits["val"].names
    assert "3 pictures could not be read" in source.notes[0]


@pytest.mark.parametrize(
    ("shape", "words", "reason"),
    [
        ((66_000, 20), {"size": "original"}, "no JPEG can be 66000×20 pixels"),
        ((66_000, 20), {"size": 20}, "no JPEG can be 66000×20 pixels"),
        ((1, 60_000), {"kind": "uint8", "size": 256}, "256×15360000 pixels"),
        ((60_000, 1), {"size": 256}, "15360000×256 pixels"),
    ],
)
def test_a_picture_of_an_extreme_shape_stops_nothing(divided, tmp_path, shape, words, reason):
    """Resized whole, the last two would take 12 GB."""
    Image.new("RGB", shape).save(divided / "train" / "sky" / "strip.png")
    done = pack_dataset(divided, tmp_path / "packed", **words)
    assert (done["failed"], done["images"]["train"]) == (1, 24)
    with open(tmp_path / "packed" / "failed.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == "train/sky/strip.png"
    assert reason in row["reason"]


def test_a_class_that_lost_all_pictures_can_be_packed_but_not_learnt(divided, tmp_path):
    for path in (divided / "train" / "sky").iterdir():
        path.write_bytes(b"no")
    assert pack_dataset(divided, tmp_path / "packed")["failed"] == 8
    with pytest.raises(UserError, match=r"no picture of class 'sky'.*failed\.csv"):
        load_dataset("folder", tmp_path / "packed")
    assert len(load_for_evaluation("folder", tmp_path / "packed").splits["test"]) == 9


def test_nothing_readable_is_an_error(image_folder, tmp_path):
    for path in image_folder.rglob("*.jpg"):
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="None of the 24 pictures"):
        pack_dataset(image_folder, tmp_path / "packed", size=32)


def test_stopped_anywhere_it_goes_on_to_the_same_files(divided, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    pack_dataset(divided, whole, kind="uint8")
    write, put, target = pack_module.write_shard, writer.put, tmp_path / "packed"
    calls = {"write_shard": 0, "put": 0}

    def stop(name, original, after):
        def call(*args):
            calls[name] += 1
            if calls[name] > after:
                raise KeyboardInterrupt
            return original(*args)

        return call

    for after in (0, 3):  # before the first, after three more
        calls["write_shard"] = 0
        monkeypatch.setattr(pack_module, "write_shard", stop("write_shard", write, after))
        with pytest.raises(KeyboardInterrupt):
            pack_dataset(divided, target, kind="uint8")
        with pytest.raises(UserError, match="is not finished"):
            load_dataset("folder", target)
    monkeypatch.setattr(pack_module, "write_shard", write)
    calls["put"] = 0  # between a shard and its facts
    monkeypatch.setattr(writer, "put", stop("put", put, 2))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(divided, target, kind="uint8")
    monkeypatch.setattr(writer, "put", put)
    calls["put"] = 0  # as the tables are written
    monkeypatch.setattr(manifest, "put", stop("put", put, 3))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(divided, target, kind="uint8")
    monkeypatch.setattr(manifest, "put", put)
    made = []
    monkeypatch.setattr(pack_module, "write_shard", lambda task: made.append(task) or write(task))
    done = pack_dataset(divided, target, kind="uint8")
    assert done["resumed"]
    assert made == []  # all shards were there
    assert files_of(target) == files_of(whole)
    assert not (target / WORK).exists()


def test_shards_whose_facts_are_torn_are_made_again(divided, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    monkeypatch.setattr(pack_module, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(divided, target)
    monkeypatch.undo()
    facts = target / WORK / "train-1.npz"
    facts.write_bytes(facts.read_bytes()[:-50])
    (target / "train" / "chunk-0-2.bin").write_bytes(b"")
    pack_dataset(divided, target)
    pack_dataset(divided, tmp_path / "whole")
    assert files_of(target) == files_of(tmp_path / "whole")


def test_given_again_it_does_nothing_or_mends(divided, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    pack_dataset(divided, target)
    before = files_of(target)
    made, write = [], pack_module.write_shard
    monkeypatch.setattr(pack_module, "write_shard", lambda task: made.append(task) or write(task))
    assert pack_dataset(divided, target)["resumed"]
    assert made == []
    shard = target / "train" / "chunk-0-2.bin"
    shard.write_bytes(b"\0" * 100)
    (target / "test" / "chunk-0-0.bin").unlink()
    pack_dataset(divided, target)
    assert len(made) == 2
    assert files_of(target) == before
    (target / "train" / "samples.parquet").write_bytes(b"no")
    pack_dataset(divided, target)
    assert files_of(target) == before


def test_stopped_as_it_begins_to_mend_it_goes_on(divided, tmp_path, monkeypatch):
    target, unlink = tmp_path / "packed", Path.unlink
    pack_dataset(divided, target)
    before = files_of(target)
    (target / "train" / "samples.parquet").write_bytes(b"no")

    def stopped(path, **words):
        unlink(path, **words)
        if path.name == "pack.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(divided, target)
    monkeypatch.undo()
    pack_dataset(divided, target)
    assert files_of(target) == before


def test_mending_from_changed_pictures_is_refused(divided, tmp_path):
    target = tmp_path / "packed"
    pack_dataset(divided, target)
    (target / "train" / "chunk-0-0.bin").unlink()
    make_image(divided / "train" / "apple" / "0.jpg", 1, 99)
    with pytest.raises(UserError, match="have changed since"):
        pack_dataset(divided, target)


def test_other_words_for_the_same_folder_are_refused(divided, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    pack_dataset(divided, target)
    with pytest.raises(UserError, match="holds another packed data set"):
        pack_dataset(divided, target, quality=80)
    shutil.rmtree(target)
    monkeypatch.setattr(pack_module, "write_shard", lambda task: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(divided, target)
    monkeypatch.undo()
    make_image(divided / "train" / "sky" / "new.jpg", 2, 5)
    with pytest.raises(UserError, match="unfinished packing.*other pictures"):
        pack_dataset(divided, target)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "none"], "neither a number of pixels"),
        (["--size", "0"], "neither a number of pixels"),
        (["--size", "original", "--format", "uint8"], "squares of one size"),
        (["--quality", "0"], "from 1 to 100"),
        (["--workers", "0"], "by 0 processes"),
        (["--format", "png"], "png"),
    ],
)
def test_words_that_make_no_sense(divided, tmp_path, capsys, words, says):
    assert run(["pack", str(divided), str(tmp_path / "packed"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_folders_that_cannot_be_packed_into(divided, tmp_path):
    pack_dataset(divided, tmp_path / "packed")
    with pytest.raises(UserError, match="is packed already"):
        pack_dataset(tmp_path / "packed", tmp_path / "again")
    for inside in (divided / "packed", divided, divided.parent):
        with pytest.raises(UserError, match="lie in each other"):
            pack_dataset(divided, inside)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        pack_dataset(divided, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        pack_dataset(divided, tmp_path / "full")
    with pytest.raises(UserError, match="There is no folder"):
        pack_dataset(tmp_path / "nowhere", tmp_path / "new")


def test_a_disk_that_is_too_small_or_full_is_told(divided, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="0.0 GB free"):
        pack_dataset(divided, tmp_path / "a", kind="uint8")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\).*goes on"):
        pack_dataset(divided, tmp_path / "b")
    monkeypatch.undo()
    pack_dataset(divided, tmp_path / "b")
    assert len(stored(tmp_path / "b")) == 24


def test_without_litdata_it_says_what_to_install(divided, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[scale\]'"):
        pack_dataset(divided, tmp_path / "packed")


def test_litdata_of_another_layout_is_noticed(divided, tmp_path, monkeypatch):
    from litdata.streaming.writer import BinaryWriter

    written = BinaryWriter.write_chunk_to_file
    monkeypatch.setattr(BinaryWriter, "write_chunk_to_file", lambda self, data, *a, **k: written(self, b"x" + data, *a))
    with pytest.raises(RuntimeError, match="shards of another kind"):
        pack_dataset(divided, tmp_path / "packed")


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_processes_make_the_same_files_and_killed_ones_are_told(divided, tmp_path, monkeypatch):
    pack_dataset(divided, tmp_path / "alone")
    monkeypatch.setattr(pack_module, "_WORTH_A_PROCESS", 1)
    pack_dataset(divided, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "alone")

    def kill_workers(done: int, total: int, what: str) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(UserError, match="was killed"):
        pack_dataset(divided, tmp_path / "killed", workers=2, progress=kill_workers)
    pack_dataset(divided, tmp_path / "killed", workers=1)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "alone")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_outright_it_leaves_no_process_and_goes_on(divided, tmp_path):
    target = tmp_path / "packed"
    code = (
        "import sys; from pathlib import Path; from alexnet.data import pack as p; p._WORTH_A_PROCESS = 1\n"
        "if __name__ == '__main__': p.pack(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(divided), str(target)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((target / WORK).glob("*.npz")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while left := [p for p in _session(process.pid) if p != process.pid]:
        assert time.monotonic() < deadline, f"{left} live on"
        time.sleep(0.05)
    pack_dataset(divided, target)
    pack_dataset(divided, tmp_path / "whole")
    assert files_of(target) == files_of(tmp_path / "whole")


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


# ── training on it ────────────────────────────────────────────────────────────────────────────────────────────


def test_packed_pixels_train_exactly_as_the_folder_does(divided, tmp_path, monkeypatch):
    """Pictures that are squares already, so that there is nothing to resize."""
    for i, path in enumerate(sorted(divided.rglob("*.jpg"))):
        path.unlink()
        make_image(path.with_suffix(".png"), i % 3, i, size=(32, 32))
    pack_dataset(divided, tmp_path / "packed", kind="uint8")
    settings = {
        "arch": "cifar", "width": 0.1, "epochs": 2, "batch_size": 8, "crop": "random", "crop_pct": 28 / 32,
        "image_size": 28, "flip": True, "dropout": 0.0, "progress": Silent(), "limit_steps": 4, "workers": 0,
    }  # fmt: skip
    in_memory = train("folder", data=divided, out=tmp_path / "a", **settings)
    from_memory = train("folder", data=tmp_path / "packed", out=tmp_path / "b", **settings)
    monkeypatch.setattr("alexnet.data.loader.MAX_IN_MEMORY", 0)
    mapped = train("folder", data=tmp_path / "packed", out=tmp_path / "c", **settings)
    losses = [
        json.loads(Path(r.run, "metrics.jsonl").read_text().splitlines()[0]) for r in (in_memory, from_memory, mapped)
    ]
    assert losses[0]["train_loss"] == losses[1]["train_loss"] == losses[2]["train_loss"]
    assert losses[0]["val_loss"] == losses[1]["val_loss"] == losses[2]["val_loss"]


def test_pixels_are_those_of_evaluation(divided, tmp_path):
    pack_dataset(divided, tmp_path / "packed", kind="uint8", size=30)
    part = open_packed(tmp_path / "packed").splits["test"]
    for i in (0, 8):
        picture = decode_image(divided / part.names[i])
        assert np.array_equal(part.raw(i).transpose(2, 0, 1), EvalTransform(30).eval_array(picture))
