"""Building C on the spot: kept, whole, shared by several processes, and refused with a reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alexnet import native


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALEXNET_COMPILER", raising=False)
    try:
        native._compiler()
    except native.Unavailable as why:
        pytest.skip(str(why))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def test_what_is_built_is_kept_whole(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert [lib.answer() for lib in pool.map(native.library, [source] * 4)] == [42] * 4
    (kept,) = (source.parent / "cache" / "native").iterdir()  # one file, nothing half-written beside it
    assert kept.name.startswith("answer-")
    monkeypatch.setattr("alexnet.native.subprocess.run", lambda *a, **k: pytest.fail("built again"))
    assert native.library(source).answer() == 42


def test_another_source_is_another_library(source: Path) -> None:
    assert native.library(source).answer() == 42
    source.write_text("int answer(void) { return 7; }\n")
    assert native.library(source).answer() == 7


def test_a_damaged_library_is_built_anew(source: Path) -> None:
    folder = source.parent / "cache" / "native"
    folder.mkdir(parents=True)
    name = native._path(source).name
    (folder / name).write_text("not a library")
    assert native.library(source).answer() == 42


def test_a_cache_that_cannot_be_written(source: Path) -> None:
    (source.parent / "cache").write_text("a file where the folder should be")
    assert native.library(source).answer() == 42


def test_reasons(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(native.Unavailable, match=r"failed: .*answer\.c"):
        native.library(source)
    source.write_text("int missing(void); int answer(void) { return missing(); }\n")
    with pytest.raises(native.Unavailable, match="cannot be used: .*missing"):
        native.library(source)
    monkeypatch.setenv("ALEXNET_COMPILER", "no-such-compiler")
    with pytest.raises(native.Unavailable, match="there is no no-such-compiler") as raised:
        native.library(source)
    assert not raised.value.wanted
    monkeypatch.setenv("ALEXNET_COMPILER", "none")
    with pytest.raises(native.Unavailable, match="ALEXNET_COMPILER is none") as raised:
        native.library(source)
    assert raised.value.wanted
