# Serves whatever is mounted at /model: a run folder, or a folder with an exported file (pass its path; TorchScript and
# pt2 files, which can run code, also need --trust). Not built where it was written.
# See docs/serving.md.
#
#     docker build -t alexnet .
#     docker run --rm -p 8000:8000 -v "$PWD/runs/pets:/model:ro" -e ALEXNET_TOKEN=… alexnet
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
# the CPU build of torch is a fraction of the size of the CUDA build
RUN pip install --no-cache-dir uv && uv pip install --system --no-cache --torch-backend=cpu '/src[serve,show,fast]' && rm -r /src

RUN useradd --create-home alexnet
USER alexnet
WORKDIR /home/alexnet
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]

# exec form: SIGTERM reaches the server itself, which then completes accepted requests
ENTRYPOINT ["alexnet", "serve", "--host", "0.0.0.0", "--drain", "5"]
CMD ["/model"]
