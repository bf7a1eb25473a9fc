"""A server in this process without sockets: its ASGI application on an event loop in a thread, called through httpx."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from alexnet.serving.app import create_app
from alexnet.serving.registry import Models
from alexnet.serving.settings import Settings


class Client:
    """Blocking HTTP client of an application that it starts and stops."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._lifespan = app.router.lifespan_context(app)
        self.run(self._lifespan.__aenter__())
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000")
        self.run(self.client.get("/healthz"))  # the first request builds the middleware

    def close(self) -> None:
        self.run(self.client.aclose())
        self.run(self._lifespan.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the application's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.run(self.client.get(path, **options))

    def post(self, path: str, data: bytes, kind: str = "image/jpeg", **headers: str) -> httpx.Response:
        """Post `data` as the media type `kind`."""
        return self.run(self.client.post(path, content=data, headers={"content-type": kind, **headers}))

    def predict(self, *images: bytes | tuple[str, bytes], **query: Any) -> httpx.Response:
        """Post a form with `images`, each with its file name if given."""
        named = [image if isinstance(image, tuple) else (f"{i}.jpg", image) for i, image in enumerate(images)]
        return self.run(
            self.client.post(
                "/v1/predict",
                params=query,
                files=[("images", (name, data)) for name, data in named],
            )
        )

    def metric(self, name: str) -> float:
        """Return the metric `name` with its labels as /metrics writes them, or the sum over all labels."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return sum(float(value) for key, value in lines if key == name or key.startswith(f"{name}{{"))


@contextmanager
def running_server(models: Models, **settings: Any) -> Iterator[Client]:
    """Yield a client of a new server."""
    client = Client(create_app(models, Settings(**settings)))
    try:
        yield client
    finally:
        client.close()


class DecodeGate:
    """Holds up the decoding of images until `open`: of `only`, or of all if that is None."""

    def __init__(self) -> None:
        self.only: bytes | None = None
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait(self, data: bytes) -> None:
        if self.only is None or data == self.only:
            self.reached.set()
            assert self._open.wait(60)


def http_scope(path: str, kind: bytes) -> dict[str, Any]:
    """Return the ASGI scope of a POST request with a body of the media type `kind`."""
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "http_version": "1.1", "headers": [(b"host", b"localhost"), (b"content-type", kind)], "scheme": "http",
        "server": ("s", 1), "client": None,
    }  # fmt: skip


def encode_jpeg(hue: int = 0, seed: int = 0, size: tuple[int, int] = (40, 36), **options: Any) -> bytes:
    """Return a JPEG file of noise around red, green or blue (`hue` 0–2), of `size` (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 90, (size[1], size[0], 3))
    noise[..., hue] += 150
    return encode(Image.fromarray(noise.astype(np.uint8)), "JPEG", **options)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return `image` as a file of the format `form`."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
