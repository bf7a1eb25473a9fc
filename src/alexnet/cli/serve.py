"""The command that answers requests over HTTP."""

from __future__ import annotations

import dataclasses
import importlib.util
import json as jsonlib
import os
from pathlib import Path
from typing import Literal

from alexnet.cli.output import _say
from alexnet.errors import UserError


def serve(
    runs: tuple[str, ...],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: str = "exact",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    checkpoint: Literal["best", "last"] = "best",
    trust: bool = False,
    token_file: Path | None = None,
    cors: tuple[str, ...] = (),
    max_batch: int = 32,
    max_delay_ms: float = 5.0,
    queue: int = 512,
    max_bytes: int = 32 << 20,
    max_pixels: int = 50_000_000,
    max_images: int = 32,
    timeout: float = 30.0,
    drain: float = 1.0,
    json: bool = False,
) -> int:
    """Answer requests for labels over HTTP, until SIGTERM or Ctrl-C; /docs on it tells the rest.

    Args:
        runs: Run folders, 'last', checkpoint folders, torchvision:IMAGENET1K_V1, or exported files, each by its name.
        host: The address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 whoever can reach it.
        port: 0 takes a free one.
        engine: What computes the runs: exact, fast, or one that 'alexnet predict --help' lists.
        device: Where to compute the runs.
        checkpoint: Which checkpoint of a run.
        trust: Open an exported file even if nothing says that it was exported here; such a file can run code.
        token_file: A file that holds the token which requests must bear; ALEXNET_TOKEN in the environment does too.
        cors: Web sites whose pages may ask, such as https://example.org; none unless given.
        max_batch: Pictures computed together at most.
        max_delay_ms: Milliseconds that a picture waits for others at most when the network is free.
        queue: Pictures in the house at most, each view of a ten-crop counted; beyond that the answer is 503.
        max_bytes: The largest body of a request.
        max_pixels: The largest width × height of a picture.
        max_images: The most pictures in a request.
        timeout: Seconds that a client may take to send a request's head, its body, and to take the answer; and that a
            request may wait for its labels.
        drain: Seconds after SIGTERM in which requests are still taken and /readyz says 503; more than the interval in
            which your load balancer asks.
        json: Print a JSON document when the server is up, and one at the end, each in a line.
    """
    if not runs:
        raise UserError("Name what to serve: 'alexnet serve RUN', a run folder, 'last' or an exported file.")
    from alexnet.serving.settings import Settings

    _check_serving()
    settings = Settings(
        host=host, port=port, token=_token(token_file), cors=cors, max_batch=max_batch, max_delay_ms=max_delay_ms,
        queue=queue, max_bytes=max_bytes, max_pixels=max_pixels, max_images=max_images, timeout=timeout, drain=drain,
    )  # fmt: skip
    from alexnet.serving.app import serve as serve_models
    from alexnet.serving.registry import open_models

    models = open_models(runs, checkpoint, trust, engine, device, _say)
    if settings.token is None and host not in ("127.0.0.1", "::1", "localhost"):
        _say(f"Anybody who reaches {host} may ask: there is no token (--token-file, or ALEXNET_TOKEN).")

    def up(url: str) -> None:
        if json:
            print(jsonlib.dumps({"url": url, "pid": os.getpid(), "models": list(models)}), flush=True)
        else:
            names = ", ".join(f"{one.name} ({len(one.classifier.classes)} classes)" for one in models.values())
            _say(f"Serving {names} at {url}/ (what it takes: {url}/docs)")

    ended = serve_models(models, settings, up)
    if json:
        print(jsonlib.dumps(dataclasses.asdict(ended)), flush=True)
    else:
        _say(f"Stopped: {ended.accepted:,} requests were accepted, and {ended.answered:,} answered.")
    if ended.cut_short:
        return 130
    return 0 if ended.answered == ended.accepted else 1


def _check_serving() -> None:
    """Raise `UserError`, with the command that installs it, if something is missing."""
    for package in ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"A server needs {package}; pip install 'alexnet[serve]' adds it.")


def _token(file: Path | None) -> str | None:
    if file is None:
        given = os.environ.get("ALEXNET_TOKEN")
        if given is not None and not given.strip():
            raise UserError("ALEXNET_TOKEN is empty; give it a token, or unset it so that anybody may ask.")
        return given and given.strip()
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--token-file {file} cannot be read ({error}).") from error
    if not found:
        raise UserError(f"--token-file {file} is empty; write a token into it, or leave it out.")
    return found
