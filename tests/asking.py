"""A server in this process, without sockets: its application on an event loop in a thread, asked through httpx."""

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
from alexnet.serving.registry import ModelRegistry
from alexnet.serving.settings import Settings


class Asking:
    """Where tests send requests."""

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
        self._thread.join()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.run(self.client.get(path, **more))

    def post(self, path: str, data: bytes, kind: str = "image/jpeg", **headers: str) -> httpx.Response:
        """The bytes `data` as the body, of the media type `kind`."""
        return self.run(self.client.post(path, content=data, headers={"content-type": kind, **headers}))

    def predict(self, *pictures: bytes | tuple[str, bytes], **query: Any) -> httpx.Response:
        """A form with `pictures`, each with its name if it has one."""
        named = [p if isinstance(p, tuple) else (f"{i}.jpg", p) for i, p in enumerate(pictures)]
        return self.run(
            self.client.post("/v1/predict", params=query, files=[("images", (name, data)) for name, data in named])
        )

    def count(self, name: str) -> float:
        """What /metrics says of `name`, with its labels as they are written there, or their sum without."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return sum(float(value) for key, value in lines if key == name or key.startswith(f"{name}{{"))


@contextmanager
def asking(models: ModelRegistry, **settings: Any) -> Iterator[Asking]:
    """A server of `models`."""
    found = Asking(create_app(models, Settings(**settings)))
    try:
        yield found
    finally:
        found.close()


def jpeg(hue: int = 0, seed: int = 0, size: tuple[int, int] = (40, 36), **more: Any) -> bytes:
    """The bytes of a JPEG of noise around one of three colours."""
    noise = np.random.default_rng(seed).integers(0, 90, (size[1], size[0], 3))
    noise[..., hue] += 150
    return encoded(Image.fromarray(noise.astype(np.uint8)), "JPEG", **more)


def encoded(image: Image.Image, form: str, **more: Any) -> bytes:
    """The bytes of a file in the format `form`."""
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()
