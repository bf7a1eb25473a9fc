"""Elastic training on three hosts that fail and return, against an undisturbed run. Linux, no root, no downloads.

    python benchmarks/elastic.py [--epochs 12] [--out DIR] [--only killed cut returned]

Each host is a network namespace connected to a switch and runs one torchrun agent with one process. The first host
holds the rendezvous and is left alone. Within an epoch, one of the others

    killed    loses all its processes,
    cut       loses its network link, so that connections stay open without a response,
    returned  loses all its processes, and later restarts its agent, which rejoins.

Every host runs the same command with --resume. Writes the hosts' logs, and `elastic.json` with the events, the final
accuracies and the steps from which training resumed. The hosts share one machine's files and cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from common import RESULTS, save

NET = "10.77.0"
LOST_AFTER = 5  # seconds of silence after which a process counts as lost
RENDEZVOUS = "last_call_timeout=8,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120"
"""The first hosts must wait for others longer than a lost host stays undetected, or they start without the rest."""
RECIPE = (
    f"digits --width 0.25 --precision fp32 --device cpu --checkpoint-every 5 --set dist_timeout={LOST_AFTER}"
).split()

NOISE = re.compile(r"[\[WE]|\s|Traceback|Next:|=|-|torch|alexnet FAILED|Fail|Root")
"""Prefixes of log lines of torchrun, or that suggest commands."""

# ── hosts ─────────────────────────────────────────────────────────────────────────────────────────

# Hosts share the machine's files and cores, but not its network: each has one interface, a veth pair whose other end is
# on a bridge in the switch's namespace. Needs util-linux and iproute2, and root or a kernel that permits unprivileged
# namespaces; nothing outside the namespaces is touched, and all vanish with their processes.


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
        pid = str(self._keeper.pid)
        return ["nsenter", "--target", pid, "--user", "--net", "--uts", "--preserve-credentials", "--"]

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


# ── scenarios ─────────────────────────────────────────────────────────────────────────────────────


class Scenario:
    """One run on three hosts: what was done to them, and when."""

    def __init__(self, network: Network, folder: Path, epochs: int) -> None:
        self.network, self.folder, self.run = network, folder, folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        self.command = ["-m", "alexnet", "train", *RECIPE, "--epochs", str(epochs), "--out", str(self.run), "--resume"]
        self.began = time.monotonic()
        self.events: list[dict[str, Any]] = []
        self.agents: dict[Host, Any] = {}
        self.logs: dict[Host, IO[str]] = {host: (folder / f"{host.name}.log").open("w") for host in network.hosts}

    def log_event(self, what: str) -> None:
        event = {"seconds": round(time.monotonic() - self.began, 1), "what": what, "epochs": len(self.rows())}
        self.events.append(event)
        print(f"{self.folder.name:>12} {event['seconds']:6.1f} s, after {event['epochs']:2} epochs: {what}", flush=True)

    def start(self, host: Host) -> None:
        """Start the agent of a host; it restarts its process whenever hosts leave or join."""
        first = host is self.network.hosts[0]
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", f"1:{len(self.network.hosts)}",
            "--nproc-per-node", "1", "--max-restarts", "20", "--monitor-interval", "0.5", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"{NET}.1:29400", "--rdzv-id", self.folder.name, "--local-addr", host.address,
            "--rdzv-conf", f"is_host={int(first)},{RENDEZVOUS}",
        ]  # fmt: skip
        settings = {
            "OMP_NUM_THREADS": "1",  # these hosts have the same cores
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else torch 2.15 waits forever for a host that returns
        }
        self.agents[host] = host.start([*torchrun, *self.command], self.logs[host], settings)

    def start_all(self) -> None:
        for host in self.network.hosts:
            self.start(host)

    def rows(self) -> list[dict[str, Any]]:
        try:
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []

    def wait(self, until: Callable[[], bool], seconds: float, what: str) -> None:
        for _ in range(round(seconds / 0.1)):
            if until():
                return
            if self.agents[self.network.hosts[0]].poll() is not None:
                break
            time.sleep(0.1)
        if not until():
            raise SystemExit(f"{self.folder}: timed out waiting for {what}; see the logs there.")

    def wait_for_epoch(self, number: int, seconds: float = 240) -> None:
        """Wait until `number` epochs are done and a step of the next one is saved."""
        self.wait(lambda: len(self.rows()) >= number, seconds, f"epoch {number}")
        steps = self.rows()[-1]["step"]
        self.wait(lambda: self.saved() > steps, seconds, f"a checkpoint after step {steps}")

    def saved(self) -> int:
        """Return the step of the newest checkpoint."""
        try:
            return int(re.match(r"\d+", (self.run / "last").read_text())[0])  # type: ignore[index]
        except (OSError, TypeError):
            return 0

    def finish(self, seconds: float = 300) -> dict[str, Any]:
        """Wait for the first host's agent, and return the result of the run."""
        first = self.agents[self.network.hosts[0]]
        self.wait(lambda: first.poll() is not None, seconds, "the end")
        self.log_event(f"done, exit code {first.returncode}")
        for host, agent in self.agents.items():
            if host.plugged:
                try:
                    agent.wait(30)
                except Exception:
                    self.log_event(f"{host.name} does not exit")
        for host in self.network.hosts:
            host.kill()
            self.logs[host].close()
        summary = json.loads((self.run / "summary.json").read_text())
        log = (self.folder / f"{self.network.hosts[0].name}.log").read_text()
        return {
            "events": self.events,
            "exit_code": first.returncode,
            "complete": summary.get("complete", False),
            "epochs": summary["epochs"],
            "steps": summary["steps"],
            "val_top1": summary["final"]["top1"],
            "val_loss": summary["final"]["val_loss"],
            "test_top1": summary["test"]["top1"],
            "went_on_after_steps": [int(n.replace(",", "")) for n in re.findall(r"Resuming after step ([\d,]+)", log)],
            "processes": [int(n) for n in re.findall(r"×\d+ in (\d+) processes on cpu", log)],
            "log": [line for line in log.splitlines() if line and not NOISE.match(line)],
        }


