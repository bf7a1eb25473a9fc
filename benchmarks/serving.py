"""The server under load, against `alexnet predict` on the same files and a plain handler, in one run.

    python benchmarks/serving.py RUN --data DIR --name cifar10 [--clients 32 256] [--seconds 60] [--engines exact fast]
    python benchmarks/serving.py RUN --data DIR --name cifar10-sigterm --sigterm
    python benchmarks/serving.py RUN --data DIR --name cifar10-soak --soak 50000

All on this machine: server and clients share its cores, while `predict` has them to itself, in one process after its
startup. --sigterm stops the server under load and counts accepted requests without a response; --soak sends that many
requests, five of nine of them unusual (ten views, damaged, no image, too large, unfinished), and records the server's
memory. Results go to docs/results/serving-NAME.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import save

from alexnet.data.image_folder import find_images
from alexnet.inference.predict import load

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
WARM_UP = 1.0  # seconds of load before counting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True, help="a folder of JPEGs")
    parser.add_argument("--name", required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--engines", nargs="+", default=["exact"], help="of the server, each under load in turn")
    parser.add_argument("--files", type=int, default=2000, help="number of images, evenly spaced")
    parser.add_argument("--sigterm", action="store_true")
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--serve", nargs="*", default=[], help="flags for alexnet serve, e.g. --serve=--max-batch=64")
    given = parser.parse_args()
    found = [str(path) for path in find_images([given.data]) if path.suffix.lower() in (".jpg", ".jpeg")]
    files = found[:: max(1, len(found) // given.files)][: given.files]
    results: dict[str, Any] = {"pictures": len(files), "flags": given.serve}
    if given.sigterm:
        results |= {"sigterm": [stop_in_the_middle(given, files, clients) for clients in given.clients]}
    elif given.soak:
        results |= {"soak": soak(given, files)}
    else:
        results |= compare(given, files)
    path = save(f"serving-{given.name}", results, ("fastapi", "uvicorn"), folder=RESULTS)
    print(table(json.loads(path.read_text(encoding="utf-8"))))


def compare(given: argparse.Namespace, files: list[str]) -> dict[str, Any]:
    """Measure `predict` before and after the rest, since a machine may slow down during it, and the two servers."""
    seconds = given.seconds
    before = predicting(given.run, files, seconds / 4)
    ours, plain = [], []
    for clients in given.clients:
        for engine in given.engines:
            with server(given, engine) as (url, _):
                ours.append(report("alexnet serve", run_clients(f"{url}/v1/predict", files, clients, seconds)))
                ours[-1] |= {"engine": engine, "batches": batches(url)}
        with started([sys.executable, str(HERE / "plain_server.py"), given.run]) as (first, _):
            plain.append(report("plain", run_clients(f"{first['url']}/predict", files, clients, seconds)))
    after = predicting(given.run, files, seconds / 4)
    predict = (before + after) / 2
    for row in (*ours, *plain):
        row["of_predict"] = round(row["images_per_second"] / predict, 3)
        print(row, file=sys.stderr)
    return {"predict_images_per_second": [round(before, 1), round(after, 1)], "serve": ours, "plain": plain}


def stop_in_the_middle(given: argparse.Namespace, files: list[str], clients: int) -> dict[str, Any]:
    """Send SIGTERM while all clients send requests."""
    with (
        started(serve_command(given, given.engines[0])) as (first, process),
        start_clients(f"{first['url']}/v1/predict", files, clients, given.seconds) as load,
    ):
        time.sleep(WARM_UP + given.seconds / 2)
        sent = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        last, _ = process.communicate(timeout=120)
        stopped = time.perf_counter() - sent
        found = json.loads(load.communicate()[0])
    ended = json.loads(last.splitlines()[-1])
    responses = sum(found["statuses"].values())
    row = {
        **found, "exit_code": process.returncode, "seconds_to_stop": round(stopped, 2),
        "accepted": ended["accepted"], "complete_answers": responses,
        "accepted_and_lost": ended["accepted"] - responses,
    }  # fmt: skip
    return report("sigterm", row)


def soak(given: argparse.Namespace, files: list[str]) -> dict[str, Any]:
    """Send that many requests, and record the server's memory twenty times."""
    part = max(1, given.soak // 20)
    memory = []
    with server(given, given.engines[0]) as (url, process):
        for _ in range(given.soak // part):
            found = run_clients(f"{url}/v1/predict", files, given.clients[0], requests=part, unusual=True)
            memory.append({"requests": part * (len(memory) + 1), "mb": resident(process.pid), **found["statuses"]})
            report("soak", memory[-1])
    tail = memory[len(memory) // 4 :]  # what grows at first are the allocator's own reserves
    return {"memory": memory, "growth_mb_after_the_first_quarter": round(tail[-1]["mb"] - tail[0]["mb"], 2)}


def table(document: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    found = document["results"]
    if "sigterm" in found:
        lines = ["| clients | exit code | accepted | answered to the last byte | accepted and lost | s to the end |",
                 "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {row['clients']} | {row['exit_code']} | {row['accepted']:,} | {row['complete_answers']:,} | "
            f"{row['accepted_and_lost']} | {row['seconds_to_stop']:.2f} |"
            for row in found["sigterm"]
        ]
        return "\n".join(lines)
    if "soak" in found:
        memory = found["soak"]["memory"]
        chosen = [memory[0], *memory[4::5]]
        return "\n".join([
            "| requests | " + " | ".join(f"{row['requests']:,}" for row in chosen) + " |",
            "|---|" + "---|" * len(chosen),
            "| MB in memory | " + " | ".join(f"{row['mb']:,.0f}" for row in chosen) + " |",
        ])  # fmt: skip
    before, after = found["predict_images_per_second"]
    lines = [
        "| | clients | images/s | of `predict` | p50 ms | p95 ms | p99 ms | not 200 | images per batch |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| `alexnet predict`, before and after | | {before:,.0f} and {after:,.0f} | | | | | | 64 |",
    ]
    for kind, rows in (("`alexnet serve`", found["serve"]), ("a plain handler", found["plain"])):
        for row in rows:
            batch, engine = row.get("batches", 1), row.get("engine", "exact")
            name = kind if engine == "exact" else f"`alexnet serve --engine {engine}`"
            other = sum(n for status, n in row["statuses"].items() if status != "200") + sum(row["lost"].values())
            lines.append(
                f"| {name} | {row['clients']} | {row['images_per_second']:,.0f} | {row['of_predict']:.0%} | "
                f"{row['p50_ms']:.0f} | {row['p95_ms']:.0f} | {row['p99_ms']:.0f} | {other:,} | {batch:g} |"
            )
    return "\n".join(lines)


# ── what is measured ──────────────────────────────────────────────────────────────────────────────


def predicting(run: str, files: list[str], seconds: float) -> float:
    """Return the images per second of `alexnet predict`, after its startup, in its own process."""
    job = json.dumps({"run": run, "files": files, "seconds": seconds})
    done = subprocess.run([sys.executable, __file__, "--predicting"], input=job, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def predict_here() -> None:
    job = json.loads(sys.stdin.read())
    classifier = load(job["run"])
    list(classifier.predict_many(job["files"][:64]))
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < job["seconds"]:
        for _ in classifier.predict_many(job["files"]):
            count += 1
            if count % 64 == 0 and time.perf_counter() - began >= job["seconds"]:
                break
    print(count / (time.perf_counter() - began))


def serve_command(given: argparse.Namespace, engine: str) -> list[str]:
    return [
        sys.executable, "-m", "alexnet", "serve", given.run, "--port", "0", "--json", "--engine", engine, *given.serve
    ]  # fmt: skip


@contextlib.contextmanager
def server(given: argparse.Namespace, engine: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with started(serve_command(given, engine)) as (first, process):
        yield first["url"], process


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """Start a server that prints its address in its first line; stop it at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("The server did not start.")
        try:
            yield json.loads(line), process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(120)


@contextlib.contextmanager
def start_clients(
    url: str, files: list[str], clients: int, seconds: float = 0, requests: int = 0, unusual: bool = False
) -> Iterator[subprocess.Popen[str]]:
    warm_up = 0.0 if requests else WARM_UP
    job = {
        "url": url, "files": files, "clients": clients, "seconds": seconds, "requests": requests, "warm_up": warm_up,
        "unusual": unusual,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        with subprocess.Popen(
            [sys.executable, str(HERE / "load_clients.py"), str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            yield process


def run_clients(
    url: str, files: list[str], clients: int, seconds: float = 0, requests: int = 0, unusual: bool = False
) -> dict[str, Any]:
    with start_clients(url, files, clients, seconds, requests, unusual) as process:
        return dict(json.loads(process.communicate()[0]))


def batches(url: str) -> float:
    """Return the mean batch size from the server's metrics."""
    import urllib.request

    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    total = {end: sum(float(v) for k, v in values.items() if k.startswith(f"alexnet_batch_images_{end}{{"))
             for end in ("sum", "count")}  # fmt: skip
    return round(total["sum"] / total["count"], 2)


def resident(pid: int) -> float:
    """Return the resident memory of a process in megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2)


def report(what: str, row: dict[str, Any]) -> dict[str, Any]:
    print(what, row, file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    if sys.argv[1:] == ["--predicting"]:
        predict_here()
    else:
        main()
