"""Hosts made of network namespaces on one Linux machine, each linked to a switch; links can be cut and hosts killed.

    with Network(3) as network:
        process = network.hosts[0].start(["torchrun", …], log)
        network.hosts[1].cut()

Hosts share the machine's files and cores, but not its network: each has one interface, a veth pair whose other end is
on a bridge in the switch's namespace. Needs util-linux and iproute2, and root or a kernel that permits unprivileged
namespaces; nothing outside the namespaces is touched, and all vanish with their processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

NET = "10.77.0"


class NoNamespaces(RuntimeError):
    """This machine does not permit network namespaces; the message is its error."""


class Host:
    """One host: its address, its link, and its processes."""

    def __init__(self, network: Network, number: int) -> None:
        self.name, self.address, self.plug = f"host{number}", f"{NET}.{number + 1}", f"plug{number}"
        self.plugged = True
        self._network = network
        # A user inside the switch's user namespace may make further network namespaces, and connect them.
        self._keeper = network.within(["unshare", "--net", "--uts", "sleep", "infinity"])
        self._namespace = _namespace_of(self._keeper)
        pid = str(self._keeper.pid)
        network.run(["ip", "link", "add", self.plug, "type", "veth", "peer", "name", "eth0", "netns", pid])
        network.run(["ip", "link", "set", self.plug, "master", "switch", "up"])
        self._run(["hostname", self.name])
        self._run(["ip", "address", "add", f"{self.address}/24", "dev", "eth0"])
        self._run(["ip", "link", "set", "eth0", "up"])
        self._run(["ip", "link", "set", "lo", "up"])

    def start(
        self, command: Sequence[str], log: IO[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program on this host; its output goes to `log`."""
        return subprocess.Popen(
            [*self._enter, *command],
            stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **(environment or {})},
        )  # fmt: skip

    def kill(self) -> int:
        """Send SIGKILL to every process of the host, as a power failure would, and return how many there were."""
        killed = 0
        while pids := self._processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.05)
        return killed

    def cut(self) -> None:
        """Take the link down at the switch: packets vanish, connections stay open."""
        self._network.run(["ip", "link", "set", self.plug, "down"])
        self.plugged = False

    def restore(self) -> None:
        """Bring the link up again."""
        self._network.run(["ip", "link", "set", self.plug, "up"])
        self.plugged = True

    def close(self) -> None:
        self.kill()
        self._keeper.kill()
        self._keeper.wait()

    @property
    def _enter(self) -> list[str]:
        return [
            "nsenter",
            "--target",
            str(self._keeper.pid),
            "--user",
            "--net",
            "--uts",
            "--preserve-credentials",
            "--",
        ]

    def _run(self, command: Sequence[str]) -> None:
        _checked([*self._enter, *command])

    def _processes(self) -> list[int]:
        """Return the processes on this host, without the one that holds the namespace."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != self._keeper.pid:
                with suppress(OSError):
                    if os.readlink(entry / "ns/net") == self._namespace and not _is_dead(entry):
                        found.append(int(entry.name))
        return found


class Network:
    """A switch and its hosts. Raises `NoNamespaces` if the kernel refuses."""

    def __init__(self, hosts: int) -> None:
        missing = [tool for tool in ("unshare", "nsenter", "ip", "hostname") if shutil.which(tool) is None]
        if missing:
            raise NoNamespaces(f"this machine lacks {', '.join(missing)}")
        self.hosts: list[Host] = []
        self._keeper = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--net", "sleep", "infinity"], stderr=subprocess.PIPE, text=True
        )
        try:
            _namespace_of(self._keeper)
            self.run(["ip", "link", "add", "name", "switch", "type", "bridge"])
            self.run(["ip", "link", "set", "switch", "up"])
            for number in range(hosts):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def within(self, command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._enter, *command], stderr=subprocess.PIPE, text=True)

    def run(self, command: Sequence[str]) -> None:
        _checked([*self._enter, *command])

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._keeper.pid), "--user", "--net", "--preserve-credentials", "--"]

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self._keeper.kill()
        self._keeper.wait()


def _namespace_of(keeper: subprocess.Popen[str]) -> str:
    """Return the network namespace of a process that is about to enter its own."""
    before = os.readlink("/proc/self/ns/net")
    parent = None
    for _ in range(200):
        if keeper.poll() is not None:
            raise NoNamespaces((keeper.stderr.read() if keeper.stderr else "").strip() or "unshare failed")
        with suppress(OSError):
            now = os.readlink(f"/proc/{keeper.pid}/ns/net")
            command = Path(f"/proc/{keeper.pid}/cmdline").read_bytes()
            if now != before and now != parent and command.startswith(b"sleep"):
                return now
        time.sleep(0.02)
    raise NoNamespaces("unshare did not make a namespace in four seconds")


def _is_dead(entry: Path) -> bool:
    """Return whether a process is a zombie, which only its parent can remove."""
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespaces(f"{' '.join(command)}: {done.stderr.strip()}")
