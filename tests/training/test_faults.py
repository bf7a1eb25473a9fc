"""Faults injected into real processes: after each, `alexnet resume` leaves what an uninterrupted run leaves.

Trainings take a second; they are forked from a process that has torch imported (forks.py).
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet.data.shards.pack import pack_dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import kills
from kills import MOMENTS, SETTINGS, Training, differences, read_results

from forks import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    return ForkServer()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, fork_server) -> dict[str, object]:
    """Everything an uninterrupted run leaves, and its images."""
    root = tmp_path_factory.mktemp("faults")
    training = start(kills.make_images(root / "images"), root / "run", fork_server)
    assert training.wait() == 0, training.output
    return {**read_results(root / "run"), "images": root / "images"}


def start(data: Path, run: Path, fork_server: ForkServer, *more: str) -> Training:
    return Training(["train", str(data), "--out", str(run), *SETTINGS, *more], run.parent / "log", fork_server)


def has_checkpoint(run: Path, step: int = 4) -> bool:
    """Whether there is a checkpoint of `step` or a later one."""
    try:
        names = [name for name in os.listdir(run / "checkpoints") if not name.startswith(".")]
    except FileNotFoundError:
        return False
    return any(int(name.rstrip("a")) >= step for name in names)


def assert_resumes(run: Path, uninterrupted: dict[str, object], fork_server: ForkServer) -> str:
    """Resume; check that the run equals the uninterrupted one, and return its output."""
    again = Training(["resume", str(run)], run.parent / "log-of-resume", fork_server)
    assert again.wait() == 0, again.output
    assert differences(read_results(run), {k: v for k, v in uninterrupted.items() if k != "images"}) == []
    return again.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    ["write", "rename", "validation"],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(moment, uninterrupted, fork_server, tmp_path):
    killed = None
    for seed in range(5):  # a training may end before the moment
        run = tmp_path / str(seed)
        killed = kills.kill_and_resume(uninterrupted["images"], run, moment, random.Random(seed), fork_server)
        if killed:
            break
    assert killed is not None
    assert differences(read_results(run), {k: v for k, v in uninterrupted.items() if k != "images"}) == []


@pytest.mark.slow
def test_thirty_random_kills(uninterrupted, fork_server, tmp_path):
    rng, done = random.Random(7), 0
    for number in range(60):
        run, moment = tmp_path / str(number), rng.choice(MOMENTS)
        if kills.kill_and_resume(uninterrupted["images"], run, moment, rng, fork_server) is not None:
            assert differences(read_results(run), {k: v for k, v in uninterrupted.items() if k != "images"}) == [], (
                moment
            )
            done += 1
        if done == 30:
            return
    raise AssertionError(f"only {done} trainings were killed")


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_143(uninterrupted, fork_server, tmp_path):
    run = tmp_path / "run"
    training = start(uninterrupted["images"], run, fork_server, "--checkpoint-every", "1h")
    assert training.until(lambda: (run / "augmented.png").exists())
    began = time.monotonic()
    assert training.kill(signal.SIGTERM) == 143, training.output
    assert time.monotonic() - began < 30
    assert "alexnet resume" in training.output
    assert has_checkpoint(run, step=0)
    assert_resumes(run, uninterrupted, fork_server)


@pytest.mark.slow
def test_a_full_disk_ends_training_with_a_message(uninterrupted, fork_server, tmp_path):
    """The largest file the process may write shrinks while it trains."""
    run = tmp_path / "run"
    training = start(uninterrupted["images"], run, fork_server)
    assert training.until(lambda: has_checkpoint(run))
    resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
    assert training.wait() == 1, training.output
    assert "could not be written" in training.output
    assert "File too large; free some space, then 'alexnet resume" in training.output
    assert "Traceback" not in training.output
    assert_resumes(run, uninterrupted, fork_server)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
@pytest.mark.slow
def test_a_run_resumes_after_a_full_or_read_only_file_system(uninterrupted, fork_server, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = disk / "run"
        training = Training(
            ["train", str(uninterrupted["images"]), "--out", str(run), *SETTINGS],
            tmp_path / "log",
            fork_server,
        )
        assert training.until(lambda: has_checkpoint(run))
        with (disk / "other").open("wb") as other:  # of another program
            while chunk := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize:
                other.write(bytes(min(chunk, 1 << 16)))
                other.flush()
        assert training.wait() == 1, training.output
        assert "No space left on device" in training.output
        (disk / "other").unlink()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        again = Training(["resume", str(run)], tmp_path / "log-of-resume", fork_server)
        assert again.wait() == 0, again.output
        assert differences(read_results(run), {k: v for k, v in uninterrupted.items() if k != "images"}) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        more = Training(["resume", str(run), "--epochs", "+1"], tmp_path / "log-of-more", fork_server)
        assert more.wait() == 2, more.output
        assert "is not writable" in more.output
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_run_resumes_after_its_data_folder_disappeared(uninterrupted, fork_server, tmp_path):
    run, data = tmp_path / "run", kills.make_images(tmp_path / "images")
    training = start(data, run, fork_server)
    assert training.until(lambda: has_checkpoint(run))
    data.rename(tmp_path / "away")
    assert training.wait() == 2, training.output
    assert "Cannot read" in training.output
    assert f"Then resume with: alexnet resume {run}" in training.output
    early = Training(["resume", str(run)], tmp_path / "log-of-resume", fork_server)
    assert early.wait() == 2, early.output
    assert "Traceback" not in early.output
    (tmp_path / "away").rename(data)
    assert_resumes(run, uninterrupted, fork_server)


@pytest.mark.slow
def test_a_run_resumes_after_images_became_unreadable(uninterrupted, fork_server, tmp_path):
    run, data = tmp_path / "run", kills.make_images(tmp_path / "images")
    training = start(data, run, fork_server)
    assert training.until(lambda: has_checkpoint(run))
    victims = sorted(data.rglob("*.jpg"))
    original = {path: path.read_bytes() for path in victims}
    for path in victims[::7]:
        path.write_bytes(original[path][:200])
    assert training.wait() == 2, training.output
    assert ".jpg" in training.output
    for path in victims:
        path.write_bytes(original[path])
    assert_resumes(run, uninterrupted, fork_server)


@pytest.mark.slow
def test_a_run_resumes_after_shards_were_corrupted(uninterrupted, fork_server, tmp_path):
    """All of them while training, then a single bit of one before resuming."""
    data = tmp_path / "packed"
    pack_dataset(uninterrupted["images"], data)
    complete = start(data, tmp_path / "complete", fork_server)
    assert complete.wait() == 0, complete.output
    expected = read_results(tmp_path / "complete")

    run = tmp_path / "run"
    training = start(data, run, fork_server)
    assert training.until(lambda: has_checkpoint(run))
    original = {path: path.read_bytes() for path in data.rglob("*.bin")}
    for path, content in original.items():
        with path.open("r+b") as file:  # in place: truncating a mapped file would kill the process
            file.write(bytes(len(content)))
    assert training.wait() == 2, training.output
    assert "does not match its header); rerun 'alexnet pack'" in training.output
    assert f"Then resume with: alexnet resume {run}" in training.output
    for path, content in original.items():
        path.write_bytes(content)
    victim = min(original)
    victim.write_bytes(original[victim][:-100] + bytes([original[victim][-100] ^ 1]) + original[victim][-99:])
    early = Training(["resume", str(run)], tmp_path / "log-of-resume", fork_server)
    assert early.wait() == 2, early.output
    assert f"{victim} is damaged (its checksum differs); rerun 'alexnet pack'" in early.output
    assert "Traceback" not in training.output + early.output
    victim.write_bytes(original[victim])
    assert_resumes(run, expected, fork_server)


@pytest.mark.slow
def test_a_run_resumes_after_a_worker_was_killed(uninterrupted, fork_server, tmp_path):
    """As the kernel does when memory runs out."""
    run = tmp_path / "run"
    training = start(uninterrupted["images"], run, fork_server)
    assert training.until(lambda: has_checkpoint(run) and bool(training.worker_pids()))
    killed = 0
    while training.code() is None and not killed:
        for pid in training.worker_pids():
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    assert training.wait() == 1, training.output
    assert "A worker process that reads images died" in training.output
    assert f"Then resume with: alexnet resume {run}" in training.output
    assert "Traceback" not in training.output
    assert_resumes(run, uninterrupted, fork_server)


@pytest.mark.slow
def test_a_read_only_folder_is_refused(uninterrupted, fork_server, tmp_path):
    """Root can write anywhere."""
    if os.geteuid() == 0:
        pytest.skip("see test_a_run_resumes_after_a_full_or_read_only_file_system, which mounts one read-only")
    (tmp_path / "read-only").mkdir(mode=0o555)
    training = start(uninterrupted["images"], tmp_path / "read-only" / "run", fork_server)
    assert training.wait() == 2
    assert "cannot be written" in training.output
