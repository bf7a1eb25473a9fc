"""CI's audit can fail: on another version, on a package that nobody asked for, on a known vulnerability."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answering(monkeypatch, audit, vulnerable=(), skipped=(), silent=False):
    """pip-audit's place is taken by one that knows these."""

    def run(words, **_):
        lines = Path(words[words.index("-r") + 1]).read_text().split()
        packages = []
        for name, version in (line.split("==") for line in lines):
            row = {"name": name, "version": version}
            row |= {"skip_reason": "not on PyPI"} if name in skipped else {"vulns": []}
            row |= {"vulns": [{"id": "CVE-1"}]} if name in vulnerable else {}
            packages.append(row)
        return subprocess.CompletedProcess(words, 0, "" if silent else json.dumps({"dependencies": packages}))

    monkeypatch.setattr(audit.subprocess, "run", run)


def test_what_differs_from_the_lock_is_found(audit):
    locked = {"torch": "2.0", "numpy": "1.0", "elsewhere": "1.0"}
    assert audit.compare({"torch": "2.0", "numpy": "1.0"}, locked) == []
    assert audit.compare({"torch": "2.1", "numpy": "1.0"}, locked) == ["torch is installed in 2.1 and locked in 2.0"]
    assert audit.compare({"typo": "9"}, locked) == ["typo 9 is installed and not locked"]


def test_the_step_fails_where_an_installed_version_differs_from_the_lock(audit, monkeypatch, tmp_path, capsys):
    answering(monkeypatch, audit)
    there = {"torch": "2.0", "numpy": "1.0"}
    monkeypatch.setattr(audit, "installed", lambda: there)
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a comment\nTorch==2.0\nnumpy==1.0\n")
    read = audit.read_lock
    monkeypatch.setattr(audit, "read_lock", lambda: read(lock))
    assert audit.main([]) == 0
    there["numpy"] = "1.1"
    assert audit.main([]) == 1
    assert "numpy is installed in 1.1 and locked in 1.0" in capsys.readouterr().out


def test_known_vulnerabilities_fail(audit, monkeypatch):
    answering(monkeypatch, audit, vulnerable=["urllib3", "torch"])
    assert audit.vulnerabilities({"torch": "2.0"}) == ["torch 2.0 has known vulnerabilities: CVE-1"]
    answering(monkeypatch, audit, vulnerable=["urllib3"])
    assert audit.vulnerabilities({"torch": "2.0"}) == []


def test_a_package_that_was_not_looked_up_fails(audit, monkeypatch):
    answering(monkeypatch, audit, vulnerable=["urllib3"], skipped=["torch"])
    assert audit.vulnerabilities({"torch": "2.0"}) == ["torch was not looked up: not on PyPI"]


@pytest.mark.parametrize("how", [{"skipped": ["urllib3"]}, {"silent": True}, {}])
def test_a_service_that_does_not_answer_is_never_taken_for_no_finding(audit, monkeypatch, capsys, how):
    answering(monkeypatch, audit, **how)
    assert audit.vulnerabilities({"torch": "2.0"}) == []
    assert "were not looked up" in capsys.readouterr().out
    monkeypatch.setenv("ALEXNET_AUDIT", "required")
    assert "were not looked up" in audit.vulnerabilities({"torch": "2.0"})[0]


def test_the_lock_has_all_that_is_asked_for_and_no_address(audit):
    locked = audit.read_lock()
    for requirement in audit.declared():
        if requirement.marker is None or requirement.marker.evaluate():
            name = audit.canonicalize_name(requirement.name)
            assert name in locked, f"{name} is not locked; python .ci/audit.py lock"
            assert requirement.specifier.contains(locked[name], prereleases=True), f"{name} is locked too old"
    assert {"pip", "setuptools", "torch", "litdata", "pip-audit"} <= set(locked)
    text = audit.LOCK.read_text()
    assert "//" not in text
    assert "--" not in text


def test_what_is_needed_is_followed_through(audit):
    found = audit.needed([audit.Requirement("torchvision"), audit.Requirement("absent; python_version < '3'")])
    assert {"torchvision", "torch", "numpy", "sympy", "mpmath", "pip"} <= set(found)
    assert "pytest" not in found
    assert "absent" not in found
