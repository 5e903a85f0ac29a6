"""Two hosts on one machine: network namespaces with an interface each, and real Ray nodes in them."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

NAMES = Path("/etc/netns")
"""Where `ip netns exec` finds a namespace's own /etc/hosts."""
RAY = Path(sys.executable).with_name("ray")
PORT = 6379
NODE_SECONDS = 120
PATIENCE = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
"""After how long Ray counts a silent node, or the head, as dead: half a minute. Its defaults take two minutes more."""


def namespaces_unavailable() -> str | None:
    """Why network namespaces cannot be made here, or None."""
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian package iproute2)"
    name = f"vpo-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    entered = subprocess.run(["ip", "netns", "exec", name, "ip", "link"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"network namespaces cannot be entered: {entered.stderr.strip()}" if entered.returncode else None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """A machine as far as the network goes. Files are shared, as on a cluster with a shared folder."""

    name: str
    address: str
    folder: Path
    environment: dict[str, str]
    node: subprocess.Popen[bytes] | None = None

    def processes(self) -> list[psutil.Process]:
        """What runs on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        found = []
        for pid in listed:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def command(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def start_ray(self, head: "Host") -> None:
        """Start this host's Ray node, a head where `head` is the host itself, with one pretend GPU."""
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if head is not self:
            role = [f"--address={head.address}:{PORT}"]
        command = self.command(
            *(str(RAY), "start", "--block", "--disable-usage-stats", *role),
            *(f"--node-ip-address={self.address}", f"--temp-dir={self.folder}"),
            *("--num-cpus=4", "--num-gpus=1", f"--object-store-memory={200 << 20}"),
        )
        with (self.folder / "ray.log").open("ab") as log:
            self.node = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def stop_ray(self) -> None:
        """End whatever runs on this host at once, as a power cut would."""
        running = self.processes()
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=30)
        if self.node is not None:
            self.node.wait(30)


@dataclass
class Hosts:
    """A head and a worker that share one wire."""

    head: Host
    worker: Host

    @classmethod
    def make(cls, environment: dict[str, str]) -> "Hosts":
        # A short name: Ray's sockets have a limit of 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="vpo-", dir="/tmp"))
        hosts = []
        for number, role in ((1, "head"), (2, "worker")):
            (folder / role).mkdir()
            name = f"vpo-{role}-{os.getpid()}"
            hosts.append(Host(name, f"10.77.0.{number}", folder / role, environment | PATIENCE))
        made = cls(*hosts)
        for host in hosts:
            ip("netns", "add", host.name)
            (NAMES / host.name).mkdir(parents=True)
            known = {"127.0.0.1": "localhost", host.address: socket.gethostname()}
            known |= {other.address: f"{known.get(other.address, '')} {other.name}" for other in hosts}
            (NAMES / host.name / "hosts").write_text("".join(f"{a} {names}\n" for a, names in known.items()))
        ends = [made.head.name, "type", "veth", "peer", "name", "eth0", "netns", made.worker.name]
        ip("link", "add", "eth0", "netns", *ends)
        for host in hosts:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "lo", "up")
        made.plug_in()
        return made

    def plug_in(self) -> None:
        for host in (self.head, self.worker):
            ip("-n", host.name, "link", "set", "eth0", "up")
            # How programs find out their own address: by asking for the way out.
            ip("-n", host.name, "route", "replace", "default", "dev", "eth0")

    def cut(self) -> None:
        """Pull the wire: nothing arrives at either host, and nobody is told."""
        ip("-n", self.worker.name, "link", "set", "eth0", "down")

    def start_ray(self) -> None:
        self.head.start_ray(self.head)
        self.wait_for_nodes(1)
        self.worker.start_ray(self.head)
        self.wait_for_nodes(2)

    def wait_for_nodes(self, number: int) -> None:
        """Wait until Ray counts this many nodes. Raises TimeoutError with the nodes' logs."""
        deadline = time.monotonic() + NODE_SECONDS
        while time.monotonic() < deadline:
            status = subprocess.run(
                self.head.command(str(RAY), "status", f"--address={self.head.address}:{PORT}"),
                capture_output=True,
                text=True,
                env=self.head.environment,
            )
            # By the GPUs, one of each node: the list of nodes may show one that is gone.
            if f"/{number}.0 GPU" in status.stdout:
                return
            time.sleep(1)
        logs = "\n".join((host.folder / "ray.log").read_text() for host in (self.head, self.worker))
        raise TimeoutError(f"Ray has not {number} nodes after {NODE_SECONDS} s:\n{status.stdout}\n{logs}")

    def remove(self) -> None:
        for host in (self.worker, self.head):
            host.stop_ray()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            shutil.rmtree(NAMES / host.name, ignore_errors=True)
        shutil.rmtree(self.head.folder.parent)
