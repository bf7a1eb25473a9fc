"""The address and the QR code that `alexnet serve` shows for other devices."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import segno

from alexnet.cli import run
from alexnet.serving import address
from alexnet.serving.address import HALF_BLOCKS, network_host, qr_code
from alexnet.serving.server import ServerResult

URL = "http://192.168.1.23:8000/"


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", None), ("localhost", None), ("::1", None), ("10.1.2.3", "10.1.2.3")]
)
def test_server_for_other_devices_has_the_address_that_it_listens_at(host: str, expected: str | None) -> None:
    assert network_host(host) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("own", ["192.168.1.23", "127.0.0.1", None])
def test_any_interface_is_the_one_of_the_default_route(
    host: str, own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Socket:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Socket:
            return self

        def __exit__(self, *_: object) -> None: ...
        def connect(self, _: object) -> None:
            if own is None:
                raise OSError("Network is unreachable")

        def getsockname(self) -> tuple[str | None, int]:
            return own, 40_000

    monkeypatch.setattr(address.socket, "socket", Socket)
    assert network_host(host) == (own if own != "127.0.0.1" else None)


def test_qr_code_has_the_modules_of_the_text_in_colors_of_its_own() -> None:
    code = qr_code(URL)
    assert code is not None
    modules = {block: pair for pair, block in HALF_BLOCKS.items()}
    rows: list[list[int]] = []
    for line in code.splitlines():
        pairs = [modules[block] for block in re.fullmatch(r"\x1b\[38;5;16;48;5;231m(.+)\x1b\[0m", line)[1]]
        rows += ([upper for upper, _ in pairs], [lower for _, lower in pairs])
    expected = [list(row) for row in segno.make(URL).matrix_iter()]
    assert rows[: len(expected)] == expected
    assert not any(any(row) for row in rows[len(expected) :])


def test_server_without_segno_has_no_qr_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    assert qr_code(URL) is None


@pytest.mark.parametrize(("host", "terminal"), [("0.0.0.0", True), ("0.0.0.0", False), ("127.0.0.1", True)])
def test_command_shows_the_address_for_phones_and_the_code_on_a_terminal_only(
    checkpoint: Path, host: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(models: object, settings: object, up: object, **_: object) -> ServerResult:
        up(f"http://{host}:8123")  # type: ignore[operator]
        return ServerResult(0, 0, False)

    monkeypatch.setattr("alexnet.serving.server.serve", serve)
    monkeypatch.setattr(
        "alexnet.serving.address.network_host", lambda host: "192.168.1.23" if host == "0.0.0.0" else None
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run(["serve", str(checkpoint), "--host", host]) == 0
    shown = capsys.readouterr().err
    found = "http://192.168.1.23:8123/" if host == "0.0.0.0" else "http://127.0.0.1:8123/"
    assert f"at {found} (API reference: {found}docs)" in shown
    assert ("▀▀▀" in shown) == (terminal and host == "0.0.0.0")
