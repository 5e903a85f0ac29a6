"""A real Prefect for tests: a server on loopback with its own home, its command, and a process worker."""

import os
import pty
import select
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parent.parent
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if os.name == "posix" else []


@dataclass
class Service:
    """A server and the environment of its clients."""

    url: str
    environment: dict[str, str]

    def prefect(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Prefect's own command, run in the repository as the README says."""
        return self.python("-m", "prefect", *arguments, timeout=timeout)

    def prefect_on_terminal(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of Prefect's command on a terminal, where it may ask; nobody answers."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "prefect", *arguments]
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=self.environment, start_new_session=True
        )
        os.close(theirs)
        output = b""
        try:
            while select.select([ours], [], [], 300)[0]:
                output += os.read(ours, 4096)
        except OSError:  # how a terminal says that its program has gone
            pass
        finally:
            process.kill()
            os.close(ours)
        return process.wait(), output.decode(errors="replace")

    def python(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A Python program that has this server."""
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=self.environment, check=False
        )

    def api(self, path: str, **body: object) -> list[dict]:
        """What a filter of the server's API finds."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=60).raise_for_status().json()

    def runs(self, flow: str) -> list[dict]:
        """The runs of a flow, oldest first."""
        found = self.api("/flow_runs/filter", flows={"name": {"any_": [flow]}})
        return sorted(found, key=lambda run: run["created"])

    def artifacts(self, run: dict) -> dict[str, dict]:
        """The artifacts of a run, by key."""
        found = self.api("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
        return {artifact["key"] or artifact["type"]: artifact for artifact in found}


def readme_command(start: str) -> list[str]:
    """The arguments of the command of the README's deployment section that starts so, without the program."""
    section = (ROOT / "README.md").read_text().split("## Deployments")[1].split("## ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"prefect {start}")]
    return shlex.split(line.partition(">")[0].removesuffix("&"))[1:]


@contextmanager
def serving(home: Path, **settings: str) -> Iterator[Service]:
    """A Prefect server with its data under `home`; SQLite unless the settings name another database."""
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PWD": str(ROOT),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        **settings,
    }
    service = Service(environment["PREFECT_API_URL"], environment)
    command = [sys.executable, "-m", "prefect", *readme_command("server start"), "--port", str(port)]
    with running(command, home / "server.log", environment):
        deadline = time.monotonic() + 600
        while True:
            try:
                httpx.get(f"{service.url}/health", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise TimeoutError((home / "server.log").read_text()) from None
                time.sleep(0.5)
        yield service


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, which is gone with all of its children at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    tree = psutil.Process(process.pid)
    try:
        yield process
    finally:
        children = tree.children(recursive=True) if tree.is_running() else []
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            if child.is_running():
                child.kill()


@contextmanager
def working(service: Service, home: Path, limit: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """The README's worker, with as many runs at once."""
    arguments = [str(limit) if argument == "1" else argument for argument in readme_command("worker start")]
    command = [sys.executable, "-m", "prefect", *arguments]
    with running(command, home / "worker.log", service.environment) as worker:
        yield worker


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own on a socket in `folder`, from Debian's package; gives the connection URL."""
    tools = POSTGRES[-1].parent
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    folder.mkdir(parents=True)
    if user:
        shutil.chown(folder, "postgres", "postgres")
        for parent in list(folder.parents)[:-1]:
            if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)  # pytest's folders let no one else pass
    data = folder / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    init = [*user, str(tools / "initdb"), "-D", str(data), "-U", "prefect", "-A", "trust", "-E", "UTF8"]
    subprocess.run(init, check=True, capture_output=True, cwd=folder)
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    with running([*user, str(tools / "postgres"), "-D", str(data), *options], folder.with_suffix(".log"), {}):
        ready = [str(tools / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 300
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(folder.with_suffix(".log").read_text())
            time.sleep(0.2)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
