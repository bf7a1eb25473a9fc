"""Faults done to real processes from outside: after each, `alexnet resume` leaves what an undisturbed run leaves.

The trainings take a second; they are forked from a process that has torch imported already (benchmarks/kills.py).
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet.data.shards.pack import pack_dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import kills
from kills import MOMENTS, SETTINGS, Nursery, Training, differences, left_by

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, nursery) -> dict[str, object]:
    """What the undisturbed run leaves; its pictures are beside it."""
    root = tmp_path_factory.mktemp("faults")
    training = begin(kills.make_pictures(root / "pictures"), root / "run", nursery)
    assert training.wait() == 0, training.said
    return {**left_by(root / "run"), "pictures": root / "pictures"}


def begin(data: Path, run: Path, nursery: Nursery, *more: str) -> Training:
    return Training(["train", str(data), "--out", str(run), *SETTINGS, *more], run.parent / "log", nursery)


def saved(run: Path, step: int = 4) -> bool:
    """Whether a checkpoint after `step`, or a later one, is there."""
    try:
        names = [name for name in os.listdir(run / "checkpoints") if not name.startswith(".")]
    except FileNotFoundError:
        return False
    return any(int(name.rstrip("a")) >= step for name in names)


def assert_resumes(run: Path, unbroken: dict[str, object], nursery: Nursery) -> str:
    """The resumed run ends as the undisturbed one did; what it said."""
    again = Training(["resume", str(run)], run.parent / "log-of-resume", nursery)
    assert again.wait() == 0, again.said
    assert differences(left_by(run), {k: v for k, v in unbroken.items() if k != "pictures"}) == []
    return again.said


@pytest.mark.parametrize("moment", ["write", "rename", "validation"])
def test_killed_at_any_moment_and_resumed_a_run_equals_the_unbroken_one(moment, unbroken, nursery, tmp_path):
    found = None
    for seed in range(5):  # a training may end before the moment comes
        run = tmp_path / str(seed)
        found = found or kills.killed_and_resumed(unbroken["pictures"], run, moment, random.Random(seed), nursery)
        if found:
            break
    assert found is not None
    assert differences(left_by(run), {k: v for k, v in unbroken.items() if k != "pictures"}) == []


@pytest.mark.slow
def test_thirty_random_kills(unbroken, nursery, tmp_path):
    chance, done = random.Random(7), 0
    for number in range(60):
        run, moment = tmp_path / str(number), chance.choice(MOMENTS)
        if kills.killed_and_resumed(unbroken["pictures"], run, moment, chance, nursery) is not None:
            assert differences(left_by(run), {k: v for k, v in unbroken.items() if k != "pictures"}) == [], moment
            done += 1
        if done == 30:
            return
    raise AssertionError(f"only {done} trainings came to their moment")


def test_sigterm_saves_and_exits_with_143(unbroken, nursery, tmp_path):
    run = tmp_path / "run"
    training = begin(unbroken["pictures"], run, nursery, "--checkpoint-every", "1h")
    assert training.until(lambda: (run / "augmented.png").exists())
    began = time.monotonic()
    assert training.kill(signal.SIGTERM) == 143, training.said
    assert time.monotonic() - began < 30
    assert "alexnet resume" in training.said
    assert saved(run, step=0)
    assert_resumes(run, unbroken, nursery)


def test_a_disk_that_is_full_ends_training_with_a_sentence(unbroken, nursery, tmp_path):
    """The largest file that the process may write shrinks while it trains."""
    run = tmp_path / "run"
    training = begin(unbroken["pictures"], run, nursery)
    assert training.until(lambda: saved(run))
    resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
    assert training.wait() == 1, training.said
    assert "could not be written" in training.said
    assert "File too large; make room, then 'alexnet resume" in training.said
    assert "Traceback" not in training.said
    assert_resumes(run, unbroken, nursery)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
@pytest.mark.slow
def test_a_full_file_system(unbroken, nursery, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = disk / "run"
        training = Training(
            ["train", str(unbroken["pictures"]), "--out", str(run), *SETTINGS], tmp_path / "log", nursery
        )
        assert training.until(lambda: saved(run))
        with (disk / "other").open("wb") as other:  # somebody else's file
            while chunk := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize:
                other.write(bytes(min(chunk, 1 << 16)))
                other.flush()
        assert training.wait() == 1, training.said
        assert "No space left on device" in training.said
        (disk / "other").unlink()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        again = Training(["resume", str(run)], tmp_path / "log-of-resume", nursery)
        assert again.wait() == 0, again.said
        assert differences(left_by(run), {k: v for k, v in unbroken.items() if k != "pictures"}) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        more = Training(["resume", str(run), "--epochs", "+1"], tmp_path / "log-of-more", nursery)
        assert more.wait() == 2, more.said
        assert "cannot be written" in more.said
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_data_folder_that_vanishes(unbroken, nursery, tmp_path):
    run, data = tmp_path / "run", kills.make_pictures(tmp_path / "pictures")
    training = begin(data, run, nursery)
    assert training.until(lambda: saved(run))
    data.rename(tmp_path / "away")
    assert training.wait() == 2, training.said
    assert "Cannot read" in training.said
    assert f"Then go on with: alexnet resume {run}" in training.said
    early = Training(["resume", str(run)], tmp_path / "log-of-resume", nursery)
    assert early.wait() == 2, early.said
    assert "Traceback" not in early.said
    (tmp_path / "away").rename(data)
    assert_resumes(run, unbroken, nursery)


@pytest.mark.slow
def test_a_picture_that_breaks_while_training(unbroken, nursery, tmp_path):
    run, data = tmp_path / "run", kills.make_pictures(tmp_path / "pictures")
    training = begin(data, run, nursery)
    assert training.until(lambda: saved(run))
    victims = sorted(data.rglob("*.jpg"))
    whole = {path: path.read_bytes() for path in victims}
    for path in victims[::7]:
        path.write_bytes(whole[path][:200])
    assert training.wait() == 2, training.said
    assert ".jpg" in training.said
    for path in victims:
        path.write_bytes(whole[path])
    assert_resumes(run, unbroken, nursery)


def test_a_corrupt_shard(unbroken, nursery, tmp_path):
    """All of them while it trains, then a bit of one as it goes on."""
    data = tmp_path / "packed"
    pack_dataset(unbroken["pictures"], data)
    whole = begin(data, tmp_path / "whole", nursery)
    assert whole.wait() == 0, whole.said
    left = left_by(tmp_path / "whole")

    run = tmp_path / "run"
    training = begin(data, run, nursery)
    assert training.until(lambda: saved(run))
    sound = {path: path.read_bytes() for path in data.rglob("*.bin")}
    for path, content in sound.items():
        with path.open("r+b") as file:  # in place: cut shorter, it would be the system that kills
            file.write(bytes(len(content)))
    assert training.wait() == 2, training.said
    assert "is of another length than it says); 'alexnet pack'" in training.said
    assert f"Then go on with: alexnet resume {run}" in training.said
    for path, content in sound.items():
        path.write_bytes(content)
    victim = min(sound)
    victim.write_bytes(sound[victim][:-100] + bytes([sound[victim][-100] ^ 1]) + sound[victim][-99:])
    early = Training(["resume", str(run)], tmp_path / "log-of-resume", nursery)
    assert early.wait() == 2, early.said
    assert f"{victim} is damaged (its checksum differs); 'alexnet pack'" in early.said
    assert "Traceback" not in training.said + early.said
    victim.write_bytes(sound[victim])
    assert_resumes(run, left, nursery)


def test_a_killed_reading_process(unbroken, nursery, tmp_path):
    """As the kernel does where memory is short."""
    run = tmp_path / "run"
    training = begin(unbroken["pictures"], run, nursery)
    assert training.until(lambda: saved(run) and bool(training.readers()))
    killed = 0
    while training.code() is None and not killed:
        for pid in training.readers():
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    assert training.wait() == 1, training.said
    assert "A process that reads pictures has died" in training.said
    assert f"Then go on with: alexnet resume {run}" in training.said
    assert "Traceback" not in training.said
    assert_resumes(run, unbroken, nursery)


def test_a_read_only_folder(unbroken, nursery, tmp_path):
    """For anyone but root, whom nothing stops."""
    if os.geteuid() == 0:
        pytest.skip("see test_a_full_file_system, which mounts one read-only")
    (tmp_path / "closed").mkdir(mode=0o555)
    training = begin(unbroken["pictures"], tmp_path / "closed" / "run", nursery)
    assert training.wait() == 2
    assert "cannot be written" in training.said
