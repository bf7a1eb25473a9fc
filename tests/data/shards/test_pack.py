"""Packing preserves images and splits, resumes and repairs after interruptions, and reports what it skips."""

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
from alexnet.data.dataset import BadFiles, ImageArrays
from alexnet.data.datasets import load_dataset, load_for_evaluation
from alexnet.data.decode import decode_image, image_size
from alexnet.data.recognize import WORK
from alexnet.data.shards import manifest, writer
from alexnet.data.shards import pack as pack_module
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.statistics import compute_statistics
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.progress import Silent
from alexnet.training.api import train
from forks import fork_context
from helpers import make_image, make_image_folder


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """24 images in train/, nine in test/."""
    make_image_folder(tmp_path / "split_folder" / "train")
    return make_image_folder(tmp_path / "split_folder" / "test", count=3).parent


def stored_images(data: Path, split: str = "train") -> list:
    part = open_packed(data).splits[split]
    return [part.raw(i) for i in range(len(part))]


def read_files(data: Path) -> dict[str, bytes]:
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}


# ── contents ──────────────────────────────────────────────────────────────────────────────────────


def test_splits_names_classes_and_order_match_the_folder(split_folder, tmp_path):
    done = pack_dataset(split_folder, tmp_path / "packed")
    theirs = load_dataset("folder", split_folder, seed=4)
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


def test_copies_of_a_file_stay_in_one_split(image_folder, tmp_path):
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
    assert {image.shape for image in stored_images(tmp_path / "b")} == {(50, 50, 3)}


def test_small_images_keep_their_size_by_default(image_folder, tmp_path):
    done = pack_dataset(image_folder, tmp_path / "packed", kind="uint8")
    assert done["form"] == {"kind": "uint8", "side": 36, "channels": 3, "quality": None}


def test_originals_are_stored_byte_for_byte(image_folder, tmp_path):
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


def test_large_files_are_split_into_shards_by_bytes(split_folder, tmp_path, monkeypatch):
    """For many small files the shards, and the key for resuming, are the same as without a limit on bytes."""
    monkeypatch.setattr(pack_module, "_MIN_SHARDS", 1)
    pack_dataset(split_folder, tmp_path / "counted", size="original")
    before = json.loads((tmp_path / "counted" / "pack.json").read_text())
    sizes = [path.stat().st_size for path in (split_folder / "train").rglob("*.jpg")]
    monkeypatch.setattr(pack_module, "_MAX_SOURCE_BYTES", 5 * max(sizes))
    done = pack_dataset(split_folder, tmp_path / "packed", size="original")
    assert done["shards"] >= 6
    assert done["key"] != before["key"]
    assert stored_images(tmp_path / "packed") == stored_images(tmp_path / "counted")
    for path in (tmp_path / "packed" / "train").glob("*.bin"):
        assert path.stat().st_size < 5 * max(sizes) + 1000
    assert pack_dataset(split_folder, tmp_path / "packed", size="original")["resumed"]
    assert (
        pack_dataset(split_folder, tmp_path / "small", size=32)["shards"] == 2
    )  # no limit on bytes for images of at most 256 pixels
    monkeypatch.setattr(pack_module, "_MAX_SOURCE_BYTES", sum(sizes))
    assert pack_dataset(split_folder, tmp_path / "all", size="original")["key"] == before["key"]


