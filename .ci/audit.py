"""Audit of the packages that CI installs: compared with requirements.lock, and checked for known vulnerabilities.

    python .ci/audit.py         audit the installed packages; exit with 1 on any finding
    python .ci/audit.py lock    write the lock: the installed versions of everything that `.[dev]` requires

pip-audit reports nothing if it cannot reach its service. So it first looks up a version known to be vulnerable: if that
yields nothing, a notice says that vulnerabilities were not checked (an error with `ALEXNET_AUDIT=required`).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

LOCK = Path(__file__).with_name("requirements.lock")
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
OWN = "alexnet"
TOOLS = ("pip", "setuptools")  # part of every environment, also pinned
KNOWN_BAD = "urllib3==1.26.4"  # CVE-2021-33503


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Return the locked version of each package."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def installed() -> dict[str, str]:
    """Return the version of each installed package except this project."""
    versions = {canonicalize_name(dist.metadata["Name"]): dist.version for dist in metadata.distributions()}
    return {name: version for name, version in versions.items() if name != OWN}


def declared(path: Path = PYPROJECT) -> list[Requirement]:
    """Return the requirements of pyproject.toml with the extra dev, this project's own extras resolved."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    requirements: list[Requirement] = []
    waiting, seen = [*project["dependencies"], *groups["dev"]], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if canonicalize_name(requirement.name) != OWN:
            requirements.append(requirement)
            continue
        for extra in requirement.extras - seen:
            seen.add(extra)
            waiting += groups[extra]
    return requirements


def resolve(requirements: Sequence[Requirement]) -> dict[str, str]:
    """Return the installed versions of `requirements` and of everything they require in turn."""
    versions: dict[str, str] = {name: metadata.version(name) for name in TOOLS}
    waiting = [(requirement, {""}) for requirement in requirements]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, extras_of = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras_of):
            continue
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        versions[name] = metadata.version(name)
        waiting += [(Requirement(text), {"", *extras}) for text in metadata.requires(name) or ()]
    return versions


def compare(versions: Mapping[str, str], locked: Mapping[str, str]) -> list[str]:
    """Return a sentence per installed package that is not locked or differs. Locked ones may be absent here."""
    findings = []
    for name, version in sorted(versions.items()):
        if name not in locked:
            findings.append(f"{name} {version} is installed but not locked")
        elif locked[name] != version:
            findings.append(f"{name} {version} is installed but {locked[name]} is locked")
    return findings


def look_up(lines: Sequence[str]) -> list[str] | None:
    """Return a sentence per package (`a==1.0`) that is vulnerable or could not be checked; None if pip-audit failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("\n".join(lines) + "\n")
        options = ["-r", str(path), "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        result = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True)
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    findings = []
    for package in packages:
        ids = [vulnerability["id"] for vulnerability in package.get("vulns", ())]
        if ids:
            findings.append(f"{package['name']} {package['version']} has known vulnerabilities: {', '.join(ids)}")
        elif "skip_reason" in package:
            findings.append(f"{package['name']} was not checked: {package['skip_reason']}")
    return findings


def vulnerabilities(locked: Mapping[str, str]) -> list[str]:
    """Return the findings for the locked packages; an unreachable service is one with ALEXNET_AUDIT=required."""
    canary = look_up([KNOWN_BAD])
    if not canary or "known vulnerabilities" not in canary[0]:
        notice = f"vulnerabilities were not checked: the service did not respond (it must report {KNOWN_BAD})"
        if os.environ.get("ALEXNET_AUDIT") == "required":
            return [notice]
        print(notice)
        return []
    findings = look_up([f"{name}=={version}" for name, version in locked.items()])
    return ["pip-audit failed on the lock"] if findings is None else findings


def write_lock(path: Path = LOCK) -> None:
    """Pin everything that `.[dev]` requires at the installed versions."""
    platform_name = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    lines = [f"# What `pip install -e '.[dev]'` installs with {platform_name}; written by .ci/audit.py lock"]
    lines += [f"{name}=={version}" for name, version in sorted(resolve(declared()).items())]
    path.write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["lock"]:
        write_lock()
        return 0
    locked = read_lock()
    findings = compare(installed(), locked) + vulnerabilities(locked)
    for finding in findings:
        print(finding)
    print(f"{len(locked)} packages are locked; {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
