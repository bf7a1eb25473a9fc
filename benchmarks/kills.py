"""Trainings killed at random moments, resumed, and compared with an uninterrupted one.

    python benchmarks/kills.py              # 30 kills, about 10 minutes; writes results/kills.json
    python benchmarks/kills.py --quick      # fork from a process with torch imported, to save the startup time

Each kill is a SIGKILL to a real `alexnet train` on a small image folder with two workers, dropout, batch
norm, MixUp and a checkpoint every four steps. Then `alexnet resume` finishes the run, and all its results must
equal those of the uninterrupted run bit for bit, except times. `lost` is the time from the newest checkpoint on disk to
the kill, whose work is repeated, plus the time from the restart until training resumes. Moments:

    step        any time after the first step             write    a checkpoint is being written
    rename      its last file was written or renamed      reading  an epoch's workers have just started
    validation  an epoch's metrics were just written      restart  the resuming process is killed too

tests/training/test_faults.py runs a few of these, and other faults, with the functions below.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.errors import UserError
from alexnet.run_dir import Run

MOMENTS = ("step", "write", "rename", "reading", "validation", "restart")
TIMED = {"seconds", "images_per_second", "waiting", "memory"}  # of a row of metrics.jsonl
SETTINGS = [
    "--arch", "cifar", "--image-size", "32", "--width", "0.25", "--norm", "batch", "--batch-size", "8", "--lr", "0.02",
    "--epochs", "3", "--workers", "2", "--mixup", "0.2", "--checkpoint-every", "4", "--device", "cpu",
    "--precision", "fp32",
    "--set", "in_memory=false", "dropout=0.3",
]  # fmt: skip


def make_images(root: Path, count: int = 40) -> Path:
    """Write three classes of `count` small JPEGs."""
    for i, name in enumerate(("apple", "leaf", "sky")):
        (root / name).mkdir(parents=True)
        for n in range(count):
            noise = np.random.default_rng(1000 * i + n).integers(0, 90, (36, 40, 3))
            noise[..., i] += 150
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{n:02d}.jpg")
    return root


# ── a training in its own process ─────────────────────────────────────────────────────────────────


class Training:
    """An `alexnet` command in a process, with its output in `log`.

    With a `fork_server` it is forked from it, from a process with torch imported, and skips the report.
    """

    def __init__(self, arguments: list[str], log: Path, fork_server: ForkServer | None = None) -> None:
        self.log, self.fork_server = log, fork_server
        self.began = time.monotonic()
        if fork_server is not None:
            self.pid = fork_server.start(arguments, log)
        else:
            with log.open("wb") as out:
                self._started = subprocess.Popen([sys.executable, "-m", "alexnet", *arguments], stdout=out, stderr=out)
            self.pid = self._started.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def code(self) -> int | None:
        """Return the exit code, negative for the signal that killed it; None while it runs."""
        return self.fork_server.code(self.pid) if self.fork_server else self._started.poll()

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end and return the exit code."""
        end = time.monotonic() + timeout
        while (code := self.code()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"still running: {self.output}")
            time.sleep(0.005)
        return code

    def until(self, condition: Callable[[], bool], timeout: float = 120) -> bool:
        """Wait until `condition` holds; return whether it did before the process ended."""
        end = time.monotonic() + timeout
        while self.code() is None:
            if condition():
                return True
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"it did not get there: {self.output}")
            time.sleep(0.0005)
        return False

    def kill(self, signum: int = signal.SIGKILL) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)
        return self.wait()

    def worker_pids(self) -> list[int]:
        """Return the worker processes that load images for it (Linux)."""
        try:
            return [int(p) for p in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except (OSError, ValueError):
            return []


class ForkServer:
    """A process with torch imported that forks trainings, so that each starts without the import time."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--fork_server"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, arguments: list[str], log: Path) -> int:
        return int(self._request({"arguments": arguments, "log": str(log)}))

    def code(self, pid: int) -> int | None:
        code = self._request({"ended": pid})
        return None if code is None else int(code)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _request(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def run_fork_server() -> None:
    """Run the fork server: one request per line on stdin, one response per line on stdout."""
    import sklearn.metrics  # noqa: F401  # as the first validation does

    import alexnet.cli
    import alexnet.training.api
    from alexnet.report import report

    report.write_report = lambda *_: None  # type: ignore[assignment]  # takes longer than these trainings
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            pid = request["ended"]
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            print(json.dumps(codes.get(pid)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for handle in (1, 2):
                os.dup2(log, handle)
            sys.exit(alexnet.cli.run(request["arguments"]))
        print(pid, flush=True)


# ── moments ───────────────────────────────────────────────────────────────────────────────────────


def wait_for_moment(moment: str, training: Training, run: Path, rng: random.Random) -> bool:
    """Wait until `training` is at `moment`; return False if it ended before."""
    checkpoints = run / "checkpoints"

    def names() -> list[str]:
        try:
            return sorted(os.listdir(checkpoints))
        except FileNotFoundError:
            return []

    def finished() -> list[str]:
        return [name for name in names() if not name.startswith(".")]

    if not training.until(lambda: bool(finished()) or (run / "augmented.png").exists()):
        return False
    if moment == "write":
        skip = rng.randrange(6)  # of the first checkpoints
        reached_moment = training.until(lambda: len(finished()) > min(skip, 2)) and training.until(
            lambda: any(name.startswith(".") for name in names())
        )
        time.sleep(rng.random() * 0.01)
        return reached_moment
    if moment == "rename":
        before = finished()
        if rng.random() < 0.5:
            return training.until(lambda: set(finished()) - set(before) != set())
        return training.until(lambda: bool(list(checkpoints.glob(".writing-*/model.json"))))
    if moment == "reading":
        gone = training.until(lambda: not training.worker_pids()) if rng.random() < 0.7 else True
        reached_moment = gone and training.until(lambda: bool(training.worker_pids()))
        time.sleep(rng.random() * 0.05)
        return reached_moment
    if moment == "validation":
        rows = rng.randrange(1, 3)
        return training.until(lambda: len(_lines(run / "metrics.jsonl")) >= rows)
    reached = rng.randrange(0, 33, 4)  # the newest checkpoint is after this step, or a later one
    reached_moment = training.until(lambda: max([int(name.rstrip("a")) for name in finished()], default=0) >= reached)
    time.sleep(rng.random() * 0.2)
    return reached_moment and training.code() is None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


# ── results of a run ──────────────────────────────────────────────────────────────────────────────


def read_results(path: Path) -> dict[str, Any]:
    """Return the results in the run folder `path`, except times, in forms that `==` compares bit for bit."""
    run = Run(path)
    found: dict[str, Any] = {"metrics": [_untimed(row) for row in run.metrics()]}
    summary = run.summary()
    found["summary"] = {key: summary.get(key) for key in ("best", "final", "test", "calibration", "epochs", "steps")}
    found["complete"] = summary.get("complete")
    found["alarms"] = [row["kind"] for row in _json(path / "alarms.json") if row["kind"] != "waiting"]  # for images
    for split in ("val", "test"):
        stored = run.read_evaluation(split)
        found[split] = stored and (stored[0], stored[1].tobytes(), stored[2].tobytes())
    for name in ("best", "last"):
        folder = run.named_checkpoint(name)
        assert folder is not None
        saved, training = load_checkpoint(folder), read_training_state(folder)
        position = training["position"]
        found[name] = {
            "step": saved.step,
            "epoch": saved.epoch,
            "weights": _bits(saved.model.state_dict()),
            "optimizer": _bits(training["optimizer"]),
            "scaler": training["scaler"],
            "position": {k: v for k, v in position.items() if k not in ("history", "best", "seconds", "waited")},
            "history": [_untimed(row) for row in position["history"]],
            "best": _untimed(position["best"]),
        }
    found["half"] = [folder.name for folder in run.checkpoints() if not _is_loadable(folder)]
    found["leftovers"] = sorted(p.name for p in path.rglob(".*"))
    return found


def _is_loadable(folder: Path) -> bool:
    try:
        load_checkpoint(folder)
        read_training_state(folder)
    except UserError:
        return False
    return True


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else []


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMED}


def _bits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bits(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_bits(entry) for entry in value]
    return value.contiguous().numpy().tobytes() if hasattr(value, "numpy") else value


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return where two results of `read_results` differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs), key=str)
        return [d for key in keys for d in differences(ours.get(key), theirs.get(key), f"{where}/{key}")]
    return [] if ours == theirs else [where]


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def kill_and_resume(
    data: Path, run: Path, moment: str, rng: random.Random, fork_server: ForkServer | None = None
) -> dict[str, Any] | None:
    """Kill once at `moment`, resume, and return the cost; None if the training ended before."""
    training = Training(["train", str(data), "--out", str(run), *SETTINGS], run.with_suffix(".log-1"), fork_server)
    if not wait_for_moment(moment, training, run, rng):
        training.wait()
        return None
    training.kill()
    killed = time.time()
    on_disk = [path.stat().st_mtime for path in Run(run).checkpoints()]
    repeated = killed - max(on_disk, default=killed - (time.monotonic() - training.began))
    if moment == "restart":
        again = Training(["resume", str(run)], run.with_suffix(".log-2"), fork_server)
        time.sleep(rng.random() * (1 if fork_server else 5))
        again.kill()
        repeated += time.monotonic() - again.began
    last = Training(["resume", str(run)], run.with_suffix(".log-3"), fork_server)
    last.until(lambda: "Resuming after" in last.output or "training from the start" in last.output)
    restart = time.monotonic() - last.began
    code = last.wait()
    if code:
        raise RuntimeError(f"alexnet resume ended with {code} after a kill at '{moment}': {last.output}")
    at = int(last.output.split("Resuming after step ")[1].split(",")[0]) if "Resuming after" in last.output else 0
    return {"gone_on_after_step": at, "repeated": repeated, "restart": restart, "lost": repeated + restart}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fork trainings from a process that has torch imported")
    parser.add_argument("--fork_server", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fork_server:
        run_fork_server()
        return
    from common import save

    os.environ["OMP_NUM_THREADS"] = "1"
    rng = random.Random(args.seed)
    fork_server = ForkServer() if args.quick else None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_images(root / "images")
        times = []
        for name in ("uninterrupted", "uninterrupted-2"):  # the first one also fills caches
            training = Training(["train", str(data), "--out", str(root / name), *SETTINGS], root / "log", fork_server)
            if training.wait():
                sys.exit(training.output)
            times.append(time.monotonic() - training.began)
        uninterrupted = read_results(root / "uninterrupted-2")
        print(f"uninterrupted: {times[-1]:.1f} s")
        rows: list[dict[str, Any]] = []
        while len(rows) < args.kills:
            moment = MOMENTS[len(rows) % len(MOMENTS)]
            run = root / "killed"
            found = kill_and_resume(data, run, moment, rng, fork_server)
            if found is not None:
                other = differences(read_results(run), uninterrupted)
                row = {"moment": moment, "equal": not other, "differs": other, **found}
                rows.append(row)
                print(
                    f"{len(rows):>3}  {moment:<10}  on after step {found['gone_on_after_step']:>3}  "
                    f"{'equal' if not other else 'DIFFERS: ' + ', '.join(other)}  lost {row['lost']:.1f} s",
                    flush=True,
                )
            for path in [run, *root.glob("killed.log*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        equal = sum(row["equal"] for row in rows)
        lost = sorted(row["lost"] for row in rows)
        middle = lost[len(lost) // 2]
        print(f"{equal} of {len(rows)} equal; time lost per kill: median {middle:.1f} s, most {lost[-1]:.1f} s")
        results = {"quick": args.quick, "unbroken_seconds": times[-1], "equal": equal, "kills": rows}
        save("kills", {**results, "settings": SETTINGS})
    if fork_server is not None:
        fork_server.close()
    if equal < len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
