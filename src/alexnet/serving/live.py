"""The page of a run while it trains: `alexnet serve` in a process of its own, for `alexnet train --live`.

The run folder is all that it reads. Its address is shown once it answers, and training does not wait for that. It
leaves the cores to the training as far as possible: it starts while the training loads, then has a low priority, and
computes with one thread, on the CPU. It ends with a training that is interrupted or fails, and otherwise at Ctrl-C.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from alexnet.errors import UserError
from alexnet.serving.address import bind
from alexnet.signals import Stopped
from alexnet.text import escape

HOST, PORT = "127.0.0.1", 8000
NICENESS = 10  # a tenth of the time of a core for which the training competes: enough to answer within a second
Log = Callable[[str], object]


@contextmanager
def live_page(in_browser: bool = False, lang: str | None = None) -> Iterator[Callable[[Path, Log], None]]:
    """Yield a function that opens the page of a run; at the end wait for Ctrl-C, and after an error close the page.

    The server starts at once, since the training loads PyTorch and its data with one core: the import of the same
    packages on another costs it little. Its address is shown once it answers, and with `in_browser` the page, too. It
    starts in the language `lang`.
    """
    listener = _listen()
    port = listener.getsockname()[1]
    url = f"http://{HOST}:{port}/"
    process, pipe = _start(listener, lang)
    waiting: threading.Thread | None = None
    ended = threading.Event()

    def announce(log: Log) -> None:
        if _answers(port):
            log(f"The page of this run: {url}")
            if in_browser:
                webbrowser.open(url)
        elif not ended.is_set():
            process.terminate()
            log("The page of this run did not open; training continues without it.")

    def open_page(run: Path, log: Log) -> None:
        nonlocal waiting
        with suppress(OSError):  # the server has ended, which `announce` says
            pipe.send(run)
        waiting = threading.Thread(target=announce, args=(log,), daemon=True)
        waiting.start()

    try:
        yield open_page
        if waiting is not None:
            with suppress(KeyboardInterrupt, Stopped):
                sys.stdout.flush()  # the result
                waiting.join()
                if process.is_alive():
                    print(f"The page stays at {url} until Ctrl-C.", file=sys.stderr, flush=True)
                process.join()
    finally:
        ended.set()
        process.terminate()
        process.join()
        if waiting is not None:
            waiting.join()


def _answers(port: int) -> bool:
    """Wait until the server at `port` answers a request, or has ended; return whether it answered.

    There is no limit of time: beside other work a page may open late, and later is better than not at all.
    """
    connection = http.client.HTTPConnection(HOST, port)
    try:
        connection.request("GET", "/healthz")  # the socket listens already: the request waits in its queue
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listen() -> socket.socket:
    """Return a socket that takes connections, for the server that starts, at port 8000 or else a free one."""
    try:
        listener = bind(HOST, PORT)
    except UserError:
        listener = bind(HOST, 0)
    listener.listen()
    return listener


def _start(listener: socket.socket, lang: str | None) -> tuple[SpawnProcess, Connection]:
    """Start the server, and leave it the socket; it waits for the path of its run on the returned connection."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, listener, lang), daemon=True)
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None  # the process inherits it
    try:
        process.start()
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)
        listener.close()
        theirs.close()
    return process, ours


def _serve(pipe: Connection, listener: socket.socket, lang: str | None) -> None:
    """Serve the run whose path comes from `pipe`, until SIGTERM or the end of the training process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from alexnet.serving.registry import open_models
    from alexnet.serving.server import serve
    from alexnet.serving.settings import Settings

    with suppress(AttributeError, OSError):  # Windows has no nice
        os.nice(NICENESS)  # not before the imports, which would take minutes beside much other work
    try:
        with suppress(Stopped, EOFError):
            run = pipe.recv()
            serve(open_models([run], device="cpu"), Settings(host=HOST, lang=lang), listener=listener, workers=1)
    except UserError as error:
        print(escape(f"alexnet: {error}"), file=sys.stderr, flush=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