def test_a_shard_too_large_for_its_index_is_refused(split_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_MAX_SHARD_BYTES", 1000)
    with pytest.raises(UserError, match=r"litdata's limit is 4.*--size"):
        pack_dataset(split_folder, tmp_path / "packed")


def test_quality_determines_the_size(image_folder, tmp_path):
    sizes = [pack_dataset(image_folder, tmp_path / str(q), quality=q)["bytes"] for q in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.6 * sizes[2]


def test_exif_orientation_is_applied(image_folder, tmp_path):
    image = Image.open(image_folder / "sky" / "0.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(image_folder / "sky" / "0.jpg", exif=exif)
    pack_dataset(image_folder, tmp_path / "packed")
    part = open_packed(tmp_path / "packed").splits["train"]
    assert image_size(part.raw(part.names.index("sky/0.jpg"))) == (36, 40)


def test_statistics_equal_measured_ones(split_folder, tmp_path):
    for name, kind in (("p", "uint8"), ("j", "jpeg")):
        pack_dataset(split_folder, tmp_path / name, kind=kind, size=32)
    geometry = EvalTransform(28, 32)
    theirs = compute_statistics(load_dataset("folder", split_folder, hold_out=False).splits["train"], geometry)
    for name in ("p", "j"):
        part = load_dataset("folder", tmp_path / name, hold_out=False).splits["train"]
        ours = compute_statistics(part, geometry)
        assert torch.equal(ours.mean_image, theirs.mean_image)
        assert np.allclose(ours.covariance, theirs.covariance, rtol=1e-12)
    other = compute_statistics(part, EvalTransform(20, 24))  # measured anew for another size
    assert other.mean_image.shape == (3, 24, 24)
    some = part.take(np.arange(10))
    assert not torch.equal(compute_statistics(some, geometry).mean_image, theirs.mean_image)


def test_decoded_datasets_are_packed_unchanged(tmp_path):
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


def test_archives_and_label_tables_are_packed(image_folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(image_folder, "images")
    assert pack_dataset(tmp_path / "images.tar", tmp_path / "a")["images"] == {"train": 24}
    labels = tmp_path / "labels.csv"
    rows = [(path.relative_to(tmp_path).as_posix(), f"x{i % 2}") for i, path in enumerate(image_folder.rglob("*.jpg"))]
    labels.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    done = pack_dataset(image_folder.parent, tmp_path.with_name(tmp_path.name + "-b"), labels=labels)
    assert done["classes"] == ["x0", "x1"]


def test_a_test_split_alone_is_packed_for_evaluation(split_folder, tmp_path):
    shutil.rmtree(split_folder / "train")
    pack_dataset(split_folder, tmp_path / "packed")
    source = load_for_evaluation("folder", tmp_path / "packed")
    assert {split: len(part) for split, part in source.splits.items()} == {"test": 9}
    with pytest.raises(UserError, match="without a train/"):
        load_dataset("folder", tmp_path / "packed")


# ── errors, interruptions and repair ──────────────────────────────────────────────────────────────


def test_unreadable_images_are_listed_and_skipped(split_folder, tmp_path, capsys):
    (split_folder / "train" / "sky" / "0.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    (split_folder / "test" / "sky" / "1.jpg").write_bytes(b"")
    (split_folder / "test" / "sky" / "2.jpg").unlink()
    (split_folder / "test" / "sky" / "2.jpg").symlink_to("nowhere")
    assert run(["pack", str(split_folder), str(tmp_path / "packed"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["failed"] == 3
    assert done["images"] == {"train": 23, "test": 7}
    with open(tmp_path / "packed" / "failed.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["split"]) for row in rows] == [
        ("train/sky/0.jpg", "train"), ("test/sky/1.jpg", "test"), ("test/sky/2.jpg", "test"),
    ]  # fmt: skip
    assert "cut short" in rows[0]["reason"]
    source = load_dataset("folder", tmp_path / "packed")
    assert "train/sky/0.jpg" not in source.splits["train"].names + source.splits["val"].names
    assert "3 images could not be read" in source.notes[0]


@pytest.mark.parametrize(
    ("shape", "settings", "reason"),
    [
        ((66_000, 20), {"size": "original"}, "no JPEG can be 66000×20 pixels"),
        ((66_000, 20), {"size": 20}, "no JPEG can be 66000×20 pixels"),
        ((1, 60_000), {"kind": "uint8", "size": 256}, "256×15360000 pixels"),
        ((60_000, 1), {"size": 256}, "15360000×256 pixels"),
    ],
)
def test_an_image_of_extreme_shape_is_skipped(split_folder, tmp_path, shape, settings, reason):
    """Resized completely, the last two would take 12 GB."""
    Image.new("RGB", shape).save(split_folder / "train" / "sky" / "strip.png")
    done = pack_dataset(split_folder, tmp_path / "packed", **settings)
    assert (done["failed"], done["images"]["train"]) == (1, 24)
    with open(tmp_path / "packed" / "failed.csv", newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == "train/sky/strip.png"
    assert reason in row["reason"]


def test_a_class_without_readable_images_is_packed_and_left_out_of_training_on_request(split_folder, tmp_path):
    for path in (split_folder / "train" / "sky").iterdir():
        path.write_bytes(b"no")
    done = pack_dataset(split_folder, tmp_path / "packed")
    assert (done["failed"], done["unreadable_classes"]) == (8, ["sky"])
    with pytest.raises(BadFiles, match=r"packed \(1\): sky; .* --skip-bad") as caught:
        load_dataset("folder", tmp_path / "packed")
    found = load_dataset("folder", tmp_path / "packed", bad=caught.value.bad)
    assert len(found.classes) == 2
    assert "sky" not in found.classes
    assert not any("/sky/" in name for part in found.splits.values() for name in part.names)
    assert found.bad[-1] == ("sky/", "none of the training images of this class can be read")
    assert {reason for _, reason in found.bad[:-1]} == {"the training images of its class cannot be read"}
    assert len(load_for_evaluation("folder", tmp_path / "packed").splits["test"]) == 9


def test_no_readable_image_is_an_error(image_folder, tmp_path):
    for path in image_folder.rglob("*.jpg"):
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="None of the 24 images"):
        pack_dataset(image_folder, tmp_path / "packed", size=32)


def test_an_interrupted_packing_resumes_to_the_same_files(split_folder, tmp_path, monkeypatch):
    complete = tmp_path / "complete"
    pack_dataset(split_folder, complete, kind="uint8")
    write, atomic_write, target = pack_module.write_shard, writer.atomic_write, tmp_path / "packed"
    calls = {"write_shard": 0, "atomic_write": 0}

    def interrupt(name, original, after):
        def call(*args):
            calls[name] += 1
            if calls[name] > after:
                raise KeyboardInterrupt
            return original(*args)

        return call

    for after in (0, 3):  # before the first, after three more
        calls["write_shard"] = 0
        monkeypatch.setattr(pack_module, "write_shard", interrupt("write_shard", write, after))
        with pytest.raises(KeyboardInterrupt):
            pack_dataset(split_folder, target, kind="uint8")
        with pytest.raises(UserError, match="is not finished"):
            load_dataset("folder", target)
    monkeypatch.setattr(pack_module, "write_shard", write)
    calls["atomic_write"] = 0  # between a shard and its record
    monkeypatch.setattr(writer, "atomic_write", interrupt("atomic_write", atomic_write, 2))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(split_folder, target, kind="uint8")
    monkeypatch.setattr(writer, "atomic_write", atomic_write)
    calls["write_bytes"], write_bytes = 0, manifest.write_bytes  # while the tables are written
    monkeypatch.setattr(manifest, "write_bytes", interrupt("write_bytes", write_bytes, 3))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(split_folder, target, kind="uint8")
    monkeypatch.setattr(manifest, "write_bytes", write_bytes)
    made = []
    monkeypatch.setattr(pack_module, "write_shard", lambda task: made.append(task) or write(task))
    done = pack_dataset(split_folder, target, kind="uint8")
    assert done["resumed"]
    assert made == []  # all shards were finished
    assert read_files(target) == read_files(complete)
    assert not (target / WORK).exists()


def test_shards_with_damaged_records_are_rewritten(split_folder, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    monkeypatch.setattr(pack_module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(split_folder, target)
    monkeypatch.undo()
    result = target / WORK / "train-1.npz"
    result.write_bytes(result.read_bytes()[:-50])
    (target / "train" / "chunk-0-2.bin").write_bytes(b"")
    pack_dataset(split_folder, target)
    pack_dataset(split_folder, tmp_path / "complete")
    assert read_files(target) == read_files(tmp_path / "complete")


def test_rerunning_does_nothing_or_repairs(split_folder, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    pack_dataset(split_folder, target)
    before = read_files(target)
    made, write = [], pack_module.write_shard
    monkeypatch.setattr(pack_module, "write_shard", lambda task: made.append(task) or write(task))
    assert pack_dataset(split_folder, target)["resumed"]
    assert made == []
    shard = target / "train" / "chunk-0-2.bin"
    shard.write_bytes(b"\0" * 100)
    (target / "test" / "chunk-0-0.bin").unlink()
    pack_dataset(split_folder, target)
    assert len(made) == 2
    assert read_files(target) == before
    (target / "train" / "samples.parquet").write_bytes(b"no")
    pack_dataset(split_folder, target)
    assert read_files(target) == before


def test_an_interrupted_repair_resumes(split_folder, tmp_path, monkeypatch):
    target, unlink = tmp_path / "packed", Path.unlink
    pack_dataset(split_folder, target)
    before = read_files(target)
    (target / "train" / "samples.parquet").write_bytes(b"no")

    def stopped(path, **options):
        unlink(path, **options)
        if path.name == "pack.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(split_folder, target)
    monkeypatch.undo()
    pack_dataset(split_folder, target)
    assert read_files(target) == before


def test_repairing_from_changed_images_is_refused(split_folder, tmp_path):
    target = tmp_path / "packed"
    pack_dataset(split_folder, target)
    (target / "train" / "chunk-0-0.bin").unlink()
    make_image(split_folder / "train" / "apple" / "0.jpg", 1, 99)
    with pytest.raises(UserError, match="have changed since"):
        pack_dataset(split_folder, target)


def test_other_arguments_for_the_same_folder_are_refused(split_folder, tmp_path, monkeypatch):
    target = tmp_path / "packed"
    pack_dataset(split_folder, target)
    with pytest.raises(UserError, match="contains another packed dataset"):
        pack_dataset(split_folder, target, quality=80)
    shutil.rmtree(target)
    monkeypatch.setattr(pack_module, "write_shard", lambda task: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(split_folder, target)
    monkeypatch.undo()
    make_image(split_folder / "train" / "sky" / "new.jpg", 2, 5)
    with pytest.raises(UserError, match="unfinished packing.*other images"):
        pack_dataset(split_folder, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "none"], "neither a number of pixels"),
        (["--size", "0"], "neither a number of pixels"),
        (["--size", "original", "--format", "uint8"], "squares of one size"),
        (["--quality", "0"], "between 1 and 100"),
        (["--workers", "0"], "--workers is 0"),
        (["--format", "png"], "png"),
    ],
)
def test_invalid_arguments(split_folder, tmp_path, capsys, arguments, message):
    assert run(["pack", str(split_folder), str(tmp_path / "packed"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_invalid_targets(split_folder, tmp_path):
    pack_dataset(split_folder, tmp_path / "packed")
    with pytest.raises(UserError, match="is already packed"):
        pack_dataset(tmp_path / "packed", tmp_path / "again")
    for inside in (split_folder / "packed", split_folder, split_folder.parent):
        with pytest.raises(UserError, match="contains the other"):
            pack_dataset(split_folder, inside)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        pack_dataset(split_folder, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        pack_dataset(split_folder, tmp_path / "full")
    with pytest.raises(UserError, match="There is no folder"):
        pack_dataset(tmp_path / "nowhere", tmp_path / "new")


def test_a_small_or_full_disk_is_reported(split_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="0.0 GB free"):
        pack_dataset(split_folder, tmp_path / "a", kind="uint8")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_items", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\).*to resume"):
        pack_dataset(split_folder, tmp_path / "b")
    monkeypatch.undo()
    pack_dataset(split_folder, tmp_path / "b")
    assert len(stored_images(tmp_path / "b")) == 24


def test_missing_litdata_is_reported(split_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'alexnet\[scale\]'"):
        pack_dataset(split_folder, tmp_path / "packed")


def test_another_litdata_format_is_detected(split_folder, tmp_path, monkeypatch):
    from litdata.streaming.writer import BinaryWriter

    written = BinaryWriter.write_chunk_to_file
    monkeypatch.setattr(
        BinaryWriter,
        "write_chunk_to_file",
        lambda self, data, *a, **k: written(self, b"x" + data, *a),
    )
    with pytest.raises(RuntimeError, match="unknown shard format"):
        pack_dataset(split_folder, tmp_path / "packed")


# ── processes ─────────────────────────────────────────────────────────────────────────────────────


def test_processes_write_the_same_files(split_folder, tmp_path, monkeypatch):
    pack_dataset(split_folder, tmp_path / "alone")
    monkeypatch.setattr(pack_module, "_MIN_FOR_PROCESSES", 1)
    context = fork_context()  # quicker than to spawn them
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    pack_dataset(split_folder, tmp_path / "two", workers=2)
    assert read_files(tmp_path / "two") == read_files(tmp_path / "alone")


@pytest.mark.slow
def test_killed_processes_are_reported(split_folder, tmp_path, monkeypatch):
    pack_dataset(split_folder, tmp_path / "alone")
    monkeypatch.setattr(pack_module, "_MIN_FOR_PROCESSES", 1)

    def kill_workers(done: int, total: int, what: str) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(UserError, match="was killed"):
        pack_dataset(split_folder, tmp_path / "killed", workers=2, progress=kill_workers)
    pack_dataset(split_folder, tmp_path / "killed", workers=1)
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_packing_leaves_no_process_and_resumes(split_folder, tmp_path):
    target = tmp_path / "packed"
    code = (
        "import sys; from pathlib import Path; from alexnet.data.shards import pack as p; p._MIN_FOR_PROCESSES = 1\n"
        "if __name__ == '__main__': p.pack_dataset(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(split_folder), str(target)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((target / WORK).glob("*.npz")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait(60)
    while left := [p for p in _list_session(process.pid) if p != process.pid]:
        assert time.monotonic() < deadline, f"{left} are still running"
        time.sleep(0.05)
    pack_dataset(split_folder, target)
    pack_dataset(split_folder, tmp_path / "complete")
    assert read_files(target) == read_files(tmp_path / "complete")


def _list_session(leader: int) -> list[int]:
    """Return the running processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def test_training_on_packed_pixels_equals_training_on_the_folder(split_folder, tmp_path, monkeypatch):
    """With square images, so that nothing is resized."""
    for i, path in enumerate(sorted(split_folder.rglob("*.jpg"))):
        path.unlink()
        make_image(path.with_suffix(".png"), i % 3, i, size=(32, 32))
    pack_dataset(split_folder, tmp_path / "packed", kind="uint8")
    settings = {
        "arch": "cifar", "width": 0.1, "epochs": 2, "batch_size": 8, "crop": "random", "crop_pct": 28 / 32,
        "image_size": 28, "flip": True, "dropout": 0.0, "progress": Silent(), "limit_steps": 4, "workers": 0,
    }  # fmt: skip
    in_memory = train("folder", data=split_folder, out=tmp_path / "a", **settings)
    from_memory = train("folder", data=tmp_path / "packed", out=tmp_path / "b", **settings)
    monkeypatch.setattr("alexnet.data.in_memory.MAX_IN_MEMORY", 0)
    mapped = train("folder", data=tmp_path / "packed", out=tmp_path / "c", **settings)
    losses = [
        json.loads(Path(r.run, "metrics.jsonl").read_text().splitlines()[0]) for r in (in_memory, from_memory, mapped)
    ]
    assert losses[0]["train_loss"] == losses[1]["train_loss"] == losses[2]["train_loss"]
    assert losses[0]["val_loss"] == losses[1]["val_loss"] == losses[2]["val_loss"]


def test_pixels_equal_those_for_evaluation(split_folder, tmp_path):
    pack_dataset(split_folder, tmp_path / "packed", kind="uint8", size=30)
    part = open_packed(tmp_path / "packed").splits["test"]
    for i in (0, 8):
        image = decode_image(split_folder / part.names[i])
        assert np.array_equal(part.raw(i).transpose(2, 0, 1), EvalTransform(30).eval_array(image))
