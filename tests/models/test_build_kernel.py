"""Building C kernels: cached atomically, shared by several builders, and unavailable with a reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alexnet.models import build_kernel


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALEXNET_COMPILER", raising=False)
    try:
        build_kernel._find_compiler()
    except build_kernel.KernelUnavailable as error:
        pytest.skip(str(error))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def test_a_library_is_built_once_and_cached(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert [lib.answer() for lib in pool.map(build_kernel.load_library, [source] * 4)] == [42] * 4
    (cached,) = (source.parent / "cache" / "native").iterdir()  # a single file, no partial ones
    assert cached.name.startswith("answer-")
    monkeypatch.setattr("alexnet.models.build_kernel.subprocess.run", lambda *a, **k: pytest.fail("built again"))
    assert build_kernel.load_library(source).answer() == 42


def test_another_source_builds_another_library(source: Path) -> None:
    assert build_kernel.load_library(source).answer() == 42
    source.write_text("int answer(void) { return 7; }\n")
    assert build_kernel.load_library(source).answer() == 7


def test_a_damaged_library_is_rebuilt(source: Path) -> None:
    folder = source.parent / "cache" / "native"
    folder.mkdir(parents=True)
    name = build_kernel._library_path(source).name
    (folder / name).write_text("not a library")
    assert build_kernel.load_library(source).answer() == 42


def test_a_cache_that_cannot_be_written(source: Path) -> None:
    (source.parent / "cache").write_text("a file where the folder should be")
    assert build_kernel.load_library(source).answer() == 42


def test_reasons_why_a_kernel_is_unavailable(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(build_kernel.KernelUnavailable, match=r"failed: .*answer\.c"):
        build_kernel.load_library(source)
    source.write_text("int missing(void); int answer(void) { return missing(); }\n")
    with pytest.raises(build_kernel.KernelUnavailable, match="cannot be used: .*missing"):
        build_kernel.load_library(source)
    monkeypatch.setenv("ALEXNET_COMPILER", "no-such-compiler")
    with pytest.raises(build_kernel.KernelUnavailable, match="there is no no-such-compiler") as raised:
        build_kernel.load_library(source)
    assert not raised.value.expected
    monkeypatch.setenv("ALEXNET_COMPILER", "none")
    with pytest.raises(build_kernel.KernelUnavailable, match="ALEXNET_COMPILER is none") as raised:
        build_kernel.load_library(source)
    assert raised.value.expected
