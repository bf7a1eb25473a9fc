"""The baseline of serving.py: a FastAPI handler around eager PyTorch, as one would write it in ten minutes.

    python benchmarks/plain_server.py RUN

The same network, decoder and preprocessing as ours. Each request runs alone in the thread pool that FastAPI uses for
plain functions; there is no batching and no limit.
"""

from __future__ import annotations

import json
import socket
import sys

import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from alexnet.inference.load import load_image, load_model

opened = load_model(sys.argv[1])
app = FastAPI()


def label(data: bytes) -> list[dict[str, object]]:
    pixels = torch.from_numpy(load_image(data, opened.preprocess))[None]
    with torch.no_grad():
        p = opened.model(opened.preprocess.normalize(pixels)).softmax(1)[0]
    best = p.topk(min(5, len(p)))
    return [{"label": opened.classes[i], "p": v} for v, i in zip(*map(torch.Tensor.tolist, best), strict=True)]


@app.post("/predict")
async def predict(request: Request) -> list[dict[str, object]]:
    return await run_in_threadpool(label, await request.body())


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}"}), flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    server.run(sockets=[listening])
