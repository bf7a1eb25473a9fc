"""`alexnet serve`: models over HTTP."""

from __future__ import annotations

import dataclasses
import importlib.util
import json as jsonlib
import os
import sys
from pathlib import Path
from typing import Literal

from alexnet.cli.output import log
from alexnet.errors import UserError, missing_package
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions


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
    file: FileOptions = NO_OPTIONS,
    token_file: Path | None = None,
    cors: tuple[str, ...] = (),
    root_path: str = "",
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
    """Serve models over HTTP until SIGTERM or Ctrl-C. API reference at /docs, web page at /.

    Args:
        runs: Run folders, 'last', checkpoint folders, torchvision:IMAGENET1K_V1, files of weights, or exported
            files.
        host: Address to listen on; 127.0.0.1 is this machine only, 0.0.0.0 any network interface, so that phones in
            the same network can open the page at the address, or the QR code, that is shown.
        port: Port to listen on; 0 picks a free one.
        engine: How to compute the runs: exact, fast, or one that 'alexnet predict --help' lists.
        device: Where to compute the runs.
        checkpoint: Which checkpoint of a run.
        trust: Open exported files in formats that can run code (TorchScript, pt2).
        token_file: File with the bearer token; or set ALEXNET_TOKEN.
        cors: Origins whose pages may send requests, such as https://example.org, capacitor://localhost (an app's web
            view) or null (a page without an origin); none by default.
        root_path: Path under which a reverse proxy serves this server, such as /alexnet.
        max_batch: Maximum images per batch.
        max_delay_ms: Maximum milliseconds that an image waits for a batch to fill while the network is free.
        queue: Maximum images queued (each ten-crop view counts); further requests get 503.
        max_bytes: Maximum size of a request body in bytes.
        max_pixels: Maximum width × height of an image.
        max_images: Maximum images per request.
        timeout: Seconds that a client may take to send the head and the body of a request and to read the response,
            and that a request may wait for its result.
        drain: Seconds after SIGTERM in which requests are still accepted and /readyz returns 503; choose more than the
            interval at which your load balancer checks it.
        json: Print one JSON document per line: when the server is up, and when it has stopped.
    """
    if not runs:
        raise UserError("Name what to serve, such as 'alexnet serve RUN': a run folder, 'last' or an exported file.")
    from alexnet.run_dir import check_runs
    from alexnet.serving.settings import Settings

    check_installed()
    settings = Settings(
        host=host, port=port, token=_token(token_file), cors=cors, root_path=root_path,
        max_batch=max_batch, max_delay_ms=max_delay_ms, queue=queue, max_bytes=max_bytes, max_pixels=max_pixels,
        max_images=max_images, timeout=timeout, drain=drain,
    )  # fmt: skip
    check_runs(*runs)
    from alexnet.serving.address import network_host, qr_code, to_url
    from alexnet.serving.registry import open_models
    from alexnet.serving.server import serve as serve_models

    models = open_models(runs, checkpoint, trust, engine, device, file, log)
    if settings.token is None and host not in ("127.0.0.1", "::1", "localhost"):
        log(
            f"Warning: no token set; anyone who can reach {host} can send requests (set --token-file or ALEXNET_TOKEN)."
        )

    def up(url: str) -> None:
        reachable = network_host(host)
        network_url = to_url(reachable, int(url.rpartition(":")[2])) if reachable else None
        if json:
            document = {"url": url, "network_url": network_url, "pid": os.getpid(), "models": models.names}
            print(jsonlib.dumps(document), flush=True)
            return
        classes = {name: f"{len(models[name].classes)} classes" if name in models else "no checkpoint yet"
                   for name in models.names}  # fmt: skip
        names = ", ".join(f"{name} ({what})" for name, what in classes.items())
        log(f"Serving {names} at {network_url or url}/ (API reference: {network_url or url}/docs)")
        if network_url and sys.stderr.isatty() and (code := qr_code(f"{network_url}/")):
            print(f"For phones in the same network:\n{code}", file=sys.stderr, flush=True)

    ended = serve_models(models, settings, up)
    if json:
        print(jsonlib.dumps(dataclasses.asdict(ended)), flush=True)
    else:
        log(f"Stopped: {ended.accepted:,} requests were accepted, and {ended.answered:,} answered.")
    if ended.cut_short:
        return 130
    return 0 if ended.answered == ended.accepted else 1


def check_installed() -> None:
    """Raise `UserError` with the install command if a package is missing."""
    for package in ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise missing_package("The server", package, "serve")


def _token(file: Path | None) -> str | None:
    if file is None:
        given = os.environ.get("ALEXNET_TOKEN")
        if given is not None and not given.strip():
            raise UserError("ALEXNET_TOKEN is empty; set it to a token, or unset it to serve without one.")
        return given and given.strip()
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--token-file {file} cannot be read ({error}).") from error
    if not found:
        raise UserError(f"--token-file {file} is empty; write a token into it, or leave the flag out.")
    return found