def undisturbed(scenario: Scenario) -> dict[str, Any]:
    scenario.start_all()
    scenario.log_event("three hosts started")
    return scenario.finish()


def killed(scenario: Scenario) -> dict[str, Any]:
    scenario.start_all()
    scenario.wait_for_epoch(3)
    victim = scenario.network.hosts[2]
    scenario.log_event(f"{victim.name}: {victim.kill()} processes killed")
    return scenario.finish()


def cut(scenario: Scenario) -> dict[str, Any]:
    scenario.start_all()
    scenario.wait_for_epoch(3)
    victim = scenario.network.hosts[2]
    victim.cut()
    scenario.log_event(f"{victim.name}: wire cut")
    return scenario.finish()


def returned(scenario: Scenario) -> dict[str, Any]:
    scenario.start_all()
    scenario.wait_for_epoch(2)
    victim = scenario.network.hosts[1]
    scenario.log_event(f"{victim.name}: {victim.kill()} processes killed")
    scenario.wait_for_epoch(len(scenario.rows()) + 1)
    scenario.start(victim)
    scenario.log_event(f"{victim.name}: agent started again")
    return scenario.finish()


SCENARIOS: dict[str, Callable[[Scenario], dict[str, Any]]] = {
    "undisturbed": undisturbed,
    "killed": killed,
    "cut": cut,
    "returned": returned,
}


def run_scenario(name: str, folder: Path, epochs: int) -> dict[str, Any]:
    """Run one of the `SCENARIOS`, with logs in `folder`. Raises `NoNamespaces`."""
    with Network(3) as network:
        return SCENARIOS[name](Scenario(network, folder, epochs))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None, help="for runs and logs; by default a temporary folder")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts go too
    out = args.out or Path(tempfile.mkdtemp(prefix="elastic-"))
    results: dict[str, Any] = {"lost_after_s": LOST_AFTER, "rendezvous": RENDEZVOUS, "recipe": " ".join(RECIPE)}
    for name in args.only:
        try:
            results[name] = run_scenario(name, out / name, args.epochs)
        except NoNamespaces as error:
            sys.exit(f"This machine does not permit network namespaces: {error}")
        save("elastic", results, folder=args.results)
    print(f"logs: {out}")


if __name__ == "__main__":
    main()
