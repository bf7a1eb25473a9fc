"""Downloads from a local server that breaks connections, ignores ranges, or sends wrong content or errors."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alexnet.data.datasets import fetch

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Host(BaseHTTPRequestHandler):
    """`/broken` stops after 300,000 bytes, `/no-ranges` ignores ranges, `/wrong` sends other content."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/gone":
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.path != "/no-ranges" else 0
        body = (b"x" * len(CONTENT) if self.path == "/wrong" else CONTENT)[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:300_000] if self.path == "/broken" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_is_downloaded_with_progress(host, tmp_path):
    seen = []
    target = fetch([f"{host.url}/file"], tmp_path / "a" / "x.bin", MD5, lambda *p: seen.append(p))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT), "downloading x.bin")
    assert [p.name for p in target.parent.iterdir()] == ["x.bin"]
    count = len(host.requests)
    fetch([f"{host.url}/file"], target, MD5)
    assert len(host.requests) == count  # it exists already


def test_a_broken_download_resumes(host, tmp_path):
    with pytest.raises(OSError, match="broke after 900,000 of 1,024,000"):
        fetch([f"{host.url}/broken"], tmp_path / "x.bin", MD5)
    assert (tmp_path / "x.bin.part").stat().st_size == 900_000
    assert not (tmp_path / "x.bin").exists()
    fetch([f"{host.url}/broken"], tmp_path / "x.bin", MD5)  # a later process
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert [range_ for _, range_ in host.requests] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_host_without_ranges_starts_over(host, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:500])
    assert fetch([f"{host.url}/no-ranges"], tmp_path / "x.bin", MD5).read_bytes() == CONTENT


def test_a_complete_part_needs_no_more_bytes(host, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    assert fetch([f"{host.url}/file"], tmp_path / "x.bin", MD5).read_bytes() == CONTENT


def test_the_next_mirror_is_tried(host, tmp_path):
    urls = [f"{host.url}/gone", f"{host.url}/wrong", "http://127.0.0.1:1/closed", f"{host.url}/file"]
    assert fetch(urls, tmp_path / "x.bin", MD5).read_bytes() == CONTENT
    assert [path for path, _ in host.requests].count("/gone") == 1


def test_a_file_with_a_wrong_checksum_is_rejected(host, tmp_path):
    with pytest.raises(OSError, match="another checksum"):
        fetch([f"{host.url}/wrong"], tmp_path / "x.bin", MD5)
    assert list(tmp_path.iterdir()) == []
