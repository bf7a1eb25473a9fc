"""The packages that CI installs: pinned by requirements.lock, compared with it, looked up for known vulnerabilities.

    python .ci/audit.py         compares and looks up what is installed here; exits with 1 on any finding
    python .ci/audit.py lock    writes the lock from what is installed here: that and no more of it that `.[dev]` needs

pip-audit calls a package that it could not look up no finding. So first it is asked for one that is known to be
vulnerable: if it finds nothing there, it has no service to ask, and that is said (`ALEXNET_AUDIT=required` makes it an
error).
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
TOOLS = ("pip", "setuptools")  # of every environment, and pinned too
KNOWN_BAD = "urllib3==1.26.4"  # CVE-2021-33503


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Versions by name."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def installed() -> dict[str, str]:
    """The same of what is installed here, but for this project."""
    found = {canonicalize_name(dist.metadata["Name"]): dist.version for dist in metadata.distributions()}
    return {name: version for name, version in found.items() if name != OWN}


def declared(path: Path = PYPROJECT) -> list[Requirement]:
    """What pyproject.toml asks for with the extra dev, extras of this project resolved."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    found: list[Requirement] = []
    waiting, seen = [*project["dependencies"], *groups["dev"]], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if canonicalize_name(requirement.name) != OWN:
            found.append(requirement)
            continue
        for extra in requirement.extras - seen:
            seen.add(extra)
            waiting += groups[extra]
    return found


def needed(requirements: Sequence[Requirement]) -> dict[str, str]:
    """Versions, as they are installed here, of all that is asked for and what that asks for in turn."""
    found: dict[str, str] = {name: metadata.version(name) for name in TOOLS}
    waiting = [(requirement, {""}) for requirement in requirements]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, asking = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in asking):
            continue
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        found[name] = metadata.version(name)
        waiting += [(Requirement(text), {"", *extras}) for text in metadata.requires(name) or ()]
    return found


def compare(there: Mapping[str, str], locked: Mapping[str, str]) -> list[str]:
    """What differs, a sentence each. What is locked and not there was for another machine."""
    found = []
    for name, version in sorted(there.items()):
        if name not in locked:
            found.append(f"{name} {version} is installed and not locked")
        elif locked[name] != version:
            found.append(f"{name} is installed in {version} and locked in {locked[name]}")
    return found


def look_up(lines: Sequence[str]) -> list[str] | None:
    """Known vulnerabilities of packages such as `a==1.0`, and those that could not be looked up; None where pip-audit
    itself failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("\n".join(lines) + "\n")
        words = ["-r", str(path), "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        answer = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True)
    try:
        packages = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    found = []
    for package in packages:
        ids = [vulnerability["id"] for vulnerability in package.get("vulns", ())]
        if ids:
            found.append(f"{package['name']} {package['version']} has known vulnerabilities: {', '.join(ids)}")
        elif "skip_reason" in package:
            found.append(f"{package['name']} was not looked up: {package['skip_reason']}")
    return found


def vulnerabilities(locked: Mapping[str, str]) -> list[str]:
    """Those of the locked packages; a service that cannot be asked is a finding only where it must be."""
    canary = look_up([KNOWN_BAD])
    if not canary or "known vulnerabilities" not in canary[0]:
        sentence = f"vulnerabilities were not looked up: no service answered (asked for {KNOWN_BAD}, which has some)"
        if os.environ.get("ALEXNET_AUDIT") == "required":
            return [sentence]
        print(sentence)
        return []
    found = look_up([f"{name}=={version}" for name, version in locked.items()])
    return ["pip-audit failed on the lock"] if found is None else found


def write_lock(path: Path = LOCK) -> None:
    """Pin what `.[dev]` needs in the versions that are installed here."""
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    lines = [f"# What `pip install -e '.[dev]'` installs with {where}; written by .ci/audit.py lock"]
    lines += [f"{name}=={version}" for name, version in sorted(needed(declared()).items())]
    path.write_text("\n".join(lines) + "\n")


def main(words: Sequence[str]) -> int:
    if list(words) == ["lock"]:
        write_lock()
        return 0
    locked = read_lock()
    found = compare(installed(), locked) + vulnerabilities(locked)
    for sentence in found:
        print(sentence)
    print(f"{len(locked)} packages are locked; {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
