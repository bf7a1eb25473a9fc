"""Processes forked from one that has torch and this package imported, so that each of them starts at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

FILE_EVENTS = {
    "open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
    "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp", "ctypes.dlopen",
}  # fmt: skip


def fork_context() -> Any:
    """Return a context of multiprocessing for such processes; where the system has no fork, they are spawned."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alexnet.cli", "alexnet.training.api", "sklearn.metrics"])
    return context


def serve(arguments: list[str]) -> int:
    from alexnet.cli import run

    return run(["serve", *arguments, "--port", "0", "--json"])


def serve_audited(arguments: list[str]) -> int:
    """Also write each of `FILE_EVENTS` to stdout, as a line of JSON with its arguments."""
    events = set(FILE_EVENTS)

    def report(event: str, values: tuple[Any, ...]) -> None:
        if event in events:
            os.write(1, (json.dumps([event, *map(str, values[:3])]) + "\n").encode())

    sys.addaudithook(report)
    code = serve(arguments)
    events.clear()  # at exit torch removes a temporary folder of its own
    return code


def _run(function: Callable[[list[str]], int], arguments: list[str], output: Any) -> None:
    """Exit with what `function` returns; its stdout is the pipe `output`."""
    os.dup2(output.fileno(), 1)
    output.close()
    sys.dont_write_bytecode = True
    sys.exit(function(arguments))


@contextmanager
def server_process(
    *arguments: str, function: Callable[[list[str]], int] = serve
) -> Iterator[tuple[dict[str, Any], Any, TextIO]]:
    """Run `alexnet serve` in a process; yield the first document that it prints, the process and its later stdout."""
    context = fork_context()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, list(arguments), writer))
    process.start()
    writer.close()
    with open(os.dup(reader.fileno()), encoding="utf-8") as output:
        reader.close()
        try:
            for line in output:
                if isinstance(document := json.loads(line), dict):
                    yield document, process, output
                    break
            else:
                raise AssertionError("the server did not start")
        finally:
            process.terminate()
            process.join(60)
            process.kill()  # if it is still there, the interpreter would wait for it at its end


def _run_command(arguments: list[str], log: Path) -> None:
    """Exit with the code of the command `arguments`, its output in `log`; it writes no report, which takes seconds."""
    import torch

    from alexnet.cli import run
    from alexnet.report import report

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the workers that read images, as in a process of its own
    report.write_report = lambda *_: None
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for handle in (1, 2):
        os.dup2(output, handle)
    sys.exit(run(arguments))


class ForkServer:
    """In place of `ForkServer` of benchmarks/kills.py: starts commands from the process that all tests fork from."""

    def __init__(self) -> None:
        self._processes: dict[int, Any] = {}

    def start(self, arguments: list[str], log: Path) -> int:
        process = fork_context().Process(target=_run_command, args=(arguments, log))
        process.start()
        self._processes[process.pid] = process
        return process.pid

    def code(self, pid: int) -> int | None:
        return self._processes[pid].exitcode
