"""CI's audit fails on an unlocked version or package and on a known vulnerability."""

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


def fake_pip_audit(monkeypatch, audit, vulnerable=(), skipped=(), silent=False):
    """Replace pip-audit by one with these vulnerable and skipped packages; `silent` prints nothing."""

    def run(command, **_):
        lines = Path(command[command.index("-r") + 1]).read_text().split()
        packages = []
        for name, version in (line.split("==") for line in lines):
            row = {"name": name, "version": version}
            row |= {"skip_reason": "not on PyPI"} if name in skipped else {"vulns": []}
            row |= {"vulns": [{"id": "CVE-1"}]} if name in vulnerable else {}
            packages.append(row)
        return subprocess.CompletedProcess(command, 0, "" if silent else json.dumps({"dependencies": packages}))

    monkeypatch.setattr(audit.subprocess, "run", run)


def test_differences_from_the_lock_are_found(audit):
    locked = {"torch": "2.0", "numpy": "1.0", "elsewhere": "1.0"}
    assert audit.compare({"torch": "2.0", "numpy": "1.0"}, locked) == []
    assert audit.compare({"torch": "2.1", "numpy": "1.0"}, locked) == ["torch 2.1 is installed but 2.0 is locked"]
    assert audit.compare({"typo": "9"}, locked) == ["typo 9 is installed but not locked"]


def test_main_fails_if_an_installed_version_differs_from_the_lock(audit, monkeypatch, tmp_path, capsys):
    fake_pip_audit(monkeypatch, audit)
    versions = {"torch": "2.0", "numpy": "1.0"}
    monkeypatch.setattr(audit, "installed", lambda: versions)
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a comment\nTorch==2.0\nnumpy==1.0\n")
    read = audit.read_lock
    monkeypatch.setattr(audit, "read_lock", lambda: read(lock))
    assert audit.main([]) == 0
    versions["numpy"] = "1.1"
    assert audit.main([]) == 1
    assert "numpy 1.1 is installed but 1.0 is locked" in capsys.readouterr().out


def test_known_vulnerabilities_fail(audit, monkeypatch):
    fake_pip_audit(monkeypatch, audit, vulnerable=["urllib3", "torch"])
    assert audit.vulnerabilities({"torch": "2.0"}) == ["torch 2.0 has known vulnerabilities: CVE-1"]
    fake_pip_audit(monkeypatch, audit, vulnerable=["urllib3"])
    assert audit.vulnerabilities({"torch": "2.0"}) == []


def test_a_package_that_was_not_checked_fails(audit, monkeypatch):
    fake_pip_audit(monkeypatch, audit, vulnerable=["urllib3"], skipped=["torch"])
    assert audit.vulnerabilities({"torch": "2.0"}) == ["torch was not checked: not on PyPI"]


@pytest.mark.parametrize("responses", [{"skipped": ["urllib3"]}, {"silent": True}, {}])
def test_an_unreachable_service_is_reported(audit, monkeypatch, capsys, responses):
    fake_pip_audit(monkeypatch, audit, **responses)
    assert audit.vulnerabilities({"torch": "2.0"}) == []
    assert "were not checked" in capsys.readouterr().out
    monkeypatch.setenv("ALEXNET_AUDIT", "required")
    assert "were not checked" in audit.vulnerabilities({"torch": "2.0"})[0]


def test_the_lock_covers_all_requirements_and_holds_no_urls(audit):
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


def test_requirements_are_resolved_recursively(audit):
    versions = audit.resolve([audit.Requirement("torchvision"), audit.Requirement("absent; python_version < '3'")])
    assert {"torchvision", "torch", "numpy", "sympy", "mpmath", "pip"} <= set(versions)
    assert "pytest" not in versions
    assert "absent" not in versions
