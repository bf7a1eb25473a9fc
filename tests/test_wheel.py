"""The built wheel works without the repository: it trains, reports and serves."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel from a copy of the sources, as `python -m build` does."""
    pytest.importorskip("build", reason="build is not installed; it is in the extra dev")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=source,
        check=True,
    )
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "alexnet").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= packed, files - packed


@pytest.mark.slow
def test_the_wheel_alone_trains_reports_and_serves(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    # dependencies come from this environment; its own alexnet does not, since .pth files in a .pth entry are ignored
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    alexnet = [str(python), "-m", "alexnet"]

    def run(*arguments: str) -> str:
        return subprocess.run(
            [*alexnet, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    where = [python, "-c", "import alexnet; print(alexnet.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(site)

    assert json.loads(run("train", "--epochs", "1", "--width", "0.125", "--out", "run", "--json"))["epochs"] == 1
    (tmp_path / "run" / "report.html").unlink()
    assert json.loads(run("report", "run", "--json"))["files"][0] == "run/report.html"
    assert "<svg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    command = [*alexnet, "serve", "run", "--port", "0", "--json"]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        file = io.BytesIO()
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(file, "png")
        request = urllib.request.Request(f"{url}/v1/predict", file.getvalue(), {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert len(json.loads(response.read())["predictions"][0]["labels"]) == 5
        for page in ("/", "/docs"):
            with urllib.request.urlopen(url + page, timeout=60) as response:
                assert b"<html" in response.read()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait(60)
